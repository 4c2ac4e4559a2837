//! Reading a whole map in large pieces (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6), which aya does
//! not offer; element by element where the kernel lacks it for a type of map.
//!
//! A reading is no snapshot: entries that are made or removed meanwhile may or may not be in it.

use std::{
    io,
    marker::PhantomData,
    mem::{self, MaybeUninit},
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use aya::{Pod, maps::MapData};
use nix::{errno::Errno, libc};

/// Elements of a piece: some hundred KB.
const CHUNK: u32 = 4_096;
/// Elements that one bucket of a hash map may hold before the reading is given up: the kernel
/// returns buckets whole.
const MAX_CHUNK: u32 = 262_144;

/// `BPF_MAP_LOOKUP_ELEM`
const LOOKUP_ELEM: libc::c_long = 1;
/// `BPF_MAP_GET_NEXT_KEY`
const GET_NEXT_KEY: libc::c_long = 4;
/// `BPF_MAP_LOOKUP_BATCH`
const LOOKUP_BATCH: libc::c_long = 24;
/// The kernel's own "operation not supported", which has no name in user space.
const ENOTSUPP: i32 = 524;

/// A map that cannot be read in this way.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The map's keys or values have another size than the types that were asked for.
    #[error("keys and values have {found:?} bytes, not {wanted:?}")]
    Size {
        /// Sizes of the map's keys and values.
        found: (u32, u32),
        /// Sizes of the types.
        wanted: (usize, usize),
    },
    /// The kernel refused.
    #[error("bpf: {0}")]
    Refused(#[from] io::Error),
    /// What the map is could not be asked.
    #[error(transparent)]
    Info(#[from] aya::maps::MapError),
    /// The map's descriptor could not be kept.
    #[error("the map's type or size cannot be asked: {0}")]
    Unknown(#[from] aya::programs::ProgramError),
}

/// All entries of a map, in pieces. Ends early with an error, or when twice the map's capacity
/// was read: where the reading goes by keys, the kernel begins anew when a key vanishes.
#[derive(Debug)]
pub struct Batches<K, V> {
    map: OwnedFd,
    way: Way<K>,
    /// Elements of the next piece.
    chunk: u32,
    /// Entries that may still be read.
    left: u64,
    value: PhantomData<V>,
}

/// How the reading goes on.
#[derive(Debug)]
enum Way<K> {
    /// By batches, from this position; `None`: from the beginning.
    Batch(Option<Vec<u64>>),
    /// By keys, from the one that follows this one.
    Keys(Option<K>),
    /// Nothing is left.
    Done,
}

/// The part of `union bpf_attr` that batches use.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// The part of `union bpf_attr` that single elements use; `value` is the next key for
/// `BPF_MAP_GET_NEXT_KEY`.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Read all entries of `map`: an array, a hash map or an LRU hash map that is not per CPU. Does not count
/// as a use of the entries: the order of eviction stays.
pub fn lookup_batch<K: Pod, V: Pod>(map: &MapData) -> Result<Batches<K, V>, BatchError> {
    let info = map.info()?;
    let found = (info.key_size(), info.value_size());
    let wanted = (size_of::<K>(), size_of::<V>());
    if (found.0 as usize, found.1 as usize) != wanted {
        return Err(BatchError::Size { found, wanted });
    }
    Ok(Batches {
        map: map.fd().as_fd().try_clone_to_owned()?,
        way: Way::Batch(None),
        chunk: CHUNK,
        left: 2 * u64::from(info.max_entries()),
        value: PhantomData,
    })
}

impl<K: Pod, V: Pod> Iterator for Batches<K, V> {
    type Item = Result<Vec<(K, V)>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let piece = match mem::replace(&mut self.way, Way::Done) {
            Way::Batch(from) => self.batch(from.as_deref()),
            Way::Keys(from) => self.by_keys(from),
            Way::Done => return None,
        };
        match piece {
            Ok(piece) if piece.is_empty() && matches!(self.way, Way::Done) => None,
            Ok(piece) => {
                self.left = self.left.saturating_sub(piece.len() as u64);
                Some(Ok(piece))
            }
            Err(error) => {
                self.way = Way::Done;
                Some(Err(error.into()))
            }
        }
    }
}

impl<K: Pod, V: Pod> Batches<K, V> {
    /// One piece from position `from`.
    fn batch(&mut self, from: Option<&[u64]>) -> io::Result<Vec<(K, V)>> {
        loop {
            // The kernel writes a key's size (arrays) or a bucket's number (hash maps).
            let mut to = vec![0u64; size_of::<K>().div_ceil(8).max(1)];
            let mut keys: Vec<K> = Vec::with_capacity(self.chunk as usize);
            let mut values: Vec<V> = Vec::with_capacity(self.chunk as usize);
            let mut attr = BatchAttr {
                in_batch: from.map_or(0, |from| from.as_ptr() as u64),
                out_batch: to.as_mut_ptr() as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: self.chunk,
                map_fd: self.map.as_raw_fd().cast_unsigned(),
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: `attr` describes live buffers of this call: `in_batch` and `out_batch` of at
            // least a key's and 4 bytes, `keys` and `values` with room for `count` elements of the
            // sizes that the map was checked to have.
            let result = unsafe { bpf(LOOKUP_BATCH, &mut attr) };
            match result {
                Ok(()) => self.way = Way::Batch(Some(to)),
                // The last piece, which may hold entries.
                Err(Errno::ENOENT) => self.way = Way::Done,
                // A bucket has more entries than the piece has room.
                Err(Errno::ENOSPC) if self.chunk < MAX_CHUNK => {
                    self.chunk *= 4;
                    continue;
                }
                Err(error) if from.is_none() && is_unsupported(error) => return self.by_keys(None),
                Err(error) => return Err(error.into()),
            }
            let count = attr.count.min(self.chunk) as usize;
            // SAFETY: the kernel has filled `count` elements of both, which is no more than they
            // have room for, and every bit pattern is valid for them (`Pod`).
            unsafe {
                keys.set_len(count);
                values.set_len(count);
            }
            return Ok(keys.into_iter().zip(values).collect());
        }
    }

    /// One piece of entries after the key `from`.
    fn by_keys(&mut self, mut from: Option<K>) -> io::Result<Vec<(K, V)>> {
        let mut piece = Vec::new();
        for _ in 0..CHUNK {
            let mut key = MaybeUninit::<K>::uninit();
            let given = from
                .as_ref()
                .map_or(0, |from| std::ptr::from_ref(from) as u64);
            let found = self.element(GET_NEXT_KEY, given, key.as_mut_ptr() as u64);
            if found == Err(Errno::ENOENT) {
                return Ok(piece);
            }
            found?;
            // SAFETY: the kernel has written the key, and every bit pattern is valid (`Pod`).
            let key = unsafe { key.assume_init() };
            let mut value = MaybeUninit::<V>::uninit();
            let given = std::ptr::from_ref(&key) as u64;
            match self.element(LOOKUP_ELEM, given, value.as_mut_ptr() as u64) {
                // SAFETY: as above.
                Ok(()) => piece.push((key, unsafe { value.assume_init() })),
                // Removed meanwhile.
                Err(Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
            from = Some(key);
        }
        self.way = Way::Keys(from);
        Ok(piece)
    }

    /// A command on one element; `key` and `value` are addresses of a key, and of room for a value
    /// (or for the next key).
    fn element(&self, command: libc::c_long, key: u64, value: u64) -> nix::Result<()> {
        let mut attr = ElementAttr {
            map_fd: self.map.as_raw_fd().cast_unsigned(),
            pad: 0,
            key,
            value,
            flags: 0,
        };
        // SAFETY: the callers, both above, pass the addresses of a live key (or 0, which asks for
        // the first one) and of room for the answer, in the sizes that the map was checked to have.
        unsafe { bpf(command, &mut attr) }
    }
}

/// Whether the kernel lacks batches, in general (`EINVAL`) or for this type of map.
fn is_unsupported(error: Errno) -> bool {
    matches!(error, Errno::EINVAL | Errno::EOPNOTSUPP) || error as i32 == ENOTSUPP
}

/// The system call.
///
/// # Safety
///
/// `attr` must be the part of `union bpf_attr` that `command` uses, and every address in it must be
/// that of a buffer as large as the kernel takes it to be.
unsafe fn bpf<T>(command: libc::c_long, attr: &mut T) -> nix::Result<()> {
    // SAFETY: passed on to the caller; the size is that of `attr`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    Errno::result(result).map(drop)
}

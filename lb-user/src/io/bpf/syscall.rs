//! The few commands of the `bpf` system call that aya has no words for: a link's whole state, to end a
//! link at once, and to try whether the kernel takes a kind of program.
//!
//! Removing a link's pin ends it too, but only some time later. Where another program takes over,
//! that is time in which both run.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::libc;

/// Commands, `enum bpf_cmd` of `linux/bpf.h`.
#[derive(Clone, Copy)]
#[repr(i32)]
enum Command {
    CreateMap = 0,
    Load = 5,
    Pin = 6,
    Get = 7,
    Info = 15,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// `union bpf_attr` as these commands have it, zero beyond their part.
#[repr(C, align(8))]
#[derive(Default)]
struct Attributes {
    words: [u32; 32],
}

impl Attributes {
    /// A 64-bit pointer at word `at`.
    fn with_pointer<T: ?Sized>(mut self, at: usize, pointer: *const T) -> Self {
        let address = pointer.cast::<u8>().expose_provenance() as u64;
        for (word, half) in self.words.iter_mut().skip(at).zip(halves(address)) {
            *word = half;
        }
        self
    }

    fn with(mut self, at: usize, value: u32) -> Self {
        if let Some(word) = self.words.get_mut(at) {
            *word = value;
        }
        self
    }

    fn with_fd(self, at: usize, fd: BorrowedFd<'_>) -> Self {
        // Descriptors are not negative.
        self.with(at, u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX))
    }
}

/// A 64-bit value as the two words that it takes in memory.
fn halves(value: u64) -> [u32; 2] {
    let bytes = value.to_ne_bytes();
    let (words, _) = bytes.as_chunks::<4>();
    match words {
        [first, second] => [u32::from_ne_bytes(*first), u32::from_ne_bytes(*second)],
        _ => [0; 2],
    }
}

fn bpf(command: Command, attributes: &mut Attributes) -> io::Result<RawFd> {
    let length = size_of::<Attributes>();
    // SAFETY: the kernel reads and writes at most `length` bytes of `attributes`, which is borrowed
    // for the call, and the memory behind the pointers in it, which the callers below keep alive
    // and large enough for the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as i32,
            std::ptr::from_mut(attributes),
            length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(io::Error::other)
}

fn path_text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Open what is pinned at `path`.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let text = path_text(path)?;
    let mut attributes = Attributes::default().with_pointer(0, text.as_ptr());
    let fd = bpf(Command::Get, &mut attributes)?;
    // SAFETY: the call succeeded, so this is a descriptor that was made for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pin `object` at `path`, where nothing is.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let text = path_text(path)?;
    let attributes = Attributes::default().with_pointer(0, text.as_ptr());
    bpf(Command::Pin, &mut attributes.with_fd(2, object)).map(drop)
}

/// Detach `link` now; it stays as an empty shell until nobody refers to it any more.
pub(super) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(
        Command::LinkDetach,
        &mut Attributes::default().with_fd(0, link),
    )
    .map(drop)
}

/// Put `program` in the place of `link`'s.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = Attributes::default().with_fd(0, link);
    bpf(Command::LinkUpdate, &mut attributes.with_fd(1, program)).map(drop)
}

/// A link to an interface or a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkState {
    /// Id of its program.
    pub(super) program: u32,
    /// Index of the interface, or inode number of the network namespace; 0 when it is detached,
    /// because that is gone or because somebody did that.
    pub(super) ifindex: u32,
}

/// State of an XDP, tcx or `sk_lookup` link.
pub(super) fn link_state(link: BorrowedFd<'_>) -> io::Result<LinkState> {
    // struct bpf_link_info: type, id, prog_id, padding, then for all kinds where it leads.
    let mut info = [0u32; 32];
    let length = u32::try_from(size_of_val(&info)).unwrap_or(u32::MAX);
    let attributes = Attributes::default().with_fd(0, link).with(1, length);
    let mut attributes = attributes.with_pointer(2, info.as_mut_ptr());
    bpf(Command::Info, &mut attributes)?;
    let [_, _, program, _, ifindex, ..] = info;
    Ok(LinkState { program, ifindex })
}

/// A kind of program that the kernel may not know.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kind {
    /// `enum bpf_prog_type`
    pub(super) program: u32,
    /// `enum bpf_attach_type`; 0 where the type of the program says all.
    pub(super) attach: u32,
    /// `BPF_F_*`
    pub(super) flags: u32,
}

/// Load a program of this kind that does nothing but return 1. It is attached to nothing.
pub(super) fn load_trivial(kind: Kind) -> io::Result<OwnedFd> {
    load(kind, &[])
}

/// Load a program of this kind that removes an element of a socket map: the kernel has one list of the
/// kinds that may do that and that may add one.
pub(super) fn load_sockmap_writer(kind: Kind) -> io::Result<OwnedFd> {
    /// `BPF_MAP_TYPE_SOCKMAP`
    const SOCKMAP: u32 = 15;
    // Type, sizes of key and value, capacity.
    let attributes = [SOCKMAP, 4, 4, 1].into_iter().enumerate();
    let mut attributes = attributes.fold(Attributes::default(), |all, (at, value)| {
        all.with(at, value)
    });
    let fd = bpf(Command::CreateMap, &mut attributes)?;
    // SAFETY: the call succeeded, so this is a descriptor that was made for us alone.
    let map = unsafe { OwnedFd::from_raw_fd(fd) };
    let [a, b, c, d] = fd.to_le_bytes();
    let body = [
        // *(u32 *)(r10 - 4) = 0; r2 = r10; r2 += -4
        [0x62, 0x0a, 0xfc, 0xff, 0, 0, 0, 0],
        [0xbf, 0xa2, 0, 0, 0, 0, 0, 0],
        [0x07, 0x02, 0, 0, 0xfc, 0xff, 0xff, 0xff],
        // r1 = map (two instructions); call bpf_map_delete_elem
        [0x18, 0x11, 0, 0, a, b, c, d],
        [0; 8],
        [0x85, 0, 0, 0, 3, 0, 0, 0],
    ];
    let loaded = load(kind, &body);
    drop(map);
    loaded
}

/// Load a program that executes `body` and returns 1.
fn load(kind: Kind, body: &[[u8; 8]]) -> io::Result<OwnedFd> {
    /// `r0 = 1; exit`
    const END: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 1, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    let code = [body, &END].concat();
    let attributes = Attributes::default()
        .with(0, kind.program)
        .with(1, u32::try_from(code.len()).unwrap_or(u32::MAX))
        .with_pointer(2, code.as_ptr())
        .with_pointer(4, c"GPL".as_ptr())
        .with(11, kind.flags)
        .with(17, kind.attach);
    let fd = bpf(Command::Load, &mut { attributes })?;
    // SAFETY: the call succeeded, so this is a descriptor that was made for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Bytes of machine code that the kernel made of `program`; 0: it is interpreted.
pub(super) fn compiled_size(program: BorrowedFd<'_>) -> io::Result<u32> {
    // struct bpf_prog_info: type, id, tag (two words), jited_prog_len.
    let mut info = [0u32; 5];
    let length = u32::try_from(size_of_val(&info)).unwrap_or(u32::MAX);
    let attributes = Attributes::default().with_fd(0, program).with(1, length);
    let mut attributes = attributes.with_pointer(2, info.as_mut_ptr());
    bpf(Command::Info, &mut attributes)?;
    let [.., compiled] = info;
    Ok(compiled)
}

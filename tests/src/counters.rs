//! Reading many counters at once: a row of a program run asks for all of them, before and after.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::OnceLock,
};

use anyhow::{Context, Result, ensure};
use aya::{
    Pod,
    maps::{MapData, MapType},
    util::nr_cpus,
};
use nix::{errno::Errno, libc};

/// `BPF_MAP_LOOKUP_BATCH`
const LOOKUP_BATCH: libc::c_long = 24;
/// The kernel's own "operation not supported", which has no name in user space.
const ENOTSUPP: i32 = 524;

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

/// The first `count` elements of a per-CPU array, each with its value on every CPU, in one system
/// call. `None`: the kernel reads such arrays one by one only (before Linux 5.13).
pub fn first_elements<V: Pod>(map: &MapData, count: u32) -> Result<Option<Vec<Vec<V>>>> {
    let info = map.info()?;
    ensure!(
        info.map_type()? == MapType::PerCpuArray,
        "not a per-CPU array"
    );
    ensure!(
        info.value_size() as usize == size_of::<V>(),
        "values of another size"
    );
    ensure!(
        size_of::<V>().is_multiple_of(8),
        "the kernel would pad each value"
    );
    ensure!(count <= info.max_entries(), "the array has fewer elements");
    let cpus = cpus()?;
    let length = count as usize * cpus;
    let mut keys = vec![0u32; count as usize];
    let mut values: Vec<V> = Vec::with_capacity(length);
    let mut next = 0u32;
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: (&raw mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count,
        map_fd: map.fd().as_fd().as_raw_fd().cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: `attr` describes live buffers of this call: `out_batch` and `keys` of 4 bytes for each
    // element, `values` with room for `count` elements, each with one value for each possible CPU.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            LOOKUP_BATCH,
            &raw mut attr,
            size_of::<BatchAttr>(),
        )
    };
    match Errno::result(result) {
        Ok(_) => {}
        // All elements of the array were asked for.
        Err(Errno::ENOENT) if attr.count == count => {}
        Err(error) if is_unsupported(error) => return Ok(None),
        Err(error) => return Err(io::Error::from(error)).context("reading counters"),
    }
    ensure!(
        attr.count == count,
        "{} counters instead of {count}",
        attr.count
    );
    // SAFETY: the kernel has filled as many values as there is room for, and every bit pattern is
    // valid for them (`Pod`).
    unsafe { values.set_len(length) };
    Ok(Some(values.chunks(cpus).map(<[V]>::to_vec).collect()))
}

/// How many CPUs a per-CPU value has room for. The file that says so is read once.
fn cpus() -> Result<usize> {
    static CPUS: OnceLock<usize> = OnceLock::new();
    if let Some(cpus) = CPUS.get() {
        return Ok(*cpus);
    }
    let cpus = nr_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?;
    Ok(*CPUS.get_or_init(|| cpus))
}

/// Whether the kernel lacks batches, in general (`EINVAL`) or for this type of map.
fn is_unsupported(error: Errno) -> bool {
    matches!(error, Errno::EINVAL | Errno::EOPNOTSUPP) || error as i32 == ENOTSUPP
}

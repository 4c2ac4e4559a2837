//! Facts about the network namespace that a thread is in, and work in others.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    thread,
};

use nix::{
    getsockopt_impl, libc,
    sched::{CloneFlags, setns},
    sockopt_impl,
    sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket},
};

/// `asm-generic/socket.h`; the kernel has it since 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

sockopt_impl!(
    /// The id of a socket's network namespace.
    NetnsCookieOption,
    GetOnly,
    libc::SOL_SOCKET,
    SO_NETNS_COOKIE,
    u64
);

/// The id of the calling thread's network namespace, unique until the next boot: what a BPF
/// program gets from `bpf_get_netns_cookie`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetnsCookie(u64);

impl NetnsCookie {
    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// The kernel does not tell the network namespace's id.
#[derive(Debug, thiserror::Error)]
#[error("read the id of the network namespace (SO_NETNS_COOKIE, Linux 5.14): {0}")]
pub struct NetnsCookieError(#[from] io::Error);

/// The id of the calling thread's network namespace.
pub fn cookie() -> Result<NetnsCookie, NetnsCookieError> {
    let any = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(io::Error::from)?;
    let cookie = getsockopt(&any, NetnsCookieOption).map_err(io::Error::from)?;
    Ok(NetnsCookie(cookie))
}

/// The network namespaces that this machine's processes are in, each once, at most `limit`.
pub fn all(limit: usize) -> io::Result<Vec<File>> {
    let mut found = BTreeMap::new();
    for process in fs::read_dir("/proc")? {
        // Processes come and go meanwhile, and not all of /proc is processes.
        let Ok(path) = process.map(|process| process.path().join("ns/net")) else {
            continue;
        };
        let Ok(status) = fs::metadata(&path) else {
            continue;
        };
        let name = (status.dev(), status.ino());
        if found.len() < limit
            && !found.contains_key(&name)
            && let Ok(file) = File::open(&path)
        {
            found.insert(name, file);
        }
    }
    Ok(found.into_values().collect())
}

/// What `work` returns in another network namespace. It runs on a thread of its own, which ends
/// with it.
pub fn inside<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let visitor = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        });
        visitor
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the work panicked")))
    })
}

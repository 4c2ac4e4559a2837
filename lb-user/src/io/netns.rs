//! Facts about the network namespace that a thread is in.

use std::io;

use nix::{
    getsockopt_impl, libc, sockopt_impl,
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

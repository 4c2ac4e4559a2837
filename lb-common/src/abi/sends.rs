//! UDP of this node's own processes: what an unconnected socket asked for before the destination of
//! its datagrams was rewritten.

use core::mem::{align_of, size_of};

/// Pairs of a socket and a backend that are remembered, per family.
pub const MAX_SENDS: u32 = 65_536;

/// Key of `sends4`/`sends6`: a socket, and a backend that it sends to. The value is the service that
/// it asked for, which the backend's replies then seem to come from.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SendKey<A> {
    pub(super) cookie: [u32; 2],
    pub(super) addr: A,
    pub(super) port: u16,
    pub(super) pad: u16,
}

impl<A: Copy> SendKey<A> {
    /// The socket with this cookie, and the backend `addr:port` (host order).
    #[inline(always)]
    pub const fn new(cookie: u64, addr: A, port: u16) -> Self {
        Self {
            cookie: [cookie as u32, (cookie >> 32) as u32],
            addr,
            port,
            pad: 0,
        }
    }

    /// Cookie of the socket.
    pub const fn cookie(&self) -> u64 {
        let [low, high] = self.cookie;
        (high as u64) << 32 | low as u64
    }

    /// The backend's address.
    pub const fn addr(&self) -> A {
        self.addr
    }

    /// The backend's port, host order.
    pub const fn port(&self) -> u16 {
        self.port
    }
}

type V4 = [u8; 4];
type V6 = [u8; 16];

const _: () = assert!(size_of::<SendKey<V4>>() == 16 && align_of::<SendKey<V4>>() == 4);
const _: () = assert!(size_of::<SendKey<V6>>() == 28 && align_of::<SendKey<V6>>() == 4);

#[cfg(test)]
mod tests {
    use super::*;

    /// Both halves of the cookie come back.
    #[test]
    fn the_cookie_is_kept() {
        let key = SendKey::new(0x1234_5678_9abc_def0, [10, 0, 0, 1], 53);
        assert_eq!(key.cookie(), 0x1234_5678_9abc_def0);
        assert_eq!((key.addr(), key.port()), ([10, 0, 0, 1], 53));
    }
}

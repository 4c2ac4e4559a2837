//! Which local backends cannot get the VIP's connections, and what helps.
//!
//! A listener on the wildcard address or on the VIP takes them by itself, one on another address gets
//! them by the program of socket lookups: unless it is one of MPTCP, which that cannot name.

use std::net::{IpAddr, SocketAddr};

/// A listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// What it is bound to.
    pub at: SocketAddr,
    /// An IPv6 socket that takes no IPv4.
    pub only_v6: bool,
    /// It speaks MPTCP.
    pub mptcp: bool,
    /// By which `/proc` shows it.
    pub inode: u64,
    /// Which no other socket ever has.
    pub cookie: u64,
}

impl Listener {
    /// Whether the kernel gives it connections to `to`.
    fn takes(&self, to: SocketAddr) -> bool {
        let at = self.at.ip();
        let any = at.is_unspecified()
            && match to.ip() {
                IpAddr::V4(_) => at.is_ipv4() || !self.only_v6,
                IpAddr::V6(_) => at.is_ipv6(),
            };
        self.at.port() == to.port() && (any || at.to_canonical() == to.ip())
    }

    /// Whether it is a backend's for `to` that listens on another address.
    fn is_bound(&self, to: SocketAddr) -> bool {
        let at = self.at.ip().to_canonical();
        self.at.port() == to.port()
            && at.is_ipv4() == to.is_ipv4()
            && !at.is_loopback()
            && !at.is_unspecified()
    }
}

/// What an operator should know. `asked` are the VIPs with the ports of their local backends.
pub fn complaints(asked: &[SocketAddr], listeners: &[Listener]) -> Vec<String> {
    let complaint = |to: &SocketAddr| {
        let mut all = listeners.iter();
        if all.clone().any(|listener| listener.takes(*to)) {
            return None;
        }
        let bound = all.find(|listener| listener.mptcp && listener.is_bound(*to))?;
        Some(format!(
            "the server at {} listens on that address only, and with MPTCP: connections to {} cannot be \
             given to it. Let it listen on the wildcard address, or without MPTCP \
             (a Go program: GODEBUG=multipathtcp=0)",
            bound.at,
            to.ip()
        ))
    };
    asked.iter().filter_map(complaint).collect()
}

/// The listener at `server` that connections to `to` have to be given to: none if one takes them by
/// itself, or if it speaks MPTCP.
pub fn to_be_given(
    to: SocketAddr,
    server: SocketAddr,
    listeners: &[Listener],
) -> Option<&Listener> {
    if listeners.iter().any(|listener| listener.takes(to)) {
        return None;
    }
    let is_server = |listener: &&Listener| {
        !listener.mptcp && listener.is_bound(to) && listener.at.ip().to_canonical() == server.ip()
    };
    listeners.iter().find(is_server)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(at: &str, mptcp: bool) -> Listener {
        Listener {
            at: at.parse().unwrap(),
            only_v6: false,
            mptcp,
            inode: 0,
            cookie: 0,
        }
    }

    fn complains(to: &str, listeners: &[Listener]) -> bool {
        !complaints(&[to.parse().unwrap()], listeners).is_empty()
    }

    const VIP4: &str = "10.0.2.100:6443";
    const VIP6: &str = "[fd00::100]:6443";

    /// A bound listener is a problem with MPTCP only.
    #[test]
    fn bound_mptcp_listeners_are_named() {
        let bound = [listener("10.0.2.10:6443", true)];
        let said = complaints(&[VIP4.parse().unwrap()], &bound);
        assert!(
            said[0].contains("10.0.2.10:6443") && said[0].contains("10.0.2.100 "),
            "{said:?}"
        );
        assert!(!complains(VIP4, &[listener("10.0.2.10:6443", false)]));
        let mapped = [listener("[::ffff:10.0.2.10]:6443", true)];
        assert!(complains(VIP4, &mapped) && !complains(VIP6, &mapped));
        assert!(complains(VIP6, &[listener("[fd00::10]:6443", true)]));
    }

    /// Whoever takes the VIP's connections anyway needs no help, also beside one that does not.
    #[test]
    fn wildcard_listeners_are_fine() {
        for fine in ["0.0.0.0:6443", "[::]:6443", VIP4] {
            let both = [listener("10.0.2.10:6443", true), listener(fine, true)];
            assert!(!complains(VIP4, &both), "{fine}");
        }
        let mut only = listener("[::]:6443", true);
        only.only_v6 = true;
        assert!(complains(VIP4, &[listener("10.0.2.10:6443", true), only]));
        assert!(!complains(VIP6, &[listener("[fd00::10]:6443", true), only]));
    }

    /// Other ports, the loopback address and no listener at all are not this problem.
    #[test]
    fn other_listeners_are_nobodys_business() {
        let others = [
            listener("10.0.2.10:6444", true),
            listener("127.0.0.1:6443", true),
        ];
        assert!(!complains(VIP4, &others) && !complains(VIP4, &[]));
    }

    /// The server's own listener is given connections that nobody takes by himself.
    #[test]
    fn bound_listeners_are_given_connections() {
        let (to, server) = (VIP4.parse().unwrap(), "10.0.2.10:6443".parse().unwrap());
        let bound = listener("10.0.2.10:6443", false);
        let others = [
            listener("10.0.2.11:6443", false),
            listener("127.0.0.1:6443", false),
        ];
        let all = [others[0], others[1], bound];
        assert_eq!(to_be_given(to, server, &all), Some(&bound));
        assert_eq!(to_be_given(to, server, &others), None);
        assert_eq!(
            to_be_given(to, server, &[listener("10.0.2.10:6443", true)]),
            None
        );
        let taken = [bound, listener("0.0.0.0:6443", false)];
        assert_eq!(to_be_given(to, server, &taken), None);
    }
}

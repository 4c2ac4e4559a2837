//! Which connected sockets (TCP, and UDP in the second case) of this machine are to be ended when a backend dies: nobody resets them from
//! outside, for their packets never pass the data plane.
//!
//! - Connections of the backend on this node with clients of the VIP. If its process died the
//!   kernel has ended them already; if it is frozen, they are still there.
//! - Connections of processes on this node that asked for the VIP and were sent to the backend at
//!   `connect()`.

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{ConnectOrigin, Method};

use super::resets::Death;

/// A connection as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// This machine's end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Number of the socket, unique until the next boot.
    pub cookie: u64,
}

/// Where a socket's `connect()` was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Entry of `connects4`.
    V4(ConnectOrigin<[u8; 4]>),
    /// Entry of `connects6`.
    V6(ConnectOrigin<[u8; 16]>),
}

impl Origin {
    /// Backend id.
    pub const fn backend(&self) -> u32 {
        match self {
            Self::V4(origin) => origin.backend(),
            Self::V6(origin) => origin.backend(),
        }
    }

    fn leads_to(&self, remote: SocketAddr) -> bool {
        match (self, remote.ip().to_canonical()) {
            (Self::V4(origin), IpAddr::V4(ip)) => origin.leads_to(ip.octets(), remote.port()),
            (Self::V6(origin), IpAddr::V6(ip)) => origin.leads_to(ip.octets(), remote.port()),
            _ => false,
        }
    }
}

/// Whether `connection` goes from the VIP to the process on this node that died as a backend.
pub fn is_served(connection: &Connection, death: &Death) -> bool {
    let local = connection.local;
    death.method == Method::Local
        && local.ip().to_canonical() == death.vip
        && local.port() == death.backend.port()
}

/// Whether `connection`, sent where `origin` says, is one to the backend that died.
pub fn is_sent(connection: &Connection, origin: &Origin, death: &Death) -> bool {
    origin.backend() == death.order.backend
        && same(connection.remote, death.backend)
        && origin.leads_to(connection.remote)
}

fn same(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && a.ip().to_canonical() == b.ip().to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::resets::{Order, Way};

    const VIP: [u8; 4] = [10, 0, 2, 100];
    const BACKEND: [u8; 4] = [10, 0, 2, 10];

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn death(method: Method) -> Death {
        Death {
            order: Order {
                backend: 5,
                epoch: 1,
                ipv6: false,
                tell: true,
                way: Way::None,
            },
            vip: VIP.into(),
            backend: at("10.0.2.10:6443"),
            method,
        }
    }

    fn connection(local: &str, remote: &str) -> Connection {
        Connection {
            local: at(local),
            remote: at(remote),
            cookie: 7,
        }
    }

    /// The backend's connections with clients of the VIP are meant, also where it listens on `[::]`;
    /// those with its own address are not the service's, and another node's are not here.
    #[test]
    fn served_connections_have_the_vip() {
        let served =
            |local: &str, method| is_served(&connection(local, "10.0.1.7:40000"), &death(method));
        assert!(served("10.0.2.100:6443", Method::Local));
        assert!(served("[::ffff:10.0.2.100]:6443", Method::Local));
        assert!(!served("10.0.2.10:6443", Method::Local));
        assert!(!served("10.0.2.100:1644", Method::Local));
        assert!(!served("10.0.2.100:6443", Method::Dsr));
    }

    /// A connection is meant if its socket was sent to this backend and is still connected there:
    /// a socket can be connected anew.
    #[test]
    fn sent_connections_lead_to_the_backend() {
        let origin = |backend| Origin::V4(ConnectOrigin::new(VIP, 1644, BACKEND, 6443, backend));
        let sent = |remote: &str, backend| {
            let connection = connection("10.0.2.11:40000", remote);
            is_sent(&connection, &origin(backend), &death(Method::Dsr))
        };
        assert!(sent("10.0.2.10:6443", 5));
        assert!(sent("[::ffff:10.0.2.10]:6443", 5));
        assert!(!sent("10.0.2.10:6443", 6));
        assert!(!sent("10.0.2.11:6443", 5));
        assert!(!sent("10.0.2.10:443", 5));
    }
}

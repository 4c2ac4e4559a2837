//! The TCP and UDP sockets of a network namespace, listed and ended (`sock_diag(7)`).

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
};

use lb_common::headers::{IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};
use nix::{
    errno::Errno,
    sys::{
        socket::{setsockopt, sockopt},
        time::TimeVal,
    },
};

use super::{
    NetlinkError,
    decode::Messages,
    socket::{ANSWER_TIMEOUT, receive},
};
use crate::core::{listeners::Listener, local_sockets::Connection};

/// `AF_INET`
const IPV4: u8 = 2;
/// `AF_INET6`
const IPV6: u8 = 10;
/// `SOCK_DIAG_BY_FAMILY`
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `SOCK_DESTROY`
const SOCK_DESTROY: u16 = 21;
/// `struct nlmsghdr`
const HEADER: usize = 16;
/// `struct inet_diag_sockid`:
/// ```text
///  0      2      4          20          36          40       48
///  +------+------+----------+-----------+-----------+--------+
///  | port | port | address  | address   | interface | cookie |
///  | own  | peer | own      | peer      | index     |        |
///  +------+------+----------+-----------+-----------+--------+
/// ```
const ID: usize = 48;
/// Bytes of `struct inet_diag_msg` before the id.
const BEFORE_ID: usize = 4;
/// TCP states in which a connection can be ended by a reset, as bits: ESTABLISHED, SYN-SENT, both
/// FIN-WAITs, CLOSE-WAIT, LAST-ACK, CLOSING.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// ESTABLISHED, as a bit: of UDP, the sockets that are connected.
const ESTABLISHED: u32 = 1 << 1;
/// LISTEN, as a bit.
const LISTENING: u32 = 1 << 10;
/// The extension `INET_DIAG_INFO`, as a bit: the kernel tells the upper layer only with it.
const INFO: u8 = 1 << 1;
/// Bytes of `struct inet_diag_msg`: attributes follow.
const MESSAGE: usize = 72;
/// Where the inode is in it, its last field.
const INODE: usize = 68;
/// `INET_DIAG_SKV6ONLY`
const ONLY_V6: u16 = 11;
/// `INET_DIAG_ULP_INFO`, and `INET_ULP_INFO_NAME` in it.
const UPPER: u16 = 19;
const UPPER_NAME: u16 = 1;

/// A connection with the name that the kernel has for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    /// Its ends.
    pub connection: Connection,
    /// IP protocol: TCP, or UDP for a socket that is connected.
    pub protocol: u8,
    /// By which `/proc` shows it; 0 if no process has a descriptor of it.
    pub inode: u64,
    family: u8,
    id: [u8; ID],
}

/// Lists and ends the sockets of one network namespace.
pub struct SockDiag {
    socket: Socket,
    sequence: u32,
}

impl SockDiag {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)
            .map_err(NetlinkError::socket("open NETLINK_SOCK_DIAG"))?;
        socket.bind_auto().map_err(NetlinkError::socket("bind"))?;
        let timeout = TimeVal::new(ANSWER_TIMEOUT.as_secs().try_into().unwrap_or(5), 0);
        setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &timeout)
            .map_err(io::Error::from)
            .map_err(NetlinkError::socket("SO_RCVTIMEO"))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Every TCP connection of both families, but for those that have ended, and every connected UDP
    /// socket.
    pub fn connections(&mut self) -> Result<Vec<Connected>, NetlinkError> {
        let mut all = Vec::new();
        for (protocol, states) in [(IPPROTO_TCP, STATES), (IPPROTO_UDP, ESTABLISHED)] {
            for family in [IPV4, IPV6] {
                let body = request(family, protocol, 0, states, &[0; ID]);
                let listed = self.ask(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &body, |payload| {
                    all.extend(connected(payload, protocol));
                });
                match listed {
                    // A kernel that does not list them does not end them either.
                    Err(error)
                        if protocol == IPPROTO_UDP && error.errno() == Some(Errno::ENOENT) => {}
                    other => other?,
                }
            }
        }
        Ok(all)
    }

    /// Every listening TCP socket of both families.
    pub fn listeners(&mut self) -> Result<Vec<Listener>, NetlinkError> {
        let mut all = Vec::new();
        for family in [IPV4, IPV6] {
            let body = request(family, IPPROTO_TCP, INFO, LISTENING, &[0; ID]);
            self.ask(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &body, |payload| {
                all.extend(listener(payload));
            })?;
        }
        Ok(all)
    }

    /// Ends a connection as if its process had aborted it: the other end gets a RST, the process an
    /// error. Whether it was still there.
    pub fn destroy(&mut self, socket: &Connected) -> Result<bool, NetlinkError> {
        let body = request(socket.family, socket.protocol, 0, STATES, &socket.id);
        match self.ask(SOCK_DESTROY, NLM_F_ACK, &body, |_| {}) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the kernel ends connections on request: one is asked for that cannot exist.
    pub fn can_destroy(&mut self) -> Result<bool, NetlinkError> {
        // Without the modules that list sockets the request below would find nothing either.
        self.listeners()?;
        let body = request(IPV4, IPPROTO_TCP, 0, STATES, &[0; ID]);
        match self.ask(SOCK_DESTROY, NLM_F_ACK, &body, |_| {}) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(true),
            Err(error) if error.errno() == Some(Errno::EOPNOTSUPP) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Send a request and hand every answer before the verdict to `take`.
    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), NetlinkError> {
        const WHAT: &str = "sockets";
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
        let message = [
            &length.to_ne_bytes()[..],
            &kind.to_ne_bytes(),
            &(NLM_F_REQUEST | flags).to_ne_bytes(),
            &self.sequence.to_ne_bytes(),
            &[0; 4],
            body,
        ]
        .concat();
        self.socket
            .send_to(&message, &NetlinkAddr::new(0, 0), 0)
            .map_err(NetlinkError::socket("send"))?;
        loop {
            let received = receive(&self.socket).map_err(NetlinkError::socket("receive"))?;
            for message in Messages::new(&received.unwrap_or_default()) {
                let message = message.map_err(NetlinkError::malformed(WHAT))?;
                // What is left of an earlier request that failed.
                if message.sequence != self.sequence {
                    continue;
                }
                match message.kind {
                    NLMSG_DONE | NLMSG_ERROR => return verdict(message.payload, WHAT),
                    _ => take(message.payload),
                }
            }
        }
    }
}

fn verdict(payload: &[u8], request: &str) -> Result<(), NetlinkError> {
    let code = payload.first_chunk().map(|code| i32::from_ne_bytes(*code));
    match code {
        Some(0..) => Ok(()),
        Some(code) => Err(NetlinkError::Refused {
            request: request.to_owned(),
            source: io::Error::from_raw_os_error(code.saturating_neg()),
            detail: None,
        }),
        None => Err(NetlinkError::malformed(request)(DecodeError::from(
            "a verdict without a code".to_owned(),
        ))),
    }
}

/// `struct inet_diag_req_v2`; `more`: extensions as bits.
fn request(family: u8, protocol: u8, more: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let head = [family, protocol, more, 0];
    [&head[..], &states.to_ne_bytes(), id].concat()
}

/// A listening socket; `None` for what is none. Those of MPTCP are TCP sockets with an upper layer.
fn listener(message: &[u8]) -> Option<Listener> {
    let Connected {
        connection, inode, ..
    } = connected(message, IPPROTO_TCP)?;
    let (mut only_v6, mut mptcp) = (false, false);
    for attribute in NlasIterator::new(message.get(MESSAGE..)?).flatten() {
        match attribute.kind() {
            ONLY_V6 => only_v6 = attribute.value().first() == Some(&1),
            UPPER => {
                let mut parts = NlasIterator::new(attribute.value()).flatten();
                mptcp = parts.any(|part| part.kind() == UPPER_NAME && part.value() == b"mptcp\0");
            }
            _ => {}
        }
    }
    Some(Listener {
        at: connection.local,
        only_v6,
        mptcp,
        inode,
        cookie: connection.cookie,
    })
}

/// `struct inet_diag_msg`; `None` for what is none.
fn connected(message: &[u8], protocol: u8) -> Option<Connected> {
    let family = *message.first()?;
    let id: [u8; ID] = *message.get(BEFORE_ID..)?.first_chunk()?;
    let port = |at: usize| Some(u16::from_be_bytes(*id.get(at..)?.first_chunk()?));
    let address = |at: usize| -> Option<IpAddr> {
        let bytes = id.get(at..)?;
        match family {
            IPV4 => Some((*bytes.first_chunk::<4>()?).into()),
            IPV6 => Some((*bytes.first_chunk::<16>()?).into()),
            _ => None,
        }
    };
    let inode = message.get(INODE..)?.first_chunk()?;
    // Two words, the low one first.
    let word = |at: usize| Some(u32::from_ne_bytes(*id.get(at..)?.first_chunk()?));
    Some(Connected {
        connection: Connection {
            local: SocketAddr::new(address(4)?, port(0)?),
            remote: SocketAddr::new(address(20)?, port(2)?),
            cookie: u64::from(word(40)?) | u64::from(word(44)?) << 32,
        },
        protocol,
        inode: u32::from_ne_bytes(*inode).into(),
        family,
        id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Listening sockets of this process are listed with what they are.
    #[test]
    fn listeners_are_listed() {
        use socket2::{Domain, Protocol, Socket, Type};
        let listen = |protocol| -> io::Result<Socket> {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(protocol))?;
            socket.set_only_v6(true)?;
            socket.bind(&SocketAddr::from(([0u16; 8], 0)).into())?;
            socket.listen(1)?;
            Ok(socket)
        };
        let own = |socket: &Socket| socket.local_addr().unwrap().as_socket().unwrap();
        let plain = listen(Protocol::TCP).unwrap();
        let mptcp = listen(Protocol::MPTCP).ok();
        let all = SockDiag::open().unwrap().listeners().unwrap();
        let listed = |at, mptcp| {
            let mut all = all.iter();
            all.any(|own| own.at == at && own.only_v6 && own.mptcp == mptcp)
        };
        assert!(listed(own(&plain), false), "{all:?}");
        // Not every kernel has it.
        if let Some(mptcp) = mptcp {
            assert!(listed(own(&mptcp), true), "{all:?}");
        }
    }

    /// A message of the kernel becomes a connection; a cut one becomes none.
    #[test]
    fn messages_become_connections() {
        let mut message = vec![IPV4, 1, 0, 0];
        message.extend([0x19, 0x2b, 0x9c, 0x40]);
        message.extend([10, 0, 2, 10].iter().chain(&[0; 12]));
        message.extend([10, 0, 1, 7].iter().chain(&[0; 12]));
        message.extend(0u32.to_ne_bytes());
        message.extend(7u32.to_ne_bytes());
        message.extend(1u32.to_ne_bytes());
        message.extend([0; 16]);
        message.extend(4711u32.to_ne_bytes());
        let socket = connected(&message, IPPROTO_TCP).unwrap();
        assert_eq!(socket.inode, 4711);
        assert_eq!(
            socket.connection,
            Connection {
                local: "10.0.2.10:6443".parse().unwrap(),
                remote: "10.0.1.7:40000".parse().unwrap(),
                cookie: 0x1_0000_0007,
            }
        );
        assert_eq!(connected(&message[..51], IPPROTO_TCP), None);
    }
}

//! Sockets that send whole IP packets by this node's routes, whatever their source, and receive
//! nothing.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

/// Header included, and nothing is ever received (raw(7)).
const IPPROTO_RAW: i32 = 255;
/// How long a packet may wait for room in the socket.
const TIMEOUT: Duration = Duration::from_millis(100);
/// Bytes that may wait in the socket: some thousand packets.
const BUFFER: usize = 4 * 1024 * 1024;

/// Sends IPv4 and IPv6 packets. They pass this node's firewall rules for its own traffic, and the
/// tc egress of their link.
#[derive(Debug)]
pub struct RawSocket {
    v4: Socket,
    v6: Option<Socket>,
}

impl RawSocket {
    /// Opens sockets in the calling thread's network namespace.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            v4: open(Domain::IPV4)?,
            // A node may have no IPv6.
            v6: open(Domain::IPV6).ok(),
        })
    }

    /// Sends `packet`, its IP header first, to `destination`.
    pub fn send(&self, packet: &[u8], destination: IpAddr) -> io::Result<()> {
        let socket = match destination {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => self.v6.as_ref().ok_or(io::ErrorKind::Unsupported)?,
        };
        // The port is the packet's business.
        let destination = SocketAddr::new(destination, 0);
        socket.send_to(packet, &destination.into()).map(drop)
    }
}

fn open(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(IPPROTO_RAW)))?;
    socket.set_send_buffer_size(BUFFER)?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    Ok(socket)
}

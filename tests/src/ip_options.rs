//! Sockets whose packets carry IPv4 options or IPv6 extension headers: the kernel puts them into
//! every packet.

use std::{
    ffi::OsString,
    io,
    net::{SocketAddr, TcpStream},
    os::unix::ffi::OsStringExt as _,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{libc, setsockopt_impl, sys::socket::setsockopt};
use socket2::{Domain, Socket, Type};

use crate::topology::Node;

nix::sockopt_impl!(
    /// `IP_OPTIONS` (ip(7)).
    IpOptions,
    SetOnly,
    libc::IPPROTO_IP,
    libc::IP_OPTIONS,
    OsString,
    nix::sys::socket::sockopt::SetOsString
);
nix::sockopt_impl!(
    /// `IPV6_HOPOPTS` (RFC 3542).
    HopByHop,
    SetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_HOPOPTS,
    OsString,
    nix::sys::socket::sockopt::SetOsString
);
nix::sockopt_impl!(
    /// `IPV6_DSTOPTS` (RFC 3542).
    Destination,
    SetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_DSTOPTS,
    OsString,
    nix::sys::socket::sockopt::SetOsString
);

/// Three no-operations, and a record of the route with room for two addresses (RFC 791).
const IPV4: [u8; 15] = [1, 1, 1, 7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// A header filled by one `PadN` option (RFC 8200 section 4.2); Linux refuses more padding than 7 bytes.
const IPV6: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];

/// Connects from a node; every packet of the client's carries options: IPv4's, or IPv6's in a
/// hop-by-hop header and a destination header.
///
/// # Errors
///
/// Those of the socket calls.
pub fn connect(node: &Node, target: SocketAddr) -> Result<TcpStream> {
    const LIMIT: Duration = Duration::from_secs(10);
    let socket = node.namespace().enter(|| {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
        let bytes = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        if target.is_ipv4() {
            setsockopt(&socket, IpOptions, &bytes(&IPV4)).context("IP_OPTIONS")?;
        } else {
            setsockopt(&socket, HopByHop, &bytes(&IPV6)).context("IPV6_HOPOPTS")?;
            setsockopt(&socket, Destination, &bytes(&IPV6)).context("IPV6_DSTOPTS")?;
        }
        Ok(socket)
    })?;
    let connected: io::Result<()> = socket.connect_timeout(&target.into(), LIMIT);
    connected.with_context(|| format!("cannot connect to {target}"))?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.set_write_timeout(Some(LIMIT))?;
    Ok(socket.into())
}

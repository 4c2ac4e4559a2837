//! Adverts that nobody else would send: raw VRRP messages with any TTL.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::topology::Node;

/// Sends messages from a node's eth0 to a group or an address, each with its TTL or hop limit. The
/// source is the node's own address: over IPv6 the link-local one, if the destination is a group.
pub fn send(node: &Node, to: IpAddr, messages: &[(u8, &[u8])]) -> Result<()> {
    node.namespace().enter(|| {
        let ipv6 = to.is_ipv6();
        let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(112)))
            .context("cannot open a raw socket")?;
        socket.bind_device(Some(b"eth0"))?;
        if !ipv6 {
            socket.set_multicast_if_v4(&node.ipv4())?;
        }
        for (ttl, message) in messages {
            let ttl = u32::from(*ttl);
            if ipv6 {
                socket.set_unicast_hops_v6(ttl)?;
                socket.set_multicast_hops_v6(ttl)?;
            } else {
                socket.set_ttl_v4(ttl)?;
                socket.set_multicast_ttl_v4(ttl)?;
            }
            socket
                .send_to(message, &SocketAddr::new(to, 0).into())
                .context("cannot send an advert")?;
        }
        Ok(())
    })
}

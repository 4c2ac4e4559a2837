//! A router and a network behind it, with a link of its own MTU between.
//!
//! ```text
//!    bridge, MTU 1500                      link of another MTU
//!   ------+--------------+           +----------------------------+
//!         |  eth0  router  far0      |          far0  host         |
//!         +--[10.77.0.x]--[10.78.0.1]+----------[10.78.0.2]--------+
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::{
    kernel,
    process::output,
    topology::{Node, Topology},
};

/// The host behind the router.
pub const FAR4: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
/// The same.
pub const FAR6: Ipv6Addr = Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 2);

/// The far host's address of the same family as another one.
pub fn far_like(other: IpAddr) -> IpAddr {
    if other.is_ipv4() {
        FAR4.into()
    } else {
        FAR6.into()
    }
}

/// Makes a node of the bridge a router and moves another one behind it. The link between them
/// takes packets of up to `mtu` bytes towards the far node, which itself knows nothing of that.
/// Every other node gets a route.
pub fn put_behind(net: &Topology, far: &Node, router: &Node, mtu: u32) -> Result<()> {
    router.namespace().enter(|| {
        kernel::sysctl("net/ipv4/ip_forward", "1")?;
        kernel::sysctl("net/ipv6/conf/all/forwarding", "1")
    })?;
    far.namespace().ip("link set eth0 down")?;
    far.namespace().ip("addr flush dev eth0")?;
    let peer = far.namespace().name();
    router.namespace().ip(&format!(
        "link add far0 type veth peer name far0 netns {peer}"
    ))?;
    for (node, addresses) in [
        (router, ["10.78.0.1/24", "fd78::1/64"]),
        (far, ["10.78.0.2/24", "fd78::2/64"]),
    ] {
        // As on the bridge: checksums are finished before XDP sends a frame on.
        output(
            node.namespace()
                .command("ethtool")
                .args(["-K", "far0", "tx", "off"]),
        )?;
        for address in addresses {
            node.namespace().add_address(address, "far0")?;
        }
        node.namespace().ip("link set far0 up")?;
    }
    router.namespace().ip(&format!("link set far0 mtu {mtu}"))?;
    far.namespace().ip("route add default via 10.78.0.1")?;
    far.namespace().ip("route add default via fd78::1")?;
    let others = net.nodes().iter();
    for node in others.filter(|node| ![far.name(), router.name()].contains(&node.name())) {
        let (ipv4, ipv6) = (router.ipv4(), router.ipv6());
        let namespace = node.namespace();
        namespace.ip(&format!("route add 10.78.0.0/24 via {ipv4}"))?;
        namespace.ip(&format!("route add fd78::/64 via {ipv6}"))?;
    }
    Ok(())
}

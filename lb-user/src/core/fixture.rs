//! What the core's tests stand on: three masters on one link, seen from one of them.
//!
//! | node     | addresses               | MAC                 |
//! |----------|-------------------------|---------------------|
//! | master10 | 10.0.2.10, `fd00::10`   | `02:00:00:00:00:0a` |
//! | master11 | 10.0.2.11, `fd00::11`   | `02:00:00:00:00:0b` |
//! | master12 | 10.0.2.12, `fd00::12`   | `02:00:00:00:00:0c` |
//! | router   | 10.0.2.1                | `02:00:00:00:00:01` |
//!
//! VIPs are 10.0.2.100/24 (VRID 51) and `fd00::100/64` (VRID 52).

use std::{net::IpAddr, path::Path};

use ipnet::IpNet;
use lb_common::abi::Mac;

use super::{
    attach::{self, Attachment, Plan, Uplinks},
    network::{Hop, Interface, InterfaceAddress, LinkKind, Network},
};
use crate::config::{self, HostFacts, model::Config};

/// Interface index of `lo`.
pub(super) const LO: u32 = 1;
/// Interface index of the uplink.
pub(super) const ETH0: u32 = 2;
/// The masters' last address bytes.
pub(super) const MASTERS: [u8; 3] = [10, 11, 12];

/// One service: `apiserver`, VIP port 1644, a backend on every master's port 6443.
pub(super) const APISERVER: &str = r#"
[[service]]
name = "apiserver"
address = "10.0.2.100"
port = 1644
[service.health]
type = "tcp"
[[service.backend]]
name = "master10"
address = "10.0.2.10:6443"
[[service.backend]]
name = "master11"
address = "10.0.2.11:6443"
[[service.backend]]
name = "master12"
address = "10.0.2.12:6443"
"#;

/// The same in IPv6.
pub(super) const APISERVER6: &str = r#"
[[service]]
name = "apiserver6"
address = "fd00::100"
port = 1644
[service.health]
type = "tcp"
[[service.backend]]
name = "master10"
address = "[fd00::10]:6443"
[[service.backend]]
name = "master11"
address = "[fd00::11]:6443"
"#;

/// The configuration of master `host` with `services`. Priorities fall: 200, 150, 100.
pub(super) fn config(host: u8, services: &str) -> Config {
    parse(&text(host, services))
}

/// The same as text.
pub(super) fn text(host: u8, services: &str) -> String {
    let priority = 700 - 50 * u32::from(host);
    let mut text = format!(
        r#"
[node]
name = "master{host}"
interfaces = ["eth0"]

[[vrrp]]
name = "v4"
interface = "eth0"
vrid = 51
priority = {priority}
addresses = ["10.0.2.100/24"]

[[vrrp]]
name = "v6"
interface = "eth0"
vrid = 52
priority = {priority}
addresses = ["fd00::100/64"]
"#
    );
    for peer in MASTERS.into_iter().filter(|peer| *peer != host) {
        let addresses = format!("\"10.0.2.{peer}\", \"fd00::{peer}\"");
        let name = format!("master{peer}");
        text.extend([
            "[[peer]]\nname = \"",
            &name,
            "\"\naddresses = [",
            &addresses,
            "]\n",
        ]);
    }
    text + services
}

/// Validate a configuration that needs no files.
pub(super) fn parse(text: &str) -> Config {
    let facts = HostFacts {
        hostname: "test".to_owned(),
    };
    let no_files = |_: &Path| Err(std::io::ErrorKind::NotFound.into());
    config::parse(text, "test.toml", &facts, &no_files).unwrap_or_else(|errors| panic!("{errors}"))
}

/// An address.
pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// MAC of the node with this last address byte.
pub(super) const fn mac(host: u8) -> Mac {
    [2, 0, 0, 0, 0, host]
}

/// The interfaces of master `host`.
pub(super) fn interfaces(host: u8) -> Vec<Interface> {
    let interface = |ifindex, name: &str, mac| Interface {
        ifindex,
        name: name.to_owned(),
        mac,
        up: true,
        kind: LinkKind::Other,
        strips_tags: None,
        master: None,
    };
    vec![
        interface(LO, "lo", None),
        interface(ETH0, "eth0", Some(mac(host))),
    ]
}

/// An address of an interface that is not xvip's.
pub(super) fn address(ifindex: u32, net: &str) -> InterfaceAddress {
    InterfaceAddress {
        ifindex,
        net: net.parse::<IpNet>().unwrap(),
        ours: false,
        secondary: false,
    }
}

/// The addresses of master `host` that are not xvip's.
pub(super) fn addresses(host: u8) -> Vec<InterfaceAddress> {
    vec![
        address(LO, "127.0.0.1/8"),
        address(ETH0, &format!("10.0.2.{host}/24")),
        address(ETH0, &format!("fd00::{host}/64")),
    ]
}

/// What comes of `plans` where every mode works.
pub(super) fn attached(plans: &[Plan]) -> Vec<Attachment> {
    let place = |plan: &Plan| {
        let mode = plan.modes.first().copied();
        let places = plan.places.clone().into_iter();
        places
            .map(move |place| Attachment {
                place,
                mode,
                note: None,
            })
            .collect::<Vec<_>>()
    };
    plans.iter().flat_map(place).collect()
}

/// Every uplink of `config` that is there, with its programs.
pub(super) fn uplinks(config: &Config, network: &Network) -> Uplinks {
    Uplinks::new(&attached(&attach::plans(config, network)))
}

/// Leases of instances that were never reloaded.
pub(super) fn leases(config: &Config) -> Vec<u32> {
    (0..config.vrrp.len())
        .map(super::desired::lease_index)
        .collect()
}

/// How `to` is reached from master `host`: on the link, or by the router.
pub(super) fn hop(to: IpAddr) -> Hop {
    let on_link = match to {
        IpAddr::V4(to) => to.octets().starts_with(&[10, 0, 2]),
        IpAddr::V6(_) => true,
    };
    Hop {
        ifindex: ETH0,
        gateway: if on_link { to } else { ip("10.0.2.1") },
    }
}

/// The last byte of an address as people write it: 10 for 10.0.2.10 and for `fd00::10`.
pub(super) fn host_of(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => format!("{:x}", address.octets()[15]).parse().unwrap(),
    }
}

/// The network of master `host` with everything resolved that `reached` names.
pub(super) fn network(host: u8, reached: &[&str]) -> Network {
    let mut network = Network::default();
    network.set_links(interfaces(host), addresses(host));
    for to in reached {
        let hop = hop(ip(to));
        network.set_hop(ip(to), Some(hop));
        network.set_neighbour(hop.ifindex, hop.gateway, mac(host_of(hop.gateway)));
    }
    network
}

//! What stands between a node's links and its eth0.
//!
//! ```text
//!     Link     Bridge    Macvlan    Vlan       DoubleVlan     Bond
//!     eth0      eth0      eth0      eth0         eth0         eth0
//!      |         |         |         | tag 5      | tag 5     /   \
//!      |       port0     port0     port0        outer0    port0   port1
//!      |         |         |         |            | tag 7     |     |
//!      |         |         |         |          port0         |     |
//!     name      name      name      name         name      name-0 name-1   ports of the topology's bridge
//! ```

use anyhow::Result;

use crate::{netns::NetNs, process::output};

/// Tag of a VLAN's frames (802.1Q).
const TAG: u16 = 5;
/// Tag around it (802.1ad).
const OUTER_TAG: u16 = 7;

/// What eth0 of a node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The link itself.
    #[default]
    Link,
    /// A bridge with the link as its port.
    Bridge,
    /// A second interface with a MAC of its own on the link.
    Macvlan,
    /// One VLAN of the link.
    Vlan,
    /// One VLAN within another of the link.
    DoubleVlan,
    /// Two links that are used as one.
    Bond(BondMode),
}

/// How a bond uses its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BondMode {
    /// One at a time. The other side knows nothing of the bond.
    ActiveBackup,
    /// By a flow's addresses. The other side is a bond as well.
    BalanceXor,
    /// The same, when both sides have agreed by LACP.
    Lacp,
}

impl BondMode {
    /// For `ip link add ... type bond`: the ports' carriers are looked at every 20 ms.
    const fn options(self) -> &'static str {
        match self {
            Self::ActiveBackup => "mode active-backup miimon 20",
            Self::BalanceXor => "mode balance-xor xmit_hash_policy layer2+3 miimon 20",
            Self::Lacp => "mode 802.3ad xmit_hash_policy layer2+3 lacp_rate fast miimon 20",
        }
    }
}

impl Device {
    /// The links of node `name`: its end of each, and the bridge's.
    pub fn links(self, name: &str) -> Vec<(&'static str, String)> {
        match self {
            Self::Link => vec![("eth0", name.to_owned())],
            Self::Bridge | Self::Macvlan | Self::Vlan | Self::DoubleVlan => {
                vec![("port0", name.to_owned())]
            }
            Self::Bond(_) => vec![
                ("port0", format!("{name}-0")),
                ("port1", format!("{name}-1")),
            ],
        }
    }

    /// Whether its frames have VLAN tags on the links.
    pub const fn is_tagged(self) -> bool {
        matches!(self, Self::Vlan | Self::DoubleVlan)
    }

    /// Makes eth0, with this MAC, of the links of a node, which are down.
    pub(crate) fn assemble(self, node: &NetNs, mac: &str) -> Result<()> {
        let vlan = |parent, tag, protocol, name| {
            let kind = format!("type vlan protocol {protocol} id {tag}");
            node.ip(&format!("link add link {parent} name {name} {kind}"))
        };
        match self {
            Self::Link => {}
            Self::Bridge => {
                let options = "forward_delay 0 stp_state 0 mcast_snooping 0";
                node.ip(&format!(
                    "link add eth0 address {mac} type bridge {options}"
                ))?;
                node.ip("link set port0 master eth0 up")?;
            }
            Self::Macvlan => {
                node.ip("link set port0 up")?;
                let kind = "type macvlan mode bridge";
                node.ip(&format!(
                    "link add link port0 name eth0 address {mac} {kind}"
                ))?;
            }
            Self::Vlan => {
                node.ip("link set port0 up")?;
                vlan("port0", TAG, "802.1Q", "eth0")?;
            }
            Self::DoubleVlan => {
                node.ip("link set port0 up")?;
                vlan("port0", OUTER_TAG, "802.1ad", "outer0")?;
                node.ip("link set outer0 up")?;
                vlan("outer0", TAG, "802.1Q", "eth0")?;
            }
            Self::Bond(mode) => {
                let options = mode.options();
                node.ip(&format!("link add eth0 address {mac} type bond {options}"))?;
                for port in ["port0", "port1"] {
                    node.ip(&format!("link set {port} master eth0"))?;
                }
            }
        }
        Ok(())
    }

    /// Makes the bridge's ends of the links of node `name`, which are down, ports of br0.
    pub(crate) fn plug_in(self, bridge: &NetNs, name: &str) -> Result<()> {
        let ends = self.links(name).into_iter().map(|(_, far)| far);
        let mut master = "br0";
        if let Self::Bond(mode @ (BondMode::BalanceXor | BondMode::Lacp)) = self {
            let options = mode.options();
            bridge.ip(&format!("link add {name} type bond {options}"))?;
            bridge.ip(&format!("link set {name} master br0 up"))?;
            master = name;
        }
        for end in ends {
            bridge.ip(&format!("link set {end} master {master}"))?;
            bridge.ip(&format!("link set {end} up"))?;
        }
        Ok(())
    }

    /// Has VLAN tags inside the frames on a link, as on a wire, and not beside them. Both ends take part.
    pub(crate) fn tag_in_frames(
        self,
        node: &NetNs,
        own: &str,
        bridge: &NetNs,
        far: &str,
    ) -> Result<()> {
        if !self.is_tagged() {
            return Ok(());
        }
        let received = ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"];
        let sent = ["tx-vlan-hw-insert", "tx-vlan-stag-hw-insert"];
        for (namespace, link, features) in [(node, own, received), (bridge, far, sent)] {
            let mut ethtool = namespace.command("ethtool");
            let words = features.into_iter().flat_map(|feature| [feature, "off"]);
            output(ethtool.args(["-K", link]).args(words))?;
        }
        Ok(())
    }
}

//! What the core knows of this node's network: interfaces, addresses, and how other nodes are
//! reached. Facts come in from outside and are replaced as a whole or one by one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use lb_common::abi::Mac;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Interface index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// Ethernet address, where it has one.
    pub mac: Option<Mac>,
    /// Up and with carrier.
    pub up: bool,
    /// What it is, where that matters.
    pub kind: LinkKind,
    /// The feature, as `ethtool -K` names it, with which the hardware takes VLAN tags out of the
    /// frames that it receives, so that XDP programs do not see them. Known of interfaces that carry
    /// VLANs, and of the ports of bonds that do.
    pub strips_tags: Option<&'static str>,
    /// Index of the bond or bridge that it is a port of.
    pub master: Option<u32>,
}

/// What an interface is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkKind {
    /// A network card, or anything else.
    #[default]
    Other,
    /// Several interfaces that are used as one.
    Bond,
    /// A bridge of this node.
    Bridge,
    /// One end of a pair of virtual interfaces.
    Veth,
    /// One VLAN of another interface.
    Vlan(Vlan),
}

/// A VLAN sub-interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// Index of the interface that carries its frames.
    pub parent: u32,
    /// VLAN id, 1..=4094 (0: priority-tagged frames).
    pub id: u16,
    /// Its tags are those of 802.1ad (0x88a8), not of 802.1Q (0x8100).
    pub is_service_tag: bool,
}

/// Where the frames of an interface are seen on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Index of the interface that carries them.
    pub ifindex: u32,
    /// Their VLAN tags: the outer one's id in the low half, an inner one's in the high half; 0: none.
    pub tags: u32,
}

impl Port {
    /// Untagged frames of interface `ifindex`.
    pub const fn untagged(ifindex: u32) -> Self {
        Self { ifindex, tags: 0 }
    }
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterfaceAddress {
    /// Interface index.
    pub ifindex: u32,
    /// Address and prefix length.
    pub net: IpNet,
    /// Added by xvip, as its mark on the address says.
    pub ours: bool,
    /// Another address of its subnet stands before it (IPv4): the node's connections leave from that.
    pub secondary: bool,
}

/// How packets to an address leave this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Interface index.
    pub ifindex: u32,
    /// The neighbour that takes them; the address itself when it is on-link.
    pub gateway: IpAddr,
}

/// Next hop with its MAC, ready for the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Interface index.
    pub ifindex: u32,
    /// The neighbour's MAC.
    pub mac: Mac,
    /// Whether the neighbour is the address itself, not a router.
    pub on_link: bool,
}

/// This node's network as last seen.
#[derive(Clone, Debug, Default)]
pub struct Network {
    interfaces: BTreeMap<u32, Interface>,
    addresses: BTreeSet<InterfaceAddress>,
    hops: BTreeMap<IpAddr, Hop>,
    macs: BTreeMap<(u32, IpAddr), Mac>,
}

impl Network {
    /// Replace all interfaces and addresses. What was known of ways through interfaces that are
    /// gone is forgotten.
    pub fn set_links(
        &mut self,
        interfaces: Vec<Interface>,
        addresses: impl IntoIterator<Item = InterfaceAddress>,
    ) {
        self.interfaces = interfaces
            .into_iter()
            .map(|interface| (interface.ifindex, interface))
            .collect();
        self.addresses = addresses.into_iter().collect();
        let known = &self.interfaces;
        self.hops.retain(|_, hop| known.contains_key(&hop.ifindex));
        self.macs
            .retain(|(ifindex, _), _| known.contains_key(ifindex));
    }

    /// Take an address out that is being removed.
    pub fn forget_address(&mut self, ifindex: u32, net: IpNet) {
        self.addresses
            .retain(|own| own.ifindex != ifindex || own.net != net);
    }

    /// Record how `address` is reached; `None`: not at all. Returns whether something changed.
    pub fn set_hop(&mut self, address: IpAddr, hop: Option<Hop>) -> bool {
        match hop {
            Some(hop) => self.hops.insert(address, hop) != Some(hop),
            None => self.hops.remove(&address).is_some(),
        }
    }

    /// Record a neighbour's MAC, if it is the next hop of an address that matters; returns whether
    /// something changed. A neighbour that stops answering keeps the last one: whether the node
    /// is alive is the checks' business, and its MAC seldom changes.
    pub fn set_neighbour(&mut self, ifindex: u32, address: IpAddr, mac: Mac) -> bool {
        let matters = self
            .hops
            .values()
            .any(|hop| hop.ifindex == ifindex && hop.gateway == address);
        matters && self.macs.insert((ifindex, address), mac) != Some(mac)
    }

    /// Whether interface `ifindex` is known to have `net`.
    pub fn knows_address(&self, ifindex: u32, net: IpNet) -> bool {
        self.addresses
            .iter()
            .any(|own| own.ifindex == ifindex && own.net == net)
    }

    /// An address of the node's own that stands behind `net` on the interface: connections of the
    /// node's leave from `net` then.
    pub fn behind(&self, ifindex: u32, net: IpNet) -> Option<IpNet> {
        let on_it = self.addresses.iter().filter(|own| own.ifindex == ifindex);
        let leads = on_it.clone().any(|own| own.net == net && !own.secondary);
        let mut others = on_it.filter(|own| own.secondary && !own.ours);
        let other = others.find(|own| own.net != net && own.net.trunc() == net.trunc())?;
        leads.then_some(other.net)
    }

    /// Whether some interface has `mac`.
    pub fn has_mac(&self, mac: Mac) -> bool {
        let mut interfaces = self.interfaces.values();
        interfaces.any(|interface| interface.mac == Some(mac))
    }

    /// The interface named `name`.
    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces
            .values()
            .find(|interface| interface.name == name)
    }

    /// Where the frames of interface `ifindex` are seen on the wire: a VLAN's on the interface that
    /// carries it. `None` if that is not there, or if there are more than two tags.
    pub fn port(&self, ifindex: u32) -> Option<Port> {
        let interface = self.interfaces.get(&ifindex)?;
        let LinkKind::Vlan(inner) = interface.kind else {
            return Some(Port::untagged(ifindex));
        };
        let carrier = self.interfaces.get(&inner.parent)?;
        let LinkKind::Vlan(outer) = carrier.kind else {
            return Some(Port {
                ifindex: carrier.ifindex,
                tags: u32::from(inner.id),
            });
        };
        let carrier = self.interfaces.get(&outer.parent)?;
        match carrier.kind {
            LinkKind::Vlan(_) => None,
            LinkKind::Other | LinkKind::Bond | LinkKind::Bridge | LinkKind::Veth => Some(Port {
                ifindex: carrier.ifindex,
                tags: u32::from(outer.id) | u32::from(inner.id) << 16,
            }),
        }
    }

    /// The ports of the bond `ifindex`; none if it is no bond.
    pub fn bond_ports(&self, ifindex: u32) -> impl Iterator<Item = &Interface> {
        let bond = self
            .at(ifindex)
            .filter(|found| found.kind == LinkKind::Bond);
        let ports = self.interfaces.values();
        ports.filter(move |port| bond.is_some_and(|bond| port.master == Some(bond.ifindex)))
    }

    /// Interface `ifindex`.
    pub fn at(&self, ifindex: u32) -> Option<&Interface> {
        self.interfaces.get(&ifindex)
    }

    /// Index and MAC of the interface named `name`, if it is there and has a MAC.
    pub fn place(&self, name: &str) -> Option<(u32, Mac)> {
        let interface = self.interface(name)?;
        Some((interface.ifindex, interface.mac?))
    }

    /// MAC of interface `ifindex`, if it is there and has one.
    pub fn mac(&self, ifindex: u32) -> Option<Mac> {
        self.interfaces.get(&ifindex)?.mac
    }

    /// Name of interface `ifindex`, if there is one.
    pub fn name(&self, ifindex: u32) -> Option<&str> {
        self.interfaces
            .get(&ifindex)
            .map(|interface| interface.name.as_str())
    }

    /// Every address of every interface.
    pub fn addresses(&self) -> impl Iterator<Item = &InterfaceAddress> {
        self.addresses.iter()
    }

    /// Whether some interface has `address`.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.net.addr() == address)
    }

    /// How packets to `address` leave this node; `None`: there is no route, as far as known.
    pub fn hop(&self, address: IpAddr) -> Option<Hop> {
        self.hops.get(&address).copied()
    }

    /// Next hop of `address` with its MAC, once both are known.
    pub fn resolved(&self, address: IpAddr) -> Option<Resolved> {
        let hop = self.hops.get(&address)?;
        let mac = *self.macs.get(&(hop.ifindex, hop.gateway))?;
        Some(Resolved {
            ifindex: hop.ifindex,
            mac,
            on_link: hop.gateway == address,
        })
    }
}

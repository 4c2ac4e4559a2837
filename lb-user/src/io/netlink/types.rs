//! What xvip wants to know of links, addresses, neighbours and routes, and what it asks for.

use std::{fmt, net::IpAddr, time::Duration};

use ipnet::IpNet;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Interface index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// Ethernet address; `None` where the link layer has none of 6 bytes (a tunnel).
    pub mac: Option<[u8; 6]>,
    /// Set up by the administrator, with carrier and operational.
    pub up: bool,
    /// Largest packet without link-layer header, bytes.
    pub mtu: u32,
    /// What it is.
    pub kind: LinkType,
    /// Index of the bond or bridge that it is a port of.
    pub master: Option<u32>,
}

impl LinkInfo {
    /// The interface that carries this VLAN's frames, if it is one, and whether their tags are those of
    /// 802.1ad.
    pub const fn vlan_tag(&self) -> Option<(u32, bool)> {
        match self.kind {
            LinkType::Vlan {
                parent,
                is_service_tag,
                ..
            } => Some((parent, is_service_tag)),
            LinkType::Bond | LinkType::Bridge | LinkType::Veth | LinkType::Other => None,
        }
    }
}

/// What an interface is (`IFLA_INFO_KIND`), where that matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkType {
    /// Anything else; also a VLAN whose parent is in another network namespace.
    #[default]
    Other,
    /// A bond: several interfaces that are used as one.
    Bond,
    /// A bridge.
    Bridge,
    /// One end of a pair of virtual interfaces.
    Veth,
    /// One VLAN of another interface.
    Vlan {
        /// Index of that interface.
        parent: u32,
        /// VLAN id.
        id: u16,
        /// Its tags are those of 802.1ad, not of 802.1Q.
        is_service_tag: bool,
    },
}

/// How long an address stays valid or preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lifetime {
    /// Whole seconds left; 0 is over (a preferred lifetime of 0: deprecated).
    Seconds(u32),
    /// Without end.
    Forever,
}

impl Lifetime {
    /// What the kernel writes for [`Lifetime::Forever`].
    const FOREVER: u32 = u32::MAX;

    /// At least `duration`: the kernel counts whole seconds.
    pub fn at_least(duration: Duration) -> Self {
        let seconds = duration
            .as_secs()
            .saturating_add(u64::from(duration.subsec_nanos() > 0));
        Self::Seconds(u32::try_from(seconds).unwrap_or(Self::FOREVER - 1))
    }

    /// From `ifa_cacheinfo`.
    pub(super) const fn from_kernel(seconds: u32) -> Self {
        match seconds {
            Self::FOREVER => Self::Forever,
            seconds => Self::Seconds(seconds),
        }
    }

    /// For `ifa_cacheinfo`.
    pub(super) const fn to_kernel(self) -> u32 {
        match self {
            Self::Seconds(seconds) => seconds,
            Self::Forever => Self::FOREVER,
        }
    }
}

/// An address of an interface as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressInfo {
    /// Interface index.
    pub ifindex: u32,
    /// Address and prefix length.
    pub net: IpNet,
    /// Until the kernel removes it.
    pub valid: Lifetime,
    /// Until it is deprecated (no longer a source address by choice).
    pub preferred: Lifetime,
    /// Hangs on another address of its subnet (IPv4), or is temporary (IPv6).
    pub secondary: bool,
    /// Duplicate address detection is under way or has failed: not usable.
    pub tentative: bool,
    /// Added by xvip ([`ADDRESS_PROTOCOL`]); always false before Linux 5.18.
    pub ours: bool,
}

impl AddressInfo {
    /// The kernel keeps it until someone removes it.
    pub fn is_permanent(&self) -> bool {
        self.valid == Lifetime::Forever
    }
}

/// `IFA_PROTO` of the addresses that xvip adds: an `ip addr` shows who put them there, and a
/// restarted xvip finds what a crashed one left behind.
pub const ADDRESS_PROTOCOL: u8 = 0x78;

/// An address that an interface shall have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressSpec {
    /// Interface index.
    pub ifindex: u32,
    /// Address and prefix length.
    pub net: IpNet,
    /// Until the kernel removes it by itself; at least 1 s.
    pub valid: Lifetime,
    /// Until it is deprecated; at most `valid`.
    pub preferred: Lifetime,
    /// Usable at once: no duplicate address detection (IPv6; IPv4 has none).
    pub nodad: bool,
    /// No route for the prefix.
    pub noprefixroute: bool,
    /// Never the source of packets that leave the node, unless a socket asks for it (IPv4).
    pub host_scope: bool,
}

impl AddressSpec {
    /// The owner's VIP on the uplink, gone `valid` (rounded up to seconds) after the last
    /// renewal.
    ///
    /// IPv4 keeps its prefix length, so that it becomes a secondary address next to the node's
    /// own. IPv6 becomes a /128 that is deprecated from the start: otherwise the kernel takes it
    /// as the source of the node's own connections (RFC 6724 section 5, rules 3 and 8). There is
    /// no such rule in IPv4, and `deprecated` would only look odd.
    pub fn owned_vip(ifindex: u32, net: IpNet, valid: Duration) -> Self {
        let valid = Lifetime::at_least(valid.max(Duration::from_secs(1)));
        let (net, preferred) = match net {
            IpNet::V4(_) => (net, valid),
            IpNet::V6(_) => (IpNet::from(net.addr()), Lifetime::Seconds(0)),
        };
        Self {
            ifindex,
            net,
            valid,
            preferred,
            nodad: true,
            noprefixroute: net.addr().is_ipv6(),
            host_scope: false,
        }
    }

    /// A VIP on `lo`, so that the node's stack takes packets for it. Permanent: it must outlive
    /// the controller, as the data plane does. `ifindex` is that of `lo`.
    ///
    /// IPv4 gets scope host: an interface without an address of its own would borrow a global
    /// one from `lo` as source. IPv6 is deprecated for the same end.
    pub fn loopback_vip(ifindex: u32, addr: IpAddr) -> Self {
        Self {
            ifindex,
            net: IpNet::from(addr),
            valid: Lifetime::Forever,
            preferred: if addr.is_ipv6() {
                Lifetime::Seconds(0)
            } else {
                Lifetime::Forever
            },
            nodad: true,
            noprefixroute: addr.is_ipv6(),
            host_scope: addr.is_ipv4(),
        }
    }
}

/// Where a neighbour stands in its cache, RFC 4861 section 7.3.2 and the kernel's additions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourState {
    /// Just made.
    None,
    /// Being asked for.
    Incomplete,
    /// Answered a short while ago.
    Reachable,
    /// Known, not confirmed lately.
    Stale,
    /// About to be asked.
    Delay,
    /// Being asked again.
    Probe,
    /// Did not answer.
    Failed,
    /// Needs no resolution.
    NoArp,
    /// Set by the administrator.
    Permanent,
}

/// A neighbour as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeighbourInfo {
    /// Interface index.
    pub ifindex: u32,
    /// Address.
    pub addr: IpAddr,
    /// Its Ethernet address, if the kernel would send to one.
    pub mac: Option<[u8; 6]>,
    /// State of the cache entry.
    pub state: NeighbourState,
    /// The kernel keeps it resolved (`NTF_EXT_MANAGED`).
    pub managed: bool,
}

/// Where packets for an address go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Interface index.
    pub ifindex: u32,
    /// The neighbour that takes the packets: the gateway, else the destination itself.
    pub gateway: IpAddr,
    /// Source address that the kernel would choose.
    pub source: Option<IpAddr>,
    /// The address is this node's own.
    pub local: bool,
}

/// How a neighbour is kept resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// By the kernel, until [`forget`](super::Netlink::forget).
    Managed,
    /// By the administrator's static entry, which was left alone.
    Static,
    /// Asked for once: the kernel (before 5.16) does not keep it. Ask again every few seconds.
    Once,
}

/// A change of the kernel's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetEvent {
    /// A link appeared or changed.
    Link(LinkInfo),
    /// A link is gone, and its addresses and neighbours with it.
    LinkRemoved {
        /// Interface index.
        ifindex: u32,
    },
    /// An address appeared, changed or was renewed.
    Address(AddressInfo),
    /// An address is gone.
    AddressRemoved {
        /// Interface index.
        ifindex: u32,
        /// Address and prefix length.
        net: IpNet,
    },
    /// A neighbour appeared or changed.
    Neighbour(NeighbourInfo),
    /// A neighbour's entry is gone.
    NeighbourRemoved {
        /// Interface index.
        ifindex: u32,
        /// Address.
        addr: IpAddr,
    },
    /// Some route changed: next hops may be others now.
    Routes,
    /// Events were lost: everything must be read again.
    Overrun,
}

impl fmt::Display for NeighbourState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Incomplete => "incomplete",
            Self::Reachable => "reachable",
            Self::Stale => "stale",
            Self::Delay => "delay",
            Self::Probe => "probe",
            Self::Failed => "failed",
            Self::NoArp => "noarp",
            Self::Permanent => "permanent",
        })
    }
}

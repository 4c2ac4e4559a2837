//! The kernel's links, addresses, neighbours and routes, read and changed by routing netlink.
//!
//! Everything belongs to the network namespace of the thread that opens a [`Netlink`] or
//! [`NetEvents`], also when it is used from another thread later. The calls are synchronous: the
//! kernel does the whole work in the system call, so there is nothing to wait for.

mod decode;
mod error;
mod events;
pub mod filters;
pub mod sock_diag;
mod socket;
mod types;

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use netlink_packet_core::{DecodeError, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{
        AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol,
        AddressScope, CacheInfo,
    },
    link::LinkMessage,
    neighbour::{self, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage},
    route::{RouteAttribute, RouteMessage},
};
use nix::errno::Errno;

use self::{
    decode::kind,
    socket::{Reply, RequestSocket},
};
pub use self::{
    error::NetlinkError,
    events::NetEvents,
    types::{
        ADDRESS_PROTOCOL, AddressInfo, AddressSpec, Lifetime, LinkInfo, LinkType, NeighbourInfo,
        NeighbourState, NetEvent, NextHop, Resolution,
    },
};

/// Reads and changes one network namespace.
pub struct Netlink {
    socket: RequestSocket,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        RequestSocket::open().map(|socket| Self { socket })
    }

    /// Every link.
    pub fn links(&mut self) -> Result<Vec<LinkInfo>, NetlinkError> {
        self.table(
            &RouteNetlinkMessage::GetLink(LinkMessage::default()),
            "read links",
            kind::NEW_LINK,
            decode::link,
        )
    }

    /// The id of a link's XDP program; `None`: it has none.
    pub fn xdp_program(&mut self, ifindex: u32) -> Result<Option<u32>, NetlinkError> {
        let programs = self.table(
            &RouteNetlinkMessage::GetLink(LinkMessage::default()),
            "read the XDP programs of links",
            kind::NEW_LINK,
            decode::xdp_program,
        )?;
        let mut here = programs.into_iter().filter(|(link, _)| *link == ifindex);
        Ok(here.next().map(|(_, program)| program))
    }

    /// Every IPv4 and IPv6 address.
    pub fn addresses(&mut self) -> Result<Vec<AddressInfo>, NetlinkError> {
        self.table(
            &RouteNetlinkMessage::GetAddress(AddressMessage::default()),
            "read addresses",
            kind::NEW_ADDRESS,
            decode::address,
        )
    }

    /// Every IPv4 and IPv6 neighbour.
    pub fn neighbours(&mut self) -> Result<Vec<NeighbourInfo>, NetlinkError> {
        self.table(
            &RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()),
            "read neighbours",
            kind::NEW_NEIGHBOUR,
            decode::neighbour,
        )
    }

    /// The neighbour `addr` on a link; `None` if the kernel has no entry for it.
    pub fn neighbour(
        &mut self,
        ifindex: u32,
        addr: IpAddr,
    ) -> Result<Option<NeighbourInfo>, NetlinkError> {
        let request = format!("read neighbour {addr} on link {ifindex}");
        let message = RouteNetlinkMessage::GetNeighbour(neighbour_message(ifindex, addr));
        let replies = match self.socket.request(message, 0, &request) {
            Err(error) if is_absent(&error) => return Ok(None),
            result => result?,
        };
        let entries = decoded(&replies, &request, kind::NEW_NEIGHBOUR, decode::neighbour)?;
        Ok(entries.into_iter().next())
    }

    /// Adds an address, or renews its lifetimes if the link has it.
    pub fn set_address(&mut self, spec: &AddressSpec) -> Result<(), NetlinkError> {
        let request = format!("set address {} on link {}", spec.net, spec.ifindex);
        self.socket.request(
            RouteNetlinkMessage::NewAddress(new_address(spec)),
            NLM_F_CREATE | NLM_F_REPLACE,
            &request,
        )?;
        Ok(())
    }

    /// Removes an address. That the link does not have it, or is gone, is success.
    pub fn remove_address(&mut self, ifindex: u32, net: IpNet) -> Result<(), NetlinkError> {
        let request = format!("remove address {net} from link {ifindex}");
        let message = RouteNetlinkMessage::DelAddress(address_message(ifindex, net));
        match self.socket.request(message, 0, &request) {
            Err(error) if is_absent(&error) => Ok(()),
            result => result.map(drop),
        }
    }

    /// Has a link's hardware receive frames for one more MAC (`bridge fdb add MAC dev LINK self`). That it
    /// does already is success.
    pub fn receive_mac(&mut self, ifindex: u32, mac: [u8; 6]) -> Result<(), NetlinkError> {
        let request = format!("have link {ifindex} receive frames for another MAC");
        let message = RouteNetlinkMessage::NewNeighbour(mac_message(ifindex, mac));
        match self.socket.request(message, NLM_F_CREATE, &request) {
            Err(error) if error.errno() == Some(Errno::EEXIST) => Ok(()),
            result => result.map(drop),
        }
    }

    /// Undoes [`receive_mac`](Self::receive_mac). That it was not done, or that the link is gone, is
    /// success.
    pub fn ignore_mac(&mut self, ifindex: u32, mac: [u8; 6]) -> Result<(), NetlinkError> {
        let request = format!("no longer have link {ifindex} receive frames for another MAC");
        let message = RouteNetlinkMessage::DelNeighbour(mac_message(ifindex, mac));
        match self.socket.request(message, 0, &request) {
            Err(error) if is_absent(&error) => Ok(()),
            result => result.map(drop),
        }
    }

    /// Where packets for `destination` go; `None` if there is no route, or one that refuses.
    pub fn next_hop(&mut self, destination: IpAddr) -> Result<Option<NextHop>, NetlinkError> {
        let request = format!("look up the route to {destination}");
        let message = RouteNetlinkMessage::GetRoute(route_message(destination));
        let replies = match self.socket.request(message, 0, &request) {
            Err(error) if is_unroutable(&error) => return Ok(None),
            result => result?,
        };
        let hops = decoded(&replies, &request, kind::NEW_ROUTE, |payload| {
            decode::route(payload, destination)
        })?;
        Ok(hops.into_iter().next())
    }

    /// Has the kernel resolve a neighbour now and keep it resolved.
    pub fn keep_resolved(
        &mut self,
        ifindex: u32,
        addr: IpAddr,
    ) -> Result<Resolution, NetlinkError> {
        // The kernel would turn an administrator's entry into one that it manages itself.
        if self.has_static_entry(ifindex, addr)? {
            return Ok(Resolution::Static);
        }
        let request = format!("keep neighbour {addr} on link {ifindex} resolved");
        let mut message = neighbour_message(ifindex, addr);
        message.header.flags = NeighbourFlags::Use;
        message
            .attributes
            .push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        self.socket.request(
            RouteNetlinkMessage::NewNeighbour(message),
            NLM_F_CREATE | NLM_F_REPLACE,
            &request,
        )?;
        // Kernels before 5.16 take the request and leave out what they do not know.
        let managed = self
            .neighbour(ifindex, addr)?
            .is_some_and(|entry| entry.managed);
        Ok(if managed {
            Resolution::Managed
        } else {
            Resolution::Once
        })
    }

    /// Whether the kernel can keep a neighbour resolved: it looks at the flags of a request, of which
    /// this one has too many, before it looks for the link, which is not there.
    pub fn knows_managed_neighbours(&mut self) -> Result<bool, NetlinkError> {
        const NO_LINK: u32 = i32::MAX as u32;
        let request = "try flags of neighbours";
        let mut message = neighbour_message(NO_LINK, Ipv4Addr::LOCALHOST.into());
        let flags = NeighbourExtFlags::from_bits_retain(u32::MAX);
        let flags = NeighbourAttribute::ExtFlags(flags);
        message.attributes.push(flags);
        let message = RouteNetlinkMessage::NewNeighbour(message);
        match self.socket.request(message, NLM_F_REPLACE, request) {
            Err(error) if error.errno() == Some(Errno::EINVAL) => Ok(true),
            Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(false),
            other => other.map(|_| false),
        }
    }

    /// Undoes [`keep_resolved`](Self::keep_resolved): the entry ages like any other. That there
    /// is none is success.
    pub fn forget(&mut self, ifindex: u32, addr: IpAddr) -> Result<(), NetlinkError> {
        if !self
            .neighbour(ifindex, addr)?
            .is_some_and(|entry| entry.managed)
        {
            return Ok(());
        }
        let request = format!("no longer keep neighbour {addr} on link {ifindex} resolved");
        // Not deleted, which would hold up traffic until it is resolved again: an update
        // without NTF_EXT_MANAGED clears the flag alone.
        let mut message = neighbour_message(ifindex, addr);
        message.header.flags = NeighbourFlags::Use;
        let message = RouteNetlinkMessage::NewNeighbour(message);
        match self.socket.request(message, NLM_F_REPLACE, &request) {
            Err(error) if is_absent(&error) => Ok(()),
            result => result.map(drop),
        }
    }

    fn has_static_entry(&mut self, ifindex: u32, addr: IpAddr) -> Result<bool, NetlinkError> {
        let entry = self.neighbour(ifindex, addr)?;
        Ok(entry.is_some_and(|entry| {
            matches!(
                entry.state,
                NeighbourState::Permanent | NeighbourState::NoArp
            )
        }))
    }

    fn table<T>(
        &mut self,
        message: &RouteNetlinkMessage,
        request: &str,
        kind: u16,
        decode: impl Fn(&[u8]) -> Result<Option<T>, DecodeError>,
    ) -> Result<Vec<T>, NetlinkError> {
        let replies = self.socket.dump(message, request)?;
        decoded(&replies, request, kind, decode)
    }
}

/// The meaning of every reply of a kind. One that does not parse fails the whole reading: a
/// table with a hole would be acted upon.
fn decoded<T>(
    replies: &[Reply],
    request: &str,
    kind: u16,
    decode: impl Fn(&[u8]) -> Result<Option<T>, DecodeError>,
) -> Result<Vec<T>, NetlinkError> {
    replies
        .iter()
        .filter(|reply| reply.kind == kind)
        .filter_map(|reply| decode(&reply.payload).transpose())
        .collect::<Result<_, _>>()
        .map_err(NetlinkError::malformed(request))
}

/// The link, the address or the entry is not there; for IPv6 also: the link has no IPv6.
fn is_absent(error: &NetlinkError) -> bool {
    matches!(
        error.errno(),
        Some(Errno::EADDRNOTAVAIL | Errno::ENODEV | Errno::ENOENT | Errno::ENXIO)
    )
}

/// No route, or one of type unreachable, prohibit or blackhole (in this order).
fn is_unroutable(error: &NetlinkError) -> bool {
    matches!(
        error.errno(),
        Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL)
    )
}

const fn family(addr: IpAddr) -> AddressFamily {
    match addr {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Names the address and its prefix length: the kernel compares both.
fn address_message(ifindex: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(net.addr());
    message.header.prefix_len = net.prefix_len();
    message.header.index = ifindex;
    message.attributes = vec![
        AddressAttribute::Local(net.addr()),
        AddressAttribute::Address(net.addr()),
    ];
    message
}

fn new_address(spec: &AddressSpec) -> AddressMessage {
    let mut flags = AddressFlags::empty();
    flags.set(AddressFlags::Nodad, spec.nodad);
    flags.set(AddressFlags::Noprefixroute, spec.noprefixroute);
    let mut lifetimes = CacheInfo::default();
    lifetimes.ifa_valid = spec.valid.to_kernel();
    lifetimes.ifa_preferred = spec.preferred.to_kernel();
    let mut message = address_message(spec.ifindex, spec.net);
    if spec.host_scope {
        message.header.scope = AddressScope::Host;
    }
    message.header.flags = AddressHeaderFlags::from_bits_truncate(
        u8::try_from(flags.bits() & 0xff).unwrap_or_default(),
    );
    message.attributes.extend([
        AddressAttribute::Flags(flags),
        AddressAttribute::CacheInfo(lifetimes),
        AddressAttribute::Protocol(AddressProtocol::from(ADDRESS_PROTOCOL)),
    ]);
    message
}

fn neighbour_message(ifindex: u32, addr: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(addr);
    message.header.ifindex = ifindex;
    message
        .attributes
        .push(NeighbourAttribute::Destination(addr.into()));
    message
}

fn mac_message(ifindex: u32, mac: [u8; 6]) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = ifindex;
    // Of the link itself, not of the bridge that it may be a port of.
    message.header.flags = NeighbourFlags::Own;
    message.header.state = neighbour::NeighbourState::Permanent;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    message
}

fn route_message(destination: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination);
    message.header.destination_prefix_length = IpNet::from(destination).prefix_len();
    message
        .attributes
        .push(RouteAttribute::Destination(destination.into()));
    message
}

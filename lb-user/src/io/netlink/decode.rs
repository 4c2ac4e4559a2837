//! From the kernel's messages to what they mean.
//!
//! Only the attributes that xvip reads are decoded: one that a newer kernel adds or extends can
//! break nothing here.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{
    DecodeError, NLMSG_NOOP, NetlinkBuffer, NlasIterator, parse_ip, parse_string, parse_u16,
    parse_u32,
};
use netlink_packet_route::{
    AddressFamily,
    address::{AddressFlags, AddressHeader, CacheInfo},
    link::{LinkFlags, LinkHeader},
    neighbour::{NeighbourExtFlags, NeighbourHeader, NeighbourState as KernelState},
    route::{RouteHeader, RouteType},
};

use super::types::{
    ADDRESS_PROTOCOL, AddressInfo, Lifetime, LinkInfo, LinkType, NeighbourInfo, NeighbourState,
    NetEvent, NextHop,
};

/// Message numbers, `linux/rtnetlink.h`.
pub(super) mod kind {
    pub(in super::super) const NEW_LINK: u16 = 16;
    pub(in super::super) const DEL_LINK: u16 = 17;
    pub(in super::super) const NEW_ADDRESS: u16 = 20;
    pub(in super::super) const DEL_ADDRESS: u16 = 21;
    pub(in super::super) const NEW_ROUTE: u16 = 24;
    pub(in super::super) const DEL_ROUTE: u16 = 25;
    pub(in super::super) const NEW_NEIGHBOUR: u16 = 28;
    pub(in super::super) const DEL_NEIGHBOUR: u16 = 29;
    pub(in super::super) const NEW_QDISC: u16 = 36;
    pub(in super::super) const NEW_FILTER: u16 = 44;
}

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const IFLA_XDP_HW_PROG_ID: u16 = 7;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_VLAN_PROTOCOL: u16 = 5;
/// Tag protocol of 802.1ad.
const SERVICE_TAG: u16 = 0x88a8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const IFA_PROTO: u16 = 11;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_FLAGS_EXT: u16 = 15;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_VIA: u16 = 18;

const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const NEIGHBOUR_HEADER: usize = 12;
const ROUTE_HEADER: usize = 12;

/// One message of a datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    /// `nlmsg_type`
    pub(super) kind: u16,
    /// `nlmsg_flags`
    pub(super) flags: u16,
    /// `nlmsg_seq`
    pub(super) sequence: u32,
    /// What follows the header.
    pub(super) payload: &'a [u8],
}

/// The messages of a datagram. Ends with an error where the framing does.
pub(super) struct Messages<'a>(&'a [u8]);

impl<'a> Messages<'a> {
    pub(super) const fn new(datagram: &'a [u8]) -> Self {
        Self(datagram)
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.0.is_empty() {
                return None;
            }
            let datagram = std::mem::take(&mut self.0);
            let message = match NetlinkBuffer::new_checked(datagram) {
                Ok(message) => message,
                Err(error) => return Some(Err(error)),
            };
            // The checked length is between the header's and the datagram's.
            let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
            self.0 = datagram
                .get(length.next_multiple_of(4)..)
                .unwrap_or_default();
            if message.message_type() != NLMSG_NOOP {
                return Some(Ok(Message {
                    kind: message.message_type(),
                    flags: message.flags(),
                    sequence: message.sequence_number(),
                    payload: datagram.get(16..length).unwrap_or_default(),
                }));
            }
        }
    }
}

/// Calls `each` with the number and value of every attribute after a header of `header` bytes.
fn for_attributes<'a>(
    payload: &'a [u8],
    header: usize,
    mut each: impl FnMut(u16, &'a [u8]) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    let mut rest = payload.get(header..).unwrap_or_default();
    for attribute in NlasIterator::new(rest) {
        let attribute = attribute?;
        let length = usize::from(attribute.length());
        // The iterator checked that the attribute has its header and ends in the buffer.
        each(attribute.kind(), rest.get(4..length).unwrap_or_default())?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}

/// A message of `RTM_*LINK`. `None` for one that a bridge sends about its ports (family
/// `AF_BRIDGE`): there, "deleted" means that the port left the bridge.
pub(super) fn link(payload: &[u8]) -> Result<Option<LinkInfo>, DecodeError> {
    let header = LinkHeader::parse(payload)?;
    if header.interface_family != AddressFamily::Unspec {
        return Ok(None);
    }
    let up = LinkFlags::Up | LinkFlags::Running | LinkFlags::LowerUp;
    let mut info = LinkInfo {
        ifindex: header.index,
        name: String::new(),
        mac: None,
        up: header.flags.contains(up),
        mtu: 0,
        kind: LinkType::Other,
        master: None,
    };
    let (mut parent, mut details) = (None, None);
    for_attributes(payload, LINK_HEADER, |kind, value| {
        match kind {
            IFLA_ADDRESS => info.mac = value.try_into().ok(),
            IFLA_IFNAME => info.name = parse_string(value)?,
            IFLA_MTU => info.mtu = parse_u32(value)?,
            IFLA_MASTER => info.master = Some(parse_u32(value)?),
            IFLA_LINK => parent = parent.or(Some(parse_u32(value)?)),
            // The parent's index is that of another network namespace.
            IFLA_LINK_NETNSID => parent = Some(0),
            IFLA_LINKINFO => details = Some(value),
            _ => {}
        }
        Ok(())
    })?;
    if let Some(details) = details {
        info.kind = link_type(details, parent)?;
    }
    Ok(Some(info))
}

/// A message of `RTM_NEWLINK`: the index of the link and the id of its XDP program, if it has one.
pub(super) fn xdp_program(payload: &[u8]) -> Result<Option<(u32, u32)>, DecodeError> {
    let header = LinkHeader::parse(payload)?;
    let mut attached = None;
    for_attributes(payload, LINK_HEADER, |kind, value| {
        attached = (kind == IFLA_XDP).then_some(value).or(attached);
        Ok(())
    })?;
    let mut program = None;
    for_attributes(attached.unwrap_or_default(), 0, |kind, value| {
        if let IFLA_XDP_DRV_PROG_ID | IFLA_XDP_SKB_PROG_ID | IFLA_XDP_HW_PROG_ID = kind {
            program = Some(parse_u32(value)?);
        }
        Ok(())
    })?;
    Ok(program.map(|id| (header.index, id)))
}

/// `IFLA_LINKINFO`: the kind of a link, and for a VLAN what it is one of.
fn link_type(details: &[u8], parent: Option<u32>) -> Result<LinkType, DecodeError> {
    let (mut name, mut data) = (String::new(), None);
    for_attributes(details, 0, |kind, value| {
        match kind {
            IFLA_INFO_KIND => name = parse_string(value)?,
            IFLA_INFO_DATA => data = Some(value),
            _ => {}
        }
        Ok(())
    })?;
    match (name.as_str(), data, parent) {
        ("bond", ..) => Ok(LinkType::Bond),
        ("bridge", ..) => Ok(LinkType::Bridge),
        ("veth", ..) => Ok(LinkType::Veth),
        ("vlan", Some(data), Some(parent)) if parent != 0 => vlan(data, parent),
        _ => Ok(LinkType::Other),
    }
}

/// `IFLA_INFO_DATA` of a VLAN.
fn vlan(data: &[u8], parent: u32) -> Result<LinkType, DecodeError> {
    let (mut id, mut is_service_tag) = (None, false);
    for_attributes(data, 0, |kind, value| {
        match kind {
            IFLA_VLAN_ID => id = Some(parse_u16(value)?),
            // In network order.
            IFLA_VLAN_PROTOCOL => is_service_tag = value == SERVICE_TAG.to_be_bytes(),
            _ => {}
        }
        Ok(())
    })?;
    let id = id.ok_or_else(|| DecodeError::from("a VLAN without id"))?;
    Ok(LinkType::Vlan {
        parent,
        id,
        is_service_tag,
    })
}

/// A message of `RTM_*ADDR`; `None` for families other than IPv4 and IPv6.
pub(super) fn address(payload: &[u8]) -> Result<Option<AddressInfo>, DecodeError> {
    let header = AddressHeader::parse(payload)?;
    if !is_ip(header.family) {
        return Ok(None);
    }
    let mut flags = AddressFlags::from_bits_retain(u32::from(header.flags.bits()));
    let (mut peer, mut local) = (None, None);
    let (mut valid, mut preferred) = (Lifetime::Forever, Lifetime::Forever);
    let mut ours = false;
    for_attributes(payload, ADDRESS_HEADER, |kind, value| {
        match kind {
            IFA_ADDRESS => peer = Some(parse_ip(value)?),
            IFA_LOCAL => local = Some(parse_ip(value)?),
            IFA_FLAGS => flags = AddressFlags::from_bits_retain(parse_u32(value)?),
            IFA_PROTO => ours = value == [ADDRESS_PROTOCOL],
            IFA_CACHEINFO => {
                let info = CacheInfo::parse(value)?;
                valid = Lifetime::from_kernel(info.ifa_valid);
                preferred = Lifetime::from_kernel(info.ifa_preferred);
            }
            _ => {}
        }
        Ok(())
    })?;
    // On a point-to-point link IFA_ADDRESS is the other end.
    let addr = local
        .or(peer)
        .ok_or_else(|| DecodeError::from("an address message without address"))?;
    let net = IpNet::new(addr, header.prefix_len)
        .map_err(|_| DecodeError::from(format!("prefix length {}", header.prefix_len)))?;
    Ok(Some(AddressInfo {
        ifindex: header.index,
        net,
        valid,
        preferred,
        secondary: flags.contains(AddressFlags::Secondary),
        tentative: flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed),
        ours,
    }))
}

/// A message of `RTM_*NEIGH`; `None` for families other than IPv4 and IPv6 (a bridge's table)
/// and for proxy entries.
pub(super) fn neighbour(payload: &[u8]) -> Result<Option<NeighbourInfo>, DecodeError> {
    let header = NeighbourHeader::parse(payload)?;
    if !is_ip(header.family) {
        return Ok(None);
    }
    let state = neighbour_state(header.state);
    let (mut addr, mut mac) = (None, None);
    let mut ext = NeighbourExtFlags::empty();
    for_attributes(payload, NEIGHBOUR_HEADER, |kind, value| {
        match kind {
            NDA_DST => addr = Some(parse_ip(value)?),
            NDA_LLADDR => mac = value.try_into().ok(),
            NDA_FLAGS_EXT => ext = NeighbourExtFlags::from_bits_retain(parse_u32(value)?),
            _ => {}
        }
        Ok(())
    })?;
    let addr = addr.ok_or_else(|| DecodeError::from("a neighbour message without address"))?;
    Ok(Some(NeighbourInfo {
        ifindex: header.ifindex,
        addr,
        // A failed entry may still carry the address that no longer answers.
        mac: mac.filter(|_| is_valid(state)),
        state,
        managed: ext.contains(NeighbourExtFlags::Managed),
    }))
}

/// The answer to `RTM_GETROUTE` for `destination`; `None` if packets for it go nowhere.
pub(super) fn route(payload: &[u8], destination: IpAddr) -> Result<Option<NextHop>, DecodeError> {
    let header = RouteHeader::parse(payload)?;
    let local = match header.kind {
        RouteType::Local | RouteType::Anycast => true,
        RouteType::Unicast => false,
        _ => return Ok(None),
    };
    let (mut ifindex, mut source) = (None, None);
    let mut gateway = destination;
    for_attributes(payload, ROUTE_HEADER, |kind, value| {
        match kind {
            RTA_OIF => ifindex = Some(parse_u32(value)?),
            RTA_GATEWAY => gateway = parse_ip(value)?,
            RTA_PREFSRC => source = Some(parse_ip(value)?),
            RTA_VIA => gateway = via(value)?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(ifindex.map(|ifindex| NextHop {
        ifindex,
        gateway,
        source,
        local,
    }))
}

/// `struct rtvia`: a gateway of the other family (RFC 5549), after its 16-bit family.
fn via(value: &[u8]) -> Result<IpAddr, DecodeError> {
    parse_u16(value.get(..2).unwrap_or_default())?;
    parse_ip(value.get(2..).unwrap_or_default())
}

/// A multicast message as event; `None` for what xvip need not know.
pub(super) fn event(message: Message<'_>) -> Result<Option<NetEvent>, DecodeError> {
    let payload = message.payload;
    Ok(match message.kind {
        kind::NEW_LINK => link(payload)?.map(NetEvent::Link),
        kind::DEL_LINK => link(payload)?.map(|link| NetEvent::LinkRemoved {
            ifindex: link.ifindex,
        }),
        kind::NEW_ADDRESS => address(payload)?.map(NetEvent::Address),
        kind::DEL_ADDRESS => address(payload)?.map(|address| NetEvent::AddressRemoved {
            ifindex: address.ifindex,
            net: address.net,
        }),
        kind::NEW_NEIGHBOUR => neighbour(payload)?.map(NetEvent::Neighbour),
        kind::DEL_NEIGHBOUR => neighbour(payload)?.map(|entry| NetEvent::NeighbourRemoved {
            ifindex: entry.ifindex,
            addr: entry.addr,
        }),
        kind::NEW_ROUTE | kind::DEL_ROUTE => Some(NetEvent::Routes),
        _ => None,
    })
}

fn is_ip(family: AddressFamily) -> bool {
    matches!(family, AddressFamily::Inet | AddressFamily::Inet6)
}

/// `NUD_VALID` of the kernel: it sends to the entry's Ethernet address.
const fn is_valid(state: NeighbourState) -> bool {
    match state {
        NeighbourState::Reachable
        | NeighbourState::Stale
        | NeighbourState::Delay
        | NeighbourState::Probe
        | NeighbourState::NoArp
        | NeighbourState::Permanent => true,
        NeighbourState::None | NeighbourState::Incomplete | NeighbourState::Failed => false,
    }
}

fn neighbour_state(state: KernelState) -> NeighbourState {
    match state {
        KernelState::Incomplete => NeighbourState::Incomplete,
        KernelState::Reachable => NeighbourState::Reachable,
        KernelState::Stale => NeighbourState::Stale,
        KernelState::Delay => NeighbourState::Delay,
        KernelState::Probe => NeighbourState::Probe,
        KernelState::Failed => NeighbourState::Failed,
        KernelState::Noarp => NeighbourState::NoArp,
        KernelState::Permanent => NeighbourState::Permanent,
        // Not a state that the kernel has today: nothing is known of the neighbour.
        _ => NeighbourState::None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes that do not come from this kernel, or not whole, are refused or skipped: nothing
    /// panics and the framing always ends.
    fn decode_everything(bytes: &[u8]) {
        for message in Messages::new(bytes).flatten() {
            let _ = event(message);
        }
        let _ = (link(bytes), address(bytes), neighbour(bytes));
        let _ = route(bytes, IpAddr::from([10, 0, 2, 1]));
    }

    /// A link message as the kernel sends it: header, then a name.
    fn link_bytes(family: u8) -> Vec<u8> {
        let mut bytes = vec![family, 0, 1, 0];
        bytes.extend(7u32.to_ne_bytes());
        bytes.extend(0x1_0041u32.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(9u16.to_ne_bytes());
        bytes.extend(IFLA_IFNAME.to_ne_bytes());
        bytes.extend(b"eth0\0\0\0\0");
        bytes
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn xdp_programs_are_found_in_every_mode() {
        let with = |attributes: &[u8]| {
            let bytes = [link_bytes(0), attribute(IFLA_XDP, attributes)].concat();
            xdp_program(&bytes).unwrap()
        };
        for kind in [
            IFLA_XDP_DRV_PROG_ID,
            IFLA_XDP_SKB_PROG_ID,
            IFLA_XDP_HW_PROG_ID,
        ] {
            let id = attribute(kind, &12u32.to_ne_bytes());
            assert_eq!(with(&id), Some((7, 12)));
        }
        // What the kernel sends of a link without a program: `IFLA_XDP_ATTACHED`.
        assert_eq!(with(&attribute(2, &[0])), None);
        assert_eq!(xdp_program(&link_bytes(0)).unwrap(), None);
    }

    /// A link of some kind, as `ip -d link` gets it: parent, then kind and its data.
    fn typed_link(parent: Option<u32>, kind: &[u8], data: &[u8]) -> LinkType {
        let mut bytes = link_bytes(0);
        if let Some(parent) = parent {
            bytes.extend(attribute(IFLA_LINK, &parent.to_ne_bytes()));
        }
        let details = [
            attribute(IFLA_INFO_KIND, kind),
            attribute(IFLA_INFO_DATA, data),
        ];
        bytes.extend(attribute(IFLA_LINKINFO, &details.concat()));
        link(&bytes).unwrap().unwrap().kind
    }

    fn vlan_data(id: u16, protocol: [u8; 2]) -> Vec<u8> {
        let flags = attribute(2, &[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        let id = attribute(IFLA_VLAN_ID, &id.to_ne_bytes());
        [attribute(IFLA_VLAN_PROTOCOL, &protocol), id, flags].concat()
    }

    /// A VLAN says whose it is, which one, and with which tags; one whose parent is in another
    /// namespace, and a link without a kind, are like any other.
    #[test]
    fn kinds_of_links_are_told() {
        let customer = vlan_data(5, [0x81, 0]);
        let expected = |is_service_tag| LinkType::Vlan {
            parent: 2,
            id: 5,
            is_service_tag,
        };
        assert_eq!(typed_link(Some(2), b"vlan\0", &customer), expected(false));
        let service = vlan_data(5, [0x88, 0xa8]);
        assert_eq!(typed_link(Some(2), b"vlan\0", &service), expected(true));
        assert_eq!(typed_link(None, b"vlan\0", &customer), LinkType::Other);
        assert_eq!(typed_link(Some(2), b"veth\0", &[]), LinkType::Veth);
        assert_eq!(typed_link(Some(2), b"macvlan\0", &[]), LinkType::Other);
        assert_eq!(typed_link(None, b"bridge\0", &[]), LinkType::Bridge);
        assert_eq!(typed_link(None, b"bond\0", &[]), LinkType::Bond);
        let mut elsewhere = link_bytes(0);
        elsewhere.extend(attribute(IFLA_LINK_NETNSID, &0u32.to_ne_bytes()));
        elsewhere.extend(attribute(IFLA_LINK, &2u32.to_ne_bytes()));
        let kind = attribute(IFLA_INFO_KIND, b"vlan\0");
        let details = [kind, attribute(IFLA_INFO_DATA, &customer)].concat();
        elsewhere.extend(attribute(IFLA_LINKINFO, &details));
        assert_eq!(link(&elsewhere).unwrap().unwrap().kind, LinkType::Other);
    }

    /// A port of a bond or bridge says whose it is.
    #[test]
    fn ports_name_their_master() {
        let mut port = link_bytes(0);
        port.extend(attribute(IFLA_MASTER, &4u32.to_ne_bytes()));
        assert_eq!(link(&port).unwrap().unwrap().master, Some(4));
    }

    /// What a bridge says of its ports (family 7) is not the link's own life.
    #[test]
    fn bridge_port_messages_are_not_links() {
        let expected = LinkInfo {
            ifindex: 7,
            name: "eth0".to_owned(),
            mac: None,
            up: true,
            mtu: 0,
            kind: LinkType::Other,
            master: None,
        };
        assert_eq!(link(&link_bytes(0)).unwrap(), Some(expected));
        assert_eq!(link(&link_bytes(7)).unwrap(), None);
    }

    /// A message cut short is an error, not a link with less in it.
    #[test]
    fn cut_messages_are_errors() {
        let whole = link_bytes(0);
        for length in (0..whole.len()).filter(|length| ![16, 25, 26, 27].contains(length)) {
            assert!(link(&whole[..length]).is_err(), "{length}");
        }
    }

    proptest! {
        /// Arbitrary bytes.
        #[test]
        fn noise_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            decode_everything(&bytes);
        }

        /// A real message with bytes changed: reaches deeper than noise does.
        #[test]
        fn damage_is_survived(at in 0usize..28, value in any::<u8>(), kind in 16u16..30) {
            let mut payload = link_bytes(0);
            payload[at] = value;
            let mut bytes = 44u32.to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.resize(16, 0);
            bytes.extend(payload);
            decode_everything(&bytes);
        }
    }
}

//! The fence: while this node's lease on a VIP is not valid, no ARP or neighbour discovery for it
//! passes, in either direction.

use std::time::Duration;

use lb_common::{
    abi::{Lease, MAX_LEASES},
    headers::{ArpPacket, NdPacket, TcpHeader},
    reason::Reason,
};
use lb_tests::packet::{
    BACKEND_PORT, Family, Frame, OWN_MAC, ROUTER_MAC, V4, V6, arp, echo, ethernet, neighbour,
    solicited_node,
};

use crate::world::{LOCAL, Row, World, play, row};

const VALID: u32 = 1;
const EXPIRED: u32 = 2;
const ENDLESS: u32 = 3;

/// What a VIP's lease may be, and whether it fences the VIP.
const LEASES: &[(&str, u32, bool)] = &[
    ("not managed by VRRP", 0, false),
    ("lease valid", VALID, false),
    ("lease without end", ENDLESS, false),
    ("lease expired", EXPIRED, true),
    ("lease never given", MAX_LEASES - 1, true),
    ("lease index beyond the table", MAX_LEASES, true),
];

/// The VIP has lease index `lease`; the leases are written.
fn hold<F: Family>(world: &mut World<F>, lease: u32) {
    world.lease_for(VALID, Duration::from_hours(1));
    world.lease_for(EXPIRED, Duration::ZERO);
    world.lease(ENDLESS, Lease::until(u64::MAX));
    world.vip(F::VIP, lease);
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    In,
    Out,
}

/// A frame on its way, the reason that a fence drops it for (if it does), and the reason it
/// passes for otherwise.
type Message = (&'static str, Way, Vec<u8>, Option<Reason>, Reason);

/// Every message with every lease.
fn product<F: Family>(messages: Vec<Message>) -> Vec<Row<F>> {
    let mut rows = Vec::new();
    for (name, way, frame, held, free) in messages {
        for (state, lease, fenced) in LEASES {
            let reason = held.filter(|_| *fenced).unwrap_or(free);
            let row = row(format!("{name}: {state}")).given(|world| hold(world, *lease));
            rows.push(match way {
                Way::In => row.ingress_same(frame.clone(), reason),
                Way::Out => row.egress_same(frame.clone(), reason),
            });
        }
    }
    rows
}

/// `bytes` behind a VLAN tag.
fn tagged(bytes: &[u8]) -> Vec<u8> {
    let (macs, rest) = bytes.split_at(12);
    [macs, &[0x81, 0, 0, 42], rest].concat()
}

const REQUEST: [u8; 2] = ArpPacket::REQUEST;
const REPLY: [u8; 2] = ArpPacket::REPLY;

/// IPv4: ARP that comes in.
fn arp_in() -> Vec<Message> {
    const HELD: Option<Reason> = Some(Reason::FencedArp);
    const OTHER: [u8; 4] = V4::NOT_VIP;
    let asked = arp(REQUEST, ROUTER_MAC, V4::CLIENT, V4::VIP);
    let mut foreign = asked.clone();
    foreign[14 + 1] = 6; // IEEE 802 networks
    vec![
        (
            "who has the VIP?",
            Way::In,
            asked.clone(),
            HELD,
            Reason::Neighbour,
        ),
        (
            "who has the VIP? on a VLAN",
            Way::In,
            tagged(&asked),
            HELD,
            Reason::Neighbour,
        ),
        (
            "who has another address?",
            Way::In,
            arp(REQUEST, ROUTER_MAC, V4::CLIENT, OTHER),
            None,
            Reason::Neighbour,
        ),
        (
            "another node announces the VIP",
            Way::In,
            arp(REPLY, ROUTER_MAC, V4::VIP, V4::VIP),
            None,
            Reason::Neighbour,
        ),
        (
            "another node announces the VIP by a request",
            Way::In,
            arp(REQUEST, ROUTER_MAC, V4::VIP, V4::VIP),
            None,
            Reason::Neighbour,
        ),
        (
            "an answer from the VIP",
            Way::In,
            arp(REPLY, ROUTER_MAC, V4::VIP, OTHER),
            None,
            Reason::Neighbour,
        ),
        (
            "not Ethernet",
            Way::In,
            foreign.clone(),
            None,
            Reason::Neighbour,
        ),
        (
            "a request that is cut off",
            Way::In,
            asked[..asked.len() - 1].to_vec(),
            None,
            Reason::Neighbour,
        ),
    ]
}

/// IPv4: ARP that leaves.
fn arp_out() -> Vec<Message> {
    const HELD: Option<Reason> = Some(Reason::FencedArp);
    const OTHER: [u8; 4] = V4::NOT_VIP;
    let answered = arp(REPLY, OWN_MAC, V4::VIP, V4::CLIENT);
    vec![
        (
            "the VIP is here",
            Way::Out,
            answered.clone(),
            HELD,
            Reason::EgressOther,
        ),
        (
            "the VIP is here, on a VLAN",
            Way::Out,
            tagged(&answered),
            HELD,
            Reason::EgressOther,
        ),
        (
            "gratuitous ARP, as a request",
            Way::Out,
            arp(REQUEST, OWN_MAC, V4::VIP, V4::VIP),
            HELD,
            Reason::EgressOther,
        ),
        (
            "gratuitous ARP, as a reply",
            Way::Out,
            arp(REPLY, OWN_MAC, V4::VIP, V4::VIP),
            HELD,
            Reason::EgressOther,
        ),
        (
            "the VIP asks for a neighbour",
            Way::Out,
            arp(REQUEST, OWN_MAC, V4::VIP, OTHER),
            HELD,
            Reason::EgressOther,
        ),
        (
            "this node asks for the VIP",
            Way::Out,
            arp(REQUEST, OWN_MAC, OTHER, V4::VIP),
            None,
            Reason::EgressOther,
        ),
        (
            "another address is here",
            Way::Out,
            arp(REPLY, OWN_MAC, OTHER, V4::CLIENT),
            None,
            Reason::EgressOther,
        ),
        (
            "an answer that is cut off",
            Way::Out,
            answered[..answered.len() - 1].to_vec(),
            None,
            Reason::EgressOther,
        ),
    ]
}

const NS: u8 = NdPacket::SOLICITATION;
const NA: u8 = NdPacket::ADVERTISEMENT;
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// IPv6: neighbour discovery that comes in.
fn nd_in() -> Vec<Message> {
    const HELD: Option<Reason> = Some(Reason::FencedNd);
    const VIP: [u8; 16] = V6::VIP;
    const OTHER: [u8; 16] = V6::NOT_VIP;
    let asked = neighbour(NS, ROUTER_MAC, V6::CLIENT, solicited_node(VIP), VIP);
    vec![
        (
            "who has the VIP?",
            Way::In,
            asked.emit(),
            HELD,
            Reason::NotVip,
        ),
        (
            "who has the VIP? on a VLAN",
            Way::In,
            asked.clone().vlan(3).emit(),
            HELD,
            Reason::NotVip,
        ),
        (
            "is the VIP still there?",
            Way::In,
            neighbour(NS, ROUTER_MAC, V6::CLIENT, VIP, VIP).emit(),
            HELD,
            Reason::Neighbour,
        ),
        (
            "another node tests the VIP for duplicates",
            Way::In,
            neighbour(NS, ROUTER_MAC, [0; 16], solicited_node(VIP), VIP).emit(),
            HELD,
            Reason::NotVip,
        ),
        (
            "who has another address?",
            Way::In,
            neighbour(NS, ROUTER_MAC, V6::CLIENT, solicited_node(OTHER), OTHER).emit(),
            None,
            Reason::NotVip,
        ),
        (
            "another node announces the VIP",
            Way::In,
            neighbour(NA, ROUTER_MAC, VIP, ALL_NODES, VIP).emit(),
            None,
            Reason::NotVip,
        ),
        (
            "ping",
            Way::In,
            Frame::<V6>::packet(echo::<V6>()).emit(),
            None,
            Reason::IcmpOther,
        ),
    ]
}

/// IPv6: neighbour discovery that leaves.
fn nd_out() -> Vec<Message> {
    const HELD: Option<Reason> = Some(Reason::FencedNd);
    const VIP: [u8; 16] = V6::VIP;
    const OTHER: [u8; 16] = V6::NOT_VIP;
    let answer = neighbour(NA, OWN_MAC, VIP, V6::CLIENT, VIP);
    let probe = neighbour(NS, OWN_MAC, [0; 16], solicited_node(VIP), VIP);
    let pong = Frame::<V6>::packet(echo::<V6>())
        .macs(OWN_MAC, ROUTER_MAC)
        .src(VIP)
        .dst(V6::CLIENT);
    vec![
        (
            "the VIP is here",
            Way::Out,
            answer.emit(),
            HELD,
            Reason::EgressOther,
        ),
        (
            "the VIP is here, on a VLAN",
            Way::Out,
            answer.clone().qinq(1, 2).emit(),
            HELD,
            Reason::EgressOther,
        ),
        (
            "the VIP is here, from the node's own address",
            Way::Out,
            answer.src(OTHER).emit(),
            HELD,
            Reason::EgressOther,
        ),
        (
            "unsolicited announcement",
            Way::Out,
            neighbour(NA, OWN_MAC, VIP, ALL_NODES, VIP).emit(),
            HELD,
            Reason::EgressOther,
        ),
        (
            "the VIP asks for a neighbour",
            Way::Out,
            neighbour(NS, OWN_MAC, VIP, solicited_node(OTHER), OTHER).emit(),
            HELD,
            Reason::EgressOther,
        ),
        (
            "duplicate address detection",
            Way::Out,
            probe.emit(),
            HELD,
            Reason::EgressOther,
        ),
        (
            "this node asks for the VIP",
            Way::Out,
            probe.src(OTHER).emit(),
            None,
            Reason::EgressOther,
        ),
        (
            "another address is here",
            Way::Out,
            neighbour(NA, OWN_MAC, OTHER, V6::CLIENT, OTHER).emit(),
            None,
            Reason::EgressOther,
        ),
        (
            "an answer to a ping",
            Way::Out,
            pong.emit(),
            None,
            Reason::EgressOther,
        ),
    ]
}

/// Flows that still arrive are forwarded whatever the lease is.
fn traffic<F: Family>() -> Vec<Row<F>> {
    let case = |(state, lease, _): &(&str, u32, bool)| {
        let lease = *lease;
        let reply = Frame::<F>::tcp(TcpHeader::ACK, 1, 1, &[]).macs(OWN_MAC, ROUTER_MAC);
        let reply = reply.src(F::VIP).dst(F::CLIENT);
        row(format!("traffic: {state}"))
            .given(move |world| {
                world.service(&[LOCAL]);
                hold(world, lease);
            })
            .ingress(
                Frame::syn(),
                Reason::Local,
                Frame::syn().dport(BACKEND_PORT),
            )
            .egress_same(reply, Reason::EgressOther)
    };
    let not_arp = ethernet(OWN_MAC, ROUTER_MAC, &[], 0x88cc);
    let mut rows: Vec<_> = LEASES.iter().map(case).collect();
    rows.push(row("neither IP nor ARP leaves untouched").egress_same(not_arp, Reason::EgressOther));
    rows
}

/// The rows of this file for IPv4.
pub(crate) fn rows4() -> Vec<Row<V4>> {
    let mut rows = product([arp_in(), arp_out()].concat());
    rows.extend(traffic());
    rows
}

/// The rows of this file for IPv6.
pub(crate) fn rows6() -> Vec<Row<V6>> {
    let mut rows = product([nd_in(), nd_out()].concat());
    rows.extend(traffic());
    rows
}

/// ARP for the VIP passes with a valid lease only, in and out.
#[test]
fn arp_is_fenced() {
    lb_tests::skip_unless_root!();
    play(&rows4());
}

/// Neighbour discovery for the VIP passes with a valid lease only, in and out.
#[test]
fn neighbour_discovery_is_fenced() {
    lb_tests::skip_unless_root!();
    play(&rows6());
}

//! Virtual MACs: who may claim the VIP takes frames for it and claims it by it; nobody else does.

use std::time::Duration;

use lb_common::{
    abi::{Mac, Vip, virtual_mac},
    headers::{ArpPacket, IPPROTO_ICMPV6, NdPacket},
    reason::Reason,
};
use lb_tests::packet::{
    BACKEND_PORT, BROADCAST_MAC, Family, Frame, OWN_MAC, ROUTER_MAC, Upper, V4, V6, arp, echo,
    neighbour, solicited_node,
};

use crate::world::{LOCAL, MASTER2, Row, World, play, row};

const LEASE: u32 = 1;
const VRID: u8 = 51;

fn mac<F: Family>(vrid: u8) -> Mac {
    virtual_mac(vrid, F::ICMP == IPPROTO_ICMPV6)
}

/// The VIP has a virtual MAC; this node may claim it or not.
fn claimed<F: Family>(world: &mut World<F>, valid: bool) {
    let rest = Duration::from_secs(if valid { 3600 } else { 0 });
    world.lease_for(LEASE, rest);
    world.write_vip(F::VIP, Vip::new(LEASE).with_virtual_mac(VRID));
}

/// A node with this backend, which may claim the VIP.
fn owner<F: Family>(name: &str, backend: u32) -> Row<F> {
    row(name).given(move |world| {
        world.service(&[backend]);
        claimed(world, true);
    })
}

fn packets<F: Family>() -> Vec<Row<F>> {
    let to = |mac: Mac| Frame::<F>::syn().macs(ROUTER_MAC, mac);
    let delivered = Frame::<F>::syn()
        .macs(ROUTER_MAC, OWN_MAC)
        .dport(BACKEND_PORT);
    let ping = |mac: Mac| Frame::<F>::packet(echo::<F>()).macs(ROUTER_MAC, mac);
    let other_family = virtual_mac(VRID, F::ICMP != IPPROTO_ICMPV6);
    vec![
        owner(
            "the owner's kernel is handed the frame as one to its own MAC",
            LOCAL,
        )
        .ingress(to(mac::<F>(VRID)), Reason::Local, delivered.clone()),
        owner("the uplink's own MAC goes on to be taken", LOCAL).ingress(
            to(OWN_MAC),
            Reason::Local,
            delivered,
        ),
        owner("what the kernel answers itself", LOCAL).ingress(
            ping(mac::<F>(VRID)),
            Reason::IcmpOther,
            ping(OWN_MAC),
        ),
        owner("what is forwarded leaves as ever", MASTER2)
            .ingress(to(OWN_MAC), Reason::Dsr, forwarded::<F>())
            .ingress(to(mac::<F>(VRID)), Reason::Dsr, forwarded::<F>()),
        owner("another group's", LOCAL).ingress_same(to(mac::<F>(VRID + 1)), Reason::NotOurMac),
        owner("the other family's", LOCAL).ingress_same(to(other_family), Reason::NotOurMac),
        row("nobody else takes it")
            .given(|world| {
                world.service(&[LOCAL]);
                claimed(world, false);
            })
            .ingress_same(to(mac::<F>(VRID)), Reason::NotOurMac),
        row("no group has it")
            .given(|world| world.service(&[LOCAL]))
            .ingress_same(to(mac::<F>(0)), Reason::NotOurMac)
            .ingress_same(to(mac::<F>(VRID)), Reason::NotOurMac),
    ]
}

/// A SYN at master2.
fn forwarded<F: Family>() -> Frame<F> {
    Frame::<F>::syn().macs(OWN_MAC, lb_tests::packet::MASTER_MACS[1])
}

/// `arp` in a frame to `mac`.
fn arp_to(mac: Mac, arp: &[u8]) -> Vec<u8> {
    [&mac, &arp[6..]].concat()
}

fn arp_rows() -> Vec<Row<V4>> {
    let vmac = mac::<V4>(VRID);
    let asked = arp(ArpPacket::REQUEST, ROUTER_MAC, V4::CLIENT, V4::VIP);
    let answer = arp(ArpPacket::REPLY, ROUTER_MAC, V4::CLIENT, V4::VIP);
    let other = arp(ArpPacket::REQUEST, ROUTER_MAC, V4::CLIENT, V4::NOT_VIP);
    let from = |operation, mac| arp(operation, mac, V4::VIP, V4::CLIENT);
    let mut rows = vec![
        row("a request to all goes to the kernel as it is")
            .given(|world| claimed(world, true))
            .ingress_same(arp_to(BROADCAST_MAC, &asked), Reason::Neighbour)
            .ingress_same(arp_to(vmac, &other), Reason::Neighbour),
    ];
    for frame in [&asked, &answer] {
        rows.push(
            row("ARP to the virtual MAC is for the kernel")
                .given(|world| claimed(world, true))
                .ingress(
                    arp_to(vmac, frame),
                    Reason::Neighbour,
                    arp_to(OWN_MAC, frame),
                ),
        );
    }
    for operation in [ArpPacket::REQUEST, ArpPacket::REPLY] {
        rows.push(
            row("ARP from the VIP claims it by the virtual MAC")
                .given(|world| claimed(world, true))
                .egress(
                    from(operation, OWN_MAC),
                    Reason::EgressOther,
                    from(operation, vmac),
                ),
        );
        rows.push(
            row("without the right nothing leaves")
                .given(|world| claimed(world, false))
                .egress_same(from(operation, OWN_MAC), Reason::FencedArp),
        );
    }
    rows.push(
        row("ARP from another address is left alone")
            .given(|world| claimed(world, true))
            .egress_same(
                arp(ArpPacket::REPLY, OWN_MAC, V4::NOT_VIP, V4::CLIENT),
                Reason::EgressOther,
            ),
    );
    rows
}

fn nd_rows() -> Vec<Row<V6>> {
    let vmac = mac::<V6>(VRID);
    let answer = |mac| neighbour(NdPacket::ADVERTISEMENT, mac, V6::VIP, V6::CLIENT, V6::VIP);
    let question = |mac| {
        let to = solicited_node(V6::CLIENT);
        neighbour(NdPacket::SOLICITATION, mac, V6::VIP, to, V6::CLIENT)
    };
    let other = neighbour(
        NdPacket::ADVERTISEMENT,
        OWN_MAC,
        V6::MASTERS[0],
        V6::CLIENT,
        V6::MASTERS[0],
    );
    let probe = |mac| {
        let asked = neighbour(
            NdPacket::SOLICITATION,
            ROUTER_MAC,
            V6::CLIENT,
            V6::VIP,
            V6::VIP,
        );
        asked.macs(ROUTER_MAC, mac)
    };
    // Without the option: an answer to who knows the MAC already.
    let bare = |mac| {
        let mut frame = answer(mac);
        if let Upper::Raw(.., bytes) = &mut frame.upper {
            bytes.truncate(NdPacket::LEN);
        }
        frame
    };
    vec![
        row("an answer about the VIP claims it by the virtual MAC")
            .given(|world| claimed(world, true))
            .egress(answer(OWN_MAC), Reason::EgressOther, answer(vmac))
            .egress(bare(OWN_MAC), Reason::EgressOther, bare(vmac)),
        row("a question from the VIP, too")
            .given(|world| claimed(world, true))
            .egress(question(OWN_MAC), Reason::EgressOther, question(vmac)),
        row("without the right nothing leaves")
            .given(|world| claimed(world, false))
            .egress_same(answer(OWN_MAC), Reason::FencedNd)
            .egress_same(question(OWN_MAC), Reason::FencedNd),
        row("an answer about another address is left alone")
            .given(|world| claimed(world, true))
            .egress_same(other, Reason::EgressOther),
        row("a question to the virtual MAC is for the kernel")
            .given(|world| claimed(world, true))
            .ingress(probe(vmac), Reason::Neighbour, probe(OWN_MAC)),
    ]
}

#[test]
fn packets_to_virtual_macs_ipv4() {
    lb_tests::skip_unless_root!();
    play(&packets::<V4>());
}

#[test]
fn packets_to_virtual_macs_ipv6() {
    lb_tests::skip_unless_root!();
    play(&packets::<V6>());
}

#[test]
fn claims_by_virtual_macs_ipv4() {
    lb_tests::skip_unless_root!();
    play(&arp_rows());
}

#[test]
fn claims_by_virtual_macs_ipv6() {
    lb_tests::skip_unless_root!();
    play(&nd_rows());
}

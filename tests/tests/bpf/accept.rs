//! A closed VIP (`accept = false`): what is for no service is dropped instead of left to the kernel; all
//! that services and neighbours need goes on.

use lb_common::{
    abi::Vip,
    headers::{ArpPacket, IPPROTO_VRRP, NdPacket, TcpHeader},
    reason::Reason,
};
use lb_tests::packet::{
    BACKEND_PORT, CLIENT_PORT, EXTERNAL_MACS, Family, Frame, MASTER_MACS, OWN_MAC, ROUTER_MAC,
    Upper, V4, V6, VIP_PORT, arp, echo, neighbour, solicited_node, udp,
};

use crate::{
    answer::reset,
    icmp::{ALL, error, request, segment, translated},
    world::{EXTERNAL1, LOCAL, MASTER2, Row, World, play, row},
};

/// A port of the VIP that no service has.
const SSH: u16 = 22;

/// The VIP is closed.
fn close<F: Family>(world: &mut World<F>) {
    world.write_vip(F::VIP, Vip::new(0).closed(true));
}

/// A node whose VIP is closed, with this backend.
fn closed<F: Family>(name: &str, backend: u32) -> Row<F> {
    row(name).given(move |world| {
        world.service(&[backend]);
        close(world);
    })
}

fn syn<F: Family>() -> Frame<F> {
    Frame::syn()
}

fn packet<F: Family>(upper: Upper) -> Frame<F> {
    Frame::packet(upper)
}

/// Packets for nobody, and the reasons for which an open VIP leaves them to the kernel.
fn unserved<F: Family>() -> Vec<(&'static str, Frame<F>, Reason)> {
    let ssh = |frame: Frame<F>| frame.dport(SSH);
    let of_others = Upper::Raw(IPPROTO_VRRP, None, vec![0; 20]);
    vec![
        ("a SYN", ssh(syn()), Reason::NotBalanced),
        ("data", ssh(Frame::data()), Reason::NotBalanced),
        ("a RST", ssh(Frame::rst(1)), Reason::NotBalanced),
        (
            "a SYN that a peer forwarded",
            ssh(syn()).macs(MASTER_MACS[1], OWN_MAC),
            Reason::NotBalanced,
        ),
        ("UDP", packet(udp(SSH)), Reason::NotBalanced),
        (
            "UDP to a TCP service",
            packet(udp(VIP_PORT)),
            Reason::NotBalanced,
        ),
        ("ping", packet(echo::<F>()), Reason::IcmpOther),
        (
            "a fragment of a ping",
            packet(echo::<F>()).fragment(0x2000),
            Reason::IcmpOther,
        ),
        (
            "an ICMP error about nothing of ours",
            error(&segment().sport(SSH), ALL),
            Reason::IcmpOther,
        ),
        (
            "another protocol",
            packet(of_others.clone()),
            Reason::NotBalanced,
        ),
        (
            "a fragment of another protocol",
            packet(of_others).fragment(0x2000),
            Reason::NotBalanced,
        ),
    ]
}

/// What is for no service.
fn dropped<F: Family>() -> Vec<Row<F>> {
    let mut rows = Vec::new();
    for (name, frame, open) in unserved::<F>() {
        rows.push(
            closed(name, LOCAL)
                .ingress_same(frame.clone(), Reason::NotAccepted)
                .then(|world| {
                    assert_eq!((world.flows(), world.service_counters().0), ((0, 0), 0));
                    world.vip(F::VIP, 0);
                })
                .ingress_same(frame, open),
        );
    }
    rows.push(
        closed("whatever else is known of the VIP", LOCAL)
            .then(|world| {
                let vip = Vip::new(0).with_virtual_mac(51).traced(true);
                world.write_vip(F::VIP, vip.closed(true));
            })
            .ingress_same(syn().dport(SSH), Reason::NotAccepted)
            .then(|world| {
                let vip = Vip::new(0).closed(true).with_virtual_mac(51).traced(true);
                world.write_vip(F::VIP, vip.closed(false));
            })
            .ingress_same(syn().dport(SSH), Reason::NotBalanced),
    );
    rows
}

/// What goes on as ever.
fn served<F: Family>() -> Vec<Row<F>> {
    let inside = error(&segment::<F>().sport(BACKEND_PORT), ALL);
    let answer = Frame::<F>::tcp(TcpHeader::SYN | TcpHeader::ACK, 5000, 1001, &[])
        .from(EXTERNAL_MACS[0], F::EXTERNALS[0])
        .sport(BACKEND_PORT)
        .dport(CLIENT_PORT);
    let answered = answer
        .clone()
        .macs(OWN_MAC, ROUTER_MAC)
        .src(F::VIP)
        .sport(VIP_PORT)
        .dst(F::CLIENT);
    let told = error::<F>(&Frame::data(), ALL)
        .macs(OWN_MAC, ROUTER_MAC)
        .src(F::VIP)
        .dst(F::CLIENT);
    let sent = Frame::<F>::data()
        .macs(OWN_MAC, ROUTER_MAC)
        .src(F::VIP)
        .sport(SSH)
        .dst(F::CLIENT);
    vec![
        closed("local, and an error about its reply", LOCAL)
            .ingress(syn(), Reason::Local, syn().dport(BACKEND_PORT))
            .ingress(error(&segment(), ALL), Reason::IcmpLocal, inside),
        closed("dsr, and an error about its reply", MASTER2)
            .ingress(syn(), Reason::Dsr, syn().macs(OWN_MAC, MASTER_MACS[1]))
            .ingress(
                error(&segment(), ALL),
                Reason::IcmpDsr,
                error::<F>(&segment(), ALL).macs(OWN_MAC, MASTER_MACS[1]),
            ),
        closed("nat, its reply and an error about the request", EXTERNAL1)
            .ingress(syn(), Reason::Nat, translated(syn()))
            .ingress(answer.clone(), Reason::NatReply, answered)
            .ingress(
                error::<F>(&request(), ALL).macs(EXTERNAL_MACS[1], OWN_MAC),
                Reason::IcmpNatReply,
                told,
            )
            .ingress_same(answer.dport(9), Reason::NatUnknownReply),
        closed("a backend's port of the VIP is refused as ever", LOCAL)
            .then(|world| world.reply_port(BACKEND_PORT, VIP_PORT))
            .ingress(
                syn().dport(BACKEND_PORT),
                Reason::BackendPortReset,
                reset::<F>(&syn().dport(BACKEND_PORT)),
            ),
        closed("fragments of a service are dropped as ever", LOCAL)
            .ingress_same(syn().fragment(0x2000), Reason::Fragment),
        closed("addresses that are no VIP are the kernel's", LOCAL)
            .ingress_same(syn().dst(F::NOT_VIP).dport(SSH), Reason::NotVip)
            .ingress_same(packet(echo::<F>()).dst(F::NOT_VIP), Reason::NotVip),
        closed("what this node sends from the VIP is left alone", LOCAL)
            .egress_same(sent, Reason::EgressOther),
    ]
}

/// The rows of this file.
pub(crate) fn rows<F: Family>() -> Vec<Row<F>> {
    let mut rows = dropped();
    rows.extend(served());
    rows
}

fn arp_rows() -> Vec<Row<V4>> {
    let from_client = |operation| arp(operation, ROUTER_MAC, V4::CLIENT, V4::VIP);
    let answer = arp(ArpPacket::REPLY, OWN_MAC, V4::VIP, V4::CLIENT);
    vec![
        closed("ARP goes on", LOCAL)
            .ingress_same(from_client(ArpPacket::REQUEST), Reason::Neighbour)
            .ingress_same(from_client(ArpPacket::REPLY), Reason::Neighbour)
            .egress_same(answer, Reason::EgressOther),
    ]
}

fn neighbour_rows() -> Vec<Row<V6>> {
    let question = |to| {
        let kind = NdPacket::SOLICITATION;
        neighbour(kind, ROUTER_MAC, V6::CLIENT, to, V6::VIP)
    };
    let to_vip = neighbour(
        NdPacket::ADVERTISEMENT,
        ROUTER_MAC,
        V6::CLIENT,
        V6::VIP,
        V6::CLIENT,
    );
    let answer = neighbour(
        NdPacket::ADVERTISEMENT,
        OWN_MAC,
        V6::VIP,
        V6::CLIENT,
        V6::VIP,
    );
    vec![
        // RFC 9568 section 6.1: solicitations and advertisements must not be dropped.
        closed("neighbour discovery goes on", LOCAL)
            .ingress_same(question(solicited_node(V6::VIP)), Reason::NotVip)
            .ingress_same(
                question(V6::VIP).macs(ROUTER_MAC, OWN_MAC),
                Reason::Neighbour,
            )
            .ingress_same(to_vip.macs(ROUTER_MAC, OWN_MAC), Reason::Neighbour)
            .egress_same(answer, Reason::EgressOther),
    ]
}

#[test]
fn a_closed_vip_ipv4() {
    lb_tests::skip_unless_root!();
    play::<V4>(&rows());
    play(&arp_rows());
}

#[test]
fn a_closed_vip_ipv6() {
    lb_tests::skip_unless_root!();
    play::<V6>(&rows());
    play(&neighbour_rows());
}

//! ICMP errors that quote a flow: to whoever sent the quoted packet, translated outside and inside.

use lb_common::{
    headers::{IPPROTO_ICMPV6, TcpHeader},
    reason::Reason,
};
use lb_tests::packet::{
    BACKEND_PORT, CLIENT_PORT, EXTERNAL_MACS, Family, Frame, MASTER_MACS, OTHER_OWN_MAC,
    OTHER_UPLINK, OWN_MAC, ROUTER_MAC, ROUTER2_MAC, UPLINK, Upper, V4, V6, VIP_PORT, datagram,
    too_big, udp,
};

use crate::world::{EXTERNAL1, LOCAL, MASTER2, MASTER3, Row, play, row, tags};

/// All of a quoted packet.
pub(crate) const ALL: usize = usize::MAX;

fn syn<F: Family>() -> Frame<F> {
    Frame::syn()
}

/// A router on the client's side says that `quoted` is too big, quoting `keep` bytes at most.
pub(crate) fn error<F: Family>(quoted: &Frame<F>, keep: usize) -> Frame<F> {
    Frame::packet(too_big(quoted, keep)).src(F::NOT_VIP)
}

/// The IP header and 8 bytes: what every error quotes (RFC 792).
fn least<F: Family>() -> usize {
    F::HEADER_LEN + 8
}

/// A segment of the service to the client, as routers on the client's side see it.
pub(crate) fn segment<F: Family>() -> Frame<F> {
    let mut frame = Frame::tcp(TcpHeader::ACK, 5001, 1001, &[0x61; 1401])
        .macs(OWN_MAC, ROUTER_MAC)
        .src(F::VIP)
        .sport(VIP_PORT)
        .dst(F::CLIENT)
        .dport(CLIENT_PORT);
    frame.ttl = 60;
    frame
}

/// A segment that goes on to a nat backend, as routers on the backend's side see it.
pub(crate) fn request<F: Family>() -> Frame<F> {
    Frame::data()
        .src(F::VIP)
        .sport(CLIENT_PORT)
        .dst(F::EXTERNALS[0])
        .dport(BACKEND_PORT)
}

/// `frame` on its way to the node of backend `id`.
fn to<F: Family>(id: u32, frame: Frame<F>) -> Frame<F> {
    frame.macs(OWN_MAC, MASTER_MACS[id as usize - 1])
}

/// The client's SYN as the nat backend gets it.
pub(crate) fn translated<F: Family>(frame: Frame<F>) -> Frame<F> {
    frame
        .macs(OWN_MAC, EXTERNAL_MACS[0])
        .src(F::VIP)
        .dst(F::EXTERNALS[0])
        .dport(BACKEND_PORT)
}

/// Bytes of a TCP header that end in the middle of its checksum.
const HALF: usize = TcpHeader::CHECKSUM + 1;

/// An error whose quotation ends in the first half of the original segment's checksum.
fn half<F: Family>(mut frame: Frame<F>) -> Frame<F> {
    let original = segment::<F>();
    let byte = original.emit()[original.l4() + TcpHeader::CHECKSUM];
    if let Upper::Raw(_, at, bytes) = &mut frame.upper {
        *bytes.last_mut().expect("a quotation") = byte;
        if at.is_none() {
            bytes[2..4].copy_from_slice(&[0, 0]);
            let sum = lb_common::checksum::checksum(bytes);
            bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        }
    }
    frame
}

/// About replies of local backends.
fn local<F: Family>() -> Vec<Row<F>> {
    let inside = |keep| error(&segment::<F>().sport(BACKEND_PORT), keep);
    let case = |name, keep| {
        row(name).given(|world| world.service(&[LOCAL])).ingress(
            error(&segment(), keep),
            Reason::IcmpLocal,
            inside(keep),
        )
    };
    vec![
        case("local: the quoted port becomes the backend's", ALL),
        case("local: as little as is quoted by all", least::<F>()),
        row("local: half a checksum is left as it is")
            .given(|world| world.service(&[LOCAL]))
            .ingress(
                error(&segment(), HALF + F::HEADER_LEN),
                Reason::IcmpLocal,
                half(inside(HALF + F::HEADER_LEN)),
            ),
        case("local: up to the checksum", F::HEADER_LEN + 18),
        case("local: an odd number of bytes", F::HEADER_LEN + 21),
        row("local: nothing to translate where the ports are the same")
            .given(|world| {
                world.service(&[LOCAL]);
                world.write_service(VIP_PORT, Some(VIP_PORT), true);
            })
            .ingress_same(error::<F>(&segment(), ALL), Reason::IcmpLocal),
        row("local: what a peer forwarded is delivered, whatever the table says")
            .given(|world| {
                world.service(&[LOCAL, MASTER3]);
                world.maglev(&[MASTER3]);
            })
            .ingress(
                error(&segment(), ALL).macs(MASTER_MACS[1], OWN_MAC),
                Reason::IcmpLocal,
                inside(ALL).macs(MASTER_MACS[1], OWN_MAC),
            ),
        row("local: with VLAN tags and options of the outer header")
            .given(|world| {
                world.service(&[LOCAL]);
                world.vlan(UPLINK, tags(1, 2), OWN_MAC);
            })
            .ingress(
                error(&segment(), ALL).qinq(1, 2).ip_options(&[1; 8]),
                Reason::IcmpLocal,
                inside(ALL).qinq(1, 2).ip_options(&[1; 8]),
            ),
        row("local: UDP")
            .given(|world| world.udp_service(&[LOCAL], 30))
            .ingress(
                error(&sent_datagram(VIP_PORT), ALL),
                Reason::IcmpLocal,
                error(&sent_datagram(BACKEND_PORT), ALL),
            ),
    ]
}

/// A datagram of the service to the client.
fn sent_datagram<F: Family>(sport: u16) -> Frame<F> {
    Frame::packet(datagram(CLIENT_PORT, b"answer"))
        .src(F::VIP)
        .sport(sport)
        .dst(F::CLIENT)
}

/// About replies of dsr backends.
fn dsr<F: Family>() -> Vec<Row<F>> {
    let report = || error::<F>(&segment(), ALL);
    let begun = |name| {
        row::<F>(name)
            .given(|world| world.service(&[MASTER2]))
            .ingress(syn(), Reason::Dsr, to(MASTER2, syn()))
    };
    vec![
        begun("dsr: to the backend's node, untouched")
            .ingress(report(), Reason::IcmpDsr, to(MASTER2, report()))
            .then(|world| {
                // An error begins nothing, and is no segment of the flow.
                assert_eq!((world.flows(), world.service_counters().2), ((0, 1), 1));
            }),
        begun("dsr: of an established flow")
            .ingress(Frame::ack(), Reason::Dsr, to(MASTER2, Frame::ack()))
            .then(|world| world.service(&[MASTER3]))
            .ingress(report(), Reason::IcmpDsr, to(MASTER2, report())),
        begun("dsr: of a half-open flow, although the table changed")
            .then(|world| world.service(&[MASTER3]))
            .ingress(report(), Reason::IcmpDsr, to(MASTER2, report())),
        row("dsr: of a flow without an entry, by the table")
            .given(|world| world.service(&[MASTER3]))
            .ingress(report(), Reason::IcmpDsr, to(MASTER3, report()))
            .then(|world| assert_eq!(world.flows(), (0, 0))),
        row("dsr: to another interface")
            .given(|world| {
                world.service(&[MASTER2]);
                world.set_interface(MASTER2, OTHER_UPLINK);
            })
            .ingress(
                report(),
                Reason::IcmpDsrRedirect,
                report().macs(OTHER_OWN_MAC, MASTER_MACS[1]),
            ),
        row("dsr: what a peer forwarded goes on as long as its TTL lasts, never back")
            .given(|world| world.service(&[MASTER3]))
            .ingress(
                report().macs(MASTER_MACS[1], OWN_MAC).ttl(2),
                Reason::IcmpDsr,
                to(MASTER3, report()).ttl(1),
            )
            .ingress_same(
                report().macs(MASTER_MACS[1], OWN_MAC).ttl(1),
                Reason::TtlExpired,
            )
            .ingress_same(report().macs(MASTER_MACS[2], OWN_MAC), Reason::IcmpOther),
        row("dsr: UDP")
            .given(|world| world.udp_service(&[MASTER2], 30))
            .ingress(
                error(&sent_datagram(VIP_PORT), ALL),
                Reason::IcmpDsr,
                to(MASTER2, error(&sent_datagram(VIP_PORT), ALL)),
            ),
    ]
}

/// A row whose client talks to a nat backend.
fn begun<F: Family>(name: &'static str) -> Row<F> {
    row(name)
        .given(|world| world.service(&[EXTERNAL1]))
        .ingress(syn(), Reason::Nat, translated(syn()))
}

/// About replies of nat backends: to the backend.
fn nat<F: Family>() -> Vec<Row<F>> {
    // What the backend sent, and the error that it gets: from the VIP, as everything of the client.
    let outside = |keep: usize| {
        let quoted = segment::<F>()
            .src(F::EXTERNALS[0])
            .sport(BACKEND_PORT)
            .dst(F::VIP);
        error(&quoted, keep)
            .macs(OWN_MAC, EXTERNAL_MACS[0])
            .src(F::VIP)
            .dst(F::EXTERNALS[0])
    };
    let case =
        |name, keep| begun(name).ingress(error(&segment(), keep), Reason::IcmpNat, outside(keep));
    vec![
        case("nat: to the backend, all of it translated", ALL),
        case("nat: as little as is quoted by all", least::<F>()),
        begun("nat: half a checksum is left as it is").ingress(
            error(&segment(), HALF + F::HEADER_LEN),
            Reason::IcmpNat,
            half(outside(HALF + F::HEADER_LEN)),
        ),
        case("nat: an odd number of bytes", F::HEADER_LEN + 33),
        begun("nat: of an established flow")
            .ingress(Frame::ack(), Reason::Nat, translated(Frame::ack()))
            .ingress(error(&segment(), ALL), Reason::IcmpNat, outside(ALL)),
        begun("nat: a wrong checksum stays wrong by the same error").ingress(
            wrong(error(&segment(), ALL)),
            Reason::IcmpNat,
            wrong(outside(ALL)),
        ),
        begun("nat: to another interface")
            .then(|world| world.set_interface(EXTERNAL1, OTHER_UPLINK))
            .ingress(
                error(&segment(), ALL),
                Reason::IcmpNatRedirect,
                outside(ALL).macs(OTHER_OWN_MAC, EXTERNAL_MACS[0]),
            ),
        begun("nat: the backend's next hop is not known")
            .then(|world| world.set_interface(EXTERNAL1, 0))
            .ingress_same(error::<F>(&segment(), ALL), Reason::Unresolved),
        row("nat: of a flow without an entry there is nothing to translate to")
            .given(|world| world.service(&[EXTERNAL1]))
            .ingress_same(error::<F>(&segment(), ALL), Reason::IcmpOther),
    ]
}

/// An error whose checksum is wrong.
fn wrong<F: Family>(mut frame: Frame<F>) -> Frame<F> {
    if F::ICMP == IPPROTO_ICMPV6 {
        return frame.wrong_checksum(0x0101);
    }
    if let Upper::Raw(_, None, bytes) = &mut frame.upper {
        let sum = u32::from(u16::from_be_bytes([bytes[2], bytes[3]])) + 0x0101;
        bytes[2..4].copy_from_slice(&lb_common::checksum::fold(sum).to_be_bytes());
    }
    frame
}

/// About requests to nat backends: to the client.
fn nat_replies<F: Family>() -> Vec<Row<F>> {
    let report = |keep| error::<F>(&request(), keep).macs(EXTERNAL_MACS[1], OWN_MAC);
    let outside = |keep| {
        error::<F>(&Frame::data(), keep)
            .macs(OWN_MAC, ROUTER_MAC)
            .src(F::VIP)
            .dst(F::CLIENT)
    };
    let case = |name, keep| begun(name).ingress(report(keep), Reason::IcmpNatReply, outside(keep));
    vec![
        case("request: to the client, all of it translated", ALL),
        case("request: as little as is quoted by all", least::<F>()),
        case("request: an odd number of bytes", F::HEADER_LEN + 19),
        begun("request: of an established flow, to where it last came from")
            .ingress(
                Frame::ack().macs(ROUTER2_MAC, OWN_MAC),
                Reason::Nat,
                translated(Frame::ack()),
            )
            .ingress(
                report(ALL),
                Reason::IcmpNatReply,
                outside(ALL).macs(OWN_MAC, ROUTER2_MAC),
            ),
        row("request: to a client behind another interface")
            .given(|world| world.service(&[EXTERNAL1]))
            .ingress_other_uplink(
                syn().macs(ROUTER_MAC, OTHER_OWN_MAC),
                Reason::NatRedirect,
                translated(syn()),
            )
            .ingress(
                report(ALL),
                Reason::IcmpNatReplyRedirect,
                outside(ALL).macs(OTHER_OWN_MAC, ROUTER_MAC),
            ),
        begun("request: of no flow").ingress_same(
            error::<F>(&request().sport(9), ALL).macs(EXTERNAL_MACS[1], OWN_MAC),
            Reason::IcmpOther,
        ),
        row("request: UDP, with its checksum")
            .given(|world| world.udp_service(&[EXTERNAL1], 30))
            .ingress(
                Frame::packet(udp(VIP_PORT)),
                Reason::Nat,
                translated(Frame::packet(udp(VIP_PORT))),
            )
            .ingress(
                error(&translated(Frame::packet(udp(VIP_PORT))), ALL)
                    .macs(EXTERNAL_MACS[1], OWN_MAC),
                Reason::IcmpNatReply,
                error(&Frame::packet(udp(VIP_PORT)), ALL)
                    .macs(OWN_MAC, ROUTER_MAC)
                    .src(F::VIP)
                    .dst(F::CLIENT),
            ),
    ]
}

/// What is the kernel's.
fn others<F: Family>() -> Vec<Row<F>> {
    let case = |name, frame: Frame<F>| begun(name).ingress_same(frame, Reason::IcmpOther);
    let patched = |offset: usize, byte: u8| {
        let mut frame = error::<F>(&segment(), ALL);
        if let Upper::Raw(.., bytes) = &mut frame.upper {
            bytes[offset] = byte;
        }
        frame
    };
    let mut icmp = error::<F>(&segment(), ALL);
    icmp.fragment = 0x2000;
    vec![
        case("a type that is no error", patched(0, 0)),
        case("nothing is quoted", error(&segment(), 0)),
        case(
            "a quotation that ends in the ports",
            error(&segment(), F::HEADER_LEN + 3),
        ),
        case(
            "a quotation that ends in the addresses",
            error(&segment(), F::HEADER_LEN - 1),
        ),
        case("a quotation of another IP version", patched(8, 0x10)),
        case("a quoted packet that is not from the VIP", {
            error(&segment().src(F::NOT_VIP), ALL)
        }),
        case(
            "a quoted packet of another service",
            error(&segment().sport(22), ALL),
        ),
        case("a quoted ping", {
            let ping = lb_tests::packet::echo::<F>();
            error(&Frame::packet(ping).src(F::VIP).dst(F::CLIENT), ALL)
        }),
        case("a fragment of an error", icmp),
        begun("from an address that nobody has").ingress_same(
            error::<F>(&segment(), ALL).src(F::BAD_SOURCES[1]),
            Reason::BadSource,
        ),
        begun("a quoted packet that ends in the VLAN of nobody")
            .ingress_same(error::<F>(&segment(), ALL).vlan(9), Reason::NotOurVlan),
    ]
}

/// The rows of this file.
pub(crate) fn rows<F: Family>() -> Vec<Row<F>> {
    let mut rows = local();
    rows.extend(dsr());
    rows.extend(nat());
    rows.extend(nat_replies());
    rows.extend(others());
    rows
}

/// ICMP errors about flows.
#[test]
fn icmp_errors_ipv4() {
    lb_tests::skip_unless_root!();
    play::<V4>(&rows());
}

/// The same with IPv6.
#[test]
fn icmp_errors_ipv6() {
    lb_tests::skip_unless_root!();
    play::<V6>(&rows());
}

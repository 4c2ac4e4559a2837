//! Frames that are not what the service waits for: malformed ones are dropped, what is the
//! kernel's is passed. Each would be delivered to the local backend if it were in order.

use lb_common::{
    conntrack::Segment,
    headers::{IPPROTO_ICMPV6, IPPROTO_VRRP, TcpHeader},
    reason::Reason,
};
use lb_tests::packet::{
    BACKEND_PORT, BROADCAST_MAC, EXTERNAL_MACS, Family, Frame, OWN_MAC, ROUTER_MAC, UPLINK, Upper,
    V4, V6, VIP_PORT, diff, echo, ethernet, udp,
};

use crate::{
    answer::reset,
    world::{Bytes, LOCAL, Row, play, row, tags},
};

fn syn<F: Family>() -> Frame<F> {
    Frame::syn()
}

/// A row with one frame that is not changed, in a world where a good SYN is delivered locally.
fn case<F: Family>(name: &'static str, frame: impl Bytes<F>, reason: Reason) -> Row<F> {
    row(name)
        .given(|world| {
            world.service(&[LOCAL]);
            world.reply_port(BACKEND_PORT, VIP_PORT);
        })
        .ingress_same(frame, reason)
        .then(|world| assert_eq!(world.flows(), (0, 0)))
}

/// The bytes of `frame` with `value` at `offset`.
fn patched<F: Family>(frame: &Frame<F>, offset: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = frame.emit();
    bytes[offset..offset + value.len()].copy_from_slice(value);
    bytes
}

/// Below IP.
fn ethernet_rows<F: Family>() -> Vec<Row<F>> {
    let lldp = ethernet([1, 0x80, 0xc2, 0, 0, 0xe], ROUTER_MAC, &[], 0x88cc);
    let cut_tag = ethernet(OWN_MAC, ROUTER_MAC, &[], 0x8100);
    vec![
        case("not IP", lldp.clone(), Reason::NotIp),
        case(
            "not IP, nothing after the type",
            lldp[..14].to_vec(),
            Reason::NotIp,
        ),
        case("a third VLAN tag", syn().qinq(1, 2).vlan(3), Reason::NotIp),
        case("a tag that is cut off", cut_tag.clone(), Reason::Truncated),
        case(
            "half a tag",
            [cut_tag, vec![0, 1]].concat(),
            Reason::Truncated,
        ),
        case(
            "another station's MAC",
            syn().macs(ROUTER_MAC, EXTERNAL_MACS[0]),
            Reason::NotOurMac,
        ),
        case(
            "broadcast",
            syn().macs(ROUTER_MAC, BROADCAST_MAC),
            Reason::NotOurMac,
        ),
        case(
            "one bit of the MAC differs",
            syn().macs(ROUTER_MAC, [2, 0, 0, 0, 0, 0]),
            Reason::NotOurMac,
        ),
        row("an interface that is no uplink")
            .given(|world| {
                world.service(&[LOCAL]);
                world.no_uplink(UPLINK);
            })
            .ingress_same(syn(), Reason::NotOurMac),
        row("not to a VIP: the kernel's, whatever it looks like")
            .given(|world| world.service(&[LOCAL]))
            .ingress_same(syn().dst(F::NOT_VIP), Reason::NotVip)
            .ingress_same(
                patched(&syn::<F>().dst(F::NOT_VIP), 14, &[0xff, 0xff, 0xff, 0xff]),
                Reason::NotVip,
            )
            .ingress_same(syn().dst(F::NOT_VIP).fragment(0x2000), Reason::NotVip)
            .ingress_same(syn().dst(F::NOT_VIP).src(F::VIP), Reason::NotVip),
    ]
}

/// IP and what it carries.
fn ip_rows<F: Family>() -> Vec<Row<F>> {
    let good = syn::<F>();
    let l3 = good.l3();
    let mut rows = vec![
        case(
            "more fragments follow",
            syn().fragment(0x2000),
            Reason::Fragment,
        ),
        case("a later fragment", syn().fragment(0x2010), Reason::Fragment),
        case(
            "the last fragment",
            syn().fragment(0x0010),
            Reason::Fragment,
        ),
        case(
            "UDP to the service's port",
            Frame::packet(udp(VIP_PORT)),
            Reason::NotBalanced,
        ),
        case(
            "VRRP",
            Frame::packet(Upper::Raw(IPPROTO_VRRP, None, vec![0; 20])),
            Reason::NotBalanced,
        ),
        case(
            "no next header",
            Frame::packet(Upper::Raw(59, None, vec![0; 8])),
            Reason::NotBalanced,
        ),
        case("ssh to the VIP", syn().dport(22), Reason::NotBalanced),
        row("to the backend's port of the VIP")
            .given(|world| {
                world.service(&[LOCAL]);
                world.reply_port(BACKEND_PORT, VIP_PORT);
            })
            .ingress(
                syn().dport(BACKEND_PORT),
                Reason::BackendPortReset,
                reset::<F>(&syn().dport(BACKEND_PORT)),
            )
            .ingress(
                Frame::data().dport(BACKEND_PORT),
                Reason::BackendPortReset,
                reset::<F>(&Frame::data().dport(BACKEND_PORT)),
            )
            .ingress_same(Frame::rst(1).dport(BACKEND_PORT), Reason::BackendPort)
            .ingress_same(Frame::packet(udp(BACKEND_PORT)), Reason::NotBalanced),
        case(
            "ICMPv6, whoever carries it",
            Frame::packet(Upper::Raw(
                IPPROTO_ICMPV6,
                Some(2),
                vec![128, 0, 0, 0, 0, 1, 0, 1],
            )),
            // ICMPv6 in IPv4 is nothing that a stack knows.
            if F::HEADER_LEN == 40 {
                Reason::IcmpOther
            } else {
                Reason::NotBalanced
            },
        ),
        row("nothing is given to an empty service")
            .given(|world| world.service(&[]))
            .ingress(syn(), Reason::NoBackendReset, reset::<F>(&syn())),
    ];
    rows.push(case("ping", Frame::packet(echo::<F>()), Reason::IcmpOther));
    rows.extend(F::BAD_SOURCES.iter().map(|source| {
        case(
            "a source that no client has",
            syn().src(*source),
            Reason::BadSource,
        )
    }));
    let length_at = if F::HEADER_LEN == 20 { l3 + 2 } else { l3 + 4 };
    // What the length field counts before the TCP header.
    let before = if F::HEADER_LEN == 20 { 20 } else { 0 };
    let of_length = |length: u16| patched(&syn::<F>(), length_at, &length.to_be_bytes());
    rows.extend([
        case("a length of zero", of_length(0), Reason::Truncated),
        case(
            "a length that ends in the TCP header",
            of_length(before + 19),
            Reason::Truncated,
        ),
        case(
            "a length beyond the frame",
            of_length(before + 33),
            Reason::Truncated,
        ),
        case(
            "the greatest length",
            of_length(u16::MAX),
            Reason::Truncated,
        ),
    ]);
    rows
}

/// What only one version has.
fn ipv4_rows() -> Vec<Row<V4>> {
    let good = syn::<V4>();
    let first = |byte: u8| patched(&good, good.l3(), &[byte]);
    vec![
        case("version 0", first(0x05), Reason::BadIpv4Header),
        case(
            "version 6 in an IPv4 frame",
            first(0x65),
            Reason::BadIpv4Header,
        ),
        case("a header of 16 bytes", first(0x44), Reason::BadIpv4Header),
        case("a header of no bytes", first(0x40), Reason::BadIpv4Header),
        case(
            "a header longer than the packet",
            first(0x4f),
            Reason::Truncated,
        ),
        case(
            "a length shorter than the header",
            patched(&good, 16, &[0, 19]),
            Reason::Truncated,
        ),
        row("\"don't fragment\" is no fragment")
            .given(|world| world.service(&[LOCAL]))
            .ingress(
                syn().fragment(0x4000),
                Reason::Local,
                syn().fragment(0x4000).dport(BACKEND_PORT),
            ),
    ]
}

fn ipv6_rows() -> Vec<Row<V6>> {
    let good = syn::<V6>();
    let with = |lengths: &[usize]| {
        lengths.iter().fold(syn::<V6>(), |frame, length| {
            frame.ip_options(&vec![0; length - 4])
        })
    };
    let walked = |name, frame: Frame<V6>| {
        row(name).given(|world| world.service(&[LOCAL])).ingress(
            frame.clone(),
            Reason::Local,
            frame.dport(BACKEND_PORT),
        )
    };
    let next_header = |number: u8| patched(&good, good.l3() + 6, &[number]);
    vec![
        case(
            "version 4 in an IPv6 frame",
            patched(&good, 14, &[0x45]),
            Reason::BadIpv6Header,
        ),
        case("version 0", patched(&good, 14, &[0]), Reason::BadIpv6Header),
        walked("four extension headers", with(&[8, 8, 16, 8])),
        case(
            "five extension headers",
            with(&[8, 8, 8, 8, 8]),
            Reason::Ipv6Extensions,
        ),
        walked("256 bytes of extension headers", with(&[248, 8])),
        case(
            "more bytes of extension headers",
            with(&[248, 16]),
            Reason::Ipv6Extensions,
        ),
        case(
            "one long extension header",
            with(&[264]),
            Reason::Ipv6Extensions,
        ),
        // The TCP header read as an extension header: its "length" is the source port's low byte.
        case(
            "an extension header that reaches beyond the packet",
            next_header(60),
            Reason::Ipv6Extensions,
        ),
        case(
            "the payload ends in the extension header",
            patched(&with(&[16]), 18, &[0, 8]),
            Reason::Truncated,
        ),
        walked(
            "an atomic fragment is a whole packet",
            syn().fragment(0x4000),
        ),
    ]
}

/// TCP.
fn tcp_rows<F: Family>() -> Vec<Row<F>> {
    let good = syn::<F>();
    let offset = |byte: u8| patched(&syn::<F>(), good.l4() + 12, &[byte]);
    vec![
        case(
            "a data offset of 16 bytes",
            offset(0x40),
            Reason::BadTcpHeader,
        ),
        case("a data offset of no bytes", offset(0), Reason::BadTcpHeader),
        case(
            "a data offset beyond the segment",
            offset(0x90),
            Reason::BadTcpHeader,
        ),
        case(
            "padding does not make the segment longer",
            patched(&syn::<F>().padded(), good.l4() + 12, &[0x90]),
            Reason::BadTcpHeader,
        ),
        case("no flags", Frame::tcp(0, 1, 1, &[]), Reason::BadTcpFlags),
        case(
            "SYN and FIN",
            Frame::tcp(TcpHeader::SYN | TcpHeader::FIN, 1, 1, &[]),
            Reason::BadTcpFlags,
        ),
        case(
            "SYN and RST",
            Frame::tcp(TcpHeader::SYN | TcpHeader::RST, 1, 1, &[]),
            Reason::BadTcpFlags,
        ),
        case(
            "FIN alone",
            Frame::tcp(TcpHeader::FIN, 1, 1, &[]),
            Reason::BadTcpFlags,
        ),
        case(
            "every flag",
            Frame::tcp(0xff, 1, 1, &[]),
            Reason::BadTcpFlags,
        ),
        row("every combination of flags is judged as lb-common judges it").given(|world| {
            world.service(&[LOCAL]);
            for flags in 0..=u8::MAX {
                let frame = Frame::<F>::tcp(flags, 1, 1, &[]).emit();
                let segment = Segment {
                    seq: 1,
                    ack: 1,
                    len: 0,
                    flags,
                };
                let reason = if segment.flags_valid() {
                    Reason::Local
                } else {
                    Reason::BadTcpFlags
                };
                let run = world.run(&frame, UPLINK);
                assert!(run.is(reason, frame.len()), "{flags:#010b}: {run:?}");
            }
        }),
    ]
}

/// A good frame that ends too early, wherever that is.
fn cut_rows<F: Family>() -> Vec<Row<F>> {
    let cut = |name, frame: Frame<F>| {
        row(name).given(move |world| {
            world.service(&[LOCAL]);
            let bytes = frame.emit();
            world.vlan(UPLINK, tags(1, 2), OWN_MAC);
            for length in (14..bytes.len()).filter(|length| world.takes(&bytes[..*length])) {
                let run = world.run(&bytes[..length], UPLINK);
                assert!(run.is(Reason::Truncated, length), "{length} bytes: {run:?}");
                assert_eq!(diff(&bytes[..length], &run.frame), None);
            }
            let run = world.run(&bytes, UPLINK);
            assert!(run.is(Reason::Local, bytes.len()), "{run:?}");
        })
    };
    vec![
        cut("a SYN cut off anywhere", syn()),
        cut("tags, options and data cut off anywhere", {
            Frame::data()
                .qinq(1, 2)
                .ip_options(&[1; 12])
                .tcp_options(&[1; 8])
        }),
    ]
}

/// The rows of this file.
pub(crate) fn rows<F: Family>() -> Vec<Row<F>> {
    let mut rows = ethernet_rows();
    rows.extend(ip_rows());
    rows.extend(tcp_rows());
    rows.extend(cut_rows());
    rows
}

/// The rows of this file with those that only IPv4 has.
pub(crate) fn rows4() -> Vec<Row<V4>> {
    let mut all = rows();
    all.extend(ipv4_rows());
    all
}

/// The rows of this file with those that only IPv6 has.
pub(crate) fn rows6() -> Vec<Row<V6>> {
    let mut all = rows();
    all.extend(ipv6_rows());
    all
}

/// Malformed frames and other people's.
#[test]
fn malformed_frames_ipv4() {
    lb_tests::skip_unless_root!();
    play(&rows4());
}

/// The same with IPv6.
#[test]
fn malformed_frames_ipv6() {
    lb_tests::skip_unless_root!();
    play(&rows6());
}

//! tc egress: the VIP's port for the replies of local backends.

use lb_common::{headers::TcpHeader, reason::Reason};
use lb_tests::{
    packet::{
        BACKEND_PORT, CLIENT_PORT, Family, Frame, OWN_MAC, ROUTER_MAC, V4, V6, VIP_PORT, udp,
    },
    program::SkBuff,
};

use crate::world::{Row, play, row};

/// A segment of the local backend to the client.
fn reply<F: Family>(flags: u8, data: &[u8]) -> Frame<F> {
    Frame::tcp(flags, 5000, 1001, data)
        .macs(OWN_MAC, ROUTER_MAC)
        .src(F::VIP)
        .sport(BACKEND_PORT)
        .dst(F::CLIENT)
        .dport(CLIENT_PORT)
}

fn data<F: Family>() -> Frame<F> {
    reply(TcpHeader::ACK | TcpHeader::PSH, b"HTTP/1.1 200 OK\r\n\r\n")
}

/// A row whose replies from `VIP:BACKEND_PORT` get the service's port.
fn given<F: Family>(name: &str) -> Row<F> {
    row(name).given(|world| world.reply_port(BACKEND_PORT, VIP_PORT))
}

fn translated<F: Family>() -> Vec<Row<F>> {
    let case = |name, frame: Frame<F>| {
        given(name).egress(
            frame.clone(),
            Reason::ReplyTranslated,
            frame.sport(VIP_PORT),
        )
    };
    let buffer = |name, gso_segs, gso_size, data: &[u8]| {
        let frame = reply::<F>(TcpHeader::ACK, data);
        given(name).egress_buffer(
            SkBuff {
                gso_segs,
                gso_size,
                ..SkBuff::default()
            },
            frame.clone(),
            Reason::ReplyTranslated,
            frame.sport(VIP_PORT),
        )
    };
    vec![
        case("SYN and ACK", {
            reply(TcpHeader::SYN | TcpHeader::ACK, &[]).tcp_options(&[2, 4, 5, 0xb4, 1, 3, 3, 7])
        }),
        case("data", data()),
        case("FIN", reply(TcpHeader::FIN | TcpHeader::ACK, &[])),
        case("RST", reply(TcpHeader::RST, &[])),
        case("VLAN tags", data().qinq(11, 12)),
        case("padding", reply(TcpHeader::ACK, &[]).padded()),
        case(
            "options of the IP header",
            data().ip_options(&[1; 8]).ip_options(&[1; 12]),
        ),
        case("all options at once", {
            data().vlan(1).ip_options(&[1; 40]).tcp_options(&[1; 40])
        }),
        case(
            "a wrong checksum stays wrong by the same error",
            data().wrong_checksum(0x1111),
        ),
        buffer(
            "two segments that the device will cut",
            2,
            1000,
            &[0x61; 2000],
        ),
        buffer("a remainder that it will cut off", 3, 1400, &[0x62; 2801]),
    ]
}

fn others<F: Family>() -> Vec<Row<F>> {
    let case = |name, frame: Frame<F>| given(name).egress_same(frame, Reason::EgressOther);
    let cut = |length: usize, reason: Reason| {
        let bytes = data::<F>().emit();
        let end = data::<F>().l4() + length;
        given(&format!("{length} bytes of a TCP header")).egress_same(bytes[..end].to_vec(), reason)
    };
    vec![
        case("from another port of the VIP", data().sport(22)),
        case("from the VIP's port itself", data().sport(VIP_PORT)),
        case("from another address", data().src(F::MASTERS[0])),
        case("to the backend's port", data().sport(9).dport(BACKEND_PORT)),
        case("UDP from the same port", {
            Frame::packet(udp(1))
                .macs(OWN_MAC, ROUTER_MAC)
                .src(F::VIP)
                .dst(F::CLIENT)
        }),
        case("a fragment", data().fragment(0x2000)),
        row("where the ports are the same there is nothing to translate")
            .egress_same(data(), Reason::EgressOther),
        cut(1, Reason::EgressOther),
        // Its port would be the wrong one: better no segment than that.
        cut(2, Reason::Truncated),
        cut(17, Reason::Truncated),
        given("a length of zero, as in a segment of more than 64 KiB").egress(
            zero_length(&data::<F>()),
            Reason::ReplyTranslated,
            zero_length(&data::<F>().sport(VIP_PORT)),
        ),
    ]
}

/// `frame` with the IP length that BIG TCP leaves at zero.
fn zero_length<F: Family>(frame: &Frame<F>) -> Vec<u8> {
    let mut bytes = frame.emit();
    let at = frame.l3() + if F::HEADER_LEN == 20 { 2 } else { 4 };
    bytes[at..at + 2].copy_from_slice(&[0, 0]);
    bytes
}

/// The rows of this file.
pub(crate) fn rows<F: Family>() -> Vec<Row<F>> {
    let mut rows = translated();
    rows.extend(others());
    rows
}

/// Replies leave with the service's port, everything else as it is.
#[test]
fn replies_are_translated_ipv4() {
    lb_tests::skip_unless_root!();
    play::<V4>(&rows());
}

/// The same with IPv6.
#[test]
fn replies_are_translated_ipv6() {
    lb_tests::skip_unless_root!();
    play::<V6>(&rows());
}

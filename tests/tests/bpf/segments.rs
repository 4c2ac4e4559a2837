//! Socket buffers with segments that are still to be cut, or were put together by the kernel: the
//! pipeline translates them in one piece. XDP comes before anybody puts segments together.

use lb_common::{headers::TcpHeader, reason::Reason};
use lb_tests::{
    packet::{
        BACKEND_PORT, CLIENT_PORT, EXTERNAL_MACS, Family, Frame, MASTER_MACS, OWN_MAC, ROUTER_MAC,
        Upper, V4, V6, VIP_PORT, datagram,
    },
    program::SkBuff,
};

use crate::{
    answer::reset,
    world::{EXTERNAL1, LOCAL, MASTER2, MASTER3, Row, play, row},
};

/// Three segments of 1,000 bytes, the last one shorter.
const THREE: SkBuff = SkBuff {
    gso_segs: 3,
    gso_size: 1000,
    ifindex: 0,
};

fn large<F: Family>() -> Frame<F> {
    Frame::tcp(TcpHeader::ACK | TcpHeader::PSH, 1001, 5001, &[0x63; 2_801])
}

/// Datagrams of one flow in one buffer: the UDP header is the first one's.
fn aggregate<F: Family>() -> Frame<F> {
    let mut frame = Frame::packet(datagram(VIP_PORT, &[0x64; 2_500]));
    if let Upper::Raw(.., bytes) = &mut frame.upper {
        bytes[4..6].copy_from_slice(&1_008_u16.to_be_bytes());
    }
    frame
}

fn request<F: Family>(frame: Frame<F>) -> Frame<F> {
    frame
        .macs(OWN_MAC, EXTERNAL_MACS[0])
        .src(F::VIP)
        .dst(F::EXTERNALS[0])
        .dport(BACKEND_PORT)
}

fn cases<F: Family>() -> Vec<Row<F>> {
    let back = || {
        Frame::<F>::tcp(TcpHeader::ACK, 5001, 1001, &[0x65; 2_801])
            .from(EXTERNAL_MACS[0], F::EXTERNALS[0])
            .sport(BACKEND_PORT)
            .dport(CLIENT_PORT)
    };
    let reply = |frame: Frame<F>| {
        frame
            .macs(OWN_MAC, ROUTER_MAC)
            .src(F::VIP)
            .sport(VIP_PORT)
            .dst(F::CLIENT)
    };
    let to = |id: u32, frame: Frame<F>| frame.macs(OWN_MAC, MASTER_MACS[id as usize - 1]);
    vec![
        row("local")
            .given(|world| world.service(&[LOCAL]))
            .ingress_buffer(THREE, large(), Reason::Local, large().dport(BACKEND_PORT)),
        row("dsr: all of it is accounted")
            .given(|world| world.service(&[MASTER2]))
            .ingress_buffer(THREE, large(), Reason::Dsr, to(MASTER2, large())),
        row("nat, there and back")
            .given(|world| world.service(&[EXTERNAL1]))
            .ingress(Frame::syn(), Reason::Nat, request(Frame::syn()))
            .ingress_buffer(THREE, large(), Reason::Nat, request(large()))
            .ingress_buffer(THREE, back(), Reason::NatReply, reply(back())),
        row("UDP: the first datagram's length is not the packet's")
            .given(|world| world.udp_service(&[EXTERNAL1], 30))
            .ingress_buffer(THREE, aggregate(), Reason::Nat, request(aggregate())),
        row("the answer is one segment")
            .given(|world| world.service(&[MASTER2]))
            .ingress(Frame::syn(), Reason::Dsr, to(MASTER2, Frame::syn()))
            .ingress(Frame::ack(), Reason::Dsr, to(MASTER2, Frame::ack()))
            .then(|world| {
                world.service(&[MASTER3]);
                world.kill(MASTER2);
            })
            .ingress_buffer(THREE, large(), Reason::FlowReset, reset::<F>(&large())),
    ]
}

/// Segments in one buffer.
#[test]
fn segments_in_one_buffer_ipv4() {
    lb_tests::skip_unless_root!();
    play::<V4>(&cases());
}

/// The same with IPv6.
#[test]
fn segments_in_one_buffer_ipv6() {
    lb_tests::skip_unless_root!();
    play::<V6>(&cases());
}

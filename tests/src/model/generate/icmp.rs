//! Random ICMP errors about packets of services, as routers and hosts send them.

use lb_common::headers::{IPPROTO_ICMPV6, IPPROTO_UDP, TcpHeader};

use super::{Family, PORTS, address, datagram, way};
use crate::{
    model::{Model, random::Random, tables::Tuple, world},
    packet::{
        self, BACKEND_PORT, EXTERNAL_MACS, Frame, MASTER_MACS, OWN_MAC, ROUTER_MAC, Upper, VIP_PORT,
    },
};

/// Ethernet, before the quoted packet.
const ETHERNET: usize = 14;

/// An error that comes to a VIP: about a packet to a client or to a nat backend.
pub(super) fn incoming<F: Family>(random: &mut Random, model: &Model) -> (u32, Frame<F>) {
    let quoted = about::<F>(random, model);
    let mut frame = error::<F>(random, &quoted);
    let number = random.below(2);
    (frame.from, frame.src) = *random.pick(&[
        (ROUTER_MAC, F::CLIENT),
        (ROUTER_MAC, F::NOT_VIP),
        (ROUTER_MAC, address::<F>(quoted.dst.ip())),
        (MASTER_MACS[1 + number], F::NOT_VIP),
        (MASTER_MACS[1 + number], F::MASTERS[1 + number]),
        (EXTERNAL_MACS[number], F::EXTERNALS[number]),
    ]);
    if !random.once_in(20) {
        frame.dst = address::<F>(quoted.src.ip());
    }
    let (ifindex, tags) = way(random);
    frame.tags = tags;
    (ifindex, frame)
}

/// An error of this node's kernel about a client's packet to its own backend.
pub(super) fn outgoing<F: Family>(random: &mut Random) -> Frame<F> {
    let client = *random.pick(&world::clients::<F>());
    let vip = *random.pick(&[F::VIP.into(), world::second_vip::<F>()]);
    let udp = random.once_in(3);
    let ports = if udp {
        [world::UDP_BACKEND_PORT, world::UDP_PORT]
    } else {
        [BACKEND_PORT, VIP_PORT]
    };
    let quoted = Tuple {
        src: (client, *random.pick(&PORTS)).into(),
        dst: (vip, *random.pick(&ports)).into(),
        proto: if udp { IPPROTO_UDP } else { 6 },
    };
    let mut frame = error::<F>(random, &quoted);
    (frame.from, frame.to) = (OWN_MAC, ROUTER_MAC);
    (frame.src, frame.dst) = (address::<F>(vip), address::<F>(client));
    frame
}

/// A packet that did not get to where it went: of a flow that there is, or might be.
fn about<F: Family>(random: &mut Random, model: &Model) -> Tuple {
    let state = &model.state;
    let reversed = |key: &Tuple| Tuple {
        src: key.dst,
        dst: key.src,
        proto: key.proto,
    };
    let flows = state.flows.keys().chain(state.half_flows.keys());
    let returns = state.returns.keys().chain(state.half_returns.keys());
    // Both maps have a flow as the packets that come in have it.
    let known: Vec<Tuple> = flows
        .chain(returns)
        .filter(|key| F::address(key.src.ip()).is_some())
        .map(reversed)
        .collect();
    if !known.is_empty() && !random.once_in(4) {
        return *random.pick(&known);
    }
    let vip = *random.pick(&[F::VIP.into(), world::second_vip::<F>()]);
    let ports = [VIP_PORT, VIP_PORT, world::NAT_PORT, BACKEND_PORT, 22];
    let client = *random.pick(&world::clients::<F>());
    let (port, proto) = if random.once_in(4) {
        (world::UDP_PORT, IPPROTO_UDP)
    } else {
        (*random.pick(&ports), 6)
    };
    Tuple {
        src: (vip, port).into(),
        dst: (client, *random.pick(&PORTS)).into(),
        proto,
    }
}

/// An error that quotes as much of a packet as it pleases.
fn error<F: Family>(random: &mut Random, quoted: &Tuple) -> Frame<F> {
    let kinds: &[u8] = if F::ICMP == IPPROTO_ICMPV6 {
        &[1, 2, 2, 3, 4, 5, 128, 135]
    } else {
        &[3, 3, 3, 11, 12, 4, 5, 8]
    };
    let mut message = vec![*random.pick(kinds), random.byte(), 0, 0];
    message.extend(random.word().to_be_bytes());
    message.extend(quotation::<F>(random, quoted));
    let upper = if F::ICMP == IPPROTO_ICMPV6 {
        Upper::Raw(F::ICMP, Some(2), message)
    } else {
        let sum = lb_common::checksum::checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        Upper::Raw(F::ICMP, None, message)
    };
    Frame::packet(upper)
}

/// The beginning of a packet.
fn quotation<F: Family>(random: &mut Random, quoted: &Tuple) -> Vec<u8> {
    let data = vec![0x33; random.below(60)];
    let (sport, dport) = (quoted.src.port(), quoted.dst.port());
    let mut frame = if quoted.proto == IPPROTO_UDP {
        Frame::<F>::packet(datagram(random, sport, dport, &data))
    } else {
        let flags = *random.pick(&[TcpHeader::ACK, TcpHeader::SYN | TcpHeader::ACK]);
        let segment = Frame::<F>::tcp(flags, random.word(), random.word(), &data);
        segment.sport(sport).dport(dport)
    };
    (frame.src, frame.dst) = (address::<F>(quoted.src.ip()), address::<F>(quoted.dst.ip()));
    match random.below(12) {
        0 => frame.options.push(vec![1; 1 + random.below(20)]),
        1 => frame.fragment = *random.pick(&[0x2000, 0x2001, 185, 0x4000]),
        2 => frame.checksum_error = random.word() as u16,
        3 => frame.upper = packet::echo::<F>(),
        _ => {}
    }
    let mut bytes = frame.emit().split_off(ETHERNET);
    let header = F::HEADER_LEN;
    let length = *random.pick(&[
        header - 1,
        header + 7,
        header + 8,
        header + 8,
        header + 18,
        576,
    ]);
    bytes.truncate(length);
    if random.once_in(12) {
        let at = random.below(bytes.len());
        bytes[at] = random.byte();
    }
    bytes
}

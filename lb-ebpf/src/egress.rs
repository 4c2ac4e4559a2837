//! tc egress: the VIP's port for replies of local backends, and the outgoing half of the fence.

use aya_ebpf::{bindings::BPF_F_MARK_MANGLED_0, programs::TcContext};
use lb_common::{
    abi::ServiceKey,
    headers::{
        ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPPROTO_TCP, IPPROTO_UDP, TcpHeader,
        UdpHeader,
    },
    reason::Reason,
};

use crate::{
    family::{Family, Ip, V4, V6},
    fence, icmp, maps, packet, parse,
};

/// What becomes of a frame that leaves.
#[inline(always)]
pub(crate) fn egress(ctx: &TcContext) -> Reason {
    if !packet::pull_headers(ctx) {
        return Reason::Truncated;
    }
    let Ok(ethernet) = parse::ethernet(ctx) else {
        return Reason::EgressOther;
    };
    match ethernet.ethertype {
        ETHERTYPE_IPV4 => reply::<V4>(ctx, ethernet.l3),
        ETHERTYPE_IPV6 if fence::nd_egress(ctx, ethernet.l3) => Reason::FencedNd,
        ETHERTYPE_IPV6 => reply::<V6>(ctx, ethernet.l3),
        ETHERTYPE_ARP => fence::arp_egress(ctx, ethernet.l3),
        _ => Reason::EgressOther,
    }
}

/// A packet from VIP:backend port gets the service's port. `bpf_l4_csum_replace` handles
/// checksums that are left to the hardware and segments that are not cut yet.
///
/// What came in from outside is no reply of this node: `tc_ingress` sends it on with the VIP as
/// source, and every port of it is what it shall be.
#[inline(always)]
fn reply<F: Family>(ctx: &TcContext, l3: usize) -> Reason {
    if packet::came_in(ctx) {
        return Reason::EgressOther;
    }
    let Ok(ip) = F::locate(ctx, l3) else {
        return Reason::EgressOther;
    };
    if ip.proto == F::ICMP && !ip.fragment && icmp::outgoing::<TcContext, F>(ctx, l3, ip.l4, ip.end)
    {
        return Reason::ReplyTranslated;
    }
    let Some((src, sport, proto, l4)) = source::<F>(ctx, l3, ip) else {
        return Reason::EgressOther;
    };
    let Some(port) = maps::get(F::reply_ports(), &ServiceKey::new(src, sport, proto)) else {
        return Reason::EgressOther;
    };
    if port.port() == sport {
        return Reason::EgressOther;
    }
    let old = sport.to_be();
    let new = port.port().to_be();
    let (at, flags) = if proto == IPPROTO_UDP {
        (UdpHeader::CHECKSUM, u64::from(BPF_F_MARK_MANGLED_0))
    } else {
        (TcpHeader::CHECKSUM, 0)
    };
    let replaced = ctx
        .l4_csum_replace(l4 + at, u64::from(old), u64::from(new), 2 | flags)
        .and_then(|()| ctx.store(l4 + TcpHeader::SPORT, &new, 0));
    match replaced {
        Ok(()) => Reason::ReplyTranslated,
        // A reply with the wrong port would be reset by the client.
        Err(_) => Reason::Truncated,
    }
}

/// Source address and port of an outgoing TCP or UDP packet, its protocol, and where its header
/// starts.
///
/// The length is not compared with the frame: a GSO frame's IP length may be anything.
#[inline(always)]
fn source<F: Family>(ctx: &TcContext, l3: usize, ip: Ip) -> Option<(F::Addr, u16, u8, usize)> {
    if (ip.proto != IPPROTO_TCP && ip.proto != IPPROTO_UDP) || ip.fragment {
        return None;
    }
    let src: F::Addr = packet::load(ctx, l3 + F::ADDRESSES)?;
    let ports: [u8; 2] = packet::load(ctx, ip.l4 + TcpHeader::SPORT)?;
    Some((src, u16::from_be_bytes(ports), ip.proto, ip.l4))
}

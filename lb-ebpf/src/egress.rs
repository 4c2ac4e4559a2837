//! tc egress: the VIP's port for replies of local backends, and the outgoing half of the fence.

use aya_ebpf::programs::TcContext;
use lb_common::{
    abi::ServiceKey,
    headers::{
        ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthHeader, IPPROTO_TCP, Ipv6Header,
        NdPacket, TcpHeader,
    },
    reason::Reason,
};

use crate::{
    family::{Family, V4, V6},
    fence, maps, packet, parse,
};

/// Bytes that the programs look at: Ethernet with two tags, IPv6, and of TCP and ND the longer.
const HEADERS: u32 = (EthHeader::LEN + 8 + Ipv6Header::LEN + NdPacket::LEN) as u32;

/// What becomes of a frame that leaves.
#[inline(always)]
pub(crate) fn egress(ctx: &TcContext) -> Reason {
    // Headers may lie in the non-linear part of a socket buffer.
    if packet::length(ctx) < u64::from(HEADERS) && u64::from(ctx.len()) > packet::length(ctx) {
        let wanted = if ctx.len() < HEADERS {
            ctx.len()
        } else {
            HEADERS
        };
        if ctx.pull_data(wanted).is_err() {
            return Reason::Truncated;
        }
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

/// A segment from VIP:backend port gets the service's port. `bpf_l4_csum_replace` handles
/// checksums that are left to the hardware and segments that are not cut yet.
#[inline(always)]
fn reply<F: Family>(ctx: &TcContext, l3: usize) -> Reason {
    let Some((src, sport, l4)) = source::<F>(ctx, l3) else {
        return Reason::EgressOther;
    };
    let key = ServiceKey::new(src, sport, IPPROTO_TCP);
    let Some(port) = maps::get(F::reply_ports(), &key) else {
        return Reason::EgressOther;
    };
    let old = sport.to_be();
    let new = port.port().to_be();
    let replaced = ctx
        .l4_csum_replace(l4 + TcpHeader::CHECKSUM, u64::from(old), u64::from(new), 2)
        .and_then(|()| ctx.store(l4 + TcpHeader::SPORT, &new, 0));
    match replaced {
        Ok(()) => Reason::ReplyTranslated,
        // A reply with the wrong port would be reset by the client.
        Err(_) => Reason::Truncated,
    }
}

/// Source address and port of an outgoing TCP segment, and where its header starts.
///
/// The length is not compared with the frame: a GSO frame's IP length may be anything.
#[inline(always)]
fn source<F: Family>(ctx: &TcContext, l3: usize) -> Option<(F::Addr, u16, usize)> {
    let ip = F::locate(ctx, l3).ok()?;
    if ip.proto != IPPROTO_TCP || ip.fragment {
        return None;
    }
    let src: F::Addr = packet::load(ctx, l3 + F::ADDRESSES)?;
    let ports: [u8; 2] = packet::load(ctx, ip.l4 + TcpHeader::SPORT)?;
    Some((src, u16::from_be_bytes(ports), ip.l4))
}

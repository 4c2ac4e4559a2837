//! Fence: while this node's lease on a VIP is not valid it neither answers nor asks for the VIP
//! by ARP or neighbour discovery, whatever its kernel or its controller would do.

use lb_common::{
    abi::Address,
    headers::{ArpPacket, IPPROTO_ICMPV6, Ipv6Header, NdPacket},
    reason::Reason,
};

use crate::{
    family::{Family, V4, V6},
    maps,
    packet::{self, Context},
};

#[inline(always)]
fn fenced<F: Family>(addr: &F::Addr) -> bool {
    maps::get(F::vips(), addr).is_some_and(|vip| !maps::may_claim(vip))
}

/// Ingress ARP: a request for a fenced VIP is dropped, so that it stays unanswered. The owner's
/// announcement may have the form of a request, from the VIP for itself (RFC 5227 section 2.3):
/// it passes, so that this node's stack learns the owner's MAC.
#[inline(always)]
pub(crate) fn arp_ingress<C: Context>(ctx: &C, l3: usize) -> Reason {
    match packet::load::<C, ArpPacket>(ctx, l3) {
        Some(arp)
            if arp.is_ipv4_ethernet()
                && arp.is_request()
                && !arp.sender_ip.same(&arp.target_ip)
                && fenced::<V4>(&arp.target_ip) =>
        {
            Reason::FencedArp
        }
        _ => Reason::Neighbour,
    }
}

/// Egress ARP: nothing leaves that names a fenced VIP as the sender.
#[inline(always)]
pub(crate) fn arp_egress<C: Context>(ctx: &C, l3: usize) -> Reason {
    match packet::load::<C, ArpPacket>(ctx, l3) {
        Some(arp) if arp.is_ipv4_ethernet() && fenced::<V4>(&arp.sender_ip) => Reason::FencedArp,
        _ => Reason::EgressOther,
    }
}

/// The neighbour discovery message at `l3`: ND has no extension headers in practice (RFC 6980
/// forbids fragments), so only the plain form is looked at.
#[inline(always)]
fn nd<C: Context>(ctx: &C, l3: usize) -> Option<(Ipv6Header, NdPacket)> {
    let ip: Ipv6Header = packet::load(ctx, l3)?;
    if ip.next_header != IPPROTO_ICMPV6 {
        return None;
    }
    let message: NdPacket = packet::load(ctx, l3 + Ipv6Header::LEN)?;
    Some((ip, message))
}

/// Ingress neighbour discovery: whether a solicitation asks for a fenced VIP.
#[inline(always)]
pub(crate) fn nd_ingress<C: Context>(ctx: &C, l3: usize) -> bool {
    nd(ctx, l3).is_some_and(|(_, message)| {
        message.kind == NdPacket::SOLICITATION && fenced::<V6>(&message.target)
    })
}

/// Egress neighbour discovery: whether an advertisement claims a fenced VIP, or a solicitation
/// is sent from one or tests one for duplicates.
#[inline(always)]
pub(crate) fn nd_egress<C: Context>(ctx: &C, l3: usize) -> bool {
    nd(ctx, l3).is_some_and(|(ip, message)| match message.kind {
        NdPacket::ADVERTISEMENT => fenced::<V6>(&message.target),
        NdPacket::SOLICITATION => {
            fenced::<V6>(&ip.src) || (ip.src.same(&Address::ZERO) && fenced::<V6>(&message.target))
        }
        _ => false,
    })
}

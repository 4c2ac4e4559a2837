//! Fence: while this node's lease on a VIP is not valid it neither answers nor asks for the VIP
//! by ARP or neighbour discovery, whatever its kernel or its controller would do.

use lb_common::{
    abi::{Address, Vip},
    headers::{ArpPacket, IPPROTO_ICMPV6, Ipv6Header, NdPacket},
    reason::Reason,
};

use crate::{
    family::{Family, V4, V6},
    maps,
    packet::{self, Context},
    parse::Ethernet,
    vmac,
};

/// What is known of an address that ARP or neighbour discovery is about.
enum Claim {
    /// No VIP: the kernel's.
    Foreign,
    /// A VIP that this node has no lease for.
    Fenced,
    /// A VIP that it may claim.
    Allowed(Vip),
}

#[inline(always)]
fn claim<F: Family>(addr: &F::Addr) -> Claim {
    match maps::get(F::vips(), addr) {
        None => Claim::Foreign,
        Some(vip) if maps::may_claim(vip) => Claim::Allowed(vip),
        Some(_) => Claim::Fenced,
    }
}

/// Ingress ARP: a request for a fenced VIP is dropped, so that it stays unanswered. The owner's
/// announcement may have the form of a request, from the VIP for itself (RFC 5227 section 2.3):
/// it passes, so that this node's stack learns the owner's MAC.
#[inline(always)]
pub(crate) fn arp_ingress<C: Context>(ctx: &C, ethernet: Ethernet) -> Reason {
    match packet::load::<C, ArpPacket>(ctx, ethernet.l3) {
        Some(arp) if arp.is_ipv4_ethernet() => match claim::<V4>(&arp.target_ip) {
            Claim::Fenced if arp.is_request() && !arp.sender_ip.same(&arp.target_ip) => {
                return Reason::FencedArp;
            }
            Claim::Allowed(vip) => vmac::take_arp::<C, V4>(ctx, vip, ethernet.tags),
            Claim::Fenced | Claim::Foreign => {}
        },
        _ => {}
    }
    Reason::Neighbour
}

/// Egress ARP: nothing leaves that names a fenced VIP as the sender.
#[inline(always)]
pub(crate) fn arp_egress<C: Context>(ctx: &C, l3: usize) -> Reason {
    match packet::load::<C, ArpPacket>(ctx, l3) {
        Some(arp) if arp.is_ipv4_ethernet() => match claim::<V4>(&arp.sender_ip) {
            Claim::Fenced => return Reason::FencedArp,
            Claim::Allowed(vip) => vmac::claim_arp::<C, V4>(ctx, vip, l3),
            Claim::Foreign => {}
        },
        _ => {}
    }
    Reason::EgressOther
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
        message.kind == NdPacket::SOLICITATION
            && matches!(claim::<V6>(&message.target), Claim::Fenced)
    })
}

/// Egress neighbour discovery: whether an advertisement claims a fenced VIP, or a solicitation
/// is sent from one or tests one for duplicates.
#[inline(always)]
pub(crate) fn nd_egress<C: Context>(ctx: &C, l3: usize) -> bool {
    let Some((ip, message)) = nd(ctx, l3) else {
        return false;
    };
    let claimed = match message.kind {
        NdPacket::SOLICITATION if !ip.src.same(&Address::ZERO) => ip.src,
        NdPacket::ADVERTISEMENT | NdPacket::SOLICITATION => message.target,
        _ => return false,
    };
    match claim::<V6>(&claimed) {
        Claim::Fenced => return true,
        Claim::Allowed(vip) => vmac::claim_nd::<C, V6>(ctx, vip, l3, message.checksum),
        Claim::Foreign => {}
    }
    false
}

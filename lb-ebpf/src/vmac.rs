//! Virtual MACs (RFC 9568 section 7.3): a VIP whose group has one is claimed by that MAC instead of
//! the uplink's. There is no interface for it: what leaves is told so here, and what comes for it is
//! taken for the uplink's own, by whoever may claim the VIP.

use lb_common::{
    abi::{Mac, Vip, same_mac, virtual_mac},
    checksum::Delta,
    headers::{ArpPacket, EthHeader, Ipv6Header, NdPacket},
};

use crate::{
    family::Family,
    maps,
    packet::{self, Context},
    parse,
};

fn of<F: Family>(vip: Vip) -> Option<Mac> {
    let vrid = vip.vrid();
    (vrid != 0).then(|| virtual_mac(vrid, F::IS_IPV6))
}

/// Whether a frame to `dst` about `vip` is one for its virtual MAC and this node is to take it. It is
/// addressed to the uplink's `own` MAC then.
#[inline(always)]
pub(crate) fn take<C: Context, F: Family>(ctx: &C, vip: Vip, dst: &Mac, own: Mac) -> bool {
    of::<F>(vip).is_some_and(|mac| same_mac(dst, &mac))
        && maps::may_claim(vip)
        && ctx.address_to(own)
}

/// ARP about `vip`, which this node may claim: as [`take`].
#[inline(always)]
pub(crate) fn take_arp<C: Context, F: Family>(ctx: &C, vip: Vip, tags: u32) {
    if let Ok(macs) = parse::macs(ctx)
        && let Some(own) = maps::uplink_mac(ctx.ifindex(), tags)
    {
        take::<C, F>(ctx, vip, &macs.dst, own);
    }
}

/// Outgoing ARP from `vip`: it claims the VIP by the virtual MAC.
#[inline(always)]
pub(crate) fn claim_arp<C: Context, F: Family>(ctx: &C, vip: Vip, l3: usize) {
    if let Some(mac) = of::<F>(vip)
        && packet::store(ctx, l3 + ArpPacket::SENDER_MAC, mac)
    {
        packet::store(ctx, EthHeader::SRC, mac);
    }
}

/// Outgoing neighbour discovery about `vip`: the same. The kernel puts the option with the MAC first.
#[inline(always)]
pub(crate) fn claim_nd<C: Context, F: Family>(ctx: &C, vip: Vip, l3: usize, checksum: [u8; 2]) {
    let (message, option) = (l3 + Ipv6Header::LEN, l3 + Ipv6Header::LEN + NdPacket::LEN);
    let Some(mac) = of::<F>(vip) else {
        return;
    };
    if let Some(old) = packet::load::<C, [u8; 8]>(ctx, option) {
        let [kind, length, ..] = old;
        if (kind == NdPacket::SOURCE_MAC || kind == NdPacket::TARGET_MAC) && length == 1 {
            let [m0, m1, m2, m3, m4, m5] = mac;
            let new = [kind, length, m0, m1, m2, m3, m4, m5];
            let change = Delta::bytes(&old, &new);
            if !packet::store(ctx, option, new) {
                return;
            }
            let at = message + NdPacket::CHECKSUM;
            ctx.fix_checksum(at, checksum, Delta::ZERO, change, false);
        }
    }
    packet::store(ctx, EthHeader::SRC, mac);
}

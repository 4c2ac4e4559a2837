//! The ingress pipeline: parse, fence, service, conntrack, select, forward.

use lb_common::{
    abi::{Address as _, Vip, same_mac},
    headers::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPPROTO_TCP, IPPROTO_UDP},
    reason::Reason,
};

use crate::{
    conntrack::Request,
    decision::{Decision, Outcome, Returned},
    family::{Family, V4, V6},
    fence, log,
    maps::{self, Scratch},
    packet,
    parse::{self, Ethernet, Transport},
    stages::Stages,
    vmac,
};

/// What becomes of a frame of `length` bytes that came in.
#[inline(always)]
pub(crate) fn ingress<C: Stages<V4> + Stages<V6>>(ctx: &C, length: u64) -> Decision {
    let ethernet = match parse::ethernet(ctx) {
        Ok(ethernet) => ethernet,
        Err(reason) => return reason.into(),
    };
    match ethernet.ethertype {
        ETHERTYPE_IPV4 => ip::<C, V4>(ctx, ethernet, length),
        ETHERTYPE_IPV6 if fence::nd_ingress(ctx, ethernet.l3) => Reason::FencedNd.into(),
        ETHERTYPE_IPV6 => ip::<C, V6>(ctx, ethernet, length),
        ETHERTYPE_ARP => fence::arp_ingress(ctx, ethernet).into(),
        _ => Reason::NotIp.into(),
    }
}

#[inline(always)]
fn ip<C: Stages<F>, F: Family>(ctx: &C, ethernet: Ethernet, length: u64) -> Decision {
    let Some(scratch) = F::scratch() else {
        return Reason::Inconsistent.into();
    };
    let l3 = scratch.forget::<0x1f>(ethernet.l3);
    let tags = scratch.forget::<0xffff_ffff>(ethernet.tags as usize) as u32;
    // Only packets to a VIP are checked closely: the others are the kernel's, whatever they are.
    if !packet::load_addresses(ctx, l3 + F::ADDRESSES, &mut scratch.key) {
        return Reason::Truncated.into();
    }
    scratch.key.set_transport(0, 0, 0);
    let Some(vip) = maps::find(F::vips(), scratch.key.dst_ref()) else {
        return Reason::NotVip.into();
    };
    scratch.set_traced(vip.is_traced() || maps::dry_run());
    let vip = *vip;
    let decision = match to_vip::<C, F>(ctx, (l3, length), tags, vip, scratch) {
        Ok(decision) => decision,
        Err(reason) => reason.into(),
    };
    if scratch.is_traced() {
        // Whoever reads the trace is told; nothing follows for the packet.
        let _ = ctx.trace(decision);
    }
    log::log::<F>(decision, ctx.ifindex());
    decision
}

#[inline(always)]
fn to_vip<C: Stages<F>, F: Family>(
    ctx: &C,
    (l3, length): (usize, u64),
    tags: u32,
    vip: Vip,
    scratch: &mut Scratch<F::Addr>,
) -> Result<Decision, Reason> {
    if scratch.is_traced() || log::LOGS {
        scratch.begin();
    }
    let Some(own) = maps::uplink_mac(ctx.ifindex(), tags) else {
        return Err(if tags == 0 {
            Reason::NotOurMac
        } else {
            Reason::NotOurVlan
        });
    };
    let to = parse::macs(ctx)?.dst;
    if !same_mac(&own, &to) && !vmac::take::<C, F>(ctx, vip, &to, own) {
        return Err(Reason::NotOurMac);
    }
    let mut ip = F::locate(ctx, l3)?;
    ip.l4 = scratch.forget::<0x1ff>(ip.l4);
    ip.end = scratch.forget::<0xf_ffff>(ip.end);
    if ip.proto == F::ICMP {
        if ip.fragment {
            return Ok(accept(vip, Reason::IcmpOther.into()));
        }
        scratch.save(l3, ip.end, tags, &Transport::none(ip.l4));
        return Ok(accept(vip, Decision::decode(ctx.icmp())));
    }
    if ip.proto != IPPROTO_TCP && ip.proto != IPPROTO_UDP {
        return Ok(accept(vip, Reason::NotBalanced.into()));
    }
    if ip.fragment {
        return Err(Reason::Fragment);
    }
    if !F::valid_source(scratch.key.src_ref()) || scratch.key.src_ref().same(scratch.key.dst_ref())
    {
        return Err(Reason::BadSource);
    }
    let transport = if ip.proto == IPPROTO_TCP {
        parse::tcp(ctx, &ip)?
    } else {
        parse::udp(ctx, &ip)?
    };
    scratch.set_ports(transport.sport, transport.dport, ip.proto);
    let service = maps::find(F::services(), &scratch.service_key);
    let Some(service) = service else {
        scratch.save(l3, ip.end, tags, &transport);
        return Ok(match Outcome::decode(ctx.unserved()) {
            Returned::Reset(reason, backend) => Decision::decode(ctx.reset(reason, backend)),
            Returned::Done(decision) => accept(vip, decision),
            Returned::Forward(_) => Reason::Inconsistent.into(),
        });
    };
    if scratch.is_traced() {
        scratch.save(l3, ip.end, tags, &transport);
    }
    let mut request = Request::<C, F> {
        ctx,
        l3,
        end: ip.end,
        length,
        tags,
        transport,
        service,
        scratch,
    };
    Ok(request.decide().of_service(service.id()))
}

/// `decision` about a packet that is for no service: what it leaves to the kernel is dropped where
/// the VIP is closed. ARP and neighbour discovery are for the node, and ICMP errors about flows for
/// those: they have other reasons.
#[inline(always)]
fn accept(vip: Vip, decision: Decision) -> Decision {
    let reason = decision.reason();
    let is_kernels = reason == Reason::NotBalanced.index() || reason == Reason::IcmpOther.index();
    if vip.is_closed() && is_kernels {
        return Reason::NotAccepted.into();
    }
    decision
}

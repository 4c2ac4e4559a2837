//! The ingress pipeline: parse, fence, service, conntrack, select, forward.

use lb_common::{
    abi::{Address as _, FlowKey, ServiceKey, same_mac},
    headers::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPPROTO_ICMPV6, IPPROTO_TCP},
    reason::Reason,
};

use crate::{
    conntrack::Request,
    family::{Family, V4, V6},
    fence,
    forward::Decision,
    maps::{self, Scratch},
    nat,
    packet::{self, Context},
    parse::{self, Ethernet, Tcp},
};

/// What becomes of a frame that came in.
#[inline(always)]
pub(crate) fn ingress<C: Context>(ctx: &C) -> Decision {
    let ethernet = match parse::ethernet(ctx) {
        Ok(ethernet) => ethernet,
        Err(reason) => return reason.into(),
    };
    match ethernet.ethertype {
        ETHERTYPE_IPV4 => ip::<C, V4>(ctx, ethernet),
        ETHERTYPE_IPV6 if fence::nd_ingress(ctx, ethernet.l3) => Reason::FencedNd.into(),
        ETHERTYPE_IPV6 => ip::<C, V6>(ctx, ethernet),
        ETHERTYPE_ARP => fence::arp_ingress(ctx, ethernet.l3).into(),
        _ => Reason::NotIp.into(),
    }
}

#[inline(always)]
fn ip<C: Context, F: Family>(ctx: &C, ethernet: Ethernet) -> Decision {
    match try_ip::<C, F>(ctx, ethernet.l3) {
        Ok(decision) => decision,
        Err(reason) => reason.into(),
    }
}

#[inline(always)]
fn try_ip<C: Context, F: Family>(ctx: &C, l3: usize) -> Result<Decision, Reason> {
    let scratch = F::scratch().ok_or(Reason::Inconsistent)?;
    let l3 = scratch.forget::<0x1f>(l3);
    // Only packets to a VIP are checked closely: the others are the kernel's, whatever they are.
    let [src, dst]: [F::Addr; 2] = packet::load(ctx, l3 + F::ADDRESSES).ok_or(Reason::Truncated)?;
    scratch.key = FlowKey::new(src, 0, dst, 0, 0);
    maps::get(F::vips(), scratch.key.dst_ref()).ok_or(Reason::NotVip)?;
    let own = maps::uplink_mac(ctx.ifindex()).ok_or(Reason::NotOurMac)?;
    if !same_mac(&own, &parse::macs(ctx)?.dst) {
        return Err(Reason::NotOurMac);
    }
    let mut ip = F::locate(ctx, l3)?;
    ip.l4 = scratch.forget::<0x1ff>(ip.l4);
    ip.end = scratch.forget::<0x1_ffff>(ip.end);
    match ip.proto {
        IPPROTO_TCP => {}
        // Echo, errors and neighbour discovery are the kernel's, like every other protocol.
        IPPROTO_ICMPV6 => return Err(Reason::Neighbour),
        _ => return Err(Reason::NotBalanced),
    }
    if ip.fragment {
        return Err(Reason::Fragment);
    }
    if !F::valid_source(scratch.key.src_ref()) || scratch.key.src_ref().same(scratch.key.dst_ref())
    {
        return Err(Reason::BadSource);
    }
    let tcp = parse::tcp(ctx, &ip)?;
    scratch.key.set_transport(tcp.sport, tcp.dport, ip.proto);
    scratch.service_key = ServiceKey::new(scratch.key.dst(), tcp.dport, ip.proto);
    Ok(match maps::get(F::services(), &scratch.service_key) {
        Some(service) => Request::<C, F> {
            ctx,
            l3,
            tcp,
            service,
            scratch,
        }
        .decide(),
        None => no_service::<C, F>(ctx, l3, &tcp, scratch),
    })
}

/// To a VIP, but to no service: a nat backend's reply, a request that a local backend must not
/// see, or something of the kernel's (ssh to the VIP).
#[inline(always)]
fn no_service<C: Context, F: Family>(
    ctx: &C,
    l3: usize,
    tcp: &Tcp,
    scratch: &mut Scratch<F::Addr>,
) -> Decision {
    if let Some(decision) = nat::reply::<C, F>(ctx, l3, tcp, scratch) {
        return decision;
    }
    scratch.service_key = ServiceKey::new(scratch.key.dst(), tcp.dport, scratch.key.proto());
    if maps::get(F::reply_ports(), &scratch.service_key).is_some() {
        return Reason::BackendPort.into();
    }
    Reason::NotBalanced.into()
}

//! nat: full address and port translation for backends whose node runs no xvip. The source
//! becomes VIP:allocated port, so that replies come back to the owner.

use lb_common::{
    abi::{Backend, FlowKey, Mac, NatReturn, ServiceKey, path_tag},
    checksum, hash,
    headers::TcpHeader,
    reason::Reason,
};

use crate::{
    conntrack::Request,
    family::Family,
    forward::{Decision, rewrite_ethernet},
    maps::{self, Scratch},
    packet::{self, Context},
    parse::{self, Tcp},
};

/// Source ports tried for a new flow: the client's own, then by hash.
const TRIES: u32 = 12;
/// Allocated ports are not below this one: lower ones belong to services.
const FIRST_PORT: u16 = 1_024;

/// The `attempt`-th source port to try: the client's own first, so that another owner finds the
/// same one.
#[inline(always)]
fn candidate<F: Family>(key: &FlowKey<F::Addr>, attempt: u32) -> u16 {
    if attempt == 0 && key.sport() >= FIRST_PORT {
        return key.sport();
    }
    let spread = hash::flow_hash(key.src_ref(), key.sport()).wrapping_add(attempt * 0x9e37_79b9);
    // 0..=64511 above the first port.
    FIRST_PORT + ((spread >> 8) % (65_536 - FIRST_PORT as u32)) as u16
}

/// Allocate a source port and write both entries: the return entry first and only if it is
/// free, then the flow's own. The port is the result.
#[inline(always)]
pub(crate) fn commit<C: Context, F: Family>(
    request: &mut Request<'_, C, F>,
    id: u32,
    backend: &Backend<F::Addr>,
) -> Result<u16, Reason> {
    let from = parse::macs(request.ctx)?.src;
    let ifindex = request.ctx.ifindex();
    let scratch = &mut *request.scratch;
    let (client, sport) = (scratch.key.src(), scratch.key.sport());
    let (vip, dport, proto) = (scratch.key.dst(), scratch.key.dport(), scratch.key.proto());
    scratch.entry = NatReturn::new(client, sport, dport, id, ifindex, from);
    for attempt in 0..TRIES {
        let port = candidate::<F>(&scratch.key, attempt);
        scratch.service_key = ServiceKey::new(vip, port, proto);
        if maps::get(F::services(), &scratch.service_key).is_some() {
            continue;
        }
        scratch.back = FlowKey::new(backend.addr(), backend.port(), vip, port, proto);
        if claim::<F>(scratch, ifindex, from) {
            let flow = request.flow(id, port, path_tag(ifindex, 0, from));
            // Two CPUs with the same flow's SYN choose the same port: the last write wins and
            // is the same.
            return if maps::put_lru(F::flows(), &request.scratch.key, &flow) {
                Ok(port)
            } else {
                Err(Reason::ConntrackFailed)
            };
        }
    }
    Err(Reason::NatPortsExhausted)
}

/// Write the return entry if it is free or already this flow's own.
#[inline(always)]
fn claim<F: Family>(scratch: &mut Scratch<F::Addr>, ifindex: u32, from: Mac) -> bool {
    if maps::put_new_lru(F::returns(), &scratch.back, &scratch.entry) {
        return true;
    }
    let own = maps::update_lru(F::returns(), &scratch.back, |found| {
        let own = found.belongs_to(
            scratch.key.src_ref(),
            scratch.key.sport(),
            scratch.key.dport(),
        );
        if own {
            found.set_path(ifindex, 0, from);
        } else {
            let (client, vip) = (found.client(), scratch.key.dst());
            let (sport, dport) = (found.client_port(), found.vip_port());
            scratch.holder = FlowKey::new(client, sport, vip, dport, scratch.key.proto());
        }
        own
    });
    match own {
        Some(true) => true,
        Some(false) => take_over::<F>(scratch),
        // Evicted meanwhile: the next port.
        None => false,
    }
}

/// Take the port of another flow, `scratch.holder`, if that one is over: return entries do not
/// end by themselves, and with one backend there are no more than 64,512 ports.
///
/// A holder whose own entry is missing was evicted (or is being made on another CPU right now,
/// which costs that client one more SYN).
#[inline(always)]
fn take_over<F: Family>(scratch: &Scratch<F::Addr>) -> bool {
    let port = scratch.back.dport();
    let now = maps::now_seconds();
    let held = maps::update_lru(F::flows(), &scratch.holder, |flow| {
        (flow.nat_port() == port).then(|| !flow.is_over(now))
    });
    match held.flatten() {
        Some(true) => return false,
        // What its client may still send shall not end up in the new flow.
        Some(false) => maps::remove_lru(F::flows(), &scratch.holder),
        // No entry, or one that uses another port by now.
        None => {}
    }
    maps::put_lru(F::returns(), &scratch.back, &scratch.entry)
}

/// If the flow now comes from elsewhere than `path` says, its replies follow it there.
#[inline(always)]
pub(crate) fn follow_path<C: Context, F: Family>(
    request: &mut Request<'_, C, F>,
    nat_port: u16,
    backend: &Backend<F::Addr>,
    path: u16,
) {
    let Ok(macs) = parse::macs(request.ctx) else {
        return;
    };
    let ifindex = request.ctx.ifindex();
    let tag = path_tag(ifindex, 0, macs.src);
    if tag == path {
        return;
    }
    let scratch = &mut *request.scratch;
    let (vip, proto) = (scratch.key.dst(), scratch.key.proto());
    scratch.back = FlowKey::new(backend.addr(), backend.port(), vip, nat_port, proto);
    maps::update_lru(F::returns(), &scratch.back, |entry| {
        entry.set_path(ifindex, 0, macs.src);
    });
    maps::update_lru(F::flows(), &scratch.key, |entry| entry.set_path(tag));
}

/// Rewrite addresses, ports and checksums to flow `to`. The TCP checksum is updated by the
/// difference (RFC 1624): one that was wrong stays wrong.
#[inline(always)]
fn translate<C: Context, F: Family>(
    ctx: &C,
    l3: usize,
    tcp: &Tcp,
    from: &FlowKey<F::Addr>,
    to: &FlowKey<F::Addr>,
) -> bool {
    let sum = F::update_checksum(tcp.checksum, from.src_ref(), to.src_ref());
    let sum = F::update_checksum(sum, from.dst_ref(), to.dst_ref());
    let sum = checksum::update16(sum, from.sport(), to.sport());
    let sum = checksum::update16(sum, from.dport(), to.dport());
    let [s0, s1] = to.sport().to_be_bytes();
    let [d0, d1] = to.dport().to_be_bytes();
    F::fix_header_checksum(
        ctx,
        l3,
        [from.src_ref(), from.dst_ref()],
        [to.src_ref(), to.dst_ref()],
    ) && packet::store(ctx, l3 + F::ADDRESSES, [to.src(), to.dst()])
        && packet::store(ctx, tcp.l4 + TcpHeader::SPORT, [s0, s1, d0, d1])
        && packet::store(ctx, tcp.l4 + TcpHeader::CHECKSUM, sum.to_be_bytes())
}

/// Client to backend.
#[inline(always)]
pub(crate) fn forward<C: Context, F: Family>(
    request: &mut Request<'_, C, F>,
    nat_port: u16,
    backend: &Backend<F::Addr>,
) -> Decision {
    if backend.ifindex() == 0 {
        return Reason::Unresolved.into();
    }
    let scratch = &mut *request.scratch;
    let (vip, proto) = (scratch.key.dst(), scratch.key.proto());
    scratch.back = FlowKey::new(vip, nat_port, backend.addr(), backend.port(), proto);
    if !translate::<C, F>(
        request.ctx,
        request.l3,
        &request.tcp,
        &scratch.key,
        &scratch.back,
    ) {
        return Reason::Truncated.into();
    }
    match rewrite_ethernet(request.ctx, backend.ifindex(), backend.mac()) {
        Ok(exit) => exit.decide(Reason::Nat, Reason::NatRedirect),
        Err(reason) => reason.into(),
    }
}

/// Backend to client: a segment to VIP:port that is no service. `None` if it is not a reply.
#[inline(always)]
pub(crate) fn reply<C: Context, F: Family>(
    ctx: &C,
    l3: usize,
    tcp: &Tcp,
    scratch: &mut Scratch<F::Addr>,
) -> Option<Decision> {
    let (src, vip, proto) = (scratch.key.src(), scratch.key.dst(), scratch.key.proto());
    let found = maps::update_lru(F::returns(), &scratch.key, |entry| {
        let (client, port) = (entry.client(), entry.client_port());
        scratch.back = FlowKey::new(vip, entry.vip_port(), client, port, proto);
        (entry.ifindex(), entry.mac())
    });
    let Some((ifindex, mac)) = found else {
        // A nat backend's segment must not reach this node's stack, which would reset it.
        scratch.service_key = ServiceKey::new(src, tcp.sport, proto);
        return maps::get(F::nat_sources(), &scratch.service_key)
            .map(|_| Reason::NatUnknownReply.into());
    };
    if !translate::<C, F>(ctx, l3, tcp, &scratch.key, &scratch.back) {
        return Some(Reason::Truncated.into());
    }
    Some(match rewrite_ethernet(ctx, ifindex, mac) {
        Ok(exit) => exit.decide(Reason::NatReply, Reason::NatReplyRedirect),
        Err(reason) => reason.into(),
    })
}

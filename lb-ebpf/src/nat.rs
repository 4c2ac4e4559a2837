//! nat: full address and port translation for backends whose node runs no xvip. The source
//! becomes VIP:allocated port, so that replies come back to the owner.

use aya_ebpf::btf_maps::LruHashMap;
use lb_common::{
    abi::{
        Address, Backend, Flow, FlowKey, NatReturn, Service, ServiceKey, events::Stage, path_tag,
    },
    checksum::Delta,
    conntrack::{FlowState, Segment},
    hash,
    headers::{IPPROTO_UDP, TcpHeader, UdpHeader},
    reason::Reason,
};

use crate::{
    conntrack::{Request, is_reset},
    decision::{Decision, Outcome, Target},
    family::Family,
    forward::rewrite_ethernet,
    maps::{self, Scratch},
    packet::{self, Context},
    parse,
    stages::Stages,
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

/// The flow as the backend's replies carry it, into `scratch.back`.
#[inline(always)]
fn set_back<F: Family>(scratch: &mut Scratch<F::Addr>, backend: &Backend<F::Addr>, nat_port: u16) {
    let (vip, proto) = (scratch.key.dst(), scratch.key.proto());
    scratch.back = FlowKey::new(backend.addr(), backend.port(), vip, nat_port, proto);
}

/// The return entry of the flow, into `scratch.entry`; the tag of its path is the result.
#[inline(always)]
fn set_entry<C: Context, F: Family>(
    ctx: &C,
    scratch: &mut Scratch<F::Addr>,
    id: u32,
) -> Result<u16, Reason> {
    let from = parse::macs(ctx)?.src;
    let (ifindex, tags) = (ctx.ifindex(), scratch.facts.tags);
    let (client, sport, dport) = (scratch.key.src(), scratch.key.sport(), scratch.key.dport());
    scratch.entry = NatReturn::new(client, sport, dport, id, ifindex, from).tagged(tags);
    Ok(path_tag(ifindex, tags, from))
}

/// Allocate a source port for the flow `scratch.flow` to backend id `id`, and write both entries: the
/// return entry only where it is free. The result is an [`Outcome`].
#[inline(always)]
pub(crate) fn commit<C: Context, F: Family>(ctx: &C, id: u32) -> u64 {
    let Some(scratch) = F::scratch() else {
        return Outcome::from(Reason::Inconsistent).encode();
    };
    match try_commit::<C, F>(ctx, scratch, id) {
        Ok(outcome) => outcome.encode(),
        Err(reason) => Outcome::from(reason).encode(),
    }
}

#[inline(always)]
fn try_commit<C: Context, F: Family>(
    ctx: &C,
    scratch: &mut Scratch<F::Addr>,
    id: u32,
) -> Result<Outcome, Reason> {
    let udp = scratch.key.proto() == IPPROTO_UDP;
    let new = udp || scratch.facts.segment().is_syn();
    let silent = udp || maps::find(F::services(), &scratch.service_key).is_none_or(Service::silent);
    let path = set_entry::<C, F>(ctx, scratch, id)?;
    scratch.flow.translate(0, path);
    let Some(nat_port) = allocate::<F>(scratch, id)? else {
        maps::remove_lru(F::half_flows(), &scratch.key);
        return if silent {
            Err(Reason::NatPortsExhausted)
        } else {
            Ok(Outcome::Reset(Reason::NatPortsReset, id))
        };
    };
    Ok(Outcome::Forward(Target {
        backend: id,
        nat_port,
        new,
        stateless: false,
    }))
}

/// A source port whose return entry is the flow's own now.
#[inline(always)]
fn allocate<F: Family>(
    scratch: &mut Scratch<F::Addr>,
    backend: u32,
) -> Result<Option<u16>, Reason> {
    for attempt in 0..TRIES {
        let port = candidate::<F>(&scratch.key, attempt);
        match F::claim(backend, u32::from(port)) {
            TAKEN => {}
            CLAIMED => return Ok(Some(port)),
            _ => return Err(Reason::ConntrackFailed),
        }
    }
    Ok(None)
}

/// Result of [`claim_port`]: the port belongs to another flow, or to a service.
const TAKEN: u64 = 0;
/// Result of [`claim_port`]: the port is the flow's own.
const CLAIMED: u64 = 1;
/// Result of [`claim_port`]: the flow's entry cannot be written.
const FAILED: u64 = 2;

/// Try to make `port` the source port of the flow in the scratch memory towards backend id
/// `backend`. A stage of its own: the verifier checks it once, not for each port that is tried.
///
/// The flow's entry is written first: another CPU that finds the return entry asks it whether the
/// port is in use.
#[inline(always)]
pub(crate) fn claim_port<F: Family>(backend: u32, port: u32) -> u64 {
    let (Some(scratch), Some(backend)) = (F::scratch(), F::backends().get(backend)) else {
        return TAKEN;
    };
    let (vip, proto) = (scratch.key.dst(), scratch.key.proto());
    scratch.service_key = ServiceKey::new(vip, port as u16, proto);
    if maps::find(F::services(), &scratch.service_key).is_some() {
        return TAKEN;
    }
    set_back::<F>(scratch, backend, port as u16);
    let path = scratch.flow.path();
    scratch.flow.translate(port as u16, path);
    if !maps::put_lru(F::half_flows(), &scratch.key, &scratch.flow) {
        return FAILED;
    }
    if claim::<F>(scratch) { CLAIMED } else { TAKEN }
}

/// Who has a return entry.
enum Owner {
    Nobody,
    /// The flow itself, from an earlier attempt.
    Own,
    /// The flow in `scratch.holder`.
    Other,
}

/// Who has the return entry `scratch.back` in `map`. One that is the flow's own gets its present
/// path.
#[inline(always)]
fn owner<F: Family, const N: usize>(
    map: &LruHashMap<FlowKey<F::Addr>, NatReturn<F::Addr>, N>,
    scratch: &mut Scratch<F::Addr>,
) -> Owner {
    let (key, holder, entry) = (&scratch.key, &mut scratch.holder, &scratch.entry);
    maps::update_lru(map, &scratch.back, |found| {
        if found.belongs_to(key.src_ref(), key.sport(), key.dport()) {
            found.set_path(entry.ifindex(), entry.tags(), entry.mac());
            return Owner::Own;
        }
        let (client, sport, dport) = (found.client(), found.client_port(), found.vip_port());
        *holder = FlowKey::new(client, sport, key.dst(), dport, key.proto());
        Owner::Other
    })
    .unwrap_or(Owner::Nobody)
}

/// Write the return entry if it is free, already this flow's own, or one of a flow that is over.
///
/// The half-open entry comes before the look at the established ones: [`promote`] writes there
/// before it takes its half-open entry away, so that one of the two is always seen.
#[inline(always)]
fn claim<F: Family>(scratch: &mut Scratch<F::Addr>) -> bool {
    let fresh = maps::put_new_lru(F::half_returns(), &scratch.back, &scratch.entry);
    let of_established = match owner::<F, _>(F::returns(), scratch) {
        Owner::Nobody => None,
        Owner::Own => Some(true),
        Owner::Other if holds::<F>(scratch) => Some(false),
        Owner::Other => {
            maps::remove_lru(F::returns(), &scratch.back);
            None
        }
    };
    if let Some(own) = of_established {
        if fresh {
            maps::remove_lru(F::half_returns(), &scratch.back);
        }
        return own;
    }
    if fresh {
        return true;
    }
    match owner::<F, _>(F::half_returns(), scratch) {
        Owner::Own => true,
        Owner::Other => {
            !holds::<F>(scratch) && maps::put_lru(F::half_returns(), &scratch.back, &scratch.entry)
        }
        // Evicted meanwhile: the next port.
        Owner::Nobody => false,
    }
}

/// Whether the flow `scratch.holder` needs the port of `scratch.back`: return entries do not end by
/// themselves, and with one backend there are no more than 64,512 ports. One that is over is
/// removed, so that what its client may still send does not end up in the new flow.
///
/// A holder whose own entry is missing was evicted. The half-open entries come first: a flow that
/// is established right now is written there before it leaves here.
#[inline(always)]
fn holds<F: Family>(scratch: &Scratch<F::Addr>) -> bool {
    needs_port(F::half_flows(), scratch) || needs_port(F::flows(), scratch)
}

/// [`holds`], by the entries in `map`.
#[inline(always)]
fn needs_port<A: Address, const N: usize>(
    map: &LruHashMap<FlowKey<A>, Flow, N>,
    scratch: &Scratch<A>,
) -> bool {
    let port = scratch.back.dport();
    let now = maps::now_seconds();
    let needs = maps::update_lru(map, &scratch.holder, |flow| {
        (flow.nat_port() == port).then(|| !flow.is_over(now))
    });
    match needs.flatten() {
        Some(true) => true,
        Some(false) => {
            maps::remove_lru(map, &scratch.holder);
            false
        }
        // No entry, or one that uses another port by now.
        None => false,
    }
}

/// Make the half-open flow's return entry an established one; false if it has been evicted and its
/// port given away since.
#[inline(always)]
pub(crate) fn promote<C: Context, F: Family>(
    ctx: &C,
    scratch: &mut Scratch<F::Addr>,
    backend: &Backend<F::Addr>,
    nat_port: u16,
) -> bool {
    let id = scratch.flow.backend();
    let Ok(path) = set_entry::<C, F>(ctx, scratch, id) else {
        return false;
    };
    set_back::<F>(scratch, backend, nat_port);
    match owner::<F, _>(F::half_returns(), scratch) {
        Owner::Own => {
            if !maps::put_new_lru(F::returns(), &scratch.back, &scratch.entry)
                && !matches!(owner::<F, _>(F::returns(), scratch), Owner::Own)
            {
                return false;
            }
            maps::remove_lru(F::half_returns(), &scratch.back);
        }
        Owner::Other => return false,
        Owner::Nobody => {
            if !matches!(owner::<F, _>(F::returns(), scratch), Owner::Own) {
                return false;
            }
        }
    }
    scratch.flow.translate(nat_port, path);
    true
}

/// Whether the flow still comes from where its entry says.
#[inline(always)]
pub(crate) fn same_path<C: Stages<F>, F: Family>(request: &Request<'_, C, F>, path: u16) -> bool {
    let Ok(macs) = parse::macs(request.ctx) else {
        return true;
    };
    path_tag(request.ctx.ifindex(), request.tags, macs.src) == path
}

/// The flow with key `scratch.key` and nat port `nat_port` now comes from elsewhere: its replies
/// follow it there.
#[inline(always)]
pub(crate) fn follow_path<C: Stages<F>, F: Family>(ctx: &C, nat_port: u32, backend: u32) -> u64 {
    let (Some(scratch), Ok(macs)) = (F::scratch(), parse::macs(ctx)) else {
        return 0;
    };
    let Some(backend) = F::backends().get(backend) else {
        return 0;
    };
    let (ifindex, tags) = (ctx.ifindex(), scratch.facts.tags);
    set_back::<F>(scratch, backend, nat_port as u16);
    maps::update_lru(F::returns(), &scratch.back, |entry| {
        entry.set_path(ifindex, tags, macs.src);
    });
    let tag = path_tag(ifindex, tags, macs.src);
    maps::update_lru(F::flows(), &scratch.key, |entry| entry.set_path(tag));
    0
}

/// Rewrite addresses, ports and checksums to flow `to`. The upper-layer checksum is updated by the
/// difference (RFC 1624): one that was wrong stays wrong.
#[inline(always)]
fn translate<C: Context, F: Family>(
    ctx: &C,
    l3: usize,
    l4: usize,
    checksum: [u8; 2],
    from: &FlowKey<F::Addr>,
    to: &FlowKey<F::Addr>,
) -> bool {
    let udp = from.proto() == IPPROTO_UDP;
    let addresses =
        F::delta(from.src_ref(), to.src_ref()).plus(F::delta(from.dst_ref(), to.dst_ref()));
    let ports = Delta::word(from.sport(), to.sport()).plus(Delta::word(from.dport(), to.dport()));
    let [s0, s1] = to.sport().to_be_bytes();
    let [d0, d1] = to.dport().to_be_bytes();
    let at = l4
        + if udp {
            UdpHeader::CHECKSUM
        } else {
            TcpHeader::CHECKSUM
        };
    F::fix_header_checksum(
        ctx,
        l3,
        [from.src_ref(), from.dst_ref()],
        [to.src_ref(), to.dst_ref()],
    ) && packet::store_addresses(ctx, l3 + F::ADDRESSES, to.src_ref(), to.dst_ref())
        && packet::store(ctx, l4 + TcpHeader::SPORT, [s0, s1, d0, d1])
        && ctx.fix_checksum(at, checksum, addresses, ports, udp)
}

/// Client to backend.
#[inline(always)]
pub(crate) fn forward<C: Stages<F>, F: Family>(
    request: &mut Request<'_, C, F>,
    nat_port: u16,
    backend: &Backend<F::Addr>,
) -> Decision {
    if backend.ifindex() == 0 {
        return Reason::Unresolved.into();
    }
    let scratch = &mut *request.scratch;
    let proto = scratch.key.proto();
    scratch
        .out
        .set_addresses(scratch.key.dst_ref(), backend.addr_ref());
    scratch.out.set_transport(nat_port, backend.port(), proto);
    let transport = &request.transport;
    if !translate::<C, F>(
        request.ctx,
        request.l3,
        transport.l4,
        transport.checksum,
        &scratch.key,
        &scratch.out,
    ) {
        return Reason::Truncated.into();
    }
    let hop = (backend.ifindex(), backend.tags());
    match rewrite_ethernet(request.ctx, request.tags, hop, backend.mac()) {
        Ok(exit) => exit.decide(Reason::Nat, Reason::NatRedirect),
        Err(reason) => reason.into(),
    }
}

/// To a VIP, but to no service: a nat backend's reply, a request that a local backend must not
/// see, or something of the kernel's (ssh to the VIP). The result is an [`Outcome`].
#[inline(always)]
pub(crate) fn unserved<C: Stages<F>, F: Family>(ctx: &C) -> u64 {
    let Some(scratch) = F::scratch() else {
        return Outcome::from(Reason::Inconsistent).encode();
    };
    scratch.stage(Stage::Reply);
    if let Some(decision) = reply::<C, F>(ctx, scratch) {
        return Outcome::Done(decision).encode();
    }
    not_a_reply::<F>(scratch).encode()
}

#[inline(always)]
fn not_a_reply<F: Family>(scratch: &mut Scratch<F::Addr>) -> Outcome {
    let (src, sport, proto) = (scratch.key.src(), scratch.key.sport(), scratch.key.proto());
    // A nat backend's segment must not reach this node's stack, which would reset it.
    scratch.service_key = ServiceKey::new(src, sport, proto);
    if maps::find(F::nat_sources(), &scratch.service_key).is_some() {
        return Reason::NatUnknownReply.into();
    }
    scratch.service_key = ServiceKey::new(scratch.key.dst(), scratch.key.dport(), proto);
    if maps::find(F::reply_ports(), &scratch.service_key).is_none() {
        return Reason::NotBalanced.into();
    }
    if proto == IPPROTO_UDP {
        return Reason::BackendPort.into();
    }
    Outcome::Reset(Reason::BackendPortReset, 0)
}

/// The return entry of what a backend sends as `reply`, and whether its flow is still half-open.
#[inline(always)]
pub(crate) fn return_entry<F: Family>(
    reply: &FlowKey<F::Addr>,
) -> Option<(&'static NatReturn<F::Addr>, bool)> {
    if let Some(entry) = maps::find_lru(F::returns(), reply) {
        return Some((entry, false));
    }
    maps::find_lru(F::half_returns(), reply).map(|entry| (entry, true))
}

/// Backend to client. `None` if it is not a reply.
#[inline(always)]
fn reply<C: Stages<F>, F: Family>(ctx: &C, scratch: &mut Scratch<F::Addr>) -> Option<Decision> {
    let (vip, proto) = (scratch.key.dst(), scratch.key.proto());
    let (entry, half) = return_entry::<F>(&scratch.key)?;
    scratch
        .out
        .set_addresses(scratch.key.dst_ref(), entry.client_ref());
    scratch
        .out
        .set_transport(entry.vip_port(), entry.client_port(), proto);
    scratch.facts.backend = entry.backend();
    scratch.service_key = ServiceKey::new(vip, entry.vip_port(), proto);
    let service = maps::find(F::services(), &scratch.service_key).map_or(0, Service::id);
    if proto != IPPROTO_UDP {
        learn::<F>(scratch, service, entry.backend(), half);
    }
    let (l3, l4) = (scratch.facts.l3(), scratch.facts.l4());
    if !translate::<C, F>(
        ctx,
        l3,
        l4,
        scratch.facts.checksum,
        &scratch.key,
        &scratch.out,
    ) {
        return Some(Reason::Truncated.into());
    }
    let hop = (entry.ifindex(), entry.tags());
    let decision = match rewrite_ethernet(ctx, scratch.facts.tags, hop, entry.mac()) {
        Ok(exit) => exit.decide(Reason::NatReply, Reason::NatReplyRedirect),
        Err(reason) => reason.into(),
    };
    Some(decision.of_service(service))
}

/// What a backend's segment says about its flow: a handshake that is answered, a request that is
/// refused, a connection that is reset.
#[inline(always)]
fn learn<F: Family>(scratch: &mut Scratch<F::Addr>, service: u32, backend: u32, half: bool) {
    let segment: Segment = scratch.facts.segment();
    if !segment.has(TcpHeader::SYN) && !is_reset(segment.flags) {
        return;
    }
    // The client's flow, from the reply that it gets.
    scratch.holder = crate::decision::reversed(&scratch.out);
    if !is_reset(segment.flags) {
        maps::update_lru(F::half_flows(), &scratch.holder, Flow::set_answered);
        return;
    }
    if !half {
        maps::update_lru(F::flows(), &scratch.holder, Flow::close);
    }
    let refused = maps::update_lru(F::half_flows(), &scratch.holder, |flow| {
        let refused = flow.state() == FlowState::Syn;
        flow.close();
        refused
    });
    if refused == Some(true) {
        maps::refused(service, backend, maps::now_seconds());
    }
}

//! ICMP errors about flows of a service (RFC 792, RFC 4443): path MTU, unreachable, time exceeded. An
//! error quotes the packet that it is about, as that packet was where the error arose. It goes to
//! whoever sent the quoted packet, translated outside and inside as that one was.

use lb_common::{
    abi::{Address as _, Backend, Method, NODE_NONE, Service, ServiceKey, events::Stage},
    checksum::Delta,
    hash,
    headers::{IPPROTO_TCP, IPPROTO_UDP, IcmpHeader, TcpHeader, UdpHeader},
    reason::Reason,
};

use crate::{
    conntrack,
    decision::Decision,
    family::Family,
    forward,
    maps::{self, Scratch, SocketMatch},
    nat,
    packet::{self, Context},
    select,
    stages::Stages,
};

/// Bytes of the quotation that are looked at: IPv4 with options, and the TCP header.
const QUOTED: usize = 60 + TcpHeader::LEN;
/// What every error quotes of the transport header at least (RFC 792).
const QUOTED_TRANSPORT: usize = 8;

/// Where the parts of an error are in the frame.
#[derive(Clone, Copy)]
struct Error {
    /// The IP header.
    l3: usize,
    /// The ICMP header.
    l4: usize,
    /// The quoted IP header.
    inner: usize,
    /// The quoted transport header.
    transport: usize,
    /// The end by the IP header.
    end: usize,
}

/// Protocol of the quoted packet in `error`, and its error with the offset of the quoted transport
/// header. `None`: no error, or one that quotes neither TCP nor UDP.
#[inline(always)]
fn quotation<C: Context, F: Family>(ctx: &C, mut error: Error) -> Option<(Error, u8)> {
    let header: IcmpHeader = packet::load(ctx, error.l4)?;
    if !F::is_icmp_error(header.kind) {
        return None;
    }
    let (proto, length) = F::quoted(ctx, error.inner)?;
    error.transport = error.inner + length;
    let whole = packet::holds(ctx, error.end) && error.transport + QUOTED_TRANSPORT <= error.end;
    (whole && matches!(proto, IPPROTO_TCP | IPPROTO_UDP)).then_some((error, proto))
}

/// Give the quoted packet other ports, and fix its checksum if that is quoted, too. `addresses` and
/// `ports` are what changed. The result is what the whole quotation adds to the sum of the message.
#[inline(always)]
fn translate_transport<C: Context>(
    ctx: &C,
    error: Error,
    proto: u8,
    new: [u8; 4],
    addresses: Delta,
    ports: Delta,
) -> Option<Delta> {
    if !packet::store(ctx, error.transport, new) {
        return None;
    }
    let udp = proto == IPPROTO_UDP;
    let at = error.transport
        + if udp {
            UdpHeader::CHECKSUM
        } else {
            TcpHeader::CHECKSUM
        };
    if at + 2 > error.end {
        return Some(ports);
    }
    let Some(old) = packet::load::<C, [u8; 2]>(ctx, at) else {
        return Some(ports);
    };
    if udp && u16::from_ne_bytes(old) == 0 {
        return Some(ports);
    }
    let sum = addresses.plus(ports).apply(old);
    packet::store(ctx, at, sum).then(|| {
        ports.plus(Delta::word(
            u16::from_be_bytes(old),
            u16::from_be_bytes(sum),
        ))
    })
}

/// Fix the checksum of the message.
#[inline(always)]
fn fix_checksum<C: Context>(ctx: &C, error: Error, change: Delta) -> Option<()> {
    let at = error.l4 + IcmpHeader::CHECKSUM;
    let old = packet::load(ctx, at)?;
    ctx.fix_checksum(at, old, Delta::ZERO, change, false)
        .then_some(())
}

/// An ICMP message to a VIP. The result is a [`Decision`].
#[inline(always)]
pub(crate) fn stage<C: Stages<F>, F: Family>(ctx: &C) -> u64 {
    let Some(scratch) = F::scratch() else {
        return Decision::from(Reason::Inconsistent).encode();
    };
    scratch.stage(Stage::Icmp);
    match relate::<C, F>(ctx, scratch) {
        Ok(decision) => decision.encode(),
        Err(reason) => Decision::from(reason).encode(),
    }
}

#[inline(always)]
fn relate<C: Stages<F>, F: Family>(
    ctx: &C,
    scratch: &mut Scratch<F::Addr>,
) -> Result<Decision, Reason> {
    let (l3, l4) = (scratch.facts.l3(), scratch.facts.l4());
    let error = Error {
        l3,
        l4,
        inner: l4 + IcmpHeader::LEN,
        transport: 0,
        end: scratch.facts.end(),
    };
    // Echo and everything else is the kernel's.
    let kind: u8 = packet::load(ctx, l4).ok_or(Reason::IcmpOther)?;
    if F::is_neighbour_discovery(kind) {
        return Err(Reason::Neighbour);
    }
    if !ctx.pull(error.inner + QUOTED) {
        return Err(Reason::IcmpOther);
    }
    let (mut error, proto) = quotation::<C, F>(ctx, error).ok_or(Reason::IcmpOther)?;
    error.transport = scratch.forget::<0x3ff>(error.transport);
    read_flow::<C, F>(ctx, scratch, error, proto).ok_or(Reason::IcmpOther)?;
    if !scratch.key.dst_ref().same(scratch.holder.dst_ref())
        || scratch.holder.src_ref().same(scratch.holder.dst_ref())
    {
        return Err(Reason::IcmpOther);
    }
    if !F::valid_source(scratch.holder.src_ref()) {
        return Err(Reason::BadSource);
    }
    scratch.service_key = ServiceKey::new(scratch.key.dst(), scratch.key.dport(), proto);
    match maps::find(F::services(), &scratch.service_key) {
        Some(service) => about_reply::<C, F>(ctx, scratch, error, service)
            .map(|decision| decision.of_service(service.id())),
        None => about_request::<C, F>(ctx, scratch, error),
    }
}

/// From the quoted packet: the flow in the other direction into `key`, and the addresses of the error
/// itself into `holder`.
#[inline(always)]
fn read_flow<C: Context, F: Family>(
    ctx: &C,
    scratch: &mut Scratch<F::Addr>,
    error: Error,
    proto: u8,
) -> Option<()> {
    scratch
        .holder
        .set_addresses(scratch.key.src_ref(), scratch.key.dst_ref());
    let [s0, s1, d0, d1] = packet::load::<C, [u8; 4]>(ctx, error.transport)?;
    let dst: F::Addr = packet::load(ctx, error.inner + F::ADDRESSES + size_of::<F::Addr>())?;
    let src: F::Addr = packet::load(ctx, error.inner + F::ADDRESSES)?;
    scratch.key.set_addresses(&dst, &src);
    scratch.key.set_transport(
        u16::from_be_bytes([d0, d1]),
        u16::from_be_bytes([s0, s1]),
        proto,
    );
    Some(())
}

/// The quoted packet went from the VIP to a client: to the backend of that flow.
#[inline(always)]
fn about_reply<C: Stages<F>, F: Family>(
    ctx: &C,
    scratch: &mut Scratch<F::Addr>,
    error: Error,
    service: &'static Service,
) -> Result<Decision, Reason> {
    let local = service.local_backend();
    let origin = conntrack::origin::<C, F>(ctx, scratch.holder.src_ref());
    if local != 0 && (origin != NODE_NONE || held_here::<C, F>(ctx, scratch, service)) {
        return to_local::<C, F>(ctx, scratch, error, service);
    }
    let (id, nat_port) = target::<F>(scratch, service);
    let backend = select::backend::<F>(id, service).ok_or(Reason::IcmpOther)?;
    scratch.facts.backend = id;
    match backend.method() {
        Some(Method::Local) => to_local::<C, F>(ctx, scratch, error, service),
        Some(Method::Dsr) => {
            // A peer that sent it here has no use for it itself.
            if origin != NODE_NONE && backend.node() == origin {
                return Err(Reason::IcmpOther);
            }
            if origin != NODE_NONE && !F::hop(ctx, error.l3) {
                return Err(Reason::TtlExpired);
            }
            let exit = forward::try_dsr(ctx, scratch.facts.tags, backend)?;
            Ok(exit.decide(Reason::IcmpDsr, Reason::IcmpDsrRedirect))
        }
        Some(Method::Nat) if nat_port != 0 => {
            to_nat::<C, F>(ctx, scratch, error, backend, nat_port)
        }
        Some(Method::Nat) | None => Err(Reason::IcmpOther),
    }
}

/// Whether this node's kernel holds the connection.
#[inline(always)]
fn held_here<C: Context, F: Family>(
    ctx: &C,
    scratch: &Scratch<F::Addr>,
    service: &Service,
) -> bool {
    scratch.key.proto() == IPPROTO_TCP
        && matches!(
            maps::socket::<C, F>(ctx, &scratch.key, service.local_port()),
            SocketMatch::Connection | SocketMatch::TimeWait | SocketMatch::Request
        )
}

/// Backend id and nat port of the flow: by its entry, or as the table says.
#[inline(always)]
fn target<F: Family>(scratch: &Scratch<F::Addr>, service: &Service) -> (u32, u16) {
    if let Some(flow) = maps::find_lru(F::flows(), &scratch.key) {
        return (flow.backend(), flow.nat_port());
    }
    if let Some(flow) = maps::find_lru(F::half_flows(), &scratch.key) {
        return (flow.backend(), flow.nat_port());
    }
    let flow_hash = hash::flow_hash(scratch.key.src_ref(), scratch.key.sport());
    (maps::maglev(service.table(), hash::slot(flow_hash)), 0)
}

/// To this node's own stack, which knows the flow by the backend's port.
#[inline(always)]
fn to_local<C: Context, F: Family>(
    ctx: &C,
    scratch: &mut Scratch<F::Addr>,
    error: Error,
    service: &Service,
) -> Result<Decision, Reason> {
    scratch.facts.backend = service.local_backend();
    let (old, new) = (scratch.key.dport(), service.local_port());
    if old != new {
        let [s0, s1] = new.to_be_bytes();
        let [d0, d1] = scratch.key.sport().to_be_bytes();
        let ports = Delta::word(old, new);
        let proto = scratch.key.proto();
        translate_transport(ctx, error, proto, [s0, s1, d0, d1], Delta::ZERO, ports)
            .and_then(|change| fix_checksum(ctx, error, change))
            .ok_or(Reason::Truncated)?;
    }
    Ok(Reason::IcmpLocal.into())
}

/// To a nat backend, which sent the quoted packet to VIP:nat port.
#[inline(always)]
fn to_nat<C: Context, F: Family>(
    ctx: &C,
    scratch: &mut Scratch<F::Addr>,
    error: Error,
    backend: &Backend<F::Addr>,
    nat_port: u16,
) -> Result<Decision, Reason> {
    if backend.ifindex() == 0 {
        return Err(Reason::Unresolved);
    }
    let proto = scratch.key.proto();
    scratch
        .out
        .set_addresses(backend.addr_ref(), scratch.key.dst_ref());
    scratch.out.set_transport(backend.port(), nat_port, proto);
    scratch
        .back
        .set_addresses(scratch.key.dst_ref(), backend.addr_ref());
    translate::<C, F>(ctx, scratch, error).ok_or(Reason::Truncated)?;
    let hop = (backend.ifindex(), backend.tags());
    let exit = forward::rewrite_ethernet(ctx, scratch.facts.tags, hop, backend.mac())?;
    Ok(exit.decide(Reason::IcmpNat, Reason::IcmpNatRedirect))
}

/// The quoted packet went from the VIP to a nat backend: to the flow's client.
#[inline(always)]
fn about_request<C: Context, F: Family>(
    ctx: &C,
    scratch: &mut Scratch<F::Addr>,
    error: Error,
) -> Result<Decision, Reason> {
    let (entry, _) = nat::return_entry::<F>(&scratch.key).ok_or(Reason::IcmpOther)?;
    let proto = scratch.key.proto();
    scratch.facts.backend = entry.backend();
    scratch
        .out
        .set_addresses(entry.client_ref(), scratch.key.dst_ref());
    scratch
        .out
        .set_transport(entry.client_port(), entry.vip_port(), proto);
    scratch
        .back
        .set_addresses(scratch.key.dst_ref(), entry.client_ref());
    translate::<C, F>(ctx, scratch, error).ok_or(Reason::Truncated)?;
    let hop = (entry.ifindex(), entry.tags());
    let exit = forward::rewrite_ethernet(ctx, scratch.facts.tags, hop, entry.mac())?;
    let decision = exit.decide(Reason::IcmpNatReply, Reason::IcmpNatReplyRedirect);
    // For the trace: the flow as its client sends it.
    scratch.key = scratch.out;
    scratch.out.set_transport(0, 0, 0);
    scratch.service_key = ServiceKey::new(scratch.key.dst(), entry.vip_port(), proto);
    let service = maps::find(F::services(), &scratch.service_key);
    Ok(decision.of_service(service.map_or(0, Service::id)))
}

/// Rewrite the error from `holder` to `back` outside, and the quoted packet from the reverse of `key`
/// to `out`.
#[inline(always)]
fn translate<C: Context, F: Family>(
    ctx: &C,
    scratch: &Scratch<F::Addr>,
    error: Error,
) -> Option<()> {
    let (key, out) = (&scratch.key, &scratch.out);
    let (before, after) = (&scratch.holder, &scratch.back);
    let ports = Delta::word(key.dport(), out.sport()).plus(Delta::word(key.sport(), out.dport()));
    let addresses =
        F::delta(key.dst_ref(), out.src_ref()).plus(F::delta(key.src_ref(), out.dst_ref()));
    let outer = F::delta(before.src_ref(), after.src_ref())
        .plus(F::delta(before.dst_ref(), after.dst_ref()));
    let [s0, s1] = out.sport().to_be_bytes();
    let [d0, d1] = out.dport().to_be_bytes();
    let proto = out.proto();
    let change = translate_transport(ctx, error, proto, [s0, s1, d0, d1], addresses, ports)?
        .plus(F::in_icmp_sum(addresses.plus(outer)));
    let rewritten = F::fix_header_checksum(
        ctx,
        error.inner,
        [key.dst_ref(), key.src_ref()],
        [out.src_ref(), out.dst_ref()],
    ) && packet::store_addresses(
        ctx,
        error.inner + F::ADDRESSES,
        out.src_ref(),
        out.dst_ref(),
    ) && F::fix_header_checksum(
        ctx,
        error.l3,
        [before.src_ref(), before.dst_ref()],
        [after.src_ref(), after.dst_ref()],
    ) && packet::store_addresses(
        ctx,
        error.l3 + F::ADDRESSES,
        after.src_ref(),
        after.dst_ref(),
    );
    if rewritten {
        fix_checksum(ctx, error, change)
    } else {
        None
    }
}

/// An error that this node's kernel sends about a packet to its own backend: the client knows the
/// flow by the VIP's port. Whether it was one.
#[inline(always)]
pub(crate) fn outgoing<C: Context, F: Family>(ctx: &C, l3: usize, l4: usize, end: usize) -> bool {
    let error = Error {
        l3,
        l4,
        inner: l4 + IcmpHeader::LEN,
        transport: 0,
        end,
    };
    let kind = packet::load::<C, u8>(ctx, l4);
    if !kind.is_some_and(F::is_icmp_error) || !ctx.pull(error.inner + QUOTED) {
        return false;
    }
    let Some((error, proto)) = quotation::<C, F>(ctx, error) else {
        return false;
    };
    translate_outgoing::<C, F>(ctx, error, proto).is_some()
}

#[inline(always)]
fn translate_outgoing<C: Context, F: Family>(ctx: &C, error: Error, proto: u8) -> Option<()> {
    let [s0, s1, d0, d1] = packet::load::<C, [u8; 4]>(ctx, error.transport)?;
    let vip: F::Addr = packet::load(ctx, error.inner + F::ADDRESSES + size_of::<F::Addr>())?;
    let port = u16::from_be_bytes([d0, d1]);
    let reply = maps::get(F::reply_ports(), &ServiceKey::new(vip, port, proto))?;
    if reply.port() == port {
        return None;
    }
    let [d0, d1] = reply.port().to_be_bytes();
    let ports = Delta::word(port, reply.port());
    let change = translate_transport(ctx, error, proto, [s0, s1, d0, d1], Delta::ZERO, ports)?;
    fix_checksum(ctx, error, change)
}

//! Trace: tells whoever listens what became of a packet. Only packets to a VIP that is marked as
//! traced come here, so it costs nothing when nobody listens.

use lb_common::abi::{
    FlowKey, Mac,
    events::{TraceEvent, TraceFilter},
};

use crate::{
    decision::Decision,
    family::Family,
    maps::{self, Scratch},
    parse,
    stages::Stages,
};

/// Send a record of the packet that the scratch memory describes. The result means nothing.
#[inline(always)]
pub(crate) fn trace<C: Stages<F>, F: Family>(ctx: &C, decision: Decision) -> u64 {
    let (Some(scratch), Some(filter)) = (F::scratch(), maps::trace_filter()) else {
        return 0;
    };
    let key = scratch.key;
    let replies = scratch.out.proto() != 0 && !wants::<F>(filter, &key);
    let wanted = if replies {
        // The reply of a nat backend is a client's, too.
        wants::<F>(filter, &crate::decision::reversed(&scratch.out))
    } else {
        wants::<F>(filter, &key)
    };
    if wanted && let Ok(macs) = parse::macs(ctx) {
        let record = record::<C, F>(ctx, scratch, decision, macs.dst);
        maps::send_record(scratch.record.write(record));
    }
    0
}

/// Whether `flow`, as its client sends it, passes the filter.
#[inline(always)]
fn wants<F: Family>(filter: &TraceFilter, flow: &FlowKey<F::Addr>) -> bool {
    if filter.family != 0 && filter.family != F::NUMBER {
        return false;
    }
    let port = |wanted: u16, is: u16| wanted == 0 || wanted == is;
    let [a, b] = lb_common::abi::halves(&F::record(flow.src_ref()));
    let [client_a, client_b] = lb_common::abi::halves(&filter.client);
    let [mask_a, mask_b] = lb_common::abi::halves(&filter.mask);
    (a & mask_a) ^ client_a | (b & mask_b) ^ client_b == 0
        && port(filter.client_port, flow.sport())
        && port(filter.vip_port, flow.dport())
}

#[inline(always)]
fn record<C: Stages<F>, F: Family>(
    ctx: &C,
    scratch: &Scratch<F::Addr>,
    decision: Decision,
    new_mac: Mac,
) -> TraceEvent {
    let (key, out, facts) = (&scratch.key, &scratch.out, &scratch.facts);
    TraceEvent {
        time_ns: maps::now_ns(),
        src: F::record(key.src_ref()),
        dst: F::record(key.dst_ref()),
        new_src: F::record(out.src_ref()),
        new_dst: F::record(out.dst_ref()),
        seq: facts.seq,
        ack: facts.ack,
        reason: decision.reason(),
        service: decision.service(),
        backend: facts.backend,
        ifindex: ctx.ifindex(),
        new_ifindex: decision.ifindex(),
        length: ctx.length() as u32,
        sport: key.sport(),
        dport: key.dport(),
        new_sport: out.sport(),
        new_dport: out.dport(),
        new_mac,
        tcp_flags: facts.flags,
        proto: key.proto(),
        family: F::NUMBER,
        stage: facts.stage,
        pad0: 0,
        pad1: 0,
    }
}

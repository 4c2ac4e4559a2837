//! Answers that the data plane gives in a backend's stead: RST. The form is RFC 9293's (section
//! 3.10.7.1): a segment with ACK gets SEQ = SEG.ACK; another one SEQ = 0 and an ACK of all that it
//! occupies. No options; addresses, ports and MACs swapped; VLAN tags kept; the tail cut off.

use lb_common::{
    abi::BackendCounters,
    checksum,
    conntrack::Segment,
    headers::{EthAddresses, IPPROTO_TCP, TcpHeader},
    reason::Reason,
};

use crate::{
    conntrack::is_reset,
    decision::Decision,
    family::Family,
    maps::{self, Scratch},
    packet::{self, CHUNK, Context},
    parse,
    stages::Stages,
};

/// Parts of [`CHUNK`] bytes whose checksum is verified: longer segments get no answer.
const CHUNKS: usize = 19;

/// Answer the segment that the scratch memory describes with RST, for the reason with number
/// `reason`, and count it for backend id `backend` (0: none). The result is a [`Decision`].
#[inline(always)]
pub(crate) fn reset<C: Stages<F>, F: Family>(ctx: &C, reason: u32, backend: u32) -> u64 {
    let Some(scratch) = F::scratch() else {
        return Decision::from(Reason::Inconsistent).encode();
    };
    scratch.facts.backend = backend;
    let decision = match answer::<C, F>(ctx, scratch, reason) {
        Ok(reason) => {
            if backend != 0 {
                maps::count_backend(backend, BackendCounters::reset);
            }
            Decision::from(reason)
        }
        Err(reason) => Decision::from(reason),
    };
    decision.encode()
}

/// What is to be said, and what is said instead to a segment that gets no answer.
#[inline(always)]
fn wanted(reason: u32) -> (Reason, Reason) {
    if reason == Reason::FlowReset.index() {
        (Reason::FlowReset, Reason::ResetConfirmed)
    } else if reason == Reason::BackendPortReset.index() {
        (Reason::BackendPortReset, Reason::BackendPort)
    } else if reason == Reason::NatPortsReset.index() {
        (Reason::NatPortsReset, Reason::NatPortsExhausted)
    } else {
        (Reason::NoBackendReset, Reason::NoBackend)
    }
}

#[inline(always)]
fn answer<C: Stages<F>, F: Family>(
    ctx: &C,
    scratch: &mut Scratch<F::Addr>,
    reason: u32,
) -> Result<Reason, Reason> {
    let (reason, silent) = wanted(reason);
    let segment = scratch.facts.segment();
    if is_reset(segment.flags) {
        if matches!(reason, Reason::FlowReset) {
            // The client has heard: a new connection begins afresh.
            maps::remove_lru(F::flows(), &scratch.key);
            maps::remove_lru(F::half_flows(), &scratch.key);
        }
        return Err(silent);
    }
    let (l3, l4) = (scratch.facts.l3(), scratch.facts.l4());
    let at = l4 + TcpHeader::CHECKSUM;
    let partial = ctx.checksum_is_partial(at, scratch.facts.checksum);
    if !partial && !intact::<C, F>(ctx, scratch, l3, l4) {
        return Err(Reason::BadChecksum);
    }
    let start = l3 + F::HEADER_LEN;
    // A checksum that the device computes begins where the old header did.
    if partial && l4 != start {
        return Err(Reason::AnswerFailed);
    }
    let macs = parse::macs(ctx)?;
    let swapped = EthAddresses {
        dst: macs.src,
        src: macs.dst,
    };
    let header = header::<F>(scratch, segment, partial);
    let (src, dst) = (scratch.key.dst_ref(), scratch.key.src_ref());
    let written = packet::store(ctx, 0, swapped)
        && F::write_header(ctx, l3, TcpHeader::LEN as u16, IPPROTO_TCP, src, dst)
        && packet::store(ctx, start, header)
        && ctx.trim(start + TcpHeader::LEN);
    if written {
        scratch.out = crate::decision::reversed(&scratch.key);
        Ok(reason)
    } else {
        Err(Reason::AnswerFailed)
    }
}

/// The RST that answers `segment`. With a `partial` checksum the field holds the sum of the
/// pseudo-header, and the device adds the rest.
#[inline(always)]
fn header<F: Family>(scratch: &Scratch<F::Addr>, segment: Segment, partial: bool) -> TcpHeader {
    let (seq, ack, flags) = if segment.has(TcpHeader::ACK) {
        (segment.ack, 0, TcpHeader::RST)
    } else {
        (0, segment.next_seq(), TcpHeader::RST | TcpHeader::ACK)
    };
    let key = &scratch.key;
    let mut header = TcpHeader {
        sport: key.dport().to_be_bytes(),
        dport: key.sport().to_be_bytes(),
        seq: seq.to_be_bytes(),
        ack: ack.to_be_bytes(),
        offset: (TcpHeader::LEN as u8 / 4) << 4,
        flags,
        window: [0; 2],
        checksum: [0; 2],
        urgent: [0; 2],
    };
    let pseudo = F::pseudo_sum(key.src_ref(), key.dst_ref(), TcpHeader::LEN as u32);
    header.checksum = if partial {
        checksum::fold32(pseudo).to_ne_bytes()
    } else {
        (!checksum::fold32(pseudo + u64::from(header.native_sum()))).to_ne_bytes()
    };
    header
}

/// What [`sum_part`] returns where there is nothing to sum.
const NO_SUM: u64 = u64::MAX;

/// [`maps::add_part`] as a stage, that the verifier checks once and not for each part.
#[inline(always)]
pub(crate) fn sum_part<C: Context, F: Family>(ctx: &C, at: u32, length: u32, seed: u32) -> u64 {
    let Some(scratch) = F::scratch() else {
        return NO_SUM;
    };
    maps::add_part(ctx, at as usize, &mut scratch.chunk, length as usize, seed)
        .map_or(NO_SUM, u64::from)
}

/// One's complement sum of `seed` and the `length` bytes at `at`, or [`NO_SUM`]. A stage, so that what
/// follows it is verified once and not for each number of parts.
#[inline(always)]
pub(crate) fn sum<C: Stages<F>, F: Family>(ctx: &C, at: u32, length: u32, seed: u32) -> u64 {
    const PART: u32 = CHUNK as u32;
    let (mut at, mut left, mut sum) = (at, length, seed);
    for _ in 0..CHUNKS {
        if left == 0 {
            break;
        }
        let part = if left < PART { left } else { PART };
        let next = ctx.sum_part(at, part, sum);
        if next == NO_SUM {
            return NO_SUM;
        }
        sum = next as u32;
        at = at.wrapping_add(part);
        left -= part;
    }
    u64::from(sum)
}

/// Whether the checksums of the IP header and the segment are right: nobody answers garbage.
#[inline(always)]
fn intact<C: Stages<F>, F: Family>(
    ctx: &C,
    scratch: &mut Scratch<F::Addr>,
    l3: usize,
    l4: usize,
) -> bool {
    if !F::header_intact(ctx, l3, l4, &mut scratch.chunk) {
        return false;
    }
    let length = scratch.facts.end().wrapping_sub(l4) & 0xf_ffff;
    if length > CHUNKS * CHUNK {
        return false;
    }
    let pseudo = F::pseudo_sum(scratch.key.src_ref(), scratch.key.dst_ref(), length as u32);
    let seed = u32::from(checksum::fold32(pseudo));
    let sum = ctx.sum(l4 as u32, length as u32, seed);
    sum != NO_SUM && checksum::fold32(sum) == u16::MAX
}

//! What the pipeline decides, in one word: global functions of a BPF program return integers.

use lb_common::{
    abi::FlowKey,
    reason::{Reason, Verdict},
};

/// What becomes of a packet: reason, verdict, service, and the interface for a redirection.
///
/// Bits: 0-7 reason, 8-9 verdict, 10-15 see below, 16-31 service id, 32-63 interface index.
#[derive(Clone, Copy)]
pub(crate) struct Decision(u64);

// Whatever a stage returns is one of these words, so that all flags are below what may hold any
// number.
const SELECT: u64 = 1 << 10;
const COMMIT: u64 = 1 << 11;
const NEW: u64 = 1 << 12;
const STATELESS: u64 = 1 << 13;
const RESET: u64 = 1 << 14;
const TARGET: u64 = 1 << 15;

const fn verdict_bits(verdict: Verdict) -> u64 {
    match verdict {
        Verdict::Pass => 0,
        Verdict::Drop => 1,
        Verdict::Tx => 2,
        Verdict::Redirect => 3,
    }
}

impl Decision {
    /// `reason`, with the interface for those that redirect (0 for the others).
    #[inline(always)]
    pub(crate) const fn new(reason: Reason, ifindex: u32) -> Self {
        Self(reason.index() as u64 | verdict_bits(reason.verdict()) << 8 | (ifindex as u64) << 32)
    }

    /// The same decision about a packet of service id `service`.
    #[inline(always)]
    pub(crate) const fn of_service(self, service: u32) -> Self {
        Self(self.0 | ((service & 0xffff) as u64) << 16)
    }

    /// The same decision about the first packet of a connection, if it is `new`.
    #[inline(always)]
    pub(crate) const fn new_connection(self, new: bool) -> Self {
        if new { Self(self.0 | NEW) } else { self }
    }

    /// Number of the reason.
    #[inline(always)]
    pub(crate) const fn reason(self) -> u32 {
        (self.0 & 0xff) as u32
    }

    /// What to do.
    #[inline(always)]
    pub(crate) const fn verdict(self) -> Verdict {
        match self.0 >> 8 & 3 {
            0 => Verdict::Pass,
            1 => Verdict::Drop,
            2 => Verdict::Tx,
            _ => Verdict::Redirect,
        }
    }

    /// Whether a connection begins.
    #[inline(always)]
    pub(crate) const fn is_new_connection(self) -> bool {
        self.0 & NEW != 0
    }

    /// Service id.
    #[inline(always)]
    pub(crate) const fn service(self) -> u32 {
        (self.0 >> 16 & 0xffff) as u32
    }

    /// Where to, for [`Verdict::Redirect`].
    #[inline(always)]
    pub(crate) const fn ifindex(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// As an integer.
    #[inline(always)]
    pub(crate) const fn encode(self) -> u64 {
        self.0
    }

    /// The inverse of [`Decision::encode`].
    #[inline(always)]
    pub(crate) const fn decode(value: u64) -> Self {
        Self(value)
    }
}

impl From<Reason> for Decision {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self::new(reason, 0)
    }
}

/// The backend that a packet goes to.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    /// Backend id, below 2^16.
    pub(crate) backend: u32,
    /// Source port towards a nat backend, host order; 0 for the other methods.
    pub(crate) nat_port: u16,
    /// The packet begins a connection.
    pub(crate) new: bool,
    /// The flow has no entry, because there are too many new ones.
    pub(crate) stateless: bool,
}

/// What a stage says: forward the packet, or what becomes of it otherwise.
#[derive(Clone, Copy)]
pub(crate) enum Outcome {
    /// To a backend.
    Forward(Target),
    /// Answer with RST, for this reason, in the stead of the backend with this id (0: of none).
    Reset(Reason, u32),
    /// What becomes of the packet is decided.
    Done(Decision),
}

/// An [`Outcome`] that a stage returned.
pub(crate) enum Returned {
    /// See [`Outcome::Forward`].
    Forward(Target),
    /// See [`Outcome::Reset`]; the reason's number.
    Reset(u32, u32),
    /// See [`Outcome::Done`].
    Done(Decision),
}

impl Outcome {
    /// As an integer: bits 32-47 backend id, 48-63 nat port of a target.
    #[inline(always)]
    pub(crate) fn encode(self) -> u64 {
        match self {
            Self::Done(decision) => decision.encode(),
            Self::Reset(reason, backend) => {
                RESET | u64::from(reason.index()) | u64::from(backend as u16) << 32
            }
            Self::Forward(target) => {
                let new = if target.new { NEW } else { 0 };
                let stateless = if target.stateless { STATELESS } else { 0 };
                TARGET
                    | new
                    | stateless
                    | u64::from(target.backend as u16) << 32
                    | u64::from(target.nat_port) << 48
            }
        }
    }

    /// The inverse of [`Outcome::encode`].
    #[inline(always)]
    pub(crate) fn decode(value: u64) -> Returned {
        if value & RESET != 0 {
            return Returned::Reset((value & 0xff) as u32, u32::from((value >> 32) as u16));
        }
        if value & TARGET == 0 {
            return Returned::Done(Decision::decode(value));
        }
        Returned::Forward(Target {
            backend: u32::from((value >> 32) as u16),
            nat_port: (value >> 48) as u16,
            new: value & NEW != 0,
            stateless: value & STATELESS != 0,
        })
    }
}

/// What a stage says that leaves the rest to the next one, in place of an [`Outcome`].
#[derive(Clone, Copy)]
pub(crate) enum Next {
    /// Select a backend, but not the one with this id (0: any).
    Select(u32),
    /// nat commits `scratch.flow`, to the backend with this id.
    Commit(u32),
}

impl Next {
    /// As an integer: bits 32-47 backend id.
    #[inline(always)]
    pub(crate) fn encode(self) -> u64 {
        let (flag, id) = match self {
            Self::Select(failed) => (SELECT, failed),
            Self::Commit(id) => (COMMIT, id),
        };
        flag | u64::from(id as u16) << 32
    }

    /// The id, if `value` is a [`Next::Select`].
    #[inline(always)]
    pub(crate) fn selects(value: u64) -> Option<u32> {
        (value & SELECT != 0).then_some(u32::from((value >> 32) as u16))
    }

    /// The id, if `value` is a [`Next::Commit`].
    #[inline(always)]
    pub(crate) fn commits(value: u64) -> Option<u32> {
        (value & COMMIT != 0).then_some(u32::from((value >> 32) as u16))
    }
}

impl From<Reason> for Outcome {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self::Done(reason.into())
    }
}

/// A flow with source and destination swapped.
#[inline(always)]
pub(crate) fn reversed<A: Copy>(key: &FlowKey<A>) -> FlowKey<A> {
    FlowKey::new(key.dst(), key.dport(), key.src(), key.sport(), key.proto())
}

//! Which sources may open flows to a service, and how fast.

use core::mem::{align_of, size_of};

/// Key data of `sources4`/`sources6` (LPM tries, after the prefix length) and key of
/// `source_rates4`/`source_rates6`: a source of a service.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceKey<A> {
    pub(super) service: [u8; 4],
    pub(super) addr: A,
}

impl<A: Copy> SourceKey<A> {
    /// Bits of the key before the address: a rule's prefix length is this and the address's own.
    pub const PREFIX: u32 = 32;

    /// Source `addr` of service id `service`.
    #[inline(always)]
    pub const fn new(service: u32, addr: A) -> Self {
        Self {
            service: service.to_be_bytes(),
            addr,
        }
    }

    /// Service id.
    pub const fn service(&self) -> u32 {
        u32::from_be_bytes(self.service)
    }

    /// Source address or prefix.
    pub const fn addr(&self) -> A {
        self.addr
    }
}

/// Value of `sources4`/`sources6`: what happens to new flows from a prefix; the longest one that
/// fits decides.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceRule {
    pub(super) action: u32,
}

impl SourceRule {
    /// New flows are taken.
    pub const ALLOW: Self = Self { action: 1 };
    /// New flows are refused.
    pub const DENY: Self = Self { action: 2 };

    /// Whether new flows are taken.
    #[inline(always)]
    pub const fn allows(&self) -> bool {
        self.action == Self::ALLOW.action
    }
}

/// Sources with a rule, per family.
pub const MAX_SOURCE_RULES: u32 = 16_384;
/// Sources whose rate is remembered, per family.
pub const MAX_SOURCE_RATES: u32 = 65_536;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Value of `source_rates4`/`source_rates6`: the generic cell rate algorithm (ITU-T I.371) in one
/// word, the theoretical arrival time of the next new flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceRate {
    pub(super) arrival_ns: u64,
}

impl SourceRate {
    /// A source that has not been seen.
    pub const NEW: Self = Self { arrival_ns: 0 };

    /// Whether the source may open one more flow at `now_ns` (coarse monotonic clock), at `rate` per
    /// second (not 0) and `burst` at once.
    #[inline(always)]
    pub const fn take(&mut self, now_ns: u64, rate: u32, burst: u32) -> bool {
        let rate = if rate == 0 { 1 } else { rate };
        let interval = NANOS_PER_SECOND / rate as u64;
        let tolerance = interval.saturating_mul(burst.saturating_sub(1) as u64);
        let arrival = if self.arrival_ns > now_ns {
            self.arrival_ns
        } else {
            now_ns
        };
        if arrival - now_ns > tolerance {
            return false;
        }
        self.arrival_ns = arrival + interval;
        true
    }
}

type V4 = [u8; 4];
type V6 = [u8; 16];

const _: () = assert!(size_of::<SourceKey<V4>>() == 8 && align_of::<SourceKey<V4>>() == 1);
const _: () = assert!(size_of::<SourceKey<V6>>() == 20 && align_of::<SourceKey<V6>>() == 1);
const _: () = assert!(size_of::<SourceRule>() == 4 && size_of::<SourceRate>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    /// A burst at once, then one per interval, and no credit beyond the burst after a pause.
    #[test]
    fn burst_then_rate() {
        let mut source = SourceRate::NEW;
        let mut now = 1_000_000_000_000;
        let taken = (0..10).filter(|_| source.take(now, 10, 3)).count();
        assert_eq!(taken, 3);
        now += 100_000_000;
        assert!(source.take(now, 10, 3) && !source.take(now, 10, 3));
        now += 3_600_000_000_000;
        let taken = (0..10).filter(|_| source.take(now, 10, 3)).count();
        assert_eq!(taken, 3);
    }
}

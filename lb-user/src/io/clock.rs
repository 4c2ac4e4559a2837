//! The clocks.

use nix::time::{ClockId, clock_gettime};

use crate::core::time::Timestamp;

/// Now on `CLOCK_BOOTTIME`.
///
/// The call cannot fail for this clock on Linux (since 2.6.39); if it did, time would stand
/// still at zero, which lets every lease lapse.
pub fn now() -> Timestamp {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Timestamp::default(), |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        let nanos = u64::try_from(time.tv_nsec()).unwrap_or(0);
        Timestamp::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    })
}

/// Seconds of `CLOCK_MONOTONIC_COARSE`, the clock of the data plane's conntrack entries.
pub fn monotonic_seconds() -> u32 {
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)
        .map_or(0, |time| u32::try_from(time.tv_sec()).unwrap_or(u32::MAX))
}

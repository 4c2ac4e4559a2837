//! The arithmetic of VRRP's timers, in nanoseconds: in centiseconds the skew of a 10 ms interval
//! would be 0 for every priority, and the election by skew would be gone.

use std::time::Duration;

use crate::config::model::{AdvertInterval, VrrpVersion};

/// Adverts that may be missed in a row before the Active router counts as gone; also the
/// length of a lease in intervals.
pub const INTERVALS_TO_LIVE: u32 = 3;

/// `Skew_Time` of a router with `priority`.
///
/// Version 3 (RFC 9568 section 6.1): `(256 - priority) * Active_Adver_Interval / 256`. Version 2
/// (RFC 3768 section 6.1): `(256 - priority) / 256` seconds, whatever the interval.
pub fn skew(version: VrrpVersion, priority: u8, active_interval: AdvertInterval) -> Duration {
    let scale = match version {
        VrrpVersion::V2 => Duration::from_secs(1),
        VrrpVersion::V3 => active_interval.duration(),
    };
    scale * (256 - u32::from(priority)) / 256
}

/// `Active_Down_Interval` (`Master_Down_Interval`): three intervals and the skew.
pub fn down_interval(
    version: VrrpVersion,
    priority: u8,
    active_interval: AdvertInterval,
) -> Duration {
    lease(active_interval) + skew(version, priority, active_interval)
}

/// How long an advert lets its sender own the addresses: it ends before the quickest Backup
/// that heard the same advert can take over.
pub fn lease(own_interval: AdvertInterval) -> Duration {
    own_interval.duration() * INTERVALS_TO_LIVE
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn centis(centis: u16) -> AdvertInterval {
        AdvertInterval::from_centis(centis).unwrap()
    }

    /// A 10 ms interval keeps a skew that differs by priority, to the nanosecond.
    #[test]
    fn skew_of_short_intervals_is_not_rounded_away() {
        let skew = |priority| skew(VrrpVersion::V3, priority, centis(1)).as_nanos();
        assert_eq!(skew(255), 39_062);
        assert_eq!(skew(200), 2_187_500);
        assert_eq!(skew(100), 6_093_750);
        assert_eq!(skew(1), 9_960_937);
    }

    /// Version 2 skews in seconds, version 3 in shares of the interval.
    #[test]
    fn skew_scale_differs_by_version() {
        let of = |version| down_interval(version, 128, centis(400)).as_millis();
        assert_eq!(of(VrrpVersion::V2), 12_500);
        assert_eq!(of(VrrpVersion::V3), 14_000);
    }

    /// A lease ends before any Backup's down interval, at every priority.
    #[test]
    fn lease_ends_before_the_quickest_takeover() {
        for priority in 1..=255 {
            for interval in [centis(1), centis(100), centis(4095)] {
                assert!(lease(interval) < down_interval(VrrpVersion::V3, priority, interval));
            }
        }
    }
}

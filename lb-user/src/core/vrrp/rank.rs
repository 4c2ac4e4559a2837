//! Who of several Backups is first, where their skews are too close together to say so.
//!
//! The skew of a router with a lower priority is longer, so that the best Backup takes over and the
//! others hear it in time (RFC 9568 section 6.1). Between neighbouring priorities that is 1/256 of
//! an interval: 39 microseconds with adverts every 10 ms, and nothing between equal priorities. No
//! machine hears an advert that fast. So a Backup that knows of better ones leaves each of them
//! [`STEP`] to be heard.
//!
//! The wait never goes beyond one interval in all, which is where the skew of the lowest priority
//! ends: a takeover is no later than the protocol lets any router be. A router that knows of nobody
//! waits for its skew alone, as all others do.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// Time that one Backup leaves to the next better one: to wake up on a busy machine, send its
/// advert, and be heard.
pub const STEP: Duration = Duration::from_millis(4);

/// Routers that are remembered: adverts of a group may come from anywhere on the link.
const MAX_KNOWN: usize = 16;

/// Priorities of the other routers, as they were heard last.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    priorities: BTreeMap<IpAddr, u8>,
}

impl Known {
    /// `from` was heard with `priority`, which is not the 0 of one that resigns.
    pub(super) fn hear(&mut self, from: IpAddr, priority: u8) {
        if self.priorities.len() < MAX_KNOWN || self.priorities.contains_key(&from) {
            self.priorities.insert(from, priority);
        }
    }

    /// Those that go before a router with this priority and address, without `gone`: the Active
    /// router that a takeover is from.
    fn better(&self, own: (u8, Option<IpAddr>), gone: Option<IpAddr>) -> Vec<(u8, IpAddr)> {
        let (priority, address) = own;
        let goes_before = |&(theirs, from): &(u8, IpAddr)| {
            // RFC 9568 section 6.4.3: of equal priorities the higher address.
            theirs > priority || theirs == priority && address.is_none_or(|own| from > own)
        };
        let all = self.priorities.iter();
        let mut better: Vec<_> = all
            .filter(|(from, _)| Some(**from) != gone)
            .map(|(from, theirs)| (*theirs, *from))
            .filter(goes_before)
            .collect();
        better.sort_unstable_by(|a, b| b.cmp(a));
        better
    }

    /// The skew of the router `own`, long enough for every better one to be heard first, but no
    /// longer than `limit`. `skew` is what a priority alone makes.
    pub(super) fn skew(
        &self,
        own: (u8, Option<IpAddr>),
        gone: Option<IpAddr>,
        limit: Duration,
        skew: impl Fn(u8) -> Duration,
    ) -> Duration {
        let plain = skew(own.0);
        let better = self.better(own, gone);
        let turn = better
            .iter()
            .fold(None, |before: Option<Duration>, (p, _)| {
                let earliest = before.map_or(Duration::ZERO, |before| before + STEP);
                Some(skew(*p).max(earliest))
            });
        match turn {
            Some(turn) => plain.max((turn + STEP).min(limit)),
            None => plain,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVAL: Duration = Duration::from_millis(10);

    fn ip(host: u8) -> IpAddr {
        IpAddr::from([10, 0, 2, host])
    }

    fn plain(priority: u8) -> Duration {
        INTERVAL * (256 - u32::from(priority)) / 256
    }

    fn skew_of(own: (u8, u8), others: &[(u8, u8)], gone: Option<u8>) -> Duration {
        let mut known = Known::default();
        for (priority, host) in others {
            known.hear(ip(*host), *priority);
        }
        let own = (own.0, Some(ip(own.1)));
        known.skew(own, gone.map(ip), INTERVAL, plain)
    }

    /// Who knows of nobody better waits for its skew.
    #[test]
    fn the_best_does_not_wait() {
        assert_eq!(skew_of((100, 2), &[], None), plain(100));
        assert_eq!(skew_of((100, 2), &[(99, 1), (98, 3)], None), plain(100));
        assert_eq!(skew_of((100, 2), &[(100, 1)], None), plain(100));
    }

    /// Neighbours, equals and third ones each leave a step to the one before.
    #[test]
    fn each_leaves_a_step_to_the_one_before() {
        assert_eq!(skew_of((199, 2), &[(200, 1)], None), plain(200) + STEP);
        assert_eq!(skew_of((200, 2), &[(200, 3)], None), plain(200) + STEP);
        let third = skew_of((230, 3), &[(250, 1), (240, 2)], None);
        assert_eq!(third, plain(250) + STEP + STEP);
        // Where the skews part them anyway nothing is added.
        assert_eq!(skew_of((50, 2), &[(250, 1)], None), plain(50));
    }

    /// The Active router that is gone is waited for by nobody.
    #[test]
    fn nobody_waits_for_the_one_that_is_gone() {
        assert_eq!(skew_of((199, 2), &[(200, 1)], Some(1)), plain(199));
        let second = skew_of((198, 3), &[(200, 1), (199, 2)], Some(1));
        assert_eq!(second, plain(199) + STEP);
    }

    proptest! {
        /// Never sooner than the skew, never later than one interval, and of two routers that know
        /// each other the better one is first by a step wherever there is room for it.
        #[test]
        fn the_wait_is_bounded_and_keeps_the_order(
            priorities in proptest::collection::vec(1u8..=254, 2..6),
        ) {
            let routers: Vec<(u8, u8)> = priorities.iter().copied().zip(1..).collect();
            let skew = |own: (u8, u8)| {
                let others: Vec<_> = routers.iter().copied().filter(|r| *r != own).collect();
                skew_of(own, &others, None)
            };
            for &own in &routers {
                prop_assert!(skew(own) >= plain(own.0));
                prop_assert!(skew(own) <= INTERVAL);
                for &other in routers.iter().filter(|other| **other > own) {
                    let (first, second) = (skew(other), skew(own));
                    prop_assert!(second >= (first + STEP).min(INTERVAL), "{own:?} {other:?}");
                }
            }
        }
    }
}

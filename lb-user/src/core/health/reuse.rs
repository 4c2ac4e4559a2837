//! When a check may go over the connection of the one before. A fresh connection proves more: that
//! the backend still takes connections. So only a settled backend is asked over a kept one,
//! and a fresh one comes at least every [`MAX_USES`] checks and every [`MAX_AGE`].

use std::time::Duration;

use crate::core::time::Timestamp;

/// Checks over one connection after the one that opened it.
const MAX_USES: u32 = 10;

/// Age up to which a connection is used again.
const MAX_AGE: Duration = Duration::from_mins(1);

/// The connection of one backend's checks, as far as the schedule knows it: whether it is still
/// there is the prober's to find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reuse {
    /// When the last check began that was to open one, and how many have used it since. `None`:
    /// the next one opens one.
    opened: Option<(Timestamp, u32)>,
}

impl Reuse {
    /// None yet.
    pub(super) const NONE: Self = Self { opened: None };

    /// Counts a check that starts `now`. Whether it may use the connection of the one before;
    /// `settled`: nothing speaks against it.
    pub(super) fn next(&mut self, now: Timestamp, settled: bool) -> bool {
        let known = self.opened.filter(|(at, uses)| {
            settled && *uses < MAX_USES && now.saturating_since(*at) < MAX_AGE
        });
        self.opened = match known {
            Some((at, uses)) => Some((at, uses + 1)),
            None => Some((now, 0)),
        };
        known.is_some()
    }

    /// The next check opens a connection.
    pub(super) const fn forget(&mut self) {
        self.opened = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default() + Duration::from_secs(seconds)
    }

    /// Proves that every eleventh check opens a connection, and one after a minute.
    #[test]
    fn connections_are_opened_now_and_then() {
        let mut reuse = Reuse::NONE;
        let reused: Vec<bool> = (0..23).map(|step| reuse.next(at(2 * step), true)).collect();
        let fresh: Vec<usize> = (0..23).filter(|step| !reused[*step]).collect();
        assert_eq!(fresh, [0, 11, 22]);
        let mut slow = Reuse::NONE;
        let reused: Vec<bool> = (0..7).map(|step| slow.next(at(20 * step), true)).collect();
        assert_eq!(reused, [false, true, true, false, true, true, false]);
    }

    /// Proves that doubt opens a connection, and that what is opened in doubt may be used when it
    /// is over.
    #[test]
    fn doubt_opens_a_connection() {
        let mut reuse = Reuse::NONE;
        let steps = [true, true, false, false, true, true];
        let reused = steps.map(|settled| reuse.next(at(1), settled));
        assert_eq!(reused, [false, true, false, false, true, true]);
        reuse.forget();
        assert!(!reuse.next(at(1), true));
    }
}

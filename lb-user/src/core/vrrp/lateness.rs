//! How late a router's timers were served: what a busy machine, a frozen process or a slow call did
//! to it, in numbers that an operator sees before the others take over.

use std::time::Duration;

use crate::core::time::Timestamp;

/// Time between reports, so that a busy machine does not fill its log.
const REPORT_GAP: Duration = Duration::from_mins(1);

/// Timers of one instance that were served late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lateness {
    timers: u64,
    worst: Duration,
    /// The last timer that was counted: it is seen again until it is reset.
    counted: Option<Timestamp>,
    /// Not reported yet.
    news: Late,
    reported: Option<Timestamp>,
}

/// What a report says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Late {
    /// Timers since the last report.
    pub timers: u64,
    /// How late the worst of them was.
    pub worst: Duration,
}

impl Lateness {
    /// Timers that were served more than half an interval late.
    pub const fn timers(&self) -> u64 {
        self.timers
    }

    /// How late the worst of them was.
    pub const fn worst(&self) -> Duration {
        self.worst
    }

    /// A timer that is due at `due` is looked at `now`. It counts if that is more than half of
    /// `interval` too late, and once however often it is looked at.
    pub(super) fn note(&mut self, now: Timestamp, due: Timestamp, interval: Duration) {
        let by = now.saturating_since(due);
        if by <= interval / 2 || self.counted == Some(due) {
            return;
        }
        self.counted = Some(due);
        self.timers += 1;
        self.worst = self.worst.max(by);
        self.news.timers += 1;
        self.news.worst = self.news.worst.max(by);
    }

    /// When there is something to report.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let gap = |at| at + REPORT_GAP;
        (self.news.timers > 0).then(|| self.reported.map_or(Timestamp::from_nanos(0), gap))
    }

    /// What is to be reported `now`: the first time at once, then what a minute brings.
    pub(super) fn take_news(&mut self, now: Timestamp) -> Option<Late> {
        let soon = self.reported.is_some_and(|at| now < at + REPORT_GAP);
        if self.news.timers == 0 || soon {
            return None;
        }
        self.reported = Some(now);
        Some(std::mem::take(&mut self.news))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(10);

    fn at(micros: u64) -> Timestamp {
        Timestamp::from_nanos(micros * 1_000)
    }

    /// Half an interval is tolerated, more counts, and a timer counts once.
    #[test]
    fn a_late_timer_counts_once() {
        let mut lateness = Lateness::default();
        lateness.note(at(15_000), at(10_000), INTERVAL);
        lateness.note(at(9_000), at(10_000), INTERVAL);
        assert_eq!(lateness, Lateness::default());
        lateness.note(at(15_001), at(10_000), INTERVAL);
        lateness.note(at(30_000), at(10_000), INTERVAL);
        assert_eq!(lateness.timers(), 1);
        assert_eq!(lateness.worst(), Duration::from_micros(5_001));
        lateness.note(at(50_000), at(20_000), INTERVAL);
        assert_eq!(lateness.timers(), 2);
        assert_eq!(lateness.worst(), Duration::from_millis(30));
    }

    /// The first is told at once, those of the next minute together.
    #[test]
    fn reports_are_a_minute_apart() {
        let mut lateness = Lateness::default();
        assert_eq!(lateness.take_news(at(0)), None);
        let mut now = at(1_000_000);
        lateness.note(now, at(980_000), INTERVAL);
        let worst = Duration::from_millis(20);
        assert_eq!(lateness.take_news(now), Some(Late { timers: 1, worst }));
        for _ in 0..5 {
            now += Duration::from_secs(1);
            lateness.note(now, now - INTERVAL, INTERVAL);
            assert_eq!(lateness.take_news(now), None);
        }
        now += REPORT_GAP;
        let worst = INTERVAL;
        assert_eq!(lateness.take_news(now), Some(Late { timers: 5, worst }));
        assert_eq!(lateness.take_news(now + REPORT_GAP), None);
    }
}

//! When a part of the kernel's state is read again.
//!
//! Readings are answered later than they are asked for. What this controller wrote in between is
//! missing in the answer: taken for the truth, it would look as if somebody had undone it. So
//! there is one reading under way at a time, and an answer that a write has overtaken is thrown
//! away and asked for anew.

use std::time::Duration;

use crate::core::time::Timestamp;

/// Readings of one part of the kernel's state.
#[derive(Debug)]
pub(super) struct Reading {
    /// Readings are asked for no closer than this: changes come in storms.
    gap: Duration,
    due: Option<Timestamp>,
    /// When the last one was asked for.
    asked: Option<Timestamp>,
    under_way: bool,
    overtaken: bool,
}

impl Reading {
    /// One that is due `now`.
    pub(super) const fn new(now: Timestamp, gap: Duration) -> Self {
        Self {
            gap,
            due: Some(now),
            asked: None,
            under_way: false,
            overtaken: false,
        }
    }

    /// Something changed: it is to be read again.
    pub(super) fn want(&mut self, now: Timestamp) {
        let at = self.asked.map_or(now, |asked| now.max(asked + self.gap));
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Read it again even if nobody said that something changed. An answer that is missing for
    /// `patience` is not waited for any more.
    pub(super) fn audit(&mut self, now: Timestamp, patience: Duration) {
        let lost = self.asked.is_some_and(|asked| asked + patience <= now);
        if self.under_way && lost {
            self.under_way = false;
        }
        if !self.under_way {
            self.due = Some(now);
        }
    }

    /// This controller writes to what is read.
    pub(super) const fn overtake(&mut self) {
        self.overtaken = true;
    }

    /// Whether it is to be asked for now.
    pub(super) fn take_due(&mut self, now: Timestamp) -> bool {
        let take = self.poll_timeout().is_some_and(|at| at <= now);
        if take {
            self.due = None;
            self.asked = Some(now);
            self.under_way = true;
            self.overtaken = false;
        }
        take
    }

    /// When [`Self::take_due`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Timestamp> {
        self.due.filter(|_| !self.under_way)
    }

    /// The answer came: whether it tells the truth. If not, it is asked for again.
    pub(super) fn accept(&mut self, now: Timestamp) -> bool {
        self.under_way = false;
        if self.overtaken {
            self.want(now);
        }
        !self.overtaken
    }

    /// There is no answer, or a write failed: read at `at`.
    pub(super) const fn fail(&mut self, at: Timestamp) {
        self.under_way = false;
        self.due = Some(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAP: Duration = Duration::from_millis(100);

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_nanos(millis * 1_000_000)
    }

    /// A storm of changes costs one reading per gap, and the last change is read.
    #[test]
    fn storms_are_read_once_per_gap() {
        let mut reading = Reading::new(at(0), GAP);
        let mut asked = vec![];
        for now in 0..=350 {
            if now <= 250 {
                reading.want(at(now));
            }
            if reading.take_due(at(now)) {
                asked.push(now);
                assert!(reading.accept(at(now)));
            }
        }
        assert_eq!(asked, [0, 100, 200, 300]);
    }

    /// An answer that a write has overtaken is thrown away and asked for again.
    #[test]
    fn overtaken_answers_are_asked_for_again() {
        let mut reading = Reading::new(at(0), Duration::ZERO);
        assert!(reading.take_due(at(0)));
        reading.overtake();
        assert!(!reading.accept(at(1)));
        assert_eq!(reading.poll_timeout(), Some(at(1)));
        assert!(reading.take_due(at(1)));
        assert!(reading.accept(at(2)));
        assert_eq!(reading.poll_timeout(), None);
    }

    /// A write before the question does not matter to the answer.
    #[test]
    fn earlier_writes_do_not_count() {
        let mut reading = Reading::new(at(0), Duration::ZERO);
        reading.overtake();
        assert!(reading.take_due(at(0)));
        assert!(reading.accept(at(1)));
    }

    /// A change while a reading is under way is read after it.
    #[test]
    fn changes_meanwhile_are_read_afterwards() {
        let mut reading = Reading::new(at(0), GAP);
        assert!(reading.take_due(at(0)));
        reading.want(at(10));
        assert_eq!(reading.poll_timeout(), None);
        assert!(reading.accept(at(20)));
        assert_eq!(reading.poll_timeout(), Some(at(100)));
    }

    /// The audit neither doubles a reading under way nor waits for ever for a lost answer.
    #[test]
    fn audits_outlive_lost_answers() {
        let mut reading = Reading::new(at(0), GAP);
        assert!(reading.take_due(at(0)));
        reading.audit(at(4_999), Duration::from_secs(5));
        assert!(!reading.take_due(at(4_999)));
        reading.audit(at(5_000), Duration::from_secs(5));
        assert!(reading.take_due(at(5_000)));
    }
}

//! When an Active router announces its addresses (gratuitous ARP, unsolicited NA).
//!
//! A neighbour ignores a second announcement within its locktime (1 s by default on Linux), and
//! a first one may be lost or meet a switch port that is not forwarding yet. So there is one at
//! once and repeats more than a second apart.

use std::time::Duration;

use crate::core::time::Timestamp;

/// Repeats after becoming Active.
const REPEATS: [Duration; 3] = [
    Duration::from_millis(1_100),
    Duration::from_millis(2_200),
    Duration::from_secs(5),
];
/// Repeat after another router's claim was answered: past the locktime of who believed it.
const AFTER_CONFLICT: Duration = Duration::from_millis(1_100);
/// Two announcements are never closer than this.
const MIN_GAP: Duration = Duration::from_secs(1);

/// Pending announcements of one Active period.
#[derive(Debug)]
pub(super) struct Announcements {
    last: Timestamp,
    due: Vec<Timestamp>,
    after_conflict: Option<Timestamp>,
}

impl Announcements {
    /// The first announcement goes out `now`, by the caller.
    pub(super) fn start(now: Timestamp) -> Self {
        Self {
            last: now,
            due: REPEATS.iter().map(|&delay| now + delay).collect(),
            after_conflict: None,
        }
    }

    /// Another router claimed the addresses: whether to announce now. Either way it is repeated
    /// after the last of such claims.
    pub(super) fn conflict(&mut self, now: Timestamp) -> bool {
        self.after_conflict = Some(now + AFTER_CONFLICT);
        self.allowed(now)
    }

    /// Whether an announcement is due and allowed. All that are due become one.
    pub(super) fn take_due(&mut self, now: Timestamp) -> bool {
        self.poll_timeout().is_some_and(|at| at <= now) && {
            self.due.retain(|&at| at > now);
            self.after_conflict = self.after_conflict.filter(|&at| at > now);
            self.allowed(now)
        }
    }

    /// When [`Self::take_due`] has something to do: no sooner than the gap allows.
    pub(super) fn poll_timeout(&self) -> Option<Timestamp> {
        let next = self.due.iter().chain(&self.after_conflict).min()?;
        Some((*next).max(self.last + MIN_GAP))
    }

    fn allowed(&mut self, now: Timestamp) -> bool {
        let allowed = now >= self.last + MIN_GAP;
        if allowed {
            self.last = now;
        }
        allowed
    }
}

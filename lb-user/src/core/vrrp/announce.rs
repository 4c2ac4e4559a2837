//! When an Active router announces its addresses (gratuitous ARP, unsolicited NA).
//!
//! A neighbour may ignore a second announcement within its locktime (1 s on Linux before 4.13), and
//! a first one may be lost or meet a switch port that is not forwarding yet. So there is one at
//! once, repeats more than a second apart, and a refresh now and then.
//!
//! Another router's claim is answered at once, however recent the last announcement: of two that
//! become Active within milliseconds the lesser one may have announced last. Its neighbours would
//! stay with it until the next repeat.

use std::time::Duration;

use crate::{config::model::AnnounceConfig, core::time::Timestamp};

/// Repeats are so far apart, past the locktime of who believed another.
const REPEAT_GAP: Duration = Duration::from_millis(1_100);
/// Repeats are never closer than this to what was announced before.
const MIN_GAP: Duration = Duration::from_secs(1);
/// Claims that are answered at once in a row; then one per [`MIN_GAP`].
const ANSWERS: u32 = 4;
/// After an answer once more: the other announces after its advert, so maybe after the answer.
const FOLLOW_UP: Duration = Duration::from_millis(150);

/// Pending announcements of one Active period.
#[derive(Debug)]
pub(super) struct Announcements {
    plan: AnnounceConfig,
    last: Timestamp,
    due: Vec<Timestamp>,
    refresh_at: Option<Timestamp>,
    after_conflict: Option<Timestamp>,
    /// Not held back by the gap.
    follow_up: Option<Timestamp>,
    /// Until when answers are paid for in advance.
    answered_until: Timestamp,
}

impl Announcements {
    /// The first announcement goes out `now`, by the caller.
    pub(super) fn start(now: Timestamp, plan: AnnounceConfig) -> Self {
        let last_repeat = (!plan.delay.is_zero()).then(|| now + plan.delay);
        Self {
            last: now,
            due: repeats(now, plan.repeat).chain(last_repeat).collect(),
            refresh_at: refresh_after(now, plan),
            after_conflict: None,
            follow_up: None,
            answered_until: now,
            plan,
        }
    }

    /// The configuration changed: repeats that are due stay.
    pub(super) fn replan(&mut self, now: Timestamp, plan: AnnounceConfig) {
        if plan != self.plan {
            self.refresh_at = refresh_after(now, plan);
            self.plan = plan;
        }
    }

    /// Another router claimed the addresses: whether to announce now. Either way it is repeated
    /// after the last of such claims.
    pub(super) fn conflict(&mut self, now: Timestamp) -> bool {
        self.after_conflict = Some(now + REPEAT_GAP);
        let answer = self.answered_until <= now + MIN_GAP * (ANSWERS - 1);
        if answer {
            self.answered_until = self.answered_until.max(now) + MIN_GAP;
            self.follow_up.get_or_insert(now + FOLLOW_UP);
            self.last = now;
        }
        answer
    }

    /// Whether an announcement is due and allowed. All that are due become one.
    pub(super) fn take_due(&mut self, now: Timestamp) -> bool {
        let is_due = self.poll_timeout().is_some_and(|at| at <= now);
        if is_due {
            self.last = now;
            self.due.retain(|&at| at > now);
            self.after_conflict = self.after_conflict.filter(|&at| at > now);
            self.follow_up = self.follow_up.filter(|&at| at > now);
            if self.refresh_at.is_some_and(|at| at <= now) {
                let more = self.plan.refresh_repeat.saturating_sub(1);
                self.due.extend(repeats(now, more));
                self.refresh_at = refresh_after(now, self.plan);
            }
        }
        is_due
    }

    /// When [`Self::take_due`] has something to do: but for a follow-up no sooner than the gap
    /// allows.
    pub(super) fn poll_timeout(&self) -> Option<Timestamp> {
        let repeats = self.due.iter().chain(&self.after_conflict);
        let next = repeats.chain(&self.refresh_at).min();
        let next = next.map(|&next| next.max(self.last + MIN_GAP));
        next.into_iter().chain(self.follow_up).min()
    }
}

fn repeats(now: Timestamp, count: u8) -> impl Iterator<Item = Timestamp> {
    (1..=u32::from(count)).map(move |number| now + REPEAT_GAP * number)
}

fn refresh_after(now: Timestamp, plan: AnnounceConfig) -> Option<Timestamp> {
    (!plan.refresh.is_zero()).then(|| now + plan.refresh)
}

//! One backend's checks: when the next one starts, which results count, and how many of a kind
//! came in a row. The group rule, which needs all backends, is in the parent module.

use std::time::Duration;

use lb_common::abi::BackendState;

use super::{
    Seen,
    jitter::Jitter,
    outcome::{Class, ProbeOutcome},
    reuse::Reuse,
};
use crate::{config::model::StartState, core::time::Timestamp};

/// Results of one kind in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Run(u32);

impl Run {
    /// Counts a result that belongs to the run or ends it.
    const fn count(&mut self, belongs: bool) {
        self.0 = if belongs { self.0.saturating_add(1) } else { 0 };
    }
}

/// Dead results in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DeadRun {
    count: u32,
    /// Start of the first probe of the run.
    since: Timestamp,
    /// Whether any of them proves the backend's death.
    proven: bool,
}

/// When something happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The next probe starts at `at`.
    Waiting { at: Timestamp, repeat: bool },
    /// A probe is under way.
    Flying(Flight),
}

/// A probe under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flight {
    started: Timestamp,
    give_up: Timestamp,
    /// It repeats one whose result was discarded.
    repeat: bool,
    /// Hull of the times that the controller was late in meanwhile.
    late: Option<(Timestamp, Timestamp)>,
}

/// A probe that starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) serial: u64,
    /// It may go over the connection of the one before.
    pub(super) reuse: bool,
}

/// A finished probe that counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) started: Timestamp,
    pub(super) finished: Timestamp,
}

/// What the runs call for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The state stays.
    Stay,
    /// `rise` passes in a row.
    Up { count: u32 },
    /// UP, and `fall` checks in a row did not pass.
    Unready { count: u32 },
    /// DOWN, and `rise` checks in a row were answered, though not all of them passed.
    Answers { count: u32 },
    /// `fall` Dead results in a row.
    Down { count: u32 },
}

/// Checks of one backend.
#[derive(Clone, Debug)]
pub(super) struct Checker {
    state: BackendState,
    phase: Phase,
    serial: u64,
    /// `start = "probe"` and nothing passed yet: one result decides.
    unproven: bool,
    passes: Run,
    failures: Run,
    answers: Run,
    dead: Option<DeadRun>,
    seen: Option<Seen>,
    held: bool,
    /// The operator has taken it out: its silence proves nothing about the others'.
    aside: bool,
    discarded: u64,
    /// Start of the last probe.
    last_start: Option<Timestamp>,
    /// The next probe comes as soon as this time has passed since the last one's start.
    hastened: Option<Duration>,
    /// The connection that probes may share.
    reuse: Reuse,
    /// Spreads the probes. Its own, so that no other backend's checks change their times.
    jitter: Jitter,
}

impl Checker {
    /// A backend whose first probe starts at `at`.
    pub(super) const fn new(start: StartState, at: Timestamp, jitter: Jitter) -> Self {
        Self {
            state: match start {
                StartState::Down | StartState::Probe => BackendState::Down,
                StartState::Up => BackendState::Up,
            },
            phase: Phase::Waiting { at, repeat: false },
            serial: 0,
            unproven: matches!(start, StartState::Probe),
            passes: Run(0),
            failures: Run(0),
            answers: Run(0),
            dead: None,
            seen: None,
            held: false,
            aside: false,
            discarded: 0,
            last_start: None,
            hastened: None,
            reuse: Reuse::NONE,
            jitter,
        }
    }

    /// `step` give or take up to `percent` % of it.
    pub(super) fn vary(&mut self, step: Duration, percent: u8) -> Duration {
        self.jitter.vary(step, percent)
    }

    /// The same backend under another configuration: state and results stay, unless it is asked
    /// something else now (`anew`). What comes of a probe under way does not count, nor does any
    /// other result with a serial number up to `serial`. The next probe starts at `latest` at the
    /// latest, at once if one is under way or `anew`.
    pub(super) fn carry(
        &self,
        serial: u64,
        anew: bool,
        (now, latest): (Timestamp, Timestamp),
    ) -> Self {
        let at = match &self.phase {
            Phase::Waiting { at, .. } if !anew => (*at).min(latest),
            Phase::Waiting { .. } | Phase::Flying(_) => now,
        };
        let mut carried = self.clone();
        carried.serial = serial;
        carried.reuse.forget();
        carried.phase = Phase::Waiting { at, repeat: false };
        if anew {
            carried.passes = Run(0);
            carried.failures = Run(0);
            carried.answers = Run(0);
            carried.dead = None;
            carried.held = false;
        }
        carried
    }

    /// The next probe has a serial number above `serial`.
    pub(super) const fn number_from(&mut self, serial: u64) {
        self.serial = serial;
    }

    /// State of the backend.
    pub(super) const fn state(&self) -> BackendState {
        self.state
    }

    /// What was seen last.
    pub(super) const fn seen(&self) -> Option<&Seen> {
        self.seen.as_ref()
    }

    /// Whether the group rule keeps the backend from DOWN.
    pub(super) const fn held(&self) -> bool {
        self.held
    }

    /// Whether the group rule leaves it out.
    pub(super) const fn is_aside(&self) -> bool {
        self.aside
    }

    /// Has the group rule leave it out, or not. Whoever comes back is judged as all others are.
    pub(super) const fn put_aside(&mut self, aside: bool) {
        self.aside = aside;
    }

    /// Results that were discarded because the controller was late.
    pub(super) const fn discarded(&self) -> u64 {
        self.discarded
    }

    /// Enters `state` with or without the group rule's hold.
    pub(super) const fn enter(&mut self, state: BackendState, held: bool) {
        self.state = state;
        self.held = held;
    }

    /// Ends the group rule's hold: the silence that it excused counts no more, but for its last
    /// result, which began at `since`.
    pub(super) fn release(&mut self, since: Timestamp) {
        self.held = false;
        self.dead = self.dead.map(|run| DeadRun {
            count: 1,
            since,
            ..run
        });
    }

    /// Takes over a state that is known from before: no first result decides any more. Unless it
    /// is DOWN, which is what one knows nothing of is in any case.
    pub(super) const fn adopt(&mut self, state: BackendState) {
        self.state = state;
        self.unproven &= matches!(state, BackendState::Down);
    }

    /// Next time that something is due.
    pub(super) const fn due(&self) -> Timestamp {
        match &self.phase {
            Phase::Waiting { at, .. } => *at,
            Phase::Flying(flight) => flight.give_up,
        }
    }

    /// Start of a run of Dead results without proof.
    pub(super) fn silent_since(&self) -> Option<Timestamp> {
        let dead = self.dead.filter(|run| !run.proven && !self.aside);
        dead.map(|run| run.since)
    }

    /// Starts a probe if one is due. `keep_alive`: it may go over the connection of the one before
    /// if that one passed, as it should, and nothing else speaks against it.
    pub(super) fn start(
        &mut self,
        now: Timestamp,
        limit: Duration,
        keep_alive: bool,
    ) -> Option<Start> {
        let Phase::Waiting { at, repeat } = self.phase else {
            return None;
        };
        if at > now {
            return None;
        }
        self.serial += 1;
        self.last_start = Some(now);
        self.phase = Phase::Flying(Flight {
            started: now,
            give_up: now + limit,
            repeat,
            late: None,
        });
        let settled = keep_alive && !repeat && self.is_settled();
        Some(Start {
            serial: self.serial,
            reuse: self.reuse.next(now, settled),
        })
    }

    /// Whether it is UP, and the last result says so, too.
    fn is_settled(&self) -> bool {
        let passed = |seen: &Seen| seen.outcome.class() == Class::Pass;
        self.state == BackendState::Up && self.seen.as_ref().is_some_and(passed)
    }

    /// Has the next probe start as soon as none is under way, `gap` after the last one's start at
    /// the earliest, over a connection of its own.
    pub(super) fn hasten(&mut self, now: Timestamp, gap: Duration) {
        self.reuse.forget();
        match self.phase {
            Phase::Waiting { at, repeat } => {
                let soon = self.last_start.map_or(now, |start| now.max(start + gap));
                let at = at.min(soon);
                self.phase = Phase::Waiting { at, repeat };
            }
            Phase::Flying(_) => self.hastened = Some(gap),
        }
    }

    /// Time that a probe under way has taken, if it is to be given up.
    pub(super) fn overdue(&self, now: Timestamp) -> Option<Span> {
        match &self.phase {
            Phase::Flying(flight) if flight.give_up <= now => Some(Span {
                started: flight.started,
                finished: now,
            }),
            _ => None,
        }
    }

    /// Whether the probe with number `serial` is under way.
    pub(super) fn expects(&self, serial: u64) -> bool {
        matches!(self.phase, Phase::Flying(_)) && self.serial == serial
    }

    /// Notes that the controller was late from `from` to `to`, if a probe is under way.
    pub(super) fn note_late(&mut self, from: Timestamp, to: Timestamp) {
        if let Phase::Flying(flight) = &mut self.phase {
            let (first, last) = flight.late.unwrap_or((from, to));
            flight.late = Some((first.min(from), last.max(to)));
        }
    }

    /// Discards the result of the probe under way if the controller was late within `span`, and
    /// has the probe repeated at once. Whether it did.
    ///
    /// A repeat's result counts all the same unless a time limit decided: lateness cannot make
    /// up an answer or a refusal, and a controller that is late every time must still see a
    /// dead backend.
    pub(super) fn discard(&mut self, span: Span, outcome: &ProbeOutcome, now: Timestamp) -> bool {
        let Phase::Flying(flight) = self.phase else {
            return false;
        };
        let late = flight
            .late
            .is_some_and(|(from, to)| span.started <= to && span.finished >= from);
        let discard = late && (outcome.timed_out() || !flight.repeat);
        if discard {
            self.discarded += 1;
            self.phase = Phase::Waiting {
                at: now,
                repeat: true,
            };
        }
        discard
    }

    /// Counts a result.
    pub(super) fn count(&mut self, span: Span, outcome: ProbeOutcome) {
        let class = outcome.class();
        if class != Class::Void {
            self.passes.count(class == Class::Pass);
            self.failures.count(class != Class::Pass);
            self.answers.count(class != Class::Dead);
            self.count_dead(span, class, &outcome);
        }
        let same = self
            .seen
            .take()
            .filter(|seen| seen.outcome.class() == class);
        self.seen = Some(Seen {
            outcome,
            at: span.finished,
            since: same.as_ref().map_or(span.finished, |seen| seen.since),
            count: same.map_or(1, |seen| seen.count.saturating_add(1)),
        });
    }

    /// What the results so far call for.
    pub(super) fn wanted(&self, rise: u32, fall: u32) -> Wanted {
        let rise = if self.unproven { 1 } else { rise };
        let is = |state| self.state == state;
        if let Some(run) = self.dead.filter(|run| run.count >= fall) {
            return if is(BackendState::Down) {
                Wanted::Stay
            } else {
                Wanted::Down { count: run.count }
            };
        }
        let (passes, failures, answers) = (self.passes.0, self.failures.0, self.answers.0);
        match self.state {
            BackendState::Draining | BackendState::Down if passes >= rise => {
                Wanted::Up { count: passes }
            }
            BackendState::Up if failures >= fall => Wanted::Unready { count: failures },
            BackendState::Down if answers >= rise => Wanted::Answers { count: answers },
            BackendState::Up | BackendState::Draining | BackendState::Down => Wanted::Stay,
        }
    }

    /// When the probe under way started.
    pub(super) const fn started(&self) -> Option<Timestamp> {
        match &self.phase {
            Phase::Flying(flight) => Some(flight.started),
            Phase::Waiting { .. } => None,
        }
    }

    /// Ends the probe under way; the next one starts at `at`, not before `now`.
    pub(super) fn wait_until(&mut self, at: Timestamp, now: Timestamp) {
        self.unproven &= self.passes.0 == 0;
        self.phase = Phase::Waiting {
            at: at.max(now),
            repeat: false,
        };
        if let Some(gap) = self.hastened.take() {
            self.hasten(now, gap);
        }
    }

    /// Whether the last result calls for another state than the present one, so that the next
    /// probe should come soon. A held backend is settled: only the others can change its state.
    pub(super) fn in_doubt(&self) -> bool {
        let Some(seen) = &self.seen else {
            return false;
        };
        match (seen.outcome.class(), self.state) {
            (Class::Pass, BackendState::Up)
            | (Class::NotReady, BackendState::Draining)
            | (Class::Dead, BackendState::Down) => false,
            (Class::Void, _) => true,
            (Class::Pass | Class::NotReady | Class::Dead, _) => !self.held,
        }
    }

    fn count_dead(&mut self, span: Span, class: Class, outcome: &ProbeOutcome) {
        let run = self.dead.take().unwrap_or(DeadRun {
            count: 0,
            since: span.started,
            proven: false,
        });
        self.dead = (class == Class::Dead).then_some(DeadRun {
            count: run.count.saturating_add(1),
            since: run.since,
            proven: run.proven || outcome.proves_death(),
        });
    }
}

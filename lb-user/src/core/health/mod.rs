//! Health of a service's backends: when each one is probed, which results count, and what state
//! they add up to.
//!
//! # States
//!
//! Every result has a [`Class`]. `rise` and `fall` count results in a row.
//!
//! | state    | becomes  | when                                                               |
//! |----------|----------|--------------------------------------------------------------------|
//! | any      | UP       | `rise` results are [`Class::Pass`]                                 |
//! | any      | DOWN     | `fall` results are [`Class::Dead`], and the group rule does not object |
//! | UP       | DRAINING | `fall` results are not `Pass`, some of them [`Class::NotReady`]    |
//! | UP       | DRAINING | `fall` results are `Dead`, but the group rule objects              |
//! | DOWN     | DRAINING | `rise` results are not `Dead`, some of them `NotReady`             |
//!
//! Going DOWN resets a backend's flows and cannot be taken back, so only a failed connection or TLS
//! handshake leads there. A slow or unhappy HTTP answer drains: a slow etcd makes every
//! apiserver slow at once, and resetting everybody then would be a storm. A DOWN backend that
//! answers again, though unhappily, becomes DRAINING and not UP: while no backend is UP, one that
//! answers serves better than a reset does, and flows that reach it need not be ended any more.
//!
//! With `start = "probe"` a single result stands for `rise` until the first check has passed.
//!
//! # The group rule
//!
//! Silence of most backends at once is more likely this node's own link, or a switch, than the
//! death of most backends. A backend is *silent* while its last results are `Dead` without one
//! that proves a death (a refusal, a reset, a close; see [`ProbeOutcome::proves_death`]). It
//! fell silent when the first probe of that run started. Silent backends belong together if they
//! fell silent within `(fall + 1) x interval + timeout` of each other (with `down_interval` if that
//! is longer): the time within which one fault shows at every backend. If a backend would go DOWN without proof while it and those
//! that belong to it are more than half of the service's backends, it becomes DRAINING instead
//! and is *held* there. The others need not have reached `fall` themselves: else the first one to
//! be judged would be lost each time. Every further result of a held backend judges it anew: a
//! refusal takes it DOWN at once, and once enough others are heard again its silence counts from
//! there, so that it goes DOWN after `fall` checks unless it is heard again as well. The times at which
//! the backends fell silent do not age: a lasting outage of everything stays DRAINING.
//!
//! A backend that the operator has taken out of service is left out, of the silent ones as of all.
//!
//! The silent backend of a service with one backend is therefore always held: nobody else could
//! take its flows.
//!
//! # Lateness
//!
//! If the controller itself was not running (starved, stopped, suspended), probes time out that
//! were answered. When a timer is handled (the prober's time limit is one, too), or a result
//! delivered, later than due by more than half the interval or half the timeout, whichever is shorter (but at least 100 ms), results of
//! probes that were under way meanwhile are discarded and the probes repeated at once. The result of such a
//! repeat is discarded only if it is again late *and* a timeout.
//!
//! # Agents
//!
//! A backend's agent ([`agent`]) can make its state worse than the checks say, never better, and wants a
//! weight. It is asked on its own, at its own interval; while it does not answer, what it said last holds.
//!
//! # Schedule
//!
//! A backend has at most one probe under way. The next one starts one interval (give or take
//! `spread` %) after the last one *started*, or when the last one ends if that is later;
//! `fast_interval` instead while the last result contradicts the state, `down_interval` while the
//! backend is DOWN and nothing contradicts that. Missed probes are not
//! made up for. With `keep_alive` probes of a settled backend go over the connection of the one
//! before (`reuse`); the group rule and DOWN rest on fresh connections. No backend's checks depend on when another's start or end. A backend that refused a client's connection is probed out of turn, as soon as no
//! probe is under way, 100 ms after the last one's start at the earliest.

pub mod agent;
mod agents;
mod body;
mod checker;
mod jitter;
mod outcome;
mod reuse;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, fmt, time::Duration};

use lb_common::abi::BackendState;

use self::{
    agent::{AgentReport, AgentState},
    agents::Agents,
    checker::{Checker, Span, Start, Wanted},
    jitter::Jitter,
};
pub use self::{
    body::{complaint, quoted},
    outcome::{Class, Failure, Finding, ProbeOutcome, Stage, StageTimes},
};
use crate::{
    config::model::{CheckConfig, HealthConfig, StartState},
    core::time::Timestamp,
};

/// Time after a probe's timeout at which its result is no longer waited for. The prober keeps
/// the timeout itself; this only catches a prober that died.
const GIVE_UP_GRACE: Duration = Duration::from_millis(500);

/// Time between the starts of two probes that is kept when probes are asked for out of turn.
const MIN_GAP: Duration = Duration::from_millis(100);

/// Lateness that is always tolerated: ordinary scheduling under load.
const MIN_TOLERANCE: Duration = Duration::from_millis(100);

/// Result of a probe that a [`HealthAction::StartProbe`] asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeResult {
    /// Backend, from the action.
    pub backend: usize,
    /// Serial number, from the action.
    pub serial: u64,
    /// When the probe began to run.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Timestamp,
    /// What it saw.
    pub outcome: ProbeOutcome,
}

/// What [`ServiceHealth`] wants done, or known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthAction {
    /// Probe a backend; its result comes back through [`ServiceHealth::handle_result`].
    StartProbe {
        /// Position of the backend in its service.
        backend: usize,
        /// Number to be returned with the result.
        serial: u64,
        /// Time that the probe may take.
        timeout: Duration,
        /// It may go over the connection of the one before, if that is still there. A result of
        /// such a connection that is no answer does not count: it is the prober's to ask again.
        reuse: bool,
    },
    /// Ask a backend's agent; what it says comes back through [`ServiceHealth::handle_agent`].
    AskAgent {
        /// Position of the backend in its service.
        backend: usize,
        /// Number to be returned with the answer.
        serial: u64,
        /// Time that the answer may take.
        timeout: Duration,
    },
    /// The agent of a backend that stays in its state wants another weight.
    AgentWeighs,
    /// A backend's state changed because of what its agent said.
    AgentChanged {
        /// Position of the backend in its service.
        backend: usize,
        /// State before.
        from: BackendState,
        /// State now.
        to: BackendState,
        /// What the agent has said.
        said: AgentState,
    },
    /// A backend's state changed.
    StateChanged {
        /// Position of the backend in its service.
        backend: usize,
        /// State before.
        from: BackendState,
        /// State now.
        to: BackendState,
        /// Why.
        cause: Cause,
    },
}

/// Why a backend's state changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Which rule applied.
    pub rule: Rule,
    /// How many results in a row it was applied to.
    pub count: u32,
    /// The last one of them.
    pub outcome: ProbeOutcome,
}

/// A rule that changes states; the table is in the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Enough checks passed: UP.
    Passed,
    /// Enough checks did not pass, but not all of them were Dead: DRAINING.
    Unready,
    /// The backend is back, but not all of its answers are good: DRAINING.
    Answers,
    /// Enough checks were Dead: DOWN.
    Dead,
    /// Enough checks were Dead, but too many backends fell silent with this one: DRAINING.
    Held {
        /// Backends that fell silent together, this one included.
        silent: usize,
        /// Backends of the service.
        backends: usize,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rule,
            count,
            outcome,
        } = self;
        let checks = if *count == 1 {
            "1 check".to_owned()
        } else {
            format!("{count} checks in a row")
        };
        match rule {
            Rule::Passed => write!(f, "{checks} passed: {outcome}"),
            Rule::Unready => write!(f, "{checks} did not pass: {outcome}"),
            Rule::Answers => write!(f, "{checks} answered, but not well: {outcome}"),
            Rule::Dead => write!(f, "{checks} failed: {outcome}"),
            Rule::Held { silent, backends } => write!(
                f,
                "{checks} failed: {outcome}; not taken down, because {silent} of {backends} \
                 backends fell silent together"
            ),
        }
    }
}

/// What was seen of a backend last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The last result that was not discarded.
    pub outcome: ProbeOutcome,
    /// When it came.
    pub at: Timestamp,
    /// When the first of the results of this [`Class`] in a row came.
    pub since: Timestamp,
    /// How many they are.
    pub count: u32,
}

/// For operators: `HTTP 500 after 2.01 s (3 in a row)`.
impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} in a row)", self.outcome, self.count)
    }
}

/// Health of all backends of one service.
///
/// After each `handle_*` call: drain [`Self::poll_action`], then ask [`Self::poll_timeout`],
/// which only those calls change. A [`Self::handle_timeout`] that comes too early does nothing.
#[derive(Clone, Debug)]
pub struct ServiceHealth {
    pace: Pace,
    checkers: Vec<Checker>,
    agents: Agents,
    /// Where the checkers' own sequences come from.
    jitter: Jitter,
    actions: VecDeque<HealthAction>,
    /// `type = "none"`: there are no checkers, and every backend counts as UP.
    unchecked: bool,
}

/// The numbers of a [`HealthConfig`] and what follows from them.
#[derive(Clone, Copy, Debug)]
struct Pace {
    interval: Duration,
    fast_interval: Duration,
    down_interval: Duration,
    /// Percent.
    spread: u8,
    timeout: Duration,
    keep_alive: bool,
    rise: u32,
    fall: u32,
    /// Lateness of the controller that is tolerated.
    tolerance: Duration,
    /// Backends that fell silent within this time of each other belong together.
    window: Duration,
}

impl Pace {
    fn new(config: &HealthConfig) -> Self {
        let fall = config.fall.get();
        Self {
            interval: config.interval,
            fast_interval: config.fast_interval,
            down_interval: config.down_interval,
            spread: config.spread,
            timeout: config.timeout,
            keep_alive: config.check.keeps_alive(),
            rise: config.rise.get(),
            fall,
            tolerance: (config.interval.min(config.timeout) / 2).max(MIN_TOLERANCE),
            window: config
                .interval
                .max(config.down_interval)
                .saturating_mul(fall.saturating_add(1))
                .saturating_add(config.timeout),
        }
    }
}

impl ServiceHealth {
    /// Checks of `backends` backends in the start state of `config`. The first probes are spread
    /// over one interval; over a tenth of it with `start = "probe"`, where nothing works before
    /// them.
    pub fn new(config: &HealthConfig, backends: usize, now: Timestamp, jitter_seed: u64) -> Self {
        let span = match config.start {
            StartState::Probe => config.interval / 10,
            StartState::Down | StartState::Up => config.interval,
        };
        let unchecked = matches!(config.check, CheckConfig::None);
        let checked = if unchecked { 0 } else { backends };
        let mut jitter = Jitter::new(jitter_seed);
        let checkers = (0..checked)
            .map(|index| {
                let at = now + jitter.slot(span, index, backends);
                Checker::new(config.start, at, jitter.fork())
            })
            .collect();
        let agents = Agents::new(config.agent.as_ref(), backends, now, &mut jitter);
        Self {
            pace: Pace::new(config),
            checkers,
            agents,
            jitter,
            actions: VecDeque::new(),
            unchecked,
        }
    }

    /// Whether nobody looks at the backends: they count as UP.
    pub const fn is_unchecked(&self) -> bool {
        self.unchecked
    }

    /// Checks by `config` after checks by `old`. `origins` are the backends in their new order, each
    /// with its place in these checks; `None`: it is new. What stays keeps its state. Results of
    /// probes that were under way, and all others with a serial number up to `serial`, do not count.
    #[must_use]
    pub fn succeeded_by(
        &self,
        (old, config): (&HealthConfig, &HealthConfig),
        origins: &[Option<usize>],
        now: Timestamp,
        serial: u64,
    ) -> Self {
        let mut next = Self::new(config, origins.len(), now, self.jitter.seed());
        let anew = (&old.check, old.target) != (&config.check, config.target);
        let latest = now + config.interval;
        for (checker, origin) in next.checkers.iter_mut().zip(origins) {
            match origin.and_then(|origin| self.checkers.get(origin)) {
                Some(known) => *checker = known.carry(serial, anew, (now, latest)),
                None => checker.number_from(serial),
            }
            if origin.is_some() && self.unchecked {
                checker.adopt(BackendState::Up);
            }
        }
        next.agents.follow(&self.agents, origins, serial);
        next
    }

    /// Takes over the state of `backend` that is known from before (a data plane that
    /// went on without its controller) instead of the start state. No action comes of it.
    pub fn adopt(&mut self, backend: usize, state: BackendState) {
        if let Some(checker) = self.checkers.get_mut(backend) {
            checker.adopt(state);
        }
    }

    /// The operator has taken `backend` out of service, or put it back: what becomes of it
    /// meanwhile is not counted as a death beside others (see the group rule).
    pub fn put_aside(&mut self, backend: usize, aside: bool) {
        if let Some(checker) = self.checkers.get_mut(backend) {
            checker.put_aside(aside);
        }
    }

    /// State of `backend`; DOWN if there is none. Where nothing is checked it is UP unless its agent
    /// objects.
    pub fn state(&self, backend: usize) -> BackendState {
        let checker = self.checkers.get(backend);
        let checked = match checker {
            Some(checker) => checker.state(),
            None if self.unchecked => BackendState::Up,
            None => BackendState::Down,
        };
        self.limited(backend, checked)
    }

    /// The state of `backend` by its agent, if its checks say `checked`.
    fn limited(&self, backend: usize, checked: BackendState) -> BackendState {
        let agent = self.agents.state(backend);
        agent.map_or(checked, |agent| agent.apply(checked))
    }

    /// What the agent of `backend` has said, its weight among it; `None`: nobody is asked.
    pub fn agent(&self, backend: usize) -> Option<&AgentState> {
        self.agents.state(backend)
    }

    /// What was seen of `backend` last.
    pub fn last(&self, backend: usize) -> Option<&Seen> {
        self.checkers.get(backend)?.seen()
    }

    /// Whether the group rule keeps `backend` in DRAINING that would else be DOWN.
    pub fn is_held(&self, backend: usize) -> bool {
        self.checkers.get(backend).is_some_and(Checker::held)
    }

    /// Results of `backend` that were discarded because the controller was late.
    pub fn discarded(&self, backend: usize) -> u64 {
        self.checkers.get(backend).map_or(0, Checker::discarded)
    }

    /// When [`Self::handle_timeout`] should be called next; `None` without backends or checks.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let checks = self.checkers.iter().map(Checker::due);
        checks.chain(self.agents.due()).min()
    }

    /// The next thing to do or to know.
    pub fn poll_action(&mut self) -> Option<HealthAction> {
        self.actions.pop_front()
    }

    /// Gives up probes whose result did not come, and starts those that are due.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        self.note_late_timer(now);
        for backend in 0..self.checkers.len() {
            self.give_up(backend, now);
            self.start(backend, now);
        }
        let timeout = self.agents.timeout();
        for backend in 0.. {
            if self.agents.state(backend).is_none() {
                break;
            }
            if let Some(serial) = self.agents.ask(backend, now) {
                self.actions.push_back(HealthAction::AskAgent {
                    backend,
                    serial,
                    timeout,
                });
            }
        }
    }

    /// Takes what the agent of `backend` said; `None`: nothing.
    pub fn handle_agent(
        &mut self,
        now: Timestamp,
        (backend, serial): (usize, u64),
        report: Option<AgentReport>,
    ) {
        let from = self.state(backend);
        let weight = self.agents.state(backend).map(AgentState::weight);
        if !self.agents.answer((backend, serial), now, report) {
            return;
        }
        let to = self.state(backend);
        if from == to && weight != self.agents.state(backend).map(AgentState::weight) {
            self.actions.push_back(HealthAction::AgentWeighs);
        }
        let said = self.agents.state(backend).filter(|_| from != to);
        if let Some(said) = said.cloned() {
            self.actions.push_back(HealthAction::AgentChanged {
                backend,
                from,
                to,
                said,
            });
        }
    }

    /// Probes `backend` out of turn, as soon as a probe under way has ended: something else than a
    /// probe says that it is not well. Such probes come no closer than 100 ms.
    pub fn check_soon(&mut self, backend: usize, now: Timestamp) {
        if let Some(checker) = self.checkers.get_mut(backend) {
            checker.hasten(now, MIN_GAP);
        }
        self.start(backend, now);
    }

    /// Takes a probe's result. One that was given up, came before or was never asked for is
    /// ignored.
    pub fn handle_result(&mut self, now: Timestamp, result: ProbeResult) {
        let ProbeResult {
            backend,
            serial,
            started,
            finished,
            outcome,
        } = result;
        let known = self.checkers.get(backend);
        if !known.is_some_and(|checker| checker.expects(serial)) {
            return;
        }
        self.note_late_timer(now);
        self.note_late(started + self.pace.timeout, finished);
        self.note_late(finished, now);
        self.judge(backend, Span { started, finished }, outcome, now);
    }

    /// Notes it if the earliest timer was due long ago.
    fn note_late_timer(&mut self, now: Timestamp) {
        if let Some(due) = self.poll_timeout() {
            self.note_late(due, now);
        }
    }

    /// Notes it if what should have been handled at `due` is handled only `now`.
    fn note_late(&mut self, due: Timestamp, now: Timestamp) {
        if now.saturating_since(due) > self.pace.tolerance {
            for checker in &mut self.checkers {
                checker.note_late(due, now);
            }
        }
    }

    fn give_up(&mut self, backend: usize, now: Timestamp) {
        let overdue = self.checkers.get(backend).and_then(|c| c.overdue(now));
        if let Some(span) = overdue {
            let outcome = ProbeOutcome {
                finding: Finding::GaveUp,
                times: StageTimes {
                    connect: Some(now.saturating_since(span.started)),
                    ..StageTimes::default()
                },
            };
            self.judge(backend, span, outcome, now);
        }
    }

    fn start(&mut self, backend: usize, now: Timestamp) {
        let timeout = self.pace.timeout;
        let limit = timeout.saturating_add(GIVE_UP_GRACE);
        let checker = self.checkers.get_mut(backend);
        let start = |checker: &mut Checker| checker.start(now, limit, self.pace.keep_alive);
        if let Some(Start { serial, reuse }) = checker.and_then(start) {
            self.actions.push_back(HealthAction::StartProbe {
                backend,
                serial,
                timeout,
                reuse,
            });
        }
    }

    /// Counts or discards the result of the probe under way, and plans the next one.
    fn judge(&mut self, backend: usize, span: Span, outcome: ProbeOutcome, now: Timestamp) {
        let Some(checker) = self.checkers.get_mut(backend) else {
            return;
        };
        if checker.discard(span, &outcome, now) {
            return;
        }
        checker.count(span, outcome.clone());
        if outcome.class() != Class::Void {
            self.apply_rules(backend, outcome, span.started);
        }
        self.plan(backend, now);
    }

    /// Changes the state of `backend` if its results call for it.
    fn apply_rules(&mut self, backend: usize, outcome: ProbeOutcome, started: Timestamp) {
        let silent = self.silent_with(backend);
        let counted = self.checkers.iter().filter(|checker| !checker.is_aside());
        let backends = counted.count();
        let Some(checker) = self.checkers.get_mut(backend) else {
            return;
        };
        let from = checker.state();
        let (to, rule, count) = match checker.wanted(self.pace.rise, self.pace.fall) {
            Wanted::Stay => return checker.enter(from, false),
            Wanted::Up { count } => (BackendState::Up, Rule::Passed, count),
            Wanted::Unready { count } => (BackendState::Draining, Rule::Unready, count),
            Wanted::Answers { count } => (BackendState::Draining, Rule::Answers, count),
            Wanted::Down { count } if silent > backends / 2 => {
                let rule = Rule::Held { silent, backends };
                (BackendState::Draining, rule, count)
            }
            // Whatever silenced the others may have ended between this probe and theirs.
            Wanted::Down { .. } if silent > 0 && checker.held() => return checker.release(started),
            Wanted::Down { count } => (BackendState::Down, Rule::Dead, count),
        };
        checker.enter(to, matches!(rule, Rule::Held { .. }));
        let (from, to) = (self.limited(backend, from), self.limited(backend, to));
        if from != to {
            self.actions.push_back(HealthAction::StateChanged {
                backend,
                from,
                to,
                cause: Cause {
                    rule,
                    count,
                    outcome,
                },
            });
        }
    }

    /// How many backends fell silent together with `backend`, itself included; 0 if it is not
    /// silent.
    fn silent_with(&self, backend: usize) -> usize {
        let own = self.checkers.get(backend).and_then(Checker::silent_since);
        let Some(own) = own else {
            return 0;
        };
        let together = |since: &Timestamp| {
            since.max(&own).saturating_since(*since.min(&own)) <= self.pace.window
        };
        self.checkers
            .iter()
            .filter_map(Checker::silent_since)
            .filter(together)
            .count()
    }

    /// Ends the probe under way and sets the time of the next one.
    fn plan(&mut self, backend: usize, now: Timestamp) {
        let Some(checker) = self.checkers.get_mut(backend) else {
            return;
        };
        let step = if checker.in_doubt() {
            self.pace.fast_interval
        } else if checker.state() == BackendState::Down {
            self.pace.down_interval
        } else {
            self.pace.interval
        };
        let started = checker.started().unwrap_or(now);
        let step = checker.vary(step, self.pace.spread);
        checker.wait_until(started + step, now);
    }
}

//! Timed traces of [`ServiceHealth`]: simulated backends answer its probes after a set time, and
//! the clock jumps from event to event.

use std::num::{NonZeroU16, NonZeroU32};

use proptest::prelude::*;

use super::*;
use crate::config::model::{
    AgentConfig, CheckConfig, CheckTarget, HttpConfig, HttpMethod, HttpVersion,
};

const START: Timestamp = Timestamp::from_nanos(1_000_000_000_000);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Interval 2 s, timeout 1 s, rise 2, fall 3, fast interval 0.5 s: the defaults.
fn config(start: StartState) -> HealthConfig {
    HealthConfig {
        check: CheckConfig::Tcp(Vec::new()),
        target: CheckTarget::default(),
        interval: ms(2000),
        timeout: ms(1000),
        rise: NonZeroU32::new(2).unwrap(),
        fall: NonZeroU32::new(3).unwrap(),
        fast_interval: ms(500),
        down_interval: ms(2000),
        spread: 10,
        start,
        agent: None,
    }
}

fn outcome(finding: Finding, took: Duration) -> ProbeOutcome {
    ProbeOutcome {
        finding,
        times: StageTimes {
            connect: Some(took),
            ..StageTimes::default()
        },
    }
}

fn failed(stage: Stage, failure: Failure) -> Finding {
    Finding::Failed { stage, failure }
}

/// What a simulated backend does with a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    /// 200 after 5 ms.
    Good,
    /// 500 after 200 ms.
    Unready,
    /// A good TLS handshake, then nothing until the timeout.
    SlowHttp,
    /// A refusal after 1 ms.
    Refuses,
    /// Nothing until the timeout.
    Silent,
    /// The prober cannot ask.
    NoDescriptor,
    /// The prober never reports.
    Lost,
}

impl Mood {
    fn result(self) -> Option<(Duration, Finding)> {
        let status = |code, expected| Finding::Status {
            code,
            expected,
            note: None,
        };
        match self {
            Self::Good => Some((ms(5), status(200, true))),
            Self::Unready => Some((ms(200), status(500, false))),
            Self::SlowHttp => Some((ms(1000), failed(Stage::Http, Failure::TimedOut))),
            Self::Refuses => Some((ms(1), failed(Stage::Connect, Failure::Refused))),
            Self::Silent => Some((ms(1000), failed(Stage::Tls, Failure::TimedOut))),
            Self::NoDescriptor => {
                let failure = Failure::Local("too many open files".into());
                Some((ms(0), failed(Stage::Connect, failure)))
            }
            Self::Lost => None,
        }
    }
}

/// A state change, with the time since the start of the trace.
#[derive(Clone, Debug)]
struct Change {
    at: Duration,
    backend: usize,
    from: BackendState,
    to: BackendState,
    cause: Cause,
}

/// A service under simulation.
struct Trace {
    health: ServiceHealth,
    moods: Vec<Mood>,
    now: Timestamp,
    /// Results under way.
    pending: Vec<ProbeResult>,
    /// Starts of probes: (time, backend).
    starts: Vec<(Timestamp, usize)>,
    /// Whether they may go over the connection of the one before.
    reuses: Vec<bool>,
    changes: Vec<Change>,
    /// What the backends' agents answer; nothing if it is empty.
    agents: Vec<&'static str>,
    /// When they were asked.
    asked: Vec<Timestamp>,
    /// Backend, state, and what the agent had said.
    agent_changes: Vec<(usize, BackendState, String)>,
}

impl Trace {
    fn new(config: &HealthConfig, backends: usize) -> Self {
        Self::seeded(config, backends, 1)
    }

    fn seeded(config: &HealthConfig, backends: usize, seed: u64) -> Self {
        Self {
            health: ServiceHealth::new(config, backends, START, seed),
            moods: vec![Mood::Good; backends],
            now: START,
            pending: Vec::new(),
            starts: Vec::new(),
            reuses: Vec::new(),
            changes: Vec::new(),
            agents: vec![""; backends],
            asked: Vec::new(),
            agent_changes: Vec::new(),
        }
    }

    /// Three backends with the default numbers, all of them UP and checked.
    fn three_up() -> Self {
        let mut trace = Self::new(&config(StartState::Up), 3);
        trace.run(ms(5000));
        assert!(trace.changes.is_empty());
        trace
    }

    /// Lets `span` pass, the controller being on time.
    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while let Some(next) = self.next_event().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.deliver();
            self.health.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }

    /// The controller does not run for `span`, though the prober does; then it catches up.
    fn stall(&mut self, span: Duration) {
        self.now += span;
        self.deliver();
        self.health.handle_timeout(self.now);
        self.drain();
    }

    fn next_event(&self) -> Option<Timestamp> {
        let results = self.pending.iter().map(|result| result.finished);
        results.chain(self.health.poll_timeout()).min()
    }

    fn deliver(&mut self) {
        let now = self.now;
        let (due, later) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|result| result.finished <= now);
        self.pending = later;
        let due: Vec<ProbeResult> = due;
        for result in due {
            self.health.handle_result(now, result);
            self.drain();
        }
    }

    fn drain(&mut self) {
        while let Some(action) = self.health.poll_action() {
            match action {
                HealthAction::StartProbe {
                    backend,
                    serial,
                    reuse,
                    ..
                } => {
                    self.reuses.push(reuse);
                    self.answer(backend, serial);
                }
                HealthAction::AskAgent {
                    backend, serial, ..
                } => {
                    self.asked.push(self.now);
                    let report = AgentReport::parse(self.agents[backend].as_bytes());
                    self.health
                        .handle_agent(self.now, (backend, serial), report);
                }
                HealthAction::AgentWeighs => {}
                HealthAction::AgentChanged {
                    backend, to, said, ..
                } => self.agent_changes.push((backend, to, said.to_string())),
                HealthAction::StateChanged {
                    backend,
                    from,
                    to,
                    cause,
                } => self.changes.push(Change {
                    at: self.now.saturating_since(START),
                    backend,
                    from,
                    to,
                    cause,
                }),
            }
        }
    }

    fn answer(&mut self, backend: usize, serial: u64) {
        self.starts.push((self.now, backend));
        let Some((took, finding)) = self.moods[backend].result() else {
            return;
        };
        self.pending.push(ProbeResult {
            backend,
            serial,
            started: self.now,
            finished: self.now + took,
            outcome: outcome(finding, took),
        });
    }

    fn states(&self) -> Vec<BackendState> {
        (0..self.moods.len())
            .map(|b| self.health.state(b))
            .collect()
    }

    /// States that were entered since the last call, in order: (backend, state).
    fn entered(&mut self) -> Vec<(usize, BackendState)> {
        let changes = std::mem::take(&mut self.changes);
        changes.iter().map(|c| (c.backend, c.to)).collect()
    }

    /// Starts of probes of one backend.
    fn starts_of(&self, backend: usize) -> Vec<Timestamp> {
        let own = self.starts.iter().filter(|(_, b)| *b == backend);
        own.map(|(at, _)| *at).collect()
    }
}

use BackendState::{Down, Draining, Up};

/// Proves that with `start = "probe"` every backend is UP after one good check, within a tenth
/// of the interval.
#[test]
fn start_probe_is_up_after_the_first_pass() {
    let mut trace = Trace::new(&config(StartState::Probe), 3);
    assert_eq!(trace.states(), [Down; 3]);
    trace.run(ms(205));
    assert_eq!(trace.states(), [Up; 3]);
    assert_eq!(trace.starts.len(), 3);
    let cause = trace.changes[0].cause.to_string();
    assert_eq!(cause, "1 check passed: HTTP 200 after 0.00 s");
}

/// Proves that with `start = "probe"` the first good check decides also after failures, but only
/// the first: later on `rise` holds.
#[test]
fn start_probe_needs_rise_after_the_first_pass() {
    let mut trace = Trace::new(&config(StartState::Probe), 1);
    trace.moods[0] = Mood::Refuses;
    trace.run(ms(5000));
    trace.moods[0] = Mood::Good;
    trace.run(ms(2300));
    assert_eq!(trace.entered(), [(0, Up)]);
    trace.moods[0] = Mood::Refuses;
    trace.run(ms(5000));
    assert_eq!(trace.entered(), [(0, Down)]);
    trace.moods[0] = Mood::Good;
    trace.run(ms(5000));
    assert_eq!(trace.changes[0].cause.count, 2);
    assert_eq!(trace.entered(), [(0, Up)]);
}

/// Proves that with `start = "down"` it takes `rise` good checks, the second at the fast
/// interval.
#[test]
fn start_down_takes_rise_passes() {
    let mut trace = Trace::new(&config(StartState::Down), 1);
    trace.run(ms(3000));
    assert_eq!(trace.changes.len(), 1);
    let (change, starts) = (trace.changes[0].clone(), trace.starts_of(0));
    assert_eq!((change.from, change.to), (Down, Up));
    assert_eq!(change.cause.count, 2);
    let gap = starts[1].saturating_since(starts[0]);
    assert!((ms(450)..=ms(550)).contains(&gap), "{gap:?}");
}

/// Proves that a stopped apiserver is DOWN after `fall` refusals, the second and third at the
/// fast interval, and well within fall x interval; and that its last finding is told.
#[test]
fn refusals_take_a_backend_down() {
    let mut trace = Trace::three_up();
    let latest = trace.now.saturating_since(START) + ms(2200 + 2 * 550 + 1);
    trace.moods[1] = Mood::Refuses;
    trace.run(ms(6000));
    let change = trace.changes[0].clone();
    assert_eq!((change.backend, change.from, change.to), (1, Up, Down));
    assert!(change.at <= latest, "{change:?}");
    assert_eq!(
        change.cause.to_string(),
        "3 checks in a row failed: connection refused"
    );
    assert_eq!(trace.entered(), [(1, Down)]);
    let seen = trace.health.last(1).unwrap();
    assert_eq!(seen.outcome.to_string(), "connection refused");
    assert!(seen.count >= 4 && seen.since < seen.at);
}

/// Proves that a DOWN backend is checked at `down_interval`, the others at theirs meanwhile, and
/// that its first good answer brings back the fast interval.
#[test]
fn down_backends_are_checked_at_their_own_interval() {
    let config = HealthConfig {
        down_interval: ms(30_000),
        spread: 0,
        ..config(StartState::Up)
    };
    let mut trace = Trace::new(&config, 2);
    trace.run(ms(5000));
    trace.moods[0] = Mood::Refuses;
    trace.run(ms(6000));
    assert_eq!(trace.entered(), [(0, Down)]);
    trace.starts.clear();
    trace.run(ms(60_000));
    let gaps = |starts: Vec<Timestamp>| {
        let pairs = starts.iter().zip(starts.iter().skip(1));
        pairs
            .map(|(a, b)| b.saturating_since(*a))
            .collect::<Vec<_>>()
    };
    assert_eq!(gaps(trace.starts_of(0)), [ms(30_000)]);
    assert!(gaps(trace.starts_of(1)).iter().all(|gap| *gap == ms(2000)));
    trace.moods[0] = Mood::Good;
    trace.run(ms(31_000));
    assert_eq!(trace.entered(), [(0, Up)]);
    assert!(gaps(trace.starts_of(0)).contains(&ms(500)));
}

/// Proves that `spread` bounds how much intervals vary, and that they do.
#[test]
fn intervals_vary_by_spread() {
    for (spread, low, high) in [(0, 2000, 2000), (50, 1000, 3000)] {
        let config = HealthConfig {
            spread,
            ..config(StartState::Up)
        };
        let mut trace = Trace::new(&config, 1);
        trace.run(ms(200_000));
        let starts = trace.starts_of(0);
        let pairs = starts.iter().zip(starts.iter().skip(1));
        let gaps: Vec<_> = pairs.map(|(a, b)| b.saturating_since(*a)).collect();
        assert!(gaps.iter().all(|gap| (ms(low)..=ms(high)).contains(gap)));
        let wide = gaps.iter().any(|gap| *gap < ms(1300)) && gaps.iter().any(|gap| *gap > ms(2700));
        assert_eq!(wide, spread > 0);
    }
}

fn with_agent(start: StartState) -> HealthConfig {
    HealthConfig {
        agent: Some(AgentConfig {
            port: NonZeroU16::MIN,
            address: None,
            send: String::new(),
            interval: ms(3000),
            timeout: ms(1000),
        }),
        ..config(start)
    }
}

/// Proves that an agent drains and takes down its backend and gives it back, that its weight is
/// told, and that it holds what it said while it is silent.
#[test]
fn agents_limit_states() {
    let mut trace = Trace::new(&with_agent(StartState::Up), 2);
    trace.run(ms(5000));
    assert!(trace.agent_changes.is_empty());
    trace.agents[1] = "drain 40%";
    trace.run(ms(3400));
    assert_eq!(trace.states(), [Up, Draining]);
    assert_eq!(trace.health.agent(1).map(AgentState::weight), Some(40));
    trace.agents[1] = "";
    trace.run(ms(60_000));
    assert_eq!(trace.states(), [Up, Draining], "silence changes nothing");
    trace.agents[1] = "maint";
    trace.run(ms(3400));
    assert_eq!(trace.states(), [Up, Down]);
    trace.agents[1] = "ready 100%";
    trace.run(ms(3400));
    assert_eq!(trace.states(), [Up, Up]);
    let said = |to, text: &str| (1, to, format!("the agent says: up, {text}"));
    assert_eq!(
        trace.agent_changes,
        [
            said(Draining, "drain, 40%"),
            said(Down, "maint, 40%"),
            said(Up, "ready, 100%"),
        ]
    );
    assert!(trace.changes.is_empty(), "the checks have seen nothing");
}

/// Proves that a backend is as bad as the worse of its checks and its agent say, that no change is
/// told where the other one keeps the state, and that an agent decides alone where nothing is
/// checked.
#[test]
fn the_worse_of_checks_and_agent_counts() {
    let mut trace = Trace::new(&with_agent(StartState::Up), 2);
    trace.agents[0] = "drain";
    trace.run(ms(5000));
    trace.moods[0] = Mood::Unready;
    trace.run(ms(9000));
    assert!(trace.changes.is_empty(), "it drains already");
    trace.moods[0] = Mood::Refuses;
    trace.run(ms(9000));
    let change = trace.changes[0].clone();
    assert_eq!((change.from, change.to), (Draining, Down));
    trace.moods[0] = Mood::Good;
    trace.agents[0] = "ready";
    trace.run(ms(9000));
    assert_eq!(trace.states(), [Up, Up]);

    let unchecked = HealthConfig {
        check: CheckConfig::None,
        ..with_agent(StartState::Up)
    };
    let mut trace = Trace::new(&unchecked, 2);
    trace.agents[1] = "stopped";
    trace.run(ms(1000));
    assert_eq!(trace.states(), [Up, Down]);
}

/// Proves that agents are asked at their own interval, give or take a tenth, and that one that
/// never answers is asked on.
#[test]
fn agents_are_asked_in_time() {
    let mut trace = Trace::new(&with_agent(StartState::Up), 1);
    trace.run(ms(60_000));
    let gaps = trace.asked.iter().zip(trace.asked.iter().skip(1));
    let mut gaps = gaps.map(|(a, b)| b.saturating_since(*a));
    assert!(gaps.all(|gap| (ms(2700)..=ms(3300)).contains(&gap)));
    let mut health = ServiceHealth::new(&with_agent(StartState::Up), 1, START, 1);
    let mut questions = 0;
    let mut now = START;
    while now < START + ms(30_000) {
        now = now.max(health.poll_timeout().unwrap());
        health.handle_timeout(now);
        while let Some(action) = health.poll_action() {
            questions += usize::from(matches!(action, HealthAction::AskAgent { .. }));
        }
    }
    assert!(questions > 10, "{questions}");
}

/// Proves that what agents have said lives through a change of the configuration, and that an
/// answer to an earlier question does not count.
#[test]
fn agents_go_on_under_another_configuration() {
    let mut trace = Trace::new(&with_agent(StartState::Up), 2);
    trace.agents[1] = "drain";
    trace.run(ms(5000));
    let (old, mut new) = (with_agent(StartState::Up), with_agent(StartState::Up));
    new.interval = ms(1000);
    let origins = [Some(1), None];
    let checks = (&old, &new);
    trace.health = trace
        .health
        .succeeded_by(checks, &origins, trace.now, 1 << 32);
    assert_eq!(trace.states(), [Draining, Up]);
    let report = AgentReport::parse(b"ready");
    trace.health.handle_agent(trace.now, (0, 2), report);
    assert_eq!(trace.states(), [Draining, Up]);
    new.agent = None;
    let checks = (&with_agent(StartState::Up), &new);
    let without = trace
        .health
        .succeeded_by(checks, &[Some(0), Some(1)], trace.now, 2 << 32);
    assert_eq!((without.state(0), without.agent(0)), (Up, None));
}

/// Proves that refusals are proof: all backends go DOWN at once if all refuse.
#[test]
fn refusals_take_all_backends_down() {
    let mut trace = Trace::three_up();
    trace.moods = vec![Mood::Refuses; 3];
    trace.run(ms(6000));
    assert_eq!(trace.states(), [Down; 3]);
}

/// Proves that one frozen backend of three goes DOWN within fall x interval: nobody else is
/// silent.
#[test]
fn one_silent_backend_goes_down() {
    let mut trace = Trace::three_up();
    trace.moods[2] = Mood::Silent;
    trace.run(ms(6000));
    assert_eq!(trace.entered(), [(2, Down)]);
}

/// Proves that silence of two of three at once drains both and takes down neither, that a hold
/// lasts, and that it ends for the one that stays silent when the other is heard again.
#[test]
fn silence_of_most_backends_drains_and_recovers() {
    let mut trace = Trace::three_up();
    trace.moods[0] = Mood::Silent;
    trace.moods[2] = Mood::Silent;
    trace.run(ms(120_000));
    assert_eq!(trace.states(), [Draining, Up, Draining]);
    assert_eq!(trace.changes.len(), 2);
    assert!(trace.health.is_held(0) && trace.health.is_held(2));
    let cause = trace.changes[0].cause.to_string();
    assert!(
        cause.ends_with("because 2 of 3 backends fell silent together"),
        "{cause}"
    );
    trace.entered();
    trace.moods[0] = Mood::Good;
    trace.run(ms(9000));
    assert_eq!(trace.states(), [Up, Up, Down]);
    assert!(!trace.health.is_held(2));
}

/// Proves that the end of a common outage takes down nobody: those that are heard a moment later
/// than the first do not pay for the time that all were silent.
#[test]
fn the_end_of_a_common_outage_takes_nobody_down() {
    let mut trace = Trace::three_up();
    trace.moods[0] = Mood::Silent;
    trace.moods[2] = Mood::Silent;
    trace.run(ms(60_000));
    trace.entered();
    trace.moods[0] = Mood::Good;
    while trace.health.last(0).unwrap().outcome.class() != Class::Pass {
        trace.run(ms(100));
    }
    trace.run(ms(600));
    trace.moods[2] = Mood::Good;
    trace.run(ms(6000));
    assert_eq!(trace.entered(), [(0, Up), (2, Up)]);
}

/// Proves that only silence that began together is held together: a backend that has been dead
/// for long does not save the next one.
#[test]
fn silence_long_after_another_goes_down() {
    let mut trace = Trace::three_up();
    trace.moods[0] = Mood::Silent;
    trace.run(ms(30_000));
    trace.moods[1] = Mood::Silent;
    trace.run(ms(10_000));
    assert_eq!(trace.entered(), [(0, Down), (1, Down)]);
}

/// Proves that a refusal takes down at once what was held for silence.
#[test]
fn refusal_ends_a_hold() {
    let mut trace = Trace::new(&config(StartState::Up), 1);
    trace.moods[0] = Mood::Silent;
    trace.run(ms(20_000));
    assert_eq!(trace.entered(), [(0, Draining)]);
    trace.moods[0] = Mood::Refuses;
    trace.run(ms(2200));
    assert_eq!(trace.entered(), [(0, Down)]);
}

/// Proves that a wrong status and a slow answer after a good handshake drain, for however long,
/// and that good answers bring the backend back.
#[test]
fn unready_backends_drain_and_never_go_down() {
    for mood in [Mood::Unready, Mood::SlowHttp] {
        let mut trace = Trace::three_up();
        trace.moods = vec![mood; 3];
        trace.run(ms(60_000));
        assert_eq!(trace.states(), [Draining; 3]);
        assert_eq!(trace.changes.len(), 3);
        trace.moods = vec![Mood::Good; 3];
        trace.run(ms(3000));
        assert_eq!(trace.states(), [Up; 3]);
    }
}

/// Proves the way of an apiserver that stops with a shutdown delay: 500 drains, the refusal
/// afterwards takes down, the 500s of its start drain, and its 200s bring it UP.
#[test]
fn shutdown_with_delay_and_restart() {
    let mut trace = Trace::three_up();
    let phases = [Mood::Unready, Mood::Refuses, Mood::Unready, Mood::Good];
    for mood in phases {
        trace.moods[0] = mood;
        trace.run(ms(8000));
    }
    let expected = [(0, Draining), (0, Down), (0, Draining), (0, Up)];
    assert_eq!(trace.entered(), expected);
}

/// Proves that a probe that is asked for starts at once, and that the schedule goes on from it.
#[test]
fn a_probe_out_of_turn_starts_at_once() {
    let mut trace = Trace::three_up();
    run_until_probe_flies(&mut trace);
    trace.run(ms(150));
    let before = trace.starts_of(1).len();
    trace.health.check_soon(1, trace.now);
    trace.drain();
    let starts = trace.starts_of(1);
    assert_eq!(starts.len(), before + 1);
    assert_eq!(starts[before], trace.now);
    trace.run(ms(1_790));
    assert_eq!(trace.starts_of(1).len(), before + 1);
}

/// Proves that there is never more than one probe of a backend under way, and that the one that was
/// asked for meanwhile follows at once.
#[test]
fn a_probe_out_of_turn_waits_for_the_one_under_way() {
    let mut trace = Trace::three_up();
    trace.moods[1] = Mood::Silent;
    let before = trace.starts_of(1).len();
    while trace.starts_of(1).len() == before {
        trace.run(ms(10));
    }
    for _ in 0..5 {
        trace.health.check_soon(1, trace.now);
    }
    trace.drain();
    assert_eq!(trace.starts_of(1).len(), before + 1);
    trace.run(ms(1_010));
    let starts = trace.starts_of(1);
    assert_eq!(starts.len(), before + 2);
    assert_eq!(starts[before + 1], starts[before] + ms(1_000));
}

/// Proves that however often a probe is asked for, probes start at least 100 ms after each other.
#[test]
fn probes_out_of_turn_keep_their_distance() {
    let mut trace = Trace::three_up();
    for _ in 0..500 {
        trace.health.check_soon(0, trace.now);
        trace.drain();
        trace.run(ms(3));
    }
    let starts = trace.starts_of(0);
    let gaps = starts
        .windows(2)
        .map(|pair| pair[1].saturating_since(pair[0]));
    assert!(starts.len() > 10);
    assert!(gaps.min() >= Some(ms(100)));
}

/// Proves that failures of different kinds in turn still drain a backend, though no kind comes
/// `fall` times in a row, and that only Dead results in a row take it down.
#[test]
fn mixed_failures_drain() {
    let mut trace = Trace::three_up();
    for round in 0..12 {
        trace.moods[0] = [Mood::Unready, Mood::Refuses][round % 2];
        let checks = trace.starts_of(0).len();
        while trace.starts_of(0).len() == checks {
            trace.run(ms(10));
        }
    }
    assert_eq!(trace.entered(), [(0, Draining)]);
}

/// Proves that one or two failures among passes change nothing, and that the fast interval ends
/// with the doubt.
#[test]
fn fewer_than_fall_failures_change_nothing() {
    let mut trace = Trace::three_up();
    trace.moods[0] = Mood::Refuses;
    let checks = trace.starts_of(0).len();
    while trace.starts_of(0).len() < checks + 2 {
        trace.run(ms(10));
    }
    trace.moods[0] = Mood::Good;
    trace.run(ms(10_000));
    assert!(trace.changes.is_empty());
    let starts = trace.starts_of(0);
    let [.., before, last] = starts[..] else {
        panic!("too few starts")
    };
    assert!(last.saturating_since(before) >= ms(1800));
}

/// Proves that a check that this node cannot make counts for nothing but is told, and is soon
/// tried again.
#[test]
fn local_faults_count_for_nothing() {
    let mut trace = Trace::three_up();
    trace.moods = vec![Mood::NoDescriptor; 3];
    trace.run(ms(60_000));
    assert!(trace.changes.is_empty());
    let seen = trace.health.last(0).unwrap();
    assert_eq!(seen.outcome.to_string(), "not checked: too many open files");
    assert!(seen.count > 100);
}

/// Proves that a probe whose result never comes is given up after timeout and grace, counts as
/// silence, and that its late result is ignored.
#[test]
fn lost_probe_is_given_up_and_its_late_result_ignored() {
    let mut trace = Trace::three_up();
    trace.moods[0] = Mood::Lost;
    let checks = trace.starts_of(0).len();
    while trace.starts_of(0).len() == checks {
        trace.run(ms(10));
    }
    let started = *trace.starts_of(0).last().unwrap();
    trace.run(ms(1600));
    let seen = trace.health.last(0).unwrap();
    assert_eq!(
        seen.outcome.to_string(),
        "the check gave no result after 1.50 s"
    );
    assert_eq!(trace.starts_of(0).len(), checks + 2, "the next one started");
    let before = trace.health.last(0).cloned();
    for serial in 0..=u64::try_from(checks).unwrap() + 1 {
        let late = ProbeResult {
            backend: 0,
            serial,
            started,
            finished: trace.now,
            outcome: outcome(failed(Stage::Connect, Failure::Refused), ms(1)),
        };
        trace.health.handle_result(trace.now, late);
    }
    assert_eq!(trace.health.last(0).cloned(), before);
    trace.run(ms(10_000));
    assert_eq!(trace.entered(), [(0, Down)]);
}

/// Proves that results for backends that do not exist are ignored.
#[test]
fn result_of_an_unknown_backend_is_ignored() {
    let mut health = ServiceHealth::new(&config(StartState::Up), 1, START, 1);
    let due = health.poll_timeout();
    let result = ProbeResult {
        backend: 7,
        serial: 1,
        started: START,
        finished: START,
        outcome: outcome(Finding::Connected, ms(1)),
    };
    health.handle_result(START, result);
    assert_eq!((health.poll_action(), health.poll_timeout()), (None, due));
    assert_eq!(health.state(7), Down);
}

/// Runs until a probe of backend 0 is under way.
fn run_until_probe_flies(trace: &mut Trace) {
    while !trace.pending.iter().any(|result| result.backend == 0) {
        trace.run(ms(10));
    }
}

/// Proves that a timeout that the controller slept through counts for nothing and is repeated
/// at once, and only once.
#[test]
fn timeouts_during_a_stall_are_repeated_and_not_counted() {
    let mut config = config(StartState::Up);
    config.fall = NonZeroU32::MIN;
    let mut trace = Trace::new(&config, 1);
    trace.moods[0] = Mood::Silent;
    run_until_probe_flies(&mut trace);
    trace.moods[0] = Mood::Good;
    trace.stall(ms(4000));
    assert_eq!(trace.health.discarded(0), 1);
    assert_eq!(trace.health.last(0), None);
    assert_eq!(
        trace.starts.last(),
        Some(&(trace.now, 0)),
        "repeated at once"
    );
    trace.run(ms(5000));
    assert!(trace.changes.is_empty());
    assert_eq!(trace.health.discarded(0), 1);
}

/// Proves that a time limit that fires late tells of a stall that no timer of the controller's
/// fell into.
#[test]
fn late_time_limit_of_the_prober_is_lateness() {
    let mut trace = Trace::new(&config(StartState::Up), 1);
    trace.moods[0] = Mood::Silent;
    run_until_probe_flies(&mut trace);
    let started = trace.pending[0].started;
    trace.pending[0].finished = started + ms(1600);
    trace.now = started + ms(1600);
    trace.deliver();
    assert_eq!(trace.health.discarded(0), 1);
}

/// Proves that a controller that handles its timers late discards a timeout, though the result
/// itself came promptly.
#[test]
fn late_timer_of_another_backend_is_lateness() {
    let mut config = config(StartState::Up);
    config.timeout = ms(4000);
    let mut trace = Trace::new(&config, 2);
    trace.moods[0] = Mood::Lost;
    trace.run(ms(900));
    let started = trace.starts_of(0)[0];
    // The probe of backend 1 was due before 2.0 s, and was not started.
    trace.now = START + ms(3100);
    let result = ProbeResult {
        backend: 0,
        serial: 1,
        started,
        finished: trace.now,
        outcome: outcome(failed(Stage::Tls, Failure::TimedOut), ms(2200)),
    };
    trace.health.handle_result(trace.now, result);
    assert_eq!(trace.health.discarded(0), 1);
}

/// Proves that a stall makes up for no missed probe: one per backend afterwards.
#[test]
fn missed_probes_are_not_made_up_for() {
    let mut trace = Trace::three_up();
    let before = trace.starts.len();
    trace.stall(ms(60_000));
    trace.run(ms(1700));
    assert_eq!(trace.starts.len(), before + 3);
}

/// Proves that ordinary lateness discards nothing.
#[test]
fn small_lateness_is_tolerated() {
    let mut trace = Trace::new(&config(StartState::Up), 1);
    trace.moods[0] = Mood::Silent;
    run_until_probe_flies(&mut trace);
    trace.stall(ms(1400));
    assert_eq!(trace.health.discarded(0), 0);
    assert_eq!(trace.health.last(0).unwrap().count, 1);
}

/// Proves that a controller that is late every time still sees that a backend refuses.
#[test]
fn refusals_are_seen_by_a_controller_that_is_always_late() {
    let mut trace = Trace::new(&config(StartState::Up), 3);
    trace.moods = vec![Mood::Refuses; 3];
    for _ in 0..20 {
        trace.stall(ms(3000));
    }
    assert_eq!(trace.states(), [Down; 3]);
}

/// Proves that an adopted state stands until `rise` or `fall` results change it.
#[test]
fn adopted_state_stands_until_results_change_it() {
    let mut trace = Trace::new(&config(StartState::Probe), 2);
    trace.health.adopt(0, Up);
    trace.health.adopt(1, Draining);
    assert_eq!(trace.states(), [Up, Draining]);
    trace.run(ms(210));
    assert!(trace.changes.is_empty());
    trace.run(ms(600));
    assert_eq!(trace.entered(), [(1, Up)]);
}

/// Proves that an adopted DOWN does not make a start slower: with `start = "probe"` one result
/// decides as without it.
#[test]
fn adopted_down_ends_with_the_first_pass() {
    let mut trace = Trace::new(&config(StartState::Probe), 1);
    trace.health.adopt(0, Down);
    trace.run(ms(210));
    assert_eq!(trace.entered(), [(0, Up)]);
}

/// Proves that the first probes of a service that starts UP are spread over the interval.
#[test]
fn first_probes_are_spread() {
    let mut trace = Trace::new(&config(StartState::Up), 4);
    trace.run(ms(2000));
    for (index, slot) in (0..4).zip([0u64, 500, 1000, 1500]) {
        let first = trace.starts_of(index)[0];
        let range = START + ms(slot)..=START + ms(slot + 500);
        assert!(range.contains(&first), "{index}: {first}");
    }
}

/// Proves that a service without backends wants nothing.
#[test]
fn no_backends_no_timer() {
    let mut health = ServiceHealth::new(&config(StartState::Up), 0, START, 1);
    assert_eq!(health.poll_timeout(), None);
    health.handle_timeout(START);
    assert_eq!(health.poll_action(), None);
}

fn any_mood() -> impl Strategy<Value = Mood> {
    prop::sample::select(vec![
        Mood::Good,
        Mood::Unready,
        Mood::SlowHttp,
        Mood::Refuses,
        Mood::Silent,
        Mood::NoDescriptor,
        Mood::Lost,
    ])
}

fn any_start() -> impl Strategy<Value = StartState> {
    prop::sample::select(vec![StartState::Down, StartState::Probe, StartState::Up])
}

/// One change of mood after a while: (backend, mood, time).
fn any_script() -> impl Strategy<Value = Vec<(usize, Mood, u64)>> {
    prop::collection::vec((0usize..5, any_mood(), 0u64..4000), 1..40)
}

proptest! {
    /// Proves that a timer handled too early does nothing.
    #[test]
    fn early_timeouts_do_nothing(script in any_script(), start in any_start(), seed: u64) {
        let mut trace = Trace::seeded(&config(start), 3, seed);
        for (backend, mood, span) in script {
            trace.moods[backend % 3] = mood;
            trace.run(ms(span));
            let before = (trace.health.poll_timeout(), trace.states());
            if before.0.is_some_and(|due| due > trace.now) {
                trace.health.handle_timeout(trace.now);
                prop_assert_eq!(trace.health.poll_action(), None);
                prop_assert_eq!((trace.health.poll_timeout(), trace.states()), before);
            }
        }
    }

    /// Proves that a backend has one probe under way at a time, that probes keep the fast
    /// interval's distance, and that none is forgotten.
    #[test]
    fn schedule_never_bursts_and_never_stops(
        script in any_script(), start in any_start(), seed: u64, backends in 1usize..6,
    ) {
        let mut trace = Trace::seeded(&config(start), backends, seed);
        for (backend, mood, span) in script {
            trace.moods[backend % backends] = mood;
            trace.run(ms(span));
            for backend in 0..backends {
                let under_way = trace.pending.iter().filter(|r| r.backend == backend);
                prop_assert!(under_way.count() <= 1);
            }
        }
        for backend in 0..backends {
            let starts = trace.starts_of(backend);
            let first = starts.first().copied().unwrap_or(trace.now);
            prop_assert!(first.saturating_since(START) <= ms(2000));
            let ends = starts.iter().skip(1).copied().chain([trace.now]);
            for (index, (from, to)) in starts.iter().zip(ends).enumerate() {
                let gap = to.saturating_since(*from);
                prop_assert!(gap >= ms(450) || index + 1 == starts.len(), "{:?}", gap);
                prop_assert!(gap <= ms(2200), "{:?}", gap);
            }
        }
    }

    /// Proves that, on time, states change when and only when the table in the module's
    /// documentation says so, counted independently from the results in order.
    #[test]
    fn states_follow_the_table(script in any_script(), start in any_start(), seed: u64) {
        let mut model = Model::new(start, 3);
        let mut trace = Trace::seeded(&config(start), 3, seed);
        for (backend, mood, span) in script {
            trace.moods[backend % 3] = mood;
            let end = trace.now + ms(span);
            while let Some(next) = trace.next_event().filter(|next| *next <= end) {
                trace.now = next;
                let counted: Vec<_> = (0..3).map(|b| trace.health.last(b).cloned()).collect();
                let started: Vec<_> = (0..3).map(|b| trace.starts_of(b).last().copied()).collect();
                trace.deliver();
                trace.health.handle_timeout(next);
                trace.drain();
                for (backend, before) in counted.iter().enumerate() {
                    let seen = trace.health.last(backend);
                    if seen != before.as_ref() {
                        let seen = &seen.expect("never forgotten").outcome;
                        model.count(backend, seen, started[backend].expect("started"));
                    }
                }
                // Results that come at the same instant are judged one by one: the group rule
                // may see only some of them.
                for backend in 0..3 {
                    let allowed = model.allowed(backend);
                    prop_assert!(allowed.contains(&trace.health.state(backend)),
                        "{} {:?} {:?}", backend, trace.health.state(backend), allowed);
                    model.states[backend] = trace.health.state(backend);
                }
            }
            trace.now = end;
        }
    }

    /// Proves that when a backend is checked does not depend on how the others' checks end: a
    /// neighbour that hangs changes not one start time, nor does one that refuses at once.
    #[test]
    fn neighbours_never_change_start_times(
        seed: u64, mood in any_mood(), start in any_start(), backends in 2usize..6,
    ) {
        let run = |mood| {
            let mut trace = Trace::seeded(&config(start), backends, seed);
            trace.moods[0] = mood;
            trace.run(ms(60_000));
            let of = |backend| trace.starts_of(backend);
            (1..backends).map(of).collect::<Vec<_>>()
        };
        prop_assert_eq!(run(mood), run(Mood::Good));
    }

    /// Proves that silence alone never takes down more than half of the backends that fell
    /// silent together.
    #[test]
    fn silence_never_takes_down_most(seed: u64, delays in prop::collection::vec(0u64..2000, 5)) {
        let mut trace = Trace::seeded(&config(StartState::Up), 5, seed);
        let mut order: Vec<(u64, usize)> = delays.into_iter().zip(0..).collect();
        order.sort_unstable();
        trace.run(ms(5000));
        let begin = trace.now;
        for (delay, backend) in order {
            trace.run((begin + ms(delay)).saturating_since(trace.now));
            trace.moods[backend] = Mood::Silent;
        }
        trace.run(ms(100_000));
        let down = trace.states().into_iter().filter(|state| *state == Down).count();
        prop_assert!(down <= 2, "{:?}", trace.states());
    }

    /// Proves that stalls alone never change a state, whether the prober's timers fire on time or
    /// stall with the controller: what answers well stays UP.
    #[test]
    fn stalls_change_nothing(
        seed: u64,
        backends in 1usize..4,
        stalls in prop::collection::vec((0u64..3000, 2600u64..12_000, any::<bool>()), 1..20),
    ) {
        let mut trace = Trace::seeded(&config(StartState::Up), backends, seed);
        for (span, stall, prober_too) in stalls {
            trace.run(ms(span));
            let end = trace.now + ms(stall);
            for result in &mut trace.pending {
                let on_time = result.started + ms(1000);
                result.finished = if prober_too { end } else { on_time };
                result.outcome = outcome(failed(Stage::Tls, Failure::TimedOut), ms(1000));
            }
            trace.stall(ms(stall));
        }
        prop_assert!(trace.changes.is_empty());
    }
}

/// The documented table, counted over whole histories instead of by run lengths.
struct Model {
    states: Vec<BackendState>,
    /// (class, proves death, start of the probe)
    history: Vec<Vec<(Class, bool, Timestamp)>>,
    fresh: Vec<bool>,
    /// The group rule keeps it from DOWN.
    held: Vec<bool>,
    any_pass: Vec<bool>,
    probe: bool,
}

impl Model {
    fn new(start: StartState, backends: usize) -> Self {
        let state = if start == StartState::Up { Up } else { Down };
        Self {
            states: vec![state; backends],
            history: vec![Vec::new(); backends],
            fresh: vec![false; backends],
            held: vec![false; backends],
            any_pass: vec![false; backends],
            probe: start == StartState::Probe,
        }
    }

    fn count(&mut self, backend: usize, outcome: &ProbeOutcome, started: Timestamp) {
        let class = outcome.class();
        if class != Class::Void {
            self.history[backend].push((class, outcome.proves_death(), started));
            self.fresh[backend] = true;
        }
    }

    fn ends_with(&self, backend: usize, count: usize, is: impl Fn(Class) -> bool) -> bool {
        let history = &self.history[backend];
        history.len() >= count && history[history.len() - count..].iter().all(|r| is(r.0))
    }

    fn silent_since(&self, backend: usize) -> Option<Timestamp> {
        let dead = self.history[backend]
            .rsplit(|r| r.0 != Class::Dead)
            .next()?;
        let silent = dead.iter().all(|(_, proof, _)| !proof);
        dead.first().filter(|_| silent).map(|r| r.2)
    }

    /// States that the table allows after the latest results.
    fn allowed(&mut self, backend: usize) -> Vec<BackendState> {
        let state = self.states[backend];
        if !std::mem::take(&mut self.fresh[backend]) {
            return vec![state];
        }
        let held = std::mem::take(&mut self.held[backend]);
        let rise = if self.probe && !self.any_pass[backend] {
            1
        } else {
            2
        };
        self.any_pass[backend] |= self.ends_with(backend, 1, |c| c == Class::Pass);
        if self.ends_with(backend, rise, |c| c == Class::Pass) {
            vec![Up]
        } else if self.ends_with(backend, 3, |c| c == Class::Dead) {
            match self.down_or_held(backend) {
                Draining => {
                    self.held[backend] = true;
                    vec![Draining]
                }
                Down if held && self.silent_since(backend).is_some() => {
                    let last = self.history[backend].len() - 1;
                    self.history[backend].drain(..last);
                    vec![Draining]
                }
                state => vec![state],
            }
        } else if self.drains(backend, rise) {
            vec![Draining]
        } else {
            vec![state]
        }
    }

    fn drains(&self, backend: usize, rise: usize) -> bool {
        match self.states[backend] {
            Up => self.ends_with(backend, 3, |class| class != Class::Pass),
            Down => self.ends_with(backend, rise, |class| class != Class::Dead),
            Draining => false,
        }
    }

    fn down_or_held(&self, backend: usize) -> BackendState {
        let Some(own) = self.silent_since(backend) else {
            return Down;
        };
        if self.states[backend] == Down {
            return Down;
        }
        let window = ms(4 * 2000 + 1000);
        let others = (0..3).filter(|other| *other != backend);
        let together = others
            .filter_map(|other| self.silent_since(other))
            .filter(|since| *since <= own + window && own <= *since + window);
        match together.count() {
            0 => Down,
            _ => Draining,
        }
    }
}

/// Without checks every backend is UP from the first moment, nothing is due, and what an earlier
/// run thought of it does not matter.
#[test]
fn unchecked_backends_are_up() {
    let config = HealthConfig {
        check: CheckConfig::None,
        ..config(StartState::Up)
    };
    let mut health = ServiceHealth::new(&config, 2, Timestamp::default(), 1);
    health.adopt(0, Down);
    health.handle_timeout(Timestamp::default() + ms(60_000));
    assert!(health.is_unchecked());
    assert_eq!([health.state(0), health.state(1)], [Up; 2]);
    assert_eq!(health.poll_timeout(), None);
    assert!(health.poll_action().is_none());
}

/// HTTP checks at the default pace that keep connections.
fn kept(start: StartState) -> HealthConfig {
    let http = HttpConfig {
        path: "/readyz".to_owned(),
        method: HttpMethod::Get,
        version: HttpVersion::V11,
        host: None,
        headers: Vec::new(),
        expect_status: Vec::new(),
        expect_body: None,
        bearer_token_file: None,
        keep_alive: true,
    };
    HealthConfig {
        check: CheckConfig::Http(http),
        ..config(start)
    }
}

/// Proves that a connection is used again only while the backend is UP and its last check passed,
/// and not every time; without `keep_alive` never.
#[test]
fn connections_are_used_again_while_all_is_well() {
    let mut trace = Trace::new(&kept(StartState::Down), 1);
    trace.run(ms(3000));
    assert_eq!(trace.states(), [Up]);
    assert_eq!(trace.reuses, [false, false]);
    // One that opens a connection is among any eleven.
    trace.run(ms(60_000));
    let fresh = trace.reuses.iter().filter(|reuse| !**reuse).count();
    assert!(
        trace.reuses.contains(&true) && (4..=6).contains(&fresh),
        "{:?}",
        trace.reuses
    );

    trace.moods[0] = Mood::Unready;
    trace.run(ms(10_000));
    assert_eq!(trace.states(), [Draining]);
    trace.reuses.clear();
    trace.run(ms(10_000));
    trace.moods[0] = Mood::Refuses;
    trace.run(ms(10_000));
    assert_eq!(trace.states(), [Down]);
    assert!(!trace.reuses.is_empty() && !trace.reuses.contains(&true));

    let mut without = Trace::new(&config(StartState::Up), 1);
    without.run(ms(60_000));
    assert!(!without.reuses.contains(&true));
}

/// Proves that the first bad result is followed by fresh connections, so that DOWN rests on them;
/// and so is a word of the data plane that the backend refuses, and a new configuration.
#[test]
fn doubt_asks_for_fresh_connections() {
    let config = kept(StartState::Up);
    let mut trace = Trace::new(&config, 1);
    trace.run(ms(5000));
    trace.moods[0] = Mood::Silent;
    trace.reuses.clear();
    trace.run(ms(8000));
    assert!(trace.reuses.len() > 2);
    assert!(!trace.reuses[1..].contains(&true), "{:?}", trace.reuses);

    let mut trace = Trace::new(&config, 1);
    trace.run(ms(5000));
    assert_eq!(trace.reuses.last(), Some(&true));
    trace.health.check_soon(0, trace.now);
    trace.run(ms(100));
    assert_eq!(trace.reuses.last(), Some(&false));
    trace.run(ms(5000));
    assert_eq!(trace.reuses.last(), Some(&true));

    let origins = [Some(0)];
    trace.health = trace
        .health
        .succeeded_by((&config, &config), &origins, trace.now, 1000);
    trace.reuses.clear();
    trace.run(ms(5000));
    assert_eq!(trace.reuses[..2], [false, true]);
}

//! When the agents of a service's backends are asked, and what they have said so far.

use std::time::Duration;

use super::{
    GIVE_UP_GRACE,
    agent::{AgentReport, AgentState},
    jitter::Jitter,
};
use crate::{config::model::AgentConfig, core::time::Timestamp};

/// Percent by which the times between questions vary.
const SPREAD: u8 = 10;

/// The agents of a service's backends; none where nobody is asked.
#[derive(Clone, Debug)]
pub(super) struct Agents {
    interval: Duration,
    timeout: Duration,
    /// By backend.
    all: Vec<Agent>,
}

/// The agent of one backend.
#[derive(Clone, Debug)]
struct Agent {
    state: AgentState,
    /// When the next question is due; while one is open: when its answer is no longer waited for.
    at: Timestamp,
    /// A question is open.
    asked: bool,
    serial: u64,
    jitter: Jitter,
}

impl Agents {
    /// The agents of `backends` backends, asked from `now` on.
    pub(super) fn new(
        config: Option<&AgentConfig>,
        backends: usize,
        now: Timestamp,
        jitter: &mut Jitter,
    ) -> Self {
        let Some(config) = config else {
            return Self {
                interval: Duration::ZERO,
                timeout: Duration::ZERO,
                all: Vec::new(),
            };
        };
        let span = config.interval / 10;
        let agent = |index| Agent {
            state: AgentState::default(),
            at: now + jitter.slot(span, index, backends),
            asked: false,
            serial: 0,
            jitter: jitter.fork(),
        };
        Self {
            interval: config.interval,
            timeout: config.timeout,
            all: (0..backends).map(agent).collect(),
        }
    }

    /// Goes on with what `old` agents have said; `origins` as for the checks. Answers to questions
    /// with a serial number up to `serial` do not count.
    pub(super) fn follow(&mut self, old: &Self, origins: &[Option<usize>], serial: u64) {
        for (agent, origin) in self.all.iter_mut().zip(origins) {
            agent.serial = serial;
            if let Some(known) = origin.and_then(|origin| old.all.get(origin)) {
                agent.state.clone_from(&known.state);
            }
        }
    }

    /// What the agent of `backend` has said.
    pub(super) fn state(&self, backend: usize) -> Option<&AgentState> {
        self.all.get(backend).map(|agent| &agent.state)
    }

    /// When something is due.
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.all.iter().map(|agent| agent.at).min()
    }

    /// Time that an answer may take.
    pub(super) const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Asks if that is due: the serial number of the question to `backend`.
    pub(super) fn ask(&mut self, backend: usize, now: Timestamp) -> Option<u64> {
        let agent = self.all.get_mut(backend)?;
        if agent.at > now {
            return None;
        }
        // An open question is given up: who does not answer says nothing.
        agent.serial += 1;
        agent.asked = true;
        agent.at = now + self.timeout.saturating_add(GIVE_UP_GRACE);
        Some(agent.serial)
    }

    /// Takes in an answer; `None`: there was none. Whether anything is different now.
    pub(super) fn answer(
        &mut self,
        (backend, serial): (usize, u64),
        now: Timestamp,
        report: Option<AgentReport>,
    ) -> bool {
        let interval = self.interval;
        let asked = |agent: &&mut Agent| agent.asked && agent.serial == serial;
        let Some(agent) = self.all.get_mut(backend).filter(asked) else {
            return false;
        };
        agent.asked = false;
        agent.at = now + agent.jitter.vary(interval, SPREAD);
        let before = agent.state.clone();
        if let Some(report) = report {
            agent.state.hear(report);
        }
        agent.state != before
    }
}

//! What a backend's agent says about it: haproxy's agent-check protocol ("agent-check" in its
//! configuration manual). An agent answers a connection with one line of words, separated by
//! spaces, tabs or commas, in any order:
//!
//! | word                      | meaning                                                        |
//! |---------------------------|----------------------------------------------------------------|
//! | `75%`                     | weight, in percent of the one in force; `0%` drains            |
//! | `ready`                   | ends `drain` and `maint`                                       |
//! | `drain`                   | no new connections                                             |
//! | `maint`                   | out of service                                                 |
//! | `up`                      | ends `down`, `fail` and `stopped`                              |
//! | `down`, `fail`, `stopped` | out of service; what follows a `#` says why                  |
//! | `maxconn:30`              | nothing here: connections are not counted                      |
//!
//! What is not mentioned stays as it was, and so does everything while the agent does not answer.

use std::fmt;

use lb_common::abi::BackendState;

/// Longest reason that is kept, in characters.
const MAX_REASON: usize = 120;

/// What an agent said in one line. `None`: nothing about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentReport {
    weight: Option<u16>,
    admin: Option<Admin>,
    health: Option<Health>,
}

/// The operator's word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Admin {
    #[default]
    Ready,
    Drain,
    Maint,
}

/// The agent's own view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Health {
    #[default]
    Up,
    /// The word, and why.
    Down(String),
}

/// What an agent has said so far, put together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentState {
    weight: u16,
    admin: Admin,
    health: Health,
}

impl Default for AgentState {
    fn default() -> Self {
        Self {
            weight: 100,
            admin: Admin::default(),
            health: Health::default(),
        }
    }
}

impl AgentReport {
    /// Reads the first line of `answer`; `None` if it has no word of the protocol.
    pub fn parse(answer: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(answer);
        let line = text.split(['\r', '\n', '\0']).next().unwrap_or_default();
        let (words, why) = line.split_once('#').unwrap_or((line, ""));
        let mut report = Self::default();
        for word in words.split([' ', '\t', ',']) {
            report.hear(&word.to_ascii_lowercase(), why.trim());
        }
        (report != Self::default()).then_some(report)
    }

    fn hear(&mut self, word: &str, why: &str) {
        match word {
            "ready" => self.admin = Some(Admin::Ready),
            "drain" => self.admin = Some(Admin::Drain),
            "maint" => self.admin = Some(Admin::Maint),
            "up" => self.health = Some(Health::Up),
            "down" | "fail" | "failed" | "stopped" => {
                let why = why.chars().filter(|c| !c.is_control());
                let why: String = why.take(MAX_REASON).collect();
                let text = if why.is_empty() {
                    word.to_owned()
                } else {
                    format!("{word}, {why}")
                };
                self.health = Some(Health::Down(text));
            }
            other => {
                let number = other.strip_suffix('%');
                let digits = number.filter(|number| number.bytes().all(|b| b.is_ascii_digit()));
                self.weight = digits
                    .and_then(|digits| digits.parse().ok())
                    .or(self.weight);
            }
        }
    }
}

impl AgentState {
    /// Takes in what was said.
    pub fn hear(&mut self, report: AgentReport) {
        self.weight = report.weight.unwrap_or(self.weight);
        self.admin = report.admin.unwrap_or(self.admin);
        self.health = report.health.unwrap_or(std::mem::take(&mut self.health));
    }

    /// Percent of the weight that the backend has otherwise.
    pub const fn weight(&self) -> u16 {
        self.weight
    }

    /// The best state that the backend may have by what was said.
    pub const fn limit(&self) -> BackendState {
        match (&self.health, self.admin) {
            (Health::Down(_), _) | (_, Admin::Maint) => BackendState::Down,
            (Health::Up, Admin::Drain) => BackendState::Draining,
            (Health::Up, Admin::Ready) if self.weight == 0 => BackendState::Draining,
            (Health::Up, Admin::Ready) => BackendState::Up,
        }
    }

    /// The state of a backend whose checks say `checked`: the worse one of both.
    pub const fn apply(&self, checked: BackendState) -> BackendState {
        match (checked, self.limit()) {
            (BackendState::Down, _) | (_, BackendState::Down) => BackendState::Down,
            (BackendState::Draining, _) | (_, BackendState::Draining) => BackendState::Draining,
            (BackendState::Up, BackendState::Up) => BackendState::Up,
        }
    }
}

/// For operators: `the agent says: drain, 50%`.
impl fmt::Display for AgentState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let health = match &self.health {
            Health::Up => "up",
            Health::Down(why) => why,
        };
        let admin = match self.admin {
            Admin::Ready => "ready",
            Admin::Drain => "drain",
            Admin::Maint => "maint",
        };
        write!(f, "the agent says: {health}, {admin}, {}%", self.weight)
    }
}

#[cfg(test)]
mod tests {
    use BackendState::{Down, Draining, Up};

    use super::*;

    fn after(lines: &[&str]) -> AgentState {
        let mut state = AgentState::default();
        for line in lines {
            state.hear(AgentReport::parse(line.as_bytes()).unwrap());
        }
        state
    }

    /// Proves what each word of the protocol does, alone and together, in any case and order.
    #[test]
    fn words_mean_what_the_protocol_says() {
        let cases: [(&[&str], BackendState, u16); 14] = [
            (&["up\n"], Up, 100),
            (&["75%\r\n"], Up, 75),
            (&["0%"], Draining, 0),
            (&["drain"], Draining, 100),
            (&["MAINT"], Down, 100),
            (&["down#disk full\n"], Down, 100),
            (&["fail"], Down, 100),
            (&["stopped 50%"], Down, 50),
            (&["50%,ready\tup maxconn:30\nmaint"], Up, 50),
            (&["maint", "up"], Down, 100),
            (&["maint", "ready"], Up, 100),
            (&["drain", "30%", "ready"], Up, 30),
            (&["down", "ready"], Down, 100),
            (&["down", "up 100%"], Up, 100),
        ];
        for (lines, state, weight) in cases {
            let agent = after(lines);
            assert_eq!(
                (agent.limit(), agent.weight()),
                (state, weight),
                "{lines:?}"
            );
        }
    }

    /// Proves that what is no word of the protocol says nothing.
    #[test]
    fn nonsense_says_nothing() {
        for answer in [
            "",
            "\n",
            "hello world",
            "%",
            "-5%",
            "+5%",
            "5 %",
            "99999%",
            "#up",
            "maxconn:3",
        ] {
            assert_eq!(AgentReport::parse(answer.as_bytes()), None, "{answer:?}");
        }
        assert_eq!(AgentReport::parse(b"\xff\xfe"), None);
    }

    /// Proves that the agent can only make a state worse than its checks say.
    #[test]
    fn the_worse_state_wins() {
        let states = [Up, Draining, Down];
        for (line, limit) in [("up", 0), ("drain", 1), ("maint", 2)] {
            for (checked, state) in states.into_iter().enumerate() {
                assert_eq!(after(&[line]).apply(state), states[checked.max(limit)]);
            }
        }
    }

    /// Proves the words that operators read.
    #[test]
    fn states_read_well() {
        let text = after(&["stopped 20% # upgrade now\n"]).to_string();
        assert_eq!(text, "the agent says: stopped, upgrade now, ready, 20%");
        let text = after(&["drain"]).to_string();
        assert_eq!(text, "the agent says: up, drain, 100%");
    }
}

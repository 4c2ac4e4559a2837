//! What one probe saw, and what that says about the backend. The prober reports facts (stage,
//! failure, status, times); the judgement is made here.

use std::{fmt, time::Duration};

/// The result of one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeOutcome {
    /// What was seen.
    pub finding: Finding,
    /// How long each stage took that was begun.
    pub times: StageTimes,
}

/// What a probe saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A `tcp` check's connection was established.
    Connected,
    /// A `tls` check's handshake was completed.
    Handshake,
    /// An HTTP response.
    Status {
        /// Status code.
        code: u16,
        /// Whether code and body are as configured.
        expected: bool,
        /// What is wrong, in words, if the response says so.
        note: Option<String>,
    },
    /// A conversation went as configured.
    Answered,
    /// In a conversation something did not come that was waited for.
    Unanswered {
        /// What was waited for.
        wanted: String,
        /// What had come instead.
        got: String,
        /// What ended the waiting.
        failure: Failure,
    },
    /// A program came to its end.
    Exited {
        /// Whether its status was 0.
        passed: bool,
        /// How it ended, in words.
        status: String,
        /// What it said, the first line.
        line: String,
    },
    /// The probe failed in `stage`.
    Failed {
        /// Stage that failed; the ones before it succeeded.
        stage: Stage,
        /// How it failed.
        failure: Failure,
    },
    /// Nobody reported a result within the time limit and its grace.
    GaveUp,
}

/// A stage of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// TCP connection.
    Connect,
    /// TLS handshake.
    Tls,
    /// HTTP request and response.
    Http,
    /// Conversation.
    Talk,
    /// A program.
    Command,
}

impl Stage {
    /// What messages call the thing that the stage waits for.
    const fn subject(self) -> &'static str {
        match self {
            Self::Connect => "connection",
            Self::Tls => "TLS: handshake",
            Self::Http => "HTTP: response",
            Self::Talk => "answer",
            Self::Command => "command",
        }
    }

    /// What messages put before a failure of the connection itself.
    const fn prefix(self) -> &'static str {
        match self {
            Self::Connect | Self::Talk | Self::Command => "",
            Self::Tls => "TLS: ",
            Self::Http => "HTTP: ",
        }
    }
}

/// How a stage failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The probe's time was over.
    TimedOut,
    /// The backend's kernel refused the connection: nobody listens.
    Refused,
    /// The backend reset the connection.
    Reset,
    /// The backend closed the connection before the stage was complete.
    Closed,
    /// No route, or a router or our own kernel (no neighbour) says that the host is not there.
    Unreachable,
    /// The backend answered, but not in the stage's protocol or not to our liking: a
    /// certificate that is not accepted, a TLS alert, malformed HTTP.
    Protocol(String),
    /// This node could not ask: no descriptor, no memory, no free port. Says nothing about the
    /// backend.
    Local(String),
}

/// Time that each stage took; `None` if it was not begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageTimes {
    /// TCP connection.
    pub connect: Option<Duration>,
    /// TLS handshake.
    pub tls: Option<Duration>,
    /// HTTP request and response.
    pub http: Option<Duration>,
    /// Conversation.
    pub talk: Option<Duration>,
    /// A program.
    pub command: Option<Duration>,
}

impl StageTimes {
    /// Time of all stages together.
    pub fn total(&self) -> Duration {
        [self.connect, self.tls, self.http, self.talk, self.command]
            .into_iter()
            .flatten()
            .fold(Duration::ZERO, Duration::saturating_add)
    }
}

/// What an outcome counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The check succeeded.
    Pass,
    /// The backend is there, but does not do its work: wrong status, no or no good HTTP answer
    /// on a connection that was established well.
    NotReady,
    /// No connection, or no TLS handshake on a fresh connection.
    Dead,
    /// The check could not be made: counts for nothing.
    Void,
}

impl ProbeOutcome {
    /// What the outcome counts as.
    pub const fn class(&self) -> Class {
        match &self.finding {
            Finding::Connected
            | Finding::Handshake
            | Finding::Answered
            | Finding::Exited { passed: true, .. }
            | Finding::Status { expected: true, .. } => Class::Pass,
            Finding::Unanswered {
                failure: Failure::Local(_),
                ..
            } => Class::Void,
            Finding::Status {
                expected: false, ..
            }
            | Finding::Exited { passed: false, .. }
            | Finding::Unanswered { .. } => Class::NotReady,
            Finding::Failed { stage, failure } => match (stage, failure) {
                (_, Failure::Local(_)) => Class::Void,
                (Stage::Http | Stage::Talk | Stage::Command, _) => Class::NotReady,
                (Stage::Connect | Stage::Tls, _) => Class::Dead,
            },
            Finding::GaveUp => Class::Dead,
        }
    }

    /// Whether a time limit decided. Only such an outcome can be made up by our own lateness.
    pub const fn timed_out(&self) -> bool {
        matches!(
            self.finding,
            Finding::GaveUp
                | Finding::Failed {
                    failure: Failure::TimedOut,
                    ..
                }
                | Finding::Unanswered {
                    failure: Failure::TimedOut,
                    ..
                }
        )
    }

    /// Whether a [`Class::Dead`] outcome was the backend's own doing: its kernel or its process
    /// ended the connection. Silence, an unreachable host (which may be our own link) and a
    /// handshake that failed by its content (which may be our own stale CA or client
    /// certificate) prove nothing of the kind.
    pub const fn proves_death(&self) -> bool {
        matches!(
            self.finding,
            Finding::Failed {
                stage: Stage::Connect | Stage::Tls,
                failure: Failure::Refused | Failure::Reset | Failure::Closed,
            }
        )
    }
}

/// For operators: `HTTP 500 after 2.01 s: etcd failed`, `connection refused`,
/// `TLS: handshake timed out after 1.00 s`.
impl fmt::Display for ProbeOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let after = Seconds(self.times.total());
        match &self.finding {
            Finding::Connected => write!(f, "connected after {after}"),
            Finding::Handshake => write!(f, "TLS handshake after {after}"),
            Finding::Status { code, note, .. } => {
                write!(f, "HTTP {code} after {after}")?;
                note.iter().try_for_each(|note| write!(f, ": {note}"))
            }
            Finding::Answered => write!(f, "answered after {after}"),
            Finding::Exited { status, line, .. } => {
                write!(f, "{status} after {after}")?;
                let said = (!line.is_empty()).then_some(line);
                said.iter().try_for_each(|line| write!(f, ": {line}"))
            }
            Finding::Unanswered {
                wanted,
                got,
                failure,
            } => {
                let (stage, failure) = (Stage::Talk, failure.clone());
                let ended = Self {
                    finding: Finding::Failed { stage, failure },
                    times: self.times,
                };
                write!(f, "{wanted} did not come, but {got}: {ended}")
            }
            Finding::GaveUp => write!(f, "the check gave no result after {after}"),
            Finding::Failed { stage, failure } => {
                let (subject, prefix) = (stage.subject(), stage.prefix());
                match failure {
                    Failure::TimedOut => write!(f, "{subject} timed out after {after}"),
                    Failure::Refused => write!(f, "{prefix}connection refused"),
                    Failure::Reset => write!(f, "{prefix}connection reset after {after}"),
                    Failure::Closed => write!(f, "{prefix}connection closed after {after}"),
                    Failure::Unreachable => write!(f, "{prefix}host unreachable"),
                    Failure::Protocol(text) => write!(f, "{prefix}{text}"),
                    Failure::Local(text) => write!(f, "not checked: {text}"),
                }
            }
        }
    }
}

/// Seconds with two decimals, cut off: `2.01 s`.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{:02} s",
            self.0.as_secs(),
            self.0.subsec_millis() / 10
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(stage: Stage, failure: Failure) -> ProbeOutcome {
        ProbeOutcome {
            finding: Finding::Failed { stage, failure },
            times: StageTimes {
                connect: Some(Duration::from_millis(1)),
                tls: (stage != Stage::Connect).then_some(Duration::from_millis(999)),
                http: (stage == Stage::Http).then_some(Duration::from_millis(1011)),
                ..StageTimes::default()
            },
        }
    }

    /// Proves the rule of DOWN: a failed connection or TLS handshake is Dead, a failed HTTP
    /// exchange after them is not, and a fault of this node counts for nothing.
    #[test]
    fn stage_and_failure_decide_the_class() {
        let failures = [
            Failure::TimedOut,
            Failure::Refused,
            Failure::Reset,
            Failure::Closed,
            Failure::Unreachable,
            Failure::Protocol("x".into()),
        ];
        for failure in failures {
            let class = |stage| failed(stage, failure.clone()).class();
            assert_eq!(class(Stage::Connect), Class::Dead, "{failure:?}");
            assert_eq!(class(Stage::Tls), Class::Dead, "{failure:?}");
            assert_eq!(class(Stage::Http), Class::NotReady, "{failure:?}");
            assert_eq!(class(Stage::Talk), Class::NotReady, "{failure:?}");
            assert_eq!(class(Stage::Command), Class::NotReady, "{failure:?}");
        }
        for stage in [Stage::Connect, Stage::Tls, Stage::Http, Stage::Talk] {
            let local = failed(stage, Failure::Local("no descriptor".into()));
            assert_eq!(local.class(), Class::Void);
        }
    }

    /// Proves that only what the backend's own side did counts as proof of its death.
    #[test]
    fn silence_and_rejected_certificates_prove_nothing() {
        for failure in [Failure::Refused, Failure::Reset, Failure::Closed] {
            assert!(failed(Stage::Tls, failure).proves_death());
        }
        for failure in [
            Failure::TimedOut,
            Failure::Unreachable,
            Failure::Protocol("unknown issuer".into()),
        ] {
            assert!(!failed(Stage::Tls, failure).proves_death());
        }
        assert!(!failed(Stage::Http, Failure::Reset).proves_death());
    }

    /// Proves the words that operators read.
    #[test]
    fn outcomes_read_well() {
        let status = ProbeOutcome {
            finding: Finding::Status {
                code: 500,
                expected: false,
                note: Some("etcd failed".into()),
            },
            times: failed(Stage::Http, Failure::Closed).times,
        };
        assert_eq!(status.to_string(), "HTTP 500 after 2.01 s: etcd failed");
        let text = |stage, failure| failed(stage, failure).to_string();
        assert_eq!(text(Stage::Connect, Failure::Refused), "connection refused");
        assert_eq!(
            text(Stage::Tls, Failure::TimedOut),
            "TLS: handshake timed out after 1.00 s"
        );
        assert_eq!(
            text(Stage::Http, Failure::TimedOut),
            "HTTP: response timed out after 2.01 s"
        );
        assert_eq!(
            text(Stage::Tls, Failure::Reset),
            "TLS: connection reset after 1.00 s"
        );
    }
}

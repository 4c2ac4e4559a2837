//! Orders about backends: `xvip backend drain` and its like, as requests and answers.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::added::NewBackend;
use crate::{
    config::model::BackendConfig,
    core::{
        controller::REMOVAL_DRAIN,
        operator::Order,
        standing::{MAX_WEIGHT, Weight},
    },
};

/// The longest time that a drain may have: 30 days.
pub const MAX_DEADLINE: Duration = Duration::from_hours(30 * 24);

/// An order, for example
/// `{"command":"backend","action":"drain","name":"master02","deadline_ms":300000}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendQuery {
    /// What is to be done.
    pub action: BackendAction,
    /// `backend.name`.
    pub name: String,
    /// `service.name`; if absent, the backends of this name in all services. To [`BackendAction::Add`] it may
    /// be absent if there is one service, to [`BackendAction::Remove`] if one has such a backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// To [`BackendAction::Drain`]: milliseconds until maintenance; to [`BackendAction::Remove`]: until it is
    /// removed, 30,000 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// To [`BackendAction::Weight`]: `"20"`, or `"50%"` of the configured weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<WeightText>,
    /// To [`BackendAction::Add`]: what is added; absent: a backend of the configuration that was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<NewBackend>,
    /// Also if nobody is left for new connections.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// What is to be done with a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendAction {
    /// No new connections.
    Drain,
    /// Maintenance: nothing, and what it has is reset.
    Disable,
    /// What the checks say.
    Enable,
    /// Another weight.
    Weight,
    /// One more backend.
    Add,
    /// One backend less, after it was drained.
    Remove,
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// An order about backends that are there.
    Order(Order),
    /// One more; `None`: one that was removed.
    Add(Option<BackendConfig>),
    /// One less.
    Remove {
        /// Time to drain in.
        drain: Duration,
    },
}

/// Why a request makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// A weight without a weight.
    #[error("weight is missing: write one such as \"20\" or \"50%\"")]
    NoWeight,
    /// A deadline or a weight for something else.
    #[error("deadline_ms belongs to drain and remove, weight to weight, and new to add")]
    Misplaced,
    /// What no backend can be.
    #[error("{0}")]
    New(String),
    /// A time that is too long.
    #[error("a deadline is at most 30 days")]
    TooLong,
}

impl BackendQuery {
    /// What is asked for.
    pub fn request(&self) -> Result<Request, QueryError> {
        let deadline = self.deadline_ms.map(Duration::from_millis);
        if deadline.is_some_and(|time| time > MAX_DEADLINE) {
            return Err(QueryError::TooLong);
        }
        if self.new.is_some() && self.action != BackendAction::Add {
            return Err(QueryError::Misplaced);
        }
        let order = match (self.action, self.weight, deadline) {
            (BackendAction::Drain, None, deadline) => Order::Drain { deadline },
            (BackendAction::Disable, None, None) => Order::Disable,
            (BackendAction::Enable, None, None) => Order::Enable,
            (BackendAction::Weight, Some(weight), None) => Order::Weight(weight.0),
            (BackendAction::Weight, None, None) => return Err(QueryError::NoWeight),
            (BackendAction::Add, None, None) => {
                let new = self.new.as_ref().map(|new| new.config(&self.name));
                return new.transpose().map(Request::Add).map_err(QueryError::New);
            }
            (BackendAction::Remove, None, deadline) => {
                let drain = deadline.unwrap_or(REMOVAL_DRAIN);
                return Ok(Request::Remove { drain });
            }
            _ => return Err(QueryError::Misplaced),
        };
        Ok(Request::Order(order))
    }
}

/// A weight as it is written: `20`, `50%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct WeightText(pub Weight);

/// Not a weight.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no weight: write 0 to {MAX_WEIGHT}, or 0% to 1000% of the configured weight")]
pub struct WeightError(String);

impl FromStr for WeightText {
    type Err = WeightError;

    fn from_str(text: &str) -> Result<Self, WeightError> {
        let number = |text: &str| text.parse::<u16>().ok().filter(|n| *n <= MAX_WEIGHT);
        let weight = match text.strip_suffix('%') {
            Some("100") => Some(Weight::Configured),
            Some(percent) => number(percent).map(Weight::Percent),
            None => number(text).map(Weight::Absolute),
        };
        weight.map(Self).ok_or_else(|| WeightError(text.to_owned()))
    }
}

impl TryFrom<String> for WeightText {
    type Error = WeightError;

    fn try_from(text: String) -> Result<Self, WeightError> {
        text.parse()
    }
}

impl From<WeightText> for String {
    fn from(weight: WeightText) -> Self {
        weight.to_string()
    }
}

impl fmt::Display for WeightText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Weight::Configured => f.write_str("100%"),
            Weight::Absolute(weight) => write!(f, "{weight}"),
            Weight::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// The answer to an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendReply {
    /// The backends that it was for.
    pub backends: Vec<BackendWord>,
    /// What the operator should know beside, in words.
    pub notes: Vec<String>,
}

/// A backend and what is in force for it now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendWord {
    /// `service.name`.
    pub service: String,
    /// `backend.name`.
    pub backend: String,
    /// In words.
    pub now: String,
}

/// What the operator has said of a backend, part of the status document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorStatus {
    /// What it is to be.
    pub mode: OperatorMode,
    /// Milliseconds until a drain becomes maintenance, or a removal; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Whether the backend is removed then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaves: bool,
    /// Weight in place of the configured one: `"20"`, `"50%"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<WeightText>,
    /// Milliseconds since it was said.
    pub since_ms: u64,
}

/// What the operator wants of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperatorMode {
    /// The checks decide.
    Enabled,
    /// No new connections.
    Draining,
    /// DOWN.
    Maintenance,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::model::Command;

    /// Requests have the documented form and mean what they say.
    #[test]
    fn orders_have_their_documented_form() {
        for (text, order) in [
            (
                r#"{"command":"backend","action":"drain","name":"a","deadline_ms":300000}"#,
                Ok(Order::Drain {
                    deadline: Some(Duration::from_mins(5)),
                }),
            ),
            (
                r#"{"command":"backend","action":"disable","name":"a","service":"s","force":true}"#,
                Ok(Order::Disable),
            ),
            (
                r#"{"command":"backend","action":"enable","name":"a"}"#,
                Ok(Order::Enable),
            ),
            (
                r#"{"command":"backend","action":"weight","name":"a","weight":"50%"}"#,
                Ok(Order::Weight(Weight::Percent(50))),
            ),
            (
                r#"{"command":"backend","action":"weight","name":"a"}"#,
                Err(QueryError::NoWeight),
            ),
            (
                r#"{"command":"backend","action":"enable","name":"a","deadline_ms":1}"#,
                Err(QueryError::Misplaced),
            ),
            (
                r#"{"command":"backend","action":"drain","name":"a","deadline_ms":99999999999999}"#,
                Err(QueryError::TooLong),
            ),
        ] {
            let command: Command = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&command).unwrap(), text);
            let Command::Backend(query) = command else {
                panic!("{text}");
            };
            assert_eq!(query.request(), order.map(Request::Order), "{text}");
        }
        for text in [
            r#"{"command":"backend","action":"drain"}"#,
            r#"{"command":"backend","action":"kill","name":"a"}"#,
            r#"{"command":"backend","action":"drain","name":"a","fast":1}"#,
            r#"{"command":"backend","action":"weight","name":"a","weight":"many"}"#,
        ] {
            assert!(serde_json::from_str::<Command>(text).is_err(), "{text}");
        }
    }

    /// Weights are numbers or percentages, and read as they are written.
    #[test]
    fn weights_are_numbers_or_percentages() {
        for (text, weight) in [
            ("0", Weight::Absolute(0)),
            ("1000", Weight::Absolute(1_000)),
            ("50%", Weight::Percent(50)),
            ("100%", Weight::Configured),
        ] {
            let read: WeightText = text.parse().unwrap();
            assert_eq!((read.0, read.to_string()), (weight, text.to_owned()));
        }
        for text in ["", "%", "-1", "1001", "1001%", "half", "1.5"] {
            let error = text.parse::<WeightText>().unwrap_err().to_string();
            assert!(error.contains("is no weight"), "{error}");
        }
    }
}

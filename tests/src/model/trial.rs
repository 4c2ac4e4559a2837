//! A program and the model on the same steps, compared after each.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
};

use anyhow::{Context as _, Result};
use lb_common::reason::Verdict;
use nix::time::{ClockId, clock_gettime};

use super::{
    Count, Model, NANOS, Outcome, Sockets,
    case::Step,
    plane::{Plane, Record},
    tables::{Flow, Return, State, Tables, Tuple},
    world,
};
use crate::{packet::hex, program::Action};

/// Where a program and the model part.
#[derive(Clone, Debug)]
pub struct Mismatch {
    /// Index of the step, the number of steps for what is compared at the end.
    pub step: usize,
    /// What is different.
    pub what: String,
}

/// Nanoseconds of the clock that the programs read: a timer tick late at most.
pub fn now_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?;
    Ok(u64::try_from(now.tv_sec())? * NANOS + u64::try_from(now.tv_nsec())?)
}

/// What the two may read differently of a time: a machine that does something else meanwhile.
const LATE_NS: u64 = NANOS / 2;

/// A program and the model at some point of a sequence.
pub struct Trial<'a> {
    /// The program.
    plane: &'a mut Plane,
    /// The model.
    model: Model,
    /// Steps taken.
    steps: usize,
}

/// Ok or a mismatch; the outer error is of the test itself.
pub type Compared = Result<Result<(), Mismatch>>;

impl<'a> Trial<'a> {
    /// Both begin with these tables; the model's kernel has these sockets.
    pub fn begin(plane: &'a mut Plane, tables: &Tables, sockets: &Sockets) -> Result<Self> {
        plane.begin(tables)?;
        let model = Model::new(tables.clone(), sockets.clone());
        Ok(Self {
            plane,
            model,
            steps: 0,
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Whether the program can run on a step's frame at all.
    pub fn takes(&self, step: &Step) -> bool {
        match step {
            Step::In { frame, .. } => self.plane.takes(frame),
            Step::Out { .. } | Step::Change(_) => true,
        }
    }

    /// Take a step with both and compare what came of it.
    pub fn step(&mut self, step: &Step) -> Compared {
        let compared = match step {
            Step::Change(change) => {
                self.model.change(change, now_ns()?);
                self.plane.change(change)?;
                Ok(())
            }
            Step::In { ifindex, frame } => {
                let expected = self.model.ingress(frame, *ifindex, now_ns()?);
                let (action, got) = self.plane.ingress(frame, *ifindex)?;
                let compared = self.compare(frame, &expected, action, &got)?;
                let traced = self.compare_trace(&expected, *ifindex)?;
                compared.and(traced)
            }
            Step::Out { frame } => {
                let expected = self.model.egress(frame);
                let (action, got) = self.plane.egress(frame)?;
                self.compare(frame, &expected, action, &got)?
            }
        };
        let step = self.steps;
        self.steps += 1;
        Ok(compared.map_err(|what| Mismatch { step, what }))
    }

    fn compare(
        &mut self,
        frame: &[u8],
        expected: &Outcome,
        action: Action,
        got: &[u8],
    ) -> Result<Result<(), String>> {
        let mut wrong = Vec::new();
        let reason = expected.reason;
        let service = expected.service;
        let verdict = reason.verdict();
        if action != self.plane.action(verdict) {
            wrong.push(format!(
                "{action:?}, but {reason:?} is a reason to {verdict:?}"
            ));
        }
        let counted = self.plane.reason(service, reason)?;
        let count = self.model.reasons[&(service, reason.index())];
        if counted != count {
            wrong.push(format!(
                "{reason:?} of service {service} is {counted:?}, not {count:?}"
            ));
        }
        if verdict != Verdict::Drop {
            wrong.extend(expected.leaves.difference(got));
        }
        for key in self.model.touched() {
            let got = self.plane.entries(&key)?;
            wrong.extend(entries_difference(
                &key,
                &Entries::of(&self.model.state, &key),
                &got,
            ));
        }
        Ok(if wrong.is_empty() {
            Ok(())
        } else {
            wrong.insert(0, format!("{reason:?} expected of {}", hex(frame)));
            Err(wrong.join("\n  "))
        })
    }

    /// The trace has one record of a packet to a VIP while it is on.
    fn compare_trace(&mut self, expected: &Outcome, ifindex: u32) -> Result<Result<(), String>> {
        if !self.model.tables.traced {
            return Ok(Ok(()));
        }
        let record = Record {
            reason: expected.reason.index(),
            service: expected.service,
            ifindex,
            new_ifindex: expected.ifindex,
        };
        let records: Vec<Record> = self
            .model
            .is_traced()
            .then_some(record)
            .into_iter()
            .collect();
        let different = difference("trace", &records, &self.plane.records()?);
        Ok(different.map_or(Ok(()), Err))
    }

    /// Compare all that is left after the last step.
    pub fn finish(&mut self) -> Compared {
        let mut wrong = Vec::new();
        let state = &self.model.state;
        let got = self.plane.state()?;
        let mut keys: BTreeSet<Tuple> = BTreeSet::new();
        for state in [state, &got] {
            keys.extend(state.flows.keys().chain(state.half_flows.keys()));
            keys.extend(state.returns.keys().chain(state.half_returns.keys()));
        }
        for key in keys {
            let (expected, got) = (Entries::of(state, &key), Entries::of(&got, &key));
            wrong.extend(entries_difference(&key, &expected, &got));
        }
        for backend in 0..world::BACKENDS {
            let until = |state: &State| state.suspects.get(&backend).copied().unwrap_or(0);
            if until(state).abs_diff(until(&got)) > 1 {
                wrong.extend(difference(
                    &format!("backend {backend} is suspect"),
                    &until(state),
                    &until(&got),
                ));
            }
        }
        wrong.extend(differences(&state.rates, &got.rates, |key, a, b| {
            let near = a.zip(b).is_some_and(|(a, b)| a.abs_diff(*b) < LATE_NS);
            (!near).then(|| format!("rate of {key:?}: expected {a:?}, got {b:?}"))
        }));
        wrong.extend(difference("trace", &Vec::new(), &self.plane.records()?));
        wrong.extend(difference("refusals", &state.refusals, &got.refusals));
        let reasons = self.plane.reasons()?;
        wrong.extend(differences(&self.model.reasons, &reasons, |key, a, b| {
            difference(&format!("(service, reason) {key:?}"), &a, &b)
        }));
        let backends = self.plane.backends()?;
        let none = |count: &Count| *count == Count::default();
        let mut expected = self.model.backends.clone();
        expected.retain(|_, count| !none(count));
        wrong.extend(differences(&expected, &backends, |key, a, b| {
            difference(&format!("backend {key}"), &a, &b)
        }));
        let step = self.steps;
        Ok(if wrong.is_empty() {
            Ok(())
        } else {
            let what = format!("afterwards:\n  {}", wrong.join("\n  "));
            Err(Mismatch { step, what })
        })
    }
}

fn difference<T: PartialEq + Debug>(what: &str, expected: &T, got: &T) -> Option<String> {
    (expected != got).then(|| format!("{what}: expected {expected:?}, got {got:?}"))
}

/// What the maps have for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entries {
    /// An established flow.
    pub flow: Option<Flow>,
    /// A half-open one.
    pub half_flow: Option<Flow>,
    /// A return entry.
    pub returned: Option<Return>,
    /// That of a half-open flow.
    pub half_returned: Option<Return>,
}

impl Entries {
    fn of(state: &State, key: &Tuple) -> Self {
        Self {
            flow: state.flows.get(key).cloned(),
            half_flow: state.half_flows.get(key).cloned(),
            returned: state.returns.get(key).cloned(),
            half_returned: state.half_returns.get(key).cloned(),
        }
    }
}

fn entries_difference(key: &Tuple, expected: &Entries, got: &Entries) -> Vec<String> {
    let what = |what: &str| format!("{what} {} -> {}", key.src, key.dst);
    [
        flow_difference(&what("flow"), expected.flow.as_ref(), got.flow.as_ref()),
        flow_difference(
            &what("half-open flow"),
            expected.half_flow.as_ref(),
            got.half_flow.as_ref(),
        ),
        difference(&what("return entry"), &expected.returned, &got.returned),
        difference(
            &what("half-open return entry"),
            &expected.half_returned,
            &got.half_returned,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Flows are the same if the clock may have ticked between the two.
fn flow_difference(what: &str, expected: Option<&Flow>, got: Option<&Flow>) -> Option<String> {
    let expected = match (expected, got) {
        (Some(expected), Some(got)) if expected.last_seen.abs_diff(got.last_seen) <= 1 => {
            Some(Flow {
                last_seen: got.last_seen,
                ..expected.clone()
            })
        }
        (expected, _) => expected.cloned(),
    };
    difference(what, &expected.as_ref(), &got)
}

fn differences<K: Ord, V>(
    expected: &BTreeMap<K, V>,
    got: &BTreeMap<K, V>,
    difference: impl Fn(&K, Option<&V>, Option<&V>) -> Option<String>,
) -> Vec<String> {
    let more = got.keys().filter(|key| !expected.contains_key(key));
    let keys = expected.keys().chain(more);
    keys.filter_map(|key| difference(key, expected.get(key), got.get(key)))
        .collect()
}

/// Play a whole sequence.
pub fn play(plane: &mut Plane, tables: &Tables, sockets: &Sockets, steps: &[Step]) -> Compared {
    let mut trial = Trial::begin(plane, tables, sockets)?;
    for (number, step) in steps.iter().enumerate() {
        if !trial.takes(step) {
            continue;
        }
        let compared = trial
            .step(step)
            .with_context(|| format!("step {number}: {step:?}"))?;
        if compared.is_err() {
            return Ok(compared);
        }
    }
    trial.finish()
}

/// A sequence that still fails with as few steps as possible: parts are left out, halves first,
/// then ever smaller ones.
pub fn shrink(
    steps: Vec<Step>,
    mut fails: impl FnMut(&[Step]) -> Result<bool>,
) -> Result<Vec<Step>> {
    let mut left = steps;
    let mut size = left.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at < left.len() {
            let mut fewer = left.clone();
            fewer.drain(at..(at + size).min(left.len()));
            if fails(&fewer)? {
                left = fewer;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tables::Change;

    /// Two steps of a thousand that fail together are what is left.
    #[test]
    fn shrinking_finds_the_two_that_matter() {
        let step = |n| Step::Change(Change::Lease(n, true));
        let steps: Vec<Step> = (0..1000).map(step).collect();
        let fails = |steps: &[Step]| Ok(steps.contains(&step(17)) && steps.contains(&step(803)));
        assert_eq!(shrink(steps, fails).unwrap(), [step(17), step(803)]);
    }
}

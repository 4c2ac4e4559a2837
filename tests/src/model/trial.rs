//! A program and the model on the same steps, compared after each.

use std::{collections::BTreeMap, fmt::Debug};

use anyhow::{Context as _, Result};
use lb_common::reason::Verdict;
use nix::time::{ClockId, clock_gettime};

use super::{
    Count, Model, Outcome,
    case::Step,
    plane::Plane,
    tables::{Flow, Tables, Tuple},
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

/// Seconds of the clock that the programs read: a timer tick late at most.
pub fn now_seconds() -> Result<u32> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?;
    Ok(u32::try_from(now.tv_sec())?)
}

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
    /// Both begin with these tables; the model's kernel has these connections.
    pub fn begin(plane: &'a mut Plane, tables: &Tables, sockets: &[Tuple]) -> Result<Self> {
        plane.begin(tables)?;
        let model = Model::new(tables.clone(), sockets);
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

    /// Take a step with both and compare what came of it.
    pub fn step(&mut self, step: &Step) -> Compared {
        let compared = match step {
            Step::Change(change) => {
                self.model.change(change);
                self.plane.change(change)?;
                Ok(())
            }
            Step::In { ifindex, frame } => {
                let expected = self.model.ingress(frame, *ifindex, now_seconds()?);
                let (action, got) = self.plane.ingress(frame, *ifindex)?;
                self.compare(frame, &expected, action, &got)?
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
        if action != Action::Verdict(verdict) {
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
            let (flow, entry) = (self.plane.flow(&key)?, self.plane.returned(&key)?);
            wrong.extend(flow_difference(
                &key,
                self.model.state.flows.get(&key),
                flow.as_ref(),
            ));
            wrong.extend(difference(
                &format!("return entry {key:?}"),
                &self.model.state.returns.get(&key),
                &entry.as_ref(),
            ));
        }
        Ok(if wrong.is_empty() {
            Ok(())
        } else {
            wrong.insert(0, format!("{reason:?} expected of {}", hex(frame)));
            Err(wrong.join("\n  "))
        })
    }

    /// Compare all that is left after the last step.
    pub fn finish(&mut self) -> Compared {
        let mut wrong = Vec::new();
        let flows = self.plane.flows()?;
        wrong.extend(differences(
            &self.model.state.flows,
            &flows,
            flow_difference,
        ));
        let returns = self.plane.returns()?;
        wrong.extend(differences(
            &self.model.state.returns,
            &returns,
            |key, a, b| difference(&format!("return entry {key:?}"), &a, &b),
        ));
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

/// Flows are the same if the clock may have ticked between the two.
fn flow_difference(key: &Tuple, expected: Option<&Flow>, got: Option<&Flow>) -> Option<String> {
    let expected = match (expected, got) {
        (Some(expected), Some(got)) if expected.last_seen.abs_diff(got.last_seen) <= 1 => {
            Some(Flow {
                last_seen: got.last_seen,
                ..expected.clone()
            })
        }
        (expected, _) => expected.cloned(),
    };
    difference(&format!("flow {key:?}"), &expected.as_ref(), &got)
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
pub fn play(plane: &mut Plane, tables: &Tables, sockets: &[Tuple], steps: &[Step]) -> Compared {
    let mut trial = Trial::begin(plane, tables, sockets)?;
    for (number, step) in steps.iter().enumerate() {
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

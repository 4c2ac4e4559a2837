//! A client that keeps asking: one request after the other, while something is broken and mended.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    client::{self, Answer, Failure, Load},
    process::wait_until,
    topology::Node,
};

/// A request and what came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// When it was begun.
    pub begun: Instant,
    /// Who answered, or why nobody did.
    pub result: Result<Answer, Failure>,
}

/// Requests at a steady rate from one node.
#[derive(Debug)]
pub struct Steady {
    outcomes: Arc<Mutex<Vec<Outcome>>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Result<()>>>,
}

impl Steady {
    /// Begins a request every `pace`, or when the one before has ended, and waits for the first
    /// good answer.
    pub fn start(node: &Node, load: &Load, pace: Duration, deadline: Duration) -> Result<Self> {
        let outcomes = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, load, stopped) = (outcomes.clone(), load.clone(), stop.clone());
        let thread = node.namespace().spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("cannot start a runtime")?;
            runtime.block_on(async {
                let mut ticks = interval(pace);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                while !stopped.load(Ordering::Relaxed) {
                    ticks.tick().await;
                    let begun = Instant::now();
                    let result = client::request(&load).await;
                    if let Ok(mut all) = shared.lock() {
                        all.push(Outcome { begun, result });
                    }
                }
            });
            Ok(())
        });
        let steady = Self {
            outcomes,
            stop,
            thread: Some(thread),
        };
        steady.wait_answers(1, deadline)?;
        Ok(steady)
    }

    /// Waits for `count` good answers to requests that begin from now on.
    pub fn wait_answers(&self, count: usize, deadline: Duration) -> Result<()> {
        let since = Instant::now();
        wait_until("answers to a steady client", deadline, || {
            let good = self
                .since(since)
                .iter()
                .filter(|o| o.result.is_ok())
                .count();
            Ok((good >= count).then_some(()))
        })
    }

    /// What came of the requests that were begun after a time, so far.
    pub fn since(&self, time: Instant) -> Vec<Outcome> {
        let all = match self.outcomes.lock() {
            Ok(guard) => guard,
            Err(poisoned) => poisoned.into_inner(),
        };
        all.iter().filter(|o| o.begun >= time).cloned().collect()
    }

    /// Ends the last request and returns all outcomes.
    pub fn finish(mut self) -> Result<Vec<Outcome>> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            ended.map_err(|_| anyhow::anyhow!("the steady client panicked"))??;
        }
        let outcomes = self.outcomes.lock();
        Ok(outcomes.map(|all| all.clone()).unwrap_or_default())
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The failures among outcomes, in words.
pub fn failures(outcomes: &[Outcome]) -> Vec<String> {
    let failed = outcomes.iter().filter_map(|o| o.result.as_ref().err());
    failed.map(ToString::to_string).collect()
}

/// How long the slowest answer took.
pub fn slowest(outcomes: &[Outcome]) -> Duration {
    let answers = outcomes.iter().filter_map(|o| o.result.as_ref().ok());
    answers.map(|answer| answer.took).max().unwrap_or_default()
}

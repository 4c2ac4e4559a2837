//! What the ingress program costs per packet, by program run (`BPF_PROG_TEST_RUN`): each case
//! beside the floor of an empty program, rounds interleaved, so that the ratios hold on a noisy
//! machine. Needs root; touches no interface.
//!
//! A program run with `repeat` works on the packet that the last one rewrote. Here every run
//! gets a fresh packet and is timed alone; the clock's own cost is in the floor as well.

mod frame;
mod plane;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::{
    TestRun as _,
    programs::{TestRunOptions, Xdp},
};

use crate::plane::Plane;

/// Rounds over all cases.
const ROUNDS: usize = 200;
/// Runs of a case in a round.
const RUNS: usize = 100;

/// A packet, and what must become of it.
struct Case {
    name: &'static str,
    frame: Vec<u8>,
    /// XDP action.
    action: u32,
    samples: Vec<Duration>,
}

impl Case {
    fn new(name: &'static str, frame: Vec<u8>, action: u32) -> Self {
        Self {
            name,
            frame,
            action,
            samples: Vec::with_capacity(ROUNDS * RUNS),
        }
    }

    fn round(&mut self, program: &Xdp, out: &mut [u8]) -> Result<()> {
        for _ in 0..RUNS {
            let mut options = TestRunOptions::new();
            options.data_in = Some(&self.frame);
            options.data_out = Some(&mut *out);
            let result = program.test_run(options)?;
            ensure!(
                result.return_value == self.action,
                "{}: action {} instead of {}",
                self.name,
                result.return_value,
                self.action
            );
            self.samples.push(result.duration);
        }
        Ok(())
    }

    /// Median in nanoseconds.
    fn median(&mut self) -> f64 {
        self.samples.sort_unstable();
        let middle = self
            .samples
            .get(self.samples.len() / 2)
            .copied()
            .unwrap_or_default();
        middle.as_secs_f64() * 1e9
    }
}

/// XDP actions (linux/bpf.h).
const PASS: u32 = 2;
const TX: u32 = 3;

fn main() -> Result<()> {
    let mut plane = Plane::load().context("cannot load the data plane (root?)")?;
    let mut floor = Case::new("empty program", frame::to_vip4(frame::DSR_PORT), PASS);
    let mut cases = vec![
        Case::new("not a VIP, IPv4", frame::elsewhere4(), PASS),
        Case::new("dsr established, IPv4", frame::to_vip4(frame::DSR_PORT), TX),
        Case::new("dsr established, IPv6", frame::to_vip6(frame::DSR_PORT), TX),
        Case::new("nat established, IPv4", frame::to_vip4(frame::NAT_PORT), TX),
        Case::new("nat established, IPv6", frame::to_vip6(frame::NAT_PORT), TX),
        Case::new("local from a peer, IPv4", frame::from_peer4(), PASS),
        Case::new("local from a peer, IPv6", frame::from_peer6(), PASS),
    ];
    let mut out = vec![0; 2048];
    for _ in 0..ROUNDS {
        floor.round(plane.program("xdp_stub")?, &mut out)?;
        for case in &mut cases {
            case.round(plane.program("xdp_ingress")?, &mut out)?;
        }
    }
    let base = floor.median();
    println!("{:<26} {:>8.0} ns (clock included)", floor.name, base);
    println!("{:<26} {:>11} {:>14}", "", "ns net", "of not a VIP");
    let mut reference = None;
    for case in &mut cases {
        let net = case.median() - base;
        let first = *reference.get_or_insert(net);
        println!("{:<26} {net:>11.0} {:>13.2}x", case.name, net / first);
    }
    Ok(())
}

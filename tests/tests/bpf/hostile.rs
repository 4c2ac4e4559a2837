//! Hostile bytes: whatever arrives or leaves, each program ends with a reason and that reason's
//! verdict.

use std::env;

use lb_common::{abi::BackendState, reason::Reason};
use lb_tests::{
    netns::NetNs,
    packet::{BACKEND_PORT, Family, OWN_MAC, UPLINK, V4, V6, VIP_PORT, hex, verify_checksums},
    program::{Action, Run, SkBuff},
};

use crate::{
    dsr, egress, fence, icmp, local, malformed, nat, resets, udp, vlan,
    world::{EXTERNAL1, EXTERNAL2, Ingress, LOCAL, MASTER2, MASTER3, Row, World, tags},
};

/// Frames for each program in each IP version, unless `XVIP_HOSTILE_FRAMES` says otherwise: 20,000 for a
/// program.
const FRAMES: usize = 10_000;
/// Every run of this test is the same.
const SEED: u64 = 0x5eed_0f58_6976_0001;
/// The shortest frame that a program run takes.
const SHORTEST: usize = 14;

/// xorshift64* (Vigna 2016): plenty for choosing bytes.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `limit`, which is not 0.
    fn below(&mut self, limit: usize) -> usize {
        ((self.next() >> 32) as usize * limit) >> 32
    }

    fn byte(&mut self) -> u8 {
        // Values at the edges break more than those in the middle.
        match self.below(4) {
            0 => [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
            _ => (self.next() >> 56) as u8,
        }
    }

    /// One of the corpus with a few bytes changed, cut off or added; sometimes bytes alone.
    fn frame(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        if self.below(16) == 0 {
            let length = SHORTEST + self.below(200);
            return (0..length).map(|_| self.byte()).collect();
        }
        let mut frame = corpus[self.below(corpus.len())].clone();
        for _ in 0..self.below(5) {
            // The headers are what programs read.
            let at = self.below(frame.len().min(120));
            frame[at] = match self.below(3) {
                0 => frame[at] ^ (1 << self.below(8)),
                _ => self.byte(),
            };
        }
        match self.below(8) {
            0 => frame.truncate(SHORTEST + self.below(frame.len() - SHORTEST + 1)),
            1 => {
                let more = self.below(64);
                frame.extend((0..more).map(|_| self.byte()));
            }
            _ => {}
        }
        frame
    }
}

/// A world with backends of every method and state, and a fenced VIP.
fn crowded<F: Family>() -> World<F> {
    let mut world = World::used_or_new();
    world.reset();
    world.service(&[LOCAL, MASTER2, MASTER3, EXTERNAL1, EXTERNAL2]);
    world.set_state(MASTER3, BackendState::Draining);
    world.set_state(EXTERNAL2, BackendState::Down);
    world.reply_port(BACKEND_PORT, VIP_PORT);
    world.vip(F::VIP, 1);
    world.listen(BACKEND_PORT);
    for tags in [tags(3, 0), tags(1, 2)] {
        world.vlan(UPLINK, tags, OWN_MAC);
    }
    world
}

/// Reasons that come with an answer instead of the frame.
const ANSWERS: &[Reason] = &[
    Reason::NoBackendReset,
    Reason::BackendPortReset,
    Reason::FlowReset,
    Reason::NatPortsReset,
];

/// What is wrong with a run of `frame`, if anything.
fn verdict_of(run: &Run, frame: &[u8]) -> Result<Reason, String> {
    let [(reason, 1, bytes)] = run.counted[..] else {
        return Err(format!("counted {:?}", run.counted));
    };
    if reason == Reason::Unknown {
        return Err("counted as unknown".to_owned());
    }
    if run.action != Action::Verdict(reason.verdict()) {
        return Err(format!("{reason:?}, but {:?}", run.action));
    }
    let answered = ANSWERS.contains(&reason);
    if bytes != frame.len() as u64 || (run.frame.len() != frame.len() && !answered) {
        return Err(format!(
            "{reason:?} with {bytes} bytes, {} left",
            run.frame.len()
        ));
    }
    // Whatever is rewritten, a checksum that was right stays so, and a wrong one wrong. Answers are
    // right, and only to what was.
    let (before, after) = (verify_checksums(frame), verify_checksums(&run.frame));
    if run.frame != frame && before.is_ok() != after.is_ok() || answered && after.is_err() {
        return Err(format!("{reason:?}: {before:?} became {after:?}"));
    }
    Ok(reason)
}

fn frames() -> usize {
    let given = env::var("XVIP_HOSTILE_FRAMES");
    given.map_or(FRAMES, |frames| frames.parse().expect("a number of frames"))
}

fn attack<F: Family>(tables: &[Vec<Row<F>>], program: fn(&World<F>, &[u8]) -> Option<Run>) {
    let corpus: Vec<Vec<u8>> = tables.iter().flatten().flat_map(Row::frames).collect();
    let namespace = NetNs::new("hostile").unwrap();
    let attacked = namespace.enter(|| {
        let world = crowded::<F>();
        let mut random = Random(SEED);
        let mut seen = vec![0_u32; Reason::COUNT];
        for number in 0..frames() {
            let frame = random.frame(&corpus);
            let Some(run) = program(&world, &frame) else {
                continue;
            };
            match verdict_of(&run, &frame) {
                Ok(reason) => seen[reason.index() as usize] += 1,
                Err(wrong) => panic!("{} frame {number}: {wrong}: {}", F::NAME, hex(&frame)),
            }
        }
        let named = Reason::ALL
            .iter()
            .zip(&seen)
            .filter(|(_, count)| **count > 0);
        eprintln!("{}: {:?}", F::NAME, named.collect::<Vec<_>>());
        world.leave();
        Ok(())
    });
    attacked.unwrap();
}

/// `None` for a frame that a program run does not take.
fn arrive<F: Family>(ingress: Ingress, world: &World<F>, frame: &[u8]) -> Option<Run> {
    world.comes_in_by(ingress);
    world.takes(frame).then(|| world.run(frame, UPLINK))
}

fn arrive_by_xdp<F: Family>(world: &World<F>, frame: &[u8]) -> Option<Run> {
    arrive(Ingress::Xdp, world, frame)
}

fn arrive_by_tc<F: Family>(world: &World<F>, frame: &[u8]) -> Option<Run> {
    arrive(Ingress::Tc, world, frame)
}

fn leave<F: Family>(world: &World<F>, frame: &[u8]) -> Option<Run> {
    let taken = Ingress::Tc.takes(frame);
    taken.then(|| world.tc(frame, SkBuff::default()))
}

fn tables4() -> Vec<Vec<Row<V4>>> {
    vec![
        local::rows(),
        dsr::rows(),
        nat::rows(),
        malformed::rows4(),
        fence::rows4(),
        egress::rows(),
        resets::rows(),
        vlan::rows(),
        udp::rows(),
        icmp::rows(),
    ]
}

fn tables6() -> Vec<Vec<Row<V6>>> {
    vec![
        local::rows(),
        dsr::rows(),
        nat::rows(),
        malformed::rows6(),
        fence::rows6(),
        egress::rows(),
        resets::rows(),
        vlan::rows(),
        udp::rows(),
        icmp::rows(),
    ]
}

/// Ingress judges 20,000 mutated frames, each with one reason and its verdict.
#[test]
fn xdp_judges_whatever_arrives() {
    lb_tests::skip_unless_root!();
    attack(&tables4(), arrive_by_xdp);
    attack(&tables6(), arrive_by_xdp);
}

/// So does the same pipeline on socket buffers.
#[test]
fn tc_judges_whatever_arrives() {
    lb_tests::skip_unless_root!();
    attack(&tables4(), arrive_by_tc);
    attack(&tables6(), arrive_by_tc);
}

/// So does egress.
#[test]
fn egress_judges_whatever_leaves() {
    lb_tests::skip_unless_root!();
    attack(&tables4(), leave);
    attack(&tables6(), leave);
}

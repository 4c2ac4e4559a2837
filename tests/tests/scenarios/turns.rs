//! xvip and keepalived take over from each other again and again, by every cause, and an
//! eyewitness watches who has the address.
//!
//! What can be said for certain is about xvip, and about order: the frames carry the kernel's
//! times, so a busy machine cannot make it untrue.
//!
//! - xvip never claims the address after its resignation, nor three intervals after its last
//!   advert (that is its lease; XDP compares the clock itself, so the controller's lateness does not
//!   count, only that of frames that are under way).
//! - Both claim the address only where a better one has just announced itself: until its advert has
//!   crossed the wire the other cannot know. That is the convergence.
//! - Between turns, when one has settled, nobody else claims it.

use std::{fs, time::Duration};

use lb_tests::{
    cluster::PATIENCE,
    process::wait_until,
    skip_unless_installed, skip_unless_root,
    vrrp_group::{Group, Mixed},
    who_has::Mac,
    witness::{Event, Seen, Witness, adverts, claims},
};

const VIP: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 77, 0, 100);
/// Rounds of four takeovers, two in each direction: one by priority, one by resignation.
const ROUNDS: usize = 26;
/// Between adverts.
const INTERVAL: Duration = Duration::from_millis(100);
/// Between questions of the witness.
const PACE: Duration = Duration::from_millis(4);
/// Answers that show that one has settled.
const SETTLED: usize = 5;
/// How long a frame may be under way on such a machine: an answer that was given in time arrives
/// late by that.
const TRANSIT: Duration = Duration::from_millis(100);
/// How much later than the protocol's timers something may happen on a machine that runs other
/// scenarios at the same time: for what is measured, not for what is certain.
const LATENESS: Duration = Duration::from_secs(3);

/// One takeover as the witness saw it.
#[derive(Debug)]
struct Turn {
    to: Mac,
    by: &'static str,
    /// From the first claim of the new owner to the last one of the old.
    both: Duration,
    /// From the last claim of the old owner to the first one of the new: at most that long nobody
    /// answered.
    none: Duration,
}

impl Turn {
    /// Of the events before and after it was begun.
    fn new(before: &[Event], after: &[Event], (from, to): (Mac, Mac), by: &'static str) -> Self {
        let by_old = |(_, mac): &(Duration, Mac)| *mac == from;
        let last = claims(after).filter(by_old).last();
        let last = last.or_else(|| claims(before).filter(by_old).last());
        let first = claims(after).find(|(_, mac)| *mac == to);
        let (last, first) = (last.map(|claim| claim.0), first.map(|claim| claim.0));
        let (Some(last), Some(first)) = (last, first) else {
            panic!("a turn without claims of both: {before:?} {after:?}");
        };
        Self {
            to,
            by,
            both: last.saturating_sub(first),
            none: first.saturating_sub(last),
        }
    }
}

/// xvip's fence: no claim after a resignation until its next advert, and none three intervals after
/// its last advert. Returns how many claims were looked at, and how late the latest one was.
fn xvip_is_fenced(events: &[Event], xvip: Mac) -> (usize, Duration) {
    let mut last_advert: Option<(Duration, u8)> = None;
    let (mut looked_at, mut latest) = (0, Duration::ZERO);
    for event in events {
        match event.seen {
            Seen::Advert { from, priority } if from == xvip => {
                last_advert = Some((event.at, priority));
            }
            Seen::Claim(mac) if mac == xvip => {
                // Of the time before the witness came there is nothing to say.
                let Some((sent, priority)) = last_advert else {
                    continue;
                };
                let right = if priority == 0 {
                    Duration::ZERO
                } else {
                    3 * INTERVAL
                };
                let late = event.at.saturating_sub(sent + right);
                assert!(late < TRANSIT, "a claim {late:?} too late: {event:?}");
                latest = latest.max(late);
                looked_at += 1;
            }
            _ => {}
        }
    }
    (looked_at, latest)
}

/// Over 50 takeovers in each direction: by a higher priority and by a resignation, of xvip by
/// keepalived and the other way round.
#[test]
fn taking_turns_with_keepalived() {
    skip_unless_root!();
    skip_unless_installed!("keepalived");
    // What is in this file is added to keepalived's priority; below -253 it is at fault.
    let group = Group::new(51, VIP, &[("m1", 150), ("k1", 200)])
        .interval(100)
        .keepalived(" track_file {\n  prio weight 1\n }");
    let mut mixed = Mixed::new(&["m1", "k1", "client"], vec![group]).unwrap();
    let file = mixed.net().node("k1").directory().join("prio");
    fs::write(&file, "-100\n").unwrap();
    mixed.keepalived_head = format!(
        "track_file prio {{\n file \"{}\"\n weight 1\n}}\n",
        file.display()
    );
    let (m1, k1) = (mixed.net().node("m1").mac(), mixed.net().node("k1").mac());
    mixed.start("m1").unwrap();
    mixed.start("k1").unwrap();
    mixed.wait_owners(&[(51, "m1")]).unwrap();

    let witness = Witness::start(mixed.net().node("client"), VIP, PACE);
    witness.wait_settled(m1, SETTLED, PATIENCE).unwrap();
    let mut turns = Vec::new();
    let mut turn = |from: Mac, to: Mac, by, drive: &dyn Fn()| {
        let mark = witness.mark();
        let before = witness.since(mark.saturating_sub(4 * SETTLED));
        drive();
        witness.wait_settled(to, SETTLED, PATIENCE).unwrap();
        turns.push(Turn::new(&before, &witness.since(mark), (from, to), by));
    };
    let write = |value: &'static str| fs::write(&file, format!("{value}\n")).unwrap();
    for _ in 0..ROUNDS {
        turn(m1, k1, "priority", &|| write("0"));
        turn(k1, m1, "resignation", &|| write("-254"));
        // Back in the group, below xvip.
        let backups =
            || Ok::<_, anyhow::Error>(mixed.log("k1")?.matches("Entering BACKUP").count());
        let before = backups().unwrap();
        write("-100");
        let back = || Ok((backups()? > before).then_some(()));
        wait_until("keepalived to take part again", PATIENCE, back).unwrap();
        turn(m1, k1, "resignation", &|| {
            mixed.cli("m1", &["step-down"]).unwrap();
        });
        turn(k1, m1, "priority", &|| {
            mixed.cli("m1", &["resume"]).unwrap();
        });
    }
    let events = witness.finish().unwrap();
    let (looked_at, latest) = xvip_is_fenced(&events, m1);
    println!("{looked_at} claims of xvip, the latest {latest:?} after its right to the address");
    for (to, name) in [(k1, "xvip to keepalived"), (m1, "keepalived to xvip")] {
        for by in ["priority", "resignation"] {
            let these: Vec<_> = turns.iter().filter(|t| t.to == to && t.by == by).collect();
            let both = these.iter().map(|turn| turn.both).max().unwrap();
            let none = these.iter().map(|turn| turn.none).max().unwrap();
            let overlaps = these.iter().filter(|turn| !turn.both.is_zero()).count();
            println!(
                "{name} by {by}: {} takeovers; both claimed in {overlaps}, for at most {both:?}; \
                 nobody for at most {none:?}",
                these.len()
            );
            assert_eq!(these.len(), ROUNDS);
            // A resignation leaves nothing to converge; xvip says it when it is fenced.
            if to == k1 && by == "resignation" {
                assert!(both < TRANSIT, "{these:?}");
            }
            let (quiet, skew) = (3 * INTERVAL, INTERVAL);
            assert!(both < LATENESS, "{these:?}");
            assert!(none < quiet + skew + LATENESS, "{these:?}");
        }
    }
    assert!(adverts(&events, k1).any(|(_, priority)| priority == 0));
}

//! The VIP moves: on purpose, by a crash, by a controller that hangs, and back again. Every
//! established connection survives.
//!
//! Times are printed. Bars that are times are asserted with room for a machine that runs other
//! scenarios at the same time.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use lb_common::reason::Reason;
use lb_tests::{
    cluster::{Cluster, PATIENCE},
    control_plane::{BOTH, VIP4, VIP6},
    skip_unless_root,
    steady::{Steady, failures, slowest},
    watch::Watches,
    who_has::who_has,
};
use lb_user::admin::model::VrrpState;

const PACE: Duration = Duration::from_millis(20);

/// Three masters with an IPv4 and an IPv6 VIP.
fn dual_stack(interval: &str) -> Cluster {
    Cluster::builder()
        .stand_in(&["--listen", "[::]:6443"])
        .start(|plane| {
            plane.vips = BOTH.into();
            interval.clone_into(&mut plane.advert_interval);
        })
        .unwrap()
}

/// Streams over both families, and with each a client that keeps asking.
fn clients(cluster: &Cluster) -> Vec<(Watches, Steady)> {
    let open = |vip: IpAddr| {
        let (client, load) = (cluster.client(), cluster.load(vip));
        let watches = Watches::open(client, &load, 20, PATIENCE).unwrap();
        // The owner's own by local, the others by dsr.
        assert_eq!(watches.by_node().len(), 3, "{watches:?}");
        (
            watches,
            Steady::start(client, &load, PACE, PATIENCE).unwrap(),
        )
    };
    BOTH.into_iter().map(open).collect()
}

/// Ends the clients: no stream ended, no request failed.
fn nothing_was_lost(clients: Vec<(Watches, Steady)>) {
    for (watches, steady) in clients {
        watches.wait_events(2, PATIENCE).unwrap();
        let outcomes = steady.finish().unwrap();
        println!(
            "{} requests, slowest {:?}",
            outcomes.len(),
            slowest(&outcomes)
        );
        assert_eq!(failures(&outcomes), Vec::<String>::new());
    }
}

fn took_over(cluster: &Cluster, node: &str, since: Instant) -> Duration {
    for vip in BOTH {
        cluster.wait_has(node, "eth0", vip, true).unwrap();
    }
    since.elapsed()
}

/// A controller that is stopped gives its addresses away at once (bar: 1 s with adverts every
/// second; asserted: 3 s) and takes them back when it returns. No connection is lost on either way.
#[test]
fn a_graceful_stop_moves_the_vip_within_a_second_and_loses_nothing() {
    skip_unless_root!();
    let mut cluster = dual_stack("1s");
    let clients = clients(&cluster);
    let begin = Instant::now();
    cluster.stop_xvip("m1").unwrap();
    let moved = took_over(&cluster, "m2", begin);
    println!("graceful stop: on another node after {moved:?} (bar: 1 s)");
    assert!(moved < Duration::from_secs(3), "{moved:?}");
    for vip in BOTH {
        assert!(!cluster.has("m1", "eth0", vip).unwrap());
    }
    for (_, steady) in &clients {
        steady.wait_answers(20, PATIENCE).unwrap();
    }
    let begin = Instant::now();
    cluster.start_xvip("m1").unwrap();
    let back = took_over(&cluster, "m1", begin);
    println!("preemption on return: back after {back:?}");
    cluster.wait_state("m2", VrrpState::Backup).unwrap();
    for vip in BOTH {
        cluster.wait_has("m2", "eth0", vip, false).unwrap();
    }
    nothing_was_lost(clients);
}

/// A killed controller is replaced within 3 adverts and the skew (3.26 s; asserted: 6 s), its
/// addresses vanish from the dead node by themselves (bar: 4 s; asserted: 8 s), and no connection
/// is lost.
#[test]
fn a_killed_owner_is_replaced_and_its_vip_vanishes_by_itself() {
    skip_unless_root!();
    let mut cluster = dual_stack("1s");
    let clients = clients(&cluster);
    let begin = Instant::now();
    cluster.kill_xvip("m1").unwrap();
    let moved = took_over(&cluster, "m2", begin);
    println!("kill -9: on another node after {moved:?} (bar: 3.26 s)");
    assert!(moved < Duration::from_secs(6), "{moved:?}");
    for vip in BOTH {
        cluster.wait_has("m1", "eth0", vip, false).unwrap();
    }
    let gone = begin.elapsed();
    println!("kill -9: gone from the dead node after {gone:?} (bar: 4 s)");
    assert!(gone < Duration::from_secs(8), "{gone:?}");
    nothing_was_lost(clients);
}

/// With adverts every 50 ms a killed owner is replaced within 250 ms (asserted: 1.5 s).
#[test]
fn fifty_millisecond_adverts_make_a_takeover_fast() {
    skip_unless_root!();
    let mut cluster = dual_stack("50ms");
    let clients = clients(&cluster);
    let begin = Instant::now();
    cluster.kill_xvip("m1").unwrap();
    let moved = took_over(&cluster, "m2", begin);
    println!("kill -9 with 50 ms adverts: on another node after {moved:?} (bar: 250 ms)");
    assert!(moved < Duration::from_millis(1500), "{moved:?}");
    nothing_was_lost(clients);
}

/// A controller that hangs still has its addresses in the kernel, but its lease has lapsed: asked
/// by ARP and by neighbour solicitation, only the new owner answers. When it goes on it becomes
/// Backup first, and then takes the VIP back by an election.
#[test]
fn a_frozen_owner_is_fenced_and_answers_nobody() {
    skip_unless_root!();
    let cluster = dual_stack("1s");
    let (m1, m2) = (cluster.node("m1").mac(), cluster.node("m2").mac());
    let ask = |vip, expected| who_has(cluster.client(), vip, expected, 5, PATIENCE).unwrap();
    for vip in BOTH {
        assert_eq!(ask(vip, m1), BTreeSet::from([m1]), "{vip}");
    }
    let clients = clients(&cluster);
    cluster.xvip("m1").freeze().unwrap();
    let begin = Instant::now();
    let moved = took_over(&cluster, "m2", begin);
    for vip in BOTH {
        assert_eq!(ask(vip, m2), BTreeSet::from([m2]), "{vip}");
    }
    println!("SIGSTOP: on another node after {moved:?}, and only there");
    for (_, steady) in &clients {
        steady.wait_answers(20, PATIENCE).unwrap();
    }
    cluster.xvip("m1").resume().unwrap();
    cluster.wait_state("m1", VrrpState::Active).unwrap();
    for node in ["m1", "m2"] {
        let state = cluster.vrrp(node).unwrap();
        println!(
            "{node}: {} since {} ms, {}",
            state.state, state.since_ms, state.cause
        );
    }
    // It was Active, lost the lease, and was elected again.
    assert!(cluster.vrrp("m1").unwrap().transitions >= 4);
    for vip in BOTH {
        assert_eq!(ask(vip, m1), BTreeSet::from([m1]), "{vip}");
    }
    assert!(cluster.reason("m1", Reason::FencedArp).unwrap() > 0);
    assert!(cluster.reason("m1", Reason::FencedNd).unwrap() > 0);
    nothing_was_lost(clients);
}

/// With `preempt = false` a better node that returns leaves the VIP where it is, until that
/// node's operator gives it away.
#[test]
fn nopreempt_leaves_the_vip_where_it_is() {
    skip_unless_root!();
    let mut cluster = Cluster::builder()
        .prepare(|plane| "preempt = false".clone_into(&mut plane.vrrp))
        .unwrap();
    // Nobody preempts: the first one to be there is the owner.
    cluster.start_xvip("m1").unwrap();
    cluster.wait_state("m1", VrrpState::Active).unwrap();
    for name in ["m2", "m3"] {
        cluster.start_xvip(name).unwrap();
    }
    cluster.wait_settled("m1").unwrap();
    cluster.stop_xvip("m1").unwrap();
    cluster.wait_has("m2", "eth0", VIP4, true).unwrap();
    cluster.start_xvip("m1").unwrap();
    cluster.wait_state("m1", VrrpState::Backup).unwrap();
    // More than a down-interval of adverts from the worse node.
    cluster
        .wait("m1 to hear ten adverts", || {
            Ok((cluster.vrrp("m1")?.adverts_received >= 10).then_some(()))
        })
        .unwrap();
    assert_eq!(cluster.vrrp("m1").unwrap().state, VrrpState::Backup);
    assert_eq!(cluster.vrrp("m2").unwrap().state, VrrpState::Active);
    lb_tests::process::output(&mut cluster.cli("m2", &["vrrp", "step-down"]).unwrap()).unwrap();
    cluster.wait_has("m1", "eth0", VIP4, true).unwrap();
}

/// A node whose link is cut and joined again: the others go on meanwhile, and afterwards there is
/// one owner.
#[test]
fn after_a_partition_there_is_one_owner() {
    skip_unless_root!();
    let cluster = dual_stack("200ms");
    cluster.net().cut("m1").unwrap();
    took_over(&cluster, "m2", Instant::now());
    for vip in BOTH {
        let report = cluster.requests(&cluster.load(vip)).unwrap();
        println!("while m1 is cut off: {report}");
        // The first ones met m1's backend, and went elsewhere when it was known to be down.
        assert_eq!(report.ok, 1000, "{report}");
    }
    cluster.net().join("m1").unwrap();
    cluster.wait_settled("m1").unwrap();
    cluster.wait_state("m2", VrrpState::Backup).unwrap();
    let m1 = cluster.node("m1").mac();
    for vip in [IpAddr::from(VIP4), VIP6.into()] {
        let answered = who_has(cluster.client(), vip, m1, 5, PATIENCE).unwrap();
        assert_eq!(answered, BTreeSet::from([m1]), "{vip}");
        let report = cluster.requests(&cluster.load(vip)).unwrap();
        assert_eq!(report.ok, 1000, "{report}");
    }
}

//! Backends that die, hang or say that they are not ready: new connections avoid them, and they
//! get their share again when they return.

use std::time::{Duration, Instant};

use lb_tests::{
    cluster::{Cluster, PATIENCE},
    control_plane::{BOTH, VIP4},
    skip_unless_root,
    steady::{Steady, failures},
    watch::Watches,
};
use lb_user::admin::model::BackendState::{Down, Draining, Up};
use nix::sys::signal::Signal;

const PACE: Duration = Duration::from_millis(20);

/// An apiserver that is killed is avoided within fall x interval (2 x 1 s; asserted: 6 s), by
/// local as by dsr; not one request fails after that. It gets its share when it returns.
#[test]
fn a_killed_apiserver_is_avoided_and_returns() {
    skip_unless_root!();
    let mut cluster = Cluster::builder()
        .stand_in(&["--listen", "[::]:6443"])
        .start(|plane| plane.vips = BOTH.into())
        .unwrap();
    for node in ["m1", "m2"] {
        let start = |vip| {
            let load = cluster.load(vip);
            Steady::start(cluster.client(), &load, PACE, PATIENCE).unwrap()
        };
        let steady = BOTH.map(start);
        let begin = Instant::now();
        cluster.kill_stand_in(node).unwrap();
        cluster.wait_backend("m1", node, Down).unwrap();
        let (down, avoided) = (begin.elapsed(), Instant::now());
        println!("{node} killed: DOWN after {down:?} (bar: 2 s)");
        assert!(down < Duration::from_secs(6), "{down:?}");
        for steady in steady {
            steady.wait_answers(50, PATIENCE).unwrap();
            let outcomes = steady.finish().unwrap();
            let (before, after): (Vec<_>, Vec<_>) = outcomes
                .into_iter()
                .partition(|outcome| outcome.begun < avoided);
            let lost = failures(&before).len();
            println!("{lost} of {} requests failed before", before.len());
            assert_eq!(failures(&after), Vec::<String>::new());
        }
        cluster.start_stand_in(node).unwrap();
        cluster.wait_settled("m1").unwrap();
        for vip in BOTH {
            let report = cluster.requests(&cluster.load(vip)).unwrap();
            assert_eq!(report.ok, 1000, "{report}");
            assert!(report.unevenness(3) <= 10, "{report}");
        }
    }
}

/// An apiserver that hangs accepts connections (its kernel does), but shakes no hands: it is
/// DOWN, and new connections go elsewhere.
#[test]
fn a_frozen_apiserver_is_down() {
    skip_unless_root!();
    let cluster = Cluster::builder().start(|_| {}).unwrap();
    for node in ["m1", "m3"] {
        cluster.stand_in(node).freeze().unwrap();
        cluster.wait_backend("m1", node, Down).unwrap();
        println!("{}", cluster.backend("m1", node).unwrap().reason);
        let report = cluster.requests(&cluster.load(VIP4)).unwrap();
        assert_eq!(
            (report.ok, report.by_node.get(node)),
            (1000, None),
            "{report}"
        );
        cluster.stand_in(node).resume().unwrap();
        cluster.wait_settled("m1").unwrap();
    }
}

/// An apiserver that says that it is not ready keeps its streams, and gets no new connection.
#[test]
fn an_unready_apiserver_drains() {
    skip_unless_root!();
    let cluster = Cluster::builder().start(|_| {}).unwrap();
    let load = cluster.load(VIP4);
    let watches = Watches::open(cluster.client(), &load, 20, PATIENCE).unwrap();
    assert_eq!(watches.by_node().len(), 3, "{watches:?}");
    for node in ["m1", "m2"] {
        cluster.stand_in(node).signal(Signal::SIGUSR1).unwrap();
        cluster.wait_backend("m1", node, Draining).unwrap();
        println!("{}", cluster.backend("m1", node).unwrap().reason);
        let report = cluster.requests(&load).unwrap();
        assert_eq!(
            (report.ok, report.by_node.get(node)),
            (1000, None),
            "{report}"
        );
        watches.wait_events(2, PATIENCE).unwrap();
        cluster.stand_in(node).signal(Signal::SIGUSR2).unwrap();
        cluster.wait_settled("m1").unwrap();
    }
    let report = cluster.requests(&load).unwrap();
    assert!(report.unevenness(3) <= 10, "{report}");
    watches.wait_events(2, PATIENCE).unwrap();
}

/// When all hang at once it is more likely a slow etcd than three dead machines: never are most
/// backends DOWN by a timeout, their streams are kept, and all work as soon as they go on.
#[test]
fn a_hang_of_all_apiservers_puts_not_all_of_them_down() {
    skip_unless_root!();
    let cluster = Cluster::builder().start(|_| {}).unwrap();
    let load = cluster.load(VIP4);
    let watches = Watches::open(cluster.client(), &load, 9, PATIENCE).unwrap();
    let nodes = ["m1", "m2", "m3"];
    for node in nodes {
        cluster.stand_in(node).freeze().unwrap();
    }
    let states = cluster
        .wait("all backends to leave UP", || {
            let backends = cluster.service("m1")?.backends;
            let states: Vec<_> = backends.iter().map(|backend| backend.state).collect();
            Ok((!states.contains(&Up)).then_some(states))
        })
        .unwrap();
    println!("{states:?}");
    assert!(
        states.iter().filter(|state| **state == Down).count() <= 1,
        "{states:?}"
    );
    for node in nodes {
        cluster.stand_in(node).resume().unwrap();
    }
    cluster.wait_settled("m1").unwrap();
    watches.wait_events(2, PATIENCE).unwrap();
    let report = cluster.requests(&load).unwrap();
    assert_eq!(report.ok, 1000, "{report}");
}

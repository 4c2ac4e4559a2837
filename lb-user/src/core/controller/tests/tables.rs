//! The data plane's tables: written when everything is known, repaired, written again.

use lb_common::abi::{BackendState, Service, UplinkKey};

use super::node::{APISERVER_KEY, Node, ms};
use crate::core::fixture::{APISERVER, APISERVER6, ETH0, mac};

/// master10 a second after its start: checked, resolved, written.
fn running() -> Node {
    let mut node = Node::start(10, APISERVER);
    node.run(ms(2_000));
    node.assert_converged();
    node.trace();
    node
}

/// Both are read first; nothing is written before both are known.
#[test]
fn reads_before_it_writes() {
    for first in [0, 1] {
        let mut node = Node::stopped(crate::core::fixture::config(10, APISERVER), 10);
        node.delay_readings();
        node.boot();
        node.run(ms(50));
        let trace = node.trace_of(&["read", "write", "set", "remove"]);
        assert_eq!(trace, ["read tables", "read links"]);
        let mut answers = node.delayed.take().unwrap();
        node.input(answers.remove(first).unwrap());
        assert_eq!(node.trace_of(&["write"]), [""; 0]);
        node.input(answers.pop_front().unwrap());
        assert_ne!(node.trace_of(&["write"]), [""; 0]);
    }
}

/// The first plan brings everything, what is referred to before what refers to it.
#[test]
fn the_first_plan_is_whole() {
    let mut node = Node::start(10, APISERVER);
    let writes = node.trace_of(&["write"]);
    assert_eq!(
        writes[0],
        "write node, uplink 2, VIP, peer, peer, reply port, VIP of IPv6, peer of IPv6, \
         peer of IPv6, maglev 2, service by 2, backend 1 Down, backend 2 Down, backend 3 Down"
    );
    node.run(ms(1_000));
    node.assert_converged();
}

/// A failed reading is tried again, and nothing is written meanwhile.
#[test]
fn failed_readings_are_repeated() {
    let mut node = Node::stopped(crate::core::fixture::config(10, APISERVER), 10);
    node.failing_readings = 3;
    node.boot();
    node.run(ms(2_000));
    let trace = node.trace();
    let readings: Vec<_> = trace.iter().filter(|line| line.contains("read ")).collect();
    assert_eq!(readings[..2], ["0 read tables", "0 read links"]);
    assert_eq!(readings[2..4], ["500 read tables", "500 read links"]);
    assert!(readings.iter().any(|line| *line == "1000 read tables"));
    node.assert_converged();
}

/// Everything is read and looked at again every five seconds, and an audit that finds nothing does
/// nothing.
#[test]
fn audits_read_and_leave_alone() {
    let mut node = running();
    node.input(crate::core::controller::Input::StepDown { instance: 0 });
    node.input(crate::core::controller::Input::StepDown { instance: 1 });
    node.run(ms(13_000));
    let trace = node.trace();
    assert_eq!(
        trace,
        [
            "5000 read tables",
            "5000 read links",
            "5000 attach eth0 (2)",
            "10000 read tables",
            "10000 read links",
            "10000 attach eth0 (2)",
            "15000 read tables",
            "15000 read links",
            "15000 attach eth0 (2)"
        ]
    );
}

/// Somebody changes tables: the next audit repairs them, and says so once.
#[test]
fn damage_is_repaired_and_said_once() {
    let mut node = running();
    node.careful = false;
    let service = node.service();
    node.tables.v4.services.remove(&APISERVER_KEY);
    node.tables.v4.backends.remove(&2);
    node.tables.peer_macs.clear();
    node.run(ms(20_000));
    let said = node.trace_of(&["repaired"]);
    assert_eq!(
        said,
        ["report repaired 5 entries of the data plane's tables"]
    );
    assert_eq!(node.service().id(), service.id());
    node.assert_converged();
}

/// A service that was made to refer to a table that is not there gets its own back.
#[test]
fn a_wild_table_is_repaired() {
    let mut node = running();
    node.careful = false;
    let wild = Service::new(node.service().id(), 9_999, 0, 0, true);
    node.tables.v4.services.insert(APISERVER_KEY, wild);
    node.run(ms(6_000));
    node.assert_converged();
}

/// A write that fails halfway: what is there is read, and the rest is written.
#[test]
fn failed_writes_are_finished() {
    let mut node = running();
    node.failing_writes = 1;
    node.moods.insert("master11", super::node::Mood::Refuses);
    node.run(ms(8_000));
    let trace = node.trace_of(&["write", "read tables", "repaired"]);
    let failed = trace.iter().position(|l| l.starts_with("write")).unwrap();
    assert_eq!(
        trace[failed..=failed + 2],
        [
            "write maglev 2, service by 2, backend 2 Down",
            // Only the table was written.
            "read tables",
            "write maglev 2, service by 2, backend 2 Down",
        ]
    );
    assert!(!trace.iter().any(|line| line.contains("repaired")));
    assert_eq!(node.backends()[1], BackendState::Down);
    node.assert_converged();
}

/// A reading of the tables that a write has overtaken shows the past: it is no damage, and
/// nothing is written by it.
#[test]
fn overtaken_readings_are_no_damage() {
    let mut node = running();
    node.delay_readings();
    node.run(ms(4_000)); // the audit asks, and gets no answer yet
    node.move_neighbour("10.0.2.12", mac(99));
    node.wake();
    assert_eq!(node.trace_of(&["write"]).len(), 1);
    node.deliver_readings();
    node.run(ms(100));
    assert_eq!(node.trace_of(&["write", "repaired"]), [""; 0]);
    node.assert_converged();
}

/// A neighbour's MAC changes: its backend and its identity follow at once.
#[test]
fn another_mac_is_written_at_once() {
    let mut node = running();
    node.move_neighbour("10.0.2.12", mac(99));
    node.wake();
    assert_eq!(
        node.trace_of(&["write", "read"]),
        ["write node, peer MAC, backend 3 Up"]
    );
    assert_eq!(node.tables.v4.backends[&3].mac(), mac(99));
}

/// This node's own MAC changes: the uplink follows.
#[test]
fn the_own_mac_is_followed() {
    let mut node = running();
    node.interfaces[1].mac = Some(mac(77));
    node.input(crate::core::controller::Input::NetworkChanged);
    assert_eq!(node.trace_of(&["write"]), ["write node, uplink 2"]);
    assert_eq!(node.tables.uplinks[&UplinkKey::new(ETH0, 0)].mac(), mac(77));
}

/// A restart finds everything as it left it: nothing is written.
#[test]
fn a_restart_writes_nothing() {
    let mut node = Node::start(10, &format!("{APISERVER}{APISERVER6}"));
    node.run(ms(2_500));
    node.kill();
    node.run(ms(10_000));
    node.trace();
    node.boot();
    node.run(ms(3_000));
    // Until the neighbours are resolved again their MACs are unknown.
    let writes = node.trace_of(&["write"]);
    let harmful = |line: &String| line.contains("service") || line.contains("maglev");
    assert!(!writes.iter().any(harmful), "{writes:?}");
    node.assert_converged();
}

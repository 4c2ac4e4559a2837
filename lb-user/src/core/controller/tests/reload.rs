//! Another configuration while everything runs.

use lb_common::abi::{BackendState, Service};

use super::node::{Mood, Node, ms, net};
use crate::core::{
    controller::{Controller, reload::RETIREMENT},
    fixture::{self, APISERVER, APISERVER6, ETH0, LO},
    vrrp::State,
};

use BackendState::{Down, Up};

/// A second service, on the first one's VIP.
const WEB: &str = r#"
[[service]]
name = "web"
address = "10.0.2.100"
port = 80
[service.health]
type = "tcp"
[[service.backend]]
name = "web11"
address = "10.0.2.11:8080"
"#;

/// master10, which owns both VIPs, with both apiserver services.
fn owner() -> Node {
    let mut node = Node::start(10, &both());
    node.run(ms(12_000)); // the last announcement is 9 s after the start
    node.assert_converged();
    assert!(node.owns(0) && node.owns(1));
    node.trace();
    node
}

fn both() -> String {
    format!("{APISERVER}{APISERVER6}")
}

/// The configuration of [`owner`] with replacements.
fn edited(edits: &[(&str, &str)]) -> String {
    edits
        .iter()
        .fold(fixture::text(10, &both()), |text, (old, new)| {
            assert!(text.contains(old), "{old}");
            text.replace(old, new)
        })
}

fn reload(node: &mut Node, text: &str) -> Vec<String> {
    node.reload(fixture::parse(text)).unwrap()
}

fn slots(controller: &Controller) -> Vec<usize> {
    (0..)
        .map_while(|position| controller.slot(position))
        .collect()
}

/// What tells of a change of owner, or of an address that comes or goes.
const MOVES: [&str; 5] = ["Backup", "remove", "ends", "announce", "listen"];

/// The same file again changes nothing at all.
#[test]
fn the_same_again_does_nothing() {
    let mut node = owner();
    assert_eq!(reload(&mut node, &edited(&[])), [""; 0]);
    assert_eq!(node.trace(), [""; 0]);
}

/// A new service is checked and written; nothing else moves, and no other state is lost.
#[test]
fn a_service_is_added_beside_the_others() {
    let mut node = owner();
    node.moods.insert("master12", Mood::Refuses);
    node.run(ms(10_000));
    let before = (node.service(), node.states(0));
    assert_eq!(before.1, [Up, Up, Down]);
    node.trace();
    let text = edited(&[]) + WEB;
    assert_eq!(reload(&mut node, &text), ["service \"web\": added"]);
    node.run(ms(3_000));
    assert_eq!(node.trace_of(&MOVES), [""; 0]);
    assert_eq!((node.service(), node.states(0)), before);
    assert_eq!(node.states(2), [Up]);
    node.assert_converged();
    // And away again.
    assert_eq!(
        reload(&mut node, &edited(&[])),
        ["service \"web\": removed"]
    );
    node.run(ms(3_000));
    assert_eq!(node.trace_of(&MOVES), [""; 0]);
    assert_eq!(node.tables.v4.services.len(), 1);
    node.assert_converged();
}

/// Services and backends in another order, and under other names, are the same ones.
#[test]
fn order_and_names_do_not_matter() {
    let mut node = owner();
    node.moods.insert("master12", Mood::Refuses);
    node.run(ms(10_000));
    let before = node.tables.clone();
    node.trace();
    let services = format!("{APISERVER6}{APISERVER}").replace("\"apiserver\"", "\"renamed\"");
    let backend = |host: u8| {
        format!("[[service.backend]]\nname = \"master{host}\"\naddress = \"10.0.2.{host}:6443\"\n")
    };
    let (first, last) = (backend(10), backend(12));
    assert!(services.contains(&first) && services.contains(&last));
    let services = services
        .replace(&first, "@")
        .replace(&last, &first)
        .replace('@', &last);
    let changes = reload(&mut node, &fixture::text(10, &services));
    assert_eq!(changes, ["service \"renamed\": changed"]);
    assert_eq!(node.states(1), [Down, Up, Up]);
    assert!(node.tables == before);
    node.run(ms(10_000));
    assert!(node.tables == before);
    assert_eq!(node.trace_of(&["write", "report"]), [""; 0]);
}

/// A probe that is under way when its backend changes its place ends without a trace: its result
/// is nobody's.
#[test]
fn results_from_before_are_nobodys() {
    let mut node = Node::start(10, APISERVER);
    node.run(ms(4_000));
    node.moods.insert("master11", Mood::Silent);
    node.run(ms(2_500)); // a probe hangs
    node.moods.clear();
    let [eleven, twelve] =
        [11, 12].map(|host| format!("name = \"master{host}\"\naddress = \"10.0.2.{host}:6443\""));
    let swapped = APISERVER
        .replace(&eleven, "@")
        .replace(&twelve, &eleven)
        .replace('@', &twelve);
    reload(&mut node, &fixture::text(10, &swapped));
    node.trace();
    node.run(ms(30_000));
    assert_eq!(node.states(0), [Up; 3]);
    assert_eq!(node.trace_of(&["report"]), [""; 0]);
}

/// A backend that is taken out gets no new flows at once, is DOWN for a minute, and is gone then.
#[test]
fn a_removed_backend_retires() {
    let mut node = owner();
    let backend = "[[service.backend]]\nname = \"master12\"\naddress = \"10.0.2.12:6443\"\n";
    let id = node.controller().placements()[0].backends[2].id;
    let changes = reload(&mut node, &edited(&[(backend, "")]));
    assert_eq!(
        changes,
        ["service \"apiserver\", backend \"master12\": removed"]
    );
    let writes = node.trace_of(&["write"]).concat();
    assert!(
        writes.ends_with(&format!(", backend {id} Down")),
        "{writes}"
    );
    assert!(writes.starts_with("write maglev "), "{writes}");
    assert_eq!(node.states(0), [Up, Up]);
    node.run(RETIREMENT.saturating_sub(ms(1)));
    assert_eq!(node.tables.v4.backends[&id].state(), Down);
    node.run(ms(1));
    let gone = node.tables.v4.backends.get(&id);
    assert!(gone.is_none_or(|gone| gone.service() == 0));
    node.assert_converged();
}

/// A backend that comes back within the minute is checked like a new one, under its old id.
#[test]
fn a_backend_may_come_back() {
    let mut node = owner();
    let backend = "[[service.backend]]\nname = \"master12\"\naddress = \"10.0.2.12:6443\"\n";
    let id = node.controller().placements()[0].backends[2].id;
    reload(&mut node, &edited(&[(backend, "")]));
    node.run(ms(1_000));
    reload(&mut node, &edited(&[]));
    assert_eq!(node.states(0), [Up, Up, Down]);
    node.run(ms(1_000));
    assert_eq!(node.states(0), [Up; 3]);
    assert_eq!(node.controller().placements()[0].backends[2].id, id);
    node.run(RETIREMENT);
    assert_eq!(node.tables.v4.backends[&id].state(), Up);
    node.assert_converged();
}

/// The last local backend of a service keeps its VIP on `lo` until its flows have been ended.
#[test]
fn a_removed_local_backend_keeps_its_vip_for_a_while() {
    let mut node = owner();
    let backend = "[[service.backend]]\nname = \"master10\"\naddress = \"10.0.2.10:6443\"\n";
    reload(&mut node, &edited(&[(backend, "")]));
    node.run(RETIREMENT.saturating_sub(ms(1)));
    assert!(node.vips_of(LO).contains(&"10.0.2.100/32".to_owned()));
    node.run(ms(1_000));
    assert!(!node.vips_of(LO).contains(&"10.0.2.100/32".to_owned()));
    assert!(node.owns(0));
    node.assert_converged();
}

/// Other checks keep the state until they say otherwise; no checks are UP at once.
#[test]
fn other_checks_keep_the_state() {
    let mut node = owner();
    node.moods.insert("master12", Mood::Refuses);
    node.run(ms(10_000));
    reload(
        &mut node,
        &edited(&[("type = \"tcp\"", "type = \"tls\"\ninterval = \"1s\"")]),
    );
    assert_eq!(node.states(0), [Up, Up, Down]);
    node.run(ms(5_000));
    assert_eq!(node.states(0), [Up, Up, Down]);
    reload(&mut node, &edited(&[("type = \"tcp\"", "type = \"none\"")]));
    assert_eq!(node.states(0), [Up; 3]);
    node.run(ms(5_000));
    node.assert_converged();
    reload(&mut node, &edited(&[]));
    assert_eq!(node.states(0), [Up; 3]);
    node.run(ms(10_000));
    assert_eq!(node.states(0), [Up, Up, Down]);
}

/// Rules and limits of sources are there at once, and nothing else is written.
#[test]
fn source_rules_follow() {
    let mut node = owner();
    let before = node.service();
    let port = "address = \"10.0.2.100\"\nport = 1644\n";
    let rules = format!("{port}deny = [\"10.9.0.0/16\"]\nsource_limit = {{ rate = 5 }}\n");
    let changes = reload(&mut node, &edited(&[(port, &rules)]));
    assert_eq!(changes, ["service \"apiserver\": changed"]);
    let service = format!("service by {}", before.table());
    assert_eq!(
        node.trace_of(&["write"]),
        [format!("write source rule, {service}")]
    );
    let expected = before.with_flags(Service::SOURCES).with_source_rate(5, 5);
    assert_eq!(node.service(), expected);
    reload(&mut node, &edited(&[]));
    assert_eq!(
        node.trace_of(&["write"]),
        [format!("write {service}, no source rule")]
    );
    assert_eq!(node.service(), before);
}

// --- VRRP ---------------------------------------------------------------------------------------

/// Instances in another order go on: each keeps its lease, its socket and its addresses.
#[test]
fn reordered_instances_go_on() {
    let mut node = owner();
    let text = edited(&[]);
    let (head, rest) = text.split_once("[[vrrp]]").unwrap();
    let (first, rest) = rest.split_once("[[vrrp]]").unwrap();
    let (second, rest) = rest.split_once("[[peer]]").unwrap();
    let swapped = format!("{head}[[vrrp]]{second}[[vrrp]]{first}[[peer]]{rest}");
    assert_eq!(reload(&mut node, &swapped), ["order of sections: changed"]);
    assert_eq!(slots(node.controller()), [1, 0]);
    node.run(ms(10_000));
    assert_eq!(node.trace_of(&MOVES), [""; 0]);
    assert!(node.owns(0) && node.owns(1));
    node.assert_converged();
}

/// An owner that gets another priority or interval says so at once and goes on to own; its lease
/// is never longer than the new interval allows.
#[test]
fn an_owner_takes_new_settings() {
    let mut node = owner();
    let shorter = "priority = 120\nadvert_interval = \"100ms\"";
    let changes = reload(&mut node, &edited(&[("priority = 200", shorter)]));
    assert_eq!(changes, ["vrrp \"v4\": changed", "vrrp \"v6\": changed"]);
    let trace = node.trace_of(&["advert", "lease", "Backup"]);
    assert_eq!(
        trace,
        [
            "lease 1 for 300",
            "lease 2 for 300",
            "advert 1 priority 120",
            "advert 2 priority 120",
        ]
    );
    node.run(ms(5_000));
    assert_eq!(node.trace_of(&MOVES), [""; 0]);
    node.assert_converged();
    reload(&mut node, &edited(&[]));
    node.run(ms(5_000));
    assert_eq!(node.trace_of(&MOVES), [""; 0]);
    node.assert_converged();
}

/// An owner's addresses change: what is new is added and announced, what is old is removed, and
/// the rest stays.
#[test]
fn an_owner_takes_new_addresses() {
    let mut node = owner();
    let more = edited(&[(
        "[\"10.0.2.100/24\"]",
        "[\"10.0.2.100/24\", \"10.0.2.110/24\"]",
    )]);
    reload(&mut node, &more);
    node.run(ms(100));
    assert!(
        node.addresses_of(ETH0)
            .contains(&"10.0.2.110/24".to_owned())
    );
    let trace = node.trace_of(&MOVES);
    assert_eq!(trace, ["announce 10.0.2.100 on 2"]);
    node.assert_converged();
    let other = edited(&[("[\"10.0.2.100/24\"]", "[\"10.0.2.110/24\"]")]);
    reload(&mut node, &other);
    node.run(ms(100));
    assert!(
        !node
            .addresses_of(ETH0)
            .contains(&"10.0.2.100/24".to_owned())
    );
    assert!(
        node.addresses_of(ETH0)
            .contains(&"10.0.2.110/24".to_owned())
    );
    let trace = node.trace_of(&["Backup", "remove", "ends"]);
    assert_eq!(trace, ["remove 10.0.2.100/24 from 2"]);
    assert!(node.owns(0));
}

/// A removed instance resigns and leaves nothing behind; a new one gets a slot of its own, and
/// begins as Backup.
#[test]
fn instances_come_and_go() {
    let mut node = owner();
    let text = edited(&[]);
    let (head, rest) = text.split_once("[[vrrp]]").unwrap();
    let (_, rest) = rest.split_once("[[vrrp]]").unwrap();
    let only_v6 = format!("{head}[[vrrp]]{rest}");
    assert_eq!(reload(&mut node, &only_v6), ["vrrp \"v4\": removed"]);
    let trace = node.trace_of(&["lease", "advert", "remove", "listen", "v4"]);
    assert_eq!(
        trace,
        [
            "lease 1 ends",
            "advert 1 priority 0",
            "remove 10.0.2.100/24 from 2",
            "report v4 Active -> Initialize",
            "listen 1 on None",
        ]
    );
    assert_eq!(slots(node.controller()), [1]);
    assert!(node.owns(0));
    node.run(ms(2_000));
    assert_eq!(reload(&mut node, &text), ["vrrp \"v4\": added"]);
    assert_eq!(slots(node.controller()), [0, 1]);
    let state = |node: &Node, position| node.controller().vrrp(position).unwrap().0.state();
    assert_eq!(state(&node, 0), State::Backup);
    assert_eq!(state(&node, 1), State::Active);
    node.run(ms(8_000));
    assert!(node.owns(0) && node.owns(1));
    assert!(
        node.addresses_of(ETH0)
            .contains(&net("10.0.2.100/24").to_string())
    );
    node.assert_converged();
}

/// Other unicast peers need another socket and nothing else.
#[test]
fn unicast_peers_need_another_socket() {
    let mut node = owner();
    let peers = "addresses = [\"10.0.2.100/24\"]\nunicast_peers = [\"10.0.2.11\"]";
    reload(
        &mut node,
        &edited(&[("addresses = [\"10.0.2.100/24\"]", peers)]),
    );
    assert_eq!(node.trace_of(&MOVES), ["listen 1 on Some(2)"]);
    assert!(node.owns(0));
}

/// What needs a restart is refused by name, all of it at once, and nothing changes.
#[test]
fn fixed_keys_are_refused() {
    let mut node = owner();
    let head = "[node]\n";
    let more = "[node]\ninstance = \"other\"\ncgroup = \"off\"\nstate_dir = \"/tmp/x\"\n";
    let config = fixture::parse(&(edited(&[(head, more)]) + WEB));
    let errors = node.reload(config).unwrap_err();
    let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
    let rest = "as before, or restart xvip";
    assert_eq!(
        errors,
        [
            format!("node.instance: cannot change while xvip runs; write \"default\" {rest}"),
            format!("node.cgroup: cannot change while xvip runs; write \"auto\" {rest}"),
            format!("node.state_dir: cannot change while xvip runs; write \"/run/xvip\" {rest}"),
        ]
    );
    assert_eq!(node.trace(), [""; 0]);
    assert_eq!(node.controller().config().services.len(), 2);
}

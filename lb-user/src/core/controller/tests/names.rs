//! Backends by host name.

use std::time::Duration;

use lb_common::abi::BackendState;

use super::node::{Node, ms};
use crate::{
    config::model::{BackendConfig, Config, Endpoint},
    core::{
        fixture::{self, APISERVER},
        operator::Order,
    },
};

use BackendState::{Down, Draining, Up};

const HOST: &str = "cp3.example";

/// Its third backend has a name.
fn named() -> String {
    APISERVER.replace("10.0.2.12:6443", "cp3.example:6443")
}

fn config() -> Config {
    fixture::config(10, &named())
}

/// master10 as it starts, where the name stands for this.
fn start(stands_for: Option<&'static str>) -> Node {
    let mut node = Node::stopped(config(), 10);
    node.hosts.extend(stands_for.map(|address| (HOST, address)));
    node.boot();
    node.run(ms(12_000));
    node
}

fn addresses(node: &Node) -> Vec<String> {
    let backends = node.controller().config().services[0].backends.iter();
    backends
        .map(|backend| backend.address.to_string())
        .collect()
}

/// The name and what is wrong with it.
fn failure(node: &Node) -> Option<String> {
    let controller = node.controller();
    let host = controller.host(0, &controller.config().services[0].backends[2]);
    host.unwrap().failure.map(str::to_owned)
}

fn why(node: &Node) -> String {
    let mut nameless = node.controller().nameless(0);
    nameless.next().unwrap().why.clone()
}

fn entries(node: &Node, state: BackendState) -> usize {
    let entries = node.tables.v4.backends.values();
    let own = entries.filter(|entry| entry.service() != 0);
    own.filter(|entry| entry.state() == state).count()
}

/// A name that stands for nothing holds nobody up: the service starts without its backend, which comes
/// when it has an address.
#[test]
fn a_service_starts_without_its_names() {
    let mut node = start(None);
    assert_eq!(addresses(&node), ["10.0.2.10:6443", "10.0.2.11:6443"]);
    assert_eq!(node.states(0), [Up; 2]);
    assert_eq!(why(&node), "cp3.example cannot be looked up: no such host");
    assert_eq!(node.controller().nameless(0).next().unwrap().place, 2);
    let told = node.trace_of(&["report name"]);
    assert_eq!(
        told,
        ["report name cp3.example: cannot be looked up: no such host"]
    );
    node.hosts.insert(HOST, "10.0.2.12");
    // Sooner than at the interval.
    node.run(ms(5_000));
    assert_eq!(addresses(&node)[2], "10.0.2.12:6443");
    assert_eq!(node.states(0), [Up; 3]);
    assert_eq!(node.controller().nameless(0).count(), 0);
    node.assert_converged();
    // Without any other it starts as well.
    let names = named().replace("10.0.2.10:", "cp1.example:");
    let names = names.replace("10.0.2.11:", "cp2.example:");
    let mut node = Node::start(10, &names);
    node.run(ms(12_000));
    assert_eq!(node.controller().nameless(0).count(), 3);
    node.hosts
        .extend([("cp2.example", "10.0.2.11"), ("cp1.example", "10.0.2.10")]);
    node.run(ms(5_000));
    assert_eq!(node.states(0), [Up; 2]);
    assert_eq!(node.controller().nameless(0).next().unwrap().place, 2);
    node.assert_converged();
}

/// When a name moves, new flows go to the other address once it is checked; those at the old one have 30 s
/// to end in, and are reset then. The others do not notice, and the operator's word stays.
#[test]
fn a_backend_moves_with_its_name() {
    let mut node = start(Some("10.0.2.12"));
    assert_eq!((node.states(0), failure(&node)), (vec![Up; 3], None));
    node.order(
        "master12",
        Order::Weight(crate::core::standing::Weight::Absolute(7)),
    )
    .unwrap();
    node.trace();
    node.hosts.insert(HOST, "10.0.2.1,127.0.0.1");
    node.run(ms(30_000));
    assert_eq!(addresses(&node)[2], "10.0.2.1:6443");
    assert_eq!(node.states(0), [Up; 3]);
    assert_eq!((entries(&node, Up), entries(&node, Draining)), (3, 1));
    assert!(node.controller().word(0, 2).is_some());
    assert_eq!(node.saved[0].backend.1.to_string(), "10.0.2.1:6443");
    assert_eq!(node.names[0].1.to_string(), "10.0.2.1");
    let told = node.trace_of(&["flows", "report name", "report vrrp", "report operator"]);
    assert_eq!(told, ["report name cp3.example: Some(10.0.2.1)"]);
    node.run(ms(30_000));
    assert_eq!((entries(&node, Up), entries(&node, Down)), (3, 1));
    assert_eq!(
        node.trace_of(&["flows"]),
        ["tell flows of 10.0.2.12:6443 in epoch 0"]
    );
    node.run(ms(60_000));
    assert_eq!((entries(&node, Up), entries(&node, Down)), (3, 0));
    node.assert_converged();
}

/// What was good last stays when lookups fail, or say what cannot be; over a restart as well. It is told
/// once, and once that it is over.
#[test]
fn the_last_good_address_stays() {
    let mut node = start(Some("10.0.2.12"));
    node.trace();
    node.hosts.remove(HOST);
    node.run(ms(100_000));
    assert_eq!(node.states(0), [Up; 3]);
    assert_eq!(failure(&node).unwrap(), "cannot be looked up: no such host");
    node.hosts.insert(HOST, "10.0.2.100");
    node.run(ms(100_000));
    assert_eq!(node.states(0), [Up; 3]);
    assert_eq!(
        node.trace_of(&["report", "flows"]),
        [
            "report name cp3.example: cannot be looked up: no such host",
            "report name cp3.example: stands for 10.0.2.100: a VIP as backend is a loop",
        ]
    );
    node.hosts.remove(HOST);
    node.kill();
    node.boot();
    assert_eq!(addresses(&node)[2], "10.0.2.12:6443");
    node.run(ms(12_000));
    assert_eq!(
        (node.states(0), node.backends()),
        (vec![Up; 3], vec![Up; 3])
    );
    let host = node.controller().config().services[0].backends[2].clone();
    let host = node.controller().host(0, &host).unwrap();
    assert_eq!((host.host, host.resolved), (HOST, None));
    node.trace();
    node.hosts.insert(HOST, "10.0.2.12");
    node.run(ms(30_000));
    assert_eq!(failure(&node), None);
    assert_eq!(
        node.trace_of(&["report", "flows", "write"]),
        ["report name cp3.example: Some(10.0.2.12)"]
    );
}

/// A reload that writes a name for an address, another name, or an address for a name, leaves the backend
/// where it is.
#[test]
fn names_and_addresses_replace_each_other() {
    let mut node = Node::start(10, APISERVER);
    node.run(ms(12_000));
    node.trace();
    let changes = node.reload(config()).unwrap();
    assert_eq!(
        changes,
        ["service \"apiserver\", backend \"master12\": changed"]
    );
    node.run(ms(12_000));
    assert_eq!(addresses(&node)[2], "10.0.2.12:6443");
    // It outlives a restart, although no lookup has ever said it.
    node.kill();
    node.boot();
    assert_eq!(node.states(0).len(), 3);
    node.hosts.insert("other.example", "10.0.2.12");
    node.run(ms(12_000));
    let other = named().replace(HOST, "other.example");
    node.reload(fixture::config(10, &other)).unwrap();
    node.run(ms(40_000));
    assert_eq!(failure(&node), None);
    node.reload(fixture::config(10, APISERVER)).unwrap();
    node.run(ms(12_000));
    assert_eq!(node.states(0), [Up; 3]);
    assert_eq!(node.trace_of(&["flows", "report backend"]), [""; 0]);
    node.assert_converged();
    // One that is new waits for an address, and the reload says so.
    let more =
        format!("{APISERVER}[[service.backend]]\nname = \"new\"\naddress = \"new.example:6443\"\n");
    let changes = node.reload(fixture::config(10, &more)).unwrap();
    assert_eq!(
        changes,
        [
            "service \"apiserver\", backend \"new\": waits for an address: new.example is being looked up"
        ]
    );
}

/// Two backends at one address are one too many: the second one is left out, until one of them moves.
#[test]
fn one_address_is_one_backend() {
    let mut node = start(Some("10.0.2.11"));
    assert_eq!(node.states(0), [Up; 2]);
    let expected =
        "another backend of the service is at 10.0.2.11:6443 already, what cp3.example stands for";
    assert_eq!(why(&node), expected);
    let told = node.trace_of(&["report nameless"]);
    assert_eq!(told, [format!("report nameless master12: {expected}")]);
    node.run(ms(60_000));
    assert_eq!(node.trace_of(&["report"]), [""; 0]);
    node.hosts.insert(HOST, "10.0.2.12");
    node.run(ms(32_000));
    assert_eq!(node.states(0), [Up; 3]);
}

/// Backends by name are added and removed like others, with an address and without; orders need one.
#[test]
fn the_operator_may_name_hosts() {
    let mut node = start(Some("10.0.2.12"));
    let endpoint = |host: &str| Endpoint::Name {
        host: host.to_owned(),
        port: 6443,
    };
    let new = BackendConfig::plain("spare", endpoint("spare.example"));
    node.hosts.insert("spare.example", "10.0.2.1");
    node.add("spare", Some(new)).unwrap();
    node.run(ms(5_000));
    assert_eq!(
        (node.states(0), &*addresses(&node)[3]),
        (vec![Up; 4], "10.0.2.1:6443")
    );
    node.hosts.clear();
    node.kill();
    node.boot();
    node.run(ms(12_000));
    assert_eq!(node.states(0), [Up; 4]);
    let typo = BackendConfig::plain("typo", endpoint("typo.example"));
    node.add("typo", Some(typo.clone())).unwrap();
    node.run(ms(5_000));
    let refusal = node.order("typo", Order::Disable).unwrap_err().to_string();
    assert_eq!(
        refusal,
        "\"typo\" has no address, so there is nothing to say about it: typo.example cannot be looked up: \
         no such host"
    );
    let refusal = node.add("typo", Some(typo)).unwrap_err().to_string();
    assert!(
        refusal.contains("there is a backend of this name, without an address"),
        "{refusal}"
    );
    assert_eq!(node.remove("typo", Duration::ZERO).unwrap().now, "removed");
    assert_eq!(node.controller().nameless(0).count(), 0);
    node.remove("spare", Duration::ZERO).unwrap();
    node.run(ms(70_000));
    assert_eq!(node.states(0), [Up; 3]);
    node.assert_converged();
}

/// While a lookup is late nothing waits for it, and no second one begins.
#[test]
fn nothing_waits_for_a_lookup() {
    let mut node = Node::stopped(config(), 10);
    node.hosts.insert(HOST, "10.0.2.12");
    node.lookup_time = Duration::from_mins(2);
    node.boot();
    node.run(ms(100_000));
    assert_eq!(node.states(0), [Up; 2]);
    assert_eq!(node.trace_of(&["look cp3.example up"]).len(), 1);
    assert!(node.owns(0));
    node.run(ms(25_000));
    assert_eq!(node.states(0), [Up; 3]);
}

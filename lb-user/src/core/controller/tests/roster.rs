//! Backends that are added to a running service, and removed from it.

use std::time::Duration;

use lb_common::abi::BackendState;

use super::node::{Mood, Node, ms};
use crate::{
    config::model::{BackendConfig, Endpoint},
    core::{
        fixture::{self, APISERVER},
        operator::Order,
    },
};

use BackendState::{Down, Draining, Up};

const SPARE: &str = "10.0.2.1:6443";
const DRAIN: Duration = Duration::from_secs(30);

fn fresh(name: &str, address: &str) -> BackendConfig {
    BackendConfig::plain(name, Endpoint::Address(address.parse().unwrap()))
}

/// master10, all of whose backends are UP.
fn node() -> Node {
    let mut node = Node::start(10, APISERVER);
    node.run(ms(12_000));
    node.trace();
    node
}

/// The file with one backend more, or less.
fn with(more: &str) -> crate::config::model::Config {
    fixture::config(10, &format!("{APISERVER}{more}"))
}

fn section(name: &str, address: &str) -> String {
    format!("[[service.backend]]\nname = \"{name}\"\naddress = \"{address}\"\n")
}

fn without(name: &str, address: &str) -> crate::config::model::Config {
    fixture::config(10, &APISERVER.replace(&section(name, address), ""))
}

fn names(node: &Node) -> Vec<String> {
    let backends = node.controller().config().services[0].backends.iter();
    backends.map(|backend| backend.name.clone()).collect()
}

/// States of the backends in the tables that belong to a service.
fn in_use(node: &Node) -> Vec<BackendState> {
    let backends = node.tables.v4.backends.values();
    let own = backends.filter(|backend| backend.service() != 0);
    own.map(lb_common::abi::Backend::state).collect()
}

/// An added backend is checked and gets its share; it outlives a reload and a restart; the others and
/// the ownership do not notice.
#[test]
fn an_added_backend_is_one_of_them() {
    let mut node = node();
    node.add("spare", Some(fresh("spare", SPARE))).unwrap();
    assert_eq!(node.states(0), [Up, Up, Up, Down]);
    node.run(ms(5_000));
    assert_eq!(node.states(0), [Up; 4]);
    assert!(node.controller().was_added(0, 3) && !node.controller().was_added(0, 0));
    node.assert_converged();
    node.reload(fixture::config(10, APISERVER)).unwrap();
    assert_eq!(node.states(0), [Up; 4]);
    assert_eq!(
        node.trace_of(&["flows", "report vrrp", "lease 1 ends"]),
        [""; 0]
    );
    node.kill();
    node.boot();
    node.run(ms(10_000));
    assert_eq!(
        (node.states(0), node.backends()),
        (vec![Up; 4], vec![Up; 4])
    );
    assert_eq!(node.trace_of(&["flows"]), [""; 0]);
    node.remove("spare", DRAIN).unwrap();
    assert_eq!(node.backends(), [Up, Up, Up, Draining]);
    node.run(ms(29_999));
    assert_eq!(node.trace_of(&["flows"]), [""; 0]);
    node.run(ms(1));
    assert_eq!(
        (node.states(0), node.backends()),
        (vec![Up; 3], vec![Up, Up, Up, Down])
    );
    assert_eq!(
        node.trace_of(&["flows"]),
        ["tell flows of 10.0.2.1:6443 in epoch 0"]
    );
    assert!(node.roster.is_empty() && node.saved.is_empty());
    node.run(ms(70_000));
    node.assert_converged();
}

/// A backend of the file that was removed stays away over reloads and restarts until it is put back,
/// or the file has it no more.
#[test]
fn a_removal_outlives_the_controller() {
    let mut node = node();
    node.remove("master11", DRAIN).unwrap();
    // The removal itself outlives a restart, too.
    node.run(ms(10_000));
    node.kill();
    node.boot();
    node.run(ms(19_000));
    assert_eq!(node.backends(), [Up, Draining, Up]);
    node.run(ms(1_000));
    assert_eq!(
        (names(&node).len(), node.backends()),
        (2, vec![Up, Down, Up])
    );
    assert_eq!(
        node.trace_of(&["flows"]),
        ["tell flows of 10.0.2.11:6443 in epoch 0"]
    );
    node.run(ms(70_000));
    assert_eq!(in_use(&node), [Up; 2]);
    node.reload(fixture::config(10, APISERVER)).unwrap();
    node.kill();
    node.boot();
    node.run(ms(10_000));
    assert_eq!((names(&node).len(), in_use(&node)), (2, vec![Up; 2]));
    assert_eq!(
        node.controller().removed(0).collect::<Vec<_>>(),
        ["master11"]
    );
    let refusal = node
        .add("master11", Some(fresh("master11", SPARE)))
        .unwrap_err();
    assert!(
        refusal.to_string().contains("write the name alone"),
        "{refusal}"
    );
    node.add("master11", None).unwrap();
    node.run(ms(5_000));
    assert_eq!(names(&node), ["master10", "master11", "master12"]);
    assert_eq!(node.states(0), [Up; 3]);
    assert!(node.roster.is_empty());

    node.remove("master11", Duration::ZERO).unwrap();
    node.trace();
    node.reload(without("master11", "10.0.2.11:6443")).unwrap();
    let said = node.trace_of(&["report operator"]);
    assert!(said[0].contains("its removal is forgotten"), "{said:?}");
    node.reload(fixture::config(10, APISERVER)).unwrap();
    assert_eq!(names(&node).len(), 3);
    node.run(ms(70_000));
    node.assert_converged();
}

/// `enable` keeps a backend that is about to be removed.
#[test]
fn a_removal_can_be_called_off() {
    let mut node = node();
    let changed = node.remove("master11", DRAIN).unwrap();
    assert_eq!(changed.now, "drains, removed in 30 s");
    let refusal = node.add("master11", None).unwrap_err().to_string();
    assert!(
        refusal.contains("it is being removed (10.0.2.11:6443): \"xvip backend enable\" keeps it"),
        "{refusal}"
    );
    node.order("master11", Order::Enable).unwrap();
    node.run(ms(60_000));
    assert_eq!(node.backends(), [Up; 3]);
    assert!(node.saved.is_empty() && node.roster.is_empty());
    // In maintenance there is nothing to wait for.
    node.order("master11", Order::Disable).unwrap();
    assert_eq!(node.remove("master11", DRAIN).unwrap().now, "removed");
    assert_eq!(names(&node), ["master10", "master12"]);
    assert!(node.saved.is_empty());
}

/// The file decides what it names: what was added under a name, or at an address, that it has now is
/// added no more, and that is said. The backend goes on if it is the same one.
#[test]
fn the_file_wins() {
    for (name, address, said) in [
        ("spare", SPARE, "spare: the configuration has it now"),
        (
            "spare",
            "10.0.2.2:6443",
            "spare: the configuration has it now",
        ),
        (
            "other",
            SPARE,
            "spare: it does not fit the configuration any more, and is gone: \"10.0.2.1:6443\" is already backend \"other\".address",
        ),
    ] {
        let mut node = node();
        node.add("spare", Some(fresh("spare", SPARE))).unwrap();
        node.run(ms(5_000));
        node.trace();
        node.reload(with(&section(name, address))).unwrap();
        let trace = node.trace_of(&["report operator", "flows"]);
        assert!(trace[0].contains(said), "{trace:?}");
        assert_eq!(names(&node)[3..], [name]);
        assert!(!node.controller().was_added(0, 3) && node.roster.is_empty());
        let state = if address == SPARE { Up } else { Down };
        assert_eq!(node.states(0)[3], state);
        let told = usize::from(address != SPARE);
        assert_eq!(trace.len(), 1 + told, "{trace:?}");
        node.run(ms(70_000));
        node.assert_converged();
    }
    // Without its service it is gone as well.
    let mut node = node();
    node.add("spare", Some(fresh("spare", SPARE))).unwrap();
    node.reload(fixture::config(10, &APISERVER.replace("1644", "1645")))
        .unwrap();
    assert_eq!((names(&node).len(), node.roster.is_empty()), (3, true));
    // A file that leaves only what was removed has it back: a service has a backend.
    node.remove("master10", Duration::ZERO).unwrap();
    let gone = section("master11", "10.0.2.11:6443") + &section("master12", "10.0.2.12:6443");
    node.reload(fixture::config(
        10,
        &APISERVER.replace("1644", "1645").replace(&gone, ""),
    ))
    .unwrap();
    assert_eq!(
        (names(&node), node.roster.is_empty()),
        (vec!["master10".to_owned()], true)
    );
}

/// What a file could not say cannot be added, in the words of the file's errors; what is there is not
/// added, and the last one is not removed.
#[test]
fn the_rules_are_those_of_the_file() {
    let web = "[[service]]\nname = \"web\"\naddress = \"10.0.2.100\"\nport = 80\n\
         [service.health]\ntype = \"tcp\"\n\
         [[service.backend]]\nname = \"w\"\naddress = \"10.0.2.11:8080\"\n";
    let mut node = Node::start(10, &format!("{APISERVER}{web}"));
    node.run(ms(5_000));
    for (name, address, why) in [
        (
            "a",
            "10.0.2.10:6443",
            "\"10.0.2.10:6443\" is already backend \"master10\".address; write every backend once",
        ),
        (
            "master11",
            SPARE,
            "there is a backend of this name, 10.0.2.11:6443: \"xvip backend weight\"",
        ),
        (
            "a",
            "[fd00::1]:6443",
            "\"[fd00::1]:6443\" is not IPv4 like the VIP; write an IPv4 address",
        ),
        (
            "a",
            "10.0.2.100:6443",
            "\"10.0.2.100\" is a VIP, vrrp \"v4\".addresses; write the node's own address",
        ),
        (
            "a",
            "10.0.2.1:80",
            "port 80 of the VIP is already service \"web\".port; use another backend port",
        ),
        (
            "a",
            "10.0.2.1:8080",
            "replies from \"10.0.2.100:8080\" already become",
        ),
    ] {
        let refusal = node
            .add(name, Some(fresh(name, address)))
            .unwrap_err()
            .to_string();
        assert!(refusal.contains(why), "{refusal}");
    }
    let refusal = node.add("a", None).unwrap_err().to_string();
    assert!(
        refusal.contains("ADDRESS:PORT is missing, and none of this name was removed"),
        "{refusal}"
    );
    let refusal = node.remove("w", DRAIN).unwrap_err().to_string();
    assert!(
        refusal.contains("is the last backend that takes new"),
        "{refusal}"
    );
    node.moods.insert("w", Mood::Refuses);
    node.run(ms(30_000));
    let refusal = node.remove("w", DRAIN).unwrap_err().to_string();
    assert!(
        refusal.contains("a service has at least one backend: add another one first"),
        "{refusal}"
    );
    let now = node.now;
    let controller = node.controller_mut();
    let refusal = controller
        .add_backend(now, ("a", None), Some(fresh("a", SPARE)))
        .unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "say which service is meant: --service NAME (there are: apiserver, web)"
    );
    let more =
        (0..157).map(|number| section(&format!("n{number}"), &format!("10.0.3.{number}:6443")));
    let mut node = Node::start_with(with(&more.collect::<String>()), 10);
    let refusal = node
        .add("a", Some(fresh("a", SPARE)))
        .unwrap_err()
        .to_string();
    assert!(
        refusal.contains("too many backends in one service; write at most 160"),
        "{refusal}"
    );
}

//! From checks to tables.

use lb_common::abi::BackendState::{Down, Draining, Up};

use super::node::{Link, Mood, Node, ms};
use crate::core::{
    controller::Input,
    fixture::{self, APISERVER},
};

fn running() -> Node {
    let mut node = Node::start(10, APISERVER);
    node.run(ms(2_000));
    assert_eq!(node.states(0), [Up; 3]);
    node.trace();
    node
}

/// A backend that refuses goes DOWN: first nobody selects it any more, then its state changes.
#[test]
fn down_after_it_is_selected_no_more() {
    let mut node = running();
    node.moods.insert("master11", Mood::Refuses);
    node.run(ms(6_000));
    let trace = node.trace_of(&["write", "report master"]);
    assert_eq!(
        trace,
        [
            "report master11 Up -> Down",
            "write maglev 2, service by 2, backend 2 Down"
        ]
    );
    assert_eq!(node.backends(), [Up, Down, Up]);
}

/// Back UP: first its state, then the table that selects it.
#[test]
fn up_before_it_is_selected() {
    let mut node = running();
    node.moods.insert("master11", Mood::Refuses);
    node.run(ms(6_000));
    node.trace();
    node.moods.clear();
    node.run(ms(6_000));
    let trace = node.trace_of(&["write", "report master"]);
    assert_eq!(
        trace,
        [
            "report master11 Down -> Up",
            "write backend 2 Up, maglev 3, service by 3"
        ]
    );
}

/// What a backend's agent says reaches the tables, and the operator hears why.
#[test]
fn an_agent_drains_its_backend() {
    let service = APISERVER.replace(
        "type = \"tcp\"",
        "type = \"tcp\"\nagent = { port = 9777, send = \"state\\n\" }",
    );
    let mut node = Node::start(10, &service);
    node.run(ms(2_500));
    assert_eq!(node.states(0), [Up; 3]);
    node.trace();
    node.agents
        .insert("10.0.2.11:9777".parse().unwrap(), "drain");
    node.run(ms(2_500));
    let trace = node.trace_of(&["write", "report master"]);
    assert_eq!(
        trace,
        [
            "report master11 Up -> Draining",
            "write backend 2 Draining, maglev 2, service by 2"
        ]
    );
    let reason = &node.controller().backend(0, 1).unwrap().reason;
    assert_eq!(reason, "the agent says: up, drain, 100%");
    assert_eq!(node.backends(), [Up, Draining, Up]);
}

/// All refuse: the service is unusable, so that a SYN gets a reset.
#[test]
fn nothing_left_is_unusable() {
    let mut node = running();
    for name in ["master10", "master11", "master12"] {
        node.moods.insert(name, Mood::Refuses);
    }
    node.run(ms(8_000));
    assert_eq!(node.states(0), [Down; 3]);
    assert!(!node.service().usable());
}

/// All are silent at once: they drain, and go on serving.
#[test]
fn silence_of_all_drains() {
    let mut node = running();
    for name in ["master10", "master11", "master12"] {
        node.moods.insert(name, Mood::Silent);
    }
    node.run(ms(15_000));
    assert_eq!(node.states(0), [Draining; 3]);
    assert!(node.service().usable());
}

/// A restarted controller goes on with the states in the tables, before any check has ended.
#[test]
fn states_are_adopted() {
    let mut node = running();
    node.moods.insert("master11", Mood::Refuses);
    node.run(ms(6_000));
    node.kill();
    let table = node.service().table();
    node.boot();
    assert_eq!(node.states(0), [Up, Down, Up]);
    let view = node.controller().backend(0, 1).unwrap();
    assert_eq!(view.reason, "adopted from the running data plane");
    node.run(ms(3_000));
    assert_eq!(node.service().table(), table);
    assert_eq!(node.states(0), [Up, Down, Up]);
}

/// Adopted DOWN ends with the first check that passes, as a start without tables does.
#[test]
fn adopted_down_ends_at_the_first_pass() {
    let mut node = running();
    node.moods.insert("master11", Mood::Refuses);
    node.run(ms(6_000));
    node.kill();
    node.moods.clear();
    node.boot();
    node.run(ms(300));
    assert_eq!(node.states(0), [Up; 3]);
}

/// Two services on one backend: each one's tables follow its own checks, also over a restart.
#[test]
fn services_on_one_backend_keep_their_own_states() {
    let second = APISERVER
        .replace("10.0.2.100", "10.0.2.101")
        .replace("\"apiserver\"", "\"second\"")
        .replace("\"master11\"", "\"other11\"");
    let mut node = Node::start(10, &format!("{APISERVER}{second}"));
    node.run(ms(2_000));
    node.moods.insert("other11", Mood::Refuses);
    node.run(ms(6_000));
    let states = |node: &Node| (node.states(0), node.states(1));
    let expected = (vec![Up; 3], vec![Up, Down, Up]);
    assert_eq!(states(&node), expected);
    node.kill();
    node.boot();
    assert_eq!(states(&node), expected);
}

/// Once tables were read, a later reading adopts nothing: checks know better.
#[test]
fn adoption_happens_once() {
    let mut node = Node::stopped(fixture::config(10, APISERVER), 10);
    node.moods.insert("master12", Mood::Silent);
    node.failing_writes = 1;
    node.boot();
    assert_eq!(node.states(0), [Down; 3]);
    node.careful = false;
    let id = node.controller().placements()[0].backends[2].id;
    node.run(ms(100));
    if let Some(backend) = node.tables.v4.backends.get_mut(&id) {
        let state = lb_common::abi::Method::Dsr;
        *backend = lb_common::abi::Backend::new([10, 0, 2, 12], 6443, 1, 3, state, Up);
    }
    node.run(ms(700));
    assert_eq!(node.states(0)[2], Down);
}

/// Every node has its own view, and none of it changes who owns the VIP while a backend works.
#[test]
fn views_do_not_move_the_vip() {
    let mut link = Link::start(2, APISERVER);
    link.run(ms(5_000), |_| {});
    for name in ["master10", "master11"] {
        link.nodes[0].moods.insert(name, Mood::Refuses);
    }
    link.run(ms(10_000), |link| assert_eq!(link.owners(0), [10]));
    assert_eq!(link.nodes[0].states(0), [Down, Down, Up]);
    assert_eq!(link.nodes[1].states(0), [Up; 3]);
}

/// The clients of a backend that went DOWN are told after the tables know it: who owns the VIP tells
/// them, who does not forgets what it has of their flows.
#[test]
fn a_death_is_told_by_the_owner() {
    let mut link = Link::start(2, APISERVER);
    link.run(ms(5_000), |_| {});
    for node in &mut link.nodes {
        node.trace();
        node.moods.insert("master12", Mood::Refuses);
    }
    link.run(ms(8_000), |_| {});
    for (node, what) in link.nodes.iter_mut().zip(["tell", "forget"]) {
        let trace = node.trace_of(&["write", "tell", "forget"]);
        let told = format!("{what} flows of 10.0.2.12:6443 in epoch 0");
        assert_eq!(trace[1..], [told], "{trace:?}");
        assert!(trace[0].starts_with("write") && trace[0].contains("backend 3 Down"));
    }
}

/// A backend that comes back and dies again is told of again; a restart in between tells nothing.
#[test]
fn every_death_is_told_once() {
    let mut node = running();
    node.run(ms(5_000));
    for mood in [Mood::Refuses, Mood::Answers, Mood::Refuses] {
        node.moods.insert("master11", mood);
        node.run(ms(6_000));
        node.kill();
        node.boot();
        node.run(ms(20_000)); // it is the owner again
    }
    let told = node.trace_of(&["tell", "forget"]);
    let expected = [0, 1].map(|epoch| format!("tell flows of 10.0.2.11:6443 in epoch {epoch}"));
    assert_eq!(told, expected);
}

/// All backends fall silent, answer badly or too late at once: nobody is reset.
#[test]
fn no_storm_when_all_are_unwell() {
    let mut node = running();
    node.run(ms(5_000));
    for mood in [Mood::Silent, Mood::Unready] {
        for name in ["master10", "master11", "master12"] {
            node.moods.insert(name, mood);
        }
        node.run(ms(60_000));
        assert_eq!(node.states(0), [Draining; 3]);
    }
    assert_eq!(node.trace_of(&["tell", "forget"]), [""; 0]);
}

/// With `on_backend_down = "keep"` a dead backend keeps its flows.
#[test]
fn kept_flows_are_not_told() {
    let keep = APISERVER.replace("port = 1644", "port = 1644\non_backend_down = \"keep\"");
    let mut node = Node::start(10, &keep);
    node.run(ms(5_000));
    node.moods.insert("master11", Mood::Refuses);
    node.run(ms(6_000));
    assert_eq!(node.states(0), [Up, Down, Up]);
    assert_eq!(node.trace_of(&["tell", "forget"]), [""; 0]);
    assert_eq!(node.tables.v4.backends[&2].epoch(), 0);
}

/// A backend that refuses a client is checked at once; if the check passes it is not suspect any
/// more.
#[test]
fn a_refusal_is_checked_at_once() {
    let mut node = running();
    node.run(ms(500));
    node.trace();
    node.input(Input::Refused { backend: 2 });
    node.run(ms(120));
    assert_eq!(node.trace_of(&["clear"]), ["clear suspect 2"]);
    assert_eq!(node.states(0), [Up; 3]);
    // Once is enough.
    node.run(ms(5_000));
    assert_eq!(node.trace_of(&["clear"]), [""; 0]);
}

/// A backend that refuses clients and checks alike goes DOWN faster than by checks alone, and stays
/// suspect.
#[test]
fn a_refusal_that_is_confirmed_takes_down() {
    let mut node = running();
    node.run(ms(500));
    node.trace();
    node.moods.insert("master11", Mood::Refuses);
    node.input(Input::Refused { backend: 2 });
    node.run(ms(2 * 550 + 150));
    assert_eq!(node.states(0), [Up, Down, Up]);
    assert_eq!(node.trace_of(&["clear"]), [""; 0]);
}

/// Refusals of unknown backends are none.
#[test]
fn refusals_of_nobody_are_ignored() {
    let mut node = running();
    node.trace();
    for backend in [0, 4, u32::MAX] {
        node.input(Input::Refused { backend });
    }
    assert_eq!(node.trace(), [""; 0]);
}

//! Orders of the operator about backends, alone and beside what the checks say.

use lb_common::abi::BackendState;

use super::node::{Mood, Node, ms};
use crate::core::{
    controller::Refusal,
    fixture::{self, APISERVER, APISERVER6},
    operator::Order,
    standing::{Mode, Weight},
};

use BackendState::{Down, Draining, Up};

const FOREVER: Order = Order::Drain { deadline: None };

/// master10, all of whose backends are UP.
fn node(services: &str) -> Node {
    let mut node = Node::start(10, services);
    node.run(ms(12_000));
    node.trace();
    node
}

/// Shares of the slots in percent, by backend of the first service.
fn shares(node: &Node) -> Vec<u32> {
    let backends = node.controller().placements()[0].backends.iter();
    backends
        .map(|one| (one.slots * 100 + 8_190) / 16_381)
        .collect()
}

/// A drained backend takes no new flows and keeps its own: no epoch ends, nobody is reset. Its
/// checks go on, and `enable` gives it its share back.
#[test]
fn a_drained_backend_keeps_its_flows() {
    let mut node = node(APISERVER);
    node.order("master11", FOREVER).unwrap();
    assert_eq!(node.backends(), [Up, Draining, Up]);
    assert_eq!(
        (shares(&node), node.states(0)),
        (vec![50, 0, 50], vec![Up; 3])
    );
    let trace = node.trace_of(&["flows", "operator", "save"]);
    assert_eq!(
        trace,
        ["save 1 words", "report operator master11: drains"][..]
            .iter()
            .rev()
            .copied()
            .collect::<Vec<_>>()
    );
    node.run(ms(60_000));
    node.assert_converged();
    assert_eq!(node.trace_of(&["flows", "report"]), [""; 0]);
    node.order("master11", Order::Enable).unwrap();
    assert_eq!((node.backends(), shares(&node)), (vec![Up; 3], vec![33; 3]));
    assert_eq!(node.saved, []);
}

/// A drain with a deadline ends in maintenance: DOWN, with the flows reset, once.
#[test]
fn a_deadline_resets_the_rest() {
    let mut node = node(APISERVER);
    let deadline = Some(ms(300_000));
    node.order("master11", Order::Drain { deadline }).unwrap();
    node.run(ms(299_999));
    assert_eq!(node.backends(), [Up, Draining, Up]);
    assert_eq!(node.trace_of(&["flows"]), [""; 0]);
    node.run(ms(1));
    assert_eq!(node.backends(), [Up, Down, Up]);
    assert_eq!(
        node.trace_of(&["flows"]),
        ["tell flows of 10.0.2.11:6443 in epoch 0"]
    );
    assert_eq!(node.saved[0].word.mode, Mode::Maintenance);
    node.run(ms(60_000));
    assert_eq!(node.trace_of(&["flows"]), [""; 0]);
    node.assert_converged();
}

/// Maintenance is DOWN at once whatever the checks say, and is what it was after a restart.
#[test]
fn maintenance_outlives_the_controller() {
    let mut node = node(APISERVER);
    node.order("master11", Order::Disable).unwrap();
    node.order("master12", Order::Weight(Weight::Percent(50)))
        .unwrap();
    assert_eq!(
        node.trace_of(&["flows"]),
        ["tell flows of 10.0.2.11:6443 in epoch 0"]
    );
    let before = (node.backends(), shares(&node));
    assert_eq!(before, (vec![Up, Down, Up], vec![67, 0, 33]));
    node.kill();
    node.run(ms(1_000));
    node.boot();
    node.run(ms(60_000));
    assert_eq!((node.backends(), shares(&node)), before);
    assert_eq!(node.trace_of(&["flows"]), [""; 0]);
    assert_eq!(node.states(0), [Up; 3]);
    node.order("master11", Order::Enable).unwrap();
    assert_eq!(shares(&node), [40, 40, 20]);
}

/// A lost quorum is reported once, with what becomes of new connections, and so is its end; at the
/// start nothing is lost before it was looked for.
#[test]
fn a_lost_quorum_is_reported() {
    let text = APISERVER.replace("port = 1644", "port = 1644\nmin_healthy = 2");
    let mut node = Node::start(10, &text);
    node.run(ms(12_000));
    assert_eq!(node.trace_of(&["quorum"]), [""; 0]);
    node.order("master11", FOREVER).unwrap();
    assert_eq!(node.trace_of(&["quorum"]), [""; 0]);
    node.order("master12", Order::Disable).unwrap();
    node.run(ms(30_000));
    assert_eq!(
        node.trace_of(&["quorum"]),
        ["report apiserver lost its quorum: UseAll"]
    );
    node.order("master12", Order::Enable).unwrap();
    assert_eq!(
        node.trace_of(&["quorum"]),
        ["report apiserver has its quorum"]
    );
    // Found so at a start.
    let mut node = Node::start(10, &text);
    node.moods.insert("master11", Mood::Refuses);
    node.moods.insert("master12", Mood::Refuses);
    node.run(ms(12_000));
    assert_eq!(
        node.trace_of(&["quorum"]),
        ["report apiserver lost its quorum: UseAll"]
    );
}

/// What an agent wants multiplies the weight that is configured or ordered, and its end is seen at
/// once; 0% drains.
#[test]
fn agents_have_a_say_in_weights() {
    let text = APISERVER.replace(
        "[service.health]",
        "[service.health]\nagent = { port = 9777 }",
    );
    let mut node = node(&text);
    let agent = "10.0.2.11:9777".parse().unwrap();
    for (said, expected) in [
        ("50%", vec![40, 20, 40]),
        ("up", vec![40, 20, 40]),
        ("0%", vec![50, 0, 50]),
        ("200%", vec![25, 50, 25]),
        ("100%", vec![33, 33, 33]),
    ] {
        node.agents.insert(agent, said);
        node.run(ms(5_000));
        node.assert_converged();
        assert_eq!(shares(&node), expected, "{said}");
        let state = if said == "0%" { Draining } else { Up };
        assert_eq!(node.backends(), [Up, state, Up]);
    }
    assert_eq!(node.controller().agent_weight(0, 1), Some(100));
    let half = Order::Weight(Weight::Percent(50));
    node.order("master11", half).unwrap();
    node.agents.insert(agent, "50%");
    node.run(ms(5_000));
    assert_eq!(shares(&node), [44, 11, 44]);
    assert_eq!(node.trace_of(&["flows"]), [""; 0]);
}

/// The group rule neither counts a backend in maintenance among the dead nor among all: with it
/// gone, one silent backend of two is not most of them.
#[test]
fn maintenance_is_no_death() {
    let mut node = node(APISERVER);
    node.order("master11", Order::Disable).unwrap();
    node.moods.insert("master11", Mood::Silent);
    node.run(ms(30_000));
    node.moods.insert("master12", Mood::Silent);
    node.run(ms(30_000));
    assert_eq!(node.states(0), [Up, Down, Down]);
    // Without the order the two silent ones would be held.
    node.moods.remove("master12");
    node.run(ms(30_000));
    node.order("master11", Order::Enable).unwrap();
    node.moods.insert("master12", Mood::Silent);
    node.run(ms(30_000));
    assert_eq!(node.backends(), [Up, Down, Down]);
}

/// The last backend that takes new flows stays, unless the operator insists; it is the pool that
/// counts, not the configuration.
#[test]
fn the_last_one_is_kept() {
    let mut node = node(APISERVER);
    node.order("master10", FOREVER).unwrap();
    node.moods.insert("master12", Mood::Refuses);
    node.run(ms(30_000));
    let zero = Order::Weight(Weight::Absolute(0));
    for order in [FOREVER, Order::Disable, zero] {
        let refusal = node.order("master11", order).unwrap_err();
        assert!(matches!(refusal, Refusal::Last { .. }), "{refusal}");
    }
    assert_eq!(node.saved.len(), 1);
    node.order("master12", Order::Disable).unwrap();
    node.give_order(("master11", None), FOREVER, true).unwrap();
    assert!(!node.service().usable());
    assert_eq!(node.backends(), [Draining, Draining, Down]);
    node.order("master10", Order::Enable).unwrap();
    assert_eq!(shares(&node), [100, 0, 0]);
    node.assert_converged();
}

/// A name is that of the backends of all services, or of one; unknown ones are told what there is.
#[test]
fn names_are_those_of_all_services() {
    let mut node = node(&format!("{APISERVER}{APISERVER6}"));
    let ordered = node.order("master11", FOREVER).unwrap();
    let services: Vec<_> = ordered.iter().map(|one| one.service.as_str()).collect();
    assert_eq!(services, ["apiserver", "apiserver6"]);
    let one = node.give_order(("master11", Some("apiserver")), Order::Enable, false);
    assert_eq!(one.unwrap().len(), 1);
    assert_eq!((node.saved.len(), shares(&node)), (1, vec![33; 3]));
    let refused = |node: &mut Node, name, service| {
        let result = node.give_order((name, service), FOREVER, false);
        result.unwrap_err().to_string()
    };
    assert_eq!(
        refused(&mut node, "m", None),
        "no backend is named \"m\" (there are: master10, master11, master12)"
    );
    assert_eq!(
        refused(&mut node, "master12", Some("apiserver6")),
        "no backend of service \"apiserver6\" is named \"master12\" (there are: master10, master11)"
    );
    assert_eq!(
        refused(&mut node, "master12", Some("web")),
        "no service is named \"web\" (there are: apiserver, apiserver6)"
    );
}

/// A reload keeps what was said of backends that stay, and forgets the others aloud.
#[test]
fn a_reload_keeps_the_words() {
    let mut node = node(APISERVER);
    node.order("master11", Order::Disable).unwrap();
    node.order("master12", FOREVER).unwrap();
    let gone = "[[service.backend]]\nname = \"master12\"\naddress = \"10.0.2.12:6443\"\n";
    let text = fixture::text(
        10,
        &APISERVER.replace(gone, "").replace("master11", "renamed"),
    );
    let text = text.replace(
        "name = \"renamed\"\naddresses",
        "name = \"master11\"\naddresses",
    );
    node.trace();
    node.reload(fixture::parse(&text)).unwrap();
    let trace = node.trace_of(&["report operator", "save"]);
    assert_eq!(trace.len(), 2, "{trace:?}");
    assert!(
        trace[0].contains("10.0.2.12:6443: no longer configured"),
        "{trace:?}"
    );
    node.run(ms(5_000));
    assert_eq!((shares(&node), node.saved.len()), (vec![100, 0], 1));
}

/// A backend that was dead comes back in ten steps, one that starts with the controller or was
/// only drained at once; steps change nothing but the table.
#[test]
fn the_dead_come_back_slowly() {
    let slow = APISERVER.replace("port = 1644", "port = 1644\nslow_start = \"60s\"");
    let mut node = node(&slow);
    assert_eq!(shares(&node), [33; 3]);
    node.order("master11", FOREVER).unwrap();
    node.order("master11", Order::Enable).unwrap();
    assert_eq!(shares(&node), [33; 3]);
    node.moods.insert("master12", Mood::Refuses);
    node.run(ms(30_000));
    assert_eq!(shares(&node), [50, 50, 0]);
    node.moods.clear();
    let mut seen = vec![0];
    for _ in 0..100 {
        node.run(ms(1_000));
        let share = shares(&node)[2];
        if seen.last() != Some(&share) {
            seen.push(share);
            node.assert_converged();
        }
    }
    assert_eq!(seen, [0, 5, 9, 13, 17, 20, 23, 26, 29, 31, 33]);
    // The same after maintenance.
    node.order("master12", Order::Disable).unwrap();
    node.run(ms(5_000));
    node.order("master12", Order::Enable).unwrap();
    assert_eq!(shares(&node), [48, 48, 5]);
    node.run(ms(60_000));
    assert_eq!(shares(&node), [33; 3]);
}

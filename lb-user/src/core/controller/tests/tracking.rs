//! What nodes track, and how that moves the VIP.

use super::node::{Link, Mood, Node, ms};
use crate::core::{
    controller::Input,
    fixture::{self, APISERVER},
    operator::Order,
    tracking::{Condition, Effect, Observation},
    vrrp::State,
};

/// Two nodes with `keys` in their first instance, and a file that they track.
fn link(keys: &str) -> Link {
    let config = |host| {
        let tracked = "[[track]]\nname = \"disk\"\ntype = \"file\"\nfile = \"/run/disk\"\n\
                       [[track]]\nname = \"own\"\ntype = \"local_backend\"\nservice = \"apiserver\"\n";
        let text = fixture::text(host, &format!("{APISERVER}{tracked}"));
        fixture::parse(&text.replacen("vrid = 51", &format!("vrid = 51\n{keys}"), 1))
    };
    let mut link = Link::start(2, APISERVER);
    for (node, host) in link.nodes.iter_mut().zip([10, 11]) {
        node.looks.insert(0, found(Condition::Number(0)));
        node.reload(config(host)).unwrap();
    }
    link.run(ms(5_000), |_| {});
    assert_eq!(link.owners(0), [10]);
    link
}

fn found(condition: Condition) -> Observation {
    let seen = "as the test says".to_owned();
    Observation { condition, seen }
}

fn priority(node: &Node) -> u8 {
    node.controller().vrrp(0).unwrap().0.priority()
}

/// A number in a file lowers the priority: the other node takes over when the difference is large
/// enough, and gives the VIP back when it is not any more. There is never more than one owner.
#[test]
fn a_file_moves_the_vip() {
    let mut link = link("track = [{ name = \"disk\", weight = 2 }]");
    for (number, owner, effective) in [(-20, 10, 160), (-30, 11, 140), (-10, 10, 180)] {
        link.nodes[0]
            .looks
            .insert(0, found(Condition::Number(number)));
        link.run(ms(8_000), |link| assert!(link.owners(0).len() <= 1));
        assert_eq!(link.owners(0), [owner], "{number}");
        assert_eq!(priority(&link.nodes[0]), effective);
    }
    let tracked = link.nodes[0].controller().tracked(0);
    let disk = tracked.iter().find(|view| view.name == "disk").unwrap();
    assert_eq!(disk.effect, Effect::Adds(-20));
    assert_eq!(disk.seen, "as the test says");
}

/// A fault resigns at once: the other node need not wait for a down interval.
#[test]
fn a_fault_hands_over_at_once() {
    let mut link = link("track = [\"disk\"]");
    link.nodes[0].looks.insert(0, found(Condition::Number(1)));
    // A look at most a second later, and the skew of the other.
    link.run(ms(2_000), |link| assert!(link.owners(0).len() <= 1));
    assert_eq!(link.owners(0), [11]);
    let instance = |link: &Link| {
        let (instance, _) = link.nodes[0].controller().vrrp(0).unwrap();
        (instance.state(), instance.is_faulty())
    };
    assert_eq!(instance(&link), (State::Initialize, true));
    link.nodes[0].looks.insert(0, found(Condition::Number(0)));
    link.run(ms(8_000), |link| assert!(link.owners(0).len() <= 1));
    assert_eq!(link.owners(0), [10]);
    assert_eq!(instance(&link), (State::Active, false));
}

/// The backend of this node counts where it is tracked, as a check script of keepalived does.
#[test]
fn the_local_backend_moves_the_vip() {
    let mut link = link("track = [{ name = \"own\", weight = -60 }]");
    for node in &mut link.nodes {
        node.moods.insert("master10", Mood::Refuses);
    }
    link.run(ms(12_000), |link| assert!(link.owners(0).len() <= 1));
    assert_eq!(link.owners(0), [11]);
    assert_eq!(priority(&link.nodes[0]), 140);
    assert_eq!(priority(&link.nodes[1]), 150);
    for node in &mut link.nodes {
        node.moods.insert("master10", Mood::Answers);
    }
    link.run(ms(12_000), |link| assert!(link.owners(0).len() <= 1));
    assert_eq!(link.owners(0), [10]);
}

/// Maintenance of the own backend counts as its death, and so does its removal; a drain does not, since a
/// move would end the connections that it is for.
#[test]
fn maintenance_moves_the_vip_and_a_drain_does_not() {
    let mut link = link("track = [{ name = \"own\", weight = -60 }]");
    let forever = Order::Drain { deadline: None };
    link.nodes[0].order("master10", forever).unwrap();
    link.run(ms(5_000), |link| assert_eq!(link.owners(0), [10]));
    link.nodes[0].order("master10", Order::Disable).unwrap();
    assert_eq!(priority(&link.nodes[0]), 140);
    link.run(ms(5_000), |link| assert!(link.owners(0).len() <= 1));
    assert_eq!(link.owners(0), [11]);
    let tracked = link.nodes[0].controller().tracked(0);
    let own = tracked.iter().find(|view| view.name == "own").unwrap();
    assert!(own.seen.ends_with("or out of service"), "{}", own.seen);
    link.nodes[0].order("master10", Order::Enable).unwrap();
    link.run(ms(8_000), |link| assert!(link.owners(0).len() <= 1));
    assert_eq!(link.owners(0), [10]);

    link.nodes[0].remove("master10", ms(20_000)).unwrap();
    link.run(ms(19_000), |link| assert_eq!(link.owners(0), [10]));
    link.run(ms(6_000), |link| assert!(link.owners(0).len() <= 1));
    assert_eq!((link.owners(0), priority(&link.nodes[0])), (vec![11], 140));
    link.nodes[0].add("master10", None).unwrap();
    link.run(ms(8_000), |link| assert!(link.owners(0).len() <= 1));
    assert_eq!(link.owners(0), [10]);
}

/// Who sees no backend that works gives the VIP to a node that does, and stays where nobody does.
#[test]
fn the_blind_node_gives_the_vip_away() {
    let mut link = Link::start(2, APISERVER);
    link.run(ms(5_000), |_| {});
    let names = ["master10", "master11", "master12"];
    for name in names {
        link.nodes[0].moods.insert(name, Mood::Refuses);
    }
    link.run(ms(10_000), |link| assert!(link.owners(0).len() <= 1));
    assert_eq!((link.owners(0), priority(&link.nodes[0])), (vec![11], 1));
    for name in names {
        link.nodes[1].moods.insert(name, Mood::Refuses);
    }
    link.run(ms(20_000), |_| {});
    assert_eq!(link.owners(0), [11], "nobody is better");
    assert_eq!(priority(&link.nodes[1]), 1);
    for node in &mut link.nodes {
        node.moods.clear();
    }
    link.run(ms(20_000), |link| assert!(link.owners(0).len() <= 1));
    assert_eq!(link.owners(0), [10]);
}

/// Nodes that start together elect the one with the highest priority although nothing was checked yet.
#[test]
fn a_start_of_all_elects_the_best() {
    let mut link = Link::start(2, APISERVER);
    link.run(ms(3_300), |link| assert_ne!(link.owners(0), [11]));
    assert_eq!(link.owners(0), [10]);
}

/// Without a carrier the node is at fault, though its own timers run; with one it begins anew.
#[test]
fn an_uplink_without_carrier_is_a_fault() {
    let mut link = Link::start(2, APISERVER);
    link.run(ms(5_000), |_| {});
    link.nodes[0].set_carrier(false);
    link.run(ms(500), |_| {});
    assert!(!link.nodes[0].owns(0) && !link.nodes[0].owns(1));
    link.nodes[0].set_carrier(true);
    link.run(ms(10_000), |link| assert!(link.owners(0).len() <= 1));
    assert_eq!(link.owners(0), [10]);
}

/// `track_defaults = false`: neither the carrier nor the backends count.
#[test]
fn defaults_can_be_left_out() {
    let mut link = link("track_defaults = false");
    link.nodes[0].set_carrier(false);
    for name in ["master10", "master11", "master12"] {
        link.nodes[0].moods.insert(name, Mood::Refuses);
    }
    link.run(ms(10_000), |link| assert_eq!(link.owners(0), [10]));
    assert_eq!(priority(&link.nodes[0]), 200);
}

/// What is known of a thing survives a reload, and a look under way at that time does not come back to
/// life.
#[test]
fn looks_survive_a_reload() {
    let mut link = link("track = [\"disk\"]");
    let node = &mut link.nodes[0];
    let stale = Input::Looked {
        track: 0,
        serial: 1,
        observation: found(Condition::Failed),
    };
    let mut config = node.controller().config().clone();
    config.vrrp[0].advert_interval = fixture::config(10, APISERVER).vrrp[0].advert_interval;
    config.vrrp[0].track_defaults = false;
    node.reload(config).unwrap();
    node.input(stale);
    assert!(node.owns(0));
    let tracked = node.controller().tracked(0);
    assert_eq!(tracked[0].condition, Condition::Number(0));
}

//! Changes of the network, one or many.

use lb_common::abi::UplinkKey;

use super::node::{Node, ms};
use crate::core::{
    controller::Input,
    fixture::{APISERVER, ETH0, LO},
};

fn running() -> Node {
    let mut node = Node::start(10, APISERVER);
    node.run(ms(2_000));
    node.trace();
    node
}

/// A storm of changes costs ten readings a second, not one each.
#[test]
fn storms_are_read_ten_times_a_second() {
    let mut node = running();
    for _ in 0..1_000 {
        node.input(Input::NetworkChanged);
        node.run(ms(1));
    }
    let readings = node.trace_of(&["read links"]);
    assert!((10..=11).contains(&readings.len()), "{}", readings.len());
}

/// After a storm the last state is what was read.
#[test]
fn the_last_change_is_read() {
    let mut node = running();
    for _ in 0..20 {
        node.delete_address(LO, super::node::net("10.0.2.100/32"));
        node.run(ms(7));
    }
    node.run(ms(200));
    assert_eq!(node.vips_of(LO), ["10.0.2.100/32"]);
}

/// A neighbour that nobody asked for changes nothing.
#[test]
fn strangers_do_not_matter() {
    let mut node = running();
    node.input(Input::Neighbour {
        ifindex: ETH0,
        address: crate::core::fixture::ip("10.0.2.77"),
        mac: [2, 0, 0, 0, 0, 77],
    });
    assert_eq!(node.trace(), [""; 0]);
}

/// Without a route to a backend it has no way; with one it has again.
#[test]
fn routes_come_and_go() {
    let mut node = running();
    let address = crate::core::fixture::ip("10.0.2.12");
    let way = |node: &Node| node.tables.v4.backends[&3].ifindex();
    assert_eq!(way(&node), ETH0);
    node.input(Input::Hop { address, hop: None });
    assert_eq!(way(&node), 0);
    node.input(Input::NetworkChanged);
    node.run(ms(200));
    assert_eq!(way(&node), ETH0);
}

/// An uplink without carrier and addresses: what it carried is gone, and comes back with it.
#[test]
fn an_unplugged_node_recovers() {
    let mut node = running();
    node.unplug();
    node.run(ms(10_000));
    node.assert_converged();
    assert_eq!(node.vips_of(LO), [""; 0], "no backend is here any more");
    node.plug(ETH0);
    node.run(ms(10_000));
    node.assert_converged();
    assert_eq!(node.vips_of(LO), ["10.0.2.100/32"]);
}

/// An uplink that is gone is detached from, and waited for; when it is back, as another interface,
/// the programs, the tables and the sockets are there before anything is announced.
#[test]
fn programs_and_sockets_follow_the_uplink() {
    let mut node = running();
    node.unplug();
    node.run(ms(200));
    let words = ["attach", "listen", "missing"];
    assert_eq!(
        node.trace_of(&words),
        [
            "report missing eth0",
            "attach ",
            "listen 1 on None",
            "listen 2 on None"
        ]
    );
    node.plug(9);
    node.run(ms(200));
    assert_eq!(
        node.trace_of(&words),
        [
            "attach eth0 (9)",
            "listen 1 on Some(9)",
            "listen 2 on Some(9)"
        ]
    );
    node.run(ms(10_000));
    node.assert_converged();
    let keys: Vec<_> = node.tables.uplinks.keys().map(UplinkKey::ifindex).collect();
    assert_eq!(keys, [9]);
}

/// The configured name decides: an interface that loses it is detached from, the one that has it
/// now is attached to.
#[test]
fn a_renamed_interface_gives_its_role_away() {
    let mut node = running();
    for interface in &mut node.interfaces {
        if interface.name == "eth0" {
            interface.name = "old".to_owned();
        }
    }
    let mut new = crate::core::fixture::interfaces(10).pop().unwrap();
    new.ifindex = 9;
    node.interfaces.push(new);
    node.input(Input::NetworkChanged);
    node.run(ms(200));
    assert_eq!(
        node.trace_of(&["attach", "listen"]),
        [
            "attach eth0 (9)",
            "listen 1 on Some(9)",
            "listen 2 on Some(9)"
        ]
    );
}

/// What is attached is looked at every few seconds, also when nothing seems to have changed.
#[test]
fn attachments_are_audited() {
    let mut node = running();
    node.run(ms(15_000));
    let looks = node.trace_of(&["attach"]);
    assert_eq!(looks, ["attach eth0 (2)"; 3]);
}

/// Inputs for positions that do not exist change nothing.
#[test]
fn unknown_positions_are_ignored() {
    let mut node = running();
    for input in [
        Input::AdvertSent {
            instance: 9,
            at: node.now,
        },
        Input::AdvertFailed { instance: 9 },
        Input::StepDown { instance: 9 },
        Input::Resume { instance: 9 },
    ] {
        node.input(input);
    }
    assert_eq!(node.trace(), [""; 0]);
}

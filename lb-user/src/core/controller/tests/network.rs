//! Changes of the network, one or many.

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

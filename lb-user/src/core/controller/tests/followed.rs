//! VIPs that somebody follows packets to: marked while the trace lasts, through repairs, and not
//! by a controller that starts.

use std::{collections::BTreeSet, net::IpAddr};

use super::node::{Node, ms};
use crate::core::{controller::Input, fixture::APISERVER};

fn running() -> Node {
    let mut node = Node::start(10, APISERVER);
    node.run(ms(2_000));
    node.trace();
    node
}

/// VIPs that are marked.
fn marked(node: &Node) -> Vec<IpAddr> {
    let tables = &node.tables;
    let v4 = tables.v4.vips.iter().filter(|(_, vip)| vip.is_traced());
    let v6 = tables.v6.vips.iter().filter(|(_, vip)| vip.is_traced());
    let v4 = v4.map(|(address, _)| IpAddr::from(*address));
    v4.chain(v6.map(|(address, _)| IpAddr::from(*address)))
        .collect()
}

/// The node's VIPs, IPv4 first.
fn vips(node: &Node) -> Vec<IpAddr> {
    let (v4, v6) = (&node.tables.v4.vips, &node.tables.v6.vips);
    let v4 = v4.keys().map(|address| IpAddr::from(*address));
    v4.chain(v6.keys().map(|address| IpAddr::from(*address)))
        .collect()
}

fn begin(node: &mut Node, serial: u64, vips: &[IpAddr]) {
    let vips = vips.iter().copied().collect::<BTreeSet<_>>();
    node.input(Input::Trace { serial, vips });
}

/// A mark is written at once and taken away at once; an audit leaves it alone, and brings it back
/// when somebody else took it away.
#[test]
fn marks_last_as_long_as_the_trace() {
    let mut node = running();
    let all = vips(&node);
    assert_eq!(all.len(), 2);
    begin(&mut node, 1, &all[1..]);
    assert_eq!(marked(&node), all[1..]);
    node.run(ms(12_000));
    assert_eq!(marked(&node), all[1..]);
    assert_eq!(node.trace_of(&["repaired"]), [""; 0]);
    for vip in node.tables.v6.vips.values_mut() {
        *vip = vip.traced(false);
    }
    node.run(ms(6_000));
    assert_eq!(marked(&node), all[1..]);
    node.input(Input::TraceEnded { serial: 1 });
    assert_eq!(marked(&node), [] as [IpAddr; 0]);
    node.assert_converged();
}

/// The end of a trace that another one has replaced takes nothing away; a VIP that is not there is
/// nothing.
#[test]
fn a_late_end_ends_nothing() {
    let mut node = running();
    let all = vips(&node);
    begin(&mut node, 1, &all);
    begin(&mut node, 2, &[all[0], "192.0.2.99".parse().unwrap()]);
    node.input(Input::TraceEnded { serial: 1 });
    assert_eq!(marked(&node), all[..1]);
    node.input(Input::TraceEnded { serial: 2 });
    assert_eq!(marked(&node), [] as [IpAddr; 0]);
}

/// A controller that stops takes its marks away; one that was killed leaves them, and the next one
/// takes them away.
#[test]
fn no_mark_outlives_its_controller_for_long() {
    let mut node = running();
    let all = vips(&node);
    begin(&mut node, 1, &all);
    node.kill();
    assert_eq!(marked(&node), all);
    node.boot();
    node.run(ms(2_000));
    assert_eq!(marked(&node), [] as [IpAddr; 0]);
    begin(&mut node, 2, &all);
    node.input(Input::Stop);
    assert_eq!(marked(&node), [] as [IpAddr; 0]);
}

//! Who owns the VIPs, and what that does to a node's addresses.

use lb_common::abi::UplinkKey;

use super::node::{Link, Node, ms, net};
use crate::core::{
    controller::Input,
    fixture::{self, APISERVER, ETH0, LO},
    vrrp::State,
};

const OWNERSHIP: &[&str] = &["advert", "lease", "100/24", "announce", "v4 "];

/// One instance, so that traces stay short.
fn one_instance(host: u8, services: &str) -> crate::config::model::Config {
    let mut config = fixture::config(host, services);
    config.vrrp.truncate(1);
    config
}

fn alone() -> Node {
    Node::start_with(one_instance(10, APISERVER), 10)
}

/// A node that has just become owner, its trace emptied.
fn owner() -> Node {
    let mut node = alone();
    node.run(ms(3_500));
    assert!(node.owns(0));
    node.trace();
    node
}

/// Becoming Active: first the advert, then the lease, then the address, then the announcement;
/// so there is no moment at which the address is answered for without the right to.
#[test]
fn takeover_in_its_order() {
    let mut node = alone();
    node.run(ms(3_300));
    // Three intervals and a skew of 56/256 s after the start.
    let taken: Vec<_> = node
        .trace()
        .into_iter()
        .filter(|l| l.starts_with("3218"))
        .collect();
    assert_eq!(
        taken,
        [
            "3218 advert 1 priority 200",
            "3218 report v4 Backup -> Active",
            "3218 lease 1 for 3000",
            "3218 set 10.0.2.100/24 on 2",
            "3218 announce 10.0.2.100 on 2",
            "3218 read links",
        ]
    );
}

/// A takeover that nobody hears of is none: no lease, no address.
#[test]
fn without_an_advert_there_are_no_addresses() {
    let mut node = alone();
    node.adverts_fail = true;
    node.run(ms(20_000));
    let trace = node.trace_of(&["lease", "set 10.0.2.100/24", "announce"]);
    assert_eq!(trace, [""; 0]);
    node.adverts_fail = false;
    node.run(ms(4_000));
    assert!(node.owns(0));
}

/// While adverts fail the lease runs out, and with it goes the address.
#[test]
fn an_owner_that_cannot_advertise_gives_up() {
    let mut node = owner();
    node.adverts_fail = true;
    node.run(ms(4_000));
    assert!(!node.owns(0));
    let trace = node.trace_of(&["lease", "remove", "Active"]);
    assert_eq!(
        trace,
        [
            "lease 1 ends",
            "remove 10.0.2.100/24 from 2",
            "report v4 Active -> Backup"
        ]
    );
}

/// A higher priority is heard: the lease ends first, then the address goes.
#[test]
fn becoming_backup_removes_the_addresses() {
    let mut link = Link::start(2, APISERVER);
    link.nodes[0].kill();
    link.run(ms(5_000), |_| {});
    assert_eq!(link.owners(0), [11]);
    link.nodes[1].trace();
    link.nodes[0].boot();
    link.run(ms(5_000), |link| assert!(link.owners(0).len() <= 1));
    assert_eq!(link.owners(0), [10]);
    let trace = link.nodes[1].trace_of(&["lease 1 ends", "100/24", "v4"]);
    let end = trace
        .iter()
        .position(|line| line == "lease 1 ends")
        .unwrap();
    assert_eq!(
        trace[end..],
        [
            "lease 1 ends",
            "remove 10.0.2.100/24 from 2",
            "report v4 Active -> Backup"
        ]
    );
}

/// An address is renewed every second while it is owned, and the kernel never takes it away.
#[test]
fn renewals_every_second() {
    let mut node = owner();
    node.run(ms(10_000));
    let renewals = node.trace_of(&["set 10.0.2.100/24", "remove", "repaired"]);
    assert_eq!(renewals, ["set 10.0.2.100/24 on 2"; 10]);
}

/// A renewal that the kernel announces is no reason to read everything again.
#[test]
fn renewals_cause_no_reading() {
    let mut node = owner();
    node.run(ms(600)); // the readings that the takeover itself causes
    node.trace();
    node.run(ms(10_000));
    let readings = node.trace_of(&["read links"]);
    assert_eq!(readings.len(), 2, "the audits");
}

/// A controller that is dead loses the address within its lifetime, by the kernel alone.
#[test]
fn addresses_of_the_dead_expire() {
    let mut node = owner();
    node.kill();
    node.run(ms(3_000));
    assert_eq!(node.vips_of(ETH0), [""; 0]);
    assert_eq!(node.vips_of(LO), ["10.0.2.100/32"], "serves others' flows");
}

/// What a crashed controller left on the uplink is removed at start; `lo` keeps its own.
#[test]
fn stale_vips_are_removed_at_start() {
    let mut node = owner();
    node.kill();
    node.run(ms(500));
    assert_eq!(node.vips_of(ETH0), ["10.0.2.100/24"]);
    node.boot();
    assert_eq!(node.vips_of(ETH0), [""; 0]);
    assert_eq!(node.vips_of(LO), ["10.0.2.100/32"]);
}

/// A managed VIP that another program left is removed whatever its prefix and interface; what is
/// no VIP is left alone, and so is a VIP that no instance moves.
#[test]
fn only_managed_vips_are_removed() {
    let unmanaged = APISERVER
        .replace("10.0.2.100", "10.0.2.101")
        .replace("\"apiserver\"", "\"static\"");
    let config = one_instance(13, &format!("{APISERVER}{unmanaged}"));
    let mut node = Node::stopped(config, 13);
    node.add_address(ETH0, net("10.0.2.100/32"), false);
    node.add_address(LO, net("10.0.2.100/24"), false);
    node.add_address(ETH0, net("10.0.2.101/24"), false);
    node.add_address(ETH0, net("10.0.9.1/24"), false);
    node.add_address(ETH0, net("10.0.9.2/24"), true);
    node.boot();
    let own: Vec<_> = node.addresses_of(ETH0);
    assert_eq!(
        own,
        [
            "10.0.2.13/24",
            "10.0.2.101/24",
            "10.0.9.1/24",
            "fd00::13/64"
        ]
    );
    assert_eq!(node.addresses_of(LO), ["127.0.0.1/8"]);
}

/// An owner whose address was added with another prefix gets its own.
#[test]
fn another_prefix_is_mended() {
    let mut node = owner();
    node.add_address(ETH0, net("10.0.2.100/32"), false);
    node.run(ms(200));
    assert_eq!(node.vips_of(ETH0), ["10.0.2.100/24"]);
}

/// Somebody deletes an owned address: it is back at once, and that is said once.
#[test]
fn deleted_addresses_come_back() {
    let mut node = owner();
    node.run(ms(600));
    node.trace();
    node.delete_address(ETH0, net("10.0.2.100/24"));
    node.delete_address(LO, net("10.0.2.100/32"));
    node.run(ms(100));
    assert!(node.owns(0));
    assert_eq!(node.vips_of(LO), ["10.0.2.100/32"]);
    node.run(ms(10_000));
    let said = node.trace_of(&["repaired"]);
    assert_eq!(
        said,
        [
            "report repaired address 10.0.2.100/32 of lo, which was gone",
            "report repaired address 10.0.2.100/24 of eth0, which was gone",
        ]
    );
}

/// Somebody adds the node's own address again, so that it stands behind the VIP: the VIP is put behind
/// it, once, and that is said.
#[test]
fn the_nodes_own_address_stands_first() {
    let mut node = owner();
    node.run(ms(600));
    node.trace();
    let own = net("10.0.2.11/24");
    node.delete_address(ETH0, own);
    node.add_last(ETH0, own);
    node.run(ms(5_000));
    assert!(node.owns(0));
    assert_eq!(node.vips_of(ETH0), ["10.0.2.100/24"]);
    let order = "the order of addresses on eth0 (10.0.2.100/24 stood before 10.0.2.11/24)";
    assert_eq!(
        node.trace_of(&["repaired", "remove"]),
        [
            "remove 10.0.2.100/24 from 2".to_owned(),
            format!("report repaired {order}"),
        ]
    );
}

/// The last reading is older than the address: giving up removes it all the same.
#[test]
fn unseen_addresses_are_removed_too() {
    let mut node = alone();
    node.delay_readings();
    node.run(ms(3_300));
    assert!(node.owns(0));
    let known = node.controller().network();
    assert!(!known.knows_address(ETH0, net("10.0.2.100/24")));
    node.input(Input::StepDown { instance: 0 });
    assert_eq!(node.vips_of(ETH0), [""; 0]);
}

/// A reading that was made before an address was added, and answered after, changes nothing.
#[test]
fn old_readings_do_not_flap() {
    let mut node = alone();
    node.run(ms(3_100));
    node.delay_readings();
    node.input(Input::NetworkChanged);
    node.run(ms(200));
    assert!(node.owns(0));
    node.trace();
    node.deliver_readings();
    assert!(node.owns(0));
    // The same backwards: an answer with the address, after it was given up.
    node.run(ms(300));
    node.delay_readings();
    node.input(Input::NetworkChanged);
    node.input(Input::StepDown { instance: 0 });
    node.deliver_readings();
    let trace = node.trace_of(&["100/24", "repaired"]);
    assert_eq!(trace, ["remove 10.0.2.100/24 from 2"]);
    assert_eq!(node.vips_of(ETH0), [""; 0]);
}

/// Who wakes up after the end of the lease renews nothing, but gives up.
#[test]
fn a_lapsed_owner_renews_nothing() {
    let mut node = owner();
    node.frozen = true;
    node.run(ms(3_600)); // longer than lease and address
    assert_eq!(node.vips_of(ETH0), [""; 0]);
    node.frozen = false;
    node.trace();
    node.run(ms(100));
    let trace = node.trace_of(OWNERSHIP);
    assert_eq!(
        trace,
        [
            "lease 1 ends",
            "remove 10.0.2.100/24 from 2",
            "report v4 late: 1",
            "report v4 Active -> Backup"
        ]
    );
}

/// The same where the first thing that it notices is that the address is gone.
#[test]
fn a_lapsed_owner_repairs_nothing() {
    let mut node = owner();
    node.delay_readings();
    node.input(Input::NetworkChanged);
    node.frozen = true;
    node.run(ms(3_600));
    node.frozen = false;
    node.trace();
    node.deliver_readings();
    assert_eq!(node.trace_of(&["set 10.0.2.100/24", "announce"]), [""; 0]);
}

/// Stop: the right ends, the others hear of it, the addresses go; `lo` keeps its VIP, since the
/// data plane goes on.
#[test]
fn stop_resigns_in_order() {
    let mut node = owner();
    node.input(Input::Stop);
    assert!(node.controller().is_stopping());
    assert_eq!(
        node.trace_of(OWNERSHIP),
        [
            "lease 1 ends",
            "advert 1 priority 0",
            "remove 10.0.2.100/24 from 2",
            "report v4 Active -> Initialize",
        ]
    );
    assert_eq!(node.vips_of(LO), ["10.0.2.100/32"]);
}

/// The operator steps down, nothing brings the owner back, and resume does.
#[test]
fn step_down_holds_until_resume() {
    let mut link = Link::start(2, APISERVER);
    link.run(ms(5_000), |_| {});
    assert_eq!(link.owners(0), [10]);
    link.nodes[0].input(Input::StepDown { instance: 0 });
    link.run(ms(1_000), |_| {});
    assert_eq!((link.owners(0), link.owners(1)), (vec![11], vec![10]));
    link.nodes[1].kill();
    link.run(ms(20_000), |_| {});
    assert_eq!(link.owners(0), [0; 0], "held");
    link.nodes[0].input(Input::Resume { instance: 0 });
    link.run(ms(4_000), |_| {});
    assert_eq!(link.owners(0), [10]);
}

/// The uplink vanishes, and the node is at fault; it comes back as another interface: the address is
/// added there, and the neighbours are told.
#[test]
fn the_uplink_returns_as_another_interface() {
    let mut node = owner();
    node.unplug();
    node.run(ms(300));
    assert!(node.tables.uplinks.is_empty());
    assert!(!node.owns(0));
    node.trace();
    node.plug(7);
    node.run(ms(3_700));
    assert!(node.owns(0));
    let trace = node.trace_of(&["on 7", "remove", "repaired"]);
    assert_eq!(
        trace[..2],
        ["set 10.0.2.100/24 on 7", "announce 10.0.2.100 on 7"]
    );
    node.run(ms(2_000));
    assert!(node.tables.uplinks.contains_key(&UplinkKey::new(7, 0)));
    node.assert_converged();
}

/// The owner of the address (priority 255) is Active before it has read anything: the address
/// and the announcement come with the first reading.
#[test]
fn the_address_owner_starts_at_once() {
    let mut config = one_instance(10, APISERVER);
    config.vrrp[0].priority = 255.try_into().unwrap();
    let mut node = Node::stopped(config, 10);
    node.boot();
    assert!(node.owns(0));
    let trace = node.trace_of(OWNERSHIP);
    assert_eq!(
        trace,
        [
            "advert 1 priority 255",
            "report v4 Initialize -> Active",
            "lease 1 for 3000",
            "set 10.0.2.100/24 on 2",
            "announce 10.0.2.100 on 2",
        ]
    );
}

/// An owned IPv6 address has no prefix, is found again as such, and goes as such.
#[test]
fn ipv6_addresses_come_and_go_whole() {
    let mut node = Node::start(10, APISERVER);
    node.run(ms(10_000));
    assert!(node.owns(1));
    assert_eq!(node.vips_of(ETH0), ["10.0.2.100/24", "fd00::100/128"]);
    assert_eq!(node.trace_of(&["remove", "repaired"]), [""; 0]);
    node.input(Input::StepDown { instance: 1 });
    assert_eq!(node.vips_of(ETH0), ["10.0.2.100/24"]);
}

/// Two controllers: one owner from the first takeover on, and one state each.
#[test]
fn two_controllers_have_one_owner() {
    let mut link = Link::start(2, APISERVER);
    let mut owned = false;
    link.run(ms(60_000), |link| {
        for position in [0, 1] {
            assert!(link.owners(position).len() <= 1);
        }
        let owner = link.owners(0).len() == 1;
        assert!(owner || !owned, "nobody owns it any more");
        owned = owner;
    });
    assert_eq!((link.owners(0), link.owners(1)), (vec![10], vec![10]));
    let state = |node: &Node| node.controller().vrrp(0).unwrap().0.state();
    let states: Vec<_> = link.nodes.iter().map(state).collect();
    assert_eq!(states, [State::Active, State::Backup]);
    for node in &link.nodes {
        node.assert_converged();
    }
}

//! Virtual MACs: neighbours find the VIPs at the groups' MACs, whoever owns them.

use std::{net::IpAddr, time::Duration};

use lb_common::abi::{Mac, virtual_mac};
use lb_tests::{
    cluster::{Cluster, PATIENCE},
    control_plane::{BOTH, be_patient},
    netns::NetNs,
    process::output,
    skip_unless_root,
    steady::{Steady, failures},
    watch::Watches,
    who_has::who_has,
};
use lb_user::{admin::model::VrrpState, core::frame::mac_text};

/// What the lab's groups have: VRID 51 for IPv4, 52 for IPv6.
fn vmac(vip: IpAddr) -> Mac {
    virtual_mac(51 + u8::from(vip.is_ipv6()), vip.is_ipv6())
}

/// What `bridge fdb show` says of a MAC.
fn fdb(namespace: &NetNs, mac: Mac) -> Vec<String> {
    let shown = output(namespace.command("bridge").args(["fdb", "show"])).unwrap();
    let lines = shown
        .lines()
        .filter(|line| line.starts_with(&mac_text(mac)));
    lines.map(str::to_owned).collect()
}

/// The owner alone answers, with the virtual MACs, and the switch knows where they are.
fn claimed_by(cluster: &Cluster, owner: &str) {
    for vip in BOTH {
        let answered = who_has(cluster.client(), vip, vmac(vip), 3, PATIENCE).unwrap();
        assert_eq!(answered, [vmac(vip)].into(), "{vip}");
        // By its adverts: nothing else is sent from it without being asked.
        let port = format!("dev {owner} master br0");
        let what = format!("the switch to send {vip} to {owner}");
        let found = cluster.wait(&what, || {
            let lines = fdb(cluster.net().bridge(), vmac(vip));
            Ok(lines.iter().any(|line| line.contains(&port)).then_some(()))
        });
        found.unwrap();
    }
}

fn a_takeover_changes_nothing_for_the_neighbours(attach: &str) {
    let mut cluster = Cluster::builder()
        .masters(2)
        .stand_in(&["--listen", "[::]:6443"])
        .start(|plane| {
            be_patient(plane);
            plane.health = plane.health.replace("http", "https");
            plane.vips = BOTH.into();
            plane.vrrp = "use_vmac = true".into();
            plane.node = format!("attach = \"{attach}\"");
        })
        .unwrap();
    claimed_by(&cluster, "m1");
    let clients: Vec<_> = BOTH
        .into_iter()
        .map(|vip| {
            let (client, load) = (cluster.client(), cluster.load(vip));
            let pace = Duration::from_millis(20);
            (
                Watches::open(client, &load, 10, PATIENCE).unwrap(),
                Steady::start(client, &load, pace, PATIENCE).unwrap(),
            )
        })
        .collect();
    let shown = cluster.vrrp("m1").unwrap().virtual_mac;
    assert_eq!(shown, Some(mac_text(vmac(BOTH[0]))));

    cluster.stop_xvip("m1").unwrap();
    cluster.wait_state("m2", VrrpState::Active).unwrap();
    claimed_by(&cluster, "m2");
    for vip in BOTH {
        let namespace = cluster.client().namespace();
        let entry = namespace.ip(&format!("neigh show {vip}")).unwrap();
        assert!(entry.contains(&mac_text(vmac(vip))), "{entry}");
        // The link of the node that left does not listen for it any more.
        let on = |node: &str| fdb(cluster.node(node).namespace(), vmac(vip));
        assert_eq!(on("m1"), Vec::<String>::new());
        assert_eq!(on("m2").len(), 1);
    }
    for (watches, steady) in clients {
        watches.wait_events(2, PATIENCE).unwrap();
        steady.wait_answers(20, PATIENCE).unwrap();
        assert_eq!(failures(&steady.finish().unwrap()), Vec::<String>::new());
    }
}

#[test]
fn a_takeover_changes_nothing_for_the_neighbours_with_xdp() {
    skip_unless_root!();
    // A veth pair's native XDP hands nothing on that was sent to another MAC.
    a_takeover_changes_nothing_for_the_neighbours("generic");
}

#[test]
fn a_takeover_changes_nothing_for_the_neighbours_with_tc() {
    skip_unless_root!();
    a_takeover_changes_nothing_for_the_neighbours("tc");
}

//! VRRP between nodes in all its forms: version 2 with a password, unicast, several addresses and
//! instances, and the announcements on the wire.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use lb_tests::{
    capture::Capture,
    cluster::{Cluster, PATIENCE},
    control_plane::{BOTH, VIP4},
    skip_unless_root,
};
use lb_user::admin::model::VrrpState;

fn works(cluster: &Cluster) {
    let report = cluster.requests(&cluster.load(VIP4)).unwrap();
    assert_eq!(report.ok, 1000, "{report}");
}

/// VRRP version 2 with a password: elected, moved by a stop, taken back; a node with another
/// password is not listened to.
#[test]
fn version_2_with_a_password() {
    skip_unless_root!();
    let password = "version = 2\nauth = { type = \"password\", secret = \"pass1122\" }";
    let mut cluster = Cluster::builder()
        .masters(2)
        .start(|plane| {
            "1s".clone_into(&mut plane.advert_interval);
            password.clone_into(&mut plane.vrrp);
        })
        .unwrap();
    assert_eq!(cluster.vrrp("m2").unwrap().state, VrrpState::Backup);
    assert_eq!(cluster.vrrp("m2").unwrap().version, 2);
    works(&cluster);
    cluster.stop_xvip("m1").unwrap();
    cluster.wait_has("m2", "eth0", VIP4, true).unwrap();
    works(&cluster);
    cluster.edit_config("m1", |config| {
        *config = config.replace("pass1122", "another");
    });
    cluster.start_xvip("m1").unwrap();
    cluster
        .wait("m2 to refuse the wrong password", || {
            let vrrp = cluster.vrrp("m2")?;
            let bad: u64 = vrrp.adverts_bad.values().sum();
            Ok((bad >= 2 && vrrp.state == VrrpState::Active).then_some(()))
        })
        .unwrap();
}

/// Unicast peers instead of multicast: nothing is sent to the VRRP group.
#[test]
fn unicast_peers() {
    skip_unless_root!();
    let mut cluster = Cluster::builder().masters(2).prepare(|_| {}).unwrap();
    let addresses = [cluster.node("m1").ipv4(), cluster.node("m2").ipv4()];
    for (node, [own, peer]) in [("m1", addresses), ("m2", [addresses[1], addresses[0]])] {
        let unicast = format!("unicast_source = \"{own}\"\nunicast_peers = [\"{peer}\"]\nvrid");
        cluster.edit_config(node, |config| {
            *config = config.replacen("vrid", &unicast, 1);
        });
    }
    let capture = Capture::start(cluster.net(), "ip proto 112", PATIENCE).unwrap();
    for node in ["m1", "m2"] {
        cluster.start_xvip(node).unwrap();
    }
    cluster.wait_settled("m1").unwrap();
    cluster.wait_state("m2", VrrpState::Backup).unwrap();
    works(&cluster);
    cluster.stop_xvip("m1").unwrap();
    cluster.wait_has("m2", "eth0", VIP4, true).unwrap();
    // Adverts of the first owner, over a longer time than it needed to be elected.
    let adverts = capture.lines("10.77.0.11 > 10.77.0.12");
    assert!(!adverts.is_empty());
    let multicast = capture.lines("224.0.0.18");
    assert!(multicast.is_empty(), "{multicast:?}");
}

/// One instance with three addresses and a second one for IPv6: all of them move together with
/// their instance, and each can be stepped down alone.
#[test]
fn several_addresses_and_instances() {
    skip_unless_root!();
    let mut cluster = Cluster::builder()
        .masters(2)
        .stand_in(&["--listen", "[::]:6443"])
        .prepare(|plane| plane.vips = BOTH.into())
        .unwrap();
    let more: [IpAddr; 2] = [101, 102].map(|host| Ipv4Addr::new(10, 77, 0, host).into());
    for node in ["m1", "m2"] {
        let three = "\"10.77.0.100/24\", \"10.77.0.101/24\", \"10.77.0.102/24\"";
        let edit = |config: &mut String| *config = config.replace("\"10.77.0.100/24\"", three);
        cluster.edit_config(node, edit);
        cluster.start_xvip(node).unwrap();
    }
    cluster.wait_settled("m1").unwrap();
    let addresses: Vec<IpAddr> = BOTH.into_iter().chain(more).collect();
    for &address in &addresses {
        cluster.wait_has("m1", "eth0", address, true).unwrap();
        assert!(!cluster.has("m2", "eth0", address).unwrap());
    }
    let mut step_down = cluster.cli("m1", &["vrrp", "step-down", "v4"]).unwrap();
    lb_tests::process::output(&mut step_down).unwrap();
    for address in addresses.iter().filter(|address| address.is_ipv4()) {
        cluster.wait_has("m2", "eth0", *address, true).unwrap();
        cluster.wait_has("m1", "eth0", *address, false).unwrap();
    }
    assert!(cluster.has("m1", "eth0", BOTH[1]).unwrap());
    works(&cluster);
    let mut resume = cluster.cli("m1", &["vrrp", "resume"]).unwrap();
    lb_tests::process::output(&mut resume).unwrap();
    cluster.wait_settled("m1").unwrap();
}

/// A new owner announces its addresses at once and again more than a second later, by
/// gratuitous ARP and by unsolicited neighbour advertisements.
#[test]
fn a_new_owner_announces_at_once_and_again() {
    skip_unless_root!();
    let mut cluster = Cluster::builder()
        .masters(2)
        .stand_in(&["--listen", "[::]:6443"])
        .start(|plane| plane.vips = BOTH.into())
        .unwrap();
    let filter = "ether src 02:77:00:00:00:0c and (arp or (icmp6 and ip6[40] = 136))";
    let capture = Capture::start(cluster.net(), filter, PATIENCE).unwrap();
    cluster.stop_xvip("m1").unwrap();
    // Both forms of gratuitous ARP: neighbours differ in which one they believe.
    for words in [
        "Request who-has 10.77.0.100",
        "Reply 10.77.0.100 is-at",
        "tgt is fd77::100",
    ] {
        let more_than_locktime = Duration::from_secs(1);
        let times = capture
            .wait_for_repeat(words, more_than_locktime, PATIENCE)
            .unwrap();
        println!("{words}: announced after {times:?} s");
    }
}

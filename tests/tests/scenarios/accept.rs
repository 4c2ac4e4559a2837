//! Accept mode: with `accept = false` services are reachable at the VIPs, and nothing else is.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::reason::Reason;
use lb_tests::{
    client::Load,
    cluster::{Cluster, PATIENCE},
    control_plane::{BOTH, be_patient},
    endpoint::{Server, echoes},
    knock::{Answer, knock},
    process::output,
    skip_unless_root,
};
use lb_user::core::frame::mac_text;
use serde_json::Value;

/// A port that the owner listens on, and no service has.
const LISTENING: u16 = 8080;
/// How long an answer is waited for that must not come.
const SILENCE: Duration = Duration::from_millis(500);

/// Whether the client's pings of an address are answered.
fn is_pingable(cluster: &Cluster, address: IpAddr, within: Duration) -> bool {
    echoes(cluster.client(), address, 4, within).unwrap()
}

/// What the client hears from the listener.
fn listener(cluster: &Cluster, address: IpAddr, within: Duration) -> Answer {
    let target = SocketAddr::new(address, LISTENING);
    knock(cluster.client(), target, within).unwrap().answer
}

/// Requests reach every backend: on the owner, on its peer, and by nat.
fn serves(cluster: &Cluster, vip: IpAddr) {
    let load = Load {
        requests: 60,
        ..cluster.load(vip)
    };
    let report = cluster.requests(&load).unwrap();
    assert_eq!(report.failed(), 0, "{vip}: {report:?}");
    assert_eq!(report.by_node.len(), 3, "{vip}: {report:?}");
}

/// A neighbour's entry for the VIP, made anew, is the owner's MAC.
fn is_resolved(cluster: &Cluster, vip: IpAddr) {
    let mac = mac_text(cluster.node("m1").mac());
    let client = cluster.client().namespace();
    client.ip(&format!("neigh flush to {vip}")).unwrap();
    serves(cluster, vip);
    let entry = client.ip(&format!("neigh show {vip}")).unwrap();
    assert!(entry.contains(&mac), "{entry}");
}

/// What `xvip explain` says of the client's connection to the listener.
fn explained(cluster: &Cluster, vip: IpAddr) -> (String, String) {
    let client = SocketAddr::new(cluster.client().address_like(vip), 40_000).to_string();
    let target = SocketAddr::new(vip, LISTENING).to_string();
    let arguments = ["explain", &client, &target, "--json"];
    let text = output(&mut cluster.cli("m1", &arguments).unwrap()).unwrap();
    let said: Value = serde_json::from_str(&text).unwrap();
    let word = |field: &str| said[field].as_str().unwrap().to_owned();
    (word("reason"), word("reply"))
}

fn nothing_but_services(attach: &str) {
    let mut cluster = Cluster::builder()
        .masters(2)
        .plain_backends(1)
        .stand_in(&["--listen", "[::]:6443"])
        .start(|plane| {
            be_patient(plane);
            plane.health = plane.health.replace("http", "https");
            plane.vips = BOTH.into();
            plane.vrrp = "accept = false".into();
            plane.node = format!("attach = \"{attach}\"");
        })
        .unwrap();
    let _server = Server::listen(cluster.node("m1"), LISTENING).unwrap();
    assert!(!cluster.vrrp("m1").unwrap().accept);
    for vip in BOTH {
        is_resolved(&cluster, vip);
        assert!(!is_pingable(&cluster, vip, SILENCE), "{vip}");
        assert_eq!(listener(&cluster, vip, SILENCE), Answer::Silence, "{vip}");
        let said = explained(&cluster, vip);
        assert_eq!(said, ("not_accepted".into(), "none".into()), "{vip}");
        // The node itself is none of this.
        let own = cluster.node("m1").address_like(vip);
        assert!(is_pingable(&cluster, own, PATIENCE), "{own}");
        assert_eq!(listener(&cluster, own, PATIENCE), Answer::Open, "{own}");
    }
    // A ping and a SYN of each family at least.
    let counted = cluster.wait("what was dropped to be counted", || {
        let dropped = cluster.reason("m1", Reason::NotAccepted)?;
        Ok((dropped >= 4).then_some(()))
    });
    counted.unwrap();

    cluster.edit_all(|config| *config = config.replace("accept = false", "accept = true"));
    cluster.reload_all().unwrap();
    assert!(cluster.vrrp("m1").unwrap().accept);
    for vip in BOTH {
        let open = cluster.wait(&format!("{vip} to answer pings"), || {
            Ok(is_pingable(&cluster, vip, SILENCE).then_some(()))
        });
        open.unwrap();
        assert_eq!(listener(&cluster, vip, PATIENCE), Answer::Open, "{vip}");
        serves(&cluster, vip);
    }
}

#[test]
fn nothing_but_services_is_reachable_with_xdp() {
    skip_unless_root!();
    nothing_but_services("generic");
}

#[test]
fn nothing_but_services_is_reachable_with_tc() {
    skip_unless_root!();
    nothing_but_services("tc");
}

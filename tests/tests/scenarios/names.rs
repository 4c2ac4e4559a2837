//! Backends by host name, which the node's hosts file gives addresses.

use std::time::Duration;

use lb_tests::{
    client::Load,
    cluster::{Cluster, PATIENCE},
    control_plane::VIP4,
    process::output,
    skip_unless_root,
    steady::{Steady, failures},
    watch::Watches,
};
use lb_user::admin::model::{
    BackendState::{Down, Up},
    BackendStatus,
    VrrpState::Active,
};

/// One node with xvip and a stand-in, and three backends behind nat; two of them are in the
/// configuration, by name.
fn cluster() -> Cluster {
    let builder = Cluster::builder().masters(1).plain_backends(3);
    let prepared = builder.prepare(|plane| {
        "1s".clone_into(&mut plane.advert_interval);
        "resolve_interval = \"1s\"".clone_into(&mut plane.node);
    });
    let mut cluster = prepared.unwrap();
    let address = |name: &str| format!("{}:6443", cluster.node(name).ipv4());
    let [b1, b2, b3] = ["b1", "b2", "b3"].map(address);
    cluster.edit_config("m1", |text| {
        let section = format!("[[service.backend]]\nname = \"b3\"\naddress = \"{b3}\"\n");
        assert!(text.contains(&section), "{text}");
        *text = text
            .replace(&section, "")
            .replace(&b1, "cp1.example:6443")
            .replace(&b2, "cp2.example:6443");
    });
    cluster
}

/// Lets names stand for the addresses of nodes.
fn names(cluster: &Cluster, hosts: &[(&str, &str)]) {
    let line = |(name, node): &(&str, &str)| format!("{} {name}\n", cluster.node(node).ipv4());
    let text: String = hosts.iter().map(line).collect();
    cluster.node("m1").set_hosts(&text).unwrap();
}

fn backend(cluster: &Cluster, name: &str) -> BackendStatus {
    cluster.backend("m1", name).unwrap()
}

/// What is wrong with the name of b1, once there is something.
fn failure(cluster: &Cluster, wanted: &str) -> String {
    cluster
        .wait(&format!("the lookup to fail: {wanted}"), || {
            let host = cluster.backend("m1", "b1")?.host;
            let failure = host.and_then(|host| host.failure);
            Ok(failure.filter(|text| text.contains(wanted)))
        })
        .unwrap()
}

/// Makes requests, none of which fails; the nodes that answered.
fn answering(cluster: &Cluster) -> Vec<String> {
    let load = Load {
        requests: 200,
        ..cluster.load(VIP4)
    };
    let report = cluster.requests(&load).unwrap();
    assert_eq!(report.ok, load.requests, "{report}");
    report.by_node.into_keys().collect()
}

/// A service starts without what cannot be looked up, and has it when it can be. When a name moves, so do
/// new connections, and none of them fails; streams go on, also those at the old address for their time.
/// What cannot be looked up any more, or stands for the VIP, stays where it is, over a restart as well.
#[test]
fn backends_follow_their_names() {
    skip_unless_root!();
    let mut cluster = cluster();
    let checked = output(&mut cluster.cli("m1", &["check"]).unwrap()).unwrap();
    assert!(
        checked.contains("by the running xvip: cp1.example, cp2.example\n"),
        "{checked}"
    );
    names(&cluster, &[("cp1.example", "b1")]);
    cluster.start_xvip("m1").unwrap();
    cluster.wait_state("m1", Active).unwrap();
    for name in ["m1", "b1"] {
        cluster.wait_backend("m1", name, Up).unwrap();
    }
    let b2 = backend(&cluster, "b2");
    assert_eq!((b2.state, b2.resolved), (Down, false));
    assert!(
        b2.reason.starts_with("not resolved yet: cp2.example "),
        "{b2:?}"
    );
    assert_eq!(answering(&cluster), ["b1", "m1"]);
    names(&cluster, &[("cp1.example", "b1"), ("cp2.example", "b2")]);
    cluster.wait_backend("m1", "b2", Up).unwrap();
    cluster.wait_settled("m1").unwrap();
    assert_eq!(answering(&cluster), ["b1", "b2", "m1"]);

    let load = cluster.load(VIP4);
    let watches = Watches::open(cluster.client(), &load, 20, PATIENCE).unwrap();
    let steady =
        Steady::start(cluster.client(), &load, Duration::from_millis(10), PATIENCE).unwrap();
    names(&cluster, &[("cp1.example", "b3"), ("cp2.example", "b2")]);
    let b3 = cluster.node("b3").ipv4();
    cluster
        .wait("b1 to be at the address of b3", || {
            let own = cluster.backend("m1", "b1")?;
            Ok((own.address.ip() == b3 && own.state == Up && own.resolved).then_some(()))
        })
        .unwrap();
    watches.wait_events(1, PATIENCE).unwrap();
    drop(watches);
    assert_eq!(answering(&cluster), ["b2", "b3", "m1"]);
    let failed = failures(&steady.finish().unwrap());
    assert_eq!(failed, [""; 0]);

    names(&cluster, &[("cp2.example", "b2")]);
    failure(&cluster, "cannot be looked up: ");
    assert_eq!(answering(&cluster), ["b2", "b3", "m1"]);
    let listed = output(&mut cluster.cli("m1", &["backend"]).unwrap()).unwrap();
    let line = format!("{b3}:6443 (cp1.example)");
    assert!(
        listed.contains(&line) && listed.contains(" ago stays"),
        "{listed}"
    );
    let vip = format!("{VIP4} cp1.example\n");
    cluster.node("m1").set_hosts(&vip).unwrap();
    failure(
        &cluster,
        "stands for 10.77.0.100: a VIP as backend is a loop",
    );
    assert_eq!(answering(&cluster), ["b2", "b3", "m1"]);

    cluster.stop_xvip("m1").unwrap();
    names(&cluster, &[]);
    cluster.start_xvip("m1").unwrap();
    failure(&cluster, "cannot be looked up: ");
    cluster.wait_settled("m1").unwrap();
    let own = backend(&cluster, "b1");
    assert_eq!((own.address.ip(), own.state), (b3.into(), Up));
    assert_eq!(own.host.unwrap().resolved_ms, None);
    assert_eq!(answering(&cluster), ["b2", "b3", "m1"]);
}

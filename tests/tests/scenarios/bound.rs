//! Apiservers that listen on their node's address only (`--bind-address`): they get the VIP's
//! connections all the same, and keep them whatever happens.

use std::{collections::BTreeSet, num::NonZeroUsize, process::Command};

use lb_common::reason::Reason;
use lb_tests::{
    client::Load,
    cluster::{Builder, Cluster, PATIENCE},
    control_plane::BOTH,
    process::output,
    skip_unless_root,
    watch::Watches,
};
use lb_user::admin::model::BackendState::{Down, Up};

/// A cluster whose stand-ins listen on their node's address of each family.
fn bound() -> Builder {
    Cluster::builder().stand_in(&["--listen", "{ipv4}:6443", "--listen", "[{ipv6}]:6443"])
}

/// All requests succeed, and every node serves its share.
#[track_caller]
fn all_serve(cluster: &Cluster) {
    for vip in BOTH {
        let report = cluster.requests(&cluster.load(vip)).unwrap();
        println!("{vip}: {report}");
        assert_eq!((report.ok, report.failed()), (1000, 0), "{report}");
        assert!(report.unevenness(3) <= 10, "{report}");
        let own = cluster.client().address_like(vip);
        assert_eq!(report.client_addresses, BTreeSet::from([own]));
    }
}

/// Id of a node's link of the program that finds listeners.
fn link(cluster: &Cluster, node: &str) -> u64 {
    let pin = cluster.node(node).pins().join("links/socket_lookup");
    let mut command = Command::new("bpftool");
    command.args(["--json", "link", "show", "pinned"]).arg(pin);
    let shown: serde_json::Value = serde_json::from_str(&output(&mut command).unwrap()).unwrap();
    shown["id"].as_u64().unwrap()
}

/// 1,000 requests over each family, by local and dsr, in both ways of attachment.
#[test]
fn bound_listeners_serve_the_vip() {
    skip_unless_root!();
    for attach in ["native", "tc"] {
        let cluster = bound()
            .start(|plane| {
                plane.vips = BOTH.into();
                plane.node = format!("attach = \"{attach}\"");
            })
            .unwrap();
        all_serve(&cluster);
        for node in cluster.masters() {
            let named = cluster.reason(&node, Reason::ListenerAssigned).unwrap();
            assert!(named > 0, "{attach}: {node}");
        }
        let warnings = cluster.status("m1").unwrap().data_plane.warnings;
        assert_eq!(warnings, Vec::<String>::new());
    }
}

/// 2,000 short connections from 50 client ports: each one meets the server's memory of the one
/// before it.
#[test]
fn short_connections_to_bound_listeners_never_fail() {
    skip_unless_root!();
    let cluster = Cluster::builder()
        .stand_in(&[
            "--listen",
            "{ipv4}:6443",
            "--listen",
            "[{ipv6}]:6443",
            "--plain",
        ])
        .start(|plane| {
            plane.vips = BOTH.into();
            plane.health = "type = \"http\"\ninterval = \"1s\"".to_owned();
        })
        .unwrap();
    for vip in BOTH {
        let load = Load {
            requests: 2000,
            concurrency: NonZeroUsize::new(10).unwrap(),
            bytes: 100,
            plain: true,
            source_ports: Some(40_000..=40_049),
            ..cluster.load(vip)
        };
        let report = cluster.requests(&load).unwrap();
        println!("{vip}: {report}");
        assert_eq!(report.ok, 2000, "{report}");
        assert_eq!(report.by_node.len(), 3, "{report}");
    }
}

/// Watch streams go on while the VIP moves, while controllers are stopped, killed and started
/// again, and back. A new controller has the program replaced, not a second one attached.
#[test]
fn streams_of_bound_listeners_survive_takeovers_and_restarts() {
    skip_unless_root!();
    let mut cluster = bound().start(|plane| plane.vips = BOTH.into()).unwrap();
    let watches = BOTH.map(|vip| {
        let load = cluster.load(vip);
        let watches = Watches::open(cluster.client(), &load, 20, PATIENCE).unwrap();
        assert_eq!(watches.by_node().len(), 3, "{watches:?}");
        watches
    });
    let attached = link(&cluster, "m1");
    for kill in [false, true] {
        if kill {
            cluster.kill_xvip("m1").unwrap();
        } else {
            cluster.stop_xvip("m1").unwrap();
        }
        cluster.wait_settled("m2").unwrap();
        all_serve(&cluster);
        assert_eq!(link(&cluster, "m1"), attached);
        cluster.start_xvip("m1").unwrap();
        cluster.wait_settled("m1").unwrap();
        assert_eq!(link(&cluster, "m1"), attached);
        all_serve(&cluster);
        for watches in &watches {
            watches.wait_events(2, PATIENCE).unwrap();
        }
    }
}

/// The owner's apiserver is killed: from that moment on its SYNs go elsewhere, before any check has
/// noticed. A peer's is avoided when the checks have noticed. Each serves again when it is back,
/// with another listener.
#[test]
fn bound_listeners_that_restart_are_found_again() {
    skip_unless_root!();
    let mut cluster = bound().start(|plane| plane.vips = BOTH.into()).unwrap();
    all_serve(&cluster);
    for node in ["m1", "m2"] {
        cluster.kill_stand_in(node).unwrap();
        if node != "m1" {
            cluster.wait_backend("m1", node, Down).unwrap();
        }
        for vip in BOTH {
            let load = Load {
                requests: 200,
                ..cluster.load(vip)
            };
            let report = cluster.requests(&load).unwrap();
            assert_eq!(report.ok, 200, "{node} killed: {report}");
            assert_eq!(report.by_node.get(node), None, "{report}");
        }
        cluster.wait_backend("m1", node, Down).unwrap();
        cluster.start_stand_in(node).unwrap();
        cluster.wait_backend("m1", node, Up).unwrap();
        all_serve(&cluster);
    }
}

/// With MPTCP (as Go programs listen) a bound listener cannot be given the VIP's connections: not one
/// is lost, for another backend takes them, and the status says what helps.
#[test]
fn bound_mptcp_listeners_are_said_and_lose_nothing() {
    skip_unless_root!();
    let mut cluster = Cluster::builder()
        .masters(1)
        .plain_backends(1)
        .stand_in(&[
            "--listen",
            "{ipv4}:6443",
            "--listen",
            "[{ipv6}]:6443",
            "--mptcp",
        ])
        .start(|plane| plane.vips = BOTH.into())
        .unwrap();
    if cluster.stand_in("m1").output().contains("no MPTCP here") {
        lb_tests::skip::note("this kernel has no MPTCP");
        return;
    }
    for vip in BOTH {
        let report = cluster.requests(&cluster.load(vip)).unwrap();
        assert_eq!(report.ok, 1000, "{report}");
        assert_eq!(report.by_node.len(), 1, "{report}");
        assert!(report.by_node.contains_key("b1"), "{report}");
    }
    let warnings = |cluster: &Cluster| cluster.status("m1").unwrap().data_plane.warnings;
    let said = cluster.wait("a warning for each family", || {
        Ok(Some(warnings(&cluster)).filter(|said| said.len() == 2))
    });
    for (said, vip) in said.unwrap().iter().zip(BOTH) {
        let own = cluster.node("m1").address_like(vip).to_string();
        assert!(
            said.contains(&own) && said.contains(&vip.to_string()),
            "{said}"
        );
        assert!(said.contains("wildcard"), "{said}");
    }
    // It is this listener's problem, and goes with it.
    cluster.kill_stand_in("m1").unwrap();
    let quiet = cluster.wait("the warnings to go", || {
        Ok(warnings(&cluster).is_empty().then_some(()))
    });
    quiet.unwrap();
}

/// `xvip detach` ends it.
#[test]
fn detaching_removes_the_program() {
    skip_unless_root!();
    let mut cluster = bound()
        .masters(1)
        .start(|plane| plane.vips = BOTH.into())
        .unwrap();
    let attached = link(&cluster, "m1");
    cluster.stop_xvip("m1").unwrap();
    let mut show = Command::new("bpftool");
    show.args(["link", "show", "id", &attached.to_string()]);
    output(&mut show).unwrap();
    output(&mut cluster.cli("m1", &["detach"]).unwrap()).unwrap();
    let gone = cluster.wait("the link to go", || Ok(output(&mut show).err().map(drop)));
    gone.unwrap();
}

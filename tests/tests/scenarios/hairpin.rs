//! Processes on the nodes themselves: `connect()` to the VIP leads to a healthy backend, the
//! local one first, on the owner as on every other node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::reason::Reason;
use lb_tests::{
    client::Load,
    cluster::Cluster,
    control_plane::{BOTH, VIP4},
    skip_unless_root,
};
use lb_user::admin::model::BackendState::Down;

fn dual_stack() -> Cluster {
    Cluster::builder()
        .stand_in(&["--listen", "[::]:6443"])
        .start(|plane| plane.vips = BOTH.into())
        .unwrap()
}

fn few(load: Load) -> Load {
    Load {
        requests: 60,
        ..load
    }
}

/// The VIPs, and the IPv4 one as an IPv6 socket writes it.
fn targets() -> [IpAddr; 3] {
    let [v4, v6] = BOTH;
    [v4, v6, VIP4.to_ipv6_mapped().into()]
}

/// From owner and non-owners, over IPv4, IPv6 and a v4-mapped address: the local backend answers
/// and `getpeername()` shows what was asked for.
#[test]
fn a_local_process_reaches_its_own_backend_through_the_vip() {
    skip_unless_root!();
    let cluster = dual_stack();
    for node in cluster.masters() {
        for target in targets() {
            let load = few(cluster.load(target));
            let report = cluster.requests_by_process(&node, &load).unwrap();
            assert_eq!(
                report.by_node,
                BTreeMap::from([(node.clone(), 60)]),
                "{report}"
            );
            assert_eq!(report.peers, BTreeSet::from([load.target]), "{node}");
        }
        assert_eq!(cluster.reason(&node, Reason::ConnectLocal).unwrap(), 180);
    }
}

/// The local backend stops listening: from that moment on others answer, before any check has
/// noticed it. They see the node's own address, and `getpeername()` shows the VIP.
#[test]
fn without_a_local_listener_another_backend_answers() {
    skip_unless_root!();
    let mut cluster = dual_stack();
    for node in ["m1", "m2"] {
        cluster.kill_stand_in(node).unwrap();
        for target in targets() {
            let load = few(cluster.load(target));
            let report = cluster.requests_by_process(node, &load).unwrap();
            assert_eq!(
                (report.ok, report.by_node.get(node)),
                (60, None),
                "{report}"
            );
            assert_eq!(report.peers, BTreeSet::from([load.target]));
            let own = cluster.node(node).address_like(target.to_canonical());
            assert_eq!(report.client_addresses, BTreeSet::from([own]));
        }
        assert!(cluster.reason(node, Reason::ConnectRemote).unwrap() >= 180);
        cluster.start_stand_in(node).unwrap();
        cluster.wait_settled("m1").unwrap();
    }
}

/// A pod: a process of the node's cgroup in a network namespace of its own.
#[test]
fn a_process_in_another_namespace_reaches_the_nodes_backend() {
    skip_unless_root!();
    let cluster = dual_stack();
    for node in ["m1", "m3"] {
        for vip in BOTH {
            let load = few(cluster.load(vip));
            let report = cluster.requests_by_pod(node, "client", &load).unwrap();
            assert_eq!(
                report.by_node,
                BTreeMap::from([(node.to_owned(), 60)]),
                "{report}"
            );
            assert_eq!(report.peers, BTreeSet::from([load.target]));
        }
    }
}

/// Without any usable backend a `connect()` is refused at once; it does not hang.
#[test]
fn without_any_backend_connect_is_refused() {
    skip_unless_root!();
    let mut cluster = dual_stack();
    for node in cluster.masters() {
        cluster.kill_stand_in(&node).unwrap();
    }
    for node in cluster.masters() {
        for backend in cluster.masters() {
            cluster.wait_backend(&node, &backend, Down).unwrap();
        }
    }
    let refused = "connect: connection refused";
    for node in cluster.masters() {
        for target in targets() {
            let load = few(cluster.load(target));
            cluster
                .wait("every connect to be refused by the hook", || {
                    let before = cluster.reason(&node, Reason::ConnectNoBackend)?;
                    let report = cluster.requests_by_process(&node, &load)?;
                    assert_eq!(report.errors.get(refused), Some(&60), "{report}");
                    let after = cluster.reason(&node, Reason::ConnectNoBackend)?;
                    Ok((after == before + 60).then_some(()))
                })
                .unwrap();
        }
    }
}

/// What is not a service is left alone: the node's own address, and other ports of the VIP.
#[test]
fn other_connections_are_left_alone() {
    skip_unless_root!();
    let cluster = dual_stack();
    let own: SocketAddr = (cluster.node("m3").ipv4(), 6443).into();
    let direct = Load {
        target: own,
        ..few(cluster.load(VIP4))
    };
    let report = cluster.requests_by_process("m1", &direct).unwrap();
    assert_eq!(
        report.by_node,
        BTreeMap::from([("m3".to_owned(), 60)]),
        "{report}"
    );
    assert_eq!(report.peers, BTreeSet::from([own]));
    let other = Load {
        target: (VIP4, 1).into(),
        ..direct
    };
    let report = cluster.requests_by_process("m1", &other).unwrap();
    assert_eq!((report.ok, report.failed()), (0, 60), "{report}");
}

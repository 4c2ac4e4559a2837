//! Other software on the nodes of a control plane: requests to the VIP go on beside it, and it goes on
//! itself. What does not is in docs/KERNELS.md, "Neighbours on the node".

mod firewall;
mod ipvs;
mod managers;
mod programs;

use std::net::SocketAddr;

use lb_tests::{
    client::{Load, Report},
    cluster::Cluster,
    control_plane::{BOTH, be_patient},
    kernel,
    topology::Node,
};
use lb_user::admin::model::Method;

/// Requests of each look: enough for each of three backends to get some (all but once in a million).
const REQUESTS: usize = 40;

/// m1 owns both VIPs and has a backend, as m2 has; b1 is behind nat. In tc the links leave checksums and
/// segments to each other.
fn cluster(attach: &str) -> Cluster {
    cluster_at(attach, 1644)
}

/// The same with this port of the VIPs.
fn cluster_at(attach: &str, port: u16) -> Cluster {
    let mut builder = Cluster::builder().masters(2).plain_backends(1).stand_in(&[
        "--listen",
        "[::]:6443",
        "--plain",
    ]);
    if attach == "tc" {
        builder = builder.without_xdp();
    }
    builder
        .start(|plane| {
            plane.vips = BOTH.into();
            be_patient(plane);
            plane.node = format!("attach = \"{attach}\"");
            plane.port = port;
        })
        .unwrap()
}

/// Requests to the VIPs are answered, by each way.
fn works(cluster: &Cluster) {
    let method = |backend| cluster.backend("m1", backend).unwrap().method;
    assert_eq!(
        ["m1", "m2", "b1"].map(method),
        [Method::Local, Method::Dsr, Method::Nat]
    );
    for vip in BOTH {
        let report = cluster
            .requests(&few(cluster, cluster.load(vip).target))
            .unwrap();
        all_answer(&report);
    }
}

/// Some requests.
fn few(cluster: &Cluster, target: SocketAddr) -> Load {
    Load {
        target,
        requests: REQUESTS,
        plain: true,
        ..cluster.load(target.ip())
    }
}

fn all_answer(report: &Report) {
    assert_eq!(report.ok, REQUESTS, "{report}");
    assert_eq!(report.by_node.len(), 3, "{report}");
}

/// Sets sysctls of a node's, by their path below /proc/sys.
fn sysctls(node: &Node, values: &[(&str, &str)]) {
    let set = || {
        values
            .iter()
            .try_for_each(|(name, value)| kernel::sysctl(name, value))
    };
    node.namespace().enter(set).unwrap();
}

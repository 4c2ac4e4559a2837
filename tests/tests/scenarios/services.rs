//! Several services on several VIPs of the same nodes: the control plane, and an ingress beside it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lb_tests::{
    client::{Load, Report},
    cluster::{Cluster, PATIENCE},
    control_plane::VIP4,
    skip_unless_root,
    watch::Watches,
};
use lb_user::admin::model::{BackendState, VrrpState};

/// Where the ingress is.
const INGRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 110);

/// Two masters with the control plane's VIP, which is m1's, and that of an ingress on two further
/// nodes, which is m2's. Its ports 443 and 80 go to 6443 and 8080.
fn cluster() -> Cluster {
    let builder = Cluster::builder().masters(2).plain_backends(2);
    let listen = ["--listen", "0.0.0.0:6443", "--listen", "0.0.0.0:8080"];
    let prepared = builder.stand_in(&listen).prepare(|plane| {
        plane.backends.retain(|node| node.name().starts_with('m'));
        "1s".clone_into(&mut plane.advert_interval);
    });
    let mut cluster = prepared.unwrap();
    for name in ["b1", "b2"] {
        cluster.start_stand_in(name).unwrap();
    }
    let backend = |name: &str, port| {
        let address = cluster.node(name).ipv4();
        format!("[[service.backend]]\nname = \"{name}\"\naddress = \"{address}:{port}\"\n")
    };
    let service = |name, port, backend_port| {
        format!(
            "\n[[service]]\nname = \"{name}\"\naddress = \"{INGRESS}\"\nport = {port}\n\
             [service.health]\ntype = \"https\"\ninterval = \"1s\"\n{}{}",
            backend("b1", backend_port),
            backend("b2", backend_port)
        )
    };
    let more = format!(
        "\n[[vrrp]]\nname = \"ingress\"\ninterface = \"eth0\"\nvrid = 61\npriority = PRIORITY\n\
         advert_interval = \"1s\"\naddresses = [\"{INGRESS}/24\"]\n{}{}",
        service("https", 443, 6443),
        service("http", 80, 8080)
    );
    for (node, priority) in [("m1", "100"), ("m2", "200")] {
        cluster.edit_config(node, |text| *text += &more.replace("PRIORITY", priority));
        cluster.start_xvip(node).unwrap();
    }
    cluster
}

fn load(cluster: &Cluster, vip: Ipv4Addr, port: u16) -> Load {
    Load {
        target: SocketAddr::new(IpAddr::V4(vip), port),
        requests: 200,
        ..cluster.load(vip)
    }
}

fn requests(cluster: &Cluster, vip: Ipv4Addr, port: u16) -> Vec<String> {
    let report: Report = cluster.requests(&load(cluster, vip, port)).unwrap();
    assert_eq!(report.ok, 200, "{vip}:{port}: {report}");
    report.by_node.into_keys().collect()
}

/// Waits until a node is Active in these of its instances, in the order of the file, and sees every
/// backend UP.
fn owns(cluster: &Cluster, node: &str, wanted: [bool; 2]) {
    let what = format!("{node} to own {wanted:?}");
    cluster
        .wait(&what, || {
            let status = cluster.status(node)?;
            let active = |vrrp: &lb_user::admin::model::VrrpStatus| vrrp.state == VrrpState::Active;
            let owned: Vec<_> = status.vrrp.iter().map(active).collect();
            let mut backends = status.services.iter().flat_map(|one| &one.backends);
            let up = backends.all(|one| one.state == BackendState::Up && one.resolved);
            Ok((up && owned == wanted).then_some(()))
        })
        .unwrap();
}

/// Each VIP has an owner of its own, and each service its backends. When a node fails only its VIP
/// moves, the other one's streams do not notice, and it gets its own back.
#[test]
fn a_failure_moves_only_the_vip_of_the_node() {
    skip_unless_root!();
    let mut cluster = cluster();
    owns(&cluster, "m1", [true, false]);
    owns(&cluster, "m2", [false, true]);
    let all = |cluster: &Cluster| {
        assert_eq!(requests(cluster, VIP4, 1644), ["m1", "m2"]);
        assert_eq!(requests(cluster, INGRESS, 443), ["b1", "b2"]);
        assert_eq!(requests(cluster, INGRESS, 80), ["b1", "b2"]);
    };
    all(&cluster);
    let ingress = load(&cluster, INGRESS, 443);
    let watches = Watches::open(cluster.client(), &ingress, 4, PATIENCE).unwrap();
    let instance = |cluster: &Cluster| {
        let vrrp = cluster.status("m2").unwrap().vrrp;
        (vrrp[1].state, vrrp[1].transitions)
    };
    let before = instance(&cluster);

    cluster.kill_xvip("m1").unwrap();
    owns(&cluster, "m2", [true, true]);
    all(&cluster);
    cluster.start_xvip("m1").unwrap();
    owns(&cluster, "m1", [true, false]);
    owns(&cluster, "m2", [false, true]);
    all(&cluster);
    assert_eq!(instance(&cluster), before);
    watches.wait_events(2, PATIENCE).unwrap();
    assert_eq!(watches.ended(), []);
}

//! Port translation: listeners of every kind, checksums that are finished or left to the
//! hardware, and short connections that use a few client ports again and again.

use std::{collections::BTreeSet, net::IpAddr, num::NonZeroUsize};

use lb_tests::{
    client::Load,
    cluster::Cluster,
    control_plane::{BOTH, VIP4},
    endpoint::refused_after,
    process::output,
    skip_unless_root,
};

/// Listeners as apiservers have them, and what they can serve.
const LISTENERS: [(&[&str], &[IpAddr]); 4] = [
    (&["--listen", "0.0.0.0:6443"], &[IpAddr::V4(VIP4)]),
    (
        &["--listen", "0.0.0.0:6443", "--mptcp"],
        &[IpAddr::V4(VIP4)],
    ),
    (&["--listen", "[::]:6443"], &BOTH),
    (&["--listen", "[::]:6443", "--mptcp"], &BOTH),
];

/// 2,000 short connections from 50 client ports: each one meets the server's memory of the one
/// before it (TIME-WAIT).
fn short_connections(cluster: &Cluster, vip: IpAddr) -> Load {
    Load {
        requests: 2000,
        concurrency: NonZeroUsize::new(10).unwrap(),
        bytes: 100,
        plain: true,
        source_ports: Some(40_000..=40_049),
        ..cluster.load(vip)
    }
}

fn plain_health() -> String {
    "type = \"http\"\ninterval = \"1s\"".to_owned()
}

/// Wildcard and dual-stack listeners, plain and MPTCP, on every node: 2,000 short connections
/// from 50 client ports by local and dsr, none fails.
#[test]
fn short_connections_with_reused_ports_never_fail() {
    skip_unless_root!();
    for (listener, vips) in LISTENERS {
        let arguments = [listener, &["--plain"]].concat();
        let cluster = Cluster::builder()
            .stand_in(&arguments)
            .start(|plane| (plane.vips, plane.health) = (vips.into(), plain_health()))
            .unwrap();
        for vip in vips {
            let report = cluster
                .requests(&short_connections(&cluster, *vip))
                .unwrap();
            println!("{listener:?} {vip}: {report}");
            assert_eq!(report.ok, 2000, "{listener:?}: {report}");
            assert_eq!(report.by_node.len(), 3, "{report}");
        }
    }
}

/// The same by nat: the backend's node sees all of them from one address.
#[test]
fn short_connections_by_nat_never_fail() {
    skip_unless_root!();
    let cluster = Cluster::builder()
        .masters(1)
        .plain_backends(2)
        .stand_in(&["--listen", "[::]:6443", "--plain"])
        .start(|plane| {
            (plane.vips, plane.health) = (BOTH.into(), plain_health());
            plane.backends.remove(0);
        })
        .unwrap();
    for vip in BOTH {
        let report = cluster.requests(&short_connections(&cluster, vip)).unwrap();
        println!("{vip}: {report}");
        assert_eq!(report.ok, 2000, "{report}");
        assert_eq!(report.client_addresses, BTreeSet::from([vip]));
    }
}

/// A local backend's replies are translated at egress whether their checksums and segments are
/// finished (offload off) or left to the hardware (offload on, as Linux does on veth); requests
/// likewise, which only pass up on the owner.
#[test]
fn local_delivery_works_with_and_without_checksum_offload() {
    skip_unless_root!();
    for offload in [false, true] {
        let cluster = Cluster::builder()
            .masters(1)
            .stand_in(&["--listen", "[::]:6443"])
            .tx_offload(offload)
            .start(|plane| plane.vips = BOTH.into())
            .unwrap();
        for vip in BOTH {
            let load = Load {
                requests: 100,
                bytes: 200_000,
                ..cluster.load(vip)
            };
            let report = cluster.requests(&load).unwrap();
            assert_eq!(report.ok, 100, "offload {offload}: {report}");
        }
    }
}

/// With dsr the replies of the backend's node may leave their checksums to the hardware; the
/// client's requests may not on a veth link, since the owner sends the frame on as it is.
#[test]
fn dsr_replies_work_with_and_without_checksum_offload() {
    skip_unless_root!();
    for offload in ["off", "on"] {
        let cluster = Cluster::builder()
            .stand_in(&["--listen", "[::]:6443"])
            .start(|plane| plane.vips = BOTH.into())
            .unwrap();
        for node in cluster.masters() {
            let mut ethtool = cluster.node(&node).namespace().command("ethtool");
            output(ethtool.args(["-K", "eth0", "tx", offload])).unwrap();
        }
        for vip in BOTH {
            let load = Load {
                requests: 100,
                bytes: 200_000,
                ..cluster.load(vip)
            };
            let report = cluster.requests(&load).unwrap();
            assert_eq!(report.ok, 100, "offload {offload}: {report}");
            assert_eq!(report.by_node.len(), 3, "{report}");
        }
    }
}

/// Clients that talk to the VIP and to the node's own address from the same port do not collide.
#[test]
fn direct_connections_from_the_same_client_ports_do_not_collide() {
    skip_unless_root!();
    let cluster = Cluster::builder()
        .masters(1)
        .stand_in(&["--plain"])
        .start(|plane| plane.health = plain_health())
        .unwrap();
    let through = Load {
        requests: 500,
        ..short_connections(&cluster, VIP4.into())
    };
    let direct = Load {
        target: (cluster.node("m1").ipv4(), 6443).into(),
        ..through.clone()
    };
    let (one, other) = std::thread::scope(|scope| {
        let one = scope.spawn(|| cluster.requests(&through).unwrap());
        let other = cluster.requests(&direct).unwrap();
        (one.join().unwrap(), other)
    });
    assert_eq!((one.ok, other.ok), (500, 500), "{one}\n{other}");
}

/// Who asks for VIP:backend port, which is no service, is refused, and not served by the apiserver:
/// its reply would come from another port than it was asked at.
#[test]
fn the_backend_port_of_the_vip_is_no_service() {
    skip_unless_root!();
    let cluster = Cluster::builder()
        .masters(1)
        .stand_in(&["--listen", "[::]:6443"])
        .start(|plane| plane.vips = BOTH.into())
        .unwrap();
    for vip in BOTH {
        let after = refused_after(cluster.client(), (vip, 6443).into());
        assert!(after.is_some(), "{vip}");
    }
    let reason = lb_common::reason::Reason::BackendPortReset;
    assert_eq!(cluster.reason("m1", reason).unwrap(), 2);
}

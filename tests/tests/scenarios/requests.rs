//! Requests through the VIP: content, shares, what the backend sees, and the replies' way.

use std::{collections::BTreeSet, num::NonZeroUsize};

use lb_common::reason::Reason;
use lb_tests::{
    client::Load,
    cluster::Cluster,
    control_plane::{BOTH, VIP4},
    skip_unless_root,
};
use lb_user::admin::model::Method;

/// 1,000 requests over IPv4 and IPv6, none fails, each backend's share is within 10 points of a
/// third, and every backend sees the client's own address, by local as by dsr.
#[test]
fn a_thousand_requests_are_spread_evenly_and_none_fails() {
    skip_unless_root!();
    let cluster = Cluster::builder()
        .stand_in(&["--listen", "[::]:6443"])
        .start(|plane| plane.vips = BOTH.into())
        .unwrap();
    for vip in BOTH {
        let report = cluster.requests(&cluster.load(vip)).unwrap();
        println!("{vip}: {report}");
        assert_eq!((report.ok, report.failed()), (1000, 0), "{report}");
        assert!(report.unevenness(3) <= 10, "{report}");
        let own = cluster.client().address_like(vip);
        assert_eq!(report.client_addresses, BTreeSet::from([own]));
    }
    assert!(cluster.reason("m1", Reason::Local).unwrap() > 0);
    assert!(cluster.reason("m1", Reason::Dsr).unwrap() > 0);
    assert!(cluster.reason("m2", Reason::LocalFromPeer).unwrap() > 0);
}

/// With dsr the answers go from the backend to the client: the owner's link carries requests and
/// acknowledgements only.
#[test]
fn replies_do_not_pass_the_owner() {
    skip_unless_root!();
    for vip in BOTH {
        let cluster = Cluster::builder()
            .stand_in(&["--listen", "[::]:6443", "--plain"])
            .start(|plane| {
                plane.vips = vec![vip];
                // No backend on the owner.
                plane.backends.remove(0);
                plane.health = "type = \"http\"\ninterval = \"1s\"".to_owned();
            })
            .unwrap();
        let load = Load {
            requests: 20,
            bytes: 2_000_000,
            plain: true,
            ..cluster.load(vip)
        };
        let before = cluster.traffic("m1").unwrap();
        let report = cluster.requests(&load).unwrap();
        let after = cluster.traffic("m1").unwrap();
        assert_eq!(report.ok, 20, "{report}");
        let content = 20 * 2_000_000;
        let (received, sent) = (after.0 - before.0, after.1 - before.1);
        println!("{vip}: {content} bytes of content, the owner received {received}, sent {sent}");
        assert!(received < content / 4, "{received} of {content} bytes");
        assert!(sent < content / 4, "{sent} of {content} bytes");
    }
}

/// 200 connections at the same time, each with its own content, with equal and with different
/// ports of VIP and backend.
#[test]
fn two_hundred_parallel_connections_get_their_content() {
    skip_unless_root!();
    for port in [1644, 6443] {
        let cluster = Cluster::builder()
            .stand_in(&["--listen", "[::]:6443"])
            .start(|plane| (plane.vips, plane.port) = (BOTH.into(), port))
            .unwrap();
        for vip in BOTH {
            let load = Load {
                requests: 200,
                concurrency: NonZeroUsize::new(200).unwrap(),
                bytes: 50_000,
                ..cluster.load(vip)
            };
            let report = cluster.requests(&load).unwrap();
            assert_eq!(report.ok, 200, "port {port}: {report}");
            let own = cluster.client().address_like(vip);
            assert_eq!(report.client_addresses, BTreeSet::from([own]));
        }
    }
}

/// One service with a local backend, one by dsr and two without xvip by nat: all answer with
/// the right content; the nat ones see the VIP, the others the client.
#[test]
fn backends_without_xvip_are_served_by_nat() {
    skip_unless_root!();
    let cluster = Cluster::builder()
        .masters(2)
        .plain_backends(2)
        .stand_in(&["--listen", "[::]:6443"])
        .start(|plane| plane.vips = BOTH.into())
        .unwrap();
    let method = |backend| cluster.backend("m1", backend).unwrap().method;
    assert_eq!(
        ["m1", "m2", "b1", "b2"].map(method),
        [Method::Local, Method::Dsr, Method::Nat, Method::Nat]
    );
    for vip in BOTH {
        let load = Load {
            requests: 400,
            bytes: 20_000,
            ..cluster.load(vip)
        };
        let report = cluster.requests(&load).unwrap();
        println!("{vip}: {report}");
        assert_eq!(report.ok, 400, "{report}");
        assert!(report.unevenness(4) <= 10, "{report}");
        let own = cluster.client().address_like(vip);
        assert_eq!(report.client_addresses, BTreeSet::from([own, vip]));
        let nat = [("b1".to_owned(), vip), ("b2".to_owned(), vip)];
        assert!(
            nat.iter().all(|pair| report.views.contains(pair)),
            "{report}"
        );
        assert_eq!(report.views.len(), 4, "{report}");
    }
    assert!(cluster.reason("m1", Reason::NatReply).unwrap() > 0);
}

/// All backends by nat with a VIP move in the middle: new connections work through the new owner.
#[test]
fn nat_goes_on_through_another_owner() {
    skip_unless_root!();
    let mut cluster = Cluster::builder()
        .masters(2)
        .plain_backends(2)
        .start(|plane| drop(plane.backends.drain(..2)))
        .unwrap();
    let load = Load {
        requests: 200,
        ..cluster.load(VIP4)
    };
    let before = cluster.requests(&load).unwrap();
    assert_eq!(before.ok, 200, "{before}");
    cluster.stop_xvip("m1").unwrap();
    cluster.wait_settled("m2").unwrap();
    let after = cluster.requests(&load).unwrap();
    assert_eq!(after.ok, 200, "{after}");
    assert_eq!(after.client_addresses, BTreeSet::from([VIP4.into()]));
}

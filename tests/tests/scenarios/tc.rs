//! The ingress pipeline as a tc program: what differs from XDP.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream},
    num::NonZeroUsize,
};

use anyhow::Result;
use lb_common::reason::Reason;
use lb_tests::{
    client::Load,
    cluster::{Cluster, PATIENCE},
    control_plane::{BOTH, VIP4, VIP6, be_patient},
    flood::send_frames,
    packet::{Frame, V4, V6},
    process::output,
    skip_unless_root,
};
use lb_user::admin::model::{AttachedMode, BackendState};

/// A master and its peer with a stand-in each, and a backend that is reached by nat.
fn cluster(attach: &str) -> Cluster {
    Cluster::builder()
        .masters(2)
        .plain_backends(1)
        .stand_in(&["--listen", "[::]:6443", "--plain"])
        .without_xdp()
        .start(|plane| {
            plane.vips = BOTH.into();
            be_patient(plane);
            plane.node = format!("attach = \"{attach}\"");
        })
        .unwrap()
}

/// Sets an offload of a node's uplink.
fn set_offload(cluster: &Cluster, node: &str, feature: &str, state: &str) {
    let mut ethtool = cluster.node(node).namespace().command("ethtool");
    output(ethtool.args(["-K", "eth0", feature, state])).unwrap();
}

/// Senders leave checksums and segments to the hardware, but the way out of the masters wants both
/// finished: what tc rewrote becomes a checksum that the receiver verifies. None is wrong.
#[test]
fn unfinished_checksums_are_finished_rightly() {
    skip_unless_root!();
    let cluster = cluster("tc");
    for node in cluster.masters() {
        set_offload(&cluster, &node, "tx", "off");
    }
    for vip in BOTH {
        let report = cluster.requests(&cluster.bulk(vip)).unwrap();
        println!("{vip}: {report}");
        assert_eq!(report.ok, 40, "{report}");
        assert_eq!(report.by_node.len(), 3, "{report}");
    }
    for node in cluster.net().nodes() {
        assert_eq!(
            cluster.bad_checksums(node.name()).unwrap(),
            0,
            "{}",
            node.name()
        );
    }
}

/// What tc sends on passes the egress program, too, with the VIP as its source. A port that happens
/// to be the backends' stays what it is: that of a flow by nat, and that of a refusal.
#[test]
fn what_is_sent_on_is_no_reply_of_this_node() {
    skip_unless_root!();
    let mut cluster = Cluster::builder()
        .masters(1)
        .plain_backends(1)
        .stand_in(&["--listen", "[::]:6443"])
        .without_xdp()
        .start(|plane| {
            plane.vips = BOTH.into();
            plane.node = "attach = \"tc\"".to_owned();
        })
        .unwrap();
    // Its replies would be translated.
    cluster.kill_stand_in("m1").unwrap();
    cluster
        .wait_backend("m1", "m1", BackendState::Down)
        .unwrap();
    for vip in BOTH {
        let load = Load {
            requests: 3,
            concurrency: NonZeroUsize::MIN,
            source_ports: Some(6443..=6443),
            ..cluster.load(vip)
        };
        let report = cluster.requests(&load).unwrap();
        assert_eq!(report.ok, 3, "{report}");
        assert_eq!(report.client_addresses, BTreeSet::from([vip]));
        assert_eq!(
            refusal(&cluster, vip).unwrap(),
            ErrorKind::ConnectionRefused
        );
    }
}

/// What a connection from the client to the backends' port of a VIP ends with.
fn refusal(cluster: &Cluster, vip: IpAddr) -> Result<ErrorKind> {
    cluster.client().namespace().enter(|| {
        let to = SocketAddr::new(vip, 6443);
        let Err(error) = TcpStream::connect_timeout(&to, PATIENCE) else {
            anyhow::bail!("{to} accepts connections");
        };
        Ok(error.kind())
    })
}

/// Frames of a VLAN that is no uplink are left to the kernel, with one tag and with two: XDP finds
/// the tags in the frame, tc finds the outer one taken out of it.
#[test]
fn tagged_frames_are_not_of_an_untagged_uplink() {
    skip_unless_root!();
    for (attach, mode) in [("tc", AttachedMode::Tc), ("native", AttachedMode::Native)] {
        let cluster = cluster(attach);
        assert_eq!(
            cluster.status("m1").unwrap().data_plane.attach[0].mode,
            mode
        );
        // Virtual links keep a tag beside the frame; a wire does not.
        let mut ethtool = cluster.net().bridge().command("ethtool");
        output(ethtool.args(["-K", "m1", "txvlan", "off", "tx-vlan-stag-hw-insert", "off"]))
            .unwrap();
        let (from, to) = (cluster.client(), cluster.node("m1").mac());
        let before = cluster.reason("m1", Reason::NotOurVlan).unwrap();
        let sent = send_frames(from, 40, |number| {
            let sport = 50_000 + u16::try_from(number).unwrap_or_default();
            let four = Frame::<V4>::syn()
                .macs(from.mac(), to)
                .src(from.ipv4().octets())
                .dst(VIP4.octets())
                .sport(sport)
                .dport(1644);
            let six = Frame::<V6>::syn()
                .macs(from.mac(), to)
                .src(from.ipv6().octets())
                .dst(VIP6.octets())
                .sport(sport)
                .dport(1644);
            match number % 4 {
                0 => four.vlan(7).emit(),
                1 => four.qinq(7, 8).emit(),
                2 => six.vlan(7).emit(),
                _ => six.qinq(7, 8).emit(),
            }
        });
        assert_eq!(sent.unwrap(), 40);
        cluster
            .wait("the tagged frames to be counted", || {
                let now = cluster.reason("m1", Reason::NotOurVlan)?;
                Ok((now - before == 40).then_some(()))
            })
            .unwrap();
        let flows = cluster.backend("m1", "b1").unwrap().active_flows;
        assert_eq!(flows, Some(0), "no flow was made of them");
    }
}

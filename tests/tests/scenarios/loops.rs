//! Nodes that disagree, and frames that come from unexpected places: requests work, and no frame
//! goes round between nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{headers::TcpHeader, reason::Reason};
use lb_tests::{
    capture::Capture,
    client::Load,
    cluster::{Cluster, PATIENCE},
    control_plane::{BOTH, VIP4, VIP6},
    endpoint::{talk, transfer},
    flood::send_frames,
    packet::{Frame, V4, V6},
    process::output,
    skip_unless_root,
    topology::Node,
    ways::{Way, Ways},
};
use lb_user::{
    admin::model::{BackendState, VrrpState},
    core::frame::mac_text,
};

fn dual_stack() -> Cluster {
    Cluster::builder()
        .stand_in(&["--listen", "[::]:6443"])
        .start(|plane| plane.vips = BOTH.into())
        .unwrap()
}

fn some(load: Load) -> Load {
    Load {
        requests: 100,
        ..load
    }
}

/// Adds a rule to a node's firewall, in a table of our own.
fn firewall(node: &Node, hook: &str, rule: &str) {
    let nft = |command: &str| {
        let mut nft = node.namespace().command("nft");
        output(nft.arg(command)).unwrap();
    };
    nft("add table inet scenario");
    let chain = format!("{{ type filter hook {hook} priority 0; }}");
    nft(&format!("add chain inet scenario {hook} {chain}"));
    nft(&format!("add rule inet scenario {hook} {rule}"));
}

/// A neighbour entry for good.
fn pin_neighbour(at: &Node, address: IpAddr, mac: [u8; 6]) {
    let mac = mac_text(mac);
    let command = format!("neigh replace {address} lladdr {mac} dev eth0 nud permanent");
    at.namespace().ip(&command).unwrap();
}

/// The client believes that a node has the VIPs, for good. An owner's kernel asks for the client
/// with its IPv6 VIP as the source, and the answer would go to that node: all know the client.
fn point_client_at(cluster: &Cluster, node: &str) {
    let client = cluster.client();
    for vip in BOTH {
        pin_neighbour(client, vip, cluster.node(node).mac());
        for master in cluster.masters() {
            let master = cluster.node(&master);
            pin_neighbour(master, client.address_like(vip), client.mac());
        }
    }
}

/// Segments of clients on the wire. Each may be there twice: on its way to a node, and on from
/// there to another one; and once more if it was repeated by its sender.
fn copies(capture: &Capture, port: u16) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for (_, line) in capture.lines(&format!(".{port}: Flags")) {
        *counts.entry(line).or_default() += 1;
    }
    counts
}

/// No client's segment was on the wire more often than a sender's repetitions explain.
fn nothing_went_round(capture: &Capture, port: u16) {
    let counts = copies(capture, port);
    assert!(!counts.is_empty(), "nothing was captured");
    let worst = counts.iter().max_by_key(|(_, count)| **count);
    let (line, count) = worst.unwrap();
    println!("{} segments, at most {count} times each", counts.len());
    assert!(*count <= 6, "{count} times: {line}");
}

fn capture(cluster: &Cluster) -> Capture {
    Capture::start(cluster.net(), "tcp dst port 1644", PATIENCE).unwrap()
}

/// All nodes believe that they own the VIPs, because no advert gets through: whichever of them
/// the client asks, it is answered, by all backends.
#[test]
fn requests_work_while_every_node_believes_that_it_owns_the_vip() {
    skip_unless_root!();
    let cluster = dual_stack();
    for node in cluster.masters() {
        firewall(cluster.node(&node), "input", "meta l4proto 112 drop");
    }
    for node in cluster.masters() {
        cluster.wait_state(&node, VrrpState::Active).unwrap();
    }
    let capture = capture(&cluster);
    for node in cluster.masters() {
        point_client_at(&cluster, &node);
        for vip in BOTH {
            let report = cluster.requests(&some(cluster.load(vip))).unwrap();
            assert_eq!(report.ok, 100, "{vip} at {node}: {report}");
            assert_eq!(report.by_node.len(), 3, "{vip} at {node}: {report}");
        }
    }
    nothing_went_round(&capture, 1644);
}

/// The same while nodes see different backends UP: m1 cannot check m2, m2 cannot check m3, and m3
/// cannot check m1. What a node's peer forwards to it, it delivers, whatever it thinks itself.
#[test]
fn requests_work_while_nodes_disagree_about_health() {
    skip_unless_root!();
    let cluster = dual_stack();
    let disagree = [("m1", "m2"), ("m2", "m3"), ("m3", "m1")];
    for (node, blind_to) in disagree {
        let (ipv4, ipv6) = (cluster.node(blind_to).ipv4(), cluster.node(blind_to).ipv6());
        let node = cluster.node(node);
        firewall(
            node,
            "output",
            &format!("ip daddr {ipv4} tcp dport 6443 drop"),
        );
        firewall(
            node,
            "output",
            &format!("ip6 daddr {ipv6} tcp dport 6443 drop"),
        );
    }
    for (node, blind_to) in disagree {
        cluster
            .wait_backend(node, blind_to, BackendState::Down)
            .unwrap();
    }
    let capture = capture(&cluster);
    for (node, blind_to) in disagree {
        point_client_at(&cluster, node);
        for vip in BOTH {
            let report = cluster.requests(&some(cluster.load(vip))).unwrap();
            assert_eq!(report.ok, 100, "{vip} at {node}: {report}");
            assert_eq!(report.by_node.len(), 2, "{vip} at {node}: {report}");
            assert!(!report.by_node.contains_key(blind_to), "{report}");
        }
    }
    nothing_went_round(&capture, 1644);
}

/// Packets for the VIP that arrive at a node which is not the owner are served like at the owner.
#[test]
fn a_node_that_is_not_the_owner_forwards_as_well() {
    skip_unless_root!();
    let cluster = dual_stack();
    let capture = capture(&cluster);
    for node in ["m2", "m3"] {
        point_client_at(&cluster, node);
        for vip in BOTH {
            let report = cluster.requests(&some(cluster.load(vip))).unwrap();
            assert_eq!(report.ok, 100, "{vip} at {node}: {report}");
            assert_eq!(report.by_node.len(), 3, "{vip} at {node}: {report}");
        }
    }
    assert_eq!(cluster.reason("m1", Reason::Dsr).unwrap(), 0);
    nothing_went_round(&capture, 1644);
}

/// A MAC that no node has.
const NOBODY: [u8; 6] = [2, 0x77, 0, 0, 0xee, 0xee];
/// How many frames it gets.
const FRAMES: u32 = 200;

/// SYNs to the VIPs in frames to a MAC that nobody has, which the bridge sends to every node:
/// nobody forwards, answers or resets one.
#[test]
fn flooded_frames_to_another_mac_are_left_alone() {
    skip_unless_root!();
    let cluster = dual_stack();
    let capture = Capture::start(cluster.net(), "tcp port 1644", PATIENCE).unwrap();
    let client = cluster.client();
    let (mac, ipv4, ipv6) = (client.mac(), client.ipv4().octets(), client.ipv6().octets());
    send_frames(client, FRAMES, |number| {
        let sport = 50_000 + number as u16;
        if number % 2 == 0 {
            let frame = Frame::<V4>::tcp(TcpHeader::SYN, number, 0, &[]).macs(mac, NOBODY);
            let frame = frame.src(ipv4).dst(VIP4.octets());
            frame.sport(sport).dport(1644).emit()
        } else {
            let frame = Frame::<V6>::tcp(TcpHeader::SYN, number, 0, &[]).macs(mac, NOBODY);
            let frame = frame.src(ipv6).dst(VIP6.octets());
            frame.sport(sport).dport(1644).emit()
        }
    })
    .unwrap();
    for node in cluster.masters() {
        cluster
            .wait("the flooded frames to be counted", || {
                let seen = cluster.reason(&node, Reason::NotOurMac)?;
                Ok((seen >= u64::from(FRAMES)).then_some(()))
            })
            .unwrap();
    }
    let lines = cluster
        .wait("every frame to be captured", || {
            let lines = capture.lines("Flags");
            Ok((lines.len() >= FRAMES as usize).then_some(lines))
        })
        .unwrap();
    assert_eq!(lines.len(), FRAMES as usize, "{:?}", lines.last());
    for vip in BOTH {
        let report = cluster.requests(&some(cluster.load(vip))).unwrap();
        assert_eq!(report.ok, 100, "{report}");
    }
}

/// A client on a node that has a backend, but whose `connect()` xvip does not see (another cgroup),
/// talks to the VIP over the wire. Its own node's backend would take it for a martian: others
/// answer. The node carries the VIP only where it has a backend of that service, so this is a
/// service without one there.
#[test]
fn a_client_on_a_peer_is_served_over_the_wire() {
    skip_unless_root!();
    let cluster = Cluster::builder()
        .stand_in(&["--listen", "[::]:6443"])
        .start(|plane| {
            plane.vips = BOTH.into();
            plane.backends.remove(1);
        })
        .unwrap();
    let capture = capture(&cluster);
    for vip in BOTH {
        assert!(!cluster.has("m2", "lo", vip).unwrap());
        let load = some(cluster.load(vip));
        let report = cluster
            .node("m2")
            .namespace()
            .block_on(|| lb_tests::client::run(&load))
            .unwrap();
        assert_eq!(report.ok, 100, "{vip}: {report}");
        let nodes: BTreeSet<_> = report.by_node.keys().map(String::as_str).collect();
        assert_eq!(nodes, BTreeSet::from(["m1", "m3"]), "{report}");
    }
    nothing_went_round(&capture, 1644);
}

/// A pod behind a peer, with an address of its own: its frames have the peer's MAC, but not the
/// peer's address. To the owner they look as if the peer had balanced them.
#[test]
fn pods_behind_a_peer_are_served() {
    skip_unless_root!();
    let cluster = Cluster::builder()
        .stand_in(&["--listen", "[::]:6443"])
        .bystander("pod")
        .start(|plane| {
            plane.vips = BOTH.into();
            plane.backends.remove(1);
        })
        .unwrap();
    let (net, pod) = (cluster.net(), cluster.node("pod"));
    lb_tests::router::put_behind(net, pod, cluster.node("m2"), 1500).unwrap();
    let capture = capture(&cluster);
    for vip in BOTH {
        let load = some(cluster.load(vip));
        let report = pod
            .namespace()
            .block_on(|| lb_tests::client::run(&load))
            .unwrap();
        println!("{vip}: {report}");
        assert_eq!(report.ok, 100, "{vip}: {report}");
        let seen = lb_tests::router::far_like(vip);
        assert_eq!(report.client_addresses, BTreeSet::from([seen]));
    }
    nothing_went_round(&capture, 1644);
}

/// Where the only backends are nat ones, a node that is not the owner forwards too, and a
/// request takes no detour over the owner.
#[test]
fn nat_works_at_a_node_that_is_not_the_owner() {
    skip_unless_root!();
    let cluster = Cluster::builder()
        .masters(2)
        .plain_backends(2)
        .stand_in(&["--listen", "[::]:6443"])
        .start(|plane| {
            plane.vips = BOTH.into();
            plane.backends.drain(..2);
        })
        .unwrap();
    let capture = capture(&cluster);
    point_client_at(&cluster, "m1");
    for vip in BOTH {
        let report = cluster.requests(&some(cluster.load(vip))).unwrap();
        assert_eq!(report.ok, 100, "{vip}: {report}");
        assert_eq!(report.by_node.len(), 2, "{vip}: {report}");
    }
    nothing_went_round(&capture, 1644);
}

/// A nat backend that is a client of the VIP may be sent to itself: it sees a connection from the VIP,
/// and the answers come back to it.
#[test]
fn a_nat_backend_is_its_own_client() {
    skip_unless_root!();
    let ways = Ways::start().unwrap();
    let capture = Capture::start(ways.cluster.net(), "tcp dst port 1003", PATIENCE).unwrap();
    for path in ways.paths() {
        let node = ways.cluster.node("b1");
        let (client, server) = ways.connect_from(node, path, None).unwrap();
        talk(&client, &server).unwrap();
        if path.way == Way::Nat {
            let seen = server.peer_addr().unwrap().ip().to_canonical();
            assert_eq!(seen, path.vip);
        }
        transfer(&client, &server, 100_000).unwrap();
        transfer(&server, &client, 100_000).unwrap();
    }
    nothing_went_round(&capture, 1003);
}

//! Packets that are rarely seen, by every way: TCP options of every kind, IPv4 options, IPv6 extension
//! headers, fragments, frames over one page.

use std::net::{SocketAddr, UdpSocket};

use lb_common::{headers::TcpHeader, reason::Reason};
use lb_tests::{
    capture::Capture,
    cluster::{Cluster, PATIENCE},
    control_plane::{BOTH, VIP4, VIP6},
    endpoint::{talk, transfer},
    flood::send_frames,
    ip_options,
    packet::{Frame, V4, V6},
    process::{Process, wait_until},
    skip_unless_root,
    topology::{Node, any_address},
    ways::{Path, Way, Ways, family_word, unchecked_service},
};

/// Bytes that need many segments.
const MUCH: usize = 1_000_000;

/// What a SYN carries: 40 bytes, all that there is room for. Maximum segment size, SACK permitted,
/// timestamps, window scale, a Fast Open cookie, and an experiment of nobody's.
const OPTIONS: [u8; 40] = [
    2, 4, 0x05, 0x98, 4, 2, 8, 10, 0, 0, 0x12, 0x34, 0, 0, 0, 0, 3, 3, 9, 34, 10, 1, 2, 3, 4, 5, 6,
    7, 8, 253, 8, 0xbe, 0xef, 0xca, 0xfe, 9, 9, 1, 1, 0,
];

/// The options of a captured segment.
fn options(line: &str) -> &str {
    let (_, rest) = line
        .split_once("options [")
        .unwrap_or_else(|| panic!("{line}"));
    rest.split_once(']').unwrap().0
}

/// What a node's own kernel sees of segments to a port: after XDP, as its stack gets them.
fn seen_by(node: &Node, port: u16) -> Process {
    let filter = format!("tcp dst port {port} and tcp[tcpflags] & tcp-syn != 0");
    let filter6 = format!("ip6 and tcp dst port {port}");
    let filter = format!("({filter}) or ({filter6})");
    let arguments = ["-i", "eth0", "-l", "-n", "--immediate-mode", &filter];
    let tcpdump = node.start("tcpdump", "tcpdump", &arguments).unwrap();
    tcpdump.wait_for_output("listening on", PATIENCE).unwrap();
    tcpdump
}

/// A SYN of the client to a service, with all options.
fn syn(ways: &Ways, path: Path, sport: u16) -> Vec<u8> {
    let client = ways.cluster.client();
    let (from, to) = (client.mac(), ways.cluster.node("m1").mac());
    if path.vip.is_ipv4() {
        Frame::<V4>::tcp(TcpHeader::SYN, 1000, 0, &[])
            .tcp_options(&OPTIONS)
            .macs(from, to)
            .src(client.ipv4().octets())
            .dst(VIP4.octets())
            .sport(sport)
            .dport(path.way.port())
            .emit()
    } else {
        Frame::<V6>::tcp(TcpHeader::SYN, 1000, 0, &[])
            .tcp_options(&OPTIONS)
            .macs(from, to)
            .src(client.ipv6().octets())
            .dst(VIP6.octets())
            .sport(sport)
            .dport(path.way.port())
            .emit()
    }
}

/// The backend's stack gets the options that the client sent, and (nat) the client those of the
/// backend's answer.
#[test]
fn tcp_options_arrive_as_they_were_sent() {
    skip_unless_root!();
    let ways = Ways::start().unwrap();
    for (path, sport) in ways.paths().zip(47_001..) {
        let node = ways.cluster.node(path.way.node());
        let seen = seen_by(node, path.way.backend_port());
        let wire =
            Capture::start(ways.cluster.net(), &format!("tcp port {sport}"), PATIENCE).unwrap();
        let sent = send_frames(ways.cluster.client(), 1, |_| syn(&ways, path, sport)).unwrap();
        assert_eq!(sent, 1);
        let syn = format!(".{}: Flags [S],", path.way.backend_port());
        let arrived = wait_until(&format!("the SYN: {path}"), PATIENCE, || {
            let text = seen.output();
            let line = text
                .lines()
                .find(|line| line.contains(&syn) && line.contains(&format!(".{sport} > ")));
            Ok(line.map(str::to_owned))
        })
        .unwrap();
        let sent = wire.lines(&format!(".{}: Flags [S],", path.way.port()));
        assert_eq!(options(&arrived), options(&sent[0].1), "{path}");
        assert!(options(&arrived).contains("0xbeefcafe0909"), "{arrived}");

        // The answer, as the backend sent it and as the client gets it.
        let answer = format!(".{sport}: Flags [S.]");
        let given = wait_until(&format!("the answer: {path}"), PATIENCE, || {
            let from_vip = format!(".{} > ", path.way.port());
            let lines = wire.lines(&answer).into_iter();
            Ok(lines
                .map(|(_, line)| line)
                .find(|line| line.contains(&from_vip)))
        })
        .unwrap();
        if path.way == Way::Nat {
            let original = format!(".{} > ", path.way.backend_port());
            let mut lines = wire.lines(&answer).into_iter().map(|(_, line)| line);
            let original = lines.find(|line| line.contains(&original)).unwrap();
            assert_eq!(options(&original), options(&given), "{path}");
        }
    }
}

/// Clients whose packets carry IPv4 options, or IPv6 hop-by-hop and destination options, work like
/// any others, and backends see the options.
#[test]
fn ip_options_and_extension_headers_work() {
    skip_unless_root!();
    let ways = Ways::start().unwrap();
    for path in ways.paths() {
        let filter = if path.vip.is_ipv4() {
            "ip[0] & 15 > 5"
        } else {
            "ip6[6] = 0"
        };
        let wire = Capture::start(ways.cluster.net(), filter, PATIENCE).unwrap();
        let client = ip_options::connect(ways.cluster.client(), path.target());
        let client = client.unwrap_or_else(|error| panic!("{path}: {error:#}"));
        let server = ways.server(path.way).unwrap().take(&client).unwrap();
        talk(&client, &server).unwrap();
        transfer(&client, &server, MUCH).unwrap();
        transfer(&server, &client, MUCH).unwrap();
        // On the wire with them: to the owner, and from there to the backend's node.
        let ports = match path.way {
            Way::Local | Way::Dsr => path.way.port(),
            Way::Nat => path.way.backend_port(),
        };
        let port = client.local_addr().unwrap().port();
        let lines = wire.lines(&format!("{port} > "));
        let to_backend = |(_, line): &&(f64, String)| line.contains(&format!("{ports}: Flags"));
        let with = lines.iter().filter(to_backend).count();
        assert!(with > 100, "{path}: {with} packets with options");
    }
}

/// Port of the UDP services.
const UDP: u16 = 1053;

/// A UDP service by nat.
fn push_udp(cluster: &mut Cluster) {
    let mut services = String::new();
    for vip in BOTH {
        let backend = SocketAddr::new(cluster.node("b1").address_like(vip), UDP);
        services.push_str(&unchecked_service(
            &format!("udp-{}", family_word(vip)),
            SocketAddr::new(vip, UDP),
            ("b1", backend),
            "protocol = \"udp\"",
        ));
    }
    for node in cluster.masters() {
        cluster.edit_config(&node, |config| config.push_str(&services));
    }
}

fn udp(node: &Node, like: SocketAddr, port: u16) -> UdpSocket {
    let any = any_address(like.ip());
    let socket = node
        .namespace()
        .enter(|| Ok(UdpSocket::bind((any, port))?))
        .unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Only a datagram's first fragment has ports: none is forwarded, each is counted. What fits a packet
/// arrives, before and after.
#[test]
fn fragments_are_dropped_and_counted() {
    skip_unless_root!();
    let prepare = |cluster: &mut Cluster| {
        push_udp(cluster);
        Ok(())
    };
    let ways = Ways::with(|builder| builder, "", prepare).unwrap();
    for vip in BOTH {
        let target = SocketAddr::new(vip, UDP);
        let client = udp(ways.cluster.client(), target, 0);
        client.connect(target).unwrap();
        let server = udp(ways.cluster.node("b1"), target, UDP);
        let mut buffer = [0; 8192];
        let mut exchange = |length: u8| {
            client.send(&vec![length; length.into()]).unwrap();
            let (received, from) = server.recv_from(&mut buffer).unwrap();
            assert_eq!((received, buffer[0]), (usize::from(length), length));
            server.send_to(b"yes", from).unwrap();
            assert_eq!(client.recv(&mut buffer).unwrap(), 3);
        };
        exchange(100);
        let before = ways.cluster.reason("m1", Reason::Fragment).unwrap();
        client.send(&[0x5a; 4000]).unwrap();
        wait_until("three fragments to be counted", PATIENCE, || {
            let counted = ways.cluster.reason("m1", Reason::Fragment)?;
            Ok((counted == before + 3).then_some(()))
        })
        .unwrap();
        // The next one that arrives is this one.
        exchange(200);
    }
}

/// Links with an MTU of 9000: frames do not fit a page, and arrive whole by every way, both ways.
#[test]
fn frames_over_a_page_work() {
    skip_unless_root!();
    let ways = Ways::with(|builder| builder.mtu(9000), "", |_| Ok(())).unwrap();
    for path in ways.paths() {
        let wire = Capture::start(ways.cluster.net(), "tcp and greater 8000", PATIENCE).unwrap();
        let (client, server) = ways.connect(path, None).unwrap();
        transfer(&client, &server, MUCH).unwrap_or_else(|error| panic!("{path}: {error:#}"));
        transfer(&server, &client, MUCH).unwrap_or_else(|error| panic!("{path}: {error:#}"));
        let port = path.way.port();
        for words in [format!(".{port}: Flags"), format!(".{port} > ")] {
            let what = format!("large frames with {words}");
            let seen = || Ok((wire.lines(&words).len() >= 50).then_some(()));
            wait_until(&what, PATIENCE, seen).unwrap();
        }
    }
}

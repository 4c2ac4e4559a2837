//! Floods of spoofed segments while real clients work: nobody notices.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
};
use lb_common::{
    abi::{Address, Flow, FlowKey},
    headers::TcpHeader,
    reason::Reason,
};
use lb_tests::{
    cluster::{Cluster, PATIENCE},
    control_plane::{BOTH, VIP4, VIP6},
    endpoint::{talk, transfer},
    flood::send_frames,
    packet::{Frame, V4, V6},
    process::wait_until,
    skip_unless_root,
    steady::{Steady, failures, slowest},
    watch::Watches,
    ways::{Way, Ways},
};

/// Segments of each flood: 100,000 of each family.
const FLOOD: u32 = 200_000;
/// How many of them must have been looked at by the owner at least: a link may lose some.
const SEEN: u64 = 150_000;
const PACE: Duration = Duration::from_millis(20);

/// Segments with these flags from `198.18.0.0/15` and `fd99::/64` to ports of the VIPs.
fn flood(cluster: &Cluster, ports: &[u16], flags: u8) {
    let (from, to) = (cluster.client(), cluster.node("m1").mac());
    let mac = from.mac();
    let begin = Instant::now();
    let before = packets(cluster);
    let sent = send_frames(from, FLOOD, |number| {
        let [_, a, b, c] = number.to_be_bytes();
        let dport = ports[number as usize / 2 % ports.len()];
        let sport = 1024 + (number % 60_000) as u16;
        // Spread over the sequence space, as real ones are.
        let seq = number.wrapping_mul(2_654_435_761);
        if number % 2 == 0 {
            Frame::<V4>::tcp(flags, seq, seq, &[])
                .macs(mac, to)
                .src([198, 18 + (a & 1), b, c])
                .dst(VIP4.octets())
                .sport(sport)
                .dport(dport)
                .emit()
        } else {
            let mut src = [0; 16];
            src[..2].copy_from_slice(&[0xfd, 0x99]);
            src[13..].copy_from_slice(&[a, b, c]);
            Frame::<V6>::tcp(flags, seq, seq, &[])
                .macs(mac, to)
                .src(src)
                .dst(VIP6.octets())
                .sport(sport)
                .dport(dport)
                .emit()
        }
    })
    .unwrap();
    println!("{sent} frames in {:?}", begin.elapsed());
    let seen = wait_until("the owner to see the flood", PATIENCE, || {
        let seen = packets(cluster) - before;
        Ok((seen >= SEEN).then_some(seen))
    });
    println!("the owner saw {}", seen.unwrap());
}

/// Packets that the owner has looked at.
fn packets(cluster: &Cluster) -> u64 {
    let reasons = cluster.status("m1").unwrap().reasons;
    reasons.iter().map(|count| count.packets).sum()
}

/// Answers to spoofed sources have a way to go, as behind any router.
fn route_everything(cluster: &Cluster) {
    for node in cluster.net().nodes() {
        if node.name() != "client" {
            let (ipv4, ipv6) = (cluster.client().ipv4(), cluster.client().ipv6());
            let namespace = node.namespace();
            namespace
                .ip(&format!("route add default via {ipv4}"))
                .unwrap();
            namespace
                .ip(&format!("route add default via {ipv6}"))
                .unwrap();
        }
    }
}

/// The keys of the owner's conntrack, whose clients are real ones.
fn flows<A: Address + Pod + Ord + Into<IpAddr>>(
    cluster: &Cluster,
    map: &str,
) -> BTreeSet<(IpAddr, u16, u16)>
where
    FlowKey<A>: Pod,
{
    let data = MapData::from_pin(cluster.node("m1").pins().join(map)).unwrap();
    let table: HashMap<_, FlowKey<A>, Flow> = Map::LruHashMap(data).try_into().unwrap();
    let client = cluster.client();
    let keys = table.keys().map(Result::unwrap);
    keys.map(|key| (key.src().into(), key.sport(), key.dport()))
        .filter(|(src, _, _)| *src == client.address_like(*src))
        .collect()
}

fn all_flows(cluster: &Cluster) -> BTreeSet<(IpAddr, u16, u16)> {
    let mut all = flows::<[u8; 4]>(cluster, "flows4");
    all.extend(flows::<[u8; 16]>(cluster, "flows6"));
    all
}

/// Three masters with idle streams and clients that keep asking: floods of SYNs and then of ACKs
/// end no stream, fail no request, and evict no flow of theirs.
#[test]
fn streams_and_requests_survive_floods_by_local_and_dsr() {
    skip_unless_root!();
    let cluster = Cluster::builder()
        .stand_in(&["--listen", "[::]:6443"])
        .start(|plane| plane.vips = BOTH.into())
        .unwrap();
    route_everything(&cluster);
    let clients = BOTH.map(|vip| {
        let (client, load) = (cluster.client(), cluster.load(vip));
        let watches = Watches::open(client, &load, 20, PATIENCE).unwrap();
        let steady = Steady::start(client, &load, PACE, PATIENCE).unwrap();
        (watches, steady)
    });
    let before = all_flows(&cluster);
    assert!(before.len() >= 20, "{before:?}");
    for (name, flags) in [("SYN", TcpHeader::SYN), ("ACK", TcpHeader::ACK)] {
        let stateless = || cluster.reason("m1", Reason::DsrStateless).unwrap();
        let count = stateless();
        flood(&cluster, &[1644], flags);
        println!(
            "{name}: {} of {FLOOD} went without an entry",
            stateless() - count
        );
        for (watches, steady) in &clients {
            watches.wait_events(2, PATIENCE).unwrap();
            steady.wait_answers(20, PATIENCE).unwrap();
        }
        let after = all_flows(&cluster);
        let lost: Vec<_> = before.difference(&after).collect();
        assert!(lost.is_empty(), "{name}: evicted: {lost:?}");
    }
    for (watches, steady) in clients {
        assert_eq!(watches.ended(), []);
        let outcomes = steady.finish().unwrap();
        println!(
            "{} requests, slowest {:?}",
            outcomes.len(),
            slowest(&outcomes)
        );
        assert_eq!(failures(&outcomes), Vec::<String>::new());
    }
}

/// Transfers that run during a flood arrive whole, by every way; so does what an idle connection
/// says afterwards.
#[test]
fn transfers_by_every_way_survive_a_flood() {
    skip_unless_root!();
    let ways = Ways::start().unwrap();
    route_everything(&ways.cluster);
    let idle: Vec<_> = ways
        .paths()
        .map(|path| ways.connect(path, None).unwrap())
        .collect();
    let busy: Vec<_> = ways
        .paths()
        .map(|path| ways.connect(path, None).unwrap())
        .collect();
    for (one, other) in idle.iter().chain(&busy) {
        talk(one, other).unwrap();
    }
    let before = all_flows(&ways.cluster);
    // By dsr and nat: those of local connections are sockets.
    assert!(before.len() >= 8, "{before:?}");
    for flags in [TcpHeader::SYN, TcpHeader::ACK] {
        std::thread::scope(|scope| {
            let flooding = scope.spawn(|| flood(&ways.cluster, &Way::ALL.map(Way::port), flags));
            let transfers: Vec<_> = busy
                .iter()
                .zip(ways.paths())
                .map(|((client, server), path)| {
                    let all = move || {
                        transfer(server, client, 1_000_000)?;
                        transfer(client, server, 1_000_000)
                    };
                    (path, scope.spawn(all))
                })
                .collect();
            for (path, done) in transfers {
                let done = done.join().unwrap();
                done.unwrap_or_else(|error| panic!("{path}: {error:#}"));
            }
            flooding.join().unwrap();
        });
        for (one, other) in &idle {
            talk(one, other).unwrap();
        }
        let after = all_flows(&ways.cluster);
        let lost: Vec<_> = before.difference(&after).collect();
        assert!(lost.is_empty(), "evicted: {lost:?}");
    }
    let reason = |reason| ways.cluster.reason("m1", reason).unwrap();
    println!("nat: {} dropped", reason(Reason::Flood));
    // New connections are made as before.
    for path in ways.paths() {
        let (client, server) = ways.connect(path, None).unwrap();
        talk(&client, &server).unwrap();
    }
}

//! What an operator sees of the data plane, and what is collected there: `xvip flows`, `trace` and
//! `explain`, and the end of entries that are over.

use std::{collections::BTreeMap, path::Path};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
};
use lb_common::{
    abi::{Flow, FlowKey, NatReturn},
    conntrack::{ENDED_SECONDS, FlowState},
    headers::IPPROTO_TCP,
};
use lb_tests::{
    cluster::{Cluster, PATIENCE},
    control_plane::{BOTH, VIP4},
    process::{output, wait_until},
    skip_unless_root,
    watch::Watches,
};
use lb_user::io::clock;
use serde_json::Value;

/// Watch streams for each VIP.
const STREAMS: usize = 12;

/// The lines of a command that writes JSON objects.
fn objects(cluster: &Cluster, node: &str, arguments: &[&str]) -> Vec<Value> {
    let text = output(&mut cluster.cli(node, arguments).unwrap()).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What a command says when it refuses.
fn refusal(cluster: &Cluster, node: &str, arguments: &[&str]) -> String {
    let refused = cluster.cli(node, arguments).unwrap().output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(refused.stdout.is_empty(), "{refused:?}");
    String::from_utf8(refused.stderr).unwrap()
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap()
}

/// Long-lived connections by nat: each is listed with its client, backend and state; filters choose
/// among them, counts add up, and names that are not there are refused with those that are.
#[test]
fn flows_are_listed_filtered_and_counted() {
    skip_unless_root!();
    let cluster = Cluster::builder()
        .masters(1)
        .plain_backends(2)
        .stand_in(&["--listen", "[::]:6443"])
        .start(|plane| {
            plane.vips = BOTH.into();
            plane.backends.remove(0);
        })
        .unwrap();
    let watches = BOTH.map(|vip| {
        let load = cluster.load(vip);
        Watches::open(cluster.client(), &load, STREAMS, PATIENCE).unwrap()
    });
    for (watches, vip) in watches.iter().zip(BOTH) {
        let client = cluster.client().address_like(vip);
        let vip = vip.to_string();
        let flows = objects(&cluster, "m1", &["flows", "--json", "--vip", &vip]);
        assert_eq!(flows.len(), STREAMS, "{flows:?}");
        let mut by_node = BTreeMap::new();
        for flow in &flows {
            let from: std::net::SocketAddr = text(flow, "client").parse().unwrap();
            assert_eq!(from.ip(), client, "{flow}");
            assert_eq!(
                flow["nat_port"],
                from.port(),
                "the client's own port is free: {flow}"
            );
            assert_eq!(text(flow, "method"), "nat", "{flow}");
            assert_eq!(text(flow, "state"), "established", "{flow}");
            assert!(flow["idle_seconds"].as_u64().unwrap() < 60, "{flow}");
            *by_node.entry(text(flow, "backend").to_owned()).or_default() += 1;
        }
        assert_eq!(by_node, watches.by_node());
    }

    let listed = |arguments: &[&str]| {
        let arguments = [&["flows", "--json"], arguments].concat();
        objects(&cluster, "m1", &arguments).len()
    };
    assert_eq!(listed(&[]), 2 * STREAMS);
    assert_eq!(listed(&["--client", "10.77.0.0/24"]), STREAMS);
    assert_eq!(listed(&["--client", "10.78.0.0/24"]), 0);
    assert_eq!(listed(&["--limit", "5"]), 5);
    assert_eq!(listed(&["--state", "fin"]), 0);
    let (b1, b2) = (listed(&["--backend", "b1"]), listed(&["--backend", "b2"]));
    assert_eq!(b1 + b2, 2 * STREAMS);
    let counts = objects(
        &cluster,
        "m1",
        &["flows", "--json", "--count", "--backend", "b1"],
    );
    let counted: u64 = counts
        .iter()
        .map(|count| count["flows"].as_u64().unwrap())
        .sum();
    assert_eq!(counted, b1 as u64, "{counts:?}");
    let table = output(&mut cluster.cli("m1", &["flows", "--limit", "5"]).unwrap()).unwrap();
    assert!(table.starts_with("CLIENT ") && table.ends_with("5 entries, and there are more\n"));

    let said = refusal(&cluster, "m1", &["flows", "--backend", "b3"]);
    assert!(
        said.contains("no backend is named \"b3\" (there are: b1, b2)"),
        "{said}"
    );
    let said = refusal(&cluster, "m1", &["flows", "--service", "nope"]);
    assert!(
        said.contains("no service is named \"nope\" (there are: "),
        "{said}"
    );
}

/// A map of a node, by its pin.
fn map<K: Pod, V: Pod>(pins: &Path, name: &str) -> HashMap<MapData, K, V> {
    let data = MapData::from_pin(pins.join(name)).unwrap();
    HashMap::try_from(Map::LruHashMap(data)).unwrap()
}

type Key = FlowKey<[u8; 4]>;
type Return = NatReturn<[u8; 4]>;

/// Entries that are over, of every kind, go; what is in use stays, and so does a return entry whose
/// flow is there.
#[test]
fn entries_that_are_over_are_collected() {
    skip_unless_root!();
    let cluster = Cluster::builder()
        .masters(1)
        .plain_backends(1)
        .start(|plane| {
            plane.backends.remove(0);
        })
        .unwrap();
    let watches = Watches::open(cluster.client(), &cluster.load(VIP4), 4, PATIENCE).unwrap();
    let pins = cluster.node("m1").pins();
    let mut flows = map::<Key, Flow>(&pins, "flows4");
    let mut half_flows = map::<Key, Flow>(&pins, "half_flows4");
    let mut returns = map::<Key, Return>(&pins, "returns4");
    let in_use: Vec<(Key, Flow)> = flows.iter().flatten().collect();
    let (_, known) = in_use.first().unwrap();
    let backend = known.backend();

    let vip = VIP4.octets();
    let key = |client: u16| Key::new([192, 0, 2, 1], client, vip, 1644, IPPROTO_TCP);
    let return_key = |port: u16| Key::new([10, 77, 0, 12], 6443, vip, port, IPPROTO_TCP);
    let back = |client: u16| Return::new([192, 0, 2, 1], client, 1644, backend, 1, [2; 6]);
    let now = clock::monotonic_seconds();
    let old = now
        .checked_sub(ENDED_SECONDS + 1)
        .expect("a machine that just booted");
    let flow = |backend, state, at| Flow::new(backend, 0, 0, state, at).in_epoch(known.epoch());
    let other_epoch = Flow::new(backend, 0, 0, FlowState::Established, old)
        .in_epoch(known.epoch().wrapping_add(1));
    for (client, entry) in [
        (1, flow(backend, FlowState::Syn, old)),
        (2, flow(backend, FlowState::Fin, old)),
        (3, flow(backend, FlowState::Closed, old)),
        (4, other_epoch),
        (5, flow(999, FlowState::Established, old)),
    ] {
        flows.insert(key(client), entry, 0).unwrap();
        half_flows.insert(key(client + 100), entry, 0).unwrap();
    }
    // Nobody uses the first; the flow of the second lives, and is in use as far as anybody can tell.
    returns.insert(return_key(5001), back(6), 0).unwrap();
    returns.insert(return_key(5002), back(7), 0).unwrap();
    let living = Flow::new(backend, 5002, 0, FlowState::Established, now).in_epoch(known.epoch());
    flows.insert(key(7), living, 0).unwrap();

    wait_until("what is over to go", 3 * PATIENCE, || {
        let flows = (1..=5).any(|client| flows.get(&key(client), 0).is_ok());
        let half = (101..=105).any(|client| half_flows.get(&key(client), 0).is_ok());
        let orphan = returns.get(&return_key(5001), 0).is_ok();
        Ok((!flows && !half && !orphan).then_some(()))
    })
    .unwrap();
    assert!(flows.get(&key(7), 0).is_ok() && returns.get(&return_key(5002), 0).is_ok());
    for (key, _) in in_use {
        assert!(flows.get(&key, 0).is_ok(), "{key:?}");
    }
    watches.wait_events(2, PATIENCE).unwrap();

    let conntrack = cluster.status("m1").unwrap().conntrack;
    for (cause, least) in [
        ("half_open", 2),
        ("ended", 4),
        ("reset", 2),
        ("no_backend", 2),
    ] {
        let count = conntrack.deleted.get(cause).copied().unwrap_or(0);
        assert!(count >= least, "{cause}: {conntrack:?}");
    }
    assert!(conntrack.deleted.contains_key("orphan"), "{conntrack:?}");
    assert!(conntrack.scans >= 2, "{conntrack:?}");
    assert_eq!(
        conntrack.entries["flows4"]["established"], 5,
        "{conntrack:?}"
    );
}

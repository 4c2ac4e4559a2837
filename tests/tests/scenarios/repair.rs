//! Somebody else changes addresses and tables: xvip puts them right.

use std::{collections::BTreeSet, net::IpAddr};

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData},
};
use lb_common::abi::{
    Backend, MacKey, MaglevTable, Node, ReplyPort, Service, ServiceKey, Uplink, UplinkKey, Vip,
};
use lb_tests::{cluster::Cluster, control_plane::BOTH, skip_unless_root};

fn dual_stack() -> Cluster {
    Cluster::builder()
        .stand_in(&["--listen", "[::]:6443"])
        .start(|plane| plane.vips = BOTH.into())
        .unwrap()
}

fn all_is_well(cluster: &Cluster) {
    for vip in BOTH {
        let report = cluster.requests(&cluster.load(vip)).unwrap();
        assert_eq!(report.ok, 1000, "{report}");
        assert!(report.unevenness(3) <= 10, "{report}");
    }
}

/// Addresses that somebody removes come back: the owner's own, and those on lo.
#[test]
fn removed_addresses_come_back() {
    skip_unless_root!();
    let cluster = dual_stack();
    for vip in BOTH {
        let prefix = |interface: &str| match vip {
            IpAddr::V4(_) if interface == "eth0" => 24,
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        for (node, interface) in [("m1", "eth0"), ("m1", "lo"), ("m2", "lo")] {
            cluster.wait_has(node, interface, vip, true).unwrap();
            let command = format!("addr del {vip}/{} dev {interface}", prefix(interface));
            cluster.node(node).namespace().ip(&command).unwrap();
            cluster.wait_has(node, interface, vip, true).unwrap();
        }
    }
    all_is_well(&cluster);
}

/// An address that a crashed controller, or a careless operator, left behind is removed: at start
/// on a node that is not the owner, and at once while xvip runs.
#[test]
fn stale_addresses_are_removed() {
    skip_unless_root!();
    let mut cluster = dual_stack();
    let add = |cluster: &Cluster, node: &str| {
        let namespace = cluster.node(node).namespace();
        for address in ["10.77.0.100/24", "fd77::100/64"] {
            namespace.add_address(address, "eth0").unwrap();
        }
    };
    cluster.kill_xvip("m2").unwrap();
    add(&cluster, "m2");
    add(&cluster, "m3");
    for vip in BOTH {
        cluster.wait_has("m3", "eth0", vip, false).unwrap();
        assert!(cluster.has("m2", "eth0", vip).unwrap());
    }
    cluster.start_xvip("m2").unwrap();
    for vip in BOTH {
        cluster.wait_has("m2", "eth0", vip, false).unwrap();
        assert!(cluster.has("m2", "lo", vip).unwrap());
    }
    cluster.wait_settled("m1").unwrap();
    all_is_well(&cluster);
}

/// Whether a damage is repaired.
type Repaired = (&'static str, Box<dyn Fn() -> bool>);

fn hash<K: Pod, V: Pod>(cluster: &Cluster, map: &str) -> HashMap<MapData, K, V> {
    let data = MapData::from_pin(cluster.node("m1").pins().join(map)).unwrap();
    Map::HashMap(data).try_into().unwrap()
}

fn array<V: Pod>(cluster: &Cluster, map: &str) -> Array<MapData, V> {
    let data = MapData::from_pin(cluster.node("m1").pins().join(map)).unwrap();
    Map::Array(data).try_into().unwrap()
}

/// Deletes all entries of a hash map; repaired are they when every key is there again.
fn empty<K: Pod + Ord, V: Pod>(cluster: &Cluster, map: &'static str) -> Repaired {
    let keys = |table: &HashMap<MapData, K, V>| {
        let keys: BTreeSet<K> = table.keys().map(Result::unwrap).collect();
        keys
    };
    let mut table = hash::<K, V>(cluster, map);
    let before = keys(&table);
    assert!(!before.is_empty(), "{map}");
    for key in &before {
        table.remove(key).unwrap();
    }
    (map, Box::new(move || keys(&table) == before))
}

/// Clears the first backend.
fn clear_backend(cluster: &Cluster) -> Repaired {
    let mut table = array::<Backend<[u8; 4]>>(cluster, "backends4");
    let before = table.get(&1, 0).unwrap();
    assert_ne!(before, Backend::EMPTY);
    table.set(1, Backend::EMPTY, 0).unwrap();
    let repaired = move || table.get(&1, 0).unwrap() == before;
    ("backends4", Box::new(repaired))
}

/// Clears the Maglev table of the IPv6 service; the right one may come back in another place.
fn clear_slots(cluster: &Cluster) -> Repaired {
    let services = hash::<ServiceKey<[u8; 16]>, Service>(cluster, "services6");
    let mut tables = array::<MaglevTable>(cluster, "maglev");
    let in_force = move || {
        let service = services.iter().next()?.unwrap().1;
        Some(service.table())
    };
    let index = in_force().unwrap();
    let before = tables.get(&index, 0).unwrap();
    assert!(before != MaglevTable::EMPTY);
    tables.set(index, MaglevTable::EMPTY, 0).unwrap();
    let repaired = move || in_force().is_some_and(|i| tables.get(&i, 0).unwrap() == before);
    ("maglev", Box::new(repaired))
}

/// Entries of the data plane's tables that somebody deletes or changes are written again.
#[test]
fn changed_tables_are_repaired() {
    skip_unless_root!();
    let cluster = dual_stack();
    let damage = [
        clear_backend(&cluster),
        clear_slots(&cluster),
        empty::<ServiceKey<[u8; 4]>, Service>(&cluster, "services4"),
        empty::<[u8; 16], Vip>(&cluster, "vips6"),
        empty::<ServiceKey<[u8; 16]>, ReplyPort>(&cluster, "reply_ports6"),
        empty::<MacKey, Node>(&cluster, "peer_macs"),
        empty::<UplinkKey, Uplink>(&cluster, "uplinks"),
    ];
    for (map, repaired) in damage {
        let what = format!("{map} to be repaired");
        cluster
            .wait(&what, || Ok(repaired().then_some(())))
            .unwrap();
    }
    all_is_well(&cluster);
    let said = cluster.xvip("m1").output();
    assert!(said.contains("somebody else changed"), "{said}");
}

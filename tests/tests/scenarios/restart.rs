//! The controller ends, returns, or never does: the data plane goes on without it.

use std::process::Command;

use lb_common::reason::Reason;
use lb_tests::{
    cluster::{Cluster, PATIENCE},
    control_plane::{BOTH, VIP4},
    process::output,
    skip_unless_root,
    watch::Watches,
};
use lb_user::core::frame::mac_text;

fn dual_stack() -> Cluster {
    Cluster::builder()
        .stand_in(&["--listen", "[::]:6443"])
        .start(|plane| plane.vips = BOTH.into())
        .unwrap()
}

/// Ids of the programs' links that keep their identity over a restart, as bpftool prints them for
/// the pins of a node.
fn links(cluster: &Cluster, node: &str) -> Vec<(String, u64)> {
    let directory = cluster.node(node).pins().join("links");
    let mut links: Vec<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter_map(|pin| {
            let name = pin.file_name()?.to_str()?.to_owned();
            let mut command = Command::new("bpftool");
            command.args(["--json", "link", "show", "pinned"]).arg(&pin);
            let shown: serde_json::Value =
                serde_json::from_str(&output(&mut command).ok()?).ok()?;
            Some((name, shown.get("id")?.as_u64()?))
        })
        .filter(|(name, _)| name.starts_with("xdp") || name.starts_with("tc"))
        .collect();
    links.sort();
    links
}

/// Killed and started again, or stopped and started again: flows in progress go on, the programs
/// stay attached by the same links, and the counters go on from where they were.
#[test]
fn a_restarted_controller_adopts_what_it_finds() {
    skip_unless_root!();
    let mut cluster = dual_stack();
    let watches = BOTH.map(|vip| {
        let load = cluster.load(vip);
        Watches::open(cluster.client(), &load, 12, PATIENCE).unwrap()
    });
    for kill in [true, false] {
        let report = cluster.requests(&cluster.load(VIP4)).unwrap();
        assert_eq!(report.ok, 1000, "{report}");
        let before = cluster.service("m1").unwrap();
        let (attached, dsr) = (
            links(&cluster, "m1"),
            cluster.reason("m1", Reason::Dsr).unwrap(),
        );
        assert_eq!(attached.len(), 2, "{attached:?}");
        if kill {
            cluster.kill_xvip("m1").unwrap();
        } else {
            cluster.stop_xvip("m1").unwrap();
        }
        assert_eq!(links(&cluster, "m1"), attached);
        cluster.start_xvip("m1").unwrap();
        cluster.wait_settled("m1").unwrap();
        assert_eq!(links(&cluster, "m1"), attached);
        let after = cluster.service("m1").unwrap();
        assert!(after.packets >= before.packets, "{after:?}");
        assert!(
            after.connections >= 1000 && after.connections >= before.connections,
            "{after:?}"
        );
        assert!(cluster.reason("m1", Reason::Dsr).unwrap() >= dsr);
        for watches in &watches {
            watches.wait_events(2, PATIENCE).unwrap();
        }
    }
}

/// No controller runs on any node: as long as the owner's lease and neighbours' entries last,
/// new connections are forwarded, and established ones go on beyond that.
#[test]
fn the_data_plane_forwards_without_any_controller() {
    skip_unless_root!();
    let mut cluster = dual_stack();
    let load = cluster.load(VIP4);
    let watches = Watches::open(cluster.client(), &load, 12, PATIENCE).unwrap();
    let mac = mac_text(cluster.node("m1").mac());
    for node in ["m3", "m2", "m1"] {
        cluster.kill_xvip(node).unwrap();
    }
    // What a neighbour with a long memory has. Nobody answers for the VIP any more.
    for vip in BOTH {
        let entry = format!("neigh replace {vip} lladdr {mac} dev eth0 nud permanent");
        cluster.client().namespace().ip(&entry).unwrap();
        cluster.wait_has("m1", "eth0", vip, false).unwrap();
    }
    for vip in BOTH {
        let report = cluster.requests(&cluster.load(vip)).unwrap();
        assert_eq!(report.ok, 1000, "{report}");
        assert!(report.unevenness(3) <= 10, "{report}");
    }
    watches.wait_events(2, PATIENCE).unwrap();
}

/// `xvip detach` removes pins, programs, addresses and settings, and is refused while a controller
/// runs.
#[test]
fn detach_leaves_nothing_in_the_kernel() {
    skip_unless_root!();
    let mut cluster = dual_stack();
    let sysctl = |cluster: &Cluster| {
        let read = |name: &str| {
            let path = format!("/proc/sys/net/ipv4/conf/all/{name}");
            Ok(std::fs::read_to_string(path)?.trim().to_owned())
        };
        let names = ["arp_ignore", "arp_announce"];
        let m1 = cluster.node("m1").namespace();
        m1.enter(|| {
            names
                .into_iter()
                .map(read)
                .collect::<anyhow::Result<Vec<_>>>()
        })
    };
    assert_eq!(sysctl(&cluster).unwrap(), ["1", "2"]);
    let refused = output(&mut cluster.cli("m1", &["detach"]).unwrap()).unwrap_err();
    println!("{refused:#}");
    cluster.stop_xvip("m1").unwrap();
    let removed = output(&mut cluster.cli("m1", &["detach"]).unwrap()).unwrap();
    println!("{removed}");
    let m1 = cluster.node("m1");
    assert!(!m1.pins().exists());
    for vip in BOTH {
        for interface in ["lo", "eth0"] {
            assert!(
                !cluster.has("m1", interface, vip).unwrap(),
                "{vip} on {interface}"
            );
        }
    }
    let link = m1.namespace().ip("-d link show dev eth0").unwrap();
    assert!(!link.contains("xdp"), "{link}");
    let attached = m1.run("bpftool", &["net", "show", "dev", "eth0"]).unwrap();
    assert!(
        !attached.contains("tc_egress") && !attached.contains("id "),
        "{attached}"
    );
    let cgroup = m1.cgroup().to_str().unwrap().to_owned();
    let hooks = output(Command::new("bpftool").args(["cgroup", "show", &cgroup])).unwrap();
    assert!(!hooks.contains("connect"), "{hooks}");
    assert_eq!(sysctl(&cluster).unwrap(), ["0", "0"]);
    let again = output(&mut cluster.cli("m1", &["detach"]).unwrap()).unwrap();
    assert!(again.contains("nothing to remove"), "{again}");
    // The others go on.
    cluster.wait_settled("m2").unwrap();
}

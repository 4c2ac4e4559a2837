//! Uplinks that go and come back, lose their name, or have their programs meddled with.

use std::process::Command;

use anyhow::Result;
use aya::programs::TcAttachType;
use lb_tests::{
    client::Load,
    cluster::{Cluster, PATIENCE},
    control_plane::{BOTH, VIP4, be_patient},
    process::output,
    skip_unless_root,
    tc_stub::{TcStub, chain},
    watch::Watches,
};
use lb_user::admin::model::{AttachStatus, AttachedMode, VrrpState};

fn dual_stack() -> Cluster {
    Cluster::builder()
        .stand_in(&["--listen", "[::]:6443", "--plain"])
        .start(|plane| {
            plane.vips = BOTH.into();
            be_patient(plane);
        })
        .unwrap()
}

fn all_is_well(cluster: &Cluster) {
    for vip in BOTH {
        let load = Load {
            plain: true,
            ..cluster.load(vip)
        };
        let report = cluster.requests(&load).unwrap();
        assert_eq!(report.ok, 1000, "{report}");
    }
}

fn attached(cluster: &Cluster, node: &str) -> Result<Vec<AttachStatus>> {
    Ok(cluster.status(node)?.data_plane.attach)
}

/// Waits until the uplink at `position` of the configuration is attached in `mode`.
fn wait_mode(cluster: &Cluster, node: &str, position: usize, mode: AttachedMode) {
    let what = format!("uplink {position} of {node} to be attached: {mode}");
    cluster
        .wait(&what, || {
            let all = attached(cluster, node)?;
            let found = all.get(position).is_some_and(|own| own.mode == mode);
            Ok(found.then_some(()))
        })
        .unwrap();
}

/// The owner's card is pulled: another node takes over. When it is back, with another index, the
/// node is the owner again: programs, tables, VRRP and announcements are there on the new one.
#[test]
fn a_pulled_uplink_works_again_when_it_is_back() {
    skip_unless_root!();
    let mut cluster = dual_stack();
    cluster.net().unplug("m1").unwrap();
    wait_mode(&cluster, "m1", 0, AttachedMode::None);
    cluster.wait_state("m2", VrrpState::Active).unwrap();
    let said = cluster.xvip("m1").output();
    assert!(said.contains("waiting for it"), "{said}");
    cluster.net_mut().plug("m1").unwrap();
    wait_mode(&cluster, "m1", 0, AttachedMode::Native);
    cluster.wait_settled("m1").unwrap();
    for vip in BOTH {
        cluster.wait_has("m1", "eth0", vip, true).unwrap();
    }
    all_is_well(&cluster);
    let pins = std::fs::read_dir(cluster.node("m1").pins().join("links")).unwrap();
    let pins: Vec<_> = pins.map(|pin| pin.unwrap().file_name()).collect();
    let own = pins.iter().filter(|name| {
        let name = name.to_str().unwrap();
        name.starts_with("xdp") || name.starts_with("tc")
    });
    assert_eq!(own.count(), 2, "those of the old one are gone: {pins:?}");
}

/// An interface that loses the configured name loses its programs; the name comes back, and so do
/// they.
#[test]
fn the_configured_name_decides() {
    skip_unless_root!();
    let cluster = Cluster::builder().masters(2).start(|_| {}).unwrap();
    let m1 = cluster.node("m1").namespace();
    m1.ip("link set eth0 down").unwrap();
    m1.ip("link set eth0 name other").unwrap();
    m1.ip("link set other up").unwrap();
    wait_mode(&cluster, "m1", 0, AttachedMode::None);
    cluster
        .wait("the programs to leave", || {
            let left = m1.enter(|| chain("other", TcAttachType::Egress))?;
            let xdp = m1.ip("link show dev other")?.contains("xdp");
            Ok((left.is_empty() && !xdp).then_some(()))
        })
        .unwrap();
    cluster.wait_state("m2", VrrpState::Active).unwrap();
    m1.ip("link set other down").unwrap();
    m1.ip("link set other name eth0").unwrap();
    m1.ip("link set eth0 up").unwrap();
    wait_mode(&cluster, "m1", 0, AttachedMode::Native);
    cluster.wait_settled("m1").unwrap();
    let report = cluster.requests(&cluster.load(VIP4)).unwrap();
    assert_eq!(report.ok, 1000, "{report}");
}

/// Of two uplinks one is missing at the start: xvip says so, works with the other one, and attaches
/// to the missing one when it comes.
#[test]
fn a_missing_uplink_is_waited_for() {
    skip_unless_root!();
    let mut cluster = Cluster::builder().masters(1).prepare(|_| {}).unwrap();
    cluster.edit_config("m1", |config| {
        *config = config.replace("[\"eth0\"]", "[\"eth7\", \"eth0\"]");
    });
    cluster.start_xvip("m1").unwrap();
    cluster.wait_settled("m1").unwrap();
    wait_mode(&cluster, "m1", 0, AttachedMode::None);
    wait_mode(&cluster, "m1", 1, AttachedMode::Native);
    let said = cluster.xvip("m1").output();
    assert!(said.contains("eth7") && said.contains("waiting"), "{said}");
    let report = cluster.requests(&cluster.load(VIP4)).unwrap();
    assert_eq!(report.ok, 1000, "{report}");
    let m1 = cluster.node("m1").namespace();
    m1.ip("link add eth7 type veth peer name far7").unwrap();
    wait_mode(&cluster, "m1", 0, AttachedMode::Native);
    m1.ip("link del eth7").unwrap();
    wait_mode(&cluster, "m1", 0, AttachedMode::None);
}

/// Somebody attaches a tc program before xvip's: xvip is first again at the next audit, says so, and
/// the other program stays.
#[test]
fn the_first_place_is_kept() {
    skip_unless_root!();
    for (side, attach, name) in [
        (TcAttachType::Egress, "native", "tc_egress"),
        (TcAttachType::Ingress, "tc", "tc_ingress"),
    ] {
        let cluster = Cluster::builder()
            .stand_in(&["--listen", "[::]:6443", "--plain"])
            .start(|plane| {
                plane.vips = BOTH.into();
                be_patient(plane);
                plane.node = format!("attach = \"{attach}\"");
            })
            .unwrap();
        let m1 = cluster.node("m1").namespace();
        let load = Load {
            plain: true,
            ..cluster.load(VIP4)
        };
        let watches = Watches::open(cluster.client(), &load, 12, PATIENCE).unwrap();
        // Its thread ends with the closure, the program does not.
        let stranger = m1.enter(|| TcStub::attach_first("eth0", side)).unwrap();
        let order = || m1.enter(|| chain("eth0", side));
        assert_eq!(order().unwrap(), ["stranger", name]);
        cluster
            .wait("xvip's program to be first", || {
                Ok((order()? == [name, "stranger"]).then_some(()))
            })
            .unwrap();
        all_is_well(&cluster);
        watches.wait_events(2, PATIENCE).unwrap();
        let said = cluster.xvip("m1").output();
        assert!(
            said.contains("stranger") && said.contains("repaired"),
            "{said}"
        );
        drop(stranger);
        assert_eq!(order().unwrap(), [name]);
    }
}

/// The route to a backend leaves by an interface that carries no data plane: status says so, and no
/// packet is sent there. Once the route is right, the backend serves.
#[test]
fn a_backend_behind_no_uplink_is_shown() {
    skip_unless_root!();
    let mut cluster = Cluster::builder()
        .masters(1)
        .plain_backends(1)
        .prepare(|_| {})
        .unwrap();
    let m1 = cluster.node("m1");
    let to = format!("{}/32", cluster.node("b1").ipv4());
    for command in [
        "link add back0 type veth peer name back1",
        "link set back0 up",
        "link set back1 up",
        &format!("route add {to} dev back0"),
    ] {
        m1.namespace().ip(command).unwrap();
    }
    cluster.start_xvip("m1").unwrap();
    cluster.wait_state("m1", VrrpState::Active).unwrap();
    let why = cluster
        .wait("b1 to be unresolved", || {
            Ok(cluster.backend("m1", "b1")?.unresolved)
        })
        .unwrap();
    assert!(why.contains("back0") && why.contains("no uplink"), "{why}");
    let mut status = cluster.cli("m1", &["status"]).unwrap();
    assert!(output(&mut status).unwrap().contains(&why));
    cluster
        .node("m1")
        .namespace()
        .ip(&format!("route del {to}"))
        .unwrap();
    cluster.wait_settled("m1").unwrap();
    let report = cluster.requests(&cluster.load(VIP4)).unwrap();
    assert_eq!((report.ok, report.by_node.len()), (1000, 2), "{report}");
}

/// Ten thousand routes come and go again and again, as a routing daemon's do: no advert is missed, and
/// what changes for the data plane is still seen.
#[test]
fn flapping_routes_hold_nothing_up() {
    skip_unless_root!();
    let cluster = Cluster::builder()
        .masters(2)
        .start(|plane| "1s".clone_into(&mut plane.advert_interval))
        .unwrap();
    let m1 = cluster.node("m1");
    let before = cluster.vrrp("m1").unwrap();
    let batch = |verb: &str| {
        let lines = (0..10_000_u32).map(|n| {
            let [_, _, high, low] = n.to_be_bytes();
            format!("route {verb} 198.18.{high}.{low}/32 dev eth0\n")
        });
        let file = m1.directory().join(format!("{verb}.batch"));
        std::fs::write(&file, lines.collect::<String>()).unwrap();
        file
    };
    let files = [batch("add"), batch("del")];
    // For at least three adverts, however fast the machine is.
    let mut after = before.clone();
    for round in 0..200 {
        for file in &files {
            let mut ip = m1.namespace().command("ip");
            output(ip.arg("-batch").arg(file)).unwrap();
        }
        after = cluster.vrrp("m1").unwrap();
        if round >= 4 && after.adverts_sent >= before.adverts_sent + 3 {
            break;
        }
    }
    assert_eq!(after.transitions, before.transitions, "{after:?}");
    assert_eq!(cluster.vrrp("m2").unwrap().state, VrrpState::Backup);
    assert!(after.adverts_sent >= before.adverts_sent + 3, "{after:?}");
    // An unreachable route is a change like those before it.
    let to = format!("{}/32", cluster.node("m2").ipv4());
    m1.namespace()
        .ip(&format!("route add unreachable {to}"))
        .unwrap();
    cluster
        .wait("m2 to be unresolved", || {
            Ok(cluster.backend("m1", "m2")?.unresolved)
        })
        .unwrap();
}

/// Somebody removes the links' pins, or detaches the links themselves: both come back, the former
/// without a moment in which they were not attached.
#[test]
fn removed_links_come_back() {
    skip_unless_root!();
    let cluster = dual_stack();
    let directory = cluster.node("m1").pins().join("links");
    let pins = || {
        let pins = std::fs::read_dir(&directory).unwrap();
        let mut pins: Vec<_> = pins.map(|pin| pin.unwrap().path()).collect();
        pins.retain(|pin| {
            let name = pin.file_name().unwrap().to_str().unwrap();
            name.starts_with("xdp") || name.starts_with("tc")
        });
        pins.sort();
        pins
    };
    let id = |pin: &std::path::Path| {
        let mut command = Command::new("bpftool");
        command.args(["--json", "link", "show", "pinned"]).arg(pin);
        let shown: serde_json::Value = serde_json::from_str(&output(&mut command)?)?;
        Ok::<_, anyhow::Error>(shown["id"].as_u64())
    };
    let before = pins();
    assert_eq!(before.len(), 2, "{before:?}");
    let ids: Vec<_> = before.iter().map(|pin| id(pin).unwrap()).collect();
    for pin in &before {
        std::fs::remove_file(pin).unwrap();
    }
    cluster
        .wait("the pins to come back", || {
            Ok((pins() == before).then_some(()))
        })
        .unwrap();
    let again: Vec<_> = before.iter().map(|pin| id(pin).unwrap()).collect();
    assert_eq!(again, ids, "the same links");
    for (pin, id_before) in before.iter().zip(&ids) {
        let mut command = Command::new("bpftool");
        output(command.args(["link", "detach", "pinned"]).arg(pin)).unwrap();
        cluster
            .wait("another link in its place", || {
                let now = if pin.exists() { id(pin)? } else { None };
                Ok((now.is_some() && now != *id_before).then_some(()))
            })
            .unwrap();
    }
    all_is_well(&cluster);
    let said = cluster.xvip("m1").output();
    assert!(said.contains("pin was removed"), "{said}");
    assert!(said.contains("detached or replaced"), "{said}");
}

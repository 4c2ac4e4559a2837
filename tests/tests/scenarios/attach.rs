//! How the data plane is attached, and what stops xvip from starting.

use std::collections::BTreeSet;

use lb_tests::{
    client::Load,
    cluster::{Cluster, PATIENCE},
    control_plane::{BOTH, VIP4, be_patient},
    skip_unless_root,
    watch::Watches,
};
use lb_user::{
    admin::model::{AttachedMode, Method},
    cli::ExitCode,
};

/// The mode that is asked for is the one that is used and shown; each forwards by local, dsr and
/// nat, little and much.
#[test]
fn every_mode_works_and_is_shown() {
    skip_unless_root!();
    let modes = [
        ("native", AttachedMode::Native),
        ("tc", AttachedMode::Tc),
        ("generic", AttachedMode::Generic),
    ];
    for (wanted, expected) in modes {
        let cluster = Cluster::builder()
            .masters(2)
            .plain_backends(1)
            .stand_in(&["--listen", "[::]:6443", "--plain"])
            .start(|plane| {
                plane.vips = BOTH.into();
                be_patient(plane);
                plane.node = format!("attach = \"{wanted}\"");
            })
            .unwrap();
        let shown = cluster.status("m1").unwrap().data_plane.attach;
        assert_eq!(shown.len(), 1, "{shown:?}");
        assert_eq!(
            (shown[0].interface.as_str(), shown[0].mode),
            ("eth0", expected)
        );
        for vip in BOTH {
            let many = Load {
                requests: 500,
                bytes: 1_000,
                upload: 0,
                ..cluster.bulk(vip)
            };
            for load in [many, cluster.bulk(vip)] {
                let report = cluster.requests(&load).unwrap();
                assert_eq!(report.ok, load.requests, "attach {wanted}: {report}");
                assert_eq!(report.by_node.len(), 3, "attach {wanted}: {report}");
            }
        }
        for node in cluster.net().nodes() {
            let bad = cluster.bad_checksums(node.name()).unwrap();
            assert_eq!(bad, 0, "attach {wanted}: {}", node.name());
        }
        let mut status = cluster.cli("m1", &["status"]).unwrap();
        let text = lb_tests::process::output(&mut status).unwrap();
        assert!(text.contains(&expected.to_string()), "{text}");
    }
}

/// An uplink that is not there is a failure that names those that are.
#[test]
fn a_missing_interface_is_named() {
    skip_unless_root!();
    let mut cluster = Cluster::builder().masters(1).prepare(|_| {}).unwrap();
    cluster.edit_config("m1", |config| *config = config.replace("eth0", "eth7"));
    cluster.start_xvip("m1").unwrap();
    let status = cluster.xvip("m1").wait_exit(PATIENCE).unwrap();
    let said = cluster.xvip("m1").output();
    assert_eq!(status.code(), Some(ExitCode::Failure as i32), "{said}");
    assert!(said.contains("eth7") && said.contains("eth0"), "{said}");
}

/// Without the privileges to load programs xvip ends with the exit code that says so.
#[test]
fn a_missing_privilege_has_its_exit_code() {
    skip_unless_root!();
    let cluster = Cluster::builder().masters(1).prepare(|_| {}).unwrap();
    let unprivileged = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"];
    let mut run = cluster.cli_under("m1", &unprivileged, &["run"]).unwrap();
    let done = run.output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(
        done.status.code(),
        Some(ExitCode::Unsupported as i32),
        "{said}"
    );
}

/// A second controller of the same instance is refused and harms nothing.
#[test]
fn a_second_controller_is_refused() {
    skip_unless_root!();
    let cluster = Cluster::builder().masters(1).start(|_| {}).unwrap();
    let second = cluster.cli("m1", &["run"]).unwrap().output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(
        second.status.code(),
        Some(ExitCode::Failure as i32),
        "{said}"
    );
    assert!(said.contains("already runs"), "{said}");
    let report = cluster.requests(&cluster.load(VIP4)).unwrap();
    assert_eq!(report.ok, 1000, "{report}");
}

/// `auto` uses tc on a veth pair and says why. Local, dsr and nat work, both families, with senders that
/// leave checksums and segments to the hardware and links that know nothing of XDP: a megabyte each way
/// is what was sent.
#[test]
fn tc_forwards_segments_and_unfinished_checksums() {
    skip_unless_root!();
    let cluster = Cluster::builder()
        .masters(2)
        .plain_backends(1)
        .stand_in(&["--listen", "[::]:6443", "--plain"])
        .without_xdp()
        .start(|plane| {
            plane.vips = BOTH.into();
            be_patient(plane);
            plane.node = "attach = \"auto\"".to_owned();
        })
        .unwrap();
    let shown = cluster.status("m1").unwrap().data_plane.attach;
    assert_eq!(shown[0].mode, AttachedMode::Tc);
    let note = shown[0].note.as_deref().unwrap_or_default();
    assert!(note.contains("veth"), "{note}");
    let method = |backend| cluster.backend("m1", backend).unwrap().method;
    assert_eq!(
        ["m1", "m2", "b1"].map(method),
        [Method::Local, Method::Dsr, Method::Nat]
    );
    for vip in BOTH {
        let report = cluster.requests(&cluster.bulk(vip)).unwrap();
        println!("{vip}: {report}");
        assert_eq!(report.ok, 40, "{report}");
        assert_eq!(report.by_node.len(), 3, "{report}");
        let own = cluster.client().address_like(vip);
        assert_eq!(report.client_addresses, BTreeSet::from([own, vip]));
    }
}

/// Where the uplink is a bridge `auto` uses tc, says why, and it works. It goes on when native XDP is asked
/// for at run time.
#[test]
fn auto_uses_tc_on_a_bridge() {
    skip_unless_root!();
    let mut cluster = Cluster::builder()
        .masters(2)
        .plain_backends(1)
        .stand_in(&["--listen", "[::]:6443", "--plain"])
        .without_xdp()
        .bridged()
        .start(|plane| {
            plane.vips = BOTH.into();
            plane.node = "attach = \"auto\"".to_owned();
            be_patient(plane);
        })
        .unwrap();
    let shown = cluster.status("m1").unwrap().data_plane.attach;
    assert_eq!(shown[0].mode, AttachedMode::Tc);
    let note = shown[0].note.as_deref().unwrap_or_default();
    assert!(note.contains("bridge"), "{note}");
    let works = |cluster: &Cluster| {
        for vip in BOTH {
            let report = cluster.requests(&cluster.bulk(vip)).unwrap();
            assert_eq!(report.ok, 40, "{report}");
            assert_eq!(report.by_node.len(), 3, "{report}");
        }
    };
    works(&cluster);
    // What cannot be had is no reason to do without what there is.
    cluster.edit_all(|config| {
        *config = config.replace("attach = \"auto\"", "attach = \"native\"");
    });
    cluster.reload_all().unwrap();
    cluster
        .wait("the refusal to be shown", || {
            let shown = cluster.status("m1")?.data_plane.attach;
            let note = shown[0].note.as_deref().unwrap_or_default();
            assert_eq!(shown[0].mode, AttachedMode::Tc, "{note}");
            Ok(note.ends_with("so tc goes on").then_some(()))
        })
        .unwrap();
    works(&cluster);
}

/// `auto` is native XDP where the driver has it (a tap), else tc, with what the kernel said (a macvlan).
/// Beside an interface without native XDP no other one has it either: it could not send packets there.
/// `native` refuses to start with such a driver.
#[test]
fn auto_takes_what_the_drivers_have() {
    skip_unless_root!();
    let mut cluster = Cluster::builder()
        .masters(1)
        .prepare(|plane| plane.node = "attach = \"auto\"".to_owned())
        .unwrap();
    let ip = |cluster: &Cluster, command: &str| {
        cluster.node("m1").namespace().ip(command).unwrap();
    };
    ip(&cluster, "tuntap add dev tap0 mode tap");
    ip(&cluster, "link set tap0 up");
    cluster.edit_config("m1", |config| {
        *config = config
            .replace("[\"eth0\"]", "[\"tap0\", \"mac0\"]")
            .replace("interface = \"eth0\"", "interface = \"tap0\"");
    });
    cluster.start_xvip("m1").unwrap();
    let (native, tc, none) = (AttachedMode::Native, AttachedMode::Tc, AttachedMode::None);
    wait_modes(&cluster, &[native, none]);
    ip(&cluster, "link add mac0 link tap0 type macvlan mode bridge");
    let notes = wait_modes(&cluster, &[tc, tc]);
    assert!(notes[0].contains("out of mac0"), "{notes:?}");
    assert!(notes[1].contains("native XDP was refused"), "{notes:?}");
    let said = cluster.xvip("m1").output();
    assert!(notes.iter().all(|note| said.contains(note)), "{said}");
    ip(&cluster, "link del mac0");
    wait_modes(&cluster, &[native, none]);
    cluster.stop_xvip("m1").unwrap();
    ip(&cluster, "link add mac0 link tap0 type macvlan mode bridge");
    cluster.edit_config("m1", |config| {
        *config = config.replace("attach = \"auto\"", "attach = \"native\"");
    });
    cluster.start_xvip("m1").unwrap();
    let status = cluster.xvip("m1").wait_exit(PATIENCE).unwrap();
    let said = cluster.xvip("m1").output();
    assert_eq!(status.code(), Some(ExitCode::Failure as i32), "{said}");
    assert!(said.contains("mac0"), "{said}");
}

/// Waits until the first master's uplinks are attached in these modes; their notes.
fn wait_modes(cluster: &Cluster, modes: &[AttachedMode]) -> Vec<String> {
    let notes = cluster.wait(&format!("uplinks in modes {modes:?}"), || {
        let Ok(status) = cluster.status("m1") else {
            // Not yet started.
            return Ok(None);
        };
        let shown = status.data_plane.attach;
        let reached = shown.iter().map(|own| &own.mode).eq(modes);
        Ok(reached.then(|| {
            let notes = shown.into_iter().map(|own| own.note.unwrap_or_default());
            notes.collect()
        }))
    });
    notes.unwrap()
}

/// From one mode to another by a restart: established connections go on, and nothing of the old
/// mode is left.
#[test]
fn modes_change_under_established_connections() {
    skip_unless_root!();
    let mut cluster = Cluster::builder()
        .masters(2)
        .plain_backends(1)
        .stand_in(&["--listen", "[::]:6443"])
        .start(|plane| {
            plane.vips = BOTH.into();
            plane.node = "attach = \"native\"".to_owned();
        })
        .unwrap();
    let watches = BOTH.map(|vip| {
        let load = cluster.load(vip);
        Watches::open(cluster.client(), &load, 12, PATIENCE).unwrap()
    });
    let mut before = "native";
    for (now, pins) in [
        ("tc", ["tc_egress", "tc_ingress"]),
        ("generic", ["tc_egress", "xdp_generic"]),
        // Generic and native exclude each other: there is a gap between them.
        ("tc", ["tc_egress", "tc_ingress"]),
        ("native", ["tc_egress", "xdp_native"]),
    ] {
        cluster.kill_xvip("m1").unwrap();
        cluster.edit_config("m1", |config| {
            *config = config.replace(
                &format!("attach = \"{before}\""),
                &format!("attach = \"{now}\""),
            );
        });
        cluster.start_xvip("m1").unwrap();
        cluster.wait_settled("m1").unwrap();
        assert_eq!(attach_pins(&cluster), pins);
        for (vip, watches) in BOTH.iter().zip(&watches) {
            watches.wait_events(2, PATIENCE).unwrap();
            let report = cluster.requests(&cluster.load(*vip)).unwrap();
            assert_eq!(report.ok, 1000, "{now}: {report}");
        }
        before = now;
    }
}

/// Pins of the programs of the first master's uplink, without its index.
fn attach_pins(cluster: &Cluster) -> Vec<String> {
    let pins = std::fs::read_dir(cluster.node("m1").pins().join("links")).unwrap();
    let names = pins.map(|pin| pin.unwrap().file_name().into_string().unwrap());
    let kinds = names.filter_map(|name| Some(name.rsplit_once('_')?.0.to_owned()));
    let of_uplink = |kind: &String| kind.starts_with("xdp_") || kind.starts_with("tc_");
    let mut kinds: Vec<_> = kinds.filter(of_uplink).collect();
    kinds.sort();
    kinds
}

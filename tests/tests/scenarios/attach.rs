//! How the data plane is attached, and what stops xvip from starting.

use std::{collections::BTreeSet, net::IpAddr};

use lb_tests::{
    client::Load,
    cluster::{Cluster, PATIENCE},
    control_plane::{BOTH, VIP4},
    skip_unless_root,
    watch::Watches,
};
use lb_user::{
    admin::model::{AttachedMode, Method},
    cli::ExitCode,
};

/// The mode that is asked for is the one that is used and shown; both forward.
#[test]
fn native_and_generic_attachment_work_and_are_shown() {
    skip_unless_root!();
    let modes = [
        ("auto", AttachedMode::Native),
        ("native", AttachedMode::Native),
        ("generic", AttachedMode::Generic),
    ];
    for (wanted, expected) in modes {
        let cluster = Cluster::builder()
            .masters(2)
            .stand_in(&["--listen", "[::]:6443"])
            .start(|plane| {
                plane.vips = BOTH.into();
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
            let report = cluster.requests(&cluster.load(vip)).unwrap();
            assert_eq!(report.ok, 1000, "attach {wanted}: {report}");
            assert_eq!(report.by_node.len(), 2, "attach {wanted}: {report}");
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

/// What a transfer needs that shows every kind of mistake with segments and checksums: much in both
/// directions.
fn bulk(cluster: &Cluster, vip: IpAddr) -> Load {
    Load {
        requests: 60,
        bytes: 1_000_000,
        upload: 1_000_000,
        ..cluster.load(vip)
    }
}

/// Local, dsr and nat in tc mode, both families, with senders that leave checksums and segments to
/// the hardware and links that know nothing of XDP: a megabyte each way is what was sent.
#[test]
fn tc_forwards_segments_and_unfinished_checksums() {
    skip_unless_root!();
    let cluster = Cluster::builder()
        .masters(2)
        .plain_backends(1)
        .stand_in(&["--listen", "[::]:6443"])
        .without_xdp()
        .start(|plane| {
            plane.vips = BOTH.into();
            plane.node = "attach = \"tc\"".to_owned();
        })
        .unwrap();
    let shown = cluster.status("m1").unwrap().data_plane.attach;
    assert_eq!((shown[0].mode, &shown[0].note), (AttachedMode::Tc, &None));
    let method = |backend| cluster.backend("m1", backend).unwrap().method;
    assert_eq!(
        ["m1", "m2", "b1"].map(method),
        [Method::Local, Method::Dsr, Method::Nat]
    );
    for vip in BOTH {
        let report = cluster.requests(&bulk(&cluster, vip)).unwrap();
        println!("{vip}: {report}");
        assert_eq!(report.ok, 60, "{report}");
        assert_eq!(report.by_node.len(), 3, "{report}");
        let own = cluster.client().address_like(vip);
        assert_eq!(report.client_addresses, BTreeSet::from([own, vip]));
    }
}

/// Where the uplink is a bridge `auto` uses tc, says why, and it works.
#[test]
fn auto_uses_tc_on_a_bridge() {
    skip_unless_root!();
    let cluster = Cluster::builder()
        .masters(2)
        .plain_backends(1)
        .stand_in(&["--listen", "[::]:6443"])
        .without_xdp()
        .bridged()
        .start(|plane| plane.vips = BOTH.into())
        .unwrap();
    let shown = cluster.status("m1").unwrap().data_plane.attach;
    assert_eq!(shown[0].mode, AttachedMode::Tc);
    let note = shown[0].note.as_deref().unwrap_or_default();
    assert!(note.contains("bridge"), "{note}");
    for vip in BOTH {
        let report = cluster.requests(&bulk(&cluster, vip)).unwrap();
        assert_eq!(report.ok, 60, "{report}");
        assert_eq!(report.by_node.len(), 3, "{report}");
    }
}

/// Where the driver refuses, `auto` uses tc and passes on what the kernel said; `native` refuses to
/// start. A VIP's interface must be Ethernet, so a macvlan stands for a driver without XDP.
#[test]
fn auto_falls_back_to_tc_where_the_driver_refuses() {
    skip_unless_root!();
    let mut cluster = Cluster::builder().masters(1).prepare(|_| {}).unwrap();
    let m1 = cluster.node("m1").namespace();
    m1.ip("link add mac0 link eth0 type macvlan mode bridge")
        .unwrap();
    cluster.edit_config("m1", |config| {
        *config = config.replace("[\"eth0\"]", "[\"eth0\", \"mac0\"]");
    });
    cluster.start_xvip("m1").unwrap();
    cluster.wait_settled("m1").unwrap();
    let shown = cluster.status("m1").unwrap().data_plane.attach;
    let modes: Vec<_> = shown.iter().map(|own| own.mode).collect();
    assert_eq!(modes, [AttachedMode::Native, AttachedMode::Tc], "{shown:?}");
    let note = shown[1].note.as_deref().unwrap_or_default();
    assert!(note.contains("native XDP was refused"), "{note}");
    let said = cluster.xvip("m1").output();
    assert!(said.contains(note), "{said}");
    cluster.stop_xvip("m1").unwrap();
    cluster.edit_config("m1", |config| config.insert_str(7, "attach = \"native\"\n"));
    cluster.start_xvip("m1").unwrap();
    let status = cluster.xvip("m1").wait_exit(PATIENCE).unwrap();
    let said = cluster.xvip("m1").output();
    assert_eq!(status.code(), Some(ExitCode::Failure as i32), "{said}");
    assert!(said.contains("mac0"), "{said}");
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
    let mut kinds: Vec<_> = kinds.collect();
    kinds.sort();
    kinds
}

//! A kernel that has no more than the oldest supported one (Linux 5.15), as far as this one can imitate
//! it: xvip is told to do without what came later.

use lb_tests::{
    client::Load,
    cluster::Cluster,
    control_plane::{BOTH, VIP4, be_patient},
    process::output,
    skip_unless_root,
};
use lb_user::{
    admin::model::{AttachedMode, BackendState::Down},
    cli::ExitCode,
};

const YOUNGER: &str = "coarse_clock, xdp_frags, set_retval, tcx";

/// Local, dsr and nat work in every mode, both families, and the status says what is done instead.
#[test]
fn the_oldest_kernels_features_suffice() {
    skip_unless_root!();
    for (wanted, expected) in [
        ("native", AttachedMode::Native),
        ("tc", AttachedMode::Tc),
        ("generic", AttachedMode::Generic),
    ] {
        let cluster = Cluster::builder()
            .masters(2)
            .plain_backends(1)
            .stand_in(&["--listen", "[::]:6443", "--plain"])
            .without_features(YOUNGER)
            .start(|plane| {
                plane.vips = BOTH.into();
                be_patient(plane);
                plane.node = format!("attach = \"{wanted}\"");
            })
            .unwrap();
        let status = cluster.status("m1").unwrap();
        assert_eq!(status.data_plane.attach[0].mode, expected);
        let unused = status.kernel.features.iter().filter(|one| !one.used);
        let unused: Vec<_> = unused.map(|one| one.name.as_str()).collect();
        for name in YOUNGER.split(", ") {
            assert!(unused.contains(&name), "{name}: {unused:?}");
        }
        for vip in BOTH {
            let report = cluster.requests(&cluster.bulk(vip)).unwrap();
            assert_eq!(report.ok, cluster.bulk(vip).requests, "{wanted}: {report}");
            assert_eq!(report.by_node.len(), 3, "{wanted}: {report}");
        }
        let mut explain = cluster
            .cli("m1", &["explain", "10.77.0.200:1", "10.77.0.100:1644"])
            .unwrap();
        let explained = output(&mut explain).unwrap();
        assert!(explained.contains(match expected {
            AttachedMode::Tc => "tc_ingress",
            _ => "xdp_ingress",
        }));
    }
}

/// Where a hook cannot choose the error a `connect()` without any backend fails as well, with `EPERM`.
#[test]
fn without_set_retval_connect_fails_with_another_error() {
    skip_unless_root!();
    let mut cluster = Cluster::builder()
        .masters(1)
        .without_features("set_retval")
        .start(|_| {})
        .unwrap();
    cluster.kill_stand_in("m1").unwrap();
    cluster.wait_backend("m1", "m1", Down).unwrap();
    let load = Load {
        requests: 20,
        ..cluster.load(VIP4)
    };
    cluster
        .wait("every connect to be refused by the hook", || {
            let report = cluster.requests_by_process("m1", &load)?;
            assert_eq!(report.ok, 0, "{report}");
            let refused = report.errors.get("connect: permission denied");
            Ok((refused == Some(&20)).then_some(()))
        })
        .unwrap();
}

/// What cannot be done without is a mistake that is named, and `check --kernel` shows the kernel.
#[test]
fn the_kernel_is_checked_on_request() {
    skip_unless_root!();
    let cluster = Cluster::builder().masters(1).prepare(|_| {}).unwrap();
    let mut check = cluster.cli("m1", &["check", "--kernel"]).unwrap();
    let shown = output(&mut check).unwrap();
    assert!(
        shown.contains("KERNEL") && shown.contains("ring_buffer"),
        "{shown}"
    );
    let mut plain = cluster.cli("m1", &["check"]).unwrap();
    assert!(!output(&mut plain).unwrap().contains("KERNEL"));
    let mut run = cluster.cli("m1", &["run"]).unwrap();
    let done = run
        .env("XVIP_KERNEL_WITHOUT", "ring_buffer")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(ExitCode::Failure as i32), "{said}");
    assert!(
        said.contains("\"ring_buffer\" cannot be left out"),
        "{said}"
    );
}

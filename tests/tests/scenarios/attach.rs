//! How the data plane is attached, and what stops xvip from starting.

use lb_tests::{
    cluster::{Cluster, PATIENCE},
    control_plane::{BOTH, VIP4},
    skip_unless_root,
};
use lb_user::{admin::model::AttachedMode, cli::ExitCode};

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

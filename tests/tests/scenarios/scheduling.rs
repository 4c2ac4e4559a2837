//! Real-time scheduling of the controller.

use std::{collections::BTreeMap, fs, process::Command};

use lb_tests::{cluster::Cluster, process::output, skip_unless_root};
use lb_user::admin::model::SchedulingStatus;

/// `SCHED_OTHER` and `SCHED_FIFO` in the policy field of `/proc/PID/task/TID/stat` (proc(5)).
const OTHER: &str = "0";
const FIFO: &str = "1";

/// The scheduling policies of a process's threads, by thread id.
fn policies(pid: u32) -> BTreeMap<u32, String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let policy = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        let id = entry.file_name().to_str()?.parse().ok()?;
        // A thread that has ended meanwhile has none.
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (_, fields) = stat.rsplit_once(')')?;
        // Field 41, and the first one after the name is field 3.
        let policy = fields.split_whitespace().nth(41 - 3)?;
        Some((id, policy.to_owned()))
    };
    tasks.filter_map(policy).collect()
}

/// The thread that sends adverts is a real-time one where the configuration says so, its helpers are
/// not; a reload changes it. Where the kernel refuses, xvip says so and runs.
#[test]
fn the_controller_alone_is_scheduled_before_others() {
    skip_unless_root!();
    let builder = Cluster::builder().masters(1);
    let mut cluster = builder
        .start(|plane| {
            "1s".clone_into(&mut plane.advert_interval);
            "realtime = \"on\"\nrealtime_priority = 7".clone_into(&mut plane.node);
        })
        .unwrap();
    let scheduling = |cluster: &Cluster| cluster.status("m1").unwrap().scheduling;
    let pid = u32::try_from(cluster.xvip("m1").pid().as_raw()).unwrap();
    let permitted = output(Command::new("chrt").args(["--fifo", "7", "true"])).is_ok();
    let SchedulingStatus { realtime, what } = scheduling(&cluster);
    assert_eq!(realtime, permitted, "{what}");
    if permitted {
        assert_eq!(what, "real-time, priority 7");
        let mut policies = policies(pid);
        assert_eq!(policies.remove(&pid).unwrap(), FIFO);
        assert!(!policies.is_empty());
        assert!(
            policies.values().all(|policy| policy == OTHER),
            "{policies:?}"
        );
    } else {
        assert!(what.contains("refused"), "{what}");
    }
    cluster.edit_config("m1", |config| *config = config.replace("\"on\"", "\"off\""));
    cluster.reload("m1").unwrap();
    assert_eq!(scheduling(&cluster).what, "ordinary");
    assert!(policies(pid).values().all(|policy| policy == OTHER));
}

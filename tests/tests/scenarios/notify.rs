//! Who wants to know of changes of state is told: programs, and whoever reads the named pipe.

use std::{
    fs::{self, File, OpenOptions},
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
};

use lb_tests::{
    cluster::{Cluster, PATIENCE},
    control_plane::VIP4,
    skip_unless_root,
};
use lb_user::admin::model::VrrpState;
use nix::{libc, sys::stat::Mode, unistd::mkfifo};

/// What comes out of a node's pipe.
struct Lines {
    pipe: File,
    seen: String,
}

impl Lines {
    /// Reads from now on what `node` tells.
    fn of(cluster: &Cluster, node: &str) -> Self {
        let path = cluster.node(node).directory().join("events");
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let mut options = OpenOptions::new();
        // One that is open for writing as well never comes to its end.
        let options = options.read(true).write(true);
        let pipe = options.custom_flags(libc::O_NONBLOCK).open(path).unwrap();
        let seen = String::new();
        Self { pipe, seen }
    }

    /// Waits until these lines have come, in this order; others may stand between them. What comes
    /// next is waited for after them.
    fn wait(&mut self, cluster: &Cluster, expected: &[&str]) {
        for line in expected {
            let what = format!("the line {line}");
            let rest = cluster.wait(&what, || {
                let mut bytes = [0; 4096];
                if let Ok(length) = self.pipe.read(&mut bytes) {
                    self.seen += &String::from_utf8_lossy(&bytes[..length]);
                }
                let whole = format!("{line}\n");
                let found = self.seen.find(&whole);
                Ok(found.map(|at| self.seen[at + whole.len()..].to_owned()))
            });
            self.seen = rest.unwrap_or_else(|error| panic!("{error}; there is {}", self.seen));
        }
    }
}

/// A takeover, a fault, a dead backend and a stop are told, in lines and by programs, which run as
/// the given user and one after the other. One that hangs delays nothing, and is killed when its
/// time is over.
#[test]
fn changes_are_told() {
    skip_unless_root!();
    let says = "[\"/bin/sh\", \"-c\", \"echo $(id -un) is told $0 $1 $2 $3\"]";
    let mut cluster = Cluster::builder()
        .masters(2)
        .prepare(|plane| "1s".clone_into(&mut plane.advert_interval))
        .unwrap();
    for node in cluster.masters() {
        let pipe = cluster.node(&node).directory().join("events");
        let pipe = format!("[node]\nnotify_fifo = \"{}\"\n", pipe.display());
        cluster.edit_config(&node, |config| *config = config.replace("[node]\n", &pipe));
    }
    let notify = |keys: &str| format!("[[vrrp]]\nnotify = {{ {keys} }}\n");
    let stop = "[\"/bin/sh\", \"-c\", \"echo $(id -un) stops; exit 3\"]";
    let keys = notify(&format!(
        "any = {says}, stop = {stop}, user = \"daemon\", timeout = \"1m\""
    ));
    cluster.edit_config("m1", |config| *config = config.replace("[[vrrp]]\n", &keys));
    let mut first = Lines::of(&cluster, "m1");
    let mut second = Lines::of(&cluster, "m2");
    for node in cluster.masters() {
        cluster.start_xvip(&node).unwrap();
    }
    first.wait(
        &cluster,
        &["INSTANCE \"v4\" BACKUP 200", "INSTANCE \"v4\" MASTER 200"],
    );
    cluster.wait_settled("m1").unwrap();
    let log = |cluster: &Cluster, node: &str, text: &str| {
        cluster.xvip(node).wait_for_output(text, PATIENCE).unwrap();
    };
    log(&cluster, "m1", "daemon is told INSTANCE v4 MASTER 200");

    // Programs that come while all runs, and hang.
    let keys = notify("active = [\"/bin/sleep\", \"1000\"], timeout = \"2s\"");
    cluster.edit_config("m2", |config| *config = config.replace("[[vrrp]]\n", &keys));
    assert_eq!(cluster.reload("m2").unwrap(), "vrrp \"v4\": changed\n");
    cluster.net().cut("m1").unwrap();
    first.wait(&cluster, &["INSTANCE \"v4\" FAULT 200"]);
    second.wait(&cluster, &["INSTANCE \"v4\" MASTER 190"]);
    log(&cluster, "m1", "daemon is told INSTANCE v4 FAULT 200");
    log(&cluster, "m2", "time is over");
    assert!(cluster.has("m2", "eth0", VIP4).unwrap());
    cluster.net().join("m1").unwrap();
    first.wait(
        &cluster,
        &["INSTANCE \"v4\" BACKUP 200", "INSTANCE \"v4\" MASTER 200"],
    );
    second.wait(&cluster, &["INSTANCE \"v4\" BACKUP 190"]);

    cluster.kill_stand_in("m2").unwrap();
    let down = ["BACKEND \"apiserver-v4/m2\" DOWN"];
    first.wait(&cluster, &down);
    // Each node goes by its own checks, at times of its own.
    second.wait(&cluster, &down);
    let told = cluster.status("m1").unwrap().notify;
    assert_eq!((told.lines_lost, told.commands_failed), (0, 0), "{told:?}");
    assert!(told.lines >= 5 && told.commands >= 5, "{told:?}");

    // The own end is told before the end.
    cluster.stop_xvip("m1").unwrap();
    first.wait(&cluster, &["INSTANCE \"v4\" STOP 200"]);
    second.wait(&cluster, &["INSTANCE \"v4\" MASTER 190"]);
    let log = cluster.node("m1").directory().join("xvip.log");
    let log = fs::read_to_string(log).unwrap();
    let own = log.find("daemon stops").expect(&log);
    let any = log.find("daemon is told INSTANCE v4 STOP 200").expect(&log);
    assert!(own < any && log.contains("exit status 3"), "{log}");
    cluster.wait_state("m2", VrrpState::Active).unwrap();

    // Nobody reads: nobody waits.
    drop(second);
    cluster.start_stand_in("m2").unwrap();
    cluster
        .wait("a line to be lost", || {
            Ok((cluster.status("m2")?.notify.lines_lost > 0).then_some(()))
        })
        .unwrap();
    // A user that there is not is told when the configuration is loaded.
    cluster.edit_config("m2", |config| {
        *config = config.replace("timeout = \"2s\"", "user = \"no-such-user\"");
    });
    let error = cluster.reload("m2").unwrap_err().to_string();
    assert!(
        error.contains("there is no user \"no-such-user\""),
        "{error}"
    );
}

//! What nodes track moves the VIP: the own apiserver, the uplink, a number in a file, a process.

use std::fs;

use lb_tests::{
    cluster::{Cluster, PATIENCE},
    control_plane::{BOTH, VIP4},
    process::Process,
    skip_unless_root,
};
use lb_user::admin::model::{BackendState, VrrpState};

/// Two masters whose instances track what `tracks` describes; it stands before `[[vrrp]]`.
fn cluster(tracks: &str, references: &str) -> Cluster {
    let mut cluster = Cluster::builder()
        .masters(2)
        .prepare(|plane| references.clone_into(&mut plane.vrrp))
        .unwrap();
    for node in cluster.masters() {
        let directory = cluster.node(&node).directory().display().to_string();
        let tracks = tracks.replace("{dir}", &directory).replace("{node}", &node);
        cluster.edit_config(&node, |config| config.push_str(&tracks));
    }
    cluster
}

fn start(cluster: &mut Cluster) {
    for node in cluster.masters() {
        cluster.start_xvip(&node).unwrap();
    }
    cluster.wait_settled("m1").unwrap();
    cluster.wait_state("m2", VrrpState::Backup).unwrap();
}

/// Waits until `owner` has the VIP and the other one has it no more.
fn moves_to(cluster: &Cluster, owner: &str, other: &str) {
    cluster.wait_has(owner, "eth0", VIP4, true).unwrap();
    cluster.wait_has(other, "eth0", VIP4, false).unwrap();
}

/// An apiserver that dies takes the VIP with it where that is asked for, and brings it back; whoever
/// tracks nothing of its own keeps it.
#[test]
fn the_own_apiserver_moves_the_vip() {
    skip_unless_root!();
    let tracks = "\n[[track]]\nname = \"own\"\ntype = \"local_backend\"\nservice = \"apiserver-v4\"\n\
                  weight = -20\n";
    let mut cluster = cluster(tracks, "track = [\"own\"]");
    start(&mut cluster);
    cluster.kill_stand_in("m1").unwrap();
    moves_to(&cluster, "m2", "m1");
    let vrrp = cluster.vrrp("m1").unwrap();
    assert_eq!((vrrp.priority, vrrp.effective_priority), (200, 180));
    let own = vrrp
        .tracking
        .iter()
        .find(|track| track.name == "own")
        .unwrap();
    assert_eq!((own.adds, own.fault), (-20, false));
    assert!(own.seen.contains("is not up"), "{}", own.seen);
    // The new owner's checks see it in their own time.
    cluster
        .wait_backend("m2", "m1", BackendState::Down)
        .unwrap();
    let report = cluster.requests(&cluster.load(VIP4)).unwrap();
    assert_eq!(report.ok, 1000, "{report}");
    cluster.start_stand_in("m1").unwrap();
    moves_to(&cluster, "m1", "m2");
}

/// By default a dead apiserver does not move the VIP, a pulled cable does; the node without a cable says
/// why, and has the VIP again when the cable is back.
#[test]
fn the_uplink_moves_the_vip() {
    skip_unless_root!();
    let mut cluster = cluster("", "");
    start(&mut cluster);
    let before = cluster.vrrp("m1").unwrap().transitions;
    cluster.net().cut("m1").unwrap();
    cluster.wait_state("m1", VrrpState::Fault).unwrap();
    moves_to(&cluster, "m2", "m1");
    let vrrp = cluster.vrrp("m1").unwrap();
    assert_eq!(vrrp.cause, "fault");
    let uplink = &vrrp.tracking[0];
    assert!(
        uplink.fault && uplink.seen.contains("no carrier"),
        "{uplink:?}"
    );
    cluster.net().join("m1").unwrap();
    moves_to(&cluster, "m1", "m2");
    // One fault, one start, one takeover.
    assert_eq!(cluster.vrrp("m1").unwrap().transitions, before + 3);
    let dead = cluster.vrrp("m1").unwrap().transitions;
    cluster.kill_stand_in("m1").unwrap();
    cluster
        .wait_backend("m1", "m1", BackendState::Down)
        .unwrap();
    assert_eq!(cluster.vrrp("m1").unwrap().transitions, dead);
    assert!(cluster.has("m1", "eth0", VIP4).unwrap());
}

/// Two families in a group: what moves one moves both.
#[test]
fn a_group_moves_together() {
    skip_unless_root!();
    let mut cluster = Cluster::builder()
        .masters(2)
        .stand_in(&["--listen", "[::]:6443"])
        .prepare(|plane| {
            plane.vips = BOTH.into();
            "sync_group = \"both\"".clone_into(&mut plane.vrrp);
        })
        .unwrap();
    for node in cluster.masters() {
        let file = cluster.node(&node).directory().join("fit");
        fs::write(&file, "0").unwrap();
        let track = format!(
            "\n[[track]]\nname = \"fit\"\ntype = \"file\"\nfile = \"{}\"\ninterval = \"100ms\"\n",
            file.display()
        );
        cluster.edit_config(&node, |config| {
            *config = config.replace("name = \"v6\"", "name = \"v6\"\ntrack = [\"fit\"]");
            config.push_str(&track);
        });
    }
    start(&mut cluster);
    fs::write(cluster.node("m1").directory().join("fit"), "1").unwrap();
    for vip in BOTH {
        cluster.wait_has("m2", "eth0", vip, true).unwrap();
        cluster.wait_has("m1", "eth0", vip, false).unwrap();
    }
    cluster.wait_state("m1", VrrpState::Fault).unwrap();
    fs::write(cluster.node("m1").directory().join("fit"), "0").unwrap();
    cluster.wait_settled("m1").unwrap();
    for vip in BOTH {
        cluster.wait_has("m1", "eth0", vip, true).unwrap();
        cluster.wait_has("m2", "eth0", vip, false).unwrap();
    }
}

/// A file's number, a process and what a program says, changed while all runs.
#[test]
fn files_and_processes_move_the_vip() {
    skip_unless_root!();
    let tracks = "\n[[track]]\nname = \"disk\"\ntype = \"file\"\nfile = \"{dir}/disk\"\ninterval = \"100ms\"\n\
                  \n[[track]]\nname = \"helper\"\ntype = \"process\"\nprocess = \"{process}\"\ninterval = \"100ms\"\n\
                  \n[[track]]\nname = \"asked\"\ntype = \"command\"\nuser = \"root\"\ninterval = \"200ms\"\ntimeout = \"30s\"\n\
                  command = [\"/bin/sh\", \"-c\", \"test -e {dir}/well || { echo $(id -un) is unwell; exit 1; }\"]\n";
    // Every process of the machine is seen from every node: the name is this test's own.
    let name = format!("xv-{}", std::process::id());
    let tracks = tracks.replace("{process}", &format!("{name}-{{node}}"));
    let references =
        "track = [{ name = \"disk\", weight = 1 }, \"helper\", { name = \"asked\", weight = -30 }]";
    let mut cluster = cluster(&tracks, references);
    let write = |cluster: &Cluster, number: &str| {
        let file = cluster.node("m1").directory().join("disk");
        fs::write(file, number).unwrap();
    };
    write(&cluster, "0");
    for node in cluster.masters() {
        fs::write(cluster.node(&node).directory().join("well"), "").unwrap();
    }
    fs::write(cluster.node("m2").directory().join("disk"), "0").unwrap();
    let helper = |cluster: &Cluster, node: &str| -> Process {
        let node_of = cluster.node(node);
        let program = node_of.directory().join(format!("{name}-{node}"));
        fs::copy("/bin/sleep", &program).unwrap();
        let program = program.to_str().unwrap().to_owned();
        node_of.start("helper", &program, &["600"]).unwrap()
    };
    let first = helper(&cluster, "m1");
    let _second = helper(&cluster, "m2");
    start(&mut cluster);
    write(&cluster, "-20");
    moves_to(&cluster, "m2", "m1");
    assert_eq!(cluster.vrrp("m1").unwrap().effective_priority, 180);
    write(&cluster, "5");
    moves_to(&cluster, "m1", "m2");
    assert_eq!(cluster.vrrp("m1").unwrap().effective_priority, 205);
    let well = cluster.node("m1").directory().join("well");
    fs::remove_file(&well).unwrap();
    moves_to(&cluster, "m2", "m1");
    assert_eq!(cluster.vrrp("m1").unwrap().effective_priority, 175);
    let said = "asked -30: /bin/sh: exit status 1: root is unwell";
    cluster.xvip("m1").wait_for_output(said, PATIENCE).unwrap();
    fs::write(&well, "").unwrap();
    moves_to(&cluster, "m1", "m2");
    first.kill().unwrap();
    cluster.wait_state("m1", VrrpState::Fault).unwrap();
    moves_to(&cluster, "m2", "m1");
    let _again = helper(&cluster, "m1");
    moves_to(&cluster, "m1", "m2");
}

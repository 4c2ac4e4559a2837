//! Orders of the operator about backends, and backends that wait for the others' loss.

use std::{fs, process::Output};

use lb_tests::{
    cluster::{Cluster, PATIENCE},
    control_plane::VIP4,
    process::output,
    skip_unless_root,
    watch::Watches,
};
use lb_user::admin::{
    backends::OperatorMode,
    model::{
        BackendState::{Down, Draining, Up},
        BackendStatus,
    },
};

/// One node with xvip and a stand-in, and two backends behind nat: no VIP moves.
fn cluster() -> Cluster {
    let builder = Cluster::builder().masters(1).plain_backends(2);
    let start = builder.start(|plane| "1s".clone_into(&mut plane.advert_interval));
    start.unwrap()
}

/// `xvip backend` with these words; what it prints.
fn order(cluster: &Cluster, words: &[&str]) -> String {
    output(&mut command(cluster, words)).unwrap()
}

/// The same of one that is refused.
fn refused(cluster: &Cluster, words: &[&str]) -> String {
    let Output { status, stderr, .. } = command(cluster, words).output().unwrap();
    assert_eq!(status.code(), Some(1), "{words:?}");
    String::from_utf8(stderr).unwrap()
}

fn command(cluster: &Cluster, words: &[&str]) -> std::process::Command {
    cluster.cli("m1", &[&["backend"], words].concat()).unwrap()
}

fn backend(cluster: &Cluster, name: &str) -> BackendStatus {
    cluster.backend("m1", name).unwrap()
}

/// Makes a thousand requests, none of which fails; the nodes that answered.
fn answering(cluster: &Cluster) -> Vec<String> {
    let report = cluster.requests(&cluster.load(VIP4)).unwrap();
    assert_eq!(report.ok, 1000, "{report}");
    report.by_node.into_keys().collect()
}

/// Drained, a backend keeps its streams and gets no new connection, also after a restart of xvip;
/// in maintenance its streams are reset; enabled it is there again. The last one stays.
#[test]
fn orders_are_carried_out_and_outlive_the_controller() {
    skip_unless_root!();
    let mut cluster = cluster();
    let load = cluster.load(VIP4);
    let watches = Watches::open(cluster.client(), &load, 20, PATIENCE).unwrap();
    let on_b1 = watches.by_node().get("b1").copied();
    let on_b1 = on_b1.expect("20 streams over 3 backends");

    let said = order(&cluster, &["drain", "b1", "--deadline", "1h"]);
    assert!(
        said.contains(": drains, in maintenance in 3600 s"),
        "{said}"
    );
    assert_eq!(answering(&cluster), ["b2", "m1"]);
    watches.wait_events(2, PATIENCE).unwrap();
    cluster.stop_xvip("m1").unwrap();
    cluster.start_xvip("m1").unwrap();
    cluster.wait_settled("m1").unwrap();
    let drained = backend(&cluster, "b1");
    assert_eq!((drained.state, drained.in_force), (Up, Draining));
    let word = drained.operator.unwrap();
    assert_eq!(word.mode, OperatorMode::Draining);
    assert!(word.deadline_ms.is_some_and(|left| left < 3_600_000));
    assert_eq!(answering(&cluster), ["b2", "m1"]);
    watches.wait_events(2, PATIENCE).unwrap();
    let listed = order(&cluster, &[]);
    assert!(listed.contains("drained, in maintenance in "), "{listed}");

    order(&cluster, &["drain", "m1"]);
    for words in [["disable", "b2"], ["drain", "b2"]] {
        let why = refused(&cluster, &words);
        assert!(why.contains("is the last backend that takes new"), "{why}");
    }
    order(&cluster, &["enable", "m1"]);
    let why = refused(&cluster, &["enable", "b3"]);
    assert!(why.contains("(there are: b1, b2, m1)"), "{why}");
    assert_eq!(watches.ended(), []);

    order(&cluster, &["disable", "b1"]);
    cluster
        .wait("the streams on b1 to end", || {
            Ok((watches.ended().len() == on_b1).then_some(()))
        })
        .unwrap();
    assert!(watches.ended().iter().all(|(node, _)| node == "b1"));
    let disabled = backend(&cluster, "b1");
    assert_eq!((disabled.state, disabled.in_force), (Up, Down));
    assert_eq!(answering(&cluster), ["b2", "m1"]);

    order(&cluster, &["enable", "b1"]);
    assert_eq!(answering(&cluster), ["b1", "b2", "m1"]);
    order(&cluster, &["weight", "b1", "50%"]);
    let share = backend(&cluster, "b1").share;
    assert!((0.19..0.21).contains(&share), "{share}");
    order(&cluster, &["weight", "b1", "0"]);
    assert_eq!(answering(&cluster), ["b2", "m1"]);
    assert_eq!(watches.ended().len(), on_b1);

    // A damaged file is put aside and its orders are forgotten, not the controller's start.
    cluster.stop_xvip("m1").unwrap();
    let node = cluster.node("m1");
    let file = |extension: &str| {
        let name = format!("{}.backends.{extension}", node.instance());
        node.directory().join(name)
    };
    fs::write(file("json"), "{\"version\":1,\"backends\":[").unwrap();
    let bad = file("json.bad");
    cluster.start_xvip("m1").unwrap();
    cluster.wait_settled("m1").unwrap();
    assert!(bad.exists());
    assert_eq!(answering(&cluster), ["b1", "b2", "m1"]);
}

/// A backup gets nothing while another backend is up, and everything without one; who comes back
/// from the dead begins with a small share.
#[test]
fn backups_come_in_and_recoveries_are_slow() {
    skip_unless_root!();
    let mut cluster = cluster();
    cluster.edit_config("m1", |text| {
        *text = text.replace("name = \"b2\"\n", "name = \"b2\"\nbackup = true\n");
        *text = text.replace("[[service]]\n", "[[service]]\nslow_start = \"10m\"\n");
    });
    cluster.reload("m1").unwrap();
    let idle = backend(&cluster, "b2");
    assert_eq!((idle.state, idle.in_force), (Up, Draining));
    assert_eq!(answering(&cluster), ["b1", "m1"]);
    for node in ["b1", "m1"] {
        cluster.kill_stand_in(node).unwrap();
        cluster.wait_backend("m1", node, Down).unwrap();
    }
    assert_eq!(answering(&cluster), ["b2"]);
    cluster.start_stand_in("m1").unwrap();
    cluster.wait_backend("m1", "m1", Up).unwrap();
    assert_eq!(answering(&cluster), ["m1"]);
    let alone = backend(&cluster, "m1");
    assert_eq!(alone.slow_start_percent, Some(10));
    cluster.start_stand_in("b1").unwrap();
    cluster.wait_backend("m1", "b1", Up).unwrap();
    assert_eq!(backend(&cluster, "b2").in_force, Draining);
    let slow = backend(&cluster, "b1");
    assert!((slow.effective_weight - 0.1).abs() < 0.001, "{slow:?}");
}

/// Added, a backend is checked and gets its share; removed, it drains, and then its streams are reset
/// and only those. Both outlive a restart and a reload; a file that has it decides what it is.
#[test]
fn backends_are_added_and_removed() {
    skip_unless_root!();
    let builder = Cluster::builder().masters(1).plain_backends(2);
    let prepared = builder.prepare(|plane| "1s".clone_into(&mut plane.advert_interval));
    let mut cluster = prepared.unwrap();
    let whole = {
        let mut whole = String::new();
        cluster.edit_config("m1", |text| whole.clone_from(text));
        whole
    };
    let address = |node: &str| format!("{}:6443", cluster.node(node).ipv4());
    let b2 = address("b2");
    let section = format!("[[service.backend]]\nname = \"b2\"\naddress = \"{b2}\"\n");
    assert!(whole.contains(&section), "{whole}");
    cluster.edit_config("m1", |text| *text = text.replace(&section, ""));
    cluster.start_xvip("m1").unwrap();
    cluster.wait_settled("m1").unwrap();
    assert_eq!(answering(&cluster), ["b1", "m1"]);

    let said = order(&cluster, &["add", "b2", &b2, "--weight", "2"]);
    assert!(said.contains("b2 of apiserver-v4: added\n"), "{said}");
    cluster.wait_backend("m1", "b2", Up).unwrap();
    let added = backend(&cluster, "b2");
    assert!(
        added.added && (0.49..0.51).contains(&added.share),
        "{added:?}"
    );
    assert_eq!(answering(&cluster), ["b1", "b2", "m1"]);
    let why = refused(&cluster, &["add", "b2", "10.0.2.77:6443"]);
    assert!(why.contains("there is a backend of this name"), "{why}");
    let why = refused(&cluster, &["add", "x", &b2]);
    assert!(why.contains("is already backend \"b2\".address"), "{why}");
    let why = refused(&cluster, &["add", "x", "b2"]);
    assert!(why.contains("add the port, such as \"b2:6443\""), "{why}");

    let load = cluster.load(VIP4);
    let watches = Watches::open(cluster.client(), &load, 20, PATIENCE).unwrap();
    let on_b1 = watches.by_node().get("b1").copied();
    let on_b1 = on_b1.expect("20 streams over 3 backends");
    let said = order(&cluster, &["remove", "b1", "--deadline", "1h"]);
    assert!(said.contains(": drains, removed in 3600 s"), "{said}");
    assert_eq!(answering(&cluster), ["b2", "m1"]);
    watches.wait_events(2, PATIENCE).unwrap();
    assert_eq!(watches.ended(), []);
    order(&cluster, &["remove", "b1", "--now"]);
    cluster
        .wait("the streams on b1 to end", || {
            Ok((watches.ended().len() == on_b1).then_some(()))
        })
        .unwrap();
    assert!(watches.ended().iter().all(|(node, _)| node == "b1"));
    let listed = order(&cluster, &[]);
    assert!(listed.contains("added while xvip runs"), "{listed}");
    assert!(listed.contains("b1 of apiserver-v4 is removed"), "{listed}");

    cluster.stop_xvip("m1").unwrap();
    cluster.start_xvip("m1").unwrap();
    cluster.wait_settled("m1").unwrap();
    cluster.reload("m1").unwrap();
    let names = |cluster: &Cluster| -> Vec<_> {
        let backends = cluster.service("m1").unwrap().backends.into_iter();
        backends
            .map(|backend| (backend.name, backend.added))
            .collect()
    };
    let own = |name: &str, added| (name.to_owned(), added);
    assert_eq!(names(&cluster), [own("m1", false), own("b2", true)]);
    assert_eq!(answering(&cluster), ["b2", "m1"]);

    // With the whole file b2 is the file's, and goes on; b1 stays removed until it is put back.
    cluster.edit_config("m1", |text| *text = whole);
    cluster.reload("m1").unwrap();
    assert_eq!(names(&cluster), [own("m1", false), own("b2", false)]);
    assert_eq!(backend(&cluster, "b2").state, Up);
    order(&cluster, &["add", "b1"]);
    cluster.wait_backend("m1", "b1", Up).unwrap();
    assert_eq!(answering(&cluster), ["b1", "b2", "m1"]);
    assert_eq!(watches.ended().len(), on_b1);
}

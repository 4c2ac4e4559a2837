//! What others are told of changes of state.

use super::node::{Link, Node, ms};
use crate::{
    config::model::{CommandConfig, GroupConfig, NotifyConfig},
    core::{
        controller::Input,
        fixture::{self, APISERVER, APISERVER6},
    },
};

/// What a node has told since the last time, of all but backends.
fn told(node: &mut Node) -> Vec<String> {
    let notices = std::mem::take(&mut node.notices).into_iter();
    let lines = notices.map(|notice| notice.to_string());
    lines.filter(|line| !line.starts_with("BACKEND")).collect()
}

/// Two nodes with one instance each in a group of two, `both`.
fn grouped() -> Link {
    let mut link = Link::start(2, APISERVER);
    for (node, host) in link.nodes.iter_mut().zip([10, 11]) {
        let text = fixture::text(host, &format!("{APISERVER}{APISERVER6}"));
        let text = text.replace("vrid = 5", "sync_group = \"both\"\nvrid = 5");
        node.reload(fixture::parse(&text)).unwrap();
    }
    link
}

/// A takeover, a fault of the uplink and its end, a stop: each is told once, in its order, with the
/// priority; and being Active only when the addresses are owned.
#[test]
fn changes_are_told_once() {
    let mut link = Link::start(2, APISERVER);
    link.run(ms(6_000), |_| {});
    let of_v4 = |node: &mut Node| -> Vec<String> {
        let mut lines = told(node);
        lines.retain(|line| line.contains("\"v4\""));
        lines
    };
    let (first, second) = ("INSTANCE \"v4\" MASTER 200", "INSTANCE \"v4\" BACKUP 200");
    assert_eq!(of_v4(&mut link.nodes[0]), [second, first]);
    assert_eq!(of_v4(&mut link.nodes[1]), ["INSTANCE \"v4\" BACKUP 150"]);
    for interface in &mut link.nodes[0].interfaces {
        interface.up = interface.name != "eth0";
    }
    link.nodes[0].input(Input::NetworkChanged);
    link.run(ms(3_000), |_| {});
    assert_eq!(of_v4(&mut link.nodes[0]), ["INSTANCE \"v4\" FAULT 200"]);
    assert_eq!(of_v4(&mut link.nodes[1]), ["INSTANCE \"v4\" MASTER 150"]);
    for interface in &mut link.nodes[0].interfaces {
        interface.up = true;
    }
    link.nodes[0].input(Input::NetworkChanged);
    link.run(ms(8_000), |_| {});
    assert_eq!(of_v4(&mut link.nodes[0]), [second, first]);
    assert_eq!(of_v4(&mut link.nodes[1]), ["INSTANCE \"v4\" BACKUP 150"]);
    link.nodes[0].input(Input::Stop);
    assert_eq!(of_v4(&mut link.nodes[0]), ["INSTANCE \"v4\" STOP 200"]);
}

/// A takeover that nobody heard of is none: nobody is told.
#[test]
fn a_failed_takeover_is_not_told() {
    let mut link = Link::start(1, APISERVER);
    link.nodes[0].adverts_fail = true;
    link.run(ms(10_000), |_| {});
    let lines = told(&mut link.nodes[0]);
    assert!(
        lines.iter().all(|line| line.contains("BACKUP")),
        "{lines:?}"
    );
    link.nodes[0].adverts_fail = false;
    link.run(ms(5_000), |_| {});
    let lines = told(&mut link.nodes[0]);
    assert!(
        lines.iter().any(|line| line.contains("MASTER")),
        "{lines:?}"
    );
}

/// A group is told of when all of it has changed, after its members.
#[test]
fn groups_are_told_as_one() {
    let mut link = grouped();
    link.run(ms(6_000), |_| {});
    let lines = told(&mut link.nodes[0]);
    let ends = [
        "INSTANCE \"v4\" MASTER 200",
        "INSTANCE \"v6\" MASTER 200",
        "GROUP \"both\" MASTER 0",
    ];
    assert!(lines.ends_with(&ends.map(str::to_owned)), "{lines:?}");
    link.nodes[0].input(Input::StepDown { instance: 0 });
    link.run(ms(2_000), |_| {});
    let lines = told(&mut link.nodes[0]);
    let groups = lines.iter().filter(|line| line.starts_with("GROUP"));
    assert_eq!(groups.collect::<Vec<_>>(), ["GROUP \"both\" BACKUP 0"]);
    link.nodes[0].input(Input::Stop);
    let lines = told(&mut link.nodes[0]);
    let last = lines.last().map(String::as_str);
    assert_eq!(last, Some("GROUP \"both\" STOP 0"));
}

/// Programs that a reload brings run from the next change on; those of the instance and those of
/// the group, each for itself. An instance that a reload takes out is stopped.
#[test]
fn a_reload_brings_programs() {
    let mut link = grouped();
    link.run(ms(6_000), |_| {});
    link.nodes[0].notices.clear();
    let command = |name: &str| {
        Some(CommandConfig {
            program: format!("/bin/{name}").into(),
            arguments: Vec::new(),
            user: "nobody".to_owned(),
        })
    };
    let mut config = link.nodes[0].controller().config().clone();
    config.vrrp[0].notify = NotifyConfig {
        backup: command("own"),
        ..NotifyConfig::default()
    };
    config.groups = vec![GroupConfig {
        name: "both".to_owned(),
        notify: NotifyConfig {
            any: command("group"),
            ..NotifyConfig::default()
        },
    }];
    link.nodes[0].reload(config.clone()).unwrap();
    assert_eq!(told(&mut link.nodes[0]), [""; 0]);
    link.nodes[0].input(Input::StepDown { instance: 0 });
    link.run(ms(2_000), |_| {});
    let notices = std::mem::take(&mut link.nodes[0].notices);
    let programs = notices.iter().flat_map(|notice| {
        let commands = notice.commands.iter();
        commands.map(|command| command.program.display().to_string())
    });
    assert_eq!(programs.collect::<Vec<_>>(), ["/bin/own", "/bin/group"]);
    config.vrrp.remove(0);
    link.nodes[0].reload(config).unwrap();
    assert_eq!(told(&mut link.nodes[0]), ["INSTANCE \"v4\" STOP 200"]);
}

/// Backends are told of, too.
#[test]
fn backends_are_told() {
    use super::node::Mood;
    let mut link = Link::start(1, APISERVER);
    link.run(ms(3_000), |_| {});
    link.nodes[0].notices.clear();
    link.nodes[0].moods.insert("master11", Mood::Refuses);
    link.run(ms(10_000), |_| {});
    let lines: Vec<_> = link.nodes[0]
        .notices
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(
        lines.contains(&"BACKEND \"apiserver/master11\" DOWN".to_owned()),
        "{lines:?}"
    );
}

//! Instances that move together.

use super::node::{Link, Mood, Node, ms};
use crate::core::{
    controller::Input,
    fixture::{self, APISERVER, APISERVER6},
    vrrp::{Cause, State},
};

/// Two nodes whose two instances are in one group if `grouped`; the IPv6 one tracks its node's backend.
fn link(grouped: bool) -> Link {
    let config = |host| {
        let track = "\n[[track]]\nname = \"own\"\ntype = \"local_backend\"\nservice = \"apiserver6\"\n\
                     weight = -60\n";
        let mut text = fixture::text(host, &format!("{APISERVER}{APISERVER6}{track}"));
        text = text.replace("vrid = 52", "vrid = 52\ntrack = [\"own\"]");
        if grouped {
            text = text.replace("vrid = 5", "sync_group = \"both\"\nvrid = 5");
        }
        fixture::parse(&text)
    };
    let mut link = Link::start(2, APISERVER);
    for (node, host) in link.nodes.iter_mut().zip([10, 11]) {
        node.reload(config(host)).unwrap();
    }
    link.run(ms(6_000), |_| {});
    assert_eq!((link.owners(0), link.owners(1)), (vec![10], vec![10]));
    link
}

fn cause(node: &Node, position: usize) -> Cause {
    let (instance, _) = node.controller().vrrp(position).unwrap();
    instance.last_transition().cause
}

fn kill_own6(link: &mut Link) {
    for node in &mut link.nodes {
        node.moods.insert("master10", Mood::Refuses);
    }
    link.run(ms(12_000), |link| {
        assert!(link.owners(0).len() <= 1 && link.owners(1).len() <= 1);
    });
}

/// What one tracks moves both where they are a group, and one alone where they are none.
#[test]
fn a_group_ranks_alike() {
    let mut alone = link(false);
    kill_own6(&mut alone);
    assert_eq!((alone.owners(0), alone.owners(1)), (vec![10], vec![11]));
    let mut group = link(true);
    kill_own6(&mut group);
    assert_eq!((group.owners(0), group.owners(1)), (vec![11], vec![11]));
}

/// One that has to leave takes the other with it, which resigns: the next owner has both within the
/// skew, and not after a down interval.
#[test]
fn the_others_follow() {
    let mut link = link(true);
    for node in &mut link.nodes {
        // The second node ranks higher for one of them only.
        let mut config = node.controller().config().clone();
        if config.node.name == "master11" {
            config.vrrp[0].priority = 250.try_into().unwrap();
            config.vrrp[1].priority = 150.try_into().unwrap();
        } else {
            config.vrrp[1].priority = 120.try_into().unwrap();
        }
        node.reload(config).unwrap();
    }
    link.run(ms(10_000), |link| {
        assert!(link.owners(0).len() <= 1 && link.owners(1).len() <= 1);
    });
    assert_eq!((link.owners(0), link.owners(1)), (vec![11], vec![11]));
    let causes = [cause(&link.nodes[0], 0), cause(&link.nodes[0], 1)];
    assert!(causes.contains(&Cause::HigherPriority), "{causes:?}");
}

/// A step-down of one is one of both, and so is the resume.
#[test]
fn a_step_down_is_for_all() {
    let mut link = link(true);
    link.nodes[0].input(Input::StepDown { instance: 1 });
    link.run(ms(1_500), |_| {});
    assert_eq!((link.owners(0), link.owners(1)), (vec![11], vec![11]));
    let held = |link: &Link| {
        let node = link.nodes[0].controller();
        [0, 1].map(|position| node.vrrp(position).unwrap().0.is_held())
    };
    assert_eq!(held(&link), [true, true]);
    link.nodes[0].input(Input::Resume { instance: 0 });
    assert_eq!(held(&link), [false, false]);
    link.run(ms(10_000), |_| {});
    assert_eq!((link.owners(0), link.owners(1)), (vec![10], vec![10]));
}

/// A stop is one of each by itself: both say so at once.
#[test]
fn a_stop_resigns_each() {
    let mut link = link(true);
    link.nodes[0].input(Input::Stop);
    for position in [0, 1] {
        let (instance, _) = link.nodes[0].controller().vrrp(position).unwrap();
        assert_eq!(instance.state(), State::Initialize);
        assert_eq!(cause(&link.nodes[0], position), Cause::Stop);
    }
    link.run(ms(1_500), |_| {});
    assert_eq!((link.owners(0), link.owners(1)), (vec![11], vec![11]));
}

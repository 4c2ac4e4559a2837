//! Other hosts that have an address which this node owns.

use lb_common::abi::Mac;

use super::node::{Link, Node, ms};
use crate::core::{
    controller::Input,
    fixture::{self, APISERVER, ETH0, LO},
};

/// A host of nobody's.
const STRANGER: Mac = [2, 0, 0, 0, 0, 0x77];
const VIP: &str = "10.0.2.100";

/// master10 with the IPv4 instance alone; `edit` changes its configuration.
fn node(edit: impl Fn(String) -> String) -> Node {
    let mut config = fixture::parse(&edit(fixture::text(10, APISERVER)));
    config.vrrp.truncate(1);
    Node::start_with(config, 10)
}

/// An owner; 282 ms later it asks for the first time.
fn owner(edit: impl Fn(String) -> String) -> Node {
    let mut node = node(edit);
    node.run(ms(3_936));
    assert!(node.owns(0));
    assert_eq!(asked(&mut node), 0);
    node.trace();
    node.notices.clear();
    node
}

fn asked(node: &mut Node) -> usize {
    std::mem::take(&mut node.asked).len()
}

fn claim(node: &mut Node, ifindex: u32, mac: Mac) {
    node.input(Input::Claimed {
        ifindex,
        address: fixture::ip(VIP),
        mac,
    });
}

/// The stranger answers so many probes, which come once a second.
fn answers(node: &mut Node, count: usize) {
    for _ in 0..count {
        node.run(ms(1_000));
        assert_eq!(asked(node), 1);
        claim(node, ETH0, STRANGER);
    }
}

fn shown(node: &Node) -> Vec<String> {
    let duplicates = node.controller().duplicates(0);
    let texts = duplicates.map(|duplicate| duplicate.describe("eth0"));
    texts.collect()
}

fn said(node: &mut Node) -> Vec<String> {
    let lines = node.trace_of(&["duplicate"]).into_iter();
    let notices = std::mem::take(&mut node.notices);
    let notices = notices.iter().map(ToString::to_string);
    let told = notices.filter(|line| line.starts_with("ADDRESS"));
    lines.chain(told).collect()
}

const HAS: &str =
    "the host with MAC 02:00:00:00:00:77 on eth0 has 10.0.2.100, too: remove it there";

/// An owner asks a second after it became one, then every 30 s, also where nothing else happens; a
/// Backup does not.
#[test]
fn an_owner_asks_now_and_then() {
    let mut link = Link::start(2, APISERVER);
    link.run(ms(64_500), |_| {});
    let both = [VIP, "fd00::100"].map(fixture::ip);
    assert_eq!(link.nodes[0].asked, [both; 3].concat());
    assert!(link.nodes[1].asked.is_empty());
    let mut node = owner(|text| text.replace("vrid = 51", "vrid = 51\nduplicate_probe = \"0s\""));
    node.run(ms(100_000));
    assert_eq!(asked(&mut node), 0);
}

/// Who answers is asked every second, and shown after four intervals; when it has left three probes
/// without an answer, that is over. Both are said once.
#[test]
fn a_host_that_goes_on_claiming_is_shown_until_it_is_silent() {
    let mut node = owner(|text| text);
    answers(&mut node, 4);
    assert_eq!(shown(&node), [""; 0]);
    answers(&mut node, 1);
    assert_eq!(shown(&node), [HAS]);
    let told = "ADDRESS \"v4/10.0.2.100\" DUPLICATE";
    let report = format!("report v4 duplicate: {HAS}");
    assert_eq!(said(&mut node), [report.as_str(), told]);
    answers(&mut node, 70);
    assert_eq!(shown(&node), [HAS]);
    assert_eq!(said(&mut node), [""; 0]);
    node.run(ms(3_000));
    assert_eq!(shown(&node), [HAS]);
    node.run(ms(1_000));
    assert_eq!(shown(&node), [""; 0]);
    let gone = "the host with MAC 02:00:00:00:00:77 does not claim 10.0.2.100 any more";
    let report = format!("report v4 duplicate: {gone}");
    assert_eq!(
        said(&mut node),
        [report.as_str(), "ADDRESS \"v4/10.0.2.100\" UNIQUE"]
    );
    assert_eq!(asked(&mut node), 4);
    node.run(ms(29_500));
    assert_eq!(asked(&mut node), 0);
    assert_eq!(node.controller().claims_of_others(0), 75);
}

/// The last words of a former owner, and of one that gives way, are no alarm; nor are this node's own
/// interfaces, other links, and addresses that are another's.
#[test]
fn what_a_takeover_leaves_behind_is_no_alarm() {
    let mut node = owner(|text| text);
    for _ in 0..3 {
        claim(&mut node, ETH0, fixture::mac(11));
        node.run(ms(3_000));
        claim(&mut node, ETH0, fixture::mac(11));
        // It is asked, and does not answer.
        node.run(ms(5_000));
    }
    for _ in 0..20 {
        claim(&mut node, LO, STRANGER);
        claim(&mut node, ETH0, fixture::mac(10));
        node.run(ms(1_000));
    }
    node.input(Input::StepDown { instance: 0 });
    for _ in 0..20 {
        claim(&mut node, ETH0, STRANGER);
        node.run(ms(1_000));
    }
    assert_eq!(shown(&node), [""; 0]);
    assert_eq!(said(&mut node), [""; 0]);
}

/// Its own virtual MAC is this node itself.
#[test]
fn the_virtual_mac_is_its_own() {
    let mut node = owner(|text| text.replace("vrid = 51", "vrid = 51\nuse_vmac = true"));
    let virtual_mac = [0, 0, 0x5e, 0, 1, 51];
    for _ in 0..20 {
        claim(&mut node, ETH0, virtual_mac);
        node.run(ms(1_000));
    }
    assert_eq!(shown(&node), [""; 0]);
}

/// A node that owns the address no more says that it does not look any more, and so does one that
/// shall not; the next time begins anew.
#[test]
fn who_does_not_own_shows_nobody() {
    let mut node = owner(|text| text);
    let is_over = |node: &mut Node| {
        assert_eq!(shown(node), [""; 0]);
        let said = said(node);
        assert_eq!(
            said.last().map(String::as_str),
            Some("ADDRESS \"v4/10.0.2.100\" UNIQUE")
        );
        assert_eq!(asked(node), 0);
    };
    answers(&mut node, 5);
    assert_eq!(said(&mut node).len(), 2);
    node.input(Input::StepDown { instance: 0 });
    is_over(&mut node);
    node.input(Input::Resume { instance: 0 });
    node.run(ms(3_936));
    assert!(node.owns(0));
    answers(&mut node, 4);
    assert_eq!(shown(&node), [""; 0]);
    answers(&mut node, 1);
    assert_eq!(shown(&node), [HAS]);
    said(&mut node);
    let text = fixture::text(10, APISERVER);
    let silent = text.replace("vrid = 51", "vrid = 51\nduplicate_probe = \"0s\"");
    let mut config = fixture::parse(&silent);
    config.vrrp.truncate(1);
    node.reload(config).unwrap();
    is_over(&mut node);
    node.run(ms(60_000));
    assert_eq!(asked(&mut node), 0);
    let mut config = fixture::parse(&text);
    config.vrrp.truncate(1);
    node.reload(config).unwrap();
    answers(&mut node, 5);
    assert_eq!(shown(&node), [HAS]);
}

/// Forged claims fill no memory, and do not hide each other for long.
#[test]
fn many_claimants_are_not_all_told_apart() {
    let mut node = owner(|text| text);
    for number in 0..=255 {
        claim(&mut node, ETH0, [2, 1, 0, 0, 0, number]);
    }
    for _ in 0..10 {
        for number in 0..=255 {
            claim(&mut node, ETH0, [2, 1, 0, 0, 0, number]);
        }
        node.run(ms(1_000));
    }
    assert_eq!(shown(&node).len(), 16);
    assert_eq!(said(&mut node).len(), 2, "one line a minute, one notice");
    node.run(ms(4_000));
    assert_eq!(shown(&node), [""; 0]);
}

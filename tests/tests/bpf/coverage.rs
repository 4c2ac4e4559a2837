//! Every reason is produced by a row, or there is a reason why not.

use std::collections::BTreeSet;

use lb_common::reason::Reason;
use lb_tests::packet::Family;

use crate::{
    accept, dsr, egress, ends, fence, icmp, local, malformed, nat, resets, sources, udp, vlan,
    world::Row,
};

/// Reasons that no program run produces, and why.
const ELSEWHERE: &[(Reason, &str)] = &[
    (Reason::Unknown, "counting it is a bug: hostile.rs"),
    (
        Reason::ConntrackFailed,
        "an LRU map makes room; it refuses only while its bucket is locked by what the program interrupted",
    ),
    (
        Reason::AnswerFailed,
        "a program run makes no socket buffer whose checksum is left to the device",
    ),
    (Reason::BackendDown, "no program gives it any more"),
    (
        Reason::ListenerAssigned,
        "the program of socket lookups: listeners.rs",
    ),
    (Reason::SendLocal, "a hook of sendmsg(): datagrams.rs"),
    (Reason::SendRemote, "a hook of sendmsg(): datagrams.rs"),
    (Reason::ConnectLocal, "a hook of connect(): connect.rs"),
    (Reason::ConnectRemote, "a hook of connect(): connect.rs"),
    (Reason::ConnectNoBackend, "a hook of connect(): connect.rs"),
];

/// Reasons that one version has not.
const IPV4_ONLY: &[Reason] = &[Reason::BadIpv4Header, Reason::FencedArp];
const IPV6_ONLY: &[Reason] = &[
    Reason::BadIpv6Header,
    Reason::Ipv6Extensions,
    Reason::FencedNd,
];

fn produced<F: Family>(tables: &[Vec<Row<F>>]) -> BTreeSet<u32> {
    let rows = tables.iter().flatten();
    rows.flat_map(Row::reasons).map(Reason::index).collect()
}

fn assert_covered(version: &str, produced: &BTreeSet<u32>, absent: &[Reason]) {
    let missing: Vec<_> = Reason::ALL
        .iter()
        .filter(|reason| !ELSEWHERE.iter().any(|(other, _)| other == *reason))
        .filter(|reason| !absent.contains(reason))
        .filter(|reason| !produced.contains(&reason.index()))
        .collect();
    assert!(missing.is_empty(), "{version}: no row for {missing:?}");
    for (reason, why) in ELSEWHERE {
        assert!(
            !produced.contains(&reason.index()),
            "{reason:?} has a row: not \"{why}\""
        );
    }
}

/// The tables together produce every reason, in each version.
#[test]
fn every_reason_has_a_row() {
    let four = [
        local::rows(),
        dsr::rows(),
        nat::rows(),
        malformed::rows4(),
        fence::rows4(),
        egress::rows(),
        resets::rows(),
        sources::rows(),
        vlan::rows(),
        udp::rows(),
        ends::rows(),
        icmp::rows(),
        accept::rows(),
    ];
    let six = [
        local::rows(),
        dsr::rows(),
        nat::rows(),
        malformed::rows6(),
        fence::rows6(),
        egress::rows(),
        resets::rows(),
        sources::rows(),
        vlan::rows(),
        udp::rows(),
        ends::rows(),
        icmp::rows(),
        accept::rows(),
    ];
    assert_covered("IPv4", &produced(&four), IPV6_ONLY);
    assert_covered("IPv6", &produced(&six), IPV4_ONLY);
}

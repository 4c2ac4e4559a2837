//! Who becomes Active, and when: RFC 9568 section 6.4, RFC 3768 section 6.4.

use std::net::IpAddr;

use super::net::{Net, config, interval, ms, us, with};
use crate::{
    config::model::{AnnounceConfig, Password, VrrpConfig, VrrpVersion},
    core::{
        time::Timestamp,
        vrrp::{Advert, Alarm, Auth, Cause, Discard, Instance, State, VrrpAction},
    },
};

const SECOND: u64 = 1_000_000;

/// Two nodes, one with priority 200 and one with 100.
fn pair(change: impl Fn(&mut VrrpConfig)) -> Net {
    Net::new([with(config(200), &change), with(config(100), &change)])
}

/// The higher priority's skew ends first: 3 s + 56/256 s. The other hears it and stays Backup.
#[test]
fn the_highest_priority_becomes_active_after_its_down_interval() {
    let mut net = pair(|_| ());
    net.run(ms(20_000));
    assert_eq!(net.moves(), [(3_218_750, 0, "active")]);
    assert_eq!(net.owners(), [0]);
    assert_eq!(net.instance(1).state(), State::Backup);
    assert_eq!(
        net.instance(1).active_address(),
        net.instance(0).source_address()
    );
}

/// A delayed start is deaf for its time: silence counts from its end, an owner of the addresses waits,
/// too, and whoever is heard meanwhile stays.
#[test]
fn a_delayed_start_takes_over_later() {
    let delayed = |config: &mut VrrpConfig| config.startup_delay = ms(10_000);
    let mut net = Net::new([with(config(200), delayed)]);
    net.run(ms(20_000));
    assert_eq!(net.moves(), [(13_218_750, 0, "active")]);
    let mut net = Net::new([with(config(255), delayed)]);
    net.run(ms(9_900));
    assert_eq!(net.owners(), [0; 0]);
    net.run(ms(5_000));
    assert_eq!(net.owners(), [0]);
    let mut net = Net::new([with(config(200), delayed), config(100)]);
    net.run(ms(9_900));
    assert_eq!(net.owners(), [1]);
    net.run(ms(5_000));
    assert_eq!(net.owners(), [0]);
}

/// A takeover's actions come in the order in which they must be done, and the other routers
/// hear of it before the neighbours do.
#[test]
fn a_takeover_advertises_then_leases_then_adds_then_announces() {
    let now = Timestamp::from_nanos(5);
    let mut instance = Instance::new(&config(255), now);
    let Some(VrrpAction::SendAdvert { advert, .. }) = instance.poll_action() else {
        panic!("no advert");
    };
    assert_eq!(advert.priority, 255);
    assert_eq!(instance.poll_action(), None);
    assert_eq!(instance.lease_deadline(), None);
    instance.handle_advert_sent(now + us(30), now + us(10));
    let deadline = Some(now + us(10) + ms(3_000));
    let rest: Vec<_> = std::iter::from_fn(|| instance.poll_action()).collect();
    assert_eq!(
        rest,
        [
            VrrpAction::SetLease { deadline },
            VrrpAction::BecomeActive,
            VrrpAction::Announce
        ]
    );
    assert_eq!(instance.lease_deadline(), deadline);
}

/// A dead Active is replaced three intervals and one skew after its last advert: 1 s, 50 ms and
/// 10 ms intervals, to the microsecond.
#[test]
fn a_dead_active_is_replaced_after_three_intervals_and_the_skew() {
    // (interval in ms, last advert before the kill, down interval of priority 100) in us
    let table = [
        (1_000, 9_218_750, 3_609_375),
        (50, 9_960_937, 180_468),
        (10, 9_992_187, 36_093),
    ];
    for (millis, last_advert, down) in table {
        let mut net = pair(|c| c.advert_interval = interval(millis));
        net.run(ms(10_000));
        let mut adverts = net.trace().into_iter().filter(|line| line.2 == "advert");
        assert_eq!(adverts.next_back(), Some((last_advert, 0, "advert")));
        net.kill(0);
        net.run(ms(5_000));
        let moves = net.moves();
        // Fractions of microseconds add up to at most one.
        assert_eq!(moves.len(), 1, "{millis} ms: {moves:?}");
        assert!(
            (last_advert + down..=last_advert + down + 1).contains(&moves[0].0),
            "{millis} ms: {moves:?}"
        );
        assert_eq!(net.instance(1).last_transition().cause, Cause::NoAdvert);
        assert_eq!(net.owners(), [1]);
    }
}

/// A graceful stop says priority 0: the Backup takes over after its skew alone, the addresses
/// are gone from the old owner by then.
#[test]
fn a_stopped_active_is_replaced_after_the_skew() {
    let mut net = pair(|_| ());
    net.run(ms(10_000));
    net.trace();
    net.input(0, Instance::stop);
    net.run(ms(700));
    assert_eq!(
        net.trace(),
        [
            (10 * SECOND, 0, "resign"),
            (10 * SECOND, 0, "backup"),
            (10_609_375, 1, "advert"),
            (10_609_375, 1, "active"),
            (10_609_375, 1, "announce"),
        ]
    );
    assert_eq!(net.instance(0).state(), State::Initialize);
    assert_eq!(net.instance(0).poll_timeout(), None);
    assert_eq!(net.instance(1).last_transition().cause, Cause::PeerResigned);
    assert_eq!(net.instance(1).counters().resignations_received, 1);
}

/// Stopping fences before it tells the others, and a Backup stops without a word.
#[test]
fn stopping_fences_first() {
    let now = Timestamp::from_nanos(0);
    let mut instance = Instance::new(&config(255), now);
    instance.handle_advert_sent(now, now);
    while instance.poll_action().is_some() {}
    instance.stop(now + ms(1));
    assert_eq!(
        instance.poll_action(),
        Some(VrrpAction::SetLease { deadline: None })
    );
    assert!(matches!(
        instance.poll_action(),
        Some(VrrpAction::SendAdvert { advert, .. }) if advert.priority == 0
    ));
    assert_eq!(instance.poll_action(), Some(VrrpAction::BecomeBackup));
    assert_eq!(instance.poll_action(), None);

    let mut backup = Instance::new(&config(100), now);
    backup.stop(now);
    assert_eq!(backup.poll_action(), None);
    assert_eq!(backup.state(), State::Initialize);
}

/// A Backup of a higher priority ignores the lower Active and takes over when its timer fires;
/// the other yields at the first advert.
#[test]
fn a_higher_priority_preempts() {
    let mut net = pair(|_| ());
    net.kill(0);
    net.run(ms(10_000));
    assert_eq!(net.moves(), [(3_609_375, 1, "active")]);
    net.start(0);
    net.run(ms(5_000));
    assert_eq!(
        net.moves(),
        [(13_218_750, 0, "active"), (13_218_750, 1, "backup")]
    );
    assert_eq!(net.instance(0).last_transition().cause, Cause::Preemption);
    assert_eq!(
        net.instance(1).last_transition().cause,
        Cause::HigherPriority
    );
}

/// With nopreempt a higher priority waits until the Active is gone.
#[test]
fn nopreempt_leaves_a_lower_active_alone() {
    let mut net = pair(|c| c.preempt = false);
    net.kill(0);
    net.run(ms(10_000));
    net.start(0);
    net.run(ms(60_000));
    assert_eq!(net.moves(), [(3_609_375, 1, "active")]);
    net.input(1, Instance::stop);
    net.run(ms(1_000));
    assert_eq!(
        net.moves(),
        [
            (70 * SECOND, 1, "backup"),
            (70 * SECOND + 218_750, 0, "active")
        ]
    );
}

/// A preemption delay counts from the first advert of the lower Active that is heard.
#[test]
fn preempt_delay_postpones_the_takeover() {
    let mut net = pair(|c| c.preempt_delay = ms(30_000));
    net.kill(0);
    net.run(ms(10_000));
    net.start(0);
    net.run(ms(60_000));
    // Node 1 advertises at 3.609375 s + n: the first one heard is that of 10.609375 s.
    assert_eq!(
        net.moves(),
        [
            (3_609_375, 1, "active"),
            (40_609_375, 0, "active"),
            (40_609_375, 1, "backup"),
        ]
    );
    assert_eq!(net.instance(0).last_transition().cause, Cause::Preemption);
}

/// The death of the lower Active during the delay is noticed at once, not at its end.
#[test]
fn preempt_delay_does_not_postpone_failover() {
    let mut net = pair(|c| c.preempt_delay = ms(300_000));
    net.kill(0);
    net.run(ms(10_000));
    net.start(0);
    net.run(ms(10_000));
    net.kill(1);
    net.run(ms(10_000));
    assert_eq!(
        net.moves(),
        [(3_609_375, 1, "active"), (22_828_125, 0, "active")]
    );
    assert_eq!(net.instance(0).last_transition().cause, Cause::NoAdvert);
}

/// A delay shorter than the timer makes nothing sooner than without any.
#[test]
fn a_short_preempt_delay_waits_for_the_timer() {
    let mut net = pair(|c| c.preempt_delay = ms(500));
    net.kill(0);
    net.run(ms(10_000));
    net.start(0);
    net.run(ms(10_000));
    assert_eq!(
        net.moves(),
        [
            (3_609_375, 1, "active"),
            (13_218_750, 0, "active"),
            (13_218_750, 1, "backup")
        ]
    );
}

/// Priority 255 is Active from the start, also with nopreempt.
#[test]
fn the_address_owner_is_active_at_once() {
    let mut net = Net::new([
        config(100),
        with(config(255), |c| {
            c.preempt = false;
        }),
    ]);
    net.run(ms(20_000));
    assert_eq!(net.moves(), [(0, 1, "active")]);
    assert_eq!(net.instance(1).last_transition().cause, Cause::AddressOwner);
}

/// Of two routers with equal priority that became Active apart, the lower address yields, and
/// the other announces: clients that learnt the loser's MAC come back.
#[test]
fn of_equal_priorities_the_higher_address_wins() {
    let mut net = Net::new([config(100), config(100)]);
    net.cut(0, 1);
    net.run(ms(10_000));
    assert_eq!(
        net.moves(),
        [(3_609_375, 0, "active"), (3_609_375, 1, "active")]
    );
    net.heal();
    net.run(ms(2_000));
    let trace = net.trace();
    assert!(trace.contains(&(10_609_375, 0, "backup")));
    assert!(trace.contains(&(10_609_375, 1, "announce")));
    assert_eq!(net.owners(), [1]);
    assert_eq!(
        net.instance(0).last_transition().cause,
        Cause::HigherAddress
    );
}

/// A router that does not know its own address loses every tie.
#[test]
fn an_unknown_own_address_loses_ties() {
    let now = Timestamp::from_nanos(0);
    let mut instance = Instance::new(&config(100), now);
    instance.handle_timeout(now + ms(3_610));
    let Some(VrrpAction::SendAdvert { advert, .. }) = instance.poll_action() else {
        panic!("no advert");
    };
    let lowest = "0.0.0.1".parse().unwrap();
    instance
        .handle_advert(now + ms(5_001), now + ms(5_001), lowest, &advert)
        .unwrap();
    assert_eq!(instance.state(), State::Backup);
}

/// Two Actives resolve on the first advert that crosses: the higher stays and asserts itself.
#[test]
fn two_actives_resolve_at_the_first_advert() {
    let mut net = pair(|_| ());
    net.cut(0, 1);
    net.run(ms(10_500));
    assert_eq!(net.owners(), [0, 1]);
    net.trace();
    net.heal();
    net.run(ms(1_500));
    assert_eq!(
        net.trace(),
        [
            (10_609_375, 1, "advert"),
            (10_609_375, 0, "advert"),
            (10_609_375, 0, "announce"),
            (10_609_375, 1, "backup"),
            // The loser concedes, and is answered once more.
            (10_609_375, 1, "advert"),
            (10_609_375, 0, "advert"),
            (10_609_375, 0, "announce"),
            (10_759_375, 0, "announce"),
            (11_218_750, 0, "advert"),
            // Past the locktime of neighbours that believed the other one.
            (11_759_375, 0, "announce"),
        ]
    );
    assert_eq!(net.instance(0).counters().conflicts, 2);
}

/// Only the loser hears of the other: its last advert makes the winner, which would else know of
/// no conflict, win the neighbours back.
#[test]
fn a_conceding_active_makes_the_other_announce() {
    let mut net = pair(|_| ());
    net.cut(0, 1);
    net.run(ms(11_000));
    assert_eq!(net.owners(), [0, 1]);
    net.trace();
    net.heal();
    net.run(ms(1_000));
    assert_eq!(
        net.trace(),
        [
            (11_218_750, 0, "advert"),
            (11_218_750, 1, "backup"),
            (11_218_750, 1, "advert"),
            (11_218_750, 0, "advert"),
            (11_218_750, 0, "announce"),
            (11_368_750, 0, "announce"),
        ]
    );
    assert_eq!(net.owners(), [0]);
}

/// Two that take over at the same moment: the one that stays announces after the other's last
/// word, at once, although it has just announced.
#[test]
fn the_winner_of_a_race_announces_last() {
    let mut net = Net::new([config(150), config(100), config(100)]);
    net.cut(1, 2);
    net.run(ms(5_000));
    net.kill(0);
    // Neither hears the other's first advert.
    net.run(us(3_609_375));
    assert_eq!(net.owners(), [1, 2]);
    net.trace();
    net.heal();
    net.run(ms(1_000));
    let trace = net.trace();
    let last_word = trace
        .iter()
        .position(|line| line.1 == 1 && line.2 == "backup");
    let answer = trace
        .iter()
        .skip(last_word.unwrap())
        .find(|l| l.1 == 2 && l.2 == "announce");
    assert_eq!(answer.unwrap().0, trace[last_word.unwrap()].0, "{trace:?}");
    assert_eq!(net.owners(), [2]);
    let alarms = net.instance(2).alarms(net.now).count();
    assert_eq!(alarms, 1, "it was Active for longer than an interval");
}

/// A loser that cannot hear makes the winner announce twice per second, no more; and it is a rival.
#[test]
fn answers_to_conflicts_are_limited() {
    let mut net = pair(|c| c.advert_interval = interval(10));
    net.cut_one_way(0, 1);
    net.run(ms(10_000));
    net.trace();
    net.run(ms(10_000));
    let announces = net
        .trace()
        .into_iter()
        .filter(|l| *l == (l.0, 0, "announce"));
    assert_eq!(announces.count(), 20);
    let alarms: Vec<_> = net.instance(0).alarms(net.now).collect();
    assert!(matches!(alarms[..], [Alarm::Rival { .. }]), "{alarms:?}");
}

/// Milliseconds at which a lone owner announces within some minutes.
fn announcements(change: impl FnOnce(&mut VrrpConfig)) -> Vec<u64> {
    let mut net = Net::new([with(config(255), change)]);
    net.run(ms(130_000));
    let announces = net.trace().into_iter().filter(|line| line.2 == "announce");
    announces.map(|line| line.0 / 1_000).collect()
}

/// Announcements: at once, then after 1.1, 2.2 and 5 s, and then a refresh every minute.
#[test]
fn announcements_repeat_after_the_locktime() {
    let times = announcements(|_| ());
    assert_eq!(times, [0, 1_100, 2_200, 5_000, 60_000, 120_000]);
}

/// Each of the numbers counts; none of them leaves the first announcement alone.
#[test]
fn announcements_are_configured() {
    let plan = |repeat, delay, refresh, refresh_repeat| AnnounceConfig {
        repeat,
        delay: ms(delay),
        refresh: ms(refresh),
        refresh_repeat,
    };
    let of = |plan| announcements(|c| c.announce = plan);
    assert_eq!(of(plan(0, 0, 0, 1)), [0]);
    assert_eq!(of(plan(4, 0, 0, 1)), [0, 1_100, 2_200, 3_300, 4_400]);
    assert_eq!(
        of(plan(0, 7_000, 50_000, 2)),
        [0, 7_000, 50_000, 51_100, 100_000, 101_100]
    );
}

/// A Backup learns the Active's interval, and its timer follows it.
#[test]
fn a_backup_learns_the_interval_of_the_active() {
    let mut net = Net::new([
        with(config(200), |c| c.advert_interval = interval(3_000)),
        config(100),
    ]);
    net.input(0, |_, _| ());
    net.run(ms(30_000));
    // Until it hears node 0 (9 s + 3 s * 56/256), node 1 is Active by its own shorter interval.
    assert_eq!(
        net.moves(),
        [
            (3_609_375, 1, "active"),
            (9_656_250, 0, "active"),
            (9_656_250, 1, "backup"),
        ]
    );
    assert_eq!(net.instance(1).active_interval(), interval(3_000));
    assert!(net.instance(1).counters().interval_mismatches > 0);
    net.kill(0);
    net.run(ms(30_000));
    // Last advert at 27.65625 s; 9 s + 3 s * 156/256 later:
    assert_eq!(net.moves(), [(38_484_375, 1, "active")]);
}

/// In version 2 an advert with another interval is discarded.
#[test]
fn v2_discards_another_interval() {
    let v2 = with(config(100), |c| c.version = VrrpVersion::V2);
    let mut instance = Instance::new(&v2, Timestamp::from_nanos(0));
    let mut advert = v2_advert();
    advert.interval = interval(2_000);
    assert_eq!(
        instance.handle_advert(
            Timestamp::from_nanos(1),
            Timestamp::from_nanos(1),
            PEER,
            &advert
        ),
        Err(Discard::Interval(interval(2_000)))
    );
    let discarded: Vec<_> = instance.counters().discarded().collect();
    assert!(discarded.contains(&("interval", 1)));
}

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 2, 99));

fn v2_advert() -> Advert {
    Advert {
        version: VrrpVersion::V2,
        vrid: 51.try_into().unwrap(),
        priority: 250,
        interval: interval(1_000),
        addresses: vec!["10.0.2.100".parse().unwrap()],
        auth: Auth::None,
    }
}

/// Every reason to discard a well-formed advert is found, and the timer runs on.
#[test]
fn discards_what_is_not_for_this_instance() {
    let now = Timestamp::from_nanos(0);
    let secret = Password(*b"pass1122");
    let plain = with(config(100), |c| c.version = VrrpVersion::V2);
    let v3 = config(100);
    let secured = with(plain.clone(), |c| c.password = Some(secret));
    let unicast = with(plain.clone(), |c| {
        c.unicast_peers = vec!["10.0.2.11".parse().unwrap()];
    });
    let own = with(plain.clone(), |c| c.unicast_source = Some(PEER));
    let other_vrid = Advert {
        vrid: 52.try_into().unwrap(),
        ..v2_advert()
    };
    let wrong_secret = Advert {
        auth: Auth::Password(Password(*b"other\0\0\0")),
        ..v2_advert()
    };
    let other_address = Advert {
        addresses: vec!["10.0.2.101".parse().unwrap()],
        ..v2_advert()
    };
    let other_vrid_error = Discard::Vrid(other_vrid.vrid);
    let table = [
        (&plain, &other_vrid, other_vrid_error),
        (&v3, &v2_advert(), Discard::Version(VrrpVersion::V2)),
        (&secured, &v2_advert(), Discard::Auth),
        (&secured, &wrong_secret, Discard::Auth),
        (&plain, &wrong_secret, Discard::Auth),
        (&unicast, &v2_advert(), Discard::UnknownPeer(PEER)),
        (&own, &v2_advert(), Discard::Own),
        (&plain, &other_address, Discard::Addresses),
    ];
    for (config, advert, expected) in table {
        let mut instance = Instance::new(config, now);
        let due = instance.poll_timeout();
        let result = instance.handle_advert(now + ms(500), now + ms(500), PEER, advert);
        assert_eq!(result, Err(expected));
        assert_eq!(instance.poll_timeout(), due);
        assert_eq!(instance.peer(), None);
        let counted: u64 = instance.counters().discarded().map(|(_, n)| n).sum();
        assert_eq!(counted, 1);
    }
    let mut stopped = Instance::new(&plain, now);
    stopped.stop(now);
    assert_eq!(
        stopped.handle_advert(now, now, PEER, &v2_advert()),
        Err(Discard::Stopped)
    );
}

/// An Active owner of the addresses listens to nobody, but says again whose they are.
#[test]
fn the_address_owner_discards_and_announces() {
    let now = Timestamp::from_nanos(0);
    let mut owner = Instance::new(&config(255), now);
    owner.handle_advert_sent(now, now);
    while owner.poll_action().is_some() {}
    for priority in [100, 255] {
        let advert = Advert {
            version: VrrpVersion::V3,
            priority,
            ..v2_advert()
        };
        let heard = owner.handle_advert(now + ms(10), now + ms(10), PEER, &advert);
        assert_eq!(heard, Err(Discard::AddressOwner));
        assert_eq!(owner.poll_action(), Some(VrrpAction::Announce));
        assert_eq!(owner.state(), State::Active);
    }
    assert_eq!(owner.counters().conflicts, 2);
}

/// Another group with the same VRID is left alone, and told of for a minute.
#[test]
fn another_group_with_the_same_vrid_is_an_alarm() {
    let now = Timestamp::from_nanos(0);
    let addresses = vec!["10.0.2.200".parse().unwrap()];
    for version in [VrrpVersion::V2, VrrpVersion::V3] {
        let mut instance = Instance::new(&with(config(100), |c| c.version = version), now);
        let advert = Advert {
            version,
            addresses: addresses.clone(),
            ..v2_advert()
        };
        let due = instance.poll_timeout();
        let heard = instance.handle_advert(now + ms(500), now + ms(500), PEER, &advert);
        assert_eq!(heard, Err(Discard::Addresses));
        assert_eq!(instance.poll_timeout(), due);
        let alarms: Vec<_> = instance.alarms(now + ms(60_000)).collect();
        assert_eq!(
            alarms[0].describe(51, "eth0"),
            "another group uses VRID 51 on eth0: 10.0.2.200 from 10.0.2.99; choose another vrid"
        );
        assert_eq!(instance.alarms(now + ms(60_500)).count(), 0);
    }
}

/// Version 2 accepts other addresses from their owner only, version 3 lists that differ in part (and
/// counts both).
#[test]
fn other_addresses_are_accepted_where_the_rfcs_say_so() {
    let now = Timestamp::from_nanos(0);
    let other = Advert {
        addresses: vec!["10.0.2.101".parse().unwrap()],
        ..v2_advert()
    };
    let owner = Advert {
        priority: 255,
        ..other.clone()
    };
    let third = Advert {
        version: VrrpVersion::V3,
        addresses: ["10.0.2.100", "10.0.2.101"]
            .map(|a| a.parse().unwrap())
            .into(),
        ..other
    };
    let v2 = with(config(100), |c| c.version = VrrpVersion::V2);
    for (config, advert) in [(v2, owner), (config(100), third)] {
        let mut instance = Instance::new(&config, now);
        let heard = instance.handle_advert(now, now, PEER, &advert).unwrap();
        assert!(heard.other_addresses);
        assert_eq!(instance.counters().address_mismatches, 1);
    }
}

/// Version 2 with a password elects as version 3 does, with its skew in whole-second shares.
#[test]
fn v2_elects_with_a_password() {
    let mut net = pair(|c| {
        c.version = VrrpVersion::V2;
        c.advert_interval = interval(2_000);
        c.password = Some(Password(*b"pass1122"));
    });
    net.run(ms(10_000));
    assert_eq!(net.moves(), [(6_218_750, 0, "active")]);
    net.kill(0);
    net.run(ms(10_000));
    // Last advert at 8.21875 s, 6 s + 156/256 s later:
    assert_eq!(net.moves(), [(14_828_125, 1, "active")]);
}

/// A version 2 Active does not answer a lesser one at once (RFC 3768 section 6.4.3), but wins
/// the neighbours back.
#[test]
fn v2_answers_a_lesser_active_with_its_timer() {
    let mut net = pair(|c| c.version = VrrpVersion::V2);
    net.cut(0, 1);
    net.run(ms(10_500));
    net.trace();
    net.heal();
    net.run(ms(1_000));
    assert_eq!(
        net.trace(),
        [
            (10_609_375, 1, "advert"),
            (10_609_375, 0, "announce"),
            (10_759_375, 0, "announce"),
            (11_218_750, 0, "advert"),
            (11_218_750, 1, "backup"),
            (11_218_750, 1, "advert"),
            (11_218_750, 0, "announce"),
            (11_368_750, 0, "announce"),
        ]
    );
}

/// Three routers, one link cut: who does not hear the Active takes over beside it (VRRP cannot
/// know better), the third stays Backup, and one owner is left once the link is whole.
#[test]
fn three_instances_survive_a_cut_link() {
    let mut net = Net::new([config(200), config(150), config(100)]);
    net.run(ms(10_000));
    assert_eq!(net.moves(), [(3_218_750, 0, "active")]);
    net.cut(0, 1);
    net.run(ms(10_000));
    // Last advert heard at 9.21875 s, 3 s + 106/256 s later:
    assert_eq!(net.moves(), [(12_632_812, 1, "active")]);
    assert_eq!(net.owners(), [0, 1]);
    assert_eq!(net.instance(2).state(), State::Backup);
    net.heal();
    net.run(ms(2_000));
    assert_eq!(net.owners(), [0]);
    net.kill(0);
    net.run(ms(4_000));
    assert_eq!(net.owners(), [1]);
    net.kill(1);
    net.run(ms(4_000));
    assert_eq!(net.owners(), [2]);
}

/// A node that steps down resigns, stays Backup even alone, and comes back after resume.
#[test]
fn a_stepped_down_node_stays_backup_until_resume() {
    let mut net = pair(|_| ());
    net.run(ms(10_000));
    net.trace();
    net.input(0, Instance::step_down);
    assert_eq!(net.instance(0).poll_timeout(), None);
    net.run(ms(10_000));
    assert_eq!(
        net.moves(),
        [(10 * SECOND, 0, "backup"), (10_609_375, 1, "active")]
    );
    assert_eq!(net.instance(0).last_transition().cause, Cause::StepDown);
    assert!(net.instance(0).is_held());
    net.kill(1);
    net.run(ms(60_000));
    assert_eq!(net.owners(), Vec::<usize>::new());
    net.input(0, Instance::resume);
    net.run(ms(10_000));
    assert_eq!(net.moves(), [(83_218_750, 0, "active")]);
}

/// An Active that hears a resignation advertises at once, before the others' skew is over.
#[test]
fn an_active_answers_a_resignation() {
    let mut net = Net::new([config(200), config(150), config(100)]);
    net.cut(0, 1);
    net.run(ms(10_500));
    assert_eq!(net.owners(), [0, 1]);
    net.heal();
    net.trace();
    net.input(1, Instance::stop);
    net.run(ms(2_000));
    assert_eq!(
        net.trace(),
        [
            (10_500_000, 1, "resign"),
            (10_500_000, 1, "backup"),
            (10_500_000, 0, "advert"),
            (11_500_000, 0, "advert"),
            (12_500_000, 0, "advert"),
        ]
    );
}

/// The address owner comes back after a resume although `Preempt_Mode` is off (RFC 9568
/// section 6.1); held back, a restart does not make it Active either.
#[test]
fn the_address_owner_always_preempts_unless_held() {
    let owner = with(config(255), |c| c.preempt = false);
    let mut net = Net::new([owner, config(100)]);
    net.run(ms(10_000));
    net.input(0, Instance::step_down);
    net.run(ms(10_000));
    net.input(0, Instance::stop);
    net.input(0, Instance::start);
    net.run(ms(10_000));
    assert_eq!(net.owners(), [1]);
    net.input(0, Instance::resume);
    net.run(ms(10_000));
    assert_eq!(net.owners(), [0]);
    assert_eq!(net.instance(0).last_transition().cause, Cause::Preemption);
}

//! Fast adverts on a machine that is late: what the time of receipt decides, what is counted, and who
//! of several Backups is first.

use std::net::IpAddr;

use super::net::{Net, config, interval, ms, us, with};
use crate::{
    config::model::VrrpConfig,
    core::{
        time::Timestamp,
        vrrp::{Advert, Auth, Cause, Instance, State, VrrpAction, rank},
    },
};

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 2, 99));

/// Adverts every 10 ms.
fn fast(priority: u8) -> VrrpConfig {
    with(config(priority), |c| c.advert_interval = interval(10))
}

fn advert(priority: u8) -> Advert {
    let config = fast(100);
    Advert {
        version: config.version,
        vrid: config.vrid,
        priority,
        interval: config.advert_interval,
        addresses: vec!["10.0.2.100".parse().unwrap()],
        auth: Auth::None,
    }
}

/// A Backup of priority 100 that has just heard an Active of priority 200, and when it takes over
/// if nothing else is heard: three intervals and a skew of 6,093,750 ns later.
fn backup(now: Timestamp) -> (Instance, Timestamp) {
    let mut instance = Instance::new(&fast(100), now);
    instance
        .handle_advert(now, now, PEER, &advert(200))
        .unwrap();
    (
        instance,
        now + us(36_093) + std::time::Duration::from_nanos(750),
    )
}

/// An advert that came in before the deadline and is read after it prevents the takeover, and the next
/// deadline counts from when it came in.
#[test]
fn an_advert_that_is_read_late_prevents_the_takeover() {
    let now = Timestamp::from_nanos(0);
    let (mut instance, deadline) = backup(now);
    assert_eq!(instance.poll_timeout(), Some(deadline));
    let (received, read) = (now + ms(36), now + ms(45));
    let heard = instance.handle_advert(read, received, PEER, &advert(200));
    assert!(heard.is_ok());
    instance.handle_timeout(read);
    assert_eq!(instance.state(), State::Backup);
    assert_eq!(instance.poll_timeout(), Some(deadline + ms(36)));
    // Silence is counted from then, too.
    instance.handle_timeout(deadline + ms(36));
    assert_eq!(instance.state(), State::Active);
    assert_eq!(instance.last_transition().cause, Cause::NoAdvert);
}

/// Who was deaf for more than an interval may have missed what came later: it listens from now on.
#[test]
fn an_advert_that_is_older_than_an_interval_counts_from_now() {
    let now = Timestamp::from_nanos(0);
    for late in [ms(11), ms(60_000)] {
        let (mut instance, deadline) = backup(now);
        let read = now + ms(20) + late;
        let heard = instance.handle_advert(read, now + ms(20), PEER, &advert(200));
        assert!(heard.is_ok());
        instance.handle_timeout(read);
        assert_eq!(instance.state(), State::Backup);
        assert_eq!(instance.poll_timeout(), Some(deadline + ms(20) + late));
    }
}

/// A time of receipt in the future, as after a step of the clock, counts as now.
#[test]
fn an_advert_of_the_future_counts_from_now() {
    let now = Timestamp::from_nanos(0);
    let (mut instance, deadline) = backup(now);
    let heard = instance.handle_advert(now + ms(10), now + ms(60_000), PEER, &advert(200));
    assert!(heard.is_ok());
    assert_eq!(instance.poll_timeout(), Some(deadline + ms(10)));
}

/// A resignation is answered a skew after it came in, however late it is read.
#[test]
fn a_resignation_counts_from_when_it_came_in() {
    let now = Timestamp::from_nanos(0);
    let (mut instance, _) = backup(now);
    let heard = instance.handle_advert(now + ms(14), now + ms(10), PEER, &advert(0));
    assert!(heard.is_ok());
    instance.handle_timeout(now + ms(16));
    assert_eq!(instance.state(), State::Backup);
    instance.handle_timeout(now + us(16_094));
    assert_eq!(instance.state(), State::Active);
}

/// Late timers are counted and told of: an advert of the owner, and its lapse.
#[test]
fn late_timers_are_counted() {
    let now = Timestamp::from_nanos(0);
    let mut owner = Instance::new(&fast(255), now);
    owner.handle_advert_sent(now, now);
    owner.handle_timeout(now + ms(15));
    assert_eq!(
        owner.lateness().timers(),
        0,
        "half an interval is no matter"
    );
    owner.handle_advert_sent(now + ms(15), now + ms(15));
    // Due at 20 ms.
    owner.handle_timeout(now + ms(28));
    assert_eq!(
        (owner.lateness().timers(), owner.lateness().worst()),
        (1, ms(8))
    );
    assert_eq!(owner.state(), State::Active);
    let news = owner.take_late(now + ms(28)).unwrap();
    assert_eq!((news.timers, news.worst), (1, ms(8)));
    // Frozen until the lease is over: it leaves, and listens for a full down interval.
    owner.handle_timeout(now + ms(100));
    assert_eq!(owner.state(), State::Backup);
    assert_eq!(owner.last_transition().cause, Cause::LeaseLapsed);
    assert_eq!(owner.counters().lapses, 1);
    assert_eq!(owner.lateness().timers(), 2);
    assert!(owner.poll_timeout().unwrap() > now + ms(130));
}

/// Whoever is so late that the others may have taken over sends no advert any more.
#[test]
fn who_is_too_late_claims_nothing() {
    let now = Timestamp::from_nanos(0);
    let mut owner = Instance::new(&fast(255), now);
    owner.handle_advert_sent(now, now);
    while owner.poll_action().is_some() {}
    owner.handle_timeout(now + ms(30));
    let actions: Vec<_> = std::iter::from_fn(|| owner.poll_action()).collect();
    let fenced = VrrpAction::SetLease { deadline: None };
    assert_eq!(actions, [fenced, VrrpAction::BecomeBackup]);
}

/// Of two Backups whose skews are 39 us apart the second one leaves the first a step to be heard, once
/// it knows of it, and takes over all the same if the first is gone.
#[test]
fn neighbouring_backups_do_not_take_over_together() {
    let mut net = Net::new([fast(200), fast(199), fast(198)]);
    net.run(ms(200));
    // Each was Active once, so that the others know its priority.
    for node in [0, 1] {
        net.input(node, Instance::step_down);
        net.run(ms(200));
    }
    for node in [0, 1] {
        net.input(node, Instance::resume);
    }
    net.run(ms(200));
    assert_eq!(net.owners(), [0]);
    let due = |net: &Net, node: usize| net.instance(node).poll_timeout().unwrap();
    let apart = due(&net, 2).saturating_since(due(&net, 1));
    assert!(apart >= rank::STEP, "{apart:?}");
    net.trace();
    net.kill(0);
    net.run(ms(200));
    assert_eq!(
        net.moves().iter().map(|m| (m.1, m.2)).collect::<Vec<_>>(),
        [(1, "active")]
    );
    net.kill(1);
    net.run(ms(200));
    let moves = net.moves();
    assert_eq!(
        moves.iter().map(|m| (m.1, m.2)).collect::<Vec<_>>(),
        [(2, "active")]
    );
}

/// A Backup whose own timer was late listens for another interval: the Active's next advert, which may
/// be under way, keeps it a Backup; silence makes it Active.
#[test]
fn a_late_backup_listens_for_another_interval() {
    let now = Timestamp::from_nanos(0);
    for heard in [true, false] {
        let (mut instance, deadline) = backup(now);
        let late = deadline + us(5_001);
        instance.handle_timeout(late);
        assert_eq!(instance.state(), State::Backup);
        assert_eq!(instance.poll_timeout(), Some(late + ms(10)));
        if heard {
            let at = late + ms(3);
            assert!(instance.handle_advert(at, at, PEER, &advert(200)).is_ok());
        }
        instance.handle_timeout(late + ms(16));
        let expected = if heard { State::Backup } else { State::Active };
        assert_eq!(instance.state(), expected);
    }
}

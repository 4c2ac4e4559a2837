//! The lease: what an Active may claim, and for how long.

use super::net::{Net, config, interval, ms, us, with};
use crate::core::{
    time::Timestamp,
    vrrp::{Cause, Instance, State, VrrpAction},
};

fn drain(instance: &mut Instance) -> Vec<VrrpAction> {
    std::iter::from_fn(|| instance.poll_action()).collect()
}

/// An owner at time 0 whose first advert left 10 us later.
fn owner(now: Timestamp) -> Instance {
    let mut instance = Instance::new(&config(255), now);
    instance.handle_advert_sent(now + us(20), now + us(10));
    drain(&mut instance);
    instance
}

/// Every advert renews the lease, counted from just before it left.
#[test]
fn an_advert_renews_the_lease() {
    let now = Timestamp::from_nanos(0);
    let mut instance = owner(now);
    assert_eq!(instance.lease_deadline(), Some(now + us(10) + ms(3_000)));
    instance.handle_timeout(now + ms(1_000));
    drain(&mut instance);
    instance.handle_advert_sent(now + ms(1_003), now + ms(1_002));
    let deadline = Some(now + ms(4_002));
    assert_eq!(drain(&mut instance), [VrrpAction::SetLease { deadline }]);
    // A report that comes out of order does not shorten it.
    instance.handle_advert_sent(now + ms(1_004), now + ms(1_001));
    assert_eq!(drain(&mut instance), []);
    assert_eq!(instance.lease_deadline(), deadline);
}

/// Adverts that cannot be sent do not renew: the lease runs out at its time, not later.
#[test]
fn failed_adverts_do_not_renew() {
    let mut net = Net::new([config(200), config(100)]);
    net.run(ms(10_000));
    net.trace();
    net.nodes[0].send_fails = true;
    net.run(ms(10_000));
    let moves = net.moves();
    // Last advert at 9.21875 s.
    assert_eq!(moves[0], (12_218_750, 0, "backup"));
    assert_eq!(moves[1], (12_828_125, 1, "active"));
    assert_eq!(net.owners(), [1]);
    assert_eq!(net.instance(0).counters().lapses, 1);
    assert!(net.instance(0).counters().send_failures >= 3);
}

/// A takeover whose first advert fails is none: no address is added, and it is tried again
/// after a down interval.
#[test]
fn a_takeover_without_an_advert_is_none() {
    let mut net = Net::new([config(100)]);
    net.nodes[0].send_fails = true;
    net.run(ms(4_000));
    assert_eq!(net.trace(), [(3_609_375, 0, "advert")]);
    assert_eq!(net.instance(0).state(), State::Backup);
    assert_eq!(net.instance(0).last_transition().cause, Cause::SendFailed);
    net.nodes[0].send_fails = false;
    net.run(ms(4_000));
    assert_eq!(net.moves(), [(7_218_750, 0, "active")]);
}

/// A takeover whose report never comes ends after an interval.
#[test]
fn an_unreported_takeover_ends() {
    let now = Timestamp::from_nanos(0);
    let mut instance = Instance::new(&config(255), now);
    instance.handle_timeout(now + ms(999));
    assert_eq!(instance.state(), State::Active);
    instance.handle_timeout(now + ms(1_000));
    assert_eq!(instance.state(), State::Backup);
    assert_eq!(drain(&mut instance), [], "claims are withdrawn");
}

/// A frozen owner is replaced while its lease is void already; when it goes on it has heard its
/// successor, yields, and preempts no sooner than a full down interval later.
#[test]
fn a_frozen_owner_lapses_and_waits() {
    let mut net = Net::new([config(200), config(100)]);
    net.run(ms(10_000));
    net.trace();
    net.freeze(0);
    net.run(ms(2_218));
    assert_eq!(net.owners(), [0]);
    net.run(ms(1));
    assert_eq!(net.owners(), Vec::<usize>::new());
    net.run(ms(7_781));
    assert_eq!(net.owners(), [1]);
    net.thaw(0);
    net.run(ms(5_000));
    assert_eq!(
        net.moves(),
        [
            (12_828_125, 1, "active"),
            (20_000_000, 0, "backup"),
            (23_218_750, 0, "active"),
            (23_218_750, 1, "backup"),
        ]
    );
    assert_eq!(net.instance(0).counters().lapses, 1);
}

/// Alone on the network the lapse rule is the same: Backup, a down interval, then Active.
#[test]
fn a_lone_owner_waits_after_a_lapse() {
    let mut net = Net::new([config(200)]);
    net.run(ms(10_000));
    net.freeze(0);
    net.run(ms(10_000));
    net.thaw(0);
    assert_eq!(net.instance(0).last_transition().cause, Cause::LeaseLapsed);
    net.run(ms(10_000));
    assert_eq!(
        net.moves(),
        [
            (3_218_750, 0, "active"),
            (20_000_000, 0, "backup"),
            (23_218_750, 0, "active"),
        ]
    );
}

/// A freeze that ends within the lease costs nothing.
#[test]
fn a_short_freeze_is_survived() {
    let mut net = Net::new([config(200), config(100)]);
    net.run(ms(10_000));
    net.trace();
    net.freeze(0);
    net.run(ms(2_000));
    net.thaw(0);
    net.run(ms(10_000));
    assert_eq!(net.moves(), []);
    assert_eq!(net.owners(), [0]);
}

/// The last nanosecond of the lease still renews, its deadline does not.
#[test]
fn the_deadline_itself_is_too_late() {
    let now = Timestamp::from_nanos(0);
    let deadline = now + us(10) + ms(3_000);
    let mut in_time = owner(now);
    in_time.handle_timeout(Timestamp::from_nanos(deadline.as_nanos() - 1));
    assert!(matches!(
        drain(&mut in_time)[..],
        [VrrpAction::SendAdvert { not_after, .. }, VrrpAction::Announce] if not_after == deadline
    ));
    let mut late = owner(now);
    late.handle_timeout(deadline);
    let released = [
        VrrpAction::SetLease { deadline: None },
        VrrpAction::BecomeBackup,
    ];
    assert_eq!(drain(&mut late), released);
    // Frozen between the decision and the sending: the same.
    let mut stalled = owner(now);
    stalled.handle_timeout(now + ms(1_000));
    drain(&mut stalled);
    stalled.handle_advert_sent(deadline + us(2), deadline + us(1));
    assert_eq!(drain(&mut stalled), released);
    assert_eq!(stalled.counters().lapses, 1);
}

/// An advert that is heard after a freeze is judged as Backup: no answer under a void lease.
#[test]
fn a_lapsed_owner_answers_no_advert() {
    let now = Timestamp::from_nanos(0);
    let mut instance = owner(now);
    let mut peer = Instance::new(&config(100), now);
    peer.handle_timeout(now + ms(3_610));
    let Some(VrrpAction::SendAdvert { advert, .. }) = peer.poll_action() else {
        panic!("no advert");
    };
    let from = "10.0.2.11".parse().unwrap();
    instance
        .handle_advert(now + ms(60_000), now + ms(60_000), from, &advert)
        .unwrap();
    let actions = drain(&mut instance);
    assert!(
        !actions
            .iter()
            .any(|a| matches!(a, VrrpAction::SendAdvert { .. }))
    );
    assert_eq!(instance.state(), State::Backup);
}

/// Late timers in Backup: what queued up in the socket is heard first and prevents a takeover.
#[test]
fn a_frozen_backup_does_not_take_over() {
    let mut net = Net::new([config(200), config(100)]);
    net.run(ms(10_000));
    net.trace();
    net.freeze(1);
    net.run(ms(60_000));
    net.thaw(1);
    net.run(ms(10_000));
    assert_eq!(net.moves(), []);
}

/// Late announcements become one, late adverts too.
#[test]
fn late_timers_fire_once() {
    let mut net = Net::new([config(255)]);
    net.run(ms(900));
    net.trace();
    net.freeze(0);
    net.run(ms(1_600));
    net.thaw(0);
    assert_eq!(
        net.trace(),
        [(2_500_000, 0, "advert"), (2_500_000, 0, "announce")]
    );
    net.run(ms(500));
    assert_eq!(net.trace(), [(3_000_000, 0, "advert")]);
}

/// A pause between the look at the sockets and the decision: the time is the earlier one, and what came
/// in meanwhile is heard at the next look.
#[test]
fn a_pause_after_the_last_look_is_no_silence() {
    let mut net = Net::new([config(200), config(100)]);
    net.run(ms(10_000));
    net.freeze(1);
    let looked = net.now;
    net.run(ms(3_700));
    let woken = net.now;
    let backup = net.instance_mut(1);
    assert!(backup.poll_timeout().is_some_and(|due| due <= woken));
    backup.handle_timeout(looked);
    assert_eq!(backup.state(), State::Backup);
    net.thaw(1);
    net.run(ms(10_000));
    assert_eq!(net.owners(), [0]);
    assert_eq!(net.instance(1).counters().became_active, 0);
}

/// Nobody listened before the socket was open: silence counts from then on, also when it had to be opened
/// again.
#[test]
fn silence_counts_from_the_opening_of_the_socket() {
    let now = Timestamp::from_nanos(0);
    let address = "10.0.2.11".parse().unwrap();
    let mut instance = Instance::new(&config(100), now);
    for opened in [ms(3_000), ms(6_500)] {
        instance.handle_listening(now + opened, address);
        let almost = now + opened + ms(3_609);
        instance.handle_timeout(almost);
        assert_eq!(instance.state(), State::Backup);
    }
    instance.handle_timeout(now + ms(6_500 + 3_610));
    assert_eq!(instance.state(), State::Active);
    instance.handle_listening(now + ms(10_200), address);
    assert_eq!(instance.state(), State::Active);
}

/// A takeover that is not announced within an interval is none: others may have taken over.
#[test]
fn a_takeover_goes_stale() {
    let now = Timestamp::from_nanos(0);
    let limit = now + ms(1_000);
    let mut instance = Instance::new(&config(255), now);
    assert!(matches!(
        drain(&mut instance)[..],
        [VrrpAction::SendAdvert { not_after, .. }] if not_after == limit
    ));
    instance.handle_advert_sent(limit, limit);
    assert_eq!(instance.state(), State::Backup);
    assert_eq!(instance.lease_deadline(), None);
}

/// A report about an advert of an earlier time as Active does not confirm a new takeover.
#[test]
fn a_stale_report_confirms_nothing() {
    let now = Timestamp::from_nanos(0) + ms(1_000);
    let mut instance = Instance::new(&config(255), now);
    drain(&mut instance);
    instance.handle_advert_sent(now + ms(1), now - ms(1));
    assert_eq!(instance.lease_deadline(), None);
    assert_eq!(drain(&mut instance), []);
}

/// After a lapse the wait is by the own interval, not by one learnt before the takeover.
#[test]
fn a_lapse_forgets_a_learnt_interval() {
    let mut net = Net::new([
        config(100),
        with(config(200), |c| c.advert_interval = interval(10)),
    ]);
    net.run(ms(5_000));
    net.kill(1);
    net.run(ms(5_000));
    assert_eq!(net.owners(), [0]);
    assert_eq!(net.instance(0).active_interval(), interval(10));
    net.moves();
    net.freeze(0);
    net.run(ms(10_000));
    net.thaw(0);
    net.run(ms(10_000));
    assert_eq!(
        net.moves(),
        [(20_000_000, 0, "backup"), (23_609_375, 0, "active")]
    );
}

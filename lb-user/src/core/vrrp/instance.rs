//! The state machine of one virtual router (RFC 9568 section 6.4, RFC 3768 section 6.4), sans-IO.
//!
//! Inputs are methods with the time, effects come out of [`Instance::poll_action`] in the order
//! in which they must be executed, and [`Instance::poll_timeout`] says when
//! [`Instance::handle_timeout`] has something to do. After every input: poll all actions, then
//! the timeout.
//!
//! Beyond the RFCs, an Active router owns its addresses by a **lease**: from just before an
//! advert left until three intervals later, which is before any Backup that heard the advert
//! can take over. The data plane compares the deadline with the clock itself, so a frozen
//! controller loses the addresses without anyone's help. One that wakes up after that must not
//! renew: it becomes Backup and listens for a full down interval (the lapse rule).
//!
//! Takeovers are decided in [`Instance::handle_timeout`] alone. A caller that is late must hand
//! in what has queued up in its socket first, with a time from before it looked there: then
//! silence is silence of the others, not deafness of its own. One that is later than half an
//! interval listens for another one. A takeover whose advert is not sent within an interval is
//! none: others may have taken over meanwhile.

use std::{collections::VecDeque, net::IpAddr, num::NonZeroU8, time::Duration};

use ipnet::IpNet;

use super::{
    alarm::{self, Alarm},
    announce::Announcements,
    lateness::{Late, Lateness},
    packet::{Advert, Auth, PRIORITY_OWNER, PRIORITY_STOPPING},
    rank::Known,
    status::{Cause, Counters, Discard, Peer, Remarks, State, Transition},
    timing,
};
use crate::{
    config::model::{AdvertInterval, AnnounceConfig, VrrpConfig, VrrpVersion},
    core::time::Timestamp,
};

/// What the caller has to do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VrrpAction {
    /// Send an advert to the group or to every unicast peer, and report back: with
    /// [`Instance::handle_advert_sent`], or [`Instance::handle_advert_failed`].
    SendAdvert {
        /// What to send.
        advert: Advert,
        /// Do not send it at or after this time, report a failure instead: whoever was frozen
        /// between decision and execution has no right to claim the addresses any more.
        not_after: Timestamp,
    },
    /// Write the lease to the data plane; `None`: the addresses are not owned.
    SetLease {
        /// Boot clock time at which the lease ends by itself.
        deadline: Option<Timestamp>,
    },
    /// Add the virtual addresses. Alternates with [`VrrpAction::BecomeBackup`].
    BecomeActive,
    /// Remove the virtual addresses.
    BecomeBackup,
    /// Send gratuitous ARP or unsolicited NA for every address, now.
    Announce,
}

/// What the configuration says.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    version: VrrpVersion,
    vrid: NonZeroU8,
    /// The configured one; tracking makes another one of it.
    priority: u8,
    interval: AdvertInterval,
    preempt: bool,
    preempt_delay: Duration,
    addresses: Vec<IpAddr>,
    unicast_peers: Vec<IpAddr>,
    auth: Auth,
    announce: AnnounceConfig,
}

impl Settings {
    fn from_config(config: &VrrpConfig) -> Self {
        let auth = match (config.version, config.password) {
            (VrrpVersion::V2, Some(password)) => Auth::Password(password),
            _ => Auth::None,
        };
        // RFC 9568 section 6.1: the address owner preempts whatever Preempt_Mode says.
        let preempt = config.preempt || config.priority.get() == PRIORITY_OWNER;
        Self {
            version: config.version,
            vrid: config.vrid,
            priority: config.priority.get(),
            interval: config.advert_interval,
            preempt,
            preempt_delay: config.preempt_delay,
            addresses: config.addresses.iter().map(IpNet::addr).collect(),
            unicast_peers: config.unicast_peers.clone(),
            auth,
            announce: config.announce,
        }
    }

    /// Whether none of the addresses is one of ours: the advert is another group's.
    fn has_none_of(&self, others: &[IpAddr]) -> bool {
        !self.addresses.iter().any(|a| others.contains(a))
    }

    fn has_addresses(&self, others: &[IpAddr]) -> bool {
        others.len() == self.addresses.len() && self.addresses.iter().all(|a| others.contains(a))
    }
}

#[derive(Debug)]
enum Phase {
    Initialize,
    Backup(Backup),
    Active(Active),
}

#[derive(Debug)]
struct Backup {
    /// `Active_Down_Timer`; `None` while the operator holds the node back.
    down_at: Option<Timestamp>,
    /// What a takeover by that timer will be due to.
    takeover_cause: Cause,
    /// End of the preemption delay, while a lower-priority Active is heard.
    preempt_at: Option<Timestamp>,
    /// The timer was served late, and runs for one interval more.
    listens_on: bool,
}

#[derive(Debug)]
struct Active {
    since: Timestamp,
    /// `Adver_Timer`.
    adver_at: Timestamp,
    /// Set once the first advert has left: only then the addresses are owned.
    owned: Option<Ownership>,
}

#[derive(Debug)]
struct Ownership {
    deadline: Timestamp,
    announcements: Announcements,
}

impl Active {
    /// When the right to be Active ends if nothing renews it. Before the first advert it rests on a
    /// silence that ages.
    fn ends_at(&self, settings: &Settings) -> Timestamp {
        self.owned.as_ref().map_or_else(
            || self.since + settings.interval.duration(),
            |owned| owned.deadline,
        )
    }
}

/// One virtual router on this node.
#[derive(Debug)]
pub struct Instance {
    settings: Settings,
    priority: u8,
    source: Option<IpAddr>,
    /// It is not Active before: end of the delay after its start.
    not_before: Timestamp,
    held: bool,
    /// Tracking has stopped the instance.
    faulty: bool,
    phase: Phase,
    /// `Active_Adver_Interval`.
    active_interval: AdvertInterval,
    peer: Option<Peer>,
    /// Priorities of all that were heard.
    known: Known,
    lateness: Lateness,
    last_transition: Transition,
    transitions: u64,
    counters: Counters,
    rival: Option<Alarm>,
    collision: Option<Alarm>,
    actions: VecDeque<VrrpAction>,
}

impl Instance {
    /// An instance that starts `now`: as Backup, or as Active with priority 255 and without a
    /// delay.
    pub fn new(config: &VrrpConfig, now: Timestamp) -> Self {
        let settings = Settings::from_config(config);
        let mut instance = Self {
            priority: settings.priority,
            source: config.unicast_source,
            not_before: now + config.startup_delay,
            held: false,
            faulty: false,
            phase: Phase::Initialize,
            active_interval: settings.interval,
            peer: None,
            known: Known::default(),
            lateness: Lateness::default(),
            last_transition: Transition {
                at: now,
                from: State::Initialize,
                to: State::Initialize,
                cause: Cause::Startup,
            },
            transitions: 0,
            counters: Counters::default(),
            rival: None,
            collision: None,
            actions: VecDeque::new(),
            settings,
        };
        instance.start(now);
        instance
    }

    // --- Inputs -------------------------------------------------------------------------------

    /// Startup event (RFC 9568 section 6.4.1). Nothing happens unless stopped.
    pub fn start(&mut self, now: Timestamp) {
        if self.faulty || !matches!(self.phase, Phase::Initialize) {
            return;
        }
        self.active_interval = self.settings.interval;
        if self.priority == PRIORITY_OWNER && !self.held && self.not_before <= now {
            self.take_over(now, Cause::AddressOwner);
        } else {
            self.enter_backup(now, Cause::Startup);
        }
    }

    /// Shutdown event (RFC 9568 sections 6.4.2 and 6.4.3): resign and leave.
    ///
    /// Resigning fences first, then tells the others, then takes the addresses down: the next
    /// owner starts as early as possible and never beside this one.
    pub fn stop(&mut self, now: Timestamp) {
        self.resign(now);
        self.faulty = false;
        self.transition(now, Phase::Initialize, Cause::Stop);
    }

    /// Tracking made `priority` of the configured one. An Active tells the others at once; a Backup
    /// goes on to wait as one with the new priority does.
    pub fn set_priority(&mut self, now: Timestamp, priority: u8) {
        if priority == self.priority {
            return;
        }
        let before = self.skew();
        self.priority = priority;
        let after = self.skew();
        match &mut self.phase {
            Phase::Initialize => {}
            Phase::Backup(backup) => {
                backup.down_at = backup.down_at.map(|at| at - before + after);
            }
            Phase::Active(active) => active.adver_at = now,
        }
    }

    /// Tracking found that this node must not be Active (or that it may be again): it resigns and
    /// takes no part, until it begins as after a start.
    pub fn set_fault(&mut self, now: Timestamp, faulty: bool) {
        if faulty == self.faulty {
            return;
        }
        if faulty {
            if !matches!(self.phase, Phase::Initialize) {
                self.resign(now);
                self.transition(now, Phase::Initialize, Cause::Fault);
                self.faulty = true;
            }
        } else {
            self.faulty = false;
            self.start(now);
        }
    }

    /// Another instance of the group had to leave its addresses: an Active resigns, and listens as a
    /// Backup.
    pub fn follow_group(&mut self, now: Timestamp) {
        if let Phase::Active(_) = self.phase {
            self.resign(now);
            self.enter_backup(now, Cause::SyncGroup);
        }
    }

    /// The operator takes this node out: resign if Active, and stay Backup until
    /// [`Instance::resume`].
    pub fn step_down(&mut self, now: Timestamp) {
        self.held = true;
        match &mut self.phase {
            Phase::Initialize => {}
            Phase::Backup(backup) => {
                backup.down_at = None;
                backup.preempt_at = None;
            }
            Phase::Active(_) => {
                self.resign(now);
                self.enter_backup(now, Cause::StepDown);
            }
        }
    }

    /// The operator lets this node take part again; it first listens for a down interval.
    pub fn resume(&mut self, now: Timestamp) {
        if !std::mem::take(&mut self.held) {
            return;
        }
        if let Phase::Backup(_) = self.phase {
            self.phase = self.fresh_backup(now);
        }
    }

    /// This node listens from `now` on, and its adverts leave from `source`: that breaks ties, and tells
    /// own adverts from others. Unknown, ties are lost. Silence before says nothing: nobody listened.
    pub fn handle_listening(&mut self, now: Timestamp, source: IpAddr) {
        self.source = Some(source);
        let silent_until = now.max(self.not_before) + self.down_interval();
        if let Phase::Backup(backup) = &mut self.phase {
            backup.down_at = backup.down_at.map(|at| at.max(silent_until));
        }
    }

    /// The configuration changed, but for interface, VRID and family. The state stays: an owner goes
    /// on to own, and tells the others at once what is new.
    pub fn reconfigure(&mut self, now: Timestamp, config: &VrrpConfig) {
        let settings = Settings::from_config(config);
        if settings == self.settings {
            return;
        }
        let before = std::mem::replace(&mut self.settings, settings);
        if before.priority != self.settings.priority {
            // What tracking makes of it comes next.
            self.priority = self.settings.priority;
        }
        if self.peer.is_none() {
            self.active_interval = self.settings.interval;
        }
        let Phase::Active(active) = &mut self.phase else {
            return;
        };
        active.adver_at = now;
        let Some(owned) = &mut active.owned else {
            return;
        };
        // Whoever hears the advert with a shorter interval waits no longer than that lets it.
        let longest = now + timing::lease(self.settings.interval);
        if longest < owned.deadline {
            owned.deadline = longest;
            self.actions.push_back(VrrpAction::SetLease {
                deadline: Some(longest),
            });
        }
        owned.announcements.replan(now, self.settings.announce);
        if before.addresses != self.settings.addresses {
            owned.announcements = Announcements::start(now, self.settings.announce);
            self.actions.push_back(VrrpAction::Announce);
        }
    }

    /// A well-formed advert from `src` that this node received `at`. Adverts that have queued up
    /// must be handed in before [`Instance::handle_timeout`].
    ///
    /// Timers count from `at`, unless that is more than an interval ago: then it says more of this
    /// node than of the others. Who was deaf for that long, and perhaps missed what came later,
    /// listens from `now` on.
    pub fn handle_advert(
        &mut self,
        now: Timestamp,
        at: Timestamp,
        src: IpAddr,
        advert: &Advert,
    ) -> Result<Remarks, Discard> {
        self.watch_timers(now);
        // Frozen since the lease ended: what was heard is heard as Backup.
        self.lapse_if_due(now);
        if let Err(discard) = self.check(src, advert) {
            self.counters.count_discard(discard);
            self.watch_for_collision(now, src, advert, discard);
            if discard == Discard::AddressOwner && advert.priority != PRIORITY_STOPPING {
                self.win_back(now, src, advert.priority);
            }
            return Err(discard);
        }
        let mut remarks = self.note(now, src, advert);
        let age = now.saturating_since(at);
        let heard = if age <= advert.interval.duration() {
            now - age
        } else {
            now
        };
        match self.phase {
            Phase::Initialize => {}
            Phase::Backup(_) => self.hear_as_backup(heard, advert),
            Phase::Active(_) => remarks.rival = self.hear_as_active(now, src, advert),
        }
        Ok(remarks)
    }

    /// An advert left; `sent_at` is the time just before it was handed to the kernel.
    pub fn handle_advert_sent(&mut self, now: Timestamp, sent_at: Timestamp) {
        self.counters.adverts_sent += 1;
        let Phase::Active(active) = &mut self.phase else {
            return;
        };
        if sent_at < active.since {
            return; // of an earlier time as Active
        }
        if sent_at >= active.ends_at(&self.settings) {
            self.lapse(now);
            return;
        }
        let renewed = sent_at + timing::lease(self.settings.interval);
        match &mut active.owned {
            None => {
                active.owned = Some(Ownership {
                    deadline: renewed,
                    announcements: Announcements::start(now, self.settings.announce),
                });
                self.counters.became_active += 1;
                self.actions.extend([
                    VrrpAction::SetLease {
                        deadline: Some(renewed),
                    },
                    VrrpAction::BecomeActive,
                    VrrpAction::Announce,
                ]);
            }
            Some(owned) if renewed > owned.deadline => {
                owned.deadline = renewed;
                self.actions.push_back(VrrpAction::SetLease {
                    deadline: Some(renewed),
                });
            }
            Some(_) => {}
        }
    }

    /// An advert could not be sent. The lease is not renewed; a takeover that nobody heard of is
    /// none.
    pub fn handle_advert_failed(&mut self, now: Timestamp) {
        self.counters.send_failures += 1;
        if let Phase::Active(Active { owned: None, .. }) = self.phase {
            self.enter_backup(now, Cause::SendFailed);
        }
    }

    /// Do what is due. Calls that are early or repeated do nothing; late ones do everything
    /// once. All adverts that were received before `now` have been handed in.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        self.watch_timers(now);
        self.lapse_if_due(now);
        match &mut self.phase {
            Phase::Initialize => {}
            Phase::Backup(_) if now < self.not_before => {}
            Phase::Backup(backup) => {
                let is_due = |at: Option<Timestamp>| at.is_some_and(|at| at <= now);
                // RFC 9568 section 6.4.2: the Active_Down_Timer fires.
                if is_due(backup.down_at) {
                    let interval = self.active_interval.duration();
                    let in_time = |at: Timestamp| now <= at + interval / 2;
                    if !backup.listens_on && !backup.down_at.is_some_and(in_time) {
                        // Where this thread had to wait, what the kernel does with packets may
                        // have waited, too: the socket is empty, and yet the Active sends. Its
                        // next advert is at most an interval away.
                        backup.listens_on = true;
                        let until = now + interval;
                        backup.down_at = Some(until);
                        backup.preempt_at = backup.preempt_at.map(|at| at.max(until));
                        return;
                    }
                    let cause = backup.takeover_cause;
                    self.take_over(now, cause);
                } else if is_due(backup.preempt_at) {
                    self.take_over(now, Cause::Preemption);
                }
            }
            Phase::Active(active) => {
                // RFC 9568 section 6.4.3: the Adver_Timer fires.
                let send = active.adver_at <= now;
                if send {
                    // From the last time, not from now: lateness does not add up. But never
                    // two in quick succession to catch up.
                    let interval = self.settings.interval.duration();
                    active.adver_at = (active.adver_at + interval).max(now + interval / 2);
                }
                let owned = active.owned.as_mut();
                let announce = owned.is_some_and(|owned| owned.announcements.take_due(now));
                if send {
                    self.send_advert();
                }
                if announce {
                    self.actions.push_back(VrrpAction::Announce);
                }
            }
        }
    }

    // --- Outputs ------------------------------------------------------------------------------

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<VrrpAction> {
        self.actions.pop_front()
    }

    /// When [`Instance::handle_timeout`] has something to do; `None`: not before another input.
    /// Every input may change it, to a sooner or a later time; nothing else does. A time in the
    /// past means now.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        match &self.phase {
            Phase::Initialize => None,
            Phase::Backup(backup) => {
                let first = backup.down_at.into_iter().chain(backup.preempt_at).min();
                first.map(|at| at.max(self.not_before))
            }
            Phase::Active(active) => {
                let owned = active.owned.as_ref();
                let announce = owned.and_then(|owned| owned.announcements.poll_timeout());
                let timers = [active.adver_at, active.ends_at(&self.settings)];
                timers.into_iter().chain(announce).min()
            }
        }
    }

    /// State.
    pub const fn state(&self) -> State {
        match self.phase {
            Phase::Initialize => State::Initialize,
            Phase::Backup(_) => State::Backup,
            Phase::Active(_) => State::Active,
        }
    }

    /// End of the lease; `None`: the addresses are not owned. A deadline that has passed is
    /// none either.
    pub fn lease_deadline(&self) -> Option<Timestamp> {
        match &self.phase {
            Phase::Active(active) => active.owned.as_ref().map(|owned| owned.deadline),
            _ => None,
        }
    }

    /// Virtual router id.
    pub const fn vrid(&self) -> NonZeroU8 {
        self.settings.vrid
    }

    /// Own priority, as tracking has it now.
    pub const fn priority(&self) -> u8 {
        self.priority
    }

    /// Whether the operator holds this node back.
    pub const fn is_held(&self) -> bool {
        self.held
    }

    /// Whether tracking has stopped the instance.
    pub const fn is_faulty(&self) -> bool {
        self.faulty
    }

    /// Own primary address, as far as it is known.
    pub const fn source_address(&self) -> Option<IpAddr> {
        self.source
    }

    /// The router whose advert was accepted last.
    pub const fn peer(&self) -> Option<&Peer> {
        self.peer.as_ref()
    }

    /// Primary address of the Active router as this node sees it: its own, or that of the peer
    /// that is heard.
    pub fn active_address(&self) -> Option<IpAddr> {
        match &self.phase {
            Phase::Initialize => None,
            Phase::Active(_) => self.source,
            Phase::Backup(_) => {
                let peer = self.peer.filter(|peer| peer.priority != PRIORITY_STOPPING);
                peer.map(|peer| peer.address)
            }
        }
    }

    /// `Active_Adver_Interval`: the learnt interval of the Active router.
    pub const fn active_interval(&self) -> AdvertInterval {
        self.active_interval
    }

    /// The last change of state.
    pub const fn last_transition(&self) -> Transition {
        self.last_transition
    }

    /// Number of changes of state: tells a caller whether [`Instance::last_transition`] is new.
    pub const fn transitions(&self) -> u64 {
        self.transitions
    }

    /// How late timers were served.
    pub const fn lateness(&self) -> &Lateness {
        &self.lateness
    }

    /// Late timers that nobody was told of, where it is time to.
    pub fn take_late(&mut self, now: Timestamp) -> Option<Late> {
        self.lateness.take_news(now)
    }

    /// What is wrong among the routers of the link, as far as it was seen lately.
    pub fn alarms(&self, now: Timestamp) -> impl Iterator<Item = &Alarm> {
        let all = self.rival.iter().chain(&self.collision);
        all.filter(move |alarm| now < alarm.heard() + alarm::SHOWN)
    }

    /// Counters.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    // --- Received adverts ---------------------------------------------------------------------

    /// The checks of RFC 9568 section 7.1 (RFC 3768 section 7.1) that need the configuration.
    fn check(&self, src: IpAddr, advert: &Advert) -> Result<(), Discard> {
        let settings = &self.settings;
        if matches!(self.phase, Phase::Initialize) {
            return Err(Discard::Stopped);
        }
        if self.source == Some(src) {
            return Err(Discard::Own);
        }
        if advert.vrid != settings.vrid {
            return Err(Discard::Vrid(advert.vrid));
        }
        if advert.version != settings.version {
            return Err(Discard::Version(advert.version));
        }
        if !settings.unicast_peers.is_empty() && !settings.unicast_peers.contains(&src) {
            return Err(Discard::UnknownPeer(src));
        }
        if advert.auth != settings.auth {
            return Err(Discard::Auth);
        }
        if advert.version == VrrpVersion::V2 {
            if advert.interval != settings.interval {
                return Err(Discard::Interval(advert.interval));
            }
            if advert.priority != PRIORITY_OWNER && !settings.has_addresses(&advert.addresses) {
                return Err(Discard::Addresses);
            }
        } else if settings.has_none_of(&advert.addresses) {
            // RFC 9568 section 7.1 leaves the comparison to the implementation. Lists that differ in
            // part are a configuration that is being rolled out; another group is to be left alone.
            return Err(Discard::Addresses);
        }
        // RFC 9568 section 7.1: nobody tells the owner of the addresses anything.
        if self.priority == PRIORITY_OWNER && matches!(self.phase, Phase::Active(_)) {
            return Err(Discard::AddressOwner);
        }
        Ok(())
    }

    /// Whoever uses this VRID for other addresses only is another group, whatever else is wrong
    /// with its adverts.
    fn watch_for_collision(
        &mut self,
        now: Timestamp,
        from: IpAddr,
        advert: &Advert,
        discard: Discard,
    ) {
        let not_heard = matches!(discard, Discard::Own | Discard::Stopped | Discard::Vrid(_));
        if !not_heard && self.settings.has_none_of(&advert.addresses) {
            self.collision = Some(Alarm::Collision {
                from,
                addresses: advert.addresses.clone(),
                heard: now,
            });
        }
    }

    /// Remember an accepted advert. Version 3 takes other addresses and intervals: refusing them
    /// would make two owners out of a configuration that is being rolled out.
    fn note(&mut self, now: Timestamp, src: IpAddr, advert: &Advert) -> Remarks {
        let counters = &mut self.counters;
        counters.adverts_received += 1;
        counters.resignations_received += u64::from(advert.priority == PRIORITY_STOPPING);
        let same_interval = advert.interval == self.settings.interval;
        counters.interval_mismatches += u64::from(!same_interval);
        let same_addresses = self.settings.has_addresses(&advert.addresses);
        counters.address_mismatches += u64::from(!same_addresses);
        if advert.priority != PRIORITY_STOPPING {
            self.known.hear(src, advert.priority);
        }
        self.peer = Some(Peer {
            address: src,
            priority: advert.priority,
            interval: advert.interval,
            heard: now,
        });
        Remarks {
            rival: false,
            other_addresses: !same_addresses,
        }
    }

    /// RFC 9568 section 6.4.2, RFC 3768 section 6.4.2.
    fn hear_as_backup(&mut self, now: Timestamp, advert: &Advert) {
        if self.held {
            self.active_interval = advert.interval;
        } else if advert.priority == PRIORITY_STOPPING {
            self.hear_resignation(now);
        } else if advert.priority >= self.priority || !self.settings.preempt {
            // Learn Active_Adver_Interval and start the Active_Down_Timer again.
            self.active_interval = advert.interval;
            self.phase = self.fresh_backup(now);
        } else {
            self.hear_lower(now, advert);
        }
    }

    /// The Active router has resigned: take over after `Skew_Time`.
    fn hear_resignation(&mut self, now: Timestamp) {
        let skewed = now + self.skew();
        if let Phase::Backup(backup) = &mut self.phase {
            backup.down_at = backup.down_at.map(|at| at.min(skewed));
            backup.takeover_cause = Cause::PeerResigned;
        }
    }

    /// A lower-priority Active is heard, and may be preempted. Without a delay its adverts are
    /// discarded, as the RFCs say: the timer runs on and takes over. With one, they count until
    /// the delay is over, so that its death is noticed meanwhile.
    fn hear_lower(&mut self, now: Timestamp, advert: &Advert) {
        let delay = self.settings.preempt_delay;
        let Phase::Backup(backup) = &mut self.phase else {
            return;
        };
        if delay.is_zero() {
            backup.takeover_cause = Cause::Preemption;
            return;
        }
        // A delay shorter than what is left of the timer does not make the takeover sooner.
        let earliest = backup.down_at.map_or(now, |at| at.max(now));
        let preempt_at = backup.preempt_at.unwrap_or((now + delay).max(earliest));
        self.active_interval = advert.interval;
        self.phase = Phase::Backup(Backup {
            down_at: Some(now + self.down_interval()),
            takeover_cause: Cause::NoAdvert,
            preempt_at: Some(preempt_at),
            listens_on: false,
        });
    }

    /// RFC 9568 section 6.4.3, RFC 3768 section 6.4.3. Whether the sender is a rival.
    fn hear_as_active(&mut self, now: Timestamp, src: IpAddr, advert: &Advert) -> bool {
        if advert.priority == PRIORITY_STOPPING {
            // Tell whoever is about to take over by that advert that there is an Active.
            if let Phase::Active(active) = &mut self.phase {
                active.adver_at = now + self.settings.interval.duration();
            }
            self.send_advert();
        } else if advert.priority > self.priority {
            self.active_interval = advert.interval;
            self.concede(now, Cause::HigherPriority);
        } else if advert.priority == self.priority && self.source.is_none_or(|own| src > own) {
            self.active_interval = advert.interval;
            self.concede(now, Cause::HigherAddress);
        } else {
            return self.assert_active(now, src, advert.priority);
        }
        false
    }

    /// Leave the addresses to a better router that is Active as well. Neighbours may have learnt
    /// this node's MAC, and the other does not know: its adverts and ours crossed a link that
    /// came back. A last advert of our own makes it assert itself, and so announce the addresses
    /// again, as every VRRP router does that hears a lesser one (RFC 9568 section 6.4.3).
    fn concede(&mut self, now: Timestamp, cause: Cause) {
        let claimed = matches!(&self.phase, Phase::Active(active) if active.owned.is_some());
        self.enter_backup(now, cause);
        if claimed {
            self.push_advert(self.priority, now + self.settings.interval.duration());
        }
    }

    /// A lesser router believes to be Active. Version 3 asserts itself at once (version 2 stays
    /// silent until the timer). In both, neighbours may have learnt its MAC: win them back.
    fn assert_active(&mut self, now: Timestamp, src: IpAddr, priority: u8) -> bool {
        if self.settings.version == VrrpVersion::V3 {
            self.send_advert();
        }
        self.win_back(now, src, priority)
    }

    /// Announce against another Active. It is a rival if it had the time to hear this one: of two
    /// that take over at once neither is.
    fn win_back(&mut self, now: Timestamp, from: IpAddr, priority: u8) -> bool {
        self.counters.conflicts += 1;
        let Phase::Active(active) = &mut self.phase else {
            return false;
        };
        let is_rival = now >= active.since + self.settings.interval.duration();
        let owned = active.owned.as_mut();
        if owned.is_some_and(|owned| owned.announcements.conflict(now)) {
            self.actions.push_back(VrrpAction::Announce);
        }
        if is_rival {
            self.rival = Some(Alarm::Rival {
                from,
                priority,
                heard: now,
            });
        }
        is_rival
    }

    // --- Changes of state ---------------------------------------------------------------------

    /// Claim the addresses. They are owned, and the other actions follow, when the first advert
    /// has left.
    fn take_over(&mut self, now: Timestamp, cause: Cause) {
        let active = Active {
            since: now,
            adver_at: now + self.settings.interval.duration(),
            owned: None,
        };
        self.transition(now, Phase::Active(active), cause);
        self.send_advert();
    }

    fn enter_backup(&mut self, now: Timestamp, cause: Cause) {
        let backup = self.fresh_backup(now);
        self.transition(now, backup, cause);
    }

    /// Backup that has just heard the Active router, or assumes to have. While a start is delayed the
    /// link may be deaf: silence counts from the end of the delay.
    fn fresh_backup(&self, now: Timestamp) -> Phase {
        Phase::Backup(Backup {
            down_at: (!self.held).then(|| now.max(self.not_before) + self.down_interval()),
            takeover_cause: Cause::NoAdvert,
            preempt_at: None,
            listens_on: false,
        })
    }

    fn lapse_if_due(&mut self, now: Timestamp) {
        if let Phase::Active(active) = &self.phase
            && now >= active.ends_at(&self.settings)
        {
            self.lapse(now);
        }
    }

    /// The lapse rule: the others may have taken over, so listen first. The interval to wait by
    /// is this node's own: nobody else was heard as Active since it was.
    fn lapse(&mut self, now: Timestamp) {
        self.counters.lapses += 1;
        self.active_interval = self.settings.interval;
        self.enter_backup(now, Cause::LeaseLapsed);
    }

    /// Fence, tell the others, and leave the rest to the change of state that follows. After a
    /// lapse there is nothing to resign from.
    fn resign(&mut self, now: Timestamp) {
        self.lapse_if_due(now);
        if let Phase::Active(active) = &mut self.phase {
            if active.owned.is_some() {
                self.actions
                    .push_back(VrrpAction::SetLease { deadline: None });
            }
            self.push_advert(
                PRIORITY_STOPPING,
                now + timing::lease(self.settings.interval),
            );
        }
    }

    /// Change the state and drop what was owned by the old one.
    fn transition(&mut self, now: Timestamp, to: Phase, cause: Cause) {
        let from = self.state();
        if let Phase::Active(Active { owned, .. }) = &self.phase {
            let owned = owned.is_some();
            self.withdraw_claims();
            if owned {
                self.fence();
                self.actions.push_back(VrrpAction::BecomeBackup);
            }
        }
        self.phase = to;
        if from != self.state() {
            self.transitions += 1;
            self.last_transition = Transition {
                at: now,
                from,
                to: self.state(),
                cause,
            };
        }
    }

    /// Take back adverts and announcements that nobody has executed yet.
    fn withdraw_claims(&mut self) {
        self.actions.retain(|action| match action {
            VrrpAction::SendAdvert { advert, .. } => advert.priority == PRIORITY_STOPPING,
            VrrpAction::Announce => false,
            _ => true,
        });
    }

    /// End the lease, unless the last word about it did so.
    fn fence(&mut self) {
        let last = self.actions.iter().rev().find_map(|action| match action {
            VrrpAction::SetLease { deadline } => Some(*deadline),
            _ => None,
        });
        if last != Some(None) {
            self.actions
                .push_back(VrrpAction::SetLease { deadline: None });
        }
    }

    // --- Adverts and timers -------------------------------------------------------------------

    /// Advertise as Active.
    fn send_advert(&mut self) {
        if let Phase::Active(active) = &self.phase {
            let not_after = active.ends_at(&self.settings);
            self.push_advert(self.priority, not_after);
        }
    }

    fn push_advert(&mut self, priority: u8, not_after: Timestamp) {
        let advert = Advert {
            version: self.settings.version,
            vrid: self.settings.vrid,
            priority,
            interval: self.settings.interval,
            addresses: self.settings.addresses.clone(),
            auth: self.settings.auth,
        };
        self.actions
            .push_back(VrrpAction::SendAdvert { advert, not_after });
    }

    /// Counts a timer that is served late.
    fn watch_timers(&mut self, now: Timestamp) {
        let interval = match self.phase {
            Phase::Active(_) => self.settings.interval,
            _ => self.active_interval,
        };
        if let Some(due) = self.poll_timeout() {
            self.lateness.note(now, due, interval.duration());
        }
    }

    /// `Skew_Time`, and what better Backups are left beyond it.
    fn skew(&self) -> Duration {
        let (version, interval) = (self.settings.version, self.active_interval);
        let own = (self.priority, self.source);
        let gone = self.peer.map(|peer| peer.address);
        let limit = timing::skew(version, 0, interval);
        let skew = |priority| timing::skew(version, priority, interval);
        self.known.skew(own, gone, limit, skew)
    }

    fn down_interval(&self) -> Duration {
        timing::lease(self.active_interval) + self.skew()
    }
}

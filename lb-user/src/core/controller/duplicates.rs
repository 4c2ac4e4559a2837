//! Other hosts that have an address which this node owns: by somebody's mistake, or left behind by a
//! router that died. Clients reach one or the other.
//!
//! Such a host seldom says so unasked. The owner asks now and then, by an ARP probe (RFC 5227 section
//! 2.1.1) or as duplicate address detection does (RFC 4862 section 5.4.2): both come from nobody, so
//! that no neighbour's cache changes.
//!
//! A single claim is no alarm: when an address moves, the former owner, or one that gives way, may have
//! spoken last. Who has claimed one is asked every second, and shown when it still claims it after the
//! time in which every router of the group has heard who is Active.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use lb_common::abi::Mac;

use super::{Action, Controller, Event};
use crate::{
    config::model::VrrpConfig,
    core::{frame::mac_text, notify::Notice, time::Timestamp},
};

/// Between becoming Active and the first probe, and between two while somebody is suspected or shown.
const WATCH_GAP: Duration = Duration::from_secs(1);
/// Who leaves more probes than this without an answer does not have the address any more.
const MAX_UNANSWERED: u32 = 3;
/// Claims that are far apart in adverts: by then a lesser router has given way, or taken over.
const ADVERTS_APART: u32 = 4;
/// The least time between such claims.
const MIN_APART: Duration = Duration::from_secs(2);
/// What the end of an alarm is called where the log's lines are counted.
const GONE: &str = "duplicate_address_gone";
/// Claimants of one instance's addresses that are told apart; more are not looked at.
const MAX_CLAIMANTS: usize = 16;

/// What an owner knows of other hosts with its addresses.
#[derive(Debug, Default)]
pub(super) struct Duplicates {
    /// When they are asked for next; `None`: this node owns nothing, or shall not ask.
    probe_at: Option<Timestamp>,
    claimants: BTreeMap<(IpAddr, Mac), Claimant>,
    /// Claims that were heard, ever.
    claims: u64,
}

#[derive(Clone, Copy, Debug)]
struct Claimant {
    since: Timestamp,
    heard: Timestamp,
    /// Probes since it was heard.
    unanswered: u32,
    shown: bool,
}

/// Another host that has an address which this node owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// The address.
    pub address: IpAddr,
    /// The other host's MAC.
    pub mac: Mac,
    /// When it was heard first.
    pub since: Timestamp,
    /// When it was heard last.
    pub heard: Timestamp,
}

impl Duplicate {
    /// Stable name for status and metrics.
    pub const LABEL: &'static str = "duplicate_address";

    /// What it is and what to do, on this interface.
    pub fn describe(&self, interface: &str) -> String {
        let (address, mac) = (self.address, mac_text(self.mac));
        format!("the host with MAC {mac} on {interface} has {address}, too: remove it there")
    }
}

impl Duplicates {
    /// This node has become the owner, or shall ask from now on.
    fn begin(&mut self, now: Timestamp) {
        self.probe_at = Some(now + WATCH_GAP);
    }

    /// It is the owner no more, or shall ask no more. Who was shown so far.
    fn end(&mut self) -> Vec<(IpAddr, Mac)> {
        self.probe_at = None;
        let gone = std::mem::take(&mut self.claimants).into_iter();
        let shown = gone.filter(|(_, claimant)| claimant.shown);
        shown.map(|(who, _)| who).collect()
    }

    /// A claim of another host; true: it is to be shown from now on.
    fn hear(&mut self, now: Timestamp, address: IpAddr, mac: Mac, apart: Duration) -> bool {
        self.claims += 1;
        let Some(probe_at) = &mut self.probe_at else {
            return false;
        };
        let who = (address, mac);
        if !self.claimants.contains_key(&who) && self.claimants.len() >= MAX_CLAIMANTS {
            return false;
        }
        // It is asked again soon.
        *probe_at = (*probe_at).min(now + WATCH_GAP);
        let claimant = self.claimants.entry(who).or_insert(Claimant {
            since: now,
            heard: now,
            unanswered: 0,
            shown: false,
        });
        claimant.heard = now;
        claimant.unanswered = 0;
        let is_new = !claimant.shown && now >= claimant.since + apart;
        claimant.shown |= is_new;
        is_new
    }

    /// The time for a probe has come. Forgets who has left the last ones without an answer; those of
    /// them that were shown.
    fn probe(&mut self, now: Timestamp, gap: Duration) -> Vec<(IpAddr, Mac)> {
        let mut gone = Vec::new();
        self.claimants.retain(|who, claimant| {
            let stays = claimant.unanswered < MAX_UNANSWERED;
            claimant.unanswered += 1;
            if !stays && claimant.shown {
                gone.push(*who);
            }
            stays
        });
        let gap = if self.claimants.is_empty() {
            gap.max(WATCH_GAP)
        } else {
            WATCH_GAP
        };
        self.probe_at = Some(now + gap);
        gone
    }

    /// When a probe is due.
    pub(super) const fn poll_timeout(&self) -> Option<Timestamp> {
        self.probe_at
    }

    /// Whether a host is shown to have an address.
    fn shows(&self, address: IpAddr) -> bool {
        let mut claimants = self.claimants.iter();
        claimants.any(|((claimed, _), claimant)| *claimed == address && claimant.shown)
    }
}

/// How far apart two claims of a host that has the address for good are at least: what was sent
/// while the routers found out who is Active lies closer together.
fn apart(config: &VrrpConfig) -> Duration {
    let interval = config.advert_interval.duration();
    (interval * ADVERTS_APART).max(MIN_APART)
}

/// Why a host is not shown any more.
#[derive(Clone, Copy)]
enum End {
    /// It does not answer any more.
    Silent,
    /// This node does not own the address any more, or does not ask.
    NotAsked,
}

impl Controller {
    /// The instance at `position` owns its addresses from now on.
    pub(super) fn begin_to_probe(&mut self, now: Timestamp, position: usize) {
        if let (Some(role), Some(config)) =
            (self.roles.get_mut(position), self.config.vrrp.get(position))
            && !config.duplicate_probe.is_zero()
        {
            role.duplicates.begin(now);
        }
    }

    /// It owns them no more: who else has them is the next owner's business.
    pub(super) fn end_probing(&mut self, now: Timestamp, position: usize) {
        if let Some(role) = self.roles.get_mut(position) {
            let gone = role.duplicates.end();
            self.tell_of_the_end(now, position, &gone, End::NotAsked);
        }
    }

    /// The configuration may have other addresses, or another time between probes: begin anew, with
    /// who is known.
    pub(super) fn go_on_probing(&mut self, now: Timestamp) {
        for position in 0..self.roles.len() {
            let (Some(role), Some(config)) =
                (self.roles.get(position), self.config.vrrp.get(position))
            else {
                continue;
            };
            let mut claimed = role.duplicates.claimants.keys();
            let is_vip = |address| config.addresses.iter().any(|net| net.addr() == address);
            let all_known = claimed.all(|(address, _)| is_vip(*address));
            let wanted = role.owns && !config.duplicate_probe.is_zero();
            if !wanted || !all_known {
                self.end_probing(now, position);
            }
            if wanted {
                self.begin_to_probe(now, position);
            }
        }
    }

    /// A station on interface `ifindex` was heard to claim an address.
    pub(super) fn hear_claim(&mut self, now: Timestamp, ifindex: u32, address: IpAddr, mac: Mac) {
        // An interface of this node that answers for another one has a warning of its own.
        if self.network.has_mac(mac) {
            return;
        }
        let has = |config: &VrrpConfig| config.addresses.iter().any(|net| net.addr() == address);
        // An address belongs to one instance.
        let Some(position) = self.config.vrrp.iter().position(has) else {
            return;
        };
        let (Some(role), Some(config)) =
            (self.roles.get_mut(position), self.config.vrrp.get(position))
        else {
            return;
        };
        let interface = self.network.interface(&config.interface);
        let here = interface.is_some_and(|interface| interface.ifindex == ifindex);
        if !here || config.virtual_mac() == Some(mac) || !role.owns_at(now) {
            return;
        }
        let was_shown = role.duplicates.shows(address);
        if !role.duplicates.hear(now, address, mac, apart(config)) {
            return;
        }
        self.tell_of_a_duplicate(now, position, (address, mac));
        if !was_shown {
            self.tell_of_address(position, address, true);
        }
    }

    /// Ask who else has the owned addresses, where that is due.
    pub(super) fn probe_for_duplicates(&mut self, now: Timestamp) {
        for position in 0..self.roles.len() {
            let (Some(role), Some(config)) =
                (self.roles.get_mut(position), self.config.vrrp.get(position))
            else {
                continue;
            };
            if role.duplicates.probe_at.is_none_or(|at| now < at) {
                continue;
            }
            let gone = role.duplicates.probe(now, config.duplicate_probe);
            if let Some((ifindex, mac)) = self.network.place(&config.interface)
                && role.owns_at(now)
            {
                self.actions.push_back(Action::ProbeAddresses {
                    ifindex,
                    mac,
                    addresses: config.addresses.iter().map(IpNet::addr).collect(),
                });
            }
            self.tell_of_the_end(now, position, &gone, End::Silent);
        }
    }

    /// The other hosts that have addresses of the instance at `position`.
    pub fn duplicates(&self, position: usize) -> impl Iterator<Item = Duplicate> {
        let role = self.roles.get(position);
        let claimants = role.map(|role| &role.duplicates.claimants);
        let claimants = claimants.into_iter().flatten();
        let shown = claimants.filter(|(_, claimant)| claimant.shown);
        shown.map(|(&(address, mac), claimant)| Duplicate {
            address,
            mac,
            since: claimant.since,
            heard: claimant.heard,
        })
    }

    /// How many claims of other hosts were heard while the instance at `position` owned its addresses.
    pub fn claims_of_others(&self, position: usize) -> u64 {
        let role = self.roles.get(position);
        role.map_or(0, |role| role.duplicates.claims)
    }

    fn tell_of_a_duplicate(
        &mut self,
        now: Timestamp,
        position: usize,
        (address, mac): (IpAddr, Mac),
    ) {
        let mut shown = self.duplicates(position);
        let found = shown.find(|known| (known.address, known.mac) == (address, mac));
        drop(shown);
        let (Some(duplicate), Some(role), Some(config)) = (
            found,
            self.roles.get_mut(position),
            self.config.vrrp.get(position),
        ) else {
            return;
        };
        if let Some(suppressed) = role.complaints.admit(now, Duplicate::LABEL, address) {
            self.actions.push_back(Action::Report(Event::Duplicate {
                name: config.name.clone(),
                what: duplicate.describe(&config.interface),
                since: now.saturating_since(duplicate.since),
                suppressed,
            }));
        }
    }

    /// These are not shown any more.
    fn tell_of_the_end(
        &mut self,
        now: Timestamp,
        position: usize,
        gone: &[(IpAddr, Mac)],
        why: End,
    ) {
        for &(address, mac) in gone {
            let (Some(role), Some(config)) =
                (self.roles.get_mut(position), self.config.vrrp.get(position))
            else {
                return;
            };
            let Some(suppressed) = role.complaints.admit(now, GONE, address) else {
                continue;
            };
            let mac = mac_text(mac);
            let what = match why {
                End::Silent => format!("the host with MAC {mac} does not claim {address} any more"),
                End::NotAsked => {
                    format!(
                        "not looking any more at the host with MAC {mac} that has {address}, too"
                    )
                }
            };
            self.actions.push_back(Action::Report(Event::DuplicateGone {
                name: config.name.clone(),
                what,
                suppressed,
            }));
        }
        let addresses: BTreeSet<_> = gone.iter().map(|(address, _)| *address).collect();
        for address in addresses {
            let role = self.roles.get(position);
            if role.is_some_and(|role| !role.duplicates.shows(address)) {
                self.tell_of_address(position, address, false);
            }
        }
    }

    fn tell_of_address(&mut self, position: usize, address: IpAddr, duplicate: bool) {
        if let Some(config) = self.config.vrrp.get(position) {
            let notice = Notice::address(&config.name, address, duplicate);
            self.actions.push_back(Action::Notify(notice));
        }
    }
}

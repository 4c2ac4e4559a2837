//! Another configuration while everything runs: what stays the same is not touched.
//!
//! - A VRRP instance is the same one if interface, VRID and family are. It goes on with its state
//!   under the new settings; one that is gone resigns, one that is new begins as Backup.
//! - A service is the same one if VIP, port and protocol are, and a backend of it if its address
//!   is. It keeps id, state, and the results of its checks.
//! - A backend that was taken out stays in the tables for [`RETIREMENT`], DOWN: its flows are reset
//!   instead of forwarded to nobody. One whose host name has moved to another address drains before
//!   that, for [`REMOVAL_DRAIN`].

use std::{collections::BTreeMap, path::Path, time::Duration};

use super::{Action, Controller, REMOVAL_DRAIN, Role, new_views};
use crate::{
    config::model::{
        BackendConfig, CgroupPath, Config, GroupConfig, Peer, ServiceConfig, TrackConfig,
        VrrpConfig,
    },
    core::{
        desired::{Retiring, identity},
        health::ServiceHealth,
        time::Timestamp,
    },
};

/// How long a backend that was taken out goes on to be DOWN.
pub(super) const RETIREMENT: Duration = Duration::from_mins(1);

/// Serial numbers of probes that one configuration may use up.
const SERIALS: u32 = 32;

/// A key that only a restart can change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: cannot change while xvip runs; write {running:?} as before, or restart xvip")]
pub struct Fixed {
    /// The key.
    pub key: &'static str,
    /// The value in force.
    pub running: String,
}

impl Controller {
    /// Go on with `config` from `now` on. Returns what is different, in words; nothing is changed
    /// if that needs a restart.
    pub fn reload(&mut self, now: Timestamp, config: Config) -> Result<Vec<String>, Vec<Fixed>> {
        let fixed = fixed(&self.config, &config);
        if !fixed.is_empty() {
            return Err(fixed);
        }
        self.file = config;
        let known = self.nameless.clone();
        let config = self.compose(now);
        let mut changes = self.go_on_with(now, config);
        changes.extend(self.new_nameless(&known));
        Ok(changes)
    }

    /// The same with a configuration that the operator's changes are in, and what names stand for.
    pub(super) fn go_on_with(&mut self, now: Timestamp, config: Config) -> Vec<String> {
        let changes = changes(&self.config, &config);
        if self.config == config {
            return changes;
        }
        self.reloads = self.reloads.saturating_add(1);
        self.leave(now, &config);
        let before = std::mem::replace(&mut self.config, config);
        self.take_over_roles(now, &before.vrrp);
        self.go_on_probing(now);
        self.take_over_health(now, &before.services);
        self.take_over_monitors(now);
        self.retire(now, &before.services);
        self.keep_words(now);
        // They are found again where the tables are known.
        self.placements.clear();
        if self.links_known {
            self.follow_uplinks();
            self.resolve_all();
        }
        for position in 0..self.roles.len() {
            self.give_up_old_vips(position);
        }
        self.reconcile_addresses(now);
        self.track(now);
        self.collect(now);
        self.reconcile_tables();
        self.look(now);
        self.ask(now);
        changes
    }

    /// Ends the flows of backends that have had their time to drain, and forgets those whose flows have
    /// been ended for long enough.
    pub(super) fn end_retirement(&mut self, now: Timestamp) {
        let mut changed = false;
        for retiring in &mut self.retiring {
            if retiring.until <= now && retiring.drains {
                retiring.drains = false;
                retiring.until = now + RETIREMENT;
                changed = true;
            }
        }
        let before = self.retiring.len();
        self.retiring.retain(|retiring| retiring.until > now);
        if changed || self.retiring.len() != before {
            self.reconcile_addresses(now);
            self.reconcile_tables();
        }
    }

    // --- VRRP ---------------------------------------------------------------------------------

    /// Resign from the instances that `config` has no more, while what they need is still known.
    fn leave(&mut self, now: Timestamp, config: &Config) {
        let mut gone = Vec::new();
        for (role, old) in self.roles.iter_mut().zip(&self.config.vrrp) {
            if !config.vrrp.iter().any(|new| same_router(new, old)) {
                role.instance.stop(now);
                gone.push(role.slot);
            }
        }
        self.collect(now);
        for instance in gone {
            self.actions.push_back(Action::Listen {
                instance,
                ifindex: None,
            });
        }
    }

    /// The roles of the new configuration's instances, in its order.
    fn take_over_roles(&mut self, now: Timestamp, before: &[VrrpConfig]) {
        let taken: Vec<usize> = self.roles.iter().map(|role| role.slot).collect();
        let mut known: Vec<_> = std::mem::take(&mut self.roles)
            .into_iter()
            .zip(before)
            .collect();
        let mut roles = Vec::new();
        for config in &self.config.vrrp {
            let found = known.iter().position(|(_, old)| same_router(old, config));
            let Some((mut role, old)) = found.map(|found| known.swap_remove(found)) else {
                roles.push(None);
                continue;
            };
            role.instance.reconfigure(now, config);
            if needs_socket(old, config) {
                self.actions.push_back(Action::Listen {
                    instance: role.slot,
                    ifindex: role.listens_on,
                });
            }
            roles.push(Some(role));
        }
        let mut used: Vec<usize> = roles.iter().flatten().map(|role| role.slot).collect();
        for (role, config) in roles.iter_mut().zip(&self.config.vrrp) {
            if role.is_none() {
                let slot = free_slot(&used, &taken);
                used.push(slot);
                *role = Some(Role::new(slot, config, now));
            }
        }
        self.roles = roles.into_iter().flatten().collect();
    }

    // --- Services -----------------------------------------------------------------------------

    /// The checks of the new configuration's services, in its order.
    fn take_over_health(&mut self, now: Timestamp, before: &[ServiceConfig]) {
        let old_health = std::mem::take(&mut self.health);
        let old_views = std::mem::take(&mut self.views);
        let serial = u64::from(self.reloads) << SERIALS;
        for (position, config) in self.config.services.iter().enumerate() {
            let found = before
                .iter()
                .position(|old| identity(old) == identity(config));
            let known = found.and_then(|found| {
                let views = old_views.get(found)?;
                Some((found, before.get(found)?, old_health.get(found)?, views))
            });
            let Some((at, old, health, views)) = known else {
                // Spread like those of the start.
                let seed = serial
                    .wrapping_add(now.as_nanos())
                    .wrapping_add(position as u64);
                let new = ServiceHealth::new(&config.health, 0, now, seed);
                let nothing = vec![None; config.backends.len()];
                let checks = (&config.health, &config.health);
                let health = new.succeeded_by(checks, &nothing, now, serial);
                self.views.push(new_views(config, &health, now));
                self.health.push(health);
                continue;
            };
            let origins: Vec<Option<usize>> = config
                .backends
                .iter()
                .map(|new| old.backends.iter().position(|o| o.address == new.address))
                .collect();
            let stays = origins
                .iter()
                .copied()
                .eq((0..old.backends.len()).map(Some));
            let health = if at == position && stays && old.health == config.health {
                health.clone()
            } else {
                let checks = (&old.health, &config.health);
                health.succeeded_by(checks, &origins, now, serial)
            };
            let mut next = new_views(config, &health, now);
            for (view, origin) in next.iter_mut().zip(origins) {
                let known = origin.and_then(|origin| views.get(origin));
                if let Some(known) = known.filter(|known| known.state == view.state) {
                    view.clone_from(known);
                }
            }
            self.views.push(next);
            self.health.push(health);
        }
    }

    /// Backends that were taken out of a service that goes on.
    fn retire(&mut self, now: Timestamp, before: &[ServiceConfig]) {
        for old in before {
            let service = identity(old);
            let config = self
                .config
                .services
                .iter()
                .find(|new| identity(new) == service);
            let Some(config) = config else {
                continue;
            };
            let gone = old.backends.iter().filter(|backend| {
                let mut backends = config.backends.iter();
                backends.all(|new| new.address != backend.address)
            });
            self.retiring.extend(gone.map(|backend| {
                let drains = has_moved(backend, config);
                let time = if drains { REMOVAL_DRAIN } else { RETIREMENT };
                Retiring {
                    service,
                    backend: backend.clone(),
                    drains,
                    until: now + time,
                }
            }));
        }
        let services = &self.config.services;
        self.retiring.retain(|retiring| {
            let service = services
                .iter()
                .find(|new| identity(new) == retiring.service);
            service.is_some_and(|service| {
                let mut backends = service.backends.iter();
                backends.all(|new| new.address != retiring.backend.address)
            })
        });
    }
}

/// Whether a backend has another address now, since its host name stands for that.
fn has_moved(backend: &BackendConfig, service: &ServiceConfig) -> bool {
    let mut backends = service.backends.iter();
    backend.host.is_some()
        && backends.any(|new| (&new.name, &new.host) == (&backend.name, &backend.host))
}

/// Whether two configurations are of one virtual router (RFC 9568 section 5.2.3).
fn same_router(a: &VrrpConfig, b: &VrrpConfig) -> bool {
    (&a.interface, a.vrid, a.is_ipv6()) == (&b.interface, b.vrid, b.is_ipv6())
}

/// Whether the socket of one is none for the other.
fn needs_socket(old: &VrrpConfig, new: &VrrpConfig) -> bool {
    let of = |config: &VrrpConfig| {
        (
            config.version,
            config.unicast_source,
            config.v3_checksum,
            config.use_vmac,
        )
    };
    of(old) != of(new) || old.unicast_peers != new.unicast_peers
}

/// The lowest slot that is not used. One that was `taken` until now only if there is no other:
/// what was sent on its behalf may still come back.
fn free_slot(used: &[usize], taken: &[usize]) -> usize {
    let limit = lb_common::abi::MAX_LEASES as usize - 1;
    let free = |slot: &usize| !used.contains(slot);
    let fresh = (0..limit).find(|slot| free(slot) && !taken.contains(slot));
    fresh.or_else(|| (0..limit).find(free)).unwrap_or(limit)
}

// --- Differences ------------------------------------------------------------------------------

/// Keys with other values that cannot have them.
fn fixed(old: &Config, new: &Config) -> Vec<Fixed> {
    let (old, new) = (&old.node, &new.node);
    let shown = |path: &Path| path.display().to_string();
    let cgroup = match &old.cgroup {
        CgroupPath::Auto => "auto".to_owned(),
        CgroupPath::Off => "off".to_owned(),
        CgroupPath::Path(path) => shown(path),
    };
    [
        (
            "node.instance",
            old.instance == new.instance,
            old.instance.clone(),
        ),
        ("node.cgroup", old.cgroup == new.cgroup, cgroup),
        (
            "node.state_dir",
            old.state_dir == new.state_dir,
            shown(&old.state_dir),
        ),
    ]
    .into_iter()
    .filter(|(_, same, _)| !same)
    .map(|(key, _, running)| Fixed { key, running })
    .collect()
}

/// What differs, in words: `service "web": added`.
fn changes(old: &Config, new: &Config) -> Vec<String> {
    let mut changes = Vec::new();
    if old.node != new.node {
        changes.push("node: changed".to_owned());
    }
    let peer = |peer: &Peer| peer.name.clone();
    compare(&mut changes, "peer", (&old.peers, &new.peers), peer, peer);
    let track = |track: &TrackConfig| track.name.clone();
    let tracks = (&*old.tracks, &*new.tracks);
    compare(&mut changes, "track", tracks, track, track);
    let router = |vrrp: &VrrpConfig| (vrrp.interface.clone(), vrrp.vrid, vrrp.is_ipv6());
    let name = |vrrp: &VrrpConfig| vrrp.name.clone();
    compare(&mut changes, "vrrp", (&old.vrrp, &new.vrrp), router, name);
    let group = |group: &GroupConfig| group.name.clone();
    let groups = (&*old.groups, &*new.groups);
    compare(&mut changes, "sync_group", groups, group, group);
    let services = (bare(&old.services), bare(&new.services));
    let name = |service: &ServiceConfig| service.name.clone();
    compare(
        &mut changes,
        "service",
        (&services.0, &services.1),
        identity,
        name,
    );
    for new in &new.services {
        if let Some(old) = old
            .services
            .iter()
            .find(|old| identity(old) == identity(new))
        {
            let what = format!("service {:?}, backend", new.name);
            let address = |backend: &BackendConfig| backend.address;
            let name = |backend: &BackendConfig| backend.name.clone();
            compare(
                &mut changes,
                &what,
                (&old.backends, &new.backends),
                address,
                name,
            );
        }
    }
    if changes.is_empty() && old != new {
        changes.push("order of sections: changed".to_owned());
    }
    changes
}

/// The services without their backends.
fn bare(services: &[ServiceConfig]) -> Vec<ServiceConfig> {
    let bare = |service: &ServiceConfig| ServiceConfig {
        backends: Vec::new(),
        ..service.clone()
    };
    services.iter().map(bare).collect()
}

/// Which of the `old` are not among the `new`, which are new, and which have changed.
fn compare<T: PartialEq, K: Ord>(
    changes: &mut Vec<String>,
    what: &str,
    (old, new): (&[T], &[T]),
    key: impl Fn(&T) -> K,
    name: impl Fn(&T) -> String,
) {
    let mut say = |item: &T, how: &str| {
        changes.push(format!("{what} {:?}: {how}", name(item)));
    };
    let known: BTreeMap<K, &T> = old.iter().map(|item| (key(item), item)).collect();
    let present: BTreeMap<K, &T> = new.iter().map(|item| (key(item), item)).collect();
    for item in new {
        match known.get(&key(item)) {
            None => say(item, "added"),
            Some(before) if *before != item => say(item, "changed"),
            Some(_) => {}
        }
    }
    for item in old.iter().filter(|item| !present.contains_key(&key(item))) {
        say(item, "removed");
    }
}

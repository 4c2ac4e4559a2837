//! Backends by host name: the configuration in force has the addresses that the names stand for. A
//! backend whose name stands for none is left out of it, and shown beside it.
//!
//! Another address is another backend: what follows is what follows from a reload. Only the flows at the
//! address before have [`REMOVAL_DRAIN`](super::REMOVAL_DRAIN) to end in.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use super::{Action, Controller, Event};
use crate::{
    config::model::{BackendConfig, Config},
    core::{
        desired::{ServiceIdentity, identity},
        names::{Answer, HostKey, HostView, Names},
        time::Timestamp,
    },
};

/// A backend that has no address: its name stands for none that it can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nameless {
    /// Its service.
    pub(super) service: ServiceIdentity,
    /// Its position among all backends of its service.
    pub place: usize,
    /// The backend.
    pub backend: BackendConfig,
    /// Why, in words.
    pub why: String,
    /// Since when there is none.
    pub since: Timestamp,
}

impl Nameless {
    fn is(&self, service: ServiceIdentity, name: &str) -> bool {
        self.service == service && self.backend.name == name
    }
}

impl Controller {
    /// A lookup has ended, or is late.
    pub(super) fn looked_up(&mut self, now: Timestamp, key: &HostKey, answer: Answer) {
        let Some(change) = self.names.answer(key, answer, now) else {
            return;
        };
        let is_move = change.is_move();
        self.actions.push_back(Action::Report(Event::Name {
            host: key.host.clone(),
            change,
        }));
        let config = self.compose(now);
        self.carry_words(&config);
        self.go_on_with(now, config);
        if is_move {
            self.save_operator();
        }
    }

    /// Has the names looked up that are due.
    pub(super) fn look_up(&mut self, now: Timestamp) {
        for key in self.names.take_due(now) {
            self.actions.push_back(Action::LookUp(key));
        }
    }

    /// `whole` with the addresses of its names as far as they are known; the names are followed from now
    /// on.
    pub(super) fn with_names(&mut self, now: Timestamp, whole: Config) -> Config {
        follow(&mut self.names, &whole, now);
        let seeds = self.seeds(&whole);
        if self.names.restore(seeds) {
            self.save_operator();
        }
        let (config, mut nameless) = apply(&self.names, whole, now);
        for one in &mut nameless {
            let mut before = self.nameless.iter();
            let before = before.find(|old| old.is(one.service, &one.backend.name));
            if let Some(before) = before {
                one.since = before.since;
            }
            let is_new = before.is_none_or(|before| before.why != one.why);
            let mut services = config.services.iter();
            let service = services.find(|own| identity(own) == one.service);
            // What is wrong with the name itself was told already.
            if let Some(service) = service
                && is_new
                && let Some(key) = key_of(&one.backend, service.address.is_ipv6())
                && self.names.address(&key).is_ok()
            {
                self.actions.push_back(Action::Report(Event::Nameless {
                    service: service.name.clone(),
                    backend: one.backend.name.clone(),
                    why: one.why.clone(),
                }));
            }
        }
        self.nameless = nameless;
        config
    }

    /// Where backends of `whole` that have names are now: one that was known by its address, or by
    /// another name, goes on there until its name is looked up.
    fn seeds(&self, whole: &Config) -> Vec<(HostKey, IpAddr)> {
        let mut seeds = Vec::new();
        for service in &whole.services {
            let mut known = self.config.services.iter();
            let Some(known) = known.find(|known| identity(known) == identity(service)) else {
                continue;
            };
            for backend in &service.backends {
                let mut before = known.backends.iter();
                let before = before.find(|before| before.name == backend.name);
                let key = key_of(backend, service.address.is_ipv6());
                seeds.extend(key.zip(before.map(|before| before.address.ip())));
            }
        }
        seeds
    }

    /// Backends without an address that are not among `known`, in words.
    pub(super) fn new_nameless(&self, known: &[Nameless]) -> Vec<String> {
        let mut words = Vec::new();
        for (at, service) in self.config.services.iter().enumerate() {
            for Nameless { backend, why, .. } in self.nameless(at) {
                let mut known = known.iter();
                if !known.any(|old| old.is(identity(service), &backend.name)) {
                    let (service, name) = (&service.name, &backend.name);
                    words.push(format!(
                        "service {service:?}, backend {name:?}: waits for an address: {why}"
                    ));
                }
            }
        }
        words
    }

    /// Backends of a service that are left out, since their names stand for no address.
    pub fn nameless(&self, service: usize) -> impl Iterator<Item = &Nameless> {
        let key = self.config.services.get(service).map(identity);
        let nameless = self.nameless.iter();
        nameless.filter(move |one| Some(one.service) == key)
    }

    /// The backend of this name and service, or of any service, that has no address.
    pub(super) fn find_nameless(&self, name: &str, service: Option<&str>) -> Option<&Nameless> {
        let mut services = self.config.services.iter().enumerate();
        services.find_map(|(at, own)| {
            let is_meant = service.is_none_or(|wanted| own.name == wanted);
            let mut nameless = self.nameless(at).filter(|_| is_meant);
            nameless.find(|one| one.backend.name == name)
        })
    }

    /// What is known of the host name of a backend; `None`: it has none.
    pub fn host(&self, service: usize, backend: &BackendConfig) -> Option<HostView<'_>> {
        let service = self.config.services.get(service)?;
        let key = key_of(backend, service.address.is_ipv6())?;
        self.names.view(&key)
    }

    /// Words on a backend go with its name to another address.
    fn carry_words(&mut self, next: &Config) {
        for (old, new) in self.config.services.iter().zip(&next.services) {
            let key = identity(new);
            for backend in new.backends.iter().filter(|own| own.host.is_some()) {
                let mut known = old.backends.iter();
                let same = |own: &&BackendConfig| own.name == backend.name;
                if let Some(known) = known.find(same)
                    && known.address != backend.address
                {
                    let (from, to) = ((key, known.address), (key, backend.address));
                    self.operator.rename(&from, to);
                }
            }
        }
    }
}

fn key_of(backend: &BackendConfig, ipv6: bool) -> Option<HostKey> {
    let host = backend.host.clone()?;
    Some(HostKey { host, ipv6 })
}

/// Follows the names in a configuration from now on.
pub(super) fn follow(names: &mut Names, config: &Config, now: Timestamp) {
    let services = config.services.iter();
    let wanted = services
        .flat_map(|service| {
            let ipv6 = service.address.is_ipv6();
            let backends = service.backends.iter();
            backends.filter_map(move |backend| key_of(backend, ipv6))
        })
        .collect();
    let owned = config.vrrp.iter().flat_map(|vrrp| &vrrp.addresses);
    let served = config.services.iter().map(|service| service.address);
    let vips = owned.map(ipnet::IpNet::addr).chain(served).collect();
    names.follow(&wanted, vips, config.node.resolve_interval, now);
}

/// `whole` with addresses in place of names, and the backends that have none.
pub(super) fn apply(names: &Names, whole: Config, now: Timestamp) -> (Config, Vec<Nameless>) {
    let mut config = whole;
    let mut nameless = Vec::new();
    for service in &mut config.services {
        if service.backends.iter().all(|own| own.host.is_none()) {
            continue;
        }
        let (own, ipv6) = (identity(service), service.address.is_ipv6());
        let fixed = service.backends.iter().filter(|own| own.host.is_none());
        let mut taken: BTreeSet<SocketAddr> = fixed.map(|own| own.address).collect();
        let backends = std::mem::take(&mut service.backends);
        for (place, mut backend) in backends.into_iter().enumerate() {
            let address = key_of(&backend, ipv6).map(|key| names.address(&key));
            let mut locate = |address| locate(&mut backend, address, &mut taken);
            let placed = address.map(|address| address.and_then(&mut locate));
            if let Some(Err(why)) = placed {
                nameless.push(Nameless {
                    service: own,
                    place,
                    backend,
                    why,
                    since: now,
                });
            } else {
                service.backends.push(backend);
            }
        }
    }
    (config, nameless)
}

/// Gives a backend its address, unless that is another one's.
fn locate(
    backend: &mut BackendConfig,
    address: IpAddr,
    taken: &mut BTreeSet<SocketAddr>,
) -> Result<(), String> {
    let address = SocketAddr::new(address, backend.address.port());
    if !taken.insert(address) {
        let host = backend.host.as_deref().unwrap_or_default();
        return Err(format!(
            "another backend of the service is at {address} already, what {host} stands for"
        ));
    }
    backend.address = address;
    Ok(())
}

//! Backends that the operator adds to a running service, and takes away.
//!
//! What he says is kept beside the file ([`Roster`](crate::core::roster::Roster)); the configuration in force is
//! what comes of both, and whatever differs from the one before is carried out as a reload is.

use std::time::Duration;

use super::{Action, Controller, Event, Refusal, names};
use crate::{
    config::model::{BackendConfig, Config, ServiceConfig},
    core::{
        desired::{ServiceIdentity, identity},
        operator::{Order, Saved},
        roster::{self, Added, Removed, Void},
        standing::{BackendIdentity, Mode},
        time::Timestamp,
    },
};

/// Time in which a backend that is removed drains, unless the operator says another.
pub const REMOVAL_DRAIN: Duration = Duration::from_secs(30);

/// A backend that was added or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Name of its service.
    pub service: String,
    /// Its name.
    pub backend: String,
    /// What is so now, in words.
    pub now: String,
}

impl Controller {
    /// Goes on with what was saved by an earlier controller. To be called before anything else.
    pub fn restore(&mut self, now: Timestamp, saved: Saved) {
        self.operator.restore(saved.words);
        self.roster = saved.roster;
        // Those of added backends are not followed yet.
        let (whole, _) = self.roster.clone().compose(&self.file);
        names::follow(&mut self.names, &whole, now);
        if !self.names.restore(saved.names) && self.roster.is_empty() {
            self.keep_words(now);
            return;
        }
        let config = self.compose(now);
        self.go_on_with(now, config);
        self.keep_words(now);
        // Whoever was removed then has had its minute.
        self.retiring.clear();
    }

    /// Adds a backend to a service; without `backend`, puts one of the file back that was removed.
    pub fn add_backend(
        &mut self,
        now: Timestamp,
        (name, service): (&str, Option<&str>),
        backend: Option<BackendConfig>,
    ) -> Result<Changed, Refusal> {
        let own = self.service_for(service)?;
        let (key, service) = (identity(own), own.name.clone());
        let refused = |why| Refusal::Addition {
            service: service.clone(),
            backend: name.to_owned(),
            why,
        };
        if let Some(known) = own.backends.iter().find(|one| one.name == name) {
            return Err(refused(self.is_there(key, known)));
        }
        if let Some(known) = self.find_nameless(name, Some(&service)) {
            return Err(refused(format!(
                "there is a backend of this name, without an address: {}",
                known.why
            )));
        }
        let what = if self.roster.has_removed(key, name) {
            self.put_back(key, name, backend.as_ref())
                .map_err(refused)?;
            "in service again"
        } else {
            let missing =
                || "ADDRESS:PORT is missing, and none of this name was removed".to_owned();
            let backend = backend.ok_or_else(missing).map_err(refused)?;
            roster::admit(&mut self.config.clone(), key, &backend).map_err(refused)?;
            self.roster.added.push(Added {
                service: key,
                backend,
            });
            "added"
        };
        self.follow_roster(now);
        Ok(self.changed((&service, name), what))
    }

    /// Removes a backend from its service, after it was drained for `drain`. Without `force` not the
    /// last one that takes new flows.
    pub fn remove_backend(
        &mut self,
        now: Timestamp,
        (name, service): (&str, Option<&str>),
        drain: Duration,
        force: bool,
    ) -> Result<Changed, Refusal> {
        let targets = match self.targets(name, service) {
            Err(Refusal::Nameless { .. }) => {
                return self.remove_nameless(now, (name, service));
            }
            targets => targets?,
        };
        let &[(at, position, backend)] = targets.as_slice() else {
            return Err(self.ambiguous());
        };
        let own = self.config.services.get(at).map_or("", |own| &own.name);
        let service = own.to_owned();
        if !force {
            self.refuse_last(at, backend, Order::Disable)?;
        }
        if !self.is_one_of_several(at, backend) {
            return Err(Refusal::Removal {
                service,
                backend: name.to_owned(),
                why: "a service has at least one backend: add another one first".to_owned(),
            });
        }
        let word = self.operator.word(&backend);
        let drained = word.is_some_and(|word| word.mode == Mode::Maintenance);
        if drain.is_zero() || drained {
            self.take_out(now, backend);
            self.save_operator();
            return Ok(self.changed((&service, name), "removed"));
        }
        let word = self.operator.order(backend, Order::Leave { drain }, now);
        self.follow_word(at, position, backend, &word);
        self.save_operator();
        self.reconcile_tables();
        let what = super::said(&word, now);
        Ok(self.changed((&service, name), &what))
    }

    /// Whether a backend was added while xvip runs.
    pub fn was_added(&self, service: usize, backend: usize) -> bool {
        let services = &self.config.services;
        let backend = services
            .get(service)
            .and_then(|own| own.backends.get(backend));
        backend.is_some_and(|own| self.was_added_as(service, &own.name))
    }

    /// Whether a backend of this name was added while xvip runs.
    pub fn was_added_as(&self, service: usize, name: &str) -> bool {
        let service = self.config.services.get(service);
        service.is_some_and(|service| self.roster.has_added(identity(service), name))
    }

    /// Names of the file's backends that were removed from a service.
    pub fn removed(&self, service: usize) -> impl Iterator<Item = &str> {
        let key = self.config.services.get(service).map(identity);
        let removed = self.roster.removed.iter();
        let own = removed.filter(move |one| Some(one.service) == key);
        own.map(|one| one.name.as_str())
    }

    /// Takes out whoever has drained for long enough.
    pub(super) fn end_removals(&mut self, now: Timestamp) {
        let leaving = self.operator.take_leaving(now);
        if leaving.is_empty() {
            return;
        }
        for backend in leaving {
            let Some((service, position)) = self.position_by_identity(&backend) else {
                continue;
            };
            let name = self.backend_name(service, position);
            let service = self.config.services.get(service);
            let service = service.map_or_else(String::new, |own| own.name.clone());
            self.take_out(now, backend);
            self.changed((&service, &name), "drained and removed");
        }
        self.save_operator();
    }

    /// The file with what the operator has changed, and the addresses that names stand for; orders that it
    /// has made void are forgotten aloud.
    pub(super) fn compose(&mut self, now: Timestamp) -> Config {
        let (config, voids) = self.roster.compose(&self.file);
        if !voids.is_empty() {
            self.save_operator();
        }
        for Void {
            service,
            backend,
            why,
        } in voids
        {
            self.changed((&service, &backend), &why);
        }
        self.with_names(now, config)
    }

    // --- Helpers ------------------------------------------------------------------------------

    /// Goes on with what has become of the operator's changes, and saves them.
    fn follow_roster(&mut self, now: Timestamp) {
        let config = self.compose(now);
        self.go_on_with(now, config);
        self.save_operator();
    }

    /// Takes a backend out of the configuration in force.
    fn take_out(&mut self, now: Timestamp, backend: BackendIdentity) {
        let Some((service, position)) = self.position_by_identity(&backend) else {
            return;
        };
        let (key, name) = (backend.0, self.backend_name(service, position));
        self.operator.forget(&backend);
        self.strike(key, name);
        let config = self.compose(now);
        self.go_on_with(now, config);
    }

    /// Removes a backend that has no address, and so nothing to drain.
    fn remove_nameless(
        &mut self,
        now: Timestamp,
        (name, service): (&str, Option<&str>),
    ) -> Result<Changed, Refusal> {
        let mut services = self.config.services.iter();
        let found = self.find_nameless(name, service).map(|one| one.service);
        let own = services.find(|own| Some(identity(own)) == found);
        let own = own.ok_or_else(|| self.ambiguous())?;
        let (key, service) = (identity(own), own.name.clone());
        let nameless = self.nameless.iter().filter(|one| one.service == key);
        if own.backends.len() + nameless.count() < 2 {
            return Err(Refusal::Removal {
                service,
                backend: name.to_owned(),
                why: "a service has at least one backend: add another one first".to_owned(),
            });
        }
        self.strike(key, name.to_owned());
        self.follow_roster(now);
        Ok(self.changed((&service, name), "removed"))
    }

    /// Has a backend of this name no longer.
    fn strike(&mut self, key: ServiceIdentity, name: String) {
        if self.roster.has_added(key, &name) {
            let is_it = |one: &Added| one.service == key && one.backend.name == name;
            self.roster.added.retain(|one| !is_it(one));
        } else {
            self.roster.removed.push(Removed { service: key, name });
        }
    }

    /// The order to put a backend of the file back that was removed.
    fn put_back(
        &mut self,
        key: ServiceIdentity,
        name: &str,
        wanted: Option<&BackendConfig>,
    ) -> Result<(), String> {
        let mut services = self.file.services.iter();
        let service = services.find(|own| identity(own) == key);
        let mut backends = service.into_iter().flat_map(|own| &own.backends);
        let address = backends.find(|own| own.name == name);
        let address = address.map(BackendConfig::written);
        if let (Some(wanted), Some(address)) = (wanted, address) {
            return Err(format!(
                "the configuration has a backend of this name, {address}, which was removed: write the name \
                 alone to put it back, or another name for {}",
                wanted.written()
            ));
        }
        let is_it = |one: &Removed| one.service == key && one.name == name;
        self.roster.removed.retain(|one| !is_it(one));
        Ok(())
    }

    /// Why a backend is not added that is there, and what does something with it.
    fn is_there(&self, service: ServiceIdentity, known: &BackendConfig) -> String {
        let word = self.operator.word(&(service, known.address));
        let address = known.written();
        if word.is_some_and(|word| word.leaves) {
            return format!(
                "it is being removed ({address}): \"xvip backend enable\" keeps it, \"xvip backend remove \
                 --now\" makes room for another one"
            );
        }
        format!(
            "there is a backend of this name, {address}: \"xvip backend weight\" gives it another weight, and \
             another address needs another name, or that this one is removed first"
        )
    }

    /// Whether the service keeps a backend that does not leave without this one.
    fn is_one_of_several(&self, service: usize, backend: BackendIdentity) -> bool {
        let Some(service) = self.config.services.get(service) else {
            return false;
        };
        let mut addresses = service.backends.iter().map(|own| own.address);
        addresses.any(|address| {
            let other = (backend.0, address);
            let leaves = self.operator.word(&other).is_some_and(|word| word.leaves);
            other != backend && !leaves
        })
    }

    /// The service of this name, or the only one.
    fn service_for(&self, name: Option<&str>) -> Result<&ServiceConfig, Refusal> {
        let services = self.config.services.as_slice();
        match (name, services) {
            (None, [own]) => Ok(own),
            (None, _) => Err(self.ambiguous()),
            (Some(name), _) => {
                let found = services.iter().find(|own| own.name == name);
                found.ok_or_else(|| Refusal::UnknownService {
                    name: name.to_owned(),
                    known: self.service_names(),
                })
            }
        }
    }

    fn ambiguous(&self) -> Refusal {
        Refusal::WhichService {
            known: self.service_names(),
        }
    }

    fn service_names(&self) -> Vec<String> {
        let services = self.config.services.iter();
        services.map(|own| own.name.clone()).collect()
    }

    /// Tells of a change.
    fn changed(&mut self, (service, backend): (&str, &str), now: &str) -> Changed {
        let (service, backend, now) = (service.to_owned(), backend.to_owned(), now.to_owned());
        self.actions.push_back(Action::Report(Event::Operator {
            service: service.clone(),
            backend: backend.clone(),
            what: now.clone(),
        }));
        Changed {
            service,
            backend,
            now,
        }
    }
}

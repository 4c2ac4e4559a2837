//! Which backends a service has: those of the file, without those that the operator has removed, and
//! with those that he has added. What comes of it is a configuration like any other, so that whatever
//! follows from a changed file follows from his orders as well.

use super::desired::{ServiceIdentity, identity};
use crate::config::{
    addition,
    model::{BackendConfig, Config, ServiceConfig},
};

/// A backend that was added while xvip runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    /// To which service.
    pub service: ServiceIdentity,
    /// What.
    pub backend: BackendConfig,
}

/// A backend of the file that was removed while xvip runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Of which service.
    pub service: ServiceIdentity,
    /// Its name.
    pub name: String,
}

/// What the operator has changed of the backends that the file names. No name of a service is in
/// both lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    /// In the order in which they were added.
    pub added: Vec<Added>,
    /// In the order in which they were removed.
    pub removed: Vec<Removed>,
}

/// An order that the file has made void.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Void {
    /// Name of the service, else its VIP and port.
    pub service: String,
    /// Name of the backend.
    pub backend: String,
    /// Why, in words.
    pub why: String,
}

impl Roster {
    /// Whether nothing differs from the file.
    pub const fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }

    /// Whether a backend was added.
    pub fn has_added(&self, service: ServiceIdentity, name: &str) -> bool {
        let mut added = self.added.iter();
        added.any(|one| one.service == service && one.backend.name == name)
    }

    /// Whether a backend of the file was removed.
    pub fn has_removed(&self, service: ServiceIdentity, name: &str) -> bool {
        let mut removed = self.removed.iter();
        removed.any(|one| one.service == service && one.name == name)
    }

    /// `file` with the operator's changes. Those that do not go with it are forgotten, and returned.
    pub fn compose(&mut self, file: &Config) -> (Config, Vec<Void>) {
        let mut config = file.clone();
        let mut voids = Vec::new();
        self.removed
            .retain(|one| match take_out(&mut config, file, one) {
                Ok(()) => true,
                Err(why) => {
                    voids.push(void(file, one.service, &one.name, why));
                    false
                }
            });
        self.added
            .retain(|one| match put_in(&mut config, file, one) {
                Ok(()) => true,
                Err(why) => {
                    voids.push(void(file, one.service, &one.backend.name, why));
                    false
                }
            });
        for (service, own) in config.services.iter_mut().zip(&file.services) {
            if service.backends.is_empty() {
                service.backends.clone_from(&own.backends);
                self.removed.retain(|one| {
                    let is_back = one.service == identity(own);
                    if is_back {
                        let why = "the configuration has no other: in service again".to_owned();
                        voids.push(void(file, one.service, &one.name, why));
                    }
                    !is_back
                });
            }
        }
        (config, voids)
    }
}

fn void(file: &Config, service: ServiceIdentity, backend: &str, why: String) -> Void {
    let name = of_identity(file, service).map(|own| own.name.clone());
    Void {
        service: name.unwrap_or_else(|| {
            let (vip, port, _) = service;
            std::net::SocketAddr::new(vip, port).to_string()
        }),
        backend: backend.to_owned(),
        why,
    }
}

fn of_identity(config: &Config, service: ServiceIdentity) -> Option<&ServiceConfig> {
    let mut services = config.services.iter();
    services.find(|own| identity(own) == service)
}

fn take_out(config: &mut Config, file: &Config, one: &Removed) -> Result<(), String> {
    let Some(own) = of_identity(file, one.service) else {
        return Err("its service is gone: its removal is forgotten".to_owned());
    };
    if !own.backends.iter().any(|backend| backend.name == one.name) {
        return Err(
            "the configuration has it no more, either: its removal is forgotten".to_owned(),
        );
    }
    for service in &mut config.services {
        if identity(service) == one.service {
            service.backends.retain(|backend| backend.name != one.name);
        }
    }
    Ok(())
}

fn put_in(config: &mut Config, file: &Config, one: &Added) -> Result<(), String> {
    let Some(own) = of_identity(file, one.service) else {
        return Err("its service is gone, and it with it".to_owned());
    };
    let mut own = own.backends.iter();
    if own.any(|backend| backend.name == one.backend.name) {
        return Err("the configuration has it now, and decides what it is".to_owned());
    }
    admit(config, one.service, &one.backend)
        .map_err(|why| format!("it does not fit the configuration any more, and is gone: {why}"))
}

/// Puts `backend` into a service of `config`; or says why the rules of the file do not allow that, and
/// changes nothing.
pub fn admit(
    config: &mut Config,
    service: ServiceIdentity,
    backend: &BackendConfig,
) -> Result<(), String> {
    let mut services = config.services.iter();
    let Some(at) = services.position(|own| identity(own) == service) else {
        return Err("there is no such service".to_owned());
    };
    if let Some(service) = config.services.get_mut(at) {
        service.backends.push(backend.clone());
    }
    let Some(why) = addition::contradiction(config) else {
        return Ok(());
    };
    if let Some(service) = config.services.get_mut(at) {
        service.backends.pop();
    }
    Err(why)
}

//! The operator's orders about backends, and what follows from them and from recoveries.

use std::{collections::BTreeSet, net::SocketAddr};

use lb_common::abi::BackendState;

use super::{Action, Controller, Event};
use crate::core::{
    desired::identity,
    health::{Class, agent::AgentState},
    operator::{Entry, Order, Saved, Word},
    standing::{self, BackendIdentity, Influence, Influences, Mode, ServiceStanding, Weight},
    time::Timestamp,
};

/// A backend that an order was for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ordered {
    /// Name of its service.
    pub service: String,
    /// Its name.
    pub backend: String,
    /// What is in force now.
    pub word: Word,
}

/// Why an order is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No service has this name.
    #[error("no service is named {name:?} (there are: {})", known.join(", "))]
    UnknownService {
        /// The name that was asked for.
        name: String,
        /// The names that there are.
        known: Vec<String>,
    },
    /// No backend has this name.
    #[error("no backend {}is named {name:?} (there are: {})", of_service(service.as_deref()), known.join(", "))]
    UnknownBackend {
        /// The name that was asked for.
        name: String,
        /// The service that was asked for.
        service: Option<String>,
        /// The names that there are.
        known: Vec<String>,
    },
    /// Nobody would take new flows.
    #[error(
        "{backend:?} is the last backend that takes new connections of service {service:?}: without \
         it they all fail; see that another one is up first, or say --force"
    )]
    Last {
        /// The service.
        service: String,
        /// The backend.
        backend: String,
    },
    /// A backend cannot be added.
    #[error("{backend:?} is not added to service {service:?}: {why}")]
    Addition {
        /// The service.
        service: String,
        /// The backend.
        backend: String,
        /// Why, in words.
        why: String,
    },
    /// A backend cannot be removed.
    #[error("{backend:?} is not removed from service {service:?}: {why}")]
    Removal {
        /// The service.
        service: String,
        /// The backend.
        backend: String,
        /// Why, in words.
        why: String,
    },
    /// Its name stands for no address.
    #[error("{backend:?} has no address, so there is nothing to say about it: {why}")]
    Nameless {
        /// The backend.
        backend: String,
        /// Why, in words.
        why: String,
    },
    /// There are several services.
    #[error("say which service is meant: --service NAME (there are: {})", known.join(", "))]
    WhichService {
        /// The names that there are.
        known: Vec<String>,
    },
}

/// `of service "a" `
fn of_service(service: Option<&str>) -> String {
    service.map_or_else(String::new, |name| format!("of service {name:?} "))
}

impl Controller {
    /// Takes an order about the backends of this name, of one service or of all. Without `force`
    /// none that takes the last backend of a service away from new flows.
    pub fn order(
        &mut self,
        now: Timestamp,
        (name, service): (&str, Option<&str>),
        order: Order,
        force: bool,
    ) -> Result<Vec<Ordered>, Refusal> {
        let targets = self.targets(name, service)?;
        if !force {
            for &(service, _, backend) in &targets {
                self.refuse_last(service, backend, order)?;
            }
        }
        let mut ordered = Vec::new();
        for (service, position, backend) in targets {
            let word = self.operator.order(backend, order, now);
            self.follow_word(service, position, backend, &word);
            let name = |config: &crate::config::model::ServiceConfig| config.name.clone();
            ordered.push(Ordered {
                service: (self.config.services.get(service)).map_or_else(String::new, name),
                backend: self.backend_name(service, position),
                word,
            });
            self.follow_recoveries(now, service);
        }
        for Ordered {
            service,
            backend,
            word,
        } in &ordered
        {
            self.actions.push_back(Action::Report(Event::Operator {
                service: service.clone(),
                backend: backend.clone(),
                what: said(word, now),
            }));
        }
        self.save_operator();
        self.reconcile_tables();
        self.track(now);
        self.collect(now);
        Ok(ordered)
    }

    /// The operator's word on a backend, if there is one.
    pub fn word(&self, service: usize, backend: usize) -> Option<&Word> {
        self.operator
            .word(&self.backend_identity(service, backend)?)
    }

    /// Percent of its weight that the slow start of a backend has reached, if one is under way.
    pub fn ramp(&self, service: usize, backend: usize) -> Option<u8> {
        self.operator
            .ramp(&self.backend_identity(service, backend)?)
    }

    /// Percent of its weight that the agent of a backend wants, if it has one.
    pub fn agent_weight(&self, service: usize, backend: usize) -> Option<u16> {
        let agent = self.health.get(service)?.agent(backend);
        agent.map(AgentState::weight)
    }

    /// What the backends of a service are in the data plane, as soon as it is written.
    pub fn standing(&self, service: usize) -> ServiceStanding {
        let Some(config) = self.config.services.get(service) else {
            return ServiceStanding::default();
        };
        standing::of_service(config, &self.states(service), &self.influences())
    }

    /// What has a say about backends beside their checks: the operator, slow starts, agents.
    pub(super) fn influences(&self) -> Influences {
        self.with_agents(self.operator.influences())
    }

    /// Adds the weights that agents want.
    fn with_agents(&self, mut influences: Influences) -> Influences {
        for (config, health) in self.config.services.iter().zip(&self.health) {
            let own = identity(config);
            for (position, backend) in config.backends.iter().enumerate() {
                let Some(agent) = health.agent(position) else {
                    break;
                };
                let influence = influences.entry((own, backend.address));
                influence.or_insert(Influence::NONE).agent = agent.weight();
            }
        }
        influences
    }

    /// What the checks say of the backends of a service.
    pub(super) fn states(&self, service: usize) -> Vec<BackendState> {
        let config = self.config.services.get(service);
        let backends = 0..config.map_or(0, |config| config.backends.len());
        let health = self.health.get(service);
        health.map_or_else(Vec::new, |health| {
            backends.map(|backend| health.state(backend)).collect()
        })
    }

    /// Does what is due: ends of drains, steps of slow starts.
    pub(super) fn operator_timeout(&mut self, now: Timestamp) {
        self.end_removals(now);
        let (ended, changed) = self.operator.handle_timeout(now);
        for backend in &ended {
            let Some((service, position)) = self.position_by_identity(backend) else {
                continue;
            };
            let Some(word) = self.operator.word(backend).copied() else {
                continue;
            };
            self.follow_word(service, position, *backend, &word);
            let config = self.config.services.get(service);
            self.actions.push_back(Action::Report(Event::Operator {
                service: config.map_or_else(String::new, |config| config.name.clone()),
                backend: self.backend_name(service, position),
                what: "its time to drain is over: in maintenance".to_owned(),
            }));
        }
        if !ended.is_empty() {
            self.save_operator();
        }
        if changed {
            self.reconcile_tables();
        }
    }

    /// Notes who was seen dead and who has come back, for slow starts.
    pub(super) fn follow_recoveries(&mut self, now: Timestamp, service: usize) {
        let Some(config) = self.config.services.get(service) else {
            return;
        };
        let (own, lasts) = (identity(config), config.slow_start);
        let addresses: Vec<SocketAddr> = config.backends.iter().map(|b| b.address).collect();
        for (position, address) in addresses.into_iter().enumerate() {
            let backend = (own, address);
            let Some(health) = self.health.get(service) else {
                return;
            };
            let dead = health
                .last(position)
                .is_some_and(|seen| seen.outcome.class() == Class::Dead);
            let word = self.operator.word(&backend);
            let in_maintenance = word.is_some_and(|word| word.mode == Mode::Maintenance);
            match health.state(position) {
                _ if in_maintenance => self.operator.note_down(backend),
                BackendState::Down if dead => self.operator.note_down(backend),
                BackendState::Up => self.operator.note_up(backend, lasts, now),
                BackendState::Down | BackendState::Draining => {}
            }
        }
    }

    /// After another configuration: words on backends that are gone are dropped.
    pub(super) fn keep_words(&mut self, now: Timestamp) {
        let services = self.config.services.iter();
        let known: BTreeSet<BackendIdentity> = services
            .flat_map(|service| {
                let own = identity(service);
                let backends = service.backends.iter();
                backends.map(move |backend| (own, backend.address))
            })
            .collect();
        let dropped = self.operator.forget_others(&known);
        for ((vip, port, _), backend) in &dropped {
            self.actions.push_back(Action::Report(Event::Operator {
                service: SocketAddr::new(*vip, *port).to_string(),
                backend: backend.to_string(),
                what: "no longer configured: what was ordered for it is forgotten".to_owned(),
            }));
        }
        if !dropped.is_empty() {
            self.save_operator();
        }
        let words: Vec<Entry> = self.operator.entries();
        for Entry { backend, word } in words {
            if let Some((service, position)) = self.position_by_identity(&backend) {
                self.follow_word(service, position, backend, &word);
                self.follow_recoveries(now, service);
            }
        }
    }

    // --- Helpers ------------------------------------------------------------------------------

    pub(super) fn save_operator(&mut self) {
        self.actions.push_back(Action::SaveOperator(Saved {
            words: self.operator.entries(),
            roster: self.roster.clone(),
            names: self
                .names
                .addresses()
                .map(|(key, own)| (key.clone(), own))
                .collect(),
        }));
    }

    /// What a word means to the checks and to a later recovery.
    pub(super) fn follow_word(
        &mut self,
        service: usize,
        position: usize,
        own: BackendIdentity,
        word: &Word,
    ) {
        let in_maintenance = word.mode == Mode::Maintenance;
        if let Some(health) = self.health.get_mut(service) {
            health.put_aside(position, in_maintenance);
        }
        if in_maintenance {
            self.operator.note_down(own);
        }
    }

    /// Refuses an order that leaves nobody for new flows of a service that has somebody now.
    pub(super) fn refuse_last(
        &self,
        service: usize,
        backend: BackendIdentity,
        order: Order,
    ) -> Result<(), Refusal> {
        let takes_away = matches!(
            order,
            Order::Drain { .. }
                | Order::Leave { .. }
                | Order::Disable
                | Order::Weight(Weight::Absolute(0) | Weight::Percent(0))
        );
        let Some(config) = self.config.services.get(service).filter(|_| takes_away) else {
            return Ok(());
        };
        let states = self.states(service);
        let after = self.with_agents(self.operator.influences_after(backend, order));
        let before = self.influences();
        let takes_new = |influences| standing::of_service(config, &states, influences).takes_new();
        if takes_new(&before) && !takes_new(&after) {
            let mut backends = config.backends.iter();
            let own = backends.find(|one| one.address == backend.1);
            return Err(Refusal::Last {
                service: config.name.clone(),
                backend: own.map_or_else(String::new, |own| own.name.clone()),
            });
        }
        Ok(())
    }

    /// Service, position and identity of each backend that an order is for.
    pub(super) fn targets(
        &self,
        name: &str,
        service: Option<&str>,
    ) -> Result<Vec<(usize, usize, BackendIdentity)>, Refusal> {
        let services = &self.config.services;
        if let Some(wanted) = service
            && !services.iter().any(|own| own.name == wanted)
        {
            return Err(Refusal::UnknownService {
                name: wanted.to_owned(),
                known: services.iter().map(|own| own.name.clone()).collect(),
            });
        }
        let mut known = BTreeSet::new();
        let mut targets = Vec::new();
        for (at, config) in services.iter().enumerate() {
            if service.is_some_and(|wanted| config.name != wanted) {
                continue;
            }
            for (position, backend) in config.backends.iter().enumerate() {
                known.insert(backend.name.clone());
                if backend.name == name {
                    targets.push((at, position, (identity(config), backend.address)));
                }
            }
        }
        if targets.is_empty()
            && let Some(nameless) = self.find_nameless(name, service)
        {
            return Err(Refusal::Nameless {
                backend: name.to_owned(),
                why: nameless.why.clone(),
            });
        }
        if targets.is_empty() {
            return Err(Refusal::UnknownBackend {
                name: name.to_owned(),
                service: service.map(str::to_owned),
                known: known.into_iter().collect(),
            });
        }
        Ok(targets)
    }

    /// Whether the operator has put a backend in maintenance.
    pub(super) fn is_in_maintenance(&self, backend: BackendIdentity) -> bool {
        let word = self.operator.word(&backend);
        word.is_some_and(|word| word.mode == Mode::Maintenance)
    }

    fn backend_identity(&self, service: usize, backend: usize) -> Option<BackendIdentity> {
        let config = self.config.services.get(service)?;
        let address = config.backends.get(backend)?.address;
        Some((identity(config), address))
    }

    pub(super) fn position_by_identity(
        &self,
        (service, address): &BackendIdentity,
    ) -> Option<(usize, usize)> {
        let mut services = self.config.services.iter();
        let at = services.position(|config| identity(config) == *service)?;
        let mut backends = self.config.services.get(at)?.backends.iter();
        let position = backends.position(|backend| backend.address == *address)?;
        Some((at, position))
    }

    pub(super) fn backend_name(&self, service: usize, backend: usize) -> String {
        let config = self.config.services.get(service);
        let backend = config.and_then(|config| config.backends.get(backend));
        backend.map_or_else(String::new, |backend| backend.name.clone())
    }
}

/// A word in words: `drains, in maintenance in 300 s; weight 50%`.
pub fn said(word: &Word, now: Timestamp) -> String {
    let mode = match (word.mode, word.deadline) {
        (Mode::Enabled, _) => "enabled".to_owned(),
        (Mode::Maintenance, _) => "in maintenance".to_owned(),
        (Mode::Draining, None) => "drains".to_owned(),
        (Mode::Draining, Some(deadline)) => {
            let then = if word.leaves {
                "removed"
            } else {
                "in maintenance"
            };
            // Just ordered, it has all of its time: no second is lost by rounding.
            let left = deadline.saturating_since(now).as_millis().div_ceil(1_000);
            format!("drains, {then} in {left} s")
        }
    };
    match word.weight {
        Weight::Configured => mode,
        Weight::Absolute(weight) => format!("{mode}; weight {weight}"),
        Weight::Percent(percent) => format!("{mode}; weight {percent}%"),
    }
}

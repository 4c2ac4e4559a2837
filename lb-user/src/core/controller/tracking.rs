//! What makes this node more or less fit to own an instance's addresses: conditions are gathered
//! here, and [`tracking`](crate::core::tracking) says what they come to.
//!
//! Without a word in the configuration an instance is at fault while its interface is down or carries
//! no data plane: who cannot forward must not own. And it takes the lowest priority while this node
//! sees no backend of the addresses' services that works: another node may. The state of this node's own
//! backend does not matter then, so that the addresses stay put while any backend works.
//!
//! A backend in maintenance, or removed by the operator, is as good as a dead one: it serves nobody, and most
//! often it is about to stop. One that drains counts as its checks say: a move of the addresses would end the
//! connections that the drain is there for.

use lb_common::abi::BackendState;

use super::{Action, Controller, Event};
use crate::{
    config::model::{MAX_TRACK_WEIGHT, ServiceConfig, TrackConfig, TrackSubject, VrrpConfig},
    core::{
        desired::identity,
        time::Timestamp,
        tracking::{Condition, Effect, Fitness, Monitor, Observation, TrackWeight},
    },
};

/// Serial numbers of looks that one configuration may use up.
const SERIALS: u32 = 32;

/// What is tracked without a word in the configuration.
#[derive(Clone, Copy)]
enum Default {
    Uplink,
    DataPlane,
    Backends,
}

impl Default {
    const ALL: [Self; 3] = [Self::Uplink, Self::DataPlane, Self::Backends];

    const fn name(self) -> &'static str {
        match self {
            Self::Uplink => "uplink",
            Self::DataPlane => "data plane",
            Self::Backends => "backends",
        }
    }

    const fn weight(self) -> TrackWeight {
        let weight = match self {
            Self::Uplink | Self::DataPlane => 0,
            Self::Backends => -MAX_TRACK_WEIGHT,
        };
        TrackWeight {
            weight,
            reverse: false,
        }
    }
}

/// Something that an instance tracks, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackView {
    /// Its name; of a default, what it is.
    pub name: String,
    /// What is known.
    pub condition: Condition,
    /// What it comes to for this instance.
    pub effect: Effect,
    /// What was seen, in words.
    pub seen: String,
}

impl Controller {
    // --- What is watched ----------------------------------------------------------------------

    /// The monitors of a configuration: those that were there before go on with what they know.
    pub(super) fn take_over_monitors(&mut self, now: Timestamp) {
        let serial = u64::from(self.reloads) << SERIALS;
        let before = std::mem::take(&mut self.monitors);
        let monitor = |config: &TrackConfig| {
            let polled = config.subject.is_polled();
            let mut known = before.iter().flatten();
            polled.then(|| match known.find(|known| known.config() == config) {
                Some(known) => known.succeeded(now, serial),
                None => Monitor::new(config.clone(), now, serial),
            })
        };
        self.monitors = self.config.tracks.iter().map(monitor).collect();
    }

    /// Have a look at what is due.
    pub(super) fn look(&mut self, now: Timestamp) {
        for (track, monitor) in self.monitors.iter_mut().enumerate() {
            let Some(monitor) = monitor else { continue };
            if let Some(serial) = monitor.look(now) {
                self.actions.push_back(Action::Look {
                    track,
                    serial,
                    subject: monitor.config().subject.clone(),
                });
            }
        }
    }

    /// A look has ended.
    pub(super) fn looked(
        &mut self,
        now: Timestamp,
        track: usize,
        serial: u64,
        observation: Observation,
    ) {
        if let Some(Some(monitor)) = self.monitors.get_mut(track) {
            monitor.handle(now, serial, observation);
        }
    }

    // --- What follows -------------------------------------------------------------------------

    /// Let every instance take part with the priority that it is fit for now.
    pub(super) fn track(&mut self, now: Timestamp) {
        if self.stopping {
            return;
        }
        for position in 0..self.roles.len() {
            let Some(config) = self.config.vrrp.get(position) else {
                continue;
            };
            let fitness = Fitness::new(config.priority, self.group_effects(position));
            let Some(role) = self.roles.get_mut(position) else {
                continue;
            };
            role.instance.set_priority(now, fitness.priority);
            role.instance.set_fault(now, fitness.fault);
            if role.fitness != fitness {
                role.fitness = fitness;
                self.report_fitness(position, fitness);
            }
        }
    }

    fn report_fitness(&mut self, position: usize, fitness: Fitness) {
        let Some(config) = self.config.vrrp.get(position) else {
            return;
        };
        let (name, configured) = (config.name.clone(), config.priority.get());
        let mut because = Vec::new();
        for member in self.group_of(position) {
            let of = self.config.vrrp.get(member).filter(|_| member != position);
            let whose = of.map_or_else(String::new, |of| format!("{}'s ", of.name));
            let views = self.tracked(member).into_iter();
            let effective = views.filter(|view| view.effect != Effect::NONE);
            because.extend(effective.map(
                |TrackView {
                     name, effect, seen, ..
                 }| { format!("{whose}{name} {effect}: {seen}") },
            ));
        }
        self.actions.push_back(Action::Report(Event::Fitness {
            name,
            fitness,
            configured,
            because: because.join("; "),
        }));
    }

    /// What an instance tracks, and what comes of it.
    pub fn tracked(&self, position: usize) -> Vec<TrackView> {
        let Some(config) = self.config.vrrp.get(position) else {
            return Vec::new();
        };
        let defaults = Self::defaults(config).map(|default| {
            let condition = self.default_condition(default, config);
            TrackView {
                name: default.name().to_owned(),
                condition,
                effect: default.weight().of(condition),
                seen: self.default_seen(default, config, condition),
            }
        });
        let configured = config.track.iter().filter_map(|tracked| {
            let track = self.config.tracks.get(tracked.track)?;
            let condition = self.condition(tracked.track);
            Some(TrackView {
                name: track.name.clone(),
                condition,
                effect: TrackWeight::from(tracked).of(condition),
                seen: self.seen_of(tracked.track, track, condition),
            })
        });
        defaults.chain(configured).collect()
    }

    /// What comes of everything that the instance at `position` and those of its group track.
    fn group_effects(&self, position: usize) -> impl Iterator<Item = Effect> + '_ {
        let members = self.group_of(position);
        let configs = members.filter_map(|member| self.config.vrrp.get(member));
        configs.flat_map(|config| self.effects(config))
    }

    fn effects<'a>(&'a self, config: &'a VrrpConfig) -> impl Iterator<Item = Effect> + 'a {
        let defaults = Self::defaults(config).map(move |default| {
            let condition = self.default_condition(default, config);
            default.weight().of(condition)
        });
        let configured = config
            .track
            .iter()
            .map(|tracked| TrackWeight::from(tracked).of(self.condition(tracked.track)));
        defaults.chain(configured)
    }

    fn defaults(config: &VrrpConfig) -> impl Iterator<Item = Default> + use<> {
        let wanted = config.track_defaults;
        Default::ALL.into_iter().filter(move |_| wanted)
    }

    // --- Conditions ---------------------------------------------------------------------------

    fn condition(&self, track: usize) -> Condition {
        if let Some(Some(monitor)) = self.monitors.get(track) {
            return monitor.condition();
        }
        match self.config.tracks.get(track).map(|track| &track.subject) {
            Some(TrackSubject::LocalBackend(service)) => {
                let is_up = |state| state == BackendState::Up;
                self.backends_condition(self.named(service), Place::Here, is_up)
            }
            Some(TrackSubject::AnyBackend(service)) => {
                self.backends_condition(self.named(service), Place::Anywhere, works)
            }
            Some(TrackSubject::Interface(name)) => self.interface_condition(name),
            Some(
                TrackSubject::File(_) | TrackSubject::Process { .. } | TrackSubject::Command { .. },
            )
            | None => Condition::Unknown,
        }
    }

    fn default_condition(&self, default: Default, config: &VrrpConfig) -> Condition {
        match default {
            Default::Uplink => self.interface_condition(&config.interface),
            Default::DataPlane if !self.attachments.known => Condition::Unknown,
            Default::DataPlane => {
                let mut attached = self.attachments.attached.iter();
                let own = attached.find(|own| own.place.interface == config.interface);
                met(own.is_some_and(|own| own.mode.is_some()))
            }
            Default::Backends => {
                let mut all = Condition::Unknown;
                for (position, _) in self.services_of(config) {
                    let one = self.backends_condition(Some(position), Place::Anywhere, works);
                    match one {
                        Condition::Failed => all = Condition::Failed,
                        decided => return decided,
                    }
                }
                all
            }
        }
    }

    /// The services at an instance's addresses, with their positions.
    fn services_of<'a>(
        &'a self,
        config: &'a VrrpConfig,
    ) -> impl Iterator<Item = (usize, &'a ServiceConfig)> {
        let has = |service: &ServiceConfig| {
            let mut own = config.addresses.iter();
            own.any(|net| net.addr() == service.address)
        };
        let services = self.config.services.iter().enumerate();
        services.filter(move |(_, service)| has(service))
    }

    fn named(&self, service: &str) -> Option<usize> {
        let mut services = self.config.services.iter();
        services.position(|config| config.name == service)
    }

    fn interface_condition(&self, name: &str) -> Condition {
        if !self.links_known {
            return Condition::Unknown;
        }
        let interface = self.network.interface(name);
        met(interface.is_some_and(|interface| interface.up))
    }

    /// Whether one of a service's backends is `good`. It is not known while there is one that no
    /// check has seen.
    fn backends_condition(
        &self,
        service: Option<usize>,
        place: Place,
        good: fn(BackendState) -> bool,
    ) -> Condition {
        let Some((service, health)) = service.and_then(|service| {
            let config = self.config.services.get(service)?;
            Some((config, self.health.get(service)?))
        }) else {
            return Condition::Unknown;
        };
        let (mut seen, mut unseen) = (false, false);
        for (position, backend) in service.backends.iter().enumerate() {
            if place == Place::Here && !self.network.has_address(backend.address.ip()) {
                continue;
            }
            let in_maintenance = self.is_in_maintenance((identity(service), backend.address));
            if !in_maintenance && good(health.state(position)) {
                return Condition::Met;
            }
            if in_maintenance || health.last(position).is_some() {
                seen = true;
            } else {
                unseen = true;
            }
        }
        if (seen || place == Place::Here && self.has_removed_here(service)) && !unseen {
            Condition::Failed
        } else {
            Condition::Unknown
        }
    }

    /// Whether a backend at an address of this node was removed by the operator.
    fn has_removed_here(&self, service: &ServiceConfig) -> bool {
        let key = identity(service);
        let mut files = self.file.services.iter();
        let file = files.find(|file| identity(file) == key);
        let mut backends = file.into_iter().flat_map(|file| &file.backends);
        backends.any(|backend| {
            let is_here = self.network.has_address(backend.address.ip());
            is_here && self.roster.has_removed(key, &backend.name)
        })
    }

    // --- In words -----------------------------------------------------------------------------

    fn default_seen(&self, default: Default, config: &VrrpConfig, condition: Condition) -> String {
        let interface = &config.interface;
        match (default, condition) {
            (Default::Uplink, _) => self.interface_seen(interface),
            (Default::DataPlane, Condition::Met) => format!("{interface} carries it"),
            (Default::DataPlane, Condition::Failed) => {
                format!("nothing is attached to {interface}")
            }
            (Default::Backends, Condition::Met) => "one works".to_owned(),
            (Default::Backends, Condition::Failed) => {
                let names = self.services_of(config).map(|(_, service)| &service.name);
                let names: Vec<_> = names.map(String::as_str).collect();
                format!("none of {} works", names.join(", "))
            }
            (_, _) => UNKNOWN.to_owned(),
        }
    }

    fn interface_seen(&self, name: &str) -> String {
        match self.network.interface(name) {
            _ if !self.links_known => UNKNOWN.to_owned(),
            None => format!("there is no interface {name}"),
            Some(interface) if interface.up => format!("{name} is up"),
            Some(_) => format!("{name} is down or has no carrier"),
        }
    }

    fn seen_of(&self, position: usize, track: &TrackConfig, condition: Condition) -> String {
        if let Some(Some(monitor)) = self.monitors.get(position) {
            return monitor.seen().to_owned();
        }
        match (&track.subject, condition) {
            (TrackSubject::Interface(name), _) => self.interface_seen(name),
            (TrackSubject::LocalBackend(service), Condition::Unknown) => {
                format!("no backend of {service} is on this node, or none was checked yet")
            }
            (TrackSubject::LocalBackend(service), Condition::Met) => {
                format!("the backend of {service} on this node is up")
            }
            (TrackSubject::LocalBackend(service), _) => {
                format!("the backend of {service} on this node is not up, or out of service")
            }
            (TrackSubject::AnyBackend(service), Condition::Met) => {
                format!("a backend of {service} works")
            }
            (TrackSubject::AnyBackend(service), Condition::Failed) => {
                format!("no backend of {service} works")
            }
            _ => UNKNOWN.to_owned(),
        }
    }
}

const UNKNOWN: &str = "not known yet";

/// Which backends count.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Those with an address of this node.
    Here,
    /// All.
    Anywhere,
}

/// Whether a backend in this state serves.
fn works(state: BackendState) -> bool {
    state != BackendState::Down
}

fn met(is_met: bool) -> Condition {
    if is_met {
        Condition::Met
    } else {
        Condition::Failed
    }
}

//! The controller: one state machine over VRRP instances, health checks, this node's network and
//! the data plane's tables.
//!
//! Feed it with [`Controller::handle`]; then drain [`Controller::poll_action`] and carry the
//! actions out in their order; then wait until [`Controller::poll_timeout`] at the latest and
//! call [`Controller::handle_timeout`]. Every `handle*` call may change `poll_timeout`; nothing
//! else does. A `handle_timeout` that comes too early does nothing.

mod addresses;
mod duplicates;
mod followed;
mod groups;
mod hearing;
mod messages;
mod names;
mod notify;
mod operator;
mod quorum;
mod reading;
mod refusals;
mod reload;
mod roster;
#[cfg(test)]
mod tests;
mod tracking;
mod uplinks;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use lb_common::abi::{BackendState, Mac};

pub use self::{
    duplicates::Duplicate,
    messages::{Action, Event, Input},
    names::Nameless,
    operator::{Ordered, Refusal, said},
    reload::Fixed,
    roster::{Changed, REMOVAL_DRAIN},
    tracking::TrackView,
};
use self::{duplicates::Duplicates, followed::Followed, reading::Reading, uplinks::Attachments};
use super::{
    attach::Attachment,
    desired::{self, Builder, Desired, Facts, Retiring, ServiceIdentity, ServicePlacement},
    epochs,
    health::{HealthAction, Seen, ServiceHealth, agent::AgentReport},
    names::Names,
    network::Network,
    notify::RouterState,
    operator::Operator,
    roster::Roster,
    standing::Influences,
    tables::{self, Tables},
    time::Timestamp,
    tracking::{Fitness, Monitor},
    vrrp::{Complaints, Instance, Transition, VrrpAction},
};
use crate::config::model::{Config, ServiceConfig, VrrpConfig};

/// Validity of an owner's addresses: without a renewal the kernel removes them after this time.
pub const VIP_LIFETIME: Duration = Duration::from_secs(3);
/// How often they are renewed.
const VIP_RENEWAL: Duration = Duration::from_secs(1);
/// How often everything is read again, in case a change was made that nobody announced.
const AUDIT_INTERVAL: Duration = Duration::from_secs(5);
/// Changes of the network come in storms: it is read no more often than this.
const LINKS_GAP: Duration = Duration::from_millis(100);
/// For facts that rest on nobody's word.
static NO_INFLUENCES: Influences = Influences::new();
/// Pause before a failed reading or writing is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// One VRRP instance and what it has done to this node.
struct Role {
    /// See [`Controller::slot`].
    slot: usize,
    instance: Instance,
    /// The addresses are to be on the interface.
    owns: bool,
    /// Addresses that were added and not removed since, by interface index.
    placed: BTreeSet<(u32, IpNet)>,
    /// The place that the neighbours were told last.
    announced: Option<(u32, Mac)>,
    /// Bad adverts by label.
    bad: BTreeMap<&'static str, u64>,
    complaints: Complaints,
    duplicates: Duplicates,
    reported: u64,
    /// The state that others were told last.
    told: Option<RouterState>,
    /// What tracking makes of the priority.
    fitness: Fitness,
    /// Index of the interface that its socket is for.
    listens_on: Option<u32>,
}

impl Role {
    /// One that begins `now`, as Backup unless it has priority 255.
    fn new(slot: usize, config: &VrrpConfig, now: Timestamp) -> Self {
        Self {
            slot,
            instance: Instance::new(config, now),
            owns: false,
            placed: BTreeSet::new(),
            announced: None,
            bad: BTreeMap::new(),
            complaints: Complaints::default(),
            duplicates: Duplicates::default(),
            reported: 0,
            told: None,
            fitness: Fitness::new(config.priority, []),
            listens_on: None,
        }
    }

    /// Whether the addresses may be on the interface. A lease that has ended counts as lost even
    /// before the instance has noticed: this controller may just have woken up.
    fn owns_at(&self, now: Timestamp) -> bool {
        let deadline = self.instance.lease_deadline();
        self.owns && deadline.is_some_and(|deadline| now < deadline)
    }
}

/// State of one backend, for status.
#[derive(Clone, Debug)]
pub struct BackendView {
    /// State in force.
    pub state: BackendState,
    /// When it last changed.
    pub since: Timestamp,
    /// Why it last changed, in words.
    pub reason: String,
}

/// The controller. See the module's documentation.
pub struct Controller {
    /// What comes of the file, of the operator's changes and of what names stand for.
    config: Config,
    /// As it was read.
    file: Config,
    roster: Roster,
    names: Names,
    /// Backends that are not in `config`, since their names stand for no address.
    nameless: Vec<Nameless>,
    netns_cookie: u64,
    roles: Vec<Role>,
    health: Vec<ServiceHealth>,
    views: Vec<Vec<BackendView>>,
    /// By position of the tracked thing; `None`: nobody has to look at it.
    monitors: Vec<Option<Monitor>>,
    network: Network,
    links_known: bool,
    attachments: Attachments,
    builder: Builder,
    /// What the data plane holds; `None` until it is read, and after a failed write.
    tables: Option<Tables>,
    placements: Vec<ServicePlacement>,
    /// Backends that are no longer configured.
    retiring: Vec<Retiring>,
    operator: Operator,
    /// The states of groups that others were told last.
    told_groups: BTreeMap<String, RouterState>,
    /// Whether services have lost their quorum, as far as that was found out.
    quorum_lost: BTreeMap<ServiceIdentity, bool>,
    /// How often the configuration was replaced.
    reloads: u32,
    /// Asked for since the last reading of links.
    resolving: BTreeSet<IpAddr>,
    followed: Followed,
    /// The states of a data plane that was there before were taken over.
    adopted: bool,
    reading_tables: Reading,
    reading_links: Reading,
    audit_at: Timestamp,
    renew_at: Timestamp,
    stopping: bool,
    /// Backends that refused a connection, by id, since when; none of their checks that began later
    /// has passed.
    suspects: BTreeMap<u32, Timestamp>,
    actions: VecDeque<Action>,
}

impl Controller {
    /// A controller of `file` that begins `now`; it first reads tables and links.
    ///
    /// `netns_cookie` identifies this node's network namespace to the connect hooks, `seed`
    /// spreads the times of checks between nodes.
    pub fn new(file: Config, now: Timestamp, netns_cookie: u64, seed: u64) -> Self {
        let mut names = Names::default();
        names::follow(&mut names, &file, now);
        let (config, nameless) = names::apply(&names, file.clone(), now);
        let roles = config
            .vrrp
            .iter()
            .enumerate()
            .map(|(slot, vrrp)| Role::new(slot, vrrp, now))
            .collect();
        let health: Vec<_> = config
            .services
            .iter()
            .zip(0u64..)
            .map(|(service, index)| {
                let seed = seed.wrapping_add(index);
                ServiceHealth::new(&service.health, service.backends.len(), now, seed)
            })
            .collect();
        let views = views(&config, &health, now);
        let mut controller = Self {
            file,
            config,
            roster: Roster::default(),
            names,
            nameless,
            netns_cookie,
            roles,
            health,
            views,
            monitors: Vec::new(),
            network: Network::default(),
            links_known: false,
            attachments: Attachments::default(),
            builder: Builder::default(),
            tables: None,
            placements: Vec::new(),
            retiring: Vec::new(),
            operator: Operator::default(),
            told_groups: BTreeMap::new(),
            quorum_lost: BTreeMap::new(),
            reloads: 0,
            resolving: BTreeSet::new(),
            followed: Followed::default(),
            adopted: false,
            reading_tables: Reading::new(now, Duration::ZERO),
            reading_links: Reading::new(now, LINKS_GAP),
            audit_at: now + AUDIT_INTERVAL,
            renew_at: now,
            stopping: false,
            suspects: BTreeMap::new(),
            actions: VecDeque::new(),
        };
        controller.take_over_monitors(now);
        controller.look(now);
        controller.ask(now);
        controller.collect(now);
        controller
    }

    /// Take in what happened at `now`.
    pub fn handle(&mut self, now: Timestamp, input: Input) {
        match input {
            Input::Vrrp {
                instance,
                at,
                meta,
                message,
            } => self.hear(now, instance, at, meta, &message),
            Input::AdvertSent { instance, at } => {
                self.with_instance(instance, |vrrp| vrrp.handle_advert_sent(now, at));
            }
            Input::AdvertFailed { instance } => {
                self.with_instance(instance, |vrrp| vrrp.handle_advert_failed(now));
            }
            Input::Listening { instance, address } => {
                self.with_instance(instance, |vrrp| vrrp.handle_listening(now, address));
            }
            Input::Probed { service, result } => {
                self.clear_suspicion(service, &result);
                if let Some(health) = self.health.get_mut(service) {
                    health.handle_result(now, result);
                }
                self.follow_recoveries(now, service);
            }
            Input::AgentSaid {
                service,
                backend,
                serial,
                report,
            } => self.hear_agent(now, service, (backend, serial), report),
            Input::Refused { backend } => self.suspect(now, backend),
            Input::Links {
                interfaces,
                addresses,
            } => {
                if self.reading_links.accept(now) {
                    self.set_links(now, interfaces, addresses);
                }
            }
            Input::LinksFailed => self.reading_links.fail(now + RETRY),
            Input::NetworkChanged => self.reading_links.want(now),
            Input::Attached(attached) => self.set_attached(attached),
            Input::Hop { address, hop } => {
                if self.network.set_hop(address, hop) {
                    self.reconcile_tables();
                }
            }
            Input::Neighbour {
                ifindex,
                address,
                mac,
            } => {
                if self.network.set_neighbour(ifindex, address, mac) {
                    self.reconcile_tables();
                }
            }
            Input::Claimed {
                ifindex,
                address,
                mac,
            } => self.hear_claim(now, ifindex, address, mac),
            Input::Tables(observed) => {
                if self.reading_tables.accept(now) {
                    self.take_tables(*observed);
                }
            }
            Input::TablesFailed => {
                self.tables = None;
                self.reading_tables.fail(now + RETRY);
            }
            Input::LookedUp { key, answer } => self.looked_up(now, &key, answer),
            Input::Looked {
                track,
                serial,
                observation,
            } => self.looked(now, track, serial, observation),
            Input::StepDown { instance } => {
                for slot in self.group_slots(instance) {
                    self.with_instance(slot, |vrrp| vrrp.step_down(now));
                }
            }
            Input::Resume { instance } => {
                for slot in self.group_slots(instance) {
                    self.with_instance(slot, |vrrp| vrrp.resume(now));
                }
            }
            Input::Trace { serial, vips } => {
                self.followed.begin(serial, vips);
                self.reconcile_tables();
            }
            Input::TraceEnded { serial } => {
                if self.followed.end(serial) {
                    self.reconcile_tables();
                }
            }
            Input::Stop => self.stop(now),
        }
        self.track(now);
        self.collect(now);
        self.look(now);
        self.ask(now);
    }

    fn stop(&mut self, now: Timestamp) {
        self.stopping = true;
        self.followed.clear();
        self.reconcile_tables();
        for role in &mut self.roles {
            role.instance.stop(now);
        }
    }

    /// Do what is due at `now`. Every advert that came before `now` must have been handed in, so it
    /// may be earlier than the time of the inputs before it: whoever reads the clock after the
    /// sockets takes a pause in between for the silence of the others.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        for health in &mut self.health {
            health.handle_timeout(now);
        }
        // What ends here may change what this node is fit for.
        self.operator_timeout(now);
        self.look(now);
        self.track(now);
        for role in &mut self.roles {
            role.instance.handle_timeout(now);
        }
        // Who has just lost the addresses does not renew them.
        self.collect(now);
        if self.owns() && self.renew_at <= now {
            self.renew_vips(now);
        }
        self.probe_for_duplicates(now);
        self.end_retirement(now);
        if self.audit_at <= now {
            self.audit_at = now + AUDIT_INTERVAL;
            self.reading_tables.audit(now, AUDIT_INTERVAL);
            self.reading_links.audit(now, AUDIT_INTERVAL);
            self.attachments.audit = true;
        }
        self.ask(now);
    }

    /// When [`Controller::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Timestamp {
        let vrrp = self
            .roles
            .iter()
            .filter_map(|role| role.instance.poll_timeout());
        let late = self
            .roles
            .iter()
            .filter_map(|role| role.instance.lateness().poll_timeout());
        let probes = self
            .roles
            .iter()
            .filter_map(|role| role.duplicates.poll_timeout());
        let health = self.health.iter().filter_map(ServiceHealth::poll_timeout);
        vrrp.chain(late)
            .chain(probes)
            .chain(health)
            .chain(self.reading_tables.poll_timeout())
            .chain(self.reading_links.poll_timeout())
            .chain(self.owns().then_some(self.renew_at))
            .chain(self.retiring.iter().map(|retiring| retiring.until))
            .chain(
                self.monitors
                    .iter()
                    .flatten()
                    .filter_map(Monitor::poll_timeout),
            )
            .chain(self.operator.poll_timeout())
            .chain(self.names.poll_timeout())
            .fold(self.audit_at, Timestamp::min)
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn owns(&self) -> bool {
        self.roles.iter().any(|role| role.owns)
    }

    /// Ask for the readings and lookups that are due. What was written before is in the readings'
    /// answers.
    fn ask(&mut self, now: Timestamp) {
        self.look_up(now);
        if self.reading_tables.take_due(now) {
            self.actions.push_back(Action::ReadTables);
        }
        if self.reading_links.take_due(now) {
            self.resolving.clear();
            self.actions.push_back(Action::ReadLinks);
        }
    }

    // --- Views for status ---------------------------------------------------------------------

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// A VRRP instance, and its bad adverts by label.
    pub fn vrrp(&self, position: usize) -> Option<(&Instance, &BTreeMap<&'static str, u64>)> {
        self.roles
            .get(position)
            .map(|role| (&role.instance, &role.bad))
    }

    /// Slot of the VRRP instance at a position of the configuration. It stays when the configuration
    /// changes, and so do the lease with index slot + 1 and the socket.
    pub fn slot(&self, position: usize) -> Option<usize> {
        self.roles.get(position).map(|role| role.slot)
    }

    /// Configuration of the VRRP instance with this slot.
    pub fn vrrp_config(&self, slot: usize) -> Option<&VrrpConfig> {
        self.config.vrrp.get(self.position(slot)?)
    }

    /// Position in the configuration of the VRRP instance with this slot.
    fn position(&self, slot: usize) -> Option<usize> {
        self.roles.iter().position(|role| role.slot == slot)
    }

    /// A backend's state.
    pub fn backend(&self, service: usize, backend: usize) -> Option<&BackendView> {
        self.views.get(service)?.get(backend)
    }

    /// What a backend's checks saw last.
    pub fn seen(&self, service: usize, backend: usize) -> Option<&Seen> {
        self.health.get(service)?.last(backend)
    }

    /// Where services and their backends are in the tables, in configuration order; empty until
    /// the first reconciliation.
    pub fn placements(&self) -> &[ServicePlacement] {
        &self.placements
    }

    /// The uplinks that are there and what is attached to them, in configuration order.
    pub fn attached(&self) -> &[Attachment] {
        &self.attachments.attached
    }

    /// Uplinks that are not there, by name.
    pub fn missing_uplinks(&self) -> impl Iterator<Item = &str> {
        self.attachments.missing.iter().map(String::as_str)
    }

    /// This node's network as last seen.
    pub fn network(&self) -> &Network {
        &self.network
    }

    // --- VRRP ---------------------------------------------------------------------------------

    fn with_instance(&mut self, slot: usize, act: impl FnOnce(&mut Instance)) {
        if let Some(role) = self.roles.iter_mut().find(|role| role.slot == slot) {
            act(&mut role.instance);
        }
    }

    /// Gather the actions of the parts.
    fn collect(&mut self, now: Timestamp) {
        for position in 0..self.roles.len() {
            self.collect_vrrp(now, position);
        }
        for service in 0..self.health.len() {
            self.collect_health(now, service);
        }
        self.tell();
    }

    fn collect_vrrp(&mut self, now: Timestamp, position: usize) {
        let Some(slot) = self.slot(position) else {
            return;
        };
        while let Some(action) = self
            .roles
            .get_mut(position)
            .and_then(|role| role.instance.poll_action())
        {
            match action {
                VrrpAction::SendAdvert { advert, not_after } => {
                    self.actions.push_back(Action::SendAdvert {
                        instance: slot,
                        advert,
                        not_after,
                    });
                }
                VrrpAction::SetLease { deadline } => self.actions.push_back(Action::SetLease {
                    lease: desired::lease_index(slot),
                    deadline,
                }),
                VrrpAction::BecomeActive => {
                    self.set_owns(position, true);
                    self.renew_vips(now);
                    self.begin_to_probe(now, position);
                }
                VrrpAction::BecomeBackup => {
                    self.set_owns(position, false);
                    self.give_up_vips(now, position);
                    self.end_probing(now, position);
                }
                VrrpAction::Announce => self.announce(position),
            }
        }
        self.report_late(now, position);
        if let Some(transition) = self.report_transition(position)
            && self.follow(now, position, transition)
        {
            self.collect_group(now, position);
        }
    }

    fn set_owns(&mut self, position: usize, owns: bool) {
        if let Some(role) = self.roles.get_mut(position) {
            role.owns = owns;
            role.announced = None;
        }
    }

    /// Tells of a change of state that nobody was told of; it is the result.
    fn report_transition(&mut self, position: usize) -> Option<Transition> {
        let role = self.roles.get_mut(position)?;
        let config = self.config.vrrp.get(position)?;
        if role.instance.transitions() == role.reported {
            return None;
        }
        role.reported = role.instance.transitions();
        let transition = role.instance.last_transition();
        self.actions.push_back(Action::Report(Event::Vrrp {
            name: config.name.clone(),
            from: transition.from,
            to: transition.to,
            cause: transition.cause,
        }));
        Some(transition)
    }

    // --- Health -------------------------------------------------------------------------------

    fn collect_health(&mut self, now: Timestamp, service: usize) {
        let mut changed = false;
        while let Some(action) = self
            .health
            .get_mut(service)
            .and_then(ServiceHealth::poll_action)
        {
            match action {
                HealthAction::StartProbe {
                    backend,
                    serial,
                    timeout,
                    reuse,
                } => {
                    let config = self.config.services.get(service);
                    if let Some(target) = config.and_then(|config| config.probe_target(backend)) {
                        self.actions.push_back(Action::Probe {
                            service,
                            backend,
                            serial,
                            timeout,
                            target,
                            reuse,
                        });
                    }
                }
                HealthAction::AskAgent {
                    backend,
                    serial,
                    timeout,
                } => self.ask_agent(service, backend, serial, timeout),
                HealthAction::AgentWeighs => changed = true,
                HealthAction::AgentChanged {
                    backend,
                    from,
                    to,
                    said,
                } => {
                    changed = true;
                    self.note_backend(now, service, backend, (from, to), said.to_string());
                }
                HealthAction::StateChanged {
                    backend,
                    from,
                    to,
                    cause,
                } => {
                    changed = true;
                    self.note_backend(now, service, backend, (from, to), cause.to_string());
                }
            }
        }
        if changed {
            self.reconcile_tables();
        }
    }

    fn hear_agent(
        &mut self,
        now: Timestamp,
        service: usize,
        question: (usize, u64),
        report: Option<AgentReport>,
    ) {
        if let Some(health) = self.health.get_mut(service) {
            health.handle_agent(now, question, report);
        }
    }

    fn ask_agent(&mut self, service: usize, backend: usize, serial: u64, timeout: Duration) {
        let config = self.config.services.get(service);
        let Some(config) = config else {
            return;
        };
        let (agent, target) = (config.health.agent.as_ref(), config.agent_target(backend));
        if let (Some(agent), Some(target)) = (agent, target) {
            self.actions.push_back(Action::AskAgent {
                service,
                backend,
                serial,
                timeout,
                target,
                send: agent.send.clone(),
            });
        }
    }

    fn note_backend(
        &mut self,
        now: Timestamp,
        service: usize,
        backend: usize,
        (from, to): (BackendState, BackendState),
        cause: String,
    ) {
        if let Some(view) = self
            .views
            .get_mut(service)
            .and_then(|views| views.get_mut(backend))
        {
            *view = BackendView {
                state: to,
                since: now,
                reason: cause.clone(),
            };
        }
        let Some(config) = self.config.services.get(service) else {
            return;
        };
        let Some(name) = config
            .backends
            .get(backend)
            .map(|backend| backend.name.clone())
        else {
            return;
        };
        let service = config.name.clone();
        self.tell_of_backend(&service, &name, to);
        self.actions.push_back(Action::Report(Event::Backend {
            service,
            backend: name,
            from,
            to,
            cause,
        }));
    }

    // --- Tables -------------------------------------------------------------------------------

    /// The tables were read: what differs from what was written there is repaired.
    fn take_tables(&mut self, observed: Tables) {
        if !std::mem::replace(&mut self.adopted, true) {
            self.adopt_health(&observed);
        }
        if let Some(expected) = &self.tables {
            let differences = tables::plan(expected, &observed).len();
            if differences > 0 {
                let what = format!("{differences} entries of the data plane's tables");
                self.actions
                    .push_back(Action::Report(Event::Repaired { what }));
            }
        }
        self.tables = Some(observed);
        self.reconcile_tables();
    }

    /// A data plane that went on without its controller knows the backends' states: going on
    /// from there keeps their flows where they are.
    fn adopt_health(&mut self, observed: &Tables) {
        for (service, config) in self.config.services.iter().enumerate() {
            for (position, backend) in config.backends.iter().enumerate() {
                let Some(state) = desired::known_state(observed, config, backend) else {
                    continue;
                };
                let unchecked = |health: &ServiceHealth| health.is_unchecked();
                let untouched = self.seen(service, position).is_none()
                    && !self.health.get(service).is_some_and(unchecked);
                if let Some(health) = self.health.get_mut(service).filter(|_| untouched) {
                    health.adopt(position, state);
                }
                if let Some(view) = self
                    .views
                    .get_mut(service)
                    .and_then(|views| views.get_mut(position))
                    && untouched
                {
                    view.state = state;
                    "adopted from the running data plane".clone_into(&mut view.reason);
                }
            }
        }
    }

    fn reconcile_tables(&mut self) {
        self.follow_quorums();
        let known = self.links_known && self.attachments.known;
        let services = 0..self.config.services.len();
        let health: Vec<_> = services.map(|service| self.states(service)).collect();
        let influences = self.influences();
        let Some(observed) = self.tables.as_mut().filter(|_| known) else {
            return;
        };
        let facts = Facts {
            config: &self.config,
            network: &self.network,
            uplinks: &self.attachments.uplinks,
            health: &health,
            influences: &influences,
            leases: leases(&self.roles),
            retiring: &self.retiring,
            netns_cookie: self.netns_cookie,
        };
        let Desired {
            tables: mut desired,
            services,
        } = self.builder.build(&facts, observed);
        self.followed.mark(&mut desired);
        self.placements = services;
        let ops = tables::plan(&desired, observed);
        if ops.is_empty() {
            return;
        }
        let owns = |vip| owns_vip(&self.config, &self.roles, &self.network, vip);
        let mac = |ifindex| self.network.mac(ifindex);
        let mut deaths = epochs::deaths(&desired.v4, &observed.v4, owns, mac);
        deaths.extend(epochs::deaths(&desired.v6, &observed.v6, owns, mac));
        for op in &ops {
            observed.apply(op);
        }
        // Only tables in force are read back.
        observed
            .maglev
            .retain(|index, _| desired.maglev.contains_key(index));
        self.actions.push_back(Action::WriteTables(ops));
        if !deaths.is_empty() {
            self.actions.push_back(Action::Reset(deaths));
        }
        self.reading_tables.overtake();
    }

    /// The facts that do not rest on the backends' states.
    fn facts(&self) -> Facts<'_> {
        Facts {
            config: &self.config,
            network: &self.network,
            uplinks: &self.attachments.uplinks,
            health: &[],
            influences: &NO_INFLUENCES,
            leases: leases(&self.roles),
            retiring: &self.retiring,
            netns_cookie: self.netns_cookie,
        }
    }

    /// Whether [`Input::Stop`] was handled.
    pub const fn is_stopping(&self) -> bool {
        self.stopping
    }
}

/// Whether this node owns a VIP: the instance that has it is Active; without any, an interface
/// other than `lo` has the address.
fn owns_vip(config: &Config, roles: &[Role], network: &Network, vip: IpAddr) -> bool {
    let has = |net: &IpNet| net.addr() == vip;
    let managed = config
        .vrrp
        .iter()
        .zip(roles)
        .find(|(vrrp, _)| vrrp.addresses.iter().any(has));
    match managed {
        Some((_, role)) => role.owns,
        None => network
            .addresses()
            .any(|own| has(&own.net) && network.mac(own.ifindex).is_some()),
    }
}

/// Index in `leases` of each role.
fn leases(roles: &[Role]) -> Vec<u32> {
    let leases = roles.iter().map(|role| desired::lease_index(role.slot));
    leases.collect()
}

fn views(config: &Config, health: &[ServiceHealth], now: Timestamp) -> Vec<Vec<BackendView>> {
    let services = config.services.iter().zip(health);
    services
        .map(|(service, health)| new_views(service, health, now))
        .collect()
}

/// Backends that no check has seen.
fn new_views(config: &ServiceConfig, health: &ServiceHealth, now: Timestamp) -> Vec<BackendView> {
    let reason = if health.is_unchecked() {
        "not checked: health.type is \"none\""
    } else {
        "not checked yet"
    };
    let view = |backend| BackendView {
        state: health.state(backend),
        since: now,
        reason: reason.to_owned(),
    };
    (0..config.backends.len()).map(view).collect()
}

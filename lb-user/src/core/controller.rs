//! The controller: one state machine over VRRP instances, health checks, this node's network and
//! the data plane's tables.
//!
//! Feed it with [`Controller::handle`]; then drain [`Controller::poll_action`] and carry the
//! actions out in their order; then wait until [`Controller::poll_timeout`] at the latest and
//! call [`Controller::handle_timeout`]. Every `handle*` call may change `poll_timeout`; nothing
//! else does. A `handle_timeout` that comes too early does nothing.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use lb_common::abi::{BackendState, Mac};

use super::{
    desired::{self, Builder, Desired, Facts, ServicePlacement},
    health::{HealthAction, ProbeResult, Seen, ServiceHealth},
    network::{Hop, Interface, InterfaceAddress, Network},
    tables::{self, TableOp, Tables},
    time::Timestamp,
    vrrp::{self, Advert, Instance, RxMeta, State, VrrpAction},
};
use crate::config::model::Config;

/// Validity of an owner's addresses: without a renewal the kernel removes them after this time.
pub const VIP_LIFETIME: Duration = Duration::from_secs(3);
/// How often they are renewed.
const VIP_RENEWAL: Duration = Duration::from_secs(1);
/// How often everything is read again, in case a change was made that nobody announced.
const AUDIT_INTERVAL: Duration = Duration::from_secs(5);
/// Pause before a failed write to the tables is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Something that happened.
#[derive(Clone)]
pub enum Input {
    /// A VRRP message for the instance at this position was received.
    Vrrp {
        /// Position in the configuration.
        instance: usize,
        /// Addresses and TTL.
        meta: RxMeta,
        /// The VRRP message after the IP header.
        message: Vec<u8>,
    },
    /// An advert left; `at` is the time just before.
    AdvertSent {
        /// Position in the configuration.
        instance: usize,
        /// Just before it was sent.
        at: Timestamp,
    },
    /// An advert could not be sent.
    AdvertFailed {
        /// Position in the configuration.
        instance: usize,
    },
    /// Adverts of an instance leave from this address.
    VrrpSource {
        /// Position in the configuration.
        instance: usize,
        /// This node's own address.
        address: IpAddr,
    },
    /// A probe ended.
    Probed {
        /// Position of the service in the configuration.
        service: usize,
        /// Its result.
        result: ProbeResult,
    },
    /// All interfaces and addresses were read.
    Links {
        /// Interfaces.
        interfaces: Vec<Interface>,
        /// Their addresses.
        addresses: Vec<InterfaceAddress>,
    },
    /// Interfaces, addresses or routes changed: they must be read again.
    NetworkChanged,
    /// How an address is reached, the answer to [`Action::Resolve`].
    Hop {
        /// The address.
        address: IpAddr,
        /// `None`: there is no route.
        hop: Option<Hop>,
    },
    /// A neighbour's MAC is known.
    Neighbour {
        /// Interface index.
        ifindex: u32,
        /// Its address.
        address: IpAddr,
        /// Its MAC.
        mac: Mac,
    },
    /// The tables were read, the answer to [`Action::ReadTables`].
    Tables(Box<Tables>),
    /// The tables could not be read or written.
    TablesFailed,
    /// The operator wants an instance to give up its addresses.
    StepDown {
        /// Position in the configuration.
        instance: usize,
    },
    /// The operator lets an instance take part again.
    Resume {
        /// Position in the configuration.
        instance: usize,
    },
    /// The controller is to end: resign and leave.
    Stop,
}

/// Something to do.
#[derive(Clone)]
pub enum Action {
    /// Send an advert; answered by [`Input::AdvertSent`] or [`Input::AdvertFailed`].
    SendAdvert {
        /// Position in the configuration.
        instance: usize,
        /// What to send.
        advert: Advert,
        /// Report a failure instead of sending at or after this time.
        not_after: Timestamp,
    },
    /// Write a lease; `None`: no right to the addresses.
    SetLease {
        /// Index in `leases`.
        lease: u32,
        /// Until when.
        deadline: Option<Timestamp>,
    },
    /// Announce addresses to the neighbours: gratuitous ARP, unsolicited NA.
    Announce {
        /// Interface index.
        ifindex: u32,
        /// The interface's MAC.
        mac: Mac,
        /// What is announced.
        addresses: Vec<IpAddr>,
    },
    /// Add or renew an owned VIP, for [`VIP_LIFETIME`].
    SetVip {
        /// Interface index.
        ifindex: u32,
        /// Address and prefix length.
        net: IpNet,
    },
    /// Add a VIP to `lo`.
    SetLoopbackVip {
        /// Interface index of `lo`.
        ifindex: u32,
        /// The address.
        address: IpAddr,
    },
    /// Remove an address.
    RemoveAddress {
        /// Interface index.
        ifindex: u32,
        /// Address and prefix length.
        net: IpNet,
    },
    /// Find out how an address is reached and keep its neighbour resolved.
    Resolve(IpAddr),
    /// Probe a backend; answered by [`Input::Probed`].
    Probe {
        /// Position of the service.
        service: usize,
        /// Position of the backend.
        backend: usize,
        /// To be returned.
        serial: u64,
        /// Time that it may take.
        timeout: Duration,
        /// Where to.
        target: SocketAddr,
    },
    /// Write to the tables, in this order.
    WriteTables(Vec<TableOp>),
    /// Read all tables; answered by [`Input::Tables`] or [`Input::TablesFailed`].
    ReadTables,
    /// Read interfaces and addresses; answered by [`Input::Links`].
    ReadLinks,
    /// Tell the operator.
    Report(Event),
}

/// What an operator wants to know of, one line of log each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A VRRP instance changed its state.
    Vrrp {
        /// Name of the instance.
        name: String,
        /// Before.
        from: State,
        /// Now.
        to: State,
        /// Why.
        cause: vrrp::Cause,
    },
    /// A backend changed its state.
    Backend {
        /// Name of the service.
        service: String,
        /// Name of the backend.
        backend: String,
        /// Before.
        from: BackendState,
        /// Now.
        to: BackendState,
        /// Why, in words.
        cause: String,
    },
    /// Somebody else changed the tables or addresses; they were repaired.
    Repaired {
        /// What, in words.
        what: String,
    },
}

/// One VRRP instance and what it has done to this node.
struct Role {
    instance: Instance,
    /// The addresses are to be on the interface.
    owns: bool,
    /// Bad adverts by label.
    bad: BTreeMap<&'static str, u64>,
    reported: u64,
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
    config: Config,
    netns_cookie: u64,
    roles: Vec<Role>,
    health: Vec<ServiceHealth>,
    views: Vec<Vec<BackendView>>,
    network: Network,
    links_known: bool,
    builder: Builder,
    /// What the data plane holds; `None` until it is read, and after a failed write.
    tables: Option<Tables>,
    placements: Vec<ServicePlacement>,
    /// Asked for since the last reading of links.
    resolving: BTreeSet<IpAddr>,
    audit_at: Timestamp,
    renew_at: Timestamp,
    retry_at: Option<Timestamp>,
    stopping: bool,
    actions: VecDeque<Action>,
}

impl Controller {
    /// A controller of `config` that begins `now`; it first reads tables and links.
    ///
    /// `netns_cookie` identifies this node's network namespace to the connect hooks, `seed`
    /// spreads the times of checks between nodes.
    pub fn new(config: Config, now: Timestamp, netns_cookie: u64, seed: u64) -> Self {
        let roles = config
            .vrrp
            .iter()
            .map(|vrrp| Role {
                instance: Instance::new(vrrp, now),
                owns: false,
                bad: BTreeMap::new(),
                reported: 0,
            })
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
            config,
            netns_cookie,
            roles,
            health,
            views,
            network: Network::default(),
            links_known: false,
            builder: Builder::default(),
            tables: None,
            placements: Vec::new(),
            resolving: BTreeSet::new(),
            audit_at: now + AUDIT_INTERVAL,
            renew_at: now,
            retry_at: None,
            stopping: false,
            actions: VecDeque::from([Action::ReadTables, Action::ReadLinks]),
        };
        controller.collect(now);
        controller
    }

    /// Take in what happened at `now`.
    pub fn handle(&mut self, now: Timestamp, input: Input) {
        match input {
            Input::Vrrp {
                instance,
                meta,
                message,
            } => self.hear(now, instance, meta, &message),
            Input::AdvertSent { instance, at } => {
                self.with_instance(instance, |vrrp| vrrp.handle_advert_sent(now, at));
            }
            Input::AdvertFailed { instance } => {
                self.with_instance(instance, |vrrp| vrrp.handle_advert_failed(now));
            }
            Input::VrrpSource { instance, address } => {
                self.with_instance(instance, |vrrp| vrrp.set_source_address(address));
            }
            Input::Probed { service, result } => {
                if let Some(health) = self.health.get_mut(service) {
                    health.handle_result(now, result);
                }
            }
            Input::Links {
                interfaces,
                addresses,
            } => self.set_links(interfaces, addresses),
            Input::NetworkChanged => {
                self.resolving.clear();
                self.actions.push_back(Action::ReadLinks);
            }
            Input::Hop { address, hop } => {
                self.network.set_hop(address, hop);
                self.reconcile_tables();
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
            Input::Tables(observed) => self.take_tables(*observed),
            Input::TablesFailed => {
                self.tables = None;
                self.retry_at = Some(now + RETRY);
            }
            Input::StepDown { instance } => {
                self.with_instance(instance, |vrrp| vrrp.step_down(now));
            }
            Input::Resume { instance } => self.with_instance(instance, |vrrp| vrrp.resume(now)),
            Input::Stop => {
                self.stopping = true;
                for role in &mut self.roles {
                    role.instance.stop(now);
                }
            }
        }
        self.collect(now);
    }

    /// Do what is due at `now`.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        for role in &mut self.roles {
            role.instance.handle_timeout(now);
        }
        for health in &mut self.health {
            health.handle_timeout(now);
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.actions.push_back(Action::ReadTables);
        }
        if self.audit_at <= now {
            self.audit_at = now + AUDIT_INTERVAL;
            self.resolving.clear();
            self.actions.extend([Action::ReadTables, Action::ReadLinks]);
        }
        if self.renew_at <= now {
            self.renew_vips(now);
        }
        self.collect(now);
    }

    /// When [`Controller::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Timestamp {
        let vrrp = self
            .roles
            .iter()
            .filter_map(|role| role.instance.poll_timeout());
        let health = self.health.iter().filter_map(ServiceHealth::poll_timeout);
        let owns = self.roles.iter().any(|role| role.owns);
        vrrp.chain(health)
            .chain(self.retry_at)
            .chain(owns.then_some(self.renew_at))
            .fold(self.audit_at, Timestamp::min)
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
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

    /// This node's network as last seen.
    pub fn network(&self) -> &Network {
        &self.network
    }

    // --- VRRP ---------------------------------------------------------------------------------

    fn with_instance(&mut self, position: usize, act: impl FnOnce(&mut Instance)) {
        if let Some(role) = self.roles.get_mut(position) {
            act(&mut role.instance);
        }
    }

    fn hear(&mut self, now: Timestamp, position: usize, meta: RxMeta, message: &[u8]) {
        let Some(role) = self.roles.get_mut(position) else {
            return;
        };
        match vrrp::packet::parse(message, &meta) {
            // Refusals are counted by the instance.
            Ok(advert) => {
                let _ = role.instance.handle_advert(now, meta.src, &advert);
            }
            Err(error) => *role.bad.entry(error.label()).or_default() += 1,
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
    }

    fn collect_vrrp(&mut self, now: Timestamp, position: usize) {
        while let Some(action) = self
            .roles
            .get_mut(position)
            .and_then(|role| role.instance.poll_action())
        {
            match action {
                VrrpAction::SendAdvert { advert, not_after } => {
                    self.actions.push_back(Action::SendAdvert {
                        instance: position,
                        advert,
                        not_after,
                    });
                }
                VrrpAction::SetLease { deadline } => self.actions.push_back(Action::SetLease {
                    lease: desired::lease_index(position),
                    deadline,
                }),
                VrrpAction::BecomeActive => {
                    self.set_owns(position, true);
                    self.renew_vips(now);
                }
                VrrpAction::BecomeBackup => {
                    self.set_owns(position, false);
                    self.reconcile_addresses();
                }
                VrrpAction::Announce => self.announce(position),
            }
        }
        self.report_transition(position);
    }

    fn set_owns(&mut self, position: usize, owns: bool) {
        if let Some(role) = self.roles.get_mut(position) {
            role.owns = owns;
        }
    }

    fn report_transition(&mut self, position: usize) {
        let (Some(role), Some(config)) =
            (self.roles.get_mut(position), self.config.vrrp.get(position))
        else {
            return;
        };
        if role.instance.transitions() != role.reported {
            role.reported = role.instance.transitions();
            let transition = role.instance.last_transition();
            self.actions.push_back(Action::Report(Event::Vrrp {
                name: config.name.clone(),
                from: transition.from,
                to: transition.to,
                cause: transition.cause,
            }));
        }
    }

    fn announce(&mut self, position: usize) {
        let Some(config) = self.config.vrrp.get(position) else {
            return;
        };
        if let Some(interface) = self.network.interface(&config.interface)
            && let Some(mac) = interface.mac
        {
            self.actions.push_back(Action::Announce {
                ifindex: interface.ifindex,
                mac,
                addresses: config.addresses.iter().map(IpNet::addr).collect(),
            });
        }
    }

    // --- Addresses ----------------------------------------------------------------------------

    fn set_links(&mut self, interfaces: Vec<Interface>, addresses: Vec<InterfaceAddress>) {
        self.network.set_links(interfaces, addresses);
        self.links_known = true;
        self.reconcile_addresses();
        let facts = facts(&self.config, &self.network, &[], self.netns_cookie);
        for address in desired::to_resolve(&facts) {
            if self.resolving.insert(address) {
                self.actions.push_back(Action::Resolve(address));
            }
        }
        self.reconcile_tables();
    }

    fn vips(&self) -> BTreeSet<IpAddr> {
        let managed = self
            .config
            .vrrp
            .iter()
            .flat_map(|vrrp| vrrp.addresses.iter().map(IpNet::addr));
        managed
            .chain(self.config.services.iter().map(|service| service.address))
            .collect()
    }

    /// Add or renew what is owned, and remove what is not.
    fn renew_vips(&mut self, now: Timestamp) {
        self.renew_at = now + VIP_RENEWAL;
        for (ifindex, net) in self.owned() {
            self.actions.push_back(Action::SetVip { ifindex, net });
        }
    }

    /// Owned VIPs and their interfaces.
    fn owned(&self) -> Vec<(u32, IpNet)> {
        let mut owned = Vec::new();
        for (role, config) in self.roles.iter().zip(&self.config.vrrp) {
            if let Some(interface) = self.network.interface(&config.interface)
                && role.owns
            {
                owned.extend(config.addresses.iter().map(|net| (interface.ifindex, *net)));
            }
        }
        owned
    }

    /// Bring this node's addresses to what they shall be: VIPs of a former owner or of a crashed
    /// controller go, missing ones come.
    fn reconcile_addresses(&mut self) {
        if !self.links_known {
            return;
        }
        let vips = self.vips();
        let facts = facts(&self.config, &self.network, &[], self.netns_cookie);
        let loopback = desired::loopback_vips(&facts);
        let lo = self.network.interface("lo").map_or(0, |lo| lo.ifindex);
        let owned = self.owned();
        let keep = |own: &InterfaceAddress| {
            let address = own.net.addr();
            if own.ifindex == lo {
                loopback.contains(&address)
            } else {
                owned
                    .iter()
                    .any(|(ifindex, net)| *ifindex == own.ifindex && net.addr() == address)
            }
        };
        let mut actions = Vec::new();
        for own in self
            .network
            .addresses()
            .filter(|own| own.ours || vips.contains(&own.net.addr()))
        {
            if !keep(own) {
                actions.push(Action::RemoveAddress {
                    ifindex: own.ifindex,
                    net: own.net,
                });
            }
        }
        let has = |ifindex: u32, address: IpAddr| {
            self.network.addresses_of(ifindex).any(|own| own == address)
        };
        for &address in loopback
            .iter()
            .filter(|address| lo != 0 && !has(lo, **address))
        {
            actions.push(Action::SetLoopbackVip {
                ifindex: lo,
                address,
            });
        }
        for &(ifindex, net) in owned
            .iter()
            .filter(|(ifindex, net)| !has(*ifindex, net.addr()))
        {
            actions.push(Action::SetVip { ifindex, net });
        }
        self.actions.extend(actions);
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
                } => {
                    if let Some(config) = self
                        .config
                        .services
                        .get(service)
                        .and_then(|s| s.backends.get(backend))
                    {
                        let target = config.address;
                        self.actions.push_back(Action::Probe {
                            service,
                            backend,
                            serial,
                            timeout,
                            target,
                        });
                    }
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
        self.actions.push_back(Action::Report(Event::Backend {
            service: config.name.clone(),
            backend: name,
            from,
            to,
            cause,
        }));
    }

    // --- Tables -------------------------------------------------------------------------------

    /// The tables were read: what differs from what was written there is repaired.
    fn take_tables(&mut self, observed: Tables) {
        match self.tables.replace(observed) {
            None => self.adopt_health(),
            Some(expected) => {
                let differences = self
                    .tables
                    .as_ref()
                    .map_or(0, |observed| tables::plan(&expected, observed).len());
                if differences > 0 {
                    let what = format!("{differences} entries of the data plane's tables");
                    self.actions
                        .push_back(Action::Report(Event::Repaired { what }));
                }
            }
        }
        self.reconcile_tables();
    }

    /// A data plane that went on without its controller knows the backends' states: going on
    /// from there keeps their flows where they are.
    fn adopt_health(&mut self) {
        let Some(observed) = &self.tables else { return };
        for (service, config) in self.config.services.iter().enumerate() {
            for (position, backend) in config.backends.iter().enumerate() {
                let Some(state) = known_state(observed, backend.address) else {
                    continue;
                };
                let untouched = self.seen(service, position).is_none();
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
        let Some(observed) = self.tables.as_mut().filter(|_| self.links_known) else {
            return;
        };
        let health: Vec<Vec<BackendState>> = self
            .health
            .iter()
            .zip(&self.config.services)
            .map(|(health, config)| {
                (0..config.backends.len())
                    .map(|b| health.state(b))
                    .collect()
            })
            .collect();
        let facts = facts(&self.config, &self.network, &health, self.netns_cookie);
        let Desired {
            tables: desired,
            services,
        } = self.builder.build(&facts, observed);
        self.placements = services;
        let ops = tables::plan(&desired, observed);
        if ops.is_empty() {
            return;
        }
        for op in &ops {
            observed.apply(op);
        }
        // Only tables in force are read back.
        observed
            .maglev
            .retain(|index, _| desired.maglev.contains_key(index));
        self.actions.push_back(Action::WriteTables(ops));
    }

    /// Whether [`Input::Stop`] was handled.
    pub const fn is_stopping(&self) -> bool {
        self.stopping
    }
}

fn facts<'a>(
    config: &'a Config,
    network: &'a Network,
    health: &'a [Vec<BackendState>],
    netns_cookie: u64,
) -> Facts<'a> {
    Facts {
        config,
        network,
        health,
        netns_cookie,
    }
}

fn views(config: &Config, health: &[ServiceHealth], now: Timestamp) -> Vec<Vec<BackendView>> {
    config
        .services
        .iter()
        .zip(health)
        .map(|(service, health)| {
            (0..service.backends.len())
                .map(|backend| BackendView {
                    state: health.state(backend),
                    since: now,
                    reason: "not checked yet".to_owned(),
                })
                .collect()
        })
        .collect()
}

/// State of the backend with this address in tables of an earlier run.
fn known_state(tables: &Tables, address: SocketAddr) -> Option<BackendState> {
    match address {
        SocketAddr::V4(address) => tables
            .v4
            .backends
            .values()
            .find(|b| b.addr() == address.ip().octets() && b.port() == address.port())
            .map(lb_common::abi::Backend::state),
        SocketAddr::V6(address) => tables
            .v6
            .backends
            .values()
            .find(|b| b.addr() == address.ip().octets() && b.port() == address.port())
            .map(lb_common::abi::Backend::state),
    }
}

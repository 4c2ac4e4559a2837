//! From configuration, health and network to the tables that the data plane shall hold.

#[cfg(test)]
mod tests;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use lb_common::abi::{
    Address, Backend, BackendState, MAX_BACKENDS, MAX_SERVICES, MacKey, MaglevTable, Method,
    NODE_NONE, NODE_SELF, Node, NodeConfig, ReplyPort, Service, ServiceKey, Uplink, UplinkKey, Vip,
    sources::SourceRule,
};

use super::{
    attach::Uplinks,
    epochs,
    maglev::{self, Member},
    network::{Network, Port},
    standing::{self, Influences, ServiceStanding},
    tables::{FamilyTables, SourcePrefix, Tables},
    time::Timestamp,
};
use crate::config::model::{
    BackendConfig, Config, Forwarding, OnBackendDown, OnNoBackend, OnQuorumLoss, ServiceConfig,
    SourcesConfig,
};

/// Numbers of peers in the data plane begin here, in configuration order.
const FIRST_PEER: u32 = NODE_SELF + 1;

/// The facts that tables are made of.
pub struct Facts<'a> {
    /// Configuration.
    pub config: &'a Config,
    /// Network.
    pub network: &'a Network,
    /// Where the programs see the uplinks' frames.
    pub uplinks: &'a Uplinks,
    /// What the checks say of each backend of each service, in configuration order.
    pub health: &'a [Vec<BackendState>],
    /// What else has a say.
    pub influences: &'a Influences,
    /// Index in `leases` of each VRRP instance, in configuration order.
    pub leases: Vec<u32>,
    /// Backends that are no longer configured, whose flows are being ended.
    pub retiring: &'a [Retiring],
    /// Cookie of the network namespace.
    pub netns_cookie: u64,
}

/// A backend that was taken out of a service. For a while it stays in the tables, at last DOWN: its
/// flows are reset instead of left to nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retiring {
    /// Its service.
    pub service: ServiceIdentity,
    /// What it was.
    pub backend: BackendConfig,
    /// Its flows go on.
    pub drains: bool,
    /// When that changes: it goes DOWN, or away.
    pub until: Timestamp,
}

/// What makes a service the same one as before: VIP, port and protocol number.
pub type ServiceIdentity = (IpAddr, u16, u8);

/// The identity of a service.
pub fn identity(service: &ServiceConfig) -> ServiceIdentity {
    (
        service.address,
        service.port.get(),
        service.protocol.number(),
    )
}

/// What became of a backend in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Id in the data plane.
    pub id: u32,
    /// Forwarding method in force.
    pub method: Method,
    /// Why packets have no way there; `None`: they have (always for local).
    pub unresolved: Option<Unresolved>,
    /// Its part of the Maglev slots, in slots.
    pub slots: u32,
}

/// Why the data plane has no way to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// There is no route to it.
    NoRoute,
    /// The neighbour that takes its packets has not said its MAC.
    NoMac,
    /// Its route leaves by interface `ifindex`, which carries no program of this data plane: what
    /// it answers would be nobody's.
    NotUplink {
        /// Index of the interface.
        ifindex: u32,
    },
    /// It is behind a router, which would send packets that keep the VIP as their destination back.
    BehindRouter,
}

/// A service in the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlacement {
    /// Id in the data plane.
    pub id: u32,
    /// Backends in configuration order.
    pub backends: Vec<Placement>,
}

/// The tables, and where services and backends are in them.
pub struct Desired {
    /// What the data plane shall hold.
    pub tables: Tables,
    /// Services in configuration order.
    pub services: Vec<ServicePlacement>,
}

/// Makes tables; remembers the Maglev tables that it has made, and the ids that it has given.
#[derive(Default)]
pub struct Builder {
    cache: BTreeMap<u32, (Vec<Member>, Arc<MaglevTable>)>,
    services: Ids<ServiceIdentity>,
    /// Ids of backends by their service's id and their address.
    backends: Ids<(u32, SocketAddr)>,
}

/// Ids that were given. What is in the tables of an earlier run keeps its id, since entries of
/// established flows refer to it; later nothing that is in the tables changes an id.
///
/// Who is not asked for while tables are made has lost its id. Free ones are given in turn, so that
/// one is used again as late as possible: counters and flows refer to it.
struct Ids<K> {
    given: BTreeMap<K, u32>,
    asked: BTreeSet<K>,
    /// Given last.
    last: u32,
}

impl<K> Default for Ids<K> {
    fn default() -> Self {
        Self {
            given: BTreeMap::new(),
            asked: BTreeSet::new(),
            last: 0,
        }
    }
}

impl<K: Ord + Clone> Ids<K> {
    /// Forget who was not asked for since the last call.
    fn forget_others(&mut self) {
        let asked = std::mem::take(&mut self.asked);
        self.given.retain(|key, _| asked.contains(key));
    }

    /// The id of `key`: the one given before; else `known` from the tables, if it is a valid one
    /// that nobody else has; else the lowest that is below `limit` and not `taken`.
    fn id(&mut self, key: K, known: Option<u32>, limit: u32, taken: impl Fn(u32) -> bool) -> u32 {
        self.asked.insert(key.clone());
        if let Some(&id) = self.given.get(&key) {
            return id;
        }
        let is_given = |id: &u32| self.given.values().any(|given| given == id);
        let known = known.filter(|id| (1..limit).contains(id) && !is_given(id));
        let in_turn = (self.last.saturating_add(1)..limit).chain(1..limit);
        let free = || in_turn.clone().find(|id| !is_given(id) && !taken(*id));
        // The configuration is checked to fit, and what is left over in the tables gives way. 0
        // would be the reserved id, which selects nothing.
        let id = known
            .or_else(free)
            .or_else(|| (1..limit).find(|id| !is_given(id)))
            .unwrap_or(0);
        self.last = id;
        self.given.insert(key, id);
        id
    }
}

impl Builder {
    /// The desired tables. `observed` decides ids and which of a service's two Maglev tables
    /// is free to be filled.
    pub fn build(&mut self, facts: &Facts<'_>, observed: &Tables) -> Desired {
        let mut tables = Tables::default();
        uplinks(facts, &mut tables);
        peers(facts, &mut tables);
        tables.node = Some(node(facts, &tables));
        vips(facts, &mut tables);
        let mut services = Vec::new();
        for (index, service) in facts.config.services.iter().enumerate() {
            let states = facts.health.get(index).map_or(&[][..], Vec::as_slice);
            let build = ServiceBuild {
                facts,
                service,
                states,
                observed,
            };
            services.push(match service.address {
                IpAddr::V4(vip) => self.service(&build, vip.octets(), &observed.v4, &mut tables),
                IpAddr::V6(vip) => self.service(&build, vip.octets(), &observed.v6, &mut tables),
            });
        }
        epochs::retire(&mut tables.v4, &observed.v4);
        epochs::retire(&mut tables.v6, &observed.v6);
        self.services.forget_others();
        self.backends.forget_others();
        let used = services.iter().map(|service| service.id);
        let used: BTreeSet<u32> = used.collect();
        self.cache.retain(|service, _| used.contains(service));
        Desired { tables, services }
    }

    fn service<A: FamilyAddress>(
        &mut self,
        build: &ServiceBuild<'_>,
        vip: A,
        observed: &FamilyTables<A>,
        tables: &mut Tables,
    ) -> ServicePlacement {
        let service = build.service;
        let port = service.port.get();
        let protocol = service.protocol.number();
        let key = ServiceKey::new(vip, port, protocol);
        let known = observed.services.get(&key);
        let taken = |id| has_service(build.observed, id);
        let own = known.map(Service::id);
        let id = self
            .services
            .id(identity(service), own, MAX_SERVICES, taken);
        let mut local = (0, 0);
        let mut members = Vec::new();
        let mut placements = Vec::new();
        let standing = standing::of_service(service, build.states, build.facts.influences);
        let configured = service.backends.len();
        let backends = (service.backends.iter()).map(|config| (config, BackendState::Down));
        for (position, (config, retired)) in backends.chain(build.retiring()).enumerate() {
            let own = standing.backends.get(position);
            let state = own.map_or(retired, |own| own.state);
            let (address, backend_port) = (config.address.ip(), config.address.port());
            let Some(bytes) = A::from_ip(address) else {
                continue;
            };
            let same = |(_, backend): &(&u32, &Backend<A>)| {
                backend.service() == id
                    && backend.addr().same(&bytes)
                    && backend.port() == backend_port
            };
            let known_id = observed.backends.iter().find(same).map(|(id, _)| *id);
            let taken = |id| has_backend(build.observed, id);
            let backend_id = self
                .backends
                .id((id, config.address), known_id, MAX_BACKENDS, taken);
            let (method, node) = place(build.facts, config);
            let mut backend = Backend::new(bytes, backend_port, id, node, method, state);
            let hop = reachable(build.facts, address, method);
            if let Ok((port, mac)) = hop {
                backend = backend.via(port.ifindex, mac).tagged(port.tags);
            }
            let before = observed.backends.get(&backend_id);
            backend = epochs::follow(backend, before, build.on_down(position));
            match method {
                Method::Local => {
                    let key = ServiceKey::new(vip, backend_port, protocol);
                    // Service ids are below MAX_SERVICES.
                    let slot = u16::try_from(id).unwrap_or(0);
                    let reply = ReplyPort::new(port).of_service(slot);
                    let reply_ports = &mut A::tables(tables).reply_ports;
                    if position < configured || local == (0, 0) {
                        local = (backend_id, backend_port);
                    }
                    if position < configured {
                        reply_ports.insert(key, reply);
                    } else {
                        // The port may be another service's by now.
                        reply_ports.entry(key).or_insert(reply);
                    }
                }
                Method::Nat => {
                    let key = ServiceKey::new(bytes, backend_port, protocol);
                    A::tables(tables)
                        .nat_sources
                        .insert(key, Node::new(NODE_NONE));
                }
                Method::Dsr => {}
            }
            A::tables(tables).backends.insert(backend_id, backend);
            if let Some(own) = own.filter(|own| own.weight > 0) {
                members.push(Member {
                    id: backend_id,
                    address: config.address,
                    weight: own.weight,
                });
            }
            placements.push(Placement {
                id: backend_id,
                method,
                unresolved: hop.err().filter(|_| method != Method::Local),
                slots: 0,
            });
        }
        placements.truncate(configured);
        let (index, table) = self.table(id, members, known, build.observed);
        // One pass: a pass for each backend would take longer than a short advert interval.
        let mut shares = BTreeMap::new();
        for slot in table.slots() {
            *shares.entry(u32::from(*slot)).or_default() += 1;
        }
        for placement in &mut placements {
            placement.slots = shares.get(&placement.id).copied().unwrap_or(0);
        }
        let [first, second] = fallback(candidates(service, &placements, A::tables(tables)));
        let value = Service::new(id, index, local.0, local.1, standing.takes_new());
        let value = policy(value, service, &standing).with_fallback(first, second);
        A::tables(tables).services.insert(key, value);
        source_rules(id, &service.sources, &mut A::tables(tables).sources);
        tables.maglev.insert(index, table);
        ServicePlacement {
            id,
            backends: placements,
        }
    }

    /// The Maglev table of `members` and the index that it belongs at: the one in force if it is
    /// the same, else the other one of the two.
    fn table(
        &mut self,
        service: u32,
        members: Vec<Member>,
        known: Option<&Service>,
        observed: &Tables,
    ) -> (u32, Arc<MaglevTable>) {
        let table = match self.cache.get(&service) {
            Some((cached, table)) if *cached == members => Arc::clone(table),
            _ => {
                let table = Arc::new(maglev::table(&members));
                self.cache.insert(service, (members, Arc::clone(&table)));
                table
            }
        };
        let (first, second) = (2 * service, 2 * service + 1);
        let own = |index: &u32| *index == first || *index == second;
        let index = match known.map(Service::table).filter(own) {
            Some(current) if observed.maglev.get(&current) == Some(&table) => current,
            Some(current) if current == first => second,
            _ => first,
        };
        (index, table)
    }
}

fn has_service(tables: &Tables, id: u32) -> bool {
    let (v4, v6) = (tables.v4.services.values(), tables.v6.services.values());
    v4.chain(v6).any(|service| service.id() == id)
}

fn has_backend(tables: &Tables, id: u32) -> bool {
    let used = |service: Option<u32>| service.is_some_and(|service| service != 0);
    used(tables.v4.backends.get(&id).map(Backend::service))
        || used(tables.v6.backends.get(&id).map(Backend::service))
}

/// State of a backend of `service` in tables of an earlier run.
pub fn known_state(
    tables: &Tables,
    service: &ServiceConfig,
    backend: &BackendConfig,
) -> Option<BackendState> {
    match service.address {
        IpAddr::V4(vip) => state_in(&tables.v4, vip.octets(), service, backend),
        IpAddr::V6(vip) => state_in(&tables.v6, vip.octets(), service, backend),
    }
}

fn state_in<A: FamilyAddress>(
    tables: &FamilyTables<A>,
    vip: A,
    service: &ServiceConfig,
    backend: &BackendConfig,
) -> Option<BackendState> {
    let key = ServiceKey::new(vip, service.port.get(), service.protocol.number());
    let id = tables.services.get(&key)?.id();
    let address = A::from_ip(backend.address.ip())?;
    let port = backend.address.port();
    tables
        .backends
        .values()
        .find(|known| known.service() == id && known.addr() == address && known.port() == port)
        .map(Backend::state)
}

/// One service while its tables are made.
struct ServiceBuild<'a> {
    facts: &'a Facts<'a>,
    service: &'a ServiceConfig,
    states: &'a [BackendState],
    observed: &'a Tables,
}

impl ServiceBuild<'_> {
    /// Backends that were taken out of this service, and not put back; and what they are meanwhile.
    fn retiring(&self) -> impl Iterator<Item = (&BackendConfig, BackendState)> {
        let is_own = |retiring: &&Retiring| {
            let is_back = |backend: &BackendConfig| backend.address == retiring.backend.address;
            retiring.service == identity(self.service) && !self.service.backends.iter().any(is_back)
        };
        let retiring = self.facts.retiring.iter().filter(is_own);
        retiring.map(|retiring| {
            let state = if retiring.drains {
                BackendState::Draining
            } else {
                BackendState::Down
            };
            (&retiring.backend, state)
        })
    }

    /// What becomes of a backend's flows when it is DOWN. Whoever is retiring has none.
    fn on_down(&self, backend: usize) -> OnBackendDown {
        if backend < self.service.backends.len() {
            self.service.on_backend_down
        } else {
            OnBackendDown::Reset
        }
    }
}

/// The facts about this node, after the uplinks and the peers.
fn node(facts: &Facts<'_>, tables: &Tables) -> NodeConfig {
    let config = &facts.config.node;
    let node = NodeConfig::new(facts.netns_cookie)
        .with_limits(config.new_flow_limit, config.adoption_limit)
        .with_peers(tables.peer_macs.keys().map(MacKey::mac));
    match tables.uplinks.first_key_value() {
        Some((key, uplink)) => node.with_uplink(key.ifindex(), key.tags(), uplink.mac()),
        None => node,
    }
}

/// `value` with what the configuration says of the service itself.
fn policy(mut value: Service, service: &ServiceConfig, standing: &ServiceStanding) -> Service {
    let is_silent = match service.quorum.on_loss {
        OnQuorumLoss::Reset if standing.is_quorum_lost => false,
        OnQuorumLoss::Drop if standing.is_quorum_lost => true,
        _ => service.on_no_backend == OnNoBackend::Drop,
    };
    if is_silent {
        value = value.with_flags(Service::SILENT);
    }
    let sources = &service.sources;
    if !sources.allow.is_empty() || !sources.deny.is_empty() {
        value = value.with_flags(Service::SOURCES);
    }
    if !sources.allow.is_empty() {
        value = value.with_flags(Service::DEFAULT_DENY);
    }
    if let Some(limit) = sources.limit {
        value = value.with_source_rate(limit.rate.get().into(), limit.burst.get().into());
    }
    value.with_idle_seconds(service.protocol.idle_seconds())
}

fn source_rules<A: FamilyAddress>(
    service: u32,
    config: &SourcesConfig,
    rules: &mut BTreeMap<SourcePrefix<A>, SourceRule>,
) {
    let allow = config.allow.iter().map(|net| (net, SourceRule::ALLOW));
    let deny = config.deny.iter().map(|net| (net, SourceRule::DENY));
    for (net, rule) in allow.chain(deny) {
        if let Some(addr) = A::from_ip(net.network()) {
            rules.insert(SourcePrefix::new(service, addr, net.prefix_len()), rule);
        }
    }
}

/// A backend that takes new flows.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    node: u32,
    address: SocketAddr,
    slots: u32,
}

/// The backends that have slots.
fn candidates<A: FamilyAddress>(
    service: &ServiceConfig,
    placements: &[Placement],
    tables: &FamilyTables<A>,
) -> Vec<Candidate> {
    let usable = |(config, placement): (&BackendConfig, &Placement)| {
        let node = tables.backends.get(&placement.id)?.node();
        (placement.slots > 0).then_some(Candidate {
            id: placement.id,
            node,
            address: config.address,
            slots: placement.slots,
        })
    };
    let backends = service.backends.iter().zip(placements);
    backends.filter_map(usable).collect()
}

/// Two backends on different nodes: the one with the most slots, and the first after it that is
/// elsewhere. By slots and addresses, which are the same on every node, and never by ids, which are
/// each node's own. A node without xvip is not known, so no two backends share it.
fn fallback(mut candidates: Vec<Candidate>) -> [u16; 2] {
    candidates.sort_by_key(|candidate| (Reverse(candidate.slots), candidate.address));
    let first = candidates.first().copied();
    let elsewhere = |candidate: &&Candidate| {
        first.is_some_and(|first| {
            candidate.id != first.id
                && (candidate.node != first.node || candidate.node == NODE_NONE)
        })
    };
    let second = candidates.iter().find(elsewhere).copied();
    [first, second].map(|candidate| {
        // Ids are below MAX_BACKENDS.
        candidate.map_or(0, |found| u16::try_from(found.id).unwrap_or(0))
    })
}

/// Address bytes of a family, with the family's tables.
trait FamilyAddress: Address + Ord {
    fn from_ip(ip: IpAddr) -> Option<Self>;
    fn tables(tables: &mut Tables) -> &mut FamilyTables<Self>;
}

impl FamilyAddress for [u8; 4] {
    fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(ip) => Some(ip.octets()),
            IpAddr::V6(_) => None,
        }
    }

    fn tables(tables: &mut Tables) -> &mut FamilyTables<Self> {
        &mut tables.v4
    }
}

impl FamilyAddress for [u8; 16] {
    fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V6(ip) => Some(ip.octets()),
            IpAddr::V4(_) => None,
        }
    }

    fn tables(tables: &mut Tables) -> &mut FamilyTables<Self> {
        &mut tables.v6
    }
}

/// Forwarding method and node number of a backend: this node's own is always local.
fn place(facts: &Facts<'_>, backend: &BackendConfig) -> (Method, u32) {
    let address = backend.address.ip();
    if is_local(facts, address) {
        return (Method::Local, NODE_SELF);
    }
    let peer = facts
        .config
        .peers
        .iter()
        .position(|peer| peer.addresses.contains(&address));
    let node = peer.map_or(NODE_NONE, peer_number);
    match backend.forwarding {
        Forwarding::Auto if peer.is_some() => (Method::Dsr, node),
        Forwarding::Dsr => (Method::Dsr, node),
        Forwarding::Auto | Forwarding::Nat => (Method::Nat, node),
    }
}

/// Whether `address` is this node's own, and no VIP.
fn is_local(facts: &Facts<'_>, address: IpAddr) -> bool {
    facts.network.has_address(address)
        && !facts
            .config
            .services
            .iter()
            .any(|service| service.address == address)
}

fn peer_number(position: usize) -> u32 {
    FIRST_PEER.saturating_add(u32::try_from(position).unwrap_or(u32::MAX))
}

/// Uplink and MAC towards a backend. dsr changes nothing but the MAC, so a router on the way
/// would send the packet back to the VIP: such a backend counts as unresolved.
fn reachable(
    facts: &Facts<'_>,
    address: IpAddr,
    method: Method,
) -> Result<(Port, [u8; 6]), Unresolved> {
    let hop = facts.network.hop(address).ok_or(Unresolved::NoRoute)?;
    let ifindex = hop.ifindex;
    let port = facts.uplinks.port(ifindex);
    let port = port.ok_or(Unresolved::NotUplink { ifindex })?;
    if method == Method::Dsr && hop.gateway != address {
        return Err(Unresolved::BehindRouter);
    }
    let hop = facts.network.resolved(address).ok_or(Unresolved::NoMac)?;
    Ok((port, hop.mac))
}

/// Every uplink that carries a program, with its own MAC: that of a VLAN may not be its carrier's.
fn uplinks(facts: &Facts<'_>, tables: &mut Tables) {
    for (ifindex, port) in facts.uplinks.iter() {
        let interface = facts.network.at(ifindex);
        if let Some(mac) = interface.and_then(|interface| interface.mac) {
            let key = UplinkKey::new(port.ifindex, port.tags);
            tables.uplinks.insert(key, Uplink::new(mac));
        }
    }
}

fn peers(facts: &Facts<'_>, tables: &mut Tables) {
    for (position, peer) in facts.config.peers.iter().enumerate() {
        let node = Node::new(peer_number(position));
        for &address in &peer.addresses {
            match address {
                IpAddr::V4(ip) => tables.v4.peer_addrs.insert(ip.octets(), node),
                IpAddr::V6(ip) => tables.v6.peer_addrs.insert(ip.octets(), node),
            };
            if let Some(hop) = facts.network.resolved(address).filter(|hop| hop.on_link) {
                tables.peer_macs.insert(MacKey::new(hop.mac), node);
            }
        }
    }
}

/// Every address of every VRRP instance with its lease, and services' addresses without one.
fn vips(facts: &Facts<'_>, tables: &mut Tables) {
    let mut insert = |address: IpAddr, vip: Vip| {
        match address {
            IpAddr::V4(ip) => tables.v4.vips.entry(ip.octets()).or_insert(vip),
            IpAddr::V6(ip) => tables.v6.vips.entry(ip.octets()).or_insert(vip),
        };
    };
    for (instance, lease) in facts.config.vrrp.iter().zip(&facts.leases) {
        let vrid = if instance.use_vmac {
            instance.vrid.get()
        } else {
            0
        };
        for net in &instance.addresses {
            let vip = Vip::new(*lease).with_virtual_mac(vrid);
            insert(net.addr(), vip.closed(!instance.accepts()));
        }
    }
    for service in &facts.config.services {
        insert(service.address, Vip::new(0));
    }
}

/// Index in `leases` of the VRRP instance with this slot.
pub fn lease_index(slot: usize) -> u32 {
    u32::try_from(slot).map_or(u32::MAX, |slot| slot.saturating_add(1))
}

/// VIPs that this node's stack must accept packets for: those of services with a backend here, or
/// with flows to one that are being ended.
pub fn loopback_vips(facts: &Facts<'_>) -> BTreeSet<IpAddr> {
    facts
        .config
        .services
        .iter()
        .filter(|service| {
            let own = identity(service);
            let retiring = facts.retiring.iter().filter(|old| old.service == own);
            let backends = service.backends.iter();
            backends
                .chain(retiring.map(|old| &old.backend))
                .any(|backend| is_local(facts, backend.address.ip()))
        })
        .map(|service| service.address)
        .collect()
}

/// Addresses whose next hop and MAC the data plane needs.
pub fn to_resolve(facts: &Facts<'_>) -> BTreeSet<IpAddr> {
    let peers = facts
        .config
        .peers
        .iter()
        .flat_map(|peer| peer.addresses.iter().copied());
    let backends = facts
        .config
        .services
        .iter()
        .flat_map(|service| service.backends.iter().map(|backend| backend.address))
        .map(|address: SocketAddr| address.ip());
    let draining = facts.retiring.iter().filter(|old| old.drains);
    peers
        .chain(backends)
        .chain(draining.map(|old| old.backend.address.ip()))
        .filter(|address| !is_local(facts, *address))
        .collect()
}

//! The data plane's tables as values: what they shall hold, what they hold, and the ordered
//! operations that lead from one to the other, make before break.

use std::{collections::BTreeMap, sync::Arc};

use lb_common::abi::{
    Address, Backend, BackendState, MacKey, MaglevTable, Node, NodeConfig, ReplyPort, Service,
    ServiceKey, Uplink, UplinkKey, Vip,
    sources::{SourceKey, SourceRule},
};

/// Key of `sources4`/`sources6`: sources of a service that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourcePrefix<A> {
    bits: u32,
    data: SourceKey<A>,
}

impl<A: Copy> SourcePrefix<A> {
    /// Sources of service id `service` whose first `length` bits are those of `addr`.
    pub const fn new(service: u32, addr: A, length: u8) -> Self {
        Self::from_parts(
            SourceKey::<A>::PREFIX + length as u32,
            SourceKey::new(service, addr),
        )
    }

    /// As it stands in the map: bits that count, service id included, and the data.
    pub const fn from_parts(bits: u32, data: SourceKey<A>) -> Self {
        Self { bits, data }
    }

    /// Bits of the data that count.
    pub const fn bits(&self) -> u32 {
        self.bits
    }

    /// Service id and address.
    pub const fn data(&self) -> SourceKey<A> {
        self.data
    }
}

/// The tables that exist once per family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyTables<A: Address + Ord> {
    /// `services4`/`services6`
    pub services: BTreeMap<ServiceKey<A>, Service>,
    /// `backends4`/`backends6`; unused elements are absent, but for those that keep the epoch of a
    /// backend that was removed.
    pub backends: BTreeMap<u32, Backend<A>>,
    /// `vips4`/`vips6`
    pub vips: BTreeMap<A, Vip>,
    /// `peer_addrs4`/`peer_addrs6`
    pub peer_addrs: BTreeMap<A, Node>,
    /// `reply_ports4`/`reply_ports6`
    pub reply_ports: BTreeMap<ServiceKey<A>, ReplyPort>,
    /// `nat_sources4`/`nat_sources6`
    pub nat_sources: BTreeMap<ServiceKey<A>, Node>,
    /// `sources4`/`sources6`
    pub sources: BTreeMap<SourcePrefix<A>, SourceRule>,
}

impl<A: Address + Ord> Default for FamilyTables<A> {
    fn default() -> Self {
        Self {
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
            vips: BTreeMap::new(),
            peer_addrs: BTreeMap::new(),
            reply_ports: BTreeMap::new(),
            nat_sources: BTreeMap::new(),
            sources: BTreeMap::new(),
        }
    }
}

/// Every table that the controller writes, except leases (they are renewed, not reconciled).
#[derive(Clone, Default, PartialEq)]
pub struct Tables {
    /// IPv4.
    pub v4: FamilyTables<[u8; 4]>,
    /// IPv6.
    pub v6: FamilyTables<[u8; 16]>,
    /// `maglev`: the tables that are in force.
    pub maglev: BTreeMap<u32, Arc<MaglevTable>>,
    /// `peer_macs`
    pub peer_macs: BTreeMap<MacKey, Node>,
    /// `uplinks`
    pub uplinks: BTreeMap<UplinkKey, Uplink>,
    /// `node`
    pub node: Option<NodeConfig>,
}

/// One write to a table of a family; `None` deletes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FamilyOp<A: Address> {
    /// `services`
    Service(ServiceKey<A>, Option<Service>),
    /// `backends`
    Backend(u32, Option<Backend<A>>),
    /// `vips`
    Vip(A, Option<Vip>),
    /// `peer_addrs`
    PeerAddr(A, Option<Node>),
    /// `reply_ports`
    ReplyPort(ServiceKey<A>, Option<ReplyPort>),
    /// `nat_sources`
    NatSource(ServiceKey<A>, Option<Node>),
    /// `sources`
    Source(SourcePrefix<A>, Option<SourceRule>),
}

/// One write to a table; `None` deletes.
#[derive(Clone)]
pub enum TableOp {
    /// A table of IPv4.
    V4(FamilyOp<[u8; 4]>),
    /// A table of IPv6.
    V6(FamilyOp<[u8; 16]>),
    /// `maglev`
    Maglev(u32, Arc<MaglevTable>),
    /// `peer_macs`
    PeerMac(MacKey, Option<Node>),
    /// `uplinks`
    Uplink(UplinkKey, Option<Uplink>),
    /// `node`
    Node(NodeConfig),
}

/// When an operation happens. What others refer to is written first and deleted last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Facts, and backends that may be selected from now on.
    Prepare,
    /// The new Maglev tables, not yet in force.
    Fill,
    /// Services: the switch to the new table.
    Switch,
    /// Backends that are no longer selected: down, or deleted.
    Retire,
}

type Planned = Vec<(Phase, TableOp)>;

/// The operations that turn `observed` into `desired`, in their order.
pub fn plan(desired: &Tables, observed: &Tables) -> Vec<TableOp> {
    let mut ops = Planned::new();
    if let Some(node) = desired.node.filter(|_| desired.node != observed.node) {
        ops.push((Phase::Prepare, TableOp::Node(node)));
    }
    let prepare = |_: Option<&_>| Phase::Prepare;
    diff(
        &mut ops,
        &desired.uplinks,
        &observed.uplinks,
        prepare,
        TableOp::Uplink,
    );
    let prepare = |_: Option<&_>| Phase::Prepare;
    diff(
        &mut ops,
        &desired.peer_macs,
        &observed.peer_macs,
        prepare,
        TableOp::PeerMac,
    );
    plan_family(&mut ops, &desired.v4, &observed.v4, TableOp::V4);
    plan_family(&mut ops, &desired.v6, &observed.v6, TableOp::V6);
    for (&index, table) in &desired.maglev {
        if observed.maglev.get(&index) != Some(table) {
            ops.push((Phase::Fill, TableOp::Maglev(index, Arc::clone(table))));
        }
    }
    ops.sort_by_key(|(phase, _)| *phase);
    ops.into_iter().map(|(_, op)| op).collect()
}

fn plan_family<A: Address + Ord>(
    ops: &mut Planned,
    desired: &FamilyTables<A>,
    observed: &FamilyTables<A>,
    wrap: impl Fn(FamilyOp<A>) -> TableOp,
) {
    /// New facts before the services that need them, old ones after the services that did.
    fn fact<V>(value: Option<&V>) -> Phase {
        if value.is_some() {
            Phase::Prepare
        } else {
            Phase::Retire
        }
    }
    diff(ops, &desired.vips, &observed.vips, fact, |k, v| {
        wrap(FamilyOp::Vip(k, v))
    });
    diff(
        ops,
        &desired.peer_addrs,
        &observed.peer_addrs,
        fact,
        |k, v| wrap(FamilyOp::PeerAddr(k, v)),
    );
    diff(
        ops,
        &desired.reply_ports,
        &observed.reply_ports,
        fact,
        |k, v| wrap(FamilyOp::ReplyPort(k, v)),
    );
    diff(
        ops,
        &desired.nat_sources,
        &observed.nat_sources,
        fact,
        |k, v| wrap(FamilyOp::NatSource(k, v)),
    );
    diff(ops, &desired.sources, &observed.sources, fact, |k, v| {
        wrap(FamilyOp::Source(k, v))
    });
    let selectable = |backend: Option<&Backend<A>>| match backend.map(Backend::state) {
        Some(BackendState::Up | BackendState::Draining) => Phase::Prepare,
        Some(BackendState::Down) | None => Phase::Retire,
    };
    diff(
        ops,
        &desired.backends,
        &observed.backends,
        selectable,
        |k, v| wrap(FamilyOp::Backend(k, v)),
    );
    let switch = |_: Option<&_>| Phase::Switch;
    diff(
        ops,
        &desired.services,
        &observed.services,
        switch,
        |k, v| wrap(FamilyOp::Service(k, v)),
    );
}

fn diff<K: Ord + Copy, V: Copy + PartialEq>(
    ops: &mut Planned,
    desired: &BTreeMap<K, V>,
    observed: &BTreeMap<K, V>,
    phase: impl Fn(Option<&V>) -> Phase,
    op: impl Fn(K, Option<V>) -> TableOp,
) {
    for (&key, value) in desired {
        if observed.get(&key) != Some(value) {
            ops.push((phase(Some(value)), op(key, Some(*value))));
        }
    }
    for &key in observed.keys().filter(|key| !desired.contains_key(key)) {
        ops.push((phase(None), op(key, None)));
    }
}

impl Tables {
    /// Account an operation that was carried out.
    pub fn apply(&mut self, op: &TableOp) {
        match op {
            TableOp::V4(op) => self.v4.apply(op),
            TableOp::V6(op) => self.v6.apply(op),
            TableOp::Maglev(index, table) => {
                self.maglev.insert(*index, Arc::clone(table));
            }
            TableOp::PeerMac(key, value) => set(&mut self.peer_macs, *key, *value),
            TableOp::Uplink(key, value) => set(&mut self.uplinks, *key, *value),
            TableOp::Node(node) => self.node = Some(*node),
        }
    }
}

impl<A: Address + Ord> FamilyTables<A> {
    fn apply(&mut self, op: &FamilyOp<A>) {
        match op {
            FamilyOp::Service(key, value) => set(&mut self.services, *key, *value),
            FamilyOp::Backend(key, value) => set(&mut self.backends, *key, *value),
            FamilyOp::Vip(key, value) => set(&mut self.vips, *key, *value),
            FamilyOp::PeerAddr(key, value) => set(&mut self.peer_addrs, *key, *value),
            FamilyOp::ReplyPort(key, value) => set(&mut self.reply_ports, *key, *value),
            FamilyOp::NatSource(key, value) => set(&mut self.nat_sources, *key, *value),
            FamilyOp::Source(key, value) => set(&mut self.sources, *key, *value),
        }
    }
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => {
            map.insert(key, value);
        }
        None => {
            map.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::Method;

    use super::*;

    const KEY: ServiceKey<[u8; 4]> = ServiceKey::new([10, 0, 2, 100], 1644, 6);

    fn tables(state: BackendState, table: u32) -> Tables {
        let mut tables = Tables::default();
        let backend = Backend::new([10, 0, 2, 10], 6443, 1, 2, Method::Dsr, state);
        tables.v4.backends.insert(1, backend);
        tables
            .v4
            .services
            .insert(KEY, Service::new(1, table, 0, 0, true));
        let slots = MaglevTable::from_slots([table as u16]);
        tables.maglev.insert(table, Arc::new(slots));
        tables
    }

    fn names(ops: &[TableOp]) -> Vec<&'static str> {
        ops.iter()
            .map(|op| match op {
                TableOp::V4(FamilyOp::Service(_, Some(_))) => "service",
                TableOp::V4(FamilyOp::Service(_, None)) => "no service",
                TableOp::V4(FamilyOp::Backend(_, Some(_))) => "backend",
                TableOp::V4(FamilyOp::Backend(_, None)) => "no backend",
                TableOp::Maglev(..) => "maglev",
                _ => "other",
            })
            .collect()
    }

    /// A service appears: its backend and table are there before it is.
    #[test]
    fn makes_before_it_switches() {
        let ops = plan(&tables(BackendState::Up, 2), &Tables::default());
        assert_eq!(names(&ops), ["backend", "maglev", "service"]);
    }

    /// A backend goes down: nothing selects it any more when its state changes.
    #[test]
    fn switches_before_it_breaks() {
        let ops = plan(&tables(BackendState::Down, 3), &tables(BackendState::Up, 2));
        assert_eq!(names(&ops), ["maglev", "service", "backend"]);
    }

    /// A service goes away before its backend does.
    #[test]
    fn removes_in_reverse() {
        let ops = plan(&Tables::default(), &tables(BackendState::Up, 2));
        assert_eq!(names(&ops), ["no service", "no backend"]);
    }

    /// Applying a plan leaves nothing to do (but the tables that are no longer in force).
    #[test]
    fn a_plan_converges() {
        let desired = tables(BackendState::Down, 3);
        let mut observed = tables(BackendState::Up, 2);
        for op in plan(&desired, &observed) {
            observed.apply(&op);
        }
        assert!(plan(&desired, &observed).is_empty());
    }
}

//! Typed access to the maps: the tables as the core knows them, leases, and (apart) counters.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use aya::{
    Ebpf, Pod,
    maps::{
        Array, HashMap, IterableMap, MapData, MapError, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
    },
};
use lb_common::{
    abi::{
        Address, Backend, BackendCounters, Counters, Flow, FlowKey, Lease, MacKey, MaglevTable,
        Node, NodeConfig, ReplyPort, Service, ServiceKey, Suspect, Uplink, UplinkKey, Vip,
        reason_index,
        sources::{SourceKey, SourceRule},
    },
    conntrack::FlowState,
    reason::Reason,
};

use super::{BpfError, batch::lookup_batch};
use crate::core::{
    tables::{FamilyOp, FamilyTables, SourcePrefix, TableOp, Tables},
    time::Timestamp,
};

/// The maps of one family.
struct FamilyMaps<A: Address>
where
    A: Pod,
    ServiceKey<A>: Pod,
    SourceKey<A>: Pod,
    Backend<A>: Pod,
{
    services: HashMap<MapData, ServiceKey<A>, Service>,
    backends: Array<MapData, Backend<A>>,
    vips: HashMap<MapData, A, Vip>,
    peer_addrs: HashMap<MapData, A, Node>,
    reply_ports: HashMap<MapData, ServiceKey<A>, ReplyPort>,
    nat_sources: HashMap<MapData, ServiceKey<A>, Node>,
    sources: LpmTrie<MapData, SourceKey<A>, SourceRule>,
    names: Names,
}

/// Map names of a family.
#[derive(Clone, Copy)]
struct Names {
    services: &'static str,
    backends: &'static str,
    vips: &'static str,
    peer_addrs: &'static str,
    reply_ports: &'static str,
    nat_sources: &'static str,
    sources: &'static str,
}

const NAMES4: Names = Names {
    services: "services4",
    backends: "backends4",
    vips: "vips4",
    peer_addrs: "peer_addrs4",
    reply_ports: "reply_ports4",
    nat_sources: "nat_sources4",
    sources: "sources4",
};

const NAMES6: Names = Names {
    services: "services6",
    backends: "backends6",
    vips: "vips6",
    peer_addrs: "peer_addrs6",
    reply_ports: "reply_ports6",
    nat_sources: "nat_sources6",
    sources: "sources6",
};

/// The maps that the controller writes.
pub struct Maps {
    v4: FamilyMaps<[u8; 4]>,
    v6: FamilyMaps<[u8; 16]>,
    maglev: Array<MapData, MaglevTable>,
    leases: Array<MapData, Lease>,
    peer_macs: HashMap<MapData, MacKey, Node>,
    uplinks: HashMap<MapData, UplinkKey, Uplink>,
    node: Array<MapData, NodeConfig>,
    suspects: Array<MapData, Suspect>,
}

/// The maps that the data plane counts in. They are large, so they are read on other threads than
/// the controller's.
pub struct CountMaps {
    flows4: HashMap<MapData, FlowKey<[u8; 4]>, Flow>,
    flows6: HashMap<MapData, FlowKey<[u8; 16]>, Flow>,
    half_flows4: HashMap<MapData, FlowKey<[u8; 4]>, Flow>,
    half_flows6: HashMap<MapData, FlowKey<[u8; 16]>, Flow>,
    backend_stats: PerCpuArray<MapData, BackendCounters>,
    reason_stats: PerCpuArray<MapData, Counters>,
}

/// Counters, summed over the CPUs.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// By service id (0: packets of no service), those that are not zero.
    pub reasons: BTreeMap<u32, Vec<(Reason, Counters)>>,
    /// By backend id.
    pub backends: BTreeMap<u32, BackendCounters>,
    /// Open flows with a conntrack entry by backend id; `None`: they cannot be read.
    pub flows: Option<BTreeMap<u32, u64>>,
}

/// All elements of an array, with their numbers: some system calls instead of one for each.
pub(super) fn elements<V: Pod>(
    array: &Array<MapData, V>,
    name: &'static str,
) -> Result<Vec<(u32, V)>, BpfError> {
    let read = || {
        let pieces = lookup_batch(IterableMap::map(array))?;
        Ok(pieces.collect::<Result<Vec<_>, _>>()?.concat())
    };
    read().map_err(|source| BpfError::Batch { name, source })
}

pub(super) fn map_error(name: &'static str) -> impl Fn(MapError) -> BpfError {
    move |source| BpfError::Map { name, source }
}

fn take<M>(object: &mut Ebpf, name: &'static str) -> Result<M, BpfError>
where
    M: TryFrom<aya::maps::Map, Error = MapError>,
{
    let map = object.take_map(name).ok_or(BpfError::Missing(name))?;
    M::try_from(map).map_err(map_error(name))
}

impl Maps {
    /// Take the maps out of the loaded object.
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, BpfError> {
        Ok(Self {
            v4: FamilyMaps::take(object, NAMES4)?,
            v6: FamilyMaps::take(object, NAMES6)?,
            maglev: take(object, "maglev")?,
            leases: take(object, "leases")?,
            peer_macs: take(object, "peer_macs")?,
            uplinks: take(object, "uplinks")?,
            node: take(object, "node")?,
            suspects: take(object, "suspects")?,
        })
    }

    /// Everything that the controller writes, as it is.
    pub fn read_tables(&self) -> Result<Tables, BpfError> {
        let v4 = self.v4.read()?;
        let v6 = self.v6.read()?;
        let mut maglev = BTreeMap::new();
        for service in v4.services.values().chain(v6.services.values()) {
            let index = service.table();
            match self.maglev.get(&index, 0) {
                Ok(table) => {
                    maglev.insert(index, Arc::new(table));
                }
                // Somebody else wrote this service: it refers to nothing, and is repaired.
                Err(MapError::OutOfBounds { .. }) => {}
                Err(error) => return Err(map_error("maglev")(error)),
            }
        }
        let node = self.node.get(&0, 0).map_err(map_error("node"))?;
        Ok(Tables {
            v4,
            v6,
            maglev,
            peer_macs: read_hash(&self.peer_macs, "peer_macs")?,
            uplinks: read_hash(&self.uplinks, "uplinks")?,
            node: Some(node).filter(|node| node.abi_version() != 0),
        })
    }

    /// Carry an operation out.
    pub fn write(&mut self, op: &TableOp) -> Result<(), BpfError> {
        match op {
            TableOp::V4(op) => self.v4.write(op),
            TableOp::V6(op) => self.v6.write(op),
            TableOp::Maglev(index, table) => self
                .maglev
                .set(*index, **table, 0)
                .map_err(map_error("maglev")),
            TableOp::PeerMac(key, value) => {
                put(&mut self.peer_macs, key, value.as_ref(), "peer_macs")
            }
            TableOp::Uplink(key, value) => put(&mut self.uplinks, key, value.as_ref(), "uplinks"),
            TableOp::Node(node) => self.node.set(0, node, 0).map_err(map_error("node")),
        }
    }

    /// A backend may get new flows again, although it refused some.
    pub fn clear_suspect(&mut self, backend: u32) -> Result<(), BpfError> {
        self.suspects
            .set(backend, Suspect::NONE, 0)
            .map_err(map_error("suspects"))
    }

    /// Write a lease; `None` ends it.
    pub fn set_lease(&mut self, index: u32, deadline: Option<Timestamp>) -> Result<(), BpfError> {
        let lease = deadline.map_or(Lease::NONE, |at| Lease::until(at.as_nanos()));
        self.leases
            .set(index, lease, 0)
            .map_err(map_error("leases"))
    }
}

impl CountMaps {
    /// Take the maps out of the loaded object.
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, BpfError> {
        Ok(Self {
            flows4: take(object, "flows4")?,
            flows6: take(object, "flows6")?,
            half_flows4: take(object, "half_flows4")?,
            half_flows6: take(object, "half_flows6")?,
            backend_stats: take(object, "backend_stats")?,
            reason_stats: take(object, "reason_stats")?,
        })
    }

    /// The counters of these services and backends, by id, and those of all reasons. `now` is in
    /// seconds of the monotonic clock, as in the flows' entries.
    pub fn read(&self, services: &[u32], backends: &[u32], now: u32) -> Result<Counts, BpfError> {
        let reasons = [0]
            .iter()
            .chain(services)
            .map(|&service| Ok((service, self.reasons(service)?)))
            .collect::<Result<_, BpfError>>()?;
        Ok(Counts {
            reasons,
            backends: backends
                .iter()
                .map(|&id| Ok((id, self.backend(id)?)))
                .collect::<Result<_, BpfError>>()?,
            flows: self.flows(now),
        })
    }

    /// The reasons of a service's packets that are not zero.
    fn reasons(&self, service: u32) -> Result<Vec<(Reason, Counters)>, BpfError> {
        let mut reasons = Vec::new();
        for &reason in Reason::ALL {
            let values = self
                .reason_stats
                .get(&reason_index(service, reason), 0)
                .map_err(map_error("reason_stats"))?;
            let sum = values
                .iter()
                .fold(Counters::default(), |sum, one| sum.plus(*one));
            if sum.packets() > 0 {
                reasons.push((reason, sum));
            }
        }
        Ok(reasons)
    }

    fn backend(&self, id: u32) -> Result<BackendCounters, BpfError> {
        let values = self
            .backend_stats
            .get(&id, 0)
            .map_err(map_error("backend_stats"))?;
        Ok(values
            .iter()
            .fold(BackendCounters::default(), |sum, one| sum.plus(*one)))
    }

    fn flows(&self, now: u32) -> Option<BTreeMap<u32, u64>> {
        let mut counts = BTreeMap::new();
        let open = |flow: &Flow| flow.is_open(now);
        count_flows(&self.flows4, open, &mut counts)?;
        count_flows(&self.flows6, open, &mut counts)?;
        // Whoever has acknowledged something and is not among the others yet was adopted just now;
        // a SYN alone may be anybody's.
        let adopted = |flow: &Flow| flow.is_open(now) && flow.state() == FlowState::Established;
        count_flows(&self.half_flows4, adopted, &mut counts)?;
        count_flows(&self.half_flows6, adopted, &mut counts)?;
        Some(counts)
    }
}

/// Count flows by backend; `None` if they cannot be read.
fn count_flows<K: Pod>(
    flows: &HashMap<MapData, K, Flow>,
    counts_as: impl Fn(&Flow) -> bool,
    counts: &mut BTreeMap<u32, u64>,
) -> Option<()> {
    for piece in lookup_batch::<K, Flow>(IterableMap::map(flows)).ok()? {
        for (_, flow) in piece.ok()? {
            if counts_as(&flow) {
                *counts.entry(flow.backend()).or_default() += 1;
            }
        }
    }
    Some(())
}

impl<A: Address + Ord + Pod> FamilyMaps<A>
where
    ServiceKey<A>: Pod + Ord,
    SourceKey<A>: Pod,
    Backend<A>: Pod,
{
    fn take(object: &mut Ebpf, names: Names) -> Result<Self, BpfError> {
        Ok(Self {
            services: take(object, names.services)?,
            backends: take(object, names.backends)?,
            vips: take(object, names.vips)?,
            peer_addrs: take(object, names.peer_addrs)?,
            reply_ports: take(object, names.reply_ports)?,
            nat_sources: take(object, names.nat_sources)?,
            sources: take(object, names.sources)?,
            names,
        })
    }

    fn read(&self) -> Result<FamilyTables<A>, BpfError> {
        let names = &self.names;
        Ok(FamilyTables {
            services: read_hash(&self.services, names.services)?,
            backends: self.read_backends()?,
            vips: read_hash(&self.vips, names.vips)?,
            peer_addrs: read_hash(&self.peer_addrs, names.peer_addrs)?,
            reply_ports: read_hash(&self.reply_ports, names.reply_ports)?,
            nat_sources: read_hash(&self.nat_sources, names.nat_sources)?,
            sources: self.read_sources()?,
        })
    }

    fn read_sources(&self) -> Result<BTreeMap<SourcePrefix<A>, SourceRule>, BpfError> {
        let rules = self.sources.iter().map(|rule| {
            let (key, value) = rule?;
            Ok((
                SourcePrefix::from_parts(key.prefix_len(), key.data()),
                value,
            ))
        });
        rules
            .collect::<Result<_, _>>()
            .map_err(map_error(self.names.sources))
    }

    fn read_backends(&self) -> Result<BTreeMap<u32, Backend<A>>, BpfError> {
        let backends = elements(&self.backends, self.names.backends)?.into_iter();
        Ok(backends
            .filter(|(_, backend)| *backend != Backend::EMPTY)
            .collect())
    }

    fn write(&mut self, op: &FamilyOp<A>) -> Result<(), BpfError> {
        let names = self.names;
        match op {
            FamilyOp::Service(key, value) => {
                put(&mut self.services, key, value.as_ref(), names.services)
            }
            FamilyOp::Backend(id, value) => self
                .backends
                .set(*id, value.unwrap_or(Backend::EMPTY), 0)
                .map_err(map_error(names.backends)),
            FamilyOp::Vip(key, value) => put(&mut self.vips, key, value.as_ref(), names.vips),
            FamilyOp::PeerAddr(key, value) => {
                put(&mut self.peer_addrs, key, value.as_ref(), names.peer_addrs)
            }
            FamilyOp::ReplyPort(key, value) => put(
                &mut self.reply_ports,
                key,
                value.as_ref(),
                names.reply_ports,
            ),
            FamilyOp::NatSource(key, value) => put(
                &mut self.nat_sources,
                key,
                value.as_ref(),
                names.nat_sources,
            ),
            FamilyOp::Source(prefix, value) => {
                let key = Key::new(prefix.bits(), prefix.data());
                let result = match value {
                    Some(rule) => self.sources.insert(&key, *rule, 0),
                    None => absent_is_fine(self.sources.remove(&key)),
                };
                result.map_err(map_error(names.sources))
            }
        }
    }
}

fn read_hash<K: Pod + Ord, V: Pod>(
    map: &HashMap<MapData, K, V>,
    name: &'static str,
) -> Result<BTreeMap<K, V>, BpfError> {
    map.iter()
        .collect::<Result<_, _>>()
        .map_err(map_error(name))
}

fn put<K: Pod, V: Pod>(
    map: &mut HashMap<MapData, K, V>,
    key: &K,
    value: Option<&V>,
    name: &'static str,
) -> Result<(), BpfError> {
    let result = match value {
        Some(value) => map.insert(key, value, 0),
        None => absent_is_fine(map.remove(key)),
    };
    result.map_err(map_error(name))
}

/// What is to be removed may be gone already.
fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        other => other,
    }
}

/// The ABI version that the pinned `node` map at `path` carries; 0 if nobody wrote it.
pub(super) fn pinned_abi_version(path: &Path) -> Result<u32, MapError> {
    let map = aya::maps::Map::Array(MapData::from_pin(path)?);
    let node: Array<MapData, NodeConfig> = Array::try_from(map)?;
    Ok(node.get(&0, 0)?.abi_version())
}

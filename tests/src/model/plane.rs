//! A program beside the model: the same tables in its maps, and what it left in them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result};
use aya::{Pod, maps::MapError};
use lb_common::abi::{
    self, Address, BackendState, FlowKey, Lease, MAGLEV_SIZE, MacKey, MaglevTable, Method,
    NatReturn, Node, NodeConfig, ReplyPort, ServiceKey, Uplink, UplinkKey, Vip, layout::MAPS,
};
use lb_common::reason::Reason;

use super::{
    Count,
    tables::{Backend, Change, Flow, Port, Return, Service, Tables, Tuple},
    world,
};
use crate::program::{Action, DataPlane, SkBuff};

/// A program that is the ingress pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ingress {
    /// `xdp_ingress`.
    Xdp,
}

impl Ingress {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::Xdp];

    /// The program's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp_ingress",
        }
    }
}

/// A loaded object whose maps the model has a copy of.
pub struct Plane {
    data: DataPlane,
    ingress: Ingress,
    /// What the controller's maps hold.
    tables: Tables,
    /// Counters at the start of the sequence.
    reasons: BTreeMap<(u32, u32), Count>,
    backends: BTreeMap<u32, Count>,
}

/// An address of the maps.
trait MapAddress: Address + Pod + Into<IpAddr> {
    const SUFFIX: char;

    /// The address, which is of this family.
    fn of(addr: IpAddr) -> Self;
}

impl MapAddress for [u8; 4] {
    const SUFFIX: char = '4';

    fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(four) => four.octets(),
            IpAddr::V6(_) => unreachable!("{addr} among addresses of IPv4"),
        }
    }
}

impl MapAddress for [u8; 16] {
    const SUFFIX: char = '6';

    fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V6(six) => six.octets(),
            IpAddr::V4(_) => unreachable!("{addr} among addresses of IPv6"),
        }
    }
}

/// Call a generic method for the family of an address.
macro_rules! by_family {
    ($addr:expr, $this:ident.$method:ident($($argument:expr),*)) => {
        match $addr {
            IpAddr::V4(_) => $this.$method::<[u8; 4]>($($argument),*),
            IpAddr::V6(_) => $this.$method::<[u8; 16]>($($argument),*),
        }
    };
}

/// The name of a map in the family of `A`.
fn name<A: MapAddress>(map: &str) -> String {
    format!("{map}{}", A::SUFFIX)
}

fn flow_key<A: MapAddress>(tuple: &Tuple) -> FlowKey<A> {
    let (src, dst) = (A::of(tuple.src.ip()), A::of(tuple.dst.ip()));
    FlowKey::new(src, tuple.src.port(), dst, tuple.dst.port(), tuple.proto)
}

fn tuple<A: MapAddress>(key: &FlowKey<A>) -> Tuple {
    Tuple {
        src: SocketAddr::new(key.src().into(), key.sport()),
        dst: SocketAddr::new(key.dst().into(), key.dport()),
        proto: key.proto(),
    }
}

fn service_key<A: MapAddress>((addr, proto): Port) -> ServiceKey<A> {
    ServiceKey::new(A::of(addr.ip()), addr.port(), proto)
}

fn flow(value: &abi::Flow) -> Flow {
    Flow {
        backend: value.backend(),
        last_seen: value.last_seen(),
        acked: value.cl_ack().zip(value.cl_next()),
        nat_port: value.nat_port(),
        path: value.path(),
        state: value.state(),
        epoch: value.epoch(),
    }
}

fn returned<A: MapAddress>(value: &NatReturn<A>) -> Return {
    Return {
        client: SocketAddr::new(value.client().into(), value.client_port()),
        vip_port: value.vip_port(),
        backend: value.backend(),
        ifindex: value.ifindex(),
        tags: value.tags(),
        mac: value.mac(),
    }
}

fn service(value: &Service) -> abi::Service {
    let Service {
        id,
        table,
        local_backend,
        local_port,
        flags,
    } = *value;
    abi::Service::new(id, table, local_backend, local_port, false).with_flags(flags)
}

fn backend<A: MapAddress>(value: &Backend) -> abi::Backend<A> {
    let method = Method::from_raw(value.method).unwrap_or(Method::Local);
    abi::Backend::new(
        A::of(value.addr.ip()),
        value.addr.port(),
        value.service,
        value.node,
        method,
        BackendState::from_raw(value.state),
    )
    .in_epoch(value.epoch)
    .tagged(value.tags)
    .via(value.ifindex, value.mac)
}

/// Bytes of a `Flow`.
const FLOW: usize = size_of::<abi::Flow>();

/// Where a flow's `last_seen` is.
fn last_seen_offset() -> Result<usize> {
    let flows = MAPS.iter().find(|map| map.name == "flows4");
    let fields = flows.context("no flows4")?.value.fields;
    let field = fields.iter().find(|field| field.name == "last_seen");
    Ok(field.context("no last_seen")?.offset)
}

impl Plane {
    /// Load the object for one of the pipeline's programs.
    pub fn load(ingress: Ingress) -> Result<Self> {
        let mut data = DataPlane::load(&[ingress.name(), "tc_egress"])?;
        data.array("node")?
            .set(0, NodeConfig::new(0).with_limits(0, 0), 0)?;
        Ok(Self {
            data,
            ingress,
            tables: Tables::default(),
            reasons: BTreeMap::new(),
            backends: BTreeMap::new(),
        })
    }

    /// The program.
    pub fn ingress_program(&self) -> Ingress {
        self.ingress
    }

    /// Begin a sequence: these tables, no flows, counters from here on.
    pub fn begin(&mut self, tables: &Tables) -> Result<()> {
        for change in self.tables.changes_to(tables) {
            self.change(&change)?;
        }
        self.forget::<[u8; 4]>()?;
        self.forget::<[u8; 16]>()?;
        self.reasons = BTreeMap::new();
        self.backends = BTreeMap::new();
        (self.reasons, self.backends) = (self.reasons()?, self.backends()?);
        Ok(())
    }

    fn forget<A: MapAddress>(&mut self) -> Result<()> {
        self.clear::<FlowKey<A>, abi::Flow>(&name::<A>("flows"))?;
        self.clear::<FlowKey<A>, NatReturn<A>>(&name::<A>("returns"))
    }

    fn clear<K: Pod, V: Pod>(&mut self, map: &str) -> Result<()> {
        let mut map = self.data.hash::<K, V>(map)?;
        let keys: Vec<K> = map.keys().collect::<Result<_, _>>()?;
        for key in keys {
            map.remove(&key)?;
        }
        Ok(())
    }

    fn put<K: Pod, V: Pod>(&mut self, map: &str, key: K, value: Option<V>) -> Result<()> {
        let mut map = self.data.hash::<K, V>(map)?;
        match value {
            Some(value) => map.insert(key, value, 0)?,
            None if map.get(&key, 0).is_ok() => map.remove(&key)?,
            None => {}
        }
        Ok(())
    }

    fn get<K: Pod, V: Pod>(&mut self, map: &str, key: K) -> Result<Option<V>> {
        match self.data.hash::<K, V>(map)?.get(&key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Carry out a change.
    pub fn change(&mut self, change: &Change) -> Result<()> {
        self.tables.change(change);
        match change {
            Change::Service((addr, _), _)
            | Change::NatSource((addr, _), _)
            | Change::ReplyPort((addr, _), _) => {
                by_family!(addr.ip(), self.change_of(change))
            }
            Change::Vip(addr, _) | Change::PeerAddr(addr, _) => {
                by_family!(addr, self.change_of(change))
            }
            Change::EvictFlow(tuple) | Change::EvictReturn(tuple) | Change::Age(tuple, _) => {
                by_family!(tuple.src.ip(), self.change_of(change))
            }
            Change::Backend(_, Some(backend)) => {
                by_family!(backend.addr.ip(), self.change_of(change))
            }
            Change::Backend(id, None) => {
                let mut map = self.data.array("backends4")?;
                map.set(*id, abi::Backend::<[u8; 4]>::EMPTY, 0)?;
                let mut map = self.data.array("backends6")?;
                Ok(map.set(*id, abi::Backend::<[u8; 16]>::EMPTY, 0)?)
            }
            Change::Maglev(table, pattern) => {
                let slots = pattern.iter().copied().cycle().take(MAGLEV_SIZE as usize);
                let mut map = self.data.array("maglev")?;
                Ok(map.set(*table, MaglevTable::from_slots(slots), 0)?)
            }
            Change::Lease(index, valid) => {
                let deadline = if *valid { u64::MAX } else { 0 };
                let mut map = self.data.array("leases")?;
                Ok(map.set(*index, Lease::until(deadline), 0)?)
            }
            Change::Uplink((ifindex, tags), mac) => {
                let key = UplinkKey::new(*ifindex, *tags);
                self.put("uplinks", key, mac.map(Uplink::new))
            }
            Change::PeerMac(mac, node) => {
                self.put("peer_macs", MacKey::new(*mac), node.map(Node::new))
            }
        }
    }

    fn change_of<A: MapAddress>(&mut self, change: &Change) -> Result<()> {
        match change {
            Change::Service(key, value) => {
                let value = value.as_ref().map(service);
                self.put(&name::<A>("services"), service_key::<A>(*key), value)
            }
            Change::Backend(id, value) => {
                let value = value.as_ref().map_or(abi::Backend::EMPTY, backend::<A>);
                Ok(self
                    .data
                    .array(&name::<A>("backends"))?
                    .set(*id, value, 0)?)
            }
            Change::NatSource(key, present) => {
                let value = present.then_some(Node::new(0));
                self.put(&name::<A>("nat_sources"), service_key::<A>(*key), value)
            }
            Change::ReplyPort(key, port) => {
                let value = port.map(ReplyPort::new);
                self.put(&name::<A>("reply_ports"), service_key::<A>(*key), value)
            }
            Change::Vip(addr, lease) => {
                self.put(&name::<A>("vips"), A::of(*addr), lease.map(Vip::new))
            }
            Change::PeerAddr(addr, node) => {
                self.put(&name::<A>("peer_addrs"), A::of(*addr), node.map(Node::new))
            }
            Change::EvictFlow(tuple) => {
                let key = flow_key::<A>(tuple);
                self.put::<_, abi::Flow>(&name::<A>("flows"), key, None)
            }
            Change::EvictReturn(tuple) => {
                let key = flow_key::<A>(tuple);
                self.put::<_, NatReturn<A>>(&name::<A>("returns"), key, None)
            }
            Change::Age(tuple, seconds) => self.age::<A>("flows", tuple, *seconds),
            Change::Maglev(..) | Change::Lease(..) | Change::Uplink(..) | Change::PeerMac(..) => {
                Ok(())
            }
        }
    }

    fn age<A: MapAddress>(&mut self, map: &str, tuple: &Tuple, seconds: u32) -> Result<()> {
        let (map, key) = (name::<A>(map), flow_key::<A>(tuple));
        let Some(mut bytes) = self.get::<_, [u8; FLOW]>(&map, key)? else {
            return Ok(());
        };
        let at = last_seen_offset()?;
        let word: [u8; 4] = bytes[at..at + 4].try_into()?;
        let earlier = u32::from_ne_bytes(word).saturating_sub(seconds);
        bytes[at..at + 4].copy_from_slice(&earlier.to_ne_bytes());
        self.put(&map, key, Some(bytes))
    }

    /// A frame comes in.
    pub fn ingress(&self, frame: &[u8], ifindex: u32) -> Result<(Action, Vec<u8>)> {
        match self.ingress {
            Ingress::Xdp => self.data.xdp(frame, ifindex),
        }
    }

    /// A frame leaves.
    pub fn egress(&self, frame: &[u8]) -> Result<(Action, Vec<u8>)> {
        self.data.tc_egress(frame, SkBuff::default())
    }

    /// The flow entry of a key.
    pub fn flow(&mut self, key: &Tuple) -> Result<Option<Flow>> {
        by_family!(key.src.ip(), self.flow_of(key))
    }

    fn flow_of<A: MapAddress>(&mut self, key: &Tuple) -> Result<Option<Flow>> {
        let found = self.get(&name::<A>("flows"), flow_key::<A>(key))?;
        Ok(found.as_ref().map(flow))
    }

    /// The return entry of a key.
    pub fn returned(&mut self, key: &Tuple) -> Result<Option<Return>> {
        by_family!(key.src.ip(), self.returned_of(key))
    }

    fn returned_of<A: MapAddress>(&mut self, key: &Tuple) -> Result<Option<Return>> {
        let found = self.get(&name::<A>("returns"), flow_key::<A>(key))?;
        Ok(found.as_ref().map(returned::<A>))
    }

    /// All flow entries.
    pub fn flows(&mut self) -> Result<BTreeMap<Tuple, Flow>> {
        let mut all = BTreeMap::new();
        self.flows_of::<[u8; 4]>(&mut all)?;
        self.flows_of::<[u8; 16]>(&mut all)?;
        Ok(all)
    }

    fn flows_of<A: MapAddress>(&mut self, into: &mut BTreeMap<Tuple, Flow>) -> Result<()> {
        let map = self
            .data
            .hash::<FlowKey<A>, abi::Flow>(&name::<A>("flows"))?;
        for entry in &map {
            let (key, value) = entry?;
            into.insert(tuple(&key), flow(&value));
        }
        Ok(())
    }

    /// All return entries.
    pub fn returns(&mut self) -> Result<BTreeMap<Tuple, Return>> {
        let mut all = BTreeMap::new();
        self.returns_of::<[u8; 4]>(&mut all)?;
        self.returns_of::<[u8; 16]>(&mut all)?;
        Ok(all)
    }

    fn returns_of<A: MapAddress>(&mut self, into: &mut BTreeMap<Tuple, Return>) -> Result<()> {
        let map = self
            .data
            .hash::<FlowKey<A>, NatReturn<A>>(&name::<A>("returns"))?;
        for entry in &map {
            let (key, value) = entry?;
            into.insert(tuple(&key), returned(&value));
        }
        Ok(())
    }

    /// What was counted in this sequence for a service and a reason.
    pub fn reason(&self, service: u32, reason: Reason) -> Result<Count> {
        let counters = self.data.reason(service, reason)?;
        let before = self.reasons.get(&(service, reason.index()));
        Ok(count(counters).since(before.copied().unwrap_or_default()))
    }

    /// What was counted in this sequence by service and number of the reason; zeroes are left out.
    pub fn reasons(&self) -> Result<BTreeMap<(u32, u32), Count>> {
        let mut counts = BTreeMap::new();
        for service in 0..world::SERVICES {
            for (reason, counters) in (0..).zip(self.data.reasons_of(service)?) {
                counts.insert((service, reason), count(counters));
            }
        }
        Ok(since(counts, &self.reasons))
    }

    /// What was counted in this sequence by backend; zeroes are left out.
    pub fn backends(&self) -> Result<BTreeMap<u32, Count>> {
        let counters = self.data.backends(world::BACKENDS)?;
        let counts = counters.into_iter().map(|counters| Count {
            packets: counters.packets(),
            bytes: counters.bytes(),
            connections: counters.connections(),
            resets: counters.resets(),
            refused: counters.refused(),
            drops: counters.drops(),
        });
        Ok(since((0..).zip(counts).collect(), &self.backends))
    }
}

/// Counters of reasons in the model's words.
fn count(counters: abi::Counters) -> Count {
    Count {
        packets: counters.packets(),
        bytes: counters.bytes(),
        connections: counters.connections(),
        ..Count::default()
    }
}

impl Count {
    /// What came since `before`.
    fn since(self, before: Self) -> Self {
        Self {
            packets: self.packets - before.packets,
            bytes: self.bytes - before.bytes,
            connections: self.connections - before.connections,
            resets: self.resets - before.resets,
            refused: self.refused - before.refused,
            drops: self.drops - before.drops,
        }
    }
}

/// What came since; zeroes are left out.
fn since<K: Ord>(now: BTreeMap<K, Count>, before: &BTreeMap<K, Count>) -> BTreeMap<K, Count> {
    let differences = now.into_iter().map(|(key, count)| {
        let count = count.since(before.get(&key).copied().unwrap_or_default());
        (key, count)
    });
    differences
        .filter(|(_, count)| *count != Count::default())
        .collect()
}

//! A program beside the model: the same tables in its maps, and what it left in them.

use std::{
    collections::BTreeMap,
    mem::offset_of,
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use anyhow::Result;
use aya::{
    Pod,
    maps::{MapError, lpm_trie::Key},
};
use lb_common::{
    abi::{
        self, Address, BackendState, FlowKey, Lease, MAGLEV_SIZE, MacKey, MaglevTable, Method,
        NatReturn, Node, NodeConfig, ReplyPort, ServiceKey, Uplink, UplinkKey, Vip,
        events::{Event, TraceEvent},
        layout::{MAPS, TypeLayout},
        sources::{SourceKey, SourceRule},
    },
    conntrack::FlowState,
    reason::{Reason, Verdict},
};

use super::{
    Count,
    tables::{Backend, Change, Flow, Port, Return, Service, State, Tables, Tuple},
    trial::{self, Entries},
    world,
};
use crate::{
    packet::{ROUTER_MAC, UPLINK},
    program::{Action, DataPlane, SkBuff},
};

/// A program that is the ingress pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ingress {
    /// `xdp_ingress`.
    Xdp,
    /// `tc_ingress`.
    Tc,
}

impl Ingress {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::Xdp, Self::Tc];

    /// The program's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp_ingress",
            Self::Tc => "tc_ingress",
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

/// A value as the layout of the ABI names its fields, without the ABI's own accessors.
struct Fields<'a> {
    layout: &'static TypeLayout,
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    /// A value of `map`.
    fn of(map: &str, bytes: &'a [u8]) -> Self {
        let layout = MAPS.iter().find(|layout| layout.name == map);
        let Some(layout) = layout else {
            unreachable!("{map} among the maps of the ABI");
        };
        Self {
            layout: &layout.value,
            bytes,
        }
    }

    /// Where a field is.
    fn place(&self, name: &str) -> Range<usize> {
        let field = self.layout.fields.iter().find(|field| field.name == name);
        let Some(field) = field else {
            unreachable!("{name} among the fields of {}", self.layout.name);
        };
        field.offset..field.offset + field.size
    }

    /// A field's number.
    fn number(&self, name: &str) -> u32 {
        let bytes = &self.bytes[self.place(name)];
        let mut wide = [0; 4];
        wide[..bytes.len()].copy_from_slice(bytes);
        u32::from_le_bytes(wide)
    }
}

/// A record of the trace, as far as it is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Number of the reason.
    pub reason: u32,
    /// The service.
    pub service: u32,
    /// Where the packet came in.
    pub ifindex: u32,
    /// Where it goes out, if that is elsewhere.
    pub new_ifindex: u32,
}

impl Record {
    fn read(bytes: &[u8]) -> Self {
        let number = |at: usize| {
            let field = bytes[at..].first_chunk().copied();
            field.map_or(u32::MAX, u32::from_ne_bytes)
        };
        Self {
            reason: number(offset_of!(TraceEvent, reason)),
            service: number(offset_of!(TraceEvent, service)),
            ifindex: number(offset_of!(TraceEvent, ifindex)),
            new_ifindex: number(offset_of!(TraceEvent, new_ifindex)),
        }
    }
}

/// Bytes of a `Flow`.
const FLOW: usize = size_of::<abi::Flow>();

fn flow(bytes: &[u8; FLOW]) -> Flow {
    let fields = Fields::of("flows4", bytes);
    let flag = |flag: u8| fields.number("flags") & u32::from(flag) != 0;
    let acked = (fields.number("cl_ack"), fields.number("cl_next"));
    Flow {
        backend: fields.number("backend"),
        last_seen: fields.number("last_seen"),
        acked: flag(abi::Flow::ACK_KNOWN).then_some(acked),
        nat_port: fields.number("nat_port") as u16,
        path: fields.number("path") as u16,
        state: FlowState::from_raw(fields.number("state") as u8),
        epoch: fields.number("epoch") as u16,
        answered: flag(abi::Flow::ANSWERED),
        repeated: flag(abi::Flow::REPEATED),
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
        fallback: [first, second],
        idle_seconds,
        source_rate: (rate, burst),
    } = *value;
    abi::Service::new(id, table, local_backend, local_port, false)
        .with_flags(flags)
        .with_fallback(first, second)
        .with_idle_seconds(idle_seconds)
        .with_source_rate(rate, burst)
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

impl Plane {
    /// Load the object for one of the pipeline's programs.
    pub fn load(ingress: Ingress) -> Result<Self> {
        let mut plane = Self {
            data: DataPlane::load(&[ingress.name(), "tc_egress"])?,
            ingress,
            tables: Tables::default(),
            reasons: BTreeMap::new(),
            backends: BTreeMap::new(),
        };
        plane.change(&Change::Limits(0, 0))?;
        Ok(plane)
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
        for backend in 0..world::BACKENDS {
            self.data.array("suspects")?.set(backend, 0_u32, 0)?;
        }
        self.data.forget_budget()?;
        self.records()?;
        self.refusals()?;
        self.reasons = BTreeMap::new();
        self.backends = BTreeMap::new();
        (self.reasons, self.backends) = (self.reasons()?, self.backends()?);
        Ok(())
    }

    fn forget<A: MapAddress>(&mut self) -> Result<()> {
        for map in ["flows", "half_flows"] {
            self.clear::<FlowKey<A>, abi::Flow>(&name::<A>(map))?;
        }
        for map in ["returns", "half_returns"] {
            self.clear::<FlowKey<A>, NatReturn<A>>(&name::<A>(map))?;
        }
        self.clear::<SourceKey<A>, u64>(&name::<A>("source_rates"))
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
            Change::Vip(addr, _) | Change::PeerAddr(addr, _) | Change::Source((_, addr, _), _) => {
                by_family!(addr, self.change_of(change))
            }
            Change::EvictFlow(tuple) | Change::EvictReturn(tuple) | Change::Age(tuple, _) => {
                by_family!(tuple.src.ip(), self.change_of(change))
            }
            Change::Hold(back, ..) => by_family!(back.src.ip(), self.change_of(change)),
            Change::Closed(addr, _) => {
                let vip = Change::Vip(*addr, self.tables.vips.get(addr).copied());
                by_family!(addr, self.change_of(&vip))
            }
            Change::Trace(_) => {
                for (addr, lease) in self.tables.vips.clone() {
                    let vip = Change::Vip(addr, Some(lease));
                    by_family!(addr, self.change_of(&vip))?;
                }
                Ok(())
            }
            Change::Limits(..) => self.write_facts(),
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
                self.put("uplinks", key, mac.map(Uplink::new))?;
                self.write_facts()
            }
            Change::PeerMac(mac, node) => {
                self.put("peer_macs", MacKey::new(*mac), node.map(Node::new))?;
                self.write_facts()
            }
            Change::Suspect(backend, suspect) => {
                let until = if *suspect { u32::MAX } else { 0 };
                Ok(self.data.array("suspects")?.set(*backend, until, 0)?)
            }
        }
    }

    /// The node's facts: limits, one of the uplinks, and a filter of peers.
    fn write_facts(&mut self) -> Result<()> {
        let Tables {
            limits: (new, adopted),
            uplinks,
            peer_macs,
            ..
        } = &self.tables;
        let facts = NodeConfig::new(0).with_limits(*new, *adopted);
        let mut facts = facts.with_peers(peer_macs.keys().copied());
        if let Some(((ifindex, tags), mac)) = uplinks.first_key_value() {
            facts = facts.with_uplink(*ifindex, *tags, *mac);
        }
        Ok(self.data.array("node")?.set(0, facts, 0)?)
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
                let (traced, closed) = (self.tables.traced, self.tables.closed.contains(addr));
                let vip = lease.map(|lease| Vip::new(lease).traced(traced).closed(closed));
                self.put(&name::<A>("vips"), A::of(*addr), vip)
            }
            Change::PeerAddr(addr, node) => {
                self.put(&name::<A>("peer_addrs"), A::of(*addr), node.map(Node::new))
            }
            Change::EvictFlow(tuple) => {
                let key = flow_key::<A>(tuple);
                self.put::<_, abi::Flow>(&name::<A>("flows"), key, None)?;
                self.put::<_, abi::Flow>(&name::<A>("half_flows"), key, None)
            }
            Change::EvictReturn(tuple) => {
                let key = flow_key::<A>(tuple);
                self.put::<_, NatReturn<A>>(&name::<A>("returns"), key, None)?;
                self.put::<_, NatReturn<A>>(&name::<A>("half_returns"), key, None)
            }
            Change::Age(tuple, seconds) => {
                self.age::<A>("flows", tuple, *seconds)?;
                self.age::<A>("half_flows", tuple, *seconds)
            }
            Change::Source((service, addr, bits), allows) => {
                let mut map = self.data.trie(&name::<A>("sources"))?;
                let bits = SourceKey::<A>::PREFIX + u32::from(*bits);
                let key = Key::new(bits, SourceKey::new(*service, A::of(*addr)));
                match allows {
                    Some(true) => map.insert(&key, SourceRule::ALLOW, 0)?,
                    Some(false) => map.insert(&key, SourceRule::DENY, 0)?,
                    None if map.get(&key, 0).is_ok() => map.remove(&key)?,
                    None => {}
                }
                Ok(())
            }
            Change::Hold(back, holder, backend) => {
                let epoch = self
                    .tables
                    .backends
                    .get(backend)
                    .map_or(0, |backend| backend.epoch);
                let now = super::seconds(trial::now_ns()?);
                let flow =
                    abi::Flow::new(*backend, back.dst.port(), 0, FlowState::Established, now);
                let key = flow_key::<A>(holder);
                self.put(&name::<A>("flows"), key, Some(flow.in_epoch(epoch)))?;
                let (client, vip_port) = (holder.src, holder.dst.port());
                let addr = A::of(client.ip());
                let entry =
                    NatReturn::new(addr, client.port(), vip_port, *backend, UPLINK, ROUTER_MAC);
                self.put(&name::<A>("returns"), flow_key::<A>(back), Some(entry))
            }
            Change::Maglev(..)
            | Change::Limits(..)
            | Change::Closed(..)
            | Change::Trace(_)
            | Change::Lease(..)
            | Change::Uplink(..)
            | Change::PeerMac(..)
            | Change::Suspect(..) => Ok(()),
        }
    }

    fn age<A: MapAddress>(&mut self, map: &str, tuple: &Tuple, seconds: u32) -> Result<()> {
        let (map, key) = (name::<A>(map), flow_key::<A>(tuple));
        let Some(mut bytes) = self.get::<_, [u8; FLOW]>(&map, key)? else {
            return Ok(());
        };
        let fields = Fields::of(&map, &bytes);
        let earlier = fields.number("last_seen").saturating_sub(seconds);
        let place = fields.place("last_seen");
        bytes[place].copy_from_slice(&earlier.to_ne_bytes());
        self.put(&map, key, Some(bytes))
    }

    /// A frame comes in.
    pub fn ingress(&self, frame: &[u8], ifindex: u32) -> Result<(Action, Vec<u8>)> {
        match self.ingress {
            Ingress::Xdp => self.data.xdp(frame, ifindex),
            Ingress::Tc => self.data.tc_ingress(frame, ifindex),
        }
    }

    /// Whether a program run takes a frame: for a socket buffer it wants all of the IP header.
    pub fn takes(&self, frame: &[u8]) -> bool {
        self.ingress == Ingress::Xdp || super::generate::is_buffer(frame)
    }

    /// A frame leaves.
    pub fn egress(&self, frame: &[u8]) -> Result<(Action, Vec<u8>)> {
        self.data.tc_egress(frame, SkBuff::default())
    }

    /// What the maps have for a key.
    pub fn entries(&mut self, key: &Tuple) -> Result<Entries> {
        by_family!(key.src.ip(), self.entries_of(key))
    }

    fn entries_of<A: MapAddress>(&mut self, key: &Tuple) -> Result<Entries> {
        let key = flow_key::<A>(key);
        let found = self.get(&name::<A>("flows"), key)?;
        let half = self.get(&name::<A>("half_flows"), key)?;
        let back = self.get(&name::<A>("returns"), key)?;
        let half_back = self.get(&name::<A>("half_returns"), key)?;
        Ok(Entries {
            flow: found.as_ref().map(flow),
            half_flow: half.as_ref().map(flow),
            returned: back.as_ref().map(returned::<A>),
            half_returned: half_back.as_ref().map(returned::<A>),
        })
    }

    /// All that the programs wrote.
    pub fn state(&mut self) -> Result<State> {
        let mut state = State {
            refusals: self.refusals()?,
            ..State::default()
        };
        for backend in 0..world::BACKENDS {
            let until = self.data.array("suspects")?.get(&backend, 0)?;
            state.suspects.insert(backend, until);
        }
        self.flows::<[u8; 4]>("flows", &mut state.flows)?;
        self.flows::<[u8; 16]>("flows", &mut state.flows)?;
        self.flows::<[u8; 4]>("half_flows", &mut state.half_flows)?;
        self.flows::<[u8; 16]>("half_flows", &mut state.half_flows)?;
        self.rates::<[u8; 4]>(&mut state.rates)?;
        self.rates::<[u8; 16]>(&mut state.rates)?;
        self.returns::<[u8; 4]>("returns", &mut state.returns)?;
        self.returns::<[u8; 16]>("returns", &mut state.returns)?;
        self.returns::<[u8; 4]>("half_returns", &mut state.half_returns)?;
        self.returns::<[u8; 16]>("half_returns", &mut state.half_returns)?;
        Ok(state)
    }

    fn flows<A: MapAddress>(&mut self, map: &str, all: &mut BTreeMap<Tuple, Flow>) -> Result<()> {
        let map = self.data.hash::<FlowKey<A>, [u8; FLOW]>(&name::<A>(map))?;
        for entry in &map {
            let (key, value) = entry?;
            all.insert(tuple(&key), flow(&value));
        }
        Ok(())
    }

    fn rates<A: MapAddress>(&mut self, all: &mut BTreeMap<(u32, IpAddr), u64>) -> Result<()> {
        let name = name::<A>("source_rates");
        let map = self.data.hash::<SourceKey<A>, u64>(&name)?;
        for entry in &map {
            let (key, due) = entry?;
            all.insert((key.service(), key.addr().into()), due);
        }
        Ok(())
    }

    fn returns<A: MapAddress>(
        &mut self,
        map: &str,
        all: &mut BTreeMap<Tuple, Return>,
    ) -> Result<()> {
        let map = self
            .data
            .hash::<FlowKey<A>, NatReturn<A>>(&name::<A>(map))?;
        for entry in &map {
            let (key, value) = entry?;
            all.insert(tuple(&key), returned(&value));
        }
        Ok(())
    }

    /// (service, backend) of each refusal that the controller was told of since the last call.
    fn refusals(&mut self) -> Result<Vec<(u32, u32)>> {
        let events = self.data.events()?;
        let refused = events
            .iter()
            .filter(|[kind, ..]| *kind == Event::REFUSED)
            .map(|[_, service, backend, _]| (*service, *backend));
        Ok(refused.collect())
    }

    /// What the trace says of the packets since the last call.
    pub fn records(&mut self) -> Result<Vec<Record>> {
        let records = self.data.records("trace_events")?;
        Ok(records.iter().map(|bytes| Record::read(bytes)).collect())
    }

    /// How the program says a verdict: a socket buffer has no way back through the interface that it
    /// came in by but a redirection.
    pub fn action(&self, verdict: Verdict) -> Action {
        match (self.ingress, verdict) {
            (Ingress::Tc, Verdict::Tx) => Action::Verdict(Verdict::Redirect),
            _ => Action::Verdict(verdict),
        }
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

//! What the data plane knows: tables that the controller writes, and those of the data plane itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use lb_common::{
    abi::{BackendState, Mac, Method},
    conntrack::FlowState,
};
use serde::{Deserialize, Serialize};

/// A transport address with its IP protocol.
pub type Port = (SocketAddr, u8);

/// A flow as it is on the wire in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tuple {
    /// Source.
    pub src: SocketAddr,
    /// Destination.
    pub dst: SocketAddr,
    /// IP protocol.
    pub proto: u8,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its id.
    pub id: u32,
    /// The Maglev table in force.
    pub table: u32,
    /// The backend on this node, 0 without.
    pub local_backend: u32,
    /// The port that it listens on.
    pub local_port: u16,
    /// See `lb_common::abi::Service`.
    pub flags: u16,
    /// Two usable backends on different nodes, 0 for none.
    pub fallback: [u16; 2],
    /// Seconds of silence that end a UDP flow.
    pub idle_seconds: u16,
    /// New flows that a source may make in a second (0: any number), and at once.
    #[serde(default)]
    pub source_rate: (u32, u32),
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its service.
    pub service: u32,
    /// The node that it is on, 0: one without xvip.
    pub node: u32,
    /// 1 local, 2 dsr, 3 nat.
    pub method: u8,
    /// 0 down, 1 up, 2 draining.
    pub state: u8,
    /// Counts how often its flows were to be reset.
    pub epoch: u16,
    /// Interface towards it, 0: unknown.
    pub ifindex: u32,
    /// Next hop.
    pub mac: Mac,
    /// VLAN tags towards it.
    pub tags: u32,
}

impl Backend {
    /// How packets reach it.
    pub(super) fn method(&self) -> Option<Method> {
        Method::from_raw(self.method)
    }

    /// What may be done with it.
    pub(super) fn state(&self) -> BackendState {
        BackendState::from_raw(self.state)
    }
}

/// A client's flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Its backend.
    pub backend: u32,
    /// Seconds of the coarse clock at the last packet.
    pub last_seen: u32,
    /// Highest SEG.ACK and SEG.SEQ + LEN of the client, once it has sent an ACK.
    pub acked: Option<(u32, u32)>,
    /// Source port towards a nat backend, else 0.
    pub nat_port: u16,
    /// Tag of the path that it comes by (nat).
    pub path: u16,
    /// State.
    pub state: FlowState,
    /// The backend's epoch when it began.
    pub epoch: u16,
    /// The backend has answered its SYN (nat).
    pub answered: bool,
    /// Its SYN was repeated.
    pub repeated: bool,
}

/// Where the replies of a nat flow go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Return {
    /// The client.
    pub client: SocketAddr,
    /// The service's port.
    pub vip_port: u16,
    /// The backend.
    pub backend: u32,
    /// Interface that the flow comes in by.
    pub ifindex: u32,
    /// VLAN tags of the client's frames.
    pub tags: u32,
    /// MAC that it comes from.
    pub mac: Mac,
}

/// What the controller writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Services by VIP:port.
    pub services: BTreeMap<Port, Service>,
    /// Maglev tables: backend ids that repeat from slot 0 on.
    pub maglev: BTreeMap<u32, Vec<u16>>,
    /// Backends by id.
    pub backends: BTreeMap<u32, Backend>,
    /// Backends that are reached by nat.
    pub nat_sources: BTreeSet<Port>,
    /// VIPs and their leases.
    pub vips: BTreeMap<IpAddr, u32>,
    /// VIPs of which this node takes nothing but what is for a service.
    pub closed: BTreeSet<IpAddr>,
    /// Leases that are valid.
    pub leases: BTreeSet<u32>,
    /// Own MACs by interface and VLAN tags.
    pub uplinks: BTreeMap<(u32, u32), Mac>,
    /// Peers' MACs.
    pub peer_macs: BTreeMap<Mac, u32>,
    /// Peers' addresses.
    pub peer_addrs: BTreeMap<IpAddr, u32>,
    /// VIP:backend port, and the port that its replies leave from.
    pub reply_ports: BTreeMap<Port, u16>,
    /// Rules of a service about sources: the prefix that is longest decides.
    pub sources: BTreeMap<(u32, IpAddr, u8), bool>,
    /// Entries that may be made in a second for new flows, and for adopted ones; 0: any number.
    pub limits: (u32, u32),
    /// Somebody traces packets to VIPs.
    pub traced: bool,
}

/// What the data plane writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Flows by (client, VIP).
    pub flows: BTreeMap<Tuple, Flow>,
    /// nat return entries by (backend, VIP:nat port).
    pub returns: BTreeMap<Tuple, Return>,
    /// Flows whose client has not acknowledged anything yet.
    pub half_flows: BTreeMap<Tuple, Flow>,
    /// nat return entries of those.
    pub half_returns: BTreeMap<Tuple, Return>,
    /// Until when backends are suspect, in seconds of the coarse clock.
    pub suspects: BTreeMap<u32, u32>,
    /// (service, backend) of each refusal that the controller was told of.
    pub refusals: Vec<(u32, u32)>,
    /// When the next new flow of a source of a service is due, in nanoseconds of the coarse clock.
    pub rates: BTreeMap<(u32, IpAddr), u64>,
    /// What the limits have been used up of.
    pub budget: Budget,
}

/// Entries made in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    second: u32,
    new_flows: u32,
    adopted: u32,
}

impl Budget {
    /// Whether one more entry may be made now.
    pub(super) fn take(&mut self, adopted: bool, limits: (u32, u32), now: u32) -> bool {
        if self.second != now {
            *self = Self {
                second: now,
                ..Self::default()
            };
        }
        let (used, limit) = if adopted {
            (&mut self.adopted, limits.1)
        } else {
            (&mut self.new_flows, limits.0)
        };
        *used += 1;
        limit == 0 || *used <= limit
    }
}

/// A change of the tables, by the controller or by time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// A service, or none any more.
    Service(Port, Option<Service>),
    /// A backend, or none any more.
    Backend(u32, Option<Backend>),
    /// The backends of a Maglev table's slots, over and over.
    Maglev(u32, Vec<u16>),
    /// A backend is reached by nat, or not.
    NatSource(Port, bool),
    /// A VIP and its lease, or no VIP.
    Vip(IpAddr, Option<u32>),
    /// A VIP is closed to what is for no service, or not.
    Closed(IpAddr, bool),
    /// A lease is valid for long, or not at all.
    Lease(u32, bool),
    /// The MAC of (interface, VLAN tags), or no uplink.
    Uplink((u32, u32), Option<Mac>),
    /// The peer of a MAC, or none.
    PeerMac(Mac, Option<u32>),
    /// The peer of an address, or none.
    PeerAddr(IpAddr, Option<u32>),
    /// The port for replies from VIP:backend port, or none.
    ReplyPort(Port, Option<u16>),
    /// A rule about (service, prefix, its length): allow, deny, or none.
    Source((u32, IpAddr, u8), Option<bool>),
    /// A backend is suspect for long, or not at all.
    Suspect(u32, bool),
    /// A flow is evicted, a half-open one too.
    EvictFlow(Tuple),
    /// A return entry is evicted, that of a half-open flow too.
    EvictReturn(Tuple),
    /// A flow's last packet was this many seconds earlier, a half-open one's too.
    Age(Tuple, u32),
    /// A return entry (and its port) is that of another flow, which has an entry, too; both of this
    /// backend.
    Hold(Tuple, Tuple, u32),
    /// Limits of entries for new and for adopted flows.
    Limits(u32, u32),
    /// Somebody traces packets to VIPs, or nobody.
    Trace(bool),
}

/// Put a value into a map, or remove it.
fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

/// Put an element into a set, or remove it.
fn toggle<K: Ord>(set: &mut BTreeSet<K>, key: K, present: bool) {
    if present {
        set.insert(key);
    } else {
        set.remove(&key);
    }
}

impl Tables {
    /// Carry out a change of the controller's.
    pub(super) fn change(&mut self, change: &Change) {
        match change.clone() {
            Change::Service(key, service) => set(&mut self.services, key, service),
            Change::Backend(id, backend) => set(&mut self.backends, id, backend),
            Change::Maglev(table, pattern) => set(&mut self.maglev, table, Some(pattern)),
            Change::NatSource(key, present) => toggle(&mut self.nat_sources, key, present),
            Change::Vip(addr, lease) => set(&mut self.vips, addr, lease),
            Change::Closed(addr, closed) => toggle(&mut self.closed, addr, closed),
            Change::Lease(index, valid) => toggle(&mut self.leases, index, valid),
            Change::Uplink(key, mac) => set(&mut self.uplinks, key, mac),
            Change::PeerMac(mac, node) => set(&mut self.peer_macs, mac, node),
            Change::PeerAddr(addr, node) => set(&mut self.peer_addrs, addr, node),
            Change::ReplyPort(key, port) => set(&mut self.reply_ports, key, port),
            Change::Source(rule, allows) => set(&mut self.sources, rule, allows),
            Change::Limits(new, adopted) => self.limits = (new, adopted),
            Change::Trace(traced) => self.traced = traced,
            Change::Suspect(..)
            | Change::Hold(..)
            | Change::EvictFlow(_)
            | Change::EvictReturn(_)
            | Change::Age(..) => {}
        }
    }

    /// The backend in `slot` of a Maglev table, 0 for none.
    pub(super) fn slot(&self, table: u32, slot: u32) -> u32 {
        let pattern = self.maglev.get(&table).map_or(&[][..], Vec::as_slice);
        match pattern.len() {
            0 => 0,
            length => u32::from(pattern[slot as usize % length]),
        }
    }

    /// What the rules of a service say of a source: that of the longest prefix, if there is one.
    pub(super) fn source_rule(&self, service: u32, source: IpAddr) -> Option<bool> {
        let rules = self.sources.iter();
        let fitting = rules.filter(|((of, prefix, bits), _)| {
            *of == service && IpNet::new_assert(*prefix, *bits).contains(&source)
        });
        fitting
            .max_by_key(|((_, _, bits), _)| *bits)
            .map(|(_, allows)| *allows)
    }

    /// Whether this node must keep silent about an address.
    pub(super) fn fenced(&self, addr: IpAddr) -> bool {
        let lease = self.vips.get(&addr);
        lease.is_some_and(|lease| *lease != 0 && !self.leases.contains(lease))
    }
}

impl State {
    /// Whether a backend refused a connection lately.
    pub(super) fn is_suspect(&self, backend: u32, now: u32) -> bool {
        self.suspects
            .get(&backend)
            .is_some_and(|until| now < *until)
    }

    /// Carry out a change that time makes, or a former owner.
    pub(super) fn change(&mut self, change: &Change, tables: &Tables, now: u32) {
        match change {
            Change::Hold(back, holder, backend) => {
                let epoch = tables
                    .backends
                    .get(backend)
                    .map_or(0, |backend| backend.epoch);
                let mut flow = Flow::held(*backend, epoch, now);
                flow.nat_port = back.dst.port();
                self.flows.insert(*holder, flow);
                let entry = Return::held(holder, *backend);
                self.returns.insert(*back, entry);
            }
            Change::EvictFlow(tuple) => {
                self.flows.remove(tuple);
                self.half_flows.remove(tuple);
            }
            Change::EvictReturn(tuple) => {
                self.returns.remove(tuple);
                self.half_returns.remove(tuple);
            }
            Change::Age(tuple, seconds) => {
                for map in [&mut self.flows, &mut self.half_flows] {
                    if let Some(flow) = map.get_mut(tuple) {
                        flow.last_seen = flow.last_seen.saturating_sub(*seconds);
                    }
                }
            }
            Change::Suspect(backend, suspect) => {
                let until = if *suspect { u32::MAX } else { 0 };
                self.suspects.insert(*backend, until);
            }
            _ => {}
        }
    }
}

/// The changes from one map to another.
fn map_changes<K: Ord + Clone, V: PartialEq + Clone>(
    from: &BTreeMap<K, V>,
    to: &BTreeMap<K, V>,
    change: impl Fn(K, Option<V>) -> Change,
) -> Vec<Change> {
    let gone = from.keys().filter(|key| !to.contains_key(key));
    let other = to
        .iter()
        .filter(|(key, value)| from.get(key) != Some(*value));
    let gone = gone.map(|key| change(key.clone(), None));
    let other = other.map(|(key, value)| change(key.clone(), Some(value.clone())));
    gone.chain(other).collect()
}

/// The changes from one set to another.
fn set_changes<K: Ord + Clone>(
    from: &BTreeSet<K>,
    to: &BTreeSet<K>,
    change: impl Fn(K, bool) -> Change,
) -> Vec<Change> {
    let different = from.symmetric_difference(to);
    different
        .map(|key| change(key.clone(), to.contains(key)))
        .collect()
}

impl Tables {
    /// The changes that make these tables the other ones.
    pub fn changes_to(&self, to: &Self) -> Vec<Change> {
        let empty_pattern =
            |table, pattern: Option<Vec<u16>>| Change::Maglev(table, pattern.unwrap_or_default());
        [
            map_changes(&self.services, &to.services, Change::Service),
            map_changes(&self.backends, &to.backends, Change::Backend),
            map_changes(&self.maglev, &to.maglev, empty_pattern),
            set_changes(&self.nat_sources, &to.nat_sources, Change::NatSource),
            map_changes(&self.vips, &to.vips, Change::Vip),
            set_changes(&self.closed, &to.closed, Change::Closed),
            set_changes(&self.leases, &to.leases, Change::Lease),
            map_changes(&self.uplinks, &to.uplinks, Change::Uplink),
            map_changes(&self.peer_macs, &to.peer_macs, Change::PeerMac),
            map_changes(&self.peer_addrs, &to.peer_addrs, Change::PeerAddr),
            map_changes(&self.reply_ports, &to.reply_ports, Change::ReplyPort),
            map_changes(&self.sources, &to.sources, Change::Source),
            if self.limits == to.limits {
                Vec::new()
            } else {
                vec![Change::Limits(to.limits.0, to.limits.1)]
            },
            if self.traced == to.traced {
                Vec::new()
            } else {
                vec![Change::Trace(to.traced)]
            },
        ]
        .concat()
    }
}

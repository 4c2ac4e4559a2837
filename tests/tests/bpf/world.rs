//! The world that a row's frames meet (services, backends, peers, leases in the program's maps),
//! and the rows themselves: what is set up, what arrives, what must come of it.

use std::{
    cell::Cell,
    marker::PhantomData,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::AsRawFd as _,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, PoisonError},
    thread::sleep,
    time::Duration,
};

use aya::{Pod, maps::MapError};
use lb_common::{
    abi::{
        Backend, BackendCounters, BackendState, Budget, ConnectOrigin, Counters, Flow, FlowKey,
        Lease, Mac, MacKey, MaglevTable, Method, NODE_SELF, NatReturn, Node, NodeConfig, ReplyPort,
        Service, ServiceKey, Suspect, Uplink, UplinkKey, Vip,
        layout::MAPS,
        sources::{SourceKey, SourceRate, SourceRule},
    },
    conntrack::FlowState,
    hash,
    headers::{IPPROTO_TCP, IPPROTO_UDP},
    reason::{Reason, Verdict},
};
use lb_tests::{
    netns::NetNs,
    packet::{
        BACKEND_PORT, CLIENT_PORT, EXTERNAL_MACS, Family, Frame, MASTER_MACS, OTHER_OWN_MAC,
        OTHER_UPLINK, OWN_MAC, ROUTER2_MAC, UPLINK, VIP_PORT, diff,
    },
    program::{Action, DataPlane, Run, SkBuff},
};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::socket::{Shutdown, shutdown},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

/// Backend on this node.
pub(crate) const LOCAL: u32 = 1;
/// Backend on master2, a peer.
pub(crate) const MASTER2: u32 = 2;
/// Backend on master3, a peer.
pub(crate) const MASTER3: u32 = 3;
/// Backend on a machine that runs no xvip.
pub(crate) const EXTERNAL1: u32 = 4;
/// Another one.
pub(crate) const EXTERNAL2: u32 = 5;
/// One past the last backend id that rows use.
const BACKENDS: u32 = 8;

/// Id of the service `VIP:VIP_PORT`.
pub(crate) const SERVICE: u32 = 1;
/// Its Maglev table.
pub(crate) const TABLE: u32 = 2 * SERVICE;

/// Bytes of the longest socket buffer that a program run takes: a page, and room for the kernel.
const LONGEST: usize = 3_600;

/// A program that is the ingress pipeline: every row is played with each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ingress {
    /// `xdp_ingress`.
    Xdp,
    /// `tc_ingress`.
    Tc,
}

impl Ingress {
    /// All of them.
    pub(crate) const ALL: [Self; 2] = [Self::Xdp, Self::Tc];

    /// Whether a program run takes `frame` for this program: a socket buffer must have all of the
    /// IP header that its Ethernet type announces, and fit into a page. (A program run makes no socket
    /// buffer with a VLAN tag beside the frame, or with a checksum that is left to the device: the
    /// scenarios send those.)
    pub(crate) fn takes(self, frame: &[u8]) -> bool {
        let header = match frame.get(12..14) {
            Some([0x08, 0x00]) => 20,
            Some([0x86, 0xdd]) => 40,
            _ => 0,
        };
        self == Self::Xdp || (frame.len() >= 14 + header && frame.len() <= LONGEST)
    }
}

/// What the program's maps hold, and the program.
pub(crate) struct World<F: Family> {
    plane: DataPlane,
    /// The program that frames come in to.
    ingress: Cell<Ingress>,
    /// The node's listeners.
    listeners: Vec<TcpListener>,
    service: Counters,
    backends: Vec<BackendCounters>,
    family: PhantomData<F>,
}

impl<F: Family> World<F> {
    /// The data plane with empty maps, its packet programs and that of socket lookups loaded.
    fn new() -> Self {
        Self::with(&["xdp_ingress", "tc_ingress", "tc_egress", "socket_lookup"])
    }

    /// The data plane with empty maps and these programs loaded.
    pub(crate) fn with(programs: &[&str]) -> Self {
        Self::of(DataPlane::load(programs).unwrap())
    }

    /// The world of this data plane, whose maps are empty.
    pub(crate) fn of(plane: DataPlane) -> Self {
        Self {
            plane,
            ingress: Cell::new(Ingress::Xdp),
            listeners: Vec::new(),
            service: Counters::default(),
            backends: Vec::new(),
            family: PhantomData,
        }
    }

    fn map(name: &str) -> String {
        format!("{name}{}", F::SUFFIX)
    }

    /// Forget everything; this node has its two uplinks, the VIP and two peers again.
    pub(crate) fn reset(&mut self) {
        self.clear::<ServiceKey<F::Addr>, Service>("services");
        self.clear::<FlowKey<F::Addr>, Flow>("flows");
        self.clear::<FlowKey<F::Addr>, Flow>("half_flows");
        self.clear::<FlowKey<F::Addr>, NatReturn<F::Addr>>("returns");
        self.clear::<FlowKey<F::Addr>, NatReturn<F::Addr>>("half_returns");
        self.clear::<SourceKey<F::Addr>, SourceRate>("source_rates");
        self.clear_sources();
        self.clear::<ServiceKey<F::Addr>, Node>("nat_sources");
        self.clear::<F::Addr, Vip>("vips");
        self.clear::<F::Addr, Node>("peer_addrs");
        self.clear::<ServiceKey<F::Addr>, ReplyPort>("reply_ports");
        self.clear::<u64, ConnectOrigin<F::Addr>>("connects");
        self.clear_hash::<MacKey, Node>("peer_macs");
        self.clear_hash::<UplinkKey, Uplink>("uplinks");
        for id in 0..BACKENDS {
            self.set_backend(id, Backend::EMPTY);
            self.put("suspects", id, Suspect::NONE);
        }
        self.plane.forget_listeners().unwrap();
        self.spend(0);
        self.fall_silent();
        self.plane.events().unwrap();
        for index in 0..4 {
            self.lease(index, Lease::NONE);
        }
        self.table(|_| 0);
        let facts = NodeConfig::new(0).with_uplink(UPLINK, 0, OWN_MAC);
        self.put(
            "node",
            0,
            facts.with_peers([MASTER_MACS[1], MASTER_MACS[2]]),
        );

        self.uplink(UPLINK, OWN_MAC);
        self.uplink(OTHER_UPLINK, OTHER_OWN_MAC);
        self.vip(F::VIP, 0);
        for (index, node) in [(1, 2), (2, 3)] {
            self.insert(
                "peer_macs",
                MacKey::new(MASTER_MACS[index]),
                Node::new(node),
            );
            self.insert(&Self::map("peer_addrs"), F::MASTERS[index], Node::new(node));
        }
        self.service = self.plane.service(SERVICE).unwrap();
        self.backends = self.plane.backends(BACKENDS).unwrap();
        self.plane.counted().unwrap();
    }

    fn clear_sources(&mut self) {
        let mut rules = self
            .plane
            .trie::<SourceKey<F::Addr>, SourceRule>(&Self::map("sources"))
            .unwrap();
        let keys: Vec<_> = rules.keys().collect::<Result<_, _>>().unwrap();
        for key in keys {
            rules.remove(&key).unwrap();
        }
    }

    fn clear<K: Pod, V: Pod>(&mut self, name: &str) {
        self.clear_hash::<K, V>(&Self::map(name));
    }

    fn clear_hash<K: Pod, V: Pod>(&mut self, name: &str) {
        let mut map = self.plane.hash::<K, V>(name).unwrap();
        let keys: Vec<K> = map.keys().collect::<Result<_, _>>().unwrap();
        for key in keys {
            map.remove(&key).unwrap();
        }
    }

    fn insert<K: Pod, V: Pod>(&mut self, name: &str, key: K, value: V) {
        let mut map = self.plane.hash::<K, V>(name).unwrap();
        map.insert(key, value, 0).unwrap();
    }

    fn get<K: Pod, V: Pod>(&mut self, name: &str, key: K) -> Option<V> {
        let map = self.plane.hash::<K, V>(name).unwrap();
        match map.get(&key, 0) {
            Ok(value) => Some(value),
            Err(MapError::KeyNotFound) => None,
            Err(error) => panic!("{name}: {error}"),
        }
    }

    fn put<V: Pod>(&mut self, name: &str, index: u32, value: V) {
        let mut map = self.plane.array::<V>(name).unwrap();
        map.set(index, value, 0).unwrap();
    }

    /// The data plane itself, to be changed.
    pub(crate) fn plane(&mut self) -> &mut DataPlane {
        &mut self.plane
    }

    /// The data plane itself, to be asked.
    pub(crate) fn plane_ref(&self) -> &DataPlane {
        &self.plane
    }

    /// The id of the network namespace whose listeners are this node's.
    pub(crate) fn node_netns(&mut self, cookie: u64) {
        self.put("node", 0, NodeConfig::new(cookie));
    }

    /// What is known of connections that were redirected.
    pub(crate) fn connects(&mut self) -> Vec<ConnectOrigin<F::Addr>> {
        let map = self
            .plane
            .hash::<u64, ConnectOrigin<F::Addr>>(&Self::map("connects"));
        let entries: Result<Vec<_>, _> = map.unwrap().iter().collect();
        entries
            .unwrap()
            .into_iter()
            .map(|(_, origin)| origin)
            .collect()
    }

    /// Interface `ifindex` has MAC `mac`.
    pub(crate) fn uplink(&mut self, ifindex: u32, mac: Mac) {
        self.vlan(ifindex, 0, mac);
    }

    /// The VLAN with these tags (see [`tags`]) on interface `ifindex` is an uplink with MAC `mac`.
    pub(crate) fn vlan(&mut self, ifindex: u32, tags: u32, mac: Mac) {
        self.insert("uplinks", UplinkKey::new(ifindex, tags), Uplink::new(mac));
    }

    /// Interface `ifindex` is no uplink.
    pub(crate) fn no_uplink(&mut self, ifindex: u32) {
        let mut map = self.plane.hash::<UplinkKey, Uplink>("uplinks").unwrap();
        map.remove(&UplinkKey::new(ifindex, 0)).unwrap();
        self.put("node", 0, NodeConfig::new(0));
    }

    /// The MACs of the peers are not known.
    pub(crate) fn forget_peer_macs(&mut self) {
        self.clear_hash::<MacKey, Node>("peer_macs");
    }

    /// `addr` is a VIP fenced by lease `lease` (0: unmanaged).
    pub(crate) fn vip(&mut self, addr: F::Addr, lease: u32) {
        self.write_vip(addr, Vip::new(lease));
    }

    /// `addr` is a VIP.
    pub(crate) fn write_vip(&mut self, addr: F::Addr, vip: Vip) {
        self.insert(&Self::map("vips"), addr, vip);
    }

    /// Write a lease.
    pub(crate) fn lease(&mut self, index: u32, lease: Lease) {
        self.put("leases", index, lease);
    }

    /// Write a lease that ends `rest` from now; none is left of a lease of no time.
    pub(crate) fn lease_for(&mut self, index: u32, rest: Duration) {
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap();
        let deadline = (Duration::from(now) + rest).as_nanos();
        self.lease(index, Lease::until(deadline.try_into().unwrap()));
    }

    /// Backend `id` as a controller would describe it.
    pub(crate) fn described(id: u32, method: Method) -> Backend<F::Addr> {
        let (addr, node, mac) = match id {
            LOCAL => (F::MASTERS[0], NODE_SELF, OWN_MAC),
            MASTER2 | MASTER3 => (
                F::MASTERS[id as usize - 1],
                id,
                MASTER_MACS[id as usize - 1],
            ),
            _ => (
                F::EXTERNALS[id as usize - 4],
                0,
                EXTERNAL_MACS[id as usize - 4],
            ),
        };
        let backend = Backend::new(addr, BACKEND_PORT, SERVICE, node, method, BackendState::Up);
        backend.via(UPLINK, mac)
    }

    fn method(id: u32) -> Method {
        match id {
            LOCAL => Method::Local,
            MASTER2 | MASTER3 => Method::Dsr,
            _ => Method::Nat,
        }
    }

    /// The service has these backends, all up, in alternating Maglev slots.
    pub(crate) fn service(&mut self, backends: &[u32]) {
        for id in backends {
            self.set_backend(*id, Self::described(*id, Self::method(*id)));
            if Self::method(*id) == Method::Nat {
                let source = ServiceKey::new(
                    Self::described(*id, Method::Nat).addr(),
                    BACKEND_PORT,
                    IPPROTO_TCP,
                );
                self.insert(&Self::map("nat_sources"), source, Node::new(0));
            }
        }
        let local = backends.contains(&LOCAL);
        self.write_service(
            VIP_PORT,
            local.then_some(BACKEND_PORT),
            !backends.is_empty(),
        );
        self.maglev(backends);
    }

    /// The service, with or without a backend on this node.
    pub(crate) fn write_service(&mut self, port: u16, local_port: Option<u16>, usable: bool) {
        let service = Service::new(
            SERVICE,
            TABLE,
            local_port.map_or(0, |_| LOCAL),
            local_port.unwrap_or(0),
            usable,
        );
        let key = ServiceKey::new(F::VIP, port, IPPROTO_TCP);
        self.insert(&Self::map("services"), key, service);
    }

    /// The UDP service with these backends, whose flows end after `idle` seconds.
    pub(crate) fn udp_service(&mut self, backends: &[u32], idle: u16) {
        self.service(backends);
        for id in backends
            .iter()
            .filter(|id| Self::method(**id) == Method::Nat)
        {
            let addr = Self::described(*id, Method::Nat).addr();
            let source = ServiceKey::new(addr, BACKEND_PORT, IPPROTO_UDP);
            self.insert(&Self::map("nat_sources"), source, Node::new(0));
        }
        let local = backends.contains(&LOCAL);
        let port = if local { BACKEND_PORT } else { 0 };
        let local = if local { LOCAL } else { 0 };
        let service = Service::new(SERVICE, TABLE, local, port, !backends.is_empty());
        let key = ServiceKey::new(F::VIP, VIP_PORT, IPPROTO_UDP);
        let value = service.with_idle_seconds(idle);
        self.insert(&Self::map("services"), key, value);
    }

    /// The UDP service's local backend listens on `port`.
    pub(crate) fn change_udp_service(&mut self, port: u16) {
        let service = Service::new(SERVICE, TABLE, LOCAL, port, true);
        let key = ServiceKey::new(F::VIP, VIP_PORT, IPPROTO_UDP);
        self.insert(&Self::map("services"), key, service);
    }

    /// UDP replies from `VIP:backend_port` leave with `port`.
    pub(crate) fn udp_reply_port(&mut self, backend_port: u16, port: u16) {
        let key = ServiceKey::new(F::VIP, backend_port, IPPROTO_UDP);
        let value = ReplyPort::new(port).of_service(SERVICE as u16);
        self.insert(&Self::map("reply_ports"), key, value);
    }

    /// Change what is written of the service.
    pub(crate) fn change_service(&mut self, change: impl FnOnce(Service) -> Service) {
        let key = ServiceKey::new(F::VIP, VIP_PORT, IPPROTO_TCP);
        let name = Self::map("services");
        let service = self.get(&name, key).expect("the service is there");
        self.insert(&name, key, change(service));
    }

    /// The service's rule for sources like `addr` in its first `bits` bits.
    pub(crate) fn source(&mut self, addr: F::Addr, bits: u32, rule: SourceRule) {
        let key = aya::maps::lpm_trie::Key::new(
            SourceKey::<F::Addr>::PREFIX + bits,
            SourceKey::new(SERVICE, addr),
        );
        let mut rules = self.plane.trie(&Self::map("sources")).unwrap();
        rules.insert(&key, rule, 0).unwrap();
    }

    /// A service of another id on `port` of the VIP.
    pub(crate) fn other_service(&mut self, id: u32, port: u16) {
        let key = ServiceKey::new(F::VIP, port, IPPROTO_TCP);
        let service = Service::new(id, 0, 0, 0, false);
        self.insert(&Self::map("services"), key, service);
    }

    /// Replies from `VIP:backend_port` leave with `port`.
    pub(crate) fn reply_port(&mut self, backend_port: u16, port: u16) {
        let key = ServiceKey::new(F::VIP, backend_port, IPPROTO_TCP);
        let value = ReplyPort::new(port).of_service(SERVICE as u16);
        self.insert(&Self::map("reply_ports"), key, value);
    }

    /// Write a backend.
    pub(crate) fn set_backend(&mut self, id: u32, backend: Backend<F::Addr>) {
        self.put(&Self::map("backends"), id, backend);
    }

    /// A backend has a method that no program knows.
    pub(crate) fn set_unknown_method(&mut self, id: u32) {
        let map = Self::map("backends");
        let layout = MAPS.iter().find(|layout| layout.name == map).unwrap();
        let method = layout
            .value
            .fields
            .iter()
            .find(|field| field.name == "method");
        let at = method.unwrap().offset;
        if layout.value.size == 32 {
            self.patch::<32>(&map, id, at);
        } else {
            self.patch::<44>(&map, id, at);
        }
    }

    fn patch<const N: usize>(&mut self, map: &str, id: u32, at: usize) {
        let mut array = self.plane.array::<[u8; N]>(map).unwrap();
        let mut bytes = array.get(&id, 0).unwrap();
        bytes[at] = 0xff;
        array.set(id, bytes, 0).unwrap();
    }

    /// Change the health of a backend.
    pub(crate) fn set_state(&mut self, id: u32, state: BackendState) {
        let old = self.backend(id);
        let method = Self::method(id);
        let new = Backend::new(old.addr(), old.port(), SERVICE, old.node(), method, state);
        let new = new.in_epoch(old.epoch()).tagged(old.tags());
        self.set_backend(id, new.via(old.ifindex(), old.mac()));
    }

    /// A backend went down, and its flows are to be reset.
    pub(crate) fn kill(&mut self, id: u32) {
        self.set_state(id, BackendState::Down);
        let dead = self.backend(id);
        self.set_backend(id, dead.in_epoch(dead.epoch() + 1));
    }

    /// A backend as it is written now.
    pub(crate) fn backend(&mut self, id: u32) -> Backend<F::Addr> {
        let map = self.plane.array(&Self::map("backends")).unwrap();
        map.get(&id, 0).unwrap()
    }

    /// Whether a backend refused a connection lately.
    pub(crate) fn is_suspect(&mut self, id: u32) -> bool {
        let map = self.plane.array::<Suspect>("suspects").unwrap();
        map.get(&id, 0).unwrap().is_suspect(now())
    }

    /// What is to be known of a backend that refused a connection.
    pub(crate) fn doubt(&mut self, id: u32, suspect: Suspect) {
        self.put("suspects", id, suspect);
    }

    /// (kind, service, backend) of what the controller was told since the last call.
    pub(crate) fn events(&mut self) -> Vec<(u32, u32, u32)> {
        let events = self.plane.events().unwrap();
        events
            .iter()
            .map(|event| (event[0], event[1], event[2]))
            .collect()
    }

    /// Reach a backend through another interface (0: not resolved).
    pub(crate) fn set_interface(&mut self, id: u32, ifindex: u32) {
        let backend = self.backend(id);
        self.set_backend(id, backend.via(ifindex, backend.mac()));
    }

    /// Reach a backend with these VLAN tags.
    pub(crate) fn set_tags(&mut self, id: u32, tags: u32) {
        let backend = self.backend(id);
        self.set_backend(id, backend.tagged(tags));
    }

    /// Whoever is a client may make this many entries in this second: all of this CPU's.
    pub(crate) fn limits(&mut self, new_flows: u32, adoptions: u32) {
        let node = NodeConfig::new(0).with_limits(new_flows, adoptions);
        self.put("node", 0, node);
    }

    /// This many entries were made in this second.
    pub(crate) fn spend(&mut self, entries: u32) {
        let mut budget = Budget::default();
        for _ in 0..entries {
            budget.take_new_flow(now(), 0);
            budget.take_adoption(now(), 0);
        }
        self.plane.put_on_every_cpu("budget", 0, budget).unwrap();
    }

    /// Listen on `port`, whatever the address.
    pub(crate) fn listen(&mut self, port: u16) {
        let any: IpAddr = match F::VIP.into() {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        self.listen_on(any, port);
    }

    /// Listen on `port` of one address.
    pub(crate) fn listen_on(&mut self, addr: IpAddr, port: u16) {
        let listener = TcpListener::bind(SocketAddr::new(addr, port)).unwrap();
        self.listeners.push(listener);
    }

    /// Nobody listens. (A process that another test starts has a copy of each listener for a moment:
    /// closing this one would not end it.)
    pub(crate) fn fall_silent(&mut self) {
        for listener in self.listeners.drain(..) {
            shutdown(listener.as_raw_fd(), Shutdown::Both).unwrap();
        }
    }

    /// Alternating Maglev slots for these backends.
    pub(crate) fn maglev(&mut self, backends: &[u32]) {
        let backends = backends.to_vec();
        self.table(|slot| {
            let turn = slot as usize % backends.len().max(1);
            backends.get(turn).copied().unwrap_or(0)
        });
    }

    /// The slot of the client's flow leads to `first`, every other one to `others`.
    pub(crate) fn client_slot(&mut self, client: F::Addr, first: u32, others: u32) {
        let own = hash::slot(hash::flow_hash(&client, CLIENT_PORT));
        self.table(|slot| if slot == own { first } else { others });
    }

    /// Fill the Maglev table.
    pub(crate) fn table(&mut self, backend: impl Fn(u32) -> u32) {
        let slots = (0..lb_common::abi::MAGLEV_SIZE).map(|slot| backend(slot) as u16);
        self.put("maglev", TABLE, MaglevTable::from_slots(slots));
    }

    /// The conntrack entry of a frame's flow.
    pub(crate) fn flow(&mut self, frame: &Frame<F>) -> Option<Flow> {
        self.get(&Self::map("flows"), frame.key())
    }

    /// The entry of a frame's flow that is half open.
    pub(crate) fn half_flow(&mut self, frame: &Frame<F>) -> Option<Flow> {
        self.get(&Self::map("half_flows"), frame.key())
    }

    fn count<K: Pod, V: Pod>(&mut self, map: &str) -> usize {
        let map = self.plane.hash::<K, V>(&Self::map(map));
        map.unwrap().keys().count()
    }

    /// Number of conntrack entries: established flows, half-open ones.
    pub(crate) fn flows(&mut self) -> (usize, usize) {
        (
            self.count::<FlowKey<F::Addr>, Flow>("flows"),
            self.count::<FlowKey<F::Addr>, Flow>("half_flows"),
        )
    }

    /// Forget the conntrack entry of a frame's flow.
    pub(crate) fn evict(&mut self, frame: &Frame<F>) {
        for map in ["flows", "half_flows"] {
            let mut map = self
                .plane
                .hash::<FlowKey<F::Addr>, Flow>(&Self::map(map))
                .unwrap();
            // It is in one of them.
            let _ = map.remove(&frame.key());
        }
    }

    /// The established flow of a frame has been silent for this many seconds.
    pub(crate) fn age(&mut self, frame: &Frame<F>, seconds: u32) {
        for map in ["flows", "half_flows"] {
            let map = Self::map(map);
            if let Some(flow) = self.get::<_, Flow>(&map, frame.key()) {
                let seen = ago(seconds);
                let aged = Flow::new(
                    flow.backend(),
                    flow.nat_port(),
                    flow.path(),
                    flow.state(),
                    seen,
                );
                self.insert(&map, frame.key(), aged.in_epoch(flow.epoch()));
            }
        }
    }

    /// Another client's UDP flow has `nat_port` towards `backend`. Returns its return entry.
    pub(crate) fn udp_holder(&mut self, backend: u32, nat_port: u16) -> NatReturn<F::Addr> {
        let addr = Self::described(backend, Method::Nat).addr();
        let back = FlowKey::new(addr, BACKEND_PORT, F::VIP, nat_port, IPPROTO_UDP);
        let entry = NatReturn::new(F::NOT_VIP, nat_port, VIP_PORT, backend, UPLINK, ROUTER2_MAC);
        let mut half = self
            .plane
            .hash::<FlowKey<F::Addr>, NatReturn<F::Addr>>(&Self::map("half_returns"))
            .unwrap();
        half.remove(&back).unwrap();
        self.insert(&Self::map("returns"), back, entry);
        let flow = Flow::new(backend, nat_port, 0, FlowState::Udp, now());
        let key = FlowKey::new(F::NOT_VIP, nat_port, F::VIP, VIP_PORT, IPPROTO_UDP);
        self.insert(&Self::map("flows"), key, flow);
        entry
    }

    /// Whether a UDP flow has a return entry: an established one, a half-open one.
    pub(crate) fn udp_return(&mut self, backend: u32, nat_port: u16) -> (bool, bool) {
        let addr = Self::described(backend, Method::Nat).addr();
        let key = FlowKey::new(addr, BACKEND_PORT, F::VIP, nat_port, IPPROTO_UDP);
        (
            self.get::<_, NatReturn<F::Addr>>(&Self::map("returns"), key)
                .is_some(),
            self.get::<_, NatReturn<F::Addr>>(&Self::map("half_returns"), key)
                .is_some(),
        )
    }

    fn return_key(backend: u32, nat_port: u16) -> FlowKey<F::Addr> {
        let addr = Self::described(backend, Method::Nat).addr();
        FlowKey::new(addr, BACKEND_PORT, F::VIP, nat_port, IPPROTO_TCP)
    }

    /// The return entry of `backend` and `nat_port`.
    pub(crate) fn nat_return(&mut self, backend: u32, nat_port: u16) -> Option<NatReturn<F::Addr>> {
        self.get(&Self::map("returns"), Self::return_key(backend, nat_port))
    }

    /// The return entry of `backend` and `nat_port` whose flow is half open.
    pub(crate) fn half_return(
        &mut self,
        backend: u32,
        nat_port: u16,
    ) -> Option<NatReturn<F::Addr>> {
        let key = Self::return_key(backend, nat_port);
        self.get(&Self::map("half_returns"), key)
    }

    /// Number of return entries: of established flows, of half-open ones.
    pub(crate) fn nat_returns(&mut self) -> (usize, usize) {
        (
            self.count::<FlowKey<F::Addr>, NatReturn<F::Addr>>("returns"),
            self.count::<FlowKey<F::Addr>, NatReturn<F::Addr>>("half_returns"),
        )
    }

    /// Write a return entry.
    pub(crate) fn set_nat_return(
        &mut self,
        backend: u32,
        nat_port: u16,
        entry: NatReturn<F::Addr>,
    ) {
        let key = Self::return_key(backend, nat_port);
        self.insert(&Self::map("returns"), key, entry);
    }

    /// Forget the return entry of a half-open flow.
    pub(crate) fn forget_nat_return(&mut self, backend: u32, nat_port: u16) {
        let mut map = self
            .plane
            .hash::<FlowKey<F::Addr>, NatReturn<F::Addr>>(&Self::map("half_returns"))
            .unwrap();
        map.remove(&Self::return_key(backend, nat_port)).unwrap();
    }

    /// Another client's flow has `nat_port` towards `backend`, is in a state and has been silent for
    /// some seconds. Returns its return entry.
    pub(crate) fn hold_nat_port(
        &mut self,
        backend: u32,
        nat_port: u16,
        (state, age): (FlowState, u32),
    ) -> NatReturn<F::Addr> {
        let entry = NatReturn::new(F::NOT_VIP, nat_port, VIP_PORT, backend, UPLINK, ROUTER2_MAC);
        self.set_nat_return(backend, nat_port, entry);
        let flow = Flow::new(backend, nat_port, 0, state, ago(age));
        self.insert(&Self::map("flows"), Self::holder(nat_port), flow);
        entry
    }

    /// The key of [`World::hold_nat_port`]'s flow.
    fn holder(nat_port: u16) -> FlowKey<F::Addr> {
        FlowKey::new(F::NOT_VIP, nat_port, F::VIP, VIP_PORT, IPPROTO_TCP)
    }

    /// The conntrack entry of [`World::hold_nat_port`]'s flow.
    pub(crate) fn nat_holder(&mut self, nat_port: u16) -> Option<Flow> {
        self.get(&Self::map("flows"), Self::holder(nat_port))
    }

    /// (packets, bytes, connections) of the service in this row.
    pub(crate) fn service_counters(&self) -> (u64, u64, u64) {
        let (now, before) = (self.plane.service(SERVICE).unwrap(), self.service);
        (
            now.packets() - before.packets(),
            now.bytes() - before.bytes(),
            now.connections() - before.connections(),
        )
    }

    /// (segments that were answered with RST in its stead, refused connections, dropped packets) of a
    /// backend in this row.
    pub(crate) fn backend_failures(&self, id: u32) -> (u64, u64, u64) {
        let now = self.plane.backends(BACKENDS).unwrap();
        let (now, before) = (now[id as usize], self.backends[id as usize]);
        (
            now.resets() - before.resets(),
            now.refused() - before.refused(),
            now.drops() - before.drops(),
        )
    }

    /// (packets, bytes, connections) of a backend in this row.
    pub(crate) fn backend_counters(&self, id: u32) -> (u64, u64, u64) {
        let now = self.plane.backends(BACKENDS).unwrap();
        let (now, before) = (now[id as usize], self.backends[id as usize]);
        (
            now.packets() - before.packets(),
            now.bytes() - before.bytes(),
            now.connections() - before.connections(),
        )
    }

    /// The program that frames come in to from here on.
    pub(crate) fn comes_in_by(&self, ingress: Ingress) {
        self.ingress.set(ingress);
    }

    /// Whether a program run takes this frame.
    pub(crate) fn takes(&self, frame: &[u8]) -> bool {
        self.ingress.get().takes(frame)
    }

    /// Run the ingress pipeline.
    pub(crate) fn run(&self, frame: &[u8], ifindex: u32) -> Run {
        let ran = match self.ingress.get() {
            Ingress::Xdp => self.plane.xdp(frame, ifindex),
            Ingress::Tc => self.plane.tc_ingress(frame, ifindex),
        };
        self.judged(ran.unwrap())
    }

    /// Run `tc_ingress` on a socket buffer with these fields.
    fn run_buffer(&self, frame: &[u8], buffer: SkBuff) -> Run {
        self.judged(self.plane.tc_ingress_buffer(frame, buffer).unwrap())
    }

    fn judged(&self, (action, frame): (Action, Vec<u8>)) -> Run {
        let counted = self.plane.counted().unwrap();
        // A socket buffer leaves by a redirection, also through the interface that it came in by.
        let back = counted
            .first()
            .is_some_and(|(reason, ..)| reason.verdict() == Verdict::Tx);
        let redirected = Action::Verdict(Verdict::Redirect);
        let action = match self.ingress.get() {
            Ingress::Tc if back && action == redirected => Action::Verdict(Verdict::Tx),
            _ => action,
        };
        Run {
            action,
            frame,
            counted,
        }
    }

    /// Run `tc_egress`.
    pub(crate) fn tc(&self, frame: &[u8], buffer: SkBuff) -> Run {
        self.plane.run_tc(frame, buffer).unwrap()
    }
}

type Deed<F> = Box<dyn Fn(&mut World<F>) + Send + Sync>;

/// Where a frame meets the programs.
#[derive(Clone, Copy, Debug)]
enum Hook {
    Ingress {
        ifindex: u32,
    },
    /// For `tc_ingress` only.
    Buffer(SkBuff),
    Egress(SkBuff),
}

enum Step<F: Family> {
    Do(Deed<F>),
    Run {
        hook: Hook,
        frame: Vec<u8>,
        reason: Reason,
        output: Vec<u8>,
    },
}

/// What a row may send or expect: a frame of its family, or any bytes.
pub(crate) trait Bytes<F> {
    /// The bytes.
    fn bytes(self) -> Vec<u8>;
}

impl<F: Family> Bytes<F> for Frame<F> {
    fn bytes(self) -> Vec<u8> {
        self.emit()
    }
}

impl<F: Family> Bytes<F> for Vec<u8> {
    fn bytes(self) -> Vec<u8> {
        self
    }
}

/// One row of a table: frames that meet a world, each with the reason and the bytes that must
/// come of it. The verdict is the reason's own.
pub(crate) struct Row<F: Family> {
    name: String,
    steps: Vec<Step<F>>,
}

/// A row without steps yet.
pub(crate) fn row<F: Family>(name: impl Into<String>) -> Row<F> {
    Row {
        name: name.into(),
        steps: Vec::new(),
    }
}

impl<F: Family> Row<F> {
    /// Set the world up.
    #[must_use]
    pub(crate) fn given(mut self, deed: impl Fn(&mut World<F>) + Send + Sync + 'static) -> Self {
        self.steps.push(Step::Do(Box::new(deed)));
        self
    }

    /// Change or check the world.
    #[must_use]
    pub(crate) fn then(self, deed: impl Fn(&mut World<F>) + Send + Sync + 'static) -> Self {
        self.given(deed)
    }

    fn run(mut self, hook: Hook, frame: Vec<u8>, reason: Reason, output: Vec<u8>) -> Self {
        self.steps.push(Step::Run {
            hook,
            frame,
            reason,
            output,
        });
        self
    }

    /// `frame` comes in; `output` comes of it.
    #[must_use]
    pub(crate) fn ingress(
        self,
        frame: impl Bytes<F>,
        reason: Reason,
        output: impl Bytes<F>,
    ) -> Self {
        let hook = Hook::Ingress { ifindex: UPLINK };
        self.run(hook, frame.bytes(), reason, output.bytes())
    }

    /// `frame` comes in and stays as it is.
    #[must_use]
    pub(crate) fn ingress_same(self, frame: impl Bytes<F>, reason: Reason) -> Self {
        let frame = frame.bytes();
        self.ingress(frame.clone(), reason, frame)
    }

    /// `frame` comes in by the other uplink.
    #[must_use]
    pub(crate) fn ingress_other_uplink(
        self,
        frame: impl Bytes<F>,
        reason: Reason,
        output: impl Bytes<F>,
    ) -> Self {
        let hook = Hook::Ingress {
            ifindex: OTHER_UPLINK,
        };
        self.run(hook, frame.bytes(), reason, output.bytes())
    }

    /// `frame` comes in in a socket buffer with these fields. XDP has no such thing: there the step is
    /// left out.
    #[must_use]
    pub(crate) fn ingress_buffer(
        self,
        buffer: SkBuff,
        frame: impl Bytes<F>,
        reason: Reason,
        output: impl Bytes<F>,
    ) -> Self {
        let buffer = SkBuff {
            ifindex: UPLINK,
            ..buffer
        };
        self.run(Hook::Buffer(buffer), frame.bytes(), reason, output.bytes())
    }

    /// `frame` leaves this node; `output` comes of it.
    #[must_use]
    pub(crate) fn egress(
        self,
        frame: impl Bytes<F>,
        reason: Reason,
        output: impl Bytes<F>,
    ) -> Self {
        let hook = Hook::Egress(SkBuff::default());
        self.run(hook, frame.bytes(), reason, output.bytes())
    }

    /// `frame` leaves this node as it is, or not at all.
    #[must_use]
    pub(crate) fn egress_same(self, frame: impl Bytes<F>, reason: Reason) -> Self {
        let frame = frame.bytes();
        self.egress(frame.clone(), reason, frame)
    }

    /// `frame` leaves this node in a socket buffer with these fields.
    #[must_use]
    pub(crate) fn egress_buffer(
        self,
        buffer: SkBuff,
        frame: impl Bytes<F>,
        reason: Reason,
        output: impl Bytes<F>,
    ) -> Self {
        self.run(Hook::Egress(buffer), frame.bytes(), reason, output.bytes())
    }

    /// The reasons that this row produces.
    pub(crate) fn reasons(&self) -> impl Iterator<Item = Reason> {
        self.steps.iter().filter_map(|step| match step {
            Step::Run { reason, .. } => Some(*reason),
            Step::Do(_) => None,
        })
    }

    /// The frames that it sends.
    pub(crate) fn frames(&self) -> impl Iterator<Item = Vec<u8>> {
        self.steps.iter().filter_map(|step| match step {
            Step::Run { frame, .. } => Some(frame.clone()),
            Step::Do(_) => None,
        })
    }

    fn play(&self, world: &mut World<F>) {
        world.reset();
        for port in [BACKEND_PORT, VIP_PORT] {
            world.listen(port);
        }
        for (number, step) in self.steps.iter().enumerate() {
            match step {
                Step::Do(deed) => deed(world),
                Step::Run {
                    hook,
                    frame,
                    reason,
                    output,
                } => {
                    let run = match hook {
                        Hook::Ingress { .. } if !world.takes(frame) => continue,
                        Hook::Buffer(_) if world.ingress.get() == Ingress::Xdp => continue,
                        Hook::Buffer(buffer) => world.run_buffer(frame, *buffer),
                        Hook::Ingress { ifindex } => world.run(frame, *ifindex),
                        Hook::Egress(buffer) => world.tc(frame, *buffer),
                    };
                    if let Some(failure) = compare(&run, *reason, frame.len(), output) {
                        panic!("step {number}:\n{failure}");
                    }
                }
            }
        }
    }
}

/// What is wrong with a run, if anything.
fn compare(run: &Run, reason: Reason, length: usize, output: &[u8]) -> Option<String> {
    let mut lines = Vec::new();
    if !run.is(reason, length) {
        lines.push(format!(
            "  expected {:?} for {reason:?} ({length} bytes), got {:?} for {:?}",
            Action::Verdict(reason.verdict()),
            run.action,
            run.counted
        ));
    }
    lines.extend(diff(output, &run.frame));
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// VLAN tags as the uplinks' keys have them; an inner one of 0 is none.
pub(crate) fn tags(outer: u16, inner: u16) -> u32 {
    u32::from(outer) | u32::from(inner) << 16
}

/// Seconds of the clock that the programs go by.
pub(crate) fn now() -> u32 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).unwrap();
    u32::try_from(now.tv_sec()).unwrap()
}

/// That many seconds before [`now`]. A machine that has just started has no such past: for a short one
/// this waits, a longer one begins with the machine.
pub(crate) fn ago(seconds: u32) -> u32 {
    const WAITED_FOR: u32 = 120;
    if seconds <= WAITED_FOR {
        sleep(Duration::from_secs(seconds.saturating_sub(now()).into()));
    }
    now().saturating_sub(seconds)
}

/// Play every row with each program in a network namespace of its own, which is a node with
/// listeners; fails with the names of all that failed.
pub(crate) fn play<F: Family>(rows: &[Row<F>]) {
    let namespace = NetNs::new("rows").unwrap();
    let add = format!("link add up1 index {OTHER_UPLINK} type veth peer name up2");
    namespace.ip(&add).unwrap();
    let address: IpAddr = F::MASTERS[0].into();
    namespace.add_address(address, "lo").unwrap();
    let failed = namespace.enter(|| Ok(failures(rows))).unwrap();
    assert!(failed.is_empty(), "{}: {failed:#?}", F::NAME);
}

/// Keep this thread on one CPU: limits are counted for each.
fn stay_on_one_cpu() {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).unwrap();
    let cpu = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap());
    let mut only = CpuSet::new();
    only.set(cpu.expect("a CPU to run on")).unwrap();
    sched_setaffinity(this, &only).unwrap();
}

/// Data planes that rows of an IP version were played on. The verifier takes longer than most tables,
/// and each row begins with [`World::reset`].
static PLAYED: Mutex<Vec<(&str, DataPlane)>> = Mutex::new(Vec::new());

impl<F: Family> World<F> {
    /// A world to be reset: one that has been used, or a new one.
    pub(crate) fn used_or_new() -> Self {
        let mut played = PLAYED.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = played.iter().position(|(family, _)| *family == F::NAME);
        let plane = fitting.map(|at| played.swap_remove(at).1);
        drop(played);
        plane.map_or_else(Self::new, Self::of)
    }

    /// Leaves it to [`World::used_or_new`].
    pub(crate) fn leave(self) {
        let mut played = PLAYED.lock().unwrap_or_else(PoisonError::into_inner);
        played.push((F::NAME, self.plane));
    }
}

fn failures<F: Family>(rows: &[Row<F>]) -> Vec<String> {
    stay_on_one_cpu();
    let mut world = World::used_or_new();
    let mut failed = Vec::new();
    for ingress in Ingress::ALL {
        world.comes_in_by(ingress);
        for row in rows {
            // The panic hook has printed what is wrong; the name says in which row.
            if !holds(row, &mut world) {
                let name = format!("{ingress:?}: {}", row.name);
                eprintln!("^ in {} row, {name}", F::NAME);
                failed.push(name);
            }
        }
    }
    let all = rows.len() * Ingress::ALL.len();
    eprintln!("{}: {} of {all} rows hold", F::NAME, all - failed.len());
    world.leave();
    failed
}

/// Whether a row holds. Limits count by the second: a row gets another one if it saw the next begin.
fn holds<F: Family>(row: &Row<F>, world: &mut World<F>) -> bool {
    loop {
        let second = now();
        if catch_unwind(AssertUnwindSafe(|| row.play(world))).is_ok() {
            return true;
        }
        if now() == second {
            return false;
        }
        eprintln!("once more: a second ended during it");
    }
}

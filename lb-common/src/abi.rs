//! The map ABI: every key and value that the eBPF programs and the controller share.
//!
//! Contract, checked by the assertions below and by a test against the object's BTF:
//! - `#[repr(C)]`, no implicit padding; explicit padding fields are always zero (hash map
//!   keys are compared as bytes);
//! - no bool, enum, `Option` or `usize`: small integers with named constants;
//! - addresses and MACs are byte arrays in network order, ports are `u16` in **host order**
//!   so that `bpftool map dump` prints them as people write them;
//! - fields are private: a value is made by its constructor and read by its accessors;
//! - a layout or meaning change bumps [`ABI_VERSION`], which the controller compares with the
//!   pinned [`NodeConfig`] before it adopts the maps of an earlier run.
//!
//! `A` is the address type: `[u8; 4]` for IPv4, `[u8; 16]` for IPv6. Maps exist once per family.

pub mod events;
#[cfg(feature = "user")]
pub mod layout;
pub mod sends;
pub mod sources;

use core::mem::{align_of, size_of};

use crate::{conntrack::FlowState, reason::Reason};

/// Version of everything in this file. Pinned maps of another version are not adopted.
pub const ABI_VERSION: u32 = 2;

/// Maglev table size M, a prime (Eisenbud et al., NSDI 2016, section 3.4).
pub const MAGLEV_SIZE: u32 = 16_381;
/// [`MAGLEV_SIZE`] rounded up to a power of two, so that an index is bounded by a mask.
pub const MAGLEV_SLOTS: usize = 16_384;
/// Services per instance of xvip. Service id 0 is reserved.
pub const MAX_SERVICES: u32 = 64;
/// Backends per instance of xvip, over all services. Backend id 0 is reserved for "none".
pub const MAX_BACKENDS: u32 = 1_024;
/// Backends per service: keeps M > 100 x backends, where Maglev's shares stay within 1 %.
pub const MAX_BACKENDS_PER_SERVICE: usize = 160;
/// VRRP instances with a lease. Lease index 0 is reserved for "address not managed by VRRP".
pub const MAX_LEASES: u32 = 64;
/// VIPs per family.
pub const MAX_VIPS: u32 = 256;
/// Established flows per family.
pub const MAX_FLOWS: u32 = 262_144;
/// nat return entries per family: as many as flows, so that none is evicted before its flow.
pub const MAX_NAT_RETURNS: u32 = MAX_FLOWS;
/// Flows per family whose client has not acknowledged anything yet. They have a map of their own,
/// so that a flood of them evicts no established flow.
pub const MAX_HALF_FLOWS: u32 = 16_384;
/// nat return entries of those, per family.
pub const MAX_HALF_RETURNS: u32 = MAX_HALF_FLOWS;
/// Elements of `reason_stats` for each service: room for reasons to come.
pub const REASON_SLOTS: u32 = 128;
/// Peers (other nodes that run xvip).
pub const MAX_PEERS: u32 = 256;
/// Uplink interfaces.
pub const MAX_UPLINKS: u32 = 64;
/// Connections of local processes whose destination was rewritten at `connect()`.
pub const MAX_CONNECTS: u32 = 65_536;

/// Entries for new flows that a CPU makes in a second, unless configured otherwise: above it the
/// data plane does without.
pub const DEFAULT_NEW_FLOW_LIMIT: u32 = 20_000;
/// Flows that a CPU adopts in a second, unless configured otherwise.
pub const DEFAULT_ADOPTION_LIMIT: u32 = 20_000;

/// Node number: unknown, that is, no xvip node.
pub const NODE_NONE: u32 = 0;
/// Node number of this node. Peers are numbered from 2 in the order of the configuration.
pub const NODE_SELF: u32 = 1;

/// A 6-byte Ethernet address in wire order.
pub type Mac = [u8; 6];

/// The address types that the ABI is generic over.
pub trait Address: Copy + Eq + 'static {
    /// The all-zeroes address.
    const ZERO: Self;

    /// Become `other`, word by word: an assignment becomes a call to a byte loop in BPF.
    fn copy_from(&mut self, other: &Self);

    /// Equality by words: `==` on byte arrays becomes a call to a byte loop in BPF.
    fn same(&self, other: &Self) -> bool;
}

impl Address for [u8; 4] {
    const ZERO: Self = [0; 4];

    #[inline(always)]
    fn copy_from(&mut self, other: &Self) {
        *self = *other;
    }

    #[inline(always)]
    fn same(&self, other: &Self) -> bool {
        u32::from_ne_bytes(*self) == u32::from_ne_bytes(*other)
    }
}

impl Address for [u8; 16] {
    const ZERO: Self = [0; 16];

    #[inline(always)]
    fn copy_from(&mut self, other: &Self) {
        for (to, from) in self
            .as_chunks_mut::<4>()
            .0
            .iter_mut()
            .zip(other.as_chunks::<4>().0)
        {
            *to = *from;
        }
    }

    #[inline(always)]
    fn same(&self, other: &Self) -> bool {
        let [a, b] = halves(self);
        let [c, d] = halves(other);
        (a ^ c) | (b ^ d) == 0
    }
}

/// The two halves of an IPv6 address as words in native order. (Not by destructuring: that makes
/// LLVM load bytes one by one.)
#[inline(always)]
#[must_use]
pub fn halves(addr: &[u8; 16]) -> [u64; 2] {
    let (halves, _) = addr.as_chunks::<8>();
    match halves {
        [a, b] => [u64::from_ne_bytes(*a), u64::from_ne_bytes(*b)],
        _ => [0, 0],
    }
}

/// The virtual MAC of a VRRP group (RFC 9568 section 7.3): 00-00-5e-00-01-VRID for IPv4, -02- for IPv6.
#[inline(always)]
#[must_use]
pub const fn virtual_mac(vrid: u8, is_ipv6: bool) -> Mac {
    [0, 0, 0x5e, 0, 1 + is_ipv6 as u8, vrid]
}

/// Equality of MACs by words, for the same reason as [`Address::same`].
#[inline(always)]
#[must_use]
pub fn same_mac(a: &Mac, b: &Mac) -> bool {
    mac_words(a) == mac_words(b)
}

/// A MAC as three words in native order.
#[inline(always)]
fn mac_words(mac: &Mac) -> (u16, u16, u16) {
    match mac.as_chunks::<2>().0 {
        [a, b, c] => (
            u16::from_ne_bytes(*a),
            u16::from_ne_bytes(*b),
            u16::from_ne_bytes(*c),
        ),
        _ => (0, 0, 0),
    }
}

/// Key of `flows4`/`flows6` and `returns4`/`returns6`: a 5-tuple as seen on the wire.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey<A> {
    src: A,
    dst: A,
    sport: u16,
    dport: u16,
    proto: u8,
    pad0: u8,
    pad1: u16,
}

impl<A: Copy> FlowKey<A> {
    /// A flow from `src:sport` to `dst:dport`; ports in host order.
    #[inline(always)]
    pub const fn new(src: A, sport: u16, dst: A, dport: u16, proto: u8) -> Self {
        Self {
            src,
            dst,
            sport,
            dport,
            proto,
            pad0: 0,
            pad1: 0,
        }
    }

    /// Source address.
    #[inline(always)]
    pub const fn src(&self) -> A {
        self.src
    }

    /// Destination address.
    #[inline(always)]
    pub const fn dst(&self) -> A {
        self.dst
    }

    /// The source address in place: itself a map key.
    #[inline(always)]
    pub const fn src_ref(&self) -> &A {
        &self.src
    }

    /// The destination address in place: itself a map key.
    #[inline(always)]
    pub const fn dst_ref(&self) -> &A {
        &self.dst
    }

    /// Fill in both addresses, one after the other: a whole flow is made on the stack first, of
    /// which BPF has little.
    #[inline(always)]
    pub fn set_addresses(&mut self, src: &A, dst: &A)
    where
        A: Address,
    {
        self.src.copy_from(src);
        self.dst.copy_from(dst);
    }

    /// Fill in what the transport header says; ports in host order.
    #[inline(always)]
    pub const fn set_transport(&mut self, sport: u16, dport: u16, proto: u8) {
        self.sport = sport;
        self.dport = dport;
        self.proto = proto;
    }

    /// Source port, host order.
    #[inline(always)]
    pub const fn sport(&self) -> u16 {
        self.sport
    }

    /// Destination port, host order.
    #[inline(always)]
    pub const fn dport(&self) -> u16 {
        self.dport
    }

    /// IP protocol number.
    #[inline(always)]
    pub const fn proto(&self) -> u8 {
        self.proto
    }
}

/// Key of `services4`/`services6` and `reply_ports4`/`reply_ports6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey<A> {
    vip: A,
    port: u16,
    proto: u8,
    pad: u8,
}

impl<A: Copy> ServiceKey<A> {
    /// `vip:port` of IP protocol `proto`; port in host order.
    #[inline(always)]
    pub const fn new(vip: A, port: u16, proto: u8) -> Self {
        Self {
            vip,
            port,
            proto,
            pad: 0,
        }
    }

    /// The virtual address.
    #[inline(always)]
    pub const fn vip(&self) -> A {
        self.vip
    }

    /// Port, host order.
    #[inline(always)]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// IP protocol number.
    #[inline(always)]
    pub const fn proto(&self) -> u8 {
        self.proto
    }
}

/// Value of `services4`/`services6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    id: u32,
    table: u32,
    local_backend: u32,
    source_rate: u32,
    source_burst: u32,
    fallback: [u16; 2],
    local_port: u16,
    flags: u16,
    idle_seconds: u16,
    pad: u16,
}

impl Service {
    /// At least one backend can take new flows: the Maglev table has no empty slot.
    pub const USABLE: u16 = 1;
    /// Without a usable backend a SYN is dropped instead of answered with a RST.
    pub const SILENT: u16 = 2;
    /// New flows are looked up in `sources4`/`sources6`.
    pub const SOURCES: u16 = 4;
    /// Sources without a rule are refused.
    pub const DEFAULT_DENY: u16 = 8;

    /// `id` is the service's part of `reason_stats`; `table` indexes `maglev`; `local_backend` is
    /// the id of the backend on this node (0: none) that listens on `local_port` (host order).
    #[inline(always)]
    pub const fn new(
        id: u32,
        table: u32,
        local_backend: u32,
        local_port: u16,
        usable: bool,
    ) -> Self {
        Self {
            id,
            table,
            local_backend,
            source_rate: 0,
            source_burst: 0,
            fallback: [0; 2],
            local_port,
            flags: if usable { Self::USABLE } else { 0 },
            idle_seconds: 0,
            pad: 0,
        }
    }

    /// The same service with these of the flags set as well.
    #[must_use]
    #[inline(always)]
    pub const fn with_flags(mut self, flags: u16) -> Self {
        self.flags |= flags;
        self
    }

    /// The same service; `first` and `second` are usable backends on different nodes, for a flow
    /// that must not go to one of them (0: there is none).
    #[must_use]
    #[inline(always)]
    pub const fn with_fallback(mut self, first: u16, second: u16) -> Self {
        self.fallback = [first, second];
        self
    }

    /// The same service; each source may make `rate` new flows per second (0: any number) and
    /// `burst` at once.
    #[must_use]
    #[inline(always)]
    pub const fn with_source_rate(mut self, rate: u32, burst: u32) -> Self {
        self.source_rate = rate;
        self.source_burst = burst;
        self
    }

    /// The same service; a UDP flow ends after this many seconds of silence.
    #[must_use]
    #[inline(always)]
    pub const fn with_idle_seconds(mut self, seconds: u16) -> Self {
        self.idle_seconds = seconds;
        self
    }

    /// Service id.
    #[inline(always)]
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Index of the Maglev table in force.
    #[inline(always)]
    pub const fn table(&self) -> u32 {
        self.table
    }

    /// Backend id of the backend on this node, 0 if there is none.
    #[inline(always)]
    pub const fn local_backend(&self) -> u32 {
        self.local_backend
    }

    /// Port of the backend on this node, host order; 0 if there is none.
    #[inline(always)]
    pub const fn local_port(&self) -> u16 {
        self.local_port
    }

    /// Two usable backends on different nodes; 0: there is none.
    #[inline(always)]
    pub const fn fallback(&self) -> [u16; 2] {
        self.fallback
    }

    /// New flows per second that a source may make; 0: any number.
    #[inline(always)]
    pub const fn source_rate(&self) -> u32 {
        self.source_rate
    }

    /// New flows that a source may make at once.
    #[inline(always)]
    pub const fn source_burst(&self) -> u32 {
        self.source_burst
    }

    /// Seconds of silence that end a UDP flow.
    #[inline(always)]
    pub const fn idle_seconds(&self) -> u16 {
        self.idle_seconds
    }

    /// The flags, for whoever shows or compares them.
    #[inline(always)]
    pub const fn flags(&self) -> u16 {
        self.flags
    }

    /// Whether any backend can take new flows.
    #[inline(always)]
    pub const fn usable(&self) -> bool {
        self.flags & Self::USABLE != 0
    }

    /// Whether a SYN that no backend can take is dropped without an answer.
    #[inline(always)]
    pub const fn silent(&self) -> bool {
        self.flags & Self::SILENT != 0
    }
}

/// Value of `maglev`: one lookup table, slot -> backend id.
///
/// Each service owns two elements (2 x id and 2 x id + 1); the controller fills the one that is
/// not in force and then switches [`Service::table`], so a reader never sees a torn table.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MaglevTable {
    slots: [u16; MAGLEV_SLOTS],
}

impl MaglevTable {
    /// A table without backends.
    // A constant: it is copied into a heap allocation or a map, never held on a BPF stack.
    #[allow(clippy::large_stack_arrays)]
    pub const EMPTY: Self = Self {
        slots: [0; MAGLEV_SLOTS],
    };

    /// A table from the first [`MAGLEV_SIZE`] values of `slots`; missing ones stay 0.
    pub fn from_slots(slots: impl IntoIterator<Item = u16>) -> Self {
        let mut table = Self::EMPTY;
        for (to, from) in table.slots.iter_mut().zip(slots).take(MAGLEV_SIZE as usize) {
            *to = from;
        }
        table
    }

    /// Backend id in `slot`. The mask keeps the index in range for the verifier; callers pass
    /// slots below [`MAGLEV_SIZE`].
    #[inline(always)]
    pub fn backend(&self, slot: u32) -> u16 {
        // Masked to the array's length.
        #[allow(clippy::indexing_slicing)]
        self.slots[slot as usize & (MAGLEV_SLOTS - 1)]
    }

    /// The slots that the hash can reach.
    pub fn slots(&self) -> &[u16] {
        self.slots.get(..MAGLEV_SIZE as usize).unwrap_or(&[])
    }
}

impl PartialEq for MaglevTable {
    fn eq(&self, other: &Self) -> bool {
        self.slots() == other.slots()
    }
}

/// How packets reach a backend (values of the `method` field).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// PASS to this node's own stack, destination port translated where it differs.
    Local = 1,
    /// Rewrite the Ethernet destination only; the backend's node runs xvip.
    Dsr = 2,
    /// Full address and port translation; the backend's node runs no xvip.
    Nat = 3,
}

impl Method {
    /// The method with number `value`.
    #[inline(always)]
    pub const fn from_raw(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Local),
            2 => Some(Self::Dsr),
            3 => Some(Self::Nat),
            _ => None,
        }
    }
}

/// What the data plane may do with a backend (values of the `state` field).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackendState {
    /// No new flows. Those of an earlier epoch are reset; others go on (`on_backend_down = "keep"`).
    Down = 0,
    /// New and existing flows.
    Up = 1,
    /// Existing flows; new ones only when no backend is [`BackendState::Up`].
    Draining = 2,
}

impl BackendState {
    /// The state with number `value`; unknown numbers count as down.
    #[inline(always)]
    pub const fn from_raw(value: u8) -> Self {
        match value {
            1 => Self::Up,
            2 => Self::Draining,
            _ => Self::Down,
        }
    }
}

/// Value of `backends4`/`backends6`, indexed by backend id.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend<A> {
    addr: A,
    ifindex: u32,
    service: u32,
    node: u32,
    port: u16,
    mac: Mac,
    method: u8,
    state: u8,
    epoch: u16,
    tags: u32,
}

impl<A: Address> Backend<A> {
    /// An unused element.
    pub const EMPTY: Self = Self {
        addr: A::ZERO,
        ifindex: 0,
        service: 0,
        node: 0,
        port: 0,
        mac: [0; 6],
        method: 0,
        state: 0,
        epoch: 0,
        tags: 0,
    };

    /// A backend `addr:port` (host order) of service id `service` on node number `node`.
    #[inline(always)]
    pub const fn new(
        addr: A,
        port: u16,
        service: u32,
        node: u32,
        method: Method,
        state: BackendState,
    ) -> Self {
        Self {
            addr,
            ifindex: 0,
            service,
            node,
            port,
            mac: [0; 6],
            method: method as u8,
            state: state as u8,
            epoch: 0,
            tags: 0,
        }
    }

    /// The same backend in its `epoch`-th life: flows of an earlier one are reset.
    #[must_use]
    #[inline(always)]
    pub const fn in_epoch(mut self, epoch: u16) -> Self {
        self.epoch = epoch;
        self
    }

    /// The same backend, its next hop reached with these VLAN tags, see [`UplinkKey`].
    #[must_use]
    #[inline(always)]
    pub const fn tagged(mut self, tags: u32) -> Self {
        self.tags = tags;
        self
    }

    /// The same backend, reached through interface `ifindex` by next hop `mac`.
    #[must_use]
    #[inline(always)]
    pub const fn via(mut self, ifindex: u32, mac: Mac) -> Self {
        self.ifindex = ifindex;
        self.mac = mac;
        self
    }

    /// Backend address.
    #[inline(always)]
    pub const fn addr(&self) -> A {
        self.addr
    }

    /// The backend's address in place.
    #[inline(always)]
    pub const fn addr_ref(&self) -> &A {
        &self.addr
    }

    /// Backend port, host order.
    #[inline(always)]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Interface towards the backend, 0 while unresolved.
    #[inline(always)]
    pub const fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Next hop's MAC; meaningless while [`Backend::ifindex`] is 0.
    #[inline(always)]
    pub const fn mac(&self) -> Mac {
        self.mac
    }

    /// Service id; 0 marks an unused element.
    #[inline(always)]
    pub const fn service(&self) -> u32 {
        self.service
    }

    /// Number of the node that hosts the backend ([`NODE_NONE`] if it runs no xvip).
    #[inline(always)]
    pub const fn node(&self) -> u32 {
        self.node
    }

    /// Forwarding method, `None` for an unused element.
    #[inline(always)]
    pub const fn method(&self) -> Option<Method> {
        Method::from_raw(self.method)
    }

    /// What the data plane may do with it.
    #[inline(always)]
    pub const fn state(&self) -> BackendState {
        BackendState::from_raw(self.state)
    }

    /// Number of its life: counts how often it went DOWN with its flows to be reset, modulo 2^16.
    #[inline(always)]
    pub const fn epoch(&self) -> u16 {
        self.epoch
    }

    /// VLAN tags towards the next hop, see [`UplinkKey`].
    #[inline(always)]
    pub const fn tags(&self) -> u32 {
        self.tags
    }
}

/// Value of `flows4`/`flows6` and `half_flows4`/`half_flows6`: the conntrack entry of one client
/// flow on the owner.
///
/// TCP flows that are delivered locally have no entry: the kernel's socket table is their conntrack.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub(crate) backend: u32,
    pub(crate) last_seen: u32,
    pub(crate) cl_ack: u32,
    pub(crate) cl_next: u32,
    pub(crate) nat_port: u16,
    pub(crate) path: u16,
    pub(crate) state: u8,
    pub(crate) flags: u8,
    pub(crate) epoch: u16,
}

impl Flow {
    /// `cl_ack` and `cl_next` hold values seen in a client segment with ACK.
    pub const ACK_KNOWN: u8 = 1;
    /// The backend answered (nat: its reply was seen).
    pub const ANSWERED: u8 = 2;
    /// The SYN was repeated once.
    pub const REPEATED: u8 = 4;

    /// A flow to backend id `backend`; `nat_port` (host order) is the source port that nat uses
    /// and `path` the [`path_tag`] of where it comes from, both 0 for other methods; `now` in
    /// seconds of the coarse monotonic clock. It belongs to the backend's epoch 0, see
    /// [`Flow::in_epoch`].
    #[inline(always)]
    pub const fn new(backend: u32, nat_port: u16, path: u16, state: FlowState, now: u32) -> Self {
        Self {
            backend,
            last_seen: now,
            cl_ack: 0,
            cl_next: 0,
            nat_port,
            path,
            state: state as u8,
            flags: 0,
            epoch: 0,
        }
    }

    /// The same flow, made in its backend's `epoch`-th life.
    #[must_use]
    #[inline(always)]
    pub const fn in_epoch(mut self, epoch: u16) -> Self {
        self.epoch = epoch;
        self
    }

    /// Backend id.
    #[inline(always)]
    pub const fn backend(&self) -> u32 {
        self.backend
    }

    /// The backend's [`Backend::epoch`] when the flow was made: another one by now means that the
    /// backend went DOWN meanwhile, and that the client is to be reset.
    #[inline(always)]
    pub const fn epoch(&self) -> u16 {
        self.epoch
    }

    /// Seconds of the coarse monotonic clock at the last packet.
    #[inline(always)]
    pub const fn last_seen(&self) -> u32 {
        self.last_seen
    }

    /// Source port towards a nat backend, host order; 0 for other methods.
    #[inline(always)]
    pub const fn nat_port(&self) -> u16 {
        self.nat_port
    }

    /// Tag of the path that the flow last came in by (nat), see [`path_tag`].
    #[inline(always)]
    pub const fn path(&self) -> u16 {
        self.path
    }

    /// The flow uses source port `nat_port` (host order) and comes in by the path with this tag.
    #[inline(always)]
    pub const fn translate(&mut self, nat_port: u16, path: u16) {
        self.nat_port = nat_port;
        self.path = path;
    }

    /// Record that the flow now comes in by another path.
    #[inline(always)]
    pub const fn set_path(&mut self, path: u16) {
        self.path = path;
    }

    /// Highest acknowledgement number that the client sent, `None` before the first ACK.
    #[inline(always)]
    pub const fn cl_ack(&self) -> Option<u32> {
        if self.flags & Self::ACK_KNOWN != 0 {
            Some(self.cl_ack)
        } else {
            None
        }
    }

    /// Sequence number that follows the client's last segment, `None` before the first ACK.
    #[inline(always)]
    pub const fn cl_next(&self) -> Option<u32> {
        if self.flags & Self::ACK_KNOWN != 0 {
            Some(self.cl_next)
        } else {
            None
        }
    }

    /// TCP state as far as the client's segments tell it.
    #[inline(always)]
    pub const fn state(&self) -> FlowState {
        FlowState::from_raw(self.state)
    }
}

/// A 16-bit tag of the interface, VLAN and MAC that a nat flow comes from: when it changes, the
/// return entry is updated. Two paths with one tag (1 in 65,536) keep the old path until the next
/// flow.
#[inline(always)]
#[must_use]
pub fn path_tag(ifindex: u32, tags: u32, mac: Mac) -> u16 {
    let (a, b, c) = mac_words(&mac);
    let vlan = (tags as u16) ^ ((tags >> 16) as u16).rotate_left(7);
    // The low half of the interface index is all that differs between interfaces in practice.
    c ^ b.rotate_left(5) ^ a.rotate_left(10) ^ (ifindex as u16).rotate_left(3) ^ vlan
}

/// Value of `returns4`/`returns6` and `half_returns4`/`half_returns6`, keyed by (backend, VIP, backend port, nat port): where a nat
/// backend's reply goes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatReturn<A> {
    client: A,
    ifindex: u32,
    backend: u32,
    tags: u32,
    client_port: u16,
    vip_port: u16,
    mac: Mac,
    pad: u16,
}

impl<A: Address> NatReturn<A> {
    /// Whether the entry belongs to the flow `client:client_port -> VIP:vip_port`.
    #[inline(always)]
    pub fn belongs_to(&self, client: &A, client_port: u16, vip_port: u16) -> bool {
        self.client_port == client_port && self.vip_port == vip_port && self.client.same(client)
    }

    /// The client's address in place.
    #[inline(always)]
    pub const fn client_ref(&self) -> &A {
        &self.client
    }

    /// Replies become `VIP:vip_port -> client:client_port` (host order) and leave through
    /// `ifindex` to `mac`, where the flow last came from.
    #[inline(always)]
    pub const fn new(
        client: A,
        client_port: u16,
        vip_port: u16,
        backend: u32,
        ifindex: u32,
        mac: Mac,
    ) -> Self {
        Self {
            client,
            ifindex,
            backend,
            tags: 0,
            client_port,
            vip_port,
            mac,
            pad: 0,
        }
    }

    /// The same entry, its client's frames carrying these VLAN tags, see [`UplinkKey`].
    #[must_use]
    #[inline(always)]
    pub const fn tagged(mut self, tags: u32) -> Self {
        self.tags = tags;
        self
    }

    /// VLAN tags of the client's frames, see [`UplinkKey`].
    #[inline(always)]
    pub const fn tags(&self) -> u32 {
        self.tags
    }

    /// Client address.
    #[inline(always)]
    pub const fn client(&self) -> A {
        self.client
    }

    /// Client port, host order.
    #[inline(always)]
    pub const fn client_port(&self) -> u16 {
        self.client_port
    }

    /// The service's port, host order.
    #[inline(always)]
    pub const fn vip_port(&self) -> u16 {
        self.vip_port
    }

    /// Backend id.
    #[inline(always)]
    pub const fn backend(&self) -> u32 {
        self.backend
    }

    /// Interface that the flow came in through.
    #[inline(always)]
    pub const fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// MAC that the flow came from.
    #[inline(always)]
    pub const fn mac(&self) -> Mac {
        self.mac
    }

    /// Record where the flow came from last (the client's path may change).
    #[inline(always)]
    pub const fn set_path(&mut self, ifindex: u32, tags: u32, mac: Mac) {
        self.ifindex = ifindex;
        self.tags = tags;
        self.mac = mac;
    }
}

/// Value of `vips4`/`vips6`, keyed by the address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vip {
    lease: u32,
    flags: u32,
}

impl Vip {
    /// Somebody traces packets to this VIP: `trace` says which.
    pub const TRACED: u32 = 1;
    /// The node's own stack takes nothing that is for this VIP, but what belongs to a service
    /// (RFC 9568 section 6.1, `Accept_Mode` false).
    pub const CLOSED: u32 = 2;

    /// A VIP fenced by lease index `lease`; 0: not managed by VRRP and never fenced.
    #[inline(always)]
    pub const fn new(lease: u32) -> Self {
        Self { lease, flags: 0 }
    }

    /// The same VIP, traced or not.
    #[must_use]
    #[inline(always)]
    pub const fn traced(mut self, traced: bool) -> Self {
        self.flags &= !Self::TRACED;
        if traced {
            self.flags |= Self::TRACED;
        }
        self
    }

    /// The same VIP, closed to what is for no service, or not.
    #[must_use]
    #[inline(always)]
    pub const fn closed(mut self, closed: bool) -> Self {
        self.flags &= !Self::CLOSED;
        if closed {
            self.flags |= Self::CLOSED;
        }
        self
    }

    /// Whether it is closed to what is for no service.
    #[inline(always)]
    pub const fn is_closed(&self) -> bool {
        self.flags & Self::CLOSED != 0
    }

    /// Bits of the flags before the VRID of a virtual MAC.
    const VRID_SHIFT: u32 = 24;

    /// The same VIP, claimed by the virtual MAC of the group `vrid`; 0: by the uplink's own.
    #[must_use]
    #[inline(always)]
    pub const fn with_virtual_mac(mut self, vrid: u8) -> Self {
        self.flags &= (1 << Self::VRID_SHIFT) - 1;
        self.flags |= (vrid as u32) << Self::VRID_SHIFT;
        self
    }

    /// VRID of the group whose virtual MAC claims it; 0: none.
    #[inline(always)]
    pub const fn vrid(&self) -> u8 {
        (self.flags >> Self::VRID_SHIFT) as u8
    }

    /// Whether somebody traces packets to it.
    #[inline(always)]
    pub const fn is_traced(&self) -> bool {
        self.flags & Self::TRACED != 0
    }

    /// Lease index.
    #[inline(always)]
    pub const fn lease(&self) -> u32 {
        self.lease
    }
}

/// Value of `leases`, indexed by lease index: until when this node may claim the VIPs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    deadline_ns: u64,
}

impl Lease {
    /// No right to the address.
    pub const NONE: Self = Self { deadline_ns: 0 };

    /// Valid until `deadline_ns` on `CLOCK_BOOTTIME`, in nanoseconds.
    #[inline(always)]
    pub const fn until(deadline_ns: u64) -> Self {
        Self { deadline_ns }
    }

    /// Deadline in nanoseconds of `CLOCK_BOOTTIME`.
    #[inline(always)]
    pub const fn deadline_ns(&self) -> u64 {
        self.deadline_ns
    }

    /// Whether the lease holds at `now_ns` (`CLOCK_BOOTTIME`).
    #[inline(always)]
    pub const fn is_valid(&self, now_ns: u64) -> bool {
        now_ns < self.deadline_ns
    }
}

/// Key of `peer_macs`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacKey {
    mac: Mac,
    pad: u16,
}

impl MacKey {
    /// The key of `mac`.
    #[inline(always)]
    pub const fn new(mac: Mac) -> Self {
        Self { mac, pad: 0 }
    }

    /// The address.
    #[inline(always)]
    pub const fn mac(&self) -> Mac {
        self.mac
    }
}

/// Value of `peer_macs` and `peer_addrs4`/`peer_addrs6`: the node that an address belongs to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    node: u32,
}

impl Node {
    /// Node number `node`.
    #[inline(always)]
    pub const fn new(node: u32) -> Self {
        Self { node }
    }

    /// Node number.
    #[inline(always)]
    pub const fn number(&self) -> u32 {
        self.node
    }
}

/// Value of `reply_ports4`/`reply_ports6`, keyed by (VIP, backend port): the port that the replies
/// of this node's own backend must carry, and its service. There is one for each such backend, also
/// where the ports are the same.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyPort {
    port: u16,
    service: u16,
}

impl ReplyPort {
    /// Replies leave with source port `port` (host order). They belong to no service, see
    /// [`ReplyPort::of_service`].
    #[inline(always)]
    pub const fn new(port: u16) -> Self {
        Self { port, service: 0 }
    }

    /// The same, of service id `service`: the index of its listener in `listeners`.
    #[must_use]
    #[inline(always)]
    pub const fn of_service(mut self, service: u16) -> Self {
        self.service = service;
        self
    }

    /// Service id, 0 if it is not known.
    #[inline(always)]
    pub const fn service(&self) -> u16 {
        self.service
    }

    /// VIP port, host order.
    #[inline(always)]
    pub const fn port(&self) -> u16 {
        self.port
    }
}

/// Key of `uplinks`: an interface that the ingress program is attached to, and the VLAN on it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UplinkKey {
    ifindex: u32,
    tags: u32,
}

impl UplinkKey {
    /// Frames of interface `ifindex` with VLAN tags `tags`: the VLAN id of the outer tag in the low
    /// half, that of an inner one (802.1ad) in the high half. 0: untagged (or priority-tagged).
    #[inline(always)]
    pub const fn new(ifindex: u32, tags: u32) -> Self {
        Self { ifindex, tags }
    }

    /// Interface index.
    #[inline(always)]
    pub const fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// VLAN tags.
    #[inline(always)]
    pub const fn tags(&self) -> u32 {
        self.tags
    }
}

/// Value of `uplinks`, keyed by interface and VLAN.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uplink {
    mac: Mac,
    pad: u16,
}

impl Uplink {
    /// The interface's own MAC.
    #[inline(always)]
    pub const fn new(mac: Mac) -> Self {
        Self { mac, pad: 0 }
    }

    /// The interface's own MAC.
    #[inline(always)]
    pub const fn mac(&self) -> Mac {
        self.mac
    }
}

/// The single value of `node`: facts about this node and this ABI.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    netns_cookie: u64,
    no_peers: u64,
    abi_version: u32,
    new_flow_limit: u32,
    adoption_limit: u32,
    uplink_ifindex: u32,
    uplink_tags: u32,
    uplink_mac: Mac,
    pad0: u16,
    pad1: u32,
}

/// The bit of a MAC in the filter of peers.
#[inline(always)]
fn peer_bit(mac: &Mac) -> u64 {
    let (a, b, c) = mac_words(mac);
    let mixed = a ^ b.rotate_left(3) ^ c;
    1 << ((mixed ^ mixed >> 6 ^ mixed >> 11) & 63)
}

impl NodeConfig {
    /// `netns_cookie` of the controller's network namespace (`SO_NETNS_COOKIE`).
    #[inline(always)]
    pub const fn new(netns_cookie: u64) -> Self {
        Self {
            netns_cookie,
            no_peers: 0,
            abi_version: ABI_VERSION,
            new_flow_limit: DEFAULT_NEW_FLOW_LIMIT,
            adoption_limit: DEFAULT_ADOPTION_LIMIT,
            uplink_ifindex: 0,
            uplink_tags: 0,
            uplink_mac: [0; 6],
            pad0: 0,
            pad1: 0,
        }
    }

    /// The same facts with one of the uplinks, which then costs no lookup: VLAN `tags` of interface
    /// `ifindex`, with its own `mac`.
    #[must_use]
    #[inline(always)]
    pub const fn with_uplink(mut self, ifindex: u32, tags: u32, mac: Mac) -> Self {
        self.uplink_ifindex = ifindex;
        self.uplink_tags = tags;
        self.uplink_mac = mac;
        self
    }

    /// The same facts with a filter for `peers`, all of them: other MACs mostly cost no lookup.
    #[must_use]
    pub fn with_peers(mut self, peers: impl IntoIterator<Item = Mac>) -> Self {
        let present = peers.into_iter().fold(0, |bits, mac| bits | peer_bit(&mac));
        self.no_peers = !present;
        self
    }

    /// The MAC of the uplink that is VLAN `tags` of interface `ifindex`, if it is the one that is
    /// written here.
    #[inline(always)]
    pub fn uplink_mac(&self, ifindex: u32, tags: u32) -> Option<Mac> {
        (self.uplink_ifindex == ifindex && self.uplink_tags == tags).then_some(self.uplink_mac)
    }

    /// Whether `peer_macs` may have this MAC.
    #[inline(always)]
    pub fn may_be_peer(&self, mac: &Mac) -> bool {
        self.no_peers & peer_bit(mac) == 0
    }

    /// The same facts with other limits of entries made per CPU and second: for SYNs and UDP, and
    /// for adopted flows. 0: no limit.
    #[must_use]
    #[inline(always)]
    pub const fn with_limits(mut self, new_flows: u32, adoptions: u32) -> Self {
        self.new_flow_limit = new_flows;
        self.adoption_limit = adoptions;
        self
    }

    /// Entries for new flows that a CPU makes in a second; 0: no limit.
    #[inline(always)]
    pub const fn new_flow_limit(&self) -> u32 {
        self.new_flow_limit
    }

    /// Flows that a CPU adopts in a second; 0: no limit.
    #[inline(always)]
    pub const fn adoption_limit(&self) -> u32 {
        self.adoption_limit
    }

    /// Cookie of the controller's network namespace.
    #[inline(always)]
    pub const fn netns_cookie(&self) -> u64 {
        self.netns_cookie
    }

    /// ABI version of whoever wrote it; 0 in a new map.
    #[inline(always)]
    pub const fn abi_version(&self) -> u32 {
        self.abi_version
    }
}

/// Value of `connects4`/`connects6`, keyed by socket cookie: the destination that a local
/// process asked for, before `connect()` was rewritten.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectOrigin<A> {
    vip: A,
    backend_addr: A,
    backend: u32,
    vip_port: u16,
    backend_port: u16,
}

impl<A: Address> ConnectOrigin<A> {
    /// The process asked for `vip:vip_port` and got `backend_addr:backend_port` (host order).
    #[inline(always)]
    pub const fn new(
        vip: A,
        vip_port: u16,
        backend_addr: A,
        backend_port: u16,
        backend: u32,
    ) -> Self {
        Self {
            vip,
            backend_addr,
            backend,
            vip_port,
            backend_port,
        }
    }

    /// The VIP asked for.
    #[inline(always)]
    pub const fn vip(&self) -> A {
        self.vip
    }

    /// The port asked for, host order.
    #[inline(always)]
    pub const fn vip_port(&self) -> u16 {
        self.vip_port
    }

    /// Backend id.
    #[inline(always)]
    pub const fn backend(&self) -> u32 {
        self.backend
    }

    /// Whether the socket is still connected to the backend that was chosen for it.
    #[inline(always)]
    pub fn leads_to(&self, addr: A, port: u16) -> bool {
        self.backend_port == port && self.backend_addr.same(&addr)
    }
}

/// Per-CPU value of `reason_stats`, at [`reason_index`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    packets: u64,
    bytes: u64,
    connections: u64,
}

impl Counters {
    /// Count one packet of `bytes` bytes.
    #[inline(always)]
    pub const fn packet(&mut self, bytes: u64) {
        self.packets = self.packets.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(bytes);
    }

    /// Count one new connection.
    #[inline(always)]
    pub const fn connection(&mut self) {
        self.connections = self.connections.wrapping_add(1);
    }

    /// Packets, towards the service or backend.
    pub const fn packets(&self) -> u64 {
        self.packets
    }

    /// Frame bytes of those packets.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// New connections whose first packet was counted here.
    pub const fn connections(&self) -> u64 {
        self.connections
    }

    /// The sum of two CPUs' counters.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets.wrapping_add(other.packets),
            bytes: self.bytes.wrapping_add(other.bytes),
            connections: self.connections.wrapping_add(other.connections),
        }
    }
}

/// Where `reason_stats` counts a reason: each service has [`REASON_SLOTS`] elements, service 0
/// those for packets of no service.
#[inline(always)]
#[must_use]
pub const fn reason_index(service: u32, reason: Reason) -> u32 {
    service * REASON_SLOTS + reason.index()
}

const _: () = assert!(Reason::COUNT <= REASON_SLOTS as usize);

/// Per-CPU value of `backend_stats`, indexed by backend id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendCounters {
    packets: u64,
    bytes: u64,
    connections: u64,
    resets: u64,
    refused: u64,
    drops: u64,
}

impl BackendCounters {
    /// Count one packet of `bytes` bytes that went to the backend.
    #[inline(always)]
    pub const fn packet(&mut self, bytes: u64) {
        self.packets = self.packets.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(bytes);
    }

    /// Count one new connection.
    #[inline(always)]
    pub const fn connection(&mut self) {
        self.connections = self.connections.wrapping_add(1);
    }

    /// Count one segment of a client that was answered with a RST in the backend's stead.
    #[inline(always)]
    pub const fn reset(&mut self) {
        self.resets = self.resets.wrapping_add(1);
    }

    /// Count one connection that the backend refused.
    #[inline(always)]
    pub const fn refusal(&mut self) {
        self.refused = self.refused.wrapping_add(1);
    }

    /// Count one packet for the backend that was dropped.
    #[inline(always)]
    pub const fn dropped(&mut self) {
        self.drops = self.drops.wrapping_add(1);
    }

    /// Packets that went to the backend.
    pub const fn packets(&self) -> u64 {
        self.packets
    }

    /// Frame bytes of those packets.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// New connections.
    pub const fn connections(&self) -> u64 {
        self.connections
    }

    /// Segments of clients that were answered with a RST in its stead.
    pub const fn resets(&self) -> u64 {
        self.resets
    }

    /// Connections that it refused.
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    /// Packets for it that were dropped.
    pub const fn drops(&self) -> u64 {
        self.drops
    }

    /// The sum of two CPUs' counters.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets.wrapping_add(other.packets),
            bytes: self.bytes.wrapping_add(other.bytes),
            connections: self.connections.wrapping_add(other.connections),
            resets: self.resets.wrapping_add(other.resets),
            refused: self.refused.wrapping_add(other.refused),
            drops: self.drops.wrapping_add(other.drops),
        }
    }
}

/// Value of `suspects`, indexed by backend id: written by the data plane when a backend refuses a
/// connection, cleared by the controller when a check succeeds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suspect {
    until: u32,
}

/// Seconds that a backend which refused a connection gets no new ones, unless a check says
/// otherwise earlier.
pub const SUSPECT_SECONDS: u32 = 3;

impl Suspect {
    /// Not suspect.
    pub const NONE: Self = Self { until: 0 };

    /// Suspect from `now` (seconds of the coarse monotonic clock) on.
    #[inline(always)]
    pub const fn since(now: u32) -> Self {
        Self {
            until: now.saturating_add(SUSPECT_SECONDS),
        }
    }

    /// Whether it is suspect at `now` (seconds of the coarse monotonic clock).
    #[inline(always)]
    pub const fn is_suspect(&self, now: u32) -> bool {
        now < self.until
    }
}

/// Per-CPU value of `budget`: entries made in the current second.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    second: u32,
    new_flows: u32,
    adoptions: u32,
    pad: u32,
}

impl Budget {
    #[inline(always)]
    const fn begin(&mut self, now: u32) {
        if self.second != now {
            self.second = now;
            self.new_flows = 0;
            self.adoptions = 0;
        }
    }

    /// Whether one more entry for a new flow may be made in second `now`, of at most `limit` (0:
    /// any number).
    #[inline(always)]
    pub const fn take_new_flow(&mut self, now: u32, limit: u32) -> bool {
        self.begin(now);
        self.new_flows = self.new_flows.saturating_add(1);
        limit == 0 || self.new_flows <= limit
    }

    /// Whether one more flow may be adopted in second `now`, of at most `limit` (0: any number).
    #[inline(always)]
    pub const fn take_adoption(&mut self, now: u32, limit: u32) -> bool {
        self.begin(now);
        self.adoptions = self.adoptions.saturating_add(1);
        limit == 0 || self.adoptions <= limit
    }
}

type V4 = [u8; 4];
type V6 = [u8; 16];

macro_rules! assert_layout {
    ($($type:ty: size $size:literal align $align:literal;)+) => {
        $(const _: () = {
            assert!(size_of::<$type>() == $size, concat!("size of ", stringify!($type)));
            assert!(align_of::<$type>() == $align, concat!("alignment of ", stringify!($type)));
        };)+
    };
}

assert_layout! {
    FlowKey<V4>: size 16 align 2;
    FlowKey<V6>: size 40 align 2;
    ServiceKey<V4>: size 8 align 2;
    ServiceKey<V6>: size 20 align 2;
    Service: size 32 align 4;
    MaglevTable: size 32_768 align 2;
    Backend<V4>: size 32 align 4;
    Backend<V6>: size 44 align 4;
    Flow: size 24 align 4;
    NatReturn<V4>: size 28 align 4;
    NatReturn<V6>: size 40 align 4;
    Vip: size 8 align 4;
    Lease: size 8 align 8;
    MacKey: size 8 align 2;
    Node: size 4 align 4;
    ReplyPort: size 4 align 2;
    UplinkKey: size 8 align 4;
    Uplink: size 8 align 2;
    NodeConfig: size 48 align 8;
    ConnectOrigin<V4>: size 16 align 4;
    ConnectOrigin<V6>: size 40 align 4;
    Counters: size 24 align 8;
    BackendCounters: size 48 align 8;
    Suspect: size 4 align 4;
    Budget: size 16 align 4;
}

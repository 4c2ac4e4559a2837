//! The maps, and safe ways to use them. Also the kernel's own tables and clocks that programs
//! consult: the socket table, the boot clock, cookies.
//!
//! Map names end in 4 or 6 where a map exists once per family. What each holds is said in
//! lb-common's `abi`; docs/MAP-ABI.md has the overview.

use core::{mem::MaybeUninit, ptr::NonNull};

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_CURRENT_NETNS, BPF_NOEXIST, bpf_sock, bpf_sock_tuple},
    btf_maps::{
        Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockMap, lpm_trie::Key as LpmKey,
    },
    helpers::{
        bpf_csum_diff, bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie,
        bpf_ktime_get_boot_ns, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_map_lookup_elem,
        bpf_map_update_elem, bpf_set_retval, bpf_sk_assign, bpf_sk_lookup_tcp, bpf_sk_lookup_udp,
        bpf_sk_release, bpf_skc_lookup_tcp,
    },
    macros::btf_map,
};
use lb_common::{
    abi::{
        Address, Backend, BackendCounters, Budget, ConnectOrigin, Counters, Flow, FlowKey, Lease,
        MAX_BACKENDS, MAX_CONNECTS, MAX_FLOWS, MAX_HALF_FLOWS, MAX_HALF_RETURNS, MAX_LEASES,
        MAX_NAT_RETURNS, MAX_PEERS, MAX_SERVICES, MAX_UPLINKS, MAX_VIPS, Mac, MacKey, MaglevTable,
        NODE_NONE, NatReturn, Node, NodeConfig, REASON_SLOTS, ReplyPort, Service, ServiceKey,
        Suspect, Uplink, UplinkKey, Vip,
        events::{EVENTS_BYTES, Event, Stage, TRACE_BYTES, TraceEvent, TraceFilter},
        sends::{MAX_SENDS, SendKey},
        sources::{MAX_SOURCE_RATES, MAX_SOURCE_RULES, SourceKey, SourceRate, SourceRule},
    },
    conntrack::Segment,
    headers::IPPROTO_UDP,
};

use crate::{
    family::Family,
    packet::{self, CHUNK, Context, SockAddr, SockLookup},
    parse::Transport,
};

/// The tuples that sockets are looked up by.
pub(crate) use aya_ebpf::bindings::{
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6,
};

type A4 = [u8; 4];
type A6 = [u8; 16];

#[btf_map(name = "services4")]
pub(crate) static SERVICES4: HashMap<ServiceKey<A4>, Service, { MAX_SERVICES as usize }> =
    HashMap::new();
#[btf_map(name = "services6")]
pub(crate) static SERVICES6: HashMap<ServiceKey<A6>, Service, { MAX_SERVICES as usize }> =
    HashMap::new();
#[btf_map(name = "maglev")]
static MAGLEV: Array<MaglevTable, { 2 * MAX_SERVICES as usize }> = Array::new();
#[btf_map(name = "backends4")]
pub(crate) static BACKENDS4: Array<Backend<A4>, { MAX_BACKENDS as usize }> = Array::new();
#[btf_map(name = "backends6")]
pub(crate) static BACKENDS6: Array<Backend<A6>, { MAX_BACKENDS as usize }> = Array::new();
#[btf_map(name = "flows4")]
pub(crate) static FLOWS4: LruHashMap<FlowKey<A4>, Flow, { MAX_FLOWS as usize }> = LruHashMap::new();
#[btf_map(name = "flows6")]
pub(crate) static FLOWS6: LruHashMap<FlowKey<A6>, Flow, { MAX_FLOWS as usize }> = LruHashMap::new();
#[btf_map(name = "returns4")]
pub(crate) static RETURNS4: LruHashMap<FlowKey<A4>, NatReturn<A4>, { MAX_NAT_RETURNS as usize }> =
    LruHashMap::new();
#[btf_map(name = "returns6")]
pub(crate) static RETURNS6: LruHashMap<FlowKey<A6>, NatReturn<A6>, { MAX_NAT_RETURNS as usize }> =
    LruHashMap::new();
#[btf_map(name = "nat_sources4")]
pub(crate) static NAT_SOURCES4: HashMap<ServiceKey<A4>, Node, { MAX_BACKENDS as usize }> =
    HashMap::new();
#[btf_map(name = "nat_sources6")]
pub(crate) static NAT_SOURCES6: HashMap<ServiceKey<A6>, Node, { MAX_BACKENDS as usize }> =
    HashMap::new();
#[btf_map(name = "vips4")]
pub(crate) static VIPS4: HashMap<A4, Vip, { MAX_VIPS as usize }> = HashMap::new();
#[btf_map(name = "vips6")]
pub(crate) static VIPS6: HashMap<A6, Vip, { MAX_VIPS as usize }> = HashMap::new();
#[btf_map(name = "leases")]
static LEASES: Array<Lease, { MAX_LEASES as usize }> = Array::new();
#[btf_map(name = "peer_macs")]
static PEER_MACS: HashMap<MacKey, Node, { MAX_PEERS as usize }> = HashMap::new();
#[btf_map(name = "peer_addrs4")]
pub(crate) static PEER_ADDRS4: HashMap<A4, Node, { MAX_PEERS as usize }> = HashMap::new();
#[btf_map(name = "peer_addrs6")]
pub(crate) static PEER_ADDRS6: HashMap<A6, Node, { MAX_PEERS as usize }> = HashMap::new();
#[btf_map(name = "reply_ports4")]
pub(crate) static REPLY_PORTS4: HashMap<ServiceKey<A4>, ReplyPort, { MAX_SERVICES as usize }> =
    HashMap::new();
#[btf_map(name = "reply_ports6")]
pub(crate) static REPLY_PORTS6: HashMap<ServiceKey<A6>, ReplyPort, { MAX_SERVICES as usize }> =
    HashMap::new();
#[btf_map(name = "uplinks")]
static UPLINKS: HashMap<UplinkKey, Uplink, { MAX_UPLINKS as usize }> = HashMap::new();
#[btf_map(name = "node")]
static NODE: Array<NodeConfig, 1> = Array::new();
#[btf_map(name = "connects4")]
pub(crate) static CONNECTS4: LruHashMap<u64, ConnectOrigin<A4>, { MAX_CONNECTS as usize }> =
    LruHashMap::new();
#[btf_map(name = "connects6")]
pub(crate) static CONNECTS6: LruHashMap<u64, ConnectOrigin<A6>, { MAX_CONNECTS as usize }> =
    LruHashMap::new();
#[btf_map(name = "sends4")]
pub(crate) static SENDS4: LruHashMap<SendKey<A4>, ServiceKey<A4>, { MAX_SENDS as usize }> =
    LruHashMap::new();
#[btf_map(name = "sends6")]
pub(crate) static SENDS6: LruHashMap<SendKey<A6>, ServiceKey<A6>, { MAX_SENDS as usize }> =
    LruHashMap::new();
#[btf_map(name = "half_flows4")]
pub(crate) static HALF_FLOWS4: LruHashMap<FlowKey<A4>, Flow, { MAX_HALF_FLOWS as usize }> =
    LruHashMap::new();
#[btf_map(name = "half_flows6")]
pub(crate) static HALF_FLOWS6: LruHashMap<FlowKey<A6>, Flow, { MAX_HALF_FLOWS as usize }> =
    LruHashMap::new();
#[btf_map(name = "half_returns4")]
pub(crate) static HALF_RETURNS4: LruHashMap<
    FlowKey<A4>,
    NatReturn<A4>,
    { MAX_HALF_RETURNS as usize },
> = LruHashMap::new();
#[btf_map(name = "half_returns6")]
pub(crate) static HALF_RETURNS6: LruHashMap<
    FlowKey<A6>,
    NatReturn<A6>,
    { MAX_HALF_RETURNS as usize },
> = LruHashMap::new();
#[btf_map(name = "sources4")]
pub(crate) static SOURCES4: LpmTrie<SourceKey<A4>, SourceRule, { MAX_SOURCE_RULES as usize }> =
    LpmTrie::new();
#[btf_map(name = "sources6")]
pub(crate) static SOURCES6: LpmTrie<SourceKey<A6>, SourceRule, { MAX_SOURCE_RULES as usize }> =
    LpmTrie::new();
#[btf_map(name = "source_rates4")]
pub(crate) static SOURCE_RATES4: LruHashMap<
    SourceKey<A4>,
    SourceRate,
    { MAX_SOURCE_RATES as usize },
> = LruHashMap::new();
#[btf_map(name = "source_rates6")]
pub(crate) static SOURCE_RATES6: LruHashMap<
    SourceKey<A6>,
    SourceRate,
    { MAX_SOURCE_RATES as usize },
> = LruHashMap::new();
#[btf_map(name = "suspects")]
static SUSPECTS: Array<Suspect, { MAX_BACKENDS as usize }> = Array::new();
#[btf_map(name = "budget")]
static BUDGET: PerCpuArray<Budget, 1> = PerCpuArray::new();
#[btf_map(name = "trace")]
static TRACE: Array<TraceFilter, 1> = Array::new();
#[btf_map(name = "events")]
static EVENTS: RingBuf<(), { EVENTS_BYTES as usize }> = RingBuf::new();
#[btf_map(name = "trace_events")]
static TRACE_EVENTS: RingBuf<(), { TRACE_BYTES as usize }> = RingBuf::new();
#[btf_map(name = "listeners")]
static LISTENERS: SockMap<{ MAX_SERVICES as usize }> = SockMap::new();
#[btf_map(name = "backend_stats")]
static BACKEND_STATS: PerCpuArray<BackendCounters, { MAX_BACKENDS as usize }> = PerCpuArray::new();
#[btf_map(name = "reason_stats")]
static REASON_STATS: PerCpuArray<Counters, { (MAX_SERVICES * REASON_SLOTS) as usize }> =
    PerCpuArray::new();

/// What the stages know of a packet, beside its flow.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Facts {
    /// Offset of the IP header.
    l3: u32,
    /// Offset of the upper-layer header.
    l4: u32,
    /// Offset of the packet's end by its IP header.
    end: u32,
    /// VLAN tags, see [`UplinkKey`].
    pub(crate) tags: u32,
    /// SEG.SEQ.
    pub(crate) seq: u32,
    /// SEG.ACK.
    pub(crate) ack: u32,
    /// SEG.LEN in bytes.
    pub(crate) len: u32,
    /// The backend that was chosen; 0: none.
    pub(crate) backend: u32,
    /// Upper-layer checksum as in the frame.
    pub(crate) checksum: [u8; 2],
    /// TCP control bits.
    pub(crate) flags: u8,
    /// Number of the [`Stage`] that decided.
    pub(crate) stage: u8,
}

impl Facts {
    const EMPTY: Self = Self {
        l3: 0,
        l4: 0,
        end: 0,
        tags: 0,
        seq: 0,
        ack: 0,
        len: 0,
        backend: 0,
        checksum: [0; 2],
        flags: 0,
        stage: Stage::Parse as u8,
    };

    /// Offset of the IP header, as the verifier is content with it.
    #[inline(always)]
    pub(crate) const fn l3(&self) -> usize {
        self.l3 as usize & 0x1f
    }

    /// Offset of the upper-layer header, likewise.
    #[inline(always)]
    pub(crate) const fn l4(&self) -> usize {
        self.l4 as usize & 0x1ff
    }

    /// Offset of the packet's end, likewise.
    #[inline(always)]
    pub(crate) const fn end(&self) -> usize {
        self.end as usize & 0xf_ffff
    }

    /// The TCP segment.
    #[inline(always)]
    pub(crate) const fn segment(&self) -> Segment {
        Segment {
            seq: self.seq,
            ack: self.ack,
            len: self.len,
            flags: self.flags,
        }
    }
}

/// A part of a packet, aligned for words.
#[repr(C, align(8))]
pub(crate) struct Chunk(pub(crate) [u8; CHUNK]);

/// Working memory of one run of the ingress pipeline: keys and values that are too large for
/// the 512 bytes of stack, and what stages hand to each other. Not shared with user space.
#[repr(C)]
pub(crate) struct Scratch<A> {
    /// The flow as on the wire.
    pub(crate) key: FlowKey<A>,
    /// The flow as it goes out; its protocol is 0 as long as nothing is translated.
    pub(crate) out: FlowKey<A>,
    /// The flow as a nat backend's replies carry it.
    pub(crate) back: FlowKey<A>,
    /// The flow that has a nat port now.
    pub(crate) holder: FlowKey<A>,
    /// A service to look up.
    pub(crate) service_key: ServiceKey<A>,
    /// A source to look up.
    pub(crate) source: LpmKey<SourceKey<A>>,
    /// A return entry to write.
    pub(crate) entry: NatReturn<A>,
    /// A flow entry to write.
    pub(crate) flow: Flow,
    /// What is known of the packet.
    pub(crate) facts: Facts,
    /// A record to send.
    pub(crate) record: MaybeUninit<TraceEvent>,
    /// A part of the packet.
    pub(crate) chunk: Chunk,
    /// See [`Scratch::forget`].
    cell: u32,
    /// See [`Scratch::is_traced`].
    traced: u32,
}

impl<A: Address> Scratch<A> {
    /// Nothing is known of the packet but its addresses.
    #[inline(always)]
    pub(crate) fn begin(&mut self) {
        self.facts = Facts::EMPTY;
        self.out.set_transport(0, 0, 0);
    }

    /// Write down what is known of the packet, for the stages that follow.
    #[inline(always)]
    pub(crate) fn save(&mut self, l3: usize, end: usize, tags: u32, transport: &Transport) {
        let facts = &mut self.facts;
        facts.l3 = l3 as u32;
        facts.l4 = transport.l4 as u32;
        facts.end = end as u32;
        facts.tags = tags;
        facts.seq = transport.segment.seq;
        facts.ack = transport.segment.ack;
        facts.len = transport.segment.len;
        facts.flags = transport.segment.flags;
        facts.checksum = transport.checksum;
    }

    /// Fill in the ports and the protocol of the flow and of its service, by words: the lookups that
    /// follow read words, and have to wait for what was written in smaller pieces.
    #[inline(always)]
    pub(crate) fn set_ports(&mut self, sport: u16, dport: u16, proto: u8) {
        let [s0, s1] = sport.to_ne_bytes();
        let [d0, d1] = dport.to_ne_bytes();
        let ports = u32::from_ne_bytes([s0, s1, d0, d1]);
        let last = u32::from_ne_bytes([proto, 0, 0, 0]);
        let service = u32::from_ne_bytes([d0, d1, proto, 0]);
        self.service_key = ServiceKey::new(self.key.dst(), dport, proto);
        let key = (&raw mut self.key).cast::<u32>();
        let service_key = (&raw mut self.service_key).cast::<u32>();
        let words = size_of::<A>() / 4;
        // SAFETY: the words behind the addresses of both keys, which `abi` lays out like this; the
        // working memory and the sizes of the keys are multiples of 4.
        unsafe {
            key.add(2 * words).write_volatile(ports);
            key.add(2 * words + 1).write_volatile(last);
            service_key.add(words).write_volatile(service);
        }
    }

    /// Note whether somebody wants to know what becomes of the packet.
    #[inline(always)]
    pub(crate) fn set_traced(&mut self, traced: bool) {
        let field = &raw mut self.traced;
        // SAFETY: a field of our own; volatile, so that the verifier does not know the value, and
        // does not check everything in between twice.
        unsafe { field.write_volatile(u32::from(traced)) };
    }

    /// Whether somebody wants to know what becomes of the packet.
    #[inline(always)]
    pub(crate) fn is_traced(&self) -> bool {
        // SAFETY: as in `set_traced`.
        unsafe { (&raw const self.traced).read_volatile() != 0 }
    }

    /// Note where the decision is made.
    #[inline(always)]
    pub(crate) fn stage(&mut self, stage: Stage) {
        self.facts.stage = stage as u8;
    }

    /// The same value, of which the verifier knows only that it is at most `MASK`: paths that
    /// differ in nothing but an offset (VLAN tags, IP options, extension headers) become one
    /// from here on, instead of being verified to the end one by one.
    #[inline(always)]
    pub(crate) fn forget<const MASK: usize>(&mut self, value: usize) -> usize {
        let cell = &raw mut self.cell;
        // SAFETY: a field of our own; volatile, so that the value really takes this detour.
        unsafe {
            cell.write_volatile(value as u32);
            cell.read_volatile() as usize & MASK
        }
    }
}

/// 1 in a copy of the programs that explains what would happen: it changes no map, counts nothing
/// and traces everything. The verifier knows the value and removes what does not apply.
#[unsafe(no_mangle)]
static DRY_RUN: u32 = 0;

/// Whether nothing may be changed.
#[inline(always)]
pub(crate) fn dry_run() -> bool {
    // SAFETY: a static; volatile, because the loader may have set another value.
    unsafe { (&raw const DRY_RUN).read_volatile() != 0 }
}

/// What kernels do not all have: the loader writes 0 to each of these where the running one lacks it. The verifier knows the values and does not look at code that they switch off.
///
/// 1: XDP frames of several buffers, and helpers for them (`bpf_xdp_get_buff_len`,
/// `bpf_xdp_load_bytes`): Linux 5.18.
#[unsafe(no_mangle)]
pub(crate) static XDP_BUFFERS: u32 = 1;
/// 1: a clock that is a timer tick old at most (`bpf_ktime_get_coarse_ns`): Linux 5.11.
#[unsafe(no_mangle)]
pub(crate) static COARSE_CLOCK: u32 = 1;
/// 1: hooks choose the error of the system call that they refuse (`bpf_set_retval`): Linux 6.1 for
/// `connect()`, though the helper is of 5.18.
#[unsafe(no_mangle)]
pub(crate) static SET_RETVAL: u32 = 1;
/// 1: packet programs write to socket maps. Linux 7.3 does not let them any more: there the controller
/// keeps `listeners`.
#[unsafe(no_mangle)]
pub(crate) static SOCKMAP_UPDATE: u32 = 1;

/// Whether the running kernel has what one of the constants above is about.
#[inline(always)]
pub(crate) fn kernel_has(what: &'static u32) -> bool {
    // SAFETY: a static; volatile, because the loader may have set another value.
    unsafe { core::ptr::from_ref(what).read_volatile() != 0 }
}

#[btf_map(name = "scratch4")]
static SCRATCH4: PerCpuArray<Scratch<A4>, 1> = PerCpuArray::new();
#[btf_map(name = "scratch6")]
static SCRATCH6: PerCpuArray<Scratch<A6>, 1> = PerCpuArray::new();

/// This CPU's working memory for IPv4.
///
/// Exclusive: only the ingress program asks for it, once a run, and runs of it do not interrupt
/// one another on a CPU (XDP runs in the network softirq).
#[inline(always)]
pub(crate) fn scratch4() -> Option<&'static mut Scratch<A4>> {
    // SAFETY: see above; map memory outlives the program's run.
    SCRATCH4
        .get_ptr_mut(0)
        .map(|scratch| unsafe { &mut *scratch })
}

/// This CPU's working memory for IPv6; see [`scratch4`].
#[inline(always)]
pub(crate) fn scratch6() -> Option<&'static mut Scratch<A6>> {
    // SAFETY: as in `scratch4`.
    SCRATCH6
        .get_ptr_mut(0)
        .map(|scratch| unsafe { &mut *scratch })
}

/// A map lookup.
///
/// May race with an update by the controller, which replaces whole elements of hash maps (the
/// element is old or new) and overwrites array elements in place: a [`Backend`] may then be
/// half old and half new, which sends at most the packets of that microsecond to the old next
/// hop; TCP repeats them.
#[inline(always)]
pub(crate) fn find<K, V, const N: usize>(map: &HashMap<K, V, N>, key: &K) -> Option<&'static V> {
    // SAFETY: elements stay readable until the program ends (RCU); the race is described above.
    unsafe { map.get(key).map(|value| &*core::ptr::from_ref(value)) }
}

/// [`find`] that copies the value.
#[inline(always)]
pub(crate) fn get<K, V: Copy, const N: usize>(map: &HashMap<K, V, N>, key: &K) -> Option<V> {
    // SAFETY: as in `find`; the value is copied at once.
    unsafe { map.get(key) }.copied()
}

/// [`get`] for LRU maps.
#[inline(always)]
pub(crate) fn get_lru<K, V: Copy, const N: usize>(map: &LruHashMap<K, V, N>, key: &K) -> Option<V> {
    // SAFETY: as in `find`.
    unsafe { map.get(key) }.copied()
}

/// [`find`] for LRU maps.
#[inline(always)]
pub(crate) fn find_lru<K, V, const N: usize>(
    map: &LruHashMap<K, V, N>,
    key: &K,
) -> Option<&'static V> {
    // SAFETY: as in `find`; an evicted element may be recycled while it is read, which sends one
    // packet astray.
    unsafe { map.get(key).map(|value| &*core::ptr::from_ref(value)) }
}

/// Run `change` on the value of `key` in place (on a copy of it in a dry run).
///
/// Two CPUs may do so at once (a flow's packets on two queues): fields are single words, so a
/// reader sees an old or a new one; `cl_ack`/`cl_next` may miss one step forward and catch up
/// with the next segment. An evicted entry may be recycled meanwhile: the change is then lost
/// or, in the worst case, moves another flow's sequence numbers once.
#[inline(always)]
pub(crate) fn update_lru<K, V: Copy, R, const N: usize>(
    map: &LruHashMap<K, V, N>,
    key: &K,
    change: impl FnOnce(&mut V) -> R,
) -> Option<R> {
    // SAFETY: the pointer is valid until the program ends (RCU); races as described above.
    let value = unsafe { &mut *map.get_ptr_mut(key)? };
    let mut copy = MaybeUninit::uninit();
    // One call for both cases: two would make a function of the closure, which the verifier then
    // checks along every path.
    Some(change(if dry_run() { copy.write(*value) } else { value }))
}

/// Insert or replace.
#[inline(always)]
pub(crate) fn put_lru<K, V, const N: usize>(map: &LruHashMap<K, V, N>, key: &K, value: &V) -> bool {
    dry_run() || map.insert(key, value, u64::from(BPF_ANY)).is_ok()
}

/// Insert; false if the key exists or there is no memory.
#[inline(always)]
pub(crate) fn put_new_lru<K, V, const N: usize>(
    map: &LruHashMap<K, V, N>,
    key: &K,
    value: &V,
) -> bool {
    if dry_run() {
        return map.get_ptr(key).is_none();
    }
    map.insert(key, value, u64::from(BPF_NOEXIST)).is_ok()
}

/// Remove a key that may not be there.
#[inline(always)]
pub(crate) fn remove_lru<K, V, const N: usize>(map: &LruHashMap<K, V, N>, key: &K) {
    if dry_run() {
        return;
    }
    // Absent is what was wanted.
    let _ = map.remove(key);
}

/// What the longest prefix says that fits `key`.
#[inline(always)]
pub(crate) fn rule<A, const N: usize>(
    map: &LpmTrie<SourceKey<A>, SourceRule, N>,
    key: &LpmKey<SourceKey<A>>,
) -> Option<SourceRule> {
    map.get(key).copied()
}

/// Whether this CPU may make one more entry in second `now`: for a new flow, or an adopted one.
#[inline(always)]
pub(crate) fn take_budget(now: u32, adopted: bool) -> bool {
    if dry_run() {
        return true;
    }
    let (Some(node), Some(budget)) = (NODE.get(0), BUDGET.get_ptr_mut(0)) else {
        return false;
    };
    // SAFETY: the element of this CPU, used by the ingress programs only.
    let budget = unsafe { &mut *budget };
    if adopted {
        budget.take_adoption(now, node.adoption_limit())
    } else {
        budget.take_new_flow(now, node.new_flow_limit())
    }
}

/// Whether a backend refused a connection lately.
#[inline(always)]
pub(crate) fn is_suspect(backend: u32, now: u32) -> bool {
    SUSPECTS
        .get(backend)
        .is_some_and(|suspect| suspect.is_suspect(now))
}

/// A backend refused a connection: count it, keep new flows away from it, and tell the controller
/// (once, not for each of the connections that meet the same refusal).
#[inline(always)]
pub(crate) fn refused(service: u32, backend: u32, now: u32) {
    if dry_run() {
        return;
    }
    count_backend(backend, BackendCounters::refusal);
    let Some(suspect) = SUSPECTS.get_ptr_mut(backend) else {
        return;
    };
    // SAFETY: a single word of an array element; two CPUs write the same.
    let suspect = unsafe { &mut *suspect };
    if suspect.is_suspect(now) {
        return;
    }
    *suspect = Suspect::since(now);
    // A full ring buffer means that nobody listens: checks find out by themselves.
    let _ = EVENTS.output_untyped::<Event>(Event::refused(service, backend), 0);
}

/// One's complement sum of `seed` and the `length` bytes (1 to [`CHUNK`]) at `offset` of the frame,
/// by way of `chunk`; sums are in native order. `None` if they are not there.
#[inline(always)]
pub(crate) fn add_part<C: Context>(
    ctx: &C,
    offset: usize,
    chunk: &mut Chunk,
    length: usize,
    seed: u32,
) -> Option<u32> {
    if length == 0 || length > CHUNK {
        return None;
    }
    // The same length, from 1 to CHUNK by its form: verifiers before Linux 6.8 learn nothing from a
    // comparison with 0.
    let length = (packet::settled(length as u64 - 1) as usize & (CHUNK - 1)) + 1;
    // The helper sums words: what is missing in the last one is zero.
    let last = (length - 1) & !3;
    let words = chunk.0.as_mut_ptr();
    // SAFETY: `last` is a multiple of 4 below CHUNK, and the chunk is aligned.
    #[expect(clippy::cast_ptr_alignment, reason = "a chunk is aligned for words")]
    unsafe {
        words.add(last).cast::<u32>().write_volatile(0);
    };
    if !ctx.copy(offset, &mut chunk.0, length) {
        return None;
    }
    let rounded = last as u32 + 4;
    // SAFETY: the helper reads at most CHUNK bytes, a multiple of 4.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, words.cast(), rounded, seed) };
    // The sum, or a negative errno, which makes the checksum a wrong one.
    Some(sum.cast_unsigned() as u32)
}

/// The filter of the trace.
#[inline(always)]
pub(crate) fn trace_filter() -> Option<&'static TraceFilter> {
    TRACE.get(0)
}

/// Hand a record to whoever traces.
#[inline(always)]
pub(crate) fn send_record(record: &TraceEvent) {
    // A full buffer loses the record: whoever reads it is too slow.
    let _ = TRACE_EVENTS.output_untyped::<TraceEvent>(record, 0);
}

/// Keep the listener at `slot` of `listeners`; false if the map refuses it, as it does MPTCP ones.
#[inline(always)]
fn keep_listener(slot: u32, sock: &Sock) -> bool {
    if dry_run() {
        return true;
    }
    let map = (&raw const LISTENERS).cast_mut().cast();
    let slot = &raw const slot;
    let sock = sock.0.as_ptr().cast();
    // SAFETY: a sockmap takes a referenced socket as its value.
    unsafe { bpf_map_update_elem(map, slot.cast_mut().cast(), sock, u64::from(BPF_ANY)) == 0 }
}

/// The listener at `slot` of `listeners`.
#[inline(always)]
fn kept_listener(slot: u32) -> Option<Sock> {
    let map = (&raw const LISTENERS).cast_mut().cast();
    let slot = &raw const slot;
    // SAFETY: the key is of the map's size; what is found is a referenced socket.
    let sock = unsafe { bpf_map_lookup_elem(map, slot.cast()) };
    NonNull::new(sock.cast()).map(Sock)
}

/// Give what `lookup` asks about to the listener at `slot` of `listeners`, if that is bound to
/// `addr`:`port`. The map may still hold one of a service that had this slot before.
#[inline(always)]
pub(crate) fn assign_listener<F: Family>(
    lookup: &SockLookup,
    slot: u32,
    addr: &F::Addr,
    port: u16,
) -> bool {
    let Some(sock) = kept_listener(slot) else {
        return false;
    };
    is_bound::<F>(&sock, addr, port) && sock.take(lookup)
}

/// Whether a socket is bound to `addr`:`port`.
#[inline(always)]
fn is_bound<F: Family>(sock: &Sock, addr: &F::Addr, port: u16) -> bool {
    F::bound(sock).same(addr) && sock.port() == u32::from(port)
}

/// Backend id in `slot` of Maglev table `table`; 0 if there is none.
#[inline(always)]
pub(crate) fn maglev(table: u32, slot: u32) -> u32 {
    MAGLEV
        .get(table)
        .map_or(0, |table| u32::from(table.backend(slot)))
}

/// Whether this node may claim the address of `vip` now.
#[inline(always)]
pub(crate) fn may_claim(vip: Vip) -> bool {
    if vip.lease() == 0 {
        return true;
    }
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    LEASES
        .get(vip.lease())
        .is_some_and(|lease| lease.is_valid(now))
}

/// Node number of the peer with this MAC, [`NODE_NONE`] if there is none.
#[inline(always)]
pub(crate) fn peer_of_mac(mac: Mac) -> u32 {
    if NODE.get(0).is_some_and(|node| !node.may_be_peer(&mac)) {
        return NODE_NONE;
    }
    get(&PEER_MACS, &MacKey::new(mac)).map_or(NODE_NONE, |node| node.number())
}

/// The MAC of the uplink that is VLAN `tags` of interface `ifindex`.
#[inline(always)]
pub(crate) fn uplink_mac(ifindex: u32, tags: u32) -> Option<Mac> {
    let written = NODE.get(0).and_then(|node| node.uplink_mac(ifindex, tags));
    if written.is_some() {
        return written;
    }
    get(&UPLINKS, &UplinkKey::new(ifindex, tags)).map(|uplink| uplink.mac())
}

/// Nanoseconds of the monotonic clock: the coarse one, a timer tick old at most and cheap, where the
/// kernel has it.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    if !kernel_has(&COARSE_CLOCK) {
        // SAFETY: the helper has no preconditions.
        return unsafe { bpf_ktime_get_ns() };
    }
    // SAFETY: as above.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Seconds of [`now_ns`].
#[inline(always)]
pub(crate) fn now_seconds() -> u32 {
    (now_ns() / 1_000_000_000) as u32
}

/// A random number.
#[inline(always)]
pub(crate) fn random() -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_prandom_u32() }
}

/// Count a packet (or `connect()`) of `bytes` bytes, of service id `service` (0: none), under the
/// reason with number `reason`, and the new connection that it begins if it does.
#[inline(always)]
pub(crate) fn count(service: u32, reason: u32, bytes: u64, connection: bool) {
    if dry_run() {
        return;
    }
    if let Some(counters) = REASON_STATS.get_ptr_mut(service * REASON_SLOTS + reason) {
        // SAFETY: the element of this CPU; programs do not preempt one another on a CPU except
        // by interrupt (tc egress from a timer, say), which can lose one count.
        let counters = unsafe { &mut *counters };
        counters.packet(bytes);
        if connection {
            counters.connection();
        }
    }
}

/// Count something of backend id `backend`.
#[inline(always)]
pub(crate) fn count_backend(backend: u32, change: impl FnOnce(&mut BackendCounters)) {
    if dry_run() {
        return;
    }
    if let Some(counters) = BACKEND_STATS.get_ptr_mut(backend) {
        // SAFETY: as in `count`.
        change(unsafe { &mut *counters });
    }
}

/// Cookie of a hooked socket: unique while the machine is up.
#[inline(always)]
pub(crate) fn socket_cookie(addr: &SockAddr) -> u64 {
    // SAFETY: the pointer is the program's own context.
    unsafe { bpf_get_socket_cookie(addr.raw()) }
}

/// Whether a hooked socket lives in the controller's network namespace.
#[inline(always)]
pub(crate) fn in_node_netns(addr: &SockAddr) -> bool {
    // SAFETY: the pointer is the program's own context.
    let cookie = unsafe { bpf_get_netns_cookie(addr.raw()) };
    NODE.get(0)
        .is_some_and(|node| node.netns_cookie() == cookie)
}

/// Make the hooked system call fail with -`errno`; with `EPERM` where the kernel leaves no choice.
#[inline(always)]
pub(crate) fn set_errno(errno: i32) {
    if !kernel_has(&SET_RETVAL) {
        return;
    }
    // SAFETY: the helper has no preconditions in the hooks that use it (connect, sendmsg).
    unsafe { bpf_set_retval(-errno) };
}

/// `struct bpf_sock.state` values (`include/net/tcp_states.h`).
const TCP_TIME_WAIT: u32 = 6;
const TCP_LISTEN: u32 = 10;
const TCP_NEW_SYN_RECV: u32 = 12;

/// A socket found in the kernel's table, released when dropped.
pub(crate) struct Sock(NonNull<bpf_sock>);

impl Sock {
    #[inline(always)]
    fn state(&self) -> u32 {
        // SAFETY: the reference is held until drop.
        unsafe { (&raw const (*self.0.as_ptr()).state).read_volatile() }
    }

    /// The port that it is bound to, host order.
    #[inline(always)]
    fn port(&self) -> u32 {
        // SAFETY: as in `state`.
        unsafe { (&raw const (*self.0.as_ptr()).src_port).read_volatile() }
    }

    /// The IPv4 address that it is bound to, network order.
    #[inline(always)]
    pub(crate) fn addr4(&self) -> u32 {
        // SAFETY: as in `state`.
        unsafe { (&raw const (*self.0.as_ptr()).src_ip4).read_volatile() }
    }

    /// The IPv6 address that it is bound to, in words of network order.
    #[inline(always)]
    pub(crate) fn addr6(&self) -> [u32; 4] {
        // SAFETY: as in `state`; the verifier wants one access for each word.
        unsafe {
            let words = (&raw const (*self.0.as_ptr()).src_ip6).cast::<u32>();
            [
                words.read_volatile(),
                words.add(1).read_volatile(),
                words.add(2).read_volatile(),
                words.add(3).read_volatile(),
            ]
        }
    }

    /// Let it take what `lookup` asks about.
    #[inline(always)]
    fn take(&self, lookup: &SockLookup) -> bool {
        // SAFETY: the program's own context, and a socket whose reference is held.
        unsafe { bpf_sk_assign(lookup.raw(), self.0.as_ptr().cast(), 0) == 0 }
    }
}

impl Drop for Sock {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: taken by a lookup helper and released once.
        unsafe { bpf_sk_release(self.0.as_ptr().cast()) };
    }
}

/// The calling program's network namespace, as the lookup helpers take it.
const CURRENT_NETNS: u64 = (BPF_F_CURRENT_NETNS as i64).cast_unsigned();

/// What the kernel's socket table has for a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum SocketMatch {
    /// Nothing.
    None,
    /// A listener only.
    Listener,
    /// A connection request that this node answered.
    Request,
    /// What is left of a connection that this node closed.
    TimeWait,
    /// A connection.
    Connection,
}

#[inline(always)]
fn classify(sock: Option<Sock>) -> SocketMatch {
    let Some(sock) = sock else {
        return SocketMatch::None;
    };
    match sock.state() {
        TCP_TIME_WAIT => SocketMatch::TimeWait,
        TCP_LISTEN => SocketMatch::Listener,
        TCP_NEW_SYN_RECV => SocketMatch::Request,
        _ => SocketMatch::Connection,
    }
}

/// A tuple as the kernel's helpers take it, and its size.
#[inline(always)]
fn as_tuple<T>(tuple: &mut T) -> (*mut bpf_sock_tuple, u32) {
    (core::ptr::from_mut(tuple).cast(), size_of::<T>() as u32)
}

/// The kernel's socket for a flow to port `dport` of this node.
#[inline(always)]
pub(crate) fn socket<C: Context, F: Family>(
    ctx: &C,
    flow: &FlowKey<F::Addr>,
    dport: u16,
) -> SocketMatch {
    let mut tuple = F::tuple(flow, flow.dst_ref(), dport);
    let (tuple, size) = as_tuple(&mut tuple);
    // SAFETY: the tuple is initialised and of the size said.
    let sock = unsafe { bpf_skc_lookup_tcp(ctx.raw(), tuple, size, CURRENT_NETNS, 0) };
    classify(NonNull::new(sock).map(Sock))
}

/// Let packets for a service's VIP reach the listener at `addr`:`port` of this node, by keeping it
/// in `listeners`; false if there is none, or if it cannot be kept.
#[inline(always)]
pub(crate) fn find_listener<C: Context, F: Family>(
    ctx: &C,
    flow: &FlowKey<F::Addr>,
    addr: &F::Addr,
    port: u16,
    slot: u32,
) -> bool {
    let mut tuple = F::tuple(flow, addr, port);
    let (tuple, size) = as_tuple(&mut tuple);
    // SAFETY: the tuple is initialised and of the size said.
    let sock = unsafe { bpf_sk_lookup_tcp(ctx.raw(), tuple, size, CURRENT_NETNS, 0) };
    let Some(sock) = NonNull::new(sock).map(Sock) else {
        return false;
    };
    if sock.state() != TCP_LISTEN {
        return false;
    }
    if kernel_has(&SOCKMAP_UPDATE) {
        return keep_listener(slot, &sock);
    }
    drop(sock);
    kept_listener(slot).is_some_and(|kept| is_bound::<F>(&kept, addr, port))
}

/// Whether the hooked socket's network namespace has a listener for this flow (TCP), or a socket
/// (UDP).
#[inline(always)]
pub(crate) fn listens<F: Family>(addr: &SockAddr, flow: &FlowKey<F::Addr>) -> bool {
    let mut tuple = F::tuple(flow, flow.dst_ref(), flow.dport());
    let (tuple, size) = as_tuple(&mut tuple);
    if flow.proto() == IPPROTO_UDP {
        // SAFETY: the tuple is initialised and of the size said.
        let sock = unsafe { bpf_sk_lookup_udp(addr.raw(), tuple, size, CURRENT_NETNS, 0) };
        return NonNull::new(sock).map(Sock).is_some();
    }
    // SAFETY: as above.
    let sock = unsafe { bpf_sk_lookup_tcp(addr.raw(), tuple, size, CURRENT_NETNS, 0) };
    classify(NonNull::new(sock).map(Sock)) == SocketMatch::Listener
}

/// An IPv6 address as four words in network order.
#[inline(always)]
pub(crate) fn words(addr: A6) -> [u32; 4] {
    match addr.as_chunks::<4>().0 {
        [a, b, c, d] => [
            u32::from_ne_bytes(*a),
            u32::from_ne_bytes(*b),
            u32::from_ne_bytes(*c),
            u32::from_ne_bytes(*d),
        ],
        _ => [0; 4],
    }
}

/// The inverse of [`words`].
#[inline(always)]
pub(crate) fn from_words(words: [u32; 4]) -> A6 {
    let mut addr = [0; 16];
    for (to, from) in addr.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *to = from.to_ne_bytes();
    }
    addr
}

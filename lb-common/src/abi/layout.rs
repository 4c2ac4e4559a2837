//! The map ABI as data, for user space: every map with the fields of its key and value.
//!
//! A test compares it with the object's BTF, and whoever adopts pinned maps with what the kernel
//! says of them. The compiler holds it complete: a field that is missing here does not compile.

use core::mem::{offset_of, size_of};

use super::{
    Backend, BackendCounters, Budget, ConnectOrigin, Counters, Flow, FlowKey, Lease, MAGLEV_SLOTS,
    MAX_BACKENDS, MAX_CONNECTS, MAX_FLOWS, MAX_HALF_FLOWS, MAX_HALF_RETURNS, MAX_LEASES,
    MAX_NAT_RETURNS, MAX_PEERS, MAX_SERVICES, MAX_UPLINKS, MAX_VIPS, MacKey, MaglevTable,
    NatReturn, Node, NodeConfig, REASON_SLOTS, ReplyPort, Service, ServiceKey, Suspect, Uplink,
    UplinkKey, V4, V6, Vip,
    events::{EVENTS_BYTES, TRACE_BYTES, TraceFilter},
    sends::{MAX_SENDS, SendKey},
    sources::{MAX_SOURCE_RATES, MAX_SOURCE_RULES, SourceKey, SourceRate, SourceRule},
};

/// One field of a struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name, as bpftool prints it.
    pub name: &'static str,
    /// Bytes before it.
    pub offset: usize,
    /// Bytes that it takes.
    pub size: usize,
}

/// A key or value type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeLayout {
    /// Rust's name without type parameters.
    pub name: &'static str,
    /// Size in bytes.
    pub size: usize,
    /// Fields in order; none for integers and byte arrays.
    pub fields: &'static [Field],
}

/// What keeps a map's elements (the numbers of `enum bpf_map_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MapKind {
    /// `BPF_MAP_TYPE_HASH`.
    Hash = 1,
    /// `BPF_MAP_TYPE_ARRAY`.
    Array = 2,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`.
    PerCpuArray = 6,
    /// `BPF_MAP_TYPE_LRU_HASH`.
    LruHash = 9,
    /// `BPF_MAP_TYPE_LPM_TRIE`.
    LpmTrie = 11,
    /// `BPF_MAP_TYPE_SOCKMAP`.
    SockMap = 15,
    /// `BPF_MAP_TYPE_RINGBUF`.
    RingBuf = 27,
}

/// A map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapLayout {
    /// Its name in the object and among the pins.
    pub name: &'static str,
    /// What keeps its elements.
    pub kind: MapKind,
    /// Key type.
    pub key: TypeLayout,
    /// Value type.
    pub value: TypeLayout,
    /// Capacity in elements.
    pub max_entries: u32,
}

/// Types whose layout is known.
trait Layout {
    const LAYOUT: TypeLayout;
}

macro_rules! plain {
    ($($type:ty: $name:literal;)+) => {
        $(impl Layout for $type {
            const LAYOUT: TypeLayout = TypeLayout {
                name: $name,
                size: size_of::<$type>(),
                fields: &[],
            };
        })+
    };
}

plain! {
    u32: "u32";
    u64: "u64";
    V4: "[u8; 4]";
    V6: "[u8; 16]";
}

/// A key of an LPM trie: bits that count, then the data.
macro_rules! lpm_keys {
    ($($addr:ty),+) => {
        $(impl Layout for LpmKey<SourceKey<$addr>> {
            const LAYOUT: TypeLayout = TypeLayout {
                name: "Key",
                size: 4 + size_of::<SourceKey<$addr>>(),
                fields: &[
                    Field { name: "prefix_len", offset: 0, size: 4 },
                    Field { name: "data", offset: 4, size: size_of::<SourceKey<$addr>>() },
                ],
            };
        })+
    };
}

/// Stands for the key of an LPM trie with this data.
struct LpmKey<D>(core::marker::PhantomData<D>);

lpm_keys!(V4, V6);

/// Size of the field that `_access` returns.
const fn field_size<T, F>(_access: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! structs {
    ($($type:ident $(<$param:ident>)? { $($field:ident),+ })+) => {
        $(impl $(<$param: 'static>)? Layout for $type $(<$param>)? {
            const LAYOUT: TypeLayout = {
                // Refuses to compile when a field is missing.
                let _: fn(&Self) = |$type { $($field: _),+ }| ();
                TypeLayout {
                    name: stringify!($type),
                    size: size_of::<Self>(),
                    fields: &[$(Field {
                        name: stringify!($field),
                        offset: offset_of!(Self, $field),
                        size: field_size(|value: &Self| &value.$field),
                    }),+],
                }
            };
        })+
    };
}

structs! {
    Backend<A> { addr, ifindex, service, node, port, mac, method, state, epoch, tags }
    BackendCounters { packets, bytes, connections, resets, refused, drops }
    Budget { second, new_flows, adoptions, pad }
    ConnectOrigin<A> { vip, backend_addr, backend, vip_port, backend_port }
    Counters { packets, bytes, connections }
    Flow { backend, last_seen, cl_ack, cl_next, nat_port, path, state, flags, epoch }
    FlowKey<A> { src, dst, sport, dport, proto, pad0, pad1 }
    Lease { deadline_ns }
    MacKey { mac, pad }
    MaglevTable { slots }
    NatReturn<A> { client, ifindex, backend, tags, client_port, vip_port, mac, pad }
    Node { node }
    NodeConfig {
        netns_cookie, no_peers, abi_version, new_flow_limit, adoption_limit, uplink_ifindex, uplink_tags,
        uplink_mac, pad0, pad1
    }
    ReplyPort { port, service }
    SendKey<A> { cookie, addr, port, pad }
    Service {
        id, table, local_backend, source_rate, source_burst, fallback, local_port, flags,
        idle_seconds, pad
    }
    ServiceKey<A> { vip, port, proto, pad }
    TraceFilter { client, mask, family, pad0, client_port, vip_port, pad1 }
    SourceKey<A> { service, addr }
    SourceRate { arrival_ns }
    SourceRule { action }
    Suspect { until }
    Uplink { mac, pad }
    UplinkKey { ifindex, tags }
    Vip { lease, flags }
}

const _: () = assert!(MAGLEV_SLOTS * 2 == size_of::<MaglevTable>());

macro_rules! maps {
    ($($name:literal: $kind:ident <$key:ty, $value:ty>, $max:expr;)+) => {
        /// Every map that the programs share with user space.
        pub const MAPS: &[MapLayout] = &[$(MapLayout {
            name: $name,
            kind: MapKind::$kind,
            key: <$key as Layout>::LAYOUT,
            value: <$value as Layout>::LAYOUT,
            max_entries: $max,
        }),+];
    };
}

maps! {
    "services4": Hash<ServiceKey<V4>, Service>, MAX_SERVICES;
    "services6": Hash<ServiceKey<V6>, Service>, MAX_SERVICES;
    "maglev": Array<u32, MaglevTable>, 2 * MAX_SERVICES;
    "backends4": Array<u32, Backend<V4>>, MAX_BACKENDS;
    "backends6": Array<u32, Backend<V6>>, MAX_BACKENDS;
    "flows4": LruHash<FlowKey<V4>, Flow>, MAX_FLOWS;
    "flows6": LruHash<FlowKey<V6>, Flow>, MAX_FLOWS;
    "returns4": LruHash<FlowKey<V4>, NatReturn<V4>>, MAX_NAT_RETURNS;
    "returns6": LruHash<FlowKey<V6>, NatReturn<V6>>, MAX_NAT_RETURNS;
    "nat_sources4": Hash<ServiceKey<V4>, Node>, MAX_BACKENDS;
    "nat_sources6": Hash<ServiceKey<V6>, Node>, MAX_BACKENDS;
    "half_flows4": LruHash<FlowKey<V4>, Flow>, MAX_HALF_FLOWS;
    "half_flows6": LruHash<FlowKey<V6>, Flow>, MAX_HALF_FLOWS;
    "half_returns4": LruHash<FlowKey<V4>, NatReturn<V4>>, MAX_HALF_RETURNS;
    "half_returns6": LruHash<FlowKey<V6>, NatReturn<V6>>, MAX_HALF_RETURNS;
    "sources4": LpmTrie<LpmKey<SourceKey<V4>>, SourceRule>, MAX_SOURCE_RULES;
    "sources6": LpmTrie<LpmKey<SourceKey<V6>>, SourceRule>, MAX_SOURCE_RULES;
    "source_rates4": LruHash<SourceKey<V4>, SourceRate>, MAX_SOURCE_RATES;
    "source_rates6": LruHash<SourceKey<V6>, SourceRate>, MAX_SOURCE_RATES;
    "vips4": Hash<V4, Vip>, MAX_VIPS;
    "vips6": Hash<V6, Vip>, MAX_VIPS;
    "leases": Array<u32, Lease>, MAX_LEASES;
    "peer_macs": Hash<MacKey, Node>, MAX_PEERS;
    "peer_addrs4": Hash<V4, Node>, MAX_PEERS;
    "peer_addrs6": Hash<V6, Node>, MAX_PEERS;
    "reply_ports4": Hash<ServiceKey<V4>, ReplyPort>, MAX_SERVICES;
    "reply_ports6": Hash<ServiceKey<V6>, ReplyPort>, MAX_SERVICES;
    "uplinks": Hash<UplinkKey, Uplink>, MAX_UPLINKS;
    "node": Array<u32, NodeConfig>, 1;
    "connects4": LruHash<u64, ConnectOrigin<V4>>, MAX_CONNECTS;
    "connects6": LruHash<u64, ConnectOrigin<V6>>, MAX_CONNECTS;
    "sends4": LruHash<SendKey<V4>, ServiceKey<V4>>, MAX_SENDS;
    "sends6": LruHash<SendKey<V6>, ServiceKey<V6>>, MAX_SENDS;
    "suspects": Array<u32, Suspect>, MAX_BACKENDS;
    "budget": PerCpuArray<u32, Budget>, 1;
    "trace": Array<u32, TraceFilter>, 1;
    "backend_stats": PerCpuArray<u32, BackendCounters>, MAX_BACKENDS;
    "reason_stats": PerCpuArray<u32, Counters>, MAX_SERVICES * REASON_SLOTS;
}

/// The maps that have no key or value type: ring buffers (their size in bytes), and sockets.
pub const UNTYPED_MAPS: &[(&str, MapKind, u32)] = &[
    ("events", MapKind::RingBuf, EVENTS_BYTES),
    ("trace_events", MapKind::RingBuf, TRACE_BYTES),
    ("listeners", MapKind::SockMap, MAX_SERVICES),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes of a struct's fields add up to its own: no padding that nobody wrote down.
    #[test]
    fn no_implicit_padding() {
        for map in MAPS {
            for layout in [map.key, map.value] {
                let sum: usize = layout.fields.iter().map(|field| field.size).sum();
                if !layout.fields.is_empty() {
                    assert_eq!(sum, layout.size, "{} in {}", layout.name, map.name);
                }
            }
        }
    }
}

//! What differs between IPv4 and IPv6: header layout, maps, and the address checks. The
//! pipeline is written once over [`Family`] and monomorphised.

use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap};
use lb_common::{
    abi::{
        Address, Backend, ConnectOrigin, Flow, FlowKey, MAX_BACKENDS, MAX_CONNECTS, MAX_FLOWS,
        MAX_HALF_FLOWS, MAX_HALF_RETURNS, MAX_NAT_RETURNS, MAX_PEERS, MAX_SERVICES, MAX_VIPS,
        NatReturn, Node, ReplyPort, Service, ServiceKey, Vip,
        events::{FAMILY_V4, FAMILY_V6},
        sends::{MAX_SENDS, SendKey},
        sources::{MAX_SOURCE_RATES, MAX_SOURCE_RULES, SourceKey, SourceRate, SourceRule},
    },
    checksum::{self, Delta},
    hash::HashWords,
    headers::{
        IPPROTO_DSTOPTS, IPPROTO_FRAGMENT, IPPROTO_HOPOPTS, IPPROTO_ICMP, IPPROTO_ICMPV6,
        IPPROTO_ROUTING, IPPROTO_TCP, IcmpHeader, Ipv4Header, Ipv6Extension, Ipv6Header, Wire,
    },
    reason::Reason,
};

use crate::{
    maps::{self, Chunk, Scratch, Sock, Tuple4, Tuple6},
    packet::{self, Context, SockAddr, SockLookup},
    stages::{self, Walk},
};

/// An IP packet up to its upper-layer header.
#[derive(Clone, Copy)]
pub(crate) struct Ip {
    /// Protocol of the upper layer.
    pub(crate) proto: u8,
    /// Offset of the upper-layer header in the frame.
    pub(crate) l4: usize,
    /// Offset of the packet's end by its IP header: frame padding is not counted. Not compared
    /// with the frame yet, see [`Ip::upper_len`].
    pub(crate) end: usize,
    /// A fragment: ports may be missing.
    pub(crate) fragment: bool,
}

impl Ip {
    /// Length of the upper-layer header and data, if the frame holds all of it.
    #[inline(always)]
    pub(crate) fn upper_len<C: Context>(&self, ctx: &C) -> Result<usize, Reason> {
        if self.end < self.l4 || !packet::holds(ctx, self.end) {
            return Err(Reason::Truncated);
        }
        Ok(self.end - self.l4)
    }
}

/// TTL of packets that a program makes (RFC 9293 section 3.5.2 leaves it open; Linux's default).
const ANSWER_TTL: u8 = 64;

/// Where a packet ends whose length field says `length` bytes after `start`. Of an aggregate that is
/// too long for the field (BIG TCP) the field is 0.
#[inline(always)]
fn end<C: Context>(ctx: &C, start: usize, length: usize) -> usize {
    const LONGEST: usize = 65_535;
    if length == 0 && ctx.length() > LONGEST {
        return ctx.length();
    }
    start + length
}

/// What protocol (TCP) and length add to the sum of a pseudo-header, in native order.
#[inline(always)]
fn tail_sum(length: u32) -> u64 {
    u64::from(length.to_be()) + u64::from(u32::from(IPPROTO_TCP).to_be())
}

/// Sum of an IPv6 address's words, in native order.
///
/// No loop: verifiers before Linux 6.3 refuse one whose first instruction follows a call.
#[inline(always)]
fn sum_of_words(addr: &[u8; 16]) -> u64 {
    let [a, b, c, d] = maps::words(*addr);
    u64::from(a) + u64::from(b) + u64::from(c) + u64::from(d)
}

/// An IP version.
pub(crate) trait Family: 'static {
    /// Address type.
    type Addr: Address + HashWords + Wire;

    /// Offset of source and destination address in the IP header.
    const ADDRESSES: usize;

    /// IPv6, not IPv4.
    const IS_IPV6: bool;

    /// See [`crate::select::stage`].
    fn select(node: u32, backend: u32) -> u64;
    /// See [`crate::select::usable`].
    fn usable(id: u32, service: u32, node: u32, avoided: u32) -> u64;
    /// See [`crate::nat::claim_port`].
    fn claim(backend: u32, port: u32) -> u64;
    /// This CPU's working memory.
    fn scratch() -> Option<&'static mut Scratch<Self::Addr>>;
    /// Check the IP header at `l3` and find the upper layer. The lengths are left to
    /// [`Ip::upper_len`]: those of outgoing GSO frames may be anything.
    fn locate<C: Walk>(ctx: &C, l3: usize) -> Result<Ip, Reason>;
    /// Whether a client may have this address.
    fn valid_source(addr: &Self::Addr) -> bool;
    /// Fix the IP header's own checksum, where there is one, for changed addresses; false if the
    /// header is not there.
    fn fix_header_checksum<C: Context>(
        ctx: &C,
        l3: usize,
        old: [&Self::Addr; 2],
        new: [&Self::Addr; 2],
    ) -> bool;
    /// What a changed address adds to a checksum.
    fn delta(old: &Self::Addr, new: &Self::Addr) -> Delta;
    /// Bytes of the IP header without options or extension headers.
    const HEADER_LEN: usize;
    /// [`lb_common::abi::events::FAMILY_V4`] or the other one.
    const NUMBER: u8;
    /// Write an IP header for an answer of `length` bytes of `proto` from `src` to `dst`; false if
    /// there is no room.
    fn write_header<C: Context>(
        ctx: &C,
        l3: usize,
        length: u16,
        proto: u8,
        src: &Self::Addr,
        dst: &Self::Addr,
    ) -> bool;
    /// Bits of an address.
    const ADDRESS_BITS: u32;
    /// Sum of the TCP pseudo-header for `length` bytes, in native order.
    fn pseudo_sum(src: &Self::Addr, dst: &Self::Addr, length: u32) -> u64;
    /// Whether the IP header's own checksum, where there is one, is right.
    fn header_intact<C: Context>(ctx: &C, l3: usize, l4: usize, chunk: &mut Chunk) -> bool;
    /// Take one off the TTL (hop limit) and fix the header's checksum; false if it ran out.
    fn hop<C: Context>(ctx: &C, l3: usize) -> bool;
    /// IP protocol number of this family's ICMP.
    const ICMP: u8;
    /// Whether ICMP messages of type `kind` are errors about a packet.
    fn is_icmp_error(kind: u8) -> bool;
    /// Whether ICMP messages of type `kind` are neighbour or router discovery.
    fn is_neighbour_discovery(kind: u8) -> bool;
    /// Protocol and length of the quoted IP header at `l3`; `None` if no transport header follows.
    fn quoted<C: Context>(ctx: &C, l3: usize) -> Option<(u8, usize)>;
    /// What the changes of addresses in an IP header mean for the sum of an ICMP message that is
    /// behind it or quotes it.
    fn in_icmp_sum(addresses: Delta) -> Delta;
    /// The address as the trace writes it.
    fn record(addr: &Self::Addr) -> [u8; 16];
    /// The address of a source whose rate is limited: IPv6 by its /64.
    fn limited(addr: &Self::Addr) -> Self::Addr;

    /// The destination of a hooked `connect()`.
    fn hooked(addr: &SockAddr) -> Self::Addr;
    /// Replace the destination of a hooked `connect()` or the result of `getpeername()`.
    fn set_hooked(addr: &SockAddr, to: Self::Addr);
    /// Addresses and ports as the kernel's helpers look sockets up by them.
    type Tuple;
    /// The tuple of what `flow`'s client sends to `dst`:`dport`.
    fn tuple(flow: &FlowKey<Self::Addr>, dst: &Self::Addr, dport: u16) -> Self::Tuple;
    /// The address that a socket is bound to.
    fn bound(sock: &Sock) -> Self::Addr;
    /// The address that a socket is looked up for.
    fn looked_up(lookup: &SockLookup) -> Self::Addr;

    /// Services.
    fn services() -> &'static HashMap<ServiceKey<Self::Addr>, Service, { MAX_SERVICES as usize }>;
    /// Backends by id.
    fn backends() -> &'static Array<Backend<Self::Addr>, { MAX_BACKENDS as usize }>;
    /// Conntrack.
    fn flows() -> &'static LruHashMap<FlowKey<Self::Addr>, Flow, { MAX_FLOWS as usize }>;
    /// Conntrack of flows that no ACK was seen of.
    fn half_flows() -> &'static LruHashMap<FlowKey<Self::Addr>, Flow, { MAX_HALF_FLOWS as usize }>;
    /// nat return paths of those.
    fn half_returns() -> &'static LruHashMap<
        FlowKey<Self::Addr>,
        NatReturn<Self::Addr>,
        { MAX_HALF_RETURNS as usize },
    >;
    /// Rules about sources.
    fn sources()
    -> &'static LpmTrie<SourceKey<Self::Addr>, SourceRule, { MAX_SOURCE_RULES as usize }>;
    /// Rates of sources.
    fn source_rates()
    -> &'static LruHashMap<SourceKey<Self::Addr>, SourceRate, { MAX_SOURCE_RATES as usize }>;
    /// nat return paths.
    fn returns()
    -> &'static LruHashMap<FlowKey<Self::Addr>, NatReturn<Self::Addr>, { MAX_NAT_RETURNS as usize }>;
    /// nat backends by address and port.
    fn nat_sources() -> &'static HashMap<ServiceKey<Self::Addr>, Node, { MAX_BACKENDS as usize }>;
    /// VIPs.
    fn vips() -> &'static HashMap<Self::Addr, Vip, { MAX_VIPS as usize }>;
    /// Peers by address.
    fn peer_addrs() -> &'static HashMap<Self::Addr, Node, { MAX_PEERS as usize }>;
    /// VIP ports by (VIP, backend port).
    fn reply_ports()
    -> &'static HashMap<ServiceKey<Self::Addr>, ReplyPort, { MAX_SERVICES as usize }>;
    /// Redirected connects by socket cookie.
    fn connects() -> &'static LruHashMap<u64, ConnectOrigin<Self::Addr>, { MAX_CONNECTS as usize }>;
    /// Services by socket and backend, of datagrams that were redirected.
    fn sends()
    -> &'static LruHashMap<SendKey<Self::Addr>, ServiceKey<Self::Addr>, { MAX_SENDS as usize }>;
}

/// The maps of a family: the one place that names them.
macro_rules! family_maps {
    ($addr:ty, $services:ident, $backends:ident, $flows:ident, $returns:ident, $nat_sources:ident,
     $vips:ident, $peer_addrs:ident, $reply_ports:ident, $connects:ident, $half_flows:ident,
     $half_returns:ident, $sources:ident, $source_rates:ident, $sends:ident) => {
        #[inline(always)]
        fn sends() -> &'static LruHashMap<SendKey<$addr>, ServiceKey<$addr>, { MAX_SENDS as usize }> {
            &maps::$sends
        }
        #[inline(always)]
        fn half_flows() -> &'static LruHashMap<FlowKey<$addr>, Flow, { MAX_HALF_FLOWS as usize }> {
            &maps::$half_flows
        }
        #[inline(always)]
        fn half_returns()
        -> &'static LruHashMap<FlowKey<$addr>, NatReturn<$addr>, { MAX_HALF_RETURNS as usize }> {
            &maps::$half_returns
        }
        #[inline(always)]
        fn sources() -> &'static LpmTrie<SourceKey<$addr>, SourceRule, { MAX_SOURCE_RULES as usize }> {
            &maps::$sources
        }
        #[inline(always)]
        fn source_rates()
        -> &'static LruHashMap<SourceKey<$addr>, SourceRate, { MAX_SOURCE_RATES as usize }> {
            &maps::$source_rates
        }
        #[inline(always)]
        fn services() -> &'static HashMap<ServiceKey<$addr>, Service, { MAX_SERVICES as usize }> {
            &maps::$services
        }
        #[inline(always)]
        fn backends() -> &'static Array<Backend<$addr>, { MAX_BACKENDS as usize }> {
            &maps::$backends
        }
        #[inline(always)]
        fn flows() -> &'static LruHashMap<FlowKey<$addr>, Flow, { MAX_FLOWS as usize }> {
            &maps::$flows
        }
        #[inline(always)]
        fn returns() -> &'static LruHashMap<FlowKey<$addr>, NatReturn<$addr>, { MAX_NAT_RETURNS as usize }> {
            &maps::$returns
        }
        #[inline(always)]
        fn nat_sources() -> &'static HashMap<ServiceKey<$addr>, Node, { MAX_BACKENDS as usize }> {
            &maps::$nat_sources
        }
        #[inline(always)]
        fn vips() -> &'static HashMap<$addr, Vip, { MAX_VIPS as usize }> {
            &maps::$vips
        }
        #[inline(always)]
        fn peer_addrs() -> &'static HashMap<$addr, Node, { MAX_PEERS as usize }> {
            &maps::$peer_addrs
        }
        #[inline(always)]
        fn reply_ports() -> &'static HashMap<ServiceKey<$addr>, ReplyPort, { MAX_SERVICES as usize }> {
            &maps::$reply_ports
        }
        #[inline(always)]
        fn connects() -> &'static LruHashMap<u64, ConnectOrigin<$addr>, { MAX_CONNECTS as usize }> {
            &maps::$connects
        }
    };
}

/// IPv4.
pub(crate) struct V4;

impl Family for V4 {
    type Addr = [u8; 4];

    const ADDRESSES: usize = Ipv4Header::ADDRESSES;

    #[inline(always)]
    fn select(node: u32, backend: u32) -> u64 {
        stages::select4(node, backend)
    }

    #[inline(always)]
    fn usable(id: u32, service: u32, node: u32, avoided: u32) -> u64 {
        stages::usable4(id, service, node, avoided)
    }

    #[inline(always)]
    fn claim(backend: u32, port: u32) -> u64 {
        stages::claim_port4(backend, port)
    }

    #[inline(always)]
    fn scratch() -> Option<&'static mut Scratch<[u8; 4]>> {
        maps::scratch4()
    }

    #[inline(always)]
    fn locate<C: Walk>(ctx: &C, l3: usize) -> Result<Ip, Reason> {
        let ip: Ipv4Header = packet::load(ctx, l3).ok_or(Reason::Truncated)?;
        let header_len = ip.header_len();
        if ip.version() != 4 || header_len < Ipv4Header::LEN {
            return Err(Reason::BadIpv4Header);
        }
        Ok(Ip {
            proto: ip.protocol,
            l4: l3 + header_len,
            end: end(ctx, l3, usize::from(ip.total_length())),
            fragment: ip.is_fragment(),
        })
    }

    /// Not 0.0.0.0/8, 127.0.0.0/8, multicast or 240.0.0.0/4 (RFC 1122 section 3.2.1.3).
    #[inline(always)]
    fn valid_source(addr: &[u8; 4]) -> bool {
        let [first, ..] = *addr;
        first != 0 && first != 127 && first < 224
    }

    #[inline(always)]
    fn fix_header_checksum<C: Context>(
        ctx: &C,
        l3: usize,
        [old_src, old_dst]: [&[u8; 4]; 2],
        [new_src, new_dst]: [&[u8; 4]; 2],
    ) -> bool {
        let at = l3 + Ipv4Header::CHECKSUM;
        let Some(sum) = packet::load::<C, [u8; 2]>(ctx, at) else {
            return false;
        };
        let sum = checksum::update_bytes(u16::from_be_bytes(sum), old_src, new_src);
        let sum = checksum::update_bytes(sum, old_dst, new_dst);
        packet::store(ctx, at, sum.to_be_bytes())
    }

    #[inline(always)]
    fn delta(old: &[u8; 4], new: &[u8; 4]) -> Delta {
        Delta::bytes(old, new)
    }

    const ADDRESS_BITS: u32 = 32;
    const IS_IPV6: bool = false;

    #[inline(always)]
    fn pseudo_sum(src: &[u8; 4], dst: &[u8; 4], length: u32) -> u64 {
        u64::from(u32::from_ne_bytes(*src)) + u64::from(u32::from_ne_bytes(*dst)) + tail_sum(length)
    }

    const HEADER_LEN: usize = Ipv4Header::LEN;
    const NUMBER: u8 = FAMILY_V4;

    #[inline(always)]
    fn write_header<C: Context>(
        ctx: &C,
        l3: usize,
        length: u16,
        proto: u8,
        src: &[u8; 4],
        dst: &[u8; 4],
    ) -> bool {
        let mut header = Ipv4Header {
            version_ihl: 0x45,
            tos: 0,
            total_length: (Ipv4Header::LEN as u16 + length).to_be_bytes(),
            id: [0; 2],
            fragment: Ipv4Header::DONT_FRAGMENT,
            ttl: ANSWER_TTL,
            protocol: proto,
            checksum: [0; 2],
            src: *src,
            dst: *dst,
        };
        header.checksum = header.computed_checksum();
        packet::store(ctx, l3, header)
    }

    #[inline(always)]
    fn header_intact<C: Context>(ctx: &C, l3: usize, l4: usize, chunk: &mut Chunk) -> bool {
        // 20..=60 bytes, a multiple of 4.
        let length = l4.wrapping_sub(l3) & 0x3c;
        maps::add_part(ctx, l3, chunk, length, 0)
            .is_some_and(|sum| checksum::fold32(u64::from(sum)) == u16::MAX)
    }

    #[inline(always)]
    fn hop<C: Context>(ctx: &C, l3: usize) -> bool {
        let Some([ttl, proto]) = packet::load::<C, [u8; 2]>(ctx, l3 + Ipv4Header::TTL) else {
            return false;
        };
        if ttl <= 1 {
            return false;
        }
        let at = l3 + Ipv4Header::CHECKSUM;
        let Some(sum) = packet::load::<C, [u8; 2]>(ctx, at) else {
            return false;
        };
        let old = u16::from_be_bytes([ttl, proto]);
        let sum = Delta::word(old, old - 0x100).apply(sum);
        packet::store(ctx, l3 + Ipv4Header::TTL, ttl - 1) && packet::store(ctx, at, sum)
    }

    const ICMP: u8 = IPPROTO_ICMP;

    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        IcmpHeader::is_error_v4(kind)
    }

    #[inline(always)]
    fn is_neighbour_discovery(_kind: u8) -> bool {
        false
    }

    #[inline(always)]
    fn quoted<C: Context>(ctx: &C, l3: usize) -> Option<(u8, usize)> {
        let ip: Ipv4Header = packet::load(ctx, l3)?;
        let header_len = ip.header_len();
        let usable = ip.version() == 4 && header_len >= Ipv4Header::LEN && !ip.is_later_fragment();
        usable.then_some((ip.protocol, header_len))
    }

    /// Nothing: there is no pseudo-header, and a quoted header's own checksum makes up for it.
    #[inline(always)]
    fn in_icmp_sum(_addresses: Delta) -> Delta {
        Delta::ZERO
    }

    #[inline(always)]
    fn record(addr: &[u8; 4]) -> [u8; 16] {
        maps::from_words([u32::from_ne_bytes(*addr), 0, 0, 0])
    }

    #[inline(always)]
    fn limited(addr: &[u8; 4]) -> [u8; 4] {
        *addr
    }

    #[inline(always)]
    fn hooked(addr: &SockAddr) -> [u8; 4] {
        addr.ip4()
    }

    #[inline(always)]
    fn set_hooked(addr: &SockAddr, to: [u8; 4]) {
        addr.set_ip4(to);
    }

    type Tuple = Tuple4;

    #[inline(always)]
    fn tuple(flow: &FlowKey<[u8; 4]>, dst: &[u8; 4], dport: u16) -> Tuple4 {
        Tuple4 {
            saddr: u32::from_ne_bytes(flow.src()),
            daddr: u32::from_ne_bytes(*dst),
            sport: flow.sport().to_be(),
            dport: dport.to_be(),
        }
    }

    #[inline(always)]
    fn bound(sock: &Sock) -> [u8; 4] {
        sock.addr4().to_ne_bytes()
    }

    #[inline(always)]
    fn looked_up(lookup: &SockLookup) -> [u8; 4] {
        lookup.local_ip4()
    }

    family_maps!(
        [u8; 4],
        SERVICES4,
        BACKENDS4,
        FLOWS4,
        RETURNS4,
        NAT_SOURCES4,
        VIPS4,
        PEER_ADDRS4,
        REPLY_PORTS4,
        CONNECTS4,
        HALF_FLOWS4,
        HALF_RETURNS4,
        SOURCES4,
        SOURCE_RATES4,
        SENDS4
    );
}

/// IPv6.
pub(crate) struct V6;

/// Bits 1 and 2 of a fragment header's offset field are reserved (RFC 8200 section 4.5).
const FRAGMENT_RESERVED: u16 = 0b110;
/// Extension headers that are walked before the upper layer.
const MAX_EXTENSIONS: usize = 4;
/// Total length of extension headers that are walked, in bytes.
const MAX_EXTENSION_BYTES: usize = 256;

impl Family for V6 {
    type Addr = [u8; 16];

    const ADDRESSES: usize = Ipv6Header::ADDRESSES;

    #[inline(always)]
    fn select(node: u32, backend: u32) -> u64 {
        stages::select6(node, backend)
    }

    #[inline(always)]
    fn usable(id: u32, service: u32, node: u32, avoided: u32) -> u64 {
        stages::usable6(id, service, node, avoided)
    }

    #[inline(always)]
    fn claim(backend: u32, port: u32) -> u64 {
        stages::claim_port6(backend, port)
    }

    #[inline(always)]
    fn scratch() -> Option<&'static mut Scratch<[u8; 16]>> {
        maps::scratch6()
    }

    #[inline(always)]
    fn locate<C: Walk>(ctx: &C, l3: usize) -> Result<Ip, Reason> {
        let ip: Ipv6Header = packet::load(ctx, l3).ok_or(Reason::Truncated)?;
        if ip.version() != 6 {
            return Err(Reason::BadIpv6Header);
        }
        let after = if is_extension(ip.next_header) {
            Extensions::decode(ctx.extensions(l3 as u32, u32::from(ip.next_header)))?
        } else {
            Extensions::none(ip.next_header)
        };
        Ok(Ip {
            proto: after.proto,
            l4: l3 + Ipv6Header::LEN + after.length,
            end: end(ctx, l3 + Ipv6Header::LEN, usize::from(ip.payload_length())),
            fragment: after.fragment,
        })
    }

    /// Not `::`, `::1` or multicast (RFC 4291 section 2.5).
    #[inline(always)]
    fn valid_source(addr: &[u8; 16]) -> bool {
        let [a, b, c, d] = maps::words(*addr);
        let special = a | b | c == 0 && u32::from_be(d) <= 1;
        let [first, ..] = *addr;
        !special && first != 0xff
    }

    /// IPv6 has no header checksum.
    #[inline(always)]
    fn fix_header_checksum<C: Context>(
        _ctx: &C,
        _l3: usize,
        _old: [&[u8; 16]; 2],
        _new: [&[u8; 16]; 2],
    ) -> bool {
        true
    }

    #[inline(always)]
    fn delta(old: &[u8; 16], new: &[u8; 16]) -> Delta {
        let change = Delta::bytes(old, new);
        Delta::from_wsum(packet::settled(u64::from(change.wsum())) as u32)
    }

    const ADDRESS_BITS: u32 = 128;
    const IS_IPV6: bool = true;

    #[inline(always)]
    fn pseudo_sum(src: &[u8; 16], dst: &[u8; 16], length: u32) -> u64 {
        tail_sum(length) + sum_of_words(src) + sum_of_words(dst)
    }

    const HEADER_LEN: usize = Ipv6Header::LEN;
    const NUMBER: u8 = FAMILY_V6;

    #[inline(always)]
    fn write_header<C: Context>(
        ctx: &C,
        l3: usize,
        length: u16,
        proto: u8,
        src: &[u8; 16],
        dst: &[u8; 16],
    ) -> bool {
        let [high, low] = length.to_be_bytes();
        packet::store(ctx, l3, [0x60, 0, 0, 0, high, low, proto, ANSWER_TTL])
            && packet::store_addresses(ctx, l3 + Ipv6Header::ADDRESSES, src, dst)
    }

    /// IPv6 has no header checksum.
    #[inline(always)]
    fn header_intact<C: Context>(_ctx: &C, _l3: usize, _l4: usize, _chunk: &mut Chunk) -> bool {
        true
    }

    #[inline(always)]
    fn hop<C: Context>(ctx: &C, l3: usize) -> bool {
        let at = l3 + Ipv6Header::HOP_LIMIT;
        match packet::load::<C, u8>(ctx, at) {
            Some(limit) if limit > 1 => packet::store(ctx, at, limit - 1),
            _ => false,
        }
    }

    const ICMP: u8 = IPPROTO_ICMPV6;

    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        IcmpHeader::is_error_v6(kind)
    }

    #[inline(always)]
    fn is_neighbour_discovery(kind: u8) -> bool {
        matches!(kind, 133..=137)
    }

    /// Extension headers are not looked through: services' packets have none.
    #[inline(always)]
    fn quoted<C: Context>(ctx: &C, l3: usize) -> Option<(u8, usize)> {
        let ip: Ipv6Header = packet::load(ctx, l3)?;
        (ip.version() == 6).then_some((ip.next_header, Ipv6Header::LEN))
    }

    #[inline(always)]
    fn in_icmp_sum(addresses: Delta) -> Delta {
        addresses
    }

    #[inline(always)]
    fn record(addr: &[u8; 16]) -> [u8; 16] {
        *addr
    }

    #[inline(always)]
    fn limited(addr: &[u8; 16]) -> [u8; 16] {
        let [a, b, _, _] = maps::words(*addr);
        maps::from_words([a, b, 0, 0])
    }

    #[inline(always)]
    fn hooked(addr: &SockAddr) -> [u8; 16] {
        maps::from_words(addr.ip6())
    }

    #[inline(always)]
    fn set_hooked(addr: &SockAddr, to: [u8; 16]) {
        addr.set_ip6(maps::words(to));
    }

    type Tuple = Tuple6;

    #[inline(always)]
    fn tuple(flow: &FlowKey<[u8; 16]>, dst: &[u8; 16], dport: u16) -> Tuple6 {
        Tuple6 {
            saddr: maps::words(flow.src()),
            daddr: maps::words(*dst),
            sport: flow.sport().to_be(),
            dport: dport.to_be(),
        }
    }

    #[inline(always)]
    fn bound(sock: &Sock) -> [u8; 16] {
        maps::from_words(sock.addr6())
    }

    #[inline(always)]
    fn looked_up(lookup: &SockLookup) -> [u8; 16] {
        maps::from_words(lookup.local_ip6())
    }

    family_maps!(
        [u8; 16],
        SERVICES6,
        BACKENDS6,
        FLOWS6,
        RETURNS6,
        NAT_SOURCES6,
        VIPS6,
        PEER_ADDRS6,
        REPLY_PORTS6,
        CONNECTS6,
        HALF_FLOWS6,
        HALF_RETURNS6,
        SOURCES6,
        SOURCE_RATES6,
        SENDS6
    );
}

/// What the extension headers of an IPv6 packet say.
struct Extensions {
    /// The protocol behind them.
    proto: u8,
    /// Their length in bytes.
    length: usize,
    /// A fragment header that is no atomic fragment's.
    fragment: bool,
}

/// Flags of an encoded [`Extensions`].
const IS_FRAGMENT: u64 = 1 << 24;
const IS_TRUNCATED: u64 = 1 << 25;
const IS_TOO_LONG: u64 = 1 << 26;

impl Extensions {
    /// Of a packet that has none before `proto`.
    #[inline(always)]
    const fn none(proto: u8) -> Self {
        Self {
            proto,
            length: 0,
            fragment: false,
        }
    }

    /// As an integer: bits 0-7 the protocol, 8-16 the length.
    #[inline(always)]
    fn encode(walked: Result<Self, Reason>) -> u64 {
        match walked {
            Ok(found) => {
                let fragment = if found.fragment { IS_FRAGMENT } else { 0 };
                u64::from(found.proto) | (found.length as u64) << 8 | fragment
            }
            Err(Reason::Truncated) => IS_TRUNCATED,
            Err(_) => IS_TOO_LONG,
        }
    }

    /// The inverse of [`Extensions::encode`].
    #[inline(always)]
    fn decode(value: u64) -> Result<Self, Reason> {
        if value & IS_TRUNCATED != 0 {
            return Err(Reason::Truncated);
        }
        if value & IS_TOO_LONG != 0 {
            return Err(Reason::Ipv6Extensions);
        }
        Ok(Self {
            proto: value as u8,
            length: (value >> 8) as usize & 0x1ff,
            fragment: value & IS_FRAGMENT != 0,
        })
    }
}

/// Whether another header follows one with this number, and it is to be walked through.
#[inline(always)]
const fn is_extension(proto: u8) -> bool {
    matches!(
        proto,
        IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS | IPPROTO_FRAGMENT
    )
}

impl V6 {
    /// Walk through the extension headers of the packet at `l3`, the first of which has number `proto`.
    /// A function of its own: few packets have any. The result is an encoded [`Extensions`].
    #[inline(always)]
    pub(crate) fn walk<C: Context>(ctx: &C, l3: u32, proto: u32) -> u64 {
        Extensions::encode(Self::extensions(ctx, l3 as usize & 0x1f, proto as u8))
    }

    #[inline(always)]
    fn extensions<C: Context>(ctx: &C, l3: usize, proto: u8) -> Result<Extensions, Reason> {
        let mut walked = Extensions::none(proto);
        for _ in 0..MAX_EXTENSIONS {
            if !is_extension(walked.proto) {
                break;
            }
            let at = l3 + Ipv6Header::LEN + walked.length;
            let extension: Ipv6Extension = packet::load(ctx, at).ok_or(Reason::Truncated)?;
            if walked.proto == IPPROTO_FRAGMENT {
                // Its second byte is reserved: the fragment header has a fixed length. An atomic
                // fragment is a whole packet (RFC 6946).
                let offset: [u8; 2] = packet::load(ctx, at + 2).ok_or(Reason::Truncated)?;
                walked.fragment |= u16::from_be_bytes(offset) & !FRAGMENT_RESERVED != 0;
                walked.length += 8;
            } else {
                walked.length += extension.header_len();
            }
            if walked.length > MAX_EXTENSION_BYTES {
                return Err(Reason::Ipv6Extensions);
            }
            walked.proto = extension.next_header;
        }
        if is_extension(walked.proto) {
            return Err(Reason::Ipv6Extensions);
        }
        Ok(walked)
    }
}

/// An IPv4 `connect()` on an IPv6 socket, whose destination is `::ffff:a.b.c.d` (RFC 4291
/// section 2.5.5.2): the maps are V4's, the hook's fields V6's.
pub(crate) struct V4Mapped;

impl V4Mapped {
    /// The IPv4 address, if `words` (network order) is a mapped one.
    #[inline(always)]
    pub(crate) fn unmap([a, b, c, d]: [u32; 4]) -> Option<[u8; 4]> {
        (a == 0 && b == 0 && c == 0xffff_u32.to_be()).then(|| d.to_ne_bytes())
    }

    /// The mapped form of `addr`, in words of network order.
    #[inline(always)]
    pub(crate) fn map(addr: [u8; 4]) -> [u32; 4] {
        [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes(addr)]
    }
}

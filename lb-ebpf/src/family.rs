//! What differs between IPv4 and IPv6: header layout, maps, and the address checks. The
//! pipeline is written once over [`Family`] and monomorphised.

use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap};
use lb_common::{
    abi::{
        Address, Backend, ConnectOrigin, Flow, FlowKey, MAX_BACKENDS, MAX_CONNECTS, MAX_FLOWS,
        MAX_NAT_RETURNS, MAX_PEERS, MAX_SERVICES, MAX_VIPS, NatReturn, Node, ReplyPort, Service,
        ServiceKey, Vip,
    },
    checksum,
    hash::HashWords,
    headers::{
        IPPROTO_DSTOPTS, IPPROTO_FRAGMENT, IPPROTO_HOPOPTS, IPPROTO_ROUTING, Ipv4Header,
        Ipv6Extension, Ipv6Header, Wire,
    },
    reason::Reason,
};

use crate::{
    maps::{self, Scratch, SocketMatch},
    packet::{self, Context, SockAddr},
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
        if ctx.data() + self.end > ctx.data_end() || self.end < self.l4 {
            return Err(Reason::Truncated);
        }
        Ok(self.end - self.l4)
    }
}

/// An IP version.
pub(crate) trait Family: 'static {
    /// Address type.
    type Addr: Address + HashWords + Wire;

    /// Offset of source and destination address in the IP header.
    const ADDRESSES: usize;

    /// This CPU's working memory.
    fn scratch() -> Option<&'static mut Scratch<Self::Addr>>;
    /// Check the IP header at `l3` and find the upper layer. The lengths are left to
    /// [`Ip::upper_len`]: those of outgoing GSO frames may be anything.
    fn locate<C: Context>(ctx: &C, l3: usize) -> Result<Ip, Reason>;
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
    /// RFC 1624 update of a checksum (host order) for a changed address.
    fn update_checksum(checksum: u16, old: &Self::Addr, new: &Self::Addr) -> u16;

    /// The destination of a hooked `connect()`.
    fn hooked(addr: &SockAddr) -> Self::Addr;
    /// Replace the destination of a hooked `connect()` or the result of `getpeername()`.
    fn set_hooked(addr: &SockAddr, to: Self::Addr);
    /// The kernel's socket for a flow to port `dport` of this node.
    fn socket<C: Context>(ctx: &C, flow: &FlowKey<Self::Addr>, dport: u16) -> SocketMatch;
    /// Whether the hooked socket's namespace listens for this flow.
    fn listens(addr: &SockAddr, flow: &FlowKey<Self::Addr>) -> bool;

    /// Services.
    fn services() -> &'static HashMap<ServiceKey<Self::Addr>, Service, { MAX_SERVICES as usize }>;
    /// Backends by id.
    fn backends() -> &'static Array<Backend<Self::Addr>, { MAX_BACKENDS as usize }>;
    /// Conntrack.
    fn flows() -> &'static LruHashMap<FlowKey<Self::Addr>, Flow, { MAX_FLOWS as usize }>;
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
}

/// The maps of a family: the one place that names them.
macro_rules! family_maps {
    ($addr:ty, $services:ident, $backends:ident, $flows:ident, $returns:ident, $nat_sources:ident,
     $vips:ident, $peer_addrs:ident, $reply_ports:ident, $connects:ident) => {
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
    fn scratch() -> Option<&'static mut Scratch<[u8; 4]>> {
        maps::scratch4()
    }

    #[inline(always)]
    fn locate<C: Context>(ctx: &C, l3: usize) -> Result<Ip, Reason> {
        let ip: Ipv4Header = packet::load(ctx, l3).ok_or(Reason::Truncated)?;
        let header_len = ip.header_len();
        if ip.version() != 4 || header_len < Ipv4Header::LEN {
            return Err(Reason::BadIpv4Header);
        }
        Ok(Ip {
            proto: ip.protocol,
            l4: l3 + header_len,
            end: l3 + usize::from(ip.total_length()),
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
    fn update_checksum(checksum: u16, old: &[u8; 4], new: &[u8; 4]) -> u16 {
        checksum::update_bytes(checksum, old, new)
    }

    #[inline(always)]
    fn hooked(addr: &SockAddr) -> [u8; 4] {
        addr.ip4()
    }

    #[inline(always)]
    fn set_hooked(addr: &SockAddr, to: [u8; 4]) {
        addr.set_ip4(to);
    }

    #[inline(always)]
    fn socket<C: Context>(ctx: &C, flow: &FlowKey<[u8; 4]>, dport: u16) -> SocketMatch {
        maps::socket4(ctx, flow, dport)
    }

    #[inline(always)]
    fn listens(addr: &SockAddr, flow: &FlowKey<[u8; 4]>) -> bool {
        maps::listens4(addr, flow)
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
        CONNECTS4
    );
}

/// IPv6.
pub(crate) struct V6;

/// Extension headers that are walked before the upper layer.
const MAX_EXTENSIONS: usize = 4;
/// Total length of extension headers that are walked, in bytes.
const MAX_EXTENSION_BYTES: usize = 256;

impl Family for V6 {
    type Addr = [u8; 16];

    const ADDRESSES: usize = Ipv6Header::ADDRESSES;

    #[inline(always)]
    fn scratch() -> Option<&'static mut Scratch<[u8; 16]>> {
        maps::scratch6()
    }

    #[inline(always)]
    fn locate<C: Context>(ctx: &C, l3: usize) -> Result<Ip, Reason> {
        let ip: Ipv6Header = packet::load(ctx, l3).ok_or(Reason::Truncated)?;
        if ip.version() != 6 {
            return Err(Reason::BadIpv6Header);
        }
        let mut proto = ip.next_header;
        let mut skipped = 0;
        let mut fragment = false;
        for _ in 0..MAX_EXTENSIONS {
            if !matches!(
                proto,
                IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS | IPPROTO_FRAGMENT
            ) {
                break;
            }
            let extension: Ipv6Extension =
                packet::load(ctx, l3 + Ipv6Header::LEN + skipped).ok_or(Reason::Truncated)?;
            if proto == IPPROTO_FRAGMENT {
                // Its second byte is reserved: the fragment header has a fixed length.
                fragment = true;
                skipped += 8;
            } else {
                skipped += extension.header_len();
            }
            if skipped > MAX_EXTENSION_BYTES {
                return Err(Reason::Ipv6Extensions);
            }
            proto = extension.next_header;
        }
        if matches!(
            proto,
            IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS | IPPROTO_FRAGMENT
        ) {
            return Err(Reason::Ipv6Extensions);
        }
        Ok(Ip {
            proto,
            l4: l3 + Ipv6Header::LEN + skipped,
            end: l3 + Ipv6Header::LEN + usize::from(ip.payload_length()),
            fragment,
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
    fn update_checksum(checksum: u16, old: &[u8; 16], new: &[u8; 16]) -> u16 {
        checksum::update_bytes(checksum, old, new)
    }

    #[inline(always)]
    fn hooked(addr: &SockAddr) -> [u8; 16] {
        maps::from_words(addr.ip6())
    }

    #[inline(always)]
    fn set_hooked(addr: &SockAddr, to: [u8; 16]) {
        addr.set_ip6(maps::words(to));
    }

    #[inline(always)]
    fn socket<C: Context>(ctx: &C, flow: &FlowKey<[u8; 16]>, dport: u16) -> SocketMatch {
        maps::socket6(ctx, flow, dport)
    }

    #[inline(always)]
    fn listens(addr: &SockAddr, flow: &FlowKey<[u8; 16]>) -> bool {
        maps::listens6(addr, flow)
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
        CONNECTS6
    );
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

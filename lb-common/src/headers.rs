//! Header layouts, each written once: a struct of byte arrays whose alignment is 1, so that a
//! bounds check of its size is the whole guarantee that reading it needs.
//!
//! Multi-byte fields are big-endian arrays with accessors in host order.

use crate::abi::same_mac;

/// Ethernet II type of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// Ethernet II type of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// Ethernet II type of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Ethernet II type of an IEEE 802.1Q tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// Ethernet II type of an IEEE 802.1ad service tag.
pub const ETHERTYPE_QINQ: u16 = 0x88a8;

/// IP protocol number of TCP.
pub const IPPROTO_TCP: u8 = 6;
/// IP protocol of ICMP (IPv4).
pub const IPPROTO_ICMP: u8 = 1;
/// IP protocol of UDP.
pub const IPPROTO_UDP: u8 = 17;
/// IP protocol number of `ICMPv6`.
pub const IPPROTO_ICMPV6: u8 = 58;
/// IP protocol number of VRRP.
pub const IPPROTO_VRRP: u8 = 112;
/// IPv6 hop-by-hop options.
pub const IPPROTO_HOPOPTS: u8 = 0;
/// IPv6 routing header.
pub const IPPROTO_ROUTING: u8 = 43;
/// IPv6 fragment header.
pub const IPPROTO_FRAGMENT: u8 = 44;
/// IPv6 destination options.
pub const IPPROTO_DSTOPTS: u8 = 60;

/// Ethernet II:
/// ```text
///  0               6              12     14
///  +---------------+---------------+------+
///  |  destination  |    source     | type |
///  +---------------+---------------+------+
/// ```
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EthHeader {
    /// Destination MAC.
    pub dst: [u8; 6],
    /// Source MAC.
    pub src: [u8; 6],
    /// Type of what follows, big-endian.
    pub ethertype: [u8; 2],
}

impl EthHeader {
    /// Length in bytes.
    pub const LEN: usize = 14;
    /// Offset of `dst`.
    pub const DST: usize = 0;
    /// Offset of `src`.
    pub const SRC: usize = 6;

    /// Type of what follows, host order.
    #[inline(always)]
    pub const fn ethertype(&self) -> u16 {
        u16::from_be_bytes(self.ethertype)
    }
}

/// The two MACs of an Ethernet header, to be rewritten together.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EthAddresses {
    /// Destination MAC.
    pub dst: [u8; 6],
    /// Source MAC.
    pub src: [u8; 6],
}

/// The rest of an 802.1Q tag after its type: tag control information, then the next type.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct VlanTag {
    /// Priority, DEI and VLAN id.
    pub tci: [u8; 2],
    /// Type of what follows, big-endian.
    pub ethertype: [u8; 2],
}

impl VlanTag {
    /// Length in bytes.
    pub const LEN: usize = 4;

    /// VLAN id.
    #[inline(always)]
    pub const fn vid(&self) -> u16 {
        u16::from_be_bytes(self.tci) & 0xfff
    }

    /// Type of what follows, host order.
    #[inline(always)]
    pub const fn ethertype(&self) -> u16 {
        u16::from_be_bytes(self.ethertype)
    }
}

/// IPv4, RFC 791 section 3.1 (without options):
/// ```text
///  0        1        2        3
///  +--------+--------+--------+--------+
///  |Ver IHL |  TOS   |  Total Length   |
///  | Identification  |Flags  Fragment  |
///  |  TTL   |Protocol| Header Checksum |
///  |          Source Address           |
///  |        Destination Address        |
///  +--------+--------+--------+--------+
/// ```
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ipv4Header {
    /// Version (4) and header length in 32-bit words.
    pub version_ihl: u8,
    /// Type of service.
    pub tos: u8,
    /// Length of header and data in bytes, big-endian.
    pub total_length: [u8; 2],
    /// Identification.
    pub id: [u8; 2],
    /// Flags (3 bits) and fragment offset (13 bits).
    pub fragment: [u8; 2],
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the data.
    pub protocol: u8,
    /// Header checksum, big-endian.
    pub checksum: [u8; 2],
    /// Source address.
    pub src: [u8; 4],
    /// Destination address.
    pub dst: [u8; 4],
}

impl Ipv4Header {
    /// Length in bytes without options.
    pub const LEN: usize = 20;
    /// Offset of the header checksum.
    pub const CHECKSUM: usize = 10;
    /// Offset of `ttl`.
    pub const TTL: usize = 8;
    /// `fragment` of a packet that is not to be fragmented.
    pub const DONT_FRAGMENT: [u8; 2] = [0x40, 0];
    /// Offset of the two addresses.
    pub const ADDRESSES: usize = 12;

    /// IP version.
    #[inline(always)]
    pub const fn version(&self) -> u8 {
        self.version_ihl >> 4
    }

    /// Header length in bytes, 0 to 60.
    #[inline(always)]
    pub const fn header_len(&self) -> usize {
        (self.version_ihl & 0x0f) as usize * 4
    }

    /// The header checksum that a header without options should have, as in the packet. The field
    /// itself counts as zero.
    #[inline(always)]
    #[must_use]
    pub fn computed_checksum(&self) -> [u8; 2] {
        let word = |[a, b]: [u8; 2]| u32::from(u16::from_be_bytes([a, b]));
        let address = |[a, b, c, d]: [u8; 4]| word([a, b]) + word([c, d]);
        let sum = word([self.version_ihl, self.tos])
            + word(self.total_length)
            + word(self.id)
            + word(self.fragment)
            + word([self.ttl, self.protocol])
            + address(self.src)
            + address(self.dst);
        (!crate::checksum::fold(sum)).to_be_bytes()
    }

    /// Length of header and data in bytes.
    #[inline(always)]
    pub const fn total_length(&self) -> u16 {
        u16::from_be_bytes(self.total_length)
    }

    /// This is a fragment, and not the first one: it has no transport header.
    #[inline(always)]
    pub const fn is_later_fragment(&self) -> bool {
        u16::from_be_bytes(self.fragment) & 0x1fff != 0
    }

    /// More fragments follow, or this is not the first one.
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        u16::from_be_bytes(self.fragment) & 0x3fff != 0
    }
}

/// IPv6, RFC 8200 section 3:
/// ```text
///  0        1        2        3
///  +--------+--------+--------+--------+
///  |Ver Traffic Class|   Flow Label    |
///  | Payload Length  |Next Hdr|Hop Lim |
///  |      Source Address (16 bytes)    |
///  |   Destination Address (16 bytes)  |
///  +--------+--------+--------+--------+
/// ```
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ipv6Header {
    /// Version (4 bits), traffic class, flow label.
    pub version_class_flow: [u8; 4],
    /// Length of what follows this header in bytes, big-endian.
    pub payload_length: [u8; 2],
    /// Type of the next header.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
}

impl Ipv6Header {
    /// Length in bytes.
    pub const LEN: usize = 40;
    /// Offset of the two addresses.
    pub const ADDRESSES: usize = 8;
    /// Offset of `hop_limit`.
    pub const HOP_LIMIT: usize = 7;

    /// IP version.
    #[inline(always)]
    pub const fn version(&self) -> u8 {
        let [first, ..] = self.version_class_flow;
        first >> 4
    }

    /// Length of what follows this header in bytes.
    #[inline(always)]
    pub const fn payload_length(&self) -> u16 {
        u16::from_be_bytes(self.payload_length)
    }
}

/// The common start of IPv6 hop-by-hop, routing and destination option headers (RFC 8200
/// section 4.3): next header, and length in 8-byte units without the first.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ipv6Extension {
    /// Type of the next header.
    pub next_header: u8,
    /// Length in 8-byte units, not counting the first 8 bytes.
    pub length: u8,
}

impl Ipv6Extension {
    /// Length of the whole extension header in bytes, 8 to 2048.
    #[inline(always)]
    pub const fn header_len(&self) -> usize {
        (self.length as usize + 1) * 8
    }
}

/// TCP, RFC 9293 section 3.1 (without options):
/// ```text
///  0        1        2        3
///  +--------+--------+--------+--------+
///  |   Source Port   | Destination Port|
///  |          Sequence Number          |
///  |       Acknowledgment Number       |
///  |Off Rsrv|CEUAPRSF|     Window      |
///  |    Checksum     | Urgent Pointer  |
///  +--------+--------+--------+--------+
/// ```
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TcpHeader {
    /// Source port, big-endian.
    pub sport: [u8; 2],
    /// Destination port, big-endian.
    pub dport: [u8; 2],
    /// Sequence number.
    pub seq: [u8; 4],
    /// Acknowledgment number.
    pub ack: [u8; 4],
    /// Header length in 32-bit words (upper 4 bits).
    pub offset: u8,
    /// Control bits.
    pub flags: u8,
    /// Window.
    pub window: [u8; 2],
    /// Checksum, big-endian.
    pub checksum: [u8; 2],
    /// Urgent pointer.
    pub urgent: [u8; 2],
}

impl TcpHeader {
    /// Length in bytes without options.
    pub const LEN: usize = 20;
    /// Offset of the source port.
    pub const SPORT: usize = 0;
    /// Offset of the destination port.
    pub const DPORT: usize = 2;
    /// Offset of the checksum.
    pub const CHECKSUM: usize = 16;

    /// FIN control bit.
    pub const FIN: u8 = 0x01;
    /// SYN control bit.
    pub const SYN: u8 = 0x02;
    /// RST control bit.
    pub const RST: u8 = 0x04;
    /// PSH control bit.
    pub const PSH: u8 = 0x08;
    /// ACK control bit.
    pub const ACK: u8 = 0x10;

    /// One's complement sum of the header's words in native order, for a checksum.
    #[inline(always)]
    #[must_use]
    pub fn native_sum(&self) -> u32 {
        let word = |bytes: [u8; 2]| u32::from(u16::from_ne_bytes(bytes));
        let double = |[a, b, c, d]: [u8; 4]| word([a, b]) + word([c, d]);
        word(self.sport)
            + word(self.dport)
            + double(self.seq)
            + double(self.ack)
            + word([self.offset, self.flags])
            + word(self.window)
            + word(self.checksum)
            + word(self.urgent)
    }

    /// Source port, host order.
    #[inline(always)]
    pub const fn sport(&self) -> u16 {
        u16::from_be_bytes(self.sport)
    }

    /// Destination port, host order.
    #[inline(always)]
    pub const fn dport(&self) -> u16 {
        u16::from_be_bytes(self.dport)
    }

    /// Header length in bytes, 0 to 60.
    #[inline(always)]
    pub const fn header_len(&self) -> usize {
        (self.offset >> 4) as usize * 4
    }
}

/// ARP for IPv4 over Ethernet, RFC 826:
/// ```text
///  +-----------+-----------+-----+-----+-----------+
///  | hw type 2 | proto 2   |hln 1|pln 1| operation |
///  | sender MAC 6 | sender IP 4 | target MAC 6 | target IP 4 |
///  +-----------+-----------+-----+-----+-----------+
/// ```
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ArpPacket {
    /// Hardware type (1: Ethernet), protocol type (0x0800), lengths (6, 4).
    pub fixed: [u8; 6],
    /// 1: request, 2: reply; big-endian.
    pub operation: [u8; 2],
    /// Sender MAC.
    pub sender_mac: [u8; 6],
    /// Sender IPv4 address.
    pub sender_ip: [u8; 4],
    /// Target MAC.
    pub target_mac: [u8; 6],
    /// Target IPv4 address.
    pub target_ip: [u8; 4],
}

impl ArpPacket {
    /// Length in bytes.
    pub const LEN: usize = 28;
    /// `fixed` of ARP for IPv4 over Ethernet.
    pub const FIXED: [u8; 6] = [0, 1, 0x08, 0, 6, 4];
    /// `operation` of a request.
    pub const REQUEST: [u8; 2] = [0, 1];
    /// `operation` of a reply.
    pub const REPLY: [u8; 2] = [0, 2];
    /// Offset of `sender_mac`.
    pub const SENDER_MAC: usize = 8;

    /// Whether it is about IPv4 over Ethernet (compared by words, for BPF).
    #[inline(always)]
    pub fn is_ipv4_ethernet(&self) -> bool {
        same_mac(&self.fixed, &Self::FIXED)
    }

    /// Whether it asks for the target address.
    #[inline(always)]
    pub const fn is_request(&self) -> bool {
        u16::from_be_bytes(self.operation) == u16::from_be_bytes(Self::REQUEST)
    }
}

/// UDP header, RFC 768.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UdpHeader {
    /// Source port, big-endian.
    pub sport: [u8; 2],
    /// Destination port, big-endian.
    pub dport: [u8; 2],
    /// Length of header and data, big-endian.
    pub length: [u8; 2],
    /// Checksum, big-endian; 0: none (IPv4 only).
    pub checksum: [u8; 2],
}

impl UdpHeader {
    /// Length in bytes.
    pub const LEN: usize = 8;
    /// Offset of `checksum`.
    pub const CHECKSUM: usize = 6;

    /// Source port, host order.
    #[inline(always)]
    pub const fn sport(&self) -> u16 {
        u16::from_be_bytes(self.sport)
    }

    /// Destination port, host order.
    #[inline(always)]
    pub const fn dport(&self) -> u16 {
        u16::from_be_bytes(self.dport)
    }

    /// Length of header and data in bytes.
    #[inline(always)]
    pub const fn length(&self) -> u16 {
        u16::from_be_bytes(self.length)
    }
}

/// Neighbour solicitation and advertisement, RFC 4861 sections 4.3 and 4.4 (without options).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct NdPacket {
    /// 135: solicitation, 136: advertisement.
    pub kind: u8,
    /// Code, 0.
    pub code: u8,
    /// Checksum, big-endian.
    pub checksum: [u8; 2],
    /// Flags (advertisement) and reserved bits.
    pub flags: [u8; 4],
    /// The address asked for or advertised.
    pub target: [u8; 16],
}

impl NdPacket {
    /// Length in bytes without options.
    pub const LEN: usize = 24;
    /// `kind` of a neighbour solicitation.
    pub const SOLICITATION: u8 = 135;
    /// `kind` of a neighbour advertisement.
    pub const ADVERTISEMENT: u8 = 136;
    /// Offset of `checksum`.
    pub const CHECKSUM: usize = 2;
    /// Type of the option with the sender's MAC (RFC 4861 section 4.6.1), first in a solicitation.
    pub const SOURCE_MAC: u8 = 1;
    /// Type of the option with the target's MAC, first in an advertisement.
    pub const TARGET_MAC: u8 = 2;
}

/// ICMP (RFC 792) and `ICMPv6` (RFC 4443): what all messages begin with.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct IcmpHeader {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum, big-endian.
    pub checksum: [u8; 2],
    /// Depends on the type: an identifier, an MTU.
    pub rest: [u8; 4],
}

impl IcmpHeader {
    /// Length in bytes. What an error quotes begins behind it.
    pub const LEN: usize = 8;
    /// Offset of the checksum.
    pub const CHECKSUM: usize = 2;

    /// Whether messages of this IPv4 type are errors that are about a packet and go to its sender:
    /// unreachable (also: too big), time exceeded, parameter problem. Redirects are not: they are for
    /// this node's own routing (RFC 1122 section 3.2.2.2).
    #[inline(always)]
    #[must_use]
    pub const fn is_error_v4(kind: u8) -> bool {
        matches!(kind, 3 | 11 | 12)
    }

    /// The same for IPv6: RFC 4443 section 2.1 keeps the types below 128 for errors; four exist.
    #[inline(always)]
    #[must_use]
    pub const fn is_error_v6(kind: u8) -> bool {
        matches!(kind, 1..=4)
    }
}

/// Marks types that any bytes of the right length are valid for and whose alignment is 1.
///
/// # Safety
/// Implementors are `#[repr(C)]` structs of `u8` and `u8` arrays only.
pub unsafe trait Wire: Copy {}

macro_rules! wire {
    ($($type:ty: $len:expr),+ $(,)?) => {
        $(
            // SAFETY: a `#[repr(C)]` struct of bytes; the assertions hold its size and alignment.
            unsafe impl Wire for $type {}
            const _: () = {
                assert!(size_of::<$type>() == $len);
                assert!(align_of::<$type>() == 1);
            };
        )+
    };
}

wire!(
    EthHeader: EthHeader::LEN,
    EthAddresses: 12,
    VlanTag: VlanTag::LEN,
    Ipv4Header: Ipv4Header::LEN,
    Ipv6Header: Ipv6Header::LEN,
    Ipv6Extension: 2,
    TcpHeader: TcpHeader::LEN,
    UdpHeader: UdpHeader::LEN,
    ArpPacket: ArpPacket::LEN,
    NdPacket: NdPacket::LEN,
    IcmpHeader: IcmpHeader::LEN,
);

// SAFETY: one byte.
unsafe impl Wire for u8 {}
// SAFETY: an array has its elements' alignment and no padding.
unsafe impl<T: Wire, const N: usize> Wire for [T; N] {}

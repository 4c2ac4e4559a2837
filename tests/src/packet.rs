//! Frames for program-run tests: stations with role names, a builder that computes every checksum
//! from scratch, and a dissector that names the fields of a frame.
//!
//! A test says what arrives and what should leave; both are built by the same code, so the
//! expected bytes owe nothing to the program's incremental checksums.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::panic,
    reason = "for tests only: a frame that cannot be built is a mistake in the test"
)]

use std::{
    fmt::{Debug, Write as _},
    hash::Hash,
    net::IpAddr,
    ops::Range,
};

use lb_common::{
    abi::{Address, FlowKey, Mac, ServiceKey},
    checksum,
    hash::HashWords,
    headers::{
        ArpPacket, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN,
        IPPROTO_DSTOPTS, IPPROTO_FRAGMENT, IPPROTO_HOPOPTS, IPPROTO_ICMPV6, IPPROTO_ROUTING,
        IPPROTO_TCP, NdPacket, TcpHeader,
    },
};

/// Interface that frames come in by: a program run has no other than the loopback's number.
pub const UPLINK: u32 = 1;
/// Another uplink of the node.
pub const OTHER_UPLINK: u32 = 7;

/// This node's MAC on [`UPLINK`].
pub const OWN_MAC: Mac = [0x02, 0, 0, 0, 0, 0x01];
/// This node's MAC on [`OTHER_UPLINK`].
pub const OTHER_OWN_MAC: Mac = [0x02, 0, 0, 0, 0, 0x71];
/// The router that clients come through.
pub const ROUTER_MAC: Mac = [0x02, 0, 0, 0, 0, 0xfe];
/// Another router.
pub const ROUTER2_MAC: Mac = [0x02, 0, 0, 0, 0, 0xfd];
/// MACs of master1 (this node), master2 and master3.
pub const MASTER_MACS: [Mac; 3] = [OWN_MAC, [0x02, 0, 0, 0, 0, 0x02], [0x02, 0, 0, 0, 0, 0x03]];
/// MACs of the backends that run no xvip.
pub const EXTERNAL_MACS: [Mac; 2] = [[0x02, 0, 0, 0, 0, 0x21], [0x02, 0, 0, 0, 0, 0x22]];
/// The MAC that a broadcast goes to.
pub const BROADCAST_MAC: Mac = [0xff; 6];

/// The service's port on the VIP.
pub const VIP_PORT: u16 = 1644;
/// The port that backends listen on.
pub const BACKEND_PORT: u16 = 6443;
/// The client's port.
pub const CLIENT_PORT: u16 = 40_000;

/// IP protocol number of ICMP.
pub const IPPROTO_ICMP: u8 = 1;
/// IP protocol number of UDP.
pub const IPPROTO_UDP: u8 = 17;

/// An IP version with the stations' addresses in it.
pub trait Family: Copy + Debug + PartialEq + Send + Sync + 'static {
    /// Address type.
    type Addr: Address
        + HashWords
        + aya::Pod
        + AsRef<[u8]>
        + Into<IpAddr>
        + Debug
        + Hash
        + Send
        + Sync;

    /// For messages.
    const NAME: &'static str;
    /// Last character of the names of its maps.
    const SUFFIX: char;
    /// Ethernet type.
    const ETHERTYPE: u16;
    /// Length of the IP header without options or extension headers.
    const HEADER_LEN: usize;
    /// Offset of the addresses in it.
    const ADDRESSES: usize;
    /// ICMP of this version.
    const ICMP: u8;

    /// The virtual address.
    const VIP: Self::Addr;
    /// An address of this node that is no VIP.
    const NOT_VIP: Self::Addr;
    /// A client behind the router.
    const CLIENT: Self::Addr;
    /// master1 is this node; master2 and master3 are its peers.
    const MASTERS: [Self::Addr; 3];
    /// Backends that run no xvip.
    const EXTERNALS: [Self::Addr; 2];
    /// Addresses that no client has.
    const BAD_SOURCES: &'static [Self::Addr];

    /// The IP header of `frame` for an upper layer of `length` bytes, with its options or
    /// extension headers.
    fn header(frame: &Frame<Self>, length: usize) -> Vec<u8>;
}

/// IPv4.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct V4;

impl Family for V4 {
    type Addr = [u8; 4];

    const NAME: &'static str = "IPv4";
    const SUFFIX: char = '4';
    const ETHERTYPE: u16 = ETHERTYPE_IPV4;
    const HEADER_LEN: usize = 20;
    const ADDRESSES: usize = 12;
    const ICMP: u8 = IPPROTO_ICMP;

    const VIP: [u8; 4] = [192, 0, 2, 100];
    const NOT_VIP: [u8; 4] = [192, 0, 2, 1];
    const CLIENT: [u8; 4] = [198, 51, 100, 7];
    const MASTERS: [[u8; 4]; 3] = [[192, 0, 2, 11], [192, 0, 2, 12], [192, 0, 2, 13]];
    const EXTERNALS: [[u8; 4]; 2] = [[192, 0, 2, 21], [192, 0, 2, 22]];
    const BAD_SOURCES: &'static [[u8; 4]] = &[
        [0, 0, 0, 0],
        [0, 1, 2, 3],
        [127, 0, 0, 1],
        [224, 0, 0, 18],
        [240, 0, 0, 1],
        [255, 255, 255, 255],
        Self::VIP,
    ];

    fn header(frame: &Frame<Self>, length: usize) -> Vec<u8> {
        let mut options: Vec<u8> = frame.options.concat();
        options.resize(options.len().next_multiple_of(4), 0);
        let header_len = Self::HEADER_LEN + options.len();
        let total = u16::try_from(header_len + length).expect("an IPv4 packet has 64 KiB");
        let mut header = vec![0x40 | (header_len / 4) as u8, frame.class];
        header.extend(total.to_be_bytes());
        header.extend([0x12, 0x34]);
        header.extend(frame.fragment.to_be_bytes());
        header.extend([frame.ttl, frame.upper.proto(), 0, 0]);
        header.extend(frame.src);
        header.extend(frame.dst);
        header.extend(options);
        let sum = checksum::checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    }
}

/// IPv6.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct V6;

/// `2001:db8::<last>`.
const fn documentation(last: u8) -> [u8; 16] {
    [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

impl Family for V6 {
    type Addr = [u8; 16];

    const NAME: &'static str = "IPv6";
    const SUFFIX: char = '6';
    const ETHERTYPE: u16 = ETHERTYPE_IPV6;
    const HEADER_LEN: usize = 40;
    const ADDRESSES: usize = 8;
    const ICMP: u8 = IPPROTO_ICMPV6;

    const VIP: [u8; 16] = documentation(0x64);
    const NOT_VIP: [u8; 16] = documentation(1);
    const CLIENT: [u8; 16] = [
        0x20, 1, 0x0d, 0xb8, 0, 9, 0, 0, 0xa, 0xb, 0xc, 0xd, 0, 0, 0, 7,
    ];
    const MASTERS: [[u8; 16]; 3] = [
        documentation(0x11),
        documentation(0x12),
        documentation(0x13),
    ];
    const EXTERNALS: [[u8; 16]; 2] = [documentation(0x21), documentation(0x22)];
    const BAD_SOURCES: &'static [[u8; 16]] = &[
        [0; 16],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        Self::VIP,
    ];

    /// The options become destination options headers; a fragment gets a fragment header first.
    fn header(frame: &Frame<Self>, length: usize) -> Vec<u8> {
        let mut kinds = Vec::new();
        let mut bodies = Vec::new();
        if frame.fragment != 0 {
            // IPv4's flag "more fragments" and offset, as RFC 8200 section 4.5 arranges them.
            let more = u16::from(frame.fragment & 0x2000 != 0);
            let offset = (frame.fragment & 0x1fff) << 3;
            kinds.push(IPPROTO_FRAGMENT);
            let [a, b] = (offset | more).to_be_bytes();
            bodies.push(vec![0, a, b, 0, 0, 0, 1]);
        }
        for option in &frame.options {
            kinds.push(IPPROTO_DSTOPTS);
            // One PadN option (RFC 8200 section 4.2) that fills the header.
            let len = (option.len() + 4).next_multiple_of(8);
            let mut body = vec![(len / 8 - 1) as u8, 1, (len - 4) as u8];
            body.resize(len - 1, 0);
            bodies.push(body);
        }
        kinds.push(frame.upper.proto());
        let extensions: usize = bodies.iter().map(|body| body.len() + 1).sum();
        let payload = u16::try_from(extensions + length).expect("no jumbograms");

        let mut header = vec![0x60 | frame.class >> 4, frame.class << 4, 0xab, 0xcd];
        header.extend(payload.to_be_bytes());
        header.extend([kinds[0], frame.ttl]);
        header.extend(frame.src);
        header.extend(frame.dst);
        for (body, next) in bodies.iter().zip(&kinds[1..]) {
            header.push(*next);
            header.extend(body);
        }
        header
    }
}

/// A TCP segment.
#[derive(Clone, Debug, PartialEq)]
pub struct Tcp {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// Control bits.
    pub flags: u8,
    /// Options; padded to 4 bytes.
    pub options: Vec<u8>,
    /// Data.
    pub data: Vec<u8>,
}

/// What an IP packet carries.
#[derive(Clone, Debug, PartialEq)]
pub enum Upper {
    /// A TCP segment.
    Tcp(Tcp),
    /// Any other message of a protocol; its checksum (under the pseudo-header) goes to this
    /// offset, if there is one.
    Raw(u8, Option<usize>, Vec<u8>),
}

impl Upper {
    fn proto(&self) -> u8 {
        match self {
            Self::Tcp(_) => IPPROTO_TCP,
            Self::Raw(proto, ..) => *proto,
        }
    }

    /// The message with a checksum of 0, and where the checksum belongs.
    fn bytes(&self) -> (Vec<u8>, Option<usize>) {
        match self {
            Self::Tcp(tcp) => {
                let mut options = tcp.options.clone();
                options.resize(options.len().next_multiple_of(4), 0);
                let mut bytes = Vec::new();
                bytes.extend(tcp.sport.to_be_bytes());
                bytes.extend(tcp.dport.to_be_bytes());
                bytes.extend(tcp.seq.to_be_bytes());
                bytes.extend(tcp.ack.to_be_bytes());
                bytes.push((((TcpHeader::LEN + options.len()) / 4) << 4) as u8);
                bytes.push(tcp.flags);
                bytes.extend([0xfa, 0xf0, 0, 0, 0, 0]);
                bytes.extend(options);
                bytes.extend(&tcp.data);
                (bytes, Some(TcpHeader::CHECKSUM))
            }
            Self::Raw(_, at, bytes) => (bytes.clone(), *at),
        }
    }
}

/// An Ethernet frame with an IP packet: what it means, from which [`Frame::emit`] makes bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame<F: Family> {
    /// Ethernet destination.
    pub to: Mac,
    /// Ethernet source.
    pub from: Mac,
    /// VLAN tags, outermost first: type and VLAN id with priority.
    pub tags: Vec<(u16, u16)>,
    /// IP source.
    pub src: F::Addr,
    /// IP destination.
    pub dst: F::Addr,
    /// Type of service or traffic class.
    pub class: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Flags and offset as in the IPv4 header; 0 for a whole packet.
    pub fragment: u16,
    /// IPv4 options, or (each) the length of an IPv6 destination options header.
    pub options: Vec<Vec<u8>>,
    /// The upper layer.
    pub upper: Upper,
    /// Added to the upper layer's checksum.
    pub checksum_error: u16,
    /// Bytes after the IP packet.
    pub padding: Vec<u8>,
}

impl<F: Family> Frame<F> {
    /// A packet with an upper layer of any kind, from the client to the VIP.
    pub fn packet(upper: Upper) -> Self {
        Self {
            to: OWN_MAC,
            from: ROUTER_MAC,
            tags: Vec::new(),
            src: F::CLIENT,
            dst: F::VIP,
            class: 0x10,
            ttl: 61,
            fragment: 0,
            options: Vec::new(),
            upper,
            checksum_error: 0,
            padding: Vec::new(),
        }
    }

    /// A segment from the client to the service.
    pub fn tcp(flags: u8, seq: u32, ack: u32, data: &[u8]) -> Self {
        Self::packet(Upper::Tcp(Tcp {
            sport: CLIENT_PORT,
            dport: VIP_PORT,
            seq,
            ack,
            flags,
            options: Vec::new(),
            data: data.to_vec(),
        }))
    }

    /// The client's SYN: MSS, SACK permitted, window scale.
    pub fn syn() -> Self {
        Self::tcp(TcpHeader::SYN, 1000, 0, &[])
            .tcp_options(&[2, 4, 5, 0xb4, 1, 1, 4, 2, 1, 3, 3, 7])
    }

    /// The client's ACK that ends the handshake.
    pub fn ack() -> Self {
        Self::tcp(TcpHeader::ACK, 1001, 5001, &[])
    }

    /// The client's request: an odd number of bytes, so that the checksum's padding counts.
    pub fn data() -> Self {
        Self::tcp(
            TcpHeader::ACK | TcpHeader::PSH,
            1001,
            5001,
            b"GET /readyz HTTP/1.1\r\n\r\nx",
        )
    }

    /// The client's FIN, after the request.
    pub fn fin() -> Self {
        Self::tcp(TcpHeader::ACK | TcpHeader::FIN, 1026, 5101, &[])
    }

    /// The client's RST with sequence number `seq`.
    pub fn rst(seq: u32) -> Self {
        Self::tcp(TcpHeader::RST, seq, 0, &[])
    }

    /// Between these MACs.
    #[must_use]
    pub fn macs(mut self, from: Mac, to: Mac) -> Self {
        (self.from, self.to) = (from, to);
        self
    }

    /// From this station.
    #[must_use]
    pub fn from(mut self, mac: Mac, src: F::Addr) -> Self {
        (self.from, self.src) = (mac, src);
        self
    }

    /// From this IP address.
    #[must_use]
    pub fn src(mut self, src: F::Addr) -> Self {
        self.src = src;
        self
    }

    /// To this IP address.
    #[must_use]
    pub fn dst(mut self, dst: F::Addr) -> Self {
        self.dst = dst;
        self
    }

    /// From this port.
    #[must_use]
    pub fn sport(mut self, port: u16) -> Self {
        match &mut self.upper {
            Upper::Tcp(tcp) => tcp.sport = port,
            Upper::Raw(.., bytes) => bytes[..2].copy_from_slice(&port.to_be_bytes()),
        }
        self
    }

    /// To this port.
    #[must_use]
    pub fn dport(mut self, port: u16) -> Self {
        match &mut self.upper {
            Upper::Tcp(tcp) => tcp.dport = port,
            Upper::Raw(.., bytes) => bytes[2..4].copy_from_slice(&port.to_be_bytes()),
        }
        self
    }

    /// With this time to live or hop limit.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// With these TCP options.
    #[must_use]
    pub fn tcp_options(mut self, options: &[u8]) -> Self {
        self.tcp_mut().options = options.to_vec();
        self
    }

    /// With one more block of IP options (an extension header in IPv6).
    #[must_use]
    pub fn ip_options(mut self, options: &[u8]) -> Self {
        self.options.push(options.to_vec());
        self
    }

    /// With an IEEE 802.1Q tag inside those that it has.
    #[must_use]
    pub fn vlan(mut self, id: u16) -> Self {
        self.tags.push((ETHERTYPE_VLAN, id));
        self
    }

    /// With an IEEE 802.1ad service tag around an IEEE 802.1Q one.
    #[must_use]
    pub fn qinq(mut self, outer: u16, inner: u16) -> Self {
        self.tags
            .extend([(ETHERTYPE_QINQ, outer), (ETHERTYPE_VLAN, inner)]);
        self
    }

    /// As a fragment: flags and offset as in the IPv4 header.
    #[must_use]
    pub fn fragment(mut self, flags_offset: u16) -> Self {
        self.fragment = flags_offset;
        self
    }

    /// With a checksum that is wrong by `error`.
    #[must_use]
    pub fn wrong_checksum(mut self, error: u16) -> Self {
        self.checksum_error = error;
        self
    }

    /// Padded to Ethernet's 60 bytes, with bytes that would be noticed.
    #[must_use]
    pub fn padded(mut self) -> Self {
        let len = self.emit().len();
        self.padding = vec![0x5a; 60_usize.saturating_sub(len).max(3)];
        self
    }

    fn tcp_mut(&mut self) -> &mut Tcp {
        match &mut self.upper {
            Upper::Tcp(tcp) => tcp,
            Upper::Raw(..) => panic!("not a TCP segment"),
        }
    }

    /// The TCP segment that it carries.
    pub fn segment(&self) -> &Tcp {
        match &self.upper {
            Upper::Tcp(tcp) => tcp,
            Upper::Raw(..) => panic!("not a TCP segment"),
        }
    }

    /// Source and destination port of a TCP segment or UDP datagram.
    pub fn ports(&self) -> (u16, u16) {
        match &self.upper {
            Upper::Tcp(tcp) => (tcp.sport, tcp.dport),
            Upper::Raw(.., bytes) => (
                u16::from_be_bytes([bytes[0], bytes[1]]),
                u16::from_be_bytes([bytes[2], bytes[3]]),
            ),
        }
    }

    /// The key of its flow.
    pub fn key(&self) -> FlowKey<F::Addr> {
        let (sport, dport) = self.ports();
        FlowKey::new(self.src, sport, self.dst, dport, self.upper.proto())
    }

    /// The service that it asks for.
    pub fn service(&self) -> ServiceKey<F::Addr> {
        ServiceKey::new(self.dst, self.ports().1, self.upper.proto())
    }

    /// Offset of the IP header.
    pub fn l3(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// Offset of the upper layer.
    pub fn l4(&self) -> usize {
        self.l3() + F::header(self, 0).len()
    }

    /// The frame's bytes.
    pub fn emit(&self) -> Vec<u8> {
        let (mut upper, at) = self.upper.bytes();
        if let Some(at) = at {
            let sum = checksum::transport(
                self.src.as_ref(),
                self.dst.as_ref(),
                self.upper.proto(),
                &upper,
            );
            // One's complement addition: the error survives an incremental update.
            let mut sum = checksum::fold(u32::from(sum) + u32::from(self.checksum_error));
            // A UDP checksum of zero says that there is none (RFC 768).
            if sum == 0 && self.upper.proto() == IPPROTO_UDP {
                sum = u16::MAX;
            }
            upper[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        let mut bytes = ethernet(self.to, self.from, &self.tags, F::ETHERTYPE);
        bytes.extend(F::header(self, upper.len()));
        bytes.extend(upper);
        bytes.extend(&self.padding);
        bytes
    }
}

/// An Ethernet header with its VLAN tags.
pub fn ethernet(to: Mac, from: Mac, tags: &[(u16, u16)], ethertype: u16) -> Vec<u8> {
    let mut bytes = [to, from].concat();
    for (kind, id) in tags {
        bytes.extend(kind.to_be_bytes());
        bytes.extend(id.to_be_bytes());
    }
    bytes.extend(ethertype.to_be_bytes());
    bytes
}

/// A UDP datagram from the client's port to `dport`.
pub fn udp(dport: u16) -> Upper {
    datagram(dport, b"ping")
}

/// A UDP datagram from the client's port to `dport` with this data.
pub fn datagram(dport: u16, data: &[u8]) -> Upper {
    let length = u16::try_from(8 + data.len()).expect("a datagram has 64 KiB");
    let mut bytes = Vec::new();
    bytes.extend(CLIENT_PORT.to_be_bytes());
    bytes.extend(dport.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(data);
    Upper::Raw(IPPROTO_UDP, Some(6), bytes)
}

/// An ICMP or `ICMPv6` echo request.
pub fn echo<F: Family>() -> Upper {
    let kind = if F::ICMP == IPPROTO_ICMPV6 { 128 } else { 8 };
    let mut bytes = vec![kind, 0, 0, 0, 0, 1, 0, 1];
    bytes.extend(b"ping");
    if F::ICMP == IPPROTO_ICMPV6 {
        return Upper::Raw(F::ICMP, Some(2), bytes);
    }
    let sum = checksum::checksum(&bytes);
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    Upper::Raw(F::ICMP, None, bytes)
}

/// "Too big", as routers say it (RFC 1191 section 4, RFC 4443 section 3.2), about a packet of which
/// `keep` bytes are quoted at most.
pub fn too_big<F: Family>(quoted: &Frame<F>, keep: usize) -> Upper {
    const MTU: u16 = 1400;
    let packet = &quoted.emit()[quoted.l3()..];
    let packet = &packet[..keep.min(packet.len())];
    let [high, low] = MTU.to_be_bytes();
    if F::ICMP == IPPROTO_ICMPV6 {
        let message = [&[2, 0, 0, 0, 0, 0, high, low], packet].concat();
        return Upper::Raw(F::ICMP, Some(2), message);
    }
    let mut message = [&[3, 4, 0, 0, 0, 0, high, low], packet].concat();
    let sum = checksum::checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Upper::Raw(F::ICMP, None, message)
}

/// An ARP packet from `sender` about `target`; `operation` is [`ArpPacket::REQUEST`] or
/// [`ArpPacket::REPLY`].
pub fn arp(operation: [u8; 2], from: Mac, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let request = operation == ArpPacket::REQUEST;
    let to = if request { BROADCAST_MAC } else { ROUTER_MAC };
    let mut bytes = ethernet(to, from, &[], ETHERTYPE_ARP);
    bytes.extend(ArpPacket::FIXED);
    bytes.extend(operation);
    bytes.extend(from);
    bytes.extend(sender);
    bytes.extend(if request { [0; 6] } else { ROUTER_MAC });
    bytes.extend(target);
    bytes
}

/// A neighbour solicitation or advertisement (`kind`, RFC 4861) from `src` about `target`, sent
/// to `dst`.
pub fn neighbour(kind: u8, from: Mac, src: [u8; 16], dst: [u8; 16], target: [u8; 16]) -> Frame<V6> {
    let solicited = kind == NdPacket::ADVERTISEMENT;
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend(if solicited { [0x60, 0, 0, 0] } else { [0; 4] });
    bytes.extend(target);
    // Source or target link-layer address option.
    bytes.extend([if solicited { 2 } else { 1 }, 1]);
    bytes.extend(from);
    let mut frame = Frame::packet(Upper::Raw(IPPROTO_ICMPV6, Some(2), bytes));
    frame.ttl = 255;
    frame.from = from;
    frame.src(src).dst(dst)
}

/// The solicited-node multicast address of `target` (RFC 4291 section 2.7.1).
pub fn solicited_node(target: [u8; 16]) -> [u8; 16] {
    let [.., a, b, c] = target;
    [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]
}

/// The parts of a frame by name, as far as it can be understood; together they cover all of it.
pub fn dissect(bytes: &[u8]) -> Vec<(&'static str, Range<usize>)> {
    let mut fields = Fields {
        bytes,
        at: 0,
        found: Vec::new(),
    };
    fields.ethernet();
    if fields.at < bytes.len() {
        fields.found.push(("rest", fields.at..bytes.len()));
    }
    fields.found
}

/// A dissection in progress.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
    found: Vec<(&'static str, Range<usize>)>,
}

impl Fields<'_> {
    /// The next `len` bytes; empty at the end.
    fn take(&mut self, name: &'static str, len: usize) -> &[u8] {
        let range = self.at..(self.at + len).min(self.bytes.len());
        self.at = range.end;
        if !range.is_empty() {
            self.found.push((name, range.clone()));
        }
        &self.bytes[range]
    }

    fn number(&mut self, name: &'static str, len: usize) -> u64 {
        self.take(name, len)
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn ethernet(&mut self) {
        self.take("eth.dst", 6);
        self.take("eth.src", 6);
        let mut ethertype = self.number("eth.type", 2) as u16;
        while matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ) {
            self.take("vlan.tci", 2);
            ethertype = self.number("vlan.type", 2) as u16;
        }
        match ethertype {
            ETHERTYPE_IPV4 => self.ipv4(),
            ETHERTYPE_IPV6 => self.ipv6(),
            ETHERTYPE_ARP => self.arp(),
            _ => {}
        }
    }

    fn arp(&mut self) {
        self.take("arp.fixed", 6);
        self.take("arp.operation", 2);
        self.take("arp.sender_mac", 6);
        self.take("arp.sender_ip", 4);
        self.take("arp.target_mac", 6);
        self.take("arp.target_ip", 4);
    }

    fn ipv4(&mut self) {
        let header_len = (self.number("ip.version_ihl", 1) & 15) as usize * 4;
        self.take("ip.tos", 1);
        self.take("ip.total_length", 2);
        self.take("ip.id", 2);
        self.take("ip.fragment", 2);
        self.take("ip.ttl", 1);
        let proto = self.number("ip.protocol", 1) as u8;
        self.take("ip.checksum", 2);
        self.take("ip.src", 4);
        self.take("ip.dst", 4);
        self.take("ip.options", header_len.saturating_sub(20));
        self.upper(proto);
    }

    fn ipv6(&mut self) {
        self.take("ip.version_class_flow", 4);
        self.take("ip.payload_length", 2);
        let mut proto = self.number("ip.next_header", 1) as u8;
        self.take("ip.hop_limit", 1);
        self.take("ip.src", 16);
        self.take("ip.dst", 16);
        while matches!(
            proto,
            IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_FRAGMENT | IPPROTO_DSTOPTS
        ) && self.at < self.bytes.len()
        {
            let fragment = proto == IPPROTO_FRAGMENT;
            proto = self.number("ext.next_header", 1) as u8;
            let length = self.number("ext.length", 1) as usize;
            self.take("ext.body", if fragment { 6 } else { length * 8 + 6 });
        }
        self.upper(proto);
    }

    fn upper(&mut self, proto: u8) {
        match proto {
            IPPROTO_TCP => {
                self.take("tcp.sport", 2);
                self.take("tcp.dport", 2);
                self.take("tcp.seq", 4);
                self.take("tcp.ack", 4);
                let header_len = (self.number("tcp.offset", 1) >> 4) as usize * 4;
                self.take("tcp.flags", 1);
                self.take("tcp.window", 2);
                self.take("tcp.checksum", 2);
                self.take("tcp.urgent", 2);
                self.take("tcp.options", header_len.saturating_sub(20));
            }
            IPPROTO_ICMPV6 => {
                self.take("icmp.type_code", 2);
                self.take("icmp.checksum", 2);
                self.take("icmp.flags", 4);
                self.take("icmp.target", 16);
            }
            _ => {}
        }
    }
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The fields in which two frames differ, one a line in hexadecimal; `None` if they are equal.
pub fn diff(expected: &[u8], got: &[u8]) -> Option<String> {
    if expected == got {
        return None;
    }
    let mut lines = Vec::new();
    if expected.len() != got.len() {
        lines.push(format!(
            "  length: expected {}, got {}",
            expected.len(),
            got.len()
        ));
    }
    for (name, range) in dissect(expected) {
        let (want, have) = (expected.get(range.clone()), got.get(range.clone()));
        if want != have {
            lines.push(format!(
                "  {name} at {}: expected {}, got {}",
                range.start,
                hex(want.unwrap_or_default()),
                hex(have.unwrap_or_default())
            ));
        }
    }
    if let Some(more) = got.get(expected.len()..).filter(|more| !more.is_empty()) {
        lines.push(format!("  then: {}", hex(more)));
    }
    Some(lines.join("\n"))
}

/// Whether the IPv4 header's and the TCP segment's checksums of a frame without options and
/// padding errors hold; an error says which does not.
///
/// # Errors
/// Names the checksum that is wrong, or says that the frame is no TCP over IP.
pub fn verify_checksums(bytes: &[u8]) -> Result<(), String> {
    let fields = dissect(bytes);
    let find = |name: &str| fields.iter().find(|(found, _)| *found == name);
    let field = |name: &str| -> Result<Range<usize>, String> {
        find(name)
            .map(|(_, range)| range.clone())
            .ok_or(format!("no {name}"))
    };
    let number = |name: &str| -> Result<usize, String> {
        let range = field(name)?;
        Ok(bytes[range]
            .iter()
            .fold(0, |number, byte| number << 8 | usize::from(*byte)))
    };
    let (src, dst) = (field("ip.src")?, field("ip.dst")?);
    let tcp = field("tcp.sport")?.start;
    let end = if let Ok(total) = number("ip.total_length") {
        let l3 = field("ip.version_ihl")?.start;
        if checksum::checksum(&bytes[l3..tcp]) != 0 {
            return Err("the IPv4 header's checksum is wrong".to_owned());
        }
        l3 + total
    } else {
        field("ip.version_class_flow")?.start + 40 + number("ip.payload_length")?
    };
    let message = bytes
        .get(tcp..end)
        .ok_or("the frame ends before the packet")?;
    match checksum::transport(&bytes[src], &bytes[dst], IPPROTO_TCP, message) {
        0 => Ok(()),
        error => Err(format!("the TCP checksum is wrong by {error:#06x}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks<F: Family>() {
        let frame = Frame::<F>::data()
            .qinq(7, 8)
            .ip_options(&[1, 1, 1, 1])
            .tcp_options(&[1, 1, 1]);
        let bytes = frame.emit();
        verify_checksums(&bytes).unwrap();
        verify_checksums(&frame.clone().padded().emit()).unwrap();
        verify_checksums(&frame.clone().wrong_checksum(5).emit()).unwrap_err();
        // Every byte belongs to one field, in order.
        let mut at = 0;
        for (name, range) in dissect(&bytes) {
            assert_eq!(range.start, at, "{name}");
            at = range.end;
        }
        assert_eq!(at, bytes.len());
        assert_eq!(
            &bytes[frame.l4()..frame.l4() + 2],
            CLIENT_PORT.to_be_bytes()
        );
    }

    /// What the builder makes, the dissector understands, and its checksums hold.
    #[test]
    fn built_frames_have_right_checksums() {
        checks::<V4>();
        checks::<V6>();
    }

    /// A frame written down by hand: a SYN of 198.51.100.7, byte for byte.
    #[test]
    fn a_known_frame() {
        let frame = Frame::<V4>::tcp(TcpHeader::SYN, 1, 0, &[]);
        let expected = "020000000001 0200000000fe 0800 \
             45 10 0028 1234 0000 3d 06 7eed c6336407 c0000264 \
             9c40 066c 00000001 00000000 50 02 faf0 25a5 0000"
            .replace(' ', "");
        assert_eq!(hex(&frame.emit()), expected);
    }

    /// A difference is shown by field.
    #[test]
    fn differences_name_the_field() {
        let frame = Frame::<V4>::syn();
        let shown = diff(&frame.emit(), &frame.clone().dport(443).emit()).unwrap();
        assert!(
            shown.contains("tcp.dport at 36: expected 066c, got 01bb"),
            "{shown}"
        );
        assert_eq!(shown.lines().count(), 2, "{shown}");
        assert_eq!(diff(&frame.emit(), &frame.emit()), None);
    }
}

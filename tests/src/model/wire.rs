//! What a frame says: a parser over byte slices, as the RFCs have it, independent of the
//! programs' own.

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::Mac;

/// IP protocol of ICMP (IPv4).
pub(super) const ICMP: u8 = 1;
/// IP protocol of TCP.
pub(super) const TCP: u8 = 6;
/// IP protocol of UDP.
pub(super) const UDP: u8 = 17;
/// IP protocol of `ICMPv6`.
pub(super) const ICMP6: u8 = 58;

/// FIN.
pub(super) const FIN: u8 = 0x01;
/// SYN.
pub(super) const SYN: u8 = 0x02;
/// RST.
pub(super) const RST: u8 = 0x04;
/// ACK.
pub(super) const ACK: u8 = 0x10;

/// `length` bytes at `at`, if they are there.
pub(super) fn bytes(frame: &[u8], at: usize, length: usize) -> Option<&[u8]> {
    frame.get(at..at.checked_add(length)?)
}

/// The 16-bit field at `at`.
pub(super) fn word(frame: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes(frame, at, 2)?.try_into().ok()?))
}

/// The 32-bit field at `at`.
pub(super) fn long(frame: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes(frame, at, 4)?.try_into().ok()?))
}

/// The MAC at `at`.
pub(super) fn mac(frame: &[u8], at: usize) -> Option<Mac> {
    bytes(frame, at, 6)?.try_into().ok()
}

/// The address at `at`, of this version.
pub(super) fn address(frame: &[u8], at: usize, version: Version) -> Option<IpAddr> {
    Some(match version {
        Version::Four => IpAddr::from(<[u8; 4]>::try_from(bytes(frame, at, 4)?).ok()?),
        Version::Six => IpAddr::from(<[u8; 16]>::try_from(bytes(frame, at, 16)?).ok()?),
    })
}

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// IPv4.
    Four,
    /// IPv6.
    Six,
}

impl Version {
    /// Offset of the two addresses in the IP header.
    pub(super) fn addresses(self) -> usize {
        match self {
            Self::Four => 12,
            Self::Six => 8,
        }
    }

    /// The protocol number of its ICMP.
    pub(super) fn icmp(self) -> u8 {
        match self {
            Self::Four => ICMP,
            Self::Six => ICMP6,
        }
    }

    /// Length of an address.
    pub(super) fn address_len(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Six => 16,
        }
    }
}

/// Ethernet with at most two VLAN tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Destination.
    pub(super) dst: Mac,
    /// Source.
    pub(super) src: Mac,
    /// VLAN ids, outermost first; 0 for a tag that carries a priority only.
    pub(super) vlans: Vec<u16>,
    /// What follows.
    pub(super) ethertype: u16,
    /// Where it begins.
    pub(super) l3: usize,
}

impl Link {
    /// `None` for a frame that ends within.
    pub(super) fn parse(frame: &[u8]) -> Option<Self> {
        let mut link = Self {
            dst: mac(frame, 0)?,
            src: mac(frame, 6)?,
            vlans: Vec::new(),
            ethertype: word(frame, 12)?,
            l3: 14,
        };
        while matches!(link.ethertype, 0x8100 | 0x88a8) && link.vlans.len() < 2 {
            link.vlans.push(word(frame, link.l3)? & 0x0fff);
            link.ethertype = word(frame, link.l3 + 2)?;
            link.l3 += 4;
        }
        Some(link)
    }
}

impl Link {
    /// The tags as tables have them: the outer VLAN id in the low half, the inner one in the high
    /// half; tags without an id do not count.
    pub(super) fn tags(&self) -> u32 {
        let mut ids = self.vlans.iter().filter(|id| **id != 0);
        let outer = ids.next().copied().unwrap_or(0);
        let inner = ids.next().copied().unwrap_or(0);
        u32::from(outer) | u32::from(inner) << 16
    }
}

/// What is wrong with an IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadIp {
    /// The frame ends within.
    Truncated,
    /// Version or length.
    Header,
    /// More extension headers, or longer ones, than are walked.
    Extensions,
}

/// An IP packet up to its upper layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ip {
    /// Protocol of the upper layer.
    pub(super) proto: u8,
    /// Where the IP header begins.
    pub(super) l3: usize,
    /// Where the upper layer begins.
    pub(super) l4: usize,
    /// Where it ends: the IP header's word, not the frame's.
    pub(super) end: usize,
    /// It is a fragment.
    pub(super) fragment: bool,
}

/// Extension headers that are walked at most: documented limits of the data plane.
const MAX_EXTENSIONS: usize = 4;
/// Their bytes, all together.
const MAX_EXTENSION_BYTES: usize = 256;

impl Ip {
    /// The IP packet of this version at `l3`.
    pub(super) fn parse(frame: &[u8], l3: usize, version: Version) -> Result<Self, BadIp> {
        match version {
            Version::Four => Self::four(frame, l3),
            Version::Six => Self::six(frame, l3),
        }
    }

    fn four(frame: &[u8], l3: usize) -> Result<Self, BadIp> {
        let header = bytes(frame, l3, 20).ok_or(BadIp::Truncated)?;
        let length = usize::from(header[0] & 0xf) * 4;
        if header[0] >> 4 != 4 || length < 20 {
            return Err(BadIp::Header);
        }
        let field = |at| word(header, at).unwrap_or_default();
        Ok(Self {
            proto: header[9],
            l3,
            l4: l3 + length,
            end: l3 + usize::from(field(2)),
            // More fragments, or an offset; not "reserved" and "don't fragment".
            fragment: field(6) & 0x3fff != 0,
        })
    }

    fn six(frame: &[u8], l3: usize) -> Result<Self, BadIp> {
        let header = bytes(frame, l3, 40).ok_or(BadIp::Truncated)?;
        if header[0] >> 4 != 6 {
            return Err(BadIp::Header);
        }
        let payload = usize::from(word(header, 4).unwrap_or_default());
        let mut ip = Self {
            proto: header[6],
            l3,
            l4: l3 + 40,
            end: l3 + 40 + payload,
            fragment: false,
        };
        // Hop-by-hop options, routing, fragment, destination options.
        let is_extension = |proto| matches!(proto, 0 | 43 | 44 | 60);
        for _ in 0..MAX_EXTENSIONS {
            if !is_extension(ip.proto) {
                break;
            }
            let extension = bytes(frame, ip.l4, 2).ok_or(BadIp::Truncated)?;
            if ip.proto == 44 {
                // Reserved bits do not count; one that is first and last is whole (RFC 6946).
                let offset = word(frame, ip.l4 + 2).ok_or(BadIp::Truncated)?;
                ip.fragment |= offset & !0b110 != 0;
                ip.l4 += 8;
            } else {
                ip.l4 += (usize::from(extension[1]) + 1) * 8;
            }
            if ip.l4 - l3 - 40 > MAX_EXTENSION_BYTES {
                return Err(BadIp::Extensions);
            }
            ip.proto = extension[0];
        }
        if is_extension(ip.proto) {
            return Err(BadIp::Extensions);
        }
        Ok(ip)
    }

    /// The upper layer's bytes, if the frame holds all of them.
    pub(super) fn upper<'a>(&self, frame: &'a [u8]) -> Option<&'a [u8]> {
        frame.get(self.l4..self.end)
    }
}

/// What is wrong with a TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadTcp {
    /// Shorter than a header.
    Truncated,
    /// A data offset below 5, or beyond the segment.
    Offset,
    /// Flags that no stack sends together.
    Flags,
}

/// A TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tcp {
    /// Source port.
    pub(super) sport: u16,
    /// Destination port.
    pub(super) dport: u16,
    /// SEG.SEQ.
    pub(super) seq: u32,
    /// SEG.ACK.
    pub(super) ack: u32,
    /// Control bits.
    pub(super) flags: u8,
    /// Bytes of data.
    pub(super) len: u32,
}

impl Tcp {
    /// A whole segment, as IP delimits it.
    pub(super) fn parse(segment: &[u8]) -> Result<Self, BadTcp> {
        let header = bytes(segment, 0, 20).ok_or(BadTcp::Truncated)?;
        let offset = usize::from(header[12] >> 4) * 4;
        if offset < 20 || offset > segment.len() {
            return Err(BadTcp::Offset);
        }
        let tcp = Self {
            sport: word(header, 0).unwrap_or_default(),
            dport: word(header, 2).unwrap_or_default(),
            seq: long(header, 4).unwrap_or_default(),
            ack: long(header, 8).unwrap_or_default(),
            flags: header[13],
            len: (segment.len() - offset) as u32,
        };
        let impossible = match tcp.flags & (SYN | FIN | RST | ACK) {
            0 => true,
            flags if flags & SYN != 0 => flags & (FIN | RST) != 0,
            flags if flags & FIN != 0 => flags & (ACK | RST) != ACK,
            _ => false,
        };
        if impossible {
            Err(BadTcp::Flags)
        } else {
            Ok(tcp)
        }
    }

    /// All these control bits are set.
    pub(super) fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// A connection request.
    pub(super) fn is_syn(&self) -> bool {
        self.has(SYN) && !self.has(ACK)
    }

    /// The sequence number after this segment.
    pub(super) fn next_seq(&self) -> u32 {
        let control = u32::from(self.has(SYN)) + u32::from(self.has(FIN));
        self.seq.wrapping_add(self.len).wrapping_add(control)
    }
}

/// A UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Udp {
    /// Source port.
    pub(super) sport: u16,
    /// Destination port.
    pub(super) dport: u16,
}

/// What is wrong with a UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadUdp {
    /// Shorter than a header.
    Truncated,
    /// A length below a header's, or beyond the packet.
    Length,
}

impl Udp {
    /// A datagram, as IP delimits it.
    pub(super) fn parse(datagram: &[u8]) -> Result<Self, BadUdp> {
        let header = bytes(datagram, 0, 8).ok_or(BadUdp::Truncated)?;
        let length = usize::from(word(header, 4).unwrap_or_default());
        if length < 8 || length > datagram.len() {
            return Err(BadUdp::Length);
        }
        Ok(Self {
            sport: word(header, 0).unwrap_or_default(),
            dport: word(header, 2).unwrap_or_default(),
        })
    }
}

/// The packet that an ICMP error quotes the beginning of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quoted {
    /// Where its IP header begins.
    pub(super) l3: usize,
    /// Where its transport header begins.
    pub(super) l4: usize,
    /// TCP or UDP.
    pub(super) proto: u8,
    /// Its source.
    pub(super) src: SocketAddr,
    /// Its destination.
    pub(super) dst: SocketAddr,
}

impl Quoted {
    /// What the ICMP message of the IP packet `ip` quotes, if that is an error and the quotation has
    /// ports.
    pub(super) fn parse(frame: &[u8], ip: &Ip, version: Version) -> Option<Self> {
        let message = ip.upper(frame)?;
        let error = match (version, message.first()?) {
            // Unreachable, time exceeded, parameter problem; no redirects.
            (Version::Four, kind) => matches!(kind, 3 | 11 | 12),
            // The same, and packet too big.
            (Version::Six, kind) => matches!(kind, 1..=4),
        };
        let packet = message.get(8..).filter(|_| error)?;
        let (proto, length) = match version {
            Version::Four => {
                let header = bytes(packet, 0, 20)?;
                let length = usize::from(header[0] & 0xf) * 4;
                // A later fragment has no ports.
                let first = word(header, 6)? << 3 == 0;
                let usable = header[0] >> 4 == 4 && length >= 20 && first;
                usable.then_some((header[9], length))?
            }
            Version::Six => {
                let header = bytes(packet, 0, 40)?;
                (header[0] >> 4 == 6).then_some((header[6], 40))?
            }
        };
        // RFC 792: 64 bits of the original datagram's data.
        let transport = bytes(packet, length, 8).filter(|_| matches!(proto, TCP | UDP))?;
        let at = version.addresses();
        let src = address(packet, at, version)?;
        let dst = address(packet, at + version.address_len(), version)?;
        Some(Self {
            l3: ip.l4 + 8,
            l4: ip.l4 + 8 + length,
            proto,
            src: endpoint(src, word(transport, 0)?),
            dst: endpoint(dst, word(transport, 2)?),
        })
    }
}

/// Whether a client may have this address: not "this network", loopback, multicast, or reserved.
pub(super) fn is_client_address(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(four) => !matches!(four.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(six) => !six.is_unspecified() && !six.is_loopback() && !six.is_multicast(),
    }
}

/// `addr:port`.
pub(super) fn endpoint(addr: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(addr, port)
}

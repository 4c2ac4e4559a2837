//! Frames that are made in user space: a packet of a client, for a question about what would become of
//! it, and a VRRP advert that leaves from a virtual MAC.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    abi::Mac,
    checksum,
    headers::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, IPPROTO_TCP, IPPROTO_UDP,
        Ipv4Header, TcpHeader,
    },
};

use super::vrrp::packet;

/// TTL and hop limit, as most stacks begin with.
const TTL: u8 = 64;
/// Window of a TCP segment.
const WINDOW: u16 = 0xffff;
/// Offset of the checksum in a UDP header (RFC 768).
const UDP_CHECKSUM: usize = 6;
/// Sequence number, and acknowledgement number where there is one.
pub const NUMBER: u32 = 1;

/// A MAC as people write it.
pub fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// What travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A TCP segment with these control bits and no data.
    Tcp {
        /// Control bits as in [`TcpHeader`].
        flags: u8,
    },
    /// A UDP packet without data.
    Udp,
}

impl Transport {
    /// IP protocol number.
    pub const fn protocol(self) -> u8 {
        match self {
            Self::Tcp { .. } => IPPROTO_TCP,
            Self::Udp => IPPROTO_UDP,
        }
    }
}

/// How a frame gets here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Destination MAC.
    pub to: Mac,
    /// Source MAC.
    pub from: Mac,
    /// VLAN tags: the outer one's id in the low half, an inner one's in the high half; 0: none.
    pub tags: u32,
}

/// The frame of a packet from `source` to `destination`; `None` if they are of different families.
/// All checksums are right.
pub fn packet(
    link: Link,
    source: SocketAddr,
    destination: SocketAddr,
    transport: Transport,
) -> Option<Vec<u8>> {
    let mut frame = [link.to, link.from].concat();
    push_tags(&mut frame, link.tags);
    let class = Class {
        traffic: 0,
        ttl: TTL,
        protocol: transport.protocol(),
    };
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let (from, to) = (from.octets(), to.octets());
            let message = message(source, destination, (&from, &to), transport);
            frame.extend(ETHERTYPE_IPV4.to_be_bytes());
            frame.extend(ipv4(from, to, class, message.len()));
            frame.extend(message);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let (from, to) = (from.octets(), to.octets());
            let message = message(source, destination, (&from, &to), transport);
            frame.extend(ETHERTYPE_IPV6.to_be_bytes());
            frame.extend(ipv6(from, to, class, message.len()));
            frame.extend(message);
        }
        _ => return None,
    }
    Some(frame)
}

fn push_tags(frame: &mut Vec<u8>, tags: u32) {
    let (outer, inner) = (tags as u16, (tags >> 16) as u16);
    let mut push = |ethertype: u16, id: u16| {
        frame.extend(ethertype.to_be_bytes());
        frame.extend(id.to_be_bytes());
    };
    if inner != 0 {
        push(ETHERTYPE_QINQ, outer);
        push(ETHERTYPE_VLAN, inner);
    } else if outer != 0 {
        push(ETHERTYPE_VLAN, outer);
    }
}

/// A length field. What is made here is some ten bytes long.
fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}

/// What IP headers have beside addresses and lengths.
#[derive(Clone, Copy)]
struct Class {
    /// Type of service or traffic class.
    traffic: u8,
    /// TTL or hop limit.
    ttl: u8,
    /// IP protocol number.
    protocol: u8,
}

fn ipv4(from: [u8; 4], to: [u8; 4], class: Class, data: usize) -> Vec<u8> {
    let mut header = vec![0x45, class.traffic];
    header.extend(length(Ipv4Header::LEN + data));
    // No fragment, and never to become one.
    header.extend([0, 0, 0x40, 0, class.ttl, class.protocol, 0, 0]);
    header.extend(from);
    header.extend(to);
    let sum = checksum::checksum(&header);
    set(&mut header, Ipv4Header::CHECKSUM, sum);
    header
}

fn ipv6(from: [u8; 16], to: [u8; 16], class: Class, data: usize) -> Vec<u8> {
    let mut header = vec![0x60 | class.traffic >> 4, class.traffic << 4, 0, 0];
    header.extend(length(data));
    header.extend([class.protocol, class.ttl]);
    header.extend(from);
    header.extend(to);
    header
}

/// The frame of a VRRP message (its checksum included) from `source` to the group `group` (RFC 9568
/// section 5.1), from the MAC `from`; `None` if the two are of different families. Traffic class CS6:
/// it must get through where other traffic queues.
pub fn advert(from: Mac, source: IpAddr, group: IpAddr, message: &[u8]) -> Option<Vec<u8>> {
    let class = Class {
        traffic: 0xc0,
        ttl: packet::TTL,
        protocol: packet::PROTOCOL,
    };
    let mut frame = Vec::new();
    match (source, group) {
        (IpAddr::V4(source), IpAddr::V4(group)) => {
            // RFC 1112 section 6.4.
            let [_, b, c, d] = group.octets();
            frame.extend([[0x01, 0x00, 0x5e, b & 0x7f, c, d], from].concat());
            frame.extend(ETHERTYPE_IPV4.to_be_bytes());
            frame.extend(ipv4(source.octets(), group.octets(), class, message.len()));
        }
        (IpAddr::V6(source), IpAddr::V6(group)) => {
            // RFC 2464 section 7.
            let [.., a, b, c, d] = group.octets();
            frame.extend([[0x33, 0x33, a, b, c, d], from].concat());
            frame.extend(ETHERTYPE_IPV6.to_be_bytes());
            frame.extend(ipv6(source.octets(), group.octets(), class, message.len()));
        }
        _ => return None,
    }
    frame.extend(message);
    Some(frame)
}

/// Transport header with its checksum.
fn message(
    source: SocketAddr,
    destination: SocketAddr,
    (from, to): (&[u8], &[u8]),
    transport: Transport,
) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend(source.port().to_be_bytes());
    message.extend(destination.port().to_be_bytes());
    let at = match transport {
        Transport::Tcp { flags } => {
            let ack = if flags & TcpHeader::ACK == 0 {
                0
            } else {
                NUMBER
            };
            message.extend(NUMBER.to_be_bytes());
            message.extend(ack.to_be_bytes());
            message.extend([0x50, flags]);
            message.extend(WINDOW.to_be_bytes());
            message.extend([0; 4]);
            TcpHeader::CHECKSUM
        }
        Transport::Udp => {
            message.extend(length(8));
            message.extend([0; 2]);
            UDP_CHECKSUM
        }
    };
    let sum = checksum::transport(from, to, transport.protocol(), &message);
    // 0 would say that there is none (RFC 768); the same number in one's complement is 0xffff.
    let none = transport == Transport::Udp && sum == 0;
    set(&mut message, at, if none { 0xffff } else { sum });
    message
}

fn set(bytes: &mut [u8], at: usize, value: u16) {
    for (to, from) in bytes.iter_mut().skip(at).zip(value.to_be_bytes()) {
        *to = from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYN: Transport = Transport::Tcp {
        flags: TcpHeader::SYN,
    };

    fn frame(source: &str, destination: &str, tags: u32, transport: Transport) -> Vec<u8> {
        let link = Link {
            to: [2, 0, 0, 0, 0, 1],
            from: [2, 0, 0, 0, 0, 2],
            tags,
        };
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        packet(link, source, destination, transport).unwrap()
    }

    /// A SYN over IPv4, byte by byte; its checksums verify.
    #[test]
    fn a_syn() {
        let frame = frame("192.0.2.7:40000", "10.0.2.100:1644", 0, SYN);
        let head = [
            2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6,
        ];
        assert_eq!(frame[..24], head);
        assert_eq!(checksum::checksum(&frame[14..34]), 0);
        assert_eq!(frame[26..34], [192, 0, 2, 7, 10, 0, 2, 100]);
        assert_eq!(frame[34..38], [0x9c, 0x40, 0x06, 0x6c]);
        assert_eq!(frame[38..48], [0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2]);
        assert_eq!(
            checksum::transport(&frame[26..30], &frame[30..34], 6, &frame[34..]),
            0
        );
        assert_eq!(frame.len(), 54);
    }

    /// An ACK has an acknowledgement number; over IPv6 the checksum covers the long addresses.
    #[test]
    fn an_ack_over_ipv6() {
        let flags = TcpHeader::ACK;
        let frame = frame(
            "[2001:db8::7]:40000",
            "[fd00::100]:1644",
            0,
            Transport::Tcp { flags },
        );
        assert_eq!(frame[12..22], [0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
        assert_eq!(frame[58..68], [0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10]);
        assert_eq!(
            checksum::transport(&frame[22..38], &frame[38..54], 6, &frame[54..]),
            0
        );
    }

    /// UDP has a length and a checksum.
    #[test]
    fn a_udp_packet() {
        let frame = frame("192.0.2.7:40000", "10.0.2.100:53", 0, Transport::Udp);
        assert_eq!((frame[23], &frame[38..40]), (17, &[0, 8][..]));
        assert_eq!(
            checksum::transport(&frame[26..30], &frame[30..34], 17, &frame[34..]),
            0
        );
        assert_eq!(frame.len(), 42);
    }

    /// One tag is 802.1Q, two are 802.1ad and 802.1Q.
    #[test]
    fn tags() {
        let frame = |tags| frame("192.0.2.7:1", "10.0.2.100:2", tags, SYN);
        assert_eq!(frame(7)[12..18], [0x81, 0, 0, 7, 8, 0]);
        let two = frame(7 | 9 << 16);
        assert_eq!(two[12..22], [0x88, 0xa8, 0, 7, 0x81, 0, 0, 9, 8, 0]);
    }

    /// Adverts as RFC 9568 section 5.1 wants them: group, TTL, virtual MAC.
    #[test]
    fn adverts_from_a_virtual_mac() {
        let mac = [0, 0, 0x5e, 0, 1, 51];
        let [v4, v6] = [
            ("10.0.2.10", IpAddr::V4(packet::GROUP_V4)),
            ("fe80::1", IpAddr::V6(packet::GROUP_V6)),
        ]
        .map(|(source, group)| {
            advert(mac, source.parse().unwrap(), group, &[0x31, 51, 100, 0]).unwrap()
        });
        let head = [1, 0, 0x5e, 0, 0, 18, 0, 0, 0x5e, 0, 1, 51, 8, 0];
        assert_eq!(v4[..14], head);
        assert_eq!(v4[14..24], [0x45, 0xc0, 0, 24, 0, 0, 0x40, 0, 255, 112]);
        assert_eq!(checksum::checksum(&v4[14..34]), 0);
        assert_eq!(v4[26..], [10, 0, 2, 10, 224, 0, 0, 18, 0x31, 51, 100, 0]);
        let head = [0x33, 0x33, 0, 0, 0, 18, 0, 0, 0x5e, 0, 1, 51, 0x86, 0xdd];
        assert_eq!(v6[..14], head);
        assert_eq!(v6[14..22], [0x6c, 0, 0, 0, 0, 4, 112, 255]);
        assert_eq!(v6[38..54], packet::GROUP_V6.octets());
        assert_eq!(v6[54..], [0x31, 51, 100, 0]);
        let mixed = advert(
            mac,
            IpAddr::V4([10, 0, 2, 10].into()),
            IpAddr::V6(packet::GROUP_V6),
            &[],
        );
        assert_eq!(mixed, None);
    }

    /// A packet has one family.
    #[test]
    fn families_do_not_mix() {
        let link = Link {
            to: [2; 6],
            from: [2; 6],
            tags: 0,
        };
        let (v4, v6) = (
            "192.0.2.7:1".parse().unwrap(),
            "[fd00::1]:1".parse().unwrap(),
        );
        assert_eq!(packet(link, v4, v6, SYN), None);
    }
}

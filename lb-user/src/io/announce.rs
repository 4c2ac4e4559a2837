//! Tells a link's other stations that an address now lives at this one's MAC, and asks who else has
//! one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::{
    checksum,
    headers::{
        ArpPacket, ETHERTYPE_ARP, ETHERTYPE_IPV6, EthHeader, IPPROTO_ICMPV6, Ipv6Header, NdPacket,
    },
};

use super::packet_socket::{PacketError, PacketSocket};

/// Length of a gratuitous ARP frame. The driver pads it to the least that Ethernet allows.
pub const ARP_FRAME_LEN: usize = EthHeader::LEN + ArpPacket::LEN;

/// Length of an unsolicited neighbour advertisement with its link-layer address option.
pub const NA_FRAME_LEN: usize = EthHeader::LEN + Ipv6Header::LEN + NA_LEN;

const NA_LEN: usize = NdPacket::LEN + LINK_LAYER_OPTION_LEN;
const LINK_LAYER_OPTION_LEN: usize = 8;
/// [`NA_LEN`] as the IPv6 header has it.
const NA_LEN_FIELD: [u8; 2] = [0, 32];
const _: () = assert!(NA_LEN == 32);

const BROADCAST: [u8; 6] = [0xff; 6];
/// The Ethernet group of [`ALL_NODES`], RFC 2464 section 7.
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Which of the two forms of gratuitous ARP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArpForm {
    /// RFC 5227 section 2.3's announcement.
    Request,
    /// The older form, which some switches and stacks alone take.
    Reply,
}

/// Length of a neighbour solicitation without options.
pub const NS_FRAME_LEN: usize = EthHeader::LEN + Ipv6Header::LEN + NdPacket::LEN;

/// [`NdPacket::LEN`] as the IPv6 header has it.
const NS_LEN_FIELD: [u8; 2] = [0, 24];
const _: () = assert!(NdPacket::LEN == 24);

/// Announces addresses on one link.
#[derive(Debug)]
pub struct Announcer {
    socket: PacketSocket,
}

impl Announcer {
    /// For a link of the calling thread's network namespace.
    pub fn open(ifindex: u32) -> Result<Self, PacketError> {
        PacketSocket::open(ifindex).map(|socket| Self { socket })
    }

    /// Says that `addr` is at `mac`, to every station of the link that has an entry for it.
    ///
    /// Success means that the link took the frames. Stations may ignore them shortly after their
    /// entry changed (Linux before 4.13 for 1 s), and a link that has just come up may drop
    /// them: say it again after more than 1 s.
    pub fn announce(&self, mac: [u8; 6], addr: IpAddr) -> Result<(), PacketError> {
        match addr {
            IpAddr::V4(addr) => {
                self.socket
                    .send(&gratuitous_arp(mac, addr, ArpForm::Request))?;
                self.socket.send(&gratuitous_arp(mac, addr, ArpForm::Reply))
            }
            IpAddr::V6(addr) => self.socket.send(&unsolicited_advertisement(mac, addr)),
        }
    }

    /// Asks all stations of the link whether they have `addr`, from nobody: nothing changes in their
    /// caches. Who has it answers, to `mac` or to all nodes.
    pub fn probe(&self, mac: [u8; 6], addr: IpAddr) -> Result<(), PacketError> {
        match addr {
            IpAddr::V4(addr) => self.socket.send(&arp_probe(mac, addr)),
            IpAddr::V6(addr) => self.socket.send(&duplicate_solicitation(mac, addr)),
        }
    }
}

/// A gratuitous ARP frame, RFC 5227 section 2.3: sender and target are both `addr`.
///
/// The target MAC is zero in a request, where it has no meaning (RFC 826), and the sender's in a
/// reply: Linux takes a reply for gratuitous, and so at any time, only then.
pub fn gratuitous_arp(mac: [u8; 6], addr: Ipv4Addr, form: ArpForm) -> [u8; ARP_FRAME_LEN] {
    let (operation, target_mac) = match form {
        ArpForm::Request => (ArpPacket::REQUEST, [0; 6]),
        ArpForm::Reply => (ArpPacket::REPLY, mac),
    };
    arp_frame(&ArpPacket {
        fixed: ArpPacket::FIXED,
        operation,
        sender_mac: mac,
        sender_ip: addr.octets(),
        target_mac,
        target_ip: addr.octets(),
    })
}

/// An ARP probe, RFC 5227 section 2.1.1: who has `addr`? Its sender has no address.
pub fn arp_probe(mac: [u8; 6], addr: Ipv4Addr) -> [u8; ARP_FRAME_LEN] {
    arp_frame(&ArpPacket {
        fixed: ArpPacket::FIXED,
        operation: ArpPacket::REQUEST,
        sender_mac: mac,
        sender_ip: [0; 4],
        target_mac: [0; 6],
        target_ip: addr.octets(),
    })
}

/// To everybody.
fn arp_frame(arp: &ArpPacket) -> [u8; ARP_FRAME_LEN] {
    let ethernet = ethernet(BROADCAST, arp.sender_mac, ETHERTYPE_ARP);
    concat(&[
        &ethernet.dst,
        &ethernet.src,
        &ethernet.ethertype,
        &arp.fixed,
        &arp.operation,
        &arp.sender_mac,
        &arp.sender_ip,
        &arp.target_mac,
        &arp.target_ip,
    ])
}

/// An unsolicited neighbour advertisement to all nodes, RFC 4861 sections 4.4 and 7.2.6:
/// override set, so that entries change; router and solicited clear.
pub fn unsolicited_advertisement(mac: [u8; 6], addr: Ipv6Addr) -> [u8; NA_FRAME_LEN] {
    /// The override flag, first of the 32 bits.
    const OVERRIDE: [u8; 4] = [0x20, 0, 0, 0];

    let without_checksum = advertisement(mac, addr, OVERRIDE, [0; 2]);
    let checksum = checksum::transport(
        &addr.octets(),
        &ALL_NODES.octets(),
        IPPROTO_ICMPV6,
        &without_checksum,
    );
    let message = advertisement(mac, addr, OVERRIDE, checksum.to_be_bytes());
    let ethernet = ethernet(ALL_NODES_MAC, mac, ETHERTYPE_IPV6);
    let ip = Ipv6Header {
        version_class_flow: [0x60, 0, 0, 0],
        payload_length: NA_LEN_FIELD,
        next_header: IPPROTO_ICMPV6,
        // RFC 4861 section 7.1.2: anything else came through a router.
        hop_limit: 255,
        src: addr.octets(),
        dst: ALL_NODES.octets(),
    };
    concat(&[
        &ethernet.dst,
        &ethernet.src,
        &ethernet.ethertype,
        &ip.version_class_flow,
        &ip.payload_length,
        &[ip.next_header, ip.hop_limit],
        &ip.src,
        &ip.dst,
        &message,
    ])
}

/// A neighbour solicitation as in duplicate address detection, RFC 4862 section 5.4.2: from the
/// unspecified address to the target's solicited-node group, without the option that would say who
/// asks. Who has `addr` answers to all nodes.
pub fn duplicate_solicitation(mac: [u8; 6], addr: Ipv6Addr) -> [u8; NS_FRAME_LEN] {
    // RFC 4291 section 2.7.1; its Ethernet group by RFC 2464 section 7.
    let [.., a, b, c] = addr.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    let source = Ipv6Addr::UNSPECIFIED.octets();
    let message = |checksum: [u8; 2]| -> [u8; NdPacket::LEN] {
        concat(&[
            &[NdPacket::SOLICITATION, 0],
            &checksum,
            &[0; 4],
            &addr.octets(),
        ])
    };
    let checksum = checksum::transport(&source, &group.octets(), IPPROTO_ICMPV6, &message([0; 2]));
    let ethernet = ethernet([0x33, 0x33, 0xff, a, b, c], mac, ETHERTYPE_IPV6);
    concat(&[
        &ethernet.dst,
        &ethernet.src,
        &ethernet.ethertype,
        &[0x60, 0, 0, 0],
        &NS_LEN_FIELD,
        &[IPPROTO_ICMPV6, 255],
        &source,
        &group.octets(),
        &message(checksum.to_be_bytes()),
    ])
}

/// The `ICMPv6` message: advertisement, then the target link-layer address option (RFC 4861
/// section 4.6.1: type 2, length 1 unit of 8 bytes).
fn advertisement(mac: [u8; 6], addr: Ipv6Addr, flags: [u8; 4], checksum: [u8; 2]) -> [u8; NA_LEN] {
    let nd = NdPacket {
        kind: NdPacket::ADVERTISEMENT,
        code: 0,
        checksum,
        flags,
        target: addr.octets(),
    };
    concat(&[
        &[nd.kind, nd.code],
        &nd.checksum,
        &nd.flags,
        &nd.target,
        &[2, 1],
        &mac,
    ])
}

const fn ethernet(dst: [u8; 6], src: [u8; 6], ethertype: u16) -> EthHeader {
    EthHeader {
        dst,
        src,
        ethertype: ethertype.to_be_bytes(),
    }
}

/// The fields one after the other; they fill `N` bytes.
fn concat<const N: usize>(fields: &[&[u8]]) -> [u8; N] {
    let mut bytes = [0; N];
    let values = fields.iter().copied().flatten();
    for (byte, value) in bytes.iter_mut().zip(values) {
        *byte = *value;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x0a];
    const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);

    /// RFC 5227's announcement, byte by byte.
    #[test]
    fn arp_request_is_as_rfc_5227() {
        #[rustfmt::skip]
        let expected = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0, 0, 0, 0x0a, 0x08, 0x06,
            0, 1, 0x08, 0, 6, 4, 0, 1,
            0x02, 0, 0, 0, 0, 0x0a, 10, 0, 2, 100,
            0, 0, 0, 0, 0, 0, 10, 0, 2, 100,
        ];
        assert_eq!(gratuitous_arp(MAC, VIP, ArpForm::Request), expected);
    }

    /// The reply differs in the operation and in the target MAC alone.
    #[test]
    fn arp_reply_names_the_sender_as_target() {
        let mut expected = gratuitous_arp(MAC, VIP, ArpForm::Request);
        expected[21] = 2;
        expected[32..38].copy_from_slice(&MAC);
        assert_eq!(gratuitous_arp(MAC, VIP, ArpForm::Reply), expected);
    }

    /// RFC 5227's probe: as the announcement, but from nobody.
    #[test]
    fn arp_probe_is_from_nobody() {
        let mut expected = gratuitous_arp(MAC, VIP, ArpForm::Request);
        expected[28..32].fill(0);
        assert_eq!(arp_probe(MAC, VIP), expected);
    }

    /// RFC 4862's solicitation, byte by byte; the sum over it and its pseudo-header is right.
    #[test]
    fn duplicate_solicitation_is_as_rfc_4862() {
        let vip = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0x12, 0x3456);
        let frame = duplicate_solicitation(MAC, vip);
        #[rustfmt::skip]
        let head = [
            0x33, 0x33, 0xff, 0x12, 0x34, 0x56, 0x02, 0, 0, 0, 0, 0x0a, 0x86, 0xdd,
            0x60, 0, 0, 0, 0, 24, 58, 255,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0x12, 0x34, 0x56,
            135, 0,
        ];
        assert_eq!(frame[..56], head);
        assert_eq!(frame[58..62], [0; 4]);
        assert_eq!(frame[62..], vip.octets());
        let sum = checksum::transport(&frame[22..38], &frame[38..54], 58, &frame[54..]);
        assert_eq!(sum, 0);
    }

    /// RFC 4861's unsolicited advertisement, byte by byte. The checksum is the sum of
    /// the words as they stand there.
    #[test]
    fn advertisement_is_as_rfc_4861() {
        let vip = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 0x100);
        // Source and target; destination; length, protocol; type, flags; option, MAC.
        let addresses = 2 * (0xfd00 + 0x2 + 0x100) + 0xff02 + 0x1;
        let message = 0x20 + 0x3a + 0x8800 + 0x2000 + 0x0201 + 0x0200 + 0xa;
        let sum: u32 = addresses + message;
        let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        let [high, low] = checksum.to_be_bytes();
        #[rustfmt::skip]
        let expected = [
            0x33, 0x33, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 0x0a, 0x86, 0xdd,
            0x60, 0, 0, 0, 0, 32, 58, 255,
            0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0,
            0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
            136, 0, high, low, 0x20, 0, 0, 0,
            0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0,
            2, 1, 0x02, 0, 0, 0, 0, 0x0a,
        ];
        assert_eq!(unsolicited_advertisement(MAC, vip), expected);
    }
}

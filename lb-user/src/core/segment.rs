//! TCP segments that xvip makes itself, as bytes: resets, and the segments that clients of a dead
//! backend answer with their sequence numbers.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    abi::Mac,
    checksum,
    headers::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, IPPROTO_TCP, TcpHeader,
    },
};

/// TTL or hop limit, as the kernel's own.
const TTL: u8 = 64;
/// `DF`: such a packet is never fragmented.
const DONT_FRAGMENT: [u8; 2] = [0x40, 0];
const TCP_LEN: u16 = 20;

/// A segment without data, options or window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Source.
    pub src: SocketAddr,
    /// Destination, of the same family.
    pub dst: SocketAddr,
    /// SEG.SEQ.
    pub seq: u32,
    /// SEG.ACK; without the ACK flag 0.
    pub ack: u32,
    /// Control bits as in [`TcpHeader::flags`].
    pub flags: u8,
}

impl Segment {
    /// RST: ends the connection if `seq` is what `dst` expects next (RFC 5961 section 3.2).
    pub const fn reset(src: SocketAddr, dst: SocketAddr, seq: u32) -> Self {
        Self {
            src,
            dst,
            seq,
            ack: 0,
            flags: TcpHeader::RST,
        }
    }

    /// SYN|ACK: whoever has the connection answers with an ACK that carries its numbers (RFC 5961
    /// section 4.2), and whoever has not with RST. Connection tracking on the way lets it pass.
    pub const fn challenge(src: SocketAddr, dst: SocketAddr, seq: u32, ack: u32) -> Self {
        Self {
            src,
            dst,
            seq,
            ack,
            flags: TcpHeader::SYN | TcpHeader::ACK,
        }
    }

    /// The IP packet; `None` if the addresses are of two families.
    pub fn packet(&self) -> Option<Vec<u8>> {
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let (src, dst) = (src.octets(), dst.octets());
                let tcp = self.tcp(&src, &dst);
                Some([&ipv4_header(src, dst)[..], &tcp].concat())
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let (src, dst) = (src.octets(), dst.octets());
                let tcp = self.tcp(&src, &dst);
                Some([&ipv6_header(src, dst)[..], &tcp].concat())
            }
            _ => None,
        }
    }

    fn tcp(&self, src: &[u8], dst: &[u8]) -> Vec<u8> {
        let header = |sum: u16| {
            [
                &self.src.port().to_be_bytes()[..],
                &self.dst.port().to_be_bytes(),
                &self.seq.to_be_bytes(),
                &self.ack.to_be_bytes(),
                // Data offset in words of 4 bytes, flags, window 0.
                &[(TCP_LEN as u8 / 4) << 4, self.flags, 0, 0],
                &sum.to_be_bytes(),
                // No urgent pointer.
                &[0, 0],
            ]
            .concat()
        };
        header(checksum::transport(src, dst, IPPROTO_TCP, &header(0)))
    }
}

fn ipv4_header(src: [u8; 4], dst: [u8; 4]) -> Vec<u8> {
    const LEN: u16 = 20;
    let header = |sum: u16| {
        [
            &[0x45, 0][..],
            &(LEN + TCP_LEN).to_be_bytes(),
            // An identification of 0: nothing is fragmented (RFC 6864 section 4.1).
            &[0, 0],
            &DONT_FRAGMENT,
            &[TTL, IPPROTO_TCP],
            &sum.to_be_bytes(),
            &src,
            &dst,
        ]
        .concat()
    };
    header(checksum::checksum(&header(0)))
}

fn ipv6_header(src: [u8; 16], dst: [u8; 16]) -> Vec<u8> {
    [
        &[0x60, 0, 0, 0][..],
        &TCP_LEN.to_be_bytes(),
        &[IPPROTO_TCP, TTL],
        &src,
        &dst,
    ]
    .concat()
}

/// `packet` as an Ethernet frame from `src` to `dst`, with the VLAN tags `tags` as in
/// [`lb_common::abi::UplinkKey`].
pub fn frame(packet: &[u8], src: Mac, dst: Mac, tags: u32) -> Vec<u8> {
    let (outer, inner) = (tags as u16, (tags >> 16) as u16);
    let tag = |ethertype: u16, vlan: u16| [ethertype.to_be_bytes(), vlan.to_be_bytes()].concat();
    let tags = match (outer, inner) {
        (0, _) => Vec::new(),
        (outer, 0) => tag(ETHERTYPE_VLAN, outer),
        (outer, inner) => [tag(ETHERTYPE_QINQ, outer), tag(ETHERTYPE_VLAN, inner)].concat(),
    };
    let is_ipv6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
    let ethertype = if is_ipv6 {
        ETHERTYPE_IPV6
    } else {
        ETHERTYPE_IPV4
    };
    [&dst[..], &src, &tags, &ethertype.to_be_bytes(), packet].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// The bytes of a RST, IPv4, field by field.
    #[test]
    fn a_reset_over_ipv4() {
        let reset = Segment::reset(at("10.0.2.100:6443"), at("10.0.1.7:40000"), 0x0102_0304);
        let packet = reset.packet().unwrap();
        let (ip, tcp) = packet.split_at(20);
        assert_eq!(ip[..10], [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6]);
        assert_eq!(ip[12..], [10, 0, 2, 100, 10, 0, 1, 7]);
        assert_eq!(checksum::checksum(ip), 0);
        let expected = [
            0x19, 0x2b, 0x9c, 0x40, 1, 2, 3, 4, 0, 0, 0, 0, 0x50, 4, 0, 0,
        ];
        assert_eq!(tcp[..16], expected);
        assert_eq!(tcp[18..], [0, 0]);
        assert_eq!(checksum::transport(&ip[12..16], &ip[16..], 6, tcp), 0);
    }

    /// The bytes of a challenge, IPv6.
    #[test]
    fn a_challenge_over_ipv6() {
        let challenge = Segment::challenge(at("[fd00::100]:6443"), at("[fd01::7]:40000"), 5, 9);
        let packet = challenge.packet().unwrap();
        let (ip, tcp) = packet.split_at(40);
        assert_eq!(ip[..8], [0x60, 0, 0, 0, 0, 20, 6, 64]);
        assert_eq!(ip[8..10], [0xfd, 0]);
        assert_eq!(ip[24..26], [0xfd, 1]);
        assert_eq!(tcp[4..16], [0, 0, 0, 5, 0, 0, 0, 9, 0x50, 0x12, 0, 0]);
        assert_eq!(checksum::transport(&ip[8..24], &ip[24..], 6, tcp), 0);
    }

    /// There is no packet between families.
    #[test]
    fn families_do_not_mix() {
        let mixed = Segment::reset(at("10.0.2.100:6443"), at("[fd01::7]:40000"), 1);
        assert_eq!(mixed.packet(), None);
    }

    /// Frames carry no, one, or two tags.
    #[test]
    fn frames_are_tagged() {
        let (src, dst) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let rest = |tags, first: u8| frame(&[first, 0xaa], src, dst, tags)[12..].to_vec();
        assert_eq!(rest(0, 0x45), [8, 0, 0x45, 0xaa]);
        assert_eq!(rest(0, 0x60), [0x86, 0xdd, 0x60, 0xaa]);
        assert_eq!(rest(100, 0x45), [0x81, 0, 0, 100, 8, 0, 0x45, 0xaa]);
        let double = rest(0x00c8_0064, 0x45);
        assert_eq!(
            double,
            [0x88, 0xa8, 0, 100, 0x81, 0, 0, 200, 8, 0, 0x45, 0xaa]
        );
        assert_eq!(frame(&[0x45], src, dst, 0)[..12], [dst, src].concat());
    }
}

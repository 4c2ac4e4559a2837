//! The packets, built from scratch.

use lb_common::{
    checksum,
    headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPPROTO_TCP, TcpHeader},
};

/// MAC of the interface that the program runs on.
pub(crate) const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// A client's (or router's) MAC.
pub(crate) const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// A peer's MAC.
pub(crate) const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// A backend's MAC.
pub(crate) const BACKEND_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
/// Of no station here.
pub(crate) const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x77];

/// The VIPs.
pub(crate) const VIP4: [u8; 4] = [10, 9, 0, 100];
pub(crate) const VIP6: [u8; 16] = [0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// The client.
pub(crate) const CLIENT4: [u8; 4] = [10, 9, 0, 50];
pub(crate) const CLIENT6: [u8; 16] = [0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x50];
/// The backend of dsr and nat.
pub(crate) const BACKEND4: [u8; 4] = [10, 9, 0, 3];
pub(crate) const BACKEND6: [u8; 16] = [0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];

/// The client's port.
pub(crate) const CLIENT_PORT: u16 = 40_000;
/// Where backends listen.
pub(crate) const BACKEND_PORT: u16 = 6443;

/// Service ports by method.
pub(crate) const DSR_PORT: u16 = 1001;
pub(crate) const NAT_PORT: u16 = 1002;
pub(crate) const LOCAL_PORT: u16 = 1003;

/// Data bytes of each segment. With them even an IPv4 frame is as long as what is restored.
const DATA: usize = 26;

/// A packet of one family: addresses of 4 or 16 bytes.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) dst_mac: [u8; 6],
    pub(crate) src_mac: [u8; 6],
    pub(crate) src: Vec<u8>,
    pub(crate) dst: Vec<u8>,
    pub(crate) sport: u16,
    pub(crate) dport: u16,
    pub(crate) flags: u8,
    pub(crate) proto: u8,
}

impl Packet {
    /// An established client's segment to `port` of the VIP of a family.
    pub(crate) fn to_vip(v6: bool, port: u16) -> Self {
        let (src, dst) = if v6 {
            (CLIENT6.to_vec(), VIP6.to_vec())
        } else {
            (CLIENT4.to_vec(), VIP4.to_vec())
        };
        Self {
            dst_mac: OWN_MAC,
            src_mac: CLIENT_MAC,
            src,
            dst,
            sport: CLIENT_PORT,
            dport: port,
            flags: TcpHeader::ACK,
            proto: IPPROTO_TCP,
        }
    }

    /// A nat backend's reply to the client.
    pub(crate) fn reply(v6: bool) -> Self {
        let (src, dst) = if v6 {
            (BACKEND6.to_vec(), VIP6.to_vec())
        } else {
            (BACKEND4.to_vec(), VIP4.to_vec())
        };
        Self {
            src_mac: BACKEND_MAC,
            src,
            dst,
            sport: BACKEND_PORT,
            dport: CLIENT_PORT,
            ..Self::to_vip(v6, NAT_PORT)
        }
    }

    /// The frame.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let segment = self.segment();
        let mut frame = Vec::with_capacity(128);
        frame.extend(self.dst_mac);
        frame.extend(self.src_mac);
        if self.src.len() == 4 {
            frame.extend(ETHERTYPE_IPV4.to_be_bytes());
            frame.extend(self.ipv4(segment.len()));
        } else {
            frame.extend(ETHERTYPE_IPV6.to_be_bytes());
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(u16::try_from(segment.len()).unwrap_or(0).to_be_bytes());
            frame.extend([self.proto, 64]);
            frame.extend(&self.src);
            frame.extend(&self.dst);
        }
        frame.extend(segment);
        frame
    }

    fn ipv4(&self, length: usize) -> Vec<u8> {
        let total = 20 + u16::try_from(length).unwrap_or(0);
        let mut header = vec![0x45, 0];
        header.extend(total.to_be_bytes());
        header.extend([0, 1, 0x40, 0, 64, self.proto, 0, 0]);
        header.extend(&self.src);
        header.extend(&self.dst);
        let sum = checksum::checksum(&header);
        header.splice(10..12, sum.to_be_bytes());
        header
    }

    fn segment(&self) -> Vec<u8> {
        let mut segment = Vec::with_capacity(20 + DATA);
        segment.extend(self.sport.to_be_bytes());
        segment.extend(self.dport.to_be_bytes());
        segment.extend(1_000u32.to_be_bytes());
        segment.extend(2_000u32.to_be_bytes());
        segment.extend([0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend([0x5a; DATA]);
        let sum = checksum::transport(&self.src, &self.dst, self.proto, &segment);
        segment.splice(
            TcpHeader::CHECKSUM..TcpHeader::CHECKSUM + 2,
            sum.to_be_bytes(),
        );
        segment
    }
}

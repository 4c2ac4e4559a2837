//! The packets: a client's established TCP segments, built from scratch.

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

/// The VIPs.
pub(crate) const VIP4: [u8; 4] = [10, 9, 0, 100];
pub(crate) const VIP6: [u8; 16] = [0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const CLIENT4: [u8; 4] = [10, 9, 0, 50];
const CLIENT6: [u8; 16] = [0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x50];

/// Service ports by method.
pub(crate) const DSR_PORT: u16 = 1001;
pub(crate) const NAT_PORT: u16 = 1002;
pub(crate) const LOCAL_PORT: u16 = 1003;

/// To a VIP's service at `port`.
pub(crate) fn to_vip4(port: u16) -> Vec<u8> {
    ipv4(CLIENT_MAC, VIP4, port)
}

/// To a VIP's service at `port`.
pub(crate) fn to_vip6(port: u16) -> Vec<u8> {
    ipv6(CLIENT_MAC, VIP6, port)
}

/// What a peer forwarded to this node's backend.
pub(crate) fn from_peer4() -> Vec<u8> {
    ipv4(PEER_MAC, VIP4, LOCAL_PORT)
}

/// What a peer forwarded to this node's backend.
pub(crate) fn from_peer6() -> Vec<u8> {
    ipv6(PEER_MAC, VIP6, LOCAL_PORT)
}

/// To another address: the node's ordinary traffic.
pub(crate) fn elsewhere4() -> Vec<u8> {
    ipv4(CLIENT_MAC, [10, 9, 0, 1], 443)
}

fn ethernet(src: [u8; 6], ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(128);
    frame.extend(OWN_MAC);
    frame.extend(src);
    frame.extend(ethertype.to_be_bytes());
    frame
}

fn tcp(src: &[u8], dst: &[u8], port: u16) -> Vec<u8> {
    let mut segment = Vec::with_capacity(40);
    segment.extend(40_000u16.to_be_bytes());
    segment.extend(port.to_be_bytes());
    segment.extend(1_000u32.to_be_bytes());
    segment.extend(2_000u32.to_be_bytes());
    segment.extend([0x50, TcpHeader::ACK, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend([0u8; 6]);
    let sum = checksum::transport(src, dst, IPPROTO_TCP, &segment);
    segment.splice(
        TcpHeader::CHECKSUM..TcpHeader::CHECKSUM + 2,
        sum.to_be_bytes(),
    );
    segment
}

fn ipv4(src_mac: [u8; 6], dst: [u8; 4], port: u16) -> Vec<u8> {
    let segment = tcp(&CLIENT4, &dst, port);
    let total = 20 + u16::try_from(segment.len()).unwrap_or(0);
    let mut header = vec![0x45, 0];
    header.extend(total.to_be_bytes());
    header.extend([0, 1, 0x40, 0, 64, IPPROTO_TCP, 0, 0]);
    header.extend(CLIENT4);
    header.extend(dst);
    let sum = checksum::checksum(&header);
    header.splice(10..12, sum.to_be_bytes());
    let mut frame = ethernet(src_mac, ETHERTYPE_IPV4);
    frame.extend(header);
    frame.extend(segment);
    frame
}

fn ipv6(src_mac: [u8; 6], dst: [u8; 16], port: u16) -> Vec<u8> {
    let segment = tcp(&CLIENT6, &dst, port);
    let mut frame = ethernet(src_mac, ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(u16::try_from(segment.len()).unwrap_or(0).to_be_bytes());
    frame.extend([IPPROTO_TCP, 64]);
    frame.extend(CLIENT6);
    frame.extend(dst);
    frame.extend(segment);
    frame
}

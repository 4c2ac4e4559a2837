//! The RST that the data plane answers a segment with, made from scratch.

use lb_common::{
    checksum,
    headers::{IPPROTO_TCP, TcpHeader},
};
use lb_tests::packet::{Family, Frame, ethernet};

/// The RST that answers `frame` (RFC 9293 section 3.10.7.1): a segment with ACK gets its own
/// acknowledgement number, another one an ACK of all that it occupies. MACs, addresses and ports are
/// swapped, VLAN tags stay, options, data and padding do not.
pub(crate) fn reset<F: Family>(frame: &Frame<F>) -> Vec<u8> {
    let segment = frame.segment();
    let has = |flag: u8| u32::from(segment.flags & flag != 0);
    let (seq, ack, flags) = if has(TcpHeader::ACK) == 1 {
        (segment.ack, 0, TcpHeader::RST)
    } else {
        let occupied = segment.data.len() as u32 + has(TcpHeader::SYN) + has(TcpHeader::FIN);
        let ack = segment.seq.wrapping_add(occupied);
        (0, ack, TcpHeader::RST | TcpHeader::ACK)
    };
    let mut tcp = Vec::new();
    tcp.extend(segment.dport.to_be_bytes());
    tcp.extend(segment.sport.to_be_bytes());
    tcp.extend(seq.to_be_bytes());
    tcp.extend(ack.to_be_bytes());
    // Five words, no window, no checksum yet, nothing urgent.
    tcp.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    let (src, dst) = (frame.dst.as_ref(), frame.src.as_ref());
    let sum = checksum::transport(src, dst, IPPROTO_TCP, &tcp);
    tcp[TcpHeader::CHECKSUM..TcpHeader::CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());

    let mut bytes = ethernet(frame.from, frame.to, &frame.tags, F::ETHERTYPE);
    bytes.extend(header::<F>(src, dst, tcp.len() as u8));
    bytes.extend(tcp);
    bytes
}

/// A plain IP header of a whole segment of `length` bytes.
fn header<F: Family>(src: &[u8], dst: &[u8], length: u8) -> Vec<u8> {
    const TTL: u8 = 64;
    if F::HEADER_LEN == 40 {
        return [&[0x60, 0, 0, 0, 0, length, IPPROTO_TCP, TTL][..], src, dst].concat();
    }
    // No id: it is never a fragment ("don't fragment").
    let fixed = [
        0x45,
        0,
        0,
        20 + length,
        0,
        0,
        0x40,
        0,
        TTL,
        IPPROTO_TCP,
        0,
        0,
    ];
    let mut header = [&fixed[..], src, dst].concat();
    let sum = checksum::checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

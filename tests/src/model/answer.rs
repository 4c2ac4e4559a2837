//! Answers in a backend's stead: RST, in the form of RFC 9293 section 3.10.7.1.

use lb_common::reason::Reason;

use super::{
    Model, Outcome,
    pipeline::Packet,
    rewrite::{self, Rewrite},
    wire::{self, ACK, RST, TCP},
};

/// Longer segments are not answered: their checksum is not verified.
const LONGEST: usize = 19 * 512;

impl Model {
    /// Answer a segment with RST, in the stead of backend `backend` (0: of none).
    pub(super) fn reset(
        &mut self,
        packet: &Packet<'_>,
        reason: Reason,
        backend: u32,
    ) -> Result<Outcome, Reason> {
        let tcp = packet.tcp().ok_or(Reason::Inconsistent)?;
        if tcp.has(RST) {
            // Never in answer to a RST.
            return Err(match reason {
                Reason::FlowReset => {
                    let key = packet.flow();
                    self.state.flows.remove(&key);
                    self.state.half_flows.remove(&key);
                    Reason::ResetConfirmed
                }
                Reason::BackendPortReset => Reason::BackendPort,
                Reason::NatPortsReset => Reason::NatPortsExhausted,
                _ => Reason::NoBackend,
            });
        }
        let length = packet.ip.end - packet.ip.l4;
        if length > LONGEST || !rewrite::intact(packet.frame, &packet.ip) {
            return Err(Reason::BadChecksum);
        }
        if backend != 0 {
            self.count_backend(backend).resets += 1;
        }
        let leaves = Rewrite {
            frame: answer(packet, tcp),
            checksums: Vec::new(),
        };
        Ok(Outcome {
            leaves,
            ..Outcome::untouched(reason, packet.frame)
        })
    }
}

/// The RST: addresses, ports and MACs swapped, VLAN tags kept, nothing after it.
fn answer(packet: &Packet<'_>, tcp: &wire::Tcp) -> Vec<u8> {
    let (seq, ack, flags) = if tcp.has(ACK) {
        (tcp.ack, 0, RST)
    } else {
        (0, tcp.next_seq(), RST | ACK)
    };
    let mut segment = Vec::new();
    segment.extend(tcp.dport.to_be_bytes());
    segment.extend(tcp.sport.to_be_bytes());
    segment.extend(seq.to_be_bytes());
    segment.extend(ack.to_be_bytes());
    segment.extend([5 << 4, flags, 0, 0, 0, 0, 0, 0]);
    let (src, dst) = (rewrite::octets(packet.dst), rewrite::octets(packet.src));
    let addresses = [src, dst].concat();
    let sum = rewrite::upper_checksum(&addresses, TCP, &segment, 16);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());

    let mut frame = [packet.link.src, packet.link.dst].concat();
    frame.extend(&packet.frame[12..packet.ip.l3]);
    if packet.src.is_ipv4() {
        // 40 bytes, don't fragment, TTL 64.
        let mut header = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0];
        header.extend(addresses);
        let sum = rewrite::header_checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(header);
    } else {
        frame.extend([0x60, 0, 0, 0, 0, 20, TCP, 64]);
        frame.extend(addresses);
    }
    frame.extend(segment);
    frame
}

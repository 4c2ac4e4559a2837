//! Conntrack transitions: what a client's TCP segment does to its flow entry.
//!
//! The owner of a dsr flow sees only the client's side, so the states say what the client's
//! segments prove, no more. Sequence numbers are compared by serial arithmetic (RFC 9293
//! section 3.4: modulo 2^32).

use crate::{abi::Flow, headers::TcpHeader};

/// TCP state of a flow as far as the client's segments tell it.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowState {
    /// A SYN was forwarded, nothing since.
    Syn = 1,
    /// The client acknowledged something.
    Established = 2,
    /// The client sent FIN.
    Fin = 3,
    /// Either side reset the connection.
    Closed = 4,
    /// UDP: packets were forwarded.
    Udp = 5,
}

impl FlowState {
    /// The state with number `value`; unknown numbers count as closed.
    #[inline(always)]
    pub const fn from_raw(value: u8) -> Self {
        match value {
            1 => Self::Syn,
            2 => Self::Established,
            3 => Self::Fin,
            5 => Self::Udp,
            _ => Self::Closed,
        }
    }
}

/// Silence after which an established flow counts as over: 2 hours 4 minutes (RFC 5382 section 5,
/// REQ-5), a little more than the keepalive time of most stacks.
pub const IDLE_SECONDS: u32 = 7_440;
/// Silence after which a flow counts as over that has ended, or that never was acknowledged: the
/// TIME-WAIT of Linux.
pub const ENDED_SECONDS: u32 = 60;

/// Silence after which a UDP flow counts as over where its service's own time is not known (RFC
/// 4787 section 4.3, REQ-5).
pub const UDP_SECONDS: u32 = 300;

/// The parts of a TCP segment that conntrack looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// SEG.SEQ.
    pub seq: u32,
    /// SEG.ACK; meaningless without the ACK flag.
    pub ack: u32,
    /// Payload length in bytes.
    pub len: u32,
    /// Control bits as in [`TcpHeader::flags`].
    pub flags: u8,
}

impl Segment {
    /// Whether the control bits `mask` are all set.
    #[inline(always)]
    pub const fn has(&self, mask: u8) -> bool {
        self.flags & mask == mask
    }

    /// A connection request: SYN without ACK (and without RST, see [`Segment::flags_valid`]).
    #[inline(always)]
    pub const fn is_syn(&self) -> bool {
        self.flags & (TcpHeader::SYN | TcpHeader::ACK) == TcpHeader::SYN
    }

    /// Whether a real stack sends this combination: not empty, no SYN with FIN or RST, and FIN
    /// only with ACK.
    #[inline(always)]
    pub const fn flags_valid(&self) -> bool {
        let syn = self.has(TcpHeader::SYN);
        let fin = self.has(TcpHeader::FIN);
        let rst = self.has(TcpHeader::RST);
        let ack = self.has(TcpHeader::ACK);
        (syn || ack || rst) && !(syn && (fin || rst)) && (!fin || (ack && !rst))
    }

    /// The sequence number after this segment: SEG.SEQ + LEN, SYN and FIN counting one each.
    #[inline(always)]
    pub const fn next_seq(&self) -> u32 {
        let control = self.has(TcpHeader::SYN) as u32 + self.has(TcpHeader::FIN) as u32;
        self.seq.wrapping_add(self.len).wrapping_add(control)
    }
}

/// `a` is after `b` in serial arithmetic.
#[inline(always)]
#[must_use]
pub const fn after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

impl Flow {
    /// Account a segment from the client at `now` (seconds of the coarse clock).
    ///
    /// `cl_ack` and `cl_next` only move forward. A RST closes the entry only when its sequence
    /// number is the one expected (RFC 5961 section 3.2): a blind one changes nothing here.
    #[inline(always)]
    pub fn observe(&mut self, segment: Segment, now: u32) {
        if self.last_seen != now {
            self.last_seen = now;
        }
        if segment.is_syn() {
            // Of a new connection, or a repeated one: its numbers are learnt from the next ACK.
            self.flags &= !Self::ACK_KNOWN;
            return;
        }
        if segment.has(TcpHeader::RST) {
            if self.flags & Self::ACK_KNOWN == 0 || segment.seq == self.cl_next {
                self.state = FlowState::Closed as u8;
            }
            return;
        }
        if !segment.has(TcpHeader::ACK) {
            return;
        }
        let next = segment.next_seq();
        if self.flags & Self::ACK_KNOWN == 0 {
            self.cl_ack = segment.ack;
            self.cl_next = next;
            self.flags |= Self::ACK_KNOWN;
        } else {
            if after(segment.ack, self.cl_ack) {
                self.cl_ack = segment.ack;
            }
            if after(next, self.cl_next) {
                self.cl_next = next;
            }
        }
        if segment.has(TcpHeader::FIN) {
            self.state = FlowState::Fin as u8;
        } else if self.state == FlowState::Syn as u8 {
            self.state = FlowState::Established as u8;
        }
    }

    /// Account a UDP packet from the client at `now` (seconds of the coarse clock).
    #[inline(always)]
    pub const fn observe_udp(&mut self, now: u32) {
        if self.last_seen != now {
            self.last_seen = now;
        }
    }

    /// Seconds since the last packet at `now`. (Another CPU's clock may be a tick ahead.)
    #[inline(always)]
    pub const fn idle(&self, now: u32) -> u32 {
        now.saturating_sub(self.last_seen)
    }

    /// The backend reset the connection (nat).
    #[inline(always)]
    pub const fn close(&mut self) {
        self.state = FlowState::Closed as u8;
    }

    /// Record that the backend has answered (nat).
    #[inline(always)]
    pub const fn set_answered(&mut self) {
        self.flags |= Self::ANSWERED;
    }

    /// Record that the SYN was repeated; whether the backend had left the first repetition
    /// unanswered as well.
    #[inline(always)]
    pub const fn repeat(&mut self) -> bool {
        let unanswered = self.flags & (Self::REPEATED | Self::ANSWERED) == Self::REPEATED;
        self.flags |= Self::REPEATED;
        unanswered
    }

    /// Whether nothing more is to be expected of the flow at `now` (seconds of the coarse clock).
    #[inline(always)]
    pub const fn is_over(&self, now: u32) -> bool {
        let limit = match self.state() {
            FlowState::Established => IDLE_SECONDS,
            FlowState::Udp => UDP_SECONDS,
            FlowState::Syn | FlowState::Fin | FlowState::Closed => ENDED_SECONDS,
        };
        self.idle(now) >= limit
    }

    /// Whether the client has an open connection, or is about to.
    pub const fn is_open(&self, now: u32) -> bool {
        matches!(
            self.state(),
            FlowState::Syn | FlowState::Established | FlowState::Udp
        ) && !self.is_over(now)
    }

    /// Whether a SYN on this entry starts a new connection (the old one has ended) instead of
    /// repeating the request that made the entry.
    #[inline(always)]
    pub const fn syn_starts_over(&self) -> bool {
        matches!(self.state(), FlowState::Fin | FlowState::Closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYN: u8 = TcpHeader::SYN;
    const ACK: u8 = TcpHeader::ACK;
    const FIN: u8 = TcpHeader::FIN;
    const RST: u8 = TcpHeader::RST;

    fn segment(flags: u8, seq: u32, ack: u32, len: u32) -> Segment {
        Segment {
            seq,
            ack,
            len,
            flags,
        }
    }

    fn established() -> Flow {
        let mut flow = Flow::new(1, 0, 0, FlowState::Syn, 10);
        flow.observe(segment(ACK, 101, 501, 0), 10);
        flow
    }

    /// The handshake's ACK establishes the flow and makes `cl_ack` and `cl_next` known.
    #[test]
    fn first_ack_establishes() {
        let flow = established();
        assert_eq!(flow.state(), FlowState::Established);
        assert_eq!((flow.cl_ack(), flow.cl_next()), (Some(501), Some(101)));
    }

    /// Old and reordered segments never move the numbers back, also across the wrap at 2^32.
    #[test]
    fn numbers_only_move_forward_across_the_wrap() {
        let mut flow = Flow::new(1, 0, 0, FlowState::Syn, 10);
        flow.observe(segment(ACK, u32::MAX - 9, u32::MAX, 20), 10);
        assert_eq!(flow.cl_next(), Some(10));
        flow.observe(segment(ACK, u32::MAX - 9, 5, 0), 11);
        assert_eq!((flow.cl_ack(), flow.cl_next()), (Some(5), Some(10)));
        flow.observe(segment(ACK, 10, u32::MAX - 1, 7), 11);
        assert_eq!((flow.cl_ack(), flow.cl_next()), (Some(5), Some(17)));
        assert_eq!(flow.last_seen(), 11);
    }

    /// FIN counts one in `cl_next` and half-closes; a new SYN may then reuse the entry.
    #[test]
    fn fin_half_closes() {
        let mut flow = established();
        assert!(!flow.syn_starts_over());
        flow.observe(segment(FIN | ACK, 101, 600, 5), 12);
        assert_eq!((flow.state(), flow.cl_next()), (FlowState::Fin, Some(107)));
        assert!(flow.syn_starts_over());
    }

    /// A RST closes only with the expected sequence number.
    #[test]
    fn blind_reset_changes_nothing() {
        let mut flow = established();
        flow.observe(segment(RST, 9_999, 0, 0), 12);
        assert_eq!(flow.state(), FlowState::Established);
        flow.observe(segment(RST, 101, 0, 0), 12);
        assert_eq!(flow.state(), FlowState::Closed);
    }

    /// Established flows may be silent for two hours and four minutes, all others for a minute.
    #[test]
    fn silence_ends_a_flow() {
        let mut flow = Flow::new(1, 0, 0, FlowState::Syn, 10);
        assert!(flow.is_open(69) && !flow.is_over(69) && flow.is_over(70));
        flow.observe(segment(ACK, 101, 501, 0), 10);
        assert!(flow.is_open(7_449) && !flow.is_open(7_450));
        flow.observe(segment(FIN | ACK, 101, 501, 0), 20);
        assert!(!flow.is_open(20) && !flow.is_over(79) && flow.is_over(80));
        assert!(!flow.is_over(19), "another CPU's clock");
    }

    /// The flag combinations that are refused, exhaustively over the low five bits.
    #[test]
    fn flag_combinations() {
        for flags in 0..32u8 {
            let valid = segment(flags, 0, 0, 0).flags_valid();
            let expected = match flags & (SYN | ACK | FIN | RST) {
                0 => false,
                f if f & SYN != 0 => f & (FIN | RST) == 0,
                f if f & FIN != 0 => f & ACK != 0 && f & RST == 0,
                _ => true,
            };
            assert_eq!(valid, expected, "{flags:#07b}");
        }
    }
}

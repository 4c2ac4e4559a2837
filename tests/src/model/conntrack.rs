//! What a client's segments do to its flow: the rules of RFC 9293 as far as one direction shows
//! them, with design limits of the data plane (`lb_common::conntrack` has the program's version).

use lb_common::conntrack::FlowState;

use super::{
    tables::Flow,
    wire::{ACK, FIN, RST, Tcp},
};

/// Seconds of silence that end an established flow: 2 hours 4 minutes.
const ESTABLISHED_SECONDS: u32 = 2 * 3600 + 4 * 60;
/// Seconds of silence that end any other.
const OTHER_SECONDS: u32 = 60;

/// `a` comes after `b` in the sequence space.
fn later(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) < 1 << 31
}

/// Seconds of silence that end a UDP flow whose service does not say.
const UDP_SECONDS: u32 = 300;

impl Flow {
    /// The flow that a segment begins or, of a former owner's, continues.
    pub(super) fn of_tcp(backend: u32, epoch: u16, tcp: &Tcp, now: u32) -> Self {
        let state = if tcp.is_syn() {
            FlowState::Syn
        } else {
            FlowState::Established
        };
        let mut flow = Self::new(backend, epoch, state, now);
        flow.observe(tcp, now);
        flow
    }

    /// The flow that a UDP packet begins.
    pub(super) fn of_udp(backend: u32, epoch: u16, now: u32) -> Self {
        Self::new(backend, epoch, FlowState::Udp, now)
    }

    /// An established one of a former owner's.
    pub(super) fn held(backend: u32, epoch: u16, now: u32) -> Self {
        Self::new(backend, epoch, FlowState::Established, now)
    }

    fn new(backend: u32, epoch: u16, state: FlowState, now: u32) -> Self {
        Self {
            backend,
            last_seen: now,
            acked: None,
            nat_port: 0,
            path: 0,
            state,
            epoch,
            answered: false,
            repeated: false,
        }
    }

    /// The client sent this segment.
    pub(super) fn observe(&mut self, tcp: &Tcp, now: u32) {
        self.last_seen = now;
        if tcp.is_syn() {
            // A new connection, or one more attempt: what was known is of no use.
            self.acked = None;
            return;
        }
        if tcp.has(RST) {
            // A blind one closes nothing (RFC 5961): it must have the number that comes next.
            if self.acked.is_none_or(|(_, next)| next == tcp.seq) {
                self.state = FlowState::Closed;
            }
            return;
        }
        if !tcp.has(ACK) {
            return;
        }
        let (mut ack, mut next) = self.acked.unwrap_or((tcp.ack, tcp.next_seq()));
        if later(tcp.ack, ack) {
            ack = tcp.ack;
        }
        if later(tcp.next_seq(), next) {
            next = tcp.next_seq();
        }
        self.acked = Some((ack, next));
        if tcp.has(FIN) {
            self.state = FlowState::Fin;
        } else if self.state == FlowState::Syn {
            self.state = FlowState::Established;
        }
    }

    /// A SYN begins a new connection: the old one has ended.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, FlowState::Fin | FlowState::Closed)
    }

    /// Seconds of silence.
    pub(super) fn idle(&self, now: u32) -> u32 {
        now.saturating_sub(self.last_seen)
    }

    /// Nothing more is to be expected: its port may be given away.
    pub(super) fn is_over(&self, now: u32) -> bool {
        let limit = match self.state {
            FlowState::Established => ESTABLISHED_SECONDS,
            FlowState::Udp => UDP_SECONDS,
            _ => OTHER_SECONDS,
        };
        self.idle(now) >= limit
    }
}

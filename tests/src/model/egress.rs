//! What leaves this node: replies of its own backend, and the outgoing half of the fence.

use lb_common::reason::Reason;

use super::{
    Model, Outcome,
    pipeline::{ARP, IP4, IP6, arp, neighbour},
    rewrite::Rewrite,
    wire::{self, Ip, Link, TCP, UDP, Version, endpoint},
};

impl Model {
    /// What becomes of a frame that leaves.
    pub(super) fn judge_egress(&self, frame: &[u8]) -> Outcome {
        let other = Outcome::untouched(Reason::EgressOther, frame);
        let Some(link) = Link::parse(frame) else {
            return other;
        };
        match link.ethertype {
            ARP if arp(frame, link.l3).is_some_and(|arp| self.tables.fenced(arp.sender)) => {
                Outcome::untouched(Reason::FencedArp, frame)
            }
            IP6 if self.claims_fenced(frame, link.l3) => {
                Outcome::untouched(Reason::FencedNd, frame)
            }
            IP4 => self.reply(frame, link.l3, Version::Four).unwrap_or(other),
            IP6 => self.reply(frame, link.l3, Version::Six).unwrap_or(other),
            _ => other,
        }
    }

    /// Neighbour discovery that names a fenced VIP as its sender, or probes for one.
    fn claims_fenced(&self, frame: &[u8], l3: usize) -> bool {
        neighbour(frame, l3).is_some_and(|message| match message.kind {
            136 => self.tables.fenced(message.target),
            135 => {
                self.tables.fenced(message.src)
                    || (message.src.is_unspecified() && self.tables.fenced(message.target))
            }
            _ => false,
        })
    }

    /// A reply of the local backend leaves from the service's port.
    fn reply(&self, frame: &[u8], l3: usize, version: Version) -> Option<Outcome> {
        let ip = Ip::parse(frame, l3, version).ok()?;
        if ip.fragment {
            return None;
        }
        if ip.proto == version.icmp() {
            return self.outgoing_error(frame, &ip, version);
        }
        if !matches!(ip.proto, TCP | UDP) {
            return None;
        }
        let src = wire::address(frame, l3 + version.addresses(), version)?;
        let sport = wire::word(frame, ip.l4)?;
        let key = (endpoint(src, sport), ip.proto);
        let port = *self.tables.reply_ports.get(&key)?;
        if port == sport {
            return None;
        }
        let checksum = ip.l4 + if ip.proto == UDP { 6 } else { 16 };
        if frame.len() < checksum + 2 {
            return Some(Outcome::untouched(Reason::Truncated, frame));
        }
        let mut leaves = Rewrite::of(frame);
        leaves.sport(&ip, port);
        Some(Outcome {
            leaves,
            ..Outcome::untouched(Reason::ReplyTranslated, frame)
        })
    }
}

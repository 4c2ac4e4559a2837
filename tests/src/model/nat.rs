//! nat: both directions of flows to backends that run no xvip.

use std::net::SocketAddr;

use lb_common::{abi::path_tag, reason::Reason};

use super::{
    Model, Outcome,
    pipeline::{GOLDEN, Packet, Way, flow_hash},
    tables::{Backend, Flow, Return, Tuple},
    wire::endpoint,
};
use crate::packet::{ROUTER_MAC, UPLINK};

/// Source ports that are tried for a new flow.
const TRIES: u32 = 12;
/// Ports below are never taken.
const FIRST_PORT: u16 = 1024;

/// The source ports for a client, in the order in which they are tried: its own, then by its hash.
pub(in crate::model) fn candidates(client: SocketAddr) -> impl Iterator<Item = u16> {
    let hash = flow_hash(client);
    (0..TRIES).map(move |attempt| {
        if attempt == 0 && client.port() >= FIRST_PORT {
            return client.port();
        }
        let spread = hash.wrapping_add(attempt.wrapping_mul(GOLDEN)) >> 8;
        FIRST_PORT + (spread % (65_536 - u32::from(FIRST_PORT))) as u16
    })
}

/// A return entry, as a reply finds it.
pub(super) struct Found {
    /// The client's flow.
    pub(super) flow: Tuple,
    /// The backend.
    pub(super) backend: u32,
    /// It is a half-open flow's.
    pub(super) half: bool,
}

impl Return {
    /// That of a flow which comes from the router.
    pub(super) fn held(flow: &Tuple, backend: u32) -> Self {
        Self {
            client: flow.src,
            vip_port: flow.dst.port(),
            backend,
            ifindex: UPLINK,
            tags: 0,
            mac: ROUTER_MAC,
        }
    }

    /// Whether it is `flow`'s.
    fn is_of(&self, flow: &Tuple) -> bool {
        self.client == flow.src && self.vip_port == flow.dst.port()
    }

    /// The client's flow, which has the VIP of `flow`.
    fn holder(&self, flow: &Tuple) -> Tuple {
        Tuple {
            src: self.client,
            dst: endpoint(flow.dst.ip(), self.vip_port),
            proto: flow.proto,
        }
    }

    /// The flow comes in this way now.
    fn comes_by(&mut self, packet: &Packet<'_>) {
        (self.ifindex, self.tags, self.mac) = (packet.ifindex, packet.tags, packet.link.src);
    }
}

/// The tag of the way that a packet came.
fn path_of(packet: &Packet<'_>) -> u16 {
    path_tag(packet.ifindex, packet.tags, packet.link.src)
}

/// The key of a nat flow's replies.
fn back(flow: &Tuple, backend: &Backend, nat_port: u16) -> Tuple {
    Tuple {
        src: backend.addr,
        dst: endpoint(flow.dst.ip(), nat_port),
        proto: flow.proto,
    }
}

/// The return entry of a flow that comes by this packet's way.
fn entry(packet: &Packet<'_>, backend: u32) -> Return {
    let flow = packet.flow();
    Return {
        client: flow.src,
        vip_port: flow.dst.port(),
        backend,
        ifindex: packet.ifindex,
        tags: packet.tags,
        mac: packet.link.src,
    }
}

impl Model {
    /// A source port for a new flow, its return entry written; and the tag of its path.
    pub(super) fn allocate(
        &mut self,
        packet: &Packet<'_>,
        id: u32,
        backend: &Backend,
        now: u32,
    ) -> Option<(u16, u16)> {
        let flow = packet.flow();
        for port in candidates(flow.src) {
            let own = (endpoint(flow.dst.ip(), port), flow.proto);
            if self.tables.services.contains_key(&own) {
                continue;
            }
            if self.claim(packet, back(&flow, backend, port), entry(packet, id), now) {
                return Some((port, path_of(packet)));
            }
        }
        None
    }

    /// Take a return entry: one that is the flow's own, free, or of a flow that is over.
    fn claim(&mut self, packet: &Packet<'_>, back: Tuple, entry: Return, now: u32) -> bool {
        let flow = packet.flow();
        self.touch(back);
        if let Some(found) = self.state.returns.get_mut(&back) {
            if found.is_of(&flow) {
                found.comes_by(packet);
                return true;
            }
            let holder = found.holder(&flow);
            if self.needs(holder, back.dst.port(), now) {
                return false;
            }
            self.state.returns.remove(&back);
        }
        if let Some(found) = self.state.half_returns.get_mut(&back) {
            if found.is_of(&flow) {
                found.comes_by(packet);
                return true;
            }
            let holder = found.holder(&flow);
            if self.needs(holder, back.dst.port(), now) {
                return false;
            }
        }
        self.state.half_returns.insert(back, entry);
        true
    }

    /// Whether a flow still needs its port. One that is over is removed.
    fn needs(&mut self, holder: Tuple, port: u16, now: u32) -> bool {
        self.touch(holder);
        for map in [&mut self.state.half_flows, &mut self.state.flows] {
            if let Some(held) = map.get(&holder).filter(|held| held.nat_port == port) {
                if !held.is_over(now) {
                    return true;
                }
                map.remove(&holder);
            }
        }
        false
    }

    /// A half-open flow's return entry becomes an established one; the tag of its path. `None` if it
    /// was evicted, and its port given away.
    pub(super) fn promote(
        &mut self,
        packet: &Packet<'_>,
        backend: &Backend,
        flow: &Flow,
    ) -> Option<u16> {
        let key = packet.flow();
        let back = back(&key, backend, flow.nat_port);
        self.touch(back);
        let half = self.state.half_returns.get_mut(&back);
        if half.as_ref().is_some_and(|found| !found.is_of(&key)) {
            return None;
        }
        let was_half = half.map(|found| found.comes_by(packet)).is_some();
        match self.state.returns.get_mut(&back) {
            Some(found) if found.is_of(&key) => found.comes_by(packet),
            None if was_half => {
                let new = entry(packet, flow.backend);
                self.state.returns.insert(back, new);
            }
            Some(_) | None => return None,
        }
        self.state.half_returns.remove(&back);
        Some(path_of(packet))
    }

    /// A flow that now comes in another way takes its replies with it.
    pub(super) fn follow(&mut self, packet: &Packet<'_>, backend: &Backend, flow: &Flow) {
        let path = path_of(packet);
        if path == flow.path {
            return;
        }
        let key = packet.flow();
        let back = back(&key, backend, flow.nat_port);
        self.touch(back);
        if let Some(entry) = self.state.returns.get_mut(&back) {
            entry.comes_by(packet);
        }
        if let Some(entry) = self.state.flows.get_mut(&key) {
            entry.path = path;
        }
    }

    /// Client to backend.
    pub(super) fn nat_forward(
        &self,
        packet: &Packet<'_>,
        backend: &Backend,
        nat_port: u16,
    ) -> Result<Way, Reason> {
        if backend.ifindex == 0 {
            return Err(Reason::Unresolved);
        }
        let mut leaves = packet.rewrite();
        let vip = endpoint(packet.dst, nat_port);
        leaves.endpoints(&packet.ip, vip, backend.addr);
        let hop = (backend.ifindex, backend.tags);
        self.send(packet, leaves, hop, backend.mac)
    }

    /// Backend to client, if the packet is a reply.
    pub(super) fn nat_reply(&mut self, packet: &Packet<'_>, now: u32) -> Option<Outcome> {
        let back = packet.flow();
        self.touch(back);
        let established = self.state.returns.get(&back);
        let half = established.is_none();
        let entry = established.or(self.state.half_returns.get(&back))?.clone();
        let vip = endpoint(packet.dst, entry.vip_port);
        let service = self.tables.services.get(&(vip, back.proto));
        let service = service.map_or(0, |service| service.id);
        if let Some(tcp) = packet.tcp() {
            let found = Found {
                flow: entry.holder(&back),
                backend: entry.backend,
                half,
            };
            self.learn(tcp, service, &found, now);
        }
        let mut leaves = packet.rewrite();
        leaves.endpoints(&packet.ip, vip, entry.client);
        let hop = (entry.ifindex, entry.tags);
        let outcome = match self.send(packet, leaves, hop, entry.mac) {
            Ok(way) => way.outcome(packet, Reason::NatReply, Reason::NatReplyRedirect),
            Err(reason) => Outcome::untouched(reason, packet.frame),
        };
        Some(Outcome { service, ..outcome })
    }
}

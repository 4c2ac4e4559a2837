//! nat: both directions of flows to backends that run no xvip.

use std::net::SocketAddr;

use lb_common::{
    abi::{Mac, path_tag},
    hash,
    reason::Reason,
};

use super::{
    Model, Outcome,
    pipeline::{Packet, Way},
    rewrite::Rewrite,
    tables::{Backend, Flow, Return, Tuple},
    wire::endpoint,
};

/// Source ports that are tried for a new flow.
const TRIES: u32 = 12;
/// Ports below are never taken.
const FIRST_PORT: u16 = 1024;

/// The source ports for a client, in the order in which they are tried: its own, then by its hash.
fn candidates(client: SocketAddr) -> impl Iterator<Item = u16> {
    let hash = super::pipeline::flow_hash(client);
    (0..TRIES).map(move |attempt| {
        if attempt == 0 && client.port() >= FIRST_PORT {
            return client.port();
        }
        let spread = hash.wrapping_add(attempt.wrapping_mul(super::pipeline::GOLDEN)) >> 8;
        FIRST_PORT + (spread % (65_536 - u32::from(FIRST_PORT))) as u16
    })
}

// The hash itself is the agreement between nodes.
const _: fn(u32) -> u32 = hash::slot;

impl Model {
    /// The key of a nat flow's replies.
    fn back(flow: Tuple, backend: &Backend, nat_port: u16) -> Tuple {
        Tuple {
            src: backend.addr,
            dst: endpoint(flow.dst.ip(), nat_port),
            proto: flow.proto,
        }
    }

    /// Find a source port for a new flow and remember the flow.
    pub(super) fn allocate(
        &mut self,
        packet: &Packet<'_>,
        id: u32,
        backend: &Backend,
        now: u32,
    ) -> Result<u16, Reason> {
        let flow = packet.flow();
        let entry = Return {
            client: flow.src,
            vip_port: flow.dst.port(),
            backend: id,
            ifindex: packet.ifindex,
            tags: 0,
            mac: packet.link.src,
        };
        for port in candidates(flow.src) {
            let own = (endpoint(flow.dst.ip(), port), flow.proto);
            if self.tables.services.contains_key(&own) {
                continue;
            }
            let back = Self::back(flow, backend, port);
            if !self.claim(back, entry.clone(), flow, now) {
                continue;
            }
            let path = path_tag(packet.ifindex, 0, packet.link.src);
            let new = Flow::begin(id, port, path, 0, &packet.tcp, now);
            self.touch(flow);
            self.state.flows.insert(flow, new);
            return Ok(port);
        }
        Err(Reason::NatPortsExhausted)
    }

    /// Take a return entry: one that is free, the flow's own, or of a flow that is over.
    fn claim(&mut self, back: Tuple, entry: Return, flow: Tuple, now: u32) -> bool {
        self.touch(back);
        if let Some(found) = self.state.returns.get_mut(&back) {
            if found.client == flow.src && found.vip_port == flow.dst.port() {
                (found.ifindex, found.tags, found.mac) = (entry.ifindex, entry.tags, entry.mac);
                return true;
            }
            let holder = Tuple {
                src: found.client,
                dst: endpoint(flow.dst.ip(), found.vip_port),
                proto: flow.proto,
            };
            self.touch(holder);
            let held = self.state.flows.get(&holder);
            if let Some(held) = held.filter(|held| held.nat_port == back.dst.port()) {
                if !held.is_over(now) {
                    return false;
                }
                self.state.flows.remove(&holder);
            }
        }
        self.state.returns.insert(back, entry);
        true
    }

    /// A flow that now comes in another way takes its replies with it.
    pub(super) fn follow(&mut self, packet: &Packet<'_>, backend: &Backend, flow: &Flow) {
        let tag = path_tag(packet.ifindex, 0, packet.link.src);
        if tag == flow.path {
            return;
        }
        let back = Self::back(packet.flow(), backend, flow.nat_port);
        self.touch(back);
        if let Some(entry) = self.state.returns.get_mut(&back) {
            (entry.ifindex, entry.tags, entry.mac) = (packet.ifindex, 0, packet.link.src);
        }
        if let Some(entry) = self.state.flows.get_mut(&packet.flow()) {
            entry.path = tag;
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
        let mut leaves = Rewrite::of(packet.frame);
        let vip = endpoint(packet.dst, nat_port);
        leaves.endpoints(&packet.ip, vip, backend.addr);
        self.send(packet, leaves, (backend.ifindex, backend.mac))
    }

    /// Backend to client, if the packet is a reply.
    pub(super) fn nat_reply(&self, packet: &Packet<'_>) -> Option<Result<Outcome, Reason>> {
        let back = packet.flow();
        self.touch(back);
        let Some(entry) = self.state.returns.get(&back) else {
            let known = self.tables.nat_sources.contains(&(back.src, back.proto));
            return known.then_some(Err(Reason::NatUnknownReply));
        };
        let mut leaves = Rewrite::of(packet.frame);
        let vip = endpoint(packet.dst, entry.vip_port);
        leaves.endpoints(&packet.ip, vip, entry.client);
        let hop: (u32, Mac) = (entry.ifindex, entry.mac);
        let way = self.send(packet, leaves, hop);
        Some(way.map(|way| way.outcome(packet, Reason::NatReply, Reason::NatReplyRedirect)))
    }
}

//! ICMP errors about flows (RFC 792, RFC 4443): to whoever sent the quoted packet, translated outside
//! and inside as that one was (RFC 5508 section 4.2).

use std::net::SocketAddr;

use lb_common::{abi::Method, reason::Reason};

use super::{
    Model, Outcome, Socket,
    pipeline::{Packet, Way},
    tables::{Backend, Service, Tuple},
    wire::{self, Ip, Quoted, TCP, Version, endpoint},
};

impl Model {
    /// An ICMP message to a VIP.
    pub(super) fn icmp(&mut self, packet: &mut Packet<'_>) -> Result<Outcome, Reason> {
        let (version, ip) = (packet.version(), packet.ip);
        let kind = packet.frame.get(ip.l4).ok_or(Reason::IcmpOther)?;
        if version == Version::Six && (133..=137).contains(kind) {
            return Err(Reason::Neighbour);
        }
        let quoted = Quoted::parse(packet.frame, &ip, version).ok_or(Reason::IcmpOther)?;
        if quoted.src.ip() != packet.dst || packet.src == packet.dst {
            return Err(Reason::IcmpOther);
        }
        if !wire::is_client_address(packet.src) {
            return Err(Reason::BadSource);
        }
        // The flow that the quoted packet answers.
        let flow = Tuple {
            src: quoted.dst,
            dst: quoted.src,
            proto: quoted.proto,
        };
        match self.tables.services.get(&(flow.dst, flow.proto)).cloned() {
            Some(service) => {
                let outcome = self.about_reply(packet, &quoted, &flow, &service)?;
                Ok(Outcome {
                    service: service.id,
                    ..outcome
                })
            }
            None => self.about_request(packet, &quoted, &flow),
        }
    }

    /// A packet from the VIP to a client did not get there: its backend is told.
    fn about_reply(
        &self,
        packet: &mut Packet<'_>,
        quoted: &Quoted,
        flow: &Tuple,
        service: &Service,
    ) -> Result<Outcome, Reason> {
        let forwarder = self.forwarder(packet);
        let held = flow.proto == TCP && self.socket(flow, service) == Socket::Connection;
        if service.local_backend != 0 && (forwarder.is_some() || held) {
            return Ok(error_to_local(packet, quoted, service));
        }
        let entry = self.state.flows.get(flow);
        let entry = entry.or_else(|| self.state.half_flows.get(flow));
        let (id, nat_port) = entry.map_or_else(
            || (self.chosen(flow.src, service), 0),
            |entry| (entry.backend, entry.nat_port),
        );
        let backend = self.backend(id, service).ok_or(Reason::IcmpOther)?;
        match backend.method() {
            Some(Method::Local) => Ok(error_to_local(packet, quoted, service)),
            Some(Method::Dsr) => {
                if let Some(peer) = forwarder {
                    if backend.node == peer {
                        return Err(Reason::IcmpOther);
                    }
                    packet.take_hop()?;
                }
                let way = self.dsr(packet, &backend)?;
                Ok(way.outcome(packet, Reason::IcmpDsr, Reason::IcmpDsrRedirect))
            }
            Some(Method::Nat) if nat_port != 0 => {
                let way = self.error_to_nat(packet, quoted, &backend, nat_port)?;
                Ok(way.outcome(packet, Reason::IcmpNat, Reason::IcmpNatRedirect))
            }
            Some(Method::Nat) | None => Err(Reason::IcmpOther),
        }
    }

    /// A packet from VIP:nat port to a backend did not get there: the client is told.
    fn about_request(
        &self,
        packet: &Packet<'_>,
        quoted: &Quoted,
        back: &Tuple,
    ) -> Result<Outcome, Reason> {
        let entry = self.state.returns.get(back);
        let entry = entry.or_else(|| self.state.half_returns.get(back));
        let entry = entry.ok_or(Reason::IcmpOther)?;
        let vip = endpoint(packet.dst, entry.vip_port);
        let mut leaves = packet.rewrite();
        let outside = (packet.dst, entry.client.ip());
        leaves.error(&packet.ip, quoted, (entry.client, vip), Some(outside));
        let hop = (entry.ifindex, entry.tags);
        let way = self.send(packet, leaves, hop, entry.mac)?;
        let service = self.tables.services.get(&(vip, back.proto));
        Ok(Outcome {
            service: service.map_or(0, |service| service.id),
            ..way.outcome(packet, Reason::IcmpNatReply, Reason::IcmpNatReplyRedirect)
        })
    }

    /// The backend sent the quoted packet to VIP:nat port.
    fn error_to_nat(
        &self,
        packet: &Packet<'_>,
        quoted: &Quoted,
        backend: &Backend,
        nat_port: u16,
    ) -> Result<Way, Reason> {
        if backend.ifindex == 0 {
            return Err(Reason::Unresolved);
        }
        let vip = endpoint(packet.dst, nat_port);
        let mut leaves = packet.rewrite();
        let outside = (packet.dst, backend.addr.ip());
        leaves.error(&packet.ip, quoted, (backend.addr, vip), Some(outside));
        let hop = (backend.ifindex, backend.tags);
        self.send(packet, leaves, hop, backend.mac)
    }

    /// An error of this node's kernel about a packet to its own backend, if the frame is one: the
    /// client sent that to the service's port.
    pub(super) fn outgoing_error(
        &self,
        frame: &[u8],
        ip: &Ip,
        version: Version,
    ) -> Option<Outcome> {
        let quoted = Quoted::parse(frame, ip, version)?;
        let port = *self.tables.reply_ports.get(&(quoted.dst, quoted.proto))?;
        if port == quoted.dst.port() {
            return None;
        }
        let mut outcome = Outcome::untouched(Reason::ReplyTranslated, frame);
        let dst = SocketAddr::new(quoted.dst.ip(), port);
        let leaves = &mut outcome.leaves;
        leaves.error(ip, &quoted, (quoted.src, dst), None);
        Some(outcome)
    }
}

/// This node's backend sent the quoted packet from its own port.
fn error_to_local(packet: &Packet<'_>, quoted: &Quoted, service: &Service) -> Outcome {
    let mut outcome = Outcome::untouched(Reason::IcmpLocal, packet.frame);
    if service.local_port != quoted.src.port() {
        let src = SocketAddr::new(quoted.src.ip(), service.local_port);
        let leaves = &mut outcome.leaves;
        leaves.error(&packet.ip, quoted, (src, quoted.dst), None);
    }
    outcome
}

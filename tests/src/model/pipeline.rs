//! The ingress pipeline, stage by stage as docs/ARCHITECTURE.md has it.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    abi::{BackendState, Mac, Method},
    hash,
    reason::Reason,
};

use super::{
    Model, Outcome,
    rewrite::Rewrite,
    tables::{Backend, Flow, Service, Tuple},
    wire::{self, BadIp, BadTcp, ICMP6, Ip, Link, RST, TCP, Tcp, Version, endpoint},
};

/// Ethernet types.
pub(super) const IP4: u16 = 0x0800;
/// ARP.
pub(super) const ARP: u16 = 0x0806;
/// IPv6.
pub(super) const IP6: u16 = 0x86dd;

/// 2^32 divided by the golden ratio: how far apart tries are in hash space.
pub(super) const GOLDEN: u32 = 0x9e37_79b9;
/// Slots that are looked at for a backend that is not on an excluded node.
const SELECT_TRIES: u32 = 16;

/// The hash that every node has the same of.
pub(super) fn flow_hash(client: SocketAddr) -> u32 {
    match client.ip() {
        IpAddr::V4(four) => hash::flow_hash(&four.octets(), client.port()),
        IpAddr::V6(six) => hash::flow_hash(&six.octets(), client.port()),
    }
}

/// An ARP packet for IPv4 over Ethernet.
pub(super) struct Arp {
    /// It asks.
    pub(super) request: bool,
    /// Who sends it.
    pub(super) sender: IpAddr,
    /// Whom it asks for.
    pub(super) target: IpAddr,
}

/// The ARP packet at `l3`.
pub(super) fn arp(frame: &[u8], l3: usize) -> Option<Arp> {
    let packet = wire::bytes(frame, l3, 28)?;
    (packet[..6] == [0, 1, 8, 0, 6, 4]).then_some(Arp {
        request: wire::word(packet, 6)? == 1,
        sender: wire::address(packet, 14, Version::Four)?,
        target: wire::address(packet, 24, Version::Four)?,
    })
}

/// A neighbour discovery message.
pub(super) struct Neighbour {
    /// `ICMPv6` type.
    pub(super) kind: u8,
    /// Who sends it.
    pub(super) src: IpAddr,
    /// Whom it is about.
    pub(super) target: IpAddr,
}

/// The ICMPv6 message (without extension headers) at `l3`, as neighbour discovery.
pub(super) fn neighbour(frame: &[u8], l3: usize) -> Option<Neighbour> {
    let packet = wire::bytes(frame, l3, 40 + 24)?;
    (packet[6] == ICMP6).then_some(Neighbour {
        kind: packet[40],
        src: wire::address(packet, 8, Version::Six)?,
        target: wire::address(packet, 48, Version::Six)?,
    })
}

/// A TCP segment to a VIP.
pub(super) struct Packet<'a> {
    /// All of it.
    pub(super) frame: &'a [u8],
    /// Interface that it came in through.
    pub(super) ifindex: u32,
    /// Ethernet.
    pub(super) link: Link,
    /// IP.
    pub(super) ip: Ip,
    /// IP source.
    pub(super) src: IpAddr,
    /// IP destination.
    pub(super) dst: IpAddr,
    /// TCP.
    pub(super) tcp: Tcp,
}

impl Packet<'_> {
    /// Its flow.
    pub(super) fn flow(&self) -> Tuple {
        Tuple {
            src: endpoint(self.src, self.tcp.sport),
            dst: endpoint(self.dst, self.tcp.dport),
            proto: self.ip.proto,
        }
    }
}

/// A packet on its way out.
pub(super) struct Way {
    leaves: Rewrite,
    /// 0: where it came from.
    ifindex: u32,
}

impl Way {
    /// What becomes of the packet: one reason for the same interface, one for another.
    pub(super) fn outcome(self, packet: &Packet<'_>, same: Reason, other: Reason) -> Outcome {
        let reason = if self.ifindex == 0 { same } else { other };
        Outcome {
            leaves: self.leaves,
            ifindex: self.ifindex,
            ..Outcome::untouched(reason, packet.frame)
        }
    }
}

/// What the kernel's socket table says of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Socket {
    None,
    Connection,
}

impl Model {
    /// What becomes of a frame that comes in.
    pub(super) fn judge_ingress(&mut self, frame: &[u8], ifindex: u32, now: u32) -> Outcome {
        self.try_ingress(frame, ifindex, now)
            .unwrap_or_else(|reason| Outcome::untouched(reason, frame))
    }

    fn try_ingress(&mut self, frame: &[u8], ifindex: u32, now: u32) -> Result<Outcome, Reason> {
        let link = Link::parse(frame).ok_or(Reason::Truncated)?;
        let version = match link.ethertype {
            IP4 => Version::Four,
            IP6 => Version::Six,
            ARP => return Err(self.arp_reason(frame, link.l3)),
            _ => return Err(Reason::NotIp),
        };
        if version == Version::Six && self.asks_for_fenced(frame, link.l3) {
            return Err(Reason::FencedNd);
        }
        let packet = self.parse(frame, ifindex, link, version)?;
        let key = (endpoint(packet.dst, packet.tcp.dport), packet.ip.proto);
        match self.tables.services.get(&key).cloned() {
            Some(service) => self.serve(&packet, &service, now),
            None => self.unserved(&packet),
        }
    }

    /// A request for a fenced VIP stays unanswered. An announcement has the form of a request
    /// from the address for itself, and passes.
    fn arp_reason(&self, frame: &[u8], l3: usize) -> Reason {
        match arp(frame, l3) {
            Some(arp)
                if arp.request && arp.sender != arp.target && self.tables.fenced(arp.target) =>
            {
                Reason::FencedArp
            }
            _ => Reason::Neighbour,
        }
    }

    fn asks_for_fenced(&self, frame: &[u8], l3: usize) -> bool {
        neighbour(frame, l3)
            .is_some_and(|message| message.kind == 135 && self.tables.fenced(message.target))
    }

    /// Parse: what is not for a VIP and this uplink is not looked at closely.
    fn parse<'a>(
        &self,
        frame: &'a [u8],
        ifindex: u32,
        link: Link,
        version: Version,
    ) -> Result<Packet<'a>, Reason> {
        let at = link.l3 + version.addresses();
        let src = wire::address(frame, at, version).ok_or(Reason::Truncated)?;
        let dst =
            wire::address(frame, at + version.address_len(), version).ok_or(Reason::Truncated)?;
        if !self.tables.vips.contains_key(&dst) {
            return Err(Reason::NotVip);
        }
        if self.tables.uplinks.get(&(ifindex, 0)) != Some(&link.dst) {
            return Err(Reason::NotOurMac);
        }
        let ip = Ip::parse(frame, link.l3, version).map_err(|bad| match (bad, version) {
            (BadIp::Truncated, _) => Reason::Truncated,
            (BadIp::Header, Version::Four) => Reason::BadIpv4Header,
            (BadIp::Header, Version::Six) => Reason::BadIpv6Header,
            (BadIp::Extensions, _) => Reason::Ipv6Extensions,
        })?;
        match ip.proto {
            TCP => {}
            ICMP6 => return Err(Reason::Neighbour),
            _ => return Err(Reason::NotBalanced),
        }
        if ip.fragment {
            return Err(Reason::Fragment);
        }
        if !wire::is_client_address(src) || src == dst {
            return Err(Reason::BadSource);
        }
        let upper = ip.upper(frame).ok_or(Reason::Truncated)?;
        let tcp = Tcp::parse(upper).map_err(|bad| match bad {
            BadTcp::Truncated => Reason::Truncated,
            BadTcp::Offset => Reason::BadTcpHeader,
            BadTcp::Flags => Reason::BadTcpFlags,
        })?;
        Ok(Packet {
            frame,
            ifindex,
            link,
            ip,
            src,
            dst,
            tcp,
        })
    }

    /// To a VIP but to no service: a nat reply, a request that would get around the service, or
    /// something of the kernel's.
    fn unserved(&self, packet: &Packet<'_>) -> Result<Outcome, Reason> {
        if let Some(reply) = self.nat_reply(packet) {
            return reply;
        }
        let asked = (packet.flow().dst, packet.ip.proto);
        Err(if self.tables.reply_ports.contains_key(&asked) {
            Reason::BackendPort
        } else {
            Reason::NotBalanced
        })
    }

    /// A segment to a service.
    fn serve(
        &mut self,
        packet: &Packet<'_>,
        service: &Service,
        now: u32,
    ) -> Result<Outcome, Reason> {
        let has_local = service.local_backend != 0;
        // A peer's MAC, and not the peer's address: the peer balanced it already.
        let client_node = self.tables.peer_addrs.get(&packet.src).copied();
        let sender = self.tables.peer_macs.get(&packet.link.src).copied();
        let forwarder = sender.filter(|_| sender != client_node);
        if forwarder.is_some() && has_local {
            return Ok(self.deliver(packet, service, Reason::LocalFromPeer));
        }
        let hash = flow_hash(packet.flow().src);
        let syn = packet.tcp.is_syn();
        let chosen_local =
            has_local && self.tables.slot(service.table, hash::slot(hash)) == service.local_backend;
        let connected = !syn && self.socket(packet, service) == Socket::Connection;
        if chosen_local && connected {
            return Ok(self.deliver(packet, service, Reason::Local));
        }
        if let Some(outcome) = self.established(packet, service, forwarder, now) {
            return outcome;
        }
        if has_local && connected {
            return Ok(self.deliver(packet, service, Reason::Local));
        }
        self.new_flow(packet, service, forwarder.or(client_node), now)
    }

    fn socket(&self, packet: &Packet<'_>, service: &Service) -> Socket {
        let mut flow = packet.flow();
        flow.dst.set_port(service.local_port);
        if service.local_backend != 0 && self.sockets.contains(&flow) {
            Socket::Connection
        } else {
            Socket::None
        }
    }

    /// To this node's own backend; the kernel tracks the flow from its SYN on.
    fn deliver(&mut self, packet: &Packet<'_>, service: &Service, reason: Reason) -> Outcome {
        let flow = packet.flow();
        if packet.tcp.is_syn() {
            self.touch(flow);
            self.state.flows.remove(&flow);
        }
        let count = self.count_backend(service.local_backend);
        count.packets += 1;
        count.bytes += packet.frame.len() as u64;
        let mut leaves = Rewrite::of(packet.frame);
        if service.local_port != packet.tcp.dport {
            leaves.dport(&packet.ip, service.local_port);
        }
        Outcome {
            leaves,
            ..Outcome::untouched(reason, packet.frame)
        }
    }

    /// A segment of a flow that has an entry; `None` where it is to be selected anew.
    fn established(
        &mut self,
        packet: &Packet<'_>,
        service: &Service,
        forwarder: Option<u32>,
        now: u32,
    ) -> Option<Result<Outcome, Reason>> {
        let key = packet.flow();
        self.touch(key);
        let flow = self.state.flows.get_mut(&key)?;
        let syn = packet.tcp.is_syn();
        if syn && flow.has_ended() {
            return None;
        }
        flow.observe(&packet.tcp, now);
        let flow = flow.clone();
        let backend = self.backend(flow.backend, service)?;
        if forwarder.is_some_and(|node| node == backend.node) {
            return None;
        }
        // The controller may have changed the method since.
        match backend.method() {
            Some(Method::Dsr) if flow.nat_port == 0 => {}
            Some(Method::Nat) if flow.nat_port != 0 => {}
            _ => return None,
        }
        if backend.state() == BackendState::Down {
            return (!syn).then_some(Err(Reason::BackendDown));
        }
        if flow.nat_port != 0 {
            self.follow(packet, &backend, &flow);
        }
        Some(self.forward(packet, flow.backend, &backend, flow.nat_port))
    }

    /// A backend of this service.
    fn backend(&self, id: u32, service: &Service) -> Option<Backend> {
        let backend = self.tables.backends.get(&id)?;
        (backend.service == service.id).then(|| backend.clone())
    }

    /// Select a backend: a new connection, or a flow of a former owner.
    fn new_flow(
        &mut self,
        packet: &Packet<'_>,
        service: &Service,
        excluded: Option<u32>,
        now: u32,
    ) -> Result<Outcome, Reason> {
        let (id, backend) = self.select(packet, service, excluded)?;
        if packet.tcp.is_syn() {
            self.count_backend(id).connections += 1;
        }
        let key = packet.flow();
        let ends = packet.tcp.has(RST);
        let nat_port = match backend.method() {
            Some(Method::Local) => return Ok(self.deliver(packet, service, Reason::Local)),
            Some(Method::Dsr) => {
                if !ends {
                    self.touch(key);
                    let flow = Flow::begin(id, 0, 0, 0, &packet.tcp, now);
                    self.state.flows.insert(key, flow);
                }
                0
            }
            Some(Method::Nat) if ends => return Err(Reason::NoFlow),
            Some(Method::Nat) => self.allocate(packet, id, &backend, now)?,
            None => return Err(Reason::Inconsistent),
        };
        self.forward(packet, id, &backend, nat_port)
    }

    /// Maglev, past the node that the packet came from.
    fn select(
        &self,
        packet: &Packet<'_>,
        service: &Service,
        excluded: Option<u32>,
    ) -> Result<(u32, Backend), Reason> {
        if service.flags & lb_common::abi::Service::USABLE == 0 {
            return Err(Reason::NoBackend);
        }
        let hash = flow_hash(packet.flow().src);
        for attempt in 0..SELECT_TRIES {
            let slot = hash::slot(hash.wrapping_add(attempt.wrapping_mul(GOLDEN)));
            let id = self.tables.slot(service.table, slot);
            let backend = self.backend(id, service).ok_or(Reason::Inconsistent)?;
            if excluded == Some(backend.node) {
                continue;
            }
            return match backend.state() {
                BackendState::Up | BackendState::Draining => Ok((id, backend)),
                BackendState::Down => Err(Reason::BackendDown),
            };
        }
        Err(Reason::NoOtherBackend)
    }

    /// Forward to a backend elsewhere.
    fn forward(
        &mut self,
        packet: &Packet<'_>,
        id: u32,
        backend: &Backend,
        nat_port: u16,
    ) -> Result<Outcome, Reason> {
        let count = self.count_backend(id);
        count.packets += 1;
        count.bytes += packet.frame.len() as u64;
        match backend.method() {
            Some(Method::Dsr) => {
                let way = self.dsr(packet, backend)?;
                Ok(way.outcome(packet, Reason::Dsr, Reason::DsrRedirect))
            }
            Some(Method::Nat) => {
                let way = self.nat_forward(packet, backend, nat_port)?;
                Ok(way.outcome(packet, Reason::Nat, Reason::NatRedirect))
            }
            Some(Method::Local) | None => Err(Reason::Inconsistent),
        }
    }

    /// dsr: never back to where the frame came from.
    fn dsr(&self, packet: &Packet<'_>, backend: &Backend) -> Result<Way, Reason> {
        if backend.ifindex == 0 {
            return Err(Reason::Unresolved);
        }
        if backend.mac == packet.link.src {
            return Err(Reason::NoOtherBackend);
        }
        let leaves = Rewrite::of(packet.frame);
        self.send(packet, leaves, (backend.ifindex, backend.mac))
    }

    /// Out through an interface to a next hop.
    pub(super) fn send(
        &self,
        packet: &Packet<'_>,
        mut leaves: Rewrite,
        (ifindex, mac): (u32, Mac),
    ) -> Result<Way, Reason> {
        let same = ifindex == packet.ifindex;
        let own = if same {
            packet.link.dst
        } else {
            let own = self.tables.uplinks.get(&(ifindex, 0));
            *own.ok_or(Reason::Unresolved)?
        };
        leaves.macs(mac, own);
        let ifindex = if same { 0 } else { ifindex };
        Ok(Way { leaves, ifindex })
    }
}

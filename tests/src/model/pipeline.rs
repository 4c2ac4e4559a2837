//! The ingress pipeline up to a packet of a service: parse, fence, service, and the ways out.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    abi::{Mac, Method},
    hash,
    reason::{Reason, Verdict},
};

use super::{
    Model, Outcome,
    rewrite::Rewrite,
    tables::{Backend, Service, Tuple},
    wire::{self, BadIp, BadTcp, BadUdp, ICMP6, Ip, Link, TCP, Tcp, UDP, Udp, Version, endpoint},
};

/// Ethernet type of IPv4.
pub(super) const IP4: u16 = 0x0800;
/// ARP.
pub(super) const ARP: u16 = 0x0806;
/// IPv6.
pub(super) const IP6: u16 = 0x86dd;

/// 2^32 divided by the golden ratio: how far apart tries are in hash space.
pub(super) const GOLDEN: u32 = 0x9e37_79b9;

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

/// The `ICMPv6` message (without extension headers) at `l3`, as neighbour discovery.
pub(super) fn neighbour(frame: &[u8], l3: usize) -> Option<Neighbour> {
    let packet = wire::bytes(frame, l3, 40 + 24)?;
    (packet[6] == ICMP6).then_some(Neighbour {
        kind: packet[40],
        src: wire::address(packet, 8, Version::Six)?,
        target: wire::address(packet, 48, Version::Six)?,
    })
}

/// What an IP packet to a VIP carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upper {
    /// A TCP segment.
    Tcp(Tcp),
    /// A UDP packet.
    Udp(Udp),
    /// An ICMP message.
    Icmp,
}

/// A packet to a VIP.
pub(super) struct Packet<'a> {
    /// All of it.
    pub(super) frame: &'a [u8],
    /// Interface that it came in through.
    pub(super) ifindex: u32,
    /// Ethernet.
    pub(super) link: Link,
    /// Its VLAN tags.
    pub(super) tags: u32,
    /// IP.
    pub(super) ip: Ip,
    /// IP source.
    pub(super) src: IpAddr,
    /// IP destination.
    pub(super) dst: IpAddr,
    /// What it carries.
    pub(super) upper: Upper,
    /// It was forwarded by a peer, and goes on: it has one hop less to live.
    pub(super) hops: bool,
}

impl Packet<'_> {
    /// Its flow.
    pub(super) fn flow(&self) -> Tuple {
        let (sport, dport) = match self.upper {
            Upper::Tcp(tcp) => (tcp.sport, tcp.dport),
            Upper::Udp(udp) => (udp.sport, udp.dport),
            Upper::Icmp => (0, 0),
        };
        Tuple {
            src: endpoint(self.src, sport),
            dst: endpoint(self.dst, dport),
            proto: self.ip.proto,
        }
    }

    /// The segment, of TCP.
    pub(super) fn tcp(&self) -> Option<&Tcp> {
        match &self.upper {
            Upper::Tcp(tcp) => Some(tcp),
            Upper::Udp(_) | Upper::Icmp => None,
        }
    }

    /// A connection request.
    pub(super) fn is_syn(&self) -> bool {
        self.tcp().is_some_and(Tcp::is_syn)
    }

    /// A RST.
    pub(super) fn is_reset(&self) -> bool {
        self.tcp().is_some_and(|tcp| tcp.has(wire::RST))
    }

    /// UDP.
    pub(super) fn is_udp(&self) -> bool {
        matches!(self.upper, Upper::Udp(_))
    }

    /// It may begin something: a connection request, or any UDP packet.
    pub(super) fn may_begin(&self) -> bool {
        self.is_syn() || self.is_udp()
    }

    /// The version of IP.
    pub(super) fn version(&self) -> Version {
        if self.src.is_ipv4() {
            Version::Four
        } else {
            Version::Six
        }
    }

    /// A peer forwarded it, and it is forwarded once more: whatever the nodes believe of each other,
    /// this ends.
    pub(super) fn take_hop(&mut self) -> Result<(), Reason> {
        let at = self.ip.l3 + if self.src.is_ipv4() { 8 } else { 7 };
        if self.frame[at] <= 1 {
            return Err(Reason::TtlExpired);
        }
        self.hops = true;
        Ok(())
    }

    /// The frame to be rewritten.
    pub(super) fn rewrite(&self) -> Rewrite {
        let mut rewrite = Rewrite::of(self.frame);
        if self.hops {
            rewrite.hop(&self.ip);
        }
        rewrite
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

/// The backend that a packet goes to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// Its id.
    pub(super) backend: u32,
    /// The source port towards it (nat), else 0.
    pub(super) nat_port: u16,
    /// A connection begins.
    pub(super) new: bool,
    /// No entry could be made.
    pub(super) stateless: bool,
}

impl Target {
    /// An established flow's.
    pub(super) fn known(backend: u32, nat_port: u16) -> Self {
        Self {
            backend,
            nat_port,
            new: false,
            stateless: false,
        }
    }
}

impl Model {
    /// What becomes of a frame that comes in.
    pub(super) fn judge_ingress(&mut self, frame: &[u8], ifindex: u32, now: u32) -> Outcome {
        self.try_ingress(frame, ifindex, now)
            .unwrap_or_else(|reason| Outcome::untouched(reason, frame))
    }

    /// What is to `vip` and would be this node's own stack's, for a reason: nobody's if the VIP is
    /// closed.
    pub(super) fn to_own_stack(&self, vip: IpAddr, reason: Reason) -> Reason {
        if self.tables.closed.contains(&vip) {
            Reason::NotAccepted
        } else {
            reason
        }
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
        let mut packet = self.parse(frame, ifindex, link, version)?;
        if packet.upper == Upper::Icmp {
            let vip = packet.dst;
            return self.icmp(&mut packet).map_err(|reason| match reason {
                Reason::IcmpOther => self.to_own_stack(vip, reason),
                other => other,
            });
        }
        let asked = (packet.flow().dst, packet.ip.proto);
        match self.tables.services.get(&asked).cloned() {
            None => self.unserved(&packet, now),
            Some(service) => {
                let outcome = self.serve(&mut packet, &service, now);
                let outcome = outcome.unwrap_or_else(|reason| Outcome::untouched(reason, frame));
                Ok(Outcome {
                    service: service.id,
                    ..outcome
                })
            }
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
        self.to_vip.set(true);
        let tags = link.tags();
        match self.tables.uplinks.get(&(ifindex, tags)) {
            Some(own) if *own == link.dst => {}
            None if tags != 0 => return Err(Reason::NotOurVlan),
            _ => return Err(Reason::NotOurMac),
        }
        let ip = Ip::parse(frame, link.l3, version).map_err(|bad| match (bad, version) {
            (BadIp::Truncated, _) => Reason::Truncated,
            (BadIp::Header, Version::Four) => Reason::BadIpv4Header,
            (BadIp::Header, Version::Six) => Reason::BadIpv6Header,
            (BadIp::Extensions, _) => Reason::Ipv6Extensions,
        })?;
        let upper = if ip.proto == version.icmp() {
            if ip.fragment {
                return Err(self.to_own_stack(dst, Reason::IcmpOther));
            }
            Upper::Icmp
        } else {
            if !matches!(ip.proto, TCP | UDP) {
                return Err(self.to_own_stack(dst, Reason::NotBalanced));
            }
            if ip.fragment {
                return Err(Reason::Fragment);
            }
            if !wire::is_client_address(src) || src == dst {
                return Err(Reason::BadSource);
            }
            upper(&ip, frame)?
        };
        Ok(Packet {
            frame,
            ifindex,
            tags,
            link,
            ip,
            src,
            dst,
            upper,
            hops: false,
        })
    }

    /// To a VIP but to no service: a nat reply, a request that would get around the service, or
    /// something of the kernel's.
    fn unserved(&mut self, packet: &Packet<'_>, now: u32) -> Result<Outcome, Reason> {
        if let Some(reply) = self.nat_reply(packet, now) {
            return Ok(reply);
        }
        let flow = packet.flow();
        if self.tables.nat_sources.contains(&(flow.src, flow.proto)) {
            return Err(Reason::NatUnknownReply);
        }
        if !self
            .tables
            .reply_ports
            .contains_key(&(flow.dst, flow.proto))
        {
            return Err(self.to_own_stack(packet.dst, Reason::NotBalanced));
        }
        if packet.is_udp() {
            return Err(Reason::BackendPort);
        }
        self.reset(packet, Reason::BackendPortReset, 0)
    }

    /// Forward to a backend, this node's own or one elsewhere.
    pub(super) fn forward(
        &mut self,
        packet: &Packet<'_>,
        service: &Service,
        target: Target,
    ) -> Outcome {
        let sent = match self.backend(target.backend, service) {
            Some(backend) if backend.method() == Some(Method::Local) => {
                return self.deliver(packet, service, Reason::Local, target.new);
            }
            Some(backend) => self.send_to(packet, &backend, target),
            None => return Outcome::untouched(Reason::Inconsistent, packet.frame),
        };
        let outcome = sent.unwrap_or_else(|reason| Outcome::untouched(reason, packet.frame));
        let count = self.count_backend(target.backend);
        if outcome.reason.verdict() == Verdict::Drop {
            count.drops += 1;
        } else {
            count.packets += 1;
            count.bytes += packet.frame.len() as u64;
            count.connections += u64::from(target.new);
        }
        Outcome {
            connection: target.new,
            ..outcome
        }
    }

    fn send_to(
        &self,
        packet: &Packet<'_>,
        backend: &Backend,
        target: Target,
    ) -> Result<Outcome, Reason> {
        match backend.method() {
            Some(Method::Dsr) => {
                let way = self.dsr(packet, backend)?;
                Ok(if target.stateless {
                    way.outcome(packet, Reason::DsrStateless, Reason::DsrStatelessRedirect)
                } else {
                    way.outcome(packet, Reason::Dsr, Reason::DsrRedirect)
                })
            }
            Some(Method::Nat) => {
                let way = self.nat_forward(packet, backend, target.nat_port)?;
                Ok(way.outcome(packet, Reason::Nat, Reason::NatRedirect))
            }
            Some(Method::Local) | None => Err(Reason::Inconsistent),
        }
    }

    /// To this node's own backend.
    pub(super) fn deliver(
        &mut self,
        packet: &Packet<'_>,
        service: &Service,
        reason: Reason,
        new: bool,
    ) -> Outcome {
        let count = self.count_backend(service.local_backend);
        count.packets += 1;
        count.bytes += packet.frame.len() as u64;
        count.connections += u64::from(new);
        let mut leaves = packet.rewrite();
        if service.local_port != packet.flow().dst.port() {
            leaves.dport(&packet.ip, service.local_port);
        }
        Outcome {
            leaves,
            connection: new,
            ..Outcome::untouched(reason, packet.frame)
        }
    }

    /// dsr: never back to where the frame came from.
    pub(super) fn dsr(&self, packet: &Packet<'_>, backend: &Backend) -> Result<Way, Reason> {
        if backend.ifindex == 0 {
            return Err(Reason::Unresolved);
        }
        if backend.mac == packet.link.src {
            return Err(Reason::NoOtherBackend);
        }
        let hop = (backend.ifindex, backend.tags);
        self.send(packet, packet.rewrite(), hop, backend.mac)
    }

    /// Out through an interface and VLAN to a next hop.
    pub(super) fn send(
        &self,
        packet: &Packet<'_>,
        mut leaves: Rewrite,
        (ifindex, tags): (u32, u32),
        mac: Mac,
    ) -> Result<Way, Reason> {
        let same = (ifindex, tags) == (packet.ifindex, packet.tags);
        let own = if same {
            packet.link.dst
        } else {
            let own = self.tables.uplinks.get(&(ifindex, tags));
            *own.ok_or(Reason::Unresolved)?
        };
        if tags != packet.tags {
            // One tag becomes another one; a frame does not grow or shrink.
            let single = |tags: u32| (1..0x1000).contains(&tags);
            let first = packet.link.vlans.first().copied().map_or(0, u32::from);
            if !single(tags) || !single(packet.tags) || first != packet.tags {
                return Err(Reason::VlanMismatch);
            }
            let priority = leaves.frame[14] & 0xf0;
            leaves.put(14, &[priority | (tags >> 8) as u8, tags as u8]);
        }
        leaves.macs(mac, own);
        let ifindex = if same { 0 } else { ifindex };
        Ok(Way { leaves, ifindex })
    }
}

/// The upper layer of an IP packet that is whole.
fn upper(ip: &Ip, frame: &[u8]) -> Result<Upper, Reason> {
    let message = ip.upper(frame).ok_or(Reason::Truncated)?;
    if ip.proto == UDP {
        return Udp::parse(message)
            .map(Upper::Udp)
            .map_err(|bad| match bad {
                BadUdp::Truncated => Reason::Truncated,
                BadUdp::Length => Reason::BadUdpHeader,
            });
    }
    Tcp::parse(message)
        .map(Upper::Tcp)
        .map_err(|bad| match bad {
            BadTcp::Truncated => Reason::Truncated,
            BadTcp::Offset => Reason::BadTcpHeader,
            BadTcp::Flags => Reason::BadTcpFlags,
        })
}

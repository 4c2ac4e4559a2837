//! Packets of a service: conntrack, and the selection of a backend for those that it does not know.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    abi::{self, BackendState, Method},
    conntrack::FlowState,
    hash,
    reason::Reason,
};

use super::{
    Model, NANOS, Outcome, Socket,
    pipeline::{GOLDEN, Packet, Target, Upper, flow_hash},
    tables::{Backend, Flow, Service, Tuple},
    wire::{TCP, Tcp},
};

/// Slots that are looked at for a backend that may be used.
const SELECT_TRIES: u32 = 8;
/// Seconds that a backend which refused a connection is suspect.
const SUSPECT_SECONDS: u32 = 3;

/// What the entry of a flow says.
enum Entry {
    /// Where its packets go.
    Goes(Target),
    /// Its backend, with this id, went down.
    Dead(u32),
    /// Nothing that holds: select, but not this backend (0: any).
    Select(u32),
}

/// Where a packet comes from.
#[derive(Clone, Copy)]
struct Origin {
    /// The peer that forwarded it: its MAC, but not its address.
    forwarder: Option<u32>,
    /// The node that it must not go to.
    excluded: Option<u32>,
}

impl Model {
    /// A packet to a service.
    pub(super) fn serve(
        &mut self,
        packet: &mut Packet<'_>,
        service: &Service,
        now: u32,
    ) -> Result<Outcome, Reason> {
        let origin = self.origin(packet);
        let has_local = service.local_backend != 0;
        if origin.forwarder.is_some() && has_local {
            return Ok(self.balanced_by_peer(packet, service));
        }
        if has_local && self.chosen(packet.flow().src, service) == service.local_backend {
            let socket = self.socket(&packet.flow(), service);
            if !packet.may_begin() && socket == Socket::Connection {
                return Ok(self.deliver(packet, service, Reason::Local, false));
            }
        }
        let mut entry = self.established(packet, service, origin, now);
        if matches!(entry, Entry::Select(_)) {
            entry = self.half_open(packet, service, origin, now);
        }
        let target = match entry {
            Entry::Goes(target) => target,
            Entry::Dead(backend) => return self.reset(packet, Reason::FlowReset, backend),
            Entry::Select(failed) => {
                match self.select_anew(packet, service, (origin, failed), now)? {
                    Ok(target) => target,
                    Err((reason, backend)) => return self.reset(packet, reason, backend),
                }
            }
        };
        if origin.forwarder.is_some() {
            packet.take_hop()?;
        }
        Ok(self.forward(packet, service, target))
    }

    /// The peer that forwarded a packet.
    pub(super) fn forwarder(&self, packet: &Packet<'_>) -> Option<u32> {
        self.origin(packet).forwarder
    }

    fn origin(&self, packet: &Packet<'_>) -> Origin {
        let client = self.tables.peer_addrs.get(&packet.src).copied();
        let sender = self.tables.peer_macs.get(&packet.link.src).copied();
        let forwarder = sender.filter(|_| sender != client);
        Origin {
            forwarder,
            excluded: forwarder.or(client),
        }
    }

    /// A peer balanced it already, and counted the connection. From its SYN on the flow is the
    /// kernel's.
    fn balanced_by_peer(&mut self, packet: &Packet<'_>, service: &Service) -> Outcome {
        if packet.is_syn() {
            self.forget(packet);
        }
        self.deliver(packet, service, Reason::LocalFromPeer, false)
    }

    /// No entry may take the flow's packets away any more.
    fn forget(&mut self, packet: &Packet<'_>) {
        let key = packet.flow();
        self.touch(key);
        self.state.flows.remove(&key);
        self.state.half_flows.remove(&key);
    }

    /// The backend that the table has for the flow.
    pub(super) fn chosen(&self, client: SocketAddr, service: &Service) -> u32 {
        let slot = hash::slot(flow_hash(client));
        self.tables.slot(service.table, slot)
    }

    /// What this node's kernel has for a flow to the local backend.
    pub(super) fn socket(&self, flow: &Tuple, service: &Service) -> Socket {
        let mut flow = *flow;
        flow.dst.set_port(service.local_port);
        if self.sockets.connections.contains(&flow) {
            Socket::Connection
        } else if self.sockets.listeners.contains(&flow.dst) && flow.proto == TCP {
            Socket::Listener
        } else {
            Socket::None
        }
    }

    /// A backend of this service.
    pub(super) fn backend(&self, id: u32, service: &Service) -> Option<Backend> {
        let backend = self.tables.backends.get(&id)?;
        (backend.service == service.id).then(|| backend.clone())
    }

    /// What the entry of an established flow says. What the packet says of the flow is written down
    /// first.
    fn established(
        &mut self,
        packet: &Packet<'_>,
        service: &Service,
        origin: Origin,
        now: u32,
    ) -> Entry {
        const ANEW: Entry = Entry::Select(0);
        let key = packet.flow();
        self.touch(key);
        let Some(flow) = self.state.flows.get_mut(&key) else {
            return ANEW;
        };
        match packet.upper {
            Upper::Tcp(tcp) if tcp.is_syn() && flow.has_ended() => return ANEW,
            Upper::Tcp(tcp) => flow.observe(&tcp, now),
            Upper::Udp(_) if flow.idle(now) >= u32::from(service.idle_seconds) => return ANEW,
            Upper::Udp(_) | Upper::Icmp => flow.last_seen = now,
        }
        let flow = flow.clone();
        let Some(backend) = self.backend(flow.backend, service) else {
            return ANEW;
        };
        if backend.epoch != flow.epoch {
            // What begins goes elsewhere; what was open is over.
            return if packet.may_begin() {
                ANEW
            } else {
                Entry::Dead(flow.backend)
            };
        }
        let refused = packet.is_syn() && backend.state() == BackendState::Down;
        if refused || !still_fits(packet, &backend, &flow, origin) {
            return ANEW;
        }
        if flow.nat_port != 0 {
            self.follow(packet, &backend, &flow);
        }
        Entry::Goes(Target::known(flow.backend, flow.nat_port))
    }

    /// What the entry of a half-open flow says. The first packet after the one that made it makes it
    /// an established one.
    fn half_open(
        &mut self,
        packet: &Packet<'_>,
        service: &Service,
        origin: Origin,
        now: u32,
    ) -> Entry {
        const ANEW: Entry = Entry::Select(0);
        let key = packet.flow();
        let Some(mut flow) = self.state.half_flows.get(&key).cloned() else {
            return ANEW;
        };
        let Some(backend) = self.backend(flow.backend, service) else {
            return ANEW;
        };
        if backend.epoch != flow.epoch {
            return if packet.may_begin() {
                ANEW
            } else {
                Entry::Dead(flow.backend)
            };
        }
        if !still_fits(packet, &backend, &flow, origin) {
            return ANEW;
        }
        let goes = Entry::Goes(Target::known(flow.backend, flow.nat_port));
        match packet.upper {
            Upper::Tcp(tcp) if tcp.is_syn() => {
                return self.repeated(packet, &tcp, (flow, &backend), now);
            }
            Upper::Tcp(tcp) => {
                flow.observe(&tcp, now);
                if packet.is_reset() {
                    self.state.half_flows.insert(key, flow);
                    return goes;
                }
            }
            Upper::Udp(_) if flow.idle(now) >= u32::from(service.idle_seconds) => return ANEW,
            Upper::Udp(_) | Upper::Icmp => flow.last_seen = now,
        }
        if flow.nat_port != 0 {
            match self.promote(packet, &backend, &flow) {
                Some(path) => flow.path = path,
                None => return ANEW,
            }
        }
        self.state.half_flows.remove(&key);
        self.state.flows.insert(key, flow);
        goes
    }

    /// A repeated SYN goes to the same backend, unless that one is not to be used any more, or (nat)
    /// has left two of them unanswered.
    fn repeated(
        &mut self,
        packet: &Packet<'_>,
        tcp: &Tcp,
        (mut flow, backend): (Flow, &Backend),
        now: u32,
    ) -> Entry {
        let down = backend.state() == BackendState::Down;
        if down || flow.has_ended() || self.state.is_suspect(flow.backend, now) {
            return Entry::Select(0);
        }
        flow.observe(tcp, now);
        if backend.method() == Some(Method::Nat) && flow.repeated && !flow.answered {
            return Entry::Select(flow.backend);
        }
        flow.repeated = true;
        let goes = Entry::Goes(Target::known(flow.backend, flow.nat_port));
        self.state.half_flows.insert(packet.flow(), flow);
        goes
    }

    /// A packet that no entry knows. `Err`: the reason for a RST as the answer, and in which
    /// backend's stead.
    fn select_anew(
        &mut self,
        packet: &Packet<'_>,
        service: &Service,
        (origin, failed): (Origin, u32),
        now: u32,
    ) -> Result<Result<Target, (Reason, u32)>, Reason> {
        let local = service.local_backend;
        // This node's kernel may hold the flow, from before the table changed.
        if local != 0
            && !packet.may_begin()
            && self.socket(&packet.flow(), service) == Socket::Connection
        {
            return Ok(Ok(Target::known(local, 0)));
        }
        self.admit(packet, service)?;
        if packet.may_begin() && !self.within_rate(packet, service) {
            return Err(Reason::SourceRate);
        }
        let new = packet.may_begin();
        let mut avoid = failed;
        let mut nobody_listens = false;
        loop {
            let selected = self.select(packet, service, (origin.excluded, avoid), now);
            let id = match selected {
                Ok(id) => id,
                // The kernel answers.
                Err(_) if nobody_listens => {
                    return Ok(Ok(Target {
                        new: true,
                        ..Target::known(local, 0)
                    }));
                }
                // The one that did not answer is better than none.
                Err(_) if avoid != 0 => {
                    avoid = 0;
                    continue;
                }
                Err(reason) => {
                    let silent = service.flags & abi::Service::SILENT != 0;
                    return if packet.is_udp() || silent {
                        Err(reason)
                    } else {
                        Ok(Err((Reason::NoBackendReset, 0)))
                    };
                }
            };
            let backend = self.backend(id, service).ok_or(Reason::Inconsistent)?;
            let is_local = backend.method() == Some(Method::Local);
            if is_local && packet.is_syn() && !self.listens(packet, service) {
                if nobody_listens {
                    return Err(Reason::NoOtherBackend);
                }
                self.refuse(service.id, id, now);
                nobody_listens = true;
                avoid = id;
                continue;
            }
            let target = Target {
                new,
                ..Target::known(id, 0)
            };
            return self.commit(packet, service, (target, &backend), now);
        }
    }

    /// The service's rules about sources.
    fn admit(&self, packet: &Packet<'_>, service: &Service) -> Result<(), Reason> {
        let deny = service.flags & abi::Service::DEFAULT_DENY != 0;
        if !deny && service.flags & abi::Service::SOURCES == 0 {
            return Ok(());
        }
        let rule = self.tables.source_rule(service.id, packet.src);
        if rule.unwrap_or(!deny) {
            Ok(())
        } else {
            Err(Reason::SourceDenied)
        }
    }

    /// Whether a source may open one more flow: a leaky bucket that runs out at a rate.
    fn within_rate(&mut self, packet: &Packet<'_>, service: &Service) -> bool {
        let (rate, burst) = service.source_rate;
        if rate == 0 {
            return true;
        }
        let source = match packet.src {
            IpAddr::V4(_) => packet.src,
            // All of a /64 is one source.
            IpAddr::V6(six) => IpAddr::V6((u128::from(six) >> 64 << 64).into()),
        };
        let interval = NANOS / u64::from(rate);
        let due = self.state.rates.entry((service.id, source)).or_default();
        let at = (*due).max(self.now_ns);
        if at - self.now_ns > interval * u64::from(burst.saturating_sub(1)) {
            return false;
        }
        *due = at + interval;
        true
    }

    /// Whether something takes connections to this node's own backend: at the VIP, or, by way of
    /// `sk_lookup`, at the backend's address only.
    fn listens(&self, packet: &Packet<'_>, service: &Service) -> bool {
        let local = self.tables.backends.get(&service.local_backend);
        self.socket(&packet.flow(), service) != Socket::None
            || local.is_some_and(|local| {
                local.service == service.id && self.sockets.listeners.contains(&local.addr)
            })
    }

    /// A backend refused a connection: it is suspect, and the controller hears of it once.
    pub(super) fn refuse(&mut self, service: u32, backend: u32, now: u32) {
        self.count_backend(backend).refused += 1;
        if !self.state.is_suspect(backend, now) {
            self.state.suspects.insert(backend, now + SUSPECT_SECONDS);
            self.state.refusals.push((service, backend));
        }
    }

    /// Write down a flow that begins here, or one of a former owner.
    fn commit(
        &mut self,
        packet: &Packet<'_>,
        service: &Service,
        (mut target, backend): (Target, &Backend),
        now: u32,
    ) -> Result<Result<Target, (Reason, u32)>, Reason> {
        let key = packet.flow();
        self.touch(key);
        self.state.flows.remove(&key);
        let id = target.backend;
        let method = backend.method().ok_or(Reason::Inconsistent)?;
        if method == Method::Local && !packet.is_udp() {
            self.state.half_flows.remove(&key);
            return Ok(Ok(target));
        }
        // A RST ends what it belongs to: no entry for it.
        if packet.is_reset() {
            return if method == Method::Nat {
                Err(Reason::NoFlow)
            } else {
                Ok(Ok(target))
            };
        }
        let mut flow = match packet.upper {
            Upper::Tcp(tcp) => Flow::of_tcp(id, backend.epoch, &tcp, now),
            Upper::Udp(_) | Upper::Icmp => Flow::of_udp(id, backend.epoch, now),
        };
        let within = self.state.budget.take(!target.new, self.tables.limits, now);
        if method == Method::Nat {
            // Nobody can translate a reply without an entry.
            if !within {
                return Err(Reason::Flood);
            }
            let Some((port, path)) = self.allocate(packet, id, backend, now) else {
                // It named the port that was tried last.
                self.state.half_flows.remove(&key);
                let silent = service.flags & abi::Service::SILENT != 0;
                return if packet.is_udp() || silent {
                    Err(Reason::NatPortsExhausted)
                } else {
                    Ok(Err((Reason::NatPortsReset, id)))
                };
            };
            (flow.nat_port, flow.path) = (port, path);
            target.nat_port = port;
        }
        if within {
            self.state.half_flows.insert(key, flow);
        }
        target.stateless = !within;
        Ok(Ok(target))
    }

    /// Maglev, past what must not be used; what refused a connection lately only if there is nothing
    /// else. The service names two backends on different nodes for when that fails.
    fn select(
        &self,
        packet: &Packet<'_>,
        service: &Service,
        (excluded, failed): (Option<u32>, u32),
        now: u32,
    ) -> Result<u32, Reason> {
        if service.flags & abi::Service::USABLE == 0 {
            return Err(Reason::NoBackend);
        }
        let usable = |id: u32| {
            let backend = self.backend(id, service)?;
            let avoided = excluded == Some(backend.node) || (failed != 0 && id == failed);
            (!avoided && backend.state() != BackendState::Down).then_some(id)
        };
        let hash = flow_hash(packet.flow().src);
        let slots = (0..SELECT_TRIES)
            .map(|attempt| hash::slot(hash.wrapping_add(attempt.wrapping_mul(GOLDEN))))
            .map(|slot| self.tables.slot(service.table, slot));
        let others = service.fallback.into_iter().map(u32::from);
        let candidates: Vec<u32> = slots
            .chain(others.filter(|id| *id != 0))
            .filter_map(usable)
            .collect();
        let trusted = candidates
            .iter()
            .find(|id| !self.state.is_suspect(**id, now));
        trusted
            .or(candidates.last())
            .copied()
            .ok_or(Reason::NoOtherBackend)
    }

    /// What a nat backend's segment says of its flow.
    pub(super) fn learn(&mut self, tcp: &Tcp, service: u32, entry: &super::nat::Found, now: u32) {
        self.touch(entry.flow);
        let reset = tcp.has(super::wire::RST);
        if !reset {
            if tcp.has(super::wire::SYN)
                && let Some(flow) = self.state.half_flows.get_mut(&entry.flow)
            {
                flow.answered = true;
            }
            return;
        }
        if !entry.half
            && let Some(flow) = self.state.flows.get_mut(&entry.flow)
        {
            flow.state = FlowState::Closed;
        }
        let mut refused = false;
        if let Some(flow) = self.state.half_flows.get_mut(&entry.flow) {
            refused = flow.state == FlowState::Syn;
            flow.state = FlowState::Closed;
        }
        if refused {
            self.refuse(service, entry.backend, now);
        }
    }
}

/// Whether an entry's backend may still be used for a packet: the controller may have changed the
/// method since, and nothing goes back to where it came from.
fn still_fits(packet: &Packet<'_>, backend: &Backend, flow: &Flow, origin: Origin) -> bool {
    let fits = match backend.method() {
        Some(Method::Dsr) => flow.nat_port == 0,
        Some(Method::Nat) => flow.nat_port != 0,
        Some(Method::Local) => packet.is_udp(),
        None => false,
    };
    fits && origin.forwarder.is_none_or(|peer| peer != backend.node)
}

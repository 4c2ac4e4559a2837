//! Conntrack: from a packet to a service's VIP:port to its backend. One lookup for an established
//! dsr or nat flow; a local TCP flow's entry is the kernel's own socket. What has no established
//! flow is left to [`crate::newflow`].

use lb_common::{
    abi::{Backend, BackendCounters, BackendState, Method, NODE_NONE, Service, events::Stage},
    hash,
    headers::TcpHeader,
    reason::{Reason, Verdict},
};

use crate::{
    decision::{Decision, Next, Outcome, Returned, Target},
    family::Family,
    forward,
    maps::{self, Scratch, SocketMatch},
    nat,
    packet::Context,
    parse::{self, Transport},
    select,
    stages::Stages,
};

/// Everything that is known about a packet to a service.
pub(crate) struct Request<'a, C, F: Family> {
    /// The program's context.
    pub(crate) ctx: &'a C,
    /// Offset of the IP header.
    pub(crate) l3: usize,
    /// Offset of the packet's end.
    pub(crate) end: usize,
    /// Length of the frame in bytes.
    pub(crate) length: u64,
    /// VLAN tags of the frame.
    pub(crate) tags: u32,
    /// TCP or UDP header.
    pub(crate) transport: Transport,
    /// The service.
    pub(crate) service: &'static Service,
    /// Working memory; its `key` is the flow.
    pub(crate) scratch: &'a mut Scratch<F::Addr>,
}

/// What the entry of a flow says.
enum Lookup<A: 'static> {
    /// The flow goes on.
    Found(Target, &'static Backend<A>),
    /// Its backend, with this id, went down: the client is to be reset.
    Dead(u32),
    /// Nothing that holds: select.
    Missing,
}

impl<C: Stages<F>, F: Family> Request<'_, C, F> {
    /// What an established flow's entry says. `excluded` is the peer that forwarded the packet, if
    /// one did.
    #[inline(always)]
    fn established(&mut self, excluded: u32) -> Lookup<F::Addr> {
        let now = maps::now_seconds();
        let segment = self.transport.segment;
        let syn = segment.is_syn();
        let udp_idle = u32::from(self.service.idle_seconds());
        let udp = self.transport.udp;
        let found = maps::update_lru(F::flows(), &self.scratch.key, |flow| {
            if udp {
                if flow.idle(now) >= udp_idle {
                    return None;
                }
                flow.observe_udp(now);
            } else {
                if syn && flow.syn_starts_over() {
                    return None;
                }
                flow.observe(segment, now);
            }
            Some((flow.backend(), flow.nat_port(), flow.path(), flow.epoch()))
        });
        let Some(Some((id, nat_port, path, epoch))) = found else {
            return Lookup::Missing;
        };
        let Some(backend) = select::backend::<F>(id, self.service) else {
            return Lookup::Missing;
        };
        if backend.epoch() != epoch {
            // A new connection goes elsewhere, and so does what has no connection.
            return if syn || udp {
                Lookup::Missing
            } else {
                Lookup::Dead(id)
            };
        }
        let returns = excluded != NODE_NONE && backend.node() == excluded;
        let refused = syn && backend.state() == BackendState::Down;
        if returns || refused || !select::fits(backend.method(), nat_port, udp) {
            return Lookup::Missing;
        }
        if nat_port != 0 && !nat::same_path(self, path) {
            self.scratch.facts.tags = self.tags;
            let _ = self.ctx.follow_path(u32::from(nat_port), id);
        }
        Lookup::Found(
            Target {
                backend: id,
                nat_port,
                new: false,
                stateless: false,
            },
            backend,
        )
    }

    /// Write down what is known for the stages that follow.
    #[inline(always)]
    fn save(&mut self) {
        self.scratch
            .save(self.l3, self.end, self.tags, &self.transport);
    }

    /// The decision for a packet to a service.
    #[inline(always)]
    pub(crate) fn decide(&mut self) -> Decision {
        let service = self.service;
        let local = service.local_backend();
        let origin = origin::<C, F>(self.ctx, self.scratch.key.src_ref());
        if origin != NODE_NONE && local != 0 {
            return self.forwarded_by_peer();
        }
        let syn = self.transport.segment.is_syn();
        if local != 0 && !syn && !self.transport.udp && self.maglev_is(local) {
            let socket = maps::socket::<C, F>(self.ctx, &self.scratch.key, service.local_port());
            if socket == SocketMatch::Connection {
                self.scratch.stage(Stage::Socket);
                return self.deliver(Reason::Local, false);
            }
        }
        let (target, backend) = match self.established(origin) {
            Lookup::Found(target, backend) => {
                self.scratch.stage(Stage::Conntrack);
                (target, backend)
            }
            Lookup::Dead(id) => {
                self.save();
                self.scratch.stage(Stage::Conntrack);
                return Decision::decode(self.ctx.reset(Reason::FlowReset.index(), id));
            }
            Lookup::Missing => {
                self.save();
                let mut outcome = self.ctx.half_open(origin);
                if let Some(failed) = Next::selects(outcome) {
                    outcome = self.ctx.new_flow(origin, failed);
                }
                if let Some(id) = Next::commits(outcome) {
                    outcome = self.ctx.nat_commit(id);
                }
                let target = match Outcome::decode(outcome) {
                    Returned::Forward(target) => target,
                    Returned::Done(decision) => return decision,
                    Returned::Reset(reason, backend) => {
                        return Decision::decode(self.ctx.reset(reason, backend));
                    }
                };
                let Some(backend) = select::backend::<F>(target.backend, service) else {
                    return Reason::Inconsistent.into();
                };
                (target, backend)
            }
        };
        // Forwarded once more: whatever the nodes believe of each other, this ends.
        if origin != NODE_NONE && !F::hop(self.ctx, self.l3) {
            return Reason::TtlExpired.into();
        }
        self.forward(target, backend)
    }

    /// Whether the table sends this flow to backend `id`.
    #[inline(always)]
    fn maglev_is(&self, id: u32) -> bool {
        let flow_hash = hash::flow_hash(self.scratch.key.src_ref(), self.transport.sport);
        maps::maglev(self.service.table(), hash::slot(flow_hash)) == id
    }

    /// A peer balanced it already, and this node has a backend: deliver, whatever this node's own
    /// checks say. The kernel answers.
    #[inline(always)]
    fn forwarded_by_peer(&mut self) -> Decision {
        if self.transport.segment.is_syn() {
            self.save();
            // From its SYN on the flow is the kernel's: an entry left by an earlier attempt, or by an
            // earlier connection with the same ports, would take the segments that follow away.
            maps::remove_lru(F::flows(), &self.scratch.key);
            maps::remove_lru(F::half_flows(), &self.scratch.key);
            let _ = self.ctx.listen();
        }
        self.scratch.stage(Stage::Peer);
        // The owner counted the connection.
        self.deliver(Reason::LocalFromPeer, false)
    }

    /// Deliver to the local backend.
    #[inline(always)]
    fn deliver(&mut self, reason: Reason, new: bool) -> Decision {
        let service = self.service;
        let bytes = self.length;
        maps::count_backend(service.local_backend(), |counters| {
            counters.packet(bytes);
            if new {
                counters.connection();
            }
        });
        self.scratch.facts.backend = service.local_backend();
        Decision::from(forward::local(
            self.ctx,
            &self.transport,
            service.local_port(),
            reason,
        ))
        .new_connection(new)
    }

    /// Send a packet to `backend`.
    #[inline(always)]
    fn forward(&mut self, target: Target, backend: &Backend<F::Addr>) -> Decision {
        if backend.method() == Some(Method::Local) {
            return self.deliver(Reason::Local, target.new);
        }
        let bytes = self.length;
        self.scratch.facts.backend = target.backend;
        let decision = match backend.method() {
            Some(Method::Dsr) => forward::dsr(self.ctx, self.tags, target.stateless, backend),
            Some(Method::Nat) => nat::forward(self, target.nat_port, backend),
            Some(Method::Local) | None => Reason::Inconsistent.into(),
        };
        maps::count_backend(target.backend, |counters| {
            if matches!(decision.verdict(), Verdict::Drop) {
                counters.dropped();
                return;
            }
            counters.packet(bytes);
            if target.new {
                BackendCounters::connection(counters);
            }
        });
        decision.new_connection(target.new)
    }
}

/// Number of the peer that forwarded the frame from `source`: its MAC, but not its address.
/// [`NODE_NONE`]: it comes from the client, or a router on its way.
#[inline(always)]
pub(crate) fn origin<C: Context, F: Family>(ctx: &C, source: &F::Addr) -> u32 {
    let Ok(macs) = parse::macs(ctx) else {
        return NODE_NONE;
    };
    let peer = maps::peer_of_mac(macs.src);
    if peer == NODE_NONE || peer == node_of::<F>(source) {
        NODE_NONE
    } else {
        peer
    }
}

/// Number of the xvip node with this address.
#[inline(always)]
pub(crate) fn node_of<F: Family>(addr: &F::Addr) -> u32 {
    maps::get(F::peer_addrs(), addr).map_or(NODE_NONE, |node| node.number())
}

/// Let the local backend's listener take this connection: the kernel finds it by the VIP, or, where
/// it listens on the backend's own address only, by `sk_lookup`. False: nothing listens.
#[inline(always)]
pub(crate) fn listen<C: Stages<F>, F: Family>(ctx: &C) -> u64 {
    let Some(scratch) = F::scratch() else {
        return 0;
    };
    let Some(service) = maps::find(F::services(), &scratch.service_key) else {
        return 0;
    };
    if maps::socket::<C, F>(ctx, &scratch.key, service.local_port()) != SocketMatch::None {
        return 1;
    }
    let Some(backend) = select::backend::<F>(service.local_backend(), service) else {
        return 0;
    };
    let (key, slot) = (&scratch.key, service.id());
    u64::from(maps::find_listener::<C, F>(
        ctx,
        key,
        backend.addr_ref(),
        backend.port(),
        slot,
    ))
}

/// Control bits of a segment that is answered with RST only if it is not one itself.
#[inline(always)]
pub(crate) const fn is_reset(flags: u8) -> bool {
    flags & TcpHeader::RST != 0
}

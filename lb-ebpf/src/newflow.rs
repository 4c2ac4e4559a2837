//! New flows: half-open ones, adopted ones, and the selection of a backend for those that nobody
//! knows. A function of its own for the verifier, off the path of established flows.

use lb_common::{
    abi::{
        Backend, BackendState, Flow, Method, NODE_NONE, Service, ServiceKey,
        events::Stage,
        sources::{SourceKey, SourceRate},
    },
    conntrack::{FlowState, Segment},
    headers::{IPPROTO_UDP, TcpHeader},
    reason::Reason,
};

use crate::{
    conntrack::node_of,
    decision::{Next, Outcome, Target},
    family::Family,
    maps::{self, Scratch, SocketMatch},
    nat,
    select::{self, Avoid},
    stages::Stages,
};

/// The entry of a half-open flow: a repeated SYN goes to the same backend, the first ACK makes the
/// flow an established one. `excluded` is the peer that forwarded the packet, if one did. The result
/// is an [`Outcome`], or a [`Next`] that selects.
#[inline(always)]
pub(crate) fn half_open<C: Stages<F>, F: Family>(ctx: &C, excluded: u32) -> u64 {
    let Some(mut flow) = NewFlow::<C, F>::load(ctx) else {
        return Outcome::from(Reason::Inconsistent).encode();
    };
    flow.scratch.stage(Stage::Conntrack);
    match flow.half_open(excluded) {
        Half::Goes(target) => Outcome::Forward(target).encode(),
        Half::Dead(id) => Outcome::Reset(Reason::FlowReset, id).encode(),
        Half::Select(failed) => Next::Select(failed).encode(),
    }
}

/// A packet of a flow without an entry, `excluded` as in [`half_open`]. Backend id `failed` has left
/// the flow unanswered (0: none has). The result is an [`Outcome`], or a [`Next`] that commits.
#[inline(always)]
pub(crate) fn new_flow<C: Stages<F>, F: Family>(ctx: &C, excluded: u32, failed: u32) -> u64 {
    let Some(mut flow) = NewFlow::<C, F>::load(ctx) else {
        return Outcome::from(Reason::Inconsistent).encode();
    };
    match flow.outcome(excluded, failed) {
        Ok(Chosen::Outcome(outcome)) => outcome.encode(),
        Ok(Chosen::Nat(id)) => Next::Commit(id).encode(),
        Err(reason) => Outcome::from(reason).encode(),
    }
}

/// A packet of a flow without an established entry.
pub(crate) struct NewFlow<'a, C, F: Family> {
    /// The program's context.
    pub(crate) ctx: &'a C,
    /// The service.
    pub(crate) service: &'static Service,
    /// Seconds of the coarse monotonic clock.
    pub(crate) now: u32,
    /// Working memory; its `key` is the flow.
    pub(crate) scratch: &'a mut Scratch<F::Addr>,
}

/// What was chosen for a new flow.
enum Chosen {
    /// Where the packet goes.
    Outcome(Outcome),
    /// A nat backend, with this id, that an entry is to be made for.
    Nat(u32),
}

impl From<Outcome> for Chosen {
    #[inline(always)]
    fn from(outcome: Outcome) -> Self {
        Self::Outcome(outcome)
    }
}

/// What the entry of a half-open flow says.
enum Half {
    /// The packet goes on to the backend.
    Goes(Target),
    /// The backend went down.
    Dead(u32),
    /// Select, but not this backend (0: any).
    Select(u32),
}

impl<C: Stages<F>, F: Family> NewFlow<'_, C, F> {
    /// From what the scratch memory knows.
    #[inline(always)]
    fn load(ctx: &C) -> Option<NewFlow<'_, C, F>> {
        let scratch = F::scratch()?;
        let (vip, port, proto) = (scratch.key.dst(), scratch.key.dport(), scratch.key.proto());
        scratch.service_key = ServiceKey::new(vip, port, proto);
        let service = maps::find(F::services(), &scratch.service_key)?;
        Some(NewFlow {
            ctx,
            service,
            now: maps::now_seconds(),
            scratch,
        })
    }

    /// The segment (TCP). Like the following ones read when it is needed, not kept on the stack.
    #[inline(always)]
    fn segment(&self) -> Segment {
        self.scratch.facts.segment()
    }

    /// A connection request.
    #[inline(always)]
    fn syn(&self) -> bool {
        self.segment().is_syn()
    }

    /// UDP, not TCP.
    #[inline(always)]
    fn udp(&self) -> bool {
        self.scratch.key.proto() == IPPROTO_UDP
    }

    #[inline(always)]
    fn outcome(&mut self, excluded: u32, failed: u32) -> Result<Chosen, Reason> {
        // Before the flow is selected anew: this node may hold it, from before the table changed.
        let local = self.service.local_backend();
        if local != 0 && !self.udp() && self.held_here() {
            self.scratch.stage(Stage::Socket);
            return Ok(Outcome::Forward(Self::target(local, 0, false)).into());
        }
        self.admit()?;
        self.scratch.stage(Stage::Select);
        let node = if excluded == NODE_NONE {
            node_of::<F>(self.scratch.key.src_ref())
        } else {
            excluded
        };
        self.select(Avoid {
            node,
            backend: failed,
        })
    }

    #[inline(always)]
    fn target(backend: u32, nat_port: u16, new: bool) -> Target {
        Target {
            backend,
            nat_port,
            new,
            stateless: false,
        }
    }

    /// See [`half_open`].
    #[inline(always)]
    fn half_open(&mut self, excluded: u32) -> Half {
        let anew = Half::Select(0);
        let Some(flow) = maps::get_lru(F::half_flows(), &self.scratch.key) else {
            return anew;
        };
        let (id, nat_port) = (flow.backend(), flow.nat_port());
        let Some(backend) = select::backend::<F>(id, self.service) else {
            return anew;
        };
        if backend.epoch() != flow.epoch() {
            return if self.syn() || self.udp() {
                anew
            } else {
                Half::Dead(id)
            };
        }
        let returns = excluded != NODE_NONE && backend.node() == excluded;
        if returns || !select::fits(backend.method(), nat_port, self.udp()) {
            return anew;
        }
        self.scratch.flow = flow;
        let target = Self::target(id, nat_port, false);
        if self.udp() {
            if flow.idle(self.now) >= u32::from(self.service.idle_seconds()) {
                return anew;
            }
            self.scratch.flow.observe_udp(self.now);
        } else if self.syn() {
            return self.repeated_syn(target, backend);
        } else {
            let segment = self.segment();
            self.scratch.flow.observe(segment, self.now);
            if segment.has(TcpHeader::RST) {
                maps::put_lru(F::half_flows(), &self.scratch.key, &self.scratch.flow);
                return Half::Goes(target);
            }
        }
        if nat_port != 0 && !nat::promote::<C, F>(self.ctx, self.scratch, backend, nat_port) {
            return anew;
        }
        if maps::put_lru(F::flows(), &self.scratch.key, &self.scratch.flow) {
            maps::remove_lru(F::half_flows(), &self.scratch.key);
        }
        Half::Goes(target)
    }

    /// A SYN that was seen before goes to the same backend: choosing another would break the
    /// connections whose SYN-ACK was merely lost. Unless that one is not to be used any more, or (nat)
    /// has left two of them unanswered.
    #[inline(always)]
    fn repeated_syn(&mut self, target: Target, backend: &Backend<F::Addr>) -> Half {
        if self.scratch.flow.syn_starts_over()
            || backend.state() == BackendState::Down
            || maps::is_suspect(target.backend, self.now)
        {
            return Half::Select(0);
        }
        self.scratch.flow.observe(self.segment(), self.now);
        if self.scratch.flow.repeat() && backend.method() == Some(Method::Nat) {
            return Half::Select(target.backend);
        }
        maps::put_lru(F::half_flows(), &self.scratch.key, &self.scratch.flow);
        Half::Goes(target)
    }

    /// Whether the kernel holds the flow: a SYN only when it repeats one that is being answered
    /// (an old connection's TIME-WAIT does not bind a new one).
    #[inline(always)]
    fn held_here(&self) -> bool {
        let socket = maps::socket::<C, F>(self.ctx, &self.scratch.key, self.service.local_port());
        if self.syn() {
            socket == SocketMatch::Request
        } else {
            matches!(
                socket,
                SocketMatch::Connection | SocketMatch::TimeWait | SocketMatch::Request
            )
        }
    }

    /// The service's rules about sources, and the rate of this one.
    #[inline(always)]
    fn admit(&mut self) -> Result<(), Reason> {
        let service = self.service;
        if service.flags() & (Service::SOURCES | Service::DEFAULT_DENY) != 0 {
            self.scratch.stage(Stage::Source);
            let source = self.scratch.key.src();
            self.scratch.source.prefix_len = SourceKey::<F::Addr>::PREFIX + F::ADDRESS_BITS;
            self.scratch.source.data = SourceKey::new(service.id(), source);
            let allowed = maps::rule(F::sources(), &self.scratch.source)
                .map_or(service.flags() & Service::DEFAULT_DENY == 0, |rule| {
                    rule.allows()
                });
            if !allowed {
                return Err(Reason::SourceDenied);
            }
        }
        if service.source_rate() != 0 && (self.syn() || self.udp()) {
            self.scratch.stage(Stage::Source);
            let source = F::limited(self.scratch.key.src_ref());
            self.scratch.source.data = SourceKey::new(service.id(), source);
            if !self.within_rate() {
                return Err(Reason::SourceRate);
            }
        }
        Ok(())
    }

    /// Two CPUs may count a source at once, which lets one flow more through.
    #[inline(always)]
    fn within_rate(&mut self) -> bool {
        let (rate, burst) = (self.service.source_rate(), self.service.source_burst());
        let now = maps::now_ns();
        // A copy: the field of a packed struct may not be aligned.
        let source = self.scratch.source.data;
        let known = maps::update_lru(F::source_rates(), &source, |source| {
            source.take(now, rate, burst)
        });
        known.unwrap_or_else(|| {
            let mut first = SourceRate::NEW;
            let taken = first.take(now, rate, burst);
            maps::put_lru(F::source_rates(), &source, &first);
            taken
        })
    }

    /// A backend for a flow that nobody knows: a new one, or (any segment but SYN) one of a former
    /// owner that the same table sends to the same backend.
    #[inline(always)]
    fn select(&mut self, mut avoid: Avoid) -> Result<Chosen, Reason> {
        let mut local_failed = false;
        for _ in 0..2 {
            let id = match select::selected(F::select(avoid.node, avoid.backend)) {
                Ok(id) => id,
                // Nothing listens here, and nobody else can take it: the kernel answers.
                Err(_) if local_failed => {
                    let local = self.service.local_backend();
                    return Ok(Outcome::Forward(Self::target(local, 0, true)).into());
                }
                // The one that left the flow unanswered is better than none.
                Err(_) if avoid.backend != 0 => {
                    avoid.backend = 0;
                    continue;
                }
                Err(reason) => return self.unusable(reason).map(Chosen::from),
            };
            let backend = select::backend::<F>(id, self.service).ok_or(Reason::Inconsistent)?;
            self.scratch.facts.backend = id;
            if backend.method() == Some(Method::Local) && self.syn() && self.ctx.listen() == 0 {
                // The kernel knows before the checks do.
                maps::refused(self.service.id(), id, self.now);
                local_failed = true;
                avoid.backend = id;
                continue;
            }
            return self.commit(id, backend);
        }
        Err(Reason::NoOtherBackend)
    }

    /// No backend can take the flow.
    #[inline(always)]
    fn unusable(&self, reason: Reason) -> Result<Outcome, Reason> {
        let silent = self.udp() || self.service.silent();
        if silent || matches!(reason, Reason::Inconsistent) {
            return Err(reason);
        }
        Ok(Outcome::Reset(Reason::NoBackendReset, 0))
    }

    /// Write the entry of a flow to `backend`.
    #[inline(always)]
    fn commit(&mut self, id: u32, backend: &Backend<F::Addr>) -> Result<Chosen, Reason> {
        let mut target = Self::target(id, 0, self.syn() || self.udp());
        // What is left of an earlier connection would take the segments that follow away.
        maps::remove_lru(F::flows(), &self.scratch.key);
        let method = backend.method().ok_or(Reason::Inconsistent)?;
        if method == Method::Local && !self.udp() {
            maps::remove_lru(F::half_flows(), &self.scratch.key);
            return Ok(Outcome::Forward(target).into());
        }
        // A RST ends what it belongs to: no entry for it.
        if self.segment().has(TcpHeader::RST) {
            return if method == Method::Nat {
                Err(Reason::NoFlow)
            } else {
                Ok(Outcome::Forward(target).into())
            };
        }
        let within = maps::take_budget(self.now, !target.new);
        self.scratch.flow = self.flow(id, backend.epoch());
        if method == Method::Nat {
            return if within {
                Ok(Chosen::Nat(id))
            } else {
                Err(Reason::Flood)
            };
        }
        // Without an entry the flow still works, by Maglev alone.
        let committed =
            within && maps::put_lru(F::half_flows(), &self.scratch.key, &self.scratch.flow);
        target.stateless = !committed;
        Ok(Outcome::Forward(target).into())
    }

    /// The entry of a new flow.
    #[inline(always)]
    fn flow(&self, id: u32, epoch: u16) -> Flow {
        let state = if self.udp() {
            FlowState::Udp
        } else if self.syn() {
            FlowState::Syn
        } else {
            FlowState::Established
        };
        let mut flow = Flow::new(id, 0, 0, state, self.now).in_epoch(epoch);
        if !self.udp() {
            flow.observe(self.segment(), self.now);
        }
        flow
    }
}

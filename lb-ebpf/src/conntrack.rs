//! Conntrack: from a TCP segment to a service's VIP:port to its backend. One lookup for an
//! established dsr or nat flow; a local flow's entry is the kernel's own socket.

use lb_common::{
    abi::{Backend, BackendState, Flow, Method, NODE_NONE, Service},
    conntrack::FlowState,
    hash,
    headers::TcpHeader,
    reason::Reason,
};

use crate::{
    family::Family,
    forward::{self, Decision},
    maps::{self, Scratch, SocketMatch},
    nat,
    packet::{self, Context},
    parse::{self, Tcp},
    select,
};

/// Everything that the stages know about a segment to a service.
pub(crate) struct Request<'a, C, F: Family> {
    /// The program's context.
    pub(crate) ctx: &'a C,
    /// Offset of the IP header.
    pub(crate) l3: usize,
    /// TCP header.
    pub(crate) tcp: Tcp,
    /// The service.
    pub(crate) service: Service,
    /// Working memory; its `key` is the flow.
    pub(crate) scratch: &'a mut Scratch<F::Addr>,
}

impl<C: Context, F: Family> Request<'_, C, F> {
    #[inline(always)]
    fn bytes(&self) -> u64 {
        packet::length(self.ctx)
    }

    /// What the kernel's socket table has for this flow at the local backend's port.
    #[inline(always)]
    fn local_socket(&self) -> SocketMatch {
        F::socket(self.ctx, &self.scratch.key, self.service.local_port())
    }

    /// Deliver to the local backend. From its SYN on the flow is the kernel's: an entry left by an
    /// earlier attempt, or by an earlier connection with the same ports, would take the segments
    /// that follow away to its own backend.
    #[inline(always)]
    pub(crate) fn deliver(&self, reason: Reason) -> Decision {
        if self.tcp.segment.is_syn() {
            maps::remove_lru(F::flows(), &self.scratch.key);
        }
        let bytes = self.bytes();
        maps::count_backend(self.service.local_backend(), |counters| {
            counters.packet(bytes);
        });
        forward::local(self.ctx, &self.tcp, self.service.local_port(), reason)
    }

    /// Send a flow to `backend`, whose method is not local.
    #[inline(always)]
    fn forward(&mut self, id: u32, nat_port: u16, backend: &Backend<F::Addr>) -> Decision {
        let bytes = self.bytes();
        maps::count_backend(id, |counters| counters.packet(bytes));
        match backend.method() {
            Some(Method::Dsr) => forward::dsr(self.ctx, backend),
            Some(Method::Nat) => nat::forward(self, nat_port, backend),
            Some(Method::Local) | None => Reason::Inconsistent.into(),
        }
    }

    /// An existing flow's packet, or `None` where the flow must be selected anew. `excluded` is
    /// the peer that forwarded it, if one did.
    #[inline(always)]
    fn established(&mut self, excluded: u32) -> Option<Decision> {
        let now = maps::now_seconds();
        let segment = self.tcp.segment;
        let (id, nat_port, path) = maps::update_lru(F::flows(), &self.scratch.key, |flow| {
            if segment.is_syn() && flow.syn_starts_over() {
                return None;
            }
            flow.observe(segment, now);
            Some((flow.backend(), flow.nat_port(), flow.path()))
        })??;
        let backend = select::backend::<F>(id, &self.service)?;
        let returns = excluded != NODE_NONE && backend.node() == excluded;
        if returns || !fits(backend.method(), nat_port) {
            return None;
        }
        if backend.state() == BackendState::Down {
            // A new connection goes elsewhere; the segments of an old one have nowhere to go.
            return if segment.is_syn() {
                None
            } else {
                Some(Reason::BackendDown.into())
            };
        }
        if nat_port != 0 {
            nat::follow_path(self, nat_port, backend, path);
        }
        Some(self.forward(id, nat_port, backend))
    }

    /// A flow without an entry: a new one, or (any segment but SYN) one of a former owner that
    /// the same table sends to the same backend.
    #[inline(always)]
    fn new_flow(&mut self, flow_hash: u32, excluded: u32) -> Decision {
        match self.try_new_flow(flow_hash, excluded) {
            Ok(decision) => decision,
            Err(reason) => reason.into(),
        }
    }

    #[inline(always)]
    fn try_new_flow(&mut self, flow_hash: u32, excluded: u32) -> Result<Decision, Reason> {
        let (id, backend) = select::select::<F>(&self.service, flow_hash, excluded)?;
        if self.tcp.segment.is_syn() {
            maps::count_backend(id, lb_common::abi::BackendCounters::connection);
        }
        // A RST ends what it belongs to: no entry for it.
        let commit = !self.tcp.segment.has(TcpHeader::RST);
        let nat_port = match backend.method() {
            Some(Method::Local) => return Ok(self.deliver(Reason::Local)),
            Some(Method::Dsr) => {
                if commit {
                    // Without an entry (no memory) the flow still works by Maglev alone.
                    maps::put_lru(F::flows(), &self.scratch.key, &self.flow(id, 0, 0));
                }
                0
            }
            Some(Method::Nat) if commit => nat::commit(self, id, backend)?,
            Some(Method::Nat) => return Err(Reason::NoFlow),
            None => return Err(Reason::Inconsistent),
        };
        Ok(self.forward(id, nat_port, backend))
    }

    /// The entry of a new flow.
    #[inline(always)]
    pub(crate) fn flow(&self, id: u32, nat_port: u16, path: u16) -> Flow {
        let segment = self.tcp.segment;
        let state = if segment.is_syn() {
            FlowState::Syn
        } else {
            FlowState::Established
        };
        let now = maps::now_seconds();
        let mut flow = Flow::new(id, nat_port, path, state, now);
        flow.observe(segment, now);
        flow
    }

    /// The decision for a segment to a service.
    #[inline(always)]
    pub(crate) fn decide(&mut self) -> Decision {
        let service = self.service;
        let has_local = service.local_backend() != 0;
        let excluded = match self.origin() {
            Origin::ForwardedBy(_) if has_local => return self.deliver(Reason::LocalFromPeer),
            Origin::ForwardedBy(peer) => peer,
            Origin::Client => NODE_NONE,
        };
        let flow_hash = hash::flow_hash(self.scratch.key.src_ref(), self.tcp.sport);
        let slot = hash::slot(flow_hash);
        let syn = self.tcp.segment.is_syn();
        let maglev_local =
            has_local && maps::maglev(service.table(), slot) == service.local_backend();
        if maglev_local && !syn && self.local_socket() == SocketMatch::Connection {
            return self.deliver(Reason::Local);
        }
        if let Some(decision) = self.established(excluded) {
            return decision;
        }
        // Before the flow is selected anew: this node may hold it, from before the table changed.
        if has_local && self.held_here(syn, maglev_local) {
            return self.deliver(Reason::Local);
        }
        let excluded = if excluded == NODE_NONE {
            self.client_node()
        } else {
            excluded
        };
        self.new_flow(flow_hash, excluded)
    }

    /// Whether the kernel holds the flow: a SYN only when it repeats one that is being answered
    /// (an old connection's TIME-WAIT does not bind a new one). `looked`: what there was did not
    /// bind the flow, and the table has this node anyway.
    #[inline(always)]
    fn held_here(&self, syn: bool, looked: bool) -> bool {
        if syn {
            self.local_socket() == SocketMatch::Request
        } else {
            let socket = if looked {
                SocketMatch::None
            } else {
                self.local_socket()
            };
            matches!(
                socket,
                SocketMatch::Connection | SocketMatch::TimeWait | SocketMatch::Request
            )
        }
    }

    /// Node of a client that is itself an xvip node.
    #[inline(always)]
    fn client_node(&self) -> u32 {
        maps::get(F::peer_addrs(), self.scratch.key.src_ref())
            .map_or(NODE_NONE, |node| node.number())
    }

    /// Whether a peer forwarded the frame: its MAC, but not its address as the source.
    #[inline(always)]
    fn origin(&self) -> Origin {
        let Ok(macs) = parse::macs(self.ctx) else {
            return Origin::Client;
        };
        let peer = maps::peer_of_mac(macs.src);
        if peer == NODE_NONE || peer == self.client_node() {
            Origin::Client
        } else {
            Origin::ForwardedBy(peer)
        }
    }
}

/// Whether an entry with this nat port was made for a backend of this method, which the
/// controller may have changed since.
#[inline(always)]
fn fits(method: Option<Method>, nat_port: u16) -> bool {
    match method {
        Some(Method::Dsr) => nat_port == 0,
        Some(Method::Nat) => nat_port != 0,
        Some(Method::Local) | None => false,
    }
}

/// Where a frame comes from.
enum Origin {
    /// From the client, or a router on its way.
    Client,
    /// A peer balanced it already: it must not be balanced again.
    ForwardedBy(u32),
}

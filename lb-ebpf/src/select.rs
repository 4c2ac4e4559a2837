//! Select: the backend of a new (or adopted) flow, by Maglev.

use lb_common::{
    abi::{Backend, BackendState, NODE_NONE, Service},
    hash,
    reason::Reason,
};

use crate::{family::Family, maps};

/// Slots tried when a backend's node is excluded. With three backends of equal weight all of
/// them miss once in 43 million flows.
const TRIES: u32 = 16;
/// Added to the hash for each try: 2^32 divided by the golden ratio visits slots far apart.
const STEP: u32 = 0x9e37_79b9;

/// The backend with id `id`, unless it is unused or belongs to another service: then the
/// controller is in the middle of a change. Not a copy: a program reads the few fields it needs.
#[inline(always)]
pub(crate) fn backend<F: Family>(id: u32, service: &Service) -> Option<&'static Backend<F::Addr>> {
    let backend = F::backends().get(id)?;
    (backend.service() == service.id()).then_some(backend)
}

/// The backend for a flow with hash `flow_hash`, never one on node `excluded` (where the
/// packet came from: its kernel would take the packet for a martian or send it back).
#[inline(always)]
pub(crate) fn select<F: Family>(
    service: &Service,
    flow_hash: u32,
    excluded: u32,
) -> Result<(u32, &'static Backend<F::Addr>), Reason> {
    if !service.usable() {
        return Err(Reason::NoBackend);
    }
    for attempt in 0..TRIES {
        let slot = hash::slot(flow_hash.wrapping_add(attempt.wrapping_mul(STEP)));
        let id = maps::maglev(service.table(), slot);
        let candidate = backend::<F>(id, service).ok_or(Reason::Inconsistent)?;
        if excluded == NODE_NONE || candidate.node() != excluded {
            return match candidate.state() {
                BackendState::Up | BackendState::Draining => Ok((id, candidate)),
                // The table is about to be replaced.
                BackendState::Down => Err(Reason::BackendDown),
            };
        }
    }
    Err(Reason::NoOtherBackend)
}

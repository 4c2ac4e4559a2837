//! Select: the backend of a new (or adopted) flow, by Maglev.

use lb_common::{
    abi::{Backend, BackendState, Method, NODE_NONE, Service},
    hash,
    reason::Reason,
};

use crate::{family::Family, maps, packet};

/// Slots tried when a backend is not to be used. What they miss the service's fallback finds.
const TRIES: u32 = 8;
/// Added to the hash for each try: 2^32 divided by the golden ratio visits slots far apart.
const STEP: u32 = 0x9e37_79b9;

/// Who must not be selected.
#[derive(Clone, Copy)]
pub(crate) struct Avoid {
    /// Where the packet came from: that node's kernel would take it for a martian or send it back.
    pub(crate) node: u32,
    /// A backend that has just failed this flow; 0: none.
    pub(crate) backend: u32,
}

impl Avoid {
    /// Nobody.
    pub(crate) const NOBODY: Self = Self {
        node: NODE_NONE,
        backend: 0,
    };
}

/// The backend with id `id`, unless it is unused or belongs to another service: then the
/// controller is in the middle of a change. Not a copy: a program reads the few fields it needs.
#[inline(always)]
pub(crate) fn backend<F: Family>(id: u32, service: &Service) -> Option<&'static Backend<F::Addr>> {
    let backend = F::backends().get(id)?;
    (backend.service() == service.id()).then_some(backend)
}

/// Whether an entry with this nat port was made for a backend of this method, which the
/// controller may have changed since. Local TCP flows have no entry.
#[inline(always)]
pub(crate) fn fits(method: Option<Method>, nat_port: u16, udp: bool) -> bool {
    match method {
        Some(Method::Dsr) => nat_port == 0,
        Some(Method::Nat) => nat_port != 0,
        Some(Method::Local) => udp,
        None => false,
    }
}

/// What [`usable`] returns: the backend cannot be used,
const NOT_USABLE: u64 = 0;
/// it refused a connection lately,
const SUSPECT: u64 = 1;
/// it can be used.
const USABLE: u64 = 2;

/// Whether backend id `id` can be used for a flow of service id `service` from `node`, which is not to
/// be the one with id `avoided`. A function of its own: the verifier checks it once, not for each
/// backend that is tried.
#[inline(always)]
pub(crate) fn usable<F: Family>(id: u32, service: u32, node: u32, avoided: u32) -> u64 {
    let Some(candidate) = F::backends().get(id) else {
        return NOT_USABLE;
    };
    // DOWN: the table is about to be replaced.
    if candidate.service() != service
        || (node != NODE_NONE && candidate.node() == node)
        || (avoided != 0 && id == avoided)
        || candidate.state() == BackendState::Down
    {
        return NOT_USABLE;
    }
    if maps::is_suspect(id, maps::now_seconds()) {
        SUSPECT
    } else {
        USABLE
    }
}

/// [`select`] for the flow in the scratch memory, as a stage: the backend's id, or 2^32 and the number
/// of the reason why there is none.
#[inline(always)]
pub(crate) fn stage<F: Family>(node: u32, backend: u32) -> u64 {
    const NONE: u64 = 1 << 32;
    let none = |reason: Reason| NONE | u64::from(reason.index());
    let Some(scratch) = F::scratch() else {
        return none(Reason::Inconsistent);
    };
    let Some(service) = maps::find(F::services(), &scratch.service_key) else {
        return none(Reason::Inconsistent);
    };
    let flow_hash = hash::flow_hash(scratch.key.src_ref(), scratch.key.sport());
    let avoid = Avoid { node, backend };
    match select::<F>(service, flow_hash, avoid) {
        Ok(id) => u64::from(id),
        Err(reason) => none(reason),
    }
}

/// What [`stage`] returned: a backend's id, or why there is none.
#[inline(always)]
pub(crate) fn selected(value: u64) -> Result<u32, Reason> {
    if value >> 32 == 0 {
        return Ok(value as u32);
    }
    Err(if value as u32 == Reason::NoBackend.index() {
        Reason::NoBackend
    } else if value as u32 == Reason::NoOtherBackend.index() {
        Reason::NoOtherBackend
    } else {
        Reason::Inconsistent
    })
}

/// The id of the backend for a flow with hash `flow_hash`: never one to `avoid`, and one that refused
/// a connection lately only if there is no other.
#[inline(always)]
pub(crate) fn select<F: Family>(
    service: &Service,
    flow_hash: u32,
    avoid: Avoid,
) -> Result<u32, Reason> {
    if !service.usable() {
        return Err(Reason::NoBackend);
    }
    let rate = |id| F::usable(id, service.id(), avoid.node, avoid.backend);
    let mut last = 0;
    for attempt in 0..TRIES {
        let flow_hash = packet::unlinked(flow_hash);
        let slot = hash::slot(flow_hash.wrapping_add(attempt.wrapping_mul(STEP)));
        let id = maps::maglev(service.table(), slot);
        match rate(id) {
            USABLE => return Ok(id),
            SUSPECT => last = id,
            _ => {}
        }
    }
    let [first, second] = service.fallback();
    for id in [u32::from(first), u32::from(second)] {
        if id != 0 {
            match rate(id) {
                USABLE => return Ok(id),
                SUSPECT => last = id,
                _ => {}
            }
        }
    }
    if last == 0 {
        Err(Reason::NoOtherBackend)
    } else {
        Ok(last)
    }
}

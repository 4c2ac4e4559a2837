//! `sk_lookup`: a connection to a VIP goes to the local backend's listener although that listens on
//! its node's address only. The kernel asks where no connection takes a packet, before it looks for
//! a listener by itself; a listener that takes the VIP anyway needs no help and is not in
//! `listeners`.

use aya_ebpf::programs::SkLookupContext;
use lb_common::{abi::ServiceKey, headers::IPPROTO_TCP, reason::Reason};

use crate::{
    family::{Family, V4, V6},
    maps,
    packet::SockLookup,
    select,
};

/// `AF_INET` and `AF_INET6` (asm-generic/socket.h).
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// Name the listener, if it is ours to name.
#[inline(always)]
pub(crate) fn lookup(ctx: &SkLookupContext) {
    let lookup = SockLookup::new(ctx);
    // A UDP socket would answer from the address that it is bound to.
    if lookup.protocol() != u32::from(IPPROTO_TCP) {
        return;
    }
    let service = match lookup.family() {
        AF_INET => assign::<V4>(&lookup),
        AF_INET6 => assign::<V6>(&lookup),
        _ => None,
    };
    if let Some(service) = service {
        maps::count(service, Reason::ListenerAssigned.index(), 0, false);
    }
}

/// The id of the service whose listener takes it.
#[inline(always)]
fn assign<F: Family>(lookup: &SockLookup) -> Option<u32> {
    let (vip, port) = (F::looked_up(lookup), lookup.local_port());
    let asked = ServiceKey::new(vip, port, IPPROTO_TCP);
    let vip_port = maps::find(F::reply_ports(), &asked)?.port();
    let asked = ServiceKey::new(vip, vip_port, IPPROTO_TCP);
    let service = maps::find(F::services(), &asked)?;
    let backend = select::backend::<F>(service.local_backend(), service)?;
    maps::assign_listener::<F>(lookup, service.id(), backend.addr_ref(), port)
        .then_some(service.id())
}

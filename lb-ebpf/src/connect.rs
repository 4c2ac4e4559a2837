//! cgroup hooks: a process on this node that connects to a VIP is sent to a healthy backend at
//! `connect()` time, the local one first. No packet is translated; `getpeername()` shows the VIP.

use aya_ebpf::programs::SockAddrContext;
use lb_common::{
    abi::{
        Backend, BackendCounters, BackendState, ConnectOrigin, FlowKey, NODE_SELF, Service,
        ServiceKey,
    },
    headers::IPPROTO_TCP,
    reason::Reason,
};

use crate::{
    family::{Family, V4, V4Mapped, V6},
    maps,
    packet::SockAddr,
    select::{self, Avoid},
};

/// Let the system call go on.
const ALLOW: i32 = 1;
/// Make the system call fail.
const REFUSE: i32 = 0;
/// `ECONNREFUSED` (asm-generic/errno.h).
const ECONNREFUSED: i32 = 111;

/// `connect()` of family `F`.
#[inline(always)]
pub(crate) fn connect<F: Family>(ctx: &SockAddrContext) -> i32 {
    let addr = SockAddr::new(ctx);
    rewrite::<F>(&addr, F::hooked(&addr), |addr, to| F::set_hooked(addr, to))
}

/// `connect()` of an IPv6 socket, whose destination may be an IPv4-mapped address.
#[inline(always)]
pub(crate) fn connect6(ctx: &SockAddrContext) -> i32 {
    let addr = SockAddr::new(ctx);
    match V4Mapped::unmap(addr.ip6()) {
        Some(vip) => rewrite::<V4>(&addr, vip, |addr, to| addr.set_ip6(V4Mapped::map(to))),
        None => connect::<V6>(ctx),
    }
}

#[inline(always)]
fn rewrite<F: Family>(addr: &SockAddr, vip: F::Addr, set: impl FnOnce(&SockAddr, F::Addr)) -> i32 {
    if addr.protocol() != u32::from(IPPROTO_TCP) {
        return ALLOW;
    }
    let port = addr.port();
    let Some(service) = maps::get(F::services(), &ServiceKey::new(vip, port, IPPROTO_TCP)) else {
        return ALLOW;
    };
    let Some((id, backend, reason)) = choose::<F>(addr, &service) else {
        maps::count(service.id(), Reason::ConnectNoBackend.index(), 0, false);
        maps::set_errno(ECONNREFUSED);
        return REFUSE;
    };
    maps::count(service.id(), reason.index(), 0, true);
    maps::count_backend(id, BackendCounters::connection);
    let origin = ConnectOrigin::new(vip, port, backend.addr(), backend.port(), id);
    // Without the entry getpeername() shows the backend: harmless.
    maps::put_lru(F::connects(), &maps::socket_cookie(addr), &origin);
    set(addr, backend.addr());
    addr.set_port(backend.port());
    ALLOW
}

/// The local backend if it is up and listens, else one by Maglev from a random hash. One that does
/// not listen is not chosen by Maglev either: the kernel knows before the checks do.
#[inline(always)]
fn choose<F: Family>(
    addr: &SockAddr,
    service: &Service,
) -> Option<(u32, &'static Backend<F::Addr>, Reason)> {
    if !service.usable() {
        return None;
    }
    let local = service.local_backend();
    let now = maps::now_seconds();
    let mut avoid = Avoid::NOBODY;
    if local != 0
        && let Some(backend) = select::backend::<F>(local, service)
    {
        if !listens::<F>(addr, backend) {
            avoid.node = NODE_SELF;
        } else if backend.state() == BackendState::Up && !maps::is_suspect(local, now) {
            return Some((local, backend, Reason::ConnectLocal));
        }
    }
    select::select::<F>(service, maps::random(), avoid, now)
        .ok()
        .map(|(id, backend)| (id, backend, Reason::ConnectRemote))
}

/// Whether the local backend listens, asked of the kernel where it can be: a process in another
/// network namespace (a pod) cannot see the node's listeners, there the checks' word counts.
#[inline(always)]
fn listens<F: Family>(addr: &SockAddr, backend: &Backend<F::Addr>) -> bool {
    if !maps::in_node_netns(addr) {
        return true;
    }
    let flow = FlowKey::new(
        backend.addr(),
        0,
        backend.addr(),
        backend.port(),
        IPPROTO_TCP,
    );
    F::listens(addr, &flow)
}

/// `getpeername()` of family `F`.
#[inline(always)]
pub(crate) fn getpeername<F: Family>(ctx: &SockAddrContext) -> i32 {
    let addr = SockAddr::new(ctx);
    show::<F>(&addr, F::hooked(&addr), |addr, to| F::set_hooked(addr, to));
    ALLOW
}

/// `getpeername()` of an IPv6 socket, whose peer may be an IPv4-mapped address.
#[inline(always)]
pub(crate) fn getpeername6(ctx: &SockAddrContext) -> i32 {
    let addr = SockAddr::new(ctx);
    match V4Mapped::unmap(addr.ip6()) {
        Some(peer) => {
            show::<V4>(&addr, peer, |addr, to| addr.set_ip6(V4Mapped::map(to)));
            ALLOW
        }
        None => getpeername::<V6>(ctx),
    }
}

#[inline(always)]
fn show<F: Family>(addr: &SockAddr, peer: F::Addr, set: impl FnOnce(&SockAddr, F::Addr)) {
    let Some(origin) = maps::get_lru(F::connects(), &maps::socket_cookie(addr)) else {
        return;
    };
    if origin.leads_to(peer, addr.port()) {
        set(addr, origin.vip());
        addr.set_port(origin.vip_port());
    }
}

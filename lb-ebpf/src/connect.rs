//! cgroup hooks: a process on this node that connects to a VIP is sent to a healthy backend at
//! `connect()` time, the local one first. No packet is translated; `getpeername()` shows the VIP.
//! UDP sockets that do not connect are `send`'s.

use aya_ebpf::programs::SockAddrContext;
use lb_common::{
    abi::{
        Backend, BackendCounters, BackendState, ConnectOrigin, FlowKey, NODE_SELF, Service,
        ServiceKey,
    },
    headers::{IPPROTO_TCP, IPPROTO_UDP},
    reason::Reason,
};

use crate::{
    family::{Family, V4, V4Mapped, V6},
    maps,
    packet::SockAddr,
    select::{self, Avoid},
};

/// Let the system call go on.
pub(crate) const ALLOW: i32 = 1;
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
    let Some(proto) = protocol(addr) else {
        return ALLOW;
    };
    let port = addr.port();
    let Some(service) = maps::get(F::services(), &ServiceKey::new(vip, port, proto)) else {
        return ALLOW;
    };
    let Some((id, backend)) = choose::<F>(addr, &service, proto, maps::random()) else {
        return refuse(&service);
    };
    let reason = if id == service.local_backend() {
        Reason::ConnectLocal
    } else {
        Reason::ConnectRemote
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

/// TCP or UDP.
#[inline(always)]
fn protocol(addr: &SockAddr) -> Option<u8> {
    let proto = addr.protocol();
    if proto == u32::from(IPPROTO_TCP) {
        Some(IPPROTO_TCP)
    } else if proto == u32::from(IPPROTO_UDP) {
        Some(IPPROTO_UDP)
    } else {
        None
    }
}

/// No backend can take it: the system call fails with `ECONNREFUSED`.
#[inline(always)]
pub(crate) fn refuse(service: &Service) -> i32 {
    maps::count(service.id(), Reason::ConnectNoBackend.index(), 0, false);
    maps::set_errno(ECONNREFUSED);
    REFUSE
}

/// The local backend if it is up and listens, else one by Maglev from `hash`. One that does not
/// listen is not chosen by Maglev either: the kernel knows before the checks do.
#[inline(always)]
pub(crate) fn choose<F: Family>(
    addr: &SockAddr,
    service: &Service,
    proto: u8,
    hash: u32,
) -> Option<(u32, &'static Backend<F::Addr>)> {
    if !service.usable() {
        return None;
    }
    let local = service.local_backend();
    let now = maps::now_seconds();
    let mut avoid = Avoid::NOBODY;
    if local != 0
        && let Some(backend) = select::backend::<F>(local, service)
    {
        if !listens::<F>(addr, backend, proto) {
            avoid.node = NODE_SELF;
        } else if backend.state() == BackendState::Up && !maps::is_suspect(local, now) {
            return Some((local, backend));
        }
    }
    let id = select::select::<F>(service, hash, avoid).ok()?;
    select::backend::<F>(id, service).map(|backend| (id, backend))
}

/// Whether the local backend listens, asked of the kernel where it can be: a process in another
/// network namespace (a pod) cannot see the node's listeners, there the checks' word counts.
#[inline(always)]
fn listens<F: Family>(addr: &SockAddr, backend: &Backend<F::Addr>, proto: u8) -> bool {
    if !maps::in_node_netns(addr) {
        return true;
    }
    let flow = FlowKey::new(backend.addr(), 0, backend.addr(), backend.port(), proto);
    maps::listens::<F>(addr, &flow)
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

/// Show the VIP instead of the backend `peer`, if the socket was connected to it for the VIP;
/// whether it was.
#[inline(always)]
pub(crate) fn show<F: Family>(
    addr: &SockAddr,
    peer: F::Addr,
    set: impl FnOnce(&SockAddr, F::Addr),
) -> bool {
    let Some(origin) = maps::get_lru(F::connects(), &maps::socket_cookie(addr)) else {
        return false;
    };
    let leads = origin.leads_to(peer, addr.port());
    if leads {
        set(addr, origin.vip());
        addr.set_port(origin.vip_port());
    }
    leads
}

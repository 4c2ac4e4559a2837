//! cgroup hooks for UDP sockets of this node's processes that send to a VIP without `connect()`: each
//! datagram goes to a healthy backend, and the answers seem to come from the VIP.
//!
//! A socket's datagrams for a service go to the same backend as long as the service's table says so:
//! the local one, or one that the socket's number selects. So nothing is remembered but whom the
//! answers are for.

use aya_ebpf::programs::SockAddrContext;
use lb_common::{
    abi::{Address as _, BackendCounters, ServiceKey, sends::SendKey},
    hash,
    headers::IPPROTO_UDP,
    reason::Reason,
};

use crate::{
    connect::{self, ALLOW, choose, refuse},
    family::{Family, V4, V4Mapped, V6},
    maps,
    packet::SockAddr,
};

/// `sendmsg()` of family `F`. (For a mapped address on an IPv6 socket the kernel calls the hook for
/// IPv4.)
#[inline(always)]
pub(crate) fn sendmsg<F: Family>(ctx: &SockAddrContext) -> i32 {
    let addr = SockAddr::new(ctx);
    if addr.protocol() != u32::from(IPPROTO_UDP) {
        return ALLOW;
    }
    let asked = ServiceKey::new(F::hooked(&addr), addr.port(), IPPROTO_UDP);
    let Some(service) = maps::get(F::services(), &asked) else {
        return ALLOW;
    };
    let cookie = maps::socket_cookie(&addr);
    let hash = (hash::mix(cookie) >> 32) as u32;
    let Some((id, backend)) = choose::<F>(&addr, &service, IPPROTO_UDP, hash) else {
        return refuse(&service);
    };
    let reason = if id == service.local_backend() {
        Reason::SendLocal
    } else {
        Reason::SendRemote
    };
    let key = SendKey::new(cookie, backend.addr(), backend.port());
    let known = maps::find_lru(F::sends(), &key)
        .is_some_and(|known| known.vip().same(&asked.vip()) && known.port() == asked.port());
    if !known {
        // Without the entry answers seem to come from the backend.
        maps::put_lru(F::sends(), &key, &asked);
        maps::count_backend(id, BackendCounters::connection);
    }
    maps::count(service.id(), reason.index(), 0, !known);
    F::set_hooked(&addr, backend.addr());
    addr.set_port(backend.port());
    ALLOW
}

/// `recvmsg()` of family `F`.
#[inline(always)]
pub(crate) fn recvmsg<F: Family>(ctx: &SockAddrContext) -> i32 {
    let addr = SockAddr::new(ctx);
    answered::<F>(&addr, F::hooked(&addr), |addr, to| F::set_hooked(addr, to));
    ALLOW
}

/// `recvmsg()` of an IPv6 socket, whose datagram may come from an IPv4-mapped address.
#[inline(always)]
pub(crate) fn recvmsg6(ctx: &SockAddrContext) -> i32 {
    let addr = SockAddr::new(ctx);
    match V4Mapped::unmap(addr.ip6()) {
        Some(from) => {
            answered::<V4>(&addr, from, |addr, to| addr.set_ip6(V4Mapped::map(to)));
            ALLOW
        }
        None => recvmsg::<V6>(ctx),
    }
}

/// Show the VIP as the source, if the socket asked `from` for the VIP.
#[inline(always)]
fn answered<F: Family>(addr: &SockAddr, from: F::Addr, set: impl Fn(&SockAddr, F::Addr)) {
    if connect::show::<F>(addr, from, &set) {
        return;
    }
    let key = SendKey::new(maps::socket_cookie(addr), from, addr.port());
    if let Some(asked) = maps::get_lru(F::sends(), &key) {
        set(addr, asked.vip());
        addr.set_port(asked.port());
    }
}

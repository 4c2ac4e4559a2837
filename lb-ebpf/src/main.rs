//! xvip's eBPF programs. Each one gathers facts, runs the pipeline for a [`Reason`] and
//! executes the reason's verdict; the calculations are lb-common's.
//!
//! `unsafe` lives in `packet` (packet and context access), `maps` (maps and the kernel's own
//! tables and clocks) and `forward` (redirection), nowhere else.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
// The macros of the programs make an undocumented function around each documented one, and take
// contexts by value.
#![allow(missing_docs, clippy::needless_pass_by_value)]

mod connect;
mod conntrack;
mod decision;
mod egress;
mod family;
mod fence;
mod forward;
mod icmp;
mod ingress;
mod log;
mod lookup;
mod maps;
mod nat;
mod newflow;
mod packet;
mod parse;
mod respond;
mod select;
mod send;
mod stages;
mod trace;
mod vmac;

use aya_ebpf::{
    bindings::{sk_action, tcx_action_base, xdp_action},
    macros::{cgroup_sock_addr, classifier, sk_lookup, xdp},
    programs::{SkLookupContext, SockAddrContext, TcContext, XdpContext},
};
use lb_common::reason::Verdict;

use crate::{
    decision::Decision,
    family::{V4, V6},
    packet::Context as _,
};

/// Forwards what is addressed to a VIP: attached to each uplink where the driver runs XDP.
#[xdp(frags)]
#[inline(always)]
pub(crate) fn xdp_ingress(ctx: XdpContext) -> u32 {
    let length = ctx.length();
    let decision = ingress::ingress(&ctx, length as u64);
    count(decision, length);
    match decision.verdict() {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
        Verdict::Tx => xdp_action::XDP_TX,
        Verdict::Redirect => forward::redirect(decision.ifindex()),
    }
}

/// The same pipeline on a socket buffer: attached to each uplink where XDP would be slow.
#[classifier]
#[inline(always)]
pub(crate) fn tc_ingress(ctx: TcContext) -> i32 {
    let length = ctx.length();
    if !packet::pull_headers(&ctx) {
        return tcx_action_base::TCX_NEXT;
    }
    let decision = ingress::ingress(&ctx, length as u64);
    count(decision, length);
    match decision.verdict() {
        Verdict::Pass => tcx_action_base::TCX_NEXT,
        Verdict::Drop => tcx_action_base::TCX_DROP,
        Verdict::Tx => forward::redirect(ctx.ifindex()).cast_signed(),
        Verdict::Redirect => forward::redirect(decision.ifindex()).cast_signed(),
    }
}

#[inline(always)]
fn count(decision: Decision, length: usize) {
    maps::count(
        decision.service(),
        decision.reason(),
        length as u64,
        decision.is_new_connection(),
    );
}

/// Passes everything. `XDP_TX` and `XDP_REDIRECT` to one end of a veth pair deliver only if the
/// other end runs an XDP program as well.
#[xdp]
pub(crate) fn xdp_stub(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Gives the replies of local backends the VIP's port and holds back ARP and ND for VIPs that
/// this node has no lease for: attached to each uplink.
#[classifier]
pub(crate) fn tc_egress(ctx: TcContext) -> i32 {
    let reason = egress::egress(&ctx);
    maps::count(0, reason.index(), u64::from(ctx.len()), false);
    match reason.verdict() {
        Verdict::Pass => tcx_action_base::TCX_NEXT,
        // Egress has no reason that sends a packet elsewhere.
        Verdict::Drop | Verdict::Tx | Verdict::Redirect => tcx_action_base::TCX_DROP,
    }
}

/// Gives connections to VIPs to listeners that are bound to the node's address: attached to the
/// node's network namespace. (Not named as its section: the linker would mix them up.)
#[sk_lookup]
pub(crate) fn socket_lookup(ctx: SkLookupContext) -> u32 {
    lookup::lookup(&ctx);
    // Without a name the kernel looks on by itself.
    sk_action::SK_PASS
}

/// Sends a local process's IPv4 connect(VIP:port) to a healthy backend.
#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    connect::connect::<V4>(&ctx)
}

/// Sends a local process's IPv6 connect(VIP:port) to a healthy backend, also when the address
/// is an IPv4-mapped one.
#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    connect::connect6(&ctx)
}

/// Shows the VIP as the peer of a connection that `connect4` redirected.
#[cgroup_sock_addr(getpeername4)]
pub(crate) fn getpeername4(ctx: SockAddrContext) -> i32 {
    connect::getpeername::<V4>(&ctx)
}

/// Shows the VIP as the peer of a connection that `connect6` redirected.
#[cgroup_sock_addr(getpeername6)]
pub(crate) fn getpeername6(ctx: SockAddrContext) -> i32 {
    connect::getpeername6(&ctx)
}

/// Sends a local process's IPv4 datagram for VIP:port to a healthy backend.
#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn sendmsg4(ctx: SockAddrContext) -> i32 {
    send::sendmsg::<V4>(&ctx)
}

/// Sends a local process's IPv6 datagram for VIP:port to a healthy backend.
#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn sendmsg6(ctx: SockAddrContext) -> i32 {
    send::sendmsg::<V6>(&ctx)
}

/// Shows the VIP as the source of a datagram that answers a redirected one.
#[cgroup_sock_addr(recvmsg4)]
pub(crate) fn recvmsg4(ctx: SockAddrContext) -> i32 {
    send::recvmsg::<V4>(&ctx)
}

/// Shows the VIP as the source of a datagram that answers a redirected one.
#[cgroup_sock_addr(recvmsg6)]
pub(crate) fn recvmsg6(ctx: SockAddrContext) -> i32 {
    send::recvmsg6(&ctx)
}

/// Loops forever, which the verifier refuses: an object with a reachable panic does not load.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Kernel helpers that are GPL-only need this licence string.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

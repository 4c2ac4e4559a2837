//! What the benchmark measures the data plane against, in an object of its own that is not
//! shipped: an empty program, one that parses and sends back, and one that looks a flow up as
//! well. And `restore`, which puts the packet back as it was and goes on with the program under
//! test, so that a program run with `repeat` meets the same packet each time. Each of them once for
//! XDP and once for tc.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
// As in the data plane's own main file.
#![allow(missing_docs, clippy::needless_pass_by_value)]

use core::arch::asm;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    btf_maps::{Array, LruHashMap, ProgramArray},
    helpers::bpf_redirect,
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};
use lb_common::{
    abi::{Flow, FlowKey, MAX_FLOWS},
    headers::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, EthAddresses, EthHeader,
        IPPROTO_TCP, Ipv4Header, Ipv6Header, TcpHeader, VlanTag, Wire,
    },
};

/// The packet as it shall be before each run, as words: enough for Ethernet, IPv6 and TCP
/// headers.
type Words = [u64; 10];

#[btf_map(name = "original")]
static ORIGINAL: Array<Words, 1> = Array::new();
/// The program under test.
#[btf_map(name = "next")]
static NEXT: ProgramArray<1> = ProgramArray::new();
/// The same for tc.
#[btf_map(name = "tc_next")]
static TC_NEXT: ProgramArray<1> = ProgramArray::new();
#[btf_map(name = "floor_flows4")]
static FLOWS4: LruHashMap<FlowKey<[u8; 4]>, Flow, { MAX_FLOWS as usize }> = LruHashMap::new();
#[btf_map(name = "floor_flows6")]
static FLOWS6: LruHashMap<FlowKey<[u8; 16]>, Flow, { MAX_FLOWS as usize }> = LruHashMap::new();

/// A frame in memory.
trait Frame {
    /// Address of its first byte.
    fn start(&self) -> usize;
    /// Address after its last byte.
    fn end(&self) -> usize;
}

impl Frame for XdpContext {
    #[inline(always)]
    fn start(&self) -> usize {
        self.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.data_end()
    }
}

impl Frame for TcContext {
    #[inline(always)]
    fn start(&self) -> usize {
        self.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.data_end()
    }
}

/// Does nothing: what any program costs.
#[xdp(frags)]
pub(crate) fn empty(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// The same.
#[classifier]
pub(crate) fn tc_empty(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Reads and checks the headers, swaps the MACs and sends the packet back.
#[xdp(frags)]
pub(crate) fn parse(ctx: XdpContext) -> u32 {
    action(parsed(&ctx, |_| true, |_| true))
}

/// The same.
#[classifier]
pub(crate) fn tc_parse(ctx: TcContext) -> i32 {
    let sent = parsed(&ctx, |_| true, |_| true);
    tc_action(&ctx, sent)
}

/// The same, for a packet whose flow is known.
#[xdp(frags)]
pub(crate) fn lookup(ctx: XdpContext) -> u32 {
    action(parsed(&ctx, known4, known6))
}

/// The same.
#[classifier]
pub(crate) fn tc_lookup(ctx: TcContext) -> i32 {
    let sent = parsed(&ctx, known4, known6);
    tc_action(&ctx, sent)
}

/// Restores the packet and becomes the program under test.
#[xdp(frags)]
pub(crate) fn restore(ctx: XdpContext) -> u32 {
    if restored(&ctx) {
        // SAFETY: nothing here needs to be dropped.
        unsafe { NEXT.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

/// The same.
#[classifier]
pub(crate) fn tc_restore(ctx: TcContext) -> i32 {
    if restored(&ctx) {
        // SAFETY: nothing here needs to be dropped.
        unsafe { TC_NEXT.tail_call(&ctx, 0) };
    }
    TC_ACT_SHOT
}

#[inline(always)]
fn restored(ctx: &impl Frame) -> bool {
    let (Some(words), Some(to)) = (ORIGINAL.get(0), pointer::<Words>(ctx, 0)) else {
        return false;
    };
    for (index, word) in words.iter().enumerate() {
        // Volatile, or the loop becomes a call to one that copies bytes.
        // SAFETY: `pointer` checked the length, and frames of program runs start at an address
        // that is a multiple of 8.
        unsafe { to.cast::<u64>().add(index).write_volatile(*word) };
    }
    true
}

#[inline(always)]
fn known4(key: &FlowKey<[u8; 4]>) -> bool {
    // SAFETY: nothing but the backend's number is read, at once.
    unsafe { FLOWS4.get(key) }.is_some_and(live)
}

#[inline(always)]
fn known6(key: &FlowKey<[u8; 16]>) -> bool {
    // SAFETY: as above.
    unsafe { FLOWS6.get(key) }.is_some_and(live)
}

#[inline(always)]
fn live(flow: &Flow) -> bool {
    flow.backend() != 0
}

#[inline(always)]
fn action(sent: Option<bool>) -> u32 {
    match sent {
        Some(true) => xdp_action::XDP_TX,
        Some(false) | None => xdp_action::XDP_DROP,
    }
}

#[inline(always)]
fn tc_action(ctx: &TcContext, sent: Option<bool>) -> i32 {
    match sent {
        // SAFETY: the kernel checks the index.
        Some(true) => unsafe { bpf_redirect((*ctx.skb.skb).ifindex, 0) as i32 },
        Some(false) | None => TC_ACT_SHOT,
    }
}

/// Parses the packet, asks about its flow, and turns it round. `None`: not well-formed TCP.
#[inline(always)]
fn parsed(
    ctx: &impl Frame,
    known4: impl FnOnce(&FlowKey<[u8; 4]>) -> bool,
    known6: impl FnOnce(&FlowKey<[u8; 16]>) -> bool,
) -> Option<bool> {
    let ethernet: EthHeader = load(ctx, 0)?;
    let mut ethertype = ethernet.ethertype();
    let mut l3 = EthHeader::LEN;
    for _ in 0..2 {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            break;
        }
        let tag: VlanTag = load(ctx, l3)?;
        ethertype = tag.ethertype();
        l3 += VlanTag::LEN;
    }
    let known = match ethertype {
        ETHERTYPE_IPV4 => {
            let ip: Ipv4Header = load(ctx, l3)?;
            let length = ip.header_len();
            if ip.version() != 4 || length < Ipv4Header::LEN || ip.is_fragment() {
                return None;
            }
            let end = l3 + usize::from(ip.total_length());
            let (sport, dport) = tcp(ctx, ip.protocol, l3 + length, end)?;
            known4(&FlowKey::new(ip.src, sport, ip.dst, dport, IPPROTO_TCP))
        }
        ETHERTYPE_IPV6 => {
            let ip: Ipv6Header = load(ctx, l3)?;
            if ip.version() != 6 {
                return None;
            }
            let l4 = l3 + Ipv6Header::LEN;
            let end = l4 + usize::from(ip.payload_length());
            let (sport, dport) = tcp(ctx, ip.next_header, l4, end)?;
            known6(&FlowKey::new(ip.src, sport, ip.dst, dport, IPPROTO_TCP))
        }
        _ => return None,
    };
    let turned = EthAddresses {
        dst: ethernet.src,
        src: ethernet.dst,
    };
    Some(known && store(ctx, 0, turned))
}

/// The ports of a TCP segment whose lengths fit.
#[inline(always)]
fn tcp(ctx: &impl Frame, proto: u8, l4: usize, end: usize) -> Option<(u16, u16)> {
    if proto != IPPROTO_TCP || ctx.start() + end > ctx.end() || end < l4 + TcpHeader::LEN {
        return None;
    }
    let header: TcpHeader = load(ctx, l4)?;
    let length = header.header_len();
    if length < TcpHeader::LEN || length > end - l4 || header.flags & TcpHeader::ACK == 0 {
        return None;
    }
    Some((header.sport(), header.dport()))
}

#[inline(always)]
fn pointer<T>(ctx: &impl Frame, offset: usize) -> Option<*mut T> {
    let mut start = ctx.start() + offset;
    // SAFETY: moves a register to itself: the access then uses the very register that was
    // compared, as the verifier wants it.
    unsafe { asm!("{0} = {0}", inout(reg) start, options(pure, nomem, nostack)) };
    (start + size_of::<T>() <= ctx.end()).then_some(start as *mut T)
}

#[inline(always)]
fn load<T: Wire>(ctx: &impl Frame, offset: usize) -> Option<T> {
    // SAFETY: the length is checked; `Wire` types have alignment 1 and take any bytes.
    pointer(ctx, offset).map(|at: *mut T| unsafe { at.read() })
}

#[inline(always)]
fn store<T: Wire>(ctx: &impl Frame, offset: usize, value: T) -> bool {
    match pointer::<T>(ctx, offset) {
        // SAFETY: as in `load`.
        Some(at) => unsafe {
            at.write(value);
            true
        },
        None => false,
    }
}

/// Loops forever, which the verifier refuses.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some kernel helpers want this licence string.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

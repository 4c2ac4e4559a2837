//! What the benchmark measures the data plane against, in an object of its own that is not
//! shipped: an empty program, one that parses and sends back, and one that looks a flow up as
//! well. And `restore`, which puts the packet back as it was and goes on with the program under
//! test, so that a program run with `repeat` meets the same packet each time.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
// As in the data plane's own main file.
#![allow(missing_docs, clippy::needless_pass_by_value)]

use core::arch::asm;

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, LruHashMap, ProgramArray},
    macros::{btf_map, xdp},
    programs::XdpContext,
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
#[btf_map(name = "floor_flows4")]
static FLOWS4: LruHashMap<FlowKey<[u8; 4]>, Flow, { MAX_FLOWS as usize }> = LruHashMap::new();
#[btf_map(name = "floor_flows6")]
static FLOWS6: LruHashMap<FlowKey<[u8; 16]>, Flow, { MAX_FLOWS as usize }> = LruHashMap::new();

/// Does nothing: what any program costs.
#[xdp]
pub(crate) fn empty(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Reads and checks the headers, swaps the MACs and sends the packet back.
#[xdp]
pub(crate) fn parse(ctx: XdpContext) -> u32 {
    action(parsed(&ctx, |_| true, |_| true))
}

/// The same, for a packet whose flow is known.
#[xdp]
pub(crate) fn lookup(ctx: XdpContext) -> u32 {
    // SAFETY: nothing but the backend's number is read, at once.
    let known4 = |key: &FlowKey<[u8; 4]>| unsafe { FLOWS4.get(key) }.is_some_and(live);
    // SAFETY: as above.
    let known6 = |key: &FlowKey<[u8; 16]>| unsafe { FLOWS6.get(key) }.is_some_and(live);
    action(parsed(&ctx, known4, known6))
}

/// Restores the packet and becomes the program under test.
#[xdp]
pub(crate) fn restore(ctx: XdpContext) -> u32 {
    if let (Some(words), Some(to)) = (ORIGINAL.get(0), pointer::<Words>(&ctx, 0)) {
        for (index, word) in words.iter().enumerate() {
            // Volatile, or the loop becomes a call to one that copies bytes.
            // SAFETY: `pointer` checked the length, and frames of program runs start at an
            // address that is a multiple of 8.
            unsafe { to.cast::<u64>().add(index).write_volatile(*word) };
        }
        // SAFETY: nothing here needs to be dropped.
        unsafe { NEXT.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
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

/// Parses the packet, asks about its flow, and turns it round. `None`: not well-formed TCP.
#[inline(always)]
fn parsed(
    ctx: &XdpContext,
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
fn tcp(ctx: &XdpContext, proto: u8, l4: usize, end: usize) -> Option<(u16, u16)> {
    if proto != IPPROTO_TCP || ctx.data() + end > ctx.data_end() || end < l4 + TcpHeader::LEN {
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
fn pointer<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let mut start = ctx.data() + offset;
    // SAFETY: moves a register to itself: the access then uses the very register that was
    // compared, as the verifier wants it.
    unsafe { asm!("{0} = {0}", inout(reg) start, options(pure, nomem, nostack)) };
    (start + size_of::<T>() <= ctx.data_end()).then_some(start as *mut T)
}

#[inline(always)]
fn load<T: Wire>(ctx: &XdpContext, offset: usize) -> Option<T> {
    // SAFETY: the length is checked; `Wire` types have alignment 1 and take any bytes.
    pointer(ctx, offset).map(|at: *mut T| unsafe { at.read() })
}

#[inline(always)]
fn store<T: Wire>(ctx: &XdpContext, offset: usize, value: T) -> bool {
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

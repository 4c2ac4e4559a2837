//! Packet and context access: the one bounds check, and the few context fields that programs
//! read or write. Everything here is safe to call.

use core::{arch::asm, ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, bpf_sk_lookup, bpf_sock_addr},
    helpers::{
        bpf_skb_change_tail, bpf_skb_load_bytes, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len,
        bpf_xdp_load_bytes,
    },
    programs::{SkLookupContext, SockAddrContext, TcContext, XdpContext},
};
use lb_common::{
    abi::{Address, FlowKey, Mac},
    checksum::Delta,
    headers::{EthHeader, Wire},
};

use crate::maps;

/// A program's view of the frame, implemented by XDP and tc contexts.
pub(crate) trait Context {
    /// Address of the first byte of the frame.
    fn data(&self) -> usize;
    /// Address after the last directly accessible byte of the frame.
    fn data_end(&self) -> usize;
    /// Interface that the frame came in (or goes out) through.
    fn ifindex(&self) -> u32;
    /// The context as kernel helpers take it.
    fn raw(&self) -> *mut c_void;
    /// Length of the whole frame in bytes, also of what is not directly accessible.
    fn length(&self) -> usize;
    /// VLAN id of a tag that is not in the frame any more; 0: none.
    fn taken_tag(&self) -> u16;
    /// Have the kernel take the frame for one to `mac`, the interface's own; false if it has no Ethernet
    /// header.
    fn address_to(&self, mac: Mac) -> bool;
    /// Cut the frame to `length` bytes; false if that is not possible.
    fn trim(&self, length: usize) -> bool;
    /// Make the first `length` bytes (all, if there are fewer) directly accessible; false if that is
    /// not possible.
    fn pull(&self, length: usize) -> bool;
    /// Copy the first `length` bytes at `offset` of the frame to `to`; false if they are not there.
    fn copy(&self, offset: usize, to: &mut [u8; CHUNK], length: usize) -> bool;
    /// Correct the upper-layer checksum at `at`, which is `old` now, for changes of the
    /// pseudo-header and of the covered bytes; `udp`: where 0 says that there is none. False if it
    /// is not there.
    fn fix_checksum(&self, at: usize, old: [u8; 2], pseudo: Delta, body: Delta, udp: bool) -> bool;
    /// Whether the checksum at `at`, which is `old` now, is left to the device: then it covers only
    /// the pseudo-header, and the device adds the rest.
    fn checksum_is_partial(&self, at: usize, old: [u8; 2]) -> bool;
}

/// `PACKET_HOST` of `linux/if_packet.h`: a socket buffer's frame is for this node.
const PACKET_HOST: u32 = 0;

/// Bytes that [`Context::copy`] copies at most: what `bpf_csum_diff` takes on all kernels.
pub(crate) const CHUNK: usize = 512;

/// Bound of the offsets that [`copy_linear`] reads at, for the verifier: longer than any segment whose
/// checksum is verified.
const MAX_OFFSET: usize = 0x3fff;

impl Context for XdpContext {
    #[inline(always)]
    fn data(&self) -> usize {
        XdpContext::data(self)
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        XdpContext::data_end(self)
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // The field is 32 bits wide.
        self.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn raw(&self) -> *mut c_void {
        self.as_ptr()
    }

    #[inline(always)]
    fn length(&self) -> usize {
        if !maps::kernel_has(&maps::XDP_BUFFERS) {
            return linear(self);
        }
        // SAFETY: the program's own context.
        unsafe { bpf_xdp_get_buff_len(self.ctx) as usize }
    }

    #[inline(always)]
    fn taken_tag(&self) -> u16 {
        0
    }

    /// The kernel looks at the MAC after the program.
    #[inline(always)]
    fn address_to(&self, mac: Mac) -> bool {
        store(self, EthHeader::DST, mac)
    }

    #[inline(always)]
    fn trim(&self, length: usize) -> bool {
        let delta = length as i32 - self.length() as i32;
        // SAFETY: the program's own context; packet pointers are made anew for each access.
        unsafe { bpf_xdp_adjust_tail(self.ctx, delta) == 0 }
    }

    /// Headers are in the first buffer.
    #[inline(always)]
    fn pull(&self, _length: usize) -> bool {
        true
    }

    #[inline(always)]
    fn copy(&self, offset: usize, to: &mut [u8; CHUNK], length: usize) -> bool {
        if !maps::kernel_has(&maps::XDP_BUFFERS) {
            return copy_linear(self, offset, to, length);
        }
        let to = to.as_mut_ptr().cast();
        // SAFETY: callers pass at most CHUNK bytes, which the verifier checks.
        unsafe { bpf_xdp_load_bytes(self.ctx, offset as u32, to, length as u32) == 0 }
    }

    #[inline(always)]
    fn fix_checksum(&self, at: usize, old: [u8; 2], pseudo: Delta, body: Delta, udp: bool) -> bool {
        let mut new = u16::from_ne_bytes(pseudo.plus(body).apply(old));
        if udp {
            if u16::from_ne_bytes(old) == 0 {
                return true;
            }
            if new == 0 {
                new = u16::MAX;
            }
        }
        store(self, at, new.to_ne_bytes())
    }

    #[inline(always)]
    fn checksum_is_partial(&self, _at: usize, _old: [u8; 2]) -> bool {
        false
    }
}

impl Context for TcContext {
    #[inline(always)]
    fn data(&self) -> usize {
        TcContext::data(self)
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        TcContext::data_end(self)
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is the valid `__sk_buff` that the kernel called the program with.
        unsafe { (*self.skb.skb).ifindex }
    }

    #[inline(always)]
    fn raw(&self) -> *mut c_void {
        self.as_ptr()
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.len() as usize
    }

    #[inline(always)]
    fn taken_tag(&self) -> u16 {
        // SAFETY: as in `ifindex`.
        let (present, tci) = unsafe { ((*self.skb.skb).vlan_present, (*self.skb.skb).vlan_tci) };
        if present == 0 { 0 } else { tci as u16 & 0xfff }
    }

    /// The kernel has looked at the MAC before the program.
    #[inline(always)]
    fn address_to(&self, mac: Mac) -> bool {
        store(self, EthHeader::DST, mac) && self.change_type(PACKET_HOST).is_ok()
    }

    #[inline(always)]
    fn trim(&self, length: usize) -> bool {
        // SAFETY: as in `ifindex`; packet pointers are made anew for each access.
        unsafe { bpf_skb_change_tail(self.skb.skb, length as u32, 0) == 0 }
    }

    #[inline(always)]
    fn pull(&self, length: usize) -> bool {
        let whole = self.length();
        if linear(self) >= length || whole <= linear(self) {
            return true;
        }
        let wanted = if whole < length { whole } else { length };
        self.pull_data(wanted as u32).is_ok()
    }

    #[inline(always)]
    fn copy(&self, offset: usize, to: &mut [u8; CHUNK], length: usize) -> bool {
        let to = to.as_mut_ptr().cast();
        // SAFETY: callers pass at most CHUNK bytes, which the verifier checks.
        unsafe { bpf_skb_load_bytes(self.raw(), offset as u32, to, length as u32) == 0 }
    }

    /// The helper knows whether the checksum is left to the device (it then covers the
    /// pseudo-header only), and keeps a sum that the device has computed over the packet right.
    #[inline(always)]
    fn fix_checksum(
        &self,
        at: usize,
        _old: [u8; 2],
        pseudo: Delta,
        body: Delta,
        udp: bool,
    ) -> bool {
        let flags = if udp { BPF_F_MARK_MANGLED_0 } else { 0 };
        let of_header = u64::from(flags | BPF_F_PSEUDO_HDR);
        (pseudo.is_zero()
            || self
                .l4_csum_replace(at, 0, u64::from(pseudo.wsum()), of_header)
                .is_ok())
            && self
                .l4_csum_replace(at, 0, u64::from(body.wsum()), u64::from(flags))
                .is_ok()
    }

    /// No field of the context says so. The helper leaves such a checksum alone when bytes change
    /// that the device will add: so a change that is not one of the sum's shows it.
    #[inline(always)]
    fn checksum_is_partial(&self, at: usize, old: [u8; 2]) -> bool {
        const PROBE: u64 = 1;
        if self.l4_csum_replace(at, 0, PROBE, 0).is_err() {
            return false;
        }
        let unchanged = load::<Self, [u8; 2]>(self, at)
            .is_some_and(|now| u16::from_ne_bytes(now) == u16::from_ne_bytes(old));
        unchanged || !store(self, at, old)
    }
}

/// [`Context::copy`] of a frame that lies in one buffer, for kernels without a helper for that.
#[inline(always)]
fn copy_linear<C: Context>(ctx: &C, offset: usize, to: &mut [u8; CHUNK], length: usize) -> bool {
    const WORD: usize = 8;
    let (words, rest) = to.as_chunks_mut::<WORD>();
    debug_assert!(rest.is_empty());
    let mut at = offset & MAX_OFFSET;
    let mut left = length;
    for word in words {
        if left < WORD {
            return copy_rest(ctx, at, word, left);
        }
        let Some(bytes) = load(ctx, at) else {
            return false;
        };
        *word = bytes;
        at += WORD;
        left -= WORD;
    }
    true
}

/// Copy the last `length` bytes, fewer than a word.
#[inline(always)]
fn copy_rest<C: Context>(ctx: &C, offset: usize, to: &mut [u8; 8], length: usize) -> bool {
    for (at, byte) in to.iter_mut().enumerate() {
        if at >= length {
            break;
        }
        let Some(read) = load(ctx, offset + at) else {
            return false;
        };
        *byte = read;
    }
    true
}

/// Whether the packet was received by this node, whatever its way was since.
#[inline(always)]
pub(crate) fn came_in(ctx: &TcContext) -> bool {
    // SAFETY: the context is the valid `__sk_buff` that the kernel called the program with.
    unsafe { (*ctx.skb.skb).ingress_ifindex != 0 }
}

/// Length of the directly accessible part of the frame in bytes.
#[inline(always)]
pub(crate) fn linear<C: Context>(ctx: &C) -> usize {
    ctx.data_end() - ctx.data()
}

/// Whether the frame has at least `length` bytes.
///
/// Lengths are compared, not pointers: verifiers before Linux 6.14 refuse to add a length that they
/// know no bound of to a packet pointer.
#[inline(always)]
pub(crate) fn holds<C: Context>(ctx: &C, length: usize) -> bool {
    length <= linear(ctx) || length <= ctx.length()
}

/// The only bounds check: a pointer to a `T` at `offset`, if all of it lies in the frame.
#[inline(always)]
fn pointer<C: Context, T: Wire>(ctx: &C, offset: usize) -> Option<*mut T> {
    let start = opaque(ctx.data() + offset);
    if start + size_of::<T>() > ctx.data_end() {
        None
    } else {
        Some(start as *mut T)
    }
}

/// The same value, of which LLVM knows nothing: the access then uses the very register that the
/// check compared. Otherwise LLVM may compute the address once more for the access, and the
/// verifier does not see that both are the same.
#[inline(always)]
fn opaque(mut address: usize) -> usize {
    // (An empty template would leave two line infos at one instruction, which the kernel refuses.)
    // SAFETY: moves a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) address, options(pure, nomem, nostack)) };
    address
}

/// The same sum, computed here and now: LLVM would load all words of the addresses, keep them on the
/// stack and sum them up where the sum is needed.
#[inline(always)]
pub(crate) fn settled(mut sum: u64) -> u64 {
    // SAFETY: moves a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) sum, options(nomem, nostack)) };
    sum
}

/// The same value in a register that the verifier takes for no copy of another one. That of Linux 7.0
/// remembers what a constant added to a copy, and goes on adding it to pointers that are made from
/// what is computed of it.
#[inline(always)]
pub(crate) fn unlinked(value: u32) -> u32 {
    let mut value = u64::from(value);
    // SAFETY: changes nothing.
    unsafe { asm!("{0} |= 0", inout(reg) value, options(nomem, nostack)) };
    value as u32
}

/// Words of a [`Wire`] type that are moved at once at most, see [`fetch`].
macro_rules! for_words {
    ($word:ident) => {
        $word!(0);
        $word!(4);
        $word!(8);
        $word!(12);
        $word!(16);
        $word!(20);
        $word!(24);
        $word!(28);
        $word!(32);
        $word!(36);
    };
}

/// Longest type that is moved by [`for_words`].
const LONGEST: usize = 40;

/// Read a `T` by words. Its alignment is 1, and LLVM would read it byte by byte and put the words
/// together again: it does not know that BPF may access frames at any address.
///
/// # Safety
/// All of `T` at `from` must be readable.
#[inline(always)]
unsafe fn fetch<T: Wire>(from: *const T) -> T {
    const { assert!(size_of::<T>() <= LONGEST) };
    let mut value = MaybeUninit::<T>::uninit();
    let to = value.as_mut_ptr().cast::<u8>();
    macro_rules! word {
        ($at:literal) => {
            // SAFETY: within `T`, by the conditions, which the compiler evaluates.
            unsafe {
                if size_of::<T>() >= $at + 4 {
                    let word: u64;
                    asm!("{0} = *(u32 *)({1} + {2})", out(reg) word, in(reg) from, const $at, options(pure, readonly, nostack));
                    to.add($at).cast::<u32>().write_unaligned(word as u32);
                } else {
                    if size_of::<T>() >= $at + 2 {
                        let word: u64;
                        asm!("{0} = *(u16 *)({1} + {2})", out(reg) word, in(reg) from, const $at, options(pure, readonly, nostack));
                        to.add($at).cast::<u16>().write_unaligned(word as u16);
                    }
                    if size_of::<T>() > $at && size_of::<T>() % 2 == 1 {
                        let word: u64;
                        asm!("{0} = *(u8 *)({1} + {2})", out(reg) word, in(reg) from, const { size_of::<T>() as i16 - 1 }, options(pure, readonly, nostack));
                        to.add(size_of::<T>() - 1).write(word as u8);
                    }
                }
            }
        };
    }
    for_words!(word);
    // SAFETY: every byte was written, and `Wire` types take any bytes.
    unsafe { value.assume_init() }
}

/// The inverse of [`fetch`].
///
/// # Safety
/// All of `T` at `to` must be writable.
#[inline(always)]
unsafe fn put<T: Wire>(to: *mut T, value: &T) {
    const { assert!(size_of::<T>() <= LONGEST) };
    let from = core::ptr::from_ref(value).cast::<u8>();
    macro_rules! word {
        ($at:literal) => {
            // SAFETY: within `T`, by the conditions, which the compiler evaluates.
            unsafe {
                if size_of::<T>() >= $at + 4 {
                    let word = u64::from(from.add($at).cast::<u32>().read_unaligned());
                    asm!("*(u32 *)({1} + {2}) = {0}", in(reg) word, in(reg) to, const $at, options(nostack));
                } else {
                    if size_of::<T>() >= $at + 2 {
                        let word = u64::from(from.add($at).cast::<u16>().read_unaligned());
                        asm!("*(u16 *)({1} + {2}) = {0}", in(reg) word, in(reg) to, const $at, options(nostack));
                    }
                    if size_of::<T>() > $at && size_of::<T>() % 2 == 1 {
                        let word = u64::from(from.add(size_of::<T>() - 1).read());
                        asm!("*(u8 *)({1} + {2}) = {0}", in(reg) word, in(reg) to, const { size_of::<T>() as i16 - 1 }, options(nostack));
                    }
                }
            }
        };
    }
    for_words!(word);
}

/// Copy the two addresses at `offset` to those of `key`; false if they are not there.
#[inline(always)]
pub(crate) fn load_addresses<C: Context, A: Address + Wire>(
    ctx: &C,
    offset: usize,
    key: &mut FlowKey<A>,
) -> bool {
    let Some(from) = pointer::<C, [A; 2]>(ctx, offset) else {
        return false;
    };
    // SAFETY: `pointer` checked the frame; a key begins with its two addresses.
    unsafe { copy_addresses::<A>(from.cast(), core::ptr::from_mut(key).cast()) };
    true
}

/// Copy two addresses by words, not by way of registers for all of them.
///
/// # Safety
/// Both pointers must be good for two addresses.
#[inline(always)]
unsafe fn copy_addresses<A: Wire>(from: *const u8, to: *mut u8) {
    macro_rules! word {
        ($at:literal) => {
            if 2 * size_of::<A>() > $at {
                // SAFETY: within the two addresses, whose length is a multiple of 8.
                unsafe {
                    let word: u64;
                    asm!("{0} = *(u64 *)({1} + {2})", out(reg) word, in(reg) from, const $at, options(pure, readonly, nostack));
                    asm!("*(u64 *)({1} + {2}) = {0}", in(reg) word, in(reg) to, const $at, options(nostack));
                }
            }
        };
    }
    word!(0);
    word!(8);
    word!(16);
    word!(24);
}

/// Copy one address by words that LLVM does not know: it would keep those that it read for a checksum
/// on the stack.
///
/// # Safety
/// Both pointers must be good for an address.
#[inline(always)]
unsafe fn copy_address<A: Wire>(from: *const u8, to: *mut u8) {
    // SAFETY: within the address, whose length is 4 or a multiple of 8.
    unsafe {
        let word: u64;
        if size_of::<A>() == 4 {
            asm!("{0} = *(u32 *)({1} + 0)", out(reg) word, in(reg) from, options(readonly, nostack));
            asm!("*(u32 *)({1} + 0) = {0}", in(reg) word, in(reg) to, options(nostack));
        } else {
            asm!("{0} = *(u64 *)({1} + 0)", out(reg) word, in(reg) from, options(readonly, nostack));
            asm!("*(u64 *)({1} + 0) = {0}", in(reg) word, in(reg) to, options(nostack));
            let word: u64;
            asm!("{0} = *(u64 *)({1} + 8)", out(reg) word, in(reg) from, options(readonly, nostack));
            asm!("*(u64 *)({1} + 8) = {0}", in(reg) word, in(reg) to, options(nostack));
        }
    }
}

/// Read a `T` at `offset` bytes from the start of the frame.
#[inline(always)]
pub(crate) fn load<C: Context, T: Wire>(ctx: &C, offset: usize) -> Option<T> {
    // SAFETY: `pointer` checked that all of `T` lies in the frame.
    pointer(ctx, offset).map(|at: *mut T| unsafe { fetch(at) })
}

/// Overwrite the bytes at `offset` with `value`; false if they do not all lie in the frame.
#[inline(always)]
pub(crate) fn store<C: Context, T: Wire>(ctx: &C, offset: usize, value: T) -> bool {
    match pointer::<C, T>(ctx, offset) {
        // SAFETY: as in `load`; frames are writable, and nothing else refers to them.
        Some(at) => unsafe {
            put(at, &value);
            true
        },
        None => false,
    }
}

/// Copy the addresses `src` and `dst` to `offset`, one after the other: at once they would not fit the
/// registers, and go by way of the stack. False if they do not both lie in the frame.
#[inline(always)]
pub(crate) fn store_addresses<C: Context, A: Address + Wire>(
    ctx: &C,
    offset: usize,
    src: &A,
    dst: &A,
) -> bool {
    let Some(to) = pointer::<C, [A; 2]>(ctx, offset) else {
        return false;
    };
    let to = to.cast::<u8>();
    // SAFETY: as in `store`.
    unsafe {
        copy_address::<A>(core::ptr::from_ref(src).cast(), to);
        copy_address::<A>(
            core::ptr::from_ref(dst).cast(),
            to.wrapping_add(size_of::<A>()),
        );
    }
    true
}

/// The socket address that a cgroup hook looks at: fields in network order.
pub(crate) struct SockAddr(*mut bpf_sock_addr);

impl SockAddr {
    /// The hook's context.
    #[inline(always)]
    pub(crate) fn new(ctx: &SockAddrContext) -> Self {
        Self(ctx.sock_addr)
    }

    /// IP protocol of the socket.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> u32 {
        // SAFETY: the kernel called the program with a valid context.
        unsafe { (*self.0).protocol }
    }

    /// IPv4 destination.
    #[inline(always)]
    pub(crate) fn ip4(&self) -> [u8; 4] {
        // SAFETY: a valid context; the verifier wants one 4-byte access, hence volatile.
        unsafe { (&raw const (*self.0).user_ip4).read_volatile() }.to_ne_bytes()
    }

    /// Replace the IPv4 destination.
    #[inline(always)]
    pub(crate) fn set_ip4(&self, addr: [u8; 4]) {
        // SAFETY: as in `ip4`.
        unsafe { (&raw mut (*self.0).user_ip4).write_volatile(u32::from_ne_bytes(addr)) }
    }

    /// IPv6 destination as four words in network order.
    #[inline(always)]
    pub(crate) fn ip6(&self) -> [u32; 4] {
        let words = (&raw const self.context().user_ip6).cast::<u32>();
        // SAFETY: four words of a valid context; the verifier wants one access for each.
        unsafe {
            [
                words.read_volatile(),
                words.add(1).read_volatile(),
                words.add(2).read_volatile(),
                words.add(3).read_volatile(),
            ]
        }
    }

    /// Replace the IPv6 destination.
    #[inline(always)]
    pub(crate) fn set_ip6(&self, [a, b, c, d]: [u32; 4]) {
        // SAFETY: as in `ip6`.
        unsafe {
            let words = (&raw mut (*self.0).user_ip6).cast::<u32>();
            words.write_volatile(a);
            words.add(1).write_volatile(b);
            words.add(2).write_volatile(c);
            words.add(3).write_volatile(d);
        }
    }

    /// Destination port, host order.
    #[inline(always)]
    pub(crate) fn port(&self) -> u16 {
        // SAFETY: a valid context. The field holds the port in network order in its low half.
        let port = unsafe { (&raw const (*self.0).user_port).read_volatile() };
        u16::from_be(port as u16)
    }

    /// Replace the destination port (host order).
    #[inline(always)]
    pub(crate) fn set_port(&self, port: u16) {
        // SAFETY: as in `port`.
        unsafe { (&raw mut (*self.0).user_port).write_volatile(u32::from(port.to_be())) }
    }

    /// The context as kernel helpers take it.
    #[inline(always)]
    pub(crate) fn raw(&self) -> *mut c_void {
        self.0.cast()
    }

    #[inline(always)]
    fn context(&self) -> &bpf_sock_addr {
        // SAFETY: the kernel called the program with a valid context.
        unsafe { &*self.0 }
    }
}

/// What `sk_lookup` is asked: who takes a packet that came to an address of this node?
pub(crate) struct SockLookup(*mut bpf_sk_lookup);

impl SockLookup {
    /// The program's context.
    #[inline(always)]
    pub(crate) fn new(ctx: &SkLookupContext) -> Self {
        Self(ctx.lookup)
    }

    /// `AF_INET` or `AF_INET6`.
    #[inline(always)]
    pub(crate) fn family(&self) -> u32 {
        // SAFETY: the kernel called the program with a valid context; here and below the verifier
        // wants one access for each field or word, hence volatile.
        unsafe { (&raw const (*self.0).family).read_volatile() }
    }

    /// IP protocol.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> u32 {
        // SAFETY: as in `family`.
        unsafe { (&raw const (*self.0).protocol).read_volatile() }
    }

    /// IPv4 destination of the packet.
    #[inline(always)]
    pub(crate) fn local_ip4(&self) -> [u8; 4] {
        // SAFETY: as in `family`.
        unsafe { (&raw const (*self.0).local_ip4).read_volatile() }.to_ne_bytes()
    }

    /// IPv6 destination of the packet as four words in network order.
    #[inline(always)]
    pub(crate) fn local_ip6(&self) -> [u32; 4] {
        // SAFETY: as in `family`; four words.
        unsafe {
            let words = (&raw const (*self.0).local_ip6).cast::<u32>();
            [
                words.read_volatile(),
                words.add(1).read_volatile(),
                words.add(2).read_volatile(),
                words.add(3).read_volatile(),
            ]
        }
    }

    /// Destination port of the packet, host order.
    #[inline(always)]
    pub(crate) fn local_port(&self) -> u16 {
        // SAFETY: as in `family`.
        unsafe { (&raw const (*self.0).local_port).read_volatile() as u16 }
    }

    /// The context as kernel helpers take it.
    #[inline(always)]
    pub(crate) fn raw(&self) -> *mut c_void {
        self.0.cast()
    }
}

/// Bytes that the programs look at: Ethernet with two tags, IPv4 with options or IPv6 with some
/// extension headers, TCP.
const HEADERS: usize = 14 + 8 + 60 + 20 + 32;

/// Make the headers of a socket buffer directly accessible: they may lie in its non-linear part.
#[inline(always)]
pub(crate) fn pull_headers(ctx: &TcContext) -> bool {
    ctx.pull(HEADERS)
}

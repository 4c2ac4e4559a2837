//! Packet and context access: the one bounds check, and the few context fields that programs
//! read or write. Everything here is safe to call.

use core::{arch::asm, ffi::c_void};

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_addr,
    programs::{SockAddrContext, TcContext, XdpContext},
};
use lb_common::headers::Wire;

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
}

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
}

/// Directly accessible length of the frame in bytes.
#[inline(always)]
pub(crate) fn length<C: Context>(ctx: &C) -> u64 {
    (ctx.data_end() - ctx.data()) as u64
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

/// Read a `T` at `offset` bytes from the start of the frame.
#[inline(always)]
pub(crate) fn load<C: Context, T: Wire>(ctx: &C, offset: usize) -> Option<T> {
    // SAFETY: `pointer` checked that all of `T` lies in the frame, and `Wire` types have
    // alignment 1 and take any bytes.
    pointer(ctx, offset).map(|at: *mut T| unsafe { at.read() })
}

/// Overwrite the bytes at `offset` with `value`; false if they do not all lie in the frame.
#[inline(always)]
pub(crate) fn store<C: Context, T: Wire>(ctx: &C, offset: usize, value: T) -> bool {
    match pointer::<C, T>(ctx, offset) {
        // SAFETY: as in `load`; XDP frames are writable, and nothing else refers to them.
        Some(at) => unsafe {
            at.write(value);
            true
        },
        None => false,
    }
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

//! The stages that are functions of their own: the verifier checks each one once, for any
//! arguments, instead of along every path that leads to it. They exist once per kind of context
//! and family, and pass what they know through the scratch memory.

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    programs::{TcContext, XdpContext},
};

use crate::{
    conntrack,
    decision::Decision,
    family::{V4, V6},
    icmp, nat, newflow,
    packet::Context,
    respond, select, trace,
};

/// The walk through IPv6 extension headers, callable on a kind of context.
pub(crate) trait Walk: Context {
    /// See [`V6::walk`].
    fn extensions(&self, l3: u32, proto: u32) -> u64;
}

/// The stages for a family, callable on a kind of context.
pub(crate) trait Stages<F>: Walk {
    /// See [`newflow::half_open`].
    fn half_open(&self, excluded: u32) -> u64;
    /// See [`newflow::new_flow`].
    fn new_flow(&self, excluded: u32, failed: u32) -> u64;
    /// See [`nat::commit`].
    fn nat_commit(&self, backend: u32) -> u64;
    /// See [`conntrack::listen`].
    fn listen(&self) -> u64;
    /// See [`nat::unserved`].
    fn unserved(&self) -> u64;
    /// See [`respond::reset`].
    fn reset(&self, reason: u32, backend: u32) -> u64;
    /// See [`respond::sum`].
    fn sum(&self, at: u32, length: u32, seed: u32) -> u64;
    /// See [`respond::sum_part`].
    fn sum_part(&self, at: u32, length: u32, seed: u32) -> u64;
    /// See [`nat::follow_path`].
    fn follow_path(&self, nat_port: u32, backend: u32) -> u64;
    /// See [`icmp::stage`].
    fn icmp(&self) -> u64;
    /// See [`trace::trace`].
    fn trace(&self, decision: Decision) -> u64;
}

/// See [`V6::walk`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn xdp_extensions(ctx: *mut xdp_md, l3: u32, proto: u32) -> u64 {
    V6::walk(&XdpContext::new(ctx), l3, proto)
}

/// See [`V6::walk`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn tc_extensions(ctx: *mut __sk_buff, l3: u32, proto: u32) -> u64 {
    V6::walk(&TcContext::new(ctx), l3, proto)
}

impl Walk for XdpContext {
    #[inline(always)]
    fn extensions(&self, l3: u32, proto: u32) -> u64 {
        xdp_extensions(self.raw().cast(), l3, proto)
    }
}

impl Walk for TcContext {
    #[inline(always)]
    fn extensions(&self, l3: u32, proto: u32) -> u64 {
        tc_extensions(self.raw().cast(), l3, proto)
    }
}

/// See [`select::stage`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn select4(node: u32, backend: u32) -> u64 {
    select::stage::<V4>(node, backend)
}

/// See [`select::stage`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn select6(node: u32, backend: u32) -> u64 {
    select::stage::<V6>(node, backend)
}

/// See [`select::usable`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn usable4(id: u32, service: u32, node: u32, avoided: u32) -> u64 {
    select::usable::<V4>(id, service, node, avoided)
}

/// See [`select::usable`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn usable6(id: u32, service: u32, node: u32, avoided: u32) -> u64 {
    select::usable::<V6>(id, service, node, avoided)
}

/// See [`nat::claim_port`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn claim_port4(backend: u32, port: u32) -> u64 {
    nat::claim_port::<V4>(backend, port)
}

/// See [`nat::claim_port`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn claim_port6(backend: u32, port: u32) -> u64 {
    nat::claim_port::<V6>(backend, port)
}

/// A global function for each stage of a context and family, and the trait that calls them.
macro_rules! stages {
    ($context:ident, $raw:ty, $family:ident:
     $half_open:ident $new_flow:ident $nat_commit:ident $listen:ident $unserved:ident $reset:ident $sum:ident $sum_part:ident $follow_path:ident $icmp:ident $trace:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(crate) extern "C" fn $half_open(ctx: *mut $raw, excluded: u32) -> u64 {
            newflow::half_open::<$context, $family>(&$context::new(ctx), excluded)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(crate) extern "C" fn $new_flow(ctx: *mut $raw, excluded: u32, failed: u32) -> u64 {
            newflow::new_flow::<$context, $family>(&$context::new(ctx), excluded, failed)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(crate) extern "C" fn $nat_commit(ctx: *mut $raw, backend: u32) -> u64 {
            nat::commit::<$context, $family>(&$context::new(ctx), backend)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(crate) extern "C" fn $listen(ctx: *mut $raw) -> u64 {
            conntrack::listen::<$context, $family>(&$context::new(ctx))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(crate) extern "C" fn $unserved(ctx: *mut $raw) -> u64 {
            nat::unserved::<$context, $family>(&$context::new(ctx))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(crate) extern "C" fn $reset(ctx: *mut $raw, reason: u32, backend: u32) -> u64 {
            respond::reset::<$context, $family>(&$context::new(ctx), reason, backend)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(crate) extern "C" fn $sum(ctx: *mut $raw, at: u32, length: u32, seed: u32) -> u64 {
            respond::sum::<$context, $family>(&$context::new(ctx), at, length, seed)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(crate) extern "C" fn $sum_part(ctx: *mut $raw, at: u32, length: u32, seed: u32) -> u64 {
            respond::sum_part::<$context, $family>(&$context::new(ctx), at, length, seed)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(crate) extern "C" fn $follow_path(ctx: *mut $raw, nat_port: u32, backend: u32) -> u64 {
            nat::follow_path::<$context, $family>(&$context::new(ctx), nat_port, backend)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(crate) extern "C" fn $icmp(ctx: *mut $raw) -> u64 {
            icmp::stage::<$context, $family>(&$context::new(ctx))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(crate) extern "C" fn $trace(ctx: *mut $raw, decision: u64) -> u64 {
            trace::trace::<$context, $family>(&$context::new(ctx), Decision::decode(decision))
        }

        impl Stages<$family> for $context {
            #[inline(always)]
            fn half_open(&self, excluded: u32) -> u64 {
                $half_open(self.raw().cast(), excluded)
            }

            #[inline(always)]
            fn new_flow(&self, excluded: u32, failed: u32) -> u64 {
                $new_flow(self.raw().cast(), excluded, failed)
            }

            #[inline(always)]
            fn nat_commit(&self, backend: u32) -> u64 {
                $nat_commit(self.raw().cast(), backend)
            }

            #[inline(always)]
            fn listen(&self) -> u64 {
                $listen(self.raw().cast())
            }

            #[inline(always)]
            fn unserved(&self) -> u64 {
                $unserved(self.raw().cast())
            }

            #[inline(always)]
            fn reset(&self, reason: u32, backend: u32) -> u64 {
                $reset(self.raw().cast(), reason, backend)
            }

            #[inline(always)]
            fn sum(&self, at: u32, length: u32, seed: u32) -> u64 {
                $sum(self.raw().cast(), at, length, seed)
            }

            #[inline(always)]
            fn sum_part(&self, at: u32, length: u32, seed: u32) -> u64 {
                $sum_part(self.raw().cast(), at, length, seed)
            }

            #[inline(always)]
            fn follow_path(&self, nat_port: u32, backend: u32) -> u64 {
                $follow_path(self.raw().cast(), nat_port, backend)
            }

            #[inline(always)]
            fn icmp(&self) -> u64 {
                $icmp(self.raw().cast())
            }

            #[inline(always)]
            fn trace(&self, decision: Decision) -> u64 {
                $trace(self.raw().cast(), decision.encode())
            }
        }
    };
}

stages!(XdpContext, xdp_md, V4: xdp_half_open4 xdp_new_flow4 xdp_nat_commit4 xdp_listen4 xdp_unserved4 xdp_reset4 xdp_sum4 xdp_sum_part4 xdp_follow_path4 xdp_icmp4 xdp_trace4);
stages!(XdpContext, xdp_md, V6: xdp_half_open6 xdp_new_flow6 xdp_nat_commit6 xdp_listen6 xdp_unserved6 xdp_reset6 xdp_sum6 xdp_sum_part6 xdp_follow_path6 xdp_icmp6 xdp_trace6);
stages!(TcContext, __sk_buff, V4: tc_half_open4 tc_new_flow4 tc_nat_commit4 tc_listen4 tc_unserved4 tc_reset4 tc_sum4 tc_sum_part4 tc_follow_path4 tc_icmp4 tc_trace4);
stages!(TcContext, __sk_buff, V6: tc_half_open6 tc_new_flow6 tc_nat_commit6 tc_listen6 tc_unserved6 tc_reset6 tc_sum6 tc_sum_part6 tc_follow_path6 tc_icmp6 tc_trace6);

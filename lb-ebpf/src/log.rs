//! A line of text about each decision on a packet to a VIP, for who develops the programs: only in
//! builds with the feature `log`. Unlike the trace it needs no filter, and shows in the controller's
//! log where the decision was made.

use crate::{decision::Decision, family::Family};

/// Whether this build logs.
pub(crate) const LOGS: bool = cfg!(feature = "log");

/// Log the decision on the packet in the scratch memory that came in through interface `ifindex`.
#[inline(always)]
pub(crate) fn log<F: Family>(decision: Decision, ifindex: u32) {
    #[cfg(feature = "log")]
    if !crate::maps::dry_run() {
        let line = if F::NUMBER == lb_common::abi::events::FAMILY_V4 {
            lines::log4
        } else {
            lines::log6
        };
        // The result means nothing: a line that finds no room is lost.
        let _ = line(decision.encode(), ifindex);
    }
    #[cfg(not(feature = "log"))]
    let _ = (decision, ifindex);
}

/// Functions of their own, for the verifier and for the stack: a line takes much of both.
#[cfg(feature = "log")]
mod lines {
    use aya_log_ebpf::trace;

    use crate::{
        decision::Decision,
        family::{Family as _, V4, V6},
    };

    macro_rules! lines {
        ($name:ident, $family:ident) => {
            /// A line about the packet in the scratch memory of this family.
            #[unsafe(no_mangle)]
            #[inline(never)]
            pub(super) extern "C" fn $name(decision: u64, ifindex: u32) -> u64 {
                let Some(scratch) = $family::scratch() else {
                    return 0;
                };
                let decision = Decision::decode(decision);
                trace!(
                    (),
                    "reason={} service={} backend={} ifindex={} {:i}:{} -> {:i}:{} proto={}",
                    decision.reason(),
                    decision.service(),
                    scratch.facts.backend,
                    ifindex,
                    scratch.key.src(),
                    scratch.key.sport(),
                    scratch.key.dst(),
                    scratch.key.dport(),
                    scratch.key.proto()
                );
                0
            }
        };
    }

    lines!(log4, V4);
    lines!(log6, V6);
}

//! What xvip's kernel and user space must agree on, and every calculation that both
//! (or the tests) do: map ABI types, reasons, header layouts, checksums, the flow hash
//! and the conntrack transitions.
//!
//! Nothing here allocates, panics on input, or knows about a runtime: the same code is
//! compiled into the BPF object, into the controller and into the tests.
#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod checksum;
pub mod conntrack;
pub mod hash;
pub mod headers;
#[cfg(feature = "user")]
mod pod;
pub mod reason;

//! The BPF programs under test: rows of frames and what must come of them, the map ABI against the
//! object's BTF, and what the verifier says. Everything runs in the kernel: root is needed.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a failed helper is a failed test"
)]
#![allow(
    clippy::too_many_lines,
    reason = "rows are tables: one after another, whatever their number"
)]

mod abi;
mod accept;
mod answer;
mod batch;
mod connect;
mod contention;
mod coverage;
mod datagrams;
mod dsr;
mod egress;
mod ends;
mod fence;
mod hooks;
mod hostile;
mod icmp;
mod listeners;
mod local;
mod log;
mod malformed;
mod model;
mod nat;
mod resets;
mod segments;
mod sockets;
mod sources;
mod udp;
mod verifier;
mod vlan;
mod vmac;
mod world;

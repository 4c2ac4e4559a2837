//! The whole of xvip on real packets: three masters, a client, and everything that may break.
//! Needs root.
// Also in helpers: what panics is a failed scenario.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod accept;
mod attach;
mod backends;
mod bound;
mod checks;
mod closing;
mod clsact;
mod duplicates;
mod explain;
mod features;
mod fencing;
mod floods;
mod hairpin;
mod icmp;
mod import;
mod keepalived;
mod loops;
mod names;
mod nat_ports;
mod notify;
mod observe;
mod odd_packets;
mod operator;
mod ports;
mod refused;
mod reload;
mod repair;
mod requests;
mod resets;
mod restart;
mod scheduling;
mod services;
mod sources;
mod takeover;
mod tc;
mod tracking;
mod turns;
mod udp;
mod uplinks;
mod vmac;
mod vrrp;

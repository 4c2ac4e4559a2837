//! The whole of xvip on real packets: three masters, a client, and everything that may break.
//! Needs root.
#![allow(clippy::unwrap_used)] // also in helpers: a failed unwrap is a failed scenario

mod attach;
mod backends;
mod hairpin;
mod observe;
mod ports;
mod repair;
mod requests;
mod restart;
mod takeover;
mod uplinks;
mod vrrp;

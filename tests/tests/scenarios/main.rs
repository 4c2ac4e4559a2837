//! The whole of xvip on real packets: three masters, a client, and everything that may break.
//! Needs root.

mod requests;
mod takeover;

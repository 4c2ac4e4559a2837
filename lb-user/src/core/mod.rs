//! The core: every decision that xvip takes, sans-IO. Nothing here knows tokio, aya, netlink or
//! the clock: time and facts come in as values, effects go out as values, and a failed effect
//! comes back as an input. A test holds that.

pub mod attach;
pub mod clsact;
pub mod conntrack;
pub mod controller;
pub mod desired;
mod epochs;
#[cfg(test)]
mod fixture;
pub mod frame;
pub mod health;
pub mod kernel;
pub mod listeners;
pub mod local_sockets;
pub mod maglev;
pub mod names;
pub mod network;
pub mod notify;
pub mod operator;
pub mod resets;
pub mod roster;
pub mod segment;
pub mod settings;
pub mod speed;
pub mod standing;
pub mod tables;
pub mod time;
pub mod tracking;
pub mod vrrp;

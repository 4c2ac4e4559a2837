//! VRRP: who owns the virtual addresses. Version 3 (RFC 9568) for IPv4 and IPv6, version 2
//! (RFC 3768) for IPv4.
//!
//! [`packet`] turns bytes into adverts and back, [`instance`] is the state machine of one
//! virtual router, [`timing`] its arithmetic, [`rank`] its place among other Backups, [`status`] what it
//! tells about itself, [`lateness`] how late its timers were, [`alarm`] what it finds wrong with others.

pub mod alarm;
mod announce;
pub mod instance;
pub mod lateness;
pub mod packet;
pub mod rank;
pub mod status;
#[cfg(test)]
mod tests;
pub mod timing;

pub use alarm::{Alarm, Complaints};
pub use instance::{Instance, VrrpAction};
pub use lateness::{Late, Lateness};
pub use packet::{Advert, AdvertError, Auth, RxMeta};
pub use status::{Cause, Counters, Discard, Peer, Remarks, State, Transition};

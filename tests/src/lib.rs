//! What xvip's tests and its lab are made of: network namespaces joined by a bridge, processes
//! that end with their owner, a stand-in for the apiserver and a client that counts.
//!
//! A scenario in ten lines:
//!
//! ```no_run
//! use std::time::Duration;
//! use lb_tests::{process::wait_until, topology::Topology};
//!
//! # fn main() -> anyhow::Result<()> {
//! let net = Topology::builder().node("m1").node("m2").node("client").build()?;
//! let m1 = net.node("m1");
//! let server = m1.stand_in(&["--listen", "0.0.0.0:6443"])?;
//! server.wait_for_output("ready", Duration::from_secs(5))?;
//! let reached = net.node("client").run("curl", &["-sk", "https://10.77.0.11:6443/whoami"])?;
//! assert!(reached.contains("m1"));
//! # Ok(())
//! # }
//! ```

pub mod advert;
pub mod capture;
pub mod claims;
pub mod client;
pub mod cluster;
pub mod control_plane;
pub mod counters;
pub mod datagram;
pub mod device;
pub mod endpoint;
pub mod flood;
pub mod footprint;
pub mod fuzz;
pub mod guest;
pub mod instance;
pub mod ip_options;
pub mod keepalived;
pub mod kernel;
pub mod kernels;
pub mod knock;
pub mod lab;
pub mod model;
pub mod netns;
pub mod packet;
pub mod process;
pub mod program;
pub mod reconfigure;
pub mod router;
pub mod skip;
pub mod standin;
pub mod steady;
pub mod tc_stub;
pub mod topology;
pub mod vrrp_group;
pub mod watch;
pub mod ways;
pub mod who_has;
pub mod witness;
pub mod xdp_stub;

//! Effects: sockets, netlink, BPF, TLS probes and the clock. Executes the core's actions and
//! feeds the results back as inputs.

pub mod clock;
pub mod netlink;
pub mod sysctl;

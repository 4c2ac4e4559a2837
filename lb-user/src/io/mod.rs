//! Effects: sockets, netlink, BPF, TLS probes and the clock. Executes the core's actions and
//! feeds the results back as inputs.

pub mod announce;
pub mod bpf;
mod claims;
pub mod clock;
pub mod collect;
pub mod command;
pub mod ethtool;
pub mod held_sockets;
pub mod listeners;
pub mod local_sockets;
mod look;
pub mod mounts;
mod names;
pub mod netlink;
pub mod netns;
pub mod notify;
pub mod observe;
pub mod operator_file;
pub mod orders;
pub mod packet_socket;
pub mod plane_events;
pub mod privilege;
pub mod probe;
pub mod raw_socket;
pub mod reader;
pub mod realtime;
pub mod reload;
pub mod resets;
pub mod runtime;
pub mod settings;
pub mod status;
pub mod sysctl;
pub mod undo;
pub mod users;
mod virtual_macs;
pub mod vrrp_socket;

//! What the data plane tells user space by ring buffers: events for the controller, and the trace.

use core::mem::{align_of, size_of};

use super::Mac;

/// Bytes of the ring buffer `events`.
pub const EVENTS_BYTES: u32 = 64 * 1024;
/// Bytes of the ring buffer `trace_events`.
pub const TRACE_BYTES: u32 = 1024 * 1024;

/// The largest page of the kernels that xvip runs on: aarch64 has pages of 4, 16 or 64 KiB.
const LARGEST_PAGE: u32 = 64 * 1024;

/// The kernel takes a ring buffer of whole pages only, and of a power of two in bytes.
const fn is_ring_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && bytes.is_multiple_of(LARGEST_PAGE)
}

const _: () = assert!(is_ring_size(EVENTS_BYTES) && is_ring_size(TRACE_BYTES));

/// A record of `events`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    kind: u32,
    service: u32,
    backend: u32,
    pad: u32,
}

impl Event {
    /// A backend refused a connection (nat: it answered a SYN with RST; local: nothing listens): it
    /// is suspect, and wants to be checked now.
    pub const REFUSED: u32 = 1;

    /// Backend `backend` of service `service` refused a connection.
    #[inline(always)]
    pub const fn refused(service: u32, backend: u32) -> Self {
        Self {
            kind: Self::REFUSED,
            service,
            backend,
            pad: 0,
        }
    }

    /// What happened: [`Event::REFUSED`].
    pub const fn kind(&self) -> u32 {
        self.kind
    }

    /// Service id.
    pub const fn service(&self) -> u32 {
        self.service
    }

    /// Backend id.
    pub const fn backend(&self) -> u32 {
        self.backend
    }
}

/// IPv4, as [`TraceFilter`] and [`TraceEvent`] name families.
pub const FAMILY_V4: u8 = 4;
/// IPv6.
pub const FAMILY_V6: u8 = 6;

/// The single value of `trace`: which packets are traced, of those to VIPs that are
/// [`super::Vip::TRACED`].
///
/// IPv4 addresses are in the first four bytes, the others are zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceFilter {
    /// The client's network, its host bits zero.
    pub client: [u8; 16],
    /// Ones where `client` counts.
    pub mask: [u8; 16],
    /// [`FAMILY_V4`], [`FAMILY_V6`], 0: both.
    pub family: u8,
    /// Zero.
    pub pad0: u8,
    /// Client's port, host order; 0: any.
    pub client_port: u16,
    /// VIP's port, host order; 0: any.
    pub vip_port: u16,
    /// Zero.
    pub pad1: u16,
}

/// Where in the pipeline the decision was made (values of [`TraceEvent::stage`]).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The packet was looked at and is not for a service, or malformed.
    Parse = 1,
    /// The fence.
    Fence = 2,
    /// An ICMP error was related to a flow.
    Icmp = 3,
    /// The service's rules about sources.
    Source = 4,
    /// The kernel's socket table.
    Socket = 5,
    /// An entry of a flow.
    Conntrack = 6,
    /// A peer had balanced it.
    Peer = 7,
    /// A backend was selected.
    Select = 8,
    /// The reply of a nat backend.
    Reply = 9,
    /// A segment that leaves this node.
    Egress = 10,
}

impl Stage {
    /// Every stage.
    pub const ALL: [Self; 10] = [
        Self::Parse,
        Self::Fence,
        Self::Icmp,
        Self::Source,
        Self::Socket,
        Self::Conntrack,
        Self::Peer,
        Self::Select,
        Self::Reply,
        Self::Egress,
    ];

    /// The stage with number `value`.
    pub fn from_raw(value: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| *stage as u8 == value)
    }

    /// Its name, lower case.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Parse => "parse",
            Self::Fence => "fence",
            Self::Icmp => "icmp",
            Self::Source => "source",
            Self::Socket => "socket",
            Self::Conntrack => "conntrack",
            Self::Peer => "peer",
            Self::Select => "select",
            Self::Reply => "reply",
            Self::Egress => "egress",
        }
    }
}

/// A record of `trace_events`: what became of one packet. Fields are public: nobody but the data
/// plane makes one, and user space shows all of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceEvent {
    /// Nanoseconds of the coarse monotonic clock.
    pub time_ns: u64,
    /// Source as it came in; IPv4 in the first four bytes.
    pub src: [u8; 16],
    /// Destination as it came in.
    pub dst: [u8; 16],
    /// Source as it goes out; meaningless, like the destination, while both new ports are 0: then
    /// nothing was translated.
    pub new_src: [u8; 16],
    /// Destination as it goes out.
    pub new_dst: [u8; 16],
    /// SEG.SEQ (TCP).
    pub seq: u32,
    /// SEG.ACK (TCP).
    pub ack: u32,
    /// Number of the [`crate::reason::Reason`].
    pub reason: u32,
    /// Service id, 0: none.
    pub service: u32,
    /// Backend id, 0: none.
    pub backend: u32,
    /// Interface that it came in through.
    pub ifindex: u32,
    /// Interface that it goes out through; 0: none, or the same.
    pub new_ifindex: u32,
    /// Length of the frame in bytes.
    pub length: u32,
    /// Source port, host order.
    pub sport: u16,
    /// Destination port, host order.
    pub dport: u16,
    /// Source port as it goes out.
    pub new_sport: u16,
    /// Destination port as it goes out.
    pub new_dport: u16,
    /// Destination MAC as it goes out.
    pub new_mac: Mac,
    /// TCP control bits.
    pub tcp_flags: u8,
    /// IP protocol number.
    pub proto: u8,
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u8,
    /// Number of the [`Stage`].
    pub stage: u8,
    /// Zero.
    pub pad0: u16,
    /// Zero.
    pub pad1: u32,
}

const _: () = assert!(size_of::<Event>() == 16 && align_of::<Event>() == 4);
const _: () = assert!(size_of::<TraceFilter>() == 40 && align_of::<TraceFilter>() == 2);
const _: () = assert!(size_of::<TraceEvent>() == 128 && align_of::<TraceEvent>() == 8);

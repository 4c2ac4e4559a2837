//! What a VRRP instance tells about itself: state, causes, counters.

use std::{fmt, net::IpAddr, num::NonZeroU8};

use thiserror::Error;

use crate::{
    config::model::{AdvertInterval, VrrpVersion},
    core::time::Timestamp,
};

/// State of a virtual router (RFC 9568 section 6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Not taking part.
    Initialize,
    /// Listening to the Active router.
    Backup,
    /// Active, or about to be: the addresses are owned once the first advert has left.
    Active,
}

impl State {
    /// Stable name for status and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Initialize => "initialize",
            Self::Backup => "backup",
            Self::Active => "active",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Why the state changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The instance was started.
    Startup,
    /// Priority 255: the address owner is Active from the start (RFC 9568 section 6.4.1).
    AddressOwner,
    /// No advert was heard for a down interval.
    NoAdvert,
    /// The Active router said priority 0.
    PeerResigned,
    /// A lower-priority Active was preempted.
    Preemption,
    /// An Active with a higher priority was heard.
    HigherPriority,
    /// An Active with equal priority and a higher address was heard.
    HigherAddress,
    /// This node did not get to renew its lease in time: it was frozen, or its adverts failed.
    LeaseLapsed,
    /// The first advert of a takeover could not be sent.
    SendFailed,
    /// Something that is tracked does not let this node take part.
    Fault,
    /// Another instance of the group is not Active any more.
    SyncGroup,
    /// The operator said so.
    StepDown,
    /// The instance was stopped.
    Stop,
}

impl Cause {
    /// Stable name for status, logs and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::AddressOwner => "address_owner",
            Self::NoAdvert => "no_advert",
            Self::PeerResigned => "peer_resigned",
            Self::Preemption => "preemption",
            Self::HigherPriority => "higher_priority",
            Self::HigherAddress => "higher_address",
            Self::LeaseLapsed => "lease_lapsed",
            Self::SendFailed => "send_failed",
            Self::Fault => "fault",
            Self::SyncGroup => "sync_group",
            Self::StepDown => "step_down",
            Self::Stop => "stop",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// When.
    pub at: Timestamp,
    /// State before.
    pub from: State,
    /// State after.
    pub to: State,
    /// Why.
    pub cause: Cause,
}

/// The router whose advert was accepted last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its primary address.
    pub address: IpAddr,
    /// Its priority; 0: it has resigned.
    pub priority: u8,
    /// Its advertisement interval.
    pub interval: AdvertInterval,
    /// When it was heard.
    pub heard: Timestamp,
}

/// Why a well-formed advert was not acted upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Discard {
    /// The instance is not started.
    #[error("the instance is stopped")]
    Stopped,
    /// This node's own advert came back.
    #[error("own advert")]
    Own,
    /// For another virtual router.
    #[error("VRID {0} is another instance's")]
    Vrid(NonZeroU8),
    /// RFC 9568 section 7.1: the configured version only.
    #[error("version {0:?} is not the configured one")]
    Version(VrrpVersion),
    /// With unicast peers, only these are heard.
    #[error("{0} is not a configured peer")]
    UnknownPeer(IpAddr),
    /// RFC 2338 section 7.1: the secret, or its presence, differs.
    #[error("authentication differs")]
    Auth,
    /// RFC 3768 section 7.1: in version 2 the intervals must match.
    #[error("advertisement interval of {} cs is not the configured one", .0.centis())]
    Interval(AdvertInterval),
    /// RFC 3768 section 7.1: in version 2 the addresses must match (unless the sender owns them); in
    /// version 3 at least one of them.
    #[error("virtual addresses differ")]
    Addresses,
    /// RFC 9568 section 7.1: this node is Active with priority 255, so it owns the addresses.
    #[error("this node owns the addresses (priority 255)")]
    AddressOwner,
}

impl Discard {
    /// Every label, in the order of the variants.
    pub const LABELS: [&'static str; 9] = [
        "stopped",
        "own",
        "vrid",
        "version",
        "unknown_peer",
        "auth",
        "interval",
        "addresses",
        "address_owner",
    ];

    /// Stable name for counters.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Own => "own",
            Self::Vrid(_) => "vrid",
            Self::Version(_) => "version",
            Self::UnknownPeer(_) => "unknown_peer",
            Self::Auth => "auth",
            Self::Interval(_) => "interval",
            Self::Addresses => "addresses",
            Self::AddressOwner => "address_owner",
        }
    }
}

/// What an operator should know of an advert that was accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remarks {
    /// The sender is Active as well, although it had the time to hear this node.
    pub rival: bool,
    /// Its virtual addresses differ in part.
    pub other_addresses: bool,
}

/// Counts since the instance was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Adverts accepted.
    pub adverts_received: u64,
    /// Adverts that left, priority 0 included.
    pub adverts_sent: u64,
    /// Adverts that could not be sent.
    pub send_failures: u64,
    /// Accepted adverts with priority 0.
    pub resignations_received: u64,
    /// Times that the addresses were taken over.
    pub became_active: u64,
    /// Leases that ran out while Active.
    pub lapses: u64,
    /// Adverts of a lesser router heard while Active: it believed to be Active too.
    pub conflicts: u64,
    /// Version 3 adverts accepted with another interval than the configured one (RFC 9568
    /// section 7.1: misconfiguration).
    pub interval_mismatches: u64,
    /// Version 3 adverts accepted with other virtual addresses (RFC 9568 section 7.1).
    pub address_mismatches: u64,
    /// Discarded adverts in the order of [`Discard::LABELS`].
    pub discarded: [u64; Discard::LABELS.len()],
}

impl Counters {
    /// Discarded adverts with their labels.
    pub fn discarded(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Discard::LABELS.into_iter().zip(self.discarded)
    }

    pub(super) fn count_discard(&mut self, discard: Discard) {
        let label = discard.label();
        let slots = Discard::LABELS.iter().zip(&mut self.discarded);
        for (_, count) in slots.filter(|(name, _)| **name == label) {
            *count += 1;
        }
    }
}

//! Which conntrack entries are over: what the garbage collector deletes, and why.
//!
//! The data plane would do without: its maps are LRU maps, and it treats what is over as if it were
//! not there. But a table full of the past evicts by age what is silent and alive, and says
//! nothing true about the present.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    abi::{Address, Flow, FlowKey, NatReturn},
    conntrack::{ENDED_SECONDS, FlowState},
};

/// What the collector knows of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendFacts {
    /// Service id.
    pub service: u32,
    /// Its epoch: flows of another one are being reset.
    pub epoch: u16,
    /// Where it is.
    pub address: SocketAddr,
}

/// Backends by id. Ids are unique over both families.
pub type Backends = BTreeMap<u32, BackendFacts>;

/// Why an entry is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The client never acknowledged anything.
    HalfOpen,
    /// The connection has ended.
    Ended,
    /// Established, but silent for too long.
    Idle,
    /// The backend went down, and the client had its time to hear of it.
    Reset,
    /// The backend is not configured any more.
    NoBackend,
    /// A return entry that no flow uses.
    Orphan,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 6] = [
        Self::HalfOpen,
        Self::Ended,
        Self::Idle,
        Self::Reset,
        Self::NoBackend,
        Self::Orphan,
    ];

    /// The word for it in the status document.
    pub const fn label(self) -> &'static str {
        match self {
            Self::HalfOpen => "half_open",
            Self::Ended => "ended",
            Self::Idle => "idle",
            Self::Reset => "reset",
            Self::NoBackend => "no_backend",
            Self::Orphan => "orphan",
        }
    }
}

/// Why `flow` is over at `now` (seconds of the coarse clock), or `None` while something may still
/// come of it.
///
/// `backends` may be a little older than the flow: an entry counts as being of another epoch, or
/// of no backend, only a minute after its last packet.
pub fn over(flow: &Flow, backends: &Backends, now: u32) -> Option<Cause> {
    if flow.is_over(now) {
        return Some(match flow.state() {
            FlowState::Syn => Cause::HalfOpen,
            FlowState::Established | FlowState::Udp => Cause::Idle,
            FlowState::Fin | FlowState::Closed => Cause::Ended,
        });
    }
    if now.saturating_sub(flow.last_seen()) < ENDED_SECONDS {
        return None;
    }
    match backends.get(&flow.backend()) {
        None => Some(Cause::NoBackend),
        Some(backend) if backend.epoch != flow.epoch() => Some(Cause::Reset),
        Some(_) => None,
    }
}

/// Key of the flow that a return entry belongs to.
pub fn owner<A: Address>(key: &FlowKey<A>, entry: &NatReturn<A>) -> FlowKey<A> {
    FlowKey::new(
        entry.client(),
        entry.client_port(),
        key.dst(),
        entry.vip_port(),
        key.proto(),
    )
}

/// Whether `flow`, found at [`owner`], uses the return entry.
///
/// A client that comes back on the same port takes over the entry that is there, with the id that the
/// backend had then. It may have another one now: it was taken out and put back. So its address counts. One
/// that is not among `backends` is younger than they are.
pub fn uses<A: Address + Into<IpAddr>>(
    flow: &Flow,
    key: &FlowKey<A>,
    entry: &NatReturn<A>,
    backends: &Backends,
) -> bool {
    let place = SocketAddr::new(key.src().into(), key.sport());
    let is_there = || {
        let backend = backends.get(&flow.backend());
        backend.is_none_or(|backend| backend.address == place)
    };
    flow.nat_port() == key.dport() && (flow.backend() == entry.backend() || is_there())
}

/// Return entries that no flow used when they were last looked at.
///
/// The data plane writes the return entry first and the flow's own after it, and moves both from
/// the half-open maps to the others: in between an entry looks ownerless. So only one that was
/// ownerless in the scan before, too, is an orphan.
#[derive(Debug)]
pub struct Orphans<A> {
    before: BTreeMap<Place<A>, Client<A>>,
    now: BTreeMap<Place<A>, Client<A>>,
}

/// A return entry's key: backend, VIP, their ports, protocol.
type Place<A> = (A, A, u16, u16, u8);
/// Whom it belongs to: client and port, VIP port.
type Client<A> = (A, u16, u16);

/// Ownerless entries that are remembered; more of them wait for a later scan.
const MAX_ORPHANS: usize = 65_536;

impl<A> Default for Orphans<A> {
    fn default() -> Self {
        Self {
            before: BTreeMap::new(),
            now: BTreeMap::new(),
        }
    }
}

impl<A: Address + Ord> Orphans<A> {
    /// Take note of an ownerless entry. Whether it was so for the same client in the scan before:
    /// then it is to be deleted.
    pub fn note(&mut self, key: &FlowKey<A>, entry: &NatReturn<A>) -> bool {
        let place = (key.src(), key.dst(), key.sport(), key.dport(), key.proto());
        let client = (entry.client(), entry.client_port(), entry.vip_port());
        if self.before.get(&place) == Some(&client) {
            return true;
        }
        if self.now.len() < MAX_ORPHANS {
            self.now.insert(place, client);
        }
        false
    }

    /// A scan has ended: what it saw is the scan before, from here on.
    pub fn end_scan(&mut self) {
        self.before = std::mem::take(&mut self.now);
    }
}

#[cfg(test)]
mod tests {
    use lb_common::{
        conntrack::{IDLE_SECONDS, Segment},
        headers::{IPPROTO_TCP, TcpHeader},
    };

    use super::*;

    const EPOCH: u16 = 3;

    fn backends() -> Backends {
        let facts = BackendFacts {
            service: 1,
            epoch: EPOCH,
            address: SocketAddr::from(([10, 0, 0, 9], 6443)),
        };
        BTreeMap::from([(7, facts)])
    }

    /// A flow to backend 7 that was last seen at second 1000.
    fn flow(flags: &[u8]) -> Flow {
        let mut flow = Flow::new(7, 0, 0, FlowState::Syn, 1000).in_epoch(EPOCH);
        for &flags in flags {
            let (seq, ack, len) = (1, 1, 0);
            let segment = Segment {
                seq,
                ack,
                len,
                flags,
            };
            flow.observe(segment, 1000);
        }
        flow
    }

    /// Each state has its time, and its cause.
    #[test]
    fn states_age() {
        const ACK: u8 = TcpHeader::ACK;
        let fin = ACK | TcpHeader::FIN;
        for (flags, seconds, cause) in [
            (&[][..], ENDED_SECONDS, Cause::HalfOpen),
            (&[ACK], IDLE_SECONDS, Cause::Idle),
            (&[ACK, fin], ENDED_SECONDS, Cause::Ended),
            (&[TcpHeader::RST], ENDED_SECONDS, Cause::Ended),
        ] {
            let flow = flow(flags);
            assert_eq!(over(&flow, &backends(), 1000 + seconds - 1), None);
            assert_eq!(over(&flow, &backends(), 1000 + seconds), Some(cause));
            assert_eq!(over(&flow, &backends(), 999), None, "another CPU's clock");
        }
    }

    /// An open flow whose backend has begun another life, or is gone, ends a minute after its last
    /// packet; of an unchanged backend it does not.
    #[test]
    fn flows_of_former_lives_end() {
        let open = flow(&[TcpHeader::ACK]);
        for (epoch, id, cause) in [
            (EPOCH, 7, None),
            (EPOCH + 1, 7, Some(Cause::Reset)),
            (EPOCH, 8, Some(Cause::NoBackend)),
        ] {
            let facts = BackendFacts {
                epoch,
                ..backends()[&7]
            };
            let backends = BTreeMap::from([(id, facts)]);
            assert_eq!(over(&open, &backends, 1059), None);
            assert_eq!(over(&open, &backends, 1060), cause);
        }
    }

    type Entry = (FlowKey<[u8; 4]>, NatReturn<[u8; 4]>);

    fn entry(client_port: u16, nat_port: u16) -> Entry {
        let key = FlowKey::new([10, 0, 0, 9], 6443, [10, 0, 0, 100], nat_port, IPPROTO_TCP);
        let entry = NatReturn::new([192, 0, 2, 1], client_port, 1644, 7, 2, [2; 6]);
        (key, entry)
    }

    /// The owner is the flow of that client, to the VIP's port, by that port and backend.
    #[test]
    fn an_owner_uses_the_port() {
        let (key, entry) = entry(4000, 5000);
        let owner = owner(&key, &entry);
        let wanted = FlowKey::new([192, 0, 2, 1], 4000, [10, 0, 0, 100], 1644, IPPROTO_TCP);
        assert_eq!(owner, wanted);
        let flow = |backend, port| Flow::new(backend, port, 0, FlowState::Syn, 1);
        let facts = |host| BackendFacts {
            service: 1,
            epoch: EPOCH,
            address: SocketAddr::from(([10, 0, 0, host], 6443)),
        };
        let backends = BTreeMap::from([(7, facts(9)), (8, facts(8)), (17, facts(9))]);
        let uses = |flow| uses(&flow, &key, &entry, &backends);
        assert!(uses(flow(7, 5000)));
        assert!(!uses(flow(7, 5001)));
        assert!(!uses(flow(8, 5000)));
        assert!(uses(flow(17, 5000)), "the same backend by another id");
        assert!(uses(flow(18, 5000)), "perhaps a new one");
    }

    /// Only who is ownerless in two scans in a row, for the same client, is an orphan.
    #[test]
    fn orphans_are_seen_twice() {
        let mut orphans = Orphans::default();
        let (key, first) = entry(4000, 5000);
        let (other_key, other) = entry(4000, 5001);
        assert!(!orphans.note(&key, &first), "perhaps being written");
        assert!(!orphans.note(&key, &first), "twice in one scan is once");
        orphans.end_scan();
        assert!(orphans.note(&key, &first));
        assert!(!orphans.note(&other_key, &other), "another entry");
        orphans.end_scan();
        assert!(!orphans.note(&key, &first), "owned or gone in between");
        orphans.end_scan();
        let (_, of_another_client) = entry(4001, 5000);
        assert!(!orphans.note(&key, &of_another_client));
    }
}

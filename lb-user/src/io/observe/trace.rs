//! `xvip trace`: records of the data plane's ring buffer on their way to an asker.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use aya::maps::{Array, Map, MapData, MapError};
use lb_common::{
    abi::events::{FAMILY_V4, Stage, TRACE_BYTES, TraceEvent, TraceFilter},
    headers::IPPROTO_TCP,
    reason::{Reason, Verdict},
};
use nix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::{
    admin::{
        flows::Directory,
        server::Lines,
        stream::{End, Item},
        trace::{Decision, Out, TraceQuery, TraceRecord, flag_words, protocol_word},
    },
    core::frame::mac_text,
    io::bpf::{BpfError, ring::RingReader},
};

/// How often an asker hears that the trace goes on. It also tells that the asker is gone, if nothing
/// else does.
const ALIVE: Duration = Duration::from_secs(1);
/// Records whose lines are sent together at most.
const PIECE: usize = 256;
/// Records that the ring buffer holds, each with the 8 bytes that the kernel puts before it.
const RING_RECORDS: u64 = TRACE_BYTES as u64 / (size_of::<TraceEvent>() as u64 + 8);
/// Waiting longer than anybody does.
const FOREVER: Duration = Duration::from_hours(365 * 24);

/// Write the filter of the next trace.
pub(super) fn set_filter(path: &Path, filter: TraceFilter) -> Result<(), BpfError> {
    let write = || -> Result<(), MapError> {
        let mut map = Array::try_from(Map::Array(MapData::from_pin(path)?))?;
        map.set(0, filter, 0)
    };
    write().map_err(|source| BpfError::Map {
        name: "trace",
        source,
    })
}

/// Take out what a trace left whose reader was killed.
pub(super) fn clear(ring: &mut RingReader<TraceEvent>) {
    // More may come as fast as it is taken, if the mark is still there.
    for _ in 0..RING_RECORDS {
        if ring.try_next().is_none() {
            return;
        }
    }
}

/// What is needed to tell of packets.
pub(super) struct Teller {
    directory: Directory,
    interfaces: BTreeMap<u32, String>,
    /// Nanoseconds since 1970 at second 0 of the coarse monotonic clock.
    epoch_ns: u64,
}

impl Teller {
    pub(super) fn new(directory: Directory) -> Self {
        let since = |clock| {
            clock_gettime(clock).map_or(0, |time| {
                let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
                let nanos = u64::try_from(time.tv_nsec()).unwrap_or(0);
                seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
            })
        };
        let monotonic = since(ClockId::CLOCK_MONOTONIC_COARSE);
        Self {
            directory,
            interfaces: BTreeMap::new(),
            epoch_ns: since(ClockId::CLOCK_REALTIME_COARSE).saturating_sub(monotonic),
        }
    }

    /// The record in words.
    fn record(&mut self, event: &TraceEvent) -> TraceRecord {
        TraceRecord {
            time_us: self.epoch_ns.saturating_add(event.time_ns) / 1000,
            decision: self.decision(event),
        }
    }

    /// The packet and its decision in words.
    pub(super) fn decision(&mut self, event: &TraceEvent) -> Decision {
        let tcp = event.proto == IPPROTO_TCP;
        let reason = reason(event);
        let backend = self.directory.backends.get(&event.backend);
        let service = self.directory.services.get(&event.service);
        Decision {
            service: service.cloned(),
            backend: backend.map(|backend| backend.name.clone()),
            interface: self.interface(event.ifindex),
            source: endpoint(event.family, event.src, event.sport),
            destination: endpoint(event.family, event.dst, event.dport),
            protocol: protocol_word(event.proto),
            flags: if tcp {
                flag_words(event.tcp_flags)
            } else {
                String::new()
            },
            seq: event.seq,
            ack: event.ack,
            length: event.length,
            stage: stage(event.stage),
            reason: reason.map_or_else(|| event.reason.to_string(), |r| r.label().to_owned()),
            verdict: verdict_word(reason).to_owned(),
            out: self.out(event, reason),
        }
    }

    /// How the packet went on, if it did.
    fn out(&mut self, event: &TraceEvent, reason: Option<Reason>) -> Option<Out> {
        let reason = reason?;
        let ifindex = match reason.verdict() {
            Verdict::Drop => return None,
            Verdict::Pass => None,
            Verdict::Tx => Some(event.ifindex),
            Verdict::Redirect => Some(event.new_ifindex),
        };
        let family = event.family;
        let source = endpoint(family, event.src, event.sport);
        let destination = endpoint(family, event.dst, event.dport);
        let (source, destination) = if answers(reason) {
            (destination, source)
        } else if matches!(reason, Reason::Local | Reason::LocalFromPeer) {
            // What differs is the port only, which the record does not carry.
            let backend = self.directory.backends.get(&event.backend);
            let port = backend.map_or(event.dport, |backend| backend.address.port());
            (source, endpoint(family, event.dst, port))
        } else if (event.new_sport, event.new_dport) == (0, 0) {
            (source, destination)
        } else {
            (
                endpoint(family, event.new_src, event.new_sport),
                endpoint(family, event.new_dst, event.new_dport),
            )
        };
        Some(Out {
            interface: ifindex.map(|ifindex| self.interface(ifindex)),
            mac: ifindex.map(|_| mac_text(event.new_mac)),
            source,
            destination,
        })
    }

    /// Name of an interface, or its index.
    fn interface(&mut self, ifindex: u32) -> String {
        let known = self.interfaces.entry(ifindex).or_insert_with(|| {
            let name = nix::net::if_::if_indextoname(ifindex);
            name.map(|name| name.to_string_lossy().into_owned())
                .ok()
                // What nix makes of an index that there is not.
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| ifindex.to_string())
        });
        known.clone()
    }
}

/// The reason of a record; `None`: a newer program's.
pub(super) fn reason(event: &TraceEvent) -> Option<Reason> {
    Reason::ALL.get(event.reason as usize).copied()
}

/// Whether the packet was made into its own answer.
pub(super) const fn answers(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NoBackendReset
            | Reason::BackendPortReset
            | Reason::FlowReset
            | Reason::NatPortsReset
    )
}

fn stage(number: u8) -> String {
    let known = Stage::ALL.iter().find(|stage| **stage as u8 == number);
    known.map_or_else(|| number.to_string(), |stage| stage.label().to_owned())
}

/// The word for a verdict.
pub(super) const fn verdict_word(reason: Option<Reason>) -> &'static str {
    match reason {
        None => "unknown",
        Some(reason) => match reason.verdict() {
            Verdict::Pass => "pass",
            Verdict::Drop => "drop",
            Verdict::Tx => "tx",
            Verdict::Redirect => "redirect",
        },
    }
}

fn endpoint(family: u8, address: [u8; 16], port: u16) -> SocketAddr {
    let ip = if family == FAMILY_V4 {
        let [a, b, c, d, ..] = address;
        IpAddr::from(Ipv4Addr::new(a, b, c, d))
    } else {
        IpAddr::from(address)
    };
    SocketAddr::new(ip, port)
}

/// Send records until enough were sent, time is up, or the asker is gone.
pub(super) async fn follow(
    mut ring: RingReader<TraceEvent>,
    mut teller: Teller,
    query: &TraceQuery,
    lines: &Lines,
) {
    let mut alive = interval(ALIVE);
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let time = query.duration_ms.map_or(FOREVER, Duration::from_millis);
    let deadline = sleep_until(Instant::now() + time.min(FOREVER));
    tokio::pin!(deadline);
    let mut tally = Tally::new(query.count);
    while !tally.is_full() {
        let event = tokio::select! {
            biased;
            () = lines.closed() => return,
            () = &mut deadline => break,
            event = ring.next() => event,
            _ = alive.tick() => {
                if lines.send(b"\n".to_vec()).await.is_err() {
                    return;
                }
                continue;
            }
        };
        let mut piece = Vec::new();
        match event {
            Ok(event) => tally.fill(&mut piece, event, &mut ring, &mut teller),
            Err(error) => {
                let text = format!("the records cannot be read: {error}");
                // The asker may be gone.
                let _ = lines.send(Item::Error(text).line()).await;
                return;
            }
        }
        if lines.send(piece).await.is_err() {
            return;
        }
    }
    // The asker may be gone.
    let _ = lines.send(Item::End(tally.end()).line()).await;
}

/// How many records were sent, and whether any can be missing.
///
/// The data plane does not wait for a full ring buffer and cannot tell how often it was full. But
/// it cannot have been while fewer records were read than it holds since it was empty.
struct Tally {
    sent: u64,
    limit: u64,
    since_empty: u64,
    lossy: bool,
}

impl Tally {
    fn new(limit: Option<u64>) -> Self {
        Self {
            sent: 0,
            limit: limit.unwrap_or(u64::MAX),
            since_empty: 0,
            lossy: false,
        }
    }

    /// Lines of `first` and of what is there beside it, as many as are still wanted.
    fn fill(
        &mut self,
        piece: &mut Vec<u8>,
        first: TraceEvent,
        ring: &mut RingReader<TraceEvent>,
        teller: &mut Teller,
    ) {
        let mut next = Some(first);
        for _ in 0..PIECE {
            let Some(event) = next else {
                return self.caught_up();
            };
            Item::Trace(Box::new(teller.record(&event))).append_to(piece);
            self.add();
            if self.is_full() {
                return;
            }
            next = ring.try_next();
        }
        // One more than fits was taken out of the ring.
        if let Some(event) = next {
            Item::Trace(Box::new(teller.record(&event))).append_to(piece);
            self.add();
        }
    }

    fn add(&mut self) {
        self.sent += 1;
        self.since_empty += 1;
        self.lossy |= self.since_empty >= RING_RECORDS;
    }

    /// The ring buffer is empty.
    const fn caught_up(&mut self) {
        self.since_empty = 0;
    }

    const fn is_full(&self) -> bool {
        self.sent >= self.limit
    }

    const fn end(&self) -> End {
        End {
            items: self.sent,
            more: false,
            lossy: self.lossy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{flows::BackendName, model::Method};

    fn ipv4(address: [u8; 4]) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&address);
        bytes
    }

    /// A SYN of 192.0.2.7 to 10.0.2.100, which goes to backend 5 by `reason`.
    fn event(reason: Reason) -> TraceEvent {
        TraceEvent {
            time_ns: 5_000_000,
            src: ipv4([192, 0, 2, 7]),
            dst: ipv4([10, 0, 2, 100]),
            new_src: ipv4([10, 0, 2, 100]),
            new_dst: ipv4([10, 0, 2, 11]),
            seq: 1,
            ack: 0,
            reason: reason.index(),
            service: 1,
            backend: 5,
            // No machine has interfaces with such numbers.
            ifindex: 900_001,
            new_ifindex: 900_002,
            length: 74,
            sport: 40_000,
            dport: 1644,
            new_sport: 40_001,
            new_dport: 6443,
            new_mac: [8, 0, 0x27, 0, 2, 0x0b],
            tcp_flags: 2,
            proto: IPPROTO_TCP,
            family: FAMILY_V4,
            stage: Stage::Select as u8,
            pad0: 0,
            pad1: 0,
        }
    }

    fn teller() -> Teller {
        let backend = BackendName {
            service: "apiserver".to_owned(),
            name: "master02".to_owned(),
            method: Method::Nat,
            address: "10.0.2.11:6443".parse().unwrap(),
        };
        Teller {
            directory: Directory {
                services: BTreeMap::from([(1, "apiserver".to_owned())]),
                backends: BTreeMap::from([(5, backend)]),
            },
            interfaces: BTreeMap::new(),
            epoch_ns: 1_000_000_000,
        }
    }

    /// A record in words: names for ids, the interface of a redirection, and the packet as it went.
    #[test]
    fn records_become_words() {
        let record = teller().record(&event(Reason::NatRedirect));
        assert_eq!(record.time_us, 1_005_000);
        let decision = record.decision;
        assert_eq!(decision.interface, "900001");
        assert_eq!(decision.source.to_string(), "192.0.2.7:40000");
        assert_eq!(decision.destination.to_string(), "10.0.2.100:1644");
        assert_eq!((&*decision.protocol, &*decision.flags), ("tcp", "syn"));
        assert_eq!(
            (&*decision.stage, &*decision.reason),
            ("select", "nat_redirect")
        );
        assert_eq!(decision.verdict, "redirect");
        assert_eq!(decision.service.as_deref(), Some("apiserver"));
        assert_eq!(decision.backend.as_deref(), Some("master02"));
        let out = decision.out.unwrap();
        assert_eq!(out.interface.as_deref(), Some("900002"));
        assert_eq!(out.mac.as_deref(), Some("08:00:27:00:02:0b"));
        assert_eq!(out.source.to_string(), "10.0.2.100:40001");
        assert_eq!(out.destination.to_string(), "10.0.2.11:6443");
    }

    /// A packet that is sent back goes out where it came in, one for this node nowhere, and one
    /// that is dropped has no way out.
    #[test]
    fn ways_out_follow_the_verdict() {
        let mut teller = teller();
        let out = teller.decision(&event(Reason::Dsr)).out.unwrap();
        assert_eq!(out.interface.as_deref(), Some("900001"));
        let out = teller.decision(&event(Reason::Local)).out.unwrap();
        assert_eq!((out.interface, out.mac), (None, None));
        assert_eq!(out.destination.to_string(), "10.0.2.100:6443");
        assert_eq!(teller.decision(&event(Reason::NoBackend)).out, None);
        let untranslated = TraceEvent {
            new_sport: 0,
            new_dport: 0,
            ..event(Reason::Dsr)
        };
        let out = teller.decision(&untranslated).out.unwrap();
        assert_eq!(out.destination.to_string(), "10.0.2.100:1644");
        let out = teller.decision(&event(Reason::NoBackendReset)).out.unwrap();
        assert_eq!(out.source.to_string(), "10.0.2.100:1644");
        assert_eq!(out.destination.to_string(), "192.0.2.7:40000");
    }

    /// Numbers that this version does not know stay numbers.
    #[test]
    fn unknown_numbers_are_shown() {
        let strange = TraceEvent {
            reason: 9_999,
            stage: 99,
            backend: 77,
            proto: 99,
            ..event(Reason::Dsr)
        };
        let decision = teller().decision(&strange);
        assert_eq!((&*decision.reason, &*decision.stage), ("9999", "99"));
        assert_eq!((&*decision.verdict, &*decision.protocol), ("unknown", "99"));
        assert_eq!((decision.backend, decision.out), (None, None));
        assert_eq!(decision.flags, "");
    }

    /// Records may be missing only if as many as the ring buffer holds came without a pause.
    #[test]
    fn losses_are_suspected_when_the_ring_may_have_been_full() {
        let mut tally = Tally::new(None);
        for _ in 0..3 {
            for _ in 1..RING_RECORDS {
                tally.add();
            }
            tally.caught_up();
        }
        assert!(!tally.end().lossy);
        for _ in 0..RING_RECORDS {
            tally.add();
        }
        assert!(tally.end().lossy && !tally.is_full());
    }
}

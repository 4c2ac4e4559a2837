//! The garbage collector of the conntrack: a thread that looks at all entries every few seconds,
//! a few at a time, and deletes those that are over.
//!
//! It costs the data plane nothing, and the controller's thread nothing: it has descriptors of its
//! own, and sleeps between its steps.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use aya::Pod;
use lb_common::{
    abi::{Address, Flow, FlowKey, NatReturn},
    conntrack::FlowState,
};
use tracing::{debug, warn};

use super::{
    bpf::{BpfError, Conntrack, FamilyConntrack, Table},
    clock,
};
use crate::admin::model::ConntrackStatus;
use crate::core::conntrack::{self, Backends, Cause, Orphans};

/// Pause between the end of a scan and the next one.
const SCAN_PAUSE: Duration = Duration::from_secs(10);
/// Pause between two pieces of a map: all maps, full, take some ten seconds and a small part of one
/// CPU.
const STEP_PAUSE: Duration = Duration::from_millis(20);

/// What the collector has seen and done.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Entries by map and state at the last scan, those of return maps under "return"; only what
    /// there was.
    pub entries: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
    /// Entries deleted since the controller started.
    pub deleted: BTreeMap<Cause, u64>,
    /// Scans that came to their end.
    pub scans: u64,
    /// How long the last one took, its pauses included.
    pub last_scan: Duration,
}

/// The running collector. Dropping it ends its thread.
pub struct Collector {
    report: Arc<Mutex<Report>>,
    /// Its end wakes the thread.
    _running: SyncSender<()>,
}

impl Collector {
    /// Start one on these maps.
    pub fn start(maps: Conntrack) -> io::Result<Self> {
        let report = Arc::new(Mutex::new(Report::default()));
        let (running, stop) = sync_channel(0);
        let worker = Worker {
            maps,
            stop,
            report: Arc::clone(&report),
            orphans4: Orphans::default(),
            orphans6: Orphans::default(),
        };
        thread::Builder::new()
            .name("xvip-collect".to_owned())
            .spawn(move || worker.run())?;
        Ok(Self {
            report,
            _running: running,
        })
    }

    /// What it has seen and done so far.
    pub fn report(&self) -> Report {
        lock(&self.report).clone()
    }

    /// The same for the status document.
    pub fn status(&self) -> ConntrackStatus {
        let report = self.report();
        let named = |counts: BTreeMap<&'static str, u64>| -> BTreeMap<String, u64> {
            let pairs = counts.into_iter();
            pairs
                .map(|(name, count)| (name.to_owned(), count))
                .collect()
        };
        let deleted = report.deleted.into_iter();
        ConntrackStatus {
            entries: report
                .entries
                .into_iter()
                .map(|(map, states)| (map.to_owned(), named(states)))
                .collect(),
            deleted: named(deleted.map(|(cause, n)| (cause.label(), n)).collect()),
            scans: report.scans,
            last_scan_ms: u64::try_from(report.last_scan.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// A thread that ended while it held the report leaves it readable.
fn lock(report: &Mutex<Report>) -> std::sync::MutexGuard<'_, Report> {
    report.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The controller ends.
struct Stopped;

struct Worker {
    maps: Conntrack,
    stop: Receiver<()>,
    report: Arc<Mutex<Report>>,
    orphans4: Orphans<[u8; 4]>,
    orphans6: Orphans<[u8; 16]>,
}

impl Worker {
    fn run(mut self) {
        while pause(&self.stop, SCAN_PAUSE).is_ok() {
            let started = Instant::now();
            let result = self.scan();
            let mut report = lock(&self.report);
            match result {
                Ok(scan) => {
                    debug!(entries = ?scan.entries, deleted = ?scan.deleted, "conntrack scanned");
                    report.scans += 1;
                    report.last_scan = started.elapsed();
                    report.entries = scan.entries;
                    for (cause, count) in scan.deleted {
                        *report.deleted.entry(cause).or_default() += count;
                    }
                }
                Err(Interrupted::Stopped(Stopped)) => return,
                Err(Interrupted::Failed(error)) => {
                    warn!(%error, "cannot look through the conntrack entries");
                }
            }
        }
    }

    /// Look at every entry.
    fn scan(&mut self) -> Result<Counts, Interrupted> {
        let mut scan = Scan {
            backends: self.maps.backends()?,
            stop: &self.stop,
            counts: Counts::default(),
        };
        scan.family(&mut self.maps.v4, &mut self.orphans4)?;
        scan.family(&mut self.maps.v6, &mut self.orphans6)?;
        Ok(scan.counts)
    }
}

/// Why a scan did not come to its end.
enum Interrupted {
    Stopped(Stopped),
    Failed(BpfError),
}

impl From<Stopped> for Interrupted {
    fn from(stopped: Stopped) -> Self {
        Self::Stopped(stopped)
    }
}

impl From<BpfError> for Interrupted {
    fn from(error: BpfError) -> Self {
        Self::Failed(error)
    }
}

/// What a scan found.
#[derive(Default)]
struct Counts {
    entries: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
    deleted: BTreeMap<Cause, u64>,
}

impl Counts {
    fn entry(&mut self, map: &'static str, state: &'static str) {
        *self
            .entries
            .entry(map)
            .or_default()
            .entry(state)
            .or_default() += 1;
    }

    fn deleted(&mut self, cause: Cause) {
        *self.deleted.entry(cause).or_default() += 1;
    }
}

/// One look at all entries.
struct Scan<'a> {
    backends: Backends,
    stop: &'a Receiver<()>,
    counts: Counts,
}

impl Scan<'_> {
    fn family<A: Address + Ord + Pod + Into<IpAddr>>(
        &mut self,
        maps: &mut FamilyConntrack<A>,
        orphans: &mut Orphans<A>,
    ) -> Result<(), Interrupted>
    where
        FlowKey<A>: Pod,
        NatReturn<A>: Pod,
    {
        self.flows(&mut maps.half_flows)?;
        self.flows(&mut maps.flows)?;
        let owners = [&maps.flows, &maps.half_flows];
        self.returns(&mut maps.half_returns, owners, orphans)?;
        self.returns(&mut maps.returns, owners, orphans)?;
        orphans.end_scan();
        Ok(())
    }

    /// Delete the flows that are over.
    ///
    /// Each is looked at once more just before, since its piece is some milliseconds old. An entry
    /// that the data plane uses again between that look and the deletion is lost: the next segment
    /// of such a flow goes where it went before (the same Maglev table, the same return entry), as
    /// when another node takes over.
    fn flows<K: Pod>(&mut self, table: &mut Table<K, Flow>) -> Result<(), Interrupted> {
        for piece in table.pieces()? {
            let now = clock::monotonic_seconds();
            for (key, flow) in piece? {
                let cause = conntrack::over(&flow, &self.backends, now)
                    .and(table.get(&key)?)
                    .and_then(|flow| conntrack::over(&flow, &self.backends, now));
                if let Some(cause) = cause {
                    table.remove(&key)?;
                    self.counts.deleted(cause);
                } else {
                    self.counts.entry(table.name(), state_word(flow.state()));
                }
            }
            pause(self.stop, STEP_PAUSE)?;
        }
        Ok(())
    }

    /// Delete the return entries that no flow has used for two scans.
    fn returns<A: Address + Ord + Pod + Into<IpAddr>>(
        &mut self,
        table: &mut Table<FlowKey<A>, NatReturn<A>>,
        owners: [&Table<FlowKey<A>, Flow>; 2],
        orphans: &mut Orphans<A>,
    ) -> Result<(), Interrupted>
    where
        FlowKey<A>: Pod,
        NatReturn<A>: Pod,
    {
        for piece in table.pieces()? {
            for (key, entry) in piece? {
                if !is_used(owners, (&key, &entry), &self.backends)? && orphans.note(&key, &entry) {
                    table.remove(&key)?;
                    self.counts.deleted(Cause::Orphan);
                } else {
                    self.counts.entry(table.name(), "return");
                }
            }
            pause(self.stop, STEP_PAUSE)?;
        }
        Ok(())
    }
}

/// Whether a flow uses the return entry.
fn is_used<A: Address + Pod + Into<IpAddr>>(
    owners: [&Table<FlowKey<A>, Flow>; 2],
    (key, entry): (&FlowKey<A>, &NatReturn<A>),
    backends: &Backends,
) -> Result<bool, BpfError>
where
    FlowKey<A>: Pod,
    NatReturn<A>: Pod,
{
    let owner = conntrack::owner(key, entry);
    for table in owners {
        if let Some(flow) = table.get(&owner)?
            && conntrack::uses(&flow, key, entry, backends)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The word for a state in the status document, and in `xvip flows`.
pub const fn state_word(state: FlowState) -> &'static str {
    match state {
        FlowState::Syn => "syn",
        FlowState::Established => "established",
        FlowState::Fin => "fin",
        FlowState::Closed => "closed",
        FlowState::Udp => "udp",
    }
}

/// Sleep, unless the controller ends.
fn pause(stop: &Receiver<()>, time: Duration) -> Result<(), Stopped> {
    match stop.recv_timeout(time) {
        Err(RecvTimeoutError::Timeout) => Ok(()),
        Ok(()) | Err(RecvTimeoutError::Disconnected) => Err(Stopped),
    }
}

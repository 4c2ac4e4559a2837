//! False takeovers: an owner and a Backup with fast adverts, while every CPU of the machine is busy.
//!
//! Both nodes run on this machine, and so do the processes that keep it busy: two endless loops for
//! each CPU, which is more than a machine does that still serves anybody. Nobody stops, freezes or
//! cuts anything, so every change of state is a false one.
//!
//! Beside them is a floor: on each CPU a thread that only sleeps, a millisecond at a time, with a higher
//! real-time priority than the controllers. Where it is late nobody could have been in time: the kernel,
//! or the machine below it, stood still.

use std::{
    fs::File,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use lb_tests::{
    cluster::{Cluster, PATIENCE},
    control_plane::VIP4,
    process::{Process, TempDir, output, wait_until},
    ways::unchecked_service,
};
use lb_user::admin::model::{Status, VrrpState, VrrpStatus};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::{Pid, gettid},
};
use serde::Serialize;

/// What to try, and for how long.
#[derive(Args, Clone)]
pub(crate) struct Options {
    /// Minutes for each case.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// `vrrp.advert_interval` of the cases.
    #[arg(long, value_delimiter = ',', default_value = "10ms,20ms,50ms,100ms")]
    intervals: Vec<String>,
    /// `node.realtime` of the cases.
    #[arg(long, value_delimiter = ',', default_value = "on,off")]
    realtime: Vec<String>,
    /// Endless loops for each CPU.
    #[arg(long, default_value_t = 2)]
    loops: usize,
}

/// The owner first.
const NODES: [&str; 2] = ["m1", "m2"];
/// How often somebody asks for the status, as monitoring does.
const POLL: Duration = Duration::from_secs(1);
/// Of the floor's threads.
const SLEEP: Duration = Duration::from_millis(1);

/// One case.
#[derive(Serialize)]
struct Row {
    interval: String,
    realtime: String,
    /// What the controllers say of their scheduling.
    scheduling: String,
    minutes: f64,
    /// Changes of state of both nodes.
    changes: u64,
    /// Those of them that the floor has no reason for: no standstill since the look before last.
    unexplained: u64,
    /// Adverts that the two sent.
    adverts: u64,
    /// Timers that were served more than half an interval late, of owner and Backup.
    late_timers: [u64; 2],
    /// How late the worst of them was.
    late_max_ms: [u64; 2],
    /// Of the floor.
    floor: Floor,
}

/// What the threads saw that only sleep.
#[derive(Clone, Copy, Default, Serialize)]
struct Floor {
    /// Sleeps that were too long by more than two intervals: an owner whose advert was due at their start
    /// has lost its lease, which lasts three from the advert before.
    standstills: u64,
    /// Sleeps that were too long by more than half an interval.
    late: u64,
    /// The worst.
    max_ms: u64,
}

/// The results.
#[derive(Serialize)]
pub(crate) struct Results {
    loops_per_cpu: usize,
    cpus: usize,
    rows: Vec<Row>,
}

/// Tries every case and prints a table.
pub(crate) fn run(options: &Options) -> Result<Results> {
    let cpus = thread::available_parallelism()?.get();
    println!("{} loops on {cpus} CPUs", options.loops * cpus);
    println!(
        "{:>8} {:>8} {:>8} {:>8} {:>11} {:>10} {:>16} {:>16}  floor: standstills, late, worst",
        "interval",
        "realtime",
        "minutes",
        "changes",
        "unexplained",
        "adverts",
        "late timers",
        "worst, ms"
    );
    let mut rows = Vec::new();
    for interval in &options.intervals {
        for realtime in &options.realtime {
            let row = case(options, cpus, interval, realtime)?;
            println!(
                "{:>8} {:>8} {:>8} {:>8} {:>11} {:>10} {:>16} {:>16}  {:>6} {:>6} {:>4} ms   {}",
                row.interval,
                row.realtime,
                row.minutes,
                row.changes,
                row.unexplained,
                row.adverts,
                format!("{:?}", row.late_timers),
                format!("{:?}", row.late_max_ms),
                row.floor.standstills,
                row.floor.late,
                row.floor.max_ms,
                row.scheduling,
            );
            rows.push(row);
        }
    }
    Ok(Results {
        loops_per_cpu: options.loops,
        cpus,
        rows,
    })
}

fn case(options: &Options, cpus: usize, interval: &str, realtime: &str) -> Result<Row> {
    let cluster = cluster(interval, realtime)?;
    let directory = TempDir::new(&lb_tests::netns::unique("adverts"))?;
    let loops: Result<Vec<_>> = (0..options.loops * cpus)
        .map(|number| busy_loop(&directory, number))
        .collect();
    let loops = loops?;
    // One that is made Active while the loops start settles again.
    wait_until("the owner that shall be", PATIENCE, || {
        let [owner, backup] = look(&cluster)?;
        let settled = owner.state == VrrpState::Active && backup.state == VrrpState::Backup;
        Ok(settled.then_some(()))
    })?;
    let before = look(&cluster)?;
    let floor = FloorThreads::start(cpus, interval_of(interval)?)?;
    let mut reasons = Reasons::default();
    let end = Instant::now() + Duration::from_secs_f64(options.minutes * 60.0);
    while Instant::now() < end {
        thread::sleep(POLL.min(end.saturating_duration_since(Instant::now())));
        let looked = look(&cluster)?;
        reasons.note(changes(&before, &looked), floor.standstills());
    }
    let floor = floor.stop()?;
    let after = look(&cluster)?;
    ensure!(loops.iter().all(Process::is_running), "a loop has ended");
    let grown = |count: fn(&VrrpStatus) -> u64| {
        let pairs = after.iter().zip(&before);
        pairs
            .map(|(after, before)| count(after).saturating_sub(count(before)))
            .collect::<Vec<_>>()
    };
    let late = grown(|vrrp| vrrp.late_timers);
    Ok(Row {
        interval: interval.to_owned(),
        realtime: realtime.to_owned(),
        scheduling: scheduling(&cluster)?,
        minutes: options.minutes,
        changes: changes(&before, &after),
        unexplained: reasons.unexplained,
        adverts: grown(|vrrp| vrrp.adverts_sent).iter().sum(),
        late_timers: late.try_into().unwrap_or_default(),
        late_max_ms: after.map(|vrrp| vrrp.late_max_ms),
        floor,
    })
}

/// Two masters with an IPv4 VIP and a service that nobody checks: what takes the addresses to and fro
/// is their adverts alone.
fn cluster(interval: &str, realtime: &str) -> Result<Cluster> {
    let mut cluster = Cluster::builder().masters(2).prepare(|plane| {
        interval.clone_into(&mut plane.advert_interval);
        plane.node = format!("realtime = \"{realtime}\"");
        plane.backends.clear();
    })?;
    let target = (VIP4, 1644).into();
    for name in NODES {
        let backend = (cluster.node(name).ipv4(), 6443).into();
        let service = unchecked_service("apiserver", target, ("m1", backend), "");
        cluster.edit_config(name, |config| config.push_str(&service));
    }
    for name in NODES {
        cluster.start_xvip(name)?;
    }
    cluster.wait_state("m1", VrrpState::Active)?;
    cluster.wait_state("m2", VrrpState::Backup)?;
    Ok(cluster)
}

/// Changes of state of both nodes from one look to another.
fn changes(before: &[VrrpStatus; 2], after: &[VrrpStatus; 2]) -> u64 {
    let pairs = after.iter().zip(before);
    pairs
        .map(|(after, before)| after.transitions.saturating_sub(before.transitions))
        .sum()
}

/// Which changes of state came with a standstill of the machine, and which did not.
#[derive(Default)]
struct Reasons {
    changes: u64,
    /// As counted at the last look, and at the one before.
    standstills: [u64; 2],
    unexplained: u64,
}

impl Reasons {
    /// Takes what was counted so far. A node tells of a change a moment after the standstill, so one that
    /// the look before found is a reason as well.
    fn note(&mut self, changes: u64, standstills: u64) {
        let [last, earlier] = self.standstills;
        if standstills == earlier {
            self.unexplained += changes.saturating_sub(self.changes);
        }
        self.changes = changes;
        self.standstills = [standstills, last];
    }
}

/// The instances of owner and Backup.
fn look(cluster: &Cluster) -> Result<[VrrpStatus; 2]> {
    let [owner, backup] = NODES;
    Ok([cluster.vrrp(owner)?, cluster.vrrp(backup)?])
}

fn scheduling(cluster: &Cluster) -> Result<String> {
    let of = |node: &str| -> Result<String> {
        let status: Status = cluster.status(node)?;
        Ok(status.scheduling.what)
    };
    let [owner, backup] = NODES;
    let (owner, backup) = (of(owner)?, of(backup)?);
    Ok(if owner == backup {
        owner
    } else {
        format!("{owner}; {backup}")
    })
}

fn busy_loop(directory: &TempDir, number: usize) -> Result<Process> {
    let mut command = Command::new("sh");
    command.args(["-c", "while :; do :; done"]);
    let log = directory.path().join(format!("loop{number}"));
    File::create(&log).context("cannot make a log")?;
    Process::spawn("a busy loop", &command, None, log)
}

fn interval_of(text: &str) -> Result<Duration> {
    let number = text
        .strip_suffix("ms")
        .context("intervals are in ms here")?;
    Ok(Duration::from_millis(number.parse()?))
}

/// The floor's threads, one on each CPU.
struct FloorThreads {
    threads: Vec<JoinHandle<Floor>>,
    ends: Arc<AtomicBool>,
    standstills: Arc<AtomicU64>,
}

impl FloorThreads {
    fn start(cpus: usize, interval: Duration) -> Result<Self> {
        let ends = Arc::new(AtomicBool::new(false));
        let standstills = Arc::new(AtomicU64::new(0));
        let threads = (0..cpus).map(|cpu| {
            let (ends, standstills) = (Arc::clone(&ends), Arc::clone(&standstills));
            let thread = thread::Builder::new();
            let thread = thread.spawn(move || sleep_on(cpu, interval, &ends, &standstills));
            thread.context("cannot start a thread")
        });
        Ok(Self {
            threads: threads.collect::<Result<_>>()?,
            ends,
            standstills,
        })
    }

    /// How many there were so far.
    fn standstills(&self) -> u64 {
        self.standstills.load(Ordering::Relaxed)
    }

    fn stop(self) -> Result<Floor> {
        self.ends.store(true, Ordering::Relaxed);
        let mut sum = Floor::default();
        for thread in self.threads {
            let floor = thread.join().ok().context("a thread of the floor failed")?;
            sum.late += floor.late;
            sum.max_ms = sum.max_ms.max(floor.max_ms);
        }
        sum.standstills = self.standstills.load(Ordering::Relaxed);
        Ok(sum)
    }
}

/// Sleeps on `cpu` until `ends`. The thread makes itself a real-time one by `chrt`, which may set the
/// scheduling of any thread.
fn sleep_on(cpu: usize, interval: Duration, ends: &AtomicBool, standstills: &AtomicU64) -> Floor {
    let mut set = CpuSet::new();
    // What fails here shows: a floor above what stands on it.
    let _ = set
        .set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    let own = gettid().to_string();
    let _ = output(Command::new("chrt").args(["--fifo", "--pid", "60", &own]));
    let mut floor = Floor::default();
    while !ends.load(Ordering::Relaxed) {
        let before = Instant::now();
        thread::sleep(SLEEP);
        let late = before.elapsed().saturating_sub(SLEEP);
        floor.late += u64::from(late > interval / 2);
        // One that began in the middle of a sleep.
        standstills.fetch_add(u64::from(late + SLEEP > interval * 2), Ordering::Relaxed);
        let millis = u64::try_from(late.as_millis()).unwrap_or(u64::MAX);
        floor.max_ms = floor.max_ms.max(millis);
    }
    floor
}

//! The BPF object under test: loaded with maps of its own, run on one frame at a time through
//! `BPF_PROG_TEST_RUN`, and asked which reasons it counted.

use std::{
    env, fs, mem,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod, TestRun, TestRunOptions, VerifierLogLevel,
    maps::{
        Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuValues, RingBuf,
        SockMap,
    },
    programs::{
        CgroupSockAddr, Program, ProgramError, ProgramInfo, SchedClassifier, SkLookup, Xdp,
    },
};
use aya_log::EbpfLogger;
use lb_common::{
    abi::{BackendCounters, Counters, REASON_SLOTS, reason_index},
    reason::{Reason, Verdict},
};
use lb_user::io::bpf::features::Features;
use log::{Log, Metadata, Record};
use nix::errno::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::counters;

/// Names of the object's programs.
pub const PROGRAMS: &[&str] = &[
    "xdp_ingress",
    "tc_ingress",
    "xdp_stub",
    "tc_egress",
    "connect4",
    "connect6",
    "getpeername4",
    "getpeername6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "socket_lookup",
];

/// Capacities that are enough for a test: the shipped ones take 150 MB.
const SMALL: &[(&str, u32)] = &[
    ("flows4", 1024),
    ("flows6", 1024),
    ("returns4", 1024),
    ("returns6", 1024),
    ("connects4", 1024),
    ("connects6", 1024),
    ("sends4", 1024),
    ("sends6", 1024),
    ("maglev", 24),
    ("half_flows4", 1024),
    ("half_flows6", 1024),
    ("half_returns4", 1024),
    ("half_returns6", 1024),
];

/// Service ids whose counters are looked at are below this one.
const SERVICES: u32 = 3;

/// Lies before the frames that XDP programs get.
const POISON: [u8; 32] = [0xa5; 32];
/// What a frame may grow by.
const TAILROOM: usize = 64;
/// Lines of the verifier's log that say why it refuses a program.
const LAST_LINES: usize = 12;

/// The object's bytes: from the file that `XVIP_BPF_OBJECT` names, else as `cargo xtask build`
/// leaves it.
pub fn object() -> Result<Vec<u8>> {
    let path = object_path();
    fs::read(&path).with_context(|| {
        format!(
            "{}: run `cargo xtask build`, or set XVIP_BPF_OBJECT",
            path.display()
        )
    })
}

/// The object that logs its decisions, as `cargo xtask build --bpf-log` leaves it beside the other.
fn log_object() -> Result<Vec<u8>> {
    let path = object_path().with_file_name("xvip-bpf-log.o");
    fs::read(&path).with_context(|| format!("{}: cargo xtask build --bpf-log", path.display()))
}

fn object_path() -> PathBuf {
    env::var_os("XVIP_BPF_OBJECT").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/xvip-bpf.o"),
        PathBuf::from,
    )
}

/// Keeps the lines that programs log.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Log for Lines {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = record.args().to_string();
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(line);
    }

    fn flush(&self) {}
}

/// What a program did with one packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The program's return value.
    pub action: Action,
    /// The packet afterwards.
    pub frame: Vec<u8>,
    /// The reasons that were counted, each with its packets and bytes.
    pub counted: Vec<(Reason, u64, u64)>,
}

impl Run {
    /// Whether exactly `reason` was counted, once, with all bytes of a frame of `length` bytes,
    /// and the verdict is its own.
    pub fn is(&self, reason: Reason, length: usize) -> bool {
        self.action == Action::Verdict(reason.verdict())
            && self.counted == [(reason, 1, length as u64)]
    }
}

/// A program's return value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// One of those that reasons know.
    Verdict(Verdict),
    /// Any other, `XDP_ABORTED` for one.
    Other(u32),
}

impl Action {
    /// `enum xdp_action`.
    fn xdp(value: u32) -> Self {
        match value {
            1 => Self::Verdict(Verdict::Drop),
            2 => Self::Verdict(Verdict::Pass),
            3 => Self::Verdict(Verdict::Tx),
            4 => Self::Verdict(Verdict::Redirect),
            other => Self::Other(other),
        }
    }

    /// `enum tcx_action_base`: `TCX_NEXT` is -1; `bpf_redirect` returns `TCX_REDIRECT`.
    fn tcx(value: u32) -> Self {
        match value {
            u32::MAX => Self::Verdict(Verdict::Pass),
            2 => Self::Verdict(Verdict::Drop),
            7 => Self::Verdict(Verdict::Redirect),
            other => Self::Other(other),
        }
    }
}

/// The fields of a socket buffer that a program run can set.
#[derive(Clone, Copy, Debug, Default)]
pub struct SkBuff {
    /// Segments that the device will cut, 0 for none.
    pub gso_segs: u32,
    /// Data bytes of each.
    pub gso_size: u32,
    /// Interface that it comes in or goes out through; 0: the loopback.
    pub ifindex: u32,
}

impl SkBuff {
    /// `struct __sk_buff`; all that is not set must be zero.
    fn bytes(self) -> [u8; 192] {
        const IFINDEX: usize = 40;
        const GSO_SEGS: usize = 164;
        const GSO_SIZE: usize = 176;
        let mut bytes = [0; 192];
        bytes[IFINDEX..IFINDEX + 4].copy_from_slice(&self.ifindex.to_ne_bytes());
        bytes[GSO_SEGS..GSO_SEGS + 4].copy_from_slice(&self.gso_segs.to_ne_bytes());
        bytes[GSO_SIZE..GSO_SIZE + 4].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes
    }
}

/// The object as it is fitted to the running kernel, with its maps; its programs are still to be loaded.
fn for_this_kernel(loader: &mut EbpfLoader<'_>, object: &[u8]) -> Result<Ebpf> {
    let features = Features::detect();
    features.apply(loader);
    let object = features.object(object);
    // The programs use no kernel types: reading the kernel's own BTF would take most of the time.
    loader
        .btf(None)
        .load(&object)
        .context("cannot load the object")
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::Xdp(xdp) => xdp.load(),
        Program::SchedClassifier(classifier) => classifier.load(),
        Program::CgroupSockAddr(hook) => hook.load(),
        Program::SkLookup(lookup) => lookup.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// What the verifier says of a program that it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Instructions that it looked at, along all paths.
    pub instructions: u32,
    /// States that it made.
    pub total_states: u32,
    /// States that it held at once.
    pub peak_states: u32,
}

impl Verified {
    /// Reads the line with the statistics.
    fn of_log(log: &str) -> Option<Self> {
        let mut words = log
            .lines()
            .rfind(|line| line.starts_with("processed "))?
            .split(' ');
        let instructions = words.nth(1)?.parse().ok()?;
        let mut after = |name| words.find(|word| *word == name).and_then(|_| words.next());
        Some(Self {
            instructions,
            total_states: after("total_states")?.parse().ok()?,
            peak_states: after("peak_states")?.parse().ok()?,
        })
    }
}

/// What the verifier says of each program of the object as it ships, each by itself: its statistics, or
/// the end of its log where it refuses one.
///
/// For a process that does nothing else: meanwhile it may open no file. The kernel writes statistics
/// for a program that it takes, and aya returns the log of one that cannot be loaded; so the
/// programs are loaded where there is no descriptor left for them, which comes out after the
/// verifier is through.
pub fn verify() -> Result<Vec<(&'static str, Result<Verified, String>)>> {
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::STATS);
    let mut ebpf = for_this_kernel(&mut loader, &object()?)?;
    let usual = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(0),
            ..usual
        },
    )?;
    let mut answers = Vec::new();
    for name in PROGRAMS {
        let program = ebpf
            .program_mut(name)
            .with_context(|| format!("no program {name}"))?;
        answers.push((*name, verify_program(program)));
    }
    setrlimit(Resource::Nofile, usual)?;
    Ok(answers)
}

fn verify_program(program: &mut Program) -> Result<Verified, String> {
    match load(program) {
        Err(ProgramError::LoadError {
            io_error,
            verifier_log,
        }) => {
            let log = verifier_log.to_string();
            let verified = Verified::of_log(&log);
            let taken = io_error.raw_os_error() == Some(Errno::EMFILE as i32);
            verified.filter(|_| taken).ok_or_else(|| {
                let mut lines: Vec<_> = log.lines().rev().take(LAST_LINES).collect();
                lines.reverse();
                format!("{io_error}\n{}", lines.join("\n"))
            })
        }
        Err(other) => Err(other.to_string()),
        Ok(()) => Err("loaded although there is no descriptor for it".to_owned()),
    }
}

/// The loaded object.
pub struct DataPlane {
    ebpf: Ebpf,
    /// Reads what the programs log, and what it has read.
    log: Option<(EbpfLogger<Lines>, Lines)>,
    /// Reason counters after the last run.
    seen: Mutex<Vec<Counters>>,
}

impl DataPlane {
    /// Load the object with small maps and these of its programs.
    pub fn load(programs: &[&str]) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        for (map, entries) in SMALL {
            loader.map_max_entries(map, *entries);
        }
        Self::load_with(&mut loader, programs)
    }

    /// Load the object with small maps but for these, and with these of its programs.
    pub fn load_sized(programs: &[&str], capacities: &[(&str, u32)]) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        for (map, entries) in SMALL.iter().chain(capacities) {
            loader.map_max_entries(map, *entries);
        }
        Self::load_with(&mut loader, programs)
    }

    /// Load the object as it ships, with all of its programs.
    pub fn load_shipped() -> Result<Self> {
        Self::load_with(&mut EbpfLoader::new(), PROGRAMS)
    }

    /// Load the object that logs its decisions, with small maps and these of its programs.
    pub fn load_logging(programs: &[&str]) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        for (map, entries) in SMALL {
            loader.map_max_entries(map, *entries);
        }
        let mut plane = Self::load_object(&mut loader, &log_object()?, programs)?;
        let lines = Lines::default();
        let reader = EbpfLogger::init_with_logger(&mut plane.ebpf, lines.clone())?;
        plane.log = Some((reader, lines));
        Ok(plane)
    }

    fn load_with(loader: &mut EbpfLoader<'_>, programs: &[&str]) -> Result<Self> {
        Self::load_object(loader, &object()?, programs)
    }

    fn load_object(loader: &mut EbpfLoader<'_>, object: &[u8], programs: &[&str]) -> Result<Self> {
        let mut ebpf = for_this_kernel(loader, object)?;
        for name in programs {
            let program = ebpf
                .program_mut(name)
                .with_context(|| format!("no program {name}"))?;
            load(program).with_context(|| format!("the kernel refuses {name}"))?;
        }
        let plane = Self {
            ebpf,
            log: None,
            seen: Mutex::default(),
        };
        plane.counted()?;
        Ok(plane)
    }

    /// A cgroup hook, to be attached.
    pub fn hook(&mut self, name: &str) -> Result<&mut CgroupSockAddr> {
        let program = self.ebpf.program_mut(name).context("no such program")?;
        Ok(program.try_into()?)
    }

    /// The program that finds listeners, to be attached.
    pub fn socket_lookup(&mut self) -> Result<&mut SkLookup> {
        let program = self.ebpf.program_mut("socket_lookup");
        Ok(program.context("no such program")?.try_into()?)
    }

    /// What the kernel says about a loaded program.
    pub fn info(&self, name: &str) -> Result<ProgramInfo> {
        let program = self.ebpf.program(name).context("no such program")?;
        Ok(program.info()?)
    }

    /// A hash map (LRU or not).
    pub fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> Result<HashMap<&mut MapData, K, V>> {
        let map = self.ebpf.map_mut(name).with_context(|| missing(name))?;
        HashMap::try_from(map).with_context(|| format!("{name} is another kind of map"))
    }

    /// A hash map (LRU or not) as the kernel knows it.
    pub fn hash_data(&self, name: &str) -> Result<&MapData> {
        match self.ebpf.map(name).with_context(|| missing(name))? {
            Map::HashMap(data) | Map::LruHashMap(data) => Ok(data),
            _ => anyhow::bail!("{name} is another kind of map"),
        }
    }

    /// A trie of prefixes.
    pub fn trie<K: Pod, V: Pod>(&mut self, name: &str) -> Result<LpmTrie<&mut MapData, K, V>> {
        let map = self.ebpf.map_mut(name).with_context(|| missing(name))?;
        LpmTrie::try_from(map).with_context(|| format!("{name} is another kind of map"))
    }

    /// What the programs told the controller since the last call: the words of each event.
    pub fn events(&mut self) -> Result<Vec<[u32; 4]>> {
        let events = self.records("events")?;
        let words = |event: &Vec<u8>| -> Result<[u32; 4]> {
            let (words, rest) = event.as_chunks::<4>();
            let words: Vec<u32> = words.iter().copied().map(u32::from_ne_bytes).collect();
            ensure!(rest.is_empty(), "an event of {} bytes", event.len());
            Ok(words.as_slice().try_into()?)
        };
        events.iter().map(words).collect()
    }

    /// What the programs wrote to a ring buffer since the last call.
    pub fn records(&mut self, name: &str) -> Result<Vec<Vec<u8>>> {
        let map = self.ebpf.map_mut(name).with_context(|| missing(name))?;
        let mut ring = RingBuf::try_from(map)?;
        let mut records = Vec::new();
        while let Some(record) = ring.next() {
            records.push(record.to_vec());
        }
        Ok(records)
    }

    /// The lines that the programs have logged and nobody has read.
    pub fn lines(&mut self) -> Result<Vec<String>> {
        let (reader, lines) = self.log.as_mut().context("the programs do not log")?;
        reader.flush();
        let mut lines = lines.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(mem::take(&mut *lines))
    }

    /// Whether the object has a map of this name.
    pub fn has_map(&self, name: &str) -> bool {
        self.ebpf.map(name).is_some()
    }

    /// An array.
    pub fn array<V: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>> {
        let map = self.ebpf.map_mut(name).with_context(|| missing(name))?;
        Array::try_from(map).with_context(|| format!("{name} is another kind of map"))
    }

    /// Write an element of a per-CPU array, the same on every CPU.
    pub fn put_on_every_cpu<V: Pod>(&mut self, name: &str, index: u32, value: V) -> Result<()> {
        let map = self.ebpf.map_mut(name).with_context(|| missing(name))?;
        let mut map: PerCpuArray<_, V> = PerCpuArray::try_from(map)?;
        let cpus =
            aya::util::nr_cpus().map_err(|(path, error)| anyhow::anyhow!("{path}: {error}"))?;
        let values = PerCpuValues::try_from(vec![value; cpus])?;
        Ok(map.set(index, values, 0)?)
    }

    /// The reasons counted for services below [`SERVICES`], summed over the CPUs.
    fn reasons(&self) -> Result<Vec<Counters>> {
        let name = "reason_stats";
        let map = self.ebpf.map(name).with_context(|| missing(name))?;
        let Map::PerCpuArray(data) = map else {
            anyhow::bail!("{name} is another kind of map");
        };
        let sum = |values: &[Counters]| {
            values
                .iter()
                .copied()
                .fold(Counters::default(), Counters::plus)
        };
        let services = 0..SERVICES;
        let indices =
            services.flat_map(|id| Reason::ALL.iter().map(move |it| reason_index(id, *it)));
        // One by one, this is most of what a row costs.
        if let Some(all) = counters::first_elements(data, SERVICES * REASON_SLOTS)? {
            let of = |index: u32| all.get(index as usize).context("no such counter");
            return indices.map(|index| Ok(sum(of(index)?))).collect();
        }
        let map: PerCpuArray<_, Counters> = PerCpuArray::try_from(map)?;
        indices.map(|index| Ok(sum(&map.get(&index, 0)?))).collect()
    }

    /// What was counted since the program was loaded for service id `service` (below `SERVICES`).
    pub fn service(&self, service: u32) -> Result<Counters> {
        let all = self.reasons()?;
        let own = all
            .chunks(Reason::COUNT)
            .nth(service as usize)
            .context("no such service")?;
        Ok(own
            .iter()
            .copied()
            .fold(Counters::default(), Counters::plus))
    }

    /// The counters of backend ids below `count`, summed over the CPUs.
    pub fn backends(&self, count: u32) -> Result<Vec<BackendCounters>> {
        let name = "backend_stats";
        let map = self.ebpf.map(name).with_context(|| missing(name))?;
        let map: PerCpuArray<_, BackendCounters> = PerCpuArray::try_from(map)?;
        (0..count)
            .map(|index| {
                let values = map.get(&index, 0)?;
                let sum = values.iter().copied();
                Ok(sum.fold(BackendCounters::default(), BackendCounters::plus))
            })
            .collect()
    }

    /// No listener is kept, even if another process has a copy of it that is still open.
    pub fn forget_listeners(&mut self) -> Result<()> {
        let map = self.ebpf.map_mut("listeners");
        let mut map = SockMap::try_from(map.context(missing("listeners"))?)?;
        for service in 0..SERVICES {
            match map.clear_index(&service) {
                Err(MapError::SyscallError(error))
                    if error.io_error.raw_os_error() != Some(Errno::EINVAL as i32) =>
                {
                    return Err(error.into());
                }
                // That is what the kernel says of an empty slot.
                Ok(()) | Err(MapError::SyscallError(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// No CPU has made an entry yet in this second.
    pub fn forget_budget(&mut self) -> Result<()> {
        let map = self.ebpf.map_mut("budget").context(missing("budget"))?;
        let mut map: PerCpuArray<_, [u32; 4]> = PerCpuArray::try_from(map)?;
        let cpus =
            aya::util::nr_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?;
        Ok(map.set(0, PerCpuValues::try_from(vec![[0; 4]; cpus])?, 0)?)
    }

    /// The reasons counted since the last call (or run).
    pub fn counted(&self) -> Result<Vec<(Reason, u64, u64)>> {
        let now = self.reasons()?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = mem::replace(&mut *seen, now.clone());
        let reasons = Reason::ALL.iter().cycle();
        let changes = reasons.zip(now.iter().zip(&before));
        Ok(changes
            .map(|(reason, (now, before))| {
                (
                    *reason,
                    now.packets() - before.packets(),
                    now.bytes() - before.bytes(),
                )
            })
            .filter(|(_, packets, bytes)| *packets != 0 || *bytes != 0)
            .collect())
    }

    /// What was counted for service id `service` and `reason` since the program was loaded.
    pub fn reason(&self, service: u32, reason: Reason) -> Result<Counters> {
        let name = "reason_stats";
        let map = self.ebpf.map(name).with_context(|| missing(name))?;
        let map: PerCpuArray<_, Counters> = PerCpuArray::try_from(map)?;
        let values = map.get(&reason_index(service, reason), 0)?;
        let sum = values.iter().copied();
        Ok(sum.fold(Counters::default(), Counters::plus))
    }

    /// What was counted for service id `service` since the program was loaded, by reason.
    pub fn reasons_of(&self, service: u32) -> Result<Vec<Counters>> {
        let reasons = Reason::ALL.iter();
        reasons
            .map(|reason| self.reason(service, *reason))
            .collect()
    }

    /// Run `xdp_ingress` on a frame that came in through interface `ifindex` of the calling
    /// thread's network namespace.
    pub fn run_xdp(&self, frame: &[u8], ifindex: u32) -> Result<Run> {
        let (action, frame) = self.xdp(frame, ifindex)?;
        Ok(Run {
            action,
            frame,
            counted: self.counted()?,
        })
    }

    /// [`DataPlane::run_xdp`] without a look at the counters.
    pub fn xdp(&self, frame: &[u8], ifindex: u32) -> Result<(Action, Vec<u8>)> {
        let program = self.ebpf.program("xdp_ingress").context("no xdp_ingress")?;
        let program: &Xdp = program.try_into()?;
        // Metadata: what is right before the frame is not the program's business.
        let poisoned = [&POISON, frame].concat();
        let (start, end) = (POISON.len() as u32, poisoned.len() as u32);
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [start, end, 0, ifindex, 0, 0];
        let context = context.map(u32::to_ne_bytes).concat();
        let (action, mut frame) = test_run(program, &poisoned, &context)?;
        ensure!(frame.starts_with(&POISON), "written before the frame");
        Ok((Action::xdp(action), frame.split_off(POISON.len())))
    }

    /// Run `tc_ingress` on a frame that came in through interface `ifindex` of the calling thread's
    /// network namespace, without a look at the counters.
    pub fn tc_ingress(&self, frame: &[u8], ifindex: u32) -> Result<(Action, Vec<u8>)> {
        let buffer = SkBuff {
            ifindex,
            ..SkBuff::default()
        };
        self.tc_ingress_buffer(frame, buffer)
    }

    /// The same with a frame in a socket buffer with these fields.
    pub fn tc_ingress_buffer(&self, frame: &[u8], buffer: SkBuff) -> Result<(Action, Vec<u8>)> {
        let program = self.ebpf.program("tc_ingress").context("no tc_ingress")?;
        let program: &SchedClassifier = program.try_into()?;
        let (action, frame) = test_run(program, frame, &buffer.bytes())?;
        Ok((Action::tcx(action), frame))
    }

    /// Run `tc_egress` on a frame that leaves.
    pub fn run_tc(&self, frame: &[u8], buffer: SkBuff) -> Result<Run> {
        let (action, frame) = self.tc_egress(frame, buffer)?;
        Ok(Run {
            action,
            frame,
            counted: self.counted()?,
        })
    }

    /// [`DataPlane::run_tc`] without a look at the counters.
    pub fn tc_egress(&self, frame: &[u8], buffer: SkBuff) -> Result<(Action, Vec<u8>)> {
        let program = self.ebpf.program("tc_egress").context("no tc_egress")?;
        let program: &SchedClassifier = program.try_into()?;
        let (action, frame) = test_run(program, frame, &buffer.bytes())?;
        Ok((Action::tcx(action), frame))
    }
}

fn missing(name: &str) -> String {
    format!("the object has no map {name}")
}

fn test_run<P>(program: &P, frame: &[u8], context: &[u8]) -> Result<(u32, Vec<u8>)>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = aya::TestRunResult>,
{
    let mut out = vec![0; frame.len() + TAILROOM];
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(context),
            ..TestRunOptions::new()
        })
        .with_context(|| format!("program run on {} bytes", frame.len()))?;
    let length = result.data_size_out as usize;
    ensure!(length <= out.len(), "the frame grew to {length} bytes");
    out.truncate(length);
    Ok((result.return_value, out))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The statistics are read from the last line, as every kernel writes it.
    #[test]
    fn statistics_are_read_from_the_log() {
        let log = "verification time 18515 usec\nstack depth 48+0\n\
                   processed 240 insns (limit 1000000) max_states_per_insn 0 total_states 18 \
                   peak_states 17 mark_read 0\n";
        let expected = Verified {
            instructions: 240,
            total_states: 18,
            peak_states: 17,
        };
        assert_eq!(Verified::of_log(log), Some(expected));
        assert_eq!(Verified::of_log("unreachable insn 7\n"), None);
    }
}

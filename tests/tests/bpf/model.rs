//! The programs and the reference model ([`lb_tests::model`]) agree: on every packet of random
//! sequences, and on every sequence that they once disagreed on.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::{Read as _, Write as _},
    net::{IpAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use lb_common::reason::Reason;
use lb_tests::{
    model::{
        Sockets,
        case::{Case, Step},
        generate::Generator,
        plane::{Ingress, Plane},
        trial::{Mismatch, Trial, play, shrink},
        world,
    },
    netns::NetNs,
    packet::OTHER_UPLINK,
};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use socket2::{Domain, SockAddr, Socket, Type};

/// Packets for each program, unless `XVIP_MODEL_PACKETS` says otherwise.
const PACKETS: usize = 100_000;
/// Steps of a sequence.
const STEPS: usize = 250;

/// Where cases are.
fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cases")
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is no number")),
    )
}

/// A namespace with the interfaces of the model's world.
fn namespace(label: &str) -> Result<NetNs> {
    let namespace = NetNs::new(label)?;
    let [up, no] = [OTHER_UPLINK, world::NO_UPLINK];
    namespace.ip(&format!(
        "link add up1 index {up} type veth peer name up2 index {no}"
    ))?;
    let sockets = world::sockets();
    let ends = sockets.connections.iter();
    let ends = ends.flat_map(|tuple| [tuple.src, tuple.dst]);
    // Each address is of more than one of them.
    let addresses: BTreeSet<IpAddr> = ends.chain(sockets.listeners).map(|end| end.ip()).collect();
    for addr in addresses {
        namespace.add_address(addr, "lo")?;
    }
    Ok(namespace)
}

/// Keep this thread on its CPU: each one has limits of its own.
fn stay() -> Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let mut only = CpuSet::new();
    only.set(first.context("no CPU")?)?;
    Ok(sched_setaffinity(this, &only)?)
}

/// The sockets of the model's world, as this thread's kernel has them.
struct Opened {
    _listeners: Vec<TcpListener>,
    _streams: Vec<(TcpStream, TcpStream)>,
}

impl Opened {
    fn new(sockets: &Sockets) -> Result<Self> {
        let (mut listeners, mut streams) = (Vec::new(), Vec::new());
        for server in &sockets.listeners {
            let listener = TcpListener::bind(server)?;
            let connections = sockets.connections.iter();
            for tuple in connections.filter(|tuple| tuple.dst == *server) {
                let socket = Socket::new(Domain::for_address(*server), Type::STREAM, None)?;
                socket.bind(&SockAddr::from(tuple.src))?;
                socket.connect(&SockAddr::from(*server))?;
                let mut client = TcpStream::from(socket);
                let (mut accepted, from) = listener.accept()?;
                assert_eq!(from, tuple.src);
                // Both ends know of each other.
                client.write_all(b"x")?;
                accepted.read_exact(&mut [0])?;
                streams.push((client, accepted));
            }
            listeners.push(listener);
        }
        Ok(Self {
            _listeners: listeners,
            _streams: streams,
        })
    }
}

/// Packets by number of the reason.
type Reached = BTreeMap<u32, u64>;

/// Random sequences until as many packets were sent; the first one that fails, as steps.
fn search(
    plane: &mut Plane,
    sockets: &Sockets,
    (seed, packets): (u64, usize),
    reached: &mut Reached,
) -> Result<Option<(u64, Vec<Step>, Mismatch)>> {
    let tables = world::tables();
    let mut sent = 0;
    for sequence in 0.. {
        if sent >= packets {
            break;
        }
        let seed = seed.wrapping_add(sequence);
        let mut generator = Generator::new(seed, tables.clone());
        let mut trial = Trial::begin(plane, &tables, sockets)?;
        let mut steps = Vec::new();
        let mut compared = Ok(());
        while steps.len() < STEPS && compared.is_ok() {
            let step = generator.step(trial.model());
            if !trial.takes(&step) {
                continue;
            }
            sent += usize::from(step.is_packet());
            compared = trial.step(&step).with_context(|| format!("{step:?}"))?;
            steps.push(step);
        }
        if compared.is_ok() {
            compared = trial.finish()?;
        }
        for ((_, reason), count) in &trial.model().reasons {
            *reached.entry(*reason).or_default() += count.packets;
        }
        if let Err(mismatch) = compared {
            return Ok(Some((seed, steps, mismatch)));
        }
    }
    Ok(None)
}

/// The same in as few steps as possible, saved; a message that says so. `None` if it does not
/// happen again: the clock ticked.
fn reduce(
    plane: &mut Plane,
    sockets: &Sockets,
    seed: u64,
    steps: Vec<Step>,
) -> Result<Option<String>> {
    let tables = world::tables();
    let mut play = |steps: &[Step]| play(plane, &tables, sockets, steps);
    if play(&steps)?.is_ok() {
        return Ok(None);
    }
    let steps = shrink(steps, |steps| Ok(play(steps)?.is_err()))?;
    let Err(mismatch) = play(&steps)? else {
        return Ok(None);
    };
    let program = plane.ingress_program().name();
    let path = cases().join(format!("{program}-{seed}.case"));
    let case = Case {
        note: format!("found with seed {seed} in {program}: {}", mismatch.what),
        steps,
    };
    case.save(&path)?;
    Ok(Some(format!(
        "{program}, seed {seed}: {} steps saved as {}\nstep {}: {}",
        case.steps.len(),
        path.display(),
        mismatch.step,
        mismatch.what
    )))
}

/// Reasons that no random packet has.
const ELSEWHERE: &[Reason] = &[
    Reason::Unknown,
    // No program says so any more.
    Reason::BackendDown,
    // The kernel has no memory, or the tables contradict each other.
    Reason::ConntrackFailed,
    Reason::Inconsistent,
    Reason::AnswerFailed,
    // Other programs.
    Reason::ConnectLocal,
    Reason::ConnectRemote,
    Reason::ConnectNoBackend,
    Reason::ListenerAssigned,
    Reason::SendLocal,
    Reason::SendRemote,
];

/// Print what was reached.
fn show(reached: &Reached) {
    for reason in Reason::ALL {
        if let Some(packets) = reached.get(&reason.index()) {
            eprintln!("{packets:8} {}", reason.label());
        }
    }
}

/// Reasons that the random packets should have reached.
fn unreached(reached: &Reached) -> Vec<Reason> {
    let reasons = Reason::ALL.iter().copied();
    reasons
        .filter(|reason| !ELSEWHERE.contains(reason))
        .filter(|reason| !reached.contains_key(&reason.index()))
        .collect()
}

/// A seed that no other run has.
fn any_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_nanos() as u64)
}

/// 100,000 random packets: each program of the pipeline does what the model says.
#[test]
fn programs_agree_with_the_model_on_random_packets() {
    lb_tests::skip_unless_root!();
    let seed = number("XVIP_MODEL_SEED").unwrap_or_else(any_seed);
    let packets = number("XVIP_MODEL_PACKETS").map_or(PACKETS, |packets| packets as usize);
    eprintln!("XVIP_MODEL_SEED={seed} XVIP_MODEL_PACKETS={packets}");
    let namespace = namespace("model").unwrap();
    let sockets = world::sockets();
    let searched = namespace.enter(|| {
        stay()?;
        let _opened = Opened::new(&sockets)?;
        let mut missing = Vec::new();
        for ingress in Ingress::ALL {
            let mut plane = Plane::load(*ingress)?;
            let begun = Instant::now();
            let mut unrepeated = 0;
            // What does not happen again is the clock's doing, but not often.
            let mut reached = Reached::new();
            while let Some((seed, steps, mismatch)) = search(
                &mut plane,
                &sockets,
                (seed.wrapping_add(unrepeated << 32), packets),
                &mut reached,
            )? {
                if let Some(message) = reduce(&mut plane, &sockets, seed, steps)? {
                    anyhow::bail!(message);
                }
                eprintln!("once: {}", mismatch.what);
                unrepeated += 1;
                anyhow::ensure!(unrepeated < 4, "too often to be the clock");
            }
            eprintln!("{}: {:?}", ingress.name(), begun.elapsed());
            show(&reached);
            // Whether the sequences reach everything is no matter of luck with this many packets.
            if packets >= PACKETS {
                missing.extend(unreached(&reached));
            }
        }
        anyhow::ensure!(missing.is_empty(), "no packet came to {missing:?}");
        Ok(())
    });
    searched.unwrap();
}

/// What once failed, and what a test wants to have for good: each file in tests/cases.
#[test]
fn programs_agree_with_the_model_on_every_saved_case() {
    lb_tests::skip_unless_root!();
    let mut paths: Vec<PathBuf> = fs::read_dir(cases())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "case")
        })
        .collect();
    paths.sort();
    let namespace = namespace("cases").unwrap();
    let sockets = world::sockets();
    let failed = namespace.enter(|| {
        stay()?;
        let _opened = Opened::new(&sockets)?;
        let mut failed = Vec::new();
        for ingress in Ingress::ALL {
            let mut plane = Plane::load(*ingress)?;
            for path in &paths {
                let case = Case::load(path)?;
                if let Err(mismatch) = play(&mut plane, &world::tables(), &sockets, &case.steps)? {
                    failed.push(format!("{}: {}", path.display(), mismatch.what));
                }
            }
        }
        Ok(failed)
    });
    let failed = failed.unwrap();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

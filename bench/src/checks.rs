//! What a backend that hangs does to the checks of the others: nothing, if each has its own time.
//!
//! Four backends answer plain HTTP checks and write down when each of them began and how long it took. In
//! every other half of a round one of them takes connections and never answers; each of its checks then
//! lasts until it times out, as long as ten intervals.

use std::{
    io::{Read, Write},
    mem,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use lb_tests::cluster::Cluster;
use lb_user::admin::model::BackendState;
use serde::Serialize;

use crate::summary::Summary;

/// How long, and how often.
#[derive(Args, Clone)]
pub(crate) struct Options {
    /// Rounds; each has all backends answer, then one of them hang.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Seconds of each half of a round.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

/// Who hangs, and who is watched.
const HANGS: &str = "b1";
const OTHERS: [&str; 3] = ["b2", "b3", "b4"];
/// Not that of the stand-ins for apiservers.
const PORT: u16 = 6444;
const HEALTH: &str = "type = \"http\"\ninterval = \"100ms\"\nfast_interval = \"100ms\"\n\
    timeout = \"1s\"\nkeep_alive = false";
/// Answered to every check, and the end of its connection.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

/// The results: with a hanging backend, as multiples of what was without.
#[derive(Serialize)]
pub(crate) struct Results {
    rounds: usize,
    /// Time from one check of a backend to its next.
    gaps: Summary,
    /// How long a check lasts.
    lengths: Summary,
    /// Milliseconds from one check to the next, without.
    gap_ms: Summary,
    /// Milliseconds of a check, without.
    length_ms: Summary,
}

/// Measures and prints.
pub(crate) fn run(options: &Options) -> Result<Results> {
    let mut cluster = Cluster::builder()
        .masters(1)
        .plain_backends(OTHERS.len() + 1)
        .prepare(|plane| {
            plane.backends.retain(|node| node.name().starts_with('b'));
            plane.backend_port = PORT;
            HEALTH.clone_into(&mut plane.health);
        })?;
    let hangs = Backend::start(&cluster, HANGS)?;
    let others = OTHERS.map(|name| Backend::start(&cluster, name));
    let others: Vec<_> = others.into_iter().collect::<Result<_>>()?;
    cluster.start_xvip("m1")?;
    for name in OTHERS {
        cluster.wait_backend("m1", name, BackendState::Up)?;
    }
    let half = Duration::from_secs_f64(options.seconds);
    let mut halves = Vec::new();
    for _ in 0..options.rounds {
        cluster.wait_backend("m1", HANGS, BackendState::Up)?;
        let without = watch(&others, half)?;
        hangs.hangs.store(true, Ordering::Relaxed);
        let with = watch(&others, half)?;
        // Who takes connections and says nothing gets no new ones, and keeps those that it has.
        cluster.wait_backend("m1", HANGS, BackendState::Draining)?;
        hangs.hangs.store(false, Ordering::Relaxed);
        halves.push((without, with));
    }
    let of = |number: fn(&(Times, Times)) -> f64| Summary::of(halves.iter().map(number).collect());
    let results = Results {
        rounds: options.rounds,
        gaps: of(|(without, with)| with.gap / without.gap),
        lengths: of(|(without, with)| with.length / without.length),
        gap_ms: of(|(without, _)| without.gap * 1e3),
        length_ms: of(|(without, _)| without.length * 1e3),
    };
    println!(
        "{:32} {:>7} {:>15}",
        "checks of the others", "median", "80 % of rounds"
    );
    for (what, row) in [
        ("time between, ms", results.gap_ms),
        ("length, ms", results.length_ms),
        ("time between, x with a hang", results.gaps),
        ("length, x with a hang", results.lengths),
    ] {
        println!(
            "{what:32} {:>7.3} {:>7.3}-{:.3}",
            row.median, row.low, row.high
        );
    }
    Ok(results)
}

/// Means of one half of a round, in seconds.
struct Times {
    gap: f64,
    length: f64,
}

fn watch(backends: &[Backend], time: Duration) -> Result<Times> {
    for backend in backends {
        backend.take();
    }
    thread::sleep(time);
    let (mut gaps, mut lengths) = (Vec::new(), Vec::new());
    for backend in backends {
        let checks = backend.take();
        lengths.extend(checks.iter().map(|check| check.length.as_secs_f64()));
        let pairs = checks.windows(2);
        gaps.extend(pairs.filter_map(|pair| match pair {
            [one, next] => Some((next.began - one.began).as_secs_f64()),
            _ => None,
        }));
    }
    Ok(Times {
        gap: mean(&gaps)?,
        length: mean(&lengths)?,
    })
}

#[allow(clippy::cast_precision_loss)] // Some hundred.
fn mean(samples: &[f64]) -> Result<f64> {
    ensure!(samples.len() >= 10, "only {} checks", samples.len());
    Ok(samples.iter().sum::<f64>() / samples.len() as f64)
}

/// One check, as its backend saw it.
#[derive(Clone, Copy)]
struct Seen {
    began: Instant,
    length: Duration,
}

/// A backend of this process, in the namespace of its node.
#[derive(Clone)]
struct Backend {
    hangs: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Backend {
    /// Its thread ends with this process.
    fn start(cluster: &Cluster, node: &str) -> Result<Self> {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT));
        let namespace = cluster.node(node).namespace();
        let listener = namespace.enter(|| Ok(TcpListener::bind(any)?))?;
        let backend = Self {
            hangs: Arc::default(),
            seen: Arc::default(),
        };
        let own = backend.clone();
        let thread = thread::Builder::new();
        let _detached = thread
            .spawn(move || own.serve(&listener))
            .context("cannot start a thread")?;
        Ok(backend)
    }

    fn serve(&self, listener: &TcpListener) {
        let mut hanging = Vec::new();
        for stream in listener.incoming().flatten() {
            let began = Instant::now();
            if self.hangs.load(Ordering::Relaxed) {
                hanging.push(stream);
                continue;
            }
            hanging.clear();
            if answer(stream).is_ok() {
                let length = began.elapsed();
                self.seen().push(Seen { began, length });
            }
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Vec<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it has seen since this was asked last.
    fn take(&self) -> Vec<Seen> {
        mem::take(&mut self.seen())
    }
}

/// Answers one check, and waits until its client has gone.
fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut request = Vec::new();
    let mut piece = [0; 1024];
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut piece)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            length => request.extend(piece.get(..length).unwrap_or_default()),
        }
    }
    stream.write_all(ANSWER)?;
    while stream.read(&mut piece)? > 0 {}
    Ok(())
}

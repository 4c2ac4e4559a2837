//! Bulk transfers through a node that has no backend itself: by xvip's nat in tc mode, and by
//! haproxy in TCP mode, on the same links, in turns.
//!
//! ```text
//!     client ---- VIP:5201 (xvip) ---------> b1:5201
//!            ---- m1:5202, m1:5203 (haproxy) -> b1:5201
//!            ---- nobody between -------------> b1:5201
//! ```
//!
//! Links are veth pairs on a bridge, with segmentation and checksums left to the receiver, as Linux
//! does between virtual machines. Everything shares the machine's CPUs, so both ends do as little as
//! they can: the sender sends pages of a file (`sendfile`), the receiver discards what came without
//! copying it (`MSG_TRUNC`). What is left is the way between. No end paces itself: Reno everywhere, as
//! a machine whose default is BBR would measure the timers of its pacing, which cost more than any way.

use std::{
    fmt::Write as _,
    fs::File,
    io,
    mem::MaybeUninit,
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Args;
use lb_tests::{
    cluster::{Cluster, PATIENCE},
    control_plane::BOTH,
    endpoint::connect,
    kernel,
    process::{Process, TempDir, wait_until},
    topology::Node,
    ways::{family_word, unchecked_service},
};
use nix::sys::sendfile::sendfile;
use serde::Serialize;
use socket2::SockRef;

use crate::summary::Summary;

/// How long to measure.
#[derive(Args, Clone)]
pub(crate) struct Options {
    /// Rounds over all ways, both directions and both families.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of one transfer.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Transfers at once: few are limited by their ends.
    #[arg(long, default_value_t = 16)]
    streams: usize,
    /// `node.attach` of xvip.
    #[arg(long, default_value = "tc")]
    attach: String,
}

/// xvip's nat shall be this much faster than haproxy.
const BAR: f64 = 5.0;
const SERVER: u16 = 5201;
const PROXY: u16 = 5202;
const SPLICING_PROXY: u16 = 5203;

/// Ways to the backend.
const WAYS: [&str; 4] = ["direct", "haproxy", "haproxy, splice", "xvip nat"];
const DIRECT: usize = 0;
const HAPROXY: usize = 1;

/// What one way moved in one direction.
#[derive(Serialize)]
pub(crate) struct Row {
    way: &'static str,
    family: &'static str,
    direction: &'static str,
    /// Gigabits per second.
    gigabits: Summary,
    /// Times haproxy (without splice) in the same round.
    of_haproxy: Summary,
    /// Of what goes through with nobody between, in the same round.
    of_direct: Summary,
}

/// The results.
#[derive(Serialize)]
pub(crate) struct Results {
    attach: String,
    rounds: usize,
    seconds: u64,
    rows: Vec<Row>,
}

/// Measures and prints a table.
pub(crate) fn run(options: &Options) -> Result<Results> {
    let cluster = cluster(&options.attach)?;
    let backend = cluster.node("b1");
    for node in [cluster.client(), cluster.node("m1"), backend] {
        // The one that every network namespace may choose.
        let reno = || kernel::sysctl("net/ipv4/tcp_congestion_control", "reno");
        node.namespace().enter(reno)?;
    }
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), SERVER);
    let server = backend.namespace().enter(|| Ok(TcpListener::bind(any)?))?;
    let directory = TempDir::new("bulk")?;
    let content = Content::new(&directory)?;
    let _proxy = haproxy(cluster.node("m1"), backend)?;
    let mut rows = Vec::new();
    for vip in BOTH {
        for direction in ["to the backend", "to the client"] {
            let targets = targets(&cluster, vip);
            let mut samples = [const { Vec::new() }; WAYS.len()];
            for _ in 0..options.rounds {
                for (target, samples) in targets.iter().zip(&mut samples) {
                    let down = direction == "to the client";
                    let streams: Result<Vec<_>> = (0..options.streams)
                        .map(|_| ends(&cluster, &server, *target))
                        .collect();
                    samples.push(content.transfers(streams?, down, options.seconds)?);
                }
            }
            let references = samples.clone();
            let times = |samples: &[f64], way: usize| {
                let reference = references.get(way).into_iter().flatten();
                let ratios = samples.iter().zip(reference);
                Summary::of(ratios.map(|(mine, other)| mine / other.max(1e-9)).collect())
            };
            let row = |(way, samples): (&'static str, Vec<f64>)| Row {
                way,
                family: if vip.is_ipv4() { "IPv4" } else { "IPv6" },
                direction,
                of_haproxy: times(&samples, HAPROXY),
                of_direct: times(&samples, DIRECT),
                gigabits: Summary::of(samples),
            };
            rows.extend(WAYS.into_iter().zip(samples).map(row));
        }
    }
    let results = Results {
        attach: options.attach.clone(),
        rounds: options.rounds,
        seconds: options.seconds,
        rows,
    };
    print(&results);
    Ok(results)
}

/// One master that owns the VIPs, and a backend without xvip.
fn cluster(attach: &str) -> Result<Cluster> {
    let mut builder = Cluster::builder().masters(1).plain_backends(1);
    // A link whose far end runs an XDP program takes no large segments.
    builder = match attach {
        "tc" => builder.without_xdp(),
        _ => builder,
    };
    let mut cluster = builder.prepare(|plane| {
        plane.vips = BOTH.into();
        plane.node = format!("attach = \"{attach}\"");
        plane.backends.clear();
    })?;
    let mut services = String::new();
    for vip in BOTH {
        let backend = SocketAddr::new(cluster.node("b1").address_like(vip), SERVER);
        let name = format!("bulk-{}", family_word(vip));
        let target = SocketAddr::new(vip, SERVER);
        services.push_str(&unchecked_service(&name, target, ("b1", backend), ""));
    }
    cluster.edit_config("m1", |config| config.push_str(&services));
    cluster.start_xvip("m1")?;
    cluster.wait_settled("m1")?;
    Ok(cluster)
}

fn targets(cluster: &Cluster, vip: IpAddr) -> [SocketAddr; WAYS.len()] {
    let own = |node: &str| cluster.node(node).address_like(vip);
    [
        SocketAddr::new(own("b1"), SERVER),
        SocketAddr::new(own("m1"), PROXY),
        SocketAddr::new(own("m1"), SPLICING_PROXY),
        SocketAddr::new(vip, SERVER),
    ]
}

/// haproxy as it stands before apiservers, and once more with data that stays in the kernel.
fn haproxy(node: &Node, backend: &Node) -> Result<Process> {
    let mut config = "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  \
                      timeout server 60s\n"
        .to_owned();
    for (proxy, options) in [(PROXY, ""), (SPLICING_PROXY, "  option splice-auto\n")] {
        for vip in BOTH {
            // One port for both families; each goes on in its own.
            let own = SocketAddr::new(node.address_like(vip), proxy);
            let to = SocketAddr::new(backend.address_like(vip), SERVER);
            let name = format!("{proxy}-{}", if vip.is_ipv4() { 4 } else { 6 });
            writeln!(
                config,
                "listen {name}\n{options}  bind {own}\n  server b1 {to}"
            )?;
        }
    }
    let file = node.directory().join("haproxy.cfg");
    std::fs::write(&file, config).context("cannot write haproxy.cfg")?;
    let file = file.to_str().context("the directory is not UTF-8")?;
    node.start("haproxy", "haproxy", &["-db", "-f", file])
}

/// Both ends of a connection, the client's first.
fn ends(
    cluster: &Cluster,
    server: &TcpListener,
    target: SocketAddr,
) -> Result<(TcpStream, TcpStream)> {
    // haproxy may just be starting.
    let client = wait_until(&format!("a connection by {target}"), PATIENCE, || {
        Ok(connect(cluster.client(), None, target).ok())
    })?;
    let (server, _) = server.accept()?;
    server.set_nodelay(true)?;
    Ok((client, server))
}

/// What is sent.
struct Content(PathBuf);

impl Content {
    /// Bytes of the file.
    const LENGTH: usize = 16 << 20;
    /// Bytes that a receiver discards at once.
    const PIECE: usize = 1 << 20;
    /// Of `linux/socket.h`. A TCP socket then discards data (tcp(7)).
    const MSG_TRUNC: i32 = 0x20;

    fn new(directory: &TempDir) -> Result<Self> {
        let path = directory.path().join("content");
        std::fs::write(&path, vec![0x5a; Self::LENGTH])?;
        Ok(Self(path))
    }

    /// Gigabits per second of transfers at once.
    fn transfers(
        &self,
        streams: Vec<(TcpStream, TcpStream)>,
        down: bool,
        seconds: u64,
    ) -> Result<f64> {
        thread::scope(|scope| {
            let running: Vec<_> = streams
                .into_iter()
                .map(|ends| scope.spawn(move || self.transfer(ends, down, seconds)))
                .collect();
            let mut total = 0.0;
            for transfer in running {
                let moved = transfer.join();
                total += moved.map_err(|_| anyhow::anyhow!("a transfer panicked"))??;
            }
            Ok(total)
        })
    }

    /// Gigabits per second of one transfer.
    fn transfer(&self, ends: (TcpStream, TcpStream), down: bool, seconds: u64) -> Result<f64> {
        let (client, server) = ends;
        let (from, to) = if down {
            (server, client)
        } else {
            (client, server)
        };
        let begin = Instant::now();
        let received = thread::scope(|scope| {
            let sender = scope.spawn(|| self.send(&from, begin + Duration::from_secs(seconds)));
            let received = discard(&to);
            let sent = sender.join();
            sent.map_err(|_| anyhow::anyhow!("the sender panicked"))??;
            anyhow::Ok(received?)
        })?;
        let bits = f64::from(u32::try_from(received >> 10)?) * 8.0 * 1024.0;
        Ok(bits / begin.elapsed().as_secs_f64() / 1e9)
    }

    /// The standard library's `io::copy` would read and write here: a file may change while its pages
    /// wait in a socket. This one does not.
    fn send(&self, to: &TcpStream, deadline: Instant) -> io::Result<()> {
        let file = File::open(&self.0)?;
        while Instant::now() < deadline {
            let mut position = 0;
            while sendfile(to, &file, Some(&mut position), Self::LENGTH)? > 0 {}
        }
        to.shutdown(Shutdown::Write)
    }
}

/// Bytes until the other end has no more.
fn discard(from: &TcpStream) -> io::Result<u64> {
    let mut buffer = vec![MaybeUninit::uninit(); Content::PIECE];
    let mut total = 0;
    loop {
        let length = SockRef::from(from).recv_with_flags(&mut buffer, Content::MSG_TRUNC)?;
        if length == 0 {
            return Ok(total);
        }
        total += length as u64;
    }
}

fn print(results: &Results) {
    println!(
        "{:<6} {:<16} {:<16} {:>8} {:>15} {:>11} {:>13} {:>9}",
        "",
        "",
        "attach = ".to_owned() + &results.attach,
        "Gbit/s",
        "rounds",
        "x haproxy",
        "rounds",
        "x direct"
    );
    for row in &results.rows {
        let Row {
            gigabits,
            of_haproxy,
            of_direct,
            ..
        } = row;
        let mine = row.way == "xvip nat";
        let verdict = match of_haproxy.median >= BAR {
            _ if !mine => String::new(),
            true => format!("  {BAR} holds"),
            false => format!("  {BAR} MISSED"),
        };
        println!(
            "{:<6} {:<16} {:<16} {:>8.2} {:>7.2}-{:<7.2} {:>10.2}x {:>6.2}-{:<6.2} {:>8.2}x{verdict}",
            row.family,
            row.direction,
            row.way,
            gigabits.median,
            gigabits.low,
            gigabits.high,
            of_haproxy.median,
            of_haproxy.low,
            of_haproxy.high,
            of_direct.median,
        );
    }
}

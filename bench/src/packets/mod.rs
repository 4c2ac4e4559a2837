//! What the ingress programs cost per packet, by program run (`BPF_PROG_TEST_RUN`).
//!
//! A program run with `repeat` works on the packet that the last one rewrote. Here each run goes
//! through a small program first, which puts the packet back and tail-calls the one under test;
//! what that costs is measured with the empty program behind it, and taken off again:
//!
//! ```text
//! cost(program) = time(restore, then program) - time(restore, then empty) + time(empty)
//! ```
//!
//! Everything is hot: one flow, one CPU, nothing else in the caches. Ratios to the lookup floor say
//! how much more than the unavoidable the pipeline does.

mod floor;
mod frame;
mod plane;

use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result, ensure};
use clap::Args;
use lb_common::{headers::TcpHeader, reason::Verdict};
use lb_tests::netns::NetNs;
use serde::Serialize;
use socket2::{Domain, Socket, Type};

use self::{
    floor::{Floor, Hook},
    frame::{LOCAL_PORT, NAT_PORT, Packet},
    plane::Plane,
};
use crate::summary::Summary;

/// How long to measure.
#[derive(Args, Clone, Copy)]
pub(crate) struct Options {
    /// Rounds over all cases.
    #[arg(long, default_value_t = 41)]
    rounds: usize,
    /// Packets of a case in a round.
    #[arg(long, default_value_t = 20_000)]
    repeat: u32,
}

/// A program on a packet, and what must become of it.
struct Case {
    name: String,
    hook: Hook,
    /// `None`: the ingress program; else a floor's name.
    floor: Option<&'static str>,
    frame: Vec<u8>,
    verdict: Verdict,
    /// Where the frame must be addressed to afterwards.
    sent_to: [u8; 6],
    /// At most this many times the lookup floor.
    bar: Option<f64>,
    samples: Vec<f64>,
}

impl Case {
    fn new(name: &str, group: Group, packet: &Packet, verdict: Verdict) -> Self {
        let Group { hook, v6 } = group;
        let what = match hook {
            Hook::Xdp => "xdp",
            Hook::Tc => "tc",
        };
        Self {
            name: format!("{what}: {name}, {}", if v6 { "IPv6" } else { "IPv4" }),
            hook,
            floor: None,
            frame: packet.frame(),
            verdict,
            sent_to: packet.dst_mac,
            bar: None,
            samples: Vec::new(),
        }
    }

    fn of_floor(mut self, name: &'static str) -> Self {
        self.floor = Some(name);
        self
    }

    fn sent_to(mut self, mac: [u8; 6]) -> Self {
        self.sent_to = mac;
        self
    }

    fn bar(mut self, bar: f64) -> Self {
        self.bar = Some(bar);
        self
    }

    /// Nanoseconds behind the restoring program, in one round.
    fn round(&self, floor: &mut Floor, plane: &Plane, repeat: u32) -> Result<f64> {
        let program = match (self.floor, self.hook) {
            (None, hook) => plane.ingress(hook)?,
            (Some(name), Hook::Xdp) => floor.program(name)?,
            (Some(name), Hook::Tc) => floor.program(&format!("tc_{name}"))?,
        };
        let program = program.fd()?;
        floor.prepare(self.hook, Some(&program), &self.frame)?;
        let outcome = floor.run(self.hook, &self.frame, repeat)?;
        let wanted = self.hook.action(self.verdict);
        ensure!(
            outcome.action == wanted,
            "{}: action {} instead of {wanted}",
            self.name,
            outcome.action.cast_signed(),
        );
        let mac = outcome.frame.get(..6).unwrap_or_default();
        ensure!(
            mac == self.sent_to,
            "{}: sent to {mac:02x?} instead of {:02x?}",
            self.name,
            self.sent_to
        );
        Ok(outcome.nanos)
    }
}

/// Cases that are compared with each other.
#[derive(Clone, Copy)]
struct Group {
    hook: Hook,
    v6: bool,
}

/// The cases of a group, the lookup floor first.
fn cases(group: Group) -> Vec<Case> {
    use Verdict::{Pass, Tx};
    use frame::{BACKEND_MAC, CLIENT_MAC, DSR_PORT, OTHER_MAC, PEER_MAC};
    let v6 = group.v6;
    let packet = Packet::to_vip(v6, DSR_PORT);
    let with = |change: &dyn Fn(&mut Packet)| {
        let mut packet = packet.clone();
        change(&mut packet);
        packet
    };
    let elsewhere = with(&|packet| {
        if let Some(last) = packet.dst.last_mut() {
            *last ^= 1;
        }
    });
    let ingress = |name: &str, packet: &Packet, verdict| Case::new(name, group, packet, verdict);
    vec![
        ingress("floor: lookup and TX", &packet, Tx)
            .of_floor("lookup")
            .sent_to(CLIENT_MAC),
        ingress("floor: parse and TX", &packet, Tx)
            .of_floor("parse")
            .sent_to(CLIENT_MAC),
        ingress("floor: empty", &packet, Pass).of_floor("empty"),
        ingress("to another address", &elsewhere, Pass),
        ingress(
            "VIP, another's MAC",
            &with(&|packet| packet.dst_mac = OTHER_MAC),
            Pass,
        )
        .sent_to(OTHER_MAC),
        ingress(
            "VIP, not balanced",
            &with(&|packet| packet.proto = 89),
            Pass,
        ),
        ingress("VIP, no service", &with(&|packet| packet.dport = 22), Pass),
        ingress("local", &Packet::to_vip(v6, LOCAL_PORT), Pass),
        ingress(
            "local, from a peer",
            &Packet {
                src_mac: PEER_MAC,
                ..Packet::to_vip(v6, LOCAL_PORT)
            },
            Pass,
        ),
        ingress("dsr", &packet, Tx).sent_to(BACKEND_MAC).bar(2.5),
        ingress("nat", &Packet::to_vip(v6, NAT_PORT), Tx)
            .sent_to(BACKEND_MAC)
            .bar(4.0),
        ingress("nat, reply", &Packet::reply(v6), Tx)
            .sent_to(CLIENT_MAC)
            .bar(4.0),
    ]
}

/// What a case cost.
#[derive(Serialize)]
pub(crate) struct Row {
    name: String,
    nanos: Summary,
    /// Times the lookup floor of the same family and round.
    of_lookup: Summary,
    /// `of_lookup` should be at most this.
    bar: Option<f64>,
}

/// The results.
#[derive(Serialize)]
pub(crate) struct Results {
    rounds: usize,
    repeat: u32,
    rows: Vec<Row>,
}

/// Measures and prints a table.
pub(crate) fn run(options: &Options) -> Result<Results> {
    let namespace = NetNs::new("bench")?;
    for address in [
        "10.9.0.100/32",
        "10.9.0.50/32",
        "fd09::100/128",
        "fd09::50/128",
    ] {
        namespace.ip(&format!("addr add {address} dev lo"))?;
    }
    let rows = namespace.enter(|| measure(options))?;
    let results = Results {
        rounds: options.rounds,
        repeat: options.repeat,
        rows,
    };
    print(&results);
    Ok(results)
}

fn measure(options: &Options) -> Result<Vec<Row>> {
    // The kernel's socket table is the conntrack of local flows: there must be a connection.
    let _connections = [
        connection("10.9.0.100:6443", "10.9.0.50:40000")?,
        connection("[fd09::100]:6443", "[fd09::50]:40000")?,
    ];
    let plane = Plane::load().context("cannot load the data plane (root?)")?;
    let mut floor = Floor::load()?;
    establish(&plane)?;
    let mut groups = Vec::new();
    for hook in [Hook::Xdp, Hook::Tc] {
        groups.extend([false, true].map(|v6| (hook, cases(Group { hook, v6 }))));
    }
    for _ in 0..options.rounds {
        for (hook, cases) in &mut groups {
            let first = cases.first().context("no cases")?.frame.clone();
            let bare = floor.run_empty(*hook, &first, options.repeat)?;
            floor.prepare(*hook, None, &first)?;
            let restored = floor.run(*hook, &first, options.repeat)?.nanos;
            for case in cases {
                let behind = case.round(&mut floor, &plane, options.repeat)?;
                case.samples.push(behind - restored + bare);
            }
        }
    }
    Ok(groups.iter().flat_map(|(_, cases)| rows(cases)).collect())
}

fn rows(cases: &[Case]) -> Vec<Row> {
    let lookup = cases.first().map(|case| case.samples.as_slice());
    let lookup = lookup.unwrap_or_default();
    let row = |case: &Case| Row {
        name: case.name.clone(),
        nanos: Summary::of(case.samples.clone()),
        of_lookup: Summary::of(
            case.samples
                .iter()
                .zip(lookup)
                .map(|(sample, lookup)| sample / lookup.max(1.0))
                .collect(),
        ),
        bar: case.bar,
    };
    cases.iter().map(row).collect()
}

/// A connection inside the namespace, both ends.
fn connection(server: &str, client: &str) -> Result<(TcpListener, TcpStream, TcpStream)> {
    let listener = TcpListener::bind(server)?;
    let server: SocketAddr = server.parse()?;
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    socket.bind(&client.parse::<SocketAddr>()?.into())?;
    socket.connect(&server.into())?;
    let (accepted, _) = listener.accept()?;
    Ok((listener, socket.into(), accepted))
}

/// Makes the flows of all cases established ones.
fn establish(plane: &Plane) -> Result<()> {
    let mut out = vec![0; 2048];
    for v6 in [false, true] {
        for port in [frame::DSR_PORT, NAT_PORT] {
            let acknowledged = Packet::to_vip(v6, port);
            let syn = Packet {
                flags: TcpHeader::SYN,
                ..acknowledged.clone()
            };
            let mut run =
                |packet: &Packet| plane.ingress(Hook::Xdp)?.run(&packet.frame(), 1, &mut out);
            run(&syn)?;
            if port == NAT_PORT {
                run(&Packet {
                    flags: TcpHeader::SYN | TcpHeader::ACK,
                    ..Packet::reply(v6)
                })?;
            }
            run(&acknowledged)?;
            run(&acknowledged)?;
        }
    }
    Ok(())
}

fn print(results: &Results) {
    println!(
        "{:<34} {:>7} {:>15} {:>10} {:>13} {:>6}",
        "", "ns", "80 % of rounds", "x lookup", "80 %", "bar"
    );
    for row in &results.rows {
        let Row {
            name,
            nanos,
            of_lookup,
            bar,
        } = row;
        let verdict = bar.map_or(String::new(), |bar| {
            let word = if of_lookup.median <= bar {
                "holds"
            } else {
                "MISSED"
            };
            format!("{bar:>6} {word}")
        });
        println!(
            "{name:<34} {:>7.1} {:>7.1}-{:<7.1} {:>9.2}x {:>6.2}-{:<6.2} {verdict}",
            nanos.median, nanos.low, nanos.high, of_lookup.median, of_lookup.low, of_lookup.high
        );
    }
}

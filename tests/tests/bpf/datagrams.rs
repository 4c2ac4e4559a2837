//! The hooks of UDP sockets, attached to a cgroup of their own: where the datagrams of a process in
//! it go, and whom it sees as the source of the answers.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use lb_common::{
    abi::{BackendState, Service, ServiceKey, sends::SendKey},
    headers::IPPROTO_UDP,
    reason::Reason,
};
use lb_tests::packet::{BACKEND_PORT, Family, V4, V6, VIP_PORT};

use crate::{
    hooks::{self, Node, answer, order, vip},
    world::{LOCAL, MASTER2, SERVICE, TABLE},
};

const HOOKS: &[&str] = &[
    "connect4",
    "connect6",
    "getpeername4",
    "getpeername6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
];
/// How long an answer may take; only a failed test waits that long.
const PATIENCE: Duration = Duration::from_secs(10);

/// The process in the cgroup: this test binary again. Asks as it is told and writes who answered
/// what, or why that failed. Without an order it has nothing to do.
#[test]
fn client_process() {
    let Some(order) = order() else {
        return;
    };
    // How, where to, and how often.
    let words: Vec<_> = order.split(' ').collect();
    let (to, times) = (words[1].parse().unwrap(), words[2].parse().unwrap());
    answer(&match asked(words[0] == "connected", to, times) {
        Ok(answers) => answers.join(", "),
        Err(error) => format!("{:?}", error.kind()),
    });
}

/// Ask `to` several times from one socket: "SERVER as SOURCE" for each answer, and the peer in the
/// end if there is one.
fn asked(connect: bool, to: SocketAddr, times: usize) -> io::Result<Vec<String>> {
    let any: IpAddr = if to.is_ipv4() {
        [0; 4].into()
    } else {
        [0; 16].into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut answers = Vec::new();
    if connect {
        socket.connect(to)?;
    }
    for _ in 0..times {
        if connect {
            socket.send(b"?")?;
        } else {
            socket.send_to(b"?", to)?;
        }
        let mut answer = [0; 64];
        let (length, from) = socket.recv_from(&mut answer)?;
        let name = String::from_utf8_lossy(&answer[..length]);
        answers.push(format!("{name} as {from}"));
    }
    if connect {
        answers.push(format!("peer {}", socket.peer_addr()?));
    }
    Ok(answers)
}

/// A server that answers with its own name.
struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(address: IpAddr, name: &'static str) -> Self {
        let socket = UdpSocket::bind((address, BACKEND_PORT)).unwrap();
        let tick = Some(Duration::from_millis(20));
        socket.set_read_timeout(tick).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
                    // A client that is gone gets nothing.
                    let _ = socket.send_to(name.as_bytes(), from);
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl<F: Family> Node<F> {
    /// The UDP service, with or without a backend on this node.
    fn write_service(&mut self, local: bool, usable: bool) {
        let (backend, port) = if local { (LOCAL, BACKEND_PORT) } else { (0, 0) };
        let service = Service::new(SERVICE, TABLE, backend, port, usable).with_idle_seconds(30);
        let key = ServiceKey::new(F::VIP, VIP_PORT, IPPROTO_UDP);
        let name = format!("services{}", F::SUFFIX);
        let mut services = self.world.plane().hash(&name).unwrap();
        services.insert(key, service, 0).unwrap();
    }

    /// A process asks as `how` says; its answer.
    #[track_caller]
    fn ask(&self, how: &str, address: SocketAddr) -> String {
        let (kind, times) = how.split_once(' ').unwrap_or((how, "1"));
        let order = format!("{kind} {address} {times}");
        self.carry_out("datagrams::client_process", &order)
    }

    /// A process asks as `how` says, gets this answer, and these reasons are counted.
    #[track_caller]
    fn expect_answer(
        &self,
        how: &str,
        address: SocketAddr,
        answer: &str,
        reasons: &[(Reason, u64)],
    ) {
        let got = self.ask(how, address);
        let counted = self.counted();
        assert_eq!((got.as_str(), counted.as_slice()), (answer, reasons));
    }

    /// What is remembered of datagrams.
    fn sends(&mut self) -> Vec<(F::Addr, ServiceKey<F::Addr>)> {
        let name = format!("sends{}", F::SUFFIX);
        let map = self
            .world
            .plane()
            .hash::<SendKey<F::Addr>, ServiceKey<F::Addr>>(&name);
        let entries: Result<Vec<_>, _> = map.unwrap().iter().collect();
        let entries = entries.unwrap().into_iter();
        entries.map(|(key, asked)| (key.addr(), asked)).collect()
    }
}

/// Run `scenario` on a node with a UDP service, whose local backend comes first.
fn on_a_node<F: Family>(scenario: impl FnOnce(&mut Node<F>) + Send) {
    hooks::on_a_node(HOOKS, |node| {
        node.write_service(true, true);
        scenario(node);
    });
}

fn local_first<F: Family>() {
    on_a_node::<F>(|node| {
        let _here = Server::start(F::MASTERS[0].into(), "here");
        let _there = Server::start(F::MASTERS[1].into(), "there");
        let one = format!("here as {}", vip::<F>());
        node.expect_answer("sent", vip::<F>(), &one, &[(Reason::SendLocal, 1)]);
        let [(backend, asked)] = node.sends()[..] else {
            panic!("{:?} entries", node.sends().len());
        };
        assert!(backend == F::MASTERS[0] && asked.vip() == F::VIP);
        assert_eq!((asked.port(), asked.proto()), (VIP_PORT, IPPROTO_UDP));
        // Every datagram is counted, the flow once.
        let three = [one.as_str(); 3].join(", ");
        node.expect_answer("sent 3", vip::<F>(), &three, &[(Reason::SendLocal, 3)]);
        assert_eq!(node.world.backend_counters(LOCAL), (0, 0, 2));

        let connected = format!("{one}, {one}, peer {}", vip::<F>());
        node.expect_answer(
            "connected 2",
            vip::<F>(),
            &connected,
            &[(Reason::ConnectLocal, 1)],
        );
    });
}

fn elsewhere<F: Family>() {
    on_a_node::<F>(|node| {
        let _there = Server::start(F::MASTERS[1].into(), "there");
        let one = format!("there as {}", vip::<F>());
        // Nobody listens here.
        node.expect_answer("sent", vip::<F>(), &one, &[(Reason::SendRemote, 1)]);
        let connected = format!("{one}, peer {}", vip::<F>());
        let remote = [(Reason::ConnectRemote, 1)];
        node.expect_answer("connected", vip::<F>(), &connected, &remote);

        // Somebody does, but the checks say that it is no use.
        let _here = Server::start(F::MASTERS[0].into(), "here");
        for state in [BackendState::Down, BackendState::Draining] {
            node.world.set_state(LOCAL, state);
            node.expect_answer("sent", vip::<F>(), &one, &[(Reason::SendRemote, 1)]);
        }
        node.world.set_state(LOCAL, BackendState::Up);
        node.write_service(false, true);
        node.expect_answer("sent", vip::<F>(), &one, &[(Reason::SendRemote, 1)]);
    });
}

/// A socket's datagrams go to one backend, those of many sockets to all.
fn shares<F: Family>() {
    on_a_node::<F>(|node| {
        let _here = Server::start(F::MASTERS[0].into(), "here");
        let _there = Server::start(F::MASTERS[1].into(), "there");
        node.write_service(false, true);
        node.world.maglev(&[LOCAL, MASTER2]);
        let mut seen = Vec::new();
        for _ in 0..20 {
            let answer = node.ask("sent 4", vip::<F>());
            let answers: Vec<_> = answer.split(", ").collect();
            assert_eq!(answers, vec![answers[0]; 4]);
            seen.push(answers[0].to_owned());
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 2, "{seen:?}");
    });
}

fn nowhere<F: Family>() {
    on_a_node::<F>(|node| {
        let _there = Server::start(F::MASTERS[1].into(), "there");
        let refused = [(Reason::ConnectNoBackend, 1)];
        node.write_service(true, false);
        for how in ["sent", "connected"] {
            node.expect_answer(how, vip::<F>(), "ConnectionRefused", &refused);
        }
        assert!(node.sends().is_empty());
    });
}

fn untouched<F: Family>() {
    on_a_node::<F>(|node| {
        let _there = Server::start(F::MASTERS[1].into(), "there");
        let direct = SocketAddr::new(F::MASTERS[1].into(), BACKEND_PORT);
        let answer = format!("there as {direct}");
        node.expect_answer("sent", direct, &answer, &[]);
        assert!(node.sends().is_empty());
        node.expect_answer(
            "connected",
            direct,
            &format!("{answer}, peer {direct}"),
            &[],
        );
    });
}

/// A datagram for the VIP goes to the node's own backend if that listens, and the answer seems to
/// come from the VIP, for connected and unconnected sockets.
#[test]
fn the_local_backend_comes_first() {
    lb_tests::skip_unless_root!();
    local_first::<V4>();
    local_first::<V6>();
}

/// Where the local backend does not listen or is not up, another one is chosen.
#[test]
fn other_backends_come_second() {
    lb_tests::skip_unless_root!();
    elsewhere::<V4>();
    elsewhere::<V6>();
}

/// One socket stays with one backend; sockets are spread over the backends.
#[test]
fn a_socket_stays_with_its_backend() {
    lb_tests::skip_unless_root!();
    shares::<V4>();
    shares::<V6>();
}

/// Without a backend the system call fails at once with `ECONNREFUSED`.
#[test]
fn without_a_backend_datagrams_are_refused() {
    lb_tests::skip_unless_root!();
    nowhere::<V4>();
    nowhere::<V6>();
}

/// What goes to no service is left alone.
#[test]
fn other_destinations_are_untouched() {
    lb_tests::skip_unless_root!();
    untouched::<V4>();
    untouched::<V6>();
}

/// An IPv6 socket that sends to the IPv4-mapped VIP is an IPv4 client.
#[test]
fn mapped_addresses_are_ipv4() {
    lb_tests::skip_unless_root!();
    on_a_node::<V4>(|node| {
        let _here = Server::start(V4::MASTERS[0].into(), "here");
        let IpAddr::V4(address) = V4::VIP.into() else {
            panic!("an IPv4 address");
        };
        let to = SocketAddr::new(address.to_ipv6_mapped().into(), VIP_PORT);
        let one = format!("here as {to}");
        node.expect_answer("sent", to, &one, &[(Reason::SendLocal, 1)]);
        let connected = format!("{one}, peer {to}");
        node.expect_answer("connected", to, &connected, &[(Reason::ConnectLocal, 1)]);
    });
}

//! Both ends of connections in a test's own hands: sockets of a node that the test itself reads,
//! writes, shuts down and resets, in the order that it wants to prove something about.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lb_common::checksum::checksum;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::{
    process::wait_until,
    standin::content,
    topology::{Node, any_address},
};

/// How long a read may wait.
const READ: Duration = Duration::from_secs(10);
/// How often a listener looks for connections.
const POLL: Duration = Duration::from_millis(1);

/// Connects from a node, from a port of its choice or the kernel's.
///
/// # Errors
///
/// Those of `connect()`; everything else is an error of kind `Other`.
pub fn connect(node: &Node, port: Option<u16>, target: SocketAddr) -> io::Result<TcpStream> {
    connect_within(node, port, target, READ)
}

/// The same with a limit of its own, after which the error is `TimedOut`.
///
/// # Errors
///
/// As [`connect`].
pub fn connect_within(
    node: &Node,
    port: Option<u16>,
    target: SocketAddr,
    limit: Duration,
) -> io::Result<TcpStream> {
    let socket = node.namespace().enter(|| {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
        if let Some(port) = port {
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::new(any_address(target.ip()), port).into())?;
        }
        Ok(socket)
    });
    let socket = socket.map_err(|error| io::Error::other(format!("{error:#}")))?;
    socket.connect_timeout(&target.into(), limit)?;
    socket.set_read_timeout(Some(READ))?;
    socket.set_write_timeout(Some(READ))?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

/// How long a node takes to learn that it is refused; `None` if the connection is made or the
/// error another one.
pub fn refused_after(node: &Node, target: SocketAddr) -> Option<Duration> {
    let begin = Instant::now();
    match connect(node, None, target) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Some(begin.elapsed()),
        _ => None,
    }
}

/// Closes a connection with a RST.
pub fn reset(stream: TcpStream) -> Result<()> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}

/// Whether the other end has reset the connection; waits for its end.
pub fn was_reset(stream: &mut TcpStream) -> Result<bool> {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(true),
        Err(error) => Err(error).context("neither the end nor a reset"),
    }
}

/// Sends `length` bytes one way and checks that they arrive.
pub fn transfer(from: &TcpStream, to: &TcpStream, length: usize) -> Result<()> {
    let sent = content(length);
    let (mut from, mut to) = (from, to);
    let mut received = vec![0; length];
    thread::scope(|scope| {
        let writer = scope.spawn(|| from.write_all(&sent));
        let read = to.read_exact(&mut received).context("cannot read");
        let written = writer.join();
        let written = written.map_err(|_| anyhow::anyhow!("the writer panicked"))?;
        written.context("cannot write")?;
        read
    })?;
    ensure!(received == sent, "other bytes arrive than were sent");
    Ok(())
}

/// Says something in both directions.
pub fn talk(one: &TcpStream, other: &TcpStream) -> Result<()> {
    transfer(one, other, 100)?;
    transfer(other, one, 100)
}

/// Ends one direction, and sees the end at the other side.
pub fn finish(from: &TcpStream, mut to: &TcpStream) -> Result<()> {
    from.shutdown(Shutdown::Write).context("cannot shut down")?;
    let mut rest = Vec::new();
    to.read_to_end(&mut rest).context("no end")?;
    ensure!(rest.is_empty(), "{} bytes before the end", rest.len());
    Ok(())
}

/// The path MTU that a node has learned for a destination; `None`: nothing else than its link's.
pub fn path_mtu(node: &Node, to: IpAddr) -> Result<Option<u32>> {
    let route = node.namespace().ip(&format!("route get {to}"))?;
    let mut words = route.split_whitespace();
    let mtu = words.find(|word| *word == "mtu").and_then(|_| words.next());
    mtu.map(|mtu| mtu.parse().context("no number")).transpose()
}

/// Sends an echo request with so many bytes and waits for the reply.
pub fn ping(node: &Node, to: IpAddr, length: usize) -> Result<()> {
    ensure!(echoes(node, to, length, READ)?, "no reply");
    Ok(())
}

/// Whether an echo request with so many bytes is replied to within some time.
pub fn echoes(node: &Node, to: IpAddr, length: usize, within: Duration) -> Result<bool> {
    const ID: [u8; 2] = [0x78, 0x76];
    let (domain, protocol, kind, reply) = if to.is_ipv4() {
        (Domain::IPV4, Protocol::ICMPV4, 8, 0)
    } else {
        (Domain::IPV6, Protocol::ICMPV6, 128, 129)
    };
    // The kernel fills in ICMPv6's checksum itself.
    let request =
        |sum: [u8; 2]| [&[kind, 0], &sum, &ID, &[0, 1][..], &content(length)[..]].concat();
    let sum = checksum(&request([0; 2])).to_be_bytes();
    let socket = node
        .namespace()
        .enter(|| Ok(Socket::new(domain, Type::RAW, Some(protocol))?))?;
    socket.send_to(&request(sum), &SocketAddr::new(to, 0).into())?;
    let mut socket: &Socket = &socket;
    let end = Instant::now() + within;
    loop {
        // Zero would be no limit.
        let left = end.saturating_duration_since(Instant::now());
        socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let mut packet = vec![0; 65_536];
        let received = match socket.read(&mut packet) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("cannot receive"),
        };
        // With its IP header, for IPv4.
        let header = if to.is_ipv4() { 20 } else { 0 };
        let message = packet.get(header..received).unwrap_or_default();
        if let [kind, code, _, _, id @ ..] = message
            && [*kind, *code] == [reply, 0]
            && id.starts_with(&ID)
            && id.len() == length + 4
        {
            return Ok(true);
        }
        if left.is_zero() {
            return Ok(false);
        }
    }
}

/// A listener on a node, all addresses of both families, and what it has accepted.
#[derive(Debug)]
pub struct Server {
    port: u16,
    accepted: Arc<Mutex<Vec<(SocketAddr, TcpStream)>>>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// Listens.
    pub fn listen(node: &Node, port: u16) -> Result<Self> {
        let listener: TcpListener = node.namespace().enter(|| {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_only_v6(false)?;
            socket.set_reuse_address(true)?;
            let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
            socket
                .bind(&any.into())
                .with_context(|| format!("port {port}"))?;
            socket.listen(4096)?;
            socket.set_nonblocking(true)?;
            Ok(socket.into())
        })?;
        let accepted = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (accepted.clone(), stop.clone());
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, from)) => {
                        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                        all(&shared).push((from, stream));
                    }
                    Err(_) => thread::sleep(POLL),
                }
            }
        });
        Ok(Self {
            port,
            accepted,
            stop,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The backend's end of a client's connection, the newest that fits; waits for it. It comes
    /// from the client's port or, where nat could not keep that, at least from the VIP.
    pub fn take(&self, client: &TcpStream) -> Result<TcpStream> {
        let (own, vip) = (client.local_addr()?, client.peer_addr()?.ip());
        let is_own = |(from, _): &(SocketAddr, TcpStream)| from.port() == own.port();
        let is_nat = |(from, _): &(SocketAddr, TcpStream)| from.ip() == vip;
        let stream = wait_until("the server's end of a connection", READ, || {
            let mut accepted = all(&self.accepted);
            let found = accepted.iter().rposition(is_own);
            let found = found.or_else(|| accepted.iter().rposition(is_nat));
            Ok(found.map(|at| accepted.remove(at).1))
        })?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(READ))?;
        stream.set_write_timeout(Some(READ))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Stops listening: whoever connects now is refused. Connections that were accepted go on.
    pub fn close(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in it would have been one in `accept`, which has none.
            let _ = thread.join();
        }
        // What nobody has taken: health checks.
        all(&self.accepted).clear();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close();
    }
}

type Accepted = Vec<(SocketAddr, TcpStream)>;

fn all(shared: &Mutex<Accepted>) -> MutexGuard<'_, Accepted> {
    match shared.lock() {
        Ok(guard) => guard,
        Err(poisoned) => poisoned.into_inner(),
    }
}

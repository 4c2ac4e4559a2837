//! UDP: servers that answer from the address that they were asked at, as DNS servers do, and clients
//! that look at who answers.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    cmsg_space, libc,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg,
        setsockopt,
        sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo},
    },
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    process::{output, workspace_binary},
    standin::content,
    topology::{Node, any_address},
};

/// How often a server looks whether it is to stop.
const POLL: Duration = Duration::from_millis(20);
/// How long an answer may take before the question is asked again.
const AGAIN: Duration = Duration::from_millis(500);
/// The largest datagram that a server takes.
const LARGEST: usize = 9_000;

/// What a client gets to see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The server's name.
    pub server: String,
    /// The client as the server saw it.
    pub client: SocketAddr,
    /// Where the answer came from.
    pub from: SocketAddr,
}

/// A server of both families: all addresses, or one of each. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    silent: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Takes questions on all addresses of `node`.
    pub fn start(node: &Node, port: u16) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut server = Self {
            stop: stop.clone(),
            silent: Arc::default(),
            threads: Vec::new(),
        };
        for any in [
            IpAddr::from(Ipv4Addr::UNSPECIFIED),
            Ipv6Addr::UNSPECIFIED.into(),
        ] {
            let socket = node
                .namespace()
                .enter(|| open(SocketAddr::new(any, port)))?;
            let (name, stop) = (node.name().to_owned(), stop.clone());
            let silent = server.silent.clone();
            server.threads.push(thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if silent.load(Ordering::Relaxed) {
                        thread::sleep(POLL);
                    } else {
                        // Nothing came, or the client is gone.
                        let _ = answer(&socket, &name);
                    }
                }
            }));
        }
        Ok(server)
    }

    /// Answers no more, and refuses nothing.
    pub fn fall_silent(&self) {
        self.silent.store(true, Ordering::Relaxed);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic in it would be a missing answer.
            let _ = thread.join();
        }
    }
}

fn open(address: SocketAddr) -> Result<Socket> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        setsockopt(&socket, Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(&socket, Ipv4PacketInfo, &true)?;
    }
    socket.set_read_timeout(Some(POLL))?;
    let bound = socket.bind(&address.into());
    bound.with_context(|| format!("cannot listen on {address}"))?;
    Ok(socket)
}

/// Answers one question, from the address that it came to.
fn answer(socket: &Socket, name: &str) -> nix::Result<()> {
    let mut question = [0; LARGEST];
    let mut control = cmsg_space!(libc::in6_pktinfo);
    let (length, client, asked) = {
        let mut parts = [IoSliceMut::new(&mut question)];
        let received = recvmsg::<SockaddrStorage>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::empty(),
        )?;
        let asked = received.cmsgs()?.find(|message| {
            matches!(
                message,
                ControlMessageOwned::Ipv4PacketInfo(_) | ControlMessageOwned::Ipv6PacketInfo(_)
            )
        });
        let client = received.address.ok_or(nix::Error::EINVAL)?;
        (received.bytes, client, asked)
    };
    let seen = address(&client).ok_or(nix::Error::EINVAL)?;
    let head = format!("{name} {seen}\n");
    let body = question.get(..length).unwrap_or_default();
    let parts = [IoSlice::new(head.as_bytes()), IoSlice::new(body)];
    let flags = MsgFlags::empty();
    match asked {
        Some(ControlMessageOwned::Ipv4PacketInfo(info)) => {
            let from = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: info.ipi_addr,
                ..info
            };
            let control = [ControlMessage::Ipv4PacketInfo(&from)];
            sendmsg(socket.as_raw_fd(), &parts, &control, flags, Some(&client))
        }
        Some(ControlMessageOwned::Ipv6PacketInfo(info)) => {
            let from = libc::in6_pktinfo {
                ipi6_ifindex: 0,
                ..info
            };
            let control = [ControlMessage::Ipv6PacketInfo(&from)];
            sendmsg(socket.as_raw_fd(), &parts, &control, flags, Some(&client))
        }
        _ => Err(nix::Error::EINVAL),
    }
    .map(drop)
}

fn address(from: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = from
        .as_sockaddr_in()
        .map(|v4| SocketAddr::new(v4.ip().into(), v4.port()));
    v4.or_else(|| {
        let v6 = from.as_sockaddr_in6()?;
        Some(SocketAddr::new(v6.ip().into(), v6.port()))
    })
}

/// A client's socket: its questions are one flow.
#[derive(Debug)]
pub struct Client {
    socket: UdpSocket,
    target: SocketAddr,
    connected: bool,
}

impl Client {
    /// A socket on `node` with a port of its choice.
    pub fn open(node: &Node, target: SocketAddr) -> Result<Self> {
        node.namespace().enter(|| Self::here(target, false))
    }

    /// The same in the calling thread's network namespace, connected to `target` or not.
    pub fn here(target: SocketAddr, connected: bool) -> Result<Self> {
        let socket = UdpSocket::bind((any_address(target.ip()), 0))?;
        if connected {
            socket.connect(target).context("connect")?;
        }
        socket.set_read_timeout(Some(AGAIN))?;
        Ok(Self {
            socket,
            target,
            connected,
        })
    }

    /// Its port.
    pub fn port(&self) -> Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    /// Where it says that it leads to.
    pub fn peer(&self) -> Result<SocketAddr> {
        Ok(self.socket.peer_addr()?)
    }

    /// Sends `length` bytes of content once and waits for the answer to them; `None` if there is
    /// none.
    pub fn ask_once(&self, length: usize) -> Result<Option<Answer>> {
        let question = content(length);
        if self.connected {
            self.socket.send(&question).context("send")?;
        } else {
            self.socket
                .send_to(&question, self.target)
                .context("send")?;
        }
        let mut answer = [0; LARGEST + 100];
        let (received, from) = match self.socket.recv_from(&mut answer) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error).context("receive"),
        };
        let answer = answer.get(..received).unwrap_or_default();
        let end = answer.iter().position(|byte| *byte == b'\n');
        let (head, body) = answer.split_at(end.context("an answer without a name")?);
        ensure!(
            body.get(1..) == Some(question.as_slice()),
            "not what was asked"
        );
        let head = String::from_utf8_lossy(head);
        let (server, client) = head.split_once(' ').context("an answer without a client")?;
        Ok(Some(Answer {
            server: server.to_owned(),
            client: client.parse()?,
            from,
        }))
    }

    /// Asks until there is an answer: datagrams may be lost, and so may be their answers.
    pub fn ask(&self, length: usize, patience: Duration) -> Result<Answer> {
        let begin = Instant::now();
        while begin.elapsed() < patience {
            if let Some(answer) = self.ask_once(length)? {
                return Ok(answer);
            }
        }
        bail!("no answer from {} within {patience:?}", self.target)
    }
}

/// Asks `count` times by a process in a node's namespace and cgroup, from one socket, connected or
/// not. The error is the system call's.
pub fn by_process(
    node: &Node,
    target: SocketAddr,
    count: usize,
    connected: bool,
) -> Result<Vec<Answer>> {
    let binary = workspace_binary("xvip-client")?;
    let binary = binary.to_str().context("a path that is not UTF-8")?;
    let mut command = node.command(binary);
    command
        .args(["--target", &target.to_string()])
        .args(["--requests", &count.to_string()])
        .arg(if connected {
            "--udp-connected"
        } else {
            "--udp"
        });
    Ok(serde_json::from_str(&output(&mut command)?)?)
}

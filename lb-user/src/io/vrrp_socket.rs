//! The socket of one VRRP instance: raw, protocol 112, bound to the instance's interface.
//!
//! One socket sends and receives, multicast and unicast. It is not bound to an address, because
//! a bound raw socket does not hear the group; the source goes out with each packet instead
//! (`IP_PKTINFO`, `IPV6_PKTINFO`), and the kernel refuses one that this node does not have any
//! more. When the interface is gone, sending fails; open a new socket when it is back.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6},
    num::NonZeroU32,
    os::fd::AsRawFd,
    time::Duration,
};

use lb_common::abi::Mac;
use nix::{
    cmsg_space,
    errno::Errno,
    ifaddrs::getifaddrs,
    libc,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrLike,
        recvmsg, sendmsg, setsockopt, sockopt,
    },
    sys::time::{TimeSpec, TimeValLike},
    time::{ClockId, clock_gettime},
};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockFilter, Socket, Type};
use thiserror::Error;
use tokio::io::{Interest, unix::AsyncFd};

use super::packet_socket::{PacketError, PacketSocket};
use crate::{
    config::model::{V3Checksum, VrrpConfig},
    core::{
        frame,
        vrrp::{
            Advert, RxMeta,
            packet::{self, GROUP_V4, GROUP_V6, TTL},
        },
    },
};

/// CS6, network control: adverts must get through where other traffic queues.
const TRAFFIC_CLASS: u32 = 0xc0;
/// Bytes of adverts that may queue: some hundred adverts. A frozen controller hears the oldest
/// of them, which is all that it needs to know that it was not alone.
const RECEIVE_BUFFER: usize = 128 * 1024;
/// Longest packet: an IPv4 header with options or none, and 255 addresses of 16 bytes.
const MAX_PACKET: usize = 60 + 8 + 255 * 16 + 8;

/// What went wrong with a VRRP socket.
#[derive(Debug, Error)]
pub enum VrrpSocketError {
    /// The interface has no address that adverts could come from (yet).
    #[error("interface {interface} has no address to send adverts from")]
    NoSource {
        /// Name of the interface.
        interface: String,
    },
    /// The socket could not be set up.
    #[error("{step}: {source}")]
    Open {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// An advert left for none of its destinations.
    #[error("send an advert to {destination}: {source}")]
    Send {
        /// The last destination that was tried.
        destination: IpAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// No packets can be sent from the virtual MAC.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// Receiving failed.
    #[error("receive adverts: {0}")]
    Receive(#[source] io::Error),
}

/// A packet of protocol 112, not yet judged: hand it to [`packet::parse`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// How long it had been in the socket: time since the kernel received it.
    pub age: Duration,
    /// Source, destination and TTL.
    pub meta: RxMeta,
    /// The VRRP message.
    pub message: Vec<u8>,
}

/// Destinations that an advert left for, and those that it did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Destinations reached as far as the kernel can tell; at least one.
    pub sent: usize,
    /// Unicast peers that could not be sent to.
    pub failed: usize,
}

/// Sends and receives the adverts of one instance.
#[derive(Debug)]
pub struct VrrpSocket {
    fd: AsyncFd<Socket>,
    ifindex: NonZeroU32,
    source: IpAddr,
    /// The group, or the unicast peers.
    destinations: Vec<IpAddr>,
    checksum: V3Checksum,
    /// Adverts to the group leave from the virtual MAC, which an IP socket cannot do.
    from_vmac: Option<(Mac, PacketSocket)>,
}

impl VrrpSocket {
    /// A socket for `config` on its interface, which has the index `ifindex`. Needs
    /// `CAP_NET_RAW`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn open(config: &VrrpConfig, ifindex: NonZeroU32) -> Result<Self, VrrpSocketError> {
        let source = find_source(config)?;
        let step = |step| move |source| VrrpSocketError::Open { step, source };
        let ipv6 = config.is_ipv6();
        let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
        let protocol = Protocol::from(i32::from(packet::PROTOCOL));
        let socket = Socket::new(domain, Type::RAW, Some(protocol))
            .map_err(step("open a raw socket (needs CAP_NET_RAW)"))?;
        // First, so that nothing else queues up.
        socket
            .attach_filter(&vrid_filter(config.vrid.get(), ipv6))
            .map_err(step("filter by VRID"))?;
        socket
            .bind_device(Some(config.interface.as_bytes()))
            .map_err(step("bind to the interface"))?;
        socket
            .set_nonblocking(true)
            .and_then(|()| socket.set_recv_buffer_size(RECEIVE_BUFFER))
            .map_err(step("set up the socket"))?;
        let options = if ipv6 { set_up_v6 } else { set_up_v4 };
        options(&socket).map_err(step("set up the socket"))?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)
            .map_err(|errno| step("ask for receive times")(errno.into()))?;
        let destinations = if config.unicast_peers.is_empty() {
            vec![join(&socket, ipv6, ifindex).map_err(step("join the VRRP group"))?]
        } else {
            config.unicast_peers.clone()
        };
        let fd = register(socket).map_err(step("register with the runtime"))?;
        let multicast = config.unicast_peers.is_empty();
        let from_vmac = match config.virtual_mac().filter(|_| multicast) {
            Some(mac) => Some((mac, PacketSocket::open(ifindex.get())?)),
            None => None,
        };
        Ok(Self {
            from_vmac,
            fd,
            ifindex,
            source,
            destinations,
            checksum: config.v3_checksum,
        })
    }

    /// Source address of the adverts: this router's primary address.
    pub const fn source(&self) -> IpAddr {
        self.source
    }

    /// The next packet. Cancelling loses none.
    pub async fn recv(&self) -> Result<Received, VrrpSocketError> {
        loop {
            let mut guard = self.fd.readable().await.map_err(VrrpSocketError::Receive)?;
            match guard.try_io(|fd| receive(fd.get_ref())) {
                Ok(Ok(Some(received))) => return Ok(received),
                Ok(Err(error)) => return Err(VrrpSocketError::Receive(error)),
                // Nothing that can be read as a packet, or nothing there yet.
                Ok(Ok(None)) | Err(_) => {}
            }
        }
    }

    /// A packet that has queued up; `None`: no more. Drains the socket before a decision that
    /// rests on silence.
    pub fn try_recv(&self) -> Result<Option<Received>, VrrpSocketError> {
        loop {
            match receive(self.fd.get_ref()) {
                Ok(Some(received)) => return Ok(Some(received)),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(VrrpSocketError::Receive(error)),
            }
        }
    }

    /// Send `advert` to the group or to every unicast peer. Does not wait: an advert that the
    /// kernel has no room for is late anyway.
    pub fn send(&self, advert: &Advert) -> Result<Sent, VrrpSocketError> {
        let mut failure = None;
        let mut sent = 0;
        for &destination in &self.destinations {
            // Each has its own checksum: the pseudo-header holds the destination.
            let message = packet::emit(advert, self.source, destination, self.checksum);
            match self.send_to(&message, destination) {
                Ok(()) => sent += 1,
                Err(error) => failure = Some((destination, error)),
            }
        }
        match failure {
            Some((destination, source)) if sent == 0 => Err(VrrpSocketError::Send {
                destination,
                source,
            }),
            _ => Ok(Sent {
                sent,
                failed: self.destinations.len() - sent,
            }),
        }
    }

    fn send_to(&self, message: &[u8], destination: IpAddr) -> Result<(), io::Error> {
        if let Some((mac, socket)) = &self.from_vmac {
            let frame = frame::advert(*mac, self.source, destination, message);
            let frame = frame.ok_or(Errno::EAFNOSUPPORT)?;
            return socket.send(&frame).map_err(io::Error::other);
        }
        match (self.source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: i32::try_from(self.ifindex.get()).map_err(|_| Errno::ENODEV)?,
                    ipi_spec_dst: libc::in_addr {
                        s_addr: u32::from_ne_bytes(source.octets()),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                let to = SockaddrIn::from(SocketAddrV4::new(destination, 0));
                self.send_message(message, &ControlMessage::Ipv4PacketInfo(&info), &to)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: source.octets(),
                    },
                    ipi6_ifindex: self.ifindex.get(),
                };
                let scope = self.ifindex.get();
                let to = SockaddrIn6::from(SocketAddrV6::new(destination, 0, 0, scope));
                self.send_message(message, &ControlMessage::Ipv6PacketInfo(&info), &to)
            }
            _ => Err(Errno::EAFNOSUPPORT.into()),
        }
    }

    fn send_message(
        &self,
        message: &[u8],
        info: &ControlMessage,
        to: &impl SockaddrLike,
    ) -> Result<(), io::Error> {
        let fd = self.fd.get_ref().as_raw_fd();
        let parts = [IoSlice::new(message)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendmsg(fd, &parts, std::slice::from_ref(info), flags, Some(to))?;
        Ok(())
    }
}

fn register(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: `Socket` owns a valid descriptor, always returns the same one, and keeps it open
    // until it is dropped. The `AsyncFd` owns it and is only ever read through `get_ref`, so
    // nothing replaces or closes it before.
    let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    Ok(registered?)
}

fn set_up_v4(socket: &Socket) -> io::Result<()> {
    socket.set_tos_v4(TRAFFIC_CLASS)?;
    socket.set_ttl_v4(u32::from(TTL))?;
    socket.set_multicast_ttl_v4(u32::from(TTL))?;
    socket.set_multicast_loop_v4(false)?;
    // Only the groups that this socket joined, not those of others on this node.
    socket.set_multicast_all_v4(false)
}

fn set_up_v6(socket: &Socket) -> io::Result<()> {
    socket.set_tclass_v6(TRAFFIC_CLASS)?;
    socket.set_unicast_hops_v6(u32::from(TTL))?;
    socket.set_multicast_hops_v6(u32::from(TTL))?;
    socket.set_multicast_loop_v6(false)?;
    socket.set_multicast_all_v6(false)?;
    setsockopt(socket, sockopt::Ipv6RecvHopLimit, &true)?;
    setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    Ok(())
}

/// Join the group of the family, and say which it is.
fn join(socket: &Socket, ipv6: bool, ifindex: NonZeroU32) -> io::Result<IpAddr> {
    let index = ifindex.get();
    if ipv6 {
        socket.join_multicast_v6(&GROUP_V6, index)?;
        socket.set_multicast_if_v6(index)?;
        Ok(IpAddr::V6(GROUP_V6))
    } else {
        socket.join_multicast_v4_n(&GROUP_V4, &InterfaceIndexOrAddress::Index(index))?;
        Ok(IpAddr::V4(GROUP_V4))
    }
}

/// A classic BPF program that passes the adverts of one VRID, so that instances on one
/// interface do not each read everything. The VRID is the second byte of the message: behind
/// the IP header for IPv4, whose raw sockets see it, at the start for IPv6.
fn vrid_filter(vrid: u8, ipv6: bool) -> Vec<SockFilter> {
    const LDX_MSH: u16 = 0xb1; // X = 4 * (packet[k] & 0xf)
    const LDX_IMM: u16 = 0x01; // X = k
    const LDB_IND: u16 = 0x50; // A = packet[X + k], ends the program with "drop" beyond the end
    const JEQ: u16 = 0x15; // A == k ? skip jt : skip jf
    const RET: u16 = 0x06; // pass k bytes
    let header_length = if ipv6 { LDX_IMM } else { LDX_MSH };
    vec![
        SockFilter::new(header_length, 0, 0, 0),
        SockFilter::new(LDB_IND, 0, 0, 1),
        SockFilter::new(JEQ, 0, 1, u32::from(vrid)),
        SockFilter::new(RET, 0, 0, u32::MAX),
        SockFilter::new(RET, 0, 0, 0),
    ]
}

/// Read one packet; `None` if it cannot be read as one.
fn receive(socket: &Socket) -> io::Result<Option<Received>> {
    let mut buffer = [0; MAX_PACKET];
    let mut control = cmsg_space!(libc::in6_pktinfo, libc::c_int, libc::timespec);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let fd = socket.as_raw_fd();
    let flags = MsgFlags::MSG_DONTWAIT;
    let message =
        recvmsg::<nix::sys::socket::SockaddrStorage>(fd, &mut parts, Some(&mut control), flags)?;
    if message.flags.contains(MsgFlags::MSG_TRUNC) {
        return Ok(None);
    }
    let v6 = message
        .address
        .as_ref()
        .and_then(|address| address.as_sockaddr_in6())
        .map(SockaddrIn6::ip);
    let facts = Facts::read(message.cmsgs()?);
    let length = message.bytes;
    let bytes = buffer.get(..length).unwrap_or_default();
    Ok(match v6 {
        Some(src) => facts.received_v6(src, bytes),
        None => read_ipv4(bytes, facts.age),
    })
}

/// What the control messages of a packet say; addresses and TTL of IPv4 are in its header.
#[derive(Default)]
struct Facts {
    age: Duration,
    dst: Option<Ipv6Addr>,
    hop_limit: Option<u8>,
}

impl Facts {
    fn read(messages: impl Iterator<Item = ControlMessageOwned>) -> Self {
        let mut facts = Self::default();
        for message in messages {
            match message {
                ControlMessageOwned::ScmTimestampns(stamp) => facts.age = age(stamp),
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    facts.dst = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr));
                }
                ControlMessageOwned::Ipv6HopLimit(limit) => {
                    facts.hop_limit = u8::try_from(limit).ok();
                }
                _ => {}
            }
        }
        facts
    }

    fn received_v6(self, src: Ipv6Addr, message: &[u8]) -> Option<Received> {
        Some(Received {
            age: self.age,
            meta: RxMeta {
                src: IpAddr::V6(src),
                dst: IpAddr::V6(self.dst?),
                ttl: self.hop_limit?,
            },
            message: message.to_vec(),
        })
    }
}

/// Time since `stamp`, which is of the wall clock, as all receive times are. That clock may have been
/// set since: a time in the future counts as now, and the core believes in no age beyond an
/// advertisement interval.
fn age(stamp: TimeSpec) -> Duration {
    let nanos = |time: TimeSpec| u64::try_from(time.num_nanoseconds()).unwrap_or(0);
    let now = clock_gettime(ClockId::CLOCK_REALTIME).map_or(0, nanos);
    Duration::from_nanos(now.saturating_sub(nanos(stamp)))
}

/// Split an IPv4 packet, which raw sockets deliver with its header (RFC 791 section 3.1).
fn read_ipv4(bytes: &[u8], age: Duration) -> Option<Received> {
    let (header, _) = bytes.split_first_chunk::<20>()?;
    let [
        version_ihl,
        _,
        length0,
        length1,
        _,
        _,
        _,
        _,
        ttl,
        _,
        _,
        _,
        s0,
        s1,
        s2,
        s3,
        d0,
        d1,
        d2,
        d3,
    ] = *header;
    if version_ihl >> 4 != 4 {
        return None;
    }
    let header_len = usize::from(version_ihl & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([length0, length1]));
    Some(Received {
        age,
        meta: RxMeta {
            src: IpAddr::V4(Ipv4Addr::new(s0, s1, s2, s3)),
            dst: IpAddr::V4(Ipv4Addr::new(d0, d1, d2, d3)),
            ttl,
        },
        message: bytes.get(header_len.max(20)..total_len)?.to_vec(),
    })
}

/// The address that adverts come from: the configured one, else the interface's first of the
/// family that is no virtual address of this instance. IPv6 adverts to the group, or to peers
/// that have such addresses, come from the link-local one (RFC 9568 section 5.1.2.1).
fn find_source(config: &VrrpConfig) -> Result<IpAddr, VrrpSocketError> {
    if let Some(source) = config.unicast_source {
        return Ok(source);
    }
    let step = "list the addresses";
    let entries = getifaddrs().map_err(|errno| VrrpSocketError::Open {
        step,
        source: errno.into(),
    })?;
    entries
        .filter(|entry| entry.interface_name == config.interface)
        .filter_map(|entry| ip_of(&entry.address?))
        .find(|&address| is_source(config, address))
        .ok_or_else(|| VrrpSocketError::NoSource {
            interface: config.interface.clone(),
        })
}

fn ip_of(address: &nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

fn is_source(config: &VrrpConfig, address: IpAddr) -> bool {
    let link_local = |address: &IpAddr| match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let wants_link_local = match config.unicast_peers.first() {
        None => config.is_ipv6(),
        Some(peer) => link_local(peer),
    };
    address.is_ipv6() == config.is_ipv6()
        && link_local(&address) == wants_link_local
        && !config.addresses.iter().any(|vip| vip.addr() == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with options ends where it says, and what follows the packet is cut off.
    #[test]
    fn ipv4_header_is_split_by_its_lengths() {
        let mut bytes = vec![0x46, 0xc0, 0, 27, 0, 0, 0, 0, 255, 112, 0, 0];
        bytes.extend([10, 0, 2, 10, 224, 0, 0, 18]); // addresses
        bytes.extend([1, 1, 1, 0]); // options
        bytes.extend([b'a', b'b', b'c', 0, 0]); // message and padding
        let received = read_ipv4(&bytes, Duration::ZERO).unwrap();
        assert_eq!(received.message, b"abc");
        assert_eq!(received.meta.ttl, 255);
        assert_eq!(received.meta.src, IpAddr::from([10, 0, 2, 10]));
        assert_eq!(received.meta.dst, IpAddr::V4(GROUP_V4));
    }

    /// Packets that contradict themselves are refused, not sliced.
    #[test]
    fn contradictory_ipv4_headers_are_refused() {
        let good = {
            let mut bytes = vec![0x45, 0, 0, 24];
            bytes.resize(24, 0);
            bytes
        };
        assert!(read_ipv4(&good, Duration::ZERO).is_some());
        for (at, value) in [(0, 0x65), (0, 0x4f), (3, 19), (3, 25)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(
                read_ipv4(&bad, Duration::ZERO),
                None,
                "byte {at} = {value:#x}"
            );
        }
        for length in 0..24 {
            assert_eq!(read_ipv4(&good[..length], Duration::ZERO), None);
        }
    }
}

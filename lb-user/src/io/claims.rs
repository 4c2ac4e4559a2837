//! Who else has the VIPs: asks the stations of a link, and hears who says to have one.
//!
//! Each link has a thread that listens: the controller's thread is not woken by other stations' ARP.
//! Two sockets hear everything there is to hear: ARP, and the neighbour advertisements to this node or
//! to all nodes. The kernel sorts out what else comes.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    io::{self, ErrorKind, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU32,
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lb_common::{
    abi::Mac,
    headers::{ArpPacket, ETHERTYPE_ARP, EthHeader, Ipv6Header, NdPacket},
};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::bind,
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::sync::mpsc::UnboundedSender;
use tracing::{debug, warn};

use super::{announce::Announcer, packet_socket::PacketError};
use crate::core::controller::Input;

/// How often a thread looks whether it is to end, in milliseconds; and its pause after a failure (the
/// link is down).
const PAUSE: u16 = 1_000;
/// Between two reports of one claim. Shorter than the time between two probes.
const GAP: Duration = Duration::from_millis(500);
/// Claims within [`GAP`] that are told apart; more are not reported.
const MAX_CLAIMS: usize = 64;
/// The start of an ARP frame or of an advertisement that is read: its options end here at the latest.
const MAX_LENGTH: usize = 256;

/// An address, and who says to have it.
type Claim = (IpAddr, Mac);

/// The links of this node on which addresses are owned. Dropping it ends everything.
pub(super) struct ClaimWatch {
    links: BTreeMap<u32, Link>,
    inputs: UnboundedSender<Input>,
}

struct Link {
    announcer: Announcer,
    /// Claims of other addresses are forgotten.
    vips: Arc<Mutex<BTreeSet<IpAddr>>>,
    stop: Arc<AtomicBool>,
}

/// Why a link cannot be listened to.
#[derive(Debug, thiserror::Error)]
enum ListenError {
    #[error(transparent)]
    Packet(#[from] PacketError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ClaimWatch {
    /// Tells `inputs` what it hears, as [`Input::Claimed`].
    pub(super) const fn new(inputs: UnboundedSender<Input>) -> Self {
        let links = BTreeMap::new();
        Self { links, inputs }
    }

    /// Asks who else has `addresses`, on a link of the calling thread's network namespace whose MAC is
    /// `mac`. From now on whoever claims them is heard.
    pub(super) fn probe(&mut self, ifindex: u32, mac: Mac, addresses: &[IpAddr]) {
        let link = match self.links.entry(ifindex) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(vacant) => match Link::open(ifindex, self.inputs.clone()) {
                Ok(link) => vacant.insert(link),
                Err(error) => {
                    return warn!(ifindex, %error, "cannot find out who else has the VIPs");
                }
            },
        };
        lock(&link.vips).extend(addresses);
        for &address in addresses {
            if let Err(error) = link.announcer.probe(mac, address) {
                debug!(%address, %error, "cannot ask who else has a VIP");
            }
        }
    }

    /// Begin anew with the next question: interfaces have changed.
    pub(super) fn clear(&mut self) {
        self.links.clear();
    }
}

impl Link {
    fn open(ifindex: u32, inputs: UnboundedSender<Input>) -> Result<Self, ListenError> {
        let link = Self {
            announcer: Announcer::open(ifindex)?,
            vips: Arc::default(),
            stop: Arc::default(),
        };
        let (arp, nd) = (open_arp(ifindex)?, open_nd(ifindex)?);
        let (vips, stop) = (Arc::clone(&link.vips), Arc::clone(&link.stop));
        thread::Builder::new()
            .name("xvip-claims".to_owned())
            .spawn(move || {
                let mut recent = Recent::default();
                listen(arp, nd, &stop, |(address, mac)| {
                    let is_vip = lock(&vips).contains(&address);
                    if is_vip && recent.admit(Instant::now(), (address, mac)) {
                        // Nobody listens any more when the controller ends.
                        let _ = inputs.send(Input::Claimed {
                            ifindex,
                            address,
                            mac,
                        });
                    }
                });
            })?;
        Ok(link)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A thread that ended while it held the set leaves it readable.
fn lock(vips: &Mutex<BTreeSet<IpAddr>>) -> MutexGuard<'_, BTreeSet<IpAddr>> {
    vips.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was reported within [`GAP`].
#[derive(Default)]
struct Recent(BTreeMap<Claim, Instant>);

impl Recent {
    /// Whether a claim is to be reported now.
    fn admit(&mut self, now: Instant, claim: Claim) -> bool {
        let is_recent = |at: &Instant| now.duration_since(*at) < GAP;
        if self.0.get(&claim).is_some_and(is_recent) {
            return false;
        }
        if self.0.len() >= MAX_CLAIMS {
            self.0.retain(|_, at| is_recent(at));
        }
        let admitted = self.0.len() < MAX_CLAIMS;
        if admitted {
            self.0.insert(claim, now);
        }
        admitted
    }
}

// --- Sockets ----------------------------------------------------------------------------------

const RET: u16 = 0x06; // pass k bytes
const LD_WORD: u16 = 0x20; // A = 4 bytes at k
const LD_HALF: u16 = 0x28; // A = 2 bytes at k
const LD_BYTE: u16 = 0x30; // A = 1 byte at k
const JEQ: u16 = 0x15; // A == k ? skip jt : skip jf
/// Added to an offset: it counts from the network header.
const FROM_IP: u32 = 0xfff0_0000;

/// A classic BPF program that passes what has these values at these offsets.
fn filter(wanted: &[(u16, u32, u32)]) -> Vec<SockFilter> {
    let mut program = Vec::new();
    for (load, at, value) in wanted {
        program.push(SockFilter::new(*load, 0, 0, *at));
        program.push(SockFilter::new(JEQ, 1, 0, *value));
        program.push(SockFilter::new(RET, 0, 0, 0));
    }
    program.push(SockFilter::new(RET, 0, 0, u32::MAX));
    program
}

/// Hears the ARP packets of one link: frames.
fn open_arp(ifindex: u32) -> io::Result<Socket> {
    // Bound to a protocol, and so deaf to this node's own frames.
    let protocol = Protocol::from(i32::from(ETHERTYPE_ARP.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
    // Nothing of other links, until it is bound to this one; the family of nothing is 0.
    let nothing = [SockFilter::new(RET, 0, 0, 0)];
    socket.attach_filter(&nothing)?;
    let link = getifaddrs()?
        .filter_map(|interface| interface.address)
        .filter_map(|address| address.as_link_addr().copied())
        .find(|link| u32::try_from(link.ifindex()) == Ok(ifindex))
        .ok_or(ErrorKind::NotFound)?;
    bind(socket.as_raw_fd(), &link)?;
    // IPv4 over Ethernet.
    let l3 = EthHeader::LEN as u32;
    let fixed = [(LD_WORD, l3, 0x0001_0800), (LD_HALF, l3 + 4, 0x0604)];
    socket.attach_filter(&filter(&fixed))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Hears the neighbour advertisements of one link: messages, whose checksums the kernel has verified.
fn open_nd(ifindex: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.attach_filter(&[SockFilter::new(RET, 0, 0, 0)])?;
    socket.bind_device_by_index_v6(NonZeroU32::new(ifindex))?;
    let advertisement = [
        (LD_BYTE, 0, u32::from(NdPacket::ADVERTISEMENT)),
        (LD_BYTE, 1, 0),
        // RFC 4861 section 7.1.2: anything else came through a router.
        (LD_BYTE, FROM_IP + HOP_LIMIT, 255),
    ];
    socket.attach_filter(&filter(&advertisement))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Offset of the hop limit in [`Ipv6Header`].
const HOP_LIMIT: u32 = 7;
const _: () = assert!(std::mem::offset_of!(Ipv6Header, hop_limit) == HOP_LIMIT as usize);

/// Hand every claim on the two sockets to `report`, until it is time to `stop`.
fn listen(mut arp: Socket, mut nd: Socket, stop: &AtomicBool, mut report: impl FnMut(Claim)) {
    while !stop.load(Ordering::Relaxed) {
        let mut wait = [
            PollFd::new(arp.as_fd(), PollFlags::POLLIN),
            PollFd::new(nd.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut wait, PollTimeout::from(PAUSE)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => thread::sleep(Duration::from_millis(PAUSE.into())),
        }
        for (socket, read) in [
            (&mut arp, claim_of_arp as fn(&[u8]) -> Option<Claim>),
            (&mut nd, claim_of_advertisement),
        ] {
            let mut bytes = [0; MAX_LENGTH];
            loop {
                match socket.read(&mut bytes) {
                    Ok(length) => {
                        let claim = read(bytes.get(..length).unwrap_or_default());
                        claim.into_iter().for_each(&mut report);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    // Told once: the link has gone down.
                    Err(error) => {
                        debug!(%error, "cannot hear who else has the VIPs");
                        thread::sleep(Duration::from_millis(PAUSE.into()));
                        break;
                    }
                }
            }
        }
    }
}

// --- Packets ----------------------------------------------------------------------------------

/// What an ARP frame says of its sender, whatever else it is for (RFC 826).
fn claim_of_arp(frame: &[u8]) -> Option<Claim> {
    let arp = frame.get(EthHeader::LEN..)?;
    let is_ipv4 = arp.get(..6)? == ArpPacket::FIXED;
    let mac = arp.get(8..14)?.try_into().ok()?;
    let address = <[u8; 4]>::try_from(arp.get(14..18)?).ok()?;
    is_ipv4.then(|| (Ipv4Addr::from(address).into(), mac))
}

/// What a neighbour advertisement says of its target (RFC 4861 section 4.4). Answers to all nodes, and
/// unsolicited ones, have the option with the MAC.
fn claim_of_advertisement(message: &[u8]) -> Option<Claim> {
    let is_advertisement = message.get(..2)? == [NdPacket::ADVERTISEMENT, 0];
    let address = <[u8; 16]>::try_from(message.get(8..NdPacket::LEN)?).ok()?;
    let mut options = message.get(NdPacket::LEN..)?;
    while let [kind, units, ..] = *options {
        // Section 4.6: in units of 8 bytes, and never of length 0.
        let length = usize::from(units) * 8;
        let option = options.get(..length).filter(|option| !option.is_empty())?;
        if kind == NdPacket::TARGET_MAC {
            let mac = option.get(2..8)?.try_into().ok()?;
            return is_advertisement.then(|| (Ipv6Addr::from(address).into(), mac));
        }
        options = options.get(length..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::announce::{ArpForm, arp_probe, gratuitous_arp, unsolicited_advertisement};

    const MAC: Mac = [2, 0, 0, 0, 0, 1];
    const VIP4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
    const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9);

    /// The sender of ARP claims, whatever the operation; a probe claims no address of anybody's.
    #[test]
    fn the_sender_of_arp_claims() {
        for form in [ArpForm::Request, ArpForm::Reply] {
            let frame = gratuitous_arp(MAC, VIP4, form);
            assert_eq!(claim_of_arp(&frame), Some((VIP4.into(), MAC)));
            assert_eq!(claim_of_arp(&frame[..31]), None);
        }
        let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        assert_eq!(claim_of_arp(&arp_probe(MAC, VIP4)), Some((nobody, MAC)));
        let mut other = arp_probe(MAC, VIP4);
        other[14] = 9;
        assert_eq!(claim_of_arp(&other), None);
    }

    /// An advertisement claims its target; the option may follow others. What is cut or has an option
    /// without a length says nothing.
    #[test]
    fn an_advertisement_claims_its_target() {
        let frame = unsolicited_advertisement(MAC, VIP6);
        let message = &frame[EthHeader::LEN + Ipv6Header::LEN..];
        assert_eq!(claim_of_advertisement(message), Some((VIP6.into(), MAC)));
        for length in 0..message.len() {
            assert_eq!(claim_of_advertisement(&message[..length]), None);
        }
        let (head, option) = message.split_at(NdPacket::LEN);
        let another = [14, 1, 0, 0, 0, 0, 0, 0];
        let later = [head, &another, option].concat();
        assert_eq!(claim_of_advertisement(&later), Some((VIP6.into(), MAC)));
        let endless = [head, &[14, 0], option].concat();
        assert_eq!(claim_of_advertisement(&endless), None);
    }

    /// One report of each claim within the gap, and a bound for forged ones.
    #[test]
    fn reports_are_few() {
        let (mut recent, start) = (Recent::default(), Instant::now());
        let claim = |number: u32| (IpAddr::from(number.to_be_bytes()), MAC);
        assert!(recent.admit(start, claim(0)));
        assert!(!recent.admit(start + GAP / 2, claim(0)));
        assert!(recent.admit(start + GAP, claim(0)));
        let flood = (1..1_000).filter(|&number| recent.admit(start + GAP, claim(number)));
        assert_eq!(flood.count(), MAX_CLAIMS - 1);
        assert!(recent.admit(start + GAP * 2, claim(0)));
    }
}

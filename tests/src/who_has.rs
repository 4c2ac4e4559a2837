//! Asking the wire who has an address, by ARP or neighbour solicitation, and hearing every
//! answer: a duplicate owner shows, which the kernel's own neighbour table would hide.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use lb_common::checksum;
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send,
            setsockopt, socket, sockopt,
        },
        time::{TimeVal, TimeValLike},
    },
};

use crate::topology::Node;

/// A link-layer address.
pub type Mac = [u8; 6];

/// How long an answer is waited for before the question is asked again.
const ANSWER: Duration = Duration::from_millis(200);

/// Asks `rounds` times from a node's uplink; who answered. A round ends with the answer of
/// `expected`: whoever else answers has as long as that takes, in each round.
pub fn who_has(
    node: &Node,
    address: IpAddr,
    expected: Mac,
    rounds: usize,
    deadline: Duration,
) -> Result<BTreeSet<Mac>> {
    let end = Instant::now() + deadline;
    let question = question(node, address);
    node.namespace().enter(|| {
        let socket = open()?;
        let mut answered = BTreeSet::new();
        let mut good = 0;
        while good < rounds {
            if Instant::now() > end {
                bail!("{expected:02x?} did not answer for {address}; these did: {answered:02x?}");
            }
            let flags = MsgFlags::empty();
            send(socket.as_raw_fd(), &question, flags).context("cannot ask")?;
            good += usize::from(listen(&socket, address, expected, &mut answered)?);
        }
        // The last round's other answers.
        listen(&socket, address, [0; 6], &mut answered)?;
        Ok(answered)
    })
}

/// Collects answers until `expected`'s, which is `true`, or until nothing comes any more.
fn listen(
    socket: &OwnedFd,
    address: IpAddr,
    expected: Mac,
    answered: &mut BTreeSet<Mac>,
) -> Result<bool> {
    let end = Instant::now() + ANSWER;
    let mut frame = [0; 2048];
    while Instant::now() < end {
        match recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            Ok(length) => {
                let frame = frame.get(..length).unwrap_or_default();
                if let Some(mac) = answer(frame, address) {
                    answered.insert(mac);
                    if mac == expected {
                        return Ok(true);
                    }
                }
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot receive"),
        }
    }
    Ok(false)
}

/// A packet socket on eth0 that hears everything and waits no longer than 20 ms.
pub(crate) fn open() -> Result<OwnedFd> {
    open_on("eth0")
}

/// The same on another interface.
pub(crate) fn open_on(name: &str) -> Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )
    .context("cannot open a packet socket")?;
    let link = getifaddrs()?
        .filter(|interface| interface.interface_name == name)
        .find_map(|interface| interface.address?.as_link_addr().copied())
        .with_context(|| format!("there is no {name}"))?;
    bind(socket.as_raw_fd(), &link).with_context(|| format!("cannot bind to {name}"))?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(20))?;
    Ok(socket)
}

fn question(node: &Node, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp_request(node.mac(), node.ipv4(), address),
        IpAddr::V6(address) => solicitation(node.mac(), node.ipv6(), address),
    }
}

/// The question to all, and to each of these stations alone, as a neighbour that has an entry asks.
pub(crate) fn questions(node: &Node, address: IpAddr, stations: &[Mac]) -> Vec<Vec<u8>> {
    let alone = stations.iter().map(|station| {
        let mut frame = match address {
            IpAddr::V4(asked) => arp_request(node.mac(), node.ipv4(), asked),
            IpAddr::V6(asked) => solicitation_to(asked, node.mac(), node.ipv6(), asked),
        };
        if let Some(destination) = frame.get_mut(..6) {
            destination.copy_from_slice(station);
        }
        frame
    });
    std::iter::once(question(node, address))
        .chain(alone)
        .collect()
}

/// RFC 826
pub(crate) fn arp_request(mac: Mac, own: Ipv4Addr, asked: Ipv4Addr) -> Vec<u8> {
    let (own, asked) = (own.octets(), asked.octets());
    let parts: [&[u8]; 9] = [
        &[0xff; 6],
        &mac,
        &[0x08, 0x06],
        &[0, 1, 0x08, 0, 6, 4],
        &[0, 1],
        &mac,
        &own,
        &[0; 6],
        &asked,
    ];
    parts.concat()
}

/// RFC 4861 section 4.3, to the solicited-node address of RFC 4291 section 2.7.1.
fn solicitation(mac: Mac, own: Ipv6Addr, asked: Ipv6Addr) -> Vec<u8> {
    let [.., x, y, z] = asked.octets();
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z];
    solicitation_to(group.into(), mac, own, asked)
}

/// The same to the group, or to the address itself; the Ethernet destination is the group's.
fn solicitation_to(to: Ipv6Addr, mac: Mac, own: Ipv6Addr, asked: Ipv6Addr) -> Vec<u8> {
    let (own, asked, to) = (own.octets(), asked.octets(), to.octets());
    let [.., x, y, z] = asked;
    let message = |sum: u16| {
        let sum = sum.to_be_bytes();
        let parts: [&[u8]; 6] = [&[135, 0], &sum, &[0; 4], &asked, &[1, 1], &mac];
        parts.concat()
    };
    let sum = checksum::transport(&own, &to, 58, &message(0));
    let parts: [&[u8]; 7] = [
        &[0x33, 0x33, 0xff, x, y, z],
        &mac,
        &[0x86, 0xdd],
        &[0x60, 0, 0, 0, 0, 32, 58, 255],
        &own,
        &to,
        &message(sum),
    ];
    parts.concat()
}

/// Whom a frame tells to have the address: the sender of an ARP reply, or the target link-layer
/// address of a neighbour advertisement.
fn answer(frame: &[u8], address: IpAddr) -> Option<Mac> {
    let field = |at: usize, length: usize| frame.get(at..at + length);
    let found = match address {
        IpAddr::V4(address) => {
            let reply = field(12, 10)? == [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2];
            (reply && field(28, 4)? == address.octets()).then(|| field(22, 6))?
        }
        IpAddr::V6(address) => {
            let advertisement = field(12, 2)? == [0x86, 0xdd] && field(20, 1)? == [58];
            let names = field(54, 1)? == [136] && field(62, 16)? == address.octets();
            (advertisement && names).then(|| field(80, 6))?
        }
    }?;
    found.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is asked names the address, and a reply is read back from its place.
    #[test]
    fn frames_have_their_fields_in_place() {
        let (own, asked) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let mut frame = arp_request([2; 6], own, asked);
        assert_eq!(frame.len(), 42);
        assert_eq!(answer(&frame, own.into()), None);
        frame[21] = 2;
        assert_eq!(answer(&frame, own.into()), Some([2; 6]));
        let asked: Ipv6Addr = "fd77::100".parse().unwrap();
        let mut frame = solicitation([2; 6], "fd77::1".parse().unwrap(), asked);
        assert_eq!(frame.len(), 86);
        assert_eq!(answer(&frame, asked.into()), None);
        frame[54] = 136;
        assert_eq!(answer(&frame, asked.into()), Some([2; 6]));
    }
}

//! Changed packets: bytes written, checksums from scratch.

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::Mac;

use super::wire::{self, ICMP, ICMP6, Ip, Quoted, TCP, UDP, Version};

/// A frame as it shall leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// Its bytes.
    pub frame: Vec<u8>,
    /// Offsets of checksums that were computed: 0 and 0xffff are the same there.
    pub checksums: Vec<usize>,
}

impl Rewrite {
    /// The frame as it came.
    pub(super) fn of(frame: &[u8]) -> Self {
        Self {
            frame: frame.to_vec(),
            checksums: Vec::new(),
        }
    }

    /// Put `bytes` at `at`.
    pub(super) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.frame[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// New MACs.
    pub(super) fn macs(&mut self, dst: Mac, src: Mac) {
        self.put(0, &dst);
        self.put(6, &src);
    }

    /// New addresses and ports. A checksum that was right is right afterwards, one that was
    /// wrong is as wrong as it was.
    pub(super) fn endpoints(&mut self, ip: &Ip, src: SocketAddr, dst: SocketAddr) {
        let before = Sums::of(&self.frame, ip);
        let at = ip.l3 + version(src).addresses();
        let addresses = [octets(src.ip()), octets(dst.ip())].concat();
        self.put(at, &addresses);
        self.put(ip.l4, &src.port().to_be_bytes());
        self.put(ip.l4 + 2, &dst.port().to_be_bytes());
        before.renew(self, ip);
    }

    /// A new destination port.
    pub(super) fn dport(&mut self, ip: &Ip, port: u16) {
        let before = Sums::of(&self.frame, ip);
        self.put(ip.l4 + 2, &port.to_be_bytes());
        before.renew(self, ip);
    }

    /// One hop less to live.
    pub(super) fn hop(&mut self, ip: &Ip) {
        let before = Sums::of(&self.frame, ip);
        let at = ip.l3 + if self.frame[ip.l3] >> 4 == 4 { 8 } else { 7 };
        self.frame[at] -= 1;
        before.renew(self, ip);
    }

    /// Other endpoints for the packet that an ICMP error quotes, and other addresses for the error.
    pub(super) fn error(
        &mut self,
        ip: &Ip,
        quoted: &Quoted,
        (src, dst): (SocketAddr, SocketAddr),
        outside: Option<(IpAddr, IpAddr)>,
    ) {
        let before = Sums::of(&self.frame, ip);
        let inside = Sums::of_quoted(&self.frame, ip, quoted);
        let at = version(src).addresses();
        self.put(
            quoted.l3 + at,
            &[octets(src.ip()), octets(dst.ip())].concat(),
        );
        self.put(quoted.l4, &src.port().to_be_bytes());
        self.put(quoted.l4 + 2, &dst.port().to_be_bytes());
        let after = Sums::of_quoted(&self.frame, ip, quoted);
        inside.write(&after, self);
        if let Some((src, dst)) = outside {
            self.put(ip.l3 + at, &[octets(src), octets(dst)].concat());
        }
        before.renew(self, ip);
    }

    /// A new source port.
    pub(super) fn sport(&mut self, ip: &Ip, port: u16) {
        let before = Sums::of(&self.frame, ip);
        self.put(ip.l4, &port.to_be_bytes());
        before.renew(self, ip);
    }

    /// What is different from `got`, if anything.
    pub fn difference(&self, got: &[u8]) -> Option<String> {
        let mut same = self.frame.clone();
        for at in &self.checksums {
            let words = (wire::word(got, *at), wire::word(&same, *at));
            if matches!(words, (Some(0 | 0xffff), Some(0 | 0xffff))) {
                same[*at..at + 2].copy_from_slice(&got[*at..at + 2]);
            }
        }
        crate::packet::diff(&same, got)
    }
}

fn version(addr: SocketAddr) -> Version {
    match addr {
        SocketAddr::V4(_) => Version::Four,
        SocketAddr::V6(_) => Version::Six,
    }
}

/// The bytes of an address.
pub(super) fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(four) => four.octets().to_vec(),
        IpAddr::V6(six) => six.octets().to_vec(),
    }
}

/// One's complement sum of words; an odd last byte is the high half of one.
pub(super) fn sum(data: &[u8]) -> u64 {
    let words = data.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or(0);
        u64::from(u16::from_be_bytes([pair[0], low]))
    });
    words.sum()
}

/// The checksum that goes with a sum (RFC 1071).
pub(super) fn complement(sum: u64) -> u16 {
    let mut folded = sum;
    while folded > 0xffff {
        folded = (folded & 0xffff) + (folded >> 16);
    }
    !(folded as u16)
}

/// Where the checksum of an upper layer is, in it.
fn checksum_offset(proto: u8) -> Option<usize> {
    match proto {
        TCP => Some(16),
        UDP => Some(6),
        ICMP | ICMP6 => Some(2),
        _ => None,
    }
}

/// The right checksum of a message whose checksum is at `at`, with its pseudo-header.
pub(super) fn upper_checksum(addresses: &[u8], proto: u8, message: &[u8], at: usize) -> u16 {
    let mut copy = message.to_vec();
    copy[at..at + 2].fill(0);
    let pseudo = if proto == ICMP {
        0
    } else {
        sum(addresses) + u64::from(proto) + message.len() as u64
    };
    complement(pseudo + sum(&copy))
}

/// The right checksum of an IPv4 header.
pub(super) fn header_checksum(header: &[u8]) -> u16 {
    let mut copy = header.to_vec();
    copy[10..12].fill(0);
    complement(sum(&copy))
}

/// Whether the checksums of a packet are right.
pub(super) fn intact(frame: &[u8], ip: &Ip) -> bool {
    let Sums(sums) = Sums::of(frame, ip);
    sums.iter()
        .all(|sum| sum.given % 0xffff == sum.right % 0xffff)
}

/// A checksum as it is, and as it should be.
struct Sum {
    at: usize,
    given: u16,
    right: u16,
    /// 0 says that there is none (UDP), so that what adds up to 0 is written as 0xffff.
    optional: bool,
}

impl Sum {
    /// The checksum to write where `right` is right: off by as much as the given one was.
    fn renewed(&self, right: u16) -> u16 {
        if self.optional && self.given == 0 {
            return 0;
        }
        let error = u64::from(self.given) + u64::from(!self.right);
        // One's complement addition of the error; complemented twice.
        match !complement(error + u64::from(right)) {
            0 if self.optional => 0xffff,
            sum => sum,
        }
    }
}

/// The checksums of a packet.
struct Sums(Vec<Sum>);

impl Sums {
    fn of(frame: &[u8], ip: &Ip) -> Self {
        let mut sums = Vec::new();
        let version = if frame[ip.l3] >> 4 == 4 {
            Version::Four
        } else {
            Version::Six
        };
        if version == Version::Four {
            let header = &frame[ip.l3..ip.l4];
            sums.push(Sum {
                at: ip.l3 + 10,
                given: wire::word(frame, ip.l3 + 10).unwrap_or_default(),
                right: header_checksum(header),
                optional: false,
            });
        }
        let at = ip.l3 + version.addresses();
        let addresses = &frame[at..at + 2 * version.address_len()];
        if let Some(at) = checksum_offset(ip.proto) {
            // An outgoing frame may be cut into segments later: its length field says nothing then.
            // An error is kept whatever else is summed up.
            let whole = ip.upper(frame).filter(|message| message.len() >= at + 2);
            let message = whole.unwrap_or(&frame[ip.l4..]);
            sums.push(Sum {
                at: ip.l4 + at,
                given: wire::word(message, at).unwrap_or_default(),
                right: upper_checksum(addresses, ip.proto, message, at),
                optional: ip.proto == UDP,
            });
        }
        Self(sums)
    }

    /// Those of a packet that an ICMP error quotes the beginning of. Its end is unknown: what the
    /// transport checksum should be is that of the addresses and ports alone, and the rest an error.
    fn of_quoted(frame: &[u8], ip: &Ip, quoted: &Quoted) -> Self {
        let version = version(quoted.src);
        let mut sums = Vec::new();
        if version == Version::Four {
            sums.push(Sum {
                at: quoted.l3 + 10,
                given: wire::word(frame, quoted.l3 + 10).unwrap_or_default(),
                right: header_checksum(&frame[quoted.l3..quoted.l4]),
                optional: false,
            });
        }
        let at = quoted.l4 + if quoted.proto == UDP { 6 } else { 16 };
        let given = wire::word(&frame[..ip.end], at);
        if let Some(given) = given.filter(|given| quoted.proto == TCP || *given != 0) {
            let from = quoted.l3 + version.addresses();
            let addresses = &frame[from..from + 2 * version.address_len()];
            let ports = &frame[quoted.l4..quoted.l4 + 4];
            sums.push(Sum {
                at,
                given,
                right: complement(sum(addresses) + sum(ports)),
                optional: false,
            });
        }
        Self(sums)
    }

    /// Write the checksums of the changed packet.
    fn renew(self, rewrite: &mut Rewrite, ip: &Ip) {
        let after = Self::of(&rewrite.frame, ip);
        self.write(&after, rewrite);
    }

    /// Write the checksums that go with `after`.
    fn write(&self, after: &Self, rewrite: &mut Rewrite) {
        for (before, after) in self.0.iter().zip(&after.0) {
            let renewed = before.renewed(after.right);
            rewrite.put(before.at, &renewed.to_be_bytes());
            if !before.optional {
                rewrite.checksums.push(before.at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Family as _, Frame, V4, V6, verify_checksums};

    /// Right checksums stay right, wrong ones wrong by the same.
    #[test]
    fn errors_are_kept() {
        let src = SocketAddr::new(V4::NOT_VIP.into(), 4711);
        let dst = SocketAddr::new(V4::EXTERNALS[0].into(), 6443);
        let frame = Frame::<V4>::data().ip_options(&[1; 3]);
        for error in [0, 1, 0x1234, 0xfffe] {
            let before = frame.clone().wrong_checksum(error);
            let ip = Ip::parse(&before.emit(), before.l3(), Version::Four).unwrap();
            let mut rewrite = Rewrite::of(&before.emit());
            rewrite.endpoints(&ip, src, dst);
            let mut after = before.src(V4::NOT_VIP).sport(4711).dport(6443);
            after.dst = V4::EXTERNALS[0];
            assert_eq!(rewrite.difference(&after.emit()), None, "{error:#x}");
            assert_eq!(verify_checksums(&rewrite.frame).is_ok(), error == 0);
        }
        let before = Frame::<V6>::data().ip_options(&[0; 9]);
        let ip = Ip::parse(&before.emit(), before.l3(), Version::Six).unwrap();
        let mut rewrite = Rewrite::of(&before.emit());
        rewrite.dport(&ip, 6443);
        assert_eq!(rewrite.difference(&before.dport(6443).emit()), None);
    }
}

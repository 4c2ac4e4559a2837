//! VRRP adverts: their bytes and their meaning. [`parse`] checks all that a message alone can
//! tell; whether it fits the receiving instance (VRID, version, secret, peers) is decided there.
//!
//! ```text
//! Version 3, RFC 9568 section 5.1               Version 2, RFC 3768 section 5.1
//!  0       1       2       3                     0       1       2       3
//! +---+---+-------+-------+-------+             +---+---+-------+-------+-------+
//! | 3 | 1 | VRID  | Prio  | Count |             | 2 | 1 | VRID  | Prio  | Count |
//! +---+---+-------+-------+-------+             +---+---+-------+-------+-------+
//! |rsv|  Interval | Checksum      |             | Auth  | Intvl | Checksum      |
//! | 4 |  12, csec |               |             | type  | sec   |               |
//! +---+-----------+---------------+             +-------+-------+---------------+
//! | Count addresses, 4 or 16 each |             | Count addresses, 4 each       |
//! +-------------------------------+             +-------------------------------+
//!                                               | Authentication data, 8        |
//!                                               +-------------------------------+
//! ```

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU8,
};

use lb_common::checksum;
use thiserror::Error;

use crate::config::model::{AdvertInterval, Password, V3Checksum, VrrpVersion};

/// IP protocol number of VRRP (RFC 9568 section 5.1.1.4).
pub const PROTOCOL: u8 = 112;
/// Multicast group for IPv4 (RFC 9568 section 5.1.1.2).
pub const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
/// Multicast group for IPv6 (RFC 9568 section 5.1.2.2).
pub const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);
/// TTL or hop limit that adverts leave with, and must arrive with: nothing from behind a router has
/// it.
pub const TTL: u8 = 255;
/// Priority of the last advert of a router that stops (RFC 9568 section 5.2.4).
pub const PRIORITY_STOPPING: u8 = 0;
/// Priority of the router that owns the addresses (RFC 9568 section 5.2.4).
pub const PRIORITY_OWNER: u8 = 255;
/// Longest interval of version 3 in centiseconds: the field has 12 bits.
pub const MAX_INTERVAL_V3: u16 = 0x0fff;

const TYPE_ADVERT: u8 = 1;
const HEADER_LEN: usize = 8;
const CHECKSUM_OFFSET: usize = 6;
const AUTH_LEN: usize = 8;
const AUTH_NONE: u8 = 0;
const AUTH_PASSWORD: u8 = 1;
const CENTIS_PER_SECOND: u16 = 100;

/// An advertisement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advert {
    /// Protocol version.
    pub version: VrrpVersion,
    /// Virtual router id.
    pub vrid: NonZeroU8,
    /// Sender's priority; 0: it stops being Active.
    pub priority: u8,
    /// Sender's advertisement interval. Version 2 carries whole seconds only.
    pub interval: AdvertInterval,
    /// Virtual addresses, 1..=255, all of the family that carries the message.
    pub addresses: Vec<IpAddr>,
    /// Authentication; always [`Auth::None`] in version 3.
    pub auth: Auth,
}

/// Authentication of a version 2 advert. RFC 3768 knows none any more; the simple password is
/// that of RFC 2338 section 5.3.6, which other implementations still speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// Type 0.
    None,
    /// Type 1: a clear-text password against accidents, not against attackers.
    Password(Password),
}

/// What the IP header of a received advert says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxMeta {
    /// Source address.
    pub src: IpAddr,
    /// Destination address: the group or, with unicast peers, an own address.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
}

/// Why a message is no valid advert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AdvertError {
    /// RFC 9568 sections 5.1.1.3 and 5.1.2.3: it came over a router, or over more of them than
    /// unicast peers may.
    #[error("TTL or hop limit is {0} and shall be {wanted}", wanted = shown_ttl(*.1))]
    Ttl(u8, u8),
    /// Source and destination are of different families: the caller mixed up packets.
    #[error("source {src} and destination {dst} are of different families")]
    Family {
        /// Source address.
        src: IpAddr,
        /// Destination address.
        dst: IpAddr,
    },
    /// Shorter than the fixed header.
    #[error("{0} bytes are too short for a header")]
    Short(usize),
    /// A version that is not known.
    #[error("version {0} is not known")]
    Version(u8),
    /// Version 2 knows IPv4 only.
    #[error("version 2 over IPv6")]
    V2OverIpv6,
    /// RFC 9568 section 5.2.2: other types must be discarded.
    #[error("type {0} is no advertisement")]
    Type(u8),
    /// RFC 9568 section 5.2.5: at least one address.
    #[error("the advert carries no address")]
    NoAddress,
    /// The message's length does not fit its address count.
    #[error("{length} bytes instead of {expected} for {count} addresses")]
    Length {
        /// Address count field.
        count: u8,
        /// Length that the count asks for, in bytes.
        expected: usize,
        /// Length of the message, in bytes.
        length: usize,
    },
    /// The checksum is wrong in every form that is accepted.
    #[error("checksum {0:#06x} is wrong")]
    Checksum(u16),
    /// RFC 9568 section 5.2.3: ids are 1..=255.
    #[error("VRID is 0")]
    ZeroVrid,
    /// An interval of nothing: nobody could keep it.
    #[error("advertisement interval is 0")]
    ZeroInterval,
    /// An authentication type other than none and simple password.
    #[error("authentication type {0} is not supported")]
    AuthType(u8),
}

impl AdvertError {
    /// Every label, in the order of the variants.
    pub const LABELS: [&'static str; 12] = [
        "ttl",
        "family",
        "short",
        "version",
        "v2_over_ipv6",
        "type",
        "no_address",
        "length",
        "checksum",
        "zero_vrid",
        "zero_interval",
        "auth_type",
    ];

    /// Stable name for counters.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ttl(..) => "ttl",
            Self::Family { .. } => "family",
            Self::Short(_) => "short",
            Self::Version(_) => "version",
            Self::V2OverIpv6 => "v2_over_ipv6",
            Self::Type(_) => "type",
            Self::NoAddress => "no_address",
            Self::Length { .. } => "length",
            Self::Checksum(_) => "checksum",
            Self::ZeroVrid => "zero_vrid",
            Self::ZeroInterval => "zero_interval",
            Self::AuthType(_) => "auth_type",
        }
    }
}

fn shown_ttl(least: u8) -> String {
    match least {
        TTL => TTL.to_string(),
        less => format!("{less} or more"),
    }
}

/// Read the VRRP message of a received packet, with the checks of RFC 9568 section 7.1 (RFC
/// 3768 section 7.1) that need nothing but the packet. `min_ttl` is [`TTL`] but for unicast peers
/// that are not on the link, or do not care.
pub fn parse(message: &[u8], meta: &RxMeta, min_ttl: u8) -> Result<Advert, AdvertError> {
    if meta.ttl < min_ttl {
        return Err(AdvertError::Ttl(meta.ttl, min_ttl));
    }
    if meta.src.is_ipv4() != meta.dst.is_ipv4() {
        let (src, dst) = (meta.src, meta.dst);
        return Err(AdvertError::Family { src, dst });
    }
    let Some((&header, body)) = message.split_first_chunk::<HEADER_LEN>() else {
        return Err(AdvertError::Short(message.len()));
    };
    let [
        version_type,
        vrid,
        priority,
        count,
        field4,
        field5,
        sum0,
        sum1,
    ] = header;
    let version = version_of(version_type >> 4, meta.src)?;
    if version_type & 0x0f != TYPE_ADVERT {
        return Err(AdvertError::Type(version_type & 0x0f));
    }
    let (addresses, auth_data) = split_body(body, version, count, meta.src.is_ipv6())?;
    if !checksum_is_right(message, version, meta) {
        return Err(AdvertError::Checksum(u16::from_be_bytes([sum0, sum1])));
    }
    let vrid = NonZeroU8::new(vrid).ok_or(AdvertError::ZeroVrid)?;
    let (auth, centis) = match version {
        VrrpVersion::V2 => (
            auth_of(field4, auth_data)?,
            u16::from(field5) * CENTIS_PER_SECOND,
        ),
        // The reserved bits are ignored: RFC 9568 section 5.2.6.
        VrrpVersion::V3 => (
            Auth::None,
            u16::from_be_bytes([field4, field5]) & MAX_INTERVAL_V3,
        ),
    };
    Ok(Advert {
        version,
        vrid,
        priority,
        interval: AdvertInterval::from_centis(centis).ok_or(AdvertError::ZeroInterval)?,
        addresses,
        auth,
    })
}

/// The VRRP message of `advert` as it leaves `src` for `dst`, whose family is that of the
/// advert's addresses (others are left out). An interval that the version cannot express is
/// cut to its longest one.
///
/// `v3_checksum` counts for version 3 over IPv4 only: RFC 9568 section 5.2.8 leaves the
/// pseudo-header out there, but keepalived refuses that form.
pub fn emit(advert: &Advert, src: IpAddr, dst: IpAddr, v3_checksum: V3Checksum) -> Vec<u8> {
    let addresses: Vec<IpAddr> = advert
        .addresses
        .iter()
        .copied()
        .filter(|address| address.is_ipv4() == src.is_ipv4())
        .take(usize::from(u8::MAX))
        .collect();
    let count = u8::try_from(addresses.len()).unwrap_or(u8::MAX);
    let [field4, field5] = fields_4_5(advert);
    let mut message = vec![
        version_number(advert.version) << 4 | TYPE_ADVERT,
        advert.vrid.get(),
        advert.priority,
        count,
        field4,
        field5,
        0,
        0,
    ];
    for address in addresses {
        push_address(&mut message, address);
    }
    if advert.version == VrrpVersion::V2 {
        let data = match advert.auth {
            Auth::None => [0; AUTH_LEN],
            Auth::Password(password) => password.0,
        };
        message.extend_from_slice(&data);
    }
    let sum = match (advert.version, v3_checksum) {
        (VrrpVersion::V3, V3Checksum::Rfc9568) if src.is_ipv4() => checksum::checksum(&message),
        (VrrpVersion::V3, _) => with_pseudo_header(&message, src, dst),
        // Over everything from the version on, the authentication data included.
        (VrrpVersion::V2, _) => checksum::checksum(&message),
    };
    if let Some(field) = message.get_mut(CHECKSUM_OFFSET..HEADER_LEN) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    message
}

/// Authentication type and interval of version 2, or the interval of version 3.
fn fields_4_5(advert: &Advert) -> [u8; 2] {
    let centis = advert.interval.centis();
    match advert.version {
        VrrpVersion::V2 => {
            let auth_type = match advert.auth {
                Auth::None => AUTH_NONE,
                Auth::Password(_) => AUTH_PASSWORD,
            };
            let seconds = u8::try_from(centis / CENTIS_PER_SECOND).unwrap_or(u8::MAX);
            [auth_type, seconds]
        }
        VrrpVersion::V3 => centis.min(MAX_INTERVAL_V3).to_be_bytes(),
    }
}

const fn version_number(version: VrrpVersion) -> u8 {
    match version {
        VrrpVersion::V2 => 2,
        VrrpVersion::V3 => 3,
    }
}

fn version_of(number: u8, src: IpAddr) -> Result<VrrpVersion, AdvertError> {
    match (number, src) {
        (2, IpAddr::V4(_)) => Ok(VrrpVersion::V2),
        (2, IpAddr::V6(_)) => Err(AdvertError::V2OverIpv6),
        (3, _) => Ok(VrrpVersion::V3),
        (other, _) => Err(AdvertError::Version(other)),
    }
}

/// The addresses and the authentication data (empty in version 3) behind the fixed header. The
/// length must be exact: the IP header has told where the message ends, so anything over is
/// not padding.
fn split_body(
    body: &[u8],
    version: VrrpVersion,
    count: u8,
    ipv6: bool,
) -> Result<(Vec<IpAddr>, &[u8]), AdvertError> {
    let address_len = if ipv6 { 16 } else { 4 };
    let addresses_len = usize::from(count) * address_len;
    let auth_len = match version {
        VrrpVersion::V2 => AUTH_LEN,
        VrrpVersion::V3 => 0,
    };
    if count == 0 {
        return Err(AdvertError::NoAddress);
    }
    match body.split_at_checked(addresses_len) {
        Some((addresses, auth_data)) if auth_data.len() == auth_len => {
            let addresses = addresses
                .chunks_exact(address_len)
                .filter_map(address_from)
                .collect();
            Ok((addresses, auth_data))
        }
        _ => Err(AdvertError::Length {
            count,
            expected: HEADER_LEN + addresses_len + auth_len,
            length: HEADER_LEN + body.len(),
        }),
    }
}

fn auth_of(auth_type: u8, data: &[u8]) -> Result<Auth, AdvertError> {
    match (auth_type, <[u8; AUTH_LEN]>::try_from(data)) {
        // RFC 3768 section 5.3.10: the data is ignored.
        (AUTH_NONE, _) => Ok(Auth::None),
        (AUTH_PASSWORD, Ok(secret)) => Ok(Auth::Password(Password(secret))),
        (other, _) => Err(AdvertError::AuthType(other)),
    }
}

fn checksum_is_right(message: &[u8], version: VrrpVersion, meta: &RxMeta) -> bool {
    let plain = || checksum::checksum(message) == 0;
    let with_pseudo_header = || with_pseudo_header(message, meta.src, meta.dst) == 0;
    match (version, meta.src) {
        (VrrpVersion::V2, _) => plain(),
        // RFC 9568 section 5.2.8 says plain, RFC 5798 was read either way, keepalived sends
        // the pseudo-header form.
        (VrrpVersion::V3, IpAddr::V4(_)) => with_pseudo_header() || plain(),
        (VrrpVersion::V3, IpAddr::V6(_)) => with_pseudo_header(),
    }
}

/// Checksum under the pseudo-header; between ends of different families (which no caller has)
/// that of IPv6 with the IPv4 end in its mapped form.
fn with_pseudo_header(message: &[u8], src: IpAddr, dst: IpAddr) -> u16 {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            checksum::transport(&src.octets(), &dst.octets(), PROTOCOL, message)
        }
        (src, dst) => {
            let (src, dst) = (as_v6(src).octets(), as_v6(dst).octets());
            checksum::transport(&src, &dst, PROTOCOL, message)
        }
    }
}

fn as_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn address_from(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(bytes));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

fn push_address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => out.extend_from_slice(&v4.octets()),
        IpAddr::V6(v6) => out.extend_from_slice(&v6.octets()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SRC4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 10));
    const DST4: IpAddr = IpAddr::V4(GROUP_V4);
    const SRC6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 10));
    const DST6: IpAddr = IpAddr::V6(GROUP_V6);
    const META4: RxMeta = RxMeta {
        src: SRC4,
        dst: DST4,
        ttl: 255,
    };
    const META6: RxMeta = RxMeta {
        src: SRC6,
        dst: DST6,
        ttl: 255,
    };

    fn advert(version: VrrpVersion, addresses: &[&str]) -> Advert {
        Advert {
            version,
            vrid: NonZeroU8::new(51).unwrap(),
            priority: 200,
            interval: AdvertInterval::from_centis(100).unwrap(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            auth: Auth::None,
        }
    }

    fn v2_bytes() -> Vec<u8> {
        emit(
            &advert(VrrpVersion::V2, &["10.0.2.100"]),
            SRC4,
            DST4,
            V3Checksum::PseudoHeader,
        )
    }

    fn v3_bytes() -> Vec<u8> {
        emit(
            &advert(VrrpVersion::V3, &["10.0.2.100"]),
            SRC4,
            DST4,
            V3Checksum::PseudoHeader,
        )
    }

    fn v6_bytes() -> Vec<u8> {
        emit(
            &advert(VrrpVersion::V3, &["fe80::100"]),
            SRC6,
            DST6,
            V3Checksum::PseudoHeader,
        )
    }

    /// `bytes` changed by `change`, with a checksum that is right again (the plain form, which
    /// IPv4 accepts in both versions).
    fn resummed(mut bytes: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        change(&mut bytes);
        bytes[6..8].fill(0);
        let sum = checksum::checksum(&bytes);
        bytes[6..8].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// The bytes of both versions are those of the RFCs' pictures, written out by hand.
    #[test]
    fn emits_the_layout_of_the_rfcs() {
        let v3 = v3_bytes();
        assert_eq!(v3[..6], [0x31, 51, 200, 1, 0, 100]);
        assert_eq!(v3[8..], [10, 0, 2, 100]);
        let mut with_password = advert(VrrpVersion::V2, &["10.0.2.100"]);
        with_password.auth = Auth::Password(Password(*b"pass1122"));
        let v2 = emit(&with_password, SRC4, DST4, V3Checksum::PseudoHeader);
        assert_eq!(v2[..6], [0x21, 51, 200, 1, 1, 1]);
        assert_eq!(v2[8..12], [10, 0, 2, 100]);
        assert_eq!(&v2[12..], b"pass1122");
        assert_eq!(checksum::checksum(&v2), 0);
    }

    /// Version 3 over IPv4 is accepted with and without the pseudo-header, and sent with it.
    #[test]
    fn v3_over_ipv4_has_two_checksums() {
        let sent = v3_bytes();
        let plain = resummed(sent.clone(), |_| ());
        let advert = advert(VrrpVersion::V3, &["10.0.2.100"]);
        assert_eq!(emit(&advert, SRC4, DST4, V3Checksum::Rfc9568), plain);
        assert_ne!(sent, plain);
        assert_eq!(parse(&sent, &META4, TTL), parse(&plain, &META4, TTL));
        assert!(parse(&sent, &META4, TTL).is_ok());
        let ends = (&[10, 0, 2, 10][..], &[224, 0, 0, 18][..]);
        assert_eq!(checksum::transport(ends.0, ends.1, 112, &sent), 0);
    }

    /// Over IPv6 and in version 2 there is but one checksum.
    #[test]
    fn the_choice_of_checksum_is_for_v3_over_ipv4_only() {
        let v2 = advert(VrrpVersion::V2, &["10.0.2.100"]);
        assert_eq!(emit(&v2, SRC4, DST4, V3Checksum::Rfc9568), v2_bytes());
        let v6 = advert(VrrpVersion::V3, &["fe80::100"]);
        assert_eq!(emit(&v6, SRC6, DST6, V3Checksum::Rfc9568), v6_bytes());
    }

    /// Unicast peers behind routers arrive with less than 255, and no less than is allowed.
    #[test]
    fn a_lower_ttl_can_be_allowed() {
        let routed = RxMeta { ttl: 64, ..META4 };
        assert!(parse(&v3_bytes(), &routed, 64).is_ok());
        let error = parse(&v3_bytes(), &routed, 65).unwrap_err();
        assert_eq!(error, AdvertError::Ttl(64, 65));
        assert_eq!(
            error.to_string(),
            "TTL or hop limit is 64 and shall be 65 or more"
        );
    }

    /// The pseudo-header's addresses count: the same bytes from another source are refused.
    #[test]
    fn v3_checksum_binds_the_source() {
        let other = RxMeta {
            src: "fe80::11".parse().unwrap(),
            ..META6
        };
        assert!(parse(&v6_bytes(), &META6, TTL).is_ok());
        assert!(matches!(
            parse(&v6_bytes(), &other, TTL),
            Err(AdvertError::Checksum(_))
        ));
    }

    /// Reserved bits of version 3 and the data of authentication type 0 are ignored.
    #[test]
    fn ignores_what_the_rfcs_say_to_ignore() {
        let reserved = resummed(v3_bytes(), |b| b[4] |= 0xf0);
        assert_eq!(
            parse(&reserved, &META4, TTL).unwrap().interval.centis(),
            100
        );
        let data = resummed(v2_bytes(), |b| b[12..20].copy_from_slice(b"whatever"));
        assert_eq!(parse(&data, &META4, TTL).unwrap().auth, Auth::None);
    }

    /// Name, message, IP header, and the error that it must give.
    type Case = (&'static str, Vec<u8>, RxMeta, AdvertError);

    fn length(count: u8, expected: usize, length: usize) -> AdvertError {
        AdvertError::Length {
            count,
            expected,
            length,
        }
    }

    fn malformed_headers() -> Vec<Case> {
        let ttl = RxMeta { ttl: 254, ..META4 };
        let family = RxMeta { dst: DST6, ..META4 };
        let family_error = AdvertError::Family {
            src: SRC4,
            dst: DST6,
        };
        let first_byte = |bytes, value| resummed(bytes, |b| b[0] = value);
        vec![
            ("ttl", v3_bytes(), ttl, AdvertError::Ttl(254, 255)),
            ("families", v3_bytes(), family, family_error),
            ("empty", vec![], META4, AdvertError::Short(0)),
            (
                "cut header",
                v3_bytes()[..7].to_vec(),
                META4,
                AdvertError::Short(7),
            ),
            (
                "version 1",
                first_byte(v3_bytes(), 0x11),
                META4,
                AdvertError::Version(1),
            ),
            (
                "version 4",
                first_byte(v3_bytes(), 0x41),
                META4,
                AdvertError::Version(4),
            ),
            (
                "version 2 over IPv6",
                first_byte(v6_bytes(), 0x21),
                META6,
                AdvertError::V2OverIpv6,
            ),
            (
                "type 0",
                first_byte(v3_bytes(), 0x30),
                META4,
                AdvertError::Type(0),
            ),
            (
                "type 2",
                first_byte(v2_bytes(), 0x22),
                META4,
                AdvertError::Type(2),
            ),
        ]
    }

    fn malformed_lengths() -> Vec<Case> {
        let none_v3 = resummed(v3_bytes()[..8].to_vec(), |b| b[3] = 0);
        let none_v2 = resummed(v2_bytes(), |b| {
            b[3] = 0;
            b.drain(8..12);
        });
        let fewer = resummed(v3_bytes(), |b| b[3] = 2);
        let more = resummed(v3_bytes(), |b| b.extend([10, 0, 2, 101]));
        let odd = resummed(v3_bytes(), |b| b.push(0));
        let no_auth_data = resummed(v2_bytes(), |b| b.truncate(12));
        let v4_in_v6 = v6_bytes()[..12].to_vec();
        vec![
            ("no address, v3", none_v3, META4, AdvertError::NoAddress),
            ("no address, v2", none_v2, META4, AdvertError::NoAddress),
            ("fewer than counted", fewer, META4, length(2, 16, 12)),
            ("more than counted", more, META4, length(1, 12, 16)),
            ("odd byte", odd, META4, length(1, 12, 13)),
            ("v2, no auth data", no_auth_data, META4, length(1, 20, 12)),
            ("IPv4 address over IPv6", v4_in_v6, META6, length(1, 24, 12)),
        ]
    }

    fn malformed_checksums() -> Vec<Case> {
        let damaged = |mut bytes: Vec<u8>| {
            bytes[6] ^= 0x40;
            bytes
        };
        let case = |name, bytes: Vec<u8>, meta| {
            let sum = u16::from_be_bytes([bytes[6], bytes[7]]);
            (name, bytes, meta, AdvertError::Checksum(sum))
        };
        vec![
            case("v2", damaged(v2_bytes()), META4),
            case("v3", damaged(v3_bytes()), META4),
            case("IPv6", damaged(v6_bytes()), META6),
            case("plain form over IPv6", resummed(v6_bytes(), |_| ()), META6),
        ]
    }

    fn malformed_values() -> Vec<Case> {
        let vrid = resummed(v3_bytes(), |b| b[1] = 0);
        let v2_interval = resummed(v2_bytes(), |b| b[5] = 0);
        let v3_interval = resummed(v3_bytes(), |b| b[5] = 0);
        let reserved = resummed(v3_bytes(), |b| b[4..6].copy_from_slice(&[0x10, 0]));
        let auth = resummed(v2_bytes(), |b| b[4] = 2);
        vec![
            ("VRID", vrid, META4, AdvertError::ZeroVrid),
            ("v2 interval", v2_interval, META4, AdvertError::ZeroInterval),
            ("v3 interval", v3_interval, META4, AdvertError::ZeroInterval),
            ("reserved bits", reserved, META4, AdvertError::ZeroInterval),
            ("auth type", auth, META4, AdvertError::AuthType(2)),
        ]
    }

    /// Every class of malformed advert has its error, which carries the offending value.
    #[test]
    fn refuses_every_malformed_class() {
        let cases = [
            malformed_headers(),
            malformed_lengths(),
            malformed_checksums(),
            malformed_values(),
        ]
        .concat();
        for (name, bytes, meta, expected) in &cases {
            assert_eq!(parse(bytes, meta, TTL), Err(*expected), "{name}");
        }
        for label in AdvertError::LABELS {
            let has_case = cases.iter().any(|case| case.3.label() == label);
            assert!(has_case, "no case for {label}");
        }
    }

    /// A password does not show in the debug form of an advert.
    #[test]
    fn debug_hides_the_password() {
        let mut with_password = advert(VrrpVersion::V2, &["10.0.2.100"]);
        with_password.auth = Auth::Password(Password(*b"pass1122"));
        assert!(!format!("{with_password:?}").contains("112, 97"));
    }

    fn any_auth() -> impl Strategy<Value = Auth> {
        prop_oneof![
            Just(Auth::None),
            any::<[u8; 8]>().prop_map(|secret| Auth::Password(Password(secret)))
        ]
    }

    prop_compose! {
        fn any_v2()(
            vrid in 1u8.., priority: u8, seconds in 1u16..=255, auth in any_auth(),
            addresses in proptest::collection::vec(any::<[u8; 4]>().prop_map(IpAddr::from), 1..=255),
        ) -> Advert {
            Advert {
                version: VrrpVersion::V2,
                vrid: NonZeroU8::new(vrid).unwrap(),
                priority,
                interval: AdvertInterval::from_centis(seconds * 100).unwrap(),
                addresses,
                auth,
            }
        }
    }

    prop_compose! {
        fn any_v3(ipv6: bool)(
            vrid in 1u8.., priority: u8, centis in 1u16..=0x0fff,
            bytes in proptest::collection::vec(any::<[u8; 16]>(), 1..=255),
        ) -> Advert {
            let to_address = |b: [u8; 16]| {
                if ipv6 { IpAddr::from(b) } else { IpAddr::from([b[0], b[1], b[2], b[3]]) }
            };
            Advert {
                version: VrrpVersion::V3,
                vrid: NonZeroU8::new(vrid).unwrap(),
                priority,
                interval: AdvertInterval::from_centis(centis).unwrap(),
                addresses: bytes.into_iter().map(to_address).collect(),
                auth: Auth::None,
            }
        }
    }

    proptest! {
        /// What is emitted reads back as what was meant, in every version and family.
        #[test]
        fn round_trips(v2 in any_v2(), v3 in any_v3(false), v6 in any_v3(true)) {
            prop_assert_eq!(parse(&emit(&v2, SRC4, DST4, V3Checksum::PseudoHeader), &META4, TTL), Ok(v2));
            prop_assert_eq!(parse(&emit(&v3, SRC4, DST4, V3Checksum::PseudoHeader), &META4, TTL), Ok(v3));
            prop_assert_eq!(parse(&emit(&v6, SRC6, DST6, V3Checksum::PseudoHeader), &META6, TTL), Ok(v6));
        }

        /// No bytes make the parser panic.
        #[test]
        fn survives_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&bytes, &META4, TTL);
            let _ = parse(&bytes, &META6, TTL);
        }

        /// The same behind a believable start, so that the later checks are reached too.
        #[test]
        fn survives_damaged_adverts(at in 0usize..20, value: u8, cut in 0usize..=20) {
            for mut bytes in [v2_bytes(), v3_bytes()] {
                if let Some(byte) = bytes.get_mut(at) { *byte = value; }
                bytes.truncate(cut);
                let _ = parse(&bytes, &META4, TTL);
                if bytes.len() >= 8 {
                    let _ = parse(&resummed(bytes, |_| ()), &META4, TTL);
                }
            }
        }
    }
}

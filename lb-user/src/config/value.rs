//! Single values: durations, names, addresses, paths. Each parser says what is wrong with a
//! value and what to write instead.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;

use super::model::{AdvertInterval, Endpoint, StatusRange};

/// What is wrong with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// What is wrong.
    pub(super) problem: String,
    /// What to write instead.
    pub(super) hint: String,
}

impl Fault {
    /// `problem`, to be mended by `hint`.
    pub(super) fn new(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            problem: problem.into(),
            hint: hint.into(),
        }
    }
}

const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MILLISECOND;
const MINUTE: u64 = 60 * SECOND;

/// Bounds of a duration, and how they are written.
pub(super) struct Bounds {
    min: Duration,
    max: Duration,
    shown: &'static str,
}

/// Intervals and timeouts of checks.
pub(super) const CHECK_TIME: Bounds = Bounds {
    min: Duration::from_millis(10),
    max: Duration::from_mins(10),
    shown: "10ms..10m",
};

/// Delay before a takeover; the upper bound is the one of keepalived, 1000 s.
pub(super) const PREEMPT_DELAY: Bounds = Bounds {
    min: Duration::ZERO,
    max: Duration::from_secs(1000),
    shown: "0s..1000s",
};

/// Growth of a backend's weight after it was DOWN.
pub(super) const SLOW_START: Bounds = Bounds {
    min: Duration::ZERO,
    max: Duration::from_hours(1),
    shown: "0s..60m",
};

/// Between lookups of a host name.
pub(super) const RESOLVE_TIME: Bounds = Bounds {
    min: Duration::from_secs(1),
    max: Duration::from_hours(1),
    shown: "1s..60m",
};

/// Between announcements of addresses.
pub(super) const GARP_TIME: Bounds = Bounds {
    min: Duration::ZERO,
    max: Duration::from_hours(1),
    shown: "0s..60m",
};

/// Silence that ends a UDP flow; the data plane's field holds 18 h.
pub(super) const IDLE_TIMEOUT: Bounds = Bounds {
    min: Duration::from_secs(1),
    max: Duration::from_hours(18),
    shown: "1s..1080m in whole seconds",
};

/// Adverts of VRRP v3. The field holds 40.95 s; round numbers are easier to remember.
const V3_INTERVAL: Bounds = Bounds {
    min: Duration::from_millis(10),
    max: Duration::from_secs(40),
    shown: "10ms..40s in steps of 10ms",
};

/// Adverts of VRRP v2.
const V2_INTERVAL: Bounds = Bounds {
    min: Duration::from_secs(1),
    max: Duration::from_secs(255),
    shown: "1s..255s in whole seconds",
};

/// A duration within `bounds`.
pub(super) fn duration(text: &str, bounds: &Bounds) -> Result<Duration, Fault> {
    let Some(duration) = any_duration(text) else {
        return Err(Fault::new(
            format!("{text:?} is not a duration"),
            "write a number and ms, s or m, such as \"500ms\" or \"1.5s\"",
        ));
    };
    if (bounds.min..=bounds.max).contains(&duration) {
        Ok(duration)
    } else {
        Err(out_of_range(text, bounds))
    }
}

/// `<digits>[.<digits>](ms|s|m)`, exact in nanoseconds.
fn any_duration(text: &str) -> Option<Duration> {
    let unit_start = text.find(|c: char| c != '.' && !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit_start);
    let unit = match unit {
        "ms" => MILLISECOND,
        "s" => SECOND,
        "m" => MINUTE,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let scale = 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let scaled = u128::from(fraction.parse::<u64>().ok()?) * u128::from(unit);
    if scaled % u128::from(scale) != 0 {
        return None;
    }
    let nanos = whole
        .parse::<u64>()
        .ok()?
        .checked_mul(unit)?
        .checked_add(u64::try_from(scaled / u128::from(scale)).ok()?)?;
    Some(Duration::from_nanos(nanos))
}

fn out_of_range(text: &str, bounds: &Bounds) -> Fault {
    Fault::new(
        format!("{text:?} is out of range"),
        format!("write {}", bounds.shown),
    )
}

/// [`IDLE_TIMEOUT`] in seconds.
pub(super) fn idle_timeout(text: &str) -> Result<NonZeroU16, Fault> {
    let idle = duration(text, &IDLE_TIMEOUT)?;
    u16::try_from(idle.as_secs())
        .ok()
        .filter(|_| idle.subsec_nanos() == 0)
        .and_then(NonZeroU16::new)
        .ok_or_else(|| out_of_range(text, &IDLE_TIMEOUT))
}

/// Advertisement interval of VRRP v3 (RFC 9568 section 5.2.7: centiseconds).
pub(super) fn v3_interval(text: &str) -> Result<AdvertInterval, Fault> {
    advert_interval(text, &V3_INTERVAL, 10)
}

/// Advertisement interval of VRRP v2 (RFC 3768 section 5.3.7: seconds).
pub(super) fn v2_interval(text: &str) -> Result<AdvertInterval, Fault> {
    advert_interval(text, &V2_INTERVAL, 1000)
}

fn advert_interval(text: &str, bounds: &Bounds, step_millis: u64) -> Result<AdvertInterval, Fault> {
    let interval = duration(text, bounds)?;
    let nanos = interval.as_nanos();
    u16::try_from(interval.as_millis() / 10)
        .ok()
        .filter(|_| nanos.is_multiple_of(u128::from(step_millis * MILLISECOND)))
        .and_then(AdvertInterval::from_centis)
        .ok_or_else(|| out_of_range(text, bounds))
}

/// A name: it is shown in logs and metrics and typed in commands.
pub(super) fn name(text: &str) -> Result<String, Fault> {
    let is_plain = |c: char| !c.is_whitespace() && !c.is_control();
    if (1..=64).contains(&text.chars().count()) && text.chars().all(is_plain) {
        Ok(text.to_owned())
    } else {
        Err(Fault::new(
            format!("{text:?} is not a name"),
            "write 1 to 64 characters without spaces",
        ))
    }
}

/// An instance name: it becomes a directory below the BPF file system.
pub(super) fn instance(text: &str) -> Result<String, Fault> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if (1..=32).contains(&text.len()) && text.chars().all(is_plain) {
        Ok(text.to_owned())
    } else {
        Err(Fault::new(
            format!("{text:?} is not an instance name"),
            "write 1 to 32 letters, digits, '-' and '_'",
        ))
    }
}

/// A name that the kernel takes for an interface (`dev_valid_name`).
pub(super) fn interface(text: &str) -> Result<String, Fault> {
    let is_plain = |c: char| !c.is_whitespace() && !c.is_control() && c != '/' && c != ':';
    let is_valid = (1..=15).contains(&text.len()) && text.chars().all(is_plain);
    if is_valid && text != "." && text != ".." {
        Ok(text.to_owned())
    } else {
        Err(Fault::new(
            format!("{text:?} is not an interface name"),
            "write 1 to 15 characters without '/', ':' and spaces, such as \"eth0\"",
        ))
    }
}

/// An absolute path.
pub(super) fn absolute_path(text: &str) -> Result<PathBuf, Fault> {
    if text.starts_with('/') && !text.contains('\0') {
        Ok(PathBuf::from(text))
    } else {
        Err(Fault::new(
            format!("{text:?} is not an absolute path"),
            "write a path that starts with '/'",
        ))
    }
}

/// The address of one host: a peer, or a source of adverts.
pub(super) fn host_address(text: &str) -> Result<IpAddr, Fault> {
    if let Ok(address) = text.parse() {
        unicast(address, &address.to_string(), &|plain| plain.to_string())?;
        return Ok(address);
    }
    let bare = text
        .parse::<SocketAddr>()
        .map(|with_port| with_port.ip())
        .ok()
        .or_else(|| network(text).map(|net| net.addr()));
    Err(match bare {
        Some(address) => Fault::new(
            format!("{text:?} is more than an address"),
            format!("write \"{address}\""),
        ),
        None => Fault::new(
            format!("{text:?} is not an IP address"),
            "write one such as \"10.0.2.11\"; names are not looked up",
        ),
    })
}

/// The VIP of a service.
pub(super) fn vip(text: &str) -> Result<IpAddr, Fault> {
    let address = host_address(text)?;
    not_loopback(address, text)?;
    Ok(address)
}

/// A virtual address with its prefix length.
pub(super) fn virtual_address(text: &str) -> Result<IpNet, Fault> {
    if let Ok(address) = text.parse::<IpAddr>() {
        let length = if address.is_ipv4() { 24 } else { 64 };
        return Err(Fault::new(
            format!("{text:?} has no prefix length"),
            format!("write the one of the network, such as \"{address}/{length}\""),
        ));
    }
    let Some(net) = network(text) else {
        return Err(Fault::new(
            format!("{text:?} is not an address with prefix length"),
            "write one such as \"10.0.2.100/24\"",
        ));
    };
    let address = net.addr();
    unicast(address, text, &|plain| {
        format!("{plain}/{}", net.prefix_len().saturating_sub(96))
    })?;
    not_loopback(address, text)?;
    // Networks of 2 and 1 addresses (RFC 3021, and a host route) have no such addresses.
    if let IpNet::V4(v4) = net
        && v4.prefix_len() < 31
        && (v4.addr() == v4.network() || v4.addr() == v4.broadcast())
    {
        let kind = if v4.addr() == v4.network() {
            "first address of its network and names it"
        } else {
            "broadcast address of its network"
        };
        return Err(Fault::new(
            format!("{text:?} is the {kind}"),
            "write the address of a host",
        ));
    }
    Ok(net)
}

/// `<address>/<prefix length>`, the length at least 1.
fn network(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let is_number = !length.starts_with(['0', '+']);
    let length = length.parse().ok().filter(|_| is_number)?;
    IpNet::new(address.parse().ok()?, length).ok()
}

/// A prefix of sources: no bits of the address beyond its length.
pub(super) fn prefix(text: &str) -> Result<IpNet, Fault> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Err(Fault::new(
            format!("{text:?} has no prefix length"),
            format!("write \"{}\" for this one address", IpNet::from(address)),
        ));
    }
    // A length with a sign or leading zeros is no number here.
    let is_plain = |length: &str| length == "0" || !length.starts_with(['0', '+']);
    let net = text
        .split_once('/')
        .filter(|(_, length)| is_plain(length))
        .and_then(|_| text.parse::<IpNet>().ok());
    let Some(net) = net else {
        return Err(Fault::new(
            format!("{text:?} is not a prefix"),
            "write one such as \"10.0.0.0/8\" or \"fd00::/8\"",
        ));
    };
    if let IpNet::V6(v6) = net
        && let Some(v4) = v6.addr().to_ipv4_mapped()
    {
        let length = v6.prefix_len().saturating_sub(96);
        return Err(Fault::new(
            format!("{text:?} is an IPv4-mapped prefix"),
            format!("write \"{v4}/{length}\""),
        ));
    }
    if net.addr() != net.network() {
        return Err(Fault::new(
            format!("{text:?} has bits beyond its length"),
            format!("write \"{}\"", net.trunc()),
        ));
    }
    Ok(net)
}

/// Address or host name, and port, of a backend.
pub(super) fn backend(text: &str) -> Result<Endpoint, Fault> {
    let Ok(backend) = text.parse::<SocketAddr>() else {
        return named_backend(text);
    };
    unicast(backend.ip(), text, &|plain| {
        SocketAddr::new(plain, backend.port()).to_string()
    })?;
    if let IpAddr::V6(address) = backend.ip()
        && address.is_unicast_link_local()
    {
        return Err(Fault::new(
            format!("{text:?} is a link-local address"),
            "write an address that is valid on every interface",
        ));
    }
    if backend.port() == 0 {
        return Err(no_port(text));
    }
    Ok(Endpoint::Address(backend))
}

/// `HOST:PORT` where `HOST` is no address.
fn named_backend(text: &str) -> Result<Endpoint, Fault> {
    let Some((host, port)) = text.rsplit_once(':').filter(|(host, _)| is_host(host)) else {
        let hint = match text.parse() {
            Ok(IpAddr::V4(address)) => format!("add the port, such as \"{address}:6443\""),
            Ok(IpAddr::V6(address)) => format!("add the port, such as \"[{address}]:6443\""),
            Err(_) if is_host(text) => format!("add the port, such as \"{text}:6443\""),
            Err(_) => "write one such as \"10.0.2.10:6443\", \"[fd00::10]:6443\" or \
                \"master01.example:6443\""
                .to_owned(),
        };
        let problem = format!("{text:?} is no address or host name with a port");
        return Err(Fault::new(problem, hint));
    };
    let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
    let port = port.parse::<u16>().ok().filter(|_| is_number);
    let Some(port) = port else {
        let problem = format!("{text:?} does not end with a port");
        return Err(Fault::new(problem, "write a port in 1..65535"));
    };
    if port == 0 {
        return Err(no_port(text));
    }
    let host = host.to_ascii_lowercase();
    if host.trim_end_matches('.') == "localhost" {
        return Err(Fault::new(
            format!("{text:?} is a node itself, another one on every node"),
            "write the node's own address, or a name that stands for that everywhere",
        ));
    }
    Ok(Endpoint::Name { host, port })
}

fn no_port(text: &str) -> Fault {
    Fault::new(format!("{text:?} has port 0"), "write a port in 1..65535")
}

/// Whether this is a host name (RFC 1123 section 2.1), perhaps with a dot at its end. Underscores are
/// common in private zones. What ends with a number is an address, or meant to be one.
fn is_host(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(is_plain)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    let last = name.rsplit('.').next().unwrap_or_default();
    let ends_with_number = last.bytes().all(|byte| byte.is_ascii_digit());
    name.len() <= 253 && name.split('.').all(is_label) && !ends_with_number
}

/// Refuse what no single host can have. `shown` is the value as written, `mapped` writes it with
/// another address in place of an IPv4-mapped one.
fn unicast(address: IpAddr, shown: &str, mapped: &dyn Fn(IpAddr) -> String) -> Result<(), Fault> {
    if let IpAddr::V6(v6) = address
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        return Err(Fault::new(
            format!("{shown:?} is an IPv4-mapped address"),
            format!("write \"{}\"", mapped(IpAddr::V4(v4))),
        ));
    }
    let kind = match address {
        _ if address.is_unspecified() => "the unspecified address",
        _ if address.is_multicast() => "a multicast address",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        _ => return Ok(()),
    };
    Err(Fault::new(
        format!("{shown:?} is {kind}"),
        "write the address of a host",
    ))
}

fn not_loopback(address: IpAddr, shown: &str) -> Result<(), Fault> {
    if address.is_loopback() {
        return Err(Fault::new(
            format!("{shown:?} is a loopback address"),
            "write an address that clients can reach",
        ));
    }
    Ok(())
}

/// Path and query of a request (RFC 3986 sections 3.3 and 3.4).
pub(super) fn http_path(text: &str) -> Result<String, Fault> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/?%".contains(c);
    if text.starts_with('/') && text.chars().all(is_allowed) {
        Ok(text.to_owned())
    } else {
        Err(Fault::new(
            format!("{text:?} is not a path"),
            "write one that starts with '/', other characters percent-encoded",
        ))
    }
}

/// Value of a `Host` header: name or address, and perhaps a port (RFC 9110 section 7.2).
pub(super) fn http_host(text: &str) -> Result<String, Fault> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    if (1..=255).contains(&text.len()) && text.chars().all(is_allowed) {
        Ok(text.to_owned())
    } else {
        Err(Fault::new(
            format!("{text:?} is not a host"),
            "write a name or an address, such as \"kubernetes.default\"",
        ))
    }
}

/// Statuses as `200-399`.
pub(super) fn status_range(text: &str) -> Result<StatusRange, Fault> {
    let bound = |text: &str| {
        let is_number = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| is_number)?;
        (200..=599).contains(&number).then_some(number)
    };
    let bounds = text.split_once('-');
    let bounds = bounds.and_then(|(first, last)| Some((bound(first)?, bound(last)?)));
    match bounds {
        Some((first, last)) if first <= last => Ok(StatusRange { first, last }),
        _ => Err(Fault::new(
            format!("{text:?} is not a range of statuses"),
            "write one within 200..599, such as \"200-399\"",
        )),
    }
}

/// Value of a header: visible ASCII and spaces (RFC 9110 section 5.5).
pub(super) fn header_value(text: &str) -> Result<String, Fault> {
    let is_allowed = |c: char| c.is_ascii_graphic() || c == ' ';
    if !text.is_empty() && text.trim() == text && text.chars().all(is_allowed) {
        Ok(text.to_owned())
    } else {
        Err(Fault::new(
            format!("{text:?} is no value of a header"),
            "write visible ASCII characters, with spaces only between them",
        ))
    }
}

/// Any text but the empty one.
pub(super) fn not_empty(text: &str) -> Result<String, Fault> {
    if text.is_empty() {
        Err(Fault::new("is empty", "write what is to be found"))
    } else {
        Ok(text.to_owned())
    }
}

/// Bytes as pairs of hexadecimal digits, with or without spaces between the pairs.
pub(super) fn hex(text: &str) -> Result<Vec<u8>, Fault> {
    let fault = || {
        Fault::new(
            format!("{text:?} is no list of bytes"),
            "write pairs of hexadecimal digits, such as \"0d 0a\"",
        )
    };
    let mut bytes = Vec::new();
    for group in text.split_ascii_whitespace() {
        for pair in group.as_bytes().chunks(2) {
            let digits = pair.len() == 2 && pair.iter().all(u8::is_ascii_hexdigit);
            let pair = std::str::from_utf8(pair).ok().filter(|_| digits);
            let byte = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok());
            bytes.push(byte.ok_or_else(fault)?);
        }
    }
    if bytes.is_empty() {
        return Err(fault());
    }
    Ok(bytes)
}

/// A regular expression that the `regex` crate takes.
pub(super) fn regex(text: &str) -> Result<String, Fault> {
    match text.parse::<regex::bytes::Regex>() {
        Ok(_) if !text.is_empty() => Ok(text.to_owned()),
        Ok(_) => Err(Fault::new("is empty", "write what is to be found")),
        Err(error) => {
            // Its text shows the expression over several lines; the last one says what is wrong.
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default();
            let problem = last.trim_start_matches("error: ");
            Err(Fault::new(
                format!("is no regular expression: {problem}"),
                "write one without look-around and back references, such as \"^ok\"",
            ))
        }
    }
}

/// A name that a certificate can carry.
pub(super) fn server_name(text: &str) -> Result<String, Fault> {
    match rustls::pki_types::ServerName::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(Fault::new(
            format!("{text:?} is not a server name"),
            "write a DNS name or an address, such as \"kubernetes\"",
        )),
    }
}

/// The family of an address, as it is said in errors.
pub(super) fn family(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    }
}

/// Whether two addresses are of one family.
pub(super) fn same_family(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}

/// `address:port` as it is written.
pub(super) fn socket(address: IpAddr, port: impl Into<u16>) -> String {
    SocketAddr::new(address, port.into()).to_string()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    /// Durations are a number and a unit, exact, and nothing else.
    #[test]
    fn reads_durations_strictly() {
        for (text, millis) in [
            ("10ms", 10),
            ("1s", 1_000),
            ("1.5s", 1_500),
            ("0.25s", 250),
            ("2m", 120_000),
            ("0.5m", 30_000),
            ("0s", 0),
            ("007s", 7_000),
        ] {
            assert_eq!(
                any_duration(text),
                Some(Duration::from_millis(millis)),
                "{text}"
            );
        }
        assert_eq!(any_duration("0.001ms"), Some(Duration::from_micros(1)));
        for text in [
            "",
            "1",
            "s",
            "ms",
            ".",
            ".s",
            "1.s",
            ".5s",
            "1.5.5s",
            "-1s",
            "+1s",
            "1 s",
            " 1s",
            "1s ",
            "1h",
            "1S",
            "1e3s",
            "1_000ms",
            "1s500ms",
            "0.0000001ms",
            "1.0000000001s",
            "١s",
            "18446744073709551616s",
            "18446744073709551615m",
            "1.00000000000000000000s",
        ] {
            assert_eq!(any_duration(text), None, "{text}");
        }
    }

    /// An advert interval is exact in the unit of its version.
    #[test]
    fn reads_advert_intervals() {
        let v3 = |text| v3_interval(text).ok().map(AdvertInterval::centis);
        assert_eq!(v3("10ms"), Some(1));
        assert_eq!(v3("1.25s"), Some(125));
        assert_eq!(v3("40s"), Some(4000));
        for text in ["0s", "5ms", "15ms", "10.5ms", "40.01s", "1m"] {
            assert_eq!(v3(text), None, "{text}");
        }
        let v2 = |text| v2_interval(text).ok().map(AdvertInterval::centis);
        assert_eq!(v2("1s"), Some(100));
        assert_eq!(v2("255s"), Some(25_500));
        assert_eq!(v2("1000ms"), Some(100));
        for text in ["0s", "500ms", "1.5s", "256s"] {
            assert_eq!(v2(text), None, "{text}");
        }
    }

    /// An IPv6 address in a fault or message stands in brackets before a port.
    #[test]
    fn writes_sockets_with_brackets() {
        let address = IpAddr::V6(Ipv6Addr::LOCALHOST);
        assert_eq!(socket(address, 6443_u16), "[::1]:6443");
    }
}

//! `[service.health]`: where, how and how often backends are checked.

mod agent;
mod command;
mod http;
mod talk;
mod tls;

use std::{
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
    time::Duration,
};

use super::{
    Context,
    model::{CheckConfig, CheckTarget, HealthConfig, StartState},
    raw::{Marked, Refused, Table, Value},
    service::Transport,
    value::{self, CHECK_TIME, Fault},
};

const DEFAULT_INTERVAL: Duration = Duration::from_secs(2);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
const DEFAULT_FAST_INTERVAL: Duration = Duration::from_millis(500);
/// Percent.
const DEFAULT_SPREAD: u8 = 10;

/// Keys that all checks have but `type`.
const COMMON_KEYS: &[&str] = &[
    "address",
    "port",
    "interval",
    "timeout",
    "rise",
    "fall",
    "fast_interval",
    "down_interval",
    "spread",
    "start",
];

/// `service.health.type`
#[derive(Clone, Copy, PartialEq, Eq)]
enum CheckType {
    Https,
    Http,
    Tls,
    Tcp,
    Command,
    None,
}

/// Read `[service.health]`.
pub(super) fn read(
    mut table: Table<'_>,
    transport: Option<Transport>,
    context: &Context<'_>,
) -> Option<HealthConfig> {
    let check_type = read_type(&mut table, transport);
    if check_type == Some(CheckType::None) {
        return Some(read_none(table));
    }
    if check_type.is_none() && transport == Some(Transport::Udp) {
        // One error says it all: what belongs to which type is not known.
        return None;
    }
    let needs_port = transport == Some(Transport::Udp) && check_type != Some(CheckType::Command);
    let target = read_target(&mut table, needs_port);
    let is_one_of = |types: &[CheckType]| check_type.is_none_or(|used| types.contains(&used));
    let http = if is_one_of(&[CheckType::Https, CheckType::Http]) {
        http::read(&mut table, context)
    } else {
        refuse_unused(&mut table, http::KEYS, "\"https\" or \"http\"");
        None
    };
    let tls = if is_one_of(&[CheckType::Https, CheckType::Tls]) {
        tls::read(&mut table, context)
    } else {
        refuse_unused(&mut table, tls::KEYS, "\"https\" or \"tls\"");
        None
    };
    let steps = if is_one_of(&[CheckType::Tls, CheckType::Tcp]) {
        talk::read(&mut table)
    } else {
        refuse_unused(&mut table, talk::KEYS, "\"tls\" or \"tcp\"");
        None
    };
    let command = if check_type == Some(CheckType::Command) {
        command::read(&mut table, context)
    } else {
        refuse_unused(&mut table, command::KEYS, "\"command\"");
        None
    };
    let pace = read_pace(&mut table);
    let agent = agent::read(&mut table, pace.as_ref().map(|pace| pace.interval));
    table.finish();
    let (check, target, pace) = (check_type?, target.ok()?, pace?);
    Some(HealthConfig {
        check: match check {
            CheckType::Https => CheckConfig::Https(tls?, http?),
            CheckType::Http => CheckConfig::Http(http?),
            CheckType::Tls => CheckConfig::Tls(tls?, steps?),
            CheckType::Tcp => CheckConfig::Tcp(steps?),
            CheckType::Command => CheckConfig::Command(command?),
            CheckType::None => CheckConfig::None,
        },
        target,
        interval: pace.interval,
        timeout: pace.timeout,
        rise: pace.rise,
        fall: pace.fall,
        fast_interval: pace.fast_interval,
        down_interval: pace.down_interval,
        spread: pace.spread,
        start: pace.start,
        agent: agent.ok()?,
    })
}

fn read_type(table: &mut Table<'_>, transport: Option<Transport>) -> Option<CheckType> {
    let Some(value) = table.get("type") else {
        if transport == Some(Transport::Udp) {
            table.refuse_missing(
                "type",
                "write \"none\", or a check over TCP and the port that it asks: UDP cannot be asked",
            );
            return None;
        }
        return Some(CheckType::Https);
    };
    let choice = value.choice(&[
        ("https", CheckType::Https),
        ("http", CheckType::Http),
        ("tls", CheckType::Tls),
        ("tcp", CheckType::Tcp),
        ("command", CheckType::Command),
        ("none", CheckType::None),
    ]);
    choice.map(|choice| choice.value)
}

/// `address`, and `port`, by default the backend's own, which UDP services cannot do with.
fn read_target(table: &mut Table<'_>, needs_port: bool) -> Result<CheckTarget, Refused> {
    let address = read_address(table, "address");
    let port = read_port(table, "port");
    if port == Ok(None) && needs_port {
        let hint = "write the TCP port that is asked, or type = \"none\"";
        table.refuse_missing("port", hint);
        return Err(Refused);
    }
    Ok(CheckTarget {
        address: address?,
        port: port?,
    })
}

/// An address to be asked, if `key` is there.
pub(super) fn read_address(
    table: &mut Table<'_>,
    key: &'static str,
) -> Result<Option<IpAddr>, Refused> {
    let Some(value) = table.get(key) else {
        return Ok(None);
    };
    let address = value.text("10.0.2.10", value::host_address);
    address.map(|address| Some(address.value)).ok_or(Refused)
}

/// A port to be asked, if `key` is there.
pub(super) fn read_port(
    table: &mut Table<'_>,
    key: &'static str,
) -> Result<Option<NonZeroU16>, Refused> {
    let Some(value) = table.get(key) else {
        return Ok(None);
    };
    let port = value.number(1..=u16::MAX, NonZeroU16::new);
    port.map(|port| Some(port.value)).ok_or(Refused)
}

/// How often and how patiently is asked, and what results add up to.
struct Pace {
    interval: Duration,
    timeout: Duration,
    rise: NonZeroU32,
    fall: NonZeroU32,
    fast_interval: Duration,
    down_interval: Duration,
    spread: u8,
    start: StartState,
}

fn read_pace(table: &mut Table<'_>) -> Option<Pace> {
    let interval = table.get_or("interval", DEFAULT_INTERVAL, check_time);
    let timeout = table.get_or("timeout", DEFAULT_TIMEOUT, check_time);
    let rise = table.get_or("rise", NonZeroU32::new(2), count);
    let fall = table.get_or("fall", NonZeroU32::new(3), count);
    let fast_interval = read_fast_interval(table, interval);
    let down_interval = table.get_or("down_interval", interval, check_time);
    let spread = table.get_or("spread", DEFAULT_SPREAD, |value| {
        value.number(0..=50, |percent| u8::try_from(percent).ok())
    });
    let start = table.get_or("start", StartState::Probe, |value| {
        value.choice(&[
            ("probe", StartState::Probe),
            ("up", StartState::Up),
            ("down", StartState::Down),
        ])
    });
    Some(Pace {
        interval: interval?,
        timeout: timeout?,
        rise: rise?,
        fall: fall?,
        fast_interval: fast_interval?,
        down_interval: down_interval?,
        spread: spread?,
        start: start?,
    })
}

/// `type = "none"`: every other key is refused.
fn read_none(mut table: Table<'_>) -> HealthConfig {
    let users = "\"https\", \"http\", \"tls\", \"tcp\" or \"command\"";
    for keys in [
        COMMON_KEYS,
        http::KEYS,
        tls::KEYS,
        talk::KEYS,
        command::KEYS,
        agent::KEYS,
    ] {
        refuse_unused(&mut table, keys, users);
    }
    table.finish();
    HealthConfig {
        check: CheckConfig::None,
        target: CheckTarget::default(),
        interval: DEFAULT_INTERVAL,
        timeout: DEFAULT_TIMEOUT,
        rise: NonZeroU32::MIN,
        fall: NonZeroU32::MIN,
        fast_interval: DEFAULT_FAST_INTERVAL,
        down_interval: DEFAULT_INTERVAL,
        spread: DEFAULT_SPREAD,
        start: StartState::Up,
        agent: None,
    }
}

/// Refuse keys that only checks of other types use.
fn refuse_unused(table: &mut Table<'_>, keys: &[&'static str], users: &str) {
    for key in keys {
        if let Some(value) = table.get(key) {
            value.refuse(Fault::new(
                "is not used by this type of check",
                format!("remove it or write type = {users}"),
            ));
        }
    }
}

fn check_time(value: &Value<'_>) -> Option<Marked<Duration>> {
    value.text("1s", |text| value::duration(text, &CHECK_TIME))
}

fn count(value: &Value<'_>) -> Option<Marked<NonZeroU32>> {
    value.number(1..=100, |number| NonZeroU32::new(number.into()))
}

/// `fast_interval`, by default 500 ms but never slower than `interval`.
fn read_fast_interval(table: &mut Table<'_>, interval: Option<Duration>) -> Option<Duration> {
    let Some(value) = table.get("fast_interval") else {
        return interval.map(|interval| interval.min(DEFAULT_FAST_INTERVAL));
    };
    let fast = check_time(&value)?.value;
    if interval.is_some_and(|interval| fast > interval) {
        value.refuse(Fault::new(
            "is longer than interval",
            "write a duration that is not longer",
        ));
    }
    Some(fast)
}

//! `[[service]]`, `[service.health]` and `[[service.backend]]`.

use std::{
    net::{IpAddr, SocketAddr},
    num::{NonZeroU16, NonZeroU32},
    path::PathBuf,
    time::Duration,
};

use super::{
    Context,
    model::{
        BackendConfig, CheckConfig, ClientCert, Forwarding, HealthConfig, HttpConfig,
        OnBackendDown, OnNoBackend, Protocol, ServiceConfig, StartState, TlsConfig, TlsVerify,
    },
    raw::{Mark, Marked, Refused, Table, Value},
    sources::{self, SourcesDraft},
    value::{self, CHECK_TIME, Fault},
};

/// `[[service]]` and what is compared with other sections.
pub(super) struct ServiceDraft {
    /// `None` if something is wrong with it.
    pub(super) config: Option<ServiceConfig>,
    pub(super) mark: Mark,
    pub(super) name: Option<Marked<String>>,
    pub(super) address: Option<Marked<IpAddr>>,
    pub(super) port: Option<Marked<NonZeroU16>>,
    pub(super) protocol: Option<Protocol>,
    pub(super) sources: SourcesDraft,
    pub(super) backends: Vec<BackendDraft>,
}

/// `[[service.backend]]` and what is compared with other sections.
pub(super) struct BackendDraft {
    config: Option<BackendConfig>,
    pub(super) mark: Mark,
    pub(super) name: Option<Marked<String>>,
    pub(super) address: Option<Marked<SocketAddr>>,
}

const DEFAULT_INTERVAL: Duration = Duration::from_secs(2);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
const DEFAULT_FAST_INTERVAL: Duration = Duration::from_millis(500);
/// `service.idle_timeout`
const DEFAULT_IDLE_SECONDS: NonZeroU16 = NonZeroU16::new(60).unwrap();

/// Read one `[[service]]`.
pub(super) fn read(mut table: Table<'_>, context: &Context<'_>) -> ServiceDraft {
    let name = table
        .need("name", "write a name such as \"apiserver\"")
        .and_then(|value| value.text("apiserver", value::name));
    let address = table
        .need("address", "write the VIP, such as \"10.0.2.100\"")
        .and_then(|value| value.text("10.0.2.100", value::vip));
    let port = table
        .need("port", "write the port that clients connect to")
        .and_then(|value| value.number(1..=u16::MAX, NonZeroU16::new));
    let transport = read_transport(&mut table);
    let protocol = read_protocol(&mut table, transport);
    let forwarding = table.get_or("forwarding", Forwarding::Auto, forwarding);
    let on_backend_down = table.get_or("on_backend_down", OnBackendDown::Reset, |value| {
        value.choice(&[
            ("reset", OnBackendDown::Reset),
            ("keep", OnBackendDown::Keep),
        ])
    });
    let on_no_backend = read_on_no_backend(&mut table, transport);
    let sources = sources::read(&mut table);
    let health = read_health(table.table("health"), transport, context);
    let backends = read_backends(&mut table, forwarding);
    let mark = table.mark().clone();
    table.finish();
    let config = || {
        Some(ServiceConfig {
            name: name.as_ref()?.value.clone(),
            address: address.as_ref()?.value,
            port: port.as_ref()?.value,
            protocol: protocol?,
            on_no_backend: on_no_backend?,
            sources: sources.config()?,
            on_backend_down: on_backend_down?,
            health: health?,
            backends: backends
                .iter()
                .map(|backend| backend.config.clone())
                .collect::<Option<_>>()?,
        })
    };
    ServiceDraft {
        config: config(),
        mark,
        name,
        address,
        port,
        protocol,
        sources,
        backends,
    }
}

/// `service.protocol` without what belongs to it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

fn read_transport(table: &mut Table<'_>) -> Option<Transport> {
    table.get_or("protocol", Transport::Tcp, |value| {
        value.choice(&[("tcp", Transport::Tcp), ("udp", Transport::Udp)])
    })
}

/// `protocol` with `idle_timeout`, which TCP has no use for.
fn read_protocol(table: &mut Table<'_>, transport: Option<Transport>) -> Option<Protocol> {
    let idle = table.get("idle_timeout");
    match transport? {
        Transport::Tcp => {
            if let Some(value) = idle {
                value.refuse(Fault::new(
                    "is not used with protocol = \"tcp\", which says when a flow ends",
                    "remove it or write protocol = \"udp\"",
                ));
            }
            Some(Protocol::Tcp)
        }
        Transport::Udp => {
            let idle_seconds = match idle {
                Some(value) => value.text("60s", value::idle_timeout)?.value,
                None => DEFAULT_IDLE_SECONDS,
            };
            Some(Protocol::Udp { idle_seconds })
        }
    }
}

fn read_on_no_backend(table: &mut Table<'_>, transport: Option<Transport>) -> Option<OnNoBackend> {
    let value = table.get("on_no_backend");
    match (value, transport) {
        (Some(value), Some(Transport::Udp)) => {
            value.refuse(Fault::new(
                "is not used with protocol = \"udp\", which has no resets",
                "remove it",
            ));
            None
        }
        (Some(value), _) => {
            let choice =
                value.choice(&[("reset", OnNoBackend::Reset), ("drop", OnNoBackend::Drop)]);
            choice.map(|choice| choice.value)
        }
        (None, Some(Transport::Udp)) => Some(OnNoBackend::Drop),
        (None, _) => Some(OnNoBackend::Reset),
    }
}

fn forwarding(value: &Value<'_>) -> Option<Marked<Forwarding>> {
    value.choice(&[
        ("auto", Forwarding::Auto),
        ("dsr", Forwarding::Dsr),
        ("nat", Forwarding::Nat),
    ])
}

/// `inherited`: the service's forwarding, `None` if that is wrong.
fn read_backends(table: &mut Table<'_>, inherited: Option<Forwarding>) -> Vec<BackendDraft> {
    let hint = "write at least one [[service.backend]]";
    let Some(value) = table.need("backend", hint) else {
        return Vec::new();
    };
    if value.is_empty_array() {
        value.refuse(Fault::new("is empty", hint));
    }
    table
        .tables("backend")
        .into_iter()
        .map(|backend| read_backend(backend, inherited))
        .collect()
}

fn read_backend(mut table: Table<'_>, inherited: Option<Forwarding>) -> BackendDraft {
    let name = table
        .need("name", "write a name such as \"master01\"")
        .and_then(|value| value.text("master01", value::name));
    let address = table
        .need("address", "write one such as \"10.0.2.10:6443\"")
        .and_then(|value| value.text("10.0.2.10:6443", value::backend));
    let weight = table.get_or("weight", NonZeroU32::MIN, |value| {
        value.number(1..=1000, |weight| NonZeroU32::new(weight.into()))
    });
    let forwarding = table.get_or("forwarding", inherited, forwarding);
    let mark = table.mark().clone();
    table.finish();
    let config = || {
        Some(BackendConfig {
            name: name.as_ref()?.value.clone(),
            address: address.as_ref()?.value,
            weight: weight?,
            forwarding: forwarding?,
        })
    };
    BackendDraft {
        config: config(),
        mark,
        name,
        address,
    }
}

/// `service.health.type`
#[derive(Clone, Copy, PartialEq, Eq)]
enum CheckType {
    Https,
    Http,
    Tls,
    Tcp,
    None,
}

fn read_check_type(table: &mut Table<'_>, transport: Option<Transport>) -> Option<CheckType> {
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
        ("none", CheckType::None),
    ]);
    choice.map(|choice| choice.value)
}

/// `port`, by default the backend's own, which only TCP services can do with.
fn read_check_port(
    table: &mut Table<'_>,
    transport: Option<Transport>,
) -> Result<Option<NonZeroU16>, Refused> {
    if let Some(value) = table.get("port") {
        let port = value.number(1..=u16::MAX, NonZeroU16::new);
        return port.map(|port| Some(port.value)).ok_or(Refused);
    }
    if transport == Some(Transport::Udp) {
        let hint = "write the TCP port that is asked, or type = \"none\"";
        table.refuse_missing("port", hint);
        return Err(Refused);
    }
    Ok(None)
}

fn read_health(
    mut table: Table<'_>,
    transport: Option<Transport>,
    context: &Context<'_>,
) -> Option<HealthConfig> {
    let check_type = read_check_type(&mut table, transport);
    if check_type == Some(CheckType::None) {
        return Some(read_no_health(table));
    }
    if check_type.is_none() && transport == Some(Transport::Udp) {
        // One error says it all: what belongs to which type is not known.
        return None;
    }
    let port = read_check_port(&mut table, transport);
    let is_one_of = |types: [CheckType; 2]| check_type.is_none_or(|used| types.contains(&used));
    let http = if is_one_of([CheckType::Https, CheckType::Http]) {
        read_http(&mut table)
    } else {
        let keys = ["path", "host", "expect_status"];
        refuse_unused(&mut table, keys, "\"https\" or \"http\"");
        None
    };
    let tls = if is_one_of([CheckType::Https, CheckType::Tls]) {
        read_tls(&mut table, context)
    } else {
        let keys = [
            "verify",
            "ca_file",
            "server_name",
            "client_cert_file",
            "client_key_file",
        ];
        refuse_unused(&mut table, keys, "\"https\" or \"tls\"");
        None
    };
    let interval = table.get_or("interval", DEFAULT_INTERVAL, check_time);
    let timeout = table.get_or("timeout", DEFAULT_TIMEOUT, check_time);
    let rise = table.get_or("rise", NonZeroU32::new(2), count);
    let fall = table.get_or("fall", NonZeroU32::new(3), count);
    let fast_interval = read_fast_interval(&mut table, interval);
    let start = table.get_or("start", StartState::Probe, |value| {
        value.choice(&[
            ("probe", StartState::Probe),
            ("up", StartState::Up),
            ("down", StartState::Down),
        ])
    });
    table.finish();
    Some(HealthConfig {
        check: match check_type? {
            CheckType::Https => CheckConfig::Https(tls?, http?),
            CheckType::Http => CheckConfig::Http(http?),
            CheckType::Tls => CheckConfig::Tls(tls?),
            CheckType::Tcp => CheckConfig::Tcp,
            CheckType::None => CheckConfig::None,
        },
        port: port.ok()?,
        interval: interval?,
        timeout: timeout?,
        rise: rise?,
        fall: fall?,
        fast_interval: fast_interval?,
        start: start?,
    })
}

/// `type = "none"`: every other key is refused.
fn read_no_health(mut table: Table<'_>) -> HealthConfig {
    let keys = [
        "port",
        "interval",
        "timeout",
        "rise",
        "fall",
        "fast_interval",
        "start",
        "path",
        "host",
        "expect_status",
        "verify",
        "ca_file",
        "server_name",
        "client_cert_file",
        "client_key_file",
    ];
    refuse_unused(&mut table, keys, "\"https\", \"http\", \"tls\" or \"tcp\"");
    table.finish();
    HealthConfig {
        check: CheckConfig::None,
        port: None,
        interval: DEFAULT_INTERVAL,
        timeout: DEFAULT_TIMEOUT,
        rise: NonZeroU32::MIN,
        fall: NonZeroU32::MIN,
        fast_interval: DEFAULT_FAST_INTERVAL,
        start: StartState::Up,
    }
}

/// Refuse keys that only checks of other types use.
fn refuse_unused<const N: usize>(table: &mut Table<'_>, keys: [&'static str; N], users: &str) {
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

fn read_http(table: &mut Table<'_>) -> Option<HttpConfig> {
    let path = table.get_or("path", "/readyz".to_owned(), |value| {
        value.text("/readyz", value::http_path)
    });
    let host = table
        .get("host")
        .and_then(|value| value.text("kubernetes.default", value::http_host));
    let expect_status = match table.get("expect_status") {
        Some(value) => read_statuses(&value),
        None => vec![200],
    };
    Some(HttpConfig {
        path: path?,
        host: host.map(|host| host.value),
        expect_status,
    })
}

/// Final statuses (RFC 9110 section 15), each once.
fn read_statuses(value: &Value<'_>) -> Vec<u16> {
    if value.is_empty_array() {
        value.refuse(Fault::new("is empty", "write expect_status = [200]"));
    }
    let mut statuses = Vec::new();
    for element in value.elements() {
        let Some(status) = element.number(200..=599, Some) else {
            continue;
        };
        if statuses.contains(&status.value) {
            let problem = format!("{} is there already", status.value);
            element.refuse(Fault::new(problem, "write every status once"));
        }
        statuses.push(status.value);
    }
    statuses
}

fn read_tls(table: &mut Table<'_>, context: &Context<'_>) -> Option<TlsConfig> {
    /// `verify`
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Verify {
        None,
        Ca,
    }
    let verify = table.get_or("verify", Verify::None, |value| {
        value.choice(&[("none", Verify::None), ("ca", Verify::Ca)])
    });
    let ca_value = table.get("ca_file");
    match (verify, &ca_value) {
        (Some(Verify::Ca), None) => {
            table.refuse_missing("ca_file", "name the PEM file that verify = \"ca\" needs");
        }
        (Some(Verify::None), Some(value)) => value.refuse(Fault::new(
            "is not used with verify = \"none\"",
            "remove it or write verify = \"ca\"",
        )),
        _ => {}
    }
    let ca_file = ca_value.and_then(|value| certificates(&value, context));
    let server_name = table
        .get("server_name")
        .and_then(|value| value.text("kubernetes", value::server_name));
    let client = read_client(table, context);
    Some(TlsConfig {
        verify: match verify? {
            Verify::None => TlsVerify::None,
            Verify::Ca => TlsVerify::Ca(ca_file?),
        },
        server_name: server_name.map(|name| name.value),
        client,
    })
}

/// `client_cert_file` and `client_key_file`: both or none.
fn read_client(table: &mut Table<'_>, context: &Context<'_>) -> Option<ClientCert> {
    let cert = table.get("client_cert_file");
    let key = table.get("client_key_file");
    match (&cert, &key) {
        (Some(_), None) => {
            table.refuse_missing("client_key_file", "name the key of client_cert_file");
        }
        (None, Some(_)) => {
            table.refuse_missing(
                "client_cert_file",
                "name the certificate of client_key_file",
            );
        }
        _ => {}
    }
    let cert_file = cert.and_then(|value| certificates(&value, context));
    let key_file = key.and_then(|value| pem(&value, context, "PRIVATE KEY", "private key"));
    Some(ClientCert {
        cert_file: cert_file?,
        key_file: key_file?,
    })
}

fn certificates(value: &Value<'_>, context: &Context<'_>) -> Option<PathBuf> {
    pem(value, context, "CERTIFICATE", "certificate")
}

/// A readable file with at least one PEM section (RFC 7468) whose label ends with `label`.
fn pem(value: &Value<'_>, context: &Context<'_>, label: &str, thing: &str) -> Option<PathBuf> {
    let path = value.text("/etc/kubernetes/pki/ca.crt", |named| {
        let (path, content) = context.read(named)?;
        let label = format!("{label}-----");
        let is_start = |line: &str| line.starts_with("-----BEGIN ") && line.contains(&label);
        if String::from_utf8_lossy(&content).lines().any(is_start) {
            Ok(path)
        } else {
            Err(Fault::new(
                format!("{named:?} holds no {thing}"),
                format!("name a PEM file with a {thing}"),
            ))
        }
    });
    path.map(|path| path.value)
}

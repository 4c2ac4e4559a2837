//! `[service.health]`, validated.

use std::{
    fmt,
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
    path::PathBuf,
    time::Duration,
};

/// `[service.health]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthConfig {
    /// What is asked.
    pub check: CheckConfig,
    /// Where it is asked, unless a backend says otherwise.
    pub target: CheckTarget,
    /// Time between checks in a settled state, default 2 s.
    pub interval: Duration,
    /// Time that one check may take, default 1 s.
    pub timeout: Duration,
    /// Successes in a row that make a backend UP, default 2.
    pub rise: NonZeroU32,
    /// Failures in a row that make it DRAINING or DOWN, default 3.
    pub fall: NonZeroU32,
    /// Time between checks while the state is changing, default 500 ms.
    pub fast_interval: Duration,
    /// Time between checks of a backend that is DOWN, default `interval`.
    pub down_interval: Duration,
    /// Percent by which these times vary at most, default 10.
    pub spread: u8,
    /// State before the first result.
    pub start: StartState,
    /// Who else is asked.
    pub agent: Option<AgentConfig>,
}

/// `service.health.agent`: a process on each backend's machine that says how the backend is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentConfig {
    /// Its port.
    pub port: NonZeroU16,
    /// Its address; `None`: the backend's.
    pub address: Option<IpAddr>,
    /// What is sent to it first; may be empty.
    pub send: String,
    /// Time between questions, default that of the checks.
    pub interval: Duration,
    /// Time that an answer may take, default 1 s.
    pub timeout: Duration,
}

/// Another address or port to be asked than the backend's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckTarget {
    /// Address.
    pub address: Option<IpAddr>,
    /// Port.
    pub port: Option<NonZeroU16>,
}

/// `service.health.start`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartState {
    /// DOWN until `rise` checks succeed.
    Down,
    /// DOWN until the first check succeeds (default): one result decides.
    Probe,
    /// UP until `fall` checks fail.
    Up,
}

/// `service.health.type` and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckConfig {
    /// An HTTP request over TLS.
    Https(TlsConfig, HttpConfig),
    /// A plain HTTP request.
    Http(HttpConfig),
    /// A TLS handshake, and a conversation over it.
    Tls(TlsConfig, Vec<Step>),
    /// A TCP handshake, and a conversation.
    Tcp(Vec<Step>),
    /// A program that is run.
    Command(CommandConfig),
    /// Nothing: backends count as UP.
    None,
}

impl CheckConfig {
    /// Whether checks of a settled backend go over one connection.
    pub const fn keeps_alive(&self) -> bool {
        match self {
            Self::Https(_, http) | Self::Http(http) => http.keep_alive,
            Self::Tls(..) | Self::Tcp(_) | Self::Command(_) | Self::None => false,
        }
    }
}

/// `service.health.command` and `user`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandConfig {
    /// The program.
    pub program: PathBuf,
    /// Its arguments; `{vip}`, `{vip_port}`, `{address}` and `{port}` stand for what is checked.
    pub arguments: Vec<String>,
    /// Who runs it.
    pub user: String,
}

/// One step of a conversation: `service.health.send`, `expect` and `steps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// These bytes are sent.
    Send(Vec<u8>),
    /// This must come: it is looked for in everything that has come since the last sending.
    Expect(Pattern),
}

/// What must come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// These bytes, after and before anything else.
    Bytes(Vec<u8>),
    /// What this regular expression describes; it is a valid one.
    Regex(String),
}

/// TLS side of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// Whether and how the server's certificate is verified.
    pub verify: TlsVerify,
    /// SNI and, with a CA, the name that the certificate must carry. Default: the address.
    pub server_name: Option<String>,
    /// Client certificate chain and key, PEM files.
    pub client: Option<ClientCert>,
    /// The oldest version that is spoken.
    pub min: TlsMin,
}

/// `service.health.verify`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsVerify {
    /// Any certificate.
    None,
    /// Signed by a CA in this PEM file.
    Ca(PathBuf),
}

/// `service.health.tls_min`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMin {
    /// TLS 1.2 (default).
    V12,
    /// TLS 1.3.
    V13,
}

/// `service.health.client_cert_file` and `client_key_file`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCert {
    /// PEM file with the chain.
    pub cert_file: PathBuf,
    /// PEM file with the key.
    pub key_file: PathBuf,
}

/// HTTP side of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpConfig {
    /// Path and query, default `/readyz`.
    pub path: String,
    /// Method, default GET.
    pub method: HttpMethod,
    /// Version, default 1.1.
    pub version: HttpVersion,
    /// `Host` header; default: the address and port that are asked.
    pub host: Option<String>,
    /// Further headers: name and value.
    pub headers: Vec<(String, String)>,
    /// Statuses that count as success, default 200.
    pub expect_status: Vec<StatusRange>,
    /// What the answer's body must hold.
    pub expect_body: Option<BodyMatch>,
    /// File with a token for `Authorization: Bearer`, read for each check.
    pub bearer_token_file: Option<PathBuf>,
    /// Whether checks of a settled backend use one connection after the other, default true.
    pub keep_alive: bool,
}

/// `service.health.method`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpMethod {
    /// GET.
    Get,
    /// HEAD: the answer has no body.
    Head,
    /// OPTIONS.
    Options,
}

/// `service.health.http_version`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.1.
    V11,
    /// HTTP/2: agreed on in the TLS handshake, known beforehand without TLS.
    V2,
}

/// Statuses from `first` to `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusRange {
    /// The first one.
    pub first: u16,
    /// The last one, not below the first.
    pub last: u16,
}

impl StatusRange {
    /// One status.
    pub const fn only(status: u16) -> Self {
        Self {
            first: status,
            last: status,
        }
    }

    /// Whether `status` is one of them.
    pub const fn contains(self, status: u16) -> bool {
        self.first <= status && status <= self.last
    }

    /// Whether both have a status.
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// `service.health.expect_body` and `expect_body_regex`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyMatch {
    /// This text.
    Text(String),
    /// What this regular expression describes; it is a valid one.
    Regex(String),
}

impl fmt::Display for BodyMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Regex(regex) => write!(f, "/{regex}/"),
        }
    }
}

/// The token in the content of a `bearer_token_file` (RFC 6750 section 2.1), or what is wrong with
/// the file.
pub fn bearer_token(content: &[u8]) -> Result<&str, &'static str> {
    let token = content.trim_ascii();
    if token.is_empty() {
        return Err("is empty");
    }
    match std::str::from_utf8(token) {
        Ok(text) if token.iter().all(u8::is_ascii_graphic) => Ok(text),
        _ => Err("holds no token"),
    }
}

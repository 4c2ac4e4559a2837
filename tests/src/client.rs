//! A client that makes many HTTPS requests, each on a connection of its own, checks what comes
//! back and counts who answered.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    ops::RangeInclusive,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Args;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{
    standin::{CLIENT_HEADER, NODE_HEADER, content},
    topology::any_address,
};

/// Which requests to make.
#[derive(Clone, Debug, Args)]
pub struct Load {
    /// Where to: address and port.
    #[arg(long, default_value = "10.77.0.100:1644", value_name = "ADDRESS:PORT")]
    pub target: SocketAddr,
    /// How many requests.
    #[arg(short = 'n', long, default_value_t = 1000)]
    pub requests: usize,
    /// How many at the same time.
    #[arg(short = 'c', long, default_value = "20")]
    pub concurrency: NonZeroUsize,
    /// Bytes of content to fetch and check with each.
    #[arg(long, default_value_t = 1000)]
    pub bytes: usize,
    /// Bytes of content to send with each; the server checks them.
    #[arg(long, default_value_t = 0)]
    pub upload: usize,
    /// Without TLS.
    #[arg(long)]
    pub plain: bool,
    /// Milliseconds that one request may take.
    #[arg(long, default_value_t = 5000)]
    pub timeout_ms: u64,
    /// Source ports to use over and over, such as 40000-40019; at least as many as run at once.
    #[arg(long, value_parser = port_range, value_name = "FIRST-LAST")]
    pub source_ports: Option<RangeInclusive<u16>>,
}

impl Load {
    /// 1000 requests, 20 at the same time, with TLS.
    pub fn new(target: SocketAddr) -> Self {
        Self {
            target,
            requests: 1000,
            concurrency: NonZeroUsize::MIN.saturating_add(19),
            bytes: 1000,
            upload: 0,
            plain: false,
            timeout_ms: 5000,
            source_ports: None,
        }
    }
}

fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').ok_or("not of the form FIRST-LAST")?;
    let port = |text: &str| text.parse().map_err(|error| format!("`{text}`: {error}"));
    let (first, last): (u16, u16) = (port(first)?, port(last)?);
    if first > last || first == 0 {
        return Err(format!("{first}-{last} is no range of ports"));
    }
    Ok(first..=last)
}

/// What came of them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Requests that were answered with the right content.
    pub ok: usize,
    /// The same, per node that answered.
    pub by_node: BTreeMap<String, usize>,
    /// Addresses that the nodes saw as the client's.
    pub client_addresses: BTreeSet<IpAddr>,
    /// The same, with the node that saw them.
    pub views: BTreeSet<(String, IpAddr)>,
    /// Where the client's own sockets say that they lead to (`getpeername`), of answered requests.
    pub peers: BTreeSet<SocketAddr>,
    /// Failed requests per kind of failure.
    pub errors: BTreeMap<String, usize>,
    /// Milliseconds from the first request to the last answer.
    pub elapsed_ms: u64,
    /// Milliseconds of the slowest request that was answered.
    pub slowest_ms: u64,
}

impl Report {
    /// Number of requests that failed.
    pub fn failed(&self) -> usize {
        self.errors.values().sum()
    }

    /// The largest distance of a node's share from an equal share, in percentage points, if
    /// `nodes` nodes should have answered.
    pub fn unevenness(&self, nodes: usize) -> usize {
        let equal = 100 / nodes.max(1);
        let missing = if self.by_node.len() < nodes { equal } else { 0 };
        self.by_node
            .values()
            .map(|count| (count * 100 / self.ok.max(1)).abs_diff(equal))
            .max()
            .unwrap_or(0)
            .max(missing)
    }

    fn add(&mut self, outcome: Result<Answer, Failure>) {
        match outcome {
            Ok(answer) => {
                self.ok += 1;
                self.client_addresses.insert(answer.client.ip());
                self.views.insert((answer.node.clone(), answer.client.ip()));
                self.peers.insert(answer.peer);
                *self.by_node.entry(answer.node).or_default() += 1;
                let millis = u64::try_from(answer.took.as_millis()).unwrap_or(u64::MAX);
                self.slowest_ms = self.slowest_ms.max(millis);
            }
            Err(failure) => *self.errors.entry(failure.to_string()).or_default() += 1,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ok, {} failed in {} ms (slowest {} ms)",
            self.ok,
            self.failed(),
            self.elapsed_ms,
            self.slowest_ms
        )?;
        for (node, count) in &self.by_node {
            let percent = count * 100 / self.ok.max(1);
            write!(f, "\n  {node}: {count} ({percent} %)")?;
        }
        for address in &self.client_addresses {
            write!(f, "\n  seen as {address}")?;
        }
        for (error, count) in &self.errors {
            write!(f, "\n  {count} times: {error}")?;
        }
        Ok(())
    }
}

/// Makes all requests of a load. Sockets are of the calling thread's network namespace: the
/// runtime must be a current-thread one, or live in that namespace altogether.
pub async fn run(load: &Load) -> Result<Report> {
    let tls = if load.plain { None } else { Some(tls()?) };
    let shared = Arc::new(Shared {
        load: load.clone(),
        tls,
        next: AtomicUsize::new(0),
        report: Mutex::new(Report::default()),
    });
    let begin = Instant::now();
    let mut workers = tokio::task::JoinSet::new();
    for number in 0..load.concurrency.get() {
        workers.spawn(work(shared.clone(), number));
    }
    while let Some(ended) = workers.join_next().await {
        ended.context("a worker panicked")?;
    }
    let mut report = shared.report().clone();
    report.elapsed_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(report)
}

/// One request; who answered it and how.
pub async fn request(load: &Load) -> Result<Answer, Failure> {
    let tls = if load.plain {
        None
    } else {
        Some(tls().map_err(|error| Failure::Tls(error.to_string()))?)
    };
    bounded(load, tls.as_ref(), None).await
}

/// A connection without TLS, or with it.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A connection for requests of the caller's own.
pub(crate) async fn open(load: &Load) -> Result<Box<dyn Stream>> {
    let stream = connect(load.target, None).await.context("connect")?;
    if load.plain {
        return Ok(Box::new(stream));
    }
    let name = ServerName::from(load.target.ip());
    let stream = tls()?.connect(name, stream).await.context("TLS")?;
    Ok(Box::new(stream))
}

struct Shared {
    load: Load,
    tls: Option<TlsConnector>,
    next: AtomicUsize,
    report: Mutex<Report>,
}

impl Shared {
    fn report(&self) -> std::sync::MutexGuard<'_, Report> {
        match self.report.lock() {
            Ok(guard) => guard,
            Err(poisoned) => poisoned.into_inner(),
        }
    }
}

/// Takes requests until there are none left. Each worker has its own part of the source ports
/// and goes round in it.
async fn work(shared: Arc<Shared>, number: usize) {
    let load = &shared.load;
    let mine = load.source_ports.clone().map(|ports| {
        let step = load.concurrency.get();
        ports.skip(number).step_by(step).collect::<Vec<_>>()
    });
    let mut ports = mine.iter().flatten().copied().cycle();
    while shared.next.fetch_add(1, Ordering::Relaxed) < load.requests {
        let outcome = bounded(load, shared.tls.as_ref(), ports.next()).await;
        shared.report().add(outcome);
    }
}

/// A good answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The node that answered.
    pub node: String,
    /// The client as that node saw it.
    pub client: SocketAddr,
    /// Where the client's socket says that it leads to.
    pub peer: SocketAddr,
    /// From before connect to the last byte.
    pub took: Duration,
}

/// Why there was no good answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing in time; the step that was waiting.
    Timeout,
    /// No TCP connection.
    Connect(String),
    /// No TLS session.
    Tls(String),
    /// The connection broke.
    Broken(String),
    /// An answer, but not the right one.
    Wrong(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("no answer in time"),
            Self::Connect(error) => write!(f, "connect: {error}"),
            Self::Tls(error) => write!(f, "TLS handshake: {error}"),
            Self::Broken(error) => write!(f, "connection broke: {error}"),
            Self::Wrong(what) => write!(f, "wrong answer: {what}"),
        }
    }
}

impl std::error::Error for Failure {}

async fn bounded(
    load: &Load,
    tls: Option<&TlsConnector>,
    port: Option<u16>,
) -> Result<Answer, Failure> {
    let begin = Instant::now();
    let all = async {
        let stream = connect(load.target, port)
            .await
            .map_err(|error| Failure::Connect(error.kind().to_string()))?;
        let peer = stream
            .peer_addr()
            .map_err(|error| Failure::Broken(error.to_string()))?;
        let Some(tls) = tls else {
            return Ok((exchange(stream, load).await?, peer));
        };
        let name = ServerName::from(load.target.ip());
        let stream = tls
            .connect(name, stream)
            .await
            .map_err(|error| Failure::Tls(error.to_string()))?;
        Ok((exchange(stream, load).await?, peer))
    };
    let ((node, client), peer) = timeout(Duration::from_millis(load.timeout_ms), all)
        .await
        .map_err(|_| Failure::Timeout)??;
    Ok(Answer {
        node,
        client,
        peer,
        took: begin.elapsed(),
    })
}

/// Connects. A port whose last connection to there still waits for its final ACK cannot be used
/// yet (`EADDRNOTAVAIL`): it is tried until it can.
async fn connect(target: SocketAddr, port: Option<u16>) -> std::io::Result<TcpStream> {
    loop {
        match try_connect(target, port).await {
            Err(error)
                if error.kind() == std::io::ErrorKind::AddrNotAvailable && port.is_some() =>
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            other => return other,
        }
    }
}

async fn try_connect(target: SocketAddr, port: Option<u16>) -> std::io::Result<TcpStream> {
    let socket = if target.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if let Some(port) = port {
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::new(any_address(target.ip()), port))?;
    }
    socket.connect(target).await
}

/// Sends the request and reads to the end: the server closes first, so that this side's port is
/// free for the next connection and the server's memory of it (TIME-WAIT) is what that one meets.
async fn exchange<S>(mut stream: S, load: &Load) -> Result<(String, SocketAddr), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = format!(
        "POST /bytes?n={} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        load.bytes, load.target, load.upload
    );
    let request = [request.into_bytes(), content(load.upload)].concat();
    let broken = |error: std::io::Error| Failure::Broken(error.to_string());
    stream.write_all(&request).await.map_err(broken)?;
    // TLS may hold the end of it back.
    stream.flush().await.map_err(broken)?;
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await.map_err(broken)?;
    check(&received, load.bytes)
}

/// Checks an answer and takes out of it who answered whom.
fn check(received: &[u8], length: usize) -> Result<(String, SocketAddr), Failure> {
    let wrong = |what: &str| Failure::Wrong(what.to_owned());
    let end = received
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or_else(|| wrong("it ends in the header"))?;
    let (head, body) = received.split_at(end);
    let head = String::from_utf8_lossy(head);
    let (status, headers) = head.split_once("\r\n").unwrap_or((&head, ""));
    if !status.starts_with("HTTP/1.1 200") {
        return Err(wrong(status));
    }
    if body.get(4..) != Some(content(length).as_slice()) {
        return Err(wrong("not the content that was asked for"));
    }
    let header = |name: &str| {
        let mut pairs = headers.lines().filter_map(|line| line.split_once(": "));
        pairs.find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value))
    };
    let node = header(NODE_HEADER).ok_or_else(|| wrong("it names no node"))?;
    let client = header(CLIENT_HEADER)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| wrong("it names no client"))?;
    Ok((node.to_owned(), client))
}

/// TLS without verification and without resumption: each connection is a stranger.
fn tls() -> Result<TlsConnector> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting(provider)))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Takes any certificate: the tests ask who answered, not whether to believe it.
#[derive(Debug)]
struct Trusting(Arc<CryptoProvider>);

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(body: &[u8]) -> Vec<u8> {
        let head = "HTTP/1.1 200 OK\r\nX-Xvip-Node: m2\r\nx-xvip-client: 10.77.0.20:4000\r\n\r\n";
        [head.as_bytes(), body].concat()
    }

    /// A right answer is taken apart; one wrong or missing byte of content is noticed.
    #[test]
    fn content_is_compared_byte_by_byte() {
        let mut good = response(&content(100));
        let expected = ("m2".to_owned(), "10.77.0.20:4000".parse().unwrap());
        assert_eq!(check(&good, 100), Ok(expected));
        assert!(check(&good[..good.len() - 1], 100).is_err());
        *good.last_mut().unwrap() ^= 1;
        assert!(check(&good, 100).is_err());
    }

    /// A node that never answered is uneven by its whole share.
    #[test]
    fn a_silent_node_counts_as_uneven() {
        let mut report = Report {
            ok: 100,
            ..Report::default()
        };
        report.by_node = [("m1".to_owned(), 50), ("m2".to_owned(), 50)].into();
        assert_eq!(report.unevenness(2), 0);
        assert_eq!(report.unevenness(3), 33);
    }

    /// Port ranges are read as they are written, and nonsense is refused.
    #[test]
    fn port_ranges_are_read() {
        assert_eq!(port_range("40000-40019"), Ok(40000..=40019));
        for bad in ["", "1", "2-1", "0-5", "1-70000", "a-b"] {
            assert!(port_range(bad).is_err(), "{bad}");
        }
    }
}

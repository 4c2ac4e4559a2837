//! A stand-in for kube-apiserver: TLS, the health paths, a version, a page that says who answered
//! whom, a watch that never ends, and content that a client can check.
//!
//! | path | answer |
//! |---|---|
//! | `/healthz`, `/livez`, `/readyz` | `ok`, or another status after SIGUSR1 or `/control` |
//! | `/version` | JSON like the apiserver's |
//! | `/whoami` | JSON: node, client's address and port, own address and port |
//! | `/bytes?n=1000` | that many bytes of [`content`]; what is sent with the request must be content, too |
//! | `/watch` | one line of JSON per second, chunked, without end |
//! | `/control?status=500&delay_ms=0` | sets what the health paths answer, and how late |
//!
//! Every answer carries [`NODE_HEADER`] and [`CLIENT_HEADER`]. SIGUSR1 makes it not ready (500),
//! SIGUSR2 ready.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Frame, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    time::{Interval, interval},
};
use tokio_rustls::TlsAcceptor;

/// Response header with the name of the node that answered.
pub const NODE_HEADER: &str = "x-xvip-node";
/// Response header with the client's address and port as the node saw them.
pub const CLIENT_HEADER: &str = "x-xvip-client";
/// More than this is not sent by `/bytes`.
const MAX_CONTENT: usize = 64 << 20;
/// As many as the kernel's usual limit lets wait to be accepted.
const BACKLOG: i32 = 4096;

/// Command line of `xvip-standin`.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "xvip-standin",
    about = "A stand-in for kube-apiserver, for xvip's lab and tests"
)]
pub struct Options {
    /// Address and port to listen on; `[::]` takes IPv4 as well. May be repeated.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:6443")]
    pub listen: Vec<SocketAddr>,
    /// Name that the answers carry.
    #[arg(long)]
    pub node: String,
    /// HTTP without TLS.
    #[arg(long)]
    pub plain: bool,
    /// Address and port to listen on without TLS, beside the others. May be repeated.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen_plain: Vec<SocketAddr>,
    /// Listen with MPTCP, as Go programs do; plain TCP where the kernel has none.
    #[arg(long)]
    pub mptcp: bool,
    /// Certificate chain, PEM; default: a self-signed one.
    #[arg(long, requires = "key", value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Key of the certificate, PEM.
    #[arg(long, requires = "cert", value_name = "FILE")]
    pub key: Option<PathBuf>,
}

/// What `/whoami` says.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct WhoAmI {
    /// The node that answered.
    pub node: String,
    /// Whom it answered.
    pub client: SocketAddr,
    /// Its own end of the connection.
    pub local: SocketAddr,
}

/// The first `length` bytes of a sequence without short periods: a lost, doubled or swapped
/// segment shows.
pub fn content(length: usize) -> Vec<u8> {
    (0u32..)
        .map(|index| (index.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0])
        .take(length)
        .collect()
}

/// Serves until it fails or is killed.
pub async fn serve(options: Options) -> Result<()> {
    let tls = if options.plain {
        None
    } else {
        Some(TlsAcceptor::from(Arc::new(server_config(&options)?)))
    };
    let state = Arc::new(State {
        node: options.node.clone(),
        status: AtomicU16::new(StatusCode::OK.as_u16()),
        delay_millis: AtomicU64::new(0),
    });
    let listen = |address: &SocketAddr| listen(*address, options.mptcp);
    let listeners = options.listen.iter().map(listen);
    let plain = options.listen_plain.iter().map(listen);
    let listeners = listeners.collect::<Result<Vec<_>>>()?;
    let plain = plain.collect::<Result<Vec<_>>>()?;
    switch_by_signal(state.clone())?;
    let mut tasks = tokio::task::JoinSet::new();
    for listener in listeners {
        tasks.spawn(accept(listener, tls.clone(), state.clone()));
    }
    for listener in plain {
        tasks.spawn(accept(listener, None, state.clone()));
    }
    println!("ready");
    while let Some(ended) = tasks.join_next().await {
        ended.context("an accept loop panicked")??;
    }
    Ok(())
}

struct State {
    node: String,
    /// What the health paths answer.
    status: AtomicU16,
    /// How late they answer.
    delay_millis: AtomicU64,
}

fn switch_by_signal(state: Arc<State>) -> Result<()> {
    let mut not_ready = signal(SignalKind::user_defined1()).context("cannot take SIGUSR1")?;
    let mut ready = signal(SignalKind::user_defined2()).context("cannot take SIGUSR2")?;
    tokio::spawn(async move {
        loop {
            let status = tokio::select! {
                _ = not_ready.recv() => StatusCode::INTERNAL_SERVER_ERROR,
                _ = ready.recv() => StatusCode::OK,
            };
            state.status.store(status.as_u16(), Ordering::Relaxed);
        }
    });
    Ok(())
}

fn listen(address: SocketAddr, mptcp: bool) -> Result<TcpListener> {
    let socket = open(address, mptcp)?;
    let bind = || {
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)
    };
    bind().with_context(|| format!("cannot listen on {address}"))?;
    TcpListener::from_std(socket.into()).context("cannot hand the listener to the runtime")
}

fn open(address: SocketAddr, mptcp: bool) -> Result<Socket> {
    let domain = Domain::for_address(address);
    if mptcp {
        match Socket::new(domain, Type::STREAM, Some(Protocol::MPTCP)) {
            Ok(socket) => {
                println!("listening on {address} with MPTCP");
                return Ok(socket);
            }
            Err(error) => println!("no MPTCP here ({error}): plain TCP on {address}"),
        }
    }
    Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).context("cannot open a socket")
}

fn server_config(options: &Options) -> Result<ServerConfig> {
    let (chain, key) = match (&options.cert, &options.key) {
        (Some(cert), Some(key)) => {
            let chain = CertificateDer::pem_file_iter(cert)
                .and_then(Iterator::collect)
                .with_context(|| format!("cannot read {}", cert.display()))?;
            let key = PrivateKeyDer::from_pem_file(key)
                .with_context(|| format!("cannot read {}", key.display()))?;
            (chain, key)
        }
        _ => self_signed(&options.node)?,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn self_signed(node: &str) -> Result<Identity> {
    let names = vec!["kubernetes".to_owned(), node.to_owned()];
    let made = rcgen::generate_simple_self_signed(names).context("cannot make a certificate")?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    Ok((vec![made.cert.der().clone()], key.into()))
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    state: Arc<State>,
) -> Result<Infallible> {
    loop {
        // Accept fails for reasons of one connection (it was reset while it waited): go on.
        let Ok((stream, client)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        let (tls, state) = (tls.clone(), state.clone());
        tokio::spawn(async move {
            // Whatever ends a connection is the client's to notice.
            let _ = connection(stream, client, tls, state).await;
        });
    }
}

async fn connection(
    stream: TcpStream,
    client: SocketAddr,
    tls: Option<TlsAcceptor>,
    state: Arc<State>,
) -> Result<()> {
    let local = stream.local_addr()?;
    stream.set_nodelay(true)?;
    let who = WhoAmI {
        node: state.node.clone(),
        client: plain_address(client),
        local: plain_address(local),
    };
    match tls {
        Some(tls) => http(tls.accept(stream).await?, who, state).await,
        None => http(stream, who, state).await,
    }
}

/// The IPv4 address behind the mapped form that a dual-stack listener sees.
fn plain_address(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

async fn http<S>(stream: S, who: WhoAmI, state: Arc<State>) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let who = Arc::new(who);
    let service = service_fn(|request| {
        let (who, state) = (who.clone(), state.clone());
        async move { Ok::<_, Infallible>(answer(request, &who, &state).await) }
    });
    http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await?;
    Ok(())
}

type AnyBody = UnsyncBoxBody<Bytes, Infallible>;

async fn answer(request: Request<Incoming>, who: &WhoAmI, state: &State) -> Response<AnyBody> {
    let (request, body) = request.into_parts();
    let query = |name: &str| {
        let pairs = request.uri.query()?.split('&');
        pairs
            .filter_map(|pair| pair.split_once('='))
            .find_map(|(key, value)| (key == name).then(|| value.parse::<u64>().ok())?)
    };
    let mut response = match request.uri.path() {
        "/healthz" | "/livez" | "/readyz" => health(state).await,
        "/version" => json(&serde_json::json!({
            "major": "1", "minor": "36", "gitVersion": "v1.36.0-xvip-standin", "platform": "linux",
        })),
        "/whoami" => json(who),
        "/bytes" if !is_content(body).await => text(
            StatusCode::BAD_REQUEST,
            "not the content that was to be sent\n",
        ),
        "/bytes" => bytes(query("n").unwrap_or(0)),
        "/watch" => Response::new(Watch::new(&who.node).boxed_unsync()),
        "/control" => {
            if let Some(status) = query("status").and_then(|code| u16::try_from(code).ok()) {
                state.status.store(status, Ordering::Relaxed);
            }
            if let Some(delay) = query("delay_ms") {
                state.delay_millis.store(delay, Ordering::Relaxed);
            }
            text(StatusCode::OK, "set\n")
        }
        _ => text(StatusCode::NOT_FOUND, "no such page\n"),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (NODE_HEADER, who.node.clone()),
        (CLIENT_HEADER, who.client.to_string()),
    ] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    response
}

async fn health(state: &State) -> Response<AnyBody> {
    let delay = state.delay_millis.load(Ordering::Relaxed);
    if delay > 0 {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    let status = state.status.load(Ordering::Relaxed);
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    text(
        status,
        if status.is_success() {
            "ok"
        } else {
            "not ready"
        },
    )
}

/// Whether a client sent [`content`], of whatever length.
async fn is_content(body: Incoming) -> bool {
    let Ok(body) = body.collect().await else {
        return false;
    };
    let sent = body.to_bytes();
    sent == content(sent.len())
}

fn bytes(length: u64) -> Response<AnyBody> {
    match usize::try_from(length) {
        Ok(length) if length <= MAX_CONTENT => full(content(length)),
        _ => text(StatusCode::BAD_REQUEST, "too many bytes\n"),
    }
}

fn json(value: &impl Serialize) -> Response<AnyBody> {
    let mut response = full(serde_json::to_vec(value).unwrap_or_default());
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn text(status: StatusCode, text: &'static str) -> Response<AnyBody> {
    let mut response = full(text);
    *response.status_mut() = status;
    response
}

fn full(body: impl Into<Bytes>) -> Response<AnyBody> {
    Response::new(Full::new(body.into()).boxed_unsync())
}

/// A body that goes on until the client leaves: one line per second.
struct Watch {
    node: String,
    number: u64,
    ticks: Interval,
}

impl Watch {
    fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            number: 0,
            ticks: interval(Duration::from_secs(1)),
        }
    }
}

impl Body for Watch {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::task::ready!(self.ticks.poll_tick(cx));
        let event = serde_json::json!({
            "type": "BOOKMARK", "node": self.node, "number": self.number,
        });
        self.number += 1;
        Poll::Ready(Some(Ok(Frame::data(format!("{event}\n").into()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The content has no short period: shifting it by any segment-like length shows.
    #[test]
    fn content_differs_from_itself_shifted() {
        let all = content(20_000);
        for shift in [1, 4, 536, 1024, 1440, 1448, 1460, 4096, 8192] {
            assert_ne!(all[..5000], all[shift..shift + 5000], "shift {shift}");
        }
    }

    /// A dual-stack listener shows IPv4 clients by their IPv4 address.
    #[test]
    fn mapped_addresses_are_shown_as_ipv4() {
        let mapped = "[::ffff:10.77.0.20]:4000".parse().unwrap();
        assert_eq!(plain_address(mapped), "10.77.0.20:4000".parse().unwrap());
    }
}

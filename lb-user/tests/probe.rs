//! Probes against real servers on loopback: every kind of check, and every way in which a backend
//! can fail one.

// clippy.toml lets `#[test]` functions unwrap; their helpers here are as much part of the test.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    convert::Infallible,
    future::Future,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use lb_user::{
    config::model::{
        CheckConfig, CheckTarget, ClientCert, HealthConfig, HttpConfig, HttpMethod, HttpVersion,
        StartState, StatusRange, TlsConfig, TlsMin, TlsVerify,
    },
    core::health::{Class, Failure, Finding, ProbeOutcome, Stage},
    io::probe::{ProbeSetupError, Prober},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

/// Long enough never to decide a test, however busy the machine is.
const PLENTY: Duration = Duration::from_mins(1);

/// For probes that are to run out of time where nothing has to be finished before.
const BRIEF: Duration = Duration::from_millis(100);

/// For probes that are to run out of time after a handshake.
const AFTER_HANDSHAKE: Duration = Duration::from_secs(2);

#[path = "probe/agent.rs"]
mod agent;
#[path = "probe/command.rs"]
mod command;
#[path = "probe/http.rs"]
mod http;
#[path = "probe/kept.rs"]
mod kept;
#[path = "probe/talk.rs"]
mod talk;

// --- Configurations ---------------------------------------------------------------------------

fn health(check: CheckConfig) -> HealthConfig {
    HealthConfig {
        check,
        target: CheckTarget::default(),
        interval: Duration::from_secs(2),
        timeout: Duration::from_secs(1),
        rise: NonZeroU32::MIN,
        fall: NonZeroU32::MIN,
        fast_interval: Duration::from_millis(500),
        down_interval: Duration::from_secs(2),
        spread: 10,
        start: StartState::Probe,
        agent: None,
    }
}

fn prober(check: CheckConfig) -> Prober {
    Prober::new(&health(check)).unwrap()
}

fn any_tls() -> TlsConfig {
    TlsConfig {
        verify: TlsVerify::None,
        server_name: None,
        client: None,
        min: TlsMin::V12,
    }
}

fn readyz() -> HttpConfig {
    HttpConfig {
        path: "/readyz".into(),
        method: HttpMethod::Get,
        version: HttpVersion::V11,
        host: None,
        headers: Vec::new(),
        expect_status: vec![StatusRange::only(200)],
        expect_body: None,
        bearer_token_file: None,
        keep_alive: false,
    }
}

fn https() -> CheckConfig {
    CheckConfig::Https(any_tls(), readyz())
}

fn failed(stage: Stage, failure: Failure) -> Finding {
    Finding::Failed { stage, failure }
}

fn status(code: u16, expected: bool) -> Finding {
    let note = (!expected).then(|| "ok".to_owned());
    Finding::Status {
        code,
        expected,
        note,
    }
}

/// The text of a failure to speak the protocol in `stage`.
fn protocol_error(outcome: &ProbeOutcome, stage: Stage) -> &str {
    match &outcome.finding {
        Finding::Failed {
            stage: failed_in,
            failure: Failure::Protocol(text),
        } if *failed_in == stage => text,
        other => panic!("not a protocol error in {stage:?}: {other:?}"),
    }
}

// --- Certificates -----------------------------------------------------------------------------

/// A CA, and what it has signed: a server for `api.test`, 127.0.0.1 and `::1`, and a client.
struct Pki {
    ca: CertifiedIssuer<'static, KeyPair>,
    server: Arc<ServerConfig>,
    dir: TempDir,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ClientAuth {
    None,
    Required,
    RequiredInTls12,
}

impl Pki {
    fn new() -> Self {
        Self::asking(ClientAuth::None)
    }

    fn asking(client_auth: ClientAuth) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let server = Arc::new(server_config(&ca, client_auth));
        let dir = TempDir::new();
        Self { ca, server, dir }
    }

    /// The CA's certificate, in a file.
    fn ca_file(&self) -> PathBuf {
        self.dir.write("ca.pem", &self.ca.pem())
    }

    /// A client certificate and its key, in files.
    fn client(&self) -> ClientCert {
        let (cert, key) = signed_by(&self.ca, &["client.test"]);
        ClientCert {
            cert_file: self.dir.write("client.pem", &cert.pem()),
            key_file: self.dir.write("client.key", &key.serialize_pem()),
        }
    }

    fn verified(&self, server_name: Option<&str>) -> TlsConfig {
        TlsConfig {
            verify: TlsVerify::Ca(self.ca_file()),
            server_name: server_name.map(str::to_owned),
            client: None,
            min: TlsMin::V12,
        }
    }

    fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.server))
    }
}

fn signed_by(
    ca: &CertifiedIssuer<'static, KeyPair>,
    names: &[&str],
) -> (rcgen::Certificate, KeyPair) {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(names).unwrap();
    (params.signed_by(&key, ca).unwrap(), key)
}

fn server_config(ca: &CertifiedIssuer<'static, KeyPair>, auth: ClientAuth) -> ServerConfig {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let versions = match auth {
        ClientAuth::RequiredInTls12 => &[&rustls::version::TLS12][..],
        ClientAuth::None | ClientAuth::Required => rustls::ALL_VERSIONS,
    };
    let builder = builder.with_protocol_versions(versions).unwrap();
    let builder = if auth == ClientAuth::None {
        builder.with_no_client_auth()
    } else {
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        builder.with_client_cert_verifier(verifier.build().unwrap())
    };
    let (cert, key) = signed_by(ca, &["api.test", "127.0.0.1", "::1"]);
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = builder
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

/// A directory that goes away with its owner.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("xvip-probe-{}-{unique}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

// --- Servers ----------------------------------------------------------------------------------

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A server that hands each connection to `serve`.
async fn serve<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// Serves HTTP/1.1 requests with `code` and a short body.
async fn answer<S: AsyncRead + AsyncWrite + Unpin>(stream: S, code: u16) {
    let service = service_fn(move |_: Request<Incoming>| async move {
        let mut response = Response::new(Full::new(Bytes::from_static(b"ok")));
        *response.status_mut() = code.try_into().unwrap();
        Ok::<_, Infallible>(response)
    });
    let connection = hyper::server::conn::http1::Builder::new();
    let _ = connection
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// Reads a request and answers with raw bytes, then closes the sending side.
async fn answer_raw<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, response: &[u8]) {
    let mut request = [0; 4096];
    let _ = stream.read(&mut request).await;
    let _ = stream.write_all(response).await;
    let _ = stream.shutdown().await;
    let _ = read_to_end(&mut stream).await;
}

/// Reads until the client ends the connection, and tells how it did.
async fn read_to_end(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}

/// Reads a request's head and answers 200 to it.
async fn read_request<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let response = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    stream.write_all(response).await.unwrap();
    String::from_utf8(head).unwrap()
}

async fn https_server(pki: &Pki, code: u16) -> SocketAddr {
    let acceptor = pki.acceptor();
    serve(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                answer(stream, code).await;
            }
        }
    })
    .await
}

// --- Answers ----------------------------------------------------------------------------------

/// Proves that an https check without verification passes on 200 from a certificate of an
/// unknown CA, and that every stage is timed.
#[tokio::test]
async fn https_200_passes() {
    let address = https_server(&Pki::new(), 200).await;
    let outcome = prober(https()).probe(address, PLENTY).await;
    assert_eq!(outcome.finding, status(200, true));
    let times = outcome.times;
    assert!(times.connect.is_some() && times.tls.is_some() && times.http.is_some());
}

/// Proves that a 500 is not ready, neither passed nor dead.
#[tokio::test]
async fn https_500_is_not_ready() {
    let address = https_server(&Pki::new(), 500).await;
    let outcome = prober(https()).probe(address, PLENTY).await;
    assert_eq!(outcome.finding, status(500, false));
    assert_eq!(outcome.class(), Class::NotReady);
}

/// Proves that `expect_status` decides: the 401 of an apiserver without anonymous access can be
/// accepted.
#[tokio::test]
async fn expected_401_passes() {
    let address = https_server(&Pki::new(), 401).await;
    let mut http = readyz();
    http.expect_status = vec![StatusRange::only(200), StatusRange::only(401)];
    let check = CheckConfig::Https(any_tls(), http);
    let outcome = prober(check).probe(address, PLENTY).await;
    assert_eq!(outcome.finding, status(401, true));
}

/// Proves that http, tls and tcp checks pass where their protocol is spoken.
#[tokio::test]
async fn plain_kinds_pass() {
    let plain = serve(|stream| answer(stream, 200)).await;
    let secure = https_server(&Pki::new(), 500).await;
    let http = prober(CheckConfig::Http(readyz()));
    let outcome = http.probe(plain, PLENTY).await;
    assert_eq!(outcome.finding, status(200, true));
    assert_eq!(outcome.times.tls, None);
    let tls = prober(CheckConfig::Tls(any_tls(), Vec::new()));
    let outcome = tls.probe(secure, PLENTY).await;
    assert_eq!(outcome.finding, Finding::Handshake);
    assert_eq!(outcome.times.http, None);
    let tcp = prober(CheckConfig::Tcp(Vec::new()));
    let outcome = tcp.probe(plain, PLENTY).await;
    assert_eq!(outcome.finding, Finding::Connected);
}

/// Proves that IPv6 backends are probed, and named in brackets in the Host header.
#[tokio::test]
async fn ipv6_backend_passes() {
    let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await else {
        eprintln!("skipped: no IPv6 on loopback");
        return;
    };
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await
    });
    let http = prober(CheckConfig::Http(readyz()));
    let outcome = http.probe(address, PLENTY).await;
    assert_eq!(outcome.finding, status(200, true));
    let request = server.await.unwrap();
    let host = format!("host: [::1]:{}\r\n", address.port());
    assert!(request.to_lowercase().contains(&host), "{request}");
}

/// Proves what a server sees of an https check: path, configured host, SNI and HTTP/1.1 by ALPN.
#[tokio::test]
async fn request_is_as_configured() {
    let pki = Pki::new();
    let (listener, address) = listen().await;
    let acceptor = pki.acceptor();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        let session = stream.get_ref().1;
        let name = session.server_name().map(str::to_owned);
        let alpn = session.alpn_protocol().map(<[u8]>::to_vec);
        (name, alpn, read_request(&mut stream).await)
    });
    let http = HttpConfig {
        path: "/readyz?verbose".into(),
        host: Some("cluster.test".into()),
        ..readyz()
    };
    let check = CheckConfig::Https(pki.verified(Some("api.test")), http);
    let outcome = prober(check).probe(address, PLENTY).await;
    assert_eq!(outcome.finding, status(200, true));
    let (name, alpn, request) = server.await.unwrap();
    assert_eq!(name.as_deref(), Some("api.test"));
    assert_eq!(alpn.as_deref(), Some(&b"http/1.1"[..]));
    let request = request.to_lowercase();
    assert!(request.starts_with("get /readyz?verbose http/1.1\r\n"));
    assert!(request.contains("host: cluster.test\r\n"), "{request}");
    assert!(request.contains("user-agent: xvip/"), "{request}");
}

// --- No connection, no handshake --------------------------------------------------------------

/// Proves that a port where nobody listens is refused, for every kind of check.
#[tokio::test]
async fn closed_port_is_refused() {
    // Bound but not listening: nobody else gets the port meanwhile.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    for check in [
        https(),
        CheckConfig::Http(readyz()),
        CheckConfig::Tls(any_tls(), Vec::new()),
        CheckConfig::Tcp(Vec::new()),
    ] {
        let outcome = prober(check).probe(address, PLENTY).await;
        assert_eq!(outcome.finding, failed(Stage::Connect, Failure::Refused));
        assert!(outcome.proves_death() && !outcome.timed_out());
        assert_eq!(outcome.to_string(), "connection refused");
    }
}

/// Proves that a frozen apiserver (its kernel accepts, TLS never answers) is dead by time limit,
/// and that the probe's connection is reset, so that nothing of it lingers.
#[tokio::test]
async fn no_handshake_times_out_and_resets() {
    let (listener, address) = listen().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_to_end(&mut stream).await
    });
    let outcome = prober(https()).probe(address, BRIEF).await;
    assert_eq!(outcome.finding, failed(Stage::Tls, Failure::TimedOut));
    assert_eq!(outcome.class(), Class::Dead);
    assert!(outcome.timed_out() && !outcome.proves_death());
    let end = server.await.unwrap().unwrap_err();
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
}

/// Proves that a check that passed ends its connection in order.
#[tokio::test]
async fn passed_check_closes_in_order() {
    let (listener, address) = listen().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_to_end(&mut stream).await
    });
    let outcome = prober(CheckConfig::Tcp(Vec::new()))
        .probe(address, PLENTY)
        .await;
    assert_eq!(outcome.class(), Class::Pass);
    server.await.unwrap().unwrap();
}

/// Proves that a TLS check that passed ends with `close_notify`, not with a broken-off stream.
#[tokio::test]
async fn passed_tls_check_sends_close_notify() {
    let pki = Pki::new();
    let (listener, address) = listen().await;
    // Session tickets that the client never reads would make its kernel reset at close.
    let mut config = ServerConfig::clone(&pki.server);
    config.send_tls13_tickets = 0;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        // Without close_notify, reading ends in UnexpectedEof.
        read_to_end(&mut stream).await
    });
    let tls = prober(CheckConfig::Tls(any_tls(), Vec::new()));
    assert_eq!(tls.probe(address, PLENTY).await.class(), Class::Pass);
    server.await.unwrap().unwrap();
}

/// Proves that a reset in the middle of the handshake is dead with proof.
#[tokio::test]
async fn reset_during_handshake_is_dead() {
    let address = serve(|mut stream: TcpStream| async move {
        let _ = stream.read_u8().await;
        stream.set_zero_linger().unwrap();
    })
    .await;
    let outcome = prober(https()).probe(address, PLENTY).await;
    assert_eq!(outcome.finding, failed(Stage::Tls, Failure::Reset));
    assert!(outcome.proves_death());
}

/// Proves that an orderly close in the middle of the handshake is dead with proof.
#[tokio::test]
async fn close_during_handshake_is_dead() {
    let address = serve(|stream| answer_raw(stream, b"")).await;
    let outcome = prober(https()).probe(address, PLENTY).await;
    assert_eq!(outcome.finding, failed(Stage::Tls, Failure::Closed));
    assert!(outcome.proves_death());
}

/// Proves that a server that speaks no TLS fails in the TLS stage.
#[tokio::test]
async fn plain_text_instead_of_tls_is_dead() {
    let address = serve(|stream| answer_raw(stream, b"HTTP/1.0 400 Bad Request\r\n\r\n")).await;
    let outcome = prober(https()).probe(address, PLENTY).await;
    protocol_error(&outcome, Stage::Tls);
    assert_eq!(outcome.class(), Class::Dead);
}

// --- Certificates that fail -------------------------------------------------------------------

/// Proves that a certificate of the configured CA passes by server name and by address.
#[tokio::test]
async fn right_ca_passes() {
    let pki = Pki::new();
    let address = https_server(&pki, 200).await;
    for name in [None, Some("api.test"), Some("127.0.0.1")] {
        let check = CheckConfig::Https(pki.verified(name), readyz());
        let outcome = prober(check).probe(address, PLENTY).await;
        assert_eq!(outcome.class(), Class::Pass, "{name:?}: {outcome}");
    }
}

/// Proves that a certificate of another CA fails the handshake, but proves no death: the CA file
/// may be the one that is out of date, and then everybody's handshake fails.
#[tokio::test]
async fn wrong_ca_is_dead_without_proof() {
    let address = https_server(&Pki::new(), 200).await;
    let other = Pki::new();
    let check = CheckConfig::Https(other.verified(None), readyz());
    let outcome = prober(check).probe(address, PLENTY).await;
    let text = protocol_error(&outcome, Stage::Tls);
    assert!(text.contains("invalid peer certificate"), "{text}");
    assert_eq!(outcome.class(), Class::Dead);
    assert!(!outcome.proves_death() && !outcome.timed_out());
}

/// Proves that a certificate for another name fails the handshake.
#[tokio::test]
async fn wrong_name_fails() {
    let pki = Pki::new();
    let address = https_server(&pki, 200).await;
    let check = CheckConfig::Https(pki.verified(Some("other.test")), readyz());
    let outcome = prober(check).probe(address, PLENTY).await;
    protocol_error(&outcome, Stage::Tls);
}

/// Proves that a client certificate is shown to a server that asks for one.
#[tokio::test]
async fn client_certificate_is_shown() {
    for auth in [ClientAuth::Required, ClientAuth::RequiredInTls12] {
        let pki = Pki::asking(auth);
        let address = https_server(&pki, 200).await;
        let mut tls = pki.verified(None);
        tls.client = Some(pki.client());
        let check = CheckConfig::Https(tls, readyz());
        let outcome = prober(check).probe(address, PLENTY).await;
        assert_eq!(outcome.finding, status(200, true));
    }
}

/// Proves that a missing client certificate shows after the handshake in TLS 1.3 (not ready), and
/// in it in TLS 1.2 (dead, but an alert is no proof of death).
#[tokio::test]
async fn missing_client_certificate_fails() {
    let address = https_server(&Pki::asking(ClientAuth::Required), 200).await;
    let outcome = prober(https()).probe(address, PLENTY).await;
    assert_eq!(outcome.class(), Class::NotReady, "{outcome}");
    let address = https_server(&Pki::asking(ClientAuth::RequiredInTls12), 200).await;
    let outcome = prober(https()).probe(address, PLENTY).await;
    let text = protocol_error(&outcome, Stage::Tls);
    assert!(text.contains("alert"), "{text}");
    assert!(!outcome.proves_death());
}

// --- HTTP that fails --------------------------------------------------------------------------

/// Proves that an apiserver that makes its handshake and then does not answer is not ready, and
/// not dead: a slow etcd does that to all of them.
#[tokio::test]
async fn slow_http_after_handshake_is_not_ready() {
    let acceptor = Pki::new().acceptor();
    let address = serve(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let mut stream = acceptor.accept(stream).await.unwrap();
            let _ = read_to_end(&mut stream).await;
        }
    })
    .await;
    let outcome = prober(https()).probe(address, AFTER_HANDSHAKE).await;
    assert_eq!(outcome.finding, failed(Stage::Http, Failure::TimedOut));
    assert_eq!(outcome.class(), Class::NotReady);
}

/// Proves that a body that stops in the middle is a slow answer, though its status was good.
#[tokio::test]
async fn body_that_stalls_is_not_ready() {
    let address = serve(|mut stream: TcpStream| async move {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf";
        let _ = stream.write_all(head).await;
        let _ = read_to_end(&mut stream).await;
    })
    .await;
    let http = prober(CheckConfig::Http(readyz()));
    let outcome = http.probe(address, BRIEF).await;
    assert_eq!(outcome.finding, failed(Stage::Http, Failure::TimedOut));
}

/// Proves that malformed, broken-off and oversized answers are not ready, for plain http and
/// below TLS.
#[tokio::test]
async fn malformed_answers_are_not_ready() {
    let mut long_head = b"HTTP/1.1 200 OK\r\nX-Long: ".to_vec();
    long_head.resize(1 << 20, b'x');
    let answers: [&[u8]; 7] = [
        b"",
        b"\0\xff\x16\x03\x01garbage\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        &long_head,
    ];
    for raw in answers {
        let raw: Arc<[u8]> = raw.into();
        let plain = Arc::clone(&raw);
        let address = serve(move |stream| {
            let raw = Arc::clone(&plain);
            async move { answer_raw(stream, &raw).await }
        })
        .await;
        let http = prober(CheckConfig::Http(readyz()));
        let outcome = http.probe(address, PLENTY).await;
        assert_eq!(outcome.class(), Class::NotReady, "{outcome}");
        assert!(!outcome.timed_out(), "{outcome}");

        let acceptor = Pki::new().acceptor();
        let address = serve(move |stream| {
            let (raw, acceptor) = (Arc::clone(&raw), acceptor.clone());
            async move { answer_raw(acceptor.accept(stream).await.unwrap(), &raw).await }
        })
        .await;
        let outcome = prober(https()).probe(address, PLENTY).await;
        assert_eq!(outcome.class(), Class::NotReady, "{outcome}");
        assert!(!outcome.timed_out(), "{outcome}");
    }
}

/// Proves that an endless body is not read to the end: its status counts.
#[tokio::test]
async fn endless_body_is_left_unread() {
    let address = serve(|mut stream: TcpStream| async move {
        let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n";
        let _ = stream.write_all(head).await;
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
    })
    .await;
    let http = prober(CheckConfig::Http(readyz()));
    let outcome = http.probe(address, PLENTY).await;
    assert_eq!(outcome.finding, status(200, true));
}

/// Proves that a reset after a good TCP connection is not ready for a plain http check.
#[tokio::test]
async fn http_reset_is_not_ready() {
    let address = serve(|mut stream: TcpStream| async move {
        let _ = stream.read_u8().await;
        stream.set_zero_linger().unwrap();
    })
    .await;
    let http = prober(CheckConfig::Http(readyz()));
    let outcome = http.probe(address, PLENTY).await;
    assert_eq!(outcome.finding, failed(Stage::Http, Failure::Reset));
    assert_eq!(outcome.class(), Class::NotReady);
}

// --- Many at once -----------------------------------------------------------------------------

/// Proves that a hanging backend does not delay the others' probes: they all end while it hangs,
/// though its probe began first.
#[tokio::test]
async fn hanging_backend_delays_nobody() {
    let pki = Pki::new();
    let prober = Arc::new(prober(https()));
    let (accepted, mut was_accepted) = mpsc::channel(1);
    let (release, released) = oneshot::channel::<()>();
    let (listener, hanging) = listen().await;
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        accepted.send(()).await.unwrap();
        let _ = released.await;
        drop(stream);
    });
    let first = Arc::clone(&prober);
    let hanging = tokio::spawn(async move { first.probe(hanging, PLENTY).await });
    was_accepted.recv().await.unwrap();

    let healthy = https_server(&pki, 200).await;
    let mut others = JoinSet::new();
    for _ in 0..50 {
        let prober = Arc::clone(&prober);
        others.spawn(async move { prober.probe(healthy, PLENTY).await });
    }
    for outcome in others.join_all().await {
        assert_eq!(outcome.finding, status(200, true));
    }
    assert!(!hanging.is_finished());
    release.send(()).unwrap();
    assert_eq!(hanging.await.unwrap().class(), Class::Dead);
}

// --- Set-up -----------------------------------------------------------------------------------

fn setup_error(check: CheckConfig) -> ProbeSetupError {
    Prober::new(&health(check)).unwrap_err()
}

fn with_ca(path: &Path) -> CheckConfig {
    let tls = TlsConfig {
        verify: TlsVerify::Ca(path.to_owned()),
        ..any_tls()
    };
    CheckConfig::Tls(tls, Vec::new())
}

/// Proves that unusable files are refused when the prober is made, each with its name.
#[test]
fn unusable_files_are_refused() {
    let (pki, other) = (Pki::new(), Pki::new());
    let missing = pki.dir.0.join("missing.pem");
    let error = setup_error(with_ca(&missing));
    assert!(matches!(&error, ProbeSetupError::Pem { path, .. } if *path == missing));
    assert!(error.to_string().contains("missing.pem"), "{error}");

    let empty = pki.dir.write("empty.pem", "no PEM at all\n");
    let error = setup_error(with_ca(&empty));
    assert!(matches!(error, ProbeSetupError::NoCertificate(path) if path == empty));

    let junk = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let junk = pki.dir.write("junk.pem", junk);
    let error = setup_error(with_ca(&junk));
    assert!(matches!(error, ProbeSetupError::Ca { path, .. } if path == junk));

    let mut tls = any_tls();
    tls.client = Some(ClientCert {
        cert_file: pki.client().cert_file,
        key_file: other.client().key_file,
    });
    let error = setup_error(CheckConfig::Tls(tls, Vec::new()));
    assert!(matches!(error, ProbeSetupError::Client { .. }), "{error}");
}

/// Proves that names and paths that no request can carry are refused when the prober is made.
#[test]
fn unusable_names_are_refused() {
    let mut tls = any_tls();
    tls.server_name = Some("not a name".into());
    let error = setup_error(CheckConfig::Tls(tls, Vec::new()));
    assert!(matches!(error, ProbeSetupError::ServerName(name) if name == "not a name"));
    for path in ["", "readyz", "/ready z", "http://x/readyz"] {
        let mut http = readyz();
        http.path = path.into();
        let error = setup_error(CheckConfig::Http(http));
        assert!(
            matches!(error, ProbeSetupError::Path(_)),
            "{path:?}: {error}"
        );
    }
    let mut http = readyz();
    http.host = Some("a\r\nb".into());
    let error = setup_error(CheckConfig::Http(http));
    assert!(matches!(error, ProbeSetupError::Host(_)), "{error}");
}

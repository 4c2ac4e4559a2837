//! Probes of backends: one fresh connection each, in up to three stages (TCP connection, TLS
//! handshake, HTTP exchange or conversation) under one deadline. A probe reports what it saw; what that means is
//! judged by [`crate::core::health`].
//!
//! # Kept connections
//!
//! With `keep_alive` the connection of an HTTP probe that passed is kept (`kept`), and a
//! later one that may reuse it asks there first. What comes of that counts only if it is an answer. If
//! the connection is over (closed, reset, no HTTP any more), the probe is made on a fresh one at once.
//! If nothing has come after a quarter of the time limit, a fresh one is opened beside it, and the
//! first answer counts; without any, what became of the fresh one. So a frozen backend shows within
//! the same time limit, and in the same stage, as without a kept connection.
//!
//! # How a probe ends its connection
//!
//! A completed probe closes in order (TLS `close_notify`, FIN), like any client: a reset would
//! show as an error in the log of many a server with every check. The price is a socket in
//! TIME-WAIT on this node for a minute, thirty per backend at the default interval, and none on
//! the backend. (If the backend sent more than the probe reads, such as session tickets or its
//! own `close_notify`, the kernel resets after the FIN all the same; by then all is said.)
//! A probe that failed or ran out of time resets its connection (`SO_LINGER` 0): a FIN to a dead
//! host would be retransmitted for minutes, and a frozen backend that comes back should find
//! nothing to work off.

pub mod agent;
mod command;
mod connection;
mod http;
mod kept;
mod talk;
mod tls;

use std::{future::Future, io, net::SocketAddr, path::PathBuf, pin::pin, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

pub use self::command::CommandProbe;
use self::{
    connection::{Connection, Shared, close},
    http::{HttpProbe, Session},
    kept::Kept,
    talk::{Progress, TalkProbe},
    tls::TlsProbe,
};
use crate::{
    config::model::{CheckConfig, HealthConfig, ServiceConfig},
    core::health::{Failure, Finding, ProbeOutcome, Stage, StageTimes, quoted},
    io::command::NoUser,
};

/// Longest text of a foreign error that an outcome carries, in characters.
const MAX_ERROR_TEXT: usize = 160;

/// Part of the time limit after which a fresh connection is opened beside a kept one that is silent.
const SILENT_PART: u32 = 4;

/// Makes the probes of one service. Files are read when it is made, not with every probe.
#[derive(Debug)]
pub struct Prober {
    tls: Option<TlsProbe>,
    application: Application,
    kept: Kept,
}

/// What happens on an established connection.
#[derive(Debug)]
enum Application {
    Nothing,
    Http(Box<HttpProbe>),
    Talk(TalkProbe),
}

/// Why no [`Prober`] could be made.
#[derive(Debug, thiserror::Error)]
pub enum ProbeSetupError {
    /// A PEM file cannot be read.
    #[error("cannot read {path}: {source}", path = .path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// A PEM file holds no certificate.
    #[error("no certificate in {path}", path = .0.display())]
    NoCertificate(PathBuf),
    /// A certificate in the CA file is malformed.
    #[error("unusable CA certificate in {path}: {source}", path = .path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// Client certificate and key are unusable, or do not belong together.
    #[error("unusable client certificate {cert} with key {key}: {source}",
        cert = .cert.display(), key = .key.display())]
    Client {
        /// File of the chain.
        cert: PathBuf,
        /// File of the key.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The server name is neither a DNS name nor an address.
    #[error("server name {0:?} is neither a DNS name nor an IP address")]
    ServerName(String),
    /// The path cannot stand in a request line.
    #[error("{0:?} is no request path")]
    Path(String),
    /// The host cannot stand in a `Host` header.
    #[error("{0:?} is no host")]
    Host(String),
    /// A header cannot be sent.
    #[error("header {0:?} cannot be sent")]
    Header(String),
    /// A regular expression is none.
    #[error("{0}")]
    Regex(Box<regex::Error>),
    /// Nobody to run a program as.
    #[error(transparent)]
    User(#[from] NoUser),
    /// The TLS library refused its own defaults.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Makes the checks of one service, whatever kind they are of.
#[derive(Debug)]
pub enum ServiceProber {
    /// Over the network.
    Network(Prober),
    /// By a program.
    Command(CommandProbe),
}

impl ServiceProber {
    /// What makes the checks of `service`. Reads the files that they need.
    pub fn new(service: &ServiceConfig) -> Result<Self, ProbeSetupError> {
        Ok(match &service.health.check {
            CheckConfig::Command(config) => Self::Command(CommandProbe::new(config, service)?),
            _ => Self::Network(Prober::new(&service.health)?),
        })
    }

    /// Checks the backend of this name at `target`, within `timeout`; `reuse`: over the
    /// connection of the check before if it is still there.
    pub async fn probe(
        &self,
        name: &str,
        target: SocketAddr,
        timeout: Duration,
        reuse: bool,
    ) -> ProbeOutcome {
        match self {
            Self::Network(prober) if reuse => prober.probe_again(target, timeout).await,
            Self::Network(prober) => prober.probe(target, timeout).await,
            Self::Command(prober) => prober.probe((name, target), timeout).await,
        }
    }
}

/// A stage that failed, and how.
type StageError = (Stage, Failure);

impl Prober {
    /// A prober for the checks of `config`. Reads the files that it names.
    pub fn new(config: &HealthConfig) -> Result<Self, ProbeSetupError> {
        let talk = |steps| match TalkProbe::new(steps)? {
            Some(talk) => Ok::<_, ProbeSetupError>(Application::Talk(talk)),
            None => Ok(Application::Nothing),
        };
        let http = |http, over_tls| {
            HttpProbe::new(http, over_tls).map(|http| Application::Http(Box::new(http)))
        };
        let (tls, application) = match &config.check {
            CheckConfig::Https(tls, config) => (Some(tls), http(config, true)?),
            CheckConfig::Http(config) => (None, http(config, false)?),
            CheckConfig::Tls(tls, steps) => (Some(tls), talk(steps)?),
            CheckConfig::Tcp(steps) => (None, talk(steps)?),
            CheckConfig::Command(_) | CheckConfig::None => (None, Application::Nothing),
        };
        let alpn = match &application {
            Application::Http(http) => Some(http.alpn()),
            Application::Nothing | Application::Talk(_) => None,
        };
        Ok(Self {
            tls: tls.map(|tls| TlsProbe::new(tls, alpn)).transpose()?,
            application,
            kept: Kept::default(),
        })
    }

    /// Probes the backend at `target` within `timeout`, over a fresh connection. A kept one is
    /// closed.
    ///
    /// The future does no work outside of its own polls: dropping it resets the connection.
    pub async fn probe(&self, target: SocketAddr, timeout: Duration) -> ProbeOutcome {
        let deadline = Instant::now() + timeout;
        if let Some(session) = self.kept.take(target) {
            close(session.into_stream(), deadline).await;
        }
        self.fresh(target, deadline).await
    }

    /// Like [`Self::probe`], but over the kept connection if there is one, and if it answers.
    pub async fn probe_again(&self, target: SocketAddr, timeout: Duration) -> ProbeOutcome {
        let start = Instant::now();
        let deadline = start + timeout;
        let (Application::Http(http), Some(session)) = (&self.application, self.kept.take(target))
        else {
            return self.fresh(target, deadline).await;
        };
        let mut again = pin!(self.again(http, session, target, deadline));
        match timeout_at(start + timeout / SILENT_PART, &mut again).await {
            Ok(Some(outcome)) => outcome,
            Ok(None) => self.fresh(target, deadline).await,
            Err(_) => tokio::select! {
                biased;
                Some(outcome) = &mut again => outcome,
                outcome = self.fresh(target, deadline) => outcome,
            },
        }
    }

    /// A probe over a connection of its own.
    async fn fresh(&self, target: SocketAddr, deadline: Instant) -> ProbeOutcome {
        let mut stages = Stages {
            deadline,
            times: StageTimes::default(),
        };
        let finding = self
            .run(target, &mut stages)
            .await
            .unwrap_or_else(|(stage, failure)| Finding::Failed { stage, failure });
        ProbeOutcome {
            finding,
            times: stages.times,
        }
    }

    /// A probe over `session`; `None` if no answer came that counts. It may take longer than up to
    /// `deadline`.
    async fn again(
        &self,
        http: &HttpProbe,
        mut session: Session,
        target: SocketAddr,
        deadline: Instant,
    ) -> Option<ProbeOutcome> {
        session.stream().reset_on_drop(true);
        let started = Instant::now();
        let finding = http.exchange_again(&mut session, target).await?;
        let times = StageTimes {
            http: Some(started.elapsed()),
            ..StageTimes::default()
        };
        self.keep_or_close(http, target, session, (&finding, deadline))
            .await;
        Some(ProbeOutcome { finding, times })
    }

    async fn run(&self, target: SocketAddr, stages: &mut Stages) -> Result<Finding, StageError> {
        let tcp = stages.run(Stage::Connect, connect(target)).await?;
        match &self.tls {
            None => {
                let exchange = self.exchange(tcp, target, Finding::Connected, stages);
                exchange.await
            }
            Some(tls) => {
                let handshake = tls.handshake(target, tcp);
                let stream = stages.run(Stage::Tls, handshake).await?;
                let exchange = self.exchange(stream, target, Finding::Handshake, stages);
                exchange.await
            }
        }
    }

    /// What follows on the established connection, if anything does, and its end. `so_far` is the
    /// finding where nothing does.
    async fn exchange<S: Connection + Send + 'static>(
        &self,
        mut stream: S,
        target: SocketAddr,
        so_far: Finding,
        stages: &mut Stages,
    ) -> Result<Finding, StageError> {
        let finding = match &self.application {
            Application::Nothing => so_far,
            Application::Http(http) => {
                let exchange = http.exchange(Shared::new(stream), target);
                let (finding, session) = stages.run(Stage::Http, exchange).await?;
                let end = (&finding, stages.deadline);
                self.keep_or_close(http, target, session, end).await;
                return Ok(finding);
            }
            Application::Talk(talk) => {
                let mut progress = Progress::default();
                let talk = talk.hold(&mut stream, &mut progress);
                match (stages.run(Stage::Talk, talk).await, progress.wanted) {
                    (Ok(()), _) => Finding::Answered,
                    (Err(error), None) => return Err(error),
                    (Err((_, failure)), Some(wanted)) => {
                        let got = quoted(&progress.received);
                        return Ok(Finding::Unanswered {
                            wanted,
                            got,
                            failure,
                        });
                    }
                }
            }
        };
        close(stream, stages.deadline).await;
        Ok(finding)
    }

    /// What becomes of a connection whose answer was judged.
    async fn keep_or_close(
        &self,
        http: &HttpProbe,
        target: SocketAddr,
        mut session: Session,
        (finding, deadline): (&Finding, Instant),
    ) {
        let passed = matches!(finding, Finding::Status { expected: true, .. });
        if http.keeps_alive() && passed && session.is_reusable().await {
            // Whoever drops the prober ends it.
            session.stream().reset_on_drop(false);
            self.kept.put(target, session);
        } else {
            close(session.into_stream(), deadline).await;
        }
    }
}

/// Deadline of a probe and the times of its stages.
struct Stages {
    deadline: Instant,
    times: StageTimes,
}

impl Stages {
    /// Runs one stage up to the deadline and takes its time.
    async fn run<T>(
        &mut self,
        stage: Stage,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, StageError> {
        let started = Instant::now();
        let result = timeout_at(self.deadline, work).await;
        let time = match stage {
            Stage::Connect => &mut self.times.connect,
            Stage::Tls => &mut self.times.tls,
            Stage::Http => &mut self.times.http,
            Stage::Talk => &mut self.times.talk,
            Stage::Command => &mut self.times.command,
        };
        *time = Some(started.elapsed());
        result
            .unwrap_or(Err(Failure::TimedOut))
            .map_err(|failure| (stage, failure))
    }
}

/// Opens a connection that ends in a reset unless [`close`] ends it.
async fn connect(target: SocketAddr) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect(target)
        .await
        .map_err(|error| io_failure(&error))?;
    let abort_on_drop = stream.set_zero_linger();
    abort_on_drop.map_err(|error| io_failure(&error))?;
    // Only a matter of speed.
    let _ = stream.set_nodelay(true);
    if is_connected_to_itself(&stream) {
        return Err(Failure::Refused);
    }
    Ok(stream)
}

/// A backend on this node whose port is in the ephemeral range, and on which nobody listens: the
/// kernel may choose that very port as source, and TCP's simultaneous open (RFC 9293 section
/// 3.5) then connects the socket to itself.
fn is_connected_to_itself(stream: &TcpStream) -> bool {
    match (stream.local_addr(), stream.peer_addr()) {
        (Ok(local), Ok(peer)) => local == peer,
        _ => false,
    }
}

/// What an error of the connection says. Works through wrappers down to the kernel's or the TLS
/// library's error.
fn io_failure(error: &io::Error) -> Failure {
    use nix::libc::{EACCES, EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPERM};
    if let Some(EMFILE | ENFILE | ENOMEM | ENOBUFS | EADDRNOTAVAIL | EACCES | EPERM) =
        error.raw_os_error()
    {
        return Failure::Local(shorten(error));
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Failure::Refused,
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe => Failure::Reset,
        io::ErrorKind::UnexpectedEof | io::ErrorKind::NotConnected => Failure::Closed,
        io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown => Failure::Unreachable,
        // The kernel's own retransmissions ended before our deadline.
        io::ErrorKind::TimedOut => Failure::TimedOut,
        _ => Failure::Protocol(shorten(error)),
    }
}

/// The text of a foreign error: it may quote what the backend sent, so its length is bounded.
fn shorten(error: &dyn std::fmt::Display) -> String {
    error.to_string().chars().take(MAX_ERROR_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use nix::libc;
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    /// Proves that errors of this node are told from those of the backend.
    #[test]
    fn kernel_errors_say_whose_fault_it_is() {
        let failure = |errno| io_failure(&io::Error::from_raw_os_error(errno));
        for local in [
            libc::EMFILE,
            libc::ENOBUFS,
            libc::EADDRNOTAVAIL,
            libc::EPERM,
        ] {
            assert!(matches!(failure(local), Failure::Local(_)), "{local}");
        }
        assert_eq!(failure(libc::ECONNREFUSED), Failure::Refused);
        assert_eq!(failure(libc::ECONNRESET), Failure::Reset);
        assert_eq!(failure(libc::EPIPE), Failure::Reset);
        assert_eq!(failure(libc::ETIMEDOUT), Failure::TimedOut);
        for unreachable in [libc::EHOSTUNREACH, libc::ENETUNREACH, libc::ENETDOWN] {
            assert_eq!(failure(unreachable), Failure::Unreachable);
        }
    }

    /// Proves that a foreign error's text is bounded, also where characters have several bytes.
    #[test]
    fn error_texts_are_bounded() {
        let text = shorten(&"é".repeat(10_000));
        assert_eq!(text.chars().count(), MAX_ERROR_TEXT);
    }

    /// Proves that a socket that TCP connected to itself is told from a backend's.
    #[tokio::test]
    async fn connection_to_itself_is_noticed() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let other = TcpStream::connect(address).await.unwrap();
        assert!(!is_connected_to_itself(&other));

        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let own = socket.local_addr().unwrap();
        let itself = socket.connect(own).await.unwrap();
        assert!(is_connected_to_itself(&itself));
    }
}

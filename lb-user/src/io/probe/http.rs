//! The HTTP stage of a probe: one request in HTTP/1.1 or HTTP/2, on a connection of its own or on
//! one that was kept.

use std::{
    error::Error,
    fmt::Display,
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::{Pin, pin},
    task::Poll,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Method, Request, Uri,
    client::conn::http1,
    header::{
        ACCEPT, AUTHORIZATION, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT,
    },
    http::uri::{Authority, PathAndQuery, Scheme},
};
use hyper_util::rt::TokioIo;
use regex::bytes::Regex;

use super::{
    ProbeSetupError,
    connection::{Connection, Shared},
    io_failure, shorten,
};
use crate::{
    config::model::{BodyMatch, HttpConfig, HttpMethod, HttpVersion, StatusRange, bearer_token},
    core::health::{Failure, Finding, complaint},
};

/// Name of HTTP/2 over TLS.
const ALPN_HTTP2: &[u8] = b"h2";

/// Longest response head that is taken, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// A body is read up to this length, in bytes; the rest is left unread.
const MAX_BODY: usize = 64 * 1024;

/// Statuses that speak of the connection and ask for another one (RFC 9110 sections 15.5.9 and
/// 15.5.20): Request Timeout, Misdirected Request.
const ABOUT_CONNECTION: [u16; 2] = [408, 421];

/// What the backend's access log shows.
const AGENT: &str = concat!("xvip/", env!("CARGO_PKG_VERSION"), " (health check)");

/// Makes HTTP requests.
#[derive(Debug)]
pub(super) struct HttpProbe {
    method: Method,
    path: PathAndQuery,
    version: HttpVersion,
    scheme: Scheme,
    host: Option<Authority>,
    /// All but `Host` and `Authorization: Bearer`.
    headers: HeaderMap,
    token_file: Option<PathBuf>,
    expect_status: Vec<StatusRange>,
    expect_body: Option<Expected>,
    keep_alive: bool,
}

/// What a body must hold.
#[derive(Debug)]
struct Expected {
    regex: Regex,
    /// For messages.
    shown: String,
}

/// A response that came to its end, or to [`MAX_BODY`].
struct Answer {
    code: u16,
    body: Vec<u8>,
    /// Nothing of it was left unread.
    is_complete: bool,
}

impl HttpProbe {
    /// Requests as `config` says, over TLS or not.
    pub(super) fn new(config: &HttpConfig, over_tls: bool) -> Result<Self, ProbeSetupError> {
        let path = PathAndQuery::try_from(config.path.as_str()).ok();
        let path = path.filter(|path| path.as_str().starts_with('/'));
        let host = |host: &String| {
            Authority::try_from(host.as_str()).map_err(|_| ProbeSetupError::Host(host.clone()))
        };
        Ok(Self {
            method: match config.method {
                HttpMethod::Get => Method::GET,
                HttpMethod::Head => Method::HEAD,
                HttpMethod::Options => Method::OPTIONS,
            },
            path: path.ok_or_else(|| ProbeSetupError::Path(config.path.clone()))?,
            version: config.version,
            scheme: if over_tls {
                Scheme::HTTPS
            } else {
                Scheme::HTTP
            },
            host: config.host.as_ref().map(host).transpose()?,
            headers: headers(config)?,
            token_file: config.bearer_token_file.clone(),
            expect_status: config.expect_status.clone(),
            expect_body: config.expect_body.as_ref().map(expected).transpose()?,
            keep_alive: config.keep_alive,
        })
    }

    /// Application protocol to offer in TLS.
    pub(super) const fn alpn(&self) -> &'static [u8] {
        match self.version {
            HttpVersion::V11 => b"http/1.1",
            HttpVersion::V2 => ALPN_HTTP2,
        }
    }

    /// Whether connections are worth keeping.
    pub(super) const fn keeps_alive(&self) -> bool {
        self.keep_alive
    }

    /// Sends the request over `stream` and reads the whole response (a body that is longer than
    /// [`MAX_BODY`] up to there): a response that breaks off is none.
    pub(super) async fn exchange(
        &self,
        stream: Shared,
        target: SocketAddr,
    ) -> Result<(Finding, Session), Failure> {
        let authorization = self.authorization().await?;
        let request = self.request(target, authorization.clone())?;
        let mut session = self.open(stream, authorization).await?;
        let answer = session.ask(request).await?;
        Ok((self.judge(&answer), session))
    }

    /// Sends the request over a kept connection. `None`: nothing came of it that says anything about
    /// the backend, and a fresh connection will tell.
    pub(super) async fn exchange_again(
        &self,
        session: &mut Session,
        target: SocketAddr,
    ) -> Option<Finding> {
        let authorization = self.authorization().await.ok()?;
        if authorization != session.authorization {
            // Who knows whom the server has taken this connection for.
            return None;
        }
        let request = self.request(target, authorization).ok()?;
        let answer = session.ask(request).await.ok()?;
        let finding = self.judge(&answer);
        let is_expected = matches!(finding, Finding::Status { expected: true, .. });
        let is_about_connection = ABOUT_CONNECTION.contains(&answer.code);
        (is_expected || !is_about_connection).then_some(finding)
    }

    async fn open(
        &self,
        stream: Shared,
        authorization: Option<HeaderValue>,
    ) -> Result<Session, Failure> {
        let lent = stream.clone();
        let (sender, connection): (_, Carrier) = match self.version {
            HttpVersion::V11 => {
                let mut builder = http1::Builder::new();
                let handshake = builder.max_buf_size(MAX_HEAD).handshake(TokioIo::new(lent));
                let opened = handshake.await;
                let (sender, connection) = opened.map_err(|error| http1_failure(&error))?;
                let connection = async { drop(connection.await) };
                (Sender::Http1(sender), Box::pin(connection))
            }
            HttpVersion::V2 => {
                let agreed = stream.application_protocol();
                if self.scheme == Scheme::HTTPS && agreed.as_deref() != Some(ALPN_HTTP2) {
                    return Err(Failure::Protocol("HTTP/2 is not spoken".to_owned()));
                }
                let mut builder = h2::client::Builder::new();
                let builder = builder.enable_push(false);
                let builder = builder.max_header_list_size(MAX_HEAD as u32);
                let opened = builder.handshake::<_, Bytes>(lent).await;
                let (sender, connection) = opened.map_err(|error| http2_failure(&error))?;
                let connection = async { drop(connection.await) };
                (Sender::Http2(sender), Box::pin(connection))
            }
        };
        Ok(Session {
            stream,
            sender,
            connection: Some(connection),
            authorization,
            is_read: true,
        })
    }

    fn judge(&self, answer: &Answer) -> Finding {
        let code = answer.code;
        let note = if self.expect_status.iter().any(|range| range.contains(code)) {
            let missing = |expected: &&Expected| !expected.regex.is_match(&answer.body);
            let missing = self.expect_body.as_ref().filter(missing);
            let Some(expected) = missing else {
                return Finding::Status {
                    code,
                    expected: true,
                    note: None,
                };
            };
            Some(format!("{} is not in its body", expected.shown))
        } else {
            complaint(&answer.body)
        };
        Finding::Status {
            code,
            expected: false,
            note,
        }
    }

    /// The token as it is now: who issues it replaces the file.
    async fn authorization(&self) -> Result<Option<HeaderValue>, Failure> {
        let Some(path) = self.token_file.clone() else {
            return Ok(None);
        };
        let fault = |problem: &dyn Display| {
            let path = self
                .token_file
                .as_deref()
                .unwrap_or(std::path::Path::new(""));
            let path = path.display();
            Failure::Local(shorten(&format_args!(
                "bearer_token_file {path}: {problem}"
            )))
        };
        // A file system that hangs must not hold up other probes.
        let read = tokio::task::spawn_blocking(move || std::fs::read(path)).await;
        let content = read.map_err(|error| fault(&error))?;
        let content = content.map_err(|error| fault(&error))?;
        let token = bearer_token(&content).map_err(|problem| fault(&problem))?;
        let value = HeaderValue::try_from(format!("Bearer {token}"));
        let mut value = value.map_err(|error| fault(&error))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    fn request(
        &self,
        target: SocketAddr,
        authorization: Option<HeaderValue>,
    ) -> Result<Request<()>, Failure> {
        let local = |error: &dyn Display| Failure::Local(shorten(error));
        let authority = match &self.host {
            Some(host) => host.clone(),
            None => Authority::try_from(target.to_string()).map_err(|error| local(&error))?,
        };
        let mut request = Request::new(());
        *request.method_mut() = self.method.clone();
        request.headers_mut().clone_from(&self.headers);
        if let Some(authorization) = authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization);
        }
        match self.version {
            HttpVersion::V11 => {
                let host = HeaderValue::try_from(authority.as_str());
                let host = host.map_err(|error| local(&error))?;
                request.headers_mut().insert(HOST, host);
                if !self.keep_alive {
                    let close = HeaderValue::from_static("close");
                    request.headers_mut().insert(CONNECTION, close);
                }
                *request.uri_mut() = Uri::from(self.path.clone());
            }
            HttpVersion::V2 => {
                let uri = Uri::builder()
                    .scheme(self.scheme.clone())
                    .authority(authority)
                    .path_and_query(self.path.clone());
                *request.uri_mut() = uri.build().map_err(|error| local(&error))?;
            }
        }
        Ok(request)
    }
}

/// The configured headers, and ours where they say nothing.
fn headers(config: &HttpConfig) -> Result<HeaderMap, ProbeSetupError> {
    let mut headers = HeaderMap::new();
    for (name, value) in &config.headers {
        let wrong = || ProbeSetupError::Header(name.clone());
        let name = HeaderName::try_from(name).map_err(|_| wrong())?;
        headers.append(name, HeaderValue::try_from(value).map_err(|_| wrong())?);
    }
    for (name, value) in [(USER_AGENT, AGENT), (ACCEPT, "*/*")] {
        let own = HeaderValue::from_static(value);
        headers.entry(name).or_insert(own);
    }
    Ok(headers)
}

fn expected(wanted: &BodyMatch) -> Result<Expected, ProbeSetupError> {
    let regex = match wanted {
        BodyMatch::Text(text) => Regex::new(&regex::escape(text)),
        BodyMatch::Regex(regex) => Regex::new(regex),
    };
    Ok(Expected {
        regex: regex.map_err(|source| ProbeSetupError::Regex(Box::new(source)))?,
        shown: shorten(wanted),
    })
}

/// An HTTP connection: with a request under way, or kept for the next one.
pub(super) struct Session {
    stream: Shared,
    sender: Sender,
    /// What moves the bytes; `None`: it has come to its end.
    connection: Option<Carrier>,
    /// What the server was told with its request.
    authorization: Option<HeaderValue>,
    /// The last response was read to its end.
    is_read: bool,
}

type Carrier = Pin<Box<dyn Future<Output = ()> + Send>>;

enum Sender {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(h2::client::SendRequest<Bytes>),
}

impl Session {
    /// The connection below.
    pub(super) const fn stream(&self) -> &Shared {
        &self.stream
    }

    /// The connection below, without the HTTP.
    pub(super) fn into_stream(self) -> Shared {
        self.stream
    }

    async fn ask(&mut self, request: Request<()>) -> Result<Answer, Failure> {
        let connection = &mut self.connection;
        let answer = match &mut self.sender {
            Sender::Http1(sender) => carried(over_http1(sender, request), connection)
                .await
                .map_err(|error| http1_failure(&error)),
            Sender::Http2(sender) => carried(over_http2(sender, request), connection)
                .await
                .map_err(|error| http2_failure(&error)),
        }?;
        self.is_read = answer.is_complete;
        Ok(answer)
    }

    /// Whether another request can be sent, as far as one can see without waiting.
    pub(super) async fn is_reusable(&mut self) -> bool {
        let Some(connection) = self.connection.as_mut().filter(|_| self.is_read) else {
            return false;
        };
        // Lets it see the end that the server may have announced.
        let is_over = poll_fn(|cx| Poll::Ready(connection.as_mut().poll(cx).is_ready())).await;
        if is_over {
            self.connection = None;
            return false;
        }
        match &self.sender {
            Sender::Http1(sender) => sender.is_ready(),
            Sender::Http2(_) => true,
        }
    }
}

/// Runs `exchange` together with the `connection` that carries it. That the connection is over does
/// not end the exchange: what came before is still to be had.
async fn carried<T>(exchange: impl Future<Output = T>, connection: &mut Option<Carrier>) -> T {
    let mut exchange = pin!(exchange);
    if let Some(carrier) = connection {
        tokio::select! {
            biased;
            answer = &mut exchange => return answer,
            () = carrier => {}
        }
        *connection = None;
    }
    exchange.await
}

async fn over_http1(
    sender: &mut http1::SendRequest<Empty<Bytes>>,
    request: Request<()>,
) -> Result<Answer, hyper::Error> {
    let request = request.map(|()| Empty::<Bytes>::new());
    let response = sender.send_request(request).await?;
    let code = response.status().as_u16();
    let mut rest = response.into_body();
    let (mut body, mut is_complete) = (Vec::new(), false);
    while body.len() < MAX_BODY {
        let Some(frame) = rest.frame().await else {
            is_complete = true;
            break;
        };
        let data = frame?.into_data().unwrap_or_default();
        body.extend(data.iter().take(MAX_BODY - body.len()));
    }
    Ok(Answer {
        code,
        body,
        is_complete,
    })
}

async fn over_http2(
    sender: &mut h2::client::SendRequest<Bytes>,
    request: Request<()>,
) -> Result<Answer, h2::Error> {
    let mut sender = sender.clone().ready().await?;
    let (response, _) = sender.send_request(request, true)?;
    let response = response.await?;
    let code = response.status().as_u16();
    let mut rest = response.into_body();
    let (mut body, mut is_complete) = (Vec::new(), false);
    while body.len() < MAX_BODY {
        let Some(data) = rest.data().await.transpose()? else {
            is_complete = true;
            break;
        };
        rest.flow_control().release_capacity(data.len())?;
        body.extend(data.iter().take(MAX_BODY - body.len()));
    }
    Ok(Answer {
        code,
        body,
        is_complete,
    })
}

/// What an error of the HTTP library says: the kernel's or the TLS library's error below it, if
/// there is one.
fn http1_failure(error: &hyper::Error) -> Failure {
    let below = std::iter::successors(error.source(), |error| (*error).source());
    let mut io_errors = below.filter_map(|error| error.downcast_ref::<io::Error>());
    if let Some(error) = io_errors.next() {
        return io_failure(error);
    }
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        return Failure::Closed;
    }
    Failure::Protocol(shorten(error))
}

fn http2_failure(error: &h2::Error) -> Failure {
    match error.get_io() {
        Some(error) => io_failure(error),
        None => Failure::Protocol(shorten(error)),
    }
}

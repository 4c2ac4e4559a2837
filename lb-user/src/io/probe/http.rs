//! The HTTP stage of a probe: one request in HTTP/1.1 or HTTP/2.

use std::{
    error::Error, fmt::Display, future::Future, io, net::SocketAddr, path::PathBuf, pin::pin,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Method, Request, Response, Uri,
    body::Incoming,
    client::conn::http1,
    header::{
        ACCEPT, AUTHORIZATION, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT,
    },
    http::uri::{Authority, PathAndQuery, Scheme},
};
use hyper_util::rt::TokioIo;
use regex::bytes::Regex;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{ProbeSetupError, io_failure, shorten};
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
        })
    }

    /// Application protocol to offer in TLS.
    pub(super) const fn alpn(&self) -> &'static [u8] {
        match self.version {
            HttpVersion::V11 => b"http/1.1",
            HttpVersion::V2 => ALPN_HTTP2,
        }
    }

    /// Sends the request over `stream` and reads the whole response (a body that is longer than
    /// [`MAX_BODY`] up to there): a response that breaks off is none. `agreed` is the application
    /// protocol of the TLS handshake.
    pub(super) async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        target: SocketAddr,
        agreed: Option<&[u8]>,
    ) -> Result<Finding, Failure> {
        let authorization = self.authorization().await?;
        let request = self.request(target, authorization)?;
        let answer = match self.version {
            HttpVersion::V11 => over_http1(stream, request).await?,
            HttpVersion::V2 => {
                if self.scheme == Scheme::HTTPS && agreed != Some(ALPN_HTTP2) {
                    return Err(Failure::Protocol("HTTP/2 is not spoken".to_owned()));
                }
                over_http2(stream, request).await?
            }
        };
        Ok(self.judge(&answer))
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
                let close = HeaderValue::from_static("close");
                request.headers_mut().insert(CONNECTION, close);
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

/// Runs `exchange` together with the `connection` that carries it. That the connection is over does
/// not end the exchange: what came before is still to be had.
async fn carried<T>(exchange: impl Future<Output = T>, connection: impl Future) -> T {
    let (mut exchange, mut connection) = (pin!(exchange), pin!(connection));
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        _ = &mut connection => exchange.await,
    }
}

async fn over_http1<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    request: Request<()>,
) -> Result<Answer, Failure> {
    let connected = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await;
    let (mut sender, connection) = connected.map_err(|error| http1_failure(&error))?;
    let exchange = async {
        let request = request.map(|()| Empty::<Bytes>::new());
        let response = sender.send_request(request).await?;
        let code = response.status().as_u16();
        let body = http1_body(response).await?;
        Ok(Answer { code, body })
    };
    let answer = carried(exchange, connection).await;
    answer.map_err(|error: hyper::Error| http1_failure(&error))
}

async fn http1_body(response: Response<Incoming>) -> Result<Vec<u8>, hyper::Error> {
    let mut body = response.into_body();
    let mut read = Vec::new();
    while read.len() < MAX_BODY {
        let Some(frame) = body.frame().await else {
            break;
        };
        let data = frame?.into_data().unwrap_or_default();
        read.extend(data.iter().take(MAX_BODY - read.len()));
    }
    Ok(read)
}

async fn over_http2<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    request: Request<()>,
) -> Result<Answer, Failure> {
    let connected = h2::client::Builder::new()
        .enable_push(false)
        .max_header_list_size(MAX_HEAD as u32)
        .handshake::<_, Bytes>(stream)
        .await;
    let (sender, connection) = connected.map_err(|error| http2_failure(&error))?;
    let exchange = async {
        let (response, _) = sender.ready().await?.send_request(request, true)?;
        let response = response.await?;
        let code = response.status().as_u16();
        let mut body = response.into_body();
        let mut read = Vec::new();
        while read.len() < MAX_BODY {
            let Some(data) = body.data().await.transpose()? else {
                break;
            };
            body.flow_control().release_capacity(data.len())?;
            read.extend(data.iter().take(MAX_BODY - read.len()));
        }
        Ok(Answer { code, body: read })
    };
    let answer = carried(exchange, connection).await;
    answer.map_err(|error: h2::Error| http2_failure(&error))
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

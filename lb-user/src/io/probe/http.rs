//! The HTTP stage of a probe: one HTTP/1.1 GET.

use std::{error::Error, io, net::SocketAddr, pin::pin};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1,
    header::{ACCEPT, CONNECTION, HOST, HeaderValue, USER_AGENT},
    http::uri::PathAndQuery,
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{ProbeSetupError, io_failure, shorten};
use crate::{
    config::model::HttpConfig,
    core::health::{Failure, Finding},
};

/// Application protocol to offer in TLS.
pub(super) const ALPN: &[u8] = b"http/1.1";

/// Longest response head that is taken, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// A body is read up to this length, in bytes; a longer one is left unread.
const MAX_BODY: usize = 64 * 1024;

/// What the backend's access log shows.
const AGENT: &str = concat!("xvip/", env!("CARGO_PKG_VERSION"), " (health check)");

/// Makes HTTP requests.
#[derive(Debug)]
pub(super) struct HttpProbe {
    path: PathAndQuery,
    host: Option<HeaderValue>,
    expect_status: Vec<u16>,
}

impl HttpProbe {
    /// Requests as `config` says.
    pub(super) fn new(config: &HttpConfig) -> Result<Self, ProbeSetupError> {
        let path = PathAndQuery::try_from(config.path.as_str()).ok();
        let path = path.filter(|path| path.as_str().starts_with('/'));
        let host = |host: &String| {
            HeaderValue::try_from(host).map_err(|_| ProbeSetupError::Host(host.clone()))
        };
        Ok(Self {
            path: path.ok_or_else(|| ProbeSetupError::Path(config.path.clone()))?,
            host: config.host.as_ref().map(host).transpose()?,
            expect_status: config.expect_status.clone(),
        })
    }

    /// Sends the request over `stream` and reads the whole response (a body that is longer than
    /// [`MAX_BODY`] up to there): a response that breaks off is none.
    pub(super) async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        target: SocketAddr,
    ) -> Result<Finding, Failure> {
        let request = self.request(target)?;
        let connected = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await;
        let (mut sender, connection) = connected.map_err(|error| http_failure(&error))?;
        let mut connection = pin!(connection);
        let mut exchange = pin!(async {
            let response = sender.send_request(request).await?;
            let code = response.status().as_u16();
            read_body(response).await?;
            Ok(code)
        });
        let code = tokio::select! {
            biased;
            code = &mut exchange => code,
            // The connection is over; what came before is still to be had.
            _ = &mut connection => exchange.await,
        };
        let code = code.map_err(|error: hyper::Error| http_failure(&error))?;
        let expected = self.expect_status.contains(&code);
        Ok(Finding::Status { code, expected })
    }

    fn request(&self, target: SocketAddr) -> Result<Request<Empty<Bytes>>, Failure> {
        let local = |error: &dyn std::fmt::Display| Failure::Local(shorten(error));
        let host = match &self.host {
            Some(host) => host.clone(),
            None => HeaderValue::try_from(target.to_string()).map_err(|error| local(&error))?,
        };
        Request::get(self.path.as_str())
            .header(HOST, host)
            .header(USER_AGENT, AGENT)
            .header(ACCEPT, "*/*")
            .header(CONNECTION, "close")
            .body(Empty::new())
            .map_err(|error| local(&error))
    }
}

async fn read_body(response: Response<Incoming>) -> Result<(), hyper::Error> {
    let mut body = response.into_body();
    let mut length = 0usize;
    while length <= MAX_BODY {
        let Some(frame) = body.frame().await else {
            break;
        };
        let data = frame?.into_data().map_or(0, |data| data.len());
        length = length.saturating_add(data);
    }
    Ok(())
}

/// What an error of the HTTP library says: the kernel's or the TLS library's error below it, if
/// there is one.
fn http_failure(error: &hyper::Error) -> Failure {
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

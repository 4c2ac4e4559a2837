//! The connections of probes, over TCP and TLS, and how they end.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    time::{Instant, timeout_at},
};

/// A stream over a TCP connection.
pub(super) trait Connection: AsyncRead + AsyncWrite + Unpin {
    /// The connection ends in a reset when it is dropped, or in order. No harm if that cannot be
    /// set.
    fn reset_on_drop(&self, reset: bool);

    /// The application protocol that a TLS handshake agreed on.
    fn application_protocol(&self) -> Option<Vec<u8>> {
        None
    }
}

impl Connection for TcpStream {
    fn reset_on_drop(&self, reset: bool) {
        let _ = SockRef::from(self).set_linger(reset.then_some(Duration::ZERO));
    }
}

impl Connection for tokio_rustls::client::TlsStream<TcpStream> {
    fn reset_on_drop(&self, reset: bool) {
        self.get_ref().0.reset_on_drop(reset);
    }

    fn application_protocol(&self) -> Option<Vec<u8>> {
        self.get_ref().1.alpn_protocol().map(<[u8]>::to_vec)
    }
}

/// Closes in order, as far as that is possible before `deadline`; else the connection is reset.
pub(super) async fn close(mut stream: impl Connection, deadline: Instant) {
    if let Ok(Ok(())) = timeout_at(deadline, stream.shutdown()).await {
        stream.reset_on_drop(false);
    }
}

/// A connection that its prober lends to an HTTP library, which keeps it, and still can end. They
/// never use it at the same time.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<Box<dyn Connection + Send>>>);

impl Shared {
    /// Shares `stream`.
    pub(super) fn new(stream: impl Connection + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Box::new(stream))))
    }

    fn lock(&self) -> MutexGuard<'_, Box<dyn Connection + Send>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection for Shared {
    fn reset_on_drop(&self, reset: bool) {
        self.lock().reset_on_drop(reset);
    }

    fn application_protocol(&self) -> Option<Vec<u8>> {
        self.lock().application_protocol()
    }
}

impl AsyncRead for Shared {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.lock()).poll_read(cx, buf)
    }
}

impl AsyncWrite for Shared {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut **self.lock()).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.lock()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.lock()).poll_shutdown(cx)
    }
}

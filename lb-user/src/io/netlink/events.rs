//! The kernel's announcements of changes, in their order.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    os::fd::AsFd,
    task::{Context, Poll, ready},
};

use bytes::BufMut;
use netlink_sys::{AsyncSocket, Socket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt},
};

use super::{
    decode::{self, Messages},
    error::NetlinkError,
    socket,
    types::NetEvent,
};

/// `RTNLGRP_*` of `linux/rtnetlink.h`: link, neighbours, IPv4 addresses and routes, IPv6
/// addresses and routes.
const GROUPS: [u32; 6] = [1, 3, 5, 7, 9, 11];

/// Room in bytes for a burst of events, such as thousands of routes that change at once.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;

/// A stream of [`NetEvent`]s of the network namespace it was opened in.
pub struct NetEvents {
    socket: TokioSocket,
    queue: VecDeque<NetEvent>,
}

impl NetEvents {
    /// Subscribes. Open it before the first reading of the state: what changes meanwhile is then
    /// seen here.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O enabled.
    pub fn open() -> Result<Self, NetlinkError> {
        Self::open_with_buffer(RECEIVE_BUFFER)
    }

    /// [`open`](Self::open) with room for `bytes` of unread events. The kernel rounds up to a
    /// few KiB.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O enabled.
    pub fn open_with_buffer(bytes: usize) -> Result<Self, NetlinkError> {
        let mut socket =
            TokioSocket::new(NETLINK_ROUTE).map_err(NetlinkError::socket("open NETLINK_ROUTE"))?;
        let inner = socket.socket_mut();
        set_receive_buffer(inner, bytes)?;
        inner
            .bind(&SocketAddr::new(0, 0))
            .map_err(NetlinkError::socket("bind"))?;
        for group in GROUPS {
            inner
                .add_membership(group)
                .map_err(NetlinkError::socket("join multicast group"))?;
        }
        Ok(Self {
            socket,
            queue: VecDeque::new(),
        })
    }

    /// The next event. Cancel safe. After an error the stream must be opened anew and the state
    /// read again.
    pub async fn next(&mut self) -> Result<NetEvent, NetlinkError> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Ok(event);
            }
            let received = poll_fn(|context| self.poll_receive(context)).await;
            take(&mut self.queue, received)?;
        }
    }

    /// A datagram; `None` if it is not from the kernel. A truncated one breaks the framing of
    /// its last message, which is a loss like others.
    fn poll_receive(&self, context: &mut Context<'_>) -> Poll<io::Result<Option<Vec<u8>>>> {
        let mut datagram = Vec::with_capacity(socket::DATAGRAM).limit(socket::DATAGRAM);
        let sender = ready!(self.socket.poll_recv_from(context, &mut datagram))?;
        Poll::Ready(Ok(
            (sender.port_number() == 0).then(|| datagram.into_inner())
        ))
    }

    /// The next event if one has already arrived.
    pub fn try_next(&mut self) -> Result<Option<NetEvent>, NetlinkError> {
        while self.queue.is_empty() {
            match socket::receive(self.socket.socket_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                result => take(&mut self.queue, result)?,
            }
        }
        Ok(self.queue.pop_front())
    }
}

/// Queues what was received; a loss becomes [`NetEvent::Overrun`].
fn take(
    queue: &mut VecDeque<NetEvent>,
    received: io::Result<Option<Vec<u8>>>,
) -> Result<(), NetlinkError> {
    match received {
        Ok(Some(datagram)) => queue_events(queue, &datagram),
        Ok(None) => {}
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
        Err(error) if is_loss(&error) => queue.push_back(NetEvent::Overrun),
        Err(source) => {
            return Err(NetlinkError::Socket {
                operation: "receive events",
                source,
            });
        }
    }
    Ok(())
}

/// Events that do not parse are lost events: reading everything again is what mends both.
fn queue_events(queue: &mut VecDeque<NetEvent>, datagram: &[u8]) {
    for message in Messages::new(datagram) {
        match message.and_then(decode::event) {
            // A burst of routes says no more than one.
            Ok(Some(NetEvent::Routes)) if queue.back() == Some(&NetEvent::Routes) => {}
            Ok(Some(event)) => queue.push_back(event),
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%error, "a netlink event does not parse");
                queue.push_back(NetEvent::Overrun);
            }
        }
    }
}

fn is_loss(error: &io::Error) -> bool {
    [Errno::ENOBUFS, Errno::EMSGSIZE]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

/// Past the administrator's limit where xvip may, else up to it.
fn set_receive_buffer(socket: &Socket, bytes: usize) -> Result<(), NetlinkError> {
    let fd = socket.as_fd();
    setsockopt(&fd, sockopt::RcvBufForce, &bytes)
        .or_else(|_| setsockopt(&fd, sockopt::RcvBuf, &bytes))
        .map_err(io::Error::from)
        .map_err(NetlinkError::socket("SO_RCVBUF"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lost events, truncated ones and ones that do not parse all ask for a new reading.
    #[test]
    fn every_loss_is_an_overrun() {
        for received in [
            Err(Errno::ENOBUFS.into()),
            Err(Errno::EMSGSIZE.into()),
            Ok(Some(vec![0xff; 20])),
        ] {
            let mut queue = VecDeque::new();
            take(&mut queue, received).unwrap();
            assert_eq!(queue, [NetEvent::Overrun]);
        }
    }

    /// A failing socket is an error, not an endless stream of overruns.
    #[test]
    fn a_broken_socket_is_an_error() {
        assert!(take(&mut VecDeque::new(), Err(Errno::EBADF.into())).is_err());
    }
}

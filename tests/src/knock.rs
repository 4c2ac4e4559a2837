//! One TCP handshake: is somebody there, is it refused, or does nobody answer?

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::Result;
use socket2::{Domain, Socket, Type};

use crate::topology::{Node, any_address};

/// What a client hears that connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A connection.
    Open,
    /// A reset: `ECONNREFUSED`.
    Refused,
    /// Nothing.
    Silence,
}

/// An answer and how long it took.
#[derive(Clone, Copy, Debug)]
pub struct Knock {
    /// What was heard.
    pub answer: Answer,
    /// From `connect()` to there.
    pub took: Duration,
}

impl fmt::Display for Knock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} after {:?}", self.answer, self.took)
    }
}

/// Connects from a node, and closes at once. Nothing within `patience` is silence; any other
/// failure than a refusal is an error.
pub fn knock(node: &Node, target: SocketAddr, patience: Duration) -> Result<Knock> {
    knock_from(node, any_address(target.ip()), target, patience)
}

/// The same from one of the node's addresses.
pub fn knock_from(
    node: &Node,
    source: IpAddr,
    target: SocketAddr,
    patience: Duration,
) -> Result<Knock> {
    node.namespace().enter(|| {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        let begin = Instant::now();
        let connected = socket.connect_timeout(&target.into(), patience);
        let took = begin.elapsed();
        let answer = match connected {
            Ok(()) => Answer::Open,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Answer::Refused,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Answer::Silence,
            Err(error) => return Err(error.into()),
        };
        Ok(Knock { answer, took })
    })
}

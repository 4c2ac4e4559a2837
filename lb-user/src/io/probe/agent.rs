//! Asks a backend's agent: one connection, perhaps a line that is sent, one line that comes.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout_at},
};

use super::{connect, connection::close};
use crate::core::health::agent::AgentReport;

/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 1024;

/// What the agent at `target` says within `limit`; `None`: nothing that can be understood.
pub async fn ask(target: SocketAddr, send: &str, limit: Duration) -> Option<AgentReport> {
    let deadline = Instant::now() + limit;
    let mut answer = Vec::new();
    let exchange = async {
        let mut stream = connect(target).await.ok()?;
        stream.write_all(send.as_bytes()).await.ok()?;
        while !answer.contains(&b'\n') && answer.len() < MAX_ANSWER {
            if stream.read_buf(&mut answer).await.ok()? == 0 {
                break;
            }
        }
        Some(stream)
    };
    let stream = timeout_at(deadline, exchange).await.ok().flatten()?;
    close(stream, deadline).await;
    AgentReport::parse(&answer)
}

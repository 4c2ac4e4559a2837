//! The conversation stage of a probe: bytes that are sent, and bytes that must come.

use regex::bytes::Regex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{ProbeSetupError, io_failure};
use crate::{
    config::model::{Pattern, Step},
    core::health::{Failure, quoted},
};

/// What is received between two sendings is kept up to this length, in bytes.
const MAX_RECEIVED: usize = 64 * 1024;

/// Holds conversations.
#[derive(Debug)]
pub(super) struct TalkProbe {
    steps: Vec<Prepared>,
}

/// A step, ready to be made.
#[derive(Debug)]
enum Prepared {
    Send(Vec<u8>),
    Expect {
        regex: Regex,
        /// For messages.
        shown: String,
    },
}

/// How far a conversation got.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// What is waited for, for messages.
    pub(super) wanted: Option<String>,
    /// What has come since the last sending.
    pub(super) received: Vec<u8>,
}

impl TalkProbe {
    /// A conversation of `steps`; `None` if there are none.
    pub(super) fn new(steps: &[Step]) -> Result<Option<Self>, ProbeSetupError> {
        let steps: Vec<_> = steps.iter().map(prepare).collect::<Result<_, _>>()?;
        Ok((!steps.is_empty()).then_some(Self { steps }))
    }

    /// Makes the steps one after the other. An expectation looks at everything that has come since
    /// the last sending, and waits for more until it is met.
    pub(super) async fn hold<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        for step in &self.steps {
            match step {
                Prepared::Send(bytes) => {
                    progress.received.clear();
                    let sent = stream.write_all(bytes).await;
                    sent.map_err(|error| io_failure(&error))?;
                    let flushed = stream.flush().await;
                    flushed.map_err(|error| io_failure(&error))?;
                }
                Prepared::Expect { regex, shown } => {
                    progress.wanted = Some(shown.clone());
                    receive(stream, regex, &mut progress.received).await?;
                    progress.wanted = None;
                }
            }
        }
        Ok(())
    }
}

async fn receive<S: AsyncRead + Unpin>(
    stream: &mut S,
    regex: &Regex,
    received: &mut Vec<u8>,
) -> Result<(), Failure> {
    while !regex.is_match(received) {
        let room = MAX_RECEIVED.saturating_sub(received.len());
        if room == 0 {
            return Err(Failure::Protocol("64 KiB of something else".to_owned()));
        }
        let read = stream.take(room as u64).read_buf(received).await;
        if read.map_err(|error| io_failure(&error))? == 0 {
            return Err(Failure::Closed);
        }
    }
    Ok(())
}

fn prepare(step: &Step) -> Result<Prepared, ProbeSetupError> {
    let pattern = match step {
        Step::Send(bytes) => return Ok(Prepared::Send(bytes.clone())),
        Step::Expect(pattern) => pattern,
    };
    let (expression, shown) = match pattern {
        Pattern::Bytes(bytes) => (literal(bytes), quoted(bytes)),
        Pattern::Regex(regex) => (regex.clone(), format!("/{regex}/")),
    };
    let regex = Regex::new(&expression);
    Ok(Prepared::Expect {
        regex: regex.map_err(|source| ProbeSetupError::Regex(Box::new(source)))?,
        shown,
    })
}

/// The expression for just these bytes.
fn literal(bytes: &[u8]) -> String {
    let byte = |byte: &u8| format!("\\x{byte:02x}");
    format!("(?-u){}", bytes.iter().map(byte).collect::<String>())
}

//! The socket through which verbs reach a running lab: one line of JSON each way.

use std::{
    fs,
    io::{BufRead, BufReader, ErrorKind, Write},
    os::unix::net::UnixStream as BlockingStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader as AsyncBufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    task::AbortHandle,
    time::timeout,
};

use super::Verb;

/// Where a lab is, unless somebody wants several.
const DIRECTORY: &str = "/run/xvip-lab";

/// What a verb came to: words for whoever asked.
type Outcome = Result<String, String>;

/// A verb, and where its outcome goes.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) verb: Verb,
    pub(super) reply: oneshot::Sender<Outcome>,
}

/// The control socket of a lab, from either end.
#[derive(Clone, Debug)]
pub struct Control {
    socket: PathBuf,
}

impl Control {
    /// The socket in a directory, or in the default one.
    pub fn new(directory: Option<&Path>) -> Self {
        let directory = directory.unwrap_or(Path::new(DIRECTORY));
        Self {
            socket: directory.join("control.sock"),
        }
    }

    /// Gives a verb to the running lab and waits for what it says.
    pub fn ask(&self, verb: &Verb) -> Result<String> {
        let stream = BlockingStream::connect(&self.socket).map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                anyhow!("no lab runs here: start one with `cargo xtask run`")
            }
            _ => anyhow!("cannot reach the lab at {}: {error}", self.socket.display()),
        })?;
        let mut line = serde_json::to_string(verb)?;
        line.push('\n');
        (&stream).write_all(line.as_bytes())?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        if answer.is_empty() {
            bail!("the lab ended before it answered");
        }
        serde_json::from_str::<Outcome>(&answer)?.map_err(anyhow::Error::msg)
    }

    /// Opens the socket for a new lab; an error if one runs already.
    pub(super) async fn listen(&self) -> Result<Orders> {
        if UnixStream::connect(&self.socket).await.is_ok() {
            bail!("a lab runs already: `cargo xtask lab stop` ends it");
        }
        let directory = self
            .socket
            .parent()
            .context("the socket has no directory")?;
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        crate::kernel::absent_is_fine(fs::remove_file(&self.socket))
            .with_context(|| format!("cannot remove {}", self.socket.display()))?;
        let listener = UnixListener::bind(&self.socket)
            .with_context(|| format!("cannot listen at {}", self.socket.display()))?;
        let (sender, receiver) = mpsc::channel(1);
        let socket = Remove(self.socket.clone());
        let accepting = tokio::spawn(async move {
            let _socket = socket;
            while let Ok((stream, _)) = listener.accept().await {
                let sender = sender.clone();
                // An asker that leaves early harms nobody.
                tokio::spawn(async move { serve(stream, sender).await.ok() });
            }
        });
        Ok(Orders {
            receiver,
            accepting: accepting.abort_handle(),
        })
    }
}

/// The lab's end of the socket.
#[derive(Debug)]
pub(super) struct Orders {
    receiver: mpsc::Receiver<Order>,
    accepting: AbortHandle,
}

impl Orders {
    /// The next verb.
    pub(super) async fn next(&mut self) -> Option<Order> {
        self.receiver.recv().await
    }

    /// Takes no more verbs, and waits until the last answers are written.
    pub(super) async fn close(mut self) {
        self.accepting.abort();
        // Every conversation holds a sender; one that goes on without end is left alone.
        let ended = async { while self.receiver.recv().await.is_some() {} };
        let _ = timeout(Duration::from_secs(1), ended).await;
    }
}

/// Removes the socket when the runtime ends.
struct Remove(PathBuf);

impl Drop for Remove {
    fn drop(&mut self) {
        // Best effort: the next lab removes it as well.
        let _ = fs::remove_file(&self.0);
    }
}

async fn serve(mut stream: UnixStream, orders: mpsc::Sender<Order>) -> Result<()> {
    let (read, mut write) = stream.split();
    let mut line = String::new();
    AsyncBufReader::new(read).read_line(&mut line).await?;
    let outcome = match serde_json::from_str(&line) {
        Ok(verb) => {
            let (reply, outcome) = oneshot::channel();
            orders.send(Order { verb, reply }).await?;
            outcome.await?
        }
        Err(error) => Err(format!("the lab does not understand this: {error}")),
    };
    let mut answer = serde_json::to_string(&outcome)?;
    answer.push('\n');
    write.write_all(answer.as_bytes()).await?;
    Ok(())
}

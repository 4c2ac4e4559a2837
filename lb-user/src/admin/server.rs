//! The controller's end of the admin interface: a Unix socket that takes one JSON request per
//! line and gives one JSON answer per line.
//!
//! The server knows the protocol and nothing else: requests go to the controller over a channel,
//! each with the place where its answer goes. Whatever a client sends or fails to send costs
//! bounded memory and time.

use std::{
    convert::Infallible,
    fs::{self, Permissions},
    io,
    os::{fd::AsFd as _, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout},
    sys::stat::{Mode, fchmod},
};
use serde::Serialize;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    lock::InstanceLock,
    model::{Command, CommandError, Reply, Response},
};

/// Owner and group may talk to the controller.
const SOCKET_MODE: u32 = 0o660;

/// Connections that wait for `accept`.
const BACKLOG: i32 = 16;

/// Pause after a failed `accept` (out of file descriptors, say), which would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A request on its way to the controller.
#[derive(Debug)]
pub struct AdminRequest {
    /// What is asked.
    pub command: Command,
    /// Where the answer goes. The asker may be gone: a failed send is nothing.
    pub reply: oneshot::Sender<Result<Reply, CommandError>>,
    /// Where lines go that follow an answer of [`Reply::Stream`], any number of them in one piece.
    /// The answer ends when this end is dropped; it closes when the asker is gone.
    pub lines: Lines,
}

/// Lines on their way to a client.
pub type Lines = mpsc::Sender<Vec<u8>>;

/// Pieces of lines that wait for a slow client.
const WAITING_LINES: usize = 2;

/// What a client may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Clients that are served at a time.
    pub clients: usize,
    /// Bytes of a request, without the line's end.
    pub request_bytes: u32,
    /// Time for a whole request to arrive, and for a whole answer to be taken.
    pub client_time: Duration,
    /// Time for the controller to answer.
    pub controller_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: 16,
            request_bytes: 4096,
            client_time: Duration::from_secs(5),
            controller_time: Duration::from_secs(3),
        }
    }
}

/// Why the socket could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the admin socket {}: {source}", path.display())]
pub struct BindError {
    /// The socket.
    pub path: PathBuf,
    /// What the kernel said.
    pub source: io::Error,
}

impl BindError {
    /// Whether more privilege would have helped.
    pub fn is_permission(&self) -> bool {
        super::is_permission(&self.source)
    }
}

/// The bound socket. Dropping it removes the socket's file, then gives up the instance.
#[derive(Debug)]
pub struct AdminServer {
    listener: UnixListener,
    path: PathBuf,
    limits: Limits,
    /// The socket's file is this process's own as long as it holds the lock.
    _lock: InstanceLock,
}

impl AdminServer {
    /// Opens the socket of the instance that `lock` holds, in place of one that a dead process
    /// left. Needs a tokio runtime.
    pub fn bind(lock: InstanceLock, limits: Limits) -> Result<Self, BindError> {
        let path = lock.paths().socket();
        let open = || {
            remove_stale(&path)?;
            let socket = bind_restricted(&path)?;
            // The umask may have taken bits away from the mode; it never adds any.
            fs::set_permissions(&path, Permissions::from_mode(SOCKET_MODE))?;
            socket.listen(BACKLOG)?;
            socket.set_nonblocking(true)?;
            UnixListener::from_std(socket.into())
        };
        match open() {
            Ok(listener) => Ok(Self {
                listener,
                path,
                limits,
                _lock: lock,
            }),
            Err(source) => Err(BindError { path, source }),
        }
    }

    /// The socket's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves clients for ever; dropping the future ends it and every connection.
    pub async fn serve(&self, requests: mpsc::Sender<AdminRequest>) -> Infallible {
        let places = Arc::new(Semaphore::new(self.limits.clients));
        let mut clients = JoinSet::new();
        loop {
            // Finished clients are collected as new ones come, so the set stays small.
            while clients.try_join_next().is_some() {}
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "admin socket: cannot accept a client");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                turn_away(&stream);
                continue;
            };
            let client = Client::new(stream, self.limits, requests.clone());
            clients.spawn(async move {
                if let Err(error) = client.serve().await {
                    debug!(%error, "admin client");
                }
                drop(place);
            });
        }
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        if let Err(error) = remove_stale(&self.path) {
            warn!(%error, path = %self.path.display(), "cannot remove the admin socket");
        }
    }
}

/// Removes what is at `path`, if anything is. Only for the holder of the instance's lock.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A socket bound to `path` whose file was never more open than [`SOCKET_MODE`]: on Linux a socket
/// gives its file the mode that it has itself, less the umask, and `fchmod` sets that beforehand.
/// So there is no need to change the umask, which belongs to the whole process.
fn bind_restricted(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    fchmod(&socket, Mode::from_bits_truncate(SOCKET_MODE))?;
    socket.bind(&SockAddr::unix(path)?)?;
    Ok(socket)
}

/// Tells a client that there is no place for it, without waiting for it.
fn turn_away(stream: &UnixStream) {
    // A fresh socket's buffer takes a line; if not, the closed connection says it too.
    let _ = stream.try_write(&encode(&refusal("too many clients: try again later")));
}

/// One connection.
struct Client {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// Who it is, for the log.
    uid: Option<u32>,
    limits: Limits,
    requests: mpsc::Sender<AdminRequest>,
}

/// What came instead of a request.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("the request is longer than {0} bytes")]
    TooLong(u32),
    #[error("the request is not understood: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// How a line ended.
enum Line {
    /// A whole line, or what stood before the end of the stream.
    Complete,
    /// More than a request may have.
    TooLong,
    /// The client has no more to say.
    End,
}

impl Client {
    fn new(stream: UnixStream, limits: Limits, requests: mpsc::Sender<AdminRequest>) -> Self {
        let uid = stream.peer_cred().ok().map(|cred| cred.uid());
        let (reader, writer) = stream.into_split();
        Self {
            reader: BufReader::new(reader),
            writer,
            uid,
            limits,
            requests,
        }
    }

    /// Answers requests until the client closes, is too slow or sends too much.
    async fn serve(mut self) -> io::Result<()> {
        let mut line = Vec::new();
        loop {
            line.clear();
            match within(self.limits.client_time, self.read_line(&mut line)).await? {
                Line::End => return Ok(()),
                Line::TooLong => {
                    let error = RequestError::TooLong(self.limits.request_bytes);
                    // What follows is the rest of that line: there is no next request to find.
                    return self.answer(&refusal(&error)).await;
                }
                Line::Complete => {
                    let (response, lines) = self.respond(&line).await;
                    self.answer(&response).await?;
                    self.forward(lines).await?;
                }
            }
        }
    }

    /// Reads up to the next newline into `line`, without it.
    async fn read_line(&mut self, line: &mut Vec<u8>) -> io::Result<Line> {
        let limit = u64::from(self.limits.request_bytes).saturating_add(1);
        let read = (&mut self.reader)
            .take(limit)
            .read_until(b'\n', line)
            .await?;
        if read == 0 {
            return Ok(Line::End);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if u64::try_from(read).is_ok_and(|read| read == limit) {
            return Ok(Line::TooLong);
        }
        Ok(Line::Complete)
    }

    /// The answer, and where more lines come from.
    async fn respond(&self, line: &[u8]) -> (Response<Reply>, mpsc::Receiver<Vec<u8>>) {
        let (lines, follow) = mpsc::channel(WAITING_LINES);
        let command = match parse(line) {
            Ok(command) => command,
            Err(error) => return (refusal(&error), follow),
        };
        self.log(&command);
        let response = match timeout(self.limits.controller_time, self.ask(command, lines)).await {
            Ok(Some(Ok(reply))) => Response::Ok(reply),
            Ok(Some(Err(error))) => refusal(&error),
            Ok(None) => refusal("xvip is stopping"),
            Err(_) => refusal("the controller does not answer"),
        };
        (response, follow)
    }

    /// The controller's answer; `None` if it is gone.
    async fn ask(&self, command: Command, lines: Lines) -> Option<Result<Reply, CommandError>> {
        let (reply, answer) = oneshot::channel();
        let request = AdminRequest {
            command,
            reply,
            lines,
        };
        self.requests.send(request).await.ok()?;
        answer.await.ok()
    }

    /// Passes lines on until there are no more. A client that closes its end has seen enough; one
    /// that sends its next request already waits.
    async fn forward(&mut self, mut lines: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
        let mut watch = true;
        loop {
            tokio::select! {
                biased;
                piece = lines.recv() => {
                    let Some(piece) = piece else {
                        return Ok(());
                    };
                    within(self.limits.client_time, self.writer.write_all(&piece)).await?;
                }
                more = self.reader.fill_buf(), if watch => {
                    if more?.is_empty() && is_gone(&self.writer) {
                        return Err(io::ErrorKind::BrokenPipe.into());
                    }
                    watch = false;
                }
            }
        }
    }

    async fn answer(&mut self, response: &Response<Reply>) -> io::Result<()> {
        let line = encode(response);
        within(self.limits.client_time, self.writer.write_all(&line)).await
    }

    /// Who changes something is an operator's business, who looks is not.
    fn log(&self, command: &Command) {
        match command {
            Command::Status => debug!(uid = self.uid, "admin: status"),
            Command::Reload => info!(uid = self.uid, "admin: reload"),
            Command::StepDown { vrrp } => info!(uid = self.uid, vrrp, "admin: step down"),
            Command::Resume { vrrp } => info!(uid = self.uid, vrrp, "admin: resume"),
            Command::Backend(query) => info!(
                uid = self.uid,
                action = ?query.action,
                name = query.name,
                "admin: backend"
            ),
            Command::Flows(_) => debug!(uid = self.uid, "admin: flows"),
            Command::Trace(_) => info!(uid = self.uid, "admin: trace"),
            Command::Explain(_) => debug!(uid = self.uid, "admin: explain"),
        }
    }
}

/// Whether the client has closed its socket, not only the half of it that it writes to (as
/// `printf ... | socat` does).
fn is_gone(writer: &OwnedWriteHalf) -> bool {
    let socket = writer.as_ref().as_fd();
    let mut poll = [PollFd::new(socket, PollFlags::empty())];
    // A hang-up is always reported. An error tells nothing: a write will.
    nix::poll::poll(&mut poll, PollTimeout::ZERO).is_ok()
        && poll.iter().any(|poll| {
            poll.revents()
                .is_some_and(|seen| seen.contains(PollFlags::POLLHUP))
        })
}

fn parse(line: &[u8]) -> Result<Command, RequestError> {
    Ok(serde_json::from_slice(line)?)
}

fn refusal(reason: &(impl ToString + ?Sized)) -> Response<Reply> {
    Response::Error(reason.to_string())
}

/// The response as a line. JSON has no newline outside of strings and escapes those within.
fn encode(response: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(response)
        .unwrap_or_else(|_| br#"{"error":"the answer cannot be written as JSON"}"#.to_vec());
    line.push(b'\n');
    line
}

/// The future's result, or `TimedOut` if it takes longer.
async fn within<T>(limit: Duration, future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, future)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::admin::{
        Paths, client,
        model::{VrrpReply, tests::sample},
        stream::Started,
        testing::TempDir,
    };

    /// A server in a directory of its own.
    struct Fixture {
        server: AdminServer,
        dir: TempDir,
    }

    impl Fixture {
        fn new(limits: Limits) -> Self {
            let dir = TempDir::new();
            let server = bind(&dir, limits).unwrap();
            Self { server, dir }
        }

        /// Runs `client` while the server serves and `controller` answers.
        async fn run<T>(
            &self,
            controller: impl Fn(Command) -> Option<Result<Reply, CommandError>>,
            client: impl Future<Output = T>,
        ) -> T {
            let (sender, mut receiver) = mpsc::channel::<AdminRequest>(1);
            // An unanswered request is kept: a dropped one would read as "stopping".
            let mut unanswered = Vec::new();
            let controller = async {
                while let Some(request) = receiver.recv().await {
                    match controller(request.command) {
                        Some(answer) => drop(request.reply.send(answer)),
                        None => unanswered.push(request.reply),
                    }
                }
            };
            tokio::select! {
                result = client => result,
                never = self.server.serve(sender) => match never {},
                () = controller => unreachable!("the server holds the channel"),
            }
        }

        async fn connect(&self) -> BufReader<UnixStream> {
            BufReader::new(UnixStream::connect(self.server.path()).await.unwrap())
        }
    }

    fn bind(dir: &TempDir, limits: Limits) -> Result<AdminServer, BindError> {
        let lock = InstanceLock::acquire(Paths::new(dir.path(), "default")).unwrap();
        AdminServer::bind(lock, limits)
    }

    /// A controller with one VRRP instance, `a`.
    #[allow(clippy::unnecessary_wraps)] // the signature of a fake controller
    fn controller(command: Command) -> Option<Result<Reply, CommandError>> {
        Some(match command {
            Command::Status => Ok(Reply::Status(Box::new(sample()))),
            Command::StepDown { vrrp: Some(name) } if name != "a" => {
                Err(CommandError::UnknownVrrp {
                    name,
                    known: vec!["a".into()],
                })
            }
            Command::StepDown { .. } | Command::Resume { .. } => Ok(Reply::Vrrp(VrrpReply {
                instances: vec!["a".into()],
            })),
            _ => Ok(Reply::Stream(Started::NOW)),
        })
    }

    /// Sends `bytes` and reads a line.
    async fn send(stream: &mut BufReader<UnixStream>, bytes: &[u8]) -> Value {
        stream.write_all(bytes).await.unwrap();
        receive(stream).await
    }

    async fn receive(stream: &mut BufReader<UnixStream>) -> Value {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        assert!(line.ends_with('\n'), "{line:?}");
        serde_json::from_str(&line).unwrap()
    }

    async fn at_end(stream: &mut BufReader<UnixStream>) -> bool {
        stream.fill_buf().await.unwrap().is_empty()
    }

    /// Each command reaches the controller and its answer comes back, several per connection.
    #[tokio::test]
    async fn commands_are_answered_in_order() {
        let fixture = Fixture::new(Limits::default());
        let client = async {
            let mut stream = fixture.connect().await;
            let status = send(&mut stream, b"{\"command\":\"status\"}\n").await;
            assert_eq!(status, json!({"ok": sample()}));
            let done = send(&mut stream, b"{\"command\":\"step_down\",\"vrrp\":\"a\"}\n").await;
            assert_eq!(done, json!({"ok": {"instances": ["a"]}}));
            let done = send(&mut stream, b"{\"command\":\"resume\"}\n").await;
            assert_eq!(done, json!({"ok": {"instances": ["a"]}}));
            let refused = send(&mut stream, b"{\"command\":\"step_down\",\"vrrp\":\"b\"}\n").await;
            let reason = "no VRRP instance is named \"b\" (there are: a)";
            assert_eq!(refused, json!({"error": reason}));
        };
        fixture.run(controller, client).await;
    }

    /// The command line's client and this server understand each other.
    #[tokio::test]
    async fn the_client_gets_the_status() {
        let fixture = Fixture::new(Limits::default());
        let path = fixture.server.path().to_owned();
        let ask = tokio::task::spawn_blocking(move || {
            client::ask_for::<crate::admin::model::Status>(&path, &Command::Status)
        });
        let status = fixture.run(controller, ask).await.unwrap().unwrap();
        assert_eq!(status, sample());
    }

    /// A last line without a newline is a request too (`printf ... | socat`).
    #[tokio::test]
    async fn the_end_of_the_stream_ends_a_request() {
        let fixture = Fixture::new(Limits::default());
        let client = async {
            let mut stream = fixture.connect().await;
            stream.write_all(b"{\"command\":\"resume\"}").await.unwrap();
            stream.shutdown().await.unwrap();
            assert_eq!(
                receive(&mut stream).await,
                json!({"ok": {"instances": ["a"]}})
            );
            assert!(at_end(&mut stream).await);
        };
        fixture.run(controller, client).await;
    }

    /// What is not a request gets an error that says so, and the connection goes on.
    #[tokio::test]
    async fn malformed_requests_are_refused() {
        let fixture = Fixture::new(Limits::default());
        let client = async {
            let mut stream = fixture.connect().await;
            let deep = [b"[".repeat(4000), b"\n".to_vec()].concat();
            for bad in [
                b"\n".as_slice(),
                b"status\n",
                b"{\"command\":\"format\"}\n",
                b"{\"command\":\"status\"\n",
                b"{\"command\":\"status\"}{\"command\":\"status\"}\n",
                b"{\"command\":\"step_down\",\"vrpp\":\"a\"}\n",
                b"\xff\xfe\x00\n",
                &deep,
            ] {
                let answer = send(&mut stream, bad).await;
                let error = answer["error"].as_str().unwrap();
                assert!(
                    error.starts_with("the request is not understood"),
                    "{error}"
                );
            }
            let answer = send(&mut stream, b"{\"command\":\"resume\"}\n").await;
            assert!(answer.get("ok").is_some(), "{answer}");
        };
        fixture.run(controller, client).await;
    }

    /// A line of exactly the limit is read; one byte more is refused and ends the connection,
    /// though no newline ever comes.
    #[tokio::test]
    async fn long_lines_are_refused() {
        let limits = Limits {
            request_bytes: 64,
            ..Limits::default()
        };
        let fixture = Fixture::new(limits);
        let client = async {
            let mut stream = fixture.connect().await;
            let mut fits = b"{\"command\":\"resume\"}".to_vec();
            fits.resize(64, b' ');
            fits.push(b'\n');
            assert!(send(&mut stream, &fits).await.get("ok").is_some());
            let answer = send(&mut stream, &[b' '; 65]).await;
            let reason = "the request is longer than 64 bytes";
            assert_eq!(answer, json!({"error": reason}));
            assert!(at_end(&mut stream).await);
        };
        fixture.run(controller, client).await;
    }

    /// A client that says nothing is dropped.
    #[tokio::test]
    async fn silent_clients_are_dropped() {
        let limits = Limits {
            client_time: Duration::from_millis(1),
            ..Limits::default()
        };
        let fixture = Fixture::new(limits);
        let client = async {
            let mut stream = fixture.connect().await;
            assert!(at_end(&mut stream).await);
        };
        fixture.run(controller, client).await;
    }

    /// One client too many is told so, and the place of one that leaves is free again.
    #[tokio::test]
    async fn clients_are_limited() {
        let limits = Limits {
            clients: 1,
            ..Limits::default()
        };
        let fixture = Fixture::new(limits);
        let client = async {
            let mut first = fixture.connect().await;
            // Answered: so it has its place.
            send(&mut first, b"{\"command\":\"resume\"}\n").await;
            let mut second = fixture.connect().await;
            let reason = "too many clients: try again later";
            assert_eq!(receive(&mut second).await, json!({"error": reason}));
            assert!(at_end(&mut second).await);
            first.shutdown().await.unwrap();
            assert!(at_end(&mut first).await);
            // The place is given back just after the connection closes.
            loop {
                let mut third = fixture.connect().await;
                // A turned away client's socket may be closed before it is written to.
                let _ = third.write_all(b"{\"command\":\"resume\"}\n").await;
                if receive(&mut third).await.get("ok").is_some() {
                    break;
                }
            }
        };
        fixture.run(controller, client).await;
    }

    /// A controller that is stuck or gone is told from a refusal.
    #[tokio::test]
    async fn a_silent_controller_is_reported() {
        let limits = Limits {
            controller_time: Duration::from_millis(1),
            ..Limits::default()
        };
        let fixture = Fixture::new(limits);
        let client = async {
            let mut stream = fixture.connect().await;
            let answer = send(&mut stream, b"{\"command\":\"status\"}\n").await;
            assert_eq!(answer, json!({"error": "the controller does not answer"}));
        };
        fixture.run(|_| None, client).await;

        let (sender, receiver) = mpsc::channel(1);
        drop(receiver);
        let client = async {
            let mut stream = fixture.connect().await;
            send(&mut stream, b"{\"command\":\"status\"}\n").await
        };
        let answer = tokio::select! {
            answer = client => answer,
            never = fixture.server.serve(sender) => match never {},
        };
        assert_eq!(answer, json!({"error": "xvip is stopping"}));
    }

    /// The socket's file has mode 0660 in the end, and never had a bit more, whatever the umask.
    #[tokio::test]
    async fn the_socket_is_never_more_open_than_0660() {
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let fixture = Fixture::new(Limits::default());
        assert_eq!(mode(fixture.server.path()), 0o660);

        let path = fixture.dir.path().join("before-chmod.sock");
        let _socket = bind_restricted(&path).unwrap();
        assert_eq!(mode(&path) & !0o660, 0);
    }

    /// A socket that a dead process left is replaced; the file goes with the server.
    #[tokio::test]
    async fn a_stale_socket_is_replaced() {
        let dir = TempDir::new();
        let path = Paths::new(dir.path(), "default").socket();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let server = bind(&dir, Limits::default()).unwrap();
        UnixStream::connect(&path).await.unwrap();
        drop(server);
        assert!(!path.exists());
    }

    /// While a server lives, its instance and so its socket is nobody else's.
    #[tokio::test]
    async fn a_live_socket_is_left_alone() {
        let fixture = Fixture::new(Limits::default());
        let error = InstanceLock::acquire(Paths::new(fixture.dir.path(), "default")).unwrap_err();
        assert!(error.to_string().contains("already runs"), "{error}");
        UnixStream::connect(fixture.server.path()).await.unwrap();
    }

    /// A path that no socket address can hold, and a directory in the socket's place, are errors
    /// that name the path.
    #[tokio::test]
    async fn unusable_paths_are_named() {
        let dir = TempDir::new();
        let long = Paths::new(dir.path(), &"x".repeat(120));
        let lock = InstanceLock::acquire(long).unwrap();
        let error = AdminServer::bind(lock, Limits::default()).unwrap_err();
        assert!(error.to_string().contains("xxx.sock"), "{error}");

        fs::create_dir(Paths::new(dir.path(), "default").socket()).unwrap();
        let error = bind(&dir, Limits::default()).unwrap_err();
        assert!(error.to_string().contains("default.sock"), "{error}");
    }
}

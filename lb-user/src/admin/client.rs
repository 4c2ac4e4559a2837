//! The command line's end of the admin interface. Blocking: it asks one thing and ends.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};

use super::model::{Command, Response};

/// Time for each step of a conversation. Longer than the server gives the controller, whose "does
/// not answer" says more than this end's.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of an answer that are read at most; a large cluster's status is far below.
const MAX_ANSWER: u64 = 16 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no xvip answers at {}: is it running?", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The socket is not this user's to open.
    #[error("not allowed to open {}: run this as root or as a member of its group", path.display())]
    Permission {
        /// The socket.
        path: PathBuf,
    },
    /// Somebody listens and says nothing.
    #[error("xvip at {} does not answer within {} s: it is stopped or overloaded", path.display(), PATIENCE.as_secs())]
    Timeout {
        /// The socket.
        path: PathBuf,
    },
    /// The connection ended before the answer did.
    #[error("xvip at {} ended before it answered", path.display())]
    Closed {
        /// The socket.
        path: PathBuf,
    },
    /// xvip refused the command.
    #[error("{0}")]
    Refused(String),
    /// What came is not an answer.
    #[error("what answers at {} does not speak as xvip does: {source}", path.display())]
    Malformed {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Anything else.
    #[error("cannot talk to xvip at {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Asks the xvip at `path` and returns the value of `ok`, untouched: a newer xvip may know fields
/// that this one does not.
pub fn ask(path: &Path, command: &Command) -> Result<Value, ClientError> {
    let line = exchange(path, command).map_err(|error| explain_io(path, error))?;
    if line.last() != Some(&b'\n') {
        return Err(ClientError::Closed {
            path: path.to_owned(),
        });
    }
    match serde_json::from_slice(&line) {
        Ok(Response::Ok(value)) => Ok(value),
        Ok(Response::Error(reason)) => Err(ClientError::Refused(reason)),
        Err(source) => Err(malformed(path, source)),
    }
}

/// As [`ask`], with the answer read as a `T`.
pub fn ask_for<T: serde::de::DeserializeOwned>(
    path: &Path,
    command: &Command,
) -> Result<T, ClientError> {
    let value = ask(path, command)?;
    serde_json::from_value(value).map_err(|source| malformed(path, source))
}

pub(super) fn malformed(path: &Path, source: serde_json::Error) -> ClientError {
    ClientError::Malformed {
        path: path.to_owned(),
        source,
    }
}

/// Sends the command and reads one line, or what came of it.
fn exchange(path: &Path, command: &Command) -> io::Result<Vec<u8>> {
    let stream = start(path, command)?;
    let mut line = Vec::new();
    BufReader::new(stream)
        .take(MAX_ANSWER)
        .read_until(b'\n', &mut line)?;
    Ok(line)
}

/// Sends the command; the connection that the answer comes on.
pub(super) fn start(path: &Path, command: &Command) -> io::Result<UnixStream> {
    let mut stream = connect(path)?;
    let mut request = serde_json::to_vec(command)?;
    request.push(b'\n');
    // A server that turns clients away may have closed already: its answer says why.
    match stream.write_all(&request) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(stream),
    }
}

/// A connection on which no step takes longer than [`PATIENCE`], the connect included: it blocks
/// while a frozen server's backlog is full.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket.into())
}

pub(super) fn explain_io(path: &Path, source: io::Error) -> ClientError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ClientError::NotRunning { path }
        }
        io::ErrorKind::PermissionDenied => ClientError::Permission { path },
        // EAGAIN is what the kernel says when a socket's time is up.
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Timeout { path },
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => ClientError::Closed { path },
        _ => ClientError::Io { path, source },
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, thread};

    use super::*;
    use crate::admin::testing::TempDir;

    /// What `ask` makes of a server that reads a request and says `answer`.
    fn ask_one_that_says(answer: &'static str) -> Result<Value, ClientError> {
        let dir = TempDir::new();
        let path = dir.path().join("x.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            BufReader::new(stream.try_clone().unwrap())
                .read_line(&mut request)
                .unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            request
        });
        let result = ask(&path, &Command::Status);
        assert_eq!(server.join().unwrap(), "{\"command\":\"status\"}\n");
        result
    }

    /// No socket, and a socket that nobody listens on any more, both mean: not running.
    #[test]
    fn nobody_listens() {
        let dir = TempDir::new();
        let path = dir.path().join("x.sock");
        let missing = ask(&path, &Command::Status).unwrap_err();
        drop(UnixListener::bind(&path).unwrap());
        let stale = ask(&path, &Command::Status).unwrap_err();
        for error in [missing, stale] {
            assert!(matches!(error, ClientError::NotRunning { .. }), "{error}");
            assert_eq!(
                error.to_string(),
                format!("no xvip answers at {}: is it running?", path.display())
            );
        }
    }

    /// `ok` gives its value, `error` its reason.
    #[test]
    fn answers_are_told_apart() {
        let ok = ask_one_that_says("{\"ok\":{\"instances\":[\"a\"]}}\n").unwrap();
        assert_eq!(ok, serde_json::json!({"instances": ["a"]}));
        let error = ask_one_that_says("{\"error\":\"no\"}\n").unwrap_err();
        assert!(matches!(error, ClientError::Refused(reason) if reason == "no"));
    }

    /// Half an answer, none, and nonsense are errors, not panics.
    #[test]
    fn bad_answers_are_errors() {
        for half in ["", "{\"ok\":1}"] {
            let error = ask_one_that_says(half).unwrap_err();
            assert!(matches!(error, ClientError::Closed { .. }), "{error}");
        }
        for nonsense in [
            "\n",
            "{}\n",
            "HTTP/1.1 400\n",
            "{\"ok\":1,\"error\":\"x\"}\n",
        ] {
            let error = ask_one_that_says(nonsense).unwrap_err();
            assert!(matches!(error, ClientError::Malformed { .. }), "{error}");
        }
    }

    /// The kernel's way to say that a socket's time is up reads as such.
    #[test]
    fn a_lapsed_wait_is_a_timeout() {
        let error = explain_io(Path::new("/x.sock"), io::ErrorKind::WouldBlock.into());
        assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
        let error = explain_io(Path::new("/x.sock"), io::ErrorKind::PermissionDenied.into());
        assert!(matches!(error, ClientError::Permission { .. }), "{error}");
    }
}

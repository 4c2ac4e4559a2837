//! Sockets of other processes, by copies of their descriptors (`pidfd_getfd`, Linux 5.6).
//!
//! Where the kernel has no `SOCK_DESTROY`, TCP connections are ended so: the copy is told to connect to
//! nowhere. The kernel then sends a RST, and the process gets `ECONNRESET` from its next call (or whatever its
//! kernel says to one that waits already: `EPIPE` on Linux 6.18).
//!
//! A connection that no process has a descriptor of any more is not found. It waits for nobody.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    io::Errno,
    net::{Shutdown, connect_unspec, shutdown, sockopt::socket_cookie},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

/// A socket: its inode, by which `/proc` shows it, and its cookie, which no other one ever has.
pub type Sockets = BTreeMap<u64, u64>;

/// Ends the connections of `sockets` (cookies by inode), in whatever process and network namespace.
/// How many were ended, of those whose processes could be looked into.
pub fn end(sockets: &Sockets) -> io::Result<usize> {
    for_each(sockets, |socket, _| end_one(socket))
}

/// Hands a copy of one descriptor of each of `sockets` to `act`, with the socket's cookie. For how many
/// it succeeded, of those whose processes could be looked into.
pub fn for_each<E: From<Errno>>(
    sockets: &Sockets,
    mut act: impl FnMut(&OwnedFd, u64) -> Result<(), E>,
) -> io::Result<usize> {
    let mut left = sockets.clone();
    if left.is_empty() {
        return Ok(0);
    }
    for entry in fs::read_dir("/proc")? {
        // Processes come and go meanwhile, and not all of /proc is processes.
        let Some((pid, path)) = entry.ok().and_then(|entry| process(&entry.path())) else {
            continue;
        };
        for (number, inode) in descriptors(&path) {
            // Several descriptors may be of one socket: the first one does.
            if let Some(cookie) = left.get(&inode).copied()
                && let Ok(Some(socket)) = copy(pid, number, cookie)
                && act(&socket, cookie).is_ok()
            {
                left.remove(&inode);
            }
        }
    }
    Ok(sockets.len() - left.len())
}

fn process(path: &Path) -> Option<(Pid, PathBuf)> {
    let number = path.file_name()?.to_str()?.parse().ok()?;
    Some((Pid::from_raw(number)?, path.join("fd")))
}

/// Descriptors that are sockets, with their inodes. None of a process that cannot be looked into.
fn descriptors(path: &Path) -> Vec<(i32, u64)> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let sockets = entries.filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        let target = fs::read_link(entry.path()).ok()?;
        let inode = target.to_str()?.strip_prefix("socket:[")?;
        Some((number, inode.strip_suffix(']')?.parse().ok()?))
    });
    sockets.collect()
}

/// A copy of a process's descriptor if it is (still) of the socket with this cookie.
fn copy(pid: Pid, number: i32, cookie: u64) -> Result<Option<OwnedFd>, Errno> {
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let socket = pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?;
    Ok((socket_cookie(&socket)? == cookie).then_some(socket))
}

/// Ends the connection behind a descriptor.
fn end_one(socket: &OwnedFd) -> Result<(), Errno> {
    match connect_unspec(socket) {
        // Linux 6.4 to 6.7, while a thread waits in a call for this socket: that one gets the end of
        // the stream instead.
        Err(Errno::BUSY) => shutdown(socket, Shutdown::Both),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read},
        net::{TcpListener, TcpStream},
        process::{Child, Command, Stdio},
    };

    use super::*;
    use crate::io::netlink::sock_diag::SockDiag;

    /// A process that waits for what a listener of this one sends, and this one's end.
    fn waiting(listener: &TcpListener) -> (Child, TcpStream) {
        let port = listener.local_addr().unwrap().port();
        let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; exec cat <&3");
        let mut bash = Command::new("bash");
        let child = bash.args(["-c", &script]).stderr(Stdio::null()).spawn();
        let (stream, _) = listener.accept().unwrap();
        (child.unwrap(), stream)
    }

    /// The process whose socket is meant gets an error, its peer a reset; another one notices
    /// nothing, nor does one whose socket has the inode but not the cookie.
    #[test]
    fn connections_of_other_processes_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut child, mut own) = waiting(&listener);
        let (mut bystander, bystanders) = waiting(&listener);
        let connections = SockDiag::open().unwrap().connections().unwrap();
        let of = |stream: &TcpStream| {
            let (local, remote) = (stream.peer_addr().unwrap(), stream.local_addr().unwrap());
            let ends = |at: &crate::core::local_sockets::Connection| {
                (at.local, at.remote) == (local, remote)
            };
            let found = connections.iter().find(|socket| ends(&socket.connection));
            let found = found.unwrap();
            (found.inode, found.connection.cookie)
        };
        let (meant, other) = (of(&own), of(&bystanders));
        let sockets = Sockets::from([meant, (other.0, other.1 + 1)]);
        assert_eq!(end(&sockets).unwrap(), 1);

        let error = own.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert!(!child.wait().unwrap().success());
        assert!(bystander.try_wait().unwrap().is_none());
        drop(bystanders);
        assert!(bystander.wait().unwrap().success());
    }
}

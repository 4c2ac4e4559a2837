//! Many frames at once from a node's uplink, past its own stack: spoofed sources, MACs of nobody.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{JoinHandle, sleep},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, bind, send, socket},
};

use crate::topology::Node;

/// Sends frames `0..count` as they are made, from the node's eth0. Returns how many the link took.
pub fn send_frames(
    node: &Node,
    count: u32,
    mut frame: impl FnMut(u32) -> Vec<u8> + Send,
) -> Result<u32> {
    node.namespace().enter(|| {
        let socket = open()?;
        let mut sent = 0;
        for number in 0..count {
            sent += u32::from(push(&socket, &frame(number))?);
        }
        Ok(sent)
    })
}

/// Sends one frame; whether the link took it.
fn push(socket: &OwnedFd, frame: &[u8]) -> Result<bool> {
    // A full queue is emptied soon, or what follows is as good as lost on the wire.
    for _ in 0..1_000 {
        match send(socket.as_raw_fd(), frame, MsgFlags::empty()) {
            Ok(_) => return Ok(true),
            Err(Errno::ENOBUFS | Errno::EAGAIN) => std::thread::yield_now(),
            Err(error) => return Err(error).context("cannot send"),
        }
    }
    Ok(false)
}

/// Frames at a steady pace from a node's uplink, until it is stopped.
#[derive(Debug)]
pub struct Pulse {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u32>>,
}

impl Pulse {
    /// Sends frames 0, 1, ... as they are made, one every `pace`.
    pub fn start(
        node: &Node,
        pace: Duration,
        mut frame: impl FnMut(u32) -> Vec<u8> + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = node.namespace().spawn(move || {
            let socket = open()?;
            let (mut number, mut sent) = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                sent += u32::from(push(&socket, &frame(number))?);
                number += 1;
                sleep(pace);
            }
            Ok(sent)
        });
        Self { stop, thread }
    }

    /// Ends it; how many frames the link has taken.
    pub fn stop(self) -> Result<u32> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.join();
        ended.map_err(|_| anyhow::anyhow!("the sender panicked"))?
    }
}

/// A packet socket of eth0 that receives nothing.
fn open() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)
        .context("cannot open a packet socket")?;
    let link = getifaddrs()?
        .filter(|interface| interface.interface_name == "eth0")
        .find_map(|interface| interface.address?.as_link_addr().copied())
        .context("there is no eth0")?;
    bind(socket.as_raw_fd(), &link).context("cannot bind to eth0")?;
    Ok(socket)
}

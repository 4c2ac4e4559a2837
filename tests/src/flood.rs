//! Many frames at once from a node's uplink, past its own stack: spoofed sources, MACs of nobody.

use std::os::fd::{AsRawFd, OwnedFd};

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
            let frame = frame(number);
            // A full queue is emptied soon, or what follows is as good as lost on the wire.
            for _ in 0..1_000 {
                match send(socket.as_raw_fd(), &frame, MsgFlags::empty()) {
                    Ok(_) => {
                        sent += 1;
                        break;
                    }
                    Err(Errno::ENOBUFS | Errno::EAGAIN) => std::thread::yield_now(),
                    Err(error) => return Err(error).context("cannot send"),
                }
            }
        }
        Ok(sent)
    })
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

//! A socket that sends whole Ethernet frames on one link and receives nothing.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, bind, send, socket},
};

/// A frame that could not be sent, or a link that none can be sent on.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// No such link in the calling thread's network namespace.
    #[error("there is no link {ifindex}")]
    NoLink {
        /// Interface index.
        ifindex: u32,
    },
    /// The kernel refused.
    #[error("packet socket on link {ifindex}: {operation}: {source}")]
    Refused {
        /// Interface index.
        ifindex: u32,
        /// What was tried.
        operation: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
}

/// Sends frames on one link. Frames pass the link's tc egress, and so xvip's fence.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
    ifindex: u32,
}

impl PacketSocket {
    /// Opens a socket for a link of the calling thread's network namespace.
    pub fn open(ifindex: u32) -> Result<Self, PacketError> {
        let refused = |operation| {
            move |errno: nix::errno::Errno| PacketError::Refused {
                ifindex,
                operation,
                source: errno.into(),
            }
        };
        // Protocol 0: nothing is ever received, which would only fill a buffer.
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .map_err(refused("open"))?;
        let link = getifaddrs()
            .map_err(refused("list links"))?
            .filter_map(|interface| interface.address)
            .filter_map(|address| address.as_link_addr().copied())
            .find(|link| u32::try_from(link.ifindex()) == Ok(ifindex))
            .ok_or(PacketError::NoLink { ifindex })?;
        bind(socket.as_raw_fd(), &link).map_err(refused("bind"))?;
        Ok(Self { socket, ifindex })
    }

    /// Sends one frame, Ethernet header first.
    pub fn send(&self, frame: &[u8]) -> Result<(), PacketError> {
        // A packet socket sends a frame whole or not at all.
        send(self.socket.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT)
            .map(drop)
            .map_err(|errno| PacketError::Refused {
                ifindex: self.ifindex,
                operation: "send",
                source: errno.into(),
            })
    }
}

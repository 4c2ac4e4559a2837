//! One request at a time on a netlink socket: send, collect the replies, read the verdict.

use std::{io, os::fd::AsFd, time::Duration};

use bytes::BufMut;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_MULTIPART, NLM_F_REQUEST,
    NLMSG_DONE, NLMSG_ERROR, NetlinkHeader, NetlinkMessage, NetlinkPayload, NlasIterator,
    parse_i32, parse_string,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::{
    errno::Errno,
    sys::{
        socket::{setsockopt, sockopt},
        time::TimeVal,
    },
};

use super::{
    decode::{Message, Messages},
    error::NetlinkError,
};

/// Larger than any datagram that the kernel makes (32 KiB at the time of writing).
pub(super) const DATAGRAM: usize = 64 * 1024;

/// The kernel answers in the `send` itself: an answer that is not there soon never comes.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a dump is read anew when the state changes meanwhile.
const DUMP_ATTEMPTS: u32 = 32;

/// A reply that is no verdict.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    /// `nlmsg_type`
    pub(super) kind: u16,
    /// What follows the netlink header.
    pub(super) payload: Vec<u8>,
}

/// What a message says about the request it answers.
enum Progress {
    More,
    Complete,
}

/// A socket for requests. Belongs to the network namespace of the thread that opened it.
pub(super) struct RequestSocket {
    socket: Socket,
    sequence: u32,
}

impl RequestSocket {
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let mut socket =
            Socket::new(NETLINK_ROUTE).map_err(NetlinkError::socket("open NETLINK_ROUTE"))?;
        socket.bind_auto().map_err(NetlinkError::socket("bind"))?;
        // Explanations of errors; short acknowledgements. Old kernels do without.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        let timeout = TimeVal::new(ANSWER_TIMEOUT.as_secs().try_into().unwrap_or(5), 0);
        setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &timeout)
            .map_err(io::Error::from)
            .map_err(NetlinkError::socket("SO_RCVTIMEO"))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sends `message` with `flags` and returns the replies before the verdict. `request` says
    /// in words what is asked for.
    pub(super) fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        request: &str,
    ) -> Result<Vec<Reply>, NetlinkError> {
        let (replies, _) = self.exchange(message, flags | NLM_F_ACK, request)?;
        Ok(replies)
    }

    /// The whole table that `message` asks for, as it stood at one time.
    pub(super) fn dump(
        &mut self,
        message: &RouteNetlinkMessage,
        request: &str,
    ) -> Result<Vec<Reply>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let (replies, interrupted) = self.exchange(message.clone(), NLM_F_DUMP, request)?;
            if !interrupted {
                return Ok(replies);
            }
        }
        Err(NetlinkError::Inconsistent {
            request: request.to_owned(),
            attempts: DUMP_ATTEMPTS,
        })
    }

    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        request: &str,
    ) -> Result<(Vec<Reply>, bool), NetlinkError> {
        self.send(message, flags)?;
        let mut replies = Vec::new();
        let mut interrupted = false;
        loop {
            let datagram = self.receive()?;
            for message in Messages::new(&datagram) {
                let message = message.map_err(NetlinkError::malformed(request))?;
                // What is left of an earlier request that timed out.
                if message.sequence != self.sequence {
                    continue;
                }
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match progress(message, request)? {
                    Progress::Complete => return Ok((replies, interrupted)),
                    Progress::More => replies.push(Reply {
                        kind: message.kind,
                        payload: message.payload.to_vec(),
                    }),
                }
            }
        }
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket
            .send_to(&bytes, &SocketAddr::new(0, 0), 0)
            .map_err(NetlinkError::socket("send"))?;
        Ok(())
    }

    fn receive(&self) -> Result<Vec<u8>, NetlinkError> {
        loop {
            match receive(&self.socket) {
                Ok(Some(datagram)) => return Ok(datagram),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(NetlinkError::Socket {
                        operation: "receive",
                        source,
                    });
                }
            }
        }
    }
}

/// One datagram; `None` if it is not from the kernel. A truncated one fails with `EMSGSIZE`.
pub(super) fn receive(socket: &Socket) -> io::Result<Option<Vec<u8>>> {
    let mut datagram = Vec::with_capacity(DATAGRAM).limit(DATAGRAM);
    let (length, sender) = socket.recv_from(&mut datagram, MSG_TRUNC)?;
    if length > DATAGRAM {
        return Err(Errno::EMSGSIZE.into());
    }
    Ok((sender.port_number() == 0).then(|| datagram.into_inner()))
}

/// Makes `recv` return the datagram's whole length.
const MSG_TRUNC: i32 = nix::sys::socket::MsgFlags::MSG_TRUNC.bits();

fn progress(message: Message<'_>, request: &str) -> Result<Progress, NetlinkError> {
    let verdict = match message.kind {
        NLMSG_ERROR => true,
        // A dump ends with its own verdict since Linux 4.12; none is success.
        NLMSG_DONE if message.flags & NLM_F_MULTIPART != 0 => !message.payload.is_empty(),
        _ => return Ok(Progress::More),
    };
    if !verdict {
        return Ok(Progress::Complete);
    }
    let code = parse_i32(message.payload.get(..4).unwrap_or_default())
        .map_err(NetlinkError::malformed(request))?;
    if code >= 0 {
        return Ok(Progress::Complete);
    }
    Err(NetlinkError::Refused {
        request: request.to_owned(),
        source: io::Error::from_raw_os_error(code.saturating_neg()),
        detail: explanation(message),
    })
}

/// `NLMSGERR_ATTR_MSG` of an error: after the code, and the header of the request.
fn explanation(message: Message<'_>) -> Option<String> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    const CODE_AND_HEADER: usize = 4 + 16;
    if message.kind != NLMSG_ERROR || message.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    NlasIterator::new(message.payload.get(CODE_AND_HEADER..)?)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)
        .and_then(|attribute| parse_string(attribute.value()).ok())
}

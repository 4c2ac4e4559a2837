//! The filters of an interface's clsact qdisc, read and changed.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{
    DecodeError, NLM_F_CREATE, NLM_F_EXCL, NlasIterator, parse_string, parse_u32,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption},
};
use nix::errno::Errno;

use super::{Netlink, NetlinkError, decode::kind, is_absent};
use crate::core::clsact::{ALL_PROTOCOLS, BPF, Filter, Position};

const CLSACT: &str = "clsact";
/// `struct tcmsg`
const HEADER: usize = 20;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;

/// One direction of an interface's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What comes in.
    Ingress,
    /// What leaves.
    Egress,
}

impl Direction {
    const fn parent(self) -> TcHandle {
        TcHandle {
            major: TcHandle::CLSACT.major,
            minor: match self {
                Self::Ingress => TcHandle::MIN_INGRESS,
                Self::Egress => TcHandle::MIN_EGRESS,
            },
        }
    }
}

/// A BPF filter that is to be there.
#[derive(Clone, Copy, Debug)]
pub struct BpfFilter<'a> {
    /// Where.
    pub position: Position,
    /// What it is called.
    pub name: &'a str,
    /// The program; it decides about packets itself (`direct-action`).
    pub program: BorrowedFd<'a>,
}

impl Netlink {
    /// The kind of the qdisc that a link has where clsact belongs; `None`: it has none.
    pub fn ingress_qdisc(&mut self, ifindex: u32) -> Result<Option<String>, NetlinkError> {
        let message = TcMessage::from_parts(header(ifindex, TcHandle::UNSPEC), vec![]);
        let qdiscs = self.table(
            &RouteNetlinkMessage::GetQueueDiscipline(message),
            "read qdiscs",
            kind::NEW_QDISC,
            |payload| {
                let raw = Raw::parse(payload)?;
                // Older kernels answer for all links.
                let here = raw.ifindex == ifindex && raw.parent == u32::from(TcHandle::CLSACT);
                Ok(here.then_some(raw.kind))
            },
        )?;
        Ok(qdiscs.into_iter().next())
    }

    /// Gives a link a clsact qdisc. That it has one is success.
    pub fn add_clsact(&mut self, ifindex: u32) -> Result<(), NetlinkError> {
        let request = format!("add a clsact qdisc to link {ifindex}");
        let message = RouteNetlinkMessage::NewQueueDiscipline(clsact(ifindex));
        match self
            .socket
            .request(message, NLM_F_CREATE | NLM_F_EXCL, &request)
        {
            Err(error) if error.errno() == Some(Errno::EEXIST) => Ok(()),
            result => result.map(drop),
        }
    }

    /// Removes the clsact qdisc of a link if it has no filter. That there is none is success.
    pub fn remove_empty_clsact(&mut self, ifindex: u32) -> Result<(), NetlinkError> {
        for direction in [Direction::Ingress, Direction::Egress] {
            if !self.filters(ifindex, direction)?.is_empty() {
                return Ok(());
            }
        }
        let request = format!("remove the clsact qdisc of link {ifindex}");
        let message = RouteNetlinkMessage::DelQueueDiscipline(clsact(ifindex));
        match self.socket.request(message, 0, &request) {
            Err(error) if is_absent(&error) => Ok(()),
            result => result.map(drop),
        }
    }

    /// Every filter of one direction of a link, in the order in which they are asked.
    pub fn filters(
        &mut self,
        ifindex: u32,
        direction: Direction,
    ) -> Result<Vec<Filter>, NetlinkError> {
        let message = TcMessage::from_parts(header(ifindex, direction.parent()), vec![]);
        self.table(
            &RouteNetlinkMessage::GetTrafficFilter(message),
            &format!("read the filters of link {ifindex}"),
            kind::NEW_FILTER,
            |payload| Raw::parse(payload)?.filter().map(Some),
        )
    }

    /// Adds a filter where none is.
    pub fn add_filter(
        &mut self,
        ifindex: u32,
        direction: Direction,
        filter: BpfFilter<'_>,
    ) -> Result<(), NetlinkError> {
        self.set_filter(ifindex, direction, filter, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Puts another program into a filter that is there: each packet meets one of the two.
    pub fn replace_filter(
        &mut self,
        ifindex: u32,
        direction: Direction,
        filter: BpfFilter<'_>,
    ) -> Result<(), NetlinkError> {
        self.set_filter(ifindex, direction, filter, 0)
    }

    fn set_filter(
        &mut self,
        ifindex: u32,
        direction: Direction,
        filter: BpfFilter<'_>,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        let request = format!("set the filter {} of link {ifindex}", filter.name);
        let options = [
            // Descriptors are not negative.
            TcFilterBpfOption::ProgFd(filter.program.as_raw_fd().cast_unsigned()),
            TcFilterBpfOption::ProgName(filter.name.to_owned()),
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
        ];
        let attributes = vec![
            TcAttribute::Kind(BPF.to_owned()),
            TcAttribute::Options(options.map(TcOption::Bpf).to_vec()),
        ];
        let header = at(ifindex, direction, filter.position);
        let message = TcMessage::from_parts(header, attributes);
        let message = RouteNetlinkMessage::NewTrafficFilter(message);
        self.socket.request(message, flags, &request).map(drop)
    }

    /// Removes a filter. That it is not there, or that the link is gone, is success.
    pub fn remove_filter(
        &mut self,
        ifindex: u32,
        direction: Direction,
        position: Position,
    ) -> Result<(), NetlinkError> {
        let request = format!("remove a filter of link {ifindex}");
        let attributes = vec![TcAttribute::Kind(BPF.to_owned())];
        let message = TcMessage::from_parts(at(ifindex, direction, position), attributes);
        let message = RouteNetlinkMessage::DelTrafficFilter(message);
        match self.socket.request(message, 0, &request) {
            Err(error) if is_absent(&error) => Ok(()),
            result => result.map(drop),
        }
    }
}

/// Names the clsact qdisc of a link.
fn clsact(ifindex: u32) -> TcMessage {
    let mut header = header(ifindex, TcHandle::CLSACT);
    header.handle = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: 0,
    };
    TcMessage::from_parts(header, vec![TcAttribute::Kind(CLSACT.to_owned())])
}

fn header(ifindex: u32, parent: TcHandle) -> TcHeader {
    TcHeader {
        index: ifindex.cast_signed(),
        parent,
        ..TcHeader::default()
    }
}

/// Names a filter: its priority and the packets that it is for share a word.
fn at(ifindex: u32, direction: Direction, position: Position) -> TcHeader {
    let priority = u32::from(position.priority) << 16;
    TcHeader {
        handle: TcHandle::from(position.handle),
        info: priority | u32::from(ALL_PROTOCOLS.to_be()),
        ..header(ifindex, direction.parent())
    }
}

/// `struct tcmsg` and the attributes that matter.
struct Raw {
    ifindex: u32,
    handle: u32,
    parent: u32,
    info: u32,
    kind: String,
    chain: u32,
    options: Vec<u8>,
}

impl Raw {
    fn parse(payload: &[u8]) -> Result<Self, DecodeError> {
        let word = |at: usize| parse_u32(payload.get(at..at + 4).unwrap_or_default());
        let mut raw = Self {
            ifindex: word(4)?,
            handle: word(8)?,
            parent: word(12)?,
            info: word(16)?,
            kind: String::new(),
            chain: 0,
            options: Vec::new(),
        };
        for attribute in NlasIterator::new(payload.get(HEADER..).unwrap_or_default()) {
            let attribute = attribute?;
            match attribute.kind() {
                TCA_KIND => raw.kind = parse_string(attribute.value())?,
                TCA_CHAIN => raw.chain = parse_u32(attribute.value())?,
                TCA_OPTIONS => raw.options = attribute.value().to_vec(),
                _ => {}
            }
        }
        Ok(raw)
    }

    fn filter(self) -> Result<Filter, DecodeError> {
        let (mut name, mut program) = (None, None);
        if self.kind == BPF {
            for option in NlasIterator::new(&self.options) {
                let option = option?;
                match option.kind() {
                    TCA_BPF_NAME => name = Some(parse_string(option.value())?),
                    TCA_BPF_ID => program = Some(parse_u32(option.value())?),
                    _ => {}
                }
            }
        }
        let [high, low] = [self.info >> 16, self.info & 0xffff];
        let half = |value: u32| u16::try_from(value).unwrap_or_default();
        Ok(Filter {
            chain: self.chain,
            priority: half(high),
            protocol: u16::from_be(half(low)),
            handle: self.handle,
            kind: self.kind,
            name,
            program,
        })
    }
}

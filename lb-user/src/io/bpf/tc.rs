//! The tc programs of an interface: tcx links, or filters of a clsact qdisc where the kernel has no
//! tcx (before Linux 6.6).
//!
//! They go first: another program that accepts or redirects a packet ends its way through the
//! chain. A tcx link cannot be moved, and a program cannot be twice in one chain. So who is no longer
//! first loads its program again, attaches that one first, and then takes the old one away. A filter has no
//! pin: its name says whose it is ([`crate::core::clsact`]).

use std::os::fd::{AsFd as _, BorrowedFd};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::TcAttachOptions,
    },
};

use super::{
    BpfError, Pins,
    attach::{attach_error, load_once, pin, program},
};
use crate::{
    core::{
        attach::Place,
        clsact::{self, Own, Step},
    },
    io::netlink::{
        Netlink, NetlinkError,
        filters::{BpfFilter, Direction},
    },
};

/// The qdisc that has filters for both directions.
const CLSACT: &str = "clsact";

/// A program and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    /// `tc_ingress`: what comes in.
    Ingress,
    /// `tc_egress`: what leaves.
    Egress,
}

impl Side {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "tc_ingress",
            Self::Egress => "tc_egress",
        }
    }

    const fn place(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }

    /// Name of the link's pin.
    pub(super) fn link_name(self, ifindex: u32) -> String {
        format!("{}_{ifindex}", self.name())
    }
}

fn loaded(object: &mut Ebpf, side: Side) -> Result<&mut SchedClassifier, BpfError> {
    let program = program::<SchedClassifier>(object, side.name())?;
    load_once(side.name(), program.fd().is_ok(), || program.load())?;
    Ok(program)
}

/// Load the program: the verifier takes its time, in which no advert is sent.
pub(super) fn preload(object: &mut Ebpf, side: Side) -> Result<(), BpfError> {
    loaded(object, side).map(drop)
}

/// Replace the program of the link that is pinned as `link`, if there is one and it is attached.
pub(super) fn adopt(
    object: &mut Ebpf,
    pins: &Pins,
    side: Side,
    link: &str,
) -> Result<bool, BpfError> {
    let program = loaded(object, side)?;
    let Ok(pinned) = PinnedLink::from_pin(pins.link(link)) else {
        return Ok(false);
    };
    let Ok(link) = FdLink::from(pinned).try_into() else {
        return Ok(false);
    };
    Ok(match program.attach_to_link(link) {
        Ok(id) => program.take_link(id).is_ok(),
        Err(_) => false,
    })
}

/// Attach the program before all others; the link is not pinned yet.
pub(super) fn attach_first(
    object: &mut Ebpf,
    side: Side,
    interface: &str,
) -> Result<FdLink, BpfError> {
    let name = side.name();
    let program = loaded(object, side)?;
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program
        .attach_with_options(interface, side.place(), first)
        .map_err(attach_error(name, interface))?;
    let link = program
        .take_link(id)
        .map_err(attach_error(name, interface))?;
    FdLink::try_from(link).map_err(|source| BpfError::Link { name, source })
}

/// Have the program loaded a second time by the next attachment.
pub(super) fn renew(object: &mut Ebpf, side: Side) -> Result<(), BpfError> {
    let name = side.name();
    loaded(object, side)?
        .unload()
        .map_err(|source| BpfError::Program {
            name,
            source: Box::new(source),
        })
}

/// Pin a link that [`attach_first`] made.
pub(super) fn pin_link(link: FdLink, pins: &Pins, name: &str) -> Result<(), BpfError> {
    pin(link, pins, name)
}

/// Id of the loaded program.
pub(super) fn program_id(object: &mut Ebpf, side: Side) -> Option<u32> {
    Some(loaded(object, side).ok()?.info().ok()?.id())
}

/// What stands before program `own` on `interface`: the names of programs that are not xvip's.
/// Those of another instance are not fought with.
pub(super) fn before(interface: &str, side: Side, own: u32) -> Vec<String> {
    let Ok((_, chain)) = SchedClassifier::query_tcx(interface, side.place()) else {
        return vec![];
    };
    let others = chain.iter().take_while(|program| program.id() != own);
    let names = others.map(|program| {
        let name = program.name_as_str().unwrap_or_default();
        let name = if name.is_empty() { "unnamed" } else { name };
        (name.to_owned(), program.id())
    });
    let strangers = names.filter(|(name, _)| name != side.name());
    strangers
        .map(|(name, id)| format!("{name} (id {id})"))
        .collect()
}

/// Whether the kernel refused a tcx link because it does not know them.
pub(super) fn lacks_tcx(error: &BpfError) -> bool {
    let BpfError::Attach { source, .. } = error else {
        return false;
    };
    matches!(
        &**source,
        ProgramError::SyscallError(error)
            if error.io_error.kind() == std::io::ErrorKind::InvalidInput
    )
}

/// The clsact filters of one program of an instance.
#[derive(Clone, Debug)]
pub(super) struct Filters {
    side: Side,
    /// Tells them from those of other instances and of others.
    name: String,
    /// First handle to be tried.
    handle: u16,
}

/// What came of putting a filter in its place.
pub(super) struct Placed {
    /// It was not there, or had another program.
    pub(super) changed: bool,
    /// Filters of others that stood before it.
    pub(super) before: Vec<String>,
    /// Those that do so still.
    pub(super) stay: Vec<String>,
}

impl Filters {
    pub(super) fn new(pins: &Pins, side: Side) -> Self {
        Self {
            side,
            name: clsact::name(&pins.instance(), side.name()),
            handle: handle_of(pins),
        }
    }

    const fn direction(&self) -> Direction {
        match self.side {
            Side::Ingress => Direction::Ingress,
            Side::Egress => Direction::Egress,
        }
    }

    /// Have the loaded program in a filter of an interface, once, and before those of others, unless
    /// they insist. The filter belongs to the kernel: it outlives this process, and the program in it is
    /// replaced without a moment in which there is none.
    pub(super) fn put(
        &self,
        object: &mut Ebpf,
        place: &Place,
        insist: bool,
    ) -> Result<Placed, BpfError> {
        let name = self.side.name();
        let program = loaded(object, self.side)?;
        let id = program
            .info()
            .map_err(|source| BpfError::program(name, source))?;
        let fd = program
            .fd()
            .map_err(|source| BpfError::program(name, source))?;
        let own = Own {
            name: &self.name,
            program: id.id(),
            handle: self.handle,
        };
        let mut netlink = Netlink::open().map_err(self.failed(place))?;
        self.ensure_qdisc(&mut netlink, place)?;
        self.settle(&mut netlink, place, own, fd.as_fd(), insist)
            .map_err(self.failed(place))
    }

    fn settle(
        &self,
        netlink: &mut Netlink,
        place: &Place,
        own: Own<'_>,
        program: BorrowedFd<'_>,
        insist: bool,
    ) -> Result<Placed, NetlinkError> {
        let (ifindex, direction) = (place.ifindex, self.direction());
        let found = netlink.filters(ifindex, direction)?;
        let placing = clsact::place(&found, own, insist);
        let filter = |position| BpfFilter {
            position,
            name: own.name,
            program,
        };
        match placing.step {
            Step::Keep => {}
            Step::Replace(position) => {
                netlink.replace_filter(ifindex, direction, filter(position))?;
            }
            Step::Add(position) => netlink.add_filter(ifindex, direction, filter(position))?,
        }
        // Only now: for a moment packets meet both, which is the same as one.
        for position in placing.remove {
            netlink.remove_filter(ifindex, direction, position)?;
        }
        Ok(Placed {
            changed: placing.step != Step::Keep,
            before: placing.before,
            stay: placing.stay,
        })
    }

    fn ensure_qdisc(&self, netlink: &mut Netlink, place: &Place) -> Result<(), BpfError> {
        let kind = netlink.ingress_qdisc(place.ifindex);
        match kind.map_err(self.failed(place))?.as_deref() {
            Some(CLSACT) => Ok(()),
            None => netlink
                .add_clsact(place.ifindex)
                .map_err(self.failed(place)),
            // It would take the egress filter as one for what comes in.
            Some(kind) => Err(BpfError::Qdisc {
                interface: place.interface.clone(),
                kind: kind.to_owned(),
            }),
        }
    }

    fn failed(&self, place: &Place) -> impl Fn(NetlinkError) -> BpfError {
        let (name, interface) = (self.side.name(), place.interface.clone());
        move |source| BpfError::Filter {
            name,
            interface: interface.clone(),
            source,
        }
    }

    /// Remove them from a link, if they are there.
    pub(super) fn remove(&self, netlink: &mut Netlink, ifindex: u32) -> Result<bool, NetlinkError> {
        let found = netlink.filters(ifindex, self.direction())?;
        let own = clsact::positions(&found, &self.name);
        for position in &own {
            netlink.remove_filter(ifindex, self.direction(), *position)?;
        }
        Ok(!own.is_empty())
    }
}

/// Where an instance looks for a free handle first: apart from the small ones, which others like.
fn handle_of(pins: &Pins) -> u16 {
    let text = pins.directory().as_os_str().as_encoded_bytes();
    // FNV-1a, folded.
    let hash = text.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    let folded = (hash >> 16) ^ (hash & 0xffff);
    u16::try_from(folded).unwrap_or_default() | 0x8000
}

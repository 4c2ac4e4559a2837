//! The tc programs of an interface: tcx links, or filters of a clsact qdisc where the kernel has no
//! tcx (before Linux 6.6).
//!
//! They go first: another program that accepts or redirects a packet ends its way through the
//! chain. A tcx link cannot be moved, and a program cannot be twice in one chain. So who is no longer
//! first loads its program again, attaches that one first, and then takes the old one away.

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, Link, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
};

use super::{
    BpfError, Pins,
    attach::{attach_error, load_once, pin, program},
};

/// Priority of clsact filters: before all others.
const FIRST_PRIORITY: u16 = 1;

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

/// The clsact filter of one program: its handle tells it from those of other instances.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filter {
    /// Which program.
    pub(super) side: Side,
    /// 1..=65535
    pub(super) handle: u16,
}

impl Filter {
    fn handle(self) -> TcHandle {
        TcHandle::new(0, self.handle)
    }

    /// Attach it to `interface`, or put the loaded program into the one that is there. It outlives
    /// this process.
    pub(super) fn attach(self, object: &mut Ebpf, interface: &str) -> Result<(), BpfError> {
        let Self { side, .. } = self;
        // An existing qdisc is fine.
        let _ = tc::qdisc_add_clsact(interface);
        let program = loaded(object, side)?;
        let replaced = self
            .existing(interface)
            .and_then(|filter| program.attach_to_link(filter));
        let options = NlOptions {
            priority: FIRST_PRIORITY,
            handle: self.handle(),
            classid: None,
        };
        let id = match replaced {
            Ok(id) => Ok(id),
            Err(_) => program.attach_with_options(
                interface,
                side.place(),
                TcAttachOptions::Netlink(options),
            ),
        };
        let id = id.map_err(attach_error(side.name(), interface))?;
        let link = program
            .take_link(id)
            .map_err(attach_error(side.name(), interface))?;
        // Dropped it would be detached.
        std::mem::forget(link);
        Ok(())
    }

    /// Remove it from `interface`, if it is there.
    pub(super) fn detach(self, interface: &str) {
        if let Ok(filter) = self.existing(interface) {
            // That there is none is fine.
            let _ = filter.detach();
        }
    }

    fn existing(self, interface: &str) -> Result<SchedClassifierLink, ProgramError> {
        let (place, handle) = (self.side.place(), self.handle());
        SchedClassifierLink::attached(interface, place, FIRST_PRIORITY, handle, None)
            .map_err(ProgramError::IOError)
    }
}

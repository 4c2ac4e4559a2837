//! What can go wrong with the data plane.

use std::{io, path::PathBuf};

use aya::{
    EbpfError,
    maps::MapError,
    pin::PinError,
    programs::{ProgramError, links::LinkError},
};

use super::{batch::BatchError, refusal::Refusal};
use crate::{
    admin::Paths,
    io::{kernel, netlink::NetlinkError},
};

/// An error of the data plane, with what it was about.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The object could not be loaded.
    #[error("cannot load the BPF object: {}", chain(_0))]
    Load(Box<EbpfError>),
    /// The object lacks something: it is not of this version.
    #[error("the BPF object has no {0}")]
    Missing(&'static str),
    /// The kernel refused a program.
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// A program could not be used.
    #[error("cannot use program {name}: {}", chain(source))]
    Program {
        /// Its name.
        name: &'static str,
        /// What the kernel said.
        source: Box<ProgramError>,
    },
    /// A program could not be attached.
    #[error("cannot attach {name} to {to}: {}", chain(source))]
    Attach {
        /// The program.
        name: &'static str,
        /// Interface or cgroup.
        to: String,
        /// What the kernel said.
        source: Box<ProgramError>,
    },
    /// There is another XDP program: an interface has one at most.
    #[error(
        "cannot attach {name} to {interface}: {other} is on that interface, which can have one only"
    )]
    Taken {
        /// The program.
        name: &'static str,
        /// The interface.
        interface: String,
        /// The other one.
        other: String,
    },
    /// A clsact filter could not be set or removed.
    #[error("cannot attach {name} to {interface} as a clsact filter: {source}")]
    Filter {
        /// The program.
        name: &'static str,
        /// The interface.
        interface: String,
        /// What the kernel said.
        source: NetlinkError,
    },
    /// Somebody else's qdisc is where clsact has to be.
    #[error(
        "{interface} has a qdisc of the kind {kind}, which has no filters for packets that leave; xvip \
         needs clsact there on this kernel, which does the same and more: tc qdisc del dev {interface} \
         {kind}, and set the filters up again on clsact"
    )]
    Qdisc {
        /// The interface.
        interface: String,
        /// The qdisc's kind.
        kind: String,
    },
    /// An interface cannot carry the ingress program in any mode that is allowed.
    #[error("{interface} cannot carry the data plane: {why}")]
    NoMode {
        /// The interface.
        interface: String,
        /// Why.
        why: String,
    },
    /// A link is not what it should be.
    #[error("cannot use the link of {name}: {}", chain(source))]
    Link {
        /// The program.
        name: &'static str,
        /// What the kernel said.
        source: LinkError,
    },
    /// A pin could not be made.
    #[error("cannot pin {}: {}", path.display(), chain(source))]
    Pin {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: PinError,
    },
    /// A file below the BPF file system could not be made or removed.
    #[error("{}: {source}", path.display())]
    Path {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A map could not be read or written.
    #[error("map {name}: {}", chain(source))]
    Map {
        /// Its name.
        name: &'static str,
        /// What the kernel said.
        source: MapError,
    },
    /// A map could not be read in pieces.
    #[error("map {name}: {}", chain(source))]
    Batch {
        /// Its name.
        name: &'static str,
        /// What is wrong.
        source: BatchError,
    },
}

impl BpfError {
    /// A program could not be loaded, or used.
    pub(super) fn program(name: &'static str, source: ProgramError) -> Self {
        match Refusal::of_program(name, kernel::release(), source) {
            Ok(refusal) => Self::Refused(Box::new(refusal)),
            Err(source) => Self::Program {
                name,
                source: Box::new(source),
            },
        }
    }

    /// The object could not be loaded.
    pub(super) fn object(source: EbpfError) -> Self {
        match Refusal::of_object(kernel::release(), source) {
            Ok(refusal) => Self::Refused(Box::new(refusal)),
            Err(source) => Self::Load(Box::new(source)),
        }
    }

    /// Keep what the verifier said of a refused program in a file.
    #[must_use]
    pub(super) fn with_log(mut self, paths: &Paths) -> Self {
        if let Self::Refused(refusal) = &mut self {
            refusal.keep(paths);
        }
        self
    }

    /// Say that the programs of an earlier run are still attached.
    #[must_use]
    pub(super) fn before_others(mut self) -> Self {
        if let Self::Refused(refusal) = &mut self {
            refusal.note_earlier();
        }
        self
    }

    /// The kernel's reason alone.
    pub(super) fn cause(&self) -> String {
        if let Self::Refused(refusal) = self {
            return refusal.why();
        }
        if let Self::Taken { other, .. } = self {
            return format!("{other} is on the interface, which can have one only");
        }
        let mut innermost: &dyn std::error::Error = self;
        while let Some(source) = innermost.source() {
            innermost = source;
        }
        innermost.to_string()
    }

    /// Whether the kernel does not know this kind of program or attachment.
    pub(super) fn is_unknown(&self) -> bool {
        if let Self::Refused(refusal) = self {
            // The verifier's words are about this program, not about its kind.
            return refusal.error().kind() == io::ErrorKind::InvalidInput && !refusal.has_log();
        }
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = source {
            if let Some(io) = error.downcast_ref::<io::Error>() {
                return io.kind() == io::ErrorKind::InvalidInput;
            }
            source = error.source();
        }
        false
    }

    /// Whether more privilege would have helped.
    pub fn is_permission(&self) -> bool {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = source {
            if error
                .downcast_ref::<io::Error>()
                .is_some_and(|io| io.kind() == io::ErrorKind::PermissionDenied)
            {
                return true;
            }
            source = error.source();
        }
        false
    }
}

/// An error with all of its causes: aya's own texts leave them out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        source = error.source();
    }
    text
}

//! What can go wrong with the data plane.

use std::{io, path::PathBuf};

use aya::{
    EbpfError,
    maps::MapError,
    pin::PinError,
    programs::{ProgramError, links::LinkError},
};

use super::batch::BatchError;

/// An error of the data plane, with what it was about.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The object could not be loaded.
    #[error("cannot load the BPF object: {}", chain(_0))]
    Load(Box<EbpfError>),
    /// The object lacks something: it is not of this version.
    #[error("the BPF object has no {0}")]
    Missing(&'static str),
    /// A program was refused.
    #[error("cannot load program {name}: {}", chain(source))]
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

//! The connect hooks, and what attaching takes everywhere: programs are loaded once and their links
//! pinned.

use std::fs::File;

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSockAddr, links::FdLink},
};

use super::{BpfError, Pins, pins::remove_file};

/// Attach the connect hooks to `cgroup`, or remove them.
///
/// The kernel cannot replace the program of such a link: the new one is attached beside the old
/// one, which is then removed. A `connect()` in between is rewritten by one of them and no longer
/// addressed to a VIP for the other.
pub(super) fn hooks(object: &mut Ebpf, pins: &Pins, cgroup: Option<&File>) -> Result<(), BpfError> {
    for name in ["connect4", "connect6", "getpeername4", "getpeername6"] {
        let Some(cgroup) = cgroup else {
            remove_file(&pins.link(name))?;
            continue;
        };
        let program = program::<CgroupSockAddr>(object, name)?;
        load_once(name, program.fd().is_ok(), || program.load())?;
        let to_cgroup = attach_error(name, "the cgroup");
        let id = program
            .attach(cgroup, CgroupAttachMode::Single)
            .map_err(&to_cgroup)?;
        let link = program.take_link(id).map_err(to_cgroup)?;
        let link = FdLink::try_from(link).map_err(|source| BpfError::Link { name, source })?;
        remove_file(&pins.link(name))?;
        pin(link, pins, name)?;
    }
    Ok(())
}

pub(super) fn pin(link: FdLink, pins: &Pins, name: &str) -> Result<(), BpfError> {
    let path = pins.link(name);
    link.pin(&path)
        .map(drop)
        .map_err(|source| BpfError::Pin { path, source })
}

pub(super) fn program<'a, P>(
    object: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut P, BpfError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    object
        .program_mut(name)
        .ok_or(BpfError::Missing(name))?
        .try_into()
        .map_err(|source| BpfError::Program {
            name,
            source: Box::new(source),
        })
}

/// A program is loaded for the first interface and attached to all.
pub(super) fn load_once(
    name: &'static str,
    loaded: bool,
    load: impl FnOnce() -> Result<(), aya::programs::ProgramError>,
) -> Result<(), BpfError> {
    if loaded {
        return Ok(());
    }
    load().map_err(|source| BpfError::Program {
        name,
        source: Box::new(source),
    })
}

pub(super) fn attach_error(
    name: &'static str,
    to: &str,
) -> impl Fn(aya::programs::ProgramError) -> BpfError {
    move |source| BpfError::Attach {
        name,
        to: to.to_owned(),
        source: Box::new(source),
    }
}

/// The innermost cause of an error, which is the kernel's.
pub(super) fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

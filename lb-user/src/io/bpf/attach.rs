//! The hooks of a cgroup, and what attaching takes everywhere: programs are loaded once and their links
//! pinned.

use std::fs::File;

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSockAddr, links::FdLink},
};

use super::{BpfError, Pins, pins::remove_file};

/// The hooks of connections.
const CONNECT: [&str; 4] = ["connect4", "connect6", "getpeername4", "getpeername6"];
/// The hooks of UDP datagrams. They belong together: without the second half the answers to what the
/// first half redirects would seem to come from strangers.
const DATAGRAM: [&str; 4] = ["sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6"];

/// Attach the connect hooks to `cgroup`, or remove them. Returns what an operator should know.
///
/// The kernel cannot replace the program of such a link: the new one is attached beside the old
/// one, which is then removed. A `connect()` in between is rewritten by one of them and no longer
/// addressed to a VIP for the other.
pub(super) fn hooks(
    object: &mut Ebpf,
    pins: &Pins,
    cgroup: Option<&File>,
) -> Result<Option<String>, BpfError> {
    let Some(cgroup) = cgroup else {
        remove(pins, CONNECT.into_iter().chain(DATAGRAM))?;
        return Ok(None);
    };
    for name in CONNECT {
        hook(object, pins, cgroup, name)?;
    }
    // Loaded before any is attached.
    let mut attached = preload_datagrams(object);
    for name in DATAGRAM {
        attached = attached.and_then(|()| hook(object, pins, cgroup, name));
    }
    match attached {
        Err(error) if error.is_unknown() => {
            remove(pins, DATAGRAM.into_iter())?;
            Ok(Some(format!(
                "this kernel has no hooks for UDP: datagrams that this node's own processes send to a \
                 VIP without connecting are not redirected ({error})"
            )))
        }
        other => other.map(|()| None),
    }
}

/// Have the kernel take all that [`hooks`] attaches.
pub(super) fn preload(object: &mut Ebpf) -> Result<(), BpfError> {
    let mut needed = CONNECT.into_iter();
    needed.try_for_each(|name| loaded(object, name).map(drop))?;
    preload_datagrams(object).or_else(|error| {
        // What [`hooks`] does without.
        if error.is_unknown() {
            Ok(())
        } else {
            Err(error)
        }
    })
}

fn preload_datagrams(object: &mut Ebpf) -> Result<(), BpfError> {
    DATAGRAM
        .into_iter()
        .try_for_each(|name| loaded(object, name).map(drop))
}

fn remove(pins: &Pins, mut names: impl Iterator<Item = &'static str>) -> Result<(), BpfError> {
    names.try_for_each(|name| remove_file(&pins.link(name)))
}

fn loaded<'a>(
    object: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut CgroupSockAddr, BpfError> {
    let program = program::<CgroupSockAddr>(object, name)?;
    load_once(name, program.fd().is_ok(), || program.load())?;
    Ok(program)
}

fn hook(object: &mut Ebpf, pins: &Pins, cgroup: &File, name: &'static str) -> Result<(), BpfError> {
    let program = loaded(object, name)?;
    let to_cgroup = attach_error(name, "the cgroup");
    let id = program
        .attach(cgroup, CgroupAttachMode::Single)
        .map_err(&to_cgroup)?;
    let link = program.take_link(id).map_err(to_cgroup)?;
    let link = FdLink::try_from(link).map_err(|source| BpfError::Link { name, source })?;
    remove_file(&pins.link(name))?;
    pin(link, pins, name)
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
    load().map_err(|source| BpfError::program(name, source))
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

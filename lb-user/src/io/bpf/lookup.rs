//! The program that finds listeners for VIPs, attached to this network namespace.
//!
//! The kernel would call a second one as well: the link of an earlier run is adopted.

use std::{
    fs::File,
    os::{fd::AsFd, unix::fs::MetadataExt},
};

use aya::{
    Ebpf,
    programs::{SkLookup, links::FdLink},
};

use super::{
    BpfError, Pins,
    attach::{attach_error, load_once, pin, program},
    pins::remove_file,
    syscall,
};

const NAME: &str = "socket_lookup";
const NAMESPACE: &str = "/proc/thread-self/ns/net";

/// Have the program attached to the calling thread's network namespace. Returns what an operator
/// should know.
pub(super) fn attach(object: &mut Ebpf, pins: &Pins) -> Result<Option<String>, BpfError> {
    match attach_known(object, pins) {
        Err(error) if error.is_unknown() => {
            remove_file(&pins.link(NAME))?;
            Ok(Some(format!(
                "this kernel cannot give a VIP's connections to a listener that is bound to the \
                 node's address: listen on the wildcard address ({error})"
            )))
        }
        other => other.map(|()| None),
    }
}

/// Have the kernel take the program, if it knows programs of this kind.
pub(super) fn preload(object: &mut Ebpf) -> Result<(), BpfError> {
    match loaded(object) {
        Err(error) if error.is_unknown() => Ok(()),
        other => other.map(drop),
    }
}

fn loaded(object: &mut Ebpf) -> Result<&mut SkLookup, BpfError> {
    let program = program::<SkLookup>(object, NAME)?;
    load_once(NAME, program.fd().is_ok(), || program.load())?;
    Ok(program)
}

fn attach_known(object: &mut Ebpf, pins: &Pins) -> Result<(), BpfError> {
    let program = loaded(object)?;
    let namespace = File::open(NAMESPACE).and_then(|file| Ok((file.metadata()?.ino(), file)));
    let (number, namespace) = namespace.map_err(|source| BpfError::Path {
        path: NAMESPACE.into(),
        source,
    })?;
    if adopt(program, pins, number) {
        return Ok(());
    }
    let to_namespace = attach_error(NAME, "the network namespace");
    let id = program.attach(namespace).map_err(&to_namespace)?;
    let link = program.take_link(id).map_err(to_namespace)?;
    remove_file(&pins.link(NAME))?;
    pin(FdLink::from(link), pins, NAME)
}

/// Replace the program of the pinned link, if there is one and it is this namespace's.
fn adopt(program: &SkLookup, pins: &Pins, namespace: u64) -> bool {
    let (Ok(link), Ok(program)) = (syscall::open_pin(&pins.link(NAME)), program.fd()) else {
        return false;
    };
    let link = link.as_fd();
    syscall::link_state(link).is_ok_and(|state| u64::from(state.ifindex) == namespace)
        && syscall::update_link(link, program.as_fd()).is_ok()
}

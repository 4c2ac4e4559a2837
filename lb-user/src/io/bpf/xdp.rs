//! The ingress program as XDP program of an interface.

use std::io::ErrorKind;

use aya::{
    Ebpf,
    programs::{
        ProgramError, ProgramInfo, Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        loaded_programs,
    },
};

use super::{
    BpfError, Pins,
    attach::{attach_error, load_once, pin, program},
};
use crate::{core::attach::Mode, io::netlink::Netlink};

const NAME: &str = "xdp_ingress";

/// Name of the link's pin; `None`: not an XDP mode.
pub(super) fn link_name(mode: Mode, ifindex: u32) -> Option<String> {
    Some(match mode {
        Mode::Native => format!("xdp_native_{ifindex}"),
        Mode::Generic => format!("xdp_generic_{ifindex}"),
        Mode::Tc => return None,
    })
}

fn loaded(object: &mut Ebpf) -> Result<&mut Xdp, BpfError> {
    let program = program::<Xdp>(object, NAME)?;
    load_once(NAME, program.fd().is_ok(), || program.load())?;
    Ok(program)
}

/// Load the program: the verifier takes its time, in which no advert is sent.
pub(super) fn preload(object: &mut Ebpf) -> Result<(), BpfError> {
    loaded(object).map(drop)
}

/// Replace the program of the link that is pinned as `link`, if there is one and it is attached.
pub(super) fn adopt(object: &mut Ebpf, pins: &Pins, link: &str) -> Result<bool, BpfError> {
    Ok(update(loaded(object)?, pins, link))
}

/// Have every packet passed from now on: what follows may take a driver a while.
pub(super) fn suspend(object: &mut Ebpf, pins: &Pins, link: &str) {
    let Ok(stub) = program::<Xdp>(object, "xdp_stub") else {
        return;
    };
    if load_once("xdp_stub", stub.fd().is_ok(), || stub.load()).is_ok() {
        update(stub, pins, link);
    }
}

fn update(program: &mut Xdp, pins: &Pins, link: &str) -> bool {
    let Ok(pinned) = PinnedLink::from_pin(pins.link(link)) else {
        return false;
    };
    let Ok(link) = FdLink::from(pinned).try_into() else {
        return false;
    };
    match program.attach_to_link(link) {
        // The pin holds the link from here on.
        Ok(id) => program.take_link(id).is_ok(),
        Err(_) => false,
    }
}

/// Attach the program and pin its link as `link`. `interface` is for errors.
pub(super) fn attach(
    object: &mut Ebpf,
    pins: &Pins,
    (link, mode): (&str, Mode),
    (interface, ifindex): (&str, u32),
) -> Result<(), BpfError> {
    let program = loaded(object)?;
    let mode = match mode {
        Mode::Generic => XdpMode::Skb,
        Mode::Native | Mode::Tc => XdpMode::Driver,
    };
    let id = program.attach_to_if_index(ifindex, mode).map_err(|error| {
        let other = is_taken(&error).then(|| other_program(ifindex)).flatten();
        match other {
            Some(other) => BpfError::Taken {
                name: NAME,
                interface: interface.to_owned(),
                other,
            },
            None => attach_error(NAME, interface)(error),
        }
    })?;
    let own = program
        .take_link(id)
        .map_err(attach_error(NAME, interface))?;
    let own = FdLink::try_from(own).map_err(|source| BpfError::Link { name: NAME, source })?;
    pin(own, pins, link)
}

/// Whether the kernel refused because of another program: one of the same mode, or of the other one.
fn is_taken(error: &ProgramError) -> bool {
    let ProgramError::SyscallError(error) = error else {
        return false;
    };
    let kind = error.io_error.kind();
    matches!(kind, ErrorKind::ResourceBusy | ErrorKind::AlreadyExists)
}

/// The XDP program that an interface has already, in words. The kernel does not say which one it is.
fn other_program(ifindex: u32) -> Option<String> {
    let id = Netlink::open().ok()?.xdp_program(ifindex).ok()??;
    let program = loaded_programs()
        .flatten()
        .find(|program| program.id() == id);
    let name = program.as_ref().and_then(ProgramInfo::name_as_str);
    Some(match name {
        Some(name) if !name.is_empty() => format!("the XDP program `{name}` (id {id})"),
        _ => format!("an XDP program without name (id {id})"),
    })
}

/// Id of the loaded program.
pub(super) fn program_id(object: &mut Ebpf) -> Option<u32> {
    let program = program::<Xdp>(object, NAME).ok()?;
    Some(program.info().ok()?.id())
}

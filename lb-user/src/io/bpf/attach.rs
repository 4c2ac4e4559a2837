//! Attaching by pinned links: an earlier run's program is replaced atomically, so that no packet
//! meets an interface without one.

use std::fs::File;

use aya::{
    Ebpf,
    programs::{
        CgroupAttachMode, CgroupSockAddr, LinkOrder, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        tc::TcAttachOptions,
    },
};

use super::{BpfError, Pins, pins::remove_file};
use crate::config::model::AttachMode;

/// How the ingress program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachedMode {
    /// By the driver.
    Native,
    /// By the network stack.
    Generic,
}

impl AttachedMode {
    const ALL: [Self; 2] = [Self::Native, Self::Generic];

    const fn xdp(self) -> XdpMode {
        match self {
            Self::Native => XdpMode::Driver,
            Self::Generic => XdpMode::Skb,
        }
    }

    fn pin(self, ifindex: u32) -> String {
        match self {
            Self::Native => format!("xdp_native_{ifindex}"),
            Self::Generic => format!("xdp_generic_{ifindex}"),
        }
    }
}

/// An uplink that the data plane is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Interface name.
    pub interface: String,
    /// Mode in force.
    pub mode: AttachedMode,
    /// Why it is not another one, in words.
    pub note: Option<String>,
}

/// Attach `xdp_ingress` to an uplink.
pub(super) fn ingress(
    object: &mut Ebpf,
    pins: &Pins,
    interface: &str,
    ifindex: u32,
    wanted: AttachMode,
) -> Result<Attached, BpfError> {
    const NAME: &str = "xdp_ingress";
    let program = program::<Xdp>(object, NAME)?;
    load_once(NAME, program.fd().is_ok(), || program.load())?;
    let modes: &[AttachedMode] = match wanted {
        AttachMode::Auto => &AttachedMode::ALL,
        AttachMode::Native => &[AttachedMode::Native],
        AttachMode::Generic => &[AttachedMode::Generic],
    };
    let attached = |mode, note| Attached {
        interface: interface.to_owned(),
        mode,
        note,
    };
    for &mode in modes {
        if adopt_xdp(program, pins, &mode.pin(ifindex)) {
            return Ok(attached(mode, None));
        }
    }
    // Another mode was wanted then, or the device is gone.
    for mode in AttachedMode::ALL {
        remove_file(&pins.link(&mode.pin(ifindex)))?;
    }
    let mut note = None;
    let mut refused = None;
    for &mode in modes {
        match program.attach_to_if_index(ifindex, mode.xdp()) {
            Ok(id) => {
                let link = program
                    .take_link(id)
                    .map_err(attach_error(NAME, interface))?;
                let link = FdLink::try_from(link)
                    .map_err(|source| BpfError::Link { name: NAME, source })?;
                pin(link, pins, &mode.pin(ifindex))?;
                return Ok(attached(mode, note));
            }
            Err(error) => {
                note = Some(format!(
                    "native XDP was refused ({}), so packets take the slower generic path",
                    cause(&error)
                ));
                refused = Some(error);
            }
        }
    }
    let source = refused.unwrap_or(aya::programs::ProgramError::NotAttached);
    Err(attach_error(NAME, interface)(source))
}

/// Replace the program of a pinned link, if there is one and its device is still there.
fn adopt_xdp(program: &mut Xdp, pins: &Pins, name: &str) -> bool {
    let Ok(pinned) = PinnedLink::from_pin(pins.link(name)) else {
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

/// Attach `tc_egress` to an uplink, before other programs.
pub(super) fn egress(
    object: &mut Ebpf,
    pins: &Pins,
    interface: &str,
    ifindex: u32,
    warnings: &mut Vec<String>,
) -> Result<(), BpfError> {
    const NAME: &str = "tc_egress";
    let program = program::<SchedClassifier>(object, NAME)?;
    load_once(NAME, program.fd().is_ok(), || program.load())?;
    let pin_name = format!("tc_egress_{ifindex}");
    if adopt_tc(program, pins, &pin_name) {
        return Ok(());
    }
    remove_file(&pins.link(&pin_name))?;
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    match program.attach_with_options(interface, TcAttachType::Egress, first) {
        Ok(id) => {
            let link = program
                .take_link(id)
                .map_err(attach_error(NAME, interface))?;
            let link =
                FdLink::try_from(link).map_err(|source| BpfError::Link { name: NAME, source })?;
            pin(link, pins, &pin_name)
        }
        Err(error) => egress_by_clsact(program, interface, &error, warnings),
    }
}

/// Before Linux 6.6 there is no tcx: the filter of a clsact qdisc does the same, but it cannot be
/// pinned and ends with the controller.
fn egress_by_clsact(
    program: &mut SchedClassifier,
    interface: &str,
    refused: &aya::programs::ProgramError,
    warnings: &mut Vec<String>,
) -> Result<(), BpfError> {
    // An existing qdisc is fine.
    let _ = aya::programs::tc::qdisc_add_clsact(interface);
    program
        .attach_with_options(
            interface,
            TcAttachType::Egress,
            TcAttachOptions::Netlink(aya::programs::tc::NlOptions::default()),
        )
        .map_err(attach_error("tc_egress", interface))?;
    warnings.push(format!(
        "{interface}: this kernel has no tcx ({}); the egress program is a clsact filter and ends with the controller",
        cause(refused)
    ));
    Ok(())
}

fn adopt_tc(program: &mut SchedClassifier, pins: &Pins, name: &str) -> bool {
    let Ok(pinned) = PinnedLink::from_pin(pins.link(name)) else {
        return false;
    };
    let Ok(link) = FdLink::from(pinned).try_into() else {
        return false;
    };
    match program.attach_to_link(link) {
        Ok(id) => program.take_link(id).is_ok(),
        Err(_) => false,
    }
}

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

fn pin(link: FdLink, pins: &Pins, name: &str) -> Result<(), BpfError> {
    let path = pins.link(name);
    link.pin(&path)
        .map(drop)
        .map_err(|source| BpfError::Pin { path, source })
}

fn program<'a, P>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, BpfError>
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
fn load_once(
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

fn attach_error(name: &'static str, to: &str) -> impl Fn(aya::programs::ProgramError) -> BpfError {
    move |source| BpfError::Attach {
        name,
        to: to.to_owned(),
        source: Box::new(source),
    }
}

/// The innermost cause of an error, which is the kernel's.
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

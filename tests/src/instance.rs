//! The data plane of an instance of xvip in this process, without a controller: loaded, attached to an
//! interface, dropped.

use anyhow::{Result, ensure};
use lb_user::{
    admin::Paths,
    core::{
        attach::{Mode, Place, Plan},
        network::Port,
    },
    io::bpf::{self, DataPlane, Loading, Outcome, Pins, features::Features},
};

use crate::{
    kernel,
    netns::{NetNs, unique},
    process::TempDir,
};

/// The interface that data planes are attached to.
const INTERFACE: &str = "eth0";

/// An instance of xvip. Dropping it removes its pins; clsact filters go with their namespace.
#[derive(Debug)]
pub struct Instance {
    name: String,
    directory: TempDir,
    tcx: bool,
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Err(error) = kernel::remove_pins(&self.name) {
            eprintln!("left behind: {error:#}");
        }
    }
}

impl Instance {
    /// A new one, whose tc programs are tcx links or clsact filters.
    pub fn new(tcx: bool) -> Result<Self> {
        kernel::ensure_bpffs()?;
        let name = unique("instance");
        Ok(Self {
            directory: TempDir::new(&name)?,
            name,
            tcx,
        })
    }

    /// Its pins.
    pub fn pins(&self) -> Pins {
        Pins::new(&self.name)
    }

    /// Its files.
    pub fn paths(&self) -> Paths {
        Paths::new(self.directory.path(), &self.name)
    }

    /// What its data plane is loaded with.
    pub fn loading(&self) -> Loading {
        Loading {
            object: bpf::object(),
            pins: self.pins(),
            features: Features::detect(),
            tcx: self.tcx,
            paths: self.paths(),
        }
    }

    /// Its data plane, attached in a namespace in this mode.
    pub fn run(&self, namespace: &NetNs, mode: Mode) -> Result<DataPlane> {
        let plan = plan(namespace, mode)?;
        let mut data_plane =
            namespace.enter(|| Ok(DataPlane::open(&self.loading(), None, &[plan])?))?;
        let outcome = attach(&mut data_plane, namespace, mode)?;
        let used = outcome.attached.first().map(|attached| attached.mode);
        ensure!(used == Some(Some(mode)), "attached as {used:?}");
        Ok(data_plane)
    }

    /// Name of its clsact filter for a program.
    pub fn filter(&self, program: &str) -> String {
        format!("xvip/{}/{program}", self.name)
    }
}

/// A namespace with one end of a veth pair.
pub fn veth() -> Result<NetNs> {
    let namespace = NetNs::new("instance")?;
    namespace.ip(&format!("link add {INTERFACE} type veth peer name far"))?;
    Ok(namespace)
}

/// Has a data plane attached again; what came of it, without failures.
pub fn attach(data_plane: &mut DataPlane, namespace: &NetNs, mode: Mode) -> Result<Outcome> {
    let plan = plan(namespace, mode)?;
    let outcome = namespace.enter(|| Ok(data_plane.attach(&[plan])))?;
    let failures: Vec<_> = outcome.failures.iter().map(ToString::to_string).collect();
    ensure!(failures.is_empty(), "{failures:?}");
    Ok(outcome)
}

/// The plan for the interface of a namespace.
pub fn plan(namespace: &NetNs, mode: Mode) -> Result<Plan> {
    let ifindex = namespace.enter(|| Ok(nix::net::if_::if_nametoindex(INTERFACE)?))?;
    Ok(Plan {
        carrier: ifindex,
        name: INTERFACE.to_owned(),
        places: vec![Place {
            interface: INTERFACE.to_owned(),
            ifindex,
            port: Port::untagged(ifindex),
            bond_ports: vec![],
        }],
        modes: vec![mode],
        passed_over: vec![],
    })
}

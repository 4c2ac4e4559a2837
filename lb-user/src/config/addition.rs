//! Whether a backend fits into a configuration that is in force: the rules of the file for a backend
//! that does not stand in it.

use super::{
    Draft, check,
    model::{Config, Endpoint, ServiceConfig, VrrpConfig},
    node::NodeDraft,
    raw::{Mark, Marked, Report},
    service::{BackendDraft, ServiceDraft},
    sources::SourcesDraft,
    value::{self, Fault},
    vrrp::VrrpDraft,
};

/// Refuses a backend's name that a file could not have, with what to write instead.
pub fn backend_name(name: &str) -> Result<(), String> {
    match value::name(name) {
        Ok(_) => Ok(()),
        Err(fault) => Err(said(&fault)),
    }
}

/// Refuses a backend's address that a file could not have, with what to write instead.
pub fn backend_address(address: &str) -> Result<Endpoint, String> {
    value::backend(address).map_err(|fault| said(&fault))
}

/// What is wrong with `config`, in which everything was right until a backend was added; `None`:
/// nothing.
pub fn contradiction(config: &Config) -> Option<String> {
    let draft = Draft {
        node: NodeDraft {
            config: None,
            name: None,
            interfaces: Vec::new(),
        },
        peers: Vec::new(),
        tracks: Vec::new(),
        groups: Vec::new(),
        vrrp: config.vrrp.iter().map(vrrp).collect(),
        services: config.services.iter().map(service).collect(),
    };
    let report = Report::default();
    check::check(&report, &draft);
    report.into_faults().next().map(|fault| said(&fault))
}

fn said(fault: &Fault) -> String {
    format!("{}; {}", fault.problem, fault.hint)
}

/// The part of an instance that backends are compared with.
fn vrrp(config: &VrrpConfig) -> VrrpDraft {
    let own = format!("vrrp {:?}", config.name);
    let addresses = config.addresses.iter();
    VrrpDraft {
        config: None,
        mark: Mark::named(own.clone()),
        name: None,
        interface: None,
        vrid: None,
        version: None,
        priority: None,
        addresses: addresses
            .map(|&address| marked(address, &own, "addresses"))
            .collect(),
        unicast_source: None,
        unicast_peers: Vec::new(),
        sync_group: None,
    }
}

fn service(config: &ServiceConfig) -> ServiceDraft {
    let own = format!("service {:?}", config.name);
    let backends = config.backends.iter().map(|backend| {
        let own = format!("backend {:?}", backend.name);
        BackendDraft {
            config: None,
            mark: Mark::named(own.clone()),
            name: Some(marked(backend.name.clone(), &own, "name")),
            address: Some(marked(backend.endpoint(), &own, "address")),
        }
    });
    ServiceDraft {
        config: None,
        mark: Mark::named(own.clone()),
        name: Some(marked(config.name.clone(), &own, "name")),
        address: Some(marked(config.address, &own, "address")),
        port: Some(marked(config.port, &own, "port")),
        protocol: Some(config.protocol),
        sources: SourcesDraft::none(),
        backends: backends.collect(),
    }
}

fn marked<T>(value: T, parent: &str, key: &str) -> Marked<T> {
    Marked {
        value,
        mark: Mark::named(format!("{parent}.{key}")),
    }
}

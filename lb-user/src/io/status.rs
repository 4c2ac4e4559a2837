//! The status document: what the controller thinks, joined with what the data plane counts.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use lb_common::{
    abi::{self, ABI_VERSION, BackendCounters, Counters, MAGLEV_SIZE},
    reason::Reason,
};

use super::{
    bpf::{Counts, DataPlane},
    operator_file::{operator_mode, weight_text},
};
use crate::{
    admin::{
        backends::OperatorStatus,
        model::{
            AttachStatus, AttachedMode, BackendState, BackendStatus, ConfigStatus, ConntrackStatus,
            DataPlaneStatus, HostStatus, KernelStatus, Method, NotifyStatus, PeerStatus,
            ReasonStatus, SchedulingStatus, ServiceStatus, Status, TrackCondition, TrackStatus,
            VrrpAlarm, VrrpState, VrrpStatus,
        },
    },
    config::model::{BackendConfig, Peer, VrrpVersion},
    core::{
        attach::Mode,
        controller::{Controller, Duplicate, Nameless, TrackView},
        desired::{Placement, ServicePlacement, Unresolved},
        frame::mac_text,
        kernel::Kernel,
        standing::{Standing, WEIGHT_UNIT},
        time::Timestamp,
        tracking::{Condition, Effect},
        vrrp::{Discard, State},
    },
};

/// What does not change while the controller runs.
pub struct Facts {
    /// When it started.
    pub started: Timestamp,
    /// The cgroup of the connect hooks.
    pub cgroup: Option<PathBuf>,
    /// What the kernel has.
    pub kernel: Kernel,
}

/// The document at `now`.
pub fn status(
    controller: &Controller,
    data_plane: &DataPlane,
    counts: &Counts,
    facts: &Facts,
    now: Timestamp,
) -> Status {
    let config = controller.config();
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: config.node.name.clone(),
        instance: config.node.instance.clone(),
        uptime_ms: millis(now, facts.started),
        // The reloads' own business.
        config_file: String::new(),
        config: ConfigStatus::default(),
        data_plane: data_plane_status(controller, data_plane, facts),
        vrrp: (0..config.vrrp.len())
            .filter_map(|i| vrrp(controller, i, now))
            .collect(),
        services: (0..config.services.len())
            .filter_map(|i| service(controller, counts, i, now))
            .collect(),
        peers: config
            .peers
            .iter()
            .map(|peer| peer_status(controller, peer))
            .collect(),
        reasons: all_reasons(counts),
        // The collector's own business.
        conntrack: ConntrackStatus::default(),
        // The notifier's own business.
        notify: NotifyStatus::default(),
        // The runtime's.
        scheduling: SchedulingStatus::default(),
        kernel: KernelStatus::from(&facts.kernel),
    }
}

fn millis(now: Timestamp, since: Timestamp) -> u64 {
    u64::try_from(now.saturating_since(since).as_millis()).unwrap_or(u64::MAX)
}

fn data_plane_status(
    controller: &Controller,
    data_plane: &DataPlane,
    facts: &Facts,
) -> DataPlaneStatus {
    let uplinks = controller.config().node.interfaces.iter();
    DataPlaneStatus {
        abi_version: ABI_VERSION,
        attach: uplinks.map(|name| uplink(controller, name)).collect(),
        cgroup: facts.cgroup.as_ref().map(|path| path.display().to_string()),
        warnings: [
            data_plane.warnings.as_slice(),
            data_plane.attach_warnings.as_slice(),
        ]
        .concat(),
    }
}

fn uplink(controller: &Controller, name: &str) -> AttachStatus {
    let interface = name.to_owned();
    let mut attached = controller.attached().iter();
    let Some(own) = attached.find(|own| own.place.interface == name) else {
        return AttachStatus {
            interface,
            mode: AttachedMode::None,
            note: Some("there is no such interface with an Ethernet address".to_owned()),
        };
    };
    AttachStatus {
        interface,
        mode: match own.mode {
            Some(Mode::Native) => AttachedMode::Native,
            Some(Mode::Tc) => AttachedMode::Tc,
            Some(Mode::Generic) => AttachedMode::Generic,
            None => AttachedMode::None,
        },
        note: own.note.clone(),
    }
}

fn vrrp(controller: &Controller, position: usize, now: Timestamp) -> Option<VrrpStatus> {
    let config = controller.config().vrrp.get(position)?;
    let (instance, bad) = controller.vrrp(position)?;
    let counters = instance.counters();
    let refused = Discard::LABELS
        .iter()
        .zip(counters.discarded)
        .filter(|(_, count)| *count > 0)
        .map(|(label, count)| ((*label).to_owned(), count));
    let transition = instance.last_transition();
    Some(VrrpStatus {
        name: config.name.clone(),
        interface: config.interface.clone(),
        virtual_mac: config.virtual_mac().map(mac_text),
        accept: config.accepts(),
        vrid: config.vrid.get(),
        version: match config.version {
            VrrpVersion::V2 => 2,
            VrrpVersion::V3 => 3,
        },
        state: match instance.state() {
            State::Initialize if instance.is_faulty() => VrrpState::Fault,
            State::Initialize => VrrpState::Initialize,
            State::Backup => VrrpState::Backup,
            State::Active => VrrpState::Active,
        },
        priority: config.priority.get(),
        effective_priority: instance.priority(),
        tracking: controller
            .tracked(position)
            .into_iter()
            .map(track_status)
            .collect(),
        addresses: config.addresses.clone(),
        owner: instance.active_address(),
        since_ms: millis(now, transition.at),
        cause: transition.cause.to_string(),
        transitions: instance.transitions(),
        lease_remaining_ms: instance
            .lease_deadline()
            .map(|deadline| millis(deadline, now)),
        adverts_sent: counters.adverts_sent,
        adverts_received: counters.adverts_received,
        adverts_bad: bad
            .iter()
            .map(|(label, count)| ((*label).to_owned(), *count))
            .chain(refused)
            .collect(),
        conflicts: counters.conflicts,
        claims_of_others: controller.claims_of_others(position),
        late_timers: instance.lateness().timers(),
        late_max_ms: u64::try_from(instance.lateness().worst().as_millis()).unwrap_or(u64::MAX),
        alarms: instance
            .alarms(now)
            .map(|alarm| VrrpAlarm {
                kind: alarm.label().to_owned(),
                from: alarm.from(),
                what: alarm.describe(config.vrid.get(), &config.interface),
                since_ms: None,
                ago_ms: millis(now, alarm.heard()),
            })
            .chain(controller.duplicates(position).map(|other| VrrpAlarm {
                kind: Duplicate::LABEL.to_owned(),
                from: other.address,
                what: other.describe(&config.interface),
                since_ms: Some(millis(now, other.since)),
                ago_ms: millis(now, other.heard),
            }))
            .collect(),
    })
}

fn track_status(view: TrackView) -> TrackStatus {
    let (adds, fault) = match view.effect {
        Effect::Adds(adds) => (adds, false),
        Effect::Fault => (0, true),
    };
    TrackStatus {
        name: view.name,
        condition: match view.condition {
            Condition::Unknown => TrackCondition::Unknown,
            Condition::Met => TrackCondition::Met,
            Condition::Failed => TrackCondition::Failed,
            Condition::Number(_) => TrackCondition::Number,
        },
        adds,
        fault,
        seen: view.seen,
    }
}

fn service(
    controller: &Controller,
    counts: &Counts,
    position: usize,
    now: Timestamp,
) -> Option<ServiceStatus> {
    let config = controller.config().services.get(position)?;
    let placement = controller.placements().get(position);
    let standing = controller.standing(position);
    let reasons = placement
        .and_then(|p| counts.reasons.get(&p.id))
        .map_or(&[][..], Vec::as_slice);
    let totals = reasons
        .iter()
        .fold(Counters::default(), |sum, (_, one)| sum.plus(*one));
    Some(ServiceStatus {
        name: config.name.clone(),
        address: config.address,
        port: config.port.get(),
        protocol: config.protocol.name().to_owned(),
        packets: totals.packets(),
        bytes: totals.bytes(),
        connections: totals.connections(),
        reasons: reasons.iter().map(reason_status).collect(),
        healthy: standing.healthy,
        min_healthy: config.quorum.min_healthy.get(),
        quorum_lost: standing.is_quorum_lost,
        removed: controller.removed(position).map(str::to_owned).collect(),
        backends: {
            let backends = (0..config.backends.len()).filter_map(|b| {
                let standing = standing.backends.get(b);
                backend(
                    controller,
                    counts,
                    (placement, standing),
                    (position, b),
                    now,
                )
            });
            with_nameless(controller, position, backends.collect(), now)
        },
    })
}

/// `backends` and those without an address, in the order of the configuration.
fn with_nameless(
    controller: &Controller,
    service: usize,
    mut backends: Vec<BackendStatus>,
    now: Timestamp,
) -> Vec<BackendStatus> {
    for one in controller.nameless(service) {
        let place = one.place.min(backends.len());
        backends.insert(place, nameless(controller, service, one, now));
    }
    backends
}

/// A backend whose name stands for no address.
fn nameless(
    controller: &Controller,
    service: usize,
    one: &Nameless,
    now: Timestamp,
) -> BackendStatus {
    let config = &one.backend;
    BackendStatus {
        name: config.name.clone(),
        address: config.address,
        host: host(controller, service, config, now),
        weight: config.weight.get(),
        method: Method::Nat,
        state: BackendState::Down,
        in_force: BackendState::Down,
        added: controller.was_added_as(service, &config.name),
        backup: config.backup,
        effective_weight: f64::from(config.weight.get()),
        slow_start_percent: None,
        agent_percent: None,
        operator: None,
        since_ms: millis(now, one.since),
        reason: format!("not resolved yet: {}", one.why),
        packets: 0,
        bytes: 0,
        connections: 0,
        resets: 0,
        refused: 0,
        drops: 0,
        active_flows: None,
        share: 0.0,
        resolved: false,
        unresolved: None,
    }
}

fn host(
    controller: &Controller,
    service: usize,
    backend: &BackendConfig,
    now: Timestamp,
) -> Option<HostStatus> {
    let view = controller.host(service, backend)?;
    Some(HostStatus {
        name: view.host.to_owned(),
        resolved_ms: view.resolved.map(|at| millis(now, at)),
        failure: view.failure.map(str::to_owned),
    })
}

fn backend(
    controller: &Controller,
    counts: &Counts,
    (service, standing): (Option<&ServicePlacement>, Option<&Standing>),
    (service_index, index): (usize, usize),
    now: Timestamp,
) -> Option<BackendStatus> {
    let config = controller
        .config()
        .services
        .get(service_index)?
        .backends
        .get(index)?;
    let view = controller.backend(service_index, index)?;
    let placement: Option<&Placement> = service.and_then(|service| service.backends.get(index));
    let totals: BackendCounters = placement
        .and_then(|p| counts.backends.get(&p.id))
        .copied()
        .unwrap_or_default();
    let method = match placement.map_or(abi::Method::Nat, |p| p.method) {
        abi::Method::Local => Method::Local,
        abi::Method::Dsr => Method::Dsr,
        abi::Method::Nat => Method::Nat,
    };
    let seen = controller.seen(service_index, index);
    Some(BackendStatus {
        name: config.name.clone(),
        address: config.address,
        host: host(controller, service_index, config, now),
        weight: config.weight.get(),
        method,
        state: state(view.state),
        in_force: state(standing.map_or(view.state, |own| own.state)),
        added: controller.was_added(service_index, index),
        backup: config.backup,
        effective_weight: standing.map_or(0.0, |own| {
            f64::from(own.own_weight) / f64::from(WEIGHT_UNIT)
        }),
        slow_start_percent: controller.ramp(service_index, index),
        agent_percent: controller.agent_weight(service_index, index),
        operator: controller
            .word(service_index, index)
            .map(|word| OperatorStatus {
                mode: operator_mode(word.mode),
                deadline_ms: word.deadline.map(|deadline| millis(deadline, now)),
                leaves: word.leaves,
                weight: weight_text(word.weight),
                since_ms: millis(now, word.since),
            }),
        since_ms: millis(now, view.since),
        reason: match seen {
            Some(seen) if view.reason.is_empty() => seen.to_string(),
            _ => view.reason.clone(),
        },
        packets: totals.packets(),
        bytes: totals.bytes(),
        connections: totals.connections(),
        resets: totals.resets(),
        refused: totals.refused(),
        drops: totals.drops(),
        active_flows: match (method, placement) {
            // The kernel's socket table is their conntrack.
            (Method::Local, _) | (_, None) => None,
            (_, Some(placement)) => counts
                .flows
                .as_ref()
                .map(|flows| flows.get(&placement.id).copied().unwrap_or(0)),
        },
        share: placement.map_or(0.0, |p| f64::from(p.slots) / f64::from(MAGLEV_SIZE)),
        resolved: placement.is_some_and(|p| p.unresolved.is_none()),
        unresolved: placement
            .and_then(|p| p.unresolved)
            .map(|why| no_way(controller, why)),
    })
}

const fn state(state: abi::BackendState) -> BackendState {
    match state {
        abi::BackendState::Up => BackendState::Up,
        abi::BackendState::Draining => BackendState::Draining,
        abi::BackendState::Down => BackendState::Down,
    }
}

/// Why packets have no way to a backend, in words.
fn no_way(controller: &Controller, why: Unresolved) -> String {
    match why {
        Unresolved::NoRoute => "there is no route to it".to_owned(),
        Unresolved::NoMac => "the neighbour on the way has not said its MAC".to_owned(),
        Unresolved::BehindRouter => {
            "it is behind a router, and dsr needs it on the same link".to_owned()
        }
        Unresolved::NotUplink { ifindex } => {
            let name = controller.network().name(ifindex);
            let name = name.map_or_else(|| format!("interface {ifindex}"), str::to_owned);
            format!("its route leaves by {name}, which is no uplink that carries the data plane")
        }
    }
}

fn peer_status(controller: &Controller, peer: &Peer) -> PeerStatus {
    let resolve = |address: &IpAddr| controller.network().resolved(*address);
    let mac = peer.addresses.iter().find_map(resolve).map(|hop| hop.mac);
    PeerStatus {
        name: peer.name.clone(),
        addresses: peer.addresses.clone(),
        mac: mac.map(mac_text),
        resolved: peer
            .addresses
            .iter()
            .all(|address| resolve(address).is_some()),
    }
}

/// The reasons of all packets, whatever their service, in the order of their numbers.
fn all_reasons(counts: &Counts) -> Vec<ReasonStatus> {
    let mut sums = BTreeMap::new();
    for (reason, counters) in counts.reasons.values().flatten() {
        let sum: &mut (Reason, Counters) = sums
            .entry(reason.index())
            .or_insert((*reason, Counters::default()));
        sum.1 = sum.1.plus(*counters);
    }
    sums.values().map(reason_status).collect()
}

fn reason_status((reason, counters): &(Reason, Counters)) -> ReasonStatus {
    ReasonStatus {
        reason: reason.label().to_owned(),
        packets: counters.packets(),
        bytes: counters.bytes(),
    }
}

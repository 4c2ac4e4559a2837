//! The admin interface's language: requests, answers and the status document.
//!
//! # Stability
//!
//! The JSON form of these types is an interface that scripts and the lab read (`xvip status
//! --json`). Its names are `snake_case` and stay: fields and enum values are added, never renamed,
//! removed or given another meaning. Readers ignore fields that they do not know.
//!
//! Units are in the names (`_ms`: milliseconds). A `since_ms` is an age: how long ago the last
//! change was. Counters count from the moment that the data plane was created (packets, bytes,
//! connections) or the controller started (VRRP).

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    backends::{self, BackendQuery, BackendReply, OperatorStatus},
    explain::ExplainQuery,
    flows::{FlowQuery, QueryError},
    stream::Started,
    trace::TraceQuery,
};
use crate::core::{
    controller::Refusal,
    kernel::{Kernel, Tried, Without},
};

/// A request: one line of JSON, for example `{"command":"step_down","vrrp":"control-plane"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Asks for the status document.
    Status,
    /// Gives up the addresses of a VRRP instance and stays Backup until `resume`.
    StepDown {
        /// The instance's name; every instance if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vrrp: Option<String>,
    },
    /// Ends a `step_down`: the instance takes part in elections again.
    Resume {
        /// The instance's name; every instance if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vrrp: Option<String>,
    },
    /// Reads the configuration file again, and goes on with it if it is valid.
    Reload,
    /// An order about a backend.
    Backend(BackendQuery),
    /// Asks for conntrack entries: a [`super::stream`].
    Flows(FlowQuery),
    /// Follows packets: a [`super::stream`] that ends when the client goes away, at the latest.
    Trace(TraceQuery),
    /// Asks what would become of a packet: a [`super::stream`] of one item.
    Explain(ExplainQuery),
}

/// An answer: one line of JSON, `{"ok":...}` or `{"error":"..."}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response<T> {
    /// The command was carried out.
    Ok(T),
    /// It was not, and why.
    Error(String),
}

/// What a carried out command answers, the value of `ok`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Reply {
    /// To [`Command::Status`].
    Status(Box<Status>),
    /// To [`Command::StepDown`] and [`Command::Resume`].
    Vrrp(VrrpReply),
    /// To [`Command::Reload`].
    Reload(ReloadReply),
    /// To [`Command::Backend`].
    Backend(BackendReply),
    /// To [`Command::Flows`], [`Command::Trace`] and [`Command::Explain`]: items follow.
    Stream(Started),
}

/// The VRRP instances that a command applied to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VrrpReply {
    /// Their names, in configuration order.
    pub instances: Vec<String>,
}

/// A configuration that was loaded anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReply {
    /// The file.
    pub config_file: String,
    /// What is different now, in words.
    pub changes: Vec<String>,
}

/// Why the controller refused a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No VRRP instance has this name.
    #[error("no VRRP instance is named {name:?} (there are: {})", known.join(", "))]
    UnknownVrrp {
        /// The name that was asked for.
        name: String,
        /// The names that there are.
        known: Vec<String>,
    },
    /// A command for every VRRP instance, and there is none.
    #[error("no VRRP instance is configured")]
    NoVrrp,
    /// An order about a backend makes no sense.
    #[error(transparent)]
    Order(#[from] backends::QueryError),
    /// An order about a backend is refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A query names what is not there.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// Somebody traces already.
    #[error("packets of {client} are being traced already: one trace at a time")]
    Tracing {
        /// The client's network of that trace.
        client: IpNet,
    },
    /// The configuration is not valid, or needs a restart: one line for each thing that is wrong.
    #[error("the configuration is refused, the one before goes on\n{0}")]
    Config(String),
    /// The data plane cannot be asked.
    #[error("{0}")]
    Failed(String),
}

/// Everything that a running xvip says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// xvip's version.
    pub version: String,
    /// `node.name`.
    pub node: String,
    /// `node.instance`.
    pub instance: String,
    /// Milliseconds since the controller started (the data plane may be older).
    pub uptime_ms: u64,
    /// The configuration file that the controller runs with.
    pub config_file: String,
    /// How the controller came by its configuration.
    #[serde(default)]
    pub config: ConfigStatus,
    /// What is attached to the kernel.
    pub data_plane: DataPlaneStatus,
    /// VRRP instances in configuration order.
    pub vrrp: Vec<VrrpStatus>,
    /// Services in configuration order.
    pub services: Vec<ServiceStatus>,
    /// Other xvip nodes in configuration order.
    pub peers: Vec<PeerStatus>,
    /// Why packets got their verdicts: only the reasons with a count, in the order of their number.
    pub reasons: Vec<ReasonStatus>,
    /// Conntrack entries, and those that were collected.
    #[serde(default)]
    pub conntrack: ConntrackStatus,
    /// What others were told of changes of state.
    #[serde(default)]
    pub notify: NotifyStatus,
    /// How the controller's thread is scheduled.
    #[serde(default)]
    pub scheduling: SchedulingStatus,
    /// What the kernel has of what xvip uses.
    #[serde(default)]
    pub kernel: KernelStatus,
}

/// The kernel that xvip runs on, as it was when the controller started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelStatus {
    /// `uname -r`
    pub release: String,
    /// The features that were tried; docs/KERNELS.md says what each is for.
    pub features: Vec<FeatureStatus>,
}

/// A feature that xvip uses where the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureStatus {
    /// Its name.
    pub name: String,
    /// Whether it is used.
    pub used: bool,
    /// The first version of Linux that has it; absent where an option decides alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Why it is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What is used instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead: Option<String>,
    /// What that costs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<String>,
}

impl From<&Kernel> for KernelStatus {
    fn from(kernel: &Kernel) -> Self {
        let features = kernel.tried.iter().map(|Tried { feature, result }| {
            let (instead, cost) = match (result, feature.without()) {
                (Err(_), Without::Uses { instead, cost }) => (Some(instead), Some(cost)),
                (Err(_), Without::Refuses(remedy)) => (None, Some(remedy)),
                (Ok(()), _) => (None, None),
            };
            FeatureStatus {
                name: feature.name().to_owned(),
                used: result.is_ok(),
                since: feature.since().map(|version| version.to_string()),
                why: result.as_ref().err().cloned(),
                instead: instead.map(str::to_owned),
                cost: cost.map(str::to_owned),
            }
        });
        Self {
            release: kernel.release.clone(),
            features: features.collect(),
        }
    }
}

/// How the thread is scheduled that sends and hears adverts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedulingStatus {
    /// Before all ordinary threads.
    pub realtime: bool,
    /// The same in words, with the reason if it is not as configured.
    pub what: String,
}

/// The configuration in force, and one that is not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// Milliseconds since it was loaded.
    pub since_ms: u64,
    /// How often it was loaded anew since the controller started.
    pub reloads: u64,
    /// What the file held that was refused later; absent when the file was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusedConfig>,
}

/// A configuration that the controller did not go on with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedConfig {
    /// Milliseconds since it was refused.
    pub since_ms: u64,
    /// What is wrong with it, one line for each thing: `FILE:LINE:COLUMN: KEY: what is wrong`.
    pub error: String,
}

/// What the garbage collector of conntrack entries has seen and done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackStatus {
    /// Entries by map and state at the last scan, those of return maps as `return`; only what there
    /// was.
    pub entries: BTreeMap<String, BTreeMap<String, u64>>,
    /// Entries deleted by cause since the controller started; only those with a count.
    pub deleted: BTreeMap<String, u64>,
    /// Scans since the controller started.
    pub scans: u64,
    /// Milliseconds that the last scan took, its pauses included.
    pub last_scan_ms: u64,
}

/// What others were told of changes of state since the controller started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotifyStatus {
    /// The named pipe (`node.notify_fifo`); absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fifo: Option<String>,
    /// Lines that were written to it.
    pub lines: u64,
    /// Lines that nobody read.
    pub lines_lost: u64,
    /// Programs that were started.
    pub commands: u64,
    /// Programs that could not be run, took too long or ended with another status than 0.
    pub commands_failed: u64,
    /// Changes whose programs were not run, because too many waited.
    pub notices_given_up: u64,
}

/// The programs and where they are attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataPlaneStatus {
    /// Version of the map ABI (`lb_common::abi`).
    pub abi_version: u32,
    /// The uplinks in configuration order.
    pub attach: Vec<AttachStatus>,
    /// The cgroup that carries the connect hooks; absent when they are off.
    pub cgroup: Option<String>,
    /// What an operator should know or mend, in words.
    pub warnings: Vec<String>,
}

/// An uplink and how the ingress program is attached to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachStatus {
    /// Interface name.
    pub interface: String,
    /// How the program is attached.
    pub mode: AttachedMode,
    /// Why this mode, if it is not the one that was to be expected.
    pub note: Option<String>,
}

/// How the ingress program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachedMode {
    /// XDP in the driver.
    Native,
    /// The tc program, after the packet became a socket buffer.
    Tc,
    /// XDP in the network core, after the packet became a socket buffer.
    Generic,
    /// Nothing is attached: the interface is not there, or no mode works; the note says which.
    None,
}

/// A VRRP instance as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VrrpStatus {
    /// `vrrp.name`.
    pub name: String,
    /// Interface that the adverts are sent on.
    pub interface: String,
    /// MAC that the addresses are claimed by, if it is not the interface's.
    #[serde(default)]
    pub virtual_mac: Option<String>,
    /// Whether this node's own sockets are reachable at the addresses, not only services.
    #[serde(default = "yes")]
    pub accept: bool,
    /// Virtual router id, 1..=255.
    pub vrid: u8,
    /// Protocol version, 2 or 3.
    pub version: u8,
    /// State of this node.
    pub state: VrrpState,
    /// Configured priority, 1..=255.
    pub priority: u8,
    /// Priority that this node takes part with now.
    pub effective_priority: u8,
    /// What makes another priority of it, or a fault, in the order of the configuration; the defaults
    /// come first.
    #[serde(default)]
    pub tracking: Vec<TrackStatus>,
    /// Virtual addresses with prefix length.
    pub addresses: Vec<IpNet>,
    /// Address of the node that is Active, as far as known (the source of its adverts; this node's
    /// own while it is Active itself).
    pub owner: Option<IpAddr>,
    /// Milliseconds since the last change of `state`.
    pub since_ms: u64,
    /// Why `state` changed last.
    pub cause: String,
    /// Changes of `state` since the controller started.
    pub transitions: u64,
    /// Milliseconds until the lease of the data plane lapses; absent when this node has none.
    pub lease_remaining_ms: Option<u64>,
    /// Adverts sent.
    pub adverts_sent: u64,
    /// Good adverts received.
    pub adverts_received: u64,
    /// Refused adverts by the label of what was wrong with them; only those with a count.
    pub adverts_bad: BTreeMap<String, u64>,
    /// Adverts of a lesser node that were heard while this one was Active.
    #[serde(default)]
    pub conflicts: u64,
    /// Claims of the addresses by other hosts that were heard while this node owned them.
    #[serde(default)]
    pub claims_of_others: u64,
    /// Timers that this node served more than half an interval late.
    #[serde(default)]
    pub late_timers: u64,
    /// How late the worst of them was, in milliseconds.
    #[serde(default)]
    pub late_max_ms: u64,
    /// What is wrong among the routers of the link, as seen within the last minute.
    #[serde(default)]
    pub alarms: Vec<VrrpAlarm>,
}

/// What an older xvip that says nothing means.
const fn yes() -> bool {
    true
}

/// Something among the routers of a link that an operator has to mend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VrrpAlarm {
    /// `rival`: another node is Active as well; `vrid_collision`: another group uses the same VRID;
    /// `duplicate_address`: another host has an address that this node owns.
    pub kind: String,
    /// The node that shows it; of `duplicate_address` the address.
    pub from: IpAddr,
    /// What it is, in words.
    pub what: String,
    /// Milliseconds since it was seen first, where that is known.
    #[serde(default)]
    pub since_ms: Option<u64>,
    /// Milliseconds since it was seen last.
    pub ago_ms: u64,
}

/// Something that a VRRP instance tracks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackStatus {
    /// `track.name`; of what is tracked by default: `uplink`, `data plane` or `backends`.
    pub name: String,
    /// Whether it is as it should be.
    pub condition: TrackCondition,
    /// How much it adds to the priority.
    pub adds: i16,
    /// It does not let this node take part.
    pub fault: bool,
    /// What was seen, in words.
    pub seen: String,
}

/// What is known of something that is tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrackCondition {
    /// Nothing yet.
    Unknown,
    /// As it should be.
    Met,
    /// Not as it should be.
    Failed,
    /// A file holds a number.
    Number,
}

/// State of a VRRP instance (RFC 9568 section 6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VrrpState {
    /// Not taking part (yet).
    Initialize,
    /// Not taking part: something that is tracked does not allow it.
    Fault,
    /// Another node is, or will be, Active.
    Backup,
    /// This node owns the addresses.
    Active,
}

/// A service and its counters on this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// `service.name`.
    pub name: String,
    /// VIP.
    pub address: IpAddr,
    /// Port of the VIP.
    pub port: u16,
    /// Transport protocol, `"tcp"` or `"udp"`.
    pub protocol: String,
    /// Packets from clients.
    pub packets: u64,
    /// Bytes from clients (IP length).
    pub bytes: u64,
    /// New connections.
    pub connections: u64,
    /// Why its packets got their verdicts: only the reasons with a count, in the order of their
    /// number.
    #[serde(default)]
    pub reasons: Vec<ReasonStatus>,
    /// Backends that are UP, enabled, and meant to take new connections now.
    #[serde(default)]
    pub healthy: u32,
    /// `service.min_healthy`.
    #[serde(default)]
    pub min_healthy: u32,
    /// Whether there are fewer: `on_quorum_loss` is in force.
    #[serde(default)]
    pub quorum_lost: bool,
    /// Backends in configuration order, then those that were added while xvip runs.
    pub backends: Vec<BackendStatus>,
    /// Backends of the configuration that the operator has removed, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<String>,
}

/// A backend of one service as this node sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// `backend.name`.
    pub name: String,
    /// Address and port; while `host` stands for no address, `0.0.0.0` and the port.
    pub address: SocketAddr,
    /// The host name that the address comes from; absent: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostStatus>,
    /// Configured weight.
    pub weight: u32,
    /// How packets get there from this node.
    pub method: Method,
    /// What this node's checks say.
    pub state: BackendState,
    /// What is in force: the checks' word, the operator's, and whether it is its turn (a backup that is
    /// not needed is `draining`).
    #[serde(default = "unknown_state")]
    pub in_force: BackendState,
    /// Whether it was added while xvip runs, and is in no file.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub added: bool,
    /// `backend.backup`.
    #[serde(default)]
    pub backup: bool,
    /// Weight with the operator's word, the agent's and a slow start, in the unit of `weight`; it counts while
    /// the backend takes new connections.
    #[serde(default)]
    pub effective_weight: f64,
    /// Percent of its weight that a slow start has reached; absent: none is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start_percent: Option<u8>,
    /// Percent of its weight that its agent wants; absent: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_percent: Option<u16>,
    /// What the operator has said; absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<OperatorStatus>,
    /// Milliseconds since the last change of `state`.
    pub since_ms: u64,
    /// Why `state` changed last.
    pub reason: String,
    /// Packets from clients that went there.
    pub packets: u64,
    /// Bytes from clients that went there (IP length).
    pub bytes: u64,
    /// New connections that went there.
    pub connections: u64,
    /// Packets of clients that were answered with a reset in its stead, as it had gone down.
    #[serde(default)]
    pub resets: u64,
    /// Connections that it refused.
    #[serde(default)]
    pub refused: u64,
    /// Packets for it that were dropped.
    #[serde(default)]
    pub drops: u64,
    /// Flows that are open now; absent where they are not tracked or not counted.
    pub active_flows: Option<u64>,
    /// Part of the Maglev slots, 0 to 1: its share of the connections to come.
    pub share: f64,
    /// Whether packets have a way there: an uplink, and the next hop's MAC (always so for `local`).
    pub resolved: bool,
    /// Why they have not, in words; absent when they have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unresolved: Option<String>,
}

/// The host name of a backend, as this node looks it up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// The name.
    pub name: String,
    /// Milliseconds since a lookup last said what it stands for; absent: not since the start, the
    /// address is one that was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved_ms: Option<u64>,
    /// What is wrong with the last lookup; absent: nothing. The last good address stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// Of an xvip that does not say it.
const fn unknown_state() -> BackendState {
    BackendState::Up
}

/// How packets get to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// To this node's own stack.
    Local,
    /// To the backend's node with its addresses untouched; replies go straight to the client.
    Dsr,
    /// With source and destination translated; replies come back through this node.
    Nat,
}

/// State of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendState {
    /// Takes new flows.
    Up,
    /// Keeps its flows and takes no new ones while another backend is up.
    Draining,
    /// Takes nothing.
    Down,
}

/// Another node that runs xvip.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// `peer.name`.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its MAC as `aa:bb:cc:dd:ee:ff`, once known.
    pub mac: Option<String>,
    /// Whether `mac` is known now.
    pub resolved: bool,
}

/// How often packets got a verdict for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonStatus {
    /// Label of the reason (`lb_common::reason`).
    pub reason: String,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

macro_rules! display_as_json {
    ($($type:ident { $($variant:ident = $text:literal),+ $(,)? })+) => {$(
        impl fmt::Display for $type {
            /// The word that stands in the JSON form.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$variant => $text),+ })
            }
        }
    )+};
}

display_as_json! {
    AttachedMode { Native = "native", Tc = "tc", Generic = "generic", None = "none" }
    VrrpState { Initialize = "initialize", Fault = "fault", Backup = "backup", Active = "active" }
    Method { Local = "local", Dsr = "dsr", Nat = "nat" }
    BackendState { Up = "up", Draining = "draining", Down = "down" }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;
    use crate::admin::backends::OperatorMode;

    fn alarm() -> VrrpAlarm {
        VrrpAlarm {
            kind: "rival".into(),
            from: "10.0.2.11".parse().unwrap(),
            what: "10.0.2.11 is Active as well".into(),
            since_ms: Some(64_000),
            ago_ms: 700,
        }
    }

    fn vrrp() -> VrrpStatus {
        VrrpStatus {
            name: "control-plane".into(),
            interface: "enp0s3".into(),
            virtual_mac: Some("00:00:5e:00:01:33".into()),
            accept: false,
            vrid: 51,
            version: 3,
            state: VrrpState::Active,
            priority: 200,
            effective_priority: 180,
            tracking: vec![TrackStatus {
                name: "disk".into(),
                condition: TrackCondition::Number,
                adds: -20,
                fault: false,
                seen: "/run/disk holds -20".into(),
            }],
            addresses: vec!["10.0.2.100/24".parse().unwrap()],
            owner: Some("10.0.2.10".parse().unwrap()),
            since_ms: 64_000,
            cause: "no advert for 3.218 s".into(),
            transitions: 2,
            lease_remaining_ms: Some(2_750),
            adverts_sent: 64,
            adverts_received: 12,
            adverts_bad: BTreeMap::from([("checksum".into(), 3)]),
            conflicts: 4,
            claims_of_others: 7,
            late_timers: 3,
            late_max_ms: 21,
            alarms: vec![alarm()],
        }
    }

    /// A document with a value in every field: three backends, one method and state each.
    pub(crate) fn sample() -> Status {
        Status {
            version: "0.1.0".into(),
            node: "master01".into(),
            instance: "default".into(),
            uptime_ms: 3_723_000,
            config_file: "/etc/xvip/xvip.toml".into(),
            config: ConfigStatus {
                since_ms: 3_600_000,
                reloads: 1,
                refused: Some(RefusedConfig {
                    since_ms: 12_000,
                    error: "xvip.toml:2:1: node.interfces: unknown key".into(),
                }),
            },
            data_plane: DataPlaneStatus {
                abi_version: 1,
                attach: vec![AttachStatus {
                    interface: "enp0s3".into(),
                    mode: AttachedMode::Generic,
                    note: Some("the driver has no native XDP".into()),
                }],
                cgroup: Some("/sys/fs/cgroup".into()),
                warnings: vec!["the apiserver listens on one address".into()],
            },
            vrrp: vec![vrrp()],
            services: vec![ServiceStatus {
                name: "apiserver".into(),
                address: "10.0.2.100".parse().unwrap(),
                port: 1644,
                protocol: "tcp".into(),
                packets: 48_000,
                bytes: 9_437_184,
                connections: 1_200,
                reasons: vec![local()],
                healthy: 1,
                min_healthy: 1,
                quorum_lost: false,
                removed: vec![],
                backends: vec![
                    backend("master01", 10, Method::Local, BackendState::Up, "200 OK"),
                    drained(),
                    BackendStatus {
                        resolved: false,
                        unresolved: Some("there is no route to it".into()),
                        share: 0.0,
                        active_flows: None,
                        ..backend("master03", 12, Method::Nat, BackendState::Down, "refused")
                    },
                ],
            }],
            peers: vec![PeerStatus {
                name: "master02".into(),
                addresses: vec!["10.0.2.11".parse().unwrap(), "fd00::11".parse().unwrap()],
                mac: Some("02:00:00:00:00:11".into()),
                resolved: true,
            }],
            reasons: vec![local()],
            notify: told(),
            scheduling: SchedulingStatus {
                realtime: true,
                what: "real-time, priority 50".to_owned(),
            },
            kernel: KernelStatus {
                release: "6.1.0".into(),
                features: vec![FeatureStatus {
                    name: "tcx".into(),
                    used: false,
                    since: Some("6.6".into()),
                    why: Some("the kernel does not know it".into()),
                    instead: Some("clsact filters".into()),
                    cost: Some("none".into()),
                }],
            },
            conntrack: collected(),
        }
    }

    fn collected() -> ConntrackStatus {
        ConntrackStatus {
            entries: BTreeMap::from([(
                "flows4".into(),
                BTreeMap::from([("established".into(), 14), ("fin".into(), 2)]),
            )]),
            deleted: BTreeMap::from([("ended".into(), 386)]),
            scans: 12,
            last_scan_ms: 150,
        }
    }

    fn told() -> NotifyStatus {
        NotifyStatus {
            fifo: Some("/run/xvip/events".into()),
            lines: 12,
            lines_lost: 1,
            commands: 5,
            commands_failed: 2,
            notices_given_up: 3,
        }
    }

    fn local() -> ReasonStatus {
        ReasonStatus {
            reason: "local".into(),
            packets: 16_000,
            bytes: 3_145_728,
        }
    }

    fn drained() -> BackendStatus {
        BackendStatus {
            effective_weight: 0.25,
            slow_start_percent: Some(50),
            agent_percent: Some(75),
            operator: Some(OperatorStatus {
                mode: OperatorMode::Draining,
                deadline_ms: Some(250_000),
                leaves: false,
                weight: Some("50%".parse().unwrap()),
                since_ms: 50_000,
            }),
            ..backend("master02", 11, Method::Dsr, BackendState::Draining, "500")
        }
    }

    fn backend(
        name: &str,
        host: u8,
        method: Method,
        state: BackendState,
        reason: &str,
    ) -> BackendStatus {
        BackendStatus {
            name: name.into(),
            address: SocketAddr::from(([10, 0, 2, host], 6443)),
            host: None,
            weight: 1,
            method,
            state,
            in_force: state,
            added: false,
            backup: false,
            effective_weight: 1.0,
            slow_start_percent: None,
            agent_percent: None,
            operator: None,
            since_ms: 64_000,
            reason: reason.into(),
            packets: 16_000,
            bytes: 3_145_728,
            connections: 400,
            resets: 3,
            refused: 2,
            drops: 1,
            active_flows: Some(7),
            share: 0.5,
            resolved: true,
            unresolved: None,
        }
    }

    /// The names in the JSON form are the interface: a renamed field or value fails here.
    #[test]
    fn status_has_its_documented_json_form() {
        let backend = |name: &str, address: &str, method: &str, state: &str, reason: &str| {
            json!({
                "name": name, "address": address, "weight": 1, "method": method, "state": state,
                "in_force": state, "backup": false, "effective_weight": 1.0,
                "since_ms": 64_000, "reason": reason, "packets": 16_000, "bytes": 3_145_728,
                "connections": 400, "resets": 3, "refused": 2, "drops": 1, "active_flows": 7, "share": 0.5, "resolved": true,
            })
        };
        let mut drained = backend("master02", "10.0.2.11:6443", "dsr", "draining", "500");
        drained["effective_weight"] = json!(0.25);
        drained["slow_start_percent"] = json!(50);
        drained["agent_percent"] = json!(75);
        drained["operator"] = json!({
            "mode": "draining", "deadline_ms": 250_000, "weight": "50%", "since_ms": 50_000,
        });
        let mut down = backend("master03", "10.0.2.12:6443", "nat", "down", "refused");
        down["active_flows"] = json!(null);
        down["share"] = json!(0.0);
        down["resolved"] = json!(false);
        down["unresolved"] = json!("there is no route to it");
        let expected = json!({
            "version": "0.1.0", "node": "master01", "instance": "default", "uptime_ms": 3_723_000,
            "config_file": "/etc/xvip/xvip.toml",
            "config": {
                "since_ms": 3_600_000, "reloads": 1,
                "refused": {
                    "since_ms": 12_000, "error": "xvip.toml:2:1: node.interfces: unknown key",
                },
            },
            "data_plane": {
                "abi_version": 1,
                "attach": [{
                    "interface": "enp0s3", "mode": "generic", "note": "the driver has no native XDP",
                }],
                "cgroup": "/sys/fs/cgroup",
                "warnings": ["the apiserver listens on one address"],
            },
            "vrrp": [{
                "name": "control-plane", "interface": "enp0s3", "virtual_mac": "00:00:5e:00:01:33", "accept": false,
                "vrid": 51, "version": 3, "state": "active", "priority": 200, "effective_priority": 180,
                "tracking": [{
                    "name": "disk", "condition": "number", "adds": -20, "fault": false,
                    "seen": "/run/disk holds -20",
                }],
                "addresses": ["10.0.2.100/24"], "owner": "10.0.2.10", "since_ms": 64_000,
                "cause": "no advert for 3.218 s", "transitions": 2, "lease_remaining_ms": 2_750,
                "adverts_sent": 64, "adverts_received": 12, "adverts_bad": {"checksum": 3},
                "conflicts": 4, "claims_of_others": 7, "late_timers": 3,
                "late_max_ms": 21,
                "alarms": [{
                    "kind": "rival", "from": "10.0.2.11", "what": "10.0.2.11 is Active as well",
                    "since_ms": 64_000, "ago_ms": 700,
                }],
            }],
            "services": [{
                "name": "apiserver", "address": "10.0.2.100", "port": 1644, "protocol": "tcp",
                "packets": 48_000, "bytes": 9_437_184, "connections": 1_200,
                "reasons": [{"reason": "local", "packets": 16_000, "bytes": 3_145_728}],
                "healthy": 1, "min_healthy": 1, "quorum_lost": false,
                "backends": [
                    backend("master01", "10.0.2.10:6443", "local", "up", "200 OK"),
                    drained,
                    down,
                ],
            }],
            "peers": [{
                "name": "master02", "addresses": ["10.0.2.11", "fd00::11"],
                "mac": "02:00:00:00:00:11", "resolved": true,
            }],
            "reasons": [{"reason": "local", "packets": 16_000, "bytes": 3_145_728}],
            "notify": {
                "fifo": "/run/xvip/events", "lines": 12, "lines_lost": 1, "commands": 5,
                "commands_failed": 2, "notices_given_up": 3,
            },
            "conntrack": {
                "entries": {"flows4": {"established": 14, "fin": 2}},
                "deleted": {"ended": 386}, "scans": 12, "last_scan_ms": 150,
            },
            "scheduling": {"realtime": true, "what": "real-time, priority 50"},
            "kernel": {
                "release": "6.1.0",
                "features": [{
                    "name": "tcx", "used": false, "since": "6.6",
                    "why": "the kernel does not know it", "instead": "clsact filters", "cost": "none"
                }]
            },
        });
        assert_eq!(serde_json::to_value(sample()).unwrap(), expected);
        assert_eq!(
            serde_json::from_value::<Status>(expected).unwrap(),
            sample()
        );
    }

    /// A newer xvip's status, with fields that this one does not know, is still read.
    #[test]
    fn unknown_status_fields_are_ignored() {
        let mut value = serde_json::to_value(sample()).unwrap();
        value["added_later"] = json!({"x": 1});
        value["vrrp"][0]["added_later"] = json!(1);
        assert_eq!(serde_json::from_value::<Status>(value).unwrap(), sample());
    }

    /// Requests have the documented form, with and without a name.
    #[test]
    fn commands_have_their_documented_json_form() {
        for (text, command) in [
            (r#"{"command":"status"}"#, Command::Status),
            (
                r#"{"command":"step_down","vrrp":"control-plane"}"#,
                Command::StepDown {
                    vrrp: Some("control-plane".into()),
                },
            ),
            (r#"{"command":"reload"}"#, Command::Reload),
            (r#"{"command":"resume"}"#, Command::Resume { vrrp: None }),
        ] {
            assert_eq!(serde_json::from_str::<Command>(text).unwrap(), command);
            assert_eq!(serde_json::to_string(&command).unwrap(), text);
        }
    }

    /// A misspelt command or field is refused, not half understood: `step_down` with a misspelt
    /// `vrrp` must not step every instance down.
    #[test]
    fn unknown_commands_and_fields_are_refused() {
        for text in [
            r#"{"command":"stats"}"#,
            r#"{"command":"step_down","vrpp":"x"}"#,
            r#"{"command":"step_down","vrrp":1}"#,
            r#"{"vrrp":"x"}"#,
            r#""status""#,
            "{}",
            "[]",
            "",
        ] {
            assert!(serde_json::from_str::<Command>(text).is_err(), "{text}");
        }
    }

    /// The words in tables and logs are the words of the JSON form.
    #[test]
    fn display_is_the_json_word() {
        fn check(value: impl Serialize + fmt::Display) {
            assert_eq!(
                serde_json::to_value(&value).unwrap(),
                json!(value.to_string())
            );
        }
        [
            AttachedMode::Native,
            AttachedMode::Tc,
            AttachedMode::Generic,
            AttachedMode::None,
        ]
        .into_iter()
        .for_each(check);
        [VrrpState::Initialize, VrrpState::Backup, VrrpState::Active]
            .into_iter()
            .for_each(check);
        [Method::Local, Method::Dsr, Method::Nat]
            .into_iter()
            .for_each(check);
        [BackendState::Up, BackendState::Draining, BackendState::Down]
            .into_iter()
            .for_each(check);
    }
}

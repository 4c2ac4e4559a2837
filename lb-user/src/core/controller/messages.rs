//! What goes into the controller and what comes out of it.
//!
//! VRRP instances are named by their slots, see [`Controller::slot`](super::Controller::slot): a
//! number that stays when the configuration changes.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use lb_common::abi::{BackendState, Mac};

use crate::config::model::{OnQuorumLoss, TrackSubject};
use crate::core::{
    attach::{Attachment, Plan},
    health::{ProbeResult, agent::AgentReport},
    names::{Answer, Change, HostKey},
    network::{Hop, Interface, InterfaceAddress},
    notify::Notice,
    operator::Saved,
    resets::Death,
    tables::{TableOp, Tables},
    time::Timestamp,
    tracking::{Fitness, Observation},
    vrrp::{self, Advert, RxMeta, State},
};

/// Something that happened.
#[derive(Clone)]
pub enum Input {
    /// A VRRP message for an instance was received.
    Vrrp {
        /// Slot of the instance.
        instance: usize,
        /// When this node received it, as the kernel has it.
        at: Timestamp,
        /// Addresses and TTL.
        meta: RxMeta,
        /// The VRRP message after the IP header.
        message: Vec<u8>,
    },
    /// An advert left; `at` is the time just before.
    AdvertSent {
        /// Slot of the instance.
        instance: usize,
        /// Just before it was sent.
        at: Timestamp,
    },
    /// An advert could not be sent.
    AdvertFailed {
        /// Slot of the instance.
        instance: usize,
    },
    /// An instance's socket was opened: adverts are heard from now on, and leave from this address.
    Listening {
        /// Slot of the instance.
        instance: usize,
        /// This node's own address.
        address: IpAddr,
    },
    /// A probe ended.
    Probed {
        /// Position of the service in the configuration.
        service: usize,
        /// Its result.
        result: ProbeResult,
    },
    /// A backend's agent was asked.
    AgentSaid {
        /// Position of the service in the configuration.
        service: usize,
        /// Position of the backend.
        backend: usize,
        /// From the question.
        serial: u64,
        /// What it said; `None`: nothing.
        report: Option<AgentReport>,
    },
    /// All interfaces and addresses were read.
    Links {
        /// Interfaces.
        interfaces: Vec<Interface>,
        /// Their addresses.
        addresses: Vec<InterfaceAddress>,
    },
    /// Interfaces and addresses could not be read.
    LinksFailed,
    /// Interfaces, addresses or routes changed: they must be read again.
    NetworkChanged,
    /// What became of the uplinks, the answer to [`Action::Attach`].
    Attached(Vec<Attachment>),
    /// How an address is reached, the answer to [`Action::Resolve`].
    Hop {
        /// The address.
        address: IpAddr,
        /// `None`: there is no route.
        hop: Option<Hop>,
    },
    /// A neighbour's MAC is known.
    Neighbour {
        /// Interface index.
        ifindex: u32,
        /// Its address.
        address: IpAddr,
        /// Its MAC.
        mac: Mac,
    },
    /// A station said by ARP, or by a neighbour advertisement, to have an address.
    Claimed {
        /// Index of the interface where it was heard.
        ifindex: u32,
        /// The address.
        address: IpAddr,
        /// The station's MAC.
        mac: Mac,
    },
    /// The tables were read, the answer to [`Action::ReadTables`].
    Tables(Box<Tables>),
    /// A backend refused a connection.
    Refused {
        /// Its id in the data plane.
        backend: u32,
    },
    /// The tables could not be read, or not all be written.
    TablesFailed,
    /// What a look at something that is tracked has shown, the answer to [`Action::Look`].
    Looked {
        /// Position in [`Config::tracks`](crate::config::model::Config::tracks).
        track: usize,
        /// From the action.
        serial: u64,
        /// What was seen.
        observation: Observation,
    },
    /// What came of the lookup of a backend's host name, the answer to [`Action::LookUp`].
    LookedUp {
        /// From the action.
        key: HostKey,
        /// It may be [`Answer::Late`] first.
        answer: Answer,
    },
    /// The operator wants an instance to give up its addresses.
    StepDown {
        /// Slot of the instance.
        instance: usize,
    },
    /// The operator lets an instance take part again.
    Resume {
        /// Slot of the instance.
        instance: usize,
    },
    /// Somebody follows packets to these VIPs: mark them.
    Trace {
        /// Number of the trace: each has another one.
        serial: u64,
        /// The VIPs.
        vips: BTreeSet<IpAddr>,
    },
    /// Nobody follows packets any more, unless another trace has begun since.
    TraceEnded {
        /// Number of the trace.
        serial: u64,
    },
    /// The controller is to end: resign and leave.
    Stop,
}

/// Something to do. A reading that is asked for after a write must see it: actions are carried
/// out in their order, and every reading is answered once.
#[derive(Clone)]
pub enum Action {
    /// Send an advert; answered by [`Input::AdvertSent`] or [`Input::AdvertFailed`].
    SendAdvert {
        /// Slot of the instance.
        instance: usize,
        /// What to send.
        advert: Advert,
        /// Report a failure instead of sending at or after this time.
        not_after: Timestamp,
    },
    /// Write a lease; `None`: no right to the addresses.
    SetLease {
        /// Index in `leases`.
        lease: u32,
        /// Until when.
        deadline: Option<Timestamp>,
    },
    /// Announce addresses to the neighbours: gratuitous ARP, unsolicited NA.
    Announce {
        /// Interface index.
        ifindex: u32,
        /// The interface's MAC, or the group's virtual one.
        mac: Mac,
        /// What is announced.
        addresses: Vec<IpAddr>,
    },
    /// Ask who else has addresses, from nobody; whoever is heard to comes as [`Input::Claimed`].
    ProbeAddresses {
        /// Interface index.
        ifindex: u32,
        /// The interface's MAC.
        mac: Mac,
        /// What is asked for.
        addresses: Vec<IpAddr>,
    },
    /// Add or renew an owned VIP, for [`super::VIP_LIFETIME`].
    SetVip {
        /// Interface index.
        ifindex: u32,
        /// Address and prefix length.
        net: IpNet,
    },
    /// Add a VIP to `lo`.
    SetLoopbackVip {
        /// Interface index of `lo`.
        ifindex: u32,
        /// The address.
        address: IpAddr,
    },
    /// Remove an address.
    RemoveAddress {
        /// Interface index.
        ifindex: u32,
        /// Address and prefix length.
        net: IpNet,
    },
    /// Find out how an address is reached and keep its neighbour resolved.
    Resolve(IpAddr),
    /// Probe a backend; answered by [`Input::Probed`].
    Probe {
        /// Position of the service.
        service: usize,
        /// Position of the backend.
        backend: usize,
        /// To be returned.
        serial: u64,
        /// Time that it may take.
        timeout: Duration,
        /// Where to.
        target: SocketAddr,
        /// It may go over the connection of the one before.
        reuse: bool,
    },
    /// Look at something that is tracked; answered by [`Input::Looked`].
    Look {
        /// Position in [`Config::tracks`](crate::config::model::Config::tracks).
        track: usize,
        /// To be returned.
        serial: u64,
        /// What to look at.
        subject: TrackSubject,
    },
    /// Look a backend's host name up; answered by [`Input::LookedUp`].
    LookUp(HostKey),
    /// Ask a backend's agent; answered by [`Input::AgentSaid`].
    AskAgent {
        /// Position of the service.
        service: usize,
        /// Position of the backend.
        backend: usize,
        /// To be returned.
        serial: u64,
        /// Time that it may take.
        timeout: Duration,
        /// Where to.
        target: SocketAddr,
        /// What is sent first.
        send: String,
    },
    /// Write to the tables, in this order.
    WriteTables(Vec<TableOp>),
    /// Backends died: reset those who are connected to them. Their tables are written already.
    Reset(Vec<Death>),
    /// A check of a backend that had refused a connection passed: it is not suspect any more.
    ClearSuspect {
        /// Its id in the data plane.
        backend: u32,
    },
    /// Read all tables; answered by [`Input::Tables`] or [`Input::TablesFailed`].
    ReadTables,
    /// Read interfaces and addresses; answered by [`Input::Links`] or [`Input::LinksFailed`].
    ReadLinks,
    /// Attach the programs as planned where they are not, detach them everywhere else, and see
    /// that they are still where they shall be; answered by [`Input::Attached`].
    Attach(Vec<Plan>),
    /// The interface of a VRRP instance appeared, was replaced, or is gone: its socket with it.
    Listen {
        /// Slot of the instance.
        instance: usize,
        /// Index of the interface; `None`: it is gone.
        ifindex: Option<u32>,
    },
    /// Save what the operator has said of backends, added and removed, and what their names stand for, in
    /// place of what was saved before.
    SaveOperator(Saved),
    /// Tell those who want to know of changes of state.
    Notify(Notice),
    /// Tell the operator.
    Report(Event),
}

/// What an operator wants to know of, one line of log each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A VRRP instance changed its state.
    Vrrp {
        /// Name of the instance.
        name: String,
        /// Before.
        from: State,
        /// Now.
        to: State,
        /// Why.
        cause: vrrp::Cause,
    },
    /// Timers of a VRRP instance were served late: others may take over from it, or it from them.
    Late {
        /// Name of the instance.
        name: String,
        /// How many since the last time, and how late.
        late: vrrp::Late,
        /// Its advertisement interval.
        interval: Duration,
    },
    /// Tracking makes something else of an instance's priority.
    Fitness {
        /// Name of the instance.
        name: String,
        /// What it makes of it.
        fitness: Fitness,
        /// The configured priority.
        configured: u8,
        /// What has an effect, in words; empty: nothing has.
        because: String,
    },
    /// An advert that was refused, or that shows something that is to be mended.
    BadAdvert {
        /// Name of the instance.
        name: String,
        /// Where it came from.
        from: IpAddr,
        /// What is wrong, in words.
        what: String,
        /// How many like it were not reported since the last one.
        suppressed: u64,
    },
    /// Another host has an address that this node owns.
    Duplicate {
        /// Name of the instance.
        name: String,
        /// Which host, where, and which address, in words.
        what: String,
        /// How long ago it was heard first.
        since: Duration,
        /// How many reports like it there were not since the last one.
        suppressed: u64,
    },
    /// Such a host is not heard any more.
    DuplicateGone {
        /// Name of the instance.
        name: String,
        /// Which host, and which address, in words.
        what: String,
        /// How many reports like it there were not since the last one.
        suppressed: u64,
    },
    /// A backend changed its state.
    Backend {
        /// Name of the service.
        service: String,
        /// Name of the backend.
        backend: String,
        /// Before.
        from: BackendState,
        /// Now.
        to: BackendState,
        /// Why, in words.
        cause: String,
    },
    /// A service has too few backends that are UP, or enough again.
    Quorum {
        /// Name of the service.
        service: String,
        /// How many are UP, enabled and have a weight.
        healthy: u32,
        /// How many it needs.
        min_healthy: u32,
        /// What that means for new connections; `None`: there are enough.
        on_loss: Option<OnQuorumLoss>,
    },
    /// The operator's word on a backend changed.
    Operator {
        /// Name of the service.
        service: String,
        /// Name of the backend.
        backend: String,
        /// What is in force now, in words.
        what: String,
    },
    /// The host name of backends stands for another address, or its lookups fail, or no longer do.
    Name {
        /// The name.
        host: String,
        /// What is different.
        change: Change,
    },
    /// A backend has no address that it can have, although its name stands for one.
    Nameless {
        /// Name of the service.
        service: String,
        /// Name of the backend.
        backend: String,
        /// Why, in words.
        why: String,
    },
    /// A configured uplink is not there, or has no Ethernet address: xvip waits for it.
    UplinkMissing {
        /// Its name.
        interface: String,
    },
    /// Somebody else changed the tables or addresses; they were repaired.
    Repaired {
        /// What, in words.
        what: String,
    },
}

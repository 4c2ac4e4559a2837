//! A reference model of the data plane: what docs/ARCHITECTURE.md says of the pipeline, once more,
//! in plain Rust over byte slices and ordered maps.
//!
//! It shares with the programs what both sides of a wire share (reasons, the flow hash, numbers in
//! tables) and nothing else: it parses, tracks connections and computes checksums by itself. A test
//! runs random packets through the programs and through the model and compares everything.
//!
//! - [`Model`]: the pipeline.
//! - [`tables`]: what it knows.
//! - [`world`]: the stations and tables that packets meet.
//! - [`generate`]: random packets and changes of tables.
//! - [`plane`]: a program with the same tables; [`trial`]: both on the same steps.
//! - [`case`]: sequences of steps, as files.
#![allow(
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "for tests only: a model that panics is a failed test"
)]

mod answer;
pub mod case;
mod conntrack;
mod egress;
mod flows;
pub mod generate;
mod icmp;
mod nat;
mod pipeline;
pub mod plane;
pub mod random;
mod rewrite;
pub mod tables;
pub mod trial;
mod wire;
pub mod world;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use lb_common::{abi::REASON_SLOTS, reason::Reason};

pub use self::rewrite::Rewrite;
use self::tables::{Change, State, Tables, Tuple};

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Why.
    pub reason: Reason,
    /// Service that it is counted for, 0 for none.
    pub service: u32,
    /// It begins a connection.
    pub connection: bool,
    /// What leaves, unless it is dropped.
    pub leaves: Rewrite,
    /// The interface that it leaves through, for a redirection.
    pub ifindex: u32,
}

impl Outcome {
    /// The frame stays as it is; it is for no service.
    fn untouched(reason: Reason, frame: &[u8]) -> Self {
        Self {
            reason,
            service: 0,
            connection: false,
            leaves: Rewrite::of(frame),
            ifindex: 0,
        }
    }
}

/// Packets, bytes, and whatever else is counted with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Connections.
    pub connections: u64,
    /// Segments that were answered with a RST.
    pub resets: u64,
    /// Connections that were refused.
    pub refused: u64,
    /// Packets that were dropped.
    pub drops: u64,
}

/// TCP sockets of this node's kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sockets {
    /// Connections, as packets of the client look after translation.
    pub connections: BTreeSet<Tuple>,
    /// Where something listens.
    pub listeners: BTreeSet<SocketAddr>,
}

/// What the kernel has for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Socket {
    None,
    Listener,
    Connection,
}

/// A time in nanoseconds, in seconds.
pub(super) fn seconds(ns: u64) -> u32 {
    (ns / NANOS) as u32
}

/// Nanoseconds of a second.
const NANOS: u64 = 1_000_000_000;

/// The data plane of one node.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// What the controller wrote.
    pub tables: Tables,
    /// What the data plane wrote.
    pub state: State,
    /// What this node's kernel has.
    pub sockets: Sockets,
    /// By service and number of the reason.
    pub reasons: BTreeMap<(u32, u32), Count>,
    /// By backend.
    pub backends: BTreeMap<u32, Count>,
    /// Nanoseconds of the coarse clock.
    now_ns: u64,
    /// The last packet was to a VIP: a trace tells of it.
    to_vip: Cell<bool>,
    /// Keys of flows and return entries that the last packet asked for.
    touched: RefCell<BTreeSet<Tuple>>,
}

impl Model {
    /// A node with these tables, whose kernel has these sockets.
    pub fn new(tables: Tables, sockets: Sockets) -> Self {
        Self {
            tables,
            sockets,
            ..Self::default()
        }
    }

    /// A frame comes in through interface `ifindex` at `now_ns` (nanoseconds of the coarse clock).
    pub fn ingress(&mut self, frame: &[u8], ifindex: u32, now_ns: u64) -> Outcome {
        self.touched.get_mut().clear();
        self.now_ns = now_ns;
        self.to_vip.set(false);
        let outcome = self.judge_ingress(frame, ifindex, seconds(now_ns));
        self.count(&outcome, frame.len());
        outcome
    }

    /// A frame leaves.
    pub fn egress(&mut self, frame: &[u8]) -> Outcome {
        self.touched.get_mut().clear();
        let outcome = self.judge_egress(frame);
        self.count(&outcome, frame.len());
        outcome
    }

    /// The tables change at `now_ns`.
    pub fn change(&mut self, change: &Change, now_ns: u64) {
        self.tables.change(change);
        self.state.change(change, &self.tables, seconds(now_ns));
    }

    /// Whether the last packet is in the trace.
    pub fn is_traced(&self) -> bool {
        self.tables.traced && self.to_vip.get()
    }

    /// The keys that the last packet asked for.
    pub fn touched(&self) -> Vec<Tuple> {
        self.touched.borrow().iter().copied().collect()
    }

    /// Remember that a key was asked for.
    fn touch(&self, tuple: Tuple) {
        self.touched.borrow_mut().insert(tuple);
    }

    fn count(&mut self, outcome: &Outcome, bytes: usize) {
        let key = (outcome.service, outcome.reason.index());
        debug_assert!(key.1 < REASON_SLOTS);
        let count = self.reasons.entry(key).or_default();
        count.packets += 1;
        count.bytes += bytes as u64;
        count.connections += u64::from(outcome.connection);
    }

    fn count_backend(&mut self, backend: u32) -> &mut Count {
        self.backends.entry(backend).or_default()
    }
}

//! `xvip explain`: which packet is asked about, and what would become of it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{
    flows::FlowEntry,
    model::{BackendState, Method},
    trace::Decision,
};

/// A packet that is asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainQuery {
    /// Client's address and port.
    pub client: SocketAddr,
    /// VIP and port.
    pub vip: SocketAddr,
    /// A UDP packet instead of a TCP segment.
    #[serde(default)]
    pub udp: bool,
    /// TCP control bits as [`super::trace::flag_words`] writes them; absent: `syn`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<String>,
    /// Uplink that it comes in through; absent: the one towards the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// MAC that it comes from; absent: that of the next hop towards the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_mac: Option<String>,
}

/// What would become of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Program that was run.
    pub program: String,
    /// MAC that the packet comes from.
    pub from_mac: String,
    /// Where that MAC is from, in words.
    pub from: String,
    /// The packet and the data plane's decision.
    #[serde(flatten)]
    pub decision: Decision,
    /// The reason in words.
    pub why: String,
    /// The backend as this node's checks see it.
    pub health: Option<BackendHealth>,
    /// The conntrack entry of the flow, if there is one.
    pub entry: Option<FlowEntry>,
    /// What becomes of the reply, in words.
    pub reply: String,
}

/// What this node knows of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendHealth {
    /// Address and port.
    pub address: SocketAddr,
    /// How packets get there.
    pub method: Method,
    /// State.
    pub state: BackendState,
    /// Milliseconds since the state's last change.
    pub since_ms: u64,
    /// Why it changed last.
    pub reason: String,
}

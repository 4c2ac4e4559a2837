//! `aya::Pod` for the map ABI, in user space only.
use crate::abi::{
    Address, Backend, BackendCounters, Budget, ConnectOrigin, Counters, Flow, FlowKey, Lease,
    MacKey, MaglevTable, NatReturn, Node, NodeConfig, ReplyPort, Service, ServiceKey, Suspect,
    Uplink, UplinkKey, Vip,
    events::{Event, TraceEvent, TraceFilter},
    sends::SendKey,
    sources::{SourceKey, SourceRate, SourceRule},
};

macro_rules! pod {
    ($($type:ident $(<$addr:ident>)?),+ $(,)?) => {
        $(
            // SAFETY: `#[repr(C)]` integers and byte arrays without implicit padding (the
            // layout assertions in `abi` hold the sizes, for both types of address that there
            // are), valid for every bit pattern.
            unsafe impl $(<$addr: Address + aya::Pod>)? aya::Pod for $type $(<$addr>)? {}
        )+
    };
}

pod!(
    Backend<A>,
    BackendCounters,
    Budget,
    ConnectOrigin<A>,
    Counters,
    Event,
    Flow,
    FlowKey<A>,
    Lease,
    MacKey,
    MaglevTable,
    NatReturn<A>,
    Node,
    NodeConfig,
    ReplyPort,
    SendKey<A>,
    Service,
    ServiceKey<A>,
    SourceKey<A>,
    SourceRate,
    SourceRule,
    Suspect,
    TraceEvent,
    TraceFilter,
    Uplink,
    UplinkKey,
    Vip,
);

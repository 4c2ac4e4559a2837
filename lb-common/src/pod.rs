//! `aya::Pod` for the map ABI, in user space only.
use crate::abi::{
    Backend, ConnectOrigin, Counters, Flow, FlowKey, Lease, MacKey, MaglevTable, NatReturn, Node,
    NodeConfig, ReplyPort, Service, ServiceKey, Uplink, Vip,
};

type V4 = [u8; 4];
type V6 = [u8; 16];

macro_rules! pod {
    ($($type:ty),+ $(,)?) => {
        $(
            // SAFETY: `#[repr(C)]` integers and byte arrays without implicit padding (the
            // layout assertions in `abi` hold the sizes), valid for every bit pattern.
            unsafe impl aya::Pod for $type {}
        )+
    };
}

pod!(
    Backend<V4>,
    Backend<V6>,
    ConnectOrigin<V4>,
    ConnectOrigin<V6>,
    Counters,
    Flow,
    FlowKey<V4>,
    FlowKey<V6>,
    Lease,
    MacKey,
    MaglevTable,
    NatReturn<V4>,
    NatReturn<V6>,
    Node,
    NodeConfig,
    ReplyPort,
    Service,
    ServiceKey<V4>,
    ServiceKey<V6>,
    Uplink,
    Vip,
);

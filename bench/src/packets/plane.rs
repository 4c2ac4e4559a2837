//! A data plane of its own, unpinned and attached to nothing, with one service per method.

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, MapData},
};
use lb_common::{
    abi::{
        Address, Backend, BackendState, MacKey, MaglevTable, Method, NODE_NONE, NODE_SELF, Node,
        NodeConfig, Service, ServiceKey, Uplink, UplinkKey, Vip,
    },
    headers::IPPROTO_TCP,
};
use lb_user::io::bpf::{self, features::Features};

use super::{
    floor::{self, Hook, Program},
    frame,
};

/// `BPF_PROG_TEST_RUN` runs XDP programs on the loopback interface, which has index 1.
const IFINDEX: u32 = 1;
/// Number of a peer.
const PEER: u32 = 2;

/// The loaded object.
pub(crate) struct Plane {
    object: Ebpf,
}

fn hash<'a, K: Pod, V: Pod>(
    object: &'a mut Ebpf,
    name: &str,
) -> Result<HashMap<&'a mut MapData, K, V>> {
    Ok(HashMap::try_from(
        object.map_mut(name).context("no such map")?,
    )?)
}

fn array<'a, V: Pod>(object: &'a mut Ebpf, name: &str) -> Result<Array<&'a mut MapData, V>> {
    Ok(Array::try_from(
        object.map_mut(name).context("no such map")?,
    )?)
}

impl Plane {
    /// Load the ingress programs and fill the maps.
    pub(crate) fn load() -> Result<Self> {
        let (mut loader, features) = (EbpfLoader::new(), Features::detect());
        features.apply(&mut loader);
        let mut object = loader.load(&features.object(bpf::object()))?;
        for hook in [Hook::Xdp, Hook::Tc] {
            floor::load(&mut object, ingress(hook))?;
        }
        let uplink = Uplink::new(frame::OWN_MAC);
        hash(&mut object, "uplinks")?.insert(UplinkKey::new(IFINDEX, 0), uplink, 0)?;
        // As the controller writes it.
        let facts = NodeConfig::new(0)
            .with_uplink(IFINDEX, 0, frame::OWN_MAC)
            .with_peers([frame::PEER_MAC]);
        array(&mut object, "node")?.set(0, facts, 0)?;
        hash(&mut object, "peer_macs")?.insert(MacKey::new(frame::PEER_MAC), Node::new(PEER), 0)?;
        fill(&mut object, "4", frame::VIP4, frame::BACKEND4, 0)?;
        fill(&mut object, "6", frame::VIP6, frame::BACKEND6, 3)?;
        Ok(Self { object })
    }

    /// The ingress program of a hook.
    pub(crate) fn ingress(&self, hook: Hook) -> Result<Program<'_>> {
        Program::of(&self.object, ingress(hook))
    }
}

/// Name of the ingress program of a hook.
const fn ingress(hook: Hook) -> &'static str {
    match hook {
        Hook::Xdp => "xdp_ingress",
        Hook::Tc => "tc_ingress",
    }
}

/// Three services of a family, ids after `offset`: dsr, nat, local.
fn fill<A: Address + Pod>(
    object: &mut Ebpf,
    family: &str,
    vip: A,
    backend: A,
    offset: u32,
) -> Result<()>
where
    ServiceKey<A>: Pod,
    Backend<A>: Pod,
{
    hash(object, &format!("vips{family}"))?.insert(vip, Vip::new(0), 0)?;
    let source = ServiceKey::new(backend, frame::BACKEND_PORT, IPPROTO_TCP);
    hash(object, &format!("nat_sources{family}"))?.insert(source, Node::new(NODE_NONE), 0)?;
    let services = [
        (frame::DSR_PORT, Method::Dsr, PEER + 1),
        (frame::NAT_PORT, Method::Nat, NODE_NONE),
        (frame::LOCAL_PORT, Method::Local, NODE_SELF),
    ];
    for ((port, method, node), id) in services.into_iter().zip(offset + 1..) {
        let value = Backend::new(
            backend,
            frame::BACKEND_PORT,
            id,
            node,
            method,
            BackendState::Up,
        )
        .via(IFINDEX, frame::BACKEND_MAC);
        array(object, &format!("backends{family}"))?.set(id, value, 0)?;
        let slots = std::iter::repeat(u16::try_from(id)?);
        let table = Box::new(MaglevTable::from_slots(slots));
        array(object, "maglev")?.set(2 * id, *table, 0)?;
        let (local, local_port) = if method == Method::Local {
            (id, frame::BACKEND_PORT)
        } else {
            (0, 0)
        };
        let service = Service::new(id, 2 * id, local, local_port, true);
        let key = ServiceKey::new(vip, port, IPPROTO_TCP);
        hash(object, &format!("services{family}"))?.insert(key, service, 0)?;
    }
    Ok(())
}

//! A data plane of its own, unpinned and attached to nothing, with one service per method.

use anyhow::{Context, Result};
use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, MapData},
    programs::Xdp,
};
use lb_common::{
    abi::{
        Address, Backend, BackendState, MacKey, MaglevTable, Method, NODE_NONE, NODE_SELF, Node,
        Service, ServiceKey, Uplink, UplinkKey, Vip,
    },
    headers::IPPROTO_TCP,
};
use lb_user::io::bpf;

use crate::frame;

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
    /// Load the programs and fill the maps.
    pub(crate) fn load() -> Result<Self> {
        let mut object = Ebpf::load(bpf::object())?;
        for name in ["xdp_ingress", "xdp_stub"] {
            let program: &mut Xdp = object
                .program_mut(name)
                .context("no such program")?
                .try_into()?;
            program.load()?;
        }
        hash(&mut object, "uplinks")?.insert(UplinkKey::new(IFINDEX, 0), Uplink::new(frame::OWN_MAC), 0)?;
        hash(&mut object, "peer_macs")?.insert(MacKey::new(frame::PEER_MAC), Node::new(PEER), 0)?;
        fill(&mut object, "4", frame::VIP4, [10, 9, 0, 3], 0)?;
        let backend = [0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];
        fill(&mut object, "6", frame::VIP6, backend, 3)?;
        Ok(Self { object })
    }

    /// A loaded program.
    pub(crate) fn program(&mut self, name: &str) -> Result<&Xdp> {
        let program: &mut Xdp = self
            .object
            .program_mut(name)
            .context("no such program")?
            .try_into()?;
        Ok(program)
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
    let services = [
        (frame::DSR_PORT, Method::Dsr, PEER + 1),
        (frame::NAT_PORT, Method::Nat, NODE_NONE),
        (frame::LOCAL_PORT, Method::Local, NODE_SELF),
    ];
    for ((port, method, node), id) in services.into_iter().zip(offset + 1..) {
        let value = Backend::new(backend, 6443, id, node, method, BackendState::Up)
            .via(IFINDEX, frame::BACKEND_MAC);
        array(object, &format!("backends{family}"))?.set(id, value, 0)?;
        let slots = std::iter::repeat(u16::try_from(id)?);
        let table = Box::new(MaglevTable::from_slots(slots));
        array(object, "maglev")?.set(2 * id, *table, 0)?;
        let (local, local_port) = if method == Method::Local {
            (id, 6443)
        } else {
            (0, 0)
        };
        let service = Service::new(id, 2 * id, local, local_port, true);
        let key = ServiceKey::new(vip, port, IPPROTO_TCP);
        hash(object, &format!("services{family}"))?.insert(key, service, 0)?;
    }
    Ok(())
}

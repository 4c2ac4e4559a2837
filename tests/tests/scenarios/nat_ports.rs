//! The source ports of nat, when there are none left.

use std::{io, net::IpAddr, time::Instant};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
};
use lb_common::{
    abi::{Address, Flow, FlowKey, NatReturn},
    conntrack::FlowState,
    headers::IPPROTO_TCP,
    reason::Reason,
};
use lb_tests::{
    cluster::Cluster,
    control_plane::{VIP4, VIP6},
    endpoint::{connect, talk},
    skip_unless_root,
    ways::{Path, Way, Ways},
};
use lb_user::io::clock;

fn map<K: Pod, V: Pod>(cluster: &Cluster, name: &str) -> HashMap<MapData, K, V> {
    let data = MapData::from_pin(cluster.node("m1").pins().join(name)).unwrap();
    HashMap::try_from(Map::LruHashMap(data)).unwrap()
}

/// The lowest port that nat uses.
const FIRST: u16 = 1024;
/// Returned by nobody: a client far away.
const STRANGER_PORT: u16 = 40_000;

/// Flows of other clients that use every port towards the backend but those in use already.
struct Taken<A: Address> {
    flows: HashMap<MapData, FlowKey<A>, Flow>,
    returns: HashMap<MapData, FlowKey<A>, NatReturn<A>>,
    vip: A,
    backend: A,
}

impl<A: Address + Pod> Taken<A>
where
    FlowKey<A>: Pod,
    NatReturn<A>: Pod,
{
    fn new(cluster: &Cluster, family: char, vip: A, backend: A) -> Self {
        Self {
            flows: map(cluster, &format!("flows{family}")),
            returns: map(cluster, &format!("returns{family}")),
            vip,
            backend,
        }
    }

    fn reply(&self, port: u16) -> FlowKey<A> {
        let to = Way::Nat.backend_port();
        FlowKey::new(self.backend, to, self.vip, port, IPPROTO_TCP)
    }

    fn request(&self, client: A) -> FlowKey<A> {
        let port = Way::Nat.port();
        FlowKey::new(client, STRANGER_PORT, self.vip, port, IPPROTO_TCP)
    }

    /// Takes them all; `client(port)` has the flow that uses a port. The number of those.
    fn fill(&mut self, client: impl Fn(u16) -> A) -> usize {
        let known = self.flows.iter().flatten().next().unwrap().1;
        let now = clock::monotonic_seconds();
        let mut taken = 0;
        for port in FIRST..=u16::MAX {
            let key = self.reply(port);
            if self.returns.get(&key, 0).is_ok() {
                continue;
            }
            let id = known.backend();
            let entry = NatReturn::new(client(port), STRANGER_PORT, Way::Nat.port(), id, 1, [2; 6]);
            self.returns.insert(key, entry, 0).unwrap();
            let flow = Flow::new(id, port, 0, FlowState::Established, now).in_epoch(known.epoch());
            let key = self.request(client(port));
            self.flows.insert(key, flow, 0).unwrap();
            taken += 1;
        }
        taken
    }
}

/// All 64,512 ports towards a backend are in use: a new connection is refused at once and counted, the
/// ones that are there go on, and when a port is free again it is given away.
fn exhaust<A: Address + Pod>(
    ways: &Ways,
    path: Path,
    mut taken: Taken<A>,
    stranger: impl Fn(u16) -> A,
) where
    FlowKey<A>: Pod,
    NatReturn<A>: Pod,
{
    let (client, server) = ways.connect(path, None).unwrap();
    talk(&client, &server).unwrap();
    println!("{} ports taken", taken.fill(&stranger));
    let refusals = || ways.cluster.reason("m1", Reason::NatPortsReset).unwrap();
    let before = refusals();
    for _ in 0..5 {
        let begin = Instant::now();
        let error = connect(ways.cluster.client(), None, path.target()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{path}");
        println!("refused after {:?}", begin.elapsed());
    }
    assert_eq!(refusals(), before + 5);
    talk(&client, &server).unwrap();

    // That client is done: its flow and its port.
    let port = 50_000;
    taken.flows.remove(&taken.request(stranger(port))).unwrap();
    let (near, far) = ways.connect(path, Some(port)).unwrap();
    talk(&near, &far).unwrap();
    talk(&client, &server).unwrap();
}

/// See [`exhaust`].
#[test]
fn a_connection_without_a_port_is_refused_and_counted() {
    skip_unless_root!();
    let ways = Ways::start().unwrap();
    let backend = ways.cluster.node("b1");
    let path = |vip: IpAddr| Path { way: Way::Nat, vip };
    let (vip4, backend4) = (VIP4.octets(), backend.ipv4().octets());
    let taken = Taken::new(&ways.cluster, '4', vip4, backend4);
    exhaust(&ways, path(VIP4.into()), taken, |port| {
        let [a, b] = port.to_be_bytes();
        [198, 18, a, b]
    });
    let (vip6, backend6) = (VIP6.octets(), backend.ipv6().octets());
    let taken = Taken::new(&ways.cluster, '6', vip6, backend6);
    exhaust(&ways, path(VIP6.into()), taken, |port| {
        let [a, b] = port.to_be_bytes();
        let mut client = [0; 16];
        client[..2].copy_from_slice(&[0xfd, 0x99]);
        client[14..].copy_from_slice(&[a, b]);
        client
    });
}

//! What the tables shall hold, fact by fact.

mod policy;

use lb_common::headers::IPPROTO_TCP;

use super::*;
use crate::config::model::AttachMode;
use crate::core::{
    fixture::{self, APISERVER, APISERVER6, ETH0, ip, mac},
    network::{Hop, LinkKind, Vlan},
    tables::{FamilyOp, TableOp, plan},
};

use BackendState::{Down, Draining, Up};

const PEERS: [&str; 4] = ["10.0.2.11", "10.0.2.12", "fd00::11", "fd00::12"];
const COOKIE: u64 = 7;
/// Key of the service `apiserver`.
const KEY: ServiceKey<[u8; 4]> = ServiceKey::new([10, 0, 2, 100], 1644, IPPROTO_TCP);

/// Backends in three places: by a router, on the link without xvip, and on a peer.
const WEB: &str = r#"
[[service]]
name = "web"
address = "10.0.2.100"
port = 80
forwarding = "auto"
[service.health]
type = "tcp"
[[service.backend]]
name = "beyond"
address = "10.0.3.20:80"
[[service.backend]]
name = "near"
address = "10.0.2.20:8080"
[[service.backend]]
name = "peer-by-nat"
address = "10.0.2.11:8080"
forwarding = "nat"
[[service.backend]]
name = "beyond-by-dsr"
address = "10.0.3.21:80"
forwarding = "dsr"
"#;

/// A node with a data plane: what it holds is what was planned last.
struct World {
    config: Config,
    network: Network,
    uplinks: Uplinks,
    health: Vec<Vec<BackendState>>,
    influences: Influences,
    builder: Builder,
    tables: Tables,
    retiring: Vec<Retiring>,
}

impl World {
    fn new(config: Config, network: Network) -> Self {
        let health = config.services.iter();
        Self {
            health: health.map(|s| vec![Up; s.backends.len()]).collect(),
            influences: Influences::new(),
            uplinks: fixture::uplinks(&config, &network),
            config,
            network,
            builder: Builder::default(),
            tables: Tables::default(),
            retiring: vec![],
        }
    }

    /// master10 with `services` and its peers resolved.
    fn master10(services: &str) -> Self {
        let network = fixture::network(10, &PEERS);
        Self::new(fixture::config(10, services), network)
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            config: &self.config,
            network: &self.network,
            uplinks: &self.uplinks,
            health: &self.health,
            influences: &self.influences,
            leases: fixture::leases(&self.config),
            retiring: &self.retiring,
            netns_cookie: COOKIE,
        }
    }

    /// Build, write, and read back what is in force.
    fn converge(&mut self) -> Desired {
        let facts = Facts {
            config: &self.config,
            network: &self.network,
            uplinks: &self.uplinks,
            health: &self.health,
            influences: &self.influences,
            leases: fixture::leases(&self.config),
            retiring: &self.retiring,
            netns_cookie: COOKIE,
        };
        let desired = self.builder.build(&facts, &self.tables);
        for op in plan(&desired.tables, &self.tables) {
            self.tables.apply(&op);
        }
        let in_force = |index: &u32, _: &mut _| desired.tables.maglev.contains_key(index);
        self.tables.maglev.retain(in_force);
        assert!(plan(&desired.tables, &self.tables).is_empty());
        desired
    }

    /// The controller was started again: only the tables are left.
    fn restart(&mut self) {
        self.builder = Builder::default();
    }

    fn service(&self) -> Service {
        self.tables.v4.services[&KEY]
    }
}

/// Shares of the slots by backend, in configuration order.
fn shares(desired: &Desired, service: usize) -> Vec<u32> {
    let backends = desired.services[service].backends.iter();
    backends.map(|placement| placement.slots).collect()
}

fn ids(desired: &Desired) -> Vec<(u32, Vec<u32>)> {
    let services = desired.services.iter();
    let backends = |s: &ServicePlacement| s.backends.iter().map(|b| b.id).collect();
    services.map(|s| (s.id, backends(s))).collect()
}

// --- Methods and ways ---------------------------------------------------------------------------

/// `auto` is local on this node, dsr on a peer; what is configured is overridden by local only.
#[test]
fn methods_follow_the_place() {
    let mut world = World::master10(&format!("{APISERVER}{WEB}"));
    let desired = world.converge();
    let methods = |service: usize| -> Vec<_> {
        let backends = desired.services[service].backends.iter();
        backends.map(|placement| placement.method).collect()
    };
    assert_eq!(methods(0), [Method::Local, Method::Dsr, Method::Dsr]);
    let (nat, dsr) = (Method::Nat, Method::Dsr);
    assert_eq!(methods(1), [nat, nat, nat, dsr]);
    // On the peer itself the nat backend is local.
    let config = fixture::config(11, WEB);
    let mut peer = World::new(config, fixture::network(11, &["10.0.2.10"]));
    assert_eq!(
        peer.converge().services[0].backends[2].method,
        Method::Local
    );
}

/// A backend carries its node's number, its interface and its next hop's MAC.
#[test]
fn backends_know_their_way() {
    let mut world = World::master10(APISERVER);
    let desired = world.converge();
    let backend = |position: usize| {
        let id = desired.services[0].backends[position].id;
        desired.tables.v4.backends[&id]
    };
    assert_eq!(backend(0).node(), NODE_SELF);
    assert_eq!(backend(0).ifindex(), 0);
    assert_eq!(backend(2).node(), FIRST_PEER + 1);
    assert_eq!((backend(2).ifindex(), backend(2).mac()), (ETH0, mac(12)));
    assert!(
        desired.services[0]
            .backends
            .iter()
            .all(|b| b.unresolved.is_none())
    );
}

/// Behind a router: nat goes to the router's MAC, dsr nowhere, since the router would send the
/// packet back to the VIP.
#[test]
fn dsr_needs_the_link() {
    let config = fixture::config(10, WEB);
    let mut world = World::new(
        config,
        fixture::network(10, &["10.0.3.20", "10.0.3.21", "10.0.2.20"]),
    );
    let desired = world.converge();
    let placements = &desired.services[0].backends;
    let unresolved: Vec<_> = placements.iter().map(|b| b.unresolved).collect();
    let (unknown, router) = (Unresolved::NoRoute, Unresolved::BehindRouter);
    assert_eq!(unresolved, [None, None, Some(unknown), Some(router)]);
    let backend = |position: usize| &desired.tables.v4.backends[&placements[position].id];
    assert_eq!(backend(0).mac(), mac(1));
    assert_eq!(backend(1).mac(), mac(20));
    assert_eq!(backend(3).ifindex(), 0);
}

/// A backend whose route leaves by an interface without programs has no way, whoever answers there:
/// its replies would pass by the data plane. It has one again when the interface is an uplink.
#[test]
fn ways_leave_by_uplinks() {
    let mut world = World::master10(APISERVER);
    let mut other = fixture::interfaces(10).pop().unwrap();
    (other.ifindex, other.name) = (7, "eth1".to_owned());
    let links = fixture::interfaces(10).into_iter().chain([other]);
    let addresses: Vec<_> = world.network.addresses().copied().collect();
    world.network.set_links(links.collect(), addresses);
    let address = ip("10.0.2.12");
    let hop = |ifindex| Hop {
        ifindex,
        gateway: address,
    };
    world.network.set_hop(address, Some(hop(7)));
    world.network.set_neighbour(7, address, mac(12));
    let desired = world.converge();
    let placement = desired.services[0].backends[2];
    let expected = Unresolved::NotUplink { ifindex: 7 };
    assert_eq!(placement.unresolved, Some(expected));
    assert_eq!(world.tables.v4.backends[&placement.id].ifindex(), 0);
    world.config.node.interfaces.push("eth1".to_owned());
    world.uplinks = fixture::uplinks(&world.config, &world.network);
    let desired = world.converge();
    assert_eq!(desired.services[0].backends[2].unresolved, None);
    assert_eq!(world.tables.v4.backends[&placement.id].ifindex(), 7);
}

/// A VLAN as uplink: XDP programs know it by its carrier and tag, and what leaves for it goes to
/// the carrier with the tag; tc programs know the VLAN's own interface.
#[test]
fn vlans_are_known_where_they_are_seen() {
    let mut world = World::master10(APISERVER);
    let mut links = fixture::interfaces(10);
    let mut carrier = links.pop().unwrap();
    let mut vlan = carrier.clone();
    (carrier.ifindex, carrier.name) = (7, "card".to_owned());
    carrier.mac = Some(mac(77));
    vlan.kind = LinkKind::Vlan(Vlan {
        parent: 7,
        id: 5,
        is_service_tag: false,
    });
    let addresses: Vec<_> = world.network.addresses().copied().collect();
    links.extend([carrier, vlan]);
    world.network.set_links(links, addresses);
    for (attach, key, way) in [
        (AttachMode::Auto, UplinkKey::new(7, 5), (7, 5)),
        (AttachMode::Tc, UplinkKey::new(ETH0, 0), (ETH0, 0)),
    ] {
        world.config.node.attach = attach;
        world.uplinks = fixture::uplinks(&world.config, &world.network);
        let desired = world.converge();
        // The MAC is the VLAN's own.
        let expected = BTreeMap::from([(key, Uplink::new(mac(10)))]);
        assert_eq!(desired.tables.uplinks, expected);
        let id = desired.services[0].backends[2].id;
        let backend = desired.tables.v4.backends[&id];
        assert_eq!((backend.ifindex(), backend.tags()), way);
    }
}

/// A node that got another MAC: its backend and its own identity follow, nothing else changes.
#[test]
fn another_mac_changes_what_leads_there() {
    let mut world = World::master10(APISERVER);
    world.converge();
    let before = world.tables.clone();
    for address in ["10.0.2.12", "fd00::12"] {
        assert!(world.network.set_neighbour(ETH0, ip(address), mac(99)));
    }
    let desired = world.converge();
    let id = desired.services[0].backends[2].id;
    assert_eq!(world.tables.v4.backends[&id].mac(), mac(99));
    assert_eq!(world.tables.v4.services, before.v4.services);
    assert!(world.tables.maglev == before.maglev);
    let node = world.tables.peer_macs[&MacKey::new(mac(99))];
    assert_eq!(node, Node::new(FIRST_PEER + 1));
    assert!(!world.tables.peer_macs.contains_key(&MacKey::new(mac(12))));
}

/// An interface that vanished takes the ways through it along: nothing is sent to an index that
/// may soon be another interface's.
#[test]
fn vanished_interfaces_take_their_ways_along() {
    let mut world = World::master10(APISERVER);
    world.converge();
    let lo = fixture::interfaces(10).into_iter().take(1).collect();
    world.network.set_links(lo, []);
    let desired = world.converge();
    assert!(desired.tables.uplinks.is_empty());
    assert!(desired.tables.peer_macs.is_empty());
    assert!(
        desired
            .tables
            .v4
            .backends
            .values()
            .all(|b| b.ifindex() == 0)
    );
}

// --- Ids ----------------------------------------------------------------------------------------

/// Flows refer to ids: after a restart, in another order and with more backends, everything
/// keeps its own.
#[test]
fn ids_outlive_restart_and_reordering() {
    let mut world = World::master10(&format!("{APISERVER}{APISERVER6}"));
    let before = ids(&world.converge());
    world.config.services.reverse();
    world.config.services[1].backends.reverse();
    world.health.reverse();
    world.restart();
    let mut after = ids(&world.converge());
    after.reverse();
    after[0].1.reverse();
    assert_eq!(after, before);
}

/// The id of a backend that is removed is not given to another one at once: flows still refer to
/// it.
#[test]
fn ids_are_not_reused_at_once() {
    let mut world = World::master10(APISERVER);
    let removed = ids(&world.converge())[0].1[0];
    let backends = &mut world.config.services[0].backends;
    backends[0].address = "10.0.2.13:6443".parse().unwrap();
    world.restart();
    let now = ids(&world.converge());
    assert!(!now[0].1.contains(&removed), "{now:?}");
    // Its flows are of an earlier epoch from now on, and the controller's next start keeps it so.
    let left = Backend::EMPTY.in_epoch(1);
    assert_eq!(world.tables.v4.backends[&removed], left);
    world.restart();
    world.converge();
    assert_eq!(world.tables.v4.backends[&removed], left);
}

/// The epoch counts how often a backend went DOWN, through restarts of the controller; with
/// `on_backend_down = "keep"` it stays.
#[test]
fn epochs_count_deaths() {
    let keeps = APISERVER6.replace("port = 1644", "port = 1644\non_backend_down = \"keep\"");
    let mut world = World::master10(&format!("{APISERVER}{keeps}"));
    let id = |service: usize, desired: &Desired| desired.services[service].backends[1].id;
    let mut seen = Vec::new();
    for state in [Up, Draining, Down, Down, Up, Down, Draining, Up] {
        world.health[0][1] = state;
        world.health[1][1] = state;
        world.restart();
        let desired = world.converge();
        seen.push(world.tables.v4.backends[&id(0, &desired)].epoch());
        assert_eq!(world.tables.v6.backends[&id(1, &desired)].epoch(), 0);
    }
    assert_eq!(seen, [0, 0, 1, 1, 1, 2, 2, 2]);
}

/// Someone gives a service another one's id and table: both get their own back, so that they
/// never write to the same table.
#[test]
fn stolen_ids_go_back() {
    let mut world = World::master10(&format!("{APISERVER6}{APISERVER}"));
    world.converge();
    let honest = world.tables.clone();
    let other = *world.tables.v6.services.values().next().unwrap();
    world.tables.v4.services.insert(KEY, other);
    world.converge();
    assert!(world.tables == honest);
    // Also if it was done while no controller ran: every id is given once.
    world.tables.v4.services.insert(KEY, other);
    world.restart();
    let now = ids(&world.converge());
    assert_ne!(now[0].0, now[1].0);
    assert_eq!(world.tables.maglev.len(), 2);
}

/// Ids that cannot be (0, or beyond the maps' sizes) are not taken over.
#[test]
fn impossible_ids_are_not_adopted() {
    for id in [0, MAX_SERVICES, u32::MAX] {
        let mut world = World::master10(APISERVER);
        let service = Service::new(id, 2, 0, 0, true);
        world.tables.v4.services.insert(KEY, service);
        let ids = ids(&world.converge());
        assert!((1..MAX_SERVICES).contains(&ids[0].0));
    }
}

// --- Maglev tables and pools --------------------------------------------------------------------

/// The Maglev table in force stays while its content does, also over a restart; another content
/// goes to the other one of the two.
#[test]
fn tables_flip_with_their_content_only() {
    let mut world = World::master10(APISERVER);
    world.converge();
    let first = world.service().table();
    assert_eq!(first, 2 * world.service().id());
    world.converge();
    assert_eq!(world.service().table(), first);
    world.restart();
    world.converge();
    assert_eq!(world.service().table(), first);
    world.health[0][1] = Down;
    world.converge();
    assert_eq!(world.service().table(), first + 1);
    world.health[0][1] = Up;
    world.converge();
    assert_eq!(world.service().table(), first);
}

/// A service that refers to a table of another one's gets its own.
#[test]
fn a_foreign_table_is_left() {
    let mut world = World::master10(APISERVER);
    let desired = world.converge();
    let id = desired.services[0].id;
    let service = Service::new(id, 77, 0, 0, true);
    world.tables.v4.services.insert(KEY, service);
    let content = world.tables.maglev[&(2 * id)].clone();
    world.tables.maglev = BTreeMap::from([(77, content)]);
    world.converge();
    assert_eq!(world.service().table(), 2 * id);
}

/// New flows go to UP backends; without any to DRAINING ones; without those to none, and the
/// service says so.
#[test]
fn the_pool_is_up_else_draining_else_nothing() {
    let mut world = World::master10(APISERVER);
    let takes = |world: &mut World, states: [BackendState; 3]| {
        world.health = vec![states.to_vec()];
        let desired = world.converge();
        let usable = world.service().usable();
        (shares(&desired, 0).iter().map(|n| *n > 0).collect(), usable)
    };
    let pool = |takes: [bool; 3]| (takes.to_vec(), true);
    let (yes, no) = (true, false);
    assert_eq!(takes(&mut world, [Up, Up, Down]), pool([yes, yes, no]));
    assert_eq!(takes(&mut world, [Up, Draining, Up]), pool([yes, no, yes]));
    assert_eq!(
        takes(&mut world, [Down, Draining, Draining]),
        pool([no, yes, yes])
    );
    assert_eq!(takes(&mut world, [Down; 3]), (vec![no; 3], false));
    let states = world.tables.v4.backends.values().map(Backend::state);
    assert!(states.eq([Down; 3]));
}

/// Weights are shares.
#[test]
fn slots_follow_weights() {
    let weighted = APISERVER.replace("11:6443\"", "11:6443\"\nweight = 2");
    let desired = World::master10(&weighted).converge();
    let shares = shares(&desired, 0);
    assert_eq!(shares.iter().sum::<u32>(), 16_381);
    assert!((8_100..=8_280).contains(&shares[1]), "{shares:?}");
}

// --- The other tables ---------------------------------------------------------------------------

/// Replies get the VIP's port, and requests find their listener, on the node that hosts the backend
/// and nowhere else.
#[test]
fn reply_ports_where_the_backend_is() {
    let reply_key = ServiceKey::new([10, 0, 2, 100], 6443, IPPROTO_TCP);
    let mut world = World::master10(APISERVER);
    let desired = world.converge();
    let service = world.service();
    let slot = u16::try_from(service.id()).unwrap();
    let expected = BTreeMap::from([(reply_key, ReplyPort::new(1644).of_service(slot))]);
    assert_eq!(desired.tables.v4.reply_ports, expected);
    assert_eq!(service.local_port(), 6443);
    assert_eq!(service.local_backend(), desired.services[0].backends[0].id);

    let same = APISERVER.replace("port = 1644", "port = 6443");
    let desired = World::master10(&same).converge();
    assert_eq!(desired.tables.v4.reply_ports[&reply_key].port(), 6443);

    let elsewhere = fixture::config(13, APISERVER);
    let desired = World::new(elsewhere, fixture::network(13, &[])).converge();
    assert!(desired.tables.v4.reply_ports.is_empty());
}

/// What comes from a nat backend's address and port is a reply; from others it is not.
#[test]
fn nat_sources_are_the_nat_backends() {
    let desired = World::master10(&format!("{APISERVER}{WEB}")).converge();
    let sources = desired.tables.v4.nat_sources.keys();
    let expected = [
        ([10, 0, 2, 11], 8080),
        ([10, 0, 2, 20], 8080),
        ([10, 0, 3, 20], 80),
    ];
    assert!(sources.map(|key| (key.vip(), key.port())).eq(expected));
}

/// Peers are known by all their addresses, and by their MAC where they are on the link.
#[test]
fn peers_have_addresses_and_macs() {
    let mut world = World::master10(APISERVER);
    world.network = fixture::network(10, &["10.0.2.11", "fd00::11"]);
    let desired = world.converge();
    let first = Node::new(FIRST_PEER);
    assert_eq!(desired.tables.v4.peer_addrs[&[10, 0, 2, 11]], first);
    assert_eq!(desired.tables.v4.peer_addrs.len(), 2);
    assert_eq!(desired.tables.v6.peer_addrs.len(), 2);
    let macs = BTreeMap::from([(MacKey::new(mac(11)), first)]);
    assert_eq!(desired.tables.peer_macs, macs);

    let beyond = Hop {
        ifindex: ETH0,
        gateway: ip("10.0.2.1"),
    };
    for address in ["10.0.2.11", "fd00::11"] {
        world.network.set_hop(ip(address), Some(beyond));
    }
    world.network.set_neighbour(ETH0, ip("10.0.2.1"), mac(1));
    assert!(world.converge().tables.peer_macs.is_empty());
}

/// Every address of an instance has the instance's lease; a service's address without instance
/// is never fenced.
#[test]
fn vips_have_their_leases() {
    let alone = APISERVER
        .replace("10.0.2.100", "10.0.2.101")
        .replace("\"apiserver\"", "\"static\"");
    let desired = World::master10(&format!("{APISERVER}{APISERVER6}{alone}")).converge();
    let v4 = BTreeMap::from([
        ([10, 0, 2, 100], Vip::new(1)),
        ([10, 0, 2, 101], Vip::new(0)),
    ]);
    assert_eq!(desired.tables.v4.vips, v4);
    assert!(desired.tables.v6.vips.values().eq([&Vip::new(2)]));
}

/// The VIPs of an instance with a virtual MAC have its VRID, those of another one have none.
#[test]
fn vips_have_their_virtual_macs() {
    let mut world = World::master10(&format!("{APISERVER}{APISERVER6}"));
    world.config.vrrp[0].use_vmac = true;
    let vrid = world.config.vrrp[0].vrid.get();
    let desired = world.converge();
    let v4 = desired.tables.v4.vips.values();
    assert!(v4.eq([&Vip::new(1).with_virtual_mac(vrid)]));
    assert!(desired.tables.v6.vips.values().eq([&Vip::new(2)]));
}

/// The VIPs of an instance that accepts nothing are closed to what is for no service, whatever its
/// state; those of the addresses' owner are open, and so is a service's address without instance.
#[test]
fn vips_are_closed_where_nothing_is_accepted() {
    let alone = APISERVER
        .replace("10.0.2.100", "10.0.2.101")
        .replace("\"apiserver\"", "\"static\"");
    let mut world = World::master10(&format!("{APISERVER}{APISERVER6}{alone}"));
    for instance in &mut world.config.vrrp {
        instance.accept = false;
    }
    world.config.vrrp[1].priority = std::num::NonZeroU8::MAX;
    let desired = world.converge();
    let v4 = BTreeMap::from([
        ([10, 0, 2, 100], Vip::new(1).closed(true)),
        ([10, 0, 2, 101], Vip::new(0)),
    ]);
    assert_eq!(desired.tables.v4.vips, v4);
    assert!(desired.tables.v6.vips.values().eq([&Vip::new(2)]));
}

/// A node carries the VIPs of the services that have a backend on it.
#[test]
fn loopback_vips_are_those_with_a_backend_here() {
    let services = format!("{APISERVER6}{WEB}");
    let vips = |host| {
        let world = World::new(
            fixture::config(host, &services),
            fixture::network(host, &[]),
        );
        loopback_vips(&world.facts())
    };
    assert_eq!(vips(10), BTreeSet::from([ip("fd00::100")]));
    assert_eq!(
        vips(11),
        BTreeSet::from([ip("10.0.2.100"), ip("fd00::100")])
    );
    assert_eq!(vips(12), BTreeSet::new());
}

/// While this node is owner, the VIP on its interface makes no backend local.
#[test]
fn owning_the_vip_changes_no_table() {
    let mut world = World::master10(APISERVER);
    world.converge();
    let before = world.tables.clone();
    let mut addresses = fixture::addresses(10);
    addresses.push(fixture::address(ETH0, "10.0.2.100/24"));
    world.network.set_links(fixture::interfaces(10), addresses);
    world.converge();
    assert!(world.tables == before);
}

/// Other nodes are resolved, this one is not.
#[test]
fn others_are_resolved() {
    let world = World::master10(&format!("{APISERVER}{WEB}"));
    let resolve = to_resolve(&world.facts());
    let beyond = ["10.0.2.20", "10.0.3.20", "10.0.3.21"];
    let expected = PEERS.iter().chain(&beyond).map(|text| ip(text)).collect();
    assert_eq!(resolve, expected);
}

/// Both families have the same tables, from one piece of code, with ids of one range.
#[test]
fn both_families_are_built_alike() {
    let mut world = World::master10(&format!("{APISERVER}{APISERVER6}"));
    let desired = world.converge();
    let [v4, v6] = [&desired.services[0], &desired.services[1]];
    assert_eq!(v6.backends[0].method, Method::Local);
    assert_eq!(v6.backends[1].method, Method::Dsr);
    assert!(v6.backends.iter().all(|b| b.unresolved.is_none()));
    let id = v6.backends[1].id;
    assert_eq!(world.tables.v6.backends[&id].mac(), mac(11));
    assert!(v4.backends.iter().all(|b| b.id != id));
    assert_ne!(v4.id, v6.id);
    let key = ServiceKey::new([10, 0, 2, 100], 6443, IPPROTO_TCP);
    assert_eq!(world.tables.v4.reply_ports[&key].port(), 1644);
    assert_eq!(world.tables.v6.reply_ports.len(), 1);
    let node = world.tables.node.unwrap();
    assert_eq!(node.netns_cookie(), COOKIE);
    assert_eq!(node.uplink_mac(ETH0, 0), Some(mac(10)));
    assert_eq!(node.uplink_mac(ETH0, 1), None);
    let mut peers = world.tables.peer_macs.keys().map(MacKey::mac);
    assert!(peers.all(|peer| node.may_be_peer(&peer)));
    assert!((0..=255).any(|last| !node.may_be_peer(&mac(last))));
    assert!(
        world
            .tables
            .uplinks
            .iter()
            .eq([(&UplinkKey::new(ETH0, 0), &Uplink::new(mac(10)))])
    );
}

// --- Adoption -----------------------------------------------------------------------------------

/// The state of a backend is that of its own service: another service on the same address and
/// port is checked otherwise.
#[test]
fn states_are_known_per_service() {
    let second = APISERVER
        .replace("10.0.2.100", "10.0.2.101")
        .replace("\"apiserver\"", "\"second\"");
    let mut world = World::master10(&format!("{APISERVER}{second}"));
    world.health = vec![vec![Up, Down, Draining], vec![Draining, Up, Down]];
    world.converge();
    let known: Vec<Vec<_>> = world
        .config
        .services
        .iter()
        .map(|service| {
            let backends = service.backends.iter();
            let state = |backend| known_state(&world.tables, service, backend);
            backends.filter_map(state).collect()
        })
        .collect();
    assert_eq!(known, world.health);
}

/// Of a service that is new nothing is known, even where its backends are old.
#[test]
fn new_services_know_nothing() {
    let mut world = World::master10(APISERVER);
    world.converge();
    world.config.services[0].port = 8443.try_into().unwrap();
    let service = &world.config.services[0];
    let state = known_state(&world.tables, service, &service.backends[0]);
    assert_eq!(state, None);
}

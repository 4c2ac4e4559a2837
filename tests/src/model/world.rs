//! The stations and tables that packets meet: in each family five services with backends of every
//! method, on this node, two peers and two machines without xvip.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    abi::{self, Mac, NODE_NONE, NODE_SELF},
    headers::{IPPROTO_TCP, IPPROTO_UDP},
};

use super::{
    Sockets,
    tables::{Backend, Service, Tables, Tuple},
};
use crate::packet::{
    BACKEND_PORT, EXTERNAL_MACS, Family, MASTER_MACS, OTHER_OWN_MAC, OTHER_UPLINK, OWN_MAC, UPLINK,
    V4, V6, VIP_PORT,
};

/// An interface that is no uplink.
pub const NO_UPLINK: u32 = 8;
/// Port of the second service on the VIP: nat only.
pub const NAT_PORT: u16 = 8443;
/// The second service's backends listen on this one.
pub const NAT_BACKEND_PORT: u16 = 9443;
/// Port of the UDP service on the VIP.
pub const UDP_PORT: u16 = 53;
/// Its backends listen on this one.
pub const UDP_BACKEND_PORT: u16 = 5353;
/// Port of the service whose backend on this node listens on the node's address only.
pub const BOUND_PORT: u16 = 7001;
/// Its backends listen on this one.
pub const BOUND_BACKEND_PORT: u16 = 7002;
/// Seconds of silence that end its flows.
pub const UDP_IDLE: u16 = 60;
/// Service ids are below this one.
pub const SERVICES: u32 = 11;
/// Backend ids are below this one.
pub const BACKENDS: u32 = 44;
/// The lease of the fenced VIP.
pub const LEASE: u32 = 1;
/// Clients' ports whose connections this node's kernel has.
pub const CONNECTED: [u16; 2] = [50_001, 50_002];
/// Uplinks: interface, VLAN tags, own MAC.
pub const UPLINKS: [(u32, u32, Mac); 5] = [
    (UPLINK, 0, OWN_MAC),
    (OTHER_UPLINK, 0, OTHER_OWN_MAC),
    (UPLINK, 5, OWN_MAC),
    (OTHER_UPLINK, 6, OTHER_OWN_MAC),
    (UPLINK, 7 | 8 << 16, OWN_MAC),
];

/// The second VIP of a family, fenced by [`LEASE`]: another address of its documentation network.
pub fn second_vip<F: Family>() -> IpAddr {
    neighbour(F::VIP.into(), 1)
}

/// The address `by` after `addr`.
pub(super) fn neighbour(addr: IpAddr, by: u8) -> IpAddr {
    match addr {
        IpAddr::V4(four) => {
            let mut octets = four.octets();
            octets[3] = octets[3].wrapping_add(by);
            octets.into()
        }
        IpAddr::V6(six) => {
            let mut octets = six.octets();
            octets[15] = octets[15].wrapping_add(by);
            octets.into()
        }
    }
}

/// Clients of a family.
pub fn clients<F: Family>() -> Vec<IpAddr> {
    (0..4).map(|n| neighbour(F::CLIENT.into(), n)).collect()
}

/// First id of a family's services and backends: 1 for IPv4.
fn ids<F: Family>() -> (u32, u32) {
    if F::SUFFIX == '4' { (1, 1) } else { (6, 22) }
}

/// A backend on a station: 0 is this node, 1 and 2 its peers, 3 and 4 the machines without xvip.
pub fn backend<F: Family>(service: u32, station: usize, port: u16) -> Backend {
    let (addr, node, method, mac): (IpAddr, _, _, Mac) = match station {
        0 => (F::MASTERS[0].into(), NODE_SELF, 1, OWN_MAC),
        1 | 2 => (
            F::MASTERS[station].into(),
            station as u32 + 1,
            2,
            MASTER_MACS[station],
        ),
        _ => (
            F::EXTERNALS[station - 3].into(),
            NODE_NONE,
            3,
            EXTERNAL_MACS[station - 3],
        ),
    };
    Backend {
        addr: SocketAddr::new(addr, port),
        service,
        node,
        method,
        state: 1,
        epoch: 0,
        ifindex: UPLINK,
        mac,
        tags: 0,
    }
}

fn family<F: Family>(tables: &mut Tables) {
    let (first, base) = ids::<F>();
    let vip: IpAddr = F::VIP.into();
    let second = second_vip::<F>();
    tables.vips.insert(vip, 0);
    tables.vips.insert(second, LEASE);
    for (station, addr) in F::MASTERS.iter().enumerate().skip(1) {
        tables.peer_addrs.insert((*addr).into(), station as u32 + 1);
    }
    // Every method; nat alone; nothing listens on this node; UDP; a listener on one address.
    let services = [
        (
            vip,
            VIP_PORT,
            BACKEND_PORT,
            IPPROTO_TCP,
            &[0, 1, 2, 3, 4][..],
        ),
        (vip, NAT_PORT, NAT_BACKEND_PORT, IPPROTO_TCP, &[3, 4][..]),
        (second, VIP_PORT, BACKEND_PORT, IPPROTO_TCP, &[0, 1, 3][..]),
        (vip, UDP_PORT, UDP_BACKEND_PORT, IPPROTO_UDP, &[0, 1, 3][..]),
        (
            vip,
            BOUND_PORT,
            BOUND_BACKEND_PORT,
            IPPROTO_TCP,
            &[0, 1, 3][..],
        ),
    ];
    let mut next = base;
    for (id, (vip, port, backend_port, proto, stations)) in (first..).zip(services) {
        let mut pattern = Vec::new();
        let mut service = Service {
            id,
            table: 2 * id,
            local_backend: 0,
            local_port: 0,
            flags: abi::Service::USABLE,
            fallback: [0; 2],
            idle_seconds: if proto == IPPROTO_UDP { UDP_IDLE } else { 0 },
            source_rate: (0, 0),
        };
        for station in stations {
            let new = backend::<F>(id, *station, backend_port);
            match new.method {
                1 => (service.local_backend, service.local_port) = (next, backend_port),
                3 => drop(tables.nat_sources.insert((new.addr, proto))),
                _ => {}
            }
            tables.backends.insert(next, new);
            pattern.push(next as u16);
            next += 1;
        }
        let [.., before, last] = pattern[..] else {
            continue;
        };
        service.fallback = [last, before];
        if service.local_backend != 0 {
            let reply = (SocketAddr::new(vip, backend_port), proto);
            tables.reply_ports.insert(reply, port);
        }
        let key = (SocketAddr::new(vip, port), proto);
        tables.maglev.insert(service.table, pattern);
        tables.services.insert(key, service);
    }
}

/// The tables that every sequence begins with.
pub fn tables() -> Tables {
    let mut tables = Tables::default();
    for (ifindex, tags, mac) in UPLINKS {
        tables.uplinks.insert((ifindex, tags), mac);
    }
    for (station, mac) in MASTER_MACS.iter().enumerate().skip(1) {
        tables.peer_macs.insert(*mac, station as u32 + 1);
    }
    tables.leases.insert(LEASE);
    family::<V4>(&mut tables);
    family::<V6>(&mut tables);
    tables
}

/// The sockets that this node's kernel has: a listener for the first service, and connections of it.
pub fn sockets() -> Sockets {
    fn of<F: Family>(sockets: &mut Sockets) {
        let server = SocketAddr::new(F::VIP.into(), BACKEND_PORT);
        sockets.listeners.insert(server);
        let bound = SocketAddr::new(F::MASTERS[0].into(), BOUND_BACKEND_PORT);
        sockets.listeners.insert(bound);
        for port in CONNECTED {
            sockets.connections.insert(Tuple {
                src: SocketAddr::new(F::CLIENT.into(), port),
                dst: server,
                proto: IPPROTO_TCP,
            });
        }
    }
    let mut sockets = Sockets::default();
    of::<V4>(&mut sockets);
    of::<V6>(&mut sockets);
    sockets
}

//! The stations and tables that packets meet: in each family three services with backends of every
//! method, on this node, two peers and two machines without xvip.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    abi::{Mac, NODE_NONE, NODE_SELF},
    headers::IPPROTO_TCP,
};

use super::tables::{Backend, Service, Tables, Tuple};
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
/// Service ids are below this one.
pub const SERVICES: u32 = 7;
/// Backend ids are below this one.
pub const BACKENDS: u32 = 32;
/// The lease of the fenced VIP.
pub const LEASE: u32 = 1;
/// Clients' ports whose connections this node's kernel has.
pub const CONNECTED: [u16; 2] = [50_001, 50_002];

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
    if F::SUFFIX == '4' { (1, 1) } else { (4, 16) }
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
    // Every method; nat alone; dsr and nat without a backend on this node.
    let services = [
        (vip, VIP_PORT, BACKEND_PORT, &[0, 1, 2, 3, 4][..]),
        (vip, NAT_PORT, NAT_BACKEND_PORT, &[3, 4][..]),
        (second, VIP_PORT, BACKEND_PORT, &[1, 2, 3][..]),
    ];
    let mut next = base;
    for (id, (vip, port, backend_port, stations)) in (first..).zip(services) {
        let key = (SocketAddr::new(vip, port), IPPROTO_TCP);
        let mut pattern = Vec::new();
        let mut local_backend = 0;
        for station in stations {
            let new = backend::<F>(id, *station, backend_port);
            if new.method == 3 {
                tables.nat_sources.insert((new.addr, IPPROTO_TCP));
            }
            if new.method == 1 {
                local_backend = next;
            }
            tables.backends.insert(next, new);
            pattern.push(next as u16);
            next += 1;
        }
        let local_port = if local_backend == 0 { 0 } else { backend_port };
        if local_backend != 0 {
            let reply = (SocketAddr::new(vip, backend_port), IPPROTO_TCP);
            tables.reply_ports.insert(reply, port);
        }
        let service = Service {
            id,
            table: 2 * id,
            local_backend,
            local_port,
            flags: lb_common::abi::Service::USABLE,
        };
        tables.maglev.insert(service.table, pattern);
        tables.services.insert(key, service);
    }
}

/// The tables that every sequence begins with.
pub fn tables() -> Tables {
    let mut tables = Tables::default();
    tables.uplinks.insert((UPLINK, 0), OWN_MAC);
    tables.uplinks.insert((OTHER_UPLINK, 0), OTHER_OWN_MAC);
    for (station, mac) in MASTER_MACS.iter().enumerate().skip(1) {
        tables.peer_macs.insert(*mac, station as u32 + 1);
    }
    tables.leases.insert(LEASE);
    family::<V4>(&mut tables);
    family::<V6>(&mut tables);
    tables
}

/// The connections to VIP:backend port that this node's kernel has, by client.
pub fn connections() -> Vec<Tuple> {
    fn of<F: Family>() -> impl Iterator<Item = Tuple> {
        CONNECTED.iter().map(|port| Tuple {
            src: SocketAddr::new(F::CLIENT.into(), *port),
            dst: SocketAddr::new(F::VIP.into(), BACKEND_PORT),
            proto: IPPROTO_TCP,
        })
    }
    of::<V4>().chain(of::<V6>()).collect()
}

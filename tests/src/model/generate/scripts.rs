//! A few steps that belong together: what single random steps hardly ever come to.

use std::{collections::VecDeque, net::SocketAddr};

use lb_common::{
    abi,
    headers::{IPPROTO_TCP, TcpHeader},
};

use super::{Family, PORTS, address};
use crate::{
    model::{
        case::Step,
        nat,
        random::Random,
        tables::{Change, Tables, Tuple},
        world,
    },
    packet::{Frame, UPLINK, VIP_PORT},
};

/// One of the scripts.
pub(super) fn any<F: Family>(random: &mut Random, base: &Tables) -> VecDeque<Step> {
    match random.below(3) {
        0 => exhausted::<F>(random, base),
        1 => dead::<F>(random, base),
        _ => burst::<F>(random, base),
    }
}

/// A segment of a client.
fn segment<F: Family>(
    random: &mut Random,
    (client, server): (SocketAddr, SocketAddr),
    flags: u8,
) -> Frame<F> {
    Frame::<F>::tcp(flags, random.word(), random.word(), &[])
        .src(address::<F>(client.ip()))
        .sport(client.port())
        .dst(address::<F>(server.ip()))
        .dport(server.port())
}

/// It comes in.
fn comes<F: Family>(frame: &Frame<F>) -> Step {
    Step::In {
        ifindex: UPLINK,
        frame: frame.emit(),
    }
}

fn client<F: Family>(random: &mut Random) -> SocketAddr {
    SocketAddr::new(*random.pick(&world::clients::<F>()), *random.pick(&PORTS))
}

/// A connection whose backend dies, whichever it is: the client is told, and hears.
fn dead<F: Family>(random: &mut Random, base: &Tables) -> VecDeque<Step> {
    let port = *random.pick(&[world::NAT_PORT, world::NAT_PORT, VIP_PORT]);
    let ends = (client::<F>(random), SocketAddr::new(F::VIP.into(), port));
    let mut steps = VecDeque::new();
    steps.push_back(comes(&segment::<F>(random, ends, TcpHeader::SYN)));
    if random.once_in(2) {
        steps.push_back(comes(&segment::<F>(random, ends, TcpHeader::ACK)));
    }
    let Some(service) = base.services.get(&(ends.1, IPPROTO_TCP)) else {
        return steps;
    };
    let backends = base.backends.iter();
    for (id, backend) in backends.filter(|(_, backend)| backend.service == service.id) {
        let mut dead = backend.clone();
        dead.epoch += 1 + random.word() as u16 % 100;
        dead.state = *random.pick(&[0, 1]);
        steps.push_back(Step::Change(Change::Backend(*id, Some(dead))));
    }
    let wrong = random.word() as u16;
    for (flags, error) in [
        (TcpHeader::ACK, wrong),
        (TcpHeader::ACK, 0),
        (
            *random.pick(&[
                TcpHeader::RST,
                TcpHeader::SYN,
                TcpHeader::ACK | TcpHeader::FIN,
            ]),
            0,
        ),
        (TcpHeader::ACK, 0),
    ] {
        let frame = segment::<F>(random, ends, flags).wrong_checksum(error);
        steps.push_back(comes(&frame));
    }
    steps
}

/// A source opens more connections than it may.
fn burst<F: Family>(random: &mut Random, base: &Tables) -> VecDeque<Step> {
    let mut steps = VecDeque::new();
    let port = *random.pick(&[VIP_PORT, world::NAT_PORT]);
    let server = SocketAddr::new(F::VIP.into(), port);
    let Some(service) = base.services.get(&(server, IPPROTO_TCP)) else {
        return steps;
    };
    let mut limited = service.clone();
    limited.source_rate = (1, random.word() % 3);
    let change = Change::Service((server, IPPROTO_TCP), Some(limited));
    steps.push_back(Step::Change(change));
    let mut client = client::<F>(random);
    for _ in 0..4 {
        client.set_port(client.port() + 1);
        steps.push_back(comes(&segment::<F>(
            random,
            (client, server),
            TcpHeader::SYN,
        )));
    }
    steps
}

/// Other flows take every port that is tried for a client, which then sends something.
fn exhausted<F: Family>(random: &mut Random, base: &Tables) -> VecDeque<Step> {
    let vip = F::VIP.into();
    let client = client::<F>(random);
    let server = SocketAddr::new(vip, world::NAT_PORT);
    let mut steps = VecDeque::new();
    let Some(service) = base.services.get(&(server, IPPROTO_TCP)) else {
        return steps;
    };
    if random.once_in(3) {
        let mut silent = service.clone();
        silent.flags |= abi::Service::SILENT;
        let change = Change::Service((server, IPPROTO_TCP), Some(silent));
        steps.push_back(Step::Change(change));
    }
    let backends = base.backends.iter();
    for (id, backend) in backends.filter(|(_, backend)| backend.service == service.id) {
        for port in nat::candidates(client) {
            let back = Tuple {
                src: backend.addr,
                dst: SocketAddr::new(vip, port),
                proto: IPPROTO_TCP,
            };
            let holder = Tuple {
                src: SocketAddr::new(F::NOT_VIP.into(), port),
                dst: server,
                proto: IPPROTO_TCP,
            };
            steps.push_back(Step::Change(Change::Hold(back, holder, *id)));
        }
    }
    for flags in [TcpHeader::SYN, TcpHeader::ACK] {
        steps.push_back(comes(&segment::<F>(random, (client, server), flags)));
    }
    steps
}

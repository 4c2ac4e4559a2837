//! The hooks of `connect()` and `getpeername()`, attached to a cgroup of their own: what becomes of
//! the connections of a process in it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
};

use lb_common::{
    abi::{BackendState, Method},
    reason::Reason,
};
use lb_tests::packet::{BACKEND_PORT, Family, V4, V6, VIP_PORT};
use socket2::{Domain, Socket, Type};

use crate::{
    hooks::{Node, answer, on_a_node, order, vip},
    world::{LOCAL, MASTER2, World},
};

const HOOKS: &[&str] = &["connect4", "connect6", "getpeername4", "getpeername6"];

/// The process in the cgroup: this test binary again. Connects as it is told and writes the peer
/// that `getpeername()` shows, or why it failed. Without an order it has nothing to do.
#[test]
fn client_process() {
    let Some(order) = order() else {
        return;
    };
    // "tcp ADDRESS:PORT" or "udp ADDRESS:PORT"
    let (kind, address) = order.split_once(' ').unwrap();
    let kind = if kind == "udp" {
        Type::DGRAM
    } else {
        Type::STREAM
    };
    answer(&match connected(kind, address.parse().unwrap()) {
        Ok(peer) => peer.to_string(),
        Err(error) => format!("{:?}", error.kind()),
    });
}

fn connected(kind: Type, address: SocketAddr) -> io::Result<SocketAddr> {
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    socket.connect(&address.into())?;
    let peer = socket.peer_addr()?;
    Ok(peer.as_socket().expect("an IP address"))
}

impl<F: Family> Node<F> {
    /// Listen on `address` and the backend's port.
    fn listen(&mut self, address: IpAddr) {
        let listener = TcpListener::bind((address, BACKEND_PORT)).unwrap();
        listener.set_nonblocking(true).unwrap();
        self.listeners.push(listener);
    }

    /// The addresses at which connections have arrived since the last call.
    fn arrived(&self) -> Vec<IpAddr> {
        let accepted = self
            .listeners
            .iter()
            .filter_map(|listener| listener.accept().ok());
        accepted
            .map(|(connection, _)| connection.local_addr().unwrap().ip().to_canonical())
            .collect()
    }

    /// A process connects to `address`: the peer that it sees, where the connection arrived, and
    /// the reasons that were counted.
    #[track_caller]
    fn expect_peer(
        &self,
        kind: &str,
        address: SocketAddr,
        peer: &str,
        at: &[F::Addr],
        reasons: &[Reason],
    ) {
        let answer = self.carry_out("connect::client_process", &format!("{kind} {address}"));
        let counted = self.counted();
        let expected: Vec<_> = reasons.iter().map(|reason| (*reason, 1)).collect();
        assert_eq!((answer.as_str(), counted), (peer, expected));
        let at: Vec<IpAddr> = at.iter().map(|addr| (*addr).into()).collect();
        assert_eq!(self.arrived(), at);
    }
}

/// `address` as an IPv4-mapped one.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

fn local_first<F: Family>(listener: IpAddr) {
    on_a_node::<F>(HOOKS, |node| {
        node.listen(listener);
        let shown = vip::<F>().to_string();
        let here = F::MASTERS[0];
        node.expect_peer("tcp", vip::<F>(), &shown, &[here], &[Reason::ConnectLocal]);
        assert_eq!(node.world.backend_counters(LOCAL), (0, 0, 1));
        assert_eq!(node.world.service_counters(), (1, 0, 1));
        let [origin] = node.world.connects()[..] else {
            panic!("{:?}", node.world.connects());
        };
        assert_eq!((origin.vip(), origin.vip_port()), (F::VIP, VIP_PORT));
        assert_eq!(origin.backend(), LOCAL);
        assert!(origin.leads_to(here, BACKEND_PORT));
    });
}

fn elsewhere<F: Family>() {
    on_a_node::<F>(HOOKS, |node| {
        let shown = vip::<F>().to_string();
        let there = F::MASTERS[1];
        node.listen(there.into());
        // Nobody listens here.
        node.expect_peer(
            "tcp",
            vip::<F>(),
            &shown,
            &[there],
            &[Reason::ConnectRemote],
        );
        assert_eq!(node.world.backend_counters(MASTER2), (0, 0, 1));
        // Maglev does not choose what does not listen either.
        node.world.maglev(&[LOCAL, LOCAL, MASTER2]);
        for _ in 0..4 {
            node.expect_peer(
                "tcp",
                vip::<F>(),
                &shown,
                &[there],
                &[Reason::ConnectRemote],
            );
        }
        node.world.maglev(&[MASTER2]);

        // Somebody does, but the checks say that it is no use.
        node.listen(F::MASTERS[0].into());
        for state in [BackendState::Down, BackendState::Draining] {
            node.world.set_state(LOCAL, state);
            node.expect_peer(
                "tcp",
                vip::<F>(),
                &shown,
                &[there],
                &[Reason::ConnectRemote],
            );
        }
        // A service without a backend here.
        node.world.write_service(VIP_PORT, None, true);
        node.expect_peer(
            "tcp",
            vip::<F>(),
            &shown,
            &[there],
            &[Reason::ConnectRemote],
        );
    });
}

fn nowhere<F: Family>() {
    on_a_node::<F>(HOOKS, |node| {
        let refused = [Reason::ConnectNoBackend];
        // The only backend is here, and nobody listens.
        node.world.maglev(&[LOCAL]);
        node.expect_peer("tcp", vip::<F>(), "ConnectionRefused", &[], &refused);
        node.world.maglev(&[MASTER2]);

        node.listen(F::MASTERS[0].into());
        node.listen(F::MASTERS[1].into());
        node.world
            .write_service(VIP_PORT, Some(BACKEND_PORT), false);
        node.expect_peer("tcp", vip::<F>(), "ConnectionRefused", &[], &refused);
        assert!(node.world.connects().is_empty());

        // The table leads to backends that went down or were removed a moment ago.
        node.world.write_service(VIP_PORT, None, true);
        node.world.set_state(MASTER2, BackendState::Down);
        node.expect_peer("tcp", vip::<F>(), "ConnectionRefused", &[], &refused);
        node.world.table(|_| 0);
        node.expect_peer("tcp", vip::<F>(), "ConnectionRefused", &[], &refused);
        // Each was counted, none began a connection.
        assert_eq!(node.world.service_counters(), (4, 0, 0));
    });
}

/// A process of a namespace that is not the node's cannot see the node's listeners: there the
/// checks' word counts, and the kernel's answer if they are behind.
fn another_namespace<F: Family>() {
    on_a_node::<F>(HOOKS, |node| {
        node.world.node_netns(1);
        let chosen = [Reason::ConnectLocal];
        node.expect_peer("tcp", vip::<F>(), "ConnectionRefused", &[], &chosen);
        node.listen(F::MASTERS[0].into());
        let shown = vip::<F>().to_string();
        node.expect_peer("tcp", vip::<F>(), &shown, &[F::MASTERS[0]], &chosen);
    });
}

fn untouched<F: Family>() {
    on_a_node::<F>(HOOKS, |node| {
        node.listen(F::MASTERS[1].into());
        node.listen(F::VIP.into());
        let direct = SocketAddr::new(F::MASTERS[1].into(), BACKEND_PORT);
        node.expect_peer("tcp", direct, &direct.to_string(), &[F::MASTERS[1]], &[]);
        let other_port = SocketAddr::new(F::VIP.into(), BACKEND_PORT);
        node.expect_peer("tcp", other_port, &other_port.to_string(), &[F::VIP], &[]);
        node.expect_peer("udp", vip::<F>(), &vip::<F>().to_string(), &[], &[]);
        assert!(node.world.connects().is_empty());
    });
}

/// A process that connects to the VIP gets the backend of its own node if that listens, and sees
/// the VIP as its peer.
#[test]
fn the_local_backend_comes_first() {
    lb_tests::skip_unless_root!();
    local_first::<V4>(V4::MASTERS[0].into());
    local_first::<V6>(V6::MASTERS[0].into());
}

/// Wildcard listeners are seen as well, dual-stack ones for IPv4 too.
#[test]
fn wildcard_listeners_are_local_backends() {
    lb_tests::skip_unless_root!();
    local_first::<V4>(Ipv4Addr::UNSPECIFIED.into());
    local_first::<V4>(Ipv6Addr::UNSPECIFIED.into());
    local_first::<V6>(Ipv6Addr::UNSPECIFIED.into());
}

/// Where the local backend does not listen or is not up, another one is chosen.
#[test]
fn other_backends_come_second() {
    lb_tests::skip_unless_root!();
    elsewhere::<V4>();
    elsewhere::<V6>();
}

/// Without a backend `connect()` fails at once with `ECONNREFUSED`.
#[test]
fn without_a_backend_connect_is_refused() {
    lb_tests::skip_unless_root!();
    nowhere::<V4>();
    nowhere::<V6>();
}

/// Processes in other network namespaces of the cgroup tree are sent by the checks' word alone.
#[test]
fn other_namespaces_go_by_the_checks() {
    lb_tests::skip_unless_root!();
    another_namespace::<V4>();
    another_namespace::<V6>();
}

/// What goes to no service, and UDP, is left alone.
#[test]
fn other_destinations_are_untouched() {
    lb_tests::skip_unless_root!();
    untouched::<V4>();
    untouched::<V6>();
}

/// An IPv6 socket that connects to the IPv4-mapped VIP is an IPv4 client.
#[test]
fn mapped_addresses_are_ipv4() {
    lb_tests::skip_unless_root!();
    on_a_node::<V4>(HOOKS, |node| {
        node.listen(V4::MASTERS[0].into());
        node.listen(V4::MASTERS[1].into());
        let to = mapped(vip::<V4>());
        let (here, there) = (V4::MASTERS[0], V4::MASTERS[1]);
        node.expect_peer("tcp", to, &to.to_string(), &[here], &[Reason::ConnectLocal]);
        let remote = World::<V4>::described(LOCAL, Method::Dsr);
        node.world.set_backend(LOCAL, remote);
        node.world.write_service(VIP_PORT, None, true);
        node.expect_peer(
            "tcp",
            to,
            &to.to_string(),
            &[there],
            &[Reason::ConnectRemote],
        );
        node.world.write_service(VIP_PORT, None, false);
        node.expect_peer(
            "tcp",
            to,
            "ConnectionRefused",
            &[],
            &[Reason::ConnectNoBackend],
        );
        // Not the VIP.
        let direct = mapped(SocketAddr::new(there.into(), BACKEND_PORT));
        node.expect_peer("tcp", direct, &direct.to_string(), &[there], &[]);
    });
}

//! The kernel's socket table is the conntrack of local flows: what a real socket holds is
//! delivered here although the Maglev table says otherwise by now.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use lb_common::reason::Reason;
use lb_tests::{
    netns::NetNs,
    packet::{
        BACKEND_PORT, CLIENT_PORT, Family, Frame, MASTER_MACS, OWN_MAC, UPLINK, V4, V6, VIP_PORT,
        diff,
    },
};
use nix::{libc, setsockopt_impl, sockopt_impl, sys::socket::setsockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    answer::reset,
    world::{Ingress, LOCAL, MASTER3, World},
};

sockopt_impl!(
    /// The kernel keeps an answered request as such until its first data arrives.
    DeferAccept,
    SetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_DEFER_ACCEPT,
    libc::c_int
);

/// A listener on `address` and the backend's port.
fn listen(address: IpAddr) -> Socket {
    let address = SocketAddr::new(address, BACKEND_PORT);
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    );
    let socket = socket.unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(8).unwrap();
    socket
}

/// A connection from the client's own address and port to `VIP:BACKEND_PORT`, as packets whose
/// port is translated would make it.
fn connect<F: Family>(port: u16) -> TcpStream {
    let address = SocketAddr::new(F::VIP.into(), BACKEND_PORT);
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    );
    let socket = socket.unwrap();
    socket
        .bind(&SocketAddr::new(F::CLIENT.into(), port).into())
        .unwrap();
    socket.connect(&address.into()).unwrap();
    socket.into()
}

/// Run `scenario` with each program in a namespace that has the VIP and the client's address, with a
/// service whose local backend no Maglev slot leads to.
fn scenario<F: Family>(scenario: impl Fn(&mut World<F>) + Send + Sync) {
    for ingress in Ingress::ALL {
        play(ingress, &scenario);
    }
}

fn play<F: Family>(ingress: Ingress, scenario: &(impl Fn(&mut World<F>) + Sync)) {
    let namespace = NetNs::new("sockets").unwrap();
    for address in [F::VIP, F::CLIENT] {
        let address: IpAddr = address.into();
        namespace.add_address(address, "lo").unwrap();
    }
    let played = namespace.enter(|| {
        let mut world = World::used_or_new();
        world.comes_in_by(ingress);
        world.reset();
        world.vlan(UPLINK, 3, OWN_MAC);
        world.service(&[LOCAL, MASTER3]);
        world.maglev(&[MASTER3]);
        scenario(&mut world);
        world.leave();
        Ok(())
    });
    played.unwrap();
}

/// `frame` comes in and is delivered here.
#[track_caller]
fn stays<F: Family>(world: &World<F>, frame: &Frame<F>) {
    let run = world.run(&frame.emit(), UPLINK);
    assert!(run.is(Reason::Local, run.frame.len()), "{run:?}");
    let expected = frame.clone().dport(BACKEND_PORT).emit();
    assert_eq!(diff(&expected, &run.frame), None);
}

/// `frame` comes in and goes where the Maglev table says.
#[track_caller]
fn leaves<F: Family>(world: &World<F>, frame: &Frame<F>) {
    let run = world.run(&frame.emit(), UPLINK);
    assert!(run.is(Reason::Dsr, run.frame.len()), "{run:?}");
    let expected = frame.clone().macs(OWN_MAC, MASTER_MACS[2]).emit();
    assert_eq!(diff(&expected, &run.frame), None);
}

/// An established connection and, after its end, its TIME-WAIT.
fn connection<F: Family>(listener: IpAddr) {
    scenario::<F>(|world| {
        let listener: TcpListener = listen(listener).into();
        // A listener alone holds nothing: adopted by Maglev.
        leaves(world, &Frame::ack().sport(CLIENT_PORT + 1));

        let client = connect::<F>(CLIENT_PORT);
        let (server, _) = listener.accept().unwrap();
        for frame in [Frame::ack(), Frame::data(), Frame::fin(), Frame::rst(1)] {
            stays(world, &frame);
        }
        stays(world, &Frame::data().vlan(3).ip_options(&[1; 4]));
        // Another client's segment is another flow's.
        leaves(world, &Frame::data().sport(CLIENT_PORT + 2));
        assert!(world.flow(&Frame::data()).is_none());

        // The server closes first and holds the TIME-WAIT: late segments are still its own, and
        // a SYN starts over wherever the table says.
        drop(server);
        drop(client);
        stays(world, &Frame::fin());
        leaves(world, &Frame::syn());
        // The connection that it begins goes on there, whatever the table says by then.
        world.maglev(&[LOCAL]);
        leaves(world, &Frame::ack());
    });
}

/// A request that this node answered binds its flow: a repeated SYN gets the same answer.
fn request<F: Family>() {
    scenario::<F>(|world| {
        let listener = listen(unspecified::<F>());
        setsockopt(&listener, DeferAccept, &30).unwrap();
        let _client = connect::<F>(CLIENT_PORT);
        stays(world, &Frame::syn());
        stays(world, &Frame::ack());
        leaves(world, &Frame::syn().sport(CLIENT_PORT + 1));
    });
}

/// Delivering a SYN ends what an older entry says of its flow.
fn handover<F: Family>() {
    scenario::<F>(|world| {
        leaves(world, &Frame::syn());
        leaves(world, &Frame::fin());
        world.maglev(&[LOCAL]);
        let listener: TcpListener = listen(unspecified::<F>()).into();
        stays(world, &Frame::syn());
        let _client = connect::<F>(CLIENT_PORT);
        let _server = listener.accept().unwrap();
        world.maglev(&[MASTER3]);
        stays(world, &Frame::data());
        assert_eq!(world.flows(), (0, 0));
    });
}

/// The service goes without a usable backend: what a socket holds is delivered all the same.
fn without_backends<F: Family>() {
    scenario::<F>(|world| {
        let listener: TcpListener = listen(unspecified::<F>()).into();
        let _client = connect::<F>(CLIENT_PORT);
        let _server = listener.accept().unwrap();
        world.write_service(VIP_PORT, Some(BACKEND_PORT), false);
        world.maglev(&[]);
        stays(world, &Frame::data());
        let other = Frame::<F>::data().sport(CLIENT_PORT + 1);
        let run = world.run(&other.emit(), UPLINK);
        assert!(
            run.is(Reason::NoBackendReset, other.emit().len()),
            "{run:?}"
        );
        assert_eq!(diff(&reset(&other), &run.frame), None);
    });
}

fn unspecified<F: Family>() -> IpAddr {
    match F::VIP.into() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// A wildcard listener's connections are recognised, also in TIME-WAIT.
#[test]
fn connections_are_recognised() {
    lb_tests::skip_unless_root!();
    connection::<V4>(Ipv4Addr::UNSPECIFIED.into());
    connection::<V6>(Ipv6Addr::UNSPECIFIED.into());
}

/// IPv4 connections of a dual-stack listener are recognised as well.
#[test]
fn ipv4_connections_of_dual_stack_listeners_are_recognised() {
    lb_tests::skip_unless_root!();
    connection::<V4>(Ipv6Addr::UNSPECIFIED.into());
}

/// Connections of a listener on the VIP alone are recognised.
#[test]
fn connections_of_bound_listeners_are_recognised() {
    lb_tests::skip_unless_root!();
    connection::<V4>(V4::VIP.into());
    connection::<V6>(V6::VIP.into());
}

/// Half-open connections are recognised by their answered request.
#[test]
fn answered_requests_are_recognised() {
    lb_tests::skip_unless_root!();
    request::<V4>();
    request::<V6>();
}

/// A flow that comes to this node is not taken away by its old entry.
#[test]
fn a_delivered_syn_forgets_the_old_entry() {
    lb_tests::skip_unless_root!();
    handover::<V4>();
    handover::<V6>();
}

/// Established local connections outlive the last usable backend.
#[test]
fn local_connections_need_no_usable_backend() {
    lb_tests::skip_unless_root!();
    without_backends::<V4>();
    without_backends::<V6>();
}

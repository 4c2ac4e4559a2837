//! Local backends that listen on their node's address only: who takes a connection to the VIP.

use std::{
    fs::File,
    io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
};

use lb_common::{
    abi::{
        Backend, BackendState, Flow, FlowKey, Method, NODE_SELF, ReplyPort, ServiceKey, Suspect,
    },
    headers::IPPROTO_TCP,
    reason::Reason,
};
use lb_tests::{
    netns::NetNs,
    packet::{BACKEND_PORT, Family, Frame, UPLINK, V4, V6, VIP_PORT},
};
use nix::sys::socket::{Shutdown, shutdown};
use socket2::{Domain, Protocol, Socket, Type};

use crate::world::{Ingress, LOCAL, MASTER3, SERVICE, World};

/// Listen on `address` and the backend's port.
fn listen(address: IpAddr, protocol: Protocol) -> io::Result<TcpListener> {
    let address = SocketAddr::new(address, BACKEND_PORT);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(8)?;
    Ok(socket.into())
}

/// A node whose local backend the client's Maglev slot leads to.
struct Node<F: Family> {
    world: World<F>,
}

impl<F: Family> Node<F> {
    /// What becomes of a client's SYN, whatever became of those before it.
    #[track_caller]
    fn syn(&mut self, reason: Reason) {
        let frame = Frame::<F>::syn();
        let run = self.world.run(&frame.emit(), UPLINK);
        let counted: Vec<_> = run.counted.iter().map(|(reason, ..)| *reason).collect();
        assert!(counted.contains(&reason), "{run:?}");
        let name = format!("half_flows{}", F::SUFFIX);
        let plane = self.world.plane();
        let mut flows = plane.hash::<FlowKey<F::Addr>, Flow>(&name).unwrap();
        // There is none of a flow that is delivered here.
        let _ = flows.remove(&frame.key());
        let mut suspects = self.world.plane().array::<Suspect>("suspects").unwrap();
        suspects.set(LOCAL, Suspect::NONE, 0).unwrap();
        self.world.plane_ref().counted().unwrap();
    }

    /// A connection that `listener` takes, and how often it was named for it.
    #[track_caller]
    fn taken_by(&self, listener: &TcpListener) -> u64 {
        let before = self.named();
        let client = connect::<F>().expect("somebody listens");
        let (server, from) = listener.accept().unwrap();
        assert_eq!(from.port(), client.local_addr().unwrap().port());
        // It is a connection with the VIP, whatever the listener is bound to.
        let own = server.local_addr().unwrap();
        assert_eq!(own.ip().to_canonical(), F::VIP.into());
        self.named() - before
    }

    /// SYNs that the local backend refused.
    fn refused(&self) -> u64 {
        let counters = self.world.plane_ref().backends(LOCAL + 1).unwrap();
        counters[LOCAL as usize].refused()
    }

    /// Connections that the program of socket lookups has named a listener for.
    fn named(&self) -> u64 {
        let counters = self.world.plane_ref();
        let counters = counters.reason(SERVICE, Reason::ListenerAssigned);
        counters.unwrap().packets()
    }
}

/// Listen where the backend is.
fn backend<F: Family>() -> TcpListener {
    listen(F::MASTERS[0].into(), Protocol::TCP).unwrap()
}

/// The packet as it is after the pipeline: it comes to `VIP:BACKEND_PORT`. Who takes it?
#[track_caller]
fn connect<F: Family>() -> Option<TcpStream> {
    match TcpStream::connect::<(IpAddr, u16)>((F::VIP.into(), BACKEND_PORT)) {
        Ok(stream) => Some(stream),
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            None
        }
    }
}

/// Run `scenario` with each ingress program in a namespace that has the VIP and the node's address, and
/// the program of socket lookups.
fn on_a_node<F: Family>(scenario: impl Fn(&mut Node<F>) + Sync) {
    for ingress in Ingress::ALL {
        on_a_node_with(ingress, &scenario);
    }
}

fn on_a_node_with<F: Family>(ingress: Ingress, scenario: &(impl Fn(&mut Node<F>) + Sync)) {
    let namespace = NetNs::new("listeners").unwrap();
    for address in [F::VIP, F::MASTERS[0], F::NOT_VIP] {
        let address: IpAddr = address.into();
        namespace.add_address(address, "lo").unwrap();
    }
    let played = namespace.enter(|| {
        let mut world = World::<F>::used_or_new();
        world.comes_in_by(ingress);
        world.reset();
        world.service(&[LOCAL, MASTER3]);
        world.client_slot(F::CLIENT, LOCAL, MASTER3);
        let key = ServiceKey::new(F::VIP, BACKEND_PORT, IPPROTO_TCP);
        let reply = ReplyPort::new(VIP_PORT).of_service(SERVICE as u16);
        let name = format!("reply_ports{}", F::SUFFIX);
        let mut ports = world.plane().hash(&name)?;
        ports.insert(key, reply, 0)?;
        let program = world.plane().socket_lookup()?;
        let link = program.attach(File::open("/proc/thread-self/ns/net")?)?;
        let mut node = Node { world };
        scenario(&mut node);
        let mut world = node.world;
        world.plane().socket_lookup()?.detach(link)?;
        world.leave();
        Ok(())
    });
    played.unwrap();
}

fn bound<F: Family>() {
    on_a_node::<F>(|node| {
        node.syn(Reason::Dsr);
        let listener = backend::<F>();
        // Nobody has asked for it yet.
        assert!(connect::<F>().is_none());
        node.syn(Reason::Local);
        assert_eq!(node.taken_by(&listener), 1);
        // The ingress program is told the same as the kernel: the SYN is delivered, and nothing is
        // refused.
        node.syn(Reason::Local);
        assert_eq!(node.taken_by(&listener), 1);
    });
}

fn restarted<F: Family>() {
    on_a_node::<F>(|node| {
        for _ in 0..3 {
            let listener = backend::<F>();
            node.syn(Reason::Local);
            assert_eq!(node.taken_by(&listener), 1);
            // A process that another test starts has a copy of it for a moment.
            shutdown(listener.as_raw_fd(), Shutdown::Both).unwrap();
            drop(listener);
            assert!(connect::<F>().is_none());
            node.syn(Reason::Dsr);
        }
    });
}

fn wildcard<F: Family>(address: IpAddr) {
    on_a_node::<F>(|node| {
        let listener = listen(address, Protocol::TCP).unwrap();
        node.syn(Reason::Local);
        assert_eq!(node.taken_by(&listener), 0);
    });
}

fn changed<F: Family>() {
    on_a_node::<F>(|node| {
        let old = backend::<F>();
        node.syn(Reason::Local);
        assert_eq!(node.taken_by(&old), 1);
        // The service's backend is another one now, whose listener nobody has asked for.
        let method = Method::Local;
        let (port, state) = (BACKEND_PORT, BackendState::Up);
        let new = Backend::new(F::NOT_VIP, port, SERVICE, NODE_SELF, method, state);
        node.world.set_backend(LOCAL, new);
        assert!(connect::<F>().is_none());
        node.syn(Reason::Dsr);
        let listener = listen(F::NOT_VIP.into(), Protocol::TCP).unwrap();
        node.syn(Reason::Local);
        assert_eq!(node.taken_by(&listener), 1);
        // A service without a backend here names none.
        node.world.write_service(VIP_PORT, None, true);
        assert!(connect::<F>().is_none());
    });
}

fn mptcp<F: Family>() {
    on_a_node::<F>(|node| {
        let Ok(_listener) = listen(F::MASTERS[0].into(), Protocol::MPTCP) else {
            lb_tests::skip::note("this kernel has no MPTCP");
            return;
        };
        // It cannot be kept, so the connection goes where it is taken.
        let before = node.refused();
        node.syn(Reason::Dsr);
        assert!(connect::<F>().is_none());
        assert_eq!(node.refused() - before, 1);
    });
}

fn untouched<F: Family>() {
    on_a_node::<F>(|node| {
        let own = backend::<F>();
        node.syn(Reason::Local);
        let before = node.named();
        // Other ports and addresses are the kernel's.
        let direct = TcpStream::connect((F::MASTERS[0].into(), BACKEND_PORT)).unwrap();
        own.accept().unwrap();
        drop(direct);
        let other = TcpStream::connect((F::NOT_VIP.into(), BACKEND_PORT));
        assert_eq!(other.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let service = TcpStream::connect((F::VIP.into(), VIP_PORT));
        assert_eq!(
            service.unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
        // A datagram for the same port finds its socket as ever.
        let address: IpAddr = F::VIP.into();
        let server = UdpSocket::bind((address, BACKEND_PORT)).unwrap();
        let client = UdpSocket::bind((F::MASTERS[0].into(), 0)).unwrap();
        client.send_to(b"x", (address, BACKEND_PORT)).unwrap();
        assert_eq!(server.recv(&mut [0; 8]).unwrap(), 1);
        assert_eq!(node.named(), before);
    });
}

/// A listener on the node's address takes the VIP's connections, from the first SYN on that came by
/// the ingress program.
#[test]
fn bound_listeners_take_the_vips_connections() {
    lb_tests::skip_unless_root!();
    bound::<V4>();
    bound::<V6>();
}

/// IPv4 listeners of IPv6 sockets as well.
#[test]
fn mapped_listeners_take_the_vips_connections() {
    lb_tests::skip_unless_root!();
    on_a_node::<V4>(|node| {
        let IpAddr::V4(address) = V4::MASTERS[0].into() else {
            panic!("an IPv4 address");
        };
        let listener = listen(address.to_ipv6_mapped().into(), Protocol::TCP).unwrap();
        node.syn(Reason::Local);
        assert_eq!(node.taken_by(&listener), 1);
    });
}

/// A server that starts anew is found again, and while there is none its SYNs go elsewhere.
#[test]
fn restarted_listeners_are_found_again() {
    lb_tests::skip_unless_root!();
    restarted::<V4>();
    restarted::<V6>();
}

/// Listeners that the kernel finds by itself are left to it.
#[test]
fn wildcard_listeners_need_no_help() {
    lb_tests::skip_unless_root!();
    wildcard::<V4>(IpAddr::from([0; 4]));
    wildcard::<V4>(IpAddr::from([0; 16]));
    wildcard::<V6>(IpAddr::from([0; 16]));
    wildcard::<V6>(V6::VIP.into());
}

/// A service that has another backend by now does not get the listener of the old one.
#[test]
fn another_backends_listener_is_not_taken() {
    lb_tests::skip_unless_root!();
    changed::<V4>();
    changed::<V6>();
}

/// A listener that cannot be named (MPTCP) counts as none.
#[test]
fn listeners_that_cannot_be_named_refuse() {
    lb_tests::skip_unless_root!();
    mptcp::<V4>();
    mptcp::<V6>();
}

/// Nothing but connections to a VIP's backend port is decided.
#[test]
fn other_connections_are_untouched() {
    lb_tests::skip_unless_root!();
    untouched::<V4>();
    untouched::<V6>();
}

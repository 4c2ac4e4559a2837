//! ICMP errors about flows, by real routers and hosts: the path's MTU, time exceeded and
//! unreachable reach the end that sent the packet, whichever node it is on.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use lb_common::reason::Reason;
use lb_tests::{
    cluster::{Cluster, PATIENCE},
    control_plane::BOTH,
    endpoint::{self, path_mtu, ping, talk, transfer},
    process::wait_until,
    router::{far_like, put_behind},
    skip_unless_root,
    ways::{Path, Way, Ways, family_word, unchecked_service},
};
use nix::sys::socket::{setsockopt, sockopt};

/// MTU of the link behind the router: what both families allow, and less than 1500.
const SMALL: u32 = 1300;
/// Bytes that need many segments.
const MUCH: usize = 300_000;

/// Packets of m1 that were ICMP errors about replies, by the way that they went on.
fn relayed(ways: &Ways, way: Way) -> u64 {
    let reason = match way {
        Way::Local => Reason::IcmpLocal,
        Way::Dsr => Reason::IcmpDsr,
        Way::Nat => Reason::IcmpNat,
    };
    ways.cluster.reason("m1", reason).unwrap()
}

/// Every way, with the client behind a router whose link to it takes packets of 1300 bytes.
fn client_behind_a_router() -> Ways {
    let prepare = |cluster: &mut Cluster| {
        let (client, router) = (cluster.client(), cluster.node("router"));
        put_behind(cluster.net(), client, router, SMALL)
    };
    Ways::with(|builder| builder.bystander("router"), "", prepare).unwrap()
}

/// Whom the backend's node sends its replies to.
fn replies_go_to(path: Path) -> IpAddr {
    match path.way {
        Way::Local | Way::Dsr => far_like(path.vip),
        Way::Nat => path.vip,
    }
}

/// The client's link takes smaller packets than anybody on the bridge knows. The backend's node
/// learns it from the router's error, which came to the VIP, and the transfer goes on.
#[test]
fn every_backend_learns_the_mtu_towards_the_client() {
    skip_unless_root!();
    let ways = client_behind_a_router();
    for path in ways.paths() {
        let (client, server) = ways.connect(path, None).unwrap();
        talk(&client, &server).unwrap();
        let (node, to) = (ways.cluster.node(path.way.node()), replies_go_to(path));
        let before = relayed(&ways, path.way);
        transfer(&server, &client, MUCH).unwrap_or_else(|error| panic!("{path}: {error:#}"));
        assert_eq!(path_mtu(node, to).unwrap(), Some(SMALL), "{path}");
        assert!(relayed(&ways, path.way) > before, "{path}");
        talk(&client, &server).unwrap();
    }
}

/// Port of a backend behind a router.
const FAR_PORT: u16 = 7003;

/// m1 and a client on the bridge, and a nat backend `b1` behind a router, with a small MTU on the
/// link to it.
fn backend_behind_a_router() -> (Cluster, endpoint::Server) {
    let builder = Cluster::builder().masters(1).plain_backends(1);
    let mut cluster = builder
        .bystander("router")
        .prepare(|plane| {
            plane.vips = BOTH.into();
            plane.backends.clear();
        })
        .unwrap();
    let (backend, router) = (cluster.node("b1"), cluster.node("router"));
    put_behind(cluster.net(), backend, router, SMALL).unwrap();
    let server = endpoint::Server::listen(backend, FAR_PORT).unwrap();
    let mut services = String::new();
    for vip in BOTH {
        let address = SocketAddr::new(far_like(vip), FAR_PORT);
        let name = format!("far-{}", family_word(vip));
        services.push_str(&unchecked_service(&name, to_far(vip), ("b1", address), ""));
    }
    cluster.edit_config("m1", |config| config.push_str(&services));
    cluster.start_xvip("m1").unwrap();
    cluster.wait_settled("m1").unwrap();
    (cluster, server)
}

fn to_far(vip: IpAddr) -> SocketAddr {
    SocketAddr::new(vip, Way::Nat.port())
}

/// The link to a nat backend takes smaller packets than the client knows: the router's error about a
/// translated packet reaches the client, as one about what it sent itself.
#[test]
fn a_client_learns_the_mtu_towards_a_nat_backend() {
    skip_unless_root!();
    let (cluster, listener) = backend_behind_a_router();
    for vip in BOTH {
        let client = endpoint::connect(cluster.client(), None, to_far(vip)).unwrap();
        let server = listener.take(&client).unwrap();
        transfer(&client, &server, MUCH).unwrap();
        assert_eq!(path_mtu(cluster.client(), vip).unwrap(), Some(SMALL));
        assert!(cluster.reason("m1", Reason::IcmpNatReply).unwrap() > 0);
        talk(&client, &server).unwrap();
    }
}

/// Makes a socket say what errors came for it, and limits how many routers its packets pass.
fn limit_hops(socket: &TcpStream, vip: IpAddr, hops: i32) {
    if vip.is_ipv4() {
        setsockopt(socket, sockopt::Ipv4RecvErr, &true).unwrap();
        setsockopt(socket, sockopt::Ipv4Ttl, &hops).unwrap();
    } else {
        setsockopt(socket, sockopt::Ipv6RecvErr, &true).unwrap();
        setsockopt(socket, sockopt::Ipv6Ttl, &hops).unwrap();
    }
}

/// Waits for an error of a socket's that says that the other end is out of reach.
fn wait_unreachable(what: &str, mut socket: &TcpStream) {
    use io::Write as _;
    let told = wait_until(what, PATIENCE, || {
        if let Some(error) = socket.take_error()? {
            return Ok(Some(error));
        }
        // The error must be about something that is under way.
        Ok(socket.write(b"x").err())
    });
    let told = told.unwrap();
    assert!(
        matches!(
            told.kind(),
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
        ),
        "{what}: {told}"
    );
}

/// A reply whose hops are used up, and one that has no route any more: the router's error reaches
/// the backend's socket, by every way. The connection survives both.
#[test]
fn errors_about_replies_reach_the_backend() {
    skip_unless_root!();
    let ways = client_behind_a_router();
    let router = ways.cluster.node("router");
    for path in ways.paths() {
        let (client, server) = ways.connect(path, None).unwrap();
        talk(&client, &server).unwrap();
        let before = relayed(&ways, path.way);
        limit_hops(&server, path.vip, 1);
        wait_unreachable(&format!("time exceeded: {path}"), &server);
        limit_hops(&server, path.vip, 64);
        let counted = relayed(&ways, path.way);
        assert!(counted > before, "{path}");

        let host = match path.vip {
            IpAddr::V4(_) => format!("{}/32", far_like(path.vip)),
            IpAddr::V6(_) => format!("{}/128", far_like(path.vip)),
        };
        let command = format!("route add unreachable {host}");
        router.namespace().ip(&command).unwrap();
        wait_unreachable(&format!("unreachable: {path}"), &server);
        let command = format!("route del unreachable {host}");
        router.namespace().ip(&command).unwrap();
        assert!(relayed(&ways, path.way) > counted, "{path}");
        // What was lost is sent again.
        let (mut client, mut rest) = (&client, [0; 1]);
        io::Read::read_exact(&mut client, &mut rest).unwrap();
        assert_eq!(&rest, b"x", "{path}");
    }
}

/// The same about requests to a nat backend: the errors are about translated packets, and reach the
/// client.
#[test]
fn errors_about_requests_reach_the_client_of_a_nat_backend() {
    skip_unless_root!();
    let (cluster, listener) = backend_behind_a_router();
    for vip in BOTH {
        let client = endpoint::connect(cluster.client(), None, to_far(vip)).unwrap();
        let server = listener.take(&client).unwrap();
        talk(&client, &server).unwrap();
        let before = cluster.reason("m1", Reason::IcmpNatReply).unwrap();
        limit_hops(&client, vip, 1);
        wait_unreachable(&format!("time exceeded: {vip}"), &client);
        assert!(cluster.reason("m1", Reason::IcmpNatReply).unwrap() > before);
    }
}

/// A service of UDP for each way, where nobody listens behind it.
fn push_udp(cluster: &mut Cluster) {
    let mut services = String::new();
    for way in Way::ALL {
        for vip in BOTH {
            let node = cluster.node(way.node());
            let backend = SocketAddr::new(node.address_like(vip), way.backend_port() + 100);
            services.push_str(&unchecked_service(
                &format!("udp-{way:?}-{}", family_word(vip)),
                SocketAddr::new(vip, way.port() + 100),
                (node.name(), backend),
                "protocol = \"udp\"",
            ));
        }
    }
    for node in cluster.masters() {
        cluster.edit_config(&node, |config| config.push_str(&services));
    }
}

/// A client of a UDP service that nobody serves is told so: the backend's kernel says that the port
/// is unreachable, about a translated datagram.
#[test]
fn a_udp_client_hears_that_nobody_listens() {
    skip_unless_root!();
    let prepare = |cluster: &mut Cluster| {
        push_udp(cluster);
        Ok(())
    };
    let ways = Ways::with(|builder| builder, "", prepare).unwrap();
    for path in ways.paths() {
        let target = SocketAddr::new(path.vip, path.way.port() + 100);
        let any: IpAddr = if path.vip.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let client = ways.cluster.client().namespace();
        let socket = client.enter(|| Ok(UdpSocket::bind((any, 0))?)).unwrap();
        socket.connect(target).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        // Kernels limit how often they say it.
        let error = wait_until(&format!("a refusal: {path}"), PATIENCE, || {
            if let Err(error) = socket.send(b"anybody?") {
                return Ok(Some(error));
            }
            let silent = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
            let error = socket.recv(&mut [0; 16]).err();
            Ok(error.filter(|error| !silent.contains(&error.kind())))
        });
        let error = error.unwrap();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{path}");
    }
}

/// The kernel answers echo requests to the VIP, also such as come in fragments.
#[test]
fn the_vip_answers_echo_requests() {
    skip_unless_root!();
    let ways = Ways::start().unwrap();
    for vip in BOTH {
        for length in [4, 1400, 4000] {
            let answered = ping(ways.cluster.client(), vip, length);
            answered.unwrap_or_else(|error| panic!("{vip}, {length} bytes: {error:#}"));
        }
    }
    assert!(ways.cluster.reason("m1", Reason::IcmpOther).unwrap() >= 6);
}

//! UDP: the same methods as TCP, flows that end by silence, and nobody to answer.

use lb_common::{abi::Method, conntrack::FlowState, headers::IPPROTO_UDP, reason::Reason};
use lb_tests::packet::{
    BACKEND_PORT, CLIENT_PORT, EXTERNAL_MACS, Family, Frame, MASTER_MACS, OWN_MAC, ROUTER_MAC,
    Upper, V4, V6, VIP_PORT, datagram, udp,
};

use crate::world::{EXTERNAL1, EXTERNAL2, LOCAL, MASTER2, MASTER3, Row, World, play, row};

/// Seconds of silence that end a flow.
const IDLE: u16 = 30;

/// The client's datagram.
fn ping<F: Family>() -> Frame<F> {
    Frame::packet(udp(VIP_PORT))
}

/// The client's datagram with other data.
fn with<F: Family>(data: &[u8]) -> Frame<F> {
    Frame::packet(datagram(VIP_PORT, data))
}

/// The same without a checksum, which UDP over IPv4 may do.
fn unsummed<F: Family>(frame: Frame<F>) -> Frame<F> {
    let Upper::Raw(proto, _, bytes) = frame.upper.clone() else {
        panic!("no datagram");
    };
    Frame {
        upper: Upper::Raw(proto, None, bytes),
        ..frame
    }
}

/// `frame` on its way to the node of backend `id`.
fn to<F: Family>(id: u32, frame: Frame<F>) -> Frame<F> {
    frame.macs(OWN_MAC, MASTER_MACS[id as usize - 1])
}

/// The client's `frame` as the nat backend `id` gets it.
fn request<F: Family>(id: u32, frame: Frame<F>) -> Frame<F> {
    let index = (id - EXTERNAL1) as usize;
    frame
        .macs(OWN_MAC, EXTERNAL_MACS[index])
        .src(F::VIP)
        .dst(F::EXTERNALS[index])
        .dport(BACKEND_PORT)
}

/// A datagram of the nat backend `id`.
fn pong<F: Family>(id: u32) -> Frame<F> {
    let index = (id - EXTERNAL1) as usize;
    Frame::packet(datagram(CLIENT_PORT, b"pong!"))
        .from(EXTERNAL_MACS[index], F::EXTERNALS[index])
        .sport(BACKEND_PORT)
}

/// What the client gets of it.
fn reply<F: Family>(frame: Frame<F>) -> Frame<F> {
    frame
        .macs(OWN_MAC, ROUTER_MAC)
        .src(F::VIP)
        .sport(VIP_PORT)
        .dst(F::CLIENT)
        .dport(CLIENT_PORT)
}

/// A row with the service on these backends.
fn on<F: Family>(name: &'static str, backends: &'static [u32]) -> Row<F> {
    row(name).given(|world| world.udp_service(backends, IDLE))
}

/// Every method, byte for byte.
fn methods<F: Family>() -> Vec<Row<F>> {
    let local = |name, frame: Frame<F>| {
        on(name, &[LOCAL]).ingress(frame.clone(), Reason::Local, frame.dport(BACKEND_PORT))
    };
    let nat = |name, frame: Frame<F>, back: Frame<F>| {
        on(name, &[EXTERNAL1])
            .ingress(frame.clone(), Reason::Nat, request(EXTERNAL1, frame))
            .ingress(back.clone(), Reason::NatReply, reply(back))
    };
    let first = |world: &mut World<F>| {
        assert_eq!(world.flows(), (0, 1));
        let flow = world.half_flow(&ping()).unwrap();
        assert_eq!((flow.state(), flow.backend()), (FlowState::Udp, MASTER2));
        assert_eq!(world.service_counters().2, 1);
    };
    let second = |world: &mut World<F>| {
        assert_eq!(world.flows(), (1, 0));
        assert_eq!(world.flow(&ping()).unwrap().state(), FlowState::Udp);
        assert_eq!(world.service_counters().2, 1);
    };
    vec![
        local("local: the port is translated", ping()),
        local("local: no data", with(b"")),
        local("local: data of odd length, options, padding", {
            with(b"odd").ip_options(&[1; 8]).padded()
        }),
        local("local: a wrong checksum stays wrong by the same error", {
            ping().wrong_checksum(0x4321)
        }),
        local("local: no checksum stays none", unsummed(ping())),
        on(
            "local: nothing to translate where the ports are the same",
            &[LOCAL],
        )
        .then(|world| world.change_udp_service(VIP_PORT))
        .ingress_same(ping(), Reason::Local),
        on(
            "dsr: untouched; the second packet makes the flow an established one",
            &[MASTER2],
        )
        .ingress(ping(), Reason::Dsr, to(MASTER2, ping()))
        .then(first)
        .ingress(with(b"2"), Reason::Dsr, to(MASTER2, with(b"2")))
        .then(second)
        .ingress(with(b"3"), Reason::Dsr, to(MASTER2, with(b"3")))
        .then(second),
        nat("nat: there and back", ping(), pong(EXTERNAL1)),
        nat("nat: no data", with(b""), pong(EXTERNAL1)),
        nat(
            "nat: wrong checksums stay wrong by the same error",
            ping().wrong_checksum(7),
            pong(EXTERNAL1).wrong_checksum(0xff),
        ),
        nat(
            "nat: no checksums stay none",
            unsummed(ping()),
            unsummed(pong(EXTERNAL1)),
        ),
        nat(
            "nat: a checksum that becomes zero is sent as its complement",
            becomes_zero::<F>(),
            pong(EXTERNAL1),
        ),
        on(
            "nat: the second packet makes both entries those of an established flow",
            &[EXTERNAL1],
        )
        .ingress(ping(), Reason::Nat, request(EXTERNAL1, ping()))
        .then(|world| assert_eq!(world.udp_return(EXTERNAL1, CLIENT_PORT), (false, true)))
        .ingress(ping(), Reason::Nat, request(EXTERNAL1, ping()))
        .then(|world| assert_eq!(world.udp_return(EXTERNAL1, CLIENT_PORT), (true, false)))
        .ingress(pong(EXTERNAL1), Reason::NatReply, reply(pong(EXTERNAL1))),
        on(
            "nat: a datagram of no flow is none of the kernel's",
            &[EXTERNAL1],
        )
        .ingress_same(pong(EXTERNAL1), Reason::NatUnknownReply)
        .ingress_same(pong(EXTERNAL1).sport(53), Reason::NotBalanced),
        on("a TCP service on the same port is another one", &[MASTER2])
            .ingress(Frame::syn(), Reason::Dsr, to(MASTER2, Frame::syn()))
            .ingress(ping(), Reason::Dsr, to(MASTER2, ping()))
            .then(|world| assert_eq!(world.flows(), (0, 2))),
    ]
}

/// A datagram whose checksum, translated for the first nat backend, would be 0.
fn becomes_zero<F: Family>() -> Frame<F> {
    for word in 0..=u16::MAX {
        let frame = with::<F>(&word.to_be_bytes());
        let sent = request(EXTERNAL1, frame.clone());
        // `emit` writes a computed 0 as its complement, as RFC 768 says.
        let at = sent.l4() + 6;
        if sent.emit()[at..at + 2] == [0xff, 0xff] {
            return frame;
        }
    }
    panic!("one of 65,536 checksums is 0");
}

/// Flows that end.
fn ends<F: Family>() -> Vec<Row<F>> {
    let begun = |name| on::<F>(name, &[MASTER2]).ingress(ping(), Reason::Dsr, to(MASTER2, ping()));
    let established = |name| begun(name).ingress(ping(), Reason::Dsr, to(MASTER2, ping()));
    let moved = |world: &mut World<F>| world.udp_service(&[MASTER3], IDLE);
    let silent = |seconds: u32| move |world: &mut World<F>| world.age(&ping(), seconds);
    let stays = |row: Row<F>| row.ingress(ping(), Reason::Dsr, to(MASTER2, ping()));
    let goes = |row: Row<F>| row.ingress(ping(), Reason::Dsr, to(MASTER3, ping()));
    // A second less than the limit, and one more: the clock may tick meanwhile.
    let (short, long) = (u32::from(IDLE) - 2, u32::from(IDLE));
    vec![
        stays(
            established("a flow stays with its backend although the table changed")
                .then(moved)
                .then(silent(short)),
        ),
        goes(
            established("until it has been silent for too long")
                .then(moved)
                .then(silent(long)),
        )
        .then(|world| assert_eq!(world.service_counters().2, 2)),
        stays(
            begun("the same for a single packet")
                .then(moved)
                .then(silent(short)),
        ),
        goes(begun("and its end").then(moved).then(silent(long))),
        goes(
            established("a dead backend's flows go elsewhere at once").then(move |world| {
                moved(world);
                world.kill(MASTER2);
            }),
        )
        .then(|world| assert_eq!(world.backend_failures(MASTER2), (0, 0, 0))),
        on("without a backend there is no answer", &[]).ingress_same(ping(), Reason::NoBackend),
        on("nor to a client on the only backend's node", &[MASTER2]).ingress_same(
            ping().from(MASTER_MACS[1], F::MASTERS[1]),
            Reason::NoOtherBackend,
        ),
        on("nor to the backend's port", &[LOCAL])
            .then(|world| world.udp_reply_port(BACKEND_PORT, VIP_PORT))
            .ingress_same(Frame::packet(udp(BACKEND_PORT)), Reason::BackendPort),
        on("what a peer forwarded is delivered", &[LOCAL, MASTER2])
            .then(|world| world.maglev(&[MASTER2]))
            .ingress(
                ping().macs(MASTER_MACS[1], OWN_MAC),
                Reason::LocalFromPeer,
                ping().macs(MASTER_MACS[1], OWN_MAC).dport(BACKEND_PORT),
            ),
        on("nat: all ports are taken", &[EXTERNAL1])
            .then(exhaust)
            .ingress_same(ping(), Reason::NatPortsExhausted),
        on("nat: a backend that became a dsr one", &[EXTERNAL1])
            .ingress(ping(), Reason::Nat, request(EXTERNAL1, ping()))
            .then(|world| {
                world.set_backend(EXTERNAL1, World::<F>::described(EXTERNAL1, Method::Dsr));
                world.udp_service(&[EXTERNAL2], IDLE);
            })
            .ingress(ping(), Reason::Nat, request(EXTERNAL2, ping())),
    ]
}

/// Other clients have every port that the client's flow may get.
fn exhaust<F: Family>(world: &mut World<F>) {
    let frame = ping::<F>().emit();
    for _ in 0..64 {
        let run = world.run(&frame, lb_tests::packet::UPLINK);
        if run.is(Reason::NatPortsExhausted, frame.len()) {
            return;
        }
        let flow = world.half_flow(&ping()).expect("the flow is known");
        world.evict(&ping());
        let holder = world.udp_holder(EXTERNAL1, flow.nat_port());
        assert_eq!(holder.client(), F::NOT_VIP);
    }
    panic!("64 ports are not enough");
}

/// Headers that are not in order.
fn malformed<F: Family>() -> Vec<Row<F>> {
    let length = |length: u16| {
        let frame = ping::<F>();
        let mut bytes = frame.emit();
        let at = frame.l4() + 4;
        bytes[at..at + 2].copy_from_slice(&length.to_be_bytes());
        bytes
    };
    let cut = |length: usize| {
        let frame = ping::<F>();
        frame.emit()[..frame.l4() + length].to_vec()
    };
    let case = |name, bytes: Vec<u8>, reason| {
        on::<F>(name, &[LOCAL])
            .ingress_same(bytes, reason)
            .then(|world| assert_eq!(world.flows(), (0, 0)))
    };
    let short = Frame::<F>::packet(Upper::Raw(
        IPPROTO_UDP,
        None,
        vec![0x9c, 0x40, 6, 0x6c, 0, 7, 0],
    ));
    vec![
        case("a length of zero", length(0), Reason::BadUdpHeader),
        case(
            "a length shorter than the header",
            length(7),
            Reason::BadUdpHeader,
        ),
        case(
            "a length beyond the packet",
            length(13),
            Reason::BadUdpHeader,
        ),
        case(
            "the greatest length",
            length(u16::MAX),
            Reason::BadUdpHeader,
        ),
        case(
            "a packet shorter than the header",
            short.emit(),
            Reason::Truncated,
        ),
        case("a header that is cut off", cut(7), Reason::Truncated),
        case("data that is cut off", cut(11), Reason::Truncated),
        case(
            "a fragment",
            ping::<F>().fragment(0x2000).emit(),
            Reason::Fragment,
        ),
        case(
            "another fragment",
            ping::<F>().fragment(0x0010).emit(),
            Reason::Fragment,
        ),
        {
            // Less than the packet has: the rest is nobody's (RFC 768 says nothing of it).
            let mut frame = ping::<F>();
            if let Upper::Raw(_, at, bytes) = &mut frame.upper {
                bytes[5] = 10;
                *at = None;
            }
            on("a length shorter than the packet", &[LOCAL]).ingress(
                frame.clone(),
                Reason::Local,
                frame.dport(BACKEND_PORT),
            )
        },
    ]
}

/// The rows of this file.
pub(crate) fn rows<F: Family>() -> Vec<Row<F>> {
    let mut rows = methods();
    rows.extend(ends());
    rows.extend(malformed());
    rows
}

/// UDP services.
#[test]
fn udp_ipv4() {
    lb_tests::skip_unless_root!();
    play::<V4>(&rows());
}

/// The same with IPv6.
#[test]
fn udp_ipv6() {
    lb_tests::skip_unless_root!();
    play::<V6>(&rows());
}

//! nat: full translation for backends whose node runs no xvip, and the way back.

use lb_common::{
    abi::{BackendState, NatReturn, Service},
    conntrack::{FlowState, IDLE_SECONDS},
    headers::TcpHeader,
    reason::Reason,
};
use lb_tests::packet::{
    BACKEND_PORT, CLIENT_PORT, EXTERNAL_MACS, Family, Frame, OTHER_OWN_MAC, OTHER_UPLINK, OWN_MAC,
    ROUTER_MAC, ROUTER2_MAC, UPLINK, V4, V6, VIP_PORT,
};

use crate::{
    answer::reset,
    world::{EXTERNAL1, EXTERNAL2, Row, World, now, play, row, tags},
};

/// Where an external backend is in the arrays of stations.
fn index(id: u32) -> usize {
    (id - EXTERNAL1) as usize
}

/// The client's `frame` as backend `id` gets it, with source port `port`.
fn request<F: Family>(id: u32, port: u16, frame: Frame<F>) -> Frame<F> {
    frame
        .macs(OWN_MAC, EXTERNAL_MACS[index(id)])
        .src(F::VIP)
        .sport(port)
        .dst(F::EXTERNALS[index(id)])
        .dport(BACKEND_PORT)
}

/// A segment of backend `id` to the VIP's port `port`.
fn answer<F: Family>(id: u32, port: u16, flags: u8, data: &[u8]) -> Frame<F> {
    Frame::tcp(flags, 5000, 1001, data)
        .from(EXTERNAL_MACS[index(id)], F::EXTERNALS[index(id)])
        .sport(BACKEND_PORT)
        .dport(port)
}

fn syn_ack<F: Family>(id: u32, port: u16) -> Frame<F> {
    answer::<F>(id, port, TcpHeader::SYN | TcpHeader::ACK, &[]).tcp_options(&[2, 4, 5, 0xb4])
}

/// What the client gets of the backend's `frame`.
fn reply<F: Family>(frame: Frame<F>) -> Frame<F> {
    frame
        .macs(OWN_MAC, ROUTER_MAC)
        .src(F::VIP)
        .sport(VIP_PORT)
        .dst(F::CLIENT)
        .dport(CLIENT_PORT)
}

fn syn<F: Family>() -> Frame<F> {
    Frame::syn()
}

/// A row whose SYN went to the first external backend, with the client's own port.
fn begun<F: Family>(name: &'static str) -> Row<F> {
    row(name)
        .given(|world| world.service(&[EXTERNAL1]))
        .ingress(syn(), Reason::Nat, request(EXTERNAL1, CLIENT_PORT, syn()))
}

fn nat_port<F: Family>(world: &mut World<F>, frame: &Frame<F>) -> u16 {
    let flow = world.flow(frame).or(world.half_flow(frame));
    flow.expect("the flow is known").nat_port()
}

/// (Flows, return entries), each (established, half open): one half-open flow.
const HALF: ((usize, usize), (usize, usize)) = ((0, 1), (0, 1));
/// One established flow.
const WHOLE: ((usize, usize), (usize, usize)) = ((1, 0), (1, 0));

/// Another client's connection that goes on.
const LIVE: (FlowState, u32) = (FlowState::Established, 7_000);

/// Requests and replies, byte for byte.
fn translation<F: Family>() -> Vec<Row<F>> {
    let case = |name, there: Frame<F>, back: Frame<F>| {
        begun(name)
            .ingress(
                there.clone(),
                Reason::Nat,
                request(EXTERNAL1, CLIENT_PORT, there),
            )
            .ingress(back.clone(), Reason::NatReply, reply(back))
    };
    let data = |bytes: &[u8]| answer::<F>(EXTERNAL1, CLIENT_PORT, TcpHeader::ACK, bytes);
    vec![
        case(
            "a handshake there and back",
            Frame::ack(),
            syn_ack(EXTERNAL1, CLIENT_PORT),
        ),
        case("data of odd length", Frame::data(), data(b"ok!")),
        case("a FIN each way", Frame::fin(), {
            answer(EXTERNAL1, CLIENT_PORT, TcpHeader::FIN | TcpHeader::ACK, &[])
        }),
        case("a RST each way", Frame::rst(1001), {
            answer(EXTERNAL1, CLIENT_PORT, TcpHeader::RST, &[])
        }),
        {
            let (there, back) = (Frame::data().qinq(9, 10), data(b"x").qinq(9, 10));
            row("VLAN tags stay")
                .given(|world| {
                    world.service(&[EXTERNAL1]);
                    world.vlan(UPLINK, tags(9, 10), OWN_MAC);
                    world.set_tags(EXTERNAL1, tags(9, 10));
                })
                .ingress(
                    there.clone(),
                    Reason::Nat,
                    request(EXTERNAL1, CLIENT_PORT, there),
                )
                .ingress(back.clone(), Reason::NatReply, reply(back))
        },
        case("padding stays", Frame::ack().padded(), data(&[]).padded()),
        case(
            "options of every header",
            Frame::data()
                .ip_options(&[1; 8])
                .tcp_options(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]),
            data(b"abc").ip_options(&[1; 4]).tcp_options(&[1; 4]),
        ),
        case(
            "wrong checksums stay wrong by the same error",
            Frame::data().wrong_checksum(0x0100),
            data(b"abc").wrong_checksum(0xfedc),
        ),
    ]
}

/// Interfaces, MACs and next hops on both ways.
fn paths<F: Family>() -> Vec<Row<F>> {
    let second = |frame: Frame<F>| frame.macs(ROUTER2_MAC, OWN_MAC);
    let other = |frame: Frame<F>| frame.macs(ROUTER_MAC, OTHER_OWN_MAC);
    let back = || syn_ack::<F>(EXTERNAL1, CLIENT_PORT);
    vec![
        row("a backend behind the other interface")
            .given(|world| {
                world.service(&[EXTERNAL1]);
                world.set_interface(EXTERNAL1, OTHER_UPLINK);
            })
            .ingress(
                syn(),
                Reason::NatRedirect,
                request(EXTERNAL1, CLIENT_PORT, syn()).macs(OTHER_OWN_MAC, EXTERNAL_MACS[0]),
            )
            .ingress_other_uplink(
                back().macs(EXTERNAL_MACS[0], OTHER_OWN_MAC),
                Reason::NatReplyRedirect,
                reply(back()),
            ),
        row("a client behind the other interface")
            .given(|world| world.service(&[EXTERNAL1]))
            .ingress_other_uplink(
                other(syn()),
                Reason::NatRedirect,
                request(EXTERNAL1, CLIENT_PORT, syn()),
            )
            .ingress(
                back(),
                Reason::NatReplyRedirect,
                reply(back()).macs(OTHER_OWN_MAC, ROUTER_MAC),
            ),
        begun("replies follow the client to another router")
            .ingress(
                second(Frame::ack()),
                Reason::Nat,
                request(EXTERNAL1, CLIENT_PORT, Frame::ack()),
            )
            .then(|world| {
                let entry = world.nat_return(EXTERNAL1, CLIENT_PORT).unwrap();
                assert_eq!((entry.mac(), entry.ifindex()), (ROUTER2_MAC, UPLINK));
            })
            .ingress(
                back(),
                Reason::NatReply,
                reply(back()).macs(OWN_MAC, ROUTER2_MAC),
            ),
        begun("replies follow the client to another interface and back")
            .ingress_other_uplink(
                other(Frame::ack()),
                Reason::NatRedirect,
                request(EXTERNAL1, CLIENT_PORT, Frame::ack()),
            )
            .ingress(
                back(),
                Reason::NatReplyRedirect,
                reply(back()).macs(OTHER_OWN_MAC, ROUTER_MAC),
            )
            .ingress(
                Frame::data(),
                Reason::Nat,
                request(EXTERNAL1, CLIENT_PORT, Frame::data()),
            )
            .ingress(back(), Reason::NatReply, reply(back())),
        row("the backend's next hop is not resolved")
            .given(|world| {
                world.service(&[EXTERNAL1]);
                world.set_interface(EXTERNAL1, 0);
            })
            .ingress_same(syn(), Reason::Unresolved),
        begun("the reply's way out is no uplink any more")
            .ingress(
                Frame::ack(),
                Reason::Nat,
                request(EXTERNAL1, CLIENT_PORT, Frame::ack()),
            )
            .then(|world| {
                let entry = world.nat_return(EXTERNAL1, CLIENT_PORT).unwrap();
                let mut gone = entry;
                gone.set_path(OTHER_UPLINK, 0, ROUTER_MAC);
                world.set_nat_return(EXTERNAL1, CLIENT_PORT, gone);
                world.no_uplink(OTHER_UPLINK);
            })
            .ingress(
                back(),
                Reason::Unresolved,
                reply(back()).macs(EXTERNAL_MACS[0], OWN_MAC),
            ),
    ]
}

/// A row whose SYN gets a port of another client, whose flow is over: its entry goes as well.
fn inherited<F: Family>(name: &'static str, state: FlowState, silence: u32) -> Row<F> {
    row(name)
        .given(move |world| {
            world.service(&[EXTERNAL1]);
            world.hold_nat_port(EXTERNAL1, CLIENT_PORT, (state, silence));
        })
        .ingress(syn(), Reason::Nat, request(EXTERNAL1, CLIENT_PORT, syn()))
        .ingress(
            syn_ack(EXTERNAL1, CLIENT_PORT),
            Reason::NatReply,
            reply(syn_ack(EXTERNAL1, CLIENT_PORT)),
        )
        .then(|world| assert_eq!(world.nat_holder(CLIENT_PORT), None))
}

/// Which source port a flow gets.
fn ports<F: Family>() -> Vec<Row<F>> {
    let low = || syn::<F>().sport(80);
    vec![
        begun("both entries, with the client's own port").then(|world| {
            let flow = world.half_flow(&syn()).unwrap();
            assert_eq!((flow.backend(), flow.nat_port()), (EXTERNAL1, CLIENT_PORT));
            assert_eq!(flow.state(), FlowState::Syn);
            let entry = world.half_return(EXTERNAL1, CLIENT_PORT).unwrap();
            assert_eq!(
                entry,
                NatReturn::new(
                    F::CLIENT,
                    CLIENT_PORT,
                    VIP_PORT,
                    EXTERNAL1,
                    UPLINK,
                    ROUTER_MAC
                )
            );
            assert_eq!((world.flows(), world.nat_returns()), HALF);
            let bytes = syn::<F>().emit().len() as u64;
            assert_eq!(world.service_counters(), (1, bytes, 1));
            assert_eq!(world.backend_counters(EXTERNAL1), (1, bytes, 1));
        }),
        begun("a retransmitted SYN takes the same port")
            .ingress(syn(), Reason::Nat, request(EXTERNAL1, CLIENT_PORT, syn()))
            .then(|world| assert_eq!((world.flows(), world.nat_returns()), HALF)),
        begun("the first ACK makes both entries those of an established flow")
            .ingress(
                Frame::ack(),
                Reason::Nat,
                request(EXTERNAL1, CLIENT_PORT, Frame::ack()),
            )
            .then(|world| {
                assert_eq!((world.flows(), world.nat_returns()), WHOLE);
                let flow = world.flow(&syn()).unwrap();
                assert_eq!((flow.backend(), flow.nat_port()), (EXTERNAL1, CLIENT_PORT));
                assert_eq!(flow.state(), FlowState::Established);
                let entry = world.nat_return(EXTERNAL1, CLIENT_PORT).unwrap();
                assert_eq!(
                    (entry.client(), entry.client_port()),
                    (F::CLIENT, CLIENT_PORT)
                );
            }),
        begun("a half-open flow that was evicted finds its own return entry again")
            .then(|world| world.evict(&syn()))
            .ingress(
                Frame::data(),
                Reason::Nat,
                request(EXTERNAL1, CLIENT_PORT, Frame::data()),
            )
            .then(|world| assert_eq!((world.flows(), world.nat_returns()), HALF)),
        begun("so does an established one, and is adopted once more")
            .ingress(
                Frame::ack(),
                Reason::Nat,
                request(EXTERNAL1, CLIENT_PORT, Frame::ack()),
            )
            .then(|world| world.evict(&syn()))
            .ingress(
                Frame::data(),
                Reason::Nat,
                request(EXTERNAL1, CLIENT_PORT, Frame::data()),
            )
            .then(|world| {
                assert_eq!((world.flows(), world.nat_returns()), ((0, 1), (1, 0)));
            })
            .ingress(
                Frame::fin(),
                Reason::Nat,
                request(EXTERNAL1, CLIENT_PORT, Frame::fin()),
            )
            .then(|world| assert_eq!((world.flows(), world.nat_returns()), WHOLE)),
        row("a segment without an entry is adopted, both entries made")
            .given(|world| world.service(&[EXTERNAL1]))
            .ingress(
                Frame::data(),
                Reason::Nat,
                request(EXTERNAL1, CLIENT_PORT, Frame::data()),
            )
            .ingress(
                syn_ack(EXTERNAL1, CLIENT_PORT),
                Reason::NatReply,
                reply(syn_ack(EXTERNAL1, CLIENT_PORT)),
            )
            .then(|world| {
                assert_eq!((world.flows(), world.nat_returns()), HALF);
                assert_eq!(world.service_counters().2, 0);
            }),
        row("a RST without an entry has nothing to be translated to")
            .given(|world| world.service(&[EXTERNAL1]))
            .ingress_same(Frame::rst(5), Reason::NoFlow)
            .then(|world| assert_eq!((world.flows(), world.nat_returns()), ((0, 0), (0, 0)))),
        row("a port that another client has is left to it").given(|world| {
            world.service(&[EXTERNAL1]);
            let held = world.hold_nat_port(EXTERNAL1, CLIENT_PORT, LIVE);
            takes_another_port(world, &syn());
            assert_eq!(world.nat_return(EXTERNAL1, CLIENT_PORT), Some(held));
            assert!(world.nat_holder(CLIENT_PORT).is_some());
        }),
        inherited("a port whose flow ended is taken over", FlowState::Fin, 61),
        inherited("so is one of a reset flow", FlowState::Closed, 61),
        inherited("one whose SYN nobody answered", FlowState::Syn, 61),
        row("one that ended just now is not: the backend may be in TIME-WAIT").given(|world| {
            world.service(&[EXTERNAL1]);
            world.hold_nat_port(EXTERNAL1, CLIENT_PORT, (FlowState::Fin, 50));
            takes_another_port(world, &syn());
        }),
        row("a port whose flow has another by now is taken, the flow left alone")
            .given(|world| {
                world.service(&[EXTERNAL1]);
                let entry = world.hold_nat_port(EXTERNAL1, 5_555, LIVE);
                world.set_nat_return(EXTERNAL1, CLIENT_PORT, entry);
            })
            .ingress(syn(), Reason::Nat, request(EXTERNAL1, CLIENT_PORT, syn()))
            .then(|world| assert!(world.nat_holder(5_555).is_some())),
        row("the same port towards another backend is free")
            .given(|world| {
                world.service(&[EXTERNAL2]);
                world.hold_nat_port(EXTERNAL1, CLIENT_PORT, LIVE);
            })
            .ingress(syn(), Reason::Nat, request(EXTERNAL2, CLIENT_PORT, syn())),
        row("a client's low port is not used towards the backend").given(move |world| {
            world.service(&[EXTERNAL1]);
            takes_another_port(world, &low());
        }),
        row("the client's port is a service's: replies to it would be requests").given(|world| {
            world.service(&[EXTERNAL1]);
            takes_another_port(world, &syn().sport(VIP_PORT));
            world.other_service(2, CLIENT_PORT);
            takes_another_port(world, &syn());
        }),
        row("no port left")
            .given(|world| {
                world.service(&[EXTERNAL1]);
                exhaust(world);
            })
            .ingress(syn(), Reason::NatPortsReset, reset::<F>(&syn()))
            .then(|world| {
                assert_eq!((world.flow(&syn()), world.half_flow(&syn())), (None, None));
                world.change_service(|service| service.with_flags(Service::SILENT));
            })
            .ingress_same(syn(), Reason::NatPortsExhausted),
    ]
}

/// Whatever port the client's SYN gets, another client has it the next time, until none is left.
fn exhaust<F: Family>(world: &mut World<F>) {
    let frame = syn::<F>().emit();
    for _ in 0..64 {
        if world
            .run(&frame, UPLINK)
            .is(Reason::NatPortsReset, frame.len())
        {
            break;
        }
        let port = nat_port(world, &syn());
        world.evict(&syn());
        world.forget_nat_return(EXTERNAL1, port);
        world.hold_nat_port(EXTERNAL1, port, LIVE);
    }
    let (taken, half) = world.nat_returns();
    assert!((2..=12).contains(&taken), "{taken} ports tried");
    assert_eq!(half, 0);
}

/// The SYN `frame` gets a port that is not its own, at least 1024 and no service's, and its
/// reply finds the way back.
fn takes_another_port<F: Family>(world: &mut World<F>, frame: &Frame<F>) {
    let own = frame.segment().sport;
    let run = world.run(&frame.emit(), UPLINK);
    assert!(run.is(Reason::Nat, run.frame.len()), "{run:?}");
    let port = nat_port(world, frame);
    assert!(port != own && port >= 1024 && port != VIP_PORT, "{port}");
    let sent = request(EXTERNAL1, port, frame.clone()).emit();
    assert_eq!(lb_tests::packet::diff(&sent, &run.frame), None);

    let back = syn_ack::<F>(EXTERNAL1, port);
    let run = world.run(&back.emit(), UPLINK);
    assert!(run.is(Reason::NatReply, run.frame.len()), "{run:?}");
    let got = reply(back).dport(own).emit();
    assert_eq!(lb_tests::packet::diff(&got, &run.frame), None);
}

/// Segments that only look like replies, and backends that fail.
fn strays<F: Family>() -> Vec<Row<F>> {
    let unknown = || syn_ack::<F>(EXTERNAL1, 5555);
    vec![
        row("a backend's segment of no flow must not reach this node's stack")
            .given(|world| world.service(&[EXTERNAL1]))
            .ingress_same(unknown(), Reason::NatUnknownReply),
        begun("the right backend, the wrong port").ingress_same(unknown(), Reason::NatUnknownReply),
        begun("another backend's segment to the port of a flow")
            .then(|world| world.service(&[EXTERNAL1, EXTERNAL2]))
            .ingress_same(syn_ack(EXTERNAL2, CLIENT_PORT), Reason::NatUnknownReply),
        begun("another port of the backend: the kernel's own").ingress_same(
            syn_ack(EXTERNAL1, CLIENT_PORT).sport(22),
            Reason::NotBalanced,
        ),
        begun("the backend is down, its flows to be kept: they go on, a SYN goes elsewhere")
            .then(|world| {
                world.service(&[EXTERNAL2]);
                world.set_state(EXTERNAL1, BackendState::Down);
            })
            .ingress(
                Frame::data(),
                Reason::Nat,
                request(EXTERNAL1, CLIENT_PORT, Frame::data()),
            )
            .ingress(syn(), Reason::Nat, request(EXTERNAL2, CLIENT_PORT, syn()))
            .ingress(
                syn_ack(EXTERNAL2, CLIENT_PORT),
                Reason::NatReply,
                reply(syn_ack(EXTERNAL2, CLIENT_PORT)),
            ),
        begun("the backend drains: its flows go on")
            .then(|world| {
                world.service(&[EXTERNAL2]);
                world.set_state(EXTERNAL1, BackendState::Draining);
            })
            .ingress(
                Frame::data(),
                Reason::Nat,
                request(EXTERNAL1, CLIENT_PORT, Frame::data()),
            ),
        begun("a reply reaches the client although the backend is down")
            .then(|world| world.set_state(EXTERNAL1, BackendState::Down))
            .ingress(
                syn_ack(EXTERNAL1, CLIENT_PORT),
                Reason::NatReply,
                reply(syn_ack(EXTERNAL1, CLIENT_PORT)),
            ),
        begun("a SYN after FIN uses the port again")
            .ingress(
                Frame::fin(),
                Reason::Nat,
                request(EXTERNAL1, CLIENT_PORT, Frame::fin()),
            )
            .ingress(syn(), Reason::Nat, request(EXTERNAL1, CLIENT_PORT, syn()))
            .then(|world| {
                let flow = world.half_flow(&syn()).unwrap();
                assert_eq!((flow.state(), flow.cl_ack()), (FlowState::Syn, None));
                assert_eq!(world.service_counters().2, 2);
                assert_eq!(world.nat_returns(), (1, 0));
            }),
    ]
}

/// The rows of this file.
pub(crate) fn rows<F: Family>() -> Vec<Row<F>> {
    let mut rows = translation();
    rows.extend(paths());
    rows.extend(ports());
    rows.extend(strays());
    // A machine that has just started has no such past.
    if now() > 2 * IDLE_SECONDS {
        let (name, silence) = (
            "a port of a flow that was silent for hours",
            IDLE_SECONDS + 1,
        );
        rows.push(inherited(name, FlowState::Established, silence));
    }
    rows
}

/// nat there and back.
#[test]
fn nat_ipv4() {
    lb_tests::skip_unless_root!();
    play::<V4>(&rows());
}

/// The same with IPv6.
#[test]
fn nat_ipv6() {
    lb_tests::skip_unless_root!();
    play::<V6>(&rows());
}

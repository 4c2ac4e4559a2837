//! dsr: to a peer's node, the Ethernet header rewritten and nothing else. With it conntrack and
//! selection, which nat shares.

use lb_common::{
    abi::{Backend, BackendState, MAGLEV_SIZE, Method, Service},
    conntrack::FlowState,
    hash,
    reason::Reason,
};
use lb_tests::packet::{
    Family, Frame, MASTER_MACS, OTHER_OWN_MAC, OTHER_UPLINK, OWN_MAC, ROUTER_MAC, UPLINK, V4, V6,
    VIP_PORT,
};

use crate::{
    answer::reset,
    world::{LOCAL, MASTER2, MASTER3, Row, SERVICE, World, play, row, tags},
};

/// `frame` on its way to the node of backend `id`.
fn to<F: Family>(id: u32, frame: Frame<F>) -> Frame<F> {
    let src = frame.to;
    frame.macs(src, MASTER_MACS[id as usize - 1])
}

/// `frame` as master2 forwards it.
fn from_master2<F: Family>(frame: Frame<F>) -> Frame<F> {
    frame.macs(MASTER_MACS[1], OWN_MAC)
}

/// What a peer forwarded goes on to the node of backend `id`, one hop older.
fn once_more<F: Family>(id: u32, frame: Frame<F>) -> Frame<F> {
    let ttl = frame.ttl - 1;
    to(id, frame).ttl(ttl)
}

fn syn<F: Family>() -> Frame<F> {
    Frame::syn()
}

/// What is rewritten and what is not.
fn forwarding<F: Family>() -> Vec<Row<F>> {
    let case = |name, frame: Frame<F>| {
        row(name).given(|world| world.service(&[MASTER2])).ingress(
            frame.clone(),
            Reason::Dsr,
            to(MASTER2, frame),
        )
    };
    vec![
        case("a SYN goes to the backend's node, IP untouched", syn()),
        row("VLAN tags stay")
            .given(|world| {
                world.service(&[MASTER2]);
                world.vlan(UPLINK, tags(5, 6), OWN_MAC);
                world.set_tags(MASTER2, tags(5, 6));
            })
            .ingress(syn().qinq(5, 6), Reason::Dsr, to(MASTER2, syn().qinq(5, 6))),
        case("padding stays", Frame::ack().padded()),
        case(
            "options stay",
            syn().ip_options(&[1; 4]).ip_options(&[1; 12]),
        ),
        case(
            "a wrong checksum is none of its business",
            syn().wrong_checksum(3),
        ),
        row("another interface: its own MAC is the source")
            .given(|world| {
                world.service(&[MASTER2]);
                world.set_interface(MASTER2, OTHER_UPLINK);
            })
            .ingress(
                syn(),
                Reason::DsrRedirect,
                syn().macs(OTHER_OWN_MAC, MASTER_MACS[1]),
            ),
        row("in by another interface than the backend's")
            .given(|world| world.service(&[MASTER2]))
            .ingress_other_uplink(
                syn().macs(ROUTER_MAC, OTHER_OWN_MAC),
                Reason::DsrRedirect,
                syn().macs(OWN_MAC, MASTER_MACS[1]),
            ),
        row("in and out by the other interface")
            .given(|world| {
                world.service(&[MASTER2]);
                world.set_interface(MASTER2, OTHER_UPLINK);
            })
            .ingress_other_uplink(
                syn().macs(ROUTER_MAC, OTHER_OWN_MAC),
                Reason::Dsr,
                syn().macs(OTHER_OWN_MAC, MASTER_MACS[1]),
            ),
        row("a next hop that is not resolved")
            .given(|world| {
                world.service(&[MASTER2]);
                world.set_interface(MASTER2, 0);
            })
            .ingress_same(syn(), Reason::Unresolved),
        row("a next hop behind an interface that is no uplink")
            .given(|world| {
                world.service(&[MASTER2]);
                world.set_interface(MASTER2, OTHER_UPLINK);
                world.no_uplink(OTHER_UPLINK);
            })
            .ingress_same(syn(), Reason::Unresolved),
    ]
}

/// What the conntrack entry says after each segment.
fn conntrack<F: Family>() -> Vec<Row<F>> {
    let state = |state: FlowState, ack: Option<u32>, next: Option<u32>| {
        move |world: &mut World<F>| {
            let flow = world.flow(&syn()).expect("the flow is known");
            assert_eq!(flow.state(), state);
            assert_eq!((flow.cl_ack(), flow.cl_next()), (ack, next));
            assert_eq!(
                (flow.backend(), flow.nat_port(), flow.path()),
                (MASTER2, 0, 0)
            );
        }
    };
    let half_open = |state: FlowState, ack: Option<u32>, next: Option<u32>| {
        move |world: &mut World<F>| {
            assert_eq!(world.flows(), (0, 1));
            let flow = world.half_flow(&syn()).expect("the flow is known");
            assert_eq!(flow.state(), state);
            assert_eq!((flow.cl_ack(), flow.cl_next()), (ack, next));
            assert_eq!((flow.backend(), flow.nat_port()), (MASTER2, 0));
        }
    };
    let handshake = |name| {
        row::<F>(name)
            .given(|world| world.service(&[MASTER2]))
            .ingress(syn(), Reason::Dsr, to(MASTER2, syn()))
            .ingress(Frame::ack(), Reason::Dsr, to(MASTER2, Frame::ack()))
    };
    vec![
        handshake("a connection from SYN to FIN: states, sequence numbers, counters")
            .then(state(FlowState::Established, Some(5001), Some(1001)))
            .ingress(Frame::data(), Reason::Dsr, to(MASTER2, Frame::data()))
            .then(state(FlowState::Established, Some(5001), Some(1026)))
            .ingress(Frame::fin(), Reason::Dsr, to(MASTER2, Frame::fin()))
            .then(state(FlowState::Fin, Some(5101), Some(1027)))
            .then(|world| {
                let frames = [Frame::<F>::syn(), Frame::ack(), Frame::data(), Frame::fin()];
                let bytes = frames.iter().map(|frame| frame.emit().len() as u64).sum();
                assert_eq!(world.service_counters(), (4, bytes, 1));
                assert_eq!(world.backend_counters(MASTER2), (4, bytes, 1));
                assert_eq!(world.flows(), (1, 0));
            }),
        handshake("padding does not count as data")
            .ingress(
                Frame::ack().padded(),
                Reason::Dsr,
                to(MASTER2, Frame::ack().padded()),
            )
            .then(state(FlowState::Established, Some(5001), Some(1001))),
        row("a SYN alone: half open, no numbers")
            .given(|world| world.service(&[MASTER2]))
            .ingress(syn(), Reason::Dsr, to(MASTER2, syn()))
            .then(half_open(FlowState::Syn, None, None)),
        row("a segment without an entry is adopted and keeps its backend from then on")
            .given(|world| world.service(&[MASTER2]))
            .ingress(Frame::data(), Reason::Dsr, to(MASTER2, Frame::data()))
            .then(half_open(FlowState::Established, Some(5001), Some(1026)))
            .then(|world| {
                // A connection that another node counted.
                assert_eq!(world.service_counters().2, 0);
                world.service(&[MASTER3]);
            })
            .ingress(Frame::fin(), Reason::Dsr, to(MASTER2, Frame::fin()))
            .then(state(FlowState::Fin, Some(5101), Some(1027)))
            .then(|world| assert_eq!(world.flows(), (1, 0))),
        row("a retransmitted SYN keeps its backend although the table changed")
            .given(|world| world.service(&[MASTER2]))
            .ingress(syn(), Reason::Dsr, to(MASTER2, syn()))
            .then(|world| world.service(&[MASTER3]))
            .ingress(syn(), Reason::Dsr, to(MASTER2, syn()))
            .ingress(Frame::ack(), Reason::Dsr, to(MASTER2, Frame::ack()))
            .then(|world| assert_eq!(world.service_counters().2, 1)),
        handshake("a SYN after FIN selects anew")
            .ingress(Frame::fin(), Reason::Dsr, to(MASTER2, Frame::fin()))
            .then(|world| world.service(&[MASTER3]))
            .ingress(Frame::fin(), Reason::Dsr, to(MASTER2, Frame::fin()))
            .ingress(syn(), Reason::Dsr, to(MASTER3, syn()))
            .then(|world| {
                let flow = world.half_flow(&syn()).expect("the new flow");
                assert_eq!((flow.state(), flow.backend()), (FlowState::Syn, MASTER3));
                assert_eq!((flow.cl_next(), world.flows()), (None, (0, 1)));
                assert_eq!(world.service_counters().2, 2);
            }),
        handshake("a SYN after the expected RST selects anew")
            .ingress(Frame::rst(1001), Reason::Dsr, to(MASTER2, Frame::rst(1001)))
            .then(state(FlowState::Closed, Some(5001), Some(1001)))
            .then(|world| world.service(&[MASTER3]))
            .ingress(syn(), Reason::Dsr, to(MASTER3, syn())),
        handshake("a blind RST is forwarded and changes nothing")
            .ingress(Frame::rst(9), Reason::Dsr, to(MASTER2, Frame::rst(9)))
            .then(state(FlowState::Established, Some(5001), Some(1001))),
        row("a RST without an entry is forwarded and makes none")
            .given(|world| world.service(&[MASTER2]))
            .ingress(Frame::rst(9), Reason::Dsr, to(MASTER2, Frame::rst(9)))
            .then(|world| assert_eq!(world.flows(), (0, 0))),
        row("flows are told apart by every part of the 5-tuple")
            .given(|world| world.service(&[MASTER2]))
            .ingress(syn(), Reason::Dsr, to(MASTER2, syn()))
            .then(|world| world.service(&[MASTER3]))
            .ingress(
                syn().sport(40_001),
                Reason::Dsr,
                to(MASTER3, syn().sport(40_001)),
            )
            .ingress(
                syn().src(F::NOT_VIP),
                Reason::Dsr,
                to(MASTER3, syn().src(F::NOT_VIP)),
            )
            .ingress(syn(), Reason::Dsr, to(MASTER2, syn()))
            .then(|world| assert_eq!(world.flows(), (0, 3))),
    ]
}

/// What health does to old and new flows.
fn health<F: Family>() -> Vec<Row<F>> {
    let established = |name| {
        row::<F>(name)
            .given(|world| world.service(&[MASTER2]))
            .ingress(syn(), Reason::Dsr, to(MASTER2, syn()))
            .ingress(Frame::ack(), Reason::Dsr, to(MASTER2, Frame::ack()))
    };
    vec![
        established("backend down, its flows to be kept: they go on, a SYN goes elsewhere")
            .then(|world| {
                world.service(&[MASTER3]);
                world.set_state(MASTER2, BackendState::Down);
            })
            .ingress(Frame::data(), Reason::Dsr, to(MASTER2, Frame::data()))
            .ingress(syn(), Reason::Dsr, to(MASTER3, syn()))
            .ingress(Frame::ack(), Reason::Dsr, to(MASTER3, Frame::ack())),
        established("backend drains: its flows go on, new ones go elsewhere")
            .then(|world| {
                world.service(&[MASTER3]);
                world.set_state(MASTER2, BackendState::Draining);
            })
            .ingress(Frame::data(), Reason::Dsr, to(MASTER2, Frame::data()))
            .ingress(syn().sport(5), Reason::Dsr, to(MASTER3, syn().sport(5))),
        row("draining backends serve when the table has no other")
            .given(|world| {
                world.service(&[MASTER2]);
                world.set_state(MASTER2, BackendState::Draining);
            })
            .ingress(syn(), Reason::Dsr, to(MASTER2, syn())),
        row("the table is a moment behind the state")
            .given(|world| {
                world.service(&[MASTER2]);
                world.set_state(MASTER2, BackendState::Down);
            })
            .ingress(syn(), Reason::NoBackendReset, reset::<F>(&syn()))
            .then(|world| assert_eq!(world.flows(), (0, 0))),
        row("no backend at all")
            .given(|world| world.service(&[]))
            .ingress(syn(), Reason::NoBackendReset, reset::<F>(&syn()))
            .ingress(
                Frame::data(),
                Reason::NoBackendReset,
                reset::<F>(&Frame::data()),
            )
            .ingress_same(Frame::rst(7), Reason::NoBackend)
            .then(|world| assert_eq!(world.flows(), (0, 0))),
        row("no backend at all, of a service that is silent then")
            .given(|world| {
                world.service(&[]);
                world.change_service(|service| service.with_flags(Service::SILENT));
            })
            .ingress_same(syn(), Reason::NoBackend)
            .ingress_same(Frame::data(), Reason::NoBackend),
        established("no backend for new flows: the old ones go on")
            .then(|world| world.write_service(VIP_PORT, None, false))
            .ingress(Frame::data(), Reason::Dsr, to(MASTER2, Frame::data()))
            .ingress(
                syn().sport(5),
                Reason::NoBackendReset,
                reset::<F>(&syn().sport(5)),
            ),
        established("the backend's id belongs to another service now: select anew")
            .then(|world| {
                let taken = Backend::new(
                    F::MASTERS[1],
                    9,
                    SERVICE + 1,
                    2,
                    Method::Dsr,
                    BackendState::Up,
                );
                world.service(&[MASTER3]);
                world.set_backend(MASTER2, taken.via(UPLINK, MASTER_MACS[1]));
            })
            .ingress(Frame::data(), Reason::Dsr, to(MASTER3, Frame::data())),
        row("an empty slot in a usable table")
            .given(|world| {
                world.service(&[MASTER2]);
                world.table(|_| 0);
            })
            .ingress(syn(), Reason::NoBackendReset, reset::<F>(&syn())),
        row("a method that nobody knows")
            .given(|world| {
                world.service(&[MASTER2]);
                world.set_unknown_method(MASTER2);
            })
            .ingress_same(syn(), Reason::Inconsistent),
        row("a slot that leads to another service's backend")
            .given(|world| {
                let taken = Backend::new(
                    F::MASTERS[1],
                    9,
                    SERVICE + 1,
                    2,
                    Method::Dsr,
                    BackendState::Up,
                );
                world.service(&[MASTER2]);
                world.set_backend(MASTER2, taken);
            })
            .ingress(syn(), Reason::NoBackendReset, reset::<F>(&syn())),
        row("a slot that leads beyond the backends")
            .given(|world| {
                world.service(&[MASTER2]);
                world.table(|_| 60_000);
            })
            .ingress(syn(), Reason::NoBackendReset, reset::<F>(&syn())),
        established("the backend became a nat one: its dsr flows select anew")
            .then(|world| {
                world.set_backend(MASTER2, World::<F>::described(MASTER2, Method::Nat));
                world.service(&[MASTER3]);
            })
            .ingress(Frame::data(), Reason::Dsr, to(MASTER3, Frame::data())),
        established("the backend's address came to this node: its dsr flows select anew")
            .then(|world| {
                world.service(&[LOCAL, MASTER3]);
                world.maglev(&[MASTER3]);
                world.set_backend(MASTER2, World::<F>::described(MASTER2, Method::Local));
            })
            .ingress(Frame::data(), Reason::Dsr, to(MASTER3, Frame::data())),
    ]
}

/// Where a flow may not go.
fn exclusions<F: Family>() -> Vec<Row<F>> {
    let own = || syn::<F>().from(MASTER_MACS[1], F::MASTERS[1]);
    let routed = || syn::<F>().from(ROUTER_MAC, F::MASTERS[1]);
    vec![
        row("a client on a backend's node is sent to another one")
            .given(|world| {
                world.service(&[MASTER2, MASTER3]);
                world.client_slot(F::MASTERS[1], MASTER2, MASTER3);
            })
            .ingress(own(), Reason::Dsr, to(MASTER3, own()))
            .ingress(routed(), Reason::Dsr, to(MASTER3, routed())),
        row("a client on the only backend's node")
            .given(|world| world.service(&[MASTER2]))
            .ingress(own(), Reason::NoBackendReset, reset::<F>(&own()))
            .ingress(routed(), Reason::NoBackendReset, reset::<F>(&routed()))
            .then(|world| assert_eq!(world.flows(), (0, 0))),
        row("a peer's frame without a local backend never goes back to that peer")
            .given(|world| {
                world.service(&[MASTER2, MASTER3]);
                world.client_slot(F::CLIENT, MASTER2, MASTER3);
            })
            .ingress(
                from_master2(syn()),
                Reason::Dsr,
                once_more(MASTER3, from_master2(syn())),
            ),
        row("a peer's frame, and no backend but that peer's")
            .given(|world| world.service(&[MASTER2]))
            .ingress(
                from_master2::<F>(syn()),
                Reason::NoBackendReset,
                reset::<F>(&from_master2(syn())),
            ),
        row("what a peer forwarded is forwarded as long as its TTL lasts")
            .given(|world| world.service(&[MASTER3]))
            .ingress(
                from_master2(syn().ttl(2)),
                Reason::Dsr,
                once_more(MASTER3, from_master2(syn().ttl(2))),
            )
            .ingress_same(from_master2::<F>(syn().ttl(1)), Reason::TtlExpired)
            .ingress_same(from_master2::<F>(Frame::ack().ttl(0)), Reason::TtlExpired),
        row("a client's own TTL is none of its business")
            .given(|world| world.service(&[MASTER3]))
            .ingress(syn().ttl(1), Reason::Dsr, to(MASTER3, syn().ttl(1))),
        row("a peer's frame of a flow that leads back to it goes to another backend")
            .given(|world| world.service(&[MASTER2]))
            .ingress(syn(), Reason::Dsr, to(MASTER2, syn()))
            .then(|world| {
                world.service(&[MASTER2, MASTER3]);
                world.client_slot(F::CLIENT, MASTER2, MASTER3);
            })
            .ingress(
                from_master2(Frame::ack()),
                Reason::Dsr,
                once_more(MASTER3, from_master2(Frame::ack())),
            ),
        row("never back to the MAC that the frame came from, peer or not")
            .given(|world| {
                world.service(&[MASTER2]);
                world.forget_peer_macs();
            })
            .ingress_same(from_master2::<F>(syn()), Reason::NoOtherBackend),
    ]
}

/// 2,000 clients go where the host's own flow hash and table say.
fn selection<F: Family>() -> Vec<Row<F>> {
    vec![
        row("every client goes where lb-common says").given(|world| {
            world.service(&[LOCAL, MASTER2, MASTER3]);
            let owner = |slot: u32| 1 + slot.wrapping_mul(2_654_435_761) % 3;
            world.table(owner);
            let mut counts = [0; 4];
            for port in 30_000..32_000 {
                let frame = syn::<F>().sport(port);
                let slot = hash::slot(hash::flow_hash(&F::CLIENT, port));
                assert!(slot < MAGLEV_SIZE);
                let id = owner(slot);
                let run = world.run(&frame.emit(), UPLINK);
                let (reason, mac) = if id == LOCAL {
                    (Reason::Local, OWN_MAC)
                } else {
                    (Reason::Dsr, MASTER_MACS[id as usize - 1])
                };
                assert!(run.is(reason, run.frame.len()), "port {port}: {run:?}");
                assert_eq!(run.frame[..6], mac, "port {port}");
                counts[id as usize] += 1;
            }
            for id in [LOCAL, MASTER2, MASTER3] {
                assert_eq!(world.backend_counters(id).2, counts[id as usize]);
            }
        }),
    ]
}

/// The rows of this file.
pub(crate) fn rows<F: Family>() -> Vec<Row<F>> {
    let mut rows = forwarding();
    rows.extend(conntrack());
    rows.extend(health());
    rows.extend(exclusions());
    rows.extend(selection());
    rows
}

/// dsr, conntrack and selection.
#[test]
fn dsr_and_conntrack_ipv4() {
    lb_tests::skip_unless_root!();
    play::<V4>(&rows());
}

/// The same with IPv6.
#[test]
fn dsr_and_conntrack_ipv6() {
    lb_tests::skip_unless_root!();
    play::<V6>(&rows());
}

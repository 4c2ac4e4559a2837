//! nat ports when CPUs want them at the same time: every flow gets one of its own, and keeps it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Barrier,
    thread,
};

use lb_common::{conntrack::FlowState, reason::Reason};
use lb_tests::{
    netns::NetNs,
    packet::{Family, Frame, UPLINK, V4, V6},
    program::DataPlane,
};

use crate::world::{EXTERNAL1, Ingress, World};

/// Threads that send at once.
const THREADS: u8 = 4;
/// Flows of each.
const FLOWS: u16 = 40;
/// Their first port.
const FIRST: u16 = 30_000;

/// The source port of a frame.
fn sport<F: Family>(frame: &[u8]) -> u16 {
    let l4 = Frame::<F>::syn().l4();
    u16::from_be_bytes([frame[l4], frame[l4 + 1]])
}

fn send<F: Family>(plane: &DataPlane, ingress: Ingress, frame: &Frame<F>) -> u16 {
    let sent = match ingress {
        Ingress::Xdp => plane.xdp(&frame.emit(), UPLINK),
        Ingress::Tc => plane.tc_ingress(&frame.emit(), UPLINK),
    };
    sport::<F>(&sent.unwrap().1)
}

/// Each thread sends the SYN and the ACK of its flows; (flow, nat ports that its segments had).
fn at_once<F: Family>(
    world: &World<F>,
    ingress: Ingress,
    client: impl Fn(u8) -> F::Addr + Sync,
) -> Vec<(F::Addr, u16, [u16; 2])> {
    let plane = world.plane_ref();
    let start = Barrier::new(usize::from(THREADS));
    let work = |thread: u8| {
        let src = client(thread);
        start.wait();
        let flows = (FIRST..FIRST + FLOWS).map(|port| {
            let [syn, ack] = [Frame::<F>::syn(), Frame::ack()]
                .map(|frame| send(plane, ingress, &frame.src(src).sport(port)));
            (src, port, [syn, ack])
        });
        flows.collect::<Vec<_>>()
    };
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || work(thread)))
            .collect();
        let sent = threads.into_iter().map(|thread| thread.join().unwrap());
        sent.flatten().collect()
    })
}

/// A node with one nat backend, for each program.
fn on_a_node<F: Family>(scenario: impl Fn(&mut World<F>, Ingress) + Sync) {
    let namespace = NetNs::new("contention").unwrap();
    let played = namespace.enter(|| {
        let mut world = World::<F>::used_or_new();
        for ingress in Ingress::ALL {
            world.reset();
            world.service(&[EXTERNAL1]);
            scenario(&mut world, ingress);
            let begun = u64::from(THREADS) * u64::from(FLOWS);
            let counters = world.plane_ref().counted().unwrap();
            let translated = counters
                .iter()
                .find(|(reason, ..)| *reason == Reason::Nat)
                .map_or(0, |(_, packets, _)| *packets);
            assert_eq!(translated, 2 * begun, "{counters:?}");
        }
        world.leave();
        Ok(())
    });
    played.unwrap();
}

/// The client of a thread.
fn numbered<F: Family>(number: u8) -> F::Addr {
    [F::CLIENT, F::NOT_VIP, F::MASTERS[1], F::MASTERS[2]][usize::from(number)]
}

fn different_clients<F: Family>() {
    on_a_node::<F>(|world, ingress| {
        let sent = at_once(world, ingress, numbered::<F>);
        let mut ports = BTreeSet::new();
        let mut preferred = 0;
        for (src, port, [syn, ack]) in sent {
            assert_eq!(syn, ack, "a flow keeps its port");
            assert!(ports.insert(syn), "{syn} was given away twice");
            preferred += u16::from(syn == port);
            let frame = Frame::<F>::syn().src(src).sport(port);
            let flow = world.flow(&frame).expect("an established flow");
            assert_eq!(
                (flow.nat_port(), flow.state()),
                (syn, FlowState::Established)
            );
            let entry = world.nat_return(EXTERNAL1, syn).expect("its way back");
            assert_eq!((entry.client(), entry.client_port()), (src, port));
        }
        let flows = ports.len();
        assert_eq!(world.flows(), (flows, 0));
        assert_eq!(world.nat_returns(), (flows, 0));
        // One client of each port has its own, unless chance gave that port away before.
        assert!(preferred > FLOWS / 2 && preferred <= FLOWS, "{preferred}");
    });
}

fn the_same_segments<F: Family>() {
    on_a_node::<F>(|world, ingress| {
        let sent = at_once(world, ingress, |_| F::CLIENT);
        let mut ports: BTreeMap<u16, BTreeSet<u16>> = BTreeMap::new();
        for (_, port, nat_ports) in sent {
            ports.entry(port).or_default().extend(nat_ports);
        }
        for (port, used) in ports {
            assert_eq!(
                used,
                BTreeSet::from([port]),
                "each flow has one port: its client's"
            );
            let frame = Frame::<F>::syn().sport(port);
            let half = world.half_flow(&frame);
            // A SYN on one CPU may come after the ACK on another.
            let flow = world.flow(&frame).or(half).expect("the flow");
            assert_eq!(flow.nat_port(), port);
            // Such a SYN may leave a half-open return entry beside the established one: both are the
            // flow's own, and the half-open one ages away.
            let entries = [
                world.nat_return(EXTERNAL1, port),
                world.half_return(EXTERNAL1, port),
            ];
            let own: Vec<_> = entries.iter().flatten().collect();
            assert!(!own.is_empty(), "a way back for {port}");
            for entry in own {
                assert_eq!((entry.client(), entry.client_port()), (F::CLIENT, port));
            }
        }
        // No port but these is taken.
        let (whole, half) = world.nat_returns();
        let flows = usize::from(FLOWS);
        assert!(whole <= flows && half <= flows, "{whole} {half}");
        assert!(whole + half >= flows, "{whole} {half}");
    });
}

/// Flows that want the same port at the same time get different ones.
#[test]
fn no_port_is_given_away_twice() {
    lb_tests::skip_unless_root!();
    different_clients::<V4>();
    different_clients::<V6>();
}

/// Segments of one flow on different CPUs get the same port.
#[test]
fn one_flow_gets_one_port() {
    lb_tests::skip_unless_root!();
    the_same_segments::<V4>();
    the_same_segments::<V6>();
}

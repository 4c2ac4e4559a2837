//! local: delivery to this node's own backend.

use lb_common::{abi::BackendState, headers::TcpHeader, reason::Reason};
use lb_tests::packet::{
    BACKEND_PORT, Family, Frame, MASTER_MACS, OWN_MAC, ROUTER_MAC, UPLINK, V4, V6, VIP_PORT,
};

use crate::{
    answer::reset,
    world::{LOCAL, MASTER2, MASTER3, Row, World, play, row, tags},
};

/// `frame` with the backend's port instead of the VIP's.
fn translated<F: Family>(frame: Frame<F>) -> Frame<F> {
    frame.dport(BACKEND_PORT)
}

/// `frame` as master2 forwards it.
fn from_master2<F: Family>(frame: Frame<F>) -> Frame<F> {
    frame.macs(MASTER_MACS[1], MASTER_MACS[0])
}

/// A row for each frame whose port is translated.
fn translations<F: Family>() -> Vec<Row<F>> {
    let case = |name, frame: Frame<F>| {
        let given = |world: &mut World<F>| {
            world.service(&[LOCAL]);
            for tags in [tags(7, 0), tags(100, 200), tags(1, 2)] {
                world.vlan(UPLINK, tags, OWN_MAC);
            }
        };
        row(name)
            .given(given)
            .ingress(frame.clone(), Reason::Local, translated(frame))
    };
    vec![
        case("a SYN gets the backend's port", Frame::syn()),
        case("a segment without a socket is adopted", Frame::data()),
        case("a FIN is delivered", Frame::fin()),
        case("a RST is delivered", Frame::rst(7)),
        case("a VLAN tag stays", Frame::data().vlan(0x2007)),
        case("QinQ tags stay", Frame::data().qinq(100, 200)),
        case("a tag of priority only is none", Frame::data().vlan(0x6000)),
        case("padding is not part of the segment", Frame::ack().padded()),
        case(
            "options of the IP header are skipped",
            Frame::data().ip_options(&[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0]),
        ),
        case(
            "all options at once",
            Frame::data()
                .qinq(1, 2)
                .ip_options(&[1; 8])
                .ip_options(&[1; 20])
                .tcp_options(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]),
        ),
        case(
            "a wrong checksum stays wrong by the same error",
            Frame::data().wrong_checksum(0x1234),
        ),
        case(
            "reserved and ECN bits do not matter",
            Frame::tcp(TcpHeader::SYN | 0xc0, 1000, 0, &[]),
        ),
        case("the client's port may be any", Frame::syn().sport(1)),
        case(
            "the client may use the VIP's port",
            Frame::syn().sport(VIP_PORT),
        ),
    ]
}

fn selections<F: Family>() -> Vec<Row<F>> {
    vec![
        row("one connection is counted, its packets with all their bytes; no conntrack entry")
            .given(|world| world.service(&[LOCAL]))
            .ingress(Frame::syn(), Reason::Local, translated(Frame::syn()))
            .ingress(Frame::ack(), Reason::Local, translated(Frame::ack()))
            .ingress(Frame::data(), Reason::Local, translated(Frame::data()))
            .then(|world| {
                let frames = [Frame::<F>::syn(), Frame::ack(), Frame::data()];
                let bytes: usize = frames.iter().map(|frame| frame.emit().len()).sum();
                assert_eq!(world.service_counters(), (3, bytes as u64, 1));
                assert_eq!(world.backend_counters(LOCAL), (3, bytes as u64, 1));
                assert_eq!(world.flows(), (0, 0));
            }),
        row("nothing is rewritten where the ports are the same")
            .given(|world| {
                world.service(&[LOCAL]);
                world.write_service(VIP_PORT, Some(VIP_PORT), true);
            })
            .ingress_same(Frame::syn(), Reason::Local)
            .ingress_same(Frame::data().wrong_checksum(9), Reason::Local),
        row("a local backend that drains still serves when the table says so")
            .given(|world| {
                world.service(&[LOCAL]);
                world.set_state(LOCAL, BackendState::Draining);
            })
            .ingress(Frame::syn(), Reason::Local, translated(Frame::syn())),
        row("a local backend that is down takes no SYN")
            .given(|world| {
                world.service(&[LOCAL]);
                world.set_state(LOCAL, BackendState::Down);
            })
            .ingress(
                Frame::syn(),
                Reason::NoBackendReset,
                reset::<F>(&Frame::syn()),
            ),
    ]
}

fn peers<F: Family>() -> Vec<Row<F>> {
    let forwarded = || from_master2::<F>(Frame::syn());
    vec![
        row("what a peer forwarded is delivered, whatever Maglev says here")
            .given(|world| {
                world.service(&[LOCAL, MASTER2, MASTER3]);
                world.maglev(&[MASTER3]);
            })
            .ingress(forwarded(), Reason::LocalFromPeer, translated(forwarded()))
            .then(|world| {
                assert_eq!(world.flows(), (0, 0));
                let length = Frame::<F>::syn().emit().len() as u64;
                // The owner counted the connection.
                assert_eq!(world.backend_counters(LOCAL), (1, length, 0));
                assert_eq!(world.service_counters(), (1, length, 0));
            }),
        row("what a peer forwarded is delivered although the checks here say down")
            .given(|world| {
                world.service(&[LOCAL, MASTER2]);
                world.set_state(LOCAL, BackendState::Down);
                world.write_service(VIP_PORT, Some(BACKEND_PORT), false);
            })
            .ingress(forwarded(), Reason::LocalFromPeer, translated(forwarded())),
        row("what a peer sends from its own address is balanced like any client's")
            .given(|world| {
                world.service(&[LOCAL, MASTER3]);
                world.maglev(&[MASTER3]);
            })
            .ingress(
                from_master2::<F>(Frame::syn()).src(F::MASTERS[1]),
                Reason::Dsr,
                Frame::syn()
                    .src(F::MASTERS[1])
                    .macs(MASTER_MACS[0], MASTER_MACS[2]),
            ),
        row("a peer's address behind a router is a client's: no frame of a peer")
            .given(|world| {
                world.service(&[LOCAL, MASTER3]);
                world.maglev(&[LOCAL]);
            })
            .ingress(
                Frame::syn().from(ROUTER_MAC, F::MASTERS[1]),
                Reason::Local,
                translated(Frame::syn().from(ROUTER_MAC, F::MASTERS[1])),
            ),
        row("one peer's address in another peer's frame: forwarded")
            .given(|world| {
                world.service(&[LOCAL, MASTER2]);
                world.maglev(&[MASTER2]);
            })
            .ingress(
                from_master2::<F>(Frame::syn()).src(F::MASTERS[2]),
                Reason::LocalFromPeer,
                translated(from_master2::<F>(Frame::syn()).src(F::MASTERS[2])),
            ),
    ]
}

/// The rows of this file.
pub(crate) fn rows<F: Family>() -> Vec<Row<F>> {
    let mut rows = translations();
    rows.extend(selections());
    rows.extend(peers());
    rows
}

/// Local delivery: what is translated, what is counted, and what a peer forwarded.
#[test]
fn local_delivery_ipv4() {
    lb_tests::skip_unless_root!();
    play::<V4>(&rows());
}

/// The same with IPv6.
#[test]
fn local_delivery_ipv6() {
    lb_tests::skip_unless_root!();
    play::<V6>(&rows());
}

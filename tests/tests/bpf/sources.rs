//! Who may open flows and how many: rules about sources, rates of sources, and the limits of entries
//! that a CPU makes.

use lb_common::{
    abi::{Service, sources::SourceRule},
    reason::Reason,
};
use lb_tests::packet::{
    BACKEND_PORT, CLIENT_PORT, EXTERNAL_MACS, Family, Frame, MASTER_MACS, OTHER_OWN_MAC,
    OTHER_UPLINK, OWN_MAC, V4, V6, VIP_PORT, udp,
};

use crate::world::{EXTERNAL1, LOCAL, MASTER2, Row, World, play, row};

fn syn<F: Family>() -> Frame<F> {
    Frame::syn()
}

/// A SYN from the client's `n`-th other port.
fn another<F: Family>(n: u16) -> Frame<F> {
    syn().sport(CLIENT_PORT + n)
}

/// `frame` on its way to master2.
fn to<F: Family>(frame: Frame<F>) -> Frame<F> {
    frame.macs(OWN_MAC, MASTER_MACS[1])
}

/// The client's `frame` as the nat backend gets it.
fn request<F: Family>(frame: Frame<F>) -> Frame<F> {
    frame
        .macs(OWN_MAC, EXTERNAL_MACS[0])
        .src(F::VIP)
        .dst(F::EXTERNALS[0])
        .dport(BACKEND_PORT)
}

/// A service with these flags, its backend on master2.
fn with<F: Family>(flags: u16) -> impl Fn(&mut World<F>) {
    move |world| {
        world.service(&[MASTER2]);
        world.change_service(|service| service.with_flags(flags));
    }
}

/// Bits of an address.
fn bits<F: Family>() -> u32 {
    8 * size_of::<F::Addr>() as u32
}

/// Rules.
fn rules<F: Family>() -> Vec<Row<F>> {
    let network = || bits::<F>() / 2;
    let passes = |row: Row<F>, frame: Frame<F>| row.ingress(frame.clone(), Reason::Dsr, to(frame));
    vec![
        row("a denied source: no packet of it makes a flow")
            .given(with(Service::SOURCES))
            .then(|world| world.source(F::CLIENT, bits::<F>(), SourceRule::DENY))
            .ingress_same(syn(), Reason::SourceDenied)
            .ingress_same(Frame::data(), Reason::SourceDenied)
            .ingress_same(Frame::rst(1), Reason::SourceDenied)
            .then(|world| {
                assert_eq!(world.flows(), (0, 0));
                assert_eq!(world.backend_counters(MASTER2).0, 0);
                assert_eq!(world.service_counters().2, 0);
            }),
        passes(
            passes(
                row("a source without a rule is taken")
                    .given(with(Service::SOURCES))
                    .then(|world| world.source(F::NOT_VIP, bits::<F>(), SourceRule::DENY)),
                syn(),
            )
            .ingress_same(syn().src(F::NOT_VIP), Reason::SourceDenied),
            Frame::ack(),
        ),
        passes(
            row("unless sources without a rule are refused")
                .given(with(Service::SOURCES | Service::DEFAULT_DENY))
                .ingress_same(syn(), Reason::SourceDenied)
                .then(|world| world.source(F::CLIENT, bits::<F>(), SourceRule::ALLOW)),
            syn(),
        )
        .ingress_same(syn().src(F::NOT_VIP), Reason::SourceDenied),
        row("that needs no rule at all")
            .given(with(Service::DEFAULT_DENY))
            .ingress_same(syn(), Reason::SourceDenied),
        passes(
            row("rules count only where the service says so")
                .given(with(0))
                .then(|world| world.source(F::CLIENT, bits::<F>(), SourceRule::DENY)),
            syn(),
        ),
        passes(
            row("the longest prefix decides: one address of a denied network")
                .given(with(Service::SOURCES))
                .then(move |world| {
                    world.source(F::CLIENT, network(), SourceRule::DENY);
                    world.source(F::CLIENT, bits::<F>(), SourceRule::ALLOW);
                }),
            syn(),
        ),
        row("the longest prefix decides: one denied address of everybody")
            .given(with(Service::SOURCES | Service::DEFAULT_DENY))
            .then(|world| {
                world.source(F::CLIENT, 0, SourceRule::ALLOW);
                world.source(F::CLIENT, bits::<F>() - 1, SourceRule::DENY);
            })
            .ingress_same(syn(), Reason::SourceDenied)
            .ingress(
                syn().src(F::NOT_VIP),
                Reason::Dsr,
                to(syn().src(F::NOT_VIP)),
            ),
        {
            let begun = passes(row("a flow that is there goes on").given(with(0)), syn());
            let denied = begun.then(|world| {
                world.source(F::CLIENT, bits::<F>(), SourceRule::DENY);
                world.change_service(|service| service.with_flags(Service::SOURCES));
            });
            passes(
                passes(passes(denied, Frame::ack()), Frame::data()),
                Frame::fin(),
            )
            .ingress_same(syn(), Reason::SourceDenied)
        },
    ]
}

/// Rates of sources.
fn rates<F: Family>() -> Vec<Row<F>> {
    let slow = |burst: u32| {
        move |world: &mut World<F>| {
            world.service(&[MASTER2]);
            // The slowest rate is one a second: the second that may end makes the row start over.
            world.change_service(|service| service.with_source_rate(1, burst));
        }
    };
    let passes = |row: Row<F>, frame: Frame<F>| row.ingress(frame.clone(), Reason::Dsr, to(frame));
    vec![
        passes(row("one at once").given(slow(1)), syn())
            .ingress_same(another(1), Reason::SourceRate),
        passes(
            passes(
                passes(row("three at once").given(slow(3)), syn()),
                another(1),
            ),
            another(2),
        )
        .ingress_same(another(3), Reason::SourceRate)
        .then(|world| assert_eq!((world.flows(), world.service_counters().2), ((0, 3), 3))),
        passes(
            passes(
                passes(
                    row("segments of flows that are there, and repeated SYNs, do not count")
                        .given(slow(1)),
                    syn(),
                ),
                syn(),
            ),
            Frame::ack(),
        )
        .ingress_same(another(1), Reason::SourceRate)
        .ingress(Frame::data(), Reason::Dsr, to(Frame::data())),
        passes(
            passes(
                row("nor does what is adopted, or ends")
                    .given(slow(1))
                    .ingress(
                        Frame::rst(1).sport(9),
                        Reason::Dsr,
                        to(Frame::rst(1).sport(9)),
                    ),
                Frame::data().sport(8),
            ),
            syn(),
        )
        .ingress_same(another(1), Reason::SourceRate),
        passes(
            passes(row("every source has its own").given(slow(1)), syn())
                .ingress_same(another(1), Reason::SourceRate),
            syn().src(F::NOT_VIP),
        ),
    ]
}

/// In IPv6 a source is a network of 64 bits: whoever has one has all its addresses.
fn networks() -> Vec<Row<V6>> {
    let neighbour = |byte: usize| {
        let mut src = V6::CLIENT;
        src[byte] ^= 1;
        syn::<V6>().src(src)
    };
    vec![
        row("another address of the client's network is the same source")
            .given(|world| {
                world.service(&[MASTER2]);
                world.change_service(|service| service.with_source_rate(1, 1));
            })
            .ingress(syn(), Reason::Dsr, to(syn()))
            .ingress_same(neighbour(15), Reason::SourceRate)
            .ingress_same(neighbour(8), Reason::SourceRate)
            .ingress(neighbour(7), Reason::Dsr, to(neighbour(7))),
    ]
}

/// Entries that a CPU makes in a second.
fn limits<F: Family>() -> Vec<Row<F>> {
    let spent = |backend: u32, new_flows: u32, adoptions: u32| {
        move |world: &mut World<F>| {
            world.service(&[backend]);
            world.limits(new_flows, adoptions);
        }
    };
    let datagram = || Frame::<F>::packet(udp(VIP_PORT));
    vec![
        row("dsr: beyond the limit flows go without an entry, to the same backend")
            .given(spent(MASTER2, 2, 2))
            .ingress(syn(), Reason::Dsr, to(syn()))
            .ingress(another(1), Reason::Dsr, to(another(1)))
            .ingress(another(2), Reason::DsrStateless, to(another(2)))
            .then(|world| {
                assert_eq!(world.flows(), (0, 2));
                assert_eq!(world.service_counters().2, 3);
                assert_eq!(world.backend_counters(MASTER2).2, 3);
            })
            // Its next segment is an adopted one, for which there is room.
            .ingress(
                Frame::ack().sport(CLIENT_PORT + 2),
                Reason::Dsr,
                to(Frame::ack().sport(CLIENT_PORT + 2)),
            ),
        row("dsr: flows that are there go on, and become established")
            .given(spent(MASTER2, 1, 1))
            .ingress(syn(), Reason::Dsr, to(syn()))
            .ingress(another(1), Reason::DsrStateless, to(another(1)))
            .ingress(syn(), Reason::Dsr, to(syn()))
            .ingress(Frame::ack(), Reason::Dsr, to(Frame::ack()))
            .ingress(Frame::data(), Reason::Dsr, to(Frame::data()))
            .then(|world| assert_eq!(world.flows(), (1, 0))),
        row("dsr: to another interface")
            .given(spent(MASTER2, 1, 1))
            .then(|world| {
                world.set_interface(MASTER2, OTHER_UPLINK);
                world.spend(1);
            })
            .ingress(
                syn(),
                Reason::DsrStatelessRedirect,
                syn().macs(OTHER_OWN_MAC, MASTER_MACS[1]),
            ),
        row("what is adopted has a limit of its own")
            .given(spent(MASTER2, 0, 1))
            .ingress(Frame::data(), Reason::Dsr, to(Frame::data()))
            .ingress(
                Frame::data().sport(9),
                Reason::DsrStateless,
                to(Frame::data().sport(9)),
            )
            .ingress(syn().sport(7), Reason::Dsr, to(syn().sport(7)))
            .then(|world| assert_eq!(world.flows(), (0, 2))),
        row("nat cannot do without an entry")
            .given(spent(EXTERNAL1, 1, 1))
            .ingress(syn(), Reason::Nat, request(syn()))
            .ingress_same(another(1), Reason::Flood)
            .then(|world| {
                assert_eq!((world.flows(), world.nat_returns()), ((0, 1), (0, 1)));
            })
            .ingress(Frame::ack(), Reason::Nat, request(Frame::ack()))
            .ingress(
                Frame::data().sport(9_999),
                Reason::Nat,
                request(Frame::data().sport(9_999)),
            )
            .ingress_same(Frame::data().sport(9_998), Reason::Flood),
        row("local delivery has no entry to make")
            .given(spent(LOCAL, 1, 1))
            .then(|world| world.spend(1))
            .ingress(syn(), Reason::Local, syn().dport(BACKEND_PORT))
            .ingress(
                Frame::data(),
                Reason::Local,
                Frame::data().dport(BACKEND_PORT),
            ),
        row("UDP counts as new")
            .given(|world| {
                world.udp_service(&[MASTER2], 30);
                world.limits(1, 1);
            })
            .ingress(datagram(), Reason::Dsr, to(datagram()))
            .ingress(
                datagram().sport(9),
                Reason::DsrStateless,
                to(datagram().sport(9)),
            ),
        row("a limit of 0 is none")
            .given(spent(MASTER2, 0, 0))
            .then(|world| world.spend(5))
            .ingress(syn(), Reason::Dsr, to(syn()))
            .ingress(
                Frame::data().sport(9),
                Reason::Dsr,
                to(Frame::data().sport(9)),
            ),
    ]
}

/// The rows of this file.
pub(crate) fn rows<F: Family>() -> Vec<Row<F>> {
    let mut rows = rules();
    rows.extend(rates());
    rows.extend(limits());
    rows
}

/// Rules, rates and limits.
#[test]
fn sources_and_limits_ipv4() {
    lb_tests::skip_unless_root!();
    play::<V4>(&rows());
}

/// The same with IPv6.
#[test]
fn sources_and_limits_ipv6() {
    lb_tests::skip_unless_root!();
    let mut all = rows();
    all.extend(networks());
    play::<V6>(&all);
}

//! Answers in a backend's stead: the flows of one that went down are reset, and nobody answers what
//! is garbage. And backends that refuse: no new flows for them.

use lb_common::{
    abi::{BackendState, Service, Suspect, events::Event},
    conntrack::FlowState,
    headers::TcpHeader,
    reason::Reason,
};
use lb_tests::packet::{
    BACKEND_PORT, CLIENT_PORT, EXTERNAL_MACS, Family, Frame, MASTER_MACS, OWN_MAC, ROUTER_MAC,
    UPLINK, V4, V6, VIP_PORT,
};

use crate::{
    answer::reset,
    world::{
        EXTERNAL1, EXTERNAL2, LOCAL, MASTER2, MASTER3, Row, SERVICE, World, now, play, row, tags,
    },
};

fn syn<F: Family>() -> Frame<F> {
    Frame::syn()
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

/// A segment of the nat backend `id`, and what the client gets of it.
fn reply<F: Family>(id: u32, flags: u8) -> (Frame<F>, Frame<F>) {
    let index = (id - EXTERNAL1) as usize;
    let frame = Frame::tcp(flags, 5000, 1001, &[])
        .from(EXTERNAL_MACS[index], F::EXTERNALS[index])
        .sport(BACKEND_PORT)
        .dport(CLIENT_PORT);
    let sent = frame
        .clone()
        .macs(OWN_MAC, ROUTER_MAC)
        .src(F::VIP)
        .sport(VIP_PORT)
        .dst(F::CLIENT);
    (frame, sent)
}

/// A row with an established flow to a backend on master2.
fn established<F: Family>(name: &'static str) -> Row<F> {
    row(name)
        .given(|world| world.service(&[MASTER2]))
        .ingress(syn(), Reason::Dsr, to(MASTER2, syn()))
        .ingress(Frame::ack(), Reason::Dsr, to(MASTER2, Frame::ack()))
}

/// Master2's backend goes down, its flows are to be reset; master3's takes over.
fn dies<F: Family>(world: &mut World<F>) {
    world.service(&[MASTER3]);
    world.kill(MASTER2);
}

/// A segment is answered with RST because its flow's backend went down.
fn is_reset<F: Family>(row: Row<F>, frame: &Frame<F>) -> Row<F> {
    row.ingress(frame.clone(), Reason::FlowReset, reset(frame))
}

/// Flows whose backend went down.
fn dead<F: Family>() -> Vec<Row<F>> {
    let numbers = || Frame::tcp(TcpHeader::ACK, u32::MAX, 0x8000_0000, b"wraps");
    let challenged = || Frame::tcp(TcpHeader::ACK, 1001, 5001, &[]);
    let after = |name, frames: Vec<Frame<F>>| {
        let begun = established(name).then(dies);
        let count = frames.len() as u64;
        frames.iter().fold(begun, is_reset).then(move |world| {
            assert!(world.flow(&syn()).is_some(), "until the client has heard");
            assert_eq!(world.backend_failures(MASTER2), (count, 0, 0));
            // No more than the handshake went there.
            assert_eq!(world.backend_counters(MASTER2).0, 2);
        })
    };
    vec![
        after(
            "every segment of its clients is answered with RST",
            vec![
                Frame::ack(),
                Frame::data(),
                Frame::fin(),
                numbers(),
                challenged(),
                Frame::tcp(TcpHeader::SYN | TcpHeader::ACK, 7, 9, &[]),
            ],
        ),
        after(
            "also with padding, options and data",
            vec![
                Frame::ack().padded(),
                Frame::data().ip_options(&[1; 8]).tcp_options(&[1; 12]),
                Frame::data().ip_options(&[1; 12]).ip_options(&[1; 4]),
            ],
        ),
        {
            let mut row = established("segments of any length");
            row = row.then(dies);
            for length in [
                1, 2, 491, 492, 493, 511, 512, 1003, 1004, 1005, 1460, 3_400, 9_000,
            ] {
                let data: Vec<u8> = (0..=u8::MAX).cycle().take(length).collect();
                row = is_reset(row, &Frame::tcp(TcpHeader::ACK, 1, 2, &data));
            }
            row
        },
        established("in a VLAN: the tags stay")
            .then(|world| {
                world.vlan(UPLINK, tags(5, 6), OWN_MAC);
                dies(world);
            })
            .ingress(
                Frame::data().qinq(5, 6),
                Reason::FlowReset,
                reset::<F>(&Frame::data().qinq(5, 6)),
            ),
        is_reset(
            established("a RST of the client confirms").then(dies),
            &Frame::ack(),
        )
        .ingress_same(Frame::rst(5001), Reason::ResetConfirmed)
        .then(|world| assert_eq!(world.flows(), (0, 0)))
        .ingress(syn(), Reason::Dsr, to(MASTER3, syn())),
        established("a SYN goes elsewhere and replaces the flow")
            .then(dies)
            .ingress(syn(), Reason::Dsr, to(MASTER3, syn()))
            .then(|world| assert_eq!(world.flows(), (0, 1)))
            .ingress(Frame::ack(), Reason::Dsr, to(MASTER3, Frame::ack()))
            .then(|world| {
                assert_eq!(world.flow(&syn()).unwrap().backend(), MASTER3);
                assert_eq!(world.flows(), (1, 0));
            }),
        is_reset(
            established(
                "the backend is back: its old flows are reset all the same, new ones go there",
            )
            .then(|world| {
                dies(world);
                world.set_state(MASTER2, BackendState::Up);
                world.maglev(&[MASTER2]);
            }),
            &Frame::data(),
        )
        .ingress(syn().sport(5), Reason::Dsr, to(MASTER2, syn().sport(5)))
        .ingress(
            Frame::ack().sport(5),
            Reason::Dsr,
            to(MASTER2, Frame::ack().sport(5)),
        )
        .then(|world| {
            let new = world.flow(&syn().sport(5)).unwrap();
            assert_eq!((new.epoch(), new.backend()), (1, MASTER2));
        }),
        is_reset(
            row("a half-open flow: the handshake's last ACK is answered")
                .given(|world| world.service(&[MASTER2]))
                .ingress(syn(), Reason::Dsr, to(MASTER2, syn()))
                .then(dies),
            &Frame::ack(),
        )
        .ingress_same(Frame::rst(5001), Reason::ResetConfirmed)
        .then(|world| assert_eq!(world.flows(), (0, 0))),
        row("a half-open flow: a repeated SYN goes elsewhere")
            .given(|world| world.service(&[MASTER2]))
            .ingress(syn(), Reason::Dsr, to(MASTER2, syn()))
            .then(dies)
            .ingress(syn(), Reason::Dsr, to(MASTER3, syn())),
        is_reset(
            row("a nat backend's flows")
                .given(|world| world.service(&[EXTERNAL1]))
                .ingress(syn(), Reason::Nat, request(EXTERNAL1, syn()))
                .ingress(Frame::ack(), Reason::Nat, request(EXTERNAL1, Frame::ack()))
                .then(|world| {
                    world.service(&[EXTERNAL2]);
                    world.kill(EXTERNAL1);
                }),
            &Frame::data(),
        )
        .ingress_same(Frame::rst(5001), Reason::ResetConfirmed)
        .ingress(syn(), Reason::Nat, request(EXTERNAL2, syn())),
        established("kept although it is down, then reset: the epoch decides")
            .then(|world| {
                world.service(&[MASTER3]);
                world.set_state(MASTER2, BackendState::Down);
            })
            .ingress(Frame::data(), Reason::Dsr, to(MASTER2, Frame::data()))
            .then(dies)
            .ingress(Frame::data(), Reason::FlowReset, reset::<F>(&Frame::data())),
    ]
}

/// Segments that want an answer and get none.
fn garbage<F: Family>() -> Vec<Row<F>> {
    let wrong = |frame: Frame<F>| frame.wrong_checksum(0x0100);
    let long = || Frame::tcp(TcpHeader::ACK, 1, 2, &[0x5a; 9_800]);
    let mut rows = vec![
        established("a wrong checksum: no answer, nothing changes")
            .then(dies)
            .ingress_same(wrong(Frame::data()), Reason::BadChecksum)
            .ingress_same(wrong(Frame::ack()), Reason::BadChecksum)
            .ingress_same(wrong(Frame::ack().padded()), Reason::BadChecksum)
            .then(|world| assert_eq!(world.backend_failures(MASTER2), (0, 0, 0)))
            .ingress(Frame::ack(), Reason::FlowReset, reset::<F>(&Frame::ack())),
        row("a wrong checksum where nobody could take the flow")
            .given(|world| {
                world.service(&[]);
                world.reply_port(BACKEND_PORT, VIP_PORT);
            })
            .ingress_same(wrong(syn()), Reason::BadChecksum)
            .ingress_same(wrong(syn().dport(BACKEND_PORT)), Reason::BadChecksum)
            .ingress(syn(), Reason::NoBackendReset, reset::<F>(&syn())),
        established("longer than any segment on a wire: no answer")
            .then(dies)
            .ingress_same(long(), Reason::BadChecksum),
        row("one number below the highest, and at it")
            .given(|world| world.service(&[]))
            .ingress(
                Frame::tcp(TcpHeader::SYN, u32::MAX, 0, &[]),
                Reason::NoBackendReset,
                reset::<F>(&Frame::tcp(TcpHeader::SYN, u32::MAX, 0, &[])),
            )
            .ingress(
                Frame::tcp(TcpHeader::SYN, u32::MAX - 1, 0, b"early data"),
                Reason::NoBackendReset,
                reset::<F>(&Frame::tcp(TcpHeader::SYN, u32::MAX - 1, 0, b"early data")),
            ),
        row("the only backend is on the client's node, and the service is silent")
            .given(|world| {
                world.service(&[MASTER2]);
                world.change_service(|service| service.with_flags(Service::SILENT));
            })
            .ingress_same(
                syn().from(MASTER_MACS[1], F::MASTERS[1]),
                Reason::NoOtherBackend,
            ),
    ];
    if F::HEADER_LEN == 20 {
        let mut broken = Frame::<F>::data().emit();
        broken[24] ^= 1;
        let mut broken_options = Frame::<F>::data().ip_options(&[1; 8]).emit();
        broken_options[36] ^= 1;
        rows.push(
            established("a wrong checksum of the IP header")
                .then(dies)
                .ingress_same(broken, Reason::BadChecksum)
                .ingress_same(broken_options, Reason::BadChecksum),
        );
    }
    rows
}

const REFUSED: (u32, u32) = (Event::REFUSED, SERVICE);

/// The controller was told once that backend `id` refused, and new flows avoid it.
fn told<F: Family>(id: u32) -> impl Fn(&mut World<F>) {
    move |world| {
        assert_eq!(world.events(), [(REFUSED.0, REFUSED.1, id)]);
        assert!(world.is_suspect(id));
    }
}

fn untold<F: Family>(world: &mut World<F>) {
    assert_eq!(world.events(), []);
}

/// Local backends that do not listen.
fn silent_listeners<F: Family>() -> Vec<Row<F>> {
    let local = |frame: Frame<F>| frame.dport(BACKEND_PORT);
    let other = || syn::<F>().sport(CLIENT_PORT + 1);
    vec![
        row("nothing listens here: the SYN goes elsewhere, the controller is told once")
            .given(|world| {
                world.service(&[LOCAL, MASTER2]);
                world.client_slot(F::CLIENT, LOCAL, MASTER2);
                world.fall_silent();
            })
            .ingress(syn(), Reason::Dsr, to(MASTER2, syn()))
            .then(told(LOCAL))
            .then(|world| assert_eq!(world.backend_failures(LOCAL), (0, 1, 0)))
            .then(|world| {
                world.evict(&syn());
                world.listen(BACKEND_PORT);
            })
            // Still suspect, although something listens by now.
            .ingress(syn(), Reason::Dsr, to(MASTER2, syn()))
            .then(untold)
            .then(|world| world.doubt(LOCAL, Suspect::NONE))
            .then(|world| world.evict(&syn()))
            .ingress(syn(), Reason::Local, local(syn())),
        row("nothing listens here, and there is no other backend: the kernel answers")
            .given(|world| {
                world.service(&[LOCAL]);
                world.fall_silent();
            })
            .ingress(syn(), Reason::Local, local(syn()))
            .then(told(LOCAL))
            .ingress(other(), Reason::Local, local(other())),
        row("a listener on the backend's own address is one")
            .given(|world| {
                world.service(&[LOCAL, MASTER2]);
                world.maglev(&[LOCAL]);
                world.fall_silent();
                world.listen_on(F::MASTERS[0].into(), BACKEND_PORT);
            })
            .ingress(syn(), Reason::Local, local(syn()))
            .then(untold),
        row("a doubt ends after three seconds")
            .given(|world| {
                world.service(&[LOCAL, MASTER2]);
                world.client_slot(F::CLIENT, LOCAL, MASTER2);
                world.doubt(LOCAL, Suspect::since(now() - 3));
            })
            .ingress(syn(), Reason::Local, local(syn())),
        row("if every backend is in doubt, that is no reason to refuse")
            .given(|world| {
                world.service(&[MASTER2]);
                world.doubt(MASTER2, Suspect::since(now()));
            })
            .ingress(syn(), Reason::Dsr, to(MASTER2, syn())),
        row("a repeated SYN leaves a backend that is in doubt by now")
            .given(|world| world.service(&[MASTER2]))
            .ingress(syn(), Reason::Dsr, to(MASTER2, syn()))
            .then(|world| {
                world.service(&[MASTER2, MASTER3]);
                world.client_slot(F::CLIENT, MASTER2, MASTER3);
                world.doubt(MASTER2, Suspect::since(now()));
            })
            .ingress(syn(), Reason::Dsr, to(MASTER3, syn())),
        row("an adopted segment is delivered, listener or not")
            .given(|world| {
                world.service(&[LOCAL, MASTER2]);
                world.maglev(&[LOCAL]);
                world.fall_silent();
            })
            .ingress(Frame::data(), Reason::Local, local(Frame::data()))
            .then(untold),
    ]
}

/// nat backends that refuse, or say nothing.
fn refusals<F: Family>() -> Vec<Row<F>> {
    let two = |world: &mut World<F>| {
        world.service(&[EXTERNAL1, EXTERNAL2]);
        world.client_slot(F::CLIENT, EXTERNAL1, EXTERNAL2);
    };
    let replies = |row: Row<F>, id: u32, flags: u8| {
        let (frame, sent) = reply(id, flags);
        row.ingress(frame, Reason::NatReply, sent)
    };
    let begun = |name| {
        row::<F>(name)
            .given(two)
            .ingress(syn(), Reason::Nat, request(EXTERNAL1, syn()))
    };
    let first = |row: Row<F>| row.ingress(syn(), Reason::Nat, request(EXTERNAL1, syn()));
    let second = |row: Row<F>| row.ingress(syn(), Reason::Nat, request(EXTERNAL2, syn()));
    let refuse = TcpHeader::RST | TcpHeader::ACK;
    let greet = TcpHeader::SYN | TcpHeader::ACK;
    vec![
        second(
            replies(
                begun("a RST to a SYN: the client gets it, new flows go elsewhere"),
                EXTERNAL1,
                refuse,
            )
            .then(told(EXTERNAL1))
            .then(|world| {
                assert_eq!(world.backend_failures(EXTERNAL1), (0, 1, 0));
                assert_eq!(world.half_flow(&syn()).unwrap().state(), FlowState::Closed);
            }),
        )
        .then(untold),
        replies(
            begun("the same RST again tells nobody anything"),
            EXTERNAL1,
            refuse,
        )
        .then(told(EXTERNAL1))
        .ingress(
            reply::<F>(EXTERNAL1, refuse).0,
            Reason::NatReply,
            reply::<F>(EXTERNAL1, refuse).1,
        )
        .then(untold)
        .then(|world| assert_eq!(world.backend_failures(EXTERNAL1), (0, 1, 0))),
        {
            let row = replies(
                begun("a RST later closes the flow, and refuses nothing"),
                EXTERNAL1,
                greet,
            )
            .ingress(Frame::ack(), Reason::Nat, request(EXTERNAL1, Frame::ack()));
            replies(row, EXTERNAL1, TcpHeader::RST)
                .then(|world| {
                    assert_eq!(world.flow(&syn()).unwrap().state(), FlowState::Closed);
                    assert!(!world.is_suspect(EXTERNAL1));
                })
                .then(untold)
                .ingress(syn(), Reason::Nat, request(EXTERNAL1, syn()))
                .then(|world| assert_eq!(world.flows(), (0, 1)))
        },
        second(first(begun(
            "nothing answers: the second repetition goes elsewhere",
        )))
        .then(|world| {
            assert_eq!(world.half_flow(&syn()).unwrap().backend(), EXTERNAL2);
        }),
        first(first(first(replies(
            begun("an answer that the client did not get: its SYN stays with the backend"),
            EXTERNAL1,
            greet,
        )))),
        first(first(
            row("nothing answers, and there is no other: it stays")
                .given(|world| world.service(&[EXTERNAL1]))
                .ingress(syn(), Reason::Nat, request(EXTERNAL1, syn()))
                .ingress(syn(), Reason::Nat, request(EXTERNAL1, syn())),
        )),
        row("dsr: nobody sees answers, so every repetition stays")
            .given(|world| {
                world.service(&[MASTER2, MASTER3]);
                world.client_slot(F::CLIENT, MASTER2, MASTER3);
            })
            .ingress(syn(), Reason::Dsr, to(MASTER2, syn()))
            .ingress(syn(), Reason::Dsr, to(MASTER2, syn()))
            .ingress(syn(), Reason::Dsr, to(MASTER2, syn()))
            .ingress(syn(), Reason::Dsr, to(MASTER2, syn())),
    ]
}

/// The rows of this file.
pub(crate) fn rows<F: Family>() -> Vec<Row<F>> {
    let mut rows = dead();
    rows.extend(garbage());
    rows.extend(silent_listeners());
    rows.extend(refusals());
    rows
}

/// Flows of dead backends, garbage, and backends that refuse.
#[test]
fn resets_and_refusals_ipv4() {
    lb_tests::skip_unless_root!();
    play::<V4>(&rows());
}

/// The same with IPv6.
#[test]
fn resets_and_refusals_ipv6() {
    lb_tests::skip_unless_root!();
    play::<V6>(&rows());
}

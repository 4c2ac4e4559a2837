//! How TCP flows end, and what uses their ports again: FIN and RST of both sides, TIME-WAIT, SYNs on
//! what is left of an earlier connection.

use lb_common::{conntrack::FlowState, headers::TcpHeader, reason::Reason};
use lb_tests::packet::{
    BACKEND_PORT, CLIENT_PORT, EXTERNAL_MACS, Family, Frame, MASTER_MACS, OWN_MAC, ROUTER_MAC, V4,
    V6, VIP_PORT,
};

use crate::world::{EXTERNAL1, EXTERNAL2, MASTER2, MASTER3, Row, World, play, row};

const FIN: u8 = TcpHeader::FIN | TcpHeader::ACK;

fn syn<F: Family>() -> Frame<F> {
    Frame::syn()
}

/// How a frame of the client goes to its backend.
#[derive(Clone, Copy)]
enum Way {
    Dsr,
    Nat,
}

impl Way {
    /// The backend that the flow went to, and the one that new ones go to.
    fn backends(self) -> [u32; 2] {
        match self {
            Self::Dsr => [MASTER2, MASTER3],
            Self::Nat => [EXTERNAL1, EXTERNAL2],
        }
    }

    fn reason(self) -> Reason {
        match self {
            Self::Dsr => Reason::Dsr,
            Self::Nat => Reason::Nat,
        }
    }

    /// The client's `frame` on its way to the first or second backend.
    fn sent<F: Family>(self, which: usize, frame: Frame<F>) -> Frame<F> {
        match self {
            Self::Dsr => frame.macs(OWN_MAC, MASTER_MACS[which + 1]),
            Self::Nat => frame
                .macs(OWN_MAC, EXTERNAL_MACS[which])
                .src(F::VIP)
                .dst(F::EXTERNALS[which])
                .dport(BACKEND_PORT),
        }
    }

    /// `frame` goes to the first or second backend.
    fn goes<F: Family>(self, row: Row<F>, which: usize, frame: Frame<F>) -> Row<F> {
        row.ingress(frame.clone(), self.reason(), self.sent(which, frame))
    }

    /// A row with an established flow to the first backend, and a table that leads to the second.
    fn established<F: Family>(self, name: &str) -> Row<F> {
        let name = match self {
            Self::Dsr => format!("dsr: {name}"),
            Self::Nat => format!("nat: {name}"),
        };
        let [first, second] = self.backends();
        let row = row(name).given(move |world| world.service(&[first]));
        let row = self.goes(self.goes(row, 0, syn()), 0, Frame::ack());
        row.then(move |world| world.service(&[second]))
    }
}

/// A segment of the first nat backend, and what the client gets of it.
fn answers<F: Family>(row: Row<F>, flags: u8, seq: u32, data: &[u8]) -> Row<F> {
    let frame = Frame::tcp(flags, seq, 1001, data)
        .from(EXTERNAL_MACS[0], F::EXTERNALS[0])
        .sport(BACKEND_PORT)
        .dport(CLIENT_PORT);
    let sent = frame
        .clone()
        .macs(OWN_MAC, ROUTER_MAC)
        .src(F::VIP)
        .sport(VIP_PORT)
        .dst(F::CLIENT);
    row.ingress(frame, Reason::NatReply, sent)
}

/// The established flow's state.
fn is<F: Family>(state: FlowState) -> impl Fn(&mut World<F>) {
    move |world| {
        let flow = world.flow(&syn()).expect("the flow is established");
        assert_eq!(flow.state(), state);
    }
}

/// Rows that hold for dsr and nat alike.
fn of<F: Family>(way: Way) -> Vec<Row<F>> {
    let begun = |name: &str| way.established::<F>(name);
    let first = |row: Row<F>, frame: Frame<F>| way.goes(row, 0, frame);
    let second = |row: Row<F>, frame: Frame<F>| way.goes(row, 1, frame);
    let late = || Frame::tcp(TcpHeader::ACK, 1027, 5200, &[]);
    vec![
        first(
            first(
                first(
                    begun("half closed: the client acknowledges on"),
                    Frame::fin(),
                ),
                late(),
            )
            .then(is(FlowState::Fin)),
            Frame::fin(),
        )
        .then(is(FlowState::Fin)),
        second(
            first(
                begun("a SYN on a flow that the client closed begins anew"),
                Frame::fin(),
            ),
            syn(),
        )
        .then(|world| {
            assert_eq!(world.flows(), (0, 1));
            assert_eq!(world.half_flow(&syn()).unwrap().state(), FlowState::Syn);
            assert_eq!(world.service_counters().2, 2);
        }),
        second(
            second(
                first(
                    begun("so does one long after, and the flow that it begins stays"),
                    Frame::fin(),
                )
                .then(|world| world.age(&syn(), 59)),
                syn(),
            ),
            Frame::ack(),
        )
        .then(is(FlowState::Established)),
        second(
            first(
                begun("a SYN on a flow that the client reset begins anew"),
                Frame::rst(1001),
            )
            .then(is(FlowState::Closed)),
            syn(),
        ),
        first(
            first(
                begun("a blind RST is the backend's to judge"),
                Frame::rst(7),
            )
            .then(is(FlowState::Established)),
            Frame::data(),
        ),
        first(
            first(
                first(
                    begun("a SYN on an open flow is the backend's to judge"),
                    syn(),
                )
                .then(is(FlowState::Established))
                .then(|world| assert_eq!(world.service_counters().2, 1)),
                Frame::tcp(TcpHeader::ACK, 77, 88, &[]),
            )
            .then(|world| {
                // Of whichever connection it is: the numbers are learnt anew.
                let flow = world.flow(&syn()).unwrap();
                assert_eq!((flow.cl_ack(), flow.cl_next()), (Some(88), Some(77)));
            }),
            Frame::data(),
        ),
        first(
            begun("an idle flow is the backend's to judge")
                .then(|world| world.age(&syn(), 100_000)),
            Frame::data(),
        ),
        {
            let [one, two] = way.backends();
            let row = row(format!(
                "a RST ends a half-open flow, the next SYN begins anew ({one})"
            ));
            let row = first(row.given(move |world| world.service(&[one])), syn());
            let row = first(row, Frame::rst(1001)).then(|world| {
                assert_eq!(world.half_flow(&syn()).unwrap().state(), FlowState::Closed);
            });
            second(row.then(move |world| world.service(&[two])), syn())
        },
        {
            let [one, two] = way.backends();
            let row = row(format!(
                "a FIN instead of the first ACK closes at once ({one})"
            ));
            let row = first(row.given(move |world| world.service(&[one])), syn());
            let row = first(row, Frame::fin()).then(is(FlowState::Fin));
            second(row.then(move |world| world.service(&[two])), syn())
        },
    ]
}

/// What only nat sees: the backend's side.
fn backends_side<F: Family>() -> Vec<Row<F>> {
    let way = Way::Nat;
    let begun = |name: &str| way.established::<F>(name);
    let first = |row: Row<F>, frame: Frame<F>| way.goes(row, 0, frame);
    let second = |row: Row<F>, frame: Frame<F>| way.goes(row, 1, frame);
    let ack = || Frame::tcp(TcpHeader::ACK, 1001, 5002, &[]);
    vec![
        first(
            answers(
                begun("the backend closes first: the client goes on"),
                FIN,
                5000,
                b"bye",
            )
            .then(is(FlowState::Established)),
            Frame::data(),
        ),
        {
            let row = answers(begun("both close at once"), FIN, 5000, &[]);
            let row = first(first(row, Frame::fin()), ack());
            answers(row, TcpHeader::ACK, 5001, &[]).then(is(FlowState::Fin))
        },
        {
            let row = first(
                begun("half closed: the backend goes on sending"),
                Frame::fin(),
            );
            let row = answers(row, TcpHeader::ACK, 5000, b"still more");
            answers(row, FIN, 5010, &[])
        },
        second(
            answers(
                begun("the backend resets: a SYN begins anew"),
                TcpHeader::RST,
                5000,
                &[],
            )
            .then(is(FlowState::Closed)),
            syn(),
        ),
        answers(
            first(
                answers(
                    begun("segments that crossed the RST find their way"),
                    TcpHeader::RST,
                    5000,
                    &[],
                ),
                Frame::data(),
            ),
            TcpHeader::RST,
            5000,
            &[],
        ),
        answers(
            second(
                first(
                    begun("the old backend's last segments still reach the client"),
                    Frame::fin(),
                ),
                syn(),
            ),
            FIN,
            5000,
            &[],
        ),
        {
            let row = first(
                begun("a simultaneous open is answered like any other"),
                syn(),
            );
            answers(row, TcpHeader::SYN | TcpHeader::ACK, 5000, &[])
                .then(is(FlowState::Established))
        },
    ]
}

/// The rows of this file.
pub(crate) fn rows<F: Family>() -> Vec<Row<F>> {
    let mut rows = of(Way::Dsr);
    rows.extend(of(Way::Nat));
    rows.extend(backends_side());
    rows
}

/// Ends of flows, and their ports used again.
#[test]
fn ends_and_reuse_ipv4() {
    lb_tests::skip_unless_root!();
    play::<V4>(&rows());
}

/// The same with IPv6.
#[test]
fn ends_and_reuse_ipv6() {
    lb_tests::skip_unless_root!();
    play::<V6>(&rows());
}

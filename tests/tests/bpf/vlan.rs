//! VLAN tags: each tagged network of an interface is an uplink of its own, and a next hop may be
//! behind other tags than the frame came with.
//!
//! A program run has the tags in the frame for both programs. On a real interface a socket buffer has
//! its outer tag beside the frame, which scenarios test.

use lb_common::{headers::TcpHeader, reason::Reason};
use lb_tests::packet::{
    BACKEND_PORT, CLIENT_PORT, EXTERNAL_MACS, Family, Frame, MASTER_MACS, OTHER_OWN_MAC,
    OTHER_UPLINK, OWN_MAC, ROUTER_MAC, UPLINK, V4, V6, VIP_PORT,
};

use crate::{
    answer::reset,
    world::{EXTERNAL1, LOCAL, MASTER2, Row, World, play, row, tags},
};

fn syn<F: Family>() -> Frame<F> {
    Frame::syn()
}

/// `frame` on its way to master2.
fn to<F: Family>(frame: Frame<F>) -> Frame<F> {
    frame.macs(OWN_MAC, MASTER_MACS[1])
}

/// The frame with other tags.
fn retagged<F: Family>(mut frame: Frame<F>, tags: &[(u16, u16)]) -> Frame<F> {
    frame.tags = tags.to_vec();
    frame
}

const VLAN: u16 = 0x8100;

/// VLANs 5 and 6, and 8 inside of 7, are uplinks; the backend on master2 is behind `behind`.
fn given<F: Family>(behind: u32) -> impl Fn(&mut World<F>) {
    move |world| {
        world.service(&[MASTER2]);
        for tags in [tags(5, 0), tags(6, 0), tags(7, 8)] {
            world.vlan(UPLINK, tags, OWN_MAC);
        }
        world.set_tags(MASTER2, behind);
    }
}

/// Which frames are for this node.
fn uplinks<F: Family>() -> Vec<Row<F>> {
    let foreign = |name, frame: Frame<F>| {
        row(name)
            .given(given(0))
            .ingress_same(frame, Reason::NotOurVlan)
    };
    vec![
        foreign("a VLAN that is no uplink", syn().vlan(4)),
        foreign("the inner tag of an uplink alone", syn().vlan(8)),
        foreign("the outer tag of an uplink alone", syn().vlan(7)),
        foreign(
            "the tags of an uplink the other way round",
            syn().qinq(8, 7),
        ),
        foreign("one more tag than the uplink has", syn().qinq(5, 6)),
        row("the untagged network is no uplink")
            .given(given(tags(5, 0)))
            .then(|world| world.no_uplink(UPLINK))
            .ingress_same(syn(), Reason::NotOurMac)
            .ingress_same(syn().vlan(0x2000), Reason::NotOurMac)
            .ingress(syn().vlan(5), Reason::Dsr, to(syn().vlan(5))),
        row("another MAC in the VLAN")
            .given(given(0))
            .then(|world| world.vlan(UPLINK, tags(5, 0), OTHER_OWN_MAC))
            .ingress_same(syn().vlan(5), Reason::NotOurMac)
            .ingress_same(
                syn().vlan(6).macs(ROUTER_MAC, OTHER_OWN_MAC),
                Reason::NotOurMac,
            ),
        row("the same VLAN of another interface")
            .given(given(0))
            .ingress_other_uplink(
                syn().vlan(5).macs(ROUTER_MAC, OTHER_OWN_MAC),
                Reason::NotOurVlan,
                syn().vlan(5).macs(ROUTER_MAC, OTHER_OWN_MAC),
            ),
        row("a tag of priority only is none, outside or inside")
            .given(given(0))
            .ingress(syn().vlan(0x6000), Reason::Dsr, to(syn().vlan(0x6000))),
        row("a tag of priority around another one does not count")
            .given(given(tags(5, 0)))
            .ingress(
                syn().qinq(0x2000, 5),
                Reason::Dsr,
                to(syn().qinq(0x2000, 5)),
            )
            .ingress(
                syn().qinq(5, 0x2000),
                Reason::Dsr,
                to(syn().qinq(5, 0x2000)),
            ),
        row("priority bits are nothing to go by")
            .given(given(tags(7, 8)))
            .ingress(
                syn().qinq(0xe007, 0x7008),
                Reason::Dsr,
                to(syn().qinq(0xe007, 0x7008)),
            ),
        row("an answer keeps the tags")
            .given(given(0))
            .then(|world| world.service(&[]))
            .ingress(
                syn().qinq(7, 8),
                Reason::NoBackendReset,
                reset::<F>(&syn().qinq(7, 8)),
            ),
        row("local delivery keeps the tags")
            .given(given(0))
            .then(|world| world.service(&[LOCAL]))
            .ingress(
                syn().vlan(0x2005),
                Reason::Local,
                syn().vlan(0x2005).dport(BACKEND_PORT),
            ),
    ]
}

/// Next hops behind other tags.
fn hops<F: Family>() -> Vec<Row<F>> {
    let behind = |name, tags: u32| row::<F>(name).given(given(tags));
    let mismatch = |name, tags: u32, frame: Frame<F>| {
        behind(name, tags)
            .ingress_same(frame, Reason::VlanMismatch)
            .then(|world| assert_eq!(world.backend_failures(MASTER2), (0, 0, 1)))
    };
    vec![
        behind(
            "one VLAN to another: the tag changes, its priority stays",
            tags(6, 0),
        )
        .ingress(
            syn().vlan(0xe005),
            Reason::DsrRedirect,
            retagged(to(syn()), &[(VLAN, 0xe006)]),
        ),
        behind("one VLAN to another behind another interface", tags(6, 0))
            .then(|world| {
                world.set_interface(MASTER2, OTHER_UPLINK);
                world.vlan(OTHER_UPLINK, tags(6, 0), OTHER_OWN_MAC);
            })
            .ingress(
                syn().vlan(5),
                Reason::DsrRedirect,
                syn().vlan(6).macs(OTHER_OWN_MAC, MASTER_MACS[1]),
            ),
        mismatch("a tag would have to go", 0, syn().vlan(5)),
        mismatch("a tag would have to come", tags(5, 0), syn()),
        mismatch("one tag, two are wanted", tags(7, 8), syn().vlan(5)),
        mismatch("two tags, one is wanted", tags(5, 0), syn().qinq(7, 8)),
        mismatch(
            "a tag of priority before the one that would change",
            tags(6, 0),
            syn().qinq(0x2000, 5),
        ),
        behind("the VLAN towards the backend is no uplink", tags(9, 0))
            .ingress_same(syn().vlan(5), Reason::Unresolved),
        row("nat from one VLAN to another, and back")
            .given(|world| {
                given(0)(world);
                world.service(&[EXTERNAL1]);
                world.set_tags(EXTERNAL1, tags(6, 0));
            })
            .ingress(syn().vlan(5), Reason::NatRedirect, request(syn()).vlan(6))
            .then(|world| {
                let entry = world.half_return(EXTERNAL1, CLIENT_PORT).unwrap();
                assert_eq!((entry.tags(), entry.ifindex()), (tags(5, 0), UPLINK));
            })
            .ingress(
                answer().vlan(6),
                Reason::NatReplyRedirect,
                reply(answer()).vlan(5),
            )
            // The client's next segment comes by another VLAN: replies follow it.
            .ingress(
                Frame::ack().vlan(6),
                Reason::Nat,
                request(Frame::ack()).vlan(6),
            )
            .ingress(answer().vlan(6), Reason::NatReply, reply(answer()).vlan(6))
            .ingress(
                Frame::data().vlan(5),
                Reason::NatRedirect,
                request(Frame::data()).vlan(6),
            )
            .ingress(
                answer().vlan(6),
                Reason::NatReplyRedirect,
                reply(answer()).vlan(5),
            ),
    ]
}

/// The client's `frame` as the nat backend gets it.
fn request<F: Family>(frame: Frame<F>) -> Frame<F> {
    frame
        .macs(OWN_MAC, EXTERNAL_MACS[0])
        .src(F::VIP)
        .dst(F::EXTERNALS[0])
        .dport(BACKEND_PORT)
}

/// A segment of the nat backend.
fn answer<F: Family>() -> Frame<F> {
    Frame::tcp(TcpHeader::ACK, 5000, 1001, b"hello")
        .from(EXTERNAL_MACS[0], F::EXTERNALS[0])
        .sport(BACKEND_PORT)
        .dport(CLIENT_PORT)
}

/// What the client gets of it.
fn reply<F: Family>(frame: Frame<F>) -> Frame<F> {
    frame
        .macs(OWN_MAC, ROUTER_MAC)
        .src(F::VIP)
        .sport(VIP_PORT)
        .dst(F::CLIENT)
}

/// The rows of this file.
pub(crate) fn rows<F: Family>() -> Vec<Row<F>> {
    let mut rows = uplinks();
    rows.extend(hops());
    rows
}

/// VLANs as uplinks, and between next hops.
#[test]
fn vlans_ipv4() {
    lb_tests::skip_unless_root!();
    play::<V4>(&rows());
}

/// The same with IPv6.
#[test]
fn vlans_ipv6() {
    lb_tests::skip_unless_root!();
    play::<V6>(&rows());
}

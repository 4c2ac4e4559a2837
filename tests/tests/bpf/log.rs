//! What programs built for development log, and that those that ship log nothing.

use std::net::IpAddr;

use lb_common::{headers::IPPROTO_TCP, reason::Reason};
use lb_tests::{
    packet::{CLIENT_PORT, Family, Frame, UPLINK, V4, V6, VIP_PORT},
    program::{DataPlane, PROGRAMS},
};
use lb_user::io::bpf::log::reason;

use crate::world::{Ingress, MASTER2, SERVICE, World};

/// aya-log's ring buffer.
const LOG: &str = "AYA_LOGS";

/// Every program of the logging object passes the verifier; each decision on a packet to a VIP is a line,
/// which says what was decided about whom.
fn decisions_are_lines<F: Family>() {
    let plane = DataPlane::load_logging(PROGRAMS).unwrap();
    let mut world = World::<F>::of(plane);
    world.reset();
    world.service(&[MASTER2]);
    let [client, vip]: [IpAddr; 2] = [F::CLIENT.into(), F::VIP.into()];
    let expected = format!(
        "service={SERVICE} backend={MASTER2} ifindex={UPLINK} \
         {client}:{CLIENT_PORT} -> {vip}:{VIP_PORT} proto={IPPROTO_TCP}"
    );
    for ingress in Ingress::ALL {
        world.comes_in_by(ingress);
        world.run(&Frame::<F>::syn().dst(F::NOT_VIP).emit(), UPLINK);
        world.run(&Frame::<F>::syn().emit(), UPLINK);
        let lines = world.plane().lines().unwrap();
        let lines: Vec<_> = lines.iter().map(|line| reason(line)).collect();
        assert_eq!(lines, [Some((Reason::Dsr, &*expected))], "{ingress:?}");
    }
}

#[test]
fn decisions_are_lines_ipv4() {
    lb_tests::skip_unless_root!();
    decisions_are_lines::<V4>();
}

#[test]
fn decisions_are_lines_ipv6() {
    lb_tests::skip_unless_root!();
    decisions_are_lines::<V6>();
}

/// The object that ships has no such thing.
#[test]
fn what_ships_logs_nothing() {
    lb_tests::skip_unless_root!();
    assert!(!DataPlane::load(&[]).unwrap().has_map(LOG));
}

//! Epochs of backends: in which of its lives a backend is.
//!
//! A flow remembers the epoch in which it was made. The data plane resets a flow whose backend has
//! another epoch by now, so one write to a backend's entry ends all of its flows, and none of those
//! that it gets when it is back. The table is the only memory: it outlives the controller.

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{Address, Backend, BackendState, Mac, Method};

use super::{
    resets::{Death, Link, Order, Way},
    tables::FamilyTables,
};
use crate::config::model::OnBackendDown;

/// `backend` in the epoch that follows from what its element held `before`.
///
/// A new life begins when the backend goes DOWN and its flows are to be reset, and when the
/// element held another backend: its flows must not go to this one.
pub(super) fn follow<A: Address>(
    backend: Backend<A>,
    before: Option<&Backend<A>>,
    policy: OnBackendDown,
) -> Backend<A> {
    let Some(before) = before else {
        return backend;
    };
    let ends = if is_unused(before) {
        // Its last life has been ended already.
        false
    } else if is_same(&backend, before) {
        goes_down(&backend, before) && policy == OnBackendDown::Reset
    } else {
        true
    };
    backend.in_epoch(before.epoch().wrapping_add(u16::from(ends)))
}

/// Keeps the elements of backends that are `observed` and not desired any more as unused ones, one
/// epoch further: their flows are reset, also after the element is given to another backend.
pub(super) fn retire<A: Address + Ord>(desired: &mut FamilyTables<A>, observed: &FamilyTables<A>) {
    for (&id, before) in &observed.backends {
        let ends = u16::from(!is_unused(before));
        let epoch = before.epoch().wrapping_add(ends);
        (desired.backends.entry(id)).or_insert(Backend::EMPTY.in_epoch(epoch));
    }
    // An epoch of 0 is what an element has that was never used.
    desired
        .backends
        .retain(|_, backend| *backend != Backend::EMPTY);
}

/// The backends of a family whose lives end when `desired` replaces `observed`, as they were
/// before. `owns` says whether this node owns a VIP, `mac` is the MAC of an interface.
pub(super) fn deaths<A: Address + Ord + Into<IpAddr>>(
    desired: &FamilyTables<A>,
    observed: &FamilyTables<A>,
    owns: impl Fn(IpAddr) -> bool,
    mac: impl Fn(u32) -> Option<Mac>,
) -> Vec<Death> {
    let mut deaths = Vec::new();
    for (&id, after) in &desired.backends {
        let before = observed.backends.get(&id);
        let Some(before) = before.filter(|before| begins_life(after, before)) else {
            continue;
        };
        let services = observed.services.iter();
        let mut of_service = services.filter(|(_, service)| service.id() == before.service());
        let (Some((service, _)), Some(method)) = (of_service.next(), before.method()) else {
            continue;
        };
        let vip: IpAddr = service.vip().into();
        let backend = SocketAddr::new(before.addr().into(), before.port());
        let way = match method {
            Method::Local => Way::None,
            Method::Nat => Way::Route(backend),
            Method::Dsr => mac(before.ifindex()).map_or(Way::None, |src| {
                Way::Link(Link {
                    ifindex: before.ifindex(),
                    src,
                    dst: before.mac(),
                    tags: before.tags(),
                })
            }),
        };
        let order = Order {
            backend: id,
            epoch: after.epoch(),
            ipv6: vip.is_ipv6(),
            tell: owns(vip),
            way,
        };
        deaths.push(Death {
            order,
            vip,
            backend,
            method,
        });
    }
    deaths
}

/// Whether going from `before` to `after` ends a life: flows of the earlier one are to be reset.
fn begins_life<A: Address>(after: &Backend<A>, before: &Backend<A>) -> bool {
    after.epoch() != before.epoch() && !is_unused(before)
}

fn goes_down<A: Address>(after: &Backend<A>, before: &Backend<A>) -> bool {
    after.state() == BackendState::Down && before.state() != BackendState::Down
}

fn is_same<A: Address>(a: &Backend<A>, b: &Backend<A>) -> bool {
    a.service() == b.service() && a.addr().same(&b.addr()) && a.port() == b.port()
}

fn is_unused<A: Address>(backend: &Backend<A>) -> bool {
    backend.service() == 0
}

#[cfg(test)]
mod tests {
    use BackendState::{Down, Draining, Up};
    use OnBackendDown::{Keep, Reset};
    use lb_common::abi::{Service, ServiceKey};

    use super::*;

    type V4 = Backend<[u8; 4]>;

    fn backend(host: u8, state: BackendState) -> V4 {
        Backend::new([10, 0, 2, host], 6443, 1, 2, Method::Dsr, state)
    }

    fn epoch(after: V4, before: V4, policy: OnBackendDown) -> u16 {
        follow(after, Some(&before), policy).epoch()
    }

    /// Only going DOWN ends a life, from UP as from DRAINING, once; DRAINING never does.
    #[test]
    fn going_down_ends_a_life() {
        let states = [Up, Draining, Down];
        for from in states {
            for to in states {
                let before = backend(10, from).in_epoch(7);
                let ends = from != Down && to == Down;
                let expected = 7 + u16::from(ends);
                assert_eq!(
                    epoch(backend(10, to), before, Reset),
                    expected,
                    "{from:?} {to:?}"
                );
                assert_eq!(epoch(backend(10, to), before, Keep), 7, "{from:?} {to:?}");
            }
        }
    }

    /// A backend whose method or next hop changes stays in its life.
    #[test]
    fn a_new_way_is_no_new_life() {
        let before = backend(10, Up).in_epoch(7);
        let moved = Backend::new([10, 0, 2, 10], 6443, 1, 0, Method::Nat, Up).via(3, [2; 6]);
        assert_eq!(epoch(moved, before, Reset), 7);
    }

    /// An element that is given to another backend begins a new life, whatever the policy, but not
    /// twice if it was unused in between.
    #[test]
    fn another_backend_begins_a_life() {
        let before = backend(10, Up).in_epoch(7);
        assert_eq!(epoch(backend(11, Up), before, Keep), 8);
        let unused = V4::EMPTY.in_epoch(8);
        assert_eq!(epoch(backend(11, Up), unused, Keep), 8);
        assert_eq!(follow(backend(11, Up), None, Reset).epoch(), 0);
    }

    /// Epochs begin anew after 65,535.
    #[test]
    fn epochs_wrap() {
        let before = backend(10, Up).in_epoch(u16::MAX);
        assert_eq!(epoch(backend(10, Down), before, Reset), 0);
    }

    /// A removed backend leaves its epoch behind, one further, and once only.
    #[test]
    fn a_removed_backend_leaves_its_epoch() {
        let mut observed = FamilyTables::<[u8; 4]>::default();
        observed.backends.insert(1, backend(10, Up).in_epoch(7));
        observed.backends.insert(2, backend(11, Up).in_epoch(3));
        for _ in 0..2 {
            let mut desired = FamilyTables::<[u8; 4]>::default();
            desired.backends.insert(2, backend(11, Up).in_epoch(3));
            retire(&mut desired, &observed);
            assert_eq!(desired.backends[&1], Backend::EMPTY.in_epoch(8));
            assert_eq!(desired.backends[&2], observed.backends[&2]);
            observed = desired;
        }
    }

    /// A death tells how the backend was reached before, and who is to be told of it.
    #[test]
    fn deaths_say_how_the_backend_was_reached() {
        let mut observed = FamilyTables::<[u8; 4]>::default();
        let key = ServiceKey::new([10, 0, 2, 100], 1644, 6);
        observed
            .services
            .insert(key, Service::new(1, 2, 0, 0, true));
        let dsr = backend(10, Up).via(2, [2; 6]).tagged(100);
        let nat = Backend::new([10, 0, 2, 20], 6443, 1, 0, Method::Nat, Up);
        let local = Backend::new([10, 0, 2, 30], 6443, 1, 1, Method::Local, Up);
        let lives = [dsr, nat, local, backend(11, Up)];
        observed.backends.extend((1..).zip(lives));
        let mut desired = observed.clone();
        for id in 1..=3 {
            let after = observed.backends[&id].in_epoch(1);
            desired.backends.insert(id, after);
        }
        let mac = |ifindex| (ifindex == 2).then_some([4; 6]);
        let vip = IpAddr::from([10, 0, 2, 100]);
        let deaths = deaths(&desired, &observed, |owned| owned == vip, mac);
        let ways: Vec<_> = deaths.iter().map(|death| death.order.way).collect();
        let link = Link {
            ifindex: 2,
            src: [4; 6],
            dst: [2; 6],
            tags: 100,
        };
        let to_nat = SocketAddr::from(([10, 0, 2, 20], 6443));
        assert_eq!(ways, [Way::Link(link), Way::Route(to_nat), Way::None]);
        assert!(
            deaths
                .iter()
                .all(|death| death.order.tell && death.vip == vip)
        );
        assert_eq!(deaths[0].order.epoch, 1);
    }

    /// Who is to be told: flows of a backend that had a life.
    #[test]
    fn only_lives_end() {
        let before = backend(10, Up).in_epoch(7);
        assert!(begins_life(&backend(10, Down).in_epoch(8), &before));
        assert!(!begins_life(&backend(10, Down).in_epoch(7), &before));
        assert!(!begins_life(&backend(10, Up).in_epoch(9), &V4::EMPTY));
    }
}

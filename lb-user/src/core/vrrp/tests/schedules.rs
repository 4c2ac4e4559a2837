//! Random schedules of everything that can go wrong, and what must hold after and during them.

use proptest::prelude::*;

use super::net::{Net, config, interval, ms, with};
use crate::core::vrrp::{Instance, State};

/// One thing that goes wrong, or right again.
#[derive(Clone, Debug)]
enum Event {
    Run(u64),
    Cut(usize, usize),
    CutOneWay(usize, usize),
    Heal,
    Freeze(usize),
    Thaw(usize),
    Kill(usize),
    Start(usize),
    Stop(usize),
    StepDown(usize),
    Resume(usize),
    FailSends(usize, bool),
}

fn any_event() -> impl Strategy<Value = Event> {
    let node = 0usize..3;
    let pair = (0usize..3, 1usize..3).prop_map(|(a, d)| (a, (a + d) % 3));
    prop_oneof![
        6 => (1u64..3_000).prop_map(Event::Run),
        1 => pair.clone().prop_map(|(a, b)| Event::Cut(a, b)),
        1 => pair.prop_map(|(a, b)| Event::CutOneWay(a, b)),
        1 => Just(Event::Heal),
        1 => node.clone().prop_map(Event::Freeze),
        1 => node.clone().prop_map(Event::Thaw),
        1 => node.clone().prop_map(Event::Kill),
        1 => node.clone().prop_map(Event::Start),
        1 => node.clone().prop_map(Event::Stop),
        1 => node.clone().prop_map(Event::StepDown),
        1 => node.clone().prop_map(Event::Resume),
        1 => (node, any::<bool>()).prop_map(|(n, fails)| Event::FailSends(n, fails)),
    ]
}

fn is_up(net: &Net, node: usize) -> bool {
    net.nodes[node].instance.is_some()
}

/// A dead controller cannot be thawed, a living one not be started.
fn apply(net: &mut Net, event: &Event) {
    match *event {
        Event::Run(millis) => net.run(ms(millis)),
        Event::Cut(a, b) => net.cut(a, b),
        Event::CutOneWay(a, b) => net.cut_one_way(a, b),
        Event::Heal => net.heal(),
        Event::Freeze(node) => net.freeze(node),
        Event::Thaw(node) if is_up(net, node) => net.thaw(node),
        Event::Kill(node) => net.kill(node),
        Event::Start(node) if !is_up(net, node) => net.start(node),
        Event::Stop(node) => net.input(node, Instance::stop),
        Event::StepDown(node) => net.input(node, Instance::step_down),
        Event::Resume(node) => net.input(node, Instance::resume),
        Event::FailSends(node, fails) => net.nodes[node].send_fails = fails,
        Event::Thaw(_) | Event::Start(_) => {}
    }
}

/// Everything is repaired; who steps aside by the operator's word still does.
fn repair(net: &mut Net) {
    net.heal();
    for node in 0..net.nodes.len() {
        net.nodes[node].send_fails = false;
        if is_up(net, node) {
            net.thaw(node);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// After any history there is exactly one owner among the routers that may be one, and none
    /// if there is no such router. (The net's own asserts hold meanwhile: fence before removal,
    /// lease before addresses, add and remove alternate, announcements a second apart, timers
    /// that fired are gone, spurious wake-ups do nothing.)
    #[test]
    fn exactly_one_owner_after_any_history(
        events in proptest::collection::vec(any_event(), 0..40),
        priorities in proptest::collection::vec(prop_oneof![Just(100u8), 1u8..=255], 3),
        centis in prop_oneof![Just(1u16), Just(5), Just(100)],
        preempt: bool,
        delay in prop_oneof![Just(0u64), 1u64..2_000],
    ) {
        let mut net = Net::new(priorities.iter().map(|&priority| with(config(priority), |c| {
            c.advert_interval = interval(centis * 10);
            c.preempt = preempt;
            c.preempt_delay = ms(delay);
        })));
        net.spurious = true;
        for event in &events {
            apply(&mut net, event);
        }
        repair(&mut net);
        net.run(ms(20_000));
        let may_own = |node: &usize| {
            is_up(&net, *node)
                && net.instance(*node).state() != State::Initialize
                && !net.instance(*node).is_held()
        };
        let candidates: Vec<usize> = (0..3).filter(may_own).collect();
        let owners = net.owners();
        prop_assert_eq!(owners.len(), candidates.len().min(1), "{:?}", owners);
        if let Some(owner) = owners.first() {
            prop_assert!(candidates.contains(owner));
        }
        // With preemption it is the best one.
        if preempt && let Some(&owner) = owners.first() {
            let best = candidates.iter().map(|&n| priorities[n]).max();
            prop_assert_eq!(Some(priorities[owner]), best);
        }
    }
}

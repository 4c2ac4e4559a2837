//! Any history: nothing panics, timers tell the truth (the node checks that), and when it is
//! over everything is as it shall be.

use std::time::Duration;

use lb_common::abi::Service;
use proptest::prelude::*;

use super::node::{APISERVER_KEY, Link, Mood, ms, net};
use crate::config::model::Config;
use crate::core::{
    controller::{Input, reload::RETIREMENT},
    fixture::{self, APISERVER, APISERVER6, ETH0, LO, ip, mac},
    tables::Tables,
    vrrp::RxMeta,
};

/// Something that befalls a node.
#[derive(Clone, Debug)]
enum Event {
    Wait(u64),
    Mood(usize, Mood),
    DeleteVips,
    AddVips,
    DamageTables(u8),
    EmptyTables,
    FailWrites(usize),
    FailReadings(usize),
    FailAdverts(bool),
    DelayReadings,
    DeliverReadings,
    Unplug,
    Plug(u32),
    MoveNeighbour(u8),
    Storm,
    StepDown(usize),
    Resume(usize),
    Freeze,
    Thaw,
    Crash,
    Restart,
    Cut,
    Heal,
    Garbage(Vec<u8>),
    Reload(usize),
    /// A name stands for this address, or is not known.
    Host(Option<&'static str>),
}

/// A service that comes and goes.
const WEB: &str = r#"
[[service]]
name = "web"
address = "10.0.2.100"
port = 80
allow = ["10.0.0.0/8"]
[service.health]
type = "tcp"
[[service.backend]]
name = "web10"
address = "10.0.2.10:8080"
[[service.backend]]
name = "web11"
address = "10.0.2.11:8080"
"#;

/// How many configurations there are.
const CONFIGS: usize = 10;

/// A node's configuration; number 0 is that of the start.
fn config(host: u8, number: usize) -> Config {
    let both = format!("{APISERVER}{APISERVER6}");
    let text = fixture::text(host, &both);
    let without = |text: &str, from: &str, to: &str| {
        let start = text.find(from).unwrap();
        let end = text[start..].find(to).map_or(text.len(), |end| start + end);
        format!("{}{}", &text[..start], &text[end..])
    };
    let text = match number {
        1 => text + WEB,
        2 => fixture::text(host, APISERVER),
        3 => fixture::text(host, &format!("{WEB}{APISERVER6}")),
        4 => without(&text, "[[vrrp]]\nname = \"v4\"", "[[vrrp]]\nname = \"v6\""),
        5 => without(&text, "[[vrrp]]\nname = \"v6\"", "[[peer]]"),
        6 => text.replace(
            &format!("priority = {}", 700 - 50 * u32::from(host)),
            "priority = 90",
        ),
        7 => without(
            &text,
            "[[service.backend]]\nname = \"master10\"",
            "[[service.backend]]\nname = \"master11\"",
        ),
        8 => text.replace("type = \"tcp\"", "type = \"none\""),
        9 => text.replace("10.0.2.12:6443", "cp3.example:6443"),
        _ => text,
    };
    fixture::parse(&text)
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1u64..5_000).prop_map(Event::Wait),
        2 => (0usize..3, prop_oneof![
            Just(Mood::Answers), Just(Mood::Refuses), Just(Mood::Silent)
        ]).prop_map(|(backend, mood)| Event::Mood(backend, mood)),
        1 => Just(Event::DeleteVips),
        1 => Just(Event::AddVips),
        1 => any::<u8>().prop_map(Event::DamageTables),
        1 => Just(Event::EmptyTables),
        1 => (1usize..4).prop_map(Event::FailWrites),
        1 => (1usize..4).prop_map(Event::FailReadings),
        1 => any::<bool>().prop_map(Event::FailAdverts),
        1 => Just(Event::DelayReadings),
        1 => Just(Event::DeliverReadings),
        1 => Just(Event::Unplug),
        1 => (2u32..9).prop_map(Event::Plug),
        1 => (1u8..200).prop_map(Event::MoveNeighbour),
        1 => Just(Event::Storm),
        1 => (0usize..3).prop_map(Event::StepDown),
        1 => (0usize..3).prop_map(Event::Resume),
        1 => Just(Event::Freeze),
        1 => Just(Event::Thaw),
        1 => Just(Event::Crash),
        1 => Just(Event::Restart),
        1 => Just(Event::Cut),
        1 => Just(Event::Heal),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Event::Garbage),
        4 => (0..CONFIGS).prop_map(Event::Reload),
        2 => prop_oneof![
            Just(None), Just(Some("10.0.2.12")), Just(Some("10.0.2.1")), Just(Some("10.0.2.100,10.0.2.11")),
        ].prop_map(Event::Host),
    ]
}

fn apply(link: &mut Link, at: usize, event: Event) {
    let names = ["master10", "master11", "master12"];
    let node = &mut link.nodes[at];
    match event {
        Event::Wait(millis) => return link.run(ms(millis), |_| {}),
        Event::Mood(backend, mood) => {
            node.moods.insert(names[backend], mood);
        }
        Event::DeleteVips => {
            for ifindex in [LO, node.uplink()] {
                for vip in node.vips_of(ifindex) {
                    node.delete_address(ifindex, net(&vip));
                }
            }
        }
        Event::AddVips if node.uplink() != 0 => {
            node.add_address(node.uplink(), net("10.0.2.100/32"), false);
            node.add_address(node.uplink(), net("10.0.2.100/24"), true);
        }
        Event::DamageTables(n) => {
            let wild = Service::new(u32::from(n), u32::from(n), 0, 0, true);
            node.tables.v4.services.insert(APISERVER_KEY, wild);
            node.tables.v4.backends.remove(&u32::from(n % 8));
            node.tables.maglev.remove(&u32::from(n % 8));
        }
        Event::EmptyTables => node.tables = Tables::default(),
        Event::FailWrites(count) => node.failing_writes = count,
        Event::FailReadings(count) => node.failing_readings = count,
        Event::FailAdverts(fail) => node.adverts_fail = fail,
        Event::DelayReadings => node.delay_readings(),
        Event::DeliverReadings if node.controller.is_some() && !node.frozen => {
            node.deliver_readings();
        }
        Event::Unplug => node.unplug(),
        Event::Plug(ifindex) => node.plug(ifindex),
        Event::MoveNeighbour(host) => node.move_neighbour("10.0.2.12", mac(host)),
        Event::Storm => (0..50).for_each(|_| node.input(Input::NetworkChanged)),
        Event::StepDown(instance) => node.input(Input::StepDown { instance }),
        Event::Resume(instance) => node.input(Input::Resume { instance }),
        Event::Freeze => node.frozen = true,
        Event::Thaw => node.frozen = false,
        Event::Crash => node.kill(),
        Event::Restart if !node.frozen => node.boot(),
        Event::Cut => link.cut.extend([(0, 1), (1, 0)]),
        Event::Heal => link.cut.clear(),
        Event::Garbage(message) => {
            let meta = RxMeta {
                src: ip("10.0.2.66"),
                dst: ip("224.0.0.18"),
                ttl: 255,
            };
            node.input(Input::Vrrp {
                instance: 0,
                at: node.now,
                meta,
                message,
            });
        }
        Event::Reload(number) if node.controller.is_some() && !node.frozen => {
            node.reload(config(node.host, number)).unwrap();
        }
        Event::Host(Some(address)) => drop(node.hosts.insert("cp3.example", address)),
        Event::Host(None) => drop(node.hosts.remove("cp3.example")),
        Event::AddVips | Event::DeliverReadings | Event::Restart | Event::Reload(_) => {}
    }
    link.run(Duration::ZERO, |_| {});
}

/// Every fault ends, every controller runs, nobody is held back.
fn recover(link: &mut Link) {
    link.cut.clear();
    for node in &mut link.nodes {
        node.frozen = false;
        node.adverts_fail = false;
        node.failing_writes = 0;
        node.failing_readings = 0;
        node.moods.clear();
        if node.controller.is_none() {
            node.boot();
        }
        node.deliver_readings();
        if node.uplink() == 0 {
            node.plug(ETH0);
        }
        // Other numbers after instances have come and gone.
        for instance in 0..8 {
            node.input(Input::Resume { instance });
        }
        node.reload(config(node.host, 0)).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// After any history two nodes agree on one owner, tables and addresses are as they shall
    /// be, and nothing is written any more.
    #[test]
    fn everything_converges(
        history in prop::collection::vec((0usize..2, event()), 1..40)
    ) {
        let mut link = Link::start(2, &format!("{APISERVER}{APISERVER6}"));
        for node in &mut link.nodes {
            node.careful = false;
        }
        let reloads = history.iter().any(|(_, event)| matches!(event, Event::Reload(_)));
        for (at, event) in history {
            apply(&mut link, at, event);
        }
        recover(&mut link);
        link.run(ms(40_000), |_| {});
        if reloads {
            link.run(RETIREMENT, |_| {});
        }
        for node in &mut link.nodes {
            node.assert_converged();
            node.trace();
        }
        prop_assert_eq!(link.owners(0), [10]);
        prop_assert_eq!(link.owners(1), [10]);
        link.run(ms(10_000), |_| {});
        for node in &mut link.nodes {
            prop_assert_eq!(node.trace_of(&["write", "remove", "repaired", "report"]), [""; 0]);
        }
    }
}

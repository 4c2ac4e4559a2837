//! What a service says of itself: protocol, source rules, what becomes of flows that nobody serves;
//! and the backends for flows that must not go back where they came from.

use lb_common::{abi::sources::SourceKey, headers::IPPROTO_UDP};

use super::*;

/// The service `apiserver` with these lines more.
fn with(lines: &str) -> String {
    APISERVER.replace("port = 1644", &format!("port = 1644\n{lines}"))
}

fn service_of(lines: &str) -> Service {
    let mut world = World::master10(&with(lines));
    world.converge();
    world.service()
}

/// Flags, rates and limits are those of the configuration, and none without one.
#[test]
fn services_carry_their_policy() {
    let plain = service_of("");
    assert_eq!(plain.flags(), Service::USABLE);
    assert_eq!((plain.source_rate(), plain.idle_seconds()), (0, 0));
    let flags = |lines| service_of(lines).flags() & !Service::USABLE;
    assert_eq!(flags("on_no_backend = \"drop\""), Service::SILENT);
    assert_eq!(flags("deny = [\"10.0.0.0/8\"]"), Service::SOURCES);
    assert_eq!(
        flags("allow = [\"10.0.0.0/8\"]"),
        Service::SOURCES | Service::DEFAULT_DENY
    );
    let limited = service_of("source_limit = { rate = 20, burst = 40 }");
    assert_eq!((limited.source_rate(), limited.source_burst()), (20, 40));
}

/// The node's limits are written with the facts about the node.
#[test]
fn limits_are_the_nodes() {
    let mut world = World::master10(APISERVER);
    world.config.node.new_flow_limit = 7;
    world.config.node.adoption_limit = 0;
    world.converge();
    let node = world.tables.node.unwrap();
    assert_eq!((node.new_flow_limit(), node.adoption_limit()), (7, 0));
}

/// A rule's key is the service's id and the prefix, and its bits are those of both.
#[test]
fn rules_are_prefixes_of_their_service() {
    let rules = "allow = [\"10.0.0.0/8\"]\ndeny = [\"10.1.0.0/16\"]";
    let v6 = APISERVER6.replace(
        "port = 1644",
        "port = 1644\ndeny = [\"fd00:1::/32\", \"::/0\"]",
    );
    let mut world = World::master10(&format!("{}{v6}", with(rules)));
    let desired = world.converge();
    let [first, second] = [desired.services[0].id, desired.services[1].id];
    let key = |addr, length| SourcePrefix::new(first, addr, length);
    let expected = BTreeMap::from([
        (key([10, 0, 0, 0], 8), SourceRule::ALLOW),
        (key([10, 1, 0, 0], 16), SourceRule::DENY),
    ]);
    assert_eq!(desired.tables.v4.sources, expected);
    let v6 = desired.tables.v6.sources.keys();
    let v6: Vec<_> = v6.map(|key| (key.bits(), key.data().service())).collect();
    assert_eq!(v6, [(32, second), (64, second)]);
    let wide = SourcePrefix::from_parts(40, SourceKey::new(first, [10, 0, 0, 0]));
    assert!(desired.tables.v4.sources.contains_key(&wide));
}

/// Rules come before the service asks for them, and go after it has stopped.
#[test]
fn rules_come_before_they_are_asked_for() {
    let mut world = World::master10(APISERVER);
    world.converge();
    let without = world.tables.clone();
    world.config = fixture::config(10, &with("allow = [\"10.0.0.0/8\"]"));
    world.converge();
    let is_rule_first = |from: &Tables, to: &Tables| {
        let ops = plan(to, from);
        let rule = |op: &TableOp| matches!(op, TableOp::V4(FamilyOp::Source(..)));
        let service = |op: &TableOp| matches!(op, TableOp::V4(FamilyOp::Service(..)));
        let (rule, service) = (ops.iter().position(rule), ops.iter().position(service));
        rule.unwrap() < service.unwrap()
    };
    assert!(is_rule_first(&without, &world.tables));
    assert!(!is_rule_first(&world.tables, &without));
}

/// A UDP service beside a TCP one on the same VIP and port: two services with tables of their own.
#[test]
fn protocols_are_apart() {
    let udp = with("protocol = \"udp\"\nidle_timeout = \"90s\"")
        .replace("\"apiserver\"", "\"quic\"")
        .replace("type = \"tcp\"", "type = \"none\"");
    let mut world = World::master10(&format!("{APISERVER}{udp}{WEB}"));
    let desired = world.converge();
    let key = ServiceKey::new([10, 0, 2, 100], 1644, IPPROTO_UDP);
    let udp = world.tables.v4.services[&key];
    assert_ne!(udp.id(), world.service().id());
    assert_eq!(udp.idle_seconds(), 90);
    assert!(udp.silent());
    let replies = desired.tables.v4.reply_ports.keys();
    let replies: Vec<_> = replies.map(|key| (key.port(), key.proto())).collect();
    assert_eq!(replies, [(6443, IPPROTO_TCP), (6443, IPPROTO_UDP)]);
    // Known again after a restart, each by its own protocol.
    world.restart();
    assert_eq!(ids(&world.converge()), ids(&desired));
    let state = known_state(
        &world.tables,
        &world.config.services[1],
        &world.config.services[1].backends[0],
    );
    assert_eq!(state, Some(Up));
}

/// The fallbacks are on two nodes, take new flows, and are the same ones whichever node decides.
#[test]
fn fallbacks_are_the_same_everywhere() {
    let weighted = APISERVER.replace("12:6443\"", "12:6443\"\nweight = 2");
    let addresses = |host: u8, states: [BackendState; 3]| {
        let config = fixture::config(host, &weighted);
        let mut world = World::new(config, fixture::network(host, &PEERS));
        world.health = vec![states.to_vec()];
        world.converge();
        let address = |id: u16| {
            world
                .tables
                .v4
                .backends
                .get(&u32::from(id))
                .map(|b| b.addr()[3])
        };
        world.service().fallback().map(address)
    };
    for host in fixture::MASTERS {
        assert_eq!(addresses(host, [Up, Up, Up])[0], Some(12));
        assert_eq!(addresses(host, [Up, Up, Up]), addresses(10, [Up, Up, Up]));
        assert_eq!(
            addresses(host, [Up, Up, Down]),
            addresses(10, [Up, Up, Down])
        );
        assert_eq!(addresses(host, [Up, Draining, Down]), [Some(10), None]);
        assert_eq!(addresses(host, [Down; 3]), [None, None]);
    }
    let pair = addresses(10, [Up, Up, Down]);
    assert!(
        pair.contains(&Some(10)) && pair.contains(&Some(11)),
        "{pair:?}"
    );
}

/// Two backends on one node are no way out of it; two on nodes that are not known are.
#[test]
fn fallbacks_are_on_different_nodes() {
    let candidate = |id: u32, node: u32, slots: u32| Candidate {
        id,
        node,
        address: format!("10.0.2.{id}:80").parse().unwrap(),
        slots,
    };
    let same = vec![candidate(1, 2, 10), candidate(2, 2, 9)];
    assert_eq!(fallback(same), [1, 0]);
    let third = vec![candidate(1, 2, 10), candidate(2, 2, 9), candidate(3, 3, 8)];
    assert_eq!(fallback(third), [1, 3]);
    let unknown = vec![candidate(1, NODE_NONE, 10), candidate(2, NODE_NONE, 9)];
    assert_eq!(fallback(unknown), [1, 2]);
    // Equal shares: the address decides.
    let equal = vec![candidate(2, 3, 5), candidate(1, 2, 5)];
    assert_eq!(fallback(equal), [1, 2]);
    assert_eq!(fallback(vec![]), [0, 0]);
}

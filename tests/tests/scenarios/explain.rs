//! `xvip trace` and `xvip explain` on real packets: what they say is what becomes of the packet, and
//! neither of them changes anything.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
};
use lb_common::{
    abi::{Address, Flow, FlowKey, NatReturn, Vip},
    reason::Reason,
};
use lb_tests::{
    cluster::{Cluster, PATIENCE},
    control_plane::{BOTH, VIP4, VIP6},
    endpoint::{connect_within, finish, talk},
    netns::unique,
    process::{Process, output, wait_until},
    skip_unless_root,
    ways::{Way, Ways, family_word, unchecked_service},
};
use lb_user::{admin::model::BackendState, core::frame::mac_text};
use serde_json::Value;

/// Every map of a kind, by its pin.
fn entries<K: Pod + Debug, V: Pod + Debug>(pins: &Path, map: &str) -> Vec<String> {
    let data = MapData::from_pin(pins.join(map)).unwrap();
    let map: HashMap<_, K, V> = Map::LruHashMap(data).try_into().unwrap();
    let mut all: Vec<_> = map.iter().map(|e| format!("{:?}", e.unwrap())).collect();
    all.sort();
    all
}

fn conntrack<A: Address + Pod + Debug>(pins: &Path, family: char) -> Vec<Vec<String>>
where
    FlowKey<A>: Pod,
    NatReturn<A>: Pod,
{
    vec![
        entries::<FlowKey<A>, Flow>(pins, &format!("flows{family}")),
        entries::<FlowKey<A>, Flow>(pins, &format!("half_flows{family}")),
        entries::<FlowKey<A>, NatReturn<A>>(pins, &format!("returns{family}")),
        entries::<FlowKey<A>, NatReturn<A>>(pins, &format!("half_returns{family}")),
    ]
}

/// What packets of clients change on m1: conntrack, the counters by reason, and those by backend.
#[derive(Debug, PartialEq)]
struct State {
    conntrack: Vec<Vec<String>>,
    reasons: BTreeMap<String, u64>,
    services: Value,
}

/// Reasons of packets that come without any client: neighbour discovery, health checks, adverts.
const BACKGROUND: [Reason; 5] = [
    Reason::NotVip,
    Reason::NotIp,
    Reason::Neighbour,
    Reason::NotBalanced,
    Reason::EgressOther,
];

impl State {
    fn of(cluster: &Cluster) -> Self {
        let pins = cluster.node("m1").pins();
        let mut conntrack_of_both = conntrack::<[u8; 4]>(&pins, '4');
        conntrack_of_both.extend(conntrack::<[u8; 16]>(&pins, '6'));
        let status = cluster.status("m1").unwrap();
        let is_background = |label: &str| BACKGROUND.iter().any(|reason| reason.label() == label);
        let reasons = status.reasons.iter();
        let reasons = reasons.filter(|count| !is_background(&count.reason));
        Self {
            conntrack: conntrack_of_both,
            reasons: reasons
                .map(|count| (count.reason.clone(), count.packets))
                .collect(),
            services: counters(serde_json::to_value(&status.services).unwrap()),
        }
    }
}

/// Only what counts packets: times of checks go on.
fn counters(mut services: Value) -> Value {
    for service in services.as_array_mut().unwrap() {
        for backend in service["backends"].as_array_mut().unwrap() {
            let kept = backend.as_object().unwrap().iter();
            let kept = kept.filter(|(name, _)| {
                ["name", "packets", "bytes", "connections", "drops"].contains(&name.as_str())
            });
            *backend = Value::Object(kept.map(|(k, v)| (k.clone(), v.clone())).collect());
        }
    }
    services
}

/// A running `xvip trace` on m1.
struct Trace<'a> {
    cluster: &'a Cluster,
    vip: IpAddr,
    process: Process,
}

impl<'a> Trace<'a> {
    /// Follows a VIP's packets of the client, from when this returns.
    fn start(cluster: &'a Cluster, vip: IpAddr) -> Self {
        let (client, to) = (cluster.client().address_like(vip), vip.to_string());
        let client = client.to_string();
        let arguments = ["trace", "--json", "--client", &client, "--vip", &to];
        let command = cluster.cli("m1", &arguments).unwrap();
        let log = cluster.node("m1").directory().join(unique("trace"));
        let process = Process::spawn("xvip trace", &command, None, log).unwrap();
        let trace = Self {
            cluster,
            vip,
            process,
        };
        trace.wait_marked(true);
        trace
    }

    /// Whether the data plane looks for listeners at all when a packet to the VIP comes.
    fn is_marked(&self) -> bool {
        let pins = self.cluster.node("m1").pins();
        let data = |name: &str| Map::HashMap(MapData::from_pin(pins.join(name)).unwrap());
        let vip: Vip = match self.vip {
            IpAddr::V4(vip) => {
                let map: HashMap<_, [u8; 4], _> = data("vips4").try_into().unwrap();
                map.get(&vip.octets(), 0).unwrap()
            }
            IpAddr::V6(vip) => {
                let map: HashMap<_, [u8; 16], _> = data("vips6").try_into().unwrap();
                map.get(&vip.octets(), 0).unwrap()
            }
        };
        vip.is_traced()
    }

    fn wait_marked(&self, marked: bool) {
        let what = if marked { "a mark" } else { "no mark" };
        wait_until(what, PATIENCE, || {
            anyhow::ensure!(!marked || self.process.is_running(), self.process.output());
            Ok((self.is_marked() == marked).then_some(()))
        })
        .unwrap();
    }

    fn records(&self) -> Vec<Value> {
        let text = self.process.output();
        // The last line may still be on its way.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole
            .lines()
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
            })
            .collect()
    }

    /// Waits for a packet that fits.
    fn wait(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let found = wait_until(what, PATIENCE, || {
            let found = self.records().into_iter().find(&fits);
            anyhow::ensure!(
                found.is_some() || self.process.is_running(),
                "xvip trace ended"
            );
            Ok(found)
        });
        found.unwrap_or_else(|error| panic!("{error:#}: {:#?}", self.records()))
    }

    /// Ends it as Ctrl-C does; the data plane stops looking.
    fn stop(self) {
        self.process.terminate(PATIENCE).unwrap();
        self.wait_marked(false);
    }
}

fn from(record: &Value, endpoint: SocketAddr) -> bool {
    record["source"] == endpoint.to_string()
}

/// A field of a record, checked against what it should be.
fn expect(record: &Value, fields: &[(&str, Value)]) {
    for (field, value) in fields {
        assert_eq!(record.pointer(field).unwrap(), value, "{field}: {record:#}");
    }
}

/// A SYN's stage, an ACK's stage and its reason, by each way.
fn stages(way: Way) -> (&'static str, &'static str, &'static str) {
    match way {
        Way::Local => ("select", "socket", "local"),
        Way::Dsr => ("select", "conntrack", "dsr"),
        Way::Nat => ("select", "conntrack", "nat"),
    }
}

/// Each packet of a connection is told of, by every way: what came, where and why it was decided, and
/// how it went on; replies where they come by. Nothing is told of others, and when the listener goes
/// the data plane stops looking for one.
#[test]
fn a_trace_tells_of_every_decision() {
    skip_unless_root!();
    let ways = Ways::start().unwrap();
    for vip in BOTH {
        let trace = Trace::start(&ways.cluster, vip);
        for path in ways.paths().filter(|path| path.vip == vip) {
            let (client, server) = ways.connect(path, None).unwrap();
            talk(&client, &server).unwrap();
            finish(&client, &server).unwrap();
            let source = client.local_addr().unwrap();
            let (syn, ack, reason) = stages(path.way);
            let record = trace.wait("the SYN", |r| from(r, source) && r["flags"] == "syn");
            let node = path.way.node();
            let service = format!("{:?}-{}", path.way, family_word(vip));
            expect(
                &record,
                &[
                    ("/destination", path.target().to_string().into()),
                    ("/interface", "eth0".into()),
                    ("/protocol", "tcp".into()),
                    ("/stage", syn.into()),
                    ("/reason", reason.into()),
                    ("/backend", node.into()),
                    ("/service", service.into()),
                ],
            );
            let backend = SocketAddr::new(
                ways.cluster.node(node).address_like(vip),
                path.way.backend_port(),
            );
            let mac = |node: &str| {
                let mac = ways.cluster.node(node).mac();
                Value::from(mac_text(mac))
            };
            let local = SocketAddr::new(vip, path.way.backend_port());
            let (out_source, out_destination, out_mac) = match path.way {
                Way::Local => (source, local, Value::Null),
                Way::Dsr => (source, path.target(), mac(node)),
                Way::Nat => (SocketAddr::new(vip, source.port()), backend, mac(node)),
            };
            expect(
                &record,
                &[
                    ("/out/source", out_source.to_string().into()),
                    ("/out/destination", out_destination.to_string().into()),
                    ("/out/mac", out_mac),
                ],
            );
            let record = trace.wait("data", |r| from(r, source) && r["flags"] == "psh,ack");
            expect(
                &record,
                &[
                    ("/stage", ack.into()),
                    ("/reason", reason.into()),
                    ("/backend", node.into()),
                ],
            );
            trace.wait("the FIN", |r| from(r, source) && r["flags"] == "fin,ack");
            if path.way == Way::Nat {
                let record = trace.wait("a reply", |r| from(r, backend));
                expect(
                    &record,
                    &[
                        ("/stage", "reply".into()),
                        ("/reason", "nat_reply".into()),
                        ("/out/source", path.target().to_string().into()),
                        ("/out/destination", source.to_string().into()),
                        ("/out/mac", mac("client")),
                    ],
                );
            }
        }
        // Another client, and the other family's VIP.
        let other = BOTH.into_iter().find(|other| *other != vip).unwrap();
        for path in ways.paths() {
            let node = ways.cluster.node("b1");
            let (client, server) = if path.vip == vip {
                ways.connect_from(node, path, None).unwrap()
            } else {
                ways.connect(path, None).unwrap()
            };
            talk(&client, &server).unwrap();
            let stranger = client.local_addr().unwrap();
            let told = trace.records();
            assert!(!told.iter().any(|r| from(r, stranger)), "{told:?}");
        }
        assert!(!trace.records().iter().any(|r| {
            r["destination"]
                .as_str()
                .unwrap()
                .contains(&other.to_string())
        }));
        trace.stop();
    }
}

/// What `xvip explain` says of a packet.
fn explain(cluster: &Cluster, client: SocketAddr, to: SocketAddr, flags: &str) -> Value {
    let (client, to) = (client.to_string(), to.to_string());
    let arguments = ["explain", &client, &to, "--flags", flags, "--json"];
    let text = output(&mut cluster.cli("m1", &arguments).unwrap()).unwrap();
    let arguments = ["explain", &client, &to, "--flags", flags];
    println!(
        "xvip {}\n{}",
        arguments.join(" "),
        output(&mut cluster.cli("m1", &arguments).unwrap()).unwrap()
    );
    serde_json::from_str(&text).unwrap()
}

/// The same, with nothing changed by the question. (What an earlier connection still has to say may
/// come in between: then it is asked again.)
fn explain_only(cluster: &Cluster, client: SocketAddr, to: SocketAddr, flags: &str) -> Value {
    wait_until("a question that changes nothing", PATIENCE, || {
        let before = State::of(cluster);
        let explained = explain(cluster, client, to, flags);
        Ok((before == State::of(cluster)).then_some(explained))
    })
    .unwrap()
}

/// What a trace and an explanation both say of a packet, but for its length and numbers.
const SAME: [&str; 10] = [
    "interface",
    "source",
    "destination",
    "flags",
    "stage",
    "reason",
    "verdict",
    "service",
    "backend",
    "out",
];

fn assert_same(explained: &Value, real: &Value) {
    for field in SAME {
        assert_eq!(
            explained[field], real[field],
            "{field}: {explained:#} {real:#}"
        );
    }
}

/// Port of a service that refuses the client.
const DENIED: u16 = 1009;
/// Port of its backend, where nobody listens: one backend port belongs to one port of a VIP.
const DENIED_BACKEND: u16 = 7009;

/// A service by nat, whose rules about sources refuse everybody on the bridge.
fn push_denied(cluster: &mut Cluster) {
    let mut services = String::new();
    for (vip, prefix) in [
        (IpAddr::from(VIP4), "10.77.0.0/24"),
        (VIP6.into(), "fd77::/64"),
    ] {
        let backend = SocketAddr::new(cluster.node("b1").address_like(vip), DENIED_BACKEND);
        services.push_str(&unchecked_service(
            &format!("denied-{}", family_word(vip)),
            SocketAddr::new(vip, DENIED),
            ("b1", backend),
            &format!("deny = [\"{prefix}\"]"),
        ));
    }
    for node in cluster.masters() {
        cluster.edit_config(&node, |config| config.push_str(&services));
    }
}

/// A connection's packets, explained before they are sent: each goes as was said, also one that is
/// refused, denied, or for nobody. The question changes neither maps nor counters.
#[test]
fn an_explanation_is_what_the_next_packet_meets() {
    skip_unless_root!();
    let mut ways = Ways::with(
        |builder| builder,
        "",
        |cluster| {
            push_denied(cluster);
            Ok(())
        },
    )
    .unwrap();
    for vip in BOTH {
        let trace = Trace::start(&ways.cluster, vip);
        let client = ways.cluster.client().address_like(vip);
        for (path, port) in ways.paths().filter(|path| path.vip == vip).zip(46_000..) {
            let source = SocketAddr::new(client, port);
            let (syn, ack, reason) = stages(path.way);
            let first = explain_only(&ways.cluster, source, path.target(), "syn");
            let told = trace.records();
            assert!(
                !told.iter().any(|r| from(r, source)),
                "told of a packet that never was: {told:?}"
            );
            expect(
                &first,
                &[("/stage", syn.into()), ("/reason", reason.into())],
            );
            assert_eq!(first["entry"], Value::Null);
            assert_eq!(first["health"]["state"], "up");
            let (near, far) = ways.connect(path, Some(port)).unwrap();
            talk(&near, &far).unwrap();
            let real = trace.wait("the SYN", |r| from(r, source) && r["flags"] == "syn");
            assert_same(&first, &real);
            let later = explain_only(&ways.cluster, source, path.target(), "psh,ack");
            expect(
                &later,
                &[("/stage", ack.into()), ("/reason", reason.into())],
            );
            assert_eq!(later["entry"].is_null(), path.way == Way::Local);
            let real = trace.wait("data", |r| from(r, source) && r["flags"] == "psh,ack");
            assert_same(&later, &real);
        }

        // Denied; to a backend's port; to a port of nobody's: the kernel's.
        for (port, source, reason) in [
            (DENIED, 46_010, "source_denied"),
            (Way::Nat.backend_port(), 46_011, "not_balanced"),
            (Way::Local.backend_port(), 46_012, "backend_port_reset"),
            (1, 46_013, "not_balanced"),
        ] {
            let source = SocketAddr::new(client, source);
            let target = SocketAddr::new(vip, port);
            let said = explain_only(&ways.cluster, source, target, "syn");
            expect(&said, &[("/reason", reason.into())]);
            let node = ways.cluster.client();
            let limit = Duration::from_millis(300);
            let error = connect_within(node, Some(source.port()), target, limit).unwrap_err();
            let kinds = [io::ErrorKind::ConnectionRefused, io::ErrorKind::TimedOut];
            assert!(
                kinds.contains(&error.kind()),
                "{source} to {target}: {error}"
            );
            let real = trace.wait("the SYN", |r| from(r, source) && r["flags"] == "syn");
            assert_same(&said, &real);
        }

        // No VIP.
        let source = SocketAddr::new(client, 46_020);
        let nobody = SocketAddr::new(ways.cluster.node("b1").address_like(vip), 7003);
        let said = explain_only(&ways.cluster, source, nobody, "syn");
        expect(
            &said,
            &[("/reason", "not_vip".into()), ("/verdict", "pass".into())],
        );
        trace.stop();
    }

    // Refused: no backend can take it.
    ways.close(Way::Dsr);
    for node in ["m1", "m2"] {
        ways.cluster
            .wait_backend(node, "m2", BackendState::Down)
            .unwrap();
    }
    for vip in BOTH {
        let trace = Trace::start(&ways.cluster, vip);
        let source = SocketAddr::new(ways.cluster.client().address_like(vip), 46_030);
        let target = SocketAddr::new(vip, Way::Dsr.port());
        let said = explain_only(&ways.cluster, source, target, "syn");
        expect(&said, &[("/reason", "no_backend_reset".into())]);
        let client = ways.cluster.client();
        let error = connect_within(client, Some(source.port()), target, PATIENCE).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let real = trace.wait("the SYN", |r| from(r, source) && r["flags"] == "syn");
        assert_same(&said, &real);
        trace.stop();
    }
}

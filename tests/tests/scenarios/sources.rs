//! Who may open flows, and what those hear that nobody can serve: rules about sources, limits of
//! their rates, and services without a backend, changed while everything runs.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use lb_common::reason::Reason;
use lb_tests::{
    cluster::{Cluster, PATIENCE},
    control_plane::BOTH,
    knock::{Answer, Knock, knock, knock_from},
    reconfigure::service_lines,
    skip_unless_root,
    watch::Watches,
};
use lb_user::admin::model::BackendState::Down;

/// Time that silence takes. A SYN is repeated after one second.
const SILENCE: Duration = Duration::from_millis(1500);

/// One more source.
const OTHER: &str = "other";

fn cluster(masters: usize) -> Cluster {
    Cluster::builder()
        .masters(masters)
        .bystander(OTHER)
        .stand_in(&["--listen", "[::]:6443"])
        .start(|plane| {
            plane.vips = BOTH.into();
            // Long enough for a busy machine: counters are those of one owner.
            "1s".clone_into(&mut plane.advert_interval);
        })
        .unwrap()
}

/// A node's address as a prefix.
fn host(cluster: &Cluster, node: &str, vip: IpAddr) -> String {
    IpNet::from(cluster.node(node).address_like(vip)).to_string()
}

/// The service's lines are these from now on, on every node; `{client}` and `{other}` are those
/// nodes as prefixes.
fn change(cluster: &mut Cluster, base: &str, lines: &str) {
    let text = |vip| {
        let lines = lines.replace("{client}", &host(cluster, "client", vip));
        lines.replace("{other}", &host(cluster, OTHER, vip))
    };
    let lines = BOTH.map(text);
    for node in cluster.masters() {
        cluster.edit_config(&node, |config| {
            // Each node's own part is what comes before its services.
            let own = config.find("[[service]]").unwrap();
            config.truncate(own);
            *config += base;
            for (vip, lines) in BOTH.into_iter().zip(&lines) {
                service_lines(config, vip, lines);
            }
        });
    }
    cluster.reload_all().unwrap();
}

/// The services of the configurations as they are.
fn services(cluster: &mut Cluster) -> String {
    let mut text = String::new();
    cluster.edit_config("m1", |config| {
        text.push_str(&config[config.find("[[service]]").unwrap()..]);
    });
    text
}

fn hears(cluster: &Cluster, node: &str, vip: IpAddr) -> Knock {
    let target = SocketAddr::new(vip, 1644);
    knock(cluster.node(node), target, SILENCE).unwrap()
}

fn expect(cluster: &Cluster, vip: IpAddr, expected: [(&str, Answer); 2]) {
    for (node, answer) in expected {
        let knock = hears(cluster, node, vip);
        assert_eq!(knock.answer, answer, "{node} -> {vip}: {knock}");
    }
}

/// A source in `deny` gets no answer and another one does; with an `allow` list only who is in it
/// does; the longest prefix decides. Established streams of who is denied later go on. Status counts
/// the refusals where they belong, at the service.
#[test]
fn denied_sources_get_no_answer_and_keep_what_they_have() {
    skip_unless_root!();
    let mut cluster = cluster(2);
    let base = services(&mut cluster);
    let watches =
        BOTH.map(|vip| Watches::open(cluster.client(), &cluster.load(vip), 6, PATIENCE).unwrap());
    let silent = [("client", Answer::Silence), (OTHER, Answer::Open)];
    let open = [("client", Answer::Open), (OTHER, Answer::Open)];
    for (lines, expected) in [
        ("", open),
        ("deny = [\"{client}\"]", silent),
        ("allow = [\"{other}\"]", silent),
        ("allow = [\"{other}\", \"{client}\"]", open),
        ("", open),
    ] {
        change(&mut cluster, &base, lines);
        for vip in BOTH {
            expect(&cluster, vip, expected);
        }
        println!("{lines:?}: {expected:?}");
    }
    // The host is denied, its network allowed, and the other way round.
    for (allow, deny, expected) in [
        ("{net}", "{client}", silent),
        ("{other}", "{net}", silent),
        (
            "{client}",
            "{net}",
            [("client", Answer::Open), (OTHER, Answer::Silence)],
        ),
    ] {
        for (vip, net) in BOTH.into_iter().zip(["10.77.0.0/24", "fd77::/64"]) {
            // The other family's service stays as it is.
            let fill = |text: &str| {
                let text = text.replace("{net}", net);
                let text = text.replace("{client}", &host(&cluster, "client", vip));
                text.replace("{other}", &host(&cluster, OTHER, vip))
            };
            let mut text = base.clone();
            let lines = format!("allow = [\"{}\"]\ndeny = [\"{}\"]", fill(allow), fill(deny));
            service_lines(&mut text, vip, &lines);
            change(&mut cluster, &text, "");
            expect(&cluster, vip, expected);
        }
    }
    for watches in &watches {
        watches.wait_events(2, PATIENCE).unwrap();
    }
    for service in cluster.status("m1").unwrap().services {
        let denied = service
            .reasons
            .iter()
            .find(|one| one.reason == "source_denied");
        // Each SYN was repeated once.
        assert!(denied.is_some_and(|one| one.packets >= 6), "{service:?}");
    }
}

/// An address in another network: limited IPv6 sources are networks.
fn elsewhere(vip: IpAddr) -> IpAddr {
    if vip.is_ipv4() {
        Ipv4Addr::new(10, 78, 0, 99).into()
    } else {
        Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 0x99).into()
    }
}

/// One source opens more connections than it may: those above its rate get no answer. Another
/// source is served meanwhile. Without the limit all are.
#[test]
fn a_limited_source_leaves_the_others_alone() {
    skip_unless_root!();
    let mut cluster = cluster(2);
    let base = services(&mut cluster);
    for (vip, bits) in BOTH.into_iter().zip([24, 64]) {
        let address = elsewhere(vip);
        let net = IpNet::new(address, bits).unwrap().trunc();
        let other = cluster.node(OTHER).namespace();
        let own = format!("{address}/{bits}");
        other.add_address(own, "eth0").unwrap();
        for node in cluster.masters() {
            let node = cluster.node(&node).namespace();
            node.ip(&format!("route add {net} dev eth0")).unwrap();
        }
    }
    let limit = "source_limit = { rate = 1, burst = 20 }";
    change(&mut cluster, &base, limit);
    for vip in BOTH {
        let target = SocketAddr::new(vip, 1644);
        let begin = Instant::now();
        let (mut open, mut tried) = (0, 0);
        // The clock gives one more each second: silence comes sooner or later, and soon.
        let silence = loop {
            tried += 1;
            let knock = knock(cluster.client(), target, Duration::from_millis(300)).unwrap();
            match knock.answer {
                Answer::Open => open += 1,
                Answer::Silence => break begin.elapsed(),
                Answer::Refused => panic!("{knock}"),
            }
            assert!(tried < 1000, "{open} of {tried} were let in");
        };
        println!("{vip}: silence after {open} connections in {silence:?}");
        assert!(open >= 20, "{open}");
        assert!(open <= 21 + silence.as_secs(), "{open} in {silence:?}");
        let refused = || cluster.reason("m1", Reason::SourceRate).unwrap();
        let before = refused();
        for _ in 0..15 {
            let other = cluster.node(OTHER);
            let knock = knock_from(other, elsewhere(vip), target, PATIENCE).unwrap();
            assert_eq!(knock.answer, Answer::Open);
        }
        assert_eq!(refused(), before);
    }
    assert!(cluster.reason("m1", Reason::SourceRate).unwrap() >= 2);
    change(&mut cluster, &base, "");
    for vip in BOTH {
        let report = cluster.requests(&cluster.load(vip)).unwrap();
        assert_eq!(report.ok, 1000, "{report}");
    }
}

/// All backends are dead: a connection is refused at once (bar: 10 ms; printed), with
/// `on_no_backend = "drop"` there is no answer, and both can be had while xvip runs.
#[test]
fn without_a_backend_a_connection_is_refused_or_gets_no_answer() {
    skip_unless_root!();
    let mut cluster = cluster(2);
    let base = services(&mut cluster);
    let nodes = cluster.masters();
    for node in &nodes {
        cluster.kill_stand_in(node).unwrap();
    }
    for node in &nodes {
        for seen_by in &nodes {
            cluster.wait_backend(seen_by, node, Down).unwrap();
        }
    }
    for lines in ["", "on_no_backend = \"drop\"", "on_no_backend = \"reset\""] {
        change(&mut cluster, &base, lines);
        for vip in BOTH {
            if lines.contains("drop") {
                let knock = hears(&cluster, "client", vip);
                assert_eq!(knock.answer, Answer::Silence, "{knock}");
                continue;
            }
            let mut times: Vec<_> = (0..50)
                .map(|_| {
                    let knock = hears(&cluster, "client", vip);
                    assert_eq!(knock.answer, Answer::Refused, "{vip}: {knock}");
                    knock.took
                })
                .collect();
            times.sort();
            println!(
                "{vip}: refused 50 times, in {:?} (median), {:?} (slowest); bar: 10 ms",
                times[25], times[49]
            );
        }
    }
    let of = |reason| cluster.reason("m1", reason).unwrap();
    assert!(of(Reason::NoBackend) >= 2 && of(Reason::NoBackendReset) >= 200);
}

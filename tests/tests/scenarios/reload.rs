//! Another configuration while everything runs: what it does not change goes on, what it changes
//! changes at once, and a wrong one changes nothing.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use lb_tests::{
    client::{self, Load, Report},
    cluster::{Cluster, PATIENCE},
    control_plane::{BOTH, ControlPlane, VIP4},
    knock::{Answer, knock},
    reconfigure::{add_backend, service_lines},
    skip_unless_root,
    steady::{Steady, failures},
    watch::Watches,
};
use lb_user::admin::model::{
    AttachedMode,
    BackendState::{Draining, Up},
    VrrpState::{Active, Backup},
};
use nix::sys::signal::Signal;

const PACE: Duration = Duration::from_millis(20);

/// Long enough for a busy machine: a VIP that moves after backends have changed costs connections.
const STEADY_ADVERTS: &str = "1s";

/// Port of the service that is added, and of its backends.
const SECOND: (u16, u16) = (1645, 6444);

/// Three masters, and `b1`, which is no backend yet. Everybody listens on both backend ports.
fn cluster() -> Cluster {
    let mut cluster = Cluster::builder()
        .plain_backends(1)
        .stand_in(&["--listen", "[::]:6443", "--listen", "[::]:6444"])
        .start(|plane| {
            plane.vips = BOTH.into();
            STEADY_ADVERTS.clone_into(&mut plane.advert_interval);
            plane.backends.retain(|node| node.name() != "b1");
        })
        .unwrap();
    cluster.start_stand_in("b1").unwrap();
    cluster
}

/// Adds rules about sources that let the client in, the backend `b1`, and a service on [`SECOND`]
/// to every master's configuration.
fn extend(cluster: &mut Cluster) {
    let mut configs = BTreeMap::new();
    for node in cluster.masters() {
        cluster.edit_config(&node, |config| {
            configs.insert(node.clone(), config.clone());
        });
    }
    for (node, config) in &mut configs {
        for (number, vip) in BOTH.into_iter().enumerate() {
            let rules = if vip.is_ipv4() {
                "allow = [\"10.77.0.0/16\"]\ndeny = [\"10.77.0.99/32\"]"
            } else {
                "allow = [\"fd77::/64\"]\ndeny = [\"fd77::99/128\"]"
            };
            service_lines(config, vip, rules);
            add_backend(config, vip, cluster.node("m1"), 6443, cluster.node("b1"));
            let backend = SocketAddr::new(cluster.node("m2").address_like(vip), SECOND.1);
            let section = format!(
                "[[service]]\nname = \"second-{number}\"\naddress = \"{vip}\"\nport = {}\n\
                 [service.health]\ninterval = \"1s\"\n\
                 [[service.backend]]\nname = \"m2\"\naddress = \"{backend}\"\n",
                SECOND.0
            );
            config.push_str(&section);
        }
        let new = config.clone();
        cluster.edit_config(node, |config| *config = new);
    }
}

fn requests_to(cluster: &Cluster, target: SocketAddr, count: usize) -> Report {
    let load = Load {
        requests: count,
        timeout_ms: 20_000,
        ..Load::new(target)
    };
    let client = cluster.client().namespace();
    client.block_on(|| client::run(&load)).unwrap()
}

/// A client of each VIP that keeps asking.
fn steady_clients(cluster: &Cluster) -> [Steady; 2] {
    BOTH.map(|vip| {
        let load = cluster.load(vip);
        Steady::start(cluster.client(), &load, PACE, PATIENCE).unwrap()
    })
}

fn none_failed(steady: Steady) {
    steady.wait_answers(20, PATIENCE).unwrap();
    let outcomes = steady.finish().unwrap();
    assert_eq!(failures(&outcomes), Vec::<String>::new());
    println!("{} requests, none failed", outcomes.len());
}

/// What must not change on any node: who is Active since which change, and the state of backends
/// that stay.
fn roles(cluster: &Cluster) -> Vec<(String, String, u64)> {
    let mut roles = Vec::new();
    for node in cluster.masters() {
        for vrrp in cluster.status(&node).unwrap().vrrp {
            roles.push((node.clone(), vrrp.state.to_string(), vrrp.transitions));
        }
    }
    roles
}

/// Rules about sources, a backend and a service are added, and taken away again, by `xvip reload`
/// and by SIGHUP. Watch streams go on through all of it, not one request fails, and every VRRP
/// instance stays what it is; only what the backend that was taken away serves ends, by a reset.
#[test]
fn a_reload_adds_and_removes_and_keeps_everything_else() {
    skip_unless_root!();
    let mut cluster = cluster();
    let watches = BOTH.map(|vip| {
        let load = cluster.load(vip);
        Watches::open(cluster.client(), &load, 12, PATIENCE).unwrap()
    });
    let steady = steady_clients(&cluster);
    let before = roles(&cluster);
    let mut first = BTreeMap::new();
    for node in cluster.masters() {
        cluster.edit_config(&node, |config| {
            first.insert(node.clone(), config.clone());
        });
    }

    extend(&mut cluster);
    for node in cluster.masters() {
        let changes = cluster.reload(&node).unwrap();
        for expected in [
            "service \"apiserver-v4\": changed",
            "service \"apiserver-v6\", backend \"b1\": added",
            "service \"second-0\": added",
        ] {
            assert!(changes.contains(expected), "{changes}");
        }
    }
    cluster.wait_settled("m1").unwrap();
    for vip in BOTH {
        let report = cluster.requests(&cluster.load(vip)).unwrap();
        assert_eq!(report.ok, 1000, "{report}");
        assert_eq!(report.by_node.len(), 4, "{report}");
        let report = requests_to(&cluster, SocketAddr::new(vip, SECOND.0), 50);
        assert_eq!(report.by_node, BTreeMap::from([("m2".to_owned(), 50)]));
    }
    assert_eq!(roles(&cluster), before);
    for watches in &watches {
        watches.wait_events(2, PATIENCE).unwrap();
    }

    steady.into_iter().for_each(none_failed);

    // A new stream at each backend, that of b1 among them.
    let late = BOTH.map(|vip| {
        let load = cluster.load(vip);
        Watches::open(cluster.client(), &load, 24, PATIENCE).unwrap()
    });
    let steady = steady_clients(&cluster);
    for (node, config) in first {
        cluster.edit_config(&node, |now| *now = config);
        // Writes the file.
        cluster.cli(&node, &["check"]).unwrap();
        cluster.xvip(&node).signal(Signal::SIGHUP).unwrap();
        cluster
            .wait("the second reload", || {
                let config = cluster.status(&node)?.config;
                Ok((config.reloads == 2).then_some(()))
            })
            .unwrap();
        assert_eq!(cluster.status(&node).unwrap().services.len(), 2);
    }
    let removed = Instant::now();
    for (vip, late) in BOTH.into_iter().zip(late) {
        let of_b1 = late.by_node().get("b1").copied().unwrap_or(0);
        assert!(of_b1 > 0, "{:?}", late.by_node());
        // They hear of it with their next packet, or at once.
        cluster
            .wait("the streams of b1 to end", || {
                Ok((late.ended().len() == of_b1).then_some(()))
            })
            .unwrap();
        for (node, why) in late.ended() {
            assert_eq!(node, "b1");
            assert!(why.contains("reset"), "{why}");
        }
        let target = SocketAddr::new(vip, SECOND.0);
        let knock = knock(cluster.client(), target, PATIENCE).unwrap();
        assert_eq!(knock.answer, Answer::Refused);
    }
    for watches in &watches {
        watches.wait_events(2, PATIENCE).unwrap();
    }
    // Requests that b1 was answering end as its streams do.
    for steady in steady {
        steady.wait_answers(20, PATIENCE).unwrap();
        let outcomes = steady.finish().unwrap();
        let (during, after): (Vec<_>, Vec<_>) = outcomes
            .into_iter()
            .partition(|outcome| outcome.begun < removed);
        let (lost, begun) = (failures(&during), during.len());
        println!(
            "{} of {begun} requests while it was reduced were reset",
            lost.len()
        );
        assert!(lost.iter().all(|why| why.contains("reset")), "{lost:?}");
        assert_eq!(failures(&after), Vec::<String>::new());
    }
    assert_eq!(roles(&cluster), before);
}

/// A file with errors is refused with their places, on the command line, in the log and in status,
/// and so is a change that needs a restart; the configuration before goes on until the file is good.
#[test]
fn a_wrong_configuration_changes_nothing() {
    skip_unless_root!();
    let steady =
        |plane: &mut ControlPlane<'_>| STEADY_ADVERTS.clone_into(&mut plane.advert_interval);
    let mut cluster = Cluster::builder().start(steady).unwrap();
    let mut good = String::new();
    cluster.edit_config("m1", |config| good.clone_from(config));
    let watches = Watches::open(cluster.client(), &cluster.load(VIP4), 6, PATIENCE).unwrap();
    let before = cluster.status("m1").unwrap();
    let line = good.lines().position(|line| line == "port = 1644").unwrap() + 1;

    let cgroup = cluster.node("m1").cgroup().display().to_string();
    let cases = [
        (
            good.replace("port = 1644", "port = 164400"),
            3,
            format!("xvip.toml:{line}:8: service[0].port: 164400 is out of range"),
        ),
        (
            good.replace("[[vrrp]]", "[[vrrp"),
            3,
            "xvip.toml:".to_owned(),
        ),
        (
            good.replace(&format!("cgroup = \"{cgroup}\""), "cgroup = \"off\""),
            1,
            format!(
                "node.cgroup: cannot change while xvip runs; write \"{cgroup}\" as before, or restart xvip"
            ),
        ),
    ];
    for (number, (config, code, message)) in cases.into_iter().enumerate() {
        assert_ne!(config, good);
        cluster.edit_config("m1", |text| *text = config);
        let output = cluster.cli("m1", &["reload"]).unwrap().output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{number}: {error}");
        assert!(error.contains(&message), "{number}: {error}");
        cluster.xvip("m1").signal(Signal::SIGHUP).unwrap();
        cluster
            .xvip("m1")
            .wait_for_output(&message, PATIENCE)
            .unwrap();
        let status = cluster.status("m1").unwrap();
        let refused = status.config.refused.unwrap();
        assert!(refused.error.contains(&message), "{}", refused.error);
        assert_eq!(status.config.reloads, 0);
        assert_eq!(status.services[0].port, before.services[0].port);
        // The command line finds its way all the same.
        let output = cluster.cli("m1", &["status"]).unwrap().output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("the configuration was refused"), "{text}");
    }
    watches.wait_events(2, PATIENCE).unwrap();
    let report = cluster.requests(&cluster.load(VIP4)).unwrap();
    assert_eq!(report.ok, 1000, "{report}");

    cluster.edit_config("m1", |text| *text = good);
    assert_eq!(cluster.reload("m1").unwrap(), "nothing has changed\n");
    let status = cluster.status("m1").unwrap();
    assert_eq!((status.config.reloads, status.config.refused), (1, None));
    assert_eq!(status.vrrp[0].transitions, before.vrrp[0].transitions);
}

/// Checks, priority, addresses and instances change at run time: another check makes a backend
/// that is not ready UP, the VIP goes to who has the highest priority now, an instance takes a
/// further address, and another instance begins with a service of its own.
#[test]
fn checks_and_instances_change_while_they_run() {
    skip_unless_root!();
    let mut cluster = Cluster::builder()
        .stand_in(&["--listen", "[::]:6443"])
        .start(|_| {})
        .unwrap();
    let watches = Watches::open(cluster.client(), &cluster.load(VIP4), 6, PATIENCE).unwrap();

    cluster.stand_in("m2").signal(Signal::SIGUSR1).unwrap();
    cluster.wait_backend("m1", "m2", Draining).unwrap();
    cluster.edit_all(|config| *config = config.replace("type = \"https\"", "type = \"tls\""));
    cluster.reload_all().unwrap();
    cluster.wait_backend("m1", "m2", Up).unwrap();

    cluster.edit_config("m1", |config| {
        *config = config.replace("priority = 200", "priority = 100");
    });
    assert_eq!(cluster.reload("m1").unwrap(), "vrrp \"v4\": changed\n");
    cluster.wait_state("m2", Active).unwrap();
    cluster.wait_state("m1", Backup).unwrap();

    let more: IpAddr = "10.77.0.101".parse().unwrap();
    let [_, vip6] = BOTH;
    let backend = SocketAddr::new(cluster.node("m3").address_like(vip6), 6443);
    cluster.edit_all(|config| {
        let place = format!("addresses = [\"{VIP4}/24\"]");
        *config = config.replace(
            &place,
            &format!("addresses = [\"{VIP4}/24\", \"{more}/24\"]"),
        );
        let section = format!(
            "[[vrrp]]\nname = \"v6\"\ninterface = \"eth0\"\nvrid = 52\npriority = 100\n\
             advert_interval = \"200ms\"\naddresses = [\"{vip6}/128\"]\n\
             [[service]]\nname = \"v6\"\naddress = \"{vip6}\"\nport = 1644\n\
             [[service.backend]]\nname = \"m3\"\naddress = \"{backend}\"\n"
        );
        config.push_str(&section);
    });
    cluster.reload_all().unwrap();
    cluster.wait_has("m2", "eth0", more, true).unwrap();
    cluster
        .wait("an owner of the new instance", || {
            let mut owners = 0;
            for node in cluster.masters() {
                let status = cluster.status(&node)?;
                owners += usize::from(status.vrrp[1].state == Active);
                let mut backends = status.services.iter().flat_map(|s| &s.backends);
                if backends.any(|backend| backend.state != Up || !backend.resolved) {
                    return Ok(None);
                }
            }
            Ok((owners == 1).then_some(()))
        })
        .unwrap();
    let report = requests_to(&cluster, SocketAddr::new(vip6, 1644), 50);
    assert_eq!(report.by_node, BTreeMap::from([("m3".to_owned(), 50)]));
    let report = cluster.requests(&cluster.load(VIP4)).unwrap();
    assert_eq!(report.ok, 1000, "{report}");
    watches.wait_events(2, PATIENCE).unwrap();

    // And away with it: the owner resigns, nobody has its address any more.
    cluster.edit_all(|config| {
        *config = config.replace(&format!(", \"{more}/24\""), "");
        let end = config.rfind("[[vrrp]]").unwrap();
        config.truncate(end);
    });
    cluster.reload_all().unwrap();
    for node in cluster.masters() {
        cluster.wait_has(&node, "eth0", more, false).unwrap();
        cluster.wait_has(&node, "eth0", vip6, false).unwrap();
        cluster.wait_has(&node, "lo", vip6, false).unwrap();
    }
    watches.wait_events(2, PATIENCE).unwrap();
}

/// Backends are taken out of the services while their apiservers run: the streams that they serve
/// end by a reset, in every method, those of the backend that is left go on, and nobody else is
/// asked from then on.
#[test]
fn streams_of_removed_backends_are_reset_in_every_method() {
    skip_unless_root!();
    let mut cluster = Cluster::builder()
        .plain_backends(1)
        .stand_in(&["--listen", "[::]:6443"])
        .start(|plane| {
            plane.vips = BOTH.into();
            STEADY_ADVERTS.clone_into(&mut plane.advert_interval);
        })
        .unwrap();
    let watches = BOTH.map(|vip| {
        let load = cluster.load(vip);
        Watches::open(cluster.client(), &load, 32, PATIENCE).unwrap()
    });
    // m1 is the owner's own (local), m3 another master's (dsr), b1 has no xvip (nat).
    let removed = ["m1", "m3", "b1"];
    for node in cluster.masters() {
        let text = BOTH.into_iter().flat_map(|vip| {
            removed.map(|name| {
                let address = SocketAddr::new(cluster.node(name).address_like(vip), 6443);
                format!("[[service.backend]]\nname = \"{name}\"\naddress = \"{address}\"\n")
            })
        });
        let text: Vec<_> = text.collect();
        cluster.edit_config(&node, |config| {
            for section in &text {
                *config = config.replace(section, "");
            }
        });
    }
    cluster.reload_all().unwrap();
    for watches in &watches {
        let by_node = watches.by_node();
        let lost: usize = removed.iter().filter_map(|name| by_node.get(*name)).sum();
        assert!(
            removed.iter().all(|name| by_node.contains_key(*name)),
            "{by_node:?}"
        );
        cluster
            .wait("the streams of removed backends to end", || {
                Ok((watches.ended().len() >= lost).then_some(()))
            })
            .unwrap();
        for (node, why) in watches.ended() {
            assert!(removed.contains(&node.as_str()), "{node}: {why}");
            assert!(why.contains("reset"), "{node}: {why}");
        }
        assert_eq!(watches.ended().len(), lost);
    }
    for vip in BOTH {
        let report = cluster.requests(&cluster.load(vip)).unwrap();
        assert_eq!(report.by_node, BTreeMap::from([("m2".to_owned(), 1000)]));
    }
}

/// Another way of attachment, and limits of new flows, at run time: streams go on, and every mode
/// forwards both families.
#[test]
fn the_way_of_attachment_changes_under_streams() {
    skip_unless_root!();
    let mut cluster = Cluster::builder()
        .masters(2)
        .stand_in(&["--listen", "[::]:6443"])
        .start(|plane| {
            plane.vips = BOTH.into();
            STEADY_ADVERTS.clone_into(&mut plane.advert_interval);
            "attach = \"auto\"".clone_into(&mut plane.node);
        })
        .unwrap();
    let watches = BOTH.map(|vip| {
        let load = cluster.load(vip);
        Watches::open(cluster.client(), &load, 8, PATIENCE).unwrap()
    });
    let before = roles(&cluster);
    let mut last = "attach = \"auto\"".to_owned();
    for (mode, expected) in [
        // Not from generic to native: these exclude each other, and there is a gap between them.
        ("generic", AttachedMode::Generic),
        ("tc", AttachedMode::Tc),
        ("native", AttachedMode::Native),
    ] {
        let next = format!("attach = \"{mode}\"\nnew_flow_limit = 5000\nadoption_limit = 100");
        cluster.edit_all(|config| *config = config.replace(&last, &next));
        last = next;
        cluster.reload_all().unwrap();
        for node in cluster.masters() {
            cluster
                .wait("the other mode", || {
                    let attached = cluster.status(&node)?.data_plane.attach;
                    Ok((attached[0].mode == expected).then_some(()))
                })
                .unwrap();
        }
        for (vip, watches) in BOTH.into_iter().zip(&watches) {
            watches.wait_events(2, PATIENCE).unwrap();
            let report = cluster.requests(&cluster.load(vip)).unwrap();
            assert_eq!(report.ok, 1000, "{mode}: {report}");
        }
    }
    assert_eq!(roles(&cluster), before);
}

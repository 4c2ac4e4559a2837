//! The topology itself: what every other scenario relies on.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use lb_tests::{
    client::{self, Load},
    control_plane::{ControlPlane, VIP4, VIP6},
    skip_unless_root,
    topology::Topology,
};

const SOON: Duration = Duration::from_secs(10);

/// A client reaches a dual-stack stand-in over IPv4 and IPv6, from a few source ports that it
/// uses again and again, and is seen by its own addresses.
#[test]
fn nodes_reach_each_other_over_both_families() {
    skip_unless_root!();
    for offload in [false, true] {
        let builder = Topology::builder().node("m1").node("client");
        let net = builder.tx_offload(offload).build().unwrap();
        let server = net
            .node("m1")
            .stand_in(&["--listen", "[::]:6443", "--mptcp"])
            .unwrap();
        server.wait_for_output("ready", SOON).unwrap();
        let (m1, from) = (net.node("m1"), net.node("client"));
        for address in [IpAddr::from(m1.ipv4()), m1.ipv6().into()] {
            let load = Load {
                requests: 100,
                source_ports: Some(40000..=40039),
                ..Load::new((address, 6443).into())
            };
            let report = from.namespace().block_on(|| client::run(&load)).unwrap();
            assert_eq!(report.ok, 100, "offload {offload}: {report}");
            assert_eq!(report.by_node.get("m1"), Some(&100), "{report}");
            let own = BTreeSet::from([from.address_like(address)]);
            assert_eq!(report.client_addresses, own);
        }
    }
}

/// A cut link loses everything, a joined one works again.
#[test]
fn a_cut_link_is_silent_until_it_is_joined() {
    skip_unless_root!();
    let net = Topology::builder().node("m1").node("m2").build().unwrap();
    let ping = |wait: &str| {
        let m2 = net.node("m2").ipv4().to_string();
        let target = format!("{m2}:6443");
        let load = Load {
            timeout_ms: wait.parse().unwrap(),
            ..Load::new(target.parse().unwrap())
        };
        let namespace = net.node("m1").namespace();
        namespace.block_on(|| async { Ok(client::request(&load).await) })
    };
    let server = net.node("m2").stand_in(&[]).unwrap();
    server.wait_for_output("ready", SOON).unwrap();
    assert_eq!(ping("5000").unwrap().unwrap().node, "m2");
    net.cut("m2").unwrap();
    assert!(ping("200").unwrap().is_err());
    net.join("m2").unwrap();
    assert_eq!(ping("5000").unwrap().unwrap().node, "m2");
}

/// Readiness is switched by signal while the node keeps answering.
#[test]
fn the_stand_in_turns_unready_and_ready() {
    skip_unless_root!();
    let net = Topology::builder().node("m1").build().unwrap();
    let m1 = net.node("m1");
    let server = m1.stand_in(&["--plain"]).unwrap();
    server.wait_for_output("ready", SOON).unwrap();
    let url = "http://10.77.0.11:6443/readyz";
    let becomes = |status: &str| {
        lb_tests::process::wait_until(status, SOON, || {
            let code = m1.run(
                "curl",
                &["-s", "-o", "/dev/null", "-w", "%{http_code}", url],
            )?;
            Ok((code == status).then_some(()))
        })
    };
    becomes("200").unwrap();
    server.signal(nix::sys::signal::Signal::SIGUSR1).unwrap();
    becomes("500").unwrap();
    server.signal(nix::sys::signal::Signal::SIGUSR2).unwrap();
    becomes("200").unwrap();
}

/// Nothing is left of a topology, whatever still ran in it: no namespace, cgroup, pin, directory
/// or process, also when the scenario panics.
#[test]
fn a_panicking_scenario_leaves_nothing_behind() {
    skip_unless_root!();
    let (paths, orphan) = {
        let (send, receive) = std::sync::mpsc::channel();
        let scenario = std::thread::spawn(move || {
            let net = Topology::builder().node("m1").build().unwrap();
            let node = net.node("m1");
            std::fs::create_dir_all(node.pins()).unwrap();
            // An orphan: only the node's cgroup knows it.
            let script = "sleep 1000 >/dev/null 2>&1 & echo $!";
            let orphan = node.run("sh", &["-c", script]).unwrap();
            assert!(process(&orphan).exists());
            let paths = [
                node.namespace().path(),
                net.bridge().path(),
                node.cgroup().to_owned(),
                node.pins(),
                node.directory().to_owned(),
            ];
            assert!(paths.iter().all(|path| path.exists()));
            send.send((paths, orphan)).unwrap();
            panic!("the scenario fails, as this test wants");
        });
        assert!(scenario.join().is_err());
        receive.recv().unwrap()
    };
    for path in paths {
        assert!(!path.exists(), "{} is left", path.display());
    }
    // Whoever adopted the orphan may not have waited for it yet.
    let stat = std::fs::read_to_string(process(&orphan).join("stat"));
    assert!(stat.is_err() || stat.unwrap().contains(") Z "));
}

fn process(pid: &str) -> PathBuf {
    Path::new("/proc").join(pid.trim())
}

/// What the control plane writes for each of its masters is a valid configuration.
#[test]
fn the_configurations_of_a_control_plane_are_valid() {
    skip_unless_root!();
    let builder = Topology::builder().node("m1").node("m2").node("plain");
    let net = builder.build().unwrap();
    let mut plane = ControlPlane::new(&net.nodes()[..2]);
    plane.backends = net.nodes().iter().collect();
    plane.vips = vec![VIP4.into(), VIP6.into()];
    for master in plane.masters.clone() {
        let facts = lb_user::config::HostFacts {
            hostname: "host".into(),
        };
        let text = plane.config(master);
        let read = |path: &Path| std::fs::read(path);
        let config = lb_user::config::parse(&text, "xvip.toml", &facts, &read)
            .unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        assert_eq!(config.node.instance, master.instance());
        assert_eq!(config.peers.len(), 1);
        assert_eq!(config.vrrp.len(), 2);
        assert!(
            config
                .services
                .iter()
                .all(|service| service.backends.len() == 3)
        );
    }
}

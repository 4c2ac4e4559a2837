//! A backend that dies never hangs its clients: whatever became of it, and whatever is between, they
//! see a reset within a second of its being declared DOWN.

use std::{
    io::{self, Write},
    net::IpAddr,
    num::NonZeroUsize,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use lb_common::reason::Reason;
use lb_tests::{
    client::Load,
    cluster::{Builder, Cluster, PATIENCE},
    control_plane::{BOTH, VIP4, VIP6},
    endpoint::{connect, was_reset},
    kernel,
    netns::{NetNs, unique},
    process::{Process, output},
    skip_unless_root,
    standin::content,
    watch::Watches,
};
use lb_user::admin::model::{
    BackendState::{Down, Draining},
    VrrpState,
};
use nix::sys::signal::Signal;

/// Streams of each family.
const STREAMS: usize = 100;
/// What the clients may wait once the backend is DOWN.
const BAR: Duration = Duration::from_secs(1);

/// Three masters, and `b1` behind nat.
fn builder() -> Builder {
    Cluster::builder()
        .plain_backends(1)
        .stand_in(&["--listen", "[::]:6443"])
}

fn cluster() -> Cluster {
    builder().start(|plane| plane.vips = BOTH.into()).unwrap()
}

/// Does something while `backend` is the only one that gets new connections, as `owner` sees it: the
/// others are not ready.
fn with_only<T>(cluster: &Cluster, owner: &str, backend: &str, work: impl FnOnce() -> T) -> T {
    let others = ["m1", "m2", "m3", "b1"].into_iter();
    let others = others.filter(|other| *other != backend);
    for other in others.clone() {
        cluster.stand_in(other).signal(Signal::SIGUSR1).unwrap();
    }
    for other in others.clone() {
        cluster.wait_backend(owner, other, Draining).unwrap();
    }
    let done = work();
    for other in others {
        cluster.stand_in(other).signal(Signal::SIGUSR2).unwrap();
    }
    cluster.wait_settled("m1").unwrap();
    done
}

/// Streams of both families that are all served by `backend`, from the client's node or from a
/// namespace behind it.
fn streams_on(cluster: &Cluster, backend: &str, behind: Option<&NetNs>) -> [Watches; 2] {
    let namespace = behind.unwrap_or(cluster.client().namespace());
    let watches = with_only(cluster, "m1", backend, || {
        BOTH.map(|vip| {
            let load = cluster.load(vip);
            Watches::open_in(namespace, &load, STREAMS, PATIENCE).unwrap()
        })
    });
    for watches in &watches {
        let by_node = watches.by_node();
        assert_eq!(by_node.get(backend), Some(&STREAMS), "{by_node:?}");
    }
    watches
}

/// All streams end by a reset, no later than the bar after `backend` is DOWN on m1.
fn assert_reset(cluster: &Cluster, backend: &str, what: &str, watches: &[Watches]) {
    cluster.wait_backend("m1", backend, Down).unwrap();
    let down = Instant::now();
    for watches in watches {
        let ended = watches.wait_ended(PATIENCE).unwrap();
        let last = ended.iter().map(|ended| ended.at).max().unwrap();
        let after = last.saturating_duration_since(down);
        println!(
            "{backend} {what}: all {} streams reset within {after:?} of DOWN",
            ended.len()
        );
        let other = ended.iter().find(|ended| !ended.why.contains("reset"));
        assert!(other.is_none(), "{other:?}");
        assert!(after < BAR, "{backend} {what}: {after:?}");
    }
}

/// The backend's kernel has been told as well: it holds no connection of the service any more, also
/// where the process that had them is frozen.
fn assert_told(cluster: &Cluster, backend: &str) {
    let node = cluster.node(backend).namespace();
    cluster
        .wait("the backend's kernel to have no connection", || {
            let mut ss = node.command("ss");
            let all = output(ss.args(["-Htn", "state", "established", "sport", "= :6443"]))?;
            // The others are the checks'.
            let of_clients = |line: &&str| BOTH.iter().any(|vip| line.contains(&vip.to_string()));
            Ok((all.lines().filter(of_clients).count() == 0).then_some(()))
        })
        .unwrap();
}

/// A frozen apiserver: its kernel holds the connections, so that nobody but xvip tells the clients.
/// Local at the owner, by dsr, and by nat.
#[test]
fn a_frozen_backend_resets_its_clients() {
    skip_unless_root!();
    let cluster = cluster();
    for backend in ["m1", "m2", "b1"] {
        let watches = streams_on(&cluster, backend, None);
        cluster.stand_in(backend).freeze().unwrap();
        assert_reset(&cluster, backend, "frozen", &watches);
        assert_told(&cluster, backend);
        cluster.stand_in(backend).resume().unwrap();
        cluster.wait_settled("m1").unwrap();
    }
}

/// The owner needs nobody's help: the xvip beside the frozen apiserver is dead, too.
#[test]
fn the_owner_alone_resets_the_clients() {
    skip_unless_root!();
    let mut cluster = cluster();
    let watches = streams_on(&cluster, "m2", None);
    cluster.kill_xvip("m2").unwrap();
    cluster.stand_in("m2").freeze().unwrap();
    assert_reset(&cluster, "m2", "frozen without xvip", &watches);
    assert_told(&cluster, "m2");
}

/// Nodes that are gone with all that was on them.
#[test]
fn a_lost_node_resets_its_clients() {
    skip_unless_root!();
    let cluster = cluster();
    for backend in ["m2", "b1"] {
        let watches = streams_on(&cluster, backend, None);
        cluster.net().cut(backend).unwrap();
        assert_reset(&cluster, backend, "cut off", &watches);
        cluster.net().join(backend).unwrap();
        cluster.wait_settled("m1").unwrap();
    }
}

/// An apiserver that is killed: its kernel tells the clients, and xvip need not.
#[test]
fn a_killed_backend_resets_its_clients() {
    skip_unless_root!();
    let mut cluster = cluster();
    for backend in ["m1", "m2", "b1"] {
        let watches = streams_on(&cluster, backend, None);
        cluster.kill_stand_in(backend).unwrap();
        cluster.wait_backend("m1", backend, Down).unwrap();
        let down = Instant::now();
        for watches in &watches {
            let ended = watches.wait_ended(PATIENCE).unwrap();
            let last = ended.iter().map(|ended| ended.at).max().unwrap();
            let after = last.saturating_duration_since(down);
            println!(
                "{backend} killed: all {} streams ended within {after:?}",
                ended.len()
            );
            assert!(after < BAR, "{after:?}");
        }
        cluster.start_stand_in(backend).unwrap();
        cluster.wait_settled("m1").unwrap();
    }
}

/// An apiserver that says that it is not ready keeps its streams, and gets no new one.
#[test]
fn an_unready_backend_keeps_its_clients() {
    skip_unless_root!();
    let cluster = cluster();
    let watches = streams_on(&cluster, "m2", None);
    cluster.stand_in("m2").signal(Signal::SIGUSR1).unwrap();
    cluster.wait_backend("m1", "m2", Draining).unwrap();
    for (vip, watches) in BOTH.into_iter().zip(&watches) {
        let report = cluster.requests(&cluster.load(vip)).unwrap();
        assert_eq!(
            (report.ok, report.by_node.get("m2")),
            (1000, None),
            "{report}"
        );
        watches.wait_events(2, PATIENCE).unwrap();
    }
}

/// With `on_backend_down = "keep"` clients of a dead backend wait, and go on when it does; new ones
/// go elsewhere.
#[test]
fn kept_clients_go_on_when_the_backend_does() {
    skip_unless_root!();
    let cluster = builder()
        .start(|plane| {
            plane.vips = BOTH.into();
            "on_backend_down = \"keep\"".clone_into(&mut plane.service);
        })
        .unwrap();
    for backend in ["m1", "m2", "b1"] {
        let watches = streams_on(&cluster, backend, None);
        cluster.stand_in(backend).freeze().unwrap();
        cluster.wait_backend("m1", backend, Down).unwrap();
        let report = cluster.requests(&cluster.load(VIP4)).unwrap();
        assert_eq!(
            (report.ok, report.by_node.get(backend)),
            (1000, None),
            "{report}"
        );
        cluster.stand_in(backend).resume().unwrap();
        for watches in &watches {
            watches.wait_events(2, PATIENCE).unwrap();
        }
        cluster.wait_settled("m1").unwrap();
    }
}

/// A network behind the client's node, which forwards.
struct Inner {
    namespace: NetNs,
}

impl Inner {
    /// `10.88.0.2/24` and `fd88::2/64` behind the client's node, whose rules are `ruleset` (nftables).
    fn new(cluster: &Cluster, ruleset: &str) -> Self {
        let namespace = NetNs::new("inner").unwrap();
        let router = cluster.client().namespace();
        let far = namespace.name();
        router
            .ip(&format!(
                "link add inner type veth peer name eth0 netns {far}"
            ))
            .unwrap();
        let ends = [(router, "inner", 1), (&namespace, "eth0", 2)];
        for (end, name, host) in ends {
            end.ip(&format!("link set {name} up")).unwrap();
            for address in [format!("10.88.0.{host}/24"), format!("fd88::{host}/64")] {
                end.add_address(address, name).unwrap();
            }
        }
        namespace.ip("route add default via 10.88.0.1").unwrap();
        namespace.ip("-6 route add default via fd88::1").unwrap();
        router
            .enter(|| {
                kernel::sysctl("net/ipv4/ip_forward", "1")?;
                kernel::sysctl("net/ipv6/conf/all/forwarding", "1")
            })
            .unwrap();
        output(router.command("nft").arg(ruleset)).unwrap();
        let (v4, v6) = (cluster.client().ipv4(), cluster.client().ipv6());
        for node in ["m1", "m2", "m3", "b1"] {
            let node = cluster.node(node).namespace();
            node.ip(&format!("route add 10.88.0.0/24 via {v4}"))
                .unwrap();
            node.ip(&format!("-6 route add fd88::/64 via {v6}"))
                .unwrap();
        }
        Self { namespace }
    }
}

/// Resets of nodes that are gone reach the clients behind a router with these rules.
fn assert_reset_behind(ruleset: &str, what: &str) {
    let cluster = cluster();
    let inner = Inner::new(&cluster, ruleset);
    for backend in ["m2", "b1"] {
        let watches = streams_on(&cluster, backend, Some(&inner.namespace));
        cluster.net().cut(backend).unwrap();
        assert_reset(&cluster, backend, what, &watches);
        cluster.net().join(backend).unwrap();
        cluster.wait_settled("m1").unwrap();
    }
}

/// A firewall that drops what its connection tracking finds invalid lets the resets through.
#[test]
fn clients_behind_a_stateful_firewall_are_reset() {
    skip_unless_root!();
    assert_reset_behind(
        "add table inet guard; \
         add chain inet guard pass { type filter hook forward priority 0; policy drop; }; \
         add rule inet guard pass ct state invalid drop; \
         add rule inet guard pass ct state established,related accept; \
         add rule inet guard pass iifname inner tcp flags & (syn|ack) == syn ct state new accept; \
         add rule inet guard pass meta l4proto ipv6-icmp accept",
        "lost behind a firewall",
    );
}

/// Clients behind one address of a masquerading node are reset, each on its own port.
#[test]
fn clients_behind_masquerade_are_reset() {
    skip_unless_root!();
    assert_reset_behind(
        "add table inet hide; \
         add chain inet hide leave { type nat hook postrouting priority 100; }; \
         add rule inet hide leave oifname eth0 masquerade",
        "lost behind masquerade",
    );
}

/// Processes that follow the watch of `backend` by VIP, on the host of `m3` and in a network of their
/// own as a pod of `m3` has: their `connect()` goes straight to the backend.
fn local_processes(cluster: &Cluster, backend: &str) -> Vec<Process> {
    with_only(cluster, "m3", backend, || begin_processes(cluster, backend))
}

fn begin_processes(cluster: &Cluster, backend: &str) -> Vec<Process> {
    let m3 = cluster.node("m3");
    let networks = [
        ("host", m3.namespace()),
        ("pod", cluster.client().namespace()),
    ];
    let mut processes = Vec::new();
    for (place, network) in networks {
        for vip in [VIP4.to_string(), format!("[{VIP6}]")] {
            let url = format!("https://{vip}:1644/watch");
            let mut curl = network.command("curl");
            curl.args(["-skN", "--max-time", "120", &url]);
            let name = unique(place);
            let log = m3.directory().join(format!("{name}.log"));
            processes.push(Process::spawn(&name, &curl, Some(m3.cgroup()), log).unwrap());
        }
    }
    let served = format!("\"{backend}\"");
    for process in &processes {
        process.wait_for_output(&served, PATIENCE).unwrap();
    }
    processes
}

/// The processes are told within the bar that their connection has ended.
fn assert_processes_reset(cluster: &Cluster, backend: &str, processes: &[Process]) {
    cluster.wait_backend("m3", backend, Down).unwrap();
    let down = Instant::now();
    for process in processes {
        let status = process.wait_exit(PATIENCE).unwrap();
        // `CURLE_RECV_ERROR`: the connection was reset.
        assert_eq!(status.code(), Some(56), "{status}");
    }
    let after = down.elapsed();
    println!("processes ended within {after:?} of DOWN");
    assert!(after < BAR, "{after:?}");
}

/// A process on a master whose `connect()` went straight to another node's backend is reset when
/// that node is gone: nobody is left there who could.
#[test]
fn local_processes_are_reset() {
    skip_unless_root!();
    let mut cluster = cluster();
    let processes = local_processes(&cluster, "m2");
    cluster.kill_xvip("m2").unwrap();
    cluster.net().cut("m2").unwrap();
    assert_processes_reset(&cluster, "m2", &processes);
}

/// The same with the backend on their own node, which is frozen.
#[test]
fn local_processes_of_a_frozen_local_backend_are_reset() {
    skip_unless_root!();
    let cluster = cluster();
    let processes = local_processes(&cluster, "m3");
    cluster.stand_in("m3").freeze().unwrap();
    assert_processes_reset(&cluster, "m3", &processes);
    assert_told(&cluster, "m3");
}

/// How a connection ended that somebody sent by all the time, and when.
type Upload = JoinHandle<(Instant, io::ErrorKind)>;

/// Sends 1 KB of `body` every 10 ms, of which a dead backend acknowledges nothing.
fn upload(cluster: &Cluster, vip: IpAddr, body: Arc<[u8]>) -> Upload {
    let target = cluster.load(vip).target;
    let mut stream = connect(cluster.client(), None, target).unwrap();
    let length = body.len();
    let head =
        format!("POST /bytes HTTP/1.1\r\nHost: {target}\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    thread::spawn(move || {
        for part in body.chunks(1024) {
            if let Err(error) = stream.write_all(part) {
                return (Instant::now(), error.kind());
            }
            thread::sleep(Duration::from_millis(10));
        }
        (Instant::now(), io::ErrorKind::Other)
    })
}

/// Clients that are busy are told like those that wait: their segments are answered.
#[test]
fn busy_clients_are_reset() {
    skip_unless_root!();
    let cluster = Cluster::builder()
        .plain_backends(1)
        .stand_in(&["--listen", "[::]:6443", "--plain"])
        .start(|plane| {
            plane.vips = BOTH.into();
            plane.health = plane.health.replace("https", "http");
        })
        .unwrap();
    // More than can be sent in the time.
    let body: Arc<[u8]> = content(8 << 20).into();
    for backend in ["m2", "b1"] {
        let uploads: Vec<_> = with_only(&cluster, "m1", backend, || {
            let all = BOTH.into_iter().cycle().take(10);
            all.map(|vip| upload(&cluster, vip, body.clone())).collect()
        });
        cluster.net().cut(backend).unwrap();
        cluster.wait_backend("m1", backend, Down).unwrap();
        let down = Instant::now();
        let ends: Vec<_> = uploads
            .into_iter()
            .map(|upload| upload.join().unwrap())
            .collect();
        let last = ends.iter().map(|(at, _)| *at).max().unwrap();
        let after = last.saturating_duration_since(down);
        println!(
            "{backend}: the last of {} uploads ended {after:?} after DOWN",
            ends.len()
        );
        for (_, why) in ends {
            let told = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
            assert!(told.contains(&why), "{backend}: {why}");
        }
        assert!(after < BAR, "{backend}: {after:?}");
        cluster.net().join(backend).unwrap();
        cluster.wait_settled("m1").unwrap();
    }
}

/// The owner is lost, with a backend of its own. The next one has never heard of that backend's
/// connections: who has one is told as soon as it says something.
#[test]
fn clients_of_a_lost_owner_are_reset_when_they_speak() {
    skip_unless_root!();
    let cluster = cluster();
    let connections: Vec<_> = with_only(&cluster, "m1", "m1", || {
        let all = BOTH.into_iter().cycle().take(20);
        let open = |vip| connect(cluster.client(), None, cluster.load(vip).target).unwrap();
        all.map(open).collect()
    });
    cluster.net().cut("m1").unwrap();
    cluster.wait_state("m2", VrrpState::Active).unwrap();
    cluster.wait_backend("m2", "m1", Down).unwrap();
    for mut connection in connections {
        connection.write_all(b"still there?").unwrap();
        assert!(was_reset(&mut connection).unwrap());
    }
}

/// Most apiservers get slow at once, as with a slow etcd: they drain, and not one stream is reset.
#[test]
fn slowness_of_most_backends_resets_nobody() {
    skip_unless_root!();
    let cluster = cluster();
    let watches = BOTH.map(|vip| {
        let load = cluster.load(vip);
        Watches::open(cluster.client(), &load, STREAMS, PATIENCE).unwrap()
    });
    for watches in &watches {
        assert_eq!(watches.by_node().len(), 4, "{:?}", watches.by_node());
    }
    let slow = ["m1", "m2", "b1"];
    for node in slow {
        let address = cluster.node(node).ipv4();
        let url = format!("https://{address}:6443/control?delay_ms=60000");
        let mut curl = cluster.client().namespace().command("curl");
        output(curl.args(["-skf", &url])).unwrap();
    }
    for node in slow {
        cluster.wait_backend("m1", node, Draining).unwrap();
    }
    for (vip, watches) in BOTH.into_iter().zip(&watches) {
        let report = cluster.requests(&cluster.load(vip)).unwrap();
        assert_eq!((report.ok, report.by_node.len()), (1000, 1), "{report}");
        watches.wait_events(2, PATIENCE).unwrap();
    }
    assert_eq!(cluster.reason("m1", Reason::FlowReset).unwrap(), 0);
}

/// A backend without listener is avoided before any check is due, since its node refuses: nobody
/// fails where that node is the owner's own, who asks its kernel before it sends a client there; by
/// nat one client hears the refusal. The refusal is also why the backend is checked, and is DOWN.
#[test]
fn a_refusal_ejects_a_backend_at_once() {
    skip_unless_root!();
    for (backend, failures) in [("m1", 0), ("b1", 1)] {
        let mut cluster = builder()
            .masters(1)
            .start(|plane| {
                plane.vips = BOTH.into();
                plane.health =
                    "type = \"https\"\ninterval = \"60s\"\nfast_interval = \"500ms\"\nfall = 2"
                        .to_owned();
            })
            .unwrap();
        cluster.kill_stand_in(backend).unwrap();
        let killed = Instant::now();
        for vip in BOTH {
            let load = Load {
                requests: 300,
                concurrency: NonZeroUsize::MIN,
                ..cluster.load(vip)
            };
            let report = cluster.requests(&load).unwrap();
            println!("{backend} without listener, {vip}: {report}");
            assert!(report.failed() <= failures, "{report}");
        }
        cluster.wait_backend("m1", backend, Down).unwrap();
        println!("{backend} is DOWN after {:?}", killed.elapsed());
    }
}

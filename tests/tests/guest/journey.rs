//! The life of a control plane between namespaces, once per attach mode: start, requests by every way,
//! takeovers, a restart, dead backends, detach.
//!
//! Everything is an outcome or a count: an emulated machine is twenty times slower than a real one.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use anyhow::Result;
use lb_common::{headers::TcpHeader, reason::Reason};
use lb_tests::{
    client::Load,
    cluster::{Cluster, patience},
    control_plane::{BOTH, VIP4, VIP6},
    flood::Pulse,
    footprint::{BpfIds, Footprint},
    guest,
    packet::{Frame, V4, V6},
    process::output,
    skip_unless_root,
    topology::Node,
    watch::Watches,
};
use lb_user::admin::model::{AttachedMode, BackendState, Method, VrrpState};

/// Streams of each family: enough for each of three backends to get some (all but one in a million times).
const STREAMS: usize = 40;
/// Time between two frames that only count: a frame costs an emulated machine about a millisecond.
fn probe_pace() -> Duration {
    Duration::from_millis(if guest::is_one() { 20 } else { 2 })
}

/// A sender that was not heard for as long as a takeover and a return take waits this long at most.
const RETRANSMISSION: Duration = Duration::from_mins(2);

/// XDP in the driver.
#[test]
fn native_xdp() {
    skip_unless_root!();
    Journey::begin("native", AttachedMode::Native).travel();
}

/// XDP in the network core.
#[test]
fn generic_xdp() {
    skip_unless_root!();
    Journey::begin("generic", AttachedMode::Generic).travel();
}

/// The tc programs: by tcx links, or by filters where the kernel has none. Links leave checksums and
/// segments to each other.
#[test]
fn tc() {
    skip_unless_root!();
    Journey::begin("tc", AttachedMode::Tc).travel();
}

/// Two masters, of which m1 owns both VIPs and has a backend, as m2 has, and a backend behind nat.
struct Journey {
    cluster: Cluster,
    mode: AttachedMode,
    /// What the masters held before xvip was started.
    before: Vec<(String, Footprint)>,
    /// What the kernel held.
    bpf_before: BpfIds,
    /// What the controllers have held.
    bpf: BpfIds,
    begin: Instant,
}

impl Journey {
    fn begin(attach: &str, mode: AttachedMode) -> Self {
        let begin = Instant::now();
        let mut builder = Cluster::builder().masters(2).plain_backends(1).stand_in(&[
            "--listen",
            "[::]:6443",
            "--listen-plain",
            "[::]:6480",
        ]);
        if mode == AttachedMode::Tc {
            builder = builder.without_xdp();
        }
        let prepared = builder.prepare(|plane| {
            plane.vips = BOTH.into();
            // An emulated machine on a busy host was seen to be four seconds late.
            let interval = if guest::is_one() { "3s" } else { "1s" };
            interval.clone_into(&mut plane.advert_interval);
            // A frozen process is DOWN where a handshake is missed. Requests do without: a thousand
            // handshakes are what an emulated machine is slowest at.
            plane.backend_port = 6480;
            let timeout = if guest::is_one() { "4s" } else { "2s" };
            plane.health = format!(
                "type = \"https\"\nport = 6443\ninterval = \"1s\"\ntimeout = \"{timeout}\"\nfall = 2"
            );
            plane.node = format!("attach = \"{attach}\"");
        });
        let cluster = prepared.unwrap();
        let look = |name: String| {
            let seen = Footprint::of(cluster.node(&name)).unwrap();
            (name, seen)
        };
        let before = cluster.masters().into_iter().map(look).collect();
        Self {
            cluster,
            mode,
            before,
            bpf_before: BpfIds::in_kernel(),
            bpf: BpfIds::default(),
            begin,
        }
    }

    fn travel(mut self) {
        self.start();
        self.requests_go_every_way();
        let watches = self.streams();
        self.a_killed_owner_is_replaced_and_adopts(&watches);
        // A guest's time is dear, and this is about signals and adverts, not about its kernel.
        if !guest::is_one() {
            self.a_stopped_owner_is_replaced(&watches);
        }
        self.dead_backends_reset_their_streams(&watches);
        self.detach_leaves_nothing();
    }

    /// Says how long it took until now.
    fn arrived(&self, at: &str) {
        println!("{}: {at} after {:?}", self.mode, self.begin.elapsed());
    }

    fn start(&mut self) {
        for node in self.cluster.masters() {
            self.start_xvip(&node);
        }
        self.cluster.wait_settled("m1").unwrap();
        self.remember();
        for node in self.cluster.masters() {
            let shown = self.cluster.status(&node).unwrap().data_plane;
            println!("{node}: {:?}", shown.attach);
            println!("{node}: {:?}", shown.warnings);
            let modes: Vec<_> = shown.attach.iter().map(|one| one.mode).collect();
            assert_eq!(modes, [self.mode]);
        }
        self.arrived("started");
    }

    fn start_xvip(&mut self, node: &str) {
        self.cluster.start_xvip(node).unwrap();
    }

    /// Keeps the ids of what the controllers hold now.
    fn remember(&mut self) {
        for node in self.cluster.masters() {
            let held = BpfIds::held_by(self.cluster.xvip(&node).pid()).unwrap();
            self.bpf.extend(held);
        }
    }

    /// Packets that m1 has sent by each of the ways.
    fn by_way(&self) -> [u64; 3] {
        let ways: [&[Reason]; 3] = [
            &[Reason::Local],
            &[Reason::Dsr, Reason::DsrRedirect],
            &[Reason::Nat, Reason::NatRedirect],
        ];
        ways.map(|reasons| {
            let counts = reasons.iter().map(|one| self.cluster.reason("m1", *one));
            counts.map(Result::unwrap).sum()
        })
    }

    /// 1,000 requests, none fails, each backend answers as what it is: m1 at the owner, m2 by itself, and
    /// b1 through the owner, whose address it sees.
    fn requests_go_every_way(&self) {
        let method = |name| self.cluster.backend("m1", name).unwrap().method;
        assert_eq!(
            ["m1", "m2", "b1"].map(method),
            [Method::Local, Method::Dsr, Method::Nat]
        );
        for vip in BOTH {
            let before = self.by_way();
            let many = Load {
                requests: 488,
                plain: true,
                ..self.cluster.load(vip)
            };
            let large = Load {
                requests: 12,
                concurrency: NonZeroUsize::MIN.saturating_add(2),
                bytes: 200_000,
                upload: 200_000,
                ..many.clone()
            };
            for load in [many, large] {
                let report = self.cluster.requests(&load).unwrap();
                println!("{vip}: {report}");
                assert_eq!((report.ok, report.failed()), (load.requests, 0), "{report}");
                let own = self.cluster.client().address_like(vip);
                let seen = [("b1", vip), ("m1", own), ("m2", own)];
                let seen = seen.map(|(node, client)| (node.to_owned(), client));
                assert!(report.views.is_subset(&BTreeSet::from(seen)), "{report}");
                if load.requests > 100 {
                    assert_eq!(report.views.len(), 3, "{report}");
                }
            }
            let after = self.by_way();
            let moved = before.iter().zip(&after).all(|(b, a)| b < a);
            assert!(moved, "{vip}: {before:?} {after:?}");
        }
        for node in self.cluster.net().nodes() {
            let bad = self.cluster.bad_checksums(node.name()).unwrap();
            assert_eq!(bad, 0, "{}", node.name());
        }
        self.arrived("1,000 requests");
    }

    /// Some requests; none fails.
    fn works(&self) {
        for vip in BOTH {
            let load = Load {
                requests: 60,
                plain: true,
                ..self.cluster.load(vip)
            };
            let report = self.cluster.requests(&load).unwrap();
            assert_eq!((report.ok, report.failed()), (60, 0), "{report}");
        }
    }

    /// Streams over both families, on every backend.
    fn streams(&self) -> Vec<Watches> {
        let open = |vip: IpAddr| {
            let load = Load {
                plain: true,
                ..self.cluster.load(vip)
            };
            Watches::open(self.cluster.client(), &load, STREAMS, patience()).unwrap()
        };
        let watches: Vec<_> = BOTH.into_iter().map(open).collect();
        for watches in &watches {
            assert_eq!(watches.by_node().len(), 3, "{:?}", watches.by_node());
        }
        watches
    }

    /// The VIPs move from one node to the other, and with them the streams of these backends. Streams by
    /// nat are known to the node alone that they began at: they halt until that has the VIPs again.
    fn moves(&self, from: &str, to: &str, watches: &[Watches], backends: &[&str]) {
        for vip in BOTH {
            self.cluster.wait_has(to, "eth0", vip, true).unwrap();
            self.cluster.wait_has(from, "eth0", vip, false).unwrap();
        }
        self.works();
        for watches in watches {
            watches.wait_events_of(backends, 2, RETRANSMISSION).unwrap();
        }
    }

    /// m1 is killed: m2 takes over. Started again, m1 adopts what it left, gets the VIPs back, and in all
    /// that time its program has counted every packet that came.
    fn a_killed_owner_is_replaced_and_adopts(&mut self, watches: &[Watches]) {
        let links = attach_links(self.cluster.node("m1"));
        let connections = self.cluster.service("m1").unwrap().connections;
        let counted = self.cluster.reason("m1", Reason::BadTcpFlags).unwrap();
        let probes = probes(self.cluster.client(), self.cluster.node("m1"));
        self.cluster.kill_xvip("m1").unwrap();
        self.moves("m1", "m2", watches, &["m1", "m2"]);
        self.arrived("takeover from a killed owner");
        self.start_xvip("m1");
        self.cluster.wait_settled("m1").unwrap();
        self.moves("m2", "m1", watches, &["m1", "m2", "b1"]);
        let sent = u64::from(probes.stop().unwrap());
        self.cluster
            .wait("every probe to be counted", || {
                let now = self.cluster.reason("m1", Reason::BadTcpFlags)? - counted;
                anyhow::ensure!(now <= sent, "{now} counted of {sent}");
                anyhow::ensure!(now == sent, "{now} counted of {sent}");
                Ok(Some(()))
            })
            .unwrap();
        println!("{sent} probes, all counted");
        assert!(sent > 100, "{sent} probes");
        assert_eq!(attach_links(self.cluster.node("m1")), links);
        let now = self.cluster.service("m1").unwrap().connections;
        assert!(now >= connections, "{now} connections after {connections}");
        self.remember();
        self.arrived("restart and return");
    }

    /// m1 is stopped: it gives its VIPs to m2, and gets them back.
    fn a_stopped_owner_is_replaced(&mut self, watches: &[Watches]) {
        self.cluster.stop_xvip("m1").unwrap();
        self.moves("m1", "m2", watches, &["m1", "m2"]);
        self.start_xvip("m1");
        self.cluster.wait_settled("m1").unwrap();
        self.cluster.wait_state("m2", VrrpState::Backup).unwrap();
        self.moves("m2", "m1", watches, &["m1", "m2", "b1"]);
        self.remember();
        self.arrived("stop and return");
    }

    /// Frozen apiservers, whose kernels hold the connections: of the ways by nat and dsr, and the owner's
    /// own. Their idle clients are told by a reset; the streams of the others go on.
    fn dead_backends_reset_their_streams(&self, watches: &[Watches]) {
        let mut dead: Vec<&str> = Vec::new();
        for node in ["b1", "m2", "m1"] {
            self.cluster.stand_in(node).freeze().unwrap();
            dead.push(node);
            for watches in watches {
                let by_node = watches.by_node();
                let expected: usize = dead.iter().map(|node| by_node[*node]).sum();
                self.cluster
                    .wait("the streams of the dead backend to end", || {
                        let ended = watches.ended().len();
                        anyhow::ensure!(ended >= expected, "{ended} of {expected} ended");
                        Ok(Some(()))
                    })
                    .unwrap();
                let ended = watches.ended();
                let other = ended
                    .iter()
                    .find(|(node, why)| !dead.contains(&&**node) || !why.contains("reset"));
                assert_eq!(other, None);
            }
            self.cluster
                .wait_backend("m1", node, BackendState::Down)
                .unwrap();
            self.cluster.stand_in(node).resume().unwrap();
            self.cluster.wait_settled("m1").unwrap();
        }
        self.works();
        self.arrived("dead backends");
    }

    /// `xvip detach` takes back everything.
    fn detach_leaves_nothing(mut self) {
        for node in self.cluster.masters() {
            self.cluster.stop_xvip(&node).unwrap();
        }
        for (node, before) in &self.before {
            let said = output(&mut self.cluster.cli(node, &["detach"]).unwrap()).unwrap();
            assert!(said.contains("removed programs and maps"), "{said}");
            assert!(!self.cluster.node(node).pins().exists());
            self.cluster
                .wait("the node to be as it was", || {
                    let now = Footprint::of(self.cluster.node(node))?;
                    let differences = now.since(before);
                    anyhow::ensure!(differences.is_empty(), "{node}: {differences:#?}");
                    Ok(Some(()))
                })
                .unwrap();
        }
        self.bpf.wait_gone(patience()).unwrap();
        // Elsewhere others load programs, too.
        if guest::is_one() {
            self.bpf_before.wait_alone(patience()).unwrap();
        }
        self.arrived("detached");
    }
}

/// Pins of the links of a node's uplink: the programs that a restart has to leave where they are.
fn attach_links(node: &Node) -> Vec<(String, u32)> {
    let directory = node.pins().join("links");
    let pins = std::fs::read_dir(&directory).unwrap();
    let pins = pins.map(|pin| pin.unwrap().path());
    let mut links: Vec<_> = pins
        .filter_map(|pin| {
            let name = pin.file_name()?.to_str()?.to_owned();
            let of_uplink = name.starts_with("xdp_") || name.starts_with("tc_");
            of_uplink.then(|| (name, link_id(&pin)))
        })
        .collect();
    links.sort();
    links
}

fn link_id(pin: &std::path::Path) -> u32 {
    let link = aya::programs::links::PinnedLink::from_pin(pin).unwrap();
    let link = aya::programs::links::FdLink::from(link);
    link.info().unwrap().id()
}

/// Frames that do nothing but count: segments to the VIPs with flags that no stack sends, addressed to
/// one node whether it owns the VIPs or not.
fn probes(from: &Node, to: &Node) -> Pulse {
    let (own, to) = (from.mac(), to.mac());
    let (own4, own6) = (from.ipv4().octets(), from.ipv6().octets());
    let flags = TcpHeader::SYN | TcpHeader::FIN;
    Pulse::start(from, probe_pace(), move |number| {
        if number % 2 == 0 {
            let frame = Frame::<V4>::tcp(flags, 1, 1, &[]).macs(own, to);
            frame.src(own4).dst(VIP4.octets()).dport(1644).emit()
        } else {
            let frame = Frame::<V6>::tcp(flags, 1, 1, &[]).macs(own, to);
            frame.src(own6).dst(VIP6.octets()).dport(1644).emit()
        }
    })
}

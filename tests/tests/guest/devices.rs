//! Devices as uplinks that users have and the kernel of a test machine may lack: VLANs, bonds, bridges,
//! macvlans, jumbo frames; and an address on a dummy. Real packets, both families, by every way, in each
//! attach mode that the device has.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use anyhow::ensure;
use lb_common::reason::Reason;
use lb_tests::{
    client::Load,
    cluster::{Builder, Cluster, patience},
    control_plane::{BOTH, ControlPlane},
    device::{BondMode, Device},
    footprint::Footprint,
    guest,
    netns::NetNs,
    process::output,
    skip, skip_unless_root,
    steady::Steady,
};
use lb_user::admin::model::{AttachedMode, Method, VrrpState};

/// Requests of each family in each mode: each of three backends gets some (all but one in 10^17 times).
const REQUESTS: usize = 100;
/// Between the requests that go on while a link is cut.
const PACE: Duration = Duration::from_millis(20);
/// What is sent to and fetched from a backend in a large request.
const MUCH: usize = 100_000;

const VETH: &str = "is one end of a veth pair";

/// Tagged frames are seen on the link by XDP and on the sub-interface by tc.
#[test]
fn vlan() {
    tagged(Device::Vlan);
}

/// The same with a VLAN of 802.1Q within one of 802.1ad.
#[test]
fn vlan_in_a_vlan() {
    tagged(Device::DoubleVlan);
}

fn tagged(device: Device) {
    skip_unless_root!();
    if lacks("vlan") {
        return;
    }
    let mut trial = Trial::begin(of(device), AttachedMode::Tc, VETH);
    trial.requests();
    trial.takeover();
    trial.switch("native", AttachedMode::Native);
    trial.requests();
    trial.takeover();
    trial.switch("generic", AttachedMode::Generic);
    trial.requests();
    trial.end();
}

/// Where links carry the tags beside the frames, as cards do that take them out, XDP is not tried.
#[test]
fn vlan_whose_tags_are_taken_out() {
    skip_unless_root!();
    if lacks("vlan") {
        return;
    }
    for (device, feature) in [
        (Device::Vlan, "rx-vlan-hw-parse"),
        (Device::DoubleVlan, "rx-vlan-stag-hw-parse"),
    ] {
        let why = format!("ethtool -K port0 {feature} off");
        let mut trial = Trial::begin(of(device).without_xdp(), AttachedMode::Tc, &why);
        trial.requests();
        trial.stays("native", AttachedMode::Tc, &why);
        trial.end();
    }
}

/// One port at a time carries everything.
#[test]
fn bond_active_backup() {
    bonded(BondMode::ActiveBackup);
}

/// Flows are spread over the ports, and native XDP sends by the bond as well.
#[test]
fn bond_balance_xor() {
    bonded(BondMode::BalanceXor);
}

/// The same between two bonds that agree by LACP.
#[test]
fn bond_802_3ad() {
    bonded(BondMode::Lacp);
}

fn bonded(mode: BondMode) {
    skip_unless_root!();
    if lacks("bond") {
        return;
    }
    let mut trial = Trial::begin(of(Device::Bond(mode)), AttachedMode::Tc, VETH);
    trial.requests();
    trial.links_fail();
    // Links do not fail here: an answer by nat would leave by the failed one.
    trial.switch("native", AttachedMode::Native);
    trial.requests();
    trial.takeover();
    trial.switch("generic", AttachedMode::Generic);
    trial.requests();
    trial.end();
}

/// A bridge of the node has no native XDP.
#[test]
fn bridge() {
    skip_unless_root!();
    let mut trial = Trial::begin(of(Device::Bridge), AttachedMode::Tc, "eth0 is a bridge");
    trial.requests();
    trial.takeover();
    trial.stays("native", AttachedMode::Tc, "native XDP was refused");
    trial.switch("generic", AttachedMode::Generic);
    trial.requests();
    trial.end();
}

/// A macvlan's driver has no native XDP.
#[test]
fn macvlan() {
    skip_unless_root!();
    if lacks("macvlan") {
        return;
    }
    let why = "native XDP was refused";
    let mut trial = Trial::begin(of(Device::Macvlan), AttachedMode::Tc, why);
    trial.requests();
    trial.takeover();
    trial.stays("native", AttachedMode::Tc, why);
    trial.switch("generic", AttachedMode::Generic);
    trial.requests();
    trial.end();
}

/// Frames of 9,000 bytes pass whole, in every mode.
#[test]
fn jumbo_frames() {
    skip_unless_root!();
    let mut trial = Trial::begin(of(Device::Link).mtu(9000), AttachedMode::Tc, VETH);
    for (attach, mode) in [
        ("tc", AttachedMode::Tc),
        ("native", AttachedMode::Native),
        ("generic", AttachedMode::Generic),
    ] {
        trial.switch(attach, mode);
        trial.requests();
        let before = trial.clients_traffic();
        for vip in BOTH {
            let report = trial.cluster.requests(&trial.large(vip)).unwrap();
            assert_eq!(report.failed(), 0, "{report}");
        }
        let after = trial.clients_traffic();
        let (packets, bytes) = (after.0 - before.0, after.1 - before.1);
        println!("{mode}: {bytes} bytes in {packets} packets");
        // Many packets carry nothing: others are much larger than frames of the usual size.
        assert!(bytes > packets * 1_500, "{bytes} bytes, {packets} packets");
    }
    trial.end();
}

/// A backend's address may be on a dummy: it is this node's own.
#[test]
fn backend_on_a_dummy() {
    skip_unless_root!();
    if lacks("dummy") {
        return;
    }
    let mut cluster = with_backends(Cluster::builder().masters(1).plain_backends(1))
        .prepare(|plane| {
            plane.vips = BOTH.into();
            calm(plane);
        })
        .unwrap();
    let (m1, service) = (
        cluster.node("m1"),
        [("10.77.1.11", 32), ("fd77:1::11", 128)],
    );
    m1.namespace().ip("link add dummy0 type dummy").unwrap();
    m1.namespace().ip("link set dummy0 up").unwrap();
    for (address, prefix) in service {
        let address = format!("{address}/{prefix}");
        m1.namespace().add_address(address, "dummy0").unwrap();
    }
    cluster.edit_config("m1", |config| {
        *config = config
            .replace("\"10.77.0.11:6443\"", "\"10.77.1.11:6443\"")
            .replace("\"[fd77::11]:6443\"", "\"[fd77:1::11]:6443\"");
    });
    let trial = Trial::start(cluster, &["m1"]);
    assert_eq!(
        trial.cluster.backend("m1", "m1").unwrap().method,
        Method::Local
    );
    trial.requests();
    trial.end();
}

/// Whether this kernel makes no links of a kind; notes a skip if so. The kernels of guests have all.
fn lacks(kind: &str) -> bool {
    let namespace = NetNs::new("kinds").unwrap();
    namespace.ip("link add v0 type veth peer name v1").unwrap();
    let what = match kind {
        "vlan" => "link v0 name x0 type vlan id 5".to_owned(),
        "macvlan" => "link v0 name x0 type macvlan".to_owned(),
        kind => format!("x0 type {kind}"),
    };
    let made = namespace.ip(&format!("link add {what}"));
    if let Err(error) = &made {
        assert!(!guest::is_one(), "{error:#}");
        skip::note(&format!("this kernel has no links of type {kind}"));
    }
    made.is_err()
}

/// Two masters and a backend by nat, with this eth0 each; the client as well.
fn of(device: Device) -> Builder {
    with_backends(Cluster::builder().masters(2).plain_backends(1)).device(device)
}

fn with_backends(builder: Builder) -> Builder {
    builder.stand_in(&["--listen", "[::]:6443", "--plain"])
}

/// Intervals at which an emulated machine that others share is not late.
fn calm(plane: &mut ControlPlane<'_>) {
    "2s".clone_into(&mut plane.advert_interval);
    "type = \"http\"\ninterval = \"2s\"\ntimeout = \"8s\"\nfall = 5".clone_into(&mut plane.health);
}

/// Masters that run.
struct Trial {
    cluster: Cluster,
    /// What they held before xvip was started.
    before: BTreeMap<String, Footprint>,
    /// The backends.
    backends: BTreeSet<String>,
    mode: AttachedMode,
    begin: Instant,
}

impl Trial {
    /// Starts masters that choose their mode: it is `mode`, for a reason with `why` in it.
    fn begin(builder: Builder, mode: AttachedMode, why: &str) -> Self {
        let prepared = builder.prepare(|plane| {
            plane.vips = BOTH.into();
            calm(plane);
            "attach = \"auto\"".clone_into(&mut plane.node);
        });
        let mut trial = Self::start(prepared.unwrap(), &["m1", "m2"]);
        trial.mode = mode;
        trial.shows(mode, why);
        let method = |name| trial.cluster.backend("m1", name).unwrap().method;
        assert_eq!(
            ["m1", "m2", "b1"].map(method),
            [Method::Local, Method::Dsr, Method::Nat]
        );
        trial.arrived("started");
        trial
    }

    fn start(mut cluster: Cluster, masters: &[&str]) -> Self {
        let begin = Instant::now();
        let look = |name: &&str| {
            let seen = Footprint::of(cluster.node(name)).unwrap();
            ((*name).to_owned(), seen)
        };
        let before = masters.iter().map(look).collect();
        for name in masters {
            cluster.start_xvip(name).unwrap();
        }
        cluster.wait_settled("m1").unwrap();
        let backends = cluster.service("m1").unwrap().backends;
        Self {
            cluster,
            before,
            backends: backends.into_iter().map(|own| own.name).collect(),
            mode: AttachedMode::Native,
            begin,
        }
    }

    /// Says how long it took until now.
    fn arrived(&self, at: &str) {
        println!("{}: {at} after {:?}", self.mode, self.begin.elapsed());
    }

    /// Waits until both masters show a mode and a note.
    fn shows(&self, mode: AttachedMode, why: &str) {
        for node in self.before.keys() {
            self.cluster
                .wait(&format!("{node} to show {mode}: {why}"), || {
                    let shown = self.cluster.status(node)?.data_plane.attach;
                    ensure!(shown.len() == 1, "{shown:?}");
                    let note = shown[0].note.as_deref().unwrap_or_default();
                    Ok((shown[0].mode == mode && note.contains(why)).then_some(()))
                })
                .unwrap();
        }
    }

    /// Asks for a mode while the masters run.
    fn ask_for(&mut self, attach: &str) {
        self.cluster.edit_all(|config| {
            let others = config.lines().filter(|line| !line.starts_with("attach = "));
            let others = others.collect::<Vec<_>>().join("\n") + "\n";
            *config = others.replace("[node]\n", &format!("[node]\nattach = \"{attach}\"\n"));
        });
        self.cluster.reload_all().unwrap();
    }

    /// Asks for a mode, which is there.
    fn switch(&mut self, attach: &str, mode: AttachedMode) {
        self.ask_for(attach);
        self.mode = mode;
        self.shows(mode, "");
    }

    /// Asks for a mode that is not there: the one in use goes on.
    fn stays(&mut self, attach: &str, mode: AttachedMode, why: &str) {
        self.ask_for(attach);
        self.shows(mode, why);
        self.shows(mode, "goes on");
        self.some_requests();
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

    /// Packets and bytes of clients that m1 has seen.
    fn clients_traffic(&self) -> (u64, u64) {
        let services = self.cluster.status("m1").unwrap().services;
        let sum = services.iter().map(|one| (one.packets, one.bytes));
        sum.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
    }

    /// A few requests of many packets, both ways.
    fn large(&self, vip: IpAddr) -> Load {
        Load {
            concurrency: NonZeroUsize::MIN.saturating_add(1),
            bytes: MUCH,
            upload: MUCH,
            ..self.load(vip, 6)
        }
    }

    fn load(&self, vip: IpAddr, requests: usize) -> Load {
        Load {
            requests,
            concurrency: NonZeroUsize::MIN.saturating_add(9),
            plain: true,
            timeout_ms: 60_000,
            ..self.cluster.load(vip)
        }
    }

    /// Small and large requests of both families: none fails, each backend answers, and sees whom it should.
    fn requests(&self) {
        let before = self.by_way();
        for vip in BOTH {
            let many = self.load(vip, REQUESTS);
            let large = self.large(vip);
            let own = self.cluster.client().address_like(vip);
            let seen = |name: &String| {
                let client = if name.starts_with('b') { vip } else { own };
                (name.clone(), client)
            };
            let seen: BTreeSet<_> = self.backends.iter().map(seen).collect();
            for load in [many, large] {
                let report = self.cluster.requests(&load).unwrap();
                println!("{} {vip}: {report}", self.mode);
                assert_eq!((report.ok, report.failed()), (load.requests, 0), "{report}");
                assert!(report.views.is_subset(&seen), "{report}");
                if load.requests == REQUESTS {
                    assert_eq!(report.views, seen, "{report}");
                }
            }
        }
        let after = self.by_way();
        let used = ["m1", "m2", "b1"].map(|name| self.backends.contains(name));
        for ((before, after), used) in before.iter().zip(after).zip(used) {
            assert_eq!(after > *before, used, "{before} {after}");
        }
        for node in self.cluster.net().nodes() {
            let bad = self.cluster.bad_checksums(node.name()).unwrap();
            assert_eq!(bad, 0, "{}", node.name());
        }
        self.arrived("requests");
    }

    /// A few of both families; none fails.
    fn some_requests(&self) {
        for vip in BOTH {
            let report = self.cluster.requests(&self.load(vip, 30)).unwrap();
            assert_eq!((report.ok, report.failed()), (30, 0), "{report}");
        }
    }

    /// The owner is killed, and comes back: its VIPs move twice.
    fn takeover(&mut self) {
        self.cluster.kill_xvip("m1").unwrap();
        self.owns("m2", "m1");
        self.some_requests();
        self.cluster.start_xvip("m1").unwrap();
        self.cluster.wait_settled("m1").unwrap();
        self.cluster.wait_state("m2", VrrpState::Backup).unwrap();
        self.owns("m1", "m2");
        self.shows(self.mode, "");
        self.some_requests();
        self.arrived("takeover and return");
    }

    fn owns(&self, owner: &str, other: &str) {
        for vip in BOTH {
            self.cluster.wait_has(owner, "eth0", vip, true).unwrap();
            self.cluster.wait_has(other, "eth0", vip, false).unwrap();
        }
    }

    /// One link after the other of the owner's bond is cut and joined again, while requests of both families
    /// go on: none fails.
    fn links_fail(&self) {
        let begin = Instant::now();
        let clients = BOTH.map(|vip| {
            let load = self.load(vip, 1);
            Steady::start(self.cluster.client(), &load, PACE, patience()).unwrap()
        });
        let go_on = || {
            for client in &clients {
                client.wait_answers(10, patience()).unwrap();
            }
        };
        for number in [0, 1] {
            self.cluster.net().cut_link("m1", number).unwrap();
            self.wait_port(number, false);
            go_on();
            self.cluster.net().join_link("m1", number).unwrap();
            self.wait_port(number, true);
            go_on();
        }
        for client in clients {
            let outcomes = client.since(begin);
            let failed: Vec<_> = outcomes.iter().filter(|one| one.result.is_err()).collect();
            println!(
                "{}: {} requests while links failed",
                self.mode,
                outcomes.len()
            );
            assert!(failed.is_empty(), "{failed:?}");
        }
        self.arrived("failed links");
    }

    /// Waits until the owner's bond uses a port, or does not.
    fn wait_port(&self, number: usize, used: bool) {
        let m1 = self.cluster.node("m1").namespace();
        let state = || m1.ip(&format!("-d link show dev port{number}"));
        self.cluster
            .wait(&format!("port {number} to be used: {used}"), || {
                let state = state()?;
                let up = state.contains("mii_status UP");
                // Of LACP alone: the other side agrees.
                let agrees = !state.contains("ad_actor_oper_port_state_str")
                    || state.contains("distributing");
                Ok((up == used && (agrees || !used)).then_some(()))
            })
            .unwrap();
    }

    /// `xvip detach` takes back everything.
    fn end(mut self) {
        for (node, before) in &self.before {
            self.cluster.stop_xvip(node).unwrap();
            output(&mut self.cluster.cli(node, &["detach"]).unwrap()).unwrap();
            let node = self.cluster.node(node);
            assert!(!node.pins().exists());
            self.cluster
                .wait("the node to be as it was", || {
                    let now = Footprint::of(node)?;
                    let differences = now.since(before);
                    ensure!(differences.is_empty(), "{}: {differences:#?}", node.name());
                    Ok(Some(()))
                })
                .unwrap();
        }
        self.arrived("detached");
    }
}

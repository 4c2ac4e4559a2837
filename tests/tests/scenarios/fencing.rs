//! An owner that is killed, hangs, is paused, or gets no CPU, while another node takes over: it
//! claims the addresses no more, by whatever way it is asked, and steps back when it goes on.
//!
//! What counts is what the bridge carried: a claim of the old owner after the new one's advert is
//! one too many, whenever it comes. The lease ends before that advert can be sent.

use std::net::IpAddr;

use lb_common::reason::Reason;
use lb_tests::{
    claims::{self, Claims, Form, claims, false_claims},
    cluster::{Cluster, PATIENCE},
    control_plane::{BOTH, VIP4, be_patient},
    kernel::{Starved, sysctl},
    skip, skip_unless_installed, skip_unless_root,
};
use lb_user::{
    admin::model::VrrpState,
    io::sysctl::{ipv4_conf, read},
};

/// Rounds of questions that a state is looked at for.
const ROUNDS: u64 = 20;

/// Two masters with IPv4 and IPv6, each with a second interface on the same link, and a client
/// that asks all the time. The first one owns the VIPs, and nobody preempts.
struct Scene {
    claims: Claims,
    cluster: Cluster,
    /// MACs of the masters' interfaces; the uplink's first.
    macs: [[[u8; 6]; 2]; 2],
}

impl Scene {
    fn new() -> Self {
        Self::without("")
    }

    /// On a kernel that lacks these features.
    fn without(features: &str) -> Self {
        let mut cluster = Cluster::builder()
            .masters(2)
            .without_features(features)
            .stand_in(&["--listen", "[::]:6443", "--plain"])
            .prepare(|plane| {
                plane.vips = BOTH.into();
                be_patient(plane);
                "preempt = false".clone_into(&mut plane.vrrp);
            })
            .unwrap();
        let macs = ["m1", "m2"].map(|node| {
            let second = cluster.net().second_link(node).unwrap();
            let namespace = cluster.node(node).namespace();
            // A strict filter would answer nothing there, whatever is to be shown.
            for interface in ["all", "eth1"] {
                let name = format!("net/ipv4/conf/{interface}/rp_filter");
                namespace.enter(|| sysctl(&name, "0")).unwrap();
            }
            [cluster.node(node).mac(), second]
        });
        cluster.start_xvip("m1").unwrap();
        cluster.wait_state("m1", VrrpState::Active).unwrap();
        cluster.start_xvip("m2").unwrap();
        cluster.wait_settled("m1").unwrap();
        let claims = Claims::start(cluster.net(), cluster.client(), &BOTH, &macs.concat()).unwrap();
        let scene = Self {
            claims,
            cluster,
            macs,
        };
        scene.answers(0, "m1");
        scene
    }

    fn macs(&self, node: &str) -> [[u8; 6]; 2] {
        self.macs[usize::from(node == "m2")]
    }

    /// A node has answered for both addresses since a mark; it goes on to be asked for a while.
    fn answers(&self, mark: usize, node: &str) {
        let [uplink, _] = self.macs(node);
        self.claims
            .wait_claims(mark, uplink, &BOTH, PATIENCE)
            .unwrap();
        self.claims.wait_rounds(ROUNDS, PATIENCE).unwrap();
    }

    /// Leaves the addresses to a node whose controller is no more of use, as the kernel would with
    /// a long lifetime: what keeps it silent is the fence alone.
    fn keep_addresses(&self, node: &str) {
        let namespace = self.cluster.node(node).namespace();
        for address in [
            "10.77.0.100/24 dev eth0",
            "fd77::100/128 dev eth0 nodad preferred_lft 0",
        ] {
            let command = format!("addr replace {address} valid_lft forever");
            namespace.ip(&command).unwrap();
        }
    }

    /// Waits until a node is Backup after a lapse and has the addresses on no interface but `lo`.
    fn stepped_back(&self, node: &str) {
        self.cluster.wait_state(node, VrrpState::Backup).unwrap();
        for vrrp in self.cluster.status(node).unwrap().vrrp {
            assert_eq!(vrrp.cause, "lease_lapsed", "{vrrp:?}");
        }
        self.addresses_leave(node);
        self.claims.wait_rounds(ROUNDS, PATIENCE).unwrap();
    }

    fn addresses_leave(&self, node: &str) {
        for (vip, interface) in product(BOTH, ["eth0", "eth1"]) {
            let left = self.cluster.wait_has(node, interface, vip, false);
            left.unwrap();
        }
    }

    /// Nothing was claimed beside another owner, and nothing at all from the second interfaces.
    fn nothing_false(&self) {
        let seen = self.claims.events();
        for node in ["m1", "m2"] {
            let macs = self.macs(node);
            assert_eq!(false_claims(&seen, &macs), [], "{node}");
            assert_eq!(claims(&seen, macs[1]).count(), 0, "{node}");
            let count = |wanted| {
                let all = claims(&seen, macs[0]);
                all.filter(|(form, _)| *form == wanted).count()
            };
            println!(
                "{node}: {} answers, {} announcements, 0 beside another owner",
                count(Form::Answer),
                count(Form::Announcement),
            );
        }
    }
}

fn product(
    vips: [IpAddr; 2],
    interfaces: [&'static str; 2],
) -> impl Iterator<Item = (IpAddr, &'static str)> {
    let all = vips.into_iter();
    all.flat_map(move |vip| interfaces.map(|interface| (vip, interface)))
}

/// SIGSTOP, with the addresses left on the interface: from the other's first advert on 0 claims, also
/// when the process goes on; then Backup, without the addresses. After that `kill -9` of the other.
#[test]
fn an_owner_that_hangs_or_dies_claims_nothing_beside_another() {
    skip_unless_root!();
    let mut scene = Scene::new();
    let mark = scene.claims.mark();
    scene.cluster.xvip("m1").freeze().unwrap();
    scene.keep_addresses("m1");
    scene.answers(mark, "m2");
    for vip in BOTH {
        assert!(scene.cluster.has("m1", "eth0", vip).unwrap(), "{vip}");
    }
    scene.cluster.xvip("m1").resume().unwrap();
    scene.stepped_back("m1");
    for reason in [Reason::FencedArp, Reason::FencedNd] {
        assert!(scene.cluster.reason("m1", reason).unwrap() >= ROUNDS);
    }
    let mark = scene.claims.mark();
    scene.cluster.kill_xvip("m2").unwrap();
    scene.answers(mark, "m1");
    scene.addresses_leave("m2");
    scene.nothing_false();
}

/// Where the program of what leaves is a clsact filter, it fences without a controller as well: killed
/// with the addresses left on the interface, the node claims nothing, and a new controller takes over the
/// filter and steps back.
#[test]
fn a_clsact_filter_fences_a_node_without_a_controller() {
    skip_unless_root!();
    let mut scene = Scene::without("tcx");
    let mark = scene.claims.mark();
    scene.cluster.kill_xvip("m1").unwrap();
    scene.keep_addresses("m1");
    scene.answers(mark, "m2");
    for vip in BOTH {
        assert!(scene.cluster.has("m1", "eth0", vip).unwrap(), "{vip}");
    }
    scene.cluster.start_xvip("m1").unwrap();
    scene.cluster.wait_state("m1", VrrpState::Backup).unwrap();
    scene.addresses_leave("m1");
    for reason in [Reason::FencedArp, Reason::FencedNd] {
        assert!(scene.cluster.reason("m1", reason).unwrap() >= ROUNDS);
    }
    scene.claims.wait_rounds(ROUNDS, PATIENCE).unwrap();
    scene.nothing_false();
}

/// A pause of the whole node, and a node whose processes get a thousandth of a CPU, and share that
/// with others: the same.
#[test]
fn an_owner_that_is_paused_or_starved_claims_nothing_beside_another() {
    skip_unless_root!();
    let scene = Scene::new();
    let mark = scene.claims.mark();
    scene.cluster.node("m1").set_frozen(true).unwrap();
    scene.keep_addresses("m1");
    scene.answers(mark, "m2");
    scene.cluster.node("m1").set_frozen(false).unwrap();
    scene.stepped_back("m1");
    scene.nothing_false();

    let m2 = scene.cluster.node("m2");
    let hog = m2
        .start("hog", "sh", &["-c", "while :; do :; done"])
        .unwrap();
    let xvip = scene.cluster.xvip("m2");
    let mark = scene.claims.mark();
    let Some(starved) = Starved::new(m2.cgroup(), &[xvip.pid(), hog.pid()]).unwrap() else {
        return skip::note("no cgroup limits CPU time");
    };
    scene.answers(mark, "m1");
    drop((starved, hog));
    scene.stepped_back("m2");
    scene.nothing_false();
}

/// A Backup that stands still for longer than a takeover needs, just after it has looked for adverts
/// and before it decides: what came in meanwhile is no silence.
#[test]
fn a_backup_that_stands_still_before_it_decides_takes_over_nothing() {
    skip_unless_root!();
    skip_unless_installed!("strace");
    let scene = Scene::new();
    let xvip = scene.cluster.xvip("m2").pid().to_string();
    // Down after 3.26 s without an advert. Later than half an advert more it would listen again.
    let pauses = "inject=recvmsg:delay_exit=3350000:when=23+23";
    let strace = [
        "-f",
        "-qq",
        "-e",
        "trace=recvmsg",
        "-e",
        pauses,
        "-p",
        &xvip,
    ];
    let strace = (scene.cluster.node("m2"))
        .start("strace", "strace", &strace)
        .unwrap();
    let taken = scene.cluster.wait("m2 to stand still", || {
        let log = strace.output();
        if log.contains("Operation not permitted") {
            return Ok(Some(false));
        }
        Ok((log.matches("(DELAYED)").count() >= 4).then_some(true))
    });
    if !taken.unwrap() {
        return skip::note("no process may be traced");
    }
    strace.terminate(PATIENCE).unwrap();
    scene.cluster.wait_settled("m1").unwrap();
    for vrrp in scene.cluster.status("m2").unwrap().vrrp {
        assert_eq!((vrrp.transitions, &*vrrp.cause), (1, "startup"), "{vrrp:?}");
    }
    scene.nothing_false();
}

/// Without `arp_ignore` an interface beside the uplink answers for the VIP, fence or not: somebody
/// who changes it is overruled, and a value that is not xvip's to change is shown.
#[test]
fn changed_settings_are_put_right_or_said() {
    skip_unless_root!();
    let cluster = Cluster::builder()
        .masters(1)
        .stand_in(&["--listen", "[::]:6443", "--plain"])
        .start(be_patient)
        .unwrap();
    let (client, m1) = (cluster.client(), cluster.node("m1"));
    let second = cluster.net().second_link("m1").unwrap();
    let set = |name: &str, value| {
        let name = format!("net/ipv4/conf/{name}");
        m1.namespace().enter(|| sysctl(&name, value)).unwrap();
    };
    for interface in ["all", "eth1"] {
        // A strict filter would answer nothing there, whatever is to be shown.
        set(&format!("{interface}/rp_filter"), "0");
    }
    let vip = [VIP4.into()];
    let claims = Claims::start(cluster.net(), client, &vip, &[m1.mac(), second]).unwrap();
    claims.wait_claims(0, m1.mac(), &vip, PATIENCE).unwrap();
    claims.wait_rounds(ROUNDS, PATIENCE).unwrap();
    assert_eq!(claims::claims(&claims.events(), second).count(), 0);

    set("eth0/promote_secondaries", "0");
    let answers = |mark| claims::claims(&claims.since(mark), second).count();
    cluster
        .wait("eth1 to answer", || {
            // Until it has, whenever it is put right.
            set("all/arp_ignore", "0");
            Ok((answers(0) > 0).then_some(()))
        })
        .unwrap();
    let warnings = || Ok::<_, anyhow::Error>(cluster.status("m1")?.data_plane.warnings);
    let shows = |words: &str| {
        let waited = cluster.wait(&format!("`{words}` in status"), || {
            let warnings = warnings()?;
            Ok(warnings
                .iter()
                .any(|text| text.contains(words))
                .then_some(()))
        });
        waited.unwrap();
        assert!(cluster.xvip("m1").output().contains(words), "{words}");
    };
    shows("repaired: /proc/sys/net/ipv4/conf/all/arp_ignore: 0 -> 1");
    shows("repaired: /proc/sys/net/ipv4/conf/eth0/promote_secondaries: 0 -> 1");
    // What is said may be of an earlier change than the last one of the loop above.
    cluster
        .wait("arp_ignore to be put right", || {
            let path = ipv4_conf("all", "arp_ignore")?;
            let value = m1.namespace().enter(|| Ok(read(&path)?))?;
            Ok((value == 1).then_some(()))
        })
        .unwrap();
    claims.wait_rounds(2, PATIENCE).unwrap();
    let mark = claims.mark();
    claims.wait_rounds(ROUNDS, PATIENCE).unwrap();
    assert_eq!(answers(mark), 0);

    set("eth1/arp_ignore", "3");
    shows("net.ipv4.conf.eth1.arp_ignore is 3");
    cluster
        .wait("eth1 to answer", || Ok((answers(mark) > 0).then_some(())))
        .unwrap();
}

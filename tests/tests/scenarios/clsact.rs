//! Kernels without tcx links (before Linux 6.6): the tc programs as filters of a clsact qdisc. This
//! kernel has both, so xvip is told to do without tcx.

use lb_tests::{
    cluster::{Cluster, PATIENCE},
    control_plane::BOTH,
    instance::{Instance, attach, plan, veth},
    netns::NetNs,
    process::output,
    skip_unless_root,
    watch::Watches,
};
use lb_user::{
    core::{attach::Mode, frame::mac_text},
    io::bpf::{DataPlane, remove_filters},
};

/// A program of somebody else that ends the way of each packet through the filters.
const STRANGER: &str = "bpf bytecode 1,6\\ 0\\ 0\\ 4294967295";

/// A filter of priority 1 without a name, as [`filters`] has it: what `tc` shows next.
const NAMELESS: &str = "1 not_in_hw";

/// `tc` in a namespace, through a shell; what it prints.
fn tc(namespace: &NetNs, words: &str) -> String {
    let mut shell = namespace.command("sh");
    output(shell.args(["-c", &format!("tc {words}")])).unwrap()
}

/// The filters of eth0 in their order, as `tc` shows them: priority, handle, what it is.
fn filters(namespace: &NetNs, side: &str) -> Vec<String> {
    let shown = tc(namespace, &format!("filter show dev eth0 {side}"));
    let lines = shown.lines().filter(|line| line.contains("handle 0x"));
    let word = |line: &str, after: &str| {
        let mut words = line.split_whitespace().skip_while(|word| *word != after);
        words.nth(1).unwrap_or_default().to_owned()
    };
    lines
        .map(|line| {
            let handle = word(line, "handle");
            format!("{} {}", word(line, "pref"), word(line, &handle))
        })
        .collect()
}

/// Handles of the filters with a name of xvip, and ids of their programs.
fn programs(namespace: &NetNs, side: &str) -> Vec<(String, String)> {
    let shown = tc(namespace, &format!("filter show dev eth0 {side}"));
    let lines = shown.lines().filter(|line| line.contains(" xvip/"));
    let word = |line: &str, after: &str| {
        let mut words = line.split_whitespace().skip_while(|word| *word != after);
        words.nth(1).unwrap_or_default().to_owned()
    };
    lines
        .map(|line| (word(line, "handle"), word(line, "id")))
        .collect()
}

/// The filters are there once, also after a restart, in the same place with the new program; they outlive
/// their controller; a change of the mode takes away what it should; and nothing of them stays after a detach.
#[test]
fn filters_take_the_place_of_tcx_links() {
    skip_unless_root!();
    let (namespace, instance) = (veth().unwrap(), Instance::new(false).unwrap());
    let own = |program| format!("1 {}", instance.filter(program));
    drop(instance.run(&namespace, Mode::Tc).unwrap());
    for _ in 0..2 {
        assert_eq!(filters(&namespace, "ingress"), [own("tc_ingress")]);
        assert_eq!(filters(&namespace, "egress"), [own("tc_egress")]);
        let before = programs(&namespace, "egress");
        drop(instance.run(&namespace, Mode::Tc).unwrap());
        let after = programs(&namespace, "egress");
        assert_eq!(before[0].0, after[0].0, "the handle");
        assert_ne!(before[0].1, after[0].1, "the program");
    }
    // Of an earlier run.
    let mut data_plane = instance.run(&namespace, Mode::Native).unwrap();
    assert_eq!(filters(&namespace, "ingress"), [""; 0]);
    assert_eq!(filters(&namespace, "egress"), [own("tc_egress")]);
    // Of the same run.
    for mode in [Mode::Tc, Mode::Native] {
        attach(&mut data_plane, &namespace, mode).unwrap();
        let ingress = filters(&namespace, "ingress");
        assert_eq!(ingress.is_empty(), mode == Mode::Native, "{ingress:?}");
    }
    assert_eq!(filters(&namespace, "egress"), [own("tc_egress")]);
    let removed = namespace.enter(|| Ok(remove_filters(&instance.pins())?));
    assert_eq!(removed.unwrap().into_iter().collect::<Vec<_>>(), ["eth0"]);
    assert_eq!(filters(&namespace, "egress"), [""; 0]);
}

/// Filters of others stay as they are, whatever their handle and priority; xvip's goes before them
/// where it can, and says so where it cannot.
#[test]
fn filters_of_others_are_left_alone() {
    skip_unless_root!();
    let (namespace, instance) = (veth().unwrap(), Instance::new(false).unwrap());
    let own = format!("1 {}", instance.filter("tc_egress"));
    // The handle that this instance would take.
    drop(instance.run(&namespace, Mode::Native).unwrap());
    let handle = programs(&namespace, "egress")[0].0.clone();
    namespace
        .enter(|| Ok(remove_filters(&instance.pins())?))
        .unwrap();
    // Nothing else was in the qdisc: it went as well.
    assert!(!tc(&namespace, "qdisc show dev eth0").contains("clsact"));
    tc(&namespace, "qdisc add dev eth0 clsact");
    let add = |priority: u8, more: &str| {
        let add = format!("filter add dev eth0 egress prio {priority} {more} {STRANGER}");
        tc(&namespace, &add);
    };
    add(1, &format!("handle {handle}"));
    let mut data_plane = instance.run(&namespace, Mode::Native).unwrap();
    let look = |data_plane: &mut DataPlane| attach(data_plane, &namespace, Mode::Native).unwrap();
    assert_eq!(filters(&namespace, "egress"), [own.as_str(), NAMELESS]);
    assert_eq!(look(&mut data_plane).repaired, [""; 0]);

    // Somebody goes before it: overtaken.
    add(1, "handle 7");
    let three = [own.as_str(), NAMELESS, NAMELESS];
    assert_eq!(filters(&namespace, "egress")[1], own);
    let repaired = look(&mut data_plane).repaired;
    assert_eq!(filters(&namespace, "egress"), three);
    assert!(
        repaired.len() == 1
            && repaired[0].contains("a bpf filter of priority 1 stood before tc_egress"),
        "{repaired:?}"
    );

    // Somebody removes it, with and without the qdisc.
    for (remove, left) in [
        ("filter del dev eth0 egress prio 1", 1),
        ("qdisc del dev eth0 clsact", 1),
    ] {
        tc(&namespace, remove);
        let outcome = look(&mut data_plane);
        assert_eq!(filters(&namespace, "egress").len(), left);
        assert!(
            outcome.repaired[0].contains("the filter tc_egress of eth0, which was removed"),
            "{:?}",
            outcome.repaired
        );
        assert_eq!(look(&mut data_plane).repaired, [""; 0]);
    }

    // A priority that is not for all packets cannot be shared.
    tc(&namespace, "qdisc del dev eth0 clsact");
    tc(&namespace, "qdisc add dev eth0 clsact");
    add(1, "protocol ip");
    let outcome = look(&mut data_plane);
    let second = format!("2 {}", instance.filter("tc_egress"));
    assert_eq!(filters(&namespace, "egress"), [NAMELESS, second.as_str()]);
    assert!(
        outcome.warnings[0].contains("a bpf filter of priority 1 insists on standing before"),
        "{:?}",
        outcome.warnings
    );
    tc(&namespace, "filter del dev eth0 egress prio 1");
    look(&mut data_plane);
    assert_eq!(filters(&namespace, "egress"), [own.as_str()]);

    // Detaching takes xvip's alone.
    add(1, "handle 9");
    namespace
        .enter(|| Ok(remove_filters(&instance.pins())?))
        .unwrap();
    assert_eq!(filters(&namespace, "egress"), [NAMELESS]);
}

/// Two instances on one interface: each keeps its filter, and one that goes leaves the other's.
#[test]
fn two_instances_share_an_interface() {
    skip_unless_root!();
    let (namespace, instances) = (
        veth().unwrap(),
        [(), ()].map(|()| Instance::new(false).unwrap()),
    );
    let mut running = instances
        .iter()
        .map(|instance| instance.run(&namespace, Mode::Tc).unwrap())
        .collect::<Vec<_>>();
    for data_plane in &mut running {
        assert_eq!(
            attach(data_plane, &namespace, Mode::Tc).unwrap().repaired,
            [""; 0]
        );
    }
    assert_eq!(filters(&namespace, "egress").len(), 2);
    let removed = namespace.enter(|| Ok(remove_filters(&instances[0].pins())?));
    assert_eq!(removed.unwrap().len(), 1);
    for (side, program) in [("ingress", "tc_ingress"), ("egress", "tc_egress")] {
        let left = format!("1 {}", instances[1].filter(program));
        assert_eq!(filters(&namespace, side), [left]);
    }
}

/// An ingress qdisc would take the filter of what leaves as one of what comes in: a sentence says what to do.
#[test]
fn an_ingress_qdisc_is_in_the_way() {
    skip_unless_root!();
    let (namespace, instance) = (veth().unwrap(), Instance::new(false).unwrap());
    tc(&namespace, "qdisc add dev eth0 ingress");
    let plan = plan(&namespace, Mode::Native).unwrap();
    let failures = namespace.enter(|| {
        let plans = [plan];
        let mut data_plane = DataPlane::open(&instance.loading(), None, &plans)?;
        let failures = data_plane.attach(&plans).failures;
        Ok(failures.iter().map(ToString::to_string).collect::<Vec<_>>())
    });
    let failures = failures.unwrap();
    assert!(
        failures.len() == 1 && failures[0].contains("tc qdisc del dev eth0 ingress"),
        "{failures:?}"
    );
    assert_eq!(filters(&namespace, "ingress"), [""; 0]);
}

/// Killed or stopped, the controller leaves the filters, which go on: without any controller connections
/// are forwarded and answered from the VIP's port. A new one puts its programs in their place.
#[test]
fn filters_work_on_without_a_controller() {
    skip_unless_root!();
    let mut cluster = Cluster::builder()
        .masters(2)
        .plain_backends(1)
        .stand_in(&["--listen", "[::]:6443"])
        .without_features("tcx")
        .start(|plane| {
            plane.vips = BOTH.into();
            plane.node = "attach = \"tc\"".to_owned();
        })
        .unwrap();
    let kernel = cluster.status("m1").unwrap().kernel;
    let tcx = kernel
        .features
        .iter()
        .find(|one| one.name == "tcx")
        .unwrap();
    assert!(!tcx.used && tcx.instead.as_deref().unwrap().contains("clsact"));
    assert!(
        cluster
            .xvip("m1")
            .output()
            .contains("lacks tcx (Linux 6.6)")
    );
    let watches = BOTH.map(|vip| {
        let load = cluster.load(vip);
        Watches::open(cluster.client(), &load, 12, PATIENCE).unwrap()
    });
    let shown = |cluster: &Cluster| {
        let namespace = cluster.node("m1").namespace();
        ["ingress", "egress"].map(|side| programs(namespace, side))
    };
    let handles = |cluster: &Cluster| {
        let only =
            |all: Vec<(String, String)>| -> Vec<_> { all.into_iter().map(|(it, _)| it).collect() };
        shown(cluster).map(only)
    };
    let attached = shown(&cluster);
    assert!(attached.iter().all(|side| side.len() == 1), "{attached:?}");
    for kill in [true, false] {
        let (before, places) = (shown(&cluster), handles(&cluster));
        if kill {
            cluster.kill_xvip("m1").unwrap();
        } else {
            cluster.stop_xvip("m1").unwrap();
        }
        assert_eq!(shown(&cluster), before);
        cluster.start_xvip("m1").unwrap();
        cluster.wait_settled("m1").unwrap();
        assert_eq!(handles(&cluster), places);
        assert_ne!(shown(&cluster), before);
        for watches in &watches {
            watches.wait_events(2, PATIENCE).unwrap();
        }
    }
    for node in ["m2", "m1"] {
        cluster.kill_xvip(node).unwrap();
    }
    // What a neighbour with a long memory has. Nobody answers for the VIP any more.
    let mac = mac_text(cluster.node("m1").mac());
    for vip in BOTH {
        let entry = format!("neigh replace {vip} lladdr {mac} dev eth0 nud permanent");
        cluster.client().namespace().ip(&entry).unwrap();
        cluster.wait_has("m1", "eth0", vip, false).unwrap();
    }
    for vip in BOTH {
        let report = cluster.requests(&cluster.load(vip)).unwrap();
        assert_eq!(report.ok, 1000, "{report}");
        assert_eq!(report.by_node.len(), 3, "{report}");
    }
    for watches in &watches {
        watches.wait_events(2, PATIENCE).unwrap();
    }
    let removed = output(&mut cluster.cli("m1", &["detach"]).unwrap()).unwrap();
    assert!(removed.contains("removed filters of eth0"), "{removed}");
    assert_eq!(shown(&cluster), [vec![], vec![]]);
}

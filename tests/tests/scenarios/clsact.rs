//! Kernels without tcx links (before Linux 6.6): the tc programs as filters of a clsact qdisc. This
//! kernel has both, so the data plane is told to do without tcx.

use lb_tests::{
    kernel,
    netns::{NetNs, unique},
    process::output,
    skip_unless_root,
};
use lb_user::{
    core::{
        attach::{Mode, Place, Plan},
        network::Port,
    },
    io::bpf::{DataPlane, Pins, remove_filters},
};

/// Pins that go with the test.
struct Instance(String);

impl Drop for Instance {
    fn drop(&mut self) {
        kernel::remove_pins(&self.0).unwrap();
    }
}

fn plan(ifindex: u32, mode: Mode) -> Plan {
    Plan {
        carrier: ifindex,
        name: "eth0".to_owned(),
        places: vec![Place {
            interface: "eth0".to_owned(),
            ifindex,
            port: Port::untagged(ifindex),
        }],
        modes: vec![mode],
        passed_over: vec![],
    }
}

/// Names of the programs in the filters of eth0, as `tc` shows them.
fn filters(namespace: &NetNs, side: &str) -> Vec<String> {
    let mut tc = namespace.command("tc");
    let shown = output(tc.args(["filter", "show", "dev", "eth0", side])).unwrap();
    let lines = shown.lines().filter(|line| line.contains("handle 0x"));
    let names = lines.filter_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word != "handle");
        words.nth(2).map(str::to_owned)
    });
    names.collect()
}

/// The filters are there once, also after a restart; they outlive their controller; a change of the
/// mode takes away what it should; and nothing of them stays after a detach.
#[test]
fn filters_take_the_place_of_tcx_links() {
    skip_unless_root!();
    kernel::ensure_bpffs().unwrap();
    let namespace = NetNs::new("clsact").unwrap();
    let instance = Instance(unique("clsact"));
    let pins = Pins::new(&instance.0);
    namespace
        .ip("link add eth0 type veth peer name far")
        .unwrap();
    let ifindex = namespace
        .enter(|| Ok(nix::net::if_::if_nametoindex("eth0")?))
        .unwrap();
    let run = |mode| {
        let opened = namespace.enter(|| {
            let mut data_plane = DataPlane::open(&pins, None)?.without_tcx();
            let outcome = data_plane.attach(&[plan(ifindex, mode)]);
            let failures: Vec<_> = outcome.failures.iter().map(ToString::to_string).collect();
            anyhow::ensure!(failures.is_empty(), "{failures:?}");
            anyhow::ensure!(outcome.attached[0].mode == Some(mode));
            Ok(data_plane)
        });
        opened.unwrap()
    };
    drop(run(Mode::Tc));
    for _ in 0..2 {
        assert_eq!(filters(&namespace, "ingress"), ["tc_ingress"]);
        assert_eq!(filters(&namespace, "egress"), ["tc_egress"]);
        drop(run(Mode::Tc));
    }
    // Of an earlier run.
    let mut data_plane = run(Mode::Native);
    assert_eq!(filters(&namespace, "ingress"), [""; 0]);
    assert_eq!(filters(&namespace, "egress"), ["tc_egress"]);
    // Of the same run.
    for mode in [Mode::Tc, Mode::Native] {
        let outcome = namespace.enter(|| Ok(data_plane.attach(&[plan(ifindex, mode)])));
        assert!(outcome.unwrap().failures.is_empty());
        let ingress = filters(&namespace, "ingress");
        assert_eq!(ingress.is_empty(), mode == Mode::Native, "{ingress:?}");
    }
    assert_eq!(filters(&namespace, "egress"), ["tc_egress"]);
    let removed = namespace.enter(|| {
        remove_filters(&pins);
        Ok(())
    });
    removed.unwrap();
    assert_eq!(filters(&namespace, "egress"), [""; 0]);
}

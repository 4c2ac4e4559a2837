//! The guest itself: what the other tests take for granted is there.

use std::{fs, path::Path, process::Command};

use lb_tests::{guest, kernel};

/// Modules that tests use, and what for. A kernel may have them built in.
const MODULES: &[(&str, &str)] = &[
    ("8021q", "VLAN interfaces"),
    ("bonding", "bonds"),
    ("br_netfilter", "bridges whose packets iptables sees"),
    ("bridge", "bridges"),
    ("cls_bpf", "programs on kernels without tcx"),
    ("dummy", "the interface that holds IPVS' addresses"),
    ("ip_vs", "IPVS"),
    ("ip_vs_rr", "a scheduler of IPVS"),
    ("iptable_nat", "rules of the older iptables"),
    ("macvlan", "interfaces with MACs of their own"),
    ("nf_conntrack", "connection tracking"),
    ("nf_tables", "nftables"),
    ("nft_chain_nat", "translation by nftables"),
    ("nft_compat", "iptables over nftables"),
    ("nft_ct", "connection tracking in nftables"),
    ("sch_ingress", "clsact"),
    ("tcp_diag", "listing and closing TCP sockets"),
    ("tun", "tap interfaces"),
    ("udp_diag", "listing UDP sockets"),
    ("veth", "links between namespaces"),
    ("virtio_net", "the network card of a guest"),
    ("xt_comment", "comments in rules"),
    ("xt_statistic", "rules that choose by chance"),
];

/// Every module that tests use can be loaded; those that cannot are named.
#[test]
fn the_guest_has_the_modules_that_tests_use() {
    if guest::skip_outside() {
        return;
    }
    let missing: Vec<_> = MODULES
        .iter()
        .filter(|(name, _)| {
            let loaded = Command::new("modprobe").arg(name).status();
            !loaded.expect("modprobe starts").success()
        })
        .collect();
    assert!(missing.is_empty(), "this kernel lacks {missing:?}");
}

/// The file systems that xvip uses are mounted, and the programs that tests call are there.
#[test]
fn the_guest_has_the_file_systems_and_programs_that_tests_use() {
    if guest::skip_outside() {
        return;
    }
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    for (kind, at) in [("bpf", kernel::BPFFS), ("cgroup2", "/sys/fs/cgroup")] {
        let line = format!(" {at} {kind} ");
        assert!(mounts.contains(&line), "no {kind} at {at}: {mounts}");
    }
    for name in [
        "bpftool", "curl", "ethtool", "ip", "nsenter", "setpriv", "tc", "tcpdump",
    ] {
        let found = ["/usr/bin", "/usr/sbin"].map(|directory| Path::new(directory).join(name));
        assert!(
            found.iter().any(|path| path.exists()),
            "no {name} in the guest"
        );
    }
}

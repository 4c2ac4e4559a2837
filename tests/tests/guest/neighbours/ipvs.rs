//! IPVS: kube-proxy's mode of this name.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use lb_tests::{
    cluster::Cluster, control_plane::BOTH, kernel, skip, skip_unless_installed, skip_unless_root,
};

use super::{all_answer, cluster, cluster_at, few, sysctls, works};

/// Whether the kernel or the machine lacks what these tests need.
fn without_ipvs() -> bool {
    if !kernel::has_ipvs() {
        skip::note("the kernel has no IPVS");
        return true;
    }
    skip::without_program("ipvsadm")
}

fn cluster_ip(like: IpAddr) -> IpAddr {
    if like.is_ipv4() {
        "10.96.0.1"
    } else {
        "fd96::1"
    }
    .parse()
    .unwrap()
}

/// A virtual service with the apiservers behind it, by network address translation.
fn serve(cluster: &Cluster, node: &str, at: SocketAddr) {
    let node = cluster.node(node);
    let at_text = at.to_string();
    node.run("ipvsadm", &["-A", "-t", &at_text, "-s", "rr"])
        .unwrap();
    for name in ["m1", "m2", "b1"] {
        let real = SocketAddr::new(cluster.node(name).address_like(at.ip()), 6443).to_string();
        node.run("ipvsadm", &["-a", "-t", &at_text, "-r", &real, "-m"])
            .unwrap();
    }
}

/// kube-proxy in IPVS mode on both masters, as `--ipvs-strict-arp` makes it or without: a dummy interface with
/// the services' addresses, the virtual services, the sysctls. What the rules with sets of addresses do is one rule here:
/// masquerading of all that IPVS forwards.
fn kube_proxy(cluster: &Cluster, strict_arp: bool) {
    for name in cluster.masters() {
        let node = cluster.node(&name);
        sysctls(
            node,
            &[
                ("net/ipv4/ip_forward", "1"),
                ("net/ipv6/conf/all/forwarding", "1"),
                ("net/ipv4/vs/conntrack", "1"),
                ("net/ipv4/vs/conn_reuse_mode", "0"),
                ("net/ipv4/vs/expire_nodest_conn", "1"),
                ("net/ipv4/vs/expire_quiescent_template", "1"),
                ("net/ipv4/conf/all/send_redirects", "0"),
                ("net/ipv4/conf/eth0/send_redirects", "0"),
            ],
        );
        if strict_arp {
            sysctls(
                node,
                &[
                    ("net/ipv4/conf/all/arp_ignore", "1"),
                    ("net/ipv4/conf/all/arp_announce", "2"),
                ],
            );
        }
        node.namespace()
            .ip("link add kube-ipvs0 type dummy")
            .unwrap();
        for vip in BOTH {
            let at = cluster_ip(vip);
            node.namespace().add_address(at, "kube-ipvs0").unwrap();
            serve(cluster, &name, SocketAddr::new(at, 443));
            serve(
                cluster,
                &name,
                SocketAddr::new(node.address_like(vip), 30080),
            );
            let program = if vip.is_ipv4() {
                "iptables"
            } else {
                "ip6tables"
            };
            node.run(
                program,
                &[
                    "-t",
                    "nat",
                    "-A",
                    "POSTROUTING",
                    "-m",
                    "ipvs",
                    "--ipvs",
                    "-j",
                    "MASQUERADE",
                ],
            )
            .unwrap();
        }
    }
    let client = cluster.client();
    sysctls(client, &[("net/ipv6/conf/eth0/accept_redirects", "0")]);
    for vip in BOTH {
        let way = format!(
            "route add {} via {}",
            cluster_ip(vip),
            cluster.node("m1").address_like(vip)
        );
        client.namespace().ip(&way).unwrap();
    }
}

fn kube_proxy_works(cluster: &Cluster) {
    for vip in BOTH {
        let service = few(cluster, SocketAddr::new(cluster_ip(vip), 443));
        all_answer(&cluster.requests_by_process("m1", &service).unwrap());
        all_answer(&cluster.requests(&service).unwrap());
        for name in cluster.masters() {
            let address = cluster.node(&name).address_like(vip);
            all_answer(
                &cluster
                    .requests(&few(cluster, SocketAddr::new(address, 30080)))
                    .unwrap(),
            );
        }
    }
}

/// kube-proxy in IPVS mode, with and without strict ARP, before xvip's own settings or after.
#[test]
fn kube_proxy_ipvs() {
    skip_unless_root!();
    skip_unless_installed!("iptables");
    if without_ipvs() {
        return;
    }
    for (attach, strict_arp) in [("native", true), ("tc", false)] {
        let cluster = cluster(attach);
        kube_proxy(&cluster, strict_arp);
        works(&cluster);
        kube_proxy_works(&cluster);
    }
}

/// The VIP is an external IP: kube-proxy puts it on its interface, too, on every node.
#[test]
fn an_external_ip_of_ipvs() {
    skip_unless_root!();
    skip_unless_installed!("iptables");
    if without_ipvs() {
        return;
    }
    for port in [1644, 6443] {
        let cluster = cluster_at("native", port);
        kube_proxy(&cluster, true);
        for name in cluster.masters() {
            for vip in BOTH {
                cluster
                    .node(&name)
                    .namespace()
                    .add_address(vip, "kube-ipvs0")
                    .unwrap();
                serve(&cluster, &name, SocketAddr::new(vip, port));
            }
        }
        for vip in BOTH {
            let report = cluster
                .requests(&few(&cluster, SocketAddr::new(vip, port)))
                .unwrap();
            all_answer(&report);
            let own = cluster.client().address_like(vip);
            let as_without = report.client_addresses == BTreeSet::from([own, vip]);
            assert_eq!(as_without, port == 1644, "{report:?}");
        }
    }
}

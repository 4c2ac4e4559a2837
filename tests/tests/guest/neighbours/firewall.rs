//! Rules of netfilter: kube-proxy's, and those of a strict host.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
};

use std::collections::BTreeSet;

use lb_tests::{
    cluster::{Cluster, patience},
    control_plane::BOTH,
    process::wait_until,
    skip_unless_installed, skip_unless_root,
    watch::Watches,
};
use lb_user::admin::model::VrrpState;

use super::{REQUESTS, all_answer, cluster, cluster_at, few, sysctls, works};

const RULES: &str = include_str!("kube-proxy.rules");
const EXTERNAL_IP: &str = include_str!("kube-proxy-external-ip.rules");
const STRICT: &str = include_str!("strict.nft");
const NFT: &str = include_str!("kube-proxy.nft");

/// The port of the services' cluster IPs, and the `NodePort`.
const CLUSTER_PORT: u16 = 443;
const NODE_PORT: u16 = 30080;

fn cluster_ip(like: IpAddr) -> IpAddr {
    if like.is_ipv4() {
        "10.96.0.1"
    } else {
        "fd96::1"
    }
    .parse()
    .unwrap()
}

/// Rules with what is in braces filled in, for the family of a VIP. `port` is the external IP's.
fn filled(rules: &str, cluster: &Cluster, vip: IpAddr, port: u16) -> String {
    let is_v4 = vip.is_ipv4();
    let mut text = rules.to_owned();
    let mut fill = |name: &str, value: &str| text = text.replace(&format!("{{{name}}}"), value);
    for name in ["m1", "m2", "b1"] {
        let address = cluster.node(name).address_like(vip);
        fill(name, &address.to_string());
        fill(
            &format!("{name}:6443"),
            &SocketAddr::new(address, 6443).to_string(),
        );
    }
    fill("cluster_ip", &cluster_ip(vip).to_string());
    fill("pods", if is_v4 { "10.244.0.0/16" } else { "fd44::/56" });
    fill("host", if is_v4 { "32" } else { "128" });
    fill("ipv4", if is_v4 { "" } else { "# " });
    fill("ip", if is_v4 { "ip" } else { "ip6" });
    fill("type", if is_v4 { "ipv4_addr" } else { "ipv6_addr" });
    fill("vip", &vip.to_string());
    fill("port", &port.to_string());
    text
}

/// Loads rules of iptables into both masters.
fn restore(cluster: &Cluster, rules: &str, options: &[&str], port: u16) {
    for name in cluster.masters() {
        let node = cluster.node(&name);
        for vip in BOTH {
            let file = node.directory().join("rules");
            fs::write(&file, filled(rules, cluster, vip, port)).unwrap();
            let program = if vip.is_ipv4() {
                "iptables-restore"
            } else {
                "ip6tables-restore"
            };
            let file = file.display().to_string();
            node.run(program, &[options, &[&file]].concat()).unwrap();
        }
    }
}

/// Loads kube-proxy's rules of nftables into both masters.
fn load(cluster: &Cluster, port: u16) {
    for name in cluster.masters() {
        let node = cluster.node(&name);
        for vip in BOTH {
            let file = node.directory().join("rules.nft");
            fs::write(&file, filled(NFT, cluster, vip, port)).unwrap();
            node.run("nft", &["-f", &file.display().to_string()])
                .unwrap();
        }
    }
}

/// Makes the masters forward, as nodes of Kubernetes do, and leads cluster IPs to them.
fn be_kubernetes(cluster: &Cluster) {
    for name in cluster.masters() {
        let node = cluster.node(&name);
        sysctls(
            node,
            &[
                ("net/ipv4/ip_forward", "1"),
                ("net/ipv6/conf/all/forwarding", "1"),
                ("net/ipv4/conf/all/send_redirects", "0"),
                ("net/ipv4/conf/eth0/send_redirects", "0"),
            ],
        );
        // As by a default route: without any, the kernel asks no rule.
        for vip in BOTH {
            node.namespace()
                .ip(&format!("route add {} dev eth0", cluster_ip(vip)))
                .unwrap();
        }
    }
    let m1 = cluster.node("m1");
    let client = cluster.client();
    sysctls(client, &[("net/ipv6/conf/eth0/accept_redirects", "0")]);
    for vip in BOTH {
        let way = format!("route add {} via {}", cluster_ip(vip), m1.address_like(vip));
        client.namespace().ip(&way).unwrap();
    }
}

/// kube-proxy's services are served: the cluster IP for processes of a node and for what a node
/// forwards, the `NodePort` for others.
fn kube_proxy_works(cluster: &Cluster) {
    for vip in BOTH {
        let service = few(cluster, SocketAddr::new(cluster_ip(vip), CLUSTER_PORT));
        all_answer(&cluster.requests_by_process("m1", &service).unwrap());
        all_answer(&cluster.requests(&service).unwrap());
        for name in cluster.masters() {
            let address = cluster.node(&name).address_like(vip);
            let port = few(cluster, SocketAddr::new(address, NODE_PORT));
            all_answer(&cluster.requests(&port).unwrap());
        }
    }
}

/// kube-proxy in iptables mode.
#[test]
fn kube_proxy_iptables() {
    skip_unless_root!();
    skip_unless_installed!("iptables-restore");
    for attach in ["native", "tc"] {
        let cluster = cluster(attach);
        be_kubernetes(&cluster);
        restore(&cluster, RULES, &[], 0);
        works(&cluster);
        kube_proxy_works(&cluster);
        // The owner's VIPs are addresses of its own.
        for vip in BOTH {
            let port = few(&cluster, SocketAddr::new(vip, NODE_PORT));
            all_answer(&cluster.requests(&port).unwrap());
        }
    }
}

/// kube-proxy in nftables mode.
#[test]
fn kube_proxy_nftables() {
    skip_unless_root!();
    skip_unless_installed!("nft");
    for attach in ["native", "tc"] {
        let cluster = cluster(attach);
        be_kubernetes(&cluster);
        load(&cluster, 9999);
        works(&cluster);
        kube_proxy_works(&cluster);
    }
}

/// The VIP is an external IP of a service of kube-proxy's, at the VIP's own port. xvip has forwarded what
/// comes in by an uplink before any rule is asked: nobody sees another client address than without.
#[test]
fn an_external_ip_at_the_ports_of_the_vip_is_not_seen() {
    skip_unless_root!();
    skip_unless_installed!("iptables-restore");
    for attach in ["native", "tc"] {
        let cluster = cluster(attach);
        be_kubernetes(&cluster);
        restore(&cluster, RULES, &[], 0);
        restore(&cluster, EXTERNAL_IP, &["--noflush"], 1644);
        for vip in BOTH {
            let report = cluster
                .requests(&few(&cluster, SocketAddr::new(vip, 1644)))
                .unwrap();
            all_answer(&report);
            let own = cluster.client().address_like(vip);
            assert_eq!(
                report.client_addresses,
                BTreeSet::from([own, vip]),
                "{attach}"
            );
        }
    }
}

/// The same where the port is the backends' as well: what xvip delivers to a node's own backend, kube-proxy
/// sends to any, from the node's address. Requests are answered.
#[test]
fn an_external_ip_at_the_port_of_the_backends_takes_what_is_delivered() {
    skip_unless_root!();
    skip_unless_installed!("nft");
    let cluster = cluster_at("native", 6443);
    be_kubernetes(&cluster);
    load(&cluster, 6443);
    for vip in BOTH {
        let load = lb_tests::client::Load {
            requests: 4 * REQUESTS,
            ..few(&cluster, SocketAddr::new(vip, 6443))
        };
        let report = cluster.requests(&load).unwrap();
        assert_eq!(report.ok, load.requests, "{report}");
        for name in cluster.masters() {
            let masters_own = cluster.node(&name).address_like(vip);
            assert!(report.client_addresses.contains(&masters_own), "{report:?}");
        }
    }
}

/// Lets a master in only what xvip needs, and nothing out or through that no connection explains.
fn be_strict(cluster: &Cluster) {
    for name in cluster.masters() {
        let node = cluster.node(&name);
        sysctls(
            node,
            &[
                ("net/ipv4/conf/all/rp_filter", "1"),
                ("net/ipv4/conf/default/rp_filter", "1"),
                ("net/ipv4/conf/eth0/rp_filter", "1"),
                ("net/ipv4/ip_forward", "1"),
                ("net/ipv6/conf/all/forwarding", "1"),
            ],
        );
        let file = node.directory().join("strict.nft");
        let [vip4, vip6] = BOTH.map(|vip| vip.to_string());
        let rules = STRICT.replace("{vip4}", &vip4).replace("{vip6}", &vip6);
        fs::write(&file, rules).unwrap();
        node.run("nft", &["-f", &file.display().to_string()])
            .unwrap();
    }
}

/// A default-drop policy, `ct state invalid drop` everywhere and strict reverse paths: requests go on,
/// streams survive a takeover, those of a dead backend are reset, and nothing of it was dropped.
#[test]
fn a_strict_firewall() {
    skip_unless_root!();
    skip_unless_installed!("nft");
    for attach in ["native", "tc"] {
        let mut cluster = cluster(attach);
        be_strict(&cluster);
        works(&cluster);
        let watches = BOTH.map(|vip| {
            let load = few(&cluster, SocketAddr::new(vip, 1644));
            Watches::open(cluster.client(), &load, 12, patience()).unwrap()
        });
        cluster.stop_xvip("m1").unwrap();
        cluster.wait_state("m2", VrrpState::Active).unwrap();
        for vip in BOTH {
            let load = few(&cluster, SocketAddr::new(vip, 1644));
            all_answer(&cluster.requests(&load).unwrap());
        }
        cluster.start_xvip("m1").unwrap();
        cluster.wait_settled("m1").unwrap();
        for watches in &watches {
            watches.wait_events(2, patience()).unwrap();
        }
        works(&cluster);
        nothing_dropped(&cluster);
        if attach != "native" {
            continue;
        }
        // Told by the owner: b1 can say nothing any more.
        cluster.net().isolate("b1").unwrap();
        for watches in &watches {
            let expected = watches.by_node()["b1"];
            assert!(expected > 0);
            let ended = wait_until("the streams of b1 to end", 2 * patience(), || {
                let ended = watches.ended();
                Ok((ended.len() >= expected).then_some(ended))
            })
            .unwrap();
            let other = ended
                .iter()
                .find(|(node, why)| node != "b1" || !why.contains("reset"));
            assert_eq!(other, None);
        }
        nothing_dropped(&cluster);
    }
}

/// The strict rules of the masters have had nothing to drop of what came in or through. On the way out some
/// segments of the node's own checks are dropped when xvip ends in the middle of them.
fn nothing_dropped(cluster: &Cluster) {
    for node in cluster.masters() {
        let rules = cluster
            .node(&node)
            .run("nft", &["list", "table", "inet", "strict"])
            .unwrap();
        let mut counted = rules
            .lines()
            .filter(|line| line.contains("counter packets") && !line.contains("invalid out"));
        let dropped = counted.find(|line| !line.contains("counter packets 0 "));
        assert_eq!(dropped, None, "{node}");
    }
}

/// Without adverts let in both nodes take themselves for the owner.
#[test]
fn a_firewall_that_drops_adverts_makes_two_owners() {
    skip_unless_root!();
    skip_unless_installed!("nft");
    let cluster = cluster("native");
    let rules = "table inet deaf { chain input { type filter hook input priority 0; ip protocol 112 drop; meta l4proto 112 drop; }; }";
    let file = cluster.node("m2").directory().join("deaf.nft");
    fs::write(&file, rules).unwrap();
    cluster
        .node("m2")
        .run("nft", &["-f", &file.display().to_string()])
        .unwrap();
    cluster.wait_state("m2", VrrpState::Active).unwrap();
    let said = cluster.xvip("m1").output();
    assert!(
        said.contains("see whether it hears this node's adverts"),
        "{said}"
    );
}

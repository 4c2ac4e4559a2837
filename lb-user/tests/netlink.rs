//! Netlink, sysctls, announcements and socket facts against the kernel, in network namespaces
//! that each test makes for itself. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed unwrap is a failed test, in its helpers too"
)]

use std::{
    fs::File,
    net::{IpAddr, UdpSocket},
    os::fd::AsRawFd,
    path::Path,
    process::Command,
    time::Duration,
};

use ipnet::IpNet;
use lb_user::{
    core::frame::mac_text,
    io::{
        announce::Announcer,
        ethtool,
        mounts::{self, Bpffs},
        netlink::{
            AddressInfo, AddressSpec, Lifetime, LinkInfo, LinkType, NeighbourInfo, NeighbourState,
            NetEvent, NetEvents, Netlink, Resolution,
        },
        netns,
        packet_socket::PacketError,
        sysctl::{self, Requirement, Wanted},
    },
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

/// A network namespace without a name: it ends with the last file and thread in it, so there is
/// nothing to clean up, whatever becomes of the test.
struct Namespace {
    file: File,
}

impl Namespace {
    fn new() -> Self {
        let file = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace (needs root)");
            File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap();
        let namespace = Self { file };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `work` in a thread in this namespace.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = || {
                setns(&self.file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            };
            match scope.spawn(inside).join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs asynchronous `work`, which has 30 s: far more than anything here takes.
    fn run_async<T: Send, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send) -> T {
        self.run(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(async {
                    tokio::time::timeout(Duration::from_secs(30), work())
                        .await
                        .expect("what is waited for happens within 30 s")
                })
        })
    }

    /// Runs `ip` in this namespace and returns its output.
    fn ip(&self, arguments: &str) -> String {
        self.run(|| {
            let output = Command::new("ip")
                .args(arguments.split_whitespace())
                .output()
                .unwrap();
            assert!(output.status.success(), "ip {arguments}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        })
    }

    /// A path by which another process can name this namespace.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// The addresses of a device as `ip` shows them.
    fn shown_address(&self, device: &str, addr: &str) -> serde_json::Value {
        let text = self.ip(&format!("-j addr show dev {device}"));
        let links: serde_json::Value = serde_json::from_str(&text).unwrap();
        links
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|link| link["addr_info"].as_array())
            .flatten()
            .find(|entry| entry["local"] == addr)
            .unwrap_or_else(|| panic!("{addr} is not on {device}: {text}"))
            .clone()
    }

    /// The address that the kernel gives a socket that connects to `destination`.
    fn source_for(&self, destination: &str) -> IpAddr {
        self.run(|| {
            let any = if destination.contains(':') {
                "[::]:0"
            } else {
                "0.0.0.0:0"
            };
            let socket = UdpSocket::bind(any).unwrap();
            socket
                .connect((destination.parse::<IpAddr>().unwrap(), 9))
                .unwrap();
            socket.local_addr().unwrap().ip()
        })
    }
}

/// Two nodes on one link: `eth0` of the first has 10.0.2.10/24 and `fd00:2::10/64`, that of
/// the second `10.0.2.20/24` and `fd00:2::20/64`.
struct Pair {
    node: Namespace,
    peer: Namespace,
}

impl Pair {
    fn new() -> Self {
        let (node, peer) = (Namespace::new(), Namespace::new());
        node.ip(&format!(
            "link add eth0 type veth peer name eth0 netns {}",
            peer.path()
        ));
        for (namespace, number) in [(&node, 10), (&peer, 20)] {
            namespace.ip(&format!("addr add 10.0.2.{number}/24 dev eth0"));
            namespace.ip(&format!("addr add fd00:2::{number}/64 dev eth0 nodad"));
        }
        // Each end has carrier once both are set up, and sends what it is given (rather than
        // dropping it silently) once that is announced.
        std::thread::scope(|scope| {
            for namespace in [&node, &peer] {
                scope.spawn(|| namespace.run_async(|| Self::bring_up(namespace)));
            }
        });
        Self { node, peer }
    }

    async fn bring_up(namespace: &Namespace) {
        let mut events = NetEvents::open().unwrap();
        namespace.ip("link set eth0 up");
        events_until(
            &mut events,
            |event| matches!(event, NetEvent::Link(link) if link.name == "eth0" && link.up),
        )
        .await;
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn link(netlink: &mut Netlink, name: &str) -> LinkInfo {
    let mut links = netlink.links().unwrap().into_iter();
    links.find(|link| link.name == name).unwrap()
}

fn find_address(netlink: &mut Netlink, wanted: IpNet) -> Option<AddressInfo> {
    let mut addresses = netlink.addresses().unwrap().into_iter();
    addresses.find(|address| address.net == wanted)
}

/// The events up to the first that `last` accepts, with it.
async fn events_until(events: &mut NetEvents, last: impl Fn(&NetEvent) -> bool) -> Vec<NetEvent> {
    let mut seen = Vec::new();
    loop {
        let event = events.next().await.unwrap();
        assert_ne!(event, NetEvent::Overrun);
        let found = last(&event);
        seen.push(event);
        if found {
            return seen;
        }
    }
}

/// Links are read with name, index, MAC, MTU and whether they are up, and agree with `ip`.
#[test]
fn links_are_read_whole() {
    let pair = Pair::new();
    let links = pair.node.run(|| Netlink::open().unwrap().links().unwrap());
    let text = pair.node.ip("-j link show");
    let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
    let shown = shown.as_array().unwrap();
    assert_eq!(links.len(), shown.len());
    for (link, shown) in links.iter().zip(shown) {
        assert_eq!(u64::from(link.ifindex), shown["ifindex"]);
        assert_eq!(link.name, shown["ifname"].as_str().unwrap());
        assert_eq!(u64::from(link.mtu), shown["mtu"]);
        let mac = link.mac.map(mac_text);
        assert_eq!(mac.as_deref(), shown["address"].as_str());
    }
    assert!(links.iter().any(|link| link.name == "eth0" && link.up));
}

/// A link whose other end goes down loses its carrier: it is not up, though set up. The event
/// says so, and says when it comes back.
#[test]
fn carrier_loss_is_seen() {
    let pair = Pair::new();
    pair.node.run_async(async || {
        let mut events = NetEvents::open().unwrap();
        for (verb, up) in [("down", false), ("up", true)] {
            pair.peer.ip(&format!("link set eth0 {verb}"));
            events_until(&mut events, |event| {
                matches!(event, NetEvent::Link(link) if link.name == "eth0" && link.up == up)
            })
            .await;
            assert_eq!(link(&mut Netlink::open().unwrap(), "eth0").up, up);
        }
    });
}

/// The owner's IPv4 VIP keeps its prefix length, is secondary to the node's own address, runs
/// out, and carries xvip's mark. Renewing sets a new lifetime and leaves one address.
#[test]
fn ipv4_vip_is_added_and_renewed() {
    let pair = Pair::new();
    pair.node.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let ifindex = link(&mut netlink, "eth0").ifindex;
        for seconds in [100, 300] {
            let [valid, least] = [seconds, seconds - 20].map(Duration::from_secs);
            let spec = AddressSpec::owned_vip(ifindex, net("10.0.2.100/24"), valid);
            netlink.set_address(&spec).unwrap();
            let found = find_address(&mut netlink, spec.net).unwrap();
            let near = Lifetime::at_least(least)..=Lifetime::at_least(valid);
            assert!(near.contains(&found.valid), "{found:?}");
            assert!(near.contains(&found.preferred), "{found:?}");
            assert!(
                found.secondary && found.ours && !found.is_permanent(),
                "{found:?}"
            );
            assert_eq!(found.ifindex, ifindex);
        }
        let own = find_address(&mut netlink, net("10.0.2.10/24")).unwrap();
        assert!(own.is_permanent() && !own.secondary && !own.ours, "{own:?}");
        assert_eq!(own.valid, Lifetime::Forever);
        let count = netlink.addresses().unwrap().len();
        assert_eq!(
            count, 6,
            "lo and eth0: two each, the link-local and the VIP"
        );
    });
}

/// `ip addr` shows the owner's IPv6 VIP as /128, deprecated, without duplicate address
/// detection, and its valid lifetime.
#[test]
fn ipv6_vip_is_as_ip_addr_shows_it() {
    let pair = Pair::new();
    pair.node.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let ifindex = link(&mut netlink, "eth0").ifindex;
        let spec = AddressSpec::owned_vip(
            ifindex,
            net("fd00:2::100/64"),
            Duration::from_millis(99_100),
        );
        netlink.set_address(&spec).unwrap();
        netlink.set_address(&spec).unwrap();
        let found = find_address(&mut netlink, net("fd00:2::100/128")).unwrap();
        assert_eq!(found.preferred, Lifetime::Seconds(0));
        assert!(
            !found.tentative && !found.is_permanent() && found.ours,
            "{found:?}"
        );
    });
    let shown = pair.node.shown_address("eth0", "fd00:2::100");
    assert_eq!(shown["prefixlen"], 128);
    assert_eq!(shown["preferred_life_time"], 0);
    assert_eq!(shown["deprecated"], true);
    assert_eq!(shown["nodad"], true);
    assert_eq!(shown["noprefixroute"], true);
    let valid = shown["valid_life_time"].as_u64().unwrap();
    assert!((80..=100).contains(&valid), "{shown}");
}

/// VIPs on `lo` are permanent host addresses; the IPv6 one is deprecated from the start.
#[test]
fn loopback_vips_are_permanent() {
    let namespace = Namespace::new();
    namespace.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let lo = link(&mut netlink, "lo").ifindex;
        for vip in ["10.0.2.100", "fd00:2::100"] {
            let spec = AddressSpec::loopback_vip(lo, addr(vip));
            netlink.set_address(&spec).unwrap();
            netlink.set_address(&spec).unwrap();
            let found = find_address(&mut netlink, IpNet::from(addr(vip))).unwrap();
            assert!(found.is_permanent() && !found.tentative, "{found:?}");
            assert_eq!((found.valid, found.preferred), (spec.valid, spec.preferred));
        }
    });
    let shown = namespace.shown_address("lo", "10.0.2.100");
    assert_eq!(shown["scope"], "host");
    assert_eq!(shown["prefixlen"], 32);
    let shown = namespace.shown_address("lo", "fd00:2::100");
    assert_eq!(shown["deprecated"], true);
    assert_eq!(shown["prefixlen"], 128);
}

/// A VIP that nobody renews disappears by itself, and the removal is announced.
#[test]
fn unrenewed_vips_expire() {
    let pair = Pair::new();
    for vip in ["10.0.2.100/24", "fd00:2::100/128"] {
        let vip = net(vip);
        pair.node.run_async(async || {
            let mut events = NetEvents::open().unwrap();
            let mut netlink = Netlink::open().unwrap();
            let ifindex = link(&mut netlink, "eth0").ifindex;
            let spec = AddressSpec::owned_vip(ifindex, vip, Duration::from_secs(1));
            netlink.set_address(&spec).unwrap();
            let seen = events_until(&mut events, |event| {
                *event == NetEvent::AddressRemoved { ifindex, net: vip }
            })
            .await;
            let added = |event: &NetEvent| {
                matches!(event, NetEvent::Address(info) if info.net == vip && info.ours)
            };
            assert!(seen.iter().any(added), "{seen:?}");
            assert_eq!(find_address(&mut netlink, vip), None);
        });
    }
}

/// Removing takes the address with that prefix length alone, and is content if there is none,
/// or no such link.
#[test]
fn removal_is_exact_and_idempotent() {
    let pair = Pair::new();
    pair.node.ip("addr add 10.0.2.100/32 dev eth0");
    pair.node.ip("addr add 10.0.2.100/24 dev eth0");
    pair.node.ip("addr add fd00:2::100/128 dev eth0 nodad");
    pair.node.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let ifindex = link(&mut netlink, "eth0").ifindex;
        netlink
            .remove_address(ifindex, net("10.0.2.100/24"))
            .unwrap();
        assert_eq!(find_address(&mut netlink, net("10.0.2.100/24")), None);
        assert!(find_address(&mut netlink, net("10.0.2.100/32")).is_some());
        netlink
            .remove_address(ifindex, net("fd00:2::100/64"))
            .unwrap();
        assert!(find_address(&mut netlink, net("fd00:2::100/128")).is_some());
        netlink
            .remove_address(ifindex, net("fd00:2::100/128"))
            .unwrap();
        assert_eq!(find_address(&mut netlink, net("fd00:2::100/128")), None);
        for absent in ["10.0.2.100/24", "fd00:2::100/128"] {
            netlink.remove_address(ifindex, net(absent)).unwrap();
            netlink.remove_address(ifindex + 100, net(absent)).unwrap();
        }
    });
}

/// A refused request says what was asked for, with the kernel's error.
#[test]
fn refusals_name_the_request() {
    Namespace::new().run(|| {
        let mut netlink = Netlink::open().unwrap();
        let spec = AddressSpec::owned_vip(4711, net("10.0.2.100/24"), Duration::from_secs(3));
        let error = netlink.set_address(&spec).unwrap_err();
        assert_eq!(error.errno(), Some(nix::errno::Errno::ENODEV));
        let text = error.to_string();
        assert!(
            text.contains("10.0.2.100/24") && text.contains("4711"),
            "{text}"
        );
        // The socket goes on.
        assert_eq!(netlink.links().unwrap().len(), 1);
    });
}

/// Another namespace's state is neither seen nor announced, also when the socket is used from a
/// thread elsewhere.
#[test]
fn a_socket_stays_in_its_namespace() {
    let (here, there) = (Namespace::new(), Namespace::new());
    there.ip("link add away type bridge");
    let mut netlink = here.run(|| Netlink::open().unwrap());
    let names = there.run(|| netlink.links().unwrap());
    assert_eq!(names.len(), 1);
    assert_eq!(names[0].name, "lo");
}

/// A bridge and a pair of virtual interfaces are told from other links.
#[test]
fn kinds_are_told_from_other_links() {
    let namespace = Namespace::new();
    namespace.ip("link add br0 type bridge");
    namespace.ip("link add v0 type veth peer name v1");
    let links = namespace.run(|| Netlink::open().unwrap().links().unwrap());
    let kind = |name: &str| links.iter().find(|link| link.name == name).unwrap().kind;
    assert_eq!(kind("br0"), LinkType::Bridge);
    assert_eq!(kind("v0"), LinkType::Veth);
    assert_eq!(kind("lo"), LinkType::Other);
}

/// Whether an interface keeps VLAN tags from XDP programs is what its feature says.
#[test]
fn stripped_vlan_tags_are_told() {
    let namespace = Namespace::new();
    namespace.ip("link add v0 type veth peer name v1");
    for feature in [false, true].map(ethtool::tag_stripping) {
        for (state, expected) in [("off", false), ("on", true)] {
            let told = namespace.run(|| {
                let mut ethtool = Command::new("ethtool");
                let set = ethtool.args(["-K", "v0", feature, state]).output();
                assert!(set.unwrap().status.success());
                ethtool::has_feature("v0", feature).unwrap()
            });
            assert_eq!(told, expected, "{feature} {state}");
        }
    }
}

/// A port that leaves its bridge is no link that is gone; a deleted link is.
#[test]
fn leaving_a_bridge_is_no_removal() {
    let pair = Pair::new();
    pair.node.ip("link add br0 type bridge");
    pair.node.run_async(async || {
        let mut events = NetEvents::open().unwrap();
        let mut netlink = Netlink::open().unwrap();
        let (eth0, br0) = (link(&mut netlink, "eth0"), link(&mut netlink, "br0"));
        pair.node.ip("link set eth0 master br0");
        pair.node.ip("link set eth0 nomaster");
        pair.node.ip("link del br0");
        let seen = events_until(&mut events, |event| {
            *event
                == NetEvent::LinkRemoved {
                    ifindex: br0.ifindex,
                }
        })
        .await;
        let gone = NetEvent::LinkRemoved {
            ifindex: eth0.ifindex,
        };
        assert!(!seen.contains(&gone), "{seen:?}");
    });
}

/// Events that did not fit are reported as an overrun, and the stream goes on after it.
#[test]
fn lost_events_are_reported() {
    let namespace = Namespace::new();
    namespace.run_async(async || {
        let mut events = NetEvents::open_with_buffer(1).unwrap();
        let mut netlink = Netlink::open().unwrap();
        let lo = link(&mut netlink, "lo").ifindex;
        for last in 1..=200 {
            let vip = addr(&format!("10.0.3.{last}"));
            netlink
                .set_address(&AddressSpec::loopback_vip(lo, vip))
                .unwrap();
        }
        while events.next().await.unwrap() != NetEvent::Overrun {}
        while events.try_next().unwrap().is_some() {}
        let vip = net("10.0.4.1/32");
        let spec = AddressSpec::loopback_vip(lo, vip.addr());
        netlink.set_address(&spec).unwrap();
        events_until(
            &mut events,
            |event| matches!(event, NetEvent::Address(info) if info.net == vip),
        )
        .await;
    });
}

/// The next hop on the link is the destination, elsewhere the gateway; own addresses are local;
/// without a route, or with one that refuses, there is none.
#[test]
fn next_hops_are_told_apart() {
    let pair = Pair::new();
    pair.node.ip("route add 192.0.2.0/24 via 10.0.2.20");
    pair.node
        .ip("route add 198.51.100.0/24 via inet6 fd00:2::20 dev eth0");
    pair.node.ip("route add 2001:db8::/32 via fd00:2::20");
    pair.node.ip("route add unreachable 203.0.113.0/26");
    pair.node.ip("route add prohibit 203.0.113.64/26");
    pair.node.ip("route add blackhole 203.0.113.128/26");
    pair.node.ip("route add unreachable 2001:db8:1::/48");
    pair.node.ip("route add blackhole 2001:db8:2::/48");
    pair.node.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let ifindex = link(&mut netlink, "eth0").ifindex;
        for (destination, gateway, source) in [
            ("10.0.2.20", "10.0.2.20", "10.0.2.10"),
            ("192.0.2.1", "10.0.2.20", "10.0.2.10"),
            ("198.51.100.1", "fd00:2::20", "10.0.2.10"),
            ("fd00:2::20", "fd00:2::20", "fd00:2::10"),
            ("2001:db8::1", "fd00:2::20", "fd00:2::10"),
        ] {
            let hop = netlink.next_hop(addr(destination)).unwrap().unwrap();
            assert_eq!(hop.ifindex, ifindex, "{destination}");
            assert_eq!(hop.gateway, addr(gateway), "{destination}");
            assert_eq!(hop.source, Some(addr(source)), "{destination}");
            assert!(!hop.local, "{destination}");
        }
        for own in ["10.0.2.10", "fd00:2::10"] {
            assert!(netlink.next_hop(addr(own)).unwrap().unwrap().local, "{own}");
        }
        for nowhere in [
            "203.0.113.1",
            "203.0.113.65",
            "203.0.113.129",
            "8.8.8.8",
            "2001:db8:1::1",
            "2001:db8:2::1",
            "2001:4860::1",
        ] {
            assert_eq!(netlink.next_hop(addr(nowhere)).unwrap(), None, "{nowhere}");
        }
    });
}

/// A change of the routes is announced.
#[test]
fn route_changes_are_announced() {
    let pair = Pair::new();
    pair.node.run_async(async || {
        let mut events = NetEvents::open().unwrap();
        for route in ["192.0.2.0/24 via 10.0.2.20", "2001:db8::/32 via fd00:2::20"] {
            for verb in ["add", "del"] {
                pair.node.ip(&format!("route {verb} {route}"));
                events_until(&mut events, |event| *event == NetEvent::Routes).await;
            }
        }
    });
}

/// A neighbour that is to be kept becomes reachable without any traffic, is shown as managed,
/// and is an ordinary one after `forget`, which does not lose its MAC.
#[test]
fn kept_neighbours_resolve_by_themselves() {
    let pair = Pair::new();
    let mac = pair
        .peer
        .run(|| link(&mut Netlink::open().unwrap(), "eth0").mac);
    for peer in ["10.0.2.20", "fd00:2::20"] {
        let peer = addr(peer);
        pair.node.run_async(async || {
            let mut events = NetEvents::open().unwrap();
            let mut netlink = Netlink::open().unwrap();
            let ifindex = link(&mut netlink, "eth0").ifindex;
            assert_eq!(netlink.neighbour(ifindex, peer).unwrap(), None);
            netlink.forget(ifindex, peer).unwrap();
            for _ in 0..2 {
                let how = netlink.keep_resolved(ifindex, peer).unwrap();
                assert_eq!(how, Resolution::Managed);
                // The trial that changes nothing says the same.
                assert!(netlink.knows_managed_neighbours().unwrap());
            }
            let reachable = NeighbourInfo {
                ifindex,
                addr: peer,
                mac,
                state: NeighbourState::Reachable,
                managed: true,
            };
            events_until(&mut events, |event| {
                *event == NetEvent::Neighbour(reachable.clone())
            })
            .await;
            assert!(netlink.neighbours().unwrap().contains(&reachable));
            netlink.forget(ifindex, peer).unwrap();
            let left = netlink.neighbour(ifindex, peer).unwrap().unwrap();
            assert_eq!((left.managed, left.mac), (false, mac));
        });
    }
}

/// A neighbour that does not answer is announced as failed and has no MAC to send to.
#[test]
fn silent_neighbours_fail() {
    let pair = Pair::new();
    pair.node.run_async(async || {
        let mut events = NetEvents::open().unwrap();
        let mut netlink = Netlink::open().unwrap();
        let ifindex = link(&mut netlink, "eth0").ifindex;
        for silent in ["10.0.2.99", "fd00:2::99"] {
            let silent = addr(silent);
            netlink.keep_resolved(ifindex, silent).unwrap();
            let seen = events_until(&mut events, |event| {
                matches!(event, NetEvent::Neighbour(entry)
                    if entry.addr == silent && entry.state == NeighbourState::Failed)
            })
            .await;
            assert!(seen.iter().all(|event| {
                !matches!(event, NetEvent::Neighbour(entry)
                    if entry.addr == silent && entry.mac.is_some())
            }));
        }
    });
}

/// An administrator's static entry serves as it is: neither keeping nor forgetting touches it.
#[test]
fn static_neighbours_are_left_alone() {
    let pair = Pair::new();
    let entry = "10.0.2.20 lladdr 02:00:00:00:00:99 dev eth0 nud permanent";
    pair.node.ip(&format!("neigh add {entry}"));
    pair.node.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let ifindex = link(&mut netlink, "eth0").ifindex;
        let peer = addr("10.0.2.20");
        let before = netlink.neighbour(ifindex, peer).unwrap();
        let how = netlink.keep_resolved(ifindex, peer).unwrap();
        assert_eq!(how, Resolution::Static);
        netlink.forget(ifindex, peer).unwrap();
        assert_eq!(netlink.neighbour(ifindex, peer).unwrap(), before);
        assert_eq!(before.unwrap().mac, Some([2, 0, 0, 0, 0, 0x99]));
    });
}

/// The node's own traffic never leaves with a VIP as source, on the owner (VIP on `eth0`) or on
/// the others (VIP on `lo`), not even by an interface that has no address to offer.
#[test]
fn vips_are_never_the_source() {
    let pair = Pair::new();
    pair.node.ip("link add bare type veth peer name other");
    pair.node.ip("link set bare up");
    pair.node.ip("link set other up");
    pair.node.ip("route add 192.0.2.0/24 dev bare");
    pair.node.ip("route add 2001:db8::/32 dev bare");
    pair.node.ip("route add 198.51.100.0/24 via 10.0.2.20");
    pair.node.ip("route add 2001:db8:1::/48 via fd00:2::20");
    let destinations = [
        ("10.0.2.101", "10.0.2.10"),
        ("192.0.2.1", "10.0.2.10"),
        ("198.51.100.1", "10.0.2.10"),
        ("fd00:2::101", "fd00:2::10"),
        ("2001:db8::1", "fd00:2::10"),
        ("2001:db8:1::1", "fd00:2::10"),
    ];
    let check = |place: &str| {
        for (destination, own) in destinations {
            let hop = pair
                .node
                .run(|| Netlink::open().unwrap().next_hop(addr(destination)));
            let source = hop.unwrap().unwrap().source;
            assert_eq!(source, Some(addr(own)), "{destination}, VIP on {place}");
            let used = pair.node.source_for(destination);
            assert_eq!(used, addr(own), "{destination}, VIP on {place}");
        }
    };
    pair.node.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let lo = link(&mut netlink, "lo").ifindex;
        for vip in ["10.0.2.100", "fd00:2::100"] {
            netlink
                .set_address(&AddressSpec::loopback_vip(lo, addr(vip)))
                .unwrap();
        }
    });
    check("lo");
    pair.node.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let ifindex = link(&mut netlink, "eth0").ifindex;
        for vip in ["10.0.2.100/24", "fd00:2::100/64"] {
            let valid = Duration::from_mins(5);
            netlink
                .set_address(&AddressSpec::owned_vip(ifindex, net(vip), valid))
                .unwrap();
        }
    });
    check("eth0 and lo");
}

/// Without `preferred_lft 0` an IPv6 VIP does become the source: what the test above rules out
/// is real.
#[test]
fn a_preferred_ipv6_vip_would_be_the_source() {
    let pair = Pair::new();
    pair.node.ip("addr add fd00:2::100/128 dev eth0 nodad");
    assert_eq!(pair.node.source_for("fd00:2::101"), addr("fd00:2::100"));
}

/// What local delivery needs is set once, said, kept where it is stricter, and can be undone.
#[test]
fn sysctls_are_ensured_and_restored() {
    let namespace = Namespace::new();
    namespace.run(|| {
        let announce = Path::new("/proc/sys/net/ipv4/conf/all/arp_announce");
        let ignore = Path::new("/proc/sys/net/ipv4/conf/all/arp_ignore");
        sysctl::write(ignore, 2).unwrap();
        let wanted = sysctl::for_local_delivery();
        let changes = sysctl::ensure(&wanted).unwrap();
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].path, announce);
        assert_eq!((changes[0].before, changes[0].after), (0, 2));
        assert_eq!(sysctl::read(ignore).unwrap(), 2);
        assert_eq!(sysctl::ensure(&wanted).unwrap(), []);
        sysctl::restore(&changes).unwrap();
        assert_eq!(sysctl::read(announce).unwrap(), 0);
    });
}

/// `/proc/sys/net` is that of the calling thread's namespace.
#[test]
fn sysctls_are_those_of_the_namespace() {
    let (here, there) = (Namespace::new(), Namespace::new());
    let path = sysctl::ipv4_conf("lo", "arp_ignore").unwrap();
    let wanted = [Requirement {
        path: path.clone(),
        wanted: Wanted::Exactly(1),
    }];
    here.run(|| sysctl::ensure(&wanted).unwrap());
    assert_eq!(here.run(|| sysctl::read(&path).unwrap()), 1);
    assert_eq!(there.run(|| sysctl::read(&path).unwrap()), 0);
}

/// With the setting for VIP interfaces, removing a VIP that had become the primary address of
/// its subnet leaves the node's own address in place.
#[test]
fn removing_a_primary_vip_keeps_the_nodes_address() {
    let pair = Pair::new();
    pair.node.ip("addr flush dev eth0");
    pair.node.run(|| {
        sysctl::ensure(&sysctl::for_vip_interface("eth0").unwrap()).unwrap();
        let mut netlink = Netlink::open().unwrap();
        let ifindex = link(&mut netlink, "eth0").ifindex;
        let vip = net("10.0.2.100/24");
        let spec = AddressSpec::owned_vip(ifindex, vip, Duration::from_mins(5));
        netlink.set_address(&spec).unwrap();
        pair.node.ip("addr add 10.0.2.10/24 dev eth0");
        let own = net("10.0.2.10/24");
        assert!(find_address(&mut netlink, own).unwrap().secondary);
        netlink.remove_address(ifindex, vip).unwrap();
        assert!(!find_address(&mut netlink, own).unwrap().secondary);
    });
}

/// An announcement moves the neighbours' entries for the VIP to the new owner's MAC, also where
/// the entry was confirmed this very moment, and both families alike.
#[test]
fn announcements_move_the_neighbours_entries() {
    let pair = Pair::new();
    for vip in ["10.0.2.100", "fd00:2::100"] {
        pair.peer.ip(&format!(
            "neigh replace {vip} lladdr 02:00:00:00:00:99 dev eth0 nud reachable"
        ));
        pair.peer.run_async(async || {
            let mut events = NetEvents::open().unwrap();
            let mac = pair.node.run(|| {
                let eth0 = link(&mut Netlink::open().unwrap(), "eth0");
                let mac = eth0.mac.unwrap();
                let announcer = Announcer::open(eth0.ifindex).unwrap();
                announcer.announce(mac, addr(vip)).unwrap();
                mac
            });
            events_until(&mut events, |event| {
                matches!(event, NetEvent::Neighbour(entry)
                    if entry.addr == addr(vip) && entry.mac == Some(mac))
            })
            .await;
        });
    }
}

/// Announcing on a link that is not there, or is down, is an error that names the link.
#[test]
fn announcing_on_a_missing_link_fails() {
    let pair = Pair::new();
    pair.node.run(|| {
        assert!(matches!(
            Announcer::open(4711),
            Err(PacketError::NoLink { ifindex: 4711 })
        ));
        let eth0 = link(&mut Netlink::open().unwrap(), "eth0");
        let announcer = Announcer::open(eth0.ifindex).unwrap();
        pair.node.ip("link set eth0 down");
        let error = announcer
            .announce(eth0.mac.unwrap(), addr("10.0.2.100"))
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("link {}", eth0.ifindex))
        );
    });
}

/// Every network namespace has an id of its own, the same each time.
#[test]
fn namespaces_have_their_own_ids() {
    let (here, there) = (Namespace::new(), Namespace::new());
    let cookie = |namespace: &Namespace| namespace.run(|| netns::cookie().unwrap());
    assert_eq!(cookie(&here), cookie(&here));
    assert_ne!(cookie(&here), cookie(&there));
    assert_ne!(cookie(&here).get(), 0);
}

/// A directory becomes a BPF file system once, and is then left as it is. In a mount namespace
/// of the test's own.
#[test]
fn the_bpf_file_system_is_mounted_once() {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let target = Path::new("/mnt");
        mount(
            Some("t"),
            target,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        assert_eq!(mounts::ensure_bpffs(target).unwrap(), Bpffs::Mounted);
        assert_eq!(mounts::ensure_bpffs(target).unwrap(), Bpffs::Present);
        let missing = mounts::ensure_bpffs(Path::new("/mnt/none")).unwrap_err();
        assert!(missing.to_string().contains("/mnt/none"), "{missing}");
    })
    .join()
    .unwrap();
}

/// The root of cgroup2 is found and opened on this machine, or its absence is said.
#[test]
fn the_cgroup_root_opens() {
    use lb_user::config::model::CgroupPath;
    let found = mounts::open_cgroup(&CgroupPath::Auto);
    match found {
        Ok(cgroup) => assert!(cgroup.unwrap().path.join("cgroup.procs").exists()),
        Err(error) => assert!(matches!(error, mounts::MountError::NoCgroup2), "{error}"),
    }
}

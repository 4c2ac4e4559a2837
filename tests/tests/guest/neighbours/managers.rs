//! What manages addresses of the uplink: systemd-networkd and `NetworkManager`, each in a mount namespace
//! of its own. /sys is read-only there, from which both see that there is no udev to wait for.

use std::{fs, net::IpAddr, path::Path};

use anyhow::Result;

use lb_tests::{
    cluster::{Cluster, patience},
    control_plane::BOTH,
    process::{Process, wait_until},
    skip, skip_unless_installed, skip_unless_root,
    topology::Node,
};
use lb_user::admin::model::VrrpState;

use super::{cluster, works};

const NETWORKD: &str = "/lib/systemd/systemd-networkd";

/// Executes a program (`$@`) with a /run that the node's directory has (`$0`).
const PRIVATE: &str = r#"mount --make-rprivate / && mount -t sysfs -o ro sys /sys &&
    mount --bind "$0/run" /run && exec "$@""#;

/// Starts a program so.
fn start(node: &Node, label: &str, words: &[&str]) -> Process {
    let directory = node.directory().display().to_string();
    let wrapper = ["--mount", "sh", "-c", PRIVATE, &directory];
    node.start(label, "unshare", &[&wrapper, words].concat())
        .unwrap()
}

/// Runs one so; what it says.
fn run(node: &Node, words: &[&str]) -> Result<String> {
    let directory = node.directory().display().to_string();
    let wrapper = ["--mount", "sh", "-c", PRIVATE, &directory];
    node.run("unshare", &[&wrapper, words].concat())
}

/// The node's own connections leave from its own addresses.
fn own_source(cluster: &Cluster, node: &str) {
    for vip in BOTH {
        let to = cluster.client().address_like(vip);
        let own = cluster.node(node).address_like(vip);
        let route = || {
            cluster
                .node(node)
                .namespace()
                .ip(&format!("route get {to}"))
        };
        cluster
            .wait(&format!("{own} as source of {node}"), || {
                let route = route()?;
                anyhow::ensure!(route.contains(&format!("src {own} ")), "{route}");
                Ok(Some(()))
            })
            .unwrap();
    }
}

/// All VIPs are where they have to be, with m1 as owner.
fn is_whole(cluster: &Cluster) {
    cluster.wait_settled("m1").unwrap();
    for vip in BOTH {
        for (node, interface) in [("m1", "eth0"), ("m1", "lo"), ("m2", "lo")] {
            cluster.wait_has(node, interface, vip, true).unwrap();
        }
    }
    works(cluster);
    own_source(cluster, "m1");
}

fn networkd(node: &Node, more: &str) -> Process {
    let run = node.directory().join("run/systemd");
    for name in ["network", "netif/links", "netif/leases", "netif/lldp"] {
        fs::create_dir_all(run.join(name)).unwrap();
    }
    let (ipv4, ipv6) = (node.ipv4(), node.ipv6());
    let text = format!(
        "[Match]\nName=eth0\n[Network]\nIPv6AcceptRA=no\nAddress={ipv4}/24\n{more}\n\
         [Address]\nAddress={ipv6}/64\nDuplicateAddressDetection=none\n"
    );
    fs::write(run.join("network/10-eth0.network"), text).unwrap();
    let netif = run.join("netif").display().to_string();
    node.run("chown", &["-R", "systemd-network:systemd-network", &netif])
        .unwrap();
    let process = start(node, "networkd", &[NETWORKD]);
    process
        .wait_for_output("Configuring with", patience())
        .unwrap();
    process
        .wait_for_output("eth0: Gained carrier", patience())
        .unwrap();
    process
}

/// systemd-networkd manages the owner's uplink: its start, a restart and a lost carrier, after which it has
/// removed and added the node's own addresses, leave the VIPs to xvip.
#[test]
fn systemd_networkd() {
    skip_unless_root!();
    if !Path::new(NETWORKD).exists() {
        skip::note("systemd-networkd is not installed");
        return;
    }
    for more in ["", "KeepConfiguration=static"] {
        let cluster = cluster("native");
        let process = networkd(cluster.node("m1"), more);
        is_whole(&cluster);
        process.terminate(patience()).unwrap();
        is_whole(&cluster);
        let process = networkd(cluster.node("m1"), more);
        is_whole(&cluster);
        cluster.net().cut("m1").unwrap();
        process
            .wait_for_output("eth0: Lost carrier", patience())
            .unwrap();
        cluster.wait_state("m2", VrrpState::Active).unwrap();
        cluster.net().join("m1").unwrap();
        is_whole(&cluster);
    }
}

/// `NetworkManager` with a bus of its own, and the environment of its clients.
struct NetworkManager {
    _bus: Process,
    process: Process,
    bus: String,
}

impl NetworkManager {
    fn start(node: &Node) -> Self {
        let directory = node.directory();
        let at = |name: &str| directory.join(name).display().to_string();
        for name in ["run/NetworkManager", "run/dbus", "connections", "none"] {
            fs::create_dir_all(directory.join(name)).unwrap();
        }
        let conf = format!(
            "[main]\nplugins=keyfile\ndns=none\nrc-manager=unmanaged\nauth-polkit=false\n\
             no-auto-default=*\n[keyfile]\npath={}\n[logging]\nlevel=INFO\n",
            at("connections")
        );
        fs::write(at("NetworkManager.conf"), conf).unwrap();
        let (ipv4, ipv6) = (node.ipv4(), node.ipv6());
        let profile = format!(
            "[connection]\nid=uplink\nuuid=5a5a5a5a-0000-4000-8000-000000000001\ntype=ethernet\n\
             interface-name=eth0\n[ipv4]\nmethod=manual\naddress1={ipv4}/24\n\
             [ipv6]\nmethod=manual\naddress1={ipv6}/64\naddr-gen-mode=0\n"
        );
        let file = at("connections/uplink.nmconnection");
        fs::write(&file, profile).unwrap();
        node.run("chmod", &["600", &file]).unwrap();
        let bus = format!("unix:path={}", at("bus"));
        let policy = format!(
            "<busconfig><type>system</type><listen>{bus}</listen><policy context=\"default\">\
             <allow user=\"*\"/><allow own=\"*\"/><allow send_destination=\"*\"/>\
             <allow receive_sender=\"*\"/></policy></busconfig>"
        );
        fs::write(at("bus.conf"), policy).unwrap();
        let config = format!("--config-file={}", at("bus.conf"));
        let daemon = node
            .start(
                "bus",
                "dbus-daemon",
                &[&config, "--nofork", "--nopidfile", "--print-address"],
            )
            .unwrap();
        daemon.wait_for_output("unix:path", patience()).unwrap();
        let process = Self::start_on(node, &bus);
        Self {
            _bus: daemon,
            process,
            bus,
        }
    }

    fn start_on(node: &Node, bus: &str) -> Process {
        let at = |name: &str| node.directory().join(name).display().to_string();
        let bus = format!("DBUS_SYSTEM_BUS_ADDRESS={bus}");
        let options = [
            ("config", "NetworkManager.conf"),
            ("config-dir", "none"),
            ("system-config-dir", "none"),
            ("intern-config", "intern.conf"),
            ("state-file", "state"),
        ];
        let options: Vec<_> = options
            .iter()
            .map(|(name, file)| format!("--{name}={}", at(file)))
            .collect();
        let mut words = vec!["env", &bus, "NetworkManager", "--no-daemon"];
        words.extend(options.iter().map(String::as_str));
        let process = start(node, "NetworkManager", &words);
        let state = [
            "env",
            &bus,
            "nmcli",
            "--terse",
            "--fields",
            "DEVICE,STATE",
            "device",
        ];
        let connected = || Ok(run(node, &state)?.contains("eth0:connected").then_some(()));
        wait_until("NetworkManager to be ready", patience(), connected).unwrap();
        process
    }

    fn cli(&self, node: &Node, words: &[&str]) -> String {
        let bus = format!("DBUS_SYSTEM_BUS_ADDRESS={}", self.bus);
        run(node, &[&["env", &bus, "nmcli"], words].concat()).unwrap()
    }

    fn restart(self, node: &Node) -> Self {
        self.process.terminate(patience()).unwrap();
        Self {
            process: Self::start_on(node, &self.bus),
            ..self
        }
    }
}

/// `NetworkManager` manages the owner's uplink. What it applies takes the VIPs away, and xvip puts them
/// back.
#[test]
fn network_manager() {
    skip_unless_root!();
    skip_unless_installed!("NetworkManager");
    skip_unless_installed!("dbus-daemon");
    let cluster = cluster("native");
    let node = cluster.node("m1");
    let manager = NetworkManager::start(node);
    is_whole(&cluster);
    for words in [
        &["device", "reapply", "eth0"][..],
        &["connection", "up", "uplink"],
    ] {
        let before = cluster.xvip("m1").output().len();
        manager.cli(node, words);
        let gone = || {
            let said = cluster.xvip("m1").output();
            Ok(said[before..].contains("which was gone").then_some(()))
        };
        cluster.wait("xvip to miss its addresses", gone).unwrap();
        is_whole(&cluster);
    }
    let _manager = manager.restart(node);
    is_whole(&cluster);
    cluster.net().cut("m1").unwrap();
    cluster.wait_state("m2", VrrpState::Active).unwrap();
    cluster
        .wait("NetworkManager to take the addresses away", || {
            let own = IpAddr::from(node.ipv4());
            Ok((!cluster.has("m1", "eth0", own)?).then_some(()))
        })
        .unwrap();
    cluster.net().join("m1").unwrap();
    is_whole(&cluster);
}

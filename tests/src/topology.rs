//! Nodes on one bridge.
//!
//! ```text
//!     namespace m1        namespace m2        namespace client
//!    +-----------+       +-----------+       +-----------+
//!    |   eth0    |       |   eth0    |       |   eth0    |  10.77.0.<host>/24, fd77::<host>/64
//!    +-----+-----+       +-----+-----+       +-----+-----+  02:77:00:00:00:<host>
//!          |                   |                   |
//!    +-----+-----+-------+-----+-----+-------+-----+-----+
//!    |    m1             bridge m2               client  |  each with the XDP stub
//!    +---------------------------------------------------+
//!     namespace bridge
//! ```

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use lb_user::{
    core::frame::mac_text,
    io::{
        kernel::WITHOUT,
        netlink::{AddressInfo, Netlink},
    },
};

use crate::{
    device::Device,
    kernel::{self, Cgroup},
    netns::{NetNs, unique},
    process::{Process, TempDir, output, workspace_binary},
    xdp_stub::XdpStub,
};

/// Host number of the first node; the others count on from it.
const FIRST_HOST: u8 = 11;

/// What a topology shall be made of.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    nodes: Vec<(String, u8)>,
    wiring: Wiring,
}

/// How nodes are connected.
#[derive(Clone, Debug, Default)]
struct Wiring {
    tx_offload: bool,
    without_stub: bool,
    device: Device,
    mtu: Option<u32>,
}

impl Builder {
    /// Adds a node; its host number is the next one, from 11 on.
    #[must_use]
    pub fn node(self, name: &str) -> Self {
        let next = self.nodes.iter().map(|(_, host)| host + 1).max();
        self.node_at(name, next.unwrap_or(FIRST_HOST))
    }

    /// Adds a node with a host number of 1..=99: the last part of both of its addresses.
    #[must_use]
    pub fn node_at(mut self, name: &str, host: u8) -> Self {
        self.nodes.push((name.to_owned(), host));
        self
    }

    /// Leaves checksums to the receiver, as Linux does between virtual interfaces. Off by
    /// default: frames that XDP sends on would reach sockets with unfinished checksums.
    #[must_use]
    pub fn tx_offload(mut self, on: bool) -> Self {
        self.wiring.tx_offload = on;
        self
    }

    /// Links as they are between machines whose cards know nothing of XDP: checksums and segments
    /// are left to them ([`Builder::tx_offload`]), and the far ends run no program. What a node
    /// sends by `XDP_TX` gets lost.
    #[must_use]
    pub fn without_xdp(mut self) -> Self {
        self.wiring.tx_offload = true;
        self.wiring.without_stub = true;
        self
    }

    /// Makes eth0 of every node a bridge, with the link as its port, as where virtual machines run
    /// on the nodes.
    #[must_use]
    pub fn bridged(self) -> Self {
        self.device(Device::Bridge)
    }

    /// Makes eth0 of every node something else than a link. VLAN tags are inside the frames on the links,
    /// unless those are without XDP.
    #[must_use]
    pub fn device(mut self, device: Device) -> Self {
        self.wiring.device = device;
        self
    }

    /// Links that take packets of up to so many bytes, where that is more than the usual 1500.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.wiring.mtu = Some(mtu);
        self
    }

    /// Makes it.
    pub fn build(self) -> Result<Topology> {
        kernel::ensure_bpffs()?;
        kernel::sweep()?;
        let bridge = Bridge::new()?;
        let nodes = self
            .nodes
            .iter()
            .map(|(name, host)| Node::new(name, *host, &bridge, &self.wiring))
            .collect::<Result<Vec<_>>>()?;
        let mut net = Topology {
            nodes,
            stubs: vec![],
            wiring: self.wiring,
            bridge,
        };
        let names: Vec<_> = net.nodes.iter().map(|node| node.name.clone()).collect();
        net.attach_stubs(&names)?;
        Ok(net)
    }
}

/// Nodes on a bridge. Dropping it kills every process in them and removes everything.
#[derive(Debug)]
pub struct Topology {
    // In the order of removal: nodes first, so that their processes go before the links do.
    nodes: Vec<Node>,
    stubs: Vec<XdpStub>,
    wiring: Wiring,
    bridge: Bridge,
}

impl Topology {
    /// An empty topology to add nodes to.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The node of this name.
    ///
    /// # Panics
    ///
    /// If there is none: the scenario is wrong.
    #[allow(clippy::panic)]
    pub fn node(&self, name: &str) -> &Node {
        self.find(name)
            .unwrap_or_else(|| panic!("the topology has no node {name}"))
    }

    /// The node of this name, if there is one.
    pub fn find(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// All nodes, in the order in which they were added.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Cuts a node off: the bridge's end of its link goes down, as when a cable is pulled.
    pub fn cut(&self, node: &str) -> Result<()> {
        self.bridge.0.ip(&format!("link set {node} down")).map(drop)
    }

    /// Connects a node again.
    pub fn join(&self, node: &str) -> Result<()> {
        self.bridge.0.ip(&format!("link set {node} up")).map(drop)
    }

    /// Gives a node another link to the bridge: eth1, with this MAC and no IPv4 address.
    pub fn second_link(&self, node: &str) -> Result<[u8; 6]> {
        let node = self.node(node);
        let mac = [0x02, 0x77, 1, 0, 0, node.host];
        let (port, text, far) = (&node.name, mac_text(mac), node.namespace.name());
        self.bridge.0.ip(&format!(
            "link add {port}-2 type veth peer name eth1 address {text} netns {far}"
        ))?;
        self.bridge
            .0
            .ip(&format!("link set {port}-2 master br0 up"))?;
        node.namespace.ip("link set eth1 up")?;
        Ok(mac)
    }

    /// Lets nothing through between a node and the others any more, in silence: unlike
    /// [`Topology::cut`] both ends of its link stay up, as when a switch in between fails.
    pub fn isolate(&self, node: &str) -> Result<()> {
        self.set_port(node, "state", "disabled")
    }

    /// Lets an isolated node's frames through again.
    pub fn reach(&self, node: &str) -> Result<()> {
        self.set_port(node, "state", "forwarding")
    }

    /// Keeps nodes from hearing each other (or no longer), while all others hear them.
    pub fn keep_apart(&self, nodes: &[&str], apart: bool) -> Result<()> {
        let state = if apart { "on" } else { "off" };
        let mut nodes = nodes.iter();
        nodes.try_for_each(|node| self.set_port(node, "isolated", state))
    }

    /// Cuts one of the two links of a node whose eth0 is a bond.
    pub fn cut_link(&self, node: &str, number: usize) -> Result<()> {
        self.set_link(node, number, "down")
    }

    /// Connects it again.
    pub fn join_link(&self, node: &str, number: usize) -> Result<()> {
        self.set_link(node, number, "up")
    }

    fn set_link(&self, node: &str, number: usize, state: &str) -> Result<()> {
        let links = self.wiring.device.links(node);
        let (_, far) = links.get(number).context("no such link")?;
        self.bridge
            .0
            .ip(&format!("link set {far} {state}"))
            .map(drop)
    }

    fn set_port(&self, node: &str, key: &str, value: &str) -> Result<()> {
        let mut bridge = self.bridge.0.command("bridge");
        bridge.args(["link", "set", "dev", node, key, value]);
        output(&mut bridge).map(drop)
    }

    /// Deletes a node's link, as when its card is pulled: eth0 is gone, and its addresses with it.
    pub fn unplug(&self, node: &str) -> Result<()> {
        self.bridge.0.ip(&format!("link del {node}")).map(drop)
    }

    /// Makes the link of an unplugged node again: eth0 has its addresses and MAC, and another index.
    pub fn plug(&mut self, node: &str) -> Result<()> {
        self.node(node).connect(&self.bridge, &self.wiring)?;
        self.attach_stubs(&[node.to_owned()])
    }

    fn attach_stubs(&mut self, ports: &[String]) -> Result<()> {
        if !self.wiring.without_stub {
            let device = self.wiring.device;
            let links = ports.iter().flat_map(|name| device.links(name));
            let far: Vec<_> = links.map(|(_, far)| far).collect();
            let far = far.iter().map(String::as_str);
            let stub = self
                .bridge
                .0
                .enter(|| XdpStub::attach(far, self.wiring.mtu.is_some()))?;
            self.stubs.push(stub);
        }
        Ok(())
    }

    /// The namespace of the bridge: what is captured there is what the wire carries.
    pub fn bridge(&self) -> &NetNs {
        &self.bridge.0
    }
}

/// The bridge, in a namespace of its own: its ports are named after the nodes.
#[derive(Debug)]
struct Bridge(NetNs);

impl Bridge {
    fn new() -> Result<Self> {
        let namespace = NetNs::new("bridge")?;
        namespace.enter(quiet_ipv6)?;
        // Ports forward at once, and every group floods: nothing to learn before VRRP works.
        namespace.ip("link add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0")?;
        namespace.ip("link set br0 up")?;
        namespace.enter(no_firewall)?;
        Ok(Self(namespace))
    }
}

/// One host of the topology.
#[derive(Debug)]
pub struct Node {
    name: String,
    host: u8,
    // In the order of removal: processes, pins, namespace, files.
    cgroup: Cgroup,
    pins: Pins,
    namespace: NetNs,
    directory: TempDir,
}

impl Node {
    fn new(name: &str, host: u8, bridge: &Bridge, wiring: &Wiring) -> Result<Self> {
        if !(1..=99).contains(&host) {
            bail!("host number {host} of {name} is not in 1..=99");
        }
        let unique = unique(name);
        let node = Self {
            name: name.to_owned(),
            host,
            cgroup: Cgroup::new(&unique)?,
            pins: Pins(unique.clone()),
            directory: TempDir::new(&unique)?,
            namespace: NetNs::with_name(unique)?,
        };
        node.connect(bridge, wiring)
            .with_context(|| format!("cannot connect {name} to the bridge"))?;
        Ok(node)
    }

    fn connect(&self, bridge: &Bridge, wiring: &Wiring) -> Result<()> {
        self.namespace.enter(quiet_ipv6)?;
        let (device, bridge) = (wiring.device, &bridge.0);
        let (mac, own) = (mac_text(self.mac()), self.namespace.name());
        for (number, (link, far)) in device.links(&self.name).into_iter().enumerate() {
            // A link below eth0 has a MAC of its own where eth0 has one.
            let address = match (number, device) {
                (0, Device::Link | Device::Bridge | Device::Vlan | Device::DoubleVlan) => {
                    format!("address {mac}")
                }
                _ => String::new(),
            };
            bridge.ip(&format!(
                "link add {far} type veth peer name {link} {address} netns {own}"
            ))?;
            if let Some(mtu) = wiring.mtu {
                bridge.ip(&format!("link set {far} mtu {mtu}"))?;
                self.namespace.ip(&format!("link set {link} mtu {mtu}"))?;
            }
            if !wiring.tx_offload {
                device.tag_in_frames(&self.namespace, link, bridge, &far)?;
                self.no_offload(link)?;
            }
        }
        device.plug_in(bridge, &self.name)?;
        device.assemble(&self.namespace, &mac)?;
        if !wiring.tx_offload && device != Device::Link {
            self.no_offload("eth0")?;
        }
        self.namespace
            .add_address(format_args!("{}/24", self.ipv4()), "eth0")?;
        self.namespace
            .add_address(format_args!("{}/64", self.ipv6()), "eth0")?;
        self.namespace.ip("link set eth0 up")?;
        Ok(())
    }

    /// Leaves no checksums to the receivers of what an interface sends.
    fn no_offload(&self, interface: &str) -> Result<()> {
        let mut ethtool = self.namespace.command("ethtool");
        output(ethtool.args(["-K", interface, "tx", "off"])).map(drop)
    }

    /// Its name, which is its port's on the bridge too.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `10.77.0.<host>`
    pub fn ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.host)
    }

    /// `fd77::<host>`, with the same digits as the IPv4 address.
    pub fn ipv6(&self) -> Ipv6Addr {
        // Decimal digits read as hexadecimal ones.
        let digits = u16::from(self.host / 10) * 16 + u16::from(self.host % 10);
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, digits)
    }

    /// The address of the same family as another one.
    pub fn address_like(&self, other: IpAddr) -> IpAddr {
        if other.is_ipv4() {
            self.ipv4().into()
        } else {
            self.ipv6().into()
        }
    }

    /// Hardware address of its eth0.
    pub fn mac(&self) -> [u8; 6] {
        [0x02, 0x77, 0, 0, 0, self.host]
    }

    /// Name of its xvip instance: no other node on this machine has it.
    pub fn instance(&self) -> &str {
        &self.pins.0
    }

    /// Where its xvip pins programs and maps.
    pub fn pins(&self) -> PathBuf {
        Path::new(kernel::PINS).join(self.instance())
    }

    /// Its directory for configuration, sockets and logs.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Its cgroup, which every process started by [`Node::start`] is in.
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// Halts every process of the node, or lets them go on.
    pub fn set_frozen(&self, frozen: bool) -> Result<()> {
        self.cgroup.set_frozen(frozen)
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &NetNs {
        &self.namespace
    }

    /// Starts a long-running program in the node. Its output goes to `<label>.log` in the node's
    /// directory.
    pub fn start(&self, label: &str, program: &str, arguments: &[&str]) -> Result<Process> {
        let mut command = self.namespace.command(program);
        command.args(arguments);
        let log = self.directory().join(format!("{label}.log"));
        let name = format!("{label} on {}", self.name);
        Process::spawn(&name, &command, Some(self.cgroup()), log)
    }

    /// A command that runs in the node: in its namespace and its cgroup.
    pub fn command(&self, program: &str) -> Command {
        inside(self.cgroup(), &self.namespace.path(), program)
    }

    /// Runs a program in the node to its end; its output.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        output(self.command(program).args(arguments))
    }

    /// The addresses of one of its interfaces.
    pub fn addresses(&self, interface: &str) -> Result<Vec<AddressInfo>> {
        self.namespace.enter(|| {
            let mut netlink = Netlink::open()?;
            let links = netlink.links()?;
            let link = links.iter().find(|link| link.name == interface);
            let ifindex = link.context("no such interface")?.ifindex;
            let mut addresses = netlink.addresses()?;
            addresses.retain(|address| address.ifindex == ifindex);
            Ok(addresses)
        })
    }

    /// Starts the stand-in for an apiserver under this node's name; it writes `ready` when it
    /// listens.
    pub fn stand_in(&self, arguments: &[&str]) -> Result<Process> {
        let binary = workspace_binary("xvip-standin")?;
        let binary = binary
            .to_str()
            .context("the path of xvip-standin is not UTF-8")?;
        let named = [&["--node", self.name.as_str()], arguments].concat();
        self.start("standin", binary, &named)
    }

    /// Starts xvip with a configuration (written to `xvip.toml` in the node's directory).
    pub fn xvip(&self, config: &str) -> Result<Process> {
        self.xvip_without(config, "")
    }

    /// The same, and xvip does without these features of the kernel.
    pub fn xvip_without(&self, config: &str, features: &str) -> Result<Process> {
        let file = self.directory().join("xvip.toml");
        std::fs::write(&file, config)
            .with_context(|| format!("cannot write {}", file.display()))?;
        let binary = workspace_binary("xvip")?;
        let (Some(binary), Some(file)) = (binary.to_str(), file.to_str()) else {
            bail!("{} or {} is not UTF-8", binary.display(), file.display());
        };
        let without = format!("{WITHOUT}={features}");
        let run = ["env", &without, binary, "run", "--config", file];
        if !self.directory().join(HOSTS).exists() {
            return self.start("xvip", "env", run.get(1..).unwrap_or_default());
        }
        let directory = self.directory();
        let directory = directory.to_str().context("a directory is not UTF-8")?;
        let before = ["--mount", "sh", "-c", PRIVATE_HOSTS, directory];
        self.start("xvip", "unshare", &[&before[..], &run[..]].concat())
    }

    /// What `/etc/hosts` says to the xvip of this node, if that is started after the first call; no name
    /// server answers it then.
    pub fn set_hosts(&self, text: &str) -> Result<()> {
        let write = |name, text: &str| {
            // In place: a file that replaces it would be another one than the mounted one.
            std::fs::write(self.directory().join(name), text)
                .with_context(|| format!("cannot write {name}"))
        };
        write(HOSTS, text)?;
        write(
            RESOLVERS,
            "nameserver 127.0.0.1\noptions attempts:1 timeout:1\n",
        )
    }
}

/// A node's own `/etc/hosts`, in its directory.
const HOSTS: &str = "hosts";
/// The same of `/etc/resolv.conf`.
const RESOLVERS: &str = "resolv.conf";
/// Executes a program in mounts of its own (of `unshare --mount`), with the files of the first argument's
/// directory.
const PRIVATE_HOSTS: &str = r#"mount --bind "$0/hosts" /etc/hosts &&
    mount --bind "$0/resolv.conf" /etc/resolv.conf && exec "$@""#;

/// The wildcard address of the same family as another one.
pub fn any_address(other: IpAddr) -> IpAddr {
    if other.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    }
}

/// A command that runs in a node's cgroup and network namespace.
pub fn inside(cgroup: &Path, namespace: &Path, program: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"echo $$ >"$0" && exec "$@""#])
        .arg(cgroup.join("cgroup.procs"))
        .arg("nsenter")
        .arg(format!("--net={}", namespace.display()))
        .arg("--")
        .arg(program);
    command
}

/// Pins outlive processes: they are removed by name.
#[derive(Debug)]
struct Pins(String);

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = kernel::remove_pins(&self.0) {
            eprintln!("left behind: the pins of {}: {error}", self.0);
        }
    }
}

/// Lets bridges switch frames without asking the firewall about them, as a switch does.
fn no_firewall() -> Result<()> {
    for family in ["arptables", "ip6tables", "iptables"] {
        let name = format!("net/bridge/bridge-nf-call-{family}");
        // Kernels without the bridge's netfilter hooks have no such setting.
        if Path::new("/proc/sys").join(&name).exists() {
            kernel::sysctl(&name, "0")?;
        }
    }
    Ok(())
}

/// Addresses are usable at once and nobody asks for routers: nothing in a scenario waits for
/// IPv6's own timers. Before the links exist, because they inherit the defaults.
fn quiet_ipv6() -> Result<()> {
    for scope in ["all", "default"] {
        for name in ["accept_dad", "accept_ra", "router_solicitations"] {
            kernel::sysctl(&format!("net/ipv6/conf/{scope}/{name}"), "0")?;
        }
    }
    Ok(())
}

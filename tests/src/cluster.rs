//! A control plane that runs: masters with xvip and a stand-in each, backends without xvip, and a
//! client, all on one bridge.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use ipnet::IpNet;
use lb_common::reason::Reason;
use lb_user::{
    admin::{
        Paths,
        client::{ClientError, ask_for},
        model::{
            BackendState, BackendStatus, Command, ServiceStatus, Status, VrrpState, VrrpStatus,
        },
    },
    io::{kernel::WITHOUT, netlink::AddressInfo},
};

use crate::{
    client::{self, Load, Report},
    control_plane::ControlPlane,
    device::Device,
    guest,
    process::{Process, output, wait_until, workspace_binary},
    topology::{Node, Topology},
};

/// Longer than anything takes on a machine that is busy with other tests; no scenario waits this
/// long unless it fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The same where the machine may be emulated, which makes everything some ten times slower.
pub fn patience() -> Duration {
    if guest::is_one() {
        PATIENCE * 4
    } else {
        PATIENCE
    }
}

/// Name of the client's node.
const CLIENT: &str = "client";

/// What a cluster shall be made of.
#[derive(Clone, Debug)]
pub struct Builder {
    masters: usize,
    plain_backends: usize,
    bystanders: Vec<String>,
    stand_in: Vec<String>,
    without_features: String,
    tx_offload: bool,
    without_xdp: bool,
    device: Device,
    mtu: Option<u32>,
}

impl Builder {
    /// Nodes `m1`, `m2`, ... with xvip and a stand-in each; 3 by default.
    #[must_use]
    pub fn masters(mut self, count: usize) -> Self {
        self.masters = count;
        self
    }

    /// Nodes `b1`, `b2`, ... with a stand-in and no xvip; none by default.
    #[must_use]
    pub fn plain_backends(mut self, count: usize) -> Self {
        self.plain_backends = count;
        self
    }

    /// One more node, with neither xvip nor stand-in.
    #[must_use]
    pub fn bystander(mut self, name: &str) -> Self {
        self.bystanders.push(name.to_owned());
        self
    }

    /// Arguments of every stand-in; `{ipv4}` and `{ipv6}` are its node's addresses.
    #[must_use]
    pub fn stand_in(mut self, arguments: &[&str]) -> Self {
        self.stand_in = arguments.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Every xvip does without these features of the kernel.
    #[must_use]
    pub fn without_features(mut self, names: &str) -> Self {
        names.clone_into(&mut self.without_features);
        self
    }

    /// As [`crate::topology::Builder::tx_offload`].
    #[must_use]
    pub fn tx_offload(mut self, on: bool) -> Self {
        self.tx_offload = on;
        self
    }

    /// As [`crate::topology::Builder::without_xdp`].
    #[must_use]
    pub fn without_xdp(mut self) -> Self {
        self.without_xdp = true;
        self
    }

    /// As [`crate::topology::Builder::bridged`].
    #[must_use]
    pub fn bridged(self) -> Self {
        self.device(Device::Bridge)
    }

    /// As [`crate::topology::Builder::device`].
    #[must_use]
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// As [`crate::topology::Builder::mtu`].
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// Makes the nodes, starts all stand-ins and no xvip. `configure` changes what the masters'
    /// configurations say.
    pub fn prepare(self, configure: impl FnOnce(&mut ControlPlane<'_>)) -> Result<Cluster> {
        let masters: Vec<_> = (1..=self.masters).map(|n| format!("m{n}")).collect();
        let plain: Vec<_> = (1..=self.plain_backends).map(|n| format!("b{n}")).collect();
        let mut builder = Topology::builder()
            .tx_offload(self.tx_offload)
            .device(self.device);
        if self.without_xdp {
            builder = builder.without_xdp();
        }
        if let Some(mtu) = self.mtu {
            builder = builder.mtu(mtu);
        }
        for name in masters.iter().chain(&plain).chain(&self.bystanders) {
            builder = builder.node(name);
        }
        let net = builder.node(CLIENT).build()?;
        let (configs, port, backends) = {
            let mut plane = ControlPlane::new(masters.iter().map(|name| net.node(name)));
            plane
                .backends
                .extend(plain.iter().map(|name| net.node(name)));
            "200ms".clone_into(&mut plane.advert_interval);
            configure(&mut plane);
            let configs = plane
                .masters
                .iter()
                .map(|node| (node.name().to_owned(), plane.config(node)))
                .collect();
            let names = plane.backends.iter().map(|node| node.name().to_owned());
            (configs, plane.port, names.collect::<Vec<_>>())
        };
        let mut cluster = Cluster {
            xvips: BTreeMap::new(),
            stand_ins: BTreeMap::new(),
            stand_in: self.stand_in,
            without_features: self.without_features,
            configs,
            port,
            net,
        };
        for name in &backends {
            cluster.start_stand_in(name)?;
        }
        Ok(cluster)
    }

    /// Makes and starts everything, and waits until the first master owns every VIP and each
    /// master sees every backend UP.
    pub fn start(self, configure: impl FnOnce(&mut ControlPlane<'_>)) -> Result<Cluster> {
        let mut cluster = self.prepare(configure)?;
        for name in cluster.masters() {
            cluster.start_xvip(&name)?;
        }
        cluster.wait_settled("m1")?;
        Ok(cluster)
    }
}

/// A running control plane. Dropping it ends everything.
#[derive(Debug)]
pub struct Cluster {
    // In the order of removal: processes go before the network does.
    xvips: BTreeMap<String, Process>,
    stand_ins: BTreeMap<String, Process>,
    stand_in: Vec<String>,
    without_features: String,
    configs: BTreeMap<String, String>,
    port: u16,
    net: Topology,
}

impl Cluster {
    /// Three masters and a client.
    pub fn builder() -> Builder {
        Builder {
            masters: 3,
            plain_backends: 0,
            bystanders: Vec::new(),
            stand_in: Vec::new(),
            without_features: String::new(),
            tx_offload: false,
            without_xdp: false,
            device: Device::Link,
            mtu: None,
        }
    }

    /// The nodes.
    pub fn net(&self) -> &Topology {
        &self.net
    }

    /// The nodes, to connect them otherwise.
    pub fn net_mut(&mut self) -> &mut Topology {
        &mut self.net
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> &Node {
        self.net.node(name)
    }

    /// The client's node.
    pub fn client(&self) -> &Node {
        self.net.node(CLIENT)
    }

    /// Names of the nodes with a configuration for xvip.
    pub fn masters(&self) -> Vec<String> {
        self.configs.keys().cloned().collect()
    }

    // --- Processes ----------------------------------------------------------------------------

    /// The xvip of a node.
    ///
    /// # Panics
    ///
    /// If there is none: the scenario is wrong.
    #[allow(clippy::panic)]
    pub fn xvip(&self, node: &str) -> &Process {
        let found = self.xvips.get(node);
        found.unwrap_or_else(|| panic!("{node} has no xvip"))
    }

    /// The stand-in of a node.
    ///
    /// # Panics
    ///
    /// If there is none: the scenario is wrong.
    #[allow(clippy::panic)]
    pub fn stand_in(&self, node: &str) -> &Process {
        let found = self.stand_ins.get(node);
        found.unwrap_or_else(|| panic!("{node} has no stand-in"))
    }

    /// Starts a node's xvip, also in place of one that has ended.
    pub fn start_xvip(&mut self, node: &str) -> Result<()> {
        let config = self
            .configs
            .get(node)
            .with_context(|| format!("{node} is no master"))?;
        let process = self
            .net
            .node(node)
            .xvip_without(config, &self.without_features)?;
        self.xvips.insert(node.to_owned(), process);
        Ok(())
    }

    /// Ends a node's xvip as systemd does; its status is asked no more.
    pub fn stop_xvip(&mut self, node: &str) -> Result<()> {
        let process = self.xvips.remove(node);
        let status = process
            .with_context(|| format!("{node} has no xvip"))?
            .terminate(patience())?;
        anyhow::ensure!(status.success(), "xvip of {node} ended with {status}");
        Ok(())
    }

    /// Kills a node's xvip: it can clean up nothing. Its status is asked no more.
    pub fn kill_xvip(&mut self, node: &str) -> Result<()> {
        let process = self.xvips.remove(node);
        let process = process.with_context(|| format!("{node} has no xvip"))?;
        process.kill().map(drop)
    }

    /// Kills a node's stand-in.
    pub fn kill_stand_in(&mut self, node: &str) -> Result<()> {
        let process = self.stand_ins.remove(node);
        let process = process.with_context(|| format!("{node} has no stand-in"))?;
        process.kill().map(drop)
    }

    /// Starts a node's stand-in, also in place of one that has ended, and waits until it listens.
    pub fn start_stand_in(&mut self, node: &str) -> Result<()> {
        let at = self.net.node(node);
        let (ipv4, ipv6) = (at.ipv4().to_string(), at.ipv6().to_string());
        let filled = self.stand_in.iter();
        let filled = filled.map(|word| word.replace("{ipv4}", &ipv4).replace("{ipv6}", &ipv6));
        let filled: Vec<_> = filled.collect();
        let arguments: Vec<_> = filled.iter().map(String::as_str).collect();
        // The log of an earlier one would say that this one is ready.
        let log = at.directory().join("standin.log");
        crate::kernel::absent_is_fine(std::fs::remove_file(log))?;
        let process = at.stand_in(&arguments)?;
        process.wait_for_output("ready", patience())?;
        self.stand_ins.insert(node.to_owned(), process);
        Ok(())
    }

    /// Changes what a node's xvip is started with from now on.
    pub fn edit_config(&mut self, node: &str, edit: impl FnOnce(&mut String)) {
        if let Some(config) = self.configs.get_mut(node) {
            edit(config);
        }
    }

    /// A command of the `xvip` binary with the node's configuration, in the node.
    pub fn cli(&self, node: &str, arguments: &[&str]) -> Result<std::process::Command> {
        self.cli_under(node, &[], arguments)
    }

    /// The same behind a program that executes it, such as `setpriv` with options.
    pub fn cli_under(
        &self,
        node: &str,
        wrapper: &[&str],
        arguments: &[&str],
    ) -> Result<std::process::Command> {
        let (at, config) = (self.net.node(node), self.configs.get(node));
        let file = at.directory().join("xvip.toml");
        std::fs::write(&file, config.context("no master")?).context("cannot write xvip.toml")?;
        let binary = workspace_binary("xvip")?;
        let binary = binary.to_str().context("the path of xvip is not UTF-8")?;
        let words = [wrapper, &[binary], arguments].concat();
        let (program, arguments) = words.split_first().context("no program")?;
        let mut command = at.command(program);
        command.args(arguments).arg("--config").arg(file);
        command.env(WITHOUT, &self.without_features);
        Ok(command)
    }

    // --- Requests -----------------------------------------------------------------------------

    /// Requests to a VIP's service, with time for a few retransmissions each.
    pub fn load(&self, vip: impl Into<IpAddr>) -> Load {
        Load {
            timeout_ms: 20_000,
            ..Load::new(SocketAddr::new(vip.into(), self.port))
        }
    }

    /// What shows every kind of mistake with segments and checksums: a megabyte each way, in plain
    /// HTTP (`--plain`), which leaves the CPU to the network.
    pub fn bulk(&self, vip: impl Into<IpAddr>) -> Load {
        Load {
            requests: 40,
            concurrency: NonZeroUsize::MIN.saturating_add(5),
            bytes: 1_000_000,
            upload: 1_000_000,
            plain: true,
            ..self.load(vip)
        }
    }

    /// Makes requests from the client's node.
    pub fn requests(&self, load: &Load) -> Result<Report> {
        self.client().namespace().block_on(|| client::run(load))
    }

    /// Makes requests by a process in a node's namespace and cgroup.
    pub fn requests_by_process(&self, node: &str, load: &Load) -> Result<Report> {
        let at = self.net.node(node);
        requests_by(at.command(&client_binary()?), load)
    }

    /// Makes requests by a process in `node`'s cgroup and another node's network namespace, as a
    /// pod of `node` with a network of its own.
    pub fn requests_by_pod(&self, node: &str, network_of: &str, load: &Load) -> Result<Report> {
        let network = self.net.node(network_of).namespace().path();
        let (node, binary) = (self.net.node(node), client_binary()?);
        let mut command = node.command("nsenter");
        command
            .arg(format!("--net={}", network.display()))
            .args(["--", &binary]);
        requests_by(command, load)
    }

    // --- State --------------------------------------------------------------------------------

    /// What a node's xvip says of itself.
    pub fn status(&self, node: &str) -> Result<Status> {
        let at = self.net.node(node);
        let socket = Paths::new(at.directory(), at.instance()).socket();
        let deadline = Instant::now() + patience();
        loop {
            match ask_for(&socket, &Command::Status) {
                // An emulated machine that gets no time for a while says nothing either.
                Err(ClientError::Timeout { .. })
                    if guest::is_one() && Instant::now() < deadline => {}
                answer => return Ok(answer?),
            }
        }
    }

    /// The first VRRP instance of a node.
    pub fn vrrp(&self, node: &str) -> Result<VrrpStatus> {
        let mut status = self.status(node)?;
        anyhow::ensure!(!status.vrrp.is_empty(), "{node} has no VRRP instance");
        Ok(status.vrrp.remove(0))
    }

    /// The first service of a node.
    pub fn service(&self, node: &str) -> Result<ServiceStatus> {
        let mut status = self.status(node)?;
        anyhow::ensure!(!status.services.is_empty(), "{node} has no service");
        Ok(status.services.remove(0))
    }

    /// A backend of a node's first service.
    pub fn backend(&self, node: &str, backend: &str) -> Result<BackendStatus> {
        let backends = self.service(node)?.backends;
        let found = backends.into_iter().find(|known| known.name == backend);
        found.with_context(|| format!("{node} has no backend {backend}"))
    }

    /// Packets that a node's data plane has counted for a reason.
    pub fn reason(&self, node: &str, reason: Reason) -> Result<u64> {
        let counts = self.status(node)?.reasons;
        let found = counts.iter().find(|count| count.reason == reason.label());
        Ok(found.map_or(0, |count| count.packets))
    }

    /// Waits for a node to be Active, or not, for all VRRP instances.
    pub fn wait_state(&self, node: &str, state: VrrpState) -> Result<()> {
        let what = format!("{node} to be {state}");
        self.wait(&what, || {
            let all = self.status(node)?.vrrp;
            Ok(all.iter().all(|vrrp| vrrp.state == state).then_some(()))
        })
    }

    /// Waits for a backend's state as a node sees it, in every service: each has its own checks.
    pub fn wait_backend(&self, node: &str, backend: &str, state: BackendState) -> Result<()> {
        self.wait(&format!("{backend} to be {state} on {node}"), || {
            let services = self.status(node)?.services;
            let mut views = services
                .iter()
                .flat_map(|service| &service.backends)
                .filter(|view| view.name == backend);
            Ok(views.all(|view| view.state == state).then_some(()))
        })
    }

    /// Waits until `owner` owns every VIP and every running xvip sees all backends UP and
    /// resolved.
    pub fn wait_settled(&self, owner: &str) -> Result<()> {
        self.wait_state(owner, VrrpState::Active)?;
        for node in self.xvips.keys() {
            self.wait(&format!("{node} to see all backends UP"), || {
                let services = self.status(node)?.services;
                let mut backends = services.iter().flat_map(|service| &service.backends);
                let good =
                    backends.all(|backend| backend.state == BackendState::Up && backend.resolved);
                Ok((good && !services.is_empty()).then_some(()))
            })?;
        }
        Ok(())
    }

    /// Waits for a condition; what every xvip wrote is in the error.
    pub fn wait<T>(&self, what: &str, condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        wait_until(what, patience(), condition)
    }

    /// The addresses of an interface of a node.
    pub fn addresses(&self, node: &str, interface: &str) -> Result<Vec<AddressInfo>> {
        self.net.node(node).addresses(interface)
    }

    /// Whether an interface of a node has an address.
    pub fn has(&self, node: &str, interface: &str, address: impl Into<IpAddr>) -> Result<bool> {
        let address = address.into();
        let found = self.addresses(node, interface)?;
        Ok(found.iter().any(|known| IpNet::addr(&known.net) == address))
    }

    /// Waits until an interface of a node has an address, or has it no more.
    pub fn wait_has(
        &self,
        node: &str,
        interface: &str,
        address: impl Into<IpAddr>,
        wanted: bool,
    ) -> Result<()> {
        let address = address.into();
        let verb = if wanted { "come to" } else { "leave" };
        self.wait(
            &format!("{address} to {verb} {interface} of {node}"),
            || Ok((self.has(node, interface, address)? == wanted).then_some(())),
        )
    }

    /// TCP segments of either family with a wrong checksum that a node's kernel has received.
    pub fn bad_checksums(&self, node: &str) -> Result<u64> {
        let table = self.net.node(node).namespace().enter(|| {
            std::fs::read_to_string("/proc/thread-self/net/snmp").context("cannot read net/snmp")
        })?;
        let mut lines = table.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = (lines.next(), lines.next());
        let mut pairs = names.unwrap_or_default().split(' ');
        let at = pairs.position(|name| name == "InCsumErrors");
        let value = at.and_then(|at| values?.split(' ').nth(at));
        Ok(value.context("no InCsumErrors in net/snmp")?.parse()?)
    }

    /// Bytes received and sent by a node's uplink.
    pub fn traffic(&self, node: &str) -> Result<(u64, u64)> {
        let table = self.net.node(node).namespace().enter(|| {
            // The thread's: the process's own is another namespace's.
            std::fs::read_to_string("/proc/thread-self/net/dev").context("cannot read net/dev")
        })?;
        let line = table
            .lines()
            .find_map(|line| line.trim_start().strip_prefix("eth0:"))
            .context("no eth0 in net/dev")?;
        let fields: Vec<u64> = line
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        match fields.as_slice() {
            [received, _, _, _, _, _, _, _, sent, ..] => Ok((*received, *sent)),
            _ => anyhow::bail!("net/dev has no such columns: {line}"),
        }
    }
}

fn client_binary() -> Result<String> {
    let path = workspace_binary("xvip-client")?;
    let path = path.into_os_string().into_string();
    path.map_err(|path| anyhow::anyhow!("{} is not UTF-8", path.display()))
}

fn requests_by(mut command: std::process::Command, load: &Load) -> Result<Report> {
    command
        .args(["--target", &load.target.to_string()])
        .args(["--requests", &load.requests.to_string()])
        .args(["--concurrency", &load.concurrency.to_string()])
        .args(["--bytes", &load.bytes.to_string()])
        .args(["--upload", &load.upload.to_string()])
        .args(["--timeout-ms", &load.timeout_ms.to_string()]);
    if load.plain {
        command.arg("--plain");
    }
    Ok(serde_json::from_str(&output(&mut command)?)?)
}

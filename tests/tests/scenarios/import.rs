//! Imported configurations do what the originals do: keepalived and haproxy run with the files of a
//! fixture, xvip with what `xvip import` makes of them, and the same is seen of both.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use lb_tests::{
    client::{self, Load},
    cluster::PATIENCE,
    control_plane::VIP4,
    keepalived::Keepalived,
    kernel,
    process::{Process, wait_until},
    skip_unless_installed, skip_unless_root,
    topology::{Node, Topology},
};
use lb_user::import::{self, Input, Inputs, Options};

/// keepalived, haproxy and xvip take their time one after the other, on a machine that is busy.
const LONG: Duration = Duration::from_mins(1);

/// Files of `lb-user/tests/fixtures/import`, and who uses them.
struct Setup {
    directory: &'static str,
    /// Where the settings of the VIPs' owners come from.
    settings: Settings,
    /// Nodes with settings and haproxy.cfg, the best first.
    balancers: &'static [&'static str],
    /// Nodes with an apiserver.
    apiservers: &'static [&'static str],
    /// A node with an apiserver that is asked only when there is no other one.
    spare: Option<&'static str>,
    /// Host numbers of nodes, where they are not 11 and so on.
    hosts: &'static [(&'static str, u8)],
    /// All virtual addresses.
    vips: &'static [&'static str],
    /// Where clients go.
    port: u16,
    /// Peers that the files do not tell, by node.
    peers: &'static [&'static str],
    /// The apiserver that dies.
    victim: &'static str,
    /// What stands otherwise in the files: addresses of the lab, and checks that see at once.
    otherwise: &'static [(&'static str, &'static str)],
    /// The client that is refused.
    banned: Option<&'static str>,
    /// The file whose number is added to a balancer's priority.
    drain: Option<&'static str>,
    /// The file that must be there: a script takes priority away without it.
    ready: Option<&'static str>,
    /// What the first owner's program is told until its end, among else.
    told: &'static [&'static str],
}

/// Where the settings of the VIPs' owners come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Settings {
    /// A keepalived.conf of each.
    Files,
    /// The environment of the first one's container, from which the image makes a keepalived.conf.
    Container,
    /// One keepalived.conf for both, with virtual servers.
    Ipvs,
}

/// What tests say nothing about.
const PLAIN: Setup = Setup {
    directory: "",
    settings: Settings::Files,
    balancers: &[],
    apiservers: &[],
    spare: None,
    hosts: &[],
    vips: &["10.77.0.100"],
    port: 8443,
    peers: &[],
    victim: "",
    otherwise: &[],
    banned: None,
    drain: None,
    ready: None,
    told: &[],
};

/// What is seen of either: the original's and the import's must be the same.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// Who owns the VIPs when all are there.
    first: String,
    /// Their prefix lengths and scopes on the owner's interface.
    addresses: BTreeSet<String>,
    /// Whether they went to another one when that one was drained, and came back.
    drained_and_back: bool,
    /// What its program was told.
    told: BTreeSet<String>,
    /// Whether one that is banned is refused.
    is_banned: bool,
    /// Who answers then.
    answers: BTreeSet<String>,
    /// Whether another one owns it when that one has gone. Which one is a matter of milliseconds where
    /// priorities are next to each other, and with nopreempt that stands.
    moved: bool,
    /// Who answers then.
    answers_after: BTreeSet<String>,
    /// Who answers when an apiserver has died.
    answers_without: BTreeSet<String>,
    /// Who answers when all others have died.
    answers_spare: BTreeSet<String>,
}

/// What runs on a balancer.
trait Stack: Sized {
    /// Whether it can forward connections with these settings on any kernel.
    fn forwards(setup: &Setup) -> bool;
    /// Starts it.
    fn start(setup: &Setup, node: &Node, net: &Topology) -> Result<Self>;
    /// Ends what owns the VIP, as its unit is stopped.
    fn stop_owner(self) -> Result<Box<dyn std::any::Any>>;
}

/// keepalived and haproxy.
struct Original {
    keepalived: Keepalived,
    haproxy: Option<Process>,
}

impl Stack for Original {
    fn forwards(setup: &Setup) -> bool {
        setup.settings != Settings::Ipvs || kernel::has_ipvs()
    }

    fn start(setup: &Setup, node: &Node, _: &Topology) -> Result<Self> {
        let text = |name: &str| adapted(setup, name, node);
        let script = node.directory().join("check_apiserver.sh");
        if let Ok(content) = text("check_apiserver.sh") {
            fs::write(&script, content)?;
            node.run("chmod", &["700", &script.display().to_string()])?;
        }
        let mut haproxy = None;
        if let Ok(content) = text("haproxy.cfg") {
            let config = node.directory().join("haproxy.cfg");
            fs::write(&config, content)?;
            let config = config.display().to_string();
            haproxy = Some(node.start("haproxy", "haproxy", &["-db", "-f", &config])?);
        }
        let conf = keepalived_conf(setup, node)?;
        let keepalived = if setup.settings == Settings::Ipvs && Self::forwards(setup) {
            Keepalived::start_with_ipvs(node, &conf)?
        } else {
            Keepalived::start(node, &conf)?
        };
        Ok(Self {
            keepalived,
            haproxy,
        })
    }

    fn stop_owner(self) -> Result<Box<dyn std::any::Any>> {
        self.keepalived.stop()?;
        Ok(Box::new(self.haproxy))
    }
}

/// xvip with the imported configuration.
struct Imported(Process);

impl Stack for Imported {
    fn forwards(_: &Setup) -> bool {
        true
    }

    fn start(setup: &Setup, node: &Node, net: &Topology) -> Result<Self> {
        Ok(Self(node.xvip(&imported(setup, node, net)?)?))
    }

    fn stop_owner(self) -> Result<Box<dyn std::any::Any>> {
        let status = self.0.terminate(PATIENCE)?;
        ensure!(status.success(), "xvip ended with {status}");
        Ok(Box::new(()))
    }
}

fn fixture(setup: &Setup, name: &str) -> Result<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lb-user/tests/fixtures/import");
    let path = root.join(setup.directory).join(name);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// A file of the fixture, with a node's own paths: several nodes share this machine's files.
fn adapted(setup: &Setup, name: &str, node: &Node) -> Result<String> {
    let directory = node.directory().display().to_string();
    let mut text = fixture(setup, name)?;
    for (from, to) in setup.otherwise {
        ensure!(
            text.contains(from) || name != "haproxy.cfg",
            "{name} has no {from}"
        );
        text = text.replace(from, to);
    }
    Ok(text
        .replace("/etc/keepalived/", &format!("{directory}/"))
        .replace(
            "/run/haproxy-admin.sock",
            &format!("{directory}/haproxy.sock"),
        ))
}

/// A node's keepalived.conf.
fn keepalived_conf(setup: &Setup, node: &Node) -> Result<String> {
    match setup.settings {
        Settings::Files => adapted(setup, &format!("{}.keepalived.conf", node.name()), node),
        Settings::Container => Ok(of_container(&environment(setup, node)?)),
        Settings::Ipvs => {
            let priority = 200 - 10 * number(setup, node);
            let text = adapted(setup, "keepalived.conf", node)?;
            Ok(text.replace("priority 200", &format!("priority {priority}")))
        }
    }
}

/// Which balancer it is, from 0.
fn number(setup: &Setup, node: &Node) -> usize {
    let mut balancers = setup.balancers.iter();
    balancers
        .position(|name| *name == node.name())
        .unwrap_or_default()
}

/// The environment of a node's container: that of the first one with this one's priority and peers.
fn environment(setup: &Setup, node: &Node) -> Result<String> {
    let text = adapted(setup, "m1.env", node)?;
    let number = number(setup, node);
    let all = ["10.77.0.11", "10.77.0.12", "10.77.0.13"];
    let peers = all.iter().enumerate().filter(|(other, _)| *other != number);
    let peers: Vec<_> = peers.map(|(_, peer)| format!("'{peer}'")).collect();
    let priority = format!("PRIORITY={}", 100 - number);
    Ok(text
        .replace("'10.77.0.12', '10.77.0.13'", &peers.join(", "))
        .replace("PRIORITY=100", &priority))
}

/// What the image's template makes of an environment; without the notify command, which is in the
/// image.
fn of_container(environment: &str) -> String {
    let value = |name: &str| {
        let mut lines = environment.lines();
        let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let line = line.unwrap_or_default();
        let line = line.strip_prefix("#PYTHON2BASH:").unwrap_or(line);
        line.replace(['[', ']', '\''], "").replace(", ", "\n")
    };
    let (interface, state) = (value("KEEPALIVED_INTERFACE"), value("KEEPALIVED_STATE"));
    format!(
        "vrrp_instance VI_1 {{\n interface {interface}\n state {state}\n nopreempt\n \
         virtual_router_id {}\n priority {}\n unicast_peer {{\n{}\n }}\n \
         virtual_ipaddress {{\n{}\n }}\n authentication {{\n auth_type PASS\n auth_pass {}\n }}\n}}\n",
        value("KEEPALIVED_ROUTER_ID"),
        value("KEEPALIVED_PRIORITY"),
        value("KEEPALIVED_UNICAST_PEERS"),
        value("KEEPALIVED_VIRTUAL_IPS"),
        value("KEEPALIVED_PASSWORD"),
    )
}

/// What `xvip import` makes of a node's files, with the paths that a node of a topology needs.
fn imported(setup: &Setup, node: &Node, net: &Topology) -> Result<String> {
    let named = |name: &str, text: Result<String>| {
        Some(Input {
            name: name.to_owned(),
            text: text.ok()?,
        })
    };
    let input = |name: &str| named(name, adapted(setup, name, node));
    let is_container = setup.settings == Settings::Container;
    let mut inputs = Inputs {
        keepalived: None,
        haproxy: input("haproxy.cfg"),
        check_script: input("check_apiserver.sh"),
        env: None,
    };
    if is_container {
        inputs.env = named("environment", environment(setup, node));
    } else {
        inputs.keepalived = named("keepalived.conf", keepalived_conf(setup, node));
    }
    let others = setup.peers.iter().filter(|peer| **peer != node.name());
    let others = others.flat_map(|peer| {
        let other = net.node(peer);
        let addresses = [IpAddr::from(other.ipv4()), IpAddr::from(other.ipv6())];
        addresses.map(|address| ((*peer).to_owned(), address))
    });
    let options = Options {
        node: Some(node.name().to_owned()),
        config_id: node.name().to_owned(),
        addresses: vec![node.ipv4().into(), node.ipv6().into()],
        peers: others.collect(),
        interfaces: Vec::new(),
        hosts: Vec::new(),
        variables: BTreeMap::new(),
        output: "xvip.toml".to_owned(),
        read_file: &|path| fs::read(path),
        include: &|_| Ok(Vec::new()),
    };
    let imported = import::import(&inputs, &options).map_err(|error| anyhow!("{error}"))?;
    let paths = format!(
        "[node]\ninstance = \"{}\"\ncgroup = \"{}\"\nstate_dir = \"{}\"\nattach = \"native\"\n",
        node.instance(),
        node.cgroup().display(),
        node.directory().display()
    );
    Ok(imported.toml.replacen("[node]\n", &paths, 1))
}

/// The VIPs on a balancer's uplink, each with its prefix length and scope; without the length for IPv6,
/// which xvip always adds as /128, so that no connection of the node leaves from it.
fn vips(setup: &Setup, net: &Topology, name: &str) -> Result<BTreeSet<String>> {
    let shown = net.node(name).namespace().ip("-o addr show dev eth0")?;
    let vips = shown.lines().filter_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let after = |sign: &str| {
            let at = words.iter().position(|word| *word == sign)?;
            words.get(at + 1).copied()
        };
        let address = after("inet").or_else(|| after("inet6"))?;
        let (host, _) = address.split_once('/')?;
        let shown = if host.contains(':') { host } else { address };
        let is_vip = setup.vips.contains(&host);
        is_vip.then(|| format!("{shown} {}", after("scope").unwrap_or_default()))
    });
    Ok(vips.collect())
}

/// Waits until one node alone owns all VIPs, and it is not `former`.
fn wait_owner(setup: &Setup, net: &Topology, former: Option<&str>) -> Result<String> {
    wait_until("one owner of the VIPs", LONG, || {
        let mut owner = None;
        for name in setup.balancers {
            let vips = vips(setup, net, name)?.len();
            if vips == setup.vips.len() && owner.is_none() {
                owner = Some((*name).to_owned());
            } else if vips > 0 {
                return Ok(None);
            }
        }
        Ok(owner.filter(|owner| Some(owner.as_str()) != former))
    })
}

/// Waits until as many apiservers as expected answer at every VIP, and no request fails; who they
/// are.
fn wait_answers(setup: &Setup, net: &Topology, count: usize) -> Result<BTreeSet<String>> {
    let client = net.node("client").namespace();
    let mut all = BTreeSet::new();
    for vip in setup.vips {
        let load = Load {
            requests: 60,
            timeout_ms: 3000,
            concurrency: NonZeroUsize::MIN.saturating_add(5),
            ..Load::new(SocketAddr::new(vip.parse()?, setup.port))
        };
        all.extend(wait_until("answers from all apiservers", LONG, || {
            let report = client.block_on(|| client::run(&load))?;
            let answers: BTreeSet<_> = report.by_node.keys().cloned().collect();
            Ok((report.failed() == 0 && answers.len() == count).then_some(answers))
        })?);
    }
    Ok(all)
}

/// Whether a client's requests to any VIP fail.
fn is_refused(setup: &Setup, net: &Topology, client: &str) -> Result<bool> {
    let client = net.node(client).namespace();
    for vip in setup.vips {
        let load = Load {
            requests: 2,
            timeout_ms: 1000,
            concurrency: NonZeroUsize::MIN.saturating_add(1),
            ..Load::new(SocketAddr::new(vip.parse()?, setup.port))
        };
        if client.block_on(|| client::run(&load))?.ok > 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes priority from the owner, by files and scripts, until another one owns the VIPs, and waits
/// until they are back.
fn drain(setup: &Setup, net: &Topology, file: &str, first: &str) -> Result<bool> {
    let directory = net.node(first).directory();
    let file = directory.join(file);
    fs::write(&file, "-50\n")?;
    if let Some(ready) = setup.ready {
        fs::remove_file(directory.join(ready))?;
    }
    wait_owner(setup, net, Some(first))?;
    fs::write(&file, "0\n")?;
    if let Some(ready) = setup.ready {
        fs::write(directory.join(ready), "")?;
    }
    wait_until("the VIPs to be back", LONG, || {
        let owner = wait_owner(setup, net, None)?;
        Ok((owner == first).then_some(true))
    })
}

/// What an owner's program was told, once all is there that must be. Priorities count where it became
/// the owner; at other times they are about to change.
fn told(setup: &Setup, net: &Topology, owner: &str) -> Result<BTreeSet<String>> {
    let file = net.node(owner).directory().join("told");
    if setup.told.is_empty() {
        return Ok(BTreeSet::new());
    }
    wait_until("all to be told", LONG, || {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let line = |line: &str| match line.rsplit_once('[') {
            Some((rest, _)) if rest.contains("[INSTANCE]") && !rest.ends_with("[MASTER]") => {
                rest.to_owned()
            }
            _ => line.to_owned(),
        };
        let lines: BTreeSet<_> = text.lines().map(line).collect();
        let is_there = setup.told.iter().all(|line| lines.contains(*line));
        Ok(is_there.then_some(lines))
    })
}

/// Makes a node a real server of LVS-DR: it takes packets for the VIP, and tells nobody that it has
/// it.
fn be_real_server(node: &Node) -> Result<()> {
    node.namespace().enter(|| {
        kernel::sysctl("net/ipv4/conf/all/arp_ignore", "1")?;
        kernel::sysctl("net/ipv4/conf/all/arp_announce", "2")
    })?;
    node.namespace()
        .add_address(format_args!("{VIP4}/32"), "lo")
}

/// The network with all apiservers.
fn network(setup: &Setup) -> Result<(Topology, BTreeMap<&'static str, Process>)> {
    let mut names: Vec<&str> = setup.balancers.to_vec();
    let others = setup.apiservers.iter().chain(&setup.spare);
    names.extend(
        others
            .clone()
            .filter(|name| !setup.balancers.contains(name)),
    );
    names.push("client");
    names.extend(setup.banned);
    let mut builder = Topology::builder();
    for name in names {
        let host = setup.hosts.iter().find(|(other, _)| *other == name);
        builder = match host {
            Some((_, host)) => builder.node_at(name, *host),
            None => builder.node(name),
        };
    }
    let net = builder.build()?;
    // The VIPs of a /22 are no neighbours of addresses of a /24.
    for client in std::iter::once("client").chain(setup.banned) {
        net.node(client)
            .namespace()
            .ip("route add 10.77.0.0/22 dev eth0")?;
    }
    if let Some(file) = setup.drain {
        for name in setup.balancers {
            fs::write(net.node(name).directory().join(file), "0\n")?;
        }
    }
    for name in setup.balancers {
        let node = net.node(name);
        if let Some(ready) = setup.ready {
            fs::write(node.directory().join(ready), "")?;
        }
        if !setup.told.is_empty() {
            let program = node.directory().join("told.sh");
            fs::write(&program, adapted(setup, "told.sh", node)?)?;
            node.run("chmod", &["755", &program.display().to_string()])?;
        }
    }
    let mut apiservers = BTreeMap::new();
    for name in others {
        if setup.settings == Settings::Ipvs {
            be_real_server(net.node(name))?;
        }
        let process = net.node(name).stand_in(&["--listen", "[::]:6443"])?;
        process.wait_for_output("ready", PATIENCE)?;
        apiservers.insert(*name, process);
    }
    Ok((net, apiservers))
}

/// Runs a stack on every balancer, and watches what happens to the VIP and to requests.
fn observe<S: Stack>(setup: &Setup) -> Result<Seen> {
    let (net, mut apiservers) = network(setup)?;
    let mut stacks = BTreeMap::new();
    for name in setup.balancers {
        stacks.insert((*name).to_owned(), S::start(setup, net.node(name), &net)?);
        if stacks.len() == 1 {
            // The first is there before the others come: with nopreempt it would not become the
            // owner later.
            wait_owner(setup, &net, None)?;
        }
    }
    let answers_of = |count: usize| {
        if S::forwards(setup) {
            wait_answers(setup, &net, count)
        } else {
            Ok(BTreeSet::new())
        }
    };
    let count = setup.apiservers.len();
    let answers = answers_of(count)?;
    let first = wait_owner(setup, &net, None)?;
    let addresses = vips(setup, &net, &first)?;
    let is_banned = match setup.banned {
        Some(client) => is_refused(setup, &net, client)?,
        None => false,
    };
    let drained_and_back = match setup.drain {
        Some(file) => drain(setup, &net, file, &first)?,
        None => false,
    };
    let stack = stacks.remove(&first).context("the owner runs nothing")?;
    let _rest = stack.stop_owner()?;
    let moved = wait_owner(setup, &net, Some(&first))? != first;
    let told = told(setup, &net, &first)?;
    let answers_after = answers_of(count)?;
    let victim = apiservers.remove(setup.victim);
    victim.context("the victim runs nothing")?.kill()?;
    let answers_without = answers_of(count - 1)?;
    let mut answers_spare = BTreeSet::new();
    if let Some(spare) = setup.spare {
        apiservers.retain(|name, _| *name == spare);
        answers_spare = answers_of(1)?;
    }
    Ok(Seen {
        first,
        addresses,
        drained_and_back,
        told,
        is_banned,
        answers,
        moved,
        answers_after,
        answers_without,
        answers_spare,
    })
}

/// Both at the same time, each in a network of its own.
fn behaves_as_the_original(setup: &Setup) {
    let (original, imported) = thread::scope(|scope| {
        let original = scope.spawn(|| observe::<Original>(setup));
        let imported = scope.spawn(|| observe::<Imported>(setup));
        (original.join().unwrap(), imported.join().unwrap())
    });
    let (original, imported) = (original.unwrap(), imported.unwrap());
    if Original::forwards(setup) {
        assert_eq!(imported, original);
    } else {
        eprintln!("note: keepalived's own forwarding needs IPVS: only its VIPs are compared");
        assert_eq!(imported.addresses, original.addresses);
        assert_eq!(
            (original.first.as_str(), original.moved),
            (setup.balancers[0], true)
        );
    }
    let all: BTreeSet<_> = setup
        .apiservers
        .iter()
        .map(|name| (*name).to_owned())
        .collect();
    assert_eq!(imported.first, setup.balancers[0]);
    assert_eq!(imported.addresses.len(), setup.vips.len());
    assert_eq!(imported.is_banned, setup.banned.is_some());
    assert_eq!(imported.drained_and_back, setup.drain.is_some());
    assert!(imported.moved);
    assert_eq!(imported.answers, all);
    assert_eq!(imported.answers_after, all);
    assert!(!imported.answers_without.contains(setup.victim));
    let spare = setup.spare.map(str::to_owned);
    assert_eq!(imported.answers_spare, spare.into_iter().collect());
}

/// Two masters with haproxy at port 8443 beside the apiservers, and the guide's check script.
#[test]
fn two_masters() {
    skip_unless_root!();
    skip_unless_installed!("haproxy");
    skip_unless_installed!("keepalived");
    skip_unless_installed!("curl");
    behaves_as_the_original(&Setup {
        directory: "two-masters",
        balancers: &["m1", "m2"],
        apiservers: &["m1", "m2"],
        victim: "m1",
        ..PLAIN
    });
}

/// Two balancers of their own in front of three masters without xvip.
#[test]
fn two_balancers() {
    skip_unless_root!();
    skip_unless_installed!("haproxy");
    skip_unless_installed!("keepalived");
    skip_unless_installed!("killall");
    behaves_as_the_original(&Setup {
        directory: "two-balancers",
        balancers: &["lb1", "lb2"],
        apiservers: &["cp1", "cp2", "cp3"],
        port: 6443,
        peers: &["lb1", "lb2"],
        victim: "cp3",
        ..PLAIN
    });
}

/// Unicast with a password and nopreempt, priorities 100, 99 and 98, and a check of the node's own
/// apiserver that adds 20.
#[test]
fn unicast_with_weights() {
    skip_unless_root!();
    skip_unless_installed!("haproxy");
    skip_unless_installed!("keepalived");
    skip_unless_installed!("curl");
    behaves_as_the_original(&Setup {
        directory: "unicast",
        balancers: &["m1", "m2", "m3"],
        apiservers: &["m1", "m2", "m3"],
        victim: "m3",
        ..PLAIN
    });
}

/// Four VIPs, three of them in a /22: a script and a file that take priority away move all of them, and
/// they come back; a program is told of it; a source that haproxy rejects is refused.
#[test]
fn several_vips() {
    skip_unless_root!();
    skip_unless_installed!("haproxy");
    skip_unless_installed!("keepalived");
    behaves_as_the_original(&Setup {
        directory: "several-vips",
        balancers: &["edge1", "edge2"],
        apiservers: &["edge1", "edge2"],
        vips: &["10.77.0.100", "10.77.1.100", "10.77.2.100", "fd77::100"],
        peers: &["edge1", "edge2"],
        victim: "edge2",
        banned: Some("stranger"),
        hosts: &[("stranger", 99)],
        drain: Some("drain"),
        ready: Some("ready"),
        told: &[
            "[--of][the front][INSTANCE][front][BACKUP]",
            "[--of][the front][INSTANCE][front][MASTER][110]",
            "[--of][the front][INSTANCE][front][STOP]",
            "[to master]",
        ],
        ..PLAIN
    });
}

/// The environment of a keepalived container: unicast, a password and nopreempt.
#[test]
fn containers() {
    skip_unless_root!();
    skip_unless_installed!("haproxy");
    skip_unless_installed!("keepalived");
    behaves_as_the_original(&Setup {
        directory: "container",
        settings: Settings::Container,
        balancers: &["m1", "m2", "m3"],
        apiservers: &["m1", "m2", "m3"],
        port: 16443,
        victim: "m3",
        // Ten seconds between checks are nothing to wait for.
        otherwise: &[("inter 10s downinter 5s", "inter 1s downinter 1s")],
        ..PLAIN
    });
}

/// `virtual_server` with direct routing: real servers that have the VIP on their loopback, and a sorry
/// server.
#[test]
fn virtual_servers() {
    skip_unless_root!();
    skip_unless_installed!("keepalived");
    behaves_as_the_original(&Setup {
        directory: "lvs",
        settings: Settings::Ipvs,
        balancers: &["d1", "d2"],
        apiservers: &["rs1", "rs2"],
        spare: Some("sorry"),
        hosts: &[
            ("d1", 21),
            ("d2", 22),
            ("rs1", 11),
            ("rs2", 12),
            ("sorry", 19),
        ],
        port: 6443,
        peers: &["d1", "d2"],
        victim: "rs2",
        otherwise: &[("192.0.2.", "10.77.0."), ("delay_loop 5", "delay_loop 1")],
        ..PLAIN
    });
}

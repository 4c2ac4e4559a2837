//! Imported configurations do what the originals do: keepalived and haproxy run with the files of a
//! fixture, xvip with what `xvip import` makes of them, and the same is seen of both.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
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
    /// Nodes with a keepalived.conf and haproxy.cfg, the best first.
    balancers: &'static [&'static str],
    /// Nodes with an apiserver.
    apiservers: &'static [&'static str],
    /// Where clients go.
    port: u16,
    /// Peers that the files do not tell, by node.
    peers: &'static [&'static str],
    /// The apiserver that dies.
    victim: &'static str,
}

/// What is seen of either: the original's and the import's must be the same.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// Who owns the VIP when all are there.
    first: String,
    /// Who answers then.
    answers: BTreeSet<String>,
    /// Whether another one owns it when that one has gone. Which one is a matter of milliseconds where
    /// priorities are next to each other, and with nopreempt that stands.
    moved: bool,
    /// Who answers then.
    answers_after: BTreeSet<String>,
    /// Who answers when an apiserver has died.
    answers_without: BTreeSet<String>,
}

/// What runs on a balancer.
trait Stack: Sized {
    /// Starts it.
    fn start(setup: &Setup, node: &Node, net: &Topology) -> Result<Self>;
    /// Ends what owns the VIP, as its unit is stopped.
    fn stop_owner(self) -> Result<Box<dyn std::any::Any>>;
}

/// keepalived and haproxy.
struct Original {
    keepalived: Keepalived,
    haproxy: Process,
}

impl Stack for Original {
    fn start(setup: &Setup, node: &Node, _: &Topology) -> Result<Self> {
        let text = |name: &str| adapted(setup, name, node);
        let script = node.directory().join("check_apiserver.sh");
        if let Ok(content) = text("check_apiserver.sh") {
            fs::write(&script, content)?;
            node.run("chmod", &["700", &script.display().to_string()])?;
        }
        let config = node.directory().join("haproxy.cfg");
        fs::write(&config, text("haproxy.cfg")?)?;
        let config = config.display().to_string();
        let haproxy = node.start("haproxy", "haproxy", &["-db", "-f", &config])?;
        let name = format!("{}.keepalived.conf", node.name());
        let keepalived = Keepalived::start(node, &text(&name)?)?;
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
    let text = fixture(setup, name)?;
    Ok(text
        .replace("/etc/keepalived/", &format!("{directory}/"))
        .replace(
            "/run/haproxy-admin.sock",
            &format!("{directory}/haproxy.sock"),
        ))
}

/// What `xvip import` makes of a node's files, with the paths that a node of a topology needs.
fn imported(setup: &Setup, node: &Node, net: &Topology) -> Result<String> {
    let input = |name: &str| {
        Some(Input {
            name: name.to_owned(),
            text: fixture(setup, name).ok()?,
        })
    };
    let inputs = Inputs {
        keepalived: input(&format!("{}.keepalived.conf", node.name())),
        haproxy: input("haproxy.cfg"),
        check_script: input("check_apiserver.sh"),
        env: None,
    };
    let others = setup.peers.iter().filter(|peer| **peer != node.name());
    let others = others.map(|peer| ((*peer).to_owned(), IpAddr::from(net.node(peer).ipv4())));
    let options = Options {
        node: Some(node.name().to_owned()),
        config_id: node.name().to_owned(),
        addresses: vec![node.ipv4().into()],
        peers: others.collect(),
        interfaces: Vec::new(),
        hosts: Vec::new(),
        variables: BTreeMap::new(),
        output: "xvip.toml".to_owned(),
        read_file: &|_| Err(io::ErrorKind::NotFound.into()),
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

/// The balancers with the VIP on their uplink.
fn owners(setup: &Setup, net: &Topology) -> Result<Vec<String>> {
    let has = |name: &&&str| {
        let shown = net.node(name).namespace().ip("-4 -o addr show dev eth0");
        shown.map(|shown| shown.contains(&format!(" {VIP4}/")))
    };
    let mut owners = Vec::new();
    for name in setup.balancers {
        if has(&name)? {
            owners.push((*name).to_owned());
        }
    }
    Ok(owners)
}

/// Waits until one node alone owns the VIP, and it is not `former`.
fn wait_owner(setup: &Setup, net: &Topology, former: Option<&str>) -> Result<String> {
    wait_until("one owner of the VIP", LONG, || {
        let owners = owners(setup, net)?;
        Ok(match owners.as_slice() {
            [owner] if Some(owner.as_str()) != former => Some(owner.clone()),
            _ => None,
        })
    })
}

/// Waits until as many apiservers as expected answer, and no request fails; who they are.
fn wait_answers(setup: &Setup, net: &Topology, count: usize) -> Result<BTreeSet<String>> {
    let load = Load {
        requests: 60,
        timeout_ms: 3000,
        concurrency: NonZeroUsize::MIN.saturating_add(5),
        ..Load::new(SocketAddr::new(VIP4.into(), setup.port))
    };
    let client = net.node("client").namespace();
    wait_until("answers from all apiservers", LONG, || {
        let report = client.block_on(|| client::run(&load))?;
        let answers: BTreeSet<_> = report.by_node.keys().cloned().collect();
        Ok((report.failed() == 0 && answers.len() == count).then_some(answers))
    })
}

/// Runs a stack on every balancer, and watches what happens to the VIP and to requests.
fn observe<S: Stack>(setup: &Setup) -> Result<Seen> {
    let mut nodes: Vec<&str> = setup.balancers.to_vec();
    nodes.extend(
        setup
            .apiservers
            .iter()
            .filter(|name| !setup.balancers.contains(name)),
    );
    let mut builder = Topology::builder();
    for name in nodes {
        builder = builder.node(name);
    }
    let net = builder.node("client").build()?;
    let mut apiservers = BTreeMap::new();
    for name in setup.apiservers {
        let process = net.node(name).stand_in(&[])?;
        process.wait_for_output("ready", PATIENCE)?;
        apiservers.insert(*name, process);
    }
    let mut stacks = BTreeMap::new();
    for name in setup.balancers {
        stacks.insert((*name).to_owned(), S::start(setup, net.node(name), &net)?);
        if stacks.len() == 1 {
            // The first is there before the others come: with nopreempt it would not become the
            // owner later.
            wait_owner(setup, &net, None)?;
        }
    }
    let count = setup.apiservers.len();
    let answers = wait_answers(setup, &net, count)?;
    let first = wait_owner(setup, &net, None)?;
    let stack = stacks.remove(&first).context("the owner runs nothing")?;
    let _rest = stack.stop_owner()?;
    let moved = wait_owner(setup, &net, Some(&first))? != first;
    let answers_after = wait_answers(setup, &net, count)?;
    let victim = apiservers.remove(setup.victim);
    victim.context("the victim runs nothing")?.kill()?;
    let answers_without = wait_answers(setup, &net, count - 1)?;
    Ok(Seen {
        first,
        answers,
        moved,
        answers_after,
        answers_without,
    })
}

/// Both at the same time, each in a network of its own.
fn behaves_as_the_original(setup: &Setup) {
    let (original, imported) = thread::scope(|scope| {
        let original = scope.spawn(|| observe::<Original>(setup));
        let imported = scope.spawn(|| observe::<Imported>(setup));
        (original.join().unwrap(), imported.join().unwrap())
    });
    let original = original.unwrap();
    assert_eq!(imported.unwrap(), original);
    let all: BTreeSet<_> = setup
        .apiservers
        .iter()
        .map(|name| (*name).to_owned())
        .collect();
    assert_eq!(original.first, setup.balancers[0]);
    assert!(original.moved);
    assert_eq!(original.answers, all);
    assert_eq!(original.answers_after, all);
    assert!(!original.answers_without.contains(setup.victim));
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
        port: 8443,
        peers: &[],
        victim: "m1",
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
        port: 8443,
        peers: &[],
        victim: "m3",
    });
}

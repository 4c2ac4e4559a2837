//! The lab: three masters with an apiserver stand-in and an xvip each, a client that keeps asking,
//! and verbs to break things while somebody watches.
//!
//! `Lab` holds the nodes and carries out verbs, `observe` finds out what is going on, `view` turns that
//! into text, `control` is the socket through which verbs reach a running lab.

mod control;
mod observe;
mod view;

use std::{
    collections::BTreeMap,
    io::IsTerminal,
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use lb_user::admin::{Paths, client::ask, model::Command as AdminCommand};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};

pub use control::Control;
use control::Order;
use observe::{Observer, Snapshot};

use crate::{
    control_plane::{ControlPlane, VIP4, VIP6},
    process::{Process, State},
    topology::{Node, Topology},
};

/// How long a process may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the lab may take until it works, with `--once`.
const SETTLE: Duration = Duration::from_mins(1);
/// How often the view is renewed.
const TICK: Duration = Duration::from_millis(250);

/// How the lab shall be.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Number of masters.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub masters: u8,
    /// VRRP advertisement interval.
    #[arg(long, default_value = "1s")]
    pub advert_interval: String,
    /// End after this time, such as `30s` or `5m`.
    #[arg(long, value_parser = duration)]
    pub duration: Option<Duration>,
    /// Wait until everything works, show it once and end: status 1 if it never does.
    #[arg(long)]
    pub once: bool,
    /// Print lines instead of redrawing the screen.
    #[arg(long)]
    pub lines: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.split_at_checked(text.len().saturating_sub(1)) {
        Some((number, "s")) => (number, 1),
        Some((number, "m")) => (number, 60),
        _ => return Err("not a number with `s` or `m`".to_owned()),
    };
    let number: u64 = number.parse().map_err(|error| format!("{error}"))?;
    Ok(Duration::from_secs(number * unit))
}

/// The node that a verb is about.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
pub struct On {
    /// Name of the node, such as m1.
    pub node: String,
}

/// What a running lab can be told.
#[derive(Clone, Debug, Subcommand, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Show who owns the VIP, who is healthy and where connections go.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Kill a controller (SIGKILL): its data plane stays, its lease runs out.
    KillController(On),
    /// Stop a controller gracefully (SIGTERM): it hands the VIP over.
    StopController(On),
    /// Freeze a controller (SIGSTOP), as a stalled machine does.
    FreezeController(On),
    /// Let a frozen controller go on.
    ResumeController(On),
    /// Start a controller that has ended.
    StartController(On),
    /// Kill an apiserver: its port refuses connections.
    StopApiserver(On),
    /// Freeze an apiserver: its port accepts connections and says nothing.
    FreezeApiserver(On),
    /// Let a frozen apiserver go on.
    ResumeApiserver(On),
    /// Start an apiserver that has ended.
    StartApiserver(On),
    /// Make an apiserver answer 500 to its health checks.
    NotReady(On),
    /// Make it answer 200 again.
    Ready(On),
    /// Pull a node's cable.
    Cut(On),
    /// Plug it in again.
    Join(On),
    /// Ask a controller to give its VIPs to another node.
    StepDown(On),
    /// Let it take part in elections again.
    StepUp(On),
    /// Where the nodes are, as JSON: namespaces, cgroups, directories.
    #[command(hide = true)]
    Info,
    /// End the lab, and wait until nothing of it is left.
    Stop,
}

/// Where a node is, for commands that run in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// Handle of its network namespace.
    pub namespace: PathBuf,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// Its configuration, sockets and logs.
    pub directory: PathBuf,
    /// Its xvip instance.
    pub instance: String,
    /// Its IPv4 and IPv6 address.
    pub addresses: [IpAddr; 2],
}

impl From<&Node> for NodeInfo {
    fn from(node: &Node) -> Self {
        Self {
            name: node.name().to_owned(),
            namespace: node.namespace().path(),
            cgroup: node.cgroup().to_owned(),
            directory: node.directory().to_owned(),
            instance: node.instance().to_owned(),
            addresses: [node.ipv4().into(), node.ipv6().into()],
        }
    }
}

/// Runs a lab until it is told to end.
pub async fn run(options: &Options, control: Control) -> Result<()> {
    let mut orders = control.listen().await?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot take SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot take SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot take SIGHUP")?;
    let redraw = std::io::stdout().is_terminal() && !options.lines && !options.once;

    let mut lab = Lab::start(options)?;
    let mut screen = view::Screen::new(redraw, lab.title());
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stopped_by = None;
    let end = options.duration.map(|duration| Instant::now() + duration);
    loop {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = hangup.recv() => break,
            Some(Order { verb, reply }) = orders.next() => {
                screen.note(&lab.snapshot(), &verb);
                if matches!(verb, Verb::Stop) {
                    stopped_by = Some(reply);
                    break;
                }
                let result = lab.perform(&verb);
                // Whoever asked may have left.
                let _ = reply.send(result.map_err(|error| format!("{error:#}")));
            }
            _ = ticks.tick() => {
                let snapshot = lab.snapshot();
                screen.show(&snapshot);
                if options.once && (snapshot.works() || snapshot.uptime > SETTLE) {
                    return once(&snapshot, &lab);
                }
                if end.is_some_and(|end| Instant::now() >= end) {
                    break;
                }
            }
        }
    }
    drop(screen);
    println!("removing the lab");
    drop(lab);
    if let Some(reply) = stopped_by {
        let _ = reply.send(Ok("the lab has ended, nothing of it is left".to_owned()));
    }
    orders.close().await;
    Ok(())
}

fn once(snapshot: &Snapshot, lab: &Lab) -> Result<()> {
    println!("\n{}\n{}", lab.title(), view::table(snapshot));
    if snapshot.works() {
        return Ok(());
    }
    for process in lab.controllers.values().chain(lab.apiservers.values()) {
        println!("--- {} wrote:\n{}", process.name(), process.output());
    }
    bail!("it does not work after {} s", SETTLE.as_secs())
}

struct Lab {
    masters: Vec<String>,
    advert_interval: String,
    cut: BTreeMap<String, bool>,
    observer: Observer,
    // In the order of removal: processes before the nodes they run in.
    controllers: BTreeMap<String, Process>,
    apiservers: BTreeMap<String, Process>,
    net: Topology,
}

impl Lab {
    fn start(options: &Options) -> Result<Self> {
        let masters: Vec<String> = (1..=options.masters).map(|n| format!("m{n}")).collect();
        let builder = masters
            .iter()
            .fold(Topology::builder(), |builder, name| builder.node(name));
        let net = builder.node_at("client", 50).build()?;
        let vips = [VIP4.into(), VIP6.into()];
        let observer = Observer::start(&net, &masters, &vips)?;
        let mut lab = Self {
            masters: masters.clone(),
            advert_interval: options.advert_interval.clone(),
            cut: BTreeMap::new(),
            observer,
            controllers: BTreeMap::new(),
            apiservers: BTreeMap::new(),
            net,
        };
        for master in &masters {
            lab.start_apiserver(master)?;
        }
        for master in &masters {
            lab.start_controller(master)?;
        }
        Ok(lab)
    }

    fn title(&self) -> String {
        let plane = self.plane();
        format!(
            "xvip lab: https://{} and https://{} -> {} apiservers on port {}",
            plane.endpoint(VIP4),
            plane.endpoint(VIP6),
            self.masters.len(),
            plane.backend_port
        )
    }

    fn plane(&self) -> ControlPlane<'_> {
        let masters = self.masters.iter().filter_map(|name| self.net.find(name));
        let mut plane = ControlPlane::new(masters);
        plane.vips = vec![VIP4.into(), VIP6.into()];
        plane.advert_interval.clone_from(&self.advert_interval);
        plane
    }

    fn snapshot(&self) -> Snapshot {
        self.observer.snapshot(
            |name| state(&self.controllers, name),
            |name| state(&self.apiservers, name),
            |name| self.cut.get(name) == Some(&true),
        )
    }

    fn perform(&mut self, verb: &Verb) -> Result<String> {
        match verb {
            Verb::Status { json: true } => return Ok(serde_json::to_string(&self.snapshot())?),
            Verb::Status { json: false } => {
                return Ok(format!(
                    "{}\n{}",
                    self.title(),
                    view::table(&self.snapshot())
                ));
            }
            Verb::Info => {
                let nodes: Vec<_> = self.net.nodes().iter().map(NodeInfo::from).collect();
                return Ok(serde_json::to_string(&nodes)?);
            }
            Verb::Stop => bail!("only the main loop ends the lab"),
            Verb::KillController(on) => self.controller(on)?.kill().map(drop)?,
            Verb::StopController(on) => self.controller(on)?.terminate(PATIENCE).map(drop)?,
            Verb::FreezeController(on) => self.controller(on)?.freeze()?,
            Verb::ResumeController(on) => self.controller(on)?.resume()?,
            Verb::StartController(on) => self.start_controller(&on.node)?,
            Verb::StopApiserver(on) => self.apiserver(on)?.kill().map(drop)?,
            Verb::FreezeApiserver(on) => self.apiserver(on)?.freeze()?,
            Verb::ResumeApiserver(on) => self.apiserver(on)?.resume()?,
            Verb::StartApiserver(on) => self.start_apiserver(&on.node)?,
            Verb::NotReady(on) => self.apiserver(on)?.signal(Signal::SIGUSR1)?,
            Verb::Ready(on) => self.apiserver(on)?.signal(Signal::SIGUSR2)?,
            Verb::Cut(on) => self.set_cut(on, true)?,
            Verb::Join(on) => self.set_cut(on, false)?,
            Verb::StepDown(on) => self.ask(on, &AdminCommand::StepDown { vrrp: None })?,
            Verb::StepUp(on) => self.ask(on, &AdminCommand::Resume { vrrp: None })?,
        }
        Ok("done".to_owned())
    }

    fn start_controller(&mut self, name: &str) -> Result<()> {
        refuse_running(&self.controllers, name)?;
        let node = self.master(name)?;
        let process = node.xvip(&self.plane().config(node))?;
        self.controllers.insert(name.to_owned(), process);
        Ok(())
    }

    fn start_apiserver(&mut self, name: &str) -> Result<()> {
        refuse_running(&self.apiservers, name)?;
        // As kube-apiserver does: dual stack, and MPTCP since Go 1.24.
        let process = self
            .master(name)?
            .stand_in(&["--listen", "[::]:6443", "--mptcp"])?;
        process.wait_for_output("ready", PATIENCE)?;
        self.apiservers.insert(name.to_owned(), process);
        Ok(())
    }

    fn set_cut(&mut self, on: &On, cut: bool) -> Result<()> {
        let name = self.find(&on.node)?.name().to_owned();
        if cut {
            self.net.cut(&name)?;
        } else {
            self.net.join(&name)?;
        }
        self.cut.insert(name, cut);
        Ok(())
    }

    fn ask(&self, on: &On, command: &AdminCommand) -> Result<()> {
        let node = self.find(&on.node)?;
        let paths = Paths::new(node.directory(), node.instance());
        ask(&paths.socket(), command)?;
        Ok(())
    }

    fn controller(&self, on: &On) -> Result<&Process> {
        running(&self.controllers, on, "controller")
    }

    fn apiserver(&self, on: &On) -> Result<&Process> {
        running(&self.apiservers, on, "apiserver")
    }

    /// A node that takes part in the control plane.
    fn master(&self, name: &str) -> Result<&Node> {
        if self.masters.iter().any(|master| master == name) {
            self.find(name)
        } else {
            bail!("{name} is no master (they are {})", self.masters.join(", "))
        }
    }

    fn find(&self, name: &str) -> Result<&Node> {
        let names = || {
            let names: Vec<_> = self.net.nodes().iter().map(Node::name).collect();
            names.join(", ")
        };
        self.net
            .find(name)
            .with_context(|| format!("there is no node {name} (there are {})", names()))
    }
}

fn state(processes: &BTreeMap<String, Process>, name: &str) -> State {
    processes.get(name).map_or(State::Ended, Process::state)
}

fn running<'a>(
    processes: &'a BTreeMap<String, Process>,
    on: &On,
    what: &str,
) -> Result<&'a Process> {
    match processes.get(&on.node) {
        Some(process) if process.is_running() => Ok(process),
        _ => bail!("no {what} runs on {}", on.node),
    }
}

fn refuse_running(processes: &BTreeMap<String, Process>, name: &str) -> Result<()> {
    if state(processes, name) == State::Ended {
        return Ok(());
    }
    bail!("it already runs on {name}")
}

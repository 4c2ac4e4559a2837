//! Finds out what goes on in the lab: what every controller says, which VIPs the kernels really
//! have, and how a client fares that never stops asking.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use lb_user::admin::{
    Paths,
    client::ask_for,
    model::{Command as AdminCommand, Status},
};
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    client::{Load, request},
    netns,
    process::{State, output},
    topology::{Node, Topology},
};

/// How often controllers and kernels are asked.
const PERIOD: Duration = Duration::from_millis(250);
/// A controller's last word is worth nothing after this time.
const FRESH: Duration = Duration::from_millis(1500);
/// Time between the client's requests.
const REQUEST_PERIOD: Duration = Duration::from_millis(50);
/// What one of them may take.
const REQUEST_MILLIS: u64 = 2000;
/// How many of the last requests count.
const WINDOW: usize = 100;
/// How many requests show that it works.
const ENOUGH: u64 = 60;
/// The service's port on the VIPs.
const PORT: u16 = 1644;

/// Everything that is known at one moment.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Snapshot {
    /// Since the lab started.
    pub(super) uptime: Duration,
    /// The masters.
    pub(super) nodes: Vec<NodeView>,
    /// The client.
    pub(super) client: ClientView,
}

/// A master.
#[derive(Clone, Debug, Serialize)]
pub(super) struct NodeView {
    pub(super) name: String,
    /// Whether its cable is pulled.
    pub(super) cut: bool,
    pub(super) controller: State,
    pub(super) apiserver: State,
    /// VIPs on its interface, as its kernel says.
    pub(super) vips: Vec<IpAddr>,
    /// What its controller said lately.
    pub(super) status: Option<Status>,
}

/// The client's last requests.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct ClientView {
    /// How many there were in all.
    pub(super) total: u64,
    /// How many of all failed.
    pub(super) failed: u64,
    /// Among the last: answers per node.
    pub(super) by_node: BTreeMap<String, usize>,
    /// Among the last: failures per kind.
    pub(super) errors: BTreeMap<String, usize>,
    /// The very last one's failure, if it failed.
    pub(super) failing: Option<String>,
    /// Client address that the last answer named.
    pub(super) seen_as: Option<IpAddr>,
    /// Milliseconds of the slowest among the last.
    pub(super) slowest_ms: u128,
}

impl Snapshot {
    /// Whether every VIP has exactly one owner, every backend is up for everybody, and the
    /// client's last requests were all answered, by every master.
    pub(super) fn works(&self) -> bool {
        let statuses = || self.nodes.iter().map(|node| node.status.as_ref());
        let backends_up = statuses().all(|status| {
            status.is_some_and(|status| {
                let backends = status.services.iter().flat_map(|service| &service.backends);
                backends.clone().count() > 0
                    && backends
                        .clone()
                        .all(|backend| backend.state.to_string() == "up")
            })
        });
        let mut owned: Vec<_> = self.nodes.iter().flat_map(|node| &node.vips).collect();
        let all = owned.len();
        owned.sort();
        owned.dedup();
        backends_up
            && all == 2
            && owned.len() == 2
            && self.client.total >= ENOUGH
            && self.client.errors.is_empty()
            && self.client.by_node.len() == self.nodes.len()
    }
}

/// Asks in the background, for as long as the process lives.
#[derive(Debug)]
pub(super) struct Observer {
    start: Instant,
    nodes: Vec<(String, Shared<Seen>)>,
    client: Shared<Requests>,
}

type Shared<T> = Arc<Mutex<T>>;

fn lock<T>(shared: &Shared<T>) -> MutexGuard<'_, T> {
    match shared.lock() {
        Ok(guard) => guard,
        Err(poisoned) => poisoned.into_inner(),
    }
}

#[derive(Debug, Default)]
struct Seen {
    status: Option<(Instant, Status)>,
    vips: Vec<IpAddr>,
}

impl Observer {
    pub(super) fn start(net: &Topology, masters: &[String], vips: &[IpAddr]) -> Result<Self> {
        let mut nodes = Vec::new();
        for name in masters {
            let node = net.find(name).context("a master is not in the topology")?;
            let seen = Shared::default();
            watch_controller(node, seen.clone())?;
            watch_addresses(node, vips.to_vec(), seen.clone())?;
            nodes.push((name.clone(), seen));
        }
        let client = Shared::default();
        let node = net.find("client").context("the topology has no client")?;
        let seen: Vec<_> = nodes.iter().map(|(_, seen)| seen.clone()).collect();
        let owned = move || seen.iter().any(|seen| !lock(seen).vips.is_empty());
        keep_asking(
            node.namespace().path(),
            vips.to_vec(),
            owned,
            client.clone(),
        )?;
        Ok(Self {
            start: Instant::now(),
            nodes,
            client,
        })
    }

    /// What is known now, with what only the lab knows about its processes and links.
    pub(super) fn snapshot(
        &self,
        controller: impl Fn(&str) -> State,
        apiserver: impl Fn(&str) -> State,
        cut: impl Fn(&str) -> bool,
    ) -> Snapshot {
        let nodes = self.nodes.iter().map(|(name, seen)| {
            let seen = lock(seen);
            let status = seen.status.as_ref();
            let fresh = status.filter(|(when, _)| when.elapsed() < FRESH);
            NodeView {
                name: name.clone(),
                cut: cut(name),
                controller: controller(name),
                apiserver: apiserver(name),
                vips: seen.vips.clone(),
                status: fresh.map(|(_, status)| status.clone()),
            }
        });
        Snapshot {
            uptime: self.start.elapsed(),
            nodes: nodes.collect(),
            client: lock(&self.client).view(),
        }
    }
}

fn background(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let builder = thread::Builder::new().name(name.to_owned());
    builder.spawn(work).context("cannot start a thread")?;
    Ok(())
}

fn watch_controller(node: &Node, seen: Shared<Seen>) -> Result<()> {
    let socket = Paths::new(node.directory(), node.instance()).socket();
    background(&format!("status of {}", node.name()), move || {
        loop {
            let status = ask_for(&socket, &AdminCommand::Status).ok();
            lock(&seen).status = status.map(|status| (Instant::now(), status));
            thread::sleep(PERIOD);
        }
    })
}

fn watch_addresses(node: &Node, vips: Vec<IpAddr>, seen: Shared<Seen>) -> Result<()> {
    let namespace = node.namespace().name().to_owned();
    background(&format!("addresses of {}", node.name()), move || {
        loop {
            let mut command = Command::new("ip");
            command.args(["-n", &namespace, "-oneline", "addr", "show", "dev", "eth0"]);
            // The namespace is gone when the lab ends.
            if let Ok(text) = output(&mut command) {
                let has = |vip: &&IpAddr| text.contains(&format!(" {vip}/"));
                lock(&seen).vips = vips.iter().filter(has).copied().collect();
            }
            thread::sleep(PERIOD);
        }
    })
}

/// Asks the VIPs from the moment that somebody has them.
fn keep_asking(
    namespace: PathBuf,
    vips: Vec<IpAddr>,
    owned: impl Fn() -> bool + Send + 'static,
    requests: Shared<Requests>,
) -> Result<()> {
    background("client", move || {
        while !owned() {
            thread::sleep(REQUEST_PERIOD);
        }
        let ended = netns::block_on(&namespace, || trickle(&vips, requests));
        if let Err(error) = ended {
            eprintln!("the client ended: {error:#}");
        }
    })
}

/// One request every [`REQUEST_PERIOD`], to the VIPs in turn, whether the last is answered or not.
async fn trickle(vips: &[IpAddr], requests: Shared<Requests>) -> Result<()> {
    let mut ticks = interval(REQUEST_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for vip in vips.iter().cycle() {
        ticks.tick().await;
        let load = Load {
            timeout_ms: REQUEST_MILLIS,
            ..Load::new(SocketAddr::new(*vip, PORT))
        };
        let requests = requests.clone();
        tokio::spawn(async move {
            let outcome = match request(&load).await {
                Ok(answer) => Ok((answer.node, answer.client.ip(), answer.took)),
                Err(failure) => Err(failure.to_string()),
            };
            lock(&requests).add(outcome);
        });
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Requests {
    total: u64,
    failed: u64,
    last: VecDeque<Outcome>,
}

/// Who answered, whom it saw and how long it took; or what went wrong.
type Outcome = std::result::Result<(String, IpAddr, Duration), String>;

impl Requests {
    fn add(&mut self, outcome: Outcome) {
        self.total += 1;
        self.failed += u64::from(outcome.is_err());
        self.last.push_back(outcome);
        if self.last.len() > WINDOW {
            self.last.pop_front();
        }
    }

    fn view(&self) -> ClientView {
        let mut view = ClientView {
            total: self.total,
            failed: self.failed,
            failing: self.last.back().and_then(|last| last.clone().err()),
            ..ClientView::default()
        };
        for outcome in &self.last {
            match outcome {
                Ok((node, client, took)) => {
                    *view.by_node.entry(node.clone()).or_default() += 1;
                    view.seen_as = Some(*client);
                    view.slowest_ms = view.slowest_ms.max(took.as_millis());
                }
                Err(error) => *view.errors.entry(error.clone()).or_default() += 1,
            }
        }
        view
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Old requests leave the window; the totals keep them.
    #[test]
    fn the_window_forgets_old_requests() {
        let mut requests = Requests::default();
        requests.add(Err("timeout".into()));
        for _ in 0..WINDOW {
            let client = IpAddr::from([10, 77, 0, 50]);
            requests.add(Ok(("m1".into(), client, Duration::from_millis(3))));
        }
        let view = requests.view();
        assert_eq!((view.total, view.failed), (WINDOW as u64 + 1, 1));
        assert_eq!(view.by_node.get("m1"), Some(&WINDOW));
        assert!(view.errors.is_empty() && view.failing.is_none());
    }
}

//! What a node holds in the kernel, to compare before xvip came with after it went.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aya::{maps::loaded_maps, programs::loaded_links, programs::loaded_programs};
use nix::unistd::Pid;

use crate::{
    process::{output, wait_until},
    topology::Node,
};

/// Views of a namespace: a name and the command that prints it. None of them prints counters or ages.
const VIEWS: [(&str, &str); 8] = [
    ("links", "ip -d link show"),
    ("addresses", "ip address show"),
    ("multicast groups", "ip maddress show"),
    ("IPv4 routes", "ip route show table all"),
    ("IPv6 routes", "ip -6 route show table all"),
    ("IPv4 rules", "ip rule show"),
    ("IPv6 rules", "ip -6 rule show"),
    ("queueing disciplines", "tc qdisc show"),
];
/// Settings that xvip might change are below these.
const SETTINGS: [&str; 3] = ["net/ipv4", "net/ipv6", "net/core"];
/// What the kernel itself changes there.
const UNSTEADY: [&str; 2] = ["net/ipv4/tcp_fastopen_key", "net/ipv4/fib_sync_mem"];

/// Links, addresses, routes, rules, filters, settings, kept neighbours and cgroup programs of a node,
/// line by line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footprint(BTreeMap<String, BTreeSet<String>>);

impl Footprint {
    /// What the node holds now.
    pub fn of(node: &Node) -> Result<Self> {
        let mut all = BTreeMap::new();
        for (name, command) in VIEWS {
            all.insert(name.to_owned(), lines(&shown(node, command)?));
        }
        for side in ["ingress", "egress"] {
            let filters = shown(node, &format!("tc filter show dev eth0 {side}"))?;
            all.insert(format!("{side} filters"), lines(&filters));
        }
        all.insert("kept neighbours".to_owned(), kept_neighbours(node)?);
        all.insert("settings".to_owned(), settings(node)?);
        let cgroup = node.cgroup().display().to_string();
        let programs = node.run("bpftool", &["cgroup", "show", &cgroup])?;
        all.insert("programs of the cgroup".to_owned(), lines(&programs));
        Ok(Self(all))
    }

    /// What differs from an earlier look: lines that are new with `+`, those that are missing with `-`.
    pub fn since(&self, before: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        for (name, now) in &self.0 {
            let then = before.0.get(name).cloned().unwrap_or_default();
            let new = now
                .difference(&then)
                .map(|line| format!("{name}: + {line}"));
            differences.extend(new);
            let missing = then.difference(now);
            differences.extend(missing.map(|line| format!("{name}: - {line}")));
        }
        differences
    }
}

fn shown(node: &Node, command: &str) -> Result<String> {
    let mut words = command.split(' ');
    let mut command = node
        .namespace()
        .command(words.next().context("an empty command")?);
    output(command.args(words))
}

/// The lines of a view, without the running timers that a bridge shows.
fn lines(text: &str) -> BTreeSet<String> {
    let steady = |line: &str| {
        let mut words = Vec::new();
        let mut all = line.split_whitespace();
        while let Some(word) = all.next() {
            if word.ends_with("_timer") {
                all.next();
            } else {
                words.push(word);
            }
        }
        words.join(" ")
    };
    text.lines().map(steady).collect()
}

/// Neighbours that do not age: those that the kernel is asked to keep resolved, and fixed ones.
fn kept_neighbours(node: &Node) -> Result<BTreeSet<String>> {
    let kept = |line: &String| {
        let mut words = line.split_whitespace();
        words.any(|word| ["managed", "extern_learn", "PERMANENT"].contains(&word))
    };
    let all = lines(&shown(node, "ip neighbour show nud all")?);
    // Multicast and loopback entries are fixed as well, but NOARP, and come and go by themselves.
    let all = all.into_iter().filter(|line| !line.contains("NOARP"));
    Ok(all.filter(kept).collect())
}

fn settings(node: &Node) -> Result<BTreeSet<String>> {
    node.namespace().enter(|| {
        let mut found = BTreeSet::new();
        for below in SETTINGS {
            collect(Path::new("/proc/sys"), Path::new(below), &mut found)?;
        }
        Ok(found)
    })
}

fn collect(root: &Path, below: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    let directory = root.join(below);
    let entries =
        fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(root, &name, found)?;
        } else if !UNSTEADY.iter().any(|unsteady| Path::new(unsteady) == name) {
            // Some are only written, some have no value yet.
            if let Ok(value) = fs::read_to_string(entry.path()) {
                found.insert(format!("{} = {}", name.display(), value.trim()));
            }
        }
    }
    Ok(())
}

/// Ids of programs, maps and links in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BpfIds {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl BpfIds {
    /// All that the kernel has, of everybody.
    pub fn in_kernel() -> Self {
        // One may go between its id and the look at it.
        Self {
            programs: loaded_programs().flatten().map(|p| p.id()).collect(),
            maps: loaded_maps().flatten().map(|map| map.id()).collect(),
            links: loaded_links().flatten().map(|link| link.id()).collect(),
        }
    }

    /// Those that a process holds open.
    pub fn held_by(process: Pid) -> Result<Self> {
        let mut held = Self::default();
        let directory = format!("/proc/{process}/fdinfo");
        for entry in fs::read_dir(&directory).with_context(|| format!("cannot read {directory}"))? {
            let Ok(text) = fs::read_to_string(entry?.path()) else {
                // Closed meanwhile.
                continue;
            };
            for line in text.lines() {
                let Some((key, value)) = line.split_once(':') else {
                    continue;
                };
                let ids = match key {
                    "prog_id" => &mut held.programs,
                    "map_id" => &mut held.maps,
                    "link_id" => &mut held.links,
                    _ => continue,
                };
                ids.insert(value.trim().parse()?);
            }
        }
        ensure!(
            !held.programs.is_empty() && !held.maps.is_empty(),
            "process {process} holds no programs and maps"
        );
        Ok(held)
    }

    /// Adds another one's.
    pub fn extend(&mut self, other: Self) {
        self.programs.extend(other.programs);
        self.maps.extend(other.maps);
        self.links.extend(other.links);
    }

    /// Those of both.
    fn common(&self, other: &Self) -> Self {
        let both =
            |one: &BTreeSet<u32>, other: &BTreeSet<u32>| one.intersection(other).copied().collect();
        Self {
            programs: both(&self.programs, &other.programs),
            maps: both(&self.maps, &other.maps),
            links: both(&self.links, &other.links),
        }
    }

    /// Those that another one lacks.
    fn without(&self, other: &Self) -> Self {
        let rest =
            |one: &BTreeSet<u32>, other: &BTreeSet<u32>| one.difference(other).copied().collect();
        Self {
            programs: rest(&self.programs, &other.programs),
            maps: rest(&self.maps, &other.maps),
            links: rest(&self.links, &other.links),
        }
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Waits until the kernel has none of these any more: it frees them when nobody can be using
    /// them.
    pub fn wait_gone(&self, deadline: Duration) -> Result<()> {
        let mut left = self.clone();
        wait_until("programs, maps and links to be freed", deadline, || {
            left = self.common(&Self::in_kernel());
            Ok(left.is_empty().then_some(()))
        })
        .with_context(|| format!("still there: {left:?}"))
    }

    /// Waits until the kernel has nothing but these. Only where nobody else loads programs.
    pub fn wait_alone(&self, deadline: Duration) -> Result<()> {
        let mut more = Self::default();
        wait_until("the kernel to hold what it held before", deadline, || {
            more = Self::in_kernel().without(self);
            Ok(more.is_empty().then_some(()))
        })
        .with_context(|| format!("more than before: {more:?}"))
    }
}

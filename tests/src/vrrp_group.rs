//! VRRP groups whose members are xvip and keepalived: each group is written once and turned into
//! the configuration of either.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::IpAddr,
};

use anyhow::{Context, Result, bail};
use lb_user::admin::{
    Paths,
    client::ask_for,
    model::{Command, VrrpStatus},
};

use crate::{
    cluster::PATIENCE,
    keepalived::Keepalived,
    process::{Process, output, wait_until, workspace_binary},
    topology::{Node, Topology},
};

/// A virtual router, as all of its members are configured.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its name, and that of its instance on each member.
    pub name: String,
    /// Virtual router id; unique among the groups of a [`Mixed`].
    pub vrid: u8,
    /// Protocol version.
    pub version: u8,
    /// Its address.
    pub vip: IpAddr,
    /// Names and priorities of its members.
    pub members: Vec<(String, u8)>,
    /// Milliseconds between adverts of those that are not in `intervals`.
    pub interval: u32,
    /// Milliseconds between adverts of single members.
    pub intervals: BTreeMap<String, u32>,
    /// The members name each other as unicast peers.
    pub unicast: bool,
    /// Password of version 2.
    pub password: Option<String>,
    /// Further lines of xvip's instances.
    pub xvip: String,
    /// Further lines of keepalived's instances.
    pub keepalived: String,
}

impl Group {
    /// A multicast group of version 3 with 250 ms between adverts; its name is `v` and the VRID.
    pub fn new(vrid: u8, vip: impl Into<IpAddr>, members: &[(&str, u8)]) -> Self {
        let members = members.iter();
        Self {
            name: format!("v{vrid}"),
            vrid,
            version: 3,
            vip: vip.into(),
            members: members.map(|(name, p)| ((*name).to_owned(), *p)).collect(),
            interval: 250,
            intervals: BTreeMap::new(),
            unicast: false,
            password: None,
            xvip: String::new(),
            keepalived: String::new(),
        }
    }

    /// The same with version 2, and so adverts every second.
    #[must_use]
    pub fn version_2(mut self) -> Self {
        self.version = 2;
        self.interval = 1000;
        self
    }

    /// The same among unicast peers.
    #[must_use]
    pub fn unicast(mut self) -> Self {
        self.unicast = true;
        self
    }

    /// The same with a password.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// The same with so many milliseconds between adverts.
    #[must_use]
    pub fn interval(mut self, milliseconds: u32) -> Self {
        self.interval = milliseconds;
        self
    }

    /// The same with so many milliseconds between the adverts of one member.
    #[must_use]
    pub fn interval_of(mut self, member: &str, milliseconds: u32) -> Self {
        self.intervals.insert(member.to_owned(), milliseconds);
        self
    }

    /// The same with further lines of xvip's instances.
    #[must_use]
    pub fn xvip(mut self, lines: &str) -> Self {
        lines.clone_into(&mut self.xvip);
        self
    }

    /// The same with further lines of keepalived's instances.
    #[must_use]
    pub fn keepalived(mut self, lines: &str) -> Self {
        lines.clone_into(&mut self.keepalived);
        self
    }

    fn priority(&self, node: &Node) -> Option<u8> {
        let mut members = self.members.iter();
        let own = members.find(|(name, _)| name == node.name());
        own.map(|(_, priority)| *priority)
    }

    fn interval_on(&self, node: &Node) -> u32 {
        let own = self.intervals.get(node.name());
        own.copied().unwrap_or(self.interval)
    }

    fn prefix(&self) -> u8 {
        if self.vip.is_ipv4() { 24 } else { 128 }
    }

    fn peers(&self, net: &Topology, node: &Node) -> Vec<IpAddr> {
        let others = self.members.iter().filter(|(name, _)| name != node.name());
        others
            .map(|(name, _)| net.node(name).address_like(self.vip))
            .collect()
    }

    /// `[[vrrp]]` of a member; nothing for others.
    fn for_xvip(&self, net: &Topology, node: &Node) -> String {
        let Some(priority) = self.priority(node) else {
            return String::new();
        };
        let mut text = format!(
            "[[vrrp]]\nname = \"{}\"\ninterface = \"eth0\"\nvrid = {}\nversion = {}\n\
             priority = {priority}\nadvert_interval = \"{}ms\"\naddresses = [\"{}/{}\"]\n{}\n",
            self.name,
            self.vrid,
            self.version,
            self.interval_on(node),
            self.vip,
            self.prefix(),
            self.xvip,
        );
        if self.unicast {
            let own = node.address_like(self.vip);
            let peers: Vec<_> = self.peers(net, node).iter().map(quoted).collect();
            push(
                &mut text,
                &format!(
                    "unicast_source = \"{own}\"\nunicast_peers = [{}]",
                    peers.join(", ")
                ),
            );
        }
        if let Some(password) = &self.password {
            let auth = format!("auth = {{ type = \"password\", secret = \"{password}\" }}");
            push(&mut text, &auth);
        }
        text
    }

    /// `vrrp_instance` of a member; nothing for others.
    fn for_keepalived(&self, net: &Topology, node: &Node) -> String {
        let Some(priority) = self.priority(node) else {
            return String::new();
        };
        let mut text = format!(
            "vrrp_instance {} {{\n state BACKUP\n interface eth0\n virtual_router_id {}\n \
             version {}\n priority {priority}\n advert_int {}\n virtual_ipaddress {{\n  {}/{}\n }}\n{}\n",
            self.name,
            self.vrid,
            self.version,
            f64::from(self.interval_on(node)) / 1000.0,
            self.vip,
            self.prefix(),
            self.keepalived,
        );
        if self.unicast {
            let own = node.address_like(self.vip);
            push(
                &mut text,
                &format!(" unicast_src_ip {own}\n unicast_peer {{"),
            );
            for peer in self.peers(net, node) {
                push(&mut text, &format!("  {peer}"));
            }
            push(&mut text, " }");
        }
        if let Some(password) = &self.password {
            let auth = format!(" authentication {{\n  auth_type PASS\n  auth_pass {password}\n }}");
            push(&mut text, &auth);
        }
        push(&mut text, "}");
        text
    }
}

fn quoted(address: &IpAddr) -> String {
    format!("\"{address}\"")
}

fn push(text: &mut String, line: &str) {
    // Writing to a String does not fail.
    let _ = writeln!(text, "{line}");
}

/// What runs on a node.
#[derive(Debug)]
enum Speaker {
    Xvip(Process),
    Keepalived(Keepalived),
}

/// Nodes of which those whose names begin with `k` run keepalived, the others xvip.
#[derive(Debug)]
pub struct Mixed {
    // In the order of removal: processes go before the network does.
    speakers: BTreeMap<String, Speaker>,
    /// The virtual routers. A change counts when a member is started next.
    pub groups: Vec<Group>,
    /// What keepalived's configurations begin with.
    pub keepalived_head: String,
    net: Topology,
}

impl Mixed {
    /// Makes the nodes and starts nothing.
    pub fn new(nodes: &[&str], groups: Vec<Group>) -> Result<Self> {
        let mut builder = Topology::builder();
        for node in nodes {
            builder = builder.node(node);
        }
        Ok(Self {
            speakers: BTreeMap::new(),
            groups,
            keepalived_head: String::new(),
            net: builder.build()?,
        })
    }

    /// The nodes.
    pub fn net(&self) -> &Topology {
        &self.net
    }

    /// Starts what runs on a node.
    pub fn start(&mut self, name: &str) -> Result<()> {
        let node = self.net.node(name);
        let speaker = if name.starts_with('k') {
            Speaker::Keepalived(Keepalived::start(node, &self.keepalived_config(node))?)
        } else {
            Speaker::Xvip(node.xvip(&self.xvip_config(node))?)
        };
        self.speakers.insert(name.to_owned(), speaker);
        Ok(())
    }

    /// Ends what runs on a node as an operator does, and waits for it.
    pub fn stop(&mut self, name: &str) -> Result<()> {
        match self.take(name)? {
            Speaker::Xvip(process) => {
                let status = process.terminate(PATIENCE)?;
                anyhow::ensure!(status.success(), "xvip of {name} ended with {status}");
                Ok(())
            }
            Speaker::Keepalived(keepalived) => keepalived.stop(),
        }
    }

    /// Kills what runs on a node: it can resign from nothing.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        match self.take(name)? {
            Speaker::Xvip(process) => process.kill().map(drop),
            Speaker::Keepalived(keepalived) => keepalived.kill(),
        }
    }

    fn take(&mut self, name: &str) -> Result<Speaker> {
        let speaker = self.speakers.remove(name);
        speaker.with_context(|| format!("nothing runs on {name}"))
    }

    /// What a node's speaker has written.
    pub fn log(&self, name: &str) -> Result<String> {
        match self.speakers.get(name) {
            Some(Speaker::Xvip(process)) => Ok(process.output()),
            Some(Speaker::Keepalived(keepalived)) => Ok(keepalived.log()),
            None => bail!("nothing runs on {name}"),
        }
    }

    /// A group by its VRID.
    pub fn group(&self, vrid: u8) -> Result<&Group> {
        let found = self.groups.iter().find(|group| group.vrid == vrid);
        found.with_context(|| format!("there is no group {vrid}"))
    }

    /// The nodes that have a group's address.
    pub fn owners(&self, vrid: u8) -> Result<BTreeSet<String>> {
        let vip = self.group(vrid)?.vip;
        let mut owners = BTreeSet::new();
        for node in self.net.nodes() {
            let addresses = node.addresses("eth0")?;
            if addresses.iter().any(|known| known.net.addr() == vip) {
                owners.insert(node.name().to_owned());
            }
        }
        Ok(owners)
    }

    /// Waits until each of these groups has exactly this owner.
    pub fn wait_owners(&self, expected: &[(u8, &str)]) -> Result<()> {
        let mut seen = Vec::new();
        let waited = wait_until("the expected owners", PATIENCE, || {
            seen.clear();
            for (vrid, _) in expected {
                seen.push(self.owners(*vrid)?);
            }
            let mut pairs = seen.iter().zip(expected);
            let met = pairs.all(|(owners, (_, name))| owners.iter().eq([name]));
            Ok(met.then_some(()))
        });
        waited.with_context(|| {
            let pairs = expected.iter().zip(&seen);
            let wrong = pairs.filter(|((_, name), owners)| !owners.iter().eq([name]));
            wrong.fold(String::new(), |text, ((vrid, name), owners)| {
                format!("{text}group {vrid} shall be at {name} and is at {owners:?}; ")
            })
        })
    }

    /// The same owner for all groups.
    pub fn wait_owner_of_all(&self, owner: &str) -> Result<()> {
        let expected: Vec<_> = self
            .groups
            .iter()
            .map(|group| (group.vrid, owner))
            .collect();
        self.wait_owners(&expected)
    }

    /// What a node's xvip says of a group.
    pub fn vrrp(&self, node: &str, vrid: u8) -> Result<VrrpStatus> {
        let at = self.net.node(node);
        let socket = Paths::new(at.directory(), at.instance()).socket();
        let status: lb_user::admin::model::Status = ask_for(&socket, &Command::Status)?;
        let found = status.vrrp.into_iter().find(|vrrp| vrrp.vrid == vrid);
        found.with_context(|| format!("{node} has no instance with VRID {vrid}"))
    }

    /// `xvip vrrp <arguments>` on a node.
    pub fn cli(&self, name: &str, arguments: &[&str]) -> Result<String> {
        let node = self.net.node(name);
        let binary = workspace_binary("xvip")?;
        let mut command = node.command(binary.to_str().context("the path is not UTF-8")?);
        command.arg("vrrp").args(arguments).arg("--config");
        output(command.arg(node.directory().join("xvip.toml")))
    }

    fn xvip_config(&self, node: &Node) -> String {
        let head = format!(
            "[node]\nname = \"{}\"\ninstance = \"{}\"\ninterfaces = [\"eth0\"]\ncgroup = \"{}\"\n\
             state_dir = \"{}\"\nattach = \"native\"\n\n",
            node.name(),
            node.instance(),
            node.cgroup().display(),
            node.directory().display(),
        );
        let groups = self.groups.iter();
        groups.fold(head, |text, group| text + &group.for_xvip(&self.net, node))
    }

    fn keepalived_config(&self, node: &Node) -> String {
        let groups = self.groups.iter();
        groups.fold(self.keepalived_head.clone(), |text, group| {
            text + &group.for_keepalived(&self.net, node)
        })
    }
}

//! A real keepalived on a node: another VRRP speaker to test against.

use std::{fs, time::Duration};

use anyhow::{Context, Result, bail};

use crate::{
    kernel::{Cgroup, absent_is_fine},
    netns::unique,
    process::{Process, wait_until},
    topology::Node,
};

/// Longer than anything takes on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running keepalived: a parent that watches, and a child that speaks VRRP. Dropping it kills
/// both.
#[derive(Debug)]
pub struct Keepalived {
    // In the order of removal: the parent is waited for, then the cgroup ends with the child.
    parent: Process,
    /// Its own, inside the node's: whatever it forks is found there.
    cgroup: Cgroup,
}

impl Keepalived {
    /// Starts it with a configuration (written to `keepalived.conf` in the node's directory) and
    /// waits until it takes part.
    pub fn start(node: &Node, config: &str) -> Result<Self> {
        Self::start_parts(node, config, &["--vrrp"])
    }

    /// The same with the checkers, which balance connections by IPVS.
    pub fn start_with_ipvs(node: &Node, config: &str) -> Result<Self> {
        let pid = node.directory().join("checkers.pid");
        let pid = pid.display().to_string();
        Self::start_parts(node, config, &["--vrrp", "--check", "--checkers_pid", &pid])
    }

    fn start_parts(node: &Node, config: &str, parts: &[&str]) -> Result<Self> {
        let file = |name: &str| node.directory().join(name).display().to_string();
        let (conf, pid, vrrp_pid) = (
            file("keepalived.conf"),
            file("keepalived.pid"),
            file("vrrp.pid"),
        );
        fs::write(&conf, config).with_context(|| format!("cannot write {conf}"))?;
        // Of an earlier one that was killed: it would say that this one runs already.
        for left in [&pid, &vrrp_pid] {
            absent_is_fine(fs::remove_file(left))?;
        }
        let cgroup = Cgroup::new(&format!("{}/{}", node.instance(), unique("keepalived")))?;
        let mut command = node.namespace().command("keepalived");
        command.args(["--dont-fork", "--dont-respawn"]).args(parts);
        command.args(["--log-console", "--log-detail", "--no-syslog"]);
        command.args(["--use-file", &conf, "--pid", &pid, "--vrrp_pid", &vrrp_pid]);
        let log = node.directory().join("keepalived.log");
        let name = format!("keepalived on {}", node.name());
        let parent = Process::spawn(&name, &command, Some(cgroup.path()), log)?;
        parent.wait_for_output("Entering BACKUP STATE", PATIENCE)?;
        Ok(Self { parent, cgroup })
    }

    /// Everything that it has logged.
    pub fn log(&self) -> String {
        self.parent.output()
    }

    /// SIGTERM: it resigns, removes its addresses and ends.
    pub fn stop(self) -> Result<()> {
        let status = self.parent.terminate(PATIENCE)?;
        if !status.success() {
            bail!("keepalived ended with {status}");
        }
        self.wait_empty()
    }

    /// SIGKILL to both processes at once: it neither resigns nor removes its addresses.
    pub fn kill(self) -> Result<()> {
        fs::write(self.cgroup.path().join("cgroup.kill"), "1").context("cannot kill it")?;
        self.parent.kill()?;
        self.wait_empty()
    }

    fn wait_empty(&self) -> Result<()> {
        wait_until("the last process of keepalived to end", PATIENCE, || {
            let events = fs::read_to_string(self.cgroup.path().join("cgroup.events"))?;
            Ok(events.contains("populated 0").then_some(()))
        })
    }
}

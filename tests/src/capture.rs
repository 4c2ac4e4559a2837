//! What the wire carries: tcpdump on a topology's bridge.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result};

use crate::{
    process::{Process, output, wait_until},
    topology::Topology,
};

/// A running capture. Dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Process,
}

impl Capture {
    /// Captures frames of the bridge that match a filter of tcpdump's, from when this returns.
    pub fn start(net: &Topology, filter: &str, deadline: Duration) -> Result<Self> {
        let mut command = net.bridge().command("tcpdump");
        // Whole lines at once, no names, times in seconds.
        command.args(["-i", "br0", "-l", "-n", "-tt", "--immediate-mode"]);
        // Headers only, and 16 MB for them: with the whole of each frame the usual 2 MB hold eight.
        command.args(["-s", "256", "-B", "16384", filter]);
        // A file of its own in a directory that ends with the topology.
        let directory = net.nodes().first().map(|node| node.directory().to_owned());
        let directory = directory.unwrap_or_else(std::env::temp_dir);
        let log = directory.join(format!("{}.pcap.txt", crate::netns::unique("capture")));
        let tcpdump = Process::spawn("tcpdump", &command, None, log)?;
        tcpdump.wait_for_output("listening on", deadline)?;
        Ok(Self { tcpdump })
    }

    /// The lines of frames that contain `words`, with their times in seconds.
    pub fn lines(&self, words: &str) -> Vec<(f64, String)> {
        let text = self.tcpdump.output();
        let lines = text.lines().filter(|line| line.contains(words));
        lines
            .filter_map(|line| {
                let (time, rest) = line.split_once(' ')?;
                Some((time.parse().ok()?, rest.to_owned()))
            })
            .collect()
    }

    /// Waits for a frame whose line contains `words`, and one more than `gap` after it; the times
    /// of all of them since the first one, in seconds.
    pub fn wait_for_repeat(
        &self,
        words: &str,
        gap: Duration,
        deadline: Duration,
    ) -> Result<Vec<f64>> {
        wait_until(&format!("frames with `{words}`"), deadline, || {
            let lines = self.lines(words);
            let first = lines.first().map_or(0.0, |(time, _)| *time);
            let times: Vec<_> = lines.iter().map(|(time, _)| time - first).collect();
            let repeated = times.iter().any(|time| *time > gap.as_secs_f64());
            Ok(repeated.then_some(times))
        })
    }
}

/// A capture into a file, for programs that read such.
#[derive(Debug)]
pub struct Recording {
    tcpdump: Process,
    file: PathBuf,
}

impl Recording {
    /// Records frames of the bridge that match a filter of tcpdump's, from when this returns.
    pub fn start(net: &Topology, filter: &str, deadline: Duration) -> Result<Self> {
        let directory = net.nodes().first().context("no node")?.directory();
        let file = directory.join(format!("{}.pcap", crate::netns::unique("recording")));
        let mut command = net.bridge().command("tcpdump");
        command.args(["-i", "br0", "-U", "-n", "--immediate-mode", "-w"]);
        command.arg(&file).arg(filter);
        let log = file.with_extension("log");
        let tcpdump = Process::spawn("tcpdump", &command, None, log)?;
        tcpdump.wait_for_output("listening on", deadline)?;
        Ok(Self { tcpdump, file })
    }

    /// Ends it, and has tshark read it: the given fields of every frame, by frame; a field that a
    /// frame does not have is empty. `preferences` are tshark's `-o`.
    pub fn dissect(&self, preferences: &[&str], fields: &[&str]) -> Result<Vec<Vec<String>>> {
        if self.tcpdump.is_running() {
            self.tcpdump.terminate(Duration::from_secs(10))?;
        }
        let mut command = Command::new("tshark");
        command.args(["-n", "-T", "fields", "-E", "separator=|", "-r"]);
        command.arg(&self.file);
        for preference in preferences {
            command.args(["-o", preference]);
        }
        for field in fields {
            command.args(["-e", field]);
        }
        let text = output(&mut command)?;
        let row = |line: &str| line.split('|').map(str::to_owned).collect();
        Ok(text.lines().map(row).collect())
    }
}

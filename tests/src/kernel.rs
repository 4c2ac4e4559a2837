//! What must be mounted, where it is, and what killed runs left in it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    unistd::Pid,
};

use crate::{
    netns::unique,
    process::{output, wait_until},
};

/// The BPF file system.
pub const BPFFS: &str = "/sys/fs/bpf";
/// Below it: xvip's pins, one directory per instance.
pub const PINS: &str = "/sys/fs/bpf/xvip";

/// Mounts the BPF file system if nobody has.
pub fn ensure_bpffs() -> Result<()> {
    if mount_point("bpf")?.is_some() {
        return Ok(());
    }
    mount_fs("bpf", Path::new(BPFFS))
}

/// The root of cgroup2, mounted if nobody has: /sys/fs/cgroup, or /sys/fs/cgroup/unified where
/// cgroup v1 is in use too.
pub fn cgroup2_root() -> Result<PathBuf> {
    if let Some(path) = mount_point("cgroup2")? {
        return Ok(path);
    }
    let path = PathBuf::from("/run/xvip-cgroup2");
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    mount_fs("cgroup2", &path)?;
    Ok(path)
}

fn mount_fs(kind: &str, at: &Path) -> Result<()> {
    mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("cannot mount {kind} at {}", at.display()))
}

/// Where a file system of a kind is mounted first.
fn mount_point(kind: &str) -> Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    Ok(mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, found) = (fields.next()?, fields.next()?, fields.next()?);
        (found == kind).then(|| path.into())
    }))
}

/// Whether the kernel balances connections by itself (IPVS), as a module or built in.
pub fn has_ipvs() -> bool {
    let there = || Path::new("/proc/net/ip_vs").exists();
    // What modprobe says matters less than what is there.
    there()
        || (Command::new("modprobe")
            .args(["-q", "ip_vs"])
            .status()
            .is_ok()
            && there())
}

/// A cgroup2 directory of one node. Dropping it kills every process in it and removes it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the directory at the root of cgroup2.
    pub fn new(name: &str) -> Result<Self> {
        let path = cgroup2_root()?.join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Halts everything in it, as where a hypervisor pauses a machine, or lets it go on. Returns when
    /// that is so.
    pub fn set_frozen(&self, frozen: bool) -> Result<()> {
        let (word, state) = if frozen {
            ("1", "frozen 1")
        } else {
            ("0", "frozen 0")
        };
        let file = |name| self.path.join(name);
        fs::write(file("cgroup.freeze"), word).context("cannot write cgroup.freeze")?;
        wait_until(state, Duration::from_secs(5), || {
            let events = fs::read_to_string(file("cgroup.events"))?;
            Ok(events.lines().any(|line| line == state).then_some(()))
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove_cgroup(&self.path) {
            eprintln!("left behind: {error:#}");
        }
    }
}

/// Kills what runs in a cgroup and removes it.
fn remove_cgroup(path: &Path) -> Result<()> {
    absent_is_fine(fs::write(path.join("cgroup.kill"), "1"))
        .with_context(|| format!("cannot kill the processes of {}", path.display()))?;
    wait_until(
        "the cgroup's processes to end",
        Duration::from_secs(5),
        || {
            absent_is_fine(fs::remove_dir(path))?;
            Ok(Some(()))
        },
    )
    .with_context(|| format!("cannot remove {}", path.display()))
}

/// Processes that get a thousandth of one CPU, all together. Dropping it lifts the limit.
#[derive(Debug)]
pub struct Starved {
    path: PathBuf,
    /// The directory is made for this; otherwise it is a cgroup2 of somebody else's.
    own: bool,
}

impl Starved {
    /// Limits processes: by cgroup v1 where that has the CPU controller, by their cgroup2 where this
    /// one has it. `None`: by neither.
    pub fn new(cgroup2: &Path, pids: &[Pid]) -> Result<Option<Self>> {
        let limited = if let Some(root) = cpu_root()? {
            let path = root.join(unique("cpu"));
            fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
            let limited = Self { path, own: true };
            limited.write("cpu.cfs_period_us", "1000000")?;
            limited.write("cpu.cfs_quota_us", "1000")?;
            for pid in pids {
                limited.write("cgroup.procs", &pid.to_string())?;
            }
            limited
        } else if cgroup2.join("cpu.max").exists() {
            let path = cgroup2.to_owned();
            let limited = Self { path, own: false };
            limited.write("cpu.max", "1000 1000000")?;
            limited
        } else {
            return Ok(None);
        };
        Ok(Some(limited))
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        let path = self.path.join(file);
        fs::write(&path, value)
            .with_context(|| format!("cannot write {value} to {}", path.display()))
    }
}

impl Drop for Starved {
    fn drop(&mut self) {
        let lifted = if self.own {
            remove_cpu_cgroup(&self.path)
        } else {
            self.write("cpu.max", "max")
        };
        if let Err(error) = lifted {
            eprintln!("left behind: {error:#}");
        }
    }
}

/// Where cgroup v1's CPU controller is mounted.
fn cpu_root() -> Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    Ok(mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind, options) = (
            fields.next()?,
            fields.next()?,
            fields.next()?,
            fields.next()?,
        );
        let has_cpu = options.split(',').any(|option| option == "cpu");
        (kind == "cgroup" && has_cpu).then(|| path.into())
    }))
}

/// Moves what runs in a cgroup of v1's to the one above, and removes it.
fn remove_cpu_cgroup(path: &Path) -> Result<()> {
    let above = path.parent().context("a root")?.join("cgroup.procs");
    wait_until("the cgroup to be empty", Duration::from_secs(5), || {
        let procs = fs::read_to_string(path.join("cgroup.procs"));
        for pid in procs.unwrap_or_default().lines() {
            // It may have ended.
            let _ = fs::write(&above, pid);
        }
        absent_is_fine(fs::remove_dir(path))?;
        Ok(Some(()))
    })
    .with_context(|| format!("cannot remove {}", path.display()))
}

/// Removes the pins of an instance.
pub fn remove_pins(instance: &str) -> io::Result<()> {
    absent_is_fine(fs::remove_dir_all(Path::new(PINS).join(instance)))
}

/// What is gone already needs no removal.
pub(crate) fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes namespaces, cgroups, pins and directories of runs that were killed: everything whose
/// name starts with `xv<pid>-` for a process that is no more. Once per process.
pub fn sweep() -> Result<()> {
    static SWEPT: Mutex<bool> = Mutex::new(false);
    let mut swept = match SWEPT.lock() {
        Ok(guard) => guard,
        Err(poisoned) => poisoned.into_inner(),
    };
    if *swept {
        return Ok(());
    }
    for path in stale_in(&cgroup2_root()?) {
        remove_cgroup(&path)?;
    }
    for path in cpu_root()?.iter().flat_map(|root| stale_in(root)) {
        remove_cpu_cgroup(&path)?;
    }
    for path in stale_in(Path::new("/run/netns")) {
        let deleted = output(
            Command::new("ip")
                .args(["netns", "del"])
                .args(path.file_name()),
        );
        // Another run may sweep at the same time.
        if path.exists() {
            deleted?;
        }
    }
    for dir in [Path::new(PINS), &std::env::temp_dir()] {
        for path in stale_in(dir) {
            absent_is_fine(fs::remove_dir_all(&path))
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    *swept = true;
    Ok(())
}

/// Entries of a directory that a process which is no more made.
fn stale_in(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let gone = |pid: u32| !Path::new("/proc").join(pid.to_string()).exists();
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().and_then(maker).is_some_and(gone))
        .map(|entry| entry.path())
        .collect()
}

/// The process that made a name, as [`crate::netns::unique`] writes it.
fn maker(name: &str) -> Option<u32> {
    let (pid, rest) = name.strip_prefix("xv")?.split_once('-')?;
    rest.starts_with(|first: char| first.is_ascii_digit())
        .then(|| pid.parse().ok())?
}

/// Sets a sysctl of the calling thread's network namespace, such as `net/ipv6/conf/all/forwarding`.
pub fn sysctl(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name);
    // The path is looked up in the namespace of the thread that opens it.
    if !path.exists() {
        bail!("this kernel has no {}", path.display());
    }
    fs::write(&path, value).with_context(|| format!("cannot write {value} to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only names of the form `xv<pid>-<n>-<label>` belong to a run.
    #[test]
    fn the_maker_is_read_from_names_that_runs_make() {
        assert_eq!(maker("xv123-0-m1"), Some(123));
        assert_eq!(maker("xvip-lab"), None);
        assert_eq!(maker("xv123-lab"), None);
        assert_eq!(maker("m1"), None);
    }
}

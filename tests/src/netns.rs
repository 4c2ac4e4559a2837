//! Network namespaces that end with their owner.

use std::{
    fmt::Display,
    fs::File,
    future::Future,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use crate::process::output;

/// A name that no other run uses: `xv<pid>-<n>-<label>`. The pid in it lets the next run find
/// what a killed one left.
pub fn unique(label: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("xv{}-{number}-{label}", std::process::id())
}

/// A named network namespace with its loopback up. Dropping it deletes it.
#[derive(Debug)]
pub struct NetNs {
    name: String,
}

impl NetNs {
    /// Makes a namespace with a unique name that ends in `label`.
    pub fn new(label: &str) -> Result<Self> {
        Self::with_name(unique(label))
    }

    /// Makes a namespace of exactly this name.
    pub fn with_name(name: String) -> Result<Self> {
        output(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name for `ip -n`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its handle in the file system.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs `ip` with these arguments (split at spaces) in the namespace; returns its output.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name]);
        output(command.args(arguments.split_whitespace()))
    }

    /// Adds an address to a link, with a prefix length or as a host's. IPv6 does not look for duplicates:
    /// it is there at once.
    pub fn add_address(&self, address: impl Display, link: &str) -> Result<()> {
        let address = address.to_string();
        let option = if address.contains(':') { "nodad" } else { "" };
        self.ip(&format!("addr add {address} dev {link} {option}"))
            .map(drop)
    }

    /// A command that runs in the namespace. It keeps the caller's mounts (`ip netns exec` would
    /// hide the BPF file system and the cgroups).
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg("--")
            .arg(program);
        command
    }

    /// [`enter`] for this namespace.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        enter(&self.path(), work)
    }

    /// Runs a closure on a thread of its own inside the namespace, beside the caller.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> thread::JoinHandle<Result<T>> {
        let path = self.path();
        // Opened here: the namespace may be gone when the thread comes to run.
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()));
        thread::spawn(move || {
            setns(file?, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("cannot enter {}", path.display()))?;
            work()
        })
    }

    /// Runs a future to its end inside the namespace, on a runtime of its own.
    pub fn block_on<F, T>(&self, make: impl FnOnce() -> F + Send) -> Result<T>
    where
        F: Future<Output = Result<T>>,
        T: Send,
    {
        block_on(&self.path(), make)
    }
}

/// Runs a closure on a thread of its own inside a namespace and waits for it: sockets it opens
/// and links it looks up are the namespace's. Do not start processes in it that should outlive
/// the call: they end with the thread.
pub fn enter<T: Send>(namespace: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        // Panics and notes of skipped tests show the test's name.
        let name = thread::current().name().unwrap_or("netns").to_owned();
        let inside = thread::Builder::new()
            .name(name)
            .spawn_scoped(scope, move || {
                let file = File::open(namespace)
                    .with_context(|| format!("cannot open {}", namespace.display()))?;
                setns(file, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("cannot enter {}", namespace.display()))?;
                work()
            })
            .context("cannot start a thread")?;
        match inside.join() {
            Ok(result) => result,
            // The test's own panic, with its message and place.
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Runs a future to its end inside a namespace, on a runtime of its own.
pub fn block_on<F, T>(namespace: &Path, make: impl FnOnce() -> F + Send) -> Result<T>
where
    F: Future<Output = Result<T>>,
    T: Send,
{
    enter(namespace, || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start a runtime")?
            .block_on(make())
    })
}

impl Drop for NetNs {
    fn drop(&mut self) {
        if let Err(error) = output(Command::new("ip").args(["netns", "del", &self.name])) {
            eprintln!("left behind: {error:#}");
        }
    }
}

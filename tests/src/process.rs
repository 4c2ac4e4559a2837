//! Processes that end with their owner, and waiting for what they do.

use std::{
    ffi::OsString,
    fmt,
    fs::{self, File},
    io,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Serialize;

/// How often a condition is looked at while waiting for it.
const POLL: Duration = Duration::from_millis(5);
/// Time between two looks, in lengths of a look: on an emulated machine one can take half a second of
/// what it looks at.
const REST: u32 = 3;

/// Waits until `condition` gives a value; an error after `deadline`. A condition that fails is
/// not met yet; its last error is shown at the deadline.
pub fn wait_until<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        let begin = Instant::now();
        let last = match condition() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        let look = begin.elapsed();
        if Instant::now() >= end {
            let timeout = format!("gave up after {deadline:?} waiting for {what}");
            return Err(match last {
                Some(error) => error.context(timeout),
                None => anyhow::Error::msg(timeout),
            });
        }
        thread::sleep(POLL.max(look * REST));
    }
}

/// Runs a command to its end; its standard output, or an error with what it wrote.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let done = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{shown}`"))?;
    if !done.status.success() {
        bail!(
            "`{shown}` failed ({}): {}{}",
            done.status,
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// A command as it would be typed.
fn show(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// A binary of this workspace, next to the running one or, for a test, one directory up.
pub fn workspace_binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find the running binary")?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("{name} is not built: run `cargo xtask build`"))
}

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It runs.
    Running,
    /// It was stopped by SIGSTOP.
    Frozen,
    /// It has ended, or was never started.
    Ended,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Frozen => "frozen",
            Self::Ended => "ended",
        })
    }
}

/// A running program. It is killed when this is dropped, and when the thread that started it
/// ends, however it ends.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    /// Where its part of the log starts: an earlier run of the same program wrote before it.
    log_start: usize,
    pid: Pid,
    // Waiting and killing must not race with each other: a pid that was waited for is another's.
    child: Mutex<Child>,
}

impl Process {
    /// Starts a command, inside a cgroup if one is given; what it writes goes to `log`.
    pub fn spawn(
        name: &str,
        command: &Command,
        cgroup: Option<&Path>,
        log: PathBuf,
    ) -> Result<Self> {
        let mut wrapped = wrap(command, cgroup);
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let written = file
            .metadata()
            .context("cannot see the log's length")?
            .len();
        let stderr = file.try_clone().context("cannot share the log file")?;
        let child = wrapped
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(stderr)
            // Ctrl-C is for the owner, which decides what becomes of its processes.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start `{}`", show(&wrapped)))?;
        let pid = i32::try_from(child.id()).context("a pid beyond pid_t")?;
        Ok(Self {
            name: name.to_owned(),
            log,
            log_start: usize::try_from(written).unwrap_or(usize::MAX),
            pid: Pid::from_raw(pid),
            child: Mutex::new(child),
        })
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id: every wrapper replaces itself, so it is the program's own.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Everything that it has written.
    pub fn output(&self) -> String {
        fs::read(&self.log).map_or_else(
            |error| format!("cannot read {}: {error}", self.log.display()),
            |bytes| {
                let own = bytes.get(self.log_start..).unwrap_or_default();
                String::from_utf8_lossy(own).into_owned()
            },
        )
    }

    /// Sends a signal, if it still runs.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let mut child = self.child();
        if let Some(status) = child.try_wait()? {
            bail!("{} has ended: {status}", self.name);
        }
        kill(self.pid, signal).with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// SIGSTOP: it hangs, as on a machine that stalls. Returns when it has stopped.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        wait_until("the process to stop", Duration::from_secs(5), || {
            Ok((self.state() == State::Frozen).then_some(()))
        })
    }

    /// What it does now.
    pub fn state(&self) -> State {
        if !self.is_running() {
            return State::Ended;
        }
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        // The state follows the name, which may contain anything.
        match stat.rsplit_once(") ") {
            Some((_, rest)) if rest.starts_with('T') => State::Frozen,
            _ => State::Running,
        }
    }

    /// SIGCONT: it goes on.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&self) -> Result<ExitStatus> {
        let mut child = self.child();
        child
            .kill()
            .with_context(|| format!("cannot kill {}", self.name))?;
        child
            .wait()
            .with_context(|| format!("cannot wait for {}", self.name))
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait_exit(deadline)
    }

    /// How it ended, if it has.
    pub fn exit_status(&self) -> Result<Option<ExitStatus>> {
        Ok(self.child().try_wait()?)
    }

    /// Whether it still runs (a frozen one does).
    pub fn is_running(&self) -> bool {
        matches!(self.exit_status(), Ok(None))
    }

    /// Waits for its end.
    pub fn wait_exit(&self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        wait_until(&what, deadline, || self.exit_status()).map_err(|error| self.explain(error))
    }

    /// Waits until it has written `text`; fails at once if it ends without.
    pub fn wait_for_output(&self, text: &str, deadline: Duration) -> Result<()> {
        let what = format!("{} to write `{text}`", self.name);
        let found = wait_until(&what, deadline, || {
            let ended = self.exit_status()?;
            // Looked at after the status: what it wrote last is there.
            Ok(match (self.output().contains(text), ended) {
                (true, _) => Some(Ok(())),
                (false, Some(status)) => Some(Err(status)),
                (false, None) => None,
            })
        })
        .map_err(|error| self.explain(error))?;
        found.map_err(|status| {
            self.explain(anyhow::anyhow!(
                "{} ended before ({status}): {what}",
                self.name
            ))
        })
    }

    /// Adds what the process wrote last to an error.
    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        error.context(format!(
            "{} wrote:\n{}",
            self.name,
            tail(&self.output(), 40)
        ))
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        match self.child.lock() {
            Ok(guard) => guard,
            Err(poisoned) => poisoned.into_inner(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let died_by_itself = match self.child().try_wait() {
            Ok(Some(status)) => status.signal() != Some(Signal::SIGKILL as i32),
            _ => false,
        };
        let ended = self.kill();
        if thread::panicking() {
            let output = tail(&self.output(), 60);
            let note = if died_by_itself {
                " (ended by itself)"
            } else {
                ""
            };
            eprintln!("--- {}{note} wrote:\n{output}", self.name);
        } else if let Err(error) = ended {
            eprintln!("left behind: {error:#}");
        }
    }
}

/// The command behind two wrappers that replace themselves: one asks the kernel to kill it when
/// the starting thread ends, one enters the cgroup.
fn wrap(command: &Command, cgroup: Option<&Path>) -> Command {
    let mut words: Vec<OsString> = ["setpriv", "--pdeathsig", "KILL", "--"]
        .map(Into::into)
        .into();
    if let Some(cgroup) = cgroup {
        words.extend(["sh", "-c", r#"echo $$ >"$0" && exec "$@""#].map(Into::into));
        words.push(cgroup.join("cgroup.procs").into());
    }
    words.push(command.get_program().to_owned());
    words.extend(command.get_args().map(ToOwned::to_owned));
    let mut words = words.into_iter();
    let mut wrapped = Command::new(words.next().unwrap_or_default());
    wrapped.args(words);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}

/// The last `lines` lines of a text.
fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    let start = all.len().saturating_sub(lines);
    all.get(start..).unwrap_or_default().join("\n")
}

/// A directory below the system's temporary one. Dropping it removes it.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
}

impl TempDir {
    /// Makes a directory of this name.
    pub fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                eprintln!("left behind: {}: {error}", self.path.display());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn shell(script: &str, dir: &TempDir) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::spawn("a shell", &command, None, dir.path().join("log")).unwrap()
    }

    /// Output is captured, and waiting for text that never comes fails when the process ends.
    #[test]
    fn waiting_for_output_ends_with_the_process() {
        let dir = TempDir::new(&crate::netns::unique("process")).unwrap();
        let process = shell("echo hello; exit 3", &dir);
        process.wait_for_output("hello", SOON).unwrap();
        let error = process.wait_for_output("never", SOON).unwrap_err();
        assert!(format!("{error:#}").contains("ended before"), "{error:#}");
        assert_eq!(process.wait_exit(SOON).unwrap().code(), Some(3));
    }

    /// A dropped process is dead, also when it was frozen.
    #[test]
    fn dropping_kills_a_frozen_process() {
        let dir = TempDir::new(&crate::netns::unique("process")).unwrap();
        let process = shell("exec sleep 1000", &dir);
        process.freeze().unwrap();
        let path = PathBuf::from(format!("/proc/{}", process.pid()));
        assert!(process.is_running() && path.exists());
        drop(process);
        assert!(!path.exists());
    }
}

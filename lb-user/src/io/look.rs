//! Looks at what VRRP instances track and that does not tell by itself: files, processes, and programs
//! that say.

use std::{fs, io, path::Path, sync::Arc, time::Duration};

use tokio::{
    runtime,
    sync::mpsc,
    time::{Instant, sleep},
};

use super::command::{Ended, RunError, Runner, Status};
use crate::{
    config::model::{CommandConfig, TrackSubject},
    core::{
        controller::Input,
        tracking::{Condition, Observation},
    },
};

/// Numbers that a file may hold, as in keepalived.
const NUMBERS: std::ops::RangeInclusive<i16> = -254..=254;
/// Longest file that can hold such a number and white space around it, in bytes.
const MAX_LENGTH: u64 = 64;

/// Pause before a program is tried again whose run before has not ended.
const RETRY: Duration = Duration::from_millis(50);

/// A program that is run again and again, at different times.
struct Known {
    command: CommandConfig,
    runner: Arc<Runner>,
}

/// Looks on other threads than its caller's.
pub(super) struct Looker {
    runtime: runtime::Handle,
    looked: mpsc::UnboundedSender<Input>,
    known: Vec<Known>,
}

impl Looker {
    /// Looks on the threads of `runtime` and tells `looked` what it sees.
    pub(super) const fn new(
        runtime: runtime::Handle,
        looked: mpsc::UnboundedSender<Input>,
    ) -> Self {
        Self {
            runtime,
            looked,
            known: Vec::new(),
        }
    }

    /// Looks at `subject`; the answer, [`Input::Looked`], has the same `track` and `serial`.
    pub(super) fn look(&mut self, track: usize, serial: u64, subject: TrackSubject) {
        let looked = self.looked.clone();
        let tell = move |observation| {
            // Nobody listens any more when the controller ends.
            let _ = looked.send(Input::Looked {
                track,
                serial,
                observation,
            });
        };
        if let TrackSubject::Command { command, timeout } = subject {
            match self.runner(&command) {
                Ok(runner) => drop(self.runtime.spawn(async move {
                    let ended = run(&runner, timeout).await;
                    tell(observed(&command, ended));
                })),
                Err(error) => tell(observed(&command, Err(error))),
            }
        } else {
            self.runtime.spawn_blocking(move || tell(look(&subject)));
        }
    }

    /// What runs `command`: always the same, so that it does not run twice at once, not even when the
    /// configuration has changed meanwhile.
    fn runner(&mut self, command: &CommandConfig) -> Result<Arc<Runner>, RunError> {
        let known = self.known.iter().find(|known| known.command == *command);
        if let Some(known) = known {
            return Ok(Arc::clone(&known.runner));
        }
        // Those that nobody runs any more are few; they go when others come.
        self.known
            .retain(|known| Arc::strong_count(&known.runner) > 1);
        let CommandConfig {
            program,
            arguments,
            user,
        } = command.clone();
        let runner = Runner::new(program, arguments, Vec::new(), &user);
        let runner = Arc::new(runner.map_err(io::Error::other)?);
        self.known.push(Known {
            command: command.clone(),
            runner: Arc::clone(&runner),
        });
        Ok(runner)
    }
}

/// Runs a program within `limit`. One that another look has started is waited for that long.
async fn run(runner: &Runner, limit: Duration) -> Result<Ended, RunError> {
    let patience = Instant::now() + limit;
    loop {
        match runner.run(limit).await {
            Err(RunError::Busy) if Instant::now() < patience => sleep(RETRY).await,
            result => return result,
        }
    }
}

/// A program that ends with status 0 says that all is as it should be.
fn observed(command: &CommandConfig, ended: Result<Ended, RunError>) -> Observation {
    let program = command.program.display();
    let (status, line) = match ended {
        Ok(ended) => (Ok(ended.status), ended.line),
        Err(error) => (Err(error.to_string()), String::new()),
    };
    let how = match &status {
        Ok(Status::Exit(code)) => format!("exit status {code}"),
        Ok(Status::Signal(signal)) => format!("signal {signal}"),
        Err(error) => error.clone(),
    };
    let condition = match status {
        Ok(Status::Exit(0)) => Condition::Met,
        _ => Condition::Failed,
    };
    let said = if line.is_empty() {
        String::new()
    } else {
        format!(": {line}")
    };
    Observation {
        condition,
        seen: format!("{program}: {how}{said}"),
    }
}

/// What is to be seen of `subject` now. Reads files of the kernel and of tmpfs mostly, but may block.
fn look(subject: &TrackSubject) -> Observation {
    match subject {
        TrackSubject::File(path) => file(path),
        TrackSubject::Process { name, at_least } => {
            processes(Path::new("/proc"), name, at_least.get())
        }
        TrackSubject::LocalBackend(_)
        | TrackSubject::AnyBackend(_)
        | TrackSubject::Interface(_)
        | TrackSubject::Command { .. } => Observation {
            condition: Condition::Unknown,
            seen: "this is known in another way".to_owned(),
        },
    }
}

/// The number in a file. A file that is not there, or that holds something else, fails.
fn file(path: &Path) -> Observation {
    let shown = path.display();
    let failed = |why: String| Observation {
        condition: Condition::Failed,
        seen: format!("{shown} {why}"),
    };
    let text = match read_short(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return failed("is not there".to_owned());
        }
        Err(error) => return failed(format!("cannot be read: {error}")),
    };
    match text.trim().parse() {
        Ok(number) if NUMBERS.contains(&number) => Observation {
            condition: Condition::Number(number),
            seen: format!("{shown} holds {number}"),
        },
        _ => failed("holds no number of -254..254".to_owned()),
    }
}

fn read_short(path: &Path) -> io::Result<String> {
    use io::Read as _;
    let mut text = String::new();
    fs::File::open(path)?
        .take(MAX_LENGTH)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// Whether at least `wanted` processes named `name` run, by the process file system at `proc`.
fn processes(proc: &Path, name: &str, wanted: u32) -> Observation {
    let entries = match fs::read_dir(proc) {
        Ok(entries) => entries,
        Err(error) => {
            return Observation {
                condition: Condition::Failed,
                seen: format!("{} cannot be read: {error}", proc.display()),
            };
        }
    };
    // A process that ends while it is looked at does not run.
    let running = entries
        .filter_map(Result::ok)
        .filter(|entry| is_pid(&entry.file_name().to_string_lossy()))
        .filter(|entry| is_named(&entry.path(), name))
        .count();
    let is_met = u32::try_from(running).unwrap_or(u32::MAX) >= wanted;
    Observation {
        condition: if is_met {
            Condition::Met
        } else {
            Condition::Failed
        },
        seen: match running {
            0 => format!("no process {name} runs"),
            1 => format!("1 process {name} runs"),
            many => format!("{many} processes {name} run"),
        },
    }
}

fn is_pid(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether the process with this directory runs and has this name: the kernel's, which it cuts after
/// 15 bytes, or the last part of what it was started as.
fn is_named(directory: &Path, name: &str) -> bool {
    let Ok(stat) = fs::read(directory.join("stat")) else {
        return false;
    };
    let Some((comm, state)) = comm_and_state(&stat) else {
        return false;
    };
    // Zombies and the dead.
    if matches!(state, b'Z' | b'X') {
        return false;
    }
    let name = name.as_bytes();
    if comm == name {
        return true;
    }
    let Ok(arguments) = fs::read(directory.join("cmdline")) else {
        return false;
    };
    let command = arguments.split(|byte| *byte == 0).next().unwrap_or(&[]);
    command.rsplit(|byte| *byte == b'/').next() == Some(name)
}

/// From `PID (comm) STATE ...`; the name may hold parentheses and spaces itself (proc(5)).
fn comm_and_state(stat: &[u8]) -> Option<(&[u8], u8)> {
    let open = stat.iter().position(|byte| *byte == b'(')?;
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    Some((stat.get(open + 1..close)?, *stat.get(close + 2)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::testing::TempDir;

    fn shell(script: &str, timeout: Duration) -> TrackSubject {
        TrackSubject::Command {
            command: CommandConfig {
                program: "/bin/sh".into(),
                arguments: vec!["-c".to_owned(), script.to_owned()],
                user: "root".to_owned(),
            },
            timeout,
        }
    }

    /// The status of a program decides, what it says is seen, and one whose time is over has failed.
    #[tokio::test]
    async fn programs_say() {
        let (looked, mut seen) = mpsc::unbounded_channel();
        let mut looker = Looker::new(runtime::Handle::current(), looked);
        let (long, short) = (Duration::from_mins(1), Duration::from_millis(50));
        for (script, timeout, condition, words) in [
            (
                "echo fine",
                long,
                Condition::Met,
                "/bin/sh: exit status 0: fine",
            ),
            ("exit 3", long, Condition::Failed, "/bin/sh: exit status 3"),
            ("kill -9 $$", long, Condition::Failed, "/bin/sh: signal 9"),
            (
                "sleep 1000",
                short,
                Condition::Failed,
                "/bin/sh: time is over",
            ),
        ] {
            looker.look(4, 7, shell(script, timeout));
            let Some(Input::Looked {
                track: 4,
                serial: 7,
                observation,
            }) = seen.recv().await
            else {
                panic!("another answer");
            };
            let seen = words.to_owned();
            assert_eq!(observation, Observation { condition, seen });
        }
    }

    /// A look at the same program waits for the one before, so that a reload makes nothing fail.
    #[tokio::test]
    async fn a_second_look_waits() {
        let directory = TempDir::new();
        let file = directory.path().join("turn");
        let script = format!("mkdir {0} || exit 1; sleep 0.2; rmdir {0}", file.display());
        let (looked, mut seen) = mpsc::unbounded_channel();
        let mut looker = Looker::new(runtime::Handle::current(), looked);
        let subject = shell(&script, Duration::from_mins(1));
        looker.look(0, 1, subject.clone());
        looker.look(0, 2, subject);
        for _ in 0..2 {
            let Some(Input::Looked { observation, .. }) = seen.recv().await else {
                panic!("another answer");
            };
            assert_eq!(
                observation.condition,
                Condition::Met,
                "{}",
                observation.seen
            );
        }
    }

    /// A file's number counts with white space around it; everything else fails and says why.
    #[test]
    fn files_hold_numbers() {
        let directory = TempDir::new();
        let path = directory.path().join("weight");
        for (content, condition, seen) in [
            ("0", Condition::Number(0), "holds 0"),
            (" -20\n", Condition::Number(-20), "holds -20"),
            ("+5\n", Condition::Number(5), "holds 5"),
            ("255", Condition::Failed, "holds no number of -254..254"),
            ("twenty", Condition::Failed, "holds no number of -254..254"),
            ("", Condition::Failed, "holds no number of -254..254"),
        ] {
            fs::write(&path, content).unwrap();
            let observation = file(&path);
            assert_eq!(observation.condition, condition, "{content:?}");
            assert!(observation.seen.ends_with(seen), "{}", observation.seen);
        }
        fs::remove_file(&path).unwrap();
        let observation = file(&path);
        assert_eq!(observation.condition, Condition::Failed);
        assert!(observation.seen.ends_with("is not there"));
        assert_eq!(file(directory.path()).condition, Condition::Failed);
    }

    /// Processes are found by either of their names, zombies and others are not.
    #[test]
    fn processes_are_counted() {
        let proc = TempDir::new();
        for (pid, stat, cmdline) in [
            ("1", "1 (systemd) S 0", "/sbin/init\0splash\0"),
            ("7", "7 (kube-apiserver) R 1", "kube-apiserver\0--v=2\0"),
            (
                "8",
                "8 (kube-controller) S 1",
                "/usr/bin/kube-controller-manager\0",
            ),
            ("9", "9 (kube-apiserver) Z 1", ""),
            ("10", "10 (a (b) c) S 1", ""),
            ("self", "7 (kube-apiserver) R 1", ""),
        ] {
            let directory = proc.path().join(pid);
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("stat"), stat).unwrap();
            fs::write(directory.join("cmdline"), cmdline).unwrap();
        }
        // One that has just ended.
        fs::create_dir(proc.path().join("11")).unwrap();
        for (name, wanted, condition, seen) in [
            (
                "kube-apiserver",
                1,
                Condition::Met,
                "1 process kube-apiserver runs",
            ),
            (
                "kube-apiserver",
                2,
                Condition::Failed,
                "1 process kube-apiserver runs",
            ),
            (
                "kube-controller-manager",
                1,
                Condition::Met,
                "1 process kube-controller-manager runs",
            ),
            ("init", 1, Condition::Met, "1 process init runs"),
            ("a (b) c", 1, Condition::Met, "1 process a (b) c runs"),
            ("haproxy", 1, Condition::Failed, "no process haproxy runs"),
        ] {
            let observation = processes(proc.path(), name, wanted);
            let expected = Observation {
                condition,
                seen: seen.to_owned(),
            };
            assert_eq!(observation, expected);
        }
        let nowhere = processes(&proc.path().join("12"), "init", 1);
        assert_eq!(nowhere.condition, Condition::Failed);
    }
}

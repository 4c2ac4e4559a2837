//! Runs programs that a configuration names: without a shell, as a given user, within a time, never
//! twice at once, and with an end to everything that they started if that time is over.

use std::{
    io,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::{Pid, User, geteuid},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// `PATH` of a program; nothing else of xvip's own environment is passed on.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a program says is kept up to this length, in bytes; the rest is read and forgotten.
const MAX_OUTPUT: usize = 4096;

/// Longest line that is passed on, in characters.
const MAX_LINE: usize = 160;

/// Time for the output to come to its end after the program has: what it started may hold it open.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A program that is run now and then.
#[derive(Debug)]
pub struct Runner {
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    /// User and group id; `None`: those of xvip.
    ids: Option<(u32, u32)>,
    /// Held by the run that is under way.
    turn: Arc<Semaphore>,
}

/// A program that came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// How.
    pub status: Status,
    /// The first line that is not blank of its standard output, else of its standard error; without
    /// control characters, of bounded length.
    pub line: String,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It returned this.
    Exit(i32),
    /// This signal ended it.
    Signal(i32),
}

/// A program did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Its time was over. It was killed, and everything in its process group.
    #[error("time is over")]
    TimedOut,
    /// The run before has not ended: it could not be killed yet.
    #[error("the run before has not ended")]
    Busy,
    /// It could not be started, or not be watched.
    #[error("{0}")]
    Failed(#[from] io::Error),
}

/// There is no such user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no user {0:?} on this node")]
pub struct NoUser(pub String);

impl Runner {
    /// `program`, run with `arguments` and `environment` (and a `PATH`) as `user`.
    pub fn new(
        program: PathBuf,
        arguments: Vec<String>,
        environment: Vec<(String, String)>,
        user: &str,
    ) -> Result<Self, NoUser> {
        let known = User::from_name(user).ok().flatten();
        let known = known.ok_or_else(|| NoUser(user.to_owned()))?;
        let ids = (known.uid != geteuid()).then_some((known.uid.as_raw(), known.gid.as_raw()));
        Ok(Self {
            program,
            arguments,
            environment,
            ids,
            turn: Arc::new(Semaphore::new(1)),
        })
    }

    /// Runs the program to its end. If that does not come within `limit`, or if the future is
    /// dropped, its process group is killed.
    pub async fn run(&self, limit: Duration) -> Result<Ended, RunError> {
        let turn = Arc::clone(&self.turn).try_acquire_owned();
        let turn = turn.map_err(|_| RunError::Busy)?;
        let mut group = Group::new(self.command().spawn()?, turn);
        let end = timeout(limit, group.end()).await;
        let Ok(end) = end else {
            return Err(RunError::TimedOut);
        };
        let (status, line) = end?;
        Ok(Ended { status, line })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .env("PATH", PATH)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        if let Some((user, group)) = self.ids {
            // The standard library gives up root's further groups with it.
            command.gid(group).uid(user);
        }
        command
    }
}

/// A running program and what it has started, as far as it stays in its process group.
struct Group {
    /// `None` from its end on: its number may be another's then.
    child: Option<Child>,
    turn: Option<OwnedSemaphorePermit>,
}

impl Group {
    const fn new(child: Child, turn: OwnedSemaphorePermit) -> Self {
        Self {
            child: Some(child),
            turn: Some(turn),
        }
    }

    /// Waits for the end of the program, and reads what it says meanwhile.
    async fn end(&mut self) -> io::Result<(Status, String)> {
        let Some(child) = &mut self.child else {
            return Err(io::Error::other("it has ended before"));
        };
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (mut said, mut complained) = (Vec::new(), Vec::new());
        let status = {
            let reading = async {
                let output = listen(stdout, &mut said);
                let errors = listen(stderr, &mut complained);
                tokio::join!(output, errors);
            };
            let mut reading = std::pin::pin!(reading);
            tokio::select! {
                status = child.wait() => {
                    // What keeps its output open beyond its own end is not waited for.
                    let _ = timeout(LAST_WORDS, reading).await;
                    status?
                }
                () = &mut reading => child.wait().await?,
            }
        };
        self.child = None;
        let line = [said, complained].iter().find_map(|text| first_line(text));
        Ok((ended(status), line.unwrap_or_default()))
    }
}

impl Drop for Group {
    /// Kills what has not ended. The turn is over when the kernel has done it.
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        // Until it is waited for, nobody else can have its number.
        if let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
        let turn = self.turn.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = child.wait().await;
                drop(turn);
            });
        }
    }
}

/// Reads to the end; `kept` gets the beginning.
async fn listen(stream: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut stream) = stream else {
        return;
    };
    let mut piece = [0; 1024];
    while let Ok(length @ 1..) = stream.read(&mut piece).await {
        let room = MAX_OUTPUT.saturating_sub(kept.len());
        kept.extend(piece.iter().take(length.min(room)));
    }
}

fn ended(status: ExitStatus) -> Status {
    match (status.code(), status.signal()) {
        (Some(code), _) => Status::Exit(code),
        (None, signal) => Status::Signal(signal.unwrap_or_default()),
    }
}

fn first_line(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let visible = |c: char| if c.is_control() { ' ' } else { c };
    let plain = |line: &str| -> String { line.chars().map(visible).take(MAX_LINE).collect() };
    let mut lines = text.lines().map(|line| plain(line.trim()));
    lines.find(|line| !line.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, time::Instant};

    use super::*;

    /// Longer than any test may take.
    const PLENTY: Duration = Duration::from_mins(1);

    fn own_name() -> String {
        User::from_uid(geteuid()).unwrap().unwrap().name
    }

    fn shell(script: &str, more: &[&str]) -> Runner {
        let arguments = ["-c", script].into_iter().chain(more.iter().copied());
        let arguments = arguments.map(str::to_owned).collect();
        let environment = vec![("XVIP_TEST".to_owned(), "a b".to_owned())];
        Runner::new("/bin/sh".into(), arguments, environment, &own_name()).unwrap()
    }

    async fn ends(script: &str) -> (Status, String) {
        let ended = shell(script, &[]).run(PLENTY).await.unwrap();
        (ended.status, ended.line)
    }

    /// Proves that status and first line are told, of standard output first, and that the rest of
    /// a flood is not kept, yet does not stop the program.
    #[tokio::test]
    async fn status_and_first_line_are_told() {
        let exit = |code, line: &str| (Status::Exit(code), line.to_owned());
        assert_eq!(ends("exit 0").await, exit(0, ""));
        assert_eq!(ends("echo why >&2; exit 3").await, exit(3, "why"));
        let both = "echo complaint >&2; echo; echo ' fine\tso far'; echo more";
        assert_eq!(ends(both).await, exit(0, "fine so far"));
        assert_eq!(ends("kill -9 $$").await, (Status::Signal(9), String::new()));
        let flood = "i=0; while [ $i -lt 2000 ]; do echo $i-0123456789012345678901234567890123456789; \
            i=$((i+1)); done; exit 7";
        let (status, line) = ends(flood).await;
        assert_eq!(status, Status::Exit(7));
        assert!(line.starts_with("0-0123"), "{line}");
    }

    /// Proves that arguments come as they are, no shell in between, and that the environment is
    /// the given one and nothing of ours.
    #[tokio::test]
    async fn arguments_and_environment_are_exact() {
        let runner = shell(
            "echo \"$0|$1|$XVIP_TEST|$HOME|$PATH|$(pwd)\"",
            &["$(id)", "x  y"],
        );
        let ended = runner.run(PLENTY).await.unwrap();
        assert_eq!(ended.line, format!("$(id)|x  y|a b||{PATH}|/"));
    }

    /// Proves that a program runs as its user and in no group of ours.
    #[tokio::test]
    async fn user_is_the_given_one() {
        if !geteuid().is_root() {
            eprintln!("skipped: only root can be somebody else");
            return;
        }
        let arguments = vec!["-c".to_owned(), "echo $(id -un) $(id -G)".to_owned()];
        let runner = Runner::new("/bin/sh".into(), arguments, Vec::new(), "nobody").unwrap();
        let nobody = User::from_name("nobody").unwrap().unwrap();
        let ended = runner.run(PLENTY).await.unwrap();
        assert_eq!(ended.line, format!("nobody {}", nobody.gid));
        let unknown = Runner::new("/bin/sh".into(), Vec::new(), Vec::new(), "no-such-user");
        assert_eq!(unknown.unwrap_err(), NoUser("no-such-user".to_owned()));
    }

    /// Whether a process is there and no zombie.
    fn lives(id: &str) -> bool {
        let stat = fs::read_to_string(Path::new("/proc").join(id).join("stat"));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    }

    /// Waits until a file holds a line.
    async fn line_of(path: &Path) -> String {
        loop {
            match fs::read_to_string(path) {
                Ok(text) if text.ends_with('\n') => return text.trim().to_owned(),
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// Proves that a program whose time is over is killed with what it has started, and that the
    /// next run waits for no leftover.
    #[tokio::test]
    async fn everything_ends_with_its_time() {
        let name = format!("xvip-command-{}-limit", std::process::id());
        let file = std::env::temp_dir().join(name);
        let script = "sleep 1000 & echo $! > \"$0\"; wait";
        let runner = shell(script, &[file.to_str().unwrap()]);
        // The limit is only reached once the child is known.
        let running = runner.run(PLENTY);
        tokio::select! {
            _ = running => panic!("it ended"),
            _ = line_of(&file) => {}
        }
        let id = line_of(&file).await;
        while lives(&id) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        fs::remove_file(&file).unwrap();
        let error = loop {
            match runner.run(Duration::from_millis(50)).await {
                Err(RunError::Busy) => tokio::time::sleep(Duration::from_millis(5)).await,
                other => break other,
            }
        };
        assert!(matches!(error, Err(RunError::TimedOut)), "{error:?}");
        let _ = fs::remove_file(&file);
    }

    /// Proves that one program does not run twice at once.
    #[tokio::test]
    async fn runs_do_not_overlap() {
        let runner = shell("read nothing; sleep 1000", &[]);
        let first = runner.run(PLENTY);
        let mut first = std::pin::pin!(first);
        assert!(futures_util::poll!(&mut first).is_pending());
        assert!(matches!(runner.run(PLENTY).await, Err(RunError::Busy)));
    }

    /// Proves that what a program leaves behind with its output open is not waited for.
    #[tokio::test]
    async fn leftovers_are_not_waited_for() {
        let begin = Instant::now();
        let (status, line) = ends("echo $$; sleep 30 & exit 0").await;
        assert_eq!(status, Status::Exit(0));
        assert!(begin.elapsed() < Duration::from_secs(25));
        let group = Pid::from_raw(line.parse().unwrap());
        killpg(group, Signal::SIGKILL).unwrap();
    }

    /// Proves that a program that cannot be started is told from one that fails.
    #[tokio::test]
    async fn missing_program_is_an_error() {
        let runner = Runner::new("/nonexistent".into(), Vec::new(), Vec::new(), &own_name());
        let error = runner.unwrap().run(PLENTY).await.unwrap_err();
        assert!(
            matches!(&error, RunError::Failed(error) if error.kind() == io::ErrorKind::NotFound)
        );
    }
}

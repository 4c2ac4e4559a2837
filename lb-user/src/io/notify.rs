//! Tells others of changes of state: runs programs, writes lines to a named pipe.
//!
//! Nothing of it is done on the controller's thread: however long a program takes, no advert waits
//! for it. One task takes the notices in; the programs of each subject run one after the other, those
//! of different subjects beside each other.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::{errno::Errno, libc, sys::stat::Mode, unistd::mkfifo};
use tokio::{
    runtime,
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::{info, warn};

use super::command::{Runner, Status};
use crate::{
    admin::model::NotifyStatus,
    config::model::{CommandConfig, Config},
    core::notify::{Lane, Notice, Subject},
};

/// What xvip waits for the programs of its own end.
const LAST_PATIENCE: Duration = Duration::from_secs(10);
/// Mode of a pipe that xvip makes; whoever wants another one makes it himself.
const FIFO_MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);
/// Longest line in bytes. The kernel writes that much at once or not at all (`PIPE_BUF`), so that two
/// lines never mix.
const MAX_LINE: usize = libc::PIPE_BUF;

/// What has been told since the start.
#[derive(Debug, Default)]
struct Counts {
    lines: AtomicU64,
    lost: AtomicU64,
    commands: AtomicU64,
    failed: AtomicU64,
    given_up: AtomicU64,
}

enum Order {
    /// Write lines there from now on.
    Fifo(Option<PathBuf>),
    Tell(Notice),
    /// Answer when nothing runs any more.
    Finish(oneshot::Sender<()>),
}

/// Takes notices and returns at once.
#[derive(Debug)]
pub struct Notifier {
    orders: mpsc::UnboundedSender<Order>,
    counts: Arc<Counts>,
    fifo: Option<PathBuf>,
}

impl Notifier {
    /// Tells by what `config` says, on the threads of `runtime`.
    pub fn start(config: &Config, runtime: &runtime::Handle) -> Self {
        let (orders, taken) = mpsc::unbounded_channel();
        let counts = Arc::new(Counts::default());
        let (ended, ends) = mpsc::unbounded_channel();
        let desk = Desk {
            fifo: None,
            lanes: BTreeMap::new(),
            ended,
            finishing: Vec::new(),
            counts: Arc::clone(&counts),
        };
        runtime.spawn(desk.run(taken, ends));
        let mut notifier = Self {
            orders,
            counts,
            fifo: None,
        };
        notifier.reload(config);
        notifier
    }

    /// Goes on by what `config` says.
    pub fn reload(&mut self, config: &Config) {
        if self.fifo != config.node.notify_fifo {
            self.fifo.clone_from(&config.node.notify_fifo);
            self.order(Order::Fifo(self.fifo.clone()));
        }
    }

    /// Tells those who want to know.
    pub fn tell(&self, notice: Notice) {
        self.order(Order::Tell(notice));
    }

    /// Waits until everybody has been told, but no longer than 10 s.
    pub async fn finish(&self) {
        let (answer, finished) = oneshot::channel();
        self.order(Order::Finish(answer));
        if timeout(LAST_PATIENCE, finished).await.is_err() {
            warn!("programs that are told of changes have not ended: they are killed");
        }
    }

    /// The part of the status document that is about notices.
    pub fn status(&self) -> NotifyStatus {
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        let counts = &self.counts;
        NotifyStatus {
            fifo: self.fifo.as_ref().map(|path| path.display().to_string()),
            lines: count(&counts.lines),
            lines_lost: count(&counts.lost),
            commands: count(&counts.commands),
            commands_failed: count(&counts.failed),
            notices_given_up: count(&counts.given_up),
        }
    }

    fn order(&self, order: Order) {
        // Nobody takes it any more when the threads have ended.
        let _ = self.orders.send(order);
    }
}

/// Where notices arrive.
struct Desk {
    fifo: Option<Fifo>,
    /// Of subjects with programs that run or wait.
    lanes: BTreeMap<Subject, Lane>,
    ended: mpsc::UnboundedSender<Subject>,
    finishing: Vec<oneshot::Sender<()>>,
    counts: Arc<Counts>,
}

impl Desk {
    async fn run(
        mut self,
        mut orders: mpsc::UnboundedReceiver<Order>,
        mut ends: mpsc::UnboundedReceiver<Subject>,
    ) {
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.take(order),
                    None => return,
                },
                Some(subject) = ends.recv() => self.go_on(&subject),
            }
            if self.lanes.is_empty() {
                for finished in self.finishing.drain(..) {
                    // Who asked may have lost his patience.
                    let _ = finished.send(());
                }
            }
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Fifo(path) => self.fifo = path.map(Fifo::new),
            Order::Finish(answer) => self.finishing.push(answer),
            Order::Tell(notice) => {
                if let Some(fifo) = &mut self.fifo {
                    let is_written = fifo.write(&notice);
                    let counts = &self.counts;
                    count(if is_written {
                        &counts.lines
                    } else {
                        &counts.lost
                    });
                }
                if !notice.commands.is_empty() {
                    self.queue(notice);
                }
            }
        }
    }

    fn queue(&mut self, notice: Notice) {
        let subject = notice.subject.clone();
        let lane = self.lanes.entry(subject.clone()).or_default();
        if let Some(given_up) = lane.push(notice) {
            count(&self.counts.given_up);
            warn!(
                notice = %given_up,
                "too many changes wait for their programs: this one's are not run"
            );
        }
        self.begin(&subject);
    }

    /// The programs of a notice have ended: those of the next one.
    fn go_on(&mut self, subject: &Subject) {
        if let Some(lane) = self.lanes.get_mut(subject) {
            lane.end();
        }
        self.begin(subject);
    }

    fn begin(&mut self, subject: &Subject) {
        let Some(lane) = self.lanes.get_mut(subject) else {
            return;
        };
        if let Some(notice) = lane.begin() {
            let (ended, counts) = (self.ended.clone(), Arc::clone(&self.counts));
            tokio::spawn(async move {
                for command in &notice.commands {
                    run(command, &notice, &counts).await;
                }
                // The desk may be closed.
                let _ = ended.send(notice.subject);
            });
        } else if lane.is_idle() {
            self.lanes.remove(subject);
        }
    }
}

/// Runs one program, and says what came of it.
async fn run(command: &CommandConfig, notice: &Notice, counts: &Counts) {
    count(&counts.commands);
    let program = command.program.display();
    let failed = |why: String, said: &str| {
        count(&counts.failed);
        warn!(%notice, %program, said, "a program that is told of a change failed: {why}");
    };
    let arguments = command.arguments.clone();
    let runner = Runner::new(
        command.program.clone(),
        arguments,
        Vec::new(),
        &command.user,
    );
    let runner = match runner {
        Ok(runner) => runner,
        Err(error) => return failed(error.to_string(), ""),
    };
    match runner.run(notice.timeout).await {
        Ok(ended) => match ended.status {
            Status::Exit(0) => {
                info!(%notice, %program, said = ended.line, "told a program of a change");
            }
            Status::Exit(code) => failed(format!("exit status {code}"), &ended.line),
            Status::Signal(signal) => failed(format!("signal {signal}"), &ended.line),
        },
        Err(error) => failed(error.to_string(), ""),
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A named pipe. Nobody has to read it, and nobody waits for who does.
struct Fifo {
    path: PathBuf,
    file: Option<File>,
    /// What was said of it last, while lines are lost.
    trouble: Option<String>,
    lost: u64,
}

impl Fifo {
    /// The one at `path`, which is made if there is none.
    fn new(path: PathBuf) -> Self {
        let mut fifo = Self {
            path,
            file: None,
            trouble: None,
            lost: 0,
        };
        if let Err(error) = make(&fifo.path) {
            fifo.complain(&error);
        }
        fifo
    }

    /// Whether the notice's line was written.
    fn write(&mut self, notice: &Notice) -> bool {
        match self.try_write(&format!("{notice}\n")) {
            Ok(()) => {
                if self.trouble.take().is_some() {
                    let (path, lost) = (self.path.display(), std::mem::take(&mut self.lost));
                    info!(%path, lost, "lines are read again");
                }
                true
            }
            Err(error) => {
                self.lost += 1;
                self.complain(&error);
                false
            }
        }
    }

    fn complain(&mut self, error: &io::Error) {
        let why = match error.raw_os_error().map(Errno::from_raw) {
            // Of open() for writing, and of a pipe that nobody has open any more.
            Some(Errno::ENXIO | Errno::EPIPE) => "nobody reads it".to_owned(),
            Some(Errno::EAGAIN) => "whoever reads it does not keep up".to_owned(),
            _ => error.to_string(),
        };
        if self.trouble.as_ref() != Some(&why) {
            warn!(path = %self.path.display(), "lines about changes are lost: {why}");
            self.trouble = Some(why);
        }
    }

    fn try_write(&mut self, line: &str) -> io::Result<()> {
        if line.len() > MAX_LINE {
            return Err(io::Error::other("the line is too long"));
        }
        if let Some(file) = &mut self.file {
            match file.write_all(line.as_bytes()) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.file = None,
                result => return result,
            }
        }
        let mut file = open(&self.path)?;
        file.write_all(line.as_bytes())?;
        self.file = Some(file);
        Ok(())
    }
}

/// Opens a pipe that somebody reads.
fn open(path: &Path) -> io::Result<File> {
    make(path)?;
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.file_type().is_fifo() {
        Ok(file)
    } else {
        Err(io::Error::other("it is no named pipe"))
    }
}

fn make(path: &Path) -> io::Result<()> {
    match mkfifo(path, FIFO_MODE) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use lb_common::abi::BackendState;

    use super::*;
    use crate::admin::testing::TempDir;

    fn notice(name: &str) -> Notice {
        Notice::backend("s", name, BackendState::Up)
    }

    fn reader(path: &Path) -> File {
        let mut options = OpenOptions::new();
        let options = options.read(true).custom_flags(libc::O_NONBLOCK);
        options.open(path).unwrap()
    }

    fn lines(reader: &mut File) -> String {
        let mut text = [0; MAX_LINE];
        match reader.read(&mut text) {
            Ok(length) => String::from_utf8_lossy(&text[..length]).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => String::new(),
            Err(error) => panic!("{error}"),
        }
    }

    /// Lines come to whoever reads when they are written; without a reader, or with one that does
    /// not keep up, they are lost, and nobody waits.
    #[test]
    fn lines_are_read_or_lost() {
        let directory = TempDir::new();
        let path = directory.path().join("events");
        let mut fifo = Fifo::new(path.clone());
        assert!(std::fs::metadata(&path).unwrap().file_type().is_fifo());
        assert!(!fifo.write(&notice("early")));
        let mut first = reader(&path);
        assert!(fifo.write(&notice("a")) && fifo.write(&notice("b")));
        assert_eq!(
            lines(&mut first),
            "BACKEND \"s/a\" UP\nBACKEND \"s/b\" UP\n"
        );
        drop(first);
        assert!(!fifo.write(&notice("between")));
        let mut second = reader(&path);
        assert!(fifo.write(&notice("c")));
        assert_eq!(lines(&mut second), "BACKEND \"s/c\" UP\n");
        let many = (0..100_000).take_while(|_| fifo.write(&notice("d")));
        assert!(many.count() < 100_000, "a pipe holds no 100000 lines");
        while !lines(&mut second).is_empty() {}
        assert!(fifo.write(&notice("e")));
        assert_eq!(lines(&mut second), "BACKEND \"s/e\" UP\n");
    }

    /// A file of somebody else is not written to.
    #[test]
    fn files_are_no_pipes() {
        let directory = TempDir::new();
        let path = directory.path().join("events");
        std::fs::write(&path, "precious").unwrap();
        let mut fifo = Fifo::new(path.clone());
        assert!(!fifo.write(&notice("a")));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}

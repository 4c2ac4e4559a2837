//! A guest: QEMU, what it prints, how long it may take, and what came of it.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    console::{KILLED, Word},
    plan::Step,
};
use crate::{arch::Arch, shell, tally::Tally};

/// Until the guest's init speaks. A loaded machine emulates slowly.
const BOOT: Duration = Duration::from_mins(2);
/// Beyond a step's own limit, which the guest watches over: then it hangs as a whole.
const GRACE: Duration = Duration::from_secs(30);
/// Lines of the kernel that are shown of a guest that died.
const LAST_WORDS: usize = 40;

/// What a guest is started with.
pub(crate) struct Machine<'a> {
    /// What its lines of output begin with.
    pub(crate) name: &'a str,
    pub(crate) arch: Arch,
    pub(crate) image: &'a Path,
    pub(crate) initramfs: &'a Path,
    /// For what it leaves; removed by the caller.
    pub(crate) directory: &'a Path,
    /// Its part in a plan of several guests.
    pub(crate) role: Option<&'a str>,
    /// QEMU's options for its network; none: it has none.
    pub(crate) network: &'a [String],
    /// The network namespace that QEMU runs in.
    pub(crate) namespace: Option<&'a Path>,
}

/// What came of a guest.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Counts of its tests.
    pub(crate) tally: Tally,
    /// Steps that failed without a test that did.
    pub(crate) failed: Vec<String>,
    /// Tests that were skipped, one a line.
    pub(crate) skipped: String,
    /// Files that it handed over.
    pub(crate) files: BTreeMap<String, String>,
}

impl Outcome {
    /// A guest that did not get as far as its tests.
    pub(crate) fn failed(name: &str, error: &anyhow::Error) -> Self {
        let failed = format!("{name}: {error:#}");
        eprintln!("xtask: {failed}");
        Self {
            tally: Tally::FAILED_STEP,
            failed: vec![failed],
            ..Self::default()
        }
    }

    /// Notes that something did not run, with the reason.
    pub(crate) fn skip(&mut self, note: &str) {
        self.skipped.push_str(note);
        self.skipped.push('\n');
    }

    /// Adds what came of another guest.
    pub(crate) fn add(&mut self, other: Self) {
        self.tally += other.tally;
        self.failed.extend(other.failed);
        self.skipped += &other.skipped;
    }
}

/// A running QEMU. Dropping it ends it.
pub(crate) struct Guest {
    name: String,
    child: Child,
    lines: Receiver<String>,
    kernel_log: PathBuf,
    started: Instant,
}

impl Guest {
    /// Starts QEMU. It ends with the thread that calls this.
    pub(crate) fn start(machine: &Machine<'_>) -> Result<Self> {
        let kernel_log = machine.directory.join("kernel.log");
        let mut command = machine.command(&kernel_log);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start `{}`", shell::show(&command)))?;
        let console = child.stdout.take().context("the output is not piped")?;
        let (sender, lines) = channel();
        thread::spawn(move || read_lines(console, &sender));
        Ok(Self {
            name: machine.name.to_owned(),
            child,
            lines,
            kernel_log,
            started: Instant::now(),
        })
    }

    /// Follows the guest through its steps, printing what it prints.
    pub(crate) fn follow(&mut self, steps: &[Step]) -> Outcome {
        let mut outcome = Outcome::default();
        if let Err(error) = self.follow_into(steps, &mut outcome) {
            let last_words = self.last_words();
            eprintln!("{last_words}");
            outcome.add(Outcome::failed(&self.name, &error));
        }
        outcome
    }

    fn follow_into(&mut self, steps: &[Step], outcome: &mut Outcome) -> Result<()> {
        let release = loop {
            if let Word::Ready(release) = self.next(BOOT, "booting", outcome)? {
                break release;
            }
        };
        println!(
            "{}| Linux {release} is up after {}",
            self.name,
            seconds(self.started)
        );
        for step in steps {
            self.step(step, outcome)?;
        }
        while self.next(GRACE, "its end", outcome)? != Word::Done {}
        println!("{}| done after {}", self.name, seconds(self.started));
        Ok(())
    }

    /// One step, from its beginning to its end.
    fn step(&mut self, step: &Step, outcome: &mut Outcome) -> Result<()> {
        while self.next(GRACE, step.name, outcome)? != Word::Begin(step.name.to_owned()) {}
        let begun = Instant::now();
        let failed_before = outcome.tally.failed;
        let (name, code) = loop {
            if let Word::End(name, code) = self.next(step.limit + GRACE, step.name, outcome)? {
                break (name, code);
            }
        };
        println!("{}| {name}: {} s", self.name, begun.elapsed().as_secs());
        let how = match code {
            0 => return Ok(()),
            KILLED => format!("killed after {} s", step.limit.as_secs()),
            _ if outcome.tally.failed > failed_before => return Ok(()),
            code => format!("ended with code {code}"),
        };
        outcome.tally += Tally::FAILED_STEP;
        outcome.failed.push(format!("{}: {name}: {how}", self.name));
        Ok(())
    }

    /// The next word of the init's that is about the plan. What comes before it is printed, counted and
    /// kept.
    fn next(&mut self, limit: Duration, during: &str, outcome: &mut Outcome) -> Result<Word> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    bail!(
                        "{during}: the guest hangs: not done after {} s",
                        limit.as_secs()
                    )
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("{during}: the guest died ({})", self.how_it_died()?)
                }
            };
            match Word::of_line(&line) {
                Some(Word::Skipped(note)) => {
                    // Writing to a string does not fail.
                    let _ = writeln!(outcome.skipped, "{}: {note}", self.name);
                }
                Some(Word::File(name, line)) => {
                    let file = outcome.files.entry(name).or_default();
                    *file += &line;
                    *file += "\n";
                }
                Some(word) => return Ok(word),
                None => {
                    if let Some(counts) = Tally::of_line(&line) {
                        outcome.tally += counts;
                    }
                    if !line.is_empty() {
                        println!("{}| {line}", self.name);
                    }
                }
            }
        }
    }

    fn how_it_died(&mut self) -> Result<String> {
        let status = self.child.wait().context("waiting for QEMU")?;
        Ok(if status.success() {
            "it panicked or switched itself off".to_owned()
        } else {
            format!("QEMU: {status}")
        })
    }

    /// The last lines that its kernel wrote.
    fn last_words(&self) -> String {
        let log = fs::read(&self.kernel_log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let mut last = VecDeque::new();
        for line in log
            .lines()
            .map(str::trim_end)
            .filter(|line| !line.is_empty())
        {
            last.push_back(format!("{}| kernel: {line}", self.name));
            if last.len() > LAST_WORDS {
                last.pop_front();
            }
        }
        Vec::from(last).join("\n")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Either may fail because it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Machine<'_> {
    /// QEMU with the kernel's console in a file and the init's on its output.
    fn command(&self, kernel_log: &Path) -> Command {
        let mut words = Vec::new();
        let mut add = |more: &[&str]| words.extend(more.iter().map(|word| (*word).to_owned()));
        add(&["-accel", "tcg,thread=multi", "-smp", "2", "-m", "2048"]);
        add(&["-nodefaults", "-display", "none", "-no-reboot"]);
        add(&["-kernel", &self.image.to_string_lossy()]);
        add(&["-initrd", &self.initramfs.to_string_lossy()]);
        let role = self
            .role
            .map(|role| format!(" xvip.role={role}"))
            .unwrap_or_default();
        // A panic, or a fault of the kernel's, ends the guest. Whether the timer works is not checked: on
        // a busy host the emulated one can be too late for that, and the kernel panics. What the kernel
        // does against faults of CPUs costs an emulated one a fifth of its time.
        let emulator = Emulator::of(self.arch);
        let Emulator { console, port, .. } = emulator;
        let line = format!(
            "console={console} xvip.port={port} quiet panic=-1 oops=panic no_timer_check \
             mitigations=off net.ifnames=0{role}"
        );
        add(&["-append", &line]);
        add(&["-serial", &format!("file:{}", kernel_log.display())]);
        add(emulator.options);
        let network = self.network.iter().map(String::as_str).collect::<Vec<_>>();
        add(if network.is_empty() {
            &["-net", "none"]
        } else {
            &network
        });

        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        if let Some(namespace) = self.namespace {
            let mut entered = std::ffi::OsString::from("--net=");
            entered.push(namespace);
            command.arg("nsenter").arg(entered).arg("--");
        }
        // The host's own tests measure time, guests do not.
        command.args(["nice", "-n", "10"]);
        command.arg(emulator.program).args(words);
        // The emulator makes tables anew whenever a process follows another: they need not go back to the
        // host each time, which would clear every page of them.
        command.envs([
            ("MALLOC_MMAP_THRESHOLD_", "1073741824"),
            ("MALLOC_TRIM_THRESHOLD_", "4294967296"),
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }
}

/// QEMU for an architecture.
struct Emulator {
    program: &'static str,
    /// The machine, its CPU, and the port whose other end is QEMU's output.
    options: &'static [&'static str],
    /// The device that the kernel writes to.
    console: &'static str,
    /// The device that the init writes to.
    port: &'static str,
}

impl Emulator {
    fn of(arch: Arch) -> Self {
        match arch {
            Arch::X86_64 => Self {
                program: "qemu-system-x86_64",
                // Without ERMS: a kernel that has it copies by `rep movsb`, which the emulator does byte
                // by byte; loading the programs then takes more than twice as long.
                options: &["-cpu", "Nehalem", "-serial", "stdio"],
                console: "ttyS0",
                port: "ttyS1",
            },
            Arch::Aarch64 => Self {
                program: "qemu-system-aarch64",
                // Signed pointers by the architecture's own cipher take half of the time.
                options: &[
                    "-machine",
                    "virt",
                    "-cpu",
                    "max,pauth-impdef=on",
                    "-chardev",
                    "stdio,id=out,signal=off",
                    "-device",
                    "virtio-serial-pci",
                    "-device",
                    "virtconsole,chardev=out",
                ],
                // The machine has one serial port.
                console: "ttyAMA0",
                port: "hvc0",
            },
        }
    }
}

/// Sends the lines of a console on until it ends, without the carriage returns.
fn read_lines(console: impl std::io::Read, to: &Sender<String>) {
    for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line)
            .trim_end_matches('\r')
            .to_owned();
        if to.send(line).is_err() {
            return;
        }
    }
}

fn seconds(since: Instant) -> String {
    format!("{:.1} s", since.elapsed().as_secs_f32())
}

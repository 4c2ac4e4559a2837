//! `cargo xtask test --only vm`: the tests on the kernels that users have, each in a guest of its own.
//! QEMU emulates it, so that neither KVM nor root is needed.

mod apt;
mod console;
mod guest;
mod initramfs;
mod kernel;
mod modules;
mod pair;
mod plan;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    env, fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{self, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail};

pub(crate) use self::guest::Outcome;
use self::{
    guest::{Guest, Machine},
    initramfs::Initramfs,
    kernel::{Kernel, Kernels, Wanted},
    plan::Step,
};
use crate::{
    arch::Arch,
    setup,
    shell::{self, Workspace},
};

/// Kernels that every change is tested on: the oldest supported one, and the one of Debian 13, which
/// Debian 12 and RHEL 10 offer as well.
const KERNELS: &[&str] = &["6.1", "6.12"];

/// Steps about programs, packet by packet: a guest may do them as slowly as it likes.
pub(crate) const STEPS_OF_PROGRAMS: &[&str] = &["verifier", "system", "model", "rows"];
/// Steps with whole nodes, whose timers notice when a guest gets no time for seconds.
pub(crate) const STEPS_OF_NODES: &[&str] = &["journey"];

/// Programs that tests call in a guest, where this machine has them and they are for its architecture.
const TOOLS: &[&str] = &[
    "bpftool",
    "chrt",
    "conntrack",
    "curl",
    "ethtool",
    "ip",
    "ip6tables",
    "ip6tables-restore",
    "iptables",
    "iptables-restore",
    "iptables-save",
    "ipvsadm",
    "keepalived",
    "nft",
    "nsenter",
    "setpriv",
    "ss",
    "strace",
    "tc",
    "tcpdump",
    "unshare",
    "xdp-filter",
];
/// Files of this machine that those read, where it has them.
const FILES: &[&str] = &[
    "/etc/group",
    "/etc/iproute2",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/protocols",
    "/etc/services",
    "/usr/lib/x86_64-linux-gnu/xtables",
    "/usr/share/iproute2",
];
/// Files of the repository that tests read.
const TEST_FILES: &[&str] = &[
    "docs/KERNELS.md",
    "lb-user/tests/fixtures/import",
    "tests/cases",
];
/// Binaries that tests start.
const BINARIES: &[&str] = &["xvip", "xvip-client", "xvip-lab", "xvip-standin"];
/// Test targets of the package lb-tests that guests run.
const TESTS: &[&str] = &["bpf", "guest"];
/// What a guest may write anew with `--bless`.
const BLESSED: &str = "docs/KERNELS.md";

/// Which kernels, which steps.
pub(crate) struct Options<'a> {
    /// As the command line names them; none: [`KERNELS`].
    pub(crate) kernels: &'a [String],
    /// Steps, each with a filter after `=`; none: all.
    pub(crate) steps: &'a [String],
    /// Record what the verifier says in docs/KERNELS.md.
    pub(crate) bless: bool,
}

/// Why guests cannot be made here, if that is so.
pub(crate) fn unavailable() -> Option<String> {
    if env::consts::ARCH != "x86_64" {
        return Some(format!(
            "guests are x86_64, this machine is {}",
            env::consts::ARCH
        ));
    }
    let apt = shell::find_program("apt-get").is_none();
    apt.then(|| "there is no apt-get here, by which kernels are had".to_owned())
}

/// Runs the tests in guests, one for each kernel.
pub(crate) fn run(workspace: &Workspace, options: &Options<'_>) -> Result<Outcome> {
    let started = Instant::now();
    let directory = workspace.target.join("vm");
    let words = options.kernels.iter().map(String::as_str);
    let words: Vec<_> = if options.kernels.is_empty() {
        KERNELS.to_vec()
    } else {
        words.collect()
    };
    let wanted: Vec<Wanted> = words.into_iter().map(str::parse).collect::<Result<_>>()?;
    let steps = plan::alone(options);
    let steps_of_pair = plan::pair(options);
    if steps.is_empty() && steps_of_pair.is_empty() {
        bail!("no step has that name: {}", options.steps.join(", "));
    }
    if options.steps.is_empty() {
        println!(
            "xtask: on demand only, because they take an emulated machine many minutes: \
             --step devices, neighbours or pair"
        );
    }
    let source = Kernels::new(&directory);
    let kernels: Vec<Kernel> = wanted
        .iter()
        .map(|wanted| source.get(wanted))
        .collect::<Result<_>>()?;
    let mut binaries = BTreeMap::new();
    for arch in kernels.iter().map(|kernel| kernel.arch) {
        if let Entry::Vacant(place) = binaries.entry(arch) {
            setup::vm_tools(workspace, arch)?;
            place.insert(Binaries::build(workspace, &source, arch)?);
        }
    }
    let scratch = Scratch::new(&directory)?;
    println!(
        "xtask: kernels and binaries are there after {} s",
        started.elapsed().as_secs()
    );

    let boot = |kernel: &Kernel| {
        let mut outcome = Outcome::default();
        let Some(binaries) = binaries.get(&kernel.arch) else {
            return outcome;
        };
        if !steps.is_empty() {
            let done = alone(workspace, binaries, kernel, &steps, &scratch.path);
            outcome = done.unwrap_or_else(|error| Outcome::failed(&kernel.name, &error));
        }
        let paired = !steps_of_pair.is_empty();
        match pair::unavailable(kernel).filter(|_| paired) {
            Some(reason) => outcome.skip(&format!("{}: pair: {reason}", kernel.name)),
            None if !paired => {}
            None => {
                let done = pair::run(workspace, binaries, kernel, &steps_of_pair, &scratch.path);
                let failed = |error| Outcome::failed(&kernel.name, &error);
                outcome.add(done.unwrap_or_else(failed));
            }
        }
        outcome
    };
    let mut all = Outcome::default();
    if options.bless {
        // One after the other: each starts with what the one before has recorded.
        for kernel in &kernels {
            let outcome = boot(kernel);
            if let Some(recorded) = outcome.files.get(BLESSED) {
                fs::write(workspace.root.join(BLESSED), recorded)?;
            }
            all.add(outcome);
        }
    } else {
        // Two at a time: a guest has two CPUs, and much of what it does needs one.
        for pair in kernels.chunks(2) {
            let outcomes = thread::scope(|scope| {
                let guests: Vec<_> = pair
                    .iter()
                    .map(|kernel| scope.spawn(move || boot(kernel)))
                    .collect();
                guests
                    .into_iter()
                    .map(thread::ScopedJoinHandle::join)
                    .collect::<Vec<_>>()
            });
            for outcome in outcomes {
                all.add(outcome.map_err(|_| anyhow::anyhow!("a guest's thread panicked"))?);
            }
        }
    }
    println!("xtask: guests took {} s", started.elapsed().as_secs());
    Ok(all)
}

/// One guest with a kernel, from its archive to its end.
fn alone(
    workspace: &Workspace,
    binaries: &Binaries,
    kernel: &Kernel,
    steps: &[Step],
    scratch: &Path,
) -> Result<Outcome> {
    let directory = scratch.join(&kernel.release);
    fs::create_dir_all(&directory)?;
    let steps: Vec<Step> = (steps.iter())
        .filter(|step| kernel.arch == Arch::X86_64 || step.binary == "bpf")
        .cloned()
        .collect();
    let steps_of_plan = plan::script(&steps, |name| binaries.test(name));
    let recorded = workspace.root.join(BLESSED);
    let recorded = plan::quoted(&recorded.to_string_lossy());
    let script = format!("{steps_of_plan}give {recorded} {BLESSED}\n");
    let initramfs = directory.join("initramfs");
    archive(workspace, binaries, kernel, &script, &directory)?.write(&initramfs)?;
    let mut guest = Guest::start(&Machine {
        name: &kernel.name,
        arch: kernel.arch,
        image: &kernel.image,
        initramfs: &initramfs,
        directory: &directory,
        role: None,
        network: &[],
        namespace: None,
    })?;
    Ok(guest.follow(&steps))
}

/// What is in a guest: a shell, tools, modules, and what tests need at the same paths as here.
fn archive(
    workspace: &Workspace,
    binaries: &Binaries,
    kernel: &Kernel,
    plan: &str,
    scratch: &Path,
) -> Result<Initramfs> {
    let mut guest = Initramfs::new();
    guest.text("/init", true, include_str!("init.sh"));
    guest.text("/plan", false, plan);
    guest.text(
        "/etc/hosts",
        false,
        "127.0.0.1 localhost guest\n::1 localhost\n",
    );
    busybox(&mut guest)?;
    if let Some(programs) = &binaries.programs {
        guest.foreign(kernel.arch, programs)?;
    } else {
        for name in TOOLS {
            if let Some(program) = shell::find_program(name) {
                guest.program(&program, &format!("/usr/sbin/{name}"))?;
            }
        }
        for path in FILES.iter().map(Path::new).filter(|path| path.exists()) {
            guest.tree(path)?;
        }
    }
    let tables = scratch.join("depmod");
    let modules = modules::of_kernel(kernel, &tables)?;
    guest.modules(kernel, &modules, &tables)?;

    let below = |path: PathBuf| path.to_string_lossy().into_owned();
    for path in TEST_FILES.iter().map(|path| workspace.root.join(path)) {
        if path.exists() {
            guest.tree(&path)?;
        }
    }
    for object in [workspace.bpf_object(), workspace.log_object()] {
        guest.file(&object, &object.to_string_lossy())?;
    }
    for name in BINARIES {
        let path = kernel.arch.binary(workspace, name);
        guest.stripped(kernel.arch, &path, &path.to_string_lossy(), scratch)?;
    }
    guest.link(
        "/usr/bin/xvip",
        &below(kernel.arch.binary(workspace, "xvip")),
    );
    for path in binaries.tests.values() {
        guest.stripped(kernel.arch, path, &path.to_string_lossy(), scratch)?;
    }
    Ok(guest)
}

/// The shell and the small programs of a system.
fn busybox(guest: &mut Initramfs) -> Result<()> {
    let busybox = shell::find_program("busybox").context("no busybox")?;
    guest.program(&busybox, "/usr/bin/busybox")?;
    let applets = shell::output(process::Command::new(&busybox).arg("--list"))?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        guest.link(&format!("/usr/bin/{applet}"), "busybox");
    }
    // The kernel calls it by this name.
    guest.link("/usr/sbin/modprobe", "../bin/busybox");
    Ok(())
}

/// What guests of an architecture run.
struct Binaries {
    /// Test binaries that cargo has built.
    tests: BTreeMap<String, PathBuf>,
    /// Where the shell and `ip` are, if they are not the host's.
    programs: Option<PathBuf>,
}

impl Binaries {
    /// Builds what guests run. The features are those of a build of everything, so that nothing is
    /// compiled twice.
    fn build(workspace: &Workspace, kernels: &Kernels, arch: Arch) -> Result<Self> {
        let programs = (arch != Arch::X86_64).then(|| kernels.foreign_programs(arch));
        let mut build = arch.cargo(workspace, "build");
        build.args(["--workspace", "--exclude", "lb-ebpf", "--bins"]);
        for name in TESTS {
            build.args(["--test", name]);
        }
        build
            .arg("--message-format=json-render-diagnostics")
            .stdout(Stdio::piped());
        let mut child = build.spawn().context("cannot start cargo")?;
        let messages = child.stdout.take().context("cargo's output is not piped")?;
        let mut tests = BTreeMap::new();
        for line in BufReader::new(messages).lines() {
            tests.extend(test_binary(&line?));
        }
        if !child.wait()?.success() {
            bail!("`{}` failed", shell::show(&build));
        }
        for name in TESTS {
            if !tests.contains_key(*name) {
                bail!("cargo built no test target {name}");
            }
        }
        Ok(Self {
            tests,
            programs: programs.transpose()?,
        })
    }

    fn test(&self, name: &str) -> &Path {
        self.tests.get(name).map_or(Path::new(""), PathBuf::as_path)
    }
}

/// The test target and its executable that a message of cargo's is about, if guests run it.
fn test_binary(message: &str) -> Option<(String, PathBuf)> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    let target = message.get("target")?;
    let name = target.get("name")?.as_str()?;
    let is_test = target
        .get("kind")?
        .as_array()?
        .iter()
        .any(|kind| kind == "test");
    let path = message.get("executable")?.as_str()?;
    (is_test && TESTS.contains(&name)).then(|| (name.to_owned(), path.into()))
}

/// A directory for one run, removed at its end; those of runs that were killed go as well.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new(parent: &Path) -> Result<Self> {
        let parent = parent.join("run");
        fs::create_dir_all(&parent)?;
        for entry in fs::read_dir(&parent)? {
            let path = entry?.path();
            let pid = path.file_name().context("an entry has a name")?;
            if !Path::new("/proc").join(pid).exists() {
                fs::remove_dir_all(&path)?;
            }
        }
        let path = parent.join(process::id().to_string());
        fs::create_dir_all(&path)?;
        Ok(Self { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("xtask: left behind: {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only the executables of the guests' test targets are picked from cargo's messages.
    #[test]
    fn test_binaries_are_read_from_cargo() {
        let artifact = |kind: &str, name: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["{kind}"],"name":"{name}"}},
                "executable":"/t/{name}-1"}}"#
            )
        };
        let expected = Some(("bpf".to_owned(), PathBuf::from("/t/bpf-1")));
        assert_eq!(test_binary(&artifact("test", "bpf")), expected);
        assert_eq!(test_binary(&artifact("test", "scenarios")), None);
        assert_eq!(test_binary(&artifact("bin", "bpf")), None);
        assert_eq!(
            test_binary(r#"{"reason":"build-finished","success":true}"#),
            None
        );
        assert_eq!(test_binary("not a message"), None);
    }

    /// The kernels that are tested by default are versions that apt is asked for.
    #[test]
    fn default_kernels_are_versions() {
        for word in KERNELS {
            assert!(matches!(word.parse(), Ok(Wanted::Version(..))), "{word}");
        }
    }

    /// A whole run has all steps but those on demand.
    #[test]
    fn whole_runs_leave_nothing_out() {
        let steps = plan::alone(&Options {
            kernels: &[],
            steps: &[],
            bless: false,
        });
        let names: Vec<_> = steps.iter().map(|step| step.name).collect();
        assert_eq!(names, [STEPS_OF_PROGRAMS, STEPS_OF_NODES].concat());
    }
}

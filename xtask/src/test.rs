//! `cargo xtask test`: every check that a change must pass, and one line with the counts.

use std::{
    fs::{self, OpenOptions},
    io::{BufRead, BufReader, Write as _},
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::{
    arm64, bpf, setup,
    shell::{self, Workspace},
    tally::Tally,
    vm,
};

/// Tests of what runs beside xvip on a node, and of devices, most of which need a guest: on demand.
const ON_DEMAND: [&str; 2] = ["neighbours::", "devices::"];

/// What to test.
#[derive(Args)]
pub(crate) struct TestArgs {
    /// Run one part only.
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Record how much the kernels' verifiers have to do, in docs/KERNELS.md (parts bpf and vm).
    #[arg(long)]
    bless: bool,
    /// Of the part vm: one step of each guest only, and of that only tests whose names contain TEXT.
    #[arg(long = "step", value_name = "STEP[=TEXT]")]
    steps: Vec<String>,
    /// Names of tests and other arguments for the test binaries; of the part vm: kernels, such as
    /// `6.12`, `7.x`, `trixie`, `./linux-image.deb` or `./DIRECTORY`.
    #[arg(last = true)]
    filter: Vec<String>,
}

/// A part of the whole.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Formatting, clippy, licenses.
    Lint,
    /// Tests of the crates themselves; some make namespaces as well.
    Unit,
    /// Tests that load the programs into the kernel (tests/tests/bpf).
    Bpf,
    /// Scenarios in network namespaces (tests/tests/net, scenarios and guest).
    Net,
    /// The programs and the daemon on other kernels, in emulated guests.
    Vm,
    /// Documentation builds without warnings.
    Docs,
    /// The build for 64-bit ARM, and the tests that need no kernel of that kind; not among those of a
    /// run without `--only`.
    Arm64,
}

/// Runs the parts; the last line of output is the counts.
pub(crate) fn test(workspace: &Workspace, args: &TestArgs) -> Result<ExitCode> {
    let wants = |part| args.only.is_none_or(|only| only == part);
    setup::build_tools(workspace)?;
    if [Part::Unit, Part::Bpf, Part::Net].into_iter().any(wants) {
        setup::test_tools()?;
    }
    if wants(Part::Lint) {
        setup::cargo_deny(workspace)?;
    }
    bpf::build(workspace)?;
    if wants(Part::Bpf) || wants(Part::Vm) {
        bpf::build_log(workspace)?;
    }

    let mut session = Session::start(workspace, args.bless)?;
    if args.only.is_none() && !session.build() {
        return session.finish();
    }
    let guests = wants(Part::Vm) && {
        let reason = vm::unavailable();
        if let Some(reason) = &reason {
            session.skip(&format!("vm: {reason}"));
        }
        reason.is_none()
    };
    if args.only.is_some() {
        session.tests(args)?;
        let steps = guests.then_some(args.steps.as_slice());
        session.guests(steps, args)?;
    } else if args.bless {
        // All record in the same file.
        session.tests(args)?;
        session.guests(guests.then_some(&[]), args)?;
        session.lint();
        session.docs();
    } else {
        // Most steps of guests measure no time, nor do the lints: they run beside tests of this machine
        // that do. Whole nodes in guests fail if they get no time for seconds: they come last.
        let [alone, nodes] = [vm::STEPS_OF_PROGRAMS, vm::STEPS_OF_NODES].map(|names| {
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>()
        });
        let mut others = session.part();
        thread::scope(|scope| {
            let others = scope.spawn(|| {
                others.guests(guests.then_some(&alone), args)?;
                others.lint();
                others.docs();
                anyhow::Ok(others)
            });
            session.tests(args)?;
            session.add(others.join().unwrap_or_else(|panic| resume_unwind(panic))?);
            anyhow::Ok(())
        })?;
        session.guests(guests.then_some(&nodes), args)?;
    }
    if args.only == Some(Part::Lint) {
        session.lint();
    }
    if args.only == Some(Part::Docs) {
        session.docs();
    }
    if args.only == Some(Part::Arm64) {
        arm64::test(&mut session, &args.filter)?;
    }
    session.finish()
}

/// One run: what has been counted, and which steps failed.
pub(crate) struct Session<'a> {
    workspace: &'a Workspace,
    tally: Tally,
    failed: Vec<String>,
    /// Parts that were skipped as a whole.
    skipped: Vec<String>,
    skip_notes: PathBuf,
    bless: bool,
}

impl<'a> Session<'a> {
    fn start(workspace: &'a Workspace, bless: bool) -> Result<Self> {
        let skip_notes = workspace.target.join("skipped-tests");
        fs::write(&skip_notes, "")
            .with_context(|| format!("cannot write {}", skip_notes.display()))?;
        Ok(Self {
            workspace,
            tally: Tally::default(),
            failed: Vec::new(),
            skipped: Vec::new(),
            skip_notes,
            bless,
        })
    }

    /// A part of this run that goes on beside it, with nothing counted yet.
    fn part(&self) -> Self {
        Self {
            workspace: self.workspace,
            tally: Tally::default(),
            failed: Vec::new(),
            skipped: Vec::new(),
            skip_notes: self.skip_notes.clone(),
            bless: self.bless,
        }
    }

    /// Adds what a part has counted.
    fn add(&mut self, part: Self) {
        self.tally += part.tally;
        self.failed.extend(part.failed);
        self.skipped.extend(part.skipped);
    }

    /// Where everything is.
    pub(crate) fn workspace(&self) -> &'a Workspace {
        self.workspace
    }

    /// Runs the tests of the selected part on this machine's kernel, if it has any.
    fn tests(&mut self, args: &TestArgs) -> Result<()> {
        let filter = args.filter.as_slice();
        let Some(part) = args.only else {
            // One build for all parts: the same features everywhere, nothing compiled twice.
            let all = ["--workspace", "--exclude", "lb-ebpf"];
            if !filter.is_empty() {
                return self.cargo_test(&all, filter);
            }
            let skips = ON_DEMAND.map(|name| ["--skip", name].map(str::to_owned));
            self.cargo_test(&all, &skips.concat())?;
            for name in ON_DEMAND {
                self.skip(&format!(
                    "{name} takes several minutes: `cargo xtask test --only net -- {name}`"
                ));
            }
            return Ok(());
        };
        let suites = |names: &[&'static str]| {
            let tests = names.iter().flat_map(|&name| ["--test", name]);
            ["--package", "lb-tests"].into_iter().chain(tests).collect()
        };
        let packages: Vec<&str> = match part {
            Part::Unit => vec![
                "--workspace",
                "--exclude",
                "lb-ebpf",
                "--exclude",
                "lb-tests",
            ],
            Part::Bpf => suites(&["bpf"]),
            Part::Net => suites(&["net", "scenarios", "guest"]),
            Part::Lint | Part::Vm | Part::Docs | Part::Arm64 => return Ok(()),
        };
        if !self.build() {
            return Ok(());
        }
        self.cargo_test(&packages, filter)?;
        if part == Part::Unit {
            self.cargo_test(&["--package", "lb-tests", "--lib", "--bins"], filter)?;
        }
        Ok(())
    }

    fn lint(&mut self) {
        let mut fmt = self.workspace.cargo("fmt");
        fmt.args(["--all", "--", "--check"]);
        self.step("rustfmt", &mut fmt);

        let mut clippy = self.workspace.cargo("clippy");
        clippy.args(["--workspace", "--exclude", "lb-ebpf", "--all-targets"]);
        // Every crate's findings in one run, not only the first one's.
        clippy.args(["--all-features", "--keep-going", "--", "-Dwarnings"]);
        self.step("clippy", &mut shell::behind_all_others(&clippy));
        let programs = bpf::clippy(self.workspace);
        self.step(
            "clippy of the programs",
            &mut shell::behind_all_others(&programs),
        );

        // Advisories are left to a CI with network: their database is fetched.
        let mut deny = self.workspace.cargo("deny");
        deny.args([
            "--log-level",
            "error",
            "check",
            "bans",
            "licenses",
            "sources",
        ]);
        self.step("cargo-deny", &mut deny);
    }

    fn docs(&mut self) {
        let mut doc = self.workspace.cargo("doc");
        doc.args([
            "--workspace",
            "--exclude",
            "lb-ebpf",
            "--no-deps",
            "--quiet",
        ]);
        doc.env("RUSTDOCFLAGS", "-Dwarnings");
        self.step("rustdoc", &mut shell::behind_all_others(&doc));
    }

    /// A step that passes or fails as a whole; whether it passed.
    pub(crate) fn step(&mut self, name: &str, command: &mut Command) -> bool {
        println!("xtask: {name}");
        let result = shell::run(command);
        if let Err(error) = &result {
            self.fail(format!("{name}: {error:#}"));
        }
        result.is_ok()
    }

    /// Runs these steps of guests, if any shall run.
    fn guests(&mut self, steps: Option<&[String]>, args: &TestArgs) -> Result<()> {
        let Some(steps) = steps else {
            return Ok(());
        };
        let only = args.only == Some(Part::Vm);
        let outcome = vm::run(
            self.workspace,
            &vm::Options {
                kernels: if only { &args.filter } else { &[] },
                steps,
                bless: args.bless,
            },
        );
        self.add_guests(outcome)
    }

    /// Adds what came of the guests.
    fn add_guests(&mut self, outcome: Result<vm::Outcome>) -> Result<()> {
        match outcome {
            Ok(outcome) => {
                self.tally += outcome.tally;
                self.failed.extend(outcome.failed);
                let mut notes = OpenOptions::new().append(true).open(&self.skip_notes)?;
                notes.write_all(outcome.skipped.as_bytes())?;
            }
            Err(error) => self.fail(format!("vm: {error:#}")),
        }
        Ok(())
    }

    /// A part or a test that cannot run here.
    pub(crate) fn skip(&mut self, what: &str) {
        self.tally.skipped += 1;
        self.skipped.push(what.to_owned());
    }

    /// Notes that something failed as a whole.
    pub(crate) fn fail(&mut self, what: String) {
        eprintln!("xtask: {what}");
        self.tally += Tally::FAILED_STEP;
        self.failed.push(what);
    }

    /// Builds all tests and the binaries that they start; whether that worked.
    fn build(&mut self) -> bool {
        let mut build = self.workspace.cargo("build");
        build.args(["--workspace", "--exclude", "lb-ebpf", "--all-targets"]);
        self.step("build", &mut build)
    }

    /// Runs the tests of packages that are built and adds their counts.
    fn cargo_test(&mut self, packages: &[&str], filter: &[String]) -> Result<()> {
        println!("xtask: tests of {}", packages.join(" "));
        let mut command = self.workspace.cargo("test");
        command.args(packages).arg("--no-fail-fast");
        if let Some((variable, sudo)) = self.runner() {
            command.env(variable, sudo);
        }
        if self.bless {
            command.env("XVIP_BLESS", "1");
        }
        command.arg("--").args(filter);
        self.count(&mut command)
    }

    /// Runs tests and adds their counts.
    pub(crate) fn count(&mut self, tests: &mut Command) -> Result<()> {
        tests.env("XVIP_SKIPPED_TESTS", &self.skip_notes);
        let (counts, success) = run_counting(tests)?;
        self.tally += counts;
        // A test binary that died (or did not link) printed no counts.
        if !success && counts.failed == 0 {
            self.fail(format!("`{}` failed", shell::show(tests)));
        }
        Ok(())
    }

    /// Tests that touch the kernel need root: an ordinary user's run goes through sudo.
    fn runner(&self) -> Option<(String, String)> {
        if shell::is_root() || shell::find_program("sudo").is_none() {
            return None;
        }
        let output = Command::new("rustc")
            .args(["--print", "host-tuple"])
            .current_dir(&self.workspace.root)
            .output()
            .ok()?;
        let host = String::from_utf8(output.stdout).ok()?;
        let host = host.trim().to_uppercase().replace('-', "_");
        println!("xtask: tests that touch the kernel need root: through sudo");
        Some((
            format!("CARGO_TARGET_{host}_RUNNER"),
            "sudo --preserve-env=PATH,XVIP_BLESS,XVIP_SKIPPED_TESTS".to_owned(),
        ))
    }

    fn finish(mut self) -> Result<ExitCode> {
        for what in &self.skipped {
            println!("skipped {what}");
        }
        let notes = read(&self.skip_notes)?;
        for note in notes.lines() {
            println!("skipped {note}");
        }
        self.tally.move_skipped(&notes);
        for what in &self.failed {
            println!("failed {what}");
        }
        println!("{}", self.tally);
        Ok(if self.tally.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

/// Runs a test command, showing its output as it comes and adding up the summaries in it.
fn run_counting(command: &mut Command) -> Result<(Tally, bool)> {
    let shown = shell::show(command);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{shown}`"))?;
    let stdout = child.stdout.take().context("the output is not piped")?;
    let mut tally = Tally::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("cannot read the tests' output")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        if let Some(counts) = Tally::of_line(&line) {
            tally += counts;
        }
    }
    let status = child
        .wait()
        .with_context(|| format!("waiting for `{shown}`"))?;
    Ok((tally, status.success()))
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

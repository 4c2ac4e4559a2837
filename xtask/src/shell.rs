//! Where things are, and how commands are run.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// The directories that every task works with.
pub(crate) struct Workspace {
    /// Root of the repository.
    pub(crate) root: PathBuf,
    /// Cargo's target directory.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Finds the repository that this xtask was built from.
    pub(crate) fn locate() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask's manifest has no parent directory")?
            .to_owned();
        let target = env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| root.join("target"), |dir| root.join(dir));
        Ok(Self { root, target })
    }

    /// Tools that only this repository needs, installed by `setup`.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// One of those tools.
    pub(crate) fn tool(&self, name: &str) -> PathBuf {
        self.tools().join("bin").join(name)
    }

    /// The BPF object that lb-user embeds.
    pub(crate) fn bpf_object(&self) -> PathBuf {
        self.target.join("bpf").join("xvip-bpf.o")
    }

    /// The BPF object that logs its decisions.
    pub(crate) fn log_object(&self) -> PathBuf {
        self.target.join("bpf").join("xvip-bpf-log.o")
    }

    /// The benchmark's own BPF object.
    pub(crate) fn floor_object(&self) -> PathBuf {
        self.target.join("bpf").join("xvip-floor.o")
    }

    /// A binary that cargo built.
    pub(crate) fn binary(&self, name: &str, release: bool) -> PathBuf {
        let profile = if release { "release" } else { "debug" };
        self.target.join(profile).join(name)
    }

    /// A cargo command in the repository, with its tools first on PATH. Where the target
    /// directory is not the default one, lb-user's build script is told where the object is (and
    /// only there: a variable that comes and goes would rebuild lb-user each time).
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .arg(subcommand)
            .current_dir(&self.root)
            .env("PATH", path_with(&self.tools().join("bin")));
        // What `cargo run` says of xtask's own package: build scripts of dependencies (ring's) ask for
        // such names, and would run anew whenever xtask builds after somebody else has, or before.
        let own = |name: &OsString| {
            let name = name.to_string_lossy();
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        };
        for (name, _) in env::vars_os().filter(|(name, _)| own(name)) {
            command.env_remove(name);
        }
        if self.target != self.root.join("target") {
            command.env("XVIP_BPF_OBJECT", self.bpf_object());
        }
        command
    }
}

/// PATH with a directory in front, and with the administrator's directories at the end, where an
/// ordinary user's PATH lacks them on Debian.
fn path_with(first: &Path) -> OsString {
    let old = env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(first.to_owned())
        .chain(env::split_paths(&old))
        .chain(["/usr/sbin".into(), "/sbin".into()]);
    env::join_paths(dirs).unwrap_or(old)
}

/// The same command with the lowest priority: it takes what time nobody else wants.
pub(crate) fn behind_all_others(command: &Command) -> Command {
    let mut nice = Command::new("nice");
    nice.args(["-n", "19"]).arg(command.get_program());
    nice.args(command.get_args());
    if let Some(directory) = command.get_current_dir() {
        nice.current_dir(directory);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => nice.env(name, value),
            None => nice.env_remove(name),
        };
    }
    nice
}

/// Runs a command to its end; an error names it.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command
        .status()
        .with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed: {status}");
    }
    Ok(())
}

/// What a command prints, if it succeeds; an error names it.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output = (command.stderr(Stdio::inherit()).output())
        .with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed: {}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{shown}` does not print text"))
}

/// Becomes a command: signals and the exit status are its own then.
pub(crate) fn become_command(command: &mut Command) -> anyhow::Error {
    let shown = show(command);
    anyhow::Error::new(command.exec()).context(format!("cannot start `{shown}`"))
}

/// A command as it would be typed.
pub(crate) fn show(command: &Command) -> String {
    let program = Path::new(command.get_program());
    std::iter::once(program.file_name().unwrap_or(program.as_os_str()))
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether a program is installed, also where only root's PATH would find it.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    // The owner of /proc/self is the process's effective user.
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// A command run as root: directly, or through sudo.
pub(crate) fn as_root(program: impl AsRef<OsStr>, why: &str) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    if find_program("sudo").is_none() {
        bail!("{why} needs root, and there is no sudo: run this as root");
    }
    println!("xtask: {why} needs root: through sudo");
    let mut command = Command::new("sudo");
    command.arg(program);
    Ok(command)
}

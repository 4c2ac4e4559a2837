//! `build`, `run` and `lab`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use clap::Args;

use crate::{
    bpf, setup,
    shell::{self, Workspace},
};

/// Where a packaged xvip looks for its configuration.
const DEFAULT_CONFIG: &str = "/etc/xvip/xvip.toml";

/// How the host binaries are built.
#[derive(Args, Clone, Copy)]
pub(crate) struct Flavour {
    /// Optimised binaries.
    #[arg(long)]
    pub(crate) release: bool,
    /// For development: programs that log a line about each decision, which show in the log of xvip
    /// with `--log info,bpf=trace`.
    #[arg(long)]
    pub(crate) bpf_log: bool,
}

/// What to run.
#[derive(Args)]
pub(crate) struct RunArgs {
    /// Run this node's controller with this configuration (default: /etc/xvip/xvip.toml if it
    /// exists, else the lab).
    #[arg(long, value_name = "FILE", conflicts_with = "lab")]
    config: Option<PathBuf>,
    /// Run the lab although /etc/xvip/xvip.toml exists.
    #[arg(long)]
    lab: bool,
    /// How the binaries are built.
    #[command(flatten)]
    flavour: Flavour,
    /// Arguments for the lab, such as `-- --duration 30s`.
    #[arg(last = true)]
    args: Vec<String>,
}

/// Builds the object, then everything else.
pub(crate) fn build(workspace: &Workspace, flavour: Flavour) -> Result<()> {
    shell::run(&mut flavour.cargo_build(workspace)?)
}

/// Builds the binaries of the daemon, the lab and its stand-in, and no more.
fn build_binaries(workspace: &Workspace, flavour: Flavour) -> Result<()> {
    let mut cargo = flavour.cargo_build(workspace)?;
    cargo.args(["--package", "lb-user", "--package", "lb-tests", "--bins"]);
    shell::run(&mut cargo)
}

impl Flavour {
    /// Builds the object; the command then builds the rest.
    fn cargo_build(self, workspace: &Workspace) -> Result<Command> {
        setup::build_tools(workspace)?;
        bpf::build(workspace)?;
        let mut cargo = workspace.cargo("build");
        if self.bpf_log {
            bpf::build_log(workspace)?;
            cargo.args(["--features", "lb-user/bpf-log"]);
            cargo.env("XVIP_BPF_OBJECT", workspace.log_object());
        }
        if self.release {
            cargo.arg("--release");
        }
        Ok(cargo)
    }
}

/// Runs the controller or the lab in place of this process.
pub(crate) fn run(workspace: &Workspace, args: &RunArgs) -> Result<()> {
    let default = Path::new(DEFAULT_CONFIG);
    let config = match &args.config {
        Some(file) => Some(file.as_path()),
        None => (!args.lab && default.is_file()).then_some(default),
    };
    if config.is_none() {
        setup::system_tools()?;
    }
    let release = args.flavour.release;
    build_binaries(workspace, args.flavour)?;
    let Some(config) = config else {
        let mut lab = shell::as_root(workspace.binary("xvip-lab", release), "the lab")?;
        lab.arg("run").args(&args.args);
        return Err(shell::become_command(&mut lab));
    };
    println!(
        "xtask: running this node's controller with {}",
        config.display()
    );
    let mut xvip = shell::as_root(workspace.binary("xvip", release), "the controller")?;
    xvip.arg("run").arg("--config").arg(config).args(&args.args);
    Err(shell::become_command(&mut xvip))
}

/// Passes a verb on to the lab, with the newest binary that there is.
pub(crate) fn lab_verb(workspace: &Workspace, args: &[String]) -> Result<()> {
    let age = |release| {
        let file = workspace.binary("xvip-lab", release);
        let modified = fs::metadata(&file).and_then(|meta| meta.modified()).ok()?;
        Some((modified, file))
    };
    let binary = if let Some((_, file)) = age(false).max(age(true)) {
        file
    } else {
        let flavour = Flavour {
            release: false,
            bpf_log: false,
        };
        build_binaries(workspace, flavour)?;
        workspace.binary("xvip-lab", false)
    };
    let mut lab = shell::as_root(binary, "the lab")?;
    lab.args(args);
    Err(shell::become_command(&mut lab))
}

//! `build`, `run` and `lab`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use clap::Args;

use crate::{
    bpf, setup,
    shell::{self, Workspace},
};

/// Where a packaged xvip looks for its configuration.
const DEFAULT_CONFIG: &str = "/etc/xvip/xvip.toml";

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
    /// Optimised binaries.
    #[arg(long)]
    release: bool,
    /// Arguments for the lab, such as `-- --duration 30s`.
    #[arg(last = true)]
    args: Vec<String>,
}

/// Builds the object, then everything else.
pub(crate) fn build(workspace: &Workspace, release: bool) -> Result<()> {
    setup::build_tools(workspace)?;
    bpf::build(workspace)?;
    let mut cargo = workspace.cargo("build");
    if release {
        cargo.arg("--release");
    }
    shell::run(&mut cargo)
}

/// Builds the binaries of the daemon, the lab and its stand-in, and no more.
fn build_binaries(workspace: &Workspace, release: bool) -> Result<()> {
    setup::build_tools(workspace)?;
    bpf::build(workspace)?;
    let mut cargo = workspace.cargo("build");
    cargo.args(["--package", "lb-user", "--package", "lb-tests", "--bins"]);
    if release {
        cargo.arg("--release");
    }
    shell::run(&mut cargo)
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
    build_binaries(workspace, args.release)?;
    let Some(config) = config else {
        let mut lab = shell::as_root(workspace.binary("xvip-lab", args.release), "the lab")?;
        lab.arg("run").args(&args.args);
        return Err(shell::become_command(&mut lab));
    };
    println!(
        "xtask: running this node's controller with {}",
        config.display()
    );
    let mut xvip = shell::as_root(workspace.binary("xvip", args.release), "the controller")?;
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
        build_binaries(workspace, false)?;
        workspace.binary("xvip-lab", false)
    };
    let mut lab = shell::as_root(binary, "the lab")?;
    lab.args(args);
    Err(shell::become_command(&mut lab))
}

//! Builds the BPF object, and the one that the benchmark compares it with. They have a target
//! directory of their own: another RUSTFLAGS and target in the shared one would rebuild every
//! proc macro at each switch.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::shell::{self, Workspace};

const TARGET: &str = "bpfel-unknown-none";

/// Instruction set v3 (Linux 5.1): 32-bit arithmetic, which halves the spills. Full debug
/// information and `--btf`: bpftool prints field names from the BTF made of it.
const RUSTFLAGS: &str = "-Cdebuginfo=2\x1f-Ctarget-cpu=v3\x1f-Clink-arg=--btf";

/// Builds the object and puts it where lb-user's build script looks.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    build_binary(workspace, "xvip-bpf", &[], &workspace.bpf_object())
}

/// Builds the object that logs its decisions, beside the one that ships.
pub(crate) fn build_log(workspace: &Workspace) -> Result<()> {
    let features = ["--features", "log"];
    build_binary(workspace, "xvip-bpf", &features, &workspace.log_object())
}

/// Builds the programs that the benchmark compares with.
pub(crate) fn build_floor(workspace: &Workspace) -> Result<()> {
    build_binary(workspace, "xvip-floor", &[], &workspace.floor_object())
}

fn build_binary(workspace: &Workspace, name: &str, features: &[&str], to: &Path) -> Result<()> {
    let mut build = cargo(workspace, "build");
    build.args(["--bin", name]).args(features);
    shell::run(&mut build).with_context(|| format!("{name} does not build"))?;
    let directory = workspace.target.join("bpf").join(TARGET).join("release");
    copy_if_changed(&directory.join(name), to)
}

/// Clippy over the programs, on their own target.
pub(crate) fn clippy(workspace: &Workspace) -> Command {
    let mut command = cargo(workspace, "clippy");
    command.args(["--all-features", "--keep-going", "--", "-Dwarnings"]);
    command
}

fn cargo(workspace: &Workspace, subcommand: &str) -> Command {
    let mut command = workspace.cargo(subcommand);
    command
        .args(["--package", "lb-ebpf", "--release", "--target", TARGET])
        // The target has no precompiled core.
        .arg("-Zbuild-std=core")
        .arg("--target-dir")
        .arg(workspace.target.join("bpf"))
        // -Zbuild-std and aya-ebpf's inline assembly are unstable: allow them on this toolchain.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS);
    command
}

/// An object that did not change keeps its time stamp: lb-user is not rebuilt.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    fs::write(to, new).with_context(|| format!("cannot write {}", to.display()))
}

//! `cargo xtask bench`.

use anyhow::Result;

use crate::{
    bpf, setup,
    shell::{self, Workspace},
};

/// Builds what is measured and what it is compared with, and becomes the benchmark.
pub(crate) fn run(workspace: &Workspace, args: &[String]) -> Result<()> {
    setup::build_tools(workspace)?;
    bpf::build(workspace)?;
    bpf::build_floor(workspace)?;
    let mut cargo = workspace.cargo("build");
    // lb-user and lb-tests: the processes that a benchmark starts.
    cargo.args(["--release", "--bins"]);
    cargo.args(["--package", "lb-bench", "--package", "lb-user"]);
    cargo.args(["--package", "lb-tests"]);
    shell::run(&mut cargo)?;
    let mut bench = shell::as_root(workspace.binary("lb-bench", true), "the benchmark")?;
    if args.is_empty() {
        bench.arg("packets");
    }
    bench
        .args(args)
        .env("XVIP_FLOOR_OBJECT", workspace.floor_object());
    Err(shell::become_command(&mut bench))
}

//! `cargo xtask`: sets up, builds, runs and tests xvip. Depends on no crate of the workspace, so
//! that it works before anything else builds.

mod arch;
mod arm64;
mod bench;
mod bpf;
mod run;
mod setup;
mod shell;
mod tally;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::shell::Workspace;

/// Sets up, builds, runs and tests xvip.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the build needs and this machine lacks; nothing when all is there.
    Setup,
    /// Build the BPF object (always optimised) and every host crate; `--release` leaves
    /// target/release/xvip.
    Build(run::Flavour),
    /// Run the controller of this node, or the lab when there is no configuration.
    Run(run::RunArgs),
    /// Talk to the running lab: `status`, `kill-controller m1`, `exec m2 -- ip addr`, ...
    Lab {
        /// Verb and arguments, as `xvip-lab --help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Measure: nanoseconds per packet beside floors, and more; `cargo xtask bench -- --help`.
    Bench {
        /// What to measure, and its options; nothing: `packets`.
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Build and run everything that decides whether a change is good.
    Test(test::TestArgs),
}

fn main() -> ExitCode {
    match perform(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<ExitCode> {
    let workspace = Workspace::locate()?;
    match task {
        Task::Setup => {
            setup::build_tools(&workspace)?;
            setup::system_tools()?;
            println!("xtask: everything is in place");
        }
        Task::Build(flavour) => run::build(&workspace, flavour)?,
        Task::Run(args) => run::run(&workspace, &args)?,
        Task::Lab { args } => run::lab_verb(&workspace, &args)?,
        Task::Bench { args } => bench::run(&workspace, &args)?,
        Task::Test(args) => return test::test(&workspace, &args),
    }
    Ok(ExitCode::SUCCESS)
}

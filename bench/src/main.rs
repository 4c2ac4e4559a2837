//! xvip's benchmarks. Each one measures xvip beside something else in the same run, rounds
//! interleaved, so that the ratios hold on a noisy machine. Needs root; touches nothing outside
//! of network namespaces that it makes. Start it with `cargo xtask bench`.

mod adverts;
mod bulk;
mod checks;
mod packets;
mod summary;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use serde::Serialize;

/// Measures xvip.
#[derive(Parser)]
#[command(name = "lb-bench")]
struct Cli {
    /// Write the numbers to this file, as JSON.
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Nanoseconds per packet of the ingress program, beside an empty program, one that parses
    /// and one that looks a flow up.
    Packets(packets::Options),
    /// Takeovers that nobody wanted: fast adverts while all CPUs are busy.
    Adverts(adverts::Options),
    /// Bulk transfers by nat in tc mode, beside haproxy in TCP mode.
    Bulk(bulk::Options),
    /// Checks of backends beside one that hangs.
    Checks(checks::Options),
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    match cli.what {
        What::Packets(options) => write(cli.json, &packets::run(&options)?),
        What::Adverts(options) => write(cli.json, &adverts::run(&options)?),
        What::Bulk(options) => write(cli.json, &bulk::run(&options)?),
        What::Checks(options) => write(cli.json, &checks::run(&options)?),
    }
}

fn write(file: Option<PathBuf>, results: &impl Serialize) -> Result<()> {
    let Some(file) = file else {
        return Ok(());
    };
    let text = serde_json::to_string_pretty(results)?;
    std::fs::write(&file, text + "\n").with_context(|| format!("cannot write {}", file.display()))
}

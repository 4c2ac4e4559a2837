//! `xvip-client`: makes requests and prints the report as JSON. A process of its own, for
//! scenarios in which it matters which cgroup a client is in.

use clap::Parser;
use lb_tests::client::{Load, run};

/// Makes requests and prints what came of them as JSON.
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    load: Load,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let report = run(&Cli::parse().load).await?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

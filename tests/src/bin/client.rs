//! `xvip-client`: makes requests and prints the report as JSON. A process of its own, for
//! scenarios in which it matters which cgroup a client is in.

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use lb_tests::{
    client::{Load, run},
    datagram::{Answer, Client},
};

/// Makes requests and prints what came of them as JSON.
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    load: Load,
    /// Ask by UDP, one question after the other from one socket, and print the answers.
    #[arg(long)]
    udp: bool,
    /// The same by a socket that is connected.
    #[arg(long)]
    udp_connected: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    let report = if cli.udp || cli.udp_connected {
        serde_json::to_string(&ask(&cli.load, cli.udp_connected)?)?
    } else {
        serde_json::to_string(&run(&cli.load).await?)?
    };
    println!("{report}");
    Ok(())
}

fn ask(load: &Load, connected: bool) -> Result<Vec<Answer>> {
    let client = Client::here(load.target, connected)?;
    if connected {
        let peer = client.peer()?;
        ensure!(peer == load.target, "connected to {peer}");
    }
    let patience = Duration::from_millis(load.timeout_ms);
    (0..load.requests)
        .map(|_| client.ask(100, patience))
        .collect()
}

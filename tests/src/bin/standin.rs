//! `xvip-standin`: the stand-in for kube-apiserver as a process.

use clap::Parser;
use lb_tests::standin::{Options, serve};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    serve(Options::parse()).await
}

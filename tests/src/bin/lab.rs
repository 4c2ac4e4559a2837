//! `xvip-lab`: the lab, and the verbs that reach a running one.

use std::{
    collections::BTreeMap, fs, os::unix::process::CommandExt, path::PathBuf, process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use lb_tests::{
    client::{self, Load},
    lab::{self, Control, NodeInfo, Verb},
    netns,
    topology::inside,
};
use nix::unistd::geteuid;

/// Three masters with an apiserver stand-in and xvip each, on one bridge with a client.
#[derive(Parser)]
#[command(name = "xvip-lab", bin_name = "cargo xtask lab", max_term_width = 100)]
struct Cli {
    /// Directory of the control socket, for several labs at the same time.
    #[arg(long, global = true, env = "XVIP_LAB_DIR", value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the lab until Ctrl-C (`cargo xtask run` does this).
    Run(lab::Options),
    #[command(flatten)]
    Verb(Verb),
    /// Run a command in a node: `exec m1 -- ip addr`.
    Exec(Exec),
    /// Make requests through the VIP and count who answers.
    Request(Request),
    /// Print what a node's xvip has logged.
    Logs(lab::On),
}

#[derive(Args)]
struct Exec {
    /// Name of the node; the client's is `client`.
    node: String,
    /// The command.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[derive(Args)]
struct Request {
    /// The node that asks.
    #[arg(long, default_value = "client")]
    from: String,
    #[command(flatten)]
    load: Load,
    /// Print the counts as JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match perform(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xvip-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(cli: Cli) -> Result<ExitCode> {
    if !geteuid().is_root() {
        bail!("network namespaces need root");
    }
    let control = Control::new(cli.dir.as_deref());
    match cli.command {
        Command::Run(options) => run(&options, control)?,
        Command::Verb(verb) => println!("{}", control.ask(&verb)?),
        Command::Exec(exec) => return Err(become_command(&control, &exec)?.into()),
        Command::Request(request) => return requests(&control, &request),
        Command::Logs(on) => {
            let log = node(&control, &on.node)?.directory.join("xvip.log");
            let text = fs::read_to_string(&log)
                .with_context(|| format!("cannot read {}", log.display()))?;
            print!("{text}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// On one thread, the main one: the lab's processes end with the thread that started them.
fn run(options: &lab::Options, control: Control) -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?
        .block_on(lab::run(options, control))
}

fn node(control: &Control, name: &str) -> Result<NodeInfo> {
    let nodes: Vec<NodeInfo> = serde_json::from_str(&control.ask(&Verb::Info)?)?;
    let mut by_name: BTreeMap<_, _> = nodes
        .into_iter()
        .map(|node| (node.name.clone(), node))
        .collect();
    let names: Vec<_> = by_name.keys().cloned().collect();
    by_name
        .remove(name)
        .with_context(|| format!("there is no node {name} (there are {})", names.join(", ")))
}

fn become_command(control: &Control, exec: &Exec) -> Result<std::io::Error> {
    let node = node(control, &exec.node)?;
    let (program, arguments) = exec.command.split_first().context("no command")?;
    let mut command = inside(&node.cgroup, &node.namespace, program);
    Ok(command.args(arguments).exec())
}

fn requests(control: &Control, request: &Request) -> Result<ExitCode> {
    let node = node(control, &request.from)?;
    // The node's connect hooks apply to processes of its cgroup.
    fs::write(
        node.cgroup.join("cgroup.procs"),
        std::process::id().to_string(),
    )
    .with_context(|| format!("cannot enter {}", node.cgroup.display()))?;
    let report = netns::block_on(&node.namespace, || client::run(&request.load))?;
    if request.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    Ok(if report.failed() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

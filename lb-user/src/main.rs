//! The `xvip` binary. Wiring only: the command line picks a function, its failure an exit code.

mod backend;
mod import_command;
mod observe;

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal, Write},
    path::PathBuf,
};

use clap::Parser;
use lb_user::{
    admin::{
        Paths,
        client::{self, ClientError},
        lock::{InstanceLock, LockError},
        model::{self, KernelStatus, ReloadReply, Status, VrrpReply},
        render::{self, Colour},
    },
    cli::{Cli, Command, ExitCode, Global, Target, VrrpArgs, VrrpCommand},
    config::{self, ConfigErrors, model::Config},
    core::speed,
    io::{
        reload,
        runtime::{self, RunError},
    },
    logging::{self, LogError},
};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return explain_usage(&error),
    };
    match execute(&cli) {
        Ok(code) => code,
        Err(failure) => {
            // Nobody can be told that standard error is gone.
            let _ = writeln!(io::stderr(), "xvip: {failure}");
            failure.exit_code()
        }
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the configuration is not valid\n{0}")]
    Config(#[from] ConfigErrors),
    /// The running xvip refused an invalid configuration.
    #[error("{0}")]
    Reload(String),
    #[error(transparent)]
    Import(#[from] import_command::ImportError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_) | Self::Reload(_) => ExitCode::Config,
            Self::Import(error) => error.exit_code(),
            Self::Client(error) => client_exit_code(error),
            Self::Lock(error) if error.is_permission() => ExitCode::Unsupported,
            Self::Run(error) if error.is_unsupported() => ExitCode::Unsupported,
            Self::Lock(_) | Self::Run(_) | Self::Log(_) | Self::Output(_) | Self::Signals(_) => {
                ExitCode::Failure
            }
        }
    }
}

fn client_exit_code(error: &ClientError) -> ExitCode {
    match error {
        ClientError::NotRunning { .. }
        | ClientError::Timeout { .. }
        | ClientError::Closed { .. } => ExitCode::NotRunning,
        ClientError::Permission { .. } => ExitCode::Unsupported,
        ClientError::Refused(_) | ClientError::Malformed { .. } | ClientError::Io { .. } => {
            ExitCode::Failure
        }
    }
}

/// Prints help, version or what is wrong with the command line.
fn explain_usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if error.use_stderr() {
        ExitCode::Usage
    } else {
        ExitCode::Success
    }
}

fn execute(cli: &Cli) -> Result<ExitCode, Failure> {
    if let Command::Import(args) = &cli.command {
        return import_command::import(args);
    }
    execute_plainly(cli).map(|()| ExitCode::Success)
}

/// A command that succeeds or fails.
fn execute_plainly(cli: &Cli) -> Result<(), Failure> {
    match &cli.command {
        // Its success has two codes: see `execute`.
        Command::Import(args) => import_command::import(args).map(drop),
        Command::Run => run(&cli.global),
        Command::Check { kernel } => check(&cli.global, *kernel),
        Command::Status { json, target } => status(&cli.global, target, *json),
        Command::Backend(args) => backend::execute(&cli.global, args),
        Command::Flows(args) => {
            let socket = socket(&cli.global, &args.target)?;
            observe::flows(&socket, args)
        }
        Command::Trace(args) => {
            let socket = socket(&cli.global, &args.target)?;
            observe::trace(&socket, args)
        }
        Command::Explain(args) => {
            let socket = socket(&cli.global, &args.target)?;
            observe::explain(&socket, args)
        }
        Command::Reload(target) => reload(&cli.global, target),
        Command::Detach => detach(&cli.global),
        Command::Vrrp(VrrpCommand::StepDown(args)) => {
            let vrrp = args.name.clone();
            change_vrrp(&cli.global, args, &model::Command::StepDown { vrrp })
        }
        Command::Vrrp(VrrpCommand::Resume(args)) => {
            let vrrp = args.name.clone();
            change_vrrp(&cli.global, args, &model::Command::Resume { vrrp })
        }
    }
}

/// Validates the configuration, and tries the kernel if that is asked for.
fn check(global: &Global, kernel: bool) -> Result<(), Failure> {
    let config = load(global)?;
    let kernel = kernel.then(|| runtime::try_kernel(&config)).transpose()?;
    let backends = config.services.iter().map(|service| service.backends.len());
    let line = format!(
        "{} is valid: {} VRRP, {} service, {} backend and {} peer sections\n",
        global.config.display(),
        config.vrrp.len(),
        config.services.len(),
        backends.sum::<usize>(),
        config.peers.len(),
    );
    let services = config.services.iter();
    let names: BTreeSet<_> = services
        .flat_map(|service| service.backends.iter())
        .filter_map(|backend| backend.host.as_deref())
        .collect();
    let names: Vec<_> = names.into_iter().collect();
    let names = if names.is_empty() {
        String::new()
    } else {
        let names = names.join(", ");
        format!("not looked up now, but by the running xvip: {names}\n")
    };
    let warnings = speed::warnings(&config, speed::wants_realtime(&config));
    let warnings = warnings.iter().map(|what| format!("warning: {what}\n"));
    print(&(line + &names + &warnings.collect::<String>()))?;
    let Some(kernel) = kernel else {
        return Ok(());
    };
    if let Some(table) = render::kernel(&KernelStatus::from(&kernel), colour()) {
        print(&format!("\n{table}"))?;
    }
    Ok(kernel.check().map_err(RunError::from)?)
}

fn status(global: &Global, target: &Target, json: bool) -> Result<(), Failure> {
    let socket = socket(global, target)?;
    let command = model::Command::Status;
    if json {
        // As it came: a newer xvip may say more than this one knows.
        let value = client::ask(&socket, &command)?;
        return print(&format!("{value:#}\n"));
    }
    let status: Status = client::ask_for(&socket, &command)?;
    print(&render::status(&status, colour()))
}

fn change_vrrp(global: &Global, args: &VrrpArgs, command: &model::Command) -> Result<(), Failure> {
    let socket = socket(global, &args.target)?;
    let reply: VrrpReply = client::ask_for(&socket, command)?;
    let done = match command {
        model::Command::StepDown { .. } => "stands aside",
        _ => "takes part in elections",
    };
    let lines = reply
        .instances
        .iter()
        .map(|name| format!("{name} {done}\n"));
    print(&lines.collect::<String>())
}

/// Makes the running xvip read its configuration again.
fn reload(global: &Global, target: &Target) -> Result<(), Failure> {
    let socket = socket(global, target)?;
    let reply: ReloadReply =
        client::ask_for(&socket, &model::Command::Reload).map_err(|error| match error {
            ClientError::Refused(reason) if load(global).is_err() => Failure::Reload(reason),
            error => Failure::Client(error),
        })?;
    let unchanged = ["nothing has changed".to_owned()];
    let changes = if reply.changes.is_empty() {
        &unchanged[..]
    } else {
        &reply.changes
    };
    let lines = changes.iter().map(|change| format!("{change}\n"));
    print(&lines.collect::<String>())
}

fn load(global: &Global) -> Result<Config, Failure> {
    Ok(config::load(&global.config, &reload::host_facts())?)
}

fn paths(config: &Config) -> Paths {
    Paths::new(&config.node.state_dir, &config.node.instance)
}

fn socket(global: &Global, target: &Target) -> Result<PathBuf, Failure> {
    if let Some(path) = &target.socket {
        return Ok(path.clone());
    }
    load(global)
        .map(|config| paths(&config).socket())
        .or_else(|invalid| {
            // An xvip that runs with the file as it was can be asked all the same.
            let node = config::node_of(&global.config);
            let socket =
                node.map(|(state_dir, instance)| Paths::new(&state_dir, &instance).socket());
            socket.filter(|path| path.exists()).ok_or(invalid)
        })
}

/// Colours for a terminal, unless it has none or its user wants none (<https://no-color.org>).
fn colour() -> Colour {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    if io::stdout().is_terminal() && !unwanted && !dumb {
        Colour::Ansi
    } else {
        Colour::Never
    }
}

/// Writes to standard output. A reader that has seen enough (`xvip status | head -1`) is no
/// failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Output(error)),
        _ => Ok(()),
    }
}

/// Runs the controller until it is told to end.
fn run(global: &Global) -> Result<(), Failure> {
    logging::init(global.log_format, &global.log_level)?;
    let config = load(global)?;
    // Before anything is touched: two controllers of one instance would undo each other's work.
    let lock = InstanceLock::acquire(paths(&config))?;
    Ok(runtime::run(config, &global.config, lock)?)
}

/// Removes what the instance left in the kernel, if no controller of it runs.
fn detach(global: &Global) -> Result<(), Failure> {
    logging::init(global.log_format, &global.log_level)?;
    let config = load(global)?;
    let _lock = InstanceLock::acquire(paths(&config))?;
    let removed = runtime::detach(&config)?;
    if removed.is_empty() {
        return print("there was nothing to remove\n");
    }
    let lines = removed.iter().map(|what| format!("removed {what}\n"));
    print(&lines.collect::<String>())
}

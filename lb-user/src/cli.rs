//! The command line of `xvip`: what it takes and what its exit codes mean.

pub mod backend;
pub mod import;
pub mod observe;

use std::{
    path::PathBuf,
    process::{self, Termination},
};

use clap::{Args, Parser, Subcommand};

use self::{
    backend::{BACKEND_EXAMPLES, BackendArgs},
    import::{IMPORT_EXAMPLES, ImportArgs},
    observe::{
        EXPLAIN_EXAMPLES, ExplainArgs, FLOWS_EXAMPLES, FlowsArgs, TRACE_EXAMPLES, TraceArgs,
    },
};
use crate::logging::{LogFilter, LogFormat};

/// Where the configuration is, if nobody says otherwise.
pub const DEFAULT_CONFIG: &str = "/etc/xvip/xvip.toml";

const EXAMPLES_AND_EXIT_CODES: &str = "\
Examples:
  xvip check --config new.toml      Validate a file before it is installed
  xvip run                          Run the controller of this node
  xvip status                       Show who owns the VIP and which backends are up
  xvip reload                       Go on with the changed configuration
  xvip trace --client 192.0.2.7     Follow a client's packets
  xvip vrrp step-down               Give the VIP to another node, before maintenance

Exit codes:
  0  Success
  1  Failure while running, or xvip refused the command
  2  Wrong usage of the command line
  3  Invalid or unreadable configuration
  4  No xvip runs on this node, or it does not answer
  5  A privilege or a kernel feature is missing
  6  xvip import wrote a configuration, and something must be changed by hand";

const RUN_EXAMPLES: &str = "\
Examples:
  xvip run
  xvip run --config ./xvip.toml --log-format json
  XVIP_LOG=info,lb_user::core::vrrp=debug xvip run

SIGTERM and SIGINT end it: an Active instance announces that it leaves, and its addresses are
removed. The data plane stays attached and goes on forwarding; `xvip detach` removes it.";

const CHECK_EXAMPLES: &str = "\
Examples:
  xvip check
  xvip check --config new.toml && mv new.toml /etc/xvip/xvip.toml
  xvip check --kernel               On the node itself, before xvip is installed there

Every error is printed, as FILE:LINE:COLUMN: KEY: what is wrong. The exit code is 0 if there is
none, else 3. Nothing but the file, and the files that it names, is looked at: the machine need not
be the node. With --kernel, as root, this machine's kernel is tried; the exit code is 5 if xvip
cannot run on it. Nothing is changed.";

const STATUS_EXAMPLES: &str = "\
Examples:
  xvip status
  xvip status --json | jq '.vrrp[] | {name, state, owner}'
  xvip status --json | jq '.services[].backends[] | select(.state != \"up\")'";

const RELOAD_EXAMPLES: &str = "\
Examples:
  xvip check && xvip reload
  systemctl reload xvip             The same, with ExecReload=xvip reload

The running xvip reads its configuration file again and prints what is different. Connections,
addresses and the results of checks stay. A file with an error changes nothing. SIGHUP does the
same; what comes of it is in the log and in `xvip status`.";

const DETACH_EXAMPLES: &str = "\
Examples:
  systemctl stop xvip && xvip detach

Established connections through this node end. Refused while a controller of this instance runs.";

const VRRP_EXAMPLES: &str = "\
Examples:
  xvip vrrp step-down control-plane
  xvip vrrp resume";

/// A load balancer for Kubernetes control planes: owns a virtual IP address and forwards its
/// connections to healthy apiservers in the kernel, with XDP.
#[derive(Clone, Debug, Parser)]
#[command(name = "xvip", version, after_help = EXAMPLES_AND_EXIT_CODES, max_term_width = 100)]
#[command(arg_required_else_help = true, subcommand_required = true)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Common options")]
pub struct Global {
    /// Configuration file
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    pub config: PathBuf,
    /// How logs look on standard error: text or json
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        default_value_t,
        value_enum
    )]
    #[arg(hide_possible_values = true)]
    pub log_format: LogFormat,
    /// What is logged: off, error, warn, info, debug, trace, or a list of MODULE=LEVEL
    #[arg(
        long,
        global = true,
        value_name = "LEVEL",
        default_value = "info",
        env = "XVIP_LOG"
    )]
    #[arg(hide_env_values = true)]
    pub log_level: LogFilter,
}

/// What `xvip` can do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run the controller of this node, in the foreground
    #[command(after_help = RUN_EXAMPLES)]
    Run,
    /// Validate the configuration and print every error
    #[command(after_help = CHECK_EXAMPLES)]
    Check {
        /// Try this machine's kernel as well: what xvip uses of it, and whether it can run on it
        #[arg(long)]
        kernel: bool,
    },
    /// Make a configuration of keepalived.conf and haproxy.cfg, and say what became of every line
    #[command(after_help = IMPORT_EXAMPLES)]
    Import(ImportArgs),
    /// Show what the running xvip owns, forwards and thinks of its backends
    #[command(after_help = STATUS_EXAMPLES)]
    Status {
        /// Print the status document as JSON: a stable interface for scripts
        #[arg(long)]
        json: bool,
        /// Whom to ask.
        #[command(flatten)]
        target: Target,
    },
    /// Make the running xvip go on with its changed configuration file
    #[command(after_help = RELOAD_EXAMPLES)]
    Reload(Target),
    /// List backends, drain them, put them in maintenance, change their weights
    #[command(after_help = BACKEND_EXAMPLES)]
    Backend(BackendArgs),
    /// List or count conntrack entries
    #[command(after_help = FLOWS_EXAMPLES)]
    Flows(FlowsArgs),
    /// Follow packets through the data plane
    #[command(after_help = TRACE_EXAMPLES)]
    Trace(TraceArgs),
    /// Ask what the data plane would do with a packet
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain(ExplainArgs),
    /// Remove everything that this instance put into the kernel
    #[command(after_help = DETACH_EXAMPLES)]
    Detach,
    /// Move virtual addresses between nodes
    #[command(subcommand, after_help = VRRP_EXAMPLES)]
    Vrrp(VrrpCommand),
}

/// `xvip vrrp`
#[derive(Clone, Debug, Subcommand)]
pub enum VrrpCommand {
    /// Give up the addresses and stay Backup until `resume`
    #[command(after_help = VRRP_EXAMPLES)]
    StepDown(VrrpArgs),
    /// Take part in elections again
    #[command(after_help = VRRP_EXAMPLES)]
    Resume(VrrpArgs),
}

/// What `step-down` and `resume` take.
#[derive(Clone, Debug, Args)]
pub struct VrrpArgs {
    /// VRRP instance (`vrrp.name` of the configuration); all of them if absent
    pub name: Option<String>,
    /// Whom to ask.
    #[command(flatten)]
    pub target: Target,
}

/// Which running xvip a command talks to.
#[derive(Clone, Debug, Args)]
pub struct Target {
    /// Admin socket to ask, instead of the one that the configuration leads to (which then is not
    /// read)
    #[arg(long, value_name = "FILE")]
    pub socket: Option<PathBuf>,
}

/// How `xvip` ended. The numbers are an interface: scripts and units depend on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Done.
    Success = 0,
    /// Failed while running, or the running xvip refused.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The configuration is invalid or cannot be read.
    Config = 3,
    /// No xvip runs, or it does not answer.
    NotRunning = 4,
    /// A privilege or a kernel feature is missing.
    Unsupported = 5,
    /// What was imported needs somebody to look at it.
    ByHand = 6,
}

impl Termination for ExitCode {
    fn report(self) -> process::ExitCode {
        process::ExitCode::from(self as u8)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    /// No option contradicts another; clap itself checks.
    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Every command takes the common options, before and after its name.
    #[test]
    fn every_command_takes_config() {
        for command in [
            "run",
            "check",
            "import --env x",
            "status",
            "detach",
            "reload",
            "vrrp step-down",
            "vrrp resume a",
            "backend",
            "backend drain a --service s --deadline 5m",
            "backend weight a 50%",
            "backend add a",
            "backend add a 10.0.2.13:6443 --service s --weight 2 --forwarding nat --backup --check-port 80",
            "backend remove a --service s --deadline 10s",
            "backend remove a --now",
            "flows",
            "trace --client 192.0.2.7",
            "explain 192.0.2.7:1 10.0.2.100:2",
        ] {
            for line in [
                format!("xvip --config /x --log-format json {command}"),
                format!("xvip {command} --config /x --log-format json"),
            ] {
                let cli = parse(&line).unwrap();
                assert_eq!(cli.global.config, PathBuf::from("/x"), "{line}");
                assert_eq!(cli.global.log_format, LogFormat::Json, "{line}");
            }
        }
        assert_eq!(
            parse("xvip run").unwrap().global.config,
            PathBuf::from(DEFAULT_CONFIG)
        );
    }

    /// `vrrp` commands work on one instance or on all.
    #[test]
    fn vrrp_names_are_optional() {
        for (line, expected) in [
            ("xvip vrrp step-down", None),
            ("xvip vrrp step-down control-plane", Some("control-plane")),
        ] {
            let Command::Vrrp(VrrpCommand::StepDown(args)) = parse(line).unwrap().command else {
                panic!("{line}");
            };
            assert_eq!(args.name.as_deref(), expected);
        }
    }

    /// Usage errors are clap's, with its exit code, which is the documented one.
    #[test]
    fn usage_errors_exit_with_the_documented_code() {
        for line in [
            "xvip frobnicate",
            "xvip status --yaml",
            "xvip reload now",
            "xvip import --peer master02",
            "xvip import --address 10.0.0",
            "xvip run --log-level verbose",
            "xvip run --log-format xml",
            "xvip vrrp",
            "xvip vrrp step-down a b",
            "xvip backend drain",
            "xvip backend drain a --deadline soon",
            "xvip backend weight a",
            "xvip backend add",
            "xvip backend add a 10.0.2.13:6443 --weight 0",
            "xvip backend remove",
            "xvip backend remove a --now --deadline 1s",
            "xvip backend weight a 1001",
            "xvip backend enable a --deadline 5m",
            "xvip flows --state open",
            "xvip flows --count --limit 3",
            "xvip flows --vip 10.0.2.100:",
            "xvip trace",
            "xvip trace --client 192.0.2.7 --count 0",
            "xvip explain 192.0.2.7 10.0.2.100:2",
            "xvip explain 192.0.2.7:1 10.0.2.100:2 --flags urgent",
            "xvip explain 192.0.2.7:1 10.0.2.100:2 --udp --flags ack",
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), ExitCode::Usage as i32, "{line}");
        }
    }

    /// The help lists every exit code.
    #[test]
    fn the_help_documents_every_exit_code() {
        let help = Cli::command().render_help().to_string();
        for code in [
            ExitCode::Success,
            ExitCode::Failure,
            ExitCode::Usage,
            ExitCode::Config,
            ExitCode::NotRunning,
            ExitCode::Unsupported,
            ExitCode::ByHand,
        ] {
            assert!(help.contains(&format!("\n  {}  ", code as u8)), "{help}");
        }
    }
}

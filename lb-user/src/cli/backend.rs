//! `xvip backend`: what it takes on the command line.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::{Target, observe::time};
use crate::admin::{
    added::NewBackend,
    backends::{BackendAction, BackendQuery, MAX_DEADLINE, WeightText},
};

pub(super) const BACKEND_EXAMPLES: &str = "\
Examples:
  xvip backend                                List the backends of this node
  xvip backend drain master02 --deadline 5m   No new connections; after 5 minutes maintenance
  xvip backend disable master02               Maintenance at once: its connections are reset
  xvip backend weight master02 50%            Half of its configured weight
  xvip backend enable master02                Back to what the checks say
  xvip backend add master04 10.0.2.13:6443    One more backend, as if the configuration had it
  xvip backend remove master02                No new connections; after 30 seconds it is gone
  xvip backend add master02                   A backend of the configuration that was removed is back

Nodes act alone: give the same order on every node. An order outlives a restart of xvip and a reload, but
not a reboot (it is kept in node.state_dir).";

/// What `backend` takes.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BackendArgs {
    /// What to do; without it, the backends are listed.
    #[command(subcommand)]
    pub command: Option<BackendCommand>,
    /// Whom to ask.
    #[command(flatten)]
    pub target: Target,
}

/// `xvip backend`
#[derive(Clone, Debug, Subcommand)]
pub enum BackendCommand {
    /// Give a backend no new connections; those that it has go on
    #[command(after_help = BACKEND_EXAMPLES)]
    Drain {
        /// Time after which the backend is in maintenance, such as 5m: what is left is reset
        #[arg(long, value_name = "TIME", value_parser = deadline)]
        deadline: Option<Duration>,
        /// Which backend.
        #[command(flatten)]
        which: Which,
    },
    /// Put a backend in maintenance: DOWN, whatever its checks say
    #[command(after_help = BACKEND_EXAMPLES)]
    Disable {
        /// Which backend.
        #[command(flatten)]
        which: Which,
    },
    /// End a drain or a maintenance: the checks decide again
    #[command(after_help = BACKEND_EXAMPLES)]
    Enable {
        /// Which backend.
        #[command(flatten)]
        which: Which,
    },
    /// Give a backend another weight until it is restarted or told otherwise
    #[command(after_help = BACKEND_EXAMPLES)]
    Weight {
        /// Which backend.
        #[command(flatten)]
        which: Which,
        /// 0 (no new connections) to 1000, or a percentage of the configured weight (100%: as configured)
        weight: WeightText,
    },
    /// Add a backend to a running service, or put one of the configuration back that was removed
    #[command(after_help = BACKEND_EXAMPLES)]
    Add(AddArgs),
    /// Drain a backend, then remove it from its service
    #[command(after_help = BACKEND_EXAMPLES)]
    Remove {
        /// Time to drain in: what is left then is reset (default: 30s)
        #[arg(long, value_name = "TIME", value_parser = deadline)]
        deadline: Option<Duration>,
        /// Do not drain: its connections are reset at once
        #[arg(long, conflicts_with = "deadline")]
        now: bool,
        /// Which backend.
        #[command(flatten)]
        which: Which,
    },
}

/// What `add` takes.
#[derive(Clone, Debug, Args)]
pub struct AddArgs {
    /// Name of the backend, new in its service
    pub name: String,
    /// What it is.
    #[command(flatten)]
    pub new: Option<NewBackend>,
    /// The service that gets it (`service.name`), if there are several
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// Whom to ask.
    #[command(flatten)]
    pub target: Target,
}

/// Which backends an order is for.
#[derive(Clone, Debug, Args)]
pub struct Which {
    /// Backend (`backend.name`), in every service that has one of this name
    pub name: String,
    /// Only in this service (`service.name`)
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// Also if nobody is left for new connections
    #[arg(long)]
    pub force: bool,
    /// Whom to ask.
    #[command(flatten)]
    pub target: Target,
}

impl BackendCommand {
    /// What is ordered, and from whom.
    pub fn query(&self) -> (BackendQuery, &Target) {
        match self {
            Self::Drain { deadline, which } => {
                let (query, target) = which.query(BackendAction::Drain);
                let deadline_ms = deadline.map(millis);
                let query = BackendQuery {
                    deadline_ms,
                    ..query
                };
                (query, target)
            }
            Self::Disable { which } => which.query(BackendAction::Disable),
            Self::Enable { which } => which.query(BackendAction::Enable),
            Self::Weight { which, weight } => {
                let (query, target) = which.query(BackendAction::Weight);
                let weight = Some(*weight);
                (BackendQuery { weight, ..query }, target)
            }
            Self::Add(args) => {
                let query = plain(BackendAction::Add, &args.name, args.service.as_ref());
                let new = args.new.clone();
                (BackendQuery { new, ..query }, &args.target)
            }
            Self::Remove {
                deadline,
                now,
                which,
            } => {
                let (query, target) = which.query(BackendAction::Remove);
                let deadline = if *now {
                    Some(Duration::ZERO)
                } else {
                    *deadline
                };
                let deadline_ms = deadline.map(millis);
                let query = BackendQuery {
                    deadline_ms,
                    ..query
                };
                (query, target)
            }
        }
    }
}

impl Which {
    fn query(&self, action: BackendAction) -> (BackendQuery, &Target) {
        let query = plain(action, &self.name, self.service.as_ref());
        let force = self.force;
        (BackendQuery { force, ..query }, &self.target)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A query without anything that only some actions take.
fn plain(action: BackendAction, name: &str, service: Option<&String>) -> BackendQuery {
    BackendQuery {
        action,
        name: name.to_owned(),
        service: service.cloned(),
        deadline_ms: None,
        weight: None,
        new: None,
        force: false,
    }
}

/// A time to drain in.
fn deadline(text: &str) -> Result<Duration, String> {
    let deadline = time(text)?;
    if deadline > MAX_DEADLINE {
        return Err("write at most 30 days".to_owned());
    }
    Ok(deadline)
}

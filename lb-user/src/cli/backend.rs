//! `xvip backend`: what it takes on the command line.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::{Target, observe::time};
use crate::admin::backends::{BackendAction, BackendQuery, MAX_DEADLINE, WeightText};

pub(super) const BACKEND_EXAMPLES: &str = "\
Examples:
  xvip backend                                List the backends of this node
  xvip backend drain master02 --deadline 5m   No new connections; after 5 minutes maintenance
  xvip backend disable master02               Maintenance at once: its connections are reset
  xvip backend weight master02 50%            Half of its configured weight
  xvip backend enable master02                Back to what the checks say

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
        let (action, which) = match self {
            Self::Drain { which, .. } => (BackendAction::Drain, which),
            Self::Disable { which } => (BackendAction::Disable, which),
            Self::Enable { which } => (BackendAction::Enable, which),
            Self::Weight { which, .. } => (BackendAction::Weight, which),
        };
        let deadline = match self {
            Self::Drain { deadline, .. } => *deadline,
            _ => None,
        };
        let weight = match self {
            Self::Weight { weight, .. } => Some(*weight),
            _ => None,
        };
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let query = BackendQuery {
            action,
            name: which.name.clone(),
            service: which.service.clone(),
            deadline_ms: deadline.map(millis),
            weight,
            force: which.force,
        };
        (query, &which.target)
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

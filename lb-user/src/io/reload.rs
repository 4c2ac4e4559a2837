//! Reading the configuration again while everything runs.
//!
//! The file is read and validated on another thread: however slow its disk is, no advert waits for
//! it. One reading is under way at a time; whoever asks meanwhile gets the next one, which sees
//! what he has written.

use std::{fmt, path::PathBuf, sync::Arc};

use tokio::{
    runtime,
    sync::{mpsc, oneshot},
};
use tracing::{info, warn};

use super::{
    probe::{ProbeSetupError, ServiceProber},
    users::{self, UserError},
};
use crate::{
    admin::model::{CommandError, ConfigStatus, RefusedConfig, ReloadReply, Reply},
    config::{self, ConfigErrors, HostFacts, model::Config},
    core::{controller::Fixed, time::Timestamp},
};

/// Facts about this machine that a configuration is read with.
pub fn host_facts() -> HostFacts {
    let hostname = nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    HostFacts { hostname }
}

/// A service's checks cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("service {service:?}: {source}")]
pub struct ServiceProbeError {
    /// Name of the service.
    service: String,
    /// What is wrong.
    source: ProbeSetupError,
}

/// What asks the backends of each service of `config`. Reads the files that checks need.
pub fn probers(config: &Config) -> Result<Vec<Arc<ServiceProber>>, ServiceProbeError> {
    let probers = config.services.iter().map(|service| {
        let prober = ServiceProber::new(service).map(Arc::new);
        prober.map_err(|source| ServiceProbeError {
            service: service.name.clone(),
            source,
        })
    });
    probers.collect()
}

/// A configuration that was just read, and what its checks need.
pub struct Fresh {
    /// The configuration.
    pub config: Config,
    /// By service.
    pub probers: Vec<Arc<ServiceProber>>,
}

/// Why the configuration before goes on.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// It is not valid, or cannot be read.
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    /// A file that a check needs.
    #[error("{0}")]
    Probe(#[from] ServiceProbeError),
    /// A user that a program runs as.
    #[error("{0}")]
    User(#[from] UserError),
    /// It needs a restart.
    #[error("{}", Lines(.0))]
    Fixed(Vec<Fixed>),
}

/// One per line, without a newline at the end.
struct Lines<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for Lines<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, line) in self.0.iter().enumerate() {
            let before = if position > 0 { "\n" } else { "" };
            write!(f, "{before}{line}")?;
        }
        Ok(())
    }
}

/// What came of a reading.
pub type Read = Result<Box<Fresh>, ReloadError>;

/// Where the answer to `xvip reload` goes.
pub type Asker = oneshot::Sender<Result<Reply, CommandError>>;

/// Readings of the configuration, and what came of them.
pub struct Reloads {
    file: PathBuf,
    runtime: runtime::Handle,
    sender: mpsc::UnboundedSender<Read>,
    read: mpsc::UnboundedReceiver<Read>,
    /// Who waits for the reading under way; `None`: there is none.
    under_way: Option<Vec<Asker>>,
    /// Who waits for the next one; `None`: nobody has asked.
    next: Option<Vec<Asker>>,
    /// Since when the configuration is in force.
    since: Timestamp,
    /// How often another one was taken.
    taken: u64,
    refused: Option<(Timestamp, String)>,
}

impl Reloads {
    /// Of `file`, whose content is in force since `now`; read on the threads of `runtime`.
    pub fn new(file: PathBuf, runtime: runtime::Handle, now: Timestamp) -> Self {
        let (sender, read) = mpsc::unbounded_channel();
        Self {
            file,
            runtime,
            sender,
            read,
            under_way: None,
            next: None,
            since: now,
            taken: 0,
            refused: None,
        }
    }

    /// The configuration file.
    pub fn file(&self) -> &PathBuf {
        &self.file
    }

    /// Read the file anew; `asker` waits for what comes of it.
    pub fn ask(&mut self, asker: Option<Asker>) {
        self.next.get_or_insert_default().extend(asker);
        self.start();
    }

    fn start(&mut self) {
        if self.under_way.is_some() {
            return;
        }
        self.under_way = self.next.take();
        if self.under_way.is_none() {
            return;
        }
        let (file, sender) = (self.file.clone(), self.sender.clone());
        self.runtime.spawn_blocking(move || {
            // Nobody listens any more when the controller ends.
            let _ = sender.send(read(&file));
        });
    }

    /// What came of the reading under way. Pending for ever if there is none.
    pub async fn next(&mut self) -> Read {
        match self.read.recv().await {
            Some(read) => read,
            // This end holds a sender, too.
            None => std::future::pending().await,
        }
    }

    /// The reading under way was carried out, with these changes, or refused.
    pub fn finish(&mut self, now: Timestamp, result: Result<Vec<String>, ReloadError>) {
        let result = result.map_err(|error| error.to_string());
        match &result {
            Ok(changes) => {
                self.since = now;
                self.taken = self.taken.saturating_add(1);
                self.refused = None;
                info!(file = %self.file.display(), changes = changes.len(), "configuration loaded anew");
                for change in changes {
                    info!("{change}");
                }
            }
            Err(error) => {
                warn!("the configuration is refused, the one before goes on: {error}");
                self.refused = Some((now, error.clone()));
            }
        }
        for asker in self.under_way.take().unwrap_or_default() {
            let reply = match &result {
                Ok(changes) => Ok(Reply::Reload(ReloadReply {
                    config_file: self.file.display().to_string(),
                    changes: changes.clone(),
                })),
                Err(error) => Err(CommandError::Config(error.clone())),
            };
            // The asker may be gone.
            let _ = asker.send(reply);
        }
        self.start();
    }

    /// The part of the status document that is about the configuration.
    pub fn status(&self, now: Timestamp) -> ConfigStatus {
        let millis = |since: Timestamp| {
            u64::try_from(now.saturating_since(since).as_millis()).unwrap_or(u64::MAX)
        };
        ConfigStatus {
            since_ms: millis(self.since),
            reloads: self.taken,
            refused: self.refused.as_ref().map(|(since, error)| RefusedConfig {
                since_ms: millis(*since),
                error: error.clone(),
            }),
        }
    }
}

fn read(file: &std::path::Path) -> Read {
    let config = config::load(file, &host_facts())?;
    let probers = probers(&config)?;
    users::check(&config)?;
    Ok(Box::new(Fresh { config, probers }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever asks while the file is being read gets the next reading; each answer is sent once.
    #[tokio::test]
    async fn who_asks_late_gets_the_next_reading() {
        let missing = PathBuf::from("/nonexistent/xvip.toml");
        let now = Timestamp::default();
        let mut reloads = Reloads::new(missing, runtime::Handle::current(), now);
        let mut answers = Vec::new();
        for _ in 0..3 {
            let (asker, answer) = oneshot::channel();
            reloads.ask(Some(asker));
            answers.push(answer);
        }
        let read = reloads.next().await;
        assert!(matches!(read, Err(ReloadError::Config(_))));
        reloads.finish(now, read.map(|_| Vec::new()));
        let first = answers[0].try_recv().unwrap().unwrap_err().to_string();
        assert!(
            first.contains("/nonexistent/xvip.toml: cannot be read"),
            "{first}"
        );
        assert!(answers[1].try_recv().is_err());

        let read = reloads.next().await;
        assert!(read.is_err());
        reloads.finish(now, Ok(vec!["node: changed".to_owned()]));
        for answer in &mut answers[1..] {
            let Reply::Reload(reply) = answer.try_recv().unwrap().unwrap() else {
                panic!("another answer");
            };
            assert_eq!(reply.changes, ["node: changed"]);
        }
        let status = reloads.status(now);
        assert_eq!((status.reloads, status.refused), (1, None));
        assert!(reloads.under_way.is_none() && reloads.next.is_none());
    }
}

//! Checks that run a program.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    config::model::{CommandConfig, ServiceConfig},
    core::health::{Failure, Finding, ProbeOutcome, Stage, StageTimes},
    io::command::{NoUser, RunError, Runner, Status},
};

/// Runs the programs that check the backends of a service, one for each backend.
#[derive(Debug)]
pub struct CommandProbe {
    config: CommandConfig,
    service: String,
    vip: SocketAddr,
    /// By name and target. Backends may come while xvip runs.
    runners: Mutex<BTreeMap<(String, SocketAddr), Arc<Runner>>>,
}

impl CommandProbe {
    /// Runs what `config` says for the backends of `service`.
    pub(super) fn new(config: &CommandConfig, service: &ServiceConfig) -> Result<Self, NoUser> {
        let probe = Self {
            config: config.clone(),
            service: service.name.clone(),
            vip: SocketAddr::new(service.address, service.port.get()),
            runners: Mutex::default(),
        };
        for (position, backend) in service.backends.iter().enumerate() {
            if let Some(target) = service.probe_target(position) {
                probe.runner(&backend.name, target)?;
            }
        }
        Ok(probe)
    }

    /// The runner for a backend: always the same one, so that no two runs of it are under way.
    fn runner(&self, name: &str, target: SocketAddr) -> Result<Arc<Runner>, NoUser> {
        let mut runners = self.runners.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (name.to_owned(), target);
        if let Some(known) = runners.get(&key) {
            return Ok(Arc::clone(known));
        }
        let new = Arc::new(runner(self, name, target)?);
        runners.insert(key, Arc::clone(&new));
        Ok(new)
    }

    /// Runs the program for the backend of this name, to be asked at this address.
    pub(super) async fn probe(
        &self,
        (name, target): (&str, SocketAddr),
        limit: Duration,
    ) -> ProbeOutcome {
        let started = Instant::now();
        let failed = |failure| Finding::Failed {
            stage: Stage::Command,
            failure,
        };
        let finding = match self.runner(name, target) {
            Err(error) => failed(Failure::Local(error.to_string())),
            Ok(runner) => match runner.run(limit).await {
                Ok(ended) => Finding::Exited {
                    passed: ended.status == Status::Exit(0),
                    status: match ended.status {
                        Status::Exit(code) => format!("exit status {code}"),
                        Status::Signal(signal) => format!("signal {signal}"),
                    },
                    line: ended.line,
                },
                Err(RunError::TimedOut) => failed(Failure::TimedOut),
                Err(error) => failed(Failure::Local(error.to_string())),
            },
        };
        let times = StageTimes {
            command: Some(started.elapsed()),
            ..StageTimes::default()
        };
        ProbeOutcome { finding, times }
    }
}

fn runner(probe: &CommandProbe, name: &str, target: SocketAddr) -> Result<Runner, NoUser> {
    let (config, vip) = (&probe.config, probe.vip);
    let values = [
        ("{vip}", vip.ip().to_string()),
        ("{vip_port}", vip.port().to_string()),
        ("{address}", target.ip().to_string()),
        ("{port}", target.port().to_string()),
    ];
    let filled = |argument: &String| {
        let known = values.iter().find(|(key, _)| *key == argument.as_str());
        known.map_or_else(|| argument.clone(), |(_, value)| value.clone())
    };
    let arguments = config.arguments.iter().map(filled).collect();
    let environment = [
        ("XVIP_PROXY_NAME", probe.service.clone()),
        ("XVIP_PROXY_ADDR", vip.ip().to_string()),
        ("XVIP_PROXY_PORT", vip.port().to_string()),
        ("XVIP_SERVER_NAME", name.to_owned()),
        ("XVIP_SERVER_ADDR", target.ip().to_string()),
        ("XVIP_SERVER_PORT", target.port().to_string()),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value));
    let program = config.program.clone();
    Runner::new(program, arguments, environment.to_vec(), &config.user)
}

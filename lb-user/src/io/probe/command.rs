//! Checks that run a program.

use std::{net::SocketAddr, time::Duration};

use tokio::time::Instant;

use crate::{
    config::model::{CommandConfig, ServiceConfig},
    core::health::{Failure, Finding, ProbeOutcome, Stage, StageTimes},
    io::command::{NoUser, RunError, Runner, Status},
};

/// Runs the programs that check the backends of a service, one for each backend.
#[derive(Debug)]
pub struct CommandProbe {
    runners: Vec<Runner>,
}

impl CommandProbe {
    /// Runs what `config` says for the backends of `service`.
    pub(super) fn new(config: &CommandConfig, service: &ServiceConfig) -> Result<Self, NoUser> {
        let backends = 0..service.backends.len();
        let runners = backends.filter_map(|backend| runner(config, service, backend));
        Ok(Self {
            runners: runners.collect::<Result<_, _>>()?,
        })
    }

    /// Runs the program for `backend`.
    pub(super) async fn probe(&self, backend: usize, limit: Duration) -> ProbeOutcome {
        let started = Instant::now();
        let failed = |failure| Finding::Failed {
            stage: Stage::Command,
            failure,
        };
        let finding = match self.runners.get(backend) {
            None => failed(Failure::Local("there is no such backend".to_owned())),
            Some(runner) => match runner.run(limit).await {
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

fn runner(
    config: &CommandConfig,
    service: &ServiceConfig,
    backend: usize,
) -> Option<Result<Runner, NoUser>> {
    let target = service.probe_target(backend)?;
    let name = service.backends.get(backend)?.name.clone();
    let vip = SocketAddr::new(service.address, service.port.get());
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
        ("XVIP_PROXY_NAME", service.name.clone()),
        ("XVIP_PROXY_ADDR", vip.ip().to_string()),
        ("XVIP_PROXY_PORT", vip.port().to_string()),
        ("XVIP_SERVER_NAME", name),
        ("XVIP_SERVER_ADDR", target.ip().to_string()),
        ("XVIP_SERVER_PORT", target.port().to_string()),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value));
    let program = config.program.clone();
    Some(Runner::new(
        program,
        arguments,
        environment.to_vec(),
        &config.user,
    ))
}

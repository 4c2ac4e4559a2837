//! Checks that run a program.

use std::{net::IpAddr, num::NonZeroU16};

use lb_user::{
    config::model::{
        BackendConfig, CommandConfig, Forwarding, OnBackendDown, OnNoBackend, OnQuorumLoss,
        Protocol, QuorumConfig, ServiceConfig, SourcesConfig,
    },
    io::probe::ServiceProber,
};

use super::*;

/// A service of two backends that `script` checks.
fn prober(script: &str, arguments: &[&str]) -> ServiceProber {
    let backend = |name: &str, last| BackendConfig {
        name: name.into(),
        address: SocketAddr::from(([10, 0, 2, last], 6443)),
        host: None,
        weight: NonZeroU32::MIN,
        backup: false,
        forwarding: Forwarding::Auto,
        check: CheckTarget::default(),
        agent: CheckTarget::default(),
    };
    let first = ["-c", script, "check"];
    let command = CommandConfig {
        program: "/bin/sh".into(),
        arguments: first
            .iter()
            .chain(arguments)
            .map(ToString::to_string)
            .collect(),
        user: nix::unistd::User::from_uid(nix::unistd::geteuid())
            .unwrap()
            .unwrap()
            .name,
    };
    let mut health = health(CheckConfig::Command(command));
    health.target.port = NonZeroU16::new(8080);
    let service = ServiceConfig {
        name: "api".into(),
        address: IpAddr::from([10, 0, 2, 100]),
        port: NonZeroU16::new(1644).unwrap(),
        protocol: Protocol::Tcp,
        on_no_backend: OnNoBackend::Reset,
        sources: SourcesConfig::default(),
        on_backend_down: OnBackendDown::Reset,
        quorum: QuorumConfig {
            min_healthy: NonZeroU32::MIN,
            on_loss: OnQuorumLoss::UseAll,
        },
        use_all_backups: false,
        slow_start: Duration::ZERO,
        health,
        backends: vec![backend("one", 10), backend("two", 11)],
    };
    ServiceProber::new(&service).unwrap()
}

/// What becomes of the second backend's check.
async fn check(prober: &ServiceProber, timeout: Duration) -> ProbeOutcome {
    let target = SocketAddr::from(([10, 0, 2, 11], 8080));
    prober.probe("two", target, timeout, false).await
}

/// Proves that a program is told whom it checks, in its arguments and in its environment.
#[tokio::test]
async fn program_knows_whom_it_checks() {
    let arguments = ["{vip}", "{vip_port}", "{address}", "{port}", "{else}"];
    let prober = prober("echo \"$*\"", &arguments);
    let outcome = check(&prober, PLENTY).await;
    let text = outcome.to_string();
    assert_eq!(outcome.class(), Class::Pass, "{text}");
    assert!(text.starts_with("exit status 0 after "), "{text}");
    assert!(
        text.ends_with(": 10.0.2.100 1644 10.0.2.11 8080 {else}"),
        "{text}"
    );

    let script = "echo $XVIP_PROXY_NAME $XVIP_PROXY_ADDR $XVIP_PROXY_PORT \
        $XVIP_SERVER_NAME $XVIP_SERVER_ADDR $XVIP_SERVER_PORT";
    let outcome = check(&self::prober(script, &[]), PLENTY).await;
    let text = outcome.to_string();
    assert!(
        text.ends_with(": api 10.0.2.100 1644 two 10.0.2.11 8080"),
        "{text}"
    );
    // One that was not there when the checks began.
    let target = SocketAddr::from(([10, 0, 2, 12], 6443));
    let prober = self::prober(script, &[]);
    let text = prober
        .probe("three", target, PLENTY, false)
        .await
        .to_string();
    assert!(
        text.ends_with(": api 10.0.2.100 1644 three 10.0.2.12 6443"),
        "{text}"
    );
}

/// Proves that another exit status, a signal and too long a time are not ready, and that their
/// reasons are told.
#[tokio::test]
async fn failures_are_told() {
    let outcome = check(&prober("echo 'no leader'; exit 2", &[]), PLENTY).await;
    assert_eq!(outcome.class(), Class::NotReady);
    let text = outcome.to_string();
    assert!(
        text.starts_with("exit status 2 after ") && text.ends_with(": no leader"),
        "{text}"
    );
    let outcome = check(&prober("kill -15 $$", &[]), PLENTY).await;
    assert!(
        outcome.to_string().starts_with("signal 15 after "),
        "{outcome}"
    );
    let outcome = check(&prober("sleep 1000", &[]), BRIEF).await;
    assert_eq!(outcome.finding, failed(Stage::Command, Failure::TimedOut));
    assert_eq!(outcome.class(), Class::NotReady);
    assert!(outcome.timed_out());
    assert!(
        outcome.to_string().starts_with("command timed out after "),
        "{outcome}"
    );
}

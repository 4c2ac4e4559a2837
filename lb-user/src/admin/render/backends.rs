//! Backends as text: their list, what an operator has said of them, and answers to orders.

use super::{Age, Cell, Colour, Table, Tint, optional, printable, push_line, state_cell};
use crate::admin::{
    backends::{BackendReply, OperatorMode, OperatorStatus},
    model::{BackendStatus, Status},
};

/// The backends of all services.
pub fn list(status: &Status, colour: Colour) -> String {
    let mut table = Table::new([
        "SERVICE", "BACKEND", "ADDRESS", "STATE", "CHECKS", "WEIGHT", "SHARE", "ACTIVE", "OPERATOR",
    ])
    .numbers([5, 6, 7]);
    for service in &status.services {
        for backend in &service.backends {
            table.row([
                Cell::new(&service.name),
                Cell::new(&backend.name),
                Cell::new(place(backend)),
                state_cell(backend.in_force),
                state_cell(backend.state),
                Cell::new(weight(backend)),
                Cell::new(format!("{:.1}%", backend.share * 100.0)),
                optional(backend.active_flows),
                Cell::new(words(backend).unwrap_or_else(|| "-".to_owned())).tint(
                    backend
                        .operator
                        .as_ref()
                        .map_or(Tint::Plain, |_| Tint::Yellow),
                ),
            ]);
        }
    }
    let mut text = table.render(colour);
    for service in &status.services {
        for name in &service.removed {
            let line = format!(
                "{name} of {} is removed (\"xvip backend add {name} --service {}\" puts it back)",
                service.name, service.name
            );
            push_line(&mut text, &printable(&line));
        }
    }
    text
}

/// One line per backend, and one per note.
pub fn reply(reply: &BackendReply) -> String {
    let mut text = String::new();
    for one in &reply.backends {
        let line = format!("{} of {}: {}", one.backend, one.service, one.now);
        push_line(&mut text, &printable(&line));
    }
    for note in &reply.notes {
        push_line(&mut text, &printable(&format!("note: {note}")));
    }
    text
}

/// Where it is: `10.0.2.10:6443`, `10.0.2.10:6443 (cp1.example)`, `cp1.example:6443`.
pub(super) fn place(backend: &BackendStatus) -> String {
    match &backend.host {
        None => backend.address.to_string(),
        Some(host) if backend.address.ip().is_unspecified() => {
            format!("{}:{}", host.name, backend.address.port())
        }
        Some(host) => format!("{} ({})", backend.address, host.name),
    }
}

/// The weight in force, and the configured one where that is another.
pub(super) fn weight(backend: &BackendStatus) -> String {
    let (own, configured) = (backend.effective_weight, backend.weight);
    if (own - f64::from(configured)).abs() < f64::EPSILON {
        configured.to_string()
    } else {
        format!("{own} (of {configured})")
    }
}

/// Why a backend is not what its checks say, or has not the weight that is configured.
pub(super) fn words(backend: &BackendStatus) -> Option<String> {
    let said = backend.operator.as_ref().map(operator);
    let ramp = backend
        .slow_start_percent
        .map(|percent| format!("slow start at {percent}%"));
    let agent = backend.agent_percent.filter(|percent| *percent != 100);
    let agent = agent.map(|percent| format!("agent wants {percent}%"));
    let is_idle = backend.backup && backend.operator.is_none() && backend.in_force != backend.state;
    let backup = backend.backup.then(|| {
        let word = if is_idle {
            "backup, not needed"
        } else {
            "backup"
        };
        word.to_owned()
    });
    let added = backend.added.then(|| "added while xvip runs".to_owned());
    let words: Vec<_> = [added, said, agent, ramp, backup, name(backend)]
        .into_iter()
        .flatten()
        .collect();
    (!words.is_empty()).then(|| words.join(", "))
}

/// That the address of a name may be an old one.
fn name(backend: &BackendStatus) -> Option<String> {
    let host = backend.host.as_ref()?;
    let failure = host.failure.as_ref()?;
    let is_known = !backend.address.ip().is_unspecified();
    is_known.then(|| match host.resolved_ms {
        Some(since) => format!(
            "{} {failure}; its address of {} ago stays",
            host.name,
            Age(since)
        ),
        None => format!("{} {failure}; the address that was saved stays", host.name),
    })
}

fn operator(said: &OperatorStatus) -> String {
    let mode = match (said.mode, said.deadline_ms) {
        (OperatorMode::Enabled, _) => "enabled".to_owned(),
        (OperatorMode::Maintenance, _) => "in maintenance".to_owned(),
        (OperatorMode::Draining, None) => "drained".to_owned(),
        (OperatorMode::Draining, Some(left)) if said.leaves => {
            format!("drained, removed in {}", Age(left))
        }
        (OperatorMode::Draining, Some(left)) => {
            format!("drained, in maintenance in {}", Age(left))
        }
    };
    let weight = said.weight.map(|weight| format!(", weight {weight}"));
    format!(
        "{mode}{} (ordered {} ago)",
        weight.unwrap_or_default(),
        Age(said.since_ms)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::model::{HostStatus, tests::sample};

    /// A name stands beside its address, or in its place; that the address may be an old one is said.
    #[test]
    fn names_are_shown() {
        let mut backend = sample().services[0].backends[0].clone();
        let before = words(&backend);
        let with = |resolved_ms, failure: Option<&str>| {
            Some(HostStatus {
                name: "cp1.example".to_owned(),
                resolved_ms,
                failure: failure.map(str::to_owned),
            })
        };
        backend.host = with(Some(5), None);
        assert_eq!(place(&backend), "10.0.2.10:6443 (cp1.example)");
        assert_eq!(words(&backend), before);
        backend.host = with(Some(65_000), Some("has no IPv4 address"));
        let said = words(&backend).unwrap();
        let expected = "cp1.example has no IPv4 address; its address of 1m05s ago stays";
        assert!(said.ends_with(expected), "{said}");
        backend.host = with(None, Some("has no IPv4 address"));
        let said = words(&backend).unwrap();
        assert!(
            said.ends_with("; the address that was saved stays"),
            "{said}"
        );
        backend
            .address
            .set_ip(std::net::Ipv4Addr::UNSPECIFIED.into());
        assert_eq!(place(&backend), "cp1.example:6443");
        assert_eq!(words(&backend), before);
    }
}

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
                Cell::new(backend.address),
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
    let words: Vec<_> = [added, said, agent, ramp, backup]
        .into_iter()
        .flatten()
        .collect();
    (!words.is_empty()).then(|| words.join(", "))
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

//! The lab as text: a table of now, and a line for everything that changes.

use std::{collections::BTreeMap, collections::VecDeque, fmt::Write as _, io::Write as _};

use lb_user::admin::model::{ServiceStatus, Status};

use super::{
    Verb,
    observe::{ClientView, NodeView, Snapshot},
};
use crate::process::State;

/// Lines of history below the table.
const HISTORY: usize = 12;

/// Where the view goes: redrawn in place on a terminal, or line by line.
#[derive(Debug)]
pub(super) struct Screen {
    redraw: bool,
    title: String,
    before: Option<Snapshot>,
    history: VecDeque<String>,
    failures: Failures,
}

impl Screen {
    pub(super) fn new(redraw: bool, title: String) -> Self {
        if redraw {
            // No line wrap: a narrow terminal cuts lines instead of spoiling the table.
            print!("\x1b[?7l\x1b[2J");
        } else {
            println!("{title}");
        }
        Self {
            redraw,
            title,
            before: None,
            history: VecDeque::new(),
            failures: Failures::default(),
        }
    }

    /// Shows a new state of affairs.
    pub(super) fn show(&mut self, now: &Snapshot) {
        let mut news = match &self.before {
            Some(before) => changes(before, now),
            None => Vec::new(),
        };
        news.extend(self.failures.look(&now.client));
        for line in news {
            self.line(now, &line);
        }
        if self.redraw {
            self.draw(now);
        }
        self.before = Some(now.clone());
    }

    /// Notes what somebody did to the lab.
    pub(super) fn note(&mut self, now: &Snapshot, verb: &Verb) {
        if let Some(action) = action(verb) {
            self.line(now, &format!("> {action}"));
        }
    }

    fn line(&mut self, now: &Snapshot, text: &str) {
        let line = format!("{:8.1} s  {text}", now.uptime.as_secs_f64());
        if !self.redraw {
            println!("{line}");
            return;
        }
        self.history.push_back(line);
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
    }

    fn draw(&self, now: &Snapshot) {
        let mut text = format!("{}\n\n{}\n", self.title, table(now));
        text.push_str("What happened\n");
        for line in &self.history {
            let _ = writeln!(text, "{line}");
        }
        text.push_str(
            "\nIn another terminal: cargo xtask lab kill-controller m1 | stop-apiserver m2 | cut m1\n\
             cargo xtask lab --help shows all verbs. Ctrl-C ends the lab.\n",
        );
        // Home, each line erased to its end, and everything below.
        let text = text.replace('\n', "\x1b[K\r\n");
        print!("\x1b[H{text}\x1b[J");
        // A terminal that is gone is noticed by its hangup.
        let _ = std::io::stdout().flush();
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.redraw {
            print!("\x1b[?7h");
        }
    }
}

/// What a verb does, for the history; nothing for those that only look.
fn action(verb: &Verb) -> Option<String> {
    let (what, on) = match verb {
        Verb::Status { .. } | Verb::Info => return None,
        Verb::Stop => return Some("stop".to_owned()),
        Verb::KillController(on) => ("kill-controller", on),
        Verb::StopController(on) => ("stop-controller", on),
        Verb::FreezeController(on) => ("freeze-controller", on),
        Verb::ResumeController(on) => ("resume-controller", on),
        Verb::StartController(on) => ("start-controller", on),
        Verb::StopApiserver(on) => ("stop-apiserver", on),
        Verb::FreezeApiserver(on) => ("freeze-apiserver", on),
        Verb::ResumeApiserver(on) => ("resume-apiserver", on),
        Verb::StartApiserver(on) => ("start-apiserver", on),
        Verb::NotReady(on) => ("not-ready", on),
        Verb::Ready(on) => ("ready", on),
        Verb::Cut(on) => ("cut", on),
        Verb::Join(on) => ("join", on),
        Verb::StepDown(on) => ("step-down", on),
        Verb::StepUp(on) => ("step-up", on),
    };
    Some(format!("{what} {}", on.node))
}

/// The table of now.
pub(super) fn table(now: &Snapshot) -> String {
    let mut text = format!(
        "{:<6}{:<24}{:<12}{:<18}{:<12}{}\n",
        "node", "has the VIPs", "controller", "vrrp", "apiserver", "link"
    );
    for node in &now.nodes {
        let _ = writeln!(
            text,
            "{:<6}{:<24}{:<12}{:<18}{:<12}{}",
            node.name,
            or_dash(join(&node.vips, " ")),
            node.controller,
            vrrp(node),
            node.apiserver,
            if node.cut { "cut" } else { "up" },
        );
    }
    text.push('\n');
    for service in services(now) {
        let _ = writeln!(text, "{}", service_table(now, service));
    }
    let _ = writeln!(text, "{}", client(&now.client));
    text
}

fn vrrp(node: &NodeView) -> String {
    match (&node.status, node.controller) {
        (Some(status), _) => {
            let states = status.vrrp.iter().map(|instance| instance.state);
            join(&states.collect::<Vec<_>>(), " ")
        }
        (None, State::Ended) => "-".to_owned(),
        (None, _) => "no answer".to_owned(),
    }
}

/// The services, as the first controller that answers has them.
fn services(now: &Snapshot) -> &[ServiceStatus] {
    let statuses = now.nodes.iter().filter_map(|node| node.status.as_ref());
    statuses
        .map(|status| &status.services[..])
        .next()
        .unwrap_or_default()
}

/// What each node thinks of the backends of one service, and what it sent there.
fn service_table(now: &Snapshot, service: &ServiceStatus) -> String {
    let mut text = format!(
        "{} {}: method, state, connections\n",
        service.name, service.address
    );
    for node in &now.nodes {
        let _ = write!(text, "{:>6}", node.name);
        let mine = node
            .status
            .as_ref()
            .and_then(|status| find(status, &service.name));
        for backend in mine.into_iter().flat_map(|service| &service.backends) {
            let cell = format!(
                "{}: {} {} {}",
                backend.name, backend.method, backend.state, backend.connections
            );
            let _ = write!(text, "  {cell:<24}");
        }
        text.push('\n');
    }
    text
}

fn find<'a>(status: &'a Status, service: &str) -> Option<&'a ServiceStatus> {
    status.services.iter().find(|own| own.name == service)
}

fn client(client: &ClientView) -> String {
    let last: usize = client.by_node.values().chain(client.errors.values()).sum();
    let mut text = format!(
        "client: {} requests, {} failed; the last {last}:",
        client.total, client.failed
    );
    for (node, count) in &client.by_node {
        let _ = write!(text, " {node} {count}");
    }
    for (error, count) in &client.errors {
        let _ = write!(text, ", {count} times {error}");
    }
    if let Some(address) = client.seen_as {
        let _ = write!(
            text,
            "; seen as {address}, slowest {} ms",
            client.slowest_ms
        );
    }
    text
}

/// A line for each thing that is not as it was.
pub(super) fn changes(before: &Snapshot, now: &Snapshot) -> Vec<String> {
    let pairs = before.nodes.iter().zip(&now.nodes);
    pairs
        .flat_map(|(before, now)| node_changes(before, now))
        .collect()
}

fn node_changes(before: &NodeView, now: &NodeView) -> Vec<String> {
    let name = &now.name;
    let mut lines = Vec::new();
    for (what, before, now) in [
        ("controller", before.controller, now.controller),
        ("apiserver", before.apiserver, now.apiserver),
    ] {
        if before != now {
            lines.push(format!("{name}: {what} {now} (was {before})"));
        }
    }
    if before.vips != now.vips {
        lines.push(format!(
            "{name}: has the VIPs {}",
            or_dash(join(&now.vips, " "))
        ));
    }
    if let Some(status) = &now.status {
        lines.extend(status_changes(before.status.as_ref(), status, name));
    }
    lines
}

fn status_changes(before: Option<&Status>, now: &Status, name: &str) -> Vec<String> {
    let Some(before) = before else {
        let instances = now.vrrp.iter();
        let states: Vec<_> = instances
            .map(|vrrp| format!("{} {}", vrrp.name, vrrp.state))
            .collect();
        return vec![format!("{name}: controller answers: {}", states.join(", "))];
    };
    let known = words(before);
    words(now)
        .into_iter()
        .filter(|(what, word)| known.get(what).map(|(state, _)| *state) != Some(word.0))
        .map(|(what, (state, cause))| format!("{name}: {what} {state}: {cause}"))
        .collect()
}

/// Everything in a status that has a state: its name, the state's word and the cause.
fn words(status: &Status) -> BTreeMap<String, (&'static str, String)> {
    let vrrp = status.vrrp.iter().map(|vrrp| {
        let state = match vrrp.state.to_string().as_str() {
            "active" => "is Active",
            "backup" => "is Backup",
            _ => "does not take part",
        };
        (format!("vrrp {}", vrrp.name), (state, vrrp.cause.clone()))
    });
    let backends = status.services.iter().flat_map(|service| {
        service.backends.iter().map(|backend| {
            let state = match backend.state.to_string().as_str() {
                "up" => "is up",
                "draining" => "is draining",
                _ => "is down",
            };
            (
                format!("{} backend {}", service.name, backend.name),
                (state, backend.reason.clone()),
            )
        })
    });
    vrrp.chain(backends).collect()
}

/// Tells when requests begin to fail and when they are answered again.
#[derive(Debug, Default)]
struct Failures {
    failed_before: u64,
    failed_at_start: Option<u64>,
}

impl Failures {
    fn look(&mut self, client: &ClientView) -> Option<String> {
        let new = client.failed > self.failed_before;
        let line = match (self.failed_at_start, new) {
            (None, true) => {
                self.failed_at_start = Some(self.failed_before);
                let kinds: Vec<_> = client.errors.keys().cloned().collect();
                Some(format!("client: requests fail: {}", kinds.join(", ")))
            }
            (Some(start), false) if client.failing.is_none() => {
                self.failed_at_start = None;
                let count = client.failed - start;
                Some(format!(
                    "client: requests are answered again, {count} failed"
                ))
            }
            _ => None,
        };
        self.failed_before = client.failed;
        line
    }
}

fn join<T: ToString>(items: &[T], between: &str) -> String {
    let words: Vec<_> = items.iter().map(ToString::to_string).collect();
    words.join(between)
}

fn or_dash(text: String) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn snapshot(vips: &[&str], controller: State) -> Snapshot {
        Snapshot {
            uptime: Duration::from_secs(1),
            nodes: vec![NodeView {
                name: "m1".into(),
                cut: false,
                controller,
                apiserver: State::Running,
                vips: vips.iter().map(|vip| vip.parse().unwrap()).collect(),
                status: None,
            }],
            client: ClientView::default(),
        }
    }

    /// Each change is one line; what stays as it was is none.
    #[test]
    fn only_changes_are_told() {
        let before = snapshot(&["10.77.0.100"], State::Running);
        let after = snapshot(&[], State::Ended);
        assert!(changes(&before, &before).is_empty());
        assert_eq!(
            changes(&before, &after),
            ["m1: controller ended (was running)", "m1: has the VIPs -"]
        );
    }

    /// A phase of failures has one line at its begin and one, with their number, at its end.
    #[test]
    fn a_phase_of_failures_has_a_begin_and_an_end() {
        let mut failures = Failures::default();
        let client = |failed: u64, failing: bool| ClientView {
            failed,
            failing: failing.then(|| "timeout".into()),
            errors: [("timeout".to_owned(), 1)].into(),
            ..ClientView::default()
        };
        assert_eq!(failures.look(&client(0, false)), None);
        let begin = failures.look(&client(2, true)).unwrap();
        assert!(begin.contains("requests fail: timeout"));
        assert_eq!(failures.look(&client(5, true)), None);
        let end = failures.look(&client(5, false)).unwrap();
        assert!(end.contains("5 failed"), "{end}");
        assert_eq!(failures.look(&client(5, false)), None);
    }

    /// The table has a line per node, also for one whose controller does not answer.
    #[test]
    fn the_table_shows_nodes_that_do_not_answer() {
        let text = table(&snapshot(&["10.77.0.100"], State::Frozen));
        assert!(
            text.contains("m1    10.77.0.100             frozen      no answer"),
            "{text}"
        );
    }
}

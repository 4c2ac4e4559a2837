//! `agent-check` of servers: `service.health.agent`, and what a backend has of its own.

use std::net::IpAddr;

use super::{
    super::{
        Fate,
        document::{Key, duration, quoted},
        ledger::{Ledger, WordId},
        plan::Server,
    },
    server::ServerOptions,
    time::check_time,
};

/// haproxy's `agent-inter` where nothing says it, whatever `inter` is.
const INTERVAL: &str = "2s";

/// The agents of a section's servers.
#[derive(Debug, Default)]
pub(super) struct Agents {
    first: Option<First>,
    /// Whether a server has none.
    is_missing: bool,
}

/// The first server's, which is the service's.
#[derive(Debug)]
struct First {
    port: u16,
    /// What else the table says.
    parts: Vec<String>,
    key: Key,
}

/// The parts of the table that all backends have alike, each with the words that say it.
type Parts = Vec<(String, Vec<WordId>)>;

impl Agents {
    /// Adds a server's. Keys of its backend come out.
    pub(super) fn add(&mut self, server: &ServerOptions, ledger: &Ledger) -> Vec<Key> {
        let Some(check) = server.get("agent-check") else {
            self.is_missing = true;
            return Vec::new();
        };
        let mut words = check.words.clone();
        let mut own = Vec::new();
        let parts = parts(server, ledger);
        if let Some(set) = server.get("agent-addr") {
            match set.value.parse::<IpAddr>() {
                Ok(address) => {
                    let address = address.to_string();
                    own.push(Key::text("agent_address", &address, &set.words));
                }
                Err(_) => ledger.by_hand(
                    &set.words,
                    "write agent_address into its [[service.backend]]: an address",
                ),
            }
        }
        let port = server.get("agent-port");
        let Some((port, of_port)) = port.and_then(|set| {
            let port = set.value.parse::<u16>().ok().filter(|port| *port > 0);
            Some((port?, &set.words))
        }) else {
            words.extend(port.into_iter().flat_map(|set| &set.words));
            words.extend(own.iter().flat_map(Key::words));
            ledger.by_hand(&words, "write service.health.agent, which needs a port");
            return Vec::new();
        };
        let Some(first) = &self.first else {
            words.extend(of_port);
            words.extend(parts.iter().flat_map(|(_, words)| words));
            let parts: Vec<_> = parts.into_iter().map(|(part, _)| part).collect();
            let value = format!("{{ port = {port}, {} }}", parts.join(", "));
            let key = Key::new("agent", value, &words);
            self.first = Some(First { port, parts, key });
            return own;
        };
        if first.port == port {
            words.extend(of_port);
        } else {
            own.push(Key::new("agent_port", port.to_string(), of_port));
        }
        let (same, other): (Parts, Parts) = parts
            .into_iter()
            .partition(|(part, _)| first.parts.contains(part));
        words.extend(same.iter().flat_map(|(_, words)| words));
        first.key.said_by(&words).claim(ledger, "service.health");
        let differs = !other.is_empty() || same.len() < first.parts.len();
        let mut of_others: Vec<_> = other.into_iter().flat_map(|(_, words)| words).collect();
        if differs && of_others.is_empty() {
            of_others.clone_from(&check.words);
        }
        let what =
            "not as for the first server: all agents of a service are asked alike; choose one";
        ledger.by_hand(&of_others, what);
        own
    }

    /// Adds the service's to `health`, if its type takes one; else the servers lose theirs.
    pub(super) fn finish(self, health: &mut Vec<Key>, servers: &mut [Server], ledger: &Ledger) {
        let Some(First { key, .. }) = self.first else {
            return;
        };
        let none = Key::text("type", "none", &[]);
        if health.iter().any(|key| key.says_same(&none)) {
            let what = "xvip asks agents beside checks only: write a type of check and agent into [service.health]";
            ledger.by_hand(&key.words(), what);
            for server in servers {
                let is_of_agent = |key: &Key| key.name().starts_with("agent_");
                for key in server.keys.extract_if(.., |key| is_of_agent(key)) {
                    ledger.by_hand(&key.words(), what);
                }
            }
            return;
        }
        health.push(key);
        if self.is_missing {
            ledger.derived(Fate::NoEquivalent(
                "the agent of a server without agent-check is asked as well: one that does not answer changes nothing"
                    .to_owned(),
            ));
        }
    }
}

/// `interval` and `send` of the table.
fn parts(server: &ServerOptions, ledger: &Ledger) -> Parts {
    let mut interval = (quoted(INTERVAL), Vec::new());
    if let Some(set) = server.get("agent-inter") {
        if let Some(value) = check_time(&set.value) {
            interval = (quoted(&duration(value)), set.words.clone());
        } else {
            let what = "write interval of service.health.agent: 10ms..10m";
            ledger.by_hand(&set.words, what);
        }
    }
    let mut parts = vec![(format!("interval = {}", interval.0), interval.1)];
    // haproxy sends what is between quotes as it is.
    let send = server.get("agent-send").filter(|set| !set.value.is_empty());
    parts.extend(send.map(|set| (format!("send = {}", quoted(&set.value)), set.words.clone())));
    parts
}

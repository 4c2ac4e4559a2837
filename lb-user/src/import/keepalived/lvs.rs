//! `virtual_server` with its `real_server`s and their checks: IPVS as services and backends.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use super::{
    super::{
        document::Key,
        haproxy,
        ledger::{Ledger, WordId},
        plan::{self, Bind, Host, Listen, Plan, Server, Service},
    },
    Context,
    parse::Statement,
    program,
    words::{self, Known, claim, claim_all},
};

/// Addresses of every `virtual_server_group`.
pub(super) type Groups = BTreeMap<String, Vec<Bind>>;

/// Seconds between checks where nothing says so.
const DELAY_LOOP: f64 = 60.0;
/// Seconds that a check may take to connect.
const CONNECT_TIMEOUT: f64 = 5.0;

/// Reads every `virtual_server_group`.
pub(super) fn groups<'a>(blocks: impl Iterator<Item = &'a Statement>, ledger: &Ledger) -> Groups {
    let mut groups = Groups::new();
    for block in blocks {
        claim(block, &Known::Nothing("its lines follow"), ledger);
        let binds = block.block.iter().filter_map(|line| {
            let bind = bind(line.keyword(), line.word(1), line.first(2));
            if bind.is_none() {
                let what = "xvip takes single addresses with a port: write a [[service]] for each";
                ledger.by_hand(&line.ids(), what);
            }
            bind
        });
        let binds: Vec<_> = binds.collect();
        for bind in &binds {
            ledger.recognise(&bind.words);
        }
        groups.insert(block.word(1).to_owned(), binds);
    }
    groups
}

fn bind(address: &str, port: &str, words: Vec<WordId>) -> Option<Bind> {
    Some(Bind {
        listen: Listen::At(address.parse().ok()?),
        port: port.parse().ok().filter(|port| *port > 0)?,
        words,
    })
}

/// Reads a `virtual_server` into `plan`.
pub(super) fn read(block: &Statement, groups: &Groups, context: &Context<'_>, plan: &mut Plan) {
    let ledger = context.ledger;
    let (name, binds) = match block.word(1) {
        "fwmark" => {
            claim_all(
                block,
                &Known::ByHand(
                    "xvip has no firewall marks: write a [[service]] with the VIP and port",
                ),
                ledger,
            );
            return;
        }
        "group" => {
            ledger.none(&block.first(3), "a service for every address of the group");
            let binds = groups.get(block.word(2)).cloned().unwrap_or_default();
            (block.word(2).to_owned(), binds)
        }
        address => {
            let bind = bind(address, block.word(2), block.first(3));
            let name = format!("lvs-{address}-{}", block.word(2));
            (name, bind.into_iter().collect())
        }
    };
    if binds.is_empty() {
        let what = "xvip needs an address and a port: write a [[service]]";
        claim_all(block, &Known::ByHand(what), ledger);
        return;
    }
    let mut service = Service {
        name: plan::name(&name, "lvs"),
        words: Vec::new(),
        binds,
        keys: Vec::new(),
        sources: Vec::new(),
        health: Vec::new(),
        servers: Vec::new(),
        comments: vec!["keepalived's virtual_server (IPVS)".to_owned()],
    };
    let mut timing = Timing::default();
    for line in &block.block {
        if !timing.read(line, ledger) {
            read_line(line, ledger, &mut service);
        }
    }
    let servers: Vec<_> = block.children("real_server").collect();
    let mut health: Option<Vec<Key>> = None;
    for server in servers {
        let (server, checks) = real_server(server, timing.clone(), context);
        service.servers.extend(server);
        match &health {
            // The first one's checks are the service's.
            None => health = Some(checks),
            Some(health) => differences(health, &checks, ledger),
        }
    }
    if let Some(line) = block.child("quorum") {
        quorum(line, block, ledger, &mut service);
    }
    service.health = health.unwrap_or_else(|| vec![Key::text("type", "none", &[])]);
    plan.services.push(service);
}

/// Claims the checks of a further server: xvip asks all backends of a service alike.
fn differences(health: &[Key], checks: &[Key], ledger: &Ledger) {
    for key in checks {
        if health.iter().any(|other| other.says_same(key)) {
            key.claim(ledger, "service.health");
        } else {
            ledger.by_hand(
                &key.words(),
                "not as for the first real_server: xvip checks all backends of a service alike; choose one",
            );
        }
    }
}

/// When checks happen; a server's and a check's own come before the service's.
#[derive(Clone, Debug, Default)]
struct Timing {
    delay_loop: Option<(f64, Vec<WordId>)>,
    connect_timeout: Option<(f64, Vec<WordId>)>,
    retry: Option<(u32, Vec<WordId>)>,
    before_retry: Option<(f64, Vec<WordId>)>,
}

impl Timing {
    /// Whether the line is about it.
    fn read(&mut self, line: &Statement, ledger: &Ledger) -> bool {
        let words = line.first(2);
        let seconds = || {
            let value = line.word(1).parse::<f64>().ok();
            value.filter(|seconds| (0.0..=100_000.0).contains(seconds))
        };
        match line.keyword() {
            "delay_loop" => self.delay_loop = seconds().map(|seconds| (seconds, words)),
            "connect_timeout" => self.connect_timeout = seconds().map(|s| (s, words)),
            "delay_before_retry" => self.before_retry = seconds().map(|s| (s, words)),
            "retry" | "nb_get_retry" => {
                let count = line.word(1).parse::<u32>().ok();
                self.retry = count.map(|count| (count, words));
            }
            _ => return false,
        }
        ledger.recognise(&line.first(2));
        true
    }

    /// Keys of `[service.health]`; `is_http` has another default.
    fn keys(&self, is_http: bool) -> Vec<Key> {
        let none: &[WordId] = &[];
        let or = |value: &Option<(f64, Vec<WordId>)>, default: f64| match value {
            Some((seconds, words)) => (clamped(*seconds), words.clone()),
            None => (clamped(default), none.to_vec()),
        };
        let (interval, interval_words) = or(&self.delay_loop, DELAY_LOOP);
        let (timeout, timeout_words) = or(&self.connect_timeout, CONNECT_TIMEOUT);
        let (retry, retry_words) = match &self.retry {
            Some((retry, words)) => ((*retry).min(99), words.clone()),
            None => (1, Vec::new()),
        };
        let (fast, fast_words) = or(&self.before_retry, if is_http { 3.0 } else { 1.0 });
        vec![
            Key::duration("interval", interval, &interval_words),
            Key::duration("timeout", timeout, &timeout_words),
            Key::duration("fast_interval", fast.min(interval), &fast_words),
            Key::new("rise", "1", &[]),
            Key::new("fall", (retry + 1).to_string(), &retry_words),
        ]
    }
}

/// Seconds as a time of checks, 10 ms to 10 minutes.
fn clamped(seconds: f64) -> Duration {
    let duration = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_mins(10));
    let duration = duration.clamp(Duration::from_millis(10), Duration::from_mins(10));
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(600_000))
}

/// A line of a `virtual_server` that is not about times.
fn read_line(line: &Statement, ledger: &Ledger, service: &mut Service) {
    let words = line.first(2);
    match line.keyword() {
        "real_server" => {}
        "protocol" => match line.word(1) {
            "TCP" => service.keys.push(Key::text("protocol", "tcp", &words)),
            "UDP" => service.keys.push(Key::text("protocol", "udp", &words)),
            _ => ledger.by_hand(&words, "xvip forwards TCP and UDP"),
        },
        "lb_algo" | "lvs_sched"
            if matches!(line.word(1), "sh" | "mh" | "dh" | "lblc" | "lblcr") =>
        {
            ledger.by_hand(&words, haproxy::AFFINITY);
        }
        "lb_algo" | "lvs_sched" => ledger.none(
            &words,
            "xvip chooses by Maglev hashing of addresses and ports, in proportion to weights",
        ),
        "lb_kind" | "lvs_method" => forwarding(line, ledger, &mut service.keys),
        "inhibit_on_failure" => {
            let key = Key::text("on_backend_down", "keep", &line.first(1));
            service.keys.push(key);
        }

        "sorry_server" => sorry_server(line, ledger, service),
        // Needed once the servers are known, and for checks.
        "quorum" | "virtualhost" => ledger.recognise(&words),
        keyword => {
            if let Some(known) = words::lvs(keyword) {
                claim_all(line, &known, ledger);
            }
        }
    }
}

/// Weights count for keepalived, backends for xvip: a number of backends is the same if any so many
/// have the weight, and no fewer do.
fn quorum(line: &Statement, block: &Statement, ledger: &Ledger, service: &mut Service) {
    let words = line.first(2);
    let weight = |server: &Statement| match server.child("weight") {
        Some(line) => line.word(1).parse::<u32>().ok(),
        None => Some(1),
    };
    let weights: Option<Vec<u32>> = block.children("real_server").map(weight).collect();
    let mut weights = weights.unwrap_or_default();
    weights.retain(|weight| *weight > 0);
    let quorum = line.word(1).parse::<u32>().ok();
    match quorum.and_then(|quorum| how_many(quorum, &mut weights)) {
        Some(count) => {
            let key = Key::new("min_healthy", count.to_string(), &words);
            service.keys.push(key);
        }
        None => ledger.by_hand(
            &words,
            "the weights decide for keepalived, the number of backends for xvip: write how many must be up as \
             service.min_healthy",
        ),
    }
}

/// How many of these weights come to `quorum`, whichever they are.
fn how_many(quorum: u32, weights: &mut [u32]) -> Option<usize> {
    weights.sort_unstable();
    let sum = |weights: &[u32]| -> u64 { weights.iter().copied().map(u64::from).sum() };
    (1..=weights.len()).find(|&count| {
        let lightest = weights.get(..count).unwrap_or_default();
        let heaviest = weights.get(weights.len() - count + 1..).unwrap_or_default();
        sum(lightest) >= quorum.into() && sum(heaviest) < quorum.into()
    })
}

/// It serves while too few others do: a backup.
fn sorry_server(line: &Statement, ledger: &Ledger, service: &mut Service) {
    let address = line.word(1).parse::<IpAddr>().ok();
    let words = line.first(3);
    let Some(address) = address.filter(|address| !address.is_loopback()) else {
        ledger.by_hand(
            &words,
            "write a [[service.backend]] with backup = true and an address of the network",
        );
        return;
    };
    service.servers.push(Server {
        name: "sorry".to_owned(),
        name_words: Vec::new(),
        host: Host::Address(address),
        port: line.word(2).parse().ok().filter(|port| *port > 0),
        keys: vec![Key::new("backup", "true", &words)],
        words,
    });
}

/// IPVS's method as xvip's.
fn forwarding(line: &Statement, ledger: &Ledger, keys: &mut Vec<Key>) {
    let words = line.first(2);
    match line.word(1) {
        // A real server of LVS-DR has the VIP on its loopback and takes such frames.
        "DR" => keys.push(Key::text("forwarding", "dsr", &words)),
        "NAT" => keys.push(Key::text("forwarding", "auto", &words)),
        _ => ledger.by_hand(
            &line.ids(),
            "xvip has no tunnels: backends by nat, or by dsr where they share a network with this node",
        ),
    }
}

/// A backend, and the keys of its checks.
fn real_server(
    block: &Statement,
    mut timing: Timing,
    context: &Context<'_>,
) -> (Option<Server>, Vec<Key>) {
    let ledger = context.ledger;
    let words = block.first(3);
    let address = block.word(1).parse::<IpAddr>();
    let port = block.word(2).parse::<u16>().ok();
    let mut keys = Vec::new();
    let mut is_used = true;
    for line in &block.block {
        if timing.read(line, ledger) {
            continue;
        }
        let words = line.first(2);
        match line.keyword() {
            "weight" => match line.word(1).parse::<u32>() {
                Ok(0) => {
                    is_used = false;
                    ledger.by_hand(
                        &words,
                        "a backend of weight 0 takes no connections and is left out",
                    );
                }
                Ok(weight @ 1..=1000) => keys.push(Key::new("weight", weight.to_string(), &words)),
                _ => ledger.by_hand(
                    &words,
                    "write 1..1000 as weight, in proportion to the others",
                ),
            },
            "lb_kind" | "lvs_method" => forwarding(line, ledger, &mut keys),
            "inhibit_on_failure" => ledger.by_hand(
                &line.ids(),
                "xvip says it for all backends of a service: on_backend_down = \"keep\"",
            ),
            "virtualhost" => ledger.recognise(&words),
            _ if is_check(line.keyword()) => {}
            keyword => {
                if let Some(known) = words::lvs(keyword) {
                    claim_all(line, &known, ledger);
                }
            }
        }
    }
    let mut checks = block.block.iter().filter(|line| is_check(line.keyword()));
    let health = match checks.next() {
        Some(check) => check_keys(check, block, timing, context),
        None => vec![Key::text("type", "none", &[])],
    };
    for more in checks {
        let what = "xvip asks one question: choose the check that matters";
        claim_all(more, &Known::ByHand(what), ledger);
    }
    let Ok(address) = address else {
        ledger.by_hand(&words, "write a backend with an address and a port");
        return (None, health);
    };
    if !is_used {
        ledger.by_hand(&words, "left out: its weight is 0");
        return (None, health);
    }
    let server = Server {
        name: plan::name(&format!("{address}-{}", block.word(2)), "real"),
        name_words: Vec::new(),
        host: if address.is_loopback() {
            let v4 = address.is_ipv4();
            Host::ThisNode { v4 }
        } else {
            Host::Address(address)
        },
        port: port.filter(|port| *port > 0),
        words,
        keys,
    };
    (Some(server), health)
}

fn is_check(keyword: &str) -> bool {
    keyword.ends_with("_CHECK") || matches!(keyword, "HTTP_GET" | "SSL_GET")
}

/// Keys of `[service.health]` for a check.
fn check_keys(
    check: &Statement,
    server: &Statement,
    mut timing: Timing,
    context: &Context<'_>,
) -> Vec<Key> {
    let ledger = context.ledger;
    let kind = match check.keyword() {
        "HTTP_GET" => "http",
        "SSL_GET" => "https",
        "TCP_CHECK" => "tcp",
        "MISC_CHECK" if check.child("misc_path").is_some() => {
            return misc_keys(check, timing, context);
        }
        _ => {
            let what = "xvip has no such check here: the service's checks only connect; choose another \
                        type in [service.health]";
            claim_all(check, &Known::ByHand(what), ledger);
            let mut keys = vec![Key::text("type", "tcp", &[])];
            keys.extend(timing.keys(false));
            return keys;
        }
    };
    let mut keys = vec![Key::text("type", kind, &check.first(1))];
    let mut host = server.child("virtualhost");
    let mut urls = 0;
    for line in &check.block {
        if timing.read(line, ledger) {
            continue;
        }
        let words = line.first(2);
        match line.keyword() {
            "url" => {
                urls += 1;
                if urls > 1 {
                    let what = "xvip asks for one path: choose the one that matters";
                    claim_all(line, &Known::ByHand(what), ledger);
                    continue;
                }
                url(line, &mut host, ledger, &mut keys);
            }
            "connect_port" => match line.word(1).parse::<u16>() {
                Ok(port) if port > 0 => keys.push(Key::new("port", port.to_string(), &words)),
                _ => ledger.by_hand(&words, "write the port as service.health.port"),
            },
            "connect_ip" => match line.word(1).parse::<IpAddr>() {
                Ok(address) => keys.push(Key::text("address", &address.to_string(), &words)),
                Err(_) => ledger.by_hand(&words, "write service.health.address"),
            },
            "virtualhost" => {
                ledger.recognise(&words);
                host = Some(line);
            }
            "http_protocol" => ledger.none(&words, "xvip asks with HTTP/1.1"),
            "enable_sni" => ledger.none(
                &line.first(1),
                "xvip asks for a name where service.health.server_name says which",
            ),
            keyword => {
                if let Some(known) = words::lvs(keyword) {
                    claim_all(line, &known, ledger);
                }
            }
        }
    }
    if kind != "tcp" && !keys.iter().any(|key| key.name() == "path") {
        keys.push(Key::text("path", "/", &[]));
    }
    if let Some(host) = host.filter(|_| kind != "tcp") {
        keys.push(Key::text("host", host.word(1), &host.first(2)));
    }
    keys.extend(timing.keys(kind != "tcp"));
    keys
}

/// `MISC_CHECK`: a program.
fn misc_keys(check: &Statement, mut timing: Timing, context: &Context<'_>) -> Vec<Key> {
    let ledger = context.ledger;
    let mut keys = vec![Key::text("type", "command", &check.first(1))];
    let mut timeout = None;
    for line in &check.block {
        if timing.read(line, ledger) {
            continue;
        }
        let words = line.first(2);
        match line.keyword() {
            "misc_path" => match program::command(line.word(1), context.options) {
                Ok(command) => keys.push(Key::new("command", command, &words)),
                Err(what) => {
                    let what =
                        format!("{what} as command of [service.health], with type = \"command\"");
                    check.each(&mut |line| ledger.by_hand(&line.ids(), what.as_str()));
                    return vec![Key::text("type", "tcp", &[])];
                }
            },
            "misc_timeout" => timeout = line.word(1).parse::<f64>().ok().map(|s| (s, words)),
            "misc_dynamic" => ledger.by_hand(
                &line.ids(),
                "xvip takes weights from agents: write service.health.agent",
            ),
            "user" => {}
            keyword => {
                if let Some(known) = words::lvs(keyword) {
                    claim_all(line, &known, ledger);
                }
            }
        }
    }
    let said = check.child("user");
    let user = match said {
        Some(line) => program::user(line, 1, context.tools()),
        None => context.globals.user.clone(),
    };
    if let Some((user, words)) = user {
        let words = said.map_or(words, |line| line.first(2));
        keys.push(Key::text("user", &user, &words));
    }
    if let Some(timeout) = timeout {
        timing.connect_timeout = Some(timeout);
    }
    if timing.retry.is_none() {
        timing.retry = Some((0, Vec::new()));
    }
    keys.extend(timing.keys(false));
    keys
}

/// `url { path ... }`
fn url<'s>(
    url: &'s Statement,
    host: &mut Option<&'s Statement>,
    ledger: &Ledger,
    keys: &mut Vec<Key>,
) {
    claim(url, &Known::Nothing("its lines follow"), ledger);
    let mut has_status = false;
    for line in &url.block {
        match line.keyword() {
            "path" => keys.push(Key::text("path", line.word(1), &line.first(2))),
            "status_code" => {
                has_status = true;
                let words: Vec<_> = line.words.iter().skip(1).map(|word| word.text.as_str()).collect();
                let wanted = haproxy::statuses(words);
                match wanted.and_then(|wanted| haproxy::spelled_statuses(&wanted)) {
                    Some(statuses) => keys.push(Key::new("expect_status", statuses, &line.ids())),
                    None => ledger.by_hand(&line.ids(), "write service.health.expect_status"),
                }
            }
            "virtualhost" => {
                ledger.recognise(&line.first(2));
                *host = Some(line);
            }
            "regex" if url.child("regex_no_match").is_none() && is_regex(line.word(1)) => {
                keys.push(Key::text("expect_body_regex", line.word(1), &line.first(2)));
            }
            "digest" | "regex" | "regex_no_match" | "regex_options" | "regex_stack"
            | "regex_min_offset" | "regex_max_offset" => ledger.by_hand(
                &line.ids(),
                "xvip compares the status, and the answer's text with expect_body or expect_body_regex",
            ),
            keyword => {
                if let Some(known) = words::lvs(keyword) {
                    claim_all(line, &known, ledger);
                }
            }
        }
    }
    if !has_status {
        keys.push(Key::new("expect_status", "[\"200-299\"]", &[]));
    }
}

fn is_regex(text: &str) -> bool {
    !text.is_empty() && regex::Regex::new(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights that decide become a number only where it decides the same.
    #[test]
    fn a_quorum_of_weights_is_a_number_of_backends() {
        for (quorum, weights, count) in [
            (1, &[1, 1, 1][..], Some(1)),
            (2, &[1, 1, 1], Some(2)),
            (4, &[2, 2, 2], Some(2)),
            (3, &[2, 2, 2], Some(2)),
            (1, &[1, 100], Some(1)),
            // The heavier one alone has it, the lighter one not.
            (2, &[3, 1], None),
            (4, &[1, 1, 1], None),
            (0, &[1], None),
            (1, &[], None),
        ] {
            let found = how_many(quorum, &mut weights.to_vec());
            assert_eq!(found, count, "{quorum} of {weights:?}");
        }
    }
}

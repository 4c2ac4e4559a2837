//! haproxy.cfg: sections, what they inherit, and the services that proxies in tcp mode become.

mod agent;
mod check;
mod parse;
mod rules;
mod server;
mod time;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

pub(super) use self::words::AFFINITY;
use self::{
    agent::Agents,
    check::{Checks, User},
    parse::{Line, Section},
    rules::Rules,
    server::{ServerOptions, Set, split_port},
    words::Known,
};
use super::{
    Input, Options, Refusal,
    document::Key,
    ledger::{Ledger, WordId},
    plan::{self, Bind, Listen, Plan, Server, Service},
};

/// What a section says, with what it inherits.
#[derive(Clone, Debug, Default)]
struct Settings {
    /// `mode`; haproxy's default is tcp.
    mode: Option<String>,
    checks: Checks,
    servers: ServerOptions,
    /// `default_backend`
    backend: Option<(String, Vec<WordId>)>,
    /// `option allbackups`
    all_backups: Option<Vec<WordId>>,
    /// Who may connect.
    rules: Rules,
    is_disabled: bool,
}

impl Settings {
    fn is_tcp(&self) -> bool {
        self.mode.as_deref().is_none_or(|mode| mode == "tcp")
    }
}

/// What mapping a section needs beside it.
struct Context<'a> {
    ledger: &'a Ledger,
    options: &'a Options<'a>,
    user: User,
}

/// Reads a haproxy.cfg into `plan`.
pub(super) fn read(
    input: &Input,
    ledger: &Ledger,
    options: &Options<'_>,
    plan: &mut Plan,
) -> Result<(), Refusal> {
    let sections = parse::parse(input, &options.variables, ledger)?;
    let context = Context {
        ledger,
        options,
        user: user(&sections),
    };
    let settings = inherit(&sections, &context);
    let mut backends = Backends::new();
    for (section, settings) in sections.iter().zip(&settings) {
        let kind = section.head.keyword();
        if matches!(kind, "backend" | "listen") && usable(section, settings, ledger) {
            backends.insert(section.head.word(1), (section, settings));
            recognise(section, ledger);
        }
    }
    for (section, settings) in sections.iter().zip(&settings) {
        match section.head.keyword() {
            "frontend" | "listen" if usable(section, settings, ledger) => {
                let service = service(section, settings, &backends, &context);
                plan.services.extend(service);
            }
            "frontend" | "listen" | "backend" | "defaults" => {}
            kind => beside_proxies(kind, section, ledger),
        }
    }
    Ok(())
}

/// Whom haproxy runs as: root, if `global` says no other.
fn user(sections: &[Section]) -> User {
    let globals = sections
        .iter()
        .filter(|section| section.head.keyword() == "global");
    let mut lines = globals.flat_map(|section| &section.lines);
    let last = lines.rfind(|line| line.keyword() == "user");
    last.map_or_else(
        || ("root".to_owned(), Vec::new()),
        |line| (line.word(1).to_owned(), line.first(2)),
    )
}

/// Sections with servers, by name.
type Backends<'a> = BTreeMap<&'a str, (&'a Section, &'a Settings)>;

/// Servers are claimed by a service that uses them.
fn recognise(section: &Section, ledger: &Ledger) {
    if section.head.keyword() == "backend" {
        ledger.recognise(&section.head.ids());
    }
    for line in &section.lines {
        if line.keyword() == "server" {
            ledger.recognise(&line.first(3));
            let options = line.words().get(3..).unwrap_or_default();
            ServerOptions::default().read(options, ledger);
        }
    }
}

/// A section that is no proxy.
fn beside_proxies(kind: &str, section: &Section, ledger: &Ledger) {
    let Some(of_section) = words::section(kind) else {
        return;
    };
    for line in std::iter::once(&section.head).chain(&section.lines) {
        let own = words::global(line.keyword()).filter(|_| kind == "global");
        let known = own.unwrap_or(of_section);
        if line.keyword() == "spread-checks" {
            let why = "xvip spreads checks as well: service.health.spread says how far";
            ledger.none(&line.ids(), why);
        } else if line.keyword() == "ssl-server-verify" && line.word(1) == "none" {
            ledger.none(&line.ids(), "service.health.verify is \"none\" by default");
        } else {
            claim(line, &known, ledger);
        }
    }
}

fn claim(line: &Line, known: &Known, ledger: &Ledger) {
    match known {
        Known::Nothing(why) => ledger.none(&line.ids(), *why),
        Known::ByHand(what) => ledger.by_hand(&line.ids(), *what),
    }
}

/// The settings of every section, with those of the `defaults` that it uses.
fn inherit(sections: &[Section], context: &Context<'_>) -> Vec<Settings> {
    let mut named: BTreeMap<String, Settings> = BTreeMap::new();
    let mut last = Settings::default();
    let mut all = Vec::with_capacity(sections.len());
    for section in sections {
        let kind = section.head.keyword();
        let head = &section.head;
        let from_at = (2..head.words().len()).find(|&at| head.word(at - 1) == "from");
        let from = from_at.map(|at| head.word(at));
        let is_defaults = kind == "defaults";
        if let Some(at) = from_at.filter(|_| !is_defaults) {
            let words = section.head.words().get(at - 1..=at).unwrap_or_default();
            let ids: Vec<_> = words.iter().map(|word| word.id).collect();
            context
                .ledger
                .none(&ids, "inherits, as the lines there say");
        }
        let mut settings = match from.and_then(|name| named.get(name)) {
            Some(settings) => settings.clone(),
            None if is_defaults => Settings::default(),
            None => last.clone(),
        };
        if matches!(kind, "defaults" | "frontend" | "backend" | "listen") {
            let mode = section.lines.iter().rfind(|line| line.keyword() == "mode");
            if let Some(mode) = mode {
                settings.mode = Some(mode.word(1).to_owned());
            }
            if is_defaults || settings.is_tcp() {
                settings.checks.inherited();
                for line in &section.lines {
                    read_line(line, kind, &mut settings, context.ledger);
                }
            }
        }
        if is_defaults {
            let why = if from.is_some() {
                "inherits, as the lines below say"
            } else {
                "its lines follow"
            };
            context.ledger.none(&section.head.ids(), why);
            let name = section.head.word(1);
            if !name.is_empty() && name != "from" {
                named.insert(name.to_owned(), settings.clone());
            }
            last = settings.clone();
        }
        all.push(settings);
    }
    all
}

/// Whether a proxy section is imported; if not, its lines are claimed.
fn usable(section: &Section, settings: &Settings, ledger: &Ledger) -> bool {
    let lines = || std::iter::once(&section.head).chain(&section.lines);
    if settings.is_disabled {
        for line in lines() {
            claim(
                line,
                &Known::Nothing("not imported: it is disabled"),
                ledger,
            );
        }
        return false;
    }
    if settings.is_tcp() {
        return true;
    }
    let is_stats = section.lines.iter().any(|line| line.keyword() == "stats");
    let has_servers = section.lines.iter().any(|line| line.keyword() == "server");
    let known = if is_stats && !has_servers {
        Known::Nothing("`xvip status` shows services and backends; xvip serves no page of them")
    } else {
        Known::ByHand(
            "not imported: mode http. xvip forwards connections and looks into none: keep haproxy for \
             this section, or write a [[service]] if TCP is enough",
        )
    };
    lines().for_each(|line| claim(line, &known, ledger));
    false
}

/// A line of a section in tcp mode, or of `defaults`.
fn read_line(line: &Line, kind: &str, settings: &mut Settings, ledger: &Ledger) {
    match line.keyword() {
        "acl" if kind != "backend" => settings.rules.acl(line, ledger),
        "stick-table" if kind != "backend" => settings.rules.table(line, ledger),
        "tcp-request" if kind != "backend" && matches!(line.word(1), "connection" | "session") => {
            settings.rules.request(line, ledger);
        }
        "mode" if line.word(1) == "tcp" => {
            ledger.mapped(&line.first(2), "service.protocol = \"tcp\", the default");
        }
        "mode" => ledger.none(
            &line.first(2),
            "sections that inherit it are imported only if they say mode tcp",
        ),
        "default-server" => {
            let words = line.words().get(1..).unwrap_or_default();
            ledger.none(&line.first(1), "its options follow");
            settings.servers.read(words, ledger);
        }
        "default_backend" => {
            ledger.recognise(&line.first(2));
            settings.backend = Some((line.word(1).to_owned(), line.first(2)));
        }
        // Without a condition it is where everything goes.
        "use_backend" if line.words().len() == 2 => {
            ledger.recognise(&line.first(2));
            settings.backend = Some((line.word(1).to_owned(), line.first(2)));
        }
        "timeout" if line.word(1) == "check" => settings.checks.timeout(line, ledger),
        "option" if line.word(1) == "allbackups" => {
            ledger.recognise(&line.first(2));
            settings.all_backups = Some(line.first(2));
        }
        "external-check" => settings.checks.external(line, ledger),
        "option" => {
            if !settings.checks.option(line, ledger)
                && let Some(known) = words::option(line.word(1))
            {
                claim(line, &known, ledger);
            }
        }
        "no" | "default" if line.word(1) == "option" => {
            if line.word(2) == "allbackups" {
                settings.all_backups = None;
            }
            ledger.none(&line.ids(), "it takes back what xvip does not do either");
        }
        "http-check" => settings.checks.http_check(line, ledger),
        "tcp-check" => settings.checks.tcp_check(line, ledger),
        "disabled" if kind != "defaults" => settings.is_disabled = true,
        "bind" | "server" => {}
        keyword => {
            if let Some(known) = words::proxy(keyword, line.word(1)) {
                claim(line, &known, ledger);
            }
        }
    }
}

/// The servers of a section, and how they are checked.
#[derive(Clone, Debug, Default)]
struct Pool {
    head: Vec<WordId>,
    servers: Vec<Server>,
    health: Vec<Key>,
    /// Keys of the service.
    keys: Vec<Key>,
}

fn pool(section: &Section, settings: &Settings, context: &Context<'_>) -> Pool {
    let mut pool = Pool {
        head: section.head.first(2),
        ..Pool::default()
    };
    let mut health: Option<Vec<Key>> = None;
    let mut agents = Agents::default();
    for line in section
        .lines
        .iter()
        .filter(|line| line.keyword() == "server")
    {
        let mut own = ServerOptions::default();
        own.read(line.words().get(3..).unwrap_or_default(), context.ledger);
        own.explain(context.ledger);
        let mut effective = settings.servers.clone();
        effective.read(line.words().get(3..).unwrap_or_default(), context.ledger);
        let mut server = server::backend(line, &effective, context.options, context.ledger);
        if let Some(server) = &mut server {
            server.keys.extend(agents.add(&effective, context.ledger));
        }
        let keys = settings
            .checks
            .keys(&effective, context.options, &context.user, context.ledger);
        let is_used = server.is_some();
        if let (true, Some(set)) = (is_used, effective.get("slowstart")) {
            slow_start(set, &mut pool.keys, context.ledger);
        }
        pool.servers.extend(server);
        match &health {
            None if is_used => health = Some(keys),
            None => {}
            // The first one's checks are the service's.
            Some(first) => differences(first, &keys, context.ledger),
        }
    }
    if !pool.servers.is_empty() {
        settings.servers.explain(context.ledger);
    }
    if let Some(words) = &settings.all_backups {
        pool.keys.push(Key::new("use_all_backups", "true", words));
    }
    pool.health = health.unwrap_or_else(|| vec![Key::text("type", "none", &[])]);
    agents.finish(&mut pool.health, &mut pool.servers, context.ledger);
    pool
}

/// The first server's `slowstart` is the service's.
fn slow_start(set: &Set, keys: &mut Vec<Key>, ledger: &Ledger) {
    let longest = Duration::from_hours(1);
    let Some(time) = time::time(&set.value).filter(|time| *time <= longest) else {
        ledger.by_hand(&set.words, "write 0s..60m as service.slow_start");
        return;
    };
    let millis = u64::try_from(time.as_millis()).unwrap_or_default();
    let key = Key::duration("slow_start", Duration::from_millis(millis), &set.words);
    match keys.iter().find(|other| other.name() == "slow_start") {
        None => keys.push(key),
        Some(other) if other.says_same(&key) => key.claim(ledger, "service"),
        Some(_) => ledger.by_hand(
            &set.words,
            "not as for the first server: xvip has one slow_start for a service; choose one",
        ),
    }
}

/// Claims the checks of a further server: xvip asks all backends of a service alike.
fn differences(first: &[Key], keys: &[Key], ledger: &Ledger) {
    for key in keys {
        if first.iter().any(|other| other.says_same(key)) {
            key.claim(ledger, "service.health");
        } else {
            let what = "not as for the first server: xvip checks all backends of a service alike; choose one";
            ledger.by_hand(&key.words(), what);
        }
    }
    let lost = first
        .iter()
        .any(|other| !keys.iter().any(|key| key.name() == other.name()));
    if lost && keys.len() == 1 {
        ledger.derived(super::Fate::NoEquivalent(
            "a server without check is checked like the others of its service".to_owned(),
        ));
    }
}

/// The service of a `frontend` or `listen`.
fn service(
    section: &Section,
    settings: &Settings,
    backends: &Backends<'_>,
    context: &Context<'_>,
) -> Option<Service> {
    let ledger = context.ledger;
    let name = section.head.word(1);
    let mut binds = Vec::new();
    for line in section.lines.iter().filter(|line| line.keyword() == "bind") {
        binds.extend(bind(line, ledger));
    }
    let find = |name: &str| {
        let (section, settings) = backends.get(name)?;
        Some(pool(section, settings, context))
    };
    let is_listen = section.head.keyword() == "listen";
    let mut pool = if is_listen { find(name) } else { None };
    if let Some((backend, words)) = &settings.backend
        && pool.as_ref().is_none_or(|pool| pool.servers.is_empty())
    {
        pool = find(backend);
        match &pool {
            Some(found) => {
                ledger.mapped(words, "the backends of the service");
                ledger.none(&found.head, "part of the service that uses it");
            }
            None => ledger.by_hand(words, "no imported section has this name"),
        }
    }
    let mut pool = pool.unwrap_or_default();
    if binds.is_empty() || pool.servers.is_empty() {
        let what = if binds.is_empty() {
            "no service is made of it: it listens on nothing that a VIP can be"
        } else {
            "no service is made of it: it has no server that a backend can be"
        };
        ledger.by_hand(&section.head.ids(), what);
        return None;
    }
    let sources = settings.rules.resolve(ledger);
    pool.keys.extend(sources.limit);
    Some(Service {
        name: plan::name(name, "service"),
        words: section.head.first(2),
        binds,
        keys: pool.keys,
        sources: sources.rules,
        health: pool.health,
        servers: pool.servers,
        comments: Vec::new(),
    })
}

/// `bind ADDRESS:PORT[,...] [OPTION]...`
fn bind(line: &Line, ledger: &Ledger) -> Vec<Bind> {
    ledger.none(&line.first(1), "its addresses follow");
    let options = line.words().get(2..).unwrap_or_default();
    let mut v6only = false;
    let mut ends_tls = false;
    let mut words = options.iter();
    while let Some(word) = words.next() {
        v6only |= word.text == "v6only";
        ends_tls |= word.text == "ssl";
        let Some((count, known)) = words::bind(&word.text) else {
            continue; // Left over: reported as unknown.
        };
        let mut ids = vec![word.id];
        ids.extend(words.by_ref().take(count).map(|value| value.id));
        match known {
            Known::Nothing(why) => ledger.none(&ids, why),
            Known::ByHand(what) => ledger.by_hand(&ids, what),
        }
    }
    let Some(word) = line.words().get(1) else {
        return Vec::new();
    };
    if ends_tls {
        let what = "not imported: this listener ends TLS, which xvip does not";
        ledger.by_hand(&[word.id], what);
        return Vec::new();
    }
    let mut binds = Vec::new();
    for address in word.text.split(',') {
        match bind_address(address, v6only) {
            Ok(places) => binds.extend(places.into_iter().map(|(listen, port)| Bind {
                listen,
                port,
                words: vec![word.id],
            })),
            Err(what) => ledger.by_hand(&[word.id], what),
        }
    }
    ledger.recognise(&[word.id]);
    binds
}

/// Ports of one range: more are a mistake, or nothing that a service should be.
const MAX_PORTS: u16 = 16;

fn bind_address(text: &str, v6only: bool) -> Result<Vec<(Listen, u16)>, String> {
    let (text, family) = match text.split_once('@') {
        Some(("ipv4", rest)) => (rest, Some(4)),
        Some(("ipv6", rest)) => (rest, Some(6)),
        Some(_) => return Err(format!("{text:?} is no address and port")),
        None => (text, None),
    };
    let (host, ports) = split_port(text);
    let ports = ports.ok_or_else(|| format!("{text:?} has no port"))?;
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let (Some(first), Some(last)) = (port(first), port(last)) else {
        return Err(format!(
            "{ports:?} are no ports: write a [[service]] for each"
        ));
    };
    if last < first || last - first >= MAX_PORTS {
        return Err(format!(
            "{ports} are too many ports: write a [[service]] for each that is used"
        ));
    }
    let listen = match host {
        "" | "*" | "0.0.0.0" if family != Some(6) => Listen::Any {
            v4: true,
            v6: false,
        },
        "" | "*" | "::" => Listen::Any {
            v4: family.is_none() && !v6only,
            v6: true,
        },
        host => match host.parse::<std::net::IpAddr>() {
            Ok(address) if address.is_loopback() => {
                return Err(
                    "not imported: processes of this node reach the VIP, from where they are sent to a \
                     backend at connect(); let them use that"
                        .to_owned(),
                );
            }
            Ok(address) => Listen::At(address),
            Err(_) => return Err(format!("{host:?} is no address: write that of a VIP")),
        },
    };
    Ok((first..=last).map(|port| (listen.clone(), port)).collect())
}

/// Statuses and ranges of them, where `expect_status` can have any of them.
pub(super) fn statuses<'a>(parts: impl IntoIterator<Item = &'a str>) -> Option<BTreeSet<u16>> {
    let mut wanted = BTreeSet::new();
    for part in parts {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
        wanted.extend(first.max(200)..=last.min(599));
    }
    (!wanted.is_empty()).then_some(wanted)
}

/// `expect_status`, with neighbours as ranges.
pub(super) fn spelled_statuses(wanted: &BTreeSet<u16>) -> Option<String> {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for &status in wanted {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == status => *last = status,
            _ => ranges.push((status, status)),
        }
    }
    let text = |(first, last): (u16, u16)| {
        if first == last {
            first.to_string()
        } else {
            format!("\"{first}-{last}\"")
        }
    };
    let elements: Vec<_> = ranges.into_iter().map(text).collect();
    (!elements.is_empty()).then(|| format!("[{}]", elements.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The forms in which listeners are written.
    #[test]
    fn reads_addresses_of_listeners() {
        let any = |v4, v6| Listen::Any { v4, v6 };
        for (text, v6only, expected) in [
            ("*:6443", false, any(true, false)),
            (":6443", false, any(true, false)),
            ("0.0.0.0:6443", false, any(true, false)),
            (":::6443", false, any(true, true)),
            ("[::]:6443", false, any(true, true)),
            (":::6443", true, any(false, true)),
            ("ipv6@:6443", false, any(false, true)),
            (
                "10.0.0.1:6443",
                false,
                Listen::At("10.0.0.1".parse().unwrap()),
            ),
            (
                "fd00::1:6443",
                false,
                Listen::At("fd00::1".parse().unwrap()),
            ),
        ] {
            assert_eq!(
                bind_address(text, v6only),
                Ok(vec![(expected, 6443)]),
                "{text}"
            );
        }
        for text in [
            "",
            "*",
            "*:0",
            "*:x",
            "/run/x.sock",
            "unix@/x",
            "127.0.0.1:1",
            "*:1-65535",
            "*:9-8",
        ] {
            assert!(bind_address(text, false).is_err(), "{text}");
        }
        assert_eq!(bind_address("*:10-12", false).unwrap().len(), 3);
    }

    /// Each status once, and neighbours as ranges.
    #[test]
    fn spells_statuses() {
        let spelled =
            |parts: &[&str]| statuses(parts.iter().copied()).and_then(|all| spelled_statuses(&all));
        assert_eq!(
            spelled(&["200", "401", "200"]).as_deref(),
            Some("[200, 401]")
        );
        assert_eq!(spelled(&["?"]), None);
        assert_eq!(spelled(&["100-150"]), None);
        let joined = spelled(&["200-299", "250-399", "100-200"]);
        assert_eq!(joined.as_deref(), Some("[\"200-399\"]"));
    }
}

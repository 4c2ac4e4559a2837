//! How haproxy checks servers, as keys of `[service.health]`.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use super::{
    super::{
        Options,
        document::Key,
        ledger::{Ledger, Word, WordId},
    },
    parse::Line,
    server::{ServerOptions, Set},
    spelled_statuses, statuses,
    time::check_time,
    words::{self, Known},
};

/// Steps of one check, as `service.health.steps` takes them.
const MAX_STEPS: usize = 32;
/// haproxy's default of `inter`.
const INTER: Duration = Duration::from_secs(2);

/// What becomes of steps that `service.health.steps` does not have.
const NO_STEP: &str = "xvip's checks have no such step: see whether they can do without, or let a program check \
                       (type = \"command\")";

/// What becomes of a further connection or request.
const ONE_QUESTION: &str = "xvip's checks have one connection and one request: choose the ones that matter, or let a program \
                            check (type = \"command\")";

/// Whom haproxy runs as, and the words that say it.
pub(super) type User = (String, Vec<WordId>);
/// A value and the words that say it.
type Said<T> = Option<(T, Vec<WordId>)>;

/// Options of an expectation that are about how a result is reported, or save work.
const OF_REPORTS: [&str; 8] = [
    "min-recv",
    "comment",
    "ok-status",
    "error-status",
    "tout-status",
    "on-success",
    "on-error",
    "status-code",
];

/// What kind of check a section asks for; the last one counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Connect,
    Hello,
    Http,
    Tcp,
    Command,
    Other,
}

/// What a section and its defaults say about checks.
#[derive(Clone, Debug, Default)]
pub(super) struct Checks {
    kind: Kind,
    kind_words: Vec<WordId>,
    method: Said<String>,
    path: Said<String>,
    host: Said<String>,
    tls: Vec<WordId>,
    /// Whether a `connect` takes nothing from the server's line.
    connects_plainly: bool,
    /// Rules of an HTTP check that can be there once, and whether they are over.
    seen: BTreeSet<&'static str>,
    is_over: bool,
    port: Said<u16>,
    address: Said<IpAddr>,
    name: Said<String>,
    statuses: Said<BTreeSet<u16>>,
    body: Option<Key>,
    headers: Vec<(String, String, Vec<WordId>)>,
    steps: Vec<(String, Vec<WordId>)>,
    command: Said<String>,
    timeout: Said<Duration>,
    /// What is there comes from `defaults`.
    is_inherited: bool,
}

impl Checks {
    /// A section begins with the checks of its defaults.
    pub(super) fn inherited(&mut self) {
        self.is_inherited = true;
    }

    /// A section's own rules replace those of its defaults.
    fn own_rules(&mut self) {
        if std::mem::take(&mut self.is_inherited) {
            self.headers.clear();
            self.steps.clear();
            self.tls.clear();
            self.connects_plainly = false;
            self.seen.clear();
            self.is_over = false;
            self.port = None;
            self.address = None;
            self.name = None;
            self.statuses = None;
            self.body = None;
        }
    }

    /// `timeout check TIME`
    pub(super) fn timeout(&mut self, line: &Line, ledger: &Ledger) {
        match check_time(line.word(2)) {
            Some(time) => {
                ledger.recognise(&line.first(3));
                self.timeout = Some((time, line.first(3)));
            }
            None => ledger.by_hand(&line.ids(), "write 10ms..10m as service.health.timeout"),
        }
    }

    /// `option NAME ...`, where it is about checks. Whether it was.
    pub(super) fn option(&mut self, line: &Line, ledger: &Ledger) -> bool {
        let kind = match line.word(1) {
            "external-check" => Kind::Command,
            "httpchk" => Kind::Http,
            "ssl-hello-chk" => Kind::Hello,
            "tcp-check" => Kind::Tcp,
            "smtpchk" | "ldap-check" | "mysql-check" | "pgsql-check" | "redis-check"
            | "spop-check" => Kind::Other,
            _ => return false,
        };
        if !self.kind_words.is_empty() {
            let why = "a later option of this kind replaces it, in haproxy as well";
            ledger.none(&self.kind_words, why);
        }
        self.kind = kind;
        self.kind_words = line.first(2);
        match kind {
            Kind::Http => self.http_option(line, ledger),
            Kind::Other => {
                if let Some(Known::ByHand(what)) = words::option(line.word(1)) {
                    ledger.by_hand(&line.ids(), what);
                }
            }
            _ => ledger.recognise(&line.first(2)),
        }
        true
    }

    /// `option httpchk [[METHOD] PATH [VERSION]]`; after the version there may be headers.
    fn http_option(&mut self, line: &Line, ledger: &Ledger) {
        ledger.recognise(&line.ids());
        let said = |index: usize| {
            let word = line.words().get(index)?;
            Some((word.text.clone(), vec![word.id]))
        };
        match line.words().len() {
            0..=2 => {}
            3 => self.path = said(2),
            _ => {
                self.method = said(2);
                self.path = said(3);
            }
        }
        let version: Vec<_> = line.words().iter().skip(4).collect();
        let text: Vec<_> = version.iter().map(|word| word.text.as_str()).collect();
        let ids: Vec<_> = version.iter().map(|word| word.id).collect();
        let mut text = text.join(" ");
        text.retain(|c| c != '\r');
        let mut lines = text.lines();
        if lines.next().is_none() {
            return;
        }
        let mut unknown = false;
        for header in lines {
            match header.split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("host") => {
                    self.host = Some((value.trim().to_owned(), ids.clone()));
                }
                Some((name, value)) if is_header(name) => {
                    let value = value.trim().to_owned();
                    self.headers.push((name.to_owned(), value, ids.clone()));
                }
                _ => unknown = true,
            }
        }
        if unknown {
            ledger.by_hand(&ids, "write service.health.headers");
        } else if self.host.is_none() && self.headers.is_empty() {
            ledger.none(&ids, "xvip asks with HTTP/1.1");
        }
    }

    /// `external-check command PATH`, which gets where the service and the server are.
    pub(super) fn external(&mut self, line: &Line, ledger: &Ledger) {
        let program = line.word(2);
        match line.word(1) {
            "command" if program.starts_with('/') => {
                ledger.recognise(&line.first(3));
                self.command = Some((program.to_owned(), line.first(3)));
            }
            "path" => ledger.by_hand(
                &line.ids(),
                "let the program set its own PATH: xvip starts it with an absolute path",
            ),
            _ => ledger.by_hand(
                &line.ids(),
                "write service.health.command with an absolute path",
            ),
        }
    }

    /// `http-check ...`
    pub(super) fn http_check(&mut self, line: &Line, ledger: &Ledger) {
        self.own_rules();
        if self.is_second(line.word(1), &["connect", "send"]) {
            return ledger.by_hand(&line.ids(), ONE_QUESTION);
        }
        ledger.recognise(&line.first(2));
        let rest = line.words().get(2..).unwrap_or_default();
        match line.word(1) {
            "connect" => self.connect(rest, ledger),
            "send" => self.send(rest, ledger),
            "expect" => self.expect(line, rest, ledger),
            "disable-on-404" => ledger.none(
                &line.ids(),
                "a backend that answers with a wrong status drains: its connections stay",
            ),
            "send-state" | "comment" => ledger.none(&line.ids(), "xvip sends no such header"),
            _ => ledger.by_hand(&line.ids(), NO_STEP),
        }
        if matches!(line.word(1), "connect" | "send" | "expect") {
            ledger.none(&line.first(2), "its parts follow");
        }
    }

    /// Whether a rule comes after one of `once` that is there already.
    fn is_second(&mut self, rule: &str, once: &[&'static str]) -> bool {
        if let Some(&rule) = once.iter().find(|&&one| one == rule) {
            self.is_over |= !self.seen.insert(rule);
        }
        self.is_over
    }

    /// `connect [ssl] [sni NAME] [port N] ...`
    fn connect(&mut self, words: &[Word], ledger: &Ledger) {
        self.connects_plainly = !words.iter().any(|word| word.text == "default");
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let ids = |value: Option<&Word>| {
                let mut ids = vec![word.id];
                ids.extend(value.map(|value| value.id));
                ids
            };
            match word.text.as_str() {
                "ssl" => {
                    self.tls = vec![word.id];
                    ledger.recognise(&self.tls);
                }
                "default" | "linger" => {
                    ledger.none(&[word.id], "xvip's checks need no such option");
                }
                "send-proxy" => ledger.by_hand(&[word.id], "xvip's checks send no PROXY header"),
                "via-socks4" => ledger.by_hand(&[word.id], "xvip's checks use no proxy"),
                "port" => {
                    let value = words.next();
                    let port = value.and_then(|value| value.text.parse::<u16>().ok());
                    match port {
                        Some(port) if port > 0 => self.port = Some((port, ids(value))),
                        _ => ledger.by_hand(&ids(value), "write service.health.port"),
                    }
                    ledger.recognise(&ids(value));
                }
                "sni" => {
                    let value = words.next();
                    self.name = value.map(|value| (value.text.clone(), ids(Some(value))));
                    ledger.recognise(&ids(value));
                }
                "alpn" | "proto" => ledger.none(&ids(words.next()), "xvip asks with HTTP/1.1"),
                "addr" => {
                    let value = words.next();
                    let address = value.and_then(|value| value.text.parse::<IpAddr>().ok());
                    match address {
                        Some(address) => self.address = Some((address, ids(value))),
                        None => ledger.by_hand(&ids(value), "write service.health.address"),
                    }
                    ledger.recognise(&ids(value));
                }
                "comment" => ledger.none(&ids(words.next()), "a comment"),
                _ => {}
            }
        }
    }

    /// `send [meth M] [uri U] [ver V] [hdr N V]... [body B]`
    fn send(&mut self, words: &[Word], ledger: &Ledger) {
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut next = |count: usize| -> Vec<&Word> { words.by_ref().take(count).collect() };
            let with = |values: &[&Word]| {
                let mut ids = vec![word.id];
                ids.extend(values.iter().map(|value| value.id));
                ids
            };
            match word.text.as_str() {
                "meth" | "uri" => {
                    let values = next(1);
                    let said = values
                        .first()
                        .map(|value| (value.text.clone(), with(&values)));
                    ledger.recognise(&with(&values));
                    if word.text == "meth" {
                        self.method = said;
                    } else {
                        self.path = said;
                    }
                }
                "ver" => ledger.none(&with(&next(1)), "xvip asks with HTTP/1.1"),
                "hdr" => {
                    let values = next(2);
                    let ids = with(&values);
                    match values.as_slice() {
                        [name, value] if name.text.eq_ignore_ascii_case("host") => {
                            ledger.recognise(&ids);
                            self.host = Some((value.text.clone(), ids));
                        }
                        [name, _] if name.text.eq_ignore_ascii_case("connection") => {
                            ledger.none(&ids, "xvip says itself whether it keeps the connection");
                        }
                        [name, value] if is_header(&name.text) => {
                            ledger.recognise(&ids);
                            let (name, value) = (name.text.clone(), value.text.clone());
                            self.headers.push((name, value, ids));
                        }
                        _ => ledger.by_hand(&ids, "write service.health.headers"),
                    }
                }
                "body" | "body-lf" | "uri-lf" | "hdr-lf" => {
                    let count = if word.text == "hdr-lf" { 2 } else { 1 };
                    ledger.by_hand(
                        &with(&next(count)),
                        "xvip's checks send no body and no log format",
                    );
                }
                "comment" => ledger.none(&with(&next(1)), "a comment"),
                _ => {}
            }
        }
    }

    /// `expect [OPTION]... [!] MATCH PATTERN`
    fn expect(&mut self, line: &Line, words: &[Word], ledger: &Ledger) {
        let mut words = words.iter();
        let mut negation: Vec<WordId> = Vec::new();
        while let Some(word) = words.next() {
            let negated = !negation.is_empty();
            match word.text.as_str() {
                "!" => {
                    negation = vec![word.id];
                    ledger.recognise(&negation);
                }
                "status" | "rstatus" => {
                    let pattern = words.next();
                    let mut ids = std::mem::take(&mut negation);
                    ids.push(word.id);
                    ids.extend(pattern.map(|pattern| pattern.id));
                    let pattern = pattern.map_or("", |pattern| pattern.text.as_str());
                    let wanted = if word.text == "rstatus" {
                        by_pattern(pattern)
                    } else {
                        statuses(pattern.split(','))
                    };
                    match wanted {
                        Some(wanted) => {
                            ledger.recognise(&ids);
                            self.expect_statuses(&wanted, negated, ids);
                        }
                        None => ledger.by_hand(&ids, "write service.health.expect_status"),
                    }
                }
                "string" | "rstring" if !negated => self.expect_text(word, words.next(), ledger),
                report if OF_REPORTS.contains(&report) => {
                    let mut ids = vec![word.id];
                    ids.extend(words.next().map(|value| value.id));
                    ledger.none(&ids, "it is about the text of a result, or an optimisation");
                }
                _ => {
                    let what = "xvip's checks look at the status, and for a text in the body: write \
                                service.health.expect_status, expect_body or expect_body_regex";
                    ledger.by_hand(&line.ids(), what);
                    return;
                }
            }
        }
    }

    /// All rules must fit, so what a status must be is what all of them take.
    fn expect_statuses(&mut self, wanted: &BTreeSet<u16>, negated: bool, words: Vec<WordId>) {
        let fits = |status: &u16| wanted.contains(status) != negated;
        let fitting: BTreeSet<u16> = match &self.statuses {
            Some((before, _)) => before.iter().copied().filter(fits).collect(),
            None => (200..=599).filter(fits).collect(),
        };
        let before = self.statuses.take().map(|(_, words)| words);
        let words = before.into_iter().flatten().chain(words).collect();
        self.statuses = Some((fitting, words));
    }

    /// `string TEXT` or `rstring PATTERN` of an answer's body.
    fn expect_text(&mut self, word: &Word, pattern: Option<&Word>, ledger: &Ledger) {
        let mut ids = vec![word.id];
        ids.extend(pattern.map(|pattern| pattern.id));
        let text = pattern.map_or("", |pattern| pattern.text.as_str());
        let is_text = word.text == "string";
        if text.is_empty() || (!is_text && regex::Regex::new(text).is_err()) {
            ledger.by_hand(
                &ids,
                "write service.health.expect_body or expect_body_regex",
            );
            return;
        }
        let key = if is_text {
            "expect_body"
        } else {
            "expect_body_regex"
        };
        ledger.recognise(&ids);
        self.body = Some(Key::text(key, text, &ids));
    }

    /// `tcp-check ...`
    pub(super) fn tcp_check(&mut self, line: &Line, ledger: &Ledger) {
        self.own_rules();
        if self.is_second(line.word(1), &["connect"]) {
            return ledger.by_hand(&line.ids(), ONE_QUESTION);
        }
        // What stands around the match of an expectation says how to report it.
        let mut at = 2;
        while line.word(1) == "expect" && OF_REPORTS.contains(&line.word(at)) {
            at += 2;
        }
        let (key, last) = match (line.word(1), line.word(at)) {
            ("connect", _) => {
                self.connect(line.words().get(2..).unwrap_or_default(), ledger);
                ledger.none(&line.first(2), "its parts follow");
                return;
            }
            ("comment", _) => {
                ledger.none(&line.ids(), "a comment");
                return;
            }
            ("send", _) => ("send", 2),
            ("send-binary", _) => ("send_hex", 2),
            ("expect", "string") => ("expect", at + 1),
            ("expect", "binary") => ("expect_hex", at + 1),
            ("expect", "rstring") => ("expect_regex", at + 1),
            _ => ("", 2),
        };
        let text = line.word(last);
        let mut after = last + 1;
        while OF_REPORTS.contains(&line.word(after)) {
            after += 2;
        }
        let is_whole = after >= line.words().len();
        let is_hex = !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit());
        let is_good = match key {
            "" => false,
            "send_hex" | "expect_hex" => is_hex && text.len().is_multiple_of(2),
            "expect_regex" => !text.is_empty() && regex::Regex::new(text).is_ok(),
            _ => !text.is_empty(),
        };
        if is_good && is_whole && self.steps.len() < MAX_STEPS {
            ledger.recognise(&line.ids());
            let text = super::super::document::quoted(text);
            self.steps
                .push((format!("{{ {key} = {text} }}"), line.ids()));
        } else {
            ledger.by_hand(&line.ids(), NO_STEP);
        }
    }

    /// Keys of `[service.health]` for a server with these options.
    pub(super) fn keys(
        &self,
        server: &ServerOptions,
        options: &Options<'_>,
        user: &User,
        ledger: &Ledger,
    ) -> Vec<Key> {
        let Some(check) = server.get("check") else {
            return vec![Key::text("type", "none", &[])];
        };
        // What is checked elsewhere does not speak TLS because the service does.
        let is_elsewhere = server.has("port") || server.has("addr");
        let of_traffic = server.get("ssl").filter(|_| !is_elsewhere);
        let own_tls = server.get("check-ssl").or(of_traffic);
        let own_tls = own_tls.filter(|_| !server.has("no-check-ssl") && !self.connects_plainly);
        if let Some(set) = server.get("check-ssl").filter(|_| self.connects_plainly) {
            let why =
                "a connect rule that does not say default takes nothing from the server's line";
            ledger.none(&set.words, why);
        }
        let tls = own_tls.is_some() || !self.tls.is_empty();
        if let (Kind::Command, Some((program, words))) = (self.kind, &self.command) {
            if options.is_readable(program) {
                return self.command_keys((program, words), user, server, ledger);
            }
            let what =
                "cannot be read here: write type = \"command\" and command into [service.health]";
            ledger.by_hand(words, what);
        }
        let kind = match (self.kind, tls) {
            (Kind::Http, true) => "https",
            (Kind::Http, false) => "http",
            (Kind::Hello, _) | (Kind::Connect | Kind::Tcp, true) => "tls",
            (Kind::Connect | Kind::Tcp, false) | (Kind::Other | Kind::Command, _) => "tcp",
        };
        let mut words = self.kind_words.clone();
        if self.kind == Kind::Other {
            words.clear();
        }
        words.extend(&check.words);
        words.extend(&self.tls);
        words.extend(own_tls.into_iter().flat_map(|set| &set.words));
        let mut keys = vec![Key::text("type", kind, &words)];
        self.target_keys(&mut keys);
        if self.kind == Kind::Http {
            self.http_keys(ledger, &mut keys);
            connection_keys(server, kind, &mut keys);
        }
        if kind == "https" || kind == "tls" {
            self.tls_keys(server, options, ledger, &mut keys);
        }
        if self.kind == Kind::Tcp && !self.steps.is_empty() {
            keys.push(Key::values("steps", self.steps.clone()));
        }
        self.time_keys(server, ledger, &mut keys);
        keys
    }

    /// Keys of a check by a program.
    fn command_keys(
        &self,
        (program, words): (&str, &[WordId]),
        (user, of_user): &User,
        server: &ServerOptions,
        ledger: &Ledger,
    ) -> Vec<Key> {
        let mut of_type = self.kind_words.clone();
        of_type.extend(server.get("check").into_iter().flat_map(|set| &set.words));
        let program = super::super::document::quoted(program);
        let command =
            format!("[{program}, \"{{vip}}\", \"{{vip_port}}\", \"{{address}}\", \"{{port}}\"]");
        let mut keys = vec![
            Key::text("type", "command", &of_type),
            Key::new("command", command, words),
            Key::text("user", user, of_user),
        ];
        self.time_keys(server, ledger, &mut keys);
        keys
    }

    /// Where all servers are asked; one's own `port` and `addr` are keys of its backend.
    fn target_keys(&self, keys: &mut Vec<Key>) {
        if let Some((port, words)) = &self.port {
            keys.push(Key::new("port", port.to_string(), words));
        }
        if let Some((address, words)) = &self.address {
            keys.push(Key::text("address", &address.to_string(), words));
        }
    }

    /// Headers of the request beside `Host`.
    fn headers(&self) -> Option<Key> {
        let quoted = super::super::document::quoted;
        let pairs = self.headers.iter();
        let pairs = pairs.map(|(name, value, _)| format!("{} = {}", quoted(name), quoted(value)));
        let pairs: Vec<_> = pairs.collect();
        let words: Vec<_> = self
            .headers
            .iter()
            .flat_map(|(_, _, words)| words)
            .copied()
            .collect();
        (!pairs.is_empty())
            .then(|| Key::new("headers", format!("{{ {} }}", pairs.join(", ")), &words))
    }

    fn http_keys(&self, ledger: &Ledger, keys: &mut Vec<Key>) {
        let (path, words) = match &self.path {
            Some((path, words)) => (path.as_str(), words.as_slice()),
            None => ("/", &[][..]),
        };
        keys.push(Key::text("path", path, words));
        let method = self
            .method
            .as_ref()
            .map_or("OPTIONS", |(method, _)| method.as_str());
        let method_words = self
            .method
            .as_ref()
            .map(|(_, words)| words.clone())
            .unwrap_or_default();
        match method {
            "GET" => ledger.none(&method_words, "xvip asks with GET"),
            "HEAD" | "OPTIONS" => {
                keys.push(Key::text("method", method, &method_words));
            }
            _ => ledger.by_hand(&method_words, "xvip asks with GET"),
        }
        if let Some((host, words)) = &self.host {
            keys.push(Key::text("host", host, words));
        }
        if let Some((statuses, words)) = &self.statuses {
            match spelled_statuses(statuses) {
                Some(statuses) => keys.push(Key::new("expect_status", statuses, words)),
                None => ledger.by_hand(words, "no status fits: write service.health.expect_status"),
            }
        } else {
            // haproxy's defaults: with a question about the text the status does not matter.
            let any = if self.body.is_some() {
                "200-599"
            } else {
                "200-399"
            };
            let statuses = format!("[\"{any}\"]");
            keys.push(Key::new("expect_status", statuses, &[]));
        }
        keys.extend(self.body.clone());
        keys.extend(self.headers());
    }

    fn tls_keys(
        &self,
        server: &ServerOptions,
        options: &Options<'_>,
        ledger: &Ledger,
        keys: &mut Vec<Key>,
    ) {
        let readable = |set: &Set| options.is_readable(&set.value);
        let verify = server.get("verify");
        let asks = verify.is_none_or(|set| set.value == "required");
        match server.get("ca-file") {
            Some(ca) if asks && readable(ca) => {
                let words = verify.map(|set| set.words.as_slice()).unwrap_or_default();
                keys.push(Key::text("verify", "ca", words));
                keys.push(Key::text("ca_file", &ca.value, &ca.words));
            }
            Some(ca) if asks => ledger.by_hand(
                &ca.words,
                "cannot be read here: write verify = \"ca\" and ca_file into [service.health]",
            ),
            Some(ca) => ledger.none(&ca.words, "verify none: any certificate will do"),
            None => {}
        }
        if let Some(set) = verify {
            match set.value.as_str() {
                "none" => keys.push(Key::text("verify", "none", &set.words)),
                _ if keys.iter().any(|key| key.name() == "verify") => {}
                _ => ledger.by_hand(
                    &set.words,
                    "write verify = \"ca\" and ca_file into [service.health]",
                ),
            }
        }
        let own = server.get("check-sni").or_else(|| server.get("verifyhost"));
        let name = own.map(|set| (set.value.as_str(), &set.words));
        let name = name.or_else(|| {
            self.name
                .as_ref()
                .map(|(name, words)| (name.as_str(), words))
        });
        if let Some((name, words)) = name {
            keys.push(Key::text("server_name", name, words));
        } else if let Some(ca) = keys.iter().find(|key| key.name() == "ca_file") {
            let what = "haproxy does not look at the names in the certificates here; xvip wants the address that it asks in \
                        them, or what server_name says: see that it is there";
            ledger.by_hand(&ca.words(), what);
        }
        if let Some(set) = server.get("crt") {
            if readable(set) {
                keys.push(Key::text("client_cert_file", &set.value, &set.words));
                keys.push(Key::text("client_key_file", &set.value, &set.words));
            } else {
                ledger.by_hand(
                    &set.words,
                    "cannot be read here: write client_cert_file and client_key_file into [service.health]",
                );
            }
        }
        if server
            .get("ssl-min-ver")
            .is_some_and(|set| set.value == "TLSv1.3")
            || server.has("force-tlsv13")
        {
            let names = ["ssl-min-ver", "force-tlsv13"];
            let words = names.iter().filter_map(|name| server.get(name));
            let words: Vec<_> = words.flat_map(|set| &set.words).copied().collect();
            keys.push(Key::text("tls_min", "1.3", &words));
        }
        let is_h2 = keys.iter().any(|key| key.name() == "http_version");
        for name in ["alpn", "check-alpn", "check-proto", "sni"] {
            if let Some(set) = server
                .get(name)
                .filter(|_| !(is_h2 && name == "check-alpn"))
            {
                ledger.none(
                    &set.words,
                    "checks use HTTP/1.1, and service.health.server_name as name",
                );
            }
        }
    }

    fn time_keys(&self, server: &ServerOptions, ledger: &Ledger, keys: &mut Vec<Key>) {
        let time = |name: &str| {
            let set = server.get(name)?;
            let time = check_time(&set.value);
            if time.is_none() {
                ledger.by_hand(
                    &set.words,
                    "write a time of 10ms..10m into [service.health]",
                );
            }
            Some((time?, set.words.clone()))
        };
        let inter = time("inter");
        let interval = inter.as_ref().map_or(INTER, |(time, _)| *time);
        keys.extend(inter.map(|(time, words)| Key::duration("interval", time, &words)));
        // Without `timeout check` the interval bounds a check.
        let (timeout, words) = match &self.timeout {
            Some((timeout, words)) => (*timeout, words.clone()),
            None => (interval, Vec::new()),
        };
        keys.push(Key::duration("timeout", timeout, &words));
        let (fast, words) = time("fastinter").unwrap_or((interval, Vec::new()));
        if fast > interval {
            ledger.by_hand(
                &words,
                "xvip's is at most service.health.interval, which is written",
            );
        }
        keys.push(Key::duration("fast_interval", fast.min(interval), &words));
        if let Some((down, words)) = time("downinter") {
            keys.push(Key::duration("down_interval", down, &words));
        }
        if let Some(set) = server.get("init-state") {
            let start = match set.value.as_str() {
                "down" | "fully-down" => Some("down"),
                "fully-up" => Some("up"),
                _ => None,
            };
            keys.extend(start.map(|start| Key::text("start", start, &set.words)));
        }
        for name in ["rise", "fall"] {
            let Some(set) = server.get(name) else {
                continue;
            };
            match set.value.parse::<u32>() {
                Ok(count @ 1..=100) => {
                    let name = if name == "rise" { "rise" } else { "fall" };
                    keys.push(Key::new(name, count.to_string(), &set.words));
                }
                _ => ledger.by_hand(&set.words, "write 1..100 into [service.health]"),
            }
        }
    }
}

/// How an HTTP check uses its connection, where the server's options say it.
fn connection_keys(server: &ServerOptions, kind: &str, keys: &mut Vec<Key>) {
    let of_version = if kind == "https" {
        "check-alpn"
    } else {
        "check-proto"
    };
    if let Some(set) = server.get(of_version).filter(|set| set.value == "h2") {
        keys.push(Key::text("http_version", "2", &set.words));
    }
    // What takes it back also takes it out: both are there only if it came later.
    let reuse = [
        ("check-reuse-pool", "true"),
        ("no-check-reuse-pool", "false"),
    ];
    let reuse = reuse
        .into_iter()
        .find_map(|(name, value)| Some((server.get(name)?, value)));
    keys.extend(reuse.map(|(set, value)| Key::new("keep_alive", value, &set.words)));
}

/// Whether it can be in `headers`: it is a name, and not about how the message is sent.
fn is_header(name: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let sent = [
        "connection",
        "content-length",
        "transfer-encoding",
        "upgrade",
        "host",
    ];
    !name.is_empty()
        && name.chars().all(is_name)
        && !sent.iter().any(|other| name.eq_ignore_ascii_case(other))
}

/// The statuses that a regular expression finds, if it is one that xvip has as well.
fn by_pattern(pattern: &str) -> Option<BTreeSet<u16>> {
    let pattern = regex::Regex::new(pattern).ok()?;
    let fits = |status: &u16| pattern.is_match(&status.to_string());
    let fitting: BTreeSet<u16> = (200..=599).filter(fits).collect();
    (!fitting.is_empty()).then_some(fitting)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Patterns for statuses as they stand in real files.
    #[test]
    fn understands_patterns_of_statuses() {
        let statuses =
            |pattern| by_pattern(pattern).and_then(|statuses| spelled_statuses(&statuses));
        assert_eq!(
            statuses("(2|3)[0-9][0-9]").as_deref(),
            Some("[\"200-399\"]")
        );
        assert_eq!(statuses("^2..").as_deref(), Some("[\"200-299\"]"));
        assert_eq!(statuses("200").as_deref(), Some("[200]"));
        let several = statuses("[2-3]0[01]");
        assert_eq!(several.as_deref(), Some("[\"200-201\", \"300-301\"]"));
        let alternatives = statuses("^(200|401|403)$");
        assert_eq!(alternatives.as_deref(), Some("[200, 401, 403]"));
        assert_eq!(statuses("x+"), None);
        assert_eq!(statuses("(2"), None);
    }
}

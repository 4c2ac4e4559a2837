//! Check scripts: the patterns of guides for kubeadm, which ask the node's own apiserver or the
//! proxy in front of it.

use super::{
    Fate, Input, Refusal,
    ledger::{Ledger, Place},
    plan::LocalCheck,
};

/// Lines of a script: more are no check.
const MAX_LINES: usize = 2_000;
/// Why the questions of a script become no key.
const BUILT_IN: &str = "built in: [service.health] asks every apiserver, wherever the VIP is";

/// A check script that was given.
#[derive(Debug)]
pub(super) struct CheckScript {
    /// The last part of its path.
    pub(super) name: String,
    /// What it asks.
    pub(super) check: LocalCheck,
}

/// What is known beside keepalived.conf.
#[derive(Clone, Copy, Debug)]
pub(super) struct Around<'a> {
    /// The check script, if it was given.
    pub(super) script: Option<&'a CheckScript>,
    /// Whether haproxy.cfg is imported as well.
    pub(super) has_haproxy: bool,
}

/// What a command of `vrrp_script` is.
#[derive(Debug)]
pub(super) enum Command {
    /// It asks an apiserver, or a proxy, of this node.
    Local(LocalCheck),
    /// It sees whether this proxy runs.
    Proxy(Proxy),
    /// It sees whether a process of this name runs.
    Process(String),
    /// A script in a file with this path.
    File(String),
    /// Anything else.
    Other,
}

/// A proxy as people put them in front of apiservers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proxy {
    Haproxy,
    Nginx,
}

impl Proxy {
    /// The program of this name, as processes and units have it.
    pub(super) fn of(name: &str) -> Option<Self> {
        let name = name.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        match name.strip_suffix(".service").unwrap_or(name) {
            "haproxy" => Some(Self::Haproxy),
            "nginx" => Some(Self::Nginx),
            _ => None,
        }
    }

    /// What becomes of a check that it runs: it goes if its configuration is imported.
    pub(super) fn fate(self, has_haproxy: bool) -> Fate {
        let why = match self {
            Self::Haproxy if has_haproxy => {
                let why =
                    "there is no proxy to watch: the kernel forwards, also while xvip restarts";
                return Fate::NoEquivalent(why.to_owned());
            }
            Self::Haproxy => "no haproxy.cfg was given",
            Self::Nginx => "what nginx does is not imported",
        };
        Fate::ByHand(format!(
            "{why}: nothing is needed where xvip takes its place; if it stays, and the VIP shall go when it dies, write a \
             [[track]] with type = \"process\""
        ))
    }
}

/// What `text`, the command of a `vrrp_script`, is.
pub(super) fn command(text: &str) -> Command {
    if let Some(check) = local_check(text) {
        return Command::Local(check);
    }
    if let Some(proxy) = asks_for_proxy(text) {
        return Command::Proxy(proxy);
    }
    if let Some(name) = process(text) {
        return Command::Process(name);
    }
    let is_shell = |word: &&str| {
        let name = word.rsplit('/').next().unwrap_or(word);
        matches!(name, "sh" | "bash" | "ash" | "dash" | "env")
    };
    let mut words = text.split_whitespace().skip_while(is_shell);
    let is_path = |word: &str| word.starts_with('/') || has_extension(word);
    match words.next() {
        Some(word) if is_path(word) && !word.contains("/bin/") => Command::File(word.to_owned()),
        _ => Command::Other,
    }
}

fn has_extension(word: &str) -> bool {
    [".sh", ".bash", ".py"]
        .iter()
        .any(|end| word.ends_with(end))
}

/// `killall -0 haproxy`, `pidof nginx`, `systemctl is-active haproxy` and the like.
fn asks_for_proxy(text: &str) -> Option<Proxy> {
    let asks = ["killall", "pidof", "pgrep", "systemctl", "pkill", "ps "];
    let proxy = text.split_whitespace().find_map(Proxy::of)?;
    asks.iter().any(|word| text.contains(word)).then_some(proxy)
}

/// The name of a process that `killall -0 NAME`, `pidof NAME` or `pgrep -x NAME` asks for. With other
/// options, and `pgrep` without, they look for something else than a name.
fn process(text: &str) -> Option<String> {
    let mut words = text.split_whitespace();
    let program = words.next()?.rsplit('/').next()?;
    let (options, rest): (Vec<_>, Vec<_>) = words.partition(|word| word.starts_with('-'));
    let (needed, known): (&[&str], &[&str]) = match program {
        "killall" => (&["-0"], &["-0", "-q", "--quiet"]),
        "pidof" => (&[], &["-s", "-q"]),
        "pgrep" => (&["-x"], &["-x"]),
        _ => return None,
    };
    let asks = needed.iter().all(|option| options.contains(option))
        && options.iter().all(|option| known.contains(option));
    match rest.as_slice() {
        [name] if asks => {
            let name = name.rsplit('/').next().unwrap_or(name);
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            (!name.is_empty() && name.chars().all(is_plain)).then(|| name.to_owned())
        }
        _ => None,
    }
}

/// The question to this node in `text`, if there is one.
fn local_check(text: &str) -> Option<LocalCheck> {
    for (scheme, tls) in [("https://", true), ("http://", false)] {
        for (at, _) in text.match_indices(scheme) {
            let rest = text.get(at + scheme.len()..)?;
            if let Some((port, path)) = url_of_this_node(rest, tls) {
                return Some(LocalCheck {
                    port,
                    path,
                    tls,
                    words: Vec::new(),
                });
            }
        }
    }
    let port = port_of_this_node(text)?;
    Some(LocalCheck {
        port,
        path: "/readyz".to_owned(),
        tls: true,
        words: Vec::new(),
    })
}

/// Port and path of what follows a scheme.
fn url_of_this_node(rest: &str, tls: bool) -> Option<(u16, String)> {
    let hosts = ["localhost", "127.0.0.1", "[::1]"];
    let rest = hosts.iter().find_map(|host| rest.strip_prefix(host))?;
    let end = rest.find(|c: char| c.is_whitespace() || "\"'`;|&)<>".contains(c));
    let rest = rest.get(..end.unwrap_or(rest.len()))?;
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let port = match authority.strip_prefix(':') {
        Some(port) => port.parse().ok()?,
        None if authority.is_empty() && tls => 443,
        None if authority.is_empty() => 80,
        None => return None,
    };
    Some((port, path.to_owned()))
}

/// `/dev/tcp/127.0.0.1/PORT`, `nc -z localhost PORT`
fn port_of_this_node(text: &str) -> Option<u16> {
    for host in ["localhost", "127.0.0.1", "::1"] {
        let device = format!("/dev/tcp/{host}/");
        if let Some((_, rest)) = text.split_once(&device) {
            let end = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            return rest.get(..end)?.parse().ok();
        }
    }
    let mut words = text.split_whitespace();
    let is_client = |word: &str| matches!(word.rsplit('/').next(), Some("nc" | "ncat" | "telnet"));
    words.by_ref().find(|word| is_client(word))?;
    let mut after_host =
        words.skip_while(|word| !matches!(*word, "localhost" | "127.0.0.1" | "::1"));
    after_host.next()?;
    after_host.next()?.trim_matches(';').parse().ok()
}

/// Whether a script asks something of this node, as the check that is built in does.
pub(super) fn asks_this_node(text: &str) -> bool {
    let mut variables = Vec::new();
    text.lines().take(MAX_LINES).any(|line| {
        let line = line.trim();
        variables.extend(assignment(line));
        !line.starts_with('#') && local_check(&filled(line, &variables)).is_some()
    })
}

/// Reads a script file. Lines that are neither shell around such a question nor the question
/// itself are for somebody to look at. `has_haproxy` is whether haproxy.cfg is imported as well.
pub(super) fn read(
    input: &Input,
    has_haproxy: bool,
    ledger: &Ledger,
) -> Result<Option<LocalCheck>, Refusal> {
    let file = ledger.file(&input.name);
    let mut found = None;
    let mut variables = Vec::new();
    for (index, line) in input.text.lines().enumerate() {
        if index >= MAX_LINES {
            return Err(Refusal::too_large(&input.name, index + 1, MAX_LINES));
        }
        let text = line.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let column = 1 + line.chars().count() - line.trim_start().chars().count();
        let place = Place {
            file,
            line: index + 1,
            column,
        };
        let word = ledger.word(place, text);
        variables.extend(assignment(text));
        let text = &filled(text, &variables);
        if let Some(mut check) = local_check(text) {
            ledger.none(&[word.id], BUILT_IN);
            check.words = vec![word.id];
            found.get_or_insert(check);
        } else if asks_the_vip(text) {
            ledger.none(&[word.id], BUILT_IN);
        } else if let Some(proxy) = asks_for_proxy(text) {
            ledger.claim(&[word.id], &proxy.fate(has_haproxy));
        } else if is_shell(text) {
            ledger.none(
                &[word.id],
                "part of the script, in whose place a check is built in",
            );
        } else {
            let what = "the check that is built in does not do this: if it is needed, track the script as \
                 [[track]] with type = \"command\"";
            ledger.by_hand(&[word.id], what);
        }
    }
    Ok(found)
}

/// `NAME=VALUE` of a shell.
fn assignment(text: &str) -> Option<(String, String)> {
    let text = text.strip_prefix("export ").unwrap_or(text);
    let (name, value) = text.split_once('=')?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let value = value.trim_matches(['"', '\'']);
    let is_plain = !value.contains(['$', '`', ' ']);
    (!name.is_empty() && name.chars().all(is_name) && is_plain)
        .then(|| (name.to_owned(), value.to_owned()))
}

/// `text` with the values of its variables, as far as the script itself sets them.
fn filled(text: &str, variables: &[(String, String)]) -> String {
    let mut text = text.to_owned();
    for (name, value) in variables.iter().rev().take(64) {
        text = text.replace(&format!("${{{name}}}"), value);
        // `$PORT` is no part of `$PORTS`: what the last assignment says wins.
        text = text.replace(&format!("${name}/"), &format!("{value}/"));
        text = text.replace(&format!("${name}:"), &format!("{value}:"));
    }
    text
}

/// A question to an address, or to one that a variable holds: the VIP's, while this node has it.
fn asks_the_vip(text: &str) -> bool {
    let is_address =
        |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit() || "[${".contains(c));
    let starts = ["https://", "http://", "/dev/tcp/"];
    let asks = starts.iter().any(|start| {
        text.match_indices(start)
            .any(|(at, _)| text.get(at + start.len()..).is_some_and(is_address))
    });
    asks && ["curl", "wget", "/dev/tcp/"]
        .iter()
        .any(|word| text.contains(word))
}

/// What stands around the questions of such scripts.
fn is_shell(text: &str) -> bool {
    let begins = [
        "if ",
        "then",
        "else",
        "elif ",
        "fi",
        "exit",
        "echo ",
        "set ",
        "return",
        "for ",
        "while ",
        "do",
        "done",
        "sleep ",
        "errorExit",
        "function ",
        "local ",
        "}",
        "{",
        "logger ",
        "let ",
        "break",
        "continue",
        "true",
        "false",
        "[ ",
        "[[ ",
        "test ",
    ];
    assignment(text).is_some()
        || text.ends_with("() {")
        || text.ends_with("()")
        || begins.iter().any(|begin| {
            // A whole word: `done`, and not `donate`.
            text.strip_prefix(begin).is_some_and(|rest| {
                begin.ends_with(' ')
                    || rest.is_empty()
                    || rest.starts_with(|c: char| !c.is_ascii_alphanumeric())
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A check of a proxy goes with the proxy, and only then.
    #[test]
    fn proxies_go_if_they_are_imported() {
        let told = |proxy: Proxy, has_haproxy| match proxy.fate(has_haproxy) {
            Fate::ByHand(what) => what,
            _ => String::new(),
        };
        assert_eq!(told(Proxy::Haproxy, true), "");
        assert!(told(Proxy::Haproxy, false).starts_with("no haproxy.cfg was given"));
        assert!(told(Proxy::Nginx, true).starts_with("what nginx does is not imported"));
    }

    /// The ways in which guides ask the local apiserver.
    #[test]
    fn finds_the_question() {
        for (text, expected) in [
            (
                "curl -sfk --max-time 2 https://localhost:6443/healthz -o /dev/null || errorExit \"x\"",
                (6443, "/healthz", true),
            ),
            (
                "/usr/bin/curl -k https://127.0.0.1:8443/",
                (8443, "/", true),
            ),
            (
                "curl http://localhost:8080/livez?x=1;",
                (8080, "/livez?x=1", false),
            ),
            ("</dev/tcp/127.0.0.1/6443", (6443, "/readyz", true)),
            ("nc -z -w 1 localhost 6443", (6443, "/readyz", true)),
        ] {
            let found = local_check(text).map(|check| (check.port, check.path, check.tls));
            let (port, path, tls) = expected;
            assert_eq!(found, Some((port, path.to_owned(), tls)), "{text}");
        }
        for text in [
            "curl https://10.0.0.1:6443/",
            "https://localhost:x/",
            "nc -z",
            "",
        ] {
            assert!(local_check(text).is_none(), "{text}");
        }
    }

    /// What a `vrrp_script` runs is told apart.
    #[test]
    fn tells_commands_apart() {
        for proxy in [
            "killall -0 haproxy",
            "/usr/bin/pidof haproxy",
            "systemctl is-active --quiet nginx",
        ] {
            assert!(matches!(command(proxy), Command::Proxy(_)), "{proxy}");
        }
        for file in [
            "/etc/keepalived/check_apiserver.sh",
            "bash /opt/check.sh -v",
            "check.sh",
        ] {
            assert!(matches!(command(file), Command::File(_)), "{file}");
        }
        for (text, name) in [
            ("killall -0 kube-apiserver", "kube-apiserver"),
            ("/usr/bin/pgrep -x etcd", "etcd"),
        ] {
            assert!(
                matches!(command(text), Command::Process(found) if found == name),
                "{text}"
            );
        }
        for other in [
            "/usr/bin/test -e /run/x",
            "killall x",
            "killall -9 x",
            // A part of a name, and of a command line.
            "pgrep etcd",
            "pgrep -f etcd-backup.py",
            "pidof -x backup.sh",
            "true",
            "",
        ] {
            assert!(matches!(command(other), Command::Other), "{other}");
        }
    }
}

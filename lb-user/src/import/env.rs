//! The environment of an osixia/keepalived container: one instance, `VI_1`, with nopreempt,
//! VRRP version 2 and a password, whose values come from variables.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{
    Input, Options, Refusal,
    document::Key,
    keepalived,
    ledger::{Ledger, Place, WordId},
    plan::{Instance, Plan},
    secrets,
};

/// Lines of an input: more are no environment.
const MAX_LINES: usize = 10_000;

/// A variable's value and the word that says it.
type Variables = BTreeMap<String, (String, WordId)>;

/// Reads `NAME=VALUE` lines, as `docker run --env-file` takes them, or with `-e` before each.
pub(super) fn read(
    input: &Input,
    ledger: &Ledger,
    options: &Options<'_>,
    plan: &mut Plan,
) -> Result<(), Refusal> {
    let file = ledger.file(&input.name);
    let mut variables = Variables::new();
    for (index, line) in input.text.lines().enumerate() {
        if index >= MAX_LINES {
            return Err(Refusal::too_large(&input.name, index + 1, MAX_LINES));
        }
        let place = Place {
            file,
            line: index + 1,
            column: 1 + line.chars().count() - line.trim_start().chars().count(),
        };
        for text in assignments(line) {
            let word = ledger.word(place, text.clone());
            let Some((name, value)) = text.split_once('=') else {
                continue; // Left over: reported as unknown.
            };
            // The variables of others are nobody's business.
            if is_name(name) && (!name.starts_with("KEEPALIVED_") || secrets::is_name(name)) {
                ledger.hide(&word, &format!("{name}="));
            }
            if name.starts_with("KEEPALIVED_") {
                variables.insert(name.to_owned(), (value.to_owned(), word.id));
            } else {
                ledger.none(&[word.id], "no variable of the keepalived image");
            }
        }
    }
    instance(&variables, ledger, options, plan);
    Ok(())
}

/// The `NAME=VALUE`s of a line; what is none comes as it is.
fn assignments(line: &str) -> Vec<String> {
    let line = line.trim().trim_end_matches('\\').trim_end();
    if line.is_empty() || line.starts_with('#') {
        return Vec::new();
    }
    let line = line.strip_prefix("export ").unwrap_or(line);
    let line = line.strip_prefix("- ").unwrap_or(line).trim_start();
    // As YAML has it.
    if let Some((name, value)) = line.split_once(": ")
        && name.starts_with("KEEPALIVED_")
        && is_name(name)
    {
        return vec![format!("{name}={}", unquoted(value.trim()))];
    }
    let starts_with_name = line.split_once('=').is_some_and(|(name, _)| is_name(name));
    if starts_with_name && !line.contains(" -e ") && !line.contains(" --env ") {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        return vec![format!("{name}={}", unquoted(value))];
    }
    let words = words(line);
    let is_option = |word: &String| word == "-e" || word == "--env";
    let joined = |word: String| {
        word.strip_prefix("--env=")
            .map_or(word.clone(), str::to_owned)
    };
    words
        .into_iter()
        .filter(|word| !is_option(word))
        .map(joined)
        .collect()
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn unquoted(value: &str) -> &str {
    for quote in ['"', '\''] {
        let inner = value
            .strip_prefix(quote)
            .and_then(|rest| rest.strip_suffix(quote));
        if let Some(inner) = inner {
            return inner;
        }
    }
    value
}

/// Words of a shell's line.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        if Some(c) == quote {
            quote = None;
        } else if quote.is_none() && (c == '"' || c == '\'') {
            quote = Some(c);
            word.get_or_insert_default();
        } else if quote.is_none() && c.is_whitespace() {
            words.extend(word.take());
        } else {
            word.get_or_insert_default().push(c);
        }
    }
    words.extend(word);
    words
}

/// Elements of `#PYTHON2BASH:['a', 'b']`, or of a list with commas or spaces.
fn elements(value: &str) -> Vec<String> {
    let value = value.strip_prefix("#PYTHON2BASH:").unwrap_or(value);
    let is_between = |c: char| c.is_whitespace() || "[]',\"".contains(c);
    let elements = value
        .split(is_between)
        .filter(|element| !element.is_empty());
    elements.map(str::to_owned).collect()
}

fn instance(variables: &Variables, ledger: &Ledger, options: &Options<'_>, plan: &mut Plan) {
    let value = |name: &str, default: &str| match variables.get(name) {
        Some((value, word)) => (value.clone(), vec![*word]),
        None => (default.to_owned(), Vec::new()),
    };
    if variables.is_empty() {
        ledger.derived(super::Fate::ByHand(
            "the environment has no KEEPALIVED_ variable: nothing is made of it".to_owned(),
        ));
        return;
    }
    let (interface, interface_words) = value("KEEPALIVED_INTERFACE", "eth0");
    let (state, state_words) = value("KEEPALIVED_STATE", "BACKUP");
    let (password, password_words) = value("KEEPALIVED_PASSWORD", "d0cker");
    let mut keys = vec![
        Key::text("name", "VI_1", &[]),
        Key::text("interface", &interface, &interface_words),
    ];
    for (name, key, default) in [
        ("KEEPALIVED_ROUTER_ID", "vrid", "51"),
        ("KEEPALIVED_PRIORITY", "priority", "150"),
    ] {
        let (number, words) = value(name, default);
        match number.parse::<u8>() {
            Ok(number) if number > 0 => keys.push(Key::new(key, number.to_string(), &words)),
            _ => ledger.by_hand(&words, format!("write 1..255 as vrrp.{key}")),
        }
    }
    let addresses = addresses(variables, &interface, ledger);
    let peers = peers(variables, ledger);
    let is_v6 = addresses
        .first()
        .is_some_and(|(net, _)| net.addr().is_ipv6());
    keys.push(Key::new("version", if is_v6 { "3" } else { "2" }, &[]));
    ledger.none(
        &state_words,
        "every xvip begins as Backup; the highest priority becomes the owner",
    );
    if state != "MASTER" {
        keys.push(Key::new("preempt", "false", &[]));
    }
    if is_v6 {
        ledger.none(&password_words, "VRRP version 3 has no authentication");
    } else {
        keys.extend(keepalived::password_key(
            Some(&password),
            &password_words,
            ledger,
        ));
    }
    let notify = notify(variables, ledger, options);
    arguments(variables, ledger);
    plan.instances.push(Instance {
        interface: Some(interface),
        keys,
        addresses,
        peers,
        tracks: Vec::new(),
        notify,
        comments: vec![
            "As the osixia/keepalived image has it: VRRP version 2, nopreempt (unless the state is \
             MASTER), and its defaults where the environment says nothing."
                .to_owned(),
        ],
    });
}

fn addresses(variables: &Variables, interface: &str, ledger: &Ledger) -> Vec<(IpNet, Vec<WordId>)> {
    let Some((value, word)) = variables.get("KEEPALIVED_VIRTUAL_IPS") else {
        ledger.derived(super::Fate::ByHand(
            "KEEPALIVED_VIRTUAL_IPS is not there, and the image's own default is only an example: give it"
                .to_owned(),
        ));
        return Vec::new();
    };
    let mut nets: Vec<(IpNet, Vec<WordId>)> = Vec::new();
    let mut parts = elements(value).into_iter();
    while let Some(text) = parts.next() {
        // What keepalived.conf has behind an address.
        if ["dev", "label", "scope", "brd"].contains(&text.as_str()) {
            let option = parts.next().unwrap_or_default();
            let what = format!("{text} {option}: xvip adds every VIP alike, to vrrp.interface");
            if text == "dev" && option != interface {
                ledger.by_hand(&[*word], what);
            } else {
                ledger.none(&[*word], what);
            }
            continue;
        }
        let net = text.parse::<IpNet>().ok();
        let net = net.or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        let is_v6 = nets.first().map(|(first, _)| first.addr().is_ipv6());
        let Some(net) = net else {
            let what = format!("{text:?} is no address: write it into vrrp.addresses");
            ledger.by_hand(&[*word], what);
            continue;
        };
        if nets.iter().any(|(known, _)| known.addr() == net.addr()) {
            ledger.none(&[*word], format!("{text}: it stands there already"));
        } else if is_v6.is_some_and(|is_v6| is_v6 != net.addr().is_ipv6()) {
            let what = format!(
                "{text}: keepalived ignores it, because it is not of the first address's family: write a second [[vrrp]]"
            );
            ledger.by_hand(&[*word], what);
        } else {
            nets.push((net, vec![*word]));
        }
    }
    nets
}

fn peers(variables: &Variables, ledger: &Ledger) -> Vec<(IpAddr, Vec<WordId>)> {
    let Some((value, word)) = variables.get("KEEPALIVED_UNICAST_PEERS") else {
        ledger.derived(super::Fate::ByHand(
            "KEEPALIVED_UNICAST_PEERS is not there, and the image's own default is only an example: with the result adverts \
             go to the multicast group; write vrrp.unicast_peers if the others had them"
                .to_owned(),
        ));
        return Vec::new();
    };
    let elements = elements(value);
    if elements.is_empty() {
        ledger.none(&[*word], "no peers: adverts go to the multicast group");
    }
    let peers = elements.into_iter().filter_map(|text| {
        let peer = text.parse::<IpAddr>().ok();
        if peer.is_none() {
            let what = format!("{text:?} is no address: write it into vrrp.unicast_peers");
            ledger.by_hand(&[*word], what);
        }
        Some((peer?, vec![*word]))
    });
    peers.collect()
}

/// `KEEPALIVED_NOTIFY`: what the image's keepalived runs on every change, as root.
fn notify(variables: &Variables, ledger: &Ledger, options: &Options<'_>) -> Vec<Key> {
    let Some((value, word)) = variables.get("KEEPALIVED_NOTIFY") else {
        return Vec::new();
    };
    // The image's own script only writes to its log.
    if value.is_empty() || value.ends_with("/assets/notify.sh") {
        ledger.none(&[*word], "xvip logs when it becomes Active and Backup");
        return Vec::new();
    }
    match keepalived::program::command(value, options) {
        Ok(command) => vec![
            Key::new("any", command, &[*word]),
            Key::text("user", "root", &[]),
        ],
        Err(what) => {
            let what = format!(
                "paths of the container are not this node's: {what} as notify.any; it gets the same arguments"
            );
            ledger.by_hand(&[*word], what);
            Vec::new()
        }
    }
}

/// `KEEPALIVED_COMMAND_LINE_ARGUMENTS`: the image's own are about its log.
fn arguments(variables: &Variables, ledger: &Ledger) {
    let Some((value, word)) = variables.get("KEEPALIVED_COMMAND_LINE_ARGUMENTS") else {
        return;
    };
    let of_log = [
        "--log-detail",
        "--dump-conf",
        "--log-console",
        "--dont-fork",
        "--vrrp",
        "-D",
        "-d",
        "-l",
        "-n",
        "-P",
    ];
    if value
        .split_whitespace()
        .all(|option| of_log.contains(&option))
    {
        let why = "options of keepalived itself: xvip run --log-level says what is logged";
        ledger.none(&[*word], why);
    } else {
        let what =
            "options of keepalived: see whether `xvip run --help` has one for it, or needs none";
        ledger.by_hand(&[*word], what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The forms in which people write these variables.
    #[test]
    fn reads_assignments() {
        let list = "KEEPALIVED_UNICAST_PEERS=#PYTHON2BASH:['10.0.0.1', '10.0.0.2']";
        for line in [
            list.to_owned(),
            format!("-e \"{list}\" \\"),
            format!("--env \"{list}\""),
            format!("export {}", list.replacen('=', "=\"", 1) + "\""),
            format!("  - {list}"),
            format!("  {}", list.replacen('=', ": \"", 1) + "\""),
        ] {
            assert_eq!(assignments(&line), [list], "{line}");
        }
        assert_eq!(
            assignments("docker run -e A=1 -e B='2 3' image"),
            ["docker", "run", "A=1", "B=2 3", "image"]
        );
        assert_eq!(assignments("# A=1"), Vec::<String>::new());
        assert_eq!(
            elements("#PYTHON2BASH:['10.0.0.1', '10.0.0.2']"),
            ["10.0.0.1", "10.0.0.2"]
        );
        assert_eq!(elements("10.0.0.1, 10.0.0.2"), ["10.0.0.1", "10.0.0.2"]);
    }

    /// The lines of the report for these variables.
    fn report(text: &str) -> String {
        let inputs = crate::import::Inputs {
            env: Some(Input {
                name: "env".to_owned(),
                text: format!("KEEPALIVED_VIRTUAL_IPS=10.0.0.9\n{text}"),
            }),
            ..Default::default()
        };
        let options = Options {
            read_file: &|path| {
                let is_there = path.starts_with("/usr/local/bin");
                is_there
                    .then(Vec::new)
                    .ok_or_else(|| std::io::ErrorKind::NotFound.into())
            },
            ..Options::default()
        };
        match crate::import::import(&inputs, &options) {
            Ok(imported) => imported.report.to_string(),
            Err(refusal) => refusal.to_string(),
        }
    }

    /// What is run, what keepalived itself gets, and addresses with what follows them.
    #[test]
    fn every_variable_is_told() {
        for (variable, expected) in [
            (
                "KEEPALIVED_NOTIFY=/usr/local/bin/tell all",
                "vrrp.notify.any = [\"/usr/local/bin/tell\", \"all\"]",
            ),
            (
                "KEEPALIVED_NOTIFY=/container/mine.sh",
                "BY HAND: paths of the container are not this node's",
            ),
            ("KEEPALIVED_NOTIFY=/x/assets/notify.sh", "xvip logs when"),
            ("KEEPALIVED_ROUTER_ID=77", "vrrp.vrid = 77"),
            (
                "KEEPALIVED_COMMAND_LINE_ARGUMENTS=--log-detail --dump-conf",
                "options of keepalived itself",
            ),
            (
                "KEEPALIVED_COMMAND_LINE_ARGUMENTS=--no-syslog --snmp",
                "BY HAND: options of keepalived",
            ),
            (
                "KEEPALIVED_VIRTUAL_IPS=#PYTHON2BASH:['10.0.0.8/24 dev eth0']",
                "dev eth0: xvip adds",
            ),
            (
                "KEEPALIVED_VIRTUAL_IPS=10.0.0.8/24, fd00::8/64",
                "BY HAND: fd00::8/64: keepalived ignores it",
            ),
            (
                "KEEPALIVED_VIRTUAL_IPS=10.0.0.8/24 10.0.0.8",
                "10.0.0.8: it stands there already",
            ),
            (
                "KEEPALIVED_ROUTER_ID=78",
                "BY HAND: KEEPALIVED_UNICAST_PEERS is not there",
            ),
            ("--restart=always", "--restart=always"),
            (
                "KEEPALIVED_VIRTUAL_IPS=10.0.0.8/24 dev eth7",
                "BY HAND: dev eth7: xvip adds",
            ),
        ] {
            let report = report(variable);
            assert!(report.contains(expected), "{variable}:\n{report}");
        }
    }
}

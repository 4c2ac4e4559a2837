//! The environment of an osixia/keepalived container: one instance, `VI_1`, with nopreempt,
//! VRRP version 2 and a password, whose values come from variables.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{
    Input, Refusal,
    document::Key,
    keepalived,
    ledger::{Ledger, Place, WordId},
    plan::{Instance, Plan},
};

/// Lines of an input: more are no environment.
const MAX_LINES: usize = 10_000;

/// A variable's value and the word that says it.
type Variables = BTreeMap<String, (String, WordId)>;

/// Reads `NAME=VALUE` lines, as `docker run --env-file` takes them, or with `-e` before each.
pub(super) fn read(input: &Input, ledger: &Ledger, plan: &mut Plan) -> Result<(), Refusal> {
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
            if name == "KEEPALIVED_PASSWORD" {
                ledger.hide(&word, "KEEPALIVED_PASSWORD=");
            }
            if name.starts_with("KEEPALIVED_") {
                variables.insert(name.to_owned(), (value.to_owned(), word.id));
            } else {
                ledger.none(&[word.id], "no variable of the keepalived image");
            }
        }
    }
    instance(&variables, ledger, plan);
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

fn instance(variables: &Variables, ledger: &Ledger, plan: &mut Plan) {
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
    let (addresses, peers) = (addresses(variables, ledger), peers(variables, ledger));
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
    rest(variables, ledger);
    plan.instances.push(Instance {
        interface: Some(interface),
        keys,
        addresses,
        peers,
        tracks: Vec::new(),
        comments: vec![
            "As the osixia/keepalived image has it: VRRP version 2, nopreempt (unless the state is \
             MASTER), and its defaults where the environment says nothing."
                .to_owned(),
        ],
    });
}

fn addresses(variables: &Variables, ledger: &Ledger) -> Vec<(IpNet, Vec<WordId>)> {
    let Some((value, word)) = variables.get("KEEPALIVED_VIRTUAL_IPS") else {
        ledger.derived(super::Fate::ByHand(
            "KEEPALIVED_VIRTUAL_IPS is not there, and the image's own default is only an example: give it"
                .to_owned(),
        ));
        return Vec::new();
    };
    let nets = elements(value).into_iter().filter_map(|text| {
        let net = text.parse::<IpNet>().ok();
        let net = net.or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        if net.is_none() {
            let what = format!("{text:?} is no address: write it into vrrp.addresses");
            ledger.by_hand(&[*word], what);
        }
        Some((net?, vec![*word]))
    });
    nets.collect()
}

fn peers(variables: &Variables, ledger: &Ledger) -> Vec<(IpAddr, Vec<WordId>)> {
    let Some((value, word)) = variables.get("KEEPALIVED_UNICAST_PEERS") else {
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

/// Variables that become no key.
fn rest(variables: &Variables, ledger: &Ledger) {
    if let Some((value, word)) = variables.get("KEEPALIVED_NOTIFY") {
        // The image's own script only writes to its log.
        if value.is_empty() || value.ends_with("/assets/notify.sh") {
            ledger.none(&[*word], "xvip logs when it becomes Active and Backup");
        } else {
            let what = "write it into vrrp.notify as notify = { any = [\"PROGRAM\"] }: it gets the same \
                        arguments, and runs as nobody unless notify.user says otherwise";
            ledger.by_hand(&[*word], what);
        }
    }
    if let Some((_, word)) = variables.get("KEEPALIVED_COMMAND_LINE_ARGUMENTS") {
        ledger.none(&[*word], "options of keepalived itself");
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
}

//! `server` and `default-server`: options with the words that say them.

use std::{collections::BTreeMap, net::IpAddr};

use crate::config::{addition, model::Endpoint};

use super::{
    super::{
        Options,
        document::Key,
        ledger::{Ledger, Word, WordId},
        plan::{self, Host, Server},
    },
    parse::Line,
    words::{self, Known},
};

/// An option's value and words.
#[derive(Clone, Debug)]
pub(super) struct Set {
    /// Empty for an option without.
    pub(super) value: String,
    /// The words that say it.
    pub(super) words: Vec<WordId>,
}

/// Options by name; later ones replace earlier ones.
#[derive(Clone, Debug, Default)]
pub(super) struct ServerOptions(BTreeMap<String, Set>);

impl ServerOptions {
    /// The option of this name.
    pub(super) fn get(&self, name: &str) -> Option<&Set> {
        self.0.get(name)
    }

    /// Whether it is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Adds the options among `words`.
    pub(super) fn read(&mut self, words: &[Word], ledger: &Ledger) {
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Some(count) = words::server_values(&word.text) else {
                continue; // Left over: reported as unknown.
            };
            let value = if count == 1 { words.next() } else { None };
            let mut ids = vec![word.id];
            ids.extend(value.map(|value| value.id));
            ledger.recognise(&ids);
            let value = value.map(|value| value.text.clone()).unwrap_or_default();
            if let Some(taken_back) = word.text.strip_prefix("no-") {
                self.0.remove(taken_back);
            }
            if word.text == "enabled" {
                self.0.remove("disabled");
            }
            self.0.insert(word.text.clone(), Set { value, words: ids });
        }
    }

    /// Claims what becomes no key.
    pub(super) fn explain(&self, ledger: &Ledger) {
        for (name, set) in &self.0 {
            match words::server(name, &set.value) {
                Some(Known::Nothing(why)) => ledger.none(&set.words, why),
                Some(Known::ByHand(what)) => ledger.by_hand(&set.words, what),
                None => {}
            }
        }
    }

    /// Whether the server is to have connections.
    fn is_used(&self) -> bool {
        let weight = self.get("weight").map_or("1", |set| set.value.as_str());
        !self.has("disabled") && weight != "0"
    }
}

/// Where a server listens.
struct Place {
    host: Host,
    port: Option<u16>,
}

/// The backend of a `server` line with its effective options; `None` if it is left out.
pub(super) fn backend(
    line: &Line,
    effective: &ServerOptions,
    options: &Options<'_>,
    ledger: &Ledger,
) -> Option<Server> {
    let address_words = line
        .words()
        .get(2)
        .map(|word| vec![word.id])
        .unwrap_or_default();
    let name_words = line.first(2);
    let used = effective.is_used();
    if effective.get("weight").is_some_and(|set| set.value == "0")
        && let Some(set) = effective.get("weight")
    {
        ledger.by_hand(
            &set.words,
            "a backend of weight 0 takes no connections and is left out",
        );
    }
    if !used {
        let words = [name_words, address_words].concat();
        ledger.none(&words, "left out: see its options");
        return None;
    }
    let place = match place(line.word(2), options) {
        Ok(place) => place,
        Err(what) => {
            ledger.by_hand(&[name_words, address_words].concat(), what);
            return None;
        }
    };
    let mut keys = Vec::new();
    if let Some(set) = effective.get("weight") {
        match set.value.parse::<u32>() {
            Ok(weight @ 1..=1000) => keys.push(Key::new("weight", weight.to_string(), &set.words)),
            _ => ledger.by_hand(&set.words, "write 1..1000 as weight"),
        }
    }
    if let Some(set) = effective.get("backup") {
        keys.push(Key::new("backup", "true", &set.words));
    }
    if effective.has("check") {
        check_target(effective, ledger, &mut keys);
    }
    Some(Server {
        name: plan::name(line.word(1), "server"),
        name_words,
        host: place.host,
        port: place.port,
        words: address_words,
        keys,
    })
}

/// `port` and `addr`: where the server is checked instead.
fn check_target(effective: &ServerOptions, ledger: &Ledger, keys: &mut Vec<Key>) {
    if let Some(set) = effective.get("port") {
        match set.value.parse::<u16>() {
            Ok(port) if port > 0 => keys.push(Key::new("check_port", port.to_string(), &set.words)),
            _ => ledger.by_hand(&set.words, "write check_port into its [[service.backend]]"),
        }
    }
    if let Some(set) = effective.get("addr") {
        match set.value.parse::<IpAddr>() {
            Ok(address) => keys.push(Key::text("check_address", &address.to_string(), &set.words)),
            Err(_) => ledger.by_hand(
                &set.words,
                "write check_address into its [[service.backend]]",
            ),
        }
    }
}

/// `ADDRESS[:PORT]`, with a prefix such as `ipv4@`.
fn place(text: &str, options: &Options<'_>) -> Result<Place, String> {
    let text = text
        .strip_prefix("ipv4@")
        .or_else(|| text.strip_prefix("ipv6@"))
        .unwrap_or(text);
    if text.starts_with('/') || text.contains('@') {
        return Err(format!(
            "{text:?} is no address and port: write a [[service.backend]]"
        ));
    }
    let (host, port) = split_port(text);
    let port = match port {
        None => None,
        Some(port) if port.starts_with(['+', '-']) => {
            return Err(format!(
                "xvip has no ports by difference ({port}): write the backend's own"
            ));
        }
        Some(port) => match port.parse::<u16>() {
            Ok(0) => None,
            Ok(port) => Some(port),
            Err(_) => return Err(format!("{port:?} is no port: write 1..65535")),
        },
    };
    let by_name = || {
        options
            .hosts
            .iter()
            .find(|(name, _)| name == host)
            .map(|(_, ip)| *ip)
    };
    let Some(address) = host.parse::<IpAddr>().ok().or_else(by_name) else {
        // Only the name is in question here, not the port.
        return match addition::backend_address(&format!("{host}:1")) {
            Ok(Endpoint::Name { host, .. }) => Ok(Place {
                host: Host::Name(host),
                port,
            }),
            Ok(Endpoint::Address(_)) | Err(_) => Err("write the server's own address".to_owned()),
        };
    };
    let v4 = address.is_ipv4();
    let host = if address.is_loopback() {
        Host::ThisNode { v4 }
    } else {
        Host::Address(address)
    };
    Ok(Place { host, port })
}

/// Host and port of `HOST:PORT`, `[HOST]:PORT` or `HOST`; what follows the last colon of an IPv6
/// address is its port, as in haproxy.
pub(super) fn split_port(text: &str) -> (&str, Option<&str>) {
    if let Some(rest) = text.strip_prefix('[')
        && let Some((host, rest)) = rest.split_once(']')
    {
        return (host, rest.strip_prefix(':'));
    }
    match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    }
}

//! `[[track]]` sections, and what instances say of them. A check of the node's own apiserver becomes
//! one with type `local_backend`; one of the proxy in front of all apiservers becomes nothing: every
//! instance tracks whether a backend of its services works.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use super::{
    Fate,
    document::{Key, Section, quoted},
    ledger::{Ledger, WordId},
    plan::{Instance, LocalCheck, Plan, Subject, Track, Weight},
};

/// Why a check through the proxy becomes no key.
const BUILT_IN: &str = "built in: an instance tracks the backends of its services, and the VIP stays while one of \
                        them works, wherever that runs";
const NOBODY: &str = "no instance tracks it";

/// What is known of a service that a check may be about.
pub(super) struct Candidate<'a> {
    /// `service.name`
    pub(super) name: &'a str,
    /// `service.port`
    pub(super) port: u16,
    /// Addresses of its backends.
    pub(super) backends: &'a [SocketAddr],
}

/// The sections, and for every instance, in its order, the key `track`.
pub(super) struct Tracks {
    /// `[[track]]`
    pub(super) sections: Vec<Section>,
    /// `vrrp.track`
    pub(super) keys: Vec<Option<Key>>,
}

/// Makes them. `is_own` tells this node's addresses.
pub(super) fn tracks(
    plan: &Plan,
    services: &[Candidate<'_>],
    is_own: &dyn Fn(SocketAddr) -> bool,
    ledger: &Ledger,
) -> Tracks {
    let mut sections: BTreeMap<String, Section> = BTreeMap::new();
    for (name, track) in &plan.tracks {
        let used = plan.instances.iter().flat_map(|instance| &instance.tracks);
        let is_used = used
            .clone()
            .any(|found| !found.is_interface() && found.name == *name);
        match section(name, track, services, is_own) {
            Some(section) if is_used => {
                sections.insert(name.clone(), section);
            }
            Some(_) => claim(track, &Fate::NoEquivalent(NOBODY.to_owned()), ledger),
            None => claim(track, &instead(track, services), ledger),
        }
    }
    let mut interfaces = BTreeSet::new();
    let keys = plan.instances.iter();
    let keys =
        keys.map(|instance| key(instance, plan, services, &sections, &mut interfaces, ledger));
    let keys: Vec<_> = keys.collect();
    let interfaces = interfaces.into_iter().map(|name| {
        let mut section = Section::new("[[track]]");
        section.key(Key::text("name", &of_interface(&name), &[]));
        section.key(Key::text("type", "interface", &[]));
        section.key(Key::text("interface", &name, &[]));
        section
    });
    Tracks {
        sections: sections
            .into_values()
            .chain(interfaces.collect::<Vec<_>>())
            .collect(),
        keys,
    }
}

/// Name of the track of an interface.
fn of_interface(name: &str) -> String {
    format!("interface-{name}")
}

/// What stands in for a check that becomes no section.
fn instead(track: &Track, services: &[Candidate<'_>]) -> Fate {
    let Subject::Local(check) = &track.subject else {
        return Fate::NoEquivalent(BUILT_IN.to_owned());
    };
    let leads = |service: &Candidate<'_>| {
        let mut ports = service.backends.iter().map(SocketAddr::port);
        service.port == check.port || ports.any(|port| port == check.port)
    };
    if services.iter().any(leads) {
        Fate::NoEquivalent(BUILT_IN.to_owned())
    } else {
        Fate::ByHand(format!(
            "nothing checks it: no service leads to port {} that it asks; write one, or let a [[track]] with type = \
             \"command\" ask",
            check.port
        ))
    }
}

/// All words of a track that becomes no section.
fn claim(track: &Track, why: &Fate, ledger: &Ledger) {
    ledger.claim(&track.words, why);
    for key in &track.keys {
        // Others may have the same user by the same words.
        if key.name() == "user" {
            ledger.recognise(&key.words());
        } else {
            ledger.claim(&key.words(), why);
        }
    }
    if let Some(weight) = &track.weight {
        ledger.claim(&weight.words, why);
    }
    if let Subject::Local(check) = &track.subject {
        ledger.claim(&check.words, why);
    }
}

fn section(
    name: &str,
    track: &Track,
    services: &[Candidate<'_>],
    is_own: &dyn Fn(SocketAddr) -> bool,
) -> Option<Section> {
    let mut section = Section::new("[[track]]");
    section.key(Key::text(
        "name",
        &super::plan::name(name, "track"),
        &track.words,
    ));
    if let Subject::Local(check) = &track.subject {
        let service = service_of(check, services, is_own)?;
        section.key(Key::text("type", "local_backend", &check.words));
        section.key(Key::text("service", service, &[]));
    }
    section.keys(track.keys.iter().cloned());
    if let Some(weight) = &track.weight {
        section.key(Key::new("weight", weight.value.to_string(), &weight.words));
    }
    Some(section)
}

/// The service whose backend on this node is asked: that has the port, and clients of the service
/// use another one, or nothing stood between.
fn service_of<'a>(
    check: &LocalCheck,
    services: &[Candidate<'a>],
    is_own: &dyn Fn(SocketAddr) -> bool,
) -> Option<&'a str> {
    let asks = |service: &&Candidate<'_>| {
        let asked = service
            .backends
            .iter()
            .filter(|backend| backend.port() == check.port);
        asked.clone().any(|backend| is_own(*backend))
            || (asked.count() > 0 && service.port != check.port)
    };
    services.iter().find(asks).map(|service| service.name)
}

/// `vrrp.track`
fn key(
    instance: &Instance,
    plan: &Plan,
    services: &[Candidate<'_>],
    sections: &BTreeMap<String, Section>,
    interfaces: &mut BTreeSet<String>,
    ledger: &Ledger,
) -> Option<Key> {
    let mut elements: Vec<(String, Vec<WordId>)> = Vec::new();
    let mut seen = BTreeSet::new();
    for found in &instance.tracks {
        let words = found.all_words();
        if !seen.insert((found.is_interface(), &found.name)) {
            ledger.none(&words, "it is there already");
            continue;
        }
        if found.is_interface() {
            interfaces.insert(found.name.clone());
            let name = of_interface(&found.name);
            elements.push((reference(&name, found.weight.as_ref(), None), words));
            continue;
        }
        let track = plan.tracks.get(&found.name);
        if !sections.contains_key(&found.name) {
            if let Some(track) = track {
                ledger.claim(&words, &instead(track, services));
            }
            continue;
        }
        let own = track.and_then(|track| track.weight.as_ref());
        let name = super::plan::name(&found.name, "track");
        elements.push((reference(&name, found.weight.as_ref(), own), words));
    }
    (!elements.is_empty()).then(|| Key::values("track", elements))
}

/// A name, or a table where it says more than the track itself.
fn reference(name: &str, given: Option<&Weight>, own: Option<&Weight>) -> String {
    let name = quoted(name);
    let reverse = given.or(own).is_some_and(|weight| weight.reverse);
    let mut parts = vec![format!("name = {name}")];
    parts.extend(given.map(|weight| format!("weight = {}", weight.value)));
    if reverse {
        parts.push("reverse = true".to_owned());
    }
    if parts.len() == 1 {
        name
    } else {
        format!("{{ {} }}", parts.join(", "))
    }
}

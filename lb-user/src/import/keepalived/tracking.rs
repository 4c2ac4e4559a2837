//! `vrrp_script` and its kin: what an instance tracks. What asks an apiserver, a process, a file or an
//! interface becomes a `[[track]]`; what watches the proxy goes with the proxy; other scripts need
//! somebody.

use std::collections::BTreeMap;

use super::{
    super::{
        document::Key,
        ledger::{Ledger, WordId},
        plan::{LocalCheck, Subject, Track, TrackUse, Weight},
        script::{self, Command},
    },
    parse::Statement,
    words::{Known, claim, claim_all},
};

/// Why a check of haproxy becomes no key.
const NO_PROXY: &str = "there is no proxy to watch: the kernel forwards, also while xvip restarts";
/// What becomes of other scripts.
const OTHER: &str = "track it by hand, as [[track]] with type = \"command\" and command = [PROGRAM, ARGUMENTS]; \
                     there is no shell";
/// What becomes of scripts in files.
const FILE: &str = "name the file with --check-script: the import may know what it asks; if not, track it as \
                    [[track]] with type = \"command\"";
/// What becomes of lines around a script.
const OF_SCRIPT: &str = "it belongs to the script above";

/// Everything that instances can track, by name.
#[derive(Debug, Default)]
pub(super) struct Trackers {
    tracks: BTreeMap<String, Track>,
    /// Those that become nothing, and why.
    others: BTreeMap<String, Known>,
    local_check: Option<LocalCheck>,
}

/// Reads `vrrp_script`, `vrrp_track_process` and `track_file`. `script` is what the script file
/// asks, if it was given.
pub(super) fn read(file: &[Statement], script: Option<&LocalCheck>, ledger: &Ledger) -> Trackers {
    let mut trackers = Trackers::default();
    for statement in file {
        match statement.keyword() {
            "vrrp_script" => read_script(statement, script, ledger, &mut trackers),
            "vrrp_track_process" | "track_process" => {
                read_process(statement, ledger, &mut trackers);
            }
            "track_file" | "vrrp_track_file" => read_file(statement, ledger, &mut trackers),
            _ => {}
        }
    }
    trackers
}

/// One that runs a command.
fn read_script(
    block: &Statement,
    script: Option<&LocalCheck>,
    ledger: &Ledger,
    trackers: &mut Trackers,
) {
    let line = block.child("script");
    let words = line.map(Statement::ids).unwrap_or_default();
    let by_hand = match script::command(line.map_or("", |line| line.word(1))) {
        Command::Local(check) => {
            return local(block, LocalCheck { words, ..check }, ledger, trackers);
        }
        Command::File if script.is_some() => {
            let check = script.cloned().unwrap_or_default();
            return local(block, LocalCheck { words, ..check }, ledger, trackers);
        }
        Command::Process(name) => return process_by_script(block, &name, &words, ledger, trackers),
        Command::Proxy => {
            trackers.other(block, Known::Nothing(NO_PROXY));
            claim_all(block, &Known::Nothing(NO_PROXY), ledger);
            return;
        }
        Command::File => Known::ByHand(FILE),
        Command::Other => Known::ByHand(OTHER),
    };
    trackers.other(
        block,
        Known::ByHand("nothing tracks it: see where it is defined"),
    );
    claim(block, &Known::Nothing("its lines follow"), ledger);
    for statement in &block.block {
        match statement.keyword() {
            "script" => claim_all(statement, &by_hand, ledger),
            "interval" | "timeout" | "rise" | "fall" | "weight" | "user" | "init_fail" => {
                claim_all(statement, &Known::Nothing(OF_SCRIPT), ledger);
            }
            _ => {}
        }
    }
}

/// A script that asks the node's own apiserver, or the proxy in front of it.
fn local(block: &Statement, check: LocalCheck, ledger: &Ledger, trackers: &mut Trackers) {
    for statement in &block.block {
        match statement.keyword() {
            "interval" | "timeout" | "rise" | "fall" => {
                let why = "[service.health] says how often backends are asked";
                claim_all(statement, &Known::Nothing(why), ledger);
            }
            "user" | "init_fail" => claim_all(statement, &Known::Nothing(OF_SCRIPT), ledger),
            _ => {}
        }
    }
    let weight = block
        .child("weight")
        .and_then(|line| weight(line, 0, ledger));
    trackers.local_check = Some(check.clone());
    trackers.add(block, Subject::Local(check), weight, Vec::new(), ledger);
}

/// A script that asks whether a process runs.
fn process_by_script(
    block: &Statement,
    name: &str,
    words: &[WordId],
    ledger: &Ledger,
    trackers: &mut Trackers,
) {
    let mut keys = vec![
        Key::text("type", "process", words),
        Key::text("process", name, words),
    ];
    for statement in &block.block {
        let value = statement.word(1);
        let words = statement.first(2);
        match statement.keyword() {
            "interval" => match value.parse::<u16>() {
                Ok(seconds @ 1..=600) => {
                    keys.push(Key::text("interval", &format!("{seconds}s"), &words));
                }
                _ => ledger.by_hand(&words, "write 10ms..10m as track.interval"),
            },
            "rise" | "fall" => match value.parse::<u8>() {
                Ok(count @ 1..=100) => {
                    let key = if statement.keyword() == "rise" {
                        "rise"
                    } else {
                        "fall"
                    };
                    keys.push(Key::new(key, count.to_string(), &words));
                }
                _ => ledger.by_hand(&words, "write 1..100"),
            },
            "timeout" | "user" | "init_fail" => {
                claim_all(statement, &Known::Nothing(OF_SCRIPT), ledger);
            }
            _ => {}
        }
    }
    let weight = block
        .child("weight")
        .and_then(|line| weight(line, 0, ledger));
    trackers.add(block, Subject::Keys, weight, keys, ledger);
}

/// `vrrp_track_process`
fn read_process(block: &Statement, ledger: &Ledger, trackers: &mut Trackers) {
    let Some(line) = block.child("process") else {
        return;
    };
    let name = line.word(1).rsplit('/').next().unwrap_or_default();
    if script::is_proxy(name) {
        trackers.other(block, Known::Nothing(NO_PROXY));
        claim_all(block, &Known::Nothing(NO_PROXY), ledger);
        return;
    }
    let mut keys = vec![
        Key::text("type", "process", &line.first(1)),
        Key::text("process", name, &line.first(2)),
    ];
    let arguments: Vec<_> = line.ids().into_iter().skip(2).collect();
    ledger.by_hand(&arguments, "xvip compares the name of a process only");
    for statement in &block.block {
        let words = statement.first(2);
        match statement.keyword() {
            "quorum" => match statement.word(1).parse::<u16>() {
                Ok(count @ 1..=1000) => keys.push(Key::new("at_least", count.to_string(), &words)),
                _ => ledger.by_hand(&words, "write 1..1000 as track.at_least"),
            },
            "quorum_max" | "param_match" | "full_command" => {
                ledger.by_hand(
                    &statement.ids(),
                    "xvip counts processes of one name, at least so many",
                );
            }
            "delay" | "fork_delay" | "terminate_delay" => ledger.by_hand(
                &words,
                "write track.rise and track.fall: so many looks, track.interval apart",
            ),
            _ => {}
        }
    }
    let weight = block
        .child("weight")
        .and_then(|line| weight(line, 1, ledger));
    let weight = weight.or(Some(Weight::plain(1)));
    trackers.add(block, Subject::Keys, weight, keys, ledger);
}

/// `track_file`
fn read_file(block: &Statement, ledger: &Ledger, trackers: &mut Trackers) {
    let Some(line) = block.child("file") else {
        return;
    };
    let keys = vec![
        Key::text("type", "file", &line.first(1)),
        Key::text("file", line.word(1), &line.first(2)),
    ];
    for statement in block.children("init_file") {
        let what =
            "xvip writes no files, and one that is missing counts as failed: create it at boot";
        ledger.by_hand(&statement.ids(), what);
    }
    let weight = block
        .child("weight")
        .and_then(|line| weight(line, 1, ledger));
    let weight = weight.or(Some(Weight::plain(1)));
    trackers.add(block, Subject::Keys, weight, keys, ledger);
}

/// `weight N [reverse]` from word `at` on. `None`, and claimed, if it is none that xvip has.
fn weight_at(statement: &Statement, at: usize, most: i16, ledger: &Ledger) -> Option<Weight> {
    let words: Vec<_> = statement.ids().into_iter().skip(at).take(3).collect();
    match statement.word(at + 1).parse::<i16>() {
        Ok(value) if (-most..=most).contains(&value) => {
            let reverse = statement.word(at + 2) == "reverse";
            let known = matches!(
                statement.word(at + 2),
                "reverse" | "noreverse" | "no_reverse"
            );
            let words: Vec<_> = words.into_iter().take(if known { 3 } else { 2 }).collect();
            ledger.recognise(&words);
            Some(Weight {
                value,
                reverse,
                words,
            })
        }
        _ => {
            ledger.by_hand(&words, format!("write -{most}..{most} as weight"));
            None
        }
    }
}

/// The line `weight N [reverse]`; files may have a larger one by `more`.
fn weight(line: &Statement, more: i16, ledger: &Ledger) -> Option<Weight> {
    weight_at(line, 0, 253 + more, ledger)
}

impl Trackers {
    fn add(
        &mut self,
        block: &Statement,
        subject: Subject,
        weight: Option<Weight>,
        keys: Vec<Key>,
        ledger: &Ledger,
    ) {
        let words = block.first(2);
        ledger.recognise(&words);
        for key in &keys {
            ledger.recognise(&key.words());
        }
        if let Subject::Local(check) = &subject {
            ledger.recognise(&check.words);
        }
        let track = Track {
            subject,
            weight,
            keys,
            words,
        };
        self.tracks.insert(block.word(1).to_owned(), track);
    }

    fn other(&mut self, block: &Statement, known: Known) {
        self.others.insert(block.word(1).to_owned(), known);
    }

    /// What a script on the command line asks.
    pub(super) fn local_check(&self) -> Option<&LocalCheck> {
        self.local_check.as_ref()
    }

    /// All of them, for the plan.
    pub(super) fn into_tracks(self) -> BTreeMap<String, Track> {
        self.tracks
    }

    /// Claims `track_script { ... }` and its kin, but for what becomes a reference; `own` is the
    /// interface of the instance.
    pub(super) fn uses(
        &self,
        list: &Statement,
        ledger: &Ledger,
        own: Option<&str>,
    ) -> Vec<TrackUse> {
        claim(list, &Known::Nothing("its lines follow"), ledger);
        let mut uses = Vec::new();
        for entry in &list.block {
            let name = entry.keyword().to_owned();
            let known = match list.keyword() {
                "track_interface" => {
                    uses.extend(interface(entry, own, ledger));
                    continue;
                }
                "track_bfd" => Known::ByHand("xvip has no BFD"),
                _ if self.tracks.contains_key(&name) => {
                    let given = entry.word(1) == "weight";
                    let weight = if given {
                        weight_at(entry, 1, 254, ledger)
                    } else {
                        None
                    };
                    let words = entry.first(1);
                    uses.push(TrackUse {
                        name,
                        interface: false,
                        weight,
                        words,
                    });
                    continue;
                }
                _ => match self.others.get(&name) {
                    Some(known) => *known,
                    None => Known::Nothing("nothing of this name is defined"),
                },
            };
            claim_all(entry, &known, ledger);
        }
        uses
    }
}

/// An entry of `track_interface`.
fn interface(entry: &Statement, own: Option<&str>, ledger: &Ledger) -> Option<TrackUse> {
    let given = entry.word(1) == "weight";
    let weight = if given {
        weight_at(entry, 1, 253, ledger)
    } else {
        None
    };
    let matters = weight
        .as_ref()
        .is_some_and(|weight| weight.value != 0 || weight.reverse);
    if own == Some(entry.keyword()) && !matters {
        let why = "every instance tracks its own interface: without carrier the node takes no part";
        claim_all(entry, &Known::Nothing(why), ledger);
        return None;
    }
    Some(TrackUse {
        name: entry.keyword().to_owned(),
        interface: true,
        weight,
        words: entry.first(1),
    })
}

//! `vrrp_script` and its kin: what an instance tracks. What asks an apiserver, a process, a file or an
//! interface becomes a `[[track]]`; what watches the proxy goes with the proxy; other scripts become
//! a `[[track]]` that runs them.

use std::{collections::BTreeMap, path::Path};

use super::{
    super::{
        Fate,
        document::Key,
        ledger::{Ledger, WordId, base_name},
        plan::{LocalCheck, Subject, Track, TrackUse, Tracked, Weight},
        script::{self, Around, Command, Proxy},
    },
    parse::Statement,
    program::{self, Tools},
    words::{Known, claim, claim_all, claim_each},
};

/// What becomes of scripts in files that may do what a check does that is built in.
const FILE: &str = "name the file with --check-script: it may ask the apiserver, which [[track]] with type = \
                    \"local_backend\" does; if not, track it with type = \"command\"";
/// Longest times of a `[[track]]`, in seconds.
const LONGEST: u32 = 600;
/// What becomes of lines around a script.
const OF_SCRIPT: &str = "it belongs to the script above";

/// Everything that instances can track, by name.
#[derive(Debug, Default)]
pub(super) struct Trackers {
    tracks: BTreeMap<String, Track>,
    /// Those that become nothing, and why.
    others: BTreeMap<String, Fate>,
    local_check: Option<LocalCheck>,
}

/// Reads `vrrp_script`, `vrrp_track_process` and `track_file`.
pub(super) fn read(file: &[Statement], around: Around<'_>, tools: Tools<'_>) -> Trackers {
    let ledger = tools.ledger;
    let mut trackers = Trackers::default();
    let files = file.iter().filter(|statement| {
        let line = statement
            .child("script")
            .filter(|_| statement.keyword() == "vrrp_script");
        line.is_some_and(|line| matches!(script::command(line.word(1)), Command::File(_)))
    });
    // Of a single one it is clear that it is meant, however it was called.
    let is_single = files.count() == 1;
    for statement in file {
        match statement.keyword() {
            "vrrp_script" => read_script(statement, (around, is_single), tools, &mut trackers),
            "vrrp_track_process" | "track_process" => {
                read_process(statement, around, ledger, &mut trackers);
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
    (around, is_single): (Around<'_>, bool),
    tools: Tools<'_>,
    trackers: &mut Trackers,
) {
    let ledger = tools.ledger;
    let Some(line) = block.child("script") else {
        return by_hand(
            block,
            "keepalived runs nothing for it: remove it",
            ledger,
            trackers,
        );
    };
    let words = line.ids();
    match script::command(line.word(1)) {
        Command::Local(check) => local(block, LocalCheck { words, ..check }, ledger, trackers),
        Command::File(path) => match around.script {
            Some(given) if is_single || base_name(&path) == given.name => {
                let check = given.check.clone();
                local(block, LocalCheck { words, ..check }, ledger, trackers);
            }
            _ if may_ask_this_node(&path, tools) => by_hand(block, FILE, ledger, trackers),
            _ => by_program(block, line, tools, trackers),
        },
        Command::Process(name) => process_by_script(block, &name, &words, ledger, trackers),
        Command::Proxy(proxy) => {
            of_proxy(block, &proxy.fate(around.has_haproxy), ledger, trackers);
        }
        Command::Other => by_program(block, line, tools, trackers),
    }
}

/// Whether a script in a file does what a check does that is built in, or cannot be looked at.
fn may_ask_this_node(path: &str, tools: Tools<'_>) -> bool {
    match (tools.options.read_file)(Path::new(path)) {
        Ok(bytes) => script::asks_this_node(&String::from_utf8_lossy(&bytes)),
        Err(_) => true,
    }
}

/// One that sees whether a proxy runs.
fn of_proxy(block: &Statement, fate: &Fate, ledger: &Ledger, trackers: &mut Trackers) {
    match fate {
        Fate::ByHand(what) => by_hand(block, what, ledger, trackers),
        fate => {
            trackers.other(block, fate.clone());
            claim_each(block, fate, ledger);
        }
    }
}

/// One that somebody must write.
fn by_hand(block: &Statement, what: &str, ledger: &Ledger, trackers: &mut Trackers) {
    trackers.other(
        block,
        Known::ByHand("nothing tracks it: see where it is defined").fate(),
    );
    claim(block, &Known::Nothing("its lines follow"), ledger);
    if block.child("script").or(block.child("process")).is_none() {
        ledger.by_hand(&block.ids(), what);
    }
    for statement in &block.block {
        match statement.keyword() {
            "script" | "process" => ledger.by_hand(&statement.ids(), what),
            "interval" | "timeout" | "rise" | "fall" | "weight" | "user" | "init_fail"
            | "quorum" | "quorum_max" | "param_match" | "full_command" | "delay" | "fork_delay"
            | "terminate_delay" => {
                claim_all(statement, &Known::Nothing(OF_SCRIPT), ledger);
            }
            _ => {}
        }
    }
}

/// A script that a `[[track]]` runs.
fn by_program(block: &Statement, line: &Statement, tools: Tools<'_>, trackers: &mut Trackers) {
    let ledger = tools.ledger;
    let command = match program::command(line.word(1), tools.options) {
        Ok(command) => command,
        Err(what) => {
            let what = format!("{what} as command of a [[track]] with type = \"command\"");
            return by_hand(block, &what, ledger, trackers);
        }
    };
    let said = block.child("user");
    let user = match said {
        Some(line) => program::user(line, 1, tools),
        None => tools.globals.user.clone(),
    };
    let Some((user, of_user)) = user else {
        let what = format!(
            "enable_script_security without script_user, and no user keepalived_script: keepalived does not run it \
             either; write {command} and a user into a [[track]] with type = \"command\""
        );
        return by_hand(block, &what, ledger, trackers);
    };
    let of_user = match said {
        Some(line) => line.first(2),
        None => of_user,
    };
    let more: Vec<_> = line.ids().into_iter().skip(2).collect();
    ledger.by_hand(
        &more,
        "keepalived ignores it: a program and its arguments stand in quotes",
    );
    let mut keys = vec![
        Key::text("type", "command", &line.first(1)),
        Key::new("command", command, &line.first(2)),
        Key::text("user", &user, &of_user),
    ];
    for statement in &block.block {
        let words = statement.first(2);
        match statement.keyword() {
            "timeout" => match statement.word(1).parse::<u32>() {
                Ok(0) => ledger.none(&words, "it is the interval, as in xvip"),
                Ok(seconds) => keys.push(period("timeout", seconds, &words, ledger)),
                Err(_) => ledger.by_hand(&words, "write 10ms..10m as track.timeout"),
            },
            "init_fail" => init_fail(block, statement, ledger),
            // The last one counts.
            "user" => ledger.recognise(&statement.ids()),
            _ => polling(statement, ledger, &mut keys),
        }
    }
    let weight = block
        .child("weight")
        .and_then(|line| weight(line, 0, ledger));
    trackers.add(block, Subject::Keys, weight, keys, ledger);
}

/// `init_fail`: it counts as failed until it has succeeded as often as `rise` says.
fn init_fail(block: &Statement, line: &Statement, ledger: &Ledger) {
    let rise = block.child("rise").map_or("1", |line| line.word(1));
    if rise == "1" {
        let why = "the first run decides: it begins with xvip, which is a Backup for three adverts at least";
        ledger.none(&line.ids(), why);
    } else {
        let what = "with xvip the first run decides, whatever rise says: write vrrp.startup_delay if a node must not \
                    take part before";
        ledger.by_hand(&line.ids(), what);
    }
}

/// A number of seconds that xvip has as well, or the longest that it has.
fn period(name: &'static str, seconds: u32, words: &[WordId], ledger: &Ledger) -> Key {
    if seconds > LONGEST {
        let what = format!("it is longer than xvip's longest, {LONGEST}s: see that this will do");
        ledger.by_hand(words, what);
    }
    Key::text(name, &format!("{}s", seconds.min(LONGEST)), words)
}

/// `interval`, `rise` and `fall` of a script.
fn polling(statement: &Statement, ledger: &Ledger, keys: &mut Vec<Key>) {
    let value = statement.word(1);
    let words = statement.first(2);
    let name = match statement.keyword() {
        "interval" => {
            match value.parse::<u32>() {
                // keepalived takes 0 for 1.
                Ok(seconds) => keys.push(period("interval", seconds.max(1), &words, ledger)),
                Err(_) => ledger.by_hand(&words, "write 10ms..10m as track.interval"),
            }
            return;
        }
        "rise" => "rise",
        "fall" => "fall",
        _ => return,
    };
    match value.parse::<u8>() {
        Ok(count @ 1..=100) => keys.push(Key::new(name, count.to_string(), &words)),
        _ => ledger.by_hand(&words, format!("write 1..100 as track.{name}")),
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
        match statement.keyword() {
            "timeout" | "user" | "init_fail" => {
                claim_all(statement, &Known::Nothing(OF_SCRIPT), ledger);
            }
            _ => polling(statement, ledger, &mut keys),
        }
    }
    let weight = block
        .child("weight")
        .and_then(|line| weight(line, 0, ledger));
    trackers.add(block, Subject::Keys, weight, keys, ledger);
}

/// `vrrp_track_process`
fn read_process(block: &Statement, around: Around<'_>, ledger: &Ledger, trackers: &mut Trackers) {
    let Some(line) = block.child("process") else {
        return;
    };
    let name = line.word(1).rsplit('/').next().unwrap_or_default();
    if let Some(proxy) = Proxy::of(name) {
        return of_proxy(block, &proxy.fate(around.has_haproxy), ledger, trackers);
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

    fn other(&mut self, block: &Statement, fate: Fate) {
        self.others.insert(block.word(1).to_owned(), fate);
    }

    /// What a script on the command line asks.
    pub(super) fn local_check(&self) -> Option<&LocalCheck> {
        self.local_check.as_ref()
    }

    /// What keepalived leaves of `uses` where weights cannot be: in a sync group (`of_group`), whose members must
    /// not drift apart, and with priority 255, which nothing changes.
    pub(super) fn without_weights(
        &self,
        uses: Vec<TrackUse>,
        of_group: bool,
        ledger: &Ledger,
    ) -> Vec<TrackUse> {
        let of = |found: &TrackUse| {
            let own = self.tracks.get(&found.name);
            let own = own.and_then(|track| track.weight.as_ref());
            let weight = found
                .weight
                .as_ref()
                .or(own.filter(|_| !found.is_interface()));
            weight.map_or(0, |weight| weight.value)
        };
        let place = if of_group {
            "in a sync group without sync_group_tracking_weight"
        } else {
            "with priority 255"
        };
        let keep = |mut found: TrackUse| {
            let weight = of(&found);
            let is_fault = match found.list {
                _ if weight == 0 => return Some(found),
                Tracked::Process => return Some(found),
                Tracked::Interface => of_group,
                // keepalived's default.
                Tracked::File => weight == 1,
                Tracked::Script => false,
            };
            let words = found.all_words();
            if !is_fault {
                let what = format!(
                    "keepalived ignores it, because it has a weight {place}: if it matters, write it there without and import again"
                );
                ledger.by_hand(&words, what);
                return None;
            }
            ledger.none(
                &words,
                format!("keepalived takes weight 0 {place}: a fault"),
            );
            let given = found.weight.take();
            found.weight = Some(Weight {
                words: given.map(|weight| weight.words).unwrap_or_default(),
                ..Weight::plain(0)
            });
            Some(found)
        };
        uses.into_iter().filter_map(keep).collect()
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
            let fate = match list.keyword() {
                "track_interface" => {
                    uses.extend(interface(entry, own, ledger));
                    continue;
                }
                "track_bfd" => Known::ByHand("xvip has no BFD").fate(),
                _ if self.tracks.contains_key(&name) => {
                    let given = entry.word(1) == "weight";
                    let most = if list.keyword() == "track_file" {
                        254
                    } else {
                        253
                    };
                    let weight = if given {
                        weight_at(entry, 1, most, ledger)
                    } else {
                        None
                    };
                    let words = entry.first(1);
                    uses.push(TrackUse {
                        name,
                        list: match list.keyword() {
                            "track_file" => Tracked::File,
                            "track_process" => Tracked::Process,
                            _ => Tracked::Script,
                        },
                        weight,
                        words,
                    });
                    continue;
                }
                _ => match self.others.get(&name) {
                    Some(fate) => fate.clone(),
                    None => Known::Nothing("nothing of this name is defined").fate(),
                },
            };
            claim_each(entry, &fate, ledger);
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
    if own == Some(entry.keyword()) {
        let is_weighted = weight
            .as_ref()
            .is_some_and(|weight| weight.value != 0 || weight.reverse);
        let why = if is_weighted {
            "keepalived ignores a weight of the instance's own interface: without carrier the node takes no part"
        } else {
            "every instance tracks its own interface: without carrier the node takes no part"
        };
        // What else stands there keepalived does not know either.
        let mut words = entry.first(1);
        words.extend(weight.into_iter().flat_map(|weight| weight.words));
        ledger.none(&words, why);
        return None;
    }
    Some(TrackUse {
        name: entry.keyword().to_owned(),
        list: Tracked::Interface,
        weight,
        words: entry.first(1),
    })
}

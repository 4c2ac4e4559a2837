//! `vrrp_script` and its kin: what an instance tracks. Checks of the apiserver and of the proxy in
//! front of it are built in; others need somebody.

use std::collections::BTreeMap;

use super::{
    super::{
        ledger::Ledger,
        plan::LocalCheck,
        script::{self, Command},
    },
    parse::Statement,
    words::{Known, claim, claim_all},
};

/// Why a check of the local apiserver becomes no key.
const BUILT_IN: &str = "built in: [service.health] asks every apiserver, and while one works the VIP stays \
                        where it is and connections go to that one";
/// Why a check of haproxy becomes no key.
const NO_PROXY: &str = "there is no proxy to watch: the kernel forwards, also while xvip restarts";
/// What becomes of other scripts.
const OTHER: &str = "xvip tracks no scripts: if the VIP must leave this node, let what finds that out run \
                     `xvip vrrp step-down` and `xvip vrrp resume`";

/// What a tracked thing turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    BuiltIn,
    Proxy,
    Other,
}

impl Kind {
    fn known(self) -> Known {
        match self {
            Self::BuiltIn => Known::Nothing(BUILT_IN),
            Self::Proxy => Known::Nothing(NO_PROXY),
            Self::Other => Known::ByHand(OTHER),
        }
    }
}

/// Everything that instances can track, by name.
#[derive(Debug, Default)]
pub(super) struct Trackers {
    kinds: BTreeMap<String, Kind>,
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
            "track_file" | "vrrp_track_file" => {
                trackers.add(statement, Kind::Other);
                let what = "xvip tracks no files: run `xvip vrrp step-down` and `xvip vrrp resume` \
                            where the file is written";
                claim_all(statement, &Known::ByHand(what), ledger);
            }
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
    let command = line.map_or("", |line| line.word(1));
    let (kind, what) = match script::command(command) {
        Command::Local(mut check) => {
            check.words = line.map(Statement::ids).unwrap_or_default();
            trackers.local_check = Some(check);
            (Kind::BuiltIn, None)
        }
        Command::Proxy => (Kind::Proxy, None),
        Command::File if script.is_some() => (Kind::BuiltIn, None),
        Command::File => {
            let what = "name the file with --check-script: checks of the apiserver are built in";
            (Kind::Other, Some(what))
        }
        Command::Other => (Kind::Other, None),
    };
    trackers.add(block, kind);
    claim(block, &Known::Nothing("its lines follow"), ledger);
    for statement in &block.block {
        let known = match statement.keyword() {
            "script" => what.map_or(kind.known(), Known::ByHand),
            "interval" | "timeout" | "rise" | "fall" if kind == Kind::BuiltIn => {
                Known::Nothing("[service.health] says how often backends are asked")
            }
            "weight" if kind == Kind::BuiltIn => Known::Nothing(
                "the priority stays as it is: a node whose own apiserver fails goes on to serve the VIP \
                 with those of the others",
            ),
            "interval" | "timeout" | "rise" | "fall" | "weight" | "user" | "init_fail" => {
                Known::Nothing("it belongs to the script above")
            }
            _ => continue,
        };
        claim_all(statement, &known, ledger);
    }
}

fn read_process(block: &Statement, ledger: &Ledger, trackers: &mut Trackers) {
    let process = block.child("process").map_or("", |line| line.word(1));
    if process.ends_with("haproxy") || process.ends_with("nginx") {
        trackers.add(block, Kind::Proxy);
        claim_all(block, &Kind::Proxy.known(), ledger);
        return;
    }
    trackers.add(block, Kind::Other);
    let what = "xvip tracks no processes: run `xvip vrrp step-down` when it ends, for example by \
                ExecStopPost= of its systemd unit";
    claim_all(block, &Known::ByHand(what), ledger);
}

impl Trackers {
    fn add(&mut self, statement: &Statement, kind: Kind) {
        self.kinds.insert(statement.word(1).to_owned(), kind);
    }

    /// What a script on the command line asks.
    pub(super) fn local_check(&self) -> Option<&LocalCheck> {
        self.local_check.as_ref()
    }

    /// Claims `track_script { ... }` and its kin; `own` is the interface of the instance.
    pub(super) fn claim_list(&self, list: &Statement, ledger: &Ledger, own: Option<&str>) {
        claim(list, &Known::Nothing("its lines follow"), ledger);
        for entry in &list.block {
            let known = match list.keyword() {
                "track_interface" => interface(entry, own),
                "track_bfd" => Known::ByHand("xvip has no BFD"),
                _ => match self.kinds.get(entry.keyword()) {
                    Some(Kind::Other) => {
                        Known::ByHand("xvip does not track it: see where it is defined")
                    }
                    Some(kind) => kind.known(),
                    None => Known::Nothing("nothing of this name is defined"),
                },
            };
            claim_all(entry, &known, ledger);
        }
    }
}

/// An entry of `track_interface`.
fn interface(entry: &Statement, own: Option<&str>) -> Known {
    if own == Some(entry.keyword()) {
        return Known::Nothing(
            "an owner whose interface is down is heard by nobody, and others take over",
        );
    }
    Known::ByHand(
        "xvip tracks no other interfaces: run `xvip vrrp step-down` when that one goes down",
    )
}

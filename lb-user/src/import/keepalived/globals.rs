//! `global_defs`: defaults for the instances.

use std::{path::Path, time::Duration};

use super::{
    super::{
        Options,
        document::Key,
        ledger::{Ledger, WordId},
    },
    instance::decimal,
    notify,
    parse::Statement,
    program::{self, Tools},
    words::{self, Known, claim, claim_all},
};

/// Who runs keepalived's programs if nothing says so and this user is there; else it is root.
const SCRIPT_USER: &str = "keepalived_script";
/// Longest `vrrp.startup_delay`.
const LONGEST_DELAY: f64 = 1000.0;

/// Defaults for the instances.
#[derive(Debug, Default)]
pub(super) struct Globals {
    /// `vrrp_version`
    pub(super) version: Option<(u8, Vec<WordId>)>,
    /// `default_interface`
    pub(super) interface: Option<(String, Vec<WordId>)>,
    /// When addresses are announced.
    pub(super) garp: Vec<Key>,
    /// `v3_checksum_as_v2`
    pub(super) plain_checksum: Option<Vec<WordId>>,
    /// `vrrp_strict`
    pub(super) strict: Option<Vec<WordId>>,
    /// `vrrp_startup_delay`
    pub(super) startup_delay: Option<Key>,
    /// Who runs programs that say no user, and the words that say it. `None`: keepalived runs none
    /// of them.
    pub(super) user: Option<(String, Vec<WordId>)>,
    /// Keys of `[node]`.
    pub(super) node: Vec<Key>,
}

/// Reads every `global_defs`.
pub(super) fn read<'a>(
    blocks: impl Iterator<Item = &'a Statement> + Clone,
    options: &Options<'_>,
    ledger: &Ledger,
) -> Globals {
    let mut globals = Globals::default();
    for block in blocks.clone() {
        claim(block, &Known::Nothing("its lines follow"), ledger);
        for statement in &block.block {
            read_one(statement, ledger, &mut globals);
        }
    }
    let lines = blocks.flat_map(|block| &block.block);
    let lines: Vec<_> = lines.collect();
    if globals.user.is_none() {
        let is_secure = lines
            .iter()
            .any(|line| line.keyword() == "enable_script_security");
        globals.user = default_user(is_secure, options);
    }
    fifos(&lines, options, ledger, &mut globals);
    globals
}

/// keepalived's own user for programs, or root; nobody if root would be refused.
fn default_user(is_secure: bool, options: &Options<'_>) -> Option<(String, Vec<WordId>)> {
    let users = (options.read_file)(Path::new("/etc/passwd"));
    let users = users.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let is_there = users.as_ref().is_ok_and(|users| {
        let mut names = users.lines().filter_map(|line| line.split(':').next());
        names.any(|name| name == SCRIPT_USER)
    });
    if !is_there && is_secure && users.is_ok() {
        return None;
    }
    let name = if is_there { SCRIPT_USER } else { "root" };
    Some((name.to_owned(), Vec::new()))
}

/// Pipes, and what reads them.
fn fifos(lines: &[&Statement], options: &Options<'_>, ledger: &Ledger, globals: &mut Globals) {
    let mut made = Vec::new();
    let tools = Tools {
        ledger,
        options,
        globals: &*globals,
    };
    for line in lines {
        if matches!(line.keyword(), "notify_fifo" | "vrrp_notify_fifo") {
            made.extend(notify::fifo(line, &made, tools));
        }
    }
    for line in lines {
        let Some(of) = line.keyword().strip_suffix("_script") else {
            continue;
        };
        if of.ends_with("notify_fifo") {
            let pipe = lines.iter().rfind(|line| line.keyword() == of);
            notify::fifo_script(line, pipe.map_or("", |pipe| pipe.word(1)), tools);
        }
    }
    globals.node = made;
}

fn read_one(statement: &Statement, ledger: &Ledger, globals: &mut Globals) {
    match statement.keyword() {
        "vrrp_version" if matches!(statement.word(1), "2" | "3") => {
            let version = if statement.word(1) == "2" { 2 } else { 3 };
            ledger.recognise(&statement.first(2));
            globals.version = Some((version, statement.first(2)));
        }
        "default_interface" => {
            ledger.recognise(&statement.first(2));
            globals.interface = Some((statement.word(1).to_owned(), statement.first(2)));
        }
        "vrrp_garp_master_delay"
        | "vrrp_garp_master_refresh"
        | "vrrp_garp_master_refresh_repeat" => {
            globals.garp.extend(announcement(statement, ledger));
        }
        "vrrp_min_garp" => globals.garp.extend(least(statement, ledger)),
        "vrrp_startup_delay" => globals.startup_delay = startup_delay(statement, ledger),
        "script_user" if !statement.word(1).is_empty() => {
            program::group(statement, 1, ledger);
            ledger.recognise(&statement.first(2));
            globals.user = Some((statement.word(1).to_owned(), statement.first(2)));
        }
        // After all others: who runs their readers must be known.
        "notify_fifo" | "vrrp_notify_fifo" => {}
        script if script.ends_with("notify_fifo_script") => {}
        "v3_checksum_as_v2" | "vrrp_v3_checksum_as_v2" => {
            globals.plain_checksum = switched_on(statement, ledger);
        }
        "vrrp_strict" => globals.strict = switched_on(statement, ledger),
        // The groups that xvip uses anyway.
        "vrrp_mcast_group4" if statement.word(1) == "224.0.0.18" => {
            ledger.none(&statement.first(2), "it is what xvip uses");
        }
        "vrrp_mcast_group6" if statement.word(1) == "ff02::12" => {
            ledger.none(&statement.first(2), "it is what xvip uses");
        }
        keyword => {
            if let Some(known) = words::global(keyword) {
                claim_all(statement, &known, ledger);
            }
        }
    }
}

/// `vrrp_startup_delay SECONDS`
fn startup_delay(statement: &Statement, ledger: &Ledger) -> Option<Key> {
    let (seconds, words) = decimal(statement, ledger)?;
    ledger.recognise(&words);
    if seconds > LONGEST_DELAY {
        ledger.by_hand(&words, "write at most 1000s as vrrp.startup_delay");
        return None;
    }
    let millis = Duration::try_from_secs_f64(seconds).ok()?.as_millis();
    let delay = Duration::from_millis(u64::try_from(millis).ok()?);
    Some(Key::duration("startup_delay", delay, &words))
}

/// `vrrp_min_garp`: addresses are announced once, and not again.
fn least(statement: &Statement, ledger: &Ledger) -> Vec<Key> {
    let Some(words) = switched_on(statement, ledger) else {
        return Vec::new();
    };
    vec![
        Key::new("garp_repeat", "0", &words),
        Key::text("garp_delay", "0s", &words),
    ]
}

/// The words of `KEYWORD [BOOL]` where that is on; claimed if it is off, which is xvip's default.
pub(super) fn switched_on(statement: &Statement, ledger: &Ledger) -> Option<Vec<WordId>> {
    let words = statement.first(2);
    if matches!(statement.word(1), "off" | "false" | "no") {
        ledger.none(&words, "it is off, as in xvip");
        return None;
    }
    ledger.recognise(&words);
    Some(words)
}

/// When and how often addresses are announced: lines that are the same here and in instances, but
/// for a prefix.
pub(super) fn announcement(statement: &Statement, ledger: &Ledger) -> Option<Key> {
    let words = statement.first(2);
    ledger.recognise(&words);
    let keyword = statement.keyword();
    let number = statement.word(1).parse::<u16>().ok();
    let key = match (keyword.strip_prefix("vrrp_").unwrap_or(keyword), number) {
        ("garp_master_delay", Some(seconds @ 0..=3600)) => {
            Key::text("garp_delay", &format!("{seconds}s"), &words)
        }
        ("garp_master_refresh", Some(seconds @ 0..=3600)) => {
            Key::text("garp_refresh", &format!("{seconds}s"), &words)
        }
        ("garp_master_refresh_repeat", Some(count @ 1..=10)) => {
            Key::new("garp_refresh_repeat", count.to_string(), &words)
        }
        _ => {
            ledger.by_hand(
                &words,
                "write vrrp.garp_delay, garp_refresh or garp_refresh_repeat",
            );
            return None;
        }
    };
    Some(key)
}

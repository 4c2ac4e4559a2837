//! `global_defs`: defaults for the instances.

use super::{
    super::{
        document::Key,
        ledger::{Ledger, WordId},
    },
    parse::Statement,
    words::{self, Known, claim, claim_all},
};

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
}

/// Reads every `global_defs`.
pub(super) fn read<'a>(blocks: impl Iterator<Item = &'a Statement>, ledger: &Ledger) -> Globals {
    let mut globals = Globals::default();
    for block in blocks {
        claim(block, &Known::Nothing("its lines follow"), ledger);
        for statement in &block.block {
            read_one(statement, ledger, &mut globals);
        }
    }
    globals
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

//! keepalived.conf: which sections there are, and what becomes of each.

mod accept;
mod globals;
mod instance;
mod lvs;
mod notify;
pub(super) mod parse;
pub(super) mod program;
mod tracking;
mod words;

use std::collections::{BTreeMap, BTreeSet};

pub(super) use self::instance::password_key;
use self::{
    globals::Globals,
    notify::Notify,
    parse::Statement,
    program::Tools,
    tracking::Trackers,
    words::{claim_all, top_level},
};
use super::{
    Input, Options, Refusal,
    document::Key,
    ledger::{Ledger, WordId},
    plan::{self, Group, Plan, TrackUse},
    script::Around,
};

/// What mapping a part of the file needs beside it.
struct Context<'a> {
    ledger: &'a Ledger,
    options: &'a Options<'a>,
    globals: Globals,
    trackers: Trackers,
    sync: Groups,
}

impl Context<'_> {
    fn tools(&self) -> Tools<'_> {
        Tools {
            ledger: self.ledger,
            options: self.options,
            globals: &self.globals,
        }
    }
}

/// Reads a keepalived.conf into `plan`.
pub(super) fn read(
    input: &Input,
    around: Around<'_>,
    ledger: &Ledger,
    options: &Options<'_>,
    plan: &mut Plan,
) -> Result<(), Refusal> {
    let file = parse::parse(input, ledger, options)?;
    let of = |keyword: &'static str| file.iter().filter(move |s| s.keyword() == keyword);
    let mut globals = globals::read(of("global_defs"), options, ledger);
    plan.node = std::mem::take(&mut globals.node);
    let tools = Tools {
        ledger,
        options,
        globals: &globals,
    };
    let trackers = tracking::read(&file, around, tools);
    if let Some(check) = trackers.local_check() {
        plan.local_check = Some(check.clone());
    }
    let sync = sync_groups(of("vrrp_sync_group"), &trackers, tools, plan);
    let context = Context {
        ledger,
        options,
        globals,
        trackers,
        sync,
    };
    let groups = lvs::groups(of("virtual_server_group"), ledger);
    for statement in &file {
        match statement.keyword() {
            "vrrp_instance" => instance::read(statement, &context, plan),
            "vrrp_sync_group" => {}
            "virtual_server" => lvs::read(statement, &groups, &context, plan),
            _ => section(statement, ledger),
        }
    }
    plan.tracks = context.trackers.into_tracks();
    Ok(())
}

/// A section that xvip needs nothing of, or that somebody must look at.
fn section(statement: &Statement, ledger: &Ledger) {
    if let Some(known) = top_level(statement.keyword()) {
        claim_all(statement, &known, ledger);
    }
}

/// What `vrrp_sync_group` says of its members.
#[derive(Debug, Default)]
struct Groups {
    /// Name of the group, and the words that say it, by member.
    members: BTreeMap<String, (String, Vec<WordId>)>,
    /// Groups whose members may have weights.
    weighted: BTreeSet<String>,
    /// What a group tracks: of its first member, which counts for all.
    tracks: BTreeMap<String, Vec<TrackUse>>,
}

fn sync_groups<'a>(
    blocks: impl Iterator<Item = &'a Statement>,
    trackers: &Trackers,
    tools: Tools<'_>,
    plan: &mut Plan,
) -> Groups {
    let ledger = tools.ledger;
    let mut groups = Groups::default();
    for block in blocks {
        let mut notify = Notify::default();
        ledger.recognise(&block.first(2));
        let mut first = None;
        for list in block.children("group") {
            let why = "its lines follow";
            ledger.none(&list.first(1), why);
            // On one line, or one on each.
            for word in list.block.iter().flat_map(|line| &line.words) {
                ledger.recognise(&[word.id]);
                first.get_or_insert(word.text.clone());
                let mut words = block.first(2);
                words.push(word.id);
                let group = (plan::name(block.word(1), "group"), words);
                groups.members.insert(word.text.clone(), group);
            }
        }
        for child in &block.block {
            if notify.read(child, tools) {
                continue;
            }
            match child.keyword() {
                "group" => {}
                "sync_group_tracking_weight" | "global_tracking" => {
                    let why = "members keep the weights of what they track";
                    ledger.none(&child.ids(), why);
                    let name = plan::name(block.word(1), "group");
                    groups.weighted.insert(name);
                }
                "track_interface" | "track_script" | "track_file" | "track_process"
                | "track_bfd" => {
                    let uses = trackers.uses(child, ledger, None);
                    let member = first.clone().unwrap_or_default();
                    groups.tracks.entry(member).or_default().extend(uses);
                }
                keyword => {
                    if let Some(known) = words::instance(keyword) {
                        claim_all(child, &known, ledger);
                    }
                }
            }
        }
        let notify = notify.into_keys();
        if !notify.is_empty() {
            let name = plan::name(block.word(1), "group");
            plan.groups.push(Group {
                key: Key::text("name", &name, &block.first(2)),
                name,
                notify,
            });
        }
    }
    groups
}

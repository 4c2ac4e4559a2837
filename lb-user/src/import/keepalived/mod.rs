//! keepalived.conf: which sections there are, and what becomes of each.

mod globals;
mod instance;
mod lvs;
pub(super) mod parse;
mod tracking;
mod words;

pub(super) use self::instance::password_key;
use self::{
    globals::Globals,
    parse::Statement,
    tracking::Trackers,
    words::{Known, claim_all, top_level},
};
use super::{
    Input, Options, Refusal,
    ledger::Ledger,
    plan::{LocalCheck, Plan},
};

/// What mapping a part of the file needs beside it.
struct Context<'a> {
    ledger: &'a Ledger,
    globals: Globals,
    trackers: Trackers,
}

/// Reads a keepalived.conf into `plan`; `script` is what its check script asks, if that was given.
pub(super) fn read(
    input: &Input,
    script: Option<&LocalCheck>,
    ledger: &Ledger,
    options: &Options<'_>,
    plan: &mut Plan,
) -> Result<(), Refusal> {
    let file = parse::parse(input, ledger, options)?;
    let of = |keyword: &'static str| file.iter().filter(move |s| s.keyword() == keyword);
    let globals = globals::read(of("global_defs"), ledger);
    let trackers = tracking::read(&file, script, ledger);
    if let Some(check) = trackers.local_check() {
        plan.local_check = Some(check.clone());
    }
    let context = Context {
        ledger,
        globals,
        trackers,
    };
    let groups = lvs::groups(of("virtual_server_group"), ledger);
    for statement in &file {
        match statement.keyword() {
            "vrrp_instance" => instance::read(statement, &context, plan),
            "vrrp_sync_group" => sync_group(statement, &context),
            "virtual_server" => lvs::read(statement, &groups, &context, plan),
            _ => section(statement, ledger),
        }
    }
    Ok(())
}

/// A section that xvip needs nothing of, or that somebody must look at.
fn section(statement: &Statement, ledger: &Ledger) {
    if let Some(known) = top_level(statement.keyword()) {
        claim_all(statement, &known, ledger);
    }
}

fn sync_group(statement: &Statement, context: &Context<'_>) {
    let ledger = context.ledger;
    let why = "xvip has no sync groups: every instance elects its owner by itself; a VIP is served \
               at whichever node owns it, so VIPs at different nodes break nothing";
    ledger.none(&statement.ids(), why);
    for child in &statement.block {
        match child.keyword() {
            "group" => claim_all(child, &Known::Nothing(why), ledger),
            "track_interface" | "track_script" | "track_file" | "track_process" | "track_bfd" => {
                context.trackers.claim_list(child, ledger, None);
            }
            keyword => {
                if let Some(known) = words::instance(keyword) {
                    claim_all(child, &known, ledger);
                }
            }
        }
    }
}

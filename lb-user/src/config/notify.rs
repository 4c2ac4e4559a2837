//! `notify`, who is told of changes, and `[[sync_group]]`, which has it for a whole group.

use std::time::Duration;

use super::{
    Context, command,
    model::{CommandConfig, GroupConfig, NotifyConfig},
    raw::{Marked, Refused, Report, Table, Value},
    value::{self, CHECK_TIME, Fault},
    vrrp::VrrpDraft,
};

/// Default of `timeout`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// `[[sync_group]]` and what is compared with other sections.
pub(super) struct GroupDraft {
    /// `None` if something is wrong with it.
    pub(super) config: Option<GroupConfig>,
    pub(super) name: Option<Marked<String>>,
}

/// Read one `[[sync_group]]`.
pub(super) fn read_group(mut table: Table<'_>, context: &Context<'_>) -> GroupDraft {
    let name = table
        .need("name", "write the sync_group of the instances")
        .and_then(|value| value.text("control-plane", value::name));
    let notify = read(&mut table, context);
    table.finish();
    GroupDraft {
        config: name.as_ref().and_then(|name| {
            Some(GroupConfig {
                name: name.value.clone(),
                notify: notify?,
            })
        }),
        name,
    }
}

/// Read `notify`; nobody is told where it is left out.
pub(super) fn read(table: &mut Table<'_>, context: &Context<'_>) -> Option<NotifyConfig> {
    let Some(value) = table.get("notify") else {
        return Some(NotifyConfig::default());
    };
    let mut table = value.table()?;
    let user = command::user(&mut table);
    let timeout = table.get_or("timeout", DEFAULT_TIMEOUT, |value| {
        value.text("30s", |text| value::duration(text, &CHECK_TIME))
    });
    let mut one = |key| read_command(table.get(key), context, user.as_deref());
    let (active, backup) = (one("active"), one("backup"));
    let (fault, stop, any) = (one("fault"), one("stop"), one("any"));
    table.finish();
    Some(NotifyConfig {
        active: active.ok()?,
        backup: backup.ok()?,
        fault: fault.ok()?,
        stop: stop.ok()?,
        any: any.ok()?,
        timeout: timeout?,
    })
}

/// The command of a key, if it is there.
fn read_command(
    value: Option<Value<'_>>,
    context: &Context<'_>,
    user: Option<&str>,
) -> Result<Option<CommandConfig>, Refused> {
    let Some(value) = value else {
        return Ok(None);
    };
    let hint = "write the program and its arguments, such as [\"/usr/local/bin/on-active\"]";
    let program = command::program(&value, context, hint).ok_or(Refused)?;
    Ok(Some(CommandConfig {
        program: program.path,
        arguments: program.arguments,
        user: user.ok_or(Refused)?.to_owned(),
    }))
}

/// Refuse groups that are there twice, or that no instance is of.
pub(super) fn check_groups(report: &Report, groups: &[GroupDraft], instances: &[VrrpDraft]) {
    let mut seen: Vec<&str> = Vec::new();
    for name in groups.iter().filter_map(|group| group.name.as_ref()) {
        if seen.contains(&name.value.as_str()) {
            let problem = format!("{:?} is there already", name.value);
            report.refuse(&name.mark, Fault::new(problem, "write it once"));
        }
        seen.push(&name.value);
        let mut used = instances.iter().filter_map(|vrrp| vrrp.sync_group.as_ref());
        if !used.any(|group| *group == name.value) {
            let problem = format!("no [[vrrp]] has sync_group = {:?}", name.value);
            let hint = "write it into those that belong together";
            report.refuse_absence(&name.mark, Fault::new(problem, hint));
        }
    }
}

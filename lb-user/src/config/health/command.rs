//! Keys of checks that run a program.

use crate::config::{Context, command, model::CommandConfig, raw::Table};

/// All of them.
pub(super) const KEYS: &[&str] = &["command", "user"];

/// Read them.
pub(super) fn read(table: &mut Table<'_>, context: &Context<'_>) -> Option<CommandConfig> {
    let hint = "write the program and its arguments, such as command = [\"/usr/local/bin/check\"]";
    let command = table.need("command", hint);
    let user = command::user(table);
    let program = command::program(&command?, context, hint)?;
    Some(CommandConfig {
        program: program.path,
        arguments: program.arguments,
        user: user?,
    })
}

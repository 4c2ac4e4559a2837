//! Keys of checks that run a program.

use crate::config::{
    Context,
    model::CommandConfig,
    raw::{Table, Value},
    value::{self, Fault},
};

/// All of them.
pub(super) const KEYS: &[&str] = &["command", "user"];

/// Who runs programs unless the configuration says otherwise.
const DEFAULT_USER: &str = "nobody";

/// Read them.
pub(super) fn read(table: &mut Table<'_>, context: &Context<'_>) -> Option<CommandConfig> {
    let hint = "write the program and its arguments, such as command = [\"/usr/local/bin/check\"]";
    let command = table.need("command", hint);
    let user = table.get_or("user", DEFAULT_USER.to_owned(), |value| {
        value.text(DEFAULT_USER, value::name)
    });
    let command = command?;
    let mut elements = command.elements().into_iter();
    let Some(program) = elements.next() else {
        if command.is_empty_array() {
            command.refuse(Fault::new("is empty", hint));
        }
        return None;
    };
    let program = program.text("/usr/local/bin/check", |text| {
        let path = value::absolute_path(text)?;
        context.read(text)?;
        Ok(path)
    });
    let arguments: Vec<_> = elements.map(|element| read_argument(&element)).collect();
    Some(CommandConfig {
        program: program?.value,
        arguments: arguments.into_iter().collect::<Option<_>>()?,
        user: user?,
    })
}

fn read_argument(value: &Value<'_>) -> Option<String> {
    let argument = value.text("{address}", |text| {
        if text.contains('\0') {
            return Err(Fault::new("has a zero byte", "write it without"));
        }
        Ok(text.to_owned())
    });
    argument.map(|argument| argument.value)
}

//! Programs that a configuration names: what is run, and by whom.

use std::path::PathBuf;

use super::{
    Context,
    raw::{Table, Value},
    value::{self, Fault},
};

/// Who runs programs unless the configuration says otherwise.
const DEFAULT_USER: &str = "nobody";

/// A program and its arguments; no shell.
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) arguments: Vec<String>,
}

/// Read an array of the absolute path of a program, which must be readable, and its arguments.
/// `hint` shows one.
pub(super) fn program(command: &Value<'_>, context: &Context<'_>, hint: &str) -> Option<Program> {
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
    let arguments: Vec<_> = elements.map(|element| argument(&element)).collect();
    Some(Program {
        path: program?.value,
        arguments: arguments.into_iter().collect::<Option<_>>()?,
    })
}

fn argument(value: &Value<'_>) -> Option<String> {
    let argument = value.text("{address}", |text| {
        if text.contains('\0') {
            return Err(Fault::new("has a zero byte", "write it without"));
        }
        Ok(text.to_owned())
    });
    argument.map(|argument| argument.value)
}

/// `user`: who runs it.
pub(super) fn user(table: &mut Table<'_>) -> Option<String> {
    table.get_or("user", DEFAULT_USER.to_owned(), |value| {
        value.text(DEFAULT_USER, value::name)
    })
}

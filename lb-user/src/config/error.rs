//! What is wrong with a configuration, where, and what to write instead.

use std::{fmt, io};

/// Everything that is wrong with a configuration, sorted by position; at least one error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(Vec<ConfigError>);

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The file, as it was named to xvip.
    pub file: String,
    /// Line, from 1; 0 if the error is about the file as a whole.
    pub line: usize,
    /// Column in characters, from 1; 0 if the error is about the file as a whole.
    pub column: usize,
    /// The key, as in `vrrp[0].priority`; empty for errors of syntax.
    pub key: String,
    /// What is wrong.
    pub problem: String,
    /// What to write instead; empty where the problem says it.
    pub hint: String,
}

impl ConfigErrors {
    /// `errors`, sorted by position.
    pub(super) fn new(mut errors: Vec<ConfigError>) -> Self {
        errors.sort_by_key(|error| (error.line, error.column));
        Self(errors)
    }

    /// The file cannot be read.
    pub(super) fn unreadable(file: &str, error: &io::Error) -> Self {
        Self(vec![ConfigError {
            file: file.to_owned(),
            line: 0,
            column: 0,
            key: String::new(),
            problem: format!("cannot be read: {error}"),
            hint: "name a readable file with --config".to_owned(),
        }])
    }

    /// The file is not text: `bytes` are valid UTF-8 only up to `valid_up_to`.
    pub(super) fn not_utf8(file: &str, bytes: &[u8], valid_up_to: usize) -> Self {
        let valid = bytes.get(..valid_up_to).unwrap_or_default();
        let (line, column) = position(&String::from_utf8_lossy(valid), valid_up_to);
        Self(vec![ConfigError {
            file: file.to_owned(),
            line,
            column,
            key: String::new(),
            problem: "invalid UTF-8".to_owned(),
            hint: "save the file as UTF-8".to_owned(),
        }])
    }

    /// The errors, sorted by position.
    pub fn errors(&self) -> &[ConfigError] {
        &self.0
    }
}

impl fmt::Display for ConfigErrors {
    /// One error per line, without a newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.problem)?;
        if !self.hint.is_empty() {
            write!(f, "; {}", self.hint)?;
        }
        Ok(())
    }
}

/// Line and column, in characters and from 1, of the byte `offset` of `text`.
pub(super) fn position(text: &str, offset: usize) -> (usize, usize) {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = text.get(..offset).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = 1 + before.matches('\n').count();
    let column = 1 + before.get(line_start..).unwrap_or_default().chars().count();
    (line, column)
}

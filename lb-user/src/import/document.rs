//! The configuration that an import writes: sections of keys, each with a comment that says where
//! it comes from. A key that is written claims the words that it was made of.

use std::{fmt::Write as _, time::Duration};

use super::ledger::{Ledger, WordId, printable};

/// Characters of a line of explanation.
const WIDTH: usize = 90;

/// A key and its value.
#[derive(Clone, Debug)]
pub(super) struct Key {
    name: &'static str,
    value: KeyValue,
}

#[derive(Clone, Debug)]
enum KeyValue {
    /// In TOML.
    One(String, Vec<WordId>),
    /// An array; elements in TOML.
    List(Vec<(String, Vec<WordId>)>),
}

impl Key {
    /// `value` is TOML; `words` say it.
    pub(super) fn new(name: &'static str, value: impl Into<String>, words: &[WordId]) -> Self {
        Self {
            name,
            value: KeyValue::One(value.into(), words.to_vec()),
        }
    }

    /// A string.
    pub(super) fn text(name: &'static str, value: &str, words: &[WordId]) -> Self {
        Self::new(name, quoted(value), words)
    }

    /// A duration.
    pub(super) fn duration(name: &'static str, value: Duration, words: &[WordId]) -> Self {
        Self::new(name, quoted(&duration(value)), words)
    }

    /// An array of strings, each with the words that say it.
    pub(super) fn list(name: &'static str, elements: Vec<(String, Vec<WordId>)>) -> Self {
        let quote = |(value, words): (String, Vec<WordId>)| (quoted(&value), words);
        Self {
            name,
            value: KeyValue::List(elements.into_iter().map(quote).collect()),
        }
    }

    /// An array of values in TOML, each with the words that say it.
    pub(super) fn values(name: &'static str, elements: Vec<(String, Vec<WordId>)>) -> Self {
        let value = KeyValue::List(elements);
        Self { name, value }
    }

    /// Its name.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// The words that it was made of.
    pub(super) fn words(&self) -> Vec<WordId> {
        match &self.value {
            KeyValue::One(_, words) => words.clone(),
            KeyValue::List(elements) => {
                let words = elements.iter().flat_map(|(_, words)| words);
                words.copied().collect()
            }
        }
    }

    /// Whether it says the same.
    pub(super) fn says_same(&self, other: &Self) -> bool {
        let values = |key: &Self| match &key.value {
            KeyValue::One(value, _) => vec![value.clone()],
            KeyValue::List(list) => list.iter().map(|(value, _)| value.clone()).collect(),
        };
        self.name == other.name && values(self) == values(other)
    }

    /// The same, of a single value, where other words say it again.
    pub(super) fn said_by(&self, words: &[WordId]) -> Self {
        match &self.value {
            KeyValue::One(value, _) => Self::new(self.name, value.clone(), words),
            KeyValue::List(_) => self.clone(),
        }
    }

    /// Its words became this key of the section `prefix`.
    pub(super) fn claim(&self, ledger: &Ledger, prefix: &str) {
        let name = self.name;
        match &self.value {
            KeyValue::One(value, words) => {
                ledger.mapped(words, format!("{prefix}.{name} = {value}"));
            }
            KeyValue::List(elements) => {
                for (value, words) in elements {
                    ledger.mapped(words, format!("{prefix}.{name}: {value}"));
                }
            }
        }
    }

    fn write(&self, text: &mut String, ledger: &Ledger) {
        let comment = |words: &[WordId]| match words.first() {
            Some(&word) => format!("  # {}", ledger.origin(word)),
            None => String::new(),
        };
        let name = self.name;
        // Writing to a String does not fail.
        let _ = match &self.value {
            KeyValue::One(value, words) => writeln!(text, "{name} = {value}{}", comment(words)),
            KeyValue::List(elements) => {
                let _ = writeln!(text, "{name} = [");
                for (value, words) in elements {
                    let _ = writeln!(text, "    {value},{}", comment(words));
                }
                writeln!(text, "]")
            }
        };
    }
}

/// A table of the configuration.
#[derive(Clone, Debug)]
pub(super) struct Section {
    header: &'static str,
    comments: Vec<String>,
    keys: Vec<Key>,
}

impl Section {
    /// `header` with its brackets.
    pub(super) fn new(header: &'static str) -> Self {
        Self {
            header,
            comments: Vec::new(),
            keys: Vec::new(),
        }
    }

    /// An explanation above it.
    pub(super) fn comment(&mut self, text: impl AsRef<str>) {
        let mut line = String::new();
        for word in printable(text.as_ref()).split(' ') {
            if line.chars().count() + word.chars().count() >= WIDTH {
                self.comments.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        self.comments.push(line);
    }

    /// One more key.
    pub(super) fn key(&mut self, key: Key) {
        self.keys.push(key);
    }

    /// More keys.
    pub(super) fn keys(&mut self, keys: impl IntoIterator<Item = Key>) {
        self.keys.extend(keys);
    }
}

/// The whole file.
#[derive(Debug, Default)]
pub(super) struct Document {
    text: String,
}

impl Document {
    /// A comment at the head of the file.
    pub(super) fn head(&mut self, lines: &[String]) {
        for line in lines {
            let _ = writeln!(self.text, "# {}", printable(line));
        }
    }

    /// Writes a section; its keys claim their words. Of two keys with one name the last one counts,
    /// as where they come from.
    pub(super) fn push(&mut self, section: &Section, ledger: &Ledger) {
        // Parts of a section stand below it.
        if !section.header.contains('.') {
            self.text.push('\n');
        }
        for line in &section.comments {
            let _ = writeln!(self.text, "# {line}");
        }
        let _ = writeln!(self.text, "{}", section.header);
        let prefix = section.header.trim_matches(['[', ']']);
        for (index, key) in section.keys.iter().enumerate() {
            let mut later = section.keys.iter().skip(index + 1);
            if later.any(|other| other.name == key.name) {
                ledger.none(&key.words(), "a later line replaces it");
                continue;
            }
            key.write(&mut self.text, ledger);
            key.claim(ledger, prefix);
        }
    }

    /// The file.
    pub(super) fn into_text(self) -> String {
        self.text
    }
}

/// A basic string (TOML 1.0).
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A duration as the configuration writes it, in whole milliseconds.
pub(super) fn duration(value: Duration) -> String {
    let millis = value.as_millis();
    if millis.is_multiple_of(1000) {
        format!("{}s", millis / 1000)
    } else {
        format!("{millis}ms")
    }
}

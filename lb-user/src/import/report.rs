//! What an import says about its inputs, line by line.

use std::fmt;

/// What became of every line of the inputs, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    entries: Vec<Entry>,
}

/// What became of a part of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The input, as it was named to xvip; empty for what stands in none.
    pub file: String,
    /// Line, from 1; 0 for what stands in no input.
    pub line: usize,
    /// Column in characters, from 1; 0 for what stands in no input.
    pub column: usize,
    /// The words that it is about.
    pub text: String,
    /// What became of them.
    pub fate: Fate,
}

/// What became of some words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// They are in the configuration: where and how.
    Mapped(String),
    /// xvip has nothing like it: why that is all right, or what follows.
    NoEquivalent(String),
    /// Somebody must change something: what.
    ByHand(String),
    /// The import does not know them.
    Unknown,
}

impl Fate {
    /// Whether somebody must look at it.
    pub fn needs_hand(&self) -> bool {
        matches!(self, Self::ByHand(_) | Self::Unknown)
    }
}

impl Report {
    pub(super) fn new(entries: Vec<Entry>) -> Self {
        Self { entries }
    }

    /// The entries, in the order of the inputs; at the end what stands in none.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Whether somebody must look at something.
    pub fn needs_hand(&self) -> bool {
        self.entries.iter().any(|entry| entry.fate.needs_hand())
    }

    /// How many entries were mapped, have no equivalent, and need somebody.
    fn counts(&self) -> (usize, usize, usize) {
        let count = |is: fn(&Fate) -> bool| self.entries.iter().filter(|e| is(&e.fate)).count();
        (
            count(|fate| matches!(fate, Fate::Mapped(_))),
            count(|fate| matches!(fate, Fate::NoEquivalent(_))),
            count(Fate::needs_hand),
        )
    }
}

impl fmt::Display for Report {
    /// A line for every entry, and one that counts them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in &self.entries {
            writeln!(f, "{entry}")?;
        }
        let (mapped, none, by_hand) = self.counts();
        writeln!(
            f,
            "{mapped} mapped, {none} without equivalent, {by_hand} to look at by hand"
        )
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "{}:{}:", self.file, self.line)?;
            if self.fate == Fate::Unknown {
                write!(f, "{}:", self.column)?;
            }
            write!(f, " {}", self.text)?;
        } else {
            f.write_str("derived")?;
        }
        match &self.fate {
            Fate::Mapped(to) => write!(f, " -> {to}"),
            Fate::NoEquivalent(why) => write!(f, ": {why}"),
            Fate::ByHand(what) => write!(f, ": BY HAND: {what}"),
            Fate::Unknown => f.write_str(
                ": BY HAND: the import does not know this; see whether docs/CONFIG.md has a key for it",
            ),
        }
    }
}

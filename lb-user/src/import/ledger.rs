//! Every word of every input, and what became of it. A word that no mapping claims is reported as
//! unknown: so nothing of an input can get lost.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use super::{
    report::{Entry, Fate, Report},
    secrets,
};

/// A word of an input, as its quotes, escapes and variables leave it.
#[derive(Clone, Debug)]
pub(super) struct Word {
    /// Which one it is in the ledger.
    pub(super) id: WordId,
    /// What it says.
    pub(super) text: String,
}

/// Which word of the ledger.
pub(super) type WordId = usize;

/// Where a word stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Which file, as [`Ledger::file`] numbered it.
    pub(super) file: usize,
    /// Line, from 1.
    pub(super) line: usize,
    /// Column in characters, from 1.
    pub(super) column: usize,
}

/// A word that was read.
#[derive(Debug)]
struct Record {
    place: Place,
    shown: String,
    /// The part that is not shown.
    secret: Option<String>,
    claimed: bool,
    /// Understood, and without effect if nobody claims it.
    recognised: bool,
}

/// What became of some words.
#[derive(Debug)]
struct Claim {
    words: Vec<WordId>,
    fate: Fate,
}

/// All words of all inputs.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    files: RefCell<Vec<String>>,
    records: RefCell<Vec<Record>>,
    claims: RefCell<Vec<Claim>>,
    derived: RefCell<Vec<Fate>>,
}

impl Ledger {
    /// A new input.
    pub(super) fn file(&self, name: &str) -> usize {
        let mut files = self.files.borrow_mut();
        files.push(printable(name));
        files.len() - 1
    }

    /// A word that was read at `place`.
    pub(super) fn word(&self, place: Place, text: impl Into<String>) -> Word {
        let text = text.into();
        let mut records = self.records.borrow_mut();
        records.push(Record {
            place,
            shown: shown(&secrets::masked(&text)),
            secret: secrets::split(&text).map(|(_, secret)| secret.to_owned()),
            claimed: false,
            recognised: false,
        });
        Word {
            id: records.len() - 1,
            text,
        }
    }

    /// How many words there are.
    pub(super) fn len(&self) -> usize {
        self.records.borrow().len()
    }

    /// Never show this word, which is a secret; `prefix` is none.
    pub(super) fn hide(&self, word: &Word, prefix: &str) {
        if let Some(record) = self.records.borrow_mut().get_mut(word.id) {
            record.shown = secrets::hidden(prefix);
            let secret = word.text.strip_prefix(prefix).unwrap_or(&word.text);
            record.secret = Some(secret.to_owned());
        }
    }

    /// `file:line` of a word, with the last part of the file's path.
    pub(super) fn origin(&self, word: WordId) -> String {
        let records = self.records.borrow();
        records.get(word).map_or_else(String::new, |record| {
            let files = self.files.borrow();
            let file = files
                .get(record.place.file)
                .map_or("", |file| base_name(file));
            format!("{file}:{}", record.place.line)
        })
    }

    /// These words became this key of the configuration.
    pub(super) fn mapped(&self, words: &[WordId], to: impl Into<String>) {
        self.claim(words, &Fate::Mapped(to.into()));
    }

    /// xvip has nothing like it and needs nothing: `why`.
    pub(super) fn none(&self, words: &[WordId], why: impl Into<String>) {
        self.claim(words, &Fate::NoEquivalent(why.into()));
    }

    /// Somebody must look at it: `what` is to be done.
    pub(super) fn by_hand(&self, words: &[WordId], what: impl Into<String>) {
        self.claim(words, &Fate::ByHand(what.into()));
    }

    /// What became of `words`, line by line. What was said already is not said again.
    pub(super) fn claim(&self, words: &[WordId], fate: &Fate) {
        let mut records = self.records.borrow_mut();
        let of = |word: &WordId| records.get(*word)?.secret.clone();
        let secrets: Vec<_> = words.iter().filter_map(of).collect();
        let fate = &without_secrets(fate, &secrets);
        let mut lines: BTreeMap<(usize, usize), Vec<WordId>> = BTreeMap::new();
        for &word in words {
            if let Some(record) = records.get_mut(word) {
                record.claimed = true;
                let line = (record.place.file, record.place.line);
                lines.entry(line).or_default().push(word);
            }
        }
        let mut claims = self.claims.borrow_mut();
        for words in lines.into_values() {
            let said = |claim: &Claim| claim.words == words && claim.fate == *fate;
            // Repetitions come from one line that serves several sections: they are close together.
            if !claims.iter().rev().take(512).any(said) {
                let fate = fate.clone();
                claims.push(Claim { words, fate });
            }
        }
    }

    /// These words are understood, and used if something that needs them follows.
    pub(super) fn recognise(&self, words: &[WordId]) {
        let mut records = self.records.borrow_mut();
        for &word in words {
            if let Some(record) = records.get_mut(word) {
                record.recognised = true;
            }
        }
    }

    /// Something that stands in no input.
    pub(super) fn derived(&self, fate: Fate) {
        self.derived.borrow_mut().push(fate);
    }

    /// What became of every word.
    pub(super) fn report(self) -> Report {
        let files = self.files.into_inner();
        let records = self.records.into_inner();
        let mut claims = self.claims.into_inner();
        claims.extend(left_over(&records));
        let mut entries: Vec<(Place, Entry)> = claims
            .into_iter()
            .filter_map(|claim| located(&files, &records, claim))
            .collect();
        entries.sort_by_key(|(place, _)| *place);
        let mut entries: Vec<_> = entries.into_iter().map(|(_, entry)| entry).collect();
        let derived = self.derived.into_inner().into_iter();
        entries.extend(derived.map(|fate| Entry {
            file: String::new(),
            line: 0,
            column: 0,
            text: String::new(),
            fate,
        }));
        Report::new(entries)
    }
}

/// What became of words that hold these secrets.
fn without_secrets(fate: &Fate, secrets: &[String]) -> Fate {
    match fate {
        _ if secrets.is_empty() => fate.clone(),
        Fate::Mapped(to) => Fate::Mapped(secrets::without_value(to)),
        Fate::NoEquivalent(why) => Fate::NoEquivalent(secrets::without(why, secrets)),
        Fate::ByHand(what) => Fate::ByHand(secrets::without(what, secrets)),
        Fate::Unknown => Fate::Unknown,
    }
}

/// A claim for the words that nobody claimed: one for those that stand together.
fn left_over(records: &[Record]) -> Vec<Claim> {
    let mut claims: Vec<Claim> = Vec::new();
    let mut last = None;
    for (word, record) in records.iter().enumerate() {
        if record.claimed {
            last = None;
            continue;
        }
        let here = (record.place.file, record.place.line, record.recognised);
        match claims.last_mut() {
            Some(claim) if last == Some(here) => claim.words.push(word),
            _ => {
                let fate = if record.recognised {
                    Fate::NoEquivalent("nothing that is imported uses it".to_owned())
                } else {
                    Fate::Unknown
                };
                let words = vec![word];
                claims.push(Claim { words, fate });
            }
        }
        last = Some(here);
    }
    claims
}

fn located(files: &[String], records: &[Record], claim: Claim) -> Option<(Place, Entry)> {
    let words: BTreeSet<_> = claim.words.into_iter().collect();
    let records: Vec<_> = words.iter().filter_map(|&word| records.get(word)).collect();
    let place = records.iter().map(|record| record.place).min()?;
    let text: Vec<_> = records.iter().map(|record| record.shown.as_str()).collect();
    let entry = Entry {
        file: files.get(place.file).cloned().unwrap_or_default(),
        line: place.line,
        column: place.column,
        text: text.join(" "),
        fate: claim.fate,
    };
    Some((place, entry))
}

/// The last part of a path.
pub(super) fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Longer words are cut where they are shown.
const MAX_SHOWN: usize = 120;

/// A word as reports show it.
fn shown(text: &str) -> String {
    let mut shown = if text.is_empty() {
        "\"\"".to_owned()
    } else {
        printable(text)
    };
    if shown.chars().count() > MAX_SHOWN {
        shown = shown.chars().take(MAX_SHOWN).collect();
        shown.push_str("...");
    }
    shown
}

/// `text` without characters that a terminal or a comment would take for something else.
pub(super) fn printable(text: &str) -> String {
    let replace = |c: char| if c.is_control() { '?' } else { c };
    text.chars().map(replace).collect()
}

//! TOML with positions: tables and values that record what is wrong with them and which keys
//! were asked for, so that every error is found in one pass and unknown keys are refused.

use std::{cell::RefCell, fmt::Display, ops::RangeInclusive};

use toml::de::{DeTable, DeValue};

use super::{
    error::{ConfigError, ConfigErrors, position},
    value::Fault,
};

/// Where something stands: for errors that are found after reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Byte offset in the text.
    at: usize,
    /// The key, as in `vrrp[0].priority`.
    key: String,
}

impl Mark {
    /// The key, as in `vrrp[0].priority`.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// The table that holds the key: `vrrp[0]` of `vrrp[0].priority`.
    pub(super) fn parent(&self) -> &str {
        self.key.rsplit_once('.').map_or("", |(parent, _)| parent)
    }

    /// Something that stands in no text.
    pub(super) const fn named(key: String) -> Self {
        Self { at: 0, key }
    }

    /// The key `key` of the table that this marks, at the table's place.
    fn child(&self, key: &str) -> Self {
        let key = match self.key.as_str() {
            "" => shown(key),
            parent => format!("{parent}.{}", shown(key)),
        };
        Self { at: self.at, key }
    }

    /// Element `index` of the array that this marks, at byte `at`.
    fn element(&self, index: usize, at: usize) -> Self {
        Self {
            at,
            key: format!("{}[{index}]", self.key),
        }
    }
}

/// A key as it is written in TOML.
fn shown(key: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !key.is_empty() && key.chars().all(is_bare) {
        key.to_owned()
    } else {
        format!("{key:?}")
    }
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Marked<T> {
    /// The value.
    pub(super) value: T,
    /// Where it stands.
    pub(super) mark: Mark,
}

/// Something refused.
#[derive(Debug)]
struct Finding {
    mark: Mark,
    fault: Fault,
    /// Whether it is about something that is not there: untrue if an error of syntax hides it.
    is_absence: bool,
}

/// Everything refused so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    findings: RefCell<Vec<Finding>>,
    /// What is read where a table is left out.
    empty: DeTable<'static>,
}

impl Report {
    /// Refuse what stands at `mark`.
    pub(super) fn refuse(&self, mark: &Mark, fault: Fault) {
        self.record(mark.clone(), fault, false);
    }

    /// Refuse that something which `mark` needs is not there.
    pub(super) fn refuse_absence(&self, mark: &Mark, fault: Fault) {
        self.record(mark.clone(), fault, true);
    }

    fn record(&self, mark: Mark, fault: Fault, is_absence: bool) {
        self.findings.borrow_mut().push(Finding {
            mark,
            fault,
            is_absence,
        });
    }

    /// What is wrong, without its place.
    pub(super) fn into_faults(self) -> impl Iterator<Item = Fault> {
        self.findings
            .into_inner()
            .into_iter()
            .map(|finding| finding.fault)
    }

    /// `config`, or everything that is wrong with `text`.
    ///
    /// Past the first error of syntax keys may have landed in the wrong table: what was found
    /// there, or found missing anywhere, is left for the next run.
    pub(super) fn finish<T>(
        self,
        text: &str,
        file: &str,
        syntax_errors: &[toml::de::Error],
        config: Option<T>,
    ) -> Result<T, ConfigErrors> {
        let start = |error: &toml::de::Error| error.span().map_or(0, |span| span.start);
        let first_line = syntax_errors
            .iter()
            .map(|error| position(text, start(error)).0)
            .min();
        let located = |at, key: &str, problem: &str, hint: &str| {
            let (line, column) = position(text, at);
            ConfigError {
                file: file.to_owned(),
                line,
                column,
                key: key.to_owned(),
                problem: problem.to_owned(),
                hint: hint.to_owned(),
            }
        };
        let mut errors: Vec<_> = syntax_errors
            .iter()
            .map(|error| located(start(error), "", error.message(), ""))
            .collect();
        for Finding {
            mark,
            fault,
            is_absence,
        } in self.findings.into_inner()
        {
            let error = located(mark.at, &mark.key, &fault.problem, &fault.hint);
            // What stands in for a value that could not be read has no place: 0.
            let is_real = !is_absence && mark.at > 0;
            if first_line.is_none_or(|first| is_real && error.line < first) {
                errors.push(error);
            }
        }
        match config {
            Some(config) if errors.is_empty() => return Ok(config),
            None if errors.is_empty() => {
                let hint = "this is a bug of xvip, please report it";
                errors.push(located(0, "", "refused without a reason", hint));
            }
            _ => {}
        }
        Err(ConfigErrors::new(errors))
    }
}

/// An optional value is there and wrong: an error is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused;

/// A table that is being read. Call [`Table::finish`] at the end.
#[derive(Debug)]
pub(super) struct Table<'d> {
    report: &'d Report,
    mark: Mark,
    entries: &'d DeTable<'d>,
    known: Vec<&'static str>,
}

impl<'d> Table<'d> {
    /// The whole document.
    pub(super) fn root(report: &'d Report, table: &'d DeTable<'d>) -> Self {
        let mark = Mark {
            at: 0,
            key: String::new(),
        };
        Self::new(report, mark, table)
    }

    fn new(report: &'d Report, mark: Mark, entries: &'d DeTable<'d>) -> Self {
        Self {
            report,
            mark,
            entries,
            known: Vec::new(),
        }
    }

    /// Where errors go.
    pub(super) fn report(&self) -> &'d Report {
        self.report
    }

    /// Where the table starts.
    pub(super) fn mark(&self) -> &Mark {
        &self.mark
    }

    /// The value of `key`, if it is there.
    pub(super) fn get(&mut self, key: &'static str) -> Option<Value<'d>> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        let value = self.entries.get(key)?;
        Some(Value {
            report: self.report,
            mark: Mark {
                at: value.span().start,
                ..self.mark.child(key)
            },
            raw: value.get_ref(),
        })
    }

    /// The value of `key`; if it is not there an error that says `hint`.
    pub(super) fn need(&mut self, key: &'static str, hint: &str) -> Option<Value<'d>> {
        let value = self.get(key);
        if value.is_none() {
            self.refuse_missing(key, hint);
        }
        value
    }

    /// Refuse that `key` is not there.
    pub(super) fn refuse_missing(&self, key: &str, hint: &str) {
        self.report
            .refuse_absence(&self.mark.child(key), Fault::new("is missing", hint));
    }

    /// What `read` makes of the value of `key`, or `default` if it is not there.
    pub(super) fn get_or<T>(
        &mut self,
        key: &'static str,
        default: impl Into<Option<T>>,
        read: impl FnOnce(&Value<'d>) -> Option<Marked<T>>,
    ) -> Option<T> {
        match self.get(key) {
            Some(value) => read(&value).map(|marked| marked.value),
            None => default.into(),
        }
    }

    /// The table `key`; an empty one if it is not there or not a table.
    pub(super) fn table(&mut self, key: &'static str) -> Table<'d> {
        self.get(key)
            .and_then(|value| value.table())
            .unwrap_or_else(|| Table::new(self.report, self.mark.child(key), &self.report.empty))
    }

    /// The tables of the array of tables `key`; none if it is not there.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<Table<'d>> {
        let Some(array) = self.get(key) else {
            return Vec::new();
        };
        if let DeValue::Table(_) = array.raw {
            let header = format!("write [[{}]]", without_indexes(&array.mark.key));
            array.refuse(Fault::new("found a single table", header));
            return Vec::new();
        }
        array.elements().iter().filter_map(Value::table).collect()
    }

    /// Every entry, where the keys are the user's own.
    pub(super) fn entries(self) -> Vec<(String, Value<'d>)> {
        let value = |(key, value): (&'d toml::Spanned<_>, &'d toml::Spanned<DeValue<'d>>)| {
            let key: &toml::de::DeString<'_> = key.get_ref();
            let mark = Mark {
                at: value.span().start,
                ..self.mark.child(key)
            };
            let raw = value.get_ref();
            let report = self.report;
            (key.to_string(), Value { report, mark, raw })
        };
        self.entries.iter().map(value).collect()
    }

    /// Refuse the keys that nobody asked for.
    pub(super) fn finish(self) {
        for key in self.entries.keys() {
            if !self.known.contains(&key.get_ref().as_ref()) {
                let mark = Mark {
                    at: key.span().start,
                    ..self.mark.child(key.get_ref())
                };
                let hint = suggestion(key.get_ref(), &self.known);
                self.report.refuse(&mark, Fault::new("unknown key", hint));
            }
        }
    }
}

/// `service.backend` of `service[0].backend`: what stands between the brackets of a header.
fn without_indexes(key: &str) -> String {
    key.split('.')
        .map(|part| part.split_once('[').map_or(part, |(name, _)| name))
        .collect::<Vec<_>>()
        .join(".")
}

/// A value that is being read. Every reader records an error where it returns `None`.
#[derive(Debug)]
pub(super) struct Value<'d> {
    report: &'d Report,
    mark: Mark,
    raw: &'d DeValue<'d>,
}

impl<'d> Value<'d> {
    /// Refuse this value.
    pub(super) fn refuse(&self, fault: Fault) {
        self.report.refuse(&self.mark, fault);
    }

    fn marked<T>(&self, value: T) -> Marked<T> {
        Marked {
            value,
            mark: self.mark.clone(),
        }
    }

    fn refuse_type(&self, wanted: impl Display) {
        let found = match self.raw {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        let problem = format!("found {found}");
        self.refuse(Fault::new(problem, format!("write {wanted}")));
    }

    /// What `read` makes of a string; `example` shows one.
    pub(super) fn text<T>(
        &self,
        example: &str,
        read: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<Marked<T>> {
        let DeValue::String(text) = self.raw else {
            self.refuse_type(format_args!("a string such as {example:?}"));
            return None;
        };
        match read(text) {
            Ok(value) => Some(self.marked(value)),
            Err(fault) => {
                self.refuse(fault);
                None
            }
        }
    }

    /// The value that belongs to a string of `options`.
    pub(super) fn choice<T: Copy>(&self, options: &[(&str, T)]) -> Option<Marked<T>> {
        let quoted: Vec<_> = options
            .iter()
            .map(|(name, _)| format!("{name:?}"))
            .collect();
        let expected = match quoted.split_last() {
            Some((last, [])) => last.clone(),
            Some((last, others)) => format!("{} or {last}", others.join(", ")),
            None => String::new(),
        };
        let DeValue::String(text) = self.raw else {
            self.refuse_type(expected);
            return None;
        };
        let option = options.iter().find(|(name, _)| name == text);
        if option.is_none() {
            let problem = format!("{text:?} is not known");
            self.refuse(Fault::new(problem, format!("write {expected}")));
        }
        option.map(|(_, value)| self.marked(*value))
    }

    /// What `make` makes of an integer in `range`.
    pub(super) fn number<T>(
        &self,
        range: RangeInclusive<u16>,
        make: impl FnOnce(u16) -> Option<T>,
    ) -> Option<Marked<T>> {
        let (first, last) = range.into_inner();
        self.integer(u32::from(first)..=u32::from(last), |number| {
            u16::try_from(number).ok().and_then(make)
        })
    }

    /// An integer in `range`, which may go beyond 16 bits.
    pub(super) fn large_number(&self, range: RangeInclusive<u32>) -> Option<Marked<u32>> {
        self.integer(range, Some)
    }

    fn integer<T>(
        &self,
        range: RangeInclusive<u32>,
        make: impl FnOnce(u32) -> Option<T>,
    ) -> Option<Marked<T>> {
        let DeValue::Integer(integer) = self.raw else {
            self.refuse_type(format_args!("an integer, {}", spelled(&range)));
            return None;
        };
        let number = u32::from_str_radix(integer.as_str(), integer.radix())
            .ok()
            .filter(|number| range.contains(number))
            .and_then(make);
        if number.is_none() {
            let problem = format!("{integer} is out of range");
            self.refuse(Fault::new(problem, format!("write {}", spelled(&range))));
        }
        number.map(|number| self.marked(number))
    }

    /// An integer in `range`, which may be below 0.
    pub(super) fn signed_number(&self, range: RangeInclusive<i16>) -> Option<Marked<i16>> {
        let (first, last) = (range.start(), range.end());
        let DeValue::Integer(integer) = self.raw else {
            self.refuse_type(format_args!("an integer, {first}..{last}"));
            return None;
        };
        let number = i16::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            let problem = format!("{integer} is out of range");
            self.refuse(Fault::new(problem, format!("write {first}..{last}")));
        }
        number.map(|number| self.marked(number))
    }

    /// Whether it is a table.
    pub(super) fn is_table(&self) -> bool {
        matches!(self.raw, DeValue::Table(_))
    }

    /// A boolean.
    pub(super) fn boolean(&self) -> Option<Marked<bool>> {
        if let DeValue::Boolean(value) = self.raw {
            return Some(self.marked(*value));
        }
        self.refuse_type("true or false");
        None
    }

    /// The elements of an array; none if it is no array.
    pub(super) fn elements(&self) -> Vec<Value<'d>> {
        let DeValue::Array(array) = self.raw else {
            self.refuse_type("an array");
            return Vec::new();
        };
        array
            .iter()
            .enumerate()
            .map(|(index, element)| Value {
                report: self.report,
                mark: self.mark.element(index, element.span().start),
                raw: element.get_ref(),
            })
            .collect()
    }

    /// Whether it is a string.
    pub(super) const fn is_text(&self) -> bool {
        matches!(self.raw, DeValue::String(_))
    }

    /// Whether it is an array without elements.
    pub(super) fn is_empty_array(&self) -> bool {
        matches!(self.raw, DeValue::Array(array) if array.is_empty())
    }

    /// What `read` makes of the elements of an array, without those that it refuses.
    pub(super) fn each<T>(
        &self,
        read: impl FnMut(&Value<'d>) -> Option<Marked<T>>,
    ) -> Vec<Marked<T>> {
        self.elements().iter().filter_map(read).collect()
    }

    /// A table.
    pub(super) fn table(&self) -> Option<Table<'d>> {
        if let DeValue::Table(table) = self.raw {
            return Some(Table::new(self.report, self.mark.clone(), table));
        }
        self.refuse_type("a table");
        None
    }
}

/// `1..255`, or `2 or 3` where that is all.
fn spelled(range: &RangeInclusive<u32>) -> String {
    let (first, last) = (range.start(), range.end());
    match last - first {
        0 => first.to_string(),
        1 => format!("{first} or {last}"),
        _ => format!("{first}..{last}"),
    }
}

/// What was probably meant by `key`, else what could be meant.
fn suggestion(key: &str, known: &[&'static str]) -> String {
    let nearest = known
        .iter()
        .map(|candidate| (distance(key, candidate), *candidate))
        .min();
    match nearest {
        Some((edits, candidate)) if edits <= 1 + candidate.len() / 4 => {
            format!("did you mean {candidate:?}?")
        }
        _ => format!("known here: {}", known.join(", ")),
    }
}

/// Levenshtein distance: insertions, deletions and replacements that make `a` of `b`.
fn distance(a: &str, b: &str) -> usize {
    // row[j]: distance between the characters of `a` so far and the first j of `b`.
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, to) in row.iter_mut().skip(1).zip(b.chars()) {
            let replaced = diagonal + usize::from(from != to);
            diagonal = *cell;
            left = replaced.min(left + 1).min(diagonal + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The distance is the textbook one, in both directions.
    #[test]
    fn counts_edits() {
        for (a, b, edits) in [
            ("", "", 0),
            ("", "abc", 3),
            ("vrid", "vrid", 0),
            ("priorty", "priority", 1),
            ("adress", "address", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), edits, "{a} {b}");
            assert_eq!(distance(b, a), edits, "{b} {a}");
        }
    }
}

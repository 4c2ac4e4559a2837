//! haproxy.cfg as sections and lines: quotes, escapes, comments and environment variables
//! (haproxy's configuration manual, sections 2.2 and 2.3).

use std::collections::BTreeMap;

use super::super::{
    Input, Refusal,
    ledger::{Ledger, Place, Word, WordId},
    secrets,
};

/// Words of an input: more are no configuration.
const MAX_WORDS: usize = 200_000;
/// Characters of a line.
const MAX_LINE: usize = 64 * 1024;

/// The words of a line.
#[derive(Clone, Debug)]
pub(super) struct Line {
    words: Vec<Word>,
}

impl Line {
    /// The keyword.
    pub(super) fn keyword(&self) -> &str {
        self.word(0)
    }

    /// A word's text; empty where there is none.
    pub(super) fn word(&self, index: usize) -> &str {
        self.words.get(index).map_or("", |word| word.text.as_str())
    }

    /// All words.
    pub(super) fn words(&self) -> &[Word] {
        &self.words
    }

    /// The words' places in the ledger.
    pub(super) fn ids(&self) -> Vec<WordId> {
        self.words.iter().map(|word| word.id).collect()
    }

    /// The same of the first `count` words.
    pub(super) fn first(&self, count: usize) -> Vec<WordId> {
        self.words.iter().take(count).map(|word| word.id).collect()
    }
}

/// A section: `global`, `defaults`, `frontend NAME` and so on.
#[derive(Debug)]
pub(super) struct Section {
    /// Its first line.
    pub(super) head: Line,
    /// The lines below.
    pub(super) lines: Vec<Line>,
}

/// Words that begin a section.
const SECTIONS: [&str; 18] = [
    "global",
    "defaults",
    "frontend",
    "backend",
    "listen",
    "peers",
    "resolvers",
    "userlist",
    "mailers",
    "program",
    "cache",
    "http-errors",
    "ring",
    "log-forward",
    "fcgi-app",
    "traces",
    "crt-store",
    "dynamic-update",
];

/// Reads a file.
pub(super) fn parse(
    input: &Input,
    variables: &BTreeMap<String, String>,
    ledger: &Ledger,
) -> Result<Vec<Section>, Refusal> {
    let file = ledger.file(&input.name);
    let mut variables = variables.clone();
    let mut sections: Vec<Section> = Vec::new();
    for (index, text) in input.text.lines().enumerate() {
        let line = index + 1;
        if text.len() > MAX_LINE || ledger.len() > MAX_WORDS {
            return Err(Refusal::too_large(&input.name, line, MAX_WORDS));
        }
        let mut cutter = Cutter {
            chars: text.chars().enumerate().peekable(),
            variables: &variables,
            missing: Vec::new(),
            secrets: Vec::new(),
        };
        let mut words = Vec::new();
        while let Some((column, text)) = cutter.word() {
            let column = column + 1;
            words.push(ledger.word(Place { file, line, column }, text));
        }
        hide_secrets(&words, &cutter.secrets, ledger);
        let ids: Vec<_> = words.iter().map(|word| word.id).collect();
        for name in cutter.missing {
            let what = format!(
                "the environment variable {name} has no value here: give it with --define {name}=VALUE"
            );
            ledger.by_hand(&ids, what);
        }
        let Some(first) = words.first() else {
            continue;
        };
        if first.text.starts_with('.') {
            ledger.by_hand(
                &ids,
                "conditions are not evaluated, and all lines count: leave in the file what applies",
            );
            continue;
        }
        let line = Line { words };
        if sections
            .last()
            .is_some_and(|section| section.head.keyword() == "global")
        {
            set(&line, &mut variables);
        }
        if SECTIONS.contains(&line.keyword()) {
            let lines = Vec::new();
            sections.push(Section { head: line, lines });
        } else if let Some(section) = sections.last_mut() {
            section.lines.push(line);
        } else {
            ledger.by_hand(
                &ids,
                "no section has begun: remove it or write one above it",
            );
        }
    }
    Ok(sections)
}

/// What `setenv` and its kin make of variables: lines below see it.
fn set(line: &Line, variables: &mut BTreeMap<String, String>) {
    let (name, value) = (line.word(1).to_owned(), line.word(2).to_owned());
    match line.keyword() {
        "setenv" => {
            variables.insert(name, value);
        }
        "presetenv" => {
            variables.entry(name).or_insert(value);
        }
        "unsetenv" => {
            variables.remove(&name);
        }
        _ => {}
    }
}

/// Passwords of users, headers, what checks send, and variables.
fn hide_secrets(words: &[Word], of_variables: &[String], ledger: &Ledger) {
    let text = |at: usize| words.get(at).map_or("", |word| word.text.as_str());
    let is_stats = text(0) == "stats" && text(1) == "auth";
    let sends = text(0) == "tcp-check" && text(1).starts_with("send");
    let sets = matches!(text(0), "setenv" | "presetenv") && secrets::is_name(text(1));
    let mut rest = false;
    for (at, word) in words.iter().enumerate() {
        let before = at.checked_sub(1).map_or("", text);
        let of_user = matches!(before, "password" | "insecure-password" | "ca-sign-pass");
        let of_agent = before == "agent-send";
        let of_header = at.checked_sub(2).is_some_and(|at| is_header(text(at)));
        let logs_in = word.text.split_whitespace().any(|part| {
            let part = part.to_ascii_lowercase();
            matches!(part.as_str(), "auth" | "pass" | "login") || part.contains("password")
        });
        if rest
            || (is_stats && at == 2)
            || of_user
            || (of_header && secrets::is_name(before))
            || (sets && at == 2)
            || ((sends || of_agent) && logs_in)
            || of_variables
                .iter()
                .any(|value| !value.is_empty() && word.text.contains(value))
        {
            ledger.hide(word, "");
        }
        // A header of `option httpchk` whose spaces are not escaped.
        rest |= word.text.to_ascii_lowercase().ends_with("authorization:");
    }
}

/// Words that the name of a header and its value follow.
fn is_header(text: &str) -> bool {
    text == "hdr" || text.ends_with("-header")
}

/// Cuts a line into words.
struct Cutter<'a, I: Iterator<Item = (usize, char)>> {
    chars: std::iter::Peekable<I>,
    variables: &'a BTreeMap<String, String>,
    /// Names of variables without a value.
    missing: Vec<String>,
    /// Values of variables that hold secrets.
    secrets: Vec<String>,
}

impl<I: Iterator<Item = (usize, char)>> Cutter<'_, I> {
    /// The next word and its column from 0.
    fn word(&mut self) -> Option<(usize, String)> {
        while self.chars.next_if(|(_, c)| c.is_whitespace()).is_some() {}
        let &(start, c) = self.chars.peek()?;
        if c == '#' {
            return None;
        }
        let mut text = String::new();
        while let Some((_, c)) = self.chars.next_if(|(_, c)| !c.is_whitespace() && *c != '#') {
            match c {
                '\\' => self.escape(&mut text),
                '\'' => text.push_str(&self.until('\'')),
                '"' => self.weak(&mut text),
                c => text.push(c),
            }
        }
        Some((start, text))
    }

    /// The characters before the next `end`.
    fn until(&mut self, end: char) -> String {
        let mut text = String::new();
        for (_, c) in self.chars.by_ref() {
            if c == end {
                break;
            }
            text.push(c);
        }
        text
    }

    fn escape(&mut self, text: &mut String) {
        match self.chars.next().map(|(_, c)| c) {
            Some('n') => text.push('\n'),
            Some('r') => text.push('\r'),
            Some('t') => text.push('\t'),
            Some('x') => {
                let mut code = 0;
                for _ in 0..2 {
                    let digit = self.chars.next_if(|(_, c)| c.is_ascii_hexdigit());
                    if let Some(digit) = digit.and_then(|(_, c)| c.to_digit(16)) {
                        code = code * 16 + digit;
                    }
                }
                text.extend(char::from_u32(code));
            }
            Some(c) => text.push(c),
            None => {}
        }
    }

    /// What stands between double quotes.
    fn weak(&mut self, text: &mut String) {
        while let Some((_, c)) = self.chars.next() {
            match c {
                '"' => break,
                '\\' => self.escape(text),
                '$' => self.variable(text),
                c => text.push(c),
            }
        }
    }

    /// `NAME`, `{NAME}` or `{NAME-DEFAULT}` after a `$`.
    fn variable(&mut self, text: &mut String) {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let name = if self.chars.next_if(|(_, c)| *c == '{').is_some() {
            self.until('}')
        } else {
            let mut name = String::new();
            while let Some((_, c)) = self.chars.next_if(|(_, c)| is_name(*c)) {
                name.push(c);
            }
            name
        };
        let (name, default) = match name.split_once('-') {
            Some((name, default)) => (name, Some(default)),
            None => (name.as_str(), None),
        };
        let name = name.trim_end_matches("[*]");
        match self.variables.get(name).map(String::as_str).or(default) {
            Some(value) => {
                text.push_str(value);
                if secrets::is_name(name) {
                    self.secrets.push(value.to_owned());
                }
            }
            None => self.missing.push(super::super::ledger::printable(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        let variables = BTreeMap::from([("PORT".to_owned(), "6443".to_owned())]);
        let mut cutter = Cutter {
            chars: line.chars().enumerate().peekable(),
            variables: &variables,
            missing: Vec::new(),
            secrets: Vec::new(),
        };
        let words = std::iter::from_fn(|| cutter.word().map(|(_, text)| text));
        words.collect()
    }

    /// The rules of the configuration manual.
    #[test]
    fn cuts_lines_as_haproxy_does() {
        assert_eq!(words("  bind *:6443  # comment"), ["bind", "*:6443"]);
        assert_eq!(words(r"a\ b \# 'c # d' "), ["a b", "#", "c # d"]);
        assert_eq!(
            words(r#""x $PORT" "${PORT}" "${NO-80}" '$PORT' $PORT"#),
            ["x 6443", "6443", "80", "$PORT", "$PORT"]
        );
        assert_eq!(words(r"HTTP/1.1\r\nHost:\ www"), ["HTTP/1.1\r\nHost: www"]);
        assert_eq!(words(r"\x41\x4"), ["A\u{4}"]);
        assert_eq!(words("\"never closed"), ["never closed"]);
    }
}

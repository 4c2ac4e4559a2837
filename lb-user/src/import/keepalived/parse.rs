//! keepalived.conf as statements and blocks: comments, quotes, conditional lines, definitions and
//! includes (keepalived.conf(5), "ADVANCED CONFIGURATION").

use std::collections::BTreeMap;

use super::super::{
    Input, Options, Refusal,
    ledger::{Ledger, Place, Word},
    secrets,
};

/// Blocks in blocks: keepalived has no more than five levels.
const MAX_DEPTH: usize = 32;
/// Files that include files.
const MAX_INCLUDES: usize = 16;
/// Definitions in definitions.
const MAX_SUBSTITUTIONS: usize = 64;
/// A line, with what its definitions make of it.
const MAX_LINE: usize = 64 * 1024;
/// Words of all inputs: more are no configuration.
const MAX_WORDS: usize = 200_000;

/// The words of a line, and the block that follows them.
#[derive(Debug, Default)]
pub(in super::super) struct Statement {
    /// At least one, but for the root.
    pub(in super::super) words: Vec<Word>,
    /// What stands between its braces.
    pub(in super::super) block: Vec<Statement>,
}

impl Statement {
    /// The keyword.
    pub(in super::super) fn keyword(&self) -> &str {
        self.word(0)
    }

    /// A word's text; empty where there is none.
    pub(in super::super) fn word(&self, index: usize) -> &str {
        self.words.get(index).map_or("", |word| word.text.as_str())
    }

    /// The words' places in the ledger.
    pub(in super::super) fn ids(&self) -> Vec<usize> {
        self.words.iter().map(|word| word.id).collect()
    }

    /// The same of the first `count` words.
    pub(in super::super) fn first(&self, count: usize) -> Vec<usize> {
        self.words.iter().take(count).map(|word| word.id).collect()
    }

    /// The statements of its block with this keyword.
    pub(in super::super) fn children<'a>(
        &'a self,
        keyword: &'a str,
    ) -> impl Iterator<Item = &'a Statement> {
        self.block
            .iter()
            .filter(move |child| child.keyword() == keyword)
    }

    /// The last one of them, which counts in keepalived.
    pub(in super::super) fn child(&self, keyword: &str) -> Option<&Statement> {
        self.block.iter().rfind(|child| child.keyword() == keyword)
    }

    /// Its words and those of everything in its block.
    pub(in super::super) fn each(&self, act: &mut impl FnMut(&Statement)) {
        act(self);
        for child in &self.block {
            child.each(act);
        }
    }
}

/// Reads a file and what it includes.
pub(in super::super) fn parse(
    input: &Input,
    ledger: &Ledger,
    options: &Options<'_>,
) -> Result<Vec<Statement>, Refusal> {
    let mut parser = Parser {
        ledger,
        options,
        definitions: BTreeMap::new(),
        defined: Vec::new(),
        open: vec![Statement::default()],
        included: 0,
        definition: None,
    };
    parser.file(input, 0)?;
    parser.close_all();
    Ok(parser.open.pop().unwrap_or_default().block)
}

struct Parser<'a> {
    ledger: &'a Ledger,
    options: &'a Options<'a>,
    definitions: BTreeMap<String, String>,
    /// Name, value and words of every definition of one line.
    defined: Vec<(String, String, Word)>,
    /// The root, and the last statement of every open block.
    open: Vec<Statement>,
    included: usize,
    /// A definition of several lines that goes on.
    definition: Option<(String, String)>,
}

impl Parser<'_> {
    fn file(&mut self, input: &Input, depth: usize) -> Result<(), Refusal> {
        let file = self.ledger.file(&input.name);
        for (index, line) in input.text.lines().enumerate() {
            let place = Place {
                file,
                line: index + 1,
                column: 1,
            };
            self.line(line, place, &input.name, depth)?;
        }
        Ok(())
    }

    fn line(&mut self, line: &str, at: Place, name: &str, depth: usize) -> Result<(), Refusal> {
        if self.ledger.len() > MAX_WORDS {
            return Err(Refusal::too_large(name, at.line, MAX_WORDS));
        }
        if line.len() > MAX_LINE {
            return Err(Refusal::too_large(name, at.line, MAX_LINE));
        }
        if self.continue_definition(line, at) {
            return Ok(());
        }
        let start = line.trim_start();
        let at = Place {
            column: 1 + line.chars().count() - start.chars().count(),
            ..at
        };
        if let Some(pattern) = include(start) {
            return self.include(start, pattern, at, depth);
        }
        let Some(start) = self.condition(start, at) else {
            return Ok(());
        };
        if self.define(start, at) {
            return Ok(());
        }
        if start.starts_with('~') {
            let word = self.ledger.word(at, without_comment(start));
            self.ledger.by_hand(
                &[word.id],
                "sequences and lists (~SEQ, ~LST) are not expanded: write the lines out",
            );
            return Ok(());
        }
        self.substituted(start, at, name, 0)
    }

    /// A line without condition, with its definitions replaced; they may make several lines.
    fn substituted(
        &mut self,
        line: &str,
        at: Place,
        name: &str,
        depth: usize,
    ) -> Result<(), Refusal> {
        let Some(text) = self.substitute(line) else {
            return Err(Refusal::too_large(name, at.line, MAX_LINE));
        };
        if !text.contains('\n') {
            return self.words(&text, at, name);
        }
        if depth > MAX_SUBSTITUTIONS || self.ledger.len() > MAX_WORDS {
            return Err(Refusal::too_large(name, at.line, MAX_WORDS));
        }
        for line in text.lines() {
            let start = line.trim_start();
            let Some(start) = self.condition(start, at) else {
                continue;
            };
            if !self.define(start, at) {
                self.substituted(start, at, name, depth + 1)?;
            }
        }
        Ok(())
    }

    /// A further line of a definition.
    fn continue_definition(&mut self, line: &str, at: Place) -> bool {
        let Some((name, mut value)) = self.definition.take() else {
            return false;
        };
        let text = line.trim_end();
        let (text, goes_on) = match text.strip_suffix('\\') {
            Some(text) => (text, true),
            None => (text, false),
        };
        value.push_str(text);
        value.push('\n');
        let shown = text.trim();
        if !shown.is_empty() {
            let word = self.ledger.word(at, shown);
            let to = format!("part of ${name}: read where that stands");
            self.ledger.mapped(&[word.id], to);
        }
        if goes_on && value.len() < MAX_LINE {
            self.definition = Some((name, value));
        } else {
            self.definitions.insert(name, value);
        }
        true
    }

    /// What is left of a line of `@condition`; `None` if it is not for this node.
    fn condition<'l>(&self, line: &'l str, at: Place) -> Option<&'l str> {
        let Some(rest) = line.strip_prefix('@') else {
            return Some(line);
        };
        let (condition, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let (wanted, negated) = match condition.strip_prefix('^') {
            Some(name) => (name, true),
            None => (condition, false),
        };
        if (wanted == self.options.config_id) != negated {
            let is_bare = |c: char| c.is_whitespace() || c == '{' || c == '}';
            if without_comment(rest).chars().all(is_bare) {
                let word = self.ledger.word(at, format!("@{condition}"));
                self.ledger
                    .none(&[word.id], "nothing follows the condition");
            }
            return Some(rest.trim_start());
        }
        let word = self.ledger.word(at, without_comment(line));
        let why = format!(
            "not for this node, whose configuration id is {:?}",
            self.options.config_id
        );
        self.ledger.none(&[word.id], why);
        None
    }

    /// `$NAME=VALUE`
    fn define(&mut self, line: &str, at: Place) -> bool {
        let Some((name, value)) = line.strip_prefix('$').and_then(|rest| rest.split_once('='))
        else {
            return false;
        };
        if !is_name(name) {
            return false;
        }
        let value = without_comment(value);
        let word = self.ledger.word(at, format!("${name}={value}"));
        if secrets::is_name(name) {
            self.ledger.hide(&word, &format!("${name}="));
        }
        self.defined
            .push((name.to_owned(), value.to_owned(), word.clone()));
        self.ledger
            .mapped(&[word.id], format!("the value of ${name} further down"));
        if value == "\\" {
            self.definition = Some((name.to_owned(), String::new()));
        } else {
            self.definitions.insert(name.to_owned(), value.to_owned());
        }
        true
    }

    /// `$NAME` before white space, and `${NAME}`, until nothing is left to replace.
    fn substitute(&self, line: &str) -> Option<String> {
        let mut text = line.to_owned();
        for _ in 0..MAX_SUBSTITUTIONS {
            if text.contains('\n') {
                return Some(text);
            }
            let Some(next) = self.substitute_once(&text) else {
                return Some(text);
            };
            if next.len() > MAX_LINE {
                return None;
            }
            text = next;
        }
        None
    }

    fn substitute_once(&self, text: &str) -> Option<String> {
        for (start, _) in text.match_indices('$') {
            let (before, rest) = text.split_at(start);
            let rest = rest.strip_prefix('$')?;
            let (name, after) = match rest.strip_prefix('{') {
                Some(inner) => match inner.split_once('}') {
                    Some(split) => split,
                    None => continue,
                },
                None => rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len())),
            };
            let value = match name {
                "_HASH" => "\\#",
                "_BANG" => "\\!",
                "_INSTANCE" => self.options.config_id.as_str(),
                name => match self.definitions.get(name) {
                    Some(value) => value,
                    None => continue,
                },
            };
            return Some(format!("{before}{value}{after}"));
        }
        None
    }

    fn include(
        &mut self,
        line: &str,
        pattern: &str,
        at: Place,
        depth: usize,
    ) -> Result<(), Refusal> {
        let word = self.ledger.word(at, without_comment(line));
        if depth >= MAX_INCLUDES || self.included >= MAX_INCLUDES * MAX_INCLUDES {
            let what = "too many files include each other: put them into one";
            self.ledger.by_hand(&[word.id], what);
            return Ok(());
        }
        match (self.options.include)(pattern) {
            Ok(inputs) => {
                let names: Vec<_> = inputs.iter().map(|input| input.name.as_str()).collect();
                if names.is_empty() {
                    let what = "no file has such a name here: if the node has some, import there";
                    self.ledger.by_hand(&[word.id], what);
                } else {
                    let to = format!("reads {}", names.join(", "));
                    self.ledger.mapped(&[word.id], to);
                }
                for input in &inputs {
                    self.included += 1;
                    self.file(input, depth + 1)?;
                }
            }
            Err(error) => {
                let what = format!("cannot be read ({error}): put its lines in place of this one");
                self.ledger.by_hand(&[word.id], what);
            }
        }
        Ok(())
    }

    fn words(&mut self, line: &str, at: Place, name: &str) -> Result<(), Refusal> {
        let mut words = Vec::new();
        for token in tokens(line) {
            match token {
                Token::Word(column, text) => {
                    let column = at.column + column;
                    let word = self.ledger.word(Place { column, ..at }, text);
                    let before = words.last().map(|word: &Word| word.text.as_str());
                    if before == Some("auth_pass") {
                        self.hide(&word);
                    }
                    words.push(word);
                }
                Token::Open(column) => {
                    let own = std::mem::take(&mut words);
                    self.open_block(own, at, column);
                    if self.open.len() > MAX_DEPTH {
                        return Err(Refusal::too_large(name, at.line, MAX_DEPTH));
                    }
                }
                Token::Close(column) => {
                    self.statement(std::mem::take(&mut words));
                    self.close_block(at, column);
                }
            }
        }
        self.statement(words);
        Ok(())
    }

    /// A password, and the definition that it may come from.
    fn hide(&self, password: &Word) {
        self.ledger.hide(password, "");
        for (name, value, word) in &self.defined {
            if *value == password.text {
                self.ledger.hide(word, &format!("${name}="));
            }
        }
    }

    fn statement(&mut self, words: Vec<Word>) {
        if let Some(parent) = self.open.last_mut()
            && !words.is_empty()
        {
            let block = Vec::new();
            parent.block.push(Statement { words, block });
        }
    }

    /// `{` after words, or on the line below its keyword.
    fn open_block(&mut self, words: Vec<Word>, at: Place, column: usize) {
        let opened = if words.is_empty() {
            let last = self.open.last_mut().and_then(|parent| parent.block.pop());
            last.filter(|statement| statement.block.is_empty())
        } else {
            let block = Vec::new();
            Some(Statement { words, block })
        };
        let opened = opened.unwrap_or_else(|| {
            let column = at.column + column;
            let word = self.ledger.word(Place { column, ..at }, "{");
            let what = "no keyword stands before it: write one";
            self.ledger.by_hand(&[word.id], what);
            let (words, block) = (vec![word], Vec::new());
            Statement { words, block }
        });
        self.open.push(opened);
    }

    fn close_block(&mut self, at: Place, column: usize) {
        if self.open.len() < 2 {
            let column = at.column + column;
            let word = self.ledger.word(Place { column, ..at }, "}");
            self.ledger
                .by_hand(&[word.id], "closes no block: remove it");
            return;
        }
        self.close_last();
    }

    fn close_last(&mut self) {
        if let Some(closed) = self.open.pop()
            && let Some(parent) = self.open.last_mut()
        {
            parent.block.push(closed);
        }
    }

    /// At the end of the input.
    fn close_all(&mut self) {
        while self.open.len() > 1 {
            if let Some(statement) = self.open.last() {
                self.ledger.by_hand(
                    &statement.ids(),
                    "its block is never closed: write } where it ends",
                );
            }
            self.close_last();
        }
    }
}

/// The file names of an include line.
fn include(line: &str) -> Option<&str> {
    let (keyword, pattern) = line.split_once(char::is_whitespace)?;
    let is_include = matches!(
        keyword,
        "include" | "includer" | "includem" | "includew" | "includeb" | "includea"
    );
    let pattern = without_comment(pattern).trim_matches(['"', '\'']);
    (is_include && !pattern.is_empty()).then_some(pattern)
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A line up to its comment, without white space around it.
fn without_comment(line: &str) -> &str {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in line.char_indices() {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if Some(c) == quote {
            quote = None;
        } else if quote.is_none() && (c == '"' || c == '\'') {
            quote = Some(c);
        } else if quote.is_none() && (c == '#' || c == '!') {
            return line.get(..at).unwrap_or(line).trim();
        }
    }
    line.trim()
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(usize, String),
    Open(usize),
    Close(usize),
}

/// The words and braces of a line, each with the column that it starts at, from 0.
fn tokens(line: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut chars = line.chars().enumerate().peekable();
    while let Some(&(column, c)) = chars.peek() {
        match c {
            '#' | '!' => break,
            '{' => {
                chars.next();
                tokens.push(Token::Open(column));
            }
            '}' => {
                chars.next();
                tokens.push(Token::Close(column));
            }
            c if c.is_whitespace() => {
                chars.next();
            }
            _ => tokens.push(Token::Word(column, word(&mut chars))),
        }
    }
    tokens
}

/// A word: up to white space, a comment or a brace that no quotes hold.
fn word(chars: &mut std::iter::Peekable<impl Iterator<Item = (usize, char)>>) -> String {
    let mut text = String::new();
    let mut quote = None;
    while let Some(&(_, c)) = chars.peek() {
        match quote {
            None if c.is_whitespace() || matches!(c, '#' | '!' | '{' | '}') => break,
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ if c == '\\' => {
                chars.next();
                text.extend(chars.peek().map(|&(_, escaped)| escaped));
            }
            None if c == '$' => {
                text.push(c);
                chars.next();
                variable(chars, &mut text);
                continue;
            }
            _ => text.push(c),
        }
        chars.next();
    }
    text
}

/// `{NAME}` after a `$` that nothing replaced is a part of the word.
fn variable(
    chars: &mut std::iter::Peekable<impl Iterator<Item = (usize, char)>>,
    text: &mut String,
) {
    if chars.peek().is_none_or(|&(_, c)| c != '{') {
        return;
    }
    for (_, c) in chars.by_ref() {
        text.push(c);
        if c == '}' {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        let word = |token| match token {
            Token::Word(_, text) => text,
            Token::Open(_) => "{".to_owned(),
            Token::Close(_) => "}".to_owned(),
        };
        tokens(line).into_iter().map(word).collect()
    }

    /// Quotes, escapes, comments and braces, as keepalived.conf(5) describes them.
    #[test]
    fn cuts_lines_as_keepalived_does() {
        assert_eq!(words("abcd\" efg h jkl \"mnop"), ["abcd efg h jkl mnop"]);
        assert_eq!(
            words("abcd \"efg h jkl\" 'mn op'"),
            ["abcd", "efg h jkl", "mn op"]
        );
        assert_eq!(words("priority 101 # a comment"), ["priority", "101"]);
        assert_eq!(words("! all of it"), Vec::<String>::new());
        assert_eq!(words("script \"echo # no\""), ["script", "echo # no"]);
        assert_eq!(words("vrrp_instance VI_1{"), ["vrrp_instance", "VI_1", "{"]);
        assert_eq!(words("group { VI_1 }"), ["group", "{", "VI_1", "}"]);
        assert_eq!(words("p ${UNDEFINED}.1"), ["p", "${UNDEFINED}.1"]);
    }
}

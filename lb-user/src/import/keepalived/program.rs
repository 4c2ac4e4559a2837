//! Programs that keepalived.conf names: what is run, without a shell, and by whom.

use super::{
    super::{
        Options,
        document::quoted,
        ledger::{Ledger, WordId},
    },
    globals::Globals,
    parse::Statement,
};

/// Where xvip's programs find others, and keepalived those without a path.
const SEARCHED: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// Longest command: the kernel would take more, no configuration has it.
const MAX_WORDS: usize = 256;

/// What mapping a program needs.
#[derive(Clone, Copy)]
pub(super) struct Tools<'a> {
    pub(super) ledger: &'a Ledger,
    pub(super) options: &'a Options<'a>,
    pub(super) globals: &'a Globals,
}

/// The program of a keepalived string and its arguments as an array in TOML, or what somebody must
/// do.
pub(in crate::import) fn command(text: &str, options: &Options<'_>) -> Result<String, String> {
    let by_shell = |text: &str| array(["/bin/sh", "-c", text].into_iter());
    let is_test = text
        .strip_prefix('<')
        .is_some_and(|rest| rest.trim_start().starts_with('/'));
    if is_test && options.is_readable("/bin/sh") {
        // Whether a file can be opened: keepalived has no program for it either, but a shell.
        return Ok(by_shell(text));
    }
    let Some(words) = split(text) else {
        return Err(
            "its quotes or words cannot be told apart: write the program and its arguments"
                .to_owned(),
        );
    };
    if words.iter().any(Cut::is_of_shell) {
        return Err(format!(
            "looks like the line of a shell; xvip uses none, and newer versions of keepalived do not either: make it a \
             script, or write {}",
            by_shell(text)
        ));
    }
    let mut words = words.iter().map(|word| word.text.as_str());
    let program = words.next().unwrap_or_default();
    let path = if program.starts_with('/') {
        options.is_readable(program).then(|| program.to_owned())
    } else if program.contains('/') {
        None
    } else {
        let mut paths = SEARCHED
            .iter()
            .map(|directory| format!("{directory}/{program}"));
        paths.find(|path| !program.is_empty() && options.is_readable(path))
    };
    let rest: Vec<_> = words.collect();
    match path {
        Some(path) => Ok(array(std::iter::once(path.as_str()).chain(rest))),
        None => Err(format!(
            "the program cannot be read here: where it is, by its absolute path, write {}",
            array(std::iter::once(program).chain(rest))
        )),
    }
}

fn array<'w>(words: impl Iterator<Item = &'w str>) -> String {
    let words: Vec<_> = words.map(quoted).collect();
    format!("[{}]", words.join(", "))
}

/// A word of a command.
#[derive(Debug, PartialEq, Eq)]
struct Cut {
    text: String,
    /// Whether no part of it stands in quotes.
    is_bare: bool,
}

impl Cut {
    /// Whether it does something in a shell, which a program cannot do with it: a pipe, a
    /// redirection, a list, a variable.
    fn is_of_shell(&self) -> bool {
        let text = self.text.as_str();
        let after_number = text.trim_start_matches(|c: char| c.is_ascii_digit());
        let is_name = |c: char| c.is_ascii_alphabetic() || "_{(".contains(c);
        let has_variable = text
            .split('$')
            .skip(1)
            .any(|rest| rest.starts_with(is_name));
        self.is_bare
            && (after_number.starts_with(['<', '>', '|', '&', ';'])
                || text.ends_with([';', '|'])
                || text.contains('`')
                || has_variable)
    }
}

/// The words of a command. keepalived cuts what it took out of quotes once more: there quotes hold
/// white space, and a backslash what follows it. `None`: a quote is not closed.
fn split(text: &str) -> Option<Vec<Cut>> {
    let mut words: Vec<Cut> = Vec::new();
    let mut word: Option<Cut> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            words.extend(word.take());
            continue;
        }
        let word = word.get_or_insert_with(|| Cut {
            text: String::new(),
            is_bare: true,
        });
        if Some(c) == quote {
            quote = None;
        } else if quote.is_none() && (c == '"' || c == '\'') {
            quote = Some(c);
            word.is_bare = false;
        } else if c == '\\' {
            word.text.extend(chars.next());
        } else {
            word.text.push(c);
        }
    }
    words.extend(word);
    (quote.is_none() && words.len() <= MAX_WORDS).then_some(words)
}

/// `USER [GROUP]` from word `at` on, or whom `global_defs` says. `None`: keepalived would not run it.
pub(super) fn user(line: &Statement, at: usize, tools: Tools<'_>) -> Option<(String, Vec<WordId>)> {
    if line.word(at).is_empty() {
        return tools.globals.user.clone();
    }
    group(line, at, tools.ledger);
    let words = line.words.get(at).map(|word| vec![word.id]);
    Some((line.word(at).to_owned(), words.unwrap_or_default()))
}

/// Claims the group of `USER GROUP`: xvip's programs have that of their user.
pub(super) fn group(line: &Statement, at: usize, ledger: &Ledger) {
    let Some(word) = line.words.get(at + 1) else {
        return;
    };
    let (user, group) = (line.word(at), word.text.as_str());
    if user == group || (user, group) == ("nobody", "nogroup") {
        ledger.none(&[word.id], "the program has the group of its user");
    } else {
        let what = "the program has the group of its user: see that this is enough";
        ledger.by_hand(&[word.id], what);
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn options() -> Options<'static> {
        Options {
            read_file: &|path| match path.to_str() {
                Some("/bin/sh" | "/usr/bin/pgrep" | "/opt/it" | "/opt/the one") => Ok(Vec::new()),
                _ => Err(io::ErrorKind::NotFound.into()),
            },
            ..Options::default()
        }
    }

    /// A string of keepalived is a program and its arguments: quotes hold white space, programs
    /// without a path are looked for, and tests of files are what they are in keepalived.
    #[test]
    fn strings_become_programs() {
        for (text, expected) in [
            ("/opt/it", r#"["/opt/it"]"#),
            ("/opt/it  up\tnow", r#"["/opt/it", "up", "now"]"#),
            ("/opt/it 'a b' \"c d\"e", r#"["/opt/it", "a b", "c de"]"#),
            ("'/opt/the one' x", r#"["/opt/the one", "x"]"#),
            (r"/opt/it a\ b '' \'", r#"["/opt/it", "a b", "", "'"]"#),
            ("pgrep -x a", r#"["/usr/bin/pgrep", "-x", "a"]"#),
            (
                "/bin/sh -c 'test $(id -u) = 0 | cat > /x'",
                r#"["/bin/sh", "-c", "test $(id -u) = 0 | cat > /x"]"#,
            ),
            (
                "/opt/it http://x/?a=1&b=2 5 $",
                r#"["/opt/it", "http://x/?a=1&b=2", "5", "$"]"#,
            ),
            ("</run/x", r#"["/bin/sh", "-c", "</run/x"]"#),
            ("< /run/x", r#"["/bin/sh", "-c", "< /run/x"]"#),
        ] {
            assert_eq!(command(text, &options()).as_deref(), Ok(expected), "{text}");
        }
    }

    /// What a shell would do otherwise, or what is not there, is left to somebody: with what to write.
    #[test]
    fn what_needs_a_shell_is_told() {
        for text in [
            "/opt/it | cat",
            "/opt/it > /dev/null",
            "/opt/it 2>&1",
            "/opt/it; /opt/it",
            "/opt/it && /opt/it",
            "/opt/it &",
            "/opt/it $HOME",
            "/opt/it ${HOME}/x",
            "/opt/it $(id)",
            "/opt/it `id`",
        ] {
            let what = command(text, &options()).unwrap_err();
            let mend = format!("write {}", array(["/bin/sh", "-c", text].into_iter()));
            assert!(what.contains("a shell") && what.ends_with(&mend), "{what}");
        }
        for (text, mend) in [
            ("/opt/other up", r#"write ["/opt/other", "up"]"#),
            ("other.sh", r#"write ["other.sh"]"#),
            ("bin/it", r#"write ["bin/it"]"#),
        ] {
            let what = command(text, &options()).unwrap_err();
            assert!(
                what.contains("cannot be read") && what.ends_with(mend),
                "{what}"
            );
        }
        for text in ["", "/opt/it 'a", "/opt/it \"a"] {
            assert!(command(text, &options()).is_err(), "{text}");
        }
    }
}

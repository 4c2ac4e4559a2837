//! The repository's rules that a machine can check: what the core may not know, where `unsafe`
//! lives, which crate may use which, and how a source file begins.

// A test that cannot read the sources has failed.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// What the sans-IO core may not mention, tests included, and why.
const FORBIDDEN_IN_CORE: &[(&str, &str)] = &[
    ("tokio", "a runtime: the core is driven by its caller"),
    (
        "futures_util",
        "a runtime: the core is driven by its caller",
    ),
    ("async", "the core is driven by its caller"),
    ("aya", "the BPF system call: tables are values here"),
    (
        "netlink_sys",
        "a socket: interfaces and addresses are values here",
    ),
    (
        "netlink_packet_core",
        "interfaces and addresses are values here",
    ),
    (
        "netlink_packet_route",
        "interfaces and addresses are values here",
    ),
    (
        "rtnetlink",
        "a socket: interfaces and addresses are values here",
    ),
    ("nix", "system calls: effects are actions"),
    ("libc", "system calls: effects are actions"),
    ("socket2", "sockets: adverts are actions"),
    ("hyper", "sockets: probes are actions"),
    ("rustls", "sockets: probes are actions"),
    (
        "tracing",
        "output: what an operator should know is an action",
    ),
    (
        "println",
        "output: what an operator should know is an action",
    ),
    (
        "eprintln",
        "output: what an operator should know is an action",
    ),
    ("Instant", "a clock: time comes in as Timestamp"),
    ("SystemTime", "a clock: time comes in as Timestamp"),
    ("sleep", "a clock: waiting is the caller's"),
    ("thread", "the core is driven by its caller"),
    ("fs", "the file system: files are read by the configuration"),
    ("env", "the environment: it is the command line's"),
    ("process", "processes: effects are actions"),
    ("TcpStream", "a socket: probes are actions"),
    ("TcpListener", "a socket"),
    ("UdpSocket", "a socket: adverts are actions"),
    ("UnixStream", "a socket"),
    ("UnixListener", "a socket"),
    (
        "ToSocketAddrs",
        "name resolution: addresses are numbers here",
    ),
    ("rand", "randomness comes in as a seed"),
    ("RandomState", "randomness comes in as a seed"),
    (
        "HashMap",
        "its order is random: the same inputs make the same actions",
    ),
    (
        "HashSet",
        "its order is random: the same inputs make the same actions",
    ),
];

/// Parts of lb-user, and which parts of it each of them may use.
const PARTS: &[(&str, &[&str])] = &[
    ("core", &["core", "config"]),
    ("config", &["config"]),
    ("import", &["import", "config"]),
];

/// The files that hold `unsafe`, and what for. Everything else is safe code.
const UNSAFE: &[(&str, &str)] = &[
    (
        "lb-common/src/headers.rs",
        "marks the header types that any bytes of a packet may be read as",
    ),
    (
        "lb-common/src/pod.rs",
        "marks the map types as plain bytes for aya; their layout is checked at compile time",
    ),
    (
        "lb-ebpf/src/bin/floor.rs",
        "the benchmark's programs: their packet access is their own",
    ),
    (
        "lb-ebpf/src/forward.rs",
        "kernel helpers that move a packet to another interface",
    ),
    (
        "lb-ebpf/src/maps.rs",
        "references into map values, and kernel helpers on sockets",
    ),
    (
        "lb-ebpf/src/packet.rs",
        "the one bounds-checked access to packet memory",
    ),
    (
        "lb-user/src/io/bpf/batch.rs",
        "the BPF system call for whole pieces of a map, which aya does not offer",
    ),
    (
        "lb-user/src/io/bpf/ring.rs",
        "a record from the bytes of a ring buffer; the promise that tokio asks for",
    ),
    (
        "lb-user/src/io/bpf/syscall.rs",
        "commands of the bpf system call that aya has no words for",
    ),
    (
        "lb-user/src/io/ethtool.rs",
        "an ioctl that reads an interface's features",
    ),
    (
        "lb-user/src/io/realtime.rs",
        "the system call for real-time scheduling, for which no safe words are at hand",
    ),
    (
        "lb-user/src/io/vrrp_socket.rs",
        "tokio asks for the promise that a descriptor stays open while it is registered",
    ),
    (
        "tests/src/counters.rs",
        "the BPF system call for many elements of a per-CPU array, which aya does not offer",
    ),
];

/// Files with attributes that are `unsafe` to write, and what for.
const UNSAFE_ATTRIBUTES: &[(&str, &str)] = &[
    (
        "lb-ebpf/src/bin/floor.rs",
        "the kernel finds a program's license by its section and name",
    ),
    (
        "lb-ebpf/src/log.rs",
        "functions that the verifier checks on their own keep their names",
    ),
    (
        "lb-ebpf/src/main.rs",
        "the kernel finds a program's license by its section and name",
    ),
    (
        "lb-ebpf/src/maps.rs",
        "a constant that the loader finds by its name",
    ),
    (
        "lb-ebpf/src/stages.rs",
        "functions that the verifier checks on their own keep their names",
    ),
];

/// Which of our crates each of them may use, in any kind of dependency.
const CRATES: &[(&str, &[&str])] = &[
    ("lb-common", &[]),
    ("lb-ebpf", &["lb-common"]),
    ("lb-user", &["lb-common"]),
    ("lb-tests", &["lb-common", "lb-user"]),
    ("lb-bench", &["lb-common", "lb-tests", "lb-user"]),
    ("xtask", &[]),
];

/// A Rust source file.
struct Source {
    /// Path below the workspace.
    path: String,
    text: String,
    /// The text without comments and literals.
    code: String,
}

impl Source {
    /// Lines of the code that contain `word` as a whole.
    fn lines_with<'a>(&'a self, word: &'a str) -> impl Iterator<Item = String> + 'a {
        let lines = self.code.lines().enumerate();
        let lines = lines.filter(move |(_, line)| words(line).any(|found| found == word));
        lines.map(|(number, _)| format!("{}:{}", self.path, number + 1))
    }
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_')
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// Every Rust file of the repository, but for what is built.
fn sources() -> Vec<Source> {
    let root = workspace();
    let mut found = Vec::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    directories.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(read(&root, &path));
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 50, "the sources were not found");
    found
}

fn read(root: &Path, path: &Path) -> Source {
    let text = fs::read_to_string(path).unwrap();
    let below = path.strip_prefix(root).unwrap();
    Source {
        path: below.to_str().unwrap().to_owned(),
        code: without_comments_and_literals(&text),
        text,
    }
}

/// Blank out comments, strings and character literals; lines stay where they are.
fn without_comments_and_literals(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let before_is_word = code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let skipped = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => string(rest),
            'r' if !before_is_word => raw_string(rest),
            '\'' => character(rest),
            _ => 0,
        };
        if skipped == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            code.push(' ');
            code.extend(rest[..skipped].chars().filter(|c| *c == '\n'));
            rest = &rest[skipped..];
        }
    }
    code
}

/// Length of the block comment that `text` begins with; they nest.
fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// Length of the string literal that `text` begins with.
fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Length of the raw string literal that `text` begins with; 0 if it does not.
fn raw_string(text: &str) -> usize {
    let hashes = text[1..].chars().take_while(|c| *c == '#').count();
    let opening = 1 + hashes;
    if !text[opening..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let body = &text[opening + 1..];
    body.find(&end)
        .map_or(text.len(), |at| opening + 1 + at + end.len())
}

/// Length of the character literal that `text` begins with; 0 for a lifetime.
fn character(text: &str) -> usize {
    let mut inner = text[1..].chars();
    let first = inner.next();
    if first == Some('\\') {
        let escape = inner.next().map_or(0, char::len_utf8);
        let end = text[2 + escape..].find('\'');
        return end.map_or(0, |at| 3 + escape + at);
    }
    let len = first.map_or(0, char::len_utf8);
    if text[1 + len..].starts_with('\'') {
        len + 2
    } else {
        0
    }
}

/// The first names after `crate::` in `code`, also those in braces.
fn used_parts(code: &str) -> BTreeSet<String> {
    let code: String = code.split_whitespace().collect();
    let mut parts = BTreeSet::new();
    for (at, found) in code.match_indices("crate::") {
        let path = &code[at + found.len()..];
        if let Some(group) = path.strip_prefix('{') {
            parts.extend(group_heads(group));
        } else {
            parts.extend(words(path).next().map(str::to_owned));
        }
    }
    parts
}

/// First names of the items of a group in braces, up to the brace that closes it.
fn group_heads(group: &str) -> Vec<String> {
    let mut heads = vec![String::new()];
    let mut depth = 0;
    let mut in_head = true;
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                heads.push(String::new());
                in_head = true;
                continue;
            }
            _ => {}
        }
        in_head &= c.is_alphanumeric() || c == '_';
        if in_head && let Some(head) = heads.last_mut() {
            head.push(c);
        }
    }
    heads.retain(|head| !head.is_empty());
    heads
}

/// Fails with all `violations`, one per line.
fn assert_none(rule: &str, violations: &[String]) {
    assert!(
        violations.is_empty(),
        "{rule}:\n  {}",
        violations.join("\n  ")
    );
}

/// The core decides; it does nothing and asks nobody. Its tests are held to that, too.
#[test]
fn the_core_is_sans_io() {
    let mut violations = Vec::new();
    for source in sources() {
        if source.path.starts_with("lb-user/src/core/") {
            for (word, why) in FORBIDDEN_IN_CORE {
                let lines = source.lines_with(word);
                violations.extend(lines.map(|line| format!("{line}: {word} ({why})")));
            }
        }
    }
    assert_none("the core may not mention", &violations);
}

/// Core and configuration do not know what is built on them.
#[test]
fn parts_depend_in_one_direction() {
    let mut violations = Vec::new();
    for source in sources() {
        for (part, allowed) in PARTS {
            let inside = source.path.starts_with(&format!("lb-user/src/{part}/"));
            if !inside {
                continue;
            }
            let used = used_parts(&source.code);
            let wrong = used.iter().filter(|used| !allowed.contains(&used.as_str()));
            violations.extend(wrong.map(|used| format!("{}: crate::{used}", source.path)));
        }
    }
    assert_none("may not be used there", &violations);
}

/// `unsafe` is where it is listed, and nothing is listed without need.
#[test]
fn unsafe_code_lives_in_listed_files() {
    let mut found = BTreeSet::new();
    let mut attributes = BTreeSet::new();
    for source in sources() {
        let code: String = source.code.split_whitespace().collect();
        let in_attributes = code.matches("#[unsafe(").count();
        let all = words(&source.code).filter(|word| *word == "unsafe").count();
        if in_attributes > 0 {
            attributes.insert(source.path.clone());
        }
        if all > in_attributes {
            found.insert(source.path);
        }
    }
    let listed = |list: &[(&str, &str)]| list.iter().map(|(path, _)| (*path).to_owned()).collect();
    assert_eq!(found, listed(UNSAFE));
    assert_eq!(attributes, listed(UNSAFE_ATTRIBUTES));
}

/// The first line of a file begins to say what it is for.
#[test]
fn files_say_what_they_are_for() {
    let sources = sources();
    let silent = sources.iter().filter(|s| !s.text.starts_with("//! "));
    let silent: Vec<_> = silent.map(|source| source.path.clone()).collect();
    assert_none("no //! at the top", &silent);
}

/// Nothing is left for later: what is missing is an issue, not a comment.
#[test]
fn nothing_is_left_for_later() {
    let mut violations = Vec::new();
    for source in sources() {
        for word in ["todo", "unimplemented", "dbg"] {
            let line = source
                .code
                .lines()
                .find(|line| line.contains(&format!("{word}!(")));
            violations.extend(line.map(|line| format!("{}: {}", source.path, line.trim())));
        }
        for word in [
            concat!("FIX", "ME"),
            concat!("TO", "DO"),
            concat!("XX", "X"),
        ] {
            if words(&source.text).any(|found| found == word) {
                violations.push(format!("{}: {word}", source.path));
            }
        }
    }
    assert_none("left for later", &violations);
}

/// Crates depend in one direction, and all of them take the workspace's lints.
#[test]
fn crates_depend_in_one_direction() {
    let root = workspace();
    let manifest = |path: &Path| -> toml::Table {
        let text = fs::read_to_string(path.join("Cargo.toml")).unwrap();
        text.parse().unwrap()
    };
    let members = manifest(&root);
    let members = members["workspace"]["members"].as_array().unwrap();
    let mut used = BTreeMap::new();
    for member in members {
        let manifest = manifest(&root.join(member.as_str().unwrap()));
        let name = manifest["package"]["name"].as_str().unwrap().to_owned();
        assert_eq!(
            manifest["lints"]["workspace"].as_bool(),
            Some(true),
            "lints of {name}"
        );
        let mut ours = BTreeSet::new();
        dependencies(&manifest, &mut ours);
        used.insert(name, ours);
    }
    let known: BTreeSet<_> = CRATES.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(used.keys().cloned().collect::<BTreeSet<_>>(), known);
    for (name, allowed) in CRATES {
        let ours = used[*name].iter().filter(|used| known.contains(*used));
        let wrong: Vec<_> = ours
            .filter(|used| !allowed.contains(&used.as_str()))
            .cloned()
            .collect();
        assert_none(&format!("{name} may not use"), &wrong);
    }
}

/// Names of all dependencies of a manifest, of any kind and for any target.
fn dependencies(table: &toml::Table, found: &mut BTreeSet<String>) {
    for (key, value) in table {
        let Some(inner) = value.as_table() else {
            continue;
        };
        if key.ends_with("dependencies") {
            for (name, dependency) in inner {
                let renamed = dependency.get("package").and_then(toml::Value::as_str);
                found.insert(renamed.unwrap_or(name).to_owned());
            }
        } else {
            dependencies(inner, found);
        }
    }
}

/// What kernel and user space share needs no standard library.
#[test]
fn shared_code_is_no_std() {
    for path in ["lb-common/src/lib.rs", "lb-ebpf/src/main.rs"] {
        let source = read(&workspace(), &workspace().join(path));
        assert!(source.code.contains("no_std"), "{path}");
        let std: Vec<_> = source.lines_with("std").collect();
        assert_none("uses std", &std);
    }
}

/// The scanner itself: comments and literals are blanked out, code is not.
#[test]
fn the_scanner_sees_code_only() {
    let blank = without_comments_and_literals;
    assert_eq!(blank("a // unsafe\nb"), "a  \nb");
    assert_eq!(blank("a /* x /* unsafe */ y */ b"), "a   b");
    assert_eq!(blank(r#"f("un\"safe", c)"#), "f( , c)");
    assert_eq!(blank("r#\"unsafe\"# + for\"x\""), "  + for ");
    assert_eq!(
        blank(r"f('\'', '{', 'a, '\u{7f}') 'b: "),
        "f( ,  , 'a,  ) 'b: "
    );
    let used = used_parts("use crate::{\n config::{model::A, x}, io };\n crate::core::B");
    assert_eq!(used.iter().collect::<Vec<_>>(), ["config", "core", "io"]);
}

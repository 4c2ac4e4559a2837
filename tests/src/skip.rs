//! Tests that cannot run on this machine: they say why instead of passing silently.

use std::{env, fs::OpenOptions, io::Write};

use nix::unistd::geteuid;

/// Notes that the running test is skipped; `cargo xtask test` counts and shows the note.
///
/// libtest has no skipping at run time and swallows the output of tests that pass, so the note
/// goes to the file that `XVIP_SKIPPED_TESTS` names.
pub fn note(why: &str) {
    let thread = std::thread::current();
    let line = format!("{}: {why}\n", thread.name().unwrap_or("a test"));
    eprint!("skipped {line}");
    if let Some(file) = env::var_os("XVIP_SKIPPED_TESTS")
        && let Ok(mut file) = OpenOptions::new().append(true).open(file)
    {
        // One write: lines of tests that run at the same time do not mix. A note that is lost
        // makes the count wrong and nothing else.
        let _ = file.write_all(line.as_bytes());
    }
}

/// Whether tests may make namespaces and load programs; notes a skip if not.
pub fn without_root() -> bool {
    if geteuid().is_root() {
        return false;
    }
    note("needs root");
    true
}

/// Whether a program that a test compares xvip with is missing; notes a skip if so.
pub fn without_program(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    if env::split_paths(&path).any(|directory| directory.join(name).is_file()) {
        return false;
    }
    note(&format!("{name} is not installed"));
    true
}

/// Returns from the running test, with a note, where a program is missing:
/// `skip_unless_installed!("keepalived")`.
#[macro_export]
macro_rules! skip_unless_installed {
    ($program:literal) => {
        if $crate::skip::without_program($program) {
            return Default::default();
        }
    };
}

/// Returns from the running test, with a note, where it cannot run: `skip_unless_root!()`.
#[macro_export]
macro_rules! skip_unless_root {
    () => {
        if $crate::skip::without_root() {
            return Default::default();
        }
    };
}

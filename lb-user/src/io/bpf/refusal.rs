//! A program that the kernel refuses: a sentence for the operator, and the verifier's log in a file for
//! whoever looks into it.

use std::{
    fmt, fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use aya::{BtfError, EbpfError, programs::ProgramError};

use crate::admin::Paths;

/// Bytes of the verifier's log that are kept: its end, which holds the reason.
const KEPT: usize = 8 << 20;

/// Lines of the verifier's log that say nothing about the reason: they begin so.
const STATISTICS: [&str; 5] = [
    "processed ",
    "verification time ",
    "stack depth ",
    "mark_precise:",
    "insns processed",
];

/// What the verifier looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Program(&'static str),
    /// The object's description of its types.
    Btf,
}

impl Subject {
    const fn name(self) -> &'static str {
        match self {
            Self::Program(name) => name,
            Self::Btf => "btf",
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program(name) => write!(f, "the program {name}"),
            Self::Btf => f.write_str("the types of the programs (BTF)"),
        }
    }
}

/// A program that the kernel refused.
#[derive(Debug)]
pub struct Refusal {
    subject: Subject,
    release: String,
    error: io::Error,
    log: String,
    file: Option<Result<PathBuf, io::Error>>,
    goes_on: bool,
}

impl Refusal {
    /// What the kernel of release `release` said about `program`; the error itself if it is about
    /// something else.
    pub(super) fn of_program(
        program: &'static str,
        release: String,
        error: ProgramError,
    ) -> Result<Self, ProgramError> {
        match error {
            ProgramError::LoadError {
                io_error,
                verifier_log,
            } => {
                let subject = Subject::Program(program);
                Ok(Self::new(subject, release, io_error, &verifier_log))
            }
            other => Err(other),
        }
    }

    /// The same about the whole object.
    pub(super) fn of_object(release: String, error: EbpfError) -> Result<Self, EbpfError> {
        match error {
            EbpfError::BtfError(BtfError::LoadError {
                io_error,
                verifier_log,
            }) => Ok(Self::new(Subject::Btf, release, io_error, &verifier_log)),
            other => Err(other),
        }
    }

    fn new(subject: Subject, release: String, error: io::Error, log: &impl fmt::Display) -> Self {
        Self {
            subject,
            release,
            error,
            log: log.to_string(),
            file: None,
            goes_on: false,
        }
    }

    /// The kernel's error.
    pub(super) const fn error(&self) -> &io::Error {
        &self.error
    }

    /// Whether the verifier got to look at it.
    pub(super) const fn has_log(&self) -> bool {
        !self.log.is_empty()
    }

    /// Why, in the kernel's own words: the last line of the verifier's log that says so, else the error
    /// of the system call.
    pub fn why(&self) -> String {
        reason(&self.log).map_or_else(|| self.error.to_string(), str::to_owned)
    }

    /// Programs of an earlier run are attached and go on.
    pub(super) const fn note_earlier(&mut self) {
        self.goes_on = true;
    }

    /// Write the log to a file: one for each program, so that there are never many.
    pub(super) fn keep(&mut self, paths: &Paths) {
        if self.log.is_empty() || self.file.is_some() {
            return;
        }
        let path = paths.verifier_log(self.subject.name());
        let head = format!(
            "xvip {}, Linux {}, {}: {}\n",
            env!("CARGO_PKG_VERSION"),
            self.release,
            self.subject,
            self.error
        );
        let written = write_new(&path, &[head.as_bytes(), end(&self.log).as_bytes()]);
        self.file = Some(written.map(|()| path));
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (subject, release, why) = (self.subject, &self.release, self.why());
        write!(f, "this kernel, Linux {release}, refuses {subject}: {why}")?;
        if reason(&self.log).is_some() {
            write!(f, " ({})", self.error)?;
        }
        f.write_str("; use a kernel that docs/KERNELS.md lists")?;
        match &self.file {
            Some(Ok(path)) => write!(
                f,
                ", or report this with the verifier's log, {}",
                path.display()
            )?,
            Some(Err(error)) => write!(
                f,
                ", or report this (the verifier's log could not be written: {error})"
            )?,
            None => {}
        }
        if self.goes_on {
            f.write_str(
                ". The programs of the xvip before are left as they are and go on forwarding",
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// The last line of a verifier's log that says something about the program.
fn reason(log: &str) -> Option<&str> {
    let lines = log.lines().map(str::trim);
    lines
        .rev()
        .find(|line| !line.is_empty() && !STATISTICS.iter().any(|start| line.starts_with(start)))
}

/// The end of a log, from the beginning of a line on.
fn end(log: &str) -> &str {
    let Some(cut) = log.len().checked_sub(KEPT) else {
        return log;
    };
    let line = log
        .as_bytes()
        .iter()
        .skip(cut)
        .position(|byte| *byte == b'\n');
    let start = line.map_or(log.len(), |line| cut + line + 1);
    log.get(start..).unwrap_or_default()
}

/// Write a file that only root reads in the place of one of this name. What is there is replaced, not
/// followed or written to.
fn write_new(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    // Made anew: a symlink of this name is an error.
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    for part in parts {
        file.write_all(part)?;
    }
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    /// As Linux 6.12 ends it.
    const LOG: &str = "\
func#0 @0
; if len > self.end { @ packet.rs:254
4401: (0f) r1 += r2
math between pkt pointer and register with unbounded min value is not allowed
verification time 61250 usec
stack depth 304+0+0+0
processed 6735 insns (limit 1000000) max_states_per_insn 9 total_states 412 peak_states 300 mark_read 64
";

    fn refusal(log: &str) -> Refusal {
        Refusal::new(
            Subject::Program("tc_egress"),
            "6.12.117+deb12-cloud-amd64".to_owned(),
            io::Error::from_raw_os_error(13),
            &log,
        )
    }

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("xvip-refusal-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Two hundred lines become one, with what to do.
    #[test]
    fn a_log_becomes_a_sentence() {
        let mut refusal = refusal(LOG);
        assert_eq!(
            refusal.to_string(),
            "this kernel, Linux 6.12.117+deb12-cloud-amd64, refuses the program tc_egress: math between \
             pkt pointer and register with unbounded min value is not allowed (Permission denied (os error \
             13)); use a kernel that docs/KERNELS.md lists"
        );
        refusal.note_earlier();
        let text = refusal.to_string();
        assert!(
            text.ends_with("left as they are and go on forwarding"),
            "{text}"
        );
    }

    /// As Linux 6.1 says it, and a kernel that says nothing.
    #[test]
    fn the_reason_is_the_last_line_that_is_one() {
        let old = "back-edge from insn 10176 to 10177\nprocessed 0 insns (limit 1000000) max_states_per_insn 0\n";
        assert_eq!(reason(old), Some("back-edge from insn 10176 to 10177"));
        let long = "BPF program is too large. Processed 1000001 insn\nprocessed 1000001 insns (limit 1000000)\n\n";
        assert_eq!(
            reason(long),
            Some("BPF program is too large. Processed 1000001 insn")
        );
        assert_eq!(reason("\n"), None);
        assert_eq!(refusal("").why(), "Permission denied (os error 13)");
    }

    /// The log is in one file for each program, which nobody else reads, and a planted link is not followed.
    #[test]
    fn the_log_is_kept() {
        let directory = directory("kept");
        let (path, victim) = (
            directory.join("a.tc_egress.verifier.log"),
            directory.join("victim"),
        );
        fs::write(&victim, "untouched").unwrap();
        for name in [path.clone(), path.with_extension("new")] {
            symlink(&victim, name).unwrap();
        }
        for _ in 0..2 {
            let mut refusal = refusal(LOG);
            refusal.keep(&Paths::new(&directory, "a"));
            let text = refusal.to_string();
            assert!(
                text.ends_with(&format!("verifier's log, {}", path.display())),
                "{text}"
            );
        }
        let written = fs::read_to_string(&path).unwrap();
        let (head, rest) = written.split_once('\n').unwrap();
        assert!(
            head.contains("Linux 6.12.117+deb12-cloud-amd64, the program tc_egress"),
            "{head}"
        );
        assert_eq!(rest, LOG);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);
        fs::remove_dir_all(&directory).unwrap();
    }

    /// A log that cannot be written does not hide the reason.
    #[test]
    fn a_full_disk_hides_nothing() {
        let mut refusal = refusal(LOG);
        refusal.keep(&Paths::new(Path::new("/proc/self"), "a"));
        let text = refusal.to_string();
        assert!(text.contains("unbounded min value"), "{text}");
        assert!(
            text.contains("the verifier's log could not be written"),
            "{text}"
        );
    }

    /// Of a huge log the end stays.
    #[test]
    fn huge_logs_are_cut() {
        let log = "0123456789abcde\n".repeat(KEPT / 16 + 10) + "the reason\n";
        let kept = end(&log);
        assert!(kept.len() <= KEPT && kept.starts_with("0123") && kept.ends_with("the reason\n"));
        assert_eq!(end("short"), "short");
    }
}

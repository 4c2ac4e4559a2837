//! What a guest tells the host, line by line, among the output of the tests.

/// A line with which the guest's init says where it is begins with this.
const MARK: &str = "xvip-guest: ";

/// A word of the guest's init.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// The system is up; the kernel is of this release.
    Ready(String),
    /// A step begins.
    Begin(String),
    /// It has ended, with this exit code.
    End(String, i32),
    /// A test of it was skipped, and why.
    Skipped(String),
    /// A line of a file that is to be kept: its name and the line.
    File(String, String),
    /// The plan is through.
    Done,
}

impl Word {
    /// Reads one line of the console; `None`: it is output of a test.
    pub(crate) fn of_line(line: &str) -> Option<Self> {
        let line = line.strip_prefix(MARK)?;
        if line == "done" {
            return Some(Self::Done);
        }
        let (verb, rest) = line.split_once(' ')?;
        Some(match verb {
            "ready" => Self::Ready(rest.to_owned()),
            "begin" => Self::Begin(rest.to_owned()),
            "end" => {
                let (name, code) = rest.rsplit_once(' ')?;
                Self::End(name.to_owned(), code.parse().ok()?)
            }
            "skipped" => Self::Skipped(rest.to_owned()),
            "file" => {
                let (name, line) = rest.split_once(':')?;
                Self::File(name.to_owned(), line.to_owned())
            }
            _ => return None,
        })
    }
}

/// The exit code that `timeout` leaves of a program that it killed.
pub(crate) const KILLED: i32 = 137;

#[cfg(test)]
mod tests {
    use super::*;

    /// The init's words are told apart from what tests print, even about the guest.
    #[test]
    fn words_are_told_from_output() {
        let word = |line| Word::of_line(line);
        assert_eq!(
            word("xvip-guest: ready 6.1.0"),
            Some(Word::Ready("6.1.0".into()))
        );
        assert_eq!(
            word("xvip-guest: begin tables"),
            Some(Word::Begin("tables".into()))
        );
        assert_eq!(
            word("xvip-guest: end programs alone 101"),
            Some(Word::End("programs alone".into(), 101))
        );
        assert_eq!(
            word("xvip-guest: skipped a::b: needs c: d"),
            Some(Word::Skipped("a::b: needs c: d".into()))
        );
        assert_eq!(
            word("xvip-guest: file docs/KERNELS.md:| a | 1: 2 |"),
            Some(Word::File("docs/KERNELS.md".into(), "| a | 1: 2 |".into()))
        );
        assert_eq!(word("xvip-guest: done"), Some(Word::Done));
        for line in [
            "test a ... ok",
            " xvip-guest: done",
            "xvip-guest: end tables soon",
            "xvip-guest: gone home",
            "xvip-guest:",
        ] {
            assert_eq!(word(line), None, "{line}");
        }
    }
}

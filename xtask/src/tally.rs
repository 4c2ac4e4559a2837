//! Counts of tests, read from libtest's output and from the file in which tests that cannot run
//! on this machine say so.

use std::{fmt, ops::AddAssign};

/// How many tests ended which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Ran and held.
    pub(crate) passed: u64,
    /// Did not hold, or a step of the run (a lint, a build) failed as a whole.
    pub(crate) failed: u64,
    /// Did not run.
    pub(crate) skipped: u64,
}

impl Tally {
    /// One failed step.
    pub(crate) const FAILED_STEP: Self = Self {
        passed: 0,
        failed: 1,
        skipped: 0,
    };

    /// Reads one line of output: only libtest's summary lines count.
    pub(crate) fn of_line(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let mut tally = Self::default();
        for count in counts.split("; ") {
            let mut words = count.split_whitespace();
            let (Some(number), Some(what)) = (words.next(), words.next()) else {
                continue;
            };
            match what {
                "passed" => tally.passed = number.parse().ok()?,
                "failed" => tally.failed = number.parse().ok()?,
                "ignored" => tally.skipped = number.parse().ok()?,
                _ => {}
            }
        }
        Some(tally)
    }

    /// libtest knows no skipping at run time: such a test passed for it. Each line of `notes` is
    /// one of them.
    pub(crate) fn move_skipped(&mut self, notes: &str) {
        let count = notes.lines().count() as u64;
        self.passed = self.passed.saturating_sub(count);
        self.skipped += count;
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// libtest's summary becomes counts; any other line none.
    #[test]
    fn summary_lines_are_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; \
                    4 filtered out; finished in 0.52s";
        let expected = Tally {
            passed: 12,
            failed: 3,
            skipped: 1,
        };
        assert_eq!(Tally::of_line(line), Some(expected));
        assert_eq!(Tally::of_line("test core::vrrp ... ok"), None);
        assert_eq!(Tally::of_line("test result: nonsense"), None);
    }

    /// A test that skipped itself is not counted as passed.
    #[test]
    fn noted_tests_move_from_passed_to_skipped() {
        let mut tally = Tally {
            passed: 5,
            failed: 0,
            skipped: 1,
        };
        tally.move_skipped("a: no root\nb: no bpf\n");
        assert_eq!(tally.to_string(), "3 passed, 0 failed, 3 skipped");
    }
}

//! docs/KERNELS.md: how much the verifier of each kernel has to do for each program, as recorded, and
//! whether a program has grown since.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result, bail};

/// What the first cell of the table's heading says.
const HEADING: &str = "program";
/// How much a program may grow unnoticed, in percent.
const GROWTH: u32 = 20;

/// What a kernel says of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Instructions that the verifier looked at, along all paths.
    pub instructions: u32,
    /// Bytes of stack of the deepest chain of calls.
    pub stack: u32,
}

/// The document with its table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernels {
    /// What comes before the table.
    before: String,
    after: String,
    /// `6.1`, `6.12`, in ascending order.
    columns: Vec<String>,
    /// Programs in the order of the document, and what is recorded for each kernel.
    programs: Vec<(String, BTreeMap<String, Effort>)>,
}

impl Kernels {
    /// Where the document is.
    pub fn path() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/KERNELS.md")
    }

    /// Reads the document.
    pub fn read() -> Result<Self> {
        let path = Self::path();
        let text = fs::read_to_string(&path);
        Self::parse(&text.with_context(|| format!("cannot read {}", path.display()))?)
    }

    fn parse(text: &str) -> Result<Self> {
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let heading = lines
            .iter()
            .position(|line| cells(line).first() == Some(&HEADING));
        let heading = heading.context("docs/KERNELS.md has no table of programs")?;
        let (before, rest) = lines.split_at(heading);
        let rows = rest.iter().take_while(|line| line.starts_with('|')).count();
        let (table, after) = rest.split_at(rows);
        let columns = table.first().into_iter().flat_map(|line| cells(line));
        let columns: Vec<String> = columns.skip(1).map(str::to_owned).collect();
        let mut programs = Vec::new();
        for line in table.iter().skip(2) {
            let cells = cells(line);
            let (program, efforts) = cells.split_first().context("a row without cells")?;
            let mut recorded = BTreeMap::new();
            for (kernel, cell) in columns.iter().zip(efforts) {
                if !cell.is_empty() {
                    let effort = Effort::parse(cell);
                    let effort = effort.with_context(|| format!("{program}, {kernel}: {cell}?"))?;
                    recorded.insert(kernel.clone(), effort);
                }
            }
            programs.push(((*program).to_owned(), recorded));
        }
        Ok(Self {
            before: before.concat(),
            after: after.concat(),
            columns,
            programs,
        })
    }

    /// Whether anything is recorded for a kernel.
    pub fn knows(&self, kernel: &str) -> bool {
        self.columns.iter().any(|known| known == kernel)
    }

    /// Fails where a program has grown by more than may go unnoticed, with what to write where.
    pub fn check(&self, kernel: &str, program: &str, found: Effort) -> Result<()> {
        let place = format!("docs/KERNELS.md, row {program}, column {kernel}");
        let remedy = format!(
            "if that is meant, write `{found}` there: `cargo xtask test --only vm --bless -- {kernel}` does"
        );
        let row = self.programs.iter().find(|(name, _)| name == program);
        let Some(recorded) = row.and_then(|(_, efforts)| efforts.get(kernel)) else {
            bail!("{place}: nothing is recorded, and {found} was found; {remedy}");
        };
        let too_much = |found: u32, recorded: u32| {
            u64::from(found) * 100 > u64::from(recorded) * u64::from(100 + GROWTH)
        };
        if too_much(found.instructions, recorded.instructions) {
            bail!(
                "{place}: {} verified instructions were found, more than {GROWTH} % above the recorded {}; {remedy}",
                thousands(found.instructions),
                thousands(recorded.instructions)
            );
        }
        if too_much(found.stack, recorded.stack) {
            bail!(
                "{place}: {} bytes of stack were found, more than {GROWTH} % above the recorded {}; {remedy}",
                found.stack,
                recorded.stack
            );
        }
        Ok(())
    }

    /// Records what was found, in a column and a row that are made where there are none.
    pub fn record(&mut self, kernel: &str, program: &str, found: Effort) {
        if !self.knows(kernel) {
            self.columns.push(kernel.to_owned());
            self.columns.sort_by_key(|kernel| numbers(kernel));
        }
        let known = self.programs.iter_mut().find(|(name, _)| name == program);
        if let Some((_, efforts)) = known {
            efforts.insert(kernel.to_owned(), found);
        } else {
            let efforts = BTreeMap::from([(kernel.to_owned(), found)]);
            self.programs.push((program.to_owned(), efforts));
        }
    }

    /// Forgets programs that are no more.
    pub fn retain(&mut self, programs: &[&str]) {
        self.programs
            .retain(|(name, _)| programs.contains(&name.as_str()));
    }

    /// Writes the document.
    pub fn write(&self) -> Result<()> {
        let path = Self::path();
        fs::write(&path, self.text()).with_context(|| format!("cannot write {}", path.display()))
    }

    fn text(&self) -> String {
        let row =
            |first: &str, cells: Vec<String>| format!("| {first} | {} |\n", cells.join(" | "));
        let mut table = vec![
            row(HEADING, self.columns.clone()),
            format!("|---|{}\n", "---|".repeat(self.columns.len())),
        ];
        table.extend(self.programs.iter().map(|(program, efforts)| {
            let cell = |kernel| {
                efforts
                    .get(kernel)
                    .map(Effort::to_string)
                    .unwrap_or_default()
            };
            row(program, self.columns.iter().map(cell).collect())
        }));
        format!("{}{}{}", self.before, table.concat(), self.after)
    }
}

impl Effort {
    /// `46,485 (464)`
    fn parse(cell: &str) -> Option<Self> {
        let (instructions, stack) = cell.strip_suffix(')')?.split_once(" (")?;
        Some(Self {
            instructions: instructions.replace(',', "").parse().ok()?,
            stack: stack.parse().ok()?,
        })
    }
}

impl std::fmt::Display for Effort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", thousands(self.instructions), self.stack)
    }
}

/// The running kernel as the table names it: `6.12`.
pub fn running() -> Result<String> {
    let release = nix::sys::utsname::uname()?;
    let release = release
        .release()
        .to_str()
        .context("the kernel's release is no text")?;
    let numbers: Vec<_> = release
        .split(|c: char| !c.is_ascii_digit())
        .take(2)
        .collect();
    Ok(numbers.join("."))
}

fn cells(line: &str) -> Vec<&str> {
    let inner = line
        .trim_end()
        .strip_prefix('|')
        .and_then(|line| line.strip_suffix('|'));
    inner
        .map(|inner| inner.split('|').map(str::trim).collect())
        .unwrap_or_default()
}

fn numbers(kernel: &str) -> Vec<u32> {
    kernel
        .split('.')
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// `46,485`
fn thousands(number: u32) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]
mod tests {
    use super::*;

    const DOCUMENT: &str = "# Kernels\n\nText.\n\n\
        | program | 6.1 | 6.12 |\n|---|---|---|\n\
        | xdp_ingress | 46,485 (464) | 1,000 (100) |\n| xdp_stub | 2 (16) |  |\n\nMore.\n";

    fn effort(instructions: u32, stack: u32) -> Effort {
        Effort {
            instructions,
            stack,
        }
    }

    /// A fifth more goes unnoticed, one instruction beyond it does not, nor do bytes of stack; the
    /// sentence says what to write where.
    #[test]
    fn growth_beyond_a_fifth_is_refused() {
        let kernels = Kernels::parse(DOCUMENT).unwrap();
        let check = |found| kernels.check("6.12", "xdp_ingress", found);
        check(effort(1_200, 120)).unwrap();
        check(effort(10, 10)).unwrap();
        let error = check(effort(1_201, 100)).unwrap_err().to_string();
        for part in [
            "row xdp_ingress, column 6.12",
            "1,201 verified instructions",
            "recorded 1,000",
            "write `1,201 (100)`",
            "--bless -- 6.12",
        ] {
            assert!(error.contains(part), "{error}");
        }
        let error = check(effort(1_000, 121)).unwrap_err().to_string();
        assert!(error.contains("121 bytes of stack"), "{error}");
    }

    /// A kernel without a column is not known; a known kernel without a cell is a failure.
    #[test]
    fn what_is_not_recorded_is_told_apart() {
        let kernels = Kernels::parse(DOCUMENT).unwrap();
        assert!(kernels.knows("6.1") && !kernels.knows("6.18"));
        let error = kernels
            .check("6.12", "xdp_stub", effort(2, 16))
            .unwrap_err();
        assert!(error.to_string().contains("nothing is recorded"), "{error}");
    }

    /// What is recorded is written where the document has it, columns in the kernels' order; all else
    /// stays as it is.
    #[test]
    fn records_are_written_into_the_document() {
        let mut kernels = Kernels::parse(DOCUMENT).unwrap();
        assert_eq!(kernels.text(), DOCUMENT);
        kernels.record("6.2", "xdp_stub", effort(3, 32));
        kernels.record("6.12", "new", effort(1_234_567, 8));
        let text = kernels.text();
        assert!(
            text.contains("| program | 6.1 | 6.2 | 6.12 |\n|---|---|---|---|\n"),
            "{text}"
        );
        assert!(
            text.contains("| xdp_stub | 2 (16) | 3 (32) |  |\n"),
            "{text}"
        );
        assert!(
            text.contains("| new |  |  | 1,234,567 (8) |\n\nMore.\n"),
            "{text}"
        );
        assert_eq!(Kernels::parse(&text).unwrap(), kernels);
        kernels.retain(&["new"]);
        assert!(!kernels.text().contains("xdp_stub"));
    }
}

//! What a guest runs: test binaries with arguments, an environment and a limit of time.

use std::{fmt::Write as _, path::Path, time::Duration};

use super::Options;

/// Packets that the model plays in a guest: emulation is some twenty times slower.
const MODEL_PACKETS: &str = "20000";
/// Hostile frames for each program and IP version there.
const HOSTILE_FRAMES: &str = "300";

/// One run of a test binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// What it is called in the output.
    pub(crate) name: &'static str,
    /// The test target of the package lb-tests.
    pub(crate) binary: &'static str,
    /// Which of its tests: those with one of these texts in their names; all, if there is none.
    pub(crate) tests: Vec<String>,
    /// Its other arguments.
    pub(crate) args: Vec<String>,
    /// Its environment beyond the usual.
    pub(crate) env: Vec<(&'static str, &'static str)>,
    /// It is killed after that.
    pub(crate) limit: Duration,
    /// It runs only if it is asked for by name.
    pub(crate) on_demand: bool,
}

impl Step {
    fn new(name: &'static str, binary: &'static str, tests: &[&str], seconds: u64) -> Self {
        Self {
            name,
            binary,
            tests: tests.iter().map(|test| (*test).to_owned()).collect(),
            args: Vec::new(),
            env: Vec::new(),
            limit: Duration::from_secs(seconds),
            on_demand: false,
        }
    }

    /// Clusters that keep time: one test after the other.
    fn of_clusters(name: &'static str, tests: &[&str], seconds: u64) -> Self {
        Self::new(name, "guest", tests, seconds).and("--test-threads=1")
    }

    fn and(mut self, argument: &str) -> Self {
        self.args.push(argument.to_owned());
        self
    }

    fn on_demand(mut self) -> Self {
        self.on_demand = true;
        self
    }

    fn with(mut self, variable: &'static str, value: &'static str) -> Self {
        self.env.push((variable, value));
        self
    }
}

/// The steps of a guest that is alone: every program by itself, what the guest has, the rows of the
/// program runs, the model, and the life of a control plane; on demand whole nodes with devices and
/// neighbours.
pub(crate) fn alone(options: &Options<'_>) -> Vec<Step> {
    let mut verifier = Step::new("verifier", "bpf", &["verifier::"], 900).and("--nocapture");
    if options.bless {
        verifier = verifier.with("XVIP_BLESS", "1");
    }
    let rows = Step::new("rows", "bpf", &[], 3600).with("XVIP_HOSTILE_FRAMES", HOSTILE_FRAMES);
    let rows = ["--skip", "verifier::", "--skip", "model::"]
        .into_iter()
        .fold(rows, Step::and);
    let model = Step::new("model", "bpf", &["model::"], 3600);
    let steps = vec![
        verifier,
        Step::of_clusters("system", &["system::"], 300),
        model.with("XVIP_MODEL_PACKETS", MODEL_PACKETS),
        // Some rows need a past that a machine which has just started lacks, and wait for it.
        rows,
        Step::of_clusters("journey", &["journey::"], 3600),
        Step::of_clusters("devices", &["devices::"], 3600).on_demand(),
        Step::of_clusters("neighbours", &["neighbours::"], 3600).on_demand(),
    ];
    chosen(steps, options.steps)
}

/// The steps of two guests with cards on one bridge.
pub(crate) fn pair(options: &Options<'_>) -> Vec<Step> {
    let cards = Step::new("pair", "guest", &["virtio::"], 900).and("--nocapture");
    chosen(vec![cards.on_demand()], options.steps)
}

/// The steps that were asked for, each with its filter; all but those on demand if none was.
fn chosen(mut steps: Vec<Step>, wanted: &[String]) -> Vec<Step> {
    if wanted.is_empty() {
        steps.retain(|step| !step.on_demand);
        return steps;
    }
    let filter = |step: &Step| {
        wanted.iter().find_map(|word| {
            let (name, filter) = word.split_once('=').unwrap_or((word, ""));
            (name == step.name).then_some(filter)
        })
    };
    steps.retain(|step| filter(step).is_some());
    for step in &mut steps {
        if let Some(filter) = filter(step).filter(|filter| !filter.is_empty()) {
            step.tests = vec![filter.to_owned()];
        }
    }
    steps
}

/// The script that the guest's init reads: where each test binary is says `binary`.
pub(crate) fn script<'a>(steps: &[Step], binary: impl Fn(&str) -> &'a Path) -> String {
    let mut script = String::new();
    for step in steps {
        let env = step
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        let words = [
            step.name.to_owned(),
            step.limit.as_secs().to_string(),
            "env".to_owned(),
        ];
        let program = binary(step.binary).to_string_lossy().into_owned();
        let words = words
            .into_iter()
            .chain(env)
            .chain([program])
            .chain(step.tests.iter().chain(&step.args).cloned());
        let words: Vec<_> = words.map(|word| quoted(&word)).collect();
        // Writing to a string does not fail.
        let _ = writeln!(script, "step {}", words.join(" "));
    }
    script
}

/// A word for the shell.
pub(crate) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(steps: &[String]) -> Options<'_> {
        Options {
            kernels: &[],
            steps,
            bless: true,
        }
    }

    /// All steps but those on demand, or those that were named, with the filter that was named with
    /// them.
    #[test]
    fn steps_can_be_chosen() {
        let names = |steps: &[Step]| steps.iter().map(|step| step.name).collect::<Vec<_>>();
        assert_eq!(
            names(&alone(&options(&[]))),
            ["verifier", "system", "model", "rows", "journey"]
        );
        assert_eq!(names(&pair(&options(&[]))), [""; 0]);
        let wanted = ["journey=tc", "verifier", "devices", "pair"].map(str::to_owned);
        let steps = alone(&options(&wanted));
        assert_eq!(names(&steps), ["verifier", "journey", "devices"]);
        assert_eq!(
            (&steps[1].tests[..], &steps[1].args[..]),
            (&["tc".to_owned()][..], &["--test-threads=1".to_owned()][..])
        );
        assert_eq!(steps[0].tests, ["verifier::"]);
        assert_eq!(names(&pair(&options(&wanted))), ["pair"]);
    }

    /// The script has each word in quotes, the environment before the program.
    #[test]
    fn the_script_runs_each_step() {
        let step = Step::new("rows", "bpf", &["it's"], 60).with("A", "b c");
        assert_eq!(
            script(&[step], |_| Path::new("/t/bpf")),
            "step 'rows' '60' 'env' 'A=b c' '/t/bpf' 'it'\\''s'\n"
        );
    }
}

//! The programs that the data plane is compared with (lb-ebpf's `bin/floor.rs`), and the runs.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{Array, HashMap, ProgramArray},
    programs::{ProgramError, ProgramFd, SchedClassifier, Xdp},
};
use lb_common::{
    abi::{Flow, FlowKey},
    conntrack::FlowState,
    headers::IPPROTO_TCP,
    reason::Verdict,
};

use super::frame;

/// What the restoring program puts back, as words.
const WORDS: usize = 10;

/// A hook that programs are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// On frames, before the kernel makes anything of them.
    Xdp,
    /// On socket buffers.
    Tc,
}

impl Hook {
    /// What it calls a verdict: `enum xdp_action`; `enum tcx_action_base` and `TC_ACT_REDIRECT`.
    pub(crate) const fn action(self, verdict: Verdict) -> u32 {
        let (xdp, tc) = match verdict {
            Verdict::Drop => (1, 2),
            Verdict::Pass => (2, u32::MAX),
            // With tc what came in goes out again by a redirection, too.
            Verdict::Tx => (3, 7),
            Verdict::Redirect => (4, 7),
        };
        match self {
            Self::Xdp => xdp,
            Self::Tc => tc,
        }
    }

    const fn restore(self) -> &'static str {
        match self {
            Self::Xdp => "restore",
            Self::Tc => "tc_restore",
        }
    }

    const fn empty(self) -> &'static str {
        match self {
            Self::Xdp => "empty",
            Self::Tc => "tc_empty",
        }
    }

    /// The map of the program behind the restoring one.
    const fn next(self) -> &'static str {
        match self {
            Self::Xdp => "next",
            Self::Tc => "tc_next",
        }
    }
}

/// A loaded program of one of the hooks.
#[derive(Clone, Copy)]
pub(crate) enum Program<'a> {
    Xdp(&'a Xdp),
    Tc(&'a SchedClassifier),
}

impl<'a> Program<'a> {
    /// The program of this name.
    pub(crate) fn of(object: &'a Ebpf, name: &str) -> Result<Self> {
        let program = object.program(name);
        let program = program.with_context(|| format!("no program {name}"))?;
        match program {
            aya::programs::Program::Xdp(xdp) => Ok(Self::Xdp(xdp)),
            aya::programs::Program::SchedClassifier(tc) => Ok(Self::Tc(tc)),
            _ => bail!("{name} is of an unexpected type"),
        }
    }

    /// A file descriptor of its own.
    pub(crate) fn fd(self) -> Result<ProgramFd> {
        let fd = match self {
            Self::Xdp(program) => program.fd()?.try_clone()?,
            Self::Tc(program) => program.fd()?.try_clone()?,
        };
        Ok(fd)
    }

    /// Runs it `repeat` times.
    pub(crate) fn run(self, frame: &[u8], repeat: u32, out: &mut [u8]) -> Result<Outcome> {
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut *out),
            repeat,
            ..TestRunOptions::new()
        };
        let result = match self {
            Self::Xdp(program) => program.test_run(options)?,
            Self::Tc(program) => program.test_run(options)?,
        };
        let length = result.data_size_out as usize;
        ensure!(length <= out.len(), "the frame grew to {length} bytes");
        Ok(Outcome {
            action: result.return_value,
            nanos: result.duration.as_secs_f64() * 1e9,
            frame: out.get(..length).unwrap_or_default().to_vec(),
        })
    }
}

/// Loads the program of this name, whatever it is.
pub(crate) fn load(object: &mut Ebpf, name: &str) -> Result<()> {
    let program = object.program_mut(name);
    let program = program.with_context(|| format!("no program {name}"))?;
    let loaded: Result<(), ProgramError> = match program {
        aya::programs::Program::Xdp(xdp) => xdp.load(),
        aya::programs::Program::SchedClassifier(tc) => tc.load(),
        _ => bail!("{name} is of an unexpected type"),
    };
    loaded.with_context(|| format!("the kernel refuses {name}"))
}

/// The loaded object.
pub(crate) struct Floor {
    object: Ebpf,
    out: Vec<u8>,
}

/// What became of a packet.
pub(crate) struct Outcome {
    /// XDP action.
    pub(crate) action: u32,
    /// Nanoseconds of one run, on average; the kernel cuts off the fraction.
    pub(crate) nanos: f64,
    /// The packet after the last run.
    pub(crate) frame: Vec<u8>,
}

impl Floor {
    /// Loads the programs and makes the client's flow known to them.
    pub(crate) fn load() -> Result<Self> {
        let path = path();
        let bytes = fs::read(&path)
            .with_context(|| format!("{}: run `cargo xtask bench`", path.display()))?;
        let mut object = EbpfLoader::new().btf(None).load(&bytes)?;
        for hook in [Hook::Xdp, Hook::Tc] {
            load(&mut object, hook.restore())?;
            load(&mut object, hook.empty())?;
        }
        for name in ["parse", "tc_parse", "lookup", "tc_lookup"] {
            load(&mut object, name)?;
        }
        let flow = Flow::new(1, 0, 0, FlowState::Established, 0);
        let (sport, dport) = (frame::CLIENT_PORT, frame::DSR_PORT);
        let key = FlowKey::new(frame::CLIENT4, sport, frame::VIP4, dport, IPPROTO_TCP);
        let map = object.map_mut("floor_flows4").context("no such map")?;
        HashMap::try_from(map)?.insert(key, flow, 0)?;
        let key = FlowKey::new(frame::CLIENT6, sport, frame::VIP6, dport, IPPROTO_TCP);
        let map = object.map_mut("floor_flows6").context("no such map")?;
        HashMap::try_from(map)?.insert(key, flow, 0)?;
        let out = vec![0; 2048];
        Ok(Self { object, out })
    }

    /// One of the programs.
    pub(crate) fn program(&self, name: &str) -> Result<Program<'_>> {
        Program::of(&self.object, name)
    }

    /// Which program runs behind the restoring one of a hook from now on, and on what. `None`: the
    /// empty one.
    pub(crate) fn prepare(
        &mut self,
        hook: Hook,
        program: Option<&ProgramFd>,
        frame: &[u8],
    ) -> Result<()> {
        let program = match program {
            Some(program) => program.try_clone()?,
            None => self.program(hook.empty())?.fd()?,
        };
        let words = frame.as_chunks::<8>().0.get(..WORDS);
        let words = words.context("the frame is shorter than what is restored")?;
        let mut original = [0_u64; WORDS];
        for (to, from) in original.iter_mut().zip(words) {
            *to = u64::from_ne_bytes(*from);
        }
        let map = self.object.map_mut("original").context("no such map")?;
        Array::<_, [u64; WORDS]>::try_from(map)?.set(0, original, 0)?;
        let map = self.object.map_mut(hook.next()).context("no such map")?;
        ProgramArray::try_from(map)?
            .set(0, &program, 0)
            .context("cannot put the program behind the restoring one")
    }

    /// Runs the program of [`Self::prepare`] `repeat` times, each time on the same packet.
    pub(crate) fn run(&mut self, hook: Hook, frame: &[u8], repeat: u32) -> Result<Outcome> {
        let Self { object, out } = self;
        Program::of(object, hook.restore())?.run(frame, repeat, out)
    }

    /// Runs the empty program alone: what is not the restoring program's cost.
    pub(crate) fn run_empty(&mut self, hook: Hook, frame: &[u8], repeat: u32) -> Result<f64> {
        let Self { object, out } = self;
        Ok(Program::of(object, hook.empty())?
            .run(frame, repeat, out)?
            .nanos)
    }
}

/// Where the object is: `XVIP_FLOOR_OBJECT`, or where xtask leaves it.
fn path() -> PathBuf {
    let default = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/xvip-floor.o");
    std::env::var_os("XVIP_FLOOR_OBJECT").map_or_else(default, PathBuf::from)
}

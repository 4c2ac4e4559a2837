//! The programs that the data plane is compared with (lb-ebpf's `bin/floor.rs`), and the runs.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{Array, HashMap, ProgramArray},
    programs::Xdp,
};
use lb_common::{
    abi::{Flow, FlowKey},
    conntrack::FlowState,
    headers::IPPROTO_TCP,
};

use super::frame;

/// What the restoring program puts back, as words.
const WORDS: usize = 10;

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
        for name in ["empty", "parse", "lookup", "restore"] {
            let program = object.program_mut(name);
            let program: &mut Xdp = program.context("no such program")?.try_into()?;
            program
                .load()
                .with_context(|| format!("the kernel refuses {name}"))?;
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
    pub(crate) fn program(&self, name: &str) -> Result<&Xdp> {
        let program = self.object.program(name).context("no such program")?;
        Ok(program.try_into()?)
    }

    /// Which program runs behind the restoring one from now on, and on what.
    pub(crate) fn prepare(
        &mut self,
        program: &aya::programs::ProgramFd,
        frame: &[u8],
    ) -> Result<()> {
        let words = frame.as_chunks::<8>().0.get(..WORDS);
        let words = words.context("the frame is shorter than what is restored")?;
        let mut original = [0_u64; WORDS];
        for (to, from) in original.iter_mut().zip(words) {
            *to = u64::from_ne_bytes(*from);
        }
        let map = self.object.map_mut("original").context("no such map")?;
        Array::<_, [u64; WORDS]>::try_from(map)?.set(0, original, 0)?;
        let map = self.object.map_mut("next").context("no such map")?;
        ProgramArray::try_from(map)?
            .set(0, program, 0)
            .context("cannot put the program behind the restoring one")
    }

    /// Runs the program of [`Self::prepare`] `repeat` times, each time on the same packet.
    pub(crate) fn run(&mut self, frame: &[u8], repeat: u32) -> Result<Outcome> {
        let Self { object, out } = self;
        let program: &Xdp = object
            .program("restore")
            .context("no restore")?
            .try_into()?;
        test_run(program, frame, repeat, out)
    }

    /// Runs the empty program alone: what is not the restoring program's cost.
    pub(crate) fn run_empty(&mut self, frame: &[u8], repeat: u32) -> Result<f64> {
        let Self { object, out } = self;
        let program: &Xdp = object.program("empty").context("no empty")?.try_into()?;
        Ok(test_run(program, frame, repeat, out)?.nanos)
    }
}

/// Runs a program.
pub(crate) fn test_run(
    program: &Xdp,
    frame: &[u8],
    repeat: u32,
    out: &mut [u8],
) -> Result<Outcome> {
    let result = program.test_run(TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut *out),
        repeat,
        ..TestRunOptions::new()
    })?;
    let length = result.data_size_out as usize;
    ensure!(length <= out.len(), "the frame grew to {length} bytes");
    Ok(Outcome {
        action: result.return_value,
        nanos: result.duration.as_secs_f64() * 1e9,
        frame: out.get(..length).unwrap_or_default().to_vec(),
    })
}

/// Where the object is: `XVIP_FLOOR_OBJECT`, or where xtask leaves it.
fn path() -> PathBuf {
    let default = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/xvip-floor.o");
    std::env::var_os("XVIP_FLOOR_OBJECT").map_or_else(default, PathBuf::from)
}

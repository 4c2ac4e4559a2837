//! A second copy of an ingress program that works on the live maps and changes nothing: it is
//! never attached, only run on single frames, and says what it would do.

use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{MapData, RingBuf},
    programs::{SchedClassifier, Xdp},
};
use lb_common::{abi::events::TraceEvent, reason::Verdict};

use super::{BpfError, Loading, MAPS, attach::program, maps::map_error, ring};

/// Maps that the copy has for itself, beside the working memory: what it says is nobody else's.
const OWN: [&str; 2] = ["trace", "trace_events"];

/// Which form of the ingress program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `xdp_ingress`
    Xdp,
    /// `tc_ingress`
    Tc,
}

impl Form {
    /// Name of the program.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Xdp => "xdp_ingress",
            Self::Tc => "tc_ingress",
        }
    }
}

/// The loaded copy.
pub struct DryRun {
    object: Ebpf,
    records: RingBuf<MapData>,
    form: Form,
}

/// What it would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The program's verdict; `None`: a number that it never returns.
    pub verdict: Option<Verdict>,
    /// Its record of the decision; `None`: the packet is for no VIP, or too short to tell.
    pub record: Option<TraceEvent>,
}

impl DryRun {
    /// Load the copy on the maps that are pinned there. None is made: all must be there.
    pub fn load(loading: &Loading, form: Form) -> Result<Self, BpfError> {
        let Loading {
            object,
            pins,
            features,
            ..
        } = loading;
        let mut loader = EbpfLoader::new();
        features.apply(&mut loader);
        loader.override_global("DRY_RUN", &1u32, true);
        for name in MAPS.into_iter().filter(|name| !OWN.contains(name)) {
            let pin = pins.map(name);
            std::fs::metadata(&pin).map_err(|source| BpfError::Path {
                path: pin.clone(),
                source,
            })?;
            loader.map_pin_path(name, pin);
        }
        let mut object = loader
            .load(&features.object(object))
            .map_err(|source| BpfError::object(source).with_log(&loading.paths))?;
        let name = form.program();
        let loaded = match form {
            Form::Xdp => program::<Xdp>(&mut object, name)?.load(),
            Form::Tc => program::<SchedClassifier>(&mut object, name)?.load(),
        };
        loaded.map_err(|source| BpfError::program(name, source).with_log(&loading.paths))?;
        let records = object
            .take_map("trace_events")
            .ok_or(BpfError::Missing("trace_events"))?;
        let records = RingBuf::try_from(records).map_err(map_error("trace_events"))?;
        Ok(Self {
            object,
            records,
            form,
        })
    }

    /// What would become of `frame`, come in through interface `ifindex` of this thread's network
    /// namespace.
    pub fn run(&mut self, frame: &[u8], ifindex: u32) -> Result<Answer, BpfError> {
        let name = self.form.program();
        let context = match self.form {
            Form::Xdp => xdp_md(frame, ifindex),
            Form::Tc => sk_buff(ifindex),
        };
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let result = match self.form {
            Form::Xdp => program::<Xdp>(&mut self.object, name)?.test_run(options),
            Form::Tc => program::<SchedClassifier>(&mut self.object, name)?.test_run(options),
        };
        let result = result.map_err(|source| BpfError::Program {
            name,
            source: Box::new(source),
        })?;
        Ok(Answer {
            verdict: self.verdict(result.return_value),
            record: ring::next_record(&mut self.records),
        })
    }

    /// Both forms' return values: `enum xdp_action`, and `enum tcx_action_base` and
    /// `TC_ACT_REDIRECT`.
    const fn verdict(&self, value: u32) -> Option<Verdict> {
        const NEXT: u32 = u32::MAX;
        Some(match (self.form, value) {
            (Form::Xdp, 1) | (Form::Tc, 2) => Verdict::Drop,
            (Form::Xdp, 2) | (Form::Tc, NEXT | 0) => Verdict::Pass,
            (Form::Xdp, 3) => Verdict::Tx,
            (Form::Xdp, 4) | (Form::Tc, 7) => Verdict::Redirect,
            _ => return None,
        })
    }
}

/// `struct xdp_md`: data, `data_end`, `data_meta`, `ingress_ifindex`, `rx_queue_index`,
/// `egress_ifindex`.
fn xdp_md(frame: &[u8], ifindex: u32) -> Vec<u8> {
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    [0, length, 0, ifindex, 0, 0].map(u32::to_ne_bytes).concat()
}

/// `struct __sk_buff`: all that the kernel does not take from its reader must be zero.
fn sk_buff(ifindex: u32) -> Vec<u8> {
    const WORDS: usize = 48;
    const IFINDEX: usize = 10;
    let word = |at| if at == IFINDEX { ifindex } else { 0 };
    (0..WORDS).flat_map(|at| word(at).to_ne_bytes()).collect()
}

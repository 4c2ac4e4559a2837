//! Somebody else's tc program: it lets the next one decide, and stands where it was told to.

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader,
    programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions},
};

use crate::xdp_stub::object;

/// `TCX_NEXT` of `linux/bpf.h`.
const NEXT: i32 = -1;
/// Name of the program.
const NAME: &str = "stranger";

/// The program, attached until it is dropped.
#[derive(Debug)]
pub struct TcStub {
    _loaded: Ebpf,
}

impl TcStub {
    /// Attaches it before all others to an interface of the calling thread's network namespace.
    pub fn attach_first(interface: &str, side: TcAttachType) -> Result<Self> {
        let mut loaded = EbpfLoader::new()
            .btf(None)
            .load(&object("classifier", NAME, NEXT))
            .context("cannot read the stub's object")?;
        let program: &mut SchedClassifier = loaded
            .program_mut(NAME)
            .context("the stub's object has no program")?
            .try_into()
            .context("the stub is no tc program")?;
        program.load().context("cannot load the stub")?;
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        program
            .attach_with_options(interface, side, first)
            .with_context(|| format!("cannot attach the stub to {interface}"))?;
        Ok(Self { _loaded: loaded })
    }
}

/// Names of the tcx programs of an interface of the calling thread's network namespace, in order.
pub fn chain(interface: &str, side: TcAttachType) -> Result<Vec<String>> {
    let (_, programs) = SchedClassifier::query_tcx(interface, side)?;
    let names = programs.iter().map(|program| program.name_as_str());
    Ok(names.map(|name| name.unwrap_or("?").to_owned()).collect())
}

//! Somebody else's tc program, which stands where it was told to.

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader,
    programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions},
};

use crate::xdp_stub::{instruction, object, verdict};

/// `TCX_NEXT` of `linux/bpf.h`, which is `TC_ACT_UNSPEC` to filters: the next one decides.
pub const NEXT: i32 = -1;
/// `TCX_PASS`, `TC_ACT_OK`: the packet goes on, and no other program sees it.
pub const OK: i32 = 0;
/// `TCX_DROP`, `TC_ACT_SHOT`.
const DROP: i32 = 2;
/// Name of the program.
const NAME: &str = "stranger";

/// The program, attached until it is dropped.
#[derive(Debug)]
pub struct TcStub {
    _loaded: Ebpf,
}

impl TcStub {
    /// Attaches one that has nothing to say, before all others, to an interface of the calling
    /// thread's network namespace.
    pub fn attach_first(interface: &str, side: TcAttachType) -> Result<Self> {
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        Self::attach(interface, side, first, &verdict(NEXT))
    }

    /// Attaches one that drops the IPv4 packets of a UDP port, and says `rest` of all others.
    pub fn attach_dropping(
        interface: &str,
        side: TcAttachType,
        options: TcAttachOptions,
        port: u16,
        rest: i32,
    ) -> Result<Self> {
        // Loads of the frame's bytes; one that is too short ends the program with 0.
        let program = [
            instruction(0xbf, 0x16, 0, 0), // r6 = r1
            instruction(0x30, 0, 0, 23),   // r0 = the protocol
            instruction(0x55, 0, 4, 17),   // not UDP: the rest
            instruction(0x28, 0, 0, 36),   // r0 = the destination port, behind 20 bytes of IPv4
            instruction(0x55, 0, 2, port.into()),
        ];
        let program = [program.concat(), verdict(DROP), verdict(rest)].concat();
        Self::attach(interface, side, options, &program)
    }

    fn attach(
        interface: &str,
        side: TcAttachType,
        options: TcAttachOptions,
        program: &[u8],
    ) -> Result<Self> {
        let mut loaded = EbpfLoader::new()
            .btf(None)
            .load(&object("classifier", NAME, program))
            .context("cannot read the stub's object")?;
        let program: &mut SchedClassifier = loaded
            .program_mut(NAME)
            .context("the stub's object has no program")?
            .try_into()
            .context("the stub is no tc program")?;
        program.load().context("cannot load the stub")?;
        program
            .attach_with_options(interface, side, options)
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

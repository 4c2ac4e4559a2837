//! The data plane in the kernel: loads the object, adopts what an earlier run pinned, attaches
//! the programs by pinned links, and reads and writes the maps.
//!
//! Everything is pinned below `/sys/fs/bpf/xvip/<instance>/`, so it goes on without a controller.

mod attach;
pub mod batch;
mod conntrack;
mod dry_run;
mod error;
pub mod log;
mod lookup;
mod maps;
mod pins;
pub mod ring;
mod syscall;
mod tc;
mod uplinks;
mod xdp;

use std::sync::Arc;

use aya::{Ebpf, EbpfLoader, include_bytes_aligned, maps::MapInfo};
use lb_common::abi::{ABI_VERSION, NodeConfig};

use self::uplinks::Attacher;
pub use self::{
    conntrack::{Conntrack, FamilyConntrack, Pieces, Table},
    dry_run::{Answer, DryRun, Form},
    error::BpfError,
    maps::{CountMaps, Counts, Maps},
    pins::Pins,
    uplinks::{Outcome, remove_filters},
};
use crate::core::attach::Plan;

static OBJECT: &[u8] = include_bytes_aligned!(env!("XVIP_BPF_OBJECT"));

/// Maps that are pinned under their own name. The programs' working memory is not.
pub const MAPS: [&str; 41] = [
    "services4",
    "services6",
    "maglev",
    "backends4",
    "backends6",
    "flows4",
    "flows6",
    "returns4",
    "returns6",
    "nat_sources4",
    "nat_sources6",
    "vips4",
    "vips6",
    "leases",
    "peer_macs",
    "peer_addrs4",
    "peer_addrs6",
    "reply_ports4",
    "reply_ports6",
    "uplinks",
    "node",
    "connects4",
    "connects6",
    "sends4",
    "sends6",
    "half_flows4",
    "half_flows6",
    "half_returns4",
    "half_returns6",
    "sources4",
    "sources6",
    "source_rates4",
    "source_rates6",
    "suspects",
    "budget",
    "trace",
    "events",
    "trace_events",
    "listeners",
    "backend_stats",
    "reason_stats",
];

/// The loaded data plane: maps open, programs attached.
pub struct DataPlane {
    /// The maps.
    pub maps: Maps,
    /// The maps that are counted in.
    pub counters: Arc<CountMaps>,
    /// What an operator should know, in words.
    pub warnings: Vec<String>,
    /// The same of the attachments, as it was at the last look.
    pub attach_warnings: Vec<String>,
    attacher: Attacher,
}

impl DataPlane {
    /// Load the object, adopt or make the maps, attach the hooks of connections and datagrams to
    /// `cgroup` (`None`: no hooks), and what finds listeners to this network namespace. The uplinks' programs of an earlier run go on until [`DataPlane::attach`].
    pub fn open(pins: &Pins, cgroup: Option<&std::fs::File>) -> Result<Self, BpfError> {
        pins.create()?;
        let mut warnings = Vec::new();
        if let Some(why) = unusable(pins) {
            warnings.push(format!("{why}: its flows were not adopted"));
            pins.remove_maps(&MAPS)?;
        }
        let mut object = load(pins)?;
        #[cfg(feature = "bpf-log")]
        warnings.extend(log::follow(&mut object));
        let maps = Maps::take(&mut object)?;
        let counters = Arc::new(CountMaps::take(&mut object)?);
        warnings.extend(attach::hooks(&mut object, pins, cgroup)?);
        warnings.extend(lookup::attach(&mut object, pins)?);
        Ok(Self {
            maps,
            counters,
            warnings,
            attach_warnings: Vec::new(),
            attacher: Attacher::new(object, pins.clone()),
        })
    }

    /// Do without tcx links, as kernels before Linux 6.6 have to: for tests.
    #[must_use]
    pub fn without_tcx(mut self) -> Self {
        self.attacher.avoid_tcx();
        self
    }

    /// Have the uplinks' programs attached as planned and nowhere else, and repaired where somebody
    /// else changed that. Flows go on: a program of an earlier run is replaced atomically.
    pub fn attach(&mut self, plans: &[Plan]) -> Outcome {
        let mut outcome = self.attacher.carry_out(plans);
        let known = std::mem::replace(&mut self.attach_warnings, outcome.warnings.clone());
        outcome.warnings.retain(|warning| !known.contains(warning));
        outcome
    }
}

/// The object as an ELF file, for tests that load it on their own.
pub fn object() -> &'static [u8] {
    OBJECT
}

fn load(pins: &Pins) -> Result<Ebpf, BpfError> {
    let mut loader = EbpfLoader::new();
    for name in MAPS {
        loader.map_pin_path(name, pins.map(name));
    }
    loader
        .load(OBJECT)
        .map_err(|source| BpfError::Load(Box::new(source)))
}

/// Why pinned maps cannot be adopted, if there are any.
fn unusable(pins: &Pins) -> Option<String> {
    let node = pins.map("node");
    let info = MapInfo::from_pin(&node).ok()?;
    if info.value_size() as usize != size_of::<NodeConfig>() {
        return Some("the pinned maps have another layout".to_owned());
    }
    match maps::pinned_abi_version(&node) {
        // 0: made, but never written.
        Ok(0 | ABI_VERSION) => None,
        Ok(version) => Some(format!(
            "the pinned maps have ABI version {version}, this xvip {ABI_VERSION}"
        )),
        Err(error) => Some(format!("the pinned maps cannot be read ({error})")),
    }
}

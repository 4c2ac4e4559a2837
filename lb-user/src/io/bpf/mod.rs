//! The data plane in the kernel: loads the object, adopts what an earlier run pinned, attaches
//! the programs by pinned links, and reads and writes the maps.
//!
//! Everything is pinned below `/sys/fs/bpf/xvip/<instance>/`, so it goes on without a controller.

mod attach;
pub mod batch;
mod conntrack;
mod dry_run;
mod error;
pub mod features;
pub mod log;
mod lookup;
mod maps;
mod pins;
mod refusal;
pub mod ring;
mod syscall;
mod tc;
mod uplinks;
mod xdp;

use std::{fs::File, sync::Arc};

use aya::{Ebpf, EbpfLoader, include_bytes_aligned, maps::MapInfo};
use lb_common::abi::{ABI_VERSION, NodeConfig};

pub use self::{
    conntrack::{Conntrack, FamilyConntrack, Pieces, Table},
    dry_run::{Answer, DryRun, Form},
    error::BpfError,
    maps::{CountMaps, Counts, Maps},
    pins::Pins,
    uplinks::{Outcome, remove_filters},
};
use self::{features::Features, uplinks::Attacher};
use crate::{admin::Paths, core::attach::Plan};

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

/// What it takes to load the programs.
#[derive(Clone, Debug)]
pub struct Loading {
    /// The object, as [`object()`] has it.
    pub object: &'static [u8],
    /// Where the maps are pinned.
    pub pins: Pins,
    /// What the kernel has.
    pub features: Features,
    /// Whether it has tcx links.
    pub tcx: bool,
    /// Where the verifier's words about a refused program go.
    pub paths: Paths,
}

impl DataPlane {
    /// Load the object, adopt or make the maps, attach the hooks of connections and datagrams to
    /// `cgroup` (`None`: no hooks), and what finds listeners to this network namespace. The uplinks'
    /// programs of an earlier run go on until [`DataPlane::attach`] is called with `plans`.
    ///
    /// Every program is loaded before anything of an earlier run is replaced: where the kernel refuses
    /// one, the earlier programs and maps are left as they were.
    pub fn open(
        loading: &Loading,
        cgroup: Option<&File>,
        plans: &[Plan],
    ) -> Result<Self, BpfError> {
        let pins = &loading.pins;
        pins.create()?;
        let mut warnings = Vec::new();
        let unusable = unusable(pins);
        if let Some(why) = &unusable {
            warnings.push(format!("{why}: its flows were not adopted"));
        }
        let is_new = |name: &str| unusable.is_some() || !pins.map(name).exists();
        let new: Vec<&str> = MAPS.into_iter().filter(|name| is_new(name)).collect();
        let loaded = pins
            .stage()
            .and_then(|()| load(loading, &new))
            .and_then(|mut object| {
                let hooks = cgroup.is_some();
                warnings.extend(load_programs(&mut object, hooks, plans, &loading.paths)?);
                Ok(object)
            });
        let mut object = loaded.map_err(|error| refused(error, loading))?;
        pins.put_in_force(&new)?;
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
            attacher: Attacher::new(object, loading.clone()),
        })
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

/// The object that ships, as an ELF file.
pub fn object() -> &'static [u8] {
    OBJECT
}

/// Load the object with the maps that are pinned, and make those that are `new`.
fn load(loading: &Loading, new: &[&str]) -> Result<Ebpf, BpfError> {
    let pins = &loading.pins;
    let mut loader = EbpfLoader::new();
    loading.features.apply(&mut loader);
    for name in MAPS {
        let pin = if new.contains(&name) {
            pins.staged(name)
        } else {
            pins.map(name)
        };
        loader.map_pin_path(name, pin);
    }
    loader
        .load(&loading.features.object(loading.object))
        .map_err(BpfError::object)
}

/// Have the kernel take every program that is to be attached, and is not yet. The result is what an
/// operator should know.
fn load_programs(
    object: &mut Ebpf,
    hooks: bool,
    plans: &[Plan],
    paths: &Paths,
) -> Result<Vec<String>, BpfError> {
    if hooks {
        attach::preload(object)?;
    }
    lookup::preload(object)?;
    let refused = uplinks::preload(object, plans)?;
    let refused = refused.into_iter().map(|error| error.with_log(paths));
    Ok(refused.map(|error| error.to_string()).collect())
}

/// Nothing was replaced: say why, and what goes on.
fn refused(error: BpfError, loading: &Loading) -> BpfError {
    let pins = &loading.pins;
    pins.give_up_staged();
    let error = error.with_log(&loading.paths);
    match pins.link_names() {
        Ok(links) if !links.is_empty() => error.before_others(),
        _ => error,
    }
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

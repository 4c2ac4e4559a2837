//! Keeps the kernel settings that xvip depends on as they must be: set when they are first needed,
//! and looked at every few seconds, on a thread of its own, because somebody else may change them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::{
    sysctl::{self, Changed, Requirement, SysctlError},
    undo,
};
use crate::core::settings::{self, ArpIgnore};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_secs(5);
/// How long a change by somebody else is shown after it was put right, and how long no other of the
/// same setting is logged.
const SHOWN: Duration = Duration::from_mins(1);

/// A setting that could not be set, or what `xvip detach` needs could not be written down.
#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    /// The kernel's setting.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The file of [`undo`].
    #[error("cannot write down what was changed: {0}")]
    Undo(#[from] io::Error),
}

/// The running watch. Dropping it ends its thread.
pub struct SettingsWatch {
    kept: Arc<Mutex<Kept>>,
    /// Its end wakes the thread.
    _running: SyncSender<()>,
}

/// What is to be so, and what was found.
struct Kept {
    undo: PathBuf,
    requirements: BTreeMap<PathBuf, Requirement>,
    /// Interfaces that VIPs are added to.
    vip_interfaces: BTreeSet<String>,
    repairs: BTreeMap<PathBuf, Repair>,
    complaints: Vec<String>,
}

/// A setting that somebody else had changed.
struct Repair {
    change: Changed,
    times: u32,
    last: Instant,
    logged: Instant,
}

impl SettingsWatch {
    /// Set what local delivery needs, and start to watch, in the calling thread's network namespace.
    /// What is changed is written down in the file `undo`.
    pub fn start(undo: PathBuf) -> Result<Self, SettingError> {
        let mut kept = Kept {
            undo,
            requirements: BTreeMap::new(),
            vip_interfaces: BTreeSet::new(),
            repairs: BTreeMap::new(),
            complaints: Vec::new(),
        };
        kept.require(sysctl::for_local_delivery())?;
        let kept = Arc::new(Mutex::new(kept));
        let (running, stop) = sync_channel(0);
        let shared = Arc::clone(&kept);
        let thread = thread::Builder::new().name("xvip-settings".to_owned());
        thread.spawn(move || watch(&shared, &stop))?;
        Ok(Self {
            kept,
            _running: running,
        })
    }

    /// Set what an interface needs that VIPs are added to, each time that it appears.
    pub fn add_vip_interface(&self, name: &str) -> Result<(), SettingError> {
        let mut kept = lock(&self.kept);
        kept.vip_interfaces.insert(name.to_owned());
        kept.require(sysctl::for_vip_interface(name)?)
    }

    /// What an operator should know.
    pub fn warnings(&self) -> Vec<String> {
        let kept = lock(&self.kept);
        let repairs = kept
            .repairs
            .values()
            .filter(|own| own.last.elapsed() < SHOWN);
        let repairs = repairs.map(Repair::describe);
        repairs.chain(kept.complaints.iter().cloned()).collect()
    }
}

impl Kept {
    fn require(&mut self, requirements: Vec<Requirement>) -> Result<(), SettingError> {
        let changes = sysctl::ensure(&requirements)?;
        for change in &changes {
            info!("set {change}");
        }
        undo::remember(&self.undo, &changes)?;
        let named = requirements.into_iter();
        self.requirements
            .extend(named.map(|own| (own.path.clone(), own)));
        Ok(())
    }

    /// Put right what somebody else has changed, and find out what is wrong and not for xvip to change.
    fn look(&mut self) {
        let mut complaints = Vec::new();
        for requirement in self.requirements.values() {
            match sysctl::ensure(std::slice::from_ref(requirement)) {
                Ok(changes) => {
                    for change in changes {
                        if let Err(error) =
                            undo::remember(&self.undo, std::slice::from_ref(&change))
                        {
                            complaints.push(SettingError::Undo(error).to_string());
                        }
                        note(&mut self.repairs, change);
                    }
                }
                Err(error) if error.is_absent() => {} // The interface is gone.
                Err(error) => complaints.push(error.to_string()),
            }
        }
        complaints.extend(self.about_arp());
        for complaint in &complaints {
            if !self.complaints.contains(complaint) {
                warn!("{complaint}");
            }
        }
        self.complaints = complaints;
    }

    fn about_arp(&self) -> Vec<String> {
        let value = |name: &str| sysctl::read(&sysctl::ipv4_conf(name, "arp_ignore").ok()?).ok();
        let names = fs::read_dir(sysctl::IPV4_CONF)
            .into_iter()
            .flatten()
            .flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let real = names.filter(|name| !matches!(name.as_str(), "all" | "default" | "lo"));
        let mut interfaces: Vec<_> = real
            .filter_map(|interface| {
                Some(ArpIgnore {
                    value: value(&interface)?,
                    has_vips: self.vip_interfaces.contains(&interface),
                    interface,
                })
            })
            .collect();
        interfaces.sort_by(|one, other| one.interface.cmp(&other.interface));
        let all = value("all");
        all.map_or_else(Vec::new, |all| settings::complaints(all, &interfaces))
    }
}

/// Log a repair, if none of this setting was logged lately.
fn note(repairs: &mut BTreeMap<PathBuf, Repair>, change: Changed) {
    let now = Instant::now();
    let shown = |own: &Repair| now.duration_since(own.last) < SHOWN;
    repairs.retain(|_, own| shown(own));
    let logged = repairs.get(&change.path).map(|own| own.logged);
    let silent = logged.filter(|at| now.duration_since(*at) < SHOWN);
    let times = repairs.get(&change.path).map_or(0, |own| own.times);
    let repair = Repair {
        times: times.saturating_add(1),
        last: now,
        logged: silent.unwrap_or(now),
        change,
    };
    if silent.is_none() {
        warn!("{}", repair.describe());
    }
    repairs.insert(repair.change.path.clone(), repair);
}

impl Repair {
    fn describe(&self) -> String {
        let Self { change, times, .. } = self;
        let often = if *times > 1 {
            format!(", {times} times")
        } else {
            String::new()
        };
        format!("somebody else changed a kernel setting{often}; repaired: {change}")
    }
}

fn watch(kept: &Mutex<Kept>, stop: &Receiver<()>) {
    loop {
        lock(kept).look();
        if stop.recv_timeout(PAUSE) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

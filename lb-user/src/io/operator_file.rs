//! What the operator has said of backends, which he has added and removed, and what their host names stood
//! for last, in a file of the state directory: it outlives the controller, and where the directory is on a file system in memory (`/run`) no reboot.
//!
//! The file is replaced as a whole: it is written beside, synchronised and renamed. That happens on
//! a thread of its own, since a disk may be slow; whoever gave an order has his answer afterwards.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::clock;
use crate::{
    admin::{
        added::NewBackend,
        backends::{BackendReply, OperatorMode, WeightText},
        model::{CommandError, Reply},
    },
    config::model::Config,
    core::{
        desired::ServiceIdentity,
        names::HostKey,
        operator::{Entry, Saved, Word},
        roster::{Added, Removed, Roster},
        standing::{Mode, Weight},
        time::Timestamp,
    },
};

/// What this xvip writes and understands.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    backends: Vec<Record>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    added: Vec<AddedRecord>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    removed: Vec<RemovedRecord>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    names: Vec<NameRecord>,
}

/// What the host name of backends stood for last.
#[derive(Serialize, Deserialize)]
struct NameRecord {
    host: String,
    address: IpAddr,
}

/// A service.
#[derive(Serialize, Deserialize)]
struct ServiceRecord {
    vip: IpAddr,
    port: u16,
    protocol: u8,
}

/// A backend that was added.
#[derive(Serialize, Deserialize)]
struct AddedRecord {
    service: ServiceRecord,
    name: String,
    backend: NewBackend,
}

/// A backend of the configuration that was removed.
#[derive(Serialize, Deserialize)]
struct RemovedRecord {
    service: ServiceRecord,
    name: String,
}

/// An [`Entry`]. Times are those of the wall clock in milliseconds: a file may outlive a boot.
#[derive(Serialize, Deserialize)]
struct Record {
    vip: IpAddr,
    port: u16,
    protocol: u8,
    address: SocketAddr,
    mode: OperatorMode,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deadline_unix_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    leaves: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<WeightText>,
    since_unix_ms: u64,
}

/// The same moment on both clocks.
#[derive(Clone, Copy)]
struct Clocks {
    boot: Timestamp,
    unix: Duration,
}

impl Clocks {
    fn now() -> Self {
        Self {
            boot: clock::now(),
            unix: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
        }
    }

    fn to_unix(self, at: Timestamp) -> u64 {
        let ahead = at.saturating_since(self.boot);
        let behind = self.boot.saturating_since(at);
        let unix = (self.unix + ahead).saturating_sub(behind);
        u64::try_from(unix.as_millis()).unwrap_or(u64::MAX)
    }

    fn to_boot(self, unix_ms: u64) -> Timestamp {
        let unix = Duration::from_millis(unix_ms);
        let ahead = unix.saturating_sub(self.unix);
        let behind = self.unix.saturating_sub(unix);
        self.boot + ahead - behind
    }
}

fn record(entry: &Entry, clocks: Clocks) -> Record {
    let ((vip, port, protocol), address) = entry.backend;
    let word = &entry.word;
    Record {
        vip,
        port,
        protocol,
        address,
        mode: operator_mode(word.mode),
        deadline_unix_ms: word.deadline.map(|deadline| clocks.to_unix(deadline)),
        leaves: word.leaves,
        weight: weight_text(word.weight),
        since_unix_ms: clocks.to_unix(word.since),
    }
}

fn entry(record: &Record, clocks: Clocks) -> Entry {
    let service = (record.vip, record.port, record.protocol);
    Entry {
        backend: (service, record.address),
        word: Word {
            mode: match record.mode {
                OperatorMode::Enabled => Mode::Enabled,
                OperatorMode::Draining => Mode::Draining,
                OperatorMode::Maintenance => Mode::Maintenance,
            },
            deadline: record.deadline_unix_ms.map(|at| clocks.to_boot(at)),
            leaves: record.leaves,
            weight: record.weight.map_or(Weight::Configured, |text| text.0),
            since: clocks.to_boot(record.since_unix_ms),
        },
    }
}

const fn service_record((vip, port, protocol): ServiceIdentity) -> ServiceRecord {
    ServiceRecord {
        vip,
        port,
        protocol,
    }
}

const fn service_identity(record: &ServiceRecord) -> ServiceIdentity {
    (record.vip, record.port, record.protocol)
}

fn added_record(added: &Added) -> AddedRecord {
    AddedRecord {
        service: service_record(added.service),
        name: added.backend.name.clone(),
        backend: NewBackend::from(&added.backend),
    }
}

fn added(record: &AddedRecord) -> Result<Added, io::Error> {
    let backend = record.backend.config(&record.name);
    Ok(Added {
        service: service_identity(&record.service),
        backend: backend.map_err(io::Error::other)?,
    })
}

fn removed_record(removed: &Removed) -> RemovedRecord {
    RemovedRecord {
        service: service_record(removed.service),
        name: removed.name.clone(),
    }
}

fn removed(record: &RemovedRecord) -> Removed {
    Removed {
        service: service_identity(&record.service),
        name: record.name.clone(),
    }
}

fn name_record((key, address): &(HostKey, IpAddr)) -> NameRecord {
    NameRecord {
        host: key.host.clone(),
        address: *address,
    }
}

fn name(record: NameRecord) -> (HostKey, IpAddr) {
    let NameRecord { host, address } = record;
    let ipv6 = address.is_ipv6();
    (HostKey { host, ipv6 }, address)
}

/// A mode as it is shown and saved.
pub const fn operator_mode(mode: Mode) -> OperatorMode {
    match mode {
        Mode::Enabled => OperatorMode::Enabled,
        Mode::Draining => OperatorMode::Draining,
        Mode::Maintenance => OperatorMode::Maintenance,
    }
}

/// A weight as it is shown and saved; `None`: the configured one.
pub fn weight_text(weight: Weight) -> Option<WeightText> {
    (weight != Weight::Configured).then_some(WeightText(weight))
}

/// Where an instance keeps the orders.
fn path(config: &Config) -> PathBuf {
    let name = format!("{}.backends.json", config.node.instance);
    config.node.state_dir.join(name)
}

/// What was saved. A file that is not understood is put aside, aloud, and nothing was saved.
pub fn load(config: &Config) -> Saved {
    let path = path(config);
    match read(&path) {
        Ok(saved) => {
            if !saved.words.is_empty() || !saved.roster.is_empty() {
                info!(
                    file = %path.display(), backends = saved.words.len(), added = saved.roster.added.len(),
                    removed = saved.roster.removed.len(), "orders about backends are in force again"
                );
            }
            saved
        }
        Err(error) => {
            let aside = path.with_extension("json.bad");
            let kept = fs::rename(&path, &aside);
            let kept =
                kept.map_or_else(|error| error.to_string(), |()| aside.display().to_string());
            warn!(file = %path.display(), %error, kept, "cannot read the saved orders about backends: \
                 the backends are those of the configuration, enabled, with their weights");
            Saved::default()
        }
    }
}

/// Addresses of the backends that were added and of those by host name, for whoever takes away what an
/// earlier xvip left.
pub fn saved_addresses(config: &Config) -> Vec<IpAddr> {
    let saved = read(&path(config)).unwrap_or_default();
    let added = saved.roster.added.iter();
    let added = added.map(|one| one.backend.address.ip());
    let named = saved.names.iter().map(|(_, address)| *address);
    added.chain(named).collect()
}

fn read(path: &Path) -> Result<Saved, io::Error> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Saved::default()),
        text => text?,
    };
    let document: Document = serde_json::from_slice(&text).map_err(io::Error::other)?;
    if document.version != VERSION {
        let message = format!("version {} is not known", document.version);
        return Err(io::Error::other(message));
    }
    let clocks = Clocks::now();
    let records = document.backends.iter();
    Ok(Saved {
        words: records.map(|record| entry(record, clocks)).collect(),
        roster: Roster {
            added: document.added.iter().map(added).collect::<Result<_, _>>()?,
            removed: document.removed.iter().map(removed).collect(),
        },
        names: document.names.into_iter().map(name).collect(),
    })
}

/// Replaces the file in one step.
fn write(path: &Path, saved: &Saved) -> Result<(), io::Error> {
    let clocks = Clocks::now();
    let document = Document {
        version: VERSION,
        backends: (saved.words.iter())
            .map(|entry| record(entry, clocks))
            .collect(),
        added: saved.roster.added.iter().map(added_record).collect(),
        removed: saved.roster.removed.iter().map(removed_record).collect(),
        names: saved.names.iter().map(name_record).collect(),
    };
    let mut text = serde_json::to_vec_pretty(&document).map_err(io::Error::other)?;
    text.push(b'\n');
    let beside = path.with_extension("json.new");
    let mut file = File::create(&beside)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// Who waits for an answer.
type Asker = oneshot::Sender<Result<Reply, CommandError>>;

enum Job {
    Save(Saved),
    Answer(Asker, Result<BackendReply, CommandError>),
}

/// The thread that writes the file, and gives the answers that wait for it.
pub struct OperatorFile {
    jobs: mpsc::Sender<Job>,
}

impl OperatorFile {
    /// For the instance of `config`.
    pub fn start(config: &Config) -> Result<Self, io::Error> {
        let path = path(config);
        let (jobs, todo) = mpsc::channel();
        let work = move || {
            let mut failure = None;
            for job in todo {
                match job {
                    Job::Save(saved) => failure = save(&path, &saved),
                    Job::Answer(asker, reply) => answer(asker, reply, failure.as_deref()),
                }
            }
        };
        thread::Builder::new()
            .name("xvip-operator".to_owned())
            .spawn(work)?;
        Ok(Self { jobs })
    }

    /// Saves this in place of what was saved before.
    pub fn save(&self, saved: Saved) {
        // The thread lives as long as this end.
        let _ = self.jobs.send(Job::Save(saved));
    }

    /// Answers as soon as everything is saved that was to be saved until now.
    pub fn answer(&self, asker: Asker, reply: Result<BackendReply, CommandError>) {
        let _ = self.jobs.send(Job::Answer(asker, reply));
    }
}

/// Returns why it failed, if it did.
fn save(path: &Path, saved: &Saved) -> Option<String> {
    let error = write(path, saved).err()?;
    warn!(file = %path.display(), %error, "cannot save the orders about backends: a restart forgets them");
    Some(format!(
        "not saved in {}: {error}; a restart forgets it",
        path.display()
    ))
}

fn answer(asker: Asker, mut reply: Result<BackendReply, CommandError>, failure: Option<&str>) {
    if let Ok(reply) = &mut reply {
        reply.notes.extend(failure.map(str::to_owned));
    }
    // The asker may be gone.
    let _ = asker.send(reply.map(Reply::Backend));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{added::ForwardingWord, testing::TempDir};

    fn name_of(host: &str, address: &str) -> (HostKey, IpAddr) {
        let (host, address) = (host.to_owned(), address.parse().unwrap());
        name(NameRecord { host, address })
    }

    fn saved() -> Saved {
        let vip = "10.0.2.100".parse().unwrap();
        let now = clock::now();
        let word = |mode, deadline, weight| Word {
            mode,
            deadline,
            leaves: deadline.is_some(),
            weight,
            since: now,
        };
        let deadline = Some(now + Duration::from_mins(5));
        let words = [
            word(Mode::Draining, deadline, Weight::Configured),
            word(Mode::Maintenance, None, Weight::Percent(50)),
            word(Mode::Enabled, None, Weight::Absolute(0)),
        ]
        .into_iter()
        .zip(10..)
        .map(|(word, host)| {
            let backend = SocketAddr::from(([10, 0, 2, host], 6443));
            Entry {
                backend: ((vip, 1644, 6), backend),
                word,
            }
        });
        let service = (vip, 1644, 6);
        let new = NewBackend {
            address: "10.0.2.20:6443".to_owned(),
            weight: 7.try_into().unwrap(),
            backup: true,
            forwarding: ForwardingWord::Nat,
            check_address: Some(vip),
            check_port: 80.try_into().ok(),
        };
        let backend = new.config("spare").unwrap();
        let name = "master12".to_owned();
        Saved {
            words: words.collect(),
            roster: Roster {
                added: vec![Added { service, backend }],
                removed: vec![Removed { service, name }],
            },
            names: ["10.0.2.30", "fd00::30"]
                .into_iter()
                .map(|address| name_of("master13.example", address))
                .collect(),
        }
    }

    /// What is read is what was written, with its deadlines: to a second, since clocks are read
    /// one after the other.
    #[test]
    fn entries_survive() {
        let dir = TempDir::new();
        let path = dir.path().join("x.backends.json");
        assert_eq!(read(&path).unwrap(), Saved::default());
        for _ in 0..2 {
            write(&path, &saved()).unwrap();
        }
        let (written, read) = (saved(), read(&path).unwrap());
        assert_eq!((written.roster, written.names), (read.roster, read.names));
        assert_eq!(written.words.len(), read.words.len());
        for (written, read) in written.words.iter().zip(&read.words) {
            let plain = |entry: &Entry| {
                let word = &entry.word;
                (entry.backend, word.mode, word.leaves, word.weight)
            };
            assert_eq!(plain(written), plain(read));
            let deadlines = (written.word.deadline, read.word.deadline);
            if let (Some(a), Some(b)) = deadlines {
                assert!(a.max(b).saturating_since(a.min(b)) < Duration::from_secs(10));
            } else {
                assert_eq!(deadlines, (None, None));
            }
        }
        let files = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(files, 1, "nothing is left beside");
    }

    /// A damaged file, and one of a later xvip, are errors.
    #[test]
    fn unknown_files_are_errors() {
        let dir = TempDir::new();
        let path = dir.path().join("x.backends.json");
        for (text, expected) in [
            ("", "EOF"),
            ("{\"version\":1,\"backends\":[{}]}", "missing field"),
            ("{\"version\":2,\"backends\":[]}", "version 2 is not known"),
        ] {
            fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    /// An answer comes after what was saved before it, and says if that failed.
    #[tokio::test]
    async fn answers_come_after_the_file() {
        let dir = TempDir::new();
        let path = dir.path().join("gone").join("x.backends.json");
        let reply = || BackendReply {
            backends: vec![],
            notes: vec![],
        };
        let (asker, answered) = oneshot::channel();
        answer(asker, Ok(reply()), save(&path, &saved()).as_deref());
        let Ok(Reply::Backend(reply)) = answered.await.unwrap() else {
            panic!("another answer");
        };
        assert!(reply.notes[0].starts_with("not saved in "), "{reply:?}");
    }
}

//! What `xvip detach` needs to put back: the kernel settings that were changed, as they were
//! before, written down in the state directory.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::sysctl::{self, Changed, SysctlError};
use crate::config::model::Config;

/// What was put back.
pub struct Undo {
    /// Settings, in words.
    pub restored: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    path: PathBuf,
    before: i64,
    after: i64,
}

/// Where it is written down.
pub fn file(config: &Config) -> PathBuf {
    config
        .node
        .state_dir
        .join(format!("{}.settings.json", config.node.instance))
}

fn read(file: &Path) -> Vec<Record> {
    // Absent or unreadable: nothing is known to be put back.
    fs::read(file)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default()
}

/// Write down what was changed, in a file named by [`file()`]. What an earlier run changed stays written down: its `before` is
/// the older one.
pub fn remember(file: &Path, changes: &[Changed]) -> Result<(), io::Error> {
    if changes.is_empty() {
        return Ok(());
    }
    let mut records = read(file);
    for Changed {
        path,
        before,
        after,
    } in changes
    {
        if records.iter().all(|record| record.path != *path) {
            let (path, before, after) = (path.clone(), *before, *after);
            records.push(Record {
                path,
                before,
                after,
            });
        }
    }
    let text = serde_json::to_vec_pretty(&records).map_err(io::Error::other)?;
    fs::write(file, text)
}

/// Put the settings back, except where someone else has changed them since.
pub fn restore(config: &Config) -> Result<Undo, SysctlError> {
    let mut restored = Vec::new();
    for Record {
        path,
        before,
        after,
    } in read(&file(config))
    {
        let text = format!("{} = {before}", path.display());
        sysctl::restore(&[Changed {
            path,
            before,
            after,
        }])?;
        restored.push(text);
    }
    // It is remembered no longer; a file that cannot be removed only repeats this.
    let _ = fs::remove_file(file(config));
    Ok(Undo { restored })
}

/// Whether xvip keeps the neighbour `address` resolved: a peer or a backend.
pub fn resolves(config: &Config, address: IpAddr) -> bool {
    config
        .peers
        .iter()
        .any(|peer| peer.addresses.contains(&address))
        || config
            .services
            .iter()
            .any(|service| service.backends.iter().any(|b| b.address.ip() == address))
}

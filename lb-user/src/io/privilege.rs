//! The capabilities that the controller needs, asked for before anything is changed: half of its
//! work would fail late, and a node that claims a VIP which it cannot add is worse than none.

use std::{fs, io};

/// Where the kernel says what this process may do (proc(5)).
const STATUS: &str = "/proc/self/status";

/// Capabilities by number (`linux/capability.h`).
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;

/// What is missing.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// Capabilities.
    #[error("this process lacks {}: run xvip as root", _0.join(", "))]
    Missing(Vec<&'static str>),
    /// They cannot be found out.
    #[error("cannot read the capabilities from {STATUS}: {0}")]
    Unreadable(io::Error),
}

/// Whether this process has the capabilities that every part of xvip needs.
pub fn check() -> Result<(), PrivilegeError> {
    let status = fs::read_to_string(STATUS).map_err(PrivilegeError::Unreadable)?;
    let effective = effective(&status).ok_or_else(|| {
        PrivilegeError::Unreadable(io::Error::new(
            io::ErrorKind::InvalidData,
            "there is no CapEff",
        ))
    })?;
    match missing(effective) {
        missing if missing.is_empty() => Ok(()),
        missing => Err(PrivilegeError::Missing(missing)),
    }
}

fn effective(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// `CAP_SYS_ADMIN` includes `CAP_BPF`, which is younger (Linux 5.8).
fn missing(effective: u64) -> Vec<&'static str> {
    let has = |capability: u32| effective & (1 << capability) != 0;
    [
        ("CAP_NET_ADMIN", has(CAP_NET_ADMIN)),
        ("CAP_NET_RAW", has(CAP_NET_RAW)),
        ("CAP_BPF", has(CAP_BPF) || has(CAP_SYS_ADMIN)),
    ]
    .into_iter()
    .filter(|(_, present)| !present)
    .map(|(name, _)| name)
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The set is read from the line that holds the effective capabilities, not the permitted ones.
    #[test]
    fn reads_the_effective_set() {
        let status = "Name:\txvip\nCapPrm:\t000001ffffffffff\nCapEff:\t0000000000003000\n";
        assert_eq!(effective(status), Some(0x3000));
        assert_eq!(effective("Name:\txvip\n"), None);
    }

    /// Each missing capability is named; the old superset of `CAP_BPF` does as well.
    #[test]
    fn names_what_is_missing() {
        assert_eq!(missing(0), ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF"]);
        assert_eq!(missing(0x3000), ["CAP_BPF"]);
        assert!(missing(0x3000 | 1 << 39).is_empty());
        assert!(missing(0x3000 | 1 << 21).is_empty());
    }
}

//! Kernel settings below `/proc/sys`: what local delivery and the VIP need, and how it is said
//! what xvip changed.
//!
//! `/proc/sys/net` shows the network namespace of the thread that opens a file in it.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

/// IPv4's settings: a directory for each interface, and `all`.
pub const IPV4_CONF: &str = "/proc/sys/net/ipv4/conf";

/// A setting that xvip depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// File below `/proc/sys`.
    pub path: PathBuf,
    /// What it must be.
    pub wanted: Wanted,
}

/// Values that do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// This or any larger value, which stays as it is.
    AtLeast(i64),
    /// This value alone.
    Exactly(i64),
}

impl Wanted {
    /// What is written where the value does not do.
    pub const fn value(self) -> i64 {
        match self {
            Self::AtLeast(value) | Self::Exactly(value) => value,
        }
    }

    /// Whether `value` does.
    pub const fn accepts(self, value: i64) -> bool {
        match self {
            Self::AtLeast(wanted) => value >= wanted,
            Self::Exactly(wanted) => value == wanted,
        }
    }
}

/// A setting that [`ensure`] changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// File below `/proc/sys`.
    pub path: PathBuf,
    /// Value found.
    pub before: i64,
    /// Value written.
    pub after: i64,
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path,
            before,
            after,
        } = self;
        write!(f, "{}: {before} -> {after}", path.display())
    }
}

/// A setting that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// The interface's name cannot be part of a path.
    #[error("interface name {0:?} names no directory of /proc/sys")]
    Interface(String),
    /// Reading failed.
    #[error("{}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The value is not a whole number.
    #[error("{}: {value:?} is not a number", .path.display())]
    NotANumber {
        /// The file.
        path: PathBuf,
        /// What it holds.
        value: String,
    },
    /// Writing failed.
    #[error("{}: cannot be set to {value}: {source}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What was to be written.
        value: i64,
        /// Why.
        source: io::Error,
    },
    /// The kernel took the value and kept another.
    #[error("{}: is {kept} after {value} was written", .path.display())]
    NotKept {
        /// The file.
        path: PathBuf,
        /// What was written.
        value: i64,
        /// What it is.
        kept: i64,
    },
}

impl SysctlError {
    /// Whether there is no such setting, as of an interface that is gone.
    pub fn is_absent(&self) -> bool {
        let (Self::Read { source, .. } | Self::Write { source, .. }) = self else {
            return false;
        };
        source.kind() == io::ErrorKind::NotFound
    }

    /// Whether the kernel does not let this process change settings: no privilege, or a container
    /// with a read-only `/proc/sys`.
    pub fn is_refused(&self) -> bool {
        matches!(
            self,
            Self::Write { source, .. } if matches!(
                source.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            )
        )
    }
}

/// What a node needs that carries VIPs on `lo` while another one may own them, as with any
/// direct server return: no answer to ARP for an address of another interface, and no ARP with
/// the VIP as sender. Set for `all`, because the kernel takes the larger of `all` and the
/// interface's own, and because every interface on the VIP's segment would answer.
///
/// IPv6 needs none: a neighbour solicitation is answered for the receiving interface's
/// addresses only.
pub fn for_local_delivery() -> Vec<Requirement> {
    [("arp_ignore", 1), ("arp_announce", 2)]
        .into_iter()
        .map(|(key, value)| Requirement {
            path: Path::new(IPV4_CONF).join("all").join(key),
            wanted: Wanted::AtLeast(value),
        })
        .collect()
}

/// What an interface needs that a VIP is added to and removed from: should the VIP have become
/// the primary address of its subnet, its removal may not take the node's own address along.
pub fn for_vip_interface(interface: &str) -> Result<Vec<Requirement>, SysctlError> {
    Ok(vec![Requirement {
        path: ipv4_conf(interface, "promote_secondaries")?,
        wanted: Wanted::AtLeast(1),
    }])
}

/// The file of an interface's IPv4 setting. Names with dots (VLANs) are fine in a path.
pub fn ipv4_conf(interface: &str, key: &str) -> Result<PathBuf, SysctlError> {
    if interface.is_empty() || interface.contains('/') || matches!(interface, "." | "..") {
        return Err(SysctlError::Interface(interface.to_owned()));
    }
    Ok(Path::new(IPV4_CONF).join(interface).join(key))
}

/// Brings every requirement about and says what had to be changed. Stops at the first that
/// cannot be met; nothing is written that already does.
pub fn ensure(requirements: &[Requirement]) -> Result<Vec<Changed>, SysctlError> {
    requirements
        .iter()
        .filter_map(|requirement| ensure_one(requirement).transpose())
        .collect()
}

/// Puts back what [`ensure`] changed, except where someone else has changed it since.
pub fn restore(changes: &[Changed]) -> Result<(), SysctlError> {
    for change in changes {
        if read(&change.path)? == change.after {
            write(&change.path, change.before)?;
        }
    }
    Ok(())
}

fn ensure_one(requirement: &Requirement) -> Result<Option<Changed>, SysctlError> {
    let path = &requirement.path;
    let before = read(path)?;
    if requirement.wanted.accepts(before) {
        return Ok(None);
    }
    let after = requirement.wanted.value();
    write(path, after)?;
    Ok(Some(Changed {
        path: path.clone(),
        before,
        after,
    }))
}

/// A setting's value.
pub fn read(path: &Path) -> Result<i64, SysctlError> {
    let text = fs::read_to_string(path).map_err(|source| SysctlError::Read {
        path: path.to_owned(),
        source,
    })?;
    text.trim().parse().map_err(|_| SysctlError::NotANumber {
        path: path.to_owned(),
        value: text.trim().to_owned(),
    })
}

/// Sets a setting and checks that it stayed.
pub fn write(path: &Path, value: i64) -> Result<(), SysctlError> {
    fs::write(path, value.to_string()).map_err(|source| SysctlError::Write {
        path: path.to_owned(),
        value,
        source,
    })?;
    let kept = read(path)?;
    if kept == value {
        Ok(())
    } else {
        Err(SysctlError::NotKept {
            path: path.to_owned(),
            value,
            kept,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An interface name cannot lead out of its directory; a VLAN's dot is part of a name.
    #[test]
    fn interface_names_stay_one_component() {
        for name in ["", ".", "..", "a/b", "../all"] {
            assert!(ipv4_conf(name, "arp_ignore").is_err(), "{name:?}");
        }
        assert_eq!(
            ipv4_conf("eth0.100", "arp_ignore").unwrap(),
            Path::new("/proc/sys/net/ipv4/conf/eth0.100/arp_ignore")
        );
    }

    /// A stricter value of the administrator's does too, except where one value alone does.
    #[test]
    fn stricter_values_are_left_alone() {
        assert!(Wanted::AtLeast(1).accepts(2));
        assert!(!Wanted::AtLeast(2).accepts(1));
        assert!(!Wanted::Exactly(1).accepts(2));
    }

    /// An error names the file and the value, so that the operator can act on it.
    #[test]
    fn errors_name_path_and_value() {
        let missing = Requirement {
            path: PathBuf::from("/proc/sys/net/ipv4/conf/all/no_such_key"),
            wanted: Wanted::Exactly(1),
        };
        let error = ensure(&[missing]).unwrap_err().to_string();
        assert!(error.contains("conf/all/no_such_key"), "{error}");
        let error = write(Path::new("/proc/sys/kernel/ostype"), 7)
            .unwrap_err()
            .to_string();
        assert!(error.contains("ostype") && error.contains('7'), "{error}");
    }
}

//! The two file systems that the data plane needs: cgroup2 for the connect hooks, and the BPF
//! file system for the pins.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, FsType, fstatfs, statfs},
};

use crate::config::model::CgroupPath;

/// Where the BPF file system belongs.
pub const BPFFS: &str = "/sys/fs/bpf";

const MOUNTINFO: &str = "/proc/thread-self/mountinfo";

/// A file system that is not there.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The table of mounts cannot be read.
    #[error("{MOUNTINFO}: {0}")]
    Table(io::Error),
    /// No cgroup2 anywhere.
    #[error("no cgroup2 is mounted (set node.cgroup to \"off\" to do without connect hooks)")]
    NoCgroup2,
    /// The path is of another file system.
    #[error("{}: not a {wanted} directory", .path.display())]
    WrongType {
        /// The path.
        path: PathBuf,
        /// File system that it should be of.
        wanted: &'static str,
    },
    /// A system call failed.
    #[error("{}: {operation}: {source}", .path.display())]
    Failed {
        /// The path.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
}

fn failed<E: Into<io::Error>>(path: &Path, operation: &'static str) -> impl Fn(E) -> MountError {
    let path = path.to_owned();
    move |error| MountError::Failed {
        path: path.clone(),
        operation,
        source: error.into(),
    }
}

/// An open cgroup2 directory.
#[derive(Debug)]
pub struct Cgroup {
    /// Where it is.
    pub path: PathBuf,
    /// The directory, to attach programs to.
    pub directory: File,
}

/// Opens the cgroup that the connect hooks go to; `None` if they are off.
pub fn open_cgroup(choice: &CgroupPath) -> Result<Option<Cgroup>, MountError> {
    let path = match choice {
        CgroupPath::Off => return Ok(None),
        CgroupPath::Path(path) => path.clone(),
        CgroupPath::Auto => cgroup2_root()?,
    };
    let directory = File::open(&path).map_err(failed(&path, "open"))?;
    let facts = fstatfs(&directory).map_err(failed(&path, "statfs"))?;
    let kind = directory.metadata().map_err(failed(&path, "stat"))?;
    if facts.filesystem_type() != CGROUP2_SUPER_MAGIC || !kind.is_dir() {
        return Err(MountError::WrongType {
            path,
            wanted: "cgroup2",
        });
    }
    Ok(Some(Cgroup { path, directory }))
}

/// The root of cgroup2, wherever it is mounted: /sys/fs/cgroup, or its `unified` beside v1.
pub fn cgroup2_root() -> Result<PathBuf, MountError> {
    let table = fs::read(MOUNTINFO).map_err(MountError::Table)?;
    find_cgroup2(&table).ok_or(MountError::NoCgroup2)
}

/// What [`ensure_bpffs`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bpffs {
    /// It was there.
    Present,
    /// It was mounted now.
    Mounted,
}

/// Sees to it that `path` (see [`BPFFS`]) is a BPF file system: mounts one if it is not.
pub fn ensure_bpffs(path: &Path) -> Result<Bpffs, MountError> {
    if filesystem_type(path)? == BPF_FS_MAGIC {
        return Ok(Bpffs::Present);
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RELATIME;
    mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=700"))
        .map_err(failed(path, "mount the BPF file system"))?;
    tracing::info!(path = %path.display(), "mounted the BPF file system, which was not there");
    Ok(Bpffs::Mounted)
}

fn filesystem_type(path: &Path) -> Result<FsType, MountError> {
    statfs(path)
        .map(|facts| facts.filesystem_type())
        .map_err(failed(path, "statfs"))
}

/// The mount point of cgroup2 in a mountinfo table: one that shows the root of the hierarchy
/// before one that shows a part of it.
fn find_cgroup2(table: &[u8]) -> Option<PathBuf> {
    let mounts: Vec<_> = table
        .split(|byte| *byte == b'\n')
        .filter_map(Mount::parse)
        .filter(|mount| mount.kind == b"cgroup2")
        .collect();
    mounts
        .iter()
        .find(|mount| mount.root == b"/")
        .or(mounts.first())
        .map(|mount| PathBuf::from(OsStr::from_bytes(&unescape(mount.point))))
}

/// A line of mountinfo, proc(5): `id parent device root point options [tags] - type source ..`.
struct Mount<'a> {
    root: &'a [u8],
    point: &'a [u8],
    kind: &'a [u8],
}

impl<'a> Mount<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        fields.find(|field| *field == b"-")?;
        let kind = fields.next()?;
        Some(Self { root, point, kind })
    }
}

/// Undoes the kernel's `\040` for a blank, and the like.
fn unescape(escaped: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(escaped.len());
    let mut rest = escaped;
    loop {
        rest = match rest {
            [] => return plain,
            [
                b'\\',
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                after @ ..,
            ] => {
                let digits = [a, b, c].map(|digit| digit - b'0');
                plain.push(digits.iter().fold(0, |value, digit| value * 8 + digit));
                after
            }
            [byte, after @ ..] => {
                plain.push(*byte);
                after
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pure v2, and v1 with v2 beside it.
    #[test]
    fn cgroup2_is_found_in_both_layouts() {
        let unified = b"25 30 0:23 / /sys rw shared:7 - sysfs sysfs rw\n\
            31 23 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(find_cgroup2(unified).unwrap(), Path::new("/sys/fs/cgroup"));
        let hybrid = b"31 23 0:27 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
            32 31 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            33 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        assert_eq!(
            find_cgroup2(hybrid).unwrap(),
            Path::new("/sys/fs/cgroup/unified")
        );
        assert_eq!(
            find_cgroup2(b"31 23 0:27 / /sys rw - sysfs sysfs rw\n"),
            None
        );
    }

    /// A bind mount of a part of the hierarchy does not pass for its root.
    #[test]
    fn the_root_is_preferred_to_a_part() {
        let table = b"40 23 0:27 /kube /run/part rw - cgroup2 cgroup2 rw\n\
            41 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(find_cgroup2(table).unwrap(), Path::new("/sys/fs/cgroup"));
        let part = b"40 23 0:27 /kube /run/part rw - cgroup2 cgroup2 rw\n";
        assert_eq!(find_cgroup2(part).unwrap(), Path::new("/run/part"));
    }

    /// Blanks and backslashes in a mount point come back; torn lines are skipped.
    #[test]
    fn mount_points_are_unescaped() {
        let table = b"torn 1 2\n\n40 23 0:27 / /a\\040b\\134c\\9 rw - cgroup2 cgroup2 rw";
        assert_eq!(find_cgroup2(table).unwrap(), Path::new("/a b\\c\\9"));
    }

    /// A directory of another file system is refused by name.
    #[test]
    fn other_file_systems_are_no_cgroup() {
        let error = open_cgroup(&CgroupPath::Path("/proc".into())).unwrap_err();
        assert_eq!(error.to_string(), "/proc: not a cgroup2 directory");
        assert!(open_cgroup(&CgroupPath::Off).unwrap().is_none());
    }
}

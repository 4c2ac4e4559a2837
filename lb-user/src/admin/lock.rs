//! One controller per instance: a lock file that the kernel gives up when its holder dies, however
//! it dies. Without it two controllers would fight over the same pins and the same socket.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process,
};

use super::Paths;

/// The right to be the controller of an instance, held until it is dropped.
#[derive(Debug)]
pub struct InstanceLock {
    paths: Paths,
    /// Open file description that carries the lock.
    _file: File,
}

/// Why the instance could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds the lock.
    #[error("xvip already runs as this instance: {} is held by {}", path.display(), Holder(*pid))]
    Held {
        /// The lock file.
        path: PathBuf,
        /// The holder, as it wrote itself down.
        pid: Option<u32>,
    },
    /// The directory of the lock file could not be made.
    #[error("cannot create the state directory {}: {source}", path.display())]
    Directory {
        /// `node.state_dir`.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The lock file could not be opened, locked or written.
    #[error("cannot lock {}: {source}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl LockError {
    /// Whether more privilege would have helped.
    pub fn is_permission(&self) -> bool {
        match self {
            Self::Held { .. } => false,
            Self::Directory { source, .. } | Self::Io { source, .. } => {
                super::is_permission(source)
            }
        }
    }
}

/// The holder of a lock in words.
struct Holder(Option<u32>);

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "process {pid}"),
            None => f.write_str("another process"),
        }
    }
}

impl InstanceLock {
    /// Takes the lock of the instance at `paths`, at once or not at all. Makes the state directory
    /// if it is not there.
    pub fn acquire(paths: Paths) -> Result<Self, LockError> {
        create_state_dir(paths.state_dir())?;
        let path = paths.lock();
        let io_error = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        let mut file = open(&path).map_err(io_error)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let pid = read_pid(&mut file);
                return Err(LockError::Held { path, pid });
            }
            Err(TryLockError::Error(source)) => return Err(io_error(source)),
        }
        write_pid(&mut file).map_err(io_error)?;
        Ok(Self { paths, _file: file })
    }

    /// The locked instance.
    pub const fn paths(&self) -> &Paths {
        &self.paths
    }
}

fn create_state_dir(path: &Path) -> Result<(), LockError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(|source| LockError::Directory {
            path: path.to_owned(),
            source,
        })
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .open(path)
}

/// The process id in the lock file. The holder may be about to write it: then it is not known.
fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", process::id())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::testing::TempDir;

    /// A second controller of an instance is refused and told who holds it; another instance in
    /// the same directory is not.
    #[test]
    fn an_instance_is_locked_once() {
        let dir = TempDir::new();
        let held = InstanceLock::acquire(Paths::new(dir.path(), "one")).unwrap();
        let error = InstanceLock::acquire(Paths::new(dir.path(), "one")).unwrap_err();
        assert!(
            matches!(error, LockError::Held { pid: Some(pid), .. } if pid == process::id()),
            "{error}"
        );
        InstanceLock::acquire(Paths::new(dir.path(), "two")).unwrap();
        drop(held);
        InstanceLock::acquire(Paths::new(dir.path(), "one")).unwrap();
    }

    /// The state directory is made with its parents; a file in its place is named in the error.
    #[test]
    fn the_state_directory_is_made() {
        let dir = TempDir::new();
        let nested = dir.path().join("run/xvip");
        InstanceLock::acquire(Paths::new(&nested, "default")).unwrap();
        assert!(nested.is_dir());

        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = InstanceLock::acquire(Paths::new(&file, "default")).unwrap_err();
        assert!(matches!(error, LockError::Directory { .. }), "{error}");
        assert!(error.to_string().contains("file"), "{error}");
    }

    /// A lock file with something else in it still locks, and its content is replaced.
    #[test]
    fn a_stale_lock_file_is_taken_over() {
        let dir = TempDir::new();
        let paths = Paths::new(dir.path(), "default");
        std::fs::write(paths.lock(), "a long line that no process id ever is\n").unwrap();
        let held = InstanceLock::acquire(paths.clone()).unwrap();
        let text = std::fs::read_to_string(held.paths().lock()).unwrap();
        assert_eq!(text, format!("{}\n", process::id()));
    }
}

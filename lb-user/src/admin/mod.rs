//! The admin interface: what an operator asks a running xvip over its Unix socket.
//!
//! [`model`] is the language (requests, answers, the status document), [`server`] the controller's
//! end, [`client`] the command line's, [`render`] makes text of a status, and [`lock`] sees to it
//! that there is one controller per instance.

pub mod client;
pub mod lock;
pub mod model;
pub mod render;
pub mod server;

use std::{
    io,
    path::{Path, PathBuf},
};

/// Where an instance keeps its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    state_dir: PathBuf,
    instance: String,
}

impl Paths {
    /// The files of `instance` (`node.instance`) in `state_dir` (`node.state_dir`).
    pub fn new(state_dir: &Path, instance: &str) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            instance: instance.to_owned(),
        }
    }

    /// `node.state_dir`.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The admin socket.
    pub fn socket(&self) -> PathBuf {
        self.state_dir.join(format!("{}.sock", self.instance))
    }

    /// The file whose lock the controller holds.
    pub fn lock(&self) -> PathBuf {
        self.state_dir.join(format!("{}.lock", self.instance))
    }
}

fn is_permission(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
    )
}

#[cfg(test)]
pub(crate) mod testing {
    //! What the tests of this module share.

    use std::{
        path::{Path, PathBuf},
        process,
        sync::atomic::{AtomicU32, Ordering},
    };

    /// A directory of its own for one test, removed with everything in it.
    pub(crate) struct TempDir(PathBuf);

    impl TempDir {
        pub(crate) fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("xvip-admin-{}-{number}", process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        pub(crate) fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for TempDir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

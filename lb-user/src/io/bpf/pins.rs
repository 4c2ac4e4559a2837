//! Paths of the pins of one instance, and their removal.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::BpfError;

/// Where pins live on every machine.
const ROOT: &str = "/sys/fs/bpf/xvip";

/// The pins of one instance.
#[derive(Clone, Debug)]
pub struct Pins {
    directory: PathBuf,
}

impl Pins {
    /// Pins of instance `instance`, a checked name.
    pub fn new(instance: &str) -> Self {
        Self {
            directory: Path::new(ROOT).join(instance),
        }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The instance's name.
    pub(super) fn instance(&self) -> String {
        let name = self.directory.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Pin of map `name`.
    pub fn map(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn links(&self) -> PathBuf {
        self.directory.join("links")
    }

    /// Pin of the link called `name`.
    pub fn link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }

    /// Make the directories.
    pub fn create(&self) -> Result<(), BpfError> {
        let links = self.links();
        fs::create_dir_all(&links).map_err(|source| BpfError::Path {
            path: links,
            source,
        })
    }

    fn staging(&self) -> PathBuf {
        self.directory.join("new")
    }

    /// Where map `name` is pinned until [`Pins::put_in_force`].
    pub(super) fn staged(&self, name: &str) -> PathBuf {
        self.staging().join(name)
    }

    /// Make room for maps that are not in force yet.
    pub(super) fn stage(&self) -> Result<(), BpfError> {
        let path = self.staging();
        let made = self.forget_staged().and_then(|()| fs::create_dir(&path));
        made.map_err(|source| BpfError::Path { path, source })
    }

    /// Pin the maps that were staged under their names. Those of earlier programs, which are replaced,
    /// live on unnamed for as long as these are attached.
    pub(super) fn put_in_force(&self, staged: &[&str]) -> Result<(), BpfError> {
        for name in staged {
            let path = self.map(name);
            fs::rename(self.staged(name), &path)
                .map_err(|source| BpfError::Path { path, source })?;
        }
        let path = self.staging();
        self.forget_staged()
            .map_err(|source| BpfError::Path { path, source })
    }

    /// Leave no trace of what was staged, nor of directories that nothing is in.
    pub(super) fn give_up_staged(&self) {
        // What cannot be removed now is removed by the next start.
        let _ = self.forget_staged();
        for directory in [self.links().as_path(), self.directory(), Path::new(ROOT)] {
            let _ = fs::remove_dir(directory);
        }
    }

    fn forget_staged(&self) -> io::Result<()> {
        match fs::remove_dir_all(self.staging()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Names of the links.
    pub(super) fn link_names(&self) -> Result<Vec<String>, BpfError> {
        let path = self.links();
        let read = || -> io::Result<Vec<String>> {
            fs::read_dir(&path)?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        };
        match read() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            other => other.map_err(|source| BpfError::Path {
                path: path.clone(),
                source,
            }),
        }
    }

    /// Remove everything: links first, which detaches the programs, then the maps. Returns
    /// whether there was anything.
    pub fn remove_all(&self) -> Result<bool, BpfError> {
        if !self.directory.exists() {
            return Ok(false);
        }
        for name in self.link_names()? {
            remove_file(&self.link(&name))?;
        }
        let path = self.directory.clone();
        fs::remove_dir_all(&path).map_err(|source| BpfError::Path { path, source })?;
        // The parent stays while other instances have pins.
        let _ = fs::remove_dir(ROOT);
        Ok(true)
    }
}

/// Remove a pin that may not be there.
pub(super) fn remove_file(path: &Path) -> Result<(), BpfError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(BpfError::Path {
            path: path.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}

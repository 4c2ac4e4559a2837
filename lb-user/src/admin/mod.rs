//! The admin interface: what an operator asks a running xvip over its Unix socket.
//!
//! [`model`] is the language (requests, answers, the status document), [`server`] the controller's
//! end, [`client`] the command line's, [`render`] makes text of a status, and [`lock`] sees to it
//! that there is one controller per instance. Answers of many lines are [`stream`]s: [`flows`],
//! [`trace`] and [`explain`] say what is in them.

pub mod added;
pub mod backends;
pub mod client;
pub mod explain;
pub mod flows;
pub mod lock;
pub mod model;
pub mod render;
pub mod server;
pub mod stream;
pub mod trace;

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::config::model::VrrpConfig;
use model::CommandError;

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

    /// What the kernel's verifier said of a program that it refused.
    pub fn verifier_log(&self, program: &str) -> PathBuf {
        let name = format!("{}.{program}.verifier.log", self.instance);
        self.state_dir.join(name)
    }

    /// The file whose lock the controller holds.
    pub fn lock(&self) -> PathBuf {
        self.state_dir.join(format!("{}.lock", self.instance))
    }
}

/// Positions of the VRRP instances that a command is for: the one of this name, or all.
pub fn vrrp_targets(vrrp: &[VrrpConfig], name: Option<&str>) -> Result<Vec<usize>, CommandError> {
    if vrrp.is_empty() {
        return Err(CommandError::NoVrrp);
    }
    let Some(name) = name else {
        return Ok((0..vrrp.len()).collect());
    };
    match vrrp.iter().find(|instance| instance.name == name) {
        Some(named) => {
            let members = vrrp.iter().enumerate();
            let members = members.filter(|(_, instance)| named.moves_with(instance));
            Ok(members.map(|(position, _)| position).collect())
        }
        None => Err(CommandError::UnknownVrrp {
            name: name.to_owned(),
            known: vrrp.iter().map(|instance| instance.name.clone()).collect(),
        }),
    }
}

/// Whether more privilege would have helped.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, HostFacts};

    /// A configuration with a VRRP instance for each of `names`.
    fn vrrp(names: &[&str]) -> Vec<VrrpConfig> {
        let mut text = "[node]\ninterfaces = [\"uplink\"]\n".to_owned();
        for (position, name) in names.iter().enumerate() {
            let (vrid, host) = (position + 1, position + 100);
            let section = format!(
                "[[vrrp]]\nname = \"{name}\"\ninterface = \"uplink\"\nvrid = {vrid}\n\
                 addresses = [\"10.0.2.{host}/24\"]\n"
            );
            text.push_str(&section);
        }
        let facts = HostFacts {
            hostname: "node".into(),
        };
        let config = config::parse(&text, "x.toml", &facts, &|_| Ok(Vec::new())).unwrap();
        config.vrrp
    }

    /// A name picks its instance, no name all of them; a wrong name is told what there is.
    #[test]
    fn commands_pick_their_instances() {
        let two = vrrp(&["a", "b"]);
        assert_eq!(vrrp_targets(&two, Some("b")), Ok(vec![1]));
        assert_eq!(vrrp_targets(&two, None), Ok(vec![0, 1]));
        let error = vrrp_targets(&two, Some("c")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no VRRP instance is named \"c\" (there are: a, b)"
        );
        assert_eq!(vrrp_targets(&[], None), Err(CommandError::NoVrrp));
        let mut group = vrrp(&["a", "b", "c"]);
        for position in [0, 2] {
            group[position].sync_group = Some("both".to_owned());
        }
        assert_eq!(vrrp_targets(&group, Some("c")), Ok(vec![0, 2]));
        assert_eq!(vrrp_targets(&group, Some("b")), Ok(vec![1]));
    }
}

//! Configuration: one TOML file, read raw with positions and validated into the immutable
//! [`model::Config`] that everything else works from.
//!
//! [`load`] reads the file, [`parse`] does the rest and is pure: facts about the machine and
//! access to the files that a configuration names (passwords, certificates) are handed in.
//! The way of a configuration: `raw` (TOML with positions) -> `node`, `vrrp`, `service` (one
//! section each, every value checked on its own by `value`) -> `check` (what values must be
//! to each other) -> [`model`]. Every step records what it refuses and goes on, so that one run
//! shows every error.

pub mod addition;
mod check;
mod command;
mod error;
mod health;
pub mod model;
mod node;
mod notify;
mod raw;
mod service;
mod sources;
#[cfg(test)]
mod tests;
mod track;
mod value;
mod vrrp;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub use error::{ConfigError, ConfigErrors};
use model::Config;
use raw::{Report, Table};

/// Defaults that come from the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// The host name: default of `node.name`.
    pub hostname: String,
}

/// Reads a file that a configuration names.
pub type ReadFile<'a> = &'a dyn Fn(&Path) -> io::Result<Vec<u8>>;

/// Read and validate the configuration file at `path` and the files that it names.
///
/// Relative paths in it start at the directory of the file itself.
pub fn load(path: &Path, facts: &HostFacts) -> Result<Config, ConfigErrors> {
    let file = path.display().to_string();
    let bytes = fs::read(path).map_err(|error| ConfigErrors::unreadable(&file, &error))?;
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text,
        Err(error) => return Err(ConfigErrors::not_utf8(&file, &bytes, error.valid_up_to())),
    };
    parse(text, &file, facts, &|named| fs::read(named))
}

/// `node.state_dir` and `node.instance` of the file at `path`, as far as they can be told although
/// it is not valid: whoever looks for the xvip that runs with what the file held before needs no
/// more. `None`: the file cannot be read.
pub fn node_of(path: &Path) -> Option<(PathBuf, String)> {
    let text = fs::read_to_string(path).ok()?;
    let (document, _) = toml::de::DeTable::parse_recoverable(&text);
    let node = document.get_ref().get("node");
    let text = |key: &str, default: &str| {
        let value = node.and_then(|node| node.get_ref().get(key)?.get_ref().as_str());
        value.unwrap_or(default).to_owned()
    };
    let state_dir = text("state_dir", node::DEFAULT_STATE_DIR);
    Some((state_dir.into(), text("instance", node::DEFAULT_INSTANCE)))
}

/// Validate the configuration `text`, read from `file` (shown in errors; its directory is where
/// relative paths start). `read_file` gives the contents of the files that it names.
pub fn parse(
    text: &str,
    file: &str,
    facts: &HostFacts,
    read_file: ReadFile<'_>,
) -> Result<Config, ConfigErrors> {
    let report = Report::default();
    let (document, syntax_errors) = toml::de::DeTable::parse_recoverable(text);
    let context = Context {
        facts,
        directory: Path::new(file)
            .parent()
            .map(Path::to_path_buf)
            .unwrap_or_default(),
        read_file,
    };
    let config = read(Table::root(&report, document.get_ref()), &context);
    report.finish(text, file, &syntax_errors, config)
}

/// What the sections need besides their own text.
struct Context<'a> {
    facts: &'a HostFacts,
    directory: PathBuf,
    read_file: ReadFile<'a>,
}

impl Context<'_> {
    /// Path and content of the file `named` in the configuration.
    fn read(&self, named: &str) -> Result<(PathBuf, Vec<u8>), value::Fault> {
        let path = self.directory.join(named);
        match (self.read_file)(&path) {
            Ok(content) => Ok((path, content)),
            Err(error) => Err(value::Fault::new(
                format!("\"{}\" cannot be read: {error}", path.display()),
                "name a readable file",
            )),
        }
    }
}

/// A configuration whose values are checked one by one, with the positions that the checks
/// of values against each other report.
struct Draft {
    node: node::NodeDraft,
    peers: Vec<node::PeerDraft>,
    tracks: Vec<track::TrackDraft>,
    vrrp: Vec<vrrp::VrrpDraft>,
    groups: Vec<notify::GroupDraft>,
    services: Vec<service::ServiceDraft>,
}

/// Read every section. `None`, or anything else together with a recorded error, is no result.
fn read(mut root: Table<'_>, context: &Context<'_>) -> Option<Config> {
    let report = root.report();
    let tracks: Vec<_> = root
        .tables("track")
        .into_iter()
        .map(|table| track::read(table, context))
        .collect();
    let draft = Draft {
        node: node::read_node(root.table("node"), context),
        peers: root
            .tables("peer")
            .into_iter()
            .map(node::read_peer)
            .collect(),
        vrrp: root
            .tables("vrrp")
            .into_iter()
            .map(|table| vrrp::read(table, context, &tracks))
            .collect(),
        groups: root
            .tables("sync_group")
            .into_iter()
            .map(|table| notify::read_group(table, context))
            .collect(),
        tracks,
        services: root
            .tables("service")
            .into_iter()
            .map(|table| service::read(table, context))
            .collect(),
    };
    root.finish();
    check::check(report, &draft);
    notify::check_groups(report, &draft.groups, &draft.vrrp);
    Some(Config {
        node: draft.node.config?,
        peers: draft
            .peers
            .into_iter()
            .map(|peer| peer.config)
            .collect::<Option<_>>()?,
        tracks: draft
            .tracks
            .into_iter()
            .map(|track| track.config)
            .collect::<Option<_>>()?,
        vrrp: draft
            .vrrp
            .into_iter()
            .map(|vrrp| vrrp.config)
            .collect::<Option<_>>()?,
        groups: draft
            .groups
            .into_iter()
            .map(|group| group.config)
            .collect::<Option<_>>()?,
        services: draft
            .services
            .into_iter()
            .map(|service| service.config)
            .collect::<Option<_>>()?,
    })
}

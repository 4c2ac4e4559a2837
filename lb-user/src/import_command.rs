//! The binary's part of `xvip import`: reads the inputs, and writes what comes of them.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use lb_user::{
    cli::{ExitCode, import::ImportArgs},
    import::{self, Imported, Input, Inputs, Options},
    io::reload,
};

use crate::{Failure, print};

/// Bytes of an input: more are no configuration.
const MAX_INPUT: u64 = 8 << 20;
/// Files of one include line.
const MAX_INCLUDED: usize = 64;

/// Why nothing was imported.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportError {
    #[error("nothing to import: name --keepalived FILE, --haproxy FILE or --env")]
    NoInput,
    #[error("{} cannot be read: {error}", path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{} cannot be written: {error}; name a file that is not there yet with -o", path.display())]
    Unwritable { path: PathBuf, error: io::Error },
    #[error("{0}")]
    Refused(Box<import::Refusal>),
}

impl ImportError {
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::NoInput => ExitCode::Usage,
            Self::Unreadable { .. } | Self::Refused(_) => ExitCode::Config,
            Self::Unwritable { .. } => ExitCode::Failure,
        }
    }
}

/// `xvip import`
pub(crate) fn import(args: &ImportArgs) -> Result<ExitCode, Failure> {
    if !args.has_input() {
        return Err(ImportError::NoInput.into());
    }
    let inputs = inputs(args)?;
    let facts = &args.facts;
    let hostname = reload::host_facts().hostname;
    let config_id = facts.config_id.clone();
    let short = hostname.split('.').next().unwrap_or_default().to_owned();
    let directory = args.keepalived.as_deref().and_then(Path::parent);
    let directory = directory.unwrap_or(Path::new("")).to_path_buf();
    let output = args.output.clone().unwrap_or_else(|| "xvip.toml".into());
    let options = Options {
        node: facts.node.clone(),
        config_id: config_id.unwrap_or(short),
        addresses: match facts.address.as_slice() {
            [] => own_addresses(),
            given => given.to_vec(),
        },
        peers: facts.peer.clone(),
        interfaces: facts.interface.clone(),
        hosts: facts.host.clone(),
        variables: facts.define.iter().cloned().collect(),
        output: output.display().to_string(),
        read_file: &|path| fs::read(path),
        include: &|pattern| include(&directory, pattern),
    };
    let imported = import::import(&inputs, &options)
        .map_err(|refusal| ImportError::Refused(Box::new(refusal)))?;
    write(args.output.as_deref(), &imported)?;
    Ok(if imported.report.needs_hand() {
        ExitCode::ByHand
    } else {
        ExitCode::Success
    })
}

fn write(output: Option<&Path>, imported: &Imported) -> Result<(), Failure> {
    let report = imported.report.to_string();
    let Some(path) = output else {
        let _ = io::stderr().write_all(report.as_bytes());
        return print(&imported.toml);
    };
    let unwritable = |error| ImportError::Unwritable {
        path: path.to_path_buf(),
        error,
    };
    // It may hold a password, and what is there already may be somebody's work.
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let mut file = file.map_err(unwritable)?;
    file.write_all(imported.toml.as_bytes())
        .map_err(unwritable)?;
    print(&format!("{report}written: {}\n", path.display()))
}

fn inputs(args: &ImportArgs) -> Result<Inputs, ImportError> {
    let read = |path: &Option<PathBuf>| path.as_deref().map(read).transpose();
    let env = match &args.env {
        None => None,
        Some(Some(path)) => Some(self::read(path)?),
        Some(None) => Some(environment()),
    };
    Ok(Inputs {
        keepalived: read(&args.keepalived)?,
        haproxy: read(&args.haproxy)?,
        check_script: read(&args.check_script)?,
        env,
    })
}

/// What is not UTF-8 is shown as such: it stands in comments, or is reported.
fn read(path: &Path) -> Result<Input, ImportError> {
    let unreadable = |error| ImportError::Unreadable {
        path: path.to_path_buf(),
        error,
    };
    let file = fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX_INPUT + 1), &mut bytes)
        .map_err(unreadable)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_INPUT) {
        let error = io::Error::other(format!("it has more than {MAX_INPUT} bytes"));
        return Err(unreadable(error));
    }
    Ok(Input {
        name: path.display().to_string(),
        text: String::from_utf8_lossy(&bytes).into_owned(),
    })
}

/// The variables of this process that the image takes.
fn environment() -> Input {
    let variables = std::env::vars_os().filter_map(|(name, value)| {
        let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
        (name.starts_with("KEEPALIVED_") && !value.contains('\n'))
            .then(|| format!("{name}={value}\n"))
    });
    let mut lines: Vec<_> = variables.collect();
    lines.sort();
    Input {
        name: "environment".to_owned(),
        text: lines.concat(),
    }
}

/// Addresses of this machine's interfaces.
fn own_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    addresses.filter(|address| !address.is_loopback()).collect()
}

/// The files of an include line: `*` and `?` in the last part of the path are wildcards.
fn include(directory: &Path, pattern: &str) -> Result<Vec<Input>, String> {
    let path = directory.join(pattern);
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or("no file name")?;
    if !name.contains(['*', '?', '[', '{']) {
        return Ok(vec![read(&path).map_err(|error| error.to_string())?]);
    }
    if name.contains(['[', '{']) {
        return Err("only * and ? are understood".to_owned());
    }
    let parent = path.parent().unwrap_or(Path::new("."));
    if parent
        .to_str()
        .is_none_or(|parent| parent.contains(['*', '?', '[', '{']))
    {
        return Err("wildcards are understood in the name of the file only".to_owned());
    }
    let Ok(entries) = fs::read_dir(parent) else {
        return Ok(Vec::new());
    };
    let fits = |path: &PathBuf| {
        let file = path.file_name().and_then(|name| name.to_str());
        file.is_some_and(|file| !file.starts_with('.') && matches(name.as_bytes(), file.as_bytes()))
    };
    let mut paths: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(fits)
        .collect();
    paths.sort();
    let paths = paths.into_iter().take(MAX_INCLUDED);
    paths
        .map(|path| read(&path).map_err(|error| error.to_string()))
        .collect()
}

/// Whether `name` fits `pattern` with `*` and `?`.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    // What each `*` can stand for: from which bytes of the name on the rest may fit.
    let mut starts = vec![true];
    starts.resize(name.len() + 1, false);
    for &wanted in pattern {
        let mut next = vec![false; name.len() + 1];
        let mut any = false;
        for (at, &possible) in starts.iter().enumerate() {
            any |= possible;
            let fits = match wanted {
                b'*' => {
                    if let Some(slot) = next.get_mut(at) {
                        *slot = any;
                    }
                    continue;
                }
                b'?' => possible,
                byte => possible && name.get(at) == Some(&byte),
            };
            if let Some(slot) = next.get_mut(at + 1).filter(|_| fits) {
                *slot = true;
            }
        }
        starts = next;
    }
    starts.last() == Some(&true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files that are not looked for are no files that are not there.
    #[test]
    fn wildcards_in_directories_are_told() {
        for pattern in ["conf.d/*/a.conf", "conf.?/*.conf", "[ab].conf"] {
            assert!(
                include(Path::new("/nowhere"), pattern).is_err(),
                "{pattern}"
            );
        }
        assert_eq!(
            include(Path::new("/nowhere"), "conf.d/*.conf"),
            Ok(Vec::new())
        );
    }

    #[test]
    fn wildcards_fit_names() {
        for (pattern, name, fits) in [
            ("*.conf", "a.conf", true),
            ("*.conf", ".conf", true),
            ("*.conf", "a.conf~", false),
            ("?-*", "1-x", true),
            ("a*b*c", "abbc", true),
            ("a*b*c", "abb", false),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), name.as_bytes()),
                fits,
                "{pattern} {name}"
            );
        }
    }
}

//! Debian's package lists: this machine's own, or those of other suites of the same mirror.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{arch::Arch, shell};

/// Suites whose kernels are looked through when this machine's own have none that fits.
const SUITES: &[&str] = &[
    "bullseye",
    "bullseye-security",
    "bookworm",
    "bookworm-security",
    "trixie",
    "trixie-security",
    "trixie-backports",
    "forky",
    "sid",
];
/// What Debian signs with, where its package is installed.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The apt programs with one set of lists.
pub(crate) struct Apt {
    options: Vec<OsString>,
    /// What its packages are for.
    arch: Arch,
}

/// Where packages of a suite come from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Source {
    uri: String,
    suite: String,
}

impl Apt {
    /// With the lists that this machine has.
    pub(crate) fn system() -> Self {
        Self {
            options: Vec::new(),
            arch: Arch::X86_64,
        }
    }

    /// With this machine's sources, and lists of its own: a container often has none, and only root
    /// may fetch them to where they belong.
    pub(crate) fn with_own_sources(directory: &Path, arch: Arch) -> Result<Self> {
        let apt = Self {
            options: private(directory)?,
            arch,
        };
        apt.update_once(directory)?;
        Ok(apt)
    }

    /// With one suite, or all, of the mirror that `own` uses.
    pub(crate) fn with_suites(directory: &Path, own: &Self, suite: Option<&str>) -> Result<Self> {
        let sources = own.sources()?;
        let list = match suite {
            Some(suite) => source_lines(&sources, &[suite, &format!("{suite}-security")]),
            None => source_lines(&sources, SUITES),
        };
        if list.is_empty() {
            bail!("this machine's apt sources are not Debian's: its mirror is not known");
        }
        let mut options = private(directory)?;
        let file = directory.join("sources.list");
        fs::write(&file, list)?;
        options.extend(option("Dir::Etc::sourcelist", file.as_os_str()));
        options.extend(option("Dir::Etc::sourceparts", "-".as_ref()));
        let apt = Self {
            options,
            arch: own.arch,
        };
        apt.update_once(directory)?;
        Ok(apt)
    }

    /// Names of all packages that hold kernels.
    pub(crate) fn package_names(&self) -> Result<Vec<String>> {
        let names = self.output("apt-cache", &["pkgnames", "linux-image-"])?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// The `Depends` field of a package.
    pub(crate) fn dependencies(&self, package: &str) -> Result<String> {
        let fields = self.output("apt-cache", &["show", "--no-all-versions", package])?;
        let depends = fields
            .lines()
            .find_map(|line| line.strip_prefix("Depends: "));
        Ok(depends.unwrap_or_default().to_owned())
    }

    /// Downloads packages and says where they are.
    pub(crate) fn download(&self, packages: &[String], to: &Path) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(to)?;
        let mut files = Vec::new();
        for package in packages {
            let mut download = self.command("apt-get");
            download
                .args(["--quiet=2", "download", package])
                .current_dir(to);
            shell::run(&mut download)?;
            let prefix = format!("{package}_");
            let names = fs::read_dir(to)?.collect::<Result<Vec<_>, _>>()?;
            let file = names.iter().find(|file| {
                file.file_name()
                    .to_str()
                    .is_some_and(|name| name.starts_with(&prefix))
            });
            files.push(
                file.with_context(|| format!("apt-get left no {package}"))?
                    .path(),
            );
        }
        Ok(files)
    }

    /// Debian's repositories among the sources.
    fn sources(&self) -> Result<BTreeSet<Source>> {
        let targets = self.output(
            "apt-get",
            &[
                "indextargets",
                "--format",
                "$(ORIGIN) $(REPO_URI) $(CODENAME)",
                "Identifier: Packages",
            ],
        )?;
        Ok(targets.lines().filter_map(source).collect())
    }

    /// Fetches the lists where there are none. A suite that the mirror does not have (any more) is
    /// no failure; none at all is.
    fn update_once(&self, directory: &Path) -> Result<()> {
        let fetched = directory.join("fetched");
        if fetched.exists() {
            return Ok(());
        }
        println!("xtask: fetching package lists into {}", directory.display());
        let mut update = self.command("apt-get");
        update.args(["--quiet=2", "update"]).stderr(Stdio::null());
        let complete = shell::run(&mut update);
        if self.sources()?.is_empty() {
            complete?;
            bail!("apt-get found no list of packages");
        }
        fs::write(fetched, "")?;
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options);
        if self.arch != Arch::X86_64 {
            let name = self.arch.debian();
            for setting in ["APT::Architecture", "APT::Architectures"] {
                command.args(["-o", &format!("{setting}={name}")]);
            }
        }
        // Root's apt downloads as another user, who may not write here.
        command.args(["-o", "APT::Sandbox::User=root"]);
        command
    }

    fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut command = self.command(program);
        command.args(args);
        shell::output(&mut command)
    }
}

/// Lists and caches below a directory, in place of the machine's.
fn private(directory: &Path) -> Result<Vec<OsString>> {
    let (lists, cache) = (directory.join("lists"), directory.join("cache"));
    fs::create_dir_all(lists.join("partial"))?;
    fs::create_dir_all(cache.join("archives").join("partial"))?;
    let lists = option("Dir::State::lists", lists.as_os_str());
    let cache = option("Dir::Cache", cache.as_os_str());
    Ok(lists.into_iter().chain(cache).collect())
}

fn option(name: &str, value: &std::ffi::OsStr) -> [OsString; 2] {
    let mut setting = OsString::from(format!("{name}="));
    setting.push(value);
    ["-o".into(), setting]
}

/// One line of `apt-get indextargets`.
fn source(line: &str) -> Option<Source> {
    let mut words = line.split(' ');
    let (origin, uri, suite) = (words.next()?, words.next()?, words.next()?);
    (origin == "Debian").then(|| Source {
        uri: uri.to_owned(),
        suite: suite.to_owned(),
    })
}

/// A `sources.list` of other suites on the same mirror. Security updates are a repository of their
/// own.
fn source_lines(own: &BTreeSet<Source>, suites: &[&str]) -> String {
    let is_security = |suite: &str| suite.ends_with("-security");
    let keyring = Path::new(KEYRING).exists();
    let signed = if keyring {
        format!("[signed-by={KEYRING}] ")
    } else {
        String::new()
    };
    let lines = suites.iter().filter_map(|suite| {
        let mut same = own
            .iter()
            .filter(|source| is_security(&source.suite) == is_security(suite));
        let uri = &same.next()?.uri;
        Some(format!("deb {signed}{uri} {suite} main\n"))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Other suites come from where this machine's own come from, each kind from its repository.
    #[test]
    fn suites_are_taken_from_the_same_mirror() {
        let targets = "Debian http://mirror/debian/ bookworm\n\
                       Debian http://mirror/debian-security/ bookworm-security\n\
                       Other http://elsewhere/ stable\n";
        let own: BTreeSet<_> = targets.lines().filter_map(source).collect();
        assert_eq!(own.len(), 2);
        let lines = source_lines(&own, &["sid", "trixie-security"]);
        let lines: Vec<_> = lines.lines().collect();
        assert!(
            lines[0].ends_with("http://mirror/debian/ sid main"),
            "{lines:?}"
        );
        assert!(
            lines[1].ends_with("http://mirror/debian-security/ trixie-security main"),
            "{lines:?}"
        );
        assert_eq!(source_lines(&BTreeSet::new(), SUITES), "");
    }
}

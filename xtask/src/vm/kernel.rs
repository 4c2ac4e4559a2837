//! Where a kernel comes from: a Debian package, a package file or a directory.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
};

use anyhow::{Context, Result, bail};

use super::apt::Apt;
use crate::{arch::Arch, shell};

/// What a word or a release of another architecture than the host's has in it.
const FOREIGN: &str = "-arm64";
/// Packages that hold parts of a kernel. Newer kernels have one for the image and one for the
/// modules; `linux-image` only depends on them then.
const PARTS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];

/// Debian's packages with the shell of a guest that runs no programs of the host's, and with `ip` and
/// the libraries that it needs.
const FOREIGN_PACKAGES: &[&str] = &[
    "busybox-static",
    "iproute2",
    "libbpf1",
    "libbsd0",
    "libcap2",
    "libelf1",
    "libmd0",
    "libmnl0",
    "zlib1g",
];

/// A kernel as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// `6.1`, `6.12.117`, `7.x`: the newest release that begins with these numbers.
    Version(Vec<u32>, Arch),
    /// `trixie`: the newest kernel of that Debian suite.
    Suite(String, Arch),
    /// A package, or a directory with `boot/` and `lib/modules/`.
    Path(PathBuf),
}

impl FromStr for Wanted {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        let is_package = Path::new(word)
            .extension()
            .is_some_and(|extension| extension == "deb");
        if word.contains('/') || is_package {
            return Ok(Self::Path(word.into()));
        }
        let (word, arch) =
            (word.strip_suffix(FOREIGN)).map_or((word, Arch::X86_64), |word| (word, Arch::Aarch64));
        if word.starts_with(|first: char| first.is_ascii_digit()) {
            let numbers = word.strip_suffix(".x").unwrap_or(word).split('.');
            let numbers: Result<Vec<u32>, _> = numbers.map(str::parse).collect();
            let numbers = numbers.with_context(|| {
                format!(
                    "`{word}` is no kernel: write it like `6.1` or `7.x`, a directory like `./k`"
                )
            })?;
            return Ok(Self::Version(numbers, arch));
        }
        let is_suite = word.starts_with(|first: char| first.is_ascii_lowercase())
            && (word.chars()).all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if !is_suite {
            bail!(
                "`{word}` is no kernel: `6.1` and `7.x` are Debian's newest of that version, `trixie` \
                 is that of a suite, `./FILE.deb` a package, `./DIRECTORY` one with boot/ and lib/modules/"
            );
        }
        Ok(Self::Suite(word.to_owned(), arch))
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(numbers, arch) => {
                let numbers: Vec<_> = numbers.iter().map(u32::to_string).collect();
                write!(f, "{} ({})", numbers.join("."), arch.debian())
            }
            Self::Suite(suite, arch) => write!(f, "{suite} ({})", arch.debian()),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

/// A kernel that can be booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// `6.12` or `6.12-arm64`: what its lines of output begin with, and its column in docs/KERNELS.md.
    pub(crate) name: String,
    /// What it runs on.
    pub(crate) arch: Arch,
    /// `6.12.117+deb12-cloud-amd64`, as `uname -r` says.
    pub(crate) release: String,
    /// The compressed image.
    pub(crate) image: PathBuf,
    /// `lib/modules/RELEASE`.
    pub(crate) modules: PathBuf,
}

/// Finds kernels, and keeps what it downloads.
pub(crate) struct Kernels {
    /// target/vm
    directory: PathBuf,
}

impl Kernels {
    /// Keeps downloads below `directory`.
    pub(crate) fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// The kernel, unpacked.
    pub(crate) fn get(&self, wanted: &Wanted) -> Result<Kernel> {
        match wanted {
            Wanted::Version(numbers, arch) => self.version(numbers, *arch),
            Wanted::Suite(suite, arch) => self.suite(suite, *arch),
            Wanted::Path(path) => self.path(path),
        }
        .with_context(|| format!("kernel {wanted}"))
    }

    /// The newest one of a version: of this machine's own package lists, of those that are
    /// unpacked already, and only then of other suites, whose lists are some 30 MB.
    fn version(&self, numbers: &[u32], arch: Arch) -> Result<Kernel> {
        let system = Apt::system();
        let listed = match arch {
            Arch::X86_64 => newest(releases(&system.package_names()?, arch), numbers),
            // Its packages are listed only where a machine was told to.
            Arch::Aarch64 => None,
        };
        let unpacked = newest(self.unpacked(arch), numbers);
        match (listed, unpacked) {
            (Some(listed), unpacked) if unpacked.as_ref() != Some(&listed) => {
                return self.package(&system, &listed);
            }
            (_, Some(unpacked)) => return Kernel::in_directory(&self.tree(&unpacked)),
            _ => {}
        }
        let own = Apt::with_own_sources(&self.lists("own", arch), arch)?;
        if let Some(release) = newest(releases(&own.package_names()?, arch), numbers) {
            return self.package(&own, &release);
        }
        let all = Apt::with_suites(&self.lists("all", arch), &own, None)?;
        let release = newest(releases(&all.package_names()?, arch), numbers);
        let release =
            release.context("no Debian suite that was looked through has such a kernel")?;
        self.package(&all, &release)
    }

    fn suite(&self, suite: &str, arch: Arch) -> Result<Kernel> {
        let own = Apt::with_own_sources(&self.lists("own", arch), arch)?;
        let apt = Apt::with_suites(&self.lists(suite, arch), &own, Some(suite))?;
        let release = newest(releases(&apt.package_names()?, arch), &[]);
        self.package(
            &apt,
            &release.context("that suite has no kernel for virtual machines")?,
        )
    }

    /// A directory with the programs of a guest that runs none of the host's.
    pub(crate) fn foreign_programs(&self, arch: Arch) -> Result<PathBuf> {
        let name = format!("programs-{}", arch.debian());
        let tree = self.tree(&name);
        if !tree.is_dir() {
            let apt = Apt::with_own_sources(&self.lists("own", arch), arch)?;
            let packages: Vec<_> = FOREIGN_PACKAGES
                .iter()
                .map(|&name| name.to_owned())
                .collect();
            let files = apt.download(&packages, &self.directory.join("packages"))?;
            self.unpack_files(&files, &name)?;
        }
        Ok(tree)
    }

    /// Where package lists are kept.
    fn lists(&self, name: &str, arch: Arch) -> PathBuf {
        let name = match arch {
            Arch::X86_64 => name.to_owned(),
            Arch::Aarch64 => format!("{name}{FOREIGN}"),
        };
        self.directory.join("apt").join(name)
    }

    fn path(&self, path: &Path) -> Result<Kernel> {
        if path.is_dir() {
            return Kernel::in_directory(&path.canonicalize()?);
        }
        let name = path.file_stem().context("a package has a name")?;
        let name = format!("file-{}", name.to_string_lossy());
        // Another file may have had this name.
        let _ = fs::remove_dir_all(self.tree(&name));
        self.unpack(&[path.to_owned()], &name)
    }

    /// Where a kernel is unpacked.
    fn tree(&self, release: &str) -> PathBuf {
        self.directory.join("kernels").join(release)
    }

    /// Releases that are unpacked already.
    fn unpacked(&self, arch: Arch) -> Vec<String> {
        let entries = fs::read_dir(self.directory.join("kernels"));
        let names = entries.into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        names
            .filter(|name| name.ends_with(&flavour(arch)))
            .collect()
    }

    /// The kernel of Debian's packages of a release.
    fn package(&self, apt: &Apt, release: &str) -> Result<Kernel> {
        let tree = self.tree(release);
        if tree.is_dir() {
            return Kernel::in_directory(&tree);
        }
        let downloads = self.directory.join("packages");
        let mut packages = vec![format!("linux-image-{release}")];
        let mut at = 0;
        while let Some(package) = packages.get(at) {
            let depends = apt.dependencies(package)?;
            let new: Vec<_> = parts(&depends)
                .filter(|part| !packages.contains(part))
                .collect();
            packages.extend(new);
            at += 1;
        }
        println!("xtask: downloading {}", packages.join(", "));
        let files = apt.download(&packages, &downloads)?;
        let kernel = self.unpack(&files, release)?;
        for file in files {
            fs::remove_file(file)?;
        }
        Ok(kernel)
    }

    /// The kernel of packages, unpacked to a place of that name.
    fn unpack(&self, packages: &[PathBuf], name: &str) -> Result<Kernel> {
        self.unpack_files(packages, name)?;
        Kernel::in_directory(&self.tree(name))
    }

    /// Unpacks packages to a place of that name: whole or not at all.
    fn unpack_files(&self, packages: &[PathBuf], name: &str) -> Result<()> {
        let tree = self.tree(name);
        let unfinished = self.tree(&format!("{name}.part"));
        let _ = fs::remove_dir_all(&unfinished);
        fs::create_dir_all(&unfinished)?;
        for package in packages {
            let mut unpack = Command::new("dpkg-deb");
            unpack.arg("--extract").arg(package).arg(&unfinished);
            shell::run(&mut unpack)?;
        }
        Ok(fs::rename(&unfinished, &tree)?)
    }
}

impl Kernel {
    /// The kernel of a directory with `lib/modules/RELEASE` and its image.
    pub(crate) fn in_directory(directory: &Path) -> Result<Self> {
        let modules = ["lib/modules", "usr/lib/modules"].map(|place| directory.join(place));
        let modules = modules.into_iter().find(|place| place.is_dir());
        let modules = modules.with_context(|| {
            format!(
                "{} has no lib/modules, as a kernel's package has",
                directory.display()
            )
        })?;
        let releases: Vec<_> = fs::read_dir(&modules)?.collect::<Result<_, _>>()?;
        let [release] = releases.as_slice() else {
            bail!(
                "{} holds {} kernels, not one",
                modules.display(),
                releases.len()
            );
        };
        let modules = release.path();
        let release = release.file_name().into_string();
        let release = release.ok().context("a kernel's release is text")?;
        let image = [
            directory.join("boot").join(format!("vmlinuz-{release}")),
            modules.join("vmlinuz"),
        ];
        let image = image.into_iter().find(|image| image.is_file());
        Ok(Self {
            name: short_name(&release)
                .with_context(|| format!("{release} is no kernel's release"))?,
            arch: if release.contains(FOREIGN) {
                Arch::Aarch64
            } else {
                Arch::X86_64
            },
            image: image.with_context(|| format!("{} has no vmlinuz", directory.display()))?,
            modules,
            release,
        })
    }
}

/// `6.12` of `6.12.117+deb12-cloud-amd64`, `6.12-arm64-16k` of `6.12.117+deb13-arm64-16k`.
fn short_name(release: &str) -> Option<String> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let (major, minor) = (numbers.next()?, numbers.next()?);
    let foreign = release.find(FOREIGN).and_then(|at| release.get(at..));
    let foreign = foreign.unwrap_or_default();
    (!major.is_empty() && !minor.is_empty()).then(|| format!("{major}.{minor}{foreign}"))
}

/// Debian's name of its kernels for virtual machines: they have the devices that QEMU emulates,
/// and boot in seconds.
fn flavour(arch: Arch) -> String {
    format!("-cloud-{}", arch.debian())
}

/// Releases that a list of packages has an image of.
fn releases(packages: &[String], arch: Arch) -> Vec<String> {
    let releases = packages
        .iter()
        .filter_map(|name| name.strip_prefix("linux-image-"));
    let flavour = flavour(arch);
    let releases =
        releases.filter(|release| release.ends_with(&flavour) && numbers(release).len() >= 3);
    releases.map(str::to_owned).collect()
}

/// The newest release that begins with these numbers.
fn newest(releases: Vec<String>, wanted: &[u32]) -> Option<String> {
    let fitting = releases
        .into_iter()
        .filter(|release| numbers(release).starts_with(wanted));
    fitting.max_by_key(|release| numbers(release))
}

/// The numbers in a release, which order it among others.
fn numbers(release: &str) -> Vec<u32> {
    let release = release
        .split_once("-cloud-")
        .map_or(release, |(numbers, _)| numbers);
    if !release.starts_with(|first: char| first.is_ascii_digit()) {
        return Vec::new();
    }
    let numbers = release.split(|c: char| !c.is_ascii_digit());
    numbers.filter_map(|number| number.parse().ok()).collect()
}

/// The packages of a `Depends` field that hold other parts of the same kernel.
fn parts(depends: &str) -> impl Iterator<Item = String> {
    let packages = depends
        .split([',', '|'])
        .filter_map(|part| part.split_whitespace().next());
    let packages = packages.filter(|name| PARTS.iter().any(|part| name.starts_with(part)));
    packages.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A word is a version, a suite or a path, and what is none of them is refused with examples.
    #[test]
    fn words_of_the_command_line_are_told_apart() {
        let wanted = |word: &str| word.parse::<Wanted>();
        assert_eq!(
            wanted("6.1").unwrap(),
            Wanted::Version(vec![6, 1], Arch::X86_64)
        );
        assert_eq!(
            wanted("7.x").unwrap(),
            Wanted::Version(vec![7], Arch::X86_64)
        );
        assert_eq!(
            wanted("6.12.117").unwrap(),
            Wanted::Version(vec![6, 12, 117], Arch::X86_64)
        );
        assert_eq!(
            wanted("trixie-backports").unwrap(),
            Wanted::Suite("trixie-backports".into(), Arch::X86_64)
        );
        assert_eq!(
            wanted("6.12-arm64").unwrap(),
            Wanted::Version(vec![6, 12], Arch::Aarch64)
        );
        assert_eq!(
            wanted("sid-arm64").unwrap(),
            Wanted::Suite("sid".into(), Arch::Aarch64)
        );
        assert_eq!(wanted("./k").unwrap(), Wanted::Path("./k".into()));
        assert_eq!(
            wanted("linux-image.deb").unwrap(),
            Wanted::Path("linux-image.deb".into())
        );
        for word in ["6.1rc", "6..1", "Trixie", "", "--all"] {
            let error = wanted(word).unwrap_err().to_string();
            assert!(
                error.contains("is no kernel") && error.contains("6.1"),
                "{error}"
            );
        }
    }

    /// The newest release is found by its numbers, not by its letters, and signed images only.
    #[test]
    fn the_newest_release_of_a_version_is_found() {
        let packages = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-57-cloud-amd64",
            "linux-image-6.1.0-58-cloud-amd64-unsigned",
            "linux-image-6.1.0-59-amd64",
            "linux-image-6.1.0-0.deb11.60-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12-cloud-amd64",
            "linux-image-cloud-amd64",
        ];
        let releases = releases(&packages.map(str::to_owned), Arch::X86_64);
        let newest = |wanted: &[u32]| newest(releases.clone(), wanted);
        assert_eq!(newest(&[6, 1]).unwrap(), "6.1.0-57-cloud-amd64");
        assert_eq!(newest(&[6]).unwrap(), "6.12.117+deb12-cloud-amd64");
        assert_eq!(newest(&[]).unwrap(), "6.12.117+deb12-cloud-amd64");
        assert_eq!(newest(&[6, 11]), None);
    }

    /// Of what an image depends on, only parts of the kernel are downloaded.
    #[test]
    fn parts_of_a_kernel_are_found_among_dependencies() {
        let depends = "dracut | initramfs-tools (>= 0.120), linux-base-7.3 (= 1), \
                       linux-binary-7.3 (= 1), linux-modules-7.3 (= 1)";
        let parts: Vec<_> = parts(depends).collect();
        assert_eq!(parts, ["linux-binary-7.3", "linux-modules-7.3"]);
    }

    /// The name of a kernel is its version without the patch level, and what it runs on if that is not
    /// the host's architecture.
    #[test]
    fn names_are_major_and_minor() {
        assert_eq!(short_name("6.12.117+deb12-cloud-amd64").unwrap(), "6.12");
        assert_eq!(short_name("6.1.0-57-cloud-amd64").unwrap(), "6.1");
        assert_eq!(
            short_name("6.12.117+deb13-cloud-arm64").unwrap(),
            "6.12-arm64"
        );
        assert_eq!(
            short_name("6.12.117+deb13-arm64-16k").unwrap(),
            "6.12-arm64-16k"
        );
        assert_eq!(short_name("vanilla"), None);
    }
}

//! Which modules a guest gets: those of the network, and what they depend on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::kernel::Kernel;
use crate::shell;

/// Directories of modules that tests may need: protocols, filters, and devices that are no
/// hardware's.
const WANTED: &[&str] = &[
    "kernel/net/",
    "kernel/drivers/net/bonding/",
    "kernel/drivers/net/dummy",
    "kernel/drivers/net/ifb",
    "kernel/drivers/net/ipvlan/",
    "kernel/drivers/net/macvlan",
    "kernel/drivers/net/macvtap",
    "kernel/drivers/net/tap",
    "kernel/drivers/net/team/",
    "kernel/drivers/net/tun",
    "kernel/drivers/net/veth",
    "kernel/drivers/net/virtio_net",
    "kernel/drivers/net/vrf",
    "kernel/drivers/net/vxlan/",
    "kernel/drivers/virtio/",
];
/// Of these: what is never tested, and large.
const UNWANTED: &[&str] = &[
    "kernel/net/9p/",
    "kernel/net/bluetooth/",
    "kernel/net/ceph/",
    "kernel/net/mac80211/",
    "kernel/net/rds/",
    "kernel/net/rxrpc/",
    "kernel/net/sctp/",
    "kernel/net/smc/",
    "kernel/net/sunrpc/",
    "kernel/net/tipc/",
    "kernel/net/wireless/",
];
const ENDINGS: [&str; 3] = [".xz", ".zst", ".gz"];

/// A module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Module {
    /// The file on the host.
    file: PathBuf,
    /// Below lib/modules/RELEASE, as depmod has it.
    path: String,
    /// Paths of what must be loaded before it.
    needs: Vec<String>,
}

impl Module {
    /// Its path without the ending of a compressed file.
    pub(crate) fn plain_path(&self) -> &str {
        plain(&self.path)
    }

    /// Its line of `modules.dep`.
    pub(crate) fn line(&self) -> String {
        let needs = self.needs.iter().map(|path| format!(" {}", plain(path)));
        format!("{}:{}\n", self.plain_path(), needs.collect::<String>())
    }

    /// Its bytes, not compressed: the guest's `modprobe` takes no other.
    pub(crate) fn read(&self) -> Result<Vec<u8>> {
        let program = match self.file.extension().and_then(|ending| ending.to_str()) {
            Some("xz") => "xz",
            Some("zst") => "zstd",
            Some("gz") => "gzip",
            _ => return fs::read(&self.file).with_context(|| self.file.display().to_string()),
        };
        let mut command = Command::new(program);
        command
            .args(["--decompress", "--stdout", "--quiet"])
            .arg(&self.file);
        let output = command
            .output()
            .with_context(|| format!("cannot start {program}"))?;
        if !output.status.success() {
            bail!("{program} cannot read {}", self.file.display());
        }
        Ok(output.stdout)
    }
}

/// The modules of a kernel that tests may need. depmod leaves its tables in `tables`.
pub(crate) fn of_kernel(kernel: &Kernel, tables: &Path) -> Result<Vec<Module>> {
    // The kernel's own directory may be read-only, and has no tables: installing makes them.
    let written = tables_of(kernel, tables);
    fs::create_dir_all(&written)?;
    for entry in fs::read_dir(&kernel.modules)? {
        let from = entry?.path();
        let to = written.join(from.file_name().context("an entry has a name")?);
        symlink(&from, &to).with_context(|| format!("cannot make {}", to.display()))?;
    }
    let mut depmod = Command::new(shell::find_program("depmod").context("no depmod")?);
    depmod.arg("--basedir").arg(tables).arg(&kernel.release);
    shell::run(&mut depmod)?;
    let dependencies = fs::read_to_string(written.join("modules.dep"))?;
    let modules = closure(&dependencies, is_wanted);
    let modules = modules.into_iter().map(|(path, needs)| Module {
        file: kernel.modules.join(&path),
        path,
        needs,
    });
    Ok(modules.collect())
}

/// Where the tables of a kernel are below the directory that depmod was given.
pub(crate) fn tables_of(kernel: &Kernel, tables: &Path) -> PathBuf {
    tables.join("lib/modules").join(&kernel.release)
}

fn is_wanted(path: &str) -> bool {
    let below = |places: &[&str]| places.iter().any(|place| path.starts_with(place));
    below(WANTED) && !below(UNWANTED)
}

/// The modules of a `modules.dep` that are wanted, and those that they need, each with its own needs.
fn closure(dependencies: &str, wanted: impl Fn(&str) -> bool) -> Vec<(String, Vec<String>)> {
    let lines = dependencies.lines().filter_map(|line| line.split_once(':'));
    let all: BTreeMap<&str, Vec<&str>> = lines
        .map(|(path, needs)| (path, needs.split_whitespace().collect()))
        .collect();
    let mut chosen = BTreeSet::new();
    let mut open: Vec<&str> = all.keys().copied().filter(|path| wanted(path)).collect();
    while let Some(path) = open.pop() {
        if chosen.insert(path) {
            open.extend(all.get(path).into_iter().flatten());
        }
    }
    let owned = |path: &&str| (*path).to_owned();
    let needs = |path| all.get(path).into_iter().flatten().map(owned).collect();
    chosen
        .into_iter()
        .map(|path| (path.to_owned(), needs(path)))
        .collect()
}

fn plain(path: &str) -> &str {
    let ending = ENDINGS.iter().find_map(|ending| path.strip_suffix(ending));
    ending.unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "\
kernel/net/bridge/bridge.ko.xz: kernel/net/802/stp.ko.xz kernel/net/llc/llc.ko.xz
kernel/net/802/stp.ko.xz: kernel/net/llc/llc.ko.xz
kernel/net/llc/llc.ko.xz:
kernel/net/sctp/sctp.ko.xz: kernel/lib/libcrc32c.ko.xz
kernel/net/netfilter/nf_conntrack.ko.xz: kernel/lib/libcrc32c.ko.xz
kernel/lib/libcrc32c.ko.xz: kernel/crypto/crc32c.ko.xz
kernel/crypto/crc32c.ko.xz:
kernel/drivers/net/ethernet/intel/e1000.ko.xz:
";

    /// What is wanted comes with all that it needs, and nothing else comes.
    #[test]
    fn modules_come_with_what_they_need() {
        let chosen = closure(DEPENDENCIES, is_wanted);
        let names: Vec<_> = chosen
            .iter()
            .map(|(path, _)| path.rsplit_once('/').unwrap().1)
            .collect();
        let expected = [
            "crc32c",
            "libcrc32c",
            "stp",
            "bridge",
            "llc",
            "nf_conntrack",
        ];
        assert_eq!(names, expected.map(|name| format!("{name}.ko.xz")));
    }

    /// The guest's table has names without the ending of the compressed files.
    #[test]
    fn the_table_of_the_guest_names_plain_files() {
        let (path, needs) = closure(DEPENDENCIES, |path| path.contains("stp"))
            .pop()
            .unwrap();
        let module = Module {
            file: PathBuf::new(),
            path: "kernel/net/802/stp.ko.zst".to_owned(),
            needs: vec!["kernel/net/llc/llc.ko.xz".to_owned()],
        };
        assert_eq!(
            module.line(),
            "kernel/net/802/stp.ko: kernel/net/llc/llc.ko\n"
        );
        assert_eq!(
            (path.as_str(), needs.len()),
            ("kernel/net/llc/llc.ko.xz", 0)
        );
    }
}

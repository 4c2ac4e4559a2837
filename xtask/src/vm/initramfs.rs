//! The file system that a guest starts with: one cpio archive with everything in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufWriter, Cursor, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use cpio::newc;

use super::{
    kernel::Kernel,
    modules::{self, Module},
};
use crate::{arch::Arch, shell};

/// Directories that are links into /usr, as on every system since long.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// What a path of the guest is.
#[derive(Debug)]
enum Entry {
    Directory,
    /// A link to this path.
    Link(String),
    /// A file with these permissions and bytes.
    Bytes(u32, Vec<u8>),
    /// A file of the host.
    File(u32, PathBuf),
}

/// A file system that is put together.
#[derive(Debug, Default)]
pub(crate) struct Initramfs {
    /// By path, without the first slash. The order puts a directory before what is in it.
    entries: BTreeMap<String, Entry>,
    /// Programs and libraries whose own libraries are there.
    linked: BTreeSet<PathBuf>,
}

impl Initramfs {
    /// The directories that every system has.
    pub(crate) fn new() -> Self {
        let mut new = Self::default();
        for name in MERGED {
            new.directory(&format!("/usr/{name}"));
            new.entries
                .insert(name.to_owned(), Entry::Link(format!("usr/{name}")));
        }
        for path in [
            "/dev", "/etc", "/proc", "/root", "/run", "/sys", "/tmp", "/var/tmp",
        ] {
            new.directory(path);
        }
        new
    }

    /// A directory and those above it.
    pub(crate) fn directory(&mut self, path: &str) {
        let path = place(path);
        let ends = path.match_indices('/').map(|(end, _)| end);
        for end in ends.chain([path.len()]).filter(|end| *end > 0) {
            self.entries
                .entry(path[..end].to_owned())
                .or_insert(Entry::Directory);
        }
    }

    /// A text file, executable or not.
    pub(crate) fn text(&mut self, path: &str, executable: bool, text: &str) {
        let mode = if executable { 0o755 } else { 0o644 };
        self.insert(path, Entry::Bytes(mode, text.as_bytes().to_vec()));
    }

    /// A link.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.insert(path, Entry::Link(target.to_owned()));
    }

    /// A file of the host's at another path.
    pub(crate) fn file(&mut self, from: &Path, to: &str) -> Result<()> {
        let meta = fs::metadata(from).with_context(|| format!("cannot read {}", from.display()))?;
        let mode = meta.permissions().mode() & 0o777;
        self.insert(to, Entry::File(mode, from.to_owned()));
        Ok(())
    }

    /// What is at a path of the host, and below it, at the same path.
    pub(crate) fn tree(&mut self, path: &Path) -> Result<()> {
        if !path.is_dir() {
            return self.file(path, &path.to_string_lossy());
        }
        self.directory(&path.to_string_lossy());
        for entry in fs::read_dir(path)? {
            self.tree(&entry?.path())?;
        }
        Ok(())
    }

    /// A program of the host's, from its place to another, and the libraries that it needs.
    pub(crate) fn program(&mut self, from: &Path, to: &str) -> Result<()> {
        let from = from
            .canonicalize()
            .with_context(|| format!("no {}", from.display()))?;
        self.file(&from, to)?;
        if !self.linked.insert(from.clone()) {
            return Ok(());
        }
        for library in libraries(&ldd(&from)?) {
            self.file(&library, &library.to_string_lossy())?;
        }
        Ok(())
    }

    /// A test binary or one that tests start, without what only a debugger reads.
    pub(crate) fn stripped(
        &mut self,
        arch: Arch,
        from: &Path,
        to: &str,
        scratch: &Path,
    ) -> Result<()> {
        let name = from.file_name().context("a program has a name")?;
        let copy = scratch.join(name);
        let mut strip = Command::new(arch.strip());
        strip.arg("-o").arg(&copy).arg(from);
        shell::run(&mut strip)?;
        self.program(&copy, to)
    }

    /// The programs of a guest that runs none of the host's, in their place: the shell, and `ip`, from
    /// a directory with Debian's packages of another architecture, and all libraries.
    pub(crate) fn foreign(&mut self, arch: Arch, packages: &Path) -> Result<()> {
        self.file(&packages.join("bin/busybox"), "/usr/bin/busybox")?;
        self.file(&packages.join("bin/ip"), "/usr/sbin/ip")?;
        let mut libraries = arch.foreign_libraries();
        for place in ["lib", "usr/lib"] {
            let place = packages.join(place).join(arch.multiarch());
            for entry in fs::read_dir(place)? {
                libraries.push(entry?.path());
            }
        }
        for library in libraries.iter().filter(|path| path.is_file()) {
            let name = library.file_name().context("a library has a name")?;
            self.file(library, &format!("/lib/{}", name.to_string_lossy()))?;
        }
        Ok(())
    }

    /// Modules, and the tables by which `modprobe` finds them.
    pub(crate) fn modules(
        &mut self,
        kernel: &Kernel,
        modules: &[Module],
        tables: &Path,
    ) -> Result<()> {
        let base = format!("/lib/modules/{}", kernel.release);
        let mut dependencies = String::new();
        for module in modules {
            let bytes = module.read()?;
            self.insert(
                &format!("{base}/{}", module.plain_path()),
                Entry::Bytes(0o644, bytes),
            );
            dependencies += &module.line();
        }
        self.text(&format!("{base}/modules.dep"), false, &dependencies);
        let tables = modules::tables_of(kernel, tables);
        for name in ["modules.alias", "modules.builtin", "modules.symbols"] {
            self.file(&tables.join(name), &format!("{base}/{name}"))?;
        }
        Ok(())
    }

    /// Writes the archive.
    pub(crate) fn write(&self, to: &Path) -> Result<()> {
        let file = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
        let mut out = BufWriter::new(file);
        for (path, entry) in &self.entries {
            out = match entry {
                Entry::Directory => append(out, path, DIRECTORY | 0o755, &[]),
                Entry::Link(target) => append(out, path, LINK | 0o777, target.as_bytes()),
                Entry::Bytes(mode, bytes) => append(out, path, REGULAR | mode, bytes),
                Entry::File(mode, from) => {
                    fs::read(from).and_then(|bytes| append(out, path, REGULAR | mode, &bytes))
                }
            }
            .with_context(|| format!("/{path} of the guest"))?;
        }
        let mut out = newc::trailer(out)?;
        Ok(out.flush()?)
    }

    fn insert(&mut self, path: &str, entry: Entry) {
        let path = place(path);
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above);
        }
        self.entries.insert(path, entry);
    }
}

fn append<W: io::Write>(out: W, path: &str, mode: u32, bytes: &[u8]) -> io::Result<W> {
    let size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut entry = newc::Builder::new(path).mode(mode).write(out, size);
    io::copy(&mut Cursor::new(bytes), &mut entry)?;
    entry.finish()
}

/// A path as the archive has it: without the first slash, and below usr where that is linked.
fn place(path: &str) -> String {
    let path = path.trim_matches('/');
    let first = path.split('/').next().unwrap_or_default();
    if MERGED.contains(&first) && path.len() > first.len() {
        format!("usr/{path}")
    } else {
        path.to_owned()
    }
}

/// What `ldd` says of a program; nothing of one that is linked statically.
fn ldd(program: &Path) -> Result<String> {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .context("cannot start ldd")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The libraries in the output of `ldd`.
fn libraries(output: &str) -> Vec<PathBuf> {
    let paths = output.lines().filter_map(|line| {
        let (_, path) = line.split_once("=> ").unwrap_or(("", line.trim()));
        let (path, _) = path.split_once(" (")?;
        path.starts_with('/').then(|| PathBuf::from(path))
    });
    paths.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Libraries and the loader are found; the kernel's own is no file.
    #[test]
    fn libraries_are_read_from_ldd() {
        let output = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                      \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f00)\n\
                      \tlibgone.so => not found\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f01)\n";
        assert_eq!(
            libraries(output),
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
            .map(PathBuf::from)
        );
        assert!(libraries("\tstatically linked\n").is_empty());
    }

    /// A file's directories come before it, and the old places are links into /usr.
    #[test]
    fn directories_come_before_what_is_in_them() {
        let mut guest = Initramfs::new();
        guest.text("/lib/modules/6.1/modules.dep", false, "");
        let paths: Vec<_> = guest.entries.keys().map(String::as_str).collect();
        let at = |path| paths.iter().position(|found| *found == path).unwrap();
        assert!(at("usr") < at("usr/lib/modules"));
        assert!(at("usr/lib/modules") < at("usr/lib/modules/6.1/modules.dep"));
        assert!(matches!(&guest.entries["lib"], Entry::Link(target) if target == "usr/lib"));
    }

    /// What is written can be read: names, permissions, links and contents.
    #[test]
    fn an_archive_holds_what_was_put_in() {
        let file = std::env::temp_dir().join(format!("xtask-initramfs-{}", std::process::id()));
        let mut guest = Initramfs::new();
        guest.text("/init", true, "#!/bin/sh\n");
        guest.link("/bin/sh", "busybox");
        guest.write(&file).unwrap();
        let mut bytes = Cursor::new(fs::read(&file).unwrap());
        fs::remove_file(&file).unwrap();
        let mut found = BTreeMap::new();
        loop {
            let mut reader = newc::Reader::new(bytes).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut content = String::new();
            io::Read::read_to_string(&mut reader, &mut content).unwrap();
            let entry = reader.entry();
            found.insert(entry.name().to_owned(), (entry.mode(), content));
            bytes = reader.finish().unwrap();
        }
        assert_eq!(found["init"], (0o100_755, "#!/bin/sh\n".to_owned()));
        assert_eq!(found["usr/bin/sh"], (0o120_777, "busybox".to_owned()));
        assert_eq!(found["dev"].0, 0o040_755);
    }
}

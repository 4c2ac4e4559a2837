//! The architectures that xvip is built for, and what the tools of each are called.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::shell::Workspace;

/// What programs are built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Arch {
    /// That of the machines that xvip is built on.
    X86_64,
    /// 64-bit ARM.
    Aarch64,
}

impl Arch {
    /// Rust's and Debian's name of 64-bit ARM with the GNU C library.
    pub(crate) const AARCH64_TARGET: &str = "aarch64-unknown-linux-gnu";

    /// The variables of cargo that belong to this target alone: a build for another one does not
    /// see them. The emulator finds the C library where Debian's cross packages put it.
    const AARCH64_ENVIRONMENT: [(&str, &str); 2] = [
        (
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER",
            "aarch64-linux-gnu-gcc",
        ),
        (
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER",
            "qemu-aarch64-static -L /usr/aarch64-linux-gnu",
        ),
    ];

    /// Where Debian's cross packages put the libraries.
    const AARCH64_LIBRARIES: &str = "/usr/aarch64-linux-gnu/lib";

    /// Debian's name.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// Debian's name of the directories for its libraries.
    pub(crate) fn multiarch(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-linux-gnu",
            Self::Aarch64 => "aarch64-linux-gnu",
        }
    }

    /// A cargo command that builds for it. Another architecture than the host's has a directory of
    /// its own below cargo's; build scripts and macros are those of the host's build.
    pub(crate) fn cargo(self, workspace: &Workspace, subcommand: &str) -> Command {
        let mut command = workspace.cargo(subcommand);
        if self == Self::Aarch64 {
            command
                .args(["--target", Self::AARCH64_TARGET])
                .envs(Self::AARCH64_ENVIRONMENT);
        }
        command
    }

    /// A binary that cargo built for it, without optimisation.
    pub(crate) fn binary(self, workspace: &Workspace, name: &str) -> PathBuf {
        match self {
            Self::X86_64 => workspace.binary(name, false),
            Self::Aarch64 => (workspace.target.join(Self::AARCH64_TARGET))
                .join("debug")
                .join(name),
        }
    }

    /// The program that takes out what only debuggers read.
    pub(crate) fn strip(self) -> &'static str {
        match self {
            Self::X86_64 => "strip",
            Self::Aarch64 => "aarch64-linux-gnu-strip",
        }
    }

    /// The libraries that Rust's programs need, where `ldd` cannot tell.
    pub(crate) fn foreign_libraries(self) -> Vec<PathBuf> {
        let names: &[&str] = match self {
            Self::X86_64 => &[],
            Self::Aarch64 => &[
                "ld-linux-aarch64.so.1",
                "libc.so.6",
                "libgcc_s.so.1",
                "libm.so.6",
            ],
        };
        let libraries = Path::new(Self::AARCH64_LIBRARIES);
        names.iter().map(|name| libraries.join(name)).collect()
    }
}

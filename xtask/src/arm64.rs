//! `cargo xtask test --only arm64`: everything is built for 64-bit ARM, and what needs no kernel of
//! that kind runs under user emulation (qemu).

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

use crate::{arch::Arch, setup, shell::Workspace, test::Session};

/// Everything but the programs in the kernel.
const PACKAGES: &[&str] = &["--workspace", "--exclude", "lb-ebpf"];

/// Unit tests of what the emulator does not pass on to the kernel, or not as it is.
const NOT_EMULATED: &[(&str, &str)] = &[
    (
        "io::command::tests::missing_program_is_an_error",
        "the emulator's vfork() shares no memory: a program that cannot be started is one that ended",
    ),
    (
        "io::ethtool::tests::interfaces_are_asked_by_name",
        "the emulator does not know SIOCETHTOOL",
    ),
    (
        "io::held_sockets::tests::connections_of_other_processes_end",
        "the emulator opens no NETLINK_SOCK_DIAG",
    ),
    (
        "io::netlink::sock_diag::tests::listeners_are_listed",
        "the emulator opens no NETLINK_SOCK_DIAG",
    ),
];

/// The binary starts with an ELF header, and the loader has the object aligned to this many bytes.
const ALIGNMENT: usize = 8;

/// Builds for aarch64, and runs the unit tests and the comparison of the map ABI with the object's
/// BTF. Tests that load programs need a kernel and are not among these.
pub(crate) fn test(session: &mut Session<'_>, filter: &[String]) -> Result<()> {
    let workspace = session.workspace();
    setup::arm64_tools(workspace)?;
    let mut build = Arch::Aarch64.cargo(workspace, "build");
    build.args(PACKAGES).arg("--all-targets");
    if !session.step("build for aarch64", &mut build) {
        return Ok(());
    }
    if let Err(error) = holds_the_object(workspace) {
        session.fail(format!("the object in the binary for aarch64: {error:#}"));
    }

    // The same packages as above, so that these are the same builds; they have no other libraries.
    let tests = |which: &[&str]| {
        let mut command = Arch::Aarch64.cargo(workspace, "test");
        command.args(PACKAGES).arg("--no-fail-fast").args(which);
        command
    };
    let mut unit = tests(&["--lib", "--"]);
    for (name, why) in NOT_EMULATED {
        session.skip(&format!("{name}: {why}"));
        unit.args(["--skip", name]);
    }
    session.count(unit.args(filter))?;
    session.count(&mut tests(&["--test", "bpf", "--", "abi::"]))
}

/// Whether the binary for aarch64 holds the object byte for byte: it is built once, for the BPF
/// target, and every architecture ships the same programs.
fn holds_the_object(workspace: &Workspace) -> Result<()> {
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let object = read(&workspace.bpf_object())?;
    let binary = read(&Arch::Aarch64.binary(workspace, "xvip"))?;
    ensure!(!object.is_empty(), "the object is empty");
    let held = (0..binary.len()).step_by(ALIGNMENT).any(|at| {
        binary
            .get(at..)
            .is_some_and(|rest| rest.starts_with(&object))
    });
    ensure!(held, "it is not the one that the host's build embeds");
    println!(
        "xtask: the binary for aarch64 embeds the object of {} bytes as it is",
        object.len()
    );
    Ok(())
}

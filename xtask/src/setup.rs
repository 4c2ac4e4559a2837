//! What the build and the lab need beyond a Rust toolchain: says what it installs and why, and
//! costs a few milliseconds when everything is there.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    arch::Arch,
    shell::{self, Workspace},
};

const BPF_LINKER: &str = "0.10.4";
const CARGO_DENY: &str = "0.20.2";

/// Programs that the lab and the namespace tests call, and the Debian package of each.
const SYSTEM_TOOLS: &[(&str, &str, &str)] = &[
    ("ip", "iproute2", "network namespaces, bridge and links"),
    ("ethtool", "ethtool", "checksum offload of the links"),
    ("nsenter", "util-linux", "processes inside a namespace"),
    ("setpriv", "util-linux", "children that end with the lab"),
    ("bpftool", "bpftool", "inspection of the maps"),
    ("tcpdump", "tcpdump", "what a scenario's wire carries"),
    ("curl", "curl", "requests by hand in the lab"),
];

/// What some tests compare xvip with: they skip where it is missing.
const TEST_TOOLS: &[(&str, &str, &str)] = &[
    (
        "keepalived",
        "keepalived",
        "VRRP tests against another speaker",
    ),
    (
        "haproxy",
        "haproxy",
        "checks and imported files against their origin",
    ),
    ("nginx", "nginx", "checks of another server"),
    ("strace", "strace", "a pause at the worst moment"),
    ("tshark", "tshark", "another reader of what xvip sends"),
];

/// What boots kernels in guests, and what those are made with.
const VM_TOOLS: &[(&str, &str, &str)] = &[
    (
        "qemu-system-x86_64",
        "qemu-system-x86",
        "emulates a machine for each kernel",
    ),
    (
        "busybox",
        "busybox-static",
        "the shell and small programs of a guest",
    ),
    ("depmod", "kmod", "which modules of a kernel need which"),
    ("xz", "xz-utils", "unpacks modules"),
    ("zstd", "zstd", "unpacks modules"),
    (
        "strip",
        "binutils",
        "binaries for guests without debug information",
    ),
    ("nft", "nftables", "rule sets that a guest gets"),
    ("iptables", "iptables", "rule sets that a guest gets"),
    ("ipvsadm", "ipvsadm", "IPVS in a guest"),
];

/// What builds and runs programs for 64-bit ARM on another machine: programs and files, and the
/// Debian package of each.
const ARM64_TOOLS: &[(&str, &str, &str)] = &[
    (
        "aarch64-linux-gnu-gcc",
        "gcc-aarch64-linux-gnu",
        "links for aarch64, and compiles what is in C and assembler",
    ),
    (
        "/usr/aarch64-linux-gnu/lib/libc.so",
        "libc6-dev-arm64-cross",
        "the C library to link with",
    ),
    (
        "qemu-aarch64-static",
        "qemu-user-static",
        "runs aarch64 programs",
    ),
];

/// What boots kernels of 64-bit ARM beyond that.
const ARM64_VM_TOOLS: &[(&str, &str, &str)] = &[(
    "qemu-system-aarch64",
    "qemu-system-arm",
    "emulates a machine for each kernel",
)];

/// What compiling needs: the sources of `core` and the BPF linker.
pub(crate) fn build_tools(workspace: &Workspace) -> Result<()> {
    rust_src(workspace)?;
    cargo_tool(
        workspace,
        "bpf-linker",
        BPF_LINKER,
        "links the eBPF programs; about a minute, once",
    )
}

/// cargo-deny, for `cargo xtask test`.
pub(crate) fn cargo_deny(workspace: &Workspace) -> Result<()> {
    cargo_tool(
        workspace,
        "cargo-deny",
        CARGO_DENY,
        "checks licenses and sources of dependencies; about two minutes, once",
    )
}

/// What `cargo xtask test --only arm64` needs: Rust's standard library for it, a cross compiler and
/// an emulator.
pub(crate) fn arm64_tools(workspace: &Workspace) -> Result<()> {
    let target = Arch::AARCH64_TARGET;
    let libraries = format!("lib/rustlib/{target}/lib");
    if !sysroot(workspace)?.join(libraries).is_dir() {
        println!("xtask: installing Rust's standard library for {target}");
        let mut rustup = Command::new("rustup");
        rustup
            .args(["target", "add", target])
            .current_dir(&workspace.root);
        shell::run(&mut rustup)
            .with_context(|| format!("nothing can be built for {target} without it"))?;
    }
    install_missing(ARM64_TOOLS)
}

/// The directory of the toolchain that the repository names.
fn sysroot(workspace: &Workspace) -> Result<PathBuf> {
    let output = Command::new("rustc")
        .args(["--print", "sysroot"])
        .current_dir(&workspace.root)
        .output()
        .context("cannot start rustc: install Rust with rustup (https://rustup.rs)")?;
    let sysroot = String::from_utf8(output.stdout).context("rustc's sysroot is not UTF-8")?;
    Ok(sysroot.trim().into())
}

/// The BPF target has no precompiled `core`: it is built from source.
fn rust_src(workspace: &Workspace) -> Result<()> {
    let manifest = "lib/rustlib/src/rust/library/core/Cargo.toml";
    if sysroot(workspace)?.join(manifest).is_file() {
        return Ok(());
    }
    println!("xtask: installing the rust-src component: `core` is compiled for the BPF target");
    let mut rustup = Command::new("rustup");
    rustup
        .args(["component", "add", "rust-src"])
        .current_dir(&workspace.root);
    shell::run(&mut rustup).context("rust-src is needed to build the eBPF programs")
}

/// Installs a tool of an exact version below target/tools, where it bothers nobody else.
fn cargo_tool(workspace: &Workspace, name: &str, version: &str, why: &str) -> Result<()> {
    let installed = Command::new(workspace.tool(name))
        .arg("--version")
        .stderr(Stdio::null())
        .output();
    if installed.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains(version)) {
        return Ok(());
    }
    let tools = workspace.tools();
    println!(
        "xtask: installing {name} {version} into {}: it {why}",
        tools.display()
    );
    let mut install = workspace.cargo("install");
    // To optimise them takes twice as long as all that they do here.
    install
        .args(["--debug", "--locked", "--quiet", "--force", "--root"])
        .arg(&tools)
        .arg(format!("{name}@{version}"));
    shell::run(&mut install)
}

/// What the lab and the namespace tests call. Mounting bpffs and cgroup2 is left to them: they
/// need it at every boot, not once.
pub(crate) fn system_tools() -> Result<()> {
    install_missing(SYSTEM_TOOLS)
}

/// The same and what the tests need beyond it; the latter only where it can be had.
pub(crate) fn test_tools() -> Result<()> {
    system_tools()?;
    if let Err(error) = install_missing(TEST_TOOLS) {
        println!("xtask: going on without: {error:#}");
    }
    Ok(())
}

/// What guests of an architecture are made with and run by.
pub(crate) fn vm_tools(workspace: &Workspace, arch: Arch) -> Result<()> {
    system_tools()?;
    install_missing(VM_TOOLS)?;
    if arch == Arch::Aarch64 {
        arm64_tools(workspace)?;
        install_missing(ARM64_VM_TOOLS)?;
    }
    Ok(())
}

fn install_missing(tools: &[(&str, &str, &str)]) -> Result<()> {
    let missing: Vec<_> = tools
        .iter()
        .filter(|(program, ..)| shell::find_program(program).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    for (program, package, why) in &missing {
        println!("xtask: {program} is missing (package {package}): {why}");
    }
    let mut packages: Vec<&str> = missing.iter().map(|(_, package, _)| *package).collect();
    packages.dedup();
    if shell::find_program("apt-get").is_none() {
        bail!(
            "there is no apt-get here: install {} by this system's means",
            packages.join(", ")
        );
    }
    println!("xtask: installing {}", packages.join(", "));
    // Without fresh package lists (a new container) the first attempt fails: then update.
    if apt_get(&["install"], &packages).is_err() {
        apt_get(&["update"], &[])?;
        apt_get(&["install"], &packages)?;
    }
    Ok(())
}

fn apt_get(verb: &[&str], packages: &[&str]) -> Result<()> {
    let mut command = shell::as_root("env", "apt-get")?;
    command
        .args([
            "DEBIAN_FRONTEND=noninteractive",
            // Tests start what they need: no service is to begin because its program is there.
            "SYSTEMD_OFFLINE=1",
            "apt-get",
            "--quiet=2",
            "--yes",
        ])
        .args(verb)
        .args(packages);
    if verb == ["install"] {
        command.arg("--no-install-recommends");
    }
    shell::run(&mut command)
}

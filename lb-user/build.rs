//! Tells the loader where the BPF object is that it embeds: `XVIP_BPF_OBJECT`, or
//! `target/bpf/xvip-bpf.o` in the workspace, where `cargo xtask build` leaves it.

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
};

fn main() -> ExitCode {
    println!("cargo::rerun-if-env-changed=XVIP_BPF_OBJECT");
    let object = object();
    println!("cargo::rerun-if-changed={}", object.display());
    if !object.is_file() {
        let path = object.display();
        println!("cargo::error=there is no BPF object at {path}: run `cargo xtask build`");
        return ExitCode::FAILURE;
    }
    println!("cargo::rustc-env=XVIP_BPF_OBJECT={}", object.display());
    ExitCode::SUCCESS
}

fn object() -> PathBuf {
    if let Some(object) = env::var_os("XVIP_BPF_OBJECT") {
        return object.into();
    }
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = package.parent().unwrap_or(package);
    workspace.join("target/bpf/xvip-bpf.o")
}

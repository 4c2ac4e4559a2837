//! The lab, as `cargo xtask run` starts it.

use std::{path::Path, process::Command};

use lb_tests::{
    netns::unique,
    process::{TempDir, output, workspace_binary},
    skip_unless_root,
};

/// A lab comes to work by itself: one owner per VIP, every backend up, requests answered by all
/// three masters; and leaves no namespace behind.
#[test]
fn the_lab_works_and_cleans_up() {
    skip_unless_root!();
    let dir = TempDir::new(&unique("lab")).unwrap();
    let mut lab = Command::new(workspace_binary("xvip-lab").unwrap());
    lab.arg("--dir").arg(dir.path()).args(["run", "--once"]);
    let shown = output(&mut lab).unwrap();
    println!("{shown}");
    assert!(shown.contains("10.77.0.100 fd77::100"), "{shown}");
    let left = std::fs::read_dir("/run/netns").unwrap().flatten();
    for name in left.filter_map(|entry| entry.file_name().into_string().ok()) {
        let maker = name
            .strip_prefix("xv")
            .and_then(|rest| rest.split_once('-'));
        if let Some((pid, _)) = maker {
            assert!(Path::new("/proc").join(pid).exists(), "{name} is left");
        }
    }
}

//! A kernel that refuses a program: the operator gets a sentence, and what runs goes on as it was. The
//! object of these tests has one instruction that no verifier takes.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _};

use anyhow::{Context, Result};
use aya::maps::{Array, Map, MapData, MapInfo};
use lb_common::abi::NodeConfig;
use lb_tests::{
    instance::{Instance, plan, veth},
    netns::NetNs,
    skip_unless_root,
};
use lb_user::{
    core::attach::Mode,
    io::bpf::{BpfError, DataPlane, Loading, Pins, object},
};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

/// `r0 = *(u64 *)(r0 + 0)`, where nothing is known of r0.
const UNREADABLE: [u8; 8] = [0x79, 0, 0, 0, 0, 0, 0, 0];

/// The shipped object with that as the first instruction of `program`.
fn broken(program: &str) -> Result<&'static [u8]> {
    let file = object::File::parse(object())?;
    let mut symbols = file.symbols();
    let symbol = symbols
        .find(|symbol| symbol.name() == Ok(program))
        .context("no such program")?;
    let section = symbol.section_index().context("it is in no section")?;
    let (start, _) = file
        .section_by_index(section)?
        .file_range()
        .context("an empty section")?;
    let at = usize::try_from(start + symbol.address())?;
    let mut bytes = object().to_vec();
    bytes[at..at + UNREADABLE.len()].copy_from_slice(&UNREADABLE);
    Ok(bytes.leak())
}

/// What the kernel says to this object, as a sentence.
fn refusal(loading: &Loading, namespace: &NetNs) -> String {
    let plan = plan(namespace, Mode::Tc).unwrap();
    let result = namespace.enter(|| Ok(DataPlane::open(loading, None, &[plan])));
    match result.unwrap() {
        Err(error @ BpfError::Refused(_)) => error.to_string(),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("the object was taken"),
    }
}

/// Ids of the pinned maps, and of the programs that are attached.
fn in_force(pins: &Pins) -> (BTreeMap<String, u32>, Vec<String>) {
    let (mut maps, mut links) = (BTreeMap::new(), Vec::new());
    for entry in fs::read_dir(pins.directory()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_file() {
            maps.insert(name, MapInfo::from_pin(&path).unwrap().id());
        } else {
            assert_eq!(name, "links", "left over");
        }
    }
    for entry in fs::read_dir(pins.directory().join("links")).unwrap() {
        let pin = entry.unwrap().path();
        let mut command = std::process::Command::new("bpftool");
        command.args(["link", "show", "pinned"]).arg(pin);
        links.push(lb_tests::process::output(&mut command).unwrap());
    }
    links.sort();
    (maps, links)
}

/// The first start on such a kernel: one sentence, the whole log in a file, and nothing left in the kernel.
#[test]
fn a_refused_program_is_a_sentence() {
    skip_unless_root!();
    let (namespace, instance) = (veth().unwrap(), Instance::new(true).unwrap());
    for program in ["tc_egress", "tc_ingress", "socket_lookup"] {
        let loading = Loading {
            object: broken(program).unwrap(),
            ..instance.loading()
        };
        let said = refusal(&loading, &namespace);
        println!("{said}");
        let file = instance.paths().verifier_log(program);
        assert!(!said.contains('\n'), "{said}");
        for words in [
            &format!("refuses the program {program}: R0 !read_ok"),
            "docs/KERNELS.md",
            file.to_str().unwrap(),
        ] {
            assert!(said.contains(words), "{words}: {said}");
        }
        assert!(!said.contains("go on forwarding"), "{said}");
        let log = fs::read_to_string(&file).unwrap();
        assert!(
            log.contains("R0 !read_ok") && log.lines().count() > 2,
            "{log}"
        );
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!instance.pins().directory().exists());
    }
}

/// An earlier run's programs and maps stay as they are, also where the new version has another layout of
/// maps; and the earlier version can adopt them again.
#[test]
fn what_runs_goes_on_when_a_new_object_is_refused() {
    skip_unless_root!();
    let (namespace, instance) = (veth().unwrap(), Instance::new(true).unwrap());
    drop(instance.run(&namespace, Mode::Tc).unwrap());
    let pins = instance.pins();
    let before = in_force(&pins);
    assert!(before.0.len() > 30 && before.1.len() == 3, "{before:?}");
    let loading = Loading {
        object: broken("tc_ingress").unwrap(),
        ..instance.loading()
    };
    let said = refusal(&loading, &namespace);
    assert!(
        said.ends_with("are left as they are and go on forwarding"),
        "{said}"
    );
    assert_eq!(in_force(&pins), before);

    // Maps that this version could not adopt.
    set_abi_version(&pins, 9_999);
    refusal(&loading, &namespace);
    assert_eq!(in_force(&pins), before);

    // An object that is taken replaces them: new maps, the same links.
    drop(instance.run(&namespace, Mode::Tc).unwrap());
    let after = in_force(&pins);
    assert_eq!(
        before.0.keys().collect::<Vec<_>>(),
        after.0.keys().collect::<Vec<_>>()
    );
    assert!(before.0.iter().all(|(name, id)| after.0[name] != *id));
    assert_ne!(before.1, after.1);
}

/// Has the pinned maps say that they are of another version of the ABI.
fn set_abi_version(pins: &Pins, version: u32) {
    /// Where `NodeConfig` has it: behind two numbers of 64 bits.
    const AT: usize = 16;
    let data = MapData::from_pin(pins.map("node")).unwrap();
    let mut node: Array<_, [u8; size_of::<NodeConfig>()]> = Map::Array(data).try_into().unwrap();
    let mut bytes = node.get(&0, 0).unwrap();
    bytes[AT..AT + 4].copy_from_slice(&version.to_ne_bytes());
    node.set(0, bytes, 0).unwrap();
}

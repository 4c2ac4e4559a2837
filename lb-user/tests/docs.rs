//! The documents say what the code does where a machine can compare: tables, examples, links.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use lb_common::{
    abi::{
        ABI_VERSION,
        layout::{MAPS, MapKind},
    },
    reason::{Reason, Verdict},
};
use lb_user::{
    config::{self, HostFacts},
    core::kernel::Feature,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(document: &str) -> String {
    fs::read_to_string(root().join(document)).unwrap()
}

/// Every document, as a path from the root.
fn documents() -> Vec<String> {
    let mut found = vec!["README.md".to_owned(), "CHANGELOG.md".to_owned()];
    for directory in ["docs", "docs/adr"] {
        for entry in fs::read_dir(root().join(directory)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let name = path.file_name().unwrap().to_str().unwrap();
                found.push(format!("{directory}/{name}"));
            }
        }
    }
    found
}

/// The rows of the tables of a document, without spaces around their cells.
fn rows(document: &str) -> Vec<Vec<String>> {
    read(document)
        .lines()
        .filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'))
        .map(|row| row.split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

/// The blocks of a document that are fenced with this word.
fn blocks(document: &str, word: &str) -> Vec<String> {
    read(document)
        .split(&format!("\n```{word}\n"))
        .skip(1)
        .map(|rest| rest.split("\n```").next().unwrap().to_owned())
        .collect()
}

/// The table of reasons has every reason in its order, with its number, label and verdict.
#[test]
fn the_reasons_are_documented() {
    let wanted: Vec<_> = Reason::ALL
        .iter()
        .map(|reason| {
            let verdict = match reason.verdict() {
                Verdict::Pass => "pass",
                Verdict::Drop => "drop",
                Verdict::Tx => "tx",
                Verdict::Redirect => "redirect",
            };
            let label = format!("`{}`", reason.label());
            vec![reason.index().to_string(), label, verdict.to_owned()]
        })
        .collect();
    let documented: Vec<_> = rows("docs/MAP-ABI.md")
        .into_iter()
        .filter(|row| row.len() == 4 && row[0].parse::<u32>().is_ok())
        .collect();
    assert!(documented.iter().all(|row| !row[3].is_empty()));
    let documented: Vec<_> = documented.iter().map(|row| row[..3].to_vec()).collect();
    assert_eq!(documented, wanted);
}

/// The table of maps has every map in its order, with type, key, value and capacity; and each is
/// explained.
#[test]
fn the_maps_are_documented() {
    let wanted: Vec<_> = MAPS
        .iter()
        .map(|map| {
            let kind = match map.kind {
                MapKind::Hash => "hash",
                MapKind::Array => "array",
                MapKind::PerCpuArray => "percpu_array",
                MapKind::LruHash => "lru_hash",
                MapKind::LpmTrie => "lpm_trie",
                MapKind::SockMap => "sockmap",
                MapKind::RingBuf => "ringbuf",
            };
            vec![
                format!("`{}`", map.name),
                kind.to_owned(),
                format!("`{}` {}", map.key.name, map.key.size),
                format!("`{}` {}", map.value.name, map.value.size),
                map.max_entries.to_string(),
            ]
        })
        .collect();
    let table = rows("docs/MAP-ABI.md");
    let documented: Vec<_> = table
        .iter()
        .filter(|row| row.len() == 5 && row[0].starts_with('`'))
        .cloned()
        .collect();
    assert_eq!(documented, wanted);
    for map in MAPS {
        let name = format!("`{}`", map.name);
        let explained = table
            .iter()
            .any(|row| row.len() == 4 && row[0].contains(&name) && !row[3].is_empty());
        assert!(explained, "{name}");
    }
    let version = format!("`ABI_VERSION` is {ABI_VERSION}.");
    assert!(read("docs/MAP-ABI.md").contains(&version), "{version}");
}

/// Every configuration in the documents is valid.
#[test]
fn configurations_in_documents_are_valid() {
    let facts = HostFacts {
        hostname: "master01".to_owned(),
    };
    let mut found = 0;
    for document in documents() {
        for text in blocks(&document, "toml") {
            let result = config::parse(&text, &document, &facts, &|_| Ok(Vec::new()));
            assert!(result.is_ok(), "{document}: {:?}", result.err());
            found += 1;
        }
    }
    assert!(found >= 2, "README.md and docs/CONFIG.md have one each");
}

/// The table of the kernel's features has every one, in its order, with the version that it came with.
#[test]
fn the_features_of_kernels_are_documented() {
    let names: Vec<_> = Feature::ALL
        .map(|feature| format!("`{}`", feature.name()))
        .to_vec();
    let rows: Vec<_> = rows("docs/KERNELS.md")
        .into_iter()
        .filter(|row| names.contains(&row[0]))
        .collect();
    let documented: Vec<_> = rows.iter().map(|row| row[0].clone()).collect();
    assert_eq!(documented, names);
    for (row, feature) in rows.iter().zip(Feature::ALL) {
        let since = feature.since().map(|version| version.to_string());
        let version = row[1].split(',').next().unwrap();
        let is_version = version.starts_with(|first: char| first.is_ascii_digit());
        let documented = is_version.then(|| version.to_owned());
        assert_eq!(documented, since, "{row:?}");
    }
}

/// Every relative link leads to a file, and every file that a document names by its path from the
/// root is there.
#[test]
fn documents_refer_to_files_that_exist() {
    for document in documents() {
        let text = read(&document);
        let directory = root().join(&document);
        let directory = directory.parent().unwrap();
        for rest in text.split("](").skip(1) {
            let target = rest.split(')').next().unwrap();
            let file = target.split('#').next().unwrap();
            if !target.starts_with("http") && !file.is_empty() {
                assert!(directory.join(file).exists(), "{document}: {target}");
            }
        }
        for word in text.split('`').skip(1).step_by(2) {
            let is_source = ["lb-common/", "lb-ebpf/", "lb-user/", "tests/src/"]
                .iter()
                .any(|prefix| word.starts_with(prefix));
            if is_source {
                assert!(root().join(word).exists(), "{document}: {word}");
            }
        }
    }
}

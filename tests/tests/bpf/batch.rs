//! Reading maps in pieces: every entry once, also those of the last piece, and fast.

use std::{collections::BTreeSet, time::Instant};

use aya::maps::HashMap;
use lb_common::{
    abi::{Flow, FlowKey, MAX_FLOWS},
    conntrack::FlowState,
};
use lb_tests::{guest, program::DataPlane};
use lb_user::io::bpf::batch::{BatchError, lookup_batch};

type Key = FlowKey<[u8; 4]>;

fn key(number: u32) -> Key {
    FlowKey::new(number.to_be_bytes(), 40_000, [10, 0, 2, 100], 6443, 6)
}

/// Entries that are read one by one, for comparison.
const SAMPLE: usize = 20_000;

/// All entries come, each once, whether they fill many pieces, one, or none. A full table of flows
/// takes some ten milliseconds; system calls for each entry take ten times as long.
#[test]
fn every_entry_is_read_once() {
    // Each entry that is made is a system call, of which an emulated machine does few.
    let capacity = if guest::is_one() { 32_768 } else { MAX_FLOWS };
    let mut plane = DataPlane::load_sized(&[], &[("flows4", capacity)]).unwrap();
    for count in [0, 1, 5_000, capacity] {
        let mut map: HashMap<_, Key, Flow> = plane.hash("flows4").unwrap();
        for number in 0..count {
            let flow = Flow::new(number, 0, 0, FlowState::Established, 1);
            map.insert(key(number), flow, 0).unwrap();
        }
        let started = Instant::now();
        let pieces = lookup_batch::<Key, Flow>(plane.hash_data("flows4").unwrap()).unwrap();
        let pieces: Result<Vec<_>, _> = pieces.collect();
        let time = started.elapsed();
        let map: HashMap<_, Key, Flow> = plane.hash("flows4").unwrap();
        let started = Instant::now();
        let one_by_one = map.iter().take(SAMPLE).count();
        let time_one_by_one = started.elapsed();
        let mut read = BTreeSet::new();
        let mut entries = 0;
        for (key, flow) in pieces.unwrap().into_iter().flatten() {
            assert_eq!(u32::from_be_bytes(key.src()), flow.backend());
            entries += 1;
            read.insert(flow.backend());
        }
        println!("{entries} entries of {count} in {time:?}; {one_by_one} in {time_one_by_one:?}");
        assert_eq!(entries, read.len(), "some came twice");
        // A full LRU map evicts before it is full.
        if count < capacity {
            assert_eq!(entries, count as usize);
        } else {
            assert!(entries > capacity as usize * 9 / 10);
            // Both are slow on a busy machine.
            let all_one_by_one = time_one_by_one * (entries / SAMPLE) as u32;
            assert!(2 * time < all_one_by_one, "{time:?}, {all_one_by_one:?}");
        }
    }
}

/// A map with other sizes is refused instead of overwriting memory.
#[test]
fn other_sizes_are_refused() {
    let plane = DataPlane::load(&[]).unwrap();
    let result = lookup_batch::<u32, Flow>(plane.hash_data("flows4").unwrap());
    assert!(matches!(
        result,
        Err(BatchError::Size {
            found: (16, 24),
            ..
        })
    ));
}

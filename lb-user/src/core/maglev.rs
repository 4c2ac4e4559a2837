//! Maglev consistent hashing (Eisenbud et al., NSDI 2016, section 3.4) with weights.
//!
//! Every node computes the same table from the same backends: the result depends on their
//! addresses, ports and weights only, not on their order, names or ids.

use std::net::SocketAddr;

use lb_common::{
    abi::{MAGLEV_SIZE, MaglevTable},
    hash::mix,
};

/// A backend that takes part in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Id in the data plane: what the slots hold.
    pub id: u32,
    /// Its identity for hashing.
    pub address: SocketAddr,
    /// Share relative to the other members; not 0.
    pub weight: u32,
}

/// A member's preference order of slots: `(offset + turn * skip) mod M` visits every slot, since
/// M is prime.
struct Permutation {
    id: u16,
    weight: u64,
    credit: u64,
    at: u64,
    skip: u64,
}

impl Permutation {
    fn new(member: &Member) -> Self {
        let size = u64::from(MAGLEV_SIZE);
        let first = hash(&member.address, 0x6d61_676c_6576);
        let second = hash(&member.address, 0x7876_6970);
        Self {
            // Ids are below MAX_BACKENDS, which fits.
            id: u16::try_from(member.id).unwrap_or(0),
            weight: u64::from(member.weight),
            credit: 0,
            at: first % size,
            skip: second % (size - 1) + 1,
        }
    }

    /// The next slot in this member's order.
    fn next(&mut self) -> usize {
        let slot = self.at;
        self.at = (self.at + self.skip) % u64::from(MAGLEV_SIZE);
        usize::try_from(slot).unwrap_or(0)
    }
}

fn hash(address: &SocketAddr, seed: u64) -> u64 {
    let ip = match address.ip() {
        std::net::IpAddr::V4(ip) => u128::from(ip.to_bits()),
        std::net::IpAddr::V6(ip) => ip.to_bits(),
    };
    // Deliberate split into halves.
    let high = mix((ip >> 64) as u64 ^ seed);
    mix(high ^ ip as u64 ^ u64::from(address.port()).rotate_left(48))
}

/// The table of `members`. Without members every slot is 0.
///
/// Each round every member earns its weight and takes a slot for each time that its credit
/// reaches the largest weight: shares are proportional to weights, and equal weights take turns
/// as in the paper.
pub fn table(members: &[Member]) -> MaglevTable {
    let mut ordered: Vec<&Member> = members.iter().collect();
    ordered.sort_by_key(|member| member.address);
    let mut permutations: Vec<_> = ordered.into_iter().map(Permutation::new).collect();
    let Some(largest) = permutations.iter().map(|member| member.weight).max() else {
        return MaglevTable::EMPTY;
    };
    let size = usize::try_from(MAGLEV_SIZE).unwrap_or(0);
    let mut slots = vec![0u16; size];
    let mut free = size;
    while free > 0 {
        for member in &mut permutations {
            member.credit += member.weight;
            if member.credit < largest || free == 0 {
                continue;
            }
            member.credit -= largest;
            take_slot(member, &mut slots);
            free -= 1;
        }
    }
    MaglevTable::from_slots(slots)
}

/// Give `member` the first free slot in its order; there is one.
fn take_slot(member: &mut Permutation, slots: &mut [u16]) {
    loop {
        let slot = member.next();
        if let Some(holder @ 0) = slots.get_mut(slot) {
            *holder = member.id;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn member(id: u32, host: u8, weight: u32) -> Member {
        Member {
            id,
            address: SocketAddr::from(([10, 0, 2, host], 6443)),
            weight,
        }
    }

    fn shares(table: &MaglevTable) -> BTreeMap<u16, usize> {
        let mut shares = BTreeMap::new();
        for &id in table.slots() {
            *shares.entry(id).or_default() += 1;
        }
        shares
    }

    /// Equal weights get equal shares, to one slot.
    #[test]
    fn equal_weights_share_equally() {
        let table = table(&[member(1, 10, 1), member(2, 11, 1), member(3, 12, 1)]);
        let shares = shares(&table);
        assert_eq!(shares.len(), 3);
        assert!(
            shares.values().all(|n| (5_460..=5_461).contains(n)),
            "{shares:?}"
        );
    }

    /// Weights 3:1 give shares 3:1 within 1 %.
    #[test]
    fn shares_follow_weights() {
        let shares = shares(&table(&[member(1, 10, 3), member(2, 11, 1)]));
        let first = shares[&1];
        assert!((12_120..=12_450).contains(&first), "{shares:?}");
    }

    /// Another order, other ids: the same backend holds the same slots. Nodes need not agree on
    /// more than the addresses.
    #[test]
    fn order_and_ids_do_not_matter() {
        let one = table(&[member(1, 10, 1), member(2, 11, 1), member(3, 12, 1)]);
        let other = table(&[member(30, 12, 1), member(10, 10, 1), member(20, 11, 1)]);
        for (a, b) in one.slots().iter().zip(other.slots()) {
            assert_eq!(a * 10, *b);
        }
    }

    /// Losing one of five backends moves few of the others' slots (the paper: under 10 % at this
    /// size).
    #[test]
    fn removal_disturbs_little() {
        let all: Vec<_> = (1..=5).map(|n| member(n, n as u8, 1)).collect();
        let before = table(&all);
        let after = table(&all[..4]);
        let moved = before
            .slots()
            .iter()
            .zip(after.slots())
            .filter(|(b, a)| **b != 5 && a != b)
            .count();
        assert!(moved < before.slots().len() / 10, "{moved} slots moved");
    }

    /// A fourth backend takes its quarter of the slots, and few others move.
    #[test]
    fn addition_disturbs_little() {
        let all: Vec<_> = (1..=4).map(|n| member(n, n as u8, 1)).collect();
        let (before, after) = (table(&all[..3]), table(&all));
        let slots = before.slots().iter().zip(after.slots());
        let moved = slots.filter(|(b, a)| a != b).count() * 100 / before.slots().len();
        assert!((24..=32).contains(&moved), "{moved} %");
    }

    /// No members, no backend.
    #[test]
    fn empty_table() {
        assert!(table(&[]).slots().iter().all(|&id| id == 0));
    }
}

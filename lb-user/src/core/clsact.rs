//! Where a program stands among the filters of a clsact qdisc: what to do so that it is there once and
//! first.
//!
//! A filter is named by priority and handle. Filters of one priority are of one kind and for one
//! protocol; within it a BPF filter that is added goes before those that are there. One that is replaced
//! keeps its place, and no packet meets the interface without a program. Which filters are xvip's
//! says the name that it gives them: those of others are never replaced or removed, whatever their
//! priority and handle.

/// `ETH_P_ALL`
pub const ALL_PROTOCOLS: u16 = 3;
/// Kind of filters that are BPF programs.
pub const BPF: &str = "bpf";
/// How the names of all of xvip's filters begin.
const XVIP: &str = "xvip/";

/// A filter of one direction of a qdisc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The chain; those other than 0 are asked only where a filter of chain 0 says so.
    pub chain: u32,
    /// 1 is asked first.
    pub priority: u16,
    /// The packets that it is for.
    pub protocol: u16,
    /// 0: an empty place for filters of this kind.
    pub handle: u32,
    /// `bpf`, `u32`, `flower`
    pub kind: String,
    /// Name of a BPF filter.
    pub name: Option<String>,
    /// Id of its program.
    pub program: Option<u32>,
}

/// Priority and handle of a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// 1 is asked first.
    pub priority: u16,
    /// Tells filters of one priority apart.
    pub handle: u32,
}

/// What has to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Keep,
    /// The filter is in its place with another program.
    Replace(Position),
    /// There is no filter, or not where it should be.
    Add(Position),
}

/// How a program comes to its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placing {
    /// First.
    pub step: Step,
    /// Then these filters are removed: they are xvip's, and one too many.
    pub remove: Vec<Position>,
    /// Filters of others that stand before it now, in words.
    pub before: Vec<String>,
    /// Filters of others that will stand before it all the same.
    pub stay: Vec<String>,
}

/// A program that has a place.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    /// The filter's name ([`name`]).
    pub name: &'a str,
    /// Id of the program.
    pub program: u32,
    /// First handle to be tried.
    pub handle: u16,
}

/// Name of the filter that holds `program` for an instance of xvip.
pub fn name(instance: &str, program: &str) -> String {
    format!("{XVIP}{instance}/{program}")
}

/// The place of `own` among the filters `found`, in the kernel's order. Without `insist` it stays behind
/// filters that could be overtaken.
pub fn place(found: &[Filter], own: Own<'_>, insist: bool) -> Placing {
    let found: Vec<&Filter> = found.iter().filter(|filter| filter.chain == 0).collect();
    let ours = |filter: &&&Filter| is_named(filter, own.name);
    let priority = first_priority(&found);
    let before = |at: usize| strangers(found.iter().take(at).copied());
    let current = found.iter().position(|filter| is_named(filter, own.name));
    let in_place = current.and_then(|at| Some((at, *found.get(at)?)));
    // What is asked before the priority that is to be had cannot be overtaken.
    let stay = strangers(found.iter().copied().filter(|one| one.priority < priority));
    let standing = in_place.map_or(Vec::new(), |(at, _)| before(at));
    let good = in_place.filter(|(_, filter)| {
        filter.priority == priority && (!insist || standing.len() == stay.len())
    });
    let step = match good {
        Some((_, filter)) if filter.program == Some(own.program) => Step::Keep,
        Some((_, filter)) => Step::Replace(position(filter)),
        None => Step::Add(Position {
            priority,
            handle: free_handle(&found, priority, own.handle),
        }),
    };
    let kept = good.map(|(_, filter)| position(filter));
    let all = found.iter().filter(ours).map(|filter| position(filter));
    Placing {
        step,
        remove: all.filter(|one| Some(*one) != kept).collect(),
        before: standing,
        stay,
    }
}

/// Where all filters called `name` are.
pub fn positions(found: &[Filter], name: &str) -> Vec<Position> {
    let ours = found.iter().filter(|filter| is_named(filter, name));
    ours.map(position).collect()
}

fn is_named(filter: &Filter, name: &str) -> bool {
    filter.handle != 0 && filter.kind == BPF && filter.name.as_deref() == Some(name)
}

const fn position(filter: &Filter) -> Position {
    Position {
        priority: filter.priority,
        handle: filter.handle,
    }
}

/// The first priority that takes BPF filters for all protocols.
fn first_priority(found: &[&Filter]) -> u16 {
    let takes = |priority: u16| {
        let mut there = found.iter().filter(|filter| filter.priority == priority);
        there.all(|filter| filter.kind == BPF && filter.protocol == ALL_PROTOCOLS)
    };
    (1..u16::MAX).find(|priority| takes(*priority)).unwrap_or(1)
}

fn free_handle(found: &[&Filter], priority: u16, first: u16) -> u32 {
    let taken = |handle: u32| {
        let mut there = found.iter();
        there.any(|filter| filter.priority == priority && filter.handle == handle)
    };
    let first = u32::from(first).max(1);
    (first..u32::MAX)
        .find(|handle| !taken(*handle))
        .unwrap_or(first)
}

/// Filters that are not xvip's, in words. Those of another instance are not fought with.
fn strangers<'a>(filters: impl Iterator<Item = &'a Filter>) -> Vec<String> {
    let foreign = filters.filter(|filter| {
        let name = filter.name.as_deref().unwrap_or_default();
        filter.handle != 0 && !name.starts_with(XVIP)
    });
    let words = foreign.map(|filter| {
        let (priority, kind) = (filter.priority, &filter.kind);
        match &filter.name {
            Some(name) => format!("{name} ({kind} filter of priority {priority})"),
            None => format!("a {kind} filter of priority {priority}"),
        }
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "xvip/default/tc_egress";
    const OWN: Own<'_> = Own {
        name: NAME,
        program: 7,
        handle: 100,
    };

    fn bpf(priority: u16, handle: u32, name: &str, program: u32) -> Filter {
        Filter {
            chain: 0,
            priority,
            protocol: ALL_PROTOCOLS,
            handle,
            kind: BPF.to_owned(),
            name: Some(name.to_owned()),
            program: Some(program),
        }
    }

    fn u32_filter(priority: u16) -> Filter {
        Filter {
            kind: "u32".to_owned(),
            name: None,
            program: None,
            protocol: 8,
            ..bpf(priority, 0x800, "", 0)
        }
    }

    fn at(priority: u16, handle: u32) -> Position {
        Position { priority, handle }
    }

    /// Nothing is there: it goes to the first place.
    #[test]
    fn an_empty_qdisc_gets_the_filter() {
        let placing = place(&[], OWN, true);
        assert_eq!(placing.step, Step::Add(at(1, 100)));
        assert_eq!((placing.remove, placing.before), (vec![], vec![]));
        assert_eq!(name("default", "tc_egress"), NAME);
    }

    /// One that is there stays; one of an earlier run gets the new program in its place.
    #[test]
    fn the_filter_is_adopted_in_its_place() {
        let found = [bpf(1, 100, NAME, 7), bpf(1, 1, "cilium", 3)];
        assert_eq!(place(&found, OWN, true).step, Step::Keep);
        let old = [bpf(1, 100, NAME, 5)];
        let placing = place(&old, OWN, true);
        assert_eq!(placing.step, Step::Replace(at(1, 100)));
        assert_eq!(placing.remove, []);
    }

    /// Somebody else's filter of the same priority and handle is left alone.
    #[test]
    fn handles_of_others_are_not_taken() {
        let found = [bpf(1, 100, "cilium", 3), bpf(1, 101, "other", 4)];
        let placing = place(&found, OWN, true);
        assert_eq!(placing.step, Step::Add(at(1, 102)));
        assert_eq!((placing.remove, placing.stay), (vec![], vec![]));
    }

    /// A filter that was added later stands before: a new one overtakes it, and the old one goes.
    /// Who has no patience left stays where he is.
    #[test]
    fn later_filters_are_overtaken() {
        let found = [bpf(1, 1, "late", 3), bpf(1, 100, NAME, 7)];
        let placing = place(&found, OWN, true);
        assert_eq!(placing.step, Step::Add(at(1, 101)));
        assert_eq!(placing.remove, [at(1, 100)]);
        assert_eq!(placing.before, ["late (bpf filter of priority 1)"]);
        assert_eq!(placing.stay, [""; 0]);
        let placing = place(&found, OWN, false);
        assert_eq!((placing.step, placing.remove), (Step::Keep, vec![]));
    }

    /// A filter of another kind has the first priority: the next one that does is taken, and the first
    /// one when it is free again.
    #[test]
    fn other_kinds_keep_their_priority() {
        let mut found = vec![u32_filter(1), u32_filter(2)];
        let placing = place(&found, OWN, true);
        assert_eq!(placing.step, Step::Add(at(3, 100)));
        assert_eq!(placing.stay.len(), 2);
        assert_eq!(placing.stay[0], "a u32 filter of priority 1");
        found.push(bpf(3, 100, NAME, 7));
        assert_eq!(place(&found, OWN, true).step, Step::Keep);
        let placing = place(&found[1..], OWN, true);
        assert_eq!(placing.step, Step::Add(at(1, 100)));
        assert_eq!(placing.remove, [at(3, 100)]);
    }

    /// What a run that was killed left twice is there once afterwards.
    #[test]
    fn a_second_filter_is_removed() {
        let found = [bpf(1, 101, NAME, 6), bpf(1, 100, NAME, 5)];
        let placing = place(&found, OWN, true);
        assert_eq!(placing.step, Step::Replace(at(1, 101)));
        assert_eq!(placing.remove, [at(1, 100)]);
    }

    /// Two instances share an interface; neither overtakes the other, nor removes it.
    #[test]
    fn instances_do_not_fight() {
        let other = "xvip/other/tc_egress";
        let found = [bpf(1, 200, other, 9), bpf(1, 100, NAME, 7)];
        let placing = place(&found, OWN, true);
        assert_eq!((placing.step, placing.before), (Step::Keep, vec![]));
        assert_eq!(positions(&found, NAME), [at(1, 100)]);
        assert_eq!(positions(&found, other), [at(1, 200)]);
    }

    /// Other chains, and places that are empty, are no filters before ours.
    #[test]
    fn other_chains_do_not_count() {
        let mut elsewhere = u32_filter(1);
        elsewhere.chain = 4;
        let mut empty = bpf(1, 0, "", 0);
        empty.name = None;
        let found = [empty, bpf(1, 100, NAME, 7), elsewhere];
        let placing = place(&found, OWN, true);
        assert_eq!((placing.step, placing.before), (Step::Keep, vec![]));
    }
}

//! What the operator says of backends while xvip runs, and how weights grow after a recovery.
//!
//! Enabled is the operator's word, healthy is the checks' word: what follows from both is in
//! [`standing`](super::standing). A word belongs to a backend's identity, so it outlives reloads,
//! and what is [saved](Operator::entries) of it outlives the controller.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use super::{
    names::HostKey,
    roster::Roster,
    standing::{BackendIdentity, Influence, Influences, Mode, Weight},
    time::Timestamp,
};

/// Steps of a slow start: each of them changes the Maglev table.
const STEPS: u32 = 10;

/// What the operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// No new flows; after the time, maintenance.
    Drain {
        /// `None`: for ever.
        deadline: Option<Duration>,
    },
    /// No new flows; after the time, the backend is removed.
    Leave {
        /// How long.
        drain: Duration,
    },
    /// Maintenance.
    Disable,
    /// What the checks say.
    Enable,
    /// Another weight.
    Weight(Weight),
}

/// The operator's word on one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// What it is to be.
    pub mode: Mode,
    /// While it is draining: when it enters maintenance.
    pub deadline: Option<Timestamp>,
    /// While it is draining: it is removed then instead.
    pub leaves: bool,
    /// Its weight.
    pub weight: Weight,
    /// When he said so last.
    pub since: Timestamp,
}

impl Word {
    /// Nothing was said.
    const fn none(now: Timestamp) -> Self {
        Self {
            mode: Mode::Enabled,
            deadline: None,
            leaves: false,
            weight: Weight::Configured,
            since: now,
        }
    }

    /// This word after `order`.
    #[must_use]
    fn after(self, order: Order, now: Timestamp) -> Self {
        let mode = |mode, deadline| Self {
            mode,
            deadline,
            leaves: false,
            since: now,
            ..self
        };
        match order {
            Order::Drain { deadline } => mode(Mode::Draining, deadline.map(|time| now + time)),
            Order::Leave { drain } => Self {
                leaves: true,
                ..mode(Mode::Draining, Some(now + drain))
            },
            Order::Disable => mode(Mode::Maintenance, None),
            Order::Enable => mode(Mode::Enabled, None),
            Order::Weight(weight) => Self {
                weight,
                since: now,
                ..self
            },
        }
    }

    /// Whether it says anything.
    fn is_nothing(&self) -> bool {
        self.mode == Mode::Enabled && self.weight == Weight::Configured
    }
}

/// A word that outlives the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// About whom.
    pub backend: BackendIdentity,
    /// What.
    pub word: Word,
}

/// What outlives the controller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Words on backends.
    pub words: Vec<Entry>,
    /// Backends that were added and removed.
    pub roster: Roster,
    /// What the host names of backends stood for last.
    pub names: Vec<(HostKey, IpAddr)>,
}

/// What the operator has said, and the slow starts under way.
#[derive(Clone, Debug, Default)]
pub struct Operator {
    words: BTreeMap<BackendIdentity, Word>,
    /// Backends that were DOWN since they took new flows last.
    cold: BTreeSet<BackendIdentity>,
    starts: BTreeMap<BackendIdentity, Start>,
}

/// A slow start.
#[derive(Clone, Copy, Debug)]
struct Start {
    begun: Timestamp,
    lasts: Duration,
    /// Steps that were taken, 1 from the beginning on.
    step: u32,
}

impl Start {
    /// When the next step is due.
    fn due(&self) -> Timestamp {
        self.begun + self.lasts.saturating_mul(self.step) / STEPS
    }

    /// Percent of the weight.
    fn percent(&self) -> u8 {
        u8::try_from(self.step.saturating_mul(100) / STEPS).unwrap_or(100)
    }
}

impl Operator {
    /// The word on a backend, if there is one.
    pub fn word(&self, backend: &BackendIdentity) -> Option<&Word> {
        self.words.get(backend)
    }

    /// Percent of its weight that the slow start of a backend has reached, if one is under way.
    pub fn ramp(&self, backend: &BackendIdentity) -> Option<u8> {
        self.starts.get(backend).map(Start::percent)
    }

    /// What is to be saved.
    pub fn entries(&self) -> Vec<Entry> {
        let words = self.words.iter();
        let entry = |(&backend, &word)| Entry { backend, word };
        words.map(entry).collect()
    }

    /// What was saved.
    pub fn restore(&mut self, entries: impl IntoIterator<Item = Entry>) {
        let words = entries.into_iter().map(|entry| (entry.backend, entry.word));
        self.words.extend(words);
    }

    /// Takes an order; returns the word that is in force from now on.
    pub fn order(&mut self, backend: BackendIdentity, order: Order, now: Timestamp) -> Word {
        let before = self.words.get(&backend).copied();
        let word = before.unwrap_or(Word::none(now)).after(order, now);
        if word.is_nothing() {
            self.words.remove(&backend);
        } else {
            self.words.insert(backend, word);
        }
        word
    }

    /// A backend has another address from now on: the word on it stays.
    pub fn rename(&mut self, from: &BackendIdentity, to: BackendIdentity) {
        if let Some(word) = self.words.remove(from) {
            self.words.insert(to, word);
        }
    }

    /// Forgets a backend.
    pub fn forget(&mut self, backend: &BackendIdentity) {
        self.words.remove(backend);
        self.cold.remove(backend);
        self.starts.remove(backend);
    }

    /// Those whose time to drain before their removal is over; there is no word on them any more.
    pub fn take_leaving(&mut self, now: Timestamp) -> Vec<BackendIdentity> {
        let is_due = |word: &Word| word.leaves && word.deadline.is_some_and(|at| at <= now);
        let due = self.words.iter().filter(|(_, word)| is_due(word));
        let due: Vec<_> = due.map(|(&backend, _)| backend).collect();
        self.words.retain(|_, word| !is_due(word));
        due
    }

    /// Forgets whoever is not among `known`; returns those on whom there was a word.
    pub fn forget_others(&mut self, known: &BTreeSet<BackendIdentity>) -> Vec<BackendIdentity> {
        let gone = |backend: &&BackendIdentity| !known.contains(*backend);
        let dropped: Vec<_> = self.words.keys().filter(gone).copied().collect();
        self.words.retain(|backend, _| known.contains(backend));
        self.cold.retain(|backend| known.contains(backend));
        self.starts.retain(|backend, _| known.contains(backend));
        dropped
    }

    /// What has a say from now on.
    pub fn influences(&self) -> Influences {
        let mut influences = Influences::new();
        for (&backend, word) in &self.words {
            let influence = influences.entry(backend).or_insert(Influence::NONE);
            influence.mode = word.mode;
            influence.weight = word.weight;
        }
        for (&backend, start) in &self.starts {
            let influence = influences.entry(backend).or_insert(Influence::NONE);
            influence.ramp = start.percent();
        }
        influences
    }

    /// The same, as if `order` had been given for a backend.
    pub fn influences_after(&self, backend: BackendIdentity, order: Order) -> Influences {
        let mut trial = self.clone();
        trial.order(backend, order, Timestamp::default());
        trial.influences()
    }

    /// A backend was seen dead, or the operator has taken it out: its next start is a slow one.
    pub fn note_down(&mut self, backend: BackendIdentity) {
        self.cold.insert(backend);
        self.starts.remove(&backend);
    }

    /// A backend is UP; if it was down before it begins with a part of its weight, which grows for
    /// the time that `lasts`.
    pub fn note_up(&mut self, backend: BackendIdentity, lasts: Duration, now: Timestamp) {
        if self.cold.remove(&backend) && !lasts.is_zero() {
            let begun = now;
            let step = 1;
            self.starts.insert(backend, Start { begun, lasts, step });
        }
    }

    /// When [`Operator::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let deadlines = self.words.values().filter_map(|word| word.deadline);
        deadlines.chain(self.starts.values().map(Start::due)).min()
    }

    /// Takes the steps that are due, and ends drains whose time is up; returns those backends, and
    /// whether anything changed.
    pub fn handle_timeout(&mut self, now: Timestamp) -> (Vec<BackendIdentity>, bool) {
        let mut changed = false;
        for start in self.starts.values_mut() {
            while start.step < STEPS && start.due() <= now {
                start.step += 1;
                changed = true;
            }
        }
        self.starts.retain(|_, start| start.step < STEPS);
        let mut ended = Vec::new();
        for (&backend, word) in &mut self.words {
            if word.deadline.is_some_and(|deadline| deadline <= now) {
                *word = word.after(Order::Disable, now);
                ended.push(backend);
            }
        }
        let changed = changed || !ended.is_empty();
        (ended, changed)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn backend(host: u8) -> BackendIdentity {
        let vip = [10, 0, 2, 100].into();
        ((vip, 1644, 6), SocketAddr::from(([10, 0, 2, host], 6443)))
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default() + Duration::from_secs(seconds)
    }

    /// A drain with a deadline becomes maintenance at that time; a later order cancels it.
    #[test]
    fn a_deadline_ends_in_maintenance() {
        let mut operator = Operator::default();
        let deadline = Some(Duration::from_mins(1));
        for host in [10, 11] {
            operator.order(backend(host), Order::Drain { deadline }, at(5));
        }
        operator.order(backend(11), Order::Enable, at(6));
        assert_eq!(operator.poll_timeout(), Some(at(65)));
        assert_eq!(operator.handle_timeout(at(64)), (vec![], false));
        let (ended, changed) = operator.handle_timeout(at(65));
        assert_eq!((ended, changed), (vec![backend(10)], true));
        assert_eq!(operator.word(&backend(10)).unwrap().mode, Mode::Maintenance);
        assert_eq!(
            (operator.word(&backend(11)), operator.poll_timeout()),
            (None, None)
        );
    }

    /// `enable` leaves the weight alone, and a weight leaves the mode; only what says something is
    /// kept and saved.
    #[test]
    fn mode_and_weight_are_apart() {
        let mut operator = Operator::default();
        operator.order(backend(10), Order::Weight(Weight::Absolute(3)), at(1));
        operator.order(backend(10), Order::Disable, at(2));
        let word = *operator.word(&backend(10)).unwrap();
        assert_eq!(
            (word.mode, word.weight),
            (Mode::Maintenance, Weight::Absolute(3))
        );
        let mut next = Operator::default();
        next.restore(operator.entries());
        assert_eq!(next.influences(), operator.influences());
        operator.order(backend(10), Order::Enable, at(3));
        assert_eq!(operator.entries().len(), 1);
        operator.order(backend(10), Order::Weight(Weight::Configured), at(4));
        assert!(operator.entries().is_empty());
    }

    /// A slow start has ten steps from a tenth on, and only who was down has one.
    #[test]
    fn weights_grow_in_ten_steps() {
        let mut operator = Operator::default();
        let lasts = Duration::from_mins(1);
        operator.note_up(backend(11), lasts, at(0));
        operator.note_down(backend(10));
        operator.note_up(backend(10), lasts, at(0));
        assert_eq!(operator.ramp(&backend(11)), None);
        let mut percents = vec![operator.ramp(&backend(10))];
        while let Some(due) = operator.poll_timeout() {
            assert!(operator.handle_timeout(due).1);
            percents.push(operator.ramp(&backend(10)));
        }
        let expected: Vec<_> = (1..10).map(|step| Some(step * 10)).collect();
        assert_eq!(percents[..9], expected);
        assert_eq!(percents[9..], [None]);
        // All of them at once, for a controller that was away.
        operator.note_down(backend(10));
        operator.note_up(backend(10), lasts, at(100));
        assert!(operator.handle_timeout(at(1_000)).1);
        assert_eq!(
            (operator.ramp(&backend(10)), operator.poll_timeout()),
            (None, None)
        );
    }

    /// Nothing is kept of backends that are gone; words on them are named.
    #[test]
    fn the_gone_are_forgotten() {
        let mut operator = Operator::default();
        operator.order(backend(10), Order::Disable, at(0));
        operator.order(backend(11), Order::Disable, at(0));
        operator.note_down(backend(10));
        let known = BTreeSet::from([backend(11)]);
        assert_eq!(operator.forget_others(&known), [backend(10)]);
        operator.note_up(backend(10), Duration::from_secs(1), at(1));
        assert_eq!(operator.ramp(&backend(10)), None);
        assert_eq!(operator.entries().len(), 1);
    }
}

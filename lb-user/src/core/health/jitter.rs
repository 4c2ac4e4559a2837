//! A small deterministic generator that spreads checks in time, so that neither the backends of
//! one service nor the nodes of one cluster are asked in step.

use std::time::Duration;

/// `SplitMix64` (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
/// Good enough to spread timers; nothing secret depends on it.
#[derive(Clone, Debug)]
pub(super) struct Jitter(u64);

impl Jitter {
    /// The sequence of `seed`.
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A sequence of its own: what is drawn from it changes nothing here.
    pub(super) const fn fork(&mut self) -> Self {
        Self(self.next())
    }

    /// What the rest of the sequence begins from.
    pub(super) const fn seed(&self) -> u64 {
        self.0
    }

    /// `duration` give or take up to `percent` % of it.
    pub(super) fn vary(&mut self, duration: Duration, percent: u8) -> Duration {
        let most = (duration / 100).saturating_mul(percent.into());
        let low = duration.saturating_sub(most);
        low.saturating_add(self.within(most.saturating_mul(2)))
    }

    /// A time in slot `index` of the `count` equal slots of `span`.
    pub(super) fn slot(&mut self, span: Duration, index: usize, count: usize) -> Duration {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let slot = span / u32::try_from(count).unwrap_or(u32::MAX).max(1);
        slot.saturating_mul(index) + self.within(slot)
    }

    /// A time in `0..=span`.
    fn within(&mut self, span: Duration) -> Duration {
        let bound = span.as_nanos().saturating_add(1);
        let scaled = (u128::from(self.next()).saturating_mul(bound)) >> 64;
        Duration::from_nanos(u64::try_from(scaled).unwrap_or(u64::MAX))
    }

    /// The next number of the sequence.
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves that a varied interval stays within its percentage and does vary, and that 0 % is no
    /// variation.
    #[test]
    fn vary_stays_within_its_share_and_varies() {
        let mut jitter = Jitter::new(1);
        let interval = Duration::from_secs(2);
        let steps: Vec<Duration> = (0..1000).map(|_| jitter.vary(interval, 10)).collect();
        let (low, high) = (Duration::from_millis(1800), Duration::from_millis(2200));
        assert!(steps.iter().all(|step| (low..=high).contains(step)));
        assert!(steps.iter().any(|step| *step < Duration::from_millis(1850)));
        assert!(steps.iter().any(|step| *step > Duration::from_millis(2150)));
        assert_eq!(jitter.vary(interval, 0), interval);
    }

    /// Proves that slots cover the span in order and never leave it.
    #[test]
    fn slots_divide_the_span() {
        let mut jitter = Jitter::new(2);
        let span = Duration::from_secs(3);
        for index in 0..3 {
            let from = Duration::from_secs(index as u64);
            let time = jitter.slot(span, index, 3);
            assert!(
                (from..=from + Duration::from_secs(1)).contains(&time),
                "{time:?}"
            );
        }
    }

    /// Proves that one seed gives one sequence and another seed another.
    #[test]
    fn sequence_depends_on_the_seed_alone() {
        let draw = |seed| Jitter::new(seed).vary(Duration::from_secs(1), 10);
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }
}

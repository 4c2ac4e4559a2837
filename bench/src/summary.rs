//! Median and spread of samples.

use serde::Serialize;

/// What the rounds of a case say together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// The middle one.
    pub(crate) median: f64,
    /// Nine tenths of the rounds were above it.
    pub(crate) low: f64,
    /// Nine tenths of the rounds were below it.
    pub(crate) high: f64,
}

impl Summary {
    /// Of samples in any order; zeroes without any.
    pub(crate) fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_unstable_by(f64::total_cmp);
        let at = |tenths: usize| {
            let last = samples.len().saturating_sub(1);
            samples.get(last * tenths / 10).copied().unwrap_or_default()
        };
        Self {
            median: at(5),
            low: at(1),
            high: at(9),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The order of the samples does not matter, and one wild one moves nothing.
    #[test]
    fn a_summary_is_the_middle_and_its_tenths() {
        let mut samples: Vec<f64> = (0..=10).rev().map(f64::from).collect();
        samples[0] = 1e9;
        let expected = Summary {
            median: 5.0,
            low: 1.0,
            high: 9.0,
        };
        assert_eq!(Summary::of(samples), expected);
        assert_eq!(Summary::of(Vec::new()), Summary::default());
    }
}

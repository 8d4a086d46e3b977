//! Numbers of several rounds, and what is said of them.

use std::fmt;

use serde::Serialize;

/// How often everything is run.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Rounds {
    /// Rounds whose numbers are thrown away.
    pub(crate) warm_up: u32,
    /// Rounds that count.
    pub(crate) repeat: u32,
}

impl Rounds {
    /// Every round; true for those that count.
    pub(crate) fn each(self) -> impl Iterator<Item = bool> {
        (0..self.warm_up).map(|_| false).chain((0..self.repeat).map(|_| true))
    }
}

/// One value a round, in the order of rounds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub(crate) struct Samples(Vec<f64>);

/// Middle and ends of some numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Samples {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn spread(&self) -> Option<Spread> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
            _ => sorted[middle],
        };
        Some(Spread { median, min, max })
    }

    /// Ratios of our values to the base's, round by round: what slowed down a whole round cancels out.
    pub(crate) fn ratio(&self, base: &Self) -> Option<Spread> {
        if self.0.len() != base.0.len() {
            return None;
        }
        Self(self.0.iter().zip(&base.0).map(|(a, b)| a / b).collect()).spread()
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, min, max } = *self;
        write!(f, "{} ({} .. {})", significant(median), significant(min), significant(max))
    }
}

/// Three significant digits, or all before the point.
pub(crate) fn significant(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

/// Geometric mean; nothing of nothing.
pub(crate) fn geometric_mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0u32);
    for value in values {
        sum += value.ln();
        count += 1;
    }
    (count > 0).then(|| (sum / f64::from(count)).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn middle_and_ends() {
        let spread = |values: &[f64]| Samples(values.to_vec()).spread();
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(spread(&[4.0, 1.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn ratios_are_of_rounds() {
        // A host twice as slow in the second round does not show.
        let (ours, base) = (Samples(vec![6.0, 12.0]), Samples(vec![2.0, 4.0]));
        assert_eq!(ours.ratio(&base), Some(Spread { median: 3.0, min: 3.0, max: 3.0 }));
        assert_eq!(ours.ratio(&Samples(vec![1.0])), None);
    }

    #[test]
    fn mean_of_ratios() {
        assert!((geometric_mean([2.0, 8.0]).unwrap() - 4.0).abs() < 1e-12);
        assert_eq!(geometric_mean([]), None);
    }
}

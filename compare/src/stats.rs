//! Numbers of several rounds, and what may be said of them.
//!
//! 1. A *sample* is one number a round. Rounds are interleaved, so the samples of two subjects in one round were taken
//!    seconds apart, and what slowed the host down slowed both.
//! 2. A *ratio* is therefore taken round by round. Its value is the geometric mean of the rounds' ratios, and its interval
//!    the 95 % confidence interval of that mean by Student's t distribution of the logarithms: ratios are positive and
//!    their errors multiply, so logarithms are the scale on which they are symmetric.
//! 3. The t distribution, not a bootstrap: of three or five rounds a bootstrap knows only the same few values and gives
//!    intervals that are too narrow, while t widens for exactly that (by a factor of 4.3 for three rounds, 2.8 for five).

use std::fmt;

use serde::{Deserialize, Serialize};

/// How often everything is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rounds {
    /// Rounds whose numbers are thrown away.
    pub warm_up: u32,
    /// Rounds that count.
    pub repeat: u32,
}

impl Rounds {
    /// Every round; true for those that count.
    pub fn each(self) -> impl Iterator<Item = bool> {
        (0..self.warm_up).map(|_| false).chain((0..self.repeat).map(|_| true))
    }
}

/// One value a round, in the order of rounds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Samples(Vec<f64>);

/// Middle and ends of some numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Half of the numbers are not above it, half not below.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

/// A value, and where the true one is in 95 of 100 such measurements.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Geometric mean over the rounds.
    pub value: f64,
    /// Ends of the 95 % confidence interval; nothing of a single round.
    pub interval: Option<(f64, f64)>,
}

/// Two-sided 95 % quantiles of Student's t distribution for 1, 2, ... degrees of freedom.
const T95: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];
/// The same for more: 30's rounded up, so that intervals are never too narrow.
const T95_MORE: f64 = 2.042;

impl Samples {
    /// Adds a round's value.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The values.
    pub fn values(&self) -> &[f64] {
        &self.0
    }

    /// Median and extremes, if there are any.
    pub fn spread(&self) -> Option<Spread> {
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

    /// Ratios of our values to the base's, round by round. An interrupted run has a round that not all took part in:
    /// it does not count.
    pub fn ratios(&self, base: &Self) -> Self {
        Self(self.0.iter().zip(&base.0).map(|(a, b)| a / b).collect())
    }

    /// Geometric mean and its interval. Nothing of nothing, or of values that are not positive.
    pub fn estimate(&self) -> Option<Estimate> {
        let logs: Vec<f64> = self.0.iter().map(|value| value.ln()).collect();
        if logs.is_empty() || logs.iter().any(|log| !log.is_finite()) {
            return None;
        }
        let count = logs.len() as f64;
        let mean = logs.iter().sum::<f64>() / count;
        let interval = (logs.len() > 1).then(|| {
            let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (count - 1.0);
            let t = T95.get(logs.len() - 2).copied().unwrap_or(T95_MORE);
            let half = t * (variance / count).sqrt();
            ((mean - half).exp(), (mean + half).exp())
        });
        Some(Estimate { value: mean.exp(), interval })
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

impl Estimate {
    /// Both intervals are known and have nothing in common.
    pub fn differs_from(&self, other: &Self) -> bool {
        match (self.interval, other.interval) {
            (Some((low, high)), Some((other_low, other_high))) => low > other_high || high < other_low,
            _ => false,
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, min, max } = *self;
        write!(f, "{} ({} .. {})", significant(median), significant(min), significant(max))
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.interval {
            Some((low, high)) => {
                write!(f, "{} [{}, {}]", significant(self.value), significant(low), significant(high))
            }
            None => f.write_str(&significant(self.value)),
        }
    }
}

/// Three significant digits, or all before the point in groups of three.
pub fn significant(value: f64) -> String {
    if value.abs() >= 10_000.0 {
        let digits = format!("{value:.0}");
        let group = |(n, c): (usize, char)| {
            let comma = n > 0 && (digits.len() - n).is_multiple_of(3) && digits.as_bytes()[n - 1] != b'-';
            comma.then_some(',').into_iter().chain([c])
        };
        return digits.chars().enumerate().flat_map(group).collect();
    }
    let digits = match value.abs() {
        v if v >= 100.0 || v == 0.0 => 0,
        v => (2.0 - v.log10().floor()).clamp(0.0, 6.0) as usize,
    };
    format!("{value:.digits$}")
}

/// Geometric mean; nothing of nothing.
pub fn geometric_mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    values.into_iter().collect::<Samples>().estimate().map(|estimate| estimate.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        values.iter().copied().collect()
    }

    #[test]
    fn middle_and_ends() {
        let spread = |values: &[f64]| samples(values).spread();
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(spread(&[4.0, 1.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn ratios_are_of_rounds() {
        // A host twice as slow in the second round does not show.
        let ratio = samples(&[6.0, 12.0, 6.0]).ratios(&samples(&[2.0, 4.0, 2.0])).estimate().unwrap();
        let (low, high) = ratio.interval.unwrap();
        assert!((ratio.value - 3.0).abs() < 1e-12 && high - low < 1e-9, "{ratio:?}");
        // A round that only one of them finished.
        assert_eq!(samples(&[6.0, 6.0]).ratios(&samples(&[2.0])).values(), [3.0]);
        assert_eq!(samples(&[1.0]).ratios(&samples(&[])).estimate(), None);
    }

    /// By hand: logarithms 0, ln 2 and 2 ln 2 have mean ln 2 and deviation ln 2, so half of the interval is
    /// 4.303 ln 2 / sqrt 3.
    #[test]
    fn intervals_are_those_of_t() {
        let estimate = samples(&[1.0, 2.0, 4.0]).estimate().unwrap();
        let half = (4.303 * 2f64.ln() / 3f64.sqrt()).exp();
        let (low, high) = estimate.interval.unwrap();
        assert!((estimate.value - 2.0).abs() < 1e-12);
        assert!((low - 2.0 / half).abs() < 1e-9 && (high - 2.0 * half).abs() < 1e-9, "{estimate:?}");
        assert_eq!(samples(&[5.0]).estimate().unwrap().interval, None);
        assert_eq!(samples(&[1.0, 0.0]).estimate(), None);
        assert_eq!(samples(&[1.0, f64::NAN]).estimate(), None);
    }

    /// What the interval promises, tried: of many runs of five noisy rounds about 95 in 100 contain the truth.
    #[test]
    fn intervals_hold_as_often_as_they_promise() {
        let mut state = 1u64;
        // Sum of twelve uniform numbers less six: normal enough.
        let mut normal = || {
            let uniform = (0..12).map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 11) as f64 / (1u64 << 53) as f64
            });
            uniform.sum::<f64>() - 6.0
        };
        let runs = 2000;
        let held = (0..runs).filter(|_| {
            let rounds: Samples = (0..5).map(|_| 1.5 * (0.1 * normal()).exp()).collect();
            let (low, high) = rounds.estimate().unwrap().interval.unwrap();
            (low..=high).contains(&1.5)
        });
        let share = held.count() as f64 / f64::from(runs);
        assert!((0.935..0.965).contains(&share), "{share}");
    }

    #[test]
    fn estimates_differ_only_beyond_both_intervals() {
        let estimate = |low, high| Estimate { value: 1.0, interval: Some((low, high)) };
        assert!(estimate(1.0, 2.0).differs_from(&estimate(2.1, 3.0)));
        assert!(estimate(2.1, 3.0).differs_from(&estimate(1.0, 2.0)));
        assert!(!estimate(1.0, 2.0).differs_from(&estimate(1.9, 3.0)));
        assert!(!estimate(1.0, 2.0).differs_from(&Estimate { value: 9.0, interval: None }));
    }

    #[test]
    fn three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.01234, "0.0123"),
            (1.0, "1.00"),
            (9.996, "10.00"),
            (12.34, "12.3"),
            (54321.9, "54,322"),
            (1e9, "1,000,000,000"),
        ] {
            assert_eq!(significant(value), text);
        }
    }

    #[test]
    fn mean_of_ratios() {
        assert!((geometric_mean([2.0, 8.0]).unwrap() - 4.0).abs() < 1e-12);
        assert_eq!(geometric_mean([]), None);
    }
}

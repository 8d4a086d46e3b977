//! Token buckets: what a guest may ask of a disk or a network in a second.

use std::time::{Duration, Instant};

/// A rate and how much may come at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Units a second: bytes or requests. 0 counts as 1.
    pub per_second: u64,
    /// Units that a full bucket holds. What is larger than this passes once the bucket is full, and is paid back after.
    pub burst: u64,
}

/// A token bucket, whose level is kept as a point of time: the moment at which all that was taken is paid.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: Rate,
    paid: Option<Instant>,
}

impl Bucket {
    /// A full one.
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, paid: None }
    }

    /// Takes `units` at `now`; how long the taker has to wait before it uses them.
    pub(crate) fn take(&mut self, units: u64, now: Instant) -> Duration {
        if units == 0 {
            return Duration::ZERO;
        }
        let time = |units: u64| {
            let nanos = u128::from(units) * 1_000_000_000 / u128::from(self.rate.per_second.max(1));
            // A day's wait is as good as forever, and cannot overflow a point of time.
            Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).min(Duration::from_secs(86_400))
        };
        // Credit grows up to the burst and no further.
        let full = time(self.rate.burst);
        let oldest = now.checked_sub(full).unwrap_or(now);
        let before = self.paid.map_or(oldest, |paid| paid.max(oldest));
        self.paid = Some(before + time(units));
        // What is there may be used at once, and more than a whole bucket as soon as the bucket would be full.
        let usable = before + time(units.min(self.rate.burst));
        usable.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let mut bucket = Bucket::new(Rate { per_second: 10, burst: 20 });
        let start = Instant::now() + secs(1000);
        assert_eq!(bucket.take(20, start), Duration::ZERO);
        assert_eq!(bucket.take(10, start), secs(1));
        assert_eq!(bucket.take(10, start), secs(2));
        // Two seconds pay that off, three more seconds fill the bucket, which holds no more than two.
        assert_eq!(bucket.take(20, start + secs(5)), Duration::ZERO);
        assert_eq!(bucket.take(1, start + secs(5)), Duration::from_millis(100));
    }

    #[test]
    fn more_than_a_bucket_is_paid_back() {
        let mut bucket = Bucket::new(Rate { per_second: 10, burst: 10 });
        let start = Instant::now() + secs(1000);
        assert_eq!(bucket.take(50, start), Duration::ZERO);
        assert_eq!(bucket.take(10, start), secs(5));
    }

    #[test]
    fn hostile_numbers_do_not_overflow() {
        for rate in [Rate { per_second: 0, burst: 0 }, Rate { per_second: u64::MAX, burst: u64::MAX }] {
            let mut bucket = Bucket::new(rate);
            for _ in 0..3 {
                bucket.take(u64::MAX, Instant::now());
            }
        }
    }
}

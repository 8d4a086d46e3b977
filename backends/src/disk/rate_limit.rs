//! Bounds on what a guest may ask of a disk in a second.

use super::backend::{BlockBackend, BlockCommand, BlockInfo, BlockRequest, SECTOR};
use async_trait::async_trait;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A rate and how much may come at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Units a second: bytes or requests. 0 counts as 1.
    pub per_second: u64,
    /// Units that a full bucket holds. A batch larger than this passes once the bucket is full, and is paid back after.
    pub burst: u64,
}

/// A token bucket, whose level is kept as a point of time: the moment at which all that was taken is paid.
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    paid: Option<Instant>,
}

impl Bucket {
    /// Takes `units` at `now`; how long the taker has to wait before it uses them.
    fn take(&mut self, units: u64, now: Instant) -> Duration {
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

/// Any back end, slowed down to rates of bytes and of requests. Reads and writes count with their bytes, every request as
/// one; a batch waits as a whole. What waits is bounded by what the device has in flight.
#[derive(Debug)]
pub struct RateLimit {
    inner: Arc<dyn BlockBackend>,
    bytes: Option<Mutex<Bucket>>,
    requests: Option<Mutex<Bucket>>,
}

impl RateLimit {
    /// Bounds `inner`; `None` is no bound.
    pub fn new(inner: Arc<dyn BlockBackend>, bytes: Option<Rate>, requests: Option<Rate>) -> Self {
        let bucket = |rate| Mutex::new(Bucket { rate, paid: None });
        Self { inner, bytes: bytes.map(bucket), requests: requests.map(bucket) }
    }

    fn wait(&self, batch: &[BlockRequest], now: Instant) -> Duration {
        let take = |bucket: &Option<Mutex<Bucket>>, units| {
            let bucket = bucket.as_ref();
            bucket
                .map_or(Duration::ZERO, |b| b.lock().unwrap_or_else(PoisonError::into_inner).take(units, now))
        };
        let bytes = batch.iter().filter_map(|r| match &r.command {
            BlockCommand::Read { data, .. } | BlockCommand::Write { data, .. } => Some(data.len() as u64),
            BlockCommand::Flush | BlockCommand::Discard { .. } => None,
            // Zeroes may be written as such.
            BlockCommand::WriteZeroes { count, unmap, .. } => (!unmap).then(|| count.saturating_mul(SECTOR)),
        });
        let bytes = take(&self.bytes, bytes.fold(0, u64::saturating_add));
        bytes.max(take(&self.requests, batch.len() as u64))
    }
}

#[async_trait]
impl BlockBackend for RateLimit {
    fn info(&self) -> BlockInfo {
        self.inner.info()
    }

    async fn submit(&self, batch: &mut [BlockRequest]) {
        let wait = self.wait(batch, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        self.inner.submit(batch).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::testing::LossyDisk;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let mut bucket = Bucket { rate: Rate { per_second: 10, burst: 20 }, paid: None };
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
        let mut bucket = Bucket { rate: Rate { per_second: 10, burst: 10 }, paid: None };
        let start = Instant::now() + secs(1000);
        assert_eq!(bucket.take(50, start), Duration::ZERO);
        assert_eq!(bucket.take(10, start), secs(5));
    }

    #[test]
    fn hostile_numbers_do_not_overflow() {
        for rate in [Rate { per_second: 0, burst: 0 }, Rate { per_second: u64::MAX, burst: u64::MAX }] {
            let mut bucket = Bucket { rate, paid: None };
            for _ in 0..3 {
                bucket.take(u64::MAX, Instant::now());
            }
        }
    }

    #[test]
    fn both_rates_count() {
        let disk: Arc<dyn BlockBackend> = Arc::new(LossyDisk::new(64));
        let rate = |per_second| Some(Rate { per_second, burst: 0 });
        let limit = RateLimit::new(disk, rate(1024), rate(2));
        let read = |sectors: usize| {
            BlockRequest::new(BlockCommand::Read { sector: 0, data: vec![0; 512 * sectors] })
        };
        let now = Instant::now() + secs(1000);
        // The first batch costs 1 s of requests, 1 s of bytes; then the requests' bucket has 1 s of debt.
        assert_eq!(limit.wait(&[read(1), read(1)], now), Duration::ZERO);
        assert_eq!(limit.wait(&[read(4)], now), secs(1));
        assert_eq!(limit.wait(&[BlockRequest::default()], now), Duration::from_millis(1500));
        assert_eq!(limit.wait(&[read(1)], now), secs(3));
    }

    #[test]
    fn requests_pass() {
        let disk: Arc<dyn BlockBackend> = Arc::new(LossyDisk::new(64));
        let rate = Some(Rate { per_second: 1 << 30, burst: 1 << 20 });
        let limit = RateLimit::new(disk, rate, rate);
        assert_eq!(limit.info().capacity, 64);
        let mut batch = [BlockRequest::new(BlockCommand::Write { sector: 1, data: vec![5; 512] })];
        crate::runtime().unwrap().block_on(limit.submit(&mut batch));
        assert_eq!(batch[0].result, Ok(()));
    }
}

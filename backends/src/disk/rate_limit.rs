//! Bounds on what a guest may ask of a disk in a second.

use super::backend::{BlockBackend, BlockCommand, BlockInfo, BlockRequest, SECTOR};
use crate::rate::{Bucket, Rate};
use async_trait::async_trait;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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
        let bucket = |rate| Mutex::new(Bucket::new(rate));
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

//! Bounds on what a guest may send and receive in a second.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;

use super::{Frame, LinkState, NetBackend, NetError, NetInfo, Offloads};
use crate::rate::{Bucket, Rate};

/// Bytes of the largest frame, roughly: a batch of one is as small as batches get.
const FRAME: u64 = 1 << 16;

/// Any back end, slowed down to a rate of bytes in each direction. A batch passes, and what comes behind it waits until it is paid.
/// What waits is bounded by what the device and the back end hold.
#[derive(Debug)]
pub struct RateLimit {
    inner: Arc<dyn NetBackend>,
    max_batch: usize,
    send: Mutex<Direction>,
    receive: Mutex<Direction>,
}

#[derive(Debug)]
struct Direction {
    bucket: Bucket,
    /// Nothing passes before.
    opens: Option<Instant>,
}

impl RateLimit {
    /// Bounds `inner`, each direction apart.
    pub fn new(inner: Arc<dyn NetBackend>, rate: Rate) -> Self {
        let batch = usize::try_from(rate.burst / FRAME).unwrap_or(usize::MAX);
        let direction = || Mutex::new(Direction { bucket: Bucket::new(rate), opens: None });
        let max_batch = batch.clamp(1, inner.info().max_batch.max(1));
        Self { inner, max_batch, send: direction(), receive: direction() }
    }
}

#[cfg(test)]
impl RateLimit {
    /// When the way out opens.
    pub(super) fn send_opens(&self) -> Option<Instant> {
        self.send.lock().unwrap().opens
    }

    /// As if `bytes` had gone out at `now`.
    pub(super) fn pay_send(&self, bytes: usize, now: Instant) {
        pay(&self.send, bytes, now);
    }
}

/// Waits until what passed before is paid.
async fn wait(direction: &Mutex<Direction>) {
    let opens = direction.lock().unwrap_or_else(PoisonError::into_inner).opens;
    if let Some(opens) = opens
        && opens > Instant::now()
    {
        tokio::time::sleep_until(opens.into()).await;
    }
}

fn pay(direction: &Mutex<Direction>, bytes: usize, now: Instant) {
    let mut direction = direction.lock().unwrap_or_else(PoisonError::into_inner);
    let wait = direction.bucket.take(bytes as u64, now);
    direction.opens = (!wait.is_zero()).then(|| now + wait);
}

fn bytes(frames: &[Frame]) -> usize {
    frames.iter().map(|frame| frame.data.len()).sum()
}

#[async_trait]
impl NetBackend for RateLimit {
    fn info(&self) -> NetInfo {
        NetInfo { max_batch: self.max_batch, ..self.inner.info() }
    }

    fn link(&self) -> LinkState {
        self.inner.link()
    }

    async fn link_changed(&self, seen: LinkState) -> LinkState {
        self.inner.link_changed(seen).await
    }

    fn set_offloads(&self, accepted: Offloads) {
        self.inner.set_offloads(accepted);
    }

    async fn send(&self, frames: &mut Vec<Frame>) -> Result<(), NetError> {
        wait(&self.send).await;
        let before = bytes(frames);
        let sent = self.inner.send(frames).await;
        pay(&self.send, before.saturating_sub(bytes(frames)), Instant::now());
        sent
    }

    async fn receive(&self, into: &mut Vec<Frame>, max: usize) -> Result<(), NetError> {
        wait(&self.receive).await;
        let before = bytes(into);
        let received = self.inner.receive(into, max.min(self.max_batch)).await;
        pay(&self.receive, bytes(into).saturating_sub(before), Instant::now());
        received
    }
}

//! From the guest to the network.

use std::io::Read;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use backends::net::{Frame, HEADER, Offloads, PendingFrames, parse_header};

use super::{Cable, LONGEST};
use crate::virtio::{Chain, Memory, QueueError, Turn, VirtQueue, VirtioInterrupt};

/// Chains in a batch, batches in a turn, bytes in a turn.
const BATCH: usize = 64;
const BATCHES: usize = 4;
const TURN_BYTES: usize = 1 << 20;

/// Takes frames from a queue as fast as the back end takes them from here: a batch at a time, and the next when it is gone.
pub(super) struct Transmitter {
    cable: Arc<Cable>,
    offered: Offloads,
    sending: Option<PendingFrames>,
    waker: Waker,
}

impl Transmitter {
    /// One whose driver may ask for what is `offered`; `waker` rings the queue's doorbell.
    pub(super) fn new(cable: Arc<Cable>, offered: Offloads, waker: Waker) -> Self {
        Self { cable, offered, sending: None, waker }
    }

    /// One turn. While the back end has no place nothing is taken; it then rings the queue's doorbell.
    pub(super) fn serve(
        &mut self,
        queue: &VirtQueue,
        memory: &Memory,
        interrupt: &VirtioInterrupt,
    ) -> Result<Turn, QueueError> {
        let budget = self.cable.backend.info().max_batch.clamp(1, BATCH);
        let mut bytes = 0;
        for _ in 0..BATCHES {
            if !self.is_through(interrupt) {
                return Ok(Turn::Idle);
            }
            let mut frames = Vec::new();
            let take = |chain: Chain<'_>| {
                if let Some(frame) = read(chain, memory, self.offered) {
                    bytes += frame.data.len();
                    frames.push(frame);
                }
                ((), bytes < TURN_BYTES)
            };
            let turn = queue.serve_batch(memory, interrupt, budget, take, |taken| vec![0; taken.len()])?;
            self.send(frames);
            if turn == Turn::Idle || bytes >= TURN_BYTES {
                return Ok(if self.is_through(interrupt) { turn } else { Turn::Idle });
            }
        }
        Ok(Turn::More)
    }

    fn send(&mut self, frames: Vec<Frame>) {
        // What is sent into a cable that is out is lost.
        if !frames.is_empty() && self.cable.is_whole() {
            self.sending = Some(self.cable.backend.clone().sending(frames));
        }
    }

    /// Is the batch before gone?
    fn is_through(&mut self, interrupt: &VirtioInterrupt) -> bool {
        while let Some(sending) = &mut self.sending {
            match sending.as_mut().poll(&mut Context::from_waker(&self.waker)) {
                Poll::Pending => return false,
                Poll::Ready((rest, sent)) => {
                    self.sending = None;
                    match sent {
                        Ok(()) => self.send(rest),
                        Err(_) => self.cable.cut(interrupt),
                    }
                }
            }
        }
        true
    }
}

/// The frame in `chain`. `None`: none that may be sent.
fn read(chain: Chain<'_>, memory: &Memory, offered: Offloads) -> Option<Frame> {
    let mut reader = chain.reader(memory).ok()?;
    let mut bytes = [0; HEADER];
    reader.read_exact(&mut bytes).ok()?;
    let len = reader.available_bytes();
    if len > LONGEST {
        return None;
    }
    let header = parse_header(&bytes, len, offered)?;
    let mut data = vec![0; len];
    reader.read_exact(&mut data).ok()?;
    Some(Frame { header, data })
}

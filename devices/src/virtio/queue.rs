//! A queue between its driver and whoever serves it.

use std::io;
use std::sync::Mutex;

use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};

use super::{Chain, Doorbell, Memory, VirtioInterrupt};
use crate::util::lock;

/// What a queue cannot be served for. The device needs a reset.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Its rings are not in memory, or not aligned.
    #[error("rings of queue {0} are not in memory")]
    Rings(u16),
    /// An index of the driver's that cannot be.
    #[error("queue {index}: {error}")]
    Driver {
        /// Number of the queue.
        index: u16,
        /// What is wrong.
        #[source]
        error: virtio_queue::Error,
    },
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The driver has nothing more, and rings when it has.
    Idle,
    /// There is more.
    More,
}

/// Where the rings are, as the driver has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rings {
    pub(super) size: u16,
    pub(super) desc: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
}

/// One queue of a device.
#[derive(Debug)]
pub struct VirtQueue {
    index: u16,
    max_size: u16,
    doorbell: Doorbell,
    /// While its driver has it enabled and is ready.
    live: Mutex<Option<Queue>>,
}

impl VirtQueue {
    pub(super) fn new(index: u16, max_size: u16, notify_offset: u64) -> io::Result<Self> {
        Ok(Self { index, max_size, doorbell: Doorbell::new(notify_offset)?, live: Mutex::default() })
    }

    /// Its number.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Most descriptors.
    pub fn max_size(&self) -> u16 {
        self.max_size
    }

    /// Rung by the driver.
    pub fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    /// Lets it be served, from the given indices on. False: rings that cannot be.
    pub(super) fn start(&self, rings: &Rings, event_idx: bool, next: (u16, u16)) -> bool {
        let Rings { size, desc, avail, used } = *rings;
        let (next_avail, next_used) = next;
        let state = QueueState {
            max_size: self.max_size,
            next_avail,
            next_used,
            event_idx_enabled: event_idx,
            size,
            ready: true,
            desc_table: desc,
            avail_ring: avail,
            used_ring: used,
        };
        let queue = Queue::try_from(state).ok();
        let can_be = queue.is_some();
        *lock(&self.live) = queue;
        can_be
    }

    /// Ends that. Nobody touches its rings when this returns.
    pub(super) fn stop(&self) {
        *lock(&self.live) = None;
    }

    /// The indices that are next, of the available and the used ring.
    pub(super) fn next(&self) -> (u16, u16) {
        lock(&self.live).as_ref().map_or((0, 0), |queue| (queue.next_avail(), queue.next_used()))
    }

    /// Is it served?
    pub fn is_live(&self) -> bool {
        lock(&self.live).is_some()
    }

    /// Serves up to `budget` chains with `handle`, which returns the number of bytes that it has written to the chain's buffers,
    /// and interrupts if the driver wants it. A queue that is not live is idle.
    ///
    /// # Errors
    /// Rings or indices that cannot be.
    pub fn serve(
        &self,
        memory: &Memory,
        interrupt: &VirtioInterrupt,
        budget: usize,
        handle: impl FnMut(Chain<'_>) -> u32,
    ) -> Result<Turn, QueueError> {
        self.with_live(memory, |queue| {
            let mut used = 0;
            let turn = drain(queue, memory, budget, handle, &mut used);
            if used > 0 && queue.needs_notification(memory).unwrap_or(true) {
                interrupt.queue(self.index);
            }
            turn
        })
    }

    /// Serves up to `budget` chains with `handle` as [`Self::serve`] does, until it has nothing for one: that one stays where it is.
    /// The driver is asked to ring for more only where there were too few.
    ///
    /// # Errors
    /// Rings or indices that cannot be.
    pub fn serve_while(
        &self,
        memory: &Memory,
        interrupt: &VirtioInterrupt,
        budget: usize,
        mut handle: impl FnMut(Chain<'_>) -> Option<u32>,
    ) -> Result<Turn, QueueError> {
        self.with_live(memory, |queue| {
            queue.disable_notification(memory)?;
            let mut used = 0;
            let turn = loop {
                let Some(chain) = queue.iter(memory)?.next() else {
                    if queue.enable_notification(memory)? {
                        queue.disable_notification(memory)?;
                        continue;
                    }
                    break Turn::Idle;
                };
                let head = chain.head_index();
                let Some(written) = handle(chain) else {
                    queue.go_to_previous_position();
                    break Turn::Idle;
                };
                queue.add_used(memory, head, written)?;
                used += 1;
                if used >= budget {
                    break Turn::More;
                }
            };
            if used > 0 && queue.needs_notification(memory).unwrap_or(true) {
                interrupt.queue(self.index);
            }
            Ok(turn)
        })
    }

    /// Serves one batch: takes up to `budget` chains, and no more once `take` has said so of one by false, and has `handle` serve
    /// all that `take` has made of them at once; it returns the number of bytes that it has written to each one's buffers. Else as
    /// [`Self::serve`].
    ///
    /// # Errors
    /// Rings or indices that cannot be.
    pub fn serve_batch<'m, T>(
        &self,
        memory: &'m Memory,
        interrupt: &VirtioInterrupt,
        budget: usize,
        mut take: impl FnMut(Chain<'m>) -> (T, bool),
        handle: impl FnOnce(Vec<T>) -> Vec<u32>,
    ) -> Result<Turn, QueueError> {
        self.with_live(memory, |queue| {
            queue.disable_notification(memory)?;
            let (mut heads, mut batch) = (Vec::new(), Vec::new());
            while heads.len() < budget
                && let Some(chain) = queue.iter(memory)?.next()
            {
                heads.push(chain.head_index());
                let (taken, more) = take(chain);
                batch.push(taken);
                if !more {
                    break;
                }
            }
            if batch.is_empty() {
                // The driver may have added some before it could know that it has to ring.
                return Ok(if queue.enable_notification(memory)? { Turn::More } else { Turn::Idle });
            }
            for (head, written) in heads.into_iter().zip(handle(batch)) {
                queue.add_used(memory, head, written)?;
            }
            if queue.needs_notification(memory).unwrap_or(true) {
                interrupt.queue(self.index);
            }
            // Another turn finds out whether that was all.
            Ok(Turn::More)
        })
    }

    /// Does `work` on the queue, if it is live.
    pub(super) fn with_live(
        &self,
        memory: &Memory,
        work: impl FnOnce(&mut Queue) -> Result<Turn, virtio_queue::Error>,
    ) -> Result<Turn, QueueError> {
        let mut live = lock(&self.live);
        let Some(queue) = live.as_mut() else { return Ok(Turn::Idle) };
        if !queue.is_valid(memory) {
            return Err(QueueError::Rings(self.index));
        }
        work(queue).map_err(|error| QueueError::Driver { index: self.index, error })
    }
}

fn drain(
    queue: &mut Queue,
    memory: &Memory,
    budget: usize,
    mut handle: impl FnMut(Chain<'_>) -> u32,
    used: &mut usize,
) -> Result<Turn, virtio_queue::Error> {
    loop {
        queue.disable_notification(memory)?;
        while let Some(chain) = queue.iter(memory)?.next() {
            let head = chain.head_index();
            let written = handle(chain);
            queue.add_used(memory, head, written)?;
            *used += 1;
            if *used >= budget {
                return Ok(Turn::More);
            }
        }
        // The driver may have added some before it could know that it has to ring.
        if !queue.enable_notification(memory)? {
            return Ok(Turn::Idle);
        }
    }
}

/// Calls `f` with the lock of each of `queues` held.
#[cfg(test)]
pub(super) fn with_locked(queues: &[std::sync::Arc<VirtQueue>], f: impl FnOnce()) {
    let _held: Vec<_> = queues.iter().map(|queue| lock(&queue.live)).collect();
    f();
}

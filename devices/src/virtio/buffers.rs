//! The queue of a device that has something to say: its driver lays out buffers, and the device fills them when it wants to.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Error, Queue, QueueOwnedT as _, QueueT as _};
use vm_memory::{Bytes, GuestAddress};

use super::{Chain, Memory, QueueError, Turn, VirtQueue, VirtioInterrupt};

/// Bytes of the used ring before its elements, and of one.
const USED_HEADER: u64 = 4;
const USED_ELEMENT: u64 = 8;
/// Bytes of the available ring before its elements, and of one.
const AVAIL_HEADER: u64 = 4;
const AVAIL_ELEMENT: u64 = 2;

/// The buffers of a live queue, for the length of a turn.
#[derive(Debug)]
pub struct Buffers<'q, 'm> {
    queue: &'q mut Queue,
    memory: &'m Memory,
}

impl VirtQueue {
    /// Has `work` fill buffers, and interrupts if the driver wants it. A queue that is not live is idle.
    ///
    /// # Errors
    /// Rings or indices that cannot be.
    pub fn fill(
        &self,
        memory: &Memory,
        interrupt: &VirtioInterrupt,
        work: impl FnOnce(&mut Buffers<'_, '_>) -> Result<Turn, Error>,
    ) -> Result<Turn, QueueError> {
        self.with_live(memory, |queue| {
            let first = queue.next_used();
            queue.disable_notification(memory)?;
            let mut buffers = Buffers { queue, memory };
            let turn = work(&mut buffers);
            if buffers.is_wanted(first) {
                interrupt.queue(self.index());
            }
            turn
        })
    }
}

impl<'m> Buffers<'_, 'm> {
    /// How many lie there.
    ///
    /// # Errors
    /// An index of the driver's that cannot be.
    pub fn len(&self) -> Result<usize, Error> {
        let end = self.queue.avail_idx(self.memory, Ordering::Acquire)?;
        let len = (end - Wrapping(self.queue.next_avail())).0;
        if len > self.queue.size() { Err(Error::InvalidAvailRingIndex) } else { Ok(len.into()) }
    }

    /// Is there none?
    ///
    /// # Errors
    /// As [`len`](Self::len).
    pub fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.len()? == 0)
    }

    /// Most that can lie there at once.
    pub fn most(&self) -> usize {
        self.queue.size().into()
    }

    /// The next one.
    ///
    /// # Errors
    /// As [`len`](Self::len).
    pub fn take(&mut self) -> Result<Option<Chain<'m>>, Error> {
        Ok(self.queue.iter(self.memory)?.next())
    }

    /// Puts back the last `count` of those taken.
    pub fn put_back(&mut self, count: usize) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(count as u16));
    }

    /// Has the driver ring when it lays out one more behind those taken so far; true: it has already.
    ///
    /// # Errors
    /// Rings that cannot be.
    pub fn wait(&mut self) -> Result<bool, Error> {
        self.queue.enable_notification(self.memory)
    }

    /// Gives the driver chains with these heads and bytes written. It sees all of them at once or none: what is one thing to it
    /// may lie in several.
    ///
    /// # Errors
    /// Rings that cannot be.
    pub fn used(&mut self, chains: &[(u16, u32)]) -> Result<(), Error> {
        let Some(((head, written), others)) = chains.split_last() else { return Ok(()) };
        let (size, next) = (self.queue.size(), self.queue.next_used());
        for (n, (head, written)) in (0u16..).zip(others) {
            let slot = next.wrapping_add(n) % size;
            let at = self.queue.used_ring() + USED_HEADER + USED_ELEMENT * u64::from(slot);
            let element = [u32::from(*head).to_le(), written.to_le()];
            self.memory.write_obj(element, GuestAddress(at)).map_err(Error::GuestMemory)?;
        }
        self.queue.set_next_used(next.wrapping_add(others.len() as u16));
        // The last one moves the index over all.
        self.queue.add_used(self.memory, *head, *written)
    }

    /// Does the driver want to know of what was used since `first`?
    fn is_wanted(&mut self, first: u16) -> bool {
        let next = Wrapping(self.queue.next_used());
        if next.0 == first {
            return false;
        }
        if !self.queue.event_idx_enabled() {
            return true;
        }
        // As virtio_queue does it, which counts a batch of several chains as one. The used index before used_event is read.
        fence(Ordering::SeqCst);
        let at = self.queue.avail_ring() + AVAIL_HEADER + AVAIL_ELEMENT * u64::from(self.queue.size());
        let event = self.memory.load::<u16>(GuestAddress(at), Ordering::Relaxed).map(u16::from_le);
        event.map_or(true, |event| next - Wrapping(event) - Wrapping(1) < next - Wrapping(first))
    }
}

//! How a driver's notification reaches whoever serves the queue.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// A queue's doorbell. A kernel may ring it, too, by its eventfd alone (ioeventfd).
#[derive(Debug)]
pub struct Doorbell {
    /// Rung since the last [`take`](Self::take), by [`ring`](Self::ring).
    pending: AtomicBool,
    event: OwnedFd,
    offset: u64,
}

impl Doorbell {
    /// The doorbell whose register is at `offset` in the notification BAR.
    ///
    /// # Errors
    /// The host has no descriptor.
    pub(super) fn new(offset: u64) -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { pending: AtomicBool::new(false), event, offset })
    }

    /// Where its register is in [`VirtioPci::NOTIFY_BAR`](super::VirtioPci::NOTIFY_BAR).
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Wakes whoever serves the queue, unless that has been done and not been taken.
    pub fn ring(&self) {
        // The guest's store to its ring came before, and whoever takes the doorbell looks at the ring behind its exchange.
        if !self.pending.swap(true, Ordering::SeqCst) {
            write_event(&self.event);
        }
    }

    /// Before one looks at the queue: rings from now on wake again.
    pub fn take(&self) {
        read_event(&self.event);
        self.pending.swap(false, Ordering::SeqCst);
    }
}

impl AsFd for Doorbell {
    /// The eventfd: readable while somebody rings.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Adds one. It cannot fail but for a counter that is full, which is as readable.
pub(super) fn write_event(event: &OwnedFd) {
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

/// Back to zero; where it is, nothing happens.
pub(super) fn read_event(event: &OwnedFd) {
    let _ = rustix::io::read(event, &mut [0u8; 8]);
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn rings(bell: &Doorbell) -> bool {
        let mut fds = [PollFd::new(bell, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn it_is_readable_from_a_ring_until_it_is_taken() {
        let bell = Doorbell::new(0x3004).unwrap();
        assert!(!rings(&bell) && bell.offset() == 0x3004);
        bell.ring();
        bell.ring();
        assert!(rings(&bell));
        let mut count = [0; 8];
        rustix::io::read(&bell.event, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1, "one write for two rings");
        bell.ring();
        assert!(!rings(&bell), "not taken yet");
        bell.take();
        bell.ring();
        assert!(rings(&bell));
        bell.take();
        assert!(!rings(&bell));
        write_event(&bell.event);
        assert!(rings(&bell), "a kernel rings by the eventfd alone");
    }

    /// Each ring is behind a store; the last look of the one who takes sees the last store.
    #[test]
    fn no_ring_is_lost() {
        let (bell, posted) = (Doorbell::new(0).unwrap(), std::sync::atomic::AtomicU64::new(0));
        const LAST: u64 = 20_000;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 1..=LAST {
                    posted.store(n, Ordering::Relaxed);
                    bell.ring();
                }
            });
            while posted.load(Ordering::Relaxed) < LAST {
                poll(&mut [PollFd::new(&bell, PollFlags::IN)], None).unwrap();
                bell.take();
            }
        });
    }
}

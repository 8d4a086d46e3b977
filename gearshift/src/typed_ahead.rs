//! Keys that wait for the guest.
//!
//! The thread that reads the terminal puts them in, another takes them out as the guest makes room. So Ctrl-a x is seen
//! however much waits in front of it, up to [`LIMIT`] bytes. Beyond that nothing more is read: the terminal holds back
//! whoever types or pastes, and nothing is lost.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes that may wait before no more are read. More than anybody types, and than most people paste.
pub(crate) const LIMIT: usize = 1 << 20;
/// Bytes that leave at once: what the guest's port can hold.
const PIECE: usize = 4096;

#[derive(Debug, Default)]
struct Queue {
    bytes: VecDeque<u8>,
    closed: bool,
}

/// The keys, in their order.
#[derive(Debug, Default)]
pub(crate) struct TypedAhead {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl TypedAhead {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what one read gave. There is room for it if [`wait_for_room`](Self::wait_for_room) was asked before.
    pub(crate) fn push(&self, bytes: &[u8]) {
        self.lock().bytes.extend(bytes);
        self.changed.notify_all();
    }

    /// Waits until more may be read; false if nobody takes keys any more. `stuck` is called if none was taken for as long
    /// as `patience`.
    pub(crate) fn wait_for_room(&self, patience: Duration, stuck: impl FnOnce()) -> bool {
        let mut queue = self.lock();
        let mut stuck = Some(stuck);
        while queue.bytes.len() >= LIMIT && !queue.closed {
            let before = queue.bytes.len();
            let waited = self.changed.wait_timeout(queue, patience).unwrap_or_else(PoisonError::into_inner);
            queue = waited.0;
            if waited.1.timed_out()
                && queue.bytes.len() == before
                && let Some(stuck) = stuck.take()
            {
                drop(queue);
                stuck();
                queue = self.lock();
            }
        }
        !queue.closed
    }

    /// The next keys, when there are some; nothing after [`close`](Self::close).
    pub(crate) fn take(&self) -> Option<Vec<u8>> {
        let queue = self.lock();
        let empty = |queue: &mut Queue| queue.bytes.is_empty() && !queue.closed;
        let mut queue = self.changed.wait_while(queue, empty).unwrap_or_else(PoisonError::into_inner);
        if queue.closed {
            return None;
        }
        let count = queue.bytes.len().min(PIECE);
        let piece = queue.bytes.drain(..count).collect();
        self.changed.notify_all();
        Some(piece)
    }

    /// Nobody takes keys any more.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    const SOON: Duration = Duration::from_millis(1);
    const NEVER: Duration = Duration::from_secs(3600);

    #[test]
    fn keys_come_out_in_their_order_and_all_of_them() {
        let ahead = TypedAhead::default();
        let text: Vec<u8> = (0..3 * LIMIT).map(|n| (n % 251) as u8).collect();
        let got = thread::scope(|scope| {
            scope.spawn(|| {
                for piece in text.chunks(1000) {
                    assert!(ahead.wait_for_room(NEVER, || unreachable!()));
                    ahead.push(piece);
                }
            });
            let mut got = Vec::new();
            while got.len() < text.len() {
                got.extend(ahead.take().unwrap());
                assert!(ahead.lock().bytes.len() < LIMIT + 1000, "bounded");
            }
            got
        });
        assert!(got == text);
    }

    #[test]
    fn a_full_queue_holds_the_reader_until_the_guest_reads_or_is_gone() {
        let ahead = TypedAhead::default();
        ahead.push(&vec![b'x'; LIMIT - 1]);
        assert!(ahead.wait_for_room(NEVER, || unreachable!()));
        ahead.push(b"the last read may go beyond");
        thread::scope(|scope| {
            let (told, stuck) = mpsc::channel();
            let reader = scope.spawn(|| ahead.wait_for_room(SOON, move || told.send(()).unwrap()));
            stuck.recv().unwrap();
            assert!(!reader.is_finished());
            ahead.take().unwrap();
            assert!(reader.join().unwrap());
        });
        ahead.push(&[b'x'; PIECE]);
        thread::scope(|scope| {
            let (told, stuck) = mpsc::channel();
            let reader = scope.spawn(|| ahead.wait_for_room(SOON, move || told.send(()).unwrap()));
            stuck.recv().unwrap();
            ahead.close();
            assert!(!reader.join().unwrap());
        });
        assert_eq!(ahead.take(), None);
    }
}

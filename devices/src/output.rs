//! Console output: from a device register to a host file, in batches, on a thread of its own.
//!
//! 1. A device pushes bytes; the writer thread takes all there are and writes them at once. A newline or a full
//!    batch wakes it, anything else (a prompt) is written after [`LINGER`].
//! 2. A slow sink makes the vCPU wait, as a slow line would, once [`CAPACITY`] bytes are queued: nothing is lost
//!    and host memory is bounded. [`OutputQueue::close`] ends such waits, so that a machine can always be stopped.
//! 3. A sink that fails is not touched again. Later output is dropped and the error stays for
//!    [`OutputQueue::error`].

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::util::lock;

/// Bytes queued at most; a vCPU that pushes more waits.
pub const CAPACITY: usize = 64 << 10;
/// How long output without a newline may stay in the queue.
pub const LINGER: Duration = Duration::from_millis(3);
/// Bytes that are written without waiting for a newline.
const BATCH: usize = 4 << 10;
/// How long a drop of the queue waits for a sink that does not take what is left.
const DROP_PATIENCE: Duration = Duration::from_millis(500);
/// How often a sink that reports `WouldBlock` is tried again.
const RETRY: Duration = Duration::from_millis(1);

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    /// The writer holds bytes it has taken and not yet written.
    writing: bool,
    /// Somebody wants the bytes out now.
    urgent: bool,
    closed: bool,
    error: Option<Arc<io::Error>>,
    dropped: u64,
}

impl Queue {
    fn dead(&self) -> bool {
        self.closed || self.error.is_some()
    }
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// For the writer: there is something to do.
    work: Condvar,
    /// For pushers and flushers: the writer has taken or written something.
    room: Condvar,
}

/// A bounded queue of output bytes with a thread that writes them. Shared by the devices that write to the sink.
pub struct OutputQueue {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for OutputQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = lock(&self.shared.queue);
        f.debug_struct("OutputQueue")
            .field("queued", &queue.bytes.len())
            .field("dropped", &queue.dropped)
            .field("closed", &queue.closed)
            .field("error", &queue.error)
            .finish_non_exhaustive()
    }
}

impl OutputQueue {
    /// Starts the writer thread for `sink`. A blocking sink is best; one that reports `WouldBlock` is tried again
    /// every millisecond.
    ///
    /// # Errors
    /// The host has no thread to give.
    pub fn new(sink: impl Write + Send + 'static) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared::default());
        let writer = thread::Builder::new().name("console-out".into()).spawn({
            let shared = shared.clone();
            move || write_loop(&shared, sink)
        })?;
        Ok(Arc::new(Self { shared, writer: Mutex::new(Some(writer)) }))
    }

    /// Queues one byte. Waits while the queue is full; drops the byte once the sink has failed or the queue was
    /// closed.
    pub fn push(&self, byte: u8) {
        let mut queue = lock(&self.shared.queue);
        while queue.bytes.len() >= CAPACITY && !queue.dead() {
            queue = self.shared.room.wait(queue).unwrap_or_else(|e| e.into_inner());
        }
        if queue.dead() {
            queue.dropped = queue.dropped.saturating_add(1);
            return;
        }
        queue.bytes.push(byte);
        let len = queue.bytes.len();
        if len == 1 || byte == b'\n' || len == BATCH {
            queue.urgent |= byte == b'\n' || len == BATCH;
            self.shared.work.notify_one();
        }
    }

    /// Waits until everything queued has reached the sink, at most `patience`. Returns whether it has; true also
    /// if the sink has failed, since nothing more can be done.
    pub fn flush(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let mut queue = lock(&self.shared.queue);
        queue.urgent = true;
        self.shared.work.notify_one();
        loop {
            if queue.error.is_some() || (queue.bytes.is_empty() && !queue.writing) {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            queue = self.shared.room.wait_timeout(queue, left).unwrap_or_else(|e| e.into_inner()).0;
        }
    }

    /// Accepts no more; wakes every vCPU that waits for room. What is queued is still written.
    pub fn close(&self) {
        lock(&self.shared.queue).closed = true;
        self.shared.work.notify_one();
        self.shared.room.notify_all();
    }

    /// The error that ended the output, if one did.
    pub fn error(&self) -> Option<Arc<io::Error>> {
        lock(&self.shared.queue).error.clone()
    }

    /// Bytes dropped since the output ended.
    pub fn dropped(&self) -> u64 {
        lock(&self.shared.queue).dropped
    }
}

impl Drop for OutputQueue {
    fn drop(&mut self) {
        self.close();
        // A sink that blocks for ever keeps its thread; it must not keep the process.
        if self.flush(DROP_PATIENCE)
            && let Some(writer) = lock(&self.writer).take()
        {
            let _ = writer.join();
        }
    }
}

fn write_loop(shared: &Shared, mut sink: impl Write) {
    let mut batch = Vec::new();
    while take_batch(shared, &mut batch) {
        let result = write_all(shared, &mut sink, &batch);
        let mut queue = lock(&shared.queue);
        queue.writing = false;
        if let Err(error) = result {
            queue.dropped = queue.dropped.saturating_add(queue.bytes.len() as u64);
            queue.bytes = Vec::new();
            queue.error = Some(Arc::new(error));
        }
        let dead = queue.error.is_some();
        drop(queue);
        shared.room.notify_all();
        if dead {
            return;
        }
    }
}

/// Waits for output worth writing and moves it to `batch`. False: closed and all written.
fn take_batch(shared: &Shared, batch: &mut Vec<u8>) -> bool {
    batch.clear();
    let mut queue = lock(&shared.queue);
    while queue.bytes.is_empty() {
        if queue.closed {
            return false;
        }
        queue.urgent = false;
        queue = shared.work.wait(queue).unwrap_or_else(|e| e.into_inner());
    }
    let end = Instant::now() + LINGER;
    while !queue.urgent && !queue.closed {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        queue = shared.work.wait_timeout(queue, left).unwrap_or_else(|e| e.into_inner()).0;
    }
    std::mem::swap(&mut queue.bytes, batch);
    queue.urgent = false;
    queue.writing = true;
    drop(queue);
    shared.room.notify_all();
    true
}

fn write_all(shared: &Shared, sink: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    let mut stalled = None;
    while !bytes.is_empty() {
        match sink.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                bytes = bytes.get(n..).unwrap_or_default();
                stalled = None;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                // Closing bounds the wait, so that this thread ends with its queue.
                let since = *stalled.get_or_insert_with(Instant::now);
                if lock(&shared.queue).closed && since.elapsed() > DROP_PATIENCE {
                    return Err(e);
                }
                thread::sleep(RETRY);
            }
            Err(e) => return Err(e),
        }
    }
    match sink.flush() {
        Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// A sink whose bytes the test can look at.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct SharedSink(Arc<Mutex<Vec<u8>>>);

    impl SharedSink {
        pub(crate) fn bytes(&self) -> Vec<u8> {
            lock(&self.0).clone()
        }
    }

    impl Write for SharedSink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            lock(&self.0).extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Counts its calls and answers each with the next of `answers`, the last one for ever.
    struct Script(mpsc::Sender<usize>, Vec<io::ErrorKind>);

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.len()).ok();
            if self.1.is_empty() { Ok(1) } else { Err(self.1.remove(0).into()) }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_prompt_appears_without_newline_or_flush() {
        let sink = SharedSink::default();
        let queue = OutputQueue::new(sink.clone()).unwrap();
        b"login: ".iter().for_each(|&b| queue.push(b));
        let end = Instant::now() + LONG;
        while sink.bytes() != b"login: " {
            assert!(Instant::now() < end, "prompt never came");
            thread::sleep(RETRY);
        }
    }

    #[test]
    fn order_is_kept_and_drop_writes_the_rest() {
        let sink = SharedSink::default();
        let queue = OutputQueue::new(sink.clone()).unwrap();
        let text: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        text.iter().for_each(|&b| queue.push(b));
        drop(queue);
        assert!(sink.bytes() == text);
    }

    #[test]
    fn a_failed_sink_is_touched_once() {
        let (tx, rx) = mpsc::channel();
        let queue = OutputQueue::new(Script(tx, vec![io::ErrorKind::BrokenPipe; 100])).unwrap();
        queue.push(b'\n');
        assert!(queue.flush(LONG));
        (0..1000).for_each(|_| queue.push(b'\n'));
        assert!(queue.flush(LONG));
        assert_eq!(queue.error().unwrap().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(queue.dropped(), 1000);
        drop(queue);
        assert_eq!(rx.iter().count(), 1);
    }

    #[test]
    fn interrupted_and_would_block_are_tried_again() {
        let (tx, rx) = mpsc::channel();
        let kinds = vec![io::ErrorKind::Interrupted, io::ErrorKind::WouldBlock];
        let queue = OutputQueue::new(Script(tx, kinds)).unwrap();
        queue.push(b'x');
        assert!(queue.flush(LONG));
        assert!(queue.error().is_none());
        drop(queue);
        assert_eq!(rx.iter().collect::<Vec<_>>(), [1, 1, 1]);
    }

    /// A sink that takes nothing until it is released.
    struct Gate(mpsc::Receiver<()>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().ok();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_queue_holds_the_pusher_until_closed() {
        let (release, gate) = mpsc::channel();
        let queue = OutputQueue::new(Gate(gate)).unwrap();
        let (done, finished) = mpsc::channel();
        let pusher = thread::spawn({
            let queue = queue.clone();
            move || {
                // One batch goes to the writer, then the queue fills.
                (0..2 * CAPACITY + BATCH).for_each(|_| queue.push(b'x'));
                done.send(()).ok();
            }
        });
        assert!(finished.recv_timeout(Duration::from_millis(50)).is_err(), "the pusher must wait");
        assert!(!queue.flush(Duration::from_millis(10)));
        assert_eq!(queue.dropped(), 0);
        queue.close();
        finished.recv_timeout(LONG).expect("closing frees the pusher");
        pusher.join().unwrap();
        assert!(queue.dropped() > 0);
        drop(release);
    }
}

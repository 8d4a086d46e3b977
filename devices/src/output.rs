//! Console output: from a device register to a host file, in batches, on a thread of its own.
//!
//! 1. A device pushes bytes; the writer thread takes all there are and writes them at once. A newline or a full
//!    batch wakes it, anything else (a prompt) is written after [`LINGER`].
//! 2. A slow sink makes the vCPU wait, as a slow line would, once [`CAPACITY`] bytes are queued: nothing is lost
//!    and host memory is bounded. A kick ends the wait ([`crate::waiting`]), so that a sink which takes nothing
//!    keeps nobody from pausing, saving or stopping the machine; so does [`OutputQueue::close`].
//! 3. A sink that fails is not touched again. Later output is dropped and the error stays for
//!    [`OutputQueue::error`].
//! 4. Saved are the bytes that the sink has not taken, those that the writer thread has in hand among them.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use state::{RestoreError, Section, StateUnit};

use crate::saved::output::SavedOutput;
use crate::util::lock;
use crate::waiting::{WaitList, Waiter, wait_for};

/// Bytes queued without waiting; a vCPU that pushes more waits behind the access that does.
pub const CAPACITY: usize = 64 << 10;
/// How long output without a newline may stay in the queue.
pub const LINGER: Duration = Duration::from_millis(3);
/// Bytes that are written without waiting for a newline; and at once: a pipe takes so many wholly or not at all (PIPE_BUF,
/// pipe(7)), so that it is known which ones it has taken, even while it blocks.
const BATCH: usize = 4 << 10;
/// How long a drop of the queue waits for a sink that does not take what is left.
const DROP_PATIENCE: Duration = Duration::from_millis(500);
/// How often a sink that reports `WouldBlock` is tried again.
const RETRY: Duration = Duration::from_millis(1);

/// What the writer has taken out of the queue.
#[derive(Default)]
struct Batch {
    bytes: Arc<Vec<u8>>,
    /// Bytes that the sink has taken.
    written: usize,
}

impl Batch {
    fn rest(&self) -> &[u8] {
        self.bytes.get(self.written..).unwrap_or_default()
    }
}

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    /// What is being written.
    batch: Batch,
    /// The writer has not told yet that it is done with the batch.
    writing: bool,
    /// vCPUs that wait for room.
    waiting: WaitList,
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
    /// For flushers: the writer has written something.
    written: Condvar,
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
    /// Starts the writer thread, called `name`, for `sink`. A blocking sink is best; one that reports `WouldBlock` is tried again
    /// every millisecond.
    ///
    /// # Errors
    /// The host has no thread to give.
    pub fn new(name: impl Into<String>, sink: impl Write + Send + 'static) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared::default());
        let writer = thread::Builder::new().name(name.into()).spawn({
            let shared = shared.clone();
            move || write_loop(&shared, sink)
        })?;
        Ok(Arc::new(Self { shared, writer: Mutex::new(Some(writer)) }))
    }

    /// Queues one byte, over [`CAPACITY`] if need be: the caller has to [wait for room](Self::wait_for_room) behind the
    /// access that made it. Drops the byte once the sink has failed or the queue was closed.
    pub fn push(&self, byte: u8) {
        let mut queue = lock(&self.shared.queue);
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

    /// Queues all of `bytes` if they fit, none of them else; whether they did.
    pub fn offer(&self, bytes: &[u8]) -> bool {
        let mut queue = lock(&self.shared.queue);
        if queue.dead() || queue.bytes.len() + bytes.len() > CAPACITY {
            queue.dropped = queue.dropped.saturating_add(bytes.len() as u64);
            return false;
        }
        queue.bytes.extend_from_slice(bytes);
        queue.urgent = true;
        self.shared.work.notify_one();
        true
    }

    /// Waits until fewer than [`CAPACITY`] bytes are queued, or until the vCPU behind `waiter` is kicked.
    pub fn wait_for_room(&self, waiter: &Arc<Waiter>) {
        let ready = |queue: &Queue| queue.bytes.len() < CAPACITY || queue.dead();
        wait_for(&self.shared.queue, waiter, ready, |queue| &mut queue.waiting);
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
            queue = self.shared.written.wait_timeout(queue, left).unwrap_or_else(|e| e.into_inner()).0;
        }
    }

    /// Accepts no more; wakes every vCPU that waits for room. What is queued is still written.
    pub fn close(&self) {
        let mut queue = lock(&self.shared.queue);
        queue.closed = true;
        queue.waiting.wake();
        self.shared.work.notify_one();
    }

    /// The error that ended the output, if one did.
    pub fn error(&self) -> Option<Arc<io::Error>> {
        lock(&self.shared.queue).error.clone()
    }

    /// Bytes dropped: since the output ended, or because those [offered](Self::offer) did not fit.
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

/// A queue as part of a machine: what the sink has not taken goes along with the machine's state.
#[derive(Debug)]
pub struct OutputUnit {
    name: &'static str,
    queue: Arc<OutputQueue>,
}

impl OutputUnit {
    /// The unit called `name` of `queue`.
    pub fn new(name: &'static str, queue: Arc<OutputQueue>) -> Arc<Self> {
        Arc::new(Self { name, queue })
    }
}

impl StateUnit for OutputUnit {
    fn name(&self) -> &str {
        self.name
    }

    fn save(&self) -> Section {
        let queue = lock(&self.queue.shared.queue);
        Section::of(&SavedOutput { bytes: [queue.batch.rest(), &queue.bytes].concat() })
    }

    /// What the writer has in hand is written all the same: it is not queued once more.
    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        let bytes = section.open::<SavedOutput>()?.checked()?;
        let mut queue = lock(&self.queue.shared.queue);
        let in_hand = bytes.starts_with(queue.batch.rest()).then_some(queue.batch.rest().len());
        queue.bytes = bytes.get(in_hand.unwrap_or(0)..).unwrap_or_default().to_vec();
        queue.urgent = true;
        queue.waiting.wake();
        self.queue.shared.work.notify_one();
        Ok(())
    }

    /// What was sent is on the line, and stays there.
    fn reset(&self) {}
}

fn write_loop(shared: &Shared, mut sink: impl Write) {
    while let Some(batch) = take_batch(shared) {
        let result = write_all(shared, &mut sink, &batch);
        let mut queue = lock(&shared.queue);
        queue.writing = false;
        queue.batch = Batch::default();
        if let Err(error) = result {
            queue.dropped = queue.dropped.saturating_add(queue.bytes.len() as u64);
            queue.bytes = Vec::new();
            queue.error = Some(Arc::new(error));
            queue.waiting.wake();
        }
        let dead = queue.error.is_some();
        drop(queue);
        shared.written.notify_all();
        if dead {
            return;
        }
    }
}

/// Waits for output worth writing and takes it out of the queue. `None`: closed and all written.
fn take_batch(shared: &Shared) -> Option<Arc<Vec<u8>>> {
    let mut queue = lock(&shared.queue);
    while queue.bytes.is_empty() {
        if queue.closed {
            return None;
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
    let bytes = Arc::new(std::mem::take(&mut queue.bytes));
    queue.batch = Batch { bytes: bytes.clone(), written: 0 };
    queue.urgent = false;
    queue.writing = true;
    queue.waiting.wake();
    Some(bytes)
}

fn write_all(shared: &Shared, sink: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    let mut stalled = None;
    while !bytes.is_empty() {
        match sink.write(bytes.get(..BATCH).unwrap_or(bytes)) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                bytes = bytes.get(n..).unwrap_or_default();
                lock(&shared.queue).batch.written += n;
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
        let queue = OutputQueue::new("out", sink.clone()).unwrap();
        b"login: ".iter().for_each(|&b| queue.push(b));
        let end = Instant::now() + LONG;
        while sink.bytes() != b"login: " {
            assert!(Instant::now() < end, "prompt never came");
            thread::sleep(RETRY);
        }
    }

    /// Another one, which passes on what it takes.
    struct Gated(mpsc::Receiver<()>, SharedSink);

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().ok();
            self.1.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn order_is_kept_and_drop_writes_the_rest() {
        let sink = SharedSink::default();
        let queue = OutputQueue::new("out", sink.clone()).unwrap();
        let text: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        text.iter().for_each(|&b| queue.push(b));
        drop(queue);
        assert!(sink.bytes() == text);
    }

    #[test]
    fn a_failed_sink_is_touched_once() {
        let (tx, rx) = mpsc::channel();
        let queue = OutputQueue::new("out", Script(tx, vec![io::ErrorKind::BrokenPipe; 100])).unwrap();
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
        let queue = OutputQueue::new("out", Script(tx, kinds)).unwrap();
        queue.push(b'x');
        assert!(queue.flush(LONG));
        assert!(queue.error().is_none());
        drop(queue);
        assert_eq!(rx.iter().collect::<Vec<_>>(), [1, 1, 1]);
    }

    fn unit(queue: &Arc<OutputQueue>) -> Arc<OutputUnit> {
        OutputUnit::new("output", queue.clone())
    }

    /// The bytes in the saved state.
    fn saved(queue: &Arc<OutputQueue>) -> Vec<u8> {
        unit(queue).save().open::<SavedOutput>().unwrap().bytes
    }

    /// A unit whose sink takes nothing.
    struct Blocked {
        /// Dropped first, so that the writer ends.
        _release: mpsc::Sender<()>,
        unit: Arc<OutputUnit>,
    }

    impl state::testing::UnitRig for Blocked {
        const RESET_FORGETS: bool = false; // the bytes are on the line

        fn new() -> Self {
            let (_release, gate) = mpsc::channel();
            Self { _release, unit: unit(&OutputQueue::new("out", Gate(gate)).unwrap()) }
        }
        fn another(&self) -> Self {
            Self::new()
        }
        fn unit(&self) -> &dyn StateUnit {
            &*self.unit
        }
        fn disturb(&self, seed: u64) {
            (0..seed).for_each(|n| self.unit.queue.push((seed + n) as u8));
        }
    }

    state::unit_tests!(Blocked);

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

    fn text(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i % 251) as u8).collect()
    }

    /// A thread that pushes `len` bytes as a vCPU does, in accesses of 4 bytes, and leaves the guest when it finds a kick. It
    /// tells when it is done.
    fn pusher(queue: &Arc<OutputQueue>, waiter: &Arc<Waiter>, len: usize) -> (Kick, mpsc::Receiver<()>) {
        let ((done, finished), (kick, kicks)) = (mpsc::channel(), mpsc::channel());
        thread::spawn({
            let (queue, waiter) = (queue.clone(), waiter.clone());
            move || {
                for access in text(len).chunks(4) {
                    access.iter().for_each(|&b| queue.push(b));
                    queue.wait_for_room(&waiter);
                    if kicks.try_recv().is_ok() {
                        waiter.rearm();
                    }
                }
                done.send(()).ok();
            }
        });
        (kick, finished)
    }

    type Kick = mpsc::Sender<()>;

    /// Gives the writer a newline, which keeps it busy until its sink goes on.
    fn occupy(queue: &OutputQueue) {
        queue.push(b'\n');
        let end = Instant::now() + LONG;
        while !lock(&queue.shared.queue).writing {
            assert!(Instant::now() < end);
            thread::yield_now();
        }
    }

    /// Waits until somebody waits for room; how many bytes are queued then.
    fn full(queue: &OutputQueue) -> usize {
        let end = Instant::now() + LONG;
        loop {
            let queue = lock(&queue.shared.queue);
            if !queue.waiting.is_empty() {
                return queue.bytes.len();
            }
            drop(queue);
            assert!(Instant::now() < end, "nobody waits");
            thread::yield_now();
        }
    }

    #[test]
    fn a_full_queue_holds_the_pusher_until_closed() {
        let (release, gate) = mpsc::channel();
        let queue = OutputQueue::new("out", Gate(gate)).unwrap();
        occupy(&queue);
        let (_, finished) = pusher(&queue, &Arc::default(), 2 * CAPACITY);
        assert_eq!(full(&queue), CAPACITY);
        assert!(finished.try_recv().is_err(), "the pusher must wait");
        assert!(!queue.flush(Duration::from_millis(10)));
        assert_eq!(queue.dropped(), 0);
        queue.close();
        finished.recv_timeout(LONG).expect("closing frees the pusher");
        assert!(queue.dropped() > 0);
        drop(release);
    }

    /// A kick ends the wait; the bytes of the access are in the queue, over its limit, and in the saved state. Nothing is
    /// lost, doubled or out of order when the sink goes on.
    #[test]
    fn a_kick_lets_one_access_over_the_limit() {
        let (release, gate) = mpsc::channel();
        let sink = SharedSink::default();
        let queue = OutputQueue::new("out", Gated(gate, sink.clone())).unwrap();
        let waiter = Arc::new(Waiter::default());
        let len = 3 * CAPACITY;
        occupy(&queue);
        let (kick, finished) = pusher(&queue, &waiter, len);
        let before = full(&queue);
        assert_eq!(before, CAPACITY);
        for accesses in 1..=5 {
            waiter.kick(|| kick.send(()).unwrap());
            let end = Instant::now() + LONG;
            // The vCPU may not have noticed yet.
            while full(&queue) < before + 4 * accesses {
                assert!(Instant::now() < end);
            }
            assert_eq!(full(&queue), before + 4 * accesses);
        }
        let section = unit(&queue).save();
        let bytes = saved(&queue);
        let text = [b"\n", text(len).as_slice()].concat();
        assert!(sink.bytes().is_empty());
        assert!(bytes.len() > CAPACITY && bytes == text[..bytes.len()]);
        (0..text.len()).for_each(|_| release.send(()).unwrap());
        finished.recv_timeout(LONG).expect("room frees the pusher");
        assert!(queue.flush(LONG));
        assert!(sink.bytes() == text);
        assert!(saved(&queue).is_empty());

        let sink = SharedSink::default();
        let other = OutputQueue::new("out", sink.clone()).unwrap();
        unit(&other).restore(&section).unwrap();
        assert!(other.flush(LONG));
        assert!(sink.bytes() == bytes);
    }

    /// What a sink has taken of a batch is not saved.
    #[test]
    fn saved_is_what_the_sink_has_not_taken() {
        let (release, gate) = mpsc::channel();
        let sink = SharedSink::default();
        let queue = OutputQueue::new("out", Gated(gate, sink.clone())).unwrap();
        let (_, finished) = pusher(&queue, &Arc::default(), 3 * BATCH);
        finished.recv_timeout(LONG).unwrap();
        release.send(()).unwrap();
        let end = Instant::now() + LONG;
        while saved(&queue).len() == 3 * BATCH {
            assert!(Instant::now() < end);
            thread::yield_now();
        }
        let taken = sink.bytes().len();
        assert_eq!((taken > 0, saved(&queue).len() + taken), (true, 3 * BATCH));
        (0..3 * BATCH).for_each(|_| release.send(()).unwrap());
        assert!(queue.flush(LONG));
    }

    #[test]
    fn an_offer_that_does_not_fit_is_dropped_as_a_whole() {
        let (release, gate) = mpsc::channel();
        let queue = OutputQueue::new("out", Gate(gate)).unwrap();
        assert!(queue.offer(&[b'x'; CAPACITY]) && !queue.offer(&[b'y'; CAPACITY + 1]));
        assert_eq!(queue.dropped(), CAPACITY as u64 + 1);
        drop(release);
    }
}

//! Frames, and the two bounded queues between the device and the network's thread.
//!
//! Both sides can wait without a runtime of their own: the futures here register a waker and nothing else, so any
//! executor runs them. The guest's frames wait in `to_net` until the thread takes them; if it falls behind, the sender
//! waits. Frames for the guest wait in `to_guest`; if the guest falls behind, TCP's windows close from there back to the
//! peer, and what may be lost (UDP, ICMP) is dropped.

use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// The longest frame: Ethernet header and an IP packet of 65535 bytes, as segmentation offload makes them.
pub const MAX_FRAME: usize = ETHERNET_HEADER + 65535;
pub(crate) const ETHERNET_HEADER: usize = 14;
/// Bounds of each queue.
const MAX_FRAMES: usize = 1024;
const MAX_BYTES: usize = 4 << 20;

/// An Ethernet frame without its check sequence, and what a virtio-net header says of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frame {
    /// Destination, source, EtherType, payload.
    pub bytes: Vec<u8>,
    /// The TCP or UDP checksum is the pseudo-header's only. From the guest: it is not verified. To the guest: only if
    /// [`Offloads::checksum`] was given.
    pub checksum: Option<PartialChecksum>,
    /// The frame is a TCP segment over IPv4 to be cut in several. To the guest: only if [`Offloads::tcp4`] was given.
    pub segment: Option<Segment>,
}

/// Where a checksum has to be completed (virtio 1.2, 5.1.6.2: `csum_start`, `csum_offset`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Bytes of the frame before the transport header.
    pub start: u16,
    /// Where the checksum lies in the transport header.
    pub offset: u16,
}

/// How a frame is to be cut (virtio 1.2, 5.1.6.2: `gso_size`, `hdr_len`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Bytes of payload in each segment.
    pub size: u16,
    /// Bytes of headers, Ethernet's included.
    pub header: u16,
}

/// What the guest's driver takes (virtio's `VIRTIO_NET_F_GUEST_CSUM` and `_GUEST_TSO4`). What it sends needs no
/// agreement: frames of any length up to [`MAX_FRAME`] and partial checksums are always taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Frames may have partial checksums.
    pub checksum: bool,
    /// TCP segments over IPv4 may be longer than the MTU. Without `checksum` it has no effect.
    pub tcp4: bool,
}

/// The network is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the user network has ended")]
pub struct Closed;

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Frame>,
    bytes: usize,
    /// Who waits: for room in `to_net`, for frames in `to_guest`.
    waker: Option<Waker>,
}

impl Queue {
    fn has_room(&self) -> bool {
        self.frames.len() < MAX_FRAMES && self.bytes < MAX_BYTES
    }

    fn push(&mut self, frame: Frame) {
        self.bytes += frame.bytes.len();
        self.frames.push_back(frame);
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

#[derive(Debug, Default)]
struct State {
    to_net: Queue,
    to_guest: Queue,
    /// The thread waits in epoll: frames have to wake it.
    asleep: bool,
    /// The thread has frames that `to_guest` had no room for.
    wants_room: bool,
    /// The guest's driver has started anew.
    reset: Option<Offloads>,
    stop: bool,
    closed: bool,
}

/// What device and thread share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Wakes the thread.
    pub(crate) bell: OwnedFd,
}

/// What the thread finds when it looks.
#[derive(Debug, Default)]
pub(crate) struct News {
    pub(crate) reset: Option<Offloads>,
    pub(crate) stop: bool,
}

impl Shared {
    pub(crate) fn new() -> std::io::Result<Arc<Self>> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self { state: Mutex::default(), bell }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A counter at its limit has rung already, so no error matters.
    fn ring(&self) {
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    pub(crate) fn stop(&self) {
        self.lock().stop = true;
        self.ring();
    }

    pub(crate) fn reset(&self, offloads: Offloads) {
        let mut guard = self.lock();
        let state = &mut *guard;
        // Frames of the driver before are not the new one's.
        for queue in [&mut state.to_guest, &mut state.to_net] {
            queue.frames.clear();
            queue.bytes = 0;
        }
        state.to_net.wake();
        state.reset = Some(offloads);
        self.ring();
    }

    /// The thread has ended: nobody may wait for it any more.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.to_net.wake();
        state.to_guest.wake();
    }

    /// Takes all frames of the guest's.
    pub(crate) fn take(&self, into: &mut VecDeque<Frame>) -> News {
        let mut state = self.lock();
        state.asleep = false;
        std::mem::swap(into, &mut state.to_net.frames);
        state.to_net.bytes = 0;
        state.to_net.wake();
        News { reset: state.reset.take(), stop: state.stop }
    }

    /// Moves frames to the guest's queue as far as there is room; says whether there was for all.
    pub(crate) fn put(&self, frames: &mut VecDeque<Frame>) -> bool {
        let mut state = self.lock();
        // They are for the driver before.
        if state.reset.is_some() {
            frames.clear();
        }
        let mut moved = false;
        while state.to_guest.has_room()
            && let Some(frame) = frames.pop_front()
        {
            state.to_guest.push(frame);
            moved = true;
        }
        if moved {
            state.to_guest.wake();
        }
        state.wants_room = !frames.is_empty();
        frames.is_empty()
    }

    /// Whether the thread may wait: from now on news ring the bell.
    pub(crate) fn may_sleep(&self) -> bool {
        let mut state = self.lock();
        let news = !state.to_net.frames.is_empty() || state.reset.is_some() || state.stop;
        let room = state.wants_room && state.to_guest.has_room();
        state.asleep = !news && !room;
        state.asleep
    }
}

/// Where the device puts the guest's frames. One task at a time can wait.
#[derive(Debug)]
pub struct FrameSender(pub(crate) Arc<Shared>);

impl FrameSender {
    /// Moves frames from the front of `batch` as far as there is room, and returns how many. Frames longer than
    /// [`MAX_FRAME`] count as moved and are dropped.
    ///
    /// # Errors
    /// When the network has ended.
    pub fn try_send(&self, batch: &mut VecDeque<Frame>) -> Result<usize, Closed> {
        let mut state = self.0.lock();
        if state.closed {
            return Err(Closed);
        }
        let before = batch.len();
        while state.to_net.has_room()
            && let Some(frame) = batch.pop_front()
        {
            if frame.bytes.len() <= MAX_FRAME {
                state.to_net.push(frame);
            }
        }
        if std::mem::take(&mut state.asleep) {
            drop(state);
            self.0.ring();
        }
        Ok(before - batch.len())
    }

    /// Waits for room for at least one frame.
    ///
    /// # Errors
    /// When the network has ended.
    pub async fn room(&self) -> Result<(), Closed> {
        poll_fn(|context| {
            let mut state = self.0.lock();
            if state.closed {
                return Poll::Ready(Err(Closed));
            }
            if state.to_net.has_room() {
                return Poll::Ready(Ok(()));
            }
            register(&mut state.to_net.waker, context);
            Poll::Pending
        })
        .await
    }

    /// Moves all frames of `batch`, and waits for room as often as needed. Cancelled, it leaves what was not moved.
    ///
    /// # Errors
    /// When the network has ended.
    pub async fn send(&self, batch: &mut VecDeque<Frame>) -> Result<(), Closed> {
        while !batch.is_empty() {
            self.room().await?;
            self.try_send(batch)?;
        }
        Ok(())
    }
}

/// Where the device finds frames for the guest. One task at a time can wait.
#[derive(Debug)]
pub struct FrameReceiver(pub(crate) Arc<Shared>);

impl FrameReceiver {
    /// Moves up to `limit` frames to the end of `batch`, and returns how many.
    ///
    /// # Errors
    /// When the network has ended and nothing is left.
    pub fn try_receive(&self, batch: &mut VecDeque<Frame>, limit: usize) -> Result<usize, Closed> {
        let mut state = self.0.lock();
        let count = limit.min(state.to_guest.frames.len());
        if count == 0 && state.closed {
            return Err(Closed);
        }
        let first = batch.len();
        batch.extend(state.to_guest.frames.drain(..count));
        let moved: usize = batch.range(first..).map(|frame| frame.bytes.len()).sum();
        state.to_guest.bytes = state.to_guest.bytes.saturating_sub(moved);
        // Half a queue of room before the thread is woken: not once for each frame.
        let half = state.to_guest.frames.len() <= MAX_FRAMES / 2 && state.to_guest.bytes <= MAX_BYTES / 2;
        if state.wants_room && state.asleep && half {
            state.asleep = false;
            drop(state);
            self.0.ring();
        }
        Ok(count)
    }

    /// Waits for at least one frame and moves up to `limit` to the end of `batch`.
    ///
    /// # Errors
    /// When the network has ended and nothing is left.
    pub async fn receive(&self, batch: &mut VecDeque<Frame>, limit: usize) -> Result<usize, Closed> {
        poll_fn(|context| {
            loop {
                let count = self.try_receive(batch, limit.max(1))?;
                if count > 0 {
                    return Poll::Ready(Ok(count));
                }
                let mut state = self.0.lock();
                if state.to_guest.frames.is_empty() && !state.closed {
                    register(&mut state.to_guest.waker, context);
                    return Poll::Pending;
                }
            }
        })
        .await
    }
}

fn register(slot: &mut Option<Waker>, context: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(context.waker()),
        None => *slot = Some(context.waker().clone()),
    }
}

//! From the network to the guest.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use backends::net::{Frame, HEADER, Offloads, PendingFrames, PendingLink, emit_header};

use super::Cable;
use crate::virtio::buffers::Buffers;
use crate::virtio::{Memory, QueueError, Turn, VirtQueue, VirtioInterrupt};

/// Frames in a batch, and in a turn.
const BATCH: usize = 64;
const TURN: usize = 256;

/// Puts frames into the driver's buffers. Nothing is asked of the back end for which there is no buffer.
pub(super) struct Receiver {
    cable: Arc<Cable>,
    accepted: Offloads,
    /// A frame may lie in several buffers (VIRTIO_NET_F_MRG_RXBUF).
    merge: bool,
    receiving: Option<PendingFrames>,
    /// Received, at most a batch, and not in a buffer yet.
    waiting: VecDeque<Frame>,
    link: PendingLink,
    waker: Waker,
}

/// What became of a frame.
enum Placed {
    /// It is with the driver, or can never be.
    Done,
    /// It waits for buffers, for which the driver rings.
    Waits,
}

impl Receiver {
    /// One whose driver takes what is `accepted`; `waker` rings the queue's doorbell.
    pub(super) fn new(cable: Arc<Cable>, accepted: Offloads, merge: bool, waker: Waker) -> Self {
        let link = cable.backend.clone().link_changing();
        Self { cable, accepted, merge, receiving: None, waiting: VecDeque::new(), link, waker }
    }

    /// One turn. Without frames the back end rings the queue's doorbell when there are some, without buffers the driver does.
    pub(super) fn serve(
        &mut self,
        queue: &VirtQueue,
        memory: &Memory,
        interrupt: &VirtioInterrupt,
    ) -> Result<Turn, QueueError> {
        let waker = self.waker.clone();
        let mut context = Context::from_waker(&waker);
        while self.link.as_mut().poll(&mut context).is_ready() {
            self.link = self.cable.backend.clone().link_changing();
            interrupt.config_changed();
        }
        queue.fill(memory, interrupt, |buffers| {
            for _ in 0..TURN {
                if let Some(frame) = self.waiting.front() {
                    match self.place(frame, buffers, memory)? {
                        Placed::Done => drop(self.waiting.pop_front()),
                        Placed::Waits => return Ok(Turn::Idle),
                    }
                    continue;
                }
                let room = buffers.len()?;
                if room == 0 {
                    return Ok(if buffers.wait()? { Turn::More } else { Turn::Idle });
                }
                if !self.receive(room.min(BATCH), &mut context, interrupt) {
                    return Ok(Turn::Idle);
                }
            }
            Ok(Turn::More)
        })
    }

    /// Asks the back end for frames, at most `max`; false: there are none now.
    fn receive(&mut self, max: usize, context: &mut Context<'_>, interrupt: &VirtioInterrupt) -> bool {
        if !self.cable.is_whole() {
            return false;
        }
        let receiving = self.receiving.get_or_insert_with(|| self.cable.backend.clone().receiving(max));
        let Poll::Ready((frames, received)) = receiving.as_mut().poll(context) else { return false };
        self.receiving = None;
        self.waiting.extend(frames);
        if received.is_err() {
            self.cable.cut(interrupt);
        }
        true
    }

    /// Puts `frame` into one buffer, or into as many as it takes.
    fn place(
        &self,
        frame: &Frame,
        buffers: &mut Buffers<'_, '_>,
        memory: &Memory,
    ) -> Result<Placed, virtio_queue::Error> {
        let wanted = HEADER + frame.data.len();
        let (mut taken, mut room, mut refused) = (Vec::new(), 0, 0);
        while room < wanted {
            let Some(chain) = buffers.take()? else {
                // All that the driver can lay out may be too small.
                let is_all = taken.len() >= buffers.most();
                if !is_all && buffers.wait()? {
                    continue;
                }
                buffers.put_back(taken.len());
                return Ok(if is_all { Placed::Done } else { Placed::Waits });
            };
            let head = chain.head_index();
            let writer = chain.writer(memory).ok();
            let len = writer.as_ref().map_or(0, |writer| writer.available_bytes());
            if taken.is_empty() && len < HEADER {
                // What cannot have the header is no buffer. A driver that lays out nothing else gets nothing.
                buffers.used(&[(head, 0)])?;
                refused += 1;
                if refused > buffers.most() {
                    return Ok(Placed::Done);
                }
                continue;
            }
            taken.push((head, writer));
            room += len;
            if !self.merge && room < wanted {
                buffers.put_back(1);
                return Ok(Placed::Done);
            }
        }
        let Some(header) = emit_header(&frame.header, taken.len() as u16, self.accepted) else {
            buffers.put_back(taken.len());
            return Ok(Placed::Done);
        };
        let mut rest = frame.data.as_slice();
        let mut used = Vec::with_capacity(taken.len());
        for (n, (head, writer)) in taken.into_iter().enumerate() {
            let mut written = 0;
            if let Some(mut writer) = writer {
                // Its room was asked for before, so that it takes all that it is given.
                if n == 0 {
                    written += writer.write(&header).unwrap_or(0);
                }
                let (now, later) = rest.split_at(writer.available_bytes().min(rest.len()));
                written += writer.write(now).unwrap_or(0);
                rest = later;
            }
            used.push((head, written as u32));
        }
        buffers.used(&used)?;
        Ok(Placed::Done)
    }
}

//! The socket device (virtio 1.2, 5.10): packets between the guest's queues and [`VsockHost`].
//!
//! A restored driver is told that its connections are gone (VIRTIO_VSOCK_EVENT_TRANSPORT_RESET): sockets are not saved. So is every
//! other one that becomes ready, which has none.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};

use backends::vsock::{BUFFER, Header, MAX_DATA, Op, VsockHost};

use super::{
    Activation, Chain, Memory, QueueError, Service, Turn, VirtQueue, VirtioDevice, VirtioInterrupt, Worker,
};
use crate::util::lock;

/// Device type.
const KIND: u16 = 19;
/// The queues: to the driver, from it, events.
const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
/// Descriptors of each.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
/// VIRTIO_VSOCK_F_STREAM.
const STREAM: u64 = 1 << 0;
/// Packets in a turn, each way.
const BUDGET: usize = 32;
/// Bytes of an event; of those there are there is one, number 0.
const EVENT_LEN: usize = 4;

/// The device.
#[derive(Debug)]
pub struct Vsock {
    cid: u32,
    host: Arc<Mutex<VsockHost>>,
    worker: Worker,
}

impl Vsock {
    /// A device in front of `host`, whose thread is called `thread`.
    ///
    /// # Errors
    /// The host has no descriptor.
    pub fn new(thread: impl Into<String>, host: VsockHost) -> io::Result<Arc<Self>> {
        let cid = host.guest_cid();
        Ok(Arc::new(Self { cid, host: Arc::new(Mutex::new(host)), worker: Worker::new(thread)? }))
    }
}

/// Carries packets between a driver that is ready and the host.
#[derive(Debug)]
pub struct Exchange {
    queues: Vec<Arc<VirtQueue>>,
    /// The driver has not been told that it has no connections.
    tell_reset: bool,
    data: Vec<u8>,
}

impl Exchange {
    /// For the queues of an activation.
    pub fn new(queues: Vec<Arc<VirtQueue>>) -> Self {
        Self { queues, tell_reset: true, data: Vec::new() }
    }

    /// Carries what there is, but not all at once.
    ///
    /// # Errors
    /// Rings or indices that cannot be.
    pub fn turn(
        &mut self,
        host: &mut VsockHost,
        memory: &Memory,
        interrupt: &VirtioInterrupt,
    ) -> Result<Turn, QueueError> {
        let [Some(rx), Some(tx), Some(event)] = [RX, TX, EVENT].map(|n| self.queues.get(n)) else {
            return Ok(Turn::Idle);
        };
        host.poll();
        if self.tell_reset {
            let tell_reset = &mut self.tell_reset;
            let tell = |chain: Chain<'_>| {
                std::mem::take(tell_reset).then(|| write(chain, memory, &[&[0; EVENT_LEN]]).unwrap_or(0))
            };
            event.serve_while(memory, interrupt, BUDGET, tell)?;
        }
        let data = &mut self.data;
        let sent = tx.serve_while(memory, interrupt, BUDGET, |chain| {
            host.can_take().then(|| {
                if let Some(header) = read(chain, memory, data) {
                    host.take(&header, data);
                }
                0
            })
        })?;
        let held = !host.can_take();
        let given = rx.serve_while(memory, interrupt, BUDGET, |chain| {
            let room = chain.clone().writer(memory).map_or(0, |writer| writer.available_bytes());
            // A buffer without room for data goes back as it is.
            let Some(room) = room.checked_sub(Header::LEN).filter(|room| *room > 0) else { return Some(0) };
            let header = host.give(room.min(MAX_DATA), data)?;
            Some(write(chain, memory, &[&header.to_bytes(), data]).unwrap_or(0))
        })?;
        let more = sent == Turn::More || given == Turn::More || held && host.can_take();
        Ok(if more { Turn::More } else { Turn::Idle })
    }
}

/// The packet in `chain`; its data replace `data`. `None`: it cannot be.
fn read(chain: Chain<'_>, memory: &Memory, data: &mut Vec<u8>) -> Option<Header> {
    let mut reader = chain.reader(memory).ok()?;
    let mut bytes = [0; Header::LEN];
    reader.read_exact(&mut bytes).ok()?;
    let header = Header::from_bytes(&bytes);
    let len = header.len as usize;
    data.clear();
    // Nobody has credit for more.
    if len > BUFFER as usize || len > reader.available_bytes() {
        return Some(Header { op: Op::Invalid, ..header });
    }
    data.resize(len, 0);
    reader.read_exact(data).ok()?;
    Some(header)
}

/// Writes `parts`, one behind the other; the bytes written. `None`: there is no room.
fn write(chain: Chain<'_>, memory: &Memory, parts: &[&[u8]]) -> Option<u32> {
    let mut writer = chain.writer(memory).ok()?;
    parts.iter().try_for_each(|part| writer.write_all(part)).ok()?;
    Some(writer.bytes_written() as u32)
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> u16 {
        KIND
    }
    fn class(&self) -> u32 {
        // A network controller, of no other kind.
        0x02_8000
    }
    fn features(&self) -> u64 {
        STREAM
    }
    fn queue_sizes(&self) -> Vec<u16> {
        QUEUE_SIZES.to_vec()
    }
    fn config(&self) -> Vec<u8> {
        u64::from(self.cid).to_le_bytes().to_vec()
    }

    fn activate(&self, activation: Activation) {
        let Ok(events) = lock(&self.host).events().try_clone_to_owned() else {
            return activation.interrupt.needs_reset();
        };
        let (host, mut exchange) = (self.host.clone(), Exchange::new(activation.queues.clone()));
        let serve = move |_: &VirtQueue, memory: &Memory, interrupt: &VirtioInterrupt| {
            exchange.turn(&mut lock(&host), memory, interrupt)
        };
        self.worker.activate_with(activation, Some(Arc::new(events)), Box::new(serve));
    }
    fn service(&self) -> &dyn Service {
        &self.worker
    }
    fn reset(&self) {
        self.worker.reset();
        lock(&self.host).reset();
    }
}

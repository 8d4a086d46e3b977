//! The entropy device (virtio 1.2, 5.4).

use std::io::{self, Write};
use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};

use super::{Activation, Chain, Memory, Service, VirtQueue, VirtioDevice, VirtioInterrupt, Worker};

/// Device type.
const KIND: u16 = 4;
/// Descriptors of its queue.
const QUEUE_SIZE: u16 = 64;
/// Bytes that one request is given at most; the specification lets a device give less than the whole buffer (5.4.6.2).
pub(super) const MOST: usize = 64 << 10;
/// Requests in a turn.
const BUDGET: usize = 16;

/// The device. Its bytes are the host kernel's.
#[derive(Debug)]
pub struct Rng {
    worker: Worker,
}

impl Rng {
    /// A device whose thread is called `thread`.
    ///
    /// # Errors
    /// The host has no descriptor.
    pub fn new(thread: impl Into<String>) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { worker: Worker::new(thread)? }))
    }
}

/// Fills the writable part of `chain`; the bytes written. Buffers that are not memory end it.
fn fill(chain: Chain<'_>, memory: &Memory) -> u32 {
    let Ok(mut writer) = chain.writer(memory) else { return 0 };
    let mut random = [0u8; 4096];
    let mut written = 0;
    while written < MOST {
        let wanted = writer.available_bytes().min(random.len()).min(MOST - written);
        let Some(buffer) = random.get_mut(..wanted).filter(|buffer| !buffer.is_empty()) else { break };
        let Ok(got) = getrandom(&mut *buffer, GetRandomFlags::empty()) else { break };
        match writer.write(buffer.get(..got).unwrap_or_default()) {
            Ok(0) | Err(_) => break,
            Ok(n) => written += n,
        }
    }
    written as u32
}

impl VirtioDevice for Rng {
    fn kind(&self) -> u16 {
        KIND
    }
    fn class(&self) -> u32 {
        // A device of no defined class.
        0x00_ff00
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn activate(&self, activation: Activation) {
        let serve = |queue: &VirtQueue, memory: &Memory, interrupt: &VirtioInterrupt| {
            queue.serve(memory, interrupt, BUDGET, |chain| fill(chain, memory))
        };
        self.worker.activate(activation, Box::new(serve));
    }
    fn service(&self) -> &dyn Service {
        &self.worker
    }
}

/// What a turn of this device is worth: the reset of a driver waits for one.
const _: () = assert!(BUDGET * MOST <= 1 << 20);

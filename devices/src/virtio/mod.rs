//! virtio 1.2 over PCI, split rings, without the legacy interface.
//!
//! 1. A device implements [`VirtioDevice`]: what it is, its queues, its configuration, and what it does once a driver is ready.
//!    [`VirtioPci`] is its transport: capabilities, common configuration, notifications, interrupts, reset, state.
//! 2. A driver's notification is an atomic exchange and, if nobody has rung since the device last looked, a write to an eventfd
//!    ([`Doorbell`]): no lock in the guest's store. The work is done elsewhere: [`Worker`] is a thread for devices that need no more.
//! 3. A queue ([`VirtQueue`]) belongs to whoever serves it for the length of one bounded turn. Reset, save and pause come between
//!    turns; behind them nothing of the device touches queue or memory.
//! 4. All that a driver writes is hostile. A queue whose rings or indices cannot be makes the device ask for a reset
//!    (DEVICE_NEEDS_RESET) and touch nothing more; a chain that cannot be is given back unused.
//!
//! # Locks
//!
//! Transport's registers → the device's own → worker → queue → interrupt (ISR) → the function's ([`crate::pci`]). Whoever serves a
//! queue reaches the transport by [`VirtioInterrupt`] only.

pub mod balloon;
pub mod blk;
mod buffers;
mod doorbell;
mod interrupt;
pub mod net;
mod queue;
pub mod rng;
mod transport;
pub mod vsock;
mod worker;

#[cfg(test)]
mod balloon_tests;
#[cfg(test)]
mod blk_tests;
#[cfg(test)]
mod driver;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod vsock_tests;

pub use buffers::Buffers;
pub use doorbell::Doorbell;
pub(crate) use interrupt::ISR_BITS;
pub use interrupt::VirtioInterrupt;
pub use queue::{QueueError, Turn, VirtQueue};
pub(crate) use transport::{Common, QueueRegisters, STATUS_BITS};
pub use transport::{VirtioError, VirtioPci};
pub use worker::{Serve, Worker};

use std::fmt::Debug;
use std::sync::Arc;

use accel_api::PageBitmap;
use vm_memory::GuestMemoryMmap;

use crate::pci::DmaMemory;

/// The guest's memory as devices reach it.
pub type Memory = GuestMemoryMmap<PageBitmap>;
/// A descriptor chain in it.
pub type Chain<'a> = virtio_queue::DescriptorChain<&'a Memory>;

/// What a device is given when its driver is ready.
#[derive(Clone, Debug)]
pub struct Activation {
    /// All queues; of those that the driver has not enabled nothing is to be had.
    pub queues: Vec<Arc<VirtQueue>>,
    /// The guest's memory, while the function is a bus master.
    pub memory: DmaMemory,
    /// Where used buffers and changes are told.
    pub interrupt: Arc<VirtioInterrupt>,
    /// Negotiated features.
    pub features: u64,
}

/// A virtio device without its transport.
pub trait VirtioDevice: Send + Sync + Debug {
    /// Device type (virtio 1.2, 5).
    fn kind(&self) -> u16;

    /// PCI class code.
    fn class(&self) -> u32;

    /// The features of its type that it offers. Those of the transport and of queues are not its matter.
    fn features(&self) -> u64;

    /// Most descriptors of each queue: powers of two.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Its configuration as the driver reads it now: always as many bytes; none, if it has no configuration.
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    /// The driver writes `data` at `offset`, within its configuration. Most have nothing that can be written.
    fn config_write(&self, offset: u32, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver is ready: the device serves its queues from now on.
    fn activate(&self, activation: Activation);

    /// What serves its queues.
    fn service(&self) -> &dyn Service;

    /// Ends what [`activate`](Self::activate) began, and forgets what has not been told to the driver. When it returns, nothing of
    /// the device touches queues or memory.
    fn reset(&self) {
        self.service().reset();
    }
}

/// What serves a device's queues: a [`Worker`] for devices that need no more.
pub trait Service: Send + Sync + Debug {
    /// Serves nothing any more; waits for work that is under way.
    fn reset(&self);

    /// Begins no more work until [`resume`](Self::resume); when it returns, none is under way. A new device is paused.
    fn pause(&self);

    /// Ends [`pause`](Self::pause).
    fn resume(&self);
}

//! The network device (virtio 1.2, 5.1), with one pair of queues and without a control queue.
//!
//! 1. Both directions are served by one thread, which polls the back end's futures itself; what they wait for rings the doorbell of
//!    the queue that it is about. So no turn waits, and a reset comes between turns.
//! 2. Nothing piles up here: of each direction there is at most a batch of frames between queue and back end. Buffers are copied.
//! 3. What checksums and segmentation a driver leaves to the device, and may be left with, is what the back end takes and
//!    delivers ([`NetInfo`](backends::net::NetInfo)).
//! 4. A frame whose header cannot be, or that is longer than any, is dropped, as on a cable; so is what no buffer can hold.
//!    Nothing of what is under way is saved, for the same reason.

mod receive;
#[cfg(test)]
mod tests;
mod transmit;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use backends::net::{LinkState, NetBackend, Offloads};
use virtio_bindings::virtio_net::*;

use self::receive::Receiver;
use self::transmit::Transmitter;
use super::{Activation, Memory, Service, VirtQueue, VirtioDevice, VirtioInterrupt, Worker};

/// Device type.
const KIND: u16 = 1;
/// Numbers of the queues.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Descriptors of the queues: a large segment takes some forty buffers of a driver that merges them.
const RECEIVE_SIZE: u16 = 1024;
const TRANSMIT_SIZE: u16 = 256;
/// Bytes of the configuration.
const CONFIG: usize = 12;
/// Bytes of a frame at most: Ethernet's header with a VLAN tag, and the largest IP packet.
const LONGEST: usize = 18 + 65535;

/// Which feature lets the driver leave something to the device, and the device to the driver.
const OFFLOADS: [(Offloads, &[u32], &[u32]); 5] = [
    (Offloads::CHECKSUM, &[VIRTIO_NET_F_CSUM], &[VIRTIO_NET_F_GUEST_CSUM]),
    (Offloads::TSO4, &[VIRTIO_NET_F_HOST_TSO4], &[VIRTIO_NET_F_GUEST_TSO4]),
    (Offloads::TSO6, &[VIRTIO_NET_F_HOST_TSO6], &[VIRTIO_NET_F_GUEST_TSO6]),
    (Offloads::USO, &[VIRTIO_NET_F_HOST_USO], &[VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6]),
    (Offloads::ECN, &[VIRTIO_NET_F_HOST_ECN], &[VIRTIO_NET_F_GUEST_ECN]),
];

fn bits(features: &[u32]) -> u64 {
    features.iter().fold(0, |all, bit| all | 1 << bit)
}

/// The device.
#[derive(Debug)]
pub struct Net {
    worker: Worker,
    mac: [u8; 6],
    cable: Arc<Cable>,
}

/// The back end, and whether it is still there.
#[derive(Debug)]
struct Cable {
    backend: Arc<dyn NetBackend>,
    cut: AtomicBool,
}

impl Cable {
    fn is_whole(&self) -> bool {
        !self.cut.load(Ordering::Acquire)
    }

    /// The back end is gone for good; it has said why.
    fn cut(&self, interrupt: &VirtioInterrupt) {
        if !self.cut.swap(true, Ordering::AcqRel) {
            interrupt.config_changed();
        }
    }

    fn is_up(&self) -> bool {
        self.is_whole() && self.backend.link() == LinkState::Up
    }
}

/// Rings the doorbell of a queue when a future of the back end's is to be polled.
struct Bell(Arc<VirtQueue>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.doorbell().ring();
    }
}

impl Net {
    /// A card with the address `mac` in front of `backend`, whose thread is called `thread`.
    ///
    /// # Errors
    /// The host has no descriptor.
    pub fn new(
        thread: impl Into<String>,
        backend: Arc<dyn NetBackend>,
        mac: [u8; 6],
    ) -> io::Result<Arc<Self>> {
        let cable = Arc::new(Cable { backend, cut: AtomicBool::new(false) });
        Ok(Arc::new(Self { worker: Worker::new(thread)?, mac, cable }))
    }

    /// The configuration (5.1.4): address, status, pairs of queues, MTU.
    fn configuration(&self) -> [u8; CONFIG] {
        let [a, b, c, d, e, f] = self.mac;
        let [status, _] = u16::from(self.cable.is_up()).to_le_bytes();
        let [low, high] = self.cable.backend.info().mtu.to_le_bytes();
        [a, b, c, d, e, f, status, 0, 1, 0, low, high]
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> u16 {
        KIND
    }
    fn class(&self) -> u32 {
        // An Ethernet controller.
        0x02_0000
    }
    fn features(&self) -> u64 {
        let info = self.cable.backend.info();
        let always = [VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, VIRTIO_NET_F_MTU, VIRTIO_NET_F_MRG_RXBUF];
        OFFLOADS.iter().fold(bits(&always), |features, (offload, host, guest)| {
            let accepts = if info.accepts.contains(*offload) { bits(host) } else { 0 };
            let delivers = if info.delivers.contains(*offload) { bits(guest) } else { 0 };
            features | accepts | delivers
        })
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![RECEIVE_SIZE, TRANSMIT_SIZE]
    }
    fn config(&self) -> Vec<u8> {
        self.configuration().to_vec()
    }

    fn activate(&self, activation: Activation) {
        // Back ends that wait do so with the runtime's help.
        let Ok(runtime) = backends::runtime() else { return activation.interrupt.needs_reset() };
        let (mut offered, mut accepted) = (Offloads::empty(), Offloads::empty());
        let has = |needed: &[u32]| activation.features & bits(needed) == bits(needed);
        for (offload, host, guest) in OFFLOADS {
            offered.set(offload, has(host));
            accepted.set(offload, has(guest));
        }
        // Without checksums nothing can be cut (5.1.3.1).
        for side in [&mut offered, &mut accepted] {
            if !side.contains(Offloads::CHECKSUM) {
                *side = Offloads::empty();
            }
        }
        let merge = has(&[VIRTIO_NET_F_MRG_RXBUF]);
        let bell = |n: u16| {
            let queue = activation.queues.get(usize::from(n));
            queue.map_or_else(|| Waker::noop().clone(), |queue| Arc::new(Bell(queue.clone())).into())
        };
        self.cable.backend.set_offloads(accepted);
        let mut receiver = Receiver::new(self.cable.clone(), accepted, merge, bell(RECEIVE));
        let mut transmitter = Transmitter::new(self.cable.clone(), offered, bell(TRANSMIT));
        let serve = move |queue: &VirtQueue, memory: &Memory, interrupt: &VirtioInterrupt| {
            let _within = runtime.enter();
            match queue.index() {
                RECEIVE => receiver.serve(queue, memory, interrupt),
                TRANSMIT => transmitter.serve(queue, memory, interrupt),
                _ => Ok(super::Turn::Idle),
            }
        };
        self.worker.activate(activation, Box::new(serve));
    }
    fn service(&self) -> &dyn Service {
        &self.worker
    }
}

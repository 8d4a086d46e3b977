//! Any bytes as the driver of a network card, with frames that come in meanwhile: rings, chains and headers. The card serves its
//! queues by its own thread, which is waited for behind each step. Nothing may panic; what comes out is a frame that was sent with what
//! was agreed on; what was saved another card takes.
//!
//! `cargo +nightly fuzz run virtio_net`
#![no_main]

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use accel_api::GuestRam;
use backends::net::{Frame, FrameHeader, NetBackend, NetError, NetInfo, Offloads};
use devices::MmioDevice;
use devices::pci::{DecodeSpace, PciFunction};
use devices::virtio::VirtioPci;
use devices::virtio::net::Net;
use libfuzzer_sys::fuzz_target;
use state::StateUnit;
use vm_memory::{Bytes, GuestAddress};

/// Takes everything, and gives what lies there.
#[derive(Debug, Default)]
struct Cable(Mutex<Vec<Frame>>);

type Pending<'f, T> = Pin<Box<dyn Future<Output = T> + Send + 'f>>;

impl NetBackend for Cable {
    fn info(&self) -> NetInfo {
        NetInfo { mtu: 1500, accepts: Offloads::all(), delivers: Offloads::all(), max_batch: 64 }
    }
    fn set_offloads(&self, _: Offloads) {}
    fn send<'a, 'b, 'f>(&'a self, frames: &'b mut Vec<Frame>) -> Pending<'f, Result<(), NetError>>
    where
        'a: 'f,
        'b: 'f,
        Self: 'f,
    {
        for Frame { header, data } in frames.drain(..) {
            assert!(data.len() <= 18 + 65535);
            if let Some(sum) = header.checksum {
                assert!(usize::from(sum.start) + usize::from(sum.offset) + 2 <= data.len());
            }
            if let Some(cut) = header.segmentation {
                assert!(cut.size > 0 && usize::from(cut.header) <= data.len() && header.checksum.is_some());
            }
        }
        Box::pin(std::future::ready(Ok(())))
    }
    fn receive<'a, 'b, 'f>(
        &'a self,
        into: &'b mut Vec<Frame>,
        max: usize,
    ) -> Pending<'f, Result<(), NetError>>
    where
        'a: 'f,
        'b: 'f,
        Self: 'f,
    {
        let mut held = self.0.lock().expect("no panic");
        let count = held.len().min(max);
        into.extend(held.drain(..count));
        // Nobody is woken: each step rings.
        if count > 0 { Box::pin(std::future::ready(Ok(()))) } else { Box::pin(std::future::pending()) }
    }
}

const MEMORY: u64 = 0x1_0000;

fn device(ram: &Arc<GuestRam>) -> (Arc<Cable>, Arc<VirtioPci>, Arc<DecodeSpace>) {
    let (slot, decode) = gearshift_fuzz::pci_slot();
    let cable = Arc::new(Cable::default());
    let net = Net::new("net", cable.clone(), [2, 0, 0, 0, 0, 1]).expect("a card");
    let virtio = VirtioPci::new("virtio", net, &slot, ram.clone()).expect("a device");
    virtio.config_write(4, 2, 6);
    (cable, virtio, decode)
}

/// Lets the thread see the doorbells, and waits for the turn that it is in.
fn settle(virtio: &VirtioPci) {
    virtio.release();
    for _ in 0..50 {
        std::thread::yield_now();
    }
    virtio.quiesce();
}

fuzz_target!(|data: &[u8]| {
    let ram = Arc::new(GuestRam::new(&[(0, MEMORY)]).expect("64 KiB"));
    let (cable, virtio, _decode) = device(&ram);
    let [a, b, rest @ ..] = data else { return };
    // A driver that is ready, with features of the input's choice.
    let features = u64::from(u16::from_le_bytes([*a, *b]) & 0x7f83);
    for (offset, size, value) in
        [(0x14, 1, 3), (0x08, 4, 1), (0x0c, 4, 1), (0x08, 4, 0), (0x0c, 4, features), (0x14, 1, 0xb)]
    {
        virtio.mmio_write(offset, size, value);
    }
    for queue in [0, 1] {
        let base = 0x1000 + 0x3000 * queue;
        for (offset, size, value) in [
            (0x16, 2, queue),
            (0x18, 2, 16),
            (0x20, 8, base),
            (0x28, 8, base + 0x1000),
            (0x30, 8, base + 0x2000),
            (0x1c, 2, 1),
        ] {
            virtio.mmio_write(offset, size, value);
        }
    }
    virtio.mmio_write(0x14, 1, 0xf);
    let mut rest = rest;
    while let [what, low, high, len, more @ ..] = rest {
        let at = u64::from(u16::from_le_bytes([*low, *high]));
        let (bytes, behind) = more.split_at(usize::from(*len % 32).min(more.len()));
        match what % 8 {
            // Memory around the rings, and anywhere.
            0..=3 => drop(ram.memory().write(bytes, GuestAddress(0x1000 + at % 0x5200))),
            4 => drop(ram.memory().write(bytes, GuestAddress(at))),
            5 => {
                let frame = Frame { header: FrameHeader::default(), data: vec![*what; at as usize] };
                cable.0.lock().expect("no panic").push(frame);
            }
            6 => virtio.mmio_write(at % 0x4000, 1 << (len % 4), at),
            _ => drop(virtio.mmio_read(at % 0x4000, 1 << (len % 4))),
        }
        for queue in [0, 1] {
            virtio.mmio_write(0x3000 + 4 * queue, 2, 0);
        }
        settle(&virtio);
        rest = behind;
    }
    let saved = virtio.save();
    let (_, other, _space) = device(&ram);
    other.restore(&saved).expect("what a card has saved, another takes");
    assert_eq!(other.save(), saved);
    virtio.reset();
});

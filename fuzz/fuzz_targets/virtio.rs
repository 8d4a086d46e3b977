//! Any bytes as a virtio driver: what it writes to the transport's registers and to its rings. A device that serves each queue as
//! soon as it is rung takes or refuses it, and what it has saved another takes.
//!
//! `cargo +nightly fuzz run virtio`
#![no_main]

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

use accel_api::GuestRam;
use devices::MmioDevice;
use devices::pci::{DecodeSpace, PciFunction};
use devices::virtio::{Activation, Service, VirtioDevice, VirtioPci};
use libfuzzer_sys::fuzz_target;
use state::StateUnit;
use vm_memory::{Bytes, GuestAddress};

/// Reverses what it is given.
#[derive(Debug, Default)]
struct Mirror(Mutex<Option<Activation>>);

const MEMORY: u64 = 0x1_0000;

impl Mirror {
    fn serve(&self) {
        let active = self.0.lock().expect("no panic");
        let Some(active) = &*active else { return };
        let Some(memory) = active.memory.get() else { return };
        for queue in &active.queues {
            let done = queue.serve(memory, &active.interrupt, 64, |chain| {
                let mut bytes = vec![0; 512];
                let read = match chain.clone().reader(memory) {
                    Ok(mut reader) => reader.read(&mut bytes).unwrap_or(0),
                    Err(_) => 0,
                };
                bytes.truncate(read);
                bytes.reverse();
                chain.writer(memory).map_or(0, |mut writer| writer.write(&bytes).unwrap_or(0) as u32)
            });
            if done.is_err() {
                active.interrupt.needs_reset();
            }
        }
    }
}

impl VirtioDevice for Mirror {
    fn kind(&self) -> u16 {
        0x20
    }
    fn class(&self) -> u32 {
        0
    }
    fn features(&self) -> u64 {
        0xf
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![16, 256, 1]
    }
    fn config(&self) -> Vec<u8> {
        vec![1; 12]
    }
    fn config_write(&self, offset: u32, data: &[u8]) {
        assert!(offset as usize + data.len() <= 12);
    }
    fn activate(&self, activation: Activation) {
        *self.0.lock().expect("no panic") = Some(activation);
    }
    fn service(&self) -> &dyn Service {
        self
    }
}

impl Service for Mirror {
    fn reset(&self) {
        *self.0.lock().expect("no panic") = None;
    }
    fn pause(&self) {}
    fn resume(&self) {}
}

fn device(ram: &Arc<GuestRam>) -> (Arc<Mirror>, Arc<VirtioPci>, Arc<DecodeSpace>) {
    let (slot, decode) = gearshift_fuzz::pci_slot();
    let mirror = Arc::new(Mirror::default());
    let virtio = VirtioPci::new("virtio", mirror.clone(), &slot, ram.clone()).expect("a device");
    virtio.config_write(4, 2, 6);
    (mirror, virtio, decode)
}

fuzz_target!(|data: &[u8]| {
    let ram = Arc::new(GuestRam::new(&[(0, MEMORY)]).expect("64 KiB"));
    let (mirror, virtio, _decode) = device(&ram);
    // A driver that is ready, so that most inputs get somewhere.
    for (offset, size, value) in [
        (0x14, 1, 3),
        (0x08, 4, 1),
        (0x0c, 4, 1),
        (0x08, 4, 0),
        (0x0c, 4, u64::from(data.first().is_some_and(|byte| byte & 1 != 0)) << 29),
        (0x14, 1, 0xb),
        (0x18, 2, 16),
        (0x20, 8, 0x1000),
        (0x28, 8, 0x2000),
        (0x30, 8, 0x3000),
        (0x1c, 2, 1),
        (0x14, 1, 0xf),
    ] {
        virtio.mmio_write(offset, size, value);
    }
    let mut rest = data.get(1..).unwrap_or_default();
    while let [what, low, high, len, more @ ..] = rest {
        let at = u64::from(u16::from_le_bytes([*low, *high]));
        let (bytes, behind) = more.split_at(usize::from(*len % 32).min(more.len()));
        let mut value = [0; 8];
        value.iter_mut().zip(bytes).for_each(|(value, byte)| *value = *byte);
        let value = u64::from_le_bytes(value);
        match what % 8 {
            // Memory around the rings, and anywhere.
            0..=2 => {
                let at = 0x1000 + at % 0x2200;
                let _ = ram.memory().write(bytes, GuestAddress(at));
            }
            3 => drop(ram.memory().write(bytes, GuestAddress(at))),
            4 => virtio.mmio_write(at % 0x4000, 1 << (len % 4), value),
            5 => drop(virtio.mmio_read(at % 0x4000, 1 << (len % 4))),
            6 => virtio.config_write(at as u16 % 256, 1 << (len % 3), value as u32),
            _ => drop(virtio.config_read(at as u16 % 256, 1 << (len % 3))),
        }
        mirror.serve();
        rest = behind;
    }
    let saved = virtio.save();
    let (_, other, _space) = device(&ram);
    other.restore(&saved).expect("what a device has saved, another takes");
    assert_eq!(other.save(), saved);
    virtio.reset();
});

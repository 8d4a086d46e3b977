//! Test support: a driver that may be hostile, with its board and its memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use accel_api::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use super::{VirtioDevice, VirtioPci};
use crate::pci::testing::Board;
use crate::pci::{DeviceFunction, PciFunction, command, reg};

/// Bytes of memory from address 0 on.
pub(crate) const MEMORY: u64 = 0x10_0000;
/// Rings of queue 0.
pub(crate) const DESC: u64 = 0x1000;
pub(crate) const AVAIL: u64 = 0x2000;
pub(crate) const USED: u64 = 0x3000;
/// Where buffers are.
pub(crate) const DATA: u64 = 0x1_0000;
/// Queue size that the driver chooses.
pub(crate) const SIZE: u16 = 16;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const EVENT_IDX: u64 = 1 << 29;
pub(crate) const RING_RESET: u64 = 1 << 40;

/// Status bits.
pub(crate) const READY: u8 = 0x0f;
pub(crate) const NEEDS_RESET: u8 = 0x40;

/// Where the BAR with the registers is.
pub(crate) const BAR: u64 = 0xc000_0000;
/// Where the MSI-X table is.
pub(crate) const TABLE: u64 = 0xc100_0000;

#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) board: Board,
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) virtio: Arc<VirtioPci>,
    pub(crate) avail: u16,
}

impl Driver {
    /// A device that runs and whose driver has not begun.
    pub(crate) fn new(device: Arc<dyn VirtioDevice>) -> Self {
        let board = Board::new();
        let ram = Arc::new(GuestRam::new(&[(0, MEMORY)]).unwrap());
        let at = DeviceFunction::new(3, 0);
        let virtio = VirtioPci::new("virtio", device, &board.slot(at), ram.clone()).unwrap();
        board.root.add(at, virtio.clone()).unwrap();
        state::StateUnit::release(&*virtio);
        let driver = Self { board, ram, virtio, avail: 0 };
        driver.place();
        driver
    }

    /// Puts the BARs somewhere and makes the function a bus master, without MSI-X.
    pub(crate) fn place(&self) {
        self.virtio.config_write(reg::BAR0, 4, BAR as u32);
        self.virtio.config_write(reg::BAR0 + 4, 4, TABLE as u32);
        let on = command::MEMORY | command::BUS_MASTER;
        self.virtio.config_write(reg::COMMAND, 2, on.into());
    }

    pub(crate) fn read(&self, offset: u64, size: u8) -> u64 {
        self.board.mmio.read(BAR + offset, size)
    }

    pub(crate) fn write(&self, offset: u64, size: u8, value: u64) {
        self.board.poke(BAR + offset, size, value);
    }

    pub(crate) fn status(&self) -> u8 {
        self.read(0x14, 1) as u8
    }

    /// MSI-X with every vector open: the configuration has vector 0, queue n vector n + 1, which send their number.
    pub(crate) fn use_msix(&self) {
        let msix = self.virtio.function().msix().unwrap();
        for n in 0..u64::from(msix.vectors()) {
            self.board.poke(TABLE + 16 * n, 8, 0xfee0_0000);
            self.board.poke(TABLE + 16 * n + 8, 8, n);
        }
        let capability = self.capabilities().into_iter().find(|(_, id, _)| *id == 0x11).unwrap().0;
        self.virtio.config_write(capability + 2, 2, 0x8000);
        self.write(0x10, 2, 0);
        for n in 0..self.virtio.queues().len() as u64 {
            self.write(0x16, 2, n);
            self.write(0x1a, 2, n + 1);
        }
    }

    /// Offset, id and fourth byte of each capability.
    pub(crate) fn capabilities(&self) -> Vec<(u16, u8, u8)> {
        let mut found = Vec::new();
        let mut at = self.virtio.config_read(reg::CAPABILITIES, 1) as u16;
        while at != 0 {
            let dword = self.virtio.config_read(at, 4);
            found.push((at, dword as u8, (dword >> 24) as u8));
            at = (dword >> 8) as u16 & 0xff;
        }
        found
    }

    /// Resets the device, negotiates `features` and enables queue 0.
    pub(crate) fn start(&mut self, features: u64) {
        self.negotiate(features);
        self.enable(0, DESC, AVAIL, USED);
        self.write(0x14, 1, READY.into());
        assert_eq!(self.status(), READY);
    }

    pub(crate) fn negotiate(&mut self, features: u64) {
        self.write(0x14, 1, 0);
        assert_eq!(self.status(), 0);
        self.write(0x14, 1, 3);
        for half in [0, 1] {
            self.write(0x08, 4, half);
            self.write(0x0c, 4, features >> (32 * half) & 0xffff_ffff);
        }
        self.write(0x14, 1, 0xb);
        self.avail = 0;
        self.put(AVAIL, 0u32);
        self.put(USED, 0u32);
    }

    pub(crate) fn enable(&self, queue: u16, desc: u64, avail: u64, used: u64) {
        self.write(0x16, 2, queue.into());
        self.write(0x18, 2, SIZE.into());
        for (offset, address) in [(0x20, desc), (0x28, avail), (0x30, used)] {
            self.write(offset, 4, address & 0xffff_ffff);
            self.write(offset + 4, 4, address >> 32);
        }
        self.write(0x1c, 2, 1);
    }

    pub(crate) fn put<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.ram.memory().write_obj(value, GuestAddress(at)).unwrap();
    }

    pub(crate) fn get<T: vm_memory::ByteValued>(&self, at: u64) -> T {
        self.ram.memory().read_obj(GuestAddress(at)).unwrap()
    }

    pub(crate) fn fill(&self, at: u64, len: usize, byte: u8) {
        self.ram.memory().write_slice(&vec![byte; len], GuestAddress(at)).unwrap();
    }

    pub(crate) fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.memory().read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Descriptor `n` of the table at `table`.
    pub(crate) fn describe_in(&self, table: u64, n: u16, buffer: (u64, u32), flags: u16, next: u16) {
        let at = table + 16 * u64::from(n);
        self.put(at, buffer.0);
        self.put(at + 8, buffer.1);
        self.put(at + 12, flags);
        self.put(at + 14, next);
    }

    pub(crate) fn describe(&self, n: u16, buffer: (u64, u32), flags: u16, next: u16) {
        self.describe_in(DESC, n, buffer, flags, next);
    }

    /// Makes a chain available.
    pub(crate) fn push(&mut self, head: u16) {
        self.put(AVAIL + 4 + 2 * u64::from(self.avail % SIZE), head);
        self.avail = self.avail.wrapping_add(1);
        self.put(AVAIL + 2, self.avail);
    }

    pub(crate) fn kick(&self) {
        self.write(0x3000, 2, 0);
    }

    pub(crate) fn used(&self) -> u16 {
        self.get(USED + 2)
    }

    /// Head and length of the `n`th used element.
    pub(crate) fn used_element(&self, n: u16) -> (u32, u32) {
        let at = USED + 4 + 8 * u64::from(n % SIZE);
        (self.get(at), self.get(at + 4))
    }

    /// Waits until `done`, for a time in which any host gets there.
    pub(crate) fn until(&self, done: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !done(self) {
            assert!(Instant::now() < end, "used {}, status {:#x}", self.used(), self.status());
            std::thread::yield_now();
        }
    }

    /// Waits until all that was made available is used, and gives the last element.
    pub(crate) fn complete(&self) -> (u32, u32) {
        self.kick();
        self.until(|driver| driver.used() == driver.avail);
        self.used_element(self.avail.wrapping_sub(1))
    }

    /// Does the device serve a good chain?
    pub(crate) fn serves(&mut self) {
        self.describe(0, (DATA, 32), WRITE, 0);
        self.put(DATA, [0u8; 32]);
        self.push(0);
        assert_eq!(self.complete(), (0, 32));
        assert_ne!(self.get::<[u8; 32]>(DATA), [0; 32]);
    }
}

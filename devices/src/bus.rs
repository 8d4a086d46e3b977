//! Address buses: which device answers at an address.
//!
//! A bus is built once, before the vCPUs run, and never changes: a look-up takes no lock and is a binary search
//! over a few dozen ranges. An access that hits no range, or that runs over the end of the one it hits, reads all
//! ones; such a write is dropped.

use std::sync::Arc;

use thiserror::Error;

use crate::seams::{MmioDevice, PioDevice};
use crate::waiting::Waiter;

/// Why a range could not be added to a bus.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or runs past the end of the address space.
    #[error("range {start:#x}+{len:#x} is empty or outside the address space")]
    BadRange {
        /// First address asked for.
        start: u64,
        /// Length asked for, in bytes.
        len: u64,
    },
    /// Another device already answers at part of the range.
    #[error("range {start:#x}+{len:#x} overlaps the device at {other:#x}")]
    Overlap {
        /// First address asked for.
        start: u64,
        /// Length asked for, in bytes.
        len: u64,
        /// First address of the range that is in the way.
        other: u64,
    },
}

#[derive(Debug)]
struct Entry<D: ?Sized> {
    first: u64,
    last: u64,
    device: Arc<D>,
}

/// Ranges sorted by address.
#[derive(Debug)]
struct Ranges<D: ?Sized>(Vec<Entry<D>>);

impl<D: ?Sized> Ranges<D> {
    fn add(&mut self, start: u64, len: u64, limit: u64, device: Arc<D>) -> Result<(), BusError> {
        let last = len
            .checked_sub(1)
            .and_then(|n| start.checked_add(n))
            .filter(|&last| last <= limit)
            .ok_or(BusError::BadRange { start, len })?;
        let at = self.0.partition_point(|e| e.last < start);
        if let Some(next) = self.0.get(at).filter(|e| e.first <= last) {
            return Err(BusError::Overlap { start, len, other: next.first });
        }
        self.0.insert(at, Entry { first: start, last, device });
        Ok(())
    }

    fn find(&self, addr: u64, size: u8) -> Option<&Entry<D>> {
        let at = self.0.partition_point(|e| e.last < addr);
        let end = addr.checked_add(u64::from(size).saturating_sub(1))?;
        self.0.get(at).filter(|e| e.first <= addr && end <= e.last)
    }
}

fn ones(size: u8) -> u64 {
    u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)))
}

/// Collects the devices of a [`PioBus`].
#[derive(Debug)]
pub struct PioBusBuilder(Ranges<dyn PioDevice>);

impl PioBusBuilder {
    /// An empty bus.
    #[allow(clippy::new_without_default)] // a bus nobody names is never wanted
    pub fn new() -> Self {
        Self(Ranges(Vec::new()))
    }

    /// Adds `device` at ports `start .. start + len`. A device with several ranges is added once a range.
    ///
    /// # Errors
    /// The range is bad or taken; the bus is unchanged.
    pub fn add(&mut self, start: u16, len: u16, device: Arc<dyn PioDevice>) -> Result<&mut Self, BusError> {
        self.0.add(start.into(), len.into(), 0xffff, device)?;
        Ok(self)
    }

    /// Ends the building.
    pub fn build(self) -> PioBus {
        PioBus(self.0)
    }
}

/// The port I/O bus.
#[derive(Debug)]
pub struct PioBus(Ranges<dyn PioDevice>);

impl PioBus {
    /// Reads `size` (1, 2 or 4) bytes at `port`.
    pub fn read(&self, port: u16, size: u8) -> u32 {
        let ones = ones(size.min(4)) as u32;
        self.0.find(port.into(), size).map_or(ones, |e| e.device.pio_read(port, size) & ones)
    }

    /// Writes `size` (1, 2 or 4) bytes at `port`, for the vCPU that waits at `waiter` if the device has it wait.
    pub fn write(&self, port: u16, size: u8, value: u32, waiter: &Arc<Waiter>) {
        if let Some(e) = self.0.find(port.into(), size) {
            e.device.pio_write(port, size, value & ones(size.min(4)) as u32);
            e.device.throttle(waiter);
        }
    }

    /// Does a device answer at `port`?
    pub fn contains(&self, port: u16) -> bool {
        self.0.find(port.into(), 1).is_some()
    }
}

/// Collects the devices of an [`MmioBus`].
#[derive(Debug)]
pub struct MmioBusBuilder(Ranges<dyn MmioDevice>);

impl MmioBusBuilder {
    /// An empty bus.
    #[allow(clippy::new_without_default)] // a bus nobody names is never wanted
    pub fn new() -> Self {
        Self(Ranges(Vec::new()))
    }

    /// Adds `device` at guest-physical `start .. start + len`; it sees offsets from `start`.
    ///
    /// # Errors
    /// The range is bad or taken; the bus is unchanged.
    pub fn add(&mut self, start: u64, len: u64, device: Arc<dyn MmioDevice>) -> Result<&mut Self, BusError> {
        self.0.add(start, len, u64::MAX, device)?;
        Ok(self)
    }

    /// Ends the building.
    pub fn build(self) -> MmioBus {
        MmioBus(self.0)
    }
}

/// The memory-mapped I/O bus.
#[derive(Debug)]
pub struct MmioBus(Ranges<dyn MmioDevice>);

impl MmioBus {
    /// Reads `size` (1, 2, 4 or 8) bytes at `gpa`.
    pub fn read(&self, gpa: u64, size: u8) -> u64 {
        let ones = ones(size);
        self.0.find(gpa, size).map_or(ones, |e| e.device.mmio_read(gpa - e.first, size) & ones)
    }

    /// Writes `size` (1, 2, 4 or 8) bytes at `gpa`, for the vCPU that waits at `waiter` if the device has it wait.
    pub fn write(&self, gpa: u64, size: u8, value: u64, waiter: &Arc<Waiter>) {
        if let Some(e) = self.0.find(gpa, size) {
            e.device.mmio_write(gpa - e.first, size, value & ones(size));
            e.device.throttle(waiter);
        }
    }

    /// Does a device answer at `gpa`?
    pub fn contains(&self, gpa: u64) -> bool {
        self.0.find(gpa, 1).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::util::lock;

    #[derive(Debug, Default)]
    struct Probe(Mutex<Vec<(u64, u8, u64)>>);

    impl PioDevice for Probe {
        fn pio_read(&self, port: u16, _: u8) -> u32 {
            u32::from(port) | 0xabcd_0000
        }
        fn pio_write(&self, port: u16, size: u8, value: u32) {
            lock(&self.0).push((port.into(), size, value.into()));
        }
    }

    impl MmioDevice for Probe {
        fn mmio_read(&self, offset: u64, _: u8) -> u64 {
            offset
        }
        fn mmio_write(&self, offset: u64, size: u8, value: u64) {
            lock(&self.0).push((offset, size, value));
        }
    }

    #[test]
    fn ports_are_absolute_and_results_fit_the_size() {
        let (probe, nobody) = (Arc::new(Probe::default()), Arc::default());
        let mut b = PioBusBuilder::new();
        b.add(0x3f8, 8, probe.clone()).unwrap().add(0xfff8, 8, probe.clone()).unwrap();
        let bus = b.build();
        assert_eq!(bus.read(0x3f9, 1), 0xf9);
        assert_eq!(bus.read(0x3f9, 4), 0xabcd_03f9);
        assert_eq!(bus.read(0xffff, 1), 0xff);
        bus.write(0x3ff, 1, 0x1234, &nobody);
        assert_eq!(*lock(&probe.0), [(0x3ff, 1, 0x34)]);
        assert!(bus.contains(0x3ff) && !bus.contains(0x400));
    }

    #[test]
    fn misses_and_straddles_read_ones_and_drop_writes() {
        let (probe, nobody) = (Arc::new(Probe::default()), Arc::default());
        let mut b = PioBusBuilder::new();
        b.add(0x10, 4, probe.clone()).unwrap();
        let bus = b.build();
        assert_eq!(bus.read(0x0f, 1), 0xff);
        assert_eq!(bus.read(0x0f, 2), 0xffff);
        assert_eq!(bus.read(0x12, 4), 0xffff_ffff);
        assert_eq!(bus.read(0xffff, 4), 0xffff_ffff);
        bus.write(0x13, 2, 1, &nobody);
        bus.write(0x14, 1, 1, &nobody);
        assert!(lock(&probe.0).is_empty());

        let mut b = MmioBusBuilder::new();
        b.add(0xfec0_0000, 0x1000, probe.clone()).unwrap();
        let bus = b.build();
        assert_eq!(bus.read(0xfec0_0010, 4), 0x10);
        assert_eq!(bus.read(0xfec0_0ffc, 8), u64::MAX);
        assert_eq!(bus.read(u64::MAX, 8), u64::MAX);
        assert_eq!(bus.read(u64::MAX, 2), 0xffff);
        bus.write(0xfec0_0008, 8, 9, &nobody);
        bus.write(u64::MAX, 8, 9, &nobody);
        assert_eq!(*lock(&probe.0), [(8, 8, 9)]);
    }

    #[test]
    fn overlaps_are_refused() {
        let probe: Arc<Probe> = Arc::default();
        let mut b = PioBusBuilder::new();
        b.add(0x40, 4, probe.clone()).unwrap();
        for (start, len) in [(0x3f, 2), (0x40, 1), (0x43, 9), (0x41, 1), (0x30, 0x100)] {
            let err = b.add(start, len, probe.clone()).unwrap_err();
            assert_eq!(err, BusError::Overlap { start: start.into(), len: len.into(), other: 0x40 });
        }
        b.add(0x44, 1, probe.clone()).unwrap().add(0x3f, 1, probe.clone()).unwrap();
        assert!(matches!(b.add(0x80, 0, probe.clone()), Err(BusError::BadRange { .. })));
        assert!(matches!(b.add(0xffff, 2, probe.clone()), Err(BusError::BadRange { .. })));
        b.add(0xffff, 1, probe).unwrap();
    }
}

//! Address buses: which device answers at an address.
//!
//! 1. Ranges come, move and go while vCPUs run, as the BARs of PCI do. A look-up takes no lock: it reads the table of the
//!    moment, a binary search over a few dozen ranges. A change makes a new table and exchanges the two; an access that is on
//!    its way then ends at the device it has found.
//! 2. An access that hits no range, or that runs over the end of the one it hits, reads all ones; such a write is dropped.
//! 3. A port may answer to accesses of one width only, in front of all ranges: PCI's configuration address at 0xcf8 is one for
//!    accesses of four bytes (PCI Local Bus Specification 3.0, 3.2.2.3.2), and 0xcf9 in the midst of it is the reset control.

use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use thiserror::Error;

use crate::traits::{MmioDevice, PioDevice};
use crate::util::lock;
use crate::waiting::Waiter;

/// Why a range could not be added to a bus, moved or removed.
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
    /// No range begins there.
    #[error("no range begins at {start:#x}")]
    NoRange {
        /// The address.
        start: u64,
    },
}

#[derive(Debug)]
struct Entry<D: ?Sized> {
    first: u64,
    last: u64,
    device: Arc<D>,
}

// By hand: a device need not be `Clone`.
impl<D: ?Sized> Clone for Entry<D> {
    fn clone(&self) -> Self {
        Self { first: self.first, last: self.last, device: self.device.clone() }
    }
}

/// One table of a bus.
#[derive(Debug)]
struct Table<D: ?Sized> {
    /// By address and width, in front of all ranges.
    exact: Vec<(u64, u8, Arc<D>)>,
    /// Sorted by address.
    ranges: Vec<Entry<D>>,
}

impl<D: ?Sized> Clone for Table<D> {
    fn clone(&self) -> Self {
        Self { exact: self.exact.clone(), ranges: self.ranges.clone() }
    }
}

impl<D: ?Sized> Table<D> {
    fn add(&mut self, start: u64, len: u64, limit: u64, device: Arc<D>) -> Result<(), BusError> {
        let last = len
            .checked_sub(1)
            .and_then(|n| start.checked_add(n))
            .filter(|&last| last <= limit)
            .ok_or(BusError::BadRange { start, len })?;
        let at = self.ranges.partition_point(|e| e.last < start);
        if let Some(next) = self.ranges.get(at).filter(|e| e.first <= last) {
            return Err(BusError::Overlap { start, len, other: next.first });
        }
        self.ranges.insert(at, Entry { first: start, last, device });
        Ok(())
    }

    fn remove(&mut self, start: u64) -> Result<Entry<D>, BusError> {
        let at = self.ranges.iter().position(|e| e.first == start).ok_or(BusError::NoRange { start })?;
        Ok(self.ranges.remove(at))
    }

    /// The device that answers, and the first address of its range.
    fn find(&self, addr: u64, size: u8) -> Option<(&Arc<D>, u64)> {
        if let Some((first, _, device)) =
            self.exact.iter().find(|(at, width, _)| (*at, *width) == (addr, size))
        {
            return Some((device, *first));
        }
        let at = self.ranges.partition_point(|e| e.last < addr);
        let end = addr.checked_add(u64::from(size).saturating_sub(1))?;
        let entry = self.ranges.get(at).filter(|e| e.first <= addr && end <= e.last)?;
        Some((&entry.device, entry.first))
    }
}

/// The ranges of a bus, which change.
#[derive(Debug)]
struct Ranges<D: ?Sized> {
    table: ArcSwap<Table<D>>,
    /// Held by who makes the next table.
    change: Mutex<()>,
    /// The last address.
    limit: u64,
}

impl<D: ?Sized> Ranges<D> {
    fn new(limit: u64) -> Self {
        let table = Table { exact: Vec::new(), ranges: Vec::new() };
        Self { table: ArcSwap::from_pointee(table), change: Mutex::default(), limit }
    }

    fn change(&self, by: impl FnOnce(&mut Table<D>) -> Result<(), BusError>) -> Result<(), BusError> {
        let _change = lock(&self.change);
        let mut table = Table::clone(&self.table.load());
        by(&mut table)?;
        self.table.store(Arc::new(table));
        Ok(())
    }

    fn add(&self, start: u64, len: u64, device: Arc<D>) -> Result<(), BusError> {
        self.change(|table| table.add(start, len, self.limit, device))
    }

    fn relocate(&self, from: u64, to: u64) -> Result<(), BusError> {
        self.change(|table| {
            let Entry { first, last, device } = table.remove(from)?;
            // A range is never as long as the address space, so that its length fits.
            table.add(to, last - first + 1, self.limit, device)
        })
    }

    fn remove(&self, start: u64) -> Result<(), BusError> {
        self.change(|table| table.remove(start).map(drop))
    }

    /// Calls `with` the device at `addr` and the first address of its range.
    fn at<R>(&self, addr: u64, size: u8, with: impl FnOnce(&D, u64) -> R) -> Option<R> {
        let table = self.table.load();
        table.find(addr, size).map(|(device, first)| with(device, first))
    }
}

fn ones(size: u8) -> u64 {
    u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)))
}

/// The port I/O bus. All methods may be called at any time, also by devices.
#[derive(Debug)]
pub struct PioBus(Ranges<dyn PioDevice>);

impl Default for PioBus {
    fn default() -> Self {
        Self(Ranges::new(0xffff))
    }
}

impl PioBus {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `device` at ports `start .. start + len`. A device with several ranges is added once a range.
    ///
    /// # Errors
    /// The range is bad or taken; the bus is unchanged.
    pub fn add(&self, start: u16, len: u16, device: Arc<dyn PioDevice>) -> Result<&Self, BusError> {
        self.0.add(start.into(), len.into(), device)?;
        Ok(self)
    }

    /// Adds `device` at `port` for accesses of exactly `size` bytes, in front of all ranges.
    ///
    /// # Errors
    /// There is one already; the bus is unchanged.
    pub fn add_exact(&self, port: u16, size: u8, device: Arc<dyn PioDevice>) -> Result<&Self, BusError> {
        let (port, len) = (u64::from(port), u64::from(size));
        self.0.change(|table| {
            if table.exact.iter().any(|(at, width, _)| (*at, *width) == (port, size)) {
                return Err(BusError::Overlap { start: port, len, other: port });
            }
            table.exact.push((port, size, device));
            Ok(())
        })?;
        Ok(self)
    }

    /// Moves the range that begins at `from` to `to`.
    ///
    /// # Errors
    /// There is none, or the place is bad or taken; the bus is unchanged.
    pub fn relocate(&self, from: u16, to: u16) -> Result<(), BusError> {
        self.0.relocate(from.into(), to.into())
    }

    /// Removes the range that begins at `start`.
    ///
    /// # Errors
    /// There is none.
    pub fn remove(&self, start: u16) -> Result<(), BusError> {
        self.0.remove(start.into())
    }

    /// Reads `size` (1, 2 or 4) bytes at `port`.
    pub fn read(&self, port: u16, size: u8) -> u32 {
        let ones = ones(size.min(4)) as u32;
        self.0.at(port.into(), size, |device, _| device.pio_read(port, size) & ones).unwrap_or(ones)
    }

    /// Writes `size` (1, 2 or 4) bytes at `port`, for the vCPU that waits at `waiter` if the device has it wait.
    pub fn write(&self, port: u16, size: u8, value: u32, waiter: &Arc<Waiter>) {
        self.0.at(port.into(), size, |device, _| {
            device.pio_write(port, size, value & ones(size.min(4)) as u32);
            device.throttle(waiter);
        });
    }

    /// Does a device answer at `port`?
    pub fn contains(&self, port: u16) -> bool {
        self.0.at(port.into(), 1, |_, _| ()).is_some()
    }
}

/// The memory-mapped I/O bus. All methods may be called at any time, also by devices.
#[derive(Debug)]
pub struct MmioBus(Ranges<dyn MmioDevice>);

impl Default for MmioBus {
    fn default() -> Self {
        Self(Ranges::new(u64::MAX))
    }
}

impl MmioBus {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `device` at guest-physical `start .. start + len`; it sees offsets from `start`.
    ///
    /// # Errors
    /// The range is bad or taken; the bus is unchanged.
    pub fn add(&self, start: u64, len: u64, device: Arc<dyn MmioDevice>) -> Result<&Self, BusError> {
        self.0.add(start, len, device)?;
        Ok(self)
    }

    /// Moves the range that begins at `from` to `to`.
    ///
    /// # Errors
    /// There is none, or the place is bad or taken; the bus is unchanged.
    pub fn relocate(&self, from: u64, to: u64) -> Result<(), BusError> {
        self.0.relocate(from, to)
    }

    /// Removes the range that begins at `start`.
    ///
    /// # Errors
    /// There is none.
    pub fn remove(&self, start: u64) -> Result<(), BusError> {
        self.0.remove(start)
    }

    /// Reads `size` (1, 2, 4 or 8) bytes at `gpa`.
    pub fn read(&self, gpa: u64, size: u8) -> u64 {
        let ones = ones(size);
        self.0.at(gpa, size, |device, first| device.mmio_read(gpa - first, size) & ones).unwrap_or(ones)
    }

    /// Writes `size` (1, 2, 4 or 8) bytes at `gpa`, for the vCPU that waits at `waiter` if the device has it wait.
    pub fn write(&self, gpa: u64, size: u8, value: u64, waiter: &Arc<Waiter>) {
        self.0.at(gpa, size, |device, first| {
            device.mmio_write(gpa - first, size, value & ones(size));
            device.throttle(waiter);
        });
    }

    /// Does a device answer at `gpa`?
    pub fn contains(&self, gpa: u64) -> bool {
        self.0.at(gpa, 1, |_, _| ()).is_some()
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
        let bus = PioBus::new();
        bus.add(0x3f8, 8, probe.clone()).unwrap().add(0xfff8, 8, probe.clone()).unwrap();
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
        let bus = PioBus::new();
        bus.add(0x10, 4, probe.clone()).unwrap();
        assert_eq!(bus.read(0x0f, 1), 0xff);
        assert_eq!(bus.read(0x0f, 2), 0xffff);
        assert_eq!(bus.read(0x12, 4), 0xffff_ffff);
        assert_eq!(bus.read(0xffff, 4), 0xffff_ffff);
        bus.write(0x13, 2, 1, &nobody);
        bus.write(0x14, 1, 1, &nobody);
        assert!(lock(&probe.0).is_empty());

        let bus = MmioBus::new();
        bus.add(0xfec0_0000, 0x1000, probe.clone()).unwrap();
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
        let b = PioBus::new();
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
    #[test]
    fn ranges_move_and_go() {
        let probe = Arc::new(Probe::default());
        let bus = MmioBus::new();
        bus.add(0x1000, 0x1000, probe.clone()).unwrap().add(0x4000, 0x1000, probe.clone()).unwrap();
        let overlap = BusError::Overlap { start: 0x3800, len: 0x1000, other: 0x4000 };
        assert_eq!(bus.relocate(0x1000, 0x3800), Err(overlap));
        assert_eq!(bus.read(0x1010, 4), 0x10, "where it was");
        assert!(matches!(bus.relocate(0x1000, u64::MAX - 10), Err(BusError::BadRange { .. })));
        bus.relocate(0x1000, 0x1800).unwrap();
        assert_eq!(
            (bus.read(0x1010, 4), bus.read(0x2010, 4)),
            (0xffff_ffff, 0x810),
            "over its own old place"
        );
        assert_eq!(bus.relocate(0x1000, 0x8000), Err(BusError::NoRange { start: 0x1000 }));
        bus.remove(0x1800).unwrap();
        assert_eq!(bus.remove(0x1800), Err(BusError::NoRange { start: 0x1800 }));
        assert!(!bus.contains(0x2010) && bus.contains(0x4000));
    }

    /// 0xcf8 is PCI's for accesses of four bytes only; 0xcf9 is another device's.
    #[test]
    fn one_width_of_a_port_has_a_device_of_its_own() {
        let (pci, reset, nobody) = (Arc::new(Probe::default()), Arc::new(Probe::default()), Arc::default());
        let bus = PioBus::new();
        bus.add(0xcf9, 1, reset.clone()).unwrap().add_exact(0xcf8, 4, pci.clone()).unwrap();
        assert!(bus.add_exact(0xcf8, 4, reset.clone()).is_err());
        bus.write(0xcf8, 4, 0x8000_0000, &nobody);
        bus.write(0xcf9, 1, 6, &nobody);
        bus.write(0xcf8, 1, 1, &nobody);
        bus.write(0xcf8, 2, 1, &nobody);
        assert_eq!(
            (lock(&pci.0).clone(), lock(&reset.0).clone()),
            (vec![(0xcf8, 4, 0x8000_0000)], vec![(0xcf9, 1, 6)])
        );
        assert_eq!((bus.read(0xcf8, 4), bus.read(0xcf8, 1)), (0xabcd_0cf8, 0xff));
    }

    /// A range goes to and fro while others look: they find it at one of its places with the right offset, or nothing.
    #[test]
    fn ranges_move_under_running_accesses() {
        let probe = Arc::new(Probe::default());
        let bus = MmioBus::new();
        bus.add(0x1_0000, 0x1000, probe.clone()).unwrap().add(0x9_0000, 0x1000, probe).unwrap();
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut found = 0u32;
                    while !over.load(std::sync::atomic::Ordering::SeqCst) || found == 0 {
                        for place in [0x1_0000, 0x5_0000] {
                            let seen = bus.read(place + 0x123, 4);
                            assert!(matches!(seen, 0x123 | 0xffff_ffff), "{seen:#x}");
                            found += u32::from(seen == 0x123);
                        }
                        assert_eq!(bus.read(0x9_0008, 8), 8, "one that stays is always there");
                    }
                });
            }
            for _ in 0..2000 {
                bus.relocate(0x1_0000, 0x5_0000).unwrap();
                bus.relocate(0x5_0000, 0x1_0000).unwrap();
            }
            over.store(true, std::sync::atomic::Ordering::SeqCst);
        });
    }
}

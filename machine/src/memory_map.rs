//! The PC memory map: where RAM lies, what is reserved, what the guest is told of it.
//!
//! ```text
//! 0000_0000 .. 000a_0000   RAM (the last KiB is the EBDA and reserved)
//! 000a_0000 .. 000c_0000   VGA window: nothing answers
//! 000c_0000 .. 0010_0000   RAM in the place of the ROMs, reserved; the ACPI tables start at 000e_0000
//! 0010_0000 .. c000_0000   RAM, as much as there is
//! c000_0000 .. e000_0000   BARs of PCI
//! e000_0000 .. f000_0000   PCI configuration spaces (ECAM), reserved
//! f000_0000 .. fec0_0000   BARs of PCI
//! fec0_0000 .. 1_0000_0000 IOAPIC at fec0_0000, local APICs at fee0_0000; from ff00_0000 on an embedder's ROM, if there is one
//! 1_0000_0000 ..           RAM beyond 3 GiB, then 64-bit BARs of PCI
//! ```

use std::fs;
use std::ops::Range;

use accel_api::x86::PHYS_BITS;

/// Bytes in a mebibyte.
pub const MIB: u64 = 1 << 20;
/// Bytes in a gibibyte.
pub const GIB: u64 = 1 << 30;

/// Where the extended BIOS data area starts; conventional memory ends here.
pub const EBDA: u64 = 0x9_fc00;
/// Where the VGA window starts.
pub const VGA_HOLE: u64 = 0xa_0000;
/// Where the area of option ROMs starts.
pub const ROM_AREA: u64 = 0xc_0000;
/// Where the ACPI tables start: the RSDP lies in the first bytes, where a guest without boot parameters looks for it
/// (ACPI 6.5, 5.2.5.1).
pub const ACPI_AREA: u64 = 0xe_0000;
/// Where extended memory starts.
pub const EXTENDED: u64 = MIB;
/// Where the device memory below 4 GiB starts; RAM below 4 GiB ends here at the latest.
pub const DEVICE_HOLE: u64 = 3 * GIB;
/// Where RAM goes on.
pub const HIGH_RAM: u64 = 4 * GIB;
/// Local APIC registers of every vCPU.
pub const LAPIC_BASE: u64 = 0xfee0_0000;
/// Where firmware puts the configuration spaces of PCI: the host bridge's PCIEXBAR, 256 buses of 1 MiB.
pub const ECAM: Range<u64> = 0xe000_0000..0xf000_0000;
/// Ports for BARs of PCI: what lies below is the ISA devices'.
pub const PCI_PORTS: Range<u64> = 0x1000..0x1_0000;
/// IOAPIC, local APICs with the window of interrupt messages, and pages that KVM needs on some processors.
pub const CHIPSET: Range<u64> = 0xfec0_0000..0xff00_0000;

/// Least memory a machine can have: the first mebibyte is half reserved.
pub const MIN_MEMORY: u64 = 2 * MIB;
/// Most memory a machine can have: the CPU model's physical address bits, less the device hole.
pub const MAX_MEMORY: u64 = (1 << PHYS_BITS) - (HIGH_RAM - DEVICE_HOLE);

/// A memory size no machine can have.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MemorySizeError {
    /// Nothing.
    #[error("memory size is 0: a guest needs memory, for example 512M")]
    Zero,
    /// Not whole mebibytes.
    #[error("memory size of {bytes} bytes is not a multiple of 1 MiB: give a size such as 512M or 2G")]
    Unaligned {
        /// Bytes asked for.
        bytes: u64,
    },
    /// Below [`MIN_MEMORY`].
    #[error("memory size of {} MiB is too small: the least is {} MiB", bytes / MIB, MIN_MEMORY / MIB)]
    TooSmall {
        /// Bytes asked for.
        bytes: u64,
    },
    /// Beyond what the guest could address.
    #[error("memory size of {} MiB is too large: the CPU model addresses {} MiB", bytes / MIB, MAX_MEMORY / MIB)]
    BeyondAddresses {
        /// Bytes asked for.
        bytes: u64,
    },
    /// Beyond what the host has.
    #[error("memory size of {} MiB is more than this host has ({} MiB)", bytes / MIB, host / MIB)]
    BeyondHost {
        /// Bytes asked for.
        bytes: u64,
        /// Bytes of the host's RAM.
        host: u64,
    },
}

/// What a guest may do with a range of its physical memory. The numbers are those of E820 and of the PVH memory map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RangeKind {
    /// Usable RAM.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
}

/// A range of the map as the guest is told of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapRange {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Its use.
    pub kind: RangeKind,
}

/// The memory map of one machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryMap {
    low_end: u64,
    high_len: u64,
}

impl MemoryMap {
    /// The map of a machine with `bytes` of RAM. RAM is not checked against the host: see [`check_host`].
    ///
    /// # Errors
    /// Zero, not whole mebibytes, too small, or more than can be addressed.
    pub fn new(bytes: u64) -> Result<Self, MemorySizeError> {
        match bytes {
            0 => Err(MemorySizeError::Zero),
            _ if !bytes.is_multiple_of(MIB) => Err(MemorySizeError::Unaligned { bytes }),
            _ if bytes < MIN_MEMORY => Err(MemorySizeError::TooSmall { bytes }),
            _ if bytes > MAX_MEMORY => Err(MemorySizeError::BeyondAddresses { bytes }),
            _ => Ok(Self { low_end: bytes.min(DEVICE_HOLE), high_len: bytes.saturating_sub(DEVICE_HOLE) }),
        }
    }

    /// First address after the RAM below 4 GiB.
    pub fn low_end(&self) -> u64 {
        self.low_end
    }

    /// Bytes of RAM, the VGA window's 128 KiB counted though nothing is mapped there.
    pub fn size(&self) -> u64 {
        self.low_end + self.high_len
    }

    /// RAM regions `(guest-physical address, bytes)`, for `accel_api::GuestRam::new`.
    pub fn ram_regions(&self) -> Vec<(u64, u64)> {
        let mut regions = vec![(0, VGA_HOLE), (ROM_AREA, self.low_end - ROM_AREA)];
        if self.high_len > 0 {
            regions.push((HIGH_RAM, self.high_len));
        }
        regions
    }

    /// First address behind the RAM above 4 GiB; 4 GiB if there is none.
    pub fn high_end(&self) -> u64 {
        HIGH_RAM + self.high_len
    }

    /// The ranges below 4 GiB for BARs of PCI, by address.
    pub fn pci_windows(&self) -> [Range<u64>; 2] {
        [DEVICE_HOLE..ECAM.start, ECAM.end..CHIPSET.start]
    }

    /// The range above the RAM for 64-bit BARs of PCI, if the guest can address any.
    pub fn pci_high_window(&self) -> Option<Range<u64>> {
        let window = self.high_end().next_multiple_of(GIB)..1 << PHYS_BITS;
        (!window.is_empty()).then_some(window)
    }

    /// Whether `range` holds neither RAM nor devices, and the guest can address it.
    pub fn is_free(&self, range: &Range<u64>) -> bool {
        let apart = |other: Range<u64>| range.end <= other.start || other.end <= range.start;
        let ram = self.ram_regions().into_iter().map(|(gpa, len)| gpa..gpa + len);
        range.start < range.end && range.end <= 1 << PHYS_BITS && ram.chain([ECAM, CHIPSET]).all(apart)
    }

    /// What the guest is told, in ascending order (E820; PVH memory map).
    pub fn guest_ranges(&self) -> Vec<MapRange> {
        let range = |start, end: u64, kind| MapRange { start, len: end - start, kind };
        let mut ranges = vec![
            range(0, EBDA, RangeKind::Ram),
            range(EBDA, VGA_HOLE, RangeKind::Reserved),
            range(ROM_AREA, EXTENDED, RangeKind::Reserved),
            range(EXTENDED, self.low_end, RangeKind::Ram),
            range(ECAM.start, ECAM.end, RangeKind::Reserved),
            range(LAPIC_BASE, LAPIC_BASE + 0x1000, RangeKind::Reserved),
        ];
        if self.high_len > 0 {
            ranges.push(range(HIGH_RAM, HIGH_RAM + self.high_len, RangeKind::Ram));
        }
        ranges
    }
}

/// Refuses a memory size beyond the host's RAM. A host that does not tell refuses nothing.
///
/// # Errors
/// [`MemorySizeError::BeyondHost`].
pub fn check_host(bytes: u64) -> Result<(), MemorySizeError> {
    match host_memory() {
        Some(host) if bytes > host => Err(MemorySizeError::BeyondHost { bytes, host }),
        _ => Ok(()),
    }
}

/// Bytes of RAM the host has (MemTotal of /proc/meminfo).
pub fn host_memory() -> Option<u64> {
    parse_mem_total(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse_mem_total(meminfo: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_cannot_be_are_told_apart() {
        assert_eq!(MemoryMap::new(0), Err(MemorySizeError::Zero));
        assert_eq!(MemoryMap::new(MIB + 4096), Err(MemorySizeError::Unaligned { bytes: MIB + 4096 }));
        assert_eq!(MemoryMap::new(MIB), Err(MemorySizeError::TooSmall { bytes: MIB }));
        assert_eq!(
            MemoryMap::new(1 << PHYS_BITS),
            Err(MemorySizeError::BeyondAddresses { bytes: 1 << PHYS_BITS })
        );
        assert!(MemoryMap::new(MAX_MEMORY).is_ok());
        assert!(MemoryMap::new(!(MIB - 1)).is_err());
    }

    #[test]
    fn the_largest_machine_has_no_window_above_its_ram() {
        assert_eq!(MemoryMap::new(MAX_MEMORY).unwrap().pci_high_window(), None);
        assert_eq!(MemoryMap::new(MIB * 512).unwrap().pci_high_window(), Some(HIGH_RAM..1 << PHYS_BITS));
    }

    #[test]
    fn more_than_the_host_has_is_refused() {
        let host = host_memory().expect("/proc/meminfo");
        assert!(check_host(MIB).is_ok());
        let error = check_host(host + MIB).unwrap_err();
        assert_eq!(error, MemorySizeError::BeyondHost { bytes: host + MIB, host });
        assert_eq!(parse_mem_total("MemFree: 1 kB\nMemTotal:       2048 kB\n"), Some(2 << 20));
        assert_eq!(parse_mem_total("MemTotal: lots"), None);
    }

    #[test]
    fn what_is_free_has_neither_ram_nor_devices() {
        let map = MemoryMap::new(4 * GIB).unwrap();
        let free = |start, end| map.is_free(&(start..end));
        assert!(free(0xffff_0000, HIGH_RAM) && free(0xff00_0000, HIGH_RAM) && free(VGA_HOLE, ROM_AREA));
        assert!(free(DEVICE_HOLE, ECAM.start) && free(ECAM.end, CHIPSET.start));
        assert!(free(HIGH_RAM + GIB, 1 << PHYS_BITS));
        for (start, end) in [
            (0xffff_0000, HIGH_RAM + 1),
            (0xfeff_f000, HIGH_RAM),
            (LAPIC_BASE, LAPIC_BASE + 0x1000),
            (0xf_0000, 0x10_0000),
            (ECAM.start - 0x1000, ECAM.start + 0x1000),
            (HIGH_RAM + GIB, (1 << PHYS_BITS) + 1),
            (DEVICE_HOLE, DEVICE_HOLE),
        ] {
            assert!(!free(start, end), "{start:#x}..{end:#x}");
        }
    }

    #[test]
    fn ranges_ascend_without_overlap_and_ram_is_mapped() {
        for mib in [2, 16, 512, 3071, 3072, 3073, 8192] {
            let map = MemoryMap::new(mib * MIB).unwrap();
            let ranges = map.guest_ranges();
            for pair in ranges.windows(2) {
                assert!(pair[0].start + pair[0].len <= pair[1].start, "{mib}: {pair:x?}");
            }
            let regions = map.ram_regions();
            for ram in ranges.iter().filter(|r| r.kind == RangeKind::Ram) {
                let inside = |&(gpa, len): &(u64, u64)| gpa <= ram.start && ram.start + ram.len <= gpa + len;
                assert!(regions.iter().any(inside), "{mib}: {ram:x?}");
            }
            let bytes: u64 = regions.iter().map(|r| r.1).sum();
            assert_eq!(bytes + (ROM_AREA - VGA_HOLE), mib * MIB);
            assert!(regions.iter().all(|&(gpa, len)| gpa + len <= DEVICE_HOLE || gpa >= HIGH_RAM));
            accel_api::GuestRam::new(&regions).unwrap();
            for window in map.pci_windows().into_iter().chain(map.pci_high_window()) {
                assert!(map.is_free(&window), "{mib}: {window:x?}");
            }
        }
    }
}

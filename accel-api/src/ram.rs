//! Guest RAM: one memfd, mapped shared once, seen by every backend and by the devices.
#![allow(unsafe_code)] // memfd_create is a raw system call

mod loss;

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::bitmap::BS;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, VolatileMemory, VolatileSlice,
};

use crate::{PAGE_SIZE, PageBitmap, PageFlags};

use loss::Guard;
pub use loss::{stop_on_loss, take_bus_error};

/// Why RAM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// A region is empty, not page-aligned, wraps, or overlaps another.
    #[error("RAM region at {gpa:#x} of {len:#x} bytes is empty, unaligned or overlaps another")]
    Layout {
        /// Guest-physical start.
        gpa: u64,
        /// Bytes.
        len: u64,
    },
    /// The host refused the memory.
    #[error("the host cannot provide {bytes} bytes of guest RAM: {source}")]
    Host {
        /// Bytes asked for.
        bytes: u64,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// More memory for devices than is left.
    #[error(
        "{bytes} bytes of memory for a device, of which {left} are left; reserve more when the RAM is made"
    )]
    DeviceMemory {
        /// Bytes asked for.
        bytes: u64,
        /// Bytes that are left.
        left: u64,
    },
    /// A page that the host does not have when it is needed.
    #[error(
        "the host cannot provide the page of guest RAM at {gpa:#x}: its memory, or this control group's share, is used up; \
         free some, or give the guest less"
    )]
    Lost {
        /// Guest-physical address of the access.
        gpa: u64,
    },
}

/// All RAM of one VM.
///
/// The regions lie one after the other in the memfd, in the order given; the *RAM offset* of a byte is its place
/// there, and indexes [`PageFlags`].
#[derive(Debug)]
pub struct GuestRam {
    memory: GuestMemoryMmap<PageBitmap>,
    regions: Vec<RamRegion>,
    flags: Arc<PageFlags>,
    file: Arc<File>,
    len: u64,
    /// Behind it in the file: memory of devices, and the bytes of it that are given away.
    device: Option<(RamRegion, Mutex<u64>)>,
}

/// One contiguous piece of guest memory, and where the guest has it. What a mapping of it costs the host does not depend on how
/// many regions share it.
#[derive(Clone, Debug)]
pub struct RamRegion {
    /// In front of the mapping, hence dropped first.
    guard: Arc<Guard>,
    mapping: Arc<vm_memory::MmapRegion<PageBitmap>>,
    flags: Arc<PageFlags>,
    gpa: u64,
    /// Of the mapping's first byte in the RAM.
    offset: u64,
    /// What part of the mapping it is.
    start: u64,
    len: u64,
}

impl GuestRam {
    /// RAM of the given regions, each `(guest-physical address, bytes)`; zeroed, not yet backed by host pages.
    ///
    /// # Errors
    /// A bad layout, or the host refuses.
    pub fn new(layout: &[(u64, u64)]) -> Result<Self, RamError> {
        Self::with_device_memory(layout, 0)
    }

    /// Likewise, and `device_bytes` of memory besides, of which devices get theirs by [`Self::allocate`]: ROM, VRAM, flash. Its
    /// pages have flags behind those of the RAM; DMA does not reach it.
    ///
    /// # Errors
    /// A bad layout, or the host refuses.
    pub fn with_device_memory(layout: &[(u64, u64)], device_bytes: u64) -> Result<Self, RamError> {
        let mut len = 0u64;
        for &(gpa, bytes) in layout {
            let bad = bytes == 0
                || !gpa.is_multiple_of(PAGE_SIZE)
                || !bytes.is_multiple_of(PAGE_SIZE)
                || gpa.checked_add(bytes).is_none();
            len = match len.checked_add(bytes) {
                Some(sum) if !bad => sum,
                _ => return Err(RamError::Layout { gpa, len: bytes }),
            };
        }
        let device_bytes = device_bytes.next_multiple_of(PAGE_SIZE);
        let all = len.checked_add(device_bytes).ok_or(RamError::Layout { gpa: 0, len: device_bytes })?;
        let host = |source| RamError::Host { bytes: all, source };
        let file = Arc::new(memfd(c"gearshift-ram").map_err(host)?);
        file.set_len(all).map_err(host)?;
        let flags = Arc::new(PageFlags::new((all / PAGE_SIZE) as usize));

        let region = |gpa, offset, len: u64| {
            let bitmap = PageBitmap::new(flags.clone(), offset);
            let mapping = MmapRegionBuilder::new_with_bitmap(len as usize, bitmap)
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
                .with_file_offset(FileOffset::from_arc(file.clone(), offset))
                .build()
                .map_err(|e| host(io::Error::other(e)))?;
            let guard = Arc::new(Guard::new(mapping.as_ptr(), mapping.size()).map_err(host)?);
            let mapping = Arc::new(mapping);
            Ok(RamRegion { guard, mapping, flags: flags.clone(), gpa, offset, start: 0, len })
        };
        let (mut regions, mut mapped, mut offset) = (Vec::new(), Vec::new(), 0);
        for &(gpa, bytes) in layout {
            let part = region(gpa, offset, bytes)?;
            let known = GuestRegionMmap::with_arc(part.mapping.clone(), GuestAddress(gpa))
                .ok_or(RamError::Layout { gpa, len: bytes })?;
            mapped.push(Arc::new(known));
            regions.push(part);
            offset += bytes;
        }
        let overlap = || {
            let (gpa, len) = layout.last().copied().unwrap_or_default();
            RamError::Layout { gpa, len }
        };
        let memory = GuestMemoryMmap::from_arc_regions(mapped).map_err(|_| overlap())?;
        let device = match device_bytes {
            0 => None,
            bytes => Some((region(0, len, bytes)?, Mutex::new(0))),
        };
        Ok(Self { memory, regions, flags, file, len, device })
    }

    /// Memory for a device: `bytes`, rounded up to pages, zeroed. It is at no address until it is mapped
    /// [somewhere](RamRegion::at), and belongs to the device as long as the RAM exists.
    ///
    /// # Errors
    /// Nothing asked for, or more than is left of what was reserved.
    pub fn allocate(&self, bytes: u64) -> Result<RamRegion, RamError> {
        let refused = |left| RamError::DeviceMemory { bytes, left };
        let (all, given) = self.device.as_ref().ok_or(refused(0))?;
        let mut given = given.lock().unwrap_or_else(PoisonError::into_inner);
        let len = bytes.checked_next_multiple_of(PAGE_SIZE);
        let part = len.and_then(|len| all.part(*given, len)).ok_or(refused(all.len - *given))?;
        *given += part.len;
        Ok(part)
    }

    /// The RAM as vm-memory sees it: bounds-checked, and every write recorded in [`Self::flags`].
    pub fn memory(&self) -> &GuestMemoryMmap<PageBitmap> {
        &self.memory
    }

    /// Its contiguous pieces, in RAM-offset order.
    pub fn regions(&self) -> &[RamRegion] {
        &self.regions
    }

    /// Flags of its pages.
    pub fn flags(&self) -> &Arc<PageFlags> {
        &self.flags
    }

    /// The guest-physical address of the first byte that somebody wanted and the host could not give, if that has happened.
    /// What is there since is not the guest's memory: the VM must not run any more.
    #[inline]
    pub fn loss(&self) -> Option<u64> {
        let device = self.device.iter().map(|(region, _)| region);
        self.regions.iter().chain(device).find_map(|region| Some(region.gpa + region.guard.lost()?))
    }

    /// Gives the `len` bytes from guest-physical `gpa` on back to the host: they read as zeros from now on, which counts as a write.
    /// vCPUs and devices may run. False: these are not whole pages of one region, or the host's memfds have no holes; nothing has
    /// happened then.
    pub fn discard(&self, gpa: u64, len: u64) -> bool {
        let part = |region: &RamRegion| region.part(gpa.checked_sub(region.gpa)?, len);
        let Some(part) = self.regions.iter().find_map(part) else { return false };
        let done = self.make_hole(part.offset(), part.size());
        if done {
            // Behind it: whoever decodes code of these pages before reads what was there, and is told now.
            self.flags.mark_written(part.offset(), part.size() as usize);
        }
        done
    }

    /// Makes a hole of `len` bytes in the file.
    fn make_hole(&self, offset: u64, len: u64) -> bool {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (offset, len) = (offset as libc::off_t, len as libc::off_t);
        // SAFETY: makes a hole in our own file. Mappings of it read zeros from then on; Rust knows none of their bytes.
        unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, len) == 0 }
    }

    /// Sets all of it to zero, but not what devices have, and gives the host its pages back. Every page counts as written. Nobody
    /// else may use it meanwhile: vCPUs are parked, devices are still.
    pub fn clear(&self) {
        if !self.make_hole(0, self.len) {
            // A host whose memfds have no holes: the slow way.
            for region in &self.regions {
                let zeros = vec![0; 1 << 20];
                for at in (0..region.size()).step_by(zeros.len()) {
                    let len = (region.size() - at).min(zeros.len() as u64) as usize;
                    // Within the region, which is mapped for reading and writing.
                    let _ = self.memory.write_slice(&zeros[..len], GuestAddress(region.gpa + at));
                }
            }
        }
        self.flags.mark_written(0, self.len as usize);
    }

    /// The memfd behind it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Bytes in all regions, but for memory of devices.
    pub fn size(&self) -> u64 {
        self.len
    }
}

impl RamRegion {
    /// Guest-physical address of its first byte.
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// Bytes; a multiple of 4096.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// RAM offset of its first byte.
    pub fn offset(&self) -> u64 {
        self.offset + self.start
    }

    /// Host address of its first byte. Valid for [`Self::size`] bytes while a clone of this region lives; whoever
    /// writes through it must set the page flags itself.
    pub fn host_addr(&self) -> *mut u8 {
        self.mapping.as_ptr().wrapping_add(self.start as usize)
    }

    /// The `len` bytes from `start` on, where they lie. `None`: not whole pages, none, or not within the region.
    pub fn part(&self, start: u64, len: u64) -> Option<Self> {
        let whole = start.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE) && len > 0;
        let within = start.checked_add(len).is_some_and(|end| end <= self.len);
        (whole && within).then(|| Self {
            gpa: self.gpa + start,
            start: self.start + start,
            len,
            ..self.clone()
        })
    }

    /// The same memory at guest-physical `gpa`. `None`: not at a page's start, or it would wrap.
    pub fn at(&self, gpa: u64) -> Option<Self> {
        let fits = gpa.is_multiple_of(PAGE_SIZE) && gpa.checked_add(self.len).is_some();
        fits.then(|| Self { gpa, ..self.clone() })
    }

    /// Its bytes, for the device that has it: every write through them is recorded in [`Self::flags`].
    pub fn bytes(&self) -> VolatileSlice<'_, BS<'_, PageBitmap>> {
        // A part lies within its mapping.
        let all = self.mapping.as_volatile_slice();
        all.subslice(self.start as usize, self.len as usize).unwrap_or(all)
    }

    /// Flags of all pages of the RAM this is part of.
    pub fn flags(&self) -> &Arc<PageFlags> {
        &self.flags
    }
}

impl PartialEq for RamRegion {
    fn eq(&self, other: &Self) -> bool {
        let place = |region: &Self| (region.gpa, region.start, region.len);
        Arc::ptr_eq(&self.mapping, &other.mapping) && place(self) == place(other)
    }
}

fn memfd(name: &CStr) -> io::Result<File> {
    // SAFETY: `name` is NUL-terminated and outlives the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nobody else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PageFlag;
    use vm_memory::Bytes;

    #[test]
    fn vm_memory_writes_set_the_flag_of_the_right_page() {
        let ram = GuestRam::new(&[(0, 0x4000), (1 << 32, 0x2000)]).unwrap();
        ram.memory().write_obj(7u32, GuestAddress((1 << 32) + 0x1000)).unwrap();
        let dirty: Vec<_> = (0..6).map(|p| ram.flags().get(p).contains(PageFlag::DIRTY)).collect();
        assert_eq!(dirty, [false, false, false, false, false, true]);
        assert_eq!(ram.regions()[1].offset(), 0x4000);
    }

    #[test]
    fn pages_that_are_discarded_are_zero_and_count_as_written_code_too() {
        #[derive(Debug, Default)]
        struct Seen(Mutex<Vec<usize>>);
        impl crate::CodeObserver for Seen {
            fn code_written(&self, page: usize) {
                self.0.lock().unwrap().push(page);
            }
        }
        let ram = GuestRam::with_device_memory(&[(0, 0x4000), (1 << 32, 0x2000)], 0x1000).unwrap();
        let seen = Arc::new(Seen::default());
        let observer: Arc<dyn crate::CodeObserver> = seen.clone();
        ram.flags().observe_code(Arc::downgrade(&observer));
        ram.memory().write_slice(&[1; 0x4000], GuestAddress(0)).unwrap();
        ram.memory().write_slice(&[1; 0x2000], GuestAddress(1 << 32)).unwrap();
        for page in 0..6 {
            ram.flags().clear(page, PageFlag::DIRTY);
            ram.flags().set(page, PageFlag::CODE);
        }
        for (gpa, len) in
            [(0x4000, 0x1000), (0, 0), (1, 0x1000), (0, 1), (0x3000, 0x2000), (u64::MAX << 12, 0x1000)]
        {
            assert!(!ram.discard(gpa, len), "{gpa:#x} {len:#x}");
        }
        assert!(ram.discard(0x1000, 0x2000) && ram.discard((1 << 32) + 0x1000, 0x1000));
        let first = |gpa| ram.memory().read_obj::<u8>(GuestAddress(gpa)).unwrap();
        assert_eq!([0, 0x1000, 0x2fff, 0x3000].map(first), [1, 0, 0, 1]);
        assert_eq!([1 << 32, (1 << 32) + 0x1000].map(first), [1, 0]);
        let dirty: Vec<_> = (0..6).map(|p| ram.flags().get(p).contains(PageFlag::DIRTY)).collect();
        assert_eq!(dirty, [false, true, true, false, false, true]);
        assert_eq!(*seen.0.lock().unwrap(), [1, 2, 5]);
    }

    #[test]
    fn memory_of_devices_is_given_away_once_and_moves() {
        let ram = GuestRam::with_device_memory(&[(0, 0x4000)], 0x3000).unwrap();
        let rom = ram.allocate(0x1001).unwrap();
        assert_eq!((rom.size(), rom.offset(), ram.size(), ram.flags().pages()), (0x2000, 0x4000, 0x4000, 7));
        let vram = ram.allocate(0x1000).unwrap();
        assert_eq!(vram.offset(), 0x6000);
        for bytes in [1, 0, u64::MAX] {
            assert!(matches!(ram.allocate(bytes), Err(RamError::DeviceMemory { left: 0, .. })), "{bytes}");
        }
        vram.bytes().write_obj(7u32, 0x800).unwrap();
        assert!(vram.bytes().write_obj(7u32, 0xffd).is_err(), "beyond its end");
        assert!(
            ram.flags().get(6).contains(PageFlag::DIRTY) && !ram.flags().get(5).contains(PageFlag::DIRTY)
        );
        let moved = vram.at(0xe000_0000).unwrap();
        assert_eq!((moved.gpa(), moved.host_addr(), moved == vram), (0xe000_0000, vram.host_addr(), false));
        assert!(vram.at(0x800).is_none() && vram.at(!0xfff).is_none());
        let second = rom.at(0xc_0000).unwrap().part(0x1000, 0x1000).unwrap();
        assert_eq!((second.gpa(), second.offset()), (0xc_1000, 0x5000));
        for (start, len) in [(0x800, 0x1000), (0, 0), (0x1000, 0x2000), (!0xfff, 0x2000), (0, 0x10)] {
            assert!(rom.part(start, len).is_none(), "{start:#x} {len:#x}");
        }
        ram.clear();
        assert_eq!(vram.bytes().read_obj::<u32>(0x800).unwrap(), 7, "a reset is the device's to do");
    }

    #[test]
    fn bad_layouts_are_refused() {
        for layout in [&[(0, 0)][..], &[(1, 0x1000)], &[(0, 0x2000), (0x1000, 0x1000)], &[(!0xfff, 0x2000)]] {
            assert!(matches!(GuestRam::new(layout), Err(RamError::Layout { .. })), "{layout:x?}");
        }
    }
}

//! Guest RAM: one memfd, mapped shared once, seen by every backend and by the devices.
#![allow(unsafe_code)] // memfd_create is a raw system call

mod loss;

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::sync::Arc;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

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
}

/// One contiguous piece of guest RAM.
#[derive(Clone, Debug)]
pub struct RamRegion {
    /// In front of the mapping, hence dropped first.
    guard: Arc<Guard>,
    mapping: Arc<vm_memory::MmapRegion<PageBitmap>>,
    flags: Arc<PageFlags>,
    gpa: u64,
    offset: u64,
}

impl GuestRam {
    /// RAM of the given regions, each `(guest-physical address, bytes)`; zeroed, not yet backed by host pages.
    ///
    /// # Errors
    /// A bad layout, or the host refuses.
    pub fn new(layout: &[(u64, u64)]) -> Result<Self, RamError> {
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
        let host = |source| RamError::Host { bytes: len, source };
        let file = Arc::new(memfd(c"gearshift-ram").map_err(host)?);
        file.set_len(len).map_err(host)?;
        let flags = Arc::new(PageFlags::new((len / PAGE_SIZE) as usize));

        let (mut regions, mut mapped, mut offset) = (Vec::new(), Vec::new(), 0);
        for &(gpa, bytes) in layout {
            let mapping =
                MmapRegionBuilder::new_with_bitmap(bytes as usize, PageBitmap::new(flags.clone(), offset))
                    .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                    .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
                    .with_file_offset(FileOffset::from_arc(file.clone(), offset))
                    .build()
                    .map_err(|e| host(io::Error::other(e)))?;
            let mapping = Arc::new(mapping);
            let guard = Arc::new(Guard::new(mapping.as_ptr(), mapping.size()).map_err(host)?);
            let region = GuestRegionMmap::with_arc(mapping.clone(), GuestAddress(gpa))
                .ok_or(RamError::Layout { gpa, len: bytes })?;
            mapped.push(Arc::new(region));
            regions.push(RamRegion { guard, mapping, flags: flags.clone(), gpa, offset });
            offset += bytes;
        }
        let overlap = || {
            let (gpa, len) = layout.last().copied().unwrap_or_default();
            RamError::Layout { gpa, len }
        };
        let memory = GuestMemoryMmap::from_arc_regions(mapped).map_err(|_| overlap())?;
        Ok(Self { memory, regions, flags, file, len })
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
        self.regions.iter().find_map(|region| Some(region.gpa + region.guard.lost()?))
    }

    /// Sets all of it to zero and gives the host its pages back. Every page counts as written. Nobody else may use it meanwhile:
    /// vCPUs are parked, devices are still.
    pub fn clear(&self) {
        // SAFETY: makes a hole in our own file. Mappings of it read zeros from then on; Rust knows none of their bytes.
        let done = unsafe {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            libc::fallocate(self.file.as_raw_fd(), mode, 0, self.len as libc::off_t)
        };
        if done != 0 {
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

    /// Bytes in all regions.
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
        self.mapping.size() as u64
    }

    /// RAM offset of its first byte.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Host address of its first byte. Valid for [`Self::size`] bytes while a clone of this region lives; whoever
    /// writes through it must set the page flags itself.
    pub fn host_addr(&self) -> *mut u8 {
        self.mapping.as_ptr()
    }

    /// Flags of all pages of the RAM this is part of.
    pub fn flags(&self) -> &Arc<PageFlags> {
        &self.flags
    }
}

impl PartialEq for RamRegion {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.mapping, &other.mapping)
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
    fn bad_layouts_are_refused() {
        for layout in [&[(0, 0)][..], &[(1, 0x1000)], &[(0, 0x2000), (0x1000, 0x1000)], &[(!0xfff, 0x2000)]] {
            assert!(matches!(GuestRam::new(layout), Err(RamError::Layout { .. })), "{layout:x?}");
        }
    }
}

//! Booting a kernel without firmware: its file goes into guest memory, vCPU 0 gets the state its boot protocol asks
//! for.
//!
//! 1. A kernel is a bzImage (`bzimage`), entered by Linux's 64-bit boot protocol or, where it has no 64-bit entry, by
//!    the 32-bit one (`linux`); or an ELF file. An ELF file with a PVH note is entered as PVH says (`pvh`), any other
//!    as a `vmlinux` by the 64-bit protocol.
//! 2. Files are untrusted: every offset, size and address in them is checked before it is used.
//! 3. Files are read straight into guest memory, and nothing of them is kept.
//! 4. The lowest 640 KiB hold what the protocols hand over, at the addresses of [`layout`].
//! 5. An embedder who has something else to start puts it into memory itself, with a [`MemoryImage`].

mod bzimage;
mod cpu;
mod elf;
mod error;
mod image;
mod linux;
mod memory_image;
mod pvh;
#[cfg(test)]
pub(crate) mod tests;

use accel_api::{CpuState, GuestRam};

pub use cpu::firmware_state;
pub use error::{BootError, Role};
pub use image::Source;
pub use memory_image::MemoryImage;
pub(crate) use memory_image::OpenImage;

use crate::memory_map::MemoryMap;
use image::Image;

/// Guest-physical addresses of what the boot protocols hand over.
pub mod layout {
    /// Global descriptor table, 4 entries.
    pub const GDT: u64 = 0x500;
    /// PVH start info, its module list and its memory map.
    pub const PVH_INFO: u64 = 0x6000;
    /// Linux's boot_params ("zero page"), 4 KiB.
    pub const ZERO_PAGE: u64 = 0x7000;
    /// Page tables: PML4, PDPT, four page directories.
    pub const PAGE_TABLES: u64 = 0x9000;
    /// Linux's setup_data: a seed for its random numbers.
    pub const SEED: u64 = 0x1_0000;
    /// Command line, NUL-terminated.
    pub const CMDLINE: u64 = 0x2_0000;
    /// Bytes there for the command line, the NUL included.
    pub const CMDLINE_ROOM: u64 = 0x1_0000;
}

/// What to boot.
#[derive(Debug)]
pub struct BootSpec<'a> {
    /// bzImage or ELF.
    pub kernel: &'a Source,
    /// Initial RAM disk.
    pub initrd: Option<&'a Source>,
    /// Kernel command line.
    pub cmdline: &'a str,
    /// Address of the ACPI RSDP.
    pub rsdp: u64,
    /// Random bytes, new at every boot, for the kernel's generator.
    pub seed: Option<Seed>,
}

/// Random bytes of the host's kernel.
pub type Seed = [u8; 32];

/// A range of guest-physical memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Placed {
    gpa: u64,
    len: u64,
}

/// Loads the kernel and what goes with it into `ram`, and gives the state in which vCPU 0 starts.
///
/// # Errors
/// A file that cannot be read, is not a kernel, is damaged or does not fit; a command line the kernel cannot take.
pub fn load(ram: &GuestRam, map: &MemoryMap, spec: &BootSpec<'_>) -> Result<CpuState, BootError> {
    if spec.cmdline.bytes().any(|b| b == 0) {
        return Err(BootError::CmdlineNul);
    }
    let kernel = Image::open(Role::Kernel, spec.kernel)?;
    let initrd = spec.initrd.map(|source| Image::open(Role::Initrd, source)).transpose()?;
    if bzimage::is_bzimage(&kernel)? {
        let loaded = bzimage::load(ram, map, &kernel)?;
        return linux::enter(ram, map, spec, initrd.as_ref(), &loaded);
    }
    if !elf::is_elf(&kernel)? {
        return Err(image::not_a_kernel(&kernel)?);
    }
    let loaded = elf::load(ram, map, &kernel)?;
    match loaded.pvh_entry {
        Some(entry) => pvh::enter(ram, map, spec, initrd.as_ref(), entry, loaded.end),
        None => linux::enter(ram, map, spec, initrd.as_ref(), &loaded.as_linux()),
    }
}

/// Loads the initial RAM disk as high as it goes below `limit`, above `floor`.
fn place_initrd(
    ram: &GuestRam,
    initrd: Option<&Image>,
    floor: u64,
    limit: u64,
) -> Result<Option<Placed>, BootError> {
    let Some(initrd) = initrd else { return Ok(None) };
    let len = initrd.len();
    let floor = floor.next_multiple_of(accel_api::PAGE_SIZE);
    let gpa = limit.checked_sub(len).map(|at| at & !(accel_api::PAGE_SIZE - 1)).filter(|&at| at >= floor);
    let Some(gpa) = gpa else {
        return Err(BootError::InitrdTooLarge {
            name: initrd.name().to_owned(),
            len,
            room: limit.saturating_sub(floor),
        });
    };
    initrd.copy_to(ram, gpa, 0, len)?;
    Ok(Some(Placed { gpa, len }))
}

/// Writes the command line; `max` is what the kernel takes, without the NUL.
fn place_cmdline(ram: &GuestRam, cmdline: &str, max: u64) -> Result<(), BootError> {
    let max = max.min(layout::CMDLINE_ROOM - 1);
    if cmdline.len() as u64 > max {
        return Err(BootError::CmdlineTooLong { len: cmdline.len() as u64, max });
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    write(ram, layout::CMDLINE, &bytes)
}

/// Writes to memory that the memory map says is RAM.
fn write(ram: &GuestRam, gpa: u64, bytes: &[u8]) -> Result<(), BootError> {
    use vm_memory::{Bytes, GuestAddress};
    ram.memory().write_slice(bytes, GuestAddress(gpa)).map_err(|_| BootError::NoRam { gpa })
}

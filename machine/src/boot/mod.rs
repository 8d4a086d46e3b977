//! Booting a kernel without firmware: its file goes into guest memory, vCPU 0 gets the state its boot protocol asks
//! for.
//!
//! 1. A kernel is a bzImage (`bzimage`), entered by Linux's 64-bit boot protocol or, where it has no 64-bit entry, by
//!    the 32-bit one (`linux`); or an ELF file (`elf`). An ELF file with a PVH note is entered as PVH says (`pvh`). One
//!    without is entered as a `vmlinux` by Linux's protocol of its word size if it is Linux, which its banner tells, and
//!    refused otherwise.
//! 2. Files are untrusted: every offset, size and address in them is checked before it is used.
//! 3. Files are read straight into guest memory, and nothing of them is kept. One that changes meanwhile is refused.
//! 4. The lowest 640 KiB hold what the protocols hand over, unless the kernel has segments there (`layout`).
//! 5. An embedder who has something else to start puts it into memory itself, with a [`MemoryImage`].

mod bzimage;
mod cpu;
mod elf;
#[cfg(test)]
mod elf_tests;
mod error;
#[cfg(test)]
mod file_tests;
mod image;
mod initrd;
mod layout;
mod linux;
mod memory_image;
mod notes;
mod pvh;
#[cfg(test)]
pub(crate) mod tests;

use accel_api::GuestRam;
use accel_api::x86::CpuState;

pub use cpu::firmware_state;
pub use error::{BootError, Role};
pub use image::Source;
pub use memory_image::MemoryImage;

use crate::memory_map::MemoryMap;
use image::Image;
use initrd::InitrdReach;
use layout::Handover;

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
    /// Frequency of the TSC in kHz, for a kernel that does not find it by CPUID.
    pub tsc_khz: Option<u32>,
}

impl<'a> BootSpec<'a> {
    /// A kernel alone: nothing else is handed over but the ACPI tables' address.
    pub const fn new(kernel: &'a Source, rsdp: u64) -> Self {
        Self { kernel, initrd: None, cmdline: "", rsdp, seed: None, tsc_khz: None }
    }
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
    let state = load_files(ram, map, spec, &kernel, initrd.as_ref())?;
    kernel.check_unchanged()?;
    initrd.as_ref().map_or(Ok(()), Image::check_unchanged)?;
    Ok(state)
}

fn load_files(
    ram: &GuestRam,
    map: &MemoryMap,
    spec: &BootSpec<'_>,
    kernel: &Image<'_>,
    initrd: Option<&Image<'_>>,
) -> Result<CpuState, BootError> {
    if bzimage::is_bzimage(kernel)? {
        let loaded = bzimage::load(ram, map, kernel)?;
        return linux::enter(ram, map, spec, initrd, &loaded);
    }
    if !elf::is_elf(kernel)? {
        return Err(image::not_a_kernel(kernel)?);
    }
    match elf::load(ram, map, kernel, spec.cmdline.len() as u64)? {
        elf::Protocol::Pvh(loaded) => pvh::enter(ram, map, spec, initrd, &loaded),
        elf::Protocol::Linux(loaded) => linux::enter(ram, map, spec, initrd, &loaded),
    }
}

/// Writes the command line; `max` is what the kernel takes, without the NUL.
fn place_cmdline(ram: &GuestRam, handover: Handover, cmdline: &str, max: u64) -> Result<(), BootError> {
    let max = max.min(layout::CMDLINE_ROOM - 1);
    if cmdline.len() as u64 > max {
        return Err(BootError::CmdlineTooLong { len: cmdline.len() as u64, max });
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    write(ram, handover.cmdline(), &bytes)
}

/// Writes to memory that the memory map says is RAM.
fn write(ram: &GuestRam, gpa: u64, bytes: &[u8]) -> Result<(), BootError> {
    use vm_memory::{Bytes, GuestAddress};
    ram.memory().write_slice(bytes, GuestAddress(gpa)).map_err(|_| BootError::NoRam { gpa })
}

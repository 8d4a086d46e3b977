//! Linux's boot protocols (Documentation/arch/x86/boot.rst). Both hand over the zero page, in RSI.
//!
//! 1. "64-bit Boot Protocol": long mode, the first 4 GiB mapped one to one.
//! 2. "32-bit Boot Protocol": protected mode without paging; EBP, EDI and EBX are zero.
//!
//! Both can hand over a seed, so that the first random number need not wait for interrupts to be counted. Linux 6.0 and later
//! take it, and wipe it out; older ones pass over a kind of data they do not know.

use accel_api::{CpuState, GuestRam, gpr};
use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::ByteValued;

use super::image::Image;
use super::{BootError, BootSpec, Seed, cpu, layout, place_cmdline, place_initrd, write};
use crate::memory_map::MemoryMap;

/// Where a kernel is entered, which is also how.
#[derive(Clone, Copy)]
pub(super) enum Entry {
    /// By the 64-bit protocol.
    Long(u64),
    /// By the 32-bit protocol.
    Protected(u64),
}

/// A kernel in guest memory, to be entered by one of these protocols.
pub(super) struct LinuxKernel {
    /// Its setup header.
    pub(super) header: setup_header,
    /// Address of its entry.
    pub(super) entry: Entry,
    /// First address after what it uses before it knows the memory map.
    pub(super) end: u64,
    /// First address the initrd must not reach.
    pub(super) initrd_limit: u64,
    /// Longest command line in bytes, without the NUL.
    pub(super) cmdline_max: u64,
}

/// A loader without an assigned id.
const UNKNOWN_LOADER: u8 = 0xff;

/// Writes all that the kernel is handed, and gives the state that enters it.
pub(super) fn enter(
    ram: &GuestRam,
    map: &MemoryMap,
    spec: &BootSpec<'_>,
    initrd: Option<&Image>,
    kernel: &LinuxKernel,
) -> Result<CpuState, BootError> {
    place_cmdline(ram, spec.cmdline, kernel.cmdline_max)?;
    let initrd = place_initrd(ram, initrd, kernel.end, kernel.initrd_limit)?;

    let mut header = kernel.header;
    header.type_of_loader = UNKNOWN_LOADER;
    header.cmd_line_ptr = layout::CMDLINE as u32;
    if let Some(at) = initrd {
        // Below 4 GiB, as `initrd_limit` is.
        (header.ramdisk_image, header.ramdisk_size) = (at.gpa as u32, at.len as u32);
    }
    if let Some(seed) = spec.seed {
        write_seed(ram, &seed)?;
        header.setup_data = layout::SEED;
    }
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: spec.rsdp, ..Default::default() };
    let ranges = map.guest_ranges();
    for (slot, range) in params.e820_table.iter_mut().zip(&ranges) {
        *slot = boot_e820_entry { addr: range.start, size: range.len, r#type: range.kind as u32 };
    }
    params.e820_entries = ranges.len() as u8;
    write(ram, layout::ZERO_PAGE, params.as_slice())?;

    let mut state = match kernel.entry {
        Entry::Long(entry) => {
            write_page_tables(ram)?;
            write(ram, layout::GDT, &words(&cpu::gdt(true)))?;
            cpu::long_mode(layout::GDT, layout::PAGE_TABLES, entry)
        }
        Entry::Protected(entry) => {
            write(ram, layout::GDT, &words(&cpu::gdt(false)))?;
            cpu::protected_mode(layout::GDT, entry)
        }
    };
    state.gpr[gpr::RSI] = layout::ZERO_PAGE;
    Ok(state)
}

/// The only entry of the list of setup_data (Linux arch/x86/include/uapi/asm/setup_data.h). The kernel keeps others off the
/// memory of the list, wherever that is.
fn write_seed(ram: &GuestRam, seed: &Seed) -> Result<(), BootError> {
    const NEXT: u64 = 0;
    const RNG_SEED: u32 = 9;
    let mut entry = NEXT.to_le_bytes().to_vec();
    entry.extend(RNG_SEED.to_le_bytes());
    entry.extend((seed.len() as u32).to_le_bytes());
    entry.extend(seed);
    write(ram, layout::SEED, &entry)
}

/// Maps the first 4 GiB one to one with 2 MiB pages (Intel SDM vol. 3, 4.5).
fn write_page_tables(ram: &GuestRam) -> Result<(), BootError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    const TABLE: u64 = 0x1000;
    let (pdpt, directories) = (layout::PAGE_TABLES + TABLE, layout::PAGE_TABLES + 2 * TABLE);
    write(ram, layout::PAGE_TABLES, &words(&[pdpt | PRESENT_WRITABLE]))?;
    let pointers: Vec<u64> = (0..4).map(|i| (directories + i * TABLE) | PRESENT_WRITABLE).collect();
    write(ram, pdpt, &words(&pointers))?;
    let pages: Vec<u64> = (0..4 * 512).map(|i| i << 21 | LARGE | PRESENT_WRITABLE).collect();
    write(ram, directories, &words(&pages))
}

/// Little-endian bytes of `values`.
pub(super) fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

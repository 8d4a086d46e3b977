//! Linux's boot protocols (Documentation/arch/x86/boot.rst). Both hand over the zero page, in RSI.
//!
//! 1. "64-bit Boot Protocol": long mode, the first 4 GiB mapped one to one.
//! 2. "32-bit Boot Protocol": protected mode without paging; EBP, EDI and EBX are zero.
//!
//! Both can hand over a seed, so that the first random number need not wait for interrupts to be counted. Linux 6.0 and later
//! take it, and wipe it out; older ones pass over a kind of data they do not know. And both can be told the TSC's frequency
//! on the command line.

use std::borrow::Cow;

use accel_api::GuestRam;
use accel_api::x86::{CpuState, gpr};
use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::ByteValued;

use super::image::Image;
use super::initrd::{self, Beside};
use super::layout::{CMDLINE_ROOM, Handover};
use super::{BootError, BootSpec, InitrdReach, Seed, cpu, place_cmdline, write};
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
    /// The same in a machine that has as much memory as the kernel likes.
    pub(super) preferred_end: u64,
    /// Where it leaves room for what it is handed.
    pub(super) handover: Handover,
    /// Where it takes the initrd.
    pub(super) initrd: InitrdReach,
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
    initrd: Option<&Image<'_>>,
    kernel: &LinuxKernel,
) -> Result<CpuState, BootError> {
    let handover = kernel.handover;
    let max = kernel.cmdline_max.min(CMDLINE_ROOM - 1);
    place_cmdline(ram, handover, &with_frequency(spec.cmdline, spec.tsc_khz, max), max)?;
    let beside = Beside { end: kernel.end, preferred_end: kernel.preferred_end, reach: kernel.initrd };
    let initrd = initrd::place(ram, map, initrd, beside)?;

    let mut header = kernel.header;
    header.type_of_loader = UNKNOWN_LOADER;
    header.cmd_line_ptr = handover.cmdline() as u32;
    let mut params = boot_params { acpi_rsdp_addr: spec.rsdp, ..Default::default() };
    if let Some(at) = initrd {
        (header.ramdisk_image, params.ext_ramdisk_image) = halves(at.gpa);
        (header.ramdisk_size, params.ext_ramdisk_size) = halves(at.len);
    }
    if let Some(seed) = spec.seed {
        header.setup_data = handover.seed();
        write_seed(ram, header.setup_data, &seed)?;
    }
    params.hdr = header;
    let ranges = map.guest_ranges();
    for (slot, range) in params.e820_table.iter_mut().zip(&ranges) {
        *slot = boot_e820_entry { addr: range.start, size: range.len, r#type: range.kind as u32 };
    }
    params.e820_entries = ranges.len() as u8;
    write(ram, handover.zero_page(), params.as_slice())?;

    let mut state = match kernel.entry {
        Entry::Long(entry) => {
            write_page_tables(ram, handover.page_tables())?;
            write(ram, handover.gdt(), &words(&cpu::gdt(true)))?;
            cpu::long_mode(handover.gdt(), handover.page_tables(), entry)
        }
        Entry::Protected(entry) => {
            write(ram, handover.gdt(), &words(&cpu::gdt(false)))?;
            cpu::protected_mode(handover.gdt(), entry)
        }
    };
    state.gpr[gpr::RSI] = handover.zero_page();
    Ok(state)
}

/// The command line with the TSC's frequency in front, so that Linux need not measure it (kernel-parameters.txt) and what the
/// user says of it counts; without, where that would be more than `max` bytes.
fn with_frequency(cmdline: &str, tsc_khz: Option<u32>, max: u64) -> Cow<'_, str> {
    let longer = tsc_khz.map(|khz| format!("tsc_early_khz={khz} {cmdline}"));
    longer.filter(|line| line.len() as u64 <= max).map_or(Cow::Borrowed(cmdline), Cow::Owned)
}

/// Low and high half.
fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

/// Writes, at `gpa`, the only entry of the list of setup_data (Linux arch/x86/include/uapi/asm/setup_data.h). The kernel
/// keeps others off the memory of the list, wherever that is.
fn write_seed(ram: &GuestRam, gpa: u64, seed: &Seed) -> Result<(), BootError> {
    const NEXT: u64 = 0;
    const RNG_SEED: u32 = 9;
    let mut entry = NEXT.to_le_bytes().to_vec();
    entry.extend(RNG_SEED.to_le_bytes());
    entry.extend((seed.len() as u32).to_le_bytes());
    entry.extend(seed);
    write(ram, gpa, &entry)
}

/// Maps the first 4 GiB one to one with 2 MiB pages (Intel SDM vol. 3, 4.5); the tables are at `pml4`.
fn write_page_tables(ram: &GuestRam, pml4: u64) -> Result<(), BootError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    const TABLE: u64 = 0x1000;
    let (pdpt, directories) = (pml4 + TABLE, pml4 + 2 * TABLE);
    write(ram, pml4, &words(&[pdpt | PRESENT_WRITABLE]))?;
    let pointers: Vec<u64> = (0..4).map(|i| (directories + i * TABLE) | PRESENT_WRITABLE).collect();
    write(ram, pdpt, &words(&pointers))?;
    let pages: Vec<u64> = (0..4 * 512).map(|i| i << 21 | LARGE | PRESENT_WRITABLE).collect();
    write(ram, directories, &words(&pages))
}

/// Little-endian bytes of `values`.
pub(super) fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

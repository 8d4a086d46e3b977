//! The PVH protocol (Xen, docs/misc/pvh.pandoc): 32-bit protected mode without paging, EBX pointing to the start info.

use accel_api::GuestRam;
use accel_api::x86::{CpuState, gpr};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::ByteValued;

use super::elf::PvhKernel;
use super::image::Image;
use super::initrd::{self, Beside};
use super::{BootError, BootSpec, InitrdReach, cpu, linux, place_cmdline, write};
use crate::memory_map::{HIGH_RAM, MemoryMap};

const MAGIC: u32 = 0x336e_c578;
/// Offset of the module list in the start info's page.
const MODULES: u64 = 0x40;
/// Offset of the memory map there.
const MEMMAP: u64 = 0x80;
/// Addresses have 64 bits, but Xen's loader keeps all below 4 GiB (start_info.h), and Linux takes no more than that many
/// bits of a module's address and size.
const MODULES_REACH: InitrdReach = InitrdReach { limit: HIGH_RAM, anywhere: false };

/// Writes the start info, and gives the state that enters the kernel.
pub(super) fn enter(
    ram: &GuestRam,
    map: &MemoryMap,
    spec: &BootSpec<'_>,
    initrd: Option<&Image<'_>>,
    kernel: &PvhKernel,
) -> Result<CpuState, BootError> {
    let handover = kernel.handover;
    let info_at = handover.pvh_info();
    place_cmdline(ram, handover, spec.cmdline, kernel.cmdline_max.unwrap_or(u64::MAX))?;
    let beside = Beside { end: kernel.end, preferred_end: kernel.end, reach: MODULES_REACH };
    let module = initrd::place(ram, map, initrd, beside)?;
    if let Some(at) = module {
        let entry = hvm_modlist_entry { paddr: at.gpa, size: at.len, ..Default::default() };
        write(ram, info_at + MODULES, entry.as_slice())?;
    }
    let ranges = map.guest_ranges();
    let mut at = info_at + MEMMAP;
    for range in &ranges {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.len,
            type_: range.kind as u32,
            reserved: 0,
        };
        write(ram, at, entry.as_slice())?;
        at += entry.as_slice().len() as u64;
    }
    let info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        nr_modules: module.is_some().into(),
        modlist_paddr: if module.is_some() { info_at + MODULES } else { 0 },
        cmdline_paddr: handover.cmdline(),
        rsdp_paddr: spec.rsdp,
        memmap_paddr: info_at + MEMMAP,
        memmap_entries: ranges.len() as u32,
        ..Default::default()
    };
    write(ram, info_at, info.as_slice())?;
    write(ram, handover.gdt(), &linux::words(&cpu::gdt(false)))?;
    let mut state = cpu::protected_mode(handover.gdt(), kernel.entry.into());
    state.gpr[gpr::RBX] = info_at;
    Ok(state)
}

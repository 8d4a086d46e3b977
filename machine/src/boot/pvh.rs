//! The PVH protocol (Xen, docs/misc/pvh.pandoc): 32-bit protected mode without paging, EBX pointing to the start info.

use accel_api::{CpuState, GuestRam, gpr};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::ByteValued;

use super::image::Image;
use super::{BootError, BootSpec, cpu, layout, linux, place_cmdline, place_initrd, write};
use crate::memory_map::MemoryMap;

const MAGIC: u32 = 0x336e_c578;
const MODULES: u64 = layout::PVH_INFO + 0x40;
const MEMMAP: u64 = layout::PVH_INFO + 0x80;

/// Writes the start info, and gives the state that enters the kernel at `entry`. `end` is the first address after it.
pub(super) fn enter(
    ram: &GuestRam,
    map: &MemoryMap,
    spec: &BootSpec<'_>,
    initrd: Option<&Image>,
    entry: u32,
    end: u64,
) -> Result<CpuState, BootError> {
    place_cmdline(ram, spec.cmdline, layout::CMDLINE_ROOM - 1)?;
    let module = place_initrd(ram, initrd, end, map.low_end())?;
    if let Some(at) = module {
        let entry = hvm_modlist_entry { paddr: at.gpa, size: at.len, ..Default::default() };
        write(ram, MODULES, entry.as_slice())?;
    }
    let ranges = map.guest_ranges();
    let mut at = MEMMAP;
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
        modlist_paddr: if module.is_some() { MODULES } else { 0 },
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: spec.rsdp,
        memmap_paddr: MEMMAP,
        memmap_entries: ranges.len() as u32,
        ..Default::default()
    };
    write(ram, layout::PVH_INFO, info.as_slice())?;
    write(ram, layout::GDT, &linux::words(&cpu::gdt(false)))?;
    let mut state = cpu::protected_mode(layout::GDT, entry.into());
    state.gpr[gpr::RBX] = layout::PVH_INFO;
    Ok(state)
}

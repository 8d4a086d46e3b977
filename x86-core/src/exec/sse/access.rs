//! Memory operands of SSE instructions: 2 to 16 bytes into a zero-extended 128-bit value, and back.
#![allow(unsafe_code)] // guest RAM is reached through the TLB's host pointers, as in `mem.rs`

use accel_api::PAGE_SIZE;
use iced_x86::Instruction;

use crate::{Cpu, Ea, Exec, Fault, host_load16, host_store16};

/// A 128-bit operand, lowest lane first.
pub(super) type Xmm = [u64; 2];

/// The address of the memory operand of `bytes`. Some must be aligned to their size, whatever CR0.AM says (Intel SDM
/// vol. 2A, 2.4): that is looked at before the segment's limit, as processors do.
#[inline(always)]
pub(in crate::exec) fn address(
    cpu: &Cpu,
    ins: &Instruction,
    bytes: u8,
    must_align: bool,
    write: bool,
) -> Exec<Ea> {
    let ea = cpu.ea(ins, usize::from(bytes), write);
    let beyond = u64::from(bytes) - 1;
    match ea {
        Ok(ea) if must_align && ea.la & beyond != 0 => Err(Fault::GP0),
        Err(_) if must_align && linear(cpu, ins) & beyond != 0 => Err(Fault::GP0),
        _ => ea,
    }
}

/// The linear address of a memory operand that its segment refuses.
#[cold]
fn linear(cpu: &Cpu, ins: &Instruction) -> u64 {
    cpu.segs[cpu.memory_segment(ins)].base.wrapping_add(cpu.ea_offset(ins))
}

/// The memory operand of `bytes` (2, 4, 8 or 16), zero-extended.
#[inline(always)]
pub(super) fn load(cpu: &mut Cpu, ins: &Instruction, bytes: u8, must_align: bool) -> Exec<Xmm> {
    let ea = address(cpu, ins, bytes, must_align, false)?;
    Ok(match bytes {
        16 => return load16(cpu, ea),
        8 => [cpu.load(ea)?, 0],
        4 => [u64::from(cpu.load::<u32>(ea)?), 0],
        2 => [u64::from(cpu.load::<u16>(ea)?), 0],
        _ => [u64::from(cpu.load::<u8>(ea)?), 0],
    })
}

/// Stores the low `bytes` (4, 8 or 16) of `value` to the memory operand.
#[inline(always)]
pub(super) fn store(cpu: &mut Cpu, ins: &Instruction, bytes: u8, must_align: bool, value: Xmm) -> Exec {
    let ea = address(cpu, ins, bytes, must_align, true)?;
    match bytes {
        16 => store16(cpu, ea, value),
        8 => cpu.store(ea, value[0]),
        _ => cpu.store(ea, value[0] as u32),
    }
}

/// Loads 16 bytes, in one access where they lie in one page of RAM: an aligned one is atomic on a host with AVX, as on
/// a guest with it (Intel SDM vol. 3, 9.1.1).
///
/// # Errors
/// #PF, #GP or #SS.
#[inline(always)]
pub fn load16(cpu: &mut Cpu, ea: Ea) -> Exec<[u64; 2]> {
    let entry = cpu.data_entry(ea.la);
    if ea.la ^ entry.read_tag <= PAGE_SIZE - 16 {
        let host = ea.la.wrapping_add(entry.addend) as *const u8;
        // SAFETY: the entry maps the whole page to RAM, and the 16 bytes lie in it.
        return Ok(unsafe { host_load16(host) });
    }
    load16_slow(cpu, ea)
}

/// Stores 16 bytes, in one access where they lie in one page of RAM.
///
/// # Errors
/// #PF, #GP or #SS; nothing is written then.
#[inline(always)]
pub fn store16(cpu: &mut Cpu, ea: Ea, value: [u64; 2]) -> Exec {
    let entry = cpu.data_entry(ea.la);
    if ea.la ^ entry.write_tag <= PAGE_SIZE - 16 {
        let host = ea.la.wrapping_add(entry.addend) as *mut u8;
        // SAFETY: as in `load16`; a write tag stands only for writable RAM.
        unsafe { host_store16(host, value) };
        return Ok(());
    }
    store16_slow(cpu, ea, value)
}

#[cold]
#[inline(never)]
fn load16_slow(cpu: &mut Cpu, ea: Ea) -> Exec<Xmm> {
    let mut bytes = [0; 16];
    cpu.load_bytes(ea, &mut bytes)?;
    let value = u128::from_le_bytes(bytes);
    Ok([value as u64, (value >> 64) as u64])
}

#[cold]
#[inline(never)]
fn store16_slow(cpu: &mut Cpu, ea: Ea, value: Xmm) -> Exec {
    let value = u128::from(value[0]) | u128::from(value[1]) << 64;
    cpu.store_bytes(ea, &value.to_le_bytes())
}

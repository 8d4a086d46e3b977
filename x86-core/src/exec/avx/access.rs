//! Memory operands of VEX instructions: 1 to 32 bytes into a zero-extended 256-bit value, and back.
#![allow(unsafe_code)] // a copy by the host's AVX

use accel_api::x86::Ymm;
use iced_x86::Instruction;

use super::raw::vector_asm;
use crate::exec::sse::{address, load16, store16};
use crate::{Cpu, Ea, Exec};

/// The memory operand of `bytes`, zero-extended.
#[inline(always)]
pub(super) fn load(cpu: &mut Cpu, ins: &Instruction, bytes: u8, must_align: bool) -> Exec<Ymm> {
    let ea = address(cpu, ins, bytes, must_align, false)?;
    let low = match bytes {
        32 => return load32(cpu, ea),
        16 => {
            let [low, high] = load16(cpu, ea)?;
            return Ok([low, high, 0, 0]);
        }
        8 => cpu.load(ea)?,
        4 => u64::from(cpu.load::<u32>(ea)?),
        2 => u64::from(cpu.load::<u16>(ea)?),
        _ => u64::from(cpu.load::<u8>(ea)?),
    };
    Ok([low, 0, 0, 0])
}

/// Stores the low `bytes` (4 to 32) of `value` to the memory operand.
#[inline(always)]
pub(super) fn store(cpu: &mut Cpu, ins: &Instruction, bytes: u8, must_align: bool, value: Ymm) -> Exec {
    let ea = address(cpu, ins, bytes, must_align, true)?;
    match bytes {
        32 => cpu.store_bytes(ea, &to_bytes(value)),
        16 => store16(cpu, ea, [value[0], value[1]]),
        8 => cpu.store(ea, value[0]),
        _ => cpu.store(ea, value[0] as u32),
    }
}

/// Checks that the memory operand can be stored.
pub(super) fn probe(cpu: &mut Cpu, ins: &Instruction, bytes: u8) -> Exec {
    let ea = address(cpu, ins, bytes, false, true)?;
    cpu.probe_write(ea, usize::from(bytes))
}

/// Copies 32 bytes by one load and one store, so that a later load of all of them need not wait for two stores.
///
/// # Safety
/// Both pointers must be valid for 32 bytes, and the host must have AVX.
#[inline(always)]
pub unsafe fn copy32(dst: *mut u8, src: *const u8) {
    // SAFETY: the caller's promise.
    unsafe {
        vector_asm!(int "vmovups ymm0, [{s}]", "vmovups [{d}], ymm0", "vzeroupper", s = in(reg) src, d = in(reg) dst,);
    }
}

/// Loads 32 bytes.
fn load32(cpu: &mut Cpu, ea: Ea) -> Exec<Ymm> {
    let mut bytes = [0; 32];
    cpu.load_bytes(ea, &mut bytes)?;
    Ok(from_bytes(&bytes))
}

pub(super) fn to_bytes(value: Ymm) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (to, lane) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(value) {
        *to = lane.to_le_bytes();
    }
    bytes
}

pub(super) fn from_bytes(bytes: &[u8; 32]) -> Ymm {
    let lanes = bytes.as_chunks::<8>().0;
    std::array::from_fn(|i| u64::from_le_bytes(lanes[i]))
}

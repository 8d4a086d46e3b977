//! SSE to SSE4.2, AES-NI, PCLMULQDQ and SHA on XMM registers, legacy encodings.
//!
//! 1. Each instruction on vector operands is a *raw operation* ([`VecOp`]): the host's own instruction on pointers into
//!    the register file, without checks. [`vec_op`] tells an executor which one, and what must hold before it is called
//!    ([`VecForm`]); the functions registered here check that and call the same raw operations.
//! 2. Registers are 256 bits wide; legacy encodings leave the upper half alone. A VEX form of an instruction can use
//!    the raw operation of its legacy form on a copy of its first source.
//! 3. Checks come in this order: #UD or #NM ([`ready`]), segment limits, alignment, paging, numeric exceptions.
//! 4. MXCSR is in the host's while guest code runs: see [`mxcsr`].
//!
//! Instructions with MMX operands are in `exec::fpu`. Those that use no vector register are elsewhere: MOVNTI and CRC32
//! in `exec::integer`, fences and prefetches in `exec::system`. SSE4A is not offered to guests.

mod access;
mod crypto;
mod form;
mod gpr;
mod imm;
mod masked;
mod moves;
pub mod mxcsr;
mod packed_float;
mod packed_int;
mod raw;
mod strings;
#[cfg(test)]
mod tests;

use accel_api::Feature;
use iced_x86::{Code, Instruction};

use super::Table;
use crate::mode::bits;
use crate::{Cpu, Exec, Fault};

pub use access::{load16, store16};
pub use form::{Float, Shape, VecForm, VecOp, vec_op};

pub(super) fn register(table: &mut Table) {
    form::register(table);
    gpr::register(table);
    masked::register(table);
    strings::register(table);
    table.set(&[Code::Ldmxcsr_m32], ldmxcsr);
    table.set(&[Code::Stmxcsr_m32], stmxcsr);
}

/// Whether an SSE instruction that needs `feature` may run.
///
/// # Errors
/// #UD or #NM (Intel SDM vol. 3, table 13-1 and 2.5).
#[inline(always)]
fn ready(cpu: &Cpu, feature: Option<Feature>) -> Exec {
    let has = feature.is_none_or(|f| cpu.model.features.has(f));
    if cpu.sse_ready && has { Ok(()) } else { Err(not_ready(cpu, has)) }
}

#[cold]
fn not_ready(cpu: &Cpu, has: bool) -> Fault {
    let enabled = cpu.cr0 & bits::CR0_EM == 0 && cpu.cr4 & bits::CR4_OSFXSR != 0;
    if has && enabled { Fault::NM } else { Fault::UD }
}

fn ldmxcsr(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    ready(cpu, None)?;
    let value = cpu.read_op::<u32>(ins, 0)?;
    mxcsr::load(cpu, value)
}

fn stmxcsr(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    ready(cpu, None)?;
    mxcsr::sync(cpu);
    cpu.write_op(ins, 0, cpu.fpu.mxcsr)
}

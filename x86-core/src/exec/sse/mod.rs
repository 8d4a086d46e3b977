//! SSE to SSE4.2, SSE4a, AES-NI, PCLMULQDQ, GFNI and SHA on XMM registers, legacy encodings; and those VEX encodings that
//! do the same but for what is above the result.
//!
//! 1. Each instruction on vector operands is a *raw operation* ([`VecOp`]): the host's own instruction on pointers into
//!    the register file, without checks. [`vec_op`] tells an executor which one, and what must hold before it is called
//!    ([`VecForm`]); the functions registered here check that and call the same raw operations.
//! 2. Registers are 256 bits wide; legacy encodings leave the upper half alone. VEX encodings on vector operands are in
//!    [`exec::avx`](super::avx); what moves to and from general registers, sets flags or compares strings is here in both
//!    encodings, as functions of `const VEX`.
//! 3. Checks come in this order: #UD or #NM ([`ready`]), alignment, segment limits, paging, numeric exceptions.
//! 4. MXCSR is in the host's while guest code runs: see [`mxcsr`].
//!
//! Instructions with MMX operands are in `exec::fpu`. Those that use no vector register are elsewhere: MOVNTI and CRC32
//! in `exec::integer`, fences and prefetches in `exec::system`.

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
mod sse4a;
mod strings;
#[cfg(test)]
mod tests;

use accel_api::x86::Feature;
use iced_x86::{Code, Instruction};

use super::Table;
use crate::mode::bits;
use crate::{Cpu, Exec, Fault};

pub(super) use access::address;
pub use access::{load16, store16};
pub use form::{Float, Shape, VecForm, VecOp, vec_op};
pub(super) use form::{feature, number, tiny};

pub(super) fn register(table: &mut Table) {
    form::register(table);
    gpr::register(table);
    masked::register(table);
    strings::register(table);
    sse4a::register(table);
    table.set(&[Code::Ldmxcsr_m32], ldmxcsr::<false>);
    table.set(&[Code::VEX_Vldmxcsr_m32], ldmxcsr::<true>);
    table.set(&[Code::Stmxcsr_m32], stmxcsr::<false>);
    table.set(&[Code::VEX_Vstmxcsr_m32], stmxcsr::<true>);
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

/// [`ready`] for either encoding.
#[inline(always)]
fn ready_as<const VEX: bool>(cpu: &Cpu, feature: Option<Feature>) -> Exec {
    if VEX { super::avx::ready(cpu, feature) } else { ready(cpu, feature) }
}

#[cold]
fn not_ready(cpu: &Cpu, has: bool) -> Fault {
    let enabled = cpu.cr0 & bits::CR0_EM == 0 && cpu.cr4 & bits::CR4_OSFXSR != 0;
    if has && enabled { Fault::NM } else { Fault::UD }
}

fn ldmxcsr<const VEX: bool>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    ready_as::<VEX>(cpu, None)?;
    let value = cpu.read_op::<u32>(ins, 0)?;
    mxcsr::load(cpu, value)
}

fn stmxcsr<const VEX: bool>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    ready_as::<VEX>(cpu, None)?;
    mxcsr::sync(cpu);
    cpu.write_op(ins, 0, cpu.fpu.mxcsr)
}

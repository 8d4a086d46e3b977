//! AVX, AVX2, FMA, F16C, and the VEX forms of AES, PCLMULQDQ, GFNI, VAES and VPCLMULQDQ.
//!
//! 1. As in [`exec::sse`](super::sse), an instruction on vector operands is a *raw operation* ([`AvxOp`]): the host's own
//!    instruction on pointers into the register file. [`avx_op`] tells an executor which one, and what must hold before it
//!    is called ([`AvxForm`]). The tables name instructions by iced's mnemonic, which is also what is assembled.
//! 2. Every result is 256 bits: an instruction on XMM registers zeroes what its destination has above, as the host's does.
//! 3. Checks come in this order: #UD or #NM ([`ready`]), alignment where there is any, segment limits, paging, numeric
//!    exceptions. What the encoding must not be (VEX.L, VEX.vvvv, prefixes before VEX) is the decoder's to refuse.
//! 4. MXCSR is in the host's while guest code runs: see [`mxcsr`](super::mxcsr).
//!
//! VEX forms that also name a general register, set RFLAGS or compare strings are in `exec::sse` beside their legacy forms,
//! whose host operation they share. BMI1 and BMI2 are in `exec::integer`.

mod access;
mod crypto;
mod fma;
mod form;
mod gather;
mod gpr;
mod imm;
mod masked;
mod moves;
mod packed_float;
mod packed_int;
mod raw;
#[cfg(test)]
mod tests;

use accel_api::x86::Feature;
use iced_x86::Code;

use super::Table;
use crate::mode::{Mode, bits};
use crate::{Cpu, Exec, Fault};

pub(super) use raw::values;

pub use super::sse::Float;
pub use access::copy32;
pub use form::{AvxForm, AvxOp, Operands, avx_op};

pub(super) fn register(table: &mut Table) {
    form::register(table);
    masked::register(table);
    gather::register(table);
    gpr::register(table);
    table.set(&[Code::VEX_Vzeroupper], |cpu, _| zero(cpu, 2));
    table.set(&[Code::VEX_Vzeroall], |cpu, _| zero(cpu, 0));
}

/// Whether a VEX instruction that needs `feature` beyond AVX may run.
///
/// # Errors
/// #UD or #NM (Intel SDM vol. 1, 14.9 and vol. 3, 13.1). CR0.EM and CR4.OSFXSR do not matter.
#[inline(always)]
pub(super) fn ready(cpu: &Cpu, feature: Option<Feature>) -> Exec {
    let has = feature.is_none_or(|f| cpu.model.features.has(f));
    if cpu.avx_ready && has { Ok(()) } else { Err(not_ready(cpu, has)) }
}

#[cold]
fn not_ready(cpu: &Cpu, has: bool) -> Fault {
    if has && cpu.avx_enabled() { Fault::NM } else { Fault::UD }
}

/// VZEROUPPER and VZEROALL: quadwords from `first` of the registers that the mode can name.
fn zero(cpu: &mut Cpu, first: usize) -> Exec {
    ready(cpu, None)?;
    let count = if cpu.mode == Mode::Long { 16 } else { 8 };
    cpu.vector.0[..count].iter_mut().for_each(|register| register[first..].fill(0));
    Ok(())
}

impl Cpu {
    /// Whether the model has AVX, the operating system has switched it on, and the mode has VEX. A loaded state may have
    /// set XCR0 to anything.
    pub(crate) fn avx_enabled(&self) -> bool {
        const SSE_AND_AVX: u64 = 6;
        self.model.features.has(Feature::Avx)
            && self.cr4 & bits::CR4_OSXSAVE != 0
            && self.xcr0 & SSE_AND_AVX == SSE_AND_AVX
            && self.protected()
    }
}

//! Integer instructions: data movement, arithmetic, shifts, bits, strings, atomics.
//!
//! Each function is generic over the operand width. Families whose encodings differ only in operands (ADD has
//! eighteen) are registered by mnemonic: [`sized`] finds each encoding's width in iced's tables.

mod arith;
mod atomic;
mod bcd;
mod bits;
mod bmi;
mod data;
mod misc;
mod muldiv;
mod shift;
mod stack;
mod string;
#[cfg(test)]
mod tests;

use accel_api::x86::Feature;
use iced_x86::{Code, EncodingKind, Mnemonic, OpCodeOperandKind};

use super::{ExecFn, Table};
use crate::{Cpu, Exec, Fault};

pub(super) fn register(table: &mut Table) {
    arith::register(table);
    atomic::register(table);
    bcd::register(table);
    bits::register(table);
    bmi::register(table);
    data::register(table);
    misc::register(table);
    muldiv::register(table);
    shift::register(table);
    stack::register(table);
    string::register(table);
}

/// A function for each operand width: 8, 16, 32 and 64 bits.
type Sized4 = [ExecFn; 4];

/// `f::<u8, ..>` to `f::<u64, ..>` as [`Sized4`].
macro_rules! words {
    ($f:ident $(, $t:ty)*) => {
        [$f::<u8 $(, $t)*>, $f::<u16 $(, $t)*>, $f::<u32 $(, $t)*>, $f::<u64 $(, $t)*>]
    };
}
use words;

/// Codes and functions, a line each.
macro_rules! codes {
    ($table:expr; $($($code:ident)|+ => $f:expr;)*) => {
        $($table.set(&[$(iced_x86::Code::$code),+], $f);)*
    };
}
use codes;

/// Registers every legacy encoding of `mnemonic` by the width of its first operand, which is a general register or
/// general-register-sized memory.
fn sized(table: &mut Table, mnemonic: Mnemonic, functions: Sized4) {
    for code in Code::values() {
        if code.mnemonic() == mnemonic
            && code.op_code().encoding() == EncodingKind::Legacy
            && let Some(index) = width_index(code.op_code().op0_kind())
        {
            table.set(&[code], functions[index]);
        }
    }
}

/// log2 of the operand's bytes, for general registers and memory of their widths.
fn width_index(kind: OpCodeOperandKind) -> Option<usize> {
    use OpCodeOperandKind as K;
    match kind {
        K::r8_or_mem | K::r8_reg | K::r8_opcode | K::al => Some(0),
        K::r16_or_mem | K::r16_reg | K::r16_opcode | K::ax => Some(1),
        K::r32_or_mem | K::r32_reg | K::r32_opcode | K::eax => Some(2),
        K::r64_or_mem | K::r64_reg | K::r64_opcode | K::rax => Some(3),
        _ => None,
    }
}

/// #UD unless the guest's processor has `feature`.
#[inline(always)]
fn require(cpu: &Cpu, feature: Feature) -> Exec {
    if cpu.model.features.has(feature) { Ok(()) } else { Err(Fault::UD) }
}

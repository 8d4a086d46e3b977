//! SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD.
//!
//! The count is masked by the host's instruction as by the guest's; a count of 0 leaves the flags, but memory is written
//! all the same.

use iced_x86::{Instruction, Mnemonic};

use super::{Table, codes, sized, words};
use crate::alu::wide::NoByte;
use crate::alu::{ArithFlags, Word};
use crate::{Cpu, Exec};

trait Shift {
    fn apply<W: Word>(a: W, count: u8, f: &mut ArithFlags) -> W;
}

trait DoubleShift {
    fn apply<W: NoByte>(a: W, fill: W, count: u8, f: &mut ArithFlags) -> W;
}

macro_rules! shifts {
    ($($name:ident $method:ident;)*) => {$(
        struct $name;
        impl Shift for $name {
            #[inline(always)]
            fn apply<W: Word>(a: W, count: u8, f: &mut ArithFlags) -> W {
                a.$method(count, f)
            }
        }
    )*};
}

macro_rules! double_shifts {
    ($($name:ident $method:ident;)*) => {$(
        struct $name;
        impl DoubleShift for $name {
            #[inline(always)]
            fn apply<W: NoByte>(a: W, fill: W, count: u8, f: &mut ArithFlags) -> W {
                a.$method(fill, count, f)
            }
        }
    )*};
}

shifts! { Shl shl; Shr shr; Sar sar; Rol rol; Ror ror; Rcl rcl; Rcr rcr; }
double_shifts! { Shld shld; Shrd shrd; }

fn shift<W: Word, O: Shift>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let count: u8 = cpu.read_op(ins, 1)?;
    let old = cpu.flags;
    cpu.flags = cpu.rmw_op(ins, 0, |a: W| {
        let mut f = old;
        let result = O::apply(a, count, &mut f);
        Ok((result, f))
    })?;
    Ok(())
}

fn double_shift<W: NoByte, O: DoubleShift>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let fill: W = cpu.read_op(ins, 1)?;
    let count: u8 = cpu.read_op(ins, 2)?;
    let old = cpu.flags;
    cpu.flags = cpu.rmw_op(ins, 0, |a: W| {
        let mut f = old;
        let result = O::apply(a, fill, count, &mut f);
        Ok((result, f))
    })?;
    Ok(())
}

pub(super) fn register(table: &mut Table) {
    sized(table, Mnemonic::Shl, words!(shift, Shl));
    sized(table, Mnemonic::Sal, words!(shift, Shl));
    sized(table, Mnemonic::Shr, words!(shift, Shr));
    sized(table, Mnemonic::Sar, words!(shift, Sar));
    sized(table, Mnemonic::Rol, words!(shift, Rol));
    sized(table, Mnemonic::Ror, words!(shift, Ror));
    sized(table, Mnemonic::Rcl, words!(shift, Rcl));
    sized(table, Mnemonic::Rcr, words!(shift, Rcr));
    codes! { table;
        Shld_rm16_r16_imm8 | Shld_rm16_r16_CL => double_shift::<u16, Shld>;
        Shld_rm32_r32_imm8 | Shld_rm32_r32_CL => double_shift::<u32, Shld>;
        Shld_rm64_r64_imm8 | Shld_rm64_r64_CL => double_shift::<u64, Shld>;
        Shrd_rm16_r16_imm8 | Shrd_rm16_r16_CL => double_shift::<u16, Shrd>;
        Shrd_rm32_r32_imm8 | Shrd_rm32_r32_CL => double_shift::<u32, Shrd>;
        Shrd_rm64_r64_imm8 | Shrd_rm64_r64_CL => double_shift::<u64, Shrd>;
    }
}

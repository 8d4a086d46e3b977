//! ADD, ADC, SUB, SBB, CMP, AND, OR, XOR, TEST, INC, DEC, NEG, NOT.

use iced_x86::{Instruction, Mnemonic};

use super::{Table, sized, words};
use crate::alu::{ArithFlags, Word};
use crate::{Cpu, Exec};

/// An operation of two operands.
trait Binary {
    fn apply<W: Word>(a: W, b: W, f: &mut ArithFlags) -> W;
}

/// An operation of one operand.
trait Unary {
    fn apply<W: Word>(a: W, f: &mut ArithFlags) -> W;
}

macro_rules! binaries {
    ($($name:ident $method:ident;)*) => {$(
        struct $name;
        impl Binary for $name {
            #[inline(always)]
            fn apply<W: Word>(a: W, b: W, f: &mut ArithFlags) -> W {
                a.$method(b, f)
            }
        }
    )*};
}

macro_rules! unaries {
    ($($name:ident $method:ident;)*) => {$(
        struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn apply<W: Word>(a: W, f: &mut ArithFlags) -> W {
                a.$method(f)
            }
        }
    )*};
}

binaries! { Add add; Adc adc; Sub sub; Sbb sbb; And and; Or or; Xor xor; }
unaries! { Inc inc; Dec dec; Neg neg; }

fn binary<W: Word, O: Binary>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let b: W = cpu.read_op(ins, 1)?;
    let old = cpu.flags;
    cpu.flags = cpu.rmw_op(ins, 0, |a: W| {
        let mut f = old;
        let result = O::apply(a, b, &mut f);
        Ok((result, f))
    })?;
    Ok(())
}

/// CMP and TEST: flags only.
fn compare<W: Word, O: Binary>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let a: W = cpu.read_op(ins, 0)?;
    let b: W = cpu.read_op(ins, 1)?;
    O::apply(a, b, &mut cpu.flags);
    Ok(())
}

fn unary<W: Word, O: Unary>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let old = cpu.flags;
    cpu.flags = cpu.rmw_op(ins, 0, |a: W| {
        let mut f = old;
        let result = O::apply(a, &mut f);
        Ok((result, f))
    })?;
    Ok(())
}

/// NOT touches no flag.
fn not<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    cpu.rmw_op(ins, 0, |a: W| Ok((W::from_u64(!a.to_u64()), ())))
}

pub(super) fn register(table: &mut Table) {
    sized(table, Mnemonic::Add, words!(binary, Add));
    sized(table, Mnemonic::Adc, words!(binary, Adc));
    sized(table, Mnemonic::Sub, words!(binary, Sub));
    sized(table, Mnemonic::Sbb, words!(binary, Sbb));
    sized(table, Mnemonic::And, words!(binary, And));
    sized(table, Mnemonic::Or, words!(binary, Or));
    sized(table, Mnemonic::Xor, words!(binary, Xor));
    sized(table, Mnemonic::Cmp, words!(compare, Sub));
    sized(table, Mnemonic::Test, words!(compare, And));
    sized(table, Mnemonic::Inc, words!(unary, Inc));
    sized(table, Mnemonic::Dec, words!(unary, Dec));
    sized(table, Mnemonic::Neg, words!(unary, Neg));
    sized(table, Mnemonic::Not, words!(not));
}

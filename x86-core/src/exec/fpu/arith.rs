//! Add, subtract, multiply, divide and compare (Intel SDM vol. 1, 8.3.5 and 8.3.6).

use iced_x86::{Code, Instruction};

use super::host;
use super::host::{Add, Com, Div, Divr, Env, Mul, Operation, Raw, Sub, Subr, format, fucom};
use super::stack::{begin, enter, leave, operand, record, sti};
use super::transfer::fetch;
use crate::alu::{ArithFlags, flag};
use crate::exec::Table;
use crate::{Cpu, Exec, F80, fsw};

/// Condition codes that comparisons set.
const COMPARED: u16 = fsw::CODES;

pub(super) fn register(t: &mut Table) {
    /// The six forms of one operation.
    macro_rules! family {
        ($op:ident $m32:ident $m64:ident $i16:ident $i32:ident $st0:ident $sti:ident $pop:ident) => {
            t.set(&[Code::$m32], with_memory::<$op, { format::M32 }>);
            t.set(&[Code::$m64], with_memory::<$op, { format::M64 }>);
            t.set(&[Code::$i16], with_memory::<$op, { format::I16 }>);
            t.set(&[Code::$i32], with_memory::<$op, { format::I32 }>);
            t.set(&[Code::$st0, Code::$sti], with_register::<$op, false>);
            t.set(&[Code::$pop], with_register::<$op, true>);
        };
    }
    family!(Add Fadd_m32fp Fadd_m64fp Fiadd_m16int Fiadd_m32int Fadd_st0_sti Fadd_sti_st0 Faddp_sti_st0);
    family!(Mul Fmul_m32fp Fmul_m64fp Fimul_m16int Fimul_m32int Fmul_st0_sti Fmul_sti_st0 Fmulp_sti_st0);
    family!(Sub Fsub_m32fp Fsub_m64fp Fisub_m16int Fisub_m32int Fsub_st0_sti Fsub_sti_st0 Fsubp_sti_st0);
    family!(Subr Fsubr_m32fp Fsubr_m64fp Fisubr_m16int Fisubr_m32int Fsubr_st0_sti Fsubr_sti_st0 Fsubrp_sti_st0);
    family!(Div Fdiv_m32fp Fdiv_m64fp Fidiv_m16int Fidiv_m32int Fdiv_st0_sti Fdiv_sti_st0 Fdivp_sti_st0);
    family!(Divr Fdivr_m32fp Fdivr_m64fp Fidivr_m16int Fidivr_m32int Fdivr_st0_sti Fdivr_sti_st0 Fdivrp_sti_st0);

    t.set(&[Code::Fcom_m32fp], compare_memory::<{ format::M32 }, false>);
    t.set(&[Code::Fcomp_m32fp], compare_memory::<{ format::M32 }, true>);
    t.set(&[Code::Fcom_m64fp], compare_memory::<{ format::M64 }, false>);
    t.set(&[Code::Fcomp_m64fp], compare_memory::<{ format::M64 }, true>);
    t.set(&[Code::Ficom_m16int], compare_memory::<{ format::I16 }, false>);
    t.set(&[Code::Ficomp_m16int], compare_memory::<{ format::I16 }, true>);
    t.set(&[Code::Ficom_m32int], compare_memory::<{ format::I32 }, false>);
    t.set(&[Code::Ficomp_m32int], compare_memory::<{ format::I32 }, true>);
    t.set(&[Code::Fcom_st0_sti, Code::Fcom_st0_sti_DCD0], |c, i| compare::<0>(c, sti(i, 1), Com::st));
    t.set(&[Code::Fcomp_st0_sti, Code::Fcomp_st0_sti_DCD8, Code::Fcomp_st0_sti_DED0], |c, i| {
        compare::<1>(c, sti(i, 1), Com::st)
    });
    t.set(&[Code::Fcompp], |c, _| compare::<2>(c, 1, Com::st));
    t.set(&[Code::Fucom_st0_sti], |c, i| compare::<0>(c, sti(i, 1), fucom));
    t.set(&[Code::Fucomp_st0_sti], |c, i| compare::<1>(c, sti(i, 1), fucom));
    t.set(&[Code::Fucompp], |c, _| compare::<2>(c, 1, fucom));
    t.set(&[Code::Fcomi_st0_sti], |c, i| compare_to_flags::<false>(c, i, Com::st));
    t.set(&[Code::Fcomip_st0_sti], |c, i| compare_to_flags::<true>(c, i, Com::st));
    t.set(&[Code::Fucomi_st0_sti], |c, i| compare_to_flags::<false>(c, i, fucom));
    t.set(&[Code::Fucomip_st0_sti], |c, i| compare_to_flags::<true>(c, i, fucom));
    t.set(&[Code::Ftst], test);
    t.set(&[Code::Fxam], examine);
}

/// `destination op source` on two registers; one of them is ST0.
fn with_register<O: Operation, const POP: bool>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let env = enter(cpu)?;
    let (to, from) = (sti(ins, 0), sti(ins, 1));
    let regs = &mut cpu.fpu;
    let value = if !regs.is_empty(to) && !regs.is_empty(from) {
        let (value, status) = O::st(&env, &regs.st(to), &regs.st(from));
        regs.completes(status, fsw::C1).then_some(value)
    } else {
        regs.underflow().then_some(F80::INDEFINITE)
    };
    if let Some(value) = value {
        regs.set_st(to, value);
        regs.pop_if(POP);
    }
    leave(cpu)
}

/// Loads a memory operand of format `F`.
#[inline(always)]
fn memory<const F: u8>(cpu: &mut Cpu, ins: &Instruction) -> Exec<(u64, Env)> {
    begin(cpu)?;
    let size = match F {
        format::I16 => 2,
        format::M64 => 8,
        _ => 4,
    };
    let (ea, offset) = operand(cpu, ins, size, false)?;
    let value = match F {
        format::I16 => fetch::<2>(cpu, ea)?,
        format::M64 => fetch::<8>(cpu, ea)?,
        _ => fetch::<4>(cpu, ea)?,
    };
    Ok((value, record(cpu, offset)))
}

/// `ST0 op memory`.
fn with_memory<O: Operation, const F: u8>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let (operand, env) = memory::<F>(cpu, ins)?;
    let regs = &mut cpu.fpu;
    let value = if !regs.is_empty(0) {
        let (value, status) = O::mem::<F>(&env, &regs.st(0), &operand);
        regs.completes(status, fsw::C1).then_some(value)
    } else {
        regs.underflow().then_some(F80::INDEFINITE)
    };
    if let Some(value) = value {
        regs.set_st(0, value);
    }
    leave(cpu)
}

/// The codes of an unordered comparison, and of one that found an empty register.
const UNORDERED: u16 = fsw::C0 | fsw::C2 | fsw::C3;

/// What a comparison told; the stack is popped only if it completed.
#[inline(always)]
fn compared(cpu: &mut Cpu, status: Option<u16>, pops: u8) -> Exec {
    let regs = &mut cpu.fpu;
    let completes = match status {
        Some(status) => regs.completes(status, COMPARED),
        None => {
            regs.fsw |= UNORDERED;
            regs.underflow()
        }
    };
    if completes {
        for _ in 0..pops {
            regs.pop();
        }
    }
    leave(cpu)
}

fn compare_memory<const F: u8, const POP: bool>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let (operand, env) = memory::<F>(cpu, ins)?;
    let status = (!cpu.fpu.is_empty(0)).then(|| Com::mem::<F>(&env, &cpu.fpu.st(0), &operand).1);
    compared(cpu, status, u8::from(POP))
}

#[inline(always)]
fn compare<const POPS: u8>(cpu: &mut Cpu, i: usize, how: fn(&Env, &F80, &F80) -> Raw) -> Exec {
    let env = enter(cpu)?;
    let regs = &cpu.fpu;
    let full = !regs.is_empty(0) && !regs.is_empty(i);
    let status = full.then(|| how(&env, &regs.st(0), &regs.st(i)).1);
    compared(cpu, status, POPS)
}

#[inline(always)]
fn compare_to_flags<const POP: bool>(
    cpu: &mut Cpu,
    ins: &Instruction,
    how: fn(&Env, &F80, &F80) -> Raw,
) -> Exec {
    let env = enter(cpu)?;
    let i = sti(ins, 1);
    let regs = &mut cpu.fpu;
    let full = !regs.is_empty(0) && !regs.is_empty(i);
    let (completes, codes) = if full {
        let (_, status) = how(&env, &regs.st(0), &regs.st(i));
        let cleared = if host::fcomi_clears_c1() { fsw::C1 } else { 0 };
        (regs.completes(status & !fsw::C1, cleared), status)
    } else {
        (regs.underflow(), UNORDERED)
    };
    let bit = |code, flag| if codes & code != 0 { flag } else { 0 };
    let flags = bit(fsw::C0, flag::CF) | bit(fsw::C2, flag::PF) | bit(fsw::C3, flag::ZF);
    cpu.flags = ArithFlags::from_rflags(flags);
    cpu.fpu.pop_if(POP && completes);
    leave(cpu)
}

fn test(cpu: &mut Cpu, _: &Instruction) -> Exec {
    let env = enter(cpu)?;
    let status = (!cpu.fpu.is_empty(0)).then(|| host::ftst(&env, &cpu.fpu.st(0)).1);
    compared(cpu, status, 0)
}

/// FXAM: also an empty register has a sign.
fn examine(cpu: &mut Cpu, _: &Instruction) -> Exec {
    let env = enter(cpu)?;
    let value = cpu.fpu.st(0);
    let status = if cpu.fpu.is_empty(0) {
        let sign = if value.exponent & 0x8000 != 0 { fsw::C1 } else { 0 };
        fsw::C3 | fsw::C0 | sign
    } else {
        host::fxam(&env, &value).1 & fsw::CODES
    };
    cpu.fpu.fsw = cpu.fpu.fsw & !fsw::CODES | status;
    leave(cpu)
}

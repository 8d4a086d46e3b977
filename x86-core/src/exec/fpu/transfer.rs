//! Loads, stores, exchanges and conditional moves (Intel SDM vol. 1, 8.3.3).

use iced_x86::{Code, Instruction};

use super::host::{self, Env, Raw};
use super::stack::{enter, leave, operand, record, sti};
use crate::exec::Table;
use crate::{Cpu, Ea, Exec, F80, fsw};

pub(super) fn register(t: &mut Table) {
    t.set(&[Code::Fld_m32fp], |c, i| load::<4>(c, i, host::fld_m32));
    t.set(&[Code::Fld_m64fp], |c, i| load::<8>(c, i, host::fld_m64));
    t.set(&[Code::Fild_m16int], |c, i| load::<2>(c, i, host::fild_m16));
    t.set(&[Code::Fild_m32int], |c, i| load::<4>(c, i, host::fild_m32));
    t.set(&[Code::Fild_m64int], |c, i| load::<8>(c, i, host::fild_m64));
    t.set(&[Code::Fld_m80fp], |c, i| load_wide(c, i, |_, m| (*m, 0)));
    t.set(&[Code::Fbld_m80bcd], |c, i| load_wide(c, i, host::fbld));
    t.set(&[Code::Fst_m32fp], |c, i| store::<4, false>(c, i, host::fst_m32));
    t.set(&[Code::Fstp_m32fp], |c, i| store::<4, true>(c, i, host::fst_m32));
    t.set(&[Code::Fst_m64fp], |c, i| store::<8, false>(c, i, host::fst_m64));
    t.set(&[Code::Fstp_m64fp], |c, i| store::<8, true>(c, i, host::fst_m64));
    t.set(&[Code::Fstp_m80fp], |c, i| store::<10, true>(c, i, |_, a| (*a, 0)));
    t.set(&[Code::Fist_m16int], |c, i| store::<2, false>(c, i, host::fist_m16));
    t.set(&[Code::Fistp_m16int], |c, i| store::<2, true>(c, i, host::fist_m16));
    t.set(&[Code::Fist_m32int], |c, i| store::<4, false>(c, i, host::fist_m32));
    t.set(&[Code::Fistp_m32int], |c, i| store::<4, true>(c, i, host::fist_m32));
    t.set(&[Code::Fistp_m64int], |c, i| store::<8, true>(c, i, host::fist_m64));
    t.set(&[Code::Fisttp_m16int], |c, i| store::<2, true>(c, i, host::fisttp_m16));
    t.set(&[Code::Fisttp_m32int], |c, i| store::<4, true>(c, i, host::fisttp_m32));
    t.set(&[Code::Fisttp_m64int], |c, i| store::<8, true>(c, i, host::fisttp_m64));
    t.set(&[Code::Fbstp_m80bcd], |c, i| store::<10, true>(c, i, host::fbstp));
    t.set(&[Code::Fld1], |c, _| constant(c, host::fld1));
    t.set(&[Code::Fldl2t], |c, _| constant(c, host::fldl2t));
    t.set(&[Code::Fldl2e], |c, _| constant(c, host::fldl2e));
    t.set(&[Code::Fldpi], |c, _| constant(c, host::fldpi));
    t.set(&[Code::Fldlg2], |c, _| constant(c, host::fldlg2));
    t.set(&[Code::Fldln2], |c, _| constant(c, host::fldln2));
    t.set(&[Code::Fldz], |c, _| constant(c, host::fldz));
    t.set(&[Code::Fld_sti], load_register);
    t.set(&[Code::Fst_sti], store_register::<false>);
    t.set(&[Code::Fstp_sti, Code::Fstp_sti_DFD0, Code::Fstp_sti_DFD8], store_register::<true>);
    t.set(&[Code::Fstpnce_sti], store_register_quietly);
    t.set(&[Code::Fxch_st0_sti, Code::Fxch_st0_sti_DDC8, Code::Fxch_st0_sti_DFC8], exchange);
    t.set(&[Code::Fcmovb_st0_sti], conditional::<2>);
    t.set(&[Code::Fcmovnb_st0_sti], conditional::<3>);
    t.set(&[Code::Fcmove_st0_sti], conditional::<4>);
    t.set(&[Code::Fcmovne_st0_sti], conditional::<5>);
    t.set(&[Code::Fcmovbe_st0_sti], conditional::<6>);
    t.set(&[Code::Fcmovnbe_st0_sti], conditional::<7>);
    t.set(&[Code::Fcmovu_st0_sti], conditional::<10>);
    t.set(&[Code::Fcmovnu_st0_sti], conditional::<11>);
}

/// Loads `N` bytes, zero-extended.
#[inline(always)]
pub(super) fn fetch<const N: usize>(cpu: &mut Cpu, ea: Ea) -> Exec<u64> {
    Ok(match N {
        2 => u64::from(cpu.load::<u16>(ea)?),
        4 => u64::from(cpu.load::<u32>(ea)?),
        _ => cpu.load::<u64>(ea)?,
    })
}

#[inline(always)]
fn load<const N: usize>(cpu: &mut Cpu, ins: &Instruction, convert: fn(&Env, &u64) -> Raw) -> Exec {
    super::stack::begin(cpu)?;
    let (ea, offset) = operand(cpu, ins, N, false)?;
    let value = fetch::<N>(cpu, ea)?;
    let env = record(cpu, offset);
    // A stack fault comes before anything the operand could raise.
    if !cpu.fpu.is_empty(7) {
        cpu.fpu.push(F80::INDEFINITE);
        return leave(cpu);
    }
    let (value, status) = convert(&env, &value);
    push_result(cpu, value, status)
}

#[inline(always)]
fn load_wide(cpu: &mut Cpu, ins: &Instruction, convert: fn(&Env, &F80) -> Raw) -> Exec {
    super::stack::begin(cpu)?;
    let (ea, offset) = operand(cpu, ins, 10, false)?;
    let mantissa = cpu.load::<u64>(ea)?;
    let exponent = u64::from(cpu.load::<u16>(ea.plus(8))?);
    let env = record(cpu, offset);
    if !cpu.fpu.is_empty(7) {
        cpu.fpu.push(F80::INDEFINITE);
        return leave(cpu);
    }
    let (value, status) = convert(&env, &F80 { mantissa, exponent });
    push_result(cpu, value, status)
}

#[inline(always)]
fn push_result(cpu: &mut Cpu, value: F80, status: u16) -> Exec {
    // A denormal is converted even if that exception is not masked.
    if cpu.fpu.merge(status, fsw::C1) & fsw::IE == 0 {
        cpu.fpu.push_unchecked(value);
    }
    leave(cpu)
}

#[inline(always)]
fn constant(cpu: &mut Cpu, make: fn(&Env) -> Raw) -> Exec {
    let env = enter(cpu)?;
    let (value, _) = make(&env);
    cpu.fpu.fsw &= !fsw::C1;
    cpu.fpu.push(value);
    leave(cpu)
}

/// Unmasked exceptions with which nothing is stored (Intel SDM vol. 1, 8.5.4 and 8.5.5 for memory destinations).
const NOT_STORED: u16 = fsw::EXCEPTIONS & !fsw::PE;

#[inline(always)]
fn store<const N: usize, const POP: bool>(
    cpu: &mut Cpu,
    ins: &Instruction,
    convert: fn(&Env, &F80) -> Raw,
) -> Exec {
    super::stack::begin(cpu)?;
    let (ea, offset) = operand(cpu, ins, N, true)?;
    let empty = cpu.fpu.is_empty(0);
    let env = Env::new(&cpu.fpu);
    if empty && cpu.fpu.fcw & fsw::IE == 0 {
        cpu.probe_write(ea, N)?;
        record(cpu, offset);
        cpu.fpu.underflow();
        return leave(cpu);
    }
    let a = if empty { F80::INDEFINITE } else { cpu.fpu.st(0) };
    let (value, status) = convert(&env, &a);
    // A page fault comes before the exception, also when that one keeps the store from happening.
    if status & !cpu.fpu.fcw & NOT_STORED != 0 {
        cpu.probe_write(ea, N)?;
    } else {
        match N {
            2 => cpu.store(ea, value.mantissa as u16)?,
            4 => cpu.store(ea, value.mantissa as u32)?,
            8 => cpu.store(ea, value.mantissa)?,
            _ => cpu.store_bytes(ea, &value.to_bytes())?,
        }
    }
    record(cpu, offset);
    if empty {
        cpu.fpu.underflow();
        cpu.fpu.pop_if(POP);
        return leave(cpu);
    }
    let unmasked = cpu.fpu.merge(status, fsw::C1);
    cpu.fpu.pop_if(POP && unmasked & NOT_STORED == 0);
    leave(cpu)
}

fn load_register(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    enter(cpu)?;
    let i = sti(ins, 0);
    cpu.fpu.fsw &= !fsw::C1;
    if !cpu.fpu.is_empty(i) {
        let value = cpu.fpu.st(i);
        cpu.fpu.push(value);
    } else if cpu.fpu.underflow() {
        cpu.fpu.push_unchecked(F80::INDEFINITE);
    }
    leave(cpu)
}

fn store_register<const POP: bool>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    enter(cpu)?;
    let i = sti(ins, 0);
    let value = if !cpu.fpu.is_empty(0) {
        cpu.fpu.fsw &= !fsw::C1;
        cpu.fpu.st(0)
    } else if cpu.fpu.underflow() {
        F80::INDEFINITE
    } else {
        return leave(cpu);
    };
    cpu.fpu.set_st(i, value);
    cpu.fpu.pop_if(POP);
    leave(cpu)
}

/// FSTPNCE (D9 D8 to DF): FSTP without stack faults; an empty ST0 is only popped.
fn store_register_quietly(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    enter(cpu)?;
    let i = sti(ins, 0);
    let regs = &mut cpu.fpu;
    regs.fsw &= !fsw::C1;
    if !regs.is_empty(0) {
        regs.set_st(i, regs.st(0));
    }
    regs.pop();
    leave(cpu)
}

fn exchange(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    enter(cpu)?;
    let i = sti(ins, 1);
    let regs = &mut cpu.fpu;
    regs.fsw &= !fsw::C1;
    if (regs.is_empty(0) || regs.is_empty(i)) && !regs.underflow() {
        return leave(cpu);
    }
    let value = |i| if regs.is_empty(i) { F80::INDEFINITE } else { regs.st(i) };
    let (a, b) = (value(0), value(i));
    regs.set_st(0, b);
    regs.set_st(i, a);
    leave(cpu)
}

/// FCMOVcc with condition `CC` of Jcc. Only a stack fault changes a condition code.
fn conditional<const CC: u8>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    enter(cpu)?;
    let i = sti(ins, 1);
    let moves = cpu.flags.condition(CC);
    let regs = &mut cpu.fpu;
    if regs.is_empty(0) || regs.is_empty(i) {
        if regs.underflow() {
            regs.set_st(0, F80::INDEFINITE);
        }
    } else if moves {
        let value = regs.st(i);
        regs.set_st(0, value);
    }
    leave(cpu)
}

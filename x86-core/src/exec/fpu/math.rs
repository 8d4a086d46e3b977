//! Signs, roots, remainders, scaling and transcendental functions (Intel SDM vol. 1, 8.3.5 to 8.3.8).

use iced_x86::Code;

use super::host::{self, Env, Raw};
use super::stack::{enter, leave};
use crate::exec::Table;
use crate::{Cpu, Exec, F80, fsw};

pub(super) fn register(t: &mut Table) {
    t.set(&[Code::Fchs], |c, _| sign(c, |exponent| exponent ^ 0x8000));
    t.set(&[Code::Fabs], |c, _| sign(c, |exponent| exponent & 0x7fff));
    t.set(&[Code::Fsqrt], |c, _| unary(c, fsw::C1, host::fsqrt));
    t.set(&[Code::Frndint], |c, _| unary(c, fsw::C1, host::frndint));
    t.set(&[Code::F2xm1], |c, _| unary(c, fsw::C1, host::f2xm1));
    t.set(&[Code::Fsin], |c, _| unary(c, fsw::C1 | fsw::C2, host::fsin));
    t.set(&[Code::Fcos], |c, _| unary(c, fsw::C1 | fsw::C2, host::fcos));
    t.set(&[Code::Fptan], |c, _| pushing(c, fsw::C1 | fsw::C2, host::fptan));
    t.set(&[Code::Fsincos], |c, _| pushing(c, fsw::C1 | fsw::C2, host::fsincos));
    t.set(&[Code::Fxtract], |c, _| pushing(c, fsw::C1, host::fxtract));
    t.set(&[Code::Fscale], |c, _| binary::<false>(c, fsw::C1, host::fscale));
    t.set(&[Code::Fprem], |c, _| remainder(c, host::fprem));
    t.set(&[Code::Fprem1], |c, _| remainder(c, host::fprem1));
    t.set(&[Code::Fyl2x], |c, _| binary::<true>(c, fsw::C1, host::fyl2x));
    t.set(&[Code::Fyl2xp1], |c, _| binary::<true>(c, fsw::C1, host::fyl2xp1));
    t.set(&[Code::Fpatan], |c, _| binary::<true>(c, fsw::C1, host::fpatan));
}

/// FCHS and FABS take any value, the unsupported formats included, and raise nothing else than a stack fault.
#[inline(always)]
fn sign(cpu: &mut Cpu, change: fn(u64) -> u64) -> Exec {
    enter(cpu)?;
    let regs = &mut cpu.fpu;
    if !regs.is_empty(0) {
        regs.fsw &= !fsw::C1;
        let F80 { mantissa, exponent } = regs.st(0);
        regs.set_st(0, F80 { mantissa, exponent: change(exponent) });
    } else if regs.underflow() {
        regs.set_st(0, F80::INDEFINITE);
    }
    leave(cpu)
}

#[inline(always)]
fn unary(cpu: &mut Cpu, codes: u16, compute: fn(&Env, &F80) -> Raw) -> Exec {
    let env = enter(cpu)?;
    let regs = &mut cpu.fpu;
    if !regs.is_empty(0) {
        let (value, status) = compute(&env, &regs.st(0));
        if regs.completes(status, codes) {
            regs.set_st(0, value);
        }
    } else {
        regs.fsw &= !codes;
        if regs.underflow() {
            regs.set_st(0, F80::INDEFINITE);
        }
    }
    leave(cpu)
}

/// One value in, two out: FPTAN, FSINCOS, FXTRACT. An operand out of range (C2) is left alone and nothing is pushed.
#[inline(always)]
fn pushing(cpu: &mut Cpu, codes: u16, compute: fn(&Env, &F80) -> ([F80; 2], u16)) -> Exec {
    let env = enter(cpu)?;
    let regs = &mut cpu.fpu;
    let faulted = if regs.is_empty(0) {
        Some(regs.underflow())
    } else if !regs.is_empty(7) {
        Some(regs.overflow())
    } else {
        None
    };
    if faulted.is_some() {
        regs.fsw &= !(codes & fsw::C2);
    }
    match faulted {
        Some(false) => {}
        Some(true) => {
            regs.set_st(0, F80::INDEFINITE);
            regs.push_unchecked(F80::INDEFINITE);
        }
        None => {
            let ([first, second], status) = compute(&env, &regs.st(0));
            let out_of_range = status & codes & fsw::C2 != 0;
            if regs.completes(status, codes) && !out_of_range {
                regs.set_st(0, second);
                regs.push_unchecked(first);
            }
        }
    }
    leave(cpu)
}

/// ST0 and ST1 in; the result replaces ST0, or with `POP` both.
#[inline(always)]
fn binary<const POP: bool>(cpu: &mut Cpu, codes: u16, compute: fn(&Env, &F80, &F80) -> Raw) -> Exec {
    let env = enter(cpu)?;
    let regs = &mut cpu.fpu;
    let value = if !regs.is_empty(0) && !regs.is_empty(1) {
        let (value, status) = compute(&env, &regs.st(0), &regs.st(1));
        regs.completes(status, codes).then_some(value)
    } else {
        regs.underflow().then_some(F80::INDEFINITE)
    };
    if let Some(value) = value {
        regs.pop_if(POP);
        regs.set_st(0, value);
    }
    leave(cpu)
}

/// FPREM and FPREM1: the condition codes hold the quotient's low bits, but not if the operands stop it.
#[inline(always)]
fn remainder(cpu: &mut Cpu, compute: fn(&Env, &F80, &F80) -> Raw) -> Exec {
    enter(cpu)?;
    let regs = &mut cpu.fpu;
    let value = if !regs.is_empty(0) && !regs.is_empty(1) {
        let (a, b) = (regs.st(0), regs.st(1));
        let (value, status) = compute(&Env::fresh(regs), &a, &b);
        let stopped = a.is_nan() || b.is_nan() || status & (fsw::IE | fsw::DE & !regs.fcw) != 0;
        let codes = if stopped { fsw::C1 | fsw::C2 } else { fsw::CODES };
        regs.completes(status, codes).then_some(value)
    } else {
        regs.fsw &= !fsw::C2;
        regs.underflow().then_some(F80::INDEFINITE)
    };
    if let Some(value) = value {
        regs.set_st(0, value);
    }
    leave(cpu)
}

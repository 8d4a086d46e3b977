//! All forms against their references, register and memory.

use iced_x86::{Code, Register};

use super::{
    BUFFER, Random, bench, execute, float, get, imm, int, moves, on_registers, poke, set, with_memory,
};
use crate::exec::{Float, Shape, VecForm, vec_op};

const ROUNDS: usize = 400;

/// `code` with registers `a`, `b` by whichever reference knows it. Floating-point ones are computed under the MXCSR
/// in force.
fn reference(code: Code, a: u128, b: u128, imm: u8, memory: bool) -> u128 {
    int::reference(code, a, b)
        .or_else(|| imm::reference(code, a, b, imm, memory))
        .or_else(|| moves::reference(code, a, b, memory))
        .or_else(|| super::crypto::reference(code, a, b, imm))
        .or_else(|| float::reference(code, a, b, imm))
        .unwrap_or_else(|| panic!("{code:?} has no reference"))
}

/// Operands of interest for `form`: integers, singles or doubles, and small shift counts.
fn operands(random: &mut Random, form: &VecForm, round: usize) -> (u128, u128) {
    match (form.float, round % 4) {
        (Float::None, 0) => (random.wide(), u128::from(random.next() % 70)),
        (Float::None, _) => (random.wide(), random.wide()),
        (_, 0) => (random.wide(), random.wide()),
        (_, 1) => (random.singles(), random.singles()),
        _ if round % 8 < 4 => (random.singles(), random.singles()),
        _ => (random.doubles(), random.doubles()),
    }
}

/// MXCSR control bits: rounding, FTZ, DAZ.
fn control(round: usize) -> u32 {
    let [rounding, ftz, daz] = [round as u32 / 8 % 4, round as u32 / 32 % 2, round as u32 / 64 % 2];
    0x1f80 | rounding << 13 | ftz << 15 | daz << 6
}

#[test]
fn every_form_agrees_with_its_reference() {
    let mut random = Random(1);
    let mut cpu = bench();
    let mut tested = 0;
    for code in Code::values() {
        let Some(form) = vec_op(code) else { continue };
        if !form.feature.is_none_or(|f| cpu.model.features.has(f)) {
            continue;
        }
        tested += 1;
        let registers = code.op_code().memory_size().size() == 0 || !super::coverage::memory_only(code);
        for round in 0..ROUNDS {
            let (a, b) = operands(&mut random, form, round);
            let imm = random.next() as u8;
            cpu.set_mxcsr(control(round));
            let under_control = |memory: bool, b: u128, cpu: &mut crate::Cpu| {
                crate::exec::mxcsr::enter(cpu);
                let value = reference(code, a, b, imm, memory);
                crate::exec::mxcsr::leave(cpu);
                value
            };
            if registers {
                set(&mut cpu, 3, a);
                set(&mut cpu, 12, b);
                let second = if form.shape == Shape::Immediate { Register::None } else { Register::XMM12 };
                execute(&mut cpu, &on_registers(code, Register::XMM3, second, imm)).unwrap();
                let expected = under_control(false, b, &mut cpu);
                let got = get(&cpu, 3);
                assert_eq!(got, expected, "{code:?} {a:#x} {b:#x} {imm:#x} {got:#x} {expected:#x} {round}");
                assert_eq!(get(&cpu, 12), b, "{code:?} changed its source");
            }
            if form.shape == Shape::Load && form.bytes != 0 {
                set(&mut cpu, 3, a);
                poke(&mut cpu, BUFFER, b);
                execute(&mut cpu, &with_memory(on_registers(code, Register::XMM3, Register::None, imm), 1))
                    .unwrap();
                let b = b & u128::MAX >> (128 - 8 * u32::from(form.bytes));
                let expected = under_control(true, b, &mut cpu);
                let got = get(&cpu, 3);
                assert_eq!(got, expected, "{code:?} {a:#x} m {b:#x} {imm:#x} {got:#x} {expected:#x} {round}");
            }
        }
    }
    assert!(tested > 200, "{tested}");
}

#[test]
fn a_register_may_be_both_operands() {
    let mut random = Random(2);
    let mut cpu = bench();
    for code in Code::values() {
        let Some(form) = vec_op(code).filter(|f| f.shape == Shape::Load) else { continue };
        if super::coverage::memory_only(code) || !form.feature.is_none_or(|f| cpu.model.features.has(f)) {
            continue;
        }
        let (a, _) = operands(&mut random, form, 5);
        let mut raw = [a as u64, (a >> 64) as u64, 7, 8];
        cpu.set_mxcsr(0x1f80);
        set(&mut cpu, 3, a);
        execute(&mut cpu, &on_registers(code, Register::XMM3, Register::XMM3, 0x1b)).unwrap();
        let pointer = &raw mut raw;
        call_aliased(form, pointer);
        assert_eq!(raw, [cpu.vector.0[3][0], cpu.vector.0[3][1], 7, 8], "{code:?}");
    }
}

#[allow(unsafe_code)] // raw operations are to be called with one pointer for both operands, too
fn call_aliased(form: &VecForm, register: *mut [u64; 4]) {
    // SAFETY: `register` is valid, and the model has no feature that the host lacks.
    unsafe { (form.register)(register, register.cast(), 0x1b) };
}

//! SSE4a (AMD64 Architecture Programmer's Manual vol. 4): bit fields of the low quadword. Its scalar stores are in
//! `moves.rs`.
//!
//! The forms with immediates are the host's forms with the field's length and position in a register, so that what is
//! undefined (a field beyond bit 63, the upper quadword) is the host's too.
#![allow(unsafe_code)] // inline assembly

use iced_x86::{Code, Instruction};

use accel_api::x86::Feature;

use super::form::{Float, Forms, VecOp, number, xmm};
use super::raw::{host_op, rows};
use super::ready;
use crate::exec::Table;
use crate::{Cpu, Exec};

pub(super) fn forms(forms: &mut Forms) {
    rows! { forms, Float::None, int: Extrq_xmm_xmm "extrq", Insertq_xmm_xmm "insertq" }
}

/// Runs `op` on the destination and `src`, which has the field's length and position at bits 5:0 and 13:8 of quadword
/// `place`, from the immediates that are operands `n` and `n + 1`.
fn with_field(cpu: &mut Cpu, ins: &Instruction, mut src: [u64; 2], place: usize, n: u32, op: VecOp) -> Exec {
    let immediate = |n| ins.try_immediate(n).unwrap_or(0);
    src[place] = immediate(n) & 63 | (immediate(n + 1) & 63) << 8;
    // SAFETY: the callers have made sure of the guest's SSE4a, which the host has too.
    unsafe { op(&mut cpu.vector.0[number(ins.op0_register())], &src, 0) };
    Ok(())
}

fn extrq(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    ready(cpu, Some(Feature::Sse4a))?;
    with_field(cpu, ins, [0; 2], 0, 1, host_op!(int "extrq"))
}

fn insertq(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    ready(cpu, Some(Feature::Sse4a))?;
    let src = xmm(cpu, number(ins.op1_register()));
    with_field(cpu, ins, src, 1, 2, host_op!(int "insertq"))
}

pub(super) fn register(table: &mut Table) {
    table.set(&[Code::Extrq_xmm_imm8_imm8], extrq);
    table.set(&[Code::Insertq_xmm_xmm_imm8_imm8], insertq);
}

//! Instructions on vector registers.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use x86_core::Cpu;
use x86_core::exec::avx::{self, Operands};
use x86_core::exec::sse;

use super::{Lower, with_memory};
use crate::handlers::avx as avx_handlers;
use crate::handlers::{end, vector};
use crate::op::Op;

/// Byte offset in [`Cpu`] of a vector register.
fn place(register: Register) -> u16 {
    Cpu::vector_offset(register.number() & 15) as u16
}

/// Whether a VEX instruction only moves bytes between a register, from its lowest on, and memory, or between registers.
fn plain_move(ins: &Instruction) -> bool {
    use Mnemonic::*;
    match ins.mnemonic() {
        Vmovaps | Vmovups | Vmovapd | Vmovupd | Vmovdqa | Vmovdqu | Vlddqu | Vmovntdqa | Vmovntps
        | Vmovntpd | Vmovntdq => true,
        Vmovss | Vmovsd | Vmovq => ins.op_count() == 2,
        Vmovlps | Vmovlpd => ins.op0_kind() == OpKind::Memory,
        _ => false,
    }
}

impl Lower<'_> {
    /// A two-operand SSE instruction.
    pub(super) fn vector(&self, ins: &Instruction, count: u8) -> Option<Op> {
        let form = sse::vec_op(ins.code())?;
        if form.feature.is_some_and(|f| !self.features.has(f)) {
            return None;
        }
        let whole_move = matches!(
            ins.mnemonic(),
            Mnemonic::Movaps
                | Mnemonic::Movups
                | Mnemonic::Movapd
                | Mnemonic::Movupd
                | Mnemonic::Movdqa
                | Mnemonic::Movdqu
        );
        let mut op = self.blank(ins, end, count);
        let in_memory = ins.op0_kind() == OpKind::Memory || ins.op1_kind() == OpKind::Memory;
        if in_memory {
            let memory = self.memory(ins)?;
            let scalar = matches!(ins.mnemonic(), Mnemonic::Movss | Mnemonic::Movsd | Mnemonic::Movq);
            (op.handler, op.imm) = vector::memory_form(form, whole_move || scalar, memory.indexed)?;
            op = with_memory(op, &memory);
        } else {
            (op.handler, op.imm) = vector::register_form(form, whole_move);
        }
        for (n, to) in [(0, &mut op.dst), (1, &mut op.src)] {
            if ins.op_kind(n) == OpKind::Register {
                *to = place(ins.op_register(n));
            }
        }
        if let Ok(imm) = ins.try_immediate(ins.op_count() - 1) {
            vector::set_immediate(&mut op, in_memory, imm as u8);
        }
        Some(op)
    }

    /// A VEX instruction on vector registers and memory.
    pub(super) fn avx(&self, ins: &Instruction, count: u8) -> Option<Op> {
        let form = avx::avx_op(ins.code())?;
        if form.operands == Operands::Four || form.feature.is_some_and(|f| !self.features.has(f)) {
            return None;
        }
        let last = match form.operands {
            Operands::Three => 2,
            _ => 1,
        };
        let imm = ins.try_immediate(ins.op_count() - 1).unwrap_or(0) as u8;
        let mut op = self.blank(ins, end, count);
        let plain_move = plain_move(ins);
        if ins.op0_kind() == OpKind::Memory {
            let memory = self.memory(ins)?;
            avx_handlers::memory_form(&mut op, form, plain_move, memory.indexed, imm)?;
            op.src = place(ins.op1_register());
            return Some(with_memory(op, &memory));
        }
        op.dst = place(ins.op0_register());
        // Of two operands none is the first source, which then is not looked at.
        op.src = if form.operands == Operands::Three { place(ins.op1_register()) } else { op.dst };
        if ins.op_kind(last) == OpKind::Memory {
            let memory = self.memory(ins)?;
            avx_handlers::memory_form(&mut op, form, plain_move, memory.indexed, imm)?;
            return Some(with_memory(op, &memory));
        }
        let whole = (plain_move && form.bytes >= 16).then_some(usize::from(form.bytes));
        avx_handlers::register_form(&mut op, form, whole, imm);
        op.base = place(ins.op_register(last));
        Some(op)
    }
}

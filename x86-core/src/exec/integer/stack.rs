//! PUSH, POP, PUSHA, POPA. POP into a segment register is with the segments.

use accel_api::x86::gpr;
use iced_x86::{Instruction, OpKind};

use super::{Table, codes};
use crate::alu::Word;
use crate::operand::segment_index;
use crate::{Cpu, Exec};

/// PUSH of a register (RSP as it was), memory or an immediate.
fn push<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let value: W = cpu.read_op(ins, 0)?;
    cpu.push(value)
}

/// PUSH of a segment register, zero-extended.
fn push_segment<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let selector = segment_index(ins.op0_register()).map_or(0, |i| cpu.segs[i].selector);
    cpu.push(W::from_u64(selector.into()))
}

/// POP; an address that uses RSP uses it as incremented (Intel SDM vol. 2B, POP).
fn pop<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let value: W = cpu.peek(0)?;
    let old = cpu.gpr[gpr::RSP];
    cpu.add_rsp(W::BYTES as i64);
    let written = cpu.write_op(ins, 0, value);
    if written.is_err() && ins.op0_kind() != OpKind::Register {
        cpu.gpr[gpr::RSP] = old;
    }
    written
}

/// PUSHA. All eight places are checked before the first is written.
fn push_all<W: Word>(cpu: &mut Cpu, _: &Instruction) -> Exec {
    let bytes = W::BYTES as i64;
    for slot in 1..=8 {
        let ea = cpu.stack_ea(-bytes * slot, W::BYTES, true)?;
        cpu.probe_write(ea, W::BYTES)?;
    }
    for (index, slot) in (1..=8).enumerate() {
        let ea = cpu.stack_ea(-bytes * slot, W::BYTES, true)?;
        cpu.store(ea, cpu.reg::<W>(index))?;
    }
    cpu.add_rsp(-8 * bytes);
    Ok(())
}

/// POPA; the place of RSP is skipped.
fn pop_all<W: Word>(cpu: &mut Cpu, _: &Instruction) -> Exec {
    let bytes = W::BYTES as i64;
    let mut values = [W::from_u64(0); 8];
    for (slot, value) in (0..8).zip(values.iter_mut().rev()) {
        *value = cpu.peek(bytes * slot)?;
    }
    for (index, value) in values.into_iter().enumerate() {
        if index != gpr::RSP {
            cpu.set_reg(index, value);
        }
    }
    cpu.add_rsp(8 * bytes);
    Ok(())
}

pub(super) fn register(table: &mut Table) {
    codes! { table;
        Push_r16 | Push_rm16 | Push_imm16 | Pushw_imm8 => push::<u16>;
        Push_r32 | Push_rm32 | Pushd_imm32 | Pushd_imm8 => push::<u32>;
        Push_r64 | Push_rm64 | Pushq_imm32 | Pushq_imm8 => push::<u64>;
        Pushw_ES | Pushw_CS | Pushw_SS | Pushw_DS | Pushw_FS | Pushw_GS => push_segment::<u16>;
        Pushd_ES | Pushd_CS | Pushd_SS | Pushd_DS | Pushd_FS | Pushd_GS => push_segment::<u32>;
        Pushq_FS | Pushq_GS => push_segment::<u64>;
        Pop_r16 | Pop_rm16 => pop::<u16>;
        Pop_r32 | Pop_rm32 => pop::<u32>;
        Pop_r64 | Pop_rm64 => pop::<u64>;
        Pushaw => push_all::<u16>;
        Pushad => push_all::<u32>;
        Popaw => pop_all::<u16>;
        Popad => pop_all::<u32>;
    }
}

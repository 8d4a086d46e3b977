//! MUL, IMUL, DIV, IDIV.

use accel_api::x86::gpr;
use iced_x86::{Instruction, Mnemonic};

use super::{Table, codes, sized, words};
use crate::alu::ArithFlags;
use crate::alu::wide::{NoByte, Wide};
use crate::{Cpu, Exec, Fault};

/// Reads the double-width register (AX, DX:AX, EDX:EAX, RDX:RAX): low and high half.
fn pair<W: Wide>(cpu: &Cpu) -> (W, W) {
    if W::BYTES == 1 {
        (cpu.reg(gpr::RAX), W::from_u64(u64::from(cpu.reg::<u16>(gpr::RAX)) >> 8))
    } else {
        (cpu.reg(gpr::RAX), cpu.reg(gpr::RDX))
    }
}

fn set_pair<W: Wide>(cpu: &mut Cpu, low: W, high: W) {
    if W::BYTES == 1 {
        cpu.set_reg(gpr::RAX, (low.to_u64() | high.to_u64() << 8) as u16);
    } else {
        cpu.set_reg(gpr::RAX, low);
        cpu.set_reg(gpr::RDX, high);
    }
}

fn multiply<W: Wide>(cpu: &mut Cpu, ins: &Instruction, op: impl Fn(W, W, &mut ArithFlags) -> (W, W)) -> Exec {
    let b = cpu.read_op(ins, 0)?;
    let a = cpu.reg(gpr::RAX);
    let (low, high) = op(a, b, &mut cpu.flags);
    set_pair(cpu, low, high);
    Ok(())
}

fn divide<W: Wide>(
    cpu: &mut Cpu,
    ins: &Instruction,
    op: impl Fn(W, W, W, &mut ArithFlags) -> Option<(W, W)>,
) -> Exec {
    let divisor = cpu.read_op(ins, 0)?;
    let (low, high) = pair::<W>(cpu);
    let (quotient, remainder) = op(low, high, divisor, &mut cpu.flags).ok_or(Fault::DE)?;
    set_pair(cpu, quotient, remainder);
    Ok(())
}

fn mul<W: Wide>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    multiply(cpu, ins, W::mul)
}

fn imul<W: Wide>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    multiply(cpu, ins, W::imul)
}

fn div<W: Wide>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    divide(cpu, ins, W::div)
}

fn idiv<W: Wide>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    divide(cpu, ins, W::idiv)
}

/// IMUL r, r/m.
fn imul2<W: NoByte>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let b: W = cpu.read_op(ins, 1)?;
    let a: W = cpu.read_op(ins, 0)?;
    let product = a.imul2(b, &mut cpu.flags);
    cpu.write_op(ins, 0, product)
}

/// IMUL r, r/m, imm.
fn imul3<W: NoByte>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let a: W = cpu.read_op(ins, 1)?;
    let b: W = cpu.read_op(ins, 2)?;
    let product = a.imul2(b, &mut cpu.flags);
    cpu.write_op(ins, 0, product)
}

pub(super) fn register(table: &mut Table) {
    sized(table, Mnemonic::Mul, words!(mul));
    sized(table, Mnemonic::Div, words!(div));
    sized(table, Mnemonic::Idiv, words!(idiv));
    codes! { table;
        Imul_rm8 => imul::<u8>;
        Imul_rm16 => imul::<u16>;
        Imul_rm32 => imul::<u32>;
        Imul_rm64 => imul::<u64>;
        Imul_r16_rm16 => imul2::<u16>;
        Imul_r32_rm32 => imul2::<u32>;
        Imul_r64_rm64 => imul2::<u64>;
        Imul_r16_rm16_imm16 | Imul_r16_rm16_imm8 => imul3::<u16>;
        Imul_r32_rm32_imm32 | Imul_r32_rm32_imm8 => imul3::<u32>;
        Imul_r64_rm64_imm32 | Imul_r64_rm64_imm8 => imul3::<u64>;
    }
}

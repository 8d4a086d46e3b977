//! AAA, AAS, AAD, AAM, DAA, DAS, SALC (none exists in 64-bit mode).
//!
//! 64-bit hosts cannot execute them, so they follow the manual's pseudocode; flags it calls undefined are left alone or,
//! for AAD and AAM, as the logical operation on AL leaves them.

use accel_api::x86::gpr;
use iced_x86::Instruction;

use super::{Table, codes};
use crate::alu::{Word, flag};
use crate::{Cpu, Exec, Fault};

fn has(cpu: &Cpu, mask: u64) -> bool {
    cpu.flags.to_rflags() & mask != 0
}

/// Sets SF, ZF and PF by AL.
fn flags_of_al(cpu: &mut Cpu) {
    let al: u8 = cpu.reg(gpr::RAX);
    let mut f = cpu.flags;
    al.or(al, &mut f);
    let result = f.to_rflags();
    for bit in [flag::SF, flag::ZF, flag::PF] {
        cpu.flags.assign(bit, result & bit != 0);
    }
}

/// AAA and AAS: `step` is 0x106 added to or taken from AX.
fn ascii_adjust(cpu: &mut Cpu, step: u16) -> Exec {
    let ax: u16 = cpu.reg(gpr::RAX);
    let adjust = ax & 0xf > 9 || has(cpu, flag::AF);
    let ax = if adjust { ax.wrapping_add(step) } else { ax };
    cpu.set_reg(gpr::RAX, ax & 0xff0f);
    cpu.flags.assign(flag::AF | flag::CF, adjust);
    Ok(())
}

fn aaa(cpu: &mut Cpu, _: &Instruction) -> Exec {
    ascii_adjust(cpu, 0x106)
}

fn aas(cpu: &mut Cpu, _: &Instruction) -> Exec {
    ascii_adjust(cpu, 0x106u16.wrapping_neg())
}

/// DAA and DAS: `sign` is 1 or -1.
fn decimal_adjust(cpu: &mut Cpu, sign: i8) -> Exec {
    let old: u8 = cpu.reg(gpr::RAX);
    let old_carry = has(cpu, flag::CF);
    let mut al = old;
    let mut carry = false;
    let low = old & 0xf > 9 || has(cpu, flag::AF);
    if low {
        let sum = i16::from(al) + 6 * i16::from(sign);
        carry = old_carry || !(0..256).contains(&sum);
        al = sum as u8;
    }
    if old > 0x99 || old_carry {
        al = al.wrapping_add_signed(sign.wrapping_mul(0x60));
        carry = true;
    }
    cpu.set_reg(gpr::RAX, al);
    cpu.flags.assign(flag::AF, low);
    cpu.flags.assign(flag::CF, carry);
    flags_of_al(cpu);
    Ok(())
}

fn daa(cpu: &mut Cpu, _: &Instruction) -> Exec {
    decimal_adjust(cpu, 1)
}

fn das(cpu: &mut Cpu, _: &Instruction) -> Exec {
    decimal_adjust(cpu, -1)
}

fn aad(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let base = ins.immediate8();
    let [al, ah] = cpu.reg::<u16>(gpr::RAX).to_le_bytes();
    let al = al.wrapping_add(ah.wrapping_mul(base));
    cpu.set_reg(gpr::RAX, u16::from(al));
    al.or(al, &mut cpu.flags);
    Ok(())
}

fn aam(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let base = ins.immediate8();
    let al: u8 = cpu.reg(gpr::RAX);
    let (Some(high), Some(low)) = (al.checked_div(base), al.checked_rem(base)) else { return Err(Fault::DE) };
    cpu.set_reg(gpr::RAX, u16::from_le_bytes([low, high]));
    low.or(low, &mut cpu.flags);
    Ok(())
}

/// SALC: AL is filled with CF; no flag changes.
fn salc(cpu: &mut Cpu, _: &Instruction) -> Exec {
    let fill = if cpu.flags.cf() { 0xffu8 } else { 0 };
    cpu.set_reg(gpr::RAX, fill);
    Ok(())
}

pub(super) fn register(table: &mut Table) {
    codes! { table;
        Aaa => aaa;
        Aas => aas;
        Daa => daa;
        Das => das;
        Aad_imm8 => aad;
        Aam_imm8 => aam;
        Salc => salc;
    }
}

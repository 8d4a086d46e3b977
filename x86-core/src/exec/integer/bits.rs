//! BT, BTS, BTR, BTC, BSF, BSR, TZCNT, LZCNT, POPCNT, CRC32.
#![allow(unsafe_code)] // host instructions that not every host has; each is asked for first

use accel_api::x86::Feature;
use iced_x86::{Instruction, OpKind};

use super::{Table, codes, require};
use crate::alu::bit::{self, BitWord};
use crate::alu::{Word, flag};
use crate::operand::address_mask;
use crate::{Cpu, Ea, Exec, Fault};

/// What becomes of the bit.
trait BitOp {
    const WRITES: bool = true;
    fn apply(value: u64, mask: u64) -> u64;
}

struct Test;
struct Set;
struct Reset;
struct Complement;

impl BitOp for Test {
    const WRITES: bool = false;
    fn apply(value: u64, _: u64) -> u64 {
        value
    }
}

impl BitOp for Set {
    fn apply(value: u64, mask: u64) -> u64 {
        value | mask
    }
}

impl BitOp for Reset {
    fn apply(value: u64, mask: u64) -> u64 {
        value & !mask
    }
}

impl BitOp for Complement {
    fn apply(value: u64, mask: u64) -> u64 {
        value ^ mask
    }
}

/// Address of the word that holds bit `offset`, counted from the operand's address: a register may name any bit of a
/// string of 2^16, 2^32 or 2^64 (Intel SDM vol. 1, 4.4.5).
fn bit_address<W: Word>(cpu: &Cpu, ins: &Instruction, offset: i64, write: bool) -> Exec<Ea> {
    let words = offset >> W::BITS.trailing_zeros();
    let bytes = words.wrapping_mul(W::BYTES as i64);
    let address = cpu.ea_offset(ins).wrapping_add_signed(bytes) & address_mask(ins);
    let segment = cpu.memory_segment(ins);
    cpu.segmented(segment, address, W::BYTES, write)
}

/// BT and its kin. Only CF changes; processors leave the flags alone that the manual calls undefined.
fn bit<W: Word, O: BitOp>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let offset: W = cpu.read_op(ins, 1)?;
    let mask = 1 << (offset.to_u64() & u64::from(W::BITS - 1));
    let old = if ins.op0_kind() == OpKind::Register {
        let old: W = cpu.read_op(ins, 0)?;
        if O::WRITES {
            cpu.write_op(ins, 0, W::from_u64(O::apply(old.to_u64(), mask)))?;
        }
        old
    } else {
        let string = if ins.op1_kind() == OpKind::Register { offset.to_i64() } else { 0 };
        let ea = bit_address::<W>(cpu, ins, string, O::WRITES)?;
        if O::WRITES {
            let lock = ins.has_lock_prefix();
            cpu.rmw(ea, lock, |old: W| Ok((W::from_u64(O::apply(old.to_u64(), mask)), old)))?
        } else {
            cpu.load(ea)?
        }
    };
    cpu.flags.assign(flag::CF, old.to_u64() & mask != 0);
    Ok(())
}

/// The destination register's number.
fn destination(ins: &Instruction) -> usize {
    ins.op0_register().number() & 15
}

fn bsf<W: BitWord>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let source: W = cpu.read_op(ins, 1)?;
    let to = destination(ins);
    cpu.gpr[to] = source.bsf(cpu.gpr[to], &mut cpu.flags);
    Ok(())
}

fn bsr<W: BitWord>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let source: W = cpu.read_op(ins, 1)?;
    let to = destination(ins);
    cpu.gpr[to] = source.bsr(cpu.gpr[to], &mut cpu.flags);
    Ok(())
}

/// Whether guest and host both have `feature`.
fn both_have(cpu: &Cpu, feature: Feature) -> bool {
    cpu.model.features.has(feature) && bit::host_has(feature)
}

/// TZCNT; a processor without BMI1 ignores the prefix and executes BSF.
fn tzcnt<W: BitWord>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    if !both_have(cpu, Feature::Bmi1) {
        return bsf::<W>(cpu, ins);
    }
    let source: W = cpu.read_op(ins, 1)?;
    // SAFETY: the host has BMI1.
    let count = unsafe { source.tzcnt(&mut cpu.flags) };
    cpu.write_op(ins, 0, count)
}

/// LZCNT; a processor without it ignores the prefix and executes BSR.
fn lzcnt<W: BitWord>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    if !both_have(cpu, Feature::Abm) {
        return bsr::<W>(cpu, ins);
    }
    let source: W = cpu.read_op(ins, 1)?;
    // SAFETY: the host has LZCNT.
    let count = unsafe { source.lzcnt(&mut cpu.flags) };
    cpu.write_op(ins, 0, count)
}

fn popcnt<W: BitWord>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    require(cpu, Feature::Popcnt)?;
    let source: W = cpu.read_op(ins, 1)?;
    let ones = source.to_u64().count_ones();
    // Defined for all six flags (Intel SDM vol. 2B, POPCNT).
    cpu.flags = Default::default();
    cpu.flags.assign(flag::ZF, ones == 0);
    cpu.write_op(ins, 0, W::from_u64(ones.into()))
}

fn crc32<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    if !both_have(cpu, Feature::Sse42) {
        return Err(Fault::UD);
    }
    let data: W = cpu.read_op(ins, 1)?;
    let crc = cpu.read_gpr(ins.op0_register()) as u32;
    // SAFETY: the host has SSE4.2.
    let crc = unsafe { bit::crc32(crc, data.to_u64(), W::BYTES) };
    // A 64-bit destination is zero-extended too.
    cpu.set_reg(destination(ins), crc);
    Ok(())
}

pub(super) fn register(table: &mut Table) {
    codes! { table;
        Bt_rm16_r16 | Bt_rm16_imm8 => bit::<u16, Test>;
        Bt_rm32_r32 | Bt_rm32_imm8 => bit::<u32, Test>;
        Bt_rm64_r64 | Bt_rm64_imm8 => bit::<u64, Test>;
        Bts_rm16_r16 | Bts_rm16_imm8 => bit::<u16, Set>;
        Bts_rm32_r32 | Bts_rm32_imm8 => bit::<u32, Set>;
        Bts_rm64_r64 | Bts_rm64_imm8 => bit::<u64, Set>;
        Btr_rm16_r16 | Btr_rm16_imm8 => bit::<u16, Reset>;
        Btr_rm32_r32 | Btr_rm32_imm8 => bit::<u32, Reset>;
        Btr_rm64_r64 | Btr_rm64_imm8 => bit::<u64, Reset>;
        Btc_rm16_r16 | Btc_rm16_imm8 => bit::<u16, Complement>;
        Btc_rm32_r32 | Btc_rm32_imm8 => bit::<u32, Complement>;
        Btc_rm64_r64 | Btc_rm64_imm8 => bit::<u64, Complement>;
        Bsf_r16_rm16 => bsf::<u16>;
        Bsf_r32_rm32 => bsf::<u32>;
        Bsf_r64_rm64 => bsf::<u64>;
        Bsr_r16_rm16 => bsr::<u16>;
        Bsr_r32_rm32 => bsr::<u32>;
        Bsr_r64_rm64 => bsr::<u64>;
        Tzcnt_r16_rm16 => tzcnt::<u16>;
        Tzcnt_r32_rm32 => tzcnt::<u32>;
        Tzcnt_r64_rm64 => tzcnt::<u64>;
        Lzcnt_r16_rm16 => lzcnt::<u16>;
        Lzcnt_r32_rm32 => lzcnt::<u32>;
        Lzcnt_r64_rm64 => lzcnt::<u64>;
        Popcnt_r16_rm16 => popcnt::<u16>;
        Popcnt_r32_rm32 => popcnt::<u32>;
        Popcnt_r64_rm64 => popcnt::<u64>;
        Crc32_r32_rm8 | Crc32_r64_rm8 => crc32::<u8>;
        Crc32_r32_rm16 => crc32::<u16>;
        Crc32_r32_rm32 => crc32::<u32>;
        Crc32_r64_rm64 => crc32::<u64>;
    }
}

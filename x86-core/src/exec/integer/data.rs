//! MOV, MOVZX, MOVSX, MOVSXD, MOVBE, MOVNTI, LEA, XCHG, BSWAP, CMOVcc, SETcc, XLAT, CBW to CQO.

use accel_api::x86::{Feature, gpr};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::{Table, codes, require, sized, words};
use crate::alu::Word;
use crate::operand::segment_index;
use crate::{Cpu, Exec};

fn mov<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let value: W = cpu.read_op(ins, 1)?;
    cpu.write_op(ins, 0, value)
}

/// MOV from a segment register: zero-extended into a register, 16 bits to memory whatever the operand size.
fn mov_from_segment<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let selector = segment_index(ins.op1_register()).map_or(0, |i| cpu.segs[i].selector);
    if ins.op0_kind() == OpKind::Register {
        cpu.write_op(ins, 0, W::from_u64(selector.into()))
    } else {
        cpu.write_op(ins, 0, selector)
    }
}

fn movzx<D: Word, S: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let value: S = cpu.read_op(ins, 1)?;
    cpu.write_op(ins, 0, D::from_u64(value.to_u64()))
}

fn movsx<D: Word, S: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let value: S = cpu.read_op(ins, 1)?;
    cpu.write_op(ins, 0, D::from_u64(value.to_i64() as u64))
}

fn movbe<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    require(cpu, Feature::Movbe)?;
    let value: W = cpu.read_op(ins, 1)?;
    cpu.write_op(ins, 0, reversed(value))
}

fn reversed<W: Word>(value: W) -> W {
    W::from_u64(value.to_u64().swap_bytes() >> (64 - W::BITS))
}

fn bswap<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let value: W = cpu.read_op(ins, 0)?;
    // Undefined for 16 bits (Intel SDM vol. 2A, BSWAP); processors give 0.
    let result = if W::BYTES == 2 { W::from_u64(0) } else { reversed(value) };
    cpu.write_op(ins, 0, result)
}

fn lea<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let offset = cpu.ea_offset(ins);
    cpu.write_op(ins, 0, W::from_u64(offset))
}

/// XCHG; with memory it is locked without a prefix.
fn xchg<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let b: W = cpu.read_op(ins, 1)?;
    let a: W = if ins.op0_kind() == OpKind::Register {
        let a = cpu.read_op(ins, 0)?;
        cpu.write_op(ins, 0, b)?;
        a
    } else {
        let ea = cpu.ea(ins, W::BYTES, true)?;
        cpu.rmw(ea, true, |a| Ok((b, a)))?
    };
    cpu.write_op(ins, 1, a)
}

/// CMOVcc: the source is read, and a 32-bit destination zero-extended, whether the condition holds or not.
fn cmov<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let source: W = cpu.read_op(ins, 1)?;
    let old: W = cpu.read_op(ins, 0)?;
    let value = if cpu.flags.condition(cmov_condition(ins.code())) { source } else { old };
    cpu.write_op(ins, 0, value)
}

fn setcc(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let holds = cpu.flags.condition(set_condition(ins.code()));
    cpu.write_op(ins, 0, u8::from(holds))
}

/// iced lists the codes in the order of their conditions, three widths of each.
fn cmov_condition(code: Code) -> u8 {
    ((code as usize).wrapping_sub(Code::Cmovo_r16_rm16 as usize) / 3) as u8 & 15
}

fn set_condition(code: Code) -> u8 {
    (code as usize).wrapping_sub(Code::Seto_rm8 as usize) as u8 & 15
}

fn xlat(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let ea = cpu.ea(ins, 1, false)?;
    let value: u8 = cpu.load(ea)?;
    cpu.set_reg(gpr::RAX, value);
    Ok(())
}

/// CBW, CWDE, CDQE: the low half of the accumulator sign-extended.
fn widen<S: Word, D: Word>(cpu: &mut Cpu, _: &Instruction) -> Exec {
    let value = cpu.reg::<S>(gpr::RAX).to_i64();
    cpu.set_reg(gpr::RAX, D::from_u64(value as u64));
    Ok(())
}

/// CWD, CDQ, CQO: RDX filled with the accumulator's sign.
fn sign<W: Word>(cpu: &mut Cpu, _: &Instruction) -> Exec {
    let sign = cpu.reg::<W>(gpr::RAX).to_i64() >> 63;
    cpu.set_reg(gpr::RDX, W::from_u64(sign as u64));
    Ok(())
}

pub(super) fn register(table: &mut Table) {
    sized(table, Mnemonic::Xchg, words!(xchg));
    for (index, code) in Code::values().skip(Code::Cmovo_r16_rm16 as usize).take(16 * 3).enumerate() {
        table.set(&[code], words!(cmov)[1 + index % 3]);
    }
    codes! { table;
        Mov_rm8_r8 | Mov_r8_rm8 | Mov_AL_moffs8 | Mov_moffs8_AL | Mov_r8_imm8 | Mov_rm8_imm8 => mov::<u8>;
        Mov_rm16_r16 | Mov_r16_rm16 | Mov_AX_moffs16 | Mov_moffs16_AX | Mov_r16_imm16 | Mov_rm16_imm16 => mov::<u16>;
        Mov_rm32_r32 | Mov_r32_rm32 | Mov_EAX_moffs32 | Mov_moffs32_EAX | Mov_r32_imm32 | Mov_rm32_imm32 => mov::<u32>;
        Mov_rm64_r64 | Mov_r64_rm64 | Mov_RAX_moffs64 | Mov_moffs64_RAX | Mov_r64_imm64 | Mov_rm64_imm32 => mov::<u64>;
        Mov_rm16_Sreg => mov_from_segment::<u16>;
        Mov_r32m16_Sreg => mov_from_segment::<u32>;
        Mov_r64m16_Sreg => mov_from_segment::<u64>;
        Movnti_m32_r32 => mov::<u32>;
        Movnti_m64_r64 => mov::<u64>;
        Movzx_r16_rm8 => movzx::<u16, u8>;
        Movzx_r32_rm8 => movzx::<u32, u8>;
        Movzx_r64_rm8 => movzx::<u64, u8>;
        Movzx_r16_rm16 => movzx::<u16, u16>;
        Movzx_r32_rm16 => movzx::<u32, u16>;
        Movzx_r64_rm16 => movzx::<u64, u16>;
        Movsx_r16_rm8 => movsx::<u16, u8>;
        Movsx_r32_rm8 => movsx::<u32, u8>;
        Movsx_r64_rm8 => movsx::<u64, u8>;
        Movsx_r16_rm16 | Movsxd_r16_rm16 => movsx::<u16, u16>;
        Movsx_r32_rm16 => movsx::<u32, u16>;
        Movsx_r64_rm16 => movsx::<u64, u16>;
        Movsxd_r32_rm32 => movsx::<u32, u32>;
        Movsxd_r64_rm32 => movsx::<u64, u32>;
        Movbe_r16_m16 | Movbe_m16_r16 => movbe::<u16>;
        Movbe_r32_m32 | Movbe_m32_r32 => movbe::<u32>;
        Movbe_r64_m64 | Movbe_m64_r64 => movbe::<u64>;
        Bswap_r16 => bswap::<u16>;
        Bswap_r32 => bswap::<u32>;
        Bswap_r64 => bswap::<u64>;
        Lea_r16_m => lea::<u16>;
        Lea_r32_m => lea::<u32>;
        Lea_r64_m => lea::<u64>;
        Seto_rm8 | Setno_rm8 | Setb_rm8 | Setae_rm8 | Sete_rm8 | Setne_rm8 | Setbe_rm8 | Seta_rm8 | Sets_rm8
            | Setns_rm8 | Setp_rm8 | Setnp_rm8 | Setl_rm8 | Setge_rm8 | Setle_rm8 | Setg_rm8 => setcc;
        Xlat_m8 => xlat;
        Cbw => widen::<u8, u16>;
        Cwde => widen::<u16, u32>;
        Cdqe => widen::<u32, u64>;
        Cwd => sign::<u16>;
        Cdq => sign::<u32>;
        Cqo => sign::<u64>;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_conditions_are_in_step() {
        use iced_x86::ConditionCode as C;
        let order = [
            C::o,
            C::no,
            C::b,
            C::ae,
            C::e,
            C::ne,
            C::be,
            C::a,
            C::s,
            C::ns,
            C::p,
            C::np,
            C::l,
            C::ge,
            C::le,
            C::g,
        ];
        let (mut cmovs, mut sets) = (0, 0);
        for code in Code::values() {
            let name = format!("{code:?}");
            let condition = order.iter().position(|&c| c == code.condition_code());
            if name.starts_with("Cmov") {
                cmovs += 1;
                assert_eq!(condition, Some(cmov_condition(code).into()), "{name}");
            } else if name.starts_with("Set") && name.ends_with("_rm8") {
                sets += 1;
                assert_eq!(condition, Some(set_condition(code).into()), "{name}");
            }
        }
        assert_eq!((cmovs, sets), (48, 16));
    }
}

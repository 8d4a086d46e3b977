//! Near control transfers: JMP, Jcc, CALL, RET, LOOP, JCXZ, ENTER, LEAVE (Intel SDM vol. 2).
//!
//! iced cuts the target of a relative branch to the operand size, so it only remains to be checked.

use accel_api::x86::gpr;
use iced_x86::{Code, Instruction};

use crate::alu::Word;
use crate::cpu::seg;
use crate::exec::Table;
use crate::mode::Mode;
use crate::{Cpu, Exec, Fault};

impl Cpu {
    /// Makes execution go on at `target`, an offset in the current code segment.
    ///
    /// # Errors
    /// #GP(0) if it is not canonical, or beyond the limit.
    #[inline(always)]
    pub fn branch_to(&mut self, target: u64) -> Exec {
        let fits = if self.mode == Mode::Long {
            Self::canonical(target)
        } else {
            target <= u64::from(self.segs[seg::CS].limit)
        };
        if !fits {
            return Err(Fault::GP0);
        }
        self.next_rip = target;
        Ok(())
    }
}

fn jmp(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    cpu.branch_to(ins.near_branch_target())
}

fn jmp_indirect<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let target: W = cpu.read_op(ins, 0)?;
    cpu.branch_to(target.to_u64())
}

fn jcc<const CC: u8>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    if cpu.flags.condition(CC) { cpu.branch_to(ins.near_branch_target()) } else { Ok(()) }
}

fn call_to<W: Word>(cpu: &mut Cpu, target: u64) -> Exec {
    let back = cpu.next_rip;
    cpu.branch_to(target)?;
    cpu.push(W::from_u64(back))
}

fn call<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    call_to::<W>(cpu, ins.near_branch_target())
}

fn call_indirect<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let target: W = cpu.read_op(ins, 0)?;
    call_to::<W>(cpu, target.to_u64())
}

fn ret<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let target: W = cpu.peek(0)?;
    cpu.branch_to(target.to_u64())?;
    // Without an immediate operand this reads 0.
    cpu.add_rsp(W::BYTES as i64 + i64::from(ins.immediate16()));
    Ok(())
}

/// LOOP (`KIND` 0), LOOPE (1) and LOOPNE (2) counting in a `W`.
fn loops<W: Word, const KIND: u8>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let count = W::from_u64(cpu.reg::<W>(gpr::RCX).to_u64().wrapping_sub(1));
    let goes_on = match KIND {
        1 => cpu.flags.zf(),
        2 => !cpu.flags.zf(),
        _ => true,
    };
    if count.to_u64() != 0 && goes_on {
        cpu.branch_to(ins.near_branch_target())?;
    }
    cpu.set_reg(gpr::RCX, count);
    Ok(())
}

fn jcxz<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    if cpu.reg::<W>(gpr::RCX).to_u64() == 0 { cpu.branch_to(ins.near_branch_target()) } else { Ok(()) }
}

fn enter<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let old = (cpu.gpr[gpr::RSP], cpu.gpr[gpr::RBP]);
    let result = enter_frame::<W>(cpu, ins.immediate16(), ins.immediate8_2nd() & 31);
    if result.is_err() {
        (cpu.gpr[gpr::RSP], cpu.gpr[gpr::RBP]) = old;
    }
    result
}

fn enter_frame<W: Word>(cpu: &mut Cpu, size: u16, level: u8) -> Exec {
    cpu.push(cpu.reg::<W>(gpr::RBP))?;
    let frame = cpu.gpr[gpr::RSP];
    if level > 0 {
        let mut at = cpu.gpr[gpr::RBP];
        for _ in 1..level {
            at = at.wrapping_sub(W::BYTES as u64);
            let ea = cpu.segmented(seg::SS, cut_to_stack(cpu, at), W::BYTES, false)?;
            let outer: W = cpu.load(ea)?;
            cpu.push(outer)?;
        }
        cpu.push(W::from_u64(frame))?;
    }
    cpu.set_reg(gpr::RBP, W::from_u64(frame));
    cpu.add_rsp(-i64::from(size));
    // The new top must be writable, though nothing is written.
    let top = cpu.stack_ea(0, W::BYTES, true)?;
    cpu.probe_write(top, W::BYTES)
}

/// An address in the stack segment, without what of a register lies beyond the stack's address size.
fn cut_to_stack(cpu: &Cpu, offset: u64) -> u64 {
    match cpu.stack_width() {
        8 => offset,
        4 => offset & 0xffff_ffff,
        _ => offset & 0xffff,
    }
}

fn leave<W: Word>(cpu: &mut Cpu, _: &Instruction) -> Exec {
    let frame = cut_to_stack(cpu, cpu.gpr[gpr::RBP]);
    let ea = cpu.segmented(seg::SS, frame, W::BYTES, false)?;
    let outer: W = cpu.load(ea)?;
    cpu.gpr[gpr::RSP] = cpu.with_stack_width(frame);
    cpu.add_rsp(W::BYTES as i64);
    cpu.set_reg(gpr::RBP, outer);
    Ok(())
}

macro_rules! conditional {
    ($table:ident: $($cc:literal $a:ident $b:ident $c:ident $d:ident $e:ident $f:ident;)*) => {
        $($table.set(&[Code::$a, Code::$b, Code::$c, Code::$d, Code::$e, Code::$f], jcc::<$cc>);)*
    };
}

pub(super) fn register(table: &mut Table) {
    use Code::*;
    conditional! { table:
        0 Jo_rel8_16 Jo_rel8_32 Jo_rel8_64 Jo_rel16 Jo_rel32_32 Jo_rel32_64;
        1 Jno_rel8_16 Jno_rel8_32 Jno_rel8_64 Jno_rel16 Jno_rel32_32 Jno_rel32_64;
        2 Jb_rel8_16 Jb_rel8_32 Jb_rel8_64 Jb_rel16 Jb_rel32_32 Jb_rel32_64;
        3 Jae_rel8_16 Jae_rel8_32 Jae_rel8_64 Jae_rel16 Jae_rel32_32 Jae_rel32_64;
        4 Je_rel8_16 Je_rel8_32 Je_rel8_64 Je_rel16 Je_rel32_32 Je_rel32_64;
        5 Jne_rel8_16 Jne_rel8_32 Jne_rel8_64 Jne_rel16 Jne_rel32_32 Jne_rel32_64;
        6 Jbe_rel8_16 Jbe_rel8_32 Jbe_rel8_64 Jbe_rel16 Jbe_rel32_32 Jbe_rel32_64;
        7 Ja_rel8_16 Ja_rel8_32 Ja_rel8_64 Ja_rel16 Ja_rel32_32 Ja_rel32_64;
        8 Js_rel8_16 Js_rel8_32 Js_rel8_64 Js_rel16 Js_rel32_32 Js_rel32_64;
        9 Jns_rel8_16 Jns_rel8_32 Jns_rel8_64 Jns_rel16 Jns_rel32_32 Jns_rel32_64;
        10 Jp_rel8_16 Jp_rel8_32 Jp_rel8_64 Jp_rel16 Jp_rel32_32 Jp_rel32_64;
        11 Jnp_rel8_16 Jnp_rel8_32 Jnp_rel8_64 Jnp_rel16 Jnp_rel32_32 Jnp_rel32_64;
        12 Jl_rel8_16 Jl_rel8_32 Jl_rel8_64 Jl_rel16 Jl_rel32_32 Jl_rel32_64;
        13 Jge_rel8_16 Jge_rel8_32 Jge_rel8_64 Jge_rel16 Jge_rel32_32 Jge_rel32_64;
        14 Jle_rel8_16 Jle_rel8_32 Jle_rel8_64 Jle_rel16 Jle_rel32_32 Jle_rel32_64;
        15 Jg_rel8_16 Jg_rel8_32 Jg_rel8_64 Jg_rel16 Jg_rel32_32 Jg_rel32_64;
    }
    table.set(&[Jmp_rel8_16, Jmp_rel8_32, Jmp_rel8_64, Jmp_rel16, Jmp_rel32_32, Jmp_rel32_64], jmp);
    table.set(&[Jmp_rm16], jmp_indirect::<u16>);
    table.set(&[Jmp_rm32], jmp_indirect::<u32>);
    table.set(&[Jmp_rm64], jmp_indirect::<u64>);
    table.set(&[Call_rel16], call::<u16>);
    table.set(&[Call_rel32_32], call::<u32>);
    table.set(&[Call_rel32_64], call::<u64>);
    table.set(&[Call_rm16], call_indirect::<u16>);
    table.set(&[Call_rm32], call_indirect::<u32>);
    table.set(&[Call_rm64], call_indirect::<u64>);
    table.set(&[Retnw, Retnw_imm16], ret::<u16>);
    table.set(&[Retnd, Retnd_imm16], ret::<u32>);
    table.set(&[Retnq, Retnq_imm16], ret::<u64>);

    table.set(&[Loop_rel8_16_CX, Loop_rel8_32_CX], loops::<u16, 0>);
    table.set(&[Loop_rel8_16_ECX, Loop_rel8_32_ECX, Loop_rel8_64_ECX], loops::<u32, 0>);
    table.set(&[Loop_rel8_16_RCX, Loop_rel8_64_RCX], loops::<u64, 0>);
    table.set(&[Loope_rel8_16_CX, Loope_rel8_32_CX], loops::<u16, 1>);
    table.set(&[Loope_rel8_16_ECX, Loope_rel8_32_ECX, Loope_rel8_64_ECX], loops::<u32, 1>);
    table.set(&[Loope_rel8_16_RCX, Loope_rel8_64_RCX], loops::<u64, 1>);
    table.set(&[Loopne_rel8_16_CX, Loopne_rel8_32_CX], loops::<u16, 2>);
    table.set(&[Loopne_rel8_16_ECX, Loopne_rel8_32_ECX, Loopne_rel8_64_ECX], loops::<u32, 2>);
    table.set(&[Loopne_rel8_16_RCX, Loopne_rel8_64_RCX], loops::<u64, 2>);
    table.set(&[Jcxz_rel8_16, Jcxz_rel8_32], jcxz::<u16>);
    table.set(&[Jecxz_rel8_16, Jecxz_rel8_32, Jecxz_rel8_64], jcxz::<u32>);
    table.set(&[Jrcxz_rel8_16, Jrcxz_rel8_64], jcxz::<u64>);

    table.set(&[Enterw_imm16_imm8], enter::<u16>);
    table.set(&[Enterd_imm16_imm8], enter::<u32>);
    table.set(&[Enterq_imm16_imm8], enter::<u64>);
    table.set(&[Leavew], leave::<u16>);
    table.set(&[Leaved], leave::<u32>);
    table.set(&[Leaveq], leave::<u64>);
}

//! Loads of segment registers: MOV, POP, LDS to LGS. Stores and pushes of them are with the data movement.

use accel_api::x86::gpr;
use iced_x86::{Code, Instruction};

use crate::alu::Word;
use crate::cpu::seg;
use crate::exec::Table;
use crate::{Cpu, Exec, Fault, segment_index};

fn mov(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let Some(index) = segment_index(ins.op0_register()).filter(|&i| i != seg::CS) else {
        return Err(Fault::UD);
    };
    let selector: u16 = cpu.read_op(ins, 1)?;
    cpu.load_segment(index, selector)?;
    shadow(cpu, index);
    Ok(())
}

/// No interrupt may come between a load of SS and the instruction behind it, which loads the stack pointer (Intel SDM
/// vol. 3, 6.8.3).
fn shadow(cpu: &mut Cpu, index: usize) {
    if index == seg::SS {
        cpu.shadow = true;
        cpu.debug_shadow = true;
        cpu.leave = true;
    }
}

fn pop<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let Some(index) = segment_index(ins.op0_register()).filter(|&i| i != seg::CS) else {
        return Err(Fault::UD);
    };
    let selector: W = cpu.peek(0)?;
    // The new SS may have another width: the old one's pointer moves.
    let rsp = cpu.with_stack_width(cpu.gpr[gpr::RSP].wrapping_add(W::BYTES as u64));
    cpu.load_segment(index, selector.to_u64() as u16)?;
    cpu.gpr[gpr::RSP] = rsp;
    shadow(cpu, index);
    Ok(())
}

/// LDS, LES, LFS, LGS and LSS: a far pointer into a segment register and a general one.
fn load_pointer<W: Word, const SEG: usize>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let ea = cpu.ea(ins, W::BYTES + 2, false)?;
    let offset: W = cpu.load(ea)?;
    let selector: u16 = cpu.load(ea.plus(W::BYTES as u64))?;
    cpu.load_segment(SEG, selector)?;
    cpu.write_gpr(ins.op0_register(), offset.to_u64());
    Ok(())
}

pub(super) fn register(table: &mut Table) {
    use Code::*;
    table.set(&[Mov_Sreg_rm16, Mov_Sreg_r32m16, Mov_Sreg_r64m16], mov);
    table.set(&[Popw_ES, Popw_SS, Popw_DS, Popw_FS, Popw_GS], pop::<u16>);
    table.set(&[Popd_ES, Popd_SS, Popd_DS, Popd_FS, Popd_GS], pop::<u32>);
    table.set(&[Popq_FS, Popq_GS], pop::<u64>);
    table.set(&[Les_r16_m1616], load_pointer::<u16, { seg::ES }>);
    table.set(&[Les_r32_m1632], load_pointer::<u32, { seg::ES }>);
    table.set(&[Lds_r16_m1616], load_pointer::<u16, { seg::DS }>);
    table.set(&[Lds_r32_m1632], load_pointer::<u32, { seg::DS }>);
    table.set(&[Lss_r16_m1616], load_pointer::<u16, { seg::SS }>);
    table.set(&[Lss_r32_m1632], load_pointer::<u32, { seg::SS }>);
    table.set(&[Lss_r64_m1664], load_pointer::<u64, { seg::SS }>);
    table.set(&[Lfs_r16_m1616], load_pointer::<u16, { seg::FS }>);
    table.set(&[Lfs_r32_m1632], load_pointer::<u32, { seg::FS }>);
    table.set(&[Lfs_r64_m1664], load_pointer::<u64, { seg::FS }>);
    table.set(&[Lgs_r16_m1616], load_pointer::<u16, { seg::GS }>);
    table.set(&[Lgs_r32_m1632], load_pointer::<u32, { seg::GS }>);
    table.set(&[Lgs_r64_m1664], load_pointer::<u64, { seg::GS }>);
}

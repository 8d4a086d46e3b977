//! Port I/O (Intel SDM vol. 1, chapter 19).
//!
//! A repeated INS or OUTS does a bounded number of steps and then gives up its turn at the instruction boundary, with its
//! progress in the count and index registers, so that a huge count delays neither an interrupt nor a kick.

use accel_api::IoSize;
use accel_api::x86::gpr;
use iced_x86::{Code, Instruction, OpKind};

use crate::alu::{Word, flag};
use crate::cpu::seg;
use crate::exec::Table;
use crate::mode::Mode;
use crate::segment::system_type;
use crate::shared::request;
use crate::{Cpu, Exec, Fault};

/// Steps of a repeated instruction before it gives up its turn.
const TURN: u32 = 128;

const fn io_size<W: Word>() -> IoSize {
    match W::BYTES {
        1 => IoSize::Byte,
        2 => IoSize::Word,
        _ => IoSize::Dword,
    }
}

impl Cpu {
    /// Whether the program may use `size` ports from `port` on: IOPL, and where that does not suffice the permission map
    /// of the TSS (vol. 1, 19.5).
    ///
    /// # Errors
    /// #GP(0), #PF.
    fn io_allowed(&mut self, port: u16, size: usize) -> Exec {
        if !self.protected() && self.mode != Mode::Virtual8086 {
            return Ok(());
        }
        if self.cpl <= self.iopl() && self.mode != Mode::Virtual8086 {
            return Ok(());
        }
        const MAP_BASE: u64 = 0x66;
        let limit = u64::from(self.tr.limit);
        let tss32 = matches!(self.tr.kind(), system_type::TSS | system_type::TSS_BUSY);
        if self.tr.unusable || !tss32 || limit < MAP_BASE + 1 {
            return Err(Fault::GP0);
        }
        let map: u16 = self.system_load(self.tr.base.wrapping_add(MAP_BASE))?;
        // Two bytes are always read, so that ports of two bytes' bits need no more thought (19.5.2).
        let at = u64::from(map) + u64::from(port / 8);
        if at + 1 > limit {
            return Err(Fault::GP0);
        }
        let bits: u16 = self.system_load(self.tr.base.wrapping_add(at))?;
        let wanted = (1u16 << size) - 1;
        if bits >> (port & 7) & wanted != 0 { Err(Fault::GP0) } else { Ok(()) }
    }

    fn port_in<W: Word>(&mut self, port: u16) -> W {
        if self.armed {
            self.note_ports(port, W::BYTES);
        }
        W::from_u64(self.device(|bus| bus.pio_read(port, io_size::<W>())).into())
    }

    fn port_out<W: Word>(&mut self, port: u16, value: W) {
        if self.armed {
            self.note_ports(port, W::BYTES);
        }
        self.device(|bus| bus.pio_write(port, io_size::<W>(), value.to_u64() as u32));
    }
}

fn port(cpu: &Cpu, ins: &Instruction, n: u32) -> u16 {
    if ins.op_kind(n) == OpKind::Register { cpu.reg(gpr::RDX) } else { ins.immediate8().into() }
}

fn input<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let port = port(cpu, ins, 1);
    cpu.io_allowed(port, W::BYTES)?;
    let value = cpu.port_in::<W>(port);
    cpu.set_reg(gpr::RAX, value);
    Ok(())
}

fn output<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let port = port(cpu, ins, 0);
    cpu.io_allowed(port, W::BYTES)?;
    cpu.port_out::<W>(port, cpu.reg(gpr::RAX));
    Ok(())
}

/// INS with an index register of width `A`.
fn ins_step<W: Word, A: Word>(cpu: &mut Cpu, port: u16) -> Exec {
    let offset = cpu.reg::<A>(gpr::RDI).to_u64();
    let ea = cpu.segmented(seg::ES, offset, W::BYTES, true)?;
    // The port is read only when nothing can go wrong any more.
    cpu.probe_write(ea, W::BYTES)?;
    let value = cpu.port_in::<W>(port);
    cpu.store(ea, value)?;
    advance::<W, A>(cpu, gpr::RDI);
    Ok(())
}

fn outs_step<W: Word, A: Word>(cpu: &mut Cpu, port: u16, segment: usize) -> Exec {
    let offset = cpu.reg::<A>(gpr::RSI).to_u64();
    let ea = cpu.segmented(segment, offset, W::BYTES, false)?;
    let value = cpu.load(ea)?;
    cpu.port_out::<W>(port, value);
    advance::<W, A>(cpu, gpr::RSI);
    Ok(())
}

fn advance<W: Word, A: Word>(cpu: &mut Cpu, index: usize) {
    let old = cpu.reg::<A>(index).to_u64();
    let step = W::BYTES as u64;
    let new = if cpu.has(flag::DF) { old.wrapping_sub(step) } else { old.wrapping_add(step) };
    cpu.set_reg(index, A::from_u64(new));
}

/// Runs `step` once, or with a REP prefix as often as the count of width `A` says.
fn repeat<A: Word>(cpu: &mut Cpu, ins: &Instruction, mut step: impl FnMut(&mut Cpu) -> Exec) -> Exec {
    if !ins.has_rep_prefix() && !ins.has_repne_prefix() {
        return step(cpu);
    }
    let turn = if cpu.stops_repeats() { 1 } else { TURN };
    for _ in 0..turn {
        let count = cpu.reg::<A>(gpr::RCX).to_u64();
        if count == 0 {
            return Ok(());
        }
        step(cpu)?;
        cpu.set_reg(gpr::RCX, A::from_u64(count - 1));
        // Behind a kick a device does not make us wait any more: it gets one access, not a turn of them.
        if cpu.shared.requested() & request::KICK != 0 {
            break;
        }
    }
    if cpu.reg::<A>(gpr::RCX).to_u64() != 0 {
        cpu.give_up_turn();
    }
    Ok(())
}

fn string_in<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let port: u16 = cpu.reg(gpr::RDX);
    cpu.io_allowed(port, W::BYTES)?;
    match ins.op0_kind() {
        OpKind::MemoryESDI => repeat::<u16>(cpu, ins, |cpu| ins_step::<W, u16>(cpu, port)),
        OpKind::MemoryESEDI => repeat::<u32>(cpu, ins, |cpu| ins_step::<W, u32>(cpu, port)),
        _ => repeat::<u64>(cpu, ins, |cpu| ins_step::<W, u64>(cpu, port)),
    }
}

fn string_out<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let port: u16 = cpu.reg(gpr::RDX);
    cpu.io_allowed(port, W::BYTES)?;
    let segment = cpu.memory_segment(ins);
    match ins.op1_kind() {
        OpKind::MemorySegSI => repeat::<u16>(cpu, ins, |cpu| outs_step::<W, u16>(cpu, port, segment)),
        OpKind::MemorySegESI => repeat::<u32>(cpu, ins, |cpu| outs_step::<W, u32>(cpu, port, segment)),
        _ => repeat::<u64>(cpu, ins, |cpu| outs_step::<W, u64>(cpu, port, segment)),
    }
}

pub(super) fn register(table: &mut Table) {
    use Code::*;
    table.set(&[In_AL_imm8, In_AL_DX], input::<u8>);
    table.set(&[In_AX_imm8, In_AX_DX], input::<u16>);
    table.set(&[In_EAX_imm8, In_EAX_DX], input::<u32>);
    table.set(&[Out_imm8_AL, Out_DX_AL], output::<u8>);
    table.set(&[Out_imm8_AX, Out_DX_AX], output::<u16>);
    table.set(&[Out_imm8_EAX, Out_DX_EAX], output::<u32>);
    table.set(&[Insb_m8_DX], string_in::<u8>);
    table.set(&[Insw_m16_DX], string_in::<u16>);
    table.set(&[Insd_m32_DX], string_in::<u32>);
    table.set(&[Outsb_DX_m8], string_out::<u8>);
    table.set(&[Outsw_DX_m16], string_out::<u16>);
    table.set(&[Outsd_DX_m32], string_out::<u32>);
}

//! Far JMP and CALL, directly and through call gates (Intel SDM vol. 3, 5.8). Task gates and TSSs lead to `task.rs`.

use accel_api::x86::gpr;
use iced_x86::{Code, Instruction, OpKind};

use crate::alu::Word;
use crate::cpu::seg;
use crate::event::NewStack;
use crate::exec::Table;
use crate::segment::{is_null, null_segment, rpl, system_type};
use crate::task::{Reason, leads_to_task};
use crate::{Cpu, Descriptor, Exec, Fault};

/// Where a far transfer in protected mode leads.
struct Target {
    selector: u16,
    code: Descriptor,
    offset: u64,
    gate: Option<Gate>,
}

/// What a call gate adds.
#[derive(Clone, Copy)]
struct Gate {
    /// Bytes of each item pushed: 2, 4 or 8.
    width: usize,
    /// Parameters copied to an inner stack, 0 to 31.
    parameters: u8,
}

fn pointer<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec<(u16, u64)> {
    match ins.op0_kind() {
        OpKind::FarBranch16 => Ok((ins.far_branch_selector(), ins.far_branch16().into())),
        OpKind::FarBranch32 => Ok((ins.far_branch_selector(), ins.far_branch32().into())),
        _ => {
            let ea = cpu.ea(ins, W::BYTES + 2, false)?;
            let offset: W = cpu.load(ea)?;
            Ok((cpu.load(ea.plus(W::BYTES as u64))?, offset.to_u64()))
        }
    }
}

impl Cpu {
    /// Where a far JMP or CALL leads; `None` if it has led to another task already.
    fn far_target(&mut self, selector: u16, offset: u64, jump: bool) -> Exec<Option<Target>> {
        if is_null(selector) {
            return Err(Fault::GP0);
        }
        let d = self.descriptor(selector, Fault::gp)?;
        if d.is_system() {
            if !self.long_mode() && leads_to_task(d.kind()) {
                let reason = if jump { Reason::Jump } else { Reason::Call };
                self.far_to_task(selector, d, reason)?;
                return Ok(None);
            }
            return self.gate_target(selector, d, jump).map(Some);
        }
        let allowed = if d.is_conforming() {
            d.dpl() <= self.cpl
        } else {
            rpl(selector) <= self.cpl && d.dpl() == self.cpl
        };
        self.check_code(selector, d, allowed)?;
        self.check_entry(d, offset)?;
        Ok(Some(Target { selector, code: d, offset, gate: None }))
    }

    fn gate_target(&mut self, selector: u16, d: Descriptor, jump: bool) -> Exec<Target> {
        let long = self.long_mode();
        let width = match d.kind() {
            system_type::CALL if long => 8,
            system_type::CALL => 4,
            system_type::CALL16 if !long => 2,
            _ => return Err(Fault::gp(selector)),
        };
        if d.dpl() < self.cpl || d.dpl() < rpl(selector) {
            return Err(Fault::gp(selector));
        }
        if !d.present() {
            return Err(Fault::np(selector));
        }
        let offset = match width {
            8 => d.gate_offset() | self.upper_half(selector, Fault::gp)?,
            4 => d.gate_offset(),
            _ => d.gate_offset() & 0xffff,
        };
        let parameters = if long { 0 } else { (d.0 >> 32) as u8 & 31 };
        let selector = d.gate_selector();
        if is_null(selector) {
            return Err(Fault::GP0);
        }
        let code = self.descriptor(selector, Fault::gp)?;
        let allowed =
            if jump && !code.is_conforming() { code.dpl() == self.cpl } else { code.dpl() <= self.cpl };
        self.check_code(selector, code, allowed && (!long || code.is_long()))?;
        self.check_entry(code, offset)?;
        Ok(Target { selector, code, offset, gate: Some(Gate { width, parameters }) })
    }

    /// Loads CS for level `cpl` and goes on there. The caller calls [`Cpu::update_mode`].
    fn enter_code(&mut self, to: &Target, cpl: u8) {
        self.segs[seg::CS] = to.code.segment(to.selector & !3 | u16::from(cpl));
        self.next_rip = to.offset;
    }

    fn real_far_jump(&mut self, selector: u16, offset: u64) -> Exec {
        self.branch_to(offset)?;
        self.segs[seg::CS] = self.real_segment(&self.segs[seg::CS], selector);
        self.leave = true;
        Ok(())
    }

    /// Pushes CS and the return address on the current stack.
    fn push_return<W: Word>(&mut self) -> Exec {
        let width = W::BYTES as i64;
        let cs = self.stack_ea(-width, W::BYTES, true)?;
        let ip = self.stack_ea(-2 * width, W::BYTES, true)?;
        self.store(cs, W::from_u64(self.segs[seg::CS].selector.into()))?;
        self.store(ip, W::from_u64(self.next_rip))?;
        self.add_rsp(-2 * width);
        Ok(())
    }

    /// CALL through a gate to an inner level (5.8.5, in 64-bit mode 5.8.5.1).
    fn call_inward(&mut self, to: &mut Target, gate: Gate) -> Exec {
        let cpl = to.code.dpl();
        let (old_ss, old_rsp) = (self.segs[seg::SS].selector, self.gpr[gpr::RSP]);
        let old_cs = self.segs[seg::CS].selector;
        let (ss, rsp) = if gate.width == 8 {
            let bottom = self.tss_stack_long(cpl)?.wrapping_sub(32);
            if !Self::canonical(bottom) {
                return Err(Fault::SS0);
            }
            let mut frame = [0; 32];
            let values = [self.next_rip, old_cs.into(), old_rsp, old_ss.into()];
            for (slot, value) in frame.chunks_exact_mut(8).zip(values) {
                slot.copy_from_slice(&value.to_le_bytes());
            }
            self.store_frame(cpl, bottom, &frame)?;
            (null_segment(cpl.into(), cpl), bottom)
        } else {
            let mut stack: NewStack = self.inner_stack(cpl)?;
            stack.push(self, gate.width, old_ss.into())?;
            stack.push(self, gate.width, old_rsp)?;
            for i in (0..i64::from(gate.parameters)).rev() {
                let value = match gate.width {
                    4 => u64::from(self.peek::<u32>(i * 4)?),
                    _ => u64::from(self.peek::<u16>(i * 2)?),
                };
                stack.push(self, gate.width, value)?;
            }
            stack.push(self, gate.width, old_cs.into())?;
            stack.push(self, gate.width, self.next_rip)?;
            (stack.segment, stack.esp)
        };
        self.mark_accessed(to.selector, &mut to.code)?;
        self.segs[seg::SS] = ss;
        self.gpr[gpr::RSP] = rsp;
        self.enter_code(to, cpl);
        self.update_mode();
        Ok(())
    }
}

fn jmp<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let (selector, offset) = pointer::<W>(cpu, ins)?;
    if !cpu.protected() {
        return cpu.real_far_jump(selector, offset);
    }
    let Some(mut to) = cpu.far_target(selector, offset, true)? else { return Ok(()) };
    cpu.mark_accessed(to.selector, &mut to.code)?;
    cpu.enter_code(&to, cpu.cpl);
    cpu.update_mode();
    Ok(())
}

fn call<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let (selector, offset) = pointer::<W>(cpu, ins)?;
    if !cpu.protected() {
        if offset > u64::from(cpu.segs[seg::CS].limit) {
            return Err(Fault::GP0);
        }
        cpu.push_return::<W>()?;
        return cpu.real_far_jump(selector, offset);
    }
    let Some(mut to) = cpu.far_target(selector, offset, false)? else { return Ok(()) };
    let width = match to.gate {
        Some(gate) if !to.code.is_conforming() && to.code.dpl() < cpu.cpl => {
            return cpu.call_inward(&mut to, gate);
        }
        Some(gate) => gate.width,
        None => W::BYTES,
    };
    cpu.mark_accessed(to.selector, &mut to.code)?;
    match width {
        2 => cpu.push_return::<u16>()?,
        4 => cpu.push_return::<u32>()?,
        _ => cpu.push_return::<u64>()?,
    }
    cpu.enter_code(&to, cpu.cpl);
    cpu.update_mode();
    Ok(())
}

pub(super) fn register(table: &mut Table) {
    use Code::*;
    table.set(&[Jmp_ptr1616, Jmp_m1616], jmp::<u16>);
    table.set(&[Jmp_ptr1632, Jmp_m1632], jmp::<u32>);
    table.set(&[Jmp_m1664], jmp::<u64>);
    table.set(&[Call_ptr1616, Call_m1616], call::<u16>);
    table.set(&[Call_ptr1632, Call_m1632], call::<u32>);
    table.set(&[Call_m1664], call::<u64>);
}

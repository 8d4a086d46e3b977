//! RETF and IRET (Intel SDM vol. 2; vol. 3, 5.8.6, 6.12.1, 6.14.4 and 21.2.2). An IRET with NT set returns to another task
//! (`task.rs`), in long mode it is #GP(0).
//!
//! The manual pops upwards; processors read each part of a frame from its top: flags, CS, RIP, then SS, RSP. Which slot a page
//! fault names tells the difference, if the frame lies across two pages.

use accel_api::x86::{Segment, gpr};
use iced_x86::{Code, Instruction};

use crate::alu::{Word, flag};
use crate::cpu::seg;
use crate::exec::{Table, serialising};
use crate::mode::Mode;
use crate::segment::{is_null, null_segment, rpl, virtual8086_segment};
use crate::{Cpu, Descriptor, Exec, Fault};

impl Cpu {
    /// Checks where a return leads; the selector's RPL is the level returned to.
    #[inline]
    fn return_target(&mut self, selector: u16, offset: u64) -> Exec<Descriptor> {
        if is_null(selector) {
            return Err(Fault::GP0);
        }
        let mut d = self.descriptor(selector, Fault::gp)?;
        let level = rpl(selector);
        let allowed = if d.is_conforming() { d.dpl() <= level } else { d.dpl() == level };
        self.check_code(selector, d, allowed && level >= self.cpl)?;
        self.check_entry(d, offset)?;
        self.mark_accessed(selector, &mut d)?;
        Ok(d)
    }

    /// Checks the stack segment that a return to `code` at level `cpl` brings.
    #[inline]
    fn return_stack(&mut self, selector: u16, cpl: u8, code: Descriptor) -> Exec<Segment> {
        if !is_null(selector) {
            return self.check_stack_segment(selector, cpl, Fault::gp);
        }
        let to_long = self.long_mode() && code.is_long();
        if to_long && cpl != 3 && rpl(selector) == cpl {
            Ok(null_segment(selector, cpl))
        } else {
            Err(Fault::GP0)
        }
    }

    /// Loads CS and SS with what the stack gave, at another level or in 64-bit mode.
    fn return_outward(&mut self, cs: Segment, ss: Segment, rsp: u64) {
        let inner = self.cpl;
        self.segs[seg::CS] = cs;
        self.segs[seg::SS] = ss;
        self.update_mode();
        self.gpr[gpr::RSP] = self.with_stack_width(rsp);
        if self.cpl != inner {
            self.drop_inner_segments();
        }
    }

    /// Flags that IRET takes from the stack at the current level.
    fn iret_mask(&self, width: usize) -> u64 {
        let mut mask = flag::ARITH | flag::TF | flag::DF | flag::NT;
        if width > 2 {
            mask |= flag::RF | flag::AC | flag::ID;
        }
        if self.cpl <= self.iopl() {
            mask |= flag::IF;
        }
        if self.cpl == 0 {
            mask |= flag::IOPL;
            if width > 2 {
                mask |= flag::VIF | flag::VIP;
            }
        }
        mask
    }

    fn iret_real<W: Word>(&mut self) -> Exec {
        let width = W::BYTES as i64;
        let virtualised = self.virtual_flags(W::BYTES)?;
        let ip: W = self.peek(0)?;
        let cs: W = self.peek(width)?;
        let flags = self.peek::<W>(2 * width)?.to_u64();
        if ip.to_u64() > u64::from(self.segs[seg::CS].limit) {
            return Err(Fault::GP0);
        }
        if virtualised {
            self.set_virtual_flags(flags)?;
        } else {
            let mut mask = self.iret_mask(W::BYTES) | flag::IF;
            if self.mode == Mode::Virtual8086 {
                mask &= !(flag::IOPL | flag::VIF | flag::VIP);
            } else {
                mask &= !(flag::VIF | flag::VIP);
            }
            self.set_flags_masked(flags, mask);
        }
        self.segs[seg::CS] = self.real_segment(&self.segs[seg::CS], cs.to_u64() as u16);
        self.next_rip = ip.to_u64();
        self.add_rsp(3 * width);
        Ok(())
    }

    /// IRETD to virtual-8086 mode (21.2.2): the stack holds all segment registers.
    fn iret_virtual8086(&mut self, eip: u64, cs: u16, flags: u64) -> Exec {
        let mut rest = [0u32; 6];
        for (i, slot) in rest.iter_mut().enumerate() {
            *slot = self.peek(12 + 4 * i as i64)?;
        }
        if eip > 0xffff {
            return Err(Fault::GP0);
        }
        let [esp, ss, es, ds, fs, gs] = rest;
        let segment = |selector: u32| virtual8086_segment(selector as u16);
        self.segs = [es, cs.into(), ss, ds, fs, gs].map(segment);
        self.gpr[gpr::RSP] = esp.into();
        self.next_rip = eip;
        self.set_rflags(flags);
        Ok(())
    }
}

fn retf<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let width = W::BYTES as i64;
    // Without an immediate operand this reads 0.
    let release = i64::from(ins.immediate16());
    let (cs, ip) = (cpu.peek::<W>(width)?.to_u64() as u16, cpu.peek::<W>(0)?.to_u64());
    if !cpu.protected() {
        cpu.branch_to(ip)?;
        cpu.segs[seg::CS] = cpu.real_segment(&cpu.segs[seg::CS], cs);
        cpu.leave = true;
        cpu.add_rsp(2 * width + release);
        return Ok(());
    }
    let code = cpu.return_target(cs, ip)?;
    if rpl(cs) == cpu.cpl {
        cpu.add_rsp(2 * width + release);
        cpu.segs[seg::CS] = code.segment(cs);
        cpu.update_mode();
    } else {
        let ss = cpu.peek::<W>(3 * width + release)?.to_u64() as u16;
        let rsp = cpu.peek::<W>(2 * width + release)?.to_u64();
        let stack = cpu.return_stack(ss, rpl(cs), code)?;
        cpu.return_outward(code.segment(cs), stack, rsp);
        cpu.add_rsp(release);
    }
    cpu.next_rip = ip;
    Ok(())
}

fn iret<W: Word>(cpu: &mut Cpu, _: &Instruction) -> Exec {
    // Even an IRET that faults lets NMIs in again (6.7.1).
    if cpu.nmi_masked {
        cpu.lapic.merge_nmis();
        cpu.nmi_masked = false;
        cpu.leave = true;
    }
    if !cpu.protected() {
        cpu.iret_real::<W>()?;
        cpu.leave = true;
        return Ok(());
    }
    if cpu.has(flag::NT) {
        return if cpu.long_mode() { Err(Fault::GP0) } else { cpu.return_to_task() };
    }
    let width = W::BYTES as i64;
    let flags = cpu.peek::<W>(2 * width)?.to_u64();
    let (cs, ip) = (cpu.peek::<W>(width)?.to_u64() as u16, cpu.peek::<W>(0)?.to_u64());
    if flags & flag::VM != 0 && !cpu.long_mode() && cpu.cpl == 0 {
        return cpu.iret_virtual8086(ip, cs, flags);
    }
    let code = cpu.return_target(cs, ip)?;
    let mask = cpu.iret_mask(W::BYTES);
    if cpu.mode == Mode::Long || rpl(cs) != cpu.cpl {
        let ss = cpu.peek::<W>(4 * width)?.to_u64() as u16;
        let rsp = cpu.peek::<W>(3 * width)?.to_u64();
        let stack = cpu.return_stack(ss, rpl(cs), code)?;
        cpu.set_flags_masked(flags, mask);
        cpu.return_outward(code.segment(cs), stack, rsp);
    } else {
        cpu.add_rsp(3 * width);
        cpu.set_flags_masked(flags, mask);
        cpu.segs[seg::CS] = code.segment(cs);
        cpu.update_mode();
    }
    cpu.next_rip = ip;
    Ok(())
}

pub(super) fn register(table: &mut Table) {
    use Code::*;
    table.set(&[Retfw, Retfw_imm16], retf::<u16>);
    table.set(&[Retfd, Retfd_imm16], retf::<u32>);
    table.set(&[Retfq, Retfq_imm16], retf::<u64>);
    table.set(&[Iretw], |cpu, ins| serialising(cpu, ins, iret::<u16>));
    table.set(&[Iretd], |cpu, ins| serialising(cpu, ins, iret::<u32>));
    table.set(&[Iretq], |cpu, ins| serialising(cpu, ins, iret::<u64>));
}

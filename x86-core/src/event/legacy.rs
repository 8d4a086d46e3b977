//! Event delivery in protected mode outside long mode (Intel SDM vol. 3, 6.12), from virtual-8086 mode (21.3) and in
//! real-address mode (21.1.4).

use accel_api::x86::{Segment, gpr};

use super::Delivery;
use crate::alu::flag;
use crate::cpu::seg;
use crate::mode::{Mode, bits};
use crate::segment::{idt_fault, is_null, null_segment, system_type};
use crate::task::{Leaving, Reason};
use crate::{Cpu, Descriptor, Ea, Exec, Fault, vector, within};

/// A stack that is being filled and is not the current one yet.
pub(crate) struct NewStack {
    pub(crate) segment: Segment,
    pub(crate) esp: u64,
    /// Privilege of the writes.
    pub(crate) cpl: u8,
    /// What a push beyond the limit raises.
    pub(crate) overflow: Fault,
}

impl NewStack {
    fn mask(&self) -> u64 {
        if self.segment.attributes & Segment::DB != 0 { 0xffff_ffff } else { 0xffff }
    }

    /// Pushes `width` bytes (2 or 4).
    pub(crate) fn push(&mut self, cpu: &mut Cpu, width: usize, value: u64) -> Exec {
        let mask = self.mask();
        let offset = self.esp.wrapping_sub(width as u64) & mask;
        if !within(&self.segment, offset, width) {
            return Err(self.overflow);
        }
        let la = self.segment.base.wrapping_add(offset) & 0xffff_ffff;
        cpu.store_bytes_at_cpl(self.cpl, Ea { la, stack: true }, &value.to_le_bytes()[..width])?;
        self.esp = self.esp & !mask | offset;
        Ok(())
    }
}

impl Cpu {
    pub(super) fn deliver_protected(&mut self, event: &Delivery) -> Exec {
        let v86 = self.mode == Mode::Virtual8086;
        let at = u64::from(event.vector) * 8;
        if at + 7 > u64::from(self.idtr.limit) {
            return Err(idt_fault(vector::GP, event.vector));
        }
        let gate = Descriptor(self.system_load(self.idtr.base.wrapping_add(at))?);
        let interrupt = matches!(gate.kind(), system_type::INTERRUPT16 | system_type::INTERRUPT);
        let trap = matches!(gate.kind(), system_type::TRAP16 | system_type::TRAP);
        let task = gate.kind() == system_type::TASK_GATE;
        if !gate.is_system() || !(interrupt || trap || task) || (event.software && gate.dpl() < self.cpl) {
            return Err(idt_fault(vector::GP, event.vector));
        }
        if !gate.present() {
            return Err(idt_fault(vector::NP, event.vector));
        }
        if task {
            let (reason, eip) = (Reason::Event(event.error_code), event.return_rip);
            return self.switch_task(gate.gate_selector(), Leaving { reason, eip, rflags: event.rflags });
        }
        let width = if gate.kind() & 8 != 0 { 4 } else { 2 };

        let selector = gate.gate_selector();
        if is_null(selector) {
            return Err(Fault::GP0);
        }
        let mut code = self.descriptor(selector, Fault::gp)?;
        self.check_code(selector, code, code.dpl() <= self.cpl)?;
        let cpl = if code.is_conforming() { self.cpl } else { code.dpl() };
        if v86 && cpl != 0 {
            return Err(Fault::gp(selector));
        }
        let eip = if width == 4 { gate.gate_offset() } else { gate.gate_offset() & 0xffff };

        let mut stack = if cpl != self.cpl {
            self.inner_stack(cpl)?
        } else {
            let (segment, esp) = (self.segs[seg::SS], self.gpr[gpr::RSP]);
            NewStack { segment, esp, cpl, overflow: Fault::SS0 }
        };
        self.check_entry(code, eip)?;
        if v86 {
            for index in [seg::GS, seg::FS, seg::DS, seg::ES] {
                stack.push(self, width, self.segs[index].selector.into())?;
            }
        }
        if cpl != self.cpl {
            stack.push(self, width, self.segs[seg::SS].selector.into())?;
            stack.push(self, width, self.gpr[gpr::RSP])?;
        }
        stack.push(self, width, event.rflags)?;
        stack.push(self, width, self.segs[seg::CS].selector.into())?;
        stack.push(self, width, event.return_rip)?;
        if let Some(error_code) = event.error_code {
            stack.push(self, width, error_code.into())?;
        }
        self.mark_accessed(selector, &mut code)?;

        if v86 {
            for index in [seg::GS, seg::FS, seg::DS, seg::ES] {
                self.segs[index] = null_segment(0, 0);
            }
        }
        self.segs[seg::SS] = stack.segment;
        self.segs[seg::CS] = code.segment(selector & !3 | u16::from(cpl));
        self.gpr[gpr::RSP] = stack.esp;
        self.next_rip = eip;
        self.enter_handler(interrupt);
        Ok(())
    }

    /// The stack of level `cpl` from the TSS, checked (Intel SDM vol. 3, 6.12.1).
    pub(crate) fn inner_stack(&mut self, cpl: u8) -> Exec<NewStack> {
        let (ss, esp) = self.tss_stack(cpl)?;
        if is_null(ss) {
            return Err(Fault::ts(0));
        }
        let segment = self.check_stack_segment(ss, cpl, Fault::ts)?;
        Ok(NewStack { segment, esp, cpl, overflow: Fault::ss(ss) })
    }

    /// Delivery through the interrupt vector table at `base`: in real mode, and for software interrupts that
    /// virtual-8086 mode redirects.
    pub(super) fn deliver_real(&mut self, event: &Delivery, base: u64, limit: u64) -> Exec {
        let at = u64::from(event.vector) * 4;
        if at + 3 > limit {
            return Err(idt_fault(vector::GP, event.vector));
        }
        let entry: u32 = self.system_load(base.wrapping_add(at))?;
        let mut stack = NewStack {
            segment: self.segs[seg::SS],
            esp: self.gpr[gpr::RSP],
            cpl: self.cpl,
            overflow: Fault::SS0,
        };
        stack.push(self, 2, event.rflags)?;
        stack.push(self, 2, self.segs[seg::CS].selector.into())?;
        stack.push(self, 2, event.return_rip)?;
        self.segs[seg::CS] = self.real_segment(&self.segs[seg::CS], (entry >> 16) as u16);
        self.gpr[gpr::RSP] = stack.esp;
        self.next_rip = u64::from(entry & 0xffff);
        self.system_flags &= !(flag::TF | flag::RF | flag::IF | flag::AC);
        Ok(())
    }

    /// Whether INT `vector` in virtual-8086 mode goes to the 8086 program's own handler: CR4.VME is set and the bit in the
    /// TSS's redirection map is clear (Intel SDM vol. 3, 21.3.3 and table 21-2).
    ///
    /// # Errors
    /// #GP(0) if the map lies beyond the TSS; #PF.
    pub(crate) fn redirects(&mut self, vector: u8) -> Exec<bool> {
        const IO_MAP_BASE: u64 = 0x66;
        if self.cr4 & bits::CR4_VME == 0 {
            return Ok(false);
        }
        let map: u16 = self.tss_field(IO_MAP_BASE).map_err(map_fault)?;
        let at = u64::from(map.checked_sub(32).ok_or(Fault::GP0)?) + u64::from(vector / 8);
        if at > u64::from(self.tr.limit) {
            return Err(Fault::GP0);
        }
        let byte: u8 = self.system_load(self.tr.base.wrapping_add(at))?;
        Ok(byte >> (vector & 7) & 1 == 0)
    }

    /// INT n redirected through the vector table at linear address 0. Below IOPL 3, VIF stands for IF.
    pub(crate) fn redirected_interrupt(&mut self, vector: u8) -> Exec {
        let mut rflags = self.rflags();
        let virtualised = self.iopl() < 3;
        if virtualised {
            let vif = if self.has(flag::VIF) { flag::IF } else { 0 };
            rflags = rflags & !flag::IF | vif | flag::IOPL;
        }
        let kept = self.system_flags & if virtualised { flag::IF | flag::AC } else { flag::AC };
        let (error_code, return_rip) = (None, self.next_rip);
        let event = Delivery { vector, error_code, return_rip, software: true, rflags };
        self.deliver_real(&event, 0, 0x3ff)?;
        self.system_flags |= kept;
        if virtualised {
            self.system_flags &= !flag::VIF;
        }
        self.rip = self.next_rip;
        self.update_mode();
        Ok(())
    }
}

/// The redirection map's #GP(0) in place of the #TS of a field beyond the TSS; page faults stay.
fn map_fault(fault: Fault) -> Fault {
    if fault.vector() == vector::TS { Fault::GP0 } else { fault }
}

//! Event delivery in 64-bit and compatibility mode (Intel SDM vol. 3, 6.14).

use accel_api::x86::gpr;

use super::Delivery;
use crate::cpu::seg;
use crate::segment::{idt_fault, is_null, null_segment, system_type};
use crate::{Cpu, Descriptor, Ea, Exec, Fault, vector};

impl Cpu {
    pub(super) fn deliver_long(&mut self, event: &Delivery) -> Exec {
        let at = u64::from(event.vector) * 16;
        if at + 15 > u64::from(self.idtr.limit) {
            return Err(idt_fault(vector::GP, event.vector));
        }
        let at = self.idtr.base.wrapping_add(at);
        let gate = Descriptor(self.system_load(at)?);
        let offset_high: u64 = self.system_load(at.wrapping_add(8))?;
        if !gate.is_system() || !matches!(gate.kind(), system_type::INTERRUPT | system_type::TRAP) {
            return Err(idt_fault(vector::GP, event.vector));
        }
        if event.software && gate.dpl() < self.cpl {
            return Err(idt_fault(vector::GP, event.vector));
        }
        if !gate.present() {
            return Err(idt_fault(vector::NP, event.vector));
        }

        let selector = gate.gate_selector();
        if is_null(selector) {
            return Err(Fault::GP0);
        }
        let mut code = self.descriptor(selector, Fault::gp)?;
        self.check_code(selector, code, code.dpl() <= self.cpl && code.is_long())?;
        let cpl = if code.is_conforming() { self.cpl } else { code.dpl() };
        let rip = gate.gate_offset() | offset_high << 32;
        if !Self::canonical(rip) {
            return Err(Fault::GP0);
        }

        let ist = (gate.0 >> 32) as u8 & 7;
        let rsp = if ist != 0 {
            self.tss_stack_long(3 + ist)?
        } else if cpl != self.cpl {
            self.tss_stack_long(cpl)?
        } else {
            self.gpr[gpr::RSP]
        };
        // The frame ends on a multiple of 16, so that handlers may save vector registers aligned (6.14.2).
        let top = rsp & !0xf;
        let (ss, cs) = (self.segs[seg::SS].selector, self.segs[seg::CS].selector);
        let frame = [
            u64::from(event.error_code.unwrap_or(0)),
            event.return_rip,
            cs.into(),
            event.rflags,
            self.gpr[gpr::RSP],
            ss.into(),
        ];
        let mut bytes = [0; 48];
        for (slot, value) in bytes.chunks_exact_mut(8).zip(frame) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        let pushed = if event.error_code.is_some() { &bytes[..] } else { &bytes[8..] };
        let bottom = top.wrapping_sub(pushed.len() as u64);
        if !Self::canonical(bottom) {
            return Err(Fault::SS0);
        }
        self.mark_accessed(selector, &mut code)?;
        self.store_frame(cpl, bottom, pushed)?;

        if cpl != self.cpl {
            self.segs[seg::SS] = null_segment(cpl.into(), cpl);
        }
        self.segs[seg::CS] = code.segment(selector & !3 | u16::from(cpl));
        self.gpr[gpr::RSP] = bottom;
        self.next_rip = rip;
        self.enter_handler(gate.kind() == system_type::INTERRUPT);
        Ok(())
    }

    /// Stores a frame of quadwords whose lowest lies at `bottom`, with the privilege of `cpl`.
    ///
    /// # Errors
    /// #PF or #SS of the first quadword that cannot be pushed, from the top.
    pub(crate) fn store_frame(&mut self, cpl: u8, bottom: u64, frame: &[u8]) -> Exec {
        let at = |n: u64| Ea { la: bottom.wrapping_add(8 * n), stack: true };
        self.store_bytes_at_cpl(cpl, at(0), frame).or_else(|_| {
            let mut slots = (0..frame.len() / 8).rev();
            slots.try_for_each(|n| self.store_bytes_at_cpl(cpl, at(n as u64), &frame[8 * n..8 * n + 8]))
        })
    }
}

//! Between the working state and the neutral one.

use accel_api::x86::{ControlRegs, CpuState, DebugRegs, Events, Segments};

use crate::cpu::seg;
use crate::mode::bits;
use crate::{Cpu, FpuRegs};

/// Refuses what no processor can hold and would be an error of the host's instructions: MXCSR goes into the host's, where
/// reserved bits raise #GP (Intel SDM vol. 1, 10.2.3).
pub(crate) fn check(state: &CpuState) -> Result<(), &'static str> {
    const MXCSR_BITS: u32 = 0xffff;
    if state.fpu.mxcsr & !MXCSR_BITS != 0 {
        return Err("MXCSR has reserved bits set");
    }
    Ok(())
}

impl Cpu {
    /// Replaces the whole state but the local APIC's, to which goes only how many NMIs wait.
    pub fn load_state(&mut self, state: &CpuState) {
        let CpuState {
            gpr,
            rip,
            rflags,
            segments,
            gdtr,
            idtr,
            control,
            debug,
            fpu,
            msrs,
            events,
            mp,
            lapic: _,
            tsc_offset,
        } = state;
        let Segments { es, cs, ss, ds, fs, gs, ldtr, tr } = segments;
        let ControlRegs { cr0, cr2, cr3, cr4, xcr0, pdptrs } = control;
        let DebugRegs { dr, dr6, dr7 } = debug;
        let Events { injected, interrupt_shadow, debug_shadow, debug_pending, nmi_pending, nmi_masked } =
            events;
        self.gpr = *gpr;
        self.rip = *rip;
        self.next_rip = *rip;
        self.segs = [*es, *cs, *ss, *ds, *fs, *gs];
        (self.ldtr, self.tr, self.gdtr, self.idtr) = (*ldtr, *tr, *gdtr, *idtr);
        (self.cr0, self.cr2, self.cr3, self.cr4, self.xcr0) = (*cr0, *cr2, *cr3, *cr4, *xcr0);
        (self.dr, self.dr6) = (*dr, *dr6);
        self.set_dr7(*dr7);
        (self.debug_shadow, self.pending_debug) =
            (*debug_shadow && *interrupt_shadow, debug_pending & Events::DEBUG_CAUSES);
        self.vector.0 = fpu.ymm;
        self.fpu = FpuRegs::from_state(fpu);
        self.set_mxcsr(fpu.mxcsr);
        self.msrs = msrs.clone();
        self.efer = msrs.efer;
        self.injected = *injected;
        self.shadow = *interrupt_shadow;
        self.lapic.set_nmis(*nmi_pending);
        self.nmi_masked = *nmi_masked;
        self.mp = *mp;
        self.tsc_offset = *tsc_offset;
        self.pdptes = pdptrs.unwrap_or_else(|| self.pdptes_at(self.cr3));
        self.system_flags = 0;
        self.set_rflags(*rflags);
        // Code decoded before stays valid: it is keyed by its bytes' place in RAM, not by this state.
        self.tlb.flush_all();
        self.update_mode();
    }

    /// The whole state but the local APIC's, whose place in `state` is left alone.
    pub fn save_state(&self, state: &mut CpuState) {
        let [es, cs, ss, ds, fs, gs] = self.segs;
        state.gpr = self.gpr;
        state.rip = self.rip;
        state.rflags = self.rflags();
        state.segments = Segments { es, cs, ss, ds, fs, gs, ldtr: self.ldtr, tr: self.tr };
        (state.gdtr, state.idtr) = (self.gdtr, self.idtr);
        state.control = ControlRegs {
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            xcr0: self.xcr0,
            pdptrs: self.pae_paging().then_some(self.pdptes),
        };
        state.debug = DebugRegs { dr: self.dr, dr6: self.dr6, dr7: self.dr7 };
        state.fpu.ymm = self.vector.0;
        state.fpu.xstate_bv = self.state_in_use();
        self.fpu.to_state(&mut state.fpu);
        state.msrs = self.msrs.clone();
        state.msrs.efer = self.efer;
        state.events = Events {
            injected: self.injected,
            interrupt_shadow: self.shadow,
            debug_shadow: self.debug_shadow,
            debug_pending: self.pending_debug,
            nmi_pending: self.lapic.nmis().min(Events::nmi_limit(self.nmi_masked)),
            nmi_masked: self.nmi_masked,
        };
        state.mp = self.mp;
        state.tsc_offset = self.tsc_offset;
    }

    /// Loads MXCSR. While guest code runs the caller also loads the host's ([`crate::exec::mxcsr::enter`]).
    pub fn set_mxcsr(&mut self, value: u32) {
        const MASKS: u32 = 0x1f80;
        self.fpu.mxcsr = value;
        self.sse_unmasked = value & MASKS != MASKS;
    }

    /// Whether CR4.OSXMMEXCPT tells that the guest handles #XM.
    pub fn handles_xm(&self) -> bool {
        self.cr4 & bits::CR4_OSXMMEXCPT != 0
    }

    /// Forgets all translations and makes a fresh start with the memory map.
    pub fn remap(&mut self) {
        self.map = self.vm.map();
        self.tlb.flush_all();
    }

    /// Selector of CS, for messages.
    pub fn code_selector(&self) -> u16 {
        self.segs[seg::CS].selector
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mxcsr_with_reserved_bits_is_refused() {
        let mut state = CpuState::reset(0);
        assert!(check(&state).is_ok());
        state.fpu.mxcsr |= 1 << 16;
        assert!(check(&state).is_err());
    }
}

//! INIT and start-up messages (Intel SDM vol. 3, 9.4.3 and table 10-1).

use accel_api::x86::{CpuState, MpState, Segment};

use crate::Cpu;
use crate::alu::ArithFlags;
use crate::cpu::seg;
use crate::mode::bits::{CR0_CD, CR0_NW};

impl Cpu {
    /// INIT: the reset state, but x87, SSE, the MSRs (EFER excepted), the TSC and CR0.CD and NW stay. The local APIC is
    /// reset as well. The bootstrap processor goes on at the reset vector, others wait for a start-up message.
    pub fn init_reset(&mut self) {
        const CACHE: u64 = CR0_CD | CR0_NW;
        let reset = CpuState::reset(self.id);
        let s = reset.segments;
        self.gpr = reset.gpr;
        (self.rip, self.next_rip) = (reset.rip, reset.rip);
        self.segs = [s.es, s.cs, s.ss, s.ds, s.fs, s.gs];
        (self.ldtr, self.tr, self.gdtr, self.idtr) = (s.ldtr, s.tr, reset.gdtr, reset.idtr);
        self.cr0 = reset.control.cr0 & !CACHE | self.cr0 & CACHE;
        (self.cr2, self.cr3, self.cr4) = (0, 0, 0);
        self.efer = 0;
        self.dr = reset.debug.dr;
        self.dr6 = reset.debug.dr6;
        self.set_dr7(reset.debug.dr7);
        (self.debug_shadow, self.pending_debug) = (false, 0);
        self.flags = ArithFlags::default();
        self.system_flags = 0;
        self.fault_address = 0;
        self.shadow = false;
        self.injected = None;
        self.nmi_masked = false;
        self.lapic.init();
        self.mp = if self.lapic.is_bsp() { MpState::Running } else { MpState::WaitForSipi };
        self.tlb.flush_all();
        self.update_mode();
    }

    /// Start-up message: real mode at `vector` * 4096. Only for a vCPU that waits for one.
    pub fn start_up(&mut self, vector: u8) {
        let selector = u16::from(vector) << 8;
        self.segs[seg::CS] = Segment { attributes: 0x9b, ..Segment::real(selector) };
        (self.rip, self.next_rip) = (0, 0);
        self.mp = MpState::Running;
        self.update_mode();
    }
}

//! Instructions that change the privilege, by code that all blocks share: see [`crate::runtime::transfer`].

use iced_x86::Code;
use x86_core::TlbMode;

use super::SiteKind;
use super::emit::Emitter;
use super::flags::ARITH;
use super::plan::Step;

impl Emitter<'_> {
    pub(super) fn transfer(&mut self, step: &Step) {
        self.need_flags(ARITH, [true; 2]);
        self.spill_all();
        let number = self.generic_number(step);
        let site = self.site(SiteKind::Generic(number), 0);
        let stub = match step.ins.code() {
            Code::Syscall => {
                self.page_relative(10, step.next_offset().into());
                self.addresses.stubs.syscall
            }
            Code::Sysretq => self.addresses.stubs.sysret,
            _ => {
                self.addresses.stubs.iret
                    [usize::from(self.source.mode.tlb() == TlbMode::SupervisorOnly as usize)]
            }
        };
        self.hand_over(stub, site);
    }
}

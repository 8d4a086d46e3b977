//! Instructions that change the privilege, by code that the runtime emits for all blocks.

use iced_x86::Code;
use x86_core::TlbMode;

use super::{Argument, Emitter};
use crate::translate::output::{SiteKind, Stub};
use crate::translate::plan::flag_effects::ARITH;
use crate::translate::plan::step::Step;

impl Emitter<'_> {
    pub(super) fn transfer(&mut self, step: &Step) {
        self.need_flags(ARITH, [true; 2]);
        self.spill_all();
        let number = self.helper_number(step);
        let site = self.site(SiteKind::Helper(number), 0);
        let stub = match step.ins.code() {
            Code::Syscall => {
                self.page_relative(10, step.next_offset().into());
                Stub::Syscall
            }
            Code::Sysretq => Stub::Sysret,
            _ if self.source.mode.tlb() == TlbMode::SupervisorOnly as usize => Stub::IretSmap,
            _ => Stub::Iret,
        };
        self.hand_over(stub, Argument::Site(site));
    }
}

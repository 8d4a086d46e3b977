//! The ways from a block to the next.
//!
//! A direct jump within the page is chained to its target; so is one to another page in code of the kernel, until
//! translations of code change. All others go through the jump cache, without touching a flag: the guest's are live.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::OpKind;

use super::Emitter;
use super::state::{Cold, Held};
use crate::translate::encode;
use crate::translate::output::SiteKind;
use crate::translate::plan::classify::Action;
use crate::translate::plan::flag_effects::ARITH;
use crate::translate::plan::step::{RSP, Step};

impl Emitter<'_> {
    pub(super) fn branch(&mut self, step: &Step) {
        self.need_flags(self.required, [true; 2]);
        self.turning = self.turns(step);
        if !self.turning {
            self.spill_all();
        }
        match step.action {
            Action::Jump => self.go_to(step.ins.near_branch64(), SiteKind::Indirect { moved: 0 }),
            Action::Jcc => {
                let condition = (step.ins.condition_code() as u8).wrapping_sub(1) & 15;
                self.jump_if(condition, step.ins.near_branch64());
                self.count_from(self.now + 1);
            }
            Action::Call => self.call(step),
            Action::CallIndirect => self.call_indirect(step),
            Action::JumpIndirect => {
                self.prepare_flags_for_one();
                self.load_target(step);
                self.need_flags(ARITH, [false, true]);
                self.indirect(0);
            }
            Action::Return => self.ret(step),
            _ => self.helper(step),
        }
    }

    fn delta(&self, target: u64) -> i64 {
        target.wrapping_sub(self.source.page) as i64
    }

    /// Whether the instruction at a distance from the page's start lies all in the page.
    fn is_near(&self, delta: i64) -> bool {
        (0..4096).contains(&delta) && !self.source.crosses(delta as u64)
    }

    /// The block ends in a jump to `target`; `kind` is that of the site, if it is for the jump cache.
    pub(super) fn go_to(&mut self, target: u64, kind: SiteKind) {
        if let Some(label) = self.next_turn(target) {
            dynasm!(self.asm ; .arch x64 ; jmp =>label);
            return;
        }
        let delta = self.delta(target);
        let near = self.is_near(delta);
        if !near && self.pic() {
            self.need_flags(ARITH, [true; 2]);
            self.page_relative(10, delta);
            let site = self.site(kind, 0);
            self.jump_through_cache(site);
            return;
        }
        let label = self.asm.new_dynamic_label();
        dynasm!(self.asm ; .arch x64 ; jmp =>label);
        let (jump, flags) = (self.direct_jump(!near), self.flags_now());
        self.cold.push(Cold::Ask { label, jump, delta, flags });
    }

    fn jump_if(&mut self, condition: u8, target: u64) {
        let delta = self.delta(target);
        let near = self.is_near(delta);
        let turn = self.next_turn(target);
        let label = turn.unwrap_or_else(|| self.asm.new_dynamic_label());
        match condition {
            0 => dynasm!(self.asm ; .arch x64 ; jo =>label),
            1 => dynasm!(self.asm ; .arch x64 ; jno =>label),
            2 => dynasm!(self.asm ; .arch x64 ; jb =>label),
            3 => dynasm!(self.asm ; .arch x64 ; jae =>label),
            4 => dynasm!(self.asm ; .arch x64 ; je =>label),
            5 => dynasm!(self.asm ; .arch x64 ; jne =>label),
            6 => dynasm!(self.asm ; .arch x64 ; jbe =>label),
            7 => dynasm!(self.asm ; .arch x64 ; ja =>label),
            8 => dynasm!(self.asm ; .arch x64 ; js =>label),
            9 => dynasm!(self.asm ; .arch x64 ; jns =>label),
            10 => dynasm!(self.asm ; .arch x64 ; jp =>label),
            11 => dynasm!(self.asm ; .arch x64 ; jnp =>label),
            12 => dynasm!(self.asm ; .arch x64 ; jl =>label),
            13 => dynasm!(self.asm ; .arch x64 ; jge =>label),
            14 => dynasm!(self.asm ; .arch x64 ; jle =>label),
            _ => dynasm!(self.asm ; .arch x64 ; jg =>label),
        }
        if turn.is_some() {
            return;
        }
        if near || !self.pic() {
            let (jump, flags) = (self.direct_jump(!near), self.flags_now());
            self.cold.push(Cold::Ask { label, jump, delta, flags });
        } else {
            let (site, flags) = (self.site(SiteKind::Indirect { moved: 0 }, 0), self.flags_now());
            self.cold.push(Cold::Far { label, delta, site, flags });
        }
    }

    /// Pushes the address of the next instruction.
    fn push_return(&mut self, step: &Step) {
        let Some(stack) = step.stack else { return };
        let delta = i64::from(step.next_offset());
        let back = self.source.page.wrapping_add_signed(delta);
        match i32::try_from(back as i64) {
            Ok(back) if !self.pic() => {
                let memory = self.access(&stack, [false, false], step);
                self.put(encode::store_constant(memory, back));
            }
            _ => {
                let memory = self.access(&stack, [true, false], step);
                self.spill(0);
                self.held[0] = Held::Nothing;
                self.page_relative(10, delta);
                self.put(encode::store(memory, 10));
            }
        }
        self.move_rsp(-8);
        self.done = true;
    }

    fn call(&mut self, step: &Step) {
        self.push_return(step);
        self.go_to(step.ins.near_branch64(), SiteKind::Indirect { moved: 8 });
    }

    fn call_indirect(&mut self, step: &Step) {
        let register = (step.ins.op0_kind() == OpKind::Register)
            .then(|| step.ins.op0_register().number() as u8)
            .filter(|r| *r != RSP && Self::scratch(*r).is_none());
        if register.is_none() {
            self.load_target(step);
            dynasm!(self.asm ; .arch x64 ; mov [self.addresses.temporary()], r10);
        }
        self.push_return(step);
        self.need_flags(ARITH, [true; 2]);
        match register {
            Some(r) => dynasm!(self.asm ; .arch x64 ; mov r10, Rq(r)),
            None => dynasm!(self.asm ; .arch x64 ; mov r10, [self.addresses.temporary()]),
        }
        self.indirect(8);
    }

    /// R10 = the operand.
    fn load_target(&mut self, step: &Step) {
        match &step.operand {
            Some(operand) => {
                let memory = self.access(operand, [false, false], step);
                self.put(encode::load(10, memory));
            }
            None => {
                let r = step.ins.op0_register().number() as u8;
                self.need_register(r);
                dynasm!(self.asm ; .arch x64 ; mov r10, Rq(r));
            }
        }
        self.held[0] = Held::Nothing;
    }

    fn ret(&mut self, step: &Step) {
        let Some(stack) = step.stack else { return };
        self.prepare_flags_for_one();
        let memory = self.access(&stack, [false, false], step);
        self.put(encode::load(10, memory));
        let release = if step.ins.op_count() > 0 { i32::from(step.ins.immediate16()) } else { 0 };
        self.move_rsp(8 + release);
        self.done = true;
        self.held[0] = Held::Nothing;
        self.need_flags(ARITH, [false, true]);
        self.indirect(-8 - release);
    }

    /// Goes to the address in R10. `moved`: the number that added to RSP undoes the instruction.
    fn indirect(&mut self, moved: i32) {
        let site = self.site(SiteKind::Indirect { moved }, 0);
        self.jump_through_cache(site);
    }

    /// Goes to the address in R10. No instruction here changes a flag.
    pub(super) fn jump_through_cache(&mut self, site: u32) {
        let class = self.source.mode.class();
        let (negated, code) = (self.addresses.negated(class), self.addresses.code(class));
        let label = self.asm.new_dynamic_label();
        dynasm!(self.asm
            ; .arch x64
            ; movzx r11d, r10w
            ; mov r11, [r11 * 8 + negated]
            ; lea r11, [r11 + r10]
            ; xchg rcx, r11
            ; jrcxz >hit
            ; jmp =>label
            ; hit:
            ; mov rcx, r11
            ; movzx r11d, r10w
            ; jmp QWORD [r11 * 8 + code]
        );
        self.cold.push(Cold::Unknown { label, site });
    }
}

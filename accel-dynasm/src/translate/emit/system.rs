//! Instructions that kernels execute by the thousand and that concern the vCPU's state outside its registers.
//!
//! They are translated only where they cannot fault: at CPL 0, or if their condition is a part of
//! [`BlockMode`](crate::block_mode::BlockMode).

use accel_api::host_time::Lease;
use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Code, Register};
use x86_core::alu::flag;
use x86_core::{seg, segment_index};

use super::Emitter;
use super::state::{Cold, FlagState, Held, at};
use crate::translate::encode;
use crate::translate::output::SiteKind;
use crate::translate::plan::flag_effects::ARITH;
use crate::translate::plan::lazy_flags::Recipe;
use crate::translate::plan::step::Step;

impl Emitter<'_> {
    pub(super) fn system(&mut self, step: &Step) {
        match step.ins.code() {
            Code::Cli => self.clear_system_flag(flag::IF),
            Code::Cld => self.clear_system_flag(flag::DF),
            Code::Sti => self.sti(step),
            Code::Swapgs => self.swapgs(),
            Code::Rdtsc | Code::Rdtscp => self.rdtsc(step),
            Code::Pushfq => self.pushf(step),
            _ => self.read_special(step),
        }
    }

    fn clear_system_flag(&mut self, bit: u64) {
        self.release(1);
        self.lose_flags(11);
        dynasm!(self.asm ; .arch x64 ; and DWORD [self.addresses.system_flags], !(bit as i32));
    }

    /// No look at requests follows before the next instruction is over; an interrupt that waits already takes the long
    /// way.
    fn sti(&mut self, step: &Step) {
        self.spill_all();
        self.held = [Held::Nothing; 2];
        self.lose_flags(11);
        let label = self.asm.new_dynamic_label();
        dynasm!(self.asm
            ; .arch x64
            ; cmp DWORD [self.addresses.waiting()], 0
            ; jne =>label
            ; or DWORD [self.addresses.system_flags], flag::IF as i32
        );
        let number = self.helper_number(step);
        let here = at(self.asm.offset());
        let site = self.site(SiteKind::Helper(number), here);
        self.cold.push(Cold::Helper { label, site });
    }

    fn swapgs(&mut self) {
        self.spill_all();
        self.held = [Held::Nothing; 2];
        let (base, other) = (self.addresses.segment_base(seg::GS), self.addresses.kernel_gs_base);
        dynasm!(self.asm
            ; .arch x64
            ; mov r10, [base]
            ; mov r11, [other]
            ; mov [base], r11
            ; mov [other], r10
        );
    }

    /// Behind the end of the lease time is x86-core's matter, which takes a new one. Both write all of RAX and RDX.
    fn rdtsc(&mut self, step: &Step) {
        self.spill_all();
        self.release(1);
        self.lose_flags(11);
        let label = self.asm.new_dynamic_label();
        if step.ins.code() == Code::Rdtscp {
            // RDTSCP waits for earlier loads, RDTSC does not (Intel SDM vol. 2).
            dynasm!(self.asm ; .arch x64 ; lfence);
        }
        dynasm!(self.asm
            ; .arch x64
            ; rdtsc
            ; shl rdx, 32
            ; or rax, rdx
            ; mov rdx, rax
            ; sub rdx, [self.addresses.lease_since]
            ; shr rdx, Lease::SHIFT as i8
            ; jnz =>label
            ; sub rax, [self.addresses.lease_removed]
            ; add rax, [self.addresses.tsc_offset]
            ; mov rdx, rax
            ; shr rdx, 32
            ; mov eax, eax
        );
        if step.ins.code() == Code::Rdtscp {
            dynasm!(self.asm ; .arch x64 ; mov ecx, [self.addresses.tsc_aux]);
        }
        // Registers that are overwritten by then hold no operand of the flags any more.
        self.done = true;
        let number = self.helper_number(step);
        let here = at(self.asm.offset());
        let site = self.site(SiteKind::Begun(number), here);
        self.cold.push(Cold::Helper { label, site });
    }

    fn pushf(&mut self, step: &Step) {
        let Some(stack) = step.stack else { return };
        self.spill_all();
        self.held[0] = Held::Nothing;
        if matches!(self.held[1], Held::Guest { .. }) {
            self.held[1] = Held::Nothing;
        }
        self.prepare_flags_for_one();
        let memory = self.access(&stack, [true, false], step);
        self.held[0] = Held::Nothing;
        self.need_flags(ARITH, [true, false]);
        // RFLAGS from its parts: the results of LAHF and SETO, and the vCPU's system flags. RF and VM are clear. AX is
        // as it is saved, so that the flags can be had back.
        let saved = self.addresses.saved_flags();
        dynasm!(self.asm
            ; .arch x64
            ; mov [self.addresses.rax()], rax
            ; lahf
            ; seto al
            ; mov [saved], ax
            ; movzx r10d, al
            ; shl r10d, 11
            ; mov al, [saved + 1]
            ; and eax, 0xd5
            ; or r10d, eax
            ; or r10, [self.addresses.system_flags]
            ; or r10d, 2
            ; mov rax, [self.addresses.rax()]
        );
        self.flags = FlagState { host: 0, lazy: Some(Recipe::SAVED) };
        self.put(encode::store(memory, 10));
        self.move_rsp(-8);
    }

    /// MOV of a control register or a selector to a general register.
    fn read_special(&mut self, step: &Step) {
        let to = step.ins.op0_register().full_register().number() as u8;
        match step.ins.op1_register() {
            Register::CR2 => dynasm!(self.asm ; .arch x64 ; mov Rq(to), [self.addresses.cr2]),
            Register::CR3 => dynasm!(self.asm ; .arch x64 ; mov Rq(to), [self.addresses.cr3]),
            Register::CR0 => dynasm!(self.asm ; .arch x64 ; mov Rq(to), [self.addresses.cr0]),
            Register::CR4 => dynasm!(self.asm ; .arch x64 ; mov Rq(to), [self.addresses.cr4]),
            register => {
                let place = self.addresses.selector(segment_index(register).unwrap_or(seg::DS));
                dynasm!(self.asm ; .arch x64 ; movzx Rd(to), WORD [place]);
            }
        }
        self.wrote(step);
    }
}

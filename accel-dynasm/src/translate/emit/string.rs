//! MOVS, STOS and their repetition: the host executes them on the host's memory, if all of it lies in one page on each
//! side.
//!
//! That is known beforehand: a count no larger than a page is added to the offset that a hit of the soft TLB leaves.
//! All other cases (other directions, several pages, devices, code) are left to x86-core, which goes on page by page. A
//! count of zero is no special case: the host's instruction touches nothing.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use x86_core::alu::flag;

use super::Emitter;
use super::state::{Cold, Held, at};
use crate::translate::output::SiteKind;
use crate::translate::plan::step::Step;
use crate::translate::plan::string::Strings;

const PAGE: i32 = 4096;
const RSI: u8 = 6;
const RDI: u8 = 7;

impl Emitter<'_> {
    pub(super) fn string(&mut self, step: &Step) {
        let Some(strings) = Strings::of(&step.ins) else { return self.helper(step) };
        let number = self.helper_number(step);
        self.spill_all();
        self.held = [Held::Nothing; 2];
        let label = self.asm.new_dynamic_label();
        self.lose_flags(11);
        dynasm!(self.asm
            ; .arch x64
            ; test DWORD [self.addresses.system_flags], flag::DF as i32
            ; jnz =>label
        );
        if strings.repeated {
            dynasm!(self.asm ; .arch x64 ; cmp rcx, PAGE >> strings.shift ; ja =>label);
        }
        let here = at(self.asm.offset());
        let site = self.site(SiteKind::Helper(number), here);
        self.cold.push(Cold::Helper { label, site });
        let ends_in_page = |e: &mut Self, register: u8, write: bool| {
            dynasm!(e.asm ; .arch x64 ; mov r10, Rq(register));
            e.look_up(write);
            // If the tag does not fit, bit 13 of R10 is clear, so that this does not wrap.
            match strings.shift {
                _ if !strings.repeated => dynasm!(e.asm ; .arch x64 ; add r10, 1 << strings.shift),
                0 => dynasm!(e.asm ; .arch x64 ; add r10, rcx),
                1 => dynasm!(e.asm ; .arch x64 ; lea r10, [r10 + rcx * 2]),
                2 => dynasm!(e.asm ; .arch x64 ; lea r10, [r10 + rcx * 4]),
                _ => dynasm!(e.asm ; .arch x64 ; lea r10, [r10 + rcx * 8]),
            }
            dynasm!(e.asm ; .arch x64 ; cmp r10, PAGE ; ja =>label ; mov r11, [r11 + e.addend()]);
        };
        let temporary = self.addresses.temporary();
        if strings.source {
            ends_in_page(self, RSI, false);
            dynasm!(self.asm ; .arch x64 ; mov [temporary], r11);
        }
        ends_in_page(self, RDI, true);
        if strings.source {
            dynasm!(self.asm ; .arch x64 ; mov r10, [temporary] ; add rsi, r10);
        }
        dynasm!(self.asm ; .arch x64 ; add rdi, r11);
        let bytes = [0xf3, 0x66, 0x48, strings.opcode];
        let emitted = [strings.repeated, strings.shift == 1, strings.shift == 3, true];
        self.asm.extend(bytes.iter().zip(emitted).filter(|(_, emitted)| *emitted).map(|(byte, _)| byte));
        dynasm!(self.asm ; .arch x64 ; sub rdi, r11);
        if strings.source {
            dynasm!(self.asm ; .arch x64 ; sub rsi, r10);
        }
    }
}

//! MOVS, STOS and their repetition: the host executes them on the host's memory, if all of it lies in one page on each side.
//!
//! That is known beforehand: a count no larger than a page, added to the offset that a hit of the soft TLB leaves. All else
//! (other directions, several pages, devices, code) is x86-core's, which goes on page by page. No count is too small: with
//! none, the host's instruction touches nothing.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Code, Instruction, OpKind, Register};
use x86_core::alu::flag;

use super::emit::Emitter;
use super::plan::Step;
use super::scratch::Held;
use super::{Cold, SiteKind, at};

const PAGE: i32 = 4096;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// A string instruction that the host can execute.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strings {
    opcode: u8,
    /// log2 of an element's size.
    shift: u8,
    source: bool,
    repeated: bool,
}

impl Strings {
    pub(super) fn of(ins: &Instruction) -> Option<Self> {
        let (opcode, shift, source) = match ins.code() {
            Code::Movsb_m8_m8 => (0xa4, 0, true),
            Code::Movsw_m16_m16 => (0xa5, 1, true),
            Code::Movsd_m32_m32 => (0xa5, 2, true),
            Code::Movsq_m64_m64 => (0xa5, 3, true),
            Code::Stosb_m8_AL => (0xaa, 0, false),
            Code::Stosw_m16_AX => (0xab, 1, false),
            Code::Stosd_m32_EAX => (0xab, 2, false),
            Code::Stosq_m64_RAX => (0xab, 3, false),
            _ => return None,
        };
        let plain = (0..ins.op_count()).all(|n| match ins.op_kind(n) {
            OpKind::MemorySegRSI => !matches!(ins.memory_segment(), Register::FS | Register::GS),
            kind => matches!(kind, OpKind::MemoryESRDI | OpKind::Register),
        });
        (plain && !ins.has_repne_prefix()).then(|| Self {
            opcode,
            shift,
            source,
            repeated: ins.has_rep_prefix(),
        })
    }
}

impl Emitter<'_> {
    pub(super) fn string(&mut self, step: &Step) {
        let Some(strings) = Strings::of(&step.ins) else { return self.generic(step) };
        let number = self.generic_number(step);
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
        let site = self.site(SiteKind::Generic(number), here);
        self.cold.push(Cold::Generic { label, site });
        let ends_in_page = |e: &mut Self, register: u8, write: bool| {
            dynasm!(e.asm ; .arch x64 ; mov r10, Rq(register));
            e.look_up(write);
            // Of what is not the offset in a page bit 13 is clear, so that this does not wrap.
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

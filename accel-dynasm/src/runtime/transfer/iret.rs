//! IRET of 64-bit code to 64-bit code, of a program or of the kernel.
//!
//! The descriptors of CS and SS are read each time, as processors do, and must be those of flat segments; then the
//! contents of the segment registers are known. Other descriptors are left to x86-core; so are segments that a program
//! may not keep.

use std::mem::offset_of;

use accel_api::x86::{DescriptorTable, Segment};
use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use x86_core::alu::flag;
use x86_core::rights::{CODE64, DATA, DPL3};
use x86_core::{Cpu, TlbMode, seg};

use super::{Transfer, UNUSUAL};
use crate::jit_context::addresses::entry;

/// Offsets from RSP.
const RIP: i32 = 0;
const CS: i32 = 8;
const RFLAGS: i32 = 16;
const RSP: i32 = 24;
const SS: i32 = 32;
const FRAME: i32 = 40;

/// The descriptor of a segment that [`Segment::flat`] gives.
const fn flat_descriptor(rights: u16) -> i64 {
    0xf_0000_0000_ffff | (rights as i64) << 40
}

impl Transfer<'_> {
    /// From code of the kernel that accesses data by `mode`.
    pub(super) fn iret(&mut self, mode: TlbMode) {
        let nt = flag::NT as i32;
        dynasm!(self.asm
            ; .arch x64
            ; cmp BYTE [self.cpu(offset_of!(Cpu, nmi_masked))], 0
            ; jne =>self.slow
            ; test DWORD [self.addresses.system_flags], nt
            ; jnz =>self.slow
        );
        if mode == TlbMode::Supervisor {
            // AC opens a program's data to the code here, and not to look-ups of descriptors.
            self.must_not_have_smap();
        }
        self.must_not_be_asked();
        dynasm!(self.asm ; .arch x64 ; mov r10, rsp ; mov r11, r10);
        self.entry_in_r11();
        dynasm!(self.asm
            ; .arch x64
            ; xor r10, [r11 + self.tag(mode)]
            ; cmp r10, 4096 - FRAME
            ; ja =>self.slow
            ; mov r10, [r11 + self.addend(mode)]
            ; test DWORD [rsp + r10 + RFLAGS], UNUSUAL | nt
            ; jnz =>self.slow
            // Canonical.
            ; mov rax, [rsp + r10 + RIP]
            ; mov r11, rax
            ; shl rax, 16
            ; sar rax, 16
            ; cmp rax, r11
            ; jne =>self.slow
            ; test BYTE [rsp + r10 + CS], 3
            ; jz >kernel
        );
        self.check_dropped();
        self.check_descriptor(mode, CS, CODE64 | DPL3);
        self.check_descriptor(mode, SS, DATA | DPL3);
        self.load_flags();
        self.load_segment(seg::CS, CS, CODE64 | DPL3);
        self.load_segment(seg::SS, SS, DATA | DPL3);
        self.leave_frame();
        self.enter_program();

        dynasm!(self.asm ; .arch x64 ; kernel:);
        self.check_descriptor(mode, CS, CODE64);
        dynasm!(self.asm ; .arch x64 ; cmp WORD [rsp + r10 + SS], 0 ; je >without_stack);
        self.check_descriptor(mode, SS, DATA);
        self.load_flags();
        self.load_segment(seg::CS, CS, CODE64);
        self.load_segment(seg::SS, SS, DATA);
        self.leave_frame();
        self.enter_kernel(mode);

        // The null selector, with which interrupts come from programs.
        dynasm!(self.asm ; .arch x64 ; without_stack:);
        self.load_flags();
        self.load_segment(seg::CS, CS, CODE64);
        let field = |offset: usize| self.addresses.segment(seg::SS) + offset as i32;
        dynasm!(self.asm
            ; .arch x64
            ; mov WORD [field(offset_of!(Segment, selector))], 0
            ; mov QWORD [field(offset_of!(Segment, base))], 0
            ; mov DWORD [field(offset_of!(Segment, limit))], 0
            ; mov WORD [field(offset_of!(Segment, attributes))], 0
            ; mov BYTE [field(offset_of!(Segment, unusable))], 1
        );
        self.leave_frame();
        self.enter_kernel(mode);
    }

    fn tag(&self, mode: TlbMode) -> i32 {
        self.addresses.tlb(mode as usize) + entry::READ
    }

    fn addend(&self, mode: TlbMode) -> i32 {
        self.addresses.tlb(mode as usize) + entry::ADDEND
    }

    /// Of the address in R11.
    fn entry_in_r11(&mut self) {
        dynasm!(self.asm ; .arch x64 ; shr r11, entry::ROTATION ; and r11d, entry::INDEX_MASK);
    }

    /// A program loses data segments of the kernel's, and the RPL of null selectors: there must be none.
    fn check_dropped(&mut self) {
        let unusable = |index| self.addresses.segment(index) + offset_of!(Segment, unusable) as i32;
        let selector = |index| self.addresses.segment(index) + offset_of!(Segment, selector) as i32;
        dynasm!(self.asm
            ; .arch x64
            ; mov al, [unusable(seg::ES)]
            ; and al, [unusable(seg::DS)]
            ; and al, [unusable(seg::FS)]
            ; and al, [unusable(seg::GS)]
            ; jz =>self.slow
            ; movzx eax, WORD [selector(seg::ES)]
            ; or ax, [selector(seg::DS)]
            ; or ax, [selector(seg::FS)]
            ; or ax, [selector(seg::GS)]
            ; jnz =>self.slow
        );
    }

    /// The selector at `at` must stand for a flat segment of `rights`, at their level.
    fn check_descriptor(&mut self, mode: TlbMode, at: i32, rights: u16) {
        let level = i32::from(rights >> 5 & 3);
        let gdtr = self.cpu(offset_of!(Cpu, gdtr));
        dynasm!(self.asm
            ; .arch x64
            ; movzx eax, WORD [rsp + r10 + at]
            // Of the GDT, and not null.
            ; mov r11d, eax
            ; and r11d, 7
            ; cmp r11d, level
            ; jne =>self.slow
            ; and eax, !7
            ; jz =>self.slow
            ; movzx r11d, WORD [gdtr + offset_of!(DescriptorTable, limit) as i32]
            ; sub r11d, 7
            ; cmp eax, r11d
            ; jg =>self.slow
            ; add rax, [gdtr + offset_of!(DescriptorTable, base) as i32]
            ; mov r11, rax
        );
        self.entry_in_r11();
        dynasm!(self.asm
            ; .arch x64
            ; xor rax, [r11 + self.tag(mode)]
            ; cmp rax, 4096 - 8
            ; ja =>self.slow
            ; xor rax, [r11 + self.tag(mode)]
            ; add rax, [r11 + self.addend(mode)]
            ; mov r11, QWORD flat_descriptor(rights)
            ; cmp [rax], r11
            ; jne =>self.slow
        );
    }

    fn load_flags(&mut self) {
        const KEPT: u64 = flag::SYSTEM & !(UNUSUAL as u64 | flag::NT);
        dynasm!(self.asm
            ; .arch x64
            ; mov eax, [rsp + r10 + RFLAGS]
            ; mov r11d, eax
            ; and r11d, KEPT as i32
            ; mov [self.addresses.system_flags], r11
        );
        self.keep_flags();
    }

    fn load_segment(&mut self, index: usize, at: i32, rights: u16) {
        dynasm!(self.asm ; .arch x64 ; movzx r11d, WORD [rsp + r10 + at]);
        self.flat_segment(index, rights);
    }

    /// R10 = the address to go on at. IRET serialises, as [`x86_core::Cpu`] has it done for others.
    fn leave_frame(&mut self) {
        dynasm!(self.asm
            ; .arch x64
            ; lea rax, [rsp + r10]
            ; mov r10, [rax + RIP]
            ; mov rsp, [rax + RSP]
            ; lock or DWORD [self.addresses.temporary()], BYTE 0
            ; lfence
        );
    }
}

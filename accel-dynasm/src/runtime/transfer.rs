//! Changes of privilege without Rust: shared code that SYSCALL, SYSRET and IRET of 64-bit code jump to, with their site
//! in R11.
//!
//! 1. Unusual cases are handed to x86-core's function: nothing of the guest's state changes before the last check.
//! 2. The code changes the fields of [`x86_core::Cpu`] that the function changes, and what follows from them. It goes
//!    on through the jump cache of the code that comes next.
//! 3. Vector registers are stored on the way into the kernel, and loaded on the way to a program that uses them.
//! 4. The dispatcher sees in [`JitContext::was_user`](crate::jit_context::JitContext::was_user) that the privilege has
//!    changed since it last looked.
//! 5. Requests are looked at on the way out of the kernel, not on the way in: a program that does nothing but system
//!    calls must see them, too.

mod iret;

use std::mem::offset_of;

use accel_api::x86::Segment;
use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use x86_core::alu::flag;
use x86_core::bits::{CR4_SMAP, EFER_SCE};
use x86_core::rights::{CODE64, DATA, DPL3};
use x86_core::{Cpu, DataTable, TlbMode, seg};

use super::asm::{Assembler, Way, jump, vectors};
use crate::block_mode::BlockMode;
use crate::jit_context::addresses::Addresses;
use crate::translate::output::{INDIRECT, StubTable};

/// Flags that the single step, alignment checks and SMAP, or virtual interrupts hang on.
const UNUSUAL: i32 = (flag::TF | flag::AC | flag::VIF | flag::VIP | flag::RF | flag::VM) as i32;

/// Emits the code and enters it into `stubs`, which has the exits already.
pub(super) fn emit(
    asm: &mut Assembler,
    start: usize,
    addresses: &Addresses,
    avx: bool,
    stubs: &mut StubTable,
) {
    let mut emitter =
        Transfer { slow: asm.new_dynamic_label(), unknown: asm.new_dynamic_label(), asm, addresses, avx };
    stubs.syscall = emitter.entries(start);
    emitter.syscall();
    stubs.sysret = emitter.entries(start);
    emitter.sysret();
    stubs.iret = emitter.entries(start);
    emitter.iret(TlbMode::Supervisor);
    stubs.iret_smap = emitter.entries(start);
    emitter.iret(TlbMode::SupervisorOnly);
    emitter.ways_out(start, stubs);
}

struct Transfer<'a> {
    asm: &'a mut Assembler,
    addresses: &'a Addresses,
    avx: bool,
    /// Hands the instruction over, with nothing done.
    slow: DynamicLabel,
    /// The instruction is done, and the jump cache does not have the address in R10.
    unknown: DynamicLabel,
}

impl Transfer<'_> {
    fn cpu(&self, offset: usize) -> i32 {
        self.addresses.cpu + offset as i32
    }

    /// Begins the code: with vector registers in the host's, which it stores, and without. RAX is free afterwards, the
    /// arithmetic flags are in memory.
    fn entries(&mut self, start: usize) -> [usize; 2] {
        dynasm!(self.asm ; .arch x64 ; .align 16);
        let with_vectors = start + self.asm.offset().0;
        vectors(self.asm, self.avx, Way::Store, |r| self.addresses.vector(r));
        let without = start + self.asm.offset().0;
        dynasm!(self.asm
            ; .arch x64
            ; mov [self.addresses.rax()], rax
            ; lahf
            ; seto al
            ; mov [self.addresses.temporary()], ax
            ; mov [self.addresses.site()], r11
        );
        [without, with_vectors]
    }

    fn must_be_enabled(&mut self) {
        dynasm!(self.asm
            ; .arch x64
            ; test BYTE [self.cpu(offset_of!(Cpu, efer))], EFER_SCE as i8
            ; jz =>self.slow
        );
    }

    fn must_not_have_smap(&mut self) {
        dynasm!(self.asm ; .arch x64 ; test DWORD [self.addresses.cr4], CR4_SMAP as i32 ; jnz =>self.slow);
    }

    /// From a program; R10 is the address after the instruction.
    fn syscall(&mut self) {
        let temporary = self.addresses.temporary();
        self.must_be_enabled();
        dynasm!(self.asm
            ; .arch x64
            ; test DWORD [self.addresses.system_flags], UNUSUAL
            ; jnz =>self.slow
            ; mov rcx, r10
            // R11 = RFLAGS.
            ; movzx r11d, BYTE [temporary]
            ; shl r11d, 11
            ; movzx eax, BYTE [temporary + 1]
            ; and eax, 0xd5
            ; lea r11d, [r11 + rax + 2]
            ; or r11, [self.addresses.system_flags]
            ; mov [self.addresses.gpr(11)], r11
            ; mov eax, [self.cpu(offset_of!(Cpu, msrs.fmask))]
            ; not eax
            ; and eax, r11d
            ; mov r11d, eax
            ; and r11d, flag::SYSTEM as i32
            ; mov [self.addresses.system_flags], r11
        );
        self.keep_flags();
        dynasm!(self.asm ; .arch x64 ; movzx r11d, WORD [self.cpu(offset_of!(Cpu, msrs.star)) + 4] ; and r11d, !3);
        self.flat_segment(seg::CS, CODE64);
        dynasm!(self.asm ; .arch x64 ; add r11d, 8);
        self.flat_segment(seg::SS, DATA);
        dynasm!(self.asm
            ; .arch x64
            ; mov r10, [self.cpu(offset_of!(Cpu, msrs.lstar))]
            ; test DWORD [self.addresses.cr4], CR4_SMAP as i32
            ; jnz >no_user_data
        );
        self.enter_kernel(TlbMode::Supervisor);
        // AC is clear.
        dynasm!(self.asm ; .arch x64 ; no_user_data:);
        self.enter_kernel(TlbMode::SupervisorOnly);
    }

    /// From the kernel.
    fn sysret(&mut self) {
        const KEPT: u64 = flag::SYSRET & flag::SYSTEM;
        self.must_be_enabled();
        self.must_not_be_asked();
        dynasm!(self.asm
            ; .arch x64
            ; mov r10, [self.addresses.gpr(11)]
            ; test r10d, UNUSUAL & flag::SYSRET as i32
            ; jnz =>self.slow
            // Canonical.
            ; mov rax, rcx
            ; shl rax, 16
            ; sar rax, 16
            ; cmp rax, rcx
            ; jne =>self.slow
            ; mov eax, r10d
            ; and eax, KEPT as i32
            ; mov [self.addresses.system_flags], rax
            ; mov eax, r10d
        );
        self.keep_flags();
        dynasm!(self.asm
            ; .arch x64
            ; movzx r11d, WORD [self.cpu(offset_of!(Cpu, msrs.star)) + 6]
            ; add r11d, 16
            ; or r11d, 3
        );
        self.flat_segment(seg::CS, CODE64 | DPL3);
        dynasm!(self.asm ; .arch x64 ; sub r11d, 8);
        self.flat_segment(seg::SS, DATA | DPL3);
        dynasm!(self.asm ; .arch x64 ; mov r10, rcx);
        self.enter_program();
    }

    /// Hands the instruction over if an interrupt waits, which the new flags may allow, or if something is requested:
    /// code that loops over this instruction has to see requests.
    fn must_not_be_asked(&mut self) {
        dynasm!(self.asm
            ; .arch x64
            ; cmp DWORD [self.addresses.waiting()], 0
            ; jne =>self.slow
            ; mov rax, QWORD self.addresses.requests
            ; cmp DWORD [rax], 0
            ; jne =>self.slow
        );
    }

    /// The arithmetic flags of RFLAGS in EAX are those of the guest from here on; R11 is used.
    fn keep_flags(&mut self) {
        dynasm!(self.asm
            ; .arch x64
            ; mov r11d, eax
            ; shr r11d, 11
            ; and r11d, 1
            ; and eax, 0xd5
            ; shl eax, 8
            ; or eax, r11d
            ; mov [self.addresses.temporary()], ax
        );
    }

    /// As [`Segment::flat`] of the selector in R11 and `rights`.
    fn flat_segment(&mut self, index: usize, rights: u16) {
        let field = |offset: usize| self.addresses.segment(index) + offset as i32;
        dynasm!(self.asm
            ; .arch x64
            ; mov [field(offset_of!(Segment, selector))], r11w
            ; mov QWORD [field(offset_of!(Segment, base))], 0
            ; mov DWORD [field(offset_of!(Segment, limit))], -1
            ; mov WORD [field(offset_of!(Segment, attributes))], rights as i16
            ; mov BYTE [field(offset_of!(Segment, unusable))], 0
        );
    }

    /// Goes on at R10, at CPL 0. If vector registers were the kernel's on the way here, they need not be in what comes
    /// next.
    fn enter_kernel(&mut self, mode: TlbMode) {
        dynasm!(self.asm
            ; .arch x64
            ; mov BYTE [self.cpu(offset_of!(Cpu, cpl))], 0
            ; mov QWORD [self.addresses.was_user()], 1
        );
        self.go_on(mode, false);
    }

    /// Goes on at R10, at CPL 3.
    fn enter_program(&mut self) {
        dynasm!(self.asm
            ; .arch x64
            ; mov BYTE [self.cpu(offset_of!(Cpu, cpl))], 3
            ; mov QWORD [self.addresses.was_user()], 0
            ; cmp DWORD [self.addresses.user_vectors()], 0
            ; jne >loaded
        );
        self.go_on(TlbMode::User, false);
        dynasm!(self.asm ; .arch x64 ; loaded:);
        self.go_on(TlbMode::User, true);
    }

    /// Goes on at R10, where data is accessed by `mode`.
    fn go_on(&mut self, mode: TlbMode, with_vectors: bool) {
        let class = BlockMode::class_of(mode as usize, with_vectors);
        dynasm!(self.asm
            ; .arch x64
            ; mov QWORD [self.cpu(offset_of!(Cpu, data_table))], DataTable::of(mode).offset() as i32
            ; movzx r11d, r10w
            ; mov rax, [r11 * 8 + self.addresses.negated(class)]
            ; add rax, r10
            ; jnz =>self.unknown
        );
        if with_vectors {
            vectors(self.asm, self.avx, Way::Load, |r| self.addresses.vector(r));
        }
        self.restore();
        dynasm!(self.asm ; .arch x64 ; jmp QWORD [r11 * 8 + self.addresses.code(class)]);
    }

    /// RAX and the arithmetic flags.
    fn restore(&mut self) {
        dynasm!(self.asm
            ; .arch x64
            ; movzx eax, WORD [self.addresses.temporary()]
            ; add al, 0x7f
            ; sahf
            ; mov rax, [self.addresses.rax()]
        );
    }

    /// Vector registers are in memory by now.
    fn ways_out(&mut self, start: usize, stubs: &StubTable) {
        dynasm!(self.asm ; .arch x64 ; =>self.slow ; mov r11, [self.addresses.site()]);
        self.restore();
        jump(self.asm, start, stubs.helper[0]);
        dynasm!(self.asm
            ; .arch x64
            ; =>self.unknown
            ; mov [self.addresses.rip], r10
            ; mov r11, [self.addresses.site()]
            ; or r11d, INDIRECT as i32
        );
        self.restore();
        jump(self.asm, start, stubs.lookup[0]);
    }
}

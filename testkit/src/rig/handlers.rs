//! The guest's interrupt handlers.

use iced_x86::code_asm::*;

use super::{cell, map};
use crate::fake_bus::FAULT_PORT;
use crate::snippet::Asm;

/// Stubs and handler at [`map::HANDLERS`].
pub(super) fn handlers(a: &mut CodeAssembler) -> Asm {
    // The stubs end at 4 KiB, where the handler starts.
    for vector in 0..256u32 {
        let with_error = matches!(vector, 8 | 10..=14 | 17 | 21);
        // Each stub is 16 bytes: PUSH imm32 twice and JMP rel32 are 15.
        if with_error {
            a.db(&[0x0f, 0x1f, 0x44, 0x00, 0x00])?;
        } else {
            a.db(&[0x68, 0, 0, 0, 0])?;
        }
        a.db(&[0x68, vector as u8, 0, 0, 0])?;
        let distance = (0x1000 - (16 * vector + 15)).to_le_bytes();
        a.db(&[0xe9, distance[0], distance[1], distance[2], distance[3], 0xcc])?;
    }
    for register in [rax, rbx, rcx, rdx] {
        a.push(register)?;
    }
    a.mov(ebx, 1)?;
    a.lock().xadd(qword_ptr(cell::COUNT), rbx)?;
    a.and(ebx, 1023)?;
    a.shl(ebx, 6)?;
    a.add(rbx, map::TRAPS as i32)?;
    // Vector, error code, RIP, CS, RFLAGS, RSP as pushed.
    for n in 0..6 {
        a.mov(rax, qword_ptr(rsp + 32 + 8 * n))?;
        a.mov(qword_ptr(rbx + 8 * n), rax)?;
    }
    a.mov(rax, cr2)?;
    a.mov(qword_ptr(rbx + 48), rax)?;
    a.mov(rax, qword_ptr(cell::EXPECTED_RIP))?;
    a.mov(qword_ptr(rbx + 56), rax)?;

    let (mut interrupt, mut x2apic, mut done) = (a.create_label(), a.create_label(), a.create_label());
    let mut unexpected = a.create_label();
    a.mov(rax, qword_ptr(rsp + 32))?;
    a.cmp(eax, 32)?;
    a.jae(interrupt)?;
    // #DB, NMI, #BP and #OF come from behind an instruction.
    a.mov(ecx, 0b11110)?;
    a.bt(ecx, eax)?;
    a.jc(done)?;
    a.xor(eax, eax)?;
    a.xchg(qword_ptr(cell::RESUME), rax)?;
    a.test(rax, rax)?;
    a.jz(unexpected)?;
    a.mov(qword_ptr(rsp + 48), rax)?;
    a.jmp(done)?;
    a.set_label(&mut unexpected)?;
    a.out(u32::from(FAULT_PORT), al)?;
    a.hlt()?;

    a.set_label(&mut interrupt)?;
    a.mov(eax, dword_ptr(cell::EOI_MODE))?;
    a.cmp(eax, 1)?;
    a.jb(done)?;
    a.ja(x2apic)?;
    a.mov(ecx, (map::APIC + 0xb0) as u32)?;
    a.mov(dword_ptr(rcx), 0)?;
    a.jmp(done)?;
    a.set_label(&mut x2apic)?;
    a.mov(ecx, 0x80b)?;
    a.xor(eax, eax)?;
    a.xor(edx, edx)?;
    a.wrmsr()?;

    a.set_label(&mut done)?;
    for register in [rdx, rcx, rbx, rax] {
        a.pop(register)?;
    }
    a.add(rsp, 16)?;
    a.iretq()
}

//! `indirect`: calls through a table. `smc`: code that rewrites code.

use super::{LCG_ADD, LCG_MUL, Program, no_setup};
use crate::bare::{Runtime, layout::WORK};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

pub(super) const INDIRECT: Program =
    Program { name: "indirect", iterations: 10_000_000, user_pages: false, setup: no_setup, body: indirect };

pub(super) const SMC: Program =
    Program { name: "smc", iterations: 200_000, user_pages: false, setup: write_routine, body: smc };

/// Eight small functions; the top three bits of a generator choose.
fn indirect(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let mut functions: [CodeLabel; 8] = std::array::from_fn(|_| a.create_label());
    let (mut top, mut done) = (a.create_label(), a.create_label());
    for (n, function) in functions.iter().enumerate() {
        a.lea(rax, ptr(*function))?;
        a.mov(qword_ptr(WORK + 8 * n as u64), rax)?;
    }
    a.mov(rbp, LCG_MUL)?;
    a.mov(r14, LCG_ADD)?;
    a.mov(r15, WORK)?;
    a.mov(eax, 1)?;
    a.xor(ebx, ebx)?;
    a.set_label(&mut top)?;
    a.imul_2(rax, rbp)?;
    a.add(rax, r14)?;
    a.mov(rdx, rax)?;
    a.shr(rdx, 61)?;
    a.call(qword_ptr(r15 + rdx * 8))?;
    a.dec(rcx)?;
    a.jnz(top)?;
    a.jmp(done)?;
    for (n, function) in functions.iter_mut().enumerate() {
        a.set_label(function)?;
        match n {
            0 => a.add(rbx, rax)?,
            1 => a.xor(rbx, rax)?,
            2 => a.rol(rbx, 5)?,
            3 => a.sub(rbx, rax)?,
            4 => a.not(rbx)?,
            5 => a.lea(rbx, ptr(rbx + rbx * 2))?,
            6 => a.bswap(rbx)?,
            _ => a.inc(rbx)?,
        }
        a.ret()?;
    }
    a.set_label(&mut done)
}

/// `mov eax, imm32; ret` in the work area.
fn write_routine(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    a.mov(byte_ptr(WORK), 0xb8u32)?;
    a.mov(byte_ptr(WORK + 5), 0xc3u32)
}

/// Writes the immediate, then executes the instruction: it must see the new one at once on the
/// same processor (Intel SDM vol. 3, 10.1.3: a jump or call between the write and the execution).
fn smc(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(rsi, WORK)?;
    a.xor(ebx, ebx)?;
    a.set_label(&mut top)?;
    a.imul_3(eax, ecx, 0x0100_0193)?;
    a.mov(dword_ptr(rsi + 1), eax)?;
    a.call(rsi)?;
    a.rol(rbx, 5)?;
    a.xor(rbx, rax)?;
    a.dec(rcx)?;
    a.jnz(top)
}

//! `int`: arithmetic, shifts and branches that depend on data. `calls`: recursion.

use super::{LCG_ADD, LCG_MUL, Program, no_setup};
use crate::bare::Runtime;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

pub(super) const INT: Program =
    Program { name: "int", iterations: 8_000_000, user_pages: false, setup: no_setup, body: int };

pub(super) const CALLS: Program =
    Program { name: "calls", iterations: 500, user_pages: false, setup: no_setup, body: calls };

/// rax: generator, rbx: checksum, rsi: how often the last branch fell through.
fn int(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let [mut top, mut odd, mut join, mut skip] = std::array::from_fn(|_| a.create_label());
    a.mov(rbp, LCG_MUL)?;
    a.mov(r14, LCG_ADD)?;
    a.mov(eax, 1)?;
    a.xor(ebx, ebx)?;
    a.xor(esi, esi)?;
    a.set_label(&mut top)?;
    a.imul_2(rax, rbp)?;
    a.add(rax, r14)?;
    a.mov(rdx, rax)?;
    a.shr(rdx, 33)?;
    a.test(dl, 1)?;
    a.jnz(odd)?;
    a.rol(rbx, 7)?;
    a.xor(rbx, rdx)?;
    a.jmp(join)?;
    a.set_label(&mut odd)?;
    a.add(rbx, rdx)?;
    a.set_label(&mut join)?;
    a.test(dl, 6)?;
    a.jnz(skip)?;
    a.sub(rbx, rsi)?;
    a.inc(rsi)?;
    a.set_label(&mut skip)?;
    a.dec(rcx)?;
    a.jnz(top)
}

/// Naive Fibonacci numbers of 18 to 21, folded into rbx.
fn calls(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let [mut top, mut fib, mut recurse, mut done] = std::array::from_fn(|_| a.create_label());
    a.mov(r12, rcx)?;
    a.xor(ebx, ebx)?;
    a.set_label(&mut top)?;
    a.mov(edi, r12d)?;
    a.and(edi, 3)?;
    a.add(edi, 18)?;
    a.call(fib)?;
    a.imul_3(rbx, rbx, 31)?;
    a.add(rbx, rax)?;
    a.dec(r12)?;
    a.jnz(top)?;
    a.jmp(done)?;

    a.set_label(&mut fib)?;
    a.cmp(edi, 2)?;
    a.jae(recurse)?;
    a.mov(eax, edi)?;
    a.ret()?;
    a.set_label(&mut recurse)?;
    a.push(rdi)?;
    a.dec(edi)?;
    a.call(fib)?;
    a.pop(rdi)?;
    a.push(rax)?;
    a.sub(edi, 2)?;
    a.call(fib)?;
    a.pop(rdx)?;
    a.add(rax, rdx)?;
    a.ret()?;
    a.set_label(&mut done)
}

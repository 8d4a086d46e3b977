//! `sse`: a product of two 32 x 32 matrices in packed doubles.

use super::Program;
use crate::bare::{Runtime, layout::WORK};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

pub(super) const SSE: Program =
    Program { name: "sse", iterations: 600, user_pages: false, setup: fill_matrices, body: sse };

const A: u64 = WORK;
const B: u64 = WORK + 0x2000;
const C: u64 = WORK + 0x4000;

/// a[i][j] = (3i + 7j) mod 11, b[i][j] = (5i + j) mod 13: small integers, so every sum is exact.
fn fill_matrices(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    for (base, row, column, modulus) in [(A, 3, 7, 11), (B, 5, 1, 13)] {
        let mut top = a.create_label();
        a.mov(rdi, base)?;
        a.xor(ecx, ecx)?;
        a.set_label(&mut top)?;
        a.mov(eax, ecx)?;
        a.shr(eax, 5)?;
        a.imul_3(eax, eax, row)?;
        a.mov(edx, ecx)?;
        a.and(edx, 31)?;
        a.imul_3(edx, edx, column)?;
        a.add(eax, edx)?;
        a.xor(edx, edx)?;
        a.mov(esi, modulus)?;
        a.div(esi)?;
        a.cvtsi2sd(xmm0, edx)?;
        a.movsd_2(qword_ptr(rdi), xmm0)?;
        a.add(rdi, 8)?;
        a.inc(ecx)?;
        a.cmp(ecx, 1024)?;
        a.jne(top)?;
    }
    Ok(())
}

/// r8: a[i], r9: column pair of b, r10: where c goes. a[0][0] grows by one before each product.
fn sse(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let [mut product, mut rows, mut columns, mut inner] = std::array::from_fn(|_| a.create_label());
    a.mov(r12, rcx)?;
    a.xor(ebx, ebx)?;
    a.mov(eax, 1)?;
    a.cvtsi2sd(xmm7, eax)?;

    a.set_label(&mut product)?;
    a.movsd_2(xmm0, qword_ptr(A))?;
    a.addsd(xmm0, xmm7)?;
    a.movsd_2(qword_ptr(A), xmm0)?;
    a.mov(r8, A)?;
    a.mov(r10, C)?;
    a.set_label(&mut rows)?;
    a.mov(r9, B)?;
    a.set_label(&mut columns)?;
    a.mov(rsi, r8)?;
    a.mov(rdi, r9)?;
    a.pxor(xmm0, xmm0)?;
    a.mov(ecx, 32)?;
    a.set_label(&mut inner)?;
    a.movsd_2(xmm1, qword_ptr(rsi))?;
    a.unpcklpd(xmm1, xmm1)?;
    a.mulpd(xmm1, xmmword_ptr(rdi))?;
    a.addpd(xmm0, xmm1)?;
    a.add(rsi, 8)?;
    a.add(rdi, 256)?;
    a.dec(ecx)?;
    a.jnz(inner)?;
    a.movapd(xmmword_ptr(r10), xmm0)?;
    a.add(r10, 16)?;
    a.add(r9, 16)?;
    a.cmp(r9, B as i32 + 256)?;
    a.jne(columns)?;
    a.add(r8, 256)?;
    a.cmp(r8, A as i32 + 0x2000)?;
    a.jne(rows)?;

    a.mov(eax, r12d)?;
    a.and(eax, 1023)?;
    a.cvttsd2si(rax, qword_ptr(rax * 8 + C as i32))?;
    a.imul_3(rbx, rbx, 31)?;
    a.add(rbx, rax)?;
    a.dec(r12)?;
    a.jnz(product)
}

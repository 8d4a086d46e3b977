//! `avx2`: integers in vectors of eight, where the processor has them.

use super::{Program, fill_words};
use crate::bare::{Runtime, layout::WORK};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

pub(super) const AVX2: Program =
    Program { name: "avx2", iterations: 60_000, user_pages: false, setup: enable, body: avx2 };

/// 1024 numbers of 32 bits.
const NUMBERS: u64 = WORK;
const BYTES: i32 = 4096;
/// Which element each one of the permutation's result is.
const ORDER: u64 = WORK + 0x1000;
/// By how much each element is shifted.
const SHIFTS: u64 = WORK + 0x1020;

const CPUID_XSAVE_AVX: u32 = 1 << 26 | 1 << 28;
const CPUID_AVX2: u32 = 5;
const CR4_OSXSAVE: u32 = 1 << 18;
/// XCR0: x87, SSE and AVX state.
const XCR0: u32 = 7;

/// Turns AVX on (Intel SDM vol. 1, 14.3), or says that there is none and ends.
fn enable(a: &mut CodeAssembler, rt: &mut Runtime) -> Result<(), IcedError> {
    let (mut absent, mut present) = (a.create_label(), a.create_label());
    a.xor(eax, eax)?;
    a.cpuid()?;
    a.cmp(eax, 7)?;
    a.jb(absent)?;
    a.mov(eax, 1)?;
    a.xor(ecx, ecx)?;
    a.cpuid()?;
    a.and(ecx, CPUID_XSAVE_AVX as i32)?;
    a.cmp(ecx, CPUID_XSAVE_AVX as i32)?;
    a.jne(absent)?;
    a.mov(eax, 7)?;
    a.xor(ecx, ecx)?;
    a.cpuid()?;
    a.bt(ebx, CPUID_AVX2)?;
    a.jc(present)?;
    a.set_label(&mut absent)?;
    rt.print(a, "RESULT avx2 unavailable: the processor has no AVX2\n")?;
    a.jmp(rt.poweroff)?;

    a.set_label(&mut present)?;
    a.mov(rax, cr4)?;
    a.or(eax, CR4_OSXSAVE as i32)?;
    a.mov(cr4, rax)?;
    a.xor(ecx, ecx)?;
    a.mov(eax, XCR0)?;
    a.xor(edx, edx)?;
    a.xsetbv()?;

    fill_words(a, NUMBERS, BYTES as u32 / 8)?;
    for n in 0..8u64 {
        a.mov(dword_ptr(ORDER + 4 * n), ((n + 7) % 8) as u32)?;
        a.mov(dword_ptr(SHIFTS + 4 * n), n as u32 + 9)?;
    }
    Ok(())
}

/// Multiplies, adds, shifts each element by its own count, and turns each vector by one element.
fn avx2(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let (mut pass, mut vector) = (a.create_label(), a.create_label());
    a.mov(eax, 0x0100_0193)?;
    a.vmovd(xmm4, eax)?;
    a.vpbroadcastd(ymm4, xmm4)?;
    a.vmovdqu(ymm5, ymmword_ptr(ORDER))?;
    a.vmovdqu(ymm6, ymmword_ptr(SHIFTS))?;
    a.xor(ebx, ebx)?;
    a.set_label(&mut pass)?;
    a.vmovd(xmm3, ecx)?;
    a.vpbroadcastd(ymm3, xmm3)?;
    a.mov(esi, NUMBERS as u32)?;
    a.set_label(&mut vector)?;
    a.vpmulld(ymm0, ymm4, ymmword_ptr(rsi))?;
    a.vpaddd(ymm0, ymm0, ymm3)?;
    a.vpsrlvd(ymm1, ymm0, ymm6)?;
    a.vpxor(ymm0, ymm0, ymm1)?;
    a.vpermd(ymm0, ymm5, ymm0)?;
    a.vmovdqu(ymmword_ptr(rsi), ymm0)?;
    a.add(rsi, 32)?;
    a.cmp(rsi, NUMBERS as i32 + BYTES)?;
    a.jne(vector)?;
    a.mov(eax, ecx)?;
    a.and(eax, 511)?;
    a.rol(rbx, 5)?;
    a.xor(rbx, qword_ptr(rax * 8 + NUMBERS as i32))?;
    a.dec(rcx)?;
    a.jnz(pass)?;
    a.vzeroupper()
}

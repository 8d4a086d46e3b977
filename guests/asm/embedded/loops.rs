//! The measured loops and their table.
//!
//! A loop counts RCX down to zero and may use every register but rsp, r12 to r15. It is run with
//! twice the iterations again and again until it lasts long enough: the last run is the one reported.

use crate::bare::layout::WORK;
use crate::bare::{Runtime, ports};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

type Emit = fn(&mut CodeAssembler, &mut Runtime) -> Result<(), IcedError>;

/// Name, instructions an iteration (loop control included), code.
const LOOPS: [(&str, u32, Emit); 6] = [
    ("ALU", 8, alu),
    ("call and return", 6, call),
    ("memory walk", 6, walk),
    ("SSE2 arithmetic", 7, sse2),
    ("port write", 3, port),
    ("CPUID", 5, cpuid),
];

/// Names of the measured loops, in the order of the report.
pub const NAMES: [&str; LOOPS.len()] = {
    let mut names = [""; LOOPS.len()];
    let mut n = 0;
    while n < LOOPS.len() {
        names[n] = LOOPS[n].0;
        n += 1;
    }
    names
};

const FIRST_COUNT: u32 = 1024;
/// Doubling ends here even where the TSC stands still.
const LAST_COUNT: u32 = 1 << 26;
const NAME_WIDTH: usize = 18;

pub(super) fn emit(a: &mut CodeAssembler, rt: &mut Runtime) -> Result<(), IcedError> {
    rt.print(a, "\n  loop              instructions   cycles/iteration   ns/iteration      MIPS\n")?;
    for (name, instructions, body) in LOOPS {
        let (mut again, mut done) = (a.create_label(), a.create_label());
        rt.print(a, &format!("  {name:NAME_WIDTH$}"))?;
        a.mov(r12d, FIRST_COUNT)?;
        a.set_label(&mut again)?;
        a.call(rt.tsc)?;
        a.mov(r13, rax)?;
        a.mov(rcx, r12)?;
        body(a, rt)?;
        a.call(rt.tsc)?;
        a.sub(rax, r13)?;
        a.mov(r13, rax)?;
        a.cmp(r13, r14)?;
        a.jae(done)?;
        a.cmp(r12d, LAST_COUNT)?;
        a.jae(done)?;
        a.add(r12d, r12d)?;
        a.jmp(again)?;
        a.set_label(&mut done)?;
        a.mov(ebx, instructions)?;
        row(a, rt)?;
    }
    Ok(())
}

/// The numbers of one loop: rbx instructions, r12 iterations, r13 cycles, r15 kHz or 0.
fn row(a: &mut CodeAssembler, rt: &mut Runtime) -> Result<(), IcedError> {
    let [mut no_time, mut done] = std::array::from_fn(|_| a.create_label());
    // A TSC that stands still would divide by zero below.
    a.cmp(r13, 1)?;
    a.adc(r13, 0)?;

    a.mov(rdi, rbx)?;
    a.mov(esi, 12)?;
    a.call(rt.put_dec)?;
    // cycles * 100 / iterations
    a.imul_3(rax, r13, 100)?;
    a.xor(edx, edx)?;
    a.div(r12)?;
    a.mov(rdi, rax)?;
    a.mov(esi, 16)?;
    a.call(rt.put_cents)?;
    a.test(r15, r15)?;
    a.jz(no_time)?;

    // ns * 100 = cycles * 10^8 / (kHz * iterations)
    a.mov(rcx, r15)?;
    a.imul_2(rcx, r12)?;
    a.mov(eax, 100_000_000)?;
    a.mul(r13)?;
    a.div(rcx)?;
    a.mov(rdi, rax)?;
    a.mov(esi, 12)?;
    a.call(rt.put_cents)?;
    // MIPS = instructions * iterations * kHz / (cycles * 1000)
    a.mov(rax, rbx)?;
    a.imul_2(rax, r12)?;
    a.mul(r15)?;
    a.imul_3(rcx, r13, 1000)?;
    a.div(rcx)?;
    a.mov(rdi, rax)?;
    a.mov(esi, 10)?;
    a.call(rt.put_dec)?;
    a.jmp(done)?;

    a.set_label(&mut no_time)?;
    rt.print(a, "              -         -")?;
    a.set_label(&mut done)?;
    rt.print(a, "\n")
}

fn alu(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(eax, 1)?;
    a.set_label(&mut top)?;
    a.add(rax, rcx)?;
    a.mov(rdx, rax)?;
    a.shl(rdx, 3)?;
    a.xor(rax, rdx)?;
    a.ror(rax, 11)?;
    a.sub(rdx, rax)?;
    a.dec(rcx)?;
    a.jnz(top)
}

fn call(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let [mut top, mut function, mut done] = std::array::from_fn(|_| a.create_label());
    a.set_label(&mut top)?;
    a.call(function)?;
    a.add(rdx, rax)?;
    a.dec(rcx)?;
    a.jnz(top)?;
    a.jmp(done)?;
    a.set_label(&mut function)?;
    a.mov(rax, rcx)?;
    a.ret()?;
    a.set_label(&mut done)
}

/// A word in every other cache line of 1 MiB, read, changed and written.
fn walk(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(rsi, WORK)?;
    a.xor(edi, edi)?;
    a.set_label(&mut top)?;
    a.mov(rax, qword_ptr(rsi + rdi))?;
    a.mov(qword_ptr(rsi + rdi + 8), rax)?;
    a.add(edi, 128)?;
    a.and(edi, 0xf_ffff)?;
    a.dec(rcx)?;
    a.jnz(top)
}

fn sse2(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(eax, 3)?;
    a.cvtsi2sd(xmm1, eax)?;
    a.unpcklpd(xmm1, xmm1)?;
    a.movapd(xmm2, xmm1)?;
    a.mov(rsi, WORK + 0x20_0000)?;
    a.set_label(&mut top)?;
    a.movapd(xmm0, xmm1)?;
    a.mulpd(xmm0, xmm1)?;
    a.addpd(xmm2, xmm0)?;
    a.pxor(xmm3, xmm2)?;
    a.movapd(xmmword_ptr(rsi), xmm2)?;
    a.dec(rcx)?;
    a.jnz(top)
}

fn port(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    a.out(i32::from(ports::POST as u8), al)?;
    a.dec(rcx)?;
    a.jnz(top)
}

fn cpuid(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(rdi, rcx)?;
    a.set_label(&mut top)?;
    a.xor(eax, eax)?;
    a.xor(ecx, ecx)?;
    a.cpuid()?;
    a.dec(rdi)?;
    a.jnz(top)
}

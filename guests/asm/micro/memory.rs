//! `memory`: a pointer chase with stores over 1 MiB. `string`: REP MOVS, STOS and CMPS.

use super::{Program, fill_words};
use crate::bare::{Runtime, layout::WORK};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

pub(super) const MEMORY: Program =
    Program { name: "memory", iterations: 12_000_000, user_pages: false, setup: link_nodes, body: memory };

pub(super) const STRING: Program =
    Program { name: "string", iterations: 10_000, user_pages: false, setup: fill_source, body: string };

/// 16384 nodes of 64 bytes: a pointer to the next, then a value. `5n + 4099` modulo a power of two visits all of them.
const NODES: u32 = 16384;

fn link_nodes(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(rdi, WORK)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut top)?;
    a.lea(eax, ptr(rcx + rcx * 4 + 4099))?;
    a.and(eax, NODES - 1)?;
    a.shl(eax, 6)?;
    a.add(rax, WORK as i32)?;
    a.mov(qword_ptr(rdi), rax)?;
    a.mov(qword_ptr(rdi + 8), rcx)?;
    a.add(rdi, 64)?;
    a.inc(ecx)?;
    a.cmp(ecx, NODES)?;
    a.jne(top)
}

fn memory(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(rsi, WORK)?;
    a.xor(ebx, ebx)?;
    a.set_label(&mut top)?;
    a.mov(rsi, qword_ptr(rsi))?;
    a.mov(rax, qword_ptr(rsi + 8))?;
    a.add(rax, rcx)?;
    a.mov(qword_ptr(rsi + 8), rax)?;
    a.rol(rbx, 1)?;
    a.xor(rbx, rax)?;
    a.dec(rcx)?;
    a.jnz(top)
}

const SOURCE: u64 = WORK;
const COPY: u64 = WORK + 0x10_000;
const FILL: u64 = WORK + 0x20_000;

/// 8 KiB of a generator's output.
fn fill_source(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    fill_words(a, SOURCE, 1024)
}

/// An iteration, numbered in r12: copy 4 KiB unaligned, fill 4 KiB, spread 8 bytes by an overlapping copy, copy
/// 256 bytes backwards, compare; then fold what stands where the number points to, and the compare's remainder.
fn string(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(r12, rcx)?;
    a.xor(ebx, ebx)?;
    a.set_label(&mut top)?;

    a.mov(eax, r12d)?;
    a.and(eax, 63)?;
    a.lea(rsi, ptr(rax + SOURCE as i32))?;
    a.mov(eax, r12d)?;
    a.and(eax, 7)?;
    a.lea(rdi, ptr(rax + COPY as i32))?;
    a.mov(ecx, 4096)?;
    a.rep().movsb()?;

    a.mov(rax, r12)?;
    a.mov(rdi, FILL)?;
    a.mov(ecx, 512)?;
    a.rep().stosq()?;

    a.mov(rsi, COPY + 512)?;
    a.mov(rdi, COPY + 520)?;
    a.mov(ecx, 64)?;
    a.rep().movsb()?;

    a.std()?;
    a.mov(rsi, SOURCE + 4095)?;
    a.mov(rdi, FILL + 1023)?;
    a.mov(ecx, 256)?;
    a.rep().movsb()?;
    a.cld()?;

    // Equal for some bytes or none, by the alignment of this iteration's copy.
    a.mov(rsi, SOURCE + 8)?;
    a.mov(rdi, COPY + 8)?;
    a.mov(ecx, 128)?;
    a.repe().cmpsb()?;

    a.mov(eax, r12d)?;
    a.shl(eax, 3)?;
    a.and(eax, 0xff8)?;
    a.rol(rbx, 5)?;
    a.xor(rbx, qword_ptr(rax + COPY as i32))?;
    a.add(rbx, qword_ptr(rax + FILL as i32))?;
    a.add(rbx, rcx)?;
    a.dec(r12)?;
    a.jnz(top)
}

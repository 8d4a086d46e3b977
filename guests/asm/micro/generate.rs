//! `codegen`: functions that were not there before, one behind the other in a buffer, each called when it is complete.

use super::{LCG_ADD, LCG_MUL, Program};
use crate::bare::{Runtime, layout::WORK};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

pub(super) const CODEGEN: Program = Program {
    name: "codegen",
    iterations: 200_000,
    user_pages: false,
    setup: write_templates,
    body: codegen,
};

/// Pairs of words: an instruction of eight bytes, and which of its bits are from the generator.
const TEMPLATES: u64 = WORK;
/// The buffer: 4096 functions fit, then it is used again from its start.
const BUFFER: u64 = WORK + 0x10_0000;
const SLOT: i32 = 64;
const SLOTS: i32 = 4096;
const INSTRUCTIONS: u32 = 6;
const CALLS: usize = 4;

/// imm32 and imm8 of a count, behind three bytes.
const IMM32: u64 = 0xffff_ffff << 24;
const COUNT: u64 = 0x3f << 24;

/// What happens to rax; the rest of the eight bytes does nothing.
const KINDS: [([u8; 8], u64); 8] = [
    ([0x48, 0x81, 0xc0, 0, 0, 0, 0, 0x90], IMM32), // add rax, imm32
    ([0x48, 0x81, 0xf0, 0, 0, 0, 0, 0x90], IMM32), // xor rax, imm32
    ([0x48, 0x81, 0xe8, 0, 0, 0, 0, 0x90], IMM32), // sub rax, imm32
    ([0x48, 0x69, 0xc0, 1, 0, 0, 0, 0x90], IMM32), // imul rax, rax, imm32 (odd)
    ([0x48, 0xc1, 0xc0, 0, 0x0f, 0x1f, 0x00, 0x90], COUNT), // rol rax, imm8
    ([0x48, 0xc1, 0xc8, 0, 0x0f, 0x1f, 0x00, 0x90], COUNT), // ror rax, imm8
    ([0x48, 0xf7, 0xd0, 0x0f, 0x1f, 0x44, 0x00, 0x00], 0), // not rax
    ([0x48, 0x0f, 0xc8, 0x0f, 0x1f, 0x44, 0x00, 0x00], 0), // bswap rax
];

fn write_templates(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    for ((bytes, mask), at) in KINDS.iter().zip((TEMPLATES..).step_by(16)) {
        a.mov(rax, u64::from_le_bytes(*bytes))?;
        a.mov(qword_ptr(at), rax)?;
        a.mov(rax, *mask)?;
        a.mov(qword_ptr(at + 8), rax)?;
    }
    Ok(())
}

/// r14: the function, r13: the generator, which chooses each instruction and its constant.
fn codegen(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let [mut top, mut emit, mut next] = std::array::from_fn(|_| a.create_label());
    a.mov(r12, rcx)?;
    a.mov(r13d, 1)?;
    a.mov(rbp, LCG_MUL)?;
    a.mov(r15, LCG_ADD)?;
    a.mov(r14, BUFFER)?;
    a.xor(ebx, ebx)?;
    a.set_label(&mut top)?;
    a.mov(rdi, r14)?;
    a.mov(ecx, INSTRUCTIONS)?;
    a.set_label(&mut emit)?;
    a.imul_2(r13, rbp)?;
    a.add(r13, r15)?;
    a.mov(rdx, r13)?;
    a.shr(rdx, 61)?;
    a.shl(edx, 4)?;
    a.mov(rax, r13)?;
    a.and(rax, qword_ptr(rdx + TEMPLATES as i32 + 8))?;
    a.or(rax, qword_ptr(rdx + TEMPLATES as i32))?;
    a.mov(qword_ptr(rdi), rax)?;
    a.add(rdi, 8)?;
    a.dec(ecx)?;
    a.jnz(emit)?;
    a.mov(byte_ptr(rdi), 0xc3u32)?;
    a.mov(rax, r13)?;
    for _ in 0..CALLS {
        a.call(r14)?;
    }
    a.rol(rbx, 5)?;
    a.xor(rbx, rax)?;
    a.add(r14, SLOT)?;
    a.cmp(r14, BUFFER as i32 + SLOT * SLOTS)?;
    a.jne(next)?;
    a.mov(r14, BUFFER)?;
    a.set_label(&mut next)?;
    a.dec(r12)?;
    a.jnz(top)
}

//! The guest that runs when no other is to be had: it prints what processor and memory it finds, and how fast its
//! own loops run.
//!
//! Registers that live through the whole program: r14, how many TSC cycles a measurement must last; r15, the
//! TSC's frequency in kHz, or 0 where the processor does not tell (then the table has cycles only).

mod loops;
mod processor;

use crate::bare::layout::START_INFO;
use crate::bare::{BuildError, Image, Runtime};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

pub use loops::NAMES;

/// Duration of a measurement in milliseconds: iterations are doubled until one takes as long.
const MEASURE_MS: i32 = 10;
/// The same where the TSC's frequency is not known.
const MEASURE_CYCLES: u64 = 20_000_000;

/// The guest's ELF file.
pub fn assemble() -> Result<Vec<u8>, BuildError> {
    Image::new().assemble(|a, rt| {
        rt.print(a, "\nGearshift guest: this machine, as seen from inside.\n\n")?;
        processor::emit(a, rt)?;
        memory(a, rt)?;
        frequency(a, rt)?;
        loops::emit(a, rt)?;
        rt.print(a, "\nPowering off.\n")
    })
}

/// Sum of the RAM entries (type 1) of the PVH memory map, which start info version 1 and later has.
fn memory(a: &mut CodeAssembler, rt: &mut Runtime) -> Result<(), IcedError> {
    let [mut entry, mut skip, mut print] = std::array::from_fn(|_| a.create_label());
    rt.print(a, "  memory     ")?;
    a.xor(ebx, ebx)?;
    a.mov(rax, qword_ptr(START_INFO))?;
    a.cmp(dword_ptr(rax + 4), 1)?;
    a.jb(print)?;
    a.mov(ecx, dword_ptr(rax + 48))?;
    a.mov(rsi, qword_ptr(rax + 40))?;
    a.test(ecx, ecx)?;
    a.jz(print)?;
    a.set_label(&mut entry)?;
    a.cmp(dword_ptr(rsi + 16), 1)?;
    a.jne(skip)?;
    a.add(rbx, qword_ptr(rsi + 8))?;
    a.set_label(&mut skip)?;
    a.add(rsi, 24)?;
    a.dec(ecx)?;
    a.jnz(entry)?;
    a.set_label(&mut print)?;
    a.mov(rdi, rbx)?;
    a.shr(rdi, 10)?;
    a.xor(esi, esi)?;
    a.call(rt.put_dec)?;
    rt.print(a, " KiB of RAM\n")
}

/// Leaf 15H: core crystal and its ratio to the TSC; leaf 16H: the base frequency, for processors that do not tell
/// their crystal's (Intel SDM vol. 3, 19.7.3). `tsc-khz=` on the command line overrules both.
fn frequency(a: &mut CodeAssembler, rt: &mut Runtime) -> Result<(), IcedError> {
    let [mut base, mut cycles, mut known, mut done] = std::array::from_fn(|_| a.create_label());
    let key = rt.text("tsc-khz=");
    rt.print(a, "  TSC        ")?;
    a.lea(rdi, ptr(key))?;
    a.xor(esi, esi)?;
    a.call(rt.argument)?;
    a.mov(r15, rax)?;
    a.test(rax, rax)?;
    a.jnz(known)?;

    a.xor(eax, eax)?;
    a.cpuid()?;
    a.mov(ebp, eax)?;
    a.cmp(ebp, 0x15)?;
    a.jb(cycles)?;
    a.mov(eax, 0x15)?;
    a.xor(ecx, ecx)?;
    a.cpuid()?;
    a.test(eax, eax)?;
    a.jz(base)?;
    a.test(ebx, ebx)?;
    a.jz(base)?;
    a.test(ecx, ecx)?;
    a.jz(base)?;
    // Hz = crystal * numerator / denominator, in 64 bits.
    a.mov(esi, eax)?;
    a.mov(eax, ecx)?;
    a.mov(ebx, ebx)?;
    a.imul_2(rax, rbx)?;
    a.xor(edx, edx)?;
    a.div(rsi)?;
    a.xor(edx, edx)?;
    a.mov(ecx, 1000)?;
    a.div(rcx)?;
    a.mov(r15, rax)?;
    a.test(rax, rax)?;
    a.jnz(known)?;

    a.set_label(&mut base)?;
    a.cmp(ebp, 0x16)?;
    a.jb(cycles)?;
    a.mov(eax, 0x16)?;
    a.xor(ecx, ecx)?;
    a.cpuid()?;
    a.and(eax, 0xffff)?;
    a.imul_3(r15d, eax, 1000)?;
    a.test(r15d, r15d)?;
    a.jnz(known)?;

    a.set_label(&mut cycles)?;
    a.xor(r15d, r15d)?;
    a.mov(r14, MEASURE_CYCLES)?;
    rt.print(a, "of unknown frequency (CPUID leaves 15H and 16H are silent)\n")?;
    a.jmp(done)?;

    a.set_label(&mut known)?;
    a.imul_3(r14, r15, MEASURE_MS)?;
    a.mov(rdi, r15)?;
    a.xor(esi, esi)?;
    a.call(rt.put_dec)?;
    rt.print(a, " kHz\n")?;
    a.set_label(&mut done)
}

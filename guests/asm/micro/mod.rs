//! Benchmark guests, one a class of work.
//!
//! Every program has the same frame: untimed setup, the count of iterations from the command line (`n=`), the timed
//! body between two readings of the time-stamp counter, one `RESULT` line, power-off. The body gets its count (at
//! least 1) in rcx, leaves its checksum in rbx and may use every register but rsp. A program that the processor lacks
//! something for ends in its setup, with the line `RESULT <name> unavailable: <reason>`.
//! `src/micro/model.rs` computes the same checksums in Rust.

mod avx;
mod control;
mod device;
mod generate;
mod integer;
mod interrupt;
mod memory;
mod sha;
mod system;
mod translation;
mod vector;

use crate::bare::{BuildError, Image, Runtime};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

type Emit = fn(&mut CodeAssembler, &mut Runtime) -> Result<(), IcedError>;

/// One benchmark program.
pub struct Program {
    pub name: &'static str,
    /// Iterations without `n=`: about 0.2 to 0.5 s at 300 million instructions a second.
    pub iterations: u64,
    /// Needs pages that CPL 3 can reach.
    pub user_pages: bool,
    pub setup: Emit,
    pub body: Emit,
}

/// Multiplier and increment of the linear congruential generators here (Knuth's MMIX).
pub const LCG_MUL: u64 = 6_364_136_223_846_793_005;
pub const LCG_ADD: u64 = 1_442_695_040_888_963_407;

fn no_setup(_: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    Ok(())
}

/// Emits a loop that fills memory from `at` on with `words` outputs of the generator, which starts at 1; rax, rcx, rdi,
/// r8 and r9 are lost.
fn fill_words(a: &mut CodeAssembler, at: u64, words: u32) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(r8, LCG_MUL)?;
    a.mov(r9, LCG_ADD)?;
    a.mov(eax, 1)?;
    a.mov(rdi, at)?;
    a.mov(ecx, words)?;
    a.set_label(&mut top)?;
    a.imul_2(rax, r8)?;
    a.add(rax, r9)?;
    a.stosq()?;
    a.dec(ecx)?;
    a.jnz(top)
}

/// All programs, in the order of the reports.
pub const ALL: &[Program] = &[
    integer::INT,
    integer::CALLS,
    control::INDIRECT,
    memory::MEMORY,
    vector::SSE,
    avx::AVX2,
    sha::SHA,
    system::SYSCALL,
    system::PAGEFAULT,
    memory::STRING,
    control::SMC,
    generate::CODEGEN,
    translation::WALK,
    translation::CR3,
    translation::CR3_GLOBAL,
    device::PORT,
    device::MMIO,
    interrupt::INTERRUPT,
    interrupt::HALT,
    interrupt::TIMER,
];

impl Program {
    /// The guest's ELF file.
    pub fn assemble(&self) -> Result<Vec<u8>, BuildError> {
        Image::new().user_pages(self.user_pages).assemble(|a, rt| {
            (self.setup)(a, rt)?;
            let key = rt.text("n=");
            a.lea(rdi, ptr(key))?;
            a.mov(esi, u32::try_from(self.iterations).expect("counts fit 32 bits"))?;
            a.call(rt.argument)?;
            a.cmp(rax, 1)?;
            a.adc(rax, 0)?;
            a.push(rax)?;
            a.call(rt.tsc)?;
            a.push(rax)?;
            a.mov(rcx, qword_ptr(rsp + 8))?;
            (self.body)(a, rt)?;
            a.call(rt.tsc)?;
            a.pop(r13)?;
            a.pop(r12)?;
            a.neg(r13)?;
            a.add(r13, rax)?;

            rt.print(a, &format!("RESULT {} iterations=", self.name))?;
            a.mov(rdi, r12)?;
            a.xor(esi, esi)?;
            a.call(rt.put_dec)?;
            rt.print(a, " tsc=")?;
            a.mov(rdi, r13)?;
            a.xor(esi, esi)?;
            a.call(rt.put_dec)?;
            rt.print(a, " checksum=")?;
            a.mov(rdi, rbx)?;
            a.call(rt.put_hex)?;
            rt.print(a, "\n")
        })
    }
}

//! Against the Intel SDM; each test names the instruction's page or the section.

mod alignment;
mod amd;
mod control;
mod debug;
mod far;
mod io;
mod paging;
mod privileged;
mod syscall;
mod tasks;

use crate::Cpu;
use crate::testing::{peek, poke};

/// Puts 64-bit words on the stack, the first at RSP.
fn stack64(c: &mut Cpu, words: &[u64]) {
    let rsp = c.gpr[accel_api::x86::gpr::RSP];
    for (i, word) in words.iter().enumerate() {
        poke(c, rsp + 8 * i as u64, &word.to_le_bytes());
    }
}

fn stack32(c: &mut Cpu, words: &[u32]) {
    let rsp = c.gpr[accel_api::x86::gpr::RSP];
    for (i, word) in words.iter().enumerate() {
        poke(c, rsp + 4 * i as u64, &word.to_le_bytes());
    }
}

fn word(c: &mut Cpu, at: u64) -> u16 {
    u16::from_le_bytes(peek(c, at, 2).try_into().unwrap())
}

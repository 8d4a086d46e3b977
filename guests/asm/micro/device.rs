//! `port`: a register of a device behind I/O ports. `mmio`: registers of a device in memory.

use super::{Program, no_setup};
use crate::bare::{Runtime, ports};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

pub(super) const PORT: Program =
    Program { name: "port", iterations: 200_000, user_pages: false, setup: no_setup, body: port };

pub(super) const MMIO: Program =
    Program { name: "mmio", iterations: 100_000, user_pages: false, setup: no_setup, body: mmio };

/// The 16550's scratch register keeps what is written to it and has no other effect.
const SCRATCH: u32 = ports::COM1 as u32 + 7;

fn port(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(edx, SCRATCH)?;
    a.xor(ebx, ebx)?;
    a.set_label(&mut top)?;
    a.mov(eax, ecx)?;
    a.out(dx, al)?;
    a.xor(eax, eax)?;
    a.in_(al, dx)?;
    a.rol(rbx, 3)?;
    a.xor(rbx, rax)?;
    a.dec(rcx)?;
    a.jnz(top)
}

/// IOAPIC (Intel 82093AA, 3.1): index and data register.
const IOAPIC: u32 = 0xfec0_0000;
const WINDOW: i32 = 0x10;
/// Upper half of redirection entry 0, whose highest byte is the destination. Entries are masked after a reset.
const ENTRY: i32 = 0x11;

/// Selects one of eight entries, stores a destination and loads it.
fn mmio(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(esi, IOAPIC)?;
    a.xor(ebx, ebx)?;
    a.set_label(&mut top)?;
    a.mov(eax, ecx)?;
    a.and(eax, 7)?;
    a.lea(eax, ptr(rax + rax + ENTRY))?;
    a.mov(dword_ptr(rsi), eax)?;
    a.mov(eax, ecx)?;
    a.shl(eax, 24)?;
    a.mov(dword_ptr(rsi + WINDOW), eax)?;
    a.mov(edx, dword_ptr(rsi + WINDOW))?;
    a.shr(edx, 24)?;
    a.rol(rbx, 3)?;
    a.xor(rbx, rdx)?;
    a.dec(rcx)?;
    a.jnz(top)
}

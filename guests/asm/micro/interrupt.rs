//! `interrupt`: interrupts that the processor sends itself. `halt`: the same ones, waited for in HLT. `timer`: HLT until
//! the local APIC's timer.

use super::Program;
use crate::bare::Runtime;
use crate::bare::layout::IDT;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

pub(super) const INTERRUPT: Program =
    Program { name: "interrupt", iterations: 200_000, user_pages: false, setup: prepare, body: interrupt };

pub(super) const HALT: Program =
    Program { name: "halt", iterations: 100_000, user_pages: false, setup: prepare, body: halt };

pub(super) const TIMER: Program =
    Program { name: "timer", iterations: 5_000, user_pages: false, setup: prepare, body: timer };

/// The local APIC and its registers (Intel SDM vol. 3, table 12-1).
const APIC: u32 = 0xfee0_0000;
const EOI: i32 = 0xb0;
const SPURIOUS: i32 = 0xf0;
const COMMAND: i32 = 0x300;
const LVT_TIMER: i32 = 0x320;
const LVT_LINT0: i32 = 0x350;
const INITIAL_COUNT: i32 = 0x380;
const DIVIDE: i32 = 0x3e0;

/// First of eight vectors, which are used in turn.
const VECTOR: u32 = 0x40;
const VECTORS: u32 = 8;
/// Interrupt command: fixed, edge, to oneself (shorthand 1).
const TO_SELF: i32 = 1 << 18;
const MASKED: u32 = 1 << 16;
/// Ticks of the timer, undivided: 20 us at 1 GHz.
const TICKS: u32 = 20_000;
/// Looks for the interrupt before giving up, which makes the checksum wrong.
const PATIENCE: u32 = 50_000_000;

/// Turns the local APIC on and every other source of interrupts off, and makes an IDT of 256 gates. The handlers leave
/// their vector in r15d, and expect the APIC's address in rsi.
fn prepare(a: &mut CodeAssembler, rt: &mut Runtime) -> Result<(), IcedError> {
    let mut done = a.create_label();
    // Both 8259s: all lines masked.
    a.mov(eax, 0xff)?;
    a.out(0x21, al)?;
    a.out(0xa1, al)?;
    a.mov(esi, APIC)?;
    a.mov(dword_ptr(rsi + LVT_LINT0), MASKED)?;
    a.mov(dword_ptr(rsi + SPURIOUS), 0x1ffu32)?;
    a.mov(dword_ptr(rsi + DIVIDE), 0xbu32)?;
    a.mov(rax, IDT)?;
    a.push(rax)?;
    a.mov(rax, 0xfffu64 << 48)?;
    a.push(rax)?;
    a.lidt(ptr(rsp + 6))?;
    a.add(rsp, 16)?;
    let mut handlers: Vec<CodeLabel> = (0..VECTORS).map(|_| a.create_label()).collect();
    for (handler, vector) in handlers.iter().zip(VECTOR..) {
        a.mov(edi, vector)?;
        a.lea(rsi, ptr(*handler))?;
        a.call(rt.set_gate)?;
    }
    a.jmp(done)?;
    for (handler, vector) in handlers.iter_mut().zip(VECTOR..) {
        a.set_label(handler)?;
        a.mov(r15d, vector)?;
        a.mov(dword_ptr(rsi + EOI), 0)?;
        a.iretq()?;
    }
    a.set_label(&mut done)
}

/// eax becomes the vector of iteration rcx, r15d zero.
fn choose(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(eax, ecx)?;
    a.and(eax, VECTORS as i32 - 1)?;
    a.add(eax, VECTOR as i32)?;
    a.xor(r15d, r15d)
}

fn fold(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.rol(rbx, 5)?;
    a.xor(rbx, r15)?;
    a.dec(rcx)
}

/// With interrupts on, a loop waits for the handler's mark.
fn interrupt(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let [mut top, mut wait, mut came] = std::array::from_fn(|_| a.create_label());
    a.mov(esi, APIC)?;
    a.xor(ebx, ebx)?;
    a.sti()?;
    a.set_label(&mut top)?;
    choose(a)?;
    a.or(eax, TO_SELF)?;
    a.mov(edx, PATIENCE)?;
    a.mov(dword_ptr(rsi + COMMAND), eax)?;
    a.set_label(&mut wait)?;
    a.test(r15d, r15d)?;
    a.jnz(came)?;
    a.pause()?;
    a.dec(edx)?;
    a.jnz(wait)?;
    a.set_label(&mut came)?;
    fold(a)?;
    a.jnz(top)?;
    a.cli()
}

/// With interrupts off the interrupt is pending; STI's shadow reaches over HLT (Intel SDM vol. 2, STI).
fn halt(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    sleeps(a, |a| {
        a.or(eax, TO_SELF)?;
        a.mov(dword_ptr(rsi + COMMAND), eax)
    })
}

/// The processor sleeps until the timer wakes it.
fn timer(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    sleeps(a, |a| {
        a.mov(dword_ptr(rsi + LVT_TIMER), eax)?;
        a.mov(dword_ptr(rsi + INITIAL_COUNT), TICKS)
    })
}

/// `ask` asks for an interrupt of vector eax, with interrupts off.
fn sleeps(
    a: &mut CodeAssembler,
    ask: fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let [mut top, mut sleep] = std::array::from_fn(|_| a.create_label());
    a.mov(esi, APIC)?;
    a.xor(ebx, ebx)?;
    a.set_label(&mut top)?;
    choose(a)?;
    ask(a)?;
    a.set_label(&mut sleep)?;
    a.sti()?;
    a.hlt()?;
    a.cli()?;
    a.test(r15d, r15d)?;
    a.jz(sleep)?;
    fold(a)?;
    a.jnz(top)
}

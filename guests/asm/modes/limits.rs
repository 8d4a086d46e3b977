//! Limits and types of segments at each access, in real and protected mode (Intel SDM vol. 3, 6.3 and 6.4.1). QEMU's
//! TCG checks neither.

use super::code::nothing;
use super::real::vectors;
use super::rig::*;
use iced_x86::code_asm::*;

const SMALL: u16 = FREE;
const DOWN: u16 = FREE + 8;
const DOWN_16: u16 = FREE + 0x10;
const SMALL_CODE: u16 = FREE + 0x18;
const SMALL_STACK: u16 = FREE + 0x20;
const READ_ONLY: u16 = FREE + 0x28;
const LIMIT: u32 = 0x2f;

pub fn build(rig: &mut Rig) {
    rig.descriptor(SMALL, descriptor(DATA, LIMIT, 0x93, 4));
    rig.descriptor(DOWN, descriptor(0, 0xfff, 0x97, 4));
    rig.descriptor(DOWN_16, descriptor(0, 0xfff, 0x97, 0));
    rig.descriptor(SMALL_CODE, descriptor(MORE, 0x3, 0x9b, 4));
    rig.descriptor(SMALL_STACK, descriptor(0, STACK - 1, 0x93, 4));
    rig.descriptor(READ_ONLY, descriptor(DATA, LIMIT, 0x91, 4));
    // Four NOPs that end at the limit of SMALL_CODE.
    rig.put(MORE, &[0x90, 0x90, 0x90, 0x90]);
    rig.code(32, MAIN, |c| {
        limits(c)?;
        types(c)?;
        vectors(c)?;
        c.go_real(CODE16)
    });
    rig.code(16, CODE16, |c| {
        real(c)?;
        c.passed()
    });
}

fn limits(c: &mut Code<'_>) -> Result {
    c.load(es, SMALL)?;
    c.mov(dword_ptr(LIMIT - 3).es(), 0x1234_5678)?;
    c.equal("the last dword within the limit is at base + offset", &[(DATA + LIMIT - 3, 0x1234_5678)])?;
    let es_small = |c: &mut Code<'_>| c.load(es, SMALL);
    c.fault("a byte beyond the limit", 13, 0, es_small, |c| c.mov(al, byte_ptr(LIMIT + 1).es()))?;
    c.fault("a dword across the limit", 13, 0, es_small, |c| c.mov(ecx, dword_ptr(LIMIT - 2).es()))?;
    c.fault("a write across the limit", 13, 0, es_small, |c| c.mov(word_ptr(LIMIT).es(), cx))?;
    c.fault("an offset that wraps", 13, 0, es_small, |c| c.mov(ecx, dword_ptr(0xffff_fffeu32).es()))?;
    // Expand-down: what is valid begins behind the limit.
    let down = |c: &mut Code<'_>| c.load(es, DOWN);
    c.load(es, DOWN)?;
    c.mov(ecx, dword_ptr(0x1000).es())?;
    c.mov(ecx, dword_ptr(0xfffff).es())?;
    c.fault("expand-down: at the limit", 13, 0, down, |c| c.mov(al, byte_ptr(0xfff).es()))?;
    c.fault("expand-down: across the limit", 13, 0, down, |c| c.mov(ecx, dword_ptr(0xffe).es()))?;
    let down16 = |c: &mut Code<'_>| c.load(es, DOWN_16);
    c.load(es, DOWN_16)?;
    c.mov(al, byte_ptr(0xffff).es())?;
    c.fault("expand-down without B ends at 64 KiB", 13, 0, down16, |c| c.mov(al, byte_ptr(0x1_0000).es()))?;
    c.fault("and not across it", 13, 0, down16, |c| c.mov(cx, word_ptr(0xffff).es()))?;
    c.fault("POP beyond the stack's limit is #SS", 12, 0, |c| c.load(ss, SMALL_STACK), |c| c.pop(ecx))?;
    // The limit of code: the instruction behind it faults, with its own EIP.
    c.until_exception(|c| far_jump(c, SMALL_CODE, 0))?;
    c.equal("code beyond CS's limit", &[(VECTOR, 13), (ERROR, 0), (EIP, 4), (CS, SMALL_CODE.into())])
}

fn types(c: &mut Code<'_>) -> Result {
    c.load(es, READ_ONLY)?;
    c.mov(ecx, dword_ptr(0).es())?;
    c.fault("writing read-only data", 13, 0, |c| c.load(es, READ_ONLY), |c| c.mov(dword_ptr(0).es(), ecx))?;
    c.fault("writing a code segment", 13, 0, nothing, |c| c.mov(dword_ptr(DATA).cs(), ecx))?;
    c.mov(ecx, dword_ptr(DATA).cs())?;
    c.fault("using a null selector", 13, 0, |c| c.load(es, 0), |c| c.mov(ecx, dword_ptr(DATA).es()))
}

fn real(c: &mut Code<'_>) -> Result {
    c.fault("a word at 0xffff is #GP", 13, 0, |c| c.mov(bx, 0xffffu32), |c| c.mov(ax, word_ptr(bx)))?;
    c.fault(
        "a dword at 0xfffd is #GP, also to write",
        13,
        0,
        |c| c.mov(bx, 0xfffdu32),
        |c| c.mov(dword_ptr(bx), eax),
    )?;
    c.fault("a word at SS:0xffff is #SS", 12, 0, |c| c.mov(bp, 0xffffu32), |c| c.mov(ax, word_ptr(bp)))?;
    c.fault("an offset of 0x10000 is #GP", 13, 0, |c| c.mov(ebx, 0x1_0000), |c| c.mov(al, byte_ptr(ebx)))?;
    c.fault("a far jump beyond 64 KiB is #GP", 13, 0, nothing, |c| {
        // Operand size 32: an offset that no real-mode code segment has.
        c.db(&[0x66, 0xea, 0, 0, 1, 0, 0, 0])
    })
}

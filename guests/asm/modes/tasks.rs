//! Hardware task switches: jumps, calls and interrupts to tasks, their state, busy bits, NT and back links (Intel SDM
//! vol. 3, 8.2 and 8.3).

use super::code::nothing;
use super::rig::*;
use iced_x86::code_asm::*;
use iced_x86::{Code as Opcode, Instruction};

/// The other task.
const OTHER: u16 = FREE;
const BUSY: u16 = FREE + 8;
const ABSENT: u16 = FREE + 0x10;
/// A task gate of DPL 3 to the other task.
const GATE: u16 = FREE + 0x18;
const OTHER_TSS: u32 = TABLES;
const TASK: u32 = MORE;
const TASK_STACK: u32 = RING0_STACK + 0x800;
const TASK_GATE: u8 = 0x22;
const NT: u32 = 1 << 14;
const CR0_TS: u32 = 1 << 3;
/// What the other task writes down: NT, EAX, how often it ran, CR0, TR, the type of our TSS.
const SEEN: u32 = DATA + 0x40;
/// Access byte of a TSS descriptor, where it lies in the table.
const fn access(selector: u16) -> u32 {
    GDT + selector as u32 + 4
}
const AVAILABLE: u32 = 0x8900;
const IN_USE: u32 = 0x8b00;
const TYPE: u32 = 0xff00;
/// Offsets in a TSS.
const BACK_LINK: u32 = 0;
const TSS_EIP: u32 = 0x20;
const TSS_EFLAGS: u32 = 0x24;
const TSS_ECX: u32 = 0x2c;
const TSS_ESP: u32 = 0x38;

pub fn build(rig: &mut Rig) {
    rig.descriptor(OTHER, descriptor(OTHER_TSS, 0x67, 0x89, 0));
    rig.descriptor(BUSY, descriptor(OTHER_TSS, 0x67, 0x8b, 0));
    rig.descriptor(ABSENT, descriptor(OTHER_TSS, 0x67, 0x09, 0));
    rig.descriptor(GATE, gate(OTHER, 0, 0xe5, 0));
    rig.gate(TASK_GATE, gate(OTHER, 0, 0xe5, 0));
    let mut put = |offset: u32, value: u32| rig.put(OTHER_TSS + offset, &value.to_le_bytes());
    for (offset, value) in [
        (TSS_EIP, TASK),
        (TSS_EFLAGS, 2),
        (0x28, 0xaaaa_0001),
        (TSS_ECX, 0xaaaa_0002),
        (TSS_ESP, TASK_STACK),
        (0x48, FLAT_DS.into()),
        (0x4c, FLAT_CS.into()),
        (0x50, FLAT_DS.into()),
        (0x54, FLAT_DS.into()),
        (0x64, 0x68 << 16),
    ] {
        put(offset, value);
    }
    rig.code(32, TASK, |c| {
        let mut again = c.create_label();
        c.set_label(&mut again)?;
        c.pushfd()?;
        c.pop(dword_ptr(SEEN))?;
        c.and(dword_ptr(SEEN), NT as i32)?;
        c.mov(dword_ptr(SEEN + 4), eax)?;
        c.inc(dword_ptr(SEEN + 8))?;
        c.mov(ecx, cr0)?;
        c.mov(dword_ptr(SEEN + 12), ecx)?;
        c.str(ecx)?;
        c.mov(dword_ptr(SEEN + 16), ecx)?;
        c.mov(ecx, dword_ptr(access(TSS_SELECTOR)))?;
        c.and(ecx, TYPE as i32)?;
        c.mov(dword_ptr(SEEN + 20), ecx)?;
        c.clts()?;
        // Back by IRET if this was nested, by a jump if not.
        c.test(dword_ptr(SEEN), NT as i32)?;
        let mut jump = c.create_label();
        c.jz(jump)?;
        c.iretd()?;
        c.jmp(again)?;
        c.set_label(&mut jump)?;
        far_jump(c, TSS_SELECTOR, 0)?;
        c.jmp(again)
    });
    rig.code(32, MAIN, |c| {
        calls(c)?;
        jumps(c)?;
        gates(c)?;
        refusals(c)?;
        c.passed()
    });
}

/// Checks the type bits of a TSS descriptor.
fn kind(c: &mut Code<'_>, what: &'static str, selector: u16, value: u32) -> Result {
    c.mov(ecx, dword_ptr(access(selector)))?;
    c.and(ecx, TYPE as i32)?;
    c.cmp(ecx, value)?;
    c.check(what, |a, l| a.je(l))
}

fn calls(c: &mut Code<'_>) -> Result {
    c.mov(ecx, 0x1234_5678)?;
    c.add_instruction(Instruction::with_far_branch(Opcode::Call_ptr1632, OTHER, 0)?)?;
    c.cmp(ecx, 0x1234_5678)?;
    c.check("CALL to a task and IRET keep the caller's registers", |a, l| a.je(l))?;
    c.cmp(esp, STACK)?;
    c.check("and its stack", |a, l| a.je(l))?;
    c.equal(
        "the task ran once, with the registers of its TSS, and NT",
        &[(SEEN + 8, 1), (SEEN + 4, 0xaaaa_0001), (SEEN, NT)],
    )?;
    c.equal("its TSS links back to ours", &[(OTHER_TSS + BACK_LINK, TSS_SELECTOR.into())])?;
    c.equal("TR was its own, and ours stayed busy", &[(SEEN + 16, OTHER.into()), (SEEN + 20, IN_USE)])?;
    c.mov(ecx, dword_ptr(SEEN + 12))?;
    c.test(ecx, CR0_TS as i32)?;
    c.check("a task switch sets CR0.TS", |a, l| a.jne(l))?;
    c.str(ecx)?;
    c.cmp(ecx, u32::from(TSS_SELECTOR))?;
    c.check("TR is ours again", |a, l| a.je(l))?;
    kind(c, "IRET leaves the task available", OTHER, AVAILABLE)?;
    kind(c, "and ours busy", TSS_SELECTOR, IN_USE)?;
    c.mov(ecx, dword_ptr(OTHER_TSS + TSS_EFLAGS))?;
    c.test(ecx, NT as i32)?;
    c.check("IRET clears NT in what it saves", |a, l| a.je(l))?;
    c.clts()
}

fn jumps(c: &mut Code<'_>) -> Result {
    // The task goes on behind its IRET.
    let back = DATA + 0x80;
    let after = c.mark();
    c.mov(dword_ptr(back), after.address)?;
    far_jump(c, OTHER, 0)?;
    c.place(after)?;
    c.equal("JMP to a task nests nothing", &[(SEEN + 8, 2), (SEEN, 0)])?;
    c.equal("and leaves ours available meanwhile", &[(SEEN + 20, AVAILABLE)])?;
    c.mov(ecx, dword_ptr(back))?;
    c.cmp(ecx, dword_ptr(TSS + TSS_EIP))?;
    c.check("our TSS had the EIP behind the jump", |a, l| a.je(l))?;
    kind(c, "after the jump back ours is busy", TSS_SELECTOR, IN_USE)?;
    kind(c, "and the other available", OTHER, AVAILABLE)
}

fn gates(c: &mut Code<'_>) -> Result {
    c.add_instruction(Instruction::with_far_branch(Opcode::Call_ptr1632, GATE, 0)?)?;
    c.equal("CALL of a task gate", &[(SEEN + 8, 3), (SEEN, NT)])?;
    c.interrupt(TASK_GATE)?;
    c.equal("INT n through a task gate", &[(SEEN + 8, 4), (SEEN, NT)])?;
    c.until_exception(|c| {
        c.user(2)?;
        c.interrupt(TASK_GATE)?;
        c.interrupt(USER_INT)
    })?;
    c.equal(
        "and from ring 3, back to ring 3",
        &[(SEEN + 8, 5), (VECTOR, USER_INT.into()), (CS, USER_CS.into()), (OUTER, USER_STACK)],
    )
}

fn refusals(c: &mut Code<'_>) -> Result {
    c.fault("JMP to a busy task", 13, BUSY.into(), nothing, |c| far_jump(c, BUSY, 0))?;
    c.fault("JMP to a task that is not present", 11, ABSENT.into(), nothing, |c| far_jump(c, ABSENT, 0))?;
    c.fault("JMP to a task of DPL 0 in ring 3", 13, OTHER.into(), |c| c.user(2), |c| far_jump(c, OTHER, 0))?;
    // IRET with NT and a back link to what is no busy task.
    c.fault(
        "IRET along a back link to an available task",
        10,
        OTHER.into(),
        |c| {
            c.mov(dword_ptr(TSS + BACK_LINK), u32::from(OTHER))?;
            c.push((NT | 2) as i32)?;
            c.popfd()
        },
        |c| c.iretd(),
    )?;
    // A TSS that is too short: #TS.
    c.mov(word_ptr(GDT + u32::from(OTHER)), 0x66)?;
    c.fault("a TSS below the least limit", 10, OTHER.into(), nothing, |c| far_jump(c, OTHER, 0))
}

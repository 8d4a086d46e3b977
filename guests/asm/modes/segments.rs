//! Protected mode without paging: the faults of loading segment registers (Intel SDM vol. 3, 6.4 to 6.8).

use super::code::nothing;
use super::rig::*;
use iced_x86::code_asm::*;

const SMALL: u16 = FREE;
const READ_ONLY: u16 = FREE + 8;
const ABSENT: u16 = FREE + 0x20;
const EXECUTE_ONLY: u16 = FREE + 0x28;
const USER_DATA: u16 = FREE + 0x30;
const CONFORMING: u16 = FREE + 0x38;
const LDT: u16 = FREE + 0x40;
const FRESH: u16 = FREE + 0x50;
const BEYOND: u16 = 0x200;
/// First descriptor of the local table.
const LOCAL: u16 = 0x0c;
const LIMIT: u32 = 0x2f;

pub fn build(rig: &mut Rig) {
    rig.descriptor(SMALL, descriptor(DATA, LIMIT, 0x93, 4));
    rig.descriptor(READ_ONLY, descriptor(DATA, LIMIT, 0x91, 4));
    rig.descriptor(ABSENT, descriptor(DATA, LIMIT, 0x13, 4));
    rig.descriptor(EXECUTE_ONLY, descriptor(DATA, LIMIT, 0x99, 4));
    rig.descriptor(USER_DATA, descriptor(DATA, LIMIT, 0xf3, 4));
    rig.descriptor(CONFORMING, descriptor(0, 0xf_ffff, 0x9f, 0xc));
    rig.descriptor(LDT, descriptor(TABLES, 0x17, 0x82, 0));
    rig.descriptor(FRESH, descriptor(DATA, LIMIT, 0x92, 4));
    rig.put(TABLES + 8, &descriptor(DATA, LIMIT, 0x93, 4).to_le_bytes());
    rig.put(TABLES + 16, &descriptor(DATA, LIMIT, 0xf3, 4).to_le_bytes());
    rig.code(32, MAIN, |c| {
        loads(c)?;
        stacks(c)?;
        questions(c)?;
        c.passed()
    });
}

fn loads(c: &mut Code<'_>) -> Result {
    c.xor(eax, eax)?;
    c.lldt(ax)?;
    c.load(es, 3)?;
    c.mov(ecx, es)?;
    c.cmp(ecx, 3)?;
    c.check("a null selector may have an RPL", |a, l| a.je(l))?;
    let into_es = |selector: u16| {
        (move |c: &mut Code<'_>| c.mov(eax, u32::from(selector)), |c: &mut Code<'_>| c.mov(es, ax))
    };
    for (what, vector, selector) in [
        ("loading a segment that is not present", 11, ABSENT),
        ("loading execute-only code as data", 13, EXECUTE_ONLY),
        ("loading a system descriptor", 13, TSS_SELECTOR),
        ("a selector beyond the table", 13, BEYOND),
        ("a selector of a local table that is not there", 13, LOCAL),
    ] {
        let (setup, instruction) = into_es(selector);
        c.fault(what, vector, selector.into(), setup, instruction)?;
    }
    c.fault(
        "RPL 3 does not reach data of privilege 0",
        13,
        FLAT_DS.into(),
        |c| c.mov(eax, u32::from(FLAT_DS) | 3),
        |c| c.mov(ds, ax),
    )?;
    // Conforming code is data for everybody.
    c.load(es, CONFORMING | 3)?;
    c.mov(ecx, dword_ptr(DATA).es())?;
    // Loading sets the accessed bit.
    c.load(es, FRESH)?;
    c.equal("loading a segment marks it accessed", &[(GDT + u32::from(FRESH) + 4, 0x0040_9300)])?;
    // The local table.
    c.mov(eax, u32::from(LDT))?;
    c.lldt(ax)?;
    c.load(es, LOCAL)?;
    c.mov(dword_ptr(0).es(), 0x5ca1_ab1e)?;
    c.equal("a segment of the local table", &[(DATA, 0x5ca1_ab1e)])?;
    let beyond_local = 0x1c_u16;
    c.fault(
        "a selector beyond the local table",
        13,
        beyond_local.into(),
        |c| c.mov(eax, u32::from(beyond_local)),
        |c| c.mov(es, ax),
    )?;
    c.fault("MOV to CS", 6, 0, nothing, |c| c.db(&[0x8e, 0xc8]))?;
    c.fault("a far jump to data", 13, FLAT_DS.into(), nothing, |c| far_jump(c, FLAT_DS, MAIN))?;
    c.fault("a far jump to the null selector", 13, 0, nothing, |c| far_jump(c, 0, MAIN))?;
    c.fault(
        "LTR of a busy task",
        13,
        TSS_SELECTOR.into(),
        |c| c.mov(eax, u32::from(TSS_SELECTOR)),
        |c| c.ltr(ax),
    )
}

fn stacks(c: &mut Code<'_>) -> Result {
    let into_ss = |c: &mut Code<'_>| c.mov(ss, ax);
    for (what, vector, selector) in [
        ("SS must be there", 12, ABSENT),
        ("SS must be writable", 13, READ_ONLY),
        ("SS must have DPL = CPL", 13, USER_DATA),
    ] {
        c.fault(what, vector, selector.into(), move |c| c.mov(eax, u32::from(selector)), into_ss)?;
    }
    c.fault("SS must not be null", 13, 0, |c| c.xor(eax, eax), into_ss)?;
    c.fault("SS must have RPL = CPL", 13, FLAT_DS.into(), |c| c.mov(eax, u32::from(FLAT_DS) | 3), into_ss)?;
    // A 16-bit stack: SP wraps, the upper half of ESP stays (Intel SDM vol. 3, 6.3, B flag).
    c.mov(eax, u32::from(DS_16))?;
    c.mov(ss, ax)?;
    c.mov(esp, 0x7777_0000 | STACK)?;
    c.push(0x55)?;
    c.mov(edx, esp)?;
    c.flat_segments(STACK)?;
    c.cmp(edx, 0x7777_0000 | (STACK - 4))?;
    c.check("a 16-bit stack segment uses SP", |a, l| a.je(l))?;
    c.equal("the push went to SS:SP", &[(STACK - 4, 0x55)])
}

/// LAR, LSL, VERR, VERW, ARPL.
fn questions(c: &mut Code<'_>) -> Result {
    c.mov(ecx, u32::from(SMALL))?;
    c.lsl(edx, ecx)?;
    c.check("LSL of a readable segment sets ZF", |a, l| a.je(l))?;
    c.cmp(edx, LIMIT)?;
    c.check("LSL gives the limit", |a, l| a.je(l))?;
    c.mov(ecx, u32::from(FLAT_DS))?;
    c.lsl(edx, ecx)?;
    c.cmp(edx, -1)?;
    c.check("LSL scales by the granularity", |a, l| a.je(l))?;
    c.mov(ecx, u32::from(READ_ONLY))?;
    c.lar(edx, ecx)?;
    c.and(edx, 0x00f0_ff00)?;
    c.cmp(edx, 0x0040_9100)?;
    c.check("LAR gives the access rights", |a, l| a.je(l))?;
    c.verr(cx)?;
    c.check("VERR of read-only data", |a, l| a.je(l))?;
    c.verw(cx)?;
    c.check("VERW of read-only data", |a, l| a.jne(l))?;
    c.mov(ecx, u32::from(EXECUTE_ONLY))?;
    c.verr(cx)?;
    c.check("VERR of execute-only code", |a, l| a.jne(l))?;
    c.mov(ecx, u32::from(BEYOND))?;
    c.lar(edx, ecx)?;
    c.check("LAR beyond the table", |a, l| a.jne(l))?;
    c.mov(eax, 0x48)?;
    c.mov(ecx, 0x13)?;
    c.arpl(ax, cx)?;
    c.check("ARPL raises an RPL", |a, l| a.je(l))?;
    c.cmp(eax, 0x4b)?;
    c.check("to that of the other", |a, l| a.je(l))
}

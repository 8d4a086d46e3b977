//! Debug registers, single steps, RF, and alignment checks (Intel SDM vol. 3, 7.15, 18.2 and 18.3).

use super::code::nothing;
use super::rig::*;
use iced_x86::code_asm::*;

const TF: u32 = 1 << 8;
const RF: u32 = 1 << 16;
const AC: u32 = 1 << 18;
const CR0_AM: u32 = 1 << 18;
const CR4_DE: u32 = 1 << 3;
const DR6: u32 = DATA + 0x20;
/// DR6 with nothing to tell.
const QUIET: u32 = 0xffff_0ff0;
const BS: u32 = 1 << 14;
const BD: u32 = 1 << 13;
/// R/W and LEN fields of breakpoint 0.
const WRITES: u32 = 1 << 16;
const PORTS: u32 = 2 << 16;
const ACCESSES: u32 = 3 << 16;
const FOUR: u32 = 3 << 18;
/// What breakpoints watch.
const WATCHED: u32 = DATA + 0x40;

pub fn build(rig: &mut Rig) {
    rig.code(32, MAIN, |c| {
        breakpoints(c)?;
        data(c)?;
        steps(c)?;
        resume_flag(c)?;
        alignment(c)?;
        general_detect(c)?;
        c.passed()
    });
}

/// Breakpoint 0 at `address`, with these bits of DR7 besides G0.
fn watch(c: &mut Code<'_>, address: u32, bits: u32) -> Result {
    c.mov(eax, address)?;
    c.mov(dr0, eax)?;
    c.mov(eax, bits | 2)?;
    c.mov(dr7, eax)
}

/// Disables all, checks DR6 and clears it.
fn dr6_is(c: &mut Code<'_>, what: &'static str, bits: u32) -> Result {
    c.xor(eax, eax)?;
    c.mov(dr7, eax)?;
    c.mov(ecx, dr6)?;
    c.mov(dword_ptr(DR6), ecx)?;
    c.mov(dr6, eax)?;
    c.equal(what, &[(DR6, QUIET | bits)])
}

fn breakpoints(c: &mut Code<'_>) -> Result {
    c.xor(eax, eax)?;
    c.mov(dr6, eax)?;
    // An instruction breakpoint is a fault, before the instruction.
    c.until_exception(|c| {
        let here = c.mark();
        watch(c, here.address, 0)?;
        c.mov(ecx, 1)?;
        c.mov(dword_ptr(DATA), here.address)?;
        c.place(here)?;
        c.mov(ecx, 2)
    })?;
    c.mov(eax, dword_ptr(EIP))?;
    c.cmp(eax, dword_ptr(DATA))?;
    c.check("an instruction breakpoint saves the instruction's EIP", |a, l| a.je(l))?;
    c.cmp(ecx, 1)?;
    c.check("before it is executed", |a, l| a.je(l))?;
    c.equal("as vector 1", &[(VECTOR, 1)])?;
    dr6_is(c, "DR6 has B0", 1)?;
    // DR4 and DR5 are DR6 and DR7, unless CR4.DE.
    c.mov(ecx, cr4)?;
    c.or(ecx, CR4_DE as i32)?;
    c.mov(cr4, ecx)?;
    c.fault("DR4 with DE", 6, 0, nothing, |c| c.db(&[0x0f, 0x21, 0xe0]))?;
    c.mov(ecx, cr4)?;
    c.and(ecx, !CR4_DE as i32)?;
    c.mov(cr4, ecx)?;
    c.fault("debug registers are ring 0's", 13, 0, |c| c.user(2), |c| c.mov(ecx, dr0))
}

fn data(c: &mut Code<'_>) -> Result {
    c.mov(dword_ptr(WATCHED), 0)?;
    c.trap(
        "a write to what is watched",
        1,
        |c| watch(c, WATCHED, WRITES | FOUR),
        |c| c.mov(byte_ptr(WATCHED + 3), 7),
    )?;
    c.equal("is done", &[(WATCHED, 0x0700_0000)])?;
    dr6_is(c, "a write: B0", 1)?;
    watch(c, WATCHED, WRITES | FOUR)?;
    c.mov(ecx, dword_ptr(WATCHED))?;
    c.mov(byte_ptr(WATCHED + 4), 7)?;
    c.mov(byte_ptr(WATCHED - 1), 7)?;
    dr6_is(c, "reads, and writes beside it, are not", 0)?;
    c.trap(
        "a read with R/W 3",
        1,
        |c| watch(c, WATCHED, ACCESSES | FOUR),
        |c| c.mov(ecx, dword_ptr(WATCHED - 2)),
    )?;
    dr6_is(c, "a read: B0", 1)?;
    c.trap(
        "a push",
        1,
        |c| {
            watch(c, USER_STACK - 4, WRITES | FOUR)?;
            c.user(2)
        },
        |c| c.push(ecx),
    )?;
    dr6_is(c, "a push: B0", 1)?;
    // REP stops after the iteration that hit.
    c.until_exception(|c| {
        c.mov(edi, WATCHED - 4)?;
        c.mov(ecx, 4)?;
        watch(c, WATCHED, WRITES | FOUR)?;
        c.rep().stosd()
    })?;
    c.cmp(ecx, 2)?;
    c.check("REP stops after the iteration that hits", |a, l| a.je(l))?;
    c.equal("as a trap", &[(VECTOR, 1)])?;
    dr6_is(c, "in REP: B0", 1)?;
    c.mov(ecx, cr4)?;
    c.or(ecx, CR4_DE as i32)?;
    c.mov(cr4, ecx)?;
    c.trap("a port, with DE", 1, |c| watch(c, 0x80, PORTS), |c| c.out(0x80, al))?;
    dr6_is(c, "a port: B0", 1)
}

fn steps(c: &mut Code<'_>) -> Result {
    let trace = |c: &mut Code<'_>| {
        c.push((TF | 2) as i32)?;
        c.popfd()
    };
    c.trap("TF traps after the next instruction", 1, trace, |c| c.mov(ecx, 5))?;
    c.equal("with TF in the frame", &[(EFLAGS, TF | 2)])?;
    dr6_is(c, "a step: BS", BS)?;
    // MOV SS holds the trap off for one instruction.
    c.until_exception(|c| {
        c.mov(eax, u32::from(FLAT_DS))?;
        c.mov(ecx, 1)?;
        trace(c)?;
        c.mov(ss, ax)?;
        c.mov(ecx, 2)?;
        c.mov(ecx, 3)
    })?;
    c.cmp(ecx, 2)?;
    c.check("MOV SS holds the step off for one instruction", |a, l| a.je(l))?;
    dr6_is(c, "after MOV SS: BS", BS)?;
    // INT n clears TF: its handler is not stepped, and nothing is pending behind it.
    c.trap("INT n is not stepped into", USER_INT, trace, |c| c.interrupt(USER_INT))?;
    dr6_is(c, "INT n: no BS", 0)?;
    c.trap("a step in ring 3", 1, |c| c.user(2 | TF), |c| c.mov(ecx, 5))?;
    dr6_is(c, "a step in ring 3: BS", BS)
}

fn resume_flag(c: &mut Code<'_>) -> Result {
    // IRETD with RF passes over the breakpoint at its target, once.
    c.until_exception(|c| {
        let here = c.mark();
        watch(c, here.address, 0)?;
        c.mov(ecx, 0)?;
        c.push((RF | 2) as i32)?;
        c.push(i32::from(FLAT_CS))?;
        c.push(here.address as i32)?;
        c.iretd()?;
        let again = u64::from(here.address);
        c.place(here)?;
        c.inc(ecx)?;
        c.jmp(again)
    })?;
    c.cmp(ecx, 1)?;
    c.check("RF passes over a breakpoint once", |a, l| a.je(l))?;
    dr6_is(c, "then B0", 1)?;
    // Faults push RF set, so that what is returned to does not hit again; traps do not.
    let clear = |c: &mut Code<'_>| {
        c.push(2)?;
        c.popfd()
    };
    c.trap("a trap ...", 3, clear, |c| c.int3())?;
    c.equal("... pushes no RF", &[(EFLAGS, 2)])?;
    c.fault("a fault ...", 6, 0, clear, |c| c.ud2())?;
    c.equal("... pushes RF", &[(EFLAGS, RF | 2)])
}

fn alignment(c: &mut Code<'_>) -> Result {
    let user = |c: &mut Code<'_>| c.user(2 | AC);
    c.trap(
        "without AM nothing is checked",
        USER_INT,
        |c| {
            c.user(2 | AC)?;
            c.mov(ecx, dword_ptr(WATCHED + 1))
        },
        |c| c.interrupt(USER_INT),
    )?;
    c.mov(eax, cr0)?;
    c.or(eax, CR0_AM as i32)?;
    c.mov(cr0, eax)?;
    c.fault("a dword at an odd address", 17, 0, user, |c| c.mov(ecx, dword_ptr(WATCHED + 1)))?;
    c.fault("a word at an odd address, written", 17, 0, user, |c| c.mov(word_ptr(WATCHED + 1), cx))?;
    c.fault(
        "a push to an odd stack",
        17,
        0,
        |c| {
            c.user(2 | AC)?;
            c.dec(esp)
        },
        |c| c.push(ecx),
    )?;
    c.trap(
        "what is aligned",
        USER_INT,
        |c| {
            c.user(2 | AC)?;
            c.mov(ecx, dword_ptr(WATCHED + 4))?;
            c.mov(cl, byte_ptr(WATCHED + 1))
        },
        |c| c.interrupt(USER_INT),
    )?;
    c.trap(
        "without AC nothing is checked",
        USER_INT,
        |c| {
            c.user(2)?;
            c.mov(ecx, dword_ptr(WATCHED + 1))
        },
        |c| c.interrupt(USER_INT),
    )?;
    // AC is ring 3's: ring 0 is never checked.
    c.push((AC | 2) as i32)?;
    c.popfd()?;
    c.mov(ecx, dword_ptr(WATCHED + 1))?;
    c.push(2)?;
    c.popfd()
}

fn general_detect(c: &mut Code<'_>) -> Result {
    c.fault(
        "GD",
        1,
        0,
        |c| {
            c.mov(eax, 0x2000)?;
            c.mov(dr7, eax)
        },
        |c| c.mov(ecx, dr0),
    )?;
    c.mov(ecx, dr7)?;
    c.test(ecx, 0x2000)?;
    c.check("GD is clear in the handler", |a, l| a.je(l))?;
    dr6_is(c, "DR6 has BD", BD)
}

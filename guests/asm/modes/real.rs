//! Real mode: interrupts through the vector table, addresses that wrap, segments that stay large.

use super::code::nothing;
use super::rig::*;
use iced_x86::code_asm::*;

const BACK: u32 = MORE;
/// Where the loader has put the prologue, and what it begins with: CLI, CLD.
const ONE_MIB: u32 = 0x10_0000;

pub fn build(rig: &mut Rig) {
    rig.code(32, MAIN, |c| {
        // Segments that 32-bit code had loaded would keep their limits.
        vectors(c)?;
        c.go_real(CODE16)
    });
    rig.code(16, CODE16, |c| {
        interrupts(c)?;
        faults(c)?;
        segments(c)?;
        c.mov(dword_ptr(DATA), 0)?;
        c.go_protected(BACK)
    });
    rig.code(32, BACK, |c| {
        // Unreal mode: a limit loaded in protected mode lasts in real mode (Intel SDM vol. 3, 11.9.2).
        c.mov(byte_ptr(DATA), 0x5a)?;
        c.go_real(CODE16 + 0x1800)
    });
    rig.code(16, CODE16 + 0x1800, |c| {
        c.cli()?;
        c.mov(eax, cr0)?;
        c.or(al, 1)?;
        c.mov(cr0, eax)?;
        c.mov(bx, u32::from(FLAT_DS))?;
        c.mov(ds, bx)?;
        c.and(al, 0xfeu32)?;
        c.mov(cr0, eax)?;
        c.mov(ebx, ONE_MIB)?;
        c.cmp(word_ptr(ebx), 0xfcfau32)?;
        c.check("unreal mode: a 4 GiB limit lasts", |a, l| a.je(l))?;
        c.mov(ax, 0x60u32)?;
        c.mov(ds, ax)?;
        c.mov(ebx, ONE_MIB - 0x600)?;
        c.cmp(word_ptr(ebx), 0xfcfau32)?;
        c.check("unreal mode: a segment load changes the base only", |a, l| a.je(l))?;
        c.xor(ax, ax)?;
        c.mov(ds, ax)?;
        c.passed()
    });
}

/// The vector table, whose entries are the rig's.
pub fn vectors(c: &mut Code<'_>) -> Result {
    c.mov(eax, 0x8000)?;
    c.xor(edi, edi)?;
    c.mov(ecx, 0x30)?;
    let mut next = c.create_label();
    c.set_label(&mut next)?;
    c.stosd()?;
    c.add(eax, 8)?;
    c.dec(ecx)?;
    c.jnz(next)
}

fn interrupts(c: &mut Code<'_>) -> Result {
    // The frame: FLAGS, CS, IP of 16 bits each; IF, TF and AC go (Intel SDM vol. 3, 22.1.4).
    c.trap(
        "INT n saves the next IP",
        0x21,
        |c| {
            c.push(0x0ad7)?;
            c.popf()?;
            c.mov(edx, 0xffff_ffffu32)
        },
        |c| c.int(0x21),
    )?;
    c.equal(
        "INT n: CS, FLAGS, and 6 bytes of stack",
        &[(CS, 0), (EFLAGS, 0x0ad7), (HANDLER_ESP, REAL_STACK - 6)],
    )?;
    c.trap("INT3", 3, nothing, |c| c.int3())?;
    c.trap(
        "INTO with OF",
        4,
        |c| {
            c.push(0x0802)?;
            c.popf()
        },
        |c| CodeAssembler::into(c),
    )?;
    // A handler of one's own: IF is clear in it, IRET brings the flags back.
    let (handler, after) = (c.mark(), c.create_label());
    c.mov(dword_ptr(0x80 * 4), handler.address)?;
    c.push(0x0a96)?;
    c.popf()?;
    c.int(0x80)?;
    c.pushf()?;
    c.pop(dx)?;
    c.jmp(after)?;
    c.place(handler)?;
    c.pushf()?;
    c.pop(cx)?;
    c.iret()?;
    let mut after = after;
    c.set_label(&mut after)?;
    c.cli()?;
    c.cmp(cx, 0x0896)?;
    c.check("IF is clear in a handler", |a, l| a.je(l))?;
    c.cmp(dx, 0x0a96)?;
    c.check("IRET restores the flags", |a, l| a.je(l))?;
    // A table that ends at vector 0x20: beyond it, #GP, whose vector is within.
    c.mov(dword_ptr(DATA), 0x83)?;
    c.mov(dword_ptr(DATA + 4), 0)?;
    c.fault("INT beyond the table's limit is #GP", 13, 0, |c| c.lidt(ptr(DATA)), |c| c.int(0x22))?;
    c.mov(dword_ptr(DATA), 0x3ff)?;
    c.lidt(ptr(DATA))
}

fn faults(c: &mut Code<'_>) -> Result {
    c.fault(
        "#DE saves the IP of DIV",
        0,
        0,
        |c| {
            c.mov(ax, 1)?;
            c.xor(dx, dx)?;
            c.xor(cx, cx)
        },
        |c| c.div(cx),
    )?;
    c.fault("#UD", 6, 0, nothing, |c| c.ud2())?;
    c.mov(dword_ptr(DATA), 0x0010_0005)?;
    c.fault("BOUND below", 5, 0, |c| c.mov(ax, 4), |c| c.bound(ax, dword_ptr(DATA)))?;
    c.fault("#UD of ARPL, which real mode lacks", 6, 0, nothing, |c| c.arpl(ax, bx))?;
    c.fault("#UD of LLDT", 6, 0, nothing, |c| c.lldt(ax))?;
    c.fault("#UD of STR", 6, 0, nothing, |c| c.str(ax))?;
    c.fault("LOCK on a register form is #UD", 6, 0, nothing, |c| c.db(&[0xf0, 0x01, 0xc0]))
}

fn segments(c: &mut Code<'_>) -> Result {
    // 0xffff:0x0010 is 1 MiB, with the A20 line on.
    c.mov(ax, 0xffffu32)?;
    c.mov(es, ax)?;
    c.cmp(word_ptr(0x10).es(), 0xfcfau32)?;
    c.check("0xffff:0x10 is 1 MiB", |a, l| a.je(l))?;
    // 16-bit addresses wrap within the segment: [bx+si] is taken modulo 64 KiB.
    c.mov(byte_ptr(DATA), 0x77)?;
    c.mov(bx, 0xff00u32)?;
    c.mov(si, DATA + 0x100)?;
    c.cmp(byte_ptr(bx + si), 0x77)?;
    c.check("16-bit addresses wrap", |a, l| a.je(l))?;
    // SP wraps from 0 to 0xfffe; the upper half of ESP stays. The stack is elsewhere: it would be in the image.
    c.mov(ax, 0x2000u32)?;
    c.mov(ss, ax)?;
    c.mov(esp, 0x1234_0000)?;
    c.push(0x4321)?;
    c.mov(ecx, esp)?;
    c.pop(dx)?;
    c.mov(ebx, esp)?;
    c.real_segments()?;
    c.cmp(ecx, 0x1234_fffe)?;
    c.check("PUSH at SP 0 wraps to 0xfffe and keeps ESP's upper half", |a, l| a.je(l))?;
    c.cmp(ebx, 0x1234_0000)?;
    c.check("POP wraps back", |a, l| a.je(l))?;
    // LOOP and string instructions count in CX and SI, unless told otherwise.
    c.mov(ecx, 0x0001_0002)?;
    c.mov(esi, 0x0005_0000 + DATA)?;
    c.rep().lodsb()?;
    c.cmp(ecx, 0x0001_0000)?;
    c.check("REP counts in CX", |a, l| a.je(l))?;
    c.cmp(esi, 0x0005_0002 + DATA)?;
    c.check("LODSB advances SI only", |a, l| a.je(l))?;
    // LMSW sets PE but cannot clear it; SMSW shows it.
    c.smsw(ax)?;
    c.test(al, 1)?;
    c.check("SMSW shows real mode", |a, l| a.je(l))?;
    // PUSHFD and IRETD work with an operand-size prefix.
    c.pushfd()?;
    c.or(dword_ptr(0x1ffc), 0x20_0000)?;
    c.popfd()?;
    c.pushfd()?;
    c.pop(eax)?;
    c.test(eax, 0x20_0000)?;
    c.check("POPFD changes ID", |a, l| a.jne(l))
}

//! Virtual-8086 mode under a monitor (Intel SDM vol. 3, 22.2 and 22.3): what faults, what the frames are, reflection of
//! interrupts, IOPL.

use super::rig::*;
use iced_x86::code_asm::*;

const VM: u32 = 1 << 17;
const IOPL_3: u32 = 3 << 12;
/// Where the 8086 code lies: its segment begins here, so its IPs are small.
const CODE: u32 = CODE16;
const SEGMENT: u16 = (CODE >> 4) as u16;
/// The guest's stack: SS is this, SP [`SP`].
const STACK_SEGMENT: u16 = 0x100;
const SP: u16 = 0x800;
/// Where an 8086 program of its own begins.
const REFLECTED: u32 = CODE16 + 0x400;
const HANDLER: u32 = CODE16 + 0x600;
const MONITOR: u32 = MORE;

pub fn build(rig: &mut Rig) {
    rig.code(32, MAIN, |c| {
        faults(c)?;
        with_iopl(c)?;
        addresses(c)?;
        reflection(c)?;
        c.passed()
    });
    // One instruction each, 16 bytes apart.
    let pieces: [&[u8]; 14] = [
        &[0xcd, 0x21],                   // 0: int 0x21
        &[0xcc],                         // 1: int3
        &[0xfa],                         // 2: cli
        &[0x9c],                         // 3: pushf
        &[0xcf],                         // 4: iret
        &[0xf4],                         // 5: hlt
        &[0x0f, 0x01, 0xe0],             // 6: smsw ax
        &[0x0f, 0x00, 0xd0],             // 7: lldt ax
        &[0x0f, 0x20, 0xc0],             // 8: mov eax, cr0
        &[0xe6, 0x81],                   // 9: out 0x81, al
        &[0x0f, 0x0b],                   // 10: ud2
        &[0xf7, 0xf1],                   // 11: div cx
        &[0xa1, 0xff, 0xff],             // 12: mov ax, [0xffff]
        &[0xfa, 0x9c, 0x58, 0x0f, 0x0b], // 13: cli; pushf; pop ax; ud2
    ];
    for (i, bytes) in (0u32..).zip(pieces) {
        rig.put(CODE + i * 16, bytes);
    }
    // out 0x80, al is in the bitmap.
    rig.put(TSS + 0x68 + 0x10, &[0xfe]);
    rig.put(CODE + 14 * 16, &[0xe6, 0x80, 0x0f, 0x0b]);
    // mov ecx, [0x10]; ud2
    rig.put(CODE + CODE_AT_LOAD, &[0x66, 0x8b, 0x0e, 0x10, 0, 0x0f, 0x0b]);
    rig.code(16, REFLECTED, |c| {
        c.mov(cx, 0x1111u32)?;
        c.int(0x21)?;
        c.mov(dx, cx)?;
        c.hlt()
    });
    rig.code(16, HANDLER, |c| {
        // What it finds on its stack, for the monitor to check.
        c.mov(bp, sp)?;
        c.mov(si, word_ptr(bp))?;
        c.mov(di, word_ptr(bp + 2))?;
        c.mov(bx, word_ptr(bp + 4))?;
        c.inc(cx)?;
        c.iret()
    });
    // #GP of the reflecting monitor: INT n goes to the guest's vector table, IRET is emulated, HLT ends it.
    rig.code(32, MONITOR, monitor);
}

/// Enters virtual-8086 mode at piece `n`, with these EFLAGS besides VM.
fn enter(c: &mut Code<'_>, n: u32, eflags: u32) -> Result {
    enter_at(c, SEGMENT, n * 16, eflags)
}

fn enter_at(c: &mut Code<'_>, segment: u16, ip: u32, eflags: u32) -> Result {
    for selector in [0x4444, 0x3333, 0x2222, 0x1111, STACK_SEGMENT] {
        c.push(i32::from(selector))?;
    }
    c.push(i32::from(SP))?;
    c.push((VM | 2 | eflags) as i32)?;
    c.push(i32::from(segment))?;
    c.push(ip as i32)?;
    c.iretd()
}

fn piece(
    c: &mut Code<'_>,
    what: &'static str,
    (n, eflags): (u32, u32),
    (vector, error): (u8, u32),
    ip: u32,
) -> Result {
    c.until_exception(|c| enter(c, n, eflags))?;
    c.equal(what, &[(VECTOR, vector.into()), (ERROR, error), (EIP, n * 16 + ip), (CS, SEGMENT.into())])
}

fn faults(c: &mut Code<'_>) -> Result {
    // With IOPL below 3 all that touches IF is the monitor's.
    for (what, n) in [("INT n", 0), ("CLI", 2), ("PUSHF", 3), ("IRET", 4), ("HLT", 5), ("MOV from CR0", 8)] {
        piece(c, what, (n, 0x200), (13, 0), 0)?;
    }
    // RF, which faults set, is another guest's concern.
    c.and(dword_ptr(EFLAGS), !0x1_0000)?;
    c.equal(
        "the frame: EFLAGS, ESP, SS",
        &[(EFLAGS, VM | 0x202), (OUTER, SP.into()), (OUTER + 4, STACK_SEGMENT.into())],
    )?;
    c.equal(
        "ES, DS, FS and GS",
        &[(OUTER + 8, 0x1111), (OUTER + 12, 0x2222), (OUTER + 16, 0x3333), (OUTER + 20, 0x4444)],
    )?;
    c.equal(
        "which are null in the handler, on the stack of the TSS",
        &[(HANDLER_DS, 0), (HANDLER_ESP, RING0_STACK - 40)],
    )?;
    piece(c, "INT3 goes through the IDT", (1, 0), (3, 0), 1)?;
    piece(c, "LLDT is #UD", (7, 0), (6, 0), 0)?;
    piece(c, "a port that is not in the bitmap", (9, IOPL_3), (13, 0), 0)?;
    piece(c, "a port that is, then #UD", (14, 0), (6, 0), 2)?;
    piece(c, "#UD", (10, 0), (6, 0), 0)?;
    c.xor(ecx, ecx)?;
    piece(c, "#DE", (11, 0), (0, 0), 0)
}

fn with_iopl(c: &mut Code<'_>) -> Result {
    // IOPL 3: INT n needs a gate of DPL 3 and goes through the IDT.
    piece(c, "INT n with IOPL 3 through a gate of DPL 3", (0, IOPL_3), (0x21, 0), 2)?;
    piece(c, "CLI and PUSHF with IOPL 3", (13, IOPL_3 | 0x200), (6, 0), 3)?;
    c.and(dword_ptr(EFLAGS), !0x1_0000)?;
    c.equal("CLI cleared IF", &[(EFLAGS, VM | IOPL_3 | 2)])?;
    c.movzx(eax, ax)?;
    c.cmp(eax, IOPL_3 | 2)?;
    c.check("PUSHF pushed the flags", |a, l| a.je(l))
}

fn addresses(c: &mut Code<'_>) -> Result {
    // Segments are their selectors times 16; SMSW needs no privilege.
    c.mov(dword_ptr(0x2222 * 16 + 0x10), 0x4afe_f00d)?;
    c.until_exception(|c| enter_at(c, SEGMENT, CODE_AT_LOAD, 0))?;
    c.cmp(ecx, 0x4afe_f00d)?;
    c.check("DS is at its selector times 16", |a, l| a.je(l))
}

const CODE_AT_LOAD: u32 = 15 * 16;

fn reflection(c: &mut Code<'_>) -> Result {
    // The guest's vector 0x21, and the monitor's #GP.
    c.mov(dword_ptr(0x21 * 4), HANDLER - CODE + u32::from(SEGMENT) * 0x1_0000)?;
    c.mov(dword_ptr(IDT + 13 * 8), (gate(FLAT_CS, MONITOR, 0x8e, 0)) as u32)?;
    c.mov(dword_ptr(IDT + 13 * 8 + 4), (gate(FLAT_CS, MONITOR, 0x8e, 0) >> 32) as u32)?;
    c.until_exception(|c| enter_at(c, SEGMENT, REFLECTED - CODE, 0x200))?;
    c.equal("the monitor reflected and ended", &[(VECTOR, USER_INT.into())])?;
    c.cmp(dx, 0x1112u32)?;
    c.check("the 8086 handler ran and returned", |a, l| a.je(l))?;
    c.cmp(si, REFLECTED - CODE + 5)?;
    c.check("it found the IP", |a, l| a.je(l))?;
    c.cmp(di, u32::from(SEGMENT))?;
    c.check("the CS", |a, l| a.je(l))?;
    c.cmp(bx, 0x202u32)?;
    c.check("and the flags", |a, l| a.je(l))
}

/// Stack: error code, EIP, CS, EFLAGS, ESP, SS, ES, DS, FS, GS. Keeps the 8086's registers.
fn monitor(c: &mut Code<'_>) -> Result {
    let [mut int, mut iret, mut no] = std::array::from_fn(|_| c.create_label());
    c.add(esp, 4)?;
    c.pushad()?;
    c.load(ds, FLAT_DS)?;
    // The instruction, and the stack's linear address.
    let frame = 32;
    c.movzx(eax, word_ptr(esp + frame + 4))?;
    c.shl(eax, 4)?;
    c.add(eax, dword_ptr(esp + frame))?;
    c.movzx(ecx, word_ptr(eax))?;
    c.movzx(edx, word_ptr(esp + frame + 16))?;
    c.shl(edx, 4)?;
    c.movzx(ebx, word_ptr(esp + frame + 12))?;
    c.add(edx, ebx)?;
    c.cmp(cl, 0xcdu32)?;
    c.je(int)?;
    c.cmp(cl, 0xcfu32)?;
    c.je(iret)?;
    c.cmp(cl, 0xf4u32)?;
    c.jne(no)?;
    c.popad()?;
    c.int(u32::from(USER_INT))?;
    c.set_label(&mut int)?;
    c.sub(dword_ptr(esp + frame + 12), 6)?;
    c.mov(eax, dword_ptr(esp + frame))?;
    c.add(eax, 2)?;
    c.mov(word_ptr(edx - 6), ax)?;
    c.mov(eax, dword_ptr(esp + frame + 4))?;
    c.mov(word_ptr(edx - 4), ax)?;
    c.mov(eax, dword_ptr(esp + frame + 8))?;
    c.mov(word_ptr(edx - 2), ax)?;
    c.and(dword_ptr(esp + frame + 8), !0x300)?;
    c.movzx(ecx, ch)?;
    c.movzx(eax, word_ptr(ecx * 4))?;
    c.mov(dword_ptr(esp + frame), eax)?;
    c.movzx(eax, word_ptr(ecx * 4 + 2))?;
    c.mov(dword_ptr(esp + frame + 4), eax)?;
    c.popad()?;
    c.iretd()?;
    c.set_label(&mut iret)?;
    c.movzx(eax, word_ptr(edx))?;
    c.mov(dword_ptr(esp + frame), eax)?;
    c.movzx(eax, word_ptr(edx + 2))?;
    c.mov(dword_ptr(esp + frame + 4), eax)?;
    c.movzx(eax, word_ptr(edx + 4))?;
    c.and(eax, !IOPL_3)?;
    c.or(eax, VM)?;
    c.mov(dword_ptr(esp + frame + 8), eax)?;
    c.add(dword_ptr(esp + frame + 12), 6)?;
    c.popad()?;
    c.iretd()?;
    c.set_label(&mut no)?;
    c.popad()?;
    c.ud2()
}

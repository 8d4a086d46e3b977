//! Into long mode and back: compatibility mode, frames of 64 bits, IST, what 64-bit mode lacks, PCID and INVPCID (Intel
//! SDM vol. 3, 5.10, 7.14 and 11.8.5).

use super::code::nothing;
use super::rig::*;
use iced_x86::code_asm::*;
use iced_x86::{Code as Opcode, Instruction};

const PML4: u32 = PAGES;
const PDPT: u32 = PAGES + 0x1000;
const DIRECTORY: u32 = PAGES + 0x2000;
const TABLE: u32 = PAGES + 0x3000;
const IDT64: u32 = PAGES + 0x4000;
const TSS64: u32 = PAGES + 0x5000;
const IST_STACK: u32 = PAGES + 0x7000;
/// Frames that the page at [`SHOWN`] shows.
const FRAMES: u32 = PAGES + 0x8000;
const SHOWN: u32 = 0x20_0000;
const STUBS64: u32 = CODE64;
const COMMON64: u32 = CODE64 + 0x400;
const MAIN64: u32 = CODE64 + 0x800;
const COMPATIBILITY: u32 = MORE;
const BACK: u32 = MORE + 0x400;
const TSS64_SELECTOR: u16 = FREE;
const IST_VECTOR: u8 = 0x21;
/// Pseudo-descriptor of the IDT, and INVPCID's operand.
const OPERAND: u32 = DATA + 0x40;

const CR0_PG: u32 = 1 << 31;
const CR4_PAE: u32 = 1 << 5;
const CR4_PCIDE: u32 = 1 << 17;
const MSR_EFER: u32 = 0xc000_0080;
const LME: u32 = 1 << 8;
const LMA: u32 = 1 << 10;

pub fn build(rig: &mut Rig) {
    rig.descriptor(TSS64_SELECTOR, descriptor(TSS64, 0x67, 0x89, 0));
    stubs(rig);
    rig.code(32, MAIN, |c| {
        tables(c)?;
        enter(c)
    });
    rig.code(64, MAIN64, |c| {
        c.flat_segments(STACK)?;
        c.mov(eax, u32::from(TSS64_SELECTOR))?;
        c.ltr(ax)?;
        frames(c)?;
        lacking(c)?;
        compatibility(c)?;
        pcid(c)?;
        strict(c)?;
        // A far return to compatibility mode, and from there out of long mode.
        c.push(i32::from(FLAT_CS))?;
        c.push(BACK as i32)?;
        c.add_instruction(Instruction::with(Opcode::Retfq))
    });
    // 0x40 is INC EAX here, and a REX prefix in 64-bit mode.
    rig.code(32, COMPATIBILITY, |c| {
        c.mov(ecx, 7)?;
        c.db(&[0x41])?;
        c.ud2()
    });
    rig.code(32, BACK, |c| {
        c.mov(eax, cr0)?;
        c.and(eax, !CR0_PG as i32)?;
        c.mov(cr0, eax)?;
        c.mov(ecx, MSR_EFER)?;
        c.rdmsr()?;
        c.mov(dword_ptr(DATA), eax)?;
        c.equal("clearing PG clears LMA and leaves LME", &[(DATA, LME)])?;
        c.xor(eax, eax)?;
        c.wrmsr()?;
        c.mov(cr4, eax)?;
        // A legacy exception again.
        c.lidt(ptr(POINTERS + 8))?;
        c.fault("#UD back in protected mode", 6, 0, nothing, |c| c.ud2())?;
        c.equal("with a frame of 12 bytes", &[(HANDLER_ESP, STACK - 16), (CS, FLAT_CS.into())])?;
        c.go_real(CODE16)
    });
    rig.code(16, CODE16, |c| {
        c.mov(eax, cr0)?;
        c.test(al, 1)?;
        c.check("and on to real mode", |a, l| a.je(l))?;
        c.passed()
    });
}

/// Handlers of 64-bit code. They record the low halves of what they find, and lose RAX.
fn stubs(rig: &mut Rig) {
    for vector in 0..0x30u32 {
        rig.code(64, STUBS64 + vector * 16, |c| {
            if vector >= 32 || WITH_ERROR_CODE >> vector & 1 == 0 {
                c.push(0)?;
            }
            c.push(vector as i32)?;
            c.jmp(u64::from(COMMON64))
        });
    }
    rig.code(64, COMMON64, |c| {
        c.lea(rax, ptr(rsp + 8))?;
        c.mov(dword_ptr(HANDLER_ESP), eax)?;
        for slot in 0..7u32 {
            c.pop(rax)?;
            c.mov(dword_ptr(VECTOR + slot * 4), eax)?;
        }
        c.flat_segments(STACK)?;
        c.mov(eax, dword_ptr(RESUME))?;
        c.mov(dword_ptr(RESUME), 0)?;
        let mut expected = c.create_label();
        c.test(eax, eax)?;
        c.jnz(expected)?;
        c.mov(al, byte_ptr(VECTOR))?;
        c.or(al, 0x40u32)?;
        c.out(0xf4, al)?;
        c.set_label(&mut expected)?;
        c.jmp(rax)
    });
}

/// The first 2 MiB and [`SHOWN`] one to one; gates; the task state.
fn tables(c: &mut Code<'_>) -> Result {
    for (at, value) in [
        (PML4, PDPT | 7),
        (PDPT, DIRECTORY | 7),
        (DIRECTORY, 0x87),
        (DIRECTORY + 8, TABLE | 7),
        (TABLE, FRAMES | 7),
        (FRAMES, 0x1111),
        (FRAMES + 0x1000, 0x2222),
        (TSS64 + 0x24, IST_STACK),
        (TSS64 + 0x64, 0x68 << 16),
    ] {
        c.mov(dword_ptr(at), value)?;
    }
    let mut next = c.create_label();
    c.mov(edi, IDT64)?;
    c.mov(eax, u32::from(CS_64) << 16 | (STUBS64 & 0xffff))?;
    c.mov(ecx, 0x30)?;
    c.set_label(&mut next)?;
    c.mov(dword_ptr(edi), eax)?;
    c.mov(dword_ptr(edi + 4), (STUBS64 & 0xffff_0000) | 0x8e00)?;
    c.add(edi, 16)?;
    c.add(eax, 16)?;
    c.dec(ecx)?;
    c.jnz(next)?;
    c.mov(byte_ptr(IDT64 + u32::from(IST_VECTOR) * 16 + 4), 1)?;
    c.mov(dword_ptr(OPERAND), ((0x300 - 1) | (IDT64 & 0xffff) << 16) as i32)?;
    c.mov(dword_ptr(OPERAND + 4), IDT64 >> 16)
}

fn enter(c: &mut Code<'_>) -> Result {
    c.mov(eax, CR4_PAE)?;
    c.mov(cr4, eax)?;
    c.mov(eax, PML4)?;
    c.mov(cr3, eax)?;
    c.mov(ecx, MSR_EFER)?;
    c.rdmsr()?;
    c.or(eax, LME as i32)?;
    c.wrmsr()?;
    c.mov(eax, cr0)?;
    c.or(eax, CR0_PG as i32)?;
    c.mov(cr0, eax)?;
    // Compatibility mode: the code segment is still one of 32 bits.
    c.rdmsr()?;
    c.test(eax, LMA as i32)?;
    c.check("PG with LME sets LMA", |a, l| a.jne(l))?;
    c.lidt(ptr(OPERAND))?;
    far_jump(c, CS_64, MAIN64)
}

fn frames(c: &mut Code<'_>) -> Result {
    // SS and RSP always, at 16 bytes (7.14.2): 5 quadwords below what was aligned.
    c.fault(
        "#UD in 64-bit mode",
        6,
        0,
        |c| {
            c.mov(esp, STACK - 3)?;
            c.stc()
        },
        |c| c.ud2(),
    )?;
    c.equal(
        "a frame of 40 bytes at 16",
        &[
            (HANDLER_ESP, STACK - 16 - 48),
            (OUTER, STACK - 3),
            (OUTER + 4, FLAT_DS.into()),
            (CS, CS_64.into()),
        ],
    )?;
    c.trap("INT n by IST", IST_VECTOR, nothing, |c| c.interrupt(IST_VECTOR))?;
    c.equal("begins at the IST's stack", &[(HANDLER_ESP, IST_STACK - 48), (OUTER, STACK)])?;
    c.fault(
        "#GP of what is not canonical",
        13,
        0,
        |c| c.mov(rbx, 1u64 << 47),
        |c| c.mov(ecx, dword_ptr(rbx)),
    )?;
    c.equal("has an error code, so 48 bytes", &[(HANDLER_ESP, STACK - 48)])?;
    c.fault("#PF", 14, 2, nothing, |c| c.mov(dword_ptr(SHOWN + 0x1000), ecx))?;
    c.mov(rcx, cr2)?;
    c.cmp(ecx, (SHOWN + 0x1000) as i32)?;
    c.check("and CR2", |a, l| a.je(l))
}

fn lacking(c: &mut Code<'_>) -> Result {
    for (what, bytes) in [
        ("PUSH ES", &[0x06][..]),
        ("AAA", &[0x37]),
        ("a direct far jump", &[0xea, 0, 0, 0, 0, 8, 0]),
        ("PUSHA", &[0x60]),
        ("BOUND", &[0x62, 0x00, 0, 0, 0, 0]),
        ("INTO", &[0xce]),
        ("LES", &[0xc4, 0x00, 0, 0, 0, 0]),
    ] {
        c.fault(what, 6, 0, |c| c.mov(eax, DATA), |c| c.db(bytes))?;
    }
    Ok(())
}

fn compatibility(c: &mut Code<'_>) -> Result {
    c.until_exception(|c| {
        c.push(i32::from(FLAT_CS))?;
        c.push(COMPATIBILITY as i32)?;
        c.add_instruction(Instruction::with(Opcode::Retfq))
    })?;
    c.cmp(ecx, 8)?;
    c.check("compatibility mode decodes as 32 bits do", |a, l| a.je(l))?;
    c.equal(
        "its exceptions come by the long IDT, with SS and ESP",
        &[
            (VECTOR, 6),
            (EIP, COMPATIBILITY + 6),
            (CS, FLAT_CS.into()),
            (OUTER, STACK),
            (OUTER + 4, FLAT_DS.into()),
            (HANDLER_ESP, STACK - 48),
        ],
    )
}

/// Where CPUID announces both.
fn pcid(c: &mut Code<'_>) -> Result {
    let mut none = c.create_label();
    c.mov(eax, 1)?;
    c.cpuid()?;
    c.bt(ecx, 17)?;
    c.jnc(none)?;
    c.mov(eax, 7)?;
    c.xor(ecx, ecx)?;
    c.cpuid()?;
    c.bt(ebx, 10)?;
    c.jnc(none)?;
    c.fault(
        "PCIDE while CR3 has low bits",
        13,
        0,
        |c| {
            c.mov(eax, PML4 | 8)?;
            c.mov(cr3, rax)?;
            c.mov(edx, CR4_PAE | CR4_PCIDE)
        },
        |c| c.mov(cr4, rdx),
    )?;
    c.mov(eax, PML4)?;
    c.mov(cr3, rax)?;
    c.mov(edx, CR4_PAE | CR4_PCIDE)?;
    c.mov(cr4, rdx)?;
    c.fault(
        "clearing PG in 64-bit mode, and with PCIDE",
        13,
        0,
        |c| {
            c.mov(rdx, cr0)?;
            c.btr(edx, 31)
        },
        |c| c.mov(cr0, rdx),
    )?;
    // The page is seen under PCID 1 and changed under 2; INVPCID of 1's address is enough to see that under 1.
    c.mov(eax, PML4 | 1)?;
    c.mov(cr3, rax)?;
    c.mov(ecx, dword_ptr(SHOWN))?;
    c.mov(eax, PML4 | 2)?;
    c.mov(cr3, rax)?;
    c.mov(dword_ptr(TABLE), (FRAMES + 0x1000) | 7)?;
    c.mov(qword_ptr(OPERAND), 1)?;
    c.mov(qword_ptr(OPERAND + 8), SHOWN as i32)?;
    c.xor(ebx, ebx)?;
    c.invpcid(rbx, xmmword_ptr(OPERAND))?;
    c.mov(rax, 1u64 << 63 | u64::from(PML4) | 1)?;
    c.mov(cr3, rax)?;
    c.cmp(dword_ptr(SHOWN), 0x2222)?;
    c.check("INVPCID of an address of another PCID", |a, l| a.je(l))?;
    c.mov(rcx, cr3)?;
    c.cmp(ecx, (PML4 | 1) as i32)?;
    c.check("CR3 reads without bit 63", |a, l| a.je(l))?;
    for kind in 1..4u32 {
        c.mov(ebx, kind)?;
        c.invpcid(rbx, xmmword_ptr(OPERAND))?;
    }
    c.fault(
        "INVPCID of an unknown kind",
        13,
        0,
        |c| c.mov(ebx, 4),
        |c| c.invpcid(rbx, xmmword_ptr(OPERAND)),
    )?;
    c.fault(
        "INVPCID of a PCID with reserved bits",
        13,
        0,
        |c| {
            c.mov(qword_ptr(OPERAND), 0x1000)?;
            c.xor(ebx, ebx)
        },
        |c| c.invpcid(rbx, xmmword_ptr(OPERAND)),
    )?;
    c.mov(eax, PML4)?;
    c.mov(cr3, rax)?;
    c.mov(edx, CR4_PAE)?;
    c.mov(cr4, rdx)?;
    c.set_label(&mut none)
}

/// What QEMU's TCG does not do.
fn strict(c: &mut Code<'_>) -> Result {
    c.fault(
        "#SS where it is the stack's",
        12,
        0,
        |c| c.mov(rbp, 1u64 << 47),
        |c| c.mov(ecx, dword_ptr(rbp)),
    )?;
    c.fault("clearing PAE", 13, 0, |c| c.xor(edx, edx), |c| c.mov(cr4, rdx))?;
    c.fault(
        "clearing LME",
        13,
        0,
        |c| {
            c.mov(ecx, MSR_EFER)?;
            c.xor(edx, edx)?;
            c.xor(eax, eax)
        },
        |c| c.wrmsr(),
    )
}

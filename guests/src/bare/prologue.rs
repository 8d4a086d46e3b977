//! 32-bit entry: from the PVH state to long mode.

use super::layout::{self, CODE64, KERNEL_CS, KERNEL_DS, LOAD, PD, PDPT, PML4, STACK_TOP, START_INFO, TSS};
use iced_x86::code_asm::*;
use iced_x86::{Code, IcedError, Instruction};

/// The prologue follows the GDT and its pseudo-descriptor.
pub(super) const ENTRY: u64 = LOAD + 0x80;
const GDTR: u64 = LOAD + 0x48;

/// EFER (Intel SDM vol. 4, table 2-2).
const MSR_EFER: u32 = 0xc000_0080;
const EFER_LME: u32 = 1 << 8;
/// CR4: PAE, OSFXSR, OSXMMEXCPT.
const CR4: u32 = 1 << 5 | 1 << 9 | 1 << 10;
/// CR0: PG, WP, NE, ET, MP, PE.
const CR0: u32 = 1 << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1 << 1 | 1;

/// The bytes from [`LOAD`]: GDT, GDTR image, 32-bit code.
pub(super) fn assemble(user_pages: bool) -> Result<Vec<u8>, IcedError> {
    let mut out = Vec::new();
    let gdt = descriptors();
    for entry in gdt {
        out.extend(entry.to_le_bytes());
    }
    out.resize((GDTR - LOAD) as usize, 0);
    out.extend(((gdt.len() * 8 - 1) as u16).to_le_bytes());
    out.extend((LOAD as u32).to_le_bytes());
    out.resize((ENTRY - LOAD) as usize, 0);

    let mut a = CodeAssembler::new(32)?;
    code(&mut a, user_pages)?;
    out.extend(a.assemble(ENTRY)?);
    assert!(out.len() as u64 <= CODE64 - LOAD, "the 32-bit prologue does not fit below the 64-bit code");
    Ok(out)
}

/// Null, kernel code and data, user (SYSRET order: 32-bit code, data, 64-bit code), TSS in two halves.
/// Accessed bits are set, so loading a segment writes nothing.
fn descriptors() -> [u64; 8] {
    let tss_low = 0x67 | (TSS & 0xff_ffff) << 16 | 0x89 << 40 | (TSS >> 24 & 0xff) << 56;
    [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        tss_low,
        TSS >> 32,
    ]
}

fn code(a: &mut CodeAssembler, user_pages: bool) -> Result<(), IcedError> {
    // Present, writable; user where asked. A leaf also has PS.
    let table = if user_pages { 0x07 } else { 0x03 };
    let leaf = table | 0x80;
    a.cli()?;
    a.cld()?;
    a.mov(esp, STACK_TOP as u32)?;
    a.mov(dword_ptr(START_INFO as u32), ebx)?;
    a.mov(dword_ptr(START_INFO as u32 + 4), 0)?;

    // PML4 and PDPT start empty: a loader zeroes them, a warm restart does not.
    a.mov(edi, PML4 as u32)?;
    a.xor(eax, eax)?;
    a.mov(ecx, 0x2000 / 4)?;
    a.rep().stosd()?;
    a.mov(dword_ptr(PML4 as u32), PDPT as u32 | table)?;
    for n in 0..4u32 {
        a.mov(dword_ptr(PDPT as u32 + n * 8), (PD as u32 + n * 0x1000) | table)?;
    }
    // 2048 leaves of 2 MiB. The last one ends at 4 GiB, so the high halves stay zero.
    let mut next = a.create_label();
    a.mov(edi, PD as u32)?;
    a.mov(eax, leaf)?;
    a.mov(ecx, 2048)?;
    a.set_label(&mut next)?;
    a.mov(dword_ptr(edi), eax)?;
    a.mov(dword_ptr(edi + 4), 0)?;
    a.add(eax, 0x20_0000)?;
    a.add(edi, 8)?;
    a.dec(ecx)?;
    a.jnz(next)?;

    a.mov(eax, PML4 as u32)?;
    a.mov(cr3, eax)?;
    a.mov(eax, CR4)?;
    a.mov(cr4, eax)?;
    a.mov(ecx, MSR_EFER)?;
    a.rdmsr()?;
    a.or(eax, EFER_LME)?;
    a.wrmsr()?;
    a.mov(eax, CR0)?;
    a.mov(cr0, eax)?;
    a.lgdt(dword_ptr(GDTR as u32))?;
    a.add_instruction(Instruction::with_far_branch(Code::Jmp_ptr1632, KERNEL_CS, CODE64 as u32)?)
}

/// First instructions in 64-bit mode: flat data segments, a known stack, the task register.
pub(super) fn enter_long_mode(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(eax, u32::from(KERNEL_DS))?;
    a.mov(ds, eax)?;
    a.mov(es, eax)?;
    a.mov(ss, eax)?;
    a.xor(eax, eax)?;
    a.mov(fs, eax)?;
    a.mov(gs, eax)?;
    a.mov(rsp, STACK_TOP)?;
    // RSP0 at +4; no I/O permission bitmap (its base lies beyond the limit).
    a.mov(qword_ptr(TSS + 4), rsp)?;
    a.mov(word_ptr(TSS + 0x66), 0x68)?;
    a.mov(eax, u32::from(layout::TSS_SELECTOR))?;
    a.ltr(ax)
}

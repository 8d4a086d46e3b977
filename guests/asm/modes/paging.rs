//! PAE paging and 32-bit paging of two levels: error codes, CR2, accessed and dirty bits, WP, large pages, NX, the
//! PDPTE registers (Intel SDM vol. 3, 5.3, 5.4, 5.6 to 5.8).

use super::code::nothing;
use super::rig::*;
use iced_x86::code_asm::*;

/// Two-level tables: directory, and tables of the first 4 MiB and of the window.
const DIRECTORY: u32 = PAGES;
const FIRST: u32 = PAGES + 0x1000;
const WINDOW_TABLE: u32 = PAGES + 0x2000;
/// PAE tables.
const POINTERS: u32 = PAGES + 0x3000;
const PAE_DIRECTORY: u32 = PAGES + 0x4000;
const PAE_WINDOW: u32 = PAGES + 0x5000;
const PAE_TABLE: u32 = PAGES + 0x6000;
/// What the window shows.
const PAGE: u32 = PAGES + 0x8000;
/// Linear address of the window: page n of it has entry n of its table.
const WINDOW: u32 = 0x0080_0000;
/// The window once more in PAE paging, behind a PDPTE of its own.
const PAE_WINDOW_AT: u32 = 0x4000_0000;

/// A page of 4 MiB.
const LARGE: u32 = 0x00c0_0000;

const P: u32 = 1;
const W: u32 = 2;
const U: u32 = 4;
const A: u32 = 0x20;
const D: u32 = 0x40;
const PS: u32 = 0x80;
const PG: u32 = 1 << 31;
const WP: u32 = 1 << 16;
const CR4_PSE: u32 = 1 << 4;
const CR4_PAE: u32 = 1 << 5;
const MSR_EFER: u32 = 0xc000_0080;
const EFER_NXE: u32 = 1 << 11;
const CR2: u32 = DATA + 0x20;

pub fn build(rig: &mut Rig) {
    rig.code(32, MAIN, |c| {
        pae(c)?;
        two_levels(c)?;
        write_protect(c)?;
        large(c)?;
        reserved(c)?;
        c.passed()
    });
}

/// Page n of the window.
const fn page(n: u32) -> u32 {
    WINDOW + n * 0x1000
}

fn flush(c: &mut Code<'_>) -> Result {
    c.mov(eax, cr3)?;
    c.mov(cr3, eax)
}

fn paging_on(c: &mut Code<'_>, root: u32) -> Result {
    c.mov(eax, root)?;
    c.mov(cr3, eax)?;
    c.mov(eax, cr0)?;
    c.or(eax, PG as i32)?;
    c.mov(cr0, eax)
}

fn paging_off(c: &mut Code<'_>) -> Result {
    c.mov(eax, cr0)?;
    c.and(eax, !PG as i32)?;
    c.mov(cr0, eax)
}

/// Fills a table with an identity mapping of `entries` pages of `size`, in entries of `width` bytes.
fn identity(c: &mut Code<'_>, table: u32, entries: u32, size: u32, flags: u32, width: u32) -> Result {
    let mut next = c.create_label();
    c.mov(edi, table)?;
    c.mov(eax, flags)?;
    c.mov(ecx, entries)?;
    c.set_label(&mut next)?;
    c.mov(dword_ptr(edi), eax)?;
    c.add(edi, width)?;
    c.add(eax, size)?;
    c.dec(ecx)?;
    c.jnz(next)
}

fn fault_with(
    c: &mut Code<'_>,
    what: &'static str,
    error: u32,
    address: u32,
    setup: impl Fn(&mut Code<'_>) -> Result,
    instruction: impl Fn(&mut Code<'_>) -> Result,
) -> Result {
    c.fault(what, 14, error, setup, instruction)?;
    c.mov(ecx, cr2)?;
    c.mov(dword_ptr(CR2), ecx)?;
    c.equal("and its CR2", &[(CR2, address)])
}

fn two_levels(c: &mut Code<'_>) -> Result {
    paging_off(c)?;
    c.mov(eax, cr4)?;
    c.and(eax, !CR4_PAE as i32)?;
    c.mov(cr4, eax)?;
    identity(c, FIRST, 1024, 0x1000, P | W | U, 4)?;
    c.mov(dword_ptr(DIRECTORY), FIRST | P | W | U)?;
    c.mov(dword_ptr(DIRECTORY + (WINDOW >> 22) * 4), WINDOW_TABLE | P | W | U)?;
    for (n, flags) in [(0, P | W | U), (1, P | U), (2, P | W), (3, 0)] {
        c.mov(dword_ptr(WINDOW_TABLE + n * 4), PAGE | flags)?;
    }
    paging_on(c, DIRECTORY)?;
    c.mov(dword_ptr(page(0) + 8), 0x1357_9bdf)?;
    c.equal("a page shows its frame", &[(PAGE + 8, 0x1357_9bdf), (page(1) + 8, 0x1357_9bdf)])?;
    c.equal(
        "a write sets A and D, a read A",
        &[(WINDOW_TABLE, PAGE | P | W | U | A | D), (WINDOW_TABLE + 4, PAGE | P | U | A)],
    )?;
    c.equal(
        "directory entries have A only; unused ones nothing",
        &[(DIRECTORY + (WINDOW >> 22) * 4, WINDOW_TABLE | P | W | U | A), (WINDOW_TABLE + 8, PAGE | P | W)],
    )?;
    fault_with(c, "a read, not present", 0, page(3) + 5, nothing, |c| c.mov(cl, byte_ptr(page(3) + 5)))?;
    fault_with(c, "a write, not present", 2, page(3), nothing, |c| c.mov(byte_ptr(page(3)), cl))?;
    fault_with(c, "no directory entry", 0, 0x0100_0000, nothing, |c| c.mov(ecx, dword_ptr(0x0100_0000)))?;
    // Across a page boundary CR2 is the first byte that is not there.
    fault_with(c, "across into what is not present", 2, page(3), nothing, |c| {
        c.mov(dword_ptr(page(3) - 2), ecx)
    })?;
    let user = |c: &mut Code<'_>| c.user(2);
    fault_with(c, "a user read of the supervisor's", 5, page(2), user, |c| c.mov(cl, byte_ptr(page(2))))?;
    fault_with(c, "a user write to read-only", 7, page(1), user, |c| c.mov(byte_ptr(page(1)), cl))?;
    fault_with(c, "a user read, not present", 4, page(3), user, |c| c.mov(cl, byte_ptr(page(3))))?;
    // An instruction fetch: without NX it is like a read.
    c.until_exception(|c| {
        c.mov(eax, page(3))?;
        c.jmp(eax)
    })?;
    c.equal("a fetch, not present", &[(VECTOR, 14), (ERROR, 0), (EIP, page(3))])?;
    // INVLPG is needed to see a change; more rights need none.
    c.mov(dword_ptr(WINDOW_TABLE + 12), (PAGE | P | W | U) as i32)?;
    c.mov(dword_ptr(page(3) + 12), 0x2468)?;
    c.equal("what was not present needs no INVLPG", &[(PAGE + 12, 0x2468)])?;
    c.mov(dword_ptr(WINDOW_TABLE + 12), 0)?;
    c.invlpg(ptr(page(3)))?;
    fault_with(c, "INVLPG", 0, page(3), nothing, |c| c.mov(cl, byte_ptr(page(3))))
}

fn write_protect(c: &mut Code<'_>) -> Result {
    c.mov(dword_ptr(page(1)), 0x11)?;
    c.equal("without WP the supervisor writes anywhere", &[(PAGE, 0x11)])?;
    c.mov(eax, cr0)?;
    c.or(eax, WP as i32)?;
    c.mov(cr0, eax)?;
    fault_with(c, "with WP it does not", 3, page(1), nothing, |c| c.mov(byte_ptr(page(1)), cl))
}

fn large(c: &mut Code<'_>) -> Result {
    c.mov(eax, cr4)?;
    c.or(eax, CR4_PSE as i32)?;
    c.mov(cr4, eax)?;
    let at = LARGE;
    c.mov(dword_ptr(DIRECTORY + (at >> 22) * 4), (P | W | U | PS) as i32)?;
    c.mov(dword_ptr(at + PAGE), 0x7654_3210)?;
    c.equal(
        "a page of 4 MiB, and its A and D",
        &[(PAGE, 0x7654_3210), (DIRECTORY + (at >> 22) * 4, P | W | U | PS | A | D)],
    )
}

fn pae(c: &mut Code<'_>) -> Result {
    c.mov(eax, cr4)?;
    c.or(eax, CR4_PAE as i32)?;
    c.mov(cr4, eax)?;
    c.mov(ecx, MSR_EFER)?;
    c.rdmsr()?;
    c.or(eax, EFER_NXE as i32)?;
    c.wrmsr()?;
    // PDPTEs have no rights: bits 1 and 2 are reserved in them.
    for (i, table) in [(0, PAE_DIRECTORY), (1, PAE_WINDOW), (2, 0), (3, 0)] {
        c.mov(dword_ptr(POINTERS + i * 8), if table == 0 { 0 } else { table | P })?;
        c.mov(dword_ptr(POINTERS + i * 8 + 4), 0)?;
    }
    identity(c, PAE_DIRECTORY, 2, 0x20_0000, P | W | U | PS, 8)?;
    c.mov(dword_ptr(PAE_WINDOW), PAE_TABLE | P | W | U)?;
    for (n, low, high) in
        [(0, P | W | U, 0), (1, P | W | U, 1 << 31), (2, P | W | U, 1 << 13), (3, P | W | U, 1 << 20)]
    {
        c.mov(dword_ptr(PAE_TABLE + n * 8), PAGE | low)?;
        c.mov(dword_ptr(PAE_TABLE + n * 8 + 4), high)?;
    }
    paging_on(c, POINTERS)?;
    let page = |n: u32| PAE_WINDOW_AT + n * 0x1000;
    // UD2 in the frame: where it may execute, that is what comes.
    c.mov(dword_ptr(PAGE), 0x0b0f)?;
    c.equal("a page of PAE", &[(page(0), 0x0b0f), (PAE_TABLE, PAGE | P | W | U | A)])?;
    for (what, n, vector, error) in [("a fetch of code", 0, 6, 0), ("a fetch with NX is I/D", 1, 14, 0x11)] {
        c.until_exception(|c| {
            c.mov(eax, page(n))?;
            c.jmp(eax)
        })?;
        c.equal(what, &[(VECTOR, vector), (ERROR, error), (EIP, page(n))])?;
    }
    c.until_exception(|c| {
        c.user(2)?;
        c.mov(eax, page(1))?;
        c.jmp(eax)
    })?;
    c.equal("a user's fetch with NX", &[(VECTOR, 14), (ERROR, 0x15), (EIP, page(1))])?;
    Ok(())
}

/// What QEMU's TCG does not do.
fn reserved(c: &mut Code<'_>) -> Result {
    let at = LARGE;
    let user = |c: &mut Code<'_>| c.user(2);
    fault_with(c, "a user's read-modify-write is a write", 6, page(3), user, |c| c.inc(dword_ptr(page(3))))?;
    // Bit 21 of a 4 MiB entry is reserved.
    c.mov(dword_ptr(DIRECTORY + (at >> 22) * 4), (P | W | U | PS | 1 << 21) as i32)?;
    flush(c)?;
    fault_with(c, "reserved bits", 9, at + PAGE, nothing, |c| c.mov(ecx, dword_ptr(at + PAGE)))?;
    // Bits 62 to 52 are ignored in long mode only.
    paging_off(c)?;
    c.mov(eax, cr4)?;
    c.or(eax, CR4_PAE as i32)?;
    c.mov(cr4, eax)?;
    c.mov(dword_ptr(POINTERS + 8), PAE_WINDOW | P)?;
    c.mov(dword_ptr(POINTERS + 16), 0)?;
    paging_on(c, POINTERS)?;
    for (what, n) in [("an address beyond the processor's", 2), ("reserved bits of PAE", 3)] {
        let at = PAE_WINDOW_AT + n * 0x1000;
        fault_with(c, what, 9, at, nothing, |c| c.mov(cl, byte_ptr(at)))?;
    }
    // The PDPTEs are in registers: a change is seen when CR3 is loaded.
    let first = PAE_WINDOW_AT;
    c.mov(dword_ptr(POINTERS + 8), 0)?;
    c.invlpg(ptr(first))?;
    c.mov(ecx, dword_ptr(first))?;
    c.cmp(ecx, dword_ptr(PAGE))?;
    c.check("a PDPTE changed in memory is not seen", |a, l| a.je(l))?;
    flush(c)?;
    fault_with(c, "until CR3 is loaded", 0, first, nothing, |c| c.mov(ecx, dword_ptr(first)))?;
    // A PDPTE with reserved bits: #GP of MOV to CR3, which changes nothing.
    c.mov(dword_ptr(POINTERS + 16), (P | W) as i32)?;
    c.fault("reserved bits of a PDPTE", 13, 0, |c| c.mov(eax, POINTERS), |c| c.mov(cr3, eax))
}

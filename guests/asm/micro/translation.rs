//! `walk`: loads that need a page walk. `cr3`: two address spaces in turn, and `cr3-global` with global pages.

use super::{Program, fill_words};
use crate::bare::Runtime;
use crate::bare::layout::{PD, PDPT, WORK};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

pub(super) const WALK: Program =
    Program { name: "walk", iterations: 1_000_000, user_pages: false, setup: map_window, body: walk };

pub(super) const CR3: Program =
    Program { name: "cr3", iterations: 300_000, user_pages: false, setup: two_spaces, body: switch };

pub(super) const CR3_GLOBAL: Program = Program {
    name: "cr3-global",
    iterations: 300_000,
    user_pages: false,
    setup: two_spaces_and_global_pages,
    body: switch,
};

/// Present, writable, accessed, dirty: a walk has nothing to store.
const MAPPED: u32 = 0x63;
const GLOBAL: u32 = 1 << 8;
const CR4_PGE: u32 = 1 << 7;

/// Virtual window of 4096 pages at 256 GiB. Its tables and the 256 pages that it shows are in the work area.
const WINDOW: u64 = 256 << 30;
const PAGES: u32 = 4096;
const DIRECTORY: u64 = WORK;
const LEAVES: u64 = WORK + 0x1000;
/// Aligned to its size, so that a page's number is bits 19:12 of its address.
const POOL: u64 = WORK + 0x10_0000;
const POOL_PAGES: u32 = 256;
const POOL_NUMBER: u32 = (POOL_PAGES - 1) << 12;

/// Page p shows page 7p of the pool. The first word of each of those is from the generator.
fn map_window(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let (mut leaf, mut page) = (a.create_label(), a.create_label());
    a.mov(qword_ptr(PDPT + (WINDOW >> 30) * 8), (DIRECTORY as u32 | MAPPED) as i32)?;
    for n in 0..u64::from(PAGES / 512) {
        a.mov(qword_ptr(DIRECTORY + 8 * n), ((LEAVES + 0x1000 * n) as u32 | MAPPED) as i32)?;
    }
    a.xor(ecx, ecx)?;
    a.set_label(&mut leaf)?;
    a.imul_3(eax, ecx, 7 << 12)?;
    a.and(eax, POOL_NUMBER as i32)?;
    a.add(eax, (POOL as u32 | MAPPED) as i32)?;
    a.mov(qword_ptr(rcx * 8 + LEAVES as i32), rax)?;
    a.inc(ecx)?;
    a.cmp(ecx, PAGES as i32)?;
    a.jne(leaf)?;
    // The words are made side by side, then spread from the last to the first.
    fill_words(a, POOL, POOL_PAGES)?;
    a.mov(ecx, POOL_PAGES - 1)?;
    a.set_label(&mut page)?;
    a.mov(rax, qword_ptr(rcx * 8 + POOL as i32))?;
    a.mov(edx, ecx)?;
    a.shl(edx, 12)?;
    a.mov(qword_ptr(rdx + POOL as i32), rax)?;
    a.dec(ecx)?;
    a.jnz(page)
}

/// Has a page of the window show the next page of the pool, and loads through it: an old translation gives an old value.
/// The order of pages is scattered, and goes through all of them.
fn walk(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(rbp, WINDOW)?;
    a.xor(esi, esi)?;
    a.xor(ebx, ebx)?;
    a.set_label(&mut top)?;
    a.lea(esi, ptr(rsi + rsi * 4 + 4099))?;
    a.and(esi, PAGES as i32 - 1)?;
    a.mov(r9d, dword_ptr(rsi * 8 + LEAVES as i32))?;
    a.lea(r10d, ptr(r9 + 0x1000))?;
    a.and(r10d, POOL_NUMBER as i32)?;
    a.and(r9d, !POOL_NUMBER as i32)?;
    a.or(r9d, r10d)?;
    a.mov(dword_ptr(rsi * 8 + LEAVES as i32), r9d)?;
    a.mov(eax, esi)?;
    a.shl(rax, 12)?;
    a.invlpg(byte_ptr(rbp + rax))?;
    a.rol(rbx, 1)?;
    a.xor(rbx, qword_ptr(rbp + rax))?;
    a.dec(rcx)?;
    a.jnz(top)
}

/// Tables of both address spaces: level 4 to 1, each one behind the other's.
const SPACES: u64 = WORK;
/// Eight pages of each, one behind the other.
const OWN_PAGES: u32 = 8;
const OWN: u64 = WORK + 0x1_0000;
/// A word that both see, in the identity mapping.
const COMMON: u64 = WORK + 0x2_0000;
/// Where a space has its own pages: the second entry of level 4.
const PRIVATE: u64 = 512 << 30;

/// Both spaces have the identity mapping and pages of their own.
fn two_spaces(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    for space in 0..2u64 {
        let table = |level: u64| SPACES + 0x2000 * (4 - level) + 0x1000 * space;
        a.mov(qword_ptr(table(4)), (PDPT as u32 | MAPPED) as i32)?;
        a.mov(qword_ptr(table(4) + 8), (table(3) as u32 | MAPPED) as i32)?;
        a.mov(qword_ptr(table(3)), (table(2) as u32 | MAPPED) as i32)?;
        a.mov(qword_ptr(table(2)), (table(1) as u32 | MAPPED) as i32)?;
        for page in 0..u64::from(OWN_PAGES) {
            let at = OWN + 0x1000 * (u64::from(OWN_PAGES) * space + page);
            a.mov(qword_ptr(table(1) + 8 * page), (at as u32 | MAPPED) as i32)?;
            a.mov(qword_ptr(at), (at as u32 >> 5) as i32)?;
        }
    }
    a.mov(qword_ptr(COMMON), 0)
}

/// Likewise, with the identity mapping global: a load of CR3 leaves its translations (Intel SDM vol. 3, 5.10.4.1).
fn two_spaces_and_global_pages(a: &mut CodeAssembler, rt: &mut Runtime) -> Result<(), IcedError> {
    let mut leaf = a.create_label();
    two_spaces(a, rt)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut leaf)?;
    a.or(qword_ptr(rcx * 8 + PD as i32), GLOBAL as i32)?;
    a.inc(ecx)?;
    a.cmp(ecx, 2048)?;
    a.jne(leaf)?;
    a.mov(rax, cr4)?;
    a.or(eax, CR4_PGE as i32)?;
    a.mov(cr4, rax)
}

/// Loads the words of four of the space's pages, adds to one of them, and counts in what both share.
fn switch(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(rbp, PRIVATE)?;
    a.xor(ebx, ebx)?;
    a.set_label(&mut top)?;
    a.mov(eax, ecx)?;
    a.and(eax, 1)?;
    a.shl(eax, 12)?;
    a.add(eax, SPACES as i32)?;
    a.mov(cr3, rax)?;
    for n in 0..4 {
        a.lea(edx, ptr(rcx + 3 * n))?;
        a.shr(edx, 1)?;
        a.and(edx, OWN_PAGES as i32 - 1)?;
        a.shl(edx, 12)?;
        a.rol(rbx, 1)?;
        a.xor(rbx, qword_ptr(rbp + rdx))?;
    }
    a.add(qword_ptr(rbp + rdx), rcx)?;
    a.inc(qword_ptr(COMMON))?;
    a.add(rbx, qword_ptr(COMMON))?;
    a.dec(rcx)?;
    a.jnz(top)
}

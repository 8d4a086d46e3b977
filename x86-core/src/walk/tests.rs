//! Against the Intel SDM vol. 3, chapter 4: page tables are built in the bench's RAM.

use super::*;
use crate::mode::Mode;
use crate::testing::{RAM_SIZE, cpu, peek, poke};

/// Root of the page tables; the tables below it follow, a page each.
const ROOT: u64 = 0x10000;
/// The linear address that the tables map, and where it leads.
const LA: u64 = 0x40_3123;
const GPA: u64 = 0x5123;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Paging {
    Four,
    Pae,
    Two,
}
use Paging::*;

impl Paging {
    fn levels(self) -> u32 {
        match self {
            Four => 4,
            Pae => 3,
            Two => 2,
        }
    }

    fn width(self) -> usize {
        if self == Two { 4 } else { 8 }
    }

    /// Address of the entry for [`LA`] at `level` (1 is the page table).
    fn entry(self, level: u32) -> u64 {
        let bits = if self == Two { 10 } else { 9 };
        let index = LA >> (12 + bits * (level - 1)) & ((1 << bits) - 1);
        self.table(level) + index * self.width() as u64
    }

    fn table(self, level: u32) -> u64 {
        ROOT + u64::from(self.levels() - level) * 0x1000
    }
}

fn set(c: &mut Cpu, paging: Paging, level: u32, value: u64) {
    poke(c, paging.entry(level), &value.to_le_bytes()[..paging.width()]);
}

fn get(c: &mut Cpu, paging: Paging, level: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..paging.width()].copy_from_slice(&peek(c, paging.entry(level), paging.width()));
    u64::from_le_bytes(bytes)
}

/// [`LA`] mapped to [`GPA`] by a 4 KiB page, everything allowed, nothing accessed. Paging is not on yet.
fn mapped(paging: Paging) -> Box<Cpu> {
    let mut c = cpu(if paging == Four { Mode::Long } else { Mode::Protected32 });
    for level in 1..=paging.levels() {
        let to = if level == 1 { GPA & !0xfff } else { paging.table(level - 1) };
        let rights = if paging == Pae && level == 3 { P } else { P | RW | US };
        set(&mut c, paging, level, to | rights);
    }
    c.cr3 = ROOT;
    c.efer |= EFER_NXE;
    c.cr4 = if paging == Two { CR4_PSE } else { CR4_PAE };
    c
}

fn walk(c: &mut Cpu, kind: AccessKind, user: bool) -> Result<u64, u32> {
    walk_at(c, LA, kind, user, false)
}

/// Walks with paging on, and off again, so that tests can poke physical memory.
fn walk_at(c: &mut Cpu, la: u64, kind: AccessKind, user: bool, ac: bool) -> Result<u64, u32> {
    c.cr0 |= CR0_PG;
    c.pdptes = c.pdptes_at(c.cr3);
    let result = c.walk(la, kind, user, ac);
    c.cr0 &= !CR0_PG;
    result.map(|w| w.gpa).map_err(|fault| {
        assert_eq!((fault.vector(), c.fault_address), (vector::PF, la));
        fault.error_code().unwrap()
    })
}

/// 4.2 to 4.5, 4.8: translation, and A and D bits set exactly where the manual says.
#[test]
fn accessed_and_dirty() {
    for paging in [Four, Pae, Two] {
        let mut c = mapped(paging);
        assert_eq!(walk(&mut c, AccessKind::Read, true), Ok(GPA), "{paging:?}");
        for level in 1..=paging.levels() {
            let pdpte = paging == Pae && level == 3;
            assert_eq!(get(&mut c, paging, level) & (A | D), if pdpte { 0 } else { A }, "{paging:?} {level}");
        }
        assert_eq!(walk(&mut c, AccessKind::Write, true), Ok(GPA));
        for level in 1..=paging.levels() {
            assert_eq!(get(&mut c, paging, level) & D != 0, level == 1, "{paging:?} {level}");
        }
    }
}

/// 4.7: a faulting access sets no D bit, and tells about itself in the error code.
#[test]
fn not_present() {
    for paging in [Four, Pae, Two] {
        for level in 1..=paging.levels() {
            let mut c = mapped(paging);
            let old = get(&mut c, paging, level);
            set(&mut c, paging, level, old & !P);
            assert_eq!(walk(&mut c, AccessKind::Read, false), Err(0));
            assert_eq!(walk(&mut c, AccessKind::Write, true), Err(code::WRITE | code::USER));
            let fetch = if paging == Two { 0 } else { code::FETCH };
            assert_eq!(walk(&mut c, AccessKind::Fetch, false), Err(fetch), "{paging:?} {level}");
            assert_eq!(get(&mut c, paging, 1) & D, 0);
        }
    }
}

/// 4.6.1: every combination of R/W, U/S, XD, CR0.WP, SMEP, SMAP, AC against every kind of access, with the error code of
/// 4.7. The expectation is written down from the manual's sentences, not from the walker's code.
#[test]
fn permission_matrix() {
    for paging in [Four, Pae, Two] {
        for bits in 0..128u32 {
            let on = |n: u32| bits >> n & 1 != 0;
            let (writable, user_page, nx) = (on(0), on(1), on(2) && paging != Two);
            let (wp, smep, smap, ac) = (on(3), on(4), on(5), on(6));
            let mut c = mapped(paging);
            let mut entry = GPA & !0xfff | P;
            entry |= if writable { RW } else { 0 };
            entry |= if user_page { US } else { 0 };
            entry |= if nx { NX } else { 0 };
            set(&mut c, paging, 1, entry);
            c.cr0 = if wp { c.cr0 | CR0_WP } else { c.cr0 & !CR0_WP };
            c.cr4 |= if smep { CR4_SMEP } else { 0 } | if smap { CR4_SMAP } else { 0 };
            for kind in [AccessKind::Read, AccessKind::Write, AccessKind::Fetch] {
                for user in [false, true] {
                    let allowed = match (user, kind) {
                        (true, AccessKind::Read) => user_page,
                        (true, AccessKind::Write) => user_page && writable,
                        (true, AccessKind::Fetch) => user_page && !nx,
                        (false, AccessKind::Read) => !user_page || !smap || ac,
                        (false, AccessKind::Write) => (!user_page || !smap || ac) && (writable || !wp),
                        (false, AccessKind::Fetch) => !(nx || user_page && smep),
                    };
                    let mut error = 1;
                    error |= if kind == AccessKind::Write { 2 } else { 0 };
                    error |= if user { 4 } else { 0 };
                    let fetch_told = (paging != Two) || smep;
                    error |= if kind == AccessKind::Fetch && fetch_told { 16 } else { 0 };
                    let want = if allowed { Ok(GPA) } else { Err(error) };
                    let got = walk_at(&mut c, LA, kind, user, ac);
                    assert_eq!(got, want, "{paging:?} {bits:07b} {kind:?} user {user}");
                }
            }
        }
    }
}

/// 4.6.1: a right must be given at every level; 4.4: the entries of PAE's first table have none.
#[test]
fn rights_of_all_levels_combine() {
    for paging in [Four, Pae, Two] {
        for level in 1..=paging.levels() {
            if paging == Pae && level == 3 {
                continue;
            }
            for (bit, kind) in [(RW, AccessKind::Write), (US, AccessKind::Read)] {
                let mut c = mapped(paging);
                let old = get(&mut c, paging, level);
                set(&mut c, paging, level, old & !bit);
                assert!(walk(&mut c, kind, true).is_err(), "{paging:?} {level}");
            }
            if paging != Two {
                let mut c = mapped(paging);
                let old = get(&mut c, paging, level);
                set(&mut c, paging, level, old | NX);
                assert_eq!(walk(&mut c, AccessKind::Fetch, false), Err(code::PRESENT | code::FETCH));
                assert_eq!(walk(&mut c, AccessKind::Read, false), Ok(GPA));
            }
        }
    }
}

/// 4.3 to 4.5: reserved bits, error code bit 3 (RSVD) with P.
#[test]
fn reserved_bits() {
    let cases: &[(Paging, u32, u64)] = &[
        (Four, 4, PS),
        (Four, 4, 1 << 40),
        (Four, 1, 1 << 51),
        (Four, 2, PS | 1 << 13),
        (Four, 3, PS | 1 << 29),
        (Pae, 3, RW),
        (Pae, 3, 1 << 40),
        (Pae, 3, NX),
        (Pae, 2, PS | 1 << 20),
        (Pae, 2, 1 << 52),
        (Pae, 1, 1 << 40),
        (Pae, 1, 1 << 52),
        (Pae, 1, 1 << 62),
        (Two, 2, PS | 1 << 21),
    ];
    for &(paging, level, bits) in cases {
        let mut c = mapped(paging);
        let old = get(&mut c, paging, level);
        set(&mut c, paging, level, old | bits);
        assert_eq!(walk(&mut c, AccessKind::Read, false), Err(9), "{paging:?} {level} {bits:#x}");
        assert_eq!(walk(&mut c, AccessKind::Write, true), Err(15));
    }
    // In the entries of long mode these are the system's to use (table 4-15 and others).
    let mut c = mapped(Four);
    let old = get(&mut c, Four, 1);
    set(&mut c, Four, 1, old | 0x7ff << 52);
    assert!(walk(&mut c, AccessKind::Read, false).is_ok());
    // Without NXE bit 63 is reserved.
    for paging in [Four, Pae] {
        let mut c = mapped(paging);
        let old = get(&mut c, paging, 1);
        set(&mut c, paging, 1, old | NX);
        c.efer &= !EFER_NXE;
        assert_eq!(walk(&mut c, AccessKind::Fetch, false), Err(9));
    }
}

/// 4.3 to 4.5: pages of 4 MiB (PSE-36 included), 2 MiB and 1 GiB.
#[test]
fn large_pages() {
    let mut c = mapped(Four);
    set(&mut c, Four, 2, 0x60_0000 | P | RW | PS | 1 << 12);
    assert_eq!(walk(&mut c, AccessKind::Write, false), Ok(0x60_0000 | LA & 0x1f_ffff));
    assert_eq!(get(&mut c, Four, 2) & (A | D), A | D);
    let mut c = mapped(Four);
    set(&mut c, Four, 3, 0x4000_0000 | P | PS);
    assert_eq!(walk(&mut c, AccessKind::Read, false), Ok(0x4000_0000 | LA));
    let mut c = mapped(Pae);
    set(&mut c, Pae, 2, 0x60_0000 | P | PS);
    assert_eq!(walk(&mut c, AccessKind::Read, false), Ok(0x60_0000 | LA & 0x1f_ffff));
    let mut c = mapped(Two);
    set(&mut c, Two, 2, 0x80_0000 | P | PS | 0x12 << 13);
    assert_eq!(walk(&mut c, AccessKind::Read, false), Ok(0x12_0080_0000 | LA & 0x3f_ffff));
    // Without CR4.PSE the bit is ignored: the entry leads to a table.
    let mut c = mapped(Two);
    let old = get(&mut c, Two, 2);
    set(&mut c, Two, 2, old | PS);
    c.cr4 = 0;
    assert_eq!(walk(&mut c, AccessKind::Read, false), Ok(GPA));
}

/// 4.10.2.4: G counts only with CR4.PGE; a clean page may not be stored to without another walk.
#[test]
fn what_the_tlb_is_told() {
    let mut c = mapped(Four);
    let old = get(&mut c, Four, 1);
    set(&mut c, Four, 1, old | G);
    c.cr0 |= CR0_PG;
    let first = c.walk(LA, AccessKind::Read, false, false).unwrap();
    assert_eq!((first.global, first.store, first.large), (false, false, false));
    c.cr4 |= CR4_PGE;
    assert!(c.walk(LA, AccessKind::Read, false, false).unwrap().global);
    assert!(c.walk(LA, AccessKind::Write, false, false).unwrap().store);
    assert!(c.walk(LA, AccessKind::Read, false, false).unwrap().store);
}

/// Tables where there is no RAM read as all ones and must neither panic nor loop.
#[test]
fn tables_outside_ram() {
    for paging in [Four, Pae, Two] {
        let mut c = mapped(paging);
        c.cr3 = RAM_SIZE + 0x1000;
        assert!(walk(&mut c, AccessKind::Write, true).is_err());
        assert!(walk_at(&mut c, 0xffff_f000, AccessKind::Read, false, false).is_err());
    }
}

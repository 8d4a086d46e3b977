//! PCID, INVPCID, the PDPTE registers of PAE paging, SMAP and stacks: Intel SDM vol. 3, 4.4.1, 4.6 and 4.10; vol. 2A,
//! INVPCID.

use std::sync::Arc;

use accel_api::x86::{Feature, gpr};

use super::*;
use crate::alu::flag;
use crate::event::Delivery;
use crate::mode::{Mode, bits::*};
use crate::testing::{cpu, run, step};
use crate::testing_tables::*;
use crate::{AccessKind, Fault, TlbMode, Translation};

fn with_pcid(mode: Mode, cpl: u8) -> Box<Cpu> {
    let mut c = cpu_with_tables(mode, cpl);
    let model = Arc::make_mut(&mut c.model);
    model.features = model.features.with(&[Feature::Pcid, Feature::Invpcid]);
    c
}

/// INVPCID ECX, [0x3000] (RCX in 64-bit mode).
fn invpcid(c: &mut Cpu, kind: u64, pcid: u64, address: u64) -> crate::Exec {
    poke64(c, 0x3000, pcid);
    poke64(c, 0x3008, address);
    c.gpr[gpr::RCX] = kind;
    c.gpr[gpr::RAX] = 0x3000;
    run(c, &[0x66, 0x0f, 0x38, 0x82, 0x08])
}

/// Vol. 2A, INVPCID: what each type takes and refuses.
#[test]
fn invpcid_operands() {
    const BAD: u64 = 1 << 47;
    let gp = Err(Fault::GP0);
    // PCIDE, type, PCID, address, outcome.
    let cases = [
        (false, 0, 0, 0x5000, Ok(())),
        (false, 0, 1, 0x5000, gp),
        (true, 0, 1, 0x5000, Ok(())),
        (true, 0, 1, BAD, gp),
        (true, 0, 0x1000, 0, gp),
        (false, 1, 0, BAD, Ok(())),
        (false, 1, 1, 0, gp),
        (true, 1, 0xfff, 0, Ok(())),
        (false, 2, 0xfff, BAD, Ok(())),
        (false, 2, 1 << 63, 0, gp),
        (false, 3, 0xfff, BAD, Ok(())),
        (true, 4, 0, 0, gp),
        (true, u64::MAX, 0, 0, gp),
    ];
    for (pcide, kind, pcid, address, want) in cases {
        let mut c = with_pcid(Mode::Long, 0);
        c.cr4 |= if pcide { CR4_PCIDE } else { 0 };
        assert_eq!(invpcid(&mut c, kind, pcid, address), want, "{pcide} {kind} {pcid:#x} {address:#x}");
    }
    assert_eq!(invpcid(&mut with_pcid(Mode::Long, 3), 2, 0, 0), gp);
    assert_eq!(invpcid(&mut with_pcid(Mode::Protected32, 0), 2, 0, 0), Ok(()));
    // Only the low half of the register counts outside 64-bit mode.
    assert_eq!(invpcid(&mut with_pcid(Mode::Protected32, 0), 1 << 32, 0, 0), Ok(()));
    let mut without = cpu_with_tables(Mode::Long, 0);
    let model = Arc::make_mut(&mut without.model);
    model.features = model.features.without(&[Feature::Invpcid]);
    assert_eq!(invpcid(&mut without, 2, 0, 0), Err(Fault::UD));
}

/// 4.10.4.1: what INVPCID forgets. A global and another translation are planted, then looked for.
#[test]
fn invpcid_forgets() {
    // Type; whether the translation of 0x5000 (not global) and that of 0x6000 (global) stay.
    for (kind, plain, global) in [(0, false, true), (1, false, true), (2, false, false), (3, false, true)] {
        let mut c = with_pcid(Mode::Long, 0);
        for (at, global) in [(0x5000, false), (0x6000, true)] {
            let host = std::ptr::without_provenance_mut(0x10000);
            let to = Translation { host, page: 1, store: true, global, large: false };
            c.tlb.fill(TlbMode::User, at, &to);
        }
        invpcid(&mut c, kind, 0, 0x5678).unwrap();
        let there = |at| c.tlb.entry(TlbMode::User, at).read_tag == at;
        assert_eq!((there(0x5000), there(0x6000)), (plain, global), "type {kind}");
    }
}

/// 4.10.4.1: which INVPCID reaches a translation of PCID 1 when 1 is current, and when 2 is.
#[test]
fn invpcid_and_process_context_identifiers() {
    const ONE: u64 = 0x5_0001;
    const TWO: u64 = 0x5_1002;
    const KEEP: u64 = 1 << 63;
    // Type, PCID, address; whether the translation stays.
    let cases = [
        (0, 1, 0x5678, false),
        (0, 1, 0x6000, true),
        (0, 2, 0x5678, true),
        (1, 1, 0, false),
        (1, 2, 0, true),
        (2, 0xfff, 0, false),
        (3, 0xfff, 0, false),
    ];
    for (kind, pcid, address, stays) in cases {
        for current in [ONE, TWO] {
            let mut c = with_pcid(Mode::Long, 0);
            c.cr4 |= CR4_PCIDE;
            c.write_cr3(ONE).unwrap();
            let host = std::ptr::without_provenance_mut(0x10000);
            let to = Translation { host, page: 1, store: true, global: false, large: false };
            c.tlb.fill(TlbMode::User, 0x5000, &to);
            c.write_cr3(current | KEEP).unwrap();
            invpcid(&mut c, kind, pcid, address).unwrap();
            c.write_cr3(ONE | KEEP).unwrap();
            let there = c.tlb.entry(TlbMode::User, 0x5000).read_tag == 0x5000;
            assert_eq!(there, stays, "type {kind} PCID {pcid:#x} {address:#x} under {current:#x}");
        }
    }
}

/// What translations depend on empties the TLB of those of all PCIDs when it changes.
#[test]
fn other_address_spaces_go_with_what_they_depend_on() {
    type Change = fn(&mut Cpu) -> crate::Exec;
    let changes: [(&str, Change); 6] = [
        ("CR0.WP", |c| c.write_cr0(c.cr0 ^ CR0_WP)),
        ("CR4.PGE", |c| c.write_cr4(c.cr4 ^ CR4_PGE)),
        ("CR4.SMEP", |c| c.write_cr4(c.cr4 ^ CR4_SMEP)),
        ("EFER.NXE", |c| c.write_msr(0xc000_0080, c.efer ^ EFER_NXE)),
        ("the memory map", |c| {
            c.remap();
            Ok(())
        }),
        ("a state", |c| {
            let mut state = accel_api::x86::CpuState::reset(0);
            c.save_state(&mut state);
            c.load_state(&state);
            Ok(())
        }),
    ];
    for (what, change) in changes {
        let mut c = with_pcid(Mode::Long, 0);
        c.cr0 |= CR0_PG;
        c.cr4 |= CR4_PCIDE | CR4_PAE;
        c.write_cr3(0x5_0001).unwrap();
        let to = Translation {
            host: std::ptr::without_provenance_mut(0x10000),
            page: 1,
            store: true,
            global: false,
            large: false,
        };
        c.tlb.fill(TlbMode::User, 0x5000, &to);
        c.write_cr3(1 << 63 | 0x5_0002).unwrap();
        change(&mut c).unwrap();
        c.write_cr3(1 << 63 | 0x5_0001).unwrap();
        assert_ne!(c.tlb.entry(TlbMode::User, 0x5000).read_tag, 0x5000, "{what}");
    }
}

/// Vol. 2B, MOV CR and vol. 3, 4.10.1: CR4.PCIDE and bit 63 of CR3.
#[test]
fn process_context_identifiers() {
    let mut c = with_pcid(Mode::Long, 0);
    c.cr0 |= CR0_PG;
    assert_eq!(c.write_cr3(1 << 63 | 0x50000), Err(Fault::GP0)); // without PCIDE the bit is reserved
    c.write_cr3(0x50018).unwrap();
    assert_eq!(c.write_cr4(c.cr4 | CR4_PCIDE), Err(Fault::GP0)); // CR3 bits 11:0 must be 0
    c.write_cr3(0x50000).unwrap();
    c.write_cr4(c.cr4 | CR4_PCIDE).unwrap();
    c.write_cr3(1 << 63 | 0x50007).unwrap();
    assert_eq!(c.cr3, 0x50007); // the bit is not stored
    assert_eq!(c.write_cr3(1 << 62 | 0x50000), Err(Fault::GP0));
    c.write_cr4(c.cr4 & !CR4_PCIDE).unwrap();
    let mut c = with_pcid(Mode::Protected32, 0);
    assert_eq!(c.write_cr4(c.cr4 | CR4_PCIDE), Err(Fault::GP0)); // outside long mode
}

/// 4.4.1: the four entries are registers. What is stored to the table counts once CR3, or what the section lists of CR0
/// and CR4, is written.
#[test]
fn pdptes_are_registers() {
    const TABLE: u64 = 0x5_0000;
    type Reload = fn(&mut Cpu) -> crate::Exec;
    let reloads: [(&str, Reload, bool); 6] = [
        ("CR3", |c| c.write_cr3(c.cr3), true),
        ("CR0.CD", |c| c.write_cr0(c.cr0 ^ CR0_CD), true),
        ("CR4.PGE", |c| c.write_cr4(c.cr4 ^ CR4_PGE), true),
        ("CR4.SMEP", |c| c.write_cr4(c.cr4 ^ CR4_SMEP), true),
        ("CR0.WP", |c| c.write_cr0(c.cr0 ^ CR0_WP), false),
        ("CR4.TSD", |c| c.write_cr4(c.cr4 ^ CR4_TSD), false),
    ];
    for (what, reload, loads) in reloads {
        let mut c = cpu_with_tables(Mode::Protected32, 0);
        c.cr4 = CR4_PAE;
        poke64(&mut c, TABLE, 0x5_1001);
        poke64(&mut c, 0x5_1000, 0x83); // 2 MiB at 0, mapped to themselves
        poke64(&mut c, 0x5_3000, 0x40_0083); // another directory: 2 MiB at 4 MiB
        c.write_cr3(TABLE).unwrap();
        c.write_cr0(c.cr0 | CR0_PG).unwrap();
        poke64(&mut c, TABLE, 0x5_3001);
        c.tlb.flush_all();
        assert_eq!(c.walk(0x1234, AccessKind::Read, false, false).unwrap().gpa, 0x1234);
        reload(&mut c).unwrap();
        let gpa = c.walk(0x1234, AccessKind::Read, false, false).unwrap().gpa;
        assert_eq!(gpa, if loads { 0x40_1234 } else { 0x1234 }, "{what}");
    }
}

/// 4.5, table 4-16: without 1-GiB pages PS is reserved in an entry that would map one.
#[test]
fn huge_pages_need_the_feature() {
    for (has, want) in [(true, Ok(0x1234)), (false, Err(Fault::with_code(crate::vector::PF, 9)))] {
        let mut c = cpu(Mode::Long);
        let model = Arc::make_mut(&mut c.model);
        model.features = if has { model.features } else { model.features.without(&[Feature::Pdpe1gb]) };
        poke64(&mut c, 0x5_0000, 0x5_1003);
        poke64(&mut c, 0x5_1000, 0x83);
        c.cr3 = 0x5_0000;
        c.cr0 |= CR0_PG;
        assert_eq!(c.walk(0x1234, AccessKind::Read, false, false).map(|w| w.gpa), want);
    }
}

/// 64-bit mode with SMAP; the pages of `user` are user pages, all others supervisor pages. `code` stands at 0x1000.
fn under_smap(cpl: u8, ac: bool, user: &[u64], code: &[u8]) -> Box<Cpu> {
    let mut c = cpu_with_tables(Mode::Long, cpl);
    for (at, value) in [(0x5_0000, 0x5_1007), (0x5_1000, 0x5_2007), (0x5_2000, 0x5_3007)] {
        poke64(&mut c, at, value);
    }
    for page in 0..256u64 {
        let rights = if user.contains(&(page << 12)) { 7 } else { 3 };
        poke64(&mut c, 0x5_3000 + 8 * page, page << 12 | rights);
    }
    poke(&mut c, 0x1000, code);
    let selectors = if cpl == 0 { [CODE0, DATA0] } else { [CODE3, DATA3] };
    stack64(&mut c, &[0x1800, selectors[0].into(), 2, STACK, selectors[1].into()]);
    c.rip = 0x1000;
    c.cr3 = 0x5_0000;
    c.cr0 |= CR0_PG;
    c.cr4 |= CR4_SMAP;
    c.set_rflags(if ac { flag::AC } else { 0 });
    c.tlb.flush_all();
    c.update_mode();
    c
}

/// 4.6.1: pops of IRET and RETF are accesses of the program: user-mode ones at CPL 3, else forbidden by SMAP unless AC.
#[test]
fn returns_from_user_stacks() {
    const STACK_PAGE: u64 = STACK & !0xfff;
    for code in [&[0x48, 0xcf][..], &[0x48, 0xcb]] {
        for (cpl, ac, fine) in [(0, false, false), (0, true, true), (3, false, true), (3, true, true)] {
            let mut c = under_smap(cpl, ac, &[STACK_PAGE, if cpl == 3 { 0x1000 } else { STACK_PAGE }], code);
            let want = if fine { Ok(()) } else { Err(Fault::with_code(crate::vector::PF, 1)) };
            assert_eq!(step(&mut c), want, "{code:x?} CPL {cpl} AC {ac}");
            assert_eq!(c.rip, if fine { 0x1800 } else { 0x1000 });
        }
    }
}

/// 6.14.1: which slot a page fault names, of a frame with so many bytes below a page's end, if that page or the next is not
/// there. The manual leaves it open; these are an AMD Zen 3's.
#[test]
fn returns_by_a_frame_across_pages() {
    const END: u64 = STACK;
    const ABOVE: u64 = END;
    const BELOW: u64 = END - 0x1000;
    let iretq = &[0x48, 0xcf][..];
    let retfq = &[0x48, 0xcb];
    let cases = [
        (iretq, ABOVE, 4, 12),
        (iretq, ABOVE, 8, 8),
        (iretq, ABOVE, 12, 4),
        (iretq, ABOVE, 16, 0),
        (iretq, ABOVE, 20, 0), // in the middle of a slot: the page's start
        (iretq, ABOVE, 24, 8),
        (iretq, ABOVE, 28, 4),
        (iretq, ABOVE, 32, 0),
        (iretq, BELOW, 40, -24),
        (iretq, BELOW, 24, -8),
        (iretq, BELOW, 20, -4),
        (iretq, BELOW, 16, -8),
        (iretq, BELOW, 12, -4),
        (iretq, BELOW, 8, -8),
        (retfq, ABOVE, 4, 4),
        (retfq, ABOVE, 8, 0),
        (retfq, BELOW, 16, -8),
        (retfq, BELOW, 12, -4),
        (retfq, BELOW, 8, -8),
    ];
    for (code, absent, below, named) in cases {
        let mut c = under_smap(0, false, &[], code);
        c.gpr[gpr::RSP] = END - below;
        stack64(&mut c, &[0x1800, CODE0.into(), 2, STACK, DATA0.into()]);
        poke64(&mut c, 0x5_3000 + 8 * (absent >> 12), 0);
        c.tlb.flush_all();
        let registers = c.gpr;
        assert_eq!(step(&mut c), Err(Fault::with_code(crate::vector::PF, 0)), "{code:x?} {below}");
        let slot = c.fault_address.wrapping_sub(END).cast_signed();
        assert_eq!((slot, c.rip, c.gpr), (named, 0x1000, registers), "{code:x?} {below} {absent:#x}");
    }
}

/// 4.6.1: what the processor does by itself: the handler's stack on a user page takes AC at CPL 0 to 2 only, where STAC
/// set it, and descriptor tables on a user page are never read.
#[test]
fn implicit_accesses_under_smap() {
    let event = Delivery { vector: 0x21, error_code: None, return_rip: 0x1000, software: false, rflags: 2 };
    for (cpl, stack, ac, fine) in [
        (0, STACK, false, false),
        (0, STACK, true, true),
        (3, INNER_STACK, false, false),
        (3, INNER_STACK, true, false),
    ] {
        let mut c = under_smap(cpl, ac, &[(stack - 8) & !0xfff], &[0x90]);
        assert_eq!(
            c.deliver_once(&event).map_err(Fault::vector),
            if fine { Ok(()) } else { Err(14) },
            "{cpl} {ac}"
        );
    }
    let mut c = under_smap(0, true, &[GDT], &[0x8e, 0xc0]); // mov es, ax
    c.gpr[gpr::RAX] = DATA0.into();
    assert_eq!(step(&mut c), Err(Fault::with_code(crate::vector::PF, 1)));
}

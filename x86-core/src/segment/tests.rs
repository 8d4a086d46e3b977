//! Against the Intel SDM vol. 3, chapters 3 and 5.

use super::*;
use crate::testing::{cpu, peek};
use crate::testing_tables::*;

/// 3.4.5: base, limit with granularity, attributes.
#[test]
fn descriptor_fields() {
    let d = Descriptor(descriptor(0x1234_5678, 0x9_abcd, 0xc0fb));
    assert_eq!((d.base(), d.limit(), d.attributes()), (0x1234_5678, 0x9abc_dfff, 0xc0fb));
    assert!(d.is_code() && d.present() && d.is_big() && !d.is_long() && !d.is_conforming() && d.dpl() == 3);
    assert_eq!(Descriptor(descriptor(0, 0x9_abcd, 0x93)).limit(), 0x9_abcd);
    let g = Descriptor(gate(0x1b, 0x1122_3344, 12, 2, 5));
    assert_eq!((g.gate_selector(), g.gate_offset(), g.dpl(), g.kind()), (0x1b, 0x1122_3344, 2, 12));
    assert!(g.is_system() && g.present());
}

/// 5.5 to 5.7: selector by register by CPL, in 32-bit and 64-bit mode.
#[test]
fn load_matrix() {
    let cases: &[(usize, u16, u8, Exec)] = &[
        (seg::DS, DATA0, 0, Ok(())),
        (seg::ES, DATA3, 0, Ok(())),
        (seg::FS, DATA0 | 3, 0, Err(Fault::gp(DATA0))),
        (seg::GS, DATA0, 3, Err(Fault::gp(DATA0))),
        (seg::DS, DATA3, 3, Ok(())),
        (seg::DS, CODE0, 0, Ok(())),
        (seg::DS, CODE3, 3, Ok(())),
        (seg::DS, CONFORMING | 3, 3, Ok(())),
        (seg::DS, EXECUTE_ONLY, 0, Err(Fault::gp(EXECUTE_ONLY))),
        (seg::DS, READ_ONLY, 0, Ok(())),
        (seg::DS, ABSENT_DATA, 0, Err(Fault::np(ABSENT_DATA))),
        (seg::DS, TR, 0, Err(Fault::gp(TR))),
        (seg::DS, 0x100, 0, Err(Fault::gp(0x100))),
        (seg::DS, 0xf9, 0, Err(Fault::gp(0xf8))),
        (seg::DS, 0xc, 0, Err(Fault::gp(0xc))), // LDT, and there is none
        (seg::DS, 3, 3, Ok(())),
        (seg::SS, DATA0, 0, Ok(())),
        (seg::SS, DATA3, 0, Err(Fault::gp(DATA3))),
        (seg::SS, DATA0 | 3, 0, Err(Fault::gp(DATA0))),
        (seg::SS, DATA3, 3, Ok(())),
        (seg::SS, READ_ONLY, 0, Err(Fault::gp(READ_ONLY))),
        (seg::SS, CODE0, 0, Err(Fault::gp(CODE0))),
        (seg::SS, ABSENT_DATA, 0, Err(Fault::ss(ABSENT_DATA))),
        (seg::SS, 3, 3, Err(Fault::GP0)),
        (seg::SS, 1, 0, Err(Fault::GP0)),
    ];
    for mode in [Mode::Protected32, Mode::Long] {
        for &(index, selector, cpl, want) in cases {
            let mut c = cpu_with_tables(mode, cpl);
            c.ldtr.unusable = true;
            let before = c.segs[index];
            assert_eq!(c.load_segment(index, selector), want, "{mode:?} {index} {selector:#x} CPL {cpl}");
            if want.is_ok() {
                assert_eq!((c.segs[index].selector, c.segs[index].unusable), (selector, is_null(selector)));
            } else {
                assert_eq!(c.segs[index], before);
            }
        }
        // A null SS is for 64-bit mode below CPL 3 only (5.4.1.1).
        let mut c = cpu_with_tables(mode, 0);
        let want = if mode == Mode::Long { Ok(()) } else { Err(Fault::GP0) };
        assert_eq!((c.load_segment(seg::SS, 0), c.cpl), (want, 0));
    }
}

/// 3.4.5.1: the accessed bit is set in memory when a segment is loaded.
#[test]
fn accessed_bit() {
    let mut c = cpu_with_tables(Mode::Protected32, 0);
    set_descriptor(&mut c, FREE, descriptor(0x1_0000, 0xff, 0x92));
    c.load_segment(seg::ES, FREE).unwrap();
    assert_eq!(peek(&mut c, GDT + u64::from(FREE) + 5, 1), [0x93]);
    let want = Segment { selector: FREE, base: 0x1_0000, limit: 0xff, attributes: 0x93, unusable: false };
    assert_eq!(c.segs[seg::ES], want);
}

/// 3.5: LDT descriptors, and segments in the LDT; 16 bytes in long mode (7.2.3).
#[test]
fn ldt() {
    for mode in [Mode::Protected32, Mode::Long] {
        let mut c = cpu_with_tables(mode, 0);
        poke64(&mut c, LDT + 8, descriptor(0x4_0000, 0xfff, 0x40f3));
        c.load_ldtr(LDT_SELECTOR).unwrap();
        c.load_segment(seg::FS, 0xf).unwrap();
        assert_eq!((c.segs[seg::FS].base, c.ldtr.base), (0x4_0000, LDT));
        assert_eq!(c.load_segment(seg::FS, 0x10c), Err(Fault::gp(0x10c)));
        assert_eq!(c.load_ldtr(TR), Err(Fault::gp(TR)));
        assert_eq!(c.load_ldtr(LDT_SELECTOR | 4), Err(Fault::gp(LDT_SELECTOR | 4)));
        c.load_ldtr(0).unwrap();
        assert!(c.ldtr.unusable);
        assert_eq!(c.load_segment(seg::FS, 0xf), Err(Fault::gp(0xc)));
    }
    let mut c = cpu_with_tables(Mode::Long, 0);
    poke64(&mut c, GDT + u64::from(LDT_SELECTOR) + 8, 0xffff_8000);
    c.load_ldtr(LDT_SELECTOR).unwrap();
    assert_eq!(c.ldtr.base, 0xffff_8000_0000_0000 | LDT);
    poke64(&mut c, GDT + u64::from(LDT_SELECTOR) + 8, 0x8000);
    assert_eq!(c.load_ldtr(LDT_SELECTOR), Err(Fault::gp(LDT_SELECTOR)));
    poke64(&mut c, GDT + u64::from(LDT_SELECTOR) + 8, 1 << 40);
    assert_eq!(c.load_ldtr(LDT_SELECTOR), Err(Fault::gp(LDT_SELECTOR)));
}

/// 7.2.2 and 7.2.3: LTR marks the TSS busy and refuses a busy one; no 16-bit TSS in long mode.
#[test]
fn task_register() {
    for mode in [Mode::Protected32, Mode::Long] {
        let mut c = cpu_with_tables(mode, 0);
        set_descriptor(&mut c, TR + 8, 0);
        c.load_tr(TR).unwrap();
        assert_eq!((c.tr.kind(), peek(&mut c, GDT + u64::from(TR) + 5, 1)), (11, vec![0x8b]));
        assert_eq!(c.load_tr(TR), Err(Fault::gp(TR)));
        assert_eq!(c.load_tr(0), Err(Fault::GP0));
        set_descriptor(&mut c, FREE, descriptor(TSS as u32, 0x2b, 0x81));
        let want = if mode == Mode::Long { Err(Fault::gp(FREE)) } else { Ok(()) };
        assert_eq!(c.load_tr(FREE), want);
        set_descriptor(&mut c, FREE, descriptor(TSS as u32, 0x67, 0x09));
        assert_eq!(c.load_tr(FREE), Err(Fault::np(FREE)));
    }
}

/// 21.1.1: real mode shifts the selector and keeps the limit that protected mode left ("unreal" mode).
#[test]
fn real_mode_loads() {
    let mut c = cpu(Mode::Real);
    c.segs[seg::DS].limit = 0xffff_ffff;
    c.load_segment(seg::DS, 0x1234).unwrap();
    assert_eq!((c.segs[seg::DS].base, c.segs[seg::DS].limit), (0x12340, 0xffff_ffff));
    let mut c = cpu(Mode::Virtual8086);
    c.load_segment(seg::SS, 0x1234).unwrap();
    assert_eq!((c.segs[seg::SS], c.cpl), (virtual8086_segment(0x1234), 3));
}

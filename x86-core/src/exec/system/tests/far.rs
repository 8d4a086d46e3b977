//! Far transfers, gates, returns, segment loads by instruction.

use accel_api::x86::{Segment, gpr};

use super::*;
use crate::alu::flag;
use crate::cpu::seg;
use crate::mode::{Mode, bits};
use crate::segment::null_segment;
use crate::testing::{cpu, run, step};
use crate::testing_tables::*;
use crate::{Fault, vector};

/// JMP far in real mode and by pointer in memory.
#[test]
fn real_mode_jumps() {
    let mut c = cpu(Mode::Real);
    c.gpr[gpr::RSP] = STACK;
    run(&mut c, &[0xea, 0x34, 0x12, 0x00, 0xf0]).unwrap();
    assert_eq!((c.rip, c.segs[seg::CS].selector, c.segs[seg::CS].base), (0x1234, 0xf000, 0xf_0000));
    c.segs[seg::CS] = Segment::real(0);
    run(&mut c, &[0x9a, 0x34, 0x12, 0x00, 0x02]).unwrap();
    assert_eq!((c.rip, c.segs[seg::CS].base), (0x1234, 0x2000));
    assert_eq!((word(&mut c, STACK - 4), word(&mut c, STACK - 2)), (0x1005, 0));
    poke(&mut c, 0x2000 + 0x1234, &[0xca, 2, 0]);
    step(&mut c).unwrap();
    assert_eq!((c.rip, c.segs[seg::CS].base, c.gpr[gpr::RSP]), (0x1005, 0, STACK + 2));
    poke(&mut c, 0x3000, &[0x78, 0x56, 0x10, 0x00]);
    run(&mut c, &[0xff, 0x2e, 0x00, 0x30]).unwrap();
    assert_eq!((c.rip, c.segs[seg::CS].base), (0x5678, 0x100));
}

/// The way of a secondary CPU: real mode, protected mode by LMSW, PAE and LME, paging, 64-bit code (9.9.1, 10.8.5).
#[test]
fn from_real_mode_to_64_bit_mode() {
    let mut c = cpu_with_tables(Mode::Protected32, 0);
    set_descriptor(&mut c, FREE, descriptor(0, 0xf_ffff, 0xa09b));
    poke(&mut c, 0x500, &[0xff, 0, 0, GDT.to_le_bytes()[1], 0, 0]);
    // Identity map of 2 MiB.
    for (at, value) in [(0x50000u64, 0x51003u64), (0x51000, 0x52003), (0x52000, 0x83)] {
        poke64(&mut c, at, value);
    }
    c.init_reset();
    c.start_up(1);
    let mut at = 0x1000;
    let mut go = |c: &mut Cpu, code: &[u8]| {
        poke(c, at, code);
        step(c).unwrap_or_else(|f| panic!("{code:x?}: {f:?}"));
        at = if c.mode == Mode::Real { c.segs[seg::CS].base + c.rip } else { c.rip };
    };
    go(&mut c, &[0xfa]); // cli
    go(&mut c, &[0x0f, 0x01, 0x16, 0x00, 0x05]); // lgdt [0x500]
    assert_eq!((c.gdtr.base, c.gdtr.limit), (GDT, 0xff));
    c.gpr[gpr::RAX] = 1;
    go(&mut c, &[0x0f, 0x01, 0xf0]); // lmsw ax
    assert_eq!((c.mode, c.cpl), (Mode::Protected16, 0));
    let target = (0x1000 + c.rip + 8) as u32; // jmp dword 8:next, 8 bytes in 16-bit code
    let mut jump = vec![0x66, 0xea];
    jump.extend(target.to_le_bytes());
    jump.extend(CODE0.to_le_bytes());
    let here = 0x1000 + c.rip;
    poke(&mut c, here, &jump);
    step(&mut c).unwrap();
    assert_eq!((c.mode, c.rip), (Mode::Protected32, target.into()));
    at = c.rip;
    let mut go = |c: &mut Cpu, code: &[u8]| {
        poke(c, at, code);
        step(c).unwrap_or_else(|f| panic!("{code:x?}: {f:?}"));
        at = c.rip;
    };
    c.gpr[gpr::RAX] = DATA0.into();
    go(&mut c, &[0x8e, 0xd0]); // mov ss, ax
    assert!(c.shadow);
    go(&mut c, &[0x8e, 0xd8]); // mov ds, ax
    c.gpr[gpr::RAX] = bits::CR4_PAE;
    go(&mut c, &[0x0f, 0x22, 0xe0]); // mov cr4, eax
    c.gpr[gpr::RAX] = 0x50000;
    go(&mut c, &[0x0f, 0x22, 0xd8]); // mov cr3, eax
    (c.gpr[gpr::RCX], c.gpr[gpr::RAX], c.gpr[gpr::RDX]) = (0xc000_0080, bits::EFER_LME, 0);
    go(&mut c, &[0x0f, 0x30]); // wrmsr
    assert!(!c.long_mode());
    c.gpr[gpr::RAX] = 0x8000_0001;
    go(&mut c, &[0x0f, 0x22, 0xc0]); // mov cr0, eax
    assert!(c.long_mode() && c.mode == Mode::Protected32);
    let target = (at + 7) as u32;
    let mut jump = vec![0xea];
    jump.extend(target.to_le_bytes());
    jump.extend(FREE.to_le_bytes());
    poke(&mut c, at, &jump);
    step(&mut c).unwrap();
    assert_eq!((c.mode, c.rip, c.cpl), (Mode::Long, target.into(), 0));
    // And LTR in 64-bit mode.
    c.gpr[gpr::RAX] = TR.into();
    set_descriptor(&mut c, TR + 8, 0);
    let here = c.rip;
    poke(&mut c, here, &[0x0f, 0x00, 0xd8]);
    step(&mut c).unwrap();
    assert_eq!((c.tr.selector, c.tr.base), (TR, TSS));
}

/// JMP and CALL to code segments: privilege and presence (5.8.1).
#[test]
fn direct_far_transfers() {
    let cases: &[(u16, u8, Result<(), Fault>)] = &[
        (CODE0, 0, Ok(())),
        (CODE0, 3, Err(Fault::gp(CODE0))),
        (CODE3, 3, Ok(())),
        (CODE3, 0, Err(Fault::gp(CODE3))),
        (CONFORMING, 3, Ok(())),
        (CONFORMING, 0, Ok(())),
        (ABSENT_CODE, 0, Err(Fault::np(ABSENT_CODE))),
        (DATA0, 0, Err(Fault::gp(DATA0))),
        (0, 0, Err(Fault::GP0)),
        (0x108, 0, Err(Fault::gp(0x108))),
    ];
    for &(selector, cpl, want) in cases {
        for call in [false, true] {
            let mut c = cpu_with_tables(Mode::Protected32, cpl);
            let mut code = vec![if call { 0x9a } else { 0xea }, 0x78, 0x56, 0, 0];
            code.extend(selector.to_le_bytes());
            let old = c.segs[seg::CS].selector;
            assert_eq!(run(&mut c, &code), want, "{selector:#x} CPL {cpl}");
            if want.is_ok() {
                assert_eq!((c.rip, c.cpl), (0x5678, cpl));
                assert_eq!(c.segs[seg::CS].selector, selector & !3 | u16::from(cpl));
                if call {
                    assert_eq!((peek32(&mut c, STACK - 8), peek32(&mut c, STACK - 4)), (0x1007, old.into()));
                }
            } else {
                assert_eq!((c.rip, c.segs[seg::CS].selector, c.gpr[gpr::RSP]), (0x1000, old, STACK));
            }
        }
    }
}

/// 5.8.5: CALL through a 32-bit gate to level 0 copies parameters; RETF n comes back and releases both.
#[test]
fn call_gate_with_parameters() {
    let mut c = cpu_with_tables(Mode::Protected32, 3);
    set_descriptor(&mut c, FREE, gate(CODE0, HANDLER, 12, 3, 2));
    stack32(&mut c, &[0xaaaa, 0xbbbb]);
    let mut code = vec![0x9a, 0, 0, 0, 0];
    code.extend((FREE | 3).to_le_bytes());
    run(&mut c, &code).unwrap();
    assert_eq!((c.rip, c.cpl, c.gpr[gpr::RSP]), (HANDLER, 0, INNER_STACK - 24));
    let frame: Vec<u32> = (0..6).map(|i| peek32(&mut c, INNER_STACK - 24 + 4 * i)).collect();
    assert_eq!(frame, [0x1007, CODE3.into(), 0xaaaa, 0xbbbb, STACK as u32, DATA3.into()]);
    c.segs[seg::DS] = Segment::flat(DATA0, 0xc093);
    poke(&mut c, HANDLER, &[0xca, 8, 0]);
    step(&mut c).unwrap();
    assert_eq!((c.rip, c.cpl, c.gpr[gpr::RSP]), (0x1007, 3, STACK + 8));
    assert!(c.segs[seg::DS].unusable && !c.segs[seg::ES].unusable); // 5.8.6
    // A gate of DPL 0 is not for level 3.
    set_descriptor(&mut c, FREE, gate(CODE0, HANDLER, 12, 0, 0));
    assert_eq!(run(&mut c, &code), Err(Fault::gp(FREE)));
}

/// 5.8.3: 16-bit gates push words and take 16 bits of the offset; a conforming target keeps the level; JMP may not go
/// inward.
#[test]
fn other_call_gates() {
    let call = |c: &mut Cpu, opcode: u8| {
        let mut code = vec![opcode, 0, 0, 0, 0];
        code.extend((FREE | 3).to_le_bytes());
        run(c, &code)
    };
    let mut c = cpu_with_tables(Mode::Protected32, 3);
    set_descriptor(&mut c, FREE, gate(CODE0, 0x1_0000 | HANDLER, 4, 3, 1));
    poke(&mut c, STACK, &[0xaa, 0xbb]);
    call(&mut c, 0x9a).unwrap();
    assert_eq!((c.rip, c.cpl, c.gpr[gpr::RSP]), (HANDLER, 0, INNER_STACK - 10));
    let frame: Vec<u16> = (0..5).map(|i| word(&mut c, INNER_STACK - 10 + 2 * i)).collect();
    assert_eq!(frame, [0x1007, CODE3, 0xbbaa, STACK as u16, DATA3]);
    run(&mut c, &[0x66, 0xca, 2, 0]).unwrap();
    assert_eq!((c.rip, c.cpl, c.gpr[gpr::RSP]), (0x1007, 3, STACK + 2));

    for opcode in [0x9a, 0xea] {
        let mut c = cpu_with_tables(Mode::Protected32, 3);
        set_descriptor(&mut c, FREE, gate(CONFORMING, HANDLER, 12, 3, 0));
        call(&mut c, opcode).unwrap();
        assert_eq!((c.rip, c.cpl, c.segs[seg::CS].selector), (HANDLER, 3, CONFORMING | 3));
        assert_eq!(c.gpr[gpr::RSP], if opcode == 0x9a { STACK - 8 } else { STACK });
    }
    let mut c = cpu_with_tables(Mode::Protected32, 3);
    set_descriptor(&mut c, FREE, gate(CODE0, HANDLER, 12, 3, 0));
    assert_eq!(call(&mut c, 0xea), Err(Fault::gp(CODE0)));
}

/// 5.8.3.1: call gates of 64-bit mode have 16 bytes, push 8-byte items, and take RSP0.
#[test]
fn call_gate_of_64_bit_mode() {
    let mut c = cpu_with_tables(Mode::Long, 3);
    set_descriptor(&mut c, FREE, gate(CODE0, HANDLER, 12, 3, 0));
    set_descriptor(&mut c, FREE + 8, 0xffff_8000);
    poke(&mut c, 0x3000, &[0, 0, 0, 0, (FREE | 3) as u8, 0]);
    c.gpr[gpr::RAX] = 0x3000;
    run(&mut c, &[0xff, 0x18]).unwrap();
    assert_eq!((c.rip, c.cpl, c.gpr[gpr::RSP]), (0xffff_8000_0000_0000 | HANDLER, 0, INNER_STACK - 32));
    let frame: Vec<u64> = (0..4).map(|i| peek64(&mut c, INNER_STACK - 32 + 8 * i)).collect();
    assert_eq!(frame, [0x1002, CODE3.into(), STACK, DATA3.into()]);
    assert_eq!((c.segs[seg::SS].selector, c.segs[seg::SS].unusable), (0, true));
    run(&mut c, &[0x48, 0xcb]).unwrap();
    assert_eq!((c.rip, c.cpl, c.gpr[gpr::RSP]), (0x1002, 3, STACK));
    set_descriptor(&mut c, FREE + 8, 0x8000);
    assert_eq!(run(&mut c, &[0xff, 0x18]), Err(Fault::GP0));
    set_descriptor(&mut c, FREE, gate(CODE0, HANDLER, 4, 3, 0));
    assert_eq!(run(&mut c, &[0xff, 0x18]), Err(Fault::gp(FREE)));
}

/// IRETQ: to the same and the outer level, to compatibility mode, null SS, flags by level, NMI (vol. 2A, IRET).
#[test]
fn iretq() {
    let flags = flag::IF | flag::IOPL | flag::CF | flag::RF | flag::AC;
    for (cpl, cs, ss, to_mode) in [
        (0, CODE0, DATA0, Mode::Long),
        (0, CODE0, 0, Mode::Long),
        (0, CODE3, DATA3, Mode::Long),
        (0, COMPAT3, DATA3, Mode::Protected32),
        (3, CODE3, DATA3, Mode::Long),
    ] {
        let mut c = cpu_with_tables(Mode::Long, cpl);
        c.nmi_masked = true;
        stack64(&mut c, &[0x5678, cs.into(), flags, 0x8008, ss.into()]);
        run(&mut c, &[0x48, 0xcf]).unwrap();
        assert_eq!((c.rip, c.gpr[gpr::RSP], c.mode), (0x5678, 0x8008, to_mode));
        assert_eq!((c.segs[seg::CS].selector, c.segs[seg::SS].selector, c.cpl), (cs, ss, (cs & 3) as u8));
        let hidden = if cpl == 3 { flag::IF | flag::IOPL } else { 0 };
        assert_eq!((c.rflags(), c.nmi_masked), (2 | flags & !hidden, false));
    }
    // Entries from level 3 leave a null SS, and interrupts on top of that come back to it.
    let mut c = cpu_with_tables(Mode::Long, 3);
    c.raise(Fault::UD).unwrap();
    let rsp = c.gpr[gpr::RSP];
    c.raise(Fault::UD).unwrap();
    poke(&mut c, HANDLER, &[0x48, 0xcf]);
    step(&mut c).unwrap();
    assert_eq!((c.gpr[gpr::RSP], c.cpl, c.segs[seg::SS].unusable), (rsp, 0, true));
}

/// IRETQ refuses what the manual's operation section refuses, and changes nothing but the NMI mask.
#[test]
fn bad_iretq() {
    let cases: &[(&str, u8, [u64; 5], Fault)] = &[
        ("rip", 0, [1 << 47, CODE3 as u64, 2, STACK, DATA3 as u64], Fault::GP0),
        ("null cs", 0, [0, 3, 2, STACK, DATA3 as u64], Fault::GP0),
        ("data as cs", 0, [0, DATA0 as u64, 2, STACK, DATA0 as u64], Fault::gp(DATA0)),
        ("rpl != dpl", 0, [0, CODE0 as u64 | 3, 2, STACK, DATA3 as u64], Fault::gp(CODE0)),
        ("inward", 3, [0, CODE0 as u64, 2, STACK, DATA0 as u64], Fault::gp(CODE0)),
        ("absent", 0, [0, ABSENT_CODE as u64, 2, STACK, DATA0 as u64], Fault::np(ABSENT_CODE)),
        ("null ss to 3", 0, [0, CODE3 as u64, 2, STACK, 3], Fault::GP0),
        ("ss of 0 to 3", 0, [0, CODE3 as u64, 2, STACK, DATA0 as u64], Fault::gp(DATA0)),
        ("absent ss", 0, [0, CODE0 as u64, 2, STACK, ABSENT_DATA as u64], Fault::ss(ABSENT_DATA)),
    ];
    for &(what, cpl, words, want) in cases {
        let mut c = cpu_with_tables(Mode::Long, cpl);
        c.nmi_masked = true;
        stack64(&mut c, &words);
        let before = (c.rflags(), c.segs, c.gpr);
        assert_eq!(run(&mut c, &[0x48, 0xcf]), Err(want), "{what}");
        assert_eq!((c.rflags(), c.segs, c.gpr), before, "{what}");
        assert!(!c.nmi_masked);
    }
    let mut c = cpu_with_tables(Mode::Long, 0);
    c.set_rflags(flag::NT);
    assert_eq!(run(&mut c, &[0x48, 0xcf]), Err(Fault::GP0));
    let mut c = cpu_with_tables(Mode::Protected32, 0);
    c.set_rflags(flag::NT);
    assert_eq!(run(&mut c, &[0xcf]).map_err(Fault::vector), Err(vector::TS));
}

/// Returns to an outer level make segments null that it may not use, and null selectors 0 (5.8.6; vol. 2A, IRET and RET,
/// which do not speak of bases). The bases stay: a program's TLS would not survive an interrupt otherwise.
#[test]
fn returns_outward_keep_bases() {
    const FS_BASE: u64 = 0x7f00_1234_5000;
    const GS_BASE: u64 = 0x7f00_6789_a000;
    let segment = |selector, rights, base| Segment { selector, base, ..Segment::flat(selector, rights) };
    for (code, frame) in [
        (&[0x48, 0xcf][..], &[0x5678, CODE3.into(), 2, STACK, DATA3.into()][..]),
        (&[0x48, 0xcb], &[0x5678, CODE3.into(), STACK, DATA3.into()]),
    ] {
        for (fs, gs, expected) in [
            (null_segment(0, 0), null_segment(3, 0), [(0, true), (0, true)]),
            (null_segment(1, 0), null_segment(2, 0), [(0, true), (0, true)]),
            (segment(DATA0, 0xc093, 0), segment(DATA3, 0xc0f3, 0), [(0, true), (DATA3, false)]),
        ] {
            let mut c = cpu_with_tables(Mode::Long, 0);
            stack64(&mut c, frame);
            c.segs[seg::DS] = null_segment(2, 0);
            c.segs[seg::ES] = segment(DATA0, 0xc093, 0);
            c.segs[seg::FS] = Segment { base: FS_BASE, ..fs };
            c.segs[seg::GS] = Segment { base: GS_BASE, ..gs };
            run(&mut c, code).unwrap();
            assert_eq!((c.rip, c.cpl), (0x5678, 3));
            let seen = [seg::FS, seg::GS].map(|i| (c.segs[i].selector, c.segs[i].unusable));
            assert_eq!(seen, expected, "{code:x?}");
            assert_eq!([c.segs[seg::FS].base, c.segs[seg::GS].base], [FS_BASE, GS_BASE], "{code:x?}");
            let seen = [seg::DS, seg::ES].map(|i| (c.segs[i].selector, c.segs[i].unusable));
            assert_eq!(seen, [(0, true); 2], "{code:x?}");
        }
    }
    // To the same level nothing is dropped.
    let mut c = cpu_with_tables(Mode::Long, 0);
    stack64(&mut c, &[0x5678, CODE0.into(), 2, STACK, DATA0.into()]);
    c.segs[seg::GS] = Segment { base: GS_BASE, ..null_segment(2, 0) };
    run(&mut c, &[0x48, 0xcf]).unwrap();
    assert_eq!((c.segs[seg::GS].selector, c.segs[seg::GS].base), (2, GS_BASE));
}

/// IRETD in protected mode: the same level pops three words, an outer one five; virtual-8086 mode nine (21.2.2).
#[test]
fn iretd() {
    let mut c = cpu_with_tables(Mode::Protected32, 0);
    stack32(&mut c, &[0x5678, CODE0.into(), flag::IF as u32]);
    run(&mut c, &[0xcf]).unwrap();
    assert_eq!((c.rip, c.gpr[gpr::RSP], c.has(flag::IF)), (0x5678, STACK + 12, true));
    c.gpr[gpr::RSP] = STACK;
    stack32(&mut c, &[0x5678, CODE3.into(), 0, 0x8000, DATA3.into()]);
    run(&mut c, &[0xcf]).unwrap();
    assert_eq!((c.cpl, c.gpr[gpr::RSP], c.segs[seg::SS].selector), (3, 0x8000, DATA3));

    let mut c = cpu_with_tables(Mode::Protected32, 0);
    let flags = (flag::VM | flag::IF | flag::IOPL) as u32;
    stack32(&mut c, &[0x42, 0x101, flags, 0xfffe, 0x102, 0x103, 0x104, 0x105, 0x106]);
    run(&mut c, &[0xcf]).unwrap();
    assert_eq!((c.mode, c.cpl, c.rip, c.gpr[gpr::RSP]), (Mode::Virtual8086, 3, 0x42, 0xfffe));
    let selectors = c.segs.map(|s| s.selector);
    assert_eq!(selectors, [0x103, 0x101, 0x102, 0x104, 0x105, 0x106]);
    assert_eq!(c.segs[seg::DS].base, 0x1040);
}

/// IRET in real mode: 16 bits of flags, or 32 without VM, VIF and VIP.
#[test]
fn iret_real() {
    let mut c = cpu(Mode::Real);
    c.gpr[gpr::RSP] = STACK;
    poke(&mut c, STACK, &[0x34, 0x12, 0x00, 0x10, 0x01, 0x02]);
    run(&mut c, &[0xcf]).unwrap();
    assert_eq!((c.rip, c.segs[seg::CS].base, c.rflags()), (0x1234, 0x10000, 2 | flag::CF | flag::IF));
    let mut c = cpu(Mode::Real);
    c.gpr[gpr::RSP] = STACK;
    let flags = (flag::VM | flag::VIF | flag::VIP | flag::AC | flag::ID) as u32;
    stack32(&mut c, &[0x1234, 0x1000, flags]);
    run(&mut c, &[0x66, 0xcf]).unwrap();
    assert_eq!((c.mode, c.rflags()), (Mode::Real, 2 | flag::AC | flag::ID));
}

/// MOV, POP, LSS: registers and stack change together or not at all.
#[test]
fn segment_instructions() {
    let mut c = cpu_with_tables(Mode::Protected32, 0);
    stack32(&mut c, &[0xffff_0000 | u32::from(DATA3)]);
    run(&mut c, &[0x07]).unwrap(); // pop es
    assert_eq!((c.segs[seg::ES].selector, c.gpr[gpr::RSP]), (DATA3, STACK + 4));
    c.gpr[gpr::RSP] = STACK;
    stack32(&mut c, &[ABSENT_DATA.into()]);
    assert_eq!(run(&mut c, &[0x1f]), Err(Fault::np(ABSENT_DATA)));
    assert_eq!(c.gpr[gpr::RSP], STACK);
    poke(&mut c, 0x3000, &0x1234_5678u32.to_le_bytes());
    poke(&mut c, 0x3004, &DATA16.to_le_bytes());
    run(&mut c, &[0x0f, 0xb2, 0x25, 0, 0x30, 0, 0]).unwrap(); // lss esp, [0x3000]
    assert_eq!((c.segs[seg::SS].selector, c.gpr[gpr::RSP], c.stack_width()), (DATA16, 0x1234_5678, 2));
    assert_eq!(run(&mut c, &[0x8e, 0xc8]), Err(Fault::UD)); // mov cs, ax
    let mut c = cpu_with_tables(Mode::Long, 0);
    c.gpr[gpr::RAX] = DATA0.into();
    run(&mut c, &[0x8e, 0xd0]).unwrap();
    assert!(c.shadow);
    // A null selector clears the base (vol. 2B, MOV).
    c.segs[seg::GS].base = 0x1234;
    c.gpr[gpr::RAX] = 0;
    run(&mut c, &[0x8e, 0xe8]).unwrap();
    assert_eq!(c.segs[seg::GS].base, 0);
}

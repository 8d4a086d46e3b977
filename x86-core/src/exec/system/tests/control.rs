//! Near branches, frames and flags.

use accel_api::x86::gpr;

use super::*;
use crate::alu::flag;
use crate::mode::{Mode, bits};
use crate::testing::{cpu, run};
use crate::testing_tables::*;
use crate::{Fault, exec};

/// JMP, CALL, RET: operand size by mode, wrap-around of IP, what is pushed.
#[test]
fn near_transfers() {
    // (mode, code, RIP after, bytes pushed)
    let cases: &[(Mode, &[u8], u64, u64)] = &[
        (Mode::Long, &[0xeb, 0x10], 0x1012, 0),
        (Mode::Long, &[0xe9, 0xfb, 0xff, 0xff, 0xff], 0x1000, 0),
        (Mode::Long, &[0xe8, 0, 1, 0, 0], 0x1105, 8),
        (Mode::Long, &[0x66, 0xe8, 0, 1, 0, 0], 0x1106, 8), // the prefix is ignored
        (Mode::Long, &[0xff, 0xe0], 0x4_0000_1234, 0),
        (Mode::Long, &[0xff, 0xd0], 0x4_0000_1234, 8),
        (Mode::Protected32, &[0xe8, 0, 1, 0, 0], 0x1105, 4),
        (Mode::Protected32, &[0x66, 0xe8, 0, 1], 0x1104, 2),
        (Mode::Protected32, &[0x66, 0xe9, 0xfc, 0xdf], 0xf000, 0),
        (Mode::Protected32, &[0xff, 0xd0], 0x1234, 4),
        (Mode::Real, &[0xe8, 0xfd, 0x0f], 0x2000, 2),
        (Mode::Real, &[0xe9, 0xfd, 0xe0], 0xf100, 0),
        (Mode::Real, &[0x66, 0xe8, 0, 0, 0, 0], 0x1006, 4),
        (Mode::Real, &[0xeb, 0x80], 0xf82, 0),
    ];
    for &(mode, code, rip, pushed) in cases {
        let mut c = cpu(mode);
        c.gpr[gpr::RSP] = STACK;
        c.gpr[gpr::RAX] = if mode == Mode::Long { 0x4_0000_1234 } else { 0x1234 };
        run(&mut c, code).unwrap();
        assert_eq!((c.rip, STACK - c.gpr[gpr::RSP]), (rip, pushed), "{mode:?} {code:x?}");
        if pushed != 0 {
            let at = c.gpr[gpr::RSP];
            assert_eq!(u64::from(word(&mut c, at)), 0x1000 + code.len() as u64);
        }
    }
    for (mode, code, words, released) in [
        (Mode::Long, &[0xc3u8][..], [0x7_0000_1234u64, 0], 8),
        (Mode::Long, &[0xc2, 0x10, 0], [0x1234, 0], 24),
        (Mode::Protected32, &[0xc3], [0x1234, 0], 4),
        (Mode::Protected32, &[0x66, 0xc3], [0xff_1234, 0], 2),
        (Mode::Real, &[0xc2, 4, 0], [0xff_1234, 0], 6),
    ] {
        let mut c = cpu(mode);
        c.gpr[gpr::RSP] = STACK;
        stack64(&mut c, &words);
        run(&mut c, code).unwrap();
        let mask = if code[0] == 0x66 || mode == Mode::Real { 0xffff } else { u64::MAX };
        assert_eq!((c.rip, c.gpr[gpr::RSP] - STACK), (words[0] & mask, released), "{mode:?} {code:x?}");
    }
}

/// JMP/CALL/RET: #GP(0) for a target that is not canonical or beyond the limit; nothing changes.
#[test]
fn bad_targets() {
    for code in [&[0xff, 0xe0][..], &[0xff, 0xd0], &[0xc3]] {
        let mut c = cpu(Mode::Long);
        c.gpr[gpr::RSP] = STACK;
        c.gpr[gpr::RAX] = 1 << 47;
        stack64(&mut c, &[1 << 47]);
        assert_eq!(run(&mut c, code), Err(Fault::GP0));
        assert_eq!((c.rip, c.gpr[gpr::RSP]), (0x1000, STACK));
        let mut c = cpu(Mode::Protected32);
        c.segs[crate::cpu::seg::CS].limit = 0x1fff;
        c.gpr[gpr::RSP] = STACK;
        c.gpr[gpr::RAX] = 0x2000;
        stack32(&mut c, &[0x2000]);
        assert_eq!(run(&mut c, code), Err(Fault::GP0));
        assert_eq!((c.rip, c.gpr[gpr::RSP]), (0x1000, STACK));
    }
}

/// Jcc: all conditions, both encodings. LOOPcc and JCXZ: the count's width is the address size.
#[test]
fn conditional_branches() {
    let mut c = cpu(Mode::Long);
    for cc in 0..16u8 {
        for rflags in (0..0x1000u64).filter(|rflags| rflags & !flag::ARITH == 0) {
            c.set_rflags(rflags);
            let taken = c.flags.condition(cc);
            run(&mut c, &[0x70 | cc, 0x20]).unwrap();
            assert_eq!(c.rip, if taken { 0x1022 } else { 0x1002 });
            run(&mut c, &[0x0f, 0x80 | cc, 0, 0xf0, 0xff, 0xff]).unwrap();
            assert_eq!(c.rip, if taken { 6 } else { 0x1006 });
        }
    }
    // (mode, code, RCX, ZF, taken, RCX after)
    type Case = (Mode, &'static [u8], u64, bool, bool, u64);
    let cases: &[Case] = &[
        (Mode::Long, &[0xe2, 0x10], 1 << 32, false, true, 0xffff_ffff),
        (Mode::Long, &[0xe2, 0x10], 1, false, false, 0),
        (Mode::Long, &[0x67, 0xe2, 0x10], 1 << 32, false, true, 0xffff_ffff),
        (Mode::Long, &[0x67, 0xe2, 0x10], 0xf_0000_0001, false, false, 0),
        (Mode::Protected32, &[0x67, 0xe2, 0x10], 0x1_0000, false, true, 0x1_ffff),
        (Mode::Long, &[0xe1, 0x10], 5, true, true, 4),
        (Mode::Long, &[0xe1, 0x10], 5, false, false, 4),
        (Mode::Long, &[0xe0, 0x10], 5, true, false, 4),
        (Mode::Long, &[0xe0, 0x10], 1, false, false, 0),
        (Mode::Long, &[0xe3, 0x10], 0, false, true, 0),
        (Mode::Long, &[0x67, 0xe3, 0x10], 1 << 32, false, true, 1 << 32),
        (Mode::Real, &[0xe3, 0x10], 0x1_0000, false, true, 0x1_0000),
        (Mode::Real, &[0x67, 0xe3, 0x10], 0x1_0000, false, false, 0x1_0000),
    ];
    for &(mode, code, rcx, zf, taken, after) in cases {
        let mut c = cpu(mode);
        c.gpr[gpr::RCX] = rcx;
        c.flags.assign(flag::ZF, zf);
        run(&mut c, code).unwrap();
        let next = 0x1000 + code.len() as u64;
        let want = (if taken { next + 0x10 } else { next }, after, zf);
        assert_eq!((c.rip, c.gpr[gpr::RCX], c.flags.zf()), want, "{mode:?} {code:x?}");
    }
}

/// ENTER and LEAVE, nested levels included; a fault in the middle changes no register.
#[test]
fn frames() {
    let mut c = cpu(Mode::Long);
    c.gpr[gpr::RSP] = STACK;
    c.gpr[gpr::RBP] = 0x8800;
    run(&mut c, &[0xc8, 0x20, 0, 0]).unwrap();
    assert_eq!((c.gpr[gpr::RBP], c.gpr[gpr::RSP]), (STACK - 8, STACK - 0x28));
    run(&mut c, &[0xc9]).unwrap();
    assert_eq!((c.gpr[gpr::RBP], c.gpr[gpr::RSP]), (0x8800, STACK));

    poke64(&mut c, 0x8800 - 8, 0x1111);
    poke64(&mut c, 0x8800 - 16, 0x2222);
    run(&mut c, &[0xc8, 0x10, 0, 0x23]).unwrap(); // the level counts modulo 32
    let words: Vec<u64> = (1..=4).map(|i| peek64(&mut c, STACK - 8 * i)).collect();
    assert_eq!(words, [0x8800, 0x1111, 0x2222, STACK - 8]);
    assert_eq!((c.gpr[gpr::RBP], c.gpr[gpr::RSP]), (STACK - 8, STACK - 0x30));

    let mut c = cpu(Mode::Protected32);
    c.segs[crate::cpu::seg::SS].attributes |= 4; // expand down
    c.segs[crate::cpu::seg::SS].limit = 0x8fff;
    c.gpr[gpr::RSP] = STACK + 8;
    c.gpr[gpr::RBP] = 0x1_1111;
    assert_eq!(run(&mut c, &[0xc8, 0x20, 0, 0]), Err(Fault::SS0));
    assert_eq!((c.gpr[gpr::RBP], c.gpr[gpr::RSP]), (0x1_1111, STACK + 8));
    let mut c = cpu(Mode::Real);
    c.gpr[gpr::RSP] = 0xaaaa_9000;
    c.gpr[gpr::RBP] = 0xbbbb_8800;
    run(&mut c, &[0xc8, 0x20, 0, 0]).unwrap();
    assert_eq!((c.gpr[gpr::RBP], c.gpr[gpr::RSP]), (0xbbbb_8ffe, 0xaaaa_8fde));
    run(&mut c, &[0xc9]).unwrap();
    assert_eq!((c.gpr[gpr::RBP], c.gpr[gpr::RSP]), (0xbbbb_8800, 0xaaaa_9000));
}

/// POPF by CPL and IOPL (SDM vol. 2B, POPF, table 4-21); PUSHF hides RF and VM.
#[test]
fn popf_privileges() {
    let all = flag::IF | flag::IOPL | flag::AC | flag::ID | flag::DF | flag::NT | flag::CF;
    for (cpl, iopl, takes) in [(0, 0, all), (3, 0, all & !(flag::IF | flag::IOPL)), (3, 3, all & !flag::IOPL)]
    {
        let mut c = cpu_with_tables(Mode::Long, cpl);
        let before = iopl << 12;
        c.set_rflags(before);
        stack64(&mut c, &[all | flag::VIF | flag::VIP | flag::RF | flag::VM]);
        run(&mut c, &[0x9d]).unwrap();
        let iopl_now = if cpl == 0 { flag::IOPL } else { before };
        assert_eq!(c.rflags(), 2 | takes & !flag::IOPL | iopl_now, "CPL {cpl} IOPL {iopl}");
        // The 16-bit form leaves the high half alone.
        let high = c.rflags() >> 16;
        stack64(&mut c, &[0]);
        run(&mut c, &[0x66, 0x9d]).unwrap();
        assert_eq!(c.rflags() >> 16, high);
    }
    let mut c = cpu_with_tables(Mode::Long, 0);
    c.set_rflags(flag::RF | flag::AC | flag::CF);
    run(&mut c, &[0x9c]).unwrap();
    assert_eq!(peek64(&mut c, STACK - 8), flag::AC | flag::CF | 2);
}

/// 21.3.3.5: in virtual-8086 mode below IOPL 3 PUSHF, POPF, CLI, STI, INT n and IRET fault, or with VME act on VIF.
#[test]
fn virtual_8086_flags() {
    for code in [&[0x9c][..], &[0x9d], &[0xfa], &[0xfb], &[0xcf], &[0xcd, 3]] {
        let mut c = cpu(Mode::Virtual8086);
        c.gpr[gpr::RSP] = STACK;
        assert_eq!(run(&mut c, code), Err(Fault::GP0), "{code:x?}");
    }
    let mut c = cpu(Mode::Virtual8086);
    c.cr4 |= bits::CR4_VME;
    c.gpr[gpr::RSP] = STACK;
    run(&mut c, &[0xfb]).unwrap();
    assert_eq!(c.rflags() & (flag::IF | flag::VIF), flag::VIF);
    run(&mut c, &[0x9c]).unwrap();
    let image = u64::from(word(&mut c, STACK - 2));
    assert_eq!(image & (flag::IF | flag::IOPL), flag::IF | flag::IOPL);
    run(&mut c, &[0xfa]).unwrap();
    assert_eq!(c.rflags() & flag::VIF, 0);
    run(&mut c, &[0x9d]).unwrap();
    assert_eq!(c.rflags() & (flag::VIF | flag::IF | flag::IOPL), flag::VIF);
    assert_eq!(run(&mut c, &[0x66, 0x9c]), Err(Fault::GP0)); // not the 32-bit form
}

/// 21.3.3 and table 21-2: with VME, INT n whose bit in the redirection map is clear goes through the vector table at 0.
#[test]
fn redirected_interrupts() {
    // IOPL, redirected: vector table; not redirected: #GP(0) below IOPL 3, the protected-mode handler at IOPL 3.
    for (iopl, bit, to_table) in [(0u64, 0u8, true), (3, 0, true), (0, 1, false), (3, 1, false)] {
        let mut c = cpu_with_tables(Mode::Protected32, 0);
        set_gate(&mut c, 0x21, gate(CODE0, HANDLER, 14, 3, 0), 0);
        poke(&mut c, 0x21 * 4, &[0x34, 0x12, 0x00, 0x03]);
        c.tr.limit = 0xff;
        poke(&mut c, TSS + 0x66, &[0x88, 0]);
        poke(&mut c, TSS + 0x68 + 0x21 / 8, &[bit << 1]);
        c.set_rflags(flag::VM | iopl << 12 | flag::IF | flag::VIF);
        c.segs = [crate::virtual8086_segment(0); 6];
        c.cr4 |= bits::CR4_VME;
        let result = run(&mut c, &[0xcd, 0x21]);
        if to_table {
            assert_eq!((result, c.mode, c.rip), (Ok(()), Mode::Virtual8086, 0x1234));
            assert_eq!((c.segs[crate::cpu::seg::CS].base, c.gpr[gpr::RSP]), (0x3000, STACK - 6));
            let pushed = u64::from(word(&mut c, STACK - 2));
            assert_eq!(pushed & (flag::IF | flag::IOPL), flag::IF | flag::IOPL);
            let kept = if iopl == 3 { flag::VIF } else { flag::IF };
            assert_eq!(c.rflags() & (flag::IF | flag::VIF), kept);
        } else if iopl == 3 {
            assert_eq!((result, c.mode, c.rip), (Ok(()), Mode::Protected32, HANDLER));
        } else {
            assert_eq!(result, Err(Fault::GP0));
        }
    }
}

/// 21.3.2 and 21.4: VIF and VIP both set call the monitor, where VIF stands for IF.
#[test]
fn virtual_interrupts() {
    let both = flag::VIF | flag::VIP;
    for (mode, cr4, rflags, due) in [
        (Mode::Virtual8086, bits::CR4_VME, both, true),
        (Mode::Virtual8086, bits::CR4_VME, flag::VIF, false),
        (Mode::Virtual8086, bits::CR4_VME, flag::VIP, false),
        (Mode::Virtual8086, bits::CR4_VME, both | flag::IOPL, false),
        (Mode::Virtual8086, bits::CR4_PVI, both, false),
        (Mode::Virtual8086, 0, both, false),
        (Mode::Protected32, bits::CR4_PVI, both, true),
        (Mode::Protected32, bits::CR4_VME, both, false),
    ] {
        let mut c = cpu_with_tables(Mode::Protected32, 3);
        c.cr4 |= cr4;
        c.set_rflags(rflags | if mode == Mode::Virtual8086 { flag::VM } else { 0 });
        assert_eq!(c.virtual_interrupt_due(), due, "{mode:?} {cr4:#x} {rflags:#x}");
    }
    let mut c = cpu_with_tables(Mode::Protected32, 0);
    c.cr4 |= bits::CR4_PVI;
    c.set_rflags(both);
    assert!(!c.virtual_interrupt_due());
    // PVI: CLI and STI of level 3 act on VIF; with an interrupt pending STI calls the monitor.
    let mut c = cpu_with_tables(Mode::Long, 3);
    c.cr4 |= bits::CR4_PVI;
    c.set_rflags(flag::IF);
    run(&mut c, &[0xfb]).unwrap();
    assert_eq!(c.rflags() & (flag::VIF | flag::IF), flag::VIF | flag::IF);
    run(&mut c, &[0xfa]).unwrap();
    assert_eq!(c.rflags() & (flag::VIF | flag::IF), flag::IF);
    c.set_rflags(flag::VIP);
    assert_eq!(run(&mut c, &[0xfb]), Err(Fault::GP0));
}

/// STI: interrupts stay shut for one instruction, but only if they were shut before. CLI and STI obey IOPL.
#[test]
fn interrupt_flag() {
    let mut c = cpu_with_tables(Mode::Long, 0);
    run(&mut c, &[0xfb]).unwrap();
    assert!(c.has(flag::IF) && c.shadow && c.leave && !c.interrupts_open());
    c.shadow = false;
    run(&mut c, &[0xfb]).unwrap();
    assert!(!c.shadow);
    run(&mut c, &[0xfa]).unwrap();
    assert!(!c.has(flag::IF));
    let mut c = cpu_with_tables(Mode::Long, 3);
    assert_eq!(run(&mut c, &[0xfa]), Err(Fault::GP0));
    assert_eq!(run(&mut c, &[0xfb]), Err(Fault::GP0));
    c.set_rflags(flag::IOPL);
    run(&mut c, &[0xfb]).unwrap();
    assert!(c.has(flag::IF));
}

/// CLC, STC, CMC, CLD, STD, LAHF, SAHF, CLAC, STAC.
#[test]
fn single_flags() {
    let mut c = cpu(Mode::Long);
    c.set_rflags(flag::OF | flag::ZF);
    for (code, want) in [
        (0xf9u8, flag::OF | flag::ZF | flag::CF),
        (0xf5, flag::OF | flag::ZF),
        (0xf5, flag::OF | flag::ZF | flag::CF),
        (0xf8, flag::OF | flag::ZF),
        (0xfd, flag::OF | flag::ZF | flag::DF),
        (0xfc, flag::OF | flag::ZF),
    ] {
        run(&mut c, &[code]).unwrap();
        assert_eq!(c.rflags(), want | 2, "{code:x}");
    }
    c.gpr[gpr::RAX] = 0x1234_0000_0055;
    run(&mut c, &[0x9f]).unwrap();
    assert_eq!(c.gpr[gpr::RAX], 0x1234_0000_4255);
    c.gpr[gpr::RAX] = 0xff00;
    run(&mut c, &[0x9e]).unwrap();
    assert_eq!(c.rflags(), 2 | flag::ARITH);
    c.cr4 |= bits::CR4_SMAP;
    c.update_mode();
    let closed = c.data_table;
    run(&mut c, &[0x0f, 0x01, 0xcb]).unwrap();
    assert!(c.has(flag::AC) && c.data_table != closed);
    run(&mut c, &[0x0f, 0x01, 0xca]).unwrap();
    assert!(!c.has(flag::AC) && c.data_table == closed);
    let mut c = cpu_with_tables(Mode::Long, 3);
    assert_eq!(run(&mut c, &[0x0f, 0x01, 0xcb]), Err(Fault::UD));
}

/// INT3, INTO, INT1 and INT n: vector, return address, DPL (6.4.4, 6.12.1.2).
#[test]
fn software_interrupts() {
    let mut c = cpu_with_tables(Mode::Protected32, 3);
    for vector in [3, 4, 0x30] {
        set_gate(&mut c, vector, gate(CODE0, HANDLER + u64::from(vector), 14, 3, 0), 0);
    }
    for (code, vector) in [(&[0xcc][..], 3), (&[0xce], 4), (&[0xcd, 0x30], 0x30), (&[0xf1], 0)] {
        set_privilege(&mut c, 3);
        c.gpr[gpr::RSP] = STACK;
        c.set_rflags(flag::OF);
        run(&mut c, code).unwrap();
        assert_eq!((c.rip, c.cpl), (HANDLER + vector, 0), "{code:x?}");
        let back = peek32(&mut c, INNER_STACK - 20);
        assert_eq!(back, 0x1000 + code.len() as u32);
    }
    set_privilege(&mut c, 3);
    c.gpr[gpr::RSP] = STACK;
    assert_eq!(run(&mut c, &[0xcd, 0x31]), Err(Fault::with_code(crate::vector::GP, 0x31 * 8 + 2)));
    c.set_rflags(0);
    run(&mut c, &[0xce]).unwrap();
    assert_eq!(c.rip, 0x1001);
}

/// Hints, NOPs and fences do nothing; what the model does not have is #UD.
#[test]
fn hints_and_undefined() {
    let nops: &[&[u8]] = &[
        &[0x90],
        &[0x66, 0x90],
        &[0xf3, 0x90],
        &[0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
        &[0xf3, 0x0f, 0x1e, 0xfa],
        &[0xf3, 0x48, 0x0f, 0x1e, 0xc8],
        &[0x0f, 0x18, 0x08],
        &[0x0f, 0x0d, 0x08],
        &[0x0f, 0x1c, 0x00],
        &[0x0f, 0xae, 0xe8],
        &[0x0f, 0xae, 0xf0],
        &[0x0f, 0xae, 0xf8],
        &[0x0f, 0xae, 0x38],
        &[0x0f, 0x09],
        &[0x0f, 0x08],
    ];
    let mut c = cpu(Mode::Long);
    c.gpr[gpr::RAX] = 0x3000;
    let before = c.gpr;
    for code in nops {
        run(&mut c, code).unwrap_or_else(|f| panic!("{code:x?}: {f:?}"));
        assert_eq!((c.rip, c.gpr), (0x1000 + code.len() as u64, before), "{code:x?}");
    }
    let undefined: &[&[u8]] = &[
        &[0x0f, 0x0b],             // UD2
        &[0x0f, 0xff, 0xc0],       // UD0
        &[0x0f, 0xb9, 0xc0],       // UD1
        &[0x0f, 0xaa],             // RSM
        &[0x0f, 0x01, 0xc8],       // MONITOR
        &[0x0f, 0x01, 0xc9],       // MWAIT
        &[0x0f, 0x01, 0xc1],       // VMCALL
        &[0x0f, 0x01, 0xd8],       // VMRUN
        &[0x0f, 0x01, 0xd0],       // XGETBV without OSXSAVE
        &[0x66, 0x0f, 0xae, 0x38], // CLFLUSHOPT, not announced
        &[0xf3, 0x0f, 0xc7, 0xf8], // RDPID, not announced
        &[0xf0, 0x90],             // LOCK NOP
        &[0xf0, 0x0f, 0x22, 0xc0], // LOCK MOV CR0
    ];
    for code in undefined {
        assert_eq!(run(&mut c, code), Err(Fault::UD), "{code:x?}");
    }
    assert!(!exec::is_defined(iced_x86::Code::Ud2));
    // CLFLUSH checks its address.
    c.gpr[gpr::RAX] = 1 << 63;
    assert_eq!(run(&mut c, &[0x0f, 0xae, 0x38]), Err(Fault::GP0));
}

//! Control registers, descriptor tables, MSRs, and who may touch them.

use std::sync::Arc;

use accel_api::x86::{Feature, MpState, gpr};

use super::*;
use crate::alu::flag;
use crate::cpu::seg;
use crate::mode::{Mode, bits::*};
use crate::testing::{cpu, run};
use crate::testing_tables::*;
use crate::{Exec, Fault, TlbMode, dr6};

fn rdmsr(c: &mut Cpu, index: u32) -> Exec<u64> {
    c.gpr[gpr::RCX] = 0xdead_0000_0000_0000 | u64::from(index);
    run(c, &[0x0f, 0x32])?;
    assert_eq!(c.gpr[gpr::RAX] >> 32 | c.gpr[gpr::RDX] >> 32, 0);
    Ok(c.gpr[gpr::RAX] | c.gpr[gpr::RDX] << 32)
}

fn wrmsr(c: &mut Cpu, index: u32, value: u64) -> Exec {
    c.gpr[gpr::RCX] = index.into();
    c.gpr[gpr::RAX] = 0xdead_0000_0000_0000 | value & 0xffff_ffff;
    c.gpr[gpr::RDX] = 0xdead_0000_0000_0000 | value >> 32;
    run(c, &[0x0f, 0x30])
}

/// Vol. 3, 5.9: privileged instructions are #GP(0) at CPL 3.
#[test]
fn privileged_instructions() {
    let all: &[&[u8]] = &[
        &[0xf4],                   // HLT
        &[0x0f, 0x20, 0xc0],       // MOV RAX, CR0
        &[0x0f, 0x22, 0xd8],       // MOV CR3, RAX
        &[0x44, 0x0f, 0x20, 0xc0], // MOV RAX, CR8
        &[0x0f, 0x21, 0xc0],       // MOV RAX, DR0
        &[0x0f, 0x23, 0xf8],       // MOV DR7, RAX
        &[0x0f, 0x06],             // CLTS
        &[0x0f, 0x01, 0xf0],       // LMSW
        &[0x0f, 0x01, 0x10],       // LGDT
        &[0x0f, 0x01, 0x18],       // LIDT
        &[0x0f, 0x00, 0xd0],       // LLDT
        &[0x0f, 0x00, 0xd8],       // LTR
        &[0x0f, 0x01, 0x38],       // INVLPG
        &[0x0f, 0x08],             // INVD
        &[0x0f, 0x09],             // WBINVD
        &[0x0f, 0x30],             // WRMSR
        &[0x0f, 0x32],             // RDMSR
        &[0x0f, 0x33],             // RDPMC
        &[0x0f, 0x01, 0xf8],       // SWAPGS
        &[0x48, 0x0f, 0x07],       // SYSRET
    ];
    let mut c = cpu_with_tables(Mode::Long, 3);
    for code in all {
        assert_eq!(run(&mut c, code), Err(Fault::GP0), "{code:x?}");
    }
    assert_eq!(c.mp, MpState::Running);
}

/// Vol. 2, MOV CR: combinations that are refused, and the entry to and exit from long mode (vol. 3, 10.8.5).
#[test]
fn cr0_rules() {
    let base = CR0_PE | CR0_ET;
    for (bad, why) in [
        (CR0_PG | CR0_ET, "paging without protection"),
        (base | CR0_NW, "NW without CD"),
        (base | 1 << 32, "upper half"),
    ] {
        let mut c = cpu_with_tables(Mode::Protected32, 0);
        assert_eq!(c.write_cr0(bad), Err(Fault::GP0), "{why}");
    }
    let mut c = cpu_with_tables(Mode::Protected32, 0);
    c.write_cr0(base & !CR0_ET | 1 << 6).unwrap(); // reserved bits are ignored, ET stays
    assert_eq!(c.cr0, base);
    c.write_msr(0xc000_0080, EFER_LME).unwrap();
    c.cr4 = 0;
    assert_eq!(c.write_cr0(base | CR0_PG), Err(Fault::GP0)); // LME needs PAE
    c.write_cr4(CR4_PAE).unwrap();
    c.tr.attributes = 0x83;
    assert_eq!(c.write_cr0(base | CR0_PG), Err(Fault::GP0)); // 16-bit TSS
    c.tr.attributes = 0x8b;
    c.write_cr0(base | CR0_PG).unwrap();
    assert!(c.long_mode());
    assert_eq!(c.write_msr(0xc000_0080, 0), Err(Fault::GP0)); // LME while paging
    assert_eq!(c.write_cr4(0), Err(Fault::GP0)); // PAE in long mode
    assert_eq!(c.write_cr3(1 << 40), Err(Fault::GP0));
    c.write_cr0(base).unwrap();
    assert!(!c.long_mode() && c.efer & EFER_LME != 0);

    let mut c = cpu_with_tables(Mode::Long, 0);
    c.cr0 |= CR0_PG;
    assert_eq!(c.write_cr0(base), Err(Fault::GP0)); // out of 64-bit code
}

/// CR4 takes the bits of announced features only; vol. 3, 2.5.
#[test]
fn cr4_rules() {
    let mut c = cpu(Mode::Long);
    let model = Arc::make_mut(&mut c.model);
    model.features = model.features.without(&[Feature::Pcid]);
    assert!(!c.model.features.has(Feature::Umip) && !c.model.features.has(Feature::Xsave));
    for bit in [CR4_VME, CR4_UMIP, CR4_OSXSAVE, CR4_PCIDE, 1 << 12, 1 << 13, 1 << 22, 1 << 24, 1 << 40] {
        assert_eq!(c.write_cr4(CR4_PAE | bit), Err(Fault::GP0), "{bit:#x}");
    }
    c.write_cr4(CR4_PAE | CR4_SMEP | CR4_SMAP | CR4_PGE | CR4_FSGSBASE | CR4_TSD).unwrap();
    assert_eq!(c.tlb_mode(), TlbMode::SupervisorOnly);
    c.write_cr4(CR4_PAE).unwrap();
    assert!(!c.sse_ready);
}

/// 4.4.1: PDPTEs with reserved bits are refused when they would be loaded.
#[test]
fn pdptes_are_checked() {
    let mut c = cpu_with_tables(Mode::Protected32, 0);
    c.cr4 = CR4_PAE;
    poke64(&mut c, 0x50018, 0x51001 | 1 << 5);
    c.write_cr3(0x50000).unwrap(); // no paging yet
    assert_eq!(c.write_cr0(c.cr0 | CR0_PG), Err(Fault::GP0));
    assert_eq!(c.cr0 & CR0_PG, 0);
    poke64(&mut c, 0x50018, 1 << 5); // not present: anything goes
    // The other tables hold zeros, and a bad one for later.
    poke64(&mut c, 0x60000, 0x51001 | 2);
    c.write_cr0(c.cr0 | CR0_PG).unwrap();
    assert_eq!((c.write_cr3(0x60000), c.cr3), (Err(Fault::GP0), 0x50000));
    c.write_cr3(0x70000).unwrap();
}

/// 4.10.4.1: what empties the TLB. A translation is planted, then looked for.
#[test]
fn tlb_invalidation() {
    let planted = |c: &mut Cpu, global: bool| {
        c.tlb.flush_all();
        let to = crate::Translation {
            host: std::ptr::without_provenance_mut(0x10000),
            page: 1,
            store: true,
            global,
            large: false,
        };
        c.tlb.fill(TlbMode::Supervisor, 0x5000, &to);
    };
    let there = |c: &Cpu| c.tlb.entry(TlbMode::Supervisor, 0x5000).read_tag == 0x5000;
    type Change = fn(&mut Cpu) -> Exec;
    let cases: &[(&str, bool, Change, bool)] = &[
        ("CR3", false, |c| c.write_cr3(0x50000), false),
        ("CR3, global", true, |c| c.write_cr3(0x50000), true),
        ("PGE, global", true, |c| c.write_cr4(c.cr4 ^ CR4_PGE), false),
        ("SMEP, global", true, |c| c.write_cr4(c.cr4 ^ CR4_SMEP), false),
        ("SMAP, global", true, |c| c.write_cr4(c.cr4 ^ CR4_SMAP), false),
        ("TSD", false, |c| c.write_cr4(c.cr4 ^ CR4_TSD), true),
        ("WP", true, |c| c.write_cr0(c.cr0 ^ CR0_WP), false),
        ("TS", false, |c| c.write_cr0(c.cr0 ^ CR0_TS), true),
        ("NXE", true, |c| c.write_msr(0xc000_0080, c.efer ^ EFER_NXE), false),
        ("INVLPG", true, |c| run_at_5000(c), false),
    ];
    for &(what, global, change, stays) in cases {
        let mut c = cpu(Mode::Long);
        planted(&mut c, global);
        change(&mut c).unwrap();
        assert_eq!(there(&c), stays, "{what}");
    }
}

fn run_at_5000(c: &mut Cpu) -> Exec {
    c.gpr[gpr::RAX] = 0x5678;
    run(c, &[0x0f, 0x01, 0x38])
}

/// 18.2.2, 18.2.4 and 18.2.5: aliases, CR4.DE, GD, fixed bits.
#[test]
fn debug_registers() {
    let mut c = cpu(Mode::Long);
    c.gpr[gpr::RAX] = 0xffff_ffff;
    run(&mut c, &[0x0f, 0x23, 0xe0]).unwrap(); // DR4, an alias of DR6
    assert_eq!(c.dr6, 0xffff_efff);
    c.gpr[gpr::RAX] = 0x0000_d800;
    run(&mut c, &[0x0f, 0x23, 0xf8]).unwrap();
    assert_eq!(c.dr7, 0x400);
    c.gpr[gpr::RAX] = 1 << 32;
    assert_eq!(run(&mut c, &[0x0f, 0x23, 0xf8]), Err(Fault::GP0));
    run(&mut c, &[0x0f, 0x23, 0xd8]).unwrap(); // DR3 takes 64 bits
    assert_eq!(c.dr[3], 1 << 32);
    c.cr4 |= CR4_DE;
    assert_eq!(run(&mut c, &[0x0f, 0x21, 0xe8]), Err(Fault::UD));
    c.dr6 = 0xffff_0ff0;
    c.dr7 |= 1 << 13;
    assert_eq!(run(&mut c, &[0x0f, 0x21, 0xc0]), Err(Fault::GENERAL_DETECT));
    assert_eq!((c.dr6, c.pending_debug), (0xffff_0ff0, dr6::BD)); // until it is delivered
    assert_eq!(run(&mut c, &[0x0f, 0x20, 0xc8]), Err(Fault::UD)); // CR1
}

/// LMSW sets PE but does not clear it; SMSW and its widths; CLTS.
#[test]
fn machine_status_word() {
    let mut c = cpu(Mode::Long);
    c.gpr[gpr::RAX] = CR0_TS | CR0_EM;
    run(&mut c, &[0x0f, 0x01, 0xf0]).unwrap();
    assert_eq!(c.cr0 & 0xf, CR0_PE | CR0_TS | CR0_EM);
    assert!(!c.sse_ready);
    run(&mut c, &[0x0f, 0x06]).unwrap();
    assert_eq!(c.cr0 & CR0_TS, 0);
    c.gpr[gpr::RBX] = u64::MAX;
    run(&mut c, &[0x0f, 0x01, 0xe3]).unwrap();
    assert_eq!(c.gpr[gpr::RBX], c.cr0);
    c.gpr[gpr::RAX] = 0x3000;
    poke64(&mut c, 0x3000, u64::MAX);
    run(&mut c, &[0x0f, 0x01, 0x20]).unwrap();
    assert_eq!(peek64(&mut c, 0x3000), 0xffff_ffff_ffff_0000 | c.cr0 & 0xffff);
}

/// LGDT, SGDT, LIDT, SIDT by mode and operand size.
#[test]
fn table_registers() {
    let bytes = [0x34, 0x12, 0x78, 0x56, 0x34, 0xa2, 0xff, 0xff, 0xff, 0xff];
    for (mode, prefix, base) in [
        (Mode::Long, None, 0xffff_ffff_a234_5678),
        (Mode::Protected32, None, 0xa234_5678),
        (Mode::Protected32, Some(0x66), 0x34_5678),
        (Mode::Real, None, 0x34_5678),
        (Mode::Real, Some(0x66), 0xa234_5678),
    ] {
        for (load, store, idt) in [(0x10, 0x00, false), (0x18, 0x08, true)] {
            let mut c = cpu(mode);
            poke(&mut c, 0x3000, &bytes);
            let operand = |op: u8| {
                let mut code: Vec<u8> = prefix.into_iter().collect();
                match mode {
                    Mode::Long => code.extend([0x0f, 0x01, op | 4, 0x25, 0, 0x30, 0, 0]),
                    Mode::Real => code.extend([0x0f, 0x01, op | 6, 0, 0x30]),
                    _ => code.extend([0x0f, 0x01, op | 5, 0, 0x30, 0, 0]),
                }
                code
            };
            run(&mut c, &operand(load)).unwrap();
            let table = if idt { c.idtr } else { c.gdtr };
            assert_eq!((table.limit, table.base), (0x1234, base), "{mode:?} {prefix:?}");
            poke(&mut c, 0x3000, &[0xee; 10]);
            run(&mut c, &operand(store)).unwrap();
            let len = if mode == Mode::Long { 10 } else { 6 };
            let mut want = vec![0x34, 0x12];
            want.extend(base.to_le_bytes());
            want.truncate(len);
            want.resize(10, 0xee);
            assert_eq!(peek(&mut c, 0x3000, 10), want, "{mode:?} {prefix:?}");
        }
    }
    let mut c = cpu(Mode::Long);
    poke(&mut c, 0x3000, &[0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0]);
    assert_eq!(run(&mut c, &[0x0f, 0x01, 0x14, 0x25, 0, 0x30, 0, 0]), Err(Fault::GP0));
}

/// LAR, LSL, VERR, VERW and ARPL (5.10): what may be seen by whom.
#[test]
fn looks_at_descriptors() {
    // Selector, CPL: LAR, LSL, VERR, VERW succeed?
    let cases: &[(u16, u8, [bool; 4])] = &[
        (DATA0, 0, [true, true, true, true]),
        (DATA0, 3, [false; 4]),
        (DATA0 | 3, 0, [false; 4]),
        (DATA3, 3, [true, true, true, true]),
        (READ_ONLY, 0, [true, true, true, false]),
        (EXECUTE_ONLY, 0, [true, true, false, false]),
        (CONFORMING | 3, 3, [true, true, true, false]),
        (ABSENT_DATA, 0, [true, true, true, true]),
        (TR, 0, [true, true, false, false]),
        (FREE, 0, [true, false, false, false]),
        (0, 0, [false; 4]),
        (0x100, 0, [false; 4]),
    ];
    for &(selector, cpl, want) in cases {
        let mut c = cpu_with_tables(Mode::Long, cpl);
        set_descriptor(&mut c, FREE, gate(CODE0, 0, 12, 0, 0));
        let ops: [&[u8]; 4] =
            [&[0x0f, 0x02, 0xd8], &[0x0f, 0x03, 0xd8], &[0x0f, 0x00, 0xe0], &[0x0f, 0x00, 0xe8]];
        let got = ops.map(|code| {
            c.gpr[gpr::RAX] = selector.into();
            c.set_rflags(flag::ARITH & !flag::ZF);
            run(&mut c, code).unwrap();
            assert_eq!(c.rflags() & !flag::ZF, flag::ARITH & !flag::ZF | 2);
            c.flags.zf()
        });
        assert_eq!(got, want, "{selector:#x} CPL {cpl}");
    }
    let mut c = cpu_with_tables(Mode::Protected32, 3);
    c.gpr[gpr::RAX] = DATA3.into();
    c.gpr[gpr::RBX] = u64::MAX;
    run(&mut c, &[0x0f, 0x03, 0xd8]).unwrap();
    assert_eq!(c.gpr[gpr::RBX], 0xffff_ffff);
    run(&mut c, &[0x0f, 0x02, 0xd8]).unwrap();
    assert_eq!(c.gpr[gpr::RBX], 0x00cf_f300);
    run(&mut c, &[0x66, 0x0f, 0x02, 0xd8]).unwrap();
    assert_eq!(c.gpr[gpr::RBX], 0x00cf_f300);
    (c.gpr[gpr::RAX], c.gpr[gpr::RBX]) = (0x11, 0x13);
    run(&mut c, &[0x63, 0xd8]).unwrap(); // arpl ax, bx
    assert_eq!((c.gpr[gpr::RAX], c.flags.zf()), (0x13, true));
    run(&mut c, &[0x63, 0xd8]).unwrap();
    assert!(!c.flags.zf());
    // In memory that is read-only, an RPL that stays is no fault: arpl cs:[bx], ax.
    let mut c = cpu(Mode::Protected32);
    poke(&mut c, 0x3000, &[3, 0]);
    (c.gpr[gpr::RAX], c.gpr[gpr::RBX]) = (2, 0x3000);
    assert_eq!(run(&mut c, &[0x2e, 0x63, 0x03]), Ok(()));
    assert!(!c.flags.zf());
    c.gpr[gpr::RBX] = 0x3001;
    assert_eq!(run(&mut c, &[0x2e, 0x63, 0x03]), Err(Fault::GP0));
    let mut c = cpu(Mode::Real);
    assert_eq!(run(&mut c, &[0x0f, 0x02, 0xd8]), Err(Fault::UD));
    assert_eq!(run(&mut c, &[0x63, 0xd8]), Err(Fault::UD));
    assert_eq!(run(&mut c, &[0x0f, 0x00, 0xd8]), Err(Fault::UD)); // LTR
}

/// MSRs (vol. 4): what they take, what they refuse; a refused write changes nothing.
#[test]
fn msr_values() {
    const BAD: u64 = 1 << 47;
    // Index, a value it takes, a value it refuses.
    let cases: &[(u32, u64, Option<u64>)] = &[
        (0xc000_0080, EFER_SCE | EFER_NXE | EFER_LME | EFER_LMA, Some(1 << 12)),
        (0xc000_0081, 0x23_0010_0000_0000, None),
        (0xc000_0082, 0xffff_8000_0000_1234, Some(BAD)),
        (0xc000_0083, 0x1234, Some(BAD)),
        (0xc000_0084, 0x4_7700, None),
        (0xc000_0100, 0x7fff_ffff_f000, Some(BAD)),
        (0xc000_0101, 0xffff_ffff_ffff_0000, Some(BAD)),
        (0xc000_0102, 0x1000, Some(BAD)),
        (0xc000_0103, 7, Some(1 << 32)),
        (0x174, 0x10, None),
        (0x175, 0xffff_8000_0000_0000, Some(BAD)),
        (0x176, 0xffff_8000_0000_0000, Some(BAD)),
        (0x277, 0x0007_0406_0007_0406, Some(2)),
        (0x277, 0x0407_0506_0007_0106, Some(0x0800_0000_0000_0000)),
        (0x1a0, 0x4_00c5_1809, Some(1 << 1)),
        (0x48, 1, Some(1 << 9)),
        (0x1d9, 1, Some(1 << 6)),
        (0x17a, 4, Some(8)),
        (0x2ff, 0xc06, Some(0x02)),
        (0x2ff, 0x806, Some(0x1000)),
        (0x200, 0x8000_0006, Some(0x102)),
        (0x20f, 0xff_c000_0800, Some(1 << 40)),
        (0x250, 0x0606_0606_0606_0606, Some(0x0202)),
        (0x259, 0x0505_0505_0505_0505, Some(0x0700)),
        (0x26f, 0x0105_0401_0606_0606, Some(1 << 63)),
    ];
    for &(index, good, bad) in cases {
        let mut c = cpu(Mode::Long);
        wrmsr(&mut c, index, good).unwrap_or_else(|f| panic!("{index:#x}: {f:?}"));
        assert_eq!(rdmsr(&mut c, index), Ok(good), "{index:#x}");
        if let Some(bad) = bad {
            assert_eq!(wrmsr(&mut c, index, bad), Err(Fault::GP0), "{index:#x}");
            assert_eq!(rdmsr(&mut c, index), Ok(good));
        }
    }
    let mut c = cpu(Mode::Long);
    for (index, value) in [(0xfe, 0x508), (0x179, 0), (0x3a, 1), (0x17, 0), (0x8b, 1 << 32)] {
        assert_eq!(rdmsr(&mut c, index), Ok(value), "{index:#x}");
    }
    assert_eq!(rdmsr(&mut c, 0x10a), Ok(c.model.arch_capabilities));
    for index in [0xfe, 0x179, 0x3a, 0x10a] {
        assert_eq!(wrmsr(&mut c, index, 0), Err(Fault::GP0), "{index:#x}");
    }
    assert_eq!(wrmsr(&mut c, 0x49, 1), Ok(()));
    assert_eq!(rdmsr(&mut c, 0x49), Err(Fault::GP0)); // write-only
    for index in [0x12345, 0x17b, 0xc0011029, 0x830] {
        assert_eq!(rdmsr(&mut c, index), Err(Fault::GP0), "{index:#x}");
        assert_eq!(wrmsr(&mut c, index, 0), Err(Fault::GP0), "{index:#x}");
    }
    assert_eq!(c.segs[seg::FS].base, 0);
}

/// 18.17.3: writes of the TSC move TSC_ADJUST and the other way round; RDTSC, RDTSCP and CR4.TSD.
#[test]
fn time_stamp_counter() {
    let mut c = cpu(Mode::Long);
    wrmsr(&mut c, 0x10, 1 << 40).unwrap();
    let (offset, adjust) = (c.tsc_offset, rdmsr(&mut c, 0x3b).unwrap());
    assert_eq!(offset, adjust);
    wrmsr(&mut c, 0x3b, adjust.wrapping_add(1 << 50)).unwrap();
    assert_eq!(c.tsc_offset, offset.wrapping_add(1 << 50));
    c.msrs.tsc_aux = 5;
    run(&mut c, &[0x0f, 0x01, 0xf9]).unwrap();
    let tsc = c.gpr[gpr::RAX] | c.gpr[gpr::RDX] << 32;
    assert_eq!((tsc >> 48, c.gpr[gpr::RCX]), (4, 5));
    let mut c = cpu_with_tables(Mode::Long, 3);
    run(&mut c, &[0x0f, 0x31]).unwrap();
    c.cr4 |= CR4_TSD;
    assert_eq!(run(&mut c, &[0x0f, 0x31]), Err(Fault::GP0));
}

/// 2.5, CR4.UMIP: SGDT, SIDT, SLDT, STR and SMSW are for level 0 then. CR4 takes the bits of all that software CPUs offer.
#[test]
fn user_mode_instruction_prevention() {
    let stores: [&[u8]; 5] = [
        &[0x0f, 0x01, 0x03],
        &[0x0f, 0x01, 0x0b],
        &[0x0f, 0x00, 0xc0],
        &[0x0f, 0x00, 0xc8],
        &[0x0f, 0x01, 0xe0],
    ];
    for (cpl, umip, want) in [(3, true, Err(Fault::GP0)), (3, false, Ok(())), (0, true, Ok(()))] {
        let mut c = cpu_with_tables(Mode::Long, cpl);
        std::sync::Arc::make_mut(&mut c.model).features = crate::soft::features();
        c.write_cr4(c.cr4 | CR4_PCE | CR4_VME | if umip { CR4_UMIP } else { 0 }).unwrap();
        c.gpr[gpr::RBX] = 0x3000;
        for code in stores {
            assert_eq!(run(&mut c, code), want, "{code:x?} CPL {cpl} UMIP {umip}");
        }
        // There are no performance counters, whoever may ask for them.
        assert_eq!(run(&mut c, &[0x0f, 0x33]), Err(Fault::GP0));
    }
}

/// The local APIC's MSRs and CR8 reach it, and the executor is told to look for interrupts.
#[test]
fn local_apic() {
    let mut c = cpu(Mode::Long);
    assert_eq!(rdmsr(&mut c, 0x1b), Ok(0xfee0_0900));
    wrmsr(&mut c, 0x1b, 0xfee0_0d00).unwrap();
    assert_eq!(rdmsr(&mut c, 0x803).map(|v| v & 0xff), Ok(0x14));
    c.leave = false;
    c.gpr[gpr::RAX] = 9;
    run(&mut c, &[0x44, 0x0f, 0x22, 0xc0]).unwrap();
    assert!(c.leave);
    assert_eq!(rdmsr(&mut c, 0x808), Ok(0x90));
    c.gpr[gpr::RAX] = 0x10;
    assert_eq!(run(&mut c, &[0x44, 0x0f, 0x22, 0xc0]), Err(Fault::GP0));
    run(&mut c, &[0x44, 0x0f, 0x20, 0xc3]).unwrap();
    assert_eq!(c.gpr[gpr::RBX], 9);
}

/// CPUID asks the model; HLT stops.
#[test]
fn cpuid_and_hlt() {
    let mut c = cpu(Mode::Long);
    (c.gpr[gpr::RAX], c.gpr[gpr::RCX]) = (0xffff_ffff_0000_0000, 0);
    run(&mut c, &[0x0f, 0xa2]).unwrap();
    let words = [c.gpr[gpr::RBX], c.gpr[gpr::RDX], c.gpr[gpr::RCX]];
    let name: Vec<u8> = words.iter().flat_map(|w| (*w as u32).to_le_bytes()).collect();
    assert_eq!((name.as_slice(), c.gpr[gpr::RAX]), (&b"GenuineIntel"[..], 0x16));
    run(&mut c, &[0xf4]).unwrap();
    assert_eq!((c.mp, c.rip), (MpState::Halted, 0x1001));
    assert!(c.leave);
}

/// XGETBV and XSETBV (vol. 1, 13.3; vol. 2D): who may, which values XCR0 takes.
#[test]
fn extended_control_register() {
    const XGETBV: &[u8] = &[0x0f, 0x01, 0xd0];
    const XSETBV: &[u8] = &[0x0f, 0x01, 0xd1];
    let mut c = cpu_with_tables(Mode::Long, 3);
    let mut model = (*c.model).clone();
    model.features = model.features.with(&[Feature::Xsave, Feature::Avx]).without(&[Feature::Xgetbv1]);
    c.model = std::sync::Arc::new(model);
    c.gpr[gpr::RCX] = 0xdead_0000_0000_0000;
    for code in [XGETBV, XSETBV] {
        assert_eq!(run(&mut c, code), Err(Fault::UD), "without OSXSAVE");
    }
    c.cr4 |= CR4_OSXSAVE;
    (c.gpr[gpr::RAX], c.gpr[gpr::RDX]) = (u64::MAX, u64::MAX);
    run(&mut c, XGETBV).unwrap();
    assert_eq!((c.gpr[gpr::RAX], c.gpr[gpr::RDX]), (1, 0));
    assert_eq!(run(&mut c, XSETBV), Err(Fault::GP0), "at CPL 3");
    set_privilege(&mut c, 0);
    // Value, and whether it is taken: x87 always, AVX only with SSE, nothing that the model has not.
    for (value, taken) in [
        (0u64, false),
        (1, true),
        (2, false),
        (3, true),
        (5, false),
        (7, true),
        (0x207, false),
        (1 << 63 | 7, false),
    ] {
        c.xcr0 = 1;
        (c.gpr[gpr::RAX], c.gpr[gpr::RDX]) = (value & 0xffff_ffff, value >> 32);
        assert_eq!(run(&mut c, XSETBV), if taken { Ok(()) } else { Err(Fault::GP0) }, "{value:#x}");
        assert_eq!(c.xcr0, if taken { value } else { 1 });
    }
    for index in [1, 2, u64::MAX] {
        c.gpr[gpr::RCX] = index;
        assert_eq!(run(&mut c, XGETBV), Err(Fault::GP0), "register {index:#x}");
        assert_eq!(run(&mut c, XSETBV), Err(Fault::GP0), "register {index:#x}");
    }
}

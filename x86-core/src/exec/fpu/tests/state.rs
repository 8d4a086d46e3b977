//! FXSAVE, FXRSTOR and the XSAVE family.

use super::native::{Case, OPERAND, Random, compare, load};
use crate::cpu::seg;
use crate::mode::{Mode, bits};
use crate::testing::{self, peek, poke, run};
use crate::{Cpu, Exec, F80, Fault, FpuRegs};
use accel_api::x86::{CpuFeatures, Feature, Segment, gpr};

const FXSAVE: &[u8] = &[0x0f, 0xae, 0x06];
const FXSAVE64: &[u8] = &[0x48, 0x0f, 0xae, 0x06];
const FXRSTOR: &[u8] = &[0x0f, 0xae, 0x0e];
const FXRSTOR64: &[u8] = &[0x48, 0x0f, 0xae, 0x0e];

#[test]
fn fxsave_against_the_host() {
    // MXCSR_MASK may have bits on the host that the model has not.
    let settle = |case: &mut Case| case.memory.0[28..32].fill(0);
    compare(FXSAVE, 500, |_, _| {}, settle).unwrap();
    compare(FXSAVE64, 500, |_, _| {}, settle).unwrap();
}

/// Any image whose MXCSR is valid can be loaded.
#[test]
fn fxrstor_against_the_host() {
    let prepare = |_: &mut Random, case: &mut Case| {
        // All masked: a native run must not trap on the conversions behind it.
        case.memory.0[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    };
    compare(FXRSTOR, 500, prepare, |_| {}).unwrap();
    compare(FXRSTOR64, 500, prepare, |_| {}).unwrap();
}

fn loaded(mode: Mode) -> Box<Cpu> {
    let mut cpu = testing::cpu(mode);
    load(&mut cpu, &Random(99).case());
    cpu.fpu.normalise();
    (cpu.fpu.fip, cpu.fpu.fdp, cpu.fpu.fop) = (0x1234_5678_9abc, 0xffff_8000_0000_1000, 0x7ff);
    cpu
}

/// Intel SDM vol. 1, tables 10-2 and 10-3: offsets, pointers of both widths, what is left alone.
#[test]
fn fxsave_layout() {
    for (code, mode, pointers, end) in [
        (FXSAVE, Mode::Long, [0x5678_9abc, 0x1000], 416),
        (FXSAVE64, Mode::Long, [0x1234_5678_9abc, 0xffff_8000_0000_1000], 416),
        // [esi], and [bp] with its displacement in 16-bit modes.
        (FXSAVE, Mode::Protected32, [0x5678_9abc, 0x1000], 288),
    ] {
        let mut cpu = loaded(mode);
        poke(&mut cpu, OPERAND, &[0xcc; 512]);
        run(&mut cpu, code).unwrap();
        let image = peek(&mut cpu, OPERAND, 512);
        let quad = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().unwrap());
        assert_eq!(quad(0) as u16, cpu.fpu.fcw);
        assert_eq!((quad(0) >> 16) as u16, cpu.fpu.fsw);
        assert_eq!((quad(0) >> 32) as u16, u16::from(cpu.fpu.ftw));
        assert_eq!((quad(0) >> 48) as u16, 0x7ff);
        assert_eq!([quad(8), quad(16)], pointers);
        assert_eq!(quad(24), u64::from(cpu.fpu.mxcsr) | 0xffff << 32);
        for i in 0..8 {
            assert_eq!(quad(32 + 16 * i), cpu.fpu.st(i).mantissa);
            assert_eq!(quad(40 + 16 * i), cpu.fpu.st(i).exponent);
        }
        assert_eq!(quad(168), cpu.vector.0[0][1]);
        assert_eq!(quad(end - 16), cpu.vector.0[(end - 160) / 16 - 1][0]);
        assert!(image[end..].iter().all(|&byte| byte == 0xcc));
    }
}

/// Saved and loaded elsewhere, also over a page boundary; YMM's upper halves are not touched.
#[test]
fn fxrstor_restores() {
    for address in [OPERAND, 0x4f80] {
        let mut cpu = loaded(Mode::Long);
        cpu.gpr[gpr::RSI] = address;
        let (regs, vector) = (cpu.fpu.clone(), cpu.vector);
        run(&mut cpu, FXSAVE64).unwrap();
        cpu.fpu = FpuRegs::reset();
        for ymm in &mut cpu.vector.0 {
            *ymm = [0, 0, 7, 8];
        }
        run(&mut cpu, FXRSTOR64).unwrap();
        assert_eq!(cpu.fpu, regs);
        for (after, before) in cpu.vector.0.iter().zip(&vector.0) {
            assert_eq!(after, &[before[0], before[1], 7, 8]);
        }
    }
}

#[test]
fn fx_faults() {
    let mut cpu = loaded(Mode::Long);
    let before = cpu.fpu.clone();
    for code in [FXSAVE, FXRSTOR] {
        for bit in [bits::CR0_TS, bits::CR0_EM] {
            cpu.cr0 |= bit;
            assert_eq!(run(&mut cpu, code), Err(Fault::NM));
            cpu.cr0 &= !bit;
        }
        cpu.gpr[gpr::RSI] = OPERAND + 8;
        assert_eq!(run(&mut cpu, code), Err(Fault::GP0));
        cpu.gpr[gpr::RSI] = 1 << 47;
        assert_eq!(run(&mut cpu, code), Err(Fault::GP0));
        cpu.gpr[gpr::RSI] = OPERAND;
    }
    // Reserved bits of MXCSR, within a page and across one.
    for address in [OPERAND, 0x4f80] {
        cpu.gpr[gpr::RSI] = address;
        poke(&mut cpu, address + 24, &0x1_1f80u32.to_le_bytes());
        assert_eq!(run(&mut cpu, FXRSTOR), Err(Fault::GP0));
    }
    assert_eq!(cpu.fpu, before);
    // A segment's limit.
    let mut cpu = loaded(Mode::Protected32);
    cpu.segs[seg::DS] = Segment { limit: OPERAND as u32 + 510, ..cpu.segs[seg::DS] };
    assert_eq!(run(&mut cpu, FXSAVE), Err(Fault::GP0));
}

const XSAVE: &[u8] = &[0x48, 0x0f, 0xae, 0x26];
const XRSTOR: &[u8] = &[0x48, 0x0f, 0xae, 0x2e];
const XSAVEOPT: &[u8] = &[0x48, 0x0f, 0xae, 0x36];
const XSAVEC: &[u8] = &[0x48, 0x0f, 0xc7, 0x26];
const XSAVES: &[u8] = &[0x48, 0x0f, 0xc7, 0x2e];
const XRSTORS: &[u8] = &[0x48, 0x0f, 0xc7, 0x1e];
const ALL: [&[u8]; 6] = [XSAVE, XRSTOR, XSAVEOPT, XSAVEC, XSAVES, XRSTORS];
const AREA: u64 = 0x8000;
const AREA_SIZE: usize = 832;

/// A CPU with XSAVE and AVX, all components in use.
fn with_xsave() -> Box<Cpu> {
    use Feature::{Avx, Xsave, Xsavec, Xsaveopt, Xsaves};
    let mut cpu = loaded(Mode::Long);
    let mut model = (*cpu.model).clone();
    model.features = model.features.with(&[Xsave, Xsaveopt, Xsavec, Xsaves, Avx]);
    cpu.model = std::sync::Arc::new(model);
    cpu.cr4 |= bits::CR4_OSXSAVE;
    cpu.xcr0 = 7;
    for (i, ymm) in cpu.vector.0.iter_mut().enumerate() {
        (ymm[2], ymm[3]) = (i as u64 + 1, !0);
    }
    cpu.gpr[gpr::RSI] = AREA;
    poke(&mut cpu, AREA, &[0; AREA_SIZE]);
    cpu
}

fn masked(cpu: &mut Cpu, code: &[u8], mask: u64) -> Exec {
    (cpu.gpr[gpr::RAX], cpu.gpr[gpr::RDX]) = (mask & 0xffff_ffff, mask >> 32);
    run(cpu, code)
}

fn header(cpu: &mut Cpu) -> [u64; 2] {
    [cpu.system_load(AREA + 512).unwrap(), cpu.system_load(AREA + 520).unwrap()]
}

#[test]
fn xsave_is_gated() {
    let mut cpu = loaded(Mode::Long);
    cpu.cr4 |= bits::CR4_OSXSAVE;
    for code in ALL {
        assert_eq!(run(&mut cpu, code), Err(Fault::UD), "{code:02x?}: the model has no XSAVE");
    }
    for code in ALL {
        let mut cpu = with_xsave();
        cpu.cr4 &= !bits::CR4_OSXSAVE;
        assert_eq!(run(&mut cpu, code), Err(Fault::UD));
        cpu.cr4 |= bits::CR4_OSXSAVE;
        cpu.cr0 |= bits::CR0_TS;
        assert_eq!(run(&mut cpu, code), Err(Fault::NM));
        cpu.cr0 &= !bits::CR0_TS;
        cpu.gpr[gpr::RSI] = AREA + 32;
        assert_eq!(run(&mut cpu, code), Err(Fault::GP0));
        cpu.gpr[gpr::RSI] = AREA;
        cpu.cpl = 3;
        let privileged = code == XSAVES || code == XRSTORS;
        assert_eq!(run(&mut cpu, code) == Err(Fault::GP0), privileged);
        let mut model = (*cpu.model).clone();
        model.features = CpuFeatures::of(&[Feature::Xsave]);
        cpu.model = std::sync::Arc::new(model);
        cpu.cpl = 0;
        let expected = if code == XSAVE || code == XRSTOR { Ok(()) } else { Err(Fault::UD) };
        assert_eq!(run(&mut cpu, code), expected);
    }
}

/// Intel SDM vol. 1, 13.7 to 13.13: every instruction with every mask; what is not asked for stays.
#[test]
fn xsave_and_restore() {
    for (save, restore, compacted) in
        [(XSAVE, XRSTOR, false), (XSAVEOPT, XRSTOR, false), (XSAVEC, XRSTOR, true), (XSAVES, XRSTORS, true)]
    {
        for mask in 0..8 {
            let mut cpu = with_xsave();
            let (regs, vector) = (cpu.fpu.clone(), cpu.vector);
            // Bits above XCR0 are ignored.
            masked(&mut cpu, save, mask | 0xf0 << 32).unwrap();
            assert_eq!(header(&mut cpu), [mask, if compacted { 1 << 63 | mask } else { 0 }]);
            let other = F80 { mantissa: 1, exponent: 2 };
            cpu.fpu = FpuRegs { r: [other; 8], ftw: 0x55, ..FpuRegs::reset() };
            cpu.set_mxcsr(0x1fbf);
            for ymm in &mut cpu.vector.0 {
                *ymm = [5; 4];
            }
            let changed = cpu.fpu.clone();
            masked(&mut cpu, restore, mask).unwrap();
            let mxcsr = if mask & 2 != 0 || mask & 4 != 0 && !compacted { regs.mxcsr } else { 0x1fbf };
            let x87 = if mask & 1 != 0 { &regs } else { &changed };
            assert_eq!(cpu.fpu, FpuRegs { mxcsr, ..x87.clone() }, "{save:02x?} {mask}");
            for (after, before) in cpu.vector.0.iter().zip(&vector.0) {
                let pick = |bit, lane: usize| if mask & bit != 0 { before[lane] } else { 5 };
                assert_eq!(after, &[pick(2, 0), pick(2, 1), pick(4, 2), pick(4, 3)], "{save:02x?} {mask}");
            }
        }
    }
}

/// Components in their initial state: noted in XSTATE_BV, not written by the optimising forms, and initialised by a
/// load (Intel SDM vol. 1, 13.6 and 13.8).
#[test]
fn initial_components() {
    for (save, writes) in [(XSAVE, true), (XSAVEOPT, false), (XSAVEC, false)] {
        let mut cpu = with_xsave();
        cpu.fpu = FpuRegs::reset();
        for ymm in &mut cpu.vector.0 {
            (ymm[2], ymm[3]) = (0, 0);
        }
        poke(&mut cpu, AREA, &[0xcc; 512]);
        poke(&mut cpu, AREA + 576, &[0xcc; 256]);
        masked(&mut cpu, save, 7).unwrap();
        assert_eq!(header(&mut cpu)[0], 2);
        assert_eq!(peek(&mut cpu, AREA, 2) != [0xcc, 0xcc], writes);
        assert_eq!(peek(&mut cpu, AREA + 576, 1) != [0xcc], writes);
        cpu.fpu.r[3].mantissa = 9;
        cpu.fpu.fcw = 0x27f;
        cpu.vector.0[4][3] = 1;
        masked(&mut cpu, XRSTOR, 7).unwrap();
        assert_eq!(cpu.state_in_use(), 2);
    }
}

/// Headers that #GP(0) (Intel SDM vol. 1, 13.8 and 13.12).
#[test]
fn headers_refused() {
    let bad: [(u64, u64, u64, usize); 8] = [
        (8, 0, 0, 0),            // a component beyond XCR0
        (1, 1, 0, 0),            // XCOMP_BV without its top bit
        (1, 0, 1, 0),            // reserved bytes 16 to 23
        (2, 1 << 63 | 1, 0, 0),  // a component the layout has not
        (1, 1 << 63 | 8, 0, 0),  // a layout beyond XCR0
        (1, 1 << 63 | 1, 1, 0),  // reserved bytes, compacted
        (1, 1 << 63 | 1, 0, 40), // likewise
        (0, 0, 0, 24),           // fine in standard format, where MXCSR is checked too
    ];
    for (xstate, layout, third, extra) in bad {
        let mut cpu = with_xsave();
        cpu.system_store(AREA + 24, 0x1f80u32).unwrap();
        cpu.system_store(AREA + 512, xstate).unwrap();
        cpu.system_store(AREA + 520, layout).unwrap();
        cpu.system_store(AREA + 528, third).unwrap();
        if extra != 0 {
            cpu.system_store(AREA + 512 + extra as u64, 1u8).unwrap();
        }
        let before = cpu.fpu.clone();
        let fine = extra == 24;
        assert_eq!(masked(&mut cpu, XRSTOR, 7) == Ok(()), fine, "{xstate:#x} {layout:#x}");
        assert_eq!(masked(&mut cpu, XRSTORS, 7), Err(Fault::GP0), "standard format, or refused anyway");
        assert_eq!(cpu.fpu == before, !fine);
        cpu.system_store(AREA + 24, 0x1_0000u32).unwrap();
        assert_eq!(masked(&mut cpu, XRSTOR, 6), Err(Fault::GP0));
    }
}

/// While guest code runs the host's MXCSR holds the sticky flags: those from before FXRSTOR must not outlive it.
#[test]
fn fxrstor_replaces_the_sticky_flags() {
    let mut cpu = testing::cpu(Mode::Long);
    cpu.gpr[gpr::RSI] = OPERAND;
    poke(&mut cpu, OPERAND, &[0; 512]);
    poke(&mut cpu, OPERAND + 24, &0x1f82u32.to_le_bytes());
    cpu.set_mxcsr(0x1fa1);
    crate::exec::mxcsr::enter(&mut cpu);
    let result = run(&mut cpu, FXRSTOR);
    crate::exec::mxcsr::leave(&mut cpu);
    result.unwrap();
    assert_eq!(cpu.fpu.mxcsr, 0x1f82);
}

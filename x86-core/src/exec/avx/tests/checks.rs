//! What an instruction must find before it runs (Intel SDM vol. 1, 14.9; vol. 2A, 2.4; vol. 3, 13.1), and what it leaves
//! behind when it faults.

use std::sync::Arc;

use accel_api::x86::gpr;

use super::bench;
use super::coverage::ours;
use super::encode::{self, Fields, Rm, encode};
use crate::cpu::seg;
use crate::exec::{avx_op, mxcsr, vec_op};
use crate::mode::{Mode, bits};
use crate::{Cpu, Exec, Fault, testing};

const BUFFER: u64 = 0x4000;
/// The last page of the lower half in 64-bit mode: what lies behind it is not canonical. There is no RAM there.
const LAST_CANONICAL: u64 = 0x7fff_ffff_f000;

/// One instruction of each kind of function. Memory operands are [rsi], or [esi].
const SAMPLES: &[&[u8]] = &[
    &[0xc5, 0xec, 0x58, 0xca],             // vaddps ymm1, ymm2, ymm2
    &[0xc5, 0xfc, 0x11, 0x0e],             // vmovups [rsi], ymm1
    &[0xc5, 0xf5, 0x71, 0xd2, 0x03],       // vpsrlw ymm1, ymm2, 3
    &[0xc4, 0xe3, 0x6d, 0x4a, 0xca, 0x30], // vblendvps ymm1, ymm2, ymm2, ymm3
    &[0xc4, 0xe2, 0x6d, 0x98, 0xca],       // vfmadd132ps ymm1, ymm2, ymm2
    &[0xc5, 0xfa, 0x2d, 0xc1],             // vcvtss2si eax, xmm1
    &[0xc5, 0xea, 0x2a, 0xc8],             // vcvtsi2ss xmm1, xmm2, eax
    &[0xc5, 0xf9, 0x2f, 0xca],             // vcomisd xmm1, xmm2
    &[0xc5, 0xf9, 0x6e, 0xc8],             // vmovd xmm1, eax
    &[0xc5, 0xf9, 0x7e, 0xc8],             // vmovd eax, xmm1
    &[0xc5, 0xf9, 0xc5, 0xc1, 0x02],       // vpextrw eax, xmm1, 2
    &[0xc5, 0xe9, 0xc4, 0xc8, 0x02],       // vpinsrw xmm1, xmm2, eax, 2
    &[0xc4, 0xe2, 0x7d, 0x17, 0xca],       // vptest ymm1, ymm2
    &[0xc5, 0xfc, 0x50, 0xc1],             // vmovmskps eax, ymm1
    &[0xc5, 0xf9, 0xf7, 0xca],             // vmaskmovdqu xmm1, xmm2
    &[0xc4, 0xe3, 0x79, 0x63, 0xca, 0x0c], // vpcmpistri xmm1, xmm2, 12
    &[0xc4, 0xe2, 0x6d, 0x2c, 0x0e],       // vmaskmovps ymm1, ymm2, [rsi]
    &[0xc4, 0xe2, 0x6d, 0x92, 0x0c, 0x1e], // vgatherdps ymm1, [rsi + ymm3], ymm2
    &[0xc5, 0xf8, 0xae, 0x16],             // vldmxcsr [rsi]
    &[0xc5, 0xf8, 0xae, 0x1e],             // vstmxcsr [rsi]
    &[0xc5, 0xf8, 0x77],                   // vzeroupper
    &[0xc5, 0xfc, 0x77],                   // vzeroall
];

/// A bench in `mode`, or nothing where the host lacks something.
fn avx2(mode: Mode) -> Option<Box<Cpu>> {
    use accel_api::x86::Feature::{Avx2, F16c, Fma};
    let mut cpu = bench(mode);
    cpu.gpr[gpr::RSI] = BUFFER;
    cpu.gpr[gpr::RDI] = BUFFER;
    testing::poke(&mut cpu, BUFFER, &0x1f80u32.to_le_bytes());
    [Avx2, Fma, F16c].iter().all(|f| cpu.model.features.has(*f)).then_some(cpu)
}

fn run(cpu: &mut Cpu, code: &[u8]) -> Exec {
    mxcsr::enter(cpu);
    let result = testing::run(cpu, code);
    mxcsr::leave(cpu);
    result
}

#[test]
fn control_registers_and_xcr0_decide_between_ud_and_nm() {
    const ON: u64 = bits::CR4_OSXSAVE;
    let cases: [(u64, u64, u64, Result<(), Fault>); 8] = [
        (0, ON, 7, Ok(())),
        (0, ON | bits::CR4_OSFXSR, 7, Ok(())),
        (bits::CR0_EM, ON, 7, Ok(())),
        (bits::CR0_TS, ON, 7, Err(Fault::NM)),
        (bits::CR0_TS, 0, 7, Err(Fault::UD)),
        (bits::CR0_TS, ON, 3, Err(Fault::UD)),
        (0, bits::CR4_OSFXSR, 7, Err(Fault::UD)),
        (0, ON, 1, Err(Fault::UD)),
    ];
    for code in SAMPLES {
        for (cr0, cr4, xcr0, expected) in cases {
            let Some(mut cpu) = avx2(Mode::Long) else { return };
            cpu.cr0 |= cr0;
            cpu.cr4 = cpu.cr4 & !(bits::CR4_OSFXSR | bits::CR4_OSXSAVE) | cr4;
            cpu.xcr0 = xcr0;
            cpu.update_mode();
            assert_eq!(run(&mut cpu, code), expected, "{code:x?} {cr0:#x} {cr4:#x} {xcr0}");
        }
    }
}

/// Also when a loaded state says that it is switched on.
#[test]
fn a_model_without_avx_has_none() {
    for code in SAMPLES {
        let Some(mut cpu) = avx2(Mode::Long) else { return };
        let mut model = (*cpu.model).clone();
        model.features = model.features.without(&[accel_api::x86::Feature::Avx]);
        cpu.model = Arc::new(model);
        cpu.update_mode();
        assert_eq!(run(&mut cpu, code), Err(Fault::UD), "{code:x?}");
    }
}

#[test]
fn real_and_virtual_8086_mode_have_no_vex() {
    for (mode, expected) in [
        (Mode::Real, Err(Fault::UD)),
        (Mode::Virtual8086, Err(Fault::UD)),
        (Mode::Protected16, Ok(())),
        (Mode::Protected32, Ok(())),
    ] {
        let Some(mut cpu) = avx2(mode) else { return };
        // vaddps ymm1, ymm2, ymm2: its first byte is LDS with a register, which is nothing, where there is no VEX.
        assert_eq!(run(&mut cpu, &[0xc5, 0xec, 0x58, 0xca]), expected, "{mode:?}");
    }
}

#[test]
fn vex_misuse_is_undefined() {
    let misused: [&[u8]; 7] = [
        &[0xf0, 0xc5, 0xec, 0x58, 0xca],       // LOCK
        &[0x66, 0xc5, 0xec, 0x58, 0xca],       // a mandatory prefix before VEX
        &[0x48, 0xc5, 0xec, 0x58, 0xca],       // REX before VEX
        &[0xc5, 0xec, 0x28, 0xca],             // vmovaps with VEX.vvvv
        &[0xc5, 0xed, 0x6e, 0xc8],             // vmovd with VEX.L
        &[0xc4, 0xe2, 0x6d, 0x92, 0x0c, 0x16], // a gather whose index is its mask
        &[0xc4, 0xe2, 0x6d, 0x92, 0x0e],       // a gather without a SIB byte
    ];
    for code in misused {
        let Some(mut cpu) = avx2(Mode::Long) else { return };
        assert_eq!(run(&mut cpu, code), Err(Fault::UD), "{code:x?}");
    }
}

#[test]
fn every_feature_can_be_taken_away() {
    let mut tested = 0;
    for code in ours() {
        let feature = avx_op(code).map(|f| f.feature).or_else(|| vec_op(code).map(|f| f.feature));
        let Some(feature) = feature.flatten() else { continue };
        let mut cpu = bench(Mode::Long);
        if !cpu.model.features.has(feature) {
            continue;
        }
        tested += 1;
        let fields = Fields { reg: 1, vvvv: 2, rm: Rm::Register(3), imm: [0x40, 0] };
        let rm = if encode::memory(code).1 { Rm::Memory } else { fields.rm };
        cpu.gpr[gpr::RSI] = BUFFER;
        let bytes = encode(code, &Fields { rm, ..fields });
        assert_eq!(run(&mut cpu, &bytes), Ok(()), "{code:?}");
        let mut model = (*cpu.model).clone();
        model.features = model.features.without(&[feature]);
        cpu.model = Arc::new(model);
        assert_eq!(run(&mut cpu, &bytes), Err(Fault::UD), "{code:?}");
    }
    assert!(tested > 250 || avx2(Mode::Long).is_none(), "{tested}");
}

#[test]
fn alignment_is_checked_where_the_manual_says() {
    for code in ours() {
        let Some(form) = avx_op(code).filter(|f| f.bytes != 0) else { continue };
        let mut cpu = bench(Mode::Long);
        if !cpu.avx_ready || !form.feature.is_none_or(|f| cpu.model.features.has(f)) {
            continue;
        }
        cpu.gpr[gpr::RSI] = BUFFER + u64::from(form.bytes) / 2 + u64::from(form.bytes == 1);
        let bytes = encode(code, &Fields { reg: 1, vvvv: 2, rm: Rm::Memory, imm: [0x40, 0] });
        let expected = if form.aligned { Err(Fault::GP0) } else { Ok(()) };
        assert_eq!(run(&mut cpu, &bytes), expected, "{code:?}");
    }
}

#[test]
fn a_fault_within_32_bytes_leaves_everything_alone() {
    let codes: [&[u8]; 3] = [
        &[0xc5, 0xfc, 0x10, 0x0e], // vmovups ymm1, [rsi]
        &[0xc5, 0xfc, 0x11, 0x0e], // vmovups [rsi], ymm1
        &[0xc5, 0xf4, 0x58, 0x0e], // vaddps ymm1, ymm1, [rsi]
    ];
    for code in codes {
        // Beyond what is canonical.
        let Some(mut cpu) = avx2(Mode::Long) else { return };
        cpu.vector.0[1] = [1, 2, 3, 4];
        cpu.gpr[gpr::RSI] = LAST_CANONICAL + 0x1000 - 31;
        assert_eq!(run(&mut cpu, code), Err(Fault::GP0), "{code:x?}");
        assert_eq!(cpu.vector.0[1], [1, 2, 3, 4]);
        // Beyond the segment.
        let Some(mut cpu) = avx2(Mode::Protected32) else { return };
        cpu.segs[seg::DS].limit = BUFFER as u32 + 30;
        cpu.vector.0[1] = [1, 2, 3, 4];
        testing::poke(&mut cpu, BUFFER, &[0x55; 32]);
        assert_eq!(run(&mut cpu, code), Err(Fault::GP0), "{code:x?}");
        assert_eq!(cpu.vector.0[1], [1, 2, 3, 4]);
        assert_eq!(testing::peek(&mut cpu, BUFFER, 32), [0x55; 32]);
        cpu.segs[seg::DS].limit += 1;
        assert_eq!(run(&mut cpu, code), Ok(()), "{code:x?}");
    }
}

#[test]
fn masked_moves_touch_what_is_chosen_and_no_more() {
    const LOAD: &[u8] = &[0xc4, 0xe2, 0x6d, 0x2c, 0x0e]; // vmaskmovps ymm1, ymm2, [rsi]
    const STORE: &[u8] = &[0xc4, 0xe2, 0x6d, 0x2e, 0x0e]; // vmaskmovps [rsi], ymm2, ymm1
    const TOP: u64 = 1 << 63;
    // The operand straddles the end of the segment: its lower half is within.
    let prepare = |mask: [u64; 4]| {
        let mut cpu = avx2(Mode::Protected32)?;
        testing::poke(&mut cpu, BUFFER, &[0x77; 32]);
        cpu.segs[seg::DS].limit = BUFFER as u32 + 15;
        (cpu.vector.0[1], cpu.vector.0[2]) = ([1, 2, 3, 4], mask);
        Some(cpu)
    };
    let within = [TOP | 1 << 31, TOP, 0x7fff_ffff_7fff_ffff, 0];
    let Some(mut cpu) = prepare(within) else { return };
    assert_eq!(run(&mut cpu, LOAD), Ok(()));
    assert_eq!(cpu.vector.0[1], [0x7777_7777_7777_7777, 0x7777_7777_0000_0000, 0, 0]);
    let Some(mut cpu) = prepare(within) else { return };
    assert_eq!(run(&mut cpu, STORE), Ok(()));
    let stored = testing::peek(&mut cpu, BUFFER, 32);
    assert_eq!(stored[..8], 1u64.to_le_bytes());
    assert_eq!(
        (&stored[8..12], &stored[12..16], &stored[16..]),
        (&[0x77; 4][..], &[0; 4][..], &[0x77; 16][..])
    );
    // One element beyond: nothing is loaded or stored.
    for code in [LOAD, STORE] {
        let Some(mut cpu) = prepare([TOP, 0, 0, TOP]) else { return };
        assert_eq!(run(&mut cpu, code), Err(Fault::GP0));
        assert_eq!(cpu.vector.0[1], [1, 2, 3, 4]);
        assert_eq!(testing::peek(&mut cpu, BUFFER, 32), [0x77; 32]);
    }
}

#[test]
fn a_gather_keeps_what_it_has_when_an_element_faults() {
    let Some(mut cpu) = avx2(Mode::Protected32) else { return };
    cpu.segs[seg::DS].limit = BUFFER as u32 + 0xff;
    for i in 0..64u32 {
        testing::poke(&mut cpu, BUFFER + 4 * u64::from(i), &(0x100 + i).to_le_bytes());
    }
    // vgatherdps xmm1, [esi + xmm3 * 4], xmm2: elements 0, 1 and 3 chosen, of which 3 is outside.
    const CODE: &[u8] = &[0xc4, 0xe2, 0x69, 0x92, 0x0c, 0x9e];
    cpu.vector.0[1] = [0xaaaa_aaaa_bbbb_bbbb, 0xcccc_cccc_dddd_dddd, 5, 6];
    cpu.vector.0[2] = [0x8000_0001_8000_0000, 0x8000_0000_7fff_ffff, 7, 8];
    cpu.vector.0[3] = [0x0000_0009_0000_0004, 0x0000_0064_0000_0000, 0, 0];
    assert_eq!(run(&mut cpu, CODE), Err(Fault::GP0));
    assert_eq!(cpu.vector.0[1], [0x0000_0109_0000_0104, 0xcccc_cccc_dddd_dddd, 5, 6]);
    assert_eq!(cpu.vector.0[2], [0, 0x8000_0000_0000_0000, 7, 8]);
    // Begun again where the element can be had, it only does the rest.
    testing::poke(&mut cpu, BUFFER, &[0; 64]);
    cpu.vector.0[3][1] = 0x0000_0020_0000_0000;
    assert_eq!(run(&mut cpu, CODE), Ok(()));
    assert_eq!(cpu.vector.0[1], [0x0000_0109_0000_0104, 0x0000_0120_dddd_dddd, 0, 0]);
    assert_eq!(cpu.vector.0[2], [0; 4]);
}

#[test]
fn gathers_extend_and_cut_addresses() {
    let Some(mut cpu) = avx2(Mode::Long) else { return };
    testing::poke(&mut cpu, BUFFER, &0x1234_5678u32.to_le_bytes());
    let mask = [1 << 31, 0, 0, 0];
    // Doubleword indices are signed: vgatherdps xmm1, [rsi + xmm3], xmm2.
    cpu.gpr[gpr::RSI] = BUFFER + 1;
    (cpu.vector.0[2], cpu.vector.0[3]) = (mask, [0xffff_ffff, 0, 0, 0]);
    assert_eq!(run(&mut cpu, &[0xc4, 0xe2, 0x69, 0x92, 0x0c, 0x1e]), Ok(()));
    assert_eq!(cpu.vector.0[1][0] as u32, 0x1234_5678);
    // An address size of 32 bits cuts the sum: vgatherqps xmm1, [esi + xmm3], xmm2.
    cpu.gpr[gpr::RSI] = 0x5_0000_0000 + BUFFER;
    (cpu.vector.0[1], cpu.vector.0[2], cpu.vector.0[3]) = ([0; 4], mask, [3 << 32, 0, 0, 0]);
    assert_eq!(run(&mut cpu, &[0x67, 0xc4, 0xe2, 0x69, 0x93, 0x0c, 0x1e]), Ok(()));
    assert_eq!(cpu.vector.0[1], [0x1234_5678, 0, 0, 0]);
    // Without a base: vgatherdps xmm1, [xmm3 + disp32], xmm2.
    (cpu.vector.0[1], cpu.vector.0[2], cpu.vector.0[3]) = ([0; 4], mask, [BUFFER - 0x10, 0, 0, 0]);
    assert_eq!(run(&mut cpu, &[0xc4, 0xe2, 0x69, 0x92, 0x0c, 0x1d, 0x10, 0, 0, 0]), Ok(()));
    assert_eq!(cpu.vector.0[1], [0x1234_5678, 0, 0, 0]);
}

#[test]
fn an_unmasked_exception_in_any_lane_raises_xm_and_writes_nothing() {
    const INVALID_MASK: u32 = 1 << 7;
    const SIGNALLING: u64 = 0x7f80_0001 << 32;
    let samples: [&[u8]; 3] = [
        &[0xc5, 0xec, 0x58, 0xca],       // vaddps ymm1, ymm2, ymm2
        &[0xc4, 0xe2, 0x6d, 0x98, 0xca], // vfmadd132ps ymm1, ymm2, ymm2
        &[0xc4, 0xe2, 0x7d, 0x13, 0xca], // vcvtph2ps ymm1, xmm2
    ];
    for code in samples {
        let Some(mut cpu) = avx2(Mode::Long) else { return };
        cpu.set_mxcsr(0x1f80 & !INVALID_MASK);
        cpu.vector.0[1] = [1, 2, 3, 4];
        cpu.vector.0[2] = [0, SIGNALLING | 0x7c01, 0, SIGNALLING];
        assert_eq!(run(&mut cpu, code), Err(Fault::XM), "{code:x?}");
        assert_eq!((cpu.vector.0[1], cpu.fpu.mxcsr & 1), ([1, 2, 3, 4], 1), "{code:x?}");
        cpu.cr4 &= !bits::CR4_OSXMMEXCPT;
        assert_eq!(run(&mut cpu, code), Err(Fault::UD), "{code:x?}");
    }
}

#[test]
fn vcvtps2ph_sets_no_flags_if_its_store_faults() {
    let Some(mut cpu) = avx2(Mode::Long) else { return };
    cpu.vector.0[1] = [0x3f80_0001_3f80_0001; 4];
    const CODE: &[u8] = &[0xc4, 0xe3, 0x7d, 0x1d, 0x0e, 0x00]; // vcvtps2ph [rsi], ymm1, 0
    cpu.gpr[gpr::RSI] = LAST_CANONICAL + 0x1000 - 15;
    assert_eq!(run(&mut cpu, CODE), Err(Fault::GP0));
    assert_eq!(cpu.fpu.mxcsr, 0x1f80);
    cpu.gpr[gpr::RSI] = BUFFER;
    assert_eq!(run(&mut cpu, CODE), Ok(()));
    assert_eq!(cpu.fpu.mxcsr, 0x1fa0);
}

#[test]
fn vzeroall_clears_the_registers_of_its_mode() {
    for (mode, count) in [(Mode::Long, 16), (Mode::Protected32, 8)] {
        for (code, kept) in [([0xc5, 0xf8, 0x77], [1, 2, 0, 0]), ([0xc5, 0xfc, 0x77], [0; 4])] {
            let Some(mut cpu) = avx2(mode) else { return };
            cpu.vector.0 = [[1, 2, 3, 4]; 16];
            assert_eq!(run(&mut cpu, &code), Ok(()));
            assert_eq!(cpu.vector.0[..count], [kept; 16][..count]);
            assert_eq!(cpu.vector.0[count..], [[1, 2, 3, 4]; 16][count..]);
        }
    }
}

//! Every instruction on MMX registers.

use std::ops::RangeInclusive;

use iced_x86::{Decoder, OpKind, Register};

use super::native::compare;
use crate::mode::Mode;
use crate::mode::bits;
use crate::testing::{self, run};
use crate::{F80, Fault, fsw};

/// Runs every instruction on MMX registers among `opcodes` behind `lead` (prefixes and escape), with the operands
/// MM1 and [rsi], MM2, MM1, MM0 or RAX, and MM0 and MM1.
fn sweep(count: usize, lead: &[u8], opcodes: &[RangeInclusive<u8>]) {
    let mut failures = Vec::new();
    let mut tested = 0;
    for opcode in opcodes.iter().cloned().flatten() {
        for modrm in [0x0e, 0xca, 0xc9, 0xc8, 0xc1] {
            for immediate in [0, 1, 7, 0x1b, 0xe4, 0x3f, 0x40, 0xff] {
                let mut bytes = lead.to_vec();
                bytes.extend([opcode, modrm, immediate]);
                let ins = Decoder::new(64, &bytes, crate::DECODER_OPTIONS).decode();
                let registers = || (0..ins.op_count()).map(|n| ins.op_register(n));
                let mmx = registers().any(|r| r.is_mm());
                // The native side knows no general register but RAX.
                let known = registers().all(|r| !r.is_gpr() || r.full_register() == Register::RAX);
                if ins.is_invalid() || !mmx || !known {
                    break;
                }
                tested += 1;
                failures.extend(compare(&bytes[..ins.len()], count, |_, _| {}, |_| {}).err());
                if (0..ins.op_count()).all(|n| ins.op_kind(n) != OpKind::Immediate8) {
                    break;
                }
            }
        }
    }
    assert!(tested > 0);
    assert!(failures.is_empty(), "{} of {tested} differ\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn arithmetic() {
    sweep(60, &[0x0f], &[0x60..=0x6b, 0x74..=0x76, 0xd1..=0xd5, 0xd8..=0xe5, 0xe8..=0xf6, 0xf8..=0xfe]);
}

#[test]
fn shifts_by_immediates() {
    for opcode in [0x71, 0x72, 0x73] {
        for modrm in [0xd1, 0xe1, 0xf1] {
            for immediate in [0, 1, 15, 16, 31, 32, 63, 64, 255] {
                if opcode != 0x73 || modrm != 0xe1 {
                    compare(&[0x0f, opcode, modrm, immediate], 20, |_, _| {}, |_| {}).unwrap();
                }
            }
        }
    }
}

#[test]
fn ssse3() {
    sweep(60, &[0x0f, 0x38], &[0x00..=0x0b, 0x1c..=0x1e]);
    sweep(60, &[0x0f, 0x3a], &[0x0f..=0x0f]);
}

#[test]
fn moves() {
    sweep(60, &[0x0f], &[0x6e..=0x70, 0x7e..=0x7f, 0xc4..=0xc5, 0xd7..=0xd7, 0xe7..=0xe7]);
    sweep(60, &[0x48, 0x0f], &[0x6e..=0x6e, 0x7e..=0x7e, 0xc4..=0xc5, 0xd7..=0xd7]);
    compare(&[0x0f, 0x77], 100, |_, _| {}, |_| {}).unwrap();
}

#[test]
fn moves_from_and_to_xmm() {
    sweep(100, &[0xf2, 0x0f], &[0xd6..=0xd6]);
    sweep(100, &[0xf3, 0x0f], &[0xd6..=0xd6]);
}

#[test]
fn conversions() {
    sweep(2000, &[0x0f], &[0x2a..=0x2a, 0x2c..=0x2d]);
    sweep(2000, &[0x66, 0x0f], &[0x2a..=0x2a, 0x2c..=0x2d]);
}

#[test]
fn masked_store() {
    let mut cpu = testing::cpu(Mode::Long);
    cpu.gpr[7] = 0x3ffc;
    testing::poke(&mut cpu, 0x3ffc, &[0xaa; 8]);
    cpu.fpu.r[1].mantissa = 0x8877_6655_4433_2211;
    cpu.fpu.r[2].mantissa = 0x80ff_7f00_0000_9000;
    run(&mut cpu, &[0x0f, 0xf7, 0xca]).unwrap();
    assert_eq!(testing::peek(&mut cpu, 0x3ffc, 8), [0xaa, 0x22, 0xaa, 0xaa, 0xaa, 0xaa, 0x77, 0x88]);
    assert_eq!((cpu.fpu.ftw, cpu.fpu.top()), (0xff, 0));
}

/// Intel SDM vol. 3, 13.1 and 13.5.
#[test]
fn faults() {
    let paddb: &[u8] = &[0x0f, 0xfc, 0xc1];
    let movq2dq: &[u8] = &[0xf3, 0x0f, 0xd6, 0xc1];
    let cvtpi2pd: &[u8] = &[0x66, 0x0f, 0x2a, 0x06];
    let emms: &[u8] = &[0x0f, 0x77];
    for (code, sse) in [(paddb, false), (movq2dq, true), (cvtpi2pd, true), (emms, false)] {
        let mut cpu = testing::cpu(Mode::Long);
        cpu.fpu.fsw = 3 << 11;
        cpu.cr0 |= bits::CR0_TS;
        assert_eq!(run(&mut cpu, code), Err(Fault::NM));
        cpu.cr0 |= bits::CR0_EM;
        assert_eq!(run(&mut cpu, code), Err(Fault::UD));
        cpu.cr0 &= !(bits::CR0_TS | bits::CR0_EM);
        cpu.cr4 &= !bits::CR4_OSFXSR;
        assert_eq!(run(&mut cpu, code), if sse { Err(Fault::UD) } else { Ok(()) });
        cpu.cr4 |= bits::CR4_OSFXSR;
        cpu.fpu.fcw &= !fsw::IE;
        cpu.fpu.fsw = 3 << 11 | fsw::IE | fsw::ES | fsw::B;
        // A conversion from memory to double precision does not look at the x87 state.
        let expected = if code == cvtpi2pd { Ok(()) } else { Err(Fault::MF) };
        assert_eq!(run(&mut cpu, code), expected);
        assert_eq!(cpu.fpu.top(), 3);
    }
}

/// Unmasked SIMD exceptions leave the destination, the MMX registers and TOP (Intel SDM vol. 1, 11.5).
#[test]
fn conversions_with_unmasked_exceptions() {
    let cvtps2pi: &[u8] = &[0x0f, 0x2d, 0xc1];
    let mut cpu = testing::cpu(Mode::Long);
    cpu.fpu.fsw = 3 << 11;
    cpu.fpu.r[0] = F80 { mantissa: 5, exponent: 0x4000 };
    // A NaN (invalid) and 0.5 (inexact).
    cpu.vector.0[1][0] = 0x3f00_0000_7fc0_0000;
    for (mask, flags) in [(0x1f00, 1), (0x0f80, 0x21)] {
        cpu.set_mxcsr(mask);
        assert_eq!(run(&mut cpu, cvtps2pi), Err(Fault::XM));
        assert_eq!(cpu.fpu.mxcsr, mask | flags);
        assert_eq!((cpu.fpu.r[0].mantissa, cpu.fpu.top(), cpu.fpu.ftw), (5, 3, 0));
    }
    cpu.cr4 &= !bits::CR4_OSXMMEXCPT;
    assert_eq!(run(&mut cpu, cvtps2pi), Err(Fault::UD));
    cpu.set_mxcsr(0x1f80);
    assert_eq!(run(&mut cpu, cvtps2pi), Ok(()));
    assert_eq!(cpu.fpu.r[0], F80 { mantissa: 0x8000_0000, exponent: 0xffff });
}

/// Behind an unmasked invalid operation of one element the other's rounding is not reported (Intel SDM vol. 1, 11.5.3.2).
#[test]
fn conversions_report_no_rounding_behind_an_invalid_operation() {
    let mut cpu = testing::cpu(Mode::Long);
    cpu.vector.0[1] = [f64::NAN.to_bits(), 1.5f64.to_bits(), 0, 0];
    cpu.set_mxcsr(0x1f00);
    crate::exec::mxcsr::enter(&mut cpu);
    let result = run(&mut cpu, &[0x66, 0x0f, 0x2d, 0xc1]); // cvtpd2pi mm0, xmm1
    crate::exec::mxcsr::leave(&mut cpu);
    assert_eq!((result, cpu.fpu.mxcsr), (Err(Fault::XM), 0x1f01));
}

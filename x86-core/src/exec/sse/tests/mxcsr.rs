//! MXCSR, sticky flags, and unmasked exceptions (Intel SDM vol. 1, 10.2.3 and 11.5).

use super::{BUFFER, bench, get, peek, poke, run, set, vector};
use crate::exec::mxcsr;
use crate::mode::bits;
use crate::{Cpu, Fault};

const ADDPS: &[u8] = &[0x0f, 0x58, 0xca]; // addps xmm1, xmm2
const MULPS: &[u8] = &[0x0f, 0x59, 0xca];
const DIVPS: &[u8] = &[0x0f, 0x5e, 0xca];
const MULSS: &[u8] = &[0xf3, 0x0f, 0x59, 0xca];

const IE: u32 = 1;
const DE: u32 = 2;
const ZE: u32 = 4;
const OE: u32 = 8;
const UE: u32 = 16;
const PE: u32 = 32;

const SIGNALLING: u32 = 0x7f80_0001;
const ONE: u32 = 0x3f80_0000;
const THIRD: u32 = 0x3eaa_aaab;
const HUGE: u32 = 0x7f7f_ffff;
const LEAST_NORMAL: u32 = 0x0080_0000;
const HALF: u32 = 0x3f00_0000;

/// xmm1 and xmm2 from two lanes, ones above.
fn operands(cpu: &mut Cpu, a: [u32; 2], b: [u32; 2]) {
    set(cpu, 1, vector([a[0], a[1], ONE, ONE]));
    set(cpu, 2, vector([b[0], b[1], ONE, ONE]));
}

#[test]
fn ldmxcsr_and_stmxcsr_carry_all_bits_but_the_reserved() {
    let mut cpu = bench();
    for value in [0x1f80u32, 0xffff, 0x9fff, 0x1fc0] {
        poke(&mut cpu, BUFFER, u128::from(value));
        run(&mut cpu, &[0x0f, 0xae, 0x16]).unwrap(); // ldmxcsr [rsi]
        assert_eq!((cpu.fpu.mxcsr, cpu.sse_unmasked), (value, false));
        poke(&mut cpu, BUFFER, u128::MAX);
        run(&mut cpu, &[0x0f, 0xae, 0x1e]).unwrap(); // stmxcsr [rsi]
        assert_eq!(peek(&mut cpu, BUFFER), u128::MAX << 32 | u128::from(value));
    }
    for bad in [0x1_1f80u32, 0x8000_1f80, u32::MAX] {
        poke(&mut cpu, BUFFER, u128::from(bad));
        assert_eq!(run(&mut cpu, &[0x0f, 0xae, 0x16]), Err(Fault::GP0), "{bad:#x}");
        assert_eq!(cpu.fpu.mxcsr, 0x1fc0);
    }
    poke(&mut cpu, BUFFER, 0);
    run(&mut cpu, &[0x0f, 0xae, 0x16]).unwrap();
    assert!(cpu.sse_unmasked);
}

#[test]
fn flags_stick_until_the_guest_clears_them() {
    let mut cpu = bench();
    operands(&mut cpu, [ONE, ONE], [0, ONE]);
    run(&mut cpu, DIVPS).unwrap();
    assert_eq!(cpu.fpu.mxcsr, 0x1f80 | ZE);
    operands(&mut cpu, [HUGE, ONE], [HUGE, ONE]);
    run(&mut cpu, MULPS).unwrap();
    assert_eq!(cpu.fpu.mxcsr, 0x1f80 | ZE | OE | PE);
    operands(&mut cpu, [1, ONE], [SIGNALLING, ONE]);
    run(&mut cpu, MULSS).unwrap();
    assert_eq!(cpu.fpu.mxcsr, 0x1f80 | ZE | OE | PE | IE);
    poke(&mut cpu, BUFFER, 0x1f80);
    run(&mut cpu, &[0x0f, 0xae, 0x16]).unwrap();
    operands(&mut cpu, [ONE, ONE], [ONE, ONE]);
    run(&mut cpu, ADDPS).unwrap();
    assert_eq!(cpu.fpu.mxcsr, 0x1f80);
}

#[test]
fn the_host_gets_its_own_control_word_back() {
    let mut cpu = bench();
    cpu.set_mxcsr(0x7f80 | 1 << 15);
    mxcsr::enter(&mut cpu);
    mxcsr::leave(&mut cpu);
    assert_eq!(std::hint::black_box(1.0f32) / std::hint::black_box(3.0f32), f32::from_bits(THIRD));
    assert_eq!(cpu.fpu.mxcsr, 0xff80);
}

#[test]
fn rounding_and_flushing_are_the_guests() {
    // 1/3 has a fraction of 0x2aaaaa.aa...
    for (mode, expected) in [(0, THIRD), (1, THIRD - 1), (2, THIRD), (3, THIRD - 1)] {
        let mut cpu = bench();
        cpu.set_mxcsr(0x1f80 | mode << 13);
        operands(&mut cpu, [ONE, ONE], [0x4040_0000, ONE]);
        run(&mut cpu, DIVPS).unwrap();
        assert_eq!(get(&cpu, 1) as u32, expected, "mode {mode}");
    }
    const FTZ: u32 = 1 << 15;
    const DAZ: u32 = 1 << 6;
    // An exact denormal result, and a denormal operand.
    let cases = [
        (0, LEAST_NORMAL, HALF, LEAST_NORMAL / 2, 0),
        (FTZ, LEAST_NORMAL, HALF, 0, UE | PE),
        (0, 2, 0x4000_0000, 4, DE),
        (DAZ, 2, 0x4000_0000, 0, 0),
        (DAZ, 0x8000_0002, 0x4000_0000, 0x8000_0000, 0),
    ];
    for (control, a, b, result, flags) in cases {
        let mut cpu = bench();
        cpu.set_mxcsr(0x1f80 | control);
        operands(&mut cpu, [a, ONE], [b, ONE]);
        run(&mut cpu, MULPS).unwrap();
        assert_eq!(
            (get(&cpu, 1) as u32, cpu.fpu.mxcsr),
            (result, 0x1f80 | control | flags),
            "{a:#x} {control:#x}"
        );
    }
}

/// Code, lanes of both operands, what is unmasked, flags expected.
type Case = (&'static [u8], [u32; 2], [u32; 2], u32, u32);

/// Flags as processors were seen to leave them.
#[test]
fn an_unmasked_exception_raises_xm_and_changes_the_flags_only() {
    let cases: [Case; 13] = [
        (MULPS, [HUGE, ONE], [HUGE, ONE], OE, OE | PE),
        (MULPS, [HUGE, ONE], [HUGE, ONE], PE, OE | PE),
        (MULPS, [LEAST_NORMAL, ONE], [HALF, ONE], UE, UE),
        (MULPS, [1, HUGE], [ONE, HUGE], OE, DE | OE | PE),
        (MULPS, [SIGNALLING, HUGE], [ONE, HUGE], IE, IE),
        (MULPS, [SIGNALLING, 1], [ONE, ONE], IE, IE | DE),
        (DIVPS, [ONE, ONE], [0, 0x4040_0000], ZE, ZE),
        (MULPS, [HUGE, THIRD], [HUGE, THIRD], PE, OE | PE),
        (MULPS, [HUGE, LEAST_NORMAL + 1], [HUGE, HALF], OE, OE | UE | PE),
        (MULPS, [HUGE, LEAST_NORMAL], [HUGE, HALF], OE, OE | PE),
        (ADDPS, [1, ONE], [1, ONE], UE, DE | UE),
        (MULPS, [LEAST_NORMAL, THIRD], [HALF, THIRD], UE, UE | PE),
        (MULSS, [LEAST_NORMAL, ONE], [HALF, ONE], UE, UE),
    ];
    for (code, a, b, unmasked, flags) in cases {
        let mut cpu = bench();
        let control = 0x1f80 & !(unmasked << 7);
        cpu.set_mxcsr(control);
        operands(&mut cpu, a, b);
        let before = get(&cpu, 1);
        assert_eq!(run(&mut cpu, code), Err(Fault::XM), "{a:x?} {b:x?} {unmasked:#x}");
        assert_eq!(cpu.fpu.mxcsr, control | flags, "{a:x?} {b:x?} {unmasked:#x}");
        assert_eq!(get(&cpu, 1), before);
        // Without an operating system that knows of #XM it is #UD (Intel SDM vol. 3, 2.5).
        cpu.cr4 &= !bits::CR4_OSXMMEXCPT;
        assert_eq!(run(&mut cpu, code), Err(Fault::UD));
    }
}

#[test]
fn what_is_not_raised_computes_as_ever_beside_unmasked_exceptions() {
    let mut cpu = bench();
    cpu.set_mxcsr(0x1f80 & !(OE << 7) | PE | OE);
    operands(&mut cpu, [ONE, THIRD], [ONE, THIRD]);
    run(&mut cpu, MULPS).unwrap();
    assert_eq!(cpu.fpu.mxcsr, 0x1f80 & !(OE << 7) | PE | OE, "an old flag raises nothing");
    assert_eq!(get(&cpu, 1) as u32, ONE);
    // A denormal operand hides behind a signalling NaN of the same lane (Intel SDM vol. 1, 4.9.2).
    cpu.set_mxcsr(0x1f80 & !(DE << 7));
    operands(&mut cpu, [1, ONE], [SIGNALLING, ONE]);
    run(&mut cpu, MULPS).unwrap();
    assert_eq!((get(&cpu, 1) as u32, cpu.fpu.mxcsr), (0x7fc0_0001, 0x1f80 & !(DE << 7) | IE));
    // FTZ has no effect while underflow is unmasked; the denormal in an upper lane is no result of MULSS.
    cpu.set_mxcsr(0x1f80 & !(UE << 7) | 1 << 15);
    operands(&mut cpu, [ONE, 1], [ONE, 1]);
    run(&mut cpu, MULSS).unwrap();
    assert_eq!(cpu.fpu.mxcsr, 0x1f80 & !(UE << 7) | 1 << 15);
}

#[test]
fn conversions_and_comparisons_raise_xm_too() {
    let cases: [(&[u8], u32); 4] = [
        (&[0xf3, 0x0f, 0x2d, 0xc1], IE), // cvtss2si eax, xmm1
        (&[0x0f, 0x2f, 0xca], IE),       // comiss xmm1, xmm2
        (&[0x0f, 0xc2, 0xca, 0x01], IE), // cmpltps xmm1, xmm2
        (&[0xf3, 0x0f, 0x2a, 0xc8], PE), // cvtsi2ss xmm1, eax
    ];
    for (code, flag) in cases {
        let mut cpu = bench();
        cpu.set_mxcsr(0);
        cpu.gpr[0] = 0x7fff_ffff;
        operands(&mut cpu, [SIGNALLING, ONE], [ONE, ONE]);
        let (flags, register) = (cpu.flags, get(&cpu, 1));
        assert_eq!(run(&mut cpu, code), Err(Fault::XM), "{code:x?}");
        assert_eq!((cpu.fpu.mxcsr, cpu.gpr[0], cpu.flags), (flag, 0x7fff_ffff, flags));
        assert_eq!(get(&cpu, 1), register);
    }
}

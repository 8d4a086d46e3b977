//! Between vector registers and general registers or flags.

use iced_x86::Code::{self, *};
use iced_x86::Register::{self, EAX, EBX, R8, R8D, R9, R9D, RAX, RBX, XMM0, XMM2, XMM3, XMM4, XMM7, XMM9};

use super::{BUFFER, Random, bench, execute, get, lane, on_registers, peek, poke, run, set, with_memory};
use crate::Cpu;
use crate::alu::flag;

/// Executes with both a register and a memory source, whose results must agree.
fn both(cpu: &mut Cpu, code: Code, op0: Register, source: u128, mut check: impl FnMut(&Cpu)) {
    set(cpu, 7, source);
    execute(cpu, &on_registers(code, op0, XMM7, 0)).unwrap();
    check(cpu);
    cpu.gpr[6] = BUFFER;
    poke(cpu, BUFFER, source);
    execute(cpu, &with_memory(on_registers(code, op0, XMM7, 0), 1)).unwrap();
    check(cpu);
}

/// Rounds to a whole number as MXCSR.RC says (Intel SDM vol. 1, 4.8.4).
fn round(x: f64, mode: u32) -> f64 {
    match mode {
        0 => x.round_ties_even(),
        1 => x.floor(),
        2 => x.ceil(),
        _ => x.trunc(),
    }
}

fn to32(whole: f64) -> u64 {
    let ok = (-2147483648.0..2147483648.0).contains(&whole);
    u64::from(if ok { whole as i32 as u32 } else { 1 << 31 })
}

fn to64(whole: f64) -> u64 {
    let ok = (-9223372036854775808.0..9223372036854775808.0).contains(&whole);
    if ok { whole as i64 as u64 } else { 1 << 63 }
}

#[test]
fn scalars_convert_to_integers_by_the_rounding_mode() {
    let mut random = Random(7);
    let mut cpu = bench();
    for i in 0..2000 {
        let mode = i % 4;
        cpu.set_mxcsr(0x1f80 | mode << 13);
        let (single, double) = (random.single(), random.double());
        let wide = f64::from(single);
        let (s, d) = (u128::from(single.to_bits()), u128::from(double.to_bits()));
        let cases = [
            (Cvtss2si_r32_xmmm32, EAX, s, to32(round(wide, mode))),
            (Cvtss2si_r64_xmmm32, RAX, s, to64(round(wide, mode))),
            (Cvtsd2si_r32_xmmm64, EAX, d, to32(round(double, mode))),
            (Cvtsd2si_r64_xmmm64, RAX, d, to64(round(double, mode))),
            (Cvttss2si_r32_xmmm32, R9D, s, to32(wide.trunc())),
            (Cvttss2si_r64_xmmm32, R9, s, to64(wide.trunc())),
            (Cvttsd2si_r32_xmmm64, R9D, d, to32(double.trunc())),
            (Cvttsd2si_r64_xmmm64, R9, d, to64(double.trunc())),
        ];
        for (code, register, source, expected) in cases {
            cpu.gpr[0] = u64::MAX;
            cpu.gpr[9] = u64::MAX;
            let what = format!("{code:?} {source:#x} mode {mode}");
            both(&mut cpu, code, register, source, |cpu| {
                assert_eq!(cpu.gpr[register.number()], expected, "{what}");
            });
        }
    }
}

#[test]
fn integers_convert_to_scalars_and_merge() {
    let mut random = Random(8);
    let mut cpu = bench();
    for _ in 0..500 {
        let (value, old) = (random.wide() as u64, random.wide());
        cpu.gpr[3] = value;
        let merged = |low: u128, bits: u32| old >> bits << bits | low;
        let single = |x: f32| merged(u128::from(x.to_bits()), 32);
        let double = |x: f64| merged(u128::from(x.to_bits()), 64);
        for (code, source, expected) in [
            (Cvtsi2ss_xmm_rm32, EBX, single(value as i32 as f32)),
            (Cvtsi2ss_xmm_rm64, RBX, single(value as i64 as f32)),
            (Cvtsi2sd_xmm_rm32, EBX, double(f64::from(value as i32))),
            (Cvtsi2sd_xmm_rm64, RBX, double(value as i64 as f64)),
        ] {
            set(&mut cpu, 4, old);
            execute(&mut cpu, &on_registers(code, XMM4, source, 0)).unwrap();
            assert_eq!(get(&cpu, 4), expected, "{code:?} {value:#x}");
            poke(&mut cpu, BUFFER, u128::from(value));
            set(&mut cpu, 4, old);
            execute(&mut cpu, &with_memory(on_registers(code, XMM4, source, 0), 1)).unwrap();
            assert_eq!(get(&cpu, 4), expected, "{code:?} m {value:#x}");
        }
    }
}

#[test]
fn conversion_rounds_as_the_guest_asks() {
    // 2^24 + 1 lies halfway between two singles.
    for (mode, expected) in [(0, 0x4b80_0000), (1, 0x4b80_0000), (2, 0x4b80_0001), (3, 0x4b80_0000)] {
        let mut cpu = bench();
        cpu.set_mxcsr(0x1f80 | mode << 13);
        cpu.gpr[0] = 0x100_0001;
        set(&mut cpu, 1, 0);
        run(&mut cpu, &[0xf3, 0x0f, 0x2a, 0xc8]).unwrap(); // cvtsi2ss xmm1, eax
        assert_eq!(get(&cpu, 1), expected, "mode {mode}");
        assert_eq!(cpu.fpu.mxcsr, 0x1fa0 | mode << 13, "PE is set");
    }
}

#[test]
fn comparisons_set_zf_pf_cf_and_clear_the_rest() {
    let mut random = Random(9);
    let mut cpu = bench();
    let expected = |order: Option<std::cmp::Ordering>| match order {
        None => flag::ZF | flag::PF | flag::CF,
        Some(std::cmp::Ordering::Greater) => 0,
        Some(std::cmp::Ordering::Less) => flag::CF,
        Some(std::cmp::Ordering::Equal) => flag::ZF,
    };
    for i in 0..2000 {
        let (a, b) = (random.singles(), random.singles());
        let b = if i % 5 == 0 { a } else { b };
        let single = expected(lane::<f32>(a, 0).partial_cmp(&lane(b, 0)));
        let (c, d) = (random.doubles(), random.doubles());
        let double = expected(lane::<f64>(c, 0).partial_cmp(&lane(d, 0)));
        let cases = [
            (Comiss_xmm_xmmm32, a, b, single),
            (Ucomiss_xmm_xmmm32, a, b, single),
            (Comisd_xmm_xmmm64, c, d, double),
            (Ucomisd_xmm_xmmm64, c, d, double),
        ];
        for (code, a, b, flags) in cases {
            cpu.set_rflags(flag::ARITH);
            set(&mut cpu, 2, a);
            both(&mut cpu, code, XMM2, b, |cpu| {
                assert_eq!(cpu.flags.to_rflags(), flags, "{code:?} {a:#x} {b:#x}")
            });
        }
    }
}

#[test]
fn ptest_sets_zf_and_cf() {
    let mut random = Random(10);
    let mut cpu = bench();
    for (a, b) in
        [(0, 0), (1, 2), (u128::MAX, 5), (5, u128::MAX), (random.wide(), random.wide()), (1 << 127, 1 << 127)]
    {
        let zf = if a & b == 0 { flag::ZF } else { 0 };
        let cf = if !a & b == 0 { flag::CF } else { 0 };
        cpu.set_rflags(flag::ARITH);
        set(&mut cpu, 2, a);
        both(&mut cpu, Ptest_xmm_xmmm128, XMM2, b, |cpu| assert_eq!(cpu.flags.to_rflags(), zf | cf));
    }
}

#[test]
fn masks_gather_sign_bits() {
    let mut random = Random(12);
    let mut cpu = bench();
    for _ in 0..200 {
        let value = random.wide();
        set(&mut cpu, 9, value);
        let signs =
            |bits: u32| (0..128 / bits).fold(0, |m, i| m | (value >> (i * bits + bits - 1) & 1) << i) as u64;
        for (code, register, bits) in [
            (Movmskps_r32_xmm, R8D, 32),
            (Movmskps_r64_xmm, R8, 32),
            (Movmskpd_r32_xmm, R8D, 64),
            (Movmskpd_r64_xmm, R8, 64),
            (Pmovmskb_r32_xmm, R8D, 8),
            (Pmovmskb_r64_xmm, R8, 8),
        ] {
            cpu.gpr[8] = u64::MAX;
            execute(&mut cpu, &on_registers(code, register, XMM9, 0)).unwrap();
            assert_eq!(cpu.gpr[8], signs(bits), "{code:?}");
        }
    }
}

#[test]
fn lanes_are_extracted_to_registers_and_memory() {
    let mut random = Random(13);
    let mut cpu = bench();
    for imm in 0..=255u8 {
        let (value, before) = (random.wide(), random.wide());
        set(&mut cpu, 9, value);
        for (code, register, bits) in [
            (Pextrb_r32m8_xmm_imm8, EAX, 8u32),
            (Pextrb_r64m8_xmm_imm8, RAX, 8),
            (Pextrw_r32m16_xmm_imm8, EAX, 16),
            (Pextrw_r64m16_xmm_imm8, RAX, 16),
            (Pextrw_r32_xmm_imm8, EAX, 16),
            (Pextrw_r64_xmm_imm8, RAX, 16),
            (Pextrd_rm32_xmm_imm8, EAX, 32),
            (Pextrq_rm64_xmm_imm8, RAX, 64),
            (Extractps_rm32_xmm_imm8, EAX, 32),
            (Extractps_r64m32_xmm_imm8, RAX, 32),
        ] {
            let mask = u128::from(u64::MAX >> (64 - bits));
            let expected = value >> (u32::from(imm) % (128 / bits) * bits) & mask;
            cpu.gpr[0] = u64::MAX;
            let ins = on_registers(code, register, XMM9, imm);
            execute(&mut cpu, &ins).unwrap();
            assert_eq!(u128::from(cpu.gpr[0]), expected, "{code:?} {imm}");
            if matches!(code, Pextrw_r32_xmm_imm8 | Pextrw_r64_xmm_imm8) {
                continue;
            }
            poke(&mut cpu, BUFFER + 3, before);
            cpu.gpr[6] = BUFFER + 3;
            execute(&mut cpu, &with_memory(ins, 0)).unwrap();
            assert_eq!(peek(&mut cpu, BUFFER + 3), before & !mask | expected, "{code:?} {imm}");
        }
    }
}

#[test]
fn lanes_are_inserted_from_registers_and_memory() {
    let mut random = Random(14);
    let mut cpu = bench();
    for imm in 0..=255u8 {
        let (old, value) = (random.wide(), random.next());
        for (code, register, bits) in [
            (Pinsrb_xmm_r32m8_imm8, EBX, 8u32),
            (Pinsrb_xmm_r64m8_imm8, RBX, 8),
            (Pinsrw_xmm_r32m16_imm8, EBX, 16),
            (Pinsrw_xmm_r64m16_imm8, RBX, 16),
            (Pinsrd_xmm_rm32_imm8, EBX, 32),
            (Pinsrq_xmm_rm64_imm8, RBX, 64),
        ] {
            let mask = u128::from(u64::MAX >> (64 - bits));
            let shift = u32::from(imm) % (128 / bits) * bits;
            let expected = old & !(mask << shift) | (u128::from(value) & mask) << shift;
            cpu.gpr[3] = value;
            set(&mut cpu, 9, old);
            let ins = on_registers(code, XMM9, register, imm);
            execute(&mut cpu, &ins).unwrap();
            assert_eq!(get(&cpu, 9), expected, "{code:?} {imm}");
            poke(&mut cpu, BUFFER + 3, u128::from(value));
            cpu.gpr[6] = BUFFER + 3;
            set(&mut cpu, 9, old);
            execute(&mut cpu, &with_memory(ins, 1)).unwrap();
            assert_eq!(get(&cpu, 9), expected, "{code:?} m {imm}");
        }
    }
}

#[test]
fn variable_blends_choose_by_xmm0() {
    let mut random = Random(15);
    let mut cpu = bench();
    for _ in 0..200 {
        let (a, b, mask) = (random.wide(), random.wide(), random.wide());
        for (code, bits) in
            [(Pblendvb_xmm_xmmm128, 8), (Blendvps_xmm_xmmm128, 32), (Blendvpd_xmm_xmmm128, 64)]
        {
            let ones = u128::MAX >> (128 - bits);
            let chosen = (0..128 / bits)
                .filter(|i| mask >> (i * bits + bits - 1) & 1 != 0)
                .fold(0u128, |all, i| all | ones << (i * bits));
            set(&mut cpu, 0, mask);
            set(&mut cpu, 2, a);
            set(&mut cpu, 3, b);
            execute(&mut cpu, &on_registers(code, XMM2, XMM3, 0)).unwrap();
            assert_eq!(get(&cpu, 2), a & !chosen | b & chosen, "{code:?}");
            // XMM0 may be the destination, too.
            execute(&mut cpu, &on_registers(code, XMM0, XMM3, 0)).unwrap();
            assert_eq!(get(&cpu, 0), mask & !chosen | b & chosen, "{code:?}");
        }
    }
}

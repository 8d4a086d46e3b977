//! PCMPxSTRx by the steps of the manual (Intel SDM vol. 2B, 4.1).

use iced_x86::Code::{self, *};
use iced_x86::Register;

use super::{BUFFER, Lane, Random, bench, execute, get, lane, on_registers, poke, set, vector, with_memory};
use crate::alu::flag;

fn character(value: u128, i: usize, imm: u8) -> i32 {
    match imm & 3 {
        0 => i32::from(lane::<u8>(value, i)),
        1 => i32::from(lane::<u16>(value, i)),
        2 => i32::from(lane::<i8>(value, i)),
        _ => i32::from(lane::<i16>(value, i)),
    }
}

/// IntRes2 of comparing the first `la` characters of `a` with the first `lb` of `b`.
fn compare(a: u128, la: usize, b: u128, lb: usize, imm: u8) -> u32 {
    let n = if imm & 1 != 0 { 8 } else { 16 };
    let (ac, bc) = (|i| character(a, i, imm), |i| character(b, i, imm));
    let chosen = |j: usize| match imm >> 2 & 3 {
        0 => j < lb && (0..la).any(|i| ac(i) == bc(j)),
        1 => j < lb && (0..la / 2).any(|i| (ac(2 * i)..=ac(2 * i + 1)).contains(&bc(j))),
        2 => match (j < la, j < lb) {
            (true, true) => ac(j) == bc(j),
            (x, y) => x == y,
        },
        _ => (0..la.min(n - j)).all(|i| j + i < lb && ac(i) == bc(i + j)),
    };
    let negated = |j: usize| match imm >> 4 & 3 {
        1 => true,
        3 => j < lb,
        _ => false,
    };
    (0..n).filter(|&j| chosen(j) != negated(j)).fold(0, |bits, j| bits | 1 << j)
}

fn flags(bits: u32, la: usize, lb: usize, n: usize) -> u64 {
    let on = |mask: u64, set: bool| if set { mask } else { 0 };
    on(flag::CF, bits != 0) | on(flag::ZF, lb < n) | on(flag::SF, la < n) | on(flag::OF, bits & 1 != 0)
}

/// Characters of few kinds, so that they often match; with a zero somewhere, or none.
fn text(random: &mut Random, words: bool) -> u128 {
    let end = random.next() % 24;
    let letters = [b'a', b'b', b'c', 0x81, 0xff, 0x10];
    let mut next = |i: u64| if i == end { 0 } else { random.pick(&letters) };
    if words { vector((0..8).map(|i| u16::from(next(i)) * 0x101)) } else { vector((0..16).map(&mut next)) }
}

fn clipped(length: u64, wide: bool, n: usize) -> usize {
    let value = if wide { length as i64 } else { i64::from(length as u32 as i32) };
    value.unsigned_abs().min(n as u64) as usize
}

fn wide_mask<T: Lane>(bits: u32) -> u128 {
    vector((0..128 / T::BITS).map(|i| T::of(if bits >> i & 1 != 0 { u128::MAX } else { 0 })))
}

#[test]
fn all_string_comparisons_follow_the_manual() {
    const LENGTHS: [u64; 12] = [0, 1, 3, 7, 8, 15, 16, 100, u64::MAX, 0xffff_fff0, 0x8000_0000, 1 << 63];
    let codes: [(Code, bool, bool); 6] = [
        (Pcmpestri_xmm_xmmm128_imm8, true, false),
        (Pcmpestri64_xmm_xmmm128_imm8, true, true),
        (Pcmpestrm_xmm_xmmm128_imm8, true, false),
        (Pcmpestrm64_xmm_xmmm128_imm8, true, true),
        (Pcmpistri_xmm_xmmm128_imm8, false, false),
        (Pcmpistrm_xmm_xmmm128_imm8, false, false),
    ];
    let mut random = Random(3);
    let mut cpu = bench();
    for (code, explicit, wide) in codes {
        for imm in 0..=255u8 {
            for round in 0..30 {
                let words = imm & 1 != 0;
                let n = if words { 8 } else { 16 };
                let (a, b) = (text(&mut random, words), text(&mut random, words));
                let (la, lb) = if explicit {
                    (cpu.gpr[0], cpu.gpr[2]) = (random.pick(&LENGTHS), random.pick(&LENGTHS));
                    (clipped(cpu.gpr[0], wide, n), clipped(cpu.gpr[2], wide, n))
                } else {
                    let count = |v| (0..n).take_while(|&i| character(v, i, imm) != 0).count();
                    (count(a), count(b))
                };
                cpu.gpr[1] = u64::MAX;
                set(&mut cpu, 0, 0);
                set(&mut cpu, 5, a);
                set(&mut cpu, 6, b);
                let mut ins = on_registers(code, Register::XMM5, Register::XMM6, imm);
                if round % 3 == 0 {
                    // Not aligned: allowed.
                    cpu.gpr[6] = BUFFER + 0xffb;
                    poke(&mut cpu, BUFFER + 0xffb, b);
                    ins = with_memory(ins, 1);
                }
                execute(&mut cpu, &ins).unwrap();
                let bits = compare(a, la, b, lb, imm);
                let what = format!("{code:?} {imm:#x} {a:#x} {la} {b:#x} {lb}");
                assert_eq!(cpu.flags.to_rflags(), flags(bits, la, lb, n), "{what}");
                if matches!(
                    code,
                    Pcmpestrm_xmm_xmmm128_imm8 | Pcmpestrm64_xmm_xmmm128_imm8 | Pcmpistrm_xmm_xmmm128_imm8
                ) {
                    let expected = match (imm & 0x40 != 0, words) {
                        (false, _) => u128::from(bits),
                        (true, false) => wide_mask::<u8>(bits),
                        (true, true) => wide_mask::<u16>(bits),
                    };
                    assert_eq!(get(&cpu, 0), expected, "{what}");
                    assert_eq!(cpu.gpr[1], u64::MAX);
                } else {
                    let chosen: Vec<u64> = (0..n as u64).filter(|i| bits >> i & 1 != 0).collect();
                    let end = if imm & 0x40 != 0 { chosen.last() } else { chosen.first() };
                    assert_eq!(cpu.gpr[1], end.copied().unwrap_or(n as u64), "{what}");
                    assert_eq!(get(&cpu, 0), 0);
                }
            }
        }
    }
}

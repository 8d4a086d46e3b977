//! Operations with an immediate that raise no floating-point exceptions, in plain Rust.

use iced_x86::Code::{self, *};

use super::int::shift;
use super::{lane, vector};

/// The two-bit field `i` of `imm`.
fn field(imm: u8, i: usize) -> usize {
    usize::from(imm >> (2 * i)) & 3
}

/// Bytes `count..count + 16` of `a:b`, zeros beyond.
fn palignr(a: u128, b: u128, count: usize) -> u128 {
    let byte = |i: usize| {
        if i < 16 {
            lane(b, i)
        } else if i < 32 {
            lane(a, i - 16)
        } else {
            0u8
        }
    };
    vector((0..16).map(|i| byte(i + count)))
}

fn mpsadbw(a: u128, b: u128, imm: u8) -> u128 {
    let (a0, b0) = (usize::from(imm >> 2 & 1) * 4, usize::from(imm & 3) * 4);
    vector(
        (0..8).map(|i| {
            (0..4).map(|j| u16::from(lane::<u8>(a, a0 + i + j).abs_diff(lane(b, b0 + j)))).sum::<u16>()
        }),
    )
}

fn insertps(a: u128, value: u32, imm: u8) -> u128 {
    vector((0..4).map(|i| {
        if imm >> i & 1 != 0 {
            0
        } else if i == field(imm, 2) {
            value
        } else {
            lane::<u32>(a, i)
        }
    }))
}

/// What `code` computes, if it is one of these. In a memory form `b` is the operand, zero-extended.
pub(super) fn reference(code: Code, a: u128, b: u128, imm: u8, memory: bool) -> Option<u128> {
    let bit = |i: usize| imm >> i & 1 != 0;
    let count = u128::from(imm);
    Some(match code {
        Pshufd_xmm_xmmm128_imm8 => vector((0..4).map(|i| lane::<u32>(b, field(imm, i)))),
        Pshuflw_xmm_xmmm128_imm8 => {
            vector((0..8).map(|i| lane::<u16>(b, if i < 4 { field(imm, i) } else { i })))
        }
        Pshufhw_xmm_xmmm128_imm8 => {
            vector((0..8).map(|i| lane::<u16>(b, if i < 4 { i } else { 4 + field(imm, i - 4) })))
        }
        Shufps_xmm_xmmm128_imm8 => {
            vector((0..4).map(|i| lane::<u32>(if i < 2 { a } else { b }, field(imm, i))))
        }
        Shufpd_xmm_xmmm128_imm8 => {
            vector([lane::<u64>(a, usize::from(bit(0))), lane::<u64>(b, usize::from(bit(1)))])
        }
        Blendps_xmm_xmmm128_imm8 => vector((0..4).map(|i| lane::<u32>(if bit(i) { b } else { a }, i))),
        Blendpd_xmm_xmmm128_imm8 => vector((0..2).map(|i| lane::<u64>(if bit(i) { b } else { a }, i))),
        Pblendw_xmm_xmmm128_imm8 => vector((0..8).map(|i| lane::<u16>(if bit(i) { b } else { a }, i))),
        Palignr_xmm_xmmm128_imm8 => palignr(a, b, usize::from(imm)),
        Insertps_xmm_xmmm32_imm8 => insertps(a, lane(b, if memory { 0 } else { field(imm, 3) }), imm),
        Mpsadbw_xmm_xmmm128_imm8 => mpsadbw(a, b, imm),
        Psrldq_xmm_imm8 => palignr(0, a, usize::from(imm)),
        Pslldq_xmm_imm8 => palignr(a, 0, 16 - usize::from(imm.min(16))),
        Psllw_xmm_imm8 => shift::<u16>(a, count, |x, n| x << n, |_| 0),
        Pslld_xmm_imm8 => shift::<u32>(a, count, |x, n| x << n, |_| 0),
        Psllq_xmm_imm8 => shift::<u64>(a, count, |x, n| x << n, |_| 0),
        Psrlw_xmm_imm8 => shift::<u16>(a, count, |x, n| x >> n, |_| 0),
        Psrld_xmm_imm8 => shift::<u32>(a, count, |x, n| x >> n, |_| 0),
        Psrlq_xmm_imm8 => shift::<u64>(a, count, |x, n| x >> n, |_| 0),
        Psraw_xmm_imm8 => shift::<i16>(a, count, |x, n| x >> n, |x| x >> 15),
        Psrad_xmm_imm8 => shift::<i32>(a, count, |x, n| x >> n, |x| x >> 31),
        _ => return None,
    })
}

//! Floating-point operations lane by lane in scalar Rust, computed under the MXCSR in force (Intel SDM vol. 2, and
//! vol. 1, table 4-7 for NaNs). LLVM may swap the operands of a sum, so which NaN comes out is decided here.
#![allow(unsafe_code)] // intrinsics for what scalar Rust has no word for

use std::arch::x86_64::*;
use std::hint::black_box;

use iced_x86::Code::{self, *};

use super::{Lane, each, lane, vector};

macro_rules! width {
    ($module:ident, $t:ty, $quiet:expr, $load:ident, $store:ident, $($intrinsic:ident = $host:ident),*) => {
        mod $module {
            use super::*;

            fn quiet(x: $t) -> $t {
                <$t>::from_bits(x.to_bits() | $quiet)
            }

            fn with_nans(a: $t, b: $t, f: impl Fn($t, $t) -> $t) -> $t {
                match (a.is_nan(), b.is_nan()) {
                    (true, _) => quiet(a),
                    (_, true) => quiet(b),
                    _ => f(black_box(a), black_box(b)),
                }
            }

            pub(super) fn add(a: $t, b: $t) -> $t {
                with_nans(a, b, |a, b| a + b)
            }

            pub(super) fn sub(a: $t, b: $t) -> $t {
                with_nans(a, b, |a, b| a - b)
            }

            pub(super) fn mul(a: $t, b: $t) -> $t {
                with_nans(a, b, |a, b| a * b)
            }

            pub(super) fn div(a: $t, b: $t) -> $t {
                with_nans(a, b, |a, b| a / b)
            }

            pub(super) fn sqrt(_: $t, b: $t) -> $t {
                with_nans(b, b, |b, _| b.sqrt())
            }

            $(pub(super) fn $intrinsic(a: $t, b: $t) -> $t {
                // SAFETY: SSE2.
                unsafe { $store($host($load(black_box(a)), $load(black_box(b)))) }
            })*

            /// ROUNDxx, with the rounding mode of MXCSR given.
            pub(super) fn round(b: $t, imm: u8, current: u8) -> $t {
                if b.is_nan() {
                    return quiet(b);
                }
                let wide = f64::from(black_box(b));
                if wide.abs() >= 4503599627370496.0 {
                    return b;
                }
                let cut = wide as i64 as f64;
                let up = if wide > cut { cut + 1.0 } else { cut };
                let down = if wide < cut { cut - 1.0 } else { cut };
                let whole = match if imm & 4 != 0 { current } else { imm & 3 } {
                    0 => match (wide - cut).abs() {
                        d if d < 0.5 => cut,
                        d if d > 0.5 || cut as i64 & 1 != 0 => if wide > 0.0 { up } else { down },
                        _ => cut,
                    },
                    1 => down,
                    2 => up,
                    _ => cut,
                };
                whole.copysign(wide) as $t
            }

            pub(super) fn compare(a: $t, b: $t, predicate: u8) -> bool {
                let (a, b) = (black_box(a), black_box(b));
                let holds = match predicate & 3 {
                    0 => a == b,
                    1 => a < b,
                    2 => a <= b,
                    _ => a.is_nan() || b.is_nan(),
                };
                holds != (predicate & 4 != 0)
            }

            /// Cut off to 32 bits.
            pub(super) fn truncate(b: $t) -> i32 {
                if b > -2147483649.0 && b < 2147483648.0 { b as i32 } else { i32::MIN }
            }

            /// DPPS and DPPD.
            pub(super) fn dot<const N: usize>(a: u128, b: u128, imm: u8) -> u128 {
                let product = |i: usize| {
                    if imm >> (4 + i) & 1 != 0 { mul(lane::<$t>(a, i), lane::<$t>(b, i)) } else { 0.0 }
                };
                let low = add(product(0), product(1));
                let sum = if N == 4 { add(low, add(product(2), product(3))) } else { low };
                vector((0..N).map(|i| if imm >> i & 1 != 0 { sum } else { 0.0 }))
            }

            pub(super) fn horizontal(a: u128, b: u128, f: impl Fn($t, $t) -> $t) -> u128 {
                let half = 64 / <$t as Lane>::BITS as usize;
                vector((0..2 * half).map(|i| {
                    let from = if i < half { a } else { b };
                    f(lane(from, i % half * 2), lane(from, i % half * 2 + 1))
                }))
            }

            pub(super) fn alternate(a: u128, b: u128) -> u128 {
                vector((0..128 / <$t as Lane>::BITS as usize).map(|i| {
                    let f = if i % 2 == 0 { sub } else { add };
                    f(lane(a, i), lane(b, i))
                }))
            }
        }
    };
}

fn approximate(x: f32, f: unsafe fn(__m128) -> __m128) -> f32 {
    // SAFETY: SSE.
    unsafe { _mm_cvtss_f32(f(_mm_set_ss(x))) }
}

width!(single, f32, 1 << 22, _mm_set_ss, _mm_cvtss_f32, min = _mm_min_ss, max = _mm_max_ss);
width!(double, f64, 1 << 51, _mm_set_sd, _mm_cvtsd_f64, min = _mm_min_sd, max = _mm_max_sd);

/// The low lane computed, the others from `a`.
fn scalar<T: Lane>(a: u128, b: u128, f: impl Fn(T, T) -> T) -> u128 {
    let mask = u128::MAX >> (128 - T::BITS);
    a & !mask | f(lane(a, 0), lane(b, 0)).bits()
}

fn mask32(holds: bool) -> f32 {
    f32::from_bits(if holds { u32::MAX } else { 0 })
}

fn mask64(holds: bool) -> f64 {
    f64::from_bits(if holds { u64::MAX } else { 0 })
}

fn nearest32(x: f32) -> i32 {
    // SAFETY: SSE.
    unsafe { _mm_cvtss_si32(_mm_set_ss(x)) }
}

fn nearest64(x: f64) -> i32 {
    // SAFETY: SSE2.
    unsafe { _mm_cvtsd_si32(_mm_set_sd(x)) }
}

fn widen(x: f32) -> f64 {
    f64::from(black_box(x))
}

fn narrow(x: f64) -> f32 {
    black_box(x) as f32
}

fn rounding() -> u8 {
    let mut value = 0u32;
    // SAFETY: stores MXCSR to a local.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut value) };
    (value >> 13 & 3) as u8
}

/// What `code` computes, if it is one of these.
pub(super) fn reference(code: Code, a: u128, b: u128, imm: u8) -> Option<u128> {
    use {double as d, single as s};
    let zero_above = |low: u128| low & u128::from(u64::MAX);
    Some(match code {
        Addps_xmm_xmmm128 => each(a, b, s::add),
        Addpd_xmm_xmmm128 => each(a, b, d::add),
        Addss_xmm_xmmm32 => scalar(a, b, s::add),
        Addsd_xmm_xmmm64 => scalar(a, b, d::add),
        Subps_xmm_xmmm128 => each(a, b, s::sub),
        Subpd_xmm_xmmm128 => each(a, b, d::sub),
        Subss_xmm_xmmm32 => scalar(a, b, s::sub),
        Subsd_xmm_xmmm64 => scalar(a, b, d::sub),
        Mulps_xmm_xmmm128 => each(a, b, s::mul),
        Mulpd_xmm_xmmm128 => each(a, b, d::mul),
        Mulss_xmm_xmmm32 => scalar(a, b, s::mul),
        Mulsd_xmm_xmmm64 => scalar(a, b, d::mul),
        Divps_xmm_xmmm128 => each(a, b, s::div),
        Divpd_xmm_xmmm128 => each(a, b, d::div),
        Divss_xmm_xmmm32 => scalar(a, b, s::div),
        Divsd_xmm_xmmm64 => scalar(a, b, d::div),
        Minps_xmm_xmmm128 => each(a, b, s::min),
        Minpd_xmm_xmmm128 => each(a, b, d::min),
        Minss_xmm_xmmm32 => scalar(a, b, s::min),
        Minsd_xmm_xmmm64 => scalar(a, b, d::min),
        Maxps_xmm_xmmm128 => each(a, b, s::max),
        Maxpd_xmm_xmmm128 => each(a, b, d::max),
        Maxss_xmm_xmmm32 => scalar(a, b, s::max),
        Maxsd_xmm_xmmm64 => scalar(a, b, d::max),
        Sqrtps_xmm_xmmm128 => each(a, b, s::sqrt),
        Sqrtpd_xmm_xmmm128 => each(a, b, d::sqrt),
        Sqrtss_xmm_xmmm32 => scalar(a, b, s::sqrt),
        Sqrtsd_xmm_xmmm64 => scalar(a, b, d::sqrt),
        Rcpps_xmm_xmmm128 => each(a, b, |_, y| approximate(y, _mm_rcp_ss)),
        Rcpss_xmm_xmmm32 => scalar(a, b, |_, y| approximate(y, _mm_rcp_ss)),
        Rsqrtps_xmm_xmmm128 => each(a, b, |_, y| approximate(y, _mm_rsqrt_ss)),
        Rsqrtss_xmm_xmmm32 => scalar(a, b, |_, y| approximate(y, _mm_rsqrt_ss)),

        Haddps_xmm_xmmm128 => s::horizontal(a, b, s::add),
        Haddpd_xmm_xmmm128 => d::horizontal(a, b, d::add),
        Hsubps_xmm_xmmm128 => s::horizontal(a, b, s::sub),
        Hsubpd_xmm_xmmm128 => d::horizontal(a, b, d::sub),
        Addsubps_xmm_xmmm128 => s::alternate(a, b),
        Addsubpd_xmm_xmmm128 => d::alternate(a, b),

        Cmpps_xmm_xmmm128_imm8 => each(a, b, |x, y| mask32(s::compare(x, y, imm))),
        Cmppd_xmm_xmmm128_imm8 => each(a, b, |x, y| mask64(d::compare(x, y, imm))),
        Cmpss_xmm_xmmm32_imm8 => scalar(a, b, |x, y| mask32(s::compare(x, y, imm))),
        Cmpsd_xmm_xmmm64_imm8 => scalar(a, b, |x, y| mask64(d::compare(x, y, imm))),
        Roundps_xmm_xmmm128_imm8 => each(a, b, |_, y| s::round(y, imm, rounding())),
        Roundpd_xmm_xmmm128_imm8 => each(a, b, |_, y| d::round(y, imm, rounding())),
        Roundss_xmm_xmmm32_imm8 => scalar(a, b, |_, y| s::round(y, imm, rounding())),
        Roundsd_xmm_xmmm64_imm8 => scalar(a, b, |_, y| d::round(y, imm, rounding())),
        Dpps_xmm_xmmm128_imm8 => s::dot::<4>(a, b, imm),
        Dppd_xmm_xmmm128_imm8 => d::dot::<2>(a, b, imm),

        Cvtps2pd_xmm_xmmm64 => vector([0, 1].map(|i| widen(lane(b, i)))),
        Cvtpd2ps_xmm_xmmm128 => vector([0, 1].map(|i| narrow(lane(b, i)))),
        Cvtss2sd_xmm_xmmm32 => a >> 64 << 64 | widen(lane(b, 0)).bits(),
        Cvtsd2ss_xmm_xmmm64 => a >> 32 << 32 | narrow(lane(b, 0)).bits(),
        Cvtdq2ps_xmm_xmmm128 => vector((0..4).map(|i| black_box(lane::<i32>(b, i)) as f32)),
        Cvtdq2pd_xmm_xmmm64 => vector((0..2).map(|i| f64::from(black_box(lane::<i32>(b, i))))),
        Cvtps2dq_xmm_xmmm128 => vector((0..4).map(|i| nearest32(lane(b, i)))),
        Cvttps2dq_xmm_xmmm128 => vector((0..4).map(|i| s::truncate(lane(b, i)))),
        Cvtpd2dq_xmm_xmmm128 => zero_above(vector((0..2).map(|i| nearest64(lane(b, i))))),
        Cvttpd2dq_xmm_xmmm128 => zero_above(vector((0..2).map(|i| d::truncate(lane(b, i))))),
        _ => return None,
    })
}

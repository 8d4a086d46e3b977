//! Integer and logic operations in plain Rust (Intel SDM vol. 2).

use iced_x86::Code::{self, *};

use super::{Lane, each, lane, vector};

/// `a` and `b`, interleaved from the low or the high half.
fn unpack<T: Lane>(a: u128, b: u128, high: bool) -> u128 {
    let lanes = 128 / T::BITS as usize;
    let start = if high { lanes / 2 } else { 0 };
    vector((0..lanes).map(|i| lane::<T>(if i % 2 == 0 { a } else { b }, start + i / 2)))
}

fn pack<T: Lane, U: Lane>(a: u128, b: u128, f: impl Fn(T) -> U) -> u128 {
    let lanes = 128 / T::BITS as usize;
    vector((0..2 * lanes).map(|i| f(if i < lanes { lane(a, i) } else { lane(b, i - lanes) })))
}

fn compare<T: Lane>(a: u128, b: u128, f: impl Fn(T, T) -> bool) -> u128 {
    vector((0..128 / T::BITS as usize).map(|i| T::of(if f(lane(a, i), lane(b, i)) { u128::MAX } else { 0 })))
}

/// Pairs of neighbours: of `a` into the low half, of `b` into the high half.
fn pairs<T: Lane>(a: u128, b: u128, f: impl Fn(T, T) -> T) -> u128 {
    let half = 64 / T::BITS as usize;
    vector((0..2 * half).map(|i| {
        let from = if i < half { a } else { b };
        f(lane(from, i % half * 2), lane(from, i % half * 2 + 1))
    }))
}

fn widen<T: Lane, U: Lane>(b: u128, f: impl Fn(T) -> U) -> u128 {
    vector((0..128 / U::BITS as usize).map(|i| f(lane(b, i))))
}

/// A shift of lanes by the low quadword of `count`.
pub(super) fn shift<T: Lane>(a: u128, count: u128, f: impl Fn(T, u32) -> T, beyond: impl Fn(T) -> T) -> u128 {
    let count = count as u64;
    each::<T>(a, a, |x, _| if count < u64::from(T::BITS) { f(x, count as u32) } else { beyond(x) })
}

fn sum_of_differences(a: u128, b: u128, half: usize) -> u64 {
    (8 * half..8 * half + 8).map(|i| u64::from(lane::<u8>(a, i).abs_diff(lane(b, i)))).sum()
}

fn even<T: Lane>(a: u128, b: u128, f: impl Fn(T, T) -> u64) -> u128 {
    vector([f(lane(a, 0), lane(b, 0)), f(lane(a, 2), lane(b, 2))])
}

fn clamp16(value: i32) -> i16 {
    value.clamp(-0x8000, 0x7fff) as i16
}

fn pmaddwd(a: u128, b: u128) -> u128 {
    let product = |i| i32::from(lane::<i16>(a, i)) * i32::from(lane::<i16>(b, i));
    vector((0..4).map(|i| product(2 * i).wrapping_add(product(2 * i + 1))))
}

fn pmaddubsw(a: u128, b: u128) -> u128 {
    let product = |i| i32::from(lane::<u8>(a, i)) * i32::from(lane::<i8>(b, i));
    vector((0..8).map(|i| clamp16(product(2 * i) + product(2 * i + 1))))
}

fn phminposuw(b: u128) -> u128 {
    let (index, least) = (0..8).map(|i| (i, lane::<u16>(b, i))).min_by_key(|&(_, v)| v).unwrap();
    u128::from(least) | (index as u128) << 16
}

fn pshufb(a: u128, b: u128) -> u128 {
    vector((0..16).map(|i| {
        let index: u8 = lane(b, i);
        if index & 0x80 != 0 { 0 } else { lane::<u8>(a, usize::from(index & 15)) }
    }))
}

/// What `code` computes from registers `a` and `b`, if it is one of these.
pub(super) fn reference(code: Code, a: u128, b: u128) -> Option<u128> {
    macro_rules! by_sign {
        ($t:ty) => {
            each::<$t>(a, b, |x, y| {
                if y < 0 {
                    x.wrapping_neg()
                } else if y == 0 {
                    0
                } else {
                    x
                }
            })
        };
    }
    Some(match code {
        Pand_xmm_xmmm128 | Andps_xmm_xmmm128 | Andpd_xmm_xmmm128 => a & b,
        Pandn_xmm_xmmm128 | Andnps_xmm_xmmm128 | Andnpd_xmm_xmmm128 => !a & b,
        Por_xmm_xmmm128 | Orps_xmm_xmmm128 | Orpd_xmm_xmmm128 => a | b,
        Pxor_xmm_xmmm128 | Xorps_xmm_xmmm128 | Xorpd_xmm_xmmm128 => a ^ b,

        Punpcklbw_xmm_xmmm128 => unpack::<u8>(a, b, false),
        Punpcklwd_xmm_xmmm128 => unpack::<u16>(a, b, false),
        Punpckldq_xmm_xmmm128 | Unpcklps_xmm_xmmm128 => unpack::<u32>(a, b, false),
        Punpcklqdq_xmm_xmmm128 | Unpcklpd_xmm_xmmm128 => unpack::<u64>(a, b, false),
        Punpckhbw_xmm_xmmm128 => unpack::<u8>(a, b, true),
        Punpckhwd_xmm_xmmm128 => unpack::<u16>(a, b, true),
        Punpckhdq_xmm_xmmm128 | Unpckhps_xmm_xmmm128 => unpack::<u32>(a, b, true),
        Punpckhqdq_xmm_xmmm128 | Unpckhpd_xmm_xmmm128 => unpack::<u64>(a, b, true),
        Packsswb_xmm_xmmm128 => pack(a, b, |v: i16| v.clamp(-128, 127) as i8),
        Packuswb_xmm_xmmm128 => pack(a, b, |v: i16| v.clamp(0, 255) as u8),
        Packssdw_xmm_xmmm128 => pack(a, b, clamp16),
        Packusdw_xmm_xmmm128 => pack(a, b, |v: i32| v.clamp(0, 0xffff) as u16),

        Pcmpeqb_xmm_xmmm128 => compare::<u8>(a, b, |x, y| x == y),
        Pcmpeqw_xmm_xmmm128 => compare::<u16>(a, b, |x, y| x == y),
        Pcmpeqd_xmm_xmmm128 => compare::<u32>(a, b, |x, y| x == y),
        Pcmpeqq_xmm_xmmm128 => compare::<u64>(a, b, |x, y| x == y),
        Pcmpgtb_xmm_xmmm128 => compare::<i8>(a, b, |x, y| x > y),
        Pcmpgtw_xmm_xmmm128 => compare::<i16>(a, b, |x, y| x > y),
        Pcmpgtd_xmm_xmmm128 => compare::<i32>(a, b, |x, y| x > y),
        Pcmpgtq_xmm_xmmm128 => compare::<i64>(a, b, |x, y| x > y),

        Paddb_xmm_xmmm128 => each(a, b, u8::wrapping_add),
        Paddw_xmm_xmmm128 => each(a, b, u16::wrapping_add),
        Paddd_xmm_xmmm128 => each(a, b, u32::wrapping_add),
        Paddq_xmm_xmmm128 => each(a, b, u64::wrapping_add),
        Psubb_xmm_xmmm128 => each(a, b, u8::wrapping_sub),
        Psubw_xmm_xmmm128 => each(a, b, u16::wrapping_sub),
        Psubd_xmm_xmmm128 => each(a, b, u32::wrapping_sub),
        Psubq_xmm_xmmm128 => each(a, b, u64::wrapping_sub),
        Paddusb_xmm_xmmm128 => each(a, b, u8::saturating_add),
        Paddusw_xmm_xmmm128 => each(a, b, u16::saturating_add),
        Psubusb_xmm_xmmm128 => each(a, b, u8::saturating_sub),
        Psubusw_xmm_xmmm128 => each(a, b, u16::saturating_sub),
        Paddsb_xmm_xmmm128 => each(a, b, i8::saturating_add),
        Paddsw_xmm_xmmm128 => each(a, b, i16::saturating_add),
        Psubsb_xmm_xmmm128 => each(a, b, i8::saturating_sub),
        Psubsw_xmm_xmmm128 => each(a, b, i16::saturating_sub),
        Pminub_xmm_xmmm128 => each(a, b, <u8 as Ord>::min),
        Pminuw_xmm_xmmm128 => each(a, b, <u16 as Ord>::min),
        Pminud_xmm_xmmm128 => each(a, b, <u32 as Ord>::min),
        Pminsb_xmm_xmmm128 => each(a, b, <i8 as Ord>::min),
        Pminsw_xmm_xmmm128 => each(a, b, <i16 as Ord>::min),
        Pminsd_xmm_xmmm128 => each(a, b, <i32 as Ord>::min),
        Pmaxub_xmm_xmmm128 => each(a, b, <u8 as Ord>::max),
        Pmaxuw_xmm_xmmm128 => each(a, b, <u16 as Ord>::max),
        Pmaxud_xmm_xmmm128 => each(a, b, <u32 as Ord>::max),
        Pmaxsb_xmm_xmmm128 => each(a, b, <i8 as Ord>::max),
        Pmaxsw_xmm_xmmm128 => each(a, b, <i16 as Ord>::max),
        Pmaxsd_xmm_xmmm128 => each(a, b, <i32 as Ord>::max),
        Pavgb_xmm_xmmm128 => each(a, b, |x: u8, y| (u16::from(x) + u16::from(y)).div_ceil(2) as u8),
        Pavgw_xmm_xmmm128 => each(a, b, |x: u16, y| (u32::from(x) + u32::from(y)).div_ceil(2) as u16),
        Pabsb_xmm_xmmm128 => each(a, b, |_, y: i8| y.wrapping_abs()),
        Pabsw_xmm_xmmm128 => each(a, b, |_, y: i16| y.wrapping_abs()),
        Pabsd_xmm_xmmm128 => each(a, b, |_, y: i32| y.wrapping_abs()),
        Psignb_xmm_xmmm128 => by_sign!(i8),
        Psignw_xmm_xmmm128 => by_sign!(i16),
        Psignd_xmm_xmmm128 => by_sign!(i32),

        Pmullw_xmm_xmmm128 => each(a, b, u16::wrapping_mul),
        Pmulld_xmm_xmmm128 => each(a, b, u32::wrapping_mul),
        Pmulhw_xmm_xmmm128 => each(a, b, |x: i16, y| ((i32::from(x) * i32::from(y)) >> 16) as i16),
        Pmulhuw_xmm_xmmm128 => each(a, b, |x: u16, y| ((u32::from(x) * u32::from(y)) >> 16) as u16),
        Pmulhrsw_xmm_xmmm128 => {
            each(a, b, |x: i16, y| ((((i32::from(x) * i32::from(y)) >> 14) + 1) >> 1) as i16)
        }
        Pmuludq_xmm_xmmm128 => even(a, b, |x: u32, y| u64::from(x) * u64::from(y)),
        Pmuldq_xmm_xmmm128 => even(a, b, |x: i32, y| (i64::from(x) * i64::from(y)) as u64),
        Pmaddwd_xmm_xmmm128 => pmaddwd(a, b),
        Pmaddubsw_xmm_xmmm128 => pmaddubsw(a, b),
        Psadbw_xmm_xmmm128 => vector([sum_of_differences(a, b, 0), sum_of_differences(a, b, 1)]),
        Phminposuw_xmm_xmmm128 => phminposuw(b),
        Pshufb_xmm_xmmm128 => pshufb(a, b),

        Phaddw_xmm_xmmm128 => pairs(a, b, u16::wrapping_add),
        Phaddd_xmm_xmmm128 => pairs(a, b, u32::wrapping_add),
        Phaddsw_xmm_xmmm128 => pairs(a, b, i16::saturating_add),
        Phsubw_xmm_xmmm128 => pairs(a, b, u16::wrapping_sub),
        Phsubd_xmm_xmmm128 => pairs(a, b, u32::wrapping_sub),
        Phsubsw_xmm_xmmm128 => pairs(a, b, i16::saturating_sub),

        Psllw_xmm_xmmm128 => shift::<u16>(a, b, |x, n| x << n, |_| 0),
        Pslld_xmm_xmmm128 => shift::<u32>(a, b, |x, n| x << n, |_| 0),
        Psllq_xmm_xmmm128 => shift::<u64>(a, b, |x, n| x << n, |_| 0),
        Psrlw_xmm_xmmm128 => shift::<u16>(a, b, |x, n| x >> n, |_| 0),
        Psrld_xmm_xmmm128 => shift::<u32>(a, b, |x, n| x >> n, |_| 0),
        Psrlq_xmm_xmmm128 => shift::<u64>(a, b, |x, n| x >> n, |_| 0),
        Psraw_xmm_xmmm128 => shift::<i16>(a, b, |x, n| x >> n, |x| x >> 15),
        Psrad_xmm_xmmm128 => shift::<i32>(a, b, |x, n| x >> n, |x| x >> 31),

        Pmovsxbw_xmm_xmmm64 => widen(b, |x: i8| i16::from(x)),
        Pmovsxbd_xmm_xmmm32 => widen(b, |x: i8| i32::from(x)),
        Pmovsxbq_xmm_xmmm16 => widen(b, |x: i8| i64::from(x)),
        Pmovsxwd_xmm_xmmm64 => widen(b, |x: i16| i32::from(x)),
        Pmovsxwq_xmm_xmmm32 => widen(b, |x: i16| i64::from(x)),
        Pmovsxdq_xmm_xmmm64 => widen(b, |x: i32| i64::from(x)),
        Pmovzxbw_xmm_xmmm64 => widen(b, |x: u8| u16::from(x)),
        Pmovzxbd_xmm_xmmm32 => widen(b, |x: u8| u32::from(x)),
        Pmovzxbq_xmm_xmmm16 => widen(b, |x: u8| u64::from(x)),
        Pmovzxwd_xmm_xmmm64 => widen(b, |x: u16| u32::from(x)),
        Pmovzxwq_xmm_xmmm32 => widen(b, |x: u16| u64::from(x)),
        Pmovzxdq_xmm_xmmm64 => widen(b, |x: u32| u64::from(x)),
        _ => return None,
    })
}

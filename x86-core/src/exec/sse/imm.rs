//! Instructions with an immediate byte. Shuffles and blends are lane moves in Rust; what rounds, compares or sets flags
//! is the host's instruction, one for each value of the immediate's bits that matter.
#![allow(unsafe_code)] // inline assembly and pointers into the register file

use iced_x86::Code::{self, *};

use super::form::{Float, Forms, Shape, VecOp};
use super::raw::{host_imm_op, host_op};

/// Raw operations on lanes: from the destination's and the source's old lanes and the immediate, the new ones.
macro_rules! lane_ops {
    ($($name:ident($a:ident, $b:ident: [$lane:ty; $n:literal], $imm:ident) $new:expr;)*) => {$(
        unsafe fn $name(dst: *mut [u64; 4], src: *const [u64; 2], $imm: u8) {
            let dst = dst.cast::<[$lane; $n]>();
            // SAFETY: the caller's promise; lanes of both are 16 bytes together.
            let ($a, $b) = unsafe { (dst.read_unaligned(), src.cast::<[$lane; $n]>().read_unaligned()) };
            let _ = ($a, $b);
            let new: [$lane; $n] = $new;
            // SAFETY: as above.
            unsafe { dst.write_unaligned(new) };
        }
    )*};
}

/// The two-bit field `i` of an immediate.
#[inline(always)]
const fn field(imm: u8, i: usize) -> usize {
    (imm >> (2 * (i & 3)) & 3) as usize
}

/// `a` with the lanes of `b` that the bits of `imm` choose.
#[inline(always)]
fn blend<T: Copy, const N: usize>(a: [T; N], b: [T; N], imm: u8) -> [T; N] {
    std::array::from_fn(|i| if imm >> (i & 7) & 1 != 0 { b[i] } else { a[i] })
}

/// `value` moved right by `bytes`; left if negative; zeros come in.
#[inline(always)]
fn shift_bytes(value: u128, bytes: i32) -> u128 {
    let bits = 8 * bytes.unsigned_abs();
    let shifted = if bytes >= 0 { value.checked_shr(bits) } else { value.checked_shl(bits) };
    shifted.unwrap_or(0)
}

lane_ops! {
    pshufd(a, b: [u32; 4], imm) std::array::from_fn(|i| b[field(imm, i)]);
    pshuflw(a, b: [u16; 8], imm) std::array::from_fn(|i| if i < 4 { b[field(imm, i)] } else { b[i] });
    pshufhw(a, b: [u16; 8], imm) std::array::from_fn(|i| if i < 4 { b[i] } else { b[4 + field(imm, i)] });
    shufps(a, b: [u32; 4], imm) {
        [a[field(imm, 0)], a[field(imm, 1)], b[field(imm, 2)], b[field(imm, 3)]]
    };
    shufpd(a, b: [u64; 2], imm) [a[usize::from(imm & 1)], b[usize::from(imm >> 1 & 1)]];
    blendps(a, b: [u32; 4], imm) blend(a, b, imm);
    blendpd(a, b: [u64; 2], imm) blend(a, b, imm);
    pblendw(a, b: [u16; 8], imm) blend(a, b, imm);
    palignr(a, b: [u128; 1], imm) {
        let bytes = i32::from(imm);
        let high = shift_bytes(a[0], bytes - 16);
        [shift_bytes(b[0], bytes) | if bytes < 32 { high } else { 0 }]
    };
    psrldq(a, b: [u128; 1], imm) [shift_bytes(a[0], i32::from(imm))];
    pslldq(a, b: [u128; 1], imm) [shift_bytes(a[0], -i32::from(imm))];
    insertps_register(a, b: [u32; 4], imm) insert_single(a, b[field(imm, 3)], imm);
    insertps_memory(a, b: [u32; 4], imm) insert_single(a, b[0], imm);
    keep_lanes4(a, b: [u32; 4], imm) blend([0; 4], a, imm);
    keep_lanes2(a, b: [u64; 2], imm) blend([0; 2], a, imm);
}

/// INSERTPS: `value` into the lane that bits 5:4 name, then zeros where bits 3:0 ask.
#[inline(always)]
fn insert_single(mut lanes: [u32; 4], value: u32, imm: u8) -> [u32; 4] {
    lanes[field(imm, 2)] = value;
    blend(lanes, [0; 4], imm & 15)
}

/// Bits 7:4 choose what is multiplied, bits 3:0 where the sum goes: the host computes it everywhere, and lanes it
/// should not go to are cleared.
///
/// # Safety
/// As a [`VecOp`].
unsafe fn dpps(dst: *mut [u64; 4], src: *const [u64; 2], imm: u8) {
    let everywhere = host_imm_op!("dpps", 0xff, [
        0x0f 0x1f 0x2f 0x3f 0x4f 0x5f 0x6f 0x7f 0x8f 0x9f 0xaf 0xbf 0xcf 0xdf 0xef 0xff]);
    // SAFETY: the caller's promise.
    unsafe {
        everywhere(dst, src, imm | 0x0f);
        keep_lanes4(dst, dst.cast(), imm);
    }
}

/// As [`dpps`], with bits 5:4 and 1:0.
///
/// # Safety
/// As a [`VecOp`].
unsafe fn dppd(dst: *mut [u64; 4], src: *const [u64; 2], imm: u8) {
    let everywhere = host_imm_op!("dppd", 0x33, [0x03 0x13 0x23 0x33]);
    // SAFETY: the caller's promise.
    unsafe {
        everywhere(dst, src, imm | 3);
        keep_lanes2(dst, dst.cast(), imm);
    }
}

/// A shift by an immediate is the host's shift by a register: both take any count.
macro_rules! shift {
    ($text:literal) => {{
        unsafe fn raw(dst: *mut [u64; 4], _: *const [u64; 2], imm: u8) {
            let count = [u64::from(imm), 0];
            // SAFETY: the caller's promise.
            unsafe { host_op!(int $text)(dst, &count, 0) }
        }
        raw as VecOp
    }};
}

pub(super) fn forms(forms: &mut Forms) {
    use Shape::{Immediate, Load};
    let lanes: [(Code, VecOp); 9] = [
        (Pshufd_xmm_xmmm128_imm8, pshufd),
        (Pshuflw_xmm_xmmm128_imm8, pshuflw),
        (Pshufhw_xmm_xmmm128_imm8, pshufhw),
        (Shufps_xmm_xmmm128_imm8, shufps),
        (Shufpd_xmm_xmmm128_imm8, shufpd),
        (Blendps_xmm_xmmm128_imm8, blendps),
        (Blendpd_xmm_xmmm128_imm8, blendpd),
        (Pblendw_xmm_xmmm128_imm8, pblendw),
        (Palignr_xmm_xmmm128_imm8, palignr),
    ];
    for (code, op) in lanes {
        forms.add(code, Load, Float::None, op);
    }
    forms.add_split(Insertps_xmm_xmmm32_imm8, Load, Float::None, insertps_register, insertps_memory);

    let shifts: [(Code, VecOp); 10] = [
        (Psrlw_xmm_imm8, shift!("psrlw")),
        (Psraw_xmm_imm8, shift!("psraw")),
        (Psllw_xmm_imm8, shift!("psllw")),
        (Psrld_xmm_imm8, shift!("psrld")),
        (Psrad_xmm_imm8, shift!("psrad")),
        (Pslld_xmm_imm8, shift!("pslld")),
        (Psrlq_xmm_imm8, shift!("psrlq")),
        (Psllq_xmm_imm8, shift!("psllq")),
        (Psrldq_xmm_imm8, psrldq),
        (Pslldq_xmm_imm8, pslldq),
    ];
    for (code, op) in shifts {
        forms.add(code, Immediate, Float::None, op);
    }

    macro_rules! compare {
        ($text:literal) => {
            host_imm_op!($text, 7, [0 1 2 3 4 5 6 7])
        };
    }
    forms.add(Cmpps_xmm_xmmm128_imm8, Load, Float::Flags, compare!("cmpps"));
    forms.add(Cmppd_xmm_xmmm128_imm8, Load, Float::Flags, compare!("cmppd"));
    forms.add(Cmpss_xmm_xmmm32_imm8, Load, Float::Flags, compare!("cmpss"));
    forms.add(Cmpsd_xmm_xmmm64_imm8, Load, Float::Flags, compare!("cmpsd"));

    macro_rules! round {
        ($text:literal) => {
            host_imm_op!($text, 15, [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15])
        };
    }
    forms.add(Roundps_xmm_xmmm128_imm8, Load, Float::Flags, round!("roundps"));
    forms.add(Roundpd_xmm_xmmm128_imm8, Load, Float::Flags, round!("roundpd"));
    forms.add(Roundss_xmm_xmmm32_imm8, Load, Float::Flags, round!("roundss"));
    forms.add(Roundsd_xmm_xmmm64_imm8, Load, Float::Flags, round!("roundsd"));

    forms.add(Dpps_xmm_xmmm128_imm8, Load, Float::Single(4), dpps);
    forms.add(Dppd_xmm_xmmm128_imm8, Load, Float::Double(2), dppd);
    let mpsadbw = host_imm_op!("mpsadbw", 7, [0 1 2 3 4 5 6 7]);
    forms.add(Mpsadbw_xmm_xmmm128_imm8, Load, Float::None, mpsadbw);
}

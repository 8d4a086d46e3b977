//! Multiplication, division and double-width shifts, by the host's instructions.
//!
//! The old flags go in and the new ones come out, so that what the manual leaves undefined is what the same instruction
//! leaves on the silicon.
#![allow(unsafe_code)] // inline assembly; every block is pure register arithmetic

use std::arch::asm;

use super::{ArithFlags, Word};

/// Double-width arithmetic of a [`Word`].
pub trait Wide: Word {
    /// MUL: low and high half of the product.
    fn mul(self, b: Self, f: &mut ArithFlags) -> (Self, Self);
    /// IMUL with one operand: low and high half of the signed product.
    fn imul(self, b: Self, f: &mut ArithFlags) -> (Self, Self);
    /// DIV of `high:self`: quotient and remainder, or `None` where the processor raises #DE.
    fn div(self, high: Self, divisor: Self, f: &mut ArithFlags) -> Option<(Self, Self)>;
    /// IDIV of `high:self`: quotient and remainder, or `None` where the processor raises #DE.
    fn idiv(self, high: Self, divisor: Self, f: &mut ArithFlags) -> Option<(Self, Self)>;
}

/// What exists for 16, 32 and 64 bits but not for bytes.
pub trait NoByte: Wide {
    /// IMUL with two or three operands: the product cut to the width.
    fn imul2(self, b: Self, f: &mut ArithFlags) -> Self;
    /// SHLD: `self` shifted left, filled from the top of `fill`.
    fn shld(self, fill: Self, count: u8, f: &mut ArithFlags) -> Self;
    /// SHRD: `self` shifted right, filled from the bottom of `fill`.
    fn shrd(self, fill: Self, count: u8, f: &mut ArithFlags) -> Self;
}

/// Whether the signed quotient of `high:low / divisor` fits in `bits` bits.
fn quotient_fits(high: i64, low: u64, divisor: i64, bits: u32) -> bool {
    if divisor == 0 {
        return false;
    }
    if bits == 64 {
        if high == (low as i64) >> 63 {
            return (low as i64).checked_div(divisor).is_some();
        }
        let dividend = i128::from(high) << 64 | i128::from(low);
        return dividend.checked_div(i128::from(divisor)).is_some_and(|q| i64::try_from(q).is_ok());
    }
    let dividend = high << bits | low as i64;
    let limit = 1i64 << (bits - 1);
    dividend.checked_div(divisor).is_some_and(|q| (-limit..limit).contains(&q))
}

macro_rules! wide_byte {
    ($name:ident, $text:literal) => {
        #[inline(always)]
        fn $name(self, b: Self, f: &mut ArithFlags) -> (Self, Self) {
            let product: u16;
            // SAFETY: computes in the named registers only.
            unsafe {
                asm!("add al, 0x7f", "sahf", "mov al, {a}", concat!($text, " {b}"), "mov {p:x}, ax", "lahf",
                    "seto al", a = in(reg_byte) self, b = in(reg_byte) b, p = lateout(reg) product,
                    inout("ax") f.0, options(pure, nomem, nostack));
            }
            (product as u8, (product >> 8) as u8)
        }
    };
}

macro_rules! divide_byte {
    ($text:literal, $low:expr, $high:expr, $divisor:expr, $f:expr) => {{
        let result: u16;
        // SAFETY: computes in the named registers only; the caller has checked that the quotient fits.
        unsafe {
            asm!("add al, 0x7f", "sahf", "mov ax, {a:x}", concat!($text, " {b}"), "mov {a:x}, ax", "lahf", "seto al",
                a = inout(reg) u16::from($high) << 8 | u16::from($low) => result, b = in(reg_byte) $divisor,
                inout("ax") $f.0, options(nomem, nostack));
        }
        (result as u8, (result >> 8) as u8)
    }};
}

impl Wide for u8 {
    wide_byte!(mul, "mul");
    wide_byte!(imul, "imul");

    #[inline]
    fn div(self, high: Self, divisor: Self, f: &mut ArithFlags) -> Option<(Self, Self)> {
        (high < divisor).then(|| divide_byte!("div", self, high, divisor, f))
    }

    #[inline]
    fn idiv(self, high: Self, divisor: Self, f: &mut ArithFlags) -> Option<(Self, Self)> {
        quotient_fits(high.to_i64(), self.to_u64(), divisor.to_i64(), 8)
            .then(|| divide_byte!("idiv", self, high, divisor, f))
    }
}

macro_rules! wide_product {
    ($name:ident, $m:literal, $a:literal) => {
        #[inline(always)]
        fn $name(self, b: Self, f: &mut ArithFlags) -> (Self, Self) {
            let (low, high);
            // SAFETY: computes in the named registers only.
            unsafe {
                asm!("add al, 0x7f", "sahf", concat!("mov ", $a, ", {a", $m, "}"),
                    concat!(stringify!($name), " {b", $m, "}"), concat!("mov {a", $m, "}, ", $a), "lahf", "seto al",
                    a = inout(reg) self => low, b = in(reg) b, inout("ax") f.0, out("rdx") high,
                    options(pure, nomem, nostack));
            }
            (low, high)
        }
    };
}

macro_rules! divide {
    ($text:literal, $m:literal, $a:literal, $low:expr, $high:expr, $divisor:expr, $f:expr) => {{
        let (quotient, remainder);
        // SAFETY: computes in the named registers only; the caller has checked that the quotient fits.
        unsafe {
            asm!("add al, 0x7f", "sahf", concat!("mov ", $a, ", {a", $m, "}"), concat!($text, " {b", $m, "}"),
                concat!("mov {a", $m, "}, ", $a), "lahf", "seto al", a = inout(reg) $low => quotient,
                b = in(reg) $divisor, inout("ax") $f.0, inout("rdx") $high => remainder, options(nomem, nostack));
        }
        (quotient, remainder)
    }};
}

macro_rules! double_shift {
    ($m:literal, $($name:ident)*) => {$(
        #[inline(always)]
        fn $name(mut self, fill: Self, count: u8, f: &mut ArithFlags) -> Self {
            // SAFETY: computes in the named registers only.
            unsafe {
                asm!("add al, 0x7f", "sahf", concat!(stringify!($name), " {a", $m, "}, {b", $m, "}, cl"), "lahf",
                    "seto al", a = inout(reg) self, b = in(reg) fill, in("cl") count, inout("ax") f.0,
                    options(pure, nomem, nostack));
            }
            self
        }
    )*};
}

macro_rules! wide {
    ($t:ty, $m:literal, $a:literal) => {
        impl Wide for $t {
            wide_product!(mul, $m, $a);
            wide_product!(imul, $m, $a);

            #[inline]
            fn div(self, high: Self, divisor: Self, f: &mut ArithFlags) -> Option<(Self, Self)> {
                (high < divisor).then(|| divide!("div", $m, $a, self, high, divisor, f))
            }

            #[inline]
            fn idiv(self, high: Self, divisor: Self, f: &mut ArithFlags) -> Option<(Self, Self)> {
                quotient_fits(high.to_i64(), self.to_u64(), divisor.to_i64(), Self::BITS)
                    .then(|| divide!("idiv", $m, $a, self, high, divisor, f))
            }
        }

        impl NoByte for $t {
            #[inline(always)]
            fn imul2(mut self, b: Self, f: &mut ArithFlags) -> Self {
                // SAFETY: computes in the named registers only.
                unsafe {
                    asm!("add al, 0x7f", "sahf", concat!("imul {a", $m, "}, {b", $m, "}"), "lahf", "seto al",
                        a = inout(reg) self, b = in(reg) b, inout("ax") f.0, options(pure, nomem, nostack));
                }
                self
            }

            double_shift!($m, shld shrd);
        }
    };
}

wide!(u16, ":x", "ax");
wide!(u32, ":e", "eax");
wide!(u64, ":r", "rax");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alu::flag;

    #[test]
    fn products_have_both_halves_and_carry_tells_of_the_high_one() {
        let mut f = ArithFlags::default();
        assert_eq!(u64::MAX.mul(2, &mut f), (u64::MAX - 1, 1));
        assert!(f.cf() && f.of());
        assert_eq!(0xf0u8.mul(0x10, &mut f), (0, 0xf));
        assert!(f.cf() && f.of());
        assert_eq!(0xffffu16.imul(2, &mut f), (0xfffe, 0xffff));
        assert!(!f.cf() && !f.of());
        assert_eq!(0x80u8.imul(0x80, &mut f), (0, 0x40));
        assert!(f.cf() && f.of());
        assert_eq!(0x1_0000u32.imul2(0x1_0000, &mut f), 0);
        assert!(f.cf() && f.of());
    }

    #[test]
    fn division_knows_its_range() {
        let f = &mut ArithFlags::default();
        assert_eq!(7u8.div(0, 2, f), Some((3, 1)));
        assert_eq!(0u8.div(2, 2, f), None);
        assert_eq!(7u32.div(0, 0, f), None);
        assert_eq!(0u64.div(1, 2, f), Some((1 << 63, 0)));
        assert_eq!(0x80u8.idiv(0xff, 0xff, f), None);
        assert_eq!(0x81u8.idiv(0xff, 0xff, f), Some((0x7f, 0)));
        assert_eq!((1u32 << 31).idiv(u32::MAX, u32::MAX, f), None);
        assert_eq!((1u64 << 63).idiv(u64::MAX, u64::MAX, f), None);
        assert_eq!(0u64.idiv(1 << 63, u64::MAX, f), None);
        assert_eq!(5u64.idiv(1, 4, f), Some((0x4000_0000_0000_0001, 1)));
        assert_eq!((-7i16 as u16).idiv(u16::MAX, 2, f), Some((-3i16 as u16, -1i16 as u16)));
        for divisor in [0u64, 1, u64::MAX, 1 << 63, 3] {
            for high in [0u64, 1, u64::MAX, 1 << 63, (1 << 63) - 1, u64::MAX - 1] {
                for low in [0u64, 1, u64::MAX, 1 << 63] {
                    let signed = (i128::from(high as i64) << 64 | i128::from(low))
                        .checked_div(i128::from(divisor as i64))
                        .and_then(|q| i64::try_from(q).ok());
                    assert_eq!(low.idiv(high, divisor, f).map(|(q, _)| q as i64), signed);
                    let unsigned = (u128::from(high) << 64 | u128::from(low))
                        .checked_div(u128::from(divisor))
                        .and_then(|q| u64::try_from(q).ok());
                    assert_eq!(low.div(high, divisor, f).map(|(q, _)| q), unsigned);
                }
            }
        }
    }

    #[test]
    fn every_byte_division_is_checked_before_the_host_divides() {
        let f = &mut ArithFlags::default();
        for dividend in 0..=u16::MAX {
            for divisor in [0u8, 1, 2, 3, 0x7f, 0x80, 0x81, 0xfe, 0xff] {
                let got = (dividend as u8).div((dividend >> 8) as u8, divisor, f);
                let want = dividend.checked_div(u16::from(divisor)).filter(|&q| q < 256);
                assert_eq!(got.map(|(q, _)| u16::from(q)), want);
                let got = (dividend as u8).idiv((dividend >> 8) as u8, divisor, f);
                let want = i32::from(dividend as i16)
                    .checked_div(i32::from(divisor as i8))
                    .filter(|q| (-128..128).contains(q));
                assert_eq!(got.map(|(q, _)| i32::from(q as i8)), want);
            }
        }
    }

    #[test]
    fn double_shifts_fill_and_keep_flags_at_count_zero() {
        let mut f = ArithFlags::from_rflags(flag::ARITH);
        assert_eq!(0x1234u16.shld(0xabcd, 4, &mut f), 0x234a);
        let mut f = ArithFlags::from_rflags(flag::ARITH);
        assert_eq!(5u32.shrd(7, 32, &mut f), 5);
        assert_eq!(f.to_rflags(), flag::ARITH);
        assert_eq!(1u64.shrd(1, 1, &mut f), 1 << 63);
        assert!(f.cf() && f.sf());
    }
}

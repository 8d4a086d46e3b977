//! Arithmetic on the host's own ALU: results and flags are the silicon's, the undefined ones included.
//!
//! Guest arithmetic flags are kept as the host's LAHF and SETO leave them in AX, so that recording them costs two
//! instructions and no arithmetic.
#![allow(unsafe_code)] // inline assembly; every block is pure register arithmetic

pub mod bit;
pub mod wide;

use std::arch::asm;

/// RFLAGS bits of the arithmetic flags.
#[allow(missing_docs)] // the flags' own names
pub mod flag {
    pub const CF: u64 = 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// The six that arithmetic sets.
    pub const ARITH: u64 = CF | PF | AF | ZF | SF | OF;
    /// All others.
    pub const SYSTEM: u64 = TF | IF | DF | IOPL | NT | RF | VM | AC | VIF | VIP | ID;
    /// Those that SYSRET takes from R11.
    pub const SYSRET: u64 = ARITH | SYSTEM & !(RF | VM);
}

/// CF, PF, AF, ZF, SF and OF as AX holds them after `lahf; seto al`: OF is bit 0, the others lie in the high byte.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(transparent)]
pub struct ArithFlags(pub u16);

impl ArithFlags {
    /// From the RFLAGS layout.
    #[inline(always)]
    pub const fn from_rflags(rflags: u64) -> Self {
        Self(((rflags & 0xd5) << 8 | rflags >> 11 & 1) as u16)
    }

    /// To the RFLAGS layout.
    #[inline(always)]
    pub const fn to_rflags(self) -> u64 {
        (self.0 >> 8 & 0xd5) as u64 | ((self.0 & 1) as u64) << 11
    }

    /// CF.
    #[inline(always)]
    pub const fn cf(self) -> bool {
        self.0 & 1 << 8 != 0
    }

    /// PF.
    #[inline(always)]
    pub const fn pf(self) -> bool {
        self.0 & 4 << 8 != 0
    }

    /// ZF.
    #[inline(always)]
    pub const fn zf(self) -> bool {
        self.0 & 0x40 << 8 != 0
    }

    /// SF.
    #[inline(always)]
    pub const fn sf(self) -> bool {
        self.0 & 0x80 << 8 != 0
    }

    /// OF.
    #[inline(always)]
    pub const fn of(self) -> bool {
        self.0 & 1 != 0
    }

    /// Sets or clears flags given in the RFLAGS layout.
    #[inline(always)]
    pub const fn assign(&mut self, mask: u64, on: bool) {
        let bits = Self::from_rflags(mask).0;
        self.0 = if on { self.0 | bits } else { self.0 & !bits };
    }

    /// Condition `cc` as encoded in Jcc, SETcc and CMOVcc (Intel SDM vol. 1, appendix B).
    #[inline(always)]
    pub const fn condition(self, cc: u8) -> bool {
        let holds = match cc >> 1 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() || self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => self.zf() || self.sf() != self.of(),
        };
        holds != (cc & 1 != 0)
    }
}

/// An operand width: `u8`, `u16`, `u32` or `u64`.
///
/// Each operation takes the flags by reference and leaves them as the host's instruction does.
#[allow(missing_docs)] // the instructions' own names
pub trait Word: Copy + Eq + Send + Sync + std::fmt::Debug + 'static {
    const BYTES: usize;
    const BITS: u32;
    fn from_u64(value: u64) -> Self;
    fn to_u64(self) -> u64;
    /// Sign-extended to 64 bits.
    fn to_i64(self) -> i64;
    fn add(self, b: Self, f: &mut ArithFlags) -> Self;
    fn sub(self, b: Self, f: &mut ArithFlags) -> Self;
    fn adc(self, b: Self, f: &mut ArithFlags) -> Self;
    fn sbb(self, b: Self, f: &mut ArithFlags) -> Self;
    fn and(self, b: Self, f: &mut ArithFlags) -> Self;
    fn or(self, b: Self, f: &mut ArithFlags) -> Self;
    fn xor(self, b: Self, f: &mut ArithFlags) -> Self;
    fn inc(self, f: &mut ArithFlags) -> Self;
    fn dec(self, f: &mut ArithFlags) -> Self;
    fn neg(self, f: &mut ArithFlags) -> Self;
    fn shl(self, count: u8, f: &mut ArithFlags) -> Self;
    fn shr(self, count: u8, f: &mut ArithFlags) -> Self;
    fn sar(self, count: u8, f: &mut ArithFlags) -> Self;
    fn rol(self, count: u8, f: &mut ArithFlags) -> Self;
    fn ror(self, count: u8, f: &mut ArithFlags) -> Self;
    fn rcl(self, count: u8, f: &mut ArithFlags) -> Self;
    fn rcr(self, count: u8, f: &mut ArithFlags) -> Self;
}

macro_rules! binary {
    ($t:ty, $class:ident, $m:literal, $($name:ident)*) => {$(
        #[inline(always)]
        fn $name(mut self, b: Self, f: &mut ArithFlags) -> Self {
            // SAFETY: computes in the named registers only.
            unsafe {
                asm!(concat!(stringify!($name), " {a", $m, "}, {b", $m, "}"), "lahf", "seto al",
                    a = inout($class) self, b = in($class) b, out("ax") f.0, options(pure, nomem, nostack));
            }
            self
        }
    )*};
}

macro_rules! binary_carry {
    ($t:ty, $class:ident, $m:literal, $($name:ident)*) => {$(
        #[inline(always)]
        fn $name(mut self, b: Self, f: &mut ArithFlags) -> Self {
            // SAFETY: computes in the named registers only.
            unsafe {
                asm!("sahf", concat!(stringify!($name), " {a", $m, "}, {b", $m, "}"), "lahf", "seto al",
                    a = inout($class) self, b = in($class) b, inout("ax") f.0, options(pure, nomem, nostack));
            }
            self
        }
    )*};
}

macro_rules! unary {
    ($t:ty, $class:ident, $m:literal, $($name:ident)*) => {$(
        #[inline(always)]
        fn $name(mut self, f: &mut ArithFlags) -> Self {
            // SAFETY: computes in the named registers only.
            unsafe {
                asm!("sahf", concat!(stringify!($name), " {a", $m, "}"), "lahf", "seto al",
                    a = inout($class) self, inout("ax") f.0, options(pure, nomem, nostack));
            }
            self
        }
    )*};
}

// A count of zero leaves all flags alone, so the old ones go in: `add al, 0x7f` turns bit 0 back into OF.
macro_rules! shift {
    ($t:ty, $class:ident, $m:literal, $($name:ident)*) => {$(
        #[inline(always)]
        fn $name(mut self, count: u8, f: &mut ArithFlags) -> Self {
            // SAFETY: computes in the named registers only.
            unsafe {
                asm!("add al, 0x7f", "sahf", concat!(stringify!($name), " {a", $m, "}, cl"), "lahf", "seto al",
                    a = inout($class) self, in("cl") count, inout("ax") f.0, options(pure, nomem, nostack));
            }
            self
        }
    )*};
}

macro_rules! word {
    ($t:ty, $signed:ty, $class:ident, $m:literal) => {
        impl Word for $t {
            const BYTES: usize = size_of::<$t>();
            const BITS: u32 = <$t>::BITS;
            #[inline(always)]
            fn from_u64(value: u64) -> Self {
                value as $t
            }
            #[inline(always)]
            fn to_u64(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn to_i64(self) -> i64 {
                self as $signed as i64
            }
            binary!($t, $class, $m, add sub and or xor);
            binary_carry!($t, $class, $m, adc sbb);
            unary!($t, $class, $m, inc dec neg);
            shift!($t, $class, $m, shl shr sar rol ror rcl rcr);
        }
    };
}

word!(u8, i8, reg_byte, "");
word!(u16, i16, reg, ":x");
word!(u32, i32, reg, ":e");
word!(u64, i64, reg, ":r");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_convert_both_ways() {
        for rflags in 0..=0xfff_u64 {
            let arith = rflags & flag::ARITH;
            assert_eq!(ArithFlags::from_rflags(rflags).to_rflags(), arith);
        }
    }

    #[test]
    fn add_sets_the_flags_of_the_manual() {
        let mut f = ArithFlags::default();
        assert_eq!(0x7fu8.add(1, &mut f), 0x80);
        assert_eq!(f.to_rflags(), flag::OF | flag::SF | flag::AF);
        assert_eq!(u64::MAX.add(1, &mut f), 0);
        assert_eq!(f.to_rflags(), flag::ZF | flag::CF | flag::AF | flag::PF);
    }

    #[test]
    fn carry_goes_in_and_inc_keeps_it() {
        let mut f = ArithFlags::from_rflags(flag::CF);
        assert_eq!(1u32.adc(1, &mut f), 3);
        assert!(!f.cf());
        f.assign(flag::CF, true);
        assert_eq!(u16::MAX.inc(&mut f), 0);
        assert!(f.cf() && f.zf());
    }

    #[test]
    fn shift_by_zero_keeps_all_flags() {
        for rflags in [0, flag::OF, flag::CF | flag::OF | flag::ZF, flag::ARITH] {
            let mut f = ArithFlags::from_rflags(rflags);
            assert_eq!(5u64.shl(64, &mut f), 5);
            assert_eq!(f.to_rflags(), rflags);
        }
    }

    #[test]
    fn conditions_follow_appendix_b() {
        for bits in 0..64u64 {
            let rflags = (bits & 1) | (bits >> 1 & 1) << 2 | (bits >> 2 & 3) << 6 | (bits >> 4 & 1) << 11;
            let f = ArithFlags::from_rflags(rflags);
            let (cf, pf, zf, sf, of) = (f.cf(), f.pf(), f.zf(), f.sf(), f.of());
            let expected = [
                of,
                !of,
                cf,
                !cf,
                zf,
                !zf,
                cf | zf,
                !(cf | zf),
                sf,
                !sf,
                pf,
                !pf,
                sf != of,
                sf == of,
                zf | (sf != of),
                !zf & (sf == of),
            ];
            for (cc, want) in expected.into_iter().enumerate() {
                assert_eq!(f.condition(cc as u8), want, "cc {cc} rflags {rflags:#x}");
            }
        }
    }
}

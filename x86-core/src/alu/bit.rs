//! Bit scans and the BMI1, BMI2, ABM and SSE4.2 instructions on general registers, by the host's instructions.
//!
//! The functions marked `unsafe` need a host that has the instruction; whoever calls them has asked
//! [`crate::alu::bit::host_has`].
#![allow(unsafe_code)] // inline assembly; every block is pure register arithmetic

use std::arch::asm;

use accel_api::x86::Feature;

use super::ArithFlags;
use super::wide::NoByte;

/// Whether the host executes the general-register instructions of `feature`.
pub fn host_has(feature: Feature) -> bool {
    match feature {
        Feature::Bmi1 => std::is_x86_feature_detected!("bmi1"),
        Feature::Bmi2 => std::is_x86_feature_detected!("bmi2"),
        Feature::Abm => std::is_x86_feature_detected!("lzcnt"),
        Feature::Popcnt => std::is_x86_feature_detected!("popcnt"),
        Feature::Sse42 => std::is_x86_feature_detected!("sse4.2"),
        Feature::Cx16 => std::is_x86_feature_detected!("cmpxchg16b"),
        _ => false,
    }
}

/// Bit instructions of 16, 32 and 64 bits.
#[allow(clippy::missing_safety_doc)] // one contract for all `unsafe` ones, told above
pub trait BitWord: NoByte {
    /// BSF into the whole register `old`, which keeps what the host's silicon keeps when the source is 0.
    fn bsf(self, old: u64, f: &mut ArithFlags) -> u64;
    /// BSR into the whole register `old`, as [`Self::bsf`].
    fn bsr(self, old: u64, f: &mut ArithFlags) -> u64;
    /// TZCNT. Needs BMI1.
    unsafe fn tzcnt(self, f: &mut ArithFlags) -> Self;
    /// LZCNT. Needs ABM.
    unsafe fn lzcnt(self, f: &mut ArithFlags) -> Self;
    /// POPCNT. Needs POPCNT.
    unsafe fn popcnt(self, f: &mut ArithFlags) -> Self;
}

/// Bit instructions of 32 and 64 bits, VEX-encoded.
#[allow(clippy::missing_safety_doc)] // one contract for all `unsafe` ones, told above
pub trait BmiWord: BitWord {
    /// ANDN: `!self & b`. Needs BMI1.
    unsafe fn andn(self, b: Self, f: &mut ArithFlags) -> Self;
    /// BEXTR. Needs BMI1.
    unsafe fn bextr(self, control: Self, f: &mut ArithFlags) -> Self;
    /// BLSI. Needs BMI1.
    unsafe fn blsi(self, f: &mut ArithFlags) -> Self;
    /// BLSMSK. Needs BMI1.
    unsafe fn blsmsk(self, f: &mut ArithFlags) -> Self;
    /// BLSR. Needs BMI1.
    unsafe fn blsr(self, f: &mut ArithFlags) -> Self;
    /// BZHI. Needs BMI2.
    unsafe fn bzhi(self, index: Self, f: &mut ArithFlags) -> Self;
    /// PDEP. Needs BMI2.
    unsafe fn pdep(self, mask: Self) -> Self;
    /// PEXT. Needs BMI2.
    unsafe fn pext(self, mask: Self) -> Self;
}

macro_rules! scan {
    ($m:literal, $($name:ident)*) => {$(
        #[inline(always)]
        fn $name(self, mut old: u64, f: &mut ArithFlags) -> u64 {
            // SAFETY: computes in the named registers only.
            unsafe {
                asm!("add al, 0x7f", "sahf", concat!(stringify!($name), " {d", $m, "}, {s", $m, "}"), "lahf",
                    "seto al", d = inout(reg) old, s = in(reg) self, inout("ax") f.0, options(pure, nomem, nostack));
            }
            old
        }
    )*};
}

macro_rules! count {
    ($m:literal, $($name:ident)*) => {$(
        #[inline(always)]
        unsafe fn $name(mut self, f: &mut ArithFlags) -> Self {
            // SAFETY: computes in the named registers only; the host has the instruction by the caller's promise.
            unsafe {
                asm!("add al, 0x7f", "sahf", concat!(stringify!($name), " {d", $m, "}, {d", $m, "}"), "lahf",
                    "seto al", d = inout(reg) self, inout("ax") f.0, options(pure, nomem, nostack));
            }
            self
        }
    )*};
}

macro_rules! three {
    ($m:literal, $($name:ident)*) => {$(
        #[inline(always)]
        unsafe fn $name(mut self, b: Self, f: &mut ArithFlags) -> Self {
            // SAFETY: computes in the named registers only; the host has the instruction by the caller's promise.
            unsafe {
                asm!("add al, 0x7f", "sahf", concat!(stringify!($name), " {a", $m, "}, {a", $m, "}, {b", $m, "}"),
                    "lahf", "seto al", a = inout(reg) self, b = in(reg) b, inout("ax") f.0,
                    options(pure, nomem, nostack));
            }
            self
        }
    )*};
}

macro_rules! scatter {
    ($m:literal, $($name:ident)*) => {$(
        #[inline(always)]
        unsafe fn $name(mut self, mask: Self) -> Self {
            // SAFETY: computes in the named registers only; the host has the instruction by the caller's promise.
            unsafe {
                asm!(concat!(stringify!($name), " {a", $m, "}, {a", $m, "}, {b", $m, "}"), a = inout(reg) self,
                    b = in(reg) mask, options(pure, nomem, nostack, preserves_flags));
            }
            self
        }
    )*};
}

macro_rules! bit_word {
    ($t:ty, $m:literal) => {
        impl BitWord for $t {
            scan!($m, bsf bsr);
            count!($m, tzcnt lzcnt popcnt);
        }
    };
}

macro_rules! bmi_word {
    ($t:ty, $m:literal) => {
        impl BmiWord for $t {
            three!($m, andn bextr bzhi);
            count!($m, blsi blsmsk blsr);
            scatter!($m, pdep pext);
        }
    };
}

bit_word!(u16, ":x");
bit_word!(u32, ":e");
bit_word!(u64, ":r");
bmi_word!(u32, ":e");
bmi_word!(u64, ":r");

/// CRC32 of `bytes` bytes (1, 2, 4 or 8) of `data`.
///
/// # Safety
/// The host must have SSE4.2.
pub unsafe fn crc32(crc: u32, data: u64, bytes: usize) -> u32 {
    let mut crc = u64::from(crc);
    // SAFETY: computes in the named registers only; the host has the instruction by the caller's promise.
    unsafe {
        match bytes {
            1 => {
                asm!("crc32 {c:e}, {d}", c = inout(reg) crc, d = in(reg_byte) data as u8, options(pure, nomem, nostack))
            }
            2 => {
                asm!("crc32 {c:e}, {d:x}", c = inout(reg) crc, d = in(reg) data, options(pure, nomem, nostack))
            }
            4 => {
                asm!("crc32 {c:e}, {d:e}", c = inout(reg) crc, d = in(reg) data, options(pure, nomem, nostack))
            }
            _ => {
                asm!("crc32 {c:r}, {d:r}", c = inout(reg) crc, d = in(reg) data, options(pure, nomem, nostack))
            }
        }
    }
    crc as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scans_find_the_ends_and_keep_the_register_for_zero() {
        let mut f = ArithFlags::default();
        assert_eq!(0x50u32.bsf(u64::MAX, &mut f), 4);
        assert!(!f.zf());
        assert_eq!(0x50u64.bsr(0, &mut f), 6);
        assert_eq!(0u64.bsf(0x1234, &mut f), 0x1234);
        assert!(f.zf());
        assert_eq!(0u16.bsr(0xabcd_0000, &mut f), 0xabcd_0000);
    }

    #[test]
    fn bmi_follows_its_definition() {
        let f = &mut ArithFlags::default();
        if host_has(Feature::Bmi1) {
            // SAFETY: the host has BMI1.
            unsafe {
                assert_eq!(0u16.tzcnt(f), 16);
                assert!(f.cf());
                assert_eq!(0xf0u32.andn(0xff, f), 0x0f);
                assert_eq!(0x1234u32.bextr(0x0804, f), 0x23);
                assert_eq!((0x58u64.blsi(f), 0x58u64.blsmsk(f), 0x58u64.blsr(f)), (8, 15, 0x50));
            }
        }
        if host_has(Feature::Bmi2) {
            // SAFETY: the host has BMI2.
            unsafe {
                assert_eq!(0xffffu32.bzhi(4, f), 15);
                assert_eq!(0b101u32.pdep(0xf0f0), 0b101 << 4);
                assert_eq!(0xabcdu64.pext(0xf0f0), 0xac);
            }
        }
        if host_has(Feature::Sse42) {
            // SAFETY: the host has SSE4.2.
            // "123456789", the check value of CRC-32C.
            let crc =
                unsafe { crc32(crc32(u32::MAX, u64::from_le_bytes(*b"12345678"), 8), u64::from(b'9'), 1) };
            assert_eq!(!crc, 0xe306_9283);
        }
    }
}

//! Small helpers the devices share.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Nanoseconds in a second.
pub(crate) const NS: u64 = 1_000_000_000;

/// Locks `mutex`. A panic elsewhere left data that is still plain registers: go on with them.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whole periods of `hz` that have passed at `ns`: floor(ns * hz / 10^9), exact.
pub(crate) fn ticks_at(ns: u64, hz: u64) -> u64 {
    (u128::from(ns) * u128::from(hz) / u128::from(NS)) as u64
}

/// First nanosecond at which `tick` periods of `hz` have passed: the inverse of [`ticks_at`]. Saturates.
pub(crate) fn ns_of_tick(tick: u64, hz: u64) -> u64 {
    let ns = (u128::from(tick) * u128::from(NS)).div_ceil(u128::from(hz));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// Splits a wide read into the byte cycles an 8-bit ISA device sees.
pub(crate) fn read_bytes(port: u16, size: u8, mut byte: impl FnMut(u16) -> u8) -> u32 {
    (0..size.min(4))
        .fold(0, |value, i| value | u32::from(byte(port.wrapping_add(u16::from(i)))) << (8 * u32::from(i)))
}

/// Splits a wide write into the byte cycles an 8-bit ISA device sees.
pub(crate) fn write_bytes(port: u16, size: u8, value: u32, mut byte: impl FnMut(u16, u8)) {
    for (i, b) in (0u16..).zip(value.to_le_bytes()).take(usize::from(size.min(4))) {
        byte(port.wrapping_add(i), b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tick_conversions_are_inverse() {
        for hz in [1_193_182, 3_579_545, 32_768] {
            for tick in [0, 1, 2, 3, 1000, 1_193_181, 1_193_182, 1 << 33, (1 << 43) + 7] {
                let ns = ns_of_tick(tick, hz);
                assert_eq!(ticks_at(ns, hz), tick);
                assert!(ns == 0 || ticks_at(ns - 1, hz) == tick - 1);
            }
        }
        assert_eq!(ticks_at(NS, 1_193_182), 1_193_182);
        assert_eq!(ns_of_tick(u64::MAX, 1), u64::MAX);
        assert!(ticks_at(u64::MAX, 3_579_545) > 0);
    }

    #[test]
    fn wide_accesses_split_little_endian() {
        assert_eq!(read_bytes(0x40, 2, |p| p as u8), 0x4140);
        let mut seen = Vec::new();
        write_bytes(0xffff, 2, 0x1234, |p, v| seen.push((p, v)));
        assert_eq!(seen, [(0xffff, 0x34), (0, 0x12)]);
    }
}

//! Accesses to guest RAM through host addresses.
//!
//! Other vCPUs and devices reach the same bytes at the same time, so no reference to them is ever made, and none is copied
//! as if it were ours: every access is one volatile access, or one instruction of our own. The guest's ordering rules (TSO,
//! Intel SDM vol. 3, 9.2) then follow from the host's.
#![allow(unsafe_code)] // guest RAM is reached through host pointers that the TLB and the memory map hand out

use std::arch::asm;
use std::arch::x86_64::__m128i;

use crate::alu::Word;

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Unaligned<W>(W);

/// One load of `W` from guest RAM.
///
/// # Safety
/// `host` must be valid for `W::BYTES` bytes.
#[inline(always)]
pub unsafe fn host_load<W: Word>(host: *const u8) -> W {
    // SAFETY: valid by the caller's promise; the packed wrapper has no alignment.
    unsafe { host.cast::<Unaligned<W>>().read_volatile().0 }
}

/// One store of `W` to guest RAM.
///
/// # Safety
/// `host` must be valid for `W::BYTES` bytes.
#[inline(always)]
pub unsafe fn host_store<W: Word>(host: *mut u8, value: W) {
    // SAFETY: valid by the caller's promise; the packed wrapper has no alignment.
    unsafe { host.cast::<Unaligned<W>>().write_volatile(Unaligned(value)) }
}

/// One load of 16 bytes from guest RAM.
///
/// # Safety
/// `host` must be valid for 16 bytes.
#[inline(always)]
pub unsafe fn host_load16(host: *const u8) -> [u64; 2] {
    let value: __m128i;
    // SAFETY: valid by the caller's promise; MOVUPS has no alignment. The bytes are valid for both types.
    unsafe {
        asm!("movups {v}, [{p}]", v = out(xmm_reg) value, p = in(reg) host,
            options(nostack, preserves_flags, readonly));
        std::mem::transmute(value)
    }
}

/// One store of 16 bytes to guest RAM.
///
/// # Safety
/// `host` must be valid for 16 bytes.
#[inline(always)]
pub unsafe fn host_store16(host: *mut u8, value: [u64; 2]) {
    // SAFETY: as in `host_load16`.
    unsafe {
        let value: __m128i = std::mem::transmute(value);
        asm!("movups [{p}], {v}", v = in(xmm_reg) value, p = in(reg) host, options(nostack, preserves_flags));
    }
}

/// One atomic compare-and-exchange, locked, at any alignment. Returns what was there.
///
/// # Safety
/// `host` must be valid for `W::BYTES` bytes.
pub unsafe fn host_cmpxchg<W: Word>(host: *mut u8, old: W, new: W) -> W {
    let mut seen = old.to_u64();
    let new = new.to_u64();
    // SAFETY: one locked instruction on memory valid by the caller's promise.
    unsafe {
        match W::BYTES {
            1 => {
                asm!("lock cmpxchg [{p}], {n}", p = in(reg) host, n = in(reg_byte) new as u8, inout("rax") seen, options(nostack))
            }
            2 => {
                asm!("lock cmpxchg [{p}], {n:x}", p = in(reg) host, n = in(reg) new, inout("rax") seen, options(nostack))
            }
            4 => {
                asm!("lock cmpxchg [{p}], {n:e}", p = in(reg) host, n = in(reg) new, inout("rax") seen, options(nostack))
            }
            _ => {
                asm!("lock cmpxchg [{p}], {n}", p = in(reg) host, n = in(reg) new, inout("rax") seen, options(nostack))
            }
        }
    }
    W::from_u64(seen)
}

/// Bytes from which on REP MOVSB beats a loop of words, start-up included.
const LONG: usize = 256;

/// Copies bytes out of guest RAM. 2, 4 and 8 bytes are read in one access, as a guest expects of the machine's data.
///
/// # Safety
/// `host` must be valid for `out.len()` bytes.
#[inline]
pub unsafe fn host_read(host: *const u8, out: &mut [u8]) {
    // SAFETY: the caller's promise; every piece lies within the bytes.
    unsafe {
        match out.len() {
            2 => out.copy_from_slice(&host_load::<u16>(host).to_le_bytes()),
            4 => out.copy_from_slice(&host_load::<u32>(host).to_le_bytes()),
            LONG.. => host_copy(host, out.as_mut_ptr(), out.len()),
            len => {
                let (words, rest) = out.as_chunks_mut::<8>();
                for (n, word) in words.iter_mut().enumerate() {
                    *word = host_load::<u64>(host.add(8 * n)).to_le_bytes();
                }
                for (n, byte) in rest.iter_mut().enumerate() {
                    *byte = host_load::<u8>(host.add(len / 8 * 8 + n));
                }
            }
        }
    }
}

/// Copies bytes to guest RAM. 2, 4 and 8 bytes are written in one access.
///
/// # Safety
/// `host` must be valid for `data.len()` bytes, and writable.
#[inline]
pub unsafe fn host_write(host: *mut u8, data: &[u8]) {
    // SAFETY: as in `host_read`.
    unsafe {
        match *data {
            [a, b] => host_store(host, u16::from_le_bytes([a, b])),
            [a, b, c, d] => host_store(host, u32::from_le_bytes([a, b, c, d])),
            _ if data.len() >= LONG => host_copy(data.as_ptr(), host, data.len()),
            _ => {
                let (words, rest) = data.as_chunks::<8>();
                for (n, &word) in words.iter().enumerate() {
                    host_store(host.add(8 * n), u64::from_le_bytes(word));
                }
                for (n, &byte) in rest.iter().enumerate() {
                    host_store(host.add(data.len() / 8 * 8 + n), byte);
                }
            }
        }
    }
}

/// Copies `len` bytes one after the other, upwards; either side may be guest RAM.
///
/// # Safety
/// Both must be valid for `len` bytes, and `to` writable.
#[inline]
pub unsafe fn host_copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's promise; the direction flag is clear, as the ABI has it.
    unsafe {
        asm!("rep movsb", inout("rsi") from => _, inout("rdi") to => _, inout("rcx") len => _,
            options(nostack, preserves_flags));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_every_length_are_copied_and_no_more() {
        for len in (0..40).chain([LONG - 1, LONG, LONG + 9]) {
            let from: Vec<u8> = (0..=len).map(|n| n as u8 | 0x80).collect();
            let (mut ram, mut back) = (vec![0; len + 1], vec![0; len + 1]);
            // SAFETY: both buffers are longer than `len`.
            unsafe {
                host_write(ram.as_mut_ptr(), &from[..len]);
                host_read(ram.as_ptr(), &mut back[..len]);
            }
            assert_eq!((&ram[..len], ram[len]), (&from[..len], 0), "{len}");
            assert_eq!((&back[..len], back[len]), (&from[..len], 0), "{len}");
        }
    }

    #[test]
    fn a_copy_that_overlaps_downwards_keeps_the_bytes() {
        let mut bytes: Vec<u8> = (0..100).collect();
        let at = bytes.as_mut_ptr();
        // SAFETY: both ranges lie in the buffer.
        unsafe { host_copy(at.add(10), at, 90) };
        assert_eq!(bytes[..90], (10..100).collect::<Vec<u8>>());
    }
}

//! liblzma: a round trip (lzma/container.h).
#![allow(unsafe_code)] // calls of C functions

use crate::data;
use crate::library::Library;
use std::ffi::{c_int, c_void};
use std::hint::black_box;
use std::ptr;
use suite_runner::{Unavailable, Unit};

type Encode = unsafe extern "C" fn(
    preset: u32,
    check: c_int,
    allocator: *const c_void,
    from: *const u8,
    from_size: usize,
    to: *mut u8,
    to_at: *mut usize,
    to_size: usize,
) -> c_int;
type Decode = unsafe extern "C" fn(
    memory: *mut u64,
    flags: u32,
    allocator: *const c_void,
    from: *const u8,
    from_at: *mut usize,
    from_size: usize,
    to: *mut u8,
    to_at: *mut usize,
    to_size: usize,
) -> c_int;
type Crc64 = unsafe extern "C" fn(*const u8, usize, u64) -> u64;

const LEN: usize = 16 * 1024;
/// The fastest: its dictionary of 256 KiB holds the text many times over.
const PRESET: u32 = 0;
const CHECK_CRC64: c_int = 4;
const OK: c_int = 0;
/// Far more than the decoder of this preset takes.
const MEMORY: u64 = 16 << 20;

/// CRC-64 of the text.
pub(crate) const CRC: u64 = 0xdc32_491e_edf9_fde0;

pub(crate) fn round_trip() -> Result<Unit, Unavailable> {
    let library = Library::open(c"liblzma.so.5")?;
    // SAFETY: types as lzma/container.h and lzma/check.h declare them.
    let (encode, decode, crc64): (Encode, Decode, Crc64) = unsafe {
        (
            library.function(c"lzma_easy_buffer_encode")?,
            library.function(c"lzma_stream_buffer_decode")?,
            library.function(c"lzma_crc64")?,
        )
    };
    let text = data::text(LEN);
    let mut packed = vec![0u8; LEN];
    let mut unpacked = vec![0u8; LEN];
    Ok(Box::new(move || {
        let text = black_box(&text);
        unpacked.fill(0);
        let (mut size, mut read, mut back, mut memory) = (0, 0, 0, MEMORY);
        // SAFETY: pointers and lengths are those of vectors, none overlap, and no allocator is malloc.
        let crc = unsafe {
            let (from, to) = (text.as_ptr(), packed.as_mut_ptr());
            let done = encode(PRESET, CHECK_CRC64, ptr::null(), from, LEN, to, &raw mut size, LEN);
            if done != OK || size > LEN / 2 {
                return u64::MAX;
            }
            let (from, to) = (packed.as_ptr(), unpacked.as_mut_ptr());
            let (read, back) = (&raw mut read, &raw mut back);
            if decode(&raw mut memory, 0, ptr::null(), from, read, size, to, back, LEN) != OK {
                return u64::MAX;
            }
            crc64(unpacked.as_ptr(), *back, 0)
        };
        if unpacked == *text { crc } else { u64::MAX }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRC-64 of ECMA-182 bit by bit, reflected (The .xz File Format, section 6).
    #[test]
    fn the_checksum_is_the_text_s() {
        let crc = data::text(LEN).iter().fold(u64::MAX, |crc, byte| {
            (0..8).fold(crc ^ u64::from(*byte), |crc, _| {
                crc >> 1 ^ if crc & 1 == 1 { 0xc96c_5795_d787_0f42 } else { 0 }
            })
        });
        assert_eq!(CRC, !crc);
    }
}

//! zlib: a round trip (zlib.h, "Utility functions").
#![allow(unsafe_code)] // calls of C functions

use crate::data;
use crate::library::Library;
use std::ffi::{c_int, c_uint, c_ulong};
use std::hint::black_box;
use suite_runner::{Unavailable, Unit};

type Compress = unsafe extern "C" fn(*mut u8, *mut c_ulong, *const u8, c_ulong, c_int) -> c_int;
type Uncompress = unsafe extern "C" fn(*mut u8, *mut c_ulong, *const u8, c_ulong) -> c_int;
type Crc32 = unsafe extern "C" fn(c_ulong, *const u8, c_uint) -> c_ulong;

const LEN: usize = 32 * 1024;
const LEVEL: c_int = 6;
const OK: c_int = 0;

/// CRC-32 of the text.
pub(crate) const CRC: u64 = 0xc1df_4905;

pub(crate) fn round_trip() -> Result<Unit, Unavailable> {
    let library = Library::open(c"libz.so.1")?;
    // SAFETY: types as zlib.h declares them.
    let (compress, uncompress, crc32): (Compress, Uncompress, Crc32) = unsafe {
        (library.function(c"compress2")?, library.function(c"uncompress")?, library.function(c"crc32")?)
    };
    let text = data::text(LEN);
    let mut packed = vec![0; LEN];
    let mut unpacked = vec![0; LEN];
    Ok(Box::new(move || {
        let text = black_box(&text);
        unpacked.fill(0);
        let (mut size, mut back) = (packed.len() as c_ulong, unpacked.len() as c_ulong);
        // SAFETY: pointers and lengths are those of vectors, and none overlap.
        let crc = unsafe {
            let done = compress(packed.as_mut_ptr(), &raw mut size, text.as_ptr(), LEN as c_ulong, LEVEL);
            // A third is what text like this becomes: half is no compression.
            if done != OK || size as usize > LEN / 2 {
                return u64::MAX;
            }
            if uncompress(unpacked.as_mut_ptr(), &raw mut back, packed.as_ptr(), size) != OK {
                return u64::MAX;
            }
            crc32(0, unpacked.as_ptr(), back as c_uint)
        };
        if unpacked == *text { crc } else { u64::MAX }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRC-32 bit by bit (RFC 1952, section 8).
    #[test]
    fn the_checksum_is_the_text_s() {
        let crc = data::text(LEN).iter().fold(u32::MAX, |crc, byte| {
            (0..8)
                .fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
        });
        assert_eq!(CRC, u64::from(!crc));
    }
}

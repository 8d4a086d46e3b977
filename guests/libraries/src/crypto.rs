//! libcrypto: the digest that `user-suite`'s class `sha256` computes without a library, of the same message.
#![allow(unsafe_code)] // calls of a C function

use crate::library::Library;
use std::hint::black_box;
use suite_runner::{Unavailable, Unit};

/// openssl/sha.h
type Sha256 = unsafe extern "C" fn(*const u8, usize, *mut u8) -> *mut u8;

/// Fold of the digest.
pub(crate) const DIGEST: u64 = 0x58c8_ab9f_b362_4756;

pub(crate) fn sha256() -> Result<Unit, Unavailable> {
    let library = Library::open(c"libcrypto.so.3")?;
    // SAFETY: the type as openssl/sha.h declares it.
    let sha256: Sha256 = unsafe { library.function(c"SHA256")? };
    let message: Vec<u8> = (0..16384u32).map(|i| (i * 7 + (i >> 8)) as u8).collect();
    Ok(Box::new(move || {
        let message = black_box(&message);
        let mut digest = [0u8; 32];
        // SAFETY: reads the message, and writes a digest of 32 bytes.
        let done = unsafe { sha256(message.as_ptr(), message.len(), digest.as_mut_ptr()) };
        if done.is_null() {
            return u64::MAX;
        }
        let (words, _) = digest.as_chunks::<8>();
        words.iter().fold(0, |sum: u64, word| sum.rotate_left(13) ^ u64::from_be_bytes(*word))
    }))
}

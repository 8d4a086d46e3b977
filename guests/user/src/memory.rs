//! Memory: dependent loads, streams, and the C library's string functions.
#![allow(unsafe_code)] // the C library's string functions take pointers

use std::hint::black_box;
use suite_runner::{Unit, lcg};

pub(crate) fn chase() -> Unit {
    const NODES: usize = 1 << 19;
    // One cycle through all nodes, in an order no prefetcher knows (Sattolo's shuffle).
    let mut next: Vec<u64> = (0..NODES as u64).collect();
    let mut state = 5;
    for i in (1..NODES).rev() {
        next.swap(i, (lcg(&mut state) >> 20) as usize % i);
    }
    Box::new(move || {
        let next = black_box(&next);
        let (mut at, mut sum) = (0u64, 0u64);
        for _ in 0..20_000 {
            at = next[at as usize];
            sum = sum.rotate_left(1) ^ at;
        }
        sum
    })
}

pub(crate) fn stream() -> Unit {
    const LEN: usize = 32 * 1024;
    let mut a: Vec<u64> = (0..LEN as u64).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
    let (mut b, mut c) = (vec![0; LEN], vec![0u64; LEN]);
    Box::new(move || {
        let start = black_box(&mut a);
        for (to, from) in c.iter_mut().zip(start.iter()) {
            *to = *from;
        }
        for (to, from) in b.iter_mut().zip(black_box(&c)) {
            *to = *from << 1;
        }
        for ((to, x), y) in c.iter_mut().zip(start.iter()).zip(black_box(&b)) {
            *to = x.wrapping_add(*y);
        }
        black_box(&c).iter().fold(0, |sum: u64, x| sum.wrapping_add(*x))
    })
}

pub(crate) fn string() -> Unit {
    const LEN: usize = 16 * 1024;
    let mut state = 11;
    let source: Vec<u8> = (0..LEN).map(|_| (lcg(&mut state) >> 57) as u8 | 1).collect();
    let mut copy = vec![0u8; LEN + 64];
    Box::new(move || {
        let source = black_box(&source);
        let mut sum = 0u64;
        // Short ones are calls, long ones are loops.
        for (n, len) in [7usize, 24, 63, 200, 1000, 4096, LEN].into_iter().cycle().take(70).enumerate() {
            copy[n % 32..][..len].copy_from_slice(&source[..len]);
            copy.copy_within(n % 32..n % 32 + len, n % 17);
            copy[n % 17 + len] = 0;
            let equal = copy[n % 17..][..len] == source[..len];
            // SAFETY: a zero byte was stored behind `len` bytes from here, inside `copy`; the search has that bound.
            let (length, found) = unsafe {
                let start = copy.as_ptr().add(n % 17);
                let found = libc::memchr(start.cast(), i32::from(n as u8) * 2, len);
                (libc::strlen(start.cast()), found.is_null())
            };
            sum = sum.rotate_left(5) ^ length as u64 ^ u64::from(equal) << 40 ^ u64::from(found) << 41;
        }
        sum
    })
}

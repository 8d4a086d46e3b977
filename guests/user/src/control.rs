//! Calls: direct and recursive, and through pointers.

use std::hint::black_box;
use suite_runner::{Unit, lcg};

pub(crate) fn calls() -> Unit {
    Box::new(|| fib(black_box(21)))
}

#[inline(never)]
fn fib(n: u64) -> u64 {
    // The black boxes keep both calls: one of them would become a loop.
    if n < 2 { n } else { black_box(fib(n - 1)) + black_box(fib(n - 2)) }
}

pub(crate) fn indirect() -> Unit {
    let table: [fn(u64, u64) -> u64; 8] = [
        |sum, value| sum.wrapping_add(value),
        |sum, value| sum ^ value,
        |sum, _| sum.rotate_left(5),
        |sum, value| sum.wrapping_sub(value),
        |sum, _| !sum,
        |sum, _| sum.wrapping_mul(3),
        |sum, _| sum.swap_bytes(),
        |sum, _| sum.wrapping_add(1),
    ];
    Box::new(move || {
        let table = black_box(&table);
        let (mut state, mut sum) = (1, 0);
        for _ in 0..30_000 {
            let value = lcg(&mut state);
            sum = table[(value >> 61) as usize](sum, value);
        }
        sum
    })
}

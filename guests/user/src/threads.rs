//! The same work on one thread or on more: what a guest gains by more vCPUs.

use std::hint::black_box;
use std::thread;
use suite_runner::{Unit, lcg};

const PIECES: u64 = 8;
/// Steps of a piece. Threads are started anew in each unit, which must cost little beside this.
const STEPS: u32 = 100_000;

/// Fold of all pieces.
pub(crate) const WORK: u64 = 0xffc2_bfec_0ce4_65ff;

/// A unit is all pieces, dealt to `threads` threads, the calling one among them.
pub(crate) fn work(threads: u64) -> Unit {
    Box::new(move || {
        let mut results = [0; PIECES as usize];
        let share = PIECES.div_ceil(threads) as usize;
        let mut hands = results.chunks_mut(share).zip((0..PIECES).step_by(share));
        thread::scope(|scope| {
            let own = hands.next();
            for (hand, first) in hands {
                scope.spawn(move || deal(hand, first));
            }
            if let Some((hand, first)) = own {
                deal(hand, first);
            }
        });
        results.iter().fold(0, |sum: u64, piece| sum.rotate_left(7) ^ piece)
    })
}

fn deal(hand: &mut [u64], first: u64) {
    for (result, number) in hand.iter_mut().zip(first..) {
        *result = piece(black_box(number));
    }
}

/// Integer work in registers: a generator, and branches that depend on it.
fn piece(number: u64) -> u64 {
    let (mut state, mut sum) = (number, 0u64);
    for _ in 0..STEPS {
        let value = lcg(&mut state) >> 33;
        sum = if value & 4 == 0 { sum.rotate_left(5) ^ value } else { sum.wrapping_add(value) };
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_threads_does_all_of_it() {
        for threads in [1, 2, 3, 8] {
            assert_eq!(work(threads)(), WORK, "{threads} threads");
        }
    }
}

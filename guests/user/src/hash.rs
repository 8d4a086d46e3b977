//! SHA-256 in plain integer code (FIPS 180-4).

use std::hint::black_box;
use suite_runner::Unit;

const START: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The first 32 bits of the fractional parts of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2).
fn constants() -> [u32; 64] {
    let mut primes = (2u64..).filter(|n| (2..*n).take_while(|d| d * d <= *n).all(|d| n % d != 0));
    std::array::from_fn(|_| {
        let cube = u128::from(primes.next().unwrap_or(2)) << 96;
        // Largest r with r^3 <= p * 2^96: r is the cube root times 2^32.
        let root = (0..35).rev().fold(0u128, |r, bit| {
            let more = r | 1 << bit;
            if more * more * more <= cube { more } else { r }
        });
        root as u32
    })
}

pub(crate) fn sha256() -> Unit {
    let k = constants();
    let message: Vec<u8> = (0..16384u32).map(|i| (i * 7 + (i >> 8)) as u8).collect();
    Box::new(move || {
        let digest = digest(&k, black_box(&message));
        digest
            .chunks_exact(2)
            .fold(0, |sum: u64, w| sum.rotate_left(13) ^ (u64::from(w[0]) << 32 | u64::from(w[1])))
    })
}

fn digest(k: &[u32; 64], message: &[u8]) -> [u32; 8] {
    let mut state = START;
    let (blocks, rest) = message.as_chunks::<64>();
    blocks.iter().for_each(|block| compress(k, &mut state, block));
    // The padding: a one bit, zeros, the length in bits (FIPS 180-4, 5.1.1).
    let mut last = [0; 128];
    last[..rest.len()].copy_from_slice(rest);
    last[rest.len()] = 0x80;
    let len = if rest.len() < 56 { 64 } else { 128 };
    last[len - 8..len].copy_from_slice(&(message.len() as u64 * 8).to_be_bytes());
    last[..len].as_chunks().0.iter().for_each(|block| compress(k, &mut state, block));
    state
}

fn compress(k: &[u32; 64], state: &mut [u32; 8], block: &[u8; 64]) {
    let mut w = [0u32; 64];
    for (word, bytes) in w.iter_mut().zip(block.as_chunks::<4>().0) {
        *word = u32::from_be_bytes(*bytes);
    }
    for t in 16..64 {
        let s0 = w[t - 15].rotate_right(7) ^ w[t - 15].rotate_right(18) ^ w[t - 15] >> 3;
        let s1 = w[t - 2].rotate_right(17) ^ w[t - 2].rotate_right(19) ^ w[t - 2] >> 10;
        w[t] = w[t - 16].wrapping_add(s0).wrapping_add(w[t - 7]).wrapping_add(s1);
    }
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
    for t in 0..64 {
        let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let choice = e & f ^ !e & g;
        let t1 = h.wrapping_add(s1).wrapping_add(choice).wrapping_add(k[t]).wrapping_add(w[t]);
        let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let t2 = s0.wrapping_add(a & b ^ a & c ^ b & c);
        (h, g, f, e, d, c, b, a) = (g, f, e, d.wrapping_add(t1), c, b, a, t1.wrapping_add(t2));
    }
    for (sum, word) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *sum = sum.wrapping_add(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-4's examples "abc" and the one of 448 bits.
    #[test]
    fn examples_of_the_standard() {
        let hex = |m: &[u8]| digest(&constants(), m).iter().map(|w| format!("{w:08x}")).collect::<String>();
        assert_eq!(hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(
            hex(b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
        );
    }
}

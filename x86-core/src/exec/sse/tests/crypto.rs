//! AES (FIPS 197), carry-less multiplication and SHA (FIPS 180-4) in plain Rust.

use std::sync::LazyLock;

use iced_x86::Code::{self, *};
use iced_x86::Register;

use super::{Random, bench, execute, get, lane, on_registers, set, vector};

/// The product in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1.
fn multiply(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a = a << 1 ^ if a & 0x80 != 0 { 0x1b } else { 0 };
        b >>= 1;
    }
    product
}

fn sub_byte(x: u8) -> u8 {
    let inverse = (0..254).fold(1, |power, _| multiply(power, x));
    (0..5).fold(0x63, |all, i| all ^ inverse.rotate_left(i))
}

fn inverse_sub_byte(x: u8) -> u8 {
    static INVERSE: LazyLock<[u8; 256]> = LazyLock::new(|| {
        let mut inverse = [0; 256];
        (0..=255).for_each(|y| inverse[usize::from(sub_byte(y))] = y);
        inverse
    });
    INVERSE[usize::from(x)]
}

fn bytes(state: u128, f: impl Fn(u8) -> u8) -> u128 {
    vector((0..16).map(|i| f(lane(state, i))))
}

/// Row `r` moved left by `r` columns, or right.
fn shift_rows(state: u128, inverse: bool) -> u128 {
    vector((0..16).map(|i| {
        let (row, column) = (i % 4, i / 4);
        let from = if inverse { column + 4 - row } else { column + row };
        lane::<u8>(state, row + from % 4 * 4)
    }))
}

fn mix_columns(state: u128, factors: [u8; 4]) -> u128 {
    vector((0..16).map(|i| {
        let (row, column) = (i % 4, i / 4);
        (0..4).fold(0u8, |sum, j| sum ^ multiply(lane(state, column * 4 + j), factors[(j + 4 - row) % 4]))
    }))
}

const MIX: [u8; 4] = [2, 3, 1, 1];
const UNMIX: [u8; 4] = [14, 11, 13, 9];

fn key_assist(b: u128, constant: u8) -> u128 {
    let word = |i| lane::<u32>(bytes(b, sub_byte), i);
    let turned = |i| word(i).rotate_right(8) ^ u32::from(constant);
    vector([word(1), turned(1), word(3), turned(3)])
}

fn carryless(a: u64, b: u64) -> u128 {
    (0..64).filter(|i| b >> i & 1 != 0).fold(0, |sum, i| sum ^ u128::from(a) << i)
}

/// Words, the highest first, as the SDM numbers them.
fn words(value: u128) -> [u32; 4] {
    [3, 2, 1, 0].map(|i| lane(value, i))
}

fn of_words([a, b, c, d]: [u32; 4]) -> u128 {
    vector([d, c, b, a])
}

fn choose(x: u32, y: u32, z: u32) -> u32 {
    x & y ^ !x & z
}

fn majority(x: u32, y: u32, z: u32) -> u32 {
    x & y ^ x & z ^ y & z
}

fn sha1_rounds(state: u128, message: u128, imm: u8) -> u128 {
    const K: [u32; 4] = [0x5a82_7999, 0x6ed9_eba1, 0x8f1b_bcdc, 0xca62_c1d6];
    let kind = usize::from(imm & 3);
    let [mut a, mut b, mut c, mut d] = words(state);
    // The first word has E added already.
    let mut e = 0u32;
    for word in words(message) {
        let mixed = match kind {
            0 => choose(b, c, d),
            2 => majority(b, c, d),
            _ => b ^ c ^ d,
        };
        let sum = [mixed, a.rotate_left(5), word, e, K[kind]].into_iter().fold(0, u32::wrapping_add);
        (e, d, c, b, a) = (d, c, b.rotate_left(30), a, sum);
    }
    of_words([a, b, c, d])
}

fn sha1_message2(a: u128, b: u128) -> u128 {
    let ([a0, a1, a2, a3], [_, w13, w14, w15]) = (words(a), words(b));
    let w16 = (a0 ^ w13).rotate_left(1);
    of_words([w16, (a1 ^ w14).rotate_left(1), (a2 ^ w15).rotate_left(1), (a3 ^ w16).rotate_left(1)])
}

fn small_sigma0(x: u32) -> u32 {
    x.rotate_right(7) ^ x.rotate_right(18) ^ x >> 3
}

fn small_sigma1(x: u32) -> u32 {
    x.rotate_right(17) ^ x.rotate_right(19) ^ x >> 10
}

fn sha256_message2(a: u128, b: u128) -> u128 {
    let ([a3, a2, a1, a0], [w15, w14, ..]) = (words(a), words(b));
    let w16 = a0.wrapping_add(small_sigma1(w14));
    let w17 = a1.wrapping_add(small_sigma1(w15));
    of_words([a3.wrapping_add(small_sigma1(w17)), a2.wrapping_add(small_sigma1(w16)), w17, w16])
}

fn sha256_rounds(cdgh: u128, abef: u128, keys: u128) -> u128 {
    let ([mut a, mut b, mut e, mut f], [mut c, mut d, mut g, mut h]) = (words(abef), words(cdgh));
    for i in 0..2 {
        let sigma1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let sigma0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let t1 = [choose(e, f, g), sigma1, lane(keys, i), h].into_iter().fold(0, u32::wrapping_add);
        let t2 = sigma0.wrapping_add(majority(a, b, c));
        (h, g, f, e) = (g, f, e, d.wrapping_add(t1));
        (d, c, b, a) = (c, b, a, t1.wrapping_add(t2));
    }
    let _ = (c, d, g, h);
    of_words([a, b, e, f])
}

/// What `code` computes, if it is one of these.
pub(super) fn reference(code: Code, a: u128, b: u128, imm: u8) -> Option<u128> {
    Some(match code {
        Aesenc_xmm_xmmm128 => mix_columns(bytes(shift_rows(a, false), sub_byte), MIX) ^ b,
        Aesenclast_xmm_xmmm128 => bytes(shift_rows(a, false), sub_byte) ^ b,
        Aesdec_xmm_xmmm128 => mix_columns(bytes(shift_rows(a, true), inverse_sub_byte), UNMIX) ^ b,
        Aesdeclast_xmm_xmmm128 => bytes(shift_rows(a, true), inverse_sub_byte) ^ b,
        Aesimc_xmm_xmmm128 => mix_columns(b, UNMIX),
        Aeskeygenassist_xmm_xmmm128_imm8 => key_assist(b, imm),
        Pclmulqdq_xmm_xmmm128_imm8 => {
            carryless(lane(a, usize::from(imm & 1)), lane(b, usize::from(imm >> 4 & 1)))
        }
        Sha1nexte_xmm_xmmm128 => {
            let [b0, b1, b2, b3] = words(b);
            of_words([b0.wrapping_add(words(a)[0].rotate_left(30)), b1, b2, b3])
        }
        Sha1msg1_xmm_xmmm128 => {
            let ([w0, w1, w2, w3], [w4, w5, ..]) = (words(a), words(b));
            of_words([w2 ^ w0, w3 ^ w1, w4 ^ w2, w5 ^ w3])
        }
        Sha1msg2_xmm_xmmm128 => sha1_message2(a, b),
        Sha1rnds4_xmm_xmmm128_imm8 => sha1_rounds(a, b, imm),
        Sha256msg1_xmm_xmmm128 => {
            let ([w3, w2, w1, w0], [.., w4]) = (words(a), words(b));
            let plus = |x: u32, y| x.wrapping_add(small_sigma0(y));
            of_words([plus(w3, w4), plus(w2, w3), plus(w1, w2), plus(w0, w1)])
        }
        Sha256msg2_xmm_xmmm128 => sha256_message2(a, b),
        _ => return None,
    })
}

#[test]
fn sha256_rounds_take_their_keys_from_xmm0() {
    let mut cpu = bench();
    if !cpu.model.features.has(accel_api::x86::Feature::Sha) {
        return;
    }
    let mut random = Random(21);
    for _ in 0..100 {
        let (a, b, keys) = (random.wide(), random.wide(), random.wide());
        set(&mut cpu, 0, keys);
        set(&mut cpu, 1, a);
        set(&mut cpu, 2, b);
        let ins = on_registers(Sha256rnds2_xmm_xmmm128, Register::XMM1, Register::XMM2, 0);
        execute(&mut cpu, &ins).unwrap();
        assert_eq!(get(&cpu, 1), sha256_rounds(a, b, keys));
    }
}

//! `sha`: the SHA-256 compression function, chained over one block (FIPS 180-4, 6.2.2).

use super::Program;
use crate::bare::{Runtime, layout::WORK};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

pub(super) const SHA: Program =
    Program { name: "sha", iterations: 25_000, user_pages: false, setup: load, body: sha };

/// Chaining value, eight words.
const STATE: u64 = WORK;
/// Message schedule, 64 words; the first 16 are the block.
const SCHEDULE: u64 = WORK + 0x100;
/// Round constants, 64 words.
const CONSTANTS: u64 = WORK + 0x200;

/// First 32 bits of the fractional parts of `root(prime)`, for the first `N` primes.
fn fractions<const N: usize>(root: impl Fn(f64) -> f64) -> [u32; N] {
    let mut primes = (2u32..).filter(|n| (2..*n).take_while(|d| d * d <= *n).all(|d| n % d != 0));
    std::array::from_fn(|_| {
        let value = root(f64::from(primes.next().expect("primes do not end")));
        (value.fract() * 4_294_967_296.0) as u32
    })
}

/// The block is the bytes 0 to 63, read as big-endian words.
fn load(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let initial: [u32; 8] = fractions(f64::sqrt);
    let rounds: [u32; 64] = fractions(f64::cbrt);
    let block: [u32; 16] =
        std::array::from_fn(|w| u32::from_be_bytes(std::array::from_fn(|b| (4 * w + b) as u8)));
    for (base, words) in [(STATE, &initial[..]), (SCHEDULE, &block[..]), (CONSTANTS, &rounds[..])] {
        for (n, word) in words.iter().enumerate() {
            a.mov(dword_ptr(base + 4 * n as u64), *word)?;
        }
    }
    Ok(())
}

/// `into` becomes the exclusive or of `from` rotated right by each of `by`; edx is lost.
fn rotations(
    a: &mut CodeAssembler,
    into: AsmRegister32,
    from: AsmRegister32,
    by: [u32; 3],
    last_shifts: bool,
) -> Result<(), IcedError> {
    a.mov(into, from)?;
    a.ror(into, by[0])?;
    a.mov(edx, from)?;
    a.ror(edx, by[1])?;
    a.xor(into, edx)?;
    a.mov(edx, from)?;
    if last_shifts {
        a.shr(edx, by[2])?;
    } else {
        a.ror(edx, by[2])?;
    }
    a.xor(into, edx)
}

fn sha(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let [mut block, mut schedule, mut round] = std::array::from_fn(|_| a.create_label());
    let words = [r8d, r9d, r10d, r11d, r12d, r13d, r14d, r15d];
    let [va, vb, vc, vd, ve, vf, vg, vh] = words;
    a.push(rcx)?;
    a.mov(rbx, SCHEDULE)?;
    a.mov(rbp, CONSTANTS)?;
    a.mov(rdi, STATE)?;

    a.set_label(&mut block)?;
    a.mov(ecx, 16)?;
    a.set_label(&mut schedule)?;
    a.mov(r8d, dword_ptr(rbx + rcx * 4 - 15 * 4))?;
    rotations(a, eax, r8d, [7, 18, 3], true)?;
    a.mov(r9d, dword_ptr(rbx + rcx * 4 - 2 * 4))?;
    rotations(a, r10d, r9d, [17, 19, 10], true)?;
    a.add(eax, r10d)?;
    a.add(eax, dword_ptr(rbx + rcx * 4 - 16 * 4))?;
    a.add(eax, dword_ptr(rbx + rcx * 4 - 7 * 4))?;
    a.mov(dword_ptr(rbx + rcx * 4), eax)?;
    a.inc(ecx)?;
    a.cmp(ecx, 64)?;
    a.jne(schedule)?;

    for (n, word) in words.iter().enumerate() {
        a.mov(*word, dword_ptr(rdi + 4 * n))?;
    }
    a.xor(ecx, ecx)?;
    a.set_label(&mut round)?;
    // T1, in h.
    rotations(a, eax, ve, [6, 11, 25], false)?;
    a.add(vh, eax)?;
    a.mov(eax, vf)?;
    a.xor(eax, vg)?;
    a.and(eax, ve)?;
    a.xor(eax, vg)?;
    a.add(vh, eax)?;
    a.add(vh, dword_ptr(rbp + rcx * 4))?;
    a.add(vh, dword_ptr(rbx + rcx * 4))?;
    a.add(vd, vh)?;
    // T1 + T2.
    rotations(a, eax, va, [2, 13, 22], false)?;
    a.add(vh, eax)?;
    a.mov(eax, va)?;
    a.and(eax, vb)?;
    a.mov(edx, va)?;
    a.or(edx, vb)?;
    a.and(edx, vc)?;
    a.or(eax, edx)?;
    a.add(eax, vh)?;
    for pair in words.windows(2).rev() {
        a.mov(pair[1], pair[0])?;
    }
    a.mov(va, eax)?;
    a.inc(ecx)?;
    a.cmp(ecx, 64)?;
    a.jne(round)?;
    for (n, word) in words.iter().enumerate() {
        a.add(dword_ptr(rdi + 4 * n), *word)?;
    }
    a.dec(qword_ptr(rsp))?;
    a.jnz(block)?;

    a.pop(rcx)?;
    a.mov(rbx, qword_ptr(STATE))?;
    for n in 1..4 {
        a.rol(rbx, 13)?;
        a.xor(rbx, qword_ptr(STATE + 8 * n))?;
    }
    Ok(())
}

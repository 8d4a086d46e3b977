//! Code made while the program runs, as translators of languages make it: new functions in memory that is first writable
//! and then executable, and one function rewritten in place in memory that is both.
#![allow(unsafe_code)] // mappings, stores of machine code, and calls of it

use std::io;
use std::ptr::{self, NonNull};
use suite_runner::{Unavailable, Unit, lcg};

const FUNCTIONS: usize = 512;
/// Room for one function.
const SLOT: usize = 64;
const COEFFICIENTS: usize = 6;
const REWRITES: u32 = 1000;

/// Checksum of [`new_functions`].
pub(crate) const NEW_FUNCTIONS: u64 = 0x8acd_51fb_2dc5_a25a;
/// Checksum of [`one_function`].
pub(crate) const ONE_FUNCTION: u64 = 0xd35f_bd96_3f59_528d;

/// A function of ours: its argument in rdi, its result in rax (System V convention).
type Function = extern "sysv64" fn(u64) -> u64;

/// A private mapping that goes with this value.
struct Buffer {
    start: NonNull<u8>,
    len: usize,
}

impl Buffer {
    fn new(len: usize, protection: i32) -> Result<Self, Unavailable> {
        // SAFETY: a new anonymous mapping wherever the kernel likes; checked below.
        let start = unsafe {
            libc::mmap(ptr::null_mut(), len, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        match NonNull::new(start.cast::<u8>()) {
            Some(mapped) if start != libc::MAP_FAILED => Ok(Self { start: mapped, len }),
            // Hardened systems refuse memory that is writable and executable.
            _ => Err(Unavailable(format!("mmap: {}", io::Error::last_os_error()))),
        }
    }

    fn protect(&self, protection: i32) -> bool {
        // SAFETY: our own mapping, of this length.
        unsafe { libc::mprotect(self.start.as_ptr().cast(), self.len, protection) == 0 }
    }

    /// Stores `code` at `offset`; the mapping must be writable.
    fn write(&mut self, offset: usize, code: &[u8]) {
        assert!(offset + code.len() <= self.len, "code within the buffer");
        // SAFETY: inside the mapping by the assertion; it is writable, or the processor says so by a signal.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), self.start.as_ptr().add(offset), code.len()) };
    }

    /// Calls what was stored at `offset`.
    ///
    /// # Safety
    /// A whole function of ours begins there and is executable.
    unsafe fn call(&self, offset: usize, argument: u64) -> u64 {
        // SAFETY: by the caller's promise this is the address of a function of that type.
        let function = unsafe { std::mem::transmute::<*mut u8, Function>(self.start.as_ptr().add(offset)) };
        function(argument)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nobody uses any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// A polynomial with these coefficients, by Horner's rule: constants are immediates, and there is no loop.
fn polynomial(coefficients: &[i32; COEFFICIENTS]) -> Vec<u8> {
    let mut code = Vec::with_capacity(SLOT);
    code.extend([0x48, 0xc7, 0xc0]); // mov rax, imm32
    code.extend(coefficients[0].to_le_bytes());
    for coefficient in &coefficients[1..] {
        code.extend([0x48, 0x0f, 0xaf, 0xc7]); // imul rax, rdi
        code.extend([0x48, 0x05]); // add rax, imm32
        code.extend(coefficient.to_le_bytes());
    }
    code.push(0xc3); // ret
    code
}

/// Per unit, a batch of polynomials is written, made executable, and called. The batches differ in their constant terms,
/// which grow by one each time; the checksum has that taken out again, so that the code of an earlier batch is noticed.
pub(crate) fn new_functions() -> Result<Unit, Unavailable> {
    let mut buffer = Buffer::new(FUNCTIONS * SLOT, libc::PROT_READ | libc::PROT_WRITE)?;
    let mut batch = 0u16;
    Ok(Box::new(move || {
        batch = batch.wrapping_add(1);
        let mut state = 9;
        if !buffer.protect(libc::PROT_READ | libc::PROT_WRITE) {
            return u64::MAX;
        }
        for n in 0..FUNCTIONS {
            let mut coefficients = [0; COEFFICIENTS].map(|_: i32| (lcg(&mut state) >> 34) as i32);
            // No overflow: the generator's share has 30 bits.
            coefficients[COEFFICIENTS - 1] += i32::from(batch);
            buffer.write(n * SLOT, &polynomial(&coefficients));
        }
        if !buffer.protect(libc::PROT_READ | libc::PROT_EXEC) {
            return u64::MAX;
        }
        (0..FUNCTIONS).fold(0u64, |sum, n| {
            // SAFETY: each slot has a whole function since the loop above, and the buffer is executable.
            let value = unsafe { buffer.call(n * SLOT, n as u64) };
            sum.rotate_left(5) ^ value.wrapping_sub(u64::from(batch))
        })
    }))
}

/// `mov eax, imm32; xor eax, edi; ret`, whose immediate is stored anew before each call.
pub(crate) fn one_function() -> Result<Unit, Unavailable> {
    let mut buffer = Buffer::new(4096, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC)?;
    buffer.write(0, &[0xb8, 0, 0, 0, 0, 0x31, 0xf8, 0xc3]);
    Ok(Box::new(move || {
        (0..REWRITES).fold(0u64, |sum, n| {
            buffer.write(1, &n.wrapping_mul(0x0100_0193).to_le_bytes());
            // SAFETY: the function was written whole, and still is: only its immediate was replaced.
            sum.rotate_left(5) ^ unsafe { buffer.call(0, u64::from(n)) }
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the processor makes of the bytes is what the formula says.
    #[test]
    fn polynomials_are_compiled_right() {
        let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let Ok(mut buffer) = Buffer::new(4096, all) else { return };
        let coefficients = [3, -1, 0, i32::MIN, 7, i32::MAX];
        buffer.write(0, &polynomial(&coefficients));
        for x in [0u64, 1, 2, u64::MAX, 1 << 40] {
            let value = coefficients
                .iter()
                .fold(0u64, |sum, c| sum.wrapping_mul(x).wrapping_add(i64::from(*c) as u64));
            // SAFETY: a whole function was written.
            assert_eq!(unsafe { buffer.call(0, x) }, value, "{x:x}");
        }
    }

    #[test]
    fn the_rewritten_function_is_the_one_called() {
        let expected = (0..REWRITES)
            .fold(0u64, |sum, n| sum.rotate_left(5) ^ u64::from(n.wrapping_mul(0x0100_0193) ^ n));
        assert_eq!(ONE_FUNCTION, expected);
    }

    #[test]
    fn new_functions_are_the_ones_called() {
        let mut state = 9;
        let expected = (0..FUNCTIONS as u64).fold(0u64, |sum, x| {
            let value =
                (0..COEFFICIENTS).fold(0u64, |v, _| v.wrapping_mul(x).wrapping_add(lcg(&mut state) >> 34));
            sum.rotate_left(5) ^ value
        });
        assert_eq!(NEW_FUNCTIONS, expected);
    }
}
